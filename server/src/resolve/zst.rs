//! Objects whose name ends in `.zst`, and of which no manifest says anything.
//!
//! Their size has to be known before they are planned, so it has to be declared: by a seek table at the
//! end, or by the frames. Objects up to [`SCANNED_BYTES_MAX`] are read whole for that, which finds every
//! frame; of larger ones without a seek table the first frame counts, and another one behind it is an
//! error when it is met. Frames up to [`FRAME_BYTES_MAX`] are decoded one by one, larger ones as streams.

use std::collections::HashSet;
use std::sync::Arc;

use forebay_codec::coding::{Coding, Frame};
use forebay_codec::decode::{
    DecodeError, DecodeErrorKind, FrameDecoder, StreamDecoder, WINDOW_LOG_MAX,
};
use forebay_codec::scan::{self, FRAME_HEAD_BYTES_MAX, FrameHead};
use futures::{StreamExt, TryStreamExt};

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
        let bad = |problem| ResolveError::Frames { key: object.key.as_str().to_owned(), problem };
        let coded = match self.seek_table(&object).await? {
            Some(frames) => coded(object.bytes, frames),
            None if object.bytes <= SCANNED_BYTES_MAX => {
                let headers = &self.resolver.headers;
                let _room = headers.room(object.bytes).await?;
                let bytes = self.read(&object, 0, object.bytes).await?;
                let (frames, _) = headers.parsed(bytes, scan::scan_whole).await?;
                coded(object.bytes, frames.map_err(bad)?)
            }
            None => {
                let head = self.read(&object, 0, FRAME_HEAD_BYTES_MAX as u64).await?;
                let head = scan::frame_head(&head).map_err(bad)?;
                let bytes = declared(&head).map_err(bad)?;
                Ok((bytes, Content::Stream(StreamCoding { stored_bytes: object.bytes })))
            }
        };
        let (bytes, content) = coded.map_err(bad)?;
        if bytes > CHECKPOINT_BYTES_MAX {
            return Err(self.limit("bytes", CHECKPOINT_BYTES_MAX));
        }
        Ok(coded_object(object, name, (bytes, content)))
    }

    /// The frames that the seek table at the end of an object lists, if there is one.
    async fn seek_table(&self, object: &Object) -> Result<Option<Vec<Frame>>, ResolveError> {
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
        let (frames, _) = self.resolver.headers.parsed(tail, parse).await?;
        frames.map(Some).map_err(bad)
    }

    /// A range of what an object decodes to: of its beginning, where it can only be decoded from there.
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
                let (decoded, _) = self.resolver.headers.parsed(bytes, decode).await?;
                decoded.map_err(bad)
            }
            Content::Stream(stream) => {
                let beginning = self.read_beginning(object, stream.stored_bytes, end).await?;
                let begin = usize::try_from(begin).unwrap_or(usize::MAX);
                Ok(beginning.into_iter().skip(begin).collect())
            }
        }
    }

    /// The first bytes that a stream decodes to, as many as there are. A stream that is longer than what
    /// it decodes to is not read for ever.
    async fn read_beginning(
        &self,
        object: &Object,
        stored_bytes: u64,
        plain_bytes: u64,
    ) -> Result<Vec<u8>, ResolveError> {
        let bad = |problem| ResolveError::Frames { key: object.key.as_str().to_owned(), problem };
        let wanted = usize::try_from(plain_bytes).unwrap_or(usize::MAX);
        let most = stored_bytes.min(2 * plain_bytes + STREAM_STEP_BYTES);
        let mut stored = Vec::new();
        loop {
            let at = stored.len() as u64;
            let upto = most.min(at + STREAM_STEP_BYTES.max(at));
            stored.extend(self.read(object, at, upto).await?);
            let decode = move |bytes: &[u8]| decode_beginning(bytes, wanted);
            let (decoded, back) = self.resolver.headers.parsed(stored, decode).await?;
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

/// How an object of such frames is decoded, and to how much.
fn coded(stored_bytes: u64, frames: Vec<Frame>) -> Result<(u64, Content), DecodeError> {
    let plain_bytes = frames.iter().map(|frame| frame.plain_bytes).sum();
    if frames.iter().any(|frame| frame.plain_bytes > FRAME_BYTES_MAX) {
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
