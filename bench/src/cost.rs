//! `forebay-bench cost`: what it costs to say where the time went.
//!
//! Two daemons stand beside each other, one of which looks at nothing while loads run (`evidence =
//! false`). Pairs of loads, one through each, in turns: first the one, then the other, so that what
//! the machine does meanwhile meets both. It does more than the hundredth that is looked for, and all
//! of it makes loads longer: so of each side that wall time counts which a quarter of its loads kept
//! within.
//!
//! The client of a warm load takes the time of a device of [`DEVICE_BYTES_PER_SECOND`]. It does not
//! read the bytes: how fast a pool can be read depends on which pages the host gave to the machine
//! for it, and differs between two daemons by more than all that is looked for. The hand-over of the
//! same load, of which nobody takes any time, is some milliseconds; what evidence adds to that is told
//! beside it, with many of them measured as one.
//!
//! Cold loads have the same trouble with writing, so that daemons are new for every four pairs of
//! them; and CPU time has it, so that the daemon's own count of what its looks took is held to
//! its bound: of the CPU time of daemon and client.
//!
//! Timelines cannot be turned off: a report needs one. So what one costs is measured by itself, as
//! spans and charges of a load of as many chunks, and compared with the wall time of both.

use std::time::Duration;

use clap::ValueEnum;
use forebay_client::Chunk;
use forebay_server::measured;
use tokio::time::Instant;

use crate::Outcome;
use crate::measure::{Measurement, Spread};
use crate::node::{self, Node};
use crate::origin::child::OriginProcess;
use crate::origin::{gib, progress, row};
use crate::report::{self, Bound, Figure, Limit, Row, Table};

/// Of the wall time without, at most.
const WALL_MAX: f64 = 1.01;
/// Of all CPU time, at most.
const CPU_MAX: f64 = 0.02;
/// Of a warm load's wall time, at most.
const TIMELINE_MAX: f64 = 0.01;
/// Pairs of cold loads, of warm ones and of hand-overs for each that is asked for.
const PAIRS: [usize; 3] = [4, 16, 4];
/// The device of warm loads: a slow link of one GPU.
const DEVICE_BYTES_PER_SECOND: u64 = 20_000_000_000;
/// Hand-overs that are measured as one.
const HAND_OVERS_AT_ONCE: u32 = 20;
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
    let mut ground = runtime.block_on(Ground::start(options.bytes))?;
    let mut rows = Vec::new();
    if asked(CostRow::Cold) {
        let (pairs, spent) = runtime.block_on(ground.cold_in_rounds(options))?;
        let what =
            format!("cold loads of {:.2} GiB, with evidence and without", gib(options.bytes));
        rows.push(judge(row("cold", what), &pairs, spent));
    }
    if asked(CostRow::Warm) || asked(CostRow::Timeline) {
        let before = ground.looks()?;
        let pairs = runtime.block_on(ground.warm(options.runs * PAIRS[1]))?;
        let spent = ground.looks()? - before;
        let bare = runtime.block_on(ground.hand_overs(options.runs * PAIRS[2]))?;
        if asked(CostRow::Timeline) {
            rows.push(timeline(options, &pairs, &bare)?);
        }
        let what = format!(
            "warm loads of {:.2} GiB, to a device of 20 GB/s, with evidence and without",
            gib(options.bytes)
        );
        let mut warm = judge(row("warm", what), &pairs, spent);
        let over = [walls(&bare)].into_iter().collect();
        warm.figures.push(Figure::new("hand-over alone, wall", "of that without", over));
        rows.push(warm);
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
        let (watched, blind) = Self::daemons(bytes, &origin).await?;
        Ok(Self { watched, blind, origin })
    }

    /// Both of them, with the checkpoint in RAM.
    async fn daemons(bytes: u64, origin: &OriginProcess) -> Outcome<(Node, Node)> {
        let off = [("FOREBAY_EVIDENCE", "false".to_owned())];
        let watched = Node::start(node::daemon(bytes, &[])?).await?;
        let blind = Node::start(node::daemon(bytes, &off)?).await?;
        for node in [&watched, &blind] {
            node.cold(&origin.uri(), |_| Ok(())).await?;
        }
        Ok((watched, blind))
    }

    /// CPU seconds that looks at the machine have taken so far.
    fn looks(&self) -> Outcome<f64> {
        let of = |look: &str| {
            self.watched.metric(&format!("forebay_evidence_look_seconds_sum{{look=\"{look}\"}}"))
        };
        Ok(of("glance")? + of("thorough")?)
    }

    /// Cold loads through daemons that are new for each run, and what looks took of the CPU.
    async fn cold_in_rounds(&mut self, options: &CostOptions) -> Outcome<(Vec<Pair>, f64)> {
        let (mut done, mut spent) = (Vec::new(), 0.0);
        for run in 1..=options.runs {
            progress(format_args!("cold, daemons {run} of {}", options.runs));
            (self.watched, self.blind) = Self::daemons(options.bytes, &self.origin).await?;
            let before = self.looks()?;
            done.extend(self.cold(PAIRS[0]).await?);
            spent += self.looks()? - before;
        }
        Ok((done, spent))
    }

    async fn cold(&self, pairs: usize) -> Outcome<Vec<Pair>> {
        let uri = self.origin.uri();
        let load = async |node: &Node| Ok(node.cold(&uri, |_| Ok(())).await?.0);
        self.pairs("cold", pairs, load).await
    }

    async fn warm(&self, pairs: usize) -> Outcome<Vec<Pair>> {
        let uri = self.origin.uri();
        let load = async |node: &Node| Ok(node.load(&uri, pace()).await?.0);
        self.pairs("warm", pairs, load).await
    }

    async fn hand_overs(&self, pairs: usize) -> Outcome<Vec<Pair>> {
        let uri = self.origin.uri();
        let load = async |node: &Node| {
            let mut sum = node.load(&uri, |_| Ok(())).await?.0;
            for _ in 1..HAND_OVERS_AT_ONCE {
                add(&mut sum, &node.load(&uri, |_| Ok(())).await?.0);
            }
            Ok(sum)
        };
        self.pairs("hand-over", pairs, load).await
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

/// Takes the time that a device would take for a load's chunks.
fn pace() -> impl FnMut(&Chunk) -> Outcome<()> {
    let (begun, mut copied) = (Instant::now(), 0_u64);
    move |chunk| {
        copied += chunk.extents().map(|extent| extent.bytes().len() as u64).sum::<u64>();
        let nanos = u128::from(copied) * 1_000_000_000 / u128::from(DEVICE_BYTES_PER_SECOND);
        let until = begun + Duration::from_nanos(u64::try_from(nanos)?);
        while Instant::now() < until {
            std::hint::spin_loop();
        }
        Ok(())
    }
}

fn seconds(run: &Measurement) -> f64 {
    run.wall.as_secs_f64()
}

/// Adds one run to another of the same processes.
fn add(sum: &mut Measurement, one: &Measurement) {
    sum.wall += one.wall;
    sum.bytes += one.bytes;
    for ((_, sum), (_, one)) in sum.cpu.iter_mut().zip(&one.cpu) {
        *sum += *one;
    }
}

/// What each side's loads took, of what the other's took.
fn walls(pairs: &[Pair]) -> f64 {
    let kept_within = |side: usize| {
        let times: Spread = pairs.iter().map(|pair| seconds(&pair[side])).collect();
        times.sorted().get(pairs.len() / 4).copied().unwrap_or(f64::NAN)
    };
    kept_within(0) / kept_within(1)
}

/// CPU time of looks, of all that the loads took of the daemon and its client.
fn looks(pairs: &[Pair], looks: f64) -> f64 {
    let spent = |run: &Measurement| run.cpu.iter().map(|(_, time)| time.as_secs_f64()).sum::<f64>();
    looks / pairs.iter().map(|[with, _]| spent(with)).sum::<f64>()
}

fn judge(mut row: Row, pairs: &[Pair], spent: f64) -> Row {
    let of = |side: usize, value: &dyn Fn(&Measurement) -> f64| -> Spread {
        pairs.iter().map(|pair| value(&pair[side])).collect()
    };
    row.bounds = vec![
        Bound::new("wall, of that without", walls(pairs), Limit::AtMost(WALL_MAX)),
        Bound::new("CPU of looks, of all", looks(pairs, spent), Limit::AtMost(CPU_MAX)),
    ];
    row.figures = vec![
        Figure::new("with", "s", of(0, &seconds)),
        Figure::new("without", "s", of(1, &seconds)),
        Figure::new("CPU with", "s/GiB", of(0, &Measurement::cpu_per_gib)),
        Figure::new("CPU without", "s/GiB", of(1, &Measurement::cpu_per_gib)),
    ];
    row
}

/// What the timeline of a load of as many chunks takes.
fn timeline(options: &CostOptions, warm: &[Pair], bare: &[Pair]) -> Outcome<Row> {
    let chunks = usize::try_from(options.bytes.div_ceil(CHUNK_BYTES))?;
    let times: Spread =
        (0..options.runs.max(5)).map(|_| measured::timeline(chunks).as_secs_f64()).collect();
    let each = |pairs: &[Pair], at_once: u32| -> Spread {
        pairs.iter().map(|[with, _]| seconds(with) / f64::from(at_once)).collect()
    };
    let (load, bare) = (each(warm, 1), each(bare, HAND_OVERS_AT_ONCE));
    let of_bare = [times.median() / bare.median()].into_iter().collect();
    let share = times.median() / load.median();
    let what = format!("spans, path and charges of a load of {chunks} chunks, against a warm load");
    let mut row = row("timeline", what);
    row.bounds = vec![Bound::new("of a warm load's wall time", share, Limit::AtMost(TIMELINE_MAX))];
    row.figures = vec![
        Figure::new("the timeline", "s", times),
        Figure::new("a warm load", "s", load),
        Figure::new("the timeline", "of a hand-over alone", of_bare),
    ];
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
        let pair = |wall| [run(wall, 1000), run(1000, 1000)];
        let pairs = |wall| [pair(wall), pair(wall)];
        let holds = |pairs: &[Pair], looks| {
            judge(row("cold", String::new()), pairs, looks).bounds.iter().all(Bound::holds)
        };
        assert!(holds(&pairs(1009), 0.039));
        assert!(!holds(&pairs(1011), 0.0));
        assert!(!holds(&pairs(1000), 0.041), "of two seconds");
    }
}
