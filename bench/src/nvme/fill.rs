//! Cold loads while the tier is filled, against cold loads without the tier.
//!
//! Both sides load from the same origin process as the `cold` row of `origin` does, each with a
//! daemon that was just started over an empty cache. In the first row RAM holds the checkpoint, so
//! that what is to be written can wait until the load has ended; in the second it does not, and
//! chunks have to be written while the load goes on, or are not written at all.

use std::time::Duration;

use tokio::time::Instant;

use super::{NvmeOptions, Pace, order};
use crate::Outcome;
use crate::measure::{Measurement, Spread};
use crate::node::{self, HEADROOM_BYTES, Node};
use crate::origin::child::OriginProcess;
use crate::origin::{gib, progress, ratio, row};
use crate::report::{Bound, Figure, Limit, Row};

/// Of the time without the tier, at most.
const TIME_MAX: f64 = 1.05;
/// RAM that does not hold the checkpoint.
const SMALL_RAM_BYTES: u64 = 1 << 30;
/// Between two loads: what the disk was given is over with.
const PAUSE: Duration = Duration::from_secs(4);
/// How long everything may take to be written.
const STORED_WITHIN: Duration = Duration::from_secs(180);

/// A load with the tier, and what became of its chunks.
#[derive(Debug)]
struct Filled {
    run: Measurement,
    /// GiB when the load ended.
    at_end: f64,
    /// Of the chunks, when all was over.
    share: f64,
    /// Seconds until then, since the load ended.
    after: f64,
}

pub(super) fn run(options: &NvmeOptions) -> Outcome<Vec<Row>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let origin = OriginProcess::start(options.bytes)?;
    let large = runtime.block_on(measure(options, &origin, "fill", options.bytes))?;
    let small = SMALL_RAM_BYTES.min(options.bytes / 4).saturating_sub(HEADROOM_BYTES);
    Ok(vec![large, runtime.block_on(measure(options, &origin, "fill-beside", small))?])
}

async fn measure(
    options: &NvmeOptions,
    origin: &OriginProcess,
    name: &'static str,
    ram_bytes: u64,
) -> Outcome<Row> {
    let (mut without, mut with) = (Vec::new(), Vec::new());
    let mut pace = Pace::new(PAUSE);
    for round in 0..options.runs {
        for side in order(2, round) {
            let nvme_bytes = if side == 0 { 0 } else { 2 * options.bytes };
            let spec = node::tiered_daemon(ram_bytes, nvme_bytes, &[])?;
            let node = Node::start_in(spec, options.directory()?).await?;
            pace.wait().await;
            let mut chunks = 0;
            let count = |_: &_| {
                chunks += 1;
                Ok(())
            };
            let (run, _) = node.cold(&origin.uri(), count).await?;
            let rate = run.gigabytes_per_second();
            if side == 0 {
                progress(format_args!("{name} {}: without {rate:.2} GB/s", round + 1));
                without.push(run);
            } else {
                let filled = settled(&node, run, chunks).await?;
                progress(format_args!(
                    "{name} {}: with {rate:.2} GB/s, {:.2} GiB stored at the end, {:.0} % of the \
                     chunks {:.1} s later",
                    round + 1,
                    filled.at_end,
                    filled.share * 100.0,
                    filled.after
                ));
                with.push(filled);
            }
            pace.ended();
            drop(node.stop()?);
        }
    }
    let what = format!(
        "cold loads of {:.2} GiB with RAM of {:.2} GiB while the tier is filled, against the tier \
         turned off",
        gib(options.bytes),
        gib(ram_bytes + HEADROOM_BYTES)
    );
    Ok(judge(row(name, what), &without, &with))
}

/// Waits until every chunk is written or given up.
async fn settled(node: &Node, run: Measurement, chunks: u64) -> Outcome<Filled> {
    let ended = Instant::now();
    let first = node.client().status().await?.nvme;
    let over = node
        .until(STORED_WITHIN, |status| status.nvme.extents + status.nvme.fills_given_up >= chunks);
    let last = over.await?.nvme;
    if last.extents == 0 && first.state != "normal" {
        return Err(format!("the tier takes nothing: {last:?}").into());
    }
    let after = ended.elapsed().as_secs_f64();
    let share = precise(last.extents) / precise(chunks);
    Ok(Filled { run, at_end: gib(first.stored_bytes), share, after })
}

#[expect(clippy::cast_precision_loss, reason = "counts of chunks")]
fn precise(count: u64) -> f64 {
    count as f64
}

fn judge(mut row: Row, without: &[Measurement], with: &[Filled]) -> Row {
    let off = |value: fn(&Measurement) -> f64| -> Spread { without.iter().map(value).collect() };
    let on = |value: fn(&Measurement) -> f64| -> Spread {
        with.iter().map(|filled| value(&filled.run)).collect()
    };
    let seconds = |run: &Measurement| run.wall.as_secs_f64();
    let (time_off, time_on) = (off(seconds), on(seconds));
    let value = ratio(&time_on, &time_off);
    row.bounds = vec![Bound::new("time, of that without", value, Limit::AtMost(TIME_MAX))];
    let figure = |value: fn(&Filled) -> f64| -> Spread { with.iter().map(value).collect() };
    row.figures = vec![
        Figure::new("without the tier", "s", time_off),
        Figure::new("with the tier", "s", time_on),
        Figure::new("without the tier", "GB/s", off(Measurement::gigabytes_per_second)),
        Figure::new("with the tier", "GB/s", on(Measurement::gigabytes_per_second)),
        Figure::new("daemon without, CPU", "s/GiB", off(|run| run.cpu_per_gib_of("daemon"))),
        Figure::new("daemon with, CPU", "s/GiB", on(|run| run.cpu_per_gib_of("daemon"))),
        Figure::new("stored when it ended", "GiB", figure(|filled| filled.at_end)),
        Figure::new("stored in the end", "of all", figure(|filled| filled.share)),
        Figure::new("given up", "of all", figure(|filled| 1.0 - filled.share)),
        Figure::new("until then", "s", figure(|filled| filled.after)),
    ];
    row
}
