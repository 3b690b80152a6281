//! What is known of a whole object's bytes, and how that is compared with them.
//!
//! A store keeps a checksum of an object, a file of digests lies beside it, or the caller has one.
//! CRCs are taken piece by piece, in any order, while the bytes land, and combined; a SHA-256 or an
//! MD5 has to see the bytes in order. Nothing here waits or runs by itself: `load` does that.

use std::collections::BTreeMap;
use std::fmt;

use crc_fast::CrcAlgorithm;
use forebay_io::{Polynomial, WideCrc64Nvme};
use forebay_origin::Checksums;
use md5::Md5;
use sha2::{Digest, Sha256};

/// A digest of a whole object, as somebody gave it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum ObjectDigest {
    /// CRC-64/NVME.
    Crc64Nvme(u64),
    /// CRC-32C.
    Crc32c(u32),
    /// SHA-256.
    Sha256([u8; 32]),
    /// MD5.
    Md5([u8; 16]),
}

/// A sum of pieces that can be combined.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Crc {
    /// CRC-64/NVME.
    Crc64Nvme,
    /// CRC-32C.
    Crc32c,
}

impl Crc {
    fn algorithm(self) -> CrcAlgorithm {
        match self {
            Self::Crc64Nvme => CrcAlgorithm::Crc64Nvme,
            Self::Crc32c => CrcAlgorithm::Crc32Iscsi,
        }
    }

    fn polynomial(self) -> Polynomial {
        match self {
            Self::Crc64Nvme => Polynomial::CRC64_NVME,
            Self::Crc32c => Polynomial::CRC32C,
        }
    }

    /// The sum of a piece in memory.
    pub(crate) fn of(self, bytes: &[u8]) -> PieceSum {
        let mut summing = Summing::new(self);
        summing.update(bytes);
        summing.finish()
    }
}

/// The sum of a piece, while its bytes come.
pub(crate) struct Summing {
    crc: Crc,
    by: By,
}

/// Who takes it.
enum By {
    Wide(WideCrc64Nvme),
    Other(Box<crc_fast::Digest>),
}

impl Summing {
    /// Of no bytes yet.
    pub(crate) fn new(crc: Crc) -> Self {
        let wide = (crc == Crc::Crc64Nvme).then(WideCrc64Nvme::new).flatten();
        let other = || By::Other(Box::new(crc_fast::Digest::new(crc.algorithm())));
        Self { crc, by: wide.map_or_else(other, By::Wide) }
    }

    /// The next bytes.
    pub(crate) fn update(&mut self, bytes: &[u8]) {
        match &mut self.by {
            By::Wide(sum) => sum.update(bytes),
            By::Other(sum) => sum.update(bytes),
        }
    }

    /// From the beginning again.
    pub(crate) fn restart(&mut self) {
        *self = Self::new(self.crc);
    }

    /// Of all bytes.
    pub(crate) fn finish(self) -> PieceSum {
        let sum = match self.by {
            By::Wide(sum) => sum.value(),
            By::Other(sum) => sum.finalize(),
        };
        PieceSum { crc: self.crc, sum }
    }
}

/// The sum of a piece of an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PieceSum {
    /// Of which kind.
    pub(crate) crc: Crc,
    /// Its value.
    pub(crate) sum: u64,
}

impl ObjectDigest {
    /// The one to hold an object to, of those that its store has: what is cheapest to take and can
    /// be taken of pieces comes first.
    pub(crate) fn best_of(checksums: &Checksums) -> Option<Self> {
        let crc64 = checksums.crc64_nvme.map(Self::Crc64Nvme);
        let crc32 = || checksums.crc32c.map(Self::Crc32c);
        let sha256 = || checksums.sha256.map(Self::Sha256);
        crc64.or_else(crc32).or_else(sha256).or_else(|| checksums.md5.map(Self::Md5))
    }

    /// If it is a sum of pieces, which.
    pub(crate) fn crc(self) -> Option<Crc> {
        match self {
            Self::Crc64Nvme(_) => Some(Crc::Crc64Nvme),
            Self::Crc32c(_) => Some(Crc::Crc32c),
            Self::Sha256(_) | Self::Md5(_) => None,
        }
    }

    /// The kinds that [`to_record`](Self::to_record) tells apart.
    pub(crate) const KINDS: [u8; 4] = [1, 2, 3, 4];

    /// Its kind, and its value in 32 bytes, which are not all zero.
    pub(crate) fn to_record(self) -> (u8, [u8; 32]) {
        let mut record = [0; 32];
        let bytes = self.to_bytes();
        let (kind, value) =
            bytes.split_first().map_or((0, &[][..]), |(kind, value)| (*kind, value));
        record[..value.len()].copy_from_slice(value);
        if value.len() < 32 {
            record[31] = 1;
        }
        (kind, record)
    }

    /// The digest of such a kind and value.
    pub(crate) fn from_record(kind: u8, record: [u8; 32]) -> Option<Self> {
        match kind {
            1 => Some(Self::Crc64Nvme(u64::from_be_bytes(*record.first_chunk()?))),
            2 => Some(Self::Crc32c(u32::from_be_bytes(*record.first_chunk()?))),
            3 => Some(Self::Sha256(record)),
            4 => Some(Self::Md5(*record.first_chunk()?)),
            _ => None,
        }
    }

    /// Its kind and its value: never the same for two digests.
    pub(crate) fn to_bytes(self) -> Vec<u8> {
        let (kind, value): (u8, Vec<u8>) = match self {
            Self::Crc64Nvme(sum) => (1, sum.to_be_bytes().to_vec()),
            Self::Crc32c(sum) => (2, sum.to_be_bytes().to_vec()),
            Self::Sha256(digest) => (3, digest.to_vec()),
            Self::Md5(digest) => (4, digest.to_vec()),
        };
        std::iter::once(kind).chain(value).collect()
    }
}

impl fmt::Display for ObjectDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (name, value): (&str, &[u8]) = match self {
            Self::Crc64Nvme(sum) => return write!(f, "CRC-64/NVME {sum:016x}"),
            Self::Crc32c(sum) => return write!(f, "CRC-32C {sum:08x}"),
            Self::Sha256(digest) => ("SHA-256", digest),
            Self::Md5(digest) => ("MD5", digest),
        };
        write!(f, "{name} ")?;
        value.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// The pieces of an object's sum, until all are there.
#[derive(Debug)]
pub(crate) struct Pieces {
    crc: Crc,
    object_bytes: u64,
    /// Length and sum of each, by where it begins.
    sums: BTreeMap<u64, (u64, u64)>,
    have: u64,
}

impl Pieces {
    /// None yet.
    pub(crate) fn new(crc: Crc, object_bytes: u64) -> Self {
        Self { crc, object_bytes, sums: BTreeMap::new(), have: 0 }
    }

    /// One more. One that is there already says nothing new.
    pub(crate) fn add(&mut self, offset: u64, bytes: u64, sum: u64) {
        if self.sums.insert(offset, (bytes, sum)).is_none() {
            self.have += bytes;
        }
    }

    /// Whether every piece is there.
    pub(crate) fn are_all(&self) -> bool {
        self.have == self.object_bytes
    }

    /// The sum of the whole, once every piece is there.
    pub(crate) fn whole(&self) -> Option<ObjectDigest> {
        if !self.are_all() {
            return None;
        }
        let polynomial = self.crc.polynomial();
        let empty = self.crc.of(&[]).sum;
        let whole = self
            .sums
            .values()
            .fold(empty, |whole, (bytes, sum)| polynomial.combine(whole, *sum, *bytes));
        Some(match self.crc {
            Crc::Crc64Nvme => ObjectDigest::Crc64Nvme(whole),
            // The sums of this one have 32 bits.
            Crc::Crc32c => ObjectDigest::Crc32c(u32::try_from(whole).unwrap_or(u32::MAX)),
        })
    }
}

/// A digest that sees an object's bytes in order.
#[derive(Clone)]
pub(crate) enum InOrder {
    /// SHA-256.
    Sha256(Sha256),
    /// MD5.
    Md5(Md5),
}

impl fmt::Debug for InOrder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Sha256(_) => "Sha256",
            Self::Md5(_) => "Md5",
        })
    }
}

impl InOrder {
    /// One of the kind of `digest`; none if that is a sum of pieces.
    pub(crate) fn like(digest: ObjectDigest) -> Option<Self> {
        match digest {
            ObjectDigest::Sha256(_) => Some(Self::Sha256(Sha256::new())),
            ObjectDigest::Md5(_) => Some(Self::Md5(Md5::new())),
            ObjectDigest::Crc64Nvme(_) | ObjectDigest::Crc32c(_) => None,
        }
    }

    /// The next bytes.
    pub(crate) fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Sha256(hasher) => hasher.update(bytes),
            Self::Md5(hasher) => hasher.update(bytes),
        }
    }

    /// Of all bytes.
    pub(crate) fn finish(self) -> ObjectDigest {
        match self {
            Self::Sha256(hasher) => ObjectDigest::Sha256(hasher.finalize().into()),
            Self::Md5(hasher) => ObjectDigest::Md5(hasher.finalize().into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_cheapest_checksum_counts() {
        let all = Checksums {
            crc64_nvme: Some(1),
            crc32c: Some(2),
            sha256: Some([3; 32]),
            md5: Some([4; 16]),
        };
        assert_eq!(ObjectDigest::best_of(&all), Some(ObjectDigest::Crc64Nvme(1)));
        let no_crc = Checksums { crc64_nvme: None, crc32c: None, ..all };
        assert_eq!(ObjectDigest::best_of(&no_crc), Some(ObjectDigest::Sha256([3; 32])));
        let md5 = Checksums { md5: all.md5, ..Checksums::default() };
        assert_eq!(ObjectDigest::best_of(&md5), Some(ObjectDigest::Md5([4; 16])));
        assert_eq!(ObjectDigest::best_of(&Checksums::default()), None);
    }

    /// From the catalogue of parametrised CRCs, RFC 1321 and FIPS 180.
    #[test]
    fn known_answers() {
        let check = b"123456789";
        assert_eq!(Crc::Crc64Nvme.of(check).sum, 0xae8b_1486_0a79_9888);
        assert_eq!(Crc::Crc32c.of(check).sum, 0xe306_9283);
        let mut md5 = InOrder::like(ObjectDigest::Md5([0; 16])).unwrap();
        md5.update(b"abc");
        assert_eq!(md5.finish().to_string(), "MD5 900150983cd24fb0d6963f7d28e17f72");
        let sha = InOrder::like(ObjectDigest::Sha256([0; 32])).unwrap();
        assert!(sha.finish().to_string().starts_with("SHA-256 e3b0c44298fc1c14"));
    }

    proptest! {
        /// In whatever order the pieces come, and however often.
        #[test]
        fn pieces_make_a_whole(
            bytes in prop::collection::vec(any::<u8>(), 0..3000),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..6),
            seed in any::<u64>(),
        ) {
            for crc in [Crc::Crc64Nvme, Crc::Crc32c] {
                let mut cuts: Vec<usize> =
                    cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
                cuts.extend([0, bytes.len()]);
                cuts.sort_unstable();
                cuts.dedup();
                let mut pieces: Vec<_> = cuts.windows(2).map(|cut| cut[0]..cut[1]).collect();
                let turn = usize::try_from(seed % 7).unwrap() % pieces.len().max(1);
                pieces.rotate_left(turn);
                let mut whole = Pieces::new(crc, bytes.len() as u64);
                for (n, piece) in pieces.iter().enumerate() {
                    prop_assert_eq!(whole.whole().is_some(), bytes.is_empty() && n == 0);
                    prop_assert_eq!(whole.whole().is_some(), whole.are_all());
                    let sum = crc.of(&bytes[piece.clone()]).sum;
                    let (offset, length) = (piece.start as u64, piece.len() as u64);
                    whole.add(offset, length, sum);
                    whole.add(offset, length, sum);
                }
                let expected = crc_fast::checksum(crc.algorithm(), &bytes);
                prop_assert_eq!(crc.of(&bytes).sum, expected);
                let found = match whole.whole().unwrap() {
                    ObjectDigest::Crc64Nvme(sum) => sum,
                    ObjectDigest::Crc32c(sum) => u64::from(sum),
                    other => panic!("{other}"),
                };
                prop_assert_eq!(found, expected);
            }
        }
    }
}
