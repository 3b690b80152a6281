//! Memory that O_DIRECT accepts, owned.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::fmt;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

use crate::error::IoError;

/// A block of bytes whose address and size are multiples of an alignment.
pub struct AlignedBuf {
    start: NonNull<u8>,
    layout: Layout,
}

// SAFETY: the allocation is plain memory that belongs to this value and to no thread.
unsafe impl Send for AlignedBuf {}
// SAFETY: a shared reference only reads, through `Deref`.
unsafe impl Sync for AlignedBuf {}

impl AlignedBuf {
    /// Zeroes: `bytes`, rounded up to whole multiples of `align_bytes`, at least one. Large ones
    /// get their pages as they are touched.
    pub fn zeroed(bytes: usize, align_bytes: usize) -> Result<Self, IoError> {
        let refused = || IoError::NoMemory { bytes };
        let rounded = bytes.max(1).checked_next_multiple_of(align_bytes.max(1));
        let layout = rounded
            .and_then(|bytes| Layout::from_size_align(bytes, align_bytes).ok())
            .ok_or_else(refused)?;
        // SAFETY: the size is at least one.
        let start = unsafe { alloc_zeroed(layout) };
        let start = NonNull::new(start).ok_or_else(refused)?;
        Ok(Self { start, layout })
    }

    /// As [`AlignedBuf::zeroed`], and every page is there before this returns: no page fault later,
    /// in a system call or beside one.
    pub fn populated(bytes: usize, align_bytes: usize) -> Result<Self, IoError> {
        let mut buffer = Self::zeroed(bytes, align_bytes)?;
        for page in buffer.chunks_mut(rustix::param::page_size()) {
            // A plain store of a zero into zeroes could be left out.
            let first = &raw mut page[0];
            // SAFETY: the pointer comes from a live exclusive reference.
            unsafe { first.write_volatile(0) };
        }
        Ok(buffer)
    }

    /// What its address is a multiple of, at least.
    #[must_use]
    pub fn align_bytes(&self) -> usize {
        self.layout.align()
    }

    pub(crate) fn as_raw(&self) -> *mut u8 {
        self.start.as_ptr()
    }
}

impl Deref for AlignedBuf {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: the allocation has this size, is initialised since `zeroed`, and only `&mut self`
        // writes to it.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.layout.size()) }
    }
}

impl DerefMut for AlignedBuf {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as for `deref`, and `&mut self` keeps every other user out.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.layout.size()) }
    }
}

impl Drop for AlignedBuf {
    fn drop(&mut self) {
        // SAFETY: allocated by `zeroed` with this layout, and freed nowhere else.
        unsafe { dealloc(self.start.as_ptr(), self.layout) }
    }
}

impl fmt::Debug for AlignedBuf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AlignedBuf({} bytes, aligned to {})", self.layout.size(), self.layout.align())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_aligned_whole_and_zeroed() {
        for make in [AlignedBuf::zeroed, AlignedBuf::populated] {
            for (bytes, align, expected) in
                [(0, 512, 512), (1, 4096, 4096), (4096, 4096, 4096), (3 << 20, 512, 3 << 20)]
            {
                let mut buffer = make(bytes, align).unwrap();
                assert_eq!(buffer.len(), expected);
                assert_eq!(buffer.as_ptr().addr() % align, 0);
                assert!(buffer.iter().all(|&byte| byte == 0));
                buffer.fill(0xa5);
                assert!(buffer.iter().all(|&byte| byte == 0xa5));
            }
        }
    }

    #[test]
    fn sizes_that_cannot_be_had_are_errors() {
        for (bytes, align) in [(usize::MAX, 4096), (1 << 62, 4096), (4096, 3), (4096, 0)] {
            let refused = AlignedBuf::zeroed(bytes, align);
            assert!(matches!(refused, Err(IoError::NoMemory { .. })), "{bytes} {align}");
        }
    }
}
