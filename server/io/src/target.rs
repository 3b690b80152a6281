//! What an operation may read into or write from, and the promise that makes it safe.
//!
//! The kernel gets an address and a length, and uses them after the call returned. So the memory
//! must stay where it is and belong to nobody else until the completion. A type promises that with
//! [`StableBytes`]; an operation takes the value itself and gives it back with the completion, so
//! that in between nobody has a reference to its bytes.

use std::any::Any;
use std::fmt;

use forebay_shm::{SlotReader, SlotWriter};

use crate::buffer::AlignedBuf;

/// Bytes that stay where they are however the value that owns them moves.
///
/// # Safety
///
/// From the creation of the value until its drop begins:
///
/// - `start` and `size` give the same answers, however often asked and wherever the value moves;
/// - the bytes there are mapped, readable and initialised;
/// - nobody writes to them but through a `&mut` of the value.
pub unsafe trait StableBytes: Any + Send {
    /// Where the bytes begin.
    fn start(&self) -> *const u8;

    /// How many there are.
    fn size(&self) -> usize;
}

/// Stable bytes that can be written to.
///
/// # Safety
///
/// Beside what [`StableBytes`] asks for: the bytes are writable, nobody else reads them either,
/// but through a reference borrowed from the value, and `start_mut` gives the address of `start`.
pub unsafe trait StableBytesMut: StableBytes {
    /// Where the bytes begin.
    fn start_mut(&mut self) -> *mut u8;
}

/// The bytes of a value nobody else has.
pub(crate) fn bytes_of<T: StableBytes + ?Sized>(value: &T) -> &[u8] {
    // SAFETY: the trait's promise: readable, initialised, and written to only through a `&mut` of
    // the value, which the borrow keeps out.
    unsafe { std::slice::from_raw_parts(value.start(), value.size()) }
}

/// The bytes of a value nobody else has, to write.
pub(crate) fn bytes_of_mut<T: StableBytesMut + ?Sized>(value: &mut T) -> &mut [u8] {
    let size = value.size();
    // SAFETY: the trait's promise: writable, and used only through references borrowed from the
    // value, which the exclusive borrow keeps out.
    unsafe { std::slice::from_raw_parts_mut(value.start_mut(), size) }
}

// SAFETY: the allocation belongs to the value, does not move with it, is initialised since its
// creation, and is reached only through `Deref` and `DerefMut`.
unsafe impl StableBytes for AlignedBuf {
    fn start(&self) -> *const u8 {
        self.as_raw()
    }

    fn size(&self) -> usize {
        self.len()
    }
}

// SAFETY: as above; the allocation is writable and has no other owner.
unsafe impl StableBytesMut for AlignedBuf {
    fn start_mut(&mut self) -> *mut u8 {
        self.as_raw()
    }
}

// SAFETY: the slot lies in the segment's mapping, which the writer keeps alive and which never
// moves; pages of a memfd are initialised; the slot's state word, in state writing while the
// writer lives, keeps every other writer out.
unsafe impl StableBytes for SlotWriter {
    fn start(&self) -> *const u8 {
        self.as_slice().as_ptr()
    }

    fn size(&self) -> usize {
        self.as_slice().len()
    }
}

// SAFETY: as above; the daemon's mapping of a segment is writable, and state writing keeps readers
// out as well.
unsafe impl StableBytesMut for SlotWriter {
    fn start_mut(&mut self) -> *mut u8 {
        self.as_mut_slice().as_mut_ptr()
    }
}

// SAFETY: as for the writer; while a reader lives, the state word keeps writers out.
unsafe impl StableBytes for SlotReader {
    fn start(&self) -> *const u8 {
        self.bytes().as_ptr()
    }

    fn size(&self) -> usize {
        self.bytes().len()
    }
}

/// Bytes, and what has to live as long as their operation: the slot's place on a free list, a
/// permit. Dropped in this order.
pub struct Carried<B, T> {
    /// What the operation uses.
    pub bytes: B,
    /// What goes along.
    pub with: T,
}

// SAFETY: the answers and the promise are those of `bytes`, which moves with this value and is
// dropped with it.
unsafe impl<B: StableBytes, T: Send + 'static> StableBytes for Carried<B, T> {
    fn start(&self) -> *const u8 {
        self.bytes.start()
    }

    fn size(&self) -> usize {
        self.bytes.size()
    }
}

// SAFETY: as above.
unsafe impl<B: StableBytesMut, T: Send + 'static> StableBytesMut for Carried<B, T> {
    fn start_mut(&mut self) -> *mut u8 {
        self.bytes.start_mut()
    }
}

impl<B: fmt::Debug, T> fmt::Debug for Carried<B, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Carried").field("bytes", &self.bytes).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use forebay_shm::{Segment, SegmentId, SegmentSpec, SlotIndex};

    use super::*;

    fn stays_put(value: impl StableBytesMut) {
        let (start, size) = (value.start(), value.size());
        let mut moved: Box<dyn StableBytesMut> = Box::new(value);
        assert_eq!((moved.start(), moved.size()), (start, size));
        assert_eq!(moved.start_mut().cast_const(), start);
        bytes_of_mut(&mut *moved).fill(7);
        assert!(bytes_of(&*moved).iter().all(|&byte| byte == 7));
    }

    #[test]
    fn buffers_and_slots_stay_where_they_are() {
        let spec =
            SegmentSpec { id: SegmentId(1), domain: 0, slot_bytes: 8192, slots: 2, lock: false };
        let segment = Segment::create(&spec).unwrap();
        stays_put(AlignedBuf::zeroed(8192, 4096).unwrap());
        stays_put(segment.writer(SlotIndex(0)).unwrap());
        let writer = segment.writer(SlotIndex(1)).unwrap();
        stays_put(Carried { bytes: writer, with: "a permit" });
        let reader = segment.writer(SlotIndex(1)).unwrap().publish();
        assert_eq!(bytes_of(&reader), [7; 8192]);
    }
}
