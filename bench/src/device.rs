//! `forebay-bench device`: what loads to a device promise, measured with a real daemon and with
//! clients in processes of their own, in one run. As in [`origin`](crate::origin), each row is a
//! module.
//!
//! Devices are paced fakes that store nothing. Their copy engine is pretended, what it is told is
//! not: a copy starts at the instant at which the library handed it over, or when the engine is
//! free, if that is later. So every moment in which the library had nothing ready is a gap in the
//! engine's timeline, which is what is read here; figures that the library reports about itself
//! stand beside it. That bytes arrive where they belong is shown by the end-to-end tests, with
//! fakes that store them.
//!
//! Two rows miss when they are told to: `--warm-device 1000` is more than a load can feed, and
//! `--cold-device 0.4` is slower than the origin.

mod client;
mod cold;
mod ground;
mod ranks;
mod warm;

use clap::ValueEnum;

use crate::Outcome;
use crate::origin::gib;
use crate::report::{self, Table};
use ground::{Files, SEED, SHARDS};

pub(crate) use client::CUTS;
pub use client::{ClientArgs, serve};

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum DeviceRow {
    /// How busy the copy engine is in a warm load
    Warm,
    /// A cold load to a device that is faster than the origin, against one without a device
    Cold,
    /// Eight processes that load a slice each
    Ranks,
    /// From the call to the first copy, in the second load of a process
    Open,
}

/// How it is measured.
#[derive(Debug, Clone)]
pub struct DeviceOptions {
    /// What is measured; all of it, if empty.
    pub rows: Vec<DeviceRow>,
    /// Runs of each side.
    pub runs: usize,
    /// The checkpoint.
    pub bytes: u64,
    /// Rate of the device of warm loads, in units of 1e9 bytes a second.
    pub warm_device: f64,
    /// Rate of the device of cold loads and of ranks, in the same unit.
    pub cold_device: f64,
    /// Bytes per second of the origin of the cold loads.
    pub origin_bytes_per_second: u64,
}

impl DeviceOptions {
    fn asked(&self, row: DeviceRow) -> bool {
        self.rows.is_empty() || self.rows.contains(&row)
    }
}

/// Measures.
///
/// # Errors
/// If something fails; a bound that is missed is no error.
pub fn run(options: &DeviceOptions) -> Outcome<Table> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let files = Files::make(options.bytes)?;
    let mut rows = Vec::new();
    if options.asked(DeviceRow::Warm) || options.asked(DeviceRow::Open) {
        rows.extend(runtime.block_on(warm::run(options, &files))?);
    }
    if options.asked(DeviceRow::Cold) {
        rows.push(runtime.block_on(cold::run(options, &files))?);
    }
    if options.asked(DeviceRow::Ranks) {
        rows.push(runtime.block_on(ranks::run(options, &files))?);
    }
    let checkpoint =
        format!("{:.2} GiB in {SHARDS} shards, seed {SEED}", gib(files.made().bytes()));
    let mut ground = report::ground(options.runs, ("checkpoint", checkpoint))?;
    ground.extend([
        ("device of warm loads", format!("{} GB/s", options.warm_device)),
        ("device of cold loads", format!("{} GB/s", options.cold_device)),
        ("origin of cold loads", format!("{} MB/s", options.origin_bytes_per_second / 1_000_000)),
    ]);
    Ok(Table { bench: "device", ground, rows })
}

/// A part of a whole.
#[expect(clippy::cast_precision_loss, reason = "ratios of sizes far below 2^53")]
fn share(part: u64, whole: u64) -> f64 {
    part as f64 / whole as f64
}
