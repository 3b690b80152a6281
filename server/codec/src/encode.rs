//! From plain bytes to stored ones.
//!
//! A [`FrameEncoder`] makes one zstd frame of one frame's plain bytes. Where plane runs cover it,
//! the bytes are reordered tile by tile (see [`planes`]) and every plane is made to begin a block
//! of its own, so that an exponent's code is never mixed with a mantissa's noise: the exponents get
//! Huffman codes and no matches, the noise is stored as it is, and the decoder copies it.
//!
//! Whether planes pay is a property of a tensor; [`FrameEncoder::measure`] tries both on samples.

use std::fmt;

use zstd_safe::zstd_sys::ZSTD_EndDirective;
use zstd_safe::{CCtx, CParameter, ErrorCode, InBuffer, OutBuffer, ParamSwitch, Strategy};

use crate::coding::{CodingError, Frame, PlaneRun, Width, check_tile};
use crate::planes::{self, Piece};
use crate::scan::{
    SEEK_FOOTER_BYTES, SEEK_FOOTER_MAGIC, SEEK_PLANED, SEEK_TABLE_MAGIC, SKIPPABLE_HEAD_BYTES,
};

/// Levels that zstd has; higher ones only cost time.
pub const LEVELS: std::ops::RangeInclusive<i32> = 1..=19;

/// The tile that decodes fastest: with the decoder's window it fits into 512 KiB of L2.
pub const TILE_BYTES: u32 = 128 << 10;

/// A plane of fewer bytes does not get a block of its own: its head and its code would cost more.
const OWN_BLOCK_BYTES: usize = 8 << 10;

/// Windows of frames with planes. A block has no more bytes than the window: a plane should fit
/// into one block, and a block's head should be no part of its size. No matches need a larger one.
const PLANES_WINDOW_LOG: std::ops::RangeInclusive<u32> = 14..=17;

/// Matches are looked for at every so many bytes of a frame with planes, which is nearly nowhere:
/// chance ones among exponents take more bits than Huffman codes, and twice the time to decode.
const PLANES_STRIDE_BYTES: u32 = 128 << 10;

/// Why bytes could not be encoded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EncodeError {
    /// There is no memory for an encoder.
    #[error("no memory for an encoder")]
    Memory,
    /// A level that zstd does not have.
    #[error("level {0} is none of 1 to 19")]
    Level(i32),
    /// A tile, or plane runs, that cannot be.
    #[error(transparent)]
    Coding(#[from] CodingError),
    /// A frame is too large for what should describe it.
    #[error("a frame of {0} bytes is too large")]
    TooLarge(u64),
    /// The library's own words.
    #[error("zstd: {0}")]
    Zstd(&'static str),
}

fn failed(code: ErrorCode) -> EncodeError {
    EncodeError::Zstd(zstd_safe::get_error_name(code))
}

/// What an encoder is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EncodeSettings {
    /// zstd's level, for frames without planes. Those with planes have no use for one.
    pub level: i32,
    /// Plain bytes of a tile.
    pub tile: u32,
}

impl Default for EncodeSettings {
    fn default() -> Self {
        Self { level: 1, tile: TILE_BYTES }
    }
}

/// What samples of a tensor take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Measured {
    /// As they are.
    pub raw_bytes: u64,
    /// Compressed as they are.
    pub whole_bytes: u64,
    /// Compressed as byte planes.
    pub planes_bytes: u64,
}

impl Measured {
    /// Whether the tensor should be stored as planes.
    pub fn planes_pay(&self) -> bool {
        self.planes_bytes < self.whole_bytes && self.planes_bytes < self.raw_bytes
    }
}

/// Encodes frames, one at a time. One per thread: it keeps contexts and a tile of memory.
pub struct FrameEncoder {
    settings: EncodeSettings,
    whole: CCtx<'static>,
    planed: CCtx<'static>,
    tile: Vec<u8>,
}

impl fmt::Debug for FrameEncoder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FrameEncoder")
            .field("settings", &self.settings)
            .field("memory_bytes", &self.memory_bytes())
            .finish()
    }
}

impl FrameEncoder {
    /// An encoder with contexts of its own.
    pub fn new(settings: EncodeSettings) -> Result<Self, EncodeError> {
        check_tile(settings.tile)?;
        if !LEVELS.contains(&settings.level) {
            return Err(EncodeError::Level(settings.level));
        }
        let whole = context(&[CParameter::CompressionLevel(settings.level)])?;
        let window_log = (settings.tile / 2).ilog2();
        let window_log = window_log.clamp(*PLANES_WINDOW_LOG.start(), *PLANES_WINDOW_LOG.end());
        let planed = context(&[
            CParameter::CompressionLevel(1),
            CParameter::Strategy(Strategy::ZSTD_fast),
            CParameter::WindowLog(window_log),
            CParameter::MinMatch(7),
            CParameter::HashLog(6),
            CParameter::TargetLength(PLANES_STRIDE_BYTES),
            CParameter::LiteralCompressionMode(ParamSwitch::Enable),
        ])?;
        Ok(Self { settings, whole, planed, tile: Vec::new() })
    }

    /// What it holds: contexts and a tile.
    pub fn memory_bytes(&self) -> usize {
        self.whole.sizeof() + self.planed.sizeof() + self.tile.capacity()
    }

    /// Appends one frame to `out`: `plain`, which begins at `plain_offset` of its object, with
    /// those of the object's `planes` that cover it. Gives the stored bytes. An object without
    /// bytes has no frames, so there is always something to encode.
    pub fn encode(
        &mut self,
        plain: &[u8],
        plain_offset: u64,
        planes: &[PlaneRun],
        out: &mut Vec<u8>,
    ) -> Result<u64, EncodeError> {
        let begin = out.len();
        let blocks = plain.len() / OWN_BLOCK_BYTES + 1;
        out.resize(begin + zstd_safe::compress_bound(plain.len()) + 4 * blocks, 0);
        let room = &mut out[begin..];
        let encoded = match planes::pieces(planes, plain_offset, plain.len()).next() {
            None => self.whole.compress2(room, plain).map_err(failed),
            Some(_) => self.by_tiles(plain, plain_offset, planes, room),
        };
        let stored = *encoded.as_ref().unwrap_or(&0);
        out.truncate(begin + stored);
        encoded.map(|stored| stored as u64)
    }

    fn by_tiles(
        &mut self,
        plain: &[u8],
        plain_offset: u64,
        planes: &[PlaneRun],
        room: &mut [u8],
    ) -> Result<usize, EncodeError> {
        let Self { settings, planed, tile, .. } = self;
        let tile_bytes = settings.tile as usize;
        planed.reset(zstd_safe::ResetDirective::SessionOnly).map_err(failed)?;
        planed.set_pledged_src_size(Some(plain.len() as u64)).map_err(failed)?;
        tile.resize(tile_bytes, 0);
        let mut blocks = Blocks { context: planed, output: OutBuffer::around(room), pending: 0 };
        let mut offset = plain_offset;
        for plain in plain.chunks(tile_bytes) {
            let reordered = &mut tile[..plain.len()];
            planes::split(planes, offset, plain, reordered);
            blocks.add_tile(reordered, planes::pieces(planes, offset, plain.len()))?;
            offset += plain.len() as u64;
        }
        blocks.end()
    }

    /// Compresses samples of a tensor of elements of `width`, with and without planes. Each sample
    /// begins with a whole element.
    pub fn measure(&mut self, width: Width, samples: &[&[u8]]) -> Result<Measured, EncodeError> {
        let mut measured = Measured { raw_bytes: 0, whole_bytes: 0, planes_bytes: 0 };
        let mut out = Vec::new();
        for sample in samples {
            let bytes = sample.len() as u64;
            measured.raw_bytes += bytes;
            measured.whole_bytes += self.encode(sample, 0, &[], &mut out)?;
            measured.planes_bytes +=
                self.encode(sample, 0, &[PlaneRun { offset: 0, bytes, width }], &mut out)?;
            out.clear();
        }
        Ok(measured)
    }
}

fn context(parameters: &[CParameter]) -> Result<CCtx<'static>, EncodeError> {
    let mut context = CCtx::try_create().ok_or(EncodeError::Memory)?;
    for parameter in parameters {
        context.set_parameter(*parameter).map_err(failed)?;
    }
    Ok(context)
}

/// Writes a frame whose blocks end where parts end.
struct Blocks<'a> {
    context: &'a mut CCtx<'static>,
    output: OutBuffer<'a, [u8]>,
    /// Bytes since a block was ended.
    pending: usize,
}

impl Blocks<'_> {
    /// Adds a tile, plane by plane.
    fn add_tile(
        &mut self,
        tile: &[u8],
        pieces: impl Iterator<Item = Piece>,
    ) -> Result<(), EncodeError> {
        let mut at = 0;
        for Piece { range, width } in pieces {
            self.add(&tile[at..range.start])?;
            at = range.end;
            let plane_bytes = range.len() / if width == Width::Two { 2 } else { 4 };
            tile[range].chunks(plane_bytes).try_for_each(|plane| self.add(plane))?;
        }
        self.add(&tile[at..])
    }

    /// Adds a part, in blocks of its own if it is large enough for that.
    fn add(&mut self, part: &[u8]) -> Result<(), EncodeError> {
        let own = part.len() >= OWN_BLOCK_BYTES;
        if own && self.pending > 0 {
            self.push(&[], ZSTD_EndDirective::ZSTD_e_flush)?;
        }
        self.pending += part.len();
        match own {
            true => self.push(part, ZSTD_EndDirective::ZSTD_e_flush),
            false => self.push(part, ZSTD_EndDirective::ZSTD_e_continue),
        }
    }

    fn push(&mut self, part: &[u8], end: ZSTD_EndDirective) -> Result<(), EncodeError> {
        let continues = end == ZSTD_EndDirective::ZSTD_e_continue;
        let mut input = InBuffer::around(part);
        loop {
            let left = self.context.compress_stream2(&mut self.output, &mut input, end);
            let left = left.map_err(failed)?;
            if input.pos() == part.len() && (continues || left == 0) {
                break;
            }
            if self.output.pos() == self.output.capacity() {
                return Err(EncodeError::TooLarge(part.len() as u64));
            }
        }
        if !continues {
            self.pending = 0;
        }
        Ok(())
    }

    fn end(mut self) -> Result<usize, EncodeError> {
        self.push(&[], ZSTD_EndDirective::ZSTD_e_end)?;
        Ok(self.output.pos())
    }
}

/// The seek table of an object that consists of these frames and nothing between them. It says
/// whether any of them is cut into byte planes: in a bit that the format leaves to its users, and
/// that other decoders do not look at.
pub fn seek_table(frames: &[Frame], planed: bool) -> Result<Vec<u8>, EncodeError> {
    let word = |number: u64| u32::try_from(number).map_err(|_wide| EncodeError::TooLarge(number));
    let body = 8 * frames.len() + SEEK_FOOTER_BYTES;
    let mut table = Vec::with_capacity(SKIPPABLE_HEAD_BYTES + body);
    table.extend(SEEK_TABLE_MAGIC.to_le_bytes());
    table.extend(word(body as u64)?.to_le_bytes());
    for frame in frames {
        table.extend(word(frame.stored_bytes)?.to_le_bytes());
        table.extend(word(frame.plain_bytes)?.to_le_bytes());
    }
    table.extend(word(frames.len() as u64)?.to_le_bytes());
    table.push(if planed { SEEK_PLANED } else { 0 });
    table.extend(SEEK_FOOTER_MAGIC.to_le_bytes());
    Ok(table)
}

/// Bytes of the seek table of so many frames.
pub const fn seek_table_bytes(frames: u64) -> u64 {
    8 * frames + (SKIPPABLE_HEAD_BYTES + SEEK_FOOTER_BYTES) as u64
}
