//! What an object of a fake origin holds: bytes in memory, or bytes made on demand.
//!
//! A `Content` is cheap to clone and knows its length; synthetic content takes no memory, so an
//! object of 5 GiB costs a seed. Every reader goes through `visit`, which hands out the bytes of a
//! range in pieces: reading, hashing and sending are the same walk. Ranges past the end are cut.

use std::ops::Range;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use sha2::{Digest, Sha256};

use crate::pattern::{self, BLOCK, Pattern};

/// The bytes of an object.
#[derive(Clone, Debug)]
pub enum Content {
    /// Bytes held in memory.
    Bytes(Bytes),
    /// Incompressible bytes made from the seed.
    Synthetic {
        /// The seed of the stream.
        seed: u64,
        /// How many bytes the object has.
        bytes: u64,
    },
    /// Finite, plausible little-endian bf16 weights made from the seed.
    Weights {
        /// The seed of the stream.
        seed: u64,
        /// How many bytes the object has.
        bytes: u64,
    },
    /// Little-endian bf16 numbers made from the seed, normally distributed: mean 0, deviation 0.02.
    Normal {
        /// The seed of the stream.
        seed: u64,
        /// How many bytes the object has.
        bytes: u64,
    },
    /// Other contents, one after another.
    Concat(Concat),
}

/// Contents laid end to end; made by [`Content::concat`].
#[derive(Clone, Debug)]
pub struct Concat(Arc<ConcatParts>);

#[derive(Debug)]
struct ConcatParts {
    parts: Vec<Content>,
    /// Where each part starts, and one more entry: where the last one ends.
    starts: Vec<u64>,
}

impl Content {
    /// Content held in memory.
    pub fn bytes(bytes: impl Into<Bytes>) -> Self {
        Self::Bytes(bytes.into())
    }

    /// Incompressible content of `bytes` bytes, made from `seed` when read.
    pub fn synthetic(seed: u64, bytes: u64) -> Self {
        Self::Synthetic { seed, bytes }
    }

    /// The parts, one after another.
    pub fn concat(parts: Vec<Self>) -> Self {
        let mut starts = Vec::with_capacity(parts.len() + 1);
        let mut end = 0u64;
        starts.push(end);
        for part in &parts {
            end += part.len();
            starts.push(end);
        }
        Self::Concat(Concat(Arc::new(ConcatParts { parts, starts })))
    }

    /// How many bytes the content has.
    pub fn len(&self) -> u64 {
        match self {
            Self::Bytes(bytes) => as_u64(bytes.len()),
            Self::Synthetic { bytes, .. }
            | Self::Weights { bytes, .. }
            | Self::Normal { bytes, .. } => *bytes,
            Self::Concat(Concat(inner)) => inner.starts.last().copied().unwrap_or(0),
        }
    }

    /// Whether the content has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Hands `sink` the bytes of `range`, in order, in pieces of any size.
    pub fn visit(&self, range: Range<u64>, sink: &mut dyn FnMut(&[u8])) {
        let range = range.start..range.end.min(self.len());
        if range.is_empty() {
            return;
        }
        match self {
            Self::Bytes(bytes) => sink(&bytes[as_usize(range.start)..as_usize(range.end)]),
            Self::Synthetic { seed, .. } => visit_blocks(Pattern::Noise, *seed, range, sink),
            Self::Weights { seed, .. } => visit_blocks(Pattern::Weights, *seed, range, sink),
            Self::Normal { seed, .. } => visit_blocks(Pattern::Normal, *seed, range, sink),
            Self::Concat(Concat(inner)) => inner.visit(&range, sink),
        }
    }

    /// Fills `out` with the bytes from `offset` on; answers how many there were.
    pub fn read_at(&self, offset: u64, out: &mut [u8]) -> usize {
        let mut filled = 0;
        self.visit(offset..offset.saturating_add(as_u64(out.len())), &mut |piece| {
            out[filled..filled + piece.len()].copy_from_slice(piece);
            filled += piece.len();
        });
        filled
    }

    /// The bytes of `range`, copied out.
    pub fn slice(&self, range: Range<u64>) -> Bytes {
        if let Self::Bytes(bytes) = self {
            let end = as_usize(range.end).min(bytes.len());
            return bytes.slice(as_usize(range.start).min(end)..end);
        }
        let end = range.end.min(self.len());
        let mut out = BytesMut::with_capacity(as_usize(end.saturating_sub(range.start)));
        self.visit(range, &mut |piece| out.extend_from_slice(piece));
        out.freeze()
    }

    /// Every byte, in memory. For small contents.
    pub fn to_bytes(&self) -> Bytes {
        self.slice(0..self.len())
    }

    /// The SHA-256 of the content in lower-case hex, computed as a stream.
    pub fn sha256(&self) -> String {
        let mut digest = Sha256::new();
        self.visit(0..self.len(), &mut |piece| digest.update(piece));
        hex(&digest.finalize())
    }

    /// Whether `bytes` are this content's bytes from `offset` on.
    pub fn matches(&self, offset: u64, bytes: &[u8]) -> bool {
        self.first_difference(offset, bytes).is_none()
    }

    /// The offset in the content of the first byte that differs from `bytes`, which start at
    /// `offset`: tells a misplaced chunk from a flipped bit in a failing test.
    pub fn first_difference(&self, offset: u64, bytes: &[u8]) -> Option<u64> {
        let (mut at, mut found) = (0, None);
        self.visit(offset..offset.saturating_add(as_u64(bytes.len())), &mut |piece| {
            let theirs = &bytes[at..at + piece.len()];
            if found.is_none() && theirs != piece {
                let inside = piece.iter().zip(theirs).position(|(ours, theirs)| ours != theirs);
                found = inside.map(|inside| offset + as_u64(at + inside));
            }
            at += piece.len();
        });
        let beyond = (at < bytes.len()).then(|| offset + as_u64(at));
        found.or(beyond)
    }
}

impl Concat {
    pub(crate) fn parts(&self) -> &[Content] {
        &self.0.parts
    }
}

impl ConcatParts {
    fn visit(&self, range: &Range<u64>, sink: &mut dyn FnMut(&[u8])) {
        let first = self.starts.partition_point(|start| *start <= range.start).saturating_sub(1);
        for (part, start) in self.parts.iter().zip(&self.starts).skip(first) {
            if *start >= range.end {
                break;
            }
            let from = range.start.saturating_sub(*start);
            part.visit(from..(range.end - start), sink);
        }
    }
}

impl<T: Into<Bytes>> From<T> for Content {
    fn from(bytes: T) -> Self {
        Self::Bytes(bytes.into())
    }
}

/// The SHA-256 of `content` in lower-case hex; synthetic content is never held whole.
pub fn sha256(content: &Content) -> String {
    content.sha256()
}

/// The SHA-256 of bytes that a test received, in lower-case hex.
pub fn sha256_of(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

fn visit_blocks(pattern: Pattern, seed: u64, range: Range<u64>, sink: &mut dyn FnMut(&[u8])) {
    let mut block = [0u8; BLOCK];
    let block_bytes = as_u64(BLOCK);
    let mut at = range.start;
    while at < range.end {
        let index = at / block_bytes;
        pattern::block(pattern, seed, index, &mut block);
        let from = as_usize(at - index * block_bytes);
        let to = as_usize((range.end - index * block_bytes).min(block_bytes));
        sink(&block[from..to]);
        at += as_u64(to - from);
    }
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digit = |nibble: u8| char::from(DIGITS[usize::from(nibble & 15)]);
    bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(*byte)]).collect()
}

/// A memory size as an object size.
pub(crate) fn as_u64(bytes: usize) -> u64 {
    u64::try_from(bytes).unwrap_or(u64::MAX)
}

/// An object size as a memory size; the callers have cut it to what is in memory.
pub(crate) fn as_usize(bytes: u64) -> usize {
    usize::try_from(bytes).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Prng;

    fn mixed() -> Content {
        Content::concat(vec![
            Content::bytes("header!"),
            Content::synthetic(4, 10_000),
            Content::bytes(""),
            Content::Weights { seed: 4, bytes: 4097 },
            Content::bytes("tail"),
        ])
    }

    #[test]
    fn any_range_equals_the_slice_of_the_whole() {
        let content = mixed();
        let whole = content.to_bytes();
        assert_eq!(as_u64(whole.len()), content.len());
        let mut prng = Prng::new(2);
        for _ in 0..500 {
            let start = prng.below(content.len() + 1);
            let end = start + prng.below(content.len() + 1 - start);
            let expected = &whole[as_usize(start)..as_usize(end)];
            assert_eq!(content.slice(start..end), expected, "{start}..{end}");
        }
    }

    #[test]
    fn reads_stop_at_the_end() {
        let mut out = [7u8; 8];
        assert_eq!(mixed().read_at(mixed().len() - 4, &mut out), 4);
        assert_eq!(&out, b"tail\x07\x07\x07\x07");
        assert_eq!(Content::synthetic(1, 10).read_at(11, &mut out), 0);
        assert_eq!(Content::bytes("ab").slice(5..9), "");
    }

    #[test]
    fn the_digest_is_the_one_of_the_bytes() {
        assert_eq!(sha256(&mixed()), sha256_of(&mixed().to_bytes()));
        let empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(sha256(&Content::synthetic(1, 0)), empty);
    }

    #[test]
    fn a_difference_is_named_by_its_offset() {
        let content = mixed();
        let mut got = content.slice(100..9000).to_vec();
        assert!(content.matches(100, &got));
        got[4000] ^= 1;
        assert_eq!(content.first_difference(100, &got), Some(4100));
        assert_eq!(Content::bytes("ab").first_difference(0, b"abc"), Some(2));
    }

    #[test]
    fn a_huge_object_is_read_anywhere_at_once() {
        let content = Content::synthetic(3, 5 << 30);
        let mut out = [0; 16];
        assert_eq!(content.read_at((5 << 30) - 16, &mut out), 16);
        assert!(content.matches((5 << 30) - 16, &out));
    }
}
