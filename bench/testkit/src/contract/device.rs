//! What every [`Device`] must do.

use std::fmt::Debug;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use forebay_device::{CopySpan, CopyState, Device, DeviceError};
use forebay_shm::{Generation, Segment, SegmentId, SegmentMap, SegmentSpec, SlotIndex, SlotView};

use crate::content::{Content, as_u64};

const SLOTS: u32 = 3;
const SLOT_BYTES: usize = 64 << 10;

/// A device under test, with at least 256 KiB of memory.
#[derive(Clone, Copy)]
pub struct DeviceSubject<'a> {
    /// The device.
    pub device: &'a dyn Device,
    /// Reads the device's memory; None where the device uses the bytes in place.
    pub memory: Option<&'a dyn Fn(Range<u64>) -> Vec<u8>>,
}

impl Debug for DeviceSubject<'_> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("DeviceSubject").field("device", self.device).finish_non_exhaustive()
    }
}

/// A segment with filled slots, mapped as a client maps it.
struct Lent {
    _segment: Arc<Segment>,
    map: Arc<SegmentMap>,
    _readers: Vec<forebay_shm::SlotReader>,
    generations: Vec<Generation>,
}

impl Lent {
    fn new() -> Self {
        let spec = SegmentSpec {
            id: SegmentId(7),
            domain: 0,
            slot_bytes: SLOT_BYTES,
            slots: SLOTS,
            lock: false,
        };
        let segment = Segment::create(&spec).expect("a small segment can be made");
        let mut readers = Vec::new();
        for slot in 0..SLOTS {
            let mut writer = segment.writer(SlotIndex(slot)).expect("the slot is free");
            slot_content(slot).read_at(0, writer.as_mut_slice());
            readers.push(writer.publish());
        }
        let descriptor = segment.descriptor().try_clone_to_owned().expect("a descriptor to spare");
        let map = SegmentMap::open(descriptor).expect("the segment is well formed");
        let generations = readers.iter().map(forebay_shm::SlotReader::generation).collect();
        Self { _segment: segment, map, _readers: readers, generations }
    }

    fn view(&self, slot: u32) -> SlotView {
        let generation = self.generations[slot as usize];
        self.map.view(SlotIndex(slot), generation, SLOT_BYTES).expect("the slot is lent")
    }
}

fn slot_content(slot: u32) -> Content {
    Content::synthetic(u64::from(slot) + 100, as_u64(SLOT_BYTES))
}

/// Runs every case of the contract. Blocks the thread for as long as a few small copies take.
///
/// # Panics
/// If a rule is broken.
pub fn device(subject: DeviceSubject<'_>) {
    let lent = Lent::new();
    let registration = subject.device.register(&lent.map).expect("a segment can be registered");
    assert!(Arc::ptr_eq(registration.segment(), &lent.map), "a registration names its segment");
    copies_land_where_they_were_sent(subject, &lent);
    queued_copies_do_not_overlap(subject, &lent);
    ranges_outside_the_view_are_refused(subject, &lent);
    a_finished_copy_stays_finished(subject, &lent);
    the_ticket_keeps_its_bytes(subject, lent);
    drop(registration);
}

fn span_is_sound(span: CopySpan, submitted: std::time::Instant, bytes: usize) {
    assert!(span.started >= submitted, "a copy starts no earlier than it was asked for");
    assert!(span.finished >= span.started, "a copy ends no earlier than it starts");
    assert_eq!(span.bytes, as_u64(bytes), "a span counts the bytes of its copy");
}

fn now() -> std::time::Instant {
    tokio::time::Instant::now().into_std()
}

fn copies_land_where_they_were_sent(subject: DeviceSubject<'_>, lent: &Lent) {
    for (slot, range, destination) in [
        (0, 0..SLOT_BYTES, 0),
        (1, 5..1029, 100_003),
        (2, SLOT_BYTES - 1..SLOT_BYTES, 7),
        (0, 9..9, 0),
    ] {
        let (view, asked) = (lent.view(slot), now());
        let bytes = range.len();
        let ticket = subject.device.copy(&view, range.clone(), destination, asked);
        let ticket = ticket.expect("a copy within the view is started");
        assert!(slot_content(slot).matches(as_u64(range.start), ticket.bytes()), "source bytes");
        let span = subject.device.wait(ticket).expect("the copy is done");
        span_is_sound(span, asked, bytes);
        let Some(memory) = subject.memory else { continue };
        let landed = memory(destination..destination + as_u64(bytes));
        assert_eq!(landed.len(), bytes, "the device's memory is large enough");
        let wrong = slot_content(slot).first_difference(as_u64(range.start), &landed);
        assert_eq!(wrong, None, "slot {slot} bytes {range:?} at {destination}");
    }
}

fn queued_copies_do_not_overlap(subject: DeviceSubject<'_>, lent: &Lent) {
    let asked = now();
    let start = |slot: u32| {
        let destination = u64::from(slot) * as_u64(SLOT_BYTES);
        subject.device.copy(&lent.view(slot), 0..SLOT_BYTES, destination, asked)
    };
    let tickets: Vec<_> = (0..SLOTS).map(|slot| start(slot).expect("copies queue")).collect();
    let waited = tickets.into_iter().map(|ticket| subject.device.wait(ticket));
    let spans: Vec<CopySpan> = waited.map(|span| span.expect("the copy is done")).collect();
    for pair in spans.windows(2) {
        assert!(
            pair[1].started >= pair[0].started,
            "copies start in the order they were asked for"
        );
    }
    let Some(memory) = subject.memory else { return };
    for slot in 0..SLOTS {
        let start = u64::from(slot) * as_u64(SLOT_BYTES);
        let landed = memory(start..start + as_u64(SLOT_BYTES));
        assert!(slot_content(slot).matches(0, &landed), "slot {slot} after queued copies");
    }
}

fn ranges_outside_the_view_are_refused(subject: DeviceSubject<'_>, lent: &Lent) {
    let view = lent.view(0);
    let backwards = Range { start: 2, end: 1 };
    for range in [0..SLOT_BYTES + 1, SLOT_BYTES + 1..SLOT_BYTES + 2, backwards] {
        let refused = subject.device.copy(&view, range.clone(), 0, now());
        let out = matches!(refused, Err(DeviceError::OutOfRange { .. }));
        assert!(out, "a copy of {range:?} from {SLOT_BYTES} bytes is out of range");
    }
}

fn a_finished_copy_stays_finished(subject: DeviceSubject<'_>, lent: &Lent) {
    let asked = now();
    let ticket = subject.device.copy(&lent.view(1), 0..4096, 0, asked).expect("a copy is started");
    let later = asked + Duration::from_secs(3600);
    let state = subject.device.query(&ticket, later).expect("the copy can be asked about");
    let CopyState::Done(span) = state else {
        assert!(matches!(state, CopyState::Done(_)), "a small copy is done within an hour");
        return;
    };
    span_is_sound(span, asked, 4096);
    let again = subject.device.query(&ticket, later).expect("and once more");
    assert_eq!(again, CopyState::Done(span), "a copy that is done stays done, with one span");
    assert_eq!(subject.device.wait(ticket).ok(), Some(span), "wait and query tell the same");
}

fn the_ticket_keeps_its_bytes(subject: DeviceSubject<'_>, lent: Lent) {
    let ticket = subject.device.copy(&lent.view(2), 0..SLOT_BYTES, 0, now());
    let ticket = ticket.expect("a copy is started");
    drop(lent.map);
    assert!(slot_content(2).matches(0, ticket.bytes()), "a ticket keeps the mapping alive");
    subject.device.wait(ticket).expect("the copy is done");
}
