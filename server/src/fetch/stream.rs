//! Objects that can only be decoded from their beginning: one decoder each, which several chunks
//! use in turn.
//!
//! A decoder stands somewhere in its object. Of those who want a chunk, the one whose chunk comes
//! next after that place has the turn. Plans are in the order of the bytes, so that is nearly
//! everybody. For a chunk behind every decoder another one begins, up to [`DECODERS_OF_ONE`]; then
//! one that nobody ahead wants begins anew, and after [`TURNS_AHEAD_MAX`] turns of others any does.
//! Whoever has the turn owns the decoder: one that is dropped while a worker has it is lost, and
//! the next one begins anew.
//!
//! At most [`STREAMS_MAX`] objects have decoders. Those that nobody waits for make room, longest
//! unused first; if there are none, a newcomer waits. Beyond the last [`IDLE_MAX`] they go by
//! themselves, and a decoder goes when it has come to the end of its object.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use forebay_codec::decode::{DecodeError, DecodeErrorKind, StreamDecoder, WINDOW_LOG_MAX};
use futures::future::BoxFuture;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::cpu::NodeWorkers;
use crate::staging::{Staged, StagingError, StagingShare};

/// Objects with decoders at one time. A decoder takes 8 MiB of window as a rule, 128 MiB at most.
const STREAMS_MAX: usize = 16;

/// Decoders of one object, while there are not more than [`STREAMS_MAX`] in all.
const DECODERS_OF_ONE: usize = 2;

/// Turns of others that a chunk behind every decoder waits for at most.
const TURNS_AHEAD_MAX: u32 = 16;

/// Objects that keep their decoders although nobody wants a chunk of them.
const IDLE_MAX: usize = 4;

/// Decoded by a worker at a time: then others have their turn.
const JOB_BYTES: usize = 16 << 20;

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
    /// Where those decoders will stand that somebody has.
    lent: Vec<u64>,
    /// Those that nobody has.
    idle: Vec<Decoder>,
    /// Turns since the first chunk that is wanted has been behind all of them.
    passed: u32,
    last_use: u64,
}

/// Whose turn it is at a track.
enum Turned {
    /// Somebody else's.
    NotYet,
    /// The caller's, with this decoder or a new one.
    Yes(Option<Decoder>),
}

impl Track {
    /// The places of all decoders, and of those that are lent where they will be.
    fn places(&self) -> impl Iterator<Item = u64> {
        self.lent.iter().copied().chain(self.idle.iter().map(|decoder| decoder.plain_at))
    }

    /// The first chunk that is wanted, if it lies behind all decoders.
    fn behind(&self) -> Option<u64> {
        let first = *self.wanted.first_key_value()?.0;
        self.places().all(|place| place > first).then_some(first)
    }

    /// Whether it is the turn of the chunk that begins there.
    fn turn_of(&mut self, begin: u64, may_begin: bool) -> Turned {
        let behind = self.behind();
        if behind == Some(begin) {
            return self.turn_behind(may_begin);
        }
        let waited = behind.is_some() && self.passed >= TURNS_AHEAD_MAX;
        let place = self.places().filter(|place| *place <= begin).max();
        let Some(place) = place.filter(|_| !waited) else { return Turned::NotYet };
        let next = self.wanted.range(place..).next().map(|(next, _)| *next);
        let at = self.idle.iter().position(|decoder| decoder.plain_at == place);
        let Some(at) = at.filter(|_| next == Some(begin)) else { return Turned::NotYet };
        self.passed = if behind.is_some() { self.passed + 1 } else { 0 };
        Turned::Yes(Some(self.idle.swap_remove(at)))
    }

    /// The same for the first chunk, which lies behind all decoders.
    fn turn_behind(&mut self, may_begin: bool) -> Turned {
        let count = self.lent.len() + self.idle.len();
        if count == 0 || (count < DECODERS_OF_ONE && may_begin) {
            self.passed = 0;
            return Turned::Yes(None);
        }
        let waited = self.passed >= TURNS_AHEAD_MAX;
        let unwanted = |decoder: &Decoder| self.wanted.range(decoder.plain_at..).next().is_none();
        let Some(at) = self.idle.iter().position(|decoder| waited || unwanted(decoder)) else {
            return Turned::NotYet;
        };
        self.passed = 0;
        self.idle.swap_remove(at);
        Turned::Yes(None)
    }

    fn is_idle(&self) -> bool {
        self.lent.is_empty() && self.wanted.is_empty()
    }
}

impl Tracks {
    fn decoders(&self) -> usize {
        self.by_object.values().map(|track| track.lent.len() + track.idle.len()).sum()
    }

    /// Forgets the object that was not used for longest, of those that nobody wants.
    fn forget_idle(&mut self) -> bool {
        let idle = self.by_object.iter().filter(|(_, track)| track.is_idle());
        let oldest = idle.min_by_key(|(_, track)| track.last_use).map(|(key, _)| *key);
        oldest.is_some_and(|oldest| self.by_object.remove(&oldest).is_some())
    }

    /// Forgets what nobody needs after a change of one object's track.
    fn tidy(&mut self, key: &StreamKey) {
        let over = |track: &Track| track.is_idle() && track.idle.is_empty();
        if self.by_object.get(key).is_some_and(over) {
            self.by_object.remove(key);
        }
        while self.by_object.values().filter(|track| track.is_idle()).count() > IDLE_MAX {
            self.forget_idle();
        }
    }
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

    /// Decodes what was read into `out`, which begins at `begin` of the object. What comes before
    /// is decoded and forgotten. It pauses after [`JOB_BYTES`].
    fn advance(
        &mut self,
        begin: u64,
        out: &mut [u8],
        filled: usize,
    ) -> Result<Advanced, DecodeError> {
        let mut forgotten = [0; 16 << 10];
        let mut done = Advanced { filled, paused: false };
        let (mut used, mut left) = (0, JOB_BYTES);
        while done.filled < out.len() && !done.paused {
            let before = usize::try_from(begin.saturating_sub(self.plain_at)).unwrap_or(usize::MAX);
            let room = match before {
                0 => out.get_mut(done.filled..out.len().min(done.filled + left)),
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
            done.filled += if before == 0 { step.produced } else { 0 };
            self.between_frames = step.finished;
            if used == self.rest.len() && step.produced < room_bytes {
                break;
            }
            left = left.saturating_sub(step.produced);
            done.paused = left == 0 && done.filled < out.len();
        }
        self.rest.drain(..used);
        Ok(done)
    }

    /// The same, and the end, if this is it.
    fn advance_to(
        &mut self,
        begin: u64,
        out: &mut [u8],
        filled: usize,
        end: Option<u64>,
    ) -> Result<Advanced, DecodeError> {
        let done = self.advance(begin, out, filled)?;
        if let Some(plain_bytes) = end.filter(|_| done.filled == out.len()) {
            self.end(plain_bytes)?;
        }
        Ok(done)
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

/// What a worker has done at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Advanced {
    /// Bytes of the output that are there.
    filled: usize,
    /// Whether there may be more without reading more.
    paused: bool,
}

/// The turn at an object's decoder. Dropping it gives back the decoder that is in it.
struct Turn<'a> {
    streams: &'a Streams,
    key: StreamKey,
    /// Where the decoder will stand.
    end: u64,
    decoder: Option<Decoder>,
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
    /// There is no memory for it.
    Staging(StagingError),
    /// The daemon is going away.
    Stopped(crate::cpu::Stopped),
}

impl Streams {
    pub(super) fn new(workers: Arc<NodeWorkers>) -> Self {
        Self { workers, tracks: Mutex::default(), changed: Notify::new() }
    }

    /// Decodes a piece of an object, when its turn has come; and when that was. `read` brings what
    /// the store has, some ranges side by side.
    pub(super) async fn piece<E>(
        &self,
        piece: Piece<'_>,
        read: &Read<'_, E>,
    ) -> Result<(Staged, Instant), StreamError<E>> {
        let Piece { key, range, plain_bytes, stored_bytes, staging } = piece;
        let bytes = usize::try_from(range.end - range.start).unwrap_or(usize::MAX);
        let mut turn = self.turn(key, range.clone()).await;
        let turned = Instant::now();
        let (mut out, mut filled) = (staging.buffer(bytes).map_err(StreamError::Staging)?, 0);
        let (begin, is_last) = (range.start, range.end == plain_bytes);
        let end = is_last.then_some(plain_bytes);
        loop {
            let mut decoder = match turn.decoder.take() {
                Some(decoder) => decoder,
                None => Decoder::new().map_err(StreamError::Decode)?,
            };
            let work = move || {
                let advanced = decoder.advance_to(begin, out.as_mut_slice(), filled, end);
                (decoder, out, advanced)
            };
            let (decoder, buffer, advanced) =
                self.workers.run(None, work).await.map_err(StreamError::Stopped)?;
            let Advanced { filled: now, paused } = advanced.map_err(StreamError::Decode)?;
            (out, filled) = (buffer, now);
            let all_read = decoder.stored_at == stored_bytes;
            let whole = all_read && decoder.rest.is_empty() && decoder.between_frames;
            if filled == bytes && is_last && whole {
                return Ok((out, turned));
            }
            let stored_at = decoder.stored_at;
            // In the turn it is not lost if this piece is given up while it is read.
            let decoder = turn.decoder.insert(decoder);
            if filled == bytes && !is_last {
                return Ok((out, turned));
            }
            if paused {
                continue;
            }
            if all_read {
                turn.decoder = None;
                return Err(StreamError::Decode(at(DecodeErrorKind::Truncated, stored_bytes)));
            }
            let (more, end) = read_more(stored_at..stored_bytes, read).await?;
            decoder.rest.extend(more.into_iter().flatten());
            decoder.stored_at = end;
        }
    }

    async fn turn(&self, key: StreamKey, range: Range<u64>) -> Turn<'_> {
        let begin = range.start;
        let mut want = None;
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if want.is_none() && self.want(key, begin) {
                want = Some(Want { streams: self, key, begin });
            }
            if want.is_some()
                && let Some(turn) = self.take_turn(key, range.clone())
            {
                return turn;
            }
            changed.await;
        }
    }

    /// Notes that a chunk is wanted; not if there are too many objects.
    fn want(&self, key: StreamKey, begin: u64) -> bool {
        let mut tracks = self.lock();
        let is_full = tracks.by_object.len() >= STREAMS_MAX;
        if !tracks.by_object.contains_key(&key) && is_full && !tracks.forget_idle() {
            return false;
        }
        *tracks.by_object.entry(key).or_default().wanted.entry(begin).or_default() += 1;
        true
    }

    fn take_turn(&self, key: StreamKey, range: Range<u64>) -> Option<Turn<'_>> {
        let mut tracks = self.lock();
        tracks.uses += 1;
        let (uses, may_begin) = (tracks.uses, tracks.decoders() < STREAMS_MAX);
        let track = tracks.by_object.get_mut(&key)?;
        let Turned::Yes(decoder) = track.turn_of(range.start, may_begin) else { return None };
        track.lent.push(range.end);
        track.last_use = uses;
        Some(Turn { streams: self, key, end: range.end, decoder })
    }

    fn lock(&self) -> MutexGuard<'_, Tracks> {
        self.tracks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, key: &StreamKey, change: impl FnOnce(&mut Track)) {
        let mut tracks = self.lock();
        if let Some(track) = tracks.by_object.get_mut(key) {
            change(track);
        }
        tracks.tidy(key);
        drop(tracks);
        self.changed.notify_waiters();
    }
}

/// Reads the next ranges; what they hold, and where they end.
async fn read_more<E>(
    more: Range<u64>,
    read: &Read<'_, E>,
) -> Result<(Vec<Vec<u8>>, u64), StreamError<E>> {
    let begins = (0..READS_AT_ONCE).map(|n| more.start + n * READ_BYTES);
    let ranges = begins.filter(|begin| *begin < more.end);
    let ranges: Vec<_> = ranges.map(|begin| begin..more.end.min(begin + READ_BYTES)).collect();
    let end = ranges.last().map_or(more.start, |range| range.end);
    let reads = futures::future::try_join_all(ranges.into_iter().map(read));
    Ok((reads.await.map_err(StreamError::Read)?, end))
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let decoder = self.decoder.take();
        self.streams.change(&self.key, |track| {
            if let Some(at) = track.lent.iter().position(|end| *end == self.end) {
                track.lent.swap_remove(at);
            }
            // Two at one place are one too many.
            let is_new = |decoder: &Decoder| track.places().all(|at| at != decoder.plain_at);
            if let Some(decoder) = decoder.filter(is_new) {
                track.idle.push(decoder);
            }
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

#[cfg(test)]
#[path = "stream_tests.rs"]
mod tests;
