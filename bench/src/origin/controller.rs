//! The controller of requests at a time, which starts at its default and is told nothing, against
//! every fixed number of a sweep.
//!
//! The origin has the manners of an object store: 40 ms to the first byte and 90 MB/s per
//! connection, once with a limit on all connections together, so that there is a knee, and once
//! without, where the machine is the limit. Fixed numbers are engines whose limit starts at, and
//! is held to, that number: `[[origin]] max_connections` is an upper bound only and would not do.
//! Every run has a new engine, so that what it takes to find the number is part of the time.
//! Beside the engine the same object goes through a daemon with its default settings, which has
//! the same engine for all its loads.

use std::sync::Arc;
use std::time::Duration;

use forebay_origin::{EngineSettings, OriginSettings, SystemResolver};
use forebay_testkit::{CheckpointSpec, RawFiles, RawOptions, RawOrigin, checkpoint};
use tokio::runtime::Runtime;

use super::engine::{Buffers, Engine, PART_BYTES, PartTime};
use super::{OriginOptions, gib, progress, row};
use crate::Outcome;
use crate::measure::{Measurement, Spread};
use crate::node::{self, Node};
use crate::report::{Bound, Figure, Limit, Row};

const FIRST_BYTE: Duration = Duration::from_millis(40);
const CONNECTION_RATE: u64 = 90_000_000;
const TOTAL_RATE: u64 = 1_000_000_000;
/// Fixed numbers of requests at a time; the controller starts at 8.
const FIXED: [usize; 6] = [12, 16, 24, 32, 48, 64];
/// Callers: more than any number that is tried.
const CALLERS: usize = 96;
/// Of the best fixed number's rate, at least.
const RATE_MIN: f64 = 0.85;
/// The object, and how often an engine reads it in a run: no load of minutes, but not over before
/// a controller can have found anything.
const BYTES: u64 = 2 << 30;
const BYTES_QUICK: u64 = 1 << 30;
const PASSES: u64 = 2;
const SEED: u64 = 7;

/// One engine run: its rate, that of its second half, and the number of requests it ended with.
struct Ran {
    rate: f64,
    settled: f64,
    limit: f64,
}

/// What is measured under one condition.
#[derive(Default)]
struct Runs {
    fixed: [Vec<f64>; FIXED.len()],
    controller: Vec<Ran>,
    daemon: Vec<f64>,
}

pub(super) fn run(options: &OriginOptions) -> Outcome<Vec<Row>> {
    let bytes = if options.quick { BYTES_QUICK } else { BYTES };
    let files = RawFiles::checkpoint("m/", &checkpoint(CheckpointSpec::new(SEED, bytes)))?;
    let mut buffers = Buffers::touched(CALLERS);
    let mut rows = Vec::new();
    for (name, total) in [("controller", Some(TOTAL_RATE)), ("controller-free", None)] {
        let link = RawOptions {
            first_byte: FIRST_BYTE,
            bytes_per_second: Some(CONNECTION_RATE),
            total_bytes_per_second: total,
            ..RawOptions::default()
        };
        let origin = RawOrigin::start(link, &files)?;
        let runs = measure(&origin, (name, bytes), options.runs, &mut buffers)?;
        let limit = total.map_or("without a limit on all", |_| "1 GB/s in all");
        let what = format!(
            "{:.2} GiB from an origin with 40 ms first byte, 90 MB/s per connection, {limit}",
            gib(bytes * PASSES)
        );
        rows.push(judge(row(name, what), &runs));
    }
    Ok(rows)
}

fn measure(
    origin: &RawOrigin,
    (name, bytes): (&str, u64),
    count: usize,
    buffers: &mut Buffers,
) -> Outcome<Runs> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let client = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let node = client.block_on(Node::start(node::daemon(bytes, &[])?))?;
    let prefix = format!("{}/m/", origin.endpoint());
    let uri = format!("{prefix}model.safetensors");
    let mut runs = Runs::default();
    for number in 1..=count {
        for (fixed, rates) in FIXED.iter().zip(&mut runs.fixed) {
            let engine = EngineSettings {
                limit_start: *fixed,
                limit_min: *fixed,
                limit_max: *fixed,
                ..EngineSettings::default()
            };
            rates.push(one(&runtime, &uri, engine, buffers)?.rate);
        }
        let controller = one(&runtime, &uri, EngineSettings::default(), buffers)?;
        let load = client.block_on(node.cold(&prefix, |_| Ok(())))?.0;
        let fixed: Vec<String> = runs
            .fixed
            .iter()
            .zip(FIXED)
            .filter_map(|(rates, fixed)| Some(format!("{fixed}: {:.3}", rates.last()?)))
            .collect();
        progress(format_args!(
            "{name} {number}: {} GB/s; controller {:.3} (settled {:.3}, at {}), daemon {:.3}",
            fixed.join(", "),
            controller.rate,
            controller.settled,
            controller.limit,
            load.gigabytes_per_second()
        ));
        runs.controller.push(controller);
        runs.daemon.push(load.gigabytes_per_second());
    }
    Ok(runs)
}

fn one(
    runtime: &Runtime,
    uri: &str,
    engine: EngineSettings,
    buffers: &mut Buffers,
) -> Outcome<Ran> {
    let settings = OriginSettings { engine, ..OriginSettings::default() };
    runtime.block_on(async {
        let engine = Engine::open(settings, Arc::new(SystemResolver), uri).await?;
        let mut times = engine.read_all(engine.parts() * PASSES, buffers).await?;
        times.sort_unstable_by_key(|part| part.ended);
        let limit = engine.origins.endpoints().iter().map(|endpoint| endpoint.limit).max();
        let limit = u32::try_from(limit.unwrap_or_default())?;
        Ok(Ran { rate: rate(&times), settled: settled_rate(&times), limit: limit.into() })
    })
}

/// The rate of a whole run, whose parts are in the order of their ends.
fn rate(times: &[PartTime]) -> f64 {
    let started = times.iter().map(|part| part.started).min();
    let wall = started.zip(times.last()).map(|(first, last)| last.ended - first);
    rate_of(times.len(), wall.unwrap_or_default())
}

/// The rate of its second half, up to when the last part was asked for: after that fewer and fewer
/// are on the wire, and at every moment before it as many were under way as at its beginning.
fn settled_rate(times: &[PartTime]) -> f64 {
    let (_, half) = times.split_at(times.len() / 2);
    let asked = times.iter().map(|part| part.started).max();
    let full = half.iter().take_while(|part| asked.is_some_and(|asked| part.ended <= asked));
    let Some((first, last)) = half.first().zip(full.clone().last()) else { return f64::NAN };
    rate_of(full.count() - 1, last.ended - first.ended)
}

fn rate_of(parts: usize, wall: Duration) -> f64 {
    let bytes = u64::from(PART_BYTES) * u64::try_from(parts).unwrap_or_default();
    Measurement { wall, bytes, cpu: Vec::new() }.gigabytes_per_second()
}

fn judge(mut row: Row, runs: &Runs) -> Row {
    let mut best = f64::NAN;
    for (fixed, rates) in FIXED.iter().zip(&runs.fixed) {
        let spread: Spread = rates.iter().copied().collect();
        best = best.max(spread.median());
        row.figures.push(Figure::new(format!("fixed at {fixed}"), "GB/s", spread));
    }
    let of = |value: fn(&Ran) -> f64| -> Spread { runs.controller.iter().map(value).collect() };
    let (controller, settled) = (of(|ran| ran.rate), of(|ran| ran.settled));
    let daemon: Spread = runs.daemon.iter().copied().collect();
    let least = Limit::AtLeast(RATE_MIN);
    row.bounds = vec![
        Bound::new("controller, of the best fixed", controller.median() / best, least),
        Bound::new("daemon, of the best fixed", daemon.median() / best, least),
    ];
    row.figures.extend([
        Figure::new("controller", "GB/s", controller),
        Figure::new("controller, second half", "GB/s", settled),
        Figure::new("controller, limit at the end", "requests", of(|ran| ran.limit)),
        Figure::new("daemon, default settings", "GB/s", daemon),
    ]);
    row
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;

    #[test]
    fn a_settled_rate_knows_neither_the_start_nor_the_drain() {
        let begun = Instant::now();
        let at = |millis| begun + Duration::from_millis(millis);
        // Slow at first, then one part each 10 ms; the last ten are asked for in time and dawdle.
        let mut times: Vec<PartTime> =
            (1..=50).map(|n| PartTime { started: begun, ended: at(100 * n) }).collect();
        times.extend((1..=90).map(|n| PartTime { started: begun, ended: at(5000 + 10 * n) }));
        times.extend((1..=10).map(|n| PartTime { started: at(5900), ended: at(5900 + 100 * n) }));
        let per_part = f64::from(PART_BYTES) / 1e9;
        assert!((settled_rate(&times) - per_part / 0.01).abs() < 1e-6);
        assert!((rate(&times) - 150.0 * per_part / 6.9).abs() < 1e-6);
        assert!(settled_rate(&[]).is_nan() && rate(&[]).is_nan());
    }
}
