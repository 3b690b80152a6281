//! Huge pages: what a segment says of them is what the kernel did, and readers get them too.

use std::sync::Arc;

use forebay_shm::{ObjectMap, Segment, SegmentId, SegmentMap, SegmentSpec};

use crate::{filled, opened};

const HUGE_PAGE_BYTES: usize = 2 << 20;
const SLOT_BYTES: usize = 2 * HUGE_PAGE_BYTES;

/// A segment on huge pages; none, with the reason printed, where the kernel gives none.
#[expect(clippy::print_stdout, reason = "says why a test was skipped")]
fn huge(slots: u32) -> Option<Arc<Segment>> {
    let id = SegmentId(1);
    let spec = SegmentSpec { id, domain: 0, slot_bytes: SLOT_BYTES, slots, lock: false };
    let segment = Segment::create(&spec).expect("a segment, on huge pages or not");
    let had = segment.placement().huge_bytes;
    assert!(had.is_multiple_of(HUGE_PAGE_BYTES) && had <= SLOT_BYTES * slots as usize, "{had}");
    if had < SLOT_BYTES * slots as usize {
        println!("skipped: the kernel gave {had} bytes of huge pages to {slots} slots");
        return None;
    }
    Some(segment)
}

/// Bytes that this process has mapped by huge pages of shared memory, at an address.
fn huge_at(address: *const u8) -> usize {
    let maps = std::fs::read_to_string("/proc/self/smaps").expect("this process' mappings");
    let mut inside = false;
    for line in maps.lines() {
        let range = line.split(' ').next().and_then(|range| range.split_once('-'));
        let bounds = range.and_then(|(start, end)| {
            let number = |text| usize::from_str_radix(text, 16).ok();
            Some(number(start)?..number(end)?)
        });
        if let Some(bounds) = bounds {
            inside = bounds.contains(&address.addr());
        } else if inside && let Some(rest) = line.strip_prefix("ShmemPmdMapped:") {
            let kib = rest.trim().strip_suffix(" kB").expect("a size in kB");
            return kib.parse::<usize>().expect("a number") << 10;
        }
    }
    0
}

#[test]
fn what_is_told_is_what_the_kernel_did_and_the_bytes_are_new() {
    let Some(segment) = huge(3) else { return };
    assert_eq!(huge_at(segment.slot_memory().cast()), 3 * SLOT_BYTES);
    let reader = filled(&segment, 1, 9);
    assert!(reader.bytes().iter().all(|byte| *byte == 9));
    let map = opened(&segment);
    let view = map.view(reader.slot(), reader.generation(), SLOT_BYTES).expect("it is granted");
    assert!(view.bytes().iter().all(|byte| *byte == 9));
    for slot in [0, 2] {
        let new = segment.writer(forebay_shm::SlotIndex(slot)).expect("a free slot");
        let bytes = new.publish();
        assert!(bytes.bytes().iter().all(|byte| *byte == 0), "memory is new");
    }
}

#[test]
fn a_reader_maps_huge_pages_by_one_touch_of_each() {
    let Some(segment) = huge(2) else { return };
    let reader = filled(&segment, 0, 3);
    let map: Arc<SegmentMap> = opened(&segment);
    let view = map.view(reader.slot(), reader.generation(), SLOT_BYTES).expect("it is granted");
    let touched: u32 = view.bytes().iter().step_by(HUGE_PAGE_BYTES).map(|b| u32::from(*b)).sum();
    assert_eq!(touched, 3 * 2);
    assert_eq!(huge_at(view.bytes().as_ptr()), SLOT_BYTES);
    // The same of an object, whose pages lie in a range of its own.
    let object = ObjectMap::reserve(SLOT_BYTES).expect("address space");
    object.place(0, &map, reader.slot(), reader.generation(), SLOT_BYTES).expect("it fits");
    let range = object.bytes(0..SLOT_BYTES).expect("it is placed");
    let touched: u32 = range.iter().step_by(HUGE_PAGE_BYTES).map(|byte| u32::from(*byte)).sum();
    assert_eq!(touched, 3 * 2);
    assert_eq!(huge_at(range.as_ptr()), SLOT_BYTES);
}

#[test]
fn slots_that_huge_pages_do_not_fit_have_none_and_work() {
    let spec =
        SegmentSpec { id: SegmentId(2), domain: 0, slot_bytes: 3 << 20, slots: 3, lock: false };
    let segment = Segment::create(&spec).expect("a segment");
    assert_eq!(segment.placement().huge_bytes, 0);
    let reader = filled(&segment, 2, 5);
    assert!(reader.bytes().iter().all(|byte| *byte == 5));
}
