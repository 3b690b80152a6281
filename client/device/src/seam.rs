//! The seam itself: two traits of at most four methods, and the values that pass through them.
//!
//! A [`Device`] registers segments, has memory, and opens [`CopyStream`]s; a stream copies. Copies
//! of one stream run one after another, those of several streams side by side.
//!
//! Who keeps what alive: a stream owns, for every copy under way, the view it reads, the
//! registration of that view's segment and the memory it writes ([`KeptAlive`]). They end when
//! [`CopyStream::query`] or [`CopyStream::wait`] has said that the copy is done, or with the stream,
//! which waits for its copies when it is dropped. So no order of drops makes an engine read memory
//! that is gone. The *lease* on a slot is the caller's: it must be held until the copy is done.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use forebay_shm::{SegmentMap, SlotView};

use crate::error::DeviceError;
use crate::spec::DeviceSpec;

/// Somewhere that bytes of slots can be copied to.
pub trait Device: Send + Sync + fmt::Debug {
    /// What it is, as found when it was opened.
    fn info(&self) -> &DeviceInfo;

    /// Prepares the memory of a segment for fast copies, for as long as the result lives. Slow
    /// (some 100 ms for 256 MiB): once per segment, not per load. A driver that does not take the
    /// memory is no error: the registration then says that copies go by a staging ring, and why.
    fn register(&self, segment: &Arc<SegmentMap>) -> Result<Registration, DeviceError>;

    /// Memory of the device, with undefined contents, aligned to at least 256 bytes.
    fn allocate(&self, bytes: u64) -> Result<DeviceMemory, DeviceError>;

    /// A new stream of copies.
    fn stream(&self) -> Result<Box<dyn CopyStream>, DeviceError>;
}

/// A queue of copies that run in the order in which they were started.
pub trait CopyStream: Send + Sync + fmt::Debug {
    /// Starts a copy. A device that stages may take the time of a copy in host memory for this, and
    /// waits if its ring is full; others come back at once.
    fn copy(&self, job: CopyJob<'_>, now: Instant) -> Result<CopyTicket, DeviceError>;

    /// Whether a copy is done, without waiting. A copy that failed is an error, once.
    fn query(&self, ticket: &CopyTicket, now: Instant) -> Result<CopyState, DeviceError>;

    /// Waits until a copy is done. Blocks the thread. After an error no engine reads the source.
    fn wait(&self, ticket: CopyTicket) -> Result<CopySpan, DeviceError>;
}

/// What a device is.
#[derive(Debug, Clone, PartialEq)]
pub struct DeviceInfo {
    /// The way a person names it.
    pub spec: DeviceSpec,
    /// What its driver calls it.
    pub name: String,
    /// Its PCI address as the driver prints it, for placing slots near it; none if it has none.
    pub pci: Option<String>,
    /// How bytes of segments get there, as a probe found when the device was opened.
    pub path: MemoryPath,
}

/// How bytes of a segment get to a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MemoryPath {
    /// By the copy engine, straight from the mapping, which is registered read-only.
    RegisteredReadOnly,
    /// By the copy engine, straight from the mapping; the driver took it without being told that it
    /// is read-only.
    Registered,
    /// By a copy of the CPU into pinned memory of this process, and from there by the copy engine.
    Staged {
        /// Why the mapping itself could not be registered.
        why: String,
    },
    /// By the CPU alone: there is no copy engine.
    Cpu,
}

impl MemoryPath {
    /// Its name in reports.
    #[must_use]
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::RegisteredReadOnly => "registered_read_only",
            Self::Registered => "registered",
            Self::Staged { .. } => "staged",
            Self::Cpu => "cpu",
        }
    }
}

/// A segment that is registered with a device until this is dropped.
#[must_use = "dropping it ends the registration"]
pub struct Registration {
    segment: Arc<SegmentMap>,
    path: MemoryPath,
    release: Option<Box<dyn FnOnce() + Send + Sync>>,
}

impl Registration {
    /// A registration that there is nothing to undo for.
    pub fn of(segment: &Arc<SegmentMap>, path: MemoryPath) -> Self {
        Self { segment: Arc::clone(segment), path, release: None }
    }

    /// A registration that `release` undoes. The segment stays mapped until after that.
    pub fn with_release(
        segment: &Arc<SegmentMap>,
        path: MemoryPath,
        release: impl FnOnce() + Send + Sync + 'static,
    ) -> Self {
        Self { segment: Arc::clone(segment), path, release: Some(Box::new(release)) }
    }

    /// The segment that is registered.
    #[must_use]
    pub fn segment(&self) -> &Arc<SegmentMap> {
        &self.segment
    }

    /// How copies out of it go.
    #[must_use]
    pub fn path(&self) -> &MemoryPath {
        &self.path
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
        write!(f, "Registration(segment {}, {})", self.segment.id(), self.path.as_str())
    }
}

/// Memory of a device. Allocated memory is freed when this is dropped.
#[must_use = "dropping it frees the memory"]
pub struct DeviceMemory {
    device: DeviceSpec,
    address: u64,
    bytes: u64,
    release: Option<Box<dyn FnOnce() + Send + Sync>>,
}

impl DeviceMemory {
    /// Memory that a device allocated and that `release` frees.
    pub(crate) fn allocated(
        device: DeviceSpec,
        address: u64,
        bytes: u64,
        release: impl FnOnce() + Send + Sync + 'static,
    ) -> Self {
        Self { device, address, bytes, release: Some(Box::new(release)) }
    }

    /// Memory of the caller's own, to copy into. It is not freed when this is dropped.
    ///
    /// # Safety
    ///
    /// `address..address + bytes` is memory of `device` (for the host device: of this process) that
    /// can be written, and stays so and is used by nobody else until this value is dropped.
    #[expect(unsafe_code, reason = "the caller vouches for memory that this crate did not make")]
    pub unsafe fn borrowed(device: &dyn Device, address: u64, bytes: u64) -> Self {
        Self { device: device.info().spec, address, bytes, release: None }
    }

    /// Where it begins, as kernels of the device see it.
    #[must_use]
    pub fn address(&self) -> u64 {
        self.address
    }

    /// How long it is.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The device that it is memory of.
    #[must_use]
    pub fn device(&self) -> DeviceSpec {
        self.device
    }
}

impl Drop for DeviceMemory {
    fn drop(&mut self) {
        if let Some(release) = self.release.take() {
            release();
        }
    }
}

impl fmt::Debug for DeviceMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DeviceMemory({}, {} bytes)", self.device, self.bytes)
    }
}

/// What a copy reads.
#[derive(Debug, Clone, Copy)]
pub enum CopySource<'a> {
    /// A granted slot.
    Slot {
        /// The slot.
        view: &'a SlotView,
        /// Of its segment, with the device that copies.
        registration: &'a Arc<Registration>,
    },
    /// Memory of this process, read before the copy call returns.
    Private(&'a [u8]),
}

impl CopySource<'_> {
    fn len(&self) -> usize {
        match self {
            Self::Slot { view, .. } => view.bytes().len(),
            Self::Private(bytes) => bytes.len(),
        }
    }
}

/// Which bytes a copy takes: `rows` rows of `row_bytes`, `source_pitch` apart in the source and
/// `destination_pitch` apart in the destination. One row is a plain range.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rows {
    /// Where the first row begins in the source.
    pub source_start: usize,
    /// Where the first row begins in the destination.
    pub destination_start: u64,
    /// Bytes of a row.
    pub row_bytes: usize,
    /// How many rows.
    pub rows: usize,
    /// From the start of a row to that of the next, in the source.
    pub source_pitch: usize,
    /// From the start of a row to that of the next, in the destination.
    pub destination_pitch: usize,
}

impl Rows {
    /// One plain range.
    #[must_use]
    pub fn range(source: Range<usize>, destination_start: u64) -> Self {
        let row_bytes = source.end.saturating_sub(source.start);
        Self {
            source_start: source.start,
            destination_start,
            row_bytes,
            rows: 1,
            source_pitch: row_bytes,
            destination_pitch: row_bytes,
        }
    }

    /// Bytes that move.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        (self.rows as u64).saturating_mul(self.row_bytes as u64)
    }

    /// One past the last byte read; none if that is no number, or rows overlap.
    fn source_end(&self) -> Option<u64> {
        let last = (self.source_pitch as u64).checked_mul(self.rows.saturating_sub(1) as u64)?;
        let end = (self.source_start as u64).checked_add(last)?.checked_add(self.row_bytes as u64);
        end.filter(|_| self.rows <= 1 || self.source_pitch >= self.row_bytes)
    }

    /// One past the last byte written; none if that is no number, or rows overlap.
    fn destination_end(&self) -> Option<u64> {
        let pitch = self.destination_pitch as u64;
        let last = pitch.checked_mul(self.rows.saturating_sub(1) as u64)?;
        let end = self.destination_start.checked_add(last)?.checked_add(self.row_bytes as u64);
        end.filter(|_| self.rows <= 1 || self.destination_pitch >= self.row_bytes)
    }
}

/// A copy that stays inside of its source and its destination: the only way to make one checks it.
#[derive(Debug, Clone, Copy)]
pub struct CopyJob<'a> {
    source: CopySource<'a>,
    destination: &'a Arc<DeviceMemory>,
    rows: Rows,
}

impl<'a> CopyJob<'a> {
    /// A copy of `rows` of `source` into `destination`, if they lie in there and, for a slot, its
    /// segment is the registered one.
    pub fn new(
        source: CopySource<'a>,
        destination: &'a Arc<DeviceMemory>,
        rows: Rows,
    ) -> Result<Self, DeviceError> {
        let outside = |what, bound| DeviceError::OutOfRange { what, rows, bound };
        let len = source.len() as u64;
        if rows.source_end().is_none_or(|end| end > len) {
            return Err(outside("source", len));
        }
        let bytes = destination.bytes();
        if rows.destination_end().is_none_or(|end| end > bytes) {
            return Err(outside("destination", bytes));
        }
        if let CopySource::Slot { view, registration } = source
            && !Arc::ptr_eq(view.segment(), registration.segment())
        {
            return Err(DeviceError::NotRegistered { segment: view.segment().id().0 });
        }
        Ok(Self { source, destination, rows })
    }

    /// What it reads.
    #[must_use]
    pub fn source(&self) -> CopySource<'a> {
        self.source
    }

    /// What it writes to.
    #[must_use]
    pub fn destination(&self) -> &'a Arc<DeviceMemory> {
        self.destination
    }

    /// Which bytes.
    #[must_use]
    pub fn rows(&self) -> Rows {
        self.rows
    }

    /// What has to outlive the copy.
    #[must_use]
    pub fn kept_alive(&self) -> KeptAlive {
        let source = match self.source {
            CopySource::Slot { view, registration } => {
                Some((view.clone(), Arc::clone(registration)))
            }
            CopySource::Private(_) => None,
        };
        KeptAlive { _source: source, _destination: Arc::clone(self.destination) }
    }
}

/// Holds the source and the destination of a copy that is under way.
#[derive(Debug)]
pub struct KeptAlive {
    _source: Option<(SlotView, Arc<Registration>)>,
    _destination: Arc<DeviceMemory>,
}

/// A copy that was started.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "a copy is done when `query` or `wait` says so"]
pub struct CopyTicket {
    id: u64,
    bytes: u64,
    submitted: Instant,
}

impl CopyTicket {
    /// The ticket of a job. `id` means something only to the stream that gives it.
    pub fn new(id: u64, job: &CopyJob<'_>, submitted: Instant) -> Self {
        Self { id, bytes: job.rows.bytes(), submitted }
    }

    /// What the stream knows the copy by.
    #[must_use]
    pub fn id(&self) -> u64 {
        self.id
    }

    /// How many bytes it moves.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// When it was started.
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
