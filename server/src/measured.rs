//! Pieces of the daemon's own work that the benches run in their process: what digests take has no
//! switch that turns it off, so it cannot be seen as the difference of two loads.

use std::time::Duration;

use forebay_origin::Landing;
use tokio::time::Instant;

use crate::digest::{DigestKey, ExtentDigest, KEY_BYTES};
use crate::evidence::Samples;
use crate::proof::{Crc, InOrder, ObjectDigest};
use crate::report::{Subject, Tally, close};
use crate::timeline::{Kind, Span, Stage, Timeline};

/// What is taken of the bytes of a load, by what is known of its objects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sums {
    /// Nothing at all, as no load does.
    Off,
    /// The chunk's digest.
    Chunk,
    /// That, and the piece of a CRC-64/NVME.
    Crc64Nvme,
    /// The chunk's digest; and SHA-256 of the object, of a chunk when it is there.
    Sha256,
    /// The same with MD5.
    Md5,
}

/// Lets bytes land in `slot` as a part's do: `piece` is copied into it until it is full, and each
/// copy looked at at once, while it is in the cache. Gives a byte of what was taken, so that it is
/// taken.
pub fn land(piece: &[u8], slot: &mut [u8], sums: Sums) -> u8 {
    let crc = (sums == Sums::Crc64Nvme).then_some(Crc::Crc64Nvme);
    let mut digest = ExtentDigest::with_crc(DigestKey([7; KEY_BYTES]), crc);
    for into in slot.chunks_mut(piece.len().max(1)) {
        into.copy_from_slice(piece.get(..into.len()).unwrap_or_default());
        if sums != Sums::Off {
            digest.landed(into);
        }
    }
    let in_order = match sums {
        Sums::Sha256 => InOrder::like(ObjectDigest::Sha256([0; 32])),
        Sums::Md5 => InOrder::like(ObjectDigest::Md5([0; 16])),
        Sums::Off | Sums::Chunk | Sums::Crc64Nvme => None,
    };
    let whole = in_order.map(|mut in_order| {
        in_order.update(slot);
        in_order.finish().to_bytes()
    });
    let taken = digest.finish();
    let crc = taken.crc.map_or(0, |crc| crc.sum.to_le_bytes()[0]);
    let whole = whole.and_then(|bytes| bytes.last().copied()).unwrap_or(0);
    taken.digest[0] ^ crc ^ whole
}

/// How long it takes to note the spans of a load of so many chunks, as one from RAM has them, and
/// to find its path and what its copy engine waited for. The load itself is made up.
#[must_use]
pub fn timeline(chunks: usize) -> Duration {
    let zero = Instant::now();
    let at = |chunk: usize, part: u32| {
        let chunk = u32::try_from(chunk).unwrap_or(u32::MAX);
        zero + Duration::from_micros(20) * chunk + Duration::from_micros(5) * part
    };
    let begun = Instant::now();
    let timeline = Timeline::new(zero);
    for chunk in 0..chunks {
        let spans = [
            Span::new(Stage::Turn, Kind::Queue, zero, at(chunk, 0)),
            Span::new(Stage::LeaseAlloc, Kind::Queue, at(chunk, 0), at(chunk, 1)),
        ];
        timeline.chunk_spans(chunk, spans);
        let published = Span::new(Stage::Publish, Kind::Service, at(chunk, 1), at(chunk, 2));
        timeline.chunk_spans(chunk, [published]);
        timeline.copies_ran([(at(chunk, 2) - zero, at(chunk, 3) - zero)], zero, chunks);
        let released = Span::new(Stage::ClientAck, Kind::Service, at(chunk, 2), at(chunk, 4));
        timeline.chunk_spans(chunk, [released]);
    }
    let subject = Subject {
        load_id: "made-up",
        uri: "s3://b/",
        alias: "",
        revision: "",
        lane: "interactive",
        placed: None,
        device: None,
    };
    let host = Samples::default();
    let report = close(subject, &timeline, Tally::default(), (at(chunks, 0), &host));
    let spent = begun.elapsed();
    // It is used, so that it is made.
    if report.wall.is_zero() && chunks > 0 { Duration::ZERO } else { spent }
}
