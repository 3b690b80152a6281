//! The digests of one object, taken of its bytes in order, and the checksums that its store keeps.

use crc_fast::{CrcAlgorithm, Digest as Crc};
use forebay_origin::Checksums;
use md5::Md5;
use sha2::{Digest, Sha256};

/// Takes what is asked for. The two digests of the manifest always are.
pub(super) struct Digests {
    blake3: blake3::Hasher,
    sha256: Sha256,
    crc64_nvme: Option<Crc>,
    crc32c: Option<Crc>,
    md5: Option<Md5>,
    expected: Checksums,
}

/// What came of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Digested {
    pub(super) blake3: [u8; 32],
    pub(super) sha256: [u8; 32],
}

impl Digests {
    /// Of an object of which the store says that.
    pub(super) fn new(expected: Checksums) -> Self {
        let crc = |is_asked: bool, kind| is_asked.then(|| Crc::new(kind));
        Self {
            blake3: blake3::Hasher::new(),
            sha256: Sha256::new(),
            crc64_nvme: crc(expected.crc64_nvme.is_some(), CrcAlgorithm::Crc64Nvme),
            crc32c: crc(expected.crc32c.is_some(), CrcAlgorithm::Crc32Iscsi),
            md5: expected.md5.is_some().then(Md5::new),
            expected,
        }
    }

    /// The next bytes.
    pub(super) fn update(&mut self, bytes: &[u8]) {
        self.blake3.update(bytes);
        self.sha256.update(bytes);
        if let Some(crc) = &mut self.crc64_nvme {
            crc.update(bytes);
        }
        if let Some(crc) = &mut self.crc32c {
            crc.update(bytes);
        }
        if let Some(md5) = &mut self.md5 {
            md5.update(bytes);
        }
    }

    /// Those were all; or which checksum of the store does not fit them.
    pub(super) fn finish(self) -> Result<Digested, &'static str> {
        let Self { blake3, sha256, crc64_nvme, crc32c, md5, expected } = self;
        let sha256: [u8; 32] = sha256.finalize().into();
        let differs = |seen: Option<u64>, expected: Option<u64>| seen.is_some() && seen != expected;
        if differs(crc64_nvme.map(|crc| crc.finalize()), expected.crc64_nvme) {
            return Err("CRC-64/NVME");
        }
        if differs(crc32c.map(|crc| crc.finalize()), expected.crc32c.map(u64::from)) {
            return Err("CRC-32C");
        }
        if expected.sha256.is_some_and(|expected| expected != sha256) {
            return Err("SHA-256");
        }
        let md5: Option<[u8; 16]> = md5.map(|md5| md5.finalize().into());
        if md5.is_some() && md5 != expected.md5 {
            return Err("MD5");
        }
        Ok(Digested { blake3: *blake3.finalize().as_bytes(), sha256 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finish(expected: Checksums, bytes: &[u8]) -> Result<Digested, &'static str> {
        let mut digests = Digests::new(expected);
        bytes.chunks(4).for_each(|chunk| digests.update(chunk));
        digests.finish()
    }

    /// The check values of "123456789", from the catalogue of CRCs and the RFCs.
    fn right() -> Checksums {
        let sha256 = [
            0x15, 0xe2, 0xb0, 0xd3, 0xc3, 0x38, 0x91, 0xeb, 0xb0, 0xf1, 0xef, 0x60, 0x9e, 0xc4,
            0x19, 0x42, 0x0c, 0x20, 0xe3, 0x20, 0xce, 0x94, 0xc6, 0x5f, 0xbc, 0x8c, 0x33, 0x12,
            0x44, 0x8e, 0xb2, 0x25,
        ];
        let md5 = [37, 249, 231, 148, 50, 59, 69, 56, 133, 245, 24, 31, 27, 98, 77, 11];
        Checksums {
            crc64_nvme: Some(0xae8b_1486_0a79_9888),
            crc32c: Some(0xe306_9283),
            sha256: Some(sha256),
            md5: Some(md5),
        }
    }

    #[test]
    fn what_fits_passes_and_what_does_not_is_named() {
        let digested = finish(right(), b"123456789").unwrap();
        assert_eq!(Some(digested.sha256), right().sha256);
        assert_eq!(digested.blake3, *blake3::hash(b"123456789").as_bytes());
        assert_eq!(finish(Checksums::default(), b"123456789"), Ok(digested));
        let none = Checksums::default();
        for (checksums, name) in [
            (Checksums { crc64_nvme: right().crc64_nvme, ..none }, "CRC-64/NVME"),
            (Checksums { crc32c: right().crc32c, ..none }, "CRC-32C"),
            (Checksums { sha256: right().sha256, ..none }, "SHA-256"),
            (Checksums { md5: right().md5, ..none }, "MD5"),
        ] {
            assert_eq!(finish(checksums, b"123456788"), Err(name));
            finish(checksums, b"123456789").unwrap();
        }
    }
}
