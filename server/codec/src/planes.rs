//! Byte planes: floating point numbers cut into bytes of like meaning, so that they compress.
//!
//! An element (16 or 32 bits, little endian) is rotated left by one bit: the sign goes to the
//! lowest bit, and the highest byte of a bf16 or f32 is its exponent and nothing else. Of the
//! elements of a piece, the highest bytes come first, then the next ones, down to the lowest.
//!
//! A frame is cut into *tiles* on its own grid, and a tile is reordered by itself: what a plane run
//! covers of it, from the first element that lies wholly in the tile to the last one, becomes
//! planes. Everything else stays where it is: bytes outside all runs, elements that a tile's edge
//! cuts, the rest of a run that is no whole element. So a frame has as many bytes reordered as
//! plain, and a tile can be undone while it is in the cache.

use std::ops::Range;

use crate::coding::{PlaneRun, Width};

/// A range of a tile that is reordered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Piece {
    /// In the tile.
    pub(crate) range: Range<usize>,
    /// Of its elements.
    pub(crate) width: Width,
}

/// The pieces of a tile of `bytes` bytes that begins at `offset` in the object, in order.
pub(crate) fn pieces(
    planes: &[PlaneRun],
    offset: u64,
    bytes: usize,
) -> impl Iterator<Item = Piece> + '_ {
    let end = offset.saturating_add(bytes as u64);
    let first = planes.partition_point(|run| run.end() <= offset);
    let runs = planes.get(first..).unwrap_or_default().iter();
    runs.take_while(move |run| run.offset < end).filter_map(move |run| {
        let width = run.width.bytes();
        // Elements are counted from the run's beginning.
        let skipped = offset.saturating_sub(run.offset).checked_next_multiple_of(width)?;
        let from = run.offset.checked_add(skipped)?;
        let until = run.end().min(end);
        let whole = until.checked_sub(from)? / width * width;
        let start = usize::try_from(from - offset).ok()?;
        let length = usize::try_from(whole).ok().filter(|length| *length > 0)?;
        Some(Piece { range: start..start + length, width: run.width })
    })
}

/// Cuts the elements of a tile at `offset` of the object into planes.
///
/// # Panics
///
/// If `from` and `into` differ in length.
pub fn split(planes: &[PlaneRun], offset: u64, from: &[u8], into: &mut [u8]) {
    walk(planes, offset, from, into, |width, from, into| match width {
        Width::Two => split_two(from, into),
        Width::Four => split_four(from, into),
    });
}

/// Undoes [`split`].
///
/// # Panics
///
/// If `from` and `into` differ in length.
pub fn unsplit(planes: &[PlaneRun], offset: u64, from: &[u8], into: &mut [u8]) {
    walk(planes, offset, from, into, |width, from, into| match width {
        Width::Two => unsplit_two(from, into),
        Width::Four => unsplit_four(from, into),
    });
}

/// Calls `reorder` on each piece of a tile, and copies what lies between them.
fn walk(
    planes: &[PlaneRun],
    offset: u64,
    from: &[u8],
    into: &mut [u8],
    reorder: impl Fn(Width, &[u8], &mut [u8]),
) {
    assert_eq!(from.len(), into.len(), "a tile is as long reordered as it is plain");
    let mut at = 0;
    for Piece { range, width } in pieces(planes, offset, from.len()) {
        into[at..range.start].copy_from_slice(&from[at..range.start]);
        at = range.end;
        reorder(width, &from[range.clone()], &mut into[range]);
    }
    into[at..].copy_from_slice(&from[at..]);
}

fn split_two(from: &[u8], into: &mut [u8]) {
    let (high, low) = into.split_at_mut(from.len() / 2);
    let (elements, _) = from.as_chunks::<2>();
    for ((element, high), low) in elements.iter().zip(high).zip(low) {
        [*low, *high] = u16::from_le_bytes(*element).rotate_left(1).to_le_bytes();
    }
}

fn unsplit_two(from: &[u8], into: &mut [u8]) {
    let (high, low) = from.split_at(from.len() / 2);
    let (elements, _) = into.as_chunks_mut::<2>();
    for ((element, high), low) in elements.iter_mut().zip(high).zip(low) {
        *element = u16::from_le_bytes([*low, *high]).rotate_right(1).to_le_bytes();
    }
}

/// Elements of 32 bits at one time: their halves are put together in the first-level cache, which
/// vectorises where four planes at once do not.
const HALVES: usize = 512;

fn split_four(from: &[u8], into: &mut [u8]) {
    let quarter = from.len() / 4;
    let (upper, lower) = into.split_at_mut(2 * quarter);
    let (p3, p2) = upper.split_at_mut(quarter);
    let (p1, p0) = lower.split_at_mut(quarter);
    let planes = p3.chunks_mut(HALVES).zip(p2.chunks_mut(HALVES));
    let planes = planes.zip(p1.chunks_mut(HALVES).zip(p0.chunks_mut(HALVES)));
    let (mut high, mut low) = ([0u16; HALVES], [0u16; HALVES]);
    for (elements, ((p3, p2), (p1, p0))) in from.chunks(4 * HALVES).zip(planes) {
        let (elements, _) = elements.as_chunks::<4>();
        for ((element, high), low) in elements.iter().zip(&mut high).zip(&mut low) {
            let [a, b, c, d] = u32::from_le_bytes(*element).rotate_left(1).to_le_bytes();
            (*low, *high) = (u16::from_le_bytes([a, b]), u16::from_le_bytes([c, d]));
        }
        cut(&high, p3, p2);
        cut(&low, p1, p0);
    }
}

fn unsplit_four(from: &[u8], into: &mut [u8]) {
    let quarter = from.len() / 4;
    let (upper, lower) = from.split_at(2 * quarter);
    let (p3, p2) = upper.split_at(quarter);
    let (p1, p0) = lower.split_at(quarter);
    let planes = p3.chunks(HALVES).zip(p2.chunks(HALVES));
    let planes = planes.zip(p1.chunks(HALVES).zip(p0.chunks(HALVES)));
    let (mut high, mut low) = ([0u16; HALVES], [0u16; HALVES]);
    for (elements, ((p3, p2), (p1, p0))) in into.chunks_mut(4 * HALVES).zip(planes) {
        join(&mut high, p3, p2);
        join(&mut low, p1, p0);
        let (elements, _) = elements.as_chunks_mut::<4>();
        for ((element, high), low) in elements.iter_mut().zip(&high).zip(&low) {
            let bits = u32::from(*high) << 16 | u32::from(*low);
            *element = bits.rotate_right(1).to_le_bytes();
        }
    }
}

/// The bytes of halves of elements.
fn cut(halves: &[u16], upper: &mut [u8], lower: &mut [u8]) {
    for ((half, upper), lower) in halves.iter().zip(upper).zip(lower) {
        [*lower, *upper] = half.to_le_bytes();
    }
}

/// Halves of elements out of their bytes.
fn join(halves: &mut [u16], upper: &[u8], lower: &[u8]) {
    for ((half, upper), lower) in halves.iter_mut().zip(upper).zip(lower) {
        *half = u16::from_le_bytes([*lower, *upper]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn both(planes: &[PlaneRun], offset: u64, plain: &[u8], reordered: &[u8]) {
        let mut out = vec![0; plain.len()];
        split(planes, offset, plain, &mut out);
        assert_eq!(out, reordered);
        unsplit(planes, offset, reordered, &mut out);
        assert_eq!(out, plain);
    }

    #[test]
    fn the_form_is_the_documented_one() {
        // 1.0, -2.0 and a small number as bf16: exponents 0x7F, 0x80, 0x01, then mantissa and sign.
        let plain = [0x80, 0x3F, 0x00, 0xC0, 0xFF, 0x00];
        let run = PlaneRun { offset: 0, bytes: 6, width: Width::Two };
        both(&[run], 0, &plain, &[0x7F, 0x80, 0x01, 0x00, 0x01, 0xFE]);
        // 1.0 and a negative number as f32.
        let plain = [0x00, 0x00, 0x80, 0x3F, 0x78, 0x56, 0x34, 0x92];
        let run = PlaneRun { offset: 0, bytes: 8, width: Width::Four };
        both(&[run], 0, &plain, &[0x7F, 0x24, 0x00, 0x68, 0x00, 0xAC, 0x00, 0xF1]);
    }

    #[test]
    fn what_edges_cut_stays() {
        let run = PlaneRun { offset: 101, bytes: 7, width: Width::Two };
        let pieces =
            |offset, bytes| pieces(&[run], offset, bytes).map(|piece| piece.range).collect();
        for (offset, bytes, expected) in [
            // The seventh byte is no element.
            (100, 20, Some(1..7)),
            (100, 4, Some(1..3)),
            (102, 4, Some(1..3)),
            (102, 9, Some(1..5)),
            (103, 9, Some(0..4)),
            (106, 9, None),
            (100, 2, None),
            (0, 101, None),
            (108, 9, None),
        ] {
            let found: Vec<_> = pieces(offset, bytes);
            assert_eq!(found, Vec::from_iter(expected), "{bytes} bytes from {offset} on");
        }
        let plain = [1, 2, 0x80, 0x3F, 9];
        both(&[run], 102, &plain, &[1, 0x00, 0x12, 0x05, 0x7E]);
    }
}
