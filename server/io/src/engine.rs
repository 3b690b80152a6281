//! The seam: what an io engine does, whichever machinery it has.

use std::fmt;
use std::ops::Range;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use forebay_shm::Segment;

use crate::desk::Limits;
use crate::error::RegisterError;
use crate::file::DataFile;
use crate::op::{Done, Failed, FileOffset, Op, Outcome};
use crate::quota::Quotas;
use crate::stats::IoStats;
use crate::target::{StableBytes, StableBytesMut};

/// How an operation will end. Dropping it cancels an operation that has not begun; one that has
/// goes on, and the engine keeps its memory until it ends.
pub type Pending = Pin<Box<dyn Future<Output = Outcome> + Send>>;

/// Limits on every span of time here, so that instants can be added to.
const TIME_MAX: Duration = Duration::from_secs(24 * 3600);

/// The bounds of an engine. The defaults are those of reliability.md, table B.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EngineSettings {
    /// Operations that the device gets at once. Fast devices need some 32 of 1 MiB.
    pub depth: usize,
    /// Threads of the engine that has threads: its depth.
    pub threads: usize,
    /// Operations that may wait in each lane.
    pub queue_bound: usize,
    /// From here on an operation counts as slow.
    pub soft_limit: Duration,
    /// From here on an operation counts as hung, and its caller is told.
    pub hard_limit: Duration,
}

impl Default for EngineSettings {
    fn default() -> Self {
        Self {
            depth: 32,
            threads: 16,
            queue_bound: 256,
            soft_limit: Duration::from_secs(1),
            hard_limit: Duration::from_secs(5),
        }
    }
}

impl EngineSettings {
    /// The limits of a desk whose engine takes `depth` operations at once.
    pub(crate) fn limits(&self, depth: usize) -> Limits {
        Limits {
            quotas: Quotas::new(depth),
            queue_bound: self.queue_bound.max(1),
            soft: self.soft_limit.min(TIME_MAX),
            hard: self.hard_limit.min(TIME_MAX),
        }
    }
}

/// Reads and writes files. Made by [`choose`](crate::choose); in tests, wrapped to commit faults.
pub trait IoEngine: fmt::Debug + Send + Sync {
    /// Puts an operation into its lane. It is on its way when this returns, whether or not the
    /// future is polled. Operations end in any order: a sync covers the writes whose completion was
    /// seen before it was submitted.
    fn submit(&self, op: Op) -> Pending;

    /// Tells the kernel once about memory that many operations will use, which saves it work with
    /// each of them. Blocks for some 0.1 s per GiB. Operations on memory that is not registered
    /// work as well.
    fn register(&self, segment: &Arc<Segment>) -> Result<Registration, RegisterError>;

    /// What was counted.
    fn stats(&self) -> IoStats;

    /// Takes no more operations, gives back those that have not begun, and waits for the others;
    /// how many the device still has after `wait`. Their memory stays with the engine. Blocks.
    fn close(&self, wait: Duration) -> usize;
}

/// Operations with the types of what they use.
impl dyn IoEngine {
    /// Reads into `range` of `target` from `offset` of the file, until the range is full or the
    /// file ends.
    pub fn read<T: StableBytesMut>(
        &self,
        file: &Arc<DataFile>,
        offset: FileOffset,
        target: T,
        range: Range<usize>,
    ) -> impl Future<Output = Result<Done<T>, Failed<T>>> + Send + use<T> {
        let pending = self.submit(Op::read(file, offset, target, range));
        async move { pending.await.typed() }
    }

    /// Writes `range` of `source` to `offset` of the file.
    pub fn write<T: StableBytes>(
        &self,
        file: &Arc<DataFile>,
        offset: FileOffset,
        source: T,
        range: Range<usize>,
    ) -> impl Future<Output = Result<Done<T>, Failed<T>>> + Send + use<T> {
        let pending = self.submit(Op::write(file, offset, source, range));
        async move { pending.await.typed() }
    }

    /// Makes what was written to the file survive a crash.
    pub fn sync(
        &self,
        file: &Arc<DataFile>,
    ) -> impl Future<Output = Result<Done<()>, Failed<()>>> + Send + use<> {
        let pending = self.submit(Op::sync(file));
        async move { pending.await.typed() }
    }
}

/// Memory that an engine has registered, until this is dropped. The engine keeps the segment alive
/// as long.
#[must_use = "dropping it ends the registration"]
pub struct Registration {
    end: Option<Box<dyn FnOnce() + Send + Sync>>,
}

impl Registration {
    pub(crate) fn new(end: impl FnOnce() + Send + Sync + 'static) -> Self {
        Self { end: Some(Box::new(end)) }
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        if let Some(end) = self.end.take() {
            end();
        }
    }
}

impl fmt::Debug for Registration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registration").finish_non_exhaustive()
    }
}
