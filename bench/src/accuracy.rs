//! `forebay-bench accuracy`: whether the time of a load is charged to what took it. Stalls of a
//! known cause are put into loads through a real daemon, which then has to explain them. As in
//! [`origin`](crate::origin), each row is a module's.
//!
//! A row runs clean loads and stalled ones in turn. The seconds of a stall are those that were put
//! there, where that is exact; else what the load took beyond the median of the clean ones. What is
//! charged for it is the charge beyond the median charge of the clean ones, so that a cause that is
//! always charged a little gets no credit. The bound is on the median over runs; the least of them
//! stands beside it.
//!
//! Some stalls need the kernel: lost packets, a name server on port 53, a quota. The bench then
//! starts itself again in a network and a mount namespace of its own, where nothing of the machine
//! can be disturbed (see `isolation`). What cannot be had is skipped, and the row says why.

mod clean;
mod ground;
mod isolation;
mod machine;
mod network;
mod origin;
mod queues;
mod tiers;

use std::path::PathBuf;

use clap::ValueEnum;

use crate::Outcome;
use crate::report::{self, Row, Table};
use ground::Scene;

pub use isolation::isolate;

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
pub enum AccuracyRow {
    /// A name server that answers late
    Dns,
    /// Lost SYNs
    TcpConnect,
    /// Lost packets
    TcpRetransmit,
    /// An origin that answers late
    FirstByte,
    /// An origin that sends slowly
    Body,
    /// An origin that says "slow down"
    OriginThrottle,
    /// A rate that is configured
    ConfiguredRate,
    /// A file that is not in the page cache
    PageCache,
    /// A disk held to a rate
    Disk,
    /// A packed checkpoint while others are decoded
    Decompress,
    /// A CPU quota
    CpuThrottle,
    /// A place that another load has
    AdmissionQueue,
    /// Memory that another load has
    LeaseMemory,
    /// A client that takes its time
    Client,
    /// Loads without a stall
    Clean,
}

/// How it is measured.
#[derive(Debug, Clone)]
pub struct AccuracyOptions {
    /// What is measured; all of it, if empty.
    pub rows: Vec<AccuracyRow>,
    /// Clean loads and stalled ones of each row.
    pub runs: usize,
    /// The checkpoint.
    pub bytes: u64,
    /// Where the timeline of each load is written, if anywhere.
    pub traces: Option<PathBuf>,
}

/// Measures.
///
/// # Errors
/// If something fails; a bound that is missed is no error.
pub fn run(options: &AccuracyOptions) -> Outcome<Table> {
    let rows = match options.rows.as_slice() {
        [] => AccuracyRow::value_variants(),
        some => some,
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let scene = Scene::make(options)?;
    let mut found = Vec::new();
    for row in rows {
        found.extend(runtime.block_on(measure(*row, &scene))?);
    }
    let checkpoint = format!("{} MiB", options.bytes >> 20);
    let mut ground = report::ground(options.runs, ("checkpoint", checkpoint))?;
    // Others who want the CPUs are a cause too, and no fault of the daemon.
    let busy = std::fs::read_to_string("/proc/loadavg")?;
    ground.push(("load averages", busy.split(' ').take(2).collect::<Vec<_>>().join(" and ")));
    Ok(Table { bench: "accuracy", ground, rows: found })
}

async fn measure(row: AccuracyRow, scene: &Scene) -> Outcome<Vec<Row>> {
    let found = match row {
        AccuracyRow::Dns => network::dns(scene).await?,
        AccuracyRow::TcpConnect => network::connect(scene).await?,
        AccuracyRow::TcpRetransmit => network::loss(scene).await?,
        AccuracyRow::FirstByte => origin::first_byte(scene).await?,
        AccuracyRow::Body => origin::body(scene).await?,
        AccuracyRow::OriginThrottle => origin::throttle(scene).await?,
        AccuracyRow::ConfiguredRate => origin::configured(scene).await?,
        AccuracyRow::PageCache => tiers::page_cache(scene).await?,
        AccuracyRow::Disk => tiers::disk(scene).await?,
        AccuracyRow::Decompress => machine::decompress(scene).await?,
        AccuracyRow::CpuThrottle => machine::quota(scene).await?,
        AccuracyRow::AdmissionQueue => queues::place(scene).await?,
        AccuracyRow::LeaseMemory => queues::memory(scene).await?,
        AccuracyRow::Client => queues::client(scene).await?,
        AccuracyRow::Clean => return clean::run(scene).await,
    };
    Ok(vec![found])
}
