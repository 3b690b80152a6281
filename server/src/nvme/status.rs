//! The tier at a glance, for `Status`, metrics and whoever asks what could not be had.

use std::sync::atomic::Ordering;
use std::time::Duration;

use forebay_io::{EngineReason, IoStats};
use tokio::time::Instant;

use super::breaker::DiskState;
use super::catalog::Catalog;
use super::index::Index;
use super::store::DiskRoom;
use super::{NvmeTier, lock};

/// The tier at a glance.
#[derive(Debug, Clone)]
pub(crate) struct NvmeState {
    /// recovering, normal, unstable or down.
    pub(crate) state: &'static str,
    /// As configured.
    pub(crate) budget: u64,
    /// In files.
    pub(crate) stored: u64,
    /// Of pinned checkpoints.
    pub(crate) pinned: u64,
    /// Being written.
    pub(crate) filling: u64,
    /// Free in the filesystem.
    pub(crate) disk_free: u64,
    /// Files.
    pub(crate) extents: usize,
    /// Chunks that wait to be written.
    pub(crate) queued_fills: usize,
    /// io_uring or threads.
    pub(crate) engine: &'static str,
    /// Why.
    pub(crate) engine_reason: String,
    /// Bad extents found.
    pub(crate) quarantined: u64,
    /// Chunks that were not written.
    pub(crate) given_up: u64,
    /// How long it took until every extent was known, once it did.
    pub(crate) recovery: Option<Duration>,
    /// The io engine's counters.
    pub(crate) io: IoStats,
}

/// Why there is no io_uring although nobody asked for threads, as metrics say it.
pub(super) fn refused(reason: &EngineReason) -> Option<&'static str> {
    Some(match reason {
        EngineReason::Uring { .. } | EngineReason::Asked => return None,
        EngineReason::DisabledBySysctl(_) => "sysctl",
        EngineReason::Forbidden => "forbidden",
        EngineReason::NotInKernel => "not_in_kernel",
        EngineReason::Memlock(_) => "memlock",
        EngineReason::MissingOpcodes(_) => "missing_opcodes",
        _ => "failed",
    })
}

impl NvmeTier {
    /// What could not be had, and why.
    pub(crate) fn degraded(&self) -> Vec<String> {
        let mut degraded = lock(&self.trouble).clone();
        degraded.extend(lock(&self.index).as_ref().and_then(Index::trouble));
        match self.disk.state() {
            DiskState::Normal => {}
            DiskState::Unstable => degraded.push(
                "nvme: the disk fails now and then: few reads and no writes until it is well"
                    .into(),
            ),
            DiskState::Down => degraded
                .push("nvme: the disk fails or does not answer: loads go to their origins".into()),
        }
        // Others may have taken what is kept free, and nothing of ours is left to make room.
        let below_floor = |room: DiskRoom| room.free < Catalog::floor(room);
        if self.is_full(Instant::now()) || below_floor(self.last_room()) {
            degraded.push("nvme: the disk is full: nothing more is stored for now".into());
        }
        degraded
    }

    /// The tier at a glance.
    pub(crate) fn state(&self) -> NvmeState {
        let used = self.catalog().used();
        let recovery = *self.recovery.borrow();
        let state = match (self.disk.state(), recovery) {
            (DiskState::Normal, None) => "recovering",
            (state, _) => state.as_str(),
        };
        let io = self.disk.engine().stats();
        NvmeState {
            state,
            budget: used.budget,
            stored: used.stored,
            pinned: used.pinned,
            filling: used.reserved,
            disk_free: self.last_room().free,
            extents: used.extents,
            queued_fills: self.fills.waiting(),
            engine: io.kind.as_str(),
            engine_reason: self.engine_reason.clone(),
            quarantined: self.quarantined.load(Ordering::Relaxed),
            given_up: self.given_up.load(Ordering::Relaxed),
            recovery,
            io,
        }
    }
}
