//! Objects stitched together from slots.

use std::fs;

use forebay_shm::{Generation, ObjectMap, ShmError, SlotIndex, SlotReader};

use crate::{SLOT_BYTES, filled, opened, segment};

/// What the kernel allows at an address: the second column of /proc/self/maps.
fn access_at(address: usize) -> String {
    let maps = fs::read_to_string("/proc/self/maps").expect("maps");
    let covers = |line: &&str| {
        let bounds = line.split([' ', '-']).take(2);
        let bounds: Vec<usize> =
            bounds.map(|text| usize::from_str_radix(text, 16).expect("hex")).collect();
        (bounds[0]..bounds[1]).contains(&address)
    };
    let line = maps.lines().find(covers).expect("the address is mapped");
    line.split(' ').nth(1).expect("flags").to_owned()
}

#[test]
fn scattered_slots_of_two_segments_read_as_one_slice() {
    let segments = [segment(1, 4), segment(2, 4)];
    let maps = [opened(&segments[0]), opened(&segments[1])];
    let tail_bytes = 100;
    let object = ObjectMap::reserve(5 * SLOT_BYTES + tail_bytes).expect("address space");
    // Chunk n of the object lies in this segment and slot.
    let homes = [(0, 3), (1, 0), (0, 1), (1, 3), (1, 1), (0, 0)];
    let mut expected = vec![0; object.len()];
    let mut leases: Vec<SlotReader> = Vec::new();
    for chunk in [3, 0, 5, 1, 4, 2] {
        let (segment, slot) = homes[chunk];
        let value = 0x10 + u8::try_from(chunk).expect("small");
        let lease = filled(&segments[segment], slot, value);
        let offset = chunk * SLOT_BYTES;
        let len = SLOT_BYTES.min(object.len() - offset);
        expected[offset..offset + len].fill(value);
        object
            .place(offset, &maps[segment], lease.slot(), lease.generation(), len)
            .expect("placed");
        leases.push(lease);
    }
    assert_eq!(object.bytes(0..object.len()).expect("all there"), expected);
    let across = SLOT_BYTES - 3..2 * SLOT_BYTES + 5;
    assert_eq!(object.bytes(across.clone()).expect("there"), &expected[across]);
    drop((maps, segments));
    assert_eq!(object.bytes(0..object.len()).expect("still there"), expected);
}

#[test]
fn only_what_was_placed_can_be_read() {
    let segment = segment(1, 2);
    let map = opened(&segment);
    let lease = filled(&segment, 0, 0x33);
    let mut object = ObjectMap::reserve(4 * SLOT_BYTES).expect("address space");
    assert_eq!(object.bytes(0..1), None);
    let at = SLOT_BYTES;
    object.place(at, &map, lease.slot(), lease.generation(), SLOT_BYTES).expect("placed");
    let bytes = object.bytes(at..2 * at).expect("placed");
    assert!(bytes.iter().all(|&byte| byte == 0x33));
    let address = bytes.as_ptr().addr();
    assert_eq!(access_at(address), "r--s");
    assert_eq!(access_at(address - 1), "---p", "before it");
    assert_eq!(access_at(address + SLOT_BYTES), "---p", "after it");
    for outside in [0..1, at - 1..at, at - 1..at + 1, at..2 * at + 1, 0..4 * at, 2 * at..3 * at] {
        assert_eq!(object.bytes(outside.clone()), None, "{outside:?}");
    }
    assert_eq!(object.bytes(0..4 * at + 1), None, "past the end");
    assert_eq!(object.bytes(usize::MAX - 1..usize::MAX), None);
    assert_eq!(object.bytes(2 * at..at), None, "reversed");
    assert_eq!(object.bytes(9..9), Some(&[][..]), "nothing is always there");
    object.clear(at..2 * at).expect("cleared");
    assert_eq!(object.bytes(at..2 * at), None);
    assert_eq!(access_at(address), "---p");
}

#[test]
fn clearing_a_part_leaves_the_rest() {
    let segment = segment(1, 2);
    let map = opened(&segment);
    let (first, second) = (filled(&segment, 0, 1), filled(&segment, 1, 2));
    let mut object = ObjectMap::reserve(2 * SLOT_BYTES).expect("address space");
    object.place(0, &map, first.slot(), first.generation(), SLOT_BYTES).expect("placed");
    object.place(SLOT_BYTES, &map, second.slot(), second.generation(), SLOT_BYTES).expect("placed");
    object.clear(4096..4097).expect("one page goes, although one byte is named");
    assert_eq!(object.bytes(4096..8192), None);
    assert_eq!(object.bytes(0..4096).map(|bytes| bytes[4095]), Some(1));
    let rest = object.bytes(8192..2 * SLOT_BYTES).expect("the rest");
    assert_eq!((rest[0], rest[rest.len() - 1]), (1, 2));
    object.place(4096, &map, second.slot(), second.generation(), 4096).expect("free again");
    assert_eq!(object.bytes(0..2 * SLOT_BYTES).map(|bytes| bytes[4096]), Some(2));
    object.clear(0..2 * SLOT_BYTES).expect("all of it");
    assert_eq!(object.bytes(0..1), None);
}

#[test]
fn a_short_last_chunk_shows_nothing_of_what_follows() {
    let segment = segment(1, 1);
    let map = opened(&segment);
    let lease = filled(&segment, 0, 5);
    let object = ObjectMap::reserve(100).expect("address space");
    object.place(0, &map, lease.slot(), lease.generation(), 100).expect("placed");
    assert_eq!(object.bytes(0..100), Some(&[5; 100][..]));
    assert_eq!(object.bytes(0..101), None);
}

#[test]
fn what_cannot_be_placed_changes_nothing() {
    let segment = segment(1, 2);
    let map = opened(&segment);
    let lease = filled(&segment, 0, 5);
    let object = ObjectMap::reserve(2 * SLOT_BYTES + 10).expect("address space");
    let place = |offset, slot, generation, len| {
        object.place(offset, &map, SlotIndex(slot), Generation(generation), len)
    };
    let refusal = |outcome: Result<(), ShmError>| outcome.expect_err("refused");
    assert!(matches!(refusal(place(1, 0, 1, 10)), ShmError::Unaligned { offset: 1, .. }));
    assert!(matches!(refusal(place(0, 0, 1, SLOT_BYTES + 1)), ShmError::OutOfRange { .. }));
    assert!(matches!(refusal(place(2 * SLOT_BYTES, 0, 1, 11)), ShmError::OutOfRange { .. }));
    assert!(matches!(refusal(place(1 << 63, 0, 1, 4096)), ShmError::OutOfRange { .. }));
    assert!(matches!(refusal(place(0, 0, 2, 10)), ShmError::Stale { .. }));
    assert!(matches!(refusal(place(0, 1, 0, 10)), ShmError::Stale { .. }));
    assert!(matches!(refusal(place(0, 2, 1, 10)), ShmError::NoSuchSlot { .. }));
    assert_eq!(object.bytes(0..1), None);
    place(4096, 0, lease.generation().0, 5000).expect("placed");
    for (offset, len) in [(4096, 1), (8192, 4096), (0, 4097), (0, SLOT_BYTES)] {
        assert!(matches!(refusal(place(offset, 0, 1, len)), ShmError::Occupied { .. }));
    }
    place(0, 0, 1, 4096).expect("up to it");
    place(12_288, 0, 1, 4096).expect("after its last page");
    place(0, 0, 1, 0).expect("nothing is placed anywhere");
    assert_eq!(object.bytes(9095..9096), Some(&[5][..]));
    assert_eq!(object.bytes(9095..9097), None, "the rest of the page was not granted");
}

#[test]
fn address_space_is_had_for_any_object_or_refused() {
    let mut empty = ObjectMap::reserve(0).expect("an empty object");
    assert!(empty.is_empty());
    assert_eq!(empty.bytes(0..0), Some(&[][..]));
    assert_eq!(empty.bytes(0..1), None);
    empty.clear(0..0).expect("nothing to clear");
    let large = ObjectMap::reserve(1 << 40).expect("a TiB of address space costs nothing");
    assert_eq!(large.bytes(0..1 << 40), None);
    for len in [1 << 47, isize::MAX as usize, usize::MAX] {
        let refused = ObjectMap::reserve(len).expect_err("more than there is");
        assert!(matches!(refused, ShmError::AddressSpaceExhausted { .. }), "{refused}");
    }
}

#[test]
fn large_objects_begin_where_huge_pages_fit() {
    let segment = segment(1, 1);
    let map = opened(&segment);
    let lease = filled(&segment, 0, 5);
    for len in [2 << 20, (2 << 20) + 1, 5 << 20] {
        let object = ObjectMap::reserve(len).expect("address space");
        object.place(0, &map, lease.slot(), lease.generation(), 1).expect("at the start");
        let last_page = (len - 1) / 4096 * 4096;
        object.place(last_page, &map, lease.slot(), lease.generation(), 1).expect("at the end");
        let start = object.bytes(0..1).expect("placed").as_ptr();
        assert!(start.addr().is_multiple_of(2 << 20));
    }
}

#[test]
fn many_threads_place_into_one_object() {
    let segment = segment(1, 8);
    let map = opened(&segment);
    let leases: Vec<SlotReader> = (0..8).map(|slot| filled(&segment, slot, 9)).collect();
    let object = ObjectMap::reserve(8 * SLOT_BYTES).expect("address space");
    std::thread::scope(|scope| {
        for (chunk, lease) in leases.iter().enumerate() {
            let (object, map) = (&object, &map);
            scope.spawn(move || {
                let (offset, generation) = (chunk * SLOT_BYTES, lease.generation());
                object.place(offset, map, lease.slot(), generation, SLOT_BYTES).expect("placed");
                assert!(object.bytes(offset..offset + SLOT_BYTES).is_some());
            });
        }
    });
    let bytes = object.bytes(0..8 * SLOT_BYTES).expect("all there");
    assert!(bytes.iter().all(|&byte| byte == 9));
}
