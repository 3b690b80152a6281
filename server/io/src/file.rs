//! A file that operations are done on, and whether the page cache is in between.
//!
//! With O_DIRECT bytes go from the device to where they are wanted; the page cache would cost a
//! copy and memory that the RAM tier is for. Some filesystems refuse it, some accept the flag and
//! fail the first read: so it is tried out, and where it does not work the file is buffered and
//! says so.

use std::fmt;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, FallocateFlags, OFlags, StatxFlags};
use rustix::io::Errno;

use crate::buffer::AlignedBuf;
use crate::error::FileError;

/// What is assumed where the kernel does not tell (before Linux 6.1): the page size of most
/// machines and the largest block of most devices.
const ALIGN_BYTES: u32 = 4096;

/// Larger than this no device's block is.
const ALIGN_BYTES_MAX: u32 = 1 << 20;

/// How the bytes of a file reach its device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileMode {
    /// Past the page cache, in whole blocks.
    Direct {
        /// What addresses have to be multiples of.
        memory_align_bytes: u32,
        /// What offsets and lengths have to be multiples of.
        offset_align_bytes: u32,
    },
    /// Through the page cache.
    Buffered(BufferedReason),
}

/// Why a file is not direct.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BufferedReason {
    /// It was asked for.
    Asked,
    /// The filesystem does not take O_DIRECT.
    Refused,
    /// The filesystem takes the flag and then fails to read.
    ReadFailed,
    /// The filesystem takes only blocks that are larger than what is read and written.
    LargeBlocks,
}

impl fmt::Display for BufferedReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Asked => "buffered, as asked for",
            Self::Refused => {
                "buffered: the filesystem refuses O_DIRECT, so the page cache takes memory and a \
                 copy; put the cache on ext4 or xfs"
            }
            Self::ReadFailed => {
                "buffered: the filesystem accepts O_DIRECT and then fails to read, so the page \
                 cache takes memory and a copy; put the cache on ext4 or xfs"
            }
            Self::LargeBlocks => {
                "buffered: the filesystem wants larger blocks for O_DIRECT than ours, so the page \
                 cache takes memory and a copy; put the cache on a device with blocks of 4096 bytes"
            }
        })
    }
}

/// An open file.
#[derive(Debug)]
pub struct DataFile {
    descriptor: OwnedFd,
    mode: FileMode,
}

impl DataFile {
    pub(crate) fn buffered(descriptor: OwnedFd, reason: BufferedReason) -> Self {
        Self { descriptor, mode: FileMode::Buffered(reason) }
    }

    /// A file whose flags are those of `mode`.
    pub(crate) fn in_mode(descriptor: OwnedFd, mode: FileMode) -> Self {
        Self { descriptor, mode }
    }

    /// A file that was opened with O_DIRECT, if that works: the flag is there, and a block can be
    /// read.
    pub(crate) fn direct(descriptor: OwnedFd) -> Result<Result<Self, BufferedReason>, FileError> {
        let flags = rustix::fs::fcntl_getfl(&descriptor)
            .map_err(|errno| FileError::system("ask for the flags of a file", errno))?;
        if !flags.contains(OFlags::DIRECT) {
            return Ok(Err(BufferedReason::Refused));
        }
        let (memory_align_bytes, offset_align_bytes) = alignment(descriptor.as_fd());
        let align = usize::try_from(memory_align_bytes.max(offset_align_bytes)).unwrap_or(1);
        let mut block = AlignedBuf::zeroed(align, align)
            .map_err(|_| FileError::system("make a buffer to try a file with", Errno::NOMEM))?;
        match rustix::io::retry_on_intr(|| rustix::io::pread(&descriptor, &mut block[..], 0)) {
            Ok(_) => {}
            Err(Errno::INVAL | Errno::OPNOTSUPP) => return Ok(Err(BufferedReason::ReadFailed)),
            Err(errno) => return Err(FileError::system("read the first block of a file", errno)),
        }
        let mode = FileMode::Direct { memory_align_bytes, offset_align_bytes };
        Ok(Ok(Self { descriptor, mode }))
    }

    /// A file that somebody else opened, through the page cache.
    #[must_use]
    pub fn opened(file: File) -> Self {
        Self::buffered(file.into(), BufferedReason::Asked)
    }

    /// The same past the page cache, as far as can be told without a read: one that fails for it
    /// ([`IoError::is_for_direct`](crate::IoError::is_for_direct)) says the rest. The flag is that
    /// of the open file, whichever descriptor of it is used. What does not take it comes back
    /// buffered. Never waits for a device.
    pub fn opened_direct(file: File) -> Result<Self, FileError> {
        let system = |errno| FileError::system("read a file past the page cache", errno);
        let descriptor = OwnedFd::from(file);
        let flags = rustix::fs::fcntl_getfl(&descriptor).map_err(system)?;
        match rustix::fs::fcntl_setfl(&descriptor, flags | OFlags::DIRECT) {
            Ok(()) => {}
            Err(Errno::INVAL | Errno::OPNOTSUPP) => {
                return Ok(Self::buffered(descriptor, BufferedReason::Refused));
            }
            Err(errno) => return Err(system(errno)),
        }
        let (memory_align_bytes, offset_align_bytes) = alignment(descriptor.as_fd());
        let mode = FileMode::Direct { memory_align_bytes, offset_align_bytes };
        Ok(Self { descriptor, mode })
    }

    /// The file with the page cache in between again.
    pub fn into_buffered(self) -> Result<File, FileError> {
        let system = |errno| FileError::system("read a file through the page cache", errno);
        let flags = rustix::fs::fcntl_getfl(&self.descriptor).map_err(system)?;
        rustix::fs::fcntl_setfl(&self.descriptor, flags - OFlags::DIRECT).map_err(system)?;
        Ok(self.descriptor.into())
    }

    /// How its bytes reach the device.
    #[must_use]
    pub fn mode(&self) -> FileMode {
        self.mode
    }

    /// What memory, offsets and lengths must be multiples of to suit the file: 1 if it is buffered.
    #[must_use]
    pub fn align_bytes(&self) -> usize {
        match self.mode {
            FileMode::Direct { memory_align_bytes, offset_align_bytes } => {
                usize::try_from(memory_align_bytes.max(offset_align_bytes)).unwrap_or(1)
            }
            FileMode::Buffered(_) => 1,
        }
    }

    /// How long the file is.
    pub fn bytes(&self) -> Result<u64, FileError> {
        let stat = rustix::fs::fstat(&self.descriptor)
            .map_err(|errno| FileError::system("ask for the size of a file", errno))?;
        Ok(u64::try_from(stat.st_size).unwrap_or(0))
    }

    /// Takes the room for `bytes` from the filesystem, so that writing there cannot find the disk
    /// full; the file is at least that long afterwards. Blocks.
    pub fn allocate(&self, bytes: u64) -> Result<(), FileError> {
        let allocate =
            || rustix::fs::fallocate(&self.descriptor, FallocateFlags::empty(), 0, bytes);
        rustix::io::retry_on_intr(allocate)
            .map_err(|errno| FileError::system("take room for a file", errno))
    }

    /// Makes the file that long: cut, or filled with zeroes. Blocks.
    pub fn truncate(&self, bytes: u64) -> Result<(), FileError> {
        rustix::io::retry_on_intr(|| rustix::fs::ftruncate(&self.descriptor, bytes))
            .map_err(|errno| FileError::system("cut a file", errno))
    }

    /// Makes what was written survive a crash. Blocks, for as long as the device likes: from a
    /// task, use the engine's sync.
    pub fn sync_data(&self) -> Result<(), FileError> {
        rustix::io::retry_on_intr(|| rustix::fs::fdatasync(&self.descriptor))
            .map_err(|errno| FileError::system("sync a file", errno))
    }
}

impl From<DataFile> for File {
    /// The file for those who read and write it themselves. It keeps the flags it was opened with:
    /// a direct one takes only whole blocks.
    fn from(file: DataFile) -> Self {
        file.descriptor.into()
    }
}

impl AsFd for DataFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

/// What addresses and offsets of a file must be multiples of.
fn alignment(file: BorrowedFd<'_>) -> (u32, u32) {
    let told = rustix::fs::statx(file, c"", AtFlags::EMPTY_PATH, StatxFlags::DIOALIGN);
    let usable = |align: u32| align.is_power_of_two() && align <= ALIGN_BYTES_MAX;
    match told {
        Ok(told) if usable(told.stx_dio_mem_align) && usable(told.stx_dio_offset_align) => {
            (told.stx_dio_mem_align, told.stx_dio_offset_align)
        }
        _ => (ALIGN_BYTES, ALIGN_BYTES),
    }
}

#[cfg(test)]
impl DataFile {
    /// A file without a disk.
    pub(crate) fn in_memory() -> Self {
        let flags = rustix::fs::MemfdFlags::CLOEXEC;
        let descriptor = rustix::fs::memfd_create("forebay-test", flags).expect("a memfd");
        Self::buffered(descriptor, BufferedReason::Asked)
    }

    pub(crate) fn with_mode(self, mode: FileMode) -> Self {
        Self { mode, ..self }
    }
}
