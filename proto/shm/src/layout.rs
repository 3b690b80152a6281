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
