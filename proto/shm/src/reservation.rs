//! Address space that is kept free for one object, and into which pages of segments are mapped.
//!
//! A [`Reservation`] owns its range from the start: it is mapped without any access, so nothing
//! else can come to lie there, and placing or clearing replaces a part of it in one call. Linux
//! refuses such a call before it changes anything (its own small allocations, which come later,
//! fail only in a process that is being killed): after an error the part is as it was.

use std::ffi::c_void;
use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::ptr::{self, NonNull};

use rustix::io::{Errno, Result as SysResult};
use rustix::mm::{MapFlags, ProtFlags};

use crate::layout::HUGE_PAGE_BYTES;

/// An address range with no access, but where something is placed.
#[derive(Debug)]
pub(crate) struct Reservation {
    base: NonNull<u8>,
    bytes: usize,
    /// Where the part that is used begins: at an address that huge pages fit.
    lead: usize,
}

// SAFETY: the range is plain memory that belongs to no thread.
unsafe impl Send for Reservation {}
// SAFETY: the methods that change the range or hand out references into it are unsafe: their
// callers keep users of the same part apart.
unsafe impl Sync for Reservation {}

impl Reservation {
    /// Reserves room for `len` bytes.
    pub(crate) fn new(len: usize) -> SysResult<Self> {
        let slack = if len < HUGE_PAGE_BYTES { 0 } else { HUGE_PAGE_BYTES };
        let bytes = len
            .max(1)
            .checked_add(slack)
            .and_then(|bytes| bytes.checked_next_multiple_of(rustix::param::page_size()))
            .ok_or(Errno::NOMEM)?;
        // SAFETY: with a null hint and without MAP_FIXED the kernel picks a range that is free,
        // so no memory that anybody else uses changes.
        let base = unsafe {
            rustix::mm::mmap_anonymous(ptr::null_mut(), bytes, ProtFlags::empty(), empty_flags())
        }?;
        let base = NonNull::new(base.cast::<u8>()).ok_or(Errno::NOMEM)?;
        let lead = base.as_ptr().addr().wrapping_neg() % HUGE_PAGE_BYTES;
        let lead = if slack == 0 { 0 } else { lead };
        Ok(Self { base, bytes, lead })
    }

    /// The address of a range, which must lie in the reservation.
    fn at(&self, offset: usize, len: usize) -> *mut u8 {
        let room = self.bytes - self.lead;
        let inside = offset.checked_add(len).is_some_and(|end| end <= room);
        assert!(inside, "bytes {offset}+{len} lie outside a reservation of {room} bytes");
        // SAFETY: the assertion above keeps the result inside the reservation.
        unsafe { self.base.as_ptr().add(self.lead + offset) }
    }

    /// Maps pages of a file over a range, to read.
    ///
    /// # Safety
    ///
    /// No reference into the range exists, and nobody else places or clears there meanwhile. The
    /// file cannot shrink.
    pub(crate) unsafe fn place(
        &self,
        range: Range<usize>,
        file: BorrowedFd<'_>,
        file_offset: usize,
    ) -> SysResult<()> {
        let start = self.at(range.start, range.len()).cast::<c_void>();
        let flags = MapFlags::SHARED | MapFlags::FIXED;
        // SAFETY: MAP_FIXED replaces only what lies in the range, which is ours as `at` asserts
        // and the caller says, and which nobody refers to.
        let placed = unsafe {
            rustix::mm::mmap(start, range.len(), ProtFlags::READ, flags, file, file_offset as u64)
        };
        placed.map(|_| ())
    }

    /// Takes away all access to a range.
    ///
    /// # Safety
    ///
    /// No reference into the range exists, and nobody else places or clears there meanwhile.
    pub(crate) unsafe fn clear(&self, range: Range<usize>) -> SysResult<()> {
        let start = self.at(range.start, range.len()).cast::<c_void>();
        let flags = empty_flags() | MapFlags::FIXED;
        // SAFETY: MAP_FIXED replaces only what lies in the range, which is ours as `at` asserts
        // and the caller says, and which nobody refers to.
        let cleared =
            unsafe { rustix::mm::mmap_anonymous(start, range.len(), ProtFlags::empty(), flags) };
        cleared.map(|_| ())
    }

    /// The bytes of a range.
    ///
    /// # Safety
    ///
    /// The whole range was placed, and is neither cleared nor written to while the slice lives.
    pub(crate) unsafe fn slice(&self, range: Range<usize>) -> &[u8] {
        let start = self.at(range.start, range.len());
        // SAFETY: `at` keeps the range inside the reservation, which outlives `&self`; the caller
        // keeps it readable and unchanged.
        unsafe { std::slice::from_raw_parts(start, range.len()) }
    }
}

/// Address space without memory behind it.
fn empty_flags() -> MapFlags {
    MapFlags::PRIVATE | MapFlags::NORESERVE
}

impl Drop for Reservation {
    fn drop(&mut self) {
        let base = self.base.as_ptr().cast::<c_void>();
        // SAFETY: the range, with whatever was placed in it, is ours since `new` and is unmapped
        // nowhere else; every reference into it borrows from this value, which is going.
        let ended = unsafe { rustix::mm::munmap(base, self.bytes) };
        debug_assert_eq!(ended, Ok(()), "a whole mapping can always be unmapped");
    }
}
