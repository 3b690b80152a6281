//! What the RAM tier holds and what it gives up next: the bookkeeping, without memory or clocks.
//!
//! A *chunk* is resident once; several *revisions* may refer to it (a shard that two checkpoints
//! share). Each revision knows its chunks and when it was last used, in ticks of a counter.
//!
//! Eviction gives up whole revisions before chunks: half a checkpoint saves nobody a download. The
//! next victim is the least recently used revision that no load is using; all its chunks go, except
//! those a revision in use refers to. Only when every revision is in use are single chunks given up,
//! least recently used first. A chunk that is leased is never a victim: `leased` says so.

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
            chunks: BTreeSet::new(),
        });
        uri.clone_into(&mut entry.uri);
        entry.active += 1;
        entry.used = tick;
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

    /// The chunks to give up next, at least one if any chunk is not leased; removed already.
    pub(crate) fn evict(&mut self, leased: impl Fn(&V) -> bool) -> Vec<V> {
        let mut idle: Vec<(u64, Revision)> = self
            .revisions
            .iter()
            .filter(|(_, entry)| entry.active == 0 && !entry.chunks.is_empty())
            .map(|(revision, entry)| (entry.used, *revision))
            .collect();
        idle.sort_unstable();
        for (_, revision) in idle {
            let keys = self.evictable(revision, &leased);
            if !keys.is_empty() {
                return keys.iter().filter_map(|key| self.remove(key)).collect();
            }
        }
        let free = |key: &&ChunkKey| {
            self.chunks.get(*key).is_some_and(|resident| !leased(&resident.value))
        };
        let oldest = self.by_use.values().find(free).copied();
        oldest.and_then(|key| self.remove(&key)).into_iter().collect()
    }

    /// The chunks of an idle revision that nobody leases and no revision in use refers to.
    fn evictable(&self, revision: Revision, leased: impl Fn(&V) -> bool) -> Vec<ChunkKey> {
        let Some(entry) = self.revisions.get(&revision) else { return Vec::new() };
        let in_use =
            |other: &Revision| self.revisions.get(other).is_some_and(|entry| entry.active > 0);
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

    fn remove(&mut self, key: &ChunkKey) -> Option<V> {
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

    /// Revisions without a chunk or a load are not kept: the index is bounded by the slots.
    fn forget_if_empty(&mut self, revision: Revision) {
        let empty = |entry: &RevisionEntry| entry.active == 0 && entry.chunks.is_empty();
        if self.revisions.get(&revision).is_some_and(empty) {
            self.revisions.remove(&revision);
        }
    }

    /// Revisions that have chunks here or loads that use them.
    pub(crate) fn revisions(&self) -> impl Iterator<Item = (&Revision, &RevisionEntry)> {
        self.revisions.iter()
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

    #[derive(Debug, Clone)]
    enum Op {
        Begin(u8),
        End(u8),
        Insert(u8, u8),
        Get(u8, u8),
        Evict(Vec<u8>),
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
                    Op::Evict(leased) => {
                        let victims = residency.evict(|value| leased.contains(value));
                        let mut resident = resident.borrow_mut();
                        prop_assert_eq!(victims.is_empty(), resident.iter().all(|c| leased.contains(c)));
                        for victim in victims {
                            prop_assert!(!leased.contains(&victim) && resident.remove(&victim));
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
                    prop_assert!(entry.active > 0 || !entry.chunks.is_empty());
                }
            }
        }
    }
}
