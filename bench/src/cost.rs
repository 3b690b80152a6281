//! `forebay-bench cost`: what it costs to say where the time went.
//!
//! Two daemons stand beside each other, one of which looks at nothing while loads run (`evidence =
//! false`). Pairs of loads, one through each, in turns: first the one, then the other. What is told
//! is the median over pairs of what the one took over what the other took, so that what the machine
//! does meanwhile meets both. A warm load takes some milliseconds, so that many of them are one.
//!
//! Timelines cannot be turned off: a report needs one. So what one costs is measured by itself, as
//! spans and charges of a load of as many chunks, and compared with the wall time of the warm load,
//! of which it is the largest part.

use clap::ValueEnum;
use forebay_server::measured;

use crate::Outcome;
use crate::measure::{Measurement, Spread};
use crate::node::{self, Node};
use crate::origin::child::OriginProcess;
use crate::origin::{gib, progress, row};
use crate::report::{self, Bound, Figure, Limit, Row, Table};

/// Of the wall time without, at most.
const WALL_MAX: f64 = 1.01;
/// Of the CPU time without, at most.
const CPU_MAX: f64 = 1.02;
/// Of a warm load's wall time, at most.
const TIMELINE_MAX: f64 = 0.01;
/// Warm loads that are measured as one.
const WARM_AT_ONCE: u32 = 200;
/// A slot.
const CHUNK_BYTES: u64 = 8 << 20;

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum CostRow {
    /// Cold loads from an unshaped origin
    Cold,
    /// Warm loads
    Warm,
    /// The timeline of a load by itself
    Timeline,
}

/// How it is measured.
#[derive(Debug, Clone)]
pub struct CostOptions {
    /// What is measured; all of it, if empty.
    pub rows: Vec<CostRow>,
    /// Pairs of loads.
    pub runs: usize,
    /// The checkpoint.
    pub bytes: u64,
}

/// Daemons with and without, and their origin.
struct Ground {
    // Dropped before the origin.
    watched: Node,
    blind: Node,
    origin: OriginProcess,
}

/// One pair: with, without.
type Pair = [Measurement; 2];

/// Measures.
///
/// # Errors
/// If something fails; a bound that is missed is no error.
pub fn run(options: &CostOptions) -> Outcome<Table> {
    let asked = |row| options.rows.is_empty() || options.rows.contains(&row);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let ground = runtime.block_on(Ground::start(options.bytes))?;
    let mut rows = Vec::new();
    if asked(CostRow::Cold) {
        let pairs = runtime.block_on(ground.cold(options.runs))?;
        let what =
            format!("cold loads of {:.2} GiB, with evidence and without", gib(options.bytes));
        rows.push(judge(row("cold", what), &pairs));
    }
    if asked(CostRow::Warm) || asked(CostRow::Timeline) {
        let pairs = runtime.block_on(ground.warm(options.runs))?;
        if asked(CostRow::Timeline) {
            rows.push(timeline(options, &pairs)?);
        }
        let what = format!("warm loads of {:.2} GiB, {WARM_AT_ONCE} as one", gib(options.bytes));
        rows.push(judge(row("warm", what), &pairs));
    }
    let checkpoint = format!("{:.2} GiB", gib(options.bytes));
    Ok(Table {
        bench: "cost",
        ground: report::ground(options.runs, ("checkpoint", checkpoint))?,
        rows,
    })
}

impl Ground {
    async fn start(bytes: u64) -> Outcome<Self> {
        let origin = OriginProcess::start(bytes)?;
        let off = [("FOREBAY_EVIDENCE", "false".to_owned())];
        let watched = Node::start(node::daemon(bytes, &[])?).await?;
        let blind = Node::start(node::daemon(bytes, &off)?).await?;
        let ground = Self { watched, blind, origin };
        for node in [&ground.watched, &ground.blind] {
            node.cold(&ground.origin.uri(), |_| Ok(())).await?;
        }
        Ok(ground)
    }

    async fn cold(&self, pairs: usize) -> Outcome<Vec<Pair>> {
        let uri = self.origin.uri();
        let load = async |node: &Node| Ok(node.cold(&uri, |_| Ok(())).await?.0);
        self.pairs("cold", pairs, load).await
    }

    async fn warm(&self, pairs: usize) -> Outcome<Vec<Pair>> {
        let uri = self.origin.uri();
        let load = async |node: &Node| {
            let mut sum = node.load(&uri, |_| Ok(())).await?.0;
            for _ in 1..WARM_AT_ONCE {
                add(&mut sum, &node.load(&uri, |_| Ok(())).await?.0);
            }
            Ok(sum)
        };
        self.pairs("warm", pairs, load).await
    }

    /// Pairs of loads, every second one the other way round.
    async fn pairs(
        &self,
        what: &str,
        pairs: usize,
        load: impl AsyncFn(&Node) -> Outcome<Measurement>,
    ) -> Outcome<Vec<Pair>> {
        let mut done = Vec::new();
        for number in 1..=pairs {
            let pair = match number % 2 {
                0 => {
                    let without = load(&self.blind).await?;
                    [load(&self.watched).await?, without]
                }
                _ => [load(&self.watched).await?, load(&self.blind).await?],
            };
            let [with, without] = pair.each_ref().map(|run| run.wall.as_secs_f64());
            progress(format_args!("{what} {number}: {with:.4} s with, {without:.4} s without"));
            done.push(pair);
        }
        Ok(done)
    }
}

/// Adds one run to another of the same processes.
fn add(sum: &mut Measurement, one: &Measurement) {
    sum.wall += one.wall;
    sum.bytes += one.bytes;
    for ((_, sum), (_, one)) in sum.cpu.iter_mut().zip(&one.cpu) {
        *sum += *one;
    }
}

fn judge(mut row: Row, pairs: &[Pair]) -> Row {
    let over = |value: &dyn Fn(&Measurement) -> f64| -> Spread {
        pairs.iter().map(|[with, without]| value(with) / value(without)).collect()
    };
    let of = |side: usize, value: &dyn Fn(&Measurement) -> f64| -> Spread {
        pairs.iter().map(|pair| value(&pair[side])).collect()
    };
    let wall = |run: &Measurement| run.wall.as_secs_f64();
    let (walls, cpus) = (over(&wall), over(&Measurement::cpu_per_gib));
    row.bounds = vec![
        Bound::new("wall, of that without", walls.median(), Limit::AtMost(WALL_MAX)),
        Bound::new("CPU, of that without", cpus.median(), Limit::AtMost(CPU_MAX)),
    ];
    row.figures = vec![
        Figure::new("wall, pair by pair", "of that without", walls),
        Figure::new("CPU, pair by pair", "of that without", cpus),
        Figure::new("with", "s", of(0, &wall)),
        Figure::new("without", "s", of(1, &wall)),
        Figure::new("CPU with", "s/GiB", of(0, &Measurement::cpu_per_gib)),
    ];
    row
}

/// What the timeline of a load of as many chunks takes.
fn timeline(options: &CostOptions, warm: &[Pair]) -> Outcome<Row> {
    let chunks = usize::try_from(options.bytes.div_ceil(CHUNK_BYTES))?;
    let times: Spread =
        (0..options.runs.max(5)).map(|_| measured::timeline(chunks).as_secs_f64()).collect();
    let load: Spread =
        warm.iter().map(|[with, _]| with.wall.as_secs_f64() / f64::from(WARM_AT_ONCE)).collect();
    let share = times.median() / load.median();
    let what = format!("spans, path and charges of a load of {chunks} chunks, against a warm load");
    let mut row = row("timeline", what);
    row.bounds = vec![Bound::new("of a warm load's wall time", share, Limit::AtMost(TIMELINE_MAX))];
    row.figures =
        vec![Figure::new("the timeline", "s", times), Figure::new("a warm load", "s", load)];
    Ok(row)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn run(millis: u64, cpu: u64) -> Measurement {
        let cpu = vec![("daemon", Duration::from_millis(cpu))];
        Measurement { wall: Duration::from_millis(millis), bytes: 1 << 30, cpu }
    }

    #[test]
    fn a_row_misses_where_the_one_with_evidence_is_slower() {
        let pairs =
            |wall, cpu| [[run(wall, cpu), run(1000, 1000)], [run(wall, cpu), run(1000, 1000)]];
        let holds = |pairs: &[Pair]| {
            judge(row("cold", String::new()), pairs).bounds.iter().all(Bound::holds)
        };
        assert!(holds(&pairs(1009, 1019)));
        assert!(!holds(&pairs(1011, 1000)));
        assert!(!holds(&pairs(1000, 1021)));
    }
}
