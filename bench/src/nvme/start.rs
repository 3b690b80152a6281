//! Starts over a terabyte of extents: how long until a daemon serves, and until it knows all of
//! them.
//!
//! The extents are sparse files with real headers (see [`extents`]). Each run starts three daemons
//! over them: one without an index, which reads every header and writes the index; one with it; and
//! one after `kill -9` of that. Before each the kernel is asked to forget what it cached of the
//! files and their folders, which only root may. A daemon serves when it has said that it is ready
//! and has answered a call.

use std::path::Path;
use std::time::Duration;

use forebay_client::{Client, Endpoint};
use tempfile::TempDir;
use tokio::time::Instant;

use super::extents::{self, PAYLOAD_BYTES};
use super::{NvmeOptions, forget_pages};
use crate::Outcome;
use crate::measure::Spread;
use crate::node;
use crate::origin::{gib, progress, row};
use crate::process::DaemonProcess;
use crate::report::{Bound, Figure, Limit, Row};

/// Seconds until it serves, at most.
const SERVING_MAX: f64 = 2.0;
/// How long the headers of all extents may take.
const KNOWN_WITHIN: Duration = Duration::from_secs(300);
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// What the daemon finds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Before {
    NoIndex,
    Index,
    Kill,
}

/// One start, in seconds since the process was started.
#[derive(Debug, Clone, Copy)]
struct Started {
    ready: f64,
    serving: f64,
    known: f64,
}

pub(super) fn run(options: &NvmeOptions) -> Outcome<Row> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut dir = prepared(options)?;
    let cold = forget_everything(dir.path())?;
    let mut found =
        [Before::NoIndex, Before::Index, Before::Kill].map(|before| (before, Vec::new()));
    for number in 1..=options.runs {
        for (before, runs) in &mut found {
            if *before == Before::NoIndex {
                std::fs::remove_file(dir.path().join("cache/nvme/index.redb"))?;
            }
            forget_everything(dir.path())?;
            let (started, daemon) = runtime.block_on(start(dir, options.extents))?;
            let Started { ready, serving, known } = started;
            progress(format_args!(
                "start {number}, {before:?}: ready {ready:.3} s, serving {serving:.3} s, known \
                 {known:.2} s"
            ));
            runs.push(started);
            dir = ended(daemon, *before == Before::Index)?;
        }
    }
    let what = format!(
        "a start over {} extents, {:.2} GiB, {}",
        options.extents,
        gib(u64::from(options.extents) * PAYLOAD_BYTES),
        if cold { "nothing of them cached" } else { "cached by the kernel, as this is not root" }
    );
    Ok(judge(row("start", what), &found))
}

fn spec(extents: u32) -> Outcome<crate::process::DaemonSpec> {
    // It would find that the payloads do not fit their sums.
    let settings = [("FOREBAY_SCRUB_BYTES_PER_SECOND", "0".to_owned())];
    node::tiered_daemon(0, 2 * u64::from(extents) * PAYLOAD_BYTES, &settings)
}

/// A directory with so many extents, and an index that is to be begun anew.
fn prepared(options: &NvmeOptions) -> Outcome<TempDir> {
    // It makes the folders.
    let daemon = spec(options.extents)?.start_in(options.directory()?)?;
    let dir = ended(daemon, false)?;
    let begun = Instant::now();
    extents::write(&dir.path().join("cache/nvme"), options.extents)?;
    progress(format_args!("start: {} extents in {:.1?}", options.extents, begun.elapsed()));
    Ok(dir)
}

async fn start(dir: TempDir, extents: u32) -> Outcome<(Started, DaemonProcess)> {
    let spec = spec(extents)?;
    let begun = Instant::now();
    let daemon = spec.start_in(dir)?;
    let ready = begun.elapsed().as_secs_f64();
    let client = Client::connect(Endpoint::unix(&daemon.socket())?).await?;
    let mut status = client.status().await?;
    let serving = begun.elapsed().as_secs_f64();
    let known = loop {
        if let Some(known) = status.nvme.recovery {
            break known.as_secs_f64();
        }
        if begun.elapsed() > KNOWN_WITHIN {
            return Err(format!("not known after {KNOWN_WITHIN:?}: {:?}", status.nvme).into());
        }
        tokio::time::sleep(LOOK_AGAIN).await;
        status = client.status().await?;
    };
    if status.nvme.extents != u64::from(extents) {
        return Err(format!("of {extents} extents it knows {}", status.nvme.extents).into());
    }
    Ok((Started { ready, serving, known }, daemon))
}

/// Ends a daemon; its directory.
fn ended(mut daemon: DaemonProcess, kill: bool) -> Outcome<TempDir> {
    if !kill {
        let status = daemon.stop()?;
        if !status.success() {
            return Err(format!("the daemon ended with {status}: {}", daemon.log()).into());
        }
    }
    Ok(daemon.kill()?)
}

/// Drops what the kernel cached; whether folders and names were dropped too.
fn forget_everything(dir: &Path) -> Outcome<bool> {
    rustix::fs::sync();
    let index = dir.join("cache/nvme");
    forget_pages(&index.join("blobs"))?;
    let file = std::fs::File::open(index.join("index.redb"));
    if let Ok(file) = file {
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed)?;
    }
    Ok(std::fs::write("/proc/sys/vm/drop_caches", "3").is_ok())
}

fn judge(mut row: Row, found: &[(Before, Vec<Started>)]) -> Row {
    for (before, runs) in found {
        let of = |value: fn(&Started) -> f64| -> Spread { runs.iter().map(value).collect() };
        let name = match before {
            Before::NoIndex => "without an index",
            Before::Index => "with the index",
            Before::Kill => "after kill -9",
        };
        let serving = of(|started| started.serving);
        let limit = Limit::AtMost(SERVING_MAX);
        row.bounds.push(Bound::new(format!("{name}, serving, s"), serving.median(), limit));
        row.figures.push(Figure::new(format!("{name}, ready"), "s", of(|started| started.ready)));
        row.figures.push(Figure::new(format!("{name}, serving"), "s", serving));
        let known = of(|started| started.known);
        row.figures.push(Figure::new(format!("{name}, all extents known"), "s", known));
    }
    row
}
