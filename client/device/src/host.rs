//! The device of a process that wants the bytes in memory of its own: the CPU copies, on the calling
//! thread, before the call returns. Who only reads the bytes needs no device: they are lent in place.
//!
//! Memory is allocated zeroed, so that a copy that never came shows no other process's bytes.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use forebay_shm::SegmentMap;

use crate::error::DeviceError;
use crate::seam::{
    CopyJob, CopySource, CopySpan, CopyState, CopyStream, CopyTicket, Device, DeviceInfo,
    DeviceMemory, MemoryPath, Registration,
};
use crate::spec::DeviceSpec;

/// What the memory of every device is aligned to.
const ALIGN: usize = 256;

/// Host memory.
#[derive(Debug)]
pub struct HostDevice(DeviceInfo);

impl HostDevice {
    /// The host.
    #[must_use]
    pub fn new() -> Self {
        let (spec, name) = (DeviceSpec::Host, "host memory".to_owned());
        Self(DeviceInfo { spec, name, pci: None, path: MemoryPath::Cpu })
    }
}

impl Default for HostDevice {
    fn default() -> Self {
        Self::new()
    }
}

impl Device for HostDevice {
    fn info(&self) -> &DeviceInfo {
        &self.0
    }

    /// Host memory needs no preparation.
    fn register(&self, segment: &Arc<SegmentMap>) -> Result<Registration, DeviceError> {
        Ok(Registration::of(segment, MemoryPath::Cpu))
    }

    fn allocate(&self, bytes: u64) -> Result<DeviceMemory, DeviceError> {
        let refused = || DeviceError::OutOfMemory {
            device: self.0.spec.to_string(),
            bytes,
            reason: "the system has no such memory".to_owned(),
        };
        let size = usize::try_from(bytes).map_err(|_| refused())?;
        let layout = Layout::from_size_align(size.max(1), ALIGN).map_err(|_| refused())?;
        // SAFETY: the layout has a size above zero.
        let memory = unsafe { alloc_zeroed(layout) };
        if memory.is_null() {
            return Err(refused());
        }
        let address = memory.expose_provenance();
        let free = move || {
            let memory = std::ptr::with_exposed_provenance_mut::<u8>(address);
            // SAFETY: allocated above with this layout; `DeviceMemory` calls this once, when no copy
            // holds it any more.
            unsafe { dealloc(memory, layout) };
        };
        Ok(DeviceMemory::allocated(self.0.spec, address as u64, bytes, free))
    }

    fn stream(&self) -> Result<Box<dyn CopyStream>, DeviceError> {
        Ok(Box::new(HostStream::default()))
    }
}

/// Copies at once; what is left of a copy is its span, until it is asked for.
#[derive(Debug, Default)]
struct HostStream {
    next: AtomicU64,
    done: Mutex<BTreeMap<u64, CopySpan>>,
}

impl HostStream {
    fn done(&self) -> MutexGuard<'_, BTreeMap<u64, CopySpan>> {
        self.done.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn forgotten(ticket: &CopyTicket) -> DeviceError {
        DeviceError::CopyFailed {
            device: DeviceSpec::Host.to_string(),
            bytes: ticket.bytes(),
            reason: "the stream did not start this copy".to_owned(),
        }
    }
}

impl CopyStream for HostStream {
    fn copy(&self, job: CopyJob<'_>, now: Instant) -> Result<CopyTicket, DeviceError> {
        let memory = job.destination();
        if memory.device() != DeviceSpec::Host {
            return Err(DeviceError::WrongDevice {
                memory: memory.device().to_string(),
                device: DeviceSpec::Host.to_string(),
            });
        }
        let source = match job.source() {
            CopySource::Slot { view, .. } => view.bytes(),
            CopySource::Private(bytes) => bytes,
        };
        let rows = job.rows();
        let address = usize::try_from(memory.address()).unwrap_or_default();
        for row in 0..rows.rows {
            let from = rows.source_start + row * rows.source_pitch;
            let source = source.get(from..from + rows.row_bytes).unwrap_or_default();
            let offset = rows.destination_start as usize + row * rows.destination_pitch;
            let target = std::ptr::with_exposed_provenance_mut::<u8>(address + offset);
            // SAFETY: `CopyJob::new` checked that every row lies in the destination, which is memory
            // of this process that can be written and, being an `Arc`, is still there. What is
            // lent cannot be written through, so the two do not overlap.
            unsafe { target.copy_from_nonoverlapping(source.as_ptr(), source.len()) };
        }
        let ticket = CopyTicket::new(self.next.fetch_add(1, Ordering::Relaxed), &job, now);
        let span = CopySpan {
            started: now,
            finished: crate::clock::now().max(now),
            bytes: ticket.bytes(),
        };
        self.done().insert(ticket.id(), span);
        Ok(ticket)
    }

    fn query(&self, ticket: &CopyTicket, _now: Instant) -> Result<CopyState, DeviceError> {
        let span = self.done().get(&ticket.id()).copied();
        span.map(CopyState::Done).ok_or_else(|| Self::forgotten(ticket))
    }

    fn wait(&self, ticket: CopyTicket) -> Result<CopySpan, DeviceError> {
        self.done().remove(&ticket.id()).ok_or_else(|| Self::forgotten(&ticket))
    }
}
