//! An accelerator that is not there: memory of its own behind one copy engine of a given speed.
//!
//! Copies queue at the engine and take their time on it, one after another. A copy reads its source
//! when it finishes, not when it starts, so a lease that is given up too early shows as wrong bytes.
//! Time is the caller's: `query` goes by the instant it is given, and only `wait` looks at the
//! clock, to block until the copy is due.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use forebay_device::{CopySpan, CopyState, CopyTicket, Device, DeviceError, Registration};
use forebay_shm::{SegmentMap, SlotView};

use crate::content::{as_u64, as_usize};

const NAME: &str = "fake";

/// A paced device. Clones are the same device.
#[derive(Clone, Debug)]
pub struct FakeDevice(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    bytes_per_second: f64,
    engine: Mutex<Engine>,
    never: Condvar,
    registrations: Arc<AtomicUsize>,
}

#[derive(Debug, Default)]
struct Engine {
    memory: Vec<u8>,
    free_at: Option<Instant>,
    copies: BTreeMap<u64, Copying>,
    started: u64,
    fail_after: Option<u64>,
    refuse_registration: bool,
}

#[derive(Debug)]
struct Copying {
    span: CopySpan,
    destination: usize,
    landed: bool,
}

impl FakeDevice {
    /// A device with `memory_bytes` of memory that copies `gigabytes_per_second` times 1e9 bytes
    /// a second.
    pub fn new(gigabytes_per_second: f64, memory_bytes: usize) -> Self {
        let engine = Engine { memory: vec![0; memory_bytes], ..Engine::default() };
        Self(Arc::new(Inner {
            bytes_per_second: gigabytes_per_second * 1e9,
            engine: Mutex::new(engine),
            never: Condvar::new(),
            registrations: Arc::default(),
        }))
    }

    /// What lies in the device's memory; cut at its end.
    pub fn memory(&self, range: Range<u64>) -> Vec<u8> {
        let engine = self.engine();
        let end = as_usize(range.end).min(engine.memory.len());
        engine.memory[as_usize(range.start).min(end)..end].to_vec()
    }

    /// Segments that are registered now.
    pub fn registrations(&self) -> usize {
        self.0.registrations.load(Ordering::Acquire)
    }

    /// Copies that were started.
    pub fn copies(&self) -> u64 {
        self.engine().started
    }

    /// After `copies` more copies, each later one fails when it is asked about.
    pub fn fail_after(&self, copies: u64) {
        let mut engine = self.engine();
        engine.fail_after = Some(engine.started + copies);
    }

    /// From now on no segment is registered.
    pub fn refuse_registration(&self) {
        self.engine().refuse_registration = true;
    }

    fn engine(&self) -> MutexGuard<'_, Engine> {
        self.0.engine.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn duration(&self, bytes: usize) -> Duration {
        let bytes = f64::from(u32::try_from(bytes).unwrap_or(u32::MAX));
        Duration::try_from_secs_f64(bytes / self.0.bytes_per_second).unwrap_or(Duration::MAX)
    }
}

impl Engine {
    /// The copy's span once it has landed.
    fn finish(&mut self, ticket: &CopyTicket) -> Result<CopySpan, DeviceError> {
        let bytes = as_u64(ticket.bytes().len());
        let failed = |reason: &str| DeviceError::CopyFailed {
            device: NAME.to_owned(),
            bytes,
            reason: reason.to_owned(),
        };
        if self.fail_after.is_some_and(|copies| ticket.id() >= copies) {
            return Err(failed("told to fail"));
        }
        let copying = self.copies.get_mut(&ticket.id()).ok_or_else(|| failed("no such copy"))?;
        if !copying.landed {
            let end = copying.destination + ticket.bytes().len();
            let place = self.memory.get_mut(copying.destination..end);
            place.ok_or_else(|| failed("outside memory"))?.copy_from_slice(ticket.bytes());
            copying.landed = true;
        }
        Ok(copying.span)
    }
}

impl Device for FakeDevice {
    fn register(&self, segment: &Arc<SegmentMap>) -> Result<Registration, DeviceError> {
        if self.engine().refuse_registration {
            return Err(DeviceError::RegistrationRefused {
                device: NAME.to_owned(),
                segment: segment.id().0,
                reason: "told to refuse".to_owned(),
            });
        }
        let registrations = Arc::clone(&self.0.registrations);
        registrations.fetch_add(1, Ordering::AcqRel);
        Ok(Registration::with_release(segment, move || {
            registrations.fetch_sub(1, Ordering::AcqRel);
        }))
    }

    fn copy(
        &self,
        source: &SlotView,
        range: Range<usize>,
        destination_offset: u64,
        now: Instant,
    ) -> Result<CopyTicket, DeviceError> {
        let mut engine = self.engine();
        let ticket = CopyTicket::new(engine.started, source, range, now)?;
        let bytes = ticket.bytes().len();
        let destination = as_usize(destination_offset);
        if destination.checked_add(bytes).is_none_or(|end| end > engine.memory.len()) {
            return Err(DeviceError::CopyFailed {
                device: NAME.to_owned(),
                bytes: as_u64(bytes),
                reason: "outside memory".to_owned(),
            });
        }
        let started = engine.free_at.map_or(now, |free_at| free_at.max(now));
        let finished = started.checked_add(self.duration(bytes)).unwrap_or(started);
        engine.free_at = Some(finished);
        engine.started += 1;
        let span = CopySpan { started, finished, bytes: as_u64(bytes) };
        engine.copies.insert(ticket.id(), Copying { span, destination, landed: false });
        Ok(ticket)
    }

    fn query(&self, ticket: &CopyTicket, now: Instant) -> Result<CopyState, DeviceError> {
        let mut engine = self.engine();
        let due = engine.copies.get(&ticket.id()).is_none_or(|copy| now >= copy.span.finished);
        if due { engine.finish(ticket).map(CopyState::Done) } else { Ok(CopyState::Running) }
    }

    fn wait(&self, ticket: CopyTicket) -> Result<CopySpan, DeviceError> {
        let engine = self.engine();
        let due = engine.copies.get(&ticket.id()).map(|copy| copy.span.finished);
        let now = tokio::time::Instant::now().into_std();
        let left = due.map_or(Duration::ZERO, |due| due.saturating_duration_since(now));
        let waited = self.0.never.wait_timeout_while(engine, left, |_| true);
        let (mut engine, _) = waited.unwrap_or_else(PoisonError::into_inner);
        let finished = engine.finish(&ticket);
        engine.copies.remove(&ticket.id());
        finished
    }
}
