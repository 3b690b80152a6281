//! Warm loads to a device: how busy its copy engine is, and how soon the first copy is on its way.
//!
//! RAM has the checkpoint. In every run a new process loads it twice. The first load makes the
//! session and registers the segments, as the first one of a server does, and does not count. In
//! the second one the engine of a device of 2 GB/s should not wait for the library between the
//! first and the last byte; and the first copy should be handed over within milliseconds of the
//! call of `Client::load`.

use super::client::{ClientProcess, Loaded};
use super::ground::{Files, Ground};
use super::{DeviceOptions, DeviceRow};
use crate::Outcome;
use crate::measure::Spread;
use crate::origin::{gib, progress, row};
use crate::report::{Bound, Figure, Limit, Row};

/// Of the time between first and last byte, at least.
const BUSY_MIN: f64 = 0.97;
/// From the call to the first copy, at most.
const SUBMIT_MILLIS_MAX: f64 = 10.0;

pub(super) async fn run(options: &DeviceOptions, files: &Files) -> Outcome<Vec<Row>> {
    let ground = Ground::start(files, None).await?;
    ground.node().load(&ground.uri(), |_| Ok(())).await?;
    let mut loads = Vec::new();
    for number in 1..=options.runs {
        let mut client = ClientProcess::start(&ground.client(Some(options.warm_device)))?;
        client.load()?;
        let loaded = client.load()?;
        if loaded.ram_bytes != loaded.bytes || loaded.copied_bytes != files.made().bytes() {
            return Err(format!("no warm load of everything: {loaded:?}").into());
        }
        progress(format_args!(
            "warm {number}: busy {:.4}, first copy after {:.2} ms",
            loaded.busy,
            loaded.submit_seconds * 1e3
        ));
        loads.push(loaded);
    }
    let bytes = gib(files.made().bytes());
    let rate = options.warm_device;
    let mut rows = Vec::new();
    if options.asked(DeviceRow::Warm) {
        let what = format!("warm loads of {bytes:.2} GiB to a device of {rate} GB/s");
        rows.push(judge_busy(row("warm", what), &loads));
    }
    if options.asked(DeviceRow::Open) {
        let what = "from the call of a warm load, the second one of a process, to its first copy";
        rows.push(judge_submit(row("open", what.to_owned()), &loads));
    }
    Ok(rows)
}

fn judge_busy(mut row: Row, loads: &[Loaded]) -> Row {
    let of = |value: fn(&Loaded) -> f64| -> Spread { loads.iter().map(value).collect() };
    let busy = of(|loaded| loaded.busy);
    let least = Limit::AtLeast(BUSY_MIN);
    row.bounds = vec![Bound::new("busy between first and last byte", busy.median(), least)];
    row.figures = vec![
        Figure::new("by the device's timeline", "of it", busy),
        Figure::new("as the load reports", "of it", of(|loaded| loaded.reported_busy)),
        Figure::new("the load", "s", of(|loaded| loaded.seconds)),
    ];
    row
}

fn judge_submit(mut row: Row, loads: &[Loaded]) -> Row {
    let of = |value: fn(&Loaded) -> f64| -> Spread { loads.iter().map(value).collect() };
    let called = of(|loaded| loaded.submit_seconds * 1e3);
    let most = Limit::AtMost(SUBMIT_MILLIS_MAX);
    row.bounds = vec![Bound::new("ms from the call, median", called.median(), most)];
    row.figures = vec![
        Figure::new("from the call", "ms", called),
        Figure::new(
            "from the daemon's answer",
            "ms",
            of(|loaded| loaded.reported_submit_seconds * 1e3),
        ),
    ];
    row
}
