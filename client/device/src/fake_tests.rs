//! The pace of the fake device, and what it does when it is told to.

use forebay_shm::{Segment, SegmentId, SegmentSpec, SlotIndex, SlotReader};

use super::*;

/// A slot of 8,000 bytes of `fill`, seen as a client sees it.
fn lent(fill: u8) -> (Arc<Segment>, SlotReader, SlotView) {
    let spec = SegmentSpec { id: SegmentId(1), domain: 0, slot_bytes: 8192, slots: 1, lock: false };
    let segment = Segment::create(&spec).unwrap();
    let mut writer = segment.writer(SlotIndex(0)).unwrap();
    writer.as_mut_slice().fill(fill);
    let reader = writer.publish();
    let map = SegmentMap::open(segment.descriptor().try_clone_to_owned().unwrap()).unwrap();
    let view = map.view(SlotIndex(0), reader.generation(), 8000).unwrap();
    (segment, reader, view)
}

/// A device, memory of it, and a registration of the segment of `view`.
fn prepared(
    device: &FakeDevice,
    view: &SlotView,
) -> (Box<dyn CopyStream>, Arc<DeviceMemory>, Arc<Registration>) {
    let memory = Arc::new(device.allocate(16_000).unwrap());
    (device.stream().unwrap(), memory, Arc::new(device.register(view.segment()).unwrap()))
}

/// At a gigabyte per second a kilobyte takes a microsecond.
fn at(start: Instant, kilobytes: u64) -> Instant {
    start + Duration::from_micros(kilobytes)
}

#[test]
fn copies_of_all_streams_queue_at_one_engine_and_take_their_time() {
    let (_segment, _reader, view) = lent(1);
    let device = FakeDevice::with_memory(1.0);
    let (stream, memory, registration) = prepared(&device, &view);
    let other = device.stream().unwrap();
    let source = CopySource::Slot { view: &view, registration: &registration };
    let job = |range, to| CopyJob::new(source, &memory, Rows::range(range, to)).unwrap();
    let start = crate::clock::now();
    let first = stream.copy(job(0..4000, 0), start).unwrap();
    let second = other.copy(job(0..1000, 8000), start).unwrap();
    assert_eq!(stream.query(&first, at(start, 3)), Ok(CopyState::Running));
    assert_eq!(device.read(&memory, 0..1).unwrap(), [0], "nothing lands before its time");
    let span = CopySpan { started: start, finished: at(start, 4), bytes: 4000 };
    assert_eq!(stream.query(&first, at(start, 4)), Ok(CopyState::Done(span)));
    assert_eq!(stream.query(&first, at(start, 3000)), Ok(CopyState::Done(span)));
    assert_eq!(other.query(&second, at(start, 4)), Ok(CopyState::Running));
    let next = CopySpan { started: at(start, 4), finished: at(start, 5), bytes: 1000 };
    assert_eq!(other.query(&second, at(start, 5)), Ok(CopyState::Done(next)));
    assert_eq!(device.read(&memory, 3999..4001).unwrap(), [1, 0]);
    assert_eq!(device.read(&memory, 8999..9001).unwrap(), [1, 0]);
    assert_eq!(device.spans(), [span, next]);
    assert_eq!((device.copies(), device.bytes(), device.allocated()), (2, 5000, 16_000));
    let wrong = stream.query(&second, at(start, 5)).unwrap_err();
    assert!(wrong.to_string().ends_with("the stream has no such copy"), "{wrong}");
}

#[test]
fn a_lease_given_up_too_early_shows_as_wrong_bytes() {
    let (segment, reader, view) = lent(1);
    let device = FakeDevice::with_memory(1.0);
    let (stream, memory, registration) = prepared(&device, &view);
    let source = CopySource::Slot { view: &view, registration: &registration };
    let job = CopyJob::new(source, &memory, Rows::range(0..8000, 0)).unwrap();
    let ticket = stream.copy(job, crate::clock::now()).unwrap();
    drop(reader);
    segment.writer(SlotIndex(0)).unwrap().as_mut_slice().fill(9);
    stream.wait(ticket).unwrap();
    assert_eq!(device.read(&memory, 0..2).unwrap(), [9, 9]);
}

#[test]
fn it_fails_and_refuses_when_told_to() {
    let (_segment, _reader, view) = lent(1);
    let device = FakeDevice::new(1.0);
    let (stream, memory, registration) = prepared(&device, &view);
    let source = CopySource::Slot { view: &view, registration: &registration };
    let job = CopyJob::new(source, &memory, Rows::range(0..10, 0)).unwrap();
    device.fail_after(1);
    let start = crate::clock::now();
    let [good, bad] = [(); 2].map(|()| stream.copy(job, start).unwrap());
    stream.wait(good).unwrap();
    let error = stream.wait(bad).unwrap_err();
    assert!(matches!(error, DeviceError::CopyFailed { bytes: 10, .. }), "{error}");
    assert_eq!(device.registrations(), 1);
    drop(registration);
    assert_eq!(device.registrations(), 0);
    device.refuse_registration();
    let staged = device.register(view.segment()).unwrap();
    assert_eq!(staged.path().as_str(), "staged");
    assert_eq!(device.registrations(), 0);
}

#[test]
fn memory_that_stores_nothing_is_never_taken_for_real() {
    let (nothing, real) = (FakeDevice::new(1.0), FakeDevice::with_memory(1.0));
    let huge = Arc::new(nothing.allocate(1 << 40).unwrap());
    assert_eq!(huge.address() % 256, 0);
    assert_eq!(nothing.read(&huge, 0..1), None);
    let job = CopyJob::new(CopySource::Private(b"x"), &huge, Rows::range(0..1, 1 << 39)).unwrap();
    let start = crate::clock::now();
    let stream = nothing.stream().unwrap();
    let ticket = stream.copy(job, start).unwrap();
    stream.wait(ticket).unwrap();
    let error = real.stream().unwrap().copy(job, start).unwrap_err();
    assert!(matches!(error, DeviceError::WrongDevice { .. }), "{error}");
    assert!(matches!(nothing.allocate(u64::MAX), Err(DeviceError::OutOfMemory { .. })));
    drop(huge);
    assert_eq!(nothing.allocated(), 0);
}
