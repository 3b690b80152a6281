//! Why a file could not be opened, or an operation on it not done.

use std::io;
use std::time::Duration;

use rustix::io::Errno;

use crate::op::{Lane, OpKind};

/// Why an operation was not done.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IoError {
    /// The disk, or the quota on it, is full.
    #[error("no space left to {kind}: {source}")]
    NoSpace {
        /// What was asked for.
        kind: OpKind,
        /// What the kernel said.
        source: io::Error,
    },
    /// The device or the filesystem failed.
    #[error("the disk failed to {kind}: {source}")]
    Device {
        /// What was asked for.
        kind: OpKind,
        /// What the kernel said.
        source: io::Error,
    },
    /// The device has had the operation for too long. Its memory stays with the engine until the
    /// device is done with it.
    #[error("the disk has not finished to {kind} after {after:?}: it is taken for hung")]
    Hung {
        /// What was asked for.
        kind: OpKind,
        /// How long the device has had it.
        after: Duration,
    },
    /// The operation waited too long for its turn and was taken out of the queue.
    #[error("no turn to {kind} after {after:?}: operations before it do not finish")]
    Stalled {
        /// What was asked for.
        kind: OpKind,
        /// How long it waited.
        after: Duration,
    },
    /// Too many operations wait.
    #[error("{bound} operations wait in the {lane} lane of the disk, which is its bound")]
    QueueFull {
        /// Where they wait.
        lane: Lane,
        /// How many may wait.
        bound: usize,
    },
    /// The engine was closed.
    #[error("the io engine is closed")]
    Closed,
    /// The engine ended, or gave back something else than it was given.
    #[error("the io engine lost an operation")]
    Lost,
    /// O_DIRECT takes only whole blocks.
    #[error("the {what} {value} is not a multiple of {align_bytes}, as this file needs")]
    Misaligned {
        /// Offset, length or address.
        what: &'static str,
        /// Its value.
        value: u64,
        /// What it should be a multiple of.
        align_bytes: u32,
    },
    /// The range leaves the memory, or the file's offsets.
    #[error("bytes {start}..{end} lie outside the {bytes} bytes of the memory, or beyond any file")]
    OutOfRange {
        /// Where the range begins.
        start: usize,
        /// Where the range ends.
        end: usize,
        /// How large the memory is.
        bytes: usize,
    },
    /// Some bytes were written, and then none any more.
    #[error("the disk took only {written} of {asked} bytes")]
    ShortWrite {
        /// How many were written.
        written: usize,
        /// How many should have been.
        asked: usize,
    },
    /// The kernel claims to have moved more than it was asked for.
    #[error("the kernel claims {told} bytes where {asked} were asked for")]
    TooLong {
        /// How many it claims.
        told: usize,
        /// How many were asked for.
        asked: usize,
    },
    /// No memory for a buffer.
    #[error("no memory for an aligned buffer of {bytes} bytes")]
    NoMemory {
        /// How large it should be.
        bytes: usize,
    },
}

impl IoError {
    /// What an errno of a read, write or sync means.
    #[must_use]
    pub fn from_errno(kind: OpKind, errno: i32) -> Self {
        let source = io::Error::from_raw_os_error(errno);
        match errno {
            libc::ENOSPC | libc::EDQUOT | libc::EFBIG => Self::NoSpace { kind, source },
            _ => Self::Device { kind, source },
        }
    }

    /// Whether a filesystem says so that takes O_DIRECT when a file is opened, and not when it is
    /// read.
    #[must_use]
    pub fn is_for_direct(&self) -> bool {
        let said = match self {
            Self::Device { source, .. } => source.raw_os_error(),
            _ => None,
        };
        matches!(said, Some(libc::EINVAL | libc::EOPNOTSUPP))
    }
}

/// Why a file or a directory could not be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FileError {
    /// A name that is not one plain component.
    #[error("`{0}` is not the name of a file in a directory")]
    BadName(String),
    /// Something that others made, can change, or put in the place of ours.
    #[error("`{name}` is not trusted: {reason}")]
    Foreign {
        /// What it is called.
        name: String,
        /// What is wrong with it, and what to do.
        reason: String,
    },
    /// There is none.
    #[error("there is no `{0}`")]
    NotFound(String),
    /// There is one already.
    #[error("there is a `{0}` already")]
    Exists(String),
    /// The disk, or the quota on it, is full.
    #[error("no space left to {operation}: {source}")]
    NoSpace {
        /// What was being done.
        operation: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// The filesystem cannot do that.
    #[error("the filesystem cannot {operation}: {source}")]
    Unsupported {
        /// What was being done.
        operation: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// Anything else the kernel says.
    #[error("cannot {operation}: {source}")]
    System {
        /// What was being done.
        operation: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
}

impl FileError {
    pub(crate) fn system(operation: &'static str, errno: Errno) -> Self {
        let source = errno.into();
        match errno {
            Errno::NOSPC | Errno::DQUOT | Errno::FBIG => Self::NoSpace { operation, source },
            Errno::OPNOTSUPP | Errno::NOSYS => Self::Unsupported { operation, source },
            _ => Self::System { operation, source },
        }
    }

    pub(crate) fn of_name(operation: &'static str, name: &str, errno: Errno) -> Self {
        match errno {
            Errno::NOENT => Self::NotFound(name.to_owned()),
            Errno::EXIST => Self::Exists(name.to_owned()),
            // A symbolic link, or a directory in place of a file: nothing we ever make.
            Errno::LOOP | Errno::XDEV | Errno::ISDIR | Errno::NOTDIR => Self::Foreign {
                name: name.to_owned(),
                reason: format!("it is not the kind of file that is made there ({errno})"),
            },
            _ => Self::system(operation, errno),
        }
    }
}

/// Why memory could not be registered. Operations on it work all the same, at a little more CPU.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RegisterError {
    /// The engine does not register memory.
    #[error("this io engine uses no registered memory: {0}")]
    NotUsed(&'static str),
    /// The process may not lock that much memory.
    #[error(
        "no {bytes} bytes may be locked for io_uring (limit {}): raise LimitMEMLOCK of the \
         service, or give it CAP_IPC_LOCK", limit.map_or("none".to_owned(), |l| l.to_string())
    )]
    Memlock {
        /// How much was to be registered.
        bytes: usize,
        /// The process's limit.
        limit: Option<u64>,
    },
    /// All places for registered memory are taken.
    #[error("{bound} regions are registered with io_uring, which is the kernel's bound")]
    Full {
        /// How many may be.
        bound: usize,
    },
    /// The kernel refused for another reason.
    #[error("io_uring does not register {bytes} bytes: {source}")]
    Refused {
        /// How much was to be registered.
        bytes: usize,
        /// What the kernel said.
        source: io::Error,
    },
    /// The engine was closed.
    #[error("the io engine is closed")]
    Closed,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errnos_become_what_the_caller_can_act_on() {
        let error = |errno: Errno| IoError::from_errno(OpKind::Write, errno.raw_os_error());
        for errno in [Errno::NOSPC, Errno::DQUOT, Errno::FBIG] {
            assert!(matches!(error(errno), IoError::NoSpace { .. }));
        }
        for errno in [Errno::IO, Errno::INVAL, Errno::NODEV, Errno::ROFS] {
            assert!(matches!(error(errno), IoError::Device { .. }));
        }
        let name = |errno| FileError::of_name("open a file", "x", errno);
        assert!(matches!(name(Errno::NOENT), FileError::NotFound(_)));
        assert!(matches!(name(Errno::EXIST), FileError::Exists(_)));
        assert!(matches!(name(Errno::LOOP), FileError::Foreign { .. }));
        assert!(matches!(name(Errno::NOSPC), FileError::NoSpace { .. }));
        assert!(matches!(name(Errno::OPNOTSUPP), FileError::Unsupported { .. }));
        assert!(matches!(name(Errno::ACCESS), FileError::System { .. }));
    }
}
