//! Rollbacks after a revision that turned out to be bad: how long until the name stands for the one
//! before, and what the origin is asked for meanwhile.
//!
//! A name is set to one checkpoint and then to another, and rolled back and forth in the three
//! states that an operator may find the node in: both revisions in RAM and a load of the bad one
//! under way that keeps its chunks; nothing in RAM; and after `kill -9` of the daemon, by the first
//! call that the next one answers. After each, a load by name has to bring the bytes of the
//! revision it stands for, without the origin.

use std::fmt;

use forebay_client::{Chunk, Client, Load, LoadRequest};
use forebay_testkit::{CheckpointSpec, S3Options, S3Origin, checkpoint};
use tokio::time::Instant;

use super::NvmeOptions;
use crate::Outcome;
use crate::measure::Spread;
use crate::node::{self, Node};
use crate::origin::{gib, progress, row};
use crate::process::DaemonSpec;
use crate::report::{Bound, Figure, Limit, Row};

/// Seconds that the slowest one may take.
const SECONDS_MAX: f64 = 0.1;
/// The largest revision that is made; a rollback does not depend on it.
const REVISION_BYTES_MAX: u64 = 512 << 20;
const BUCKET: &str = "models";
const NAME: &str = "prod";

/// How the daemon stands when it is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Loading,
    NotInRam,
    Killed,
}

impl fmt::Display for State {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        to.write_str(match self {
            Self::Loading => "while it is loaded",
            Self::NotInRam => "with nothing in RAM",
            Self::Killed => "after kill -9",
        })
    }
}

/// The origin, and what a name may stand for.
struct Revisions {
    origin: S3Origin,
    bytes: u64,
    /// Where they are, and how large, in the order in which the name is set to them.
    sizes: [(String, u64); 2],
}

/// One rollback.
#[derive(Debug, Clone, Copy)]
struct Rolled {
    state: State,
    /// As the caller sees it.
    seconds: f64,
    /// Of that, in the daemon.
    in_daemon: f64,
}

pub(super) fn run(options: &NvmeOptions) -> Outcome<Row> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(measure(options))
}

async fn measure(options: &NvmeOptions) -> Outcome<Row> {
    let revisions = Revisions::new(options.bytes.min(REVISION_BYTES_MAX)).await?;
    let mut node = Node::start_in(revisions.spec()?, options.directory()?).await?;
    for (uri, _) in &revisions.sizes {
        set(node.client(), uri).await?;
    }
    let (mut current, mut rolled) = (1, Vec::new());
    let asked = revisions.origin.total().requests();
    for number in 1..=options.runs {
        for state in [State::Loading, State::NotInRam, State::Killed] {
            node = revisions.bring_into(state, node).await?;
            let running = match state {
                State::Loading => Some(Running::start(node.client()).await?),
                State::NotInRam | State::Killed => None,
            };
            let begun = Instant::now();
            let switched = node.client().rollback(NAME).await?;
            let seconds = begun.elapsed().as_secs_f64();
            let in_daemon = switched.wall.as_secs_f64();
            progress(format_args!(
                "rollback {number}, {state}: {seconds:.4} s, {in_daemon:.4} s of it in the daemon"
            ));
            rolled.push(Rolled { state, seconds, in_daemon });
            if let Some(running) = running {
                revisions.is(current, running.bytes().await?)?;
            }
            current = 1 - current;
            revisions.is(current, node.load(NAME, |_| Ok(())).await?.1.bytes)?;
        }
    }
    let asked = revisions.origin.total().requests() - asked;
    drop(node.stop()?);
    let what = format!(
        "rollbacks of a name between two checkpoints of {:.2} GiB, and a load by name after each",
        gib(revisions.bytes)
    );
    Ok(judge(row("rollback", what), &rolled, asked))
}

impl Revisions {
    /// Of about so many bytes each, and not of the same number.
    async fn new(bytes: u64) -> Outcome<Self> {
        let origin = S3Origin::start(S3Options::default()).await;
        let mut sizes = Vec::new();
        for (number, bytes) in [(1, bytes), (2, bytes + (8 << 20))] {
            let made = checkpoint(CheckpointSpec::new(number, bytes));
            let prefix = format!("v{number}/");
            origin.put_checkpoint(BUCKET, &prefix, &made);
            sizes.push((format!("s3://{BUCKET}/{prefix}"), made.bytes()));
        }
        let sizes = sizes.try_into().map_err(|_more| "two revisions")?;
        Ok(Self { origin, bytes, sizes })
    }

    fn spec(&self) -> Outcome<DaemonSpec> {
        // RAM for both, and room on NVMe.
        Ok(node::tiered_daemon(2 * self.bytes, 4 * self.bytes, &[])?.env(self.origin.env()))
    }

    async fn bring_into(&self, state: State, node: Node) -> Outcome<Node> {
        match state {
            State::Loading => Ok(node),
            State::NotInRam => {
                node.empty_ram(&format!("s3://{BUCKET}/")).await?;
                Ok(node)
            }
            State::Killed => Node::start_unpopulated_in(self.spec()?, node.kill()?).await,
        }
    }

    /// Whether what a load brought is the revision of this number.
    fn is(&self, number: usize, bytes: u64) -> Outcome<()> {
        match self.sizes.get(number) {
            Some((_, right)) if *right == bytes => Ok(()),
            wanted => Err(format!("{bytes} bytes instead of {wanted:?}").into()),
        }
    }
}

/// A load by name that has begun and keeps a chunk.
struct Running {
    load: Load,
    held: Option<Chunk>,
}

impl Running {
    async fn start(client: &Client) -> Outcome<Self> {
        let mut load = client.load(LoadRequest::new(NAME)).await?;
        let held = load.next_chunk().await?;
        Ok(Self { load, held })
    }

    /// Takes the rest; how much it was in all.
    async fn bytes(mut self) -> Outcome<u64> {
        drop(self.held);
        while self.load.next_chunk().await?.is_some() {}
        Ok(self.load.finish().await?.bytes)
    }
}

/// Has the name stand for a checkpoint, once that is here whole.
async fn set(client: &Client, uri: &str) -> Outcome<()> {
    let mut setting = client.set_alias(NAME, uri, None).await?;
    while let Some(event) = setting.next().await? {
        if let Some(report) = event.into_report() {
            progress(format_args!("rollback: {NAME} stands for {uri} after {:.1?}", report.wall));
            return Ok(());
        }
    }
    Err("no report of a name that was set".into())
}

fn judge(mut row: Row, rolled: &[Rolled], asked: u64) -> Row {
    let of = |state: State, value: fn(&Rolled) -> f64| -> Spread {
        rolled.iter().filter(|one| one.state == state).map(value).collect()
    };
    let all: Spread = rolled.iter().map(|one| one.seconds).collect();
    row.bounds.push(Bound::new("the slowest, s", all.max(), Limit::AtMost(SECONDS_MAX)));
    #[expect(clippy::cast_precision_loss, reason = "a count of requests")]
    let asked = asked as f64;
    let what = "requests to the origin, those of loads by name included";
    row.bounds.push(Bound::new(what, asked, Limit::AtMost(0.0)));
    for state in [State::Loading, State::NotInRam, State::Killed] {
        let seconds = of(state, |one| one.seconds);
        row.figures.push(Figure::new(state.to_string(), "s", seconds));
        let in_daemon = of(state, |one| one.in_daemon);
        row.figures.push(Figure::new(format!("{state}, in the daemon"), "s", in_daemon));
    }
    row
}
