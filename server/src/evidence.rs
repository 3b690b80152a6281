//! Evidence: what the kernel knows of the time that a load waited.
//!
//! [`HostEvidence`](host::HostEvidence) is the seam to the machine: a look at its counters, and what can be read here.
//! [`ProcEvidence`] is the real one. [`Evidence`] looks while loads run and keeps the looks in
//! [`Samples`], which all loads share and which make differences for any stretch of time; a stall
//! is charged on those and never on a counter's value. [`machine()`] is about the set-up and not about
//! time. [`KernelEvidence`] is about single sockets, for the origin client, which has no unsafe
//! code to ask with.
//!
//! ```text
//!   load ── begin ──► Evidence ── every 25 ms ──► HostEvidence ── files, cgroup, block, threads
//!                         │ record                      (text, mounts: pure)
//!                         ▼
//!                      Samples ── between(from, to) ──► HostDelta
//! ```

mod block;
mod cgroup;
mod files;
mod host;
mod lateness;
mod machine;
mod mounts;
mod proc;
#[cfg(test)]
mod proc_tests;
mod sampler;
mod samples;
mod text;
mod threads;

use std::os::fd::BorrowedFd;

use forebay_origin::{SocketEvidence, TcpSnapshot};

pub(crate) use block::CachePlace;
pub(crate) use files::Roots;
#[cfg(test)]
pub(crate) use host::CpuDelta;
pub(crate) use host::{
    DiskDelta, GroupIoDelta, HostDelta, MemoryDelta, NetDelta, PressureDelta, SourceState,
};
pub(crate) use lateness::Lateness;
pub(crate) use machine::{Fact, Verdict, machine};
pub(crate) use proc::ProcEvidence;
pub(crate) use sampler::{Evidence, Sampling};
pub(crate) use samples::Samples;

/// Asks the kernel.
#[derive(Debug, Clone, Copy)]
pub(crate) struct KernelEvidence;

impl SocketEvidence for KernelEvidence {
    fn tcp(&self, socket: BorrowedFd<'_>) -> Option<TcpSnapshot> {
        let info = forebay_io::tcp_info(socket).ok()?;
        Some(TcpSnapshot {
            rtt: info.rtt,
            min_rtt: info.min_rtt,
            receive_rtt: info.receive_rtt,
            silent: info.last_data_received,
            bytes_received: info.bytes_received,
            segments_received: info.data_segments_received.into(),
            out_of_order: info.out_of_order.into(),
            retransmits: info.retransmits.into(),
            unread: forebay_io::unread_bytes(socket).unwrap_or_default(),
            receive_space: info.receive_space.into(),
            receive_window: info.receive_window.map(u64::from),
        })
    }
}
