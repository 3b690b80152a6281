//! One lent slot, and the view of it that a caller gets.
//!
//! [`LentSlot`] pairs a mapping of the bytes with the lease that makes reading them sound; fields
//! drop in order, so the lease always outlives the view. Everything this library lends holds one.

use std::ops::Range;
use std::sync::Arc;

use forebay_device::{DeviceError, Registration};
use forebay_proto::model::{ChunkIndex, Extent, Manifest, ObjectIndex, Tier};
use forebay_shm::SlotView;

use crate::device::load::not_registered;
use crate::outbox::Lease;

/// The bytes of a slot and the right to read them.
#[derive(Debug)]
pub(crate) struct LentSlot {
    view: SlotView,
    /// Of its segment; none without a device.
    registration: Option<Arc<Registration>>,
    _lease: Lease,
}

impl LentSlot {
    pub(crate) fn new(
        view: SlotView,
        registration: Option<Arc<Registration>>,
        lease: Lease,
    ) -> Self {
        Self { view, registration, _lease: lease }
    }

    /// The registration of its segment with the client's device.
    pub(crate) fn registration(&self) -> Result<&Arc<Registration>, DeviceError> {
        self.registration.as_ref().ok_or_else(|| not_registered(self.view.segment().id().0))
    }

    /// A range of the slot. The caller has it from a checked extent, so it is there.
    pub(crate) fn bytes(&self, range: Range<usize>) -> &[u8] {
        self.view.bytes().get(range).unwrap_or_default()
    }

    pub(crate) fn view(&self) -> &SlotView {
        &self.view
    }
}

/// One chunk of a load: a slot with runs of one or more objects. Dropping it releases it.
#[derive(Debug)]
#[must_use = "dropping a chunk gives its bytes back"]
pub struct Chunk {
    pub(crate) slot: Arc<LentSlot>,
    pub(crate) index: ChunkIndex,
    pub(crate) tier: Tier,
    pub(crate) extents: Vec<Extent>,
    pub(crate) manifest: Arc<Manifest>,
}

impl Chunk {
    /// Position in the load's plan. Chunks may come out of order.
    #[must_use]
    pub fn index(&self) -> ChunkIndex {
        self.index
    }

    /// Where the bytes came from for this load.
    #[must_use]
    pub fn tier(&self) -> Tier {
        self.tier
    }

    /// What it holds, in slot order.
    pub fn extents(&self) -> impl ExactSizeIterator<Item = ChunkExtent<'_>> {
        self.extents.iter().map(|extent| ChunkExtent { chunk: self, extent })
    }

    /// Gives the bytes back; what dropping it does.
    pub fn release(self) {}
}

/// A run of one object in a chunk.
#[derive(Debug, Clone, Copy)]
pub struct ChunkExtent<'a> {
    chunk: &'a Chunk,
    extent: &'a Extent,
}

impl<'a> ChunkExtent<'a> {
    /// The object's position in the manifest.
    #[must_use]
    pub fn object(&self) -> ObjectIndex {
        self.extent.object
    }

    /// The object's key.
    #[must_use]
    pub fn key(&self) -> &'a str {
        key_of(&self.chunk.manifest, self.extent.object)
    }

    /// Where in the object the run begins.
    #[must_use]
    pub fn offset(&self) -> u64 {
        self.extent.object_range.start
    }

    /// The bytes, where the daemon wrote them.
    #[must_use]
    pub fn bytes(&self) -> &'a [u8] {
        self.chunk.slot.bytes(self.extent.slot_range.clone())
    }
}

/// The key of an object that a checked message named.
pub(crate) fn key_of(manifest: &Manifest, object: ObjectIndex) -> &str {
    manifest.object(object).map_or("", |entry| &entry.key)
}
