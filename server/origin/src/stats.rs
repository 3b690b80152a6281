//! Counters per origin: what `forebay status` shows of it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// What was asked of an origin so far.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OriginStats {
    /// Scheme and bucket or host.
    pub origin: String,
    /// Attempts begun.
    pub requests: u64,
    /// Attempts that failed.
    pub errors: u64,
    /// Body bytes received.
    pub bytes: u64,
    /// Attempts under way.
    pub inflight: u64,
}

/// The live counters behind [`OriginStats`].
#[derive(Debug, Default)]
pub(crate) struct Counters {
    requests: AtomicU64,
    errors: AtomicU64,
    bytes: AtomicU64,
    inflight: AtomicU64,
}

impl Counters {
    /// Counts an attempt until the guard is dropped. One that is dropped without an outcome was
    /// cancelled by the caller, which is no error.
    pub(crate) fn begin(self: &Arc<Self>) -> InFlight {
        self.requests.fetch_add(1, Ordering::Relaxed);
        self.inflight.fetch_add(1, Ordering::Relaxed);
        InFlight(Arc::clone(self))
    }

    pub(crate) fn received(&self, bytes: usize) {
        self.bytes.fetch_add(u64::try_from(bytes).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    pub(crate) fn received_bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    pub(crate) fn failed(&self) {
        self.errors.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn snapshot(&self, origin: &str) -> OriginStats {
        OriginStats {
            origin: origin.to_owned(),
            requests: self.requests.load(Ordering::Relaxed),
            errors: self.errors.load(Ordering::Relaxed),
            bytes: self.bytes.load(Ordering::Relaxed),
            inflight: self.inflight.load(Ordering::Relaxed),
        }
    }
}

/// An attempt under way.
#[derive(Debug)]
pub(crate) struct InFlight(Arc<Counters>);

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.inflight.fetch_sub(1, Ordering::Relaxed);
    }
}
