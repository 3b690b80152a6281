//! What is counted of the NVMe tier and its disk.

use std::time::Duration;

use forebay_io::IoError;
use metrics::{Counter, Histogram, counter, gauge, histogram};

use super::{
    CACHE_BYTES, CACHE_EXTENTS, CACHE_REQUESTS, DISK_STATE, DISK_TURNS, EVICTIONS, FILL_ABORTED,
    FILL_BYTES, FILL_QUEUE, FILLS, IO_COUNTS, IO_ENGINE, IO_ERRORS, IO_INFLIGHT, IO_OLDEST_SECONDS,
    IO_QUEUE, IO_SECONDS, QUARANTINED, RECOVERED, RECOVERY_SECONDS, SCRUBBED_BYTES, as_f64, labels,
};
use crate::nvme::NvmeState;

const TIER: &str = "nvme";

/// Handles of what is counted with every chunk.
#[derive(Clone)]
pub(crate) struct TierMeters {
    hits: Counter,
    misses: Counter,
    bypassed: Counter,
    fills: Counter,
    fill_bytes: Counter,
    scrubbed: Counter,
}

impl TierMeters {
    /// The handles.
    pub(crate) fn new() -> Self {
        let requests = |result| counter!(CACHE_REQUESTS, "tier" => TIER, "result" => result);
        Self {
            hits: requests("hit"),
            misses: requests("miss"),
            bypassed: requests("bypass"),
            fills: counter!(FILLS, "tier" => TIER),
            fill_bytes: counter!(FILL_BYTES, "tier" => TIER),
            scrubbed: counter!(SCRUBBED_BYTES, "tier" => TIER),
        }
    }

    /// A chunk was stored, and right.
    pub(crate) fn hit(&self) {
        self.hits.increment(1);
    }

    /// A chunk was not stored.
    pub(crate) fn missed(&self) {
        self.misses.increment(1);
    }

    /// A chunk was not asked of the disk, or not to be had.
    pub(crate) fn bypassed(&self) {
        self.bypassed.increment(1);
    }

    /// A chunk is stored now.
    pub(crate) fn filled(&self, bytes: u64) {
        self.fills.increment(1);
        self.fill_bytes.increment(bytes);
    }

    /// A chunk is not stored.
    pub(crate) fn gave_up(&self, reason: &'static str) {
        debug_assert!(labels::NOT_FILLED.allows(reason), "{reason}");
        counter!(FILL_ABORTED, "tier" => TIER, "reason" => reason).increment(1);
    }

    /// Chunks were given up.
    pub(crate) fn evicted(&self, reason: &'static str, chunks: usize) {
        if chunks > 0 {
            debug_assert!(labels::EVICTION.allows(reason), "{reason}");
            counter!(EVICTIONS, "tier" => TIER, "reason" => reason).increment(chunks as u64);
        }
    }

    /// An extent was bad.
    pub(crate) fn quarantined(&self, reason: &'static str) {
        debug_assert!(labels::BAD.allows(reason), "{reason}");
        counter!(CACHE_REQUESTS, "tier" => TIER, "result" => "corrupt").increment(1);
        counter!(QUARANTINED, "tier" => TIER, "reason" => reason).increment(1);
    }

    /// The scrub has read so much more.
    pub(crate) fn scrubbed(&self, bytes: u64) {
        self.scrubbed.increment(bytes);
    }

    /// Every extent is known.
    pub(crate) fn recovered(&self, took: Duration, extents: usize) {
        gauge!(RECOVERY_SECONDS, "tier" => TIER).set(took.as_secs_f64());
        gauge!(RECOVERED, "tier" => TIER).set(as_f64(extents as u64));
    }
}

impl std::fmt::Debug for TierMeters {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TierMeters").finish_non_exhaustive()
    }
}

/// Queue and device time of one kind of operation.
#[derive(Clone)]
struct OpMeters {
    queue: Histogram,
    device: Histogram,
}

impl OpMeters {
    fn new(op: &'static str) -> Self {
        let phase = |phase| histogram!(IO_SECONDS, "op" => op, "phase" => phase);
        Self { queue: phase("queue"), device: phase("device") }
    }
}

/// Handles of what is counted with every operation.
#[derive(Clone)]
pub(crate) struct DiskMeters {
    reads: OpMeters,
    writes: OpMeters,
}

impl DiskMeters {
    /// The handles.
    pub(crate) fn new() -> Self {
        Self { reads: OpMeters::new("read"), writes: OpMeters::new("write") }
    }

    /// An operation was done.
    pub(crate) fn ended(&self, op: &'static str, queue: Duration, device: Duration) {
        let meters = if op == "read" { &self.reads } else { &self.writes };
        meters.queue.record(queue.as_secs_f64());
        meters.device.record(device.as_secs_f64());
    }

    /// An operation failed.
    pub(crate) fn failed(&self, op: &'static str, error: &IoError) {
        let reason = match error {
            IoError::NoSpace { .. } => "no_space",
            IoError::Device { .. } => "device",
            IoError::Hung { .. } => "hung",
            IoError::Stalled { .. } => "stalled",
            IoError::QueueFull { .. } => "queue_full",
            IoError::ShortWrite { .. } | IoError::TooLong { .. } => "length",
            IoError::Closed => "closed",
            _ => "other",
        };
        counter!(IO_ERRORS, "op" => op, "reason" => reason).increment(1);
    }

    /// The disk is trusted more, or less.
    pub(crate) fn turned(&self, to: &'static str) {
        debug_assert!(labels::DISK_TO.allows(to), "{to}");
        counter!(DISK_TURNS, "tier" => TIER, "to" => to).increment(1);
    }
}

impl std::fmt::Debug for DiskMeters {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DiskMeters").finish_non_exhaustive()
    }
}

/// The gauges, from the state itself.
pub(crate) fn nvme(state: &NvmeState) {
    for (of, bytes) in [
        ("budget", state.budget),
        ("stored", state.stored),
        ("pinned", state.pinned),
        ("filling", state.filling),
        ("free", state.disk_free),
    ] {
        gauge!(CACHE_BYTES, "tier" => TIER, "state" => of).set(as_f64(bytes));
    }
    gauge!(CACHE_EXTENTS, "tier" => TIER).set(as_f64(state.extents as u64));
    gauge!(FILL_QUEUE, "tier" => TIER).set(as_f64(state.queued_fills as u64));
    let disk = match state.state {
        "down" => 2.0,
        "unstable" => 1.0,
        _ => 0.0,
    };
    gauge!(DISK_STATE, "tier" => TIER).set(disk);
    for engine in ["io_uring", "threads"] {
        let used = f64::from(u8::from(engine == state.engine));
        gauge!(IO_ENGINE, "engine" => engine).set(used);
    }
    let io = &state.io;
    for (op, lane) in [("read", &io.reads), ("write", &io.writes)] {
        gauge!(IO_QUEUE, "op" => op).set(as_f64(lane.queued as u64));
        gauge!(IO_OLDEST_SECONDS, "op" => op).set(lane.oldest_queued.as_secs_f64());
        gauge!(IO_INFLIGHT, "op" => op).set(as_f64(lane.running as u64));
    }
    for (event, count) in [
        ("slow", io.slow_total),
        ("hung", io.hung_total),
        ("late", io.late_total),
        ("short", io.short_total),
        ("retried", io.retried_total),
        ("unstarted", io.unstarted_total),
        ("unknown", io.unknown_total),
        ("engine_error", io.engine_errors_total),
        ("registered", io.registered_ops_total),
    ] {
        counter!(IO_COUNTS, "event" => event).absolute(count);
    }
}
