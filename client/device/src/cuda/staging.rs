//! The staging ring: pinned memory of this process that copies go through when their source cannot
//! be read by the copy engine itself.
//!
//! A stream has one ring. A copy is cut into pieces that fit a buffer; the CPU copies a piece into
//! the next buffer, packed, and the engine takes it from there while the CPU fills the one after.
//! A buffer is filled again only after the event behind its last piece. Two MiB are enough for
//! the engine to be at full speed, and four of them for the CPU to be ahead of it.

use std::ffi::c_void;
use std::ptr;
use std::sync::Arc;

use cudarc::driver::sys;

use crate::cuda::context::{Context, Entered, Event, Handle};
use crate::error::DeviceError;
use crate::seam::Rows;

const BUFFER_BYTES: usize = 2 << 20;
const BUFFERS: usize = 4;

/// Pinned buffers that are used in turn; made when they are first needed.
#[derive(Debug, Default)]
pub(crate) struct Ring {
    buffers: Vec<Buffer>,
    next: usize,
}

/// Pinned memory, and the event behind the last copy out of it.
#[derive(Debug)]
pub(crate) struct Buffer {
    memory: Handle<c_void>,
    used: bool,
    free: Event,
    context: Arc<Context>,
}

impl Ring {
    /// The next buffer, when no engine reads it any more. `bytes` are those of the copy, for the
    /// error.
    pub(crate) fn next(
        &mut self,
        context: &Arc<Context>,
        entered: &Entered<'_>,
        bytes: u64,
    ) -> Result<&mut Buffer, DeviceError> {
        if self.buffers.len() < BUFFERS {
            self.buffers.push(Buffer::new(context, entered)?);
            return Ok(self.buffers.last_mut().expect("one was pushed"));
        }
        let buffer = &mut self.buffers[self.next];
        self.next = (self.next + 1) % BUFFERS;
        if buffer.used {
            context.copied(bytes, buffer.free.wait(entered))?;
        }
        Ok(buffer)
    }
}

impl Buffer {
    fn new(context: &Arc<Context>, entered: &Entered<'_>) -> Result<Self, DeviceError> {
        let free = Event::new(context, entered)?;
        let mut memory = ptr::null_mut();
        let flags = sys::CU_MEMHOSTALLOC_PORTABLE;
        // SAFETY: the driver writes an address there; `Drop` gives the memory back.
        let made = unsafe { (context.driver.host_alloc)(&raw mut memory, BUFFER_BYTES, flags) };
        context.given("cuMemHostAlloc", BUFFER_BYTES as u64, made)?;
        let context = Arc::clone(context);
        Ok(Self { memory: Handle(memory), used: false, free, context })
    }

    /// Packs rows of `source`, one of the pieces that [`pieces`] makes, into the buffer.
    pub(crate) fn fill(&mut self, source: &[u8], piece: Rows) -> *const u8 {
        assert!(piece.rows * piece.row_bytes <= BUFFER_BYTES, "a piece fits a buffer");
        let memory = self.memory.0.cast::<u8>();
        for row in 0..piece.rows {
            let from = piece.source_start + row * piece.source_pitch;
            let bytes = &source[from..from + piece.row_bytes];
            // SAFETY: all rows together fit the buffer, as asserted.
            let place = unsafe { memory.add(row * piece.row_bytes) };
            // SAFETY: as above; `Ring::next` waited until no engine reads the buffer, and the ring,
            // of which this is a unique borrow, hands its address to nobody else.
            unsafe { place.copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
        }
        memory
    }

    /// Says that the stream has been given the copy out of the buffer.
    pub(crate) fn sent(
        &mut self,
        stream: Handle<sys::CUstream_st>,
        entered: &Entered<'_>,
    ) -> Result<(), DeviceError> {
        self.free.record(stream, entered)?;
        self.used = true;
        Ok(())
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let Ok(_entered) = self.context.enter() else { return };
        // SAFETY: allocated by `new` and freed nowhere else; the stream that owns the ring waited
        // for its copies before it let go of it.
        unsafe { (self.context.driver.host_free)(self.memory.0) };
    }
}

/// The same rows as one, if they lie without gaps on both sides.
pub(crate) fn joined(rows: Rows) -> Rows {
    let packed = rows.source_pitch == rows.row_bytes && rows.destination_pitch == rows.row_bytes;
    if rows.rows <= 1 || !packed {
        return rows;
    }
    let start = rows.source_start;
    Rows::range(start..start + rows.rows * rows.row_bytes, rows.destination_start)
}

/// Cuts rows into pieces that fit a buffer when packed: whole rows where a row fits.
pub(crate) fn pieces(rows: Rows) -> impl Iterator<Item = Rows> {
    let rows = joined(rows);
    let whole = rows.row_bytes <= BUFFER_BYTES;
    let rows_each = if whole { BUFFER_BYTES / rows.row_bytes.max(1) } else { 1 };
    let bytes_each = rows.row_bytes.min(BUFFER_BYTES);
    let used = if rows.row_bytes == 0 { 0 } else { rows.rows };
    (0..used).step_by(rows_each).flat_map(move |first| {
        (0..rows.row_bytes).step_by(bytes_each.max(1)).map(move |column| Rows {
            source_start: rows.source_start + first * rows.source_pitch + column,
            destination_start: rows.destination_start
                + (first * rows.destination_pitch + column) as u64,
            row_bytes: bytes_each.min(rows.row_bytes - column),
            rows: rows_each.min(rows.rows - first),
            ..rows
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(row_bytes: usize, rows: usize, source_pitch: usize, destination_pitch: usize) -> Rows {
        Rows {
            source_start: 5,
            destination_start: 7,
            row_bytes,
            rows,
            source_pitch,
            destination_pitch,
        }
    }

    /// Every byte as a pair of its places, in order.
    fn places(rows: Rows) -> Vec<(usize, u64)> {
        let place = |row: usize, byte: usize| {
            let from = rows.source_start + row * rows.source_pitch + byte;
            let to = rows.destination_start + (row * rows.destination_pitch + byte) as u64;
            (from, to)
        };
        (0..rows.rows).flat_map(|row| (0..rows.row_bytes).map(move |b| place(row, b))).collect()
    }

    #[test]
    fn pieces_fit_and_cover_every_byte_once() {
        for (row_bytes, count, source, destination, expected) in [
            (100, 3, 128, 100, 1),
            (100, 3, 100, 100, 1),
            (1 << 20, 5, (1 << 20) + 1, 1 << 20, 3),
            (BUFFER_BYTES + 1, 2, BUFFER_BYTES + 9, BUFFER_BYTES + 1, 4),
            (BUFFER_BYTES, 2, BUFFER_BYTES, BUFFER_BYTES, 2),
            (0, 9, 4, 4, 0),
            (9, 0, 9, 9, 0),
        ] {
            let rows = rows(row_bytes, count, source, destination);
            let cut: Vec<Rows> = pieces(rows).collect();
            assert_eq!(cut.len(), expected, "{rows:?}");
            assert!(cut.iter().all(|piece| piece.bytes() <= BUFFER_BYTES as u64));
            let covered: Vec<_> = cut.into_iter().flat_map(places).collect();
            assert!(covered == places(rows), "{rows:?}");
        }
    }
}
