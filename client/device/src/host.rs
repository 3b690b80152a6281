//! The device of a process that wants the bytes in memory of its own: the CPU copies, on the
//! calling thread, before the call returns. Who only reads the bytes needs no device: they are lent
//! in place.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use forebay_shm::SegmentMap;

use crate::error::DeviceError;
use crate::memory;
use crate::seam::{
    CopyJob, CopySource, CopySpan, CopyState, CopyStream, CopyTicket, Device, DeviceInfo,
    DeviceMemory, MemoryPath, Registration,
};
use crate::spec::DeviceSpec;

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
        memory::allocate(self.0.spec, bytes, || ())
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
        let destination = job.destination();
        if destination.device() != DeviceSpec::Host {
            return Err(DeviceError::WrongDevice {
                memory: destination.device().to_string(),
                device: DeviceSpec::Host.to_string(),
            });
        }
        let source = match job.source() {
            CopySource::Slot { view, .. } => view.bytes(),
            CopySource::Private(bytes) => bytes,
        };
        // SAFETY: `CopyJob::new` checked that every row lies in the source and in the destination,
        // which is memory of this process and, being an `Arc`, is still there. Who made it keeps
        // others out of it: this crate hands out no reference to it, `borrowed` asks its caller.
        unsafe { memory::write_rows(source, destination.address(), job.rows()) };
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
