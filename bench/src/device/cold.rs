//! Cold loads to a device that is faster than the origin, against cold loads without a device.
//!
//! Both sides load the same bytes through the same daemon from the same origin, which is held to a
//! rate. The one without a device is the origin alone: its client, also a process of its own and
//! with the same library, takes every chunk as it is granted and gives it back, so that it takes
//! what the origin and the daemon take and nothing else. The other one copies every byte to its
//! device before a slot goes back. Either time is from the call to the report, when everything is
//! handed over, or on the device. Each process has loaded once before anything counts, so that its
//! segments are mapped and registered; before each load everything is evicted.

use super::DeviceOptions;
use super::client::{ClientProcess, Loaded};
use super::ground::{Files, Ground};
use crate::Outcome;
use crate::measure::Spread;
use crate::nvme::order;
use crate::origin::{gib, progress, ratio, row};
use crate::report::{Bound, Figure, Limit, Row};

/// Of the time without a device, at most.
const TIME_MAX: f64 = 1.03;

pub(super) async fn run(options: &DeviceOptions, files: &Files) -> Outcome<Row> {
    let ground = Ground::start(files, Some(options.origin_bytes_per_second)).await?;
    let mut without = ClientProcess::start(&ground.client(None))?;
    let mut with = ClientProcess::start(&ground.client(Some(options.cold_device)))?;
    for client in [&mut without, &mut with] {
        client.load()?;
    }
    let (mut origin_only, mut to_device) = (Vec::new(), Vec::new());
    for round in 0..options.runs {
        for side in order(2, round) {
            let (client, loads) = match side {
                0 => (&mut without, &mut origin_only),
                _ => (&mut with, &mut to_device),
            };
            loads.push(cold(&ground, client, files.made().bytes()).await?);
        }
        if let ([.., without], [.., with]) = (&origin_only[..], &to_device[..]) {
            let (without, with) = (without.seconds, with.seconds);
            progress(format_args!(
                "cold {}: without a device {without:.3} s, to it {with:.3} s",
                round + 1
            ));
        }
    }
    let what = format!(
        "cold loads of {:.2} GiB from an origin of {} MB/s to a device of {} GB/s, against the \
         same without a device",
        gib(files.made().bytes()),
        options.origin_bytes_per_second / 1_000_000,
        options.cold_device
    );
    Ok(judge(row("cold", what), &origin_only, &to_device))
}

async fn cold(ground: &Ground, client: &mut ClientProcess, bytes: u64) -> Outcome<Loaded> {
    ground.node().forget(&ground.uri()).await?;
    let sent = ground.sent();
    let loaded = client.load()?;
    if ground.sent() - sent < bytes {
        return Err(format!("the origin sent too little for a cold load: {loaded:?}").into());
    }
    Ok(loaded)
}

fn judge(mut row: Row, without: &[Loaded], with: &[Loaded]) -> Row {
    let of = |loads: &[Loaded], value: fn(&Loaded) -> f64| -> Spread {
        loads.iter().map(value).collect()
    };
    let seconds = |loads| of(loads, |loaded| loaded.seconds);
    let (origin_only, to_device) = (seconds(without), seconds(with));
    let value = ratio(&to_device, &origin_only);
    row.bounds = vec![Bound::new("time, of that without", value, Limit::AtMost(TIME_MAX))];
    row.figures = vec![
        Figure::new("without a device", "s", origin_only),
        Figure::new("to the device", "s", to_device),
        Figure::new("its engine was busy", "of it", of(with, |loaded| loaded.busy)),
    ];
    row
}
