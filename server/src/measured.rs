//! Pieces of the daemon's own work that the benches run in their process: what digests take has no
//! switch that turns it off, so it cannot be seen as the difference of two loads.

use forebay_origin::Landing;

use crate::digest::{DigestKey, ExtentDigest, KEY_BYTES};
use crate::proof::{Crc, InOrder, ObjectDigest};

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
