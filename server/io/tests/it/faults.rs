//! The fake disk does what it is told: each fault is seen through the seam, and what was on the
//! disk before or after it is right.

use std::sync::Arc;
use std::time::Duration;

use forebay_io::{AlignedBuf, DataFile, FileOffset, IoEngine, IoError, OpKind};
use forebay_testkit::{Content, FaultEngine, IoFault, IoFaultRule, Told, When, temp_dir};
use tempfile::TempDir;

use crate::{buffer, file, threads};

const BYTES: usize = 64 << 10;
const HARD: Duration = Duration::from_secs(5);

struct Disk {
    faults: Arc<FaultEngine>,
    engine: Arc<dyn IoEngine>,
    file: Arc<DataFile>,
    old: Content,
    new: Content,
    _directory: TempDir,
}

impl Disk {
    /// A file of old content on a disk that will commit a fault with the next operations.
    async fn with(kind: OpKind, fault: IoFault, seed: u64) -> Self {
        let directory = temp_dir();
        let faults = Arc::new(FaultEngine::new(threads(), seed, HARD));
        let engine: Arc<dyn IoEngine> = Arc::clone(&faults) as _;
        let (old, new) = (content(1), content(2));
        let file = file(directory.path(), "x");
        let disk = Self { faults, engine, file, old, new, _directory: directory };
        disk.write(0, &disk.old).await.expect("no fault yet");
        disk.faults.add(IoFaultRule::new(kind, fault));
        disk
    }

    async fn write(&self, at: u64, content: &Content) -> Result<usize, IoError> {
        let mut source = buffer(BYTES);
        content.read_at(0, &mut source);
        let written = self.engine.write(&self.file, FileOffset(at), source, 0..BYTES).await;
        written.map(|done| done.bytes).map_err(|failed| failed.error)
    }

    async fn read(&self, at: u64) -> (usize, AlignedBuf) {
        let read = self.engine.read(&self.file, FileOffset(at), buffer(BYTES), 0..BYTES).await;
        let read = read.expect("a read");
        (read.bytes, read.target)
    }

    /// What is on the disk after the faults.
    async fn truth(&self) -> AlignedBuf {
        self.faults.clear();
        self.read(0).await.1
    }
}

fn content(seed: u64) -> Content {
    Content::synthetic(seed, BYTES as u64)
}

fn flipped_bits(content: &Content, bytes: &[u8]) -> u32 {
    let mut right = vec![0; bytes.len()];
    content.read_at(0, &mut right);
    right.iter().zip(bytes).map(|(right, byte)| (right ^ byte).count_ones()).sum()
}

#[tokio::test]
async fn a_short_read_says_so_and_leaves_garbage_behind() {
    let disk = Disk::with(OpKind::Read, IoFault::Short(5000), 1).await;
    let (bytes, target) = disk.read(0).await;
    assert_eq!(bytes, 5000);
    assert!(disk.old.matches(0, &target[..5000]));
    assert!(target[5000..].iter().all(|&byte| byte == 0xdb));
}

#[tokio::test]
async fn errors_change_nothing() {
    for (fault, full) in [(IoFault::Eio, false), (IoFault::NoSpace, true)] {
        let disk = Disk::with(OpKind::Write, fault, 1).await;
        let error = disk.write(0, &disk.new).await.unwrap_err();
        assert_eq!(matches!(error, IoError::NoSpace { .. }), full, "{error}");
        assert!(disk.old.matches(0, &disk.truth().await));
    }
}

#[tokio::test]
async fn a_torn_write_lands_up_to_a_unit() {
    let mut prefixes = std::collections::BTreeSet::new();
    for (seed, unit_bytes) in (0..20).flat_map(|seed| [(seed, 512), (seed, 4096)]) {
        let told = if seed % 2 == 0 { Told::Done } else { Told::Failed };
        let disk = Disk::with(OpKind::Write, IoFault::Torn { unit_bytes, told }, seed).await;
        let written = disk.write(0, &disk.new).await;
        assert_eq!(written.is_ok(), told == Told::Done);
        let truth = disk.truth().await;
        let landed = disk.new.first_difference(0, &truth).expect("not all of it landed");
        let landed = usize::try_from(landed).unwrap() / unit_bytes * unit_bytes;
        assert!(disk.old.matches(landed as u64, &truth[landed..]), "the rest is as it was");
        prefixes.insert(landed);
    }
    assert!(prefixes.len() > 10, "{prefixes:?}");
}

#[tokio::test(start_paused = true)]
async fn a_torn_write_can_hang() {
    let torn = IoFault::Torn { unit_bytes: 4096, told: Told::Nothing };
    let disk = Disk::with(OpKind::Write, torn, 1).await;
    let error = disk.write(0, &disk.new).await.unwrap_err();
    assert!(matches!(error, IoError::Hung { after: HARD, .. }), "{error}");
}

#[tokio::test]
async fn misdirected_operations_go_to_the_wrong_place() {
    let by_bytes = i64::try_from(BYTES).unwrap();
    let disk = Disk::with(OpKind::Write, IoFault::Misdirected { by_bytes }, 1).await;
    disk.write(0, &disk.new).await.expect("it says it was done");
    assert!(disk.old.matches(0, &disk.truth().await), "it is not where it should be");
    assert!(disk.new.matches(0, &disk.read(BYTES as u64).await.1), "it is elsewhere");
    let rule = IoFaultRule::new(OpKind::Read, IoFault::Misdirected { by_bytes: -by_bytes });
    disk.faults.add(rule);
    assert!(disk.old.matches(0, &disk.read(BYTES as u64).await.1), "the bytes of another place");
}

#[tokio::test]
async fn one_bit_is_another_one() {
    for kind in [OpKind::Read, OpKind::Write] {
        for seed in 0..8 {
            let disk = Disk::with(kind, IoFault::FlipBit, seed).await;
            disk.write(0, &disk.new).await.expect("it says it was done");
            let read = disk.read(0).await.1;
            assert_eq!(flipped_bits(&disk.new, &read), 1);
            let lasting = u32::from(kind == OpKind::Write);
            assert_eq!(flipped_bits(&disk.new, &disk.truth().await), lasting);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn what_never_ends_is_told_and_keeps_its_memory() {
    let disk = Disk::with(OpKind::Read, IoFault::Never, 1).await;
    let (kept, mut dropped) = futures::channel::oneshot::channel::<()>();
    let target = forebay_io::Carried { bytes: buffer(BYTES), with: kept };
    let begun = tokio::time::Instant::now();
    let hung = disk.engine.read(&disk.file, FileOffset(0), target, 0..BYTES).await.unwrap_err();
    assert!(matches!(hung.error, IoError::Hung { after: HARD, .. }) && hung.target.is_none());
    assert_eq!(begun.elapsed(), HARD);
    assert_eq!((disk.engine.stats().hung, disk.faults.kept()), (1, 1));
    assert_eq!(dropped.try_recv(), Ok(None));
    disk.faults.let_go();
    dropped.try_recv().unwrap_err();
    assert_eq!(disk.engine.stats().hung, 0);
}

#[tokio::test(start_paused = true)]
async fn a_late_completion_is_right_and_late() {
    let late = Duration::from_secs(3);
    let disk = Disk::with(OpKind::Read, IoFault::Late(late), 1).await;
    let begun = tokio::time::Instant::now();
    let read = disk.engine.read(&disk.file, FileOffset(0), buffer(BYTES), 0..BYTES).await;
    let read = read.expect("a read");
    assert!(begun.elapsed() >= late && read.times.device >= late);
    assert!(disk.old.matches(0, &read.target));
}

#[tokio::test]
async fn the_same_seed_strikes_the_same_operations() {
    let run = async |seed| {
        let disk = Disk::with(OpKind::Sync, IoFault::Eio, 1).await;
        let when = When::Chance { seed, per_mille: 300 };
        disk.faults.add(IoFaultRule::new(OpKind::Read, IoFault::Eio).when(when));
        let mut struck = Vec::new();
        for _ in 0..60 {
            let read = disk.engine.read(&disk.file, FileOffset(0), buffer(4096), 0..4096).await;
            struck.push(read.is_err());
        }
        assert_eq!(disk.faults.hits(), struck.iter().filter(|&&struck| struck).count() as u64);
        struck
    };
    let (first, again, other) = (run(4).await, run(4).await, run(5).await);
    assert_eq!(first, again);
    assert_ne!(first, other);
    assert!(first.contains(&true) && first.contains(&false));
}
