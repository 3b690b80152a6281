//! Fetch: runs the parts of a chunk and writes their bytes where they will be served from.
//!
//! The caller brings a claimed slot; this stage then takes a connection permit per part. Slot
//! first, connection second, nothing held while waiting for a third: the order that cannot
//! dead-lock. Parts of a chunk that holds several objects run side by side. The origin's
//! [`OriginStore::read`](forebay_origin::OriginStore::read) checks version, range and length, and
//! is the only place that retries. The digest is taken while the bytes land (see [`crate::digest`]).
//!
//! [`FetchedChunk`] has one constructor, here, and exists only when every byte of every extent was
//! written.

use std::sync::Arc;

use forebay_origin::{
    AttemptOutcome, Destination, OriginError, ReadRecord, ReadRequest, ReadTerms,
};
use forebay_proto::{Failure, Reason};
use futures::TryStreamExt;
use futures::stream::FuturesUnordered;
use tokio::sync::Semaphore;
use tokio::time::Instant;

use crate::admission::Lane;
use crate::cost::FetchCost;
use crate::digest::{ChunkDigest, DigestKey, ExtentDigest};
use crate::error::origin_failure;
use crate::plan::{ChunkSpec, Extent};
use crate::ram::pool::ClaimedSlot;
use crate::resolve::Manifest;
use crate::timeline::{Kind, Span, Stage};

/// Why a chunk could not be fetched.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FetchError {
    /// A part failed after its attempts.
    #[error(transparent)]
    Origin(#[from] OriginError),
    /// A plan that does not fit its slot.
    #[error("the plan of chunk {chunk} does not fit its slot")]
    Plan {
        /// Which chunk.
        chunk: usize,
    },
    /// The daemon is going away.
    #[error("the fetch stage has stopped")]
    Stopped,
}

impl From<FetchError> for Failure {
    fn from(error: FetchError) -> Self {
        match error {
            FetchError::Origin(error) => origin_failure(error),
            FetchError::Plan { .. } => Self::new(Reason::Internal, error.to_string()),
            FetchError::Stopped => Self::new(Reason::Draining, error.to_string()),
        }
        .at_stage("fetch")
    }
}

/// A chunk whose every byte was written into its slot, and nobody looked at yet.
#[derive(Debug)]
pub(crate) struct FetchedChunk {
    slot: ClaimedSlot,
    spec: Arc<ChunkSpec>,
    first_object: String,
    pinned: bool,
    digest: ChunkDigest,
}

impl FetchedChunk {
    /// The digest of its bytes.
    pub(crate) fn digest(&self) -> ChunkDigest {
        self.digest
    }

    /// The name of its first object, for messages.
    pub(crate) fn first_object(&self) -> &str {
        &self.first_object
    }

    /// Whether the same bytes can be asked for again: all its objects are pinned.
    pub(crate) fn is_pinned(&self) -> bool {
        self.pinned
    }

    /// The slot and what is in it.
    pub(crate) fn into_parts(self) -> (ClaimedSlot, Arc<ChunkSpec>) {
        (self.slot, self.spec)
    }
}

/// The fetch stage.
#[derive(Debug)]
pub(crate) struct Fetcher {
    connections: Semaphore,
    digest_key: DigestKey,
}

/// One part's result.
struct Part {
    number: usize,
    digest: ChunkDigest,
    spans: Vec<Span>,
    cost: FetchCost,
}

impl Fetcher {
    /// A stage with at most `connections` parts on the wire, that takes digests under a key.
    pub(crate) fn new(connections: usize, digest_key: DigestKey) -> Self {
        Self { connections: Semaphore::new(connections), digest_key }
    }

    /// Parts that could start now.
    pub(crate) fn free_connections(&self) -> usize {
        self.connections.available_permits()
    }

    /// Fills `slot` with what `spec` says. The spans are those of the part that ended last.
    pub(crate) async fn fetch(
        &self,
        manifest: &Manifest,
        spec: &Arc<ChunkSpec>,
        lane: Lane,
        mut slot: ClaimedSlot,
    ) -> Result<(FetchedChunk, Vec<Span>, FetchCost), FetchError> {
        let offered = Instant::now();
        let parts = split(slot.as_mut_slice(), spec)?;
        let mut running: FuturesUnordered<_> = parts
            .into_iter()
            .enumerate()
            .map(|part| self.part(manifest, part, (lane, offered)))
            .collect();
        let mut digests = vec![(0, ChunkDigest::default()); spec.extents.len()];
        let mut spans = Vec::new();
        let mut cost = FetchCost::default();
        while let Some(part) = running.try_next().await? {
            cost = cost.plus(part.cost);
            if let (Some(place), Some(extent)) =
                (digests.get_mut(part.number), spec.extents.get(part.number))
            {
                *place = (extent.bytes, part.digest);
            }
            spans = part.spans;
        }
        drop(running);
        let objects = || spec.extents.iter().filter_map(|e| manifest.objects().get(e.object));
        let first_object = objects().next().map_or_else(String::new, |object| object.name.clone());
        let pinned = objects().all(|object| object.pinned);
        let digest = self.digest_key.of_chunk(digests);
        let spec = Arc::clone(spec);
        Ok((FetchedChunk { slot, spec, first_object, pinned, digest }, spans, cost))
    }

    async fn part(
        &self,
        manifest: &Manifest,
        (number, (extent, into)): (usize, (&Extent, &mut [u8])),
        (lane, offered): (Lane, Instant),
    ) -> Result<Part, FetchError> {
        let object = manifest
            .objects()
            .get(extent.object)
            .ok_or(FetchError::Plan { chunk: extent.object })?;
        let _connection =
            self.connections.acquire().await.map_err(|_closed| FetchError::Stopped)?;
        let started = Instant::now();
        let request = ReadRequest {
            key: object.key.clone(),
            pin: object.pin.clone(),
            object_bytes: object.bytes,
            range: extent.object_offset..extent.object_offset + extent.bytes,
        };
        // A flight has no deadline of its own: its waiters leave when theirs passes.
        let terms = ReadTerms { lane: origin_lane(lane), deadline: None };
        let mut digest = ExtentDigest::new(self.digest_key);
        let to = Destination { into, landing: Some(&mut digest) };
        let record = manifest.store().read_on(&request, terms, to).await?;
        let mut spans = vec![Span::new(Stage::ConnAcquire, Kind::Queue, offered, started)];
        attempt_spans(&record, started, Instant::now(), &mut spans);
        Ok(Part { number, digest: digest.finish(), spans, cost: FetchCost::of(&record) })
    }
}

/// Prefetches yield to loads that someone waits for, at the endpoint too.
fn origin_lane(lane: Lane) -> forebay_origin::Lane {
    match lane {
        Lane::Interactive => forebay_origin::Lane::Interactive,
        Lane::Prefetch => forebay_origin::Lane::Prefetch,
    }
}

/// The extents of a slot as disjoint slices.
fn split<'a>(
    mut rest: &'a mut [u8],
    spec: &'a ChunkSpec,
) -> Result<Vec<(&'a Extent, &'a mut [u8])>, FetchError> {
    let misfit = || FetchError::Plan { chunk: spec.index };
    let mut at = 0;
    let mut parts = Vec::with_capacity(spec.extents.len());
    for extent in &spec.extents {
        let skip = extent.slot_offset.checked_sub(at).ok_or_else(misfit)?;
        let skip = usize::try_from(skip).map_err(|_wide| misfit())?;
        let take = usize::try_from(extent.bytes).map_err(|_wide| misfit())?;
        let (_, tail) = rest.split_at_mut_checked(skip).ok_or_else(misfit)?;
        let (into, tail) = tail.split_at_mut_checked(take).ok_or_else(misfit)?;
        parts.push((extent, into));
        rest = tail;
        at = extent.slot_offset + extent.bytes;
    }
    Ok(parts)
}

/// The phases of every attempt, one after the other; what lies between two attempts is backoff.
fn attempt_spans(record: &ReadRecord, started: Instant, ended: Instant, spans: &mut Vec<Span>) {
    let mut at = started;
    for (n, attempt) in record.attempt_log.iter().enumerate() {
        if attempt.started > at {
            // Before the first attempt the part waits for the endpoint's own limit.
            let stage = if n == 0 { Stage::ConnAcquire } else { Stage::Backoff };
            spans.push(Span::new(stage, Kind::Queue, at, attempt.started));
        }
        at = at.max(attempt.started);
        let ttfb_start = at;
        let phases = [
            (Stage::Dns, attempt.dns),
            (Stage::Connect, attempt.connect),
            (Stage::Tls, attempt.tls),
        ];
        for (stage, length) in phases {
            if let Some(length) = length {
                spans.push(Span::new(stage, Kind::Service, at, at + length));
                at += length;
            }
        }
        // `first_byte` counts from the start of the attempt and so includes the phases above.
        let first_byte = attempt.first_byte.map_or(at, |length| (ttfb_start + length).max(at));
        spans.push(Span::new(Stage::Ttfb, Kind::Service, at, first_byte));
        at = first_byte + attempt.body;
        spans.push(Span::new(Stage::Body, Kind::Service, first_byte, at));
        debug_assert!(
            attempt.outcome == AttemptOutcome::Done || attempt.bytes <= record.bytes_received
        );
    }
    // The last attempt's body ends when the read returned: rounding between the two clocks' reads
    // belongs to it.
    if let Some(last) = spans.last_mut() {
        last.end = ended.max(last.start);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use forebay_origin::AttemptRecord;

    use super::*;
    use crate::plan::ChunkKey;

    fn spec(extents: &[(u64, u64)]) -> ChunkSpec {
        let extents: Vec<Extent> = extents
            .iter()
            .map(|&(slot_offset, bytes)| Extent { object: 0, object_offset: 0, slot_offset, bytes })
            .collect();
        let bytes = extents.iter().map(|extent| extent.bytes).sum();
        ChunkSpec { index: 0, key: ChunkKey([0; 32]), extents, bytes }
    }

    #[test]
    fn a_slot_is_split_where_the_extents_lie() {
        let mut slot: Vec<u8> = (0..100).collect();
        let spec = spec(&[(0, 10), (32, 8), (90, 10)]);
        let parts = split(&mut slot, &spec).unwrap();
        let seen: Vec<_> = parts.iter().map(|(_, into)| (into[0], into.len())).collect();
        assert_eq!(seen, [(0, 10), (32, 8), (90, 10)]);
    }

    #[test]
    fn extents_that_overlap_or_overflow_are_refused() {
        let mut slot = vec![0; 100];
        split(&mut slot, &spec(&[(0, 10), (9, 1)])).unwrap_err();
        split(&mut slot, &spec(&[(95, 6)])).unwrap_err();
        split(&mut slot, &spec(&[(u64::MAX, 1)])).unwrap_err();
    }

    #[tokio::test(start_paused = true)]
    async fn attempts_become_spans_without_a_gap() {
        let start = Instant::now();
        let ms = Duration::from_millis;
        let attempt =
            |at: u64, connect: Option<u64>, first_byte: Option<u64>, body: u64| AttemptRecord {
                started: start + ms(at),
                dns: None,
                connect: connect.map(ms),
                tls: None,
                first_byte: first_byte.map(ms),
                body: ms(body),
                bytes: 0,
                tcp: None,
                outcome: AttemptOutcome::Done,
            };
        let record = ReadRecord {
            attempts: 2,
            bytes_received: 10,
            attempt_log: vec![attempt(0, Some(5), Some(20), 30), attempt(70, None, Some(10), 20)],
            backoff: ms(20),
            ..ReadRecord::default()
        };
        let mut spans = Vec::new();
        attempt_spans(&record, start, start + ms(101), &mut spans);
        let seen: Vec<_> = spans
            .iter()
            .map(|span| {
                (span.stage, (span.start - start).as_millis(), (span.end - start).as_millis())
            })
            .collect();
        assert_eq!(
            seen,
            [
                (Stage::Connect, 0, 5),
                (Stage::Ttfb, 5, 20),
                (Stage::Body, 20, 50),
                (Stage::Backoff, 50, 70),
                (Stage::Ttfb, 70, 80),
                (Stage::Body, 80, 101),
            ]
        );
    }
}
