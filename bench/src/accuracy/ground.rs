//! The checkpoint of all rows, loads that are explained, and how clean and stalled ones compare.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use forebay_client::model::Explanation;
use forebay_client::{Client, Layout, LoadRequest};
use forebay_testkit::{Checkpoint, CheckpointSpec, RawFiles, RawOptions, RawOrigin, checkpoint};
use tokio::time::Instant;

use super::AccuracyOptions;
use crate::Outcome;
use crate::measure::Spread;
use crate::node;
use crate::origin::{progress, row};
use crate::process::DaemonSpec;
use crate::report::{Bound, Figure, Limit, Row};

const SEED: u64 = 20_261_130;
const SHARDS: usize = 4;
/// Where the checkpoint lies at its origins.
pub(super) const PREFIX: &str = "m/";
/// Small chunks: a load has many of them, and is not over before its stall shows.
const CHUNK: &str = "1MiB";

/// Of the seconds of a stall, at least.
const CHARGED_MIN: f64 = 0.95;
/// A stall that is shorter, in seconds, says nothing.
const STALL_MIN: f64 = 0.1;

/// The checkpoint, and how often it is loaded.
pub(super) struct Scene {
    pub(super) runs: usize,
    pub(super) made: Checkpoint,
    pub(super) raw: RawFiles,
    traces: Option<PathBuf>,
}

impl Scene {
    pub(super) fn make(options: &AccuracyOptions) -> Outcome<Self> {
        let made = checkpoint(CheckpointSpec::new(SEED, options.bytes).shards(SHARDS));
        let raw = RawFiles::checkpoint(PREFIX, &made)?;
        let traces = options.traces.clone();
        Ok(Self { runs: options.runs, made, raw, traces })
    }

    /// A new origin of the checkpoint: nothing is known of it yet, and no connection is open.
    pub(super) fn origin(&self, link: RawOptions) -> Outcome<RawOrigin> {
        Ok(RawOrigin::start(link, &self.raw)?)
    }

    /// A daemon whose RAM can keep the checkpoint.
    pub(super) fn daemon(&self, env: &[(&str, &str)]) -> Outcome<DaemonSpec> {
        self.tiered_daemon(0, env)
    }

    /// The same with an NVMe tier.
    pub(super) fn tiered_daemon(&self, nvme: u64, env: &[(&str, &str)]) -> Outcome<DaemonSpec> {
        let env: Vec<(&str, String)> =
            env.iter().map(|(name, value)| (*name, (*value).to_owned())).collect();
        node::tiered_daemon(self.made.bytes(), nvme, &[&env[..], &settings()].concat())
    }
}

/// Settings of every daemon here.
pub(super) fn settings() -> [(&'static str, String); 1] {
    [("FOREBAY_CHUNK", CHUNK.to_owned())]
}

/// The URI of the checkpoint at an origin.
pub(super) fn uri(origin: &RawOrigin) -> String {
    format!("{}/{PREFIX}", origin.endpoint())
}

/// A load as the daemon explains it, in seconds.
#[derive(Debug, Clone)]
pub(super) struct Seen {
    pub(super) wall: f64,
    causes: BTreeMap<String, f64>,
    /// What its stall took, where that is exact.
    stall: Option<f64>,
}

impl Seen {
    pub(super) fn charged(&self, causes: &[&str]) -> f64 {
        causes.iter().filter_map(|cause| self.causes.get(*cause)).fold(0.0, |sum, time| sum + time)
    }

    /// What is charged to any other cause.
    pub(super) fn others(&self, causes: &[&str]) -> impl Iterator<Item = (&str, f64)> {
        let others = self.causes.iter().filter(|(cause, _)| !causes.contains(&cause.as_str()));
        others.map(|(cause, seconds)| (cause.as_str(), *seconds))
    }

    /// Says how long its stall was.
    pub(super) fn stalled_for(self, seconds: f64) -> Self {
        Self { stall: Some(seconds), ..self }
    }
}

/// Loads everything; each chunk goes back at once.
pub(super) async fn load(scene: &Scene, client: &Client, uri: &str) -> Outcome<Seen> {
    load_slowly(scene, client, uri, std::time::Duration::ZERO).await
}

/// The same with a pause while each chunk is held.
pub(super) async fn load_slowly(
    scene: &Scene,
    client: &Client,
    uri: &str,
    pause: std::time::Duration,
) -> Outcome<Seen> {
    let mut paused = 0.0;
    let mut load = client.load(LoadRequest::new(uri)).await?;
    while let Some(chunk) = load.next_chunk().await? {
        if !pause.is_zero() {
            let begun = Instant::now();
            tokio::time::sleep(pause).await;
            paused += begun.elapsed().as_secs_f64();
        }
        drop(chunk);
    }
    let report = load.finish().await?;
    let seen = explained(scene, client, &report.load_id).await?;
    Ok(if pause.is_zero() { seen } else { seen.stalled_for(paused) })
}

/// Loads everything to the device of the client.
pub(super) async fn to_device(scene: &Scene, client: &Client, uri: &str) -> Outcome<Seen> {
    let load = client.load(LoadRequest::new(uri)).await?.to_device(Layout::PerObject)?;
    let resident = load.finish().await?;
    explained(scene, client, &resident.report.load_id).await
}

async fn explained(scene: &Scene, client: &Client, load_id: &str) -> Outcome<Seen> {
    let explained = client.explain(Some(load_id)).await?;
    if let Some(dir) = &scene.traces {
        write_trace(client, &explained, dir).await?;
    }
    let causes = explained.causes.iter();
    let causes = causes.map(|cause| (cause.cause.clone(), cause.time.as_secs_f64())).collect();
    Ok(Seen { wall: explained.wall.as_secs_f64(), causes, stall: None })
}

/// Writes every span of a load to a file of its own, for whoever wants to know why a charge is what
/// it is.
async fn write_trace(client: &Client, explained: &Explanation, dir: &Path) -> Outcome<()> {
    let trace = client.trace(Some(&explained.load_id)).await?;
    let mut text = format!("{}\n", explained.verdict);
    let ms = |time: std::time::Duration| time.as_secs_f64() * 1e3;
    for span in &trace.spans {
        let (from, to) = (ms(span.start), ms(span.start + span.length));
        let (name, kind, clue) = (&span.name, &span.kind, &span.clue);
        writeln!(text, "{from:.3} to {to:.3} ms: {:?} {name} {kind} {clue}", span.track)?;
    }
    std::fs::create_dir_all(dir)?;
    Ok(std::fs::write(dir.join(format!("{:.3}", explained.opened_unix_seconds)), text)?)
}

/// A row that cannot be measured here.
#[expect(clippy::needless_pass_by_value, reason = "whoever skips has no other use for it")]
pub(super) fn skipped(name: &'static str, why: String) -> Row {
    progress(format_args!("{name}: skipped: {why}"));
    row(name, format!("skipped: {why}"))
}

/// What a row puts into loads, and whom that is to be charged to.
pub(super) struct Stall {
    pub(super) name: &'static str,
    pub(super) what: String,
    pub(super) causes: &'static [&'static str],
}

impl Stall {
    /// Loads in turn without and with the stall; the argument says which.
    pub(super) async fn compare(
        self,
        scene: &Scene,
        mut load: impl AsyncFnMut(bool) -> Outcome<Seen>,
    ) -> Outcome<Row> {
        // The first load of a daemon is like no other.
        load(false).await?;
        let mut sides = [Vec::new(), Vec::new()];
        for run in 0..scene.runs {
            for side in [run % 2 == 1, run % 2 == 0] {
                let seen = load(side).await?;
                self.tell(run, side, &seen);
                sides[usize::from(side)].push(seen);
            }
        }
        let [clean, stalled] = sides;
        Ok(self.judge(&clean, &stalled))
    }

    fn tell(&self, run: usize, stalled: bool, seen: &Seen) {
        let side = if stalled { "stalled" } else { "clean" };
        let mut causes: Vec<_> = seen.causes.iter().collect();
        causes.sort_by(|one, other| other.1.total_cmp(one.1));
        let causes: Vec<_> =
            causes.iter().take(4).map(|(cause, time)| format!("{cause} {time:.3}")).collect();
        let (name, wall) = (self.name, seen.wall);
        progress(format_args!("{name} {}, {side}: {wall:.3} s: {}", run + 1, causes.join(", ")));
    }

    fn judge(self, clean: &[Seen], stalled: &[Seen]) -> Row {
        let of = |seen: &[Seen], value: &dyn Fn(&Seen) -> f64| -> Spread {
            seen.iter().map(value).collect()
        };
        let charged = |seen: &Seen| seen.charged(self.causes);
        let wall = of(clean, &|seen| seen.wall);
        let usual = of(clean, &charged);
        let stall = |seen: &Seen| seen.stall.unwrap_or_else(|| seen.wall - wall.median());
        let share = of(stalled, &|seen| (charged(seen) - usual.median()) / stall(seen));
        let unknown = of(stalled, &|seen| seen.charged(&["unknown"]) / seen.wall);
        let stalls = of(stalled, &stall);
        let mut row = row(self.name, self.what);
        row.bounds = vec![
            Bound::new(
                "seconds of it charged, median",
                share.median(),
                Limit::AtLeast(CHARGED_MIN),
            ),
            Bound::new("the stall, s", stalls.median(), Limit::AtLeast(STALL_MIN)),
        ];
        row.figures = vec![
            Figure::new("clean load", "s", wall),
            Figure::new("clean load, charged to it", "s", usual),
            Figure::new("stall", "s", stalls),
            Figure::new(format!("charged to {}", self.causes.join(" + ")), "of it", share),
            Figure::new("unknown", "of wall", unknown),
        ];
        row
    }
}
