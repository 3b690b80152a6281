//! Eight processes that load one checkpoint at the same time, each only its slices.
//!
//! Every run has a new daemon and eight new processes, which begin together when all are connected.
//! Bytes of the origin are those that it gave its kernel to send, so that of a request that was
//! made twice because it was slow (a hedge) what the daemon never read counts too; requests are
//! counted beside it. Bytes of a slice are reckoned from the shapes.
//!
//! Host memory is what the kernel and the daemon count: the daemon's shared memory (`RssShmem`, the
//! pool, which is populated before) less the pool's free slots, what the daemon's private memory
//! (`RssAnon`) grew by, and what the peak of each client's resident memory (`VmHWM`) grew by since
//! it was connected. The devices store nothing, so that a client that keeps bytes, or stages
//! them, or reads the pool through its mapping, shows there. One rank's copy of its slices would be
//! 0.125.

use super::client::{ClientArgs, ClientProcess, Loaded, RANKS, slice_bytes};
use super::ground::{Files, Ground};
use super::{DeviceOptions, share};
use crate::Outcome;
use crate::measure::Spread;
use crate::origin::{gib, progress, row};
use crate::process::status_bytes;
use crate::report::{Bound, Figure, Limit, Row};

/// Bytes of the origin, of the checkpoint's, at most: besides the checkpoint, heads of files are
/// read to find the tensors.
const ORIGIN_MAX: f64 = 1.01;
/// Host memory, of the checkpoint's size, at most: besides the checkpoint there are the rests of
/// the slots that hold the ends of files, and what processes need to run.
const HOST_MAX: f64 = 1.05;

/// What eight loads came to; sizes as parts of the checkpoint's bytes.
#[derive(Debug, Clone, Copy)]
struct Ran {
    origin: f64,
    /// Requests that were made twice because the first was slow.
    hedges: f64,
    host: f64,
    pool: f64,
    clients: f64,
    /// What a rank copied of its slices' bytes: the least and the most.
    copied_min: f64,
    copied_max: f64,
    /// Seconds of the slowest.
    slowest: f64,
}

/// Resident memory in bytes.
#[derive(Debug, Clone, Copy)]
struct Resident {
    pool: u64,
    daemon: u64,
    clients: u64,
}

pub(super) async fn run(options: &DeviceOptions, files: &Files) -> Outcome<Row> {
    let mut runs = Vec::new();
    for number in 1..=options.runs {
        let ran = once(options, files).await?;
        progress(format_args!(
            "ranks {number}: origin {:.4}, {} hedges, host memory {:.4}, copied {:.4} to {:.4}, \
             {:.2} s",
            ran.origin, ran.hedges, ran.host, ran.copied_min, ran.copied_max, ran.slowest
        ));
        runs.push(ran);
    }
    let what = format!(
        "cold loads of {:.2} GiB by {RANKS} processes at a time, a slice each, to devices of {} \
         GB/s",
        gib(files.made().bytes()),
        options.cold_device
    );
    Ok(judge(row("ranks", what), &runs))
}

async fn once(options: &DeviceOptions, files: &Files) -> Outcome<Ran> {
    let ground = Ground::start(files, None).await?;
    let all = ground.client(Some(options.cold_device));
    let client = |rank| ClientProcess::start(&ClientArgs { rank: Some(rank), ..all.clone() });
    let mut clients: Vec<ClientProcess> = (0..RANKS).map(client).collect::<Outcome<_>>()?;
    let before = resident(&ground, &clients).await?;
    for client in &mut clients {
        client.begin()?;
    }
    let loads: Vec<Loaded> = clients.iter_mut().map(ClientProcess::end).collect::<Outcome<_>>()?;
    let after = resident(&ground, &clients).await?;
    let bytes = files.made().bytes();
    let grown = after.clients.saturating_sub(before.clients);
    let host = after.pool + after.daemon.saturating_sub(before.daemon) + grown;
    let copied: Spread =
        (0..).zip(&loads).map(|(rank, loaded)| copied(files, rank, loaded)).collect();
    let endpoints = ground.node().client().status().await?.endpoints;
    let hedges = endpoints.iter().map(|endpoint| endpoint.hedges).sum();
    Ok(Ran {
        origin: share(ground.sent(), bytes),
        hedges: share(hedges, 1),
        host: share(host, bytes),
        pool: share(after.pool, bytes),
        clients: share(grown, bytes),
        copied_min: copied.min(),
        copied_max: copied.max(),
        slowest: loads.iter().map(|loaded| loaded.seconds).fold(0.0, f64::max),
    })
}

fn copied(files: &Files, rank: u32, loaded: &Loaded) -> f64 {
    let tensors = files.made().tensors();
    let slices = tensors.map(|tensor| slice_bytes(&tensor.name, &tensor.shape, rank)).sum();
    share(loaded.copied_bytes, slices)
}

async fn resident(ground: &Ground, clients: &[ClientProcess]) -> Outcome<Resident> {
    let daemon = ground.node().pid();
    let free = ground.node().client().status().await?.ram.free_bytes;
    let peaks = clients.iter().map(|client| status_bytes(client.pid(), "VmHWM:"));
    Ok(Resident {
        pool: status_bytes(daemon, "RssShmem:")?.saturating_sub(free),
        daemon: status_bytes(daemon, "RssAnon:")?,
        clients: peaks.sum::<std::io::Result<u64>>()?,
    })
}

fn judge(mut row: Row, runs: &[Ran]) -> Row {
    let of = |value: fn(&Ran) -> f64| -> Spread { runs.iter().map(value).collect() };
    let (origin, host) = (of(|ran| ran.origin), of(|ran| ran.host));
    let (least, most) = (of(|ran| ran.copied_min), of(|ran| ran.copied_max));
    row.bounds = vec![
        Bound::new("sent, of the checkpoint's bytes", origin.median(), Limit::AtMost(ORIGIN_MAX)),
        Bound::new("host memory, of them", host.median(), Limit::AtMost(HOST_MAX)),
        Bound::new("copied, of its slice, least rank", least.min(), Limit::AtLeast(1.0)),
        Bound::new("copied, of its slice, most rank", most.max(), Limit::AtMost(1.0)),
    ];
    row.figures = vec![
        Figure::new("sent by the origin", "of it", origin),
        Figure::new("hedges", "requests", of(|ran| ran.hedges)),
        Figure::new("host memory", "of it", host),
        Figure::new("of which the pool", "of it", of(|ran| ran.pool)),
        Figure::new("of which the clients", "of it", of(|ran| ran.clients)),
        Figure::new("the slowest load", "s", of(|ran| ran.slowest)),
    ];
    row
}
