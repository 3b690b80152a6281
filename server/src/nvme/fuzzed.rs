//! What the fuzz target `index` runs: the rows of the index and the headers of extents, as a disk may
//! bring them back. Each is looked at as it is, and with the sum that would make it whole.

use crc_fast::{CrcAlgorithm, checksum};

use super::extent::{ExtentHeader, HEADER_BYTES, PAYLOAD_BYTES_MAX};
use super::index::fuzzed_rows;

/// A row of either table and a header of an extent, all of these bytes.
pub(crate) fn index_file(bytes: &[u8]) {
    fuzzed_rows(bytes);
    let mut header = [0; HEADER_BYTES];
    let length = bytes.len().min(HEADER_BYTES - 8);
    header[..length].copy_from_slice(&bytes[..length]);
    let payload = bytes.get(length..).unwrap_or_default();
    checked(&header, payload);
    let sum = checksum(CrcAlgorithm::Crc64Nvme, &header[..HEADER_BYTES - 8]);
    header[HEADER_BYTES - 8..].copy_from_slice(&sum.to_le_bytes());
    checked(&header, payload);
}

fn checked(bytes: &[u8; HEADER_BYTES], payload: &[u8]) {
    let Ok(header) = ExtentHeader::decode(bytes) else { return };
    assert!(header.payload_bytes() <= PAYLOAD_BYTES_MAX, "{header:?}");
    assert!(header.content_bytes() <= header.payload_bytes() as u64, "{header:?}");
    let again = ExtentHeader::decode(&header.encode());
    assert!(again.as_ref() == Ok(&header), "{header:?} becomes {again:?}");
    let sound = header.check_all(payload).is_ok();
    assert!(!sound || payload.len() >= header.payload_bytes(), "bytes that are not there");
    for grain in [0, 1, usize::MAX / 2] {
        let _whether = header.check(grain, payload);
    }
}
