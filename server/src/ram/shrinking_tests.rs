//! The tier while it shrinks and grows, with loads in it: what `resize` does, without its waits.

use std::pin::Pin;

use futures::FutureExt as _;

use super::*;
use crate::admission::queue::Limits;
use crate::admission::{Admission, AdmissionPermit, Holder, Lane, Withdrawn};
use crate::ram::places::{Places, SegmentPlan};
use crate::ram::pool::PoolSpec;
use crate::ram::steps::{Step, next, victim};
use crate::resolve::manifest_for_tests;

const CHUNK: u64 = 64 << 10;

/// A pool in segments of at most so many slots.
const SLOTS_MAX: u32 = 4;

type Withdrawing = Pin<Box<dyn Future<Output = Withdrawn>>>;

/// A segment that goes out of use when its tokens are there: the node, its slots, and which one
/// replaces it.
type Leaving = (Withdrawing, (NodeId, u32), Option<SegmentId>);

/// What comes without waiting; the runtime's bound on work without a pause does not count.
fn at_once<T>(work: impl Future<Output = T>) -> Option<T> {
    tokio::task::unconstrained(work).now_or_never()
}

struct Shrinking {
    tier: Arc<RamTier>,
    admission: Arc<Admission>,
    leaving: Option<Leaving>,
    used: RevisionUse,
    manifest: Arc<Manifest>,
    keys: u64,
    dice: u64,
}

/// What loads have: chunks before their tokens, as a lease has them.
#[derive(Default)]
struct Loads {
    running: Vec<AdmissionPermit>,
    held: Vec<(PinnedChunk, WindowSlot)>,
    refused: usize,
    granted_while_owed: usize,
}

impl Shrinking {
    fn new(seed: u64) -> Self {
        let spec =
            PoolSpec { budget_bytes: CHUNK, chunk_bytes: CHUNK, lock: false, segments_max: 99 };
        let pool = Arc::new(Pool::create(spec, Places::one()).unwrap());
        let tier = Arc::new(RamTier::new(pool, std::array::from_fn(|_| Counter::noop())));
        let limits = Limits { queued_max: 9, active_max: 9 };
        let admission = Arc::new(Admission::new(limits, Duration::from_secs(3600)));
        admission.grow(1);
        let manifest = manifest_for_tests(&[("m", CHUNK)], &[]);
        let used = tier.use_revision(&manifest);
        Self { tier, admission, leaving: None, used, manifest, keys: 0, dice: seed }
    }

    fn roll(&mut self, sides: u64) -> u64 {
        self.dice = self.dice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(99_991);
        (self.dice >> 33) % sides
    }

    fn pick<T>(&mut self, of: &[T]) -> usize {
        usize::try_from(self.roll(of.len() as u64)).unwrap()
    }

    fn make(&self, slots: u32) -> SegmentId {
        let made = self.tier.pool().make(SegmentPlan { node: NodeId(0), slots }).unwrap();
        self.admission.grow(slots as usize);
        made.id()
    }

    fn withdraw(&self, slots: u32) -> Withdrawing {
        let admission = Arc::clone(&self.admission);
        Box::pin(async move { admission.withdraw(slots as usize).await })
    }

    /// Takes the segment that is to go out of use; false while tokens are missing.
    fn leave(&mut self) -> bool {
        let Some((withdrawing, what, but)) = &mut self.leaving else { return true };
        let Some(withdrawn) = at_once(withdrawing) else { return false };
        let id = victim(&self.tier.uses(), *what, *but).unwrap();
        assert!(self.tier.retire(id));
        withdrawn.spend();
        self.leaving = None;
        true
    }

    /// Goes on as far as it gets without waiting.
    fn resize(&mut self) {
        let pool = Arc::clone(self.tier.pool());
        loop {
            if !self.leave() {
                return;
            }
            while pool.let_go().is_some() {}
            match next(&pool.shares(), &self.tier.uses(), SLOTS_MAX) {
                Step::Done | Step::Wait => return,
                Step::Make(plan) => drop(self.make(plan.slots)),
                Step::Revive(id) => self.admission.grow(pool.revive(id).unwrap() as usize),
                Step::Retire { node, slots, instead } => {
                    let new = (instead > 0).then(|| self.make(instead));
                    self.leaving = Some((self.withdraw(slots), (node, slots), new));
                }
            }
        }
    }

    /// A chunk that nobody has, in a slot that has to be there at once.
    fn bring(&mut self) -> PinnedChunk {
        self.keys += 1;
        let mut key = [0; 32];
        key[..8].copy_from_slice(&self.keys.to_le_bytes());
        let key = ChunkKey(key);
        let spec = Arc::new(ChunkSpec { index: 0, key, extents: Vec::new(), bytes: CHUNK });
        let slot = at_once(self.tier.claim(None)).expect("a slot for a fresh token");
        self.tier.insert(VerifiedChunk::for_tests(slot.unwrap(), spec), &self.manifest)
    }

    fn set(&mut self, slots: u64) {
        self.leaving = None;
        self.tier.pool().set_budget(slots * CHUNK);
        self.resize();
    }

    fn admit(&self, loads: &mut Loads) {
        let holder = Holder { load_id: "x".into(), uid: 1, pid: 1, what: None };
        let admitting = self.admission.admit(Lane::Interactive, holder);
        loads.running.extend(at_once(admitting).map(Result::unwrap));
    }

    /// A load asks for a slot; whether it got one.
    fn ask(&mut self, loads: &mut Loads, which: usize) -> bool {
        let owed = self.admission.owed() > 0;
        let Some(token) = at_once(loads.running[which].slot()) else {
            loads.refused += 1;
            return false;
        };
        loads.granted_while_owed += usize::from(owed);
        loads.held.push((self.bring(), token.unwrap()));
        true
    }

    /// Something happens.
    fn turn(&mut self, loads: &mut Loads) {
        match self.roll(16) {
            0 => {
                let slots = self.roll(50) + 2;
                self.set(slots);
            }
            1 | 2 if loads.running.len() < 9 => self.admit(loads),
            3 if !loads.running.is_empty() => drop(loads.running.swap_remove(0)),
            4..=7 if !loads.held.is_empty() => {
                drop(loads.held.swap_remove(self.pick(&loads.held)));
            }
            _ if !loads.running.is_empty() => {
                let which = self.pick(&loads.running);
                self.ask(loads, which);
            }
            _ => {}
        }
        self.resize();
        assert!(self.tier.pool().slots() >= 1);
    }
}

#[tokio::test(start_paused = true)]
async fn whoever_has_a_fresh_token_finds_a_slot_while_the_pool_shrinks_and_grows() {
    let (mut refused, mut granted_while_owed) = (0, 0);
    for seed in 0..100 {
        let (mut pool, mut loads) = (Shrinking::new(seed), Loads::default());
        // Five loads that own four slots each; one of them takes all that nobody owns.
        pool.set(40);
        (0..5).for_each(|_| pool.admit(&mut loads));
        while pool.ask(&mut loads, 0) {}
        let small = 2 + pool.roll(20);
        pool.set(small);
        (0..200).for_each(|_| pool.turn(&mut loads));
        refused += loads.refused;
        granted_while_owed += loads.granted_while_owed;
        drop((loads.held, loads.running));
        pool.resize();
        let budget = pool.tier.pool().spec().budget_bytes;
        let sizes = pool.tier.sizes();
        assert_eq!((sizes.populated, sizes.retiring, sizes.filling), (budget, 0, 0), "seed {seed}");
        assert_eq!(pool.admission.owed(), 0);
        drop(pool.used);
    }
    println!("{refused} refused, {granted_while_owed} granted while others had to give back");
    assert!(refused > 500 && granted_while_owed > 500);
}
