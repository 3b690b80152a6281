//! The slots of the RAM tier: segments, their growth, and who owns a slot that nobody reads.
//!
//! A slot is owned by exactly one of: the free list, a [`ClaimedSlot`] (being filled), or a
//! [`SlotReader`](forebay_shm::SlotReader) with its [`Home`] (readable). Ownership moves, it is
//! never copied; dropping an owner puts the slot on the free list. `forebay-shm` keeps the same
//! law a second time in its per-slot state word, which is what makes writing safe.
//!
//! The first segment is made before the daemon is ready and is small; a thread makes the others up
//! to the budget, because populating pages runs at some GB/s and must delay neither the start nor
//! a load. A segment that cannot be had ends the growth: the tier is smaller, and says so.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use forebay_io::Carried;
use forebay_shm::{Segment, SegmentId, SegmentSpec, ShmError, SlotIndex, SlotReader, SlotWriter};
use tokio::sync::Notify;

/// A segment's file, at most: larger registrations with a GPU driver fail in practice.
const SEGMENT_BYTES_MAX: u64 = 256 << 20;

/// The first segment: enough to start, populated in some tens of milliseconds.
const FIRST_SEGMENT_BYTES: u64 = 64 << 20;

/// What a segment holds beside its slots, at most: its header, and the hole that aligns the slots.
const SEGMENT_HEADER_BYTES: u64 = 2 << 20;

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

impl PoolSpec {
    /// How many slots each segment gets, in the order they are made.
    fn segments(&self) -> Vec<u32> {
        let per = |bytes: u64| ((bytes - SEGMENT_HEADER_BYTES) / self.chunk_bytes).max(1);
        let mut left = self.budget_bytes / self.chunk_bytes;
        let mut segments = Vec::new();
        while left > 0 && segments.len() < self.segments_max {
            let limit = if segments.is_empty() { FIRST_SEGMENT_BYTES } else { SEGMENT_BYTES_MAX };
            let slots = per(limit).min(left);
            left -= slots;
            segments.push(u32::try_from(slots).unwrap_or(u32::MAX));
        }
        segments
    }
}

/// The segments and their free slots.
#[derive(Debug)]
pub(crate) struct Pool {
    spec: PoolSpec,
    segments: Mutex<Vec<Arc<Segment>>>,
    free: Arc<FreeSlots>,
    trouble: Mutex<Vec<String>>,
    growing: AtomicBool,
    unlocked: AtomicBool,
    stop: AtomicBool,
}

#[derive(Debug, Default)]
struct FreeSlots {
    slots: Mutex<Vec<(Arc<Segment>, SlotIndex)>>,
    came_free: Notify,
}

impl Pool {
    /// A pool with its first segment.
    pub(crate) fn create(spec: PoolSpec) -> Result<Self, ShmError> {
        let pool = Self {
            spec,
            segments: Mutex::default(),
            free: Arc::default(),
            trouble: Mutex::default(),
            growing: AtomicBool::new(spec.segments().len() > 1),
            unlocked: AtomicBool::new(false),
            stop: AtomicBool::new(false),
        };
        let planned: u64 = spec.segments().iter().map(|slots| u64::from(*slots)).sum();
        if planned < spec.budget_bytes / spec.chunk_bytes {
            let bytes = planned * spec.chunk_bytes;
            pool.trouble(format!("ram: {bytes} bytes only: the limit on open files (LimitNOFILE)"));
        }
        if let Some(slots) = spec.segments().first() {
            pool.add_segment(*slots)?;
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
        for slots in self.spec.segments().into_iter().skip(1) {
            if self.stop.load(Ordering::Relaxed) {
                break;
            }
            self.add_segment(slots)?;
            on_grow(slots as usize);
        }
        Ok(())
    }

    /// Ends the growth after the segment it is at.
    pub(crate) fn stop_growing(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    fn add_segment(&self, slots: u32) -> Result<(), ShmError> {
        let id = SegmentId(lock(&self.segments).len() as u64);
        let segment = Segment::create(&SegmentSpec {
            id,
            domain: DOMAIN,
            slot_bytes: usize::try_from(self.spec.chunk_bytes).unwrap_or(usize::MAX),
            slots,
            lock: self.spec.lock,
        })?;
        if let Some(problem) = &segment.placement().lock_error
            && !self.unlocked.swap(true, Ordering::Relaxed)
        {
            tracing::warn!(%problem, segment = id.0, "the RAM tier is not wholly locked in memory");
            self.trouble(format!("memlock: part of the RAM tier may be swapped: {problem}"));
        }
        lock(&self.segments).push(Arc::clone(&segment));
        // Highest first: the list is taken from its end, so low slots are used first.
        let fresh = (0..slots).rev().map(|slot| (Arc::clone(&segment), SlotIndex(slot)));
        lock(&self.free.slots).extend(fresh);
        self.free.came_free.notify_waiters();
        Ok(())
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
        lock(&self.free.slots).len()
    }

    /// The size and pieces asked for.
    pub(crate) fn spec(&self) -> PoolSpec {
        self.spec
    }

    /// Takes a free slot for writing, if there is one.
    pub(crate) fn take(&self) -> Option<Result<ClaimedSlot, ShmError>> {
        let (segment, slot) = lock(&self.free.slots).pop()?;
        // A slot on the free list has no reader and no writer; a refusal here is a bug, and the
        // slot then stays out of use.
        Some(segment.writer(slot).map(|writer| ClaimedSlot {
            writer,
            home: Home { free: Arc::clone(&self.free), segment, slot },
        }))
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
    segment: Arc<Segment>,
    slot: SlotIndex,
}

impl Drop for Home {
    fn drop(&mut self) {
        lock(&self.free.slots).push((Arc::clone(&self.segment), self.slot));
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
    /// The whole slot.
    pub(crate) fn as_mut_slice(&mut self) -> &mut [u8] {
        self.writer.as_mut_slice()
    }

    /// The whole slot, to look at what was written.
    pub(crate) fn as_slice(&self) -> &[u8] {
        self.writer.as_slice()
    }

    /// As what a read of a file fills, with something that lasts as long. Whoever has it has the slot:
    /// it is free again when the last of it is dropped, which a disk that hangs may put off.
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
    #[expect(dead_code, reason = "held for its Drop")]
    home: Home,
}

impl ReadableSlot {
    /// Where it is and what generation it has.
    pub(crate) fn reader(&self) -> &SlotReader {
        &self.reader
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    // Lists are pushed to and popped from in one call: consistent whoever panicked.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec_of(budget_bytes: u64, chunk_bytes: u64) -> PoolSpec {
        PoolSpec { budget_bytes, chunk_bytes, lock: false, segments_max: 1000 }
    }

    fn spec(slots: u64) -> PoolSpec {
        spec_of(slots << 16, 1 << 16)
    }

    #[test]
    fn segments_stay_below_their_limit_and_sum_to_the_budget() {
        for (budget, chunk) in [(256 << 20, 8 << 20), (10 << 30, 16 << 20), (3 << 20, 1 << 16)] {
            let segments = spec_of(budget, chunk).segments();
            let slots: u64 = segments.iter().map(|slots| u64::from(*slots)).sum();
            assert_eq!(slots, budget / chunk);
            assert!(u64::from(segments[0]) * chunk <= FIRST_SEGMENT_BYTES);
            assert!(segments.iter().all(|slots| u64::from(*slots) * chunk < SEGMENT_BYTES_MAX));
        }
    }

    #[test]
    fn the_limit_on_open_files_bounds_the_pool_and_is_said() {
        let spec = PoolSpec { segments_max: 1, ..spec_of(1 << 30, 8 << 20) };
        let pool = Pool::create(spec).unwrap();
        assert!(!pool.is_growing());
        assert!(pool.degraded()[0].contains("LimitNOFILE"), "{:?}", pool.degraded());
    }

    #[test]
    fn a_slot_has_one_owner() {
        let pool = Pool::create(spec(2)).unwrap();
        let first = pool.take().unwrap().unwrap();
        let second = pool.take().unwrap().unwrap();
        assert!(pool.take().is_none());
        drop(first);
        let readable = second.publish();
        assert_eq!(pool.free_slots(), 1);
        drop(readable);
        assert_eq!(pool.free_slots(), 2);
    }

    #[test]
    fn growth_reaches_the_budget_and_is_heard() {
        let budget = (FIRST_SEGMENT_BYTES + (8 << 20)) & !0xffff;
        let pool = Arc::new(Pool::create(spec_of(budget, 1 << 20)).unwrap());
        let before = pool.slots();
        let (sender, grown) = std::sync::mpsc::channel();
        let thread =
            Arc::clone(&pool).grow_in_background(move |slots| sender.send(slots).unwrap()).unwrap();
        thread.join().unwrap();
        assert!(!pool.is_growing());
        assert_eq!(before + grown.iter().sum::<usize>(), 72);
        assert_eq!(pool.slots(), 72);
    }
}
