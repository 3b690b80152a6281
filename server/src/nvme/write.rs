//! From a slot into an extent, behind the hand-over.
//!
//! A worker takes a chunk that waits, has room reserved for it, copies it out of its slot, and
//! writes the copy. The copy is what keeps the loads safe from the disk: a slot is held for the
//! milliseconds that copying takes, whatever the disk does, and the sums are taken in the same
//! pass, while the bytes are in the cache of the core. Each worker has one buffer, which it keeps.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use forebay_io::{AlignedBuf, DataFile, FileOffset, IoError};
use tokio::time::Instant;

use super::catalog::{Room, Stored};
use super::disk::DiskError;
use super::extent::{Describing, ExtentHeader, GRAIN_BYTES, HEADER_BYTES, Identity, file_bytes};
use super::fills::Fill;
use super::{Hold, NvmeTier, payload_bytes};
use crate::cpu::Stopped;
use crate::digest::ChunkDigest;
use crate::plan::{ChunkKey, ChunkSpec};
use crate::resolve::Revision;

/// Why a chunk is not stored.
#[derive(Debug, thiserror::Error)]
enum GivenUp {
    #[error("it was evicted from RAM first")]
    Evicted,
    #[error("its checkpoint was evicted meanwhile")]
    Unwanted,
    #[error("there is no room")]
    NoRoom,
    #[error("the disk was full a moment ago")]
    Full,
    #[error("the disk is left alone")]
    Distrusted,
    #[error(transparent)]
    Disk(#[from] DiskError),
    #[error(transparent)]
    Stopped(#[from] Stopped),
    #[error("no chunk can be like that")]
    Impossible,
}

impl GivenUp {
    fn is_full(&self) -> bool {
        matches!(self, Self::Disk(error) if error.is_full())
    }

    fn label(&self) -> &'static str {
        match self {
            Self::Evicted => "evicted",
            Self::Unwanted => "unwanted",
            Self::NoRoom => "no_room",
            Self::Full => "disk_full",
            Self::Distrusted => "distrusted",
            Self::Disk(_) if self.is_full() => "disk_full",
            Self::Disk(_) => "disk_error",
            Self::Stopped(_) => "stopped",
            Self::Impossible => "impossible",
        }
    }
}

impl From<IoError> for GivenUp {
    fn from(error: IoError) -> Self {
        Self::Disk(error.into())
    }
}

/// Room that was reserved, until the chunk is written.
struct Reserved<'a> {
    tier: &'a NvmeTier,
    key: ChunkKey,
    payload_bytes: usize,
    open: bool,
}

impl Drop for Reserved<'_> {
    fn drop(&mut self) {
        if self.open {
            self.tier.catalog().given_up(&self.key, self.payload_bytes);
            self.tier.room_changed.notify_waiters();
        }
    }
}

impl NvmeTier {
    /// A chunk is in RAM and should be stored too. Never waits.
    pub(crate) fn offer(
        self: &Arc<Self>,
        spec: &Arc<ChunkSpec>,
        digest: ChunkDigest,
        revision: Revision,
    ) {
        let held = {
            let mut catalog = self.catalog();
            // Before that it may be known by the index alone, and be missed yet.
            if catalog.peek(&spec.key).is_some() && self.recovery.borrow().is_some() {
                return;
            }
            catalog.hold(revision)
        };
        let hold = held.then(|| Hold { tier: Arc::downgrade(self), revision });
        let fill = Fill { spec: Arc::clone(spec), digest, revision, hold };
        if !self.fills.offer(fill) {
            self.gave_up("queue_full");
        }
    }

    /// Waits until the chunk is stored, for `revision` too, or will not be: then why.
    pub(crate) async fn settled(
        &self,
        key: &ChunkKey,
        revision: Revision,
    ) -> Result<(), &'static str> {
        if !self.known().await {
            return Err("recovering");
        }
        let why_not = self.fills.settled(key).await;
        self.refer(key, revision);
        match self.catalog().peek(key) {
            Some(_) => Ok(()),
            None => Err(why_not.unwrap_or("not offered")),
        }
    }

    /// One worker.
    pub(super) async fn fill_until_closed(self: &Arc<Self>) {
        // Before that it is not known what is there, and how much room that leaves.
        self.recovered().await;
        if self.stop.is_cancelled() {
            return;
        }
        let mut buffer = None;
        while let Some(fill) = self.fills.next(|waiting| self.is_patient(waiting)).await {
            let key = fill.spec.key;
            let why_not = match self.store(&fill, &mut buffer).await {
                Ok(()) => None,
                Err(why) => {
                    tracing::debug!(?key, %why, "a chunk is not stored");
                    self.gave_up(why.label());
                    self.make_room_if(why.is_full()).await;
                    Some(why.label())
                }
            };
            let also = self.fills.done(&key, why_not);
            also.iter().for_each(|(revision, _)| self.refer(&key, *revision));
        }
    }

    /// Whether so many chunks can go on waiting.
    fn is_patient(&self, waiting: usize) -> bool {
        let loads = self.awaited.load(Ordering::Relaxed);
        let safe = loads > 0 && waiting <= (self.ram.free_slots)();
        safe || !self.disk.may_fill() || self.is_full(Instant::now())
    }

    fn gave_up(&self, reason: &'static str) {
        self.given_up.fetch_add(1, Ordering::Relaxed);
        self.meters.gave_up(reason);
    }

    async fn store(
        self: &Arc<Self>,
        fill: &Fill,
        buffer: &mut Option<AlignedBuf>,
    ) -> Result<(), GivenUp> {
        if !self.disk.may_fill() {
            return Err(GivenUp::Distrusted);
        }
        if self.is_full(Instant::now()) {
            return Err(GivenUp::Full);
        }
        // Before room is made for it: where RAM is small, many are gone when it is their turn.
        if (self.ram.chunk)(&fill.spec.key).is_none() {
            return Err(GivenUp::Evicted);
        }
        let payload_bytes = payload_bytes(&fill.spec);
        let Some(mut reserved) = self.reserve(fill, payload_bytes).await? else { return Ok(()) };
        let generation = self.next_generation();
        let identity = Identity { key: fill.spec.key, revision: fill.revision.0, generation };
        let working = self.write_rate.begin();
        let (header, copy) = self.copied(fill, identity, buffer.take()).await?;
        let (key, bytes) = (fill.spec.key, file_bytes(payload_bytes));
        let created = self.disk.call(move |store| store.create(&key, generation, bytes)).await;
        let file = match created {
            Ok(file) => file,
            Err(error) => {
                *buffer = Some(copy);
                return Err(error.into());
            }
        };
        let written = self.written(&file, &header, copy, buffer).await;
        drop(file);
        let committed = match written {
            Ok(()) => self.disk.call(move |store| store.commit(&key, generation)).await,
            Err(error) => Err(error),
        };
        if let Err(error) = committed {
            // If that cannot be done either, the next start does it.
            drop(self.disk.call(move |store| store.discard(&key, generation)).await);
            return Err(error.into());
        }
        working.done(fill.spec.bytes);
        let stored = Stored {
            key,
            revision: fill.revision,
            generation,
            payload_bytes: u32::try_from(payload_bytes).unwrap_or(u32::MAX),
            content_bytes: fill.spec.bytes,
        };
        reserved.open = false;
        let wanted = {
            let mut catalog = self.catalog();
            let wanted = self.fills.is_wanted(&key);
            catalog.written(stored, wanted);
            self.remember(&catalog, [key], [fill.revision]);
            wanted
        };
        if !wanted {
            self.remove(vec![stored]).await;
            return Err(GivenUp::Unwanted);
        }
        self.meters.filled(fill.spec.bytes);
        self.room_changed.notify_waiters();
        Ok(())
    }

    /// Room for the chunk, for which others may have to go; none if it needs none.
    async fn reserve(
        self: &Arc<Self>,
        fill: &Fill,
        payload_bytes: usize,
    ) -> Result<Option<Reserved<'_>>, GivenUp> {
        let key = fill.spec.key;
        loop {
            let changed = self.room_changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            let disk = self.room().await?;
            let mut room = Room::None;
            let gone = self.evicted("room", |catalog| {
                room = catalog.reserve(&key, fill.revision, payload_bytes, disk);
                room.evicted().to_vec()
            });
            match room {
                Room::Reserved => {
                    return Ok(Some(Reserved { tier: self, key, payload_bytes, open: true }));
                }
                Room::NotNeeded => return Ok(None),
                Room::None => return Err(GivenUp::NoRoom),
                Room::Evict(_) => self.remove(gone).await,
                Room::Wait => changed.await,
            }
        }
    }

    /// The chunk's bytes in a buffer of our own, and their header.
    async fn copied(
        &self,
        fill: &Fill,
        identity: Identity,
        buffer: Option<AlignedBuf>,
    ) -> Result<(ExtentHeader, AlignedBuf), GivenUp> {
        let chunk = (self.ram.chunk)(&fill.spec.key).ok_or(GivenUp::Evicted)?;
        let (spec, digest) = (Arc::clone(&fill.spec), fill.digest);
        let copying = self.background.run(move || {
            let payload = chunk.payload(payload_bytes(&spec)).ok_or(GivenUp::Impossible)?;
            copy(payload, &spec, digest, identity, buffer)
        });
        copying.await?
    }

    /// Payload, then header: a file whose header is whole has all of its payload. The buffer comes
    /// back unless the disk keeps it.
    async fn written(
        &self,
        file: &Arc<DataFile>,
        header: &ExtentHeader,
        copy: AlignedBuf,
        buffer: &mut Option<AlignedBuf>,
    ) -> Result<(), DiskError> {
        let whole = header.payload_bytes().next_multiple_of(HEADER_BYTES);
        let body = FileOffset(HEADER_BYTES as u64);
        match self.disk.write(file, body, copy, 0..whole).await {
            Ok(done) => *buffer = Some(done.target),
            Err(failed) => {
                *buffer = failed.target;
                return Err(failed.error.into());
            }
        }
        let mut block = AlignedBuf::zeroed(HEADER_BYTES, HEADER_BYTES)?;
        block.copy_from_slice(&header.encode());
        let written = self.disk.write(file, FileOffset(0), block, 0..HEADER_BYTES).await;
        written.map(drop).map_err(|failed| failed.error.into())
    }
}

/// Copies a payload and takes its sums in the same pass.
fn copy(
    payload: &[u8],
    spec: &ChunkSpec,
    digest: ChunkDigest,
    identity: Identity,
    buffer: Option<AlignedBuf>,
) -> Result<(ExtentHeader, AlignedBuf), GivenUp> {
    let whole = payload.len().next_multiple_of(HEADER_BYTES);
    let mut buffer = match buffer.filter(|buffer| buffer.len() >= whole) {
        Some(buffer) => buffer,
        None => AlignedBuf::populated(whole, HEADER_BYTES)?,
    };
    let mut describing = Describing::new(identity, spec.bytes, digest);
    let places = buffer.chunks_mut(GRAIN_BYTES);
    for (grain, place) in payload.chunks(GRAIN_BYTES).zip(places) {
        let (place, rest) = place.split_at_mut(grain.len());
        place.copy_from_slice(grain);
        describing.grain(place);
        // Of the last grain: what the file has behind the payload.
        let behind = rest.len().min(whole.next_multiple_of(GRAIN_BYTES) - payload.len());
        rest[..behind].fill(0);
    }
    let header = describing.finish().ok_or(GivenUp::Impossible)?;
    Ok((header, buffer))
}
