//! What every [`IoEngine`] must do.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use forebay_io::{
    AlignedBuf, Create, DataFile, Directory, FileMode, FileOffset, IoEngine, IoError, OpenHow,
    RegisterError, StableBytes,
};
use forebay_shm::{Segment, SegmentId, SegmentSpec, SlotIndex};

use crate::content::{Content, as_u64, as_usize};
use crate::random::Prng;

const BLOCK: usize = 4096;
const SLOT_BYTES: usize = 64 << 10;

/// An engine under test, and an empty directory of its own on the filesystem to test it on.
#[derive(Debug, Clone, Copy)]
pub struct IoSubject<'a> {
    /// The engine. It is closed at the end.
    pub engine: &'a Arc<dyn IoEngine>,
    /// The directory.
    pub directory: &'a Path,
}

impl IoSubject<'_> {
    fn file(&self, name: &str) -> Arc<DataFile> {
        let directory = Directory::open(self.directory).expect("a directory of our own");
        let how = OpenHow { write: true, create: Create::IfMissing, direct: true };
        let file = directory.file(name, how).expect("a file can be made");
        if let FileMode::Direct { memory_align_bytes, offset_align_bytes } = file.mode() {
            let most = memory_align_bytes.max(offset_align_bytes);
            assert!(as_u64(BLOCK).is_multiple_of(u64::from(most)), "blocks of {most} bytes");
        }
        Arc::new(file)
    }

    async fn fill(&self, name: &str, content: &Content) -> Arc<DataFile> {
        let file = self.file(name);
        let bytes = as_usize(content.len());
        let mut source = buffer(bytes);
        content.read_at(0, &mut source[..bytes]);
        let whole = 0..source.len();
        let written = self.engine.write(&file, FileOffset(0), source, whole.clone()).await;
        assert_eq!(written.expect("a write to an empty disk").bytes, whole.len());
        file.truncate(content.len()).expect("a file can be cut");
        file
    }
}

fn buffer(bytes: usize) -> AlignedBuf {
    AlignedBuf::zeroed(bytes, BLOCK).expect("memory for a buffer")
}

fn segment(slots: u32) -> Arc<Segment> {
    let spec =
        SegmentSpec { id: SegmentId(3), domain: 0, slot_bytes: SLOT_BYTES, slots, lock: false };
    Segment::create(&spec).expect("a small segment can be made")
}

/// Runs every case of the contract.
///
/// # Panics
/// If a rule is broken.
pub async fn io_engine(subject: IoSubject<'_>) {
    memory_comes_back_with_what_was_read(subject).await;
    a_read_ends_at_the_end_of_its_file(subject).await;
    slots_are_read_into_and_written_from(subject).await;
    what_cannot_be_done_comes_back_with_its_memory(subject).await;
    more_operations_than_fit_all_end_well(subject).await;
    whoever_does_not_wait_disturbs_nobody(subject).await;
    a_closed_engine_does_nothing(subject).await;
}

async fn memory_comes_back_with_what_was_read(subject: IoSubject<'_>) {
    let content = Content::synthetic(1, 1 << 20);
    let file = subject.fill("plain", &content).await;
    let before = subject.engine.stats();
    let target = buffer(1 << 20);
    let address = target.start();
    let range = BLOCK..BLOCK * 5;
    let offset = FileOffset(as_u64(BLOCK) * 7);
    let done = subject.engine.read(&file, offset, target, range.clone()).await;
    let done = done.expect("a read of what is there");
    assert_eq!(done.bytes, BLOCK * 4, "a read moves as much as was asked for");
    assert_eq!(done.target.start(), address, "the memory that comes back is the one given");
    assert!(content.matches(offset.0, &done.target[range.clone()]), "the bytes of the file");
    let (head, tail) = (&done.target[..range.start], &done.target[range.end..]);
    assert!(head.iter().chain(tail).all(|&byte| byte == 0), "nothing beside the range changes");
    let synced = subject.engine.sync(&file).await;
    assert_eq!(synced.expect("a sync").bytes, 0);
    let after = subject.engine.stats();
    assert_eq!(after.reads.done, before.reads.done + 1, "reads are counted");
    assert_eq!(after.reads.bytes, before.reads.bytes + as_u64(BLOCK * 4), "and their bytes");
    assert_eq!(after.writes.done, before.writes.done + 1, "a sync counts as a write");
}

async fn a_read_ends_at_the_end_of_its_file(subject: IoSubject<'_>) {
    let content = Content::synthetic(2, as_u64(BLOCK) * 2 + 100);
    let file = subject.fill("short", &content).await;
    for (block, expected) in [(0, BLOCK * 2 + 100), (1, BLOCK + 100), (2, 100), (3, 0), (9, 0)] {
        let offset = FileOffset(as_u64(BLOCK * block));
        let done = subject.engine.read(&file, offset, buffer(BLOCK * 4), 0..BLOCK * 4).await;
        let done = done.expect("reading to the end is no error");
        assert_eq!(done.bytes, expected, "bytes from block {block} to the end");
        assert!(content.matches(offset.0, &done.target[..expected]), "bytes at block {block}");
    }
}

async fn slots_are_read_into_and_written_from(subject: IoSubject<'_>) {
    let content = Content::synthetic(3, as_u64(SLOT_BYTES));
    let file = subject.fill("slots", &content).await;
    let segment = segment(2);
    let registered = match subject.engine.register(&segment) {
        Ok(registered) => Some(registered),
        Err(RegisterError::NotUsed(_) | RegisterError::Memlock { .. }) => None,
        Err(error) => unreachable!("a segment is registered, or it is said why not: {error}"),
    };
    for slot in 0..2 {
        let writer = segment.writer(SlotIndex(slot)).expect("the slot is free");
        let done = subject.engine.read(&file, FileOffset(0), writer, 0..SLOT_BYTES).await;
        let reader = done.expect("a slot can be read into").target.publish();
        assert!(content.matches(0, reader.bytes()), "slot {slot} holds the file");
        let offset = FileOffset(as_u64(SLOT_BYTES) * 2);
        let written = subject.engine.write(&file, offset, reader, 0..SLOT_BYTES).await;
        let reader = written.expect("a slot can be written from").target;
        let back = subject.engine.read(&file, offset, buffer(SLOT_BYTES), 0..SLOT_BYTES).await;
        assert_eq!(&back.expect("it was written").target[..], reader.bytes());
    }
    drop(registered);
    let writer = segment.writer(SlotIndex(0)).expect("the slot is free again");
    let done = subject.engine.read(&file, FileOffset(0), writer, 0..SLOT_BYTES).await;
    assert!(done.is_ok(), "a slot that is no longer registered can be read into as well");
}

async fn what_cannot_be_done_comes_back_with_its_memory(subject: IoSubject<'_>) {
    let content = Content::synthetic(4, as_u64(BLOCK) * 2);
    let file = subject.fill("refused", &content).await;
    let engine = subject.engine;
    let far = engine.read(&file, FileOffset(0), buffer(BLOCK), 0..BLOCK + 1).await;
    let far = far.expect_err("a range outside the memory");
    assert!(matches!(far.error, IoError::OutOfRange { .. }), "{far:?}");
    assert!(far.target.is_some(), "what was refused comes back");
    if matches!(file.mode(), FileMode::Direct { .. }) {
        for (offset, range) in [(1, 0..BLOCK), (0, 0..BLOCK - 1), (0, 1..BLOCK + 1)] {
            let refused = engine.read(&file, FileOffset(offset), buffer(BLOCK * 2), range).await;
            let refused = refused.expect_err("a direct file takes whole blocks only");
            assert!(matches!(refused.error, IoError::Misaligned { .. }), "{refused:?}");
            assert!(refused.target.is_some(), "what was refused comes back");
        }
    }
    let directory = Directory::open(subject.directory).expect("a directory of our own");
    let sealed = Arc::new(directory.file("refused", OpenHow::READ).expect("it is there"));
    let failed = engine.write(&sealed, FileOffset(0), buffer(BLOCK), 0..BLOCK).await;
    let failed = failed.expect_err("a file that is open for reading");
    assert!(matches!(failed.error, IoError::Device { .. }), "{failed:?}");
    assert!(failed.target.is_some(), "what the kernel refused comes back");
    let intact = engine.read(&file, FileOffset(0), buffer(BLOCK * 2), 0..BLOCK * 2).await;
    assert!(content.matches(0, &intact.expect("still there").target), "nothing was changed");
}

async fn more_operations_than_fit_all_end_well(subject: IoSubject<'_>) {
    const BLOCKS: u64 = 100;
    let old = Content::synthetic(5, BLOCKS * as_u64(BLOCK));
    let new = Content::synthetic(6, BLOCKS * as_u64(BLOCK));
    let file = subject.fill("many", &old).await;
    let other = subject.fill("other", &old).await;
    let mut blocks: Vec<u64> = (0..BLOCKS).collect();
    Prng::new(7).shuffle(&mut blocks);
    let (mut reads, mut writes) = (Vec::new(), Vec::new());
    for block in blocks {
        let offset = FileOffset(block * as_u64(BLOCK));
        let mut source = buffer(BLOCK);
        new.read_at(offset.0, &mut source);
        writes.push(subject.engine.write(&file, offset, source, 0..BLOCK));
        let read = subject.engine.read(&other, offset, buffer(BLOCK), 0..BLOCK);
        reads.push(async move { (offset, read.await) });
    }
    for (offset, read) in futures::future::join_all(reads).await {
        let target = read.expect("a read among many").target;
        assert!(old.matches(offset.0, &target), "each read has its own bytes, at {offset:?}");
    }
    for write in futures::future::join_all(writes).await {
        assert_eq!(write.expect("a write among many").bytes, BLOCK);
    }
    let bytes = as_usize(new.len());
    let all = subject.engine.read(&file, FileOffset(0), buffer(bytes), 0..bytes).await;
    assert!(new.matches(0, &all.expect("a read").target), "each write has its own place");
}

async fn whoever_does_not_wait_disturbs_nobody(subject: IoSubject<'_>) {
    let content = Content::synthetic(8, 1 << 20);
    let file = subject.fill("dropped", &content).await;
    let (mut kept, mut begun) = (Vec::new(), 0);
    for block in 0..100 {
        let offset = FileOffset(block * as_u64(BLOCK));
        let read = subject.engine.read(&file, offset, buffer(BLOCK), 0..BLOCK);
        if block % 3 == 0 {
            kept.push((offset, read));
        } else {
            begun += 1;
            drop(read);
        }
    }
    for (offset, read) in kept {
        let target = read.await.expect("others were dropped, not this one").target;
        assert!(content.matches(offset.0, &target), "each read has its own bytes");
    }
    assert!(begun > 0);
    while subject.engine.stats().reads.running + subject.engine.stats().reads.queued > 0 {
        tokio::task::yield_now().await;
    }
    assert_eq!(subject.engine.stats().unknown_total, 0, "every completion finds its operation");
}

async fn a_closed_engine_does_nothing(subject: IoSubject<'_>) {
    let file = subject.file("closed");
    assert_eq!(subject.engine.close(Duration::MAX), 0, "a closed engine has nothing left");
    let refused = subject.engine.write(&file, FileOffset(0), buffer(BLOCK), 0..BLOCK).await;
    let refused = refused.expect_err("the engine is closed");
    assert!(matches!(refused.error, IoError::Closed), "{refused:?}");
    assert!(refused.target.is_some(), "what was refused comes back");
    assert_eq!(file.bytes().ok(), Some(0), "nothing was written");
    assert_eq!(subject.engine.close(Duration::ZERO), 0, "closing twice is closing");
}
