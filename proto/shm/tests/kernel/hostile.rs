//! Sealed memfds whose content lies: a client maps none of them.

use std::os::fd::OwnedFd;

use forebay_shm::{SegmentMap, ShmError};
use rustix::fs::{MemfdFlags, SealFlags};

use crate::segment;

/// The header of a real segment with 4 slots, to be falsified.
fn true_header() -> (Vec<u8>, u64) {
    let segment = segment(5, 4);
    let mut header = vec![0; 64];
    rustix::io::pread(segment.descriptor(), &mut header[..], 0).expect("read");
    (header, segment.bytes() as u64)
}

/// A file with all the seals of a segment, these bytes at its start, and this size.
pub(crate) fn sealed(bytes: &[u8], size: u64) -> OwnedFd {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let file = rustix::fs::memfd_create("test", flags).expect("a memfd");
    rustix::io::write(&file, bytes).expect("write");
    rustix::fs::ftruncate(&file, size).expect("size");
    let seals = SealFlags::GROW | SealFlags::SHRINK | SealFlags::FUTURE_WRITE | SealFlags::SEAL;
    rustix::fs::fcntl_add_seals(&file, seals).expect("seal");
    file
}

fn refused(bytes: &[u8], size: u64, what: &str) {
    let error = SegmentMap::open(sealed(bytes, size)).expect_err(what);
    assert!(matches!(error, ShmError::Foreign(_)), "{what}: {error}");
}

#[test]
fn the_true_header_is_accepted() {
    let (header, size) = true_header();
    let map = SegmentMap::open(sealed(&header, size)).expect("as the daemon would make it");
    assert_eq!((map.slots(), map.bytes() as u64), (4, size));
}

#[test]
fn a_file_of_another_size_is_refused() {
    let (header, size) = true_header();
    refused(&[], 0, "an empty file");
    refused(&header[..63], 63, "a file shorter than a header");
    refused(&header, 64, "a header alone");
    for other in [size - 4096, size - 1, size + 1, size + 4096, 1 << 50] {
        refused(&header, other, "a file of another size");
    }
}

#[test]
fn a_header_that_lies_is_refused() {
    let (header, size) = true_header();
    let lies: [(&str, usize, &[u8]); 12] = [
        ("no magic", 0, b"FOREBAY\0"),
        ("a later layout", 8, &2_u32.to_ne_bytes()),
        ("no slots", 12, &0_u32.to_ne_bytes()),
        ("one slot more", 12, &5_u32.to_ne_bytes()),
        ("very many slots", 12, &u32::MAX.to_ne_bytes()),
        ("slots of no bytes", 32, &0_u64.to_ne_bytes()),
        ("slots of odd size", 32, &12_345_u64.to_ne_bytes()),
        ("slots whose sum overflows", 32, &(1_u64 << 62).to_ne_bytes()),
        ("slots of all there is", 32, &u64::MAX.to_ne_bytes()),
        ("slots over the table", 40, &0_u64.to_ne_bytes()),
        ("slots past the end", 40, &(size - 4096).to_ne_bytes()),
        ("another size", 48, &(size + 4096).to_ne_bytes()),
    ];
    for (what, at, lie) in lies {
        let mut bytes = header.clone();
        bytes[at..at + lie.len()].copy_from_slice(lie);
        refused(&bytes, size, what);
    }
}

#[test]
fn huge_declared_slots_do_not_wrap_to_a_small_file() {
    let (mut header, size) = true_header();
    // 2^62 * 4 wraps to 0: with wrapping sums the file would need to hold its head only.
    header[32..40].copy_from_slice(&(1_u64 << 62).to_ne_bytes());
    let data_offset = 1_u64 << 21;
    header[40..48].copy_from_slice(&data_offset.to_ne_bytes());
    header[48..56].copy_from_slice(&data_offset.to_ne_bytes());
    refused(&header, data_offset, "a sum that wraps");
    refused(&header, size, "a sum that wraps, in the true size");
}
