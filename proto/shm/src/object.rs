//! One object as one slice, although its chunks lie in scattered slots of several segments.
//!
//! [`ObjectMap`] reserves address space for the whole object and maps each granted slot to where
//! its bytes belong: no byte is copied. What is placed stays as it is until `clear`, which takes
//! the map exclusively, so a slice of it can be handed out for as long as the map is borrowed.

use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::error::ShmError;
use crate::ids::{Generation, SlotIndex};
use crate::map::SegmentMap;
use crate::reservation::Reservation;
use crate::runs::Runs;

/// The address space of one object, filled slot by slot.
#[derive(Debug)]
pub struct ObjectMap {
    len: usize,
    space: Reservation,
    /// What is readable. Whoever changes the address space holds this.
    placed: Mutex<Runs>,
}

impl ObjectMap {
    /// Reserves address space, not memory, for an object of `len` bytes.
    pub fn reserve(len: usize) -> Result<Self, ShmError> {
        let space = Reservation::new(len)
            .map_err(|errno| ShmError::mapping("reserve address space", len, errno))?;
        Ok(Self { len, space, placed: Mutex::default() })
    }

    /// Size of the object.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether the object has no bytes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Makes the first `len` bytes of a granted slot the bytes of the object from `offset`, which
    /// is a multiple of the page size. The lease must be held until they are cleared or the map
    /// is dropped.
    pub fn place(
        &self,
        offset: usize,
        map: &Arc<SegmentMap>,
        slot: SlotIndex,
        generation: Generation,
        len: usize,
    ) -> Result<(), ShmError> {
        let file_offset = map.granted(slot, generation, len)?;
        let range = self.checked(offset, len)?;
        if range.is_empty() {
            return Ok(());
        }
        let mut placed = self.placed();
        let pages = whole_pages(&range);
        if placed.intersects(&pages) {
            return Err(ShmError::Occupied { offset, len });
        }
        // SAFETY: nothing is placed in these pages, so `bytes` has handed out no reference into
        // them; the lock keeps others from placing there. The file is sealed against shrinking
        // (SegmentMap::open).
        unsafe { self.space.place(pages, map.descriptor(), file_offset) }
            .map_err(|errno| ShmError::mapping("map a slot", len, errno))?;
        placed.insert(range);
        Ok(())
    }

    /// The bytes of a range, if all of them were placed. The caller holds their leases while it
    /// uses them.
    #[must_use]
    pub fn bytes(&self, range: Range<usize>) -> Option<&[u8]> {
        if range.start > range.end || range.end > self.len {
            return None;
        }
        if range.is_empty() {
            return Some(&[]);
        }
        if !self.placed().contains(&range) {
            return None;
        }
        // SAFETY: the range was placed, and taking it away needs `&mut self`. Only the daemon
        // can write to it, and it does so only after the leases have ended, which the caller has
        // promised not to let happen.
        Some(unsafe { self.space.slice(range) })
    }

    /// Forgets the bytes of a range: whole pages, from an offset that is a multiple of the page
    /// size. Their leases may end after this; if it is refused, everything stays as it was.
    pub fn clear(&mut self, range: Range<usize>) -> Result<(), ShmError> {
        let range = self.checked(range.start, range.end.saturating_sub(range.start))?;
        let pages = whole_pages(&range);
        if pages.is_empty() {
            return Ok(());
        }
        // SAFETY: through `&mut self` no slice of `bytes` is left and nobody else places.
        unsafe { self.space.clear(pages.clone()) }
            .map_err(|errno| ShmError::mapping("clear a range", range.len(), errno))?;
        self.placed.get_mut().unwrap_or_else(PoisonError::into_inner).remove(&pages);
        Ok(())
    }

    /// A range of the object that begins with a page.
    fn checked(&self, offset: usize, len: usize) -> Result<Range<usize>, ShmError> {
        let page_bytes = rustix::param::page_size();
        if !offset.is_multiple_of(page_bytes) {
            return Err(ShmError::Unaligned { offset, page_bytes });
        }
        let bound = self.len;
        match offset.checked_add(len) {
            Some(end) if end <= bound => Ok(offset..end),
            _ => Err(ShmError::OutOfRange { what: "object", offset, len, bound }),
        }
    }

    fn placed(&self) -> MutexGuard<'_, Runs> {
        self.placed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The pages that a range lies in, given that it begins with one.
fn whole_pages(range: &Range<usize>) -> Range<usize> {
    range.start..range.end.next_multiple_of(rustix::param::page_size())
}
