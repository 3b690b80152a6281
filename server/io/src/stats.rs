//! What an engine counted since it was made.

use std::fmt;
use std::time::Duration;

/// Which machinery an engine is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum EngineKind {
    /// One thread with one io_uring.
    Uring,
    /// Threads that block in pread and pwrite.
    Threads,
}

impl EngineKind {
    /// Its name, for people and for metrics.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Uring => "io_uring",
            Self::Threads => "threads",
        }
    }
}

impl fmt::Display for EngineKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One lane: its state now, and its totals.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LaneStats {
    /// Operations that wait for their turn.
    pub queued: usize,
    /// How long the first of them has waited.
    pub oldest_queued: Duration,
    /// Operations that the device has.
    pub running: usize,
    /// Operations that ended well.
    pub done: u64,
    /// Operations that did not, whatever the reason.
    pub failed: u64,
    /// Bytes that were moved.
    pub bytes: u64,
    /// Waiting for a turn, all operations together.
    pub queue_time: Duration,
    /// With the device, all operations together.
    pub device_time: Duration,
}

/// Everything an engine counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IoStats {
    /// Which engine.
    pub kind: EngineKind,
    /// Reads.
    pub reads: LaneStats,
    /// Writes and syncs.
    pub writes: LaneStats,
    /// Operations that the device has had for longer than the hard limit; their memory is kept.
    pub hung: usize,
    /// Operations that were ever reported as hung.
    pub hung_total: u64,
    /// Operations that took longer than the soft limit.
    pub slow_total: u64,
    /// Operations that ended in the queue: stalled, or given up by their caller.
    pub unstarted_total: u64,
    /// Completions that nobody waited for any more.
    pub late_total: u64,
    /// Answers of the kernel that were continued, being short.
    pub short_total: u64,
    /// Answers of the kernel that were tried again, being interruptions.
    pub retried_total: u64,
    /// Completions for operations that the engine does not know: a bug, in it or in the kernel.
    pub unknown_total: u64,
    /// Failures of the engine's own calls into the kernel.
    pub engine_errors_total: u64,
    /// Operations that used registered memory.
    pub registered_ops_total: u64,
    /// Memory that is registered.
    pub registered_bytes: u64,
}

impl IoStats {
    pub(crate) fn new(kind: EngineKind) -> Self {
        Self {
            kind,
            reads: LaneStats::default(),
            writes: LaneStats::default(),
            hung: 0,
            hung_total: 0,
            slow_total: 0,
            unstarted_total: 0,
            late_total: 0,
            short_total: 0,
            retried_total: 0,
            unknown_total: 0,
            engine_errors_total: 0,
            registered_ops_total: 0,
            registered_bytes: 0,
        }
    }
    /// Counts an operation that is not done with one answer of the kernel.
    pub(crate) fn count_again(&mut self, moved: bool) {
        if moved {
            self.short_total += 1;
        } else {
            self.retried_total += 1;
        }
    }
}
