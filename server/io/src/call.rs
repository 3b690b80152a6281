//! The blocking calls of the engine that has threads.

use crate::op::{Op, OpKind};

/// One call may move this much: the kernel's own bound is a little less than 2 GiB.
pub(crate) const CALL_BYTES_MAX: usize = 1 << 30;

/// How a thread asks the kernel; tests put something else in its place.
pub(crate) trait Calls: Send + Sync + std::fmt::Debug {
    /// Does the part of an operation that begins `done` bytes into it. A count of bytes, or a
    /// negative errno.
    fn call(&self, op: &mut Op, done: usize) -> i32;
}

/// The system calls.
#[derive(Debug)]
pub(crate) struct SystemCalls;

/// Where the part of an operation that is left lies, in memory and in the file.
pub(crate) struct Part {
    pub(crate) start: usize,
    pub(crate) bytes: usize,
    pub(crate) offset: u64,
}

impl Part {
    /// What is left of an operation that passed its check, after `done` bytes.
    pub(crate) fn of(op: &Op, done: usize) -> Self {
        let range = op.range();
        let bytes = range.len().saturating_sub(done).min(CALL_BYTES_MAX);
        let offset = op.offset().0.saturating_add(done as u64);
        Self { start: range.start.saturating_add(done).min(range.end), bytes, offset }
    }
}

impl Calls for SystemCalls {
    fn call(&self, op: &mut Op, done: usize) -> i32 {
        let Part { start, bytes, offset } = Part::of(op, done);
        let kind = op.kind();
        let file = op.file().clone();
        let part = start..start.saturating_add(bytes);
        let moved = match kind {
            OpKind::Read => {
                let into = op.payload_mut().bytes_mut().get_mut(part).unwrap_or_default();
                rustix::io::pread(&file, into, offset)
            }
            OpKind::Write => {
                let from = op.payload().bytes().get(part).unwrap_or_default();
                rustix::io::pwrite(&file, from, offset)
            }
            OpKind::Sync => rustix::fs::fdatasync(&file).map(|()| 0),
        };
        match moved {
            Ok(moved) => i32::try_from(moved).unwrap_or(i32::MAX),
            Err(errno) => errno.raw_os_error().saturating_neg(),
        }
    }
}
