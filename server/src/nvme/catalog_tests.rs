//! Room is never promised twice, and what may not go stays.

use proptest::prelude::*;

use super::*;
use crate::plan::ChunkKey;

const PAYLOAD: usize = 8192;
/// One extent of that payload.
const FILE: u64 = 4096 + 8192;
/// A disk that others leave alone.
const EMPTY: DiskRoom = DiskRoom { total: 1 << 40, free: 1 << 39 };

fn key(n: u8) -> ChunkKey {
    ChunkKey([n; 32])
}

fn rev(n: u8) -> Revision {
    Revision([n; 32])
}

fn stored(n: u8, revision: u8) -> Stored {
    Stored {
        key: key(n),
        revision: rev(revision),
        generation: u64::from(n),
        payload_bytes: u32::try_from(PAYLOAD).unwrap(),
        content_bytes: 8000,
    }
}

fn catalog(extents: u64) -> Catalog {
    let mut catalog = Catalog::new();
    catalog.set_budget(extents * FILE);
    catalog
}

fn reserve(catalog: &mut Catalog, n: u8, revision: u8) -> Room {
    catalog.reserve(&key(n), rev(revision), PAYLOAD, EMPTY)
}

/// Fills chunks of a revision as a load does.
fn fill(catalog: &mut Catalog, revision: u8, chunks: std::ops::Range<u8>) {
    catalog.begin(rev(revision), "s3://b/m", 100_000, 1, u64::from(revision));
    for n in chunks {
        assert_eq!(reserve(catalog, n, revision), Room::Reserved);
        catalog.written(stored(n, revision), true);
    }
    catalog.end(rev(revision), u64::from(revision));
}

#[test]
fn fills_side_by_side_do_not_overshoot() {
    let mut catalog = catalog(2);
    assert_eq!(reserve(&mut catalog, 1, 1), Room::Reserved);
    assert_eq!(reserve(&mut catalog, 1, 1), Room::NotNeeded, "busy");
    assert_eq!(reserve(&mut catalog, 2, 1), Room::Reserved);
    assert_eq!(reserve(&mut catalog, 3, 1), Room::None);
    catalog.given_up(&key(1), PAYLOAD);
    assert_eq!(reserve(&mut catalog, 3, 1), Room::Reserved);
    catalog.written(stored(3, 1), true);
    assert_eq!(reserve(&mut catalog, 3, 1), Room::NotNeeded, "stored");
}

#[test]
fn room_is_there_when_the_files_are_gone() {
    let mut catalog = catalog(10);
    fill(&mut catalog, 1, 0..10);
    let Room::Evict(gone) = reserve(&mut catalog, 20, 2) else { panic!("no room is made") };
    assert_eq!(gone.len(), 10, "whole revisions");
    assert_eq!(reserve(&mut catalog, 20, 2), Room::Wait);
    assert_eq!(reserve(&mut catalog, 5, 1), Room::Wait, "its file is still there");
    gone.iter().for_each(|stored| catalog.left(stored));
    assert_eq!(reserve(&mut catalog, 20, 2), Room::Reserved);
    assert_eq!(catalog.used().stored, 0);
}

#[test]
fn a_checkpoint_does_not_chase_its_own_tail_and_takes_chunks_of_others() {
    let mut catalog = catalog(4);
    catalog.begin(rev(1), "s3://b/m", 1, 1, 1);
    for n in 0..4 {
        assert_eq!(reserve(&mut catalog, n, 1), Room::Reserved);
        catalog.written(stored(n, 1), true);
    }
    assert_eq!(reserve(&mut catalog, 4, 1), Room::None, "it is in use and all that is here");
    catalog.begin(rev(2), "s3://b/n", 1, 1, 1);
    let Room::Evict(gone) = reserve(&mut catalog, 10, 2) else { panic!("no room is made") };
    assert_eq!(gone, [stored(0, 1)], "the least recently used of one that is in use, and no more");
}

#[test]
fn what_is_pinned_stays() {
    let mut catalog = catalog(4);
    fill(&mut catalog, 1, 0..2);
    fill(&mut catalog, 2, 2..4);
    assert_eq!(catalog.pin_uri(|uri| uri == "s3://b/m", true).len(), 2);
    assert_eq!(reserve(&mut catalog, 9, 3), Room::None);
    let dropped = catalog.drop_uri(|_| true);
    assert_eq!((dropped.checkpoints, dropped.gone.len(), dropped.pinned), (0, 0, 2));
    assert_eq!(catalog.pin_uri(|_| true, false).len(), 2);
    let Room::Evict(gone) = reserve(&mut catalog, 9, 3) else { panic!("no room is made") };
    assert_eq!(gone, [stored(0, 1), stored(1, 1)], "the older one");
    let dropped = catalog.drop_uri(|_| true);
    assert_eq!((dropped.checkpoints, dropped.gone.len(), dropped.pinned), (1, 2, 0));
}

#[test]
fn the_floor_of_the_filesystem_is_kept() {
    let mut catalog = catalog(1000);
    fill(&mut catalog, 1, 0..4);
    let total = 1 << 40;
    let floor = 10 << 30;
    let tight = |free: u64| DiskRoom { total, free };
    let at_floor = catalog.reserve(&key(50), rev(2), PAYLOAD, tight(floor + FILE));
    assert_eq!(at_floor, Room::Reserved);
    catalog.given_up(&key(50), PAYLOAD);
    let below = catalog.reserve(&key(50), rev(2), PAYLOAD, tight(floor + FILE - 1));
    assert!(matches!(below, Room::Evict(gone) if gone.len() == 4), "down to the low mark");
    let mut other = catalog_of_one();
    assert!(other.shrink(tight(floor)).is_empty());
    assert_eq!(other.shrink(tight(floor - 1)), [stored(1, 1)]);
    assert!(other.shrink(tight(floor - 1)).is_empty(), "it is leaving");
}

fn catalog_of_one() -> Catalog {
    let mut catalog = catalog(10);
    fill(&mut catalog, 1, 1..2);
    catalog
}

#[test]
fn rows_bring_back_what_was_there() {
    let mut before = catalog(10);
    fill(&mut before, 1, 0..3);
    fill(&mut before, 2, 3..5);
    before.pin_uri(|_| true, true);
    before.begin(rev(2), "s3://b/n", 5, 1, 9);
    assert_eq!(before.find(&key(0), rev(2)), Some((stored(0, 1), true)));
    assert_eq!(before.find(&key(0), rev(2)), Some((stored(0, 1), false)), "known by now");
    let chunks: Vec<_> =
        (0..5).filter_map(|n| Some((key(n), before.chunk_row(&key(n))?))).collect();
    let mut revisions = [2, 1].map(|n| (rev(n), before.revision_row(&rev(n)).unwrap()));
    let mut after = catalog(10);
    for new in [5, 0] {
        after.take_in_revisions(&mut revisions);
        assert_eq!(after.take_in(&chunks), new, "twice is once");
        after.revisions_known(&revisions);
    }
    assert_eq!(after.used(), before.used());
    assert_eq!(after.list(|_| true, 9), before.list(|_| true, 9));
    assert_eq!(after.chunk_row(&key(0)).unwrap().revisions, [rev(1), rev(2)]);
}

#[test]
fn a_pin_for_now_is_neither_remembered_nor_that_of_an_operator() {
    let mut catalog = catalog(2);
    fill(&mut catalog, 1, 0..2);
    catalog.pin_for_now(rev(1));
    assert!(!catalog.revision_row(&rev(1)).unwrap().pinned);
    assert_eq!(reserve(&mut catalog, 9, 2), Room::None);
    catalog.pin_uri(|_| true, true);
    catalog.unpin_for_now(rev(1));
    assert_eq!(reserve(&mut catalog, 9, 2), Room::None, "the operator's stays");
    assert!(catalog.revision_row(&rev(1)).unwrap().pinned);
    catalog.pin_uri(|_| true, false);
    assert!(matches!(reserve(&mut catalog, 9, 2), Room::Evict(_)), "looked for again");
}

#[test]
fn what_has_no_name_is_not_listed_and_goes_first() {
    let mut catalog = catalog(3);
    fill(&mut catalog, 1, 0..2);
    assert!(catalog.adopt(stored(7, 7)));
    assert_eq!(catalog.list(|_| true, 1).len(), 1);
    assert_eq!(reserve(&mut catalog, 9, 2).evicted().first(), Some(&stored(7, 7)));
}

#[test]
fn what_is_evicted_while_it_is_written_does_not_stay() {
    let mut catalog = catalog(10);
    catalog.begin(rev(1), "s3://b/m", 1, 1, 1);
    assert!(catalog.hold(rev(1)) && !catalog.hold(rev(9)));
    catalog.end(rev(1), 1);
    assert_eq!(reserve(&mut catalog, 1, 1), Room::Reserved);
    assert_eq!(reserve(&mut catalog, 2, 2), Room::Reserved);
    let dropped = catalog.drop_uri(|uri| uri == "s3://b/m");
    assert_eq!((dropped.revisions, dropped.checkpoints), (vec![rev(1)], 0));
    catalog.written(stored(1, 1), false);
    catalog.written(stored(2, 2), true);
    assert_eq!(reserve(&mut catalog, 1, 1), Room::Wait, "its file is still there");
    catalog.left(&stored(1, 1));
    assert_eq!(catalog.used().extents, 1);
    catalog.release(rev(1));
    assert_eq!(catalog.revision_row(&rev(1)), None);
}

#[derive(Debug, Clone)]
enum Op {
    Reserve(u8, u8),
    Written(u8),
    GivenUp(u8),
    Left,
    Begin(u8),
    End(u8),
    Pin(u8, bool),
    Forget(u8),
    Drop(u8),
}

fn op() -> impl Strategy<Value = Op> {
    let (n, r) = (0..16u8, 0..4u8);
    prop_oneof![
        3 => (n.clone(), r.clone()).prop_map(|(n, r)| Op::Reserve(n, r)),
        3 => n.clone().prop_map(Op::Written),
        1 => n.clone().prop_map(Op::GivenUp),
        2 => Just(Op::Left),
        1 => r.clone().prop_map(Op::Begin),
        1 => r.clone().prop_map(Op::End),
        1 => (r.clone(), any::<bool>()).prop_map(|(r, pinned)| Op::Pin(r, pinned)),
        1 => n.prop_map(Op::Forget),
        1 => r.prop_map(Op::Drop),
    ]
}

proptest! {
    /// Whatever happens: what is stored, reserved and leaving never exceeds the budget, a pinned
    /// chunk stays, and the sums agree with a model that only counts.
    #[test]
    fn the_budget_holds_and_pins_hold(
        budget in 1..12u64,
        ops in proptest::collection::vec(op(), 1..200),
    ) {
        let mut catalog = catalog(budget);
        let (mut here, mut reserved) = (BTreeMap::<u8, u8>::new(), BTreeMap::<u8, u8>::new());
        let mut leaving: Vec<Stored> = Vec::new();
        let (mut active, mut pinned) = ([0usize; 4], [false; 4]);
        for op in ops {
            let mut gone: Vec<Stored> = Vec::new();
            match op {
                Op::Reserve(n, r) => match reserve(&mut catalog, n, r) {
                    Room::Reserved => { reserved.insert(n, r); }
                    Room::Evict(victims) => gone = victims,
                    Room::NotNeeded => prop_assert!(
                        here.contains_key(&n) || reserved.contains_key(&n)
                    ),
                    Room::Wait => prop_assert!(!leaving.is_empty()),
                    Room::None => {}
                },
                Op::Written(n) => if let Some(r) = reserved.remove(&n) {
                    catalog.written(stored(n, r), n % 5 > 0);
                    if n % 5 > 0 {
                        here.insert(n, r);
                    } else {
                        leaving.push(stored(n, r));
                    }
                },
                Op::GivenUp(n) => if reserved.remove(&n).is_some() {
                    catalog.given_up(&key(n), PAYLOAD);
                },
                Op::Left => leaving.drain(..).for_each(|stored| catalog.left(&stored)),
                Op::Begin(r) => {
                    active[usize::from(r)] += 1;
                    catalog.begin(rev(r), &format!("u/{r}"), 1, 1, 1);
                }
                Op::End(r) if active[usize::from(r)] > 0 => {
                    active[usize::from(r)] -= 1;
                    catalog.end(rev(r), 2);
                }
                Op::End(_) => {}
                Op::Pin(r, keep) => {
                    let changed = catalog.pin_uri(|uri| uri == format!("u/{r}"), keep);
                    if !changed.is_empty() {
                        pinned[usize::from(r)] = keep;
                    }
                }
                Op::Forget(n) => gone.extend(catalog.forget(&key(n), u64::from(n))),
                Op::Drop(r) => {
                    gone = catalog.drop_uri(|uri| uri == format!("u/{r}")).gone;
                    prop_assert!(gone.is_empty() || !pinned[usize::from(r)]);
                }
            }
            let forgot = matches!(op, Op::Forget(_));
            for stored in gone {
                let revision = here.remove(&stored.key.0[0]);
                prop_assert!(revision.is_some());
                let referred = catalog.list(|_| true, 9).iter().any(|listed| {
                    listed.pinned && catalog.chunks_of(&listed.revision).contains(&stored)
                });
                prop_assert!(forgot || !referred);
                leaving.push(stored);
            }
            let used = catalog.used();
            prop_assert_eq!(used.stored, here.len() as u64 * FILE);
            prop_assert_eq!(used.reserved, reserved.len() as u64 * FILE);
            prop_assert_eq!(catalog.on_disk(), used.stored + leaving.len() as u64 * FILE);
            prop_assert!(catalog.on_disk() + used.reserved <= budget * FILE);
            prop_assert_eq!(used.extents, here.len());
            for n in here.keys() {
                prop_assert_eq!(catalog.peek(&key(*n)).map(|stored| stored.key), Some(key(*n)));
            }
        }
    }
}
