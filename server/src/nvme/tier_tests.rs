//! The tier as a whole, over real files, with disks that lie: whatever happens, what is read is
//! right or is not there.

use std::collections::BTreeMap;
use std::path::Path;

use forebay_io::{EngineSettings, OpKind, Preference};
use forebay_testkit::{Content, FaultEngine, IoFault, IoFaultRule, Told, When};
use futures::{FutureExt, StreamExt};
use tempfile::TempDir;

use super::*;
use crate::cpu::NodeWorkers;
use crate::plan::Extent;
use crate::ram::RamTier;
use crate::ram::places::Places;
use crate::ram::pool::{Pool, PoolSpec};
use crate::resolve::manifest_for_tests;
use crate::verify::record::Records;
use crate::verify::{VerifiedChunk, Verifier};

#[path = "tier_model_tests.rs"]
mod model;

const SLOT: u64 = 64 << 10;
/// Not whole blocks, and with a gap.
const FIRST: u64 = 10_000;
const SECOND_AT: u64 = 10_240;
const SECOND: u64 = 30_001;
/// One extent.
const FILE: u64 = 4096 + 40 * 1024;

/// How long the fault engine keeps what never ends, in the tests.
const HARD: Duration = Duration::from_millis(30);

struct Node {
    dir: Arc<TempDir>,
    ram: Arc<RamTier>,
    faults: Arc<FaultEngine>,
    tier: Arc<NvmeTier>,
    verifier: Verifier,
    manifest: Arc<Manifest>,
    tasks: TaskTracker,
}

fn as_usize(bytes: u64) -> usize {
    usize::try_from(bytes).unwrap()
}

fn key(n: u8) -> ChunkKey {
    ChunkKey(*blake3::hash(&[n]).as_bytes())
}

fn revision(n: u8) -> Revision {
    // Three chunks of each.
    Revision([n / 3 + 1; 32])
}

fn spec(n: u8) -> Arc<ChunkSpec> {
    let extent =
        |slot_offset, bytes| Extent { object: 0, object_offset: slot_offset, slot_offset, bytes };
    let extents = vec![extent(0, FIRST), extent(SECOND_AT, SECOND)];
    Arc::new(ChunkSpec { index: n.into(), key: key(n), extents, bytes: FIRST + SECOND })
}

/// What the objects of chunk `n` hold.
fn right(n: u8) -> Vec<u8> {
    let mut bytes = vec![0; as_usize(FIRST + SECOND)];
    Content::synthetic(n.into(), FIRST + SECOND).read_at(0, &mut bytes);
    bytes
}

impl Node {
    fn start(dir: &Arc<TempDir>, budget: u64, seed: u64) -> Self {
        let settings = EngineSettings { threads: 4, ..EngineSettings::default() };
        let choice = forebay_io::choose(&settings, Preference::Threads).unwrap();
        let faults = Arc::new(FaultEngine::new(choice.engine, seed, HARD));
        let engine = EngineChoice { engine: Arc::clone(&faults) as _, reason: choice.reason };
        let pool_spec =
            PoolSpec { budget_bytes: 32 * SLOT, chunk_bytes: SLOT, lock: false, segments_max: 9 };
        let pool = Arc::new(Pool::create(pool_spec, Places::one()).unwrap());
        let ram = Arc::new(RamTier::new(pool, std::array::from_fn(|_| metrics::Counter::noop())));
        let side = Arc::clone(&ram);
        let workers = NodeWorkers::for_tests();
        let seats = Arc::clone(&workers);
        let ram_side = RamSide {
            chunk: Box::new(move |key| side.peek(key)),
            free_slots: Box::new(|| 0),
            sit: Box::new(move |node| seats.sit(node)),
        };
        let tasks = TaskTracker::new();
        let nvme = NvmeSettings {
            cache_dir: dir.path().to_owned(),
            budget: Budget::Bytes(budget),
            chunk_bytes: SLOT,
            scrub_bytes_per_second: 0,
        };
        let tier = NvmeTier::open(nvme, engine, ram_side, tasks.clone()).unwrap();
        tier.slots(32);
        tier.run();
        let verifier = Verifier::new(workers, Records::in_memory().unwrap());
        let manifest = manifest_for_tests(&[("m", SLOT)], &[]);
        Self { dir: Arc::clone(dir), ram, faults, tier, verifier, manifest, tasks }
    }

    async fn recovered(&self) {
        self.tier.recovery.subscribe().wait_for(Option::is_some).await.unwrap();
    }

    /// Puts chunk `n` into RAM, and waits until it is stored or will not be; whether it is.
    async fn put(&self, n: u8) -> bool {
        self.put_for(n, revision(n)).await
    }

    async fn put_for(&self, n: u8, revision: Revision) -> bool {
        let mut slot = self.ram.claim(None).await.unwrap();
        let bytes = right(n);
        let (first, second) = bytes.split_at(as_usize(FIRST));
        let place = slot.as_mut_slice();
        place[..first.len()].copy_from_slice(first);
        place[as_usize(SECOND_AT)..][..second.len()].copy_from_slice(second);
        let pinned = self.ram.insert(VerifiedChunk::for_tests(slot, spec(n)), &self.manifest);
        self.tier.offer(&spec(n), [0; 32], revision);
        let stored = self.tier.settled(&key(n), revision).await.is_ok();
        drop(pinned);
        self.ram.discard(&key(n));
        stored
    }

    /// Chunk `n` as a load gets it; none if it has to be fetched.
    async fn get(&self, n: u8) -> Option<Vec<u8>> {
        self.get_for(n, revision(n)).await
    }

    async fn get_for(&self, n: u8, revision: Revision) -> Option<Vec<u8>> {
        let found = self.tier.find(&key(n), revision, || Lane::Interactive).await.ok()?;
        let slot = self.ram.claim(None).await.unwrap();
        let check = self.verifier.of_stored();
        let ((checked, _), _) = self.tier.read(found, &spec(n), slot, check).await.ok()?;
        match checked {
            Ok(verified) => {
                let pinned = self.ram.insert(verified, &self.manifest);
                let slot = pinned.payload(as_usize(SECOND_AT + SECOND)).unwrap();
                let bytes = [&slot[..as_usize(FIRST)], &slot[as_usize(SECOND_AT)..]].concat();
                self.ram.discard(&key(n));
                Some(bytes)
            }
            Err(decayed) => {
                self.tier.quarantine(key(n), decayed.generation, decayed.why).await;
                None
            }
        }
    }

    /// Gives up chunk `n`, as an operator does.
    async fn evict(&self, n: u8) {
        self.tier.catalog().begin(revision(n), "s3://b/evicted", 1, 1, clock::seconds());
        self.tier.refer(&key(n), revision(n));
        self.tier.evict(|known| known == "s3://b/evicted").await;
        self.tier.catalog().end(revision(n), clock::seconds());
    }

    /// Ends it in order.
    async fn stop(self) -> Arc<TempDir> {
        self.tier.close(Instant::now() + Duration::from_secs(60), std::future::pending()).await;
        self.faults.let_go();
        self.tasks.close();
        self.tasks.wait().await;
        self.dir
    }

    /// The files as they are now: what a kill would leave.
    fn files(&self) -> Arc<TempDir> {
        let copy = new_dir();
        copy_into(self.dir.path(), copy.path());
        copy
    }

    /// Of the extent that is committed now.
    fn generation(&self, n: u8) -> Option<[u8; 8]> {
        let header = std::fs::read(self.path(n)).ok()?;
        header.get(80..88)?.try_into().ok()
    }

    fn path(&self, n: u8) -> PathBuf {
        let name = blake3::Hash::from_bytes(key(n).0).to_hex();
        self.dir.path().join("nvme/extents").join(&name[..2]).join(name.as_str())
    }
}

fn new_dir() -> Arc<TempDir> {
    Arc::new(tempfile::tempdir().unwrap())
}

/// Copies a tree that may change meanwhile, as it is found.
fn copy_into(from: &Path, to: &Path) {
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            std::fs::create_dir_all(&target).unwrap();
            std::fs::set_permissions(&target, std::os::unix::fs::PermissionsExt::from_mode(0o700))
                .unwrap();
            copy_into(&entry.path(), &target);
        } else if let Err(error) = std::fs::copy(entry.path(), &target) {
            assert_eq!(error.kind(), std::io::ErrorKind::NotFound);
        }
    }
}

fn flip(path: &Path, at: usize, bit: u8) {
    let mut bytes = std::fs::read(path).unwrap();
    let at = at % bytes.len();
    bytes[at] ^= 1 << (bit % 8);
    std::fs::write(path, bytes).unwrap();
}

#[tokio::test]
async fn what_was_stored_is_read_also_after_a_restart_and_without_its_index() {
    let node = Node::start(&new_dir(), 100 * FILE, 1);
    for n in 0..6 {
        assert!(node.put(n).await, "{n}");
        assert_eq!(node.get(n).await, Some(right(n)));
    }
    assert_eq!(node.get(9).await, None);
    let killed = node.files();
    let dir = node.stop().await;
    let lost = new_dir();
    copy_into(dir.path(), lost.path());
    std::fs::remove_file(lost.path().join("nvme/index.redb")).unwrap();
    for dir in [dir, killed, lost] {
        let node = Node::start(&dir, 100 * FILE, 1);
        assert_eq!(node.get(0).await, Some(right(0)), "whether or not everything is known yet");
        node.recovered().await;
        assert_eq!(node.tier.state().extents, 6);
        for n in 0..6 {
            assert_eq!(node.get(n).await, Some(right(n)));
        }
        assert!(node.put(7).await);
        node.stop().await;
    }
}

#[tokio::test]
async fn one_bit_anywhere_costs_one_extent_and_never_a_wrong_byte() {
    let node = Node::start(&new_dir(), 100 * FILE, 1);
    for n in 0..3 {
        assert!(node.put(n).await);
    }
    // Magic, key, generation, lengths, a sum, the header's sum, payload at both ends.
    for (round, at) in [0, 20, 83, 90, 260, 4090, 4096, 30_000, 44_336].into_iter().enumerate() {
        flip(&node.path(1), at, 3);
        assert_eq!(node.get(1).await, None, "byte {at}");
        assert_eq!(node.tier.state().quarantined, round as u64 + 1);
        assert!(!node.path(1).exists());
        assert_eq!(node.get(0).await, Some(right(0)));
        assert!(node.put(1).await, "it is stored anew");
        assert_eq!(node.get(1).await, Some(right(1)));
    }
    let kept = std::fs::read_dir(node.dir.path().join("nvme/quarantine")).unwrap().count();
    assert_eq!(kept, 8);
    // Another extent in its place, whole as it is; an older one of its own; a shorter one; a link.
    std::fs::copy(node.path(0), node.path(1)).unwrap();
    assert_eq!(node.get(1).await, None);
    assert!(node.put(1).await);
    let old = std::fs::read(node.path(1)).unwrap();
    node.tier.evict(|_| true).await;
    assert!(!node.path(1).exists());
    assert!(node.put(1).await);
    std::fs::write(node.path(1), &old).unwrap();
    assert_eq!(node.get(1).await, None, "of another generation");
    assert!(node.put(1).await);
    std::fs::OpenOptions::new().write(true).open(node.path(1)).unwrap().set_len(9000).unwrap();
    assert_eq!(node.get(1).await, None);
    assert!(node.put(1).await);
    let elsewhere = node.dir.path().join("elsewhere");
    std::fs::rename(node.path(1), &elsewhere).unwrap();
    std::os::unix::fs::symlink(&elsewhere, node.path(1)).unwrap();
    assert_eq!(node.get(1).await, None);
    assert!(node.put(1).await && elsewhere.exists());
    assert_eq!(node.get(1).await, Some(right(1)));
    node.stop().await;
}

#[tokio::test]
async fn an_extent_that_is_gone_is_a_miss() {
    let node = Node::start(&new_dir(), 100 * FILE, 1);
    assert!(node.put(1).await);
    std::fs::remove_file(node.path(1)).unwrap();
    assert_eq!(node.get(1).await, None);
    assert_eq!(node.tier.state().extents, 0);
    assert_eq!(node.tier.state().quarantined, 0);
    assert!(node.put(1).await);
    assert_eq!(node.get(1).await, Some(right(1)));
    node.stop().await;
}

/// Of two extents in one folder, the one that is found first is bad and cannot be put aside.
#[tokio::test]
async fn one_that_cannot_be_put_aside_hides_no_other() {
    let mut folders: BTreeMap<u8, u8> = BTreeMap::new();
    let same_folder = |n: u8| folders.insert(key(n).0[0], n).map(|other| [other, n]);
    let two = (0..u8::MAX).find_map(same_folder).unwrap();
    let node = Node::start(&new_dir(), 100 * FILE, 1);
    for n in two {
        assert!(node.put(n).await);
    }
    let folder = node.path(two[0]).parent().unwrap().to_owned();
    let first = std::fs::read_dir(folder).unwrap().next().unwrap().unwrap().path();
    let sound = two.into_iter().find(|n| node.path(*n) != first).unwrap();
    let dir = node.stop().await;
    flip(&first, 0, 1);
    std::fs::remove_file(dir.path().join("nvme/index.redb")).unwrap();
    for n in 0..9 {
        std::fs::create_dir(dir.path().join(format!("nvme/quarantine/{n}"))).unwrap();
    }
    let node = Node::start(&dir, 100 * FILE, 1);
    node.recovered().await;
    assert_eq!(node.tier.state().quarantined, 1);
    assert_eq!(node.get(sound).await, Some(right(sound)));
    node.stop().await;
}

#[tokio::test]
async fn the_budget_holds_and_pins_hold_and_say_so() {
    let node = Node::start(&new_dir(), 7 * FILE, 1);
    let manifest = |n: u8| {
        let name = format!("m{n}");
        manifest_for_tests(&[(name.as_str(), 100 * u64::from(n + 1))], &[])
    };
    // Two checkpoints, three chunks each, in use as loads use them.
    for n in 0..2 {
        node.tier.catalog().begin(
            revision(3 * n),
            &format!("s3://b/{n}"),
            manifest(n).bytes(),
            1,
            clock::seconds(),
        );
        for chunk in 3 * n..3 * n + 3 {
            assert!(node.put(chunk).await);
        }
        node.tier.catalog().end(revision(3 * n), clock::seconds());
    }
    assert_eq!(node.tier.pin(|uri| uri == "s3://b/0", true).await, [revision(0)]);
    assert_eq!(node.tier.state().pinned, 3 * (FIRST + SECOND));
    for n in 6..12 {
        assert!(node.put(n).await);
        assert!(node.tier.state().stored <= 7 * FILE);
    }
    for n in 0..3 {
        assert_eq!(node.get(n).await, Some(right(n)), "pinned");
    }
    assert_eq!(node.get(3).await, None, "evicted");
    let evicted = node.tier.evict(|uri| uri.starts_with("s3://")).await;
    assert_eq!((evicted.checkpoints, evicted.pinned), (0, 1));
    let dir = node.stop().await;
    let node = Node::start(&dir, 7 * FILE, 1);
    node.recovered().await;
    assert!(node.tier.list(|uri| uri == "s3://b/0")[0].pinned, "over a restart");
    assert_eq!(node.tier.pin(|_| true, false).await, [revision(0)]);
    let evicted = node.tier.evict(|uri| uri == "s3://b/0").await;
    assert_eq!((evicted.checkpoints, evicted.freed_bytes), (1, 3 * (FIRST + SECOND)));
    assert_eq!(node.get(0).await, None);
    assert!(!node.path(0).exists());
    node.stop().await;
}

/// A load that begins before the index is read knows of no pin, and has that remembered.
#[tokio::test]
async fn a_pin_outlives_a_kill_during_a_load_that_began_early() {
    let manifest = manifest_for_tests(&[("m", 100)], &[]);
    let node = Node::start(&new_dir(), 100 * FILE, 1);
    node.recovered().await;
    let used = node.tier.use_revision(&manifest, Lane::Prefetch);
    node.tier.pin_revision(manifest.revision()).keep().await;
    drop(used);
    let mut dir = node.stop().await;
    for _ in 0..8 {
        let node = Node::start(&dir, 100 * FILE, 1);
        let used = node.tier.use_revision(&manifest, Lane::Prefetch);
        node.recovered().await;
        assert!(node.tier.list(|_| true)[0].pinned);
        lock(&node.tier.index).as_ref().unwrap().flusher()();
        let killed = node.files();
        drop(used);
        node.stop().await;
        dir = killed;
    }
}

#[tokio::test]
async fn a_full_disk_stores_nothing_and_says_so() {
    let node = Node::start(&new_dir(), 100 * FILE, 1);
    for n in [1, 4, 7] {
        assert!(node.put(n).await);
    }
    node.faults.add(IoFaultRule::new(OpKind::Write, IoFault::NoSpace));
    assert!(!node.put(2).await);
    assert_eq!(node.get(2).await, None);
    assert_eq!(node.get(4).await, None, "some of what is stored makes room");
    assert_eq!(node.get(7).await, Some(right(7)), "and no more than that");
    let hits = node.faults.hits();
    assert!(!node.put(8).await);
    assert_eq!(node.faults.hits(), hits, "it is left alone for a while");
    let degraded = node.tier.degraded();
    assert!(degraded.iter().any(|why| why.contains("the disk is full")), "{degraded:?}");
    assert_eq!(node.tier.disk.state(), DiskState::Normal, "that is no fault of the disk");
    let filling = std::fs::read_dir(node.dir.path().join("nvme/filling")).unwrap().count();
    assert_eq!(filling, 0);
    *lock(&node.tier.full_until) = None;
    node.faults.clear();
    assert!(node.put(2).await);
    node.stop().await;
}

#[tokio::test]
async fn a_disk_that_fails_or_hangs_is_left_alone_until_it_is_well() {
    let node = Node::start(&new_dir(), 100 * FILE, 1);
    for n in 0..4 {
        assert!(node.put(n).await);
    }
    let mut heard = node.tier.news_so_far();
    // What loads hear of it.
    let mut turn = || -> Vec<String> {
        let news = node.tier.news(&mut heard).into_iter();
        news.filter(|event| event.name == "breaker").map(|event| event.detail).collect()
    };
    node.faults.add(IoFaultRule::new(OpKind::Read, IoFault::Eio));
    for n in 1..4 {
        assert_eq!(node.get(n).await, None);
    }
    assert!(node.tier.disk.state() > DiskState::Normal);
    let told = turn();
    assert!(
        told.len() == 1 && told[0].starts_with("the NVMe tier's disk is unstable: "),
        "{told:?}"
    );
    assert!(!node.put(9).await);
    assert_eq!(node.tier.state().quarantined, 0, "an error says nothing of the extent");
    node.faults.clear();
    for _ in 0..60 {
        assert_eq!(node.get(1).await, Some(right(1)), "a few reads at a time help it up");
    }
    assert_eq!(node.tier.disk.state(), DiskState::Normal);
    assert_eq!(turn(), ["the NVMe tier's disk is normal"]);
    node.faults.add(IoFaultRule::new(OpKind::Read, IoFault::Eio));
    assert_eq!(node.get(3).await, None);
    assert_eq!(node.tier.state().quarantined, 1, "the second one does");
    node.faults.clear();
    assert_eq!(node.get(3).await, None);
    assert!(node.put(3).await);
    node.faults.add(IoFaultRule::new(OpKind::Read, IoFault::Never).when(When::First(2)));
    assert_eq!(node.get(2).await, None);
    assert_eq!(node.tier.disk.state(), DiskState::Down);
    let told = turn();
    assert!(told.iter().any(|why| why.starts_with("the NVMe tier's disk is down: ")), "{told:?}");
    assert_eq!(node.get(1).await, None, "at once");
    assert!(!node.tier.holds(&key(1)));
    assert!(node.tier.degraded().iter().any(|why| why.contains("does not answer")));
    node.stop().await;
}

/// Loads side by side offer what is being written: no lock is taken in two orders.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn chunks_are_offered_again_while_they_are_written() {
    let node = Arc::new(Node::start(&new_dir(), 100 * FILE, 1));
    node.recovered().await;
    node.tier.catalog().begin(revision(0), "s3://b/0", 1, 1, clock::seconds());
    let mut others = tokio::task::JoinSet::new();
    let offering = Arc::clone(&node);
    others.spawn(async move {
        loop {
            (0..3).for_each(|n| offering.tier.offer(&spec(n), [0; 32], revision(n)));
            tokio::task::yield_now().await;
        }
    });
    for _ in 0..60 {
        for n in 0..3 {
            node.put(n).await;
        }
        node.tier.evict(|uri| uri == "s3://b/0").await;
    }
    others.shutdown().await;
    let Ok(node) = Arc::try_unwrap(node) else { panic!("someone has the node") };
    node.stop().await;
}

/// Whoever waits for a read that hangs may be gone before anyone is told: the watch hears of it.
#[tokio::test]
async fn a_hang_that_nobody_waits_for_is_heard_of() {
    let node = Node::start(&new_dir(), 100 * FILE, 1);
    assert!(node.put(1).await);
    node.faults.add(IoFaultRule::new(OpKind::Read, IoFault::Never).when(When::First(2)));
    let impatient = tokio::time::timeout(Duration::from_millis(1), node.get(1)).await;
    impatient.unwrap_err();
    while node.tier.disk.state() != DiskState::Down {
        tokio::task::yield_now().await;
    }
    node.stop().await;
}

#[tokio::test]
async fn a_check_finds_what_is_bad() {
    let node = Node::start(&new_dir(), 100 * FILE, 1);
    node.tier.catalog().begin(revision(0), "s3://b/0", 1, 1, clock::seconds());
    for n in 0..3 {
        assert!(node.put(n).await);
    }
    flip(&node.path(1), 40_000, 1);
    std::fs::remove_file(node.path(2)).unwrap();
    let chunk = FIRST + SECOND;
    let checked = node.tier.check(|uri| uri == "s3://b/0", |_| {}).await;
    assert_eq!(checked, Checked { right: chunk, bad: chunk, unreadable: chunk });
    assert_eq!(node.tier.state().quarantined, 1);
    let checked = node.tier.check(|uri| uri == "s3://b/0", |_| {}).await;
    assert_eq!(checked.right, chunk);
    node.stop().await;
}

/// Kills at moments that the seed says, in the middle of fills and evictions, and with an index
/// that is behind: no wrong byte, and every extent that was committed before is there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kill_at_any_point_loses_nothing_that_was_committed() {
    let slow = std::env::var_os("FOREBAY_SLOW_TESTS").is_some_and(|value| value == "1");
    let kills = if slow { 400 } else { 25 };
    println!("{kills} kills (400 with FOREBAY_SLOW_TESTS=1); real kills are in the e2e tests");
    let mut dir = new_dir();
    for kill in 0..kills {
        let node = Arc::new(Node::start(&dir, 9 * FILE, kill));
        node.recovered().await;
        let torn = IoFault::Torn { unit_bytes: 512, told: Told::Nothing };
        node.faults.add(IoFaultRule::new(OpKind::Write, torn).when(When::Nth(kill % 13)));
        // Of this one the index remembers an older extent than there is.
        let again = u8::try_from(kill % 16).unwrap();
        node.put(again).await;
        // Not always: the index syncs its file.
        if kill % 4 == 0 {
            lock(&node.tier.index).as_ref().unwrap().flusher()();
        }
        node.evict(again).await;
        node.put(again).await;
        let filling = Arc::clone(&node);
        let chunks = (0..12).map(move |n| u8::try_from((kill * 5 + n) % 16).unwrap());
        let mut fills = tokio::task::JoinSet::new();
        fills.spawn(async move {
            futures::stream::iter(chunks).for_each(|n| filling.put(n).map(drop)).await;
        });
        for _ in 0..(kill * 7) % 40 {
            tokio::task::yield_now().await;
        }
        let committed: Vec<_> = (0..16).map(|n| node.generation(n)).collect();
        let files = node.files();
        // Evicted while the copy was made, and perhaps stored anew, some may be missing there.
        let stayed = |n: &u8| {
            let before = committed[usize::from(*n)];
            before.is_some() && node.generation(*n) == before
        };
        let kept: Vec<u8> = (0..16).filter(stayed).collect();
        fills.shutdown().await;
        let Ok(node) = Arc::try_unwrap(node) else { panic!("someone has the node") };
        node.stop().await;
        dir = files;
        let node = Node::start(&dir, 9 * FILE, kill);
        node.recovered().await;
        for n in 0..16 {
            let got = node.get(n).await;
            assert!(got.is_none() || got == Some(right(n)), "kill {kill}: wrong bytes of {n}");
            assert!(got.is_some() || !kept.contains(&n), "kill {kill}: lost {n}");
        }
        dir = node.stop().await;
    }
}
