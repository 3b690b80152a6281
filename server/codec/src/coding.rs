//! How an object's plain bytes lie in what is stored of it.
//!
//! ```text
//!   stored   │ frame 0 │ frame 1   │ frame 2 │ seek table │
//!   plain    │ 0 .. f      │ f .. 2f     │ 2f .. n  │
//!   planes        ▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒  ▒▒▒▒▒▒▒▒▒
//! ```
//!
//! A [`Coding`] is checked once, when it is made, and never changes: frames follow each other
//! without a gap in plain space and in order in stored space, plane runs are sorted and lie in the
//! object.

use std::ops::Range;

/// Frames of one object: at 8 MiB each, half of the largest checkpoint there may be.
pub const FRAMES_MAX: usize = 4 << 20;

/// Plane runs of one object: no more than there can be tensors.
pub const PLANE_RUNS_MAX: usize = crate::tensor::TENSORS_MAX;

/// The smallest tile.
pub const TILE_BYTES_MIN: u32 = 64;

/// The largest tile: a decoder's scratch memory.
pub const TILE_BYTES_MAX: u32 = 4 << 20;

/// The size of an element.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Width {
    /// 16 bits: `BF16`, `F16`.
    Two,
    /// 32 bits: `F32`.
    Four,
}

impl Width {
    /// In bytes.
    pub const fn bytes(self) -> u64 {
        match self {
            Self::Two => 2,
            Self::Four => 4,
        }
    }

    /// Of so many bytes, if there is one.
    pub const fn of_bytes(bytes: u64) -> Option<Self> {
        match bytes {
            2 => Some(Self::Two),
            4 => Some(Self::Four),
            _ => None,
        }
    }
}

/// A run of plain bytes whose elements are stored as byte planes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PlaneRun {
    /// First byte in the object.
    pub offset: u64,
    /// Length; what is left after the last whole element stays as it is.
    pub bytes: u64,
    /// Of its elements.
    pub width: Width,
}

impl PlaneRun {
    /// The byte after its last one. Runs of a [`Coding`] end where a number can say it.
    pub fn end(&self) -> u64 {
        self.offset.saturating_add(self.bytes)
    }
}

/// A part of an object that is decoded by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// First byte in what is stored.
    pub stored_offset: u64,
    /// Length there.
    pub stored_bytes: u64,
    /// First byte in the object.
    pub plain_offset: u64,
    /// Length there.
    pub plain_bytes: u64,
    /// BLAKE3 of the plain bytes, where it is known.
    pub digest: Option<[u8; 32]>,
}

impl Frame {
    /// Where it is stored.
    pub fn stored_range(&self) -> Range<u64> {
        self.stored_offset..self.stored_offset.saturating_add(self.stored_bytes)
    }

    /// What it holds.
    pub fn plain_range(&self) -> Range<u64> {
        self.plain_offset..self.plain_offset.saturating_add(self.plain_bytes)
    }
}

/// What is wrong with a coding.
#[derive(Debug, Clone, Copy, thiserror::Error, PartialEq, Eq)]
pub enum CodingError {
    /// More frames than there may be.
    #[error("{0} frames are more than {FRAMES_MAX}")]
    Frames(usize),
    /// More runs than there may be.
    #[error("{0} plane runs are more than {PLANE_RUNS_MAX}")]
    Runs(usize),
    /// A frame does not begin where the one before ends, holds nothing, or lies outside what is
    /// stored.
    #[error("frame {index} {problem}")]
    Frame {
        /// Which one.
        index: usize,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// The frames do not hold the whole object.
    #[error("the frames hold {held} bytes of {object}")]
    Length {
        /// As much as they hold.
        held: u64,
        /// As much as they should.
        object: u64,
    },
    /// A run lies outside the object, overlaps the one before, or is empty.
    #[error("plane run {index} {problem}")]
    Run {
        /// Which one.
        index: usize,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// Not a size that tiles may have.
    #[error(
        "tiles of {0} bytes: they have {TILE_BYTES_MIN} to {TILE_BYTES_MAX}, in multiples of four"
    )]
    Tile(u32),
}

/// How one object is coded; see the module's head.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Coding {
    stored_bytes: u64,
    plain_bytes: u64,
    frames: Vec<Frame>,
    planes: Vec<PlaneRun>,
    tile: u32,
}

impl Coding {
    /// Checks what the module's head promises. Without runs the tile does not matter.
    pub fn new(
        stored_bytes: u64,
        plain_bytes: u64,
        frames: Vec<Frame>,
        planes: Vec<PlaneRun>,
        tile: u32,
    ) -> Result<Self, CodingError> {
        check_frames(&frames, stored_bytes, plain_bytes)?;
        check_runs(&planes, plain_bytes)?;
        if !planes.is_empty() {
            check_tile(tile)?;
        }
        Ok(Self { stored_bytes, plain_bytes, frames, planes, tile })
    }

    /// Bytes of what is stored.
    pub fn stored_bytes(&self) -> u64 {
        self.stored_bytes
    }

    /// Bytes of the object.
    pub fn plain_bytes(&self) -> u64 {
        self.plain_bytes
    }

    /// Its frames, in order.
    pub fn frames(&self) -> &[Frame] {
        &self.frames
    }

    /// Its plane runs, in order.
    pub fn planes(&self) -> &[PlaneRun] {
        &self.planes
    }

    /// Plain bytes of a tile.
    pub fn tile(&self) -> u32 {
        self.tile
    }

    /// The frames that hold any byte of a range of the object.
    pub fn frames_over(&self, plain: Range<u64>) -> Range<usize> {
        let first = self.frames.partition_point(|frame| frame.plain_range().end <= plain.start);
        let last = self.frames.partition_point(|frame| frame.plain_offset < plain.end);
        first..last.max(first)
    }

    /// Where frames that follow each other are stored; nowhere if there are none of them.
    pub fn stored_range(&self, frames: Range<usize>) -> Range<u64> {
        match self.frames.get(frames) {
            Some([first, .., last]) => first.stored_offset..last.stored_range().end,
            Some([only]) => only.stored_range(),
            Some([]) | None => 0..0,
        }
    }
}

fn check_frames(frames: &[Frame], stored_bytes: u64, plain_bytes: u64) -> Result<(), CodingError> {
    if frames.len() > FRAMES_MAX {
        return Err(CodingError::Frames(frames.len()));
    }
    let (mut stored_end, mut plain_end) = (0, 0u64);
    for (index, frame) in frames.iter().enumerate() {
        let bad = |problem| CodingError::Frame { index, problem };
        if frame.plain_offset != plain_end {
            return Err(bad("does not begin where the one before it ends"));
        }
        if frame.plain_bytes == 0 || frame.stored_bytes == 0 {
            return Err(bad("holds nothing"));
        }
        if frame.stored_offset < stored_end {
            return Err(bad("is stored in the one before it"));
        }
        plain_end =
            plain_end.checked_add(frame.plain_bytes).ok_or_else(|| bad("ends beyond all bytes"))?;
        stored_end = frame
            .stored_offset
            .checked_add(frame.stored_bytes)
            .filter(|end| *end <= stored_bytes)
            .ok_or_else(|| bad("ends after what is stored"))?;
    }
    match plain_end == plain_bytes {
        true => Ok(()),
        false => Err(CodingError::Length { held: plain_end, object: plain_bytes }),
    }
}

pub(crate) fn check_runs(planes: &[PlaneRun], plain_bytes: u64) -> Result<(), CodingError> {
    if planes.len() > PLANE_RUNS_MAX {
        return Err(CodingError::Runs(planes.len()));
    }
    let mut end = 0;
    for (index, run) in planes.iter().enumerate() {
        let bad = |problem| CodingError::Run { index, problem };
        if run.bytes == 0 {
            return Err(bad("is empty"));
        }
        if run.offset < end {
            return Err(bad("begins before the one before it ends"));
        }
        end = run
            .offset
            .checked_add(run.bytes)
            .filter(|end| *end <= plain_bytes)
            .ok_or_else(|| bad("ends after the object"))?;
    }
    Ok(())
}

pub(crate) fn check_tile(tile: u32) -> Result<(), CodingError> {
    let fits = (TILE_BYTES_MIN..=TILE_BYTES_MAX).contains(&tile) && tile.is_multiple_of(4);
    if fits { Ok(()) } else { Err(CodingError::Tile(tile)) }
}
