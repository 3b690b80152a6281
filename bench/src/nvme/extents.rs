//! Extents as the tier leaves them, without what is in them: sparse files with a real header, in
//! the format that the head of the server's `nvme/extent.rs` gives.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use crc_fast::{CrcAlgorithm, checksum};
use sha2::{Digest, Sha256};

/// What each holds: a chunk of the default size.
pub(super) const PAYLOAD_BYTES: u64 = 8 << 20;

const HEADER_BYTES: usize = 4096;
const HEADER_SUM_OFFSET: usize = 4088;
const GRAIN_BYTES: u32 = 64 << 10;
/// Of one checkpoint: 16 GiB.
const EXTENTS_OF_REVISION: u32 = 2048;

/// Writes extents number 0 to `count` below the tier's folder, which a daemon has made.
pub(super) fn write(folder: &Path, count: u32) -> io::Result<()> {
    (0..count).try_for_each(|number| {
        let key = digest("chunk", number);
        let path = folder.join(format!("extents/{:02x}/{}", key[0], hex(&key)));
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
        file.write_all(&header(number, &key))?;
        file.set_len(PAYLOAD_BYTES + HEADER_BYTES as u64)
    })
}

fn header(number: u32, key: &[u8; 32]) -> [u8; HEADER_BYTES] {
    let mut header = [0; HEADER_BYTES];
    let mut put = |offset: usize, bytes: &[u8]| {
        header[offset..offset + bytes.len()].copy_from_slice(bytes);
    };
    put(0, b"FBEXTENT");
    put(8, &1_u32.to_le_bytes());
    put(12, &4096_u32.to_le_bytes());
    put(16, key);
    put(48, &digest("revision", number / EXTENTS_OF_REVISION));
    put(80, &u64::from(number + 1).to_le_bytes());
    put(88, &PAYLOAD_BYTES.to_le_bytes());
    put(96, &GRAIN_BYTES.to_le_bytes());
    put(100, &128_u32.to_le_bytes());
    put(104, &digest("content", number));
    put(136, &PAYLOAD_BYTES.to_le_bytes());
    // The sums of the grains stay zero: a start does not read the payloads.
    let sum = checksum(CrcAlgorithm::Crc64Nvme, &header[..HEADER_SUM_OFFSET]);
    header[HEADER_SUM_OFFSET..].copy_from_slice(&sum.to_le_bytes());
    header
}

fn digest(what: &str, number: u32) -> [u8; 32] {
    Sha256::new().chain_update(what).chain_update(number.to_le_bytes()).finalize().into()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
