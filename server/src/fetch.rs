//! Fetch: runs the parts of a chunk and writes their bytes where they will be served from.
//!
//! The caller brings a claimed slot; each part then waits for leave of its origin's endpoint, which is
//! the one limit on connections. Slot first, connection second, nothing held while waiting for a
//! third: the order that cannot dead-lock. Parts of a chunk that holds several objects run side by
//! side, as many as its share of the endpoint allows. The origin's
//! [`OriginStore::read`](forebay_origin::OriginStore::read) checks version, range and length, and
//! is the only place that retries. The digest is taken while the bytes land (see [`crate::digest`]).
//!
//! [`FetchedChunk`] has one constructor, here, and exists only when every byte of every extent was
//! written.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use forebay_origin::{
    AttemptOutcome, AttemptRecord, Destination, EndpointView, OriginError, OriginErrorKind,
    OriginUri, Origins, ReadRequest, ReadTerms, Share, Sharing,
};
use forebay_proto::{Failure, Reason};
use futures::TryStreamExt;
use futures::stream::FuturesUnordered;
use tokio::time::Instant;

use crate::digest::{ChunkDigest, DigestKey, ExtentDigest};
use crate::error::origin_failure;
use crate::metrics::PartMeters;
use crate::plan::{ChunkSpec, Extent};
use crate::ram::pool::ClaimedSlot;
use crate::resolve::Manifest;
use crate::timeline::{Kind, Span, Stage};

/// Parts of one chunk at a time where there is no endpoint: files, which a few threads read.
const PARTS_OF_FILES: usize = 16;

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
}

impl From<FetchError> for Failure {
    fn from(error: FetchError) -> Self {
        match error {
            FetchError::Origin(error) => origin_failure(error),
            FetchError::Plan { .. } => Self::new(Reason::Internal, error.to_string()),
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
    address: Option<IpAddr>,
}

impl FetchedChunk {
    /// The address that its bytes came from, if it is one.
    pub(crate) fn address(&self) -> Option<IpAddr> {
        self.address
    }

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
    origins: Arc<Origins>,
    digest_key: DigestKey,
    meters: PartMeters,
}

/// One part's result.
struct Part {
    number: usize,
    digest: ChunkDigest,
    address: Option<IpAddr>,
    spans: Vec<Span>,
}

impl Fetcher {
    /// A stage that takes digests under a key.
    pub(crate) fn new(origins: Arc<Origins>, digest_key: DigestKey, meters: PartMeters) -> Self {
        Self { origins, digest_key, meters }
    }

    /// The endpoint that a checkpoint is read from. Files have none.
    pub(crate) fn endpoint(&self, manifest: &Manifest) -> Option<EndpointView> {
        self.origins.endpoint(&OriginUri::parse(manifest.uri()).ok()?)
    }

    /// Fills `slot` with what `spec` says. The spans are those of the part that ended last.
    pub(crate) async fn fetch(
        &self,
        manifest: &Manifest,
        spec: &Arc<ChunkSpec>,
        terms: &ReadTerms,
        mut slot: ClaimedSlot,
    ) -> Result<(FetchedChunk, Vec<Span>), FetchError> {
        let offered = Instant::now();
        let parts = split(slot.as_mut_slice(), spec)?;
        let mut waiting = parts.into_iter().enumerate();
        let share = self.endpoint(manifest).map(|endpoint| endpoint.share(Sharing::Chunks));
        let at_once = || share.as_ref().map_or(PARTS_OF_FILES, Share::on_its_way);
        let mut running = FuturesUnordered::new();
        let mut digests = vec![(0, ChunkDigest::default()); spec.extents.len()];
        let (mut spans, mut address) = (Vec::new(), None);
        loop {
            let more = at_once().saturating_sub(running.len());
            running.extend(
                waiting.by_ref().take(more).map(|part| self.part(manifest, part, (terms, offered))),
            );
            let Some(part) = running.try_next().await? else { break };
            if let (Some(place), Some(extent)) =
                (digests.get_mut(part.number), spec.extents.get(part.number))
            {
                *place = (extent.bytes, part.digest);
            }
            (spans, address) = (part.spans, part.address.filter(|_| spec.extents.len() == 1));
        }
        drop(running);
        let objects = || spec.extents.iter().filter_map(|e| manifest.objects().get(e.object));
        let first_object = objects().next().map_or_else(String::new, |object| object.name.clone());
        let pinned = objects().all(|object| object.pinned);
        let digest = self.digest_key.of_chunk(digests);
        let spec = Arc::clone(spec);
        Ok((FetchedChunk { slot, spec, first_object, pinned, digest, address }, spans))
    }

    async fn part(
        &self,
        manifest: &Manifest,
        (number, (extent, into)): (usize, (&Extent, &mut [u8])),
        (terms, offered): (&ReadTerms, Instant),
    ) -> Result<Part, FetchError> {
        let object = manifest
            .objects()
            .get(extent.object)
            .ok_or(FetchError::Plan { chunk: extent.object })?;
        let request = ReadRequest {
            key: object.key.clone(),
            pin: object.pin.clone(),
            object_bytes: object.bytes,
            range: extent.object_offset..extent.object_offset + extent.bytes,
        };
        let mut digest = ExtentDigest::new(self.digest_key);
        let to = Destination { into, landing: Some(&mut digest) };
        let read = manifest.store().read_on(&request, terms.clone(), to).await;
        let log = match &read {
            Ok(record) => &record.attempt_log,
            Err(error) => &error.attempt_log,
        };
        self.meters.ended(log.len(), retry_delays(log));
        let spans = attempt_spans(log, offered, Instant::now());
        let address = source_of(log);
        read?;
        Ok(Part { number, digest: digest.finish(), address, spans })
    }
}

/// The address that all bytes of a read came from; none if they came from several, or from a copy.
fn source_of(log: &[AttemptRecord]) -> Option<IpAddr> {
    match log {
        [only] if only.outcome == AttemptOutcome::Done => only.address,
        _ => None,
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
fn attempt_spans(log: &[AttemptRecord], offered: Instant, ended: Instant) -> Vec<Span> {
    let mut spans = Vec::new();
    let mut at = offered;
    for (n, attempt) in log.iter().enumerate() {
        if attempt.started > at {
            // Before the first attempt the part waits for leave of the endpoint.
            let stage = if n == 0 { Stage::ConnAcquire } else { Stage::Backoff };
            spans.push(Span::new(stage, Kind::Queue, at, attempt.started));
        }
        at = at.max(attempt.started);
        let phases = [
            (Stage::Dns, attempt.dns),
            (Stage::Connect, attempt.connect),
            (Stage::Tls, attempt.tls),
            (Stage::Ttfb, attempt.first_byte),
            (Stage::Body, Some(attempt.body)),
        ];
        for (stage, length) in phases.into_iter().filter_map(|(stage, time)| Some((stage, time?))) {
            spans.push(Span::new(stage, Kind::Service, at, at + length));
            at += length;
        }
    }
    // The last attempt's body ends when the read returned: rounding between the two clocks' reads
    // belongs to it.
    if let Some(last) = spans.last_mut() {
        last.end = ended.max(last.start);
    }
    spans
}

/// The times without an attempt before each later one, and whether a throttle was the reason.
fn retry_delays(log: &[AttemptRecord]) -> impl Iterator<Item = (bool, Duration)> {
    log.windows(2).filter_map(|pair| {
        let [failed, next] = pair else { return None };
        let phases = [failed.dns, failed.connect, failed.tls, failed.first_byte];
        let time: Duration = phases.into_iter().flatten().sum();
        let ended = failed.started + time + failed.body;
        let throttled = failed.outcome == AttemptOutcome::Failed(OriginErrorKind::Throttled);
        Some((throttled, next.started.saturating_duration_since(ended)))
    })
}

#[cfg(test)]
mod tests {
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
                address: None,
                tcp: None,
                outcome: AttemptOutcome::Done,
            };
        let mut log = [attempt(10, Some(5), Some(20), 30), attempt(85, None, Some(10), 20)];
        log[0].outcome = AttemptOutcome::Failed(OriginErrorKind::Throttled);
        let spans = attempt_spans(&log, start, start + ms(116));
        let delays: Vec<_> = retry_delays(&log).collect();
        assert_eq!(delays, [(true, ms(20))]);
        let seen: Vec<_> = spans
            .iter()
            .map(|span| {
                (span.stage, (span.start - start).as_millis(), (span.end - start).as_millis())
            })
            .collect();
        assert_eq!(
            seen,
            [
                (Stage::ConnAcquire, 0, 10),
                (Stage::Connect, 10, 15),
                (Stage::Ttfb, 15, 35),
                (Stage::Body, 35, 65),
                (Stage::Backoff, 65, 85),
                (Stage::Ttfb, 85, 95),
                (Stage::Body, 95, 116),
            ]
        );
    }
}
