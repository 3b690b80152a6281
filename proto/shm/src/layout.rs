//! The layout of a segment file, encoded and decoded without touching memory that others share.
//!
//! ```text
//!   0                64                    data_offset
//!   ├── header ──────┼── u64 per slot ──┬──┼── slot 0 ──┼── slot 1 ── ... ──┤ file_bytes
//!       constant         generations   hole    slot_bytes each
//! ```
//!
//! Slots begin at a multiple of their own alignment, up to 2 MiB, so that huge pages fit them; the
//! hole before them has no memory behind it. Numbers are in the machine's byte order: a segment
//! never leaves its node. A header comes from a peer, so [`Header::decode`] trusts nothing in it.

use crate::error::ShmError;
use crate::ids::{SegmentId, SlotIndex};

const MAGIC: [u8; 8] = *b"forebay\0";
const LAYOUT_VERSION: u32 = 1;

/// The header is this many bytes, at the start of the file.
pub(crate) const HEADER_BYTES: usize = 64;
const TABLE_OFFSET: usize = HEADER_BYTES;
const GENERATION_BYTES: usize = size_of::<u64>();

/// A table of this many slots is 512 KiB.
const SLOTS_MAX: u32 = 1 << 16;
/// The largest page that a slot can be laid out for.
pub(crate) const HUGE_PAGE_BYTES: usize = 2 << 20;

const _: () = assert!(size_of::<usize>() == size_of::<u64>(), "sizes of a file are u64 and usize");
const _: () = assert!(TABLE_OFFSET.is_multiple_of(GENERATION_BYTES), "generations are atomics");
const _: () = assert!(56 + 8 == HEADER_BYTES, "the last field ends the header");

/// Where things lie in a segment file. Made only by [`Geometry::new`], so that every slot lies
/// inside the file and nothing overflows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Geometry {
    slot_bytes: usize,
    slots: u32,
    data_offset: usize,
    file_bytes: usize,
}

impl Geometry {
    pub(crate) fn new(slot_bytes: usize, slots: u32, page_bytes: usize) -> Result<Self, ShmError> {
        if slot_bytes == 0 || !slot_bytes.is_multiple_of(page_bytes) {
            return Err(ShmError::BadSpec("a slot must be a positive multiple of the page size"));
        }
        if slots == 0 || slots > SLOTS_MAX {
            return Err(ShmError::BadSpec("it must have 1 to 65536 slots"));
        }
        let table_end = TABLE_OFFSET + slots as usize * GENERATION_BYTES;
        let slot_alignment = 1_usize << slot_bytes.trailing_zeros();
        let data_offset = table_end.next_multiple_of(slot_alignment.min(HUGE_PAGE_BYTES));
        let file_bytes = slot_bytes
            .checked_mul(slots as usize)
            .and_then(|data| data.checked_add(data_offset))
            .filter(|&bytes| isize::try_from(bytes).is_ok())
            .ok_or(ShmError::BadSpec("its size overflows"))?;
        Ok(Self { slot_bytes, slots, data_offset, file_bytes })
    }

    pub(crate) fn slot_bytes(&self) -> usize {
        self.slot_bytes
    }

    pub(crate) fn slots(&self) -> u32 {
        self.slots
    }

    pub(crate) fn file_bytes(&self) -> usize {
        self.file_bytes
    }

    /// Where the slots begin, which is also where the hole after the table ends.
    pub(crate) fn data_offset(&self) -> usize {
        self.data_offset
    }

    /// Where the table of generations ends.
    pub(crate) fn table_end(&self) -> usize {
        TABLE_OFFSET + self.slots as usize * GENERATION_BYTES
    }

    /// Where a slot begins in the file, if there is such a slot.
    pub(crate) fn slot_offset(&self, slot: SlotIndex) -> Option<usize> {
        (slot.0 < self.slots).then(|| self.data_offset + slot.0 as usize * self.slot_bytes)
    }

    /// Where the generation of a slot lies in the file, if there is such a slot.
    pub(crate) fn generation_offset(&self, slot: SlotIndex) -> Option<usize> {
        (slot.0 < self.slots).then(|| TABLE_OFFSET + slot.0 as usize * GENERATION_BYTES)
    }
}

/// What a segment file says about itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) id: SegmentId,
    pub(crate) domain: u64,
    pub(crate) geometry: Geometry,
}

impl Header {
    pub(crate) fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        let mut put = |at: usize, field: &[u8]| bytes[at..at + field.len()].copy_from_slice(field);
        put(0, &MAGIC);
        put(8, &LAYOUT_VERSION.to_ne_bytes());
        put(12, &self.geometry.slots.to_ne_bytes());
        put(16, &self.id.0.to_ne_bytes());
        put(24, &self.domain.to_ne_bytes());
        put(32, &self.geometry.slot_bytes.to_ne_bytes());
        put(40, &self.geometry.data_offset.to_ne_bytes());
        put(48, &self.geometry.file_bytes.to_ne_bytes());
        bytes
    }

    /// Accepts exactly the headers that [`Header::encode`] makes for a file of `file_bytes`.
    pub(crate) fn decode(
        bytes: &[u8; HEADER_BYTES],
        file_bytes: u64,
        page_bytes: usize,
    ) -> Result<Self, ShmError> {
        if bytes[..8] != MAGIC {
            return Err(ShmError::Foreign("it does not begin with the magic of a segment"));
        }
        if u32_at(bytes, 8) != LAYOUT_VERSION {
            return Err(ShmError::Foreign("its layout is of another version of Forebay"));
        }
        if u64_at(bytes, 56) != 0 {
            return Err(ShmError::Foreign("its reserved field is not zero"));
        }
        let geometry = Geometry::new(usize_at(bytes, 32), u32_at(bytes, 12), page_bytes)
            .map_err(|_| ShmError::Foreign("its header declares slots that cannot exist"))?;
        if usize_at(bytes, 40) != geometry.data_offset || usize_at(bytes, 48) != geometry.file_bytes
        {
            return Err(ShmError::Foreign("the sizes in its header contradict each other"));
        }
        if geometry.file_bytes as u64 != file_bytes {
            return Err(ShmError::Foreign("its size is not the one in its header"));
        }
        let id = SegmentId(u64_at(bytes, 16));
        Ok(Self { id, domain: u64_at(bytes, 24), geometry })
    }
}

fn field<const N: usize>(bytes: &[u8; HEADER_BYTES], at: usize) -> [u8; N] {
    let mut field = [0; N];
    field.copy_from_slice(&bytes[at..at + N]);
    field
}

fn u32_at(bytes: &[u8; HEADER_BYTES], at: usize) -> u32 {
    u32::from_ne_bytes(field(bytes, at))
}

fn u64_at(bytes: &[u8; HEADER_BYTES], at: usize) -> u64 {
    u64::from_ne_bytes(field(bytes, at))
}

fn usize_at(bytes: &[u8; HEADER_BYTES], at: usize) -> usize {
    usize::from_ne_bytes(field(bytes, at))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PAGE: usize = 4096;

    fn header(slot_bytes: usize, slots: u32) -> Header {
        let geometry = Geometry::new(slot_bytes, slots, PAGE).expect("a possible segment");
        Header { id: SegmentId(0x0102_0304_0506_0708), domain: 9, geometry }
    }

    #[test]
    fn the_bytes_of_a_header_are_fixed() {
        let bytes = header(8 << 20, 31).encode();
        let mut expected = Vec::from(*b"forebay\0");
        expected.extend(1_u32.to_ne_bytes());
        expected.extend(31_u32.to_ne_bytes());
        let words = [0x0102_0304_0506_0708, 9, 8 << 20, 2 << 20, 250 << 20, 0_u64];
        expected.extend(words.iter().flat_map(|word| word.to_ne_bytes()));
        assert_eq!(bytes[..], expected);
    }

    #[test]
    fn slots_fit_the_largest_page_they_can() {
        for (slot_bytes, data_offset) in
            [(PAGE, PAGE), (3 * PAGE, PAGE), (64 << 10, 64 << 10), (8 << 20, 2 << 20)]
        {
            let geometry = header(slot_bytes, 8).geometry;
            assert_eq!(geometry.data_offset(), data_offset);
            assert_eq!(geometry.file_bytes(), data_offset + 8 * slot_bytes);
            assert_eq!(geometry.slot_offset(SlotIndex(8)), None);
            assert_eq!(geometry.generation_offset(SlotIndex(8)), None);
        }
        let crowded = header(PAGE, SLOTS_MAX).geometry;
        assert!(crowded.table_end() <= crowded.data_offset(), "the table ends before the slots");
    }

    #[test]
    fn impossible_segments_are_refused() {
        for (slot_bytes, slots) in [
            (0, 1),
            (1, 1),
            (PAGE - 1, 1),
            (PAGE, 0),
            (PAGE, SLOTS_MAX + 1),
            (1 << 63, 1),
            (1 << 48, SLOTS_MAX),
            (usize::MAX - (PAGE - 1), 2),
        ] {
            let refused = Geometry::new(slot_bytes, slots, PAGE);
            assert!(matches!(refused, Err(ShmError::BadSpec(_))), "{slot_bytes} x {slots}");
        }
    }

    fn seeded(cases: u32) -> ProptestConfig {
        ProptestConfig {
            cases,
            failure_persistence: None,
            rng_seed: proptest::test_runner::RngSeed::Fixed(2),
            ..ProptestConfig::default()
        }
    }

    proptest! {
        #![proptest_config(seeded(512))]

        #[test]
        fn a_header_survives(pages in 1_usize..5000, slots in 1..=SLOTS_MAX) {
            let header = header(pages * PAGE, slots);
            let file_bytes = header.geometry.file_bytes() as u64;
            let back = Header::decode(&header.encode(), file_bytes, PAGE);
            prop_assert_eq!(back.expect("its own header"), header);
        }

        /// Only the id and the domain can differ without contradicting the file.
        #[test]
        fn a_changed_header_is_refused(at in 0..HEADER_BYTES, flip in 1_u8..) {
            let header = header(3 * PAGE, 40);
            let mut bytes = header.encode();
            bytes[at] ^= flip;
            let back = Header::decode(&bytes, header.geometry.file_bytes() as u64, PAGE);
            match back {
                Ok(back) => {
                    prop_assert!((16..32).contains(&at));
                    prop_assert_eq!(back.geometry, header.geometry);
                }
                Err(error) => prop_assert!(!(16..32).contains(&at), "{}", error),
            }
        }

        /// Whatever a peer declares, an accepted geometry stays inside the file.
        #[test]
        fn an_accepted_header_stays_inside(
            slot_bytes in prop_oneof![any::<u64>(), (0_u64..64).prop_map(|n| n << 58),
                                      (0_u64..9).prop_map(|n| n * 4096)],
            slots in prop_oneof![any::<u32>(), 0_u32..9],
            data_offset in prop_oneof![any::<u64>(), (0_u64..9).prop_map(|n| n * 4096)],
            file_bytes in prop_oneof![any::<u64>(), (0_u64..99).prop_map(|n| n * 4096)],
        ) {
            let mut bytes = header(PAGE, 1).encode();
            bytes[12..16].copy_from_slice(&slots.to_ne_bytes());
            bytes[32..40].copy_from_slice(&slot_bytes.to_ne_bytes());
            bytes[40..48].copy_from_slice(&data_offset.to_ne_bytes());
            bytes[48..56].copy_from_slice(&file_bytes.to_ne_bytes());
            if let Ok(header) = Header::decode(&bytes, file_bytes, PAGE) {
                let geometry = header.geometry;
                let last = geometry.slot_offset(SlotIndex(slots - 1)).expect("a slot");
                prop_assert_eq!((last + geometry.slot_bytes()) as u64, file_bytes);
                prop_assert!(geometry.table_end() <= geometry.data_offset());
            }
        }
    }
}
