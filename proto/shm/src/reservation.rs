//! Address space that is kept free for one object, and into which pages of segments are mapped.
//!
//! A [`Reservation`] owns its range from the start: it is mapped without any access, so nothing
//! else can come to lie there, and placing replaces a part of it. If the kernel refuses half-way,
//! the part may be left unmapped, and another thread's mapping may take it: such a part is given
//! up, never mapped again and not unmapped at the end.

use std::ffi::c_void;
use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::ptr::{self, NonNull};
use std::sync::{Mutex, PoisonError};

use rustix::io::{Errno, Result as SysResult};
use rustix::mm::{MapFlags, ProtFlags};

use crate::layout::HUGE_PAGE_BYTES;
use crate::runs::Runs;

/// An address range with no access, but where something is placed.
#[derive(Debug)]
pub(crate) struct Reservation {
    base: NonNull<u8>,
    bytes: usize,
    /// Where the part that is used begins: at an address that huge pages fit.
    lead: usize,
    given_up: Mutex<Runs>,
}

// SAFETY: the range is plain memory that belongs to no thread.
unsafe impl Send for Reservation {}
// SAFETY: the methods that change the range or hand out references into it are unsafe: their
// callers keep users of the same part apart. The bookkeeping is behind a mutex.
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
        Ok(Self { base, bytes, lead, given_up: Mutex::default() })
    }

    /// The address of a range, which must lie in the reservation.
    fn at(&self, offset: usize, len: usize) -> *mut u8 {
        let room = self.bytes - self.lead;
        let inside = offset.checked_add(len).is_some_and(|end| end <= room);
        assert!(inside, "bytes {offset}+{len} lie outside a reservation of {room} bytes");
        // SAFETY: the assertion above keeps the result inside the reservation.
        unsafe { self.base.as_ptr().add(self.lead + offset) }
    }

    /// Whether a part of the range was given up.
    pub(crate) fn is_given_up(&self, range: &Range<usize>) -> bool {
        self.given_up.lock().unwrap_or_else(PoisonError::into_inner).intersects(range)
    }

    /// Maps pages of a file over a range, to read.
    ///
    /// # Safety
    ///
    /// No reference into the range exists, nobody else places or clears there meanwhile, and none
    /// of it is given up. The file cannot shrink.
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
        self.settle(range, placed)
    }

    /// Takes away all access to a range.
    ///
    /// # Safety
    ///
    /// No reference into the range exists, nobody else places or clears there meanwhile, and none
    /// of it is given up.
    pub(crate) unsafe fn clear(&self, range: Range<usize>) -> SysResult<()> {
        let start = self.at(range.start, range.len()).cast::<c_void>();
        let flags = empty_flags() | MapFlags::FIXED;
        // SAFETY: MAP_FIXED replaces only what lies in the range, which is ours as `at` asserts
        // and the caller says, and which nobody refers to.
        let cleared =
            unsafe { rustix::mm::mmap_anonymous(start, range.len(), ProtFlags::empty(), flags) };
        self.settle(range, cleared)
    }

    fn settle(&self, range: Range<usize>, outcome: SysResult<*mut c_void>) -> SysResult<()> {
        if outcome.is_err() {
            self.given_up.lock().unwrap_or_else(PoisonError::into_inner).insert(range);
        }
        outcome.map(|_| ())
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
        let mut from = 0;
        let lead = self.lead;
        let given_up = self.given_up.get_mut().unwrap_or_else(PoisonError::into_inner);
        let lost = given_up.iter().map(|run| run.start + lead..run.end + lead);
        let end = std::iter::once(self.bytes..self.bytes);
        for run in lost.chain(end).collect::<Vec<_>>() {
            unmap(self.base, from..run.start);
            from = run.end;
        }
    }
}

/// Ends a part of a reservation that is being dropped.
fn unmap(base: NonNull<u8>, part: Range<usize>) {
    if part.is_empty() {
        return;
    }
    // SAFETY: the part lies in the reservation, whose length is an isize.
    let start = unsafe { base.as_ptr().add(part.start) };
    // SAFETY: the part is ours and was never given up; every reference into it borrowed from the
    // reservation, which is going.
    let ended = unsafe { rustix::mm::munmap(start.cast(), part.len()) };
    debug_assert_eq!(ended, Ok(()), "a mapping of our own can be unmapped");
}
