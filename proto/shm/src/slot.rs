//! The two ways the daemon holds a slot: alone for writing, or with others for reading.
//!
//! Both keep their segment alive, and both give their state back when dropped (see `states`): a
//! writer that is dropped frees the slot, a writer that is published becomes the first reader,
//! and the last reader frees the slot.

use std::fmt;
use std::sync::Arc;

use crate::ids::{Generation, SegmentId, SlotIndex};
use crate::segment::Segment;

/// The one holder of a slot that is being filled.
pub struct SlotWriter {
    segment: Arc<Segment>,
    slot: SlotIndex,
    generation: Generation,
    published: bool,
}

impl SlotWriter {
    /// The caller has claimed the slot, which exists.
    pub(crate) fn new(segment: Arc<Segment>, slot: SlotIndex, generation: Generation) -> Self {
        Self { segment, slot, generation, published: false }
    }

    /// The segment of the slot.
    #[must_use]
    pub fn segment_id(&self) -> SegmentId {
        self.segment.id()
    }

    /// Which slot.
    #[must_use]
    pub fn slot(&self) -> SlotIndex {
        self.slot
    }

    /// The generation that readers of what is written here will name.
    #[must_use]
    pub fn generation(&self) -> Generation {
        self.generation
    }

    /// The whole slot. It holds what its last user left there.
    #[must_use]
    pub fn as_slice(&self) -> &[u8] {
        // SAFETY: the slot is in state writing, which only this value leaves, so nobody else
        // writes; `&self` keeps `as_mut_slice` out.
        unsafe { self.segment.slot_slice(self.slot) }
    }

    /// The whole slot, to write.
    #[must_use]
    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        // SAFETY: the slot is in state writing, which only this value leaves, so there is no
        // reader; `&mut self` keeps every other use of this value out.
        unsafe { self.segment.slot_slice_mut(self.slot) }
    }

    /// Ends the writing: from now on the slot can only be read.
    #[must_use]
    pub fn publish(mut self) -> SlotReader {
        self.segment.states().publish(self.slot.0 as usize);
        self.published = true;
        SlotReader {
            segment: Arc::clone(&self.segment),
            slot: self.slot,
            generation: self.generation,
        }
    }
}

impl Drop for SlotWriter {
    fn drop(&mut self) {
        if !self.published {
            self.segment.states().abandon(self.slot.0 as usize);
        }
    }
}

impl fmt::Debug for SlotWriter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SlotWriter({}:{}@{})", self.segment_id(), self.slot, self.generation)
    }
}

/// One of the holders of a slot that can be read. Clones hold it too.
pub struct SlotReader {
    segment: Arc<Segment>,
    slot: SlotIndex,
    generation: Generation,
}

impl SlotReader {
    /// The segment of the slot.
    #[must_use]
    pub fn segment_id(&self) -> SegmentId {
        self.segment.id()
    }

    /// The segment itself: its descriptor is what a client needs to read the slot.
    #[must_use]
    pub fn segment(&self) -> &Arc<Segment> {
        &self.segment
    }

    /// Which slot.
    #[must_use]
    pub fn slot(&self) -> SlotIndex {
        self.slot
    }

    /// The generation that a grant of this slot names.
    #[must_use]
    pub fn generation(&self) -> Generation {
        self.generation
    }

    /// The whole slot.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: the slot has at least this reader, so no writer can be made until it is dropped.
        unsafe { self.segment.slot_slice(self.slot) }
    }
}

impl Clone for SlotReader {
    fn clone(&self) -> Self {
        self.segment.states().share(self.slot.0 as usize);
        Self { segment: Arc::clone(&self.segment), slot: self.slot, generation: self.generation }
    }
}

impl Drop for SlotReader {
    fn drop(&mut self) {
        self.segment.states().unshare(self.slot.0 as usize);
    }
}

impl fmt::Debug for SlotReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SlotReader({}:{}@{})", self.segment_id(), self.slot, self.generation)
    }
}
