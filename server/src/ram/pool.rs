//! The slots of the RAM tier: segments, their growth, and who owns a slot that nobody reads.
//!
//! A slot is owned by exactly one of: the free list, a [`ClaimedSlot`] (being filled), or a
//! [`SlotReader`](forebay_shm::SlotReader) with its [`Home`] (readable). Ownership moves, it is
//! never copied; dropping an owner puts the slot on the free list. `forebay-shm` keeps the same
//! law a second time in its per-slot state word, which is what makes writing safe.
//!
//! Every slot lies on a NUMA node, and the free list is one per node; see
//! [`places`](super::places).
//!
//! The first segment (of each node) is made before the daemon is ready and is small; a thread makes
//! the others up to the budget, because populating pages runs at some GB/s and must delay neither
//! the start nor a load. A segment that cannot be had ends the growth: the tier is smaller, and
//! says so.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use forebay_io::{Carried, NodeId};
use forebay_shm::{Segment, SegmentId, SegmentSpec, ShmError, SlotIndex, SlotReader, SlotWriter};
use tokio::sync::Notify;

use super::places::{OnNode, PlacedSegment, Places, SegmentPlan};

/// The one security domain of this daemon: every uid on the allow-list is in it.
const DOMAIN: u64 = 0;

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
    spec: PoolSpec,
    places: Places,
    /// What is made in the background, in this order.
    planned: Vec<SegmentPlan>,
    nodes: Mutex<BTreeMap<NodeId, OnNode>>,
    segments: Mutex<Vec<Arc<Segment>>>,
    free: Arc<FreeSlots>,
    trouble: Mutex<Vec<String>>,
    growing: AtomicBool,
    unlocked: AtomicBool,
    unplaced: AtomicBool,
    stop: AtomicBool,
}

type FreeSlot = (Arc<Segment>, SlotIndex);

#[derive(Debug, Default)]
struct FreeSlots {
    slots: Mutex<BTreeMap<NodeId, Vec<FreeSlot>>>,
    came_free: Notify,
}

impl Pool {
    /// A pool with the first segment of each node.
    pub(crate) fn create(spec: PoolSpec, places: Places) -> Result<Self, ShmError> {
        let (mut segments, first) = places.segments(spec);
        let all: u64 = segments.iter().map(|plan| u64::from(plan.slots)).sum();
        let planned = segments.split_off(first);
        let pool = Self {
            spec,
            nodes: Mutex::new(places.empty()),
            places,
            segments: Mutex::default(),
            free: Arc::default(),
            trouble: Mutex::default(),
            growing: AtomicBool::new(!planned.is_empty()),
            planned,
            unlocked: AtomicBool::new(false),
            unplaced: AtomicBool::new(false),
            stop: AtomicBool::new(false),
        };
        if all < spec.budget_bytes / spec.chunk_bytes {
            let bytes = all * spec.chunk_bytes;
            pool.trouble(format!("ram: {bytes} bytes only: the limit on open files (LimitNOFILE)"));
        }
        for plan in segments {
            pool.add_segment(plan)?;
        }
        Ok(pool)
    }

    /// Makes the other segments on a thread of its own; `on_grow` hears of each one's slots.
    pub(crate) fn grow_in_background(
        self: Arc<Self>,
        on_grow: impl Fn(usize) + Send + 'static,
    ) -> std::io::Result<JoinHandle<()>> {
        std::thread::Builder::new().name("forebay-pool".into()).spawn(move || {
            let _grown = Grown(&self);
            if let Err(error) = self.grow(on_grow) {
                tracing::warn!(%error, "the RAM tier stays smaller than its budget");
                let have = self.slots();
                self.trouble(format!("ram: only {have} slots could be had: {error}"));
            }
        })
    }

    /// Whether more slots are on their way: then nothing has to be evicted for one.
    pub(crate) fn is_growing(&self) -> bool {
        self.growing.load(Ordering::Acquire)
    }

    fn grow(&self, on_grow: impl Fn(usize)) -> Result<(), ShmError> {
        for plan in &self.planned {
            if self.stop.load(Ordering::Relaxed) {
                break;
            }
            self.add_segment(*plan)?;
            on_grow(plan.slots as usize);
        }
        Ok(())
    }

    /// Ends the growth after the segment it is at.
    pub(crate) fn stop_growing(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    fn add_segment(&self, plan: SegmentPlan) -> Result<(), ShmError> {
        let id = SegmentId(lock(&self.segments).len() as u64);
        let spec = SegmentSpec {
            id,
            domain: DOMAIN,
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
        self.count(plan.node, &nodes);
        lock(&self.segments).push(Arc::clone(&segment));
        let mut free = lock(&self.free.slots);
        // Highest first: the lists are taken from their ends, so low slots are used first.
        for (slot, node) in (0..plan.slots).zip(nodes).rev() {
            free.entry(node).or_default().push((Arc::clone(&segment), SlotIndex(slot)));
        }
        drop(free);
        self.free.came_free.notify_waiters();
        Ok(())
    }

    /// Counts the slots of a segment that was asked for on `asked` where they are.
    fn count(&self, asked: NodeId, slots: &[NodeId]) {
        let mut nodes = lock(&self.nodes);
        for node in slots {
            nodes.entry(*node).or_default().slots += 1;
        }
        let strayed = slots.iter().filter(|node| **node != asked).count() as u64;
        nodes.entry(asked).or_default().strayed += strayed;
        if strayed > 0 {
            tracing::warn!(node = %asked, strayed, "slots lie on another node than asked for");
        }
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
        lock(&self.trouble).clone()
    }

    /// All segments so far.
    pub(crate) fn segments(&self) -> Vec<Arc<Segment>> {
        lock(&self.segments).clone()
    }

    /// Slots of all segments so far.
    pub(crate) fn slots(&self) -> usize {
        lock(&self.segments).iter().map(|segment| segment.slots() as usize).sum()
    }

    /// Slots on the free list.
    pub(crate) fn free_slots(&self) -> usize {
        lock(&self.free.slots).values().map(Vec::len).sum()
    }

    /// The same by node.
    pub(crate) fn free_on_nodes(&self) -> BTreeMap<NodeId, usize> {
        lock(&self.free.slots).iter().map(|(node, slots)| (*node, slots.len())).collect()
    }

    /// The size and pieces asked for.
    pub(crate) fn spec(&self) -> PoolSpec {
        self.spec
    }

    /// Takes a free slot of a node for writing, if there is one.
    pub(crate) fn take_on(&self, node: NodeId) -> Option<Result<ClaimedSlot, ShmError>> {
        let (segment, slot) = lock(&self.free.slots).get_mut(&node)?.pop()?;
        Some(self.claimed(node, segment, slot))
    }

    /// Takes a free slot for writing, if there is one: of the node that has the most.
    pub(crate) fn take(&self) -> Option<Result<ClaimedSlot, ShmError>> {
        let mut free = lock(&self.free.slots);
        let (node, slots) = free.iter_mut().max_by_key(|(_, slots)| slots.len())?;
        let (node, (segment, slot)) = (*node, slots.pop()?);
        drop(free);
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
    pub(crate) fn came_free(&self) -> tokio::sync::futures::Notified<'_> {
        self.free.came_free.notified()
    }
}

/// The end of the growth, also by a panic: from then on room is made by eviction.
struct Grown<'a>(&'a Pool);

impl Drop for Grown<'_> {
    fn drop(&mut self) {
        self.0.growing.store(false, Ordering::Release);
        self.0.free.came_free.notify_waiters();
    }
}

/// Puts its slot back on the free list when dropped. Dropped after the writer or reader.
#[derive(Debug)]
pub(crate) struct Home {
    free: Arc<FreeSlots>,
    node: NodeId,
    segment: Arc<Segment>,
    slot: SlotIndex,
}

impl Drop for Home {
    fn drop(&mut self) {
        let freed = (Arc::clone(&self.segment), self.slot);
        lock(&self.free.slots).entry(self.node).or_default().push(freed);
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
