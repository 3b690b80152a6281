//! The slots of the RAM tier: segments, their growth, and who owns a slot that nobody reads.
//!
//! A slot is owned by exactly one of: the free list, a [`ClaimedSlot`] (being filled), or a
//! [`SlotReader`] with its [`Home`] (readable). Ownership moves, it is
//! never copied; dropping an owner puts the slot on the free list. `forebay-shm` keeps the same
//! law a second time in its per-slot state word, which is what makes writing safe.
//!
//! Every slot lies on a NUMA node, and the free list is one per node; see
//! [`places`](super::places).
//!
//! The first segment (of each node) is made before the daemon is ready and is small; `resize` makes
//! the others up to the budget, and changes the pool when the budget changes, because populating
//! pages runs at some GB/s and must delay neither the start nor a load. A segment that cannot be
//! had ends the growth: the tier is smaller, and says so.
//!
//! A segment that is *retiring* is out of use: its free slots are off the list, those in use come
//! back to the segment and not to the list. When all are back it can be let go, which gives its
//! memory back as soon as nobody else maps it. Its id is never used again.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use forebay_io::{Carried, NodeId};
use forebay_shm::{Segment, SegmentId, SegmentSpec, ShmError, SlotIndex, SlotReader, SlotWriter};
use tokio::sync::Notify;
use tokio::sync::futures::Notified;

use super::places::{OnNode, PlacedSegment, Places, SegmentPlan, slots_max};
use crate::metrics;

/// Segments that a pool can make: its domain's number is above their own in their ids, so that no
/// two pools of a daemon ever make one of the same id.
const SEGMENTS_BITS: u32 = 40;

/// How large the tier is and in what pieces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PoolSpec {
    /// All slots together, at most.
    pub(crate) budget_bytes: u64,
    /// One slot.
    pub(crate) chunk_bytes: u64,
    /// Whether to lock the pages in memory.
    pub(crate) lock: bool,
    /// Segments, at most: each takes a descriptor.
    pub(crate) segments_max: usize,
}

/// The segments and their free slots.
#[derive(Debug)]
pub(crate) struct Pool {
    /// Whose it is. A segment is made for one domain, and is unmapped when it leaves the pool.
    domain: u32,
    spec: PoolSpec,
    budget_bytes: AtomicU64,
    places: Places,
    nodes: Mutex<BTreeMap<NodeId, OnNode>>,
    segments: Mutex<Segments>,
    free: Arc<FreeSlots>,
    trouble: Mutex<Vec<String>>,
    /// Why it is not as large as it should be.
    short: Mutex<Option<String>>,
    growing: AtomicBool,
    unlocked: AtomicBool,
    unplaced: AtomicBool,
}

#[derive(Debug, Default)]
struct Segments {
    made: u64,
    held: BTreeMap<SegmentId, Held>,
}

/// A segment, the node that it was made for, and those that its slots lie on.
#[derive(Debug, Clone)]
struct Held {
    segment: Arc<Segment>,
    asked: NodeId,
    nodes: Arc<[NodeId]>,
}

/// The slots of a segment that nobody reads or writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Idle {
    /// Which segment.
    pub(crate) id: SegmentId,
    /// The node that it was made for.
    pub(crate) asked: NodeId,
    /// Slots that it has.
    pub(crate) slots: u32,
    /// Of them: idle.
    pub(crate) idle: u32,
    /// Whether it is out of use.
    pub(crate) retiring: bool,
}

type FreeSlot = (Arc<Segment>, SlotIndex);

#[derive(Debug, Default)]
struct FreeSlots {
    lists: Mutex<Lists>,
    came_free: Notify,
    /// The last slot of a retiring segment is back.
    came_home: Notify,
}

#[derive(Debug, Default)]
struct Lists {
    free: BTreeMap<NodeId, Vec<FreeSlot>>,
    /// What is back of segments that are out of use.
    retiring: BTreeMap<SegmentId, Vec<(NodeId, SlotIndex)>>,
}

impl Pool {
    /// A pool of the first domain.
    #[cfg(test)]
    pub(crate) fn create(spec: PoolSpec, places: Places) -> Result<Self, ShmError> {
        Self::of_domain(0, spec, places)
    }

    /// A domain's pool with the first segment of each node.
    pub(crate) fn of_domain(domain: u32, spec: PoolSpec, places: Places) -> Result<Self, ShmError> {
        let first = places.first(spec);
        let pool = Self {
            domain,
            spec,
            budget_bytes: AtomicU64::new(spec.budget_bytes),
            nodes: Mutex::new(places.empty()),
            places,
            segments: Mutex::default(),
            free: Arc::default(),
            trouble: Mutex::default(),
            short: Mutex::default(),
            growing: AtomicBool::new(false),
            unlocked: AtomicBool::new(false),
            unplaced: AtomicBool::new(false),
        };
        for plan in first {
            pool.make(plan)?;
        }
        Ok(pool)
    }

    /// From now on it should have so many bytes of slots.
    pub(crate) fn set_budget(&self, bytes: u64) {
        self.budget_bytes.store(bytes, Ordering::Relaxed);
    }

    /// The slots that each node should have.
    pub(crate) fn shares(&self) -> Vec<(NodeId, u64)> {
        self.places.shares(self.spec().budget_bytes / self.spec.chunk_bytes)
    }

    /// Slots of a segment, at most.
    pub(crate) fn slots_max(&self) -> u32 {
        slots_max(self.spec.chunk_bytes)
    }

    /// Whether more slots are on their way: then nothing has to be evicted for one.
    pub(crate) fn is_growing(&self) -> bool {
        self.growing.load(Ordering::Acquire)
    }

    /// Whether more slots are on their way. From the end on room is made by eviction.
    pub(crate) fn set_growing(&self, growing: bool) {
        self.growing.store(growing, Ordering::Release);
        if !growing {
            self.free.came_free.notify_waiters();
        }
    }

    /// Whether it has the size that it should have, and why not.
    pub(crate) fn fall_short(&self, why: Option<String>) {
        *lock(&self.short) = why;
    }

    /// Why it is not as large as it should be, if that cannot be had.
    pub(crate) fn shortage(&self) -> Option<String> {
        lock(&self.short).clone()
    }

    /// Whether another segment may be made: each takes a descriptor.
    pub(crate) fn may_make(&self) -> bool {
        lock(&self.segments).held.len() < self.spec.segments_max
    }

    /// Makes a segment, whose slots are free then. Blocks while its memory is populated.
    pub(crate) fn make(&self, plan: SegmentPlan) -> Result<Arc<Segment>, ShmError> {
        let id = {
            let mut segments = lock(&self.segments);
            segments.made += 1;
            SegmentId((u64::from(self.domain) << SEGMENTS_BITS) + segments.made - 1)
        };
        let spec = SegmentSpec {
            id,
            domain: self.domain.into(),
            slot_bytes: usize::try_from(self.spec.chunk_bytes).unwrap_or(usize::MAX),
            slots: plan.slots,
            lock: self.spec.lock,
        };
        let PlacedSegment { segment, nodes, refused } = self.places.create(&spec, plan.node)?;
        if let Some(problem) = &segment.placement().lock_error
            && !self.unlocked.swap(true, Ordering::Relaxed)
        {
            tracing::warn!(%problem, segment = id.0, "the RAM tier is not wholly locked in memory");
            self.trouble(format!("memlock: part of the RAM tier may be swapped: {problem}"));
        }
        if let Some(problem) = refused
            && !self.unplaced.swap(true, Ordering::Relaxed)
        {
            tracing::warn!(%problem, segment = id.0, "memory is not placed on its node");
            self.trouble(format!("numa: slots lie where the kernel puts them: {problem}"));
        }
        let nodes: Arc<[NodeId]> = nodes.into();
        let held = Held { segment: Arc::clone(&segment), asked: plan.node, nodes };
        self.count(&held);
        lock(&self.segments).held.insert(id, held.clone());
        // Highest first: the lists are taken from their ends, so low slots are used first.
        let slots = (0..plan.slots).zip(held.nodes.iter()).rev();
        self.put_free(&segment, slots.map(|(slot, node)| (*node, SlotIndex(slot))));
        metrics::segment("made");
        Ok(segment)
    }

    fn put_free(&self, segment: &Arc<Segment>, slots: impl Iterator<Item = (NodeId, SlotIndex)>) {
        let mut lists = lock(&self.free.lists);
        for (node, slot) in slots {
            lists.free.entry(node).or_default().push((Arc::clone(segment), slot));
        }
        drop(lists);
        self.free.came_free.notify_waiters();
    }

    /// Counts the slots of a segment where they are.
    fn count(&self, held: &Held) {
        let mut nodes = lock(&self.nodes);
        for node in held.nodes.iter() {
            nodes.entry(*node).or_default().slots += 1;
        }
        let strayed = held.strayed();
        nodes.entry(held.asked).or_default().strayed += strayed;
        if strayed > 0 {
            let asked = held.asked;
            tracing::warn!(node = %asked, strayed, "slots lie on another node than asked for");
        }
    }

    /// What [`Pool::count`] did, undone.
    fn discount(&self, held: &Held) {
        let mut nodes = lock(&self.nodes);
        for node in held.nodes.iter() {
            nodes.entry(*node).or_default().slots -= 1;
        }
        nodes.entry(held.asked).or_default().strayed -= held.strayed();
    }

    /// Takes a segment out of use: its slots are no longer claimed. False if there is none.
    pub(crate) fn retire(&self, id: SegmentId) -> bool {
        let Some(held) = lock(&self.segments).held.get(&id).cloned() else { return false };
        let mut lists = lock(&self.free.lists);
        let Lists { free, retiring } = &mut *lists;
        if retiring.contains_key(&id) {
            return false;
        }
        let mut back = Vec::new();
        for (node, slots) in free {
            let theirs = slots.extract_if(.., |(segment, _)| segment.id() == id);
            back.extend(theirs.map(|(_, slot)| (*node, slot)));
        }
        let is_home = back.len() == held.nodes.len();
        retiring.insert(id, back);
        drop(lists);
        self.discount(&held);
        if is_home {
            self.free.came_home.notify_one();
        }
        true
    }

    /// Takes a segment back into use that is retiring; its slots. None if it has gone.
    pub(crate) fn revive(&self, id: SegmentId) -> Option<u32> {
        let held = lock(&self.segments).held.get(&id).cloned()?;
        let back = lock(&self.free.lists).retiring.remove(&id)?;
        self.count(&held);
        self.put_free(&held.segment, back.into_iter());
        metrics::segment("revived");
        Some(held.segment.slots())
    }

    /// Whether a segment is out of use.
    pub(crate) fn is_retiring(&self, id: SegmentId) -> bool {
        lock(&self.free.lists).retiring.contains_key(&id)
    }

    /// Lets go of a retiring segment whose slots are all back, if there is one: nobody reads or
    /// writes a slot of it any more.
    pub(crate) fn let_go(&self) -> Option<Arc<Segment>> {
        let mut segments = lock(&self.segments);
        let mut lists = lock(&self.free.lists);
        let is_home = |(id, back): (&SegmentId, &Vec<_>)| {
            segments.held.get(id).is_some_and(|held| held.nodes.len() == back.len()).then_some(*id)
        };
        let id = lists.retiring.iter().find_map(is_home)?;
        lists.retiring.remove(&id);
        metrics::segment("retired");
        segments.held.remove(&id).map(|held| held.segment)
    }

    /// Completes when the last slot of a retiring segment is back, also if that was before.
    pub(crate) fn came_home(&self) -> Notified<'_> {
        self.free.came_home.notified()
    }

    /// Every segment, and how many of its slots are idle.
    pub(crate) fn idle(&self) -> Vec<Idle> {
        let segments = lock(&self.segments);
        let lists = lock(&self.free.lists);
        let mut free: BTreeMap<SegmentId, u32> = BTreeMap::new();
        for (segment, _) in lists.free.values().flatten() {
            *free.entry(segment.id()).or_default() += 1;
        }
        let idle = |(id, held): (&SegmentId, &Held)| {
            let back = lists.retiring.get(id);
            let back_len = |back: &Vec<_>| u32::try_from(back.len()).unwrap_or(u32::MAX);
            let free = free.get(id).copied().unwrap_or_default();
            Idle {
                id: *id,
                asked: held.asked,
                slots: held.segment.slots(),
                idle: back.map_or(free, back_len),
                retiring: back.is_some(),
            }
        };
        segments.held.iter().map(idle).collect()
    }

    /// The slots of each node.
    pub(crate) fn on_nodes(&self) -> BTreeMap<NodeId, OnNode> {
        lock(&self.nodes).clone()
    }

    fn trouble(&self, sentence: String) {
        lock(&self.trouble).push(sentence);
    }

    /// What could not be had, and why.
    pub(crate) fn degraded(&self) -> Vec<String> {
        let mut sentences = lock(&self.trouble).clone();
        sentences.extend(self.shortage().map(|why| format!("ram: {why}")));
        sentences
    }

    /// All segments so far.
    pub(crate) fn segments(&self) -> Vec<Arc<Segment>> {
        let segments = lock(&self.segments);
        segments.held.values().map(|held| Arc::clone(&held.segment)).collect()
    }

    /// Slots in use or free: of all segments but those that are retiring.
    pub(crate) fn slots(&self) -> usize {
        let in_use = self.idle().into_iter().filter(|one| !one.retiring);
        in_use.map(|one| one.slots as usize).sum()
    }

    /// Slots on the free list.
    pub(crate) fn free_slots(&self) -> usize {
        lock(&self.free.lists).free.values().map(Vec::len).sum()
    }

    /// The same by node.
    pub(crate) fn free_on_nodes(&self) -> BTreeMap<NodeId, usize> {
        let lists = lock(&self.free.lists);
        lists.free.iter().map(|(node, slots)| (*node, slots.len())).collect()
    }

    /// The size and pieces asked for.
    pub(crate) fn spec(&self) -> PoolSpec {
        PoolSpec { budget_bytes: self.budget_bytes.load(Ordering::Relaxed), ..self.spec }
    }

    /// Takes a free slot of a node for writing, if there is one.
    pub(crate) fn take_on(&self, node: NodeId) -> Option<Result<ClaimedSlot, ShmError>> {
        let (segment, slot) = lock(&self.free.lists).free.get_mut(&node)?.pop()?;
        Some(self.claimed(node, segment, slot))
    }

    /// Takes a free slot for writing, if there is one: of the node that has the most.
    pub(crate) fn take(&self) -> Option<Result<ClaimedSlot, ShmError>> {
        let mut lists = lock(&self.free.lists);
        let (node, slots) = lists.free.iter_mut().max_by_key(|(_, slots)| slots.len())?;
        let (node, (segment, slot)) = (*node, slots.pop()?);
        drop(lists);
        Some(self.claimed(node, segment, slot))
    }

    /// A slot that was on a free list has no reader and no writer; a refusal here is a bug, and the
    /// slot then stays out of use.
    fn claimed(
        &self,
        node: NodeId,
        segment: Arc<Segment>,
        slot: SlotIndex,
    ) -> Result<ClaimedSlot, ShmError> {
        segment.writer(slot).map(|writer| ClaimedSlot {
            writer,
            home: Home { free: Arc::clone(&self.free), node, segment, slot },
        })
    }

    /// Completes when a slot has come free since the future was first polled or enabled.
    pub(crate) fn came_free(&self) -> Notified<'_> {
        self.free.came_free.notified()
    }
}

impl Held {
    /// Slots that lie on another node than the one that was asked for.
    fn strayed(&self) -> u64 {
        self.nodes.iter().filter(|node| **node != self.asked).count() as u64
    }
}

/// Puts its slot back on the free list, or to its segment that is retiring, when dropped. Dropped after the writer or reader.
#[derive(Debug)]
pub(crate) struct Home {
    free: Arc<FreeSlots>,
    node: NodeId,
    segment: Arc<Segment>,
    slot: SlotIndex,
}

impl Drop for Home {
    fn drop(&mut self) {
        let mut lists = lock(&self.free.lists);
        let Lists { free, retiring } = &mut *lists;
        if let Some(back) = retiring.get_mut(&self.segment.id()) {
            back.push((self.node, self.slot));
            if back.len() == self.segment.slots() as usize {
                self.free.came_home.notify_one();
            }
            return;
        }
        let freed = (Arc::clone(&self.segment), self.slot);
        free.entry(self.node).or_default().push(freed);
        drop(lists);
        self.free.came_free.notify_one();
    }
}

/// A slot being filled. Dropped, it is free again and nobody ever saw what was in it.
#[derive(Debug)]
pub(crate) struct ClaimedSlot {
    // Before `home`: the slot must be free in its segment before it is on the free list.
    writer: SlotWriter,
    home: Home,
}

impl ClaimedSlot {
    /// The node that it lies on.
    pub(crate) fn node(&self) -> NodeId {
        self.home.node
    }

    /// The whole slot.
    pub(crate) fn as_mut_slice(&mut self) -> &mut [u8] {
        self.writer.as_mut_slice()
    }

    /// The whole slot, to look at what was written.
    pub(crate) fn as_slice(&self) -> &[u8] {
        self.writer.as_slice()
    }

    /// As what a read of a file fills, with something that lasts as long. Whoever has it has the
    /// slot: it is free again when the last of it is dropped, which a disk that hangs may put off.
    pub(crate) fn into_target<T>(self, with: T) -> Carried<SlotWriter, (Home, T)> {
        Carried { bytes: self.writer, with: (self.home, with) }
    }

    /// The slot again, and what went along.
    pub(crate) fn from_target<T>(target: Carried<SlotWriter, (Home, T)>) -> (Self, T) {
        let (home, with) = target.with;
        (Self { writer: target.bytes, home }, with)
    }

    /// Makes it readable.
    pub(crate) fn publish(self) -> ReadableSlot {
        ReadableSlot { reader: self.writer.publish(), home: self.home }
    }
}

/// A slot that can be read and not written.
#[derive(Debug)]
pub(crate) struct ReadableSlot {
    // Before `home`, as in `ClaimedSlot`.
    reader: SlotReader,
    home: Home,
}

impl ReadableSlot {
    /// Where it is and what generation it has.
    pub(crate) fn reader(&self) -> &SlotReader {
        &self.reader
    }

    /// The node that it lies on.
    pub(crate) fn node(&self) -> NodeId {
        self.home.node
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    // Lists are pushed to and popped from in one call: consistent whoever panicked.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
#[path = "pool_tests.rs"]
mod tests;
