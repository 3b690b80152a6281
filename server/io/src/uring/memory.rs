//! The memory that is registered with the ring: where it lies, and which entry of the kernel's
//! table it has.
//!
//! Registered pages are looked up and pinned once instead of with every operation. A region is one
//! segment; one entry of the table holds 1 GiB at most, so a larger one takes several. The table
//! keeps each segment alive until the kernel has let its pages go. An operation whose memory is not
//! wholly inside one entry is done without.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::sync::Arc;

use forebay_shm::Segment;
use io_uring::IoUring;
use rustix::io::Errno;
use rustix::process::{Resource, getrlimit};

use super::setup::BUFFERS_MAX;
use crate::error::RegisterError;

/// The kernel's bound on one registered buffer.
const BUFFER_BYTES_MAX: usize = 1 << 30;

/// Names one region that was registered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct RegionId(u64);

struct Entry {
    bytes: usize,
    index: u16,
}

struct Region {
    /// Keeps the addresses mapped.
    #[expect(dead_code, reason = "held for its Drop")]
    segment: Arc<Segment>,
    starts: Vec<usize>,
}

/// What the kernel's table holds.
pub(crate) struct Memory {
    usable: bool,
    /// By address.
    entries: BTreeMap<usize, Entry>,
    regions: HashMap<RegionId, Region>,
    free: Vec<u16>,
    last_id: u64,
}

impl Memory {
    pub(crate) fn new(usable: bool) -> Self {
        let free = (0..BUFFERS_MAX).rev().collect();
        Self { usable, entries: BTreeMap::new(), regions: HashMap::new(), free, last_id: 0 }
    }

    /// The entry that holds all of a range.
    pub(crate) fn find(&self, start: usize, bytes: usize) -> Option<u16> {
        let (first, entry) = self.entries.range(..=start).next_back()?;
        let inside = (start - first).checked_add(bytes).is_some_and(|end| end <= entry.bytes);
        inside.then_some(entry.index)
    }

    /// How many bytes are registered.
    pub(crate) fn bytes(&self) -> u64 {
        self.entries.values().map(|entry| entry.bytes as u64).sum()
    }

    pub(crate) fn register(
        &mut self,
        uring: &IoUring,
        segment: Arc<Segment>,
    ) -> Result<RegionId, RegisterError> {
        if !self.usable {
            return Err(RegisterError::NotUsed("this kernel has no table for it"));
        }
        let memory = segment.slot_memory();
        let (base, bytes) = (memory.cast::<u8>().addr(), memory.len());
        if self.entries.contains_key(&base) {
            return Err(RegisterError::NotUsed("that segment is registered already"));
        }
        if bytes.div_ceil(BUFFER_BYTES_MAX) > self.free.len() {
            return Err(RegisterError::Full { bound: usize::from(BUFFERS_MAX) });
        }
        self.last_id += 1;
        let id = RegionId(self.last_id);
        self.regions.insert(id, Region { segment, starts: Vec::new() });
        let mut done = 0;
        while done < bytes {
            let part = (bytes - done).min(BUFFER_BYTES_MAX);
            if let Err(source) = self.add(uring, id, base + done, part) {
                self.unregister(uring, id);
                return Err(refusal(bytes, source));
            }
            done += part;
        }
        Ok(id)
    }

    /// Fills one entry of the table for a region, which keeps its memory.
    fn add(&mut self, uring: &IoUring, id: RegionId, start: usize, bytes: usize) -> io::Result<()> {
        let (Some(region), Some(index)) = (self.regions.get_mut(&id), self.free.pop()) else {
            return Err(Errno::INVAL.into());
        };
        let buffer =
            libc::iovec { iov_base: std::ptr::without_provenance_mut(start), iov_len: bytes };
        if let Err(error) = update(uring, index, buffer) {
            self.free.push(index);
            return Err(error);
        }
        region.starts.push(start);
        self.entries.insert(start, Entry { bytes, index });
        Ok(())
    }

    /// Ends a region. Operations that use it and are with the kernel keep their pages there.
    pub(crate) fn unregister(&mut self, uring: &IoUring, id: RegionId) {
        let Some(mut region) = self.regions.remove(&id) else { return };
        while let Some(start) = region.starts.pop() {
            let Some(entry) = self.entries.remove(&start) else { continue };
            let nothing = libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 };
            match update(uring, entry.index, nothing) {
                Ok(()) => self.free.push(entry.index),
                // The entry stays out of use, with pages that nothing refers to any more.
                Err(error) => tracing::error!(%error, "registered memory is not given back"),
            }
        }
    }
}

/// Puts a buffer into an entry of the kernel's table, or nothing.
fn update(uring: &IoUring, index: u16, buffer: libc::iovec) -> io::Result<()> {
    let submitter = uring.submitter();
    // SAFETY: the buffer is part of a segment's mapping, which `Memory` keeps alive until the entry
    // is emptied or the ring is gone; the kernel pins its pages and uses them only for operations
    // that name the entry, which own the slots they use. An empty buffer has no memory.
    unsafe { submitter.register_buffers_update(u32::from(index), &[buffer], None) }
}

fn refusal(bytes: usize, source: io::Error) -> RegisterError {
    match source.raw_os_error().map(Errno::from_raw_os_error) {
        Some(Errno::NOMEM | Errno::PERM) => {
            RegisterError::Memlock { bytes, limit: getrlimit(Resource::Memlock).current }
        }
        _ => RegisterError::Refused { bytes, source },
    }
}
