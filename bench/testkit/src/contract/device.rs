//! What every [`Device`] must do.

use std::fmt;
use std::ops::Range;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use forebay_device::{
    CopyJob, CopySource, CopySpan, CopyState, CopyStream, Device, DeviceError, DeviceMemory,
    Registration, Rows,
};
use forebay_shm::{Segment, SegmentId, SegmentMap, SegmentSpec, SlotIndex, SlotReader, SlotView};

use crate::content::{Content, as_u64};

const SLOTS: u32 = 3;
/// Larger than the staging buffers of a device that stages are likely to be.
const SLOT_BYTES: usize = 5 << 20;
const MEMORY_BYTES: u64 = 16 << 20;

/// Reads a range of memory of a device.
pub type ReadMemory<'a> = &'a dyn Fn(&DeviceMemory, Range<u64>) -> Vec<u8>;

/// A device under test, with at least 64 MiB of memory.
#[derive(Clone, Copy)]
pub struct DeviceSubject<'a> {
    /// The device.
    pub device: &'a dyn Device,
    /// Another device, whose memory is no place for copies of this one.
    pub other: &'a dyn Device,
    /// Reads memory of the device; None where nothing is stored.
    pub memory: Option<ReadMemory<'a>>,
}

impl fmt::Debug for DeviceSubject<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DeviceSubject").field("device", self.device).finish_non_exhaustive()
    }
}

/// Runs every case of the contract. Blocks the thread for as long as a few small copies take.
///
/// # Panics
/// If a rule is broken.
pub fn device(subject: DeviceSubject<'_>) {
    let case = Case::new(subject);
    case.ranges_land_where_they_were_sent();
    case.rows_land_where_they_were_sent();
    case.private_bytes_are_read_before_the_call_returns();
    case.copies_of_a_stream_run_in_order();
    case.a_finished_copy_stays_finished();
    case.two_streams_run_side_by_side();
    case.what_leaves_its_bounds_is_refused();
    case.memory_of_another_device_is_refused();
    case.memory_that_is_freed_leaves_other_memory_alone();
    case.everything_is_kept_until_the_copy_is_done();
    case.a_stream_that_ends_waits_for_its_copies();
}

/// A segment with filled slots, mapped as a client maps it.
struct Lent {
    _segment: Arc<Segment>,
    map: Arc<SegmentMap>,
    readers: Vec<SlotReader>,
}

impl Lent {
    fn new() -> Self {
        let (id, slot_bytes) = (SegmentId(7), SLOT_BYTES);
        let spec = SegmentSpec { id, domain: 0, slot_bytes, slots: SLOTS, lock: false };
        let segment = Segment::create(&spec).expect("a small segment can be made");
        let fill = |slot: u32| {
            let mut writer = segment.writer(SlotIndex(slot)).expect("the slot is free");
            slot_content(slot).read_at(0, writer.as_mut_slice());
            writer.publish()
        };
        let readers = (0..SLOTS).map(fill).collect();
        let descriptor = segment.descriptor().try_clone_to_owned().expect("a descriptor to spare");
        let map = SegmentMap::open(descriptor).expect("the segment is well formed");
        Self { _segment: segment, map, readers }
    }

    fn view(&self, slot: u32) -> SlotView {
        let generation = self.readers[slot as usize].generation();
        self.map.view(SlotIndex(slot), generation, SLOT_BYTES).expect("the slot is lent")
    }

    fn registered(&self, device: &dyn Device) -> Arc<Registration> {
        let registration = device.register(&self.map).expect("registering is no error");
        assert!(Arc::ptr_eq(registration.segment(), &self.map), "it names its segment");
        Arc::new(registration)
    }
}

fn slot_content(slot: u32) -> Content {
    Content::synthetic(u64::from(slot) + 100, as_u64(SLOT_BYTES))
}

/// The caller's clock; no timer hangs on it.
fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

/// A subject with what most cases need.
struct Case<'a> {
    subject: DeviceSubject<'a>,
    lent: Lent,
    registration: Arc<Registration>,
    stream: Box<dyn CopyStream>,
    memory: Arc<DeviceMemory>,
}

impl<'a> Case<'a> {
    fn new(subject: DeviceSubject<'a>) -> Self {
        let lent = Lent::new();
        let registration = lent.registered(subject.device);
        let stream = subject.device.stream().expect("a stream");
        let memory = subject.device.allocate(MEMORY_BYTES).expect("some memory");
        assert_eq!(memory.bytes(), MEMORY_BYTES);
        assert_eq!(memory.address() % 256, 0, "memory is aligned");
        assert_eq!(memory.device(), subject.device.info().spec);
        Self { subject, lent, registration, stream, memory: Arc::new(memory) }
    }

    fn source<'s>(&'s self, view: &'s SlotView) -> CopySource<'s> {
        CopySource::Slot { view, registration: &self.registration }
    }

    fn copied(&self, source: CopySource<'_>, rows: Rows) -> CopySpan {
        let (asked, job) = (now(), CopyJob::new(source, &self.memory, rows));
        let ticket = self.stream.copy(job.expect("it is in bounds"), asked);
        let ticket = ticket.expect("the copy is started");
        assert_eq!((ticket.bytes(), ticket.submitted()), (rows.bytes(), asked));
        let span = self.stream.wait(ticket).expect("the copy is done");
        assert!(span.finished >= span.started, "a copy ends no earlier than it starts");
        assert_eq!(span.bytes, rows.bytes(), "a span counts the bytes of its copy");
        span
    }

    fn check(&self, at: u64, content: &Content, from: usize, bytes: usize, what: &str) {
        let Some(memory) = self.subject.memory else { return };
        let landed = memory(&self.memory, at..at + as_u64(bytes));
        assert_eq!(landed.len(), bytes, "the whole range can be read");
        let wrong = content.first_difference(as_u64(from), &landed);
        assert_eq!(wrong, None, "{what}: {bytes} bytes from {from} to {at}");
    }

    fn ranges_land_where_they_were_sent(&self) {
        for (slot, range, to) in [
            (0, 0..SLOT_BYTES, 0),
            (1, 5..1029, 8_100_003),
            (2, SLOT_BYTES - 1..SLOT_BYTES, 8_000_007),
            (0, 9..9, MEMORY_BYTES),
            (2, 4095..SLOT_BYTES, 9_000_001),
        ] {
            let view = self.lent.view(slot);
            let (from, bytes) = (range.start, range.len());
            self.copied(self.source(&view), Rows::range(range, to));
            self.check(to, &slot_content(slot), from, bytes, "a range");
        }
    }

    fn rows_land_where_they_were_sent(&self) {
        let view = self.lent.view(1);
        let tall = Rows {
            source_start: 3,
            destination_start: 11,
            row_bytes: 1000,
            rows: 5000,
            source_pitch: 1024,
            destination_pitch: 1001,
        };
        let wide = Rows {
            source_start: 1 << 20,
            destination_start: 6 << 20,
            row_bytes: (1 << 20) + 1,
            rows: 3,
            source_pitch: (1 << 20) + 64,
            destination_pitch: (1 << 20) + 512,
        };
        let packed = Rows { row_bytes: 1024, destination_pitch: 1024, ..tall };
        let empty = Rows { row_bytes: 0, ..tall };
        let none = Rows { rows: 0, ..tall };
        for rows in [tall, wide, packed, empty, none] {
            self.copied(self.source(&view), rows);
            for row in 0..rows.rows {
                let from = rows.source_start + row * rows.source_pitch;
                let to = rows.destination_start + as_u64(row * rows.destination_pitch);
                self.check(to, &slot_content(1), from, rows.row_bytes, "a row");
            }
        }
    }

    fn private_bytes_are_read_before_the_call_returns(&self) {
        let (content, bytes) = (Content::synthetic(5, 3 << 20), 3 << 20);
        let mut private = content.to_bytes().to_vec();
        let rows = Rows::range(0..bytes, 77);
        let job = CopyJob::new(CopySource::Private(&private), &self.memory, rows);
        let ticket = self.stream.copy(job.expect("in bounds"), now()).expect("started");
        private.fill(0);
        self.stream.wait(ticket).expect("done");
        self.check(77, &content, 0, bytes, "private bytes");
    }

    fn copies_of_a_stream_run_in_order(&self) {
        let views: Vec<SlotView> = (0..SLOTS).map(|slot| self.lent.view(slot)).collect();
        let start = |view| {
            let rows = Rows::range(0..SLOT_BYTES, 0);
            let job = CopyJob::new(self.source(view), &self.memory, rows).expect("in bounds");
            self.stream.copy(job, now()).expect("copies queue")
        };
        let tickets: Vec<_> = views.iter().chain(&views).map(start).collect();
        let spans: Vec<CopySpan> =
            tickets.into_iter().map(|ticket| self.stream.wait(ticket).expect("done")).collect();
        for pair in spans.windows(2) {
            assert!(pair[1].started >= pair[0].started, "copies of a stream start in order");
            assert!(pair[1].finished >= pair[0].finished, "copies of a stream end in order");
        }
        self.check(0, &slot_content(SLOTS - 1), 0, SLOT_BYTES, "the last of many");
    }

    fn a_finished_copy_stays_finished(&self) {
        let view = self.lent.view(1);
        let rows = Rows::range(0..4096, 0);
        let job = CopyJob::new(self.source(&view), &self.memory, rows).expect("in bounds");
        let ticket = self.stream.copy(job, now()).expect("started");
        let mut later = now();
        let span = loop {
            match self.stream.query(&ticket, later).expect("it can be asked about") {
                CopyState::Done(span) => break span,
                CopyState::Running => std::thread::yield_now(),
            }
            later += Duration::from_millis(1);
        };
        assert_eq!(span.bytes, 4096);
        let again = self.stream.query(&ticket, later).expect("and once more");
        assert_eq!(again, CopyState::Done(span), "a copy that is done stays done, with one span");
        assert_eq!(self.stream.wait(ticket), Ok(span), "wait and query tell the same");
    }

    fn two_streams_run_side_by_side(&self) {
        let second = self.subject.device.stream().expect("another stream");
        let streams = [&self.stream, &second];
        let halves = [0..SLOT_BYTES / 2, SLOT_BYTES / 2..SLOT_BYTES];
        let (view, memory) = (&self.lent.view(0), &self.memory);
        let source = CopySource::Slot { view, registration: &self.registration };
        let copy = |stream: &dyn CopyStream, range: Range<usize>| {
            let rows = Rows::range(range.clone(), as_u64(range.start));
            let job = CopyJob::new(source, memory, rows).expect("in bounds");
            let ticket = stream.copy(job, now()).expect("started");
            assert_eq!(stream.wait(ticket).expect("done").bytes, rows.bytes());
        };
        std::thread::scope(|scope| {
            for (stream, half) in streams.into_iter().zip(halves) {
                scope.spawn(move || copy(&**stream, half));
            }
        });
        self.check(0, &slot_content(0), 0, SLOT_BYTES, "two streams");
    }

    fn what_leaves_its_bounds_is_refused(&self) {
        let view = self.lent.view(0);
        let good = Rows::range(0..10, 0);
        let backwards = Rows { row_bytes: usize::MAX, ..good };
        let overlapping = Rows { rows: 2, source_pitch: 9, ..good };
        let far = Rows { rows: usize::MAX, source_pitch: usize::MAX, ..good };
        for rows in [Rows::range(1..SLOT_BYTES + 1, 0), backwards, overlapping, far] {
            let refused = CopyJob::new(self.source(&view), &self.memory, rows);
            let out = matches!(refused, Err(DeviceError::OutOfRange { what: "source", .. }));
            assert!(out, "{rows:?} of a slot of {SLOT_BYTES} bytes");
        }
        let overlapping = Rows { rows: 2, source_pitch: 10, destination_pitch: 9, ..good };
        for rows in [Rows::range(0..10, MEMORY_BYTES - 9), overlapping] {
            let refused = CopyJob::new(self.source(&view), &self.memory, rows);
            let out = matches!(refused, Err(DeviceError::OutOfRange { what: "destination", .. }));
            assert!(out, "{rows:?} to {MEMORY_BYTES} bytes");
        }
        let other = Lent::new().view(0);
        let refused = CopyJob::new(self.source(&other), &self.memory, good);
        assert!(matches!(refused, Err(DeviceError::NotRegistered { segment: 7 })), "{refused:?}");
    }

    fn memory_of_another_device_is_refused(&self) {
        let elsewhere = Arc::new(self.subject.other.allocate(4096).expect("memory elsewhere"));
        let view = self.lent.view(0);
        let job = CopyJob::new(self.source(&view), &elsewhere, Rows::range(0..10, 0));
        let refused = self.stream.copy(job.expect("in bounds"), now());
        assert!(matches!(refused, Err(DeviceError::WrongDevice { .. })), "{refused:?}");
    }

    fn everything_is_kept_until_the_copy_is_done(&self) {
        let (lent, device) = (Lent::new(), self.subject.device);
        let (view, registration) = (lent.view(0), lent.registered(device));
        let memory = Arc::new(device.allocate(as_u64(SLOT_BYTES)).expect("memory"));
        let (map, kept): (Weak<SegmentMap>, _) =
            (Arc::downgrade(&lent.map), Arc::downgrade(&memory));
        let source = CopySource::Slot { view: &view, registration: &registration };
        let job = CopyJob::new(source, &memory, Rows::range(0..SLOT_BYTES, 0)).expect("in bounds");
        let ticket = self.stream.copy(job, now()).expect("started");
        drop((memory, registration, view));
        let Lent { _segment, map: own, readers } = lent;
        drop(own);
        let span = self.stream.wait(ticket).expect("what the copy needs is still there");
        assert_eq!(span.bytes, as_u64(SLOT_BYTES));
        drop(readers);
        assert!(map.upgrade().is_none(), "a segment is unmapped after its last copy");
        assert!(kept.upgrade().is_none(), "memory is freed after its last copy");
    }

    fn a_stream_that_ends_waits_for_its_copies(&self) {
        let stream = self.subject.device.stream().expect("another stream");
        let lent = Lent::new();
        let registration = lent.registered(self.subject.device);
        let view = lent.view(2);
        let source = CopySource::Slot { view: &view, registration: &registration };
        let rows = Rows::range(0..SLOT_BYTES, 1);
        let job = CopyJob::new(source, &self.memory, rows).expect("in bounds");
        let tickets = [(); 3].map(|()| stream.copy(job, now()).expect("started"));
        drop((stream, registration, view));
        drop(tickets);
        assert_eq!(Arc::strong_count(&lent.map), 1, "a stream keeps nothing when it is gone");
        drop(lent);
        self.check(1, &slot_content(2), 0, SLOT_BYTES, "copies of a stream that ended");
    }

    fn memory_that_is_freed_leaves_other_memory_alone(&self) {
        let view = self.lent.view(2);
        self.copied(self.source(&view), Rows::range(0..SLOT_BYTES, 0));
        let (device, stream) = (self.subject.device, &self.stream);
        let again = Arc::new(device.allocate(1 << 20).expect("more memory"));
        let job = CopyJob::new(self.source(&view), &again, Rows::range(0..1 << 20, 0));
        let ticket = stream.copy(job.expect("in bounds"), now()).expect("started");
        stream.wait(ticket).expect("done");
        drop(again);
        self.check(0, &slot_content(2), 0, SLOT_BYTES, "memory beside memory that was freed");
    }
}
