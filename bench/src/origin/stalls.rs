//! One part in 200 stalls for 2 to 30 s: what that costs a load, in time and in bytes.
//!
//! A daemon loads the same checkpoint in turn from an origin that stalls nothing and from the same
//! origin with seeded stalls: half of them before the head of an answer, half within its body.
//! Parts are of 1 MiB, so that a load has enough of them to be stalled about ten times. The first
//! load, of neither kind, is not counted: the daemon has been at work for a moment, as it has on a
//! node. Bytes are counted where they are sent, those of abandoned answers included.

use std::time::Duration;

use forebay_testkit::{CheckpointSpec, RawFiles, RawOptions, RawOrigin, RawStalls, checkpoint};

use super::{OriginOptions, gib, progress, ratio, row};
use crate::Outcome;
use crate::measure::{Measurement, Spread};
use crate::node::{self, Node};
use crate::report::{Bound, Figure, Limit, Row};

const FIRST_BYTE: Duration = Duration::from_millis(40);
const CONNECTION_RATE: u64 = 90_000_000;
const PART: &str = "1MiB";
const ONE_IN: u64 = 200;
const SHORTEST: Duration = Duration::from_secs(2);
const LONGEST: Duration = Duration::from_secs(30);
const BYTES: u64 = 2 << 30;
const BYTES_QUICK: u64 = 1 << 29;
const SHARDS: usize = 4;
const SEED: u64 = 11;
/// Of the clean load's time, at most.
const TIME_MAX: f64 = 1.2;
/// Of the checkpoint's bytes, at most.
const EXTRA_MAX: f64 = 0.05;

/// One load: its time, and what the origin did for it.
struct Ran {
    seconds: f64,
    extra: f64,
    stalls: u64,
    hedges: u64,
    retries: u64,
}

pub(super) fn run(options: &OriginOptions) -> Outcome<Row> {
    let bytes = if options.quick { BYTES_QUICK } else { BYTES };
    let made = checkpoint(CheckpointSpec::new(SEED, bytes).shards(SHARDS));
    let link = RawOptions {
        first_byte: FIRST_BYTE,
        bytes_per_second: Some(CONNECTION_RATE),
        ..RawOptions::default()
    };
    let origin = RawOrigin::start(link, &RawFiles::checkpoint("m/", &made)?)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let settings = [("FOREBAY_CHUNK", PART.to_owned())];
    let node = runtime.block_on(Node::start(node::daemon(bytes, &settings)?))?;
    let load = |stalls| runtime.block_on(load(&node, &origin, stalls));
    load(None)?;
    let (mut clean, mut stalled) = (Vec::new(), Vec::new());
    for seed in (1..).take(options.runs) {
        let stalls = RawStalls { seed, one_in: ONE_IN, shortest: SHORTEST, longest: LONGEST };
        let without = load(None)?;
        let with = load(Some(stalls))?;
        progress(format_args!(
            "stalls {seed}: clean {:.2} s; {} stalls {:.2} s, {} hedges, {} retries, \
             {:.2} % more bytes",
            without.seconds,
            with.stalls,
            with.seconds,
            with.hedges,
            with.retries,
            with.extra * 100.0
        ));
        clean.push(without);
        stalled.push(with);
    }
    let what = format!(
        "load of {:.2} GiB in parts of 1 MiB of which 1 in 200 stalls 2 to 30 s, against clean \
         loads",
        gib(made.bytes())
    );
    Ok(judge(row("stalls", what), &clean, &stalled))
}

async fn load(node: &Node, origin: &RawOrigin, stalls: Option<RawStalls>) -> Outcome<Ran> {
    let before = origin.counts();
    origin.stall(stalls);
    let (run, report) = node.cold(&format!("{}/m/", origin.endpoint()), |_| Ok(())).await?;
    let after = origin.counts();
    origin.stall(None);
    let sent = Measurement { bytes: after.body_bytes - before.body_bytes, ..run.clone() };
    Ok(Ran {
        seconds: run.wall.as_secs_f64(),
        // Of equal times, the ratio of rates is that of bytes.
        extra: sent.gigabytes_per_second() / run.gigabytes_per_second() - 1.0,
        stalls: after.stalls - before.stalls,
        hedges: report.hedges,
        retries: report.retries,
    })
}

fn judge(mut row: Row, clean: &[Ran], stalled: &[Ran]) -> Row {
    let of = |runs: &[Ran], value: fn(&Ran) -> f64| -> Spread { runs.iter().map(value).collect() };
    let (without, with) = (of(clean, |ran| ran.seconds), of(stalled, |ran| ran.seconds));
    let extra = of(stalled, |ran| ran.extra);
    row.bounds = vec![
        Bound::new(
            "load time, of the clean load's",
            ratio(&with, &without),
            Limit::AtMost(TIME_MAX),
        ),
        Bound::new("bytes sent beyond the checkpoint's", extra.median(), Limit::AtMost(EXTRA_MAX)),
    ];
    #[expect(clippy::cast_precision_loss, reason = "a handful")]
    let stalls = of(stalled, |ran| ran.stalls as f64);
    row.figures = vec![
        Figure::new("clean load", "s", without),
        Figure::new("load with stalls", "s", with),
        Figure::new("stalls in a load", "parts", stalls),
        Figure::new("extra bytes, clean", "of 1", of(clean, |ran| ran.extra)),
        Figure::new("extra bytes, stalls", "of 1", extra),
    ];
    row
}
