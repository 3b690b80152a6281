//! The Forebay daemon.
//!
//! Modules in the order in which a request travels; `load` is the one function that reads the path
//! aloud, `daemon` builds everything. `server/ARCHITECTURE.md` is the map.

#![forbid(unsafe_code)]

pub mod config;
pub mod daemon;
#[doc(hidden)]
pub mod fuzz;
#[doc(hidden)]
pub mod measured;

mod rpc;

mod alias;
mod deadline;
mod load;
mod loads;
mod pack;
mod resize;

mod admission;
mod decode;
mod fetch;
mod flight;
mod handoff;
mod nvme;
mod plan;
mod ram;
mod resolve;
mod verify;

mod attribution;
mod capacity;
mod cost;
mod cpu;
mod digest;
mod domain;
mod error;
mod evidence;
mod explain;
#[cfg(test)]
mod handbook;
mod history;
mod http;
mod log;
mod metrics;
mod numa;
#[cfg_attr(not(feature = "otlp"), path = "no_otlp.rs")]
mod otlp;
mod places;
mod proof;
mod remains;
mod report;
mod residency;
mod staging;
mod timeline;
mod trace;
mod workload;
