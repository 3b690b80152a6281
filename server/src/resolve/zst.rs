//! Objects whose name ends in `.zst`, and of which no manifest says anything.
//!
//! Their size has to be known before they are planned, so it has to be declared: by a seek table at
//! the end, or by the frames. Objects up to [`SCANNED_BYTES_MAX`] are read whole for that, which
//! finds every frame; of larger ones without a seek table the first frame counts, and another one
//! behind it is an error when it is met. Frames up to [`FRAME_BYTES_MAX`] are decoded one by one,
//! larger ones as streams, and so are frames that take more room where they are stored than
//! compression makes them take: what is read to decode a chunk is bounded by the chunk.
//!
//! What is no zstd, declares no size or needs a dictionary is served as it is, under its own name.
//! What was packed and has byte planes is refused: only its manifest tells how to undo them. What
//! was found out is kept for the last objects by their identity, so that they are not read again
//! for it.

use std::collections::{HashSet, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

use forebay_codec::coding::{Coding, Frame};
use forebay_codec::decode::{
    DecodeError, DecodeErrorKind, FrameDecoder, StreamDecoder, WINDOW_LOG_MAX,
};
use forebay_codec::scan::{self, FRAME_HEAD_BYTES_MAX, FrameHead, SeekTable};
use futures::{StreamExt, TryStreamExt};
use tokio::sync::SemaphorePermit;

use super::manifest::{Content, Object, StreamCoding, coded_object};
use super::packed::SUFFIX;
use super::{CHECKPOINT_BYTES_MAX, HEADERS_AT_ONCE, Listing, ResolveError};

/// Objects of this size are read to find their frames.
const SCANNED_BYTES_MAX: u64 = 64 << 20;

/// Content of a frame that is decoded at once.
const FRAME_BYTES_MAX: u64 = 16 << 20;

/// First read of an object's end: a seek table of eight thousand frames.
const TAIL_BYTES: u64 = 64 << 10;

/// Read at a time to decode the beginning of a stream.
const STREAM_STEP_BYTES: u64 = 256 << 10;

/// Read for a range of what an object decodes to, at most: twice the largest header.
const DECODED_FROM_BYTES_MAX: u64 = 256 << 20;

/// Objects of which is kept what was found out...
const SCANS_MAX: usize = 256;

/// ... and frames of all of them: some 20 MiB.
const SCANNED_FRAMES_MAX: usize = 256 << 10;

/// A frame has no business to begin with fewer bytes.
const MAGIC_BYTES: u64 = 4;

/// What was found out about an object.
#[derive(Debug, Clone)]
enum Scan {
    /// It cannot be decoded, and is what it is.
    AsItIs,
    /// It decodes to so many bytes.
    Coded(u64, Content),
}

impl Scan {
    fn frames(&self) -> usize {
        match self {
            Self::Coded(_, Content::Framed(coding)) => coding.frames().len(),
            Self::Coded(..) | Self::AsItIs => 0,
        }
    }
}

/// What was found out about the last objects, by their identity; the last ones used at the end.
#[derive(Debug, Default)]
pub(super) struct Scans(Mutex<VecDeque<([u8; 32], Scan)>>);

impl Scans {
    fn get(&self, object: &Object) -> Option<Scan> {
        let mut scans = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let at = scans.iter().position(|(known, _)| *known == object.identity)?;
        let found = scans.remove(at)?;
        let scan = found.1.clone();
        scans.push_back(found);
        Some(scan)
    }

    fn put(&self, object: &Object, scan: &Scan) {
        if !object.pinned || scan.frames() > SCANNED_FRAMES_MAX {
            return;
        }
        let mut scans = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        scans.retain(|(known, _)| *known != object.identity);
        scans.push_back((object.identity, scan.clone()));
        let mut frames: usize = scans.iter().map(|(_, scan)| scan.frames()).sum();
        while scans.len() > SCANS_MAX || frames > SCANNED_FRAMES_MAX {
            frames -= scans.pop_front().map_or(frames, |(_, scan)| scan.frames());
        }
    }
}

impl Listing<'_> {
    /// The objects, and instead of those that are compressed what they decode to.
    pub(super) async fn decoded(&self, objects: Vec<Object>) -> Result<Vec<Object>, ResolveError> {
        if self.as_stored {
            return Ok(objects);
        }
        let names: HashSet<String> = objects.iter().map(|object| object.name.clone()).collect();
        let plain_name = |object: &Object| {
            let plain = object.name.strip_suffix(SUFFIX)?;
            let is_free = !plain.is_empty() && !plain.ends_with('/') && !names.contains(plain);
            is_free.then(|| plain.to_owned())
        };
        let decoded = objects.into_iter().map(|object| {
            let name = plain_name(&object);
            async move {
                match name {
                    Some(name) => self.decoded_one(object, name).await,
                    None => Ok(object),
                }
            }
        });
        let decoded: Vec<_> = decoded.collect();
        futures::stream::iter(decoded).buffered(HEADERS_AT_ONCE).try_collect().await
    }

    async fn decoded_one(&self, object: Object, name: String) -> Result<Object, ResolveError> {
        let scans = &self.resolver.scans;
        let scan = match scans.get(&object) {
            Some(scan) => scan,
            None => {
                let scan = self.scan(&object).await?;
                scans.put(&object, &scan);
                scan
            }
        };
        let Scan::Coded(bytes, content) = scan else { return Ok(object) };
        if bytes > CHECKPOINT_BYTES_MAX {
            return Err(self.limit("bytes", CHECKPOINT_BYTES_MAX));
        }
        Ok(coded_object(&self.uri.origin(), object, name, (bytes, content)))
    }

    async fn scan(&self, object: &Object) -> Result<Scan, ResolveError> {
        let bad = |problem| ResolveError::Frames { key: object.key.as_str().to_owned(), problem };
        let scanned = match self.seek_table(object).await? {
            Some(SeekTable { planed: true, .. }) => {
                let key = object.key.as_str().to_owned();
                return Err(ResolveError::Unmanifested { key });
            }
            Some(SeekTable { frames, .. }) => coded(object.bytes, frames),
            None if object.bytes <= SCANNED_BYTES_MAX => {
                let headers = &self.resolver.headers;
                let _room = headers.room(object.bytes).await?;
                let bytes = self.read(object, 0, object.bytes).await?;
                let (frames, _) = headers.decoded(bytes, scan::scan_whole).await?;
                frames.and_then(|frames| coded(object.bytes, frames))
            }
            None => {
                let head = self.read(object, 0, FRAME_HEAD_BYTES_MAX as u64).await?;
                let stream = Content::Stream(StreamCoding { stored_bytes: object.bytes });
                let head = scan::frame_head(&head).and_then(|head| declared(&head));
                head.map(|bytes| (bytes, stream))
            }
        };
        match scanned {
            Ok((bytes, content)) => Ok(Scan::Coded(bytes, content)),
            Err(problem) if is_to_be_left(&problem, object.bytes) => {
                tracing::info!(key = %object.key, %problem, "it is served as it is");
                Ok(Scan::AsItIs)
            }
            Err(problem) => Err(bad(problem)),
        }
    }

    /// What the seek table at the end of an object says, if there is one.
    async fn seek_table(&self, object: &Object) -> Result<Option<SeekTable>, ResolveError> {
        let bad = |problem| ResolveError::Frames { key: object.key.as_str().to_owned(), problem };
        let begin = object.bytes.saturating_sub(TAIL_BYTES);
        let mut tail = self.read(object, begin, object.bytes).await?;
        let Some(table) = scan::seek_table_bytes(&tail).map_err(bad)? else { return Ok(None) };
        let begin = object.bytes.saturating_sub(table);
        let _room = self.resolver.headers.room(table).await?;
        match (tail.len() as u64).checked_sub(table) {
            Some(before) => drop(tail.drain(..usize::try_from(before).unwrap_or(0))),
            None => tail = self.read(object, begin, object.bytes).await?,
        }
        let object_bytes = object.bytes;
        let parse = move |table: &[u8]| scan::seek_table(table, object_bytes);
        let (table, _) = self.resolver.headers.parsed(tail, parse).await?;
        table.map(Some).map_err(bad)
    }

    /// Room to read a range of what an object decodes to, and what that is decoded from. Whoever
    /// has some asks for no more.
    pub(super) async fn room_for(
        &self,
        object: &Object,
        begin: u64,
        end: u64,
    ) -> Result<SemaphorePermit<'_>, ResolveError> {
        let plain = end.saturating_sub(begin);
        let bytes = match &object.content {
            Content::Plain | Content::Digested(_) => plain,
            Content::Framed(coding) => {
                let frames = coding.frames_over(begin..end);
                let listed = coding.frames().get(frames.clone()).unwrap_or_default();
                let decoded: u64 = listed.iter().map(|frame| frame.plain_bytes).sum();
                let stored = coding.stored_range(frames);
                let stored = stored.end - stored.start;
                if stored > DECODED_FROM_BYTES_MAX {
                    return Err(self.limit("bytes to decode a header from", DECODED_FROM_BYTES_MAX));
                }
                decoded.saturating_add(stored)
            }
            Content::Stream(stream) => stream.stored_bytes.min(read_for(end)).saturating_add(end),
        };
        Ok(self.resolver.headers.room(bytes).await?)
    }

    /// A range of what an object decodes to: of its beginning, where it can only be decoded from
    /// there. The caller has [room](Self::room_for) for it.
    pub(super) async fn read_decoded(
        &self,
        object: &Object,
        begin: u64,
        end: u64,
    ) -> Result<Vec<u8>, ResolveError> {
        let bad = |problem| ResolveError::Frames { key: object.key.as_str().to_owned(), problem };
        match &object.content {
            Content::Plain | Content::Digested(_) => self.read(object, begin, end).await,
            Content::Framed(coding) => {
                let frames = coding.frames_over(begin..end);
                let stored = coding.stored_range(frames.clone());
                let bytes = self.read(object, stored.start, stored.end).await?;
                let coding = Arc::clone(coding);
                let decode = move |bytes: &[u8]| {
                    let first = coding.frames().get(frames.start).map_or(0, |f| f.plain_offset);
                    let skip = usize::try_from(begin - first).unwrap_or(usize::MAX);
                    let take = usize::try_from(end - begin).unwrap_or(usize::MAX);
                    let plain = decode_frames(&coding, frames, bytes)?;
                    Ok(plain.into_iter().skip(skip).take(take).collect())
                };
                let (decoded, _) = self.resolver.headers.decoded(bytes, decode).await?;
                decoded.map_err(bad)
            }
            Content::Stream(stream) => {
                let beginning = self.read_beginning(object, stream.stored_bytes, end).await?;
                let begin = usize::try_from(begin).unwrap_or(usize::MAX);
                Ok(beginning.into_iter().skip(begin).collect())
            }
        }
    }

    /// The first bytes that a stream decodes to, as many as there are. A stream that is longer than
    /// what it decodes to is not read for ever.
    async fn read_beginning(
        &self,
        object: &Object,
        stored_bytes: u64,
        plain_bytes: u64,
    ) -> Result<Vec<u8>, ResolveError> {
        let bad = |problem| ResolveError::Frames { key: object.key.as_str().to_owned(), problem };
        let wanted = usize::try_from(plain_bytes).unwrap_or(usize::MAX);
        let most = stored_bytes.min(read_for(plain_bytes));
        let mut stored = Vec::new();
        loop {
            let at = stored.len() as u64;
            let upto = most.min(at + STREAM_STEP_BYTES.max(at));
            stored.extend(self.read(object, at, upto).await?);
            let decode = move |bytes: &[u8]| decode_beginning(bytes, wanted);
            let (decoded, back) = self.resolver.headers.decoded(stored, decode).await?;
            let decoded: Vec<u8> = decoded.map_err(bad)?;
            if decoded.len() == wanted || upto == most {
                return Ok(decoded);
            }
            stored = back;
        }
    }
}

/// What a frame says it holds.
fn declared(head: &FrameHead) -> Result<u64, DecodeError> {
    let bad = |kind| DecodeError { kind, stored_offset: 0 };
    if head.dictionary != 0 {
        return Err(bad(DecodeErrorKind::Dictionary));
    }
    head.content.ok_or_else(|| bad(DecodeErrorKind::SizeUnknown))
}

/// Bytes of a stream that are read for so many of what it decodes to.
fn read_for(plain_bytes: u64) -> u64 {
    plain_bytes.saturating_mul(2).saturating_add(STREAM_STEP_BYTES)
}

/// Whether an object is no worse than one that is not called `.zst`.
fn is_to_be_left(problem: &DecodeError, object_bytes: u64) -> bool {
    match problem.kind {
        DecodeErrorKind::SizeUnknown | DecodeErrorKind::Dictionary => true,
        DecodeErrorKind::NotAFrame => problem.stored_offset == 0,
        DecodeErrorKind::Truncated => object_bytes < MAGIC_BYTES,
        _ => false,
    }
}

/// Whether any frame, with what lies before it, takes more room than compression makes it take.
fn are_sparse(frames: &[Frame]) -> bool {
    let mut end = 0;
    frames.iter().any(|frame| {
        let taken = frame.stored_range().end.saturating_sub(end);
        end = frame.stored_range().end;
        taken > frame.plain_bytes + frame.plain_bytes / 128 + (1 << 10)
    })
}

/// How an object of such frames is decoded, and to how much.
fn coded(stored_bytes: u64, frames: Vec<Frame>) -> Result<(u64, Content), DecodeError> {
    let plain_bytes = frames.iter().map(|frame| frame.plain_bytes).sum();
    let are_large = frames.iter().any(|frame| frame.plain_bytes > FRAME_BYTES_MAX);
    if are_large || are_sparse(&frames) {
        return Ok((plain_bytes, Content::Stream(StreamCoding { stored_bytes })));
    }
    let coding =
        Coding::new(stored_bytes, plain_bytes, frames, Vec::new(), 0).map_err(|problem| {
            // Sums of sizes that were checked one by one.
            tracing::debug!(%problem, "frames that cannot be");
            DecodeError { kind: DecodeErrorKind::Corrupt("its frames cannot be"), stored_offset: 0 }
        })?;
    Ok((plain_bytes, Content::Framed(Arc::new(coding))))
}

fn decode_frames(
    coding: &Coding,
    frames: std::ops::Range<usize>,
    stored: &[u8],
) -> Result<Vec<u8>, DecodeError> {
    let mut decoder = FrameDecoder::new()?;
    let mut plain = Vec::new();
    let listed = coding.frames().get(frames.clone()).unwrap_or_default();
    let first = listed.first().map_or(0, |frame| frame.stored_offset);
    for (number, frame) in frames.zip(listed) {
        let at = usize::try_from(frame.stored_offset - first).unwrap_or(usize::MAX);
        let bytes = stored.get(at..).unwrap_or_default();
        let bytes = bytes.get(..usize::try_from(frame.stored_bytes).unwrap_or(usize::MAX));
        let begun = plain.len();
        // Bounded by what a frame may have.
        plain.resize(begun + usize::try_from(frame.plain_bytes).unwrap_or(0), 0);
        let into = plain.get_mut(begun..).unwrap_or_default();
        decoder.decode(coding, number, bytes.unwrap_or_default(), into)?;
    }
    Ok(plain)
}

/// What the beginning of a stream decodes to, at most so much of it.
fn decode_beginning(stored: &[u8], wanted: usize) -> Result<Vec<u8>, DecodeError> {
    let mut decoder = StreamDecoder::new(WINDOW_LOG_MAX)?;
    let mut plain = Vec::new();
    let mut rest = stored;
    let mut piece = vec![0; 64 << 10];
    while plain.len() < wanted {
        let room = piece.len().min(wanted - plain.len());
        let into = piece.get_mut(..room).unwrap_or_default();
        let step = decoder.decode(rest, into)?;
        plain.extend_from_slice(into.get(..step.produced).unwrap_or_default());
        rest = rest.get(step.consumed..).unwrap_or_default();
        if rest.is_empty() && step.produced < room {
            break;
        }
    }
    Ok(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(stored_offset: u64, stored_bytes: u64, plain_offset: u64, plain_bytes: u64) -> Frame {
        Frame { stored_offset, stored_bytes, plain_offset, plain_bytes, digest: None }
    }

    #[test]
    fn frames_that_are_stored_in_more_than_they_hold_become_streams() {
        let usual = [frame(0, 1000, 0, 4000), frame(1012, 5000, 4000, 4200)];
        let gaps = [frame(0, 1000, 0, 4000), frame(1 << 30, 1000, 4000, 4000)];
        let large = [frame(0, 4 << 30, 0, 1), frame(4 << 30, 5, 1, 1)];
        assert!(matches!(coded(1 << 33, usual.to_vec()), Ok((8200, Content::Framed(_)))));
        assert!(matches!(coded(1 << 33, gaps.to_vec()), Ok((8000, Content::Stream(_)))));
        assert!(matches!(coded(1 << 33, large.to_vec()), Ok((2, Content::Stream(_)))));
    }

    #[test]
    fn what_was_found_out_is_kept_within_bounds() {
        let pin =
            forebay_origin::Pin { etag: Some("e".into()), version: None, last_modified: None };
        let object = |n: u32| {
            let mut identity = [0; 32];
            identity[..4].copy_from_slice(&n.to_le_bytes());
            Object {
                key: forebay_origin::ObjectKey::parse("k").unwrap(),
                name: "k".into(),
                bytes: 1,
                pin: pin.clone(),
                identity,
                pinned: true,
                content: Content::Plain,
                checksum: None,
            }
        };
        let scans = Scans::default();
        for n in 0..1000 {
            scans.put(&object(n), &Scan::AsItIs);
        }
        assert!(scans.get(&object(999)).is_some() && scans.get(&object(700)).is_none());
        let many = (0..200_000).map(|n| frame(n, 1, n, 1)).collect();
        let (bytes, content) = coded(200_000, many).unwrap();
        let large = Scan::Coded(bytes, content);
        scans.put(&object(1), &large);
        scans.put(&object(2), &large);
        assert!(scans.get(&object(2)).is_some() && scans.get(&object(1)).is_none());
        let unpinned = Object { pinned: false, ..object(5000) };
        scans.put(&unpinned, &Scan::AsItIs);
        assert!(scans.get(&unpinned).is_none());
    }
}
