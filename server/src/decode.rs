//! Decode: from what the store has to the bytes of the object, in the slot that they are served
//! from.
//!
//! Objects that the store has as they are pass through. Frames of the others are decoded on threads
//! of their own (a bounded queue; never on the async runtime), from a staging buffer into the slot,
//! and each is compared with the digest that its manifest gives, while its bytes are still in the
//! cache of the core. A frame that belongs to a chunk only in part is decoded beside it, and its
//! part copied.
//!
//! [`RawChunk`] has one constructor, here: every byte of the object is in its place, and what a
//! manifest says about them holds. Whether it may be served is for [`verify`](crate::verify).

use std::cell::RefCell;
use std::net::IpAddr;
use std::ops::Range;
use std::sync::Arc;

use forebay_codec::coding::{Coding, Frame};
use forebay_codec::decode::{DecodeError as FrameError, FrameDecoder};
use forebay_io::NodeId;
use forebay_origin::Landing;
use forebay_proto::{Failure, Reason};
use tokio::time::Instant;

use crate::capacity::meter::Meter;
use crate::cpu::{NodeWorkers, Stopped, distance};
use crate::digest::{ChunkDigest, DigestKey, ExtentDigest, Taken};
use crate::fetch::{ExtentBytes, FetchedChunk, FetchedExtent};
use crate::metrics;
use crate::plan::{ChunkSpec, Extent};
use crate::proof::PieceSum;
use crate::ram::pool::ClaimedSlot;
use crate::timeline::{Kind, Span, Stage};

/// Why a chunk is not decoded.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DecodeError {
    /// A frame is not what its format, or its manifest, says it is.
    #[error("{object}: the frame at byte {offset} of what is stored cannot be decoded: {problem}")]
    Frame {
        /// Which object.
        object: String,
        /// Where in what the store has.
        offset: u64,
        /// What is wrong.
        problem: FrameError,
        /// The address that the bytes came from.
        address: Option<IpAddr>,
    },
    /// Other bytes than the manifest says.
    #[error("{object}: bytes {offset} to {end} do not have the digest that the manifest gives")]
    Content {
        /// Which object.
        object: String,
        /// First byte of the frame in the object.
        offset: u64,
        /// Behind its last one.
        end: u64,
        /// The address that the bytes came from.
        address: Option<IpAddr>,
    },
    /// A plan that does not fit its slot, or its frames.
    #[error("the plan of chunk {chunk} does not fit its slot")]
    Plan {
        /// Which chunk.
        chunk: usize,
    },
    /// The daemon is going away.
    #[error(transparent)]
    Stopped(#[from] Stopped),
}

impl DecodeError {
    /// Whether other bytes may be had by asking again, and which address not to ask.
    pub(crate) fn suspect(&self) -> Option<Option<IpAddr>> {
        match self {
            Self::Frame { address, .. } | Self::Content { address, .. } => Some(*address),
            Self::Plan { .. } | Self::Stopped(_) => None,
        }
    }
}

impl From<DecodeError> for Failure {
    fn from(error: DecodeError) -> Self {
        let message = error.to_string();
        match error {
            DecodeError::Frame { object, offset, .. } => Self::new(Reason::DecodeFailed, message)
                .for_object(&object)
                .with_fact("stored_offset", offset),
            DecodeError::Content { object, offset, .. } => {
                Self::new(Reason::DigestMismatch, message)
                    .for_object(&object)
                    .with_fact("object_offset", offset)
            }
            DecodeError::Plan { .. } => Self::new(Reason::Internal, message),
            DecodeError::Stopped(stopped) => stopped.into(),
        }
        .at_stage("decompress")
    }
}

/// A chunk with all its bytes in its slot, as they are served.
#[derive(Debug)]
pub(crate) struct RawChunk {
    slot: ClaimedSlot,
    spec: Arc<ChunkSpec>,
    first_object: String,
    pinned: bool,
    digest: ChunkDigest,
    /// Sums of the extents whose objects are held to some.
    crcs: Vec<Option<PieceSum>>,
    address: Option<IpAddr>,
}

impl RawChunk {
    /// The address that its bytes came from, if it is one.
    pub(crate) fn address(&self) -> Option<IpAddr> {
        self.address
    }

    /// The node that its slot lies on.
    pub(crate) fn node(&self) -> NodeId {
        self.slot.node()
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

    /// The slot, what is in it, and the sums of its extents that were taken.
    pub(crate) fn into_parts(self) -> (ClaimedSlot, Arc<ChunkSpec>, Vec<Option<PieceSum>>) {
        (self.slot, self.spec, self.crcs)
    }
}

/// The decode stage.
#[derive(Debug)]
pub(crate) struct Decoder {
    workers: Arc<NodeWorkers>,
    digest_key: DigestKey,
    meter: Arc<Meter>,
}

impl Decoder {
    /// A stage that decodes on `workers` and takes digests under a key.
    pub(crate) fn new(workers: Arc<NodeWorkers>, digest_key: DigestKey) -> Self {
        Self { workers, digest_key, meter: Arc::default() }
    }

    /// What it has decoded, and in which time.
    pub(crate) fn meter(&self) -> &Meter {
        &self.meter
    }

    /// Decodes the chunk and hands it to `check`, both on one thread: the bytes are in its core's
    /// cache. With that come the queue and service spans.
    pub(crate) async fn decode<T: Send + 'static>(
        &self,
        fetched: FetchedChunk,
        check: impl FnOnce(RawChunk) -> T + Send + 'static,
    ) -> Result<(T, [Span; 2]), DecodeError> {
        let (offered, key, node) = (Instant::now(), self.digest_key, fetched.node());
        let meter = Arc::clone(&self.meter);
        let worked = self.workers.run(Some(node), move || {
            let (started, working) = (Instant::now(), meter.begin());
            let stored_bytes = fetched.staged_bytes();
            let raw = decode(fetched, key).inspect_err(count)?;
            let ended = Instant::now();
            working.made(raw.spec.bytes, stored_bytes);
            metrics::decoded(stored_bytes, raw.spec.bytes, ended - started);
            let spans = [
                Span::new(Stage::Decompress, Kind::Queue, offered, started),
                Span::new(Stage::Decompress, Kind::Service, started, ended).with(distance(node)),
            ];
            Ok((check(raw), spans))
        });
        worked.await?
    }

    /// A chunk whose store has it as it is, and of which no more is known.
    pub(crate) fn pass(&self, fetched: FetchedChunk) -> Result<RawChunk, DecodeError> {
        decode(fetched, self.digest_key)
    }
}

fn count(error: &DecodeError) {
    match error {
        DecodeError::Frame { .. } => metrics::decode_failure(),
        DecodeError::Content { .. } => metrics::digest_mismatch(),
        DecodeError::Plan { .. } | DecodeError::Stopped(_) => {}
    }
}

/// Kept by each thread for frames that belong to a chunk in part: one of the usual size.
const BESIDE_KEPT_BYTES: usize = 8 << 20;

thread_local! {
    /// Context and scratch of this thread: made once, since both cost more than a frame.
    static DECODER: RefCell<Scratch> = RefCell::default();
}

#[derive(Default)]
struct Scratch {
    decoder: Option<FrameDecoder>,
    beside: Vec<u8>,
}

fn decode(fetched: FetchedChunk, key: DigestKey) -> Result<RawChunk, DecodeError> {
    let first_object = fetched.first_object().to_owned();
    let (pinned, address) = (fetched.is_pinned(), fetched.address());
    let (mut slot, spec, extents) = fetched.into_parts();
    let mut digests = Vec::with_capacity(extents.len());
    let mut crcs = Vec::with_capacity(extents.len());
    for (extent, bytes) in spec.extents.iter().zip(extents) {
        let into = place(slot.as_mut_slice(), extent);
        let into = into.ok_or(DecodeError::Plan { chunk: spec.index })?;
        let Taken { digest, crc } =
            Piece { extent, address, chunk: spec.index }.fill(bytes, into, key)?;
        digests.push((extent.bytes, digest));
        crcs.push(crc);
    }
    let digest = key.of_chunk(digests);
    Ok(RawChunk { slot, spec, first_object, pinned, digest, crcs, address })
}

fn place<'a>(slot: &'a mut [u8], extent: &Extent) -> Option<&'a mut [u8]> {
    let start = usize::try_from(extent.slot_offset).ok()?;
    let bytes = usize::try_from(extent.bytes).ok()?;
    slot.get_mut(start..start.checked_add(bytes)?)
}

/// One extent that is brought into its place.
#[derive(Clone, Copy)]
struct Piece<'a> {
    extent: &'a Extent,
    address: Option<IpAddr>,
    chunk: usize,
}

impl Piece<'_> {
    /// Fills the place; what was taken of it.
    fn fill(
        self,
        fetched: FetchedExtent,
        into: &mut [u8],
        key: DigestKey,
    ) -> Result<Taken, DecodeError> {
        let FetchedExtent { object, coding, framed, bytes } = fetched;
        match (bytes, coding) {
            (ExtentBytes::Landed(digest), None) => Ok(digest),
            (ExtentBytes::Landed(digest), Some(coding)) => {
                let frames = coding.frames_over(self.range());
                for frame in coding.frames().get(frames).unwrap_or_default() {
                    let here = self.part(frame).and_then(|part| into.get(part));
                    self.check(&object, frame, here.ok_or_else(|| self.misfit())?)?;
                }
                Ok(digest)
            }
            (ExtentBytes::Stored { frames, bytes }, Some(coding)) => {
                let bytes = bytes.as_slice();
                let stored = Stored { object: &object, coding: &coding, framed, frames, bytes };
                self.unpack(&stored, into)?;
                let mut digest = ExtentDigest::new(key);
                digest.landed(into);
                Ok(digest.finish())
            }
            (ExtentBytes::Decoded(bytes), _) => {
                let bytes = bytes.as_slice();
                if bytes.len() != into.len() {
                    return Err(self.misfit());
                }
                into.copy_from_slice(bytes);
                let mut digest = ExtentDigest::new(key);
                digest.landed(into);
                Ok(digest.finish())
            }
            (ExtentBytes::Stored { .. }, None) => Err(self.misfit()),
        }
    }

    fn unpack(self, stored: &Stored<'_>, into: &mut [u8]) -> Result<(), DecodeError> {
        DECODER.with_borrow_mut(|scratch| {
            for number in stored.frames.clone() {
                let frame = stored.coding.frames().get(number).ok_or_else(|| self.misfit())?;
                self.unpack_frame(stored, (number, frame), scratch, into)?;
            }
            Ok(())
        })
    }

    fn unpack_frame(
        self,
        stored: &Stored<'_>,
        (number, frame): (usize, &Frame),
        scratch: &mut Scratch,
        into: &mut [u8],
    ) -> Result<(), DecodeError> {
        if let Some(here) = self.part(frame) {
            let here = into.get_mut(here).ok_or_else(|| self.misfit())?;
            self.decode_frame(stored, (number, frame), &mut scratch.decoder, here)?;
            return self.check(stored.object, frame, here);
        }
        let whole = usize::try_from(frame.plain_bytes).map_err(|_wide| self.misfit())?;
        let Scratch { decoder, beside } = scratch;
        if beside.len() < whole {
            beside.resize(whole, 0);
        }
        let whole = beside.get_mut(..whole).ok_or_else(|| self.misfit())?;
        self.decode_frame(stored, (number, frame), decoder, whole)?;
        self.check(stored.object, frame, whole)?;
        let copied = self.copy_part(frame, whole, into).ok_or_else(|| self.misfit());
        if beside.len() > BESIDE_KEPT_BYTES {
            beside.truncate(BESIDE_KEPT_BYTES);
            beside.shrink_to_fit();
        }
        copied
    }

    fn decode_frame(
        self,
        stored: &Stored<'_>,
        (number, frame): (usize, &Frame),
        decoder: &mut Option<FrameDecoder>,
        into: &mut [u8],
    ) -> Result<(), DecodeError> {
        let bytes = stored.of(frame).ok_or_else(|| self.misfit())?;
        if !stored.framed {
            let here = into.get_mut(..bytes.len()).ok_or_else(|| self.misfit())?;
            here.copy_from_slice(bytes);
            return Ok(());
        }
        let bad = |problem| DecodeError::Frame {
            object: stored.object.to_owned(),
            offset: frame.stored_offset,
            problem,
            address: self.address,
        };
        let decoder = match decoder {
            Some(decoder) => decoder,
            None => decoder.insert(FrameDecoder::new().map_err(bad)?),
        };
        decoder.decode(stored.coding, number, bytes, into).map_err(bad)
    }

    /// The bytes of the object that belong here.
    fn range(self) -> Range<u64> {
        self.extent.object_offset..self.extent.object_offset + self.extent.bytes
    }

    /// Where a frame lies in the extent, if all of it does.
    fn part(self, frame: &Frame) -> Option<Range<usize>> {
        let range = self.range();
        let end = frame.plain_offset.checked_add(frame.plain_bytes)?;
        if frame.plain_offset < range.start || end > range.end {
            return None;
        }
        let start = usize::try_from(frame.plain_offset - range.start).ok()?;
        Some(start..start + usize::try_from(frame.plain_bytes).ok()?)
    }

    /// Copies what of a frame belongs here.
    fn copy_part(self, frame: &Frame, whole: &[u8], into: &mut [u8]) -> Option<()> {
        let range = self.range();
        let start = frame.plain_offset.max(range.start);
        let end = (frame.plain_offset + frame.plain_bytes).min(range.end);
        let bytes = usize::try_from(end.checked_sub(start)?).ok()?;
        let from = usize::try_from(start - frame.plain_offset).ok()?;
        let to = usize::try_from(start - range.start).ok()?;
        into.get_mut(to..to + bytes)?.copy_from_slice(whole.get(from..from + bytes)?);
        Some(())
    }

    fn check(self, object: &str, frame: &Frame, bytes: &[u8]) -> Result<(), DecodeError> {
        match frame.digest {
            Some(digest) if blake3::hash(bytes) != digest => Err(DecodeError::Content {
                object: object.to_owned(),
                offset: frame.plain_offset,
                end: frame.plain_offset + frame.plain_bytes,
                address: self.address,
            }),
            _ => Ok(()),
        }
    }

    fn misfit(self) -> DecodeError {
        DecodeError::Plan { chunk: self.chunk }
    }
}

/// Frames of an object as the store has them.
struct Stored<'a> {
    object: &'a str,
    coding: &'a Coding,
    /// As frames to be decoded, or as they are.
    framed: bool,
    frames: Range<usize>,
    /// From the beginning of the first frame to the end of the last one.
    bytes: &'a [u8],
}

impl<'a> Stored<'a> {
    /// The bytes of one frame.
    fn of(&self, frame: &Frame) -> Option<&'a [u8]> {
        let first = self.coding.frames().get(self.frames.start)?;
        let start = usize::try_from(frame.stored_offset.checked_sub(first.stored_offset)?).ok()?;
        let bytes = usize::try_from(frame.stored_bytes).ok()?;
        self.bytes.get(start..start.checked_add(bytes)?)
    }
}
