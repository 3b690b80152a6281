//! Any history of loads, pins, evictions, damage, faults and restarts, against a model that knows
//! only what was stored well and what must stay: in a tier that holds half of what is loaded.

use std::collections::BTreeSet;

use proptest::prelude::*;
use proptest::test_runner::RngSeed;

use super::*;

/// Chunks, three of each of four revisions; the first one is also of the revision before it.
const CHUNKS: u8 = 12;
const REVISIONS: u8 = CHUNKS / 3;

/// What the tier has room for.
const FILES: usize = 6;
const BUDGET: u64 = FILES as u64 * FILE;

type Checked = Result<(), TestCaseError>;

#[derive(Debug, Clone)]
enum Op {
    Load(u8),
    /// Two loads at a time.
    Loads(u8, u8),
    Pin(u8, bool),
    Evict(u8),
    Flip(u8, usize, u8),
    Remove(u8),
    Fault(OpKind, IoFault, u64),
    Mend,
    Restart {
        index: bool,
    },
}

fn fault() -> impl Strategy<Value = IoFault> {
    let torn = |unit_bytes| move |told| IoFault::Torn { unit_bytes, told };
    let told = prop_oneof![Just(Told::Done), Just(Told::Failed), Just(Told::Nothing)];
    prop_oneof![
        (0..9000usize).prop_map(IoFault::Short),
        Just(IoFault::Late(Duration::from_millis(3))),
        Just(IoFault::Eio),
        Just(IoFault::NoSpace),
        told.clone().prop_map(torn(512)),
        told.prop_map(torn(4096)),
        (-4i64..4).prop_map(|blocks| IoFault::Misdirected { by_bytes: blocks * 4096 }),
        Just(IoFault::FlipBit),
    ]
}

fn op() -> impl Strategy<Value = Op> {
    let (n, r) = (0..CHUNKS, 0..REVISIONS);
    let kind = prop_oneof![Just(OpKind::Read), Just(OpKind::Write)];
    prop_oneof![
        6 => r.clone().prop_map(Op::Load),
        3 => (r.clone(), r.clone()).prop_map(|(r, q)| Op::Loads(r, q)),
        3 => (r.clone(), any::<bool>()).prop_map(|(r, pinned)| Op::Pin(r, pinned)),
        1 => r.prop_map(Op::Evict),
        1 => (n.clone(), any::<usize>(), any::<u8>()).prop_map(|(n, at, bit)| Op::Flip(n, at, bit)),
        1 => n.prop_map(Op::Remove),
        1 => (kind, fault(), 0..4u64).prop_map(|(kind, fault, nth)| Op::Fault(kind, fault, nth)),
        2 => Just(Op::Mend),
        1 => any::<bool>().prop_map(|index| Op::Restart { index }),
    ]
}

fn rev(r: u8) -> Revision {
    revision(3 * r)
}

fn uri(r: u8) -> String {
    format!("s3://b/{r}")
}

fn chunks_of(r: u8) -> impl Iterator<Item = u8> {
    (3 * r..3 * r + 3).chain([3 * ((r + 1) % REVISIONS)])
}

/// The tier, and what must be so.
struct Model {
    node: Node,
    /// Stored while the disk was well, and nothing has happened since that may have cost them.
    sure: BTreeSet<u8>,
    /// Who refers to a chunk.
    refs: BTreeMap<u8, BTreeSet<Revision>>,
    pinned: BTreeSet<Revision>,
    /// Loaded since names were lost with the index: only these can be evicted by name.
    named: BTreeSet<Revision>,
    /// No fault is waiting.
    well: bool,
    /// There was none since the start.
    sound: bool,
}

impl Model {
    async fn start(dir: &Arc<TempDir>) -> Self {
        let node = Node::start(dir, BUDGET, 3);
        node.recovered().await;
        let (sure, refs, pinned, named) = Default::default();
        Self { node, sure, refs, pinned, named, well: true, sound: true }
    }

    fn stored(&self, n: u8) -> Option<Stored> {
        self.node.tier.catalog().peek(&key(n))
    }

    fn all_stored(&self) -> BTreeSet<u8> {
        (0..CHUNKS).filter(|n| self.stored(*n).is_some()).collect()
    }

    /// A pinned revision refers to it.
    fn stays(&self, n: u8) -> bool {
        self.refs.get(&n).is_some_and(|refs| !refs.is_disjoint(&self.pinned))
    }

    fn trusts(&self) -> bool {
        let tier = &self.node.tier;
        self.well && tier.disk.state() == DiskState::Normal && !tier.is_full(Instant::now())
    }

    /// For room, whatever is not pinned, nor of the revision that needs it, may have gone.
    fn made_room(&mut self, own: &BTreeSet<u8>) {
        let kept = |n: &u8| self.stays(*n) || own.contains(n);
        self.sure = self.sure.iter().copied().filter(kept).collect();
    }

    fn begin(&self, r: u8) {
        self.node.tier.catalog().begin(rev(r), &uri(r), 1, 1, clock::seconds());
    }

    fn end(&self, r: u8) {
        let mut catalog = self.node.tier.catalog();
        catalog.end(rev(r), clock::seconds());
        self.node.tier.remember(&catalog, [], [rev(r)]);
    }

    async fn load(&mut self, r: u8) -> Checked {
        self.named.insert(rev(r));
        self.begin(r);
        for n in chunks_of(r) {
            let got = self.node.get_for(n, rev(r)).await;
            prop_assert!(got.is_none() || got == Some(right(n)), "wrong bytes of {}", n);
            let lost = got.is_none() && self.sure.contains(&n) && self.trusts();
            prop_assert!(!lost, "{} is lost", n);
            if got.is_none() {
                self.put(n, r).await?;
            } else {
                self.refs.entry(n).or_default().insert(rev(r));
            }
        }
        self.end(r);
        Ok(())
    }

    async fn put(&mut self, n: u8, r: u8) -> Checked {
        // What is known already may have been written by a disk that lied.
        let fresh = self.stored(n).is_none();
        let before = self.all_stored();
        let full = fresh && before.len() >= FILES;
        // What the revision refers to, whoever it was stored for, never makes room for it.
        let is_own = |n: &u8| {
            let row = self.node.tier.catalog().chunk_row(&key(*n));
            row.is_some_and(|row| row.revisions.contains(&rev(r)))
        };
        let own: BTreeSet<u8> = before.iter().copied().filter(is_own).collect();
        let no_room = full && before.iter().all(|n| self.stays(*n) || own.contains(n));
        let stored = self.node.put_for(n, rev(r)).await;
        prop_assert!(stored || no_room || !self.trusts(), "{} is not stored", n);
        prop_assert!(!(stored && no_room), "there was no room for {}", n);
        if full {
            self.made_room(&own);
        }
        if fresh && stored {
            self.refs.insert(n, BTreeSet::from([rev(r)]));
        } else if stored {
            self.refs.entry(n).or_default().insert(rev(r));
        }
        if fresh && stored && self.well {
            self.sure.insert(n);
        }
        Ok(())
    }

    /// Two loads at a time: what of it stays is less sure, what is read is not.
    async fn loads(&mut self, r: u8, q: u8) -> Checked {
        let mut all = self.all_stored();
        all.extend(chunks_of(r).chain(chunks_of(q)));
        if all.len() > FILES {
            self.made_room(&BTreeSet::new());
        }
        self.named.extend([rev(r), rev(q)]);
        self.begin(r);
        self.begin(q);
        let (one, two) = tokio::join!(self.load_beside(r), self.load_beside(q));
        self.end(r);
        self.end(q);
        one?;
        two?;
        self.refs = self.known_refs();
        Ok(())
    }

    fn known_refs(&self) -> BTreeMap<u8, BTreeSet<Revision>> {
        let catalog = self.node.tier.catalog();
        let row = |n| Some((n, catalog.chunk_row(&key(n))?.revisions.into_iter().collect()));
        (0..CHUNKS).filter_map(row).collect()
    }

    async fn load_beside(&self, r: u8) -> Checked {
        for n in chunks_of(r) {
            let got = self.node.get_for(n, rev(r)).await;
            prop_assert!(got.is_none() || got == Some(right(n)), "wrong bytes of {}", n);
            let lost = got.is_none() && self.sure.contains(&n) && self.trusts();
            prop_assert!(!lost, "{} is lost", n);
            if got.is_none() {
                self.node.put_for(n, rev(r)).await;
            }
        }
        Ok(())
    }

    async fn evict(&mut self, r: u8) -> Checked {
        let evicted = self.node.tier.evict(|known| known == uri(r)).await;
        if self.pinned.contains(&rev(r)) {
            prop_assert_eq!((evicted.checkpoints, evicted.pinned), (0, 1));
            return Ok(());
        }
        if !self.named.contains(&rev(r)) {
            prop_assert_eq!((evicted.checkpoints, evicted.pinned), (0, 0));
            return Ok(());
        }
        for n in 0..CHUNKS {
            let Some(refs) = self.refs.get_mut(&n) else { continue };
            if refs.remove(&rev(r)) && refs.is_empty() {
                self.sure.remove(&n);
                prop_assert!(self.stored(n).is_none(), "{} is evicted", n);
            }
        }
        Ok(())
    }

    async fn restart(self, index: bool) -> Self {
        let Self { node, sure, refs, pinned, named, .. } = self;
        let dir = node.stop().await;
        if index {
            return Self { sure, refs, pinned, named, ..Self::start(&dir).await };
        }
        std::fs::remove_file(dir.path().join("nvme/index.redb")).unwrap();
        // The extents themselves say which revision each was stored for.
        let model = Self::start(&dir).await;
        Self { sure, refs: model.known_refs(), ..model }
    }

    async fn step(mut self, op: Op) -> Result<Self, TestCaseError> {
        match op {
            Op::Load(r) => self.load(r).await?,
            Op::Loads(r, q) => self.loads(r, q).await?,
            Op::Pin(r, true) => {
                self.pinned.extend(self.node.tier.pin(|known| known == uri(r), true).await)
            }
            Op::Pin(r, false) => {
                for revision in self.node.tier.pin(|known| known == uri(r), false).await {
                    prop_assert!(self.pinned.remove(&revision));
                }
                prop_assert!(!self.pinned.contains(&rev(r)), "its pin is forgotten");
            }
            Op::Evict(r) => self.evict(r).await?,
            Op::Flip(n, at, bit) if self.node.path(n).exists() => {
                flip(&self.node.path(n), at, bit);
                self.sure.remove(&n);
            }
            Op::Remove(n) if self.node.path(n).exists() => {
                std::fs::remove_file(self.node.path(n)).unwrap();
                self.sure.remove(&n);
            }
            Op::Flip(..) | Op::Remove(_) => {}
            Op::Fault(kind, fault, nth) => {
                (self.well, self.sound) = (false, false);
                self.node.faults.add(IoFaultRule::new(kind, fault).when(When::Nth(nth)));
                // A read that lies may have an extent put aside that is right.
                self.sure.clear();
            }
            Op::Mend => {
                self.node.faults.clear();
                *lock(&self.node.tier.full_until) = None;
                self.well = true;
            }
            Op::Restart { index } => self = self.restart(index).await,
        }
        Ok(self)
    }

    /// What holds after each step.
    fn check(&self) -> Checked {
        let state = self.node.tier.state();
        prop_assert!(state.stored <= BUDGET && state.filling == 0, "{:?}", state);
        let pinned = |n: &u8| self.stays(*n) && self.stored(*n).is_some();
        let pinned = (0..CHUNKS).filter(pinned).count() as u64;
        prop_assert!(state.pinned >= pinned * (FIRST + SECOND), "{:?}: {}", state, pinned);
        for n in (0..CHUNKS).filter(|n| self.sound && self.node.path(*n).exists()) {
            prop_assert!(self.stored(n).is_some(), "a file of {} that nobody knows", n);
        }
        Ok(())
    }
}

/// Histories to try: always the same few, or many that are new. Each takes real time, in which the
/// machine may do other things: one that fails is to fail again.
fn histories() -> ProptestConfig {
    let slow = std::env::var_os("FOREBAY_SLOW_TESTS").is_some_and(|value| value == "1");
    println!("8 histories, 1000 with FOREBAY_SLOW_TESTS=1");
    let (cases, rng_seed) = if slow { (1000, RngSeed::Random) } else { (8, RngSeed::Fixed(7)) };
    ProptestConfig { cases, rng_seed, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(histories())]

    /// Bytes are right or are not there; what was stored while the disk was well and was left alone
    /// since is there, unless room was needed and nobody had pinned it.
    #[test]
    fn any_history_serves_right_bytes_or_none(ops in proptest::collection::vec(op(), 1..40)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let outcome: Checked = runtime.block_on(async {
            let mut model = Model::start(&new_dir()).await;
            for op in ops {
                model = model.step(op).await?;
                model.check()?;
            }
            model.node.stop().await;
            Ok(())
        });
        outcome?;
    }
}
