//! The operations that the kernel has, and the entries that ask for them.
//!
//! [`Flights`] owns every operation from before its entry is pushed until its completion has been
//! taken: that is the invariant of all pointers that the kernel has. Ids are never used twice, so a
//! completion that is late or foreign finds nothing.

use std::collections::HashMap;
use std::os::fd::{AsFd, AsRawFd};

use io_uring::{opcode, squeue, types};

use crate::call::Part;
use crate::desk::OpId;
use crate::op::{Op, OpKind, Payload};
use crate::progress::Progress;

/// One operation that the kernel has.
pub(crate) struct Flight {
    pub(crate) op: Op,
    pub(crate) progress: Progress,
    /// Where its memory is registered, if it is.
    pub(crate) buffer: Option<u16>,
}

/// All of them.
#[derive(Default)]
pub(crate) struct Flights(HashMap<OpId, Flight>);

impl Flights {
    /// Takes an operation that is about to be pushed and makes its entry.
    pub(crate) fn insert(&mut self, id: OpId, mut flight: Flight) -> squeue::Entry {
        let entry = entry(&mut flight).user_data(id.0);
        let before = self.0.insert(id, flight);
        debug_assert!(before.is_none(), "ids are used once, and an operation has one entry");
        entry
    }

    /// Gives up an operation whose completion has been taken, or that was never pushed.
    pub(crate) fn remove(&mut self, id: OpId) -> Option<Flight> {
        self.0.remove(&id)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl Drop for Flights {
    fn drop(&mut self) {
        if !self.0.is_empty() {
            // Only a panic of the thread leads here. The kernel has these operations and may write
            // to their memory at any time: it must never be used for anything else.
            tracing::error!(lost = self.0.len(), "the io engine's thread ends with operations");
            Box::leak(Box::new(std::mem::take(&mut self.0)));
        }
    }
}

/// Where the bytes of an operation's memory begin, as the kernel will use them.
pub(crate) fn start_of(payload: &mut Payload) -> *mut u8 {
    match payload {
        Payload::None => std::ptr::null_mut(),
        // The kernel only reads through it.
        Payload::Source(source) => source.start().cast_mut(),
        Payload::Target(target) => target.start_mut(),
    }
}

/// The entry that asks for what is left of an operation.
fn entry(flight: &mut Flight) -> squeue::Entry {
    let Part { start, bytes, offset } = Part::of(&flight.op, flight.progress.done());
    let file = types::Fd(flight.op.file().as_fd().as_raw_fd());
    // `Op::check` keeps the range inside the memory.
    let address = start_of(flight.op.payload_mut()).wrapping_add(start);
    let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
    match (flight.op.kind(), flight.buffer) {
        (OpKind::Read, None) => opcode::Read::new(file, address, bytes).offset(offset).build(),
        (OpKind::Read, Some(buffer)) => {
            opcode::ReadFixed::new(file, address, bytes, buffer).offset(offset).build()
        }
        (OpKind::Write, None) => opcode::Write::new(file, address, bytes).offset(offset).build(),
        (OpKind::Write, Some(buffer)) => {
            opcode::WriteFixed::new(file, address, bytes, buffer).offset(offset).build()
        }
        (OpKind::Sync, _) => opcode::Fsync::new(file).flags(types::FsyncFlags::DATASYNC).build(),
    }
}
