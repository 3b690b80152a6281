//! What a tier holds and what it gives up next: the bookkeeping, without memory, files or clocks.
//!
//! A *chunk* is resident once; several *revisions* may refer to it (a shard that two checkpoints
//! share). Each revision knows its chunks and when it was last used, in ticks of a counter.
//!
//! Eviction gives up whole revisions before chunks: half a checkpoint saves nobody a download. The
//! next victim is the least recently used revision that no load is using; all its chunks go, except
//! those a revision in use refers to. Only when every revision is in use are single chunks given
//! up, least recently used first. A chunk that is leased is never a victim (`leased` says so), nor
//! is one of a revision that an operator has pinned.
//!
//! Where room is wanted by bytes ([`Residency::evict_sized`]), size counts beside age: of the older
//! half of the idle revisions the smallest goes that is large enough, so that a large checkpoint
//! does not make room for a small one that a smaller and hardly younger one could make.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use crate::plan::ChunkKey;
use crate::resolve::Revision;

/// One resident chunk with its value.
#[derive(Debug)]
struct Resident<V> {
    value: V,
    bytes: u64,
    used: u64,
    revisions: BTreeSet<Revision>,
}

/// What is known of a revision that has chunks here or a load that uses it.
#[derive(Debug, Clone)]
pub(crate) struct RevisionEntry {
    /// Where it was loaded from last.
    pub(crate) uri: String,
    /// Bytes of the whole checkpoint.
    pub(crate) bytes: u64,
    /// Objects of the whole checkpoint.
    pub(crate) objects: usize,
    /// Loads that use it now.
    pub(crate) active: usize,
    /// Bytes of it that are resident.
    pub(crate) cached_bytes: u64,
    /// Tick of its last use.
    pub(crate) used: u64,
    /// Whether an operator keeps it.
    pub(crate) pinned: bool,
    chunks: BTreeSet<ChunkKey>,
}

/// The index of the RAM tier.
#[derive(Debug)]
pub(crate) struct Residency<V> {
    chunks: HashMap<ChunkKey, Resident<V>>,
    /// The chunks by their last use; ticks are unique.
    by_use: BTreeMap<u64, ChunkKey>,
    revisions: BTreeMap<Revision, RevisionEntry>,
    tick: u64,
}

impl<V: Clone> Residency<V> {
    pub(crate) fn new() -> Self {
        Self {
            chunks: HashMap::new(),
            by_use: BTreeMap::new(),
            revisions: BTreeMap::new(),
            tick: 0,
        }
    }

    /// A load starts to use `revision`.
    pub(crate) fn begin(&mut self, revision: Revision, uri: &str, bytes: u64, objects: usize) {
        self.tick += 1;
        let tick = self.tick;
        let entry = self.revisions.entry(revision).or_insert_with(|| RevisionEntry {
            uri: uri.to_owned(),
            bytes,
            objects,
            active: 0,
            cached_bytes: 0,
            used: tick,
            pinned: false,
            chunks: BTreeSet::new(),
        });
        uri.clone_into(&mut entry.uri);
        (entry.bytes, entry.objects) = (bytes, objects);
        entry.active += 1;
        entry.used = tick;
    }

    /// Counts one more use of a revision that is known; false if it is not.
    pub(crate) fn hold(&mut self, revision: Revision) -> bool {
        let Some(entry) = self.revisions.get_mut(&revision) else { return false };
        entry.active += 1;
        true
    }

    /// A load stops using `revision`.
    pub(crate) fn end(&mut self, revision: Revision) {
        self.tick += 1;
        let Some(entry) = self.revisions.get_mut(&revision) else { return };
        debug_assert!(entry.active > 0);
        entry.active -= 1;
        entry.used = self.tick;
        self.forget_if_empty(revision);
    }

    /// Whether an operator keeps `revision`; false if it is not known.
    pub(crate) fn pin(&mut self, revision: Revision, pinned: bool) -> bool {
        let Some(entry) = self.revisions.get_mut(&revision) else { return false };
        entry.pinned = pinned;
        self.forget_if_empty(revision);
        true
    }

    /// The chunk, if it is here, without counting as a use.
    pub(crate) fn peek(&self, key: &ChunkKey) -> Option<&V> {
        self.chunks.get(key).map(|resident| &resident.value)
    }

    /// The chunk, if it is here; `revision` refers to it from now on.
    pub(crate) fn get(&mut self, key: &ChunkKey, revision: Revision) -> Option<V> {
        self.tick += 1;
        let resident = self.chunks.get_mut(key)?;
        self.by_use.remove(&resident.used);
        self.by_use.insert(self.tick, *key);
        resident.used = self.tick;
        let value = resident.value.clone();
        self.refer(*key, revision);
        Some(value)
    }

    /// Whether the chunk is here, without counting as a use.
    pub(crate) fn holds(&self, key: &ChunkKey) -> bool {
        self.chunks.contains_key(key)
    }

    /// Takes a chunk in. Returns the value that it replaces, if there was one.
    pub(crate) fn insert(
        &mut self,
        key: ChunkKey,
        revision: Revision,
        bytes: u64,
        value: V,
    ) -> Option<V> {
        self.tick += 1;
        let replaced = self.remove(&key);
        let used = self.tick;
        let revisions = BTreeSet::new();
        self.chunks.insert(key, Resident { value, bytes, used, revisions });
        self.by_use.insert(used, key);
        self.refer(key, revision);
        replaced
    }

    /// The chunks to give up next, at least one if any chunk may go; removed already.
    pub(crate) fn evict(&mut self, leased: impl Fn(&V) -> bool) -> Vec<V> {
        let idle = self.evict_idle(&leased);
        if idle.is_empty() { self.evict_oldest(leased).into_iter().collect() } else { idle }
    }

    /// The chunks of the revision that is idle for the longest time and has any that may go.
    pub(crate) fn evict_idle(&mut self, leased: impl Fn(&V) -> bool) -> Vec<V> {
        for (_, revision, _) in self.idle() {
            let keys = self.evictable(revision, &leased);
            if !keys.is_empty() {
                return keys.iter().filter_map(|key| self.remove(key)).collect();
            }
        }
        Vec::new()
    }

    /// The chunks of an idle revision, for room of so many bytes: may be less than that, to be
    /// asked again. Revisions without a name go first: nobody can ask for them.
    pub(crate) fn evict_sized(&mut self, bytes: u64) -> Vec<V> {
        let mut idle = self.idle();
        let nameless = |revision: &Revision| {
            self.revisions.get(revision).is_some_and(|entry| entry.uri.is_empty())
        };
        if let Some(at) = idle.iter().position(|(_, revision, _)| nameless(revision)) {
            idle[..=at].rotate_right(1);
            idle.truncate(1);
        }
        let older = idle.len().div_ceil(2);
        let enough = idle[..older].iter().enumerate().filter(|(_, (_, _, held))| *held >= bytes);
        let best = enough.min_by_key(|(age, (_, _, held))| (*held, *age)).map(|(age, _)| age);
        // The others follow by age, should nothing of the best one be free.
        if let Some(best) = best {
            idle[..=best].rotate_right(1);
        }
        for (_, revision, _) in idle {
            let keys = self.evictable(revision, |_| false);
            if !keys.is_empty() {
                return keys.iter().filter_map(|key| self.remove(key)).collect();
            }
        }
        Vec::new()
    }

    /// Single chunks, least recently used first, until they have so many bytes by `size`; none that
    /// a pinned revision refers to, or this one.
    pub(crate) fn evict_chunks(
        &mut self,
        bytes: u64,
        own: Option<Revision>,
        size: impl Fn(&V) -> u64,
    ) -> Vec<V> {
        let stays = |revision: &Revision| {
            own == Some(*revision) || self.revisions.get(revision).is_some_and(|entry| entry.pinned)
        };
        let mut keys = Vec::new();
        let mut freed = 0;
        for key in self.by_use.values() {
            if freed >= bytes {
                break;
            }
            let resident = self.chunks.get(key);
            if let Some(free) = resident.filter(|resident| !resident.revisions.iter().any(stays)) {
                freed += size(&free.value);
                keys.push(*key);
            }
        }
        keys.iter().filter_map(|key| self.remove(key)).collect()
    }

    /// Gives up every chunk that `gone` says yes to, whoever uses it.
    pub(crate) fn take(&mut self, gone: impl Fn(&V) -> bool) -> Vec<V> {
        let there = self.chunks.iter().filter(|(_, resident)| gone(&resident.value));
        let keys: Vec<ChunkKey> = there.map(|(key, _)| *key).collect();
        keys.iter().filter_map(|key| self.remove(key)).collect()
    }

    /// The revisions that no load uses and nobody pinned, by age: tick of last use, and bytes here.
    fn idle(&self) -> Vec<(u64, Revision, u64)> {
        let idle =
            |entry: &RevisionEntry| entry.active == 0 && !entry.pinned && !entry.chunks.is_empty();
        let mut idle: Vec<(u64, Revision, u64)> = self
            .revisions
            .iter()
            .filter(|(_, entry)| idle(entry))
            .map(|(revision, entry)| (entry.used, *revision, entry.cached_bytes))
            .collect();
        idle.sort_unstable();
        idle
    }

    /// The least recently used chunk that nobody leases and no pinned revision refers to.
    fn evict_oldest(&mut self, leased: impl Fn(&V) -> bool) -> Option<V> {
        let pinned =
            |revision: &Revision| self.revisions.get(revision).is_some_and(|entry| entry.pinned);
        let free = |key: &&ChunkKey| {
            self.chunks.get(*key).is_some_and(|resident| {
                !leased(&resident.value) && !resident.revisions.iter().any(pinned)
            })
        };
        let oldest = self.by_use.values().find(free).copied();
        oldest.and_then(|key| self.remove(&key))
    }

    /// The chunks of an idle revision that nobody leases and no revision in use, or pinned, refers
    /// to.
    fn evictable(&self, revision: Revision, leased: impl Fn(&V) -> bool) -> Vec<ChunkKey> {
        let Some(entry) = self.revisions.get(&revision) else { return Vec::new() };
        let in_use = |other: &Revision| {
            self.revisions.get(other).is_some_and(|entry| entry.active > 0 || entry.pinned)
        };
        let free = |key: &&ChunkKey| {
            self.chunks.get(*key).is_some_and(|resident| {
                !leased(&resident.value) && !resident.revisions.iter().any(in_use)
            })
        };
        entry.chunks.iter().filter(free).copied().collect()
    }

    /// Gives up every chunk that only the given revisions refer to; returns their values.
    pub(crate) fn drop_revisions(&mut self, revisions: &[Revision]) -> Vec<V> {
        let mut dropped = Vec::new();
        for revision in revisions {
            let keys: Vec<ChunkKey> = match self.revisions.get_mut(revision) {
                Some(entry) => std::mem::take(&mut entry.chunks).into_iter().collect(),
                None => continue,
            };
            for key in keys {
                dropped.extend(self.unrefer(key, *revision));
            }
            self.forget_if_empty(*revision);
        }
        dropped
    }

    /// `revision` no longer refers to the chunk; the chunk goes with its last reference.
    fn unrefer(&mut self, key: ChunkKey, revision: Revision) -> Option<V> {
        let resident = self.chunks.get_mut(&key)?;
        resident.revisions.remove(&revision);
        if let Some(entry) = self.revisions.get_mut(&revision) {
            entry.cached_bytes -= resident.bytes;
        }
        if resident.revisions.is_empty() { self.remove(&key) } else { None }
    }

    /// `revision` refers to the chunk from now on, if both are known.
    pub(crate) fn refer(&mut self, key: ChunkKey, revision: Revision) {
        let Some(resident) = self.chunks.get_mut(&key) else { return };
        // Without an entry (its loads are over) the chunk still counts for itself.
        if let Some(entry) = self.revisions.get_mut(&revision)
            && entry.chunks.insert(key)
        {
            entry.cached_bytes += resident.bytes;
            resident.revisions.insert(revision);
        }
    }

    /// Gives the chunk up.
    pub(crate) fn remove(&mut self, key: &ChunkKey) -> Option<V> {
        let resident = self.chunks.remove(key)?;
        self.by_use.remove(&resident.used);
        for revision in &resident.revisions {
            if let Some(entry) = self.revisions.get_mut(revision) {
                entry.chunks.remove(key);
                entry.cached_bytes -= resident.bytes;
            }
            self.forget_if_empty(*revision);
        }
        Some(resident.value)
    }

    /// Revisions without a chunk, a load or a pin are not kept: the index is bounded by the chunks.
    fn forget_if_empty(&mut self, revision: Revision) {
        let empty =
            |entry: &RevisionEntry| entry.active == 0 && !entry.pinned && entry.chunks.is_empty();
        if self.revisions.get(&revision).is_some_and(empty) {
            self.revisions.remove(&revision);
        }
    }

    /// Revisions that have chunks here or loads that use them.
    pub(crate) fn revisions(&self) -> impl Iterator<Item = (&Revision, &RevisionEntry)> {
        self.revisions.iter()
    }

    /// The chunks that a revision refers to.
    pub(crate) fn chunks_of(&self, revision: &Revision) -> impl Iterator<Item = &V> {
        let keys = self.revisions.get(revision).into_iter().flat_map(|entry| &entry.chunks);
        keys.filter_map(|key| self.peek(key))
    }

    /// The revisions that refer to a chunk.
    pub(crate) fn revisions_of(&self, key: &ChunkKey) -> impl Iterator<Item = &Revision> {
        self.chunks.get(key).into_iter().flat_map(|resident| &resident.revisions)
    }

    /// Resident chunks.
    pub(crate) fn len(&self) -> usize {
        self.chunks.len()
    }

    /// One revision, if it has chunks here or loads that use it.
    pub(crate) fn revision(&self, revision: &Revision) -> Option<&RevisionEntry> {
        self.revisions.get(revision)
    }

    /// Every resident chunk.
    pub(crate) fn values(&self) -> impl Iterator<Item = &V> {
        self.chunks.values().map(|resident| &resident.value)
    }

    /// Bytes of all resident chunks.
    #[cfg(test)]
    fn bytes(&self) -> u64 {
        self.chunks.values().map(|resident| resident.bytes).sum()
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use proptest::prelude::*;

    use super::*;

    fn key(n: u8) -> ChunkKey {
        ChunkKey([n; 32])
    }

    fn rev(n: u8) -> Revision {
        Revision([n; 32])
    }

    fn filled(revisions: &[(u8, &[u8])]) -> Residency<u8> {
        let mut residency = Residency::new();
        for (revision, chunks) in revisions {
            residency.begin(rev(*revision), "u", 100, 1);
            for chunk in *chunks {
                residency.insert(key(*chunk), rev(*revision), 10, *chunk);
            }
            residency.end(rev(*revision));
        }
        residency
    }

    fn evict(residency: &mut Residency<u8>, leased: &[u8]) -> Vec<u8> {
        let mut victims = residency.evict(|value| leased.contains(value));
        victims.sort_unstable();
        victims
    }

    #[test]
    fn the_least_recently_used_revision_goes_whole() {
        let mut residency = filled(&[(1, &[1, 2]), (2, &[3, 4])]);
        residency.begin(rev(1), "u", 100, 1);
        residency.end(rev(1));
        assert_eq!(evict(&mut residency, &[]), [3, 4]);
        assert_eq!(evict(&mut residency, &[]), [1, 2]);
        assert_eq!(residency.revisions().count(), 0);
        assert_eq!(residency.bytes(), 0);
    }

    #[test]
    fn leased_chunks_and_revisions_in_use_stay() {
        let mut residency = filled(&[(1, &[1, 2]), (2, &[3])]);
        residency.begin(rev(2), "u", 100, 1);
        assert_eq!(evict(&mut residency, &[1]), [2]);
        assert_eq!(evict(&mut residency, &[1]), [3], "single chunks when nothing else is left");
        assert_eq!(evict(&mut residency, &[1]), [0u8; 0]);
    }

    #[test]
    fn a_shared_chunk_goes_with_its_last_revision() {
        let mut residency = filled(&[(1, &[1, 2])]);
        residency.begin(rev(2), "v", 100, 1);
        assert_eq!(residency.get(&key(2), rev(2)), Some(2));
        assert_eq!(residency.drop_revisions(&[rev(1)]), [1]);
        assert!(residency.holds(&key(2)));
        assert_eq!(residency.drop_revisions(&[rev(2)]), [2]);
    }

    #[test]
    fn size_counts_beside_age() {
        let mut residency =
            filled(&[(1, &[1, 2, 3, 4]), (2, &[5, 6]), (3, &[7]), (4, &[8, 9]), (5, &[10])]);
        let sized = |residency: &mut Residency<u8>, bytes| {
            let mut victims = residency.evict_sized(bytes);
            victims.sort_unstable();
            victims
        };
        assert_eq!(sized(&mut residency, 10), [7], "of the older three the smallest");
        assert_eq!(sized(&mut residency, 15), [5, 6]);
        assert_eq!(sized(&mut residency, 100), [1, 2, 3, 4], "none is enough: the oldest");
    }

    #[test]
    fn what_has_no_name_goes_first_and_single_chunks_last() {
        let mut residency = filled(&[(1, &[1]), (2, &[2])]);
        residency.begin(rev(3), "", 0, 0);
        residency.insert(key(3), rev(3), 10, 3);
        residency.end(rev(3));
        assert_eq!(residency.evict_sized(10), [3]);
        residency.begin(rev(1), "u", 100, 1);
        residency.begin(rev(2), "u", 100, 1);
        assert_eq!(residency.evict_sized(10), [0u8; 0], "both are in use");
        assert_eq!(residency.evict_chunks(15, Some(rev(1)), |_| 10), [2]);
        assert_eq!(residency.evict_chunks(15, None, |_| 10), [1]);
    }

    #[test]
    fn what_is_pinned_stays_whoever_else_refers_to_it() {
        let mut residency = filled(&[(1, &[1, 2])]);
        residency.begin(rev(2), "v", 100, 1);
        residency.get(&key(2), rev(2));
        residency.end(rev(2));
        assert!(residency.pin(rev(2), true));
        assert!(!residency.pin(rev(9), true));
        assert_eq!(evict(&mut residency, &[]), [1]);
        assert_eq!(evict(&mut residency, &[]), [0u8; 0]);
        residency.pin(rev(2), false);
        assert_eq!(evict(&mut residency, &[]), [2]);
    }

    #[derive(Debug, Clone)]
    enum Op {
        Begin(u8),
        End(u8),
        Insert(u8, u8),
        Get(u8, u8),
        Evict(Vec<u8>),
        EvictSized(u64),
        Pin(u8, bool),
        Drop(u8),
    }

    fn op() -> impl Strategy<Value = Op> {
        let (r, c) = (0..4u8, 0..12u8);
        prop_oneof![
            r.clone().prop_map(Op::Begin),
            r.clone().prop_map(Op::End),
            (r.clone(), c.clone()).prop_map(|(r, c)| Op::Insert(r, c)),
            (r.clone(), c.clone()).prop_map(|(r, c)| Op::Get(r, c)),
            proptest::collection::vec(c, 0..6).prop_map(Op::Evict),
            (0..60u64).prop_map(Op::EvictSized),
            (r.clone(), any::<bool>()).prop_map(|(r, pinned)| Op::Pin(r, pinned)),
            r.prop_map(Op::Drop),
        ]
    }

    proptest! {
        /// Sums agree with what is resident, a leased chunk is never evicted, and eviction finds a
        /// victim whenever one exists.
        #[test]
        fn the_index_agrees_with_itself(ops in proptest::collection::vec(op(), 1..150)) {
            let mut residency: Residency<u8> = Residency::new();
            let mut active = [0usize; 4];
            let resident = RefCell::new(BTreeSet::new());
            let mut pinned = BTreeSet::new();
            for op in ops {
                match op {
                    Op::Begin(r) => { active[usize::from(r)] += 1; residency.begin(rev(r), "u", 1, 1); }
                    Op::End(r) if active[usize::from(r)] > 0 => {
                        active[usize::from(r)] -= 1;
                        residency.end(rev(r));
                    }
                    Op::Insert(r, c) if active[usize::from(r)] > 0 => {
                        residency.insert(key(c), rev(r), 10, c);
                        resident.borrow_mut().insert(c);
                    }
                    Op::Get(r, c) if active[usize::from(r)] > 0 => {
                        prop_assert_eq!(residency.get(&key(c), rev(r)).is_some(), resident.borrow().contains(&c));
                    }
                    Op::Evict(_) | Op::EvictSized(..) => {
                        let kept: BTreeSet<u8> = resident
                            .borrow()
                            .iter()
                            .copied()
                            .filter(|c| residency.revisions_of(&key(*c)).any(|r| pinned.contains(r)))
                            .collect();
                        let (victims, leased) = match op {
                            Op::EvictSized(bytes) => {
                                let mut victims = residency.evict_sized(bytes);
                                if victims.is_empty() {
                                    victims = residency.evict_chunks(1, None, |_| 10);
                                }
                                (victims, Vec::new())
                            }
                            Op::Evict(leased) => (residency.evict(|c| leased.contains(c)), leased),
                            _ => unreachable!(),
                        };
                        let mut resident = resident.borrow_mut();
                        let may_stay = |c: &u8| leased.contains(c) || kept.contains(c);
                        prop_assert_eq!(victims.is_empty(), resident.iter().all(may_stay));
                        for victim in victims {
                            prop_assert!(!may_stay(&victim) && resident.remove(&victim));
                        }
                    }
                    Op::Pin(r, keep) => {
                        if residency.pin(rev(r), keep) && keep {
                            pinned.insert(rev(r));
                        } else {
                            pinned.remove(&rev(r));
                        }
                    }
                    Op::Drop(r) => for gone in residency.drop_revisions(&[rev(r)]) {
                        prop_assert!(resident.borrow_mut().remove(&gone));
                    },
                    _ => {}
                }
                prop_assert_eq!(residency.bytes(), 10 * resident.borrow().len() as u64);
                for (revision, entry) in residency.revisions() {
                    prop_assert_eq!(entry.active, active[usize::from(revision.0[0])]);
                    prop_assert_eq!(entry.cached_bytes, 10 * entry.chunks.len() as u64);
                    prop_assert!(entry.active > 0 || entry.pinned || !entry.chunks.is_empty());
                    prop_assert_eq!(entry.pinned, pinned.contains(revision));
                }
            }
        }
    }
}
