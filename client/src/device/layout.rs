//! Where the bytes of a load go on a device: pure arithmetic, done once before the first copy.
//!
//! ```text
//!   manifest + selection + Layout ──► Plan { items, regions, memories }
//!   extent of a granted chunk ──► Plan::copies ──► rows of a slot to rows of a memory
//! ```
//!
//! An *item* is what the caller gets: a tensor, a slice of one, or an object without tensors. A
//! *region* is a range of an object that is copied to one place: an item, or a whole object with
//! all its tensors. Every copy says which items it brings how many bytes of, so that an item is
//! known to be complete whatever the order in which copies end.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::sync::Arc;

use forebay_device::{DeviceMemory, Rows};
use forebay_proto::model::{Extent, Manifest, ObjectIndex, TensorEntry};
use forebay_proto::{BadShard, Reason, Shard, Slice};

use crate::error::ClientError;
use crate::options::selects;

/// What tensors that share an allocation are aligned to.
const ALIGN: u64 = 256;

/// How a load lies on its device.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Layout {
    /// One allocation per object, as the object is; or, if the request selects tensors or slices,
    /// with only those, one after another at multiples of 256 bytes.
    PerObject,
    /// One allocation per tensor. Objects without tensors are left out.
    PerTensor,
    /// Memory of the caller's own. What it does not name is not copied.
    Into(Vec<Target>),
}

/// The place for one tensor, or one object.
#[derive(Debug, Clone)]
pub struct Target {
    /// The tensor's name, or the object's key if there is no such tensor.
    pub name: String,
    /// The memory, of the device of the load.
    pub memory: Arc<DeviceMemory>,
    /// Where in it the bytes begin.
    pub offset: u64,
}

/// Which part of a checkpoint a load asked for.
#[derive(Debug, Clone, Default)]
pub(crate) struct Selection {
    /// Globs over tensor names.
    pub(crate) tensors: Vec<String>,
    /// Globs over object keys.
    pub(crate) objects: Vec<String>,
    /// Which slice of each tensor.
    pub(crate) shard: Option<Shard>,
}

/// Something that the caller gets when all its bytes are there.
#[derive(Debug)]
pub(crate) struct Item {
    pub(crate) name: String,
    pub(crate) dtype: String,
    /// Of the slice, if it is one.
    pub(crate) shape: Vec<u64>,
    pub(crate) bytes: u64,
    pub(crate) memory: usize,
    pub(crate) offset: u64,
    /// Where in its object.
    range: Range<u64>,
}

/// Memory that a plan needs.
#[derive(Debug, Clone)]
pub(crate) enum Memory {
    /// So many bytes.
    Allocate(u64),
    /// The caller's.
    Given(Arc<DeviceMemory>),
}

/// A range of an object that goes to one place.
#[derive(Debug)]
struct Region {
    object: ObjectIndex,
    range: Range<u64>,
    /// The largest end of this and all regions before it in the object.
    reach: u64,
    /// What of it is copied.
    slice: Slice,
    memory: usize,
    offset: u64,
    /// Whose turn it is first; none: by chunk.
    order: Option<u64>,
    /// The items in it: one that it is, or several that it holds.
    items: Range<usize>,
}

/// One copy out of a slot.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct PlannedCopy {
    pub(crate) rows: Rows,
    pub(crate) memory: usize,
    /// Whose turn it is first; none: by chunk.
    pub(crate) order: Option<u64>,
    /// Items, and how many bytes of each this copy brings.
    pub(crate) credits: Vec<(usize, u64)>,
}

/// Where everything goes.
#[derive(Debug, Default)]
pub(crate) struct Plan {
    pub(crate) items: Vec<Item>,
    pub(crate) memories: Vec<Memory>,
    /// By object, then start.
    regions: Vec<Region>,
}

impl Selection {
    /// Whether only some tensors, or slices of them, come.
    pub(crate) fn is_of_tensors(&self) -> bool {
        !self.tensors.is_empty() || self.shard.is_some()
    }

    fn object(&self, manifest: &Manifest, index: ObjectIndex) -> bool {
        manifest.object(index).is_some_and(|object| selects(&self.objects, &object.key))
    }

    /// Whether a tensor, or a slice of it, comes.
    pub(crate) fn tensor(&self, manifest: &Manifest, tensor: &TensorEntry) -> bool {
        selects(&self.tensors, &tensor.name) && self.object(manifest, tensor.object)
    }

    /// What of a tensor comes.
    pub(crate) fn slice(&self, tensor: &TensorEntry) -> Result<Slice, BadShard> {
        let TensorEntry { name, dtype, shape, .. } = tensor;
        match &self.shard {
            Some(shard) => shard.slice(name, dtype, shape, tensor.bytes()),
            None => Ok(Slice::whole(shape, tensor.bytes())),
        }
    }
}

impl Plan {
    /// Lays out what `selection` selects.
    pub(crate) fn new(
        manifest: &Manifest,
        selection: &Selection,
        layout: Layout,
    ) -> Result<Self, ClientError> {
        let mut plan = Self::default();
        match layout {
            Layout::PerObject if selection.is_of_tensors() => plan.pack(manifest, selection)?,
            Layout::PerObject => plan.mirror(manifest, selection),
            Layout::PerTensor => plan.spread(manifest, selection)?,
            Layout::Into(targets) => plan.aim(manifest, selection, targets)?,
        }
        plan.regions.sort_by_key(|region| (region.object, region.range.start));
        let mut before: Option<(ObjectIndex, u64)> = None;
        for region in &mut plan.regions {
            let reach = before.filter(|(object, _)| *object == region.object).map_or(0, |b| b.1);
            region.reach = region.range.end.max(reach);
            before = Some((region.object, region.reach));
        }
        Ok(plan)
    }

    /// One allocation per object with the selected tensors in it, in the order of the object.
    fn pack(&mut self, manifest: &Manifest, selection: &Selection) -> Result<(), ClientError> {
        let mut ends: BTreeMap<ObjectIndex, (usize, u64)> = BTreeMap::new();
        let mut tensors = selected(manifest, selection);
        tensors.sort_by_key(|tensor| (tensor.object, tensor.range.start));
        for tensor in tensors {
            let slice = selection.slice(tensor).map_err(bad_shard)?;
            let next = self.memories.len();
            let (memory, end) = ends.entry(tensor.object).or_insert((next, 0));
            if *memory == next {
                self.memories.push(Memory::Allocate(0));
            }
            let (memory, offset) = (*memory, end.next_multiple_of(ALIGN));
            *end = offset + slice.bytes();
            if let Some(size) = self.memories.get_mut(memory) {
                *size = Memory::Allocate(*end);
            }
            self.add_tensor(tensor, slice, (memory, offset), None);
        }
        Ok(())
    }

    /// One allocation per object, as the object is.
    fn mirror(&mut self, manifest: &Manifest, selection: &Selection) {
        let mut by_object: BTreeMap<ObjectIndex, Vec<&TensorEntry>> = BTreeMap::new();
        for tensor in manifest.tensors() {
            by_object.entry(tensor.object).or_default().push(tensor);
        }
        for (index, object) in manifest.objects().iter().enumerate() {
            let index = ObjectIndex(index);
            if !selection.object(manifest, index) {
                continue;
            }
            let (memory, first) = (self.memories.len(), self.items.len());
            self.memories.push(Memory::Allocate(object.bytes));
            let mut tensors = by_object.remove(&index).unwrap_or_default();
            tensors.sort_by_key(|tensor| tensor.range.start);
            for tensor in &tensors {
                let slice = Slice::whole(&tensor.shape, tensor.bytes());
                self.items.push(item_of(tensor, &slice, (memory, tensor.range.start)));
            }
            if tensors.is_empty() {
                self.items.push(item_of_object(&object.key, object.bytes, (memory, 0)));
            }
            let items = first..self.items.len();
            self.add_object(index, object.bytes, (memory, 0), items, None);
        }
    }

    /// One allocation per tensor.
    fn spread(&mut self, manifest: &Manifest, selection: &Selection) -> Result<(), ClientError> {
        if manifest.tensors().is_empty() {
            let message = "no tensors were found in this checkpoint: load it with one allocation \
                           per object, or into memory by object key";
            return Err(ClientError::new(Reason::BadRequest, message));
        }
        for tensor in selected(manifest, selection) {
            let slice = selection.slice(tensor).map_err(bad_shard)?;
            let memory = self.memories.len();
            self.memories.push(Memory::Allocate(slice.bytes()));
            self.add_tensor(tensor, slice, (memory, 0), None);
        }
        Ok(())
    }

    /// Into the caller's memory, in the order in which it names what it wants.
    fn aim(
        &mut self,
        manifest: &Manifest,
        selection: &Selection,
        targets: Vec<Target>,
    ) -> Result<(), ClientError> {
        let tensors = selected(manifest, selection);
        let tensors: HashMap<&str, &TensorEntry> =
            tensors.into_iter().map(|tensor| (tensor.name.as_str(), tensor)).collect();
        let objects = manifest.objects().iter().enumerate();
        let objects: HashMap<&str, usize> =
            objects.map(|(index, object)| (object.key.as_str(), index)).collect();
        let object = |name: &str| {
            let index = objects.get(name).copied().map(ObjectIndex)?;
            let whole = !selection.is_of_tensors() && selection.object(manifest, index);
            manifest.object(index).filter(|_| whole).map(|object| (index, object))
        };
        for (order, target) in (0_u64..).zip(targets) {
            let place = (self.memories.len(), target.offset);
            let room = target.memory.bytes().checked_sub(target.offset);
            self.memories.push(Memory::Given(target.memory));
            let bytes = if let Some(tensor) = tensors.get(target.name.as_str()) {
                let slice = selection.slice(tensor).map_err(bad_shard)?;
                let bytes = slice.bytes();
                self.add_tensor(tensor, slice, place, Some(order));
                bytes
            } else {
                let found = object(&target.name).ok_or_else(|| not_selected(&target.name))?;
                let (index, object) = found;
                self.items.push(item_of_object(&object.key, object.bytes, place));
                let items = self.items.len() - 1..self.items.len();
                self.add_object(index, object.bytes, place, items, Some(order));
                object.bytes
            };
            if room.is_none_or(|room| room < bytes) {
                return Err(too_small(&target.name, bytes, room.unwrap_or(0)));
            }
        }
        Ok(())
    }

    fn add_tensor(
        &mut self,
        tensor: &TensorEntry,
        slice: Slice,
        place: (usize, u64),
        order: Option<u64>,
    ) {
        let item = self.items.len();
        self.items.push(item_of(tensor, &slice, place));
        self.regions.push(Region {
            object: tensor.object,
            range: tensor.range.clone(),
            reach: 0,
            slice,
            memory: place.0,
            offset: place.1,
            order,
            items: item..item + 1,
        });
    }

    fn add_object(
        &mut self,
        object: ObjectIndex,
        bytes: u64,
        place: (usize, u64),
        items: Range<usize>,
        order: Option<u64>,
    ) {
        let slice = Slice::whole(&[bytes], bytes);
        let (memory, offset) = place;
        let range = 0..bytes;
        self.regions.push(Region { object, range, reach: 0, slice, memory, offset, order, items });
    }

    /// The copies of what an extent holds, in the order of the object.
    pub(crate) fn copies(&self, extent: &Extent) -> Vec<PlannedCopy> {
        let Range { start, end } = extent.object_range;
        let object = extent.object;
        let from =
            self.regions.partition_point(|region| (region.object, region.reach) <= (object, start));
        let to = self
            .regions
            .partition_point(|region| (region.object, region.range.start) < (object, end));
        let regions = self.regions.get(from..to).unwrap_or_default();
        regions.iter().flat_map(|region| self.copies_of(region, extent)).collect()
    }

    fn copies_of(&self, region: &Region, extent: &Extent) -> Vec<PlannedCopy> {
        let start = region.range.start.max(extent.object_range.start);
        let end = region.range.end.min(extent.object_range.end);
        if start >= end {
            return Vec::new();
        }
        let within = start - region.range.start..end - region.range.start;
        let parts = region.slice.parts(within);
        let copy = |part: forebay_proto::SlicePart| {
            let object_start = region.range.start + part.tensor_start;
            let place = extent.slot_range.start as u64 + object_start - extent.object_range.start;
            let object_end = object_start + (part.rows - 1) * region.slice.pitch + part.row_bytes;
            let rows = Rows {
                source_start: usize_of(place),
                destination_start: region.offset + part.slice_start,
                row_bytes: usize_of(part.row_bytes),
                rows: usize_of(part.rows),
                source_pitch: usize_of(pitch(&part, region.slice.pitch)),
                destination_pitch: usize_of(pitch(&part, region.slice.run_bytes)),
            };
            PlannedCopy {
                rows,
                memory: region.memory,
                order: region.order,
                credits: self.credits(region, object_start..object_end, rows.bytes()),
            }
        };
        parts.map(copy).collect()
    }

    /// Which items a copy of `range` of the object brings bytes of.
    fn credits(&self, region: &Region, range: Range<u64>, bytes: u64) -> Vec<(usize, u64)> {
        if region.items.len() == 1
            && self.items.get(region.items.start).is_some_and(|item| item.range == region.range)
        {
            return vec![(region.items.start, bytes)];
        }
        let items = self.items.get(region.items.clone()).unwrap_or_default();
        let begun = items.partition_point(|item| item.range.start < range.end);
        let items = items.iter().take(begun).enumerate();
        let overlap = |item: &Item| {
            let end = item.range.end.min(range.end);
            end.saturating_sub(item.range.start.max(range.start))
        };
        let credits = items.map(|(index, item)| (region.items.start + index, overlap(item)));
        credits.filter(|(_, bytes)| *bytes > 0).collect()
    }
}

/// The tensors of which something comes.
pub(crate) fn selected<'a>(manifest: &'a Manifest, selection: &Selection) -> Vec<&'a TensorEntry> {
    manifest.tensors().iter().filter(|tensor| selection.tensor(manifest, tensor)).collect()
}

fn item_of(tensor: &TensorEntry, slice: &Slice, (memory, offset): (usize, u64)) -> Item {
    Item {
        name: tensor.name.clone(),
        dtype: tensor.dtype.clone(),
        shape: slice.shape.clone(),
        bytes: slice.bytes(),
        memory,
        offset,
        range: tensor.range.clone(),
    }
}

/// An object, as a row of bytes.
fn item_of_object(key: &str, bytes: u64, (memory, offset): (usize, u64)) -> Item {
    Item {
        name: key.to_owned(),
        dtype: "U8".to_owned(),
        shape: vec![bytes],
        bytes,
        memory,
        offset,
        range: 0..bytes,
    }
}

/// A single row has no pitch but its own length.
fn pitch(part: &forebay_proto::SlicePart, pitch: u64) -> u64 {
    match part.rows {
        1 => part.row_bytes,
        _ => pitch,
    }
}

/// A length inside of a slot: it fits.
fn usize_of(bytes: u64) -> usize {
    usize::try_from(bytes).unwrap_or(usize::MAX)
}

pub(crate) fn bad_shard(error: BadShard) -> ClientError {
    ClientError::new(Reason::BadRequest, error.to_string())
}

fn not_selected(name: &str) -> ClientError {
    let message = format!("there is memory for {name:?}, which is no tensor that the load selects");
    ClientError::new(Reason::UnknownTensor, message)
}

fn too_small(name: &str, bytes: u64, room: u64) -> ClientError {
    let message = format!("the memory for {name:?} has {room} bytes, {bytes} are needed");
    ClientError::new(Reason::BadRequest, message)
}

#[cfg(test)]
#[path = "layout_tests.rs"]
mod tests;
