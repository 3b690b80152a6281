//! `forebay-bench origin`: what the origin client promises, each promise measured against what it
//! is compared with, side by side in one run.
//!
//! Each row is a module with a `run` that gives a [`Row`]. What a row compares is interleaved:
//! every run of one side is followed by a run of the others, so that a machine that is slow for a
//! while is slow for all. Bounds are made of medians.

mod addresses;
pub(crate) mod child;
mod cold;
mod controller;
mod engine;
pub(crate) mod raw_loop;
mod stalls;
mod storm;

use std::fmt::Arguments;

use clap::ValueEnum;

use crate::Outcome;
use crate::report::{self, Row, Table};

pub use child::serve;

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Promise {
    /// A cold load against a raw loop of ranged reads
    Cold,
    /// The controller against the best fixed concurrency
    Controller,
    /// One bad address of eight
    Addresses,
    /// Parts that stall
    Stalls,
    /// Callers while everything is throttled
    Storm,
}

/// How it is measured.
#[derive(Debug, Clone)]
pub struct OriginOptions {
    /// What is measured; all of it, if empty.
    pub promises: Vec<Promise>,
    /// Runs of each side.
    pub runs: usize,
    /// The checkpoint of the cold load.
    pub bytes: u64,
    /// Connections of the cold load and of the raw loop.
    pub connections: usize,
    /// Whether everything is made shorter, for a first look.
    pub quick: bool,
}

/// Measures.
///
/// # Errors
/// If something fails; a bound that is missed is no error.
pub fn run(options: &OriginOptions) -> Outcome<Table> {
    let promises = match options.promises.as_slice() {
        [] => Promise::value_variants(),
        some => some,
    };
    let mut rows = Vec::new();
    for promise in promises {
        match promise {
            Promise::Cold => rows.push(cold::run(options)?),
            Promise::Controller => rows.extend(controller::run(options)?),
            Promise::Addresses => rows.extend(addresses::run(options)?),
            Promise::Stalls => rows.push(stalls::run(options)?),
            Promise::Storm => rows.push(storm::run(options)?),
        }
    }
    let quick = if options.quick { "yes" } else { "no" };
    let ground = report::ground(options.runs, ("quick", quick.to_owned()))?;
    Ok(Table { bench: "origin", ground, rows })
}

/// Tells a person who waits how far it is.
#[expect(clippy::print_stderr, reason = "the table on stdout comes at the end only")]
pub(crate) fn progress(line: Arguments<'_>) {
    eprintln!("{line}");
}

/// The ratio of two medians.
pub(crate) fn ratio(of: &crate::measure::Spread, to: &crate::measure::Spread) -> f64 {
    of.median() / to.median()
}

#[expect(clippy::cast_precision_loss, reason = "for people, two digits")]
pub(crate) fn gib(bytes: u64) -> f64 {
    bytes as f64 / 1_073_741_824.0
}

/// A row without figures yet.
pub(crate) fn row(name: &'static str, what: String) -> Row {
    Row { name, what, figures: Vec::new(), bounds: Vec::new(), notes: Vec::new() }
}
