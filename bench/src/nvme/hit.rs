//! Loads from NVMe, with either engine, against `fio` on the same files.
//!
//! For each engine a daemon with a cache directory of its own stays up, its pool at its size, and
//! the checkpoint is prefetched into its tier. Before a load its RAM is made empty. `fio` reads
//! whole blocks of the extents of one of them, while the daemons have nothing to do; its rate is of
//! what it read. What a load takes counts from the call to the report, with everything that a user
//! waits for; of `fio` only its reads count. Before anything is timed each engine loads once from
//! its extents, and every byte is compared with what it has to be.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use forebay_client::{KeepTier, PrefetchRequest};
use forebay_testkit::Checkpoint;

use super::fio::{self, SHAPES, Shape};
use super::{NvmeOptions, NvmeRow, Pace, forget_pages, order};
use crate::Outcome;
use crate::cpu::{ThreadTimes, thread_times};
use crate::measure::{Measurement, Spread};
use crate::node::{self, Node};
use crate::origin::child::{self, OriginProcess};
use crate::origin::{gib, progress, row};
use crate::proof::Proof;
use crate::report::{Bound, Figure, Limit, Row};

/// Between the end of one who reads and the start of the next.
const PAUSE: Duration = Duration::from_secs(3);
/// How long the tier may take until it knows its extents.
const KNOWN_WITHIN: Duration = Duration::from_secs(60);
/// Room for the headers of the extents.
const HEADERS_BYTES: u64 = 256 << 20;
/// Of fio's rate, at least.
const URING_RATE_MIN: f64 = 0.95;
const THREADS_RATE_MIN: f64 = 0.85;
/// CPU seconds of the daemon for each GiB, at most.
const CPU_MAX: f64 = 0.10;

/// Who reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Contestant {
    Load(Engine),
    Fio(Shape),
}

/// How the daemon reads and writes files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Engine {
    Uring,
    Threads,
}

impl Engine {
    fn setting(self) -> &'static str {
        match self {
            Self::Uring => "auto",
            Self::Threads => "threads",
        }
    }

    /// As the daemon says it.
    fn name(self) -> &'static str {
        match self {
            Self::Uring => "io_uring",
            Self::Threads => "threads",
        }
    }
}

/// One read of everything.
#[derive(Debug)]
struct Ran {
    run: Measurement,
    threads: ThreadTimes,
    /// Since the one before it.
    paused: Duration,
}

/// A checkpoint that is stored, and by whom.
struct Site {
    made: Checkpoint,
    origin: OriginProcess,
    nodes: Vec<(Engine, Node)>,
    pace: Pace,
}

pub(super) fn run(options: &NvmeOptions) -> Outcome<Vec<Row>> {
    fio::check()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let engines = [(NvmeRow::Hit, Engine::Uring), (NvmeRow::Threads, Engine::Threads)];
    let engines = engines.into_iter().filter(|(row, _)| options.asked(*row));
    let engines: Vec<Engine> = engines.map(|(_, engine)| engine).collect();
    let found = runtime.block_on(measure(options, &engines))?;
    let what = format!(
        "a load of {:.2} GiB from NVMe into empty RAM, against fio on the same extents with \
         O_DIRECT",
        gib(child::made(options.bytes).bytes())
    );
    Ok(engines.into_iter().map(|engine| judge(engine, &what, &found)).collect())
}

type Found = Vec<(Contestant, Vec<Ran>)>;

async fn measure(options: &NvmeOptions, engines: &[Engine]) -> Outcome<Found> {
    let mut site = Site::new(options)?;
    for engine in engines {
        site.add(options, *engine).await?;
    }
    let loads = engines.iter().map(|engine| Contestant::Load(*engine));
    let contestants = loads.chain(SHAPES.map(Contestant::Fio));
    let mut found: Found = contestants.map(|contestant| (contestant, Vec::new())).collect();
    site.pace.ended();
    for round in 0..options.runs {
        for place in order(found.len(), round) {
            let Some((contestant, runs)) = found.get_mut(place) else { continue };
            let ran = match contestant {
                Contestant::Load(engine) => site.load(*engine).await?,
                Contestant::Fio(shape) => site.fio(*shape).await?,
            };
            progress(format_args!(
                "hit {}, {}: {:.2} GB/s, {:.3} CPU s/GiB",
                round + 1,
                name(*contestant),
                ran.run.gigabytes_per_second(),
                ran.run.cpu_per_gib()
            ));
            runs.push(ran);
        }
    }
    Ok(found)
}

fn name(contestant: Contestant) -> String {
    match contestant {
        Contestant::Load(engine) => format!("forebay, {}", engine.name()),
        Contestant::Fio(shape) => shape.name(),
    }
}

impl Site {
    fn new(options: &NvmeOptions) -> Outcome<Self> {
        let origin = OriginProcess::start(options.bytes)?;
        let made = child::made(options.bytes);
        Ok(Self { made, origin, nodes: Vec::new(), pace: Pace::new(PAUSE) })
    }

    /// A daemon with the checkpoint in its tier; loads it once and compares every byte.
    async fn add(&mut self, options: &NvmeOptions, engine: Engine) -> Outcome<()> {
        let bytes = self.made.bytes();
        let settings = [
            ("FOREBAY_NVME_ENGINE", engine.setting().to_owned()),
            // So that the daemons do nothing while others are measured.
            ("FOREBAY_SCRUB_BYTES_PER_SECOND", "0".to_owned()),
        ];
        let spec = node::tiered_daemon(bytes, bytes + HEADERS_BYTES, &settings)?;
        let node = Node::start_in(spec, options.directory()?).await?;
        let known = node.until(KNOWN_WITHIN, |status| status.nvme.recovery.is_some()).await?;
        if known.nvme.engine.as_deref() != Some(engine.name()) || known.nvme.state != "normal" {
            return Err(format!("the tier is not as asked for: {:?}", known.nvme).into());
        }
        let uri = self.origin.uri();
        let request = PrefetchRequest::new(&uri).tier(KeepTier::Nvme);
        let mut prefetch = node.client().prefetch(request).await?;
        while prefetch.next().await?.is_some() {}
        node.empty_ram(&uri).await?;
        let mut proof = Proof::default();
        let (_, report) = node.load(&uri, |chunk| proof.see(chunk, &self.made)).await?;
        proof.end(&self.made)?;
        from_nvme(&report)?;
        self.nodes.push((engine, node));
        Ok(())
    }

    async fn load(&mut self, engine: Engine) -> Outcome<Ran> {
        let node = self.nodes.iter().find(|(own, _)| *own == engine).map(|(_, node)| node);
        let node = node.ok_or("no daemon has this engine")?;
        let uri = self.origin.uri();
        node.empty_ram(&uri).await?;
        forget_pages(&extents(node))?;
        let paused = self.pace.wait().await;
        let before = thread_times(node.pid())?;
        let (mut run, report) = node.load(&uri, |_| Ok(())).await?;
        let threads = thread_times(node.pid())?.since(&before);
        from_nvme(&report)?;
        run.cpu.retain(|(name, _)| *name == "daemon");
        self.pace.ended();
        Ok(Ran { run, threads, paused })
    }

    async fn fio(&mut self, shape: Shape) -> Outcome<Ran> {
        let (_, node) = self.nodes.first().ok_or("no daemon has stored anything")?;
        forget_pages(&extents(node))?;
        let paused = self.pace.wait().await;
        let run = fio::read(&extents(node), shape)?;
        self.pace.ended();
        // The last chunks of shards are shorter than its larger blocks.
        let (read, all) = (run.bytes, fio::whole_blocks(&extents(node), shape)?);
        if read < all {
            return Err(format!("fio read {read} of {all} bytes").into());
        }
        Ok(Ran { run, threads: ThreadTimes::default(), paused })
    }
}

fn extents(node: &Node) -> PathBuf {
    node.dir().join("cache/nvme/extents")
}

fn from_nvme(report: &forebay_client::model::Report) -> Outcome<()> {
    let tiers = report.bytes_by_tier;
    if tiers.nvme == report.bytes {
        Ok(())
    } else {
        Err(format!("not from NVMe: {tiers:?}").into())
    }
}

fn spread(runs: &[Ran], value: impl Fn(&Ran) -> f64) -> Spread {
    runs.iter().map(value).collect()
}

fn rate(runs: &[Ran]) -> Spread {
    spread(runs, |ran| ran.run.gigabytes_per_second())
}

fn judge(engine: Engine, what: &str, found: &Found) -> Row {
    let (name_of_row, least) = match engine {
        Engine::Uring => ("hit", URING_RATE_MIN),
        Engine::Threads => ("threads", THREADS_RATE_MIN),
    };
    let mut row = row(name_of_row, what.to_owned());
    let is_own = |contestant: &Contestant| *contestant == Contestant::Load(engine);
    let own = found.iter().find(|(contestant, _)| is_own(contestant));
    let own: &[Ran] = own.map_or(&[], |(_, runs)| runs);
    let is_fio = |contestant: &Contestant| matches!(contestant, Contestant::Fio(_));
    let fios = found.iter().filter(|(contestant, _)| is_fio(contestant));
    let best = fios.clone().map(|(_, runs)| rate(runs).median()).fold(f64::NAN, f64::max);
    let cpu = spread(own, |ran| ran.run.cpu_per_gib());
    row.bounds.push(Bound::new(
        "GB/s, of fio's best",
        rate(own).median() / best,
        Limit::AtLeast(least),
    ));
    if engine == Engine::Uring {
        row.bounds.push(Bound::new("daemon, CPU s/GiB", cpu.median(), Limit::AtMost(CPU_MAX)));
    }
    row.figures.push(Figure::new(name(Contestant::Load(engine)), "GB/s", rate(own)));
    for (contestant, runs) in fios.clone() {
        row.figures.push(Figure::new(name(*contestant), "GB/s", rate(runs)));
    }
    row.figures.push(Figure::new("daemon, CPU", "s/GiB", cpu));
    row.figures.extend(by_thread(own));
    let fio_runs = fios.flat_map(|(_, runs)| runs);
    let cpu = fio_runs.clone().map(|ran| ran.run.cpu_per_gib()).collect();
    row.figures.push(Figure::new("fio, CPU", "s/GiB", cpu));
    let paused = |ran: &Ran| ran.paused.as_secs_f64();
    row.figures.push(Figure::new("pause before forebay", "s", spread(own, paused)));
    row.figures.push(Figure::new("pause before fio", "s", fio_runs.map(paused).collect()));
    row
}

/// What the daemon's threads used, by name.
fn by_thread(runs: &[Ran]) -> Vec<Figure> {
    let names: BTreeSet<&str> = runs.iter().flat_map(|ran| ran.threads.names()).collect();
    let figure = |name: &str| {
        let value = |ran: &Ran| ran.threads.of(name).as_secs_f64() / gib(ran.run.bytes);
        Figure::new(format!("of which {name}"), "s/GiB", spread(runs, value))
    };
    let all = names.into_iter().map(figure);
    // What rounds to nothing is left out.
    all.filter(|figure| figure.spread.max() >= 0.0005).collect()
}
