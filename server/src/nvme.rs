//! The NVMe tier: verified chunks in files of the cache directory, kept over restarts.
//!
//! ```text
//!   load ── find, read ─► StoredChunk ─► verify        (RAM miss: the path is entered at verify)
//!        ── offer ──► fills ──► workers: reserve, copy, write, commit     (behind the hand-over)
//!                                  │
//!        catalog (what is stored) ─┴─ index (the same, remembered) ── recover (at the start)
//!        disk (io engine, breaker) ── store (files and names) ── extent (the format)
//! ```
//!
//! What is read is only believed once [`verify`](crate::verify) has checked every grain of it. An
//! extent that is bad is put aside, and the same flight gets its bytes from the origin; they are
//! stored anew behind that. A disk that fails or hangs costs the loads nothing but the hits: see
//! `breaker`.
//!
//! What else of a checkpoint is read before a load, the headers of its objects, is kept in `blobs`,
//! so that after a restart a load asks its origin only whether everything is still as it was.
//!
//! A chunk whose objects cannot be pinned at the origin is never stored: nobody would ask for it
//! again.

mod blobs;
mod breaker;
mod catalog;
mod check;
mod clock;
mod disk;
mod extent;
mod fills;
pub(crate) mod fuzzed;
mod index;
mod news;
mod read;
mod recover;
mod room;
mod status;
mod store;
mod verbs;
mod write;

use std::collections::{BTreeMap, HashSet};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use forebay_io::{
    EngineChoice, EngineReason, FileError, FileMode, NodeId, RegisterError, Registration,
};
use forebay_shm::{Segment, SegmentId};
use tokio::sync::{Notify, Semaphore, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::admission::Lane;
use crate::capacity::meter::Meter;
use crate::cpu::Workers;
use crate::metrics::{Fallback, TierMeters, fell_back};
use crate::plan::{ChunkKey, ChunkSpec};
use crate::ram::PinnedChunk;
use crate::resolve::{Manifest, Revision};
use breaker::DiskState;
use catalog::{Catalog, Stored};
use disk::Disk;
use fills::Fills;
use index::Index;
use news::News;
use store::{DiskRoom, Store};

pub(crate) use catalog::StoredCheckpoint;
pub(crate) use check::Checked;
pub(crate) use extent::BadExtent;
pub(crate) use read::StoredChunk;
pub(crate) use status::NvmeState;

/// Chunks that are written side by side: each has a buffer of its own.
pub(crate) const FILL_WORKERS: usize = 2;

/// Bytes that are read side by side: what keeps a fast device busy, and no more than the cache of
/// the cores holds until it is checked.
const READ_BYTES_AT_ONCE: u64 = 32 << 20;
/// Chunks that are read side by side, at most: each has a thread for as long.
const READS_MAX: u64 = READERS as u64;
pub(crate) const READERS: usize = 16;

/// How long a call on a file may take: as the hard limit of the io engine.
const PATIENCE: Duration = Duration::from_secs(5);

/// How large the tier may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Budget {
    /// So many bytes.
    Bytes(u64),
    /// A share of what is free when nothing is stored.
    Percent(u64),
}

/// What the tier is to be.
#[derive(Debug, Clone)]
pub(crate) struct NvmeSettings {
    /// The directory that its own lies in.
    pub(crate) cache_dir: PathBuf,
    /// How large it may be.
    pub(crate) budget: Budget,
    /// One slot.
    pub(crate) chunk_bytes: u64,
    /// Bytes that the scrub reads a second; it does not run at 0.
    pub(crate) scrub_bytes_per_second: u64,
}

/// Looks a chunk up in RAM.
type ChunkOf = dyn Fn(&ChunkKey) -> Option<PinnedChunk> + Send + Sync;

/// What the tier sees of the RAM tier.
pub(crate) struct RamSide {
    /// A chunk that is there.
    pub(crate) chunk: Box<ChunkOf>,
    /// Slots that hold nothing.
    pub(crate) free_slots: Box<dyn Fn() -> usize + Send + Sync>,
    /// Has the calling thread run near some memory.
    pub(crate) sit: Box<dyn Fn(NodeId) + Send + Sync>,
}

impl std::fmt::Debug for RamSide {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RamSide").finish_non_exhaustive()
    }
}

/// Why there is no NVMe tier.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OpenError {
    /// Its folders cannot be used.
    #[error(transparent)]
    File(#[from] FileError),
    /// No threads.
    #[error("cannot start a thread: {0}")]
    Thread(#[from] std::io::Error),
}

/// See the module's head.
#[derive(Debug)]
pub(crate) struct NvmeTier {
    settings: NvmeSettings,
    engine_reason: String,
    disk: Arc<Disk>,
    catalog: Mutex<Catalog>,
    index: Mutex<Option<Index>>,
    fills: Fills,
    /// Copies, sums and checks that nobody waits for, at a lower priority.
    background: Workers,
    ram: RamSide,
    tasks: TaskTracker,
    /// Blobs being written, which are tasks too. Closed, so that they can be waited for.
    blobs: TaskTracker,
    stop: CancellationToken,
    /// Slots that may be with the disk at one time. Should it hang, it keeps those, and as many are
    /// left to go on with.
    reads: Arc<Semaphore>,
    /// Of all, and of prefetches.
    reads_allowed: Mutex<[usize; 2]>,
    /// Of them, those that may be for prefetches.
    prefetch_reads: Arc<Semaphore>,
    /// Where extents are read and checked.
    readers: Workers,
    /// Extents that the device failed to read once.
    failed_once: Mutex<HashSet<ChunkKey>>,
    /// Loads in progress that somebody waits for.
    awaited: AtomicUsize,
    opened: Instant,
    recovery: watch::Sender<Option<Duration>>,
    /// No extent that was written before the start has a later generation.
    born: u64,
    last_generation: AtomicU64,
    room_changed: Notify,
    full_until: Mutex<Option<Instant>>,
    last_room: Mutex<DiskRoom>,
    news: Arc<Mutex<News>>,
    /// Given up, and their files could not be removed yet.
    stuck: Mutex<Vec<Stored>>,
    registrations: Mutex<BTreeMap<SegmentId, Registration>>,
    trouble: Mutex<Vec<String>>,
    quarantined: AtomicU64,
    given_up: AtomicU64,
    meters: TierMeters,
    /// Extents that were read.
    read_rate: Meter,
    /// Extents that were written.
    write_rate: Meter,
}

impl NvmeTier {
    /// Opens the tier in its directory. It serves at once; what it holds becomes known behind that.
    pub(crate) fn open(
        settings: NvmeSettings,
        engine: EngineChoice,
        ram: RamSide,
        tasks: TaskTracker,
    ) -> Result<Arc<Self>, OpenError> {
        let store = Store::open(&settings.cache_dir)?;
        let engine_reason = engine.reason.to_string();
        let mut trouble = Vec::new();
        if !matches!(engine.reason, EngineReason::Uring { .. } | EngineReason::Asked) {
            trouble.push(format!("nvme: {engine_reason}"));
        }
        if let Some(why) = status::refused(&engine.reason) {
            fell_back(Fallback::ThreadEngine(why));
        }
        if let FileMode::Buffered(reason) = store.mode() {
            fell_back(Fallback::BufferedIo);
            trouble.push(format!("nvme: {reason}"));
        }
        let (born, news) = (clock::nanos(), Arc::<Mutex<News>>::default());
        let tier = Arc::new(Self {
            disk: Arc::new(Disk::new(store, engine.engine, PATIENCE, Arc::clone(&news))?),
            settings,
            engine_reason,
            catalog: Mutex::new(Catalog::new()),
            index: Mutex::default(),
            fills: Fills::default(),
            background: Workers::start_in_background("forebay-fill", 1)?,
            ram,
            tasks,
            blobs: TaskTracker::new(),
            stop: CancellationToken::new(),
            reads: Arc::new(Semaphore::new(0)),
            reads_allowed: Mutex::default(),
            prefetch_reads: Arc::new(Semaphore::new(0)),
            readers: Workers::start_loose("forebay-read", READERS)?,
            failed_once: Mutex::default(),
            awaited: AtomicUsize::new(0),
            opened: Instant::now(),
            recovery: watch::Sender::new(None),
            born,
            last_generation: AtomicU64::new(born),
            room_changed: Notify::new(),
            full_until: Mutex::default(),
            last_room: Mutex::default(),
            news,
            stuck: Mutex::default(),
            registrations: Mutex::default(),
            trouble: Mutex::new(trouble),
            quarantined: AtomicU64::new(0),
            given_up: AtomicU64::new(0),
            meters: TierMeters::new(),
            read_rate: Meter::default(),
            write_rate: Meter::default(),
        });
        tier.blobs.close();
        tier.set_budget();
        recover::start(&tier)?;
        Ok(tier)
    }

    /// What was read of the disk and written to it, and in which time.
    pub(crate) fn rates(&self) -> [&Meter; 2] {
        [&self.read_rate, &self.write_rate]
    }

    /// Starts what runs behind the loads: fills, the watch over the disk, the scrub.
    pub(crate) fn run(self: &Arc<Self>) {
        for _ in 0..FILL_WORKERS {
            let tier = Arc::clone(self);
            self.tasks.spawn(async move { tier.fill_until_closed().await });
        }
        let tier = Arc::clone(self);
        self.tasks.spawn(async move {
            tokio::select! {
                () = tier.disk.keep_watch() => {}
                () = tier.keep_room() => {}
                () = tier.scrub() => {}
                () = tier.stop.cancelled() => {}
            }
        });
    }

    /// Takes no more chunks, and writes those that wait, until `limit` or until there is a hurry;
    /// then ends.
    pub(crate) async fn close(self: &Arc<Self>, limit: Instant, hurry: impl Future<Output = ()>) {
        self.fills.close();
        let drained = tokio::select! {
            () = self.fills.drained() => true,
            () = tokio::time::sleep_until(limit) => false,
            () = hurry => false,
        };
        if !drained {
            let left = self.fills.give_up();
            tracing::warn!(
                chunks = left.len(),
                "the NVMe tier is closed before these were written"
            );
        }
        self.stop.cancel();
        let index = lock(&self.index).take();
        let engine = Arc::clone(self.disk.engine());
        let closing = self.background.run(move || {
            // Written to the end here: what is remembered is a shorter next start.
            drop(index);
            engine.close(Duration::from_secs(1))
        });
        match tokio::time::timeout(PATIENCE, closing).await {
            Ok(Ok(running @ 1..)) => {
                tracing::warn!(running, "the disk has not finished these operations");
            }
            Ok(_) => {}
            Err(_elapsed) => tracing::warn!("the disk does not let the NVMe index be closed"),
        }
    }

    /// The RAM tier has so many slots now. Of fewer reads, those that have a turn keep it: what
    /// cannot be taken back now is with a later call.
    pub(crate) fn slots(&self, slots: usize) {
        let most = (READ_BYTES_AT_ONCE / self.settings.chunk_bytes.max(1)).min(READS_MAX);
        let most = usize::try_from(most).unwrap_or(usize::MAX).max(2);
        let allowed = (slots / 2).clamp(1, most);
        let of_prefetches = |allowed: usize| allowed.div_ceil(2);
        let mut before = lock(&self.reads_allowed);
        let [reads, prefetch_reads] = *before;
        *before = [
            allow(&self.reads, reads, allowed),
            allow(&self.prefetch_reads, prefetch_reads, of_prefetches(allowed)),
        ];
    }

    /// A segment has gone from the RAM tier.
    pub(crate) fn unregister(&self, id: SegmentId) {
        let gone = lock(&self.registrations).remove(&id);
        drop(gone);
    }

    /// Tells the kernel about memory that chunks are read into. What it refuses works as well, at
    /// more CPU, and is said.
    pub(crate) fn register(&self, segment: &Arc<Segment>) {
        match self.disk.engine().register(segment) {
            Ok(registration) => {
                lock(&self.registrations).insert(segment.id(), registration);
            }
            Err(RegisterError::NotUsed(_) | RegisterError::Closed) => {}
            Err(error) => {
                let sentence = format!("nvme: reads cost more CPU than they could: {error}");
                let mut trouble = lock(&self.trouble);
                if !trouble.iter().any(|said| said.starts_with("nvme: reads cost more CPU")) {
                    tracing::warn!("{sentence}");
                    trouble.push(sentence);
                }
            }
        }
    }

    /// Counts `manifest` as in use until the guard drops.
    pub(crate) fn use_revision(self: &Arc<Self>, manifest: &Manifest, lane: Lane) -> TierUse {
        let (revision, objects) = (manifest.revision(), manifest.objects().len());
        let mut catalog = self.catalog();
        catalog.begin(revision, manifest.uri(), manifest.bytes(), objects, clock::seconds());
        self.remember(&catalog, [], [revision]);
        let awaited = lane == Lane::Interactive;
        if awaited {
            self.awaited.fetch_add(1, Ordering::Relaxed);
        }
        let awaited = AtomicBool::new(awaited);
        TierUse { tier: Arc::clone(self), revision, awaited }
    }

    /// Whether the chunk is stored, as far as is known.
    pub(crate) fn holds(&self, key: &ChunkKey) -> bool {
        self.catalog().peek(key).is_some() && self.disk.state() != DiskState::Down
    }

    /// Whether the chunk is stored, for `revision` too from now on.
    pub(crate) fn holds_for(&self, key: &ChunkKey, revision: Revision) -> bool {
        self.refer(key, revision);
        self.holds(key)
    }

    /// `revision` refers to the chunk from now on, if it is stored.
    pub(crate) fn refer(&self, key: &ChunkKey, revision: Revision) {
        let mut catalog = self.catalog();
        if catalog.refer(key, revision) {
            self.remember(&catalog, [*key], []);
        }
    }

    /// Puts a bad extent aside, counts it, and forgets it, unless it is another one by now.
    pub(crate) async fn quarantine(
        self: &Arc<Self>,
        key: ChunkKey,
        generation: Option<u64>,
        why: BadExtent,
    ) {
        let forgotten = generation.and_then(|generation| {
            let mut catalog = self.catalog();
            let forgotten = catalog.forget(&key, generation);
            self.remember(&catalog, [key], forgotten.iter().map(|stored| stored.revision));
            forgotten
        });
        if generation.is_some() && forgotten.is_none() {
            return;
        }
        tracing::warn!(?key, %why, "a bad extent of the NVMe tier is put aside");
        if forgotten.is_some() {
            self.count_bad(why.label());
        }
        let (tier, mark) = (Arc::clone(self), self.next_generation());
        let put_aside = move |store: &Store| store.quarantine(&key, mark);
        // A task of its own: whoever asked may be dropped.
        let moving = self.tasks.spawn(async move {
            if let Some(stored) = forgotten {
                tier.take_away(stored, move |store| put_aside(store).map(drop)).await;
                return;
            }
            // Nobody knows of it yet, so the recovery may find the same one bad at this moment.
            match tier.disk.call(put_aside).await {
                Ok(true) => tier.count_bad(why.label()),
                Ok(false) => {}
                Err(error) => tracing::warn!(%error, ?key, "a bad extent cannot be put aside"),
            }
            tier.all_left(tier.forget_old(&key).as_slice());
        });
        drop(moving.await);
    }

    /// Once for each extent that was found to be bad, whoever found it.
    fn count_bad(&self, reason: &'static str) {
        self.quarantined.fetch_add(1, Ordering::Relaxed);
        self.meters.quarantined(reason);
    }

    /// While the tier recovers, an extent may be put aside before it is known, and become known by
    /// the index or by a look that came before. Called when its file is gone; what becomes known
    /// after that is missed by whoever looks for the file.
    fn forget_old(&self, key: &ChunkKey) -> Option<Stored> {
        let mut catalog = self.catalog();
        let old = catalog.peek(key).filter(|stored| stored.generation <= self.born)?;
        let forgotten = catalog.forget(key, old.generation);
        self.remember(&catalog, [*key], [old.revision]);
        forgotten
    }

    /// Has the present state of these rows remembered. Under the catalog's lock, so that the last
    /// state is the one that stays.
    fn remember(
        &self,
        catalog: &Catalog,
        keys: impl IntoIterator<Item = ChunkKey>,
        revisions: impl IntoIterator<Item = Revision>,
    ) {
        let index = lock(&self.index);
        let Some(index) = index.as_ref() else { return };
        keys.into_iter().for_each(|key| index.chunk(key, catalog.chunk_row(&key)));
        for revision in revisions {
            index.revision(revision, catalog.revision_row(&revision));
        }
    }

    /// Grows with time, also over restarts, and is never the same twice.
    fn next_generation(&self) -> u64 {
        let clock = clock::nanos();
        let last = self.last_generation.fetch_max(clock, Ordering::Relaxed);
        if clock > last { clock } else { self.last_generation.fetch_add(1, Ordering::Relaxed) + 1 }
    }

    /// The generation that an extent has to have: that of one that was written since the start.
    /// What the index says of older ones may be out of date, since a kill loses its last second,
    /// and the extent in its place is as good: equal keys mean equal bytes.
    fn required(&self, generation: Option<u64>) -> Option<u64> {
        generation.filter(|generation| *generation > self.born)
    }

    fn catalog(&self) -> MutexGuard<'_, Catalog> {
        lock(&self.catalog)
    }
}

/// Bytes of a chunk's slot up to the end of its last object.
fn payload_bytes(spec: &ChunkSpec) -> usize {
    let end = spec.extents.last().map_or(0, |last| last.slot_offset + last.bytes);
    usize::try_from(end).unwrap_or(usize::MAX)
}

/// Has `allowed` permits where there were so many; how many there are now.
fn allow(permits: &Semaphore, before: usize, allowed: usize) -> usize {
    permits.add_permits(allowed.saturating_sub(before));
    before.max(allowed) - permits.forget_permits(before.saturating_sub(allowed))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What is locked here is consistent after each call, whoever panicked between two of them.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A revision of which a chunk waits to be written.
#[derive(Debug)]
struct Hold {
    tier: Weak<NvmeTier>,
    revision: Revision,
}

impl Drop for Hold {
    fn drop(&mut self) {
        let Some(tier) = self.tier.upgrade() else { return };
        let mut catalog = tier.catalog();
        catalog.release(self.revision);
        // Forgotten, if this was the last that was known of it.
        if catalog.revision_row(&self.revision).is_none() {
            tier.remember(&catalog, [], [self.revision]);
        }
    }
}

/// A revision in use; others are evicted first.
#[derive(Debug)]
pub(crate) struct TierUse {
    tier: Arc<NvmeTier>,
    revision: Revision,
    awaited: AtomicBool,
}

impl TierUse {
    /// Everything is handed over: nobody waits for this load any more, however long it keeps what
    /// it was lent.
    pub(crate) fn handed_over(&self) {
        if self.awaited.swap(false, Ordering::Relaxed) {
            self.tier.awaited.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

impl Drop for TierUse {
    fn drop(&mut self) {
        self.handed_over();
        let mut catalog = self.tier.catalog();
        catalog.end(self.revision, clock::seconds());
        self.tier.remember(&catalog, [], [self.revision]);
    }
}

#[cfg(test)]
#[path = "nvme/tier_tests.rs"]
mod tests;
