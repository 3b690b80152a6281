//! A mapping of a segment file, and the only place that makes or ends one.
//!
//! A [`Mapping`] owns its address range: it unmaps it when dropped, and nothing else ever maps
//! into it. Which of its bytes may be read or written at a moment is not known here; the callers
//! of the unsafe methods know it (the slot's state word in the daemon, the lease in a client).

use std::ffi::c_void;
use std::os::fd::BorrowedFd;
use std::ptr::{self, NonNull};
use std::sync::atomic::AtomicU64;

use rustix::io::{Errno, Result as SysResult};
use rustix::mm::{Advice, MapFlags, ProtFlags};

use crate::layout::HUGE_PAGE_BYTES;

/// What a mapping lets this process do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    Read,
    ReadWrite,
}

/// An address range that shares the bytes of a file from its start.
#[derive(Debug)]
pub(crate) struct Mapping {
    base: NonNull<u8>,
    bytes: usize,
}

// SAFETY: the range is plain memory that belongs to no thread; every access goes through methods
// that hand out references under their callers' exclusion rules.
unsafe impl Send for Mapping {}
// SAFETY: as for Send; the methods of a shared reference change nothing in the value itself.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps the first `bytes` of a file, at an address that huge pages fit: the kernel maps one
    /// only where file and address are aligned alike. The file must not become shorter while this
    /// lives: the callers see to that with F_SEAL_SHRINK.
    pub(crate) fn new(file: BorrowedFd<'_>, bytes: usize, access: Access) -> SysResult<Self> {
        let protection = match access {
            Access::Read => ProtFlags::READ,
            Access::ReadWrite => ProtFlags::READ | ProtFlags::WRITE,
        };
        let room = Self::room(bytes)?;
        let start = room.base.as_ptr().cast::<c_void>();
        let flags = MapFlags::SHARED | MapFlags::FIXED;
        // SAFETY: MAP_FIXED replaces the whole of `room`, which is ours and refers to nothing; the
        // value that comes of it unmaps the same range once.
        unsafe { rustix::mm::mmap(start, bytes, protection, flags, file, 0) }?;
        Ok(room)
    }

    /// A range without any access.
    fn room(bytes: usize) -> SysResult<Self> {
        let slack = if bytes < HUGE_PAGE_BYTES { 0 } else { HUGE_PAGE_BYTES };
        let whole = bytes.checked_add(slack).ok_or(Errno::NOMEM)?;
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
        // SAFETY: with a null hint and without MAP_FIXED the kernel picks a range that is free,
        // so no memory that anybody else uses changes.
        let base = unsafe {
            rustix::mm::mmap_anonymous(ptr::null_mut(), whole, ProtFlags::empty(), flags)
        }?;
        let lead = if slack == 0 { 0 } else { base.addr().wrapping_neg() % HUGE_PAGE_BYTES };
        // What is not used is given back. A part that cannot be is address space, and no more.
        let start = base.wrapping_byte_add(lead);
        let end = start.wrapping_byte_add(bytes.next_multiple_of(rustix::param::page_size()));
        let tail = base.wrapping_byte_add(whole).addr().saturating_sub(end.addr());
        for (unused, len) in [(base, lead), (end, tail)] {
            if len > 0 {
                // SAFETY: the part was mapped above, lies outside what is kept, and is used by
                // nobody.
                let ended = unsafe { rustix::mm::munmap(unused, len) };
                debug_assert_eq!(ended, Ok(()), "a part of an empty mapping can be unmapped");
            }
        }
        Ok(Self { base: NonNull::new(start.cast()).ok_or(Errno::NOMEM)?, bytes })
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(crate) fn as_ptr(&self) -> *const u8 {
        self.base.as_ptr()
    }

    /// The address of a range, which must lie in the mapping.
    fn at(&self, offset: usize, len: usize) -> *mut u8 {
        let inside = offset.checked_add(len).is_some_and(|end| end <= self.bytes);
        assert!(inside, "bytes {offset}+{len} lie outside a mapping of {} bytes", self.bytes);
        // SAFETY: the assertion above keeps the result inside the mapping.
        unsafe { self.base.as_ptr().add(offset) }
    }

    /// The bytes of a range.
    ///
    /// # Safety
    ///
    /// The mapping is readable there and nobody writes to the range while the slice lives.
    pub(crate) unsafe fn slice(&self, offset: usize, len: usize) -> &[u8] {
        let start = self.at(offset, len);
        // SAFETY: `at` keeps the range inside the mapping, which outlives `&self`; the caller
        // keeps writers out.
        unsafe { std::slice::from_raw_parts(start, len) }
    }

    /// The bytes of a range, for writing.
    ///
    /// # Safety
    ///
    /// The mapping is writable and nobody else of this process touches the range while the slice
    /// lives.
    #[expect(clippy::mut_from_ref, reason = "the caller excludes every other user of the range")]
    pub(crate) unsafe fn slice_mut(&self, offset: usize, len: usize) -> &mut [u8] {
        let start = self.at(offset, len);
        // SAFETY: `at` keeps the range inside the mapping, which outlives `&self`; the caller
        // keeps everybody else out.
        unsafe { std::slice::from_raw_parts_mut(start, len) }
    }

    /// A word of the mapping that several processes use. In a read-only mapping only relaxed
    /// loads are allowed.
    pub(crate) fn word(&self, offset: usize) -> &AtomicU64 {
        let start = self.at(offset, size_of::<AtomicU64>()).cast::<AtomicU64>();
        assert!(start.is_aligned(), "the word at {offset} is not aligned");
        // SAFETY: the range is inside the mapping and aligned, as asserted; an atomic may be
        // changed by others at any time, and the table of generations is accessed in no other way.
        unsafe { &*start }
    }

    /// Tells the kernel how a range is used, or what to do with it. Never an advice that drops
    /// pages: those would change bytes under a reader.
    pub(crate) fn advise(&self, offset: usize, len: usize, advice: Advice) -> SysResult<()> {
        let keeps_bytes = matches!(
            advice,
            Advice::LinuxHugepage | Advice::LinuxDontDump | Advice::LinuxPopulateWrite
        );
        assert!(keeps_bytes, "advice that drops pages");
        let start = self.at(offset, len).cast::<c_void>();
        // SAFETY: the range is ours, and the advice changes no byte of it, as asserted.
        rustix::io::retry_on_intr(|| unsafe { rustix::mm::madvise(start, len, advice) })
    }

    /// Moves a range onto huge pages at once, whatever the system's settings say of when that is
    /// done by itself. The range is aligned to them, and each has a page of it already. Linux 6.1
    /// and later; without an error all of it lies on huge pages.
    pub(crate) fn collapse(&self, offset: usize, len: usize) -> SysResult<()> {
        let start = self.at(offset, len).cast::<c_void>();
        rustix::io::retry_on_intr(|| {
            // SAFETY: the range is ours, and its bytes stay what they are: the kernel copies them
            // while nobody can reach them.
            match unsafe { libc::madvise(start, len, libc::MADV_COLLAPSE) } {
                0 => Ok(()),
                _ => {
                    Err(Errno::from_io_error(&std::io::Error::last_os_error())
                        .unwrap_or(Errno::INVAL))
                }
            }
        })
    }

    /// Keeps a range from being swapped out.
    pub(crate) fn lock(&self, offset: usize, len: usize) -> SysResult<()> {
        let start = self.at(offset, len).cast::<c_void>();
        // SAFETY: the range is ours; locking changes no byte of it.
        unsafe { rustix::mm::mlock(start, len) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        let base = self.base.as_ptr().cast::<c_void>();
        // SAFETY: the range was mapped by `new` and is unmapped nowhere else; every reference
        // into it borrows from this value, which is going.
        let ended = unsafe { rustix::mm::munmap(base, self.bytes) };
        debug_assert_eq!(ended, Ok(()), "a whole mapping can always be unmapped");
    }
}
