//! Objects that can only be decoded from their beginning: one decoder each, which several chunks use in
//! turn.
//!
//! A decoder stands somewhere in its object. Of those who want a chunk, the one whose chunk comes next
//! after that place has the turn; if there is none, the first one has, and the decoder begins anew. Plans
//! are in the order of the bytes, so that is rare. Whoever has the turn owns the decoder: dropped with
//! it, a decoder is lost, and the next one begins anew.
//!
//! At most [`STREAMS_MAX`] objects have a decoder. Those that nobody waits for make room, longest unused
//! first; if there are none, a newcomer waits.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use forebay_codec::decode::{DecodeError, DecodeErrorKind, StreamDecoder, WINDOW_LOG_MAX};
use futures::future::BoxFuture;
use tokio::sync::Notify;

use crate::cpu::NodeWorkers;
use crate::staging::{Staged, StagingShare};

/// Decoders at one time: each takes 8 MiB of window as a rule, 128 MiB at most.
const STREAMS_MAX: usize = 16;

/// Read from the origin at a time...
pub(super) const READ_BYTES: u64 = 1 << 20;

/// ... and so many of them side by side.
pub(super) const READS_AT_ONCE: u64 = 4;

/// What an object that is one stream is known by.
type StreamKey = [u8; 32];

/// See the module's head.
#[derive(Debug)]
pub(super) struct Streams {
    workers: Arc<NodeWorkers>,
    tracks: Mutex<Tracks>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct Tracks {
    by_object: HashMap<StreamKey, Track>,
    uses: u64,
}

#[derive(Debug, Default)]
struct Track {
    /// Where the chunks begin that are wanted, and by how many.
    wanted: BTreeMap<u64, usize>,
    busy: bool,
    /// Here while nobody has it.
    decoder: Option<Box<Decoder>>,
    last_use: u64,
}

/// A decoder and where it stands.
struct Decoder {
    stream: StreamDecoder,
    /// The next byte of the object that comes out.
    plain_at: u64,
    /// The next byte of what is stored that has to be read.
    stored_at: u64,
    /// Read and not yet used.
    rest: Vec<u8>,
    /// Whether no frame is open.
    between_frames: bool,
}

impl std::fmt::Debug for Decoder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Decoder").field("plain_at", &self.plain_at).finish_non_exhaustive()
    }
}

impl Decoder {
    fn new() -> Result<Self, DecodeError> {
        let stream = StreamDecoder::new(WINDOW_LOG_MAX)?;
        Ok(Self { stream, plain_at: 0, stored_at: 0, rest: Vec::new(), between_frames: true })
    }

    /// Decodes what was read into `out`, which begins at `begin` of the object; how much of it is
    /// there. What comes before is decoded and forgotten.
    fn advance(&mut self, begin: u64, out: &mut [u8], filled: usize) -> Result<usize, DecodeError> {
        let mut forgotten = [0; 16 << 10];
        let (mut used, mut filled) = (0, filled);
        while filled < out.len() {
            let before = usize::try_from(begin.saturating_sub(self.plain_at)).unwrap_or(usize::MAX);
            let room = match before {
                0 => out.get_mut(filled..),
                before => forgotten.get_mut(..before.min(16 << 10)),
            };
            let room = room.unwrap_or_default();
            let room_bytes = room.len();
            let input = self.rest.get(used..).unwrap_or_default();
            let step = self.stream.decode(input, room)?;
            if step.consumed == 0 && step.produced == 0 && !input.is_empty() {
                return Err(at(DecodeErrorKind::Corrupt("nothing comes of it"), self.stored_at));
            }
            used += step.consumed;
            self.plain_at += step.produced as u64;
            filled += if before == 0 { step.produced } else { 0 };
            self.between_frames = step.finished;
            if used == self.rest.len() && step.produced < room_bytes {
                break;
            }
        }
        self.rest.drain(..used);
        Ok(filled)
    }

    /// The same, and the end, if this is it.
    fn advance_to(
        &mut self,
        begin: u64,
        out: &mut [u8],
        filled: usize,
        end: Option<u64>,
    ) -> Result<usize, DecodeError> {
        let filled = self.advance(begin, out, filled)?;
        if let Some(plain_bytes) = end.filter(|_| filled == out.len()) {
            self.end(plain_bytes)?;
        }
        Ok(filled)
    }

    /// Checks that nothing comes after the last byte: what is left are checksums and empty frames.
    fn end(&mut self, plain_bytes: u64) -> Result<(), DecodeError> {
        let mut more = [0];
        let mut used = 0;
        while let Some(input) = self.rest.get(used..).filter(|input| !input.is_empty()) {
            let step = self.stream.decode(input, &mut more)?;
            if step.produced > 0 {
                return Err(at(DecodeErrorKind::Long(plain_bytes), self.stored_at));
            }
            used += step.consumed;
            self.between_frames = step.finished;
            if step.consumed == 0 {
                break;
            }
        }
        self.rest.drain(..used);
        Ok(())
    }
}

fn at(kind: DecodeErrorKind, stored_offset: u64) -> DecodeError {
    DecodeError { kind, stored_offset }
}

/// The turn at an object's decoder. Dropping it loses the decoder.
struct Turn<'a> {
    streams: &'a Streams,
    key: StreamKey,
    decoder: Option<Box<Decoder>>,
}

/// A chunk that is wanted. Dropping it gives that up.
struct Want<'a> {
    streams: &'a Streams,
    key: StreamKey,
    begin: u64,
}

/// What is wanted of an object, and where it goes.
pub(super) struct Piece<'a> {
    /// The object.
    pub(super) key: StreamKey,
    /// Which bytes of what it decodes to.
    pub(super) range: Range<u64>,
    /// Bytes of that.
    pub(super) plain_bytes: u64,
    /// Bytes of what the store has.
    pub(super) stored_bytes: u64,
    /// Memory for them.
    pub(super) staging: &'a StagingShare,
}

/// Reads a range of what the store has.
pub(super) type Read<'a, E> = dyn Fn(Range<u64>) -> BoxFuture<'a, Result<Vec<u8>, E>> + Sync + 'a;

/// Why a piece cannot be had.
#[derive(Debug)]
pub(super) enum StreamError<E> {
    /// It could not be read.
    Read(E),
    /// It could not be decoded.
    Decode(DecodeError),
    /// The daemon is going away.
    Stopped(crate::cpu::Stopped),
}

impl Streams {
    pub(super) fn new(workers: Arc<NodeWorkers>) -> Self {
        Self { workers, tracks: Mutex::default(), changed: Notify::new() }
    }

    /// Decodes a piece of an object, when its turn has come. `read` brings what the store has, some
    /// ranges side by side.
    pub(super) async fn piece<E>(
        &self,
        piece: Piece<'_>,
        read: &Read<'_, E>,
    ) -> Result<Staged, StreamError<E>> {
        let Piece { key, range, plain_bytes, stored_bytes, staging } = piece;
        let bytes = usize::try_from(range.end - range.start).unwrap_or(usize::MAX);
        let mut turn = self.turn(key, range.start).await;
        let mut decoder = match turn.decoder.take() {
            Some(decoder) if decoder.plain_at <= range.start => decoder,
            _ => Box::new(Decoder::new().map_err(StreamError::Decode)?),
        };
        let (mut out, mut filled) = (staging.buffer(bytes), 0);
        let is_last = range.end == plain_bytes;
        loop {
            let begin = range.start;
            let end = is_last.then_some(plain_bytes);
            let work = move || {
                let advanced = decoder.advance_to(begin, out.as_mut_slice(), filled, end);
                (decoder, out, advanced)
            };
            let (back, buffer, advanced) =
                self.workers.run(None, work).await.map_err(StreamError::Stopped)?;
            (decoder, out) = (back, buffer);
            filled = advanced.map_err(StreamError::Decode)?;
            let whole = decoder.stored_at == stored_bytes && decoder.rest.is_empty();
            if filled == bytes && (!is_last || (whole && decoder.between_frames)) {
                turn.give_back(decoder);
                return Ok(out);
            }
            if decoder.stored_at == stored_bytes {
                let cut = at(DecodeErrorKind::Truncated, stored_bytes);
                return Err(StreamError::Decode(cut));
            }
            let more = decoder.stored_at..stored_bytes;
            decoder.stored_at = self.read_more(&mut decoder.rest, more, read).await?;
        }
    }

    /// Reads the next ranges; where they end.
    async fn read_more<E>(
        &self,
        rest: &mut Vec<u8>,
        more: Range<u64>,
        read: &Read<'_, E>,
    ) -> Result<u64, StreamError<E>> {
        let begins = (0..READS_AT_ONCE).map(|n| more.start + n * READ_BYTES);
        let ranges = begins.filter(|begin| *begin < more.end);
        let ranges: Vec<_> = ranges.map(|begin| begin..more.end.min(begin + READ_BYTES)).collect();
        let end = ranges.last().map_or(more.start, |range| range.end);
        let reads = futures::future::try_join_all(ranges.into_iter().map(read));
        for bytes in reads.await.map_err(StreamError::Read)? {
            rest.extend_from_slice(&bytes);
        }
        Ok(end)
    }

    async fn turn(&self, key: StreamKey, begin: u64) -> Turn<'_> {
        let mut want = None;
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if want.is_none() && self.want(key, begin) {
                want = Some(Want { streams: self, key, begin });
            }
            if want.is_some()
                && let Some(turn) = self.take_turn(key, begin)
            {
                return turn;
            }
            changed.await;
        }
    }

    /// Notes that a chunk is wanted; not if there are too many objects.
    fn want(&self, key: StreamKey, begin: u64) -> bool {
        let mut tracks = self.lock();
        if !tracks.by_object.contains_key(&key) && tracks.by_object.len() >= STREAMS_MAX {
            let idle = |track: &Track| !track.busy && track.wanted.is_empty();
            let idle = tracks.by_object.iter().filter(|(_, track)| idle(track));
            let Some(oldest) = idle.min_by_key(|(_, track)| track.last_use).map(|(key, _)| *key)
            else {
                return false;
            };
            tracks.by_object.remove(&oldest);
        }
        *tracks.by_object.entry(key).or_default().wanted.entry(begin).or_default() += 1;
        true
    }

    fn take_turn(&self, key: StreamKey, begin: u64) -> Option<Turn<'_>> {
        let mut tracks = self.lock();
        tracks.uses += 1;
        let uses = tracks.uses;
        let track = tracks.by_object.get_mut(&key).filter(|track| !track.busy)?;
        let stands = track.decoder.as_ref().map_or(0, |decoder| decoder.plain_at);
        let next = track.wanted.range(stands..).next().or_else(|| track.wanted.first_key_value());
        if next.is_none_or(|(next, _)| *next != begin) {
            return None;
        }
        (track.busy, track.last_use) = (true, uses);
        Some(Turn { streams: self, key, decoder: track.decoder.take() })
    }

    fn lock(&self) -> MutexGuard<'_, Tracks> {
        self.tracks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, key: &StreamKey, change: impl FnOnce(&mut Track)) {
        let mut tracks = self.lock();
        if let Some(track) = tracks.by_object.get_mut(key) {
            change(track);
        }
        drop(tracks);
        self.changed.notify_waiters();
    }
}

impl Turn<'_> {
    fn give_back(mut self, decoder: Box<Decoder>) {
        self.decoder = Some(decoder);
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let decoder = self.decoder.take();
        self.streams.change(&self.key, |track| {
            track.busy = false;
            track.decoder = decoder;
        });
    }
}

impl Drop for Want<'_> {
    fn drop(&mut self) {
        self.streams.change(&self.key, |track| {
            let count = track.wanted.get(&self.begin).copied().unwrap_or(0);
            match count {
                0 | 1 => drop(track.wanted.remove(&self.begin)),
                many => drop(track.wanted.insert(self.begin, many - 1)),
            }
        });
    }
}
