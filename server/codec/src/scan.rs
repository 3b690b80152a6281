//! What an object without a manifest says of itself: zstd frames, skippable frames, a seek table.
//!
//! A frame's head declares its content's size and its window; its body is walked block by block
//! without decoding it, which gives its stored size, and shows a declared size that its blocks
//! cannot hold: a block has at most 128 KiB of content, however few bytes it is stored in.
//!
//! The seek table of the *seekable format* is a skippable frame at the object's end:
//!
//! ```text
//!   0x184D2A5E, length │ per frame: stored u32, plain u32, [checksum u32] │ frames u32, flags u8, 0x8F92EAB1
//!   8 bytes            │ 8 or 12 bytes each                               │ 9 bytes
//! ```
//!
//! `flags`: bit 7 for the checksums, and, of ours, bit 0 for frames that hold byte planes.

use crate::coding::{FRAMES_MAX, Frame};
use crate::decode::{DecodeError, DecodeErrorKind};

/// Begins a frame.
const FRAME_MAGIC: u32 = 0xFD2F_B528;

/// Begins a skippable frame, in its upper 28 bits.
const SKIPPABLE_MAGIC: u32 = 0x184D_2A50;

/// Begins the skippable frame that is a seek table.
pub(crate) const SEEK_TABLE_MAGIC: u32 = 0x184D_2A5E;

/// Ends a seek table.
pub(crate) const SEEK_FOOTER_MAGIC: u32 = 0x8F92_EAB1;

/// Of a seek table's flags: the frames hold byte planes, which only a manifest tells how to undo.
/// Bits 0 and 1 are unused ones of the format, which a decoder does not look at.
pub(crate) const SEEK_PLANED: u8 = 1;

/// Bytes of a seek table's footer.
pub const SEEK_FOOTER_BYTES: usize = 9;

/// Bytes of a skippable frame's head.
pub(crate) const SKIPPABLE_HEAD_BYTES: usize = 8;

/// The most a frame's head may take.
pub const FRAME_HEAD_BYTES_MAX: usize = 18;

/// Content of a block.
const BLOCK_BYTES_MAX: u64 = 128 << 10;

/// What a frame says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameHead {
    /// Bytes of the head.
    pub head_bytes: usize,
    /// What the frame holds, if it says so.
    pub content: Option<u64>,
    /// Bytes of the window that its decoder needs.
    pub window: u64,
    /// The dictionary it was compressed with; none is 0.
    pub dictionary: u32,
    /// Whether a checksum of the content follows the last block.
    pub checksum: bool,
    /// Of a skippable frame, the bytes that follow the head. All else says nothing then.
    pub skippable: Option<u64>,
}

/// The head of the frame that begins with these bytes; [`FRAME_HEAD_BYTES_MAX`] are always enough.
pub fn frame_head(bytes: &[u8]) -> Result<FrameHead, DecodeError> {
    head(bytes).map_err(|kind| kind.at(0))
}

/// Takes bytes off the front.
struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    /// A little-endian number of `N` bytes, at most eight.
    fn number<const N: usize>(&mut self) -> Result<u64, DecodeErrorKind> {
        let (taken, rest) = self.0.split_first_chunk::<N>().ok_or(DecodeErrorKind::Truncated)?;
        self.0 = rest;
        Ok(taken.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte)))
    }

    /// The same with as many bytes as fit in 32 bits.
    fn word<const N: usize>(&mut self) -> Result<u32, DecodeErrorKind> {
        const { assert!(N <= 4, "a word has four bytes") };
        self.number::<N>().map(|number| u32::try_from(number).unwrap_or(u32::MAX))
    }
}

pub(crate) fn head(bytes: &[u8]) -> Result<FrameHead, DecodeErrorKind> {
    let mut reader = Reader(bytes);
    let magic = reader.word::<4>()?;
    if magic & !0xF == SKIPPABLE_MAGIC {
        let skippable = Some(reader.number::<4>()?);
        let head_bytes = SKIPPABLE_HEAD_BYTES;
        return Ok(FrameHead {
            head_bytes,
            content: None,
            window: 0,
            dictionary: 0,
            checksum: false,
            skippable,
        });
    }
    if magic != FRAME_MAGIC {
        return Err(DecodeErrorKind::NotAFrame);
    }
    let descriptor = reader.number::<1>()?;
    if descriptor & 0b1000 != 0 {
        return Err(DecodeErrorKind::Corrupt("a reserved bit is set"));
    }
    let single_segment = descriptor & 0b10_0000 != 0;
    let window = match single_segment {
        true => None,
        false => {
            let exponent_mantissa = reader.number::<1>()?;
            let base = 1u64 << (10 + (exponent_mantissa >> 3));
            Some(base + base / 8 * (exponent_mantissa & 7))
        }
    };
    let dictionary = match descriptor & 0b11 {
        0 => 0,
        1 => reader.word::<1>()?,
        2 => reader.word::<2>()?,
        _ => reader.word::<4>()?,
    };
    let content = match descriptor >> 6 {
        0 if !single_segment => None,
        0 => Some(reader.number::<1>()?),
        1 => Some(reader.number::<2>()? + 256),
        2 => Some(reader.number::<4>()?),
        _ => Some(reader.number::<8>()?),
    };
    Ok(FrameHead {
        head_bytes: bytes.len() - reader.0.len(),
        content,
        window: window.or(content).unwrap_or(0),
        dictionary,
        checksum: descriptor & 0b100 != 0,
        skippable: None,
    })
}

/// What a walk over a frame's blocks shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Body {
    /// Bytes of the whole frame.
    pub(crate) stored_bytes: u64,
    /// More than this the blocks cannot hold.
    pub(crate) content_max: u64,
}

/// Walks over the blocks of the frame that `bytes` begins with.
pub(crate) fn body(bytes: &[u8], head: &FrameHead) -> Result<Body, DecodeErrorKind> {
    let mut reader = Reader(bytes.get(head.head_bytes..).ok_or(DecodeErrorKind::Truncated)?);
    let block_bytes_max = head.window.min(BLOCK_BYTES_MAX);
    let mut content_max = 0;
    loop {
        let block = reader.number::<3>()?;
        let (last, kind, size) = (block & 1 == 1, block >> 1 & 0b11, block >> 3);
        // Raw and repeated blocks have as much content as they say, compressed ones at most a
        // block.
        let (stored, content) = match kind {
            0 => (size, size),
            1 => (1, size),
            2 => (size, block_bytes_max),
            _ => return Err(DecodeErrorKind::Corrupt("a block is of a reserved kind")),
        };
        if size > BLOCK_BYTES_MAX {
            return Err(DecodeErrorKind::Corrupt("a block is larger than blocks may be"));
        }
        content_max += content;
        skip(&mut reader, stored)?;
        if last {
            break;
        }
    }
    skip(&mut reader, if head.checksum { 4 } else { 0 })?;
    if head.content.is_some_and(|declared| declared > content_max) {
        return Err(DecodeErrorKind::Corrupt("its blocks cannot hold what it declares"));
    }
    Ok(Body { stored_bytes: (bytes.len() - reader.0.len()) as u64, content_max })
}

fn skip(reader: &mut Reader<'_>, bytes: u64) -> Result<(), DecodeErrorKind> {
    let bytes = usize::try_from(bytes).map_err(|_wide| DecodeErrorKind::Truncated)?;
    reader.0 = reader.0.get(bytes..).ok_or(DecodeErrorKind::Truncated)?;
    Ok(())
}

/// The frames of a whole object in memory: one after the other, with skippable ones between them.
/// All have to declare their size; empty ones are left out.
pub fn scan_whole(bytes: &[u8]) -> Result<Vec<Frame>, DecodeError> {
    let mut frames = Vec::new();
    let (mut at, mut plain_offset) = (0usize, 0u64);
    while let Some(rest) = bytes.get(at..).filter(|rest| !rest.is_empty()) {
        let stored_offset = at as u64;
        let bad = |kind: DecodeErrorKind| kind.at(stored_offset);
        let (stored_bytes, plain_bytes) = measure(rest).map_err(bad)?;
        if plain_bytes > 0 {
            if frames.len() == FRAMES_MAX {
                return Err(bad(DecodeErrorKind::Frames(FRAMES_MAX)));
            }
            frames.push(Frame {
                stored_offset,
                stored_bytes,
                plain_offset,
                plain_bytes,
                digest: None,
            });
        }
        let too_long = || bad(DecodeErrorKind::Corrupt("the sizes add up to more than there is"));
        plain_offset = plain_offset.checked_add(plain_bytes).ok_or_else(too_long)?;
        at = usize::try_from(stored_bytes)
            .ok()
            .and_then(|by| at.checked_add(by))
            .ok_or_else(too_long)?;
    }
    Ok(frames)
}

/// Stored and plain bytes of the frame that `bytes` begins with.
fn measure(bytes: &[u8]) -> Result<(u64, u64), DecodeErrorKind> {
    let head = head(bytes)?;
    if let Some(skipped) = head.skippable {
        let stored = head.head_bytes as u64 + skipped;
        let there = stored <= bytes.len() as u64;
        return if there { Ok((stored, 0)) } else { Err(DecodeErrorKind::Truncated) };
    }
    if head.dictionary != 0 {
        return Err(DecodeErrorKind::Dictionary);
    }
    let body = body(bytes, &head)?;
    // Where no block can hold anything, nothing needs to be declared.
    let content = head.content.or_else(|| (body.content_max == 0).then_some(0));
    Ok((body.stored_bytes, content.ok_or(DecodeErrorKind::SizeUnknown)?))
}

/// How many bytes at an object's end its seek table takes, by the last bytes of the object (at
/// least [`SEEK_FOOTER_BYTES`]); none if they are no footer.
pub fn seek_table_bytes(tail: &[u8]) -> Result<Option<u64>, DecodeError> {
    footer(tail).map(|found| found.map(|footer| footer.table_bytes)).map_err(|kind| kind.at(0))
}

struct Footer {
    frames: u32,
    checksums: bool,
    planed: bool,
    table_bytes: u64,
}

fn footer(tail: &[u8]) -> Result<Option<Footer>, DecodeErrorKind> {
    let Some(footer) = tail.last_chunk::<SEEK_FOOTER_BYTES>() else { return Ok(None) };
    let mut reader = Reader(footer);
    let (frames, flags) = (reader.word::<4>()?, reader.number::<1>()?);
    if reader.word::<4>()? != SEEK_FOOTER_MAGIC {
        return Ok(None);
    }
    if flags & 0b0111_1100 != 0 {
        return Err(DecodeErrorKind::SeekTable("has reserved bits"));
    }
    if frames as usize > FRAMES_MAX {
        return Err(DecodeErrorKind::Frames(FRAMES_MAX));
    }
    let checksums = flags & 0b1000_0000 != 0;
    let entry_bytes = if checksums { 12 } else { 8 };
    let table_bytes =
        u64::from(frames) * entry_bytes + (SKIPPABLE_HEAD_BYTES + SEEK_FOOTER_BYTES) as u64;
    let planed = flags & u64::from(SEEK_PLANED) != 0;
    Ok(Some(Footer { frames, checksums, planed, table_bytes }))
}

/// What a seek table says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SeekTable {
    /// The frames; those without content are left out.
    pub frames: Vec<Frame>,
    /// Whether they hold byte planes: then they decode to the object's bytes in another order,
    /// and only a manifest tells which.
    pub planed: bool,
}

/// What a seek table says: `table` is the whole of it, the end of an object of `object_bytes`.
/// Sizes have to add up to the object.
pub fn seek_table(table: &[u8], object_bytes: u64) -> Result<SeekTable, DecodeError> {
    let begins = object_bytes.saturating_sub(table.len() as u64);
    entries(table, object_bytes).map_err(|kind| kind.at(begins))
}

fn entries(table: &[u8], object_bytes: u64) -> Result<SeekTable, DecodeErrorKind> {
    let bad = |problem| Err(DecodeErrorKind::SeekTable(problem));
    let Some(Footer { frames: count, checksums, planed, table_bytes }) = footer(table)? else {
        return bad("has no footer");
    };
    if table.len() as u64 != table_bytes || table_bytes > object_bytes {
        return bad("is not as long as it says");
    }
    let mut reader = Reader(table);
    if reader.word::<4>()? != SEEK_TABLE_MAGIC {
        return bad("does not begin as one");
    }
    if reader.number::<4>()? != table_bytes - SKIPPABLE_HEAD_BYTES as u64 {
        return bad("is not as long as it says");
    }
    let mut frames = Vec::new();
    let (mut stored_offset, mut plain_offset) = (0u64, 0u64);
    for _ in 0..count {
        let (stored_bytes, plain_bytes) = (reader.number::<4>()?, reader.number::<4>()?);
        if checksums {
            reader.number::<4>()?;
        }
        if stored_bytes == 0 {
            return bad("lists a frame that is stored in no byte");
        }
        if plain_bytes > 0 {
            frames.push(Frame {
                stored_offset,
                stored_bytes,
                plain_offset,
                plain_bytes,
                digest: None,
            });
        }
        // At most 2^22 numbers of 32 bits: no sum overflows.
        stored_offset += stored_bytes;
        plain_offset += plain_bytes;
    }
    if stored_offset != object_bytes - table_bytes {
        return bad("lists other frames than the object has");
    }
    Ok(SeekTable { frames, planed })
}
