//! A device that is not there: it takes the time that a real one would take, and keeps a timeline.
//!
//! All streams of one device share one copy engine, as they do on a GPU with one engine per
//! direction: a copy begins when it is started or when the engine is free, whichever is later, and
//! takes its bytes over the rate. Time is the caller's: `query` goes by the instant it is given,
//! and only `wait`, and the end of a stream, look at the clock, to block until a copy is due.
//!
//! By default no byte is stored anywhere, so that a checkpoint of any size can be "loaded". A
//! device [with memory](FakeDevice::with_memory) has real memory of this process, and its copies
//! read their source when they *finish*: a lease given up too early shows as wrong bytes.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use forebay_shm::{SegmentMap, SlotView};

use crate::error::DeviceError;
use crate::memory;
use crate::seam::{
    CopyJob, CopySource, CopySpan, CopyState, CopyStream, CopyTicket, Device, DeviceInfo,
    DeviceMemory, KeptAlive, MemoryPath, Registration, Rows,
};
use crate::spec::DeviceSpec;

/// How many spans the timeline keeps; older ones are forgotten.
const TIMELINE_SPANS_MAX: usize = 1 << 16;

/// Where memory that stores nothing begins: no address of a process has this bit, so that nobody
/// takes such memory for real.
const NOWHERE: u64 = 1 << 63;

/// A paced device. Clones are the same device.
#[derive(Clone, Debug)]
pub struct FakeDevice(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    info: DeviceInfo,
    bytes_per_second: f64,
    stores: bool,
    engine: Mutex<Engine>,
    /// Never notified: to wait on it is to wait for a time.
    due: Condvar,
    registrations: Arc<AtomicUsize>,
    allocated: Arc<AtomicU64>,
}

/// The one copy engine, and what it has been told to do.
#[derive(Debug, Default)]
struct Engine {
    free_at: Option<Instant>,
    /// Copies that are under way, in the order in which they end.
    under_way: VecDeque<UnderWay>,
    /// Every copy that its stream has not answered for.
    copies: BTreeMap<u64, Outcome>,
    spans: VecDeque<CopySpan>,
    started: u64,
    bytes: u64,
    nowhere: u64,
    fail_after: Option<u64>,
    refuse_registration: bool,
}

#[derive(Debug, Clone, Copy)]
struct Outcome {
    span: CopySpan,
    fails: bool,
}

#[derive(Debug)]
struct UnderWay {
    finished: Instant,
    landing: Option<Landing>,
    _kept: KeptAlive,
}

/// What a copy does when it ends.
#[derive(Debug)]
struct Landing {
    source: Source,
    address: u64,
    rows: Rows,
}

#[derive(Debug)]
enum Source {
    Slot(SlotView),
    Private(Vec<u8>),
}

impl FakeDevice {
    /// A device that copies `gigabytes_per_second` times 1e9 bytes a second and stores nothing.
    #[must_use]
    pub fn new(gigabytes_per_second: f64) -> Self {
        Self::made(gigabytes_per_second, false)
    }

    /// The same, with memory that keeps what is copied there: [`FakeDevice::read`].
    #[must_use]
    pub fn with_memory(gigabytes_per_second: f64) -> Self {
        Self::made(gigabytes_per_second, true)
    }

    fn made(gigabytes_per_second: f64, stores: bool) -> Self {
        let info = DeviceInfo {
            spec: DeviceSpec::Fake { gigabytes_per_second },
            name: format!("a pretended device at {gigabytes_per_second} GB/s"),
            pci: None,
            path: MemoryPath::RegisteredReadOnly,
        };
        Self(Arc::new(Inner {
            info,
            bytes_per_second: gigabytes_per_second * 1e9,
            stores,
            engine: Mutex::default(),
            due: Condvar::new(),
            registrations: Arc::default(),
            allocated: Arc::default(),
        }))
    }

    /// What lies in memory of a device with memory; none for memory that stores nothing, of
    /// another device, or shorter. Copies that nobody has asked about since they were due have not
    /// landed.
    #[must_use]
    pub fn read(&self, memory: &DeviceMemory, range: Range<u64>) -> Option<Vec<u8>> {
        let engine = self.0.engine();
        let ours = memory.device() == self.0.info.spec && memory.address() < NOWHERE;
        if !ours || range.start > range.end || range.end > memory.bytes() {
            return None;
        }
        let start = usize::try_from(memory.address().checked_add(range.start)?).ok()?;
        let mut bytes = vec![0; usize::try_from(range.end - range.start).ok()?];
        let start = std::ptr::with_exposed_provenance::<u8>(start);
        // SAFETY: the range lies in `memory`, which is of this process and borrowed, so it is
        // there. Only copies write to it, and those under way in this device wait for the lock.
        unsafe { bytes.as_mut_ptr().copy_from_nonoverlapping(start, bytes.len()) };
        drop(engine);
        Some(bytes)
    }

    /// Segments that are registered at the moment.
    #[must_use]
    pub fn registrations(&self) -> usize {
        self.0.registrations.load(Ordering::Acquire)
    }

    /// Bytes that are allocated at the moment.
    #[must_use]
    pub fn allocated(&self) -> u64 {
        self.0.allocated.load(Ordering::Acquire)
    }

    /// Copies that were started.
    #[must_use]
    pub fn copies(&self) -> u64 {
        self.0.engine().started
    }

    /// Bytes of the copies that were started.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.0.engine().bytes
    }

    /// When the engine was or will be busy, copy by copy: the newest 65,536.
    #[must_use]
    pub fn spans(&self) -> Vec<CopySpan> {
        self.0.engine().spans.iter().copied().collect()
    }

    /// After `copies` more copies, each later one fails when it is due.
    pub fn fail_after(&self, copies: u64) {
        let mut engine = self.0.engine();
        engine.fail_after = Some(engine.started.saturating_add(copies));
    }

    /// From now on no segment is registered: copies are staged.
    pub fn refuse_registration(&self) {
        self.0.engine().refuse_registration = true;
    }
}

impl Device for FakeDevice {
    fn info(&self) -> &DeviceInfo {
        &self.0.info
    }

    fn register(&self, segment: &Arc<SegmentMap>) -> Result<Registration, DeviceError> {
        if self.0.engine().refuse_registration {
            let why = "the device was told to refuse".to_owned();
            return Ok(Registration::of(segment, MemoryPath::Staged { why }));
        }
        let registrations = Arc::clone(&self.0.registrations);
        registrations.fetch_add(1, Ordering::AcqRel);
        let release = move || {
            registrations.fetch_sub(1, Ordering::AcqRel);
        };
        Ok(Registration::with_release(segment, MemoryPath::RegisteredReadOnly, release))
    }

    fn allocate(&self, bytes: u64) -> Result<DeviceMemory, DeviceError> {
        let allocated = Arc::clone(&self.0.allocated);
        let freed = move || {
            allocated.fetch_sub(bytes, Ordering::AcqRel);
        };
        let spec = self.0.info.spec;
        let memory = if self.0.stores {
            memory::allocate(spec, bytes, freed)?
        } else {
            DeviceMemory::allocated(spec, self.0.nowhere(bytes)?, bytes, freed)
        };
        self.0.allocated.fetch_add(bytes, Ordering::AcqRel);
        Ok(memory)
    }

    fn stream(&self) -> Result<Box<dyn CopyStream>, DeviceError> {
        Ok(Box::new(FakeStream { device: Arc::clone(&self.0), own: Mutex::default() }))
    }
}

impl Inner {
    fn engine(&self) -> MutexGuard<'_, Engine> {
        self.engine.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn duration(&self, bytes: u64) -> Duration {
        Duration::try_from_secs_f64(bytes as f64 / self.bytes_per_second).unwrap_or(Duration::MAX)
    }

    /// An address for memory that stores nothing.
    fn nowhere(&self, bytes: u64) -> Result<u64, DeviceError> {
        let mut engine = self.engine();
        let start = NOWHERE + engine.nowhere;
        let end = bytes.checked_next_multiple_of(memory::ALIGN as u64);
        let end = end.and_then(|bytes| engine.nowhere.checked_add(bytes));
        engine.nowhere =
            end.filter(|end| *end < NOWHERE).ok_or_else(|| DeviceError::OutOfMemory {
                device: self.info.spec.to_string(),
                bytes,
                reason: "addresses have 64 bits".to_owned(),
            })?;
        Ok(start)
    }

    fn failed(&self, bytes: u64, reason: &str) -> DeviceError {
        let device = self.info.spec.to_string();
        DeviceError::CopyFailed { device, bytes, reason: reason.to_owned() }
    }

    /// What has to be written when a copy ends; none for memory that stores nothing.
    fn landing(&self, job: &CopyJob<'_>) -> Result<Option<Landing>, DeviceError> {
        let memory = job.destination();
        let wrong = || DeviceError::WrongDevice {
            memory: memory.device().to_string(),
            device: self.info.spec.to_string(),
        };
        if memory.device() != self.info.spec {
            return Err(wrong());
        }
        let nowhere = memory.address() >= NOWHERE;
        match (self.stores, nowhere) {
            (true, true) => Err(wrong()),
            (false, _) => Ok(None),
            (true, false) => {
                let source = match job.source() {
                    CopySource::Slot { view, .. } => Source::Slot(view.clone()),
                    CopySource::Private(bytes) => Source::Private(bytes.to_vec()),
                };
                Ok(Some(Landing { source, address: memory.address(), rows: job.rows() }))
            }
        }
    }

    /// Blocks until `due`, with the engine free for others meanwhile.
    fn wait_until<'a>(
        &'a self,
        mut engine: MutexGuard<'a, Engine>,
        due: Instant,
    ) -> MutexGuard<'a, Engine> {
        loop {
            let left = due.saturating_duration_since(crate::clock::now());
            if left.is_zero() {
                return engine;
            }
            let waited = self.due.wait_timeout(engine, left);
            (engine, _) = waited.unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Engine {
    /// Ends the copies that are due.
    fn land(&mut self, now: Instant) {
        while let Some(copy) = self.under_way.pop_front_if(|copy| copy.finished <= now) {
            let Some(Landing { source, address, rows }) = &copy.landing else { continue };
            let bytes = match source {
                Source::Slot(view) => view.bytes(),
                Source::Private(bytes) => bytes,
            };
            // SAFETY: `CopyJob::new` checked that every row lies in the source and in the
            // destination, which is memory of this process (its address is below `NOWHERE`) and
            // kept alive by the copy. Nobody writes to it but copies of this device, which hold the
            // lock.
            unsafe { memory::write_rows(bytes, *address, *rows) };
        }
    }
}

/// Remembers which copies are its own, so that its end can wait for them.
#[derive(Debug)]
struct FakeStream {
    device: Arc<Inner>,
    own: Mutex<BTreeMap<u64, Instant>>,
}

impl FakeStream {
    fn own(&self) -> MutexGuard<'_, BTreeMap<u64, Instant>> {
        self.own.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// When a copy of this stream is due.
    fn due(&self, ticket: &CopyTicket) -> Result<Instant, DeviceError> {
        let due = self.own().get(&ticket.id()).copied();
        due.ok_or_else(|| self.device.failed(ticket.bytes(), "the stream has no such copy"))
    }

    /// The end of a copy that is due. A failure is told once.
    fn outcome(&self, engine: &mut Engine, ticket: &CopyTicket) -> Result<CopySpan, DeviceError> {
        match engine.copies.get(&ticket.id()) {
            Some(Outcome { span, fails: false }) => Ok(*span),
            _ => {
                engine.copies.remove(&ticket.id());
                self.own().remove(&ticket.id());
                Err(self.device.failed(ticket.bytes(), "the device was told to fail"))
            }
        }
    }
}

impl CopyStream for FakeStream {
    fn copy(&self, job: CopyJob<'_>, now: Instant) -> Result<CopyTicket, DeviceError> {
        let landing = self.device.landing(&job)?;
        let bytes = job.rows().bytes();
        let mut engine = self.device.engine();
        let id = engine.started;
        let started = engine.free_at.map_or(now, |free_at| free_at.max(now));
        let finished = started
            .checked_add(self.device.duration(bytes))
            .ok_or_else(|| self.device.failed(bytes, "it would take forever"))?;
        let fails = engine.fail_after.is_some_and(|copies| id >= copies);
        let span = CopySpan { started, finished, bytes };
        engine.free_at = Some(finished);
        engine.started += 1;
        engine.bytes += bytes;
        if engine.spans.len() == TIMELINE_SPANS_MAX {
            engine.spans.pop_front();
        }
        engine.spans.push_back(span);
        engine.copies.insert(id, Outcome { span, fails });
        let landing = landing.filter(|_| !fails);
        engine.under_way.push_back(UnderWay { finished, landing, _kept: job.kept_alive() });
        self.own().insert(id, finished);
        Ok(CopyTicket::new(id, &job, now))
    }

    fn query(&self, ticket: &CopyTicket, now: Instant) -> Result<CopyState, DeviceError> {
        let due = self.due(ticket)?;
        let mut engine = self.device.engine();
        engine.land(now);
        if due > now {
            return Ok(CopyState::Running);
        }
        self.outcome(&mut engine, ticket).map(CopyState::Done)
    }

    fn wait(&self, ticket: CopyTicket) -> Result<CopySpan, DeviceError> {
        let due = self.due(&ticket)?;
        let mut engine = self.device.engine();
        // Who asks after the end, by its own clock, has no reason to wait.
        if engine.under_way.front().is_some_and(|copy| copy.finished <= due) {
            engine = self.device.wait_until(engine, due);
            engine.land(due);
        }
        let outcome = self.outcome(&mut engine, &ticket);
        engine.copies.remove(&ticket.id());
        self.own().remove(&ticket.id());
        outcome
    }
}

impl Drop for FakeStream {
    fn drop(&mut self) {
        let own = std::mem::take(&mut *self.own());
        let mut engine = self.device.engine();
        for id in own.keys() {
            engine.copies.remove(id);
        }
        let last = own.into_values().max();
        let Some(last) = last else { return };
        if engine.under_way.front().is_some_and(|copy| copy.finished <= last) {
            engine = self.device.wait_until(engine, last);
            engine.land(last);
        }
    }
}

#[cfg(test)]
#[path = "fake_tests.rs"]
mod tests;
