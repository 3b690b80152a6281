//! What the daemon decided, and why, as counters. The decisions of one load are on its timeline too.

use metrics::counter;

use super::{CHOICES, FALLBACKS, labels};
use crate::report::{Tier, Why};

/// What is done another way than it should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fallback {
    /// A client's copies go through memory of its own, since segments cannot be registered.
    StagedCopy,
    /// The NVMe tier is read by threads, for want of io_uring.
    ThreadEngine(&'static str),
    /// The NVMe tier is read through the page cache.
    BufferedIo,
    /// A slot lies on another node than was asked for.
    FarSlot,
    /// Bytes that were wrong are asked for again, another way.
    OtherSource,
    /// What should have come from the NVMe tier comes from the origin.
    Origin(Why),
}

impl Fallback {
    /// To what, and why.
    pub(crate) fn labels(self) -> (&'static str, &'static str) {
        match self {
            Self::StagedCopy => ("staged_copy", "not_registered"),
            Self::ThreadEngine(why) => ("thread_engine", why),
            Self::BufferedIo => ("buffered_io", "direct_refused"),
            Self::FarSlot => ("far_slot", "node_full"),
            Self::OtherSource => ("other_source", "bad_bytes"),
            Self::Origin(why) => ("origin", why.as_str()),
        }
    }
}

/// Counts a fallback.
pub(crate) fn fell_back(to: Fallback) {
    let (to, reason) = to.labels();
    debug_assert!(labels::FALLBACK.allows(to) && labels::FALLBACK_REASON.allows(reason));
    counter!(FALLBACKS, "to" => to, "reason" => reason).increment(1);
}

/// Counts a chunk of a load by the tier that it is taken from.
pub(crate) fn chose(tier: Tier, why: Why) {
    counter!(CHOICES, "tier" => tier.as_str(), "reason" => why.as_str()).increment(1);
}
