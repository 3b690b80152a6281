//! The crate against the real kernel: real memfds, real mappings, real sockets.

mod hostile;
mod huge;
mod lending;
mod limits;
mod model;
mod object;
mod passing;
mod seals;

use std::sync::Arc;

use forebay_shm::{Segment, SegmentId, SegmentMap, SegmentSpec, SlotIndex, SlotReader};

const SLOT_BYTES: usize = 16 << 10;

/// A small segment.
fn segment(id: u64, slots: u32) -> Arc<Segment> {
    let id = SegmentId(id);
    Segment::create(&SegmentSpec { id, domain: 7, slot_bytes: SLOT_BYTES, slots, lock: false })
        .expect("a small segment can be made")
}

/// What a client makes of a segment.
fn opened(segment: &Segment) -> Arc<SegmentMap> {
    let descriptor = segment.descriptor().try_clone_to_owned().expect("a descriptor can be copied");
    SegmentMap::open(descriptor).expect("a segment can be mapped")
}

/// Fills a slot with one byte value and publishes it.
fn filled(segment: &Arc<Segment>, slot: u32, value: u8) -> SlotReader {
    let mut writer = segment.writer(SlotIndex(slot)).expect("the slot is free");
    writer.as_mut_slice().fill(value);
    writer.publish()
}
