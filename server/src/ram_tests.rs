//! The tier over two nodes whose memory lies where it was asked for.

use forebay_io::NumaError;

use super::*;
use crate::ram::places::{NodeShare, PlaceCalls, Places};
use crate::ram::pool::PoolSpec;
use crate::resolve::manifest_for_tests;

#[test]
fn a_uri_covers_itself_and_what_is_under_it() {
    assert!(is_at_or_under("s3://b/a", "s3://b/a"));
    assert!(is_at_or_under("s3://b/a/", "s3://b/a"));
    assert!(is_at_or_under("s3://b/a/m", "s3://b/a/"));
    assert!(!is_at_or_under("s3://b/aa", "s3://b/a"));
    assert!(!is_at_or_under("s3://b/a", "s3://b/a/m"));
}

const CHUNK: u64 = 64 << 10;

thread_local! {
    static ASKED: std::cell::Cell<NodeId> = const { std::cell::Cell::new(NodeId(0)) };
}

fn ask(_: *const [u8], node: NodeId) -> Result<(), NumaError> {
    ASKED.set(node);
    Ok(())
}

/// Two slots on each of two nodes.
fn tier() -> Arc<RamTier> {
    tier_of(4)
}

/// So many slots, half of them on each of two nodes.
fn tier_of(slots: u64) -> Arc<RamTier> {
    let share = |node| NodeShare { node: NodeId(node), weight: 1 };
    let calls = PlaceCalls { bind: ask, look: |_| Ok(Some(ASKED.get())) };
    let places = Places::with(vec![share(0), share(1)], calls);
    let spec =
        PoolSpec { budget_bytes: slots * CHUNK, chunk_bytes: CHUNK, lock: false, segments_max: 9 };
    let pool = Arc::new(Pool::create(spec, places).unwrap());
    Arc::new(RamTier::new(pool, std::array::from_fn(|_| Counter::noop())))
}

/// A chunk of its own checkpoint, in a slot near `near`.
async fn fill(tier: &Arc<RamTier>, n: u8, near: u32) -> (PinnedChunk, RevisionUse) {
    let manifest = manifest_for_tests(&[(&format!("m{n}"), CHUNK)], &[]);
    let used = tier.use_revision(&manifest);
    let key = ChunkKey([n; 32]);
    let spec = Arc::new(ChunkSpec { index: 0, key, extents: Vec::new(), bytes: CHUNK });
    let slot = tier.claim(Some(NodeId(near))).await.unwrap();
    (tier.insert(VerifiedChunk::for_tests(slot, spec), &manifest), used)
}

fn held(tier: &RamTier) -> Vec<u8> {
    (0..10).filter(|n| tier.holds(&ChunkKey([*n; 32]))).collect()
}

#[tokio::test(start_paused = true)]
async fn a_node_s_own_slots_come_first_then_those_of_others() {
    let tier = tier();
    let mut slots = Vec::new();
    for _ in 0..4 {
        slots.push(tier.claim(Some(NodeId(1))).await.unwrap());
    }
    let nodes: Vec<u32> = slots.iter().map(|slot| slot.node().0).collect();
    assert_eq!((nodes, tier.misplaced()), (vec![1, 1, 0, 0], 2));
}

#[tokio::test(start_paused = true)]
async fn an_idle_checkpoint_on_the_node_goes_before_a_far_slot_is_taken() {
    let tier = tier();
    for (n, node) in [(1, 0), (2, 1), (3, 1)] {
        drop(fill(&tier, n, node).await);
    }
    assert_eq!(held(&tier), [1, 2, 3]);
    let (near, _used) = fill(&tier, 4, 1).await;
    assert_eq!((near.node(), held(&tier)), (NodeId(1), vec![1, 3, 4]), "the older one there");
    assert_eq!(tier.misplaced(), 0);
}

#[tokio::test(start_paused = true)]
async fn what_is_in_use_stays_and_a_far_slot_is_taken() {
    let tier = tier();
    // Nobody leases these chunks, but their loads go on.
    let (first, _first_use) = fill(&tier, 1, 1).await;
    let (second, _second_use) = fill(&tier, 2, 1).await;
    drop((first, second));
    let (far, far_use) = fill(&tier, 3, 1).await;
    assert_eq!((far.node(), tier.misplaced(), held(&tier)), (NodeId(0), 1, vec![1, 2, 3]));
    drop((far, far_use));
    let (_kept, _kept_use) = fill(&tier, 4, 0).await;
    // Every slot is taken now: the idle one goes, although it is far.
    let (last, _last_use) = fill(&tier, 5, 0).await;
    assert_eq!((last.node(), held(&tier)), (NodeId(0), vec![1, 2, 4, 5]));
}

#[tokio::test(start_paused = true)]
async fn nodes_are_told_apart() {
    let tier = tier();
    let (_leased, _used) = fill(&tier, 1, 1).await;
    drop(fill(&tier, 2, 1).await);
    let _claimed = tier.claim(Some(NodeId(0))).await.unwrap();
    let none = NodeSizes {
        node: NodeId(0),
        slots: 2,
        strayed: 0,
        cached: 0,
        leased: 0,
        filling: 0,
        free: 0,
    };
    let first = NodeSizes { filling: CHUNK, free: CHUNK, ..none };
    let second = NodeSizes { node: NodeId(1), leased: CHUNK, cached: CHUNK, ..none };
    assert_eq!(tier.on_nodes(), [first, second]);
}

/// The first one gives up an idle checkpoint; the others find its slots and take no far ones.
#[tokio::test(start_paused = true)]
async fn claims_at_the_same_time_share_the_room_that_is_made() {
    const CLAIMS: u8 = 8;
    for _ in 0..50 {
        let tier = tier_of(2 * u64::from(CLAIMS));
        let manifest = manifest_for_tests(&[("m", CHUNK)], &[]);
        let used = tier.use_revision(&manifest);
        for n in 0..CLAIMS {
            let key = ChunkKey([n; 32]);
            let spec = Arc::new(ChunkSpec { index: 0, key, extents: Vec::new(), bytes: CHUNK });
            let slot = tier.claim(Some(NodeId(1))).await.unwrap();
            drop(tier.insert(VerifiedChunk::for_tests(slot, spec), &manifest));
        }
        drop(used);
        let start = std::sync::Barrier::new(CLAIMS.into());
        let claim = || {
            start.wait();
            tier.take(Some(NodeId(1)), &mut ClaimCost::default()).unwrap().unwrap()
        };
        let slots: Vec<ClaimedSlot> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..CLAIMS).map(|_| scope.spawn(claim)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert!(slots.iter().all(|slot| slot.node() == NodeId(1)));
        assert_eq!(tier.misplaced(), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn what_lies_in_a_retiring_segment_is_given_up_and_what_is_lent_stays_readable() {
    let tier = tier();
    let (leased, _used) = fill(&tier, 1, 1).await;
    drop(fill(&tier, 2, 1).await);
    drop(fill(&tier, 3, 0).await);
    let id = leased.segment_id();
    let before = leased.payload(8).map(<[u8]>::to_vec);
    assert!(tier.retire(id));
    assert_eq!((held(&tier), tier.sizes().retiring), (vec![3], 2 * CHUNK));
    assert_eq!((tier.sizes().retiring_busy, tier.sizes().filling), (CHUNK, 0));
    assert_eq!(leased.payload(8).map(<[u8]>::to_vec), before);
    assert!(tier.pool().let_go().is_none());
    drop(leased);
    assert_eq!(tier.pool().let_go().map(|gone| gone.id()), Some(id));
    assert_eq!((tier.sizes().retiring, tier.sizes().populated), (0, 2 * CHUNK));
}

#[tokio::test(start_paused = true)]
async fn what_lands_in_a_retiring_segment_is_lent_and_not_kept() {
    let tier = tier();
    let manifest = manifest_for_tests(&[("m", CHUNK)], &[]);
    let _used = tier.use_revision(&manifest);
    let slot = tier.claim(Some(NodeId(1))).await.unwrap();
    let id = tier.pool().idle().into_iter().find(|one| one.idle < one.slots).unwrap().id;
    assert!(tier.retire(id));
    let key = ChunkKey([1; 32]);
    let spec = Arc::new(ChunkSpec { index: 0, key, extents: Vec::new(), bytes: CHUNK });
    let landed = tier.insert(VerifiedChunk::for_tests(slot, spec), &manifest);
    assert_eq!((landed.segment_id(), tier.holds(&key)), (id, false));
    drop(landed);
    assert!(tier.pool().let_go().is_some());
}

#[tokio::test(start_paused = true)]
async fn what_lands_after_its_load_is_found_by_who_evicts_it() {
    let tier = tier();
    let manifest = manifest_for_tests(&[("m", CHUNK)], &[]);
    let used = tier.use_revision(&manifest);
    let slots = [tier.claim(None).await.unwrap(), tier.claim(None).await.unwrap()];
    drop(used);
    assert!(tier.list("", Instant::now()).is_empty());
    let spec = ChunkSpec { index: 0, key: ChunkKey([1; 32]), extents: Vec::new(), bytes: CHUNK };
    let spec = Arc::new(spec);
    // Of two of the same chunk the second replaces the first.
    for slot in slots {
        drop(tier.insert(VerifiedChunk::for_tests(slot, Arc::clone(&spec)), &manifest));
    }
    tokio::time::advance(Duration::from_secs(3)).await;
    let listed = tier.list("", Instant::now());
    let [one] = listed.as_slice() else { panic!("{listed:?}") };
    assert_eq!((one.uri.as_str(), one.active, one.cached_bytes), (manifest.uri(), 0, CHUNK));
    assert_eq!((one.objects, one.idle), (1, Duration::from_secs(3)));
    let evicted = tier.evict_uri(manifest.uri());
    assert_eq!((evicted.checkpoints, evicted.freed_bytes), (1, CHUNK));
    assert_eq!((held(&tier), tier.sizes().cached), (vec![], 0));
}
