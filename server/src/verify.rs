//! Verify: the only constructor of a [`VerifiedChunk`].
//!
//! Length, version and range were checked while the parts arrived, and the digest was taken (see
//! [`crate::digest`]). Here it is compared with that of the first fetch (see [`record`]), on a
//! worker thread, because a new one is written to a file. A difference means that the origin, or
//! the way from it, gave other bytes for the same version of the same object: nothing of it is
//! kept.
//!
//! What comes from the NVMe tier is checked here too, every grain of it, and its digest is compared
//! with the same record.

pub(crate) mod record;

use std::net::IpAddr;
use std::sync::Arc;

use forebay_origin::Landing;
use forebay_proto::{Failure, Reason};
use tokio::time::Instant;

use crate::capacity::meter::Meter;
use crate::cpu::{NodeWorkers, Stopped, distance};
use crate::decode::RawChunk;
use crate::digest::{ChunkDigest, DigestKey, ExtentDigest};
use crate::error::stopping;
use crate::metrics;
use crate::nvme::{BadExtent, StoredChunk};
use crate::plan::{ChunkKey, ChunkSpec};
use crate::proof::PieceSum;
use crate::ram::PinnedChunk;
use crate::ram::pool::ClaimedSlot;
use crate::timeline::{Kind, Span, Stage};
use record::{Records, Verdict};

/// Why a chunk is not verified.
#[derive(Debug, thiserror::Error)]
pub(crate) enum VerifyError {
    /// Other bytes than on first fetch.
    #[error("the origin gave other bytes than on first fetch for the same version of {object}")]
    Mismatch {
        /// First object of the chunk.
        object: String,
        /// The address that the bytes came from.
        address: Option<IpAddr>,
    },
    /// The daemon is going away.
    #[error(transparent)]
    Stopped(#[from] Stopped),
}

impl VerifyError {
    /// Whether other bytes may be had by asking again, and which address not to ask.
    pub(crate) fn suspect(&self) -> Option<Option<IpAddr>> {
        match self {
            Self::Mismatch { address, .. } => Some(*address),
            Self::Stopped(_) => None,
        }
    }
}

impl From<VerifyError> for Failure {
    fn from(error: VerifyError) -> Self {
        let message = error.to_string();
        match error {
            VerifyError::Mismatch { object, .. } => {
                Self::new(Reason::DigestMismatch, message).for_object(&object)
            }
            VerifyError::Stopped(_) => stopping(message),
        }
        .at_stage("verify_part")
    }
}

/// What a disk gave that is not what was written, with the slot it lies in.
#[derive(Debug)]
pub(crate) struct Decayed {
    /// What is wrong.
    pub(crate) why: BadExtent,
    /// Of the extent, if it was known.
    pub(crate) generation: Option<u64>,
    /// Where the right bytes can be put.
    pub(crate) slot: ClaimedSlot,
}

/// A chunk whose bytes are right as far as anyone knows.
#[derive(Debug)]
pub(crate) struct VerifiedChunk {
    slot: ClaimedSlot,
    spec: Arc<ChunkSpec>,
    digest: ChunkDigest,
    crcs: Vec<Option<PieceSum>>,
    pinned: bool,
}

impl VerifiedChunk {
    /// A chunk of which a test knows that it is right.
    #[cfg(test)]
    pub(crate) fn for_tests(slot: ClaimedSlot, spec: Arc<ChunkSpec>) -> Self {
        Self { slot, spec, digest: ChunkDigest::default(), crcs: Vec::new(), pinned: true }
    }

    /// Its digest, if the chunk may be stored: only what can be asked for again is worth that.
    pub(crate) fn to_store(&self) -> Option<ChunkDigest> {
        self.pinned.then_some(self.digest)
    }

    /// The slot, what is in it, and what was taken of that: its digest, and sums of its extents.
    pub(crate) fn into_parts(
        self,
    ) -> (ClaimedSlot, Arc<ChunkSpec>, (ChunkDigest, Vec<Option<PieceSum>>)) {
        (self.slot, self.spec, (self.digest, self.crcs))
    }
}

/// The verify stage.
#[derive(Debug)]
pub(crate) struct Verifier {
    workers: Arc<NodeWorkers>,
    records: Arc<Records>,
    meter: Arc<Meter>,
}

impl Verifier {
    /// A stage that compares with `records`, on `workers`.
    pub(crate) fn new(workers: Arc<NodeWorkers>, records: Records) -> Self {
        Self { workers, records: Arc::new(records), meter: Arc::default() }
    }

    /// What it has checked of what was stored, and in which time.
    pub(crate) fn meter(&self) -> &Meter {
        &self.meter
    }

    /// Compares the chunk's digest. Returns it with its queue and service spans.
    pub(crate) async fn verify(
        &self,
        raw: RawChunk,
    ) -> Result<(VerifiedChunk, [Span; 2]), VerifyError> {
        let offered = Instant::now();
        let check = self.of_raw();
        let checking = self.workers.run(Some(raw.node()), move || check(raw));
        let (checked, service) = checking.await?;
        let queue = Span::new(Stage::VerifyPart, Kind::Queue, offered, service.start);
        Ok((checked?, [queue, service]))
    }

    /// What compares the digest of a chunk, on the thread that has just decoded it. The span is
    /// that of the check.
    pub(crate) fn of_raw(
        &self,
    ) -> impl FnOnce(RawChunk) -> (Result<VerifiedChunk, VerifyError>, Span) + Send + use<> {
        let records = Arc::clone(&self.records);
        move |raw| {
            let started = Instant::now();
            let (pinned, digest, address) = (raw.is_pinned(), raw.digest(), raw.address());
            let clue = distance(raw.node());
            let object = raw.first_object().to_owned();
            let (slot, spec, crcs) = raw.into_parts();
            // What cannot be asked for again has nothing to be compared with.
            let verdict = if pinned { records.check(spec.key, digest) } else { Verdict::First };
            let checked = match verdict {
                Verdict::First | Verdict::Same => {
                    Ok(VerifiedChunk { slot, spec, digest, crcs, pinned })
                }
                Verdict::Different => {
                    metrics::digest_mismatch();
                    Err(VerifyError::Mismatch { object, address })
                }
            };
            let span = Span::new(Stage::VerifyPart, Kind::Service, started, Instant::now());
            (checked, span.with(clue))
        }
    }

    /// What checks a chunk that was stored, on the thread that has read it and has its bytes in the
    /// cache of its core, as far as they fit. The span is that of the check.
    pub(crate) fn of_stored(
        &self,
    ) -> impl FnOnce(StoredChunk) -> (Result<VerifiedChunk, Decayed>, Span) + Send + use<> {
        let (records, meter) = (Arc::clone(&self.records), Arc::clone(&self.meter));
        move |stored| {
            let (started, working) = (Instant::now(), meter.begin());
            let checked = stored.check();
            let generation = stored.generation();
            let (slot, spec) = stored.into_parts();
            working.done(spec.bytes);
            let known = records.known(&spec.key);
            let checked = match checked {
                Ok(digest) if known.is_none_or(|known| known == digest) => {
                    Ok(VerifiedChunk { slot, spec, digest, crcs: Vec::new(), pinned: true })
                }
                Ok(_) => Err(Decayed { why: BadExtent::Digest, generation, slot }),
                Err(why) => Err(Decayed { why, generation, slot }),
            };
            let span = Span::new(Stage::VerifyPart, Kind::Service, started, Instant::now());
            (checked, span)
        }
    }

    /// A copy of a chunk that another domain has, in a slot of this one: of its objects' bytes, and
    /// of nothing that may lie between them. None if they are not as they were verified.
    pub(crate) async fn copied(
        &self,
        theirs: PinnedChunk,
        mut slot: ClaimedSlot,
        spec: Arc<ChunkSpec>,
    ) -> Result<Option<VerifiedChunk>, Stopped> {
        let records = Arc::clone(&self.records);
        let copying = self.workers.run(Some(slot.node()), move || {
            for extent in &spec.extents {
                let start = usize::try_from(extent.slot_offset).ok()?;
                let end = start.checked_add(usize::try_from(extent.bytes).ok()?)?;
                slot.as_mut_slice().get_mut(start..end)?.copy_from_slice(theirs.extent(extent)?);
            }
            let digest = digest_of(records.key(), &spec, slot.as_slice())?;
            if digest != theirs.digest() {
                metrics::digest_mismatch();
                return None;
            }
            let crcs = (0..spec.extents.len()).map(|extent| theirs.sum(extent)).collect();
            let pinned = records.known(&spec.key) == Some(digest);
            Some(VerifiedChunk { slot, spec, digest, crcs, pinned })
        });
        copying.await
    }

    /// Where it is recorded which objects were held to a digest of all their bytes.
    pub(crate) fn records(&self) -> &Arc<Records> {
        &self.records
    }

    /// The digest that is recorded of a chunk.
    pub(crate) fn recorded(&self, key: &ChunkKey) -> Option<ChunkDigest> {
        self.records.known(key)
    }

    /// Whether a chunk in RAM still has the digest that is recorded of it; none if there is no
    /// record.
    pub(crate) async fn verify_cached(&self, chunk: PinnedChunk) -> Result<Option<bool>, Stopped> {
        let records = Arc::clone(&self.records);
        let checking = self.workers.run(Some(chunk.node()), move || {
            let known = records.known(&chunk.spec().key)?;
            let found = digest_of(records.key(), chunk.spec(), chunk.as_slice())?;
            Some(found == known)
        });
        checking.await
    }
}

/// The digest of a chunk in a slot; none if it does not fit that.
fn digest_of(key: DigestKey, spec: &ChunkSpec, slot: &[u8]) -> Option<ChunkDigest> {
    let mut extents = Vec::with_capacity(spec.extents.len());
    for extent in &spec.extents {
        let start = usize::try_from(extent.slot_offset).ok()?;
        let bytes = usize::try_from(extent.bytes).ok()?;
        let mut digest = ExtentDigest::new(key);
        digest.landed(slot.get(start..start.checked_add(bytes)?)?);
        extents.push((extent.bytes, digest.finish().digest));
    }
    Some(key.of_chunk(extents))
}
