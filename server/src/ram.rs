//! The RAM tier: verified chunks in slots of shared segments, kept until room is needed.
//!
//! [`RamTier::claim_at_cost`] finds a slot to fill: a free one, or one that eviction frees. Who may claim
//! is admission's decision (a token per slot); that law makes the wait here short: it only bridges
//! the moment between an abandoned fetch and its slot's return. [`RamTier::insert`] is the only
//! constructor of a [`PinnedChunk`] and wants a [`VerifiedChunk`]: no unverified byte gets in.
//!
//! A pinned chunk is counted. The tier's own reference keeps it cached; every further one (a lease,
//! a load in progress) makes it ineligible for eviction. Evicted or dropped while leased, it leaves
//! the index at once and its slot comes free with the last reference. So it is with what lies in a
//! segment that goes out of use ([`RamTier::retire`]); what lands there later is lent and not kept.

pub(crate) mod places;
pub(crate) mod pool;
mod sizes;
pub(crate) mod steps;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use ::metrics::Counter;
use forebay_io::NodeId;
use forebay_proto::{Failure, Reason};
use forebay_shm::{Generation, Segment, SegmentId, ShmError, SlotIndex};
use tokio::time::Instant;

use crate::admission::WindowSlot;
use crate::digest::ChunkDigest;
use crate::metrics;
use crate::plan::{ChunkKey, ChunkSpec, Extent};
use crate::proof::PieceSum;
use crate::ram::pool::{ClaimedSlot, Pool, ReadableSlot};
use crate::residency::Residency;
use crate::resolve::{Manifest, Revision};
use crate::verify::VerifiedChunk;

pub(crate) use sizes::{NodeSizes, RamSizes};

/// How soon a claim that found no slot looks again, if no slot came free before.
const CLAIM_AGAIN: Duration = Duration::from_millis(20);

/// A readable, verified chunk in a slot. Clones share it.
#[derive(Debug, Clone)]
pub(crate) struct PinnedChunk(Arc<Pinned>);

#[derive(Debug)]
struct Pinned {
    slot: ReadableSlot,
    spec: Arc<ChunkSpec>,
    /// As it was verified.
    digest: ChunkDigest,
    /// Of the extents, where they were taken as the bytes landed.
    sums: Vec<Option<PieceSum>>,
    /// The window token that pays for the slot while it is lent, whoever brought it.
    paid: Mutex<Weak<WindowSlot>>,
}

impl PinnedChunk {
    /// Its segment.
    pub(crate) fn segment_id(&self) -> SegmentId {
        self.0.slot.reader().segment_id()
    }

    /// Its slot.
    pub(crate) fn slot(&self) -> SlotIndex {
        self.0.slot.reader().slot()
    }

    /// The slot's generation.
    pub(crate) fn generation(&self) -> Generation {
        self.0.slot.reader().generation()
    }

    /// The NUMA node that it lies on.
    pub(crate) fn node(&self) -> NodeId {
        self.0.slot.node()
    }

    /// Its segment, to pass to a client.
    pub(crate) fn segment(&self) -> &Arc<Segment> {
        self.0.slot.reader().segment()
    }

    /// The token that pays for lending this chunk: the one that does so already, or `token`. A slot
    /// that several clients read is one slot, so it takes one token.
    pub(crate) fn pay(&self, token: WindowSlot) -> Arc<WindowSlot> {
        let mut paid = self.0.paid.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(paying) = paid.upgrade() {
            return paying;
        }
        let token = Arc::new(token);
        *paid = Arc::downgrade(&token);
        token
    }

    /// Bytes of it that are used.
    pub(crate) fn bytes(&self) -> u64 {
        self.0.spec.bytes
    }

    /// What it holds.
    pub(crate) fn spec(&self) -> &Arc<ChunkSpec> {
        &self.0.spec
    }

    /// Its digest, as it was verified.
    pub(crate) fn digest(&self) -> ChunkDigest {
        self.0.digest
    }

    /// The sum of an extent, by its number, if it was taken.
    pub(crate) fn sum(&self, extent: usize) -> Option<PieceSum> {
        self.0.sums.get(extent).copied().flatten()
    }

    /// The bytes of an extent; none if it does not fit its slot.
    pub(crate) fn extent(&self, extent: &Extent) -> Option<&[u8]> {
        let start = usize::try_from(extent.slot_offset).ok()?;
        let bytes = usize::try_from(extent.bytes).ok()?;
        self.0.slot.reader().bytes().get(start..start.checked_add(bytes)?)
    }

    /// All of its slot.
    pub(crate) fn as_slice(&self) -> &[u8] {
        self.0.slot.reader().bytes()
    }

    /// The first bytes of its slot; none if the slot is smaller.
    pub(crate) fn payload(&self, bytes: usize) -> Option<&[u8]> {
        self.0.slot.reader().bytes().get(..bytes)
    }

    /// Whether anyone but the tier refers to it. Exact under the tier's lock: new references to a
    /// chunk that only the tier holds are made under that lock.
    fn is_leased(&self) -> bool {
        Arc::strong_count(&self.0) > 1
    }
}

/// What it took to find a slot.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct ClaimCost {
    /// Chunks that were given up for it.
    pub(crate) evicted: usize,
    /// It lies on another node than was asked for.
    pub(crate) is_far: bool,
}

/// Why there is no slot.
#[derive(Debug, thiserror::Error)]
#[error("a slot that should be free is in use")]
pub(crate) struct ClaimError(#[from] ShmError);

impl From<ClaimError> for Failure {
    fn from(error: ClaimError) -> Self {
        tracing::error!(error = %error.0, "slot accounting is broken");
        Self::new(Reason::Internal, error.to_string()).at_stage("lease_alloc")
    }
}

/// A checkpoint that is cached or in use.
#[derive(Debug, Clone)]
pub(crate) struct CachedCheckpoint {
    /// Where it was loaded from last.
    pub(crate) uri: String,
    /// Which revision.
    pub(crate) revision: Revision,
    /// Bytes of all its objects.
    pub(crate) bytes: u64,
    /// How many objects.
    pub(crate) objects: usize,
    /// Bytes of it in this tier.
    pub(crate) cached_bytes: u64,
    /// Loads that use it.
    pub(crate) active: usize,
    /// Time since its last use.
    pub(crate) idle: Duration,
}

/// What an eviction did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Evicted {
    /// Checkpoints dropped.
    pub(crate) checkpoints: u64,
    /// Bytes free at once.
    pub(crate) freed_bytes: u64,
    /// Bytes that come free with their last lease.
    pub(crate) leased_bytes: u64,
}

/// The tier.
#[derive(Debug)]
pub(crate) struct RamTier {
    pool: Arc<Pool>,
    index: Mutex<Index>,
    evicted_chunks: Counter,
    hits: Counter,
    misses: Counter,
    misplaced: AtomicU64,
    /// Held while room is made on a node, so that who comes second finds what the first one freed.
    making_room: Mutex<()>,
}

#[derive(Debug)]
struct Index {
    residency: Residency<PinnedChunk>,
    last_used: BTreeMap<Revision, Instant>,
}

impl RamTier {
    /// A tier over `pool`, with counters for chunks given up for room, for hits and for misses.
    pub(crate) fn new(pool: Arc<Pool>, [evicted_chunks, hits, misses]: [Counter; 3]) -> Self {
        let index = Index { residency: Residency::new(), last_used: Default::default() };
        Self {
            pool,
            index: Mutex::new(index),
            evicted_chunks,
            hits,
            misses,
            misplaced: AtomicU64::new(0),
            making_room: Mutex::default(),
        }
    }

    /// The slots.
    pub(crate) fn pool(&self) -> &Arc<Pool> {
        &self.pool
    }

    /// Counts `manifest` as in use until the guard drops.
    pub(crate) fn use_revision(self: &Arc<Self>, manifest: &Manifest) -> RevisionUse {
        let mut index = self.lock();
        let revision = manifest.revision();
        index.residency.begin(revision, manifest.uri(), manifest.bytes(), manifest.objects().len());
        index.last_used.insert(revision, Instant::now());
        RevisionUse { tier: Arc::clone(self), revision }
    }

    /// The chunk, if it is here.
    pub(crate) fn get(&self, key: &ChunkKey, revision: Revision) -> Option<PinnedChunk> {
        let found = self.lock().residency.get(key, revision);
        self.hits.increment(u64::from(found.is_some()));
        found
    }

    /// `revision` refers to the chunk from now on, if it is here.
    pub(crate) fn refer(&self, key: &ChunkKey, revision: Revision) {
        self.lock().residency.refer(*key, revision);
    }

    /// The chunk, if it is here, without counting as a use.
    pub(crate) fn peek(&self, key: &ChunkKey) -> Option<PinnedChunk> {
        self.lock().residency.peek(key).cloned()
    }

    /// Gives up a chunk that turned out to be wrong; leases of it last.
    pub(crate) fn discard(&self, key: &ChunkKey) {
        let gone = self.lock().residency.remove(key);
        drop(gone);
    }

    /// Every chunk of the checkpoints at or under `uri`, once, and its bytes. Names only: they keep
    /// nothing from being evicted.
    pub(crate) fn keys_under(&self, uri: &str) -> BTreeMap<ChunkKey, u64> {
        let index = self.lock();
        let revisions = index.residency.revisions();
        let under = revisions.filter(|(_, entry)| is_at_or_under(&entry.uri, uri));
        let chunks = under.flat_map(|(revision, _)| index.residency.chunks_of(revision));
        chunks.map(|chunk| (chunk.spec().key, chunk.bytes())).collect()
    }

    /// Whether the chunk is here, without counting as a use.
    pub(crate) fn holds(&self, key: &ChunkKey) -> bool {
        self.lock().residency.holds(key)
    }

    /// A slot to fill, whatever it takes.
    #[cfg(test)]
    pub(crate) async fn claim(&self, near: Option<NodeId>) -> Result<ClaimedSlot, ClaimError> {
        self.claim_at_cost(near, &mut ClaimCost::default()).await
    }

    /// A slot to fill, near a node if one is given and as far as that can be had; what it took is
    /// added to `cost`. The caller holds a window token for it.
    pub(crate) async fn claim_at_cost(
        &self,
        near: Option<NodeId>,
        cost: &mut ClaimCost,
    ) -> Result<ClaimedSlot, ClaimError> {
        loop {
            // Registered before looking, so that a slot that comes free in between is heard.
            let came_free = self.pool.came_free();
            tokio::pin!(came_free);
            came_free.as_mut().enable();
            if let Some(slot) = self.take(near, cost) {
                return Ok(slot?);
            }
            // Populating a segment takes a fraction of a second, fetching a chunk again much more.
            let given_up = if self.pool.is_growing() { 0 } else { self.make_room(near) };
            cost.evicted += given_up;
            if given_up == 0 {
                // Nobody tells when the last reference but the tier's is dropped, so look again.
                drop(tokio::time::timeout(CLAIM_AGAIN, came_free).await);
            }
        }
    }

    /// A free slot. Near a node: one of the node, then one that an idle checkpoint there is given
    /// up for, then one of another node.
    fn take(
        &self,
        near: Option<NodeId>,
        cost: &mut ClaimCost,
    ) -> Option<Result<ClaimedSlot, ShmError>> {
        let Some(node) = near else { return self.pool.take() };
        let there = self.pool.take_on(node).or_else(|| self.take_from_idle(node, cost));
        let taken = there.or_else(|| self.pool.take());
        if let Some(Ok(slot)) = &taken
            && slot.node() != node
        {
            self.misplaced.fetch_add(1, Ordering::Relaxed);
            cost.is_far = true;
        }
        taken
    }

    /// A slot of a node that a checkpoint was given up for which no load uses.
    fn take_from_idle(
        &self,
        node: NodeId,
        cost: &mut ClaimCost,
    ) -> Option<Result<ClaimedSlot, ShmError>> {
        if self.pool.is_growing() {
            return None;
        }
        let _alone = self.making_room.lock().unwrap_or_else(PoisonError::into_inner);
        self.pool.take_on(node).or_else(|| {
            let far = |chunk: &PinnedChunk| chunk.is_leased() || chunk.node() != node;
            let freed = self.give_up(|residency| residency.evict_idle(far));
            cost.evicted += freed;
            if freed > 0 { self.pool.take_on(node) } else { None }
        })
    }

    /// Gives chunks up, near a node if that can be; how many.
    fn make_room(&self, near: Option<NodeId>) -> usize {
        let there = |node| {
            let far = |chunk: &PinnedChunk| chunk.is_leased() || chunk.node() != node;
            self.give_up(|residency| residency.evict(far))
        };
        match near.map_or(0, there) {
            0 => self.give_up(|residency| residency.evict(PinnedChunk::is_leased)),
            given_up => given_up,
        }
    }

    fn give_up(
        &self,
        evict: impl FnOnce(&mut Residency<PinnedChunk>) -> Vec<PinnedChunk>,
    ) -> usize {
        let victims = evict(&mut self.lock().residency);
        self.evicted_chunks.increment(victims.len() as u64);
        // Dropped here, with the index unlocked: their slots come free.
        victims.len()
    }

    /// Slots that were claimed near a node and lie on another.
    pub(crate) fn misplaced(&self) -> u64 {
        self.misplaced.load(Ordering::Relaxed)
    }

    /// Takes a verified chunk of `manifest` in and makes it readable.
    pub(crate) fn insert(&self, verified: VerifiedChunk, manifest: &Manifest) -> PinnedChunk {
        // What was there would not have been brought here.
        self.misses.increment(1);
        let (slot, spec, (digest, sums)) = verified.into_parts();
        let pinned = PinnedChunk(Arc::new(Pinned {
            slot: slot.publish(),
            spec: Arc::clone(&spec),
            digest,
            sums,
            paid: Mutex::default(),
        }));
        let mut index = self.lock();
        // Under the lock: what goes out of use after this look has this chunk taken out again.
        let replaced = match self.pool.is_retiring(pinned.segment_id()) {
            true => None,
            false => index.insert(&pinned, manifest),
        };
        drop(index);
        drop(replaced);
        pinned
    }

    /// Takes a segment out of use, and gives up what is cached in it; leases of it last. The caller
    /// has taken the tokens of its slots away.
    pub(crate) fn retire(&self, id: SegmentId) -> bool {
        if !self.pool.retire(id) {
            return false;
        }
        let there = |chunk: &PinnedChunk| chunk.segment_id() == id;
        let victims = self.lock().residency.take(there);
        metrics::retired_chunks(victims.len() as u64);
        // Dropped here, with the index unlocked.
        drop(victims);
        true
    }

    /// Drops the checkpoints at or under `uri`.
    pub(crate) fn evict_uri(&self, uri: &str) -> Evicted {
        let (victims, checkpoints) = {
            let mut index = self.lock();
            let revisions: Vec<Revision> = index
                .residency
                .revisions()
                .filter(|(_, entry)| is_at_or_under(&entry.uri, uri))
                .map(|(revision, _)| *revision)
                .collect();
            (index.residency.drop_revisions(&revisions), revisions.len() as u64)
        };
        let mut evicted = Evicted { checkpoints, ..Evicted::default() };
        for chunk in victims {
            if chunk.is_leased() {
                evicted.leased_bytes += chunk.bytes();
            } else {
                evicted.freed_bytes += chunk.bytes();
            }
        }
        evicted
    }

    /// What is cached or in use at or under `uri`; everything if it is empty.
    pub(crate) fn list(&self, uri: &str, now: Instant) -> Vec<CachedCheckpoint> {
        let index = self.lock();
        let mut listed: Vec<CachedCheckpoint> = index
            .residency
            .revisions()
            .filter(|(_, entry)| uri.is_empty() || is_at_or_under(&entry.uri, uri))
            .map(|(revision, entry)| CachedCheckpoint {
                uri: entry.uri.clone(),
                revision: *revision,
                bytes: entry.bytes,
                objects: entry.objects,
                cached_bytes: entry.cached_bytes,
                active: entry.active,
                idle: index
                    .last_used
                    .get(revision)
                    .map_or(Duration::ZERO, |used| now.saturating_duration_since(*used)),
            })
            .collect();
        listed.sort_by(|a, b| (&a.uri, a.revision).cmp(&(&b.uri, b.revision)));
        listed
    }

    fn lock(&self) -> MutexGuard<'_, Index> {
        // The index is consistent after each call, whoever panicked between two of them.
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// `s3://b/a` is at or under `s3://b` and `s3://b/a/`, not under `s3://b/aa`.
pub(crate) fn is_at_or_under(uri: &str, root: &str) -> bool {
    let root = root.trim_end_matches('/');
    uri.trim_end_matches('/')
        .strip_prefix(root)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

impl Index {
    /// Takes a chunk in; what it replaces. A fetch that was at its last step when its load ended
    /// lands after it: the revision is known by this chunk then, so that whoever evicts it, or asks
    /// what there is, finds it.
    fn insert(&mut self, pinned: &PinnedChunk, manifest: &Manifest) -> Option<PinnedChunk> {
        let (spec, revision) = (pinned.spec(), manifest.revision());
        // Held meanwhile: what is replaced may be all that it is known by.
        if !self.residency.hold(revision) {
            let objects = manifest.objects().len();
            self.residency.begin(revision, manifest.uri(), manifest.bytes(), objects);
            self.last_used.insert(revision, Instant::now());
        }
        let replaced = self.residency.insert(spec.key, revision, spec.bytes, pinned.clone());
        self.residency.end(revision);
        replaced
    }
}

/// A revision in use; eviction gives up others first.
#[derive(Debug)]
pub(crate) struct RevisionUse {
    tier: Arc<RamTier>,
    revision: Revision,
}

impl Drop for RevisionUse {
    fn drop(&mut self) {
        let mut index = self.tier.lock();
        index.residency.end(self.revision);
        let Index { residency, last_used } = &mut *index;
        last_used.insert(self.revision, Instant::now());
        // Bounded like the residency: what it forgot is forgotten here.
        let known: BTreeSet<&Revision> =
            residency.revisions().map(|(revision, _)| revision).collect();
        last_used.retain(|revision, _| known.contains(revision));
    }
}

#[cfg(test)]
#[path = "ram_tests.rs"]
mod tests;

#[cfg(test)]
#[path = "ram/shrinking_tests.rs"]
mod shrinking_tests;
