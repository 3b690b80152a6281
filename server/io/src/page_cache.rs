//! What of a file is in the page cache, asked of the kernel without a mapping.
//!
//! cachestat(2) counts pages of a range, for files that the caller owns or may write. mincore(2) is
//! not used: of files of others it says that all is there. Nor is a read that does not wait
//! (RWF_NOWAIT): it begins to read what it asks about, and a quick disk has that there before it
//! answers. Nothing is owned here.

use std::io;
use std::mem::size_of;
use std::ops::Range;
use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::io::Errno;

/// The number of cachestat(2), the same on all architectures that this is built for.
const CACHESTAT: libc::c_long = 451;

/// `struct cachestat_range`. A length of zero means up to the end.
#[repr(C)]
struct CacheRange {
    offset: u64,
    bytes: u64,
}

/// Pages of a range of a file.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CacheState {
    /// In the page cache.
    pub cached_pages: u64,
    /// Of those, written to and not stored yet.
    pub dirty_pages: u64,
    /// Of those, being stored.
    pub writeback_pages: u64,
    /// Evicted, and still remembered.
    pub evicted_pages: u64,
    /// Evicted so lately that there was too little memory for what is in use.
    pub recently_evicted_pages: u64,
}

/// Why the page cache does not tell.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CacheUnknown {
    /// Linux before 6.5, or a filter that forbids the call.
    #[error("this kernel has no cachestat(2), which came with Linux 6.5, or a filter forbids it")]
    NoCall,
    /// It is somebody else's file.
    #[error("the kernel tells what is cached only of files that the caller owns or may write")]
    NotAllowed,
    /// Its filesystem has no page cache, or reads only with waiting.
    #[error("the filesystem does not tell what is cached")]
    Unsupported,
    /// Anything else.
    #[error("cannot ask what is cached: {0}")]
    System(io::Error),
}

impl From<Errno> for CacheUnknown {
    fn from(errno: Errno) -> Self {
        match errno {
            Errno::NOSYS => Self::NoCall,
            Errno::PERM | Errno::ACCESS => Self::NotAllowed,
            Errno::OPNOTSUPP => Self::Unsupported,
            errno => Self::System(errno.into()),
        }
    }
}

/// Counts the pages of a range that are in the page cache. An empty range has none.
///
/// # Errors
/// [`CacheUnknown`], if the kernel does not tell. A filter for system calls may answer like a file
/// of somebody else.
pub fn cache_state(file: BorrowedFd<'_>, range: Range<u64>) -> Result<CacheState, CacheUnknown> {
    let bytes = range.end.saturating_sub(range.start);
    if bytes == 0 {
        return Ok(CacheState::default());
    }
    const { assert!(size_of::<CacheState>() == 40 && size_of::<CacheRange>() == 16) };
    let range = CacheRange { offset: range.start, bytes };
    let mut state = CacheState::default();
    let no_flags: libc::c_uint = 0;
    // SAFETY: the descriptor is open for as long as it is borrowed; the kernel reads 16 bytes of
    // `range` and writes 40 bytes to `state`, which have the layout of its own structures.
    let result = unsafe {
        libc::syscall(CACHESTAT, file.as_raw_fd(), &raw const range, &raw mut state, no_flags)
    };
    if result != 0 {
        let errno = io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO);
        return Err(Errno::from_raw_os_error(errno).into());
    }
    Ok(state)
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn what_was_written_is_cached_and_what_was_dropped_is_not() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        let bytes = 16 * rustix::param::page_size() as u64;
        file.write_all(&vec![7; usize::try_from(bytes).unwrap()]).unwrap();
        rustix::fs::fdatasync(&file).unwrap();
        match cache_state(file.as_fd(), 0..bytes) {
            Ok(state) => assert_eq!((state.cached_pages, state.dirty_pages), (16, 0)),
            Err(why) => return println!("skipped: {why}"),
        }
        assert_eq!(cache_state(file.as_fd(), 0..1).unwrap().cached_pages, 1);
        if rustix::fs::fstatfs(&file).unwrap().f_type == libc::TMPFS_MAGIC {
            return println!("skipped the part with dropped pages: a tmpfs keeps them");
        }
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
        assert_eq!(cache_state(file.as_fd(), 0..bytes).unwrap().cached_pages, 0);
    }

    #[test]
    fn odd_ranges_and_files_are_answered() {
        let file = tempfile::tempfile().unwrap();
        assert_eq!(cache_state(file.as_fd(), 5..5).unwrap(), CacheState::default());
        assert_eq!(cache_state(file.as_fd(), 1 << 40..1 << 41).unwrap(), CacheState::default());
        let text = CacheUnknown::from(Errno::NOSYS).to_string();
        assert!(text.contains("6.5"), "{text}");
        assert!(matches!(CacheUnknown::from(Errno::PERM), CacheUnknown::NotAllowed));
    }
}
