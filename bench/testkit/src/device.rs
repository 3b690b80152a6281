//! An accelerator that is not there: memory of its own behind one copy engine of a given speed.
//!
//! Copies queue at the engine and take their time on it, one after another. A copy reads its source
//! when it finishes, not when it starts, so a lease given up too early shows as wrong bytes. Time
//! is the caller's: `query` goes by the instant it is given, and only `wait` looks at the clock, to
//! block until the copy is due.

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

#[cfg(test)]
mod tests {
    use super::*;
    use forebay_shm::{Segment, SegmentId, SegmentSpec, SlotIndex};

    /// At a gigabyte per second.
    const KILOBYTE: Duration = Duration::from_micros(1);

    /// A slot of 8,000 bytes of `fill`, seen as a client sees it.
    fn lent(fill: u8) -> (Arc<Segment>, forebay_shm::SlotReader, SlotView) {
        let spec =
            SegmentSpec { id: SegmentId(1), domain: 0, slot_bytes: 8192, slots: 1, lock: false };
        let segment = Segment::create(&spec).unwrap();
        let mut writer = segment.writer(SlotIndex(0)).unwrap();
        writer.as_mut_slice().fill(fill);
        let reader = writer.publish();
        let map = SegmentMap::open(segment.descriptor().try_clone_to_owned().unwrap()).unwrap();
        let view = map.view(SlotIndex(0), reader.generation(), 8000).unwrap();
        (segment, reader, view)
    }

    fn now() -> Instant {
        tokio::time::Instant::now().into_std()
    }

    #[test]
    fn copies_queue_at_the_engine_and_take_their_time() {
        let (_segment, _reader, view) = lent(1);
        let device = FakeDevice::new(1.0, 16_000);
        let t0 = now();
        let first = device.copy(&view, 0..4000, 0, t0).unwrap();
        let second = device.copy(&view, 0..1000, 8000, t0).unwrap();
        let at = |kilobytes: u32| t0 + KILOBYTE * kilobytes;
        assert_eq!(device.query(&first, at(3)).unwrap(), CopyState::Running);
        assert_eq!(device.memory(0..1), [0], "nothing lands before its time");
        let span = CopySpan { started: t0, finished: at(4), bytes: 4000 };
        assert_eq!(device.query(&first, at(4)).unwrap(), CopyState::Done(span));
        assert_eq!(device.query(&second, at(4)).unwrap(), CopyState::Running);
        let span = CopySpan { started: at(4), finished: at(5), bytes: 1000 };
        assert_eq!(device.query(&second, at(5)).unwrap(), CopyState::Done(span));
        assert_eq!(device.memory(3999..4001), [1, 0]);
        assert_eq!(device.memory(8999..9001), [1, 0]);
    }

    #[test]
    fn a_lease_given_up_too_early_shows_as_wrong_bytes() {
        let (segment, reader, view) = lent(1);
        let device = FakeDevice::new(1.0, 8000);
        let ticket = device.copy(&view, 0..8000, 0, now()).unwrap();
        drop(reader);
        let mut writer = segment.writer(SlotIndex(0)).unwrap();
        writer.as_mut_slice().fill(9);
        device.wait(ticket).unwrap();
        assert_eq!(device.memory(0..2), [9, 9]);
    }

    #[test]
    fn it_fails_where_a_real_one_would_and_where_it_is_told_to() {
        let (segment, _reader, view) = lent(1);
        let device = FakeDevice::new(1.0, 8000);
        let outside = device.copy(&view, 0..8000, 1, now()).unwrap_err();
        assert!(matches!(outside, DeviceError::CopyFailed { bytes: 8000, .. }), "{outside}");
        device.fail_after(1);
        let [good, bad] = [0, 0].map(|at| device.copy(&view, 0..10, at, now()).unwrap());
        device.wait(good).unwrap();
        let error = device.wait(bad).unwrap_err();
        assert!(matches!(error, DeviceError::CopyFailed { bytes: 10, .. }), "{error}");
        let map = SegmentMap::open(segment.descriptor().try_clone_to_owned().unwrap()).unwrap();
        let registration = device.register(&map).unwrap();
        assert_eq!(device.registrations(), 1);
        drop(registration);
        device.refuse_registration();
        let error = device.register(&map).unwrap_err();
        assert!(matches!(error, DeviceError::RegistrationRefused { segment: 1, .. }), "{error}");
        assert_eq!(device.registrations(), 0);
    }
}
