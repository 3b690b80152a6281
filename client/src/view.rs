//! Contiguous runs of an object, borrowed or copied, and what a caller sees of them.
//!
//! A run that lies in one slot is a slice of it. One that spans slots is mapped a second time, slot
//! behind slot, so that it still reads as one slice without a copy. A run that is too long for the
//! window, or whose slots do not line up at pages, is private memory.

use std::ops::Range;
use std::sync::Arc;

use forebay_proto::model::{Manifest, ObjectEntry, ObjectIndex, TensorEntry};
use forebay_shm::ObjectMap;

use crate::chunk::{LentSlot, key_of};

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
    Mapped { map: ObjectMap, range: Range<usize>, _slots: Vec<Arc<LentSlot>> },
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
            Some((map, range)) => {
                let slots = parts.into_iter().map(|part| part.slot).collect();
                Self::Mapped { map, range, _slots: slots }
            }
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
    run: Run,
    manifest: Arc<Manifest>,
    entry: TensorEntry,
}

impl Tensor {
    pub(crate) fn new(run: Run, manifest: Arc<Manifest>, entry: TensorEntry) -> Self {
        Self { run, manifest, entry }
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
    run: Run,
    manifest: Arc<Manifest>,
    index: ObjectIndex,
}

impl ObjectView {
    pub(crate) fn new(run: Run, manifest: Arc<Manifest>, index: ObjectIndex) -> Self {
        Self { run, manifest, index }
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
