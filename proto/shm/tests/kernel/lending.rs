//! Writers, readers, generations, and what a client sees of them.

use std::sync::Arc;
use std::thread;

use forebay_shm::{
    Generation, SegmentId, ShmError, SlotIndex, SlotReader, SlotState, SlotView, SlotWriter,
};

use crate::{SLOT_BYTES, filled, opened, segment};

#[test]
fn both_sides_describe_the_same_segment() {
    let segment = segment(3, 5);
    let map = opened(&segment);
    assert_eq!((map.id(), map.domain(), map.slots()), (SegmentId(3), 7, 5));
    assert_eq!((segment.id(), segment.domain(), segment.slots()), (SegmentId(3), 7, 5));
    assert_eq!((map.slot_bytes(), map.bytes()), (SLOT_BYTES, segment.bytes()));
    assert_eq!(segment.slot_bytes(), SLOT_BYTES);
    assert!(segment.bytes() >= 5 * SLOT_BYTES);
    assert!(!segment.placement().locked);
    assert_eq!(segment.placement().lock_error, None);
}

#[test]
fn two_mappings_see_the_bytes_that_were_written() {
    let segment = segment(1, 3);
    let (early, late_reader) = (opened(&segment), filled(&segment, 1, 0xa5));
    let mut writer = segment.writer(SlotIndex(2)).expect("free");
    let pattern: Vec<u8> = (0..251).cycle().take(SLOT_BYTES).collect();
    writer.as_mut_slice().copy_from_slice(&pattern);
    let reader = writer.publish();
    for map in [early, opened(&segment)] {
        let view = map.view(SlotIndex(2), reader.generation(), SLOT_BYTES).expect("granted");
        assert_eq!(view.bytes(), reader.bytes());
        assert_eq!(view.bytes(), pattern);
        let one = map.view(SlotIndex(1), late_reader.generation(), 10).expect("granted");
        assert_eq!(one.bytes(), [0xa5; 10]);
        assert!(one.is_current());
    }
}

#[test]
fn a_slot_in_use_is_not_written() {
    let segment = segment(1, 2);
    let slot = SlotIndex(0);
    let busy = |what: &str| {
        let refused = segment.writer(slot).expect_err(what);
        assert!(matches!(refused, ShmError::SlotBusy { slot: SlotIndex(0), .. }), "{refused}");
    };
    let writer = segment.writer(slot).expect("free");
    busy("while written");
    let first = writer.publish();
    busy("while read");
    let second = first.clone();
    drop(first);
    busy("while a clone reads");
    assert_eq!(segment.state(slot), Some(SlotState::Reading(1)));
    assert_eq!(segment.state(SlotIndex(1)), Some(SlotState::Free), "slots do not share a state");
    drop(second);
    assert_eq!(segment.state(slot), Some(SlotState::Free));
    drop(segment.writer(slot).expect("free after the last reader"));
    assert_eq!(segment.state(slot), Some(SlotState::Free), "a dropped writer frees");
    assert_eq!(segment.generation(slot), Generation(2), "an abandoned write counts too");
}

#[test]
fn a_grant_that_ended_is_stale() {
    let segment = segment(1, 1);
    let map = opened(&segment);
    let slot = SlotIndex(0);
    let never = map.view(slot, Generation(0), 1).expect_err("never written");
    assert!(matches!(never, ShmError::Stale { .. }), "{never}");
    let first = filled(&segment, 0, 1);
    let granted = first.generation();
    let view = map.view(slot, granted, SLOT_BYTES).expect("granted");
    assert!(view.is_current());
    drop(first);
    assert!(view.is_current(), "nobody has taken the slot yet");
    let writer = segment.writer(slot).expect("free");
    assert!(!view.is_current(), "the bytes can change from now on");
    let stale = map.view(slot, granted, SLOT_BYTES).expect_err("taken");
    assert!(
        matches!(stale, ShmError::Stale { granted: Generation(1), found: Generation(2), .. }),
        "{stale}"
    );
    assert_eq!(map.generation(slot), writer.generation());
}

#[test]
fn what_does_not_exist_is_refused() {
    let segment = segment(1, 2);
    let map = opened(&segment);
    let reader = filled(&segment, 1, 9);
    let beyond = SlotIndex(2);
    let no_slot = |error| matches!(error, ShmError::NoSuchSlot { slots: 2, .. });
    assert!(segment.writer(beyond).is_err_and(no_slot));
    assert!(map.view(beyond, Generation(1), 1).is_err_and(no_slot));
    assert!(map.view(SlotIndex(u32::MAX), Generation(1), 1).is_err_and(no_slot));
    assert_eq!(segment.generation(beyond), Generation(0));
    assert_eq!(map.generation(beyond), Generation(0));
    assert_eq!(segment.state(beyond), None);
    for len in [SLOT_BYTES + 1, usize::MAX] {
        let refused = map.view(SlotIndex(1), reader.generation(), len);
        assert!(refused.is_err_and(|error| matches!(error, ShmError::OutOfRange { .. })));
    }
    let empty = map.view(SlotIndex(1), reader.generation(), 0).expect("a grant of nothing");
    assert_eq!(empty.bytes(), b"");
}

#[test]
fn bytes_outlive_the_daemon() {
    let segment = segment(1, 1);
    let map = opened(&segment);
    let reader = filled(&segment, 0, 0x42);
    let view = map.view(SlotIndex(0), reader.generation(), SLOT_BYTES).expect("granted");
    drop((reader, segment, map));
    assert!(view.bytes().iter().all(|&byte| byte == 0x42));
}

#[test]
fn readers_on_many_threads_give_the_slot_back() {
    fn crosses_threads<T: Send + Sync>() {}
    crosses_threads::<SlotReader>();
    crosses_threads::<SlotView>();
    crosses_threads::<SlotWriter>();
    let segment = segment(1, 1);
    for round in 1..=20 {
        let reader = filled(&segment, 0, round);
        thread::scope(|scope| {
            for _ in 0..4 {
                let reader = reader.clone();
                scope.spawn(move || read_through_a_clone(reader, round));
            }
        });
        assert_eq!(segment.state(SlotIndex(0)), Some(SlotState::Reading(1)));
        drop(reader);
    }
    assert_eq!(segment.generation(SlotIndex(0)), Generation(20));
}

#[test]
fn one_of_many_racing_writers_gets_the_slot() {
    let segment = segment(1, 1);
    for _ in 0..50 {
        let winners: Vec<SlotWriter> = thread::scope(|scope| {
            let racers: Vec<_> = (0..4)
                .map(|_| {
                    let segment = Arc::clone(&segment);
                    scope.spawn(move || segment.writer(SlotIndex(0)).ok())
                })
                .collect();
            racers.into_iter().filter_map(|racer| racer.join().expect("no panic")).collect()
        });
        assert_eq!(winners.len(), 1);
    }
    assert_eq!(segment.generation(SlotIndex(0)), Generation(50), "losers bump nothing");
}

fn read_through_a_clone(reader: SlotReader, value: u8) {
    let again = reader.clone();
    drop(reader);
    assert!(again.bytes().iter().all(|&byte| byte == value));
}
