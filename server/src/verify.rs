//! Verify: the only constructor of a [`VerifiedChunk`].
//!
//! Length, version and range were checked while the parts arrived, and the digest was taken (see
//! [`crate::digest`]). Here it is compared with that of the first fetch (see [`record`]), on a worker
//! thread, because a new one is written to a file. A difference means that the origin, or the way from
//! it, gave other bytes for the same version of the same object: nothing of it is kept.

pub(crate) mod record;

use std::net::IpAddr;
use std::sync::Arc;

use forebay_proto::{Failure, Reason};
use tokio::time::Instant;

use crate::cpu::{Stopped, Workers};
use crate::fetch::FetchedChunk;
use crate::metrics;
use crate::plan::ChunkSpec;
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

impl From<VerifyError> for Failure {
    fn from(error: VerifyError) -> Self {
        let message = error.to_string();
        match error {
            VerifyError::Mismatch { object, .. } => {
                Self::new(Reason::DigestMismatch, message).for_object(&object)
            }
            VerifyError::Stopped(_) => Self::new(Reason::Draining, message),
        }
        .at_stage("verify_part")
    }
}

/// A chunk whose bytes are right as far as anyone knows.
#[derive(Debug)]
pub(crate) struct VerifiedChunk {
    slot: ClaimedSlot,
    spec: Arc<ChunkSpec>,
}

impl VerifiedChunk {
    /// The slot and what is in it.
    pub(crate) fn into_parts(self) -> (ClaimedSlot, Arc<ChunkSpec>) {
        (self.slot, self.spec)
    }
}

/// The verify stage.
#[derive(Debug)]
pub(crate) struct Verifier {
    workers: Arc<Workers>,
    records: Arc<Records>,
}

impl Verifier {
    /// A stage that compares with `records`, on `workers`.
    pub(crate) fn new(workers: Arc<Workers>, records: Records) -> Self {
        Self { workers, records: Arc::new(records) }
    }

    /// Compares the chunk's digest. Returns it with its queue and service spans.
    pub(crate) async fn verify(
        &self,
        fetched: FetchedChunk,
    ) -> Result<(VerifiedChunk, [Span; 2]), VerifyError> {
        let offered = Instant::now();
        let records = Arc::clone(&self.records);
        let (first_object, pinned) = (fetched.first_object().to_owned(), fetched.is_pinned());
        let (digest, address) = (fetched.digest(), fetched.address());
        let (slot, spec) = fetched.into_parts();
        self.workers
            .run(move || {
                let started = Instant::now();
                // What cannot be asked for again has nothing to be compared with.
                let verdict = if pinned { records.check(spec.key, digest) } else { Verdict::First };
                let spans = [
                    Span::new(Stage::VerifyPart, Kind::Queue, offered, started),
                    Span::new(Stage::VerifyPart, Kind::Service, started, Instant::now()),
                ];
                match verdict {
                    Verdict::First | Verdict::Same => Ok((VerifiedChunk { slot, spec }, spans)),
                    Verdict::Different => {
                        metrics::digest_mismatch();
                        Err(VerifyError::Mismatch { object: first_object, address })
                    }
                }
            })
            .await?
    }
}
