//! Fetch: runs the parts of a chunk and writes their bytes where they will be served from.
//!
//! The caller brings a claimed slot; each part then waits for leave of its origin's endpoint, which
//! is the one limit on connections. Slot first, connection second, nothing held while waiting for a
//! third: the order that cannot dead-lock. Parts of a chunk that holds several objects run side by
//! side, as many as its share of the endpoint allows. The origin's
//! [`OriginStore::read`](forebay_origin::OriginStore::read) checks version, range and length, and
//! is the only place that retries. The digest is taken while the bytes land (see
//! [`crate::digest`]).
//!
//! Of an object that the store has in another form, the frames that the chunk needs go to a staging
//! buffer instead, as they are: see [`crate::decode`]. Its share of the staging budget comes before
//! the slot.
//!
//! [`FetchedChunk`] has one constructor, here, and exists only when every byte of every extent was
//! written.

mod local;
mod stream;

use std::net::IpAddr;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use forebay_codec::coding::Coding;
use forebay_codec::decode::DecodeError;
use forebay_io::NodeId;
use forebay_origin::{
    AttemptOutcome, AttemptRecord, Destination, EndpointView, OriginError, OriginErrorKind,
    OriginUri, Origins, ReadRecord, ReadRequest, ReadTerms, Share, Sharing,
};
use forebay_proto::{Failure, Reason};
use futures::stream::FuturesUnordered;
use futures::{FutureExt, TryStreamExt};
use tokio::time::Instant;

use crate::capacity::meter::{Meter, Meters, Working};
use crate::cpu::{NodeWorkers, Stopped};
use crate::digest::{DigestKey, ExtentDigest, Taken};
use crate::error::origin_failure;
use crate::metrics::{self, PartMeters};
use crate::plan::{ChunkSpec, Extent};
use crate::proof::ObjectDigest;
use crate::ram::pool::ClaimedSlot;
use crate::resolve::{Content, Manifest, Object};
use crate::staging::{Staged, Staging, StagingError, StagingShare};
use crate::timeline::{Clue, Kind, Span, Stage, attempt_spans};

pub(crate) use local::LocalFiles;
use stream::{Piece, StreamError, Streams};

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
    /// What can only be decoded from its beginning cannot be decoded.
    #[error("{object} cannot be decoded: {problem}")]
    Stream {
        /// Which object.
        object: String,
        /// What is wrong, and where.
        problem: DecodeError,
    },
    /// There is no memory to decode from.
    #[error(transparent)]
    Staging(#[from] StagingError),
    /// The daemon is going away.
    #[error(transparent)]
    Stopped(#[from] Stopped),
}

impl From<FetchError> for Failure {
    fn from(error: FetchError) -> Self {
        match error {
            FetchError::Origin(error) => origin_failure(error),
            FetchError::Plan { .. } => Self::new(Reason::Internal, error.to_string()),
            FetchError::Stream { ref object, ref problem } => {
                Self::new(Reason::DecodeFailed, error.to_string())
                    .for_object(object)
                    .with_fact("stored_offset", problem.stored_offset)
            }
            FetchError::Staging(error) => error.into(),
            FetchError::Stopped(stopped) => stopped.into(),
        }
        .at_stage("fetch")
    }
}

/// A chunk of which the store's bytes are all here, and nobody looked at them yet.
#[derive(Debug)]
pub(crate) struct FetchedChunk {
    slot: ClaimedSlot,
    spec: Arc<ChunkSpec>,
    extents: Vec<FetchedExtent>,
    pinned: bool,
    address: Option<IpAddr>,
}

/// What was fetched for one extent.
#[derive(Debug)]
pub(crate) struct FetchedExtent {
    /// The name of its object.
    pub(crate) object: String,
    /// How the store has the object, if not simply as it is.
    pub(crate) coding: Option<Arc<Coding>>,
    /// Whether that are frames to be decoded; else they only have digests.
    pub(crate) framed: bool,
    /// Where the bytes are.
    pub(crate) bytes: ExtentBytes,
}

/// Where the bytes of an extent are.
#[derive(Debug)]
pub(crate) enum ExtentBytes {
    /// In the slot; this was taken of them as they landed.
    Landed(Taken),
    /// Beside it, as the store has them.
    Stored {
        /// Which frames.
        frames: Range<usize>,
        /// From the beginning of the first one to the end of the last one.
        bytes: Staged,
    },
    /// Beside it, decoded.
    Decoded(Staged),
}

impl FetchedChunk {
    /// The address that its bytes came from, if it is one.
    pub(crate) fn address(&self) -> Option<IpAddr> {
        self.address
    }

    /// Whether all of it is in its place, and nothing is known of its digests.
    pub(crate) fn is_plain(&self) -> bool {
        let plain = |extent: &FetchedExtent| {
            extent.coding.is_none() && matches!(extent.bytes, ExtentBytes::Landed(_))
        };
        self.extents.iter().all(plain)
    }

    /// The node that its slot lies on.
    pub(crate) fn node(&self) -> NodeId {
        self.slot.node()
    }

    /// Bytes that lie beside the slot.
    pub(crate) fn staged_bytes(&self) -> u64 {
        let staged = |extent: &FetchedExtent| match &extent.bytes {
            ExtentBytes::Stored { bytes, .. } => bytes.as_slice().len() as u64,
            ExtentBytes::Decoded(bytes) => bytes.as_slice().len() as u64,
            ExtentBytes::Landed(_) => 0,
        };
        self.extents.iter().map(staged).sum()
    }

    /// The name of its first object, for messages.
    pub(crate) fn first_object(&self) -> &str {
        self.extents.first().map_or("", |extent| &extent.object)
    }

    /// Whether the same bytes can be asked for again: all its objects are pinned.
    pub(crate) fn is_pinned(&self) -> bool {
        self.pinned
    }

    /// The slot, what is to be in it, and what was fetched for that.
    pub(crate) fn into_parts(self) -> (ClaimedSlot, Arc<ChunkSpec>, Vec<FetchedExtent>) {
        (self.slot, self.spec, self.extents)
    }
}

/// The fetch stage.
#[derive(Debug)]
pub(crate) struct Fetcher {
    origins: Arc<Origins>,
    digest_key: DigestKey,
    meters: PartMeters,
    staging: Arc<Staging>,
    streams: Streams,
    rates: Meters,
    files: LocalFiles,
}

/// One part's result.
struct Part {
    number: usize,
    fetched: FetchedExtent,
    address: Option<IpAddr>,
    spans: Vec<Span>,
}

impl Fetcher {
    /// A stage that takes digests under a key, with memory for what is to be decoded, and workers
    /// for what has to be decoded in order.
    pub(crate) fn new(
        origins: Arc<Origins>,
        digest_key: DigestKey,
        meters: PartMeters,
        (staging, workers): (Arc<Staging>, Arc<NodeWorkers>),
        files: LocalFiles,
    ) -> Self {
        let streams = Streams::new(workers);
        let rates = Meters::default();
        Self { origins, digest_key, meters, staging, streams, rates, files }
    }

    /// What each origin has sent, and in which time.
    pub(crate) fn rates(&self) -> &Meters {
        &self.rates
    }

    /// The endpoint that a checkpoint is read from. Files have none.
    pub(crate) fn endpoint(&self, manifest: &Manifest) -> Option<EndpointView> {
        self.origins.endpoint(&OriginUri::parse(manifest.uri()).ok()?)
    }

    /// Memory for what has to be decoded of a chunk, when its turn has come.
    pub(crate) async fn stage(&self, bytes: u64) -> Result<StagingShare, FetchError> {
        Ok(self.staging.share(bytes).await?)
    }

    /// The memory for what is to be decoded: lent, and in all.
    pub(crate) fn staging(&self) -> (u64, u64) {
        self.staging.lent_and_budget()
    }

    /// Fetches what `slot` is to be filled with, as `spec` says. The spans are those of the part
    /// that ended last.
    pub(crate) async fn fetch(
        &self,
        manifest: &Manifest,
        spec: &Arc<ChunkSpec>,
        terms: &ReadTerms,
        (mut slot, staging): (ClaimedSlot, Option<StagingShare>),
    ) -> Result<(FetchedChunk, Vec<Span>), FetchError> {
        let slot_bytes = slot.as_slice().len();
        if let Some(range) = self.file_range(manifest, spec, slot_bytes) {
            return self.fetch_file((manifest, spec), range, terms, slot).await;
        }
        let offered = Instant::now();
        let misfit = || FetchError::Plan { chunk: spec.index };
        let places = split(slot.as_mut_slice(), spec)?;
        let mut waiting = places.into_iter().enumerate();
        let rates = self.rates.of(&origin_of(manifest));
        let share = self.endpoint(manifest).map(|endpoint| endpoint.share(Sharing::Chunks));
        let at_once = || share.as_ref().map_or(PARTS_OF_FILES, Share::on_its_way);
        let mut running = FuturesUnordered::new();
        let mut extents: Vec<Option<FetchedExtent>> = Vec::new();
        extents.resize_with(spec.extents.len(), || None);
        let (mut spans, mut address) = (Vec::new(), None);
        loop {
            let more = at_once().saturating_sub(running.len());
            for (number, (extent, into)) in waiting.by_ref().take(more) {
                let object = manifest.objects().get(extent.object).ok_or_else(misfit)?;
                let rates = &rates;
                let wanted = Wanted { number, manifest, object, extent, terms, offered, rates };
                running.push(self.part(wanted, into, staging.as_ref()));
            }
            let Some(part) = running.try_next().await? else { break };
            if let Some(place) = extents.get_mut(part.number) {
                *place = Some(part.fetched);
            }
            (spans, address) = (part.spans, part.address.filter(|_| spec.extents.len() == 1));
        }
        drop(running);
        let extents = extents.into_iter().collect::<Option<_>>().ok_or_else(misfit)?;
        let mut objects = spec.extents.iter().filter_map(|e| manifest.objects().get(e.object));
        let pinned = objects.all(|object| object.pinned);
        Ok((FetchedChunk { slot, spec: Arc::clone(spec), extents, pinned, address }, spans))
    }

    async fn part(
        &self,
        wanted: Wanted<'_>,
        into: &mut [u8],
        staging: Option<&StagingShare>,
    ) -> Result<Part, FetchError> {
        let Wanted { number, object, extent, .. } = wanted;
        let misfit = || FetchError::Plan { chunk: extent.object };
        let (bytes, address, spans) = match lies(object, extent) {
            Lies::AsItIs(range) => {
                let crc = object.checksum.and_then(ObjectDigest::crc);
                let mut digest = ExtentDigest::with_crc(self.digest_key, crc);
                let to = Destination { into, landing: Some(&mut digest) };
                let (address, spans) = self.read(wanted, range, to).await?;
                (ExtentBytes::Landed(digest.finish()), address, spans)
            }
            Lies::Framed(frames, range) => {
                let length = usize::try_from(range.end - range.start).map_err(|_wide| misfit())?;
                let mut bytes = staging.ok_or_else(misfit)?.buffer(length)?;
                let to = Destination::from(bytes.as_mut_slice());
                let (address, spans) = self.read(wanted, range, to).await?;
                (ExtentBytes::Stored { frames, bytes }, address, spans)
            }
            Lies::Streamed(range) => {
                let staging = staging.ok_or_else(misfit)?;
                let (bytes, turned) = self.piece(wanted, range, staging).await?;
                let turn = Span::new(Stage::Decompress, Kind::Queue, wanted.offered, turned);
                let turn = turn.with(Clue::Behind);
                // What of the rest was reads, the journal knows.
                let rest = Span::new(Stage::Fetch, Kind::Service, turned, Instant::now());
                (ExtentBytes::Decoded(bytes), None, vec![turn, rest])
            }
        };
        let (coding, framed) = match &object.content {
            Content::Plain | Content::Stream(_) => (None, false),
            Content::Digested(coding) => (Some(Arc::clone(coding)), false),
            Content::Framed(coding) => (Some(Arc::clone(coding)), true),
        };
        let fetched = FetchedExtent { object: object.name.clone(), coding, framed, bytes };
        Ok(Part { number, fetched, address, spans })
    }

    /// A piece of what an object decodes to that can only be decoded from its beginning.
    async fn piece(
        &self,
        wanted: Wanted<'_>,
        range: Range<u64>,
        staging: &StagingShare,
    ) -> Result<(Staged, Instant), FetchError> {
        let object = wanted.object;
        let source = Mutex::new(None);
        let read = |range: Range<u64>| {
            let source = &source;
            let reading = async move {
                let length = usize::try_from(range.end - range.start).unwrap_or(usize::MAX);
                let mut bytes = vec![0; length];
                let to = Destination::from(bytes.as_mut_slice());
                let (address, _) = self.read(wanted, range, to).await?;
                *source.lock().unwrap_or_else(PoisonError::into_inner) = address;
                Ok(bytes)
            };
            reading.boxed()
        };
        let mut again = object.pinned;
        loop {
            let piece = Piece {
                key: object.identity,
                range: range.clone(),
                plain_bytes: object.bytes,
                stored_bytes: object.stored_bytes(),
                staging,
            };
            let problem = match self.streams.piece(piece, &read).await {
                Ok(piece) => return Ok(piece),
                Err(StreamError::Read(error)) => return Err(error),
                Err(StreamError::Staging(error)) => return Err(error.into()),
                Err(StreamError::Stopped(stopped)) => return Err(stopped.into()),
                Err(StreamError::Decode(problem)) => problem,
            };
            metrics::decode_failure();
            // Its decoder is gone: all of it is read once more, the last reads another way.
            if !std::mem::take(&mut again) {
                return Err(FetchError::Stream { object: object.name.clone(), problem });
            }
            wanted.terms.distrust(*source.lock().unwrap_or_else(PoisonError::into_inner));
        }
    }

    /// Reads a range of what the store has.
    async fn read(
        &self,
        Wanted { manifest, object, terms, offered, rates, .. }: Wanted<'_>,
        range: Range<u64>,
        to: Destination<'_>,
    ) -> Result<(Option<IpAddr>, Vec<Span>), FetchError> {
        let request = ReadRequest {
            key: object.key.clone(),
            pin: object.pin.clone(),
            object_bytes: object.stored_bytes(),
            range,
        };
        let (bytes, working) = (request.range.end - request.range.start, rates.begin());
        let read = manifest.store().read_on(&request, terms.clone(), to).await;
        self.ended((bytes, working), read, offered)
    }

    /// Counts a read that has ended; where its bytes came from, and where its time went.
    fn ended(
        &self,
        (bytes, working): (u64, Working<'_>),
        read: Result<ReadRecord, OriginError>,
        offered: Instant,
    ) -> Result<(Option<IpAddr>, Vec<Span>), FetchError> {
        match &read {
            Ok(_) => working.done(bytes),
            Err(_) => drop(working),
        }
        let log = match &read {
            Ok(record) => &record.attempt_log,
            Err(error) => &error.attempt_log,
        };
        self.meters.ended(log.len(), retry_delays(log));
        let spans = attempt_spans(log, offered, Instant::now());
        Ok((read?.source(), spans))
    }
}

/// One extent that is fetched, and on which terms.
#[derive(Clone, Copy)]
struct Wanted<'a> {
    number: usize,
    manifest: &'a Manifest,
    object: &'a Object,
    extent: &'a Extent,
    terms: &'a ReadTerms,
    offered: Instant,
    rates: &'a Meter,
}

/// The origin that a checkpoint is read from.
fn origin_of(manifest: &Manifest) -> String {
    OriginUri::parse(manifest.uri()).map(|uri| uri.origin()).unwrap_or_default()
}

/// Where the bytes of an extent lie, and which they are there.
enum Lies {
    /// In the store as they are, so that they can be fetched into their place.
    AsItIs(Range<u64>),
    /// In these frames, which lie there in the store.
    Framed(Range<usize>, Range<u64>),
    /// In a stream; the range is that of what it decodes to.
    Streamed(Range<u64>),
}

fn lies(object: &Object, extent: &Extent) -> Lies {
    let range = extent.object_offset..extent.object_offset + extent.bytes;
    let (coding, framed) = match &object.content {
        Content::Plain => return Lies::AsItIs(range),
        Content::Stream(_) => return Lies::Streamed(range),
        Content::Digested(coding) => (coding, false),
        Content::Framed(coding) => (coding, true),
    };
    let frames = coding.frames_over(range.clone());
    let stored = coding.stored_range(frames.clone());
    // What the store has as it is goes into its place, unless more of it has to be looked at.
    if framed || stored != range { Lies::Framed(frames, stored) } else { Lies::AsItIs(range) }
}

/// Bytes that the origin has to send for a chunk, about: of a stream, its share.
pub(crate) fn wire_bytes(manifest: &Manifest, spec: &ChunkSpec) -> u64 {
    let of = |extent: &Extent| {
        let object = manifest.objects().get(extent.object)?;
        Some(match lies(object, extent) {
            Lies::AsItIs(range) | Lies::Framed(_, range) => range.end - range.start,
            Lies::Streamed(range) => {
                let share = u128::from(range.end - range.start) * u128::from(object.stored_bytes());
                u64::try_from(share / u128::from(object.bytes.max(1))).unwrap_or(u64::MAX)
            }
        })
    };
    spec.extents.iter().filter_map(of).sum()
}

/// Bytes that do not go into their place at once.
pub(crate) fn staged_bytes(manifest: &Manifest, spec: &ChunkSpec) -> u64 {
    let staged = |extent: &Extent| match lies(manifest.objects().get(extent.object)?, extent) {
        Lies::AsItIs(_) => None,
        Lies::Framed(_, stored) => Some(stored.end - stored.start),
        Lies::Streamed(range) => {
            Some(range.end - range.start + stream::READ_BYTES * stream::READS_AT_ONCE)
        }
    };
    spec.extents.iter().filter_map(staged).sum()
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
    async fn a_delay_is_the_time_between_two_attempts() {
        let start = Instant::now();
        let ms = Duration::from_millis;
        let attempt = |at: u64, outcome| AttemptRecord {
            started: start + ms(at),
            rated: false,
            dns: None,
            connect: Some(ms(5)),
            tls: None,
            first_byte: Some(ms(20)),
            body: ms(30),
            bytes: 0,
            address: None,
            tcp: None,
            head_tcp: None,
            waited: ms(30),
            silences: Vec::new(),
            cold_bytes: 0,
            copied: None,
            not_copied: None,
            outcome,
        };
        let throttled = AttemptOutcome::Failed(OriginErrorKind::Throttled);
        let log = [attempt(10, throttled), attempt(85, AttemptOutcome::Done)];
        assert_eq!(retry_delays(&log).collect::<Vec<_>>(), [(true, ms(20))]);
    }
}
