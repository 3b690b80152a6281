//! Why shared memory could not be had, lent or read: each error says what to do about it.

use std::io;

use rustix::io::Errno;
use rustix::process::{Resource, getrlimit};

use crate::ids::{Generation, SegmentId, SlotIndex};

/// What went wrong with a segment, a slot or a descriptor.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ShmError {
    /// The segment that was asked for cannot exist.
    #[error("a segment cannot be made so: {0}")]
    BadSpec(&'static str),
    /// The kernel or the cgroup has no memory left.
    #[error(
        "no memory left to {operation} of {bytes} bytes: lower --ram, or raise the memory limit \
         of the service"
    )]
    MemoryExhausted {
        /// What was being done.
        operation: &'static str,
        /// How many bytes it was done to.
        bytes: usize,
        /// What the kernel said.
        source: io::Error,
    },
    /// The process may not map more.
    #[error(
        "the kernel refuses to {operation} of {bytes} bytes: raise vm.max_map_count, or the limit \
         on address space (ulimit -v)"
    )]
    AddressSpaceExhausted {
        /// What was being done.
        operation: &'static str,
        /// How many bytes it was done to.
        bytes: usize,
        /// What the kernel said.
        source: io::Error,
    },
    /// The process or the system is at its limit of open files.
    #[error(
        "too many open files to {operation} (limit {}): raise LimitNOFILE of the service, or \
         ulimit -n", limit_text(*.limit)
    )]
    DescriptorsExhausted {
        /// What was being done.
        operation: &'static str,
        /// The process's own limit, if it has one.
        limit: Option<u64>,
        /// What the kernel said.
        source: io::Error,
    },
    /// The kernel lacks what Forebay builds on.
    #[error(
        "this kernel cannot {operation}: Forebay needs Linux 5.14 or newer and a mounted /proc"
    )]
    Unsupported {
        /// What was being done.
        operation: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// Any other refusal of the kernel.
    #[error("cannot {operation}: {source}")]
    System {
        /// What was being done.
        operation: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// No such slot.
    #[error("segment {segment} has {slots} slots, so there is no slot {slot}")]
    NoSuchSlot {
        /// The segment.
        segment: SegmentId,
        /// The slot that was named.
        slot: SlotIndex,
        /// How many there are.
        slots: u32,
    },
    /// The slot is being written or read, so it cannot be taken for writing.
    #[error("slot {slot} of segment {segment} is in use: wait until its last reader is gone")]
    SlotBusy {
        /// The segment.
        segment: SegmentId,
        /// The slot.
        slot: SlotIndex,
    },
    /// The slot holds something else than what was granted.
    #[error(
        "slot {slot} of segment {segment} is at generation {found}, not {granted}: the grant has \
         ended, ask for a new one"
    )]
    Stale {
        /// The segment.
        segment: SegmentId,
        /// The slot.
        slot: SlotIndex,
        /// The generation of the grant.
        granted: Generation,
        /// The generation of the slot.
        found: Generation,
    },
    /// A descriptor that is no segment, or none that is safe to map.
    #[error("the descriptor is no segment of Forebay ({0}): check which daemon sent it")]
    Foreign(&'static str),
    /// A range that leaves what it lies in.
    #[error("bytes {offset}+{len} are outside the {bound} bytes of the {what}")]
    OutOfRange {
        /// What the range should lie in.
        what: &'static str,
        /// Where the range begins.
        offset: usize,
        /// How long the range is.
        len: usize,
        /// How long the thing is.
        bound: usize,
    },
    /// Memory is mapped by pages.
    #[error("offset {offset} is not a multiple of the page size, {page_bytes} bytes")]
    Unaligned {
        /// The offset.
        offset: usize,
        /// The page size.
        page_bytes: usize,
    },
    /// Something was placed there before.
    #[error("bytes {offset}+{len} of the object are taken: clear them first")]
    Occupied {
        /// Where the range begins.
        offset: usize,
        /// How long the range is.
        len: usize,
    },
}

impl ShmError {
    /// An error of a call that takes memory.
    pub(crate) fn memory(operation: &'static str, bytes: usize, errno: Errno) -> Self {
        match errno {
            // A page fault that finds no page to give is EFAULT for MADV_POPULATE_WRITE.
            Errno::NOMEM | Errno::NOSPC | Errno::FAULT => {
                Self::MemoryExhausted { operation, bytes, source: errno.into() }
            }
            _ => Self::system(operation, errno),
        }
    }

    /// An error of a call that takes address space.
    pub(crate) fn mapping(operation: &'static str, bytes: usize, errno: Errno) -> Self {
        match errno {
            Errno::NOMEM => Self::AddressSpaceExhausted { operation, bytes, source: errno.into() },
            _ => Self::system(operation, errno),
        }
    }

    /// An error of any other call.
    pub(crate) fn system(operation: &'static str, errno: Errno) -> Self {
        let source = errno.into();
        match errno {
            Errno::MFILE | Errno::NFILE => Self::DescriptorsExhausted {
                operation,
                limit: getrlimit(Resource::Nofile).current,
                source,
            },
            Errno::NOSYS | Errno::INVAL | Errno::NOENT | Errno::OPNOTSUPP => {
                Self::Unsupported { operation, source }
            }
            _ => Self::System { operation, source },
        }
    }
}

fn limit_text(limit: Option<u64>) -> String {
    limit.map_or_else(|| "that of the system".to_owned(), |files| files.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exhaustion_names_the_setting_to_change() {
        let memory = ShmError::memory("populate a segment", 4096, Errno::NOMEM);
        assert!(memory.to_string().contains("lower --ram"), "{memory}");
        let address = ShmError::mapping("map a segment", 4096, Errno::NOMEM);
        assert!(address.to_string().contains("vm.max_map_count"), "{address}");
        let files = ShmError::memory("make a memfd", 4096, Errno::MFILE);
        assert!(files.to_string().contains("LimitNOFILE"), "{files}");
        let old = ShmError::memory("populate a segment", 4096, Errno::INVAL);
        assert!(old.to_string().contains("Linux 5.14"), "{old}");
        let other = ShmError::mapping("map a segment", 4096, Errno::PERM);
        assert!(other.to_string().starts_with("cannot map a segment: "), "{other}");
    }
}
