//! The seam itself: four methods, and the values that pass through them.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use forebay_shm::{SegmentMap, SlotView};

use crate::error::DeviceError;

/// Somewhere that bytes of slots can be copied to.
pub trait Device: Send + Sync + fmt::Debug {
    /// Prepares the memory of a segment for fast copies, for as long as the result lives. Slow:
    /// once per segment, not per load.
    fn register(&self, segment: &Arc<SegmentMap>) -> Result<Registration, DeviceError>;

    /// Starts to copy `range` of a view to `destination_offset` of this device's memory.
    fn copy(
        &self,
        source: &SlotView,
        range: Range<usize>,
        destination_offset: u64,
        now: Instant,
    ) -> Result<CopyTicket, DeviceError>;

    /// Whether a copy is done, without waiting.
    fn query(&self, ticket: &CopyTicket, now: Instant) -> Result<CopyState, DeviceError>;

    /// Waits until a copy is done. Blocks the thread.
    fn wait(&self, ticket: CopyTicket) -> Result<CopySpan, DeviceError>;
}

/// A segment that is registered with a device until this is dropped.
#[must_use = "dropping it ends the registration"]
pub struct Registration {
    segment: Arc<SegmentMap>,
    release: Option<Box<dyn FnOnce() + Send + Sync>>,
}

impl Registration {
    /// A registration that there is nothing to undo for.
    pub fn of(segment: &Arc<SegmentMap>) -> Self {
        Self { segment: Arc::clone(segment), release: None }
    }

    /// A registration that `release` undoes. The segment stays mapped until after that.
    pub fn with_release(
        segment: &Arc<SegmentMap>,
        release: impl FnOnce() + Send + Sync + 'static,
    ) -> Self {
        Self { segment: Arc::clone(segment), release: Some(Box::new(release)) }
    }

    /// The segment that is registered.
    #[must_use]
    pub fn segment(&self) -> &Arc<SegmentMap> {
        &self.segment
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        if let Some(release) = self.release.take() {
            release();
        }
    }
}

impl fmt::Debug for Registration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Registration(segment {})", self.segment.id())
    }
}

/// A copy that was started. It owns the view it reads from, so the mapping stays while it runs.
#[derive(Debug)]
#[must_use = "a copy is done when `query` or `wait` says so"]
pub struct CopyTicket {
    id: u64,
    source: SlotView,
    range: Range<usize>,
    submitted: Instant,
}

impl CopyTicket {
    /// A ticket for `range` of `source`, if it lies in there. `id` means something only to the
    /// device that gives the ticket.
    pub fn new(
        id: u64,
        source: &SlotView,
        range: Range<usize>,
        submitted: Instant,
    ) -> Result<Self, DeviceError> {
        let len = source.bytes().len();
        if range.start > range.end || range.end > len {
            return Err(DeviceError::OutOfRange { start: range.start, end: range.end, len });
        }
        Ok(Self { id, source: source.clone(), range, submitted })
    }

    /// What the device knows the copy by.
    #[must_use]
    pub fn id(&self) -> u64 {
        self.id
    }

    /// The bytes that are copied.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        self.source.bytes().get(self.range.clone()).unwrap_or_default()
    }

    /// When the copy was started.
    #[must_use]
    pub fn submitted(&self) -> Instant {
        self.submitted
    }
}

/// Where a copy stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CopyState {
    /// The copy engine has not finished it.
    Running,
    /// It is done, and this is when the engine worked on it.
    Done(CopySpan),
}

/// When the copy engine was busy with one copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CopySpan {
    /// When it began.
    pub started: Instant,
    /// When it was done; never before `started`.
    pub finished: Instant,
    /// How many bytes it moved.
    pub bytes: u64,
}
