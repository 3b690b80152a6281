//! From an extent into a slot, without a copy: two operations side by side, one for the header into
//! a small buffer, one for the payload into the slot itself.
//!
//! What comes out is a [`StoredChunk`], which says what the disk said and nothing more: only
//! [`verify`](crate::verify) makes something of it that may be served.

use std::sync::Arc;
use std::time::Duration;

use forebay_io::{AlignedBuf, Done, Failed, FileError, FileOffset, IoError};
use tokio::runtime::Handle;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;

use super::breaker::DiskState;
use super::catalog::Stored;
use super::disk::{DiskError, ReadLeave};
use super::extent::{BadExtent, ExtentHeader, HEADER_BYTES};
use super::{NvmeTier, PATIENCE, lock, payload_bytes};
use crate::admission::Lane;
use crate::digest::ChunkDigest;
use crate::plan::{ChunkKey, ChunkSpec};
use crate::ram::pool::ClaimedSlot;
use crate::report::Why;
use crate::resolve::Revision;
use crate::timeline::{Kind, Span, Stage};

/// How often whoever waits for its turn looks whether it still makes sense.
const ASK_AGAIN: Duration = Duration::from_millis(50);

/// Extents that failed once and are remembered for it.
const FAILED_MAX: usize = 1024;

/// A chunk that is stored, as far as is known, and its turn to be read.
#[derive(Debug)]
pub(crate) struct Found {
    key: ChunkKey,
    /// Not known while the tier recovers.
    generation: Option<u64>,
    turn: Turn,
}

/// A place among the reads. It goes to the disk with the slot, so that a disk that hangs keeps it
/// as long as the slot, and no more slots than there are places.
#[derive(Debug)]
struct Turn {
    _leave: ReadLeave,
    _places: (OwnedSemaphorePermit, Option<OwnedSemaphorePermit>),
}

/// Bytes as the disk gave them, in a slot; nobody has looked at them.
#[derive(Debug)]
pub(crate) struct StoredChunk {
    slot: ClaimedSlot,
    spec: Arc<ChunkSpec>,
    header: AlignedBuf,
    payload_bytes: usize,
    generation: Option<u64>,
    required: Option<u64>,
}

impl StoredChunk {
    /// Checks every grain; the digest of the chunk. Burns CPU.
    pub(crate) fn check(&self) -> Result<ChunkDigest, BadExtent> {
        let header = self.header.first_chunk::<HEADER_BYTES>().ok_or(BadExtent::Header)?;
        let header = ExtentHeader::decode(header)?;
        header.expect(&self.spec.key, self.required)?;
        if header.payload_bytes() != payload_bytes(&self.spec) {
            return Err(BadExtent::Contradiction);
        }
        let read = self.slot.as_slice().get(..self.payload_bytes).unwrap_or_default();
        header.check_all(read)?;
        Ok(header.digest())
    }

    /// Of the extent, if it was known.
    pub(crate) fn generation(&self) -> Option<u64> {
        self.generation
    }

    /// The slot and what should be in it.
    pub(crate) fn into_parts(self) -> (ClaimedSlot, Arc<ChunkSpec>) {
        (self.slot, self.spec)
    }
}

/// What a read came to: what was made of the chunk and when it was read; or, if there is nothing to
/// be had, why, and the slot unless the disk keeps it.
pub(crate) type Read<T> = Result<(T, [Span; 2]), (Option<ClaimedSlot>, Why)>;

impl NvmeTier {
    /// The chunk, if it is stored or may be, and the disk is trusted, when it is its turn to be
    /// read. `revision` uses it; `lane` may change meanwhile. The turn comes before the slot, and
    /// whoever has it waits for a slot and for nothing else. Else why not.
    pub(crate) async fn find(
        &self,
        key: &ChunkKey,
        revision: Revision,
        lane: impl Fn() -> Lane,
    ) -> Result<Found, Why> {
        let generation = self.look_up(key, revision).ok_or(Why::NotStored)?;
        let mut of_prefetches = None;
        loop {
            // Asked again and again: the disk may be found to hang, and then nobody's turn comes.
            if self.disk.state() == DiskState::Down {
                break;
            }
            let prefetch = lane() == Lane::Prefetch;
            if prefetch && of_prefetches.is_none() {
                let place = Arc::clone(&self.prefetch_reads).acquire_owned();
                // The semaphores live as long as the tier and are never closed.
                of_prefetches =
                    tokio::time::timeout(ASK_AGAIN, place).await.ok().and_then(Result::ok);
                continue;
            }
            let place = Arc::clone(&self.reads).acquire_owned();
            let Ok(Ok(place)) = tokio::time::timeout(ASK_AGAIN, place).await else { continue };
            let Some(leave) = self.disk.may_read() else { break };
            let turn = Turn { _leave: leave, _places: (place, of_prefetches) };
            return Ok(Found { key: *key, generation, turn });
        }
        self.meters.bypassed();
        Err(Why::LeftAlone)
    }

    /// The generation of a chunk that is stored, or none of one that may be.
    fn look_up(&self, key: &ChunkKey, revision: Revision) -> Option<Option<u64>> {
        let mut catalog = self.catalog();
        match catalog.find(key, revision) {
            Some((Stored { generation, .. }, changed)) => {
                if changed {
                    self.remember(&catalog, [*key], []);
                }
                Some(Some(generation))
            }
            // The extent itself says what it is, if there is one.
            None if self.recovery.borrow().is_none() => Some(None),
            None => {
                self.meters.missed();
                None
            }
        }
    }

    /// Reads the chunk into the slot and has it checked, both on one thread of the tier: handing a
    /// chunk from thread to thread costs as much as reading it. Dropped, the read goes on to its
    /// end, and its slot and its turn come back then.
    pub(crate) async fn read<T: Send + 'static>(
        self: &Arc<Self>,
        found: Found,
        spec: &Arc<ChunkSpec>,
        slot: ClaimedSlot,
        check: impl FnOnce(StoredChunk) -> T + Send + 'static,
    ) -> Read<T> {
        let (tier, spec, runtime) = (Arc::clone(self), Arc::clone(spec), Handle::current());
        let (key, generation, offered) = (found.key, found.generation, Instant::now());
        let reading = self.readers.run(move || {
            (tier.ram.sit)(slot.node());
            let (stored, spans) = tier.read_here(found, spec, slot, offered, &runtime)?;
            Ok((check(stored), spans))
        });
        // As long as an open and a read may take; then the thread is left to the disk.
        let end = match tokio::time::timeout(2 * PATIENCE, reading).await {
            Ok(Ok(end)) => end,
            Ok(Err(_)) | Err(_) => Err(NotRead { slot: None, bad: None, gone: false }),
        };
        let NotRead { slot, bad, gone } = match end {
            Ok(read) => return Ok(read),
            Err(not_read) => not_read,
        };
        let why = match bad {
            Some(_) => Why::BadExtent,
            None if gone => Why::NotStored,
            None => Why::ReadFailed,
        };
        if let Some(bad) = bad {
            self.quarantine(key, generation, bad).await;
        }
        Err((slot, why))
    }

    fn read_here(
        self: &Arc<Self>,
        found: Found,
        spec: Arc<ChunkSpec>,
        slot: ClaimedSlot,
        offered: Instant,
        runtime: &Handle,
    ) -> Result<(StoredChunk, [Span; 2]), NotRead> {
        let (Found { key, generation, turn }, working) = (found, self.read_rate.begin());
        let back = |slot, gone| NotRead { slot: Some(slot), bad: None, gone };
        let file = match self.disk.call_here(|store| store.read(&key)) {
            Ok(Some(file)) => file,
            Ok(None) => {
                self.meters.missed();
                self.is_gone(&key, generation);
                return Err(back(slot, true));
            }
            Err(error) => {
                let bad = self.cannot_read(&key, &error);
                return Err(NotRead { slot: Some(slot), bad, gone: false });
            }
        };
        let Ok(header) = AlignedBuf::zeroed(HEADER_BYTES, HEADER_BYTES) else {
            return Err(back(slot, false));
        };
        let payload = payload_bytes(&spec);
        let whole = payload.next_multiple_of(HEADER_BYTES);
        let header = self.disk.read(&file, FileOffset(0), header, 0..HEADER_BYTES);
        let body = FileOffset(HEADER_BYTES as u64);
        let bytes = self.disk.read(&file, body, slot.into_target(turn), 0..whole);
        let (header, bytes) = runtime.block_on(async { tokio::join!(header, bytes) });
        let Done { bytes, target, times } = match bytes {
            Ok(done) => done,
            Err(Failed { error, target, .. }) => {
                let bad = self.cannot_read(&key, &error.into());
                let slot = target.map(|target| ClaimedSlot::from_target(target).0);
                return Err(NotRead { slot, bad, gone: false });
            }
        };
        // The turn is over before the bytes are checked: the disk has no more to do with it.
        let (slot, _turn) = ClaimedSlot::from_target(target);
        let header = match header {
            Ok(done) => done.target,
            Err(failed) => {
                let bad = self.cannot_read(&key, &failed.error.into());
                return Err(NotRead { slot: Some(slot), bad, gone: false });
            }
        };
        let ended = Instant::now();
        working.done(spec.bytes);
        let device = ended.checked_sub(times.device).unwrap_or(offered).max(offered);
        let spans = [
            Span::new(Stage::NvmeRead, Kind::Queue, offered, device),
            Span::new(Stage::NvmeRead, Kind::Service, device, ended),
        ];
        let payload_bytes = bytes.min(payload);
        let required = self.required(generation);
        Ok((StoredChunk { slot, spec, header, payload_bytes, generation, required }, spans))
    }

    /// What the tier held was right.
    pub(crate) fn was_right(&self) {
        self.meters.hit();
    }

    /// The file of a chunk is not there, although it should be.
    pub(super) fn is_gone(&self, key: &ChunkKey, generation: Option<u64>) {
        let Some(generation) = generation else { return };
        let mut catalog = self.catalog();
        if let Some(stored) = catalog.forget(key, generation) {
            catalog.left(&stored);
            self.remember(&catalog, [*key], [stored.revision]);
            drop(catalog);
            self.room_changed.notify_waiters();
        }
    }

    /// Counts an extent that could not be read; whether it is to be put aside. An error says
    /// nothing of an extent, a second one says that it is of no use.
    fn cannot_read(&self, key: &ChunkKey, error: &DiskError) -> Option<BadExtent> {
        self.meters.bypassed();
        tracing::debug!(?key, %error, "an extent cannot be read");
        match error {
            DiskError::File(FileError::Foreign { .. }) => Some(BadExtent::Foreign),
            DiskError::Io(IoError::Device { .. }) => {
                let mut failed = lock(&self.failed_once);
                let again = failed.remove(key);
                if !again && failed.len() < FAILED_MAX {
                    failed.insert(*key);
                }
                again.then_some(BadExtent::Unreadable)
            }
            _ => None,
        }
    }
}

/// Why there is nothing to check.
struct NotRead {
    /// Unless the disk keeps it.
    slot: Option<ClaimedSlot>,
    /// Of the extent, if that is the reason.
    bad: Option<BadExtent>,
    /// There is no file.
    gone: bool,
}
