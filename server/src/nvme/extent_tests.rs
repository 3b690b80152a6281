//! An extent that was damaged in any way is never taken for a whole one.

use forebay_testkit::Content;
use proptest::prelude::*;

use super::*;

fn identity(seed: u8, generation: u64) -> Identity {
    Identity { key: ChunkKey([seed; 32]), revision: [seed ^ 0x55; 32], generation }
}

fn payload(seed: u64, bytes: usize) -> Vec<u8> {
    let mut payload = vec![0; bytes];
    Content::synthetic(seed, bytes as u64).read_at(0, &mut payload);
    payload
}

fn describe(identity: Identity, payload: &[u8]) -> Option<ExtentHeader> {
    let digest = *blake3::hash(payload).as_bytes();
    let mut describing = Describing::new(identity, payload.len() as u64, digest);
    payload.chunks(GRAIN_BYTES).for_each(|grain| describing.grain(grain));
    describing.finish()
}

/// A whole file.
fn file(identity: Identity, payload: &[u8]) -> Vec<u8> {
    let header = describe(identity, payload).unwrap();
    let mut file = header.encode().to_vec();
    file.extend_from_slice(payload);
    file.resize(usize::try_from(file_bytes(payload.len())).unwrap(), 0);
    file
}

/// Reads a file as a tier does: its payload, if it is the extent that is looked for.
fn read(file: &[u8], wanted: &Identity) -> Result<Vec<u8>, BadExtent> {
    let (header, rest) = file.split_first_chunk().ok_or(BadExtent::Header)?;
    let header = ExtentHeader::decode(header)?;
    header.expect(&wanted.key, Some(wanted.generation))?;
    header.check_all(rest)?;
    Ok(rest[..header.payload_bytes()].to_vec())
}

fn sizes() -> impl Strategy<Value = usize> {
    prop_oneof![
        Just(1),
        Just(GRAIN_BYTES - 1),
        Just(GRAIN_BYTES),
        Just(GRAIN_BYTES + 1),
        1..4 * GRAIN_BYTES,
    ]
}

#[test]
fn the_format_stays_as_it_is() {
    let file = file(identity(7, 3), &payload(1, 100_000));
    assert_eq!(&file[..16], b"FBEXTENT\x01\0\0\0\0\x10\0\0");
    let digest = blake3::hash(&file[..HEADER_BYTES]).to_hex();
    assert_eq!(digest.as_str(), HEADER_DIGEST, "a changed format needs a new version");
}

const HEADER_DIGEST: &str = "7bc389805de50a856642c26389a1bb009cb71161a58fa143f2874c4bad0cd9d1";

#[test]
fn what_cannot_be_a_chunk_is_not_described() {
    let describe = |bytes| describe(identity(1, 1), &vec![0; bytes]);
    assert!(describe(0).is_none());
    assert!(describe(PAYLOAD_BYTES_MAX + 1).is_none());
    let largest = describe(PAYLOAD_BYTES_MAX).unwrap();
    assert_eq!(ExtentHeader::decode(&largest.encode()), Ok(largest));
}

#[test]
fn a_sound_header_that_makes_no_sense_is_refused() {
    let sealed = |offset: usize, bytes: &[u8]| {
        let mut header: [u8; HEADER_BYTES] =
            file(identity(1, 1), &payload(1, 5000))[..HEADER_BYTES].try_into().unwrap();
        header[offset..offset + bytes.len()].copy_from_slice(bytes);
        let sum = checksum(CrcAlgorithm::Crc64Nvme, &header[..HEADER_SUM_OFFSET]);
        header[HEADER_SUM_OFFSET..].copy_from_slice(&sum.to_le_bytes());
        ExtentHeader::decode(&header).unwrap_err()
    };
    assert_eq!(sealed(8, &2_u32.to_le_bytes()), BadExtent::Version(2));
    assert_eq!(sealed(12, &8192_u32.to_le_bytes()), BadExtent::Contradiction);
    for bytes in [0, PAYLOAD_BYTES_MAX as u64 + 1, u64::MAX, GRAIN_BYTES as u64 + 1] {
        assert_eq!(sealed(88, &bytes.to_le_bytes()), BadExtent::Contradiction, "{bytes}");
    }
    assert_eq!(sealed(96, &4096_u32.to_le_bytes()), BadExtent::Contradiction);
    assert_eq!(sealed(100, &2_u32.to_le_bytes()), BadExtent::Contradiction);
    assert_eq!(sealed(0, b"X"), BadExtent::Header);
}

#[test]
fn parts_are_checked_by_whole_grains() {
    let payload = payload(1, 3 * GRAIN_BYTES + 100);
    let header = describe(identity(1, 1), &payload).unwrap();
    let from = |grain: usize| &payload[grain * GRAIN_BYTES..];
    for grain in 0..4 {
        assert_eq!(header.check(grain, from(grain)), Ok(()));
        let one = &from(grain)[..GRAIN_BYTES.min(from(grain).len())];
        assert_eq!(header.check(grain, one), Ok(()));
        let cut = header.check(grain, &one[..one.len() - 1]);
        assert_eq!(cut, Err(BadExtent::Truncated(grain)));
    }
    assert_eq!(header.check(1, from(2)), Err(BadExtent::Grain(1)), "another place");
    assert_eq!(header.check(9, from(0)), Ok(()), "there is nothing to check behind the end");
}

proptest! {
    #[test]
    fn what_was_written_is_read(seed: u64, key: u8, generation: u64, bytes in sizes()) {
        let (identity, payload) = (identity(key, generation), payload(seed, bytes));
        let file = file(identity, &payload);
        prop_assert!(file.len().is_multiple_of(HEADER_BYTES));
        prop_assert_eq!(read(&file, &identity), Ok(payload.clone()));
        let header = ExtentHeader::decode(file.first_chunk().unwrap()).unwrap();
        prop_assert_eq!(header.identity(), &identity);
        prop_assert_eq!(header.digest(), *blake3::hash(&payload).as_bytes());
    }

    #[test]
    fn a_flipped_bit_is_found_or_lies_behind_the_payload(
        seed: u64,
        bytes in sizes(),
        at: prop::sample::Index,
        in_header: bool,
        bit in 0..8_u32,
    ) {
        let (identity, payload) = (identity(1, 1), payload(seed, bytes));
        let mut file = file(identity, &payload);
        let at = at.index(if in_header { HEADER_BYTES } else { file.len() });
        file[at] ^= 1_u8 << bit;
        match read(&file, &identity) {
            Ok(read) => {
                prop_assert!(at >= HEADER_BYTES + bytes, "byte {} was not covered", at);
                prop_assert_eq!(read, payload);
            }
            Err(BadExtent::Grain(grain)) => {
                prop_assert_eq!(grain, (at - HEADER_BYTES) / GRAIN_BYTES);
            }
            Err(error) => prop_assert_eq!(error, BadExtent::Header),
        }
    }

    // Over what the disk held before: nothing, the same file of an older generation, another
    // extent.
    #[test]
    fn a_torn_write_serves_the_old_or_the_new_or_nothing(
        seed: u64,
        bytes in sizes(),
        before in 0..3,
        unit_bytes in prop::sample::select(vec![512_usize, 4096]),
        landed in prop::collection::vec(any::<bool>(), 1..700),
    ) {
        let (old_identity, new_identity) = match before {
            1 => (identity(1, 1), identity(1, 2)),
            _ => (identity(2, 9), identity(1, 1)),
        };
        let new = file(new_identity, &payload(seed, bytes));
        let mut disk = match before {
            0 => vec![0; new.len()],
            1 => file(old_identity, &payload(seed, bytes)),
            _ => file(old_identity, &payload(!seed, bytes)),
        };
        // Any of the units may have landed, not only the first ones: disks reorder.
        for (unit, landed) in (0..new.len().div_ceil(unit_bytes)).zip(landed.iter().cycle()) {
            let range = unit * unit_bytes..new.len().min((unit + 1) * unit_bytes);
            if *landed {
                disk[range.clone()].copy_from_slice(&new[range]);
            }
        }
        if let Ok(read) = read(&disk, &new_identity) {
            prop_assert_eq!(read, payload(seed, bytes));
        }
        if before > 0 && let Ok(read) = read(&disk, &old_identity) {
            prop_assert_eq!(read, payload(if before == 1 { seed } else { !seed }, bytes));
        }
    }

    #[test]
    fn bytes_of_another_extent_are_refused(seed: u64, bytes in sizes(), other in 0..3) {
        let wanted = identity(1, 5);
        let other = match other {
            0 => identity(2, 5),
            1 => identity(1, 4),
            _ => identity(1, 6),
        };
        let payload = payload(seed, bytes);
        prop_assert_eq!(read(&file(other, &payload), &wanted), Err(BadExtent::Other));
        // The right header over grains of the other one, though their bytes are the same.
        let mut mixed = file(wanted, &payload);
        let header = describe(other, &payload).unwrap();
        let sums = SUMS_OFFSET..SUMS_OFFSET + header.sums.len() * SUM_BYTES;
        mixed[sums.clone()].copy_from_slice(&header.encode()[sums]);
        prop_assert_eq!(read(&mixed, &wanted), Err(BadExtent::Header));
        prop_assert!(header.sums.iter().zip(ExtentHeader::decode(
            file(wanted, &payload).first_chunk().unwrap()).unwrap().sums).all(|(a, b)| *a != b));
    }

    #[test]
    fn any_bytes_are_refused_without_a_panic(header in prop::collection::vec(any::<u8>(), HEADER_BYTES)) {
        let header: [u8; HEADER_BYTES] = header.try_into().unwrap();
        prop_assert_eq!(ExtentHeader::decode(&header), Err(BadExtent::Header));
    }
}
