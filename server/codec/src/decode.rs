//! From stored bytes to plain ones.
//!
//! A [`FrameDecoder`] decodes exactly one frame of a [`Coding`] into exactly its plain bytes. What
//! the frame declares is checked against the coding before anything is decoded, so a bomb costs no
//! more than the size the caller made room for: nothing here writes outside `into`, and no memory
//! but the window (at most a frame's size) and one tile is taken.
//!
//! Frames without byte planes are decoded in place. Frames with planes are decoded tile by tile
//! into scratch memory and undone from there, while the tile is in the cache:
//!
//! ```text
//!   stored ──zstd──► window (small) ──► tile ──unsplit──► into
//! ```
//!
//! A [`StreamDecoder`] decodes a frame that is too large for that, in pieces. Neither verifies a
//! digest: that is done where bytes become trusted. A frame's own checksum is verified if it has
//! one.

use std::fmt;

use zstd_safe::zstd_sys::ZSTD_ErrorCode;
use zstd_safe::{DCtx, DParameter, ErrorCode, InBuffer, OutBuffer};

use crate::coding::{Coding, Frame, TILE_BYTES_MAX};
use crate::{planes, scan};

/// The largest window of a frame, unless the frame itself is larger: 128 MiB, what `zstd -d` takes
/// too.
pub const WINDOW_LOG_MAX: u32 = 27;

/// The smallest window there is.
const WINDOW_LOG_MIN: u32 = 10;

/// Why bytes could not be decoded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("at byte {stored_offset} of what is stored: {kind}")]
pub struct DecodeError {
    /// What is wrong.
    pub kind: DecodeErrorKind,
    /// Where: the beginning of the frame, or what of a stream was consumed.
    pub stored_offset: u64,
}

/// What can be wrong with stored bytes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DecodeErrorKind {
    /// Other bytes than those of a zstd frame.
    #[error("this is no zstd frame")]
    NotAFrame,
    /// The bytes end before the frame does.
    #[error("the frame is cut off")]
    Truncated,
    /// There are bytes after the frame.
    #[error("{0} bytes follow the frame")]
    TrailingBytes(u64),
    /// The frame declares another size than it should have.
    #[error("the frame declares {declared} bytes, it should hold {expected}")]
    DeclaredSize {
        /// What it says.
        declared: u64,
        /// What it should say.
        expected: u64,
    },
    /// The frame does not say how much it holds.
    #[error("the frame does not declare its size")]
    SizeUnknown,
    /// The frame held less than it should.
    #[error("the frame held {held} bytes of {expected}")]
    Short {
        /// What came out.
        held: u64,
        /// What should have.
        expected: u64,
    },
    /// The frame holds more than it should; nothing was decoded beyond that.
    #[error("the frame holds more than the {0} bytes it should")]
    Long(u64),
    /// The frame wants more memory than it may have.
    #[error("the frame wants a window larger than {0} bytes")]
    Window(u64),
    /// The frame needs a dictionary; there are none.
    #[error("the frame needs a dictionary")]
    Dictionary,
    /// The content does not match the frame's checksum.
    #[error("the frame's checksum does not match its content")]
    Checksum,
    /// Anything else that zstd finds wrong.
    #[error("the frame is corrupt: {0}")]
    Corrupt(&'static str),
    /// What is wrong with a seek table.
    #[error("the seek table {0}")]
    SeekTable(&'static str),
    /// More frames than there may be.
    #[error("more than {0} frames")]
    Frames(usize),
    /// Memory that the caller gives has the wrong size, or there is no such frame.
    #[error("{what}: {given} given, {expected} expected")]
    Caller {
        /// Of what.
        what: &'static str,
        /// As it is.
        given: u64,
        /// As it should be.
        expected: u64,
    },
    /// There is no memory for a decoder.
    #[error("no memory for a decoder")]
    Memory,
}

impl DecodeErrorKind {
    /// At a place.
    pub(crate) fn at(self, stored_offset: u64) -> DecodeError {
        DecodeError { kind: self, stored_offset }
    }
}

/// What an error of the library means, for a frame that should hold `expected` bytes.
fn kind_of(code: ErrorCode, expected: u64) -> DecodeErrorKind {
    let is = |kind| zstd_safe::is_error_kind(code, kind);
    if is(ZSTD_ErrorCode::ZSTD_error_checksum_wrong) {
        DecodeErrorKind::Checksum
    } else if is(ZSTD_ErrorCode::ZSTD_error_dstSize_tooSmall) {
        DecodeErrorKind::Long(expected)
    } else if is(ZSTD_ErrorCode::ZSTD_error_srcSize_wrong) {
        DecodeErrorKind::Truncated
    } else if is(ZSTD_ErrorCode::ZSTD_error_dictionary_wrong) {
        DecodeErrorKind::Dictionary
    } else if is(ZSTD_ErrorCode::ZSTD_error_prefix_unknown) {
        DecodeErrorKind::NotAFrame
    } else if is(ZSTD_ErrorCode::ZSTD_error_memory_allocation) {
        DecodeErrorKind::Memory
    } else {
        DecodeErrorKind::Corrupt(zstd_safe::get_error_name(code))
    }
}

/// Decodes frames, one at a time. One per thread: it keeps a context and a tile of memory.
pub struct FrameDecoder {
    context: DCtx<'static>,
    tile: Vec<u8>,
}

impl fmt::Debug for FrameDecoder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FrameDecoder").field("memory_bytes", &self.memory_bytes()).finish()
    }
}

impl FrameDecoder {
    /// A decoder with a context of its own.
    pub fn new() -> Result<Self, DecodeError> {
        let context = DCtx::try_create().ok_or_else(|| DecodeErrorKind::Memory.at(0))?;
        Ok(Self { context, tile: Vec::new() })
    }

    /// What it holds: a context, a window, a tile.
    pub fn memory_bytes(&self) -> usize {
        self.context.sizeof() + self.tile.capacity()
    }

    /// Decodes frame number `frame` of `coding` from exactly its stored bytes into exactly its
    /// plain ones. After an error `into` holds anything.
    pub fn decode(
        &mut self,
        coding: &Coding,
        frame: usize,
        stored: &[u8],
        into: &mut [u8],
    ) -> Result<(), DecodeError> {
        let known = coding.frames().len() as u64;
        let frame = coding.frames().get(frame).ok_or_else(|| {
            let given = frame as u64;
            DecodeErrorKind::Caller { what: "frame number", given, expected: known }.at(0)
        })?;
        let at = frame.stored_offset;
        let room = into.len();
        let planed = planes::pieces(coding.planes(), frame.plain_offset, room).next().is_some();
        // In place, the window is what was decoded already. By tiles it takes memory of its own.
        let window_max = match planed {
            false => frame.plain_bytes.max(1 << WINDOW_LOG_MAX),
            true => 1 << window_log(frame.plain_bytes),
        };
        check(frame, stored, room as u64, window_max).map_err(|kind| kind.at(at))?;
        let decoded = match planed {
            false => self.in_place(stored, into),
            true => self.by_tiles(coding, frame, stored, into),
        };
        decoded.map_err(|kind| kind.at(at))
    }

    fn in_place(&mut self, stored: &[u8], into: &mut [u8]) -> Result<(), DecodeErrorKind> {
        let expected = into.len() as u64;
        let held =
            self.context.decompress(into, stored).map_err(|code| kind_of(code, expected))? as u64;
        if held == expected { Ok(()) } else { Err(DecodeErrorKind::Short { held, expected }) }
    }

    fn by_tiles(
        &mut self,
        coding: &Coding,
        frame: &Frame,
        stored: &[u8],
        into: &mut [u8],
    ) -> Result<(), DecodeErrorKind> {
        let expected = frame.plain_bytes;
        let failed = |code| kind_of(code, expected);
        let tile_bytes = coding.tile().min(TILE_BYTES_MAX) as usize;
        let Self { context, tile } = self;
        context.init().map_err(failed)?;
        context.set_parameter(DParameter::WindowLogMax(window_log(expected))).map_err(failed)?;
        tile.resize(tile_bytes, 0);
        let mut input = InBuffer::around(stored);
        let mut offset = frame.plain_offset;
        let mut finished = false;
        for plain in into.chunks_mut(tile_bytes) {
            let short = |held: usize| {
                let held = offset - frame.plain_offset + held as u64;
                DecodeErrorKind::Short { held, expected }
            };
            let mut fill = |room: &mut [u8]| match pull(context, &mut input, room) {
                Ok(Pulled { bytes, .. }) if bytes < room.len() => Err(short(bytes)),
                Ok(Pulled { finished, .. }) => Ok(finished),
                Err(code) => Err(failed(code)),
            };
            if planes::pieces(coding.planes(), offset, plain.len()).next().is_none() {
                finished = fill(plain)?;
            } else {
                let reordered = &mut tile[..plain.len()];
                finished = fill(reordered)?;
                planes::unsplit(coding.planes(), offset, reordered, plain);
            }
            offset += plain.len() as u64;
        }
        // What is left is the end of the last block, and the checksum.
        while !finished {
            let before = input.pos();
            finished = pull(context, &mut input, &mut []).map_err(failed)?.finished;
            if !finished && input.pos() == before {
                return Err(DecodeErrorKind::Long(expected));
            }
        }
        Ok(())
    }
}

/// What came out of a context.
struct Pulled {
    bytes: usize,
    finished: bool,
}

/// Fills `room` as far as the frame goes.
fn pull(
    context: &mut DCtx<'static>,
    input: &mut InBuffer<'_>,
    room: &mut [u8],
) -> Result<Pulled, ErrorCode> {
    let mut output = OutBuffer::around(room);
    loop {
        let before = (input.pos(), output.pos());
        let finished = context.decompress_stream(&mut output, input)? == 0;
        let stuck = before == (input.pos(), output.pos());
        if finished || stuck || output.pos() == output.capacity() {
            return Ok(Pulled { bytes: output.pos(), finished });
        }
    }
}

/// The log of the window that a frame of so many bytes may have.
fn window_log(plain_bytes: u64) -> u32 {
    let bytes = plain_bytes.checked_next_power_of_two().unwrap_or(1 << 63);
    bytes.trailing_zeros().clamp(WINDOW_LOG_MIN, WINDOW_LOG_MAX)
}

/// What a frame says of itself against what it should be.
fn check(frame: &Frame, stored: &[u8], room: u64, window_max: u64) -> Result<(), DecodeErrorKind> {
    let caller = |what, given, expected| Err(DecodeErrorKind::Caller { what, given, expected });
    let expected = frame.plain_bytes;
    if stored.len() as u64 != frame.stored_bytes {
        return caller("stored bytes", stored.len() as u64, frame.stored_bytes);
    }
    if room != expected {
        return caller("room", room, expected);
    }
    let head = scan::head(stored)?;
    let scan::FrameHead { content, window, dictionary, skippable: None, .. } = head else {
        return Err(DecodeErrorKind::NotAFrame);
    };
    if dictionary != 0 {
        return Err(DecodeErrorKind::Dictionary);
    }
    if let Some(declared) = content.filter(|declared| *declared != expected) {
        return Err(DecodeErrorKind::DeclaredSize { declared, expected });
    }
    if window > window_max {
        return Err(DecodeErrorKind::Window(window_max));
    }
    match frame.stored_bytes - scan::body(stored, &head)?.stored_bytes {
        0 => Ok(()),
        more => Err(DecodeErrorKind::TrailingBytes(more)),
    }
}

/// What one call of a [`StreamDecoder`] did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Step {
    /// Bytes of the input that were used.
    pub consumed: usize,
    /// Bytes of the output that were written.
    pub produced: usize,
    /// Whether the frame ended here. The next call begins the next frame.
    pub finished: bool,
}

/// Decodes frames of any size in pieces, one after the other; skippable ones give nothing.
pub struct StreamDecoder {
    context: DCtx<'static>,
    window_log_max: u32,
    consumed: u64,
}

impl fmt::Debug for StreamDecoder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StreamDecoder")
            .field("memory_bytes", &self.memory_bytes())
            .field("consumed", &self.consumed)
            .finish()
    }
}

impl StreamDecoder {
    /// Takes windows up to `1 << window_log_max`, and never more than [`WINDOW_LOG_MAX`].
    pub fn new(window_log_max: u32) -> Result<Self, DecodeError> {
        let mut context = DCtx::try_create().ok_or_else(|| DecodeErrorKind::Memory.at(0))?;
        let window_log_max = window_log_max.clamp(WINDOW_LOG_MIN, WINDOW_LOG_MAX);
        context
            .set_parameter(DParameter::WindowLogMax(window_log_max))
            .map_err(|code| kind_of(code, 0).at(0))?;
        Ok(Self { context, window_log_max, consumed: 0 })
    }

    /// What it holds: a context and a window.
    pub fn memory_bytes(&self) -> usize {
        self.context.sizeof()
    }

    /// Decodes as much as there is input for and room in `output`. Nothing more comes out of an
    /// input that is used up unless the step filled `output`. An end of input where no frame
    /// [`finished`](Step::finished) is a truncation.
    pub fn decode(&mut self, input: &[u8], output: &mut [u8]) -> Result<Step, DecodeError> {
        let mut given = InBuffer::around(input);
        match pull(&mut self.context, &mut given, output) {
            Ok(Pulled { bytes: produced, finished }) => {
                let consumed = given.pos();
                self.consumed += consumed as u64;
                Ok(Step { consumed, produced, finished })
            }
            Err(code) => Err(self.kind_of(code).at(self.consumed + given.pos() as u64)),
        }
    }

    /// Forgets the frame it is in, and begins with the next bytes.
    pub fn reset(&mut self) -> Result<(), DecodeError> {
        self.consumed = 0;
        self.context.init().map(drop).map_err(|code| self.kind_of(code).at(0))
    }

    fn kind_of(&self, code: ErrorCode) -> DecodeErrorKind {
        let window = ZSTD_ErrorCode::ZSTD_error_frameParameter_windowTooLarge;
        match zstd_safe::is_error_kind(code, window) {
            true => DecodeErrorKind::Window(1 << self.window_log_max),
            false => kind_of(code, 0),
        }
    }
}
