//! A stream of the driver as a [`CopyStream`].
//!
//! Every copy lies between two events, whose times, counted from the device's base event, are its
//! span. A copy under way is an entry that owns all of its parts: what it reads and writes, its
//! events, and the base that its times are counted from. The entry ends when the copy is known to
//! be done; after an error the whole stream is waited for first, so that nothing is let go while
//! an engine may read it. A stream of the caller's own is not destroyed at the end.

use std::collections::BTreeMap;
use std::ffi::c_void;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use cudarc::driver::sys;

use crate::cuda::context::{Entered, Event, Handle};
use crate::cuda::driver::NOT_READY;
use crate::cuda::staging::{Ring, joined, pieces};
use crate::cuda::{Base, Opened};
use crate::error::DeviceError;
use crate::seam::{
    CopyJob, CopySource, CopySpan, CopyState, CopyStream, CopyTicket, KeptAlive, MemoryPath, Rows,
};

/// Copies on one stream of the driver.
#[derive(Debug)]
pub(crate) struct CudaStream {
    device: Arc<Opened>,
    raw: Handle<sys::CUstream_st>,
    owned: bool,
    /// Held while a copy is given to the stream, so that its parts follow each other.
    ring: Mutex<Ring>,
    copies: Mutex<Copies>,
}

#[derive(Debug, Default)]
struct Copies {
    next: u64,
    known: BTreeMap<u64, Copying>,
    /// Events that no copy uses.
    spare: Vec<Event>,
}

/// A copy that its stream has not answered for.
#[derive(Debug)]
enum Copying {
    UnderWay(Box<UnderWay>),
    Done(CopySpan),
}

#[derive(Debug)]
struct UnderWay {
    begin: Event,
    end: Event,
    base: Arc<Base>,
    _kept: KeptAlive,
}

impl CudaStream {
    /// A new stream.
    pub(crate) fn new(device: &Arc<Opened>) -> Result<Self, DeviceError> {
        let entered = device.context.enter()?;
        let raw = device.new_stream(&entered)?;
        Ok(Self::of(device, raw, true))
    }

    /// A stream over one of the caller's, which lives for as long as this.
    pub(crate) fn adopted(device: &Arc<Opened>, raw: Handle<sys::CUstream_st>) -> Self {
        Self::of(device, raw, false)
    }

    fn of(device: &Arc<Opened>, raw: Handle<sys::CUstream_st>, owned: bool) -> Self {
        let (ring, copies) = (Mutex::default(), Mutex::default());
        Self { device: Arc::clone(device), raw, owned, ring, copies }
    }

    fn copies(&self) -> MutexGuard<'_, Copies> {
        self.copies.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn event(&self, entered: &Entered<'_>) -> Result<Event, DeviceError> {
        let spare = self.copies().spare.pop();
        spare.map_or_else(|| Event::new(&self.device.context, entered), Ok)
    }

    /// Waits for everything in the stream, whatever the driver answers: used after errors.
    fn settle(&self, _: &Entered<'_>) {
        // SAFETY: the stream is live: by this value, or by the promise of who lent it.
        unsafe { (self.device.context.driver.stream_wait)(self.raw.0) };
    }

    /// Gives the copy to the stream: straight from its source, or by the ring.
    fn send(
        &self,
        job: &CopyJob<'_>,
        ring: &mut Ring,
        entered: &Entered<'_>,
    ) -> Result<(), DeviceError> {
        let (rows, target) = (job.rows(), job.destination().address());
        let source = match job.source() {
            CopySource::Slot { view, registration } => match registration.path() {
                MemoryPath::Staged { .. } | MemoryPath::Cpu => view.bytes(),
                _ => return self.issue(view.bytes().as_ptr(), target, joined(rows)),
            },
            CopySource::Private(bytes) => bytes,
        };
        for piece in pieces(rows) {
            let buffer = ring.next(&self.device.context, entered, rows.bytes())?;
            let packed = Rows { source_start: 0, source_pitch: piece.row_bytes, ..piece };
            self.issue(buffer.fill(source, piece), target, joined(packed))?;
            buffer.sent(self.raw, entered)?;
        }
        Ok(())
    }

    /// Copies rows from memory that the engine can read, which begins at `source`.
    fn issue(&self, source: *const u8, target: u64, rows: Rows) -> Result<(), DeviceError> {
        if rows.bytes() == 0 {
            return Ok(());
        }
        let pitch = rows.source_pitch.max(rows.destination_pitch);
        if rows.rows > 1 && pitch <= self.device.pitch_max {
            return self.issue_rows(source, target, rows);
        }
        for row in 0..rows.rows {
            let from = source.wrapping_add(rows.source_start + row * rows.source_pitch);
            let to = target + rows.destination_start + (row * rows.destination_pitch) as u64;
            let (call, bytes) = (self.device.context.driver.copy, rows.row_bytes);
            // SAFETY: `CopyJob::new` checked that the row lies in its source and its destination.
            // The caller keeps both alive until the event behind the copy: the entry of the copy
            // does for slots, the event of the buffer for the ring.
            let sent = unsafe { call(to, from.cast::<c_void>(), bytes, self.raw.0) };
            self.device.context.copied(rows.bytes(), sent)?;
        }
        Ok(())
    }

    fn issue_rows(&self, source: *const u8, target: u64, rows: Rows) -> Result<(), DeviceError> {
        let request = sys::CUDA_MEMCPY2D {
            srcXInBytes: 0,
            srcY: 0,
            srcMemoryType: sys::CUmemorytype::CU_MEMORYTYPE_HOST,
            srcHost: source.wrapping_add(rows.source_start).cast(),
            srcDevice: 0,
            srcArray: std::ptr::null_mut(),
            srcPitch: rows.source_pitch,
            dstXInBytes: 0,
            dstY: 0,
            dstMemoryType: sys::CUmemorytype::CU_MEMORYTYPE_DEVICE,
            dstHost: std::ptr::null_mut(),
            dstDevice: target + rows.destination_start,
            dstArray: std::ptr::null_mut(),
            dstPitch: rows.destination_pitch,
            WidthInBytes: rows.row_bytes,
            Height: rows.rows,
        };
        let call = self.device.context.driver.copy_rows;
        // SAFETY: as in `issue`, for every row; the driver reads the request before it returns.
        let sent = unsafe { call(&raw const request, self.raw.0) };
        self.device.context.copied(rows.bytes(), sent)
    }

    fn started(
        &self,
        job: &CopyJob<'_>,
        now: Instant,
        entered: &Entered<'_>,
    ) -> Result<UnderWay, DeviceError> {
        let base = self.device.base(now, entered)?;
        let (begin, end) = (self.event(entered)?, self.event(entered)?);
        let mut ring = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
        begin.record(self.raw, entered)?;
        let sent = self.send(job, &mut ring, entered);
        if let Err(error) = sent.and_then(|()| end.record(self.raw, entered)) {
            self.settle(entered);
            return Err(error);
        }
        Ok(UnderWay { begin, end, base, _kept: job.kept_alive() })
    }

    /// The span of a copy whose end has been reached.
    fn span(
        &self,
        copy: &UnderWay,
        bytes: u64,
        entered: &Entered<'_>,
    ) -> Result<CopySpan, DeviceError> {
        let at = |event: &Event| {
            let milliseconds = event.since(&copy.base.event, entered)?;
            let seconds = f64::from(milliseconds.max(0.0)) / 1e3;
            Ok(copy.base.at + Duration::try_from_secs_f64(seconds).unwrap_or_default())
        };
        let started = at(&copy.begin)?;
        Ok(CopySpan { started, finished: at(&copy.end)?.max(started), bytes })
    }

    /// Takes apart a copy that is done, or that failed with `code`.
    fn finished(
        &self,
        copy: UnderWay,
        bytes: u64,
        code: i32,
        entered: &Entered<'_>,
    ) -> Result<CopySpan, DeviceError> {
        if let Err(error) = self.device.context.copied(bytes, code) {
            self.settle(entered);
            return Err(error);
        }
        let span = self.span(&copy, bytes, entered);
        self.copies().spare.extend([copy.begin, copy.end]);
        span
    }

    fn unknown(&self, ticket: &CopyTicket) -> DeviceError {
        DeviceError::CopyFailed {
            device: self.device.context.spec.to_string(),
            bytes: ticket.bytes(),
            reason: "the stream has no such copy".to_owned(),
        }
    }
}

impl CopyStream for CudaStream {
    fn copy(&self, job: CopyJob<'_>, now: Instant) -> Result<CopyTicket, DeviceError> {
        let (memory, device) = (job.destination().device(), self.device.context.spec);
        if memory != device {
            let (memory, device) = (memory.to_string(), device.to_string());
            return Err(DeviceError::WrongDevice { memory, device });
        }
        let entered = self.device.context.enter()?;
        let copy = self.started(&job, now, &entered)?;
        let mut copies = self.copies();
        let ticket = CopyTicket::new(copies.next, &job, now);
        copies.next += 1;
        copies.known.insert(ticket.id(), Copying::UnderWay(Box::new(copy)));
        Ok(ticket)
    }

    fn query(&self, ticket: &CopyTicket, _now: Instant) -> Result<CopyState, DeviceError> {
        let entered = self.device.context.enter()?;
        let (copy, code) = {
            let mut copies = self.copies();
            let code = match copies.known.get(&ticket.id()) {
                Some(Copying::Done(span)) => return Ok(CopyState::Done(*span)),
                Some(Copying::UnderWay(copy)) => copy.end.query(&entered),
                None => return Err(self.unknown(ticket)),
            };
            if code == NOT_READY {
                return Ok(CopyState::Running);
            }
            (copies.known.remove(&ticket.id()), code)
        };
        let Some(Copying::UnderWay(copy)) = copy else { return Err(self.unknown(ticket)) };
        let span = self.finished(*copy, ticket.bytes(), code, &entered)?;
        self.copies().known.insert(ticket.id(), Copying::Done(span));
        Ok(CopyState::Done(span))
    }

    fn wait(&self, ticket: CopyTicket) -> Result<CopySpan, DeviceError> {
        let entered = self.device.context.enter()?;
        let copy = self.copies().known.remove(&ticket.id());
        match copy {
            Some(Copying::Done(span)) => Ok(span),
            Some(Copying::UnderWay(copy)) => {
                let code = copy.end.wait(&entered);
                self.finished(*copy, ticket.bytes(), code, &entered)
            }
            None => Err(self.unknown(&ticket)),
        }
    }
}

impl Drop for CudaStream {
    fn drop(&mut self) {
        let Ok(entered) = self.device.context.enter() else {
            // Without its context nothing can be waited for: what the copies use is not let go.
            std::mem::take(&mut self.copies().known).into_values().for_each(leak);
            return;
        };
        let copies = std::mem::take(&mut *self.copies());
        let under_way = copies.known.values().filter_map(|copy| match copy {
            Copying::UnderWay(copy) => Some(&copy.end),
            Copying::Done(_) => None,
        });
        for end in under_way {
            if end.wait(&entered) != 0 {
                self.settle(&entered);
            }
        }
        if self.owned {
            self.settle(&entered);
            // SAFETY: made by `new`, destroyed nowhere else, and idle.
            unsafe { (self.device.context.driver.stream_destroy)(self.raw.0) };
        }
    }
}

/// Keeps what a copy uses for as long as the process lives.
fn leak(copy: Copying) {
    Box::leak(Box::new(copy));
}
