//! Files of this machine: read into the slot itself, past the page cache.
//!
//! A copy through the page cache costs its pages, and CPU for every byte, twice. So a chunk that
//! lies in one piece of one file goes from the disk into the slot by the io engine, in whole
//! blocks; what the last block has beyond the chunk is wiped. What lies in the page cache already
//! is taken from there, by the same engine: a disk could only be slower. A filesystem that knows no
//! O_DIRECT is read by the origin's threads, as everything else is that does not fit here.
//!
//! [`LocalFiles`] owns the engine, made when the first file is wanted, and remembers which devices
//! refused. [`LocalRead`] owns the slot while a file is read into it. A disk that hangs keeps the
//! slot: see [`forebay_io`].

use std::collections::HashSet;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use async_trait::async_trait;
use forebay_io::{
    DataFile, Done, EngineSettings, FileMode, FileOffset, IoEngine, IoError, Preference,
    cache_state,
};
use forebay_origin::{Destination, FileRead, FileReader, Landing, ReadRequest, ReadTerms};
use tokio::sync::Semaphore;
use tokio::time::Instant;

use super::{ExtentBytes, FetchError, FetchedChunk, FetchedExtent, Fetcher, Lies, lies, origin_of};
use crate::digest::{ExtentDigest, Taken};
use crate::plan::ChunkSpec;
use crate::proof::ObjectDigest;
use crate::ram::pool::ClaimedSlot;
use crate::resolve::{Content, Manifest};
use crate::timeline::{Kind, Span, Stage};

/// What offsets have to be multiples of: the largest block of most disks, and a page.
const BLOCK_BYTES: usize = 4096;

/// Chunks at a time, for all loads together: enough for any disk, and little enough that none waits
/// long for the one that it needs next.
const READS: usize = 16;

/// The way from files of this machine to slots.
#[derive(Debug)]
pub(crate) struct LocalFiles {
    preference: Preference,
    engine: OnceLock<Option<Arc<dyn IoEngine>>>,
    reads: Semaphore,
    /// Devices whose filesystem does not do it.
    refused: Mutex<HashSet<u64>>,
}

impl LocalFiles {
    pub(crate) fn new(preference: Preference) -> Self {
        let (engine, refused) = (OnceLock::new(), Mutex::default());
        Self { preference, engine, reads: Semaphore::new(READS), refused }
    }

    /// Whether a range of a file can be read so into a slot of this size.
    pub(super) fn suits(range: &Range<u64>, slot_bytes: usize) -> bool {
        let bytes = usize::try_from(range.end.saturating_sub(range.start)).ok();
        let whole = bytes.and_then(|bytes| bytes.checked_next_multiple_of(BLOCK_BYTES));
        range.start.is_multiple_of(BLOCK_BYTES as u64)
            && bytes.is_some_and(|bytes| bytes > 0)
            && whole.is_some_and(|whole| whole <= slot_bytes)
    }

    /// None if there is none to be had, which is said once.
    fn engine(&self) -> Option<&Arc<dyn IoEngine>> {
        let make = || match forebay_io::choose(&EngineSettings::default(), self.preference) {
            Ok(choice) => {
                let engine = choice.reason.kind().as_str();
                tracing::info!(engine, why = %choice.reason, "io engine for files");
                Some(choice.engine)
            }
            Err(error) => {
                tracing::warn!(%error, "files are read through the page cache");
                None
            }
        };
        self.engine.get_or_init(make).as_ref()
    }

    fn refused(&self) -> MutexGuard<'_, HashSet<u64>> {
        self.refused.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One chunk that is read.
pub(super) struct LocalRead<'a> {
    files: &'a LocalFiles,
    /// None while the engine has it, and once a disk keeps it.
    slot: Option<ClaimedSlot>,
    digest: ExtentDigest,
    bytes: usize,
    /// The digest has not seen the bytes.
    unseen: bool,
}

impl<'a> LocalRead<'a> {
    /// A read of so many bytes to the slot's beginning.
    pub(super) fn new(
        files: &'a LocalFiles,
        slot: ClaimedSlot,
        digest: ExtentDigest,
        bytes: usize,
    ) -> Self {
        Self { files, slot: Some(slot), digest, bytes, unseen: true }
    }

    /// The slot, filled, and what was taken of its bytes; none if a disk keeps it.
    pub(super) fn finish(mut self) -> Option<(ClaimedSlot, Taken)> {
        let slot = self.slot?;
        if self.unseen {
            self.digest.landed(slot.as_slice().get(..self.bytes)?);
        }
        Some((slot, self.digest.finish()))
    }

    /// Whether the disk has to bring it, and how many bytes if so.
    fn look(file: &File, range: &Range<u64>) -> (bool, u64) {
        let bytes = range.end - range.start;
        // Of files of others the kernel tells nothing: then it is taken for what a checkpoint
        // that is loaded for the first time usually is.
        let Ok(state) = cache_state(file.as_fd(), range.clone()) else { return (true, bytes) };
        let cold = bytes.saturating_sub(state.cached_pages * rustix::param::page_size() as u64);
        if cold > bytes / 2 { (true, bytes) } else { (false, cold) }
    }
}

#[async_trait]
impl FileReader for LocalRead<'_> {
    async fn read(&mut self, file: File, range: Range<u64>) -> io::Result<FileRead> {
        let Some(engine) = self.files.engine() else { return Ok(FileRead::Unsuited(file)) };
        let device = file.metadata()?.dev();
        if self.files.refused().contains(&device) {
            return Ok(FileRead::Unsuited(file));
        }
        let _turn = self.files.reads.acquire().await.map_err(io::Error::other)?;
        let (is_cold, cold_bytes) = Self::look(&file, &range);
        let opened = if is_cold {
            DataFile::opened_direct(file).map_err(io::Error::other)?
        } else {
            DataFile::opened(file)
        };
        let suits = matches!(opened.mode(), FileMode::Direct { .. }) == is_cold
            && BLOCK_BYTES.is_multiple_of(opened.align_bytes());
        if !suits {
            self.files.refused().insert(device);
            return Ok(FileRead::Unsuited(opened.into_buffered().map_err(io::Error::other)?));
        }
        let kept = opened.as_fd().try_clone_to_owned()?;
        let whole = self.bytes.next_multiple_of(if is_cold { BLOCK_BYTES } else { 1 });
        let kept_by_disk = || io::Error::new(io::ErrorKind::TimedOut, "a disk keeps the slot");
        let slot = self.slot.take().ok_or_else(kept_by_disk)?;
        let (file, at) = (Arc::new(opened), FileOffset(range.start));
        match engine.read(&file, at, slot.into_target(()), 0..whole).await {
            Ok(Done { bytes, target, .. }) => {
                let mut slot = ClaimedSlot::from_target(target).0;
                if let Some(beyond) = slot.as_mut_slice().get_mut(self.bytes..whole) {
                    beyond.fill(0);
                }
                self.slot = Some(slot);
                if bytes < self.bytes {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                self.unseen = true;
                Ok(FileRead::Done { cold_bytes })
            }
            Err(failed) => {
                self.slot = failed.target.map(|target| ClaimedSlot::from_target(target).0);
                if is_cold && failed.error.is_for_direct() && self.slot.is_some() {
                    tracing::info!(device, error = %failed.error, "no O_DIRECT for files");
                    self.files.refused().insert(device);
                    drop(file);
                    let again = DataFile::opened(kept.into());
                    return Ok(FileRead::Unsuited(
                        again.into_buffered().map_err(io::Error::other)?,
                    ));
                }
                Err(said(failed.error))
            }
        }
    }

    fn destination(&mut self) -> Option<Destination<'_>> {
        let into = self.slot.as_mut()?.as_mut_slice().get_mut(..self.bytes)?;
        self.unseen = false;
        self.digest.restart();
        Some(Destination { into, landing: Some(&mut self.digest) })
    }
}

/// What the engine said, as one who reads a file is used to it.
fn said(error: IoError) -> io::Error {
    match error {
        IoError::Device { source, .. } | IoError::NoSpace { source, .. } => source,
        IoError::Hung { .. } | IoError::Stalled { .. } => {
            io::Error::new(io::ErrorKind::TimedOut, error)
        }
        _ => io::Error::other(error),
    }
}

impl Fetcher {
    /// The range of the file that a chunk is, if it is read by [`LocalRead`].
    pub(super) fn file_range(
        &self,
        manifest: &Manifest,
        spec: &ChunkSpec,
        slot_bytes: usize,
    ) -> Option<Range<u64>> {
        let [extent] = spec.extents.as_slice() else { return None };
        let object = manifest.objects().get(extent.object)?;
        let Lies::AsItIs(range) = lies(object, extent) else { return None };
        let suits = manifest.store().holds_files()
            && extent.slot_offset == 0
            && LocalFiles::suits(&range, slot_bytes);
        suits.then_some(range)
    }

    /// Fetches a chunk that is this range of a file.
    pub(super) async fn fetch_file(
        &self,
        (manifest, spec): (&Manifest, &Arc<ChunkSpec>),
        range: Range<u64>,
        terms: &ReadTerms,
        slot: ClaimedSlot,
    ) -> Result<(FetchedChunk, Vec<Span>), FetchError> {
        let offered = Instant::now();
        let misfit = || FetchError::Plan { chunk: spec.index };
        let extent = spec.extents.first().ok_or_else(misfit)?;
        let object = manifest.objects().get(extent.object).ok_or_else(misfit)?;
        let bytes = usize::try_from(range.end - range.start).map_err(|_wide| misfit())?;
        let crc = object.checksum.and_then(ObjectDigest::crc);
        let digest = ExtentDigest::with_crc(self.digest_key, crc);
        let request = ReadRequest {
            key: object.key.clone(),
            pin: object.pin.clone(),
            object_bytes: object.stored_bytes(),
            range,
        };
        let mut reader = LocalRead::new(&self.files, slot, digest, bytes);
        let rates = self.rates.of(&origin_of(manifest));
        let working = rates.begin();
        let read = manifest.store().read_file(&request, terms.clone(), &mut reader).await;
        let (_, mut spans) = self.ended((bytes as u64, working), read, offered)?;
        let landed = Instant::now();
        let (slot, taken) = reader.finish().ok_or_else(misfit)?;
        spans.push(Span::new(Stage::VerifyPart, Kind::Service, landed, Instant::now()));
        let coding = match &object.content {
            Content::Digested(coding) => Some(Arc::clone(coding)),
            Content::Plain | Content::Stream(_) | Content::Framed(_) => None,
        };
        let (object, pinned) = (object.name.clone(), object.pinned);
        let landed = ExtentBytes::Landed(taken);
        let extents = vec![FetchedExtent { object, coding, framed: false, bytes: landed }];
        let spec = Arc::clone(spec);
        Ok((FetchedChunk { slot, spec, extents, pinned, address: None }, spans))
    }
}

#[cfg(test)]
#[path = "local_tests.rs"]
mod tests;
