//! Pools over one node, and over two whose memory a test puts where it likes.

use forebay_io::NumaError;

use super::*;
use crate::ram::places::{NodeShare, PlaceCalls};

fn spec_of(budget_bytes: u64, chunk_bytes: u64) -> PoolSpec {
    PoolSpec { budget_bytes, chunk_bytes, lock: false, segments_max: 1000 }
}

fn spec(slots: u64) -> PoolSpec {
    spec_of(slots << 16, 1 << 16)
}

#[test]
fn the_limit_on_open_files_bounds_the_pool() {
    let spec = PoolSpec { segments_max: 1, ..spec_of(1 << 30, 8 << 20) };
    assert!(!Pool::create(spec, Places::one()).unwrap().may_make());
}

#[test]
fn a_slot_has_one_owner() {
    let pool = Pool::create(spec(2), Places::one()).unwrap();
    let first = pool.take().unwrap().unwrap();
    let second = pool.take().unwrap().unwrap();
    assert!(pool.take().is_none());
    drop(first);
    let readable = second.publish();
    assert_eq!(pool.free_slots(), 1);
    drop(readable);
    assert_eq!(pool.free_slots(), 2);
}

fn plan(node: u32, slots: u32) -> SegmentPlan {
    SegmentPlan { node: NodeId(node), slots }
}

#[test]
fn a_retiring_segment_goes_when_its_last_slot_is_back_and_gives_its_memory_back() {
    let pool = Pool::create(spec(3), Places::one()).unwrap();
    let first = Arc::downgrade(&pool.segments()[0]);
    let id = pool.segments()[0].id();
    let claimed = pool.take().unwrap().unwrap();
    let read = pool.take().unwrap().unwrap().publish();
    pool.make(plan(0, 2)).unwrap();
    assert!(pool.retire(id) && !pool.retire(id), "once");
    assert_eq!((pool.slots(), pool.free_slots()), (2, 2));
    assert_eq!(pool.on_nodes()[&NodeId(0)].slots, 2);
    let of = |pool: &Pool| pool.idle().into_iter().find(|one| one.id == id);
    assert_eq!(of(&pool).map(|one| (one.slots, one.idle, one.retiring)), Some((3, 1, true)));
    // No slot of it is claimed, nor free when it comes back.
    let others: Vec<_> = std::iter::from_fn(|| pool.take()).map(Result::unwrap).collect();
    assert!(others.len() == 2 && others.iter().all(|slot| slot.home.segment.id() != id));
    assert!(pool.let_go().is_none());
    drop(claimed);
    assert!(pool.let_go().is_none());
    drop(read);
    assert_eq!((pool.let_go().map(|gone| gone.id()), pool.free_slots()), (Some(id), 0));
    assert!(first.upgrade().is_none(), "it is unmapped");
    assert!(pool.let_go().is_none() && pool.revive(id).is_none() && !pool.retire(id));
    // Its id is not used again.
    assert_eq!(pool.make(plan(0, 1)).unwrap().id(), SegmentId(2));
}

#[test]
fn a_retiring_segment_can_be_taken_back_into_use() {
    let pool = Pool::create(spec(3), Places::one()).unwrap();
    let id = pool.segments()[0].id();
    let claimed = pool.take().unwrap().unwrap();
    assert!(pool.retire(id) && pool.is_retiring(id));
    assert_eq!((pool.revive(id), pool.is_retiring(id)), (Some(3), false));
    assert_eq!((pool.slots(), pool.free_slots()), (3, 2));
    drop(claimed);
    let all: Vec<_> = std::iter::from_fn(|| pool.take()).map(Result::unwrap).collect();
    assert_eq!((all.len(), pool.on_nodes()[&NodeId(0)].slots), (3, 3));
}

#[test]
fn slots_that_strayed_leave_the_count_of_their_node() {
    let places = two_nodes(PlaceCalls { bind: ask, look: |_| Ok(Some(NodeId(0))) });
    let pool = Pool::create(spec(6), places).unwrap();
    let second = pool.idle().into_iter().find(|one| one.asked == NodeId(1)).unwrap();
    assert!(pool.retire(second.id));
    assert_eq!(free(&pool), [(0, 3)]);
    let on = |slots, strayed| OnNode { slots, strayed };
    let nodes = BTreeMap::from([(NodeId(0), on(3, 0)), (NodeId(1), on(0, 0))]);
    assert_eq!(pool.on_nodes(), nodes);
}

thread_local! {
    /// The node that this thread asked for last: where its memory comes to lie, but for tests that
    /// have it stray. A pool's first segments are made by the thread that creates it.
    static ASKED: std::cell::Cell<NodeId> = const { std::cell::Cell::new(NodeId(0)) };
}

fn ask(_: *const [u8], node: NodeId) -> Result<(), NumaError> {
    ASKED.set(node);
    Ok(())
}

fn two_nodes(calls: PlaceCalls) -> Places {
    let share = |node| NodeShare { node: NodeId(node), weight: 1 };
    Places::with(vec![share(0), share(1)], calls)
}

fn two() -> Places {
    two_nodes(PlaceCalls { bind: ask, look: |_| Ok(Some(ASKED.get())) })
}

fn free(pool: &Pool) -> Vec<(u32, usize)> {
    pool.free_on_nodes().into_iter().map(|(node, free)| (node.0, free)).collect()
}

#[test]
fn slots_are_taken_on_a_node_and_go_back_to_it() {
    let pool = Pool::create(spec(6), two()).unwrap();
    assert_eq!(free(&pool), [(0, 3), (1, 3)]);
    let mut taken: Vec<_> = (0..3).map(|_| pool.take_on(NodeId(1)).unwrap().unwrap()).collect();
    assert!(taken.iter().all(|slot| slot.node() == NodeId(1)));
    assert!(pool.take_on(NodeId(1)).is_none() && pool.take_on(NodeId(7)).is_none());
    assert_eq!(free(&pool), [(0, 3), (1, 0)]);
    let readable = taken.pop().unwrap().publish();
    assert_eq!(readable.node(), NodeId(1));
    drop((readable, taken));
    assert_eq!(free(&pool), [(0, 3), (1, 3)]);
}

#[test]
fn who_does_not_care_takes_from_the_node_with_the_most() {
    let pool = Pool::create(spec(6), two()).unwrap();
    let kept = pool.take_on(NodeId(0)).unwrap().unwrap();
    let next = pool.take().unwrap().unwrap();
    assert_eq!(next.node(), NodeId(1));
    let all: Vec<_> = std::iter::from_fn(|| pool.take()).collect();
    assert_eq!((all.len(), pool.free_slots()), (4, 0));
    drop((kept, next));
}

#[test]
fn memory_that_strays_counts_where_it_is() {
    let places = two_nodes(PlaceCalls { bind: ask, look: |_| Ok(Some(NodeId(0))) });
    let pool = Pool::create(spec(6), places).unwrap();
    assert_eq!(free(&pool), [(0, 6)]);
    let on = |slots, strayed| OnNode { slots, strayed };
    let nodes = BTreeMap::from([(NodeId(0), on(6, 0)), (NodeId(1), on(0, 3))]);
    assert_eq!(pool.on_nodes(), nodes);
    assert!(pool.degraded().is_empty(), "nothing was refused: {:?}", pool.degraded());
}

#[test]
fn what_the_kernel_refuses_is_said_once_and_slots_count_where_they_were_asked_for() {
    let calls = PlaceCalls {
        bind: |_, _| Err(NumaError::Forbidden { call: "mbind" }),
        look: |_| Err(NumaError::NotInKernel { call: "move_pages" }),
    };
    let pool = Pool::create(spec(6), two_nodes(calls)).unwrap();
    assert_eq!(free(&pool), [(0, 3), (1, 3)]);
    let said = pool.degraded();
    assert!(
        said.len() == 1 && said[0].starts_with("numa: ") && said[0].contains("mbind"),
        "{said:?}"
    );
}
