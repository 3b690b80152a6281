//! What only io_uring does: short, late and hanging completions, made with pipes, and registered
//! memory. Where the kernel forbids io_uring the tests say so and end.

use std::io::Write;
use std::os::fd::OwnedFd;

use forebay_shm::{SegmentId, SegmentSpec, SlotIndex};
use futures::channel::oneshot;

use super::*;
use crate::buffer::AlignedBuf;
use crate::error::IoError;
use crate::file::{BufferedReason, DataFile};
use crate::op::FileOffset;
use crate::target::Carried;

fn engine(hard_limit: Duration) -> Option<Arc<dyn IoEngine>> {
    let soft_limit = Duration::from_millis(2);
    let settings = EngineSettings { depth: 4, soft_limit, hard_limit, ..EngineSettings::default() };
    match UringEngine::start(&settings) {
        Ok((engine, _)) => Some(Arc::new(engine)),
        Err(error) => {
            println!("skipped: no io_uring here: {error}");
            None
        }
    }
}

/// A file whose reads end only when something is written to the other side.
fn pipe() -> (Arc<DataFile>, std::io::PipeWriter) {
    let (reader, writer) = std::io::pipe().unwrap();
    let file = DataFile::buffered(OwnedFd::from(reader), BufferedReason::Asked);
    (Arc::new(file), writer)
}

fn buffer(bytes: usize) -> AlignedBuf {
    AlignedBuf::zeroed(bytes, 4096).unwrap()
}

#[tokio::test]
async fn short_completions_are_continued_until_the_end_of_the_file() {
    let Some(engine) = engine(Duration::MAX) else { return };
    let (file, mut writer) = pipe();
    let read = engine.read(&file, FileOffset(0), buffer(4096), 96..1096);
    writer.write_all(&[1; 100]).unwrap();
    while engine.stats().short_total < 1 {
        tokio::task::yield_now().await;
    }
    writer.write_all(&[2; 200]).unwrap();
    while engine.stats().short_total < 2 {
        tokio::task::yield_now().await;
    }
    drop(writer);
    let done = read.await.unwrap();
    assert_eq!(done.bytes, 300);
    assert_eq!(done.target[..96], [0; 96]);
    assert_eq!(done.target[96..196], [1; 100]);
    assert_eq!(done.target[196..396], [2; 200]);
    assert!(done.target[396..].iter().all(|&byte| byte == 0));
}

/// Long enough for the ring's thread to begin with an operation, on a machine that does much else.
const HUNG_AFTER: Duration = Duration::from_millis(500);

#[tokio::test]
async fn a_hung_operation_is_told_and_its_late_completion_frees_the_memory() {
    let Some(engine) = engine(HUNG_AFTER) else { return };
    let (file, mut writer) = pipe();
    let (kept, mut dropped) = oneshot::channel::<()>();
    let target = Carried { bytes: buffer(4096), with: kept };
    let hung = engine.read(&file, FileOffset(0), target, 0..4).await.unwrap_err();
    assert!(matches!(hung.error, IoError::Hung { .. }), "{hung:?}");
    assert!(hung.target.is_none() && hung.times.device >= HUNG_AFTER);
    assert_eq!((engine.stats().hung, engine.stats().slow_total), (1, 1));
    assert_eq!(dropped.try_recv(), Ok(None), "the memory is kept");
    writer.write_all(&[1; 4]).unwrap();
    assert!(dropped.await.is_err(), "the memory is free");
    while engine.stats().hung > 0 {
        tokio::task::yield_now().await;
    }
    assert_eq!((engine.stats().late_total, engine.stats().hung_total), (1, 1));
}

#[tokio::test]
async fn a_dropped_future_leaves_its_memory_with_the_engine() {
    let Some(engine) = engine(Duration::MAX) else { return };
    let (file, mut writer) = pipe();
    let (kept, mut dropped) = oneshot::channel::<()>();
    let target = Carried { bytes: buffer(4096), with: kept };
    let read = engine.read(&file, FileOffset(0), target, 0..4);
    while engine.stats().reads.running == 0 {
        tokio::task::yield_now().await;
    }
    drop(read);
    // Others are served meanwhile.
    let (quick, mut other) = pipe();
    other.write_all(&[9; 8]).unwrap();
    let read = engine.read(&quick, FileOffset(0), buffer(8), 0..8).await.unwrap();
    assert_eq!(read.target[..8], [9; 8]);
    assert_eq!(dropped.try_recv(), Ok(None), "the kernel may still write to it");
    writer.write_all(&[1; 4]).unwrap();
    assert!(dropped.await.is_err());
    drop(engine);
}

#[tokio::test]
async fn closing_waits_for_the_device_and_gives_back_the_queue() {
    let Some(engine) = engine(Duration::MAX) else { return };
    let (file, mut writer) = pipe();
    let mut reads = Vec::new();
    for _ in 0..6 {
        reads.push(engine.read(&file, FileOffset(0), buffer(4096), 0..4));
    }
    while engine.stats().reads.running < 4 {
        tokio::task::yield_now().await;
    }
    assert_eq!(engine.close(Duration::ZERO), 4);
    for read in reads.drain(4..) {
        let closed = read.await.unwrap_err();
        assert!(matches!(closed.error, IoError::Closed) && closed.target.is_some());
    }
    let segment = segment(1);
    writer.write_all(&[1; 16]).unwrap();
    for read in reads {
        assert_eq!(read.await.unwrap().bytes, 4);
    }
    assert_eq!(engine.close(Duration::MAX), 0);
    let late = engine.sync(&file).await.unwrap_err();
    assert!(matches!(late.error, IoError::Closed));
    // The thread may need a moment to go; either way there is no registration.
    match engine.register(&segment) {
        Err(RegisterError::Closed) => {}
        other => assert!(other.is_ok(), "{other:?}"),
    }
}

fn segment(slots: u32) -> Arc<Segment> {
    let spec =
        SegmentSpec { id: SegmentId(1), domain: 0, slot_bytes: 64 << 10, slots, lock: false };
    Segment::create(&spec).unwrap()
}

#[tokio::test]
async fn slots_of_a_registered_segment_are_read_without_looking_up_their_pages() {
    let Some(engine) = engine(Duration::MAX) else { return };
    let segment = segment(2);
    let registration = match engine.register(&segment) {
        Ok(registration) => registration,
        Err(error) => return println!("skipped: {error}"),
    };
    assert_eq!(engine.stats().registered_bytes, 128 << 10);
    assert!(engine.register(&segment).is_err(), "once is enough");
    let file = Arc::new(DataFile::in_memory());
    rustix::io::pwrite(&file, &[7; 128 << 10], 0).unwrap();
    for slot in 0..2 {
        let writer = segment.writer(SlotIndex(slot)).unwrap();
        let offset = FileOffset(u64::from(slot));
        let done = engine.read(&file, offset, writer, 0..64 << 10).await.unwrap();
        assert_eq!(done.bytes, 64 << 10);
        let reader = done.target.publish();
        assert!(reader.bytes().iter().all(|&byte| byte == 7));
        let written = engine.write(&file, FileOffset(1 << 20), reader, 0..4096).await.unwrap();
        assert_eq!(written.bytes, 4096);
    }
    assert_eq!(engine.stats().registered_ops_total, 4);
    let (read, weak) = (buffer(4096), Arc::downgrade(&segment));
    engine.read(&file, FileOffset(0), read, 0..4096).await.unwrap();
    assert_eq!(engine.stats().registered_ops_total, 4, "other memory is read into as ever");
    drop(registration);
    drop(segment);
    while weak.upgrade().is_some() {
        tokio::task::yield_now().await;
    }
    while engine.stats().registered_bytes > 0 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn an_idle_engine_sleeps_and_wakes() {
    let Some(engine) = engine(Duration::MAX) else { return };
    let file = Arc::new(DataFile::in_memory());
    for round in 0..200_u64 {
        let write = engine.write(&file, FileOffset(round * 8), buffer(1), 0..8);
        assert_eq!(write.await.unwrap().bytes, 8);
    }
    let stats = engine.stats();
    assert_eq!((stats.writes.done, stats.unknown_total, stats.engine_errors_total), (200, 0, 0));
}
