//! Contiguous runs of an object, borrowed or copied, and what a caller sees of them.
//!
//! A run that lies in one slot is a slice of it. One that spans slots is mapped a second time, slot
//! behind slot, so that it still reads as one slice without a copy. A run that is too long for the
//! window, or whose slots do not line up at pages, is private memory.

use std::ops::Range;
use std::sync::Arc;

use forebay_device::{CopyJob, CopySource, CopySpan, CopyStream, CopyTicket, DeviceMemory, Rows};
use forebay_proto::model::{Manifest, ObjectEntry, ObjectIndex, TensorEntry};
use forebay_shm::ObjectMap;
use tokio::time::Instant;

use crate::chunk::{LentSlot, key_of};
use crate::device::load::no_device;
use crate::error::ClientError;

/// Part of a run, in one slot.
#[derive(Debug)]
pub(crate) struct Part {
    pub(crate) slot: Arc<LentSlot>,
    /// Where in the object.
    pub(crate) object_range: Range<u64>,
    /// Where in the slot; as long.
    pub(crate) slot_range: Range<usize>,
}

/// Contiguous bytes.
#[derive(Debug)]
pub(crate) enum Run {
    /// In one slot.
    Slot(Part),
    /// In several, mapped side by side. The mapping drops before the leases.
    Mapped { map: ObjectMap, range: Range<usize>, parts: Vec<Part> },
    /// In private memory.
    Private(Vec<u8>),
}

impl Run {
    /// Joins parts that follow each other without a gap.
    pub(crate) fn join(mut parts: Vec<Part>) -> Self {
        if parts.len() == 1
            && let Some(part) = parts.pop()
        {
            return Self::Slot(part);
        }
        match side_by_side(&parts) {
            Some((map, range)) => Self::Mapped { map, range, parts },
            None => {
                let bytes: Vec<&[u8]> =
                    parts.iter().map(|part| part.slot.bytes(part.slot_range.clone())).collect();
                Self::Private(bytes.concat())
            }
        }
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        match self {
            Self::Slot(part) => part.slot.bytes(part.slot_range.clone()),
            Self::Mapped { map, range, .. } => map.bytes(range.clone()).unwrap_or_default(),
            Self::Private(bytes) => bytes,
        }
    }

    fn is_copy(&self) -> bool {
        matches!(self, Self::Private(_))
    }

    /// Starts to copy all of it.
    fn copy_to(
        self: &Arc<Self>,
        stream: &dyn CopyStream,
        memory: &Arc<DeviceMemory>,
        offset: u64,
    ) -> Result<RunCopy, ClientError> {
        let mut copy = RunCopy { tickets: Vec::new(), _run: Arc::clone(self) };
        match self.start_copies(stream, memory, offset, &mut copy.tickets) {
            Ok(()) => Ok(copy),
            Err(error) => {
                // What has begun reads slots that go back with this.
                copy.wait(stream).ok();
                Err(error)
            }
        }
    }

    fn start_copies(
        &self,
        stream: &dyn CopyStream,
        memory: &Arc<DeviceMemory>,
        offset: u64,
        tickets: &mut Vec<CopyTicket>,
    ) -> Result<(), ClientError> {
        let now = || Instant::now().into_std();
        let parts = match self {
            Self::Slot(part) => std::slice::from_ref(part),
            Self::Mapped { parts, .. } => parts,
            Self::Private(bytes) => {
                let rows = Rows::range(0..bytes.len(), offset);
                let job = CopyJob::new(CopySource::Private(bytes), memory, rows)?;
                tickets.push(stream.copy(job, now())?);
                return Ok(());
            }
        };
        let mut offset = offset;
        for part in parts {
            let registration = part.slot.registration().map_err(|_unregistered| no_device())?;
            let source = CopySource::Slot { view: part.slot.view(), registration };
            let job = CopyJob::new(source, memory, Rows::range(part.slot_range.clone(), offset))?;
            tickets.push(stream.copy(job, now())?);
            offset += part.slot_range.len() as u64;
        }
        Ok(())
    }
}

/// Copies of a tensor, or an object, that were started on a stream of the caller's. It holds the
/// leases that the copies read: keep it until all of them are done.
#[derive(Debug)]
#[must_use = "dropping it gives back slots that the copies may still read: wait first"]
pub struct RunCopy {
    tickets: Vec<CopyTicket>,
    _run: Arc<Run>,
}

impl RunCopy {
    /// The copies, in the order in which they were started.
    pub fn tickets(&self) -> &[CopyTicket] {
        &self.tickets
    }

    /// Waits until all are done, also those after one that failed. Blocks the thread. `stream` is
    /// the one that they were started on.
    pub fn wait(self, stream: &dyn CopyStream) -> Result<Vec<CopySpan>, ClientError> {
        let spans: Vec<_> = self.tickets.into_iter().map(|ticket| stream.wait(ticket)).collect();
        Ok(spans.into_iter().collect::<Result<_, _>>()?)
    }
}

/// Maps slots so that their parts touch. Every part but the first must begin with its slot, and
/// where one ends a page must; else none, as when the kernel has no room for another mapping.
fn side_by_side(parts: &[Part]) -> Option<(ObjectMap, Range<usize>)> {
    let (first, rest) = parts.split_first()?;
    if rest.iter().any(|part| part.slot_range.start != 0) {
        return None;
    }
    let len = parts.iter().map(|part| part.slot_range.end).sum();
    let map = ObjectMap::reserve(len).ok()?;
    let mut place = 0;
    for part in parts {
        let view = part.slot.view();
        let len = part.slot_range.end;
        map.place(place, view.segment(), view.slot(), view.generation(), len).ok()?;
        place += len;
    }
    let range = first.slot_range.start..len;
    map.bytes(range.clone())?;
    Some((map, range))
}

/// One tensor. Its bytes can be read for as long as it lives; dropping it releases them.
///
/// ```compile_fail,E0505
/// # fn example(tensor: forebay_client::Tensor) {
/// let bytes = tensor.bytes();
/// tensor.release();
/// println!("{}", bytes[0]); // the lease is gone: does not compile
/// # }
/// ```
#[derive(Debug)]
#[must_use = "dropping a tensor gives its bytes back"]
pub struct Tensor {
    run: Arc<Run>,
    manifest: Arc<Manifest>,
    entry: TensorEntry,
}

impl Tensor {
    pub(crate) fn new(run: Run, manifest: Arc<Manifest>, entry: TensorEntry) -> Self {
        Self { run: Arc::new(run), manifest, entry }
    }

    /// Starts to copy its data to `memory`, from `offset` on, on a stream of the caller's own; for
    /// a client made by [`Client::with_device`](crate::Client::with_device). The tensor may be
    /// dropped before the copies are done, the result may not.
    pub fn copy_to(
        &self,
        stream: &dyn CopyStream,
        memory: &Arc<DeviceMemory>,
        offset: u64,
    ) -> Result<RunCopy, ClientError> {
        self.run.copy_to(stream, memory, offset)
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.entry.name
    }

    /// Element type as the object's header writes it: `BF16`, `F32`, ...
    #[must_use]
    pub fn dtype(&self) -> &str {
        &self.entry.dtype
    }

    /// Dimensions, outermost first.
    #[must_use]
    pub fn shape(&self) -> &[u64] {
        &self.entry.shape
    }

    /// The key of the object that holds it.
    #[must_use]
    pub fn object_key(&self) -> &str {
        key_of(&self.manifest, self.entry.object)
    }

    /// Its data, in row-major order as stored.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        self.run.bytes()
    }

    /// Whether the data was copied to private memory because the load's window is too small to
    /// lend it. Such a tensor holds no lease.
    #[must_use]
    pub fn is_copy(&self) -> bool {
        self.run.is_copy()
    }

    /// Gives the bytes back; what dropping it does.
    pub fn release(self) {}
}

/// One whole object. Its bytes can be read for as long as it lives; dropping it releases them.
#[derive(Debug)]
#[must_use = "dropping an object gives its bytes back"]
pub struct ObjectView {
    run: Arc<Run>,
    manifest: Arc<Manifest>,
    index: ObjectIndex,
}

impl ObjectView {
    pub(crate) fn new(run: Run, manifest: Arc<Manifest>, index: ObjectIndex) -> Self {
        Self { run: Arc::new(run), manifest, index }
    }

    /// Starts to copy it to `memory`; see [`Tensor::copy_to`].
    pub fn copy_to(
        &self,
        stream: &dyn CopyStream,
        memory: &Arc<DeviceMemory>,
        offset: u64,
    ) -> Result<RunCopy, ClientError> {
        self.run.copy_to(stream, memory, offset)
    }

    /// Its key, relative to the checkpoint.
    #[must_use]
    pub fn key(&self) -> &str {
        key_of(&self.manifest, self.index)
    }

    /// Its position in the manifest.
    #[must_use]
    pub fn index(&self) -> ObjectIndex {
        self.index
    }

    /// What the manifest says about it.
    #[must_use]
    pub fn entry(&self) -> Option<&ObjectEntry> {
        self.manifest.object(self.index)
    }

    /// Its bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        self.run.bytes()
    }

    /// Whether the bytes were copied to private memory because the load's window is too small to
    /// lend them. Such an object holds no lease.
    #[must_use]
    pub fn is_copy(&self) -> bool {
        self.run.is_copy()
    }

    /// Gives the bytes back; what dropping it does.
    pub fn release(self) {}
}
