//! Puts tensors, or whole objects, together from the chunks they lie in.
//!
//! Chunks arrive in any order. A wanted item collects its parts until it has all its bytes, then
//! it is ready. Leases are held by the parts: a chunk in which nothing is wanted, or nothing any
//! more, goes back at once.
//!
//! Progress with a small window: an item is lent only if the chunks it spans are at most half of
//! the window, and is copied out chunk by chunk otherwise. The daemon fills the window in plan
//! order, so the first incomplete item gets its chunks as long as the caller holds no more than
//! one other item. Loads share the pool, though, and each may hold what another waits for: when
//! nothing comes for a while, [`Gather::spill`] copies what has come and gives it back.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

use forebay_proto::Reason;
use forebay_proto::model::{
    Extent, Malformed, Manifest, ObjectEntry, ObjectIndex, Opened, TensorEntry,
};

use crate::chunk::{Chunk, LentSlot};
use crate::error::ClientError;
use crate::view::{Part, Run};

/// Something wanted: a range of an object.
#[derive(Debug)]
struct Item {
    /// What the caller knows it by.
    id: usize,
    object: ObjectIndex,
    range: Range<u64>,
    /// The largest end of this and all items before it in the object.
    reach: u64,
    state: State,
}

#[derive(Debug)]
enum State {
    Waiting,
    /// Parts in no order, and their length.
    Lending(Vec<Part>, u64),
    /// Private memory, and how much of it is filled.
    Copying(Vec<u8>, u64),
    Done,
}

/// Collects items.
#[derive(Debug)]
pub(crate) struct Gather {
    /// By object, then start.
    items: Vec<Item>,
    ready: VecDeque<(usize, Run)>,
    missing: usize,
    chunk_bytes: u64,
    /// An item that spans more chunks is copied.
    lent_chunks_max: u64,
}

impl Gather {
    /// Wants all tensors that `wanted` says yes to; ids are positions in the manifest.
    pub(crate) fn tensors(
        manifest: &Manifest,
        opened: &Opened,
        wanted: impl Fn(&TensorEntry) -> bool,
    ) -> Self {
        let tensors = manifest.tensors().iter().enumerate().filter(|(_, tensor)| wanted(tensor));
        Self::new(tensors.map(|(id, tensor)| (id, tensor.object, tensor.range.clone())), opened)
    }

    /// Wants all objects that `wanted` says yes to, whole; ids are positions in the manifest.
    pub(crate) fn objects(
        manifest: &Manifest,
        opened: &Opened,
        wanted: impl Fn(&ObjectEntry) -> bool,
    ) -> Self {
        let objects = manifest.objects().iter().enumerate().filter(|(_, object)| wanted(object));
        Self::new(objects.map(|(id, object)| (id, ObjectIndex(id), 0..object.bytes)), opened)
    }

    fn new(
        wanted: impl Iterator<Item = (usize, ObjectIndex, Range<u64>)>,
        opened: &Opened,
    ) -> Self {
        let chunk_bytes = opened.chunk_bytes as u64;
        let mut gather = Self {
            items: Vec::new(),
            ready: VecDeque::new(),
            missing: 0,
            chunk_bytes,
            lent_chunks_max: opened.window_bytes / chunk_bytes / 2,
        };
        for (id, object, range) in wanted {
            if range.is_empty() {
                gather.ready.push_back((id, Run::Private(Vec::new())));
                continue;
            }
            let reach = range.end;
            gather.items.push(Item { id, object, range, reach, state: State::Waiting });
        }
        gather.items.sort_by_key(|item| (item.object, item.range.start));
        let mut before: Option<(ObjectIndex, u64)> = None;
        for item in &mut gather.items {
            let reach = before.filter(|(object, _)| *object == item.object).map_or(0, |(_, r)| r);
            item.reach = item.reach.max(reach);
            before = Some((item.object, item.reach));
        }
        gather.missing = gather.items.len();
        gather
    }

    /// The next item that has all its bytes.
    pub(crate) fn next_ready(&mut self) -> Option<(usize, Run)> {
        self.ready.pop_front()
    }

    /// Gives the chunk's bytes to the items that want them.
    pub(crate) fn add(&mut self, chunk: &Chunk) -> Result<(), ClientError> {
        for extent in &chunk.extents {
            self.add_extent(&chunk.slot, extent)?;
        }
        Ok(())
    }

    fn add_extent(&mut self, slot: &Arc<LentSlot>, extent: &Extent) -> Result<(), ClientError> {
        let Range { start, end } = extent.object_range;
        let object = extent.object;
        let from = self.items.partition_point(|item| (item.object, item.reach) <= (object, start));
        let to = self.items.partition_point(|item| (item.object, item.range.start) < (object, end));
        for item in self.items.get_mut(from..to).unwrap_or_default() {
            let lend = spanned(&item.range, self.chunk_bytes) <= self.lent_chunks_max;
            item.take(slot, extent, lend)?;
            if let Some(run) = item.complete() {
                self.ready.push_back((item.id, run));
                self.missing -= 1;
            }
        }
        Ok(())
    }

    /// Whether incomplete items hold leases.
    pub(crate) fn holds_leases(&self) -> bool {
        self.items.iter().any(|item| matches!(item.state, State::Lending(..)))
    }

    /// Copies the parts of incomplete items to private memory and releases them.
    pub(crate) fn spill(&mut self) -> Result<(), ClientError> {
        self.items.iter_mut().try_for_each(Item::spill)
    }

    /// An error if every chunk has come and something still misses bytes.
    pub(crate) fn check_complete(&self) -> Result<(), Malformed> {
        match self.missing {
            0 => Ok(()),
            missing => {
                let what = format!("{missing} of what was asked for misses bytes");
                Err(Malformed::new("LoadComplete", what))
            }
        }
    }
}

/// How many chunks a range touches. Objects that span chunks are cut at multiples of a chunk.
fn spanned(range: &Range<u64>, chunk_bytes: u64) -> u64 {
    (range.end - 1) / chunk_bytes - range.start / chunk_bytes + 1
}

impl Item {
    /// Takes what it wants of an extent.
    fn take(
        &mut self,
        slot: &Arc<LentSlot>,
        extent: &Extent,
        lend: bool,
    ) -> Result<(), ClientError> {
        let start = self.range.start.max(extent.object_range.start);
        let end = self.range.end.min(extent.object_range.end);
        if start >= end {
            return Ok(());
        }
        if let State::Waiting = self.state {
            self.state = match lend {
                true => State::Lending(Vec::new(), 0),
                false => State::Copying(private(self.range.end - self.range.start)?, 0),
            };
        }
        let slot_start = extent.slot_range.start + within(start - extent.object_range.start);
        let slot_range = slot_start..slot_start + within(end - start);
        match &mut self.state {
            State::Lending(parts, have) => {
                let slot = Arc::clone(slot);
                parts.push(Part { slot, object_range: start..end, slot_range });
                *have += end - start;
            }
            State::Copying(bytes, have) => {
                let at = within(start - self.range.start);
                if let Some(target) = bytes.get_mut(at..at + slot_range.len()) {
                    target.copy_from_slice(slot.bytes(slot_range));
                    *have += end - start;
                }
            }
            State::Waiting | State::Done => {}
        }
        Ok(())
    }

    fn spill(&mut self) -> Result<(), ClientError> {
        let State::Lending(parts, have) = &self.state else { return Ok(()) };
        let mut bytes = private(self.range.end - self.range.start)?;
        for part in parts {
            let at = within(part.object_range.start - self.range.start);
            if let Some(target) = bytes.get_mut(at..at + part.slot_range.len()) {
                target.copy_from_slice(part.slot.bytes(part.slot_range.clone()));
            }
        }
        self.state = State::Copying(bytes, *have);
        Ok(())
    }

    /// Its bytes, once, when all are there.
    fn complete(&mut self) -> Option<Run> {
        let wanted = self.range.end - self.range.start;
        match &self.state {
            State::Lending(_, have) | State::Copying(_, have) if *have == wanted => {}
            _ => return None,
        }
        match std::mem::replace(&mut self.state, State::Done) {
            State::Lending(mut parts, _) => {
                parts.sort_by_key(|part| part.object_range.start);
                Some(Run::join(parts))
            }
            State::Copying(bytes, _) => Some(Run::Private(bytes)),
            State::Waiting | State::Done => None,
        }
    }
}

/// A length inside of a slot, or of memory that was allocated: it fits.
fn within(bytes: u64) -> usize {
    usize::try_from(bytes).unwrap_or(usize::MAX)
}

/// Zeroed memory for a copy, or an error where there is none.
fn private(bytes: u64) -> Result<Vec<u8>, ClientError> {
    let refused = || {
        let message = format!("no private memory for a copy of {bytes} bytes");
        ClientError::new(Reason::RamExhausted, message)
    };
    let len = usize::try_from(bytes).map_err(|_| refused())?;
    // Asked first, because `vec!` ends the process when it cannot; it gets pages that are zero
    // already, where `resize` would write them all.
    Vec::<u8>::new().try_reserve_exact(len).map_err(|_| refused())?;
    Ok(vec![0; len])
}
