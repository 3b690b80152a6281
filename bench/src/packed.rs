//! `forebay-bench packed`: what packed checkpoints and digests promise, each promise measured
//! against what it is compared with, in one run. As in [`origin`](crate::origin), each row is a
//! module.
//!
//! Checkpoints are packed by a daemon, through the call that `forebay pack` makes, with what that
//! call does if nothing is said; see [`ground`].

mod child;
mod decode;
mod ground;
mod link;
mod others;
mod size;
mod verify;

use clap::ValueEnum;

use crate::Outcome;
use crate::report::{self, Table};
pub(crate) use ground::Ground;

pub use child::serve;

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum PackedRow {
    /// One worker's decoding against the zstd library's
    Decode,
    /// What packed checkpoints take
    Size,
    /// Loads over a link of 200 MB/s, packed against raw
    Link,
    /// What digests take of a load's CPU seconds
    Verify,
}

/// How it is measured.
#[derive(Debug, Clone)]
pub struct PackedOptions {
    /// What is measured; all of it, if empty.
    pub rows: Vec<PackedRow>,
    /// Runs of each side.
    pub runs: usize,
    /// The checkpoint.
    pub bytes: u64,
    /// Whether other inputs are smaller, for a first look.
    pub quick: bool,
}

impl PackedOptions {
    fn asked(&self, row: PackedRow) -> bool {
        self.rows.is_empty() || self.rows.contains(&row)
    }
}

/// Measures.
///
/// # Errors
/// If something fails; a bound that is missed is no error.
pub fn run(options: &PackedOptions) -> Outcome<Table> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut rows = Vec::new();
    let of_weights = [PackedRow::Decode, PackedRow::Size, PackedRow::Link];
    if of_weights.into_iter().any(|row| options.asked(row)) {
        let ground = runtime.block_on(Ground::of_weights(options.bytes))?;
        if options.asked(PackedRow::Decode) {
            rows.push(decode::run(options, &ground)?);
        }
        if options.asked(PackedRow::Size) {
            rows.push(runtime.block_on(size::run(options, &ground))?);
        }
        if options.asked(PackedRow::Link) {
            rows.push(runtime.block_on(link::run(options, &ground))?);
        }
    }
    if options.asked(PackedRow::Verify) {
        rows.push(verify::run(options)?);
    }
    let quick = if options.quick { "yes" } else { "no" };
    let ground = report::ground(options.runs, ("quick", quick.to_owned()))?;
    Ok(Table { bench: "packed", ground, rows })
}
