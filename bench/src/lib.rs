//! What the demo, the benches and the end-to-end tests share: real daemon processes on ephemeral
//! places, and what measuring takes.
//!
//! ```text
//! origin.rs, origin/*   scenarios: what is run, what it is held to
//! nvme.rs, nvme/*       the same of the NVMe tier
//! packed.rs, packed/*   the same of compression and digests
//! device.rs, device/*   the same of loads to a device
//! accuracy.rs, accuracy/*  the same of explanations: stalls of known cause
//! peers.rs, peers/*     the same of others who load checkpoints
//! run.rs, run/*         one load at a time, many, and too many; comparisons
//! soak.rs, soak/*       everything that goes wrong, for as long as one likes; nothing is left over
//!    │  node.rs, process.rs    daemons and loads
//!    │  scrape.rs              metrics
//!    │  proof.rs               whether the bytes are right
//!    │  measure.rs, cpu.rs     one run; several runs
//!    └► report.rs              rows, bounds, table, JSON
//! ```

#![forbid(unsafe_code)]

use std::error::Error;

pub mod accuracy;
pub mod cost;
pub mod cpu;
pub mod demo;
pub mod device;
pub mod measure;
mod node;
pub mod nvme;
pub mod origin;
pub mod packed;
pub mod peers;
pub mod process;
mod proof;
pub mod report;
pub mod run;
mod scrape;
pub mod soak;

/// Any error of a demo or a bench ends it; it is for a person to read.
pub type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;
