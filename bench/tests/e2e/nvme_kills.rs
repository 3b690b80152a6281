//! kill -9 at random points of fills and evictions.
//!
//! A *life* is one cache directory and a chain of daemons over it. Each is killed while it loads
//! two checkpoints in turns, in a tier that holds hardly one of them, so that at any moment extents
//! are written, committed and removed. What it was at when it is killed follows from the seed: so
//! many requests that the origin has seen, extents that were committed, or milliseconds. Some
//! daemons are ended as they should be in between, so that the index is there, and out of date
//! after the kill.
//!
//! Asserted after every kill, of the extents that lie in `nvme/extents` right after it, which are
//! those that were committed before it and not evicted since:
//!
//! - the next daemon begins with all of them, of the same generation, and with nothing else: none is
//!   put aside, none is missing, and what was half written is gone;
//! - a load of the one checkpoint, and then of the other, gives the right bytes (SHA-256 of every
//!   object). The first reads from NVMe exactly the bytes of its extents that were there: each was a
//!   hit. Every other byte comes from the origin;
//! - no extent was found to be bad, by anyone, at any time.
//!
//! A hundred kills in four lives; a thousand with FOREBAY_SLOW_TESTS=1.

use std::collections::HashSet;
use std::convert::Infallible;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use forebay_client::{
    Client, ClientError, EvictRequest, KeepTier, LoadRequest, PrefetchRequest, Reason,
};
use forebay_testkit::{Checkpoint, CheckpointSpec, Prng, S3Origin, Seed, checkpoint};
use rustix::process::Signal;
use tempfile::TempDir;

use crate::harness::{
    BUCKET, Digests, Node, NodeSpec, connect, digests, expected_digests, files, s3, s3_uri, until,
};
use crate::nvme::prefetch;
use crate::nvme_files::{Extent, cache, extents, files_below, hex};

/// Kills per life.
fn kills() -> usize {
    let slow = std::env::var_os("FOREBAY_SLOW_TESTS").is_some_and(|value| value == "1");
    if slow { 250 } else { 25 }
}

const PREFIXES: [&str; 2] = ["a/", "b/"];

struct Life {
    origin: S3Origin,
    checkpoints: [Checkpoint; 2],
    rng: Prng,
    dir: Option<TempDir>,
}

impl Life {
    async fn begin(seed: &Seed) -> Self {
        let origin = s3().await;
        let made = |n| checkpoint(CheckpointSpec::new(seed.get() * 2 + n, 600 << 10).shards(2));
        let checkpoints = [made(0), made(1)];
        for (prefix, checkpoint) in PREFIXES.iter().zip(&checkpoints) {
            origin.put_checkpoint(BUCKET, prefix, checkpoint);
        }
        Self { origin, checkpoints, rng: seed.prng(), dir: None }
    }

    async fn start(&mut self) -> Node {
        let spec = NodeSpec::of(&self.origin).ram("512KiB").nvme("900KiB");
        match self.dir.take() {
            Some(dir) => spec.dir(dir).start().await,
            None => spec.start().await,
        }
    }

    /// One daemon, from what the last one left to its own end.
    async fn one(&mut self, kill: bool) {
        let before = self.dir.as_ref().map(|dir| extents(dir.path())).unwrap_or_default();
        let mut node = self.start().await;
        knows(&node, &before).await;
        let first = usize::try_from(self.rng.below(2)).unwrap();
        for n in [first, 1 - first] {
            let made = &self.checkpoints[n];
            let report = node.loads(&s3_uri(PREFIXES[n]), &files(made)).await;
            if n == first {
                let revision = report.revision.as_str();
                let own = before.iter().filter(|extent| revision.ends_with(&hex(&extent.revision)));
                let stored: u64 = own.map(|extent| extent.content_bytes).sum();
                assert_eq!(report.bytes_by_tier.nvme, stored, "each of its extents is a hit");
                assert_eq!(report.bytes_by_tier.origin, made.bytes() - stored);
            }
        }
        if self.rng.chance(400) {
            // Now the index knows every extent: the kill leaves one that is out of date.
            self.dir = Some(node.stopped().await);
            let stored = extents(self.dir.as_ref().unwrap().path());
            node = self.start().await;
            knows(&node, &stored).await;
        }
        if kill {
            self.busy(&node).await;
        }
        self.dir = Some(node.daemon.kill().unwrap());
    }

    /// Until the moment of the kill, which comes in here, the daemon has its hands full.
    async fn busy(&mut self, node: &Node) {
        let moment = Moment::draw(&mut self.rng, &self.origin, node.daemon.dir());
        let mut others = tokio::task::JoinSet::new();
        for _ in 0..2 {
            let trouble = Trouble {
                client: connect(&node.daemon).await,
                rng: Prng::new(self.rng.next_u64()),
                expected: self.checkpoints.each_ref().map(|made| expected_digests(&files(made))),
            };
            others.spawn(trouble.make());
        }
        for looks in 0..LOOKS_MAX {
            if moment.has_come(looks, &self.origin, node.daemon.dir()) {
                break;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        if let Some(ended) = others.try_join_next() {
            panic!("before the daemon died: {ended:?}\n{}", node.daemon.log());
        }
        let bad = node.sum("forebay_cache_quarantined_total").await;
        assert_eq!(bad, 0.0, "{}", node.daemon.log());
        node.daemon.signal(Signal::KILL).unwrap();
        while let Some(ended) = others.join_next().await {
            // A digest that differs is a panic; that the daemon is gone is no news.
            drop(ended.expect("right bytes to the end"));
        }
    }
}

/// However it is drawn, the kill comes after so many milliseconds.
const LOOKS_MAX: u64 = 300;

/// When the daemon is to die.
enum Moment {
    Milliseconds(u64),
    /// That the origin has seen by then.
    Requests(u64),
    /// That lie there now, and how many others have to.
    Extents(HashSet<(PathBuf, u64)>, usize),
}

impl Moment {
    fn draw(rng: &mut Prng, origin: &S3Origin, dir: &Path) -> Self {
        match rng.below(3) {
            0 => Self::Milliseconds(rng.below(100)),
            1 => Self::Requests(origin.total().requests() + 1 + rng.below(30)),
            _ => Self::Extents(committed(dir), usize::try_from(1 + rng.below(12)).unwrap()),
        }
    }

    fn has_come(&self, milliseconds: u64, origin: &S3Origin, dir: &Path) -> bool {
        match self {
            Self::Milliseconds(drawn) => milliseconds >= *drawn,
            Self::Requests(drawn) => origin.total().requests() >= *drawn,
            Self::Extents(there, more) => committed(dir).difference(there).count() >= *more,
        }
    }
}

/// Names and inodes of the extents.
fn committed(dir: &Path) -> HashSet<(PathBuf, u64)> {
    let files = files_below(&cache(dir).join("nvme/extents")).into_iter();
    // One that goes away meanwhile is not there.
    files.filter_map(|path| Some((path.clone(), path.symlink_metadata().ok()?.ino()))).collect()
}

/// One client that keeps the daemon busy.
struct Trouble {
    client: Client,
    rng: Prng,
    expected: [Digests; 2],
}

impl Trouble {
    /// Loads, prefetches and evicts at random, as long as the daemon lives.
    async fn make(mut self) -> Result<Infallible, ClientError> {
        loop {
            let n = usize::try_from(self.rng.below(2)).unwrap();
            let uri = s3_uri(PREFIXES[n]);
            match self.rng.below(6) {
                0 => drop(self.client.evict(EvictRequest::new(uri).tier(KeepTier::Ram)).await?),
                1 => drop(self.client.evict(EvictRequest::new(uri).tier(KeepTier::Nvme)).await?),
                2 => self.store(uri).await?,
                _ => {
                    let (mapped, _) = digests(&self.client, LoadRequest::new(uri)).await?;
                    assert_eq!(mapped, self.expected[n]);
                }
            }
        }
    }

    async fn store(&self, uri: String) -> Result<(), ClientError> {
        let request = PrefetchRequest::new(uri).tier(KeepTier::Nvme);
        match prefetch(&self.client, request).await {
            // The other client's loads hold what is there.
            Err(error) if error.reason() == Reason::NvmeExhausted => Ok(()),
            kept => kept.map(drop),
        }
    }
}

/// The daemon knows these extents and no others, and has put nothing aside.
async fn knows(node: &Node, before: &[Extent]) {
    until("every extent is known", async || node.client.status().await.unwrap().nvme.recovery)
        .await;
    let status = node.client.status().await.unwrap().nvme;
    assert_eq!(extents(node.daemon.dir()), before, "{}", node.daemon.log());
    assert_eq!((status.extents, status.quarantined), (before.len() as u64, 0));
    let half = files_below(&cache(node.daemon.dir()).join("nvme/filling"));
    assert!(half.is_empty(), "{half:?}");
}

async fn life(seed: u64) {
    let seed = Seed::new(seed);
    let mut life = Life::begin(&seed).await;
    for _ in 0..kills() {
        life.one(true).await;
    }
    life.one(false).await;
}

#[tokio::test]
async fn kills_at_random_lose_nothing_and_serve_nothing_wrong_1() {
    life(1).await;
}

#[tokio::test]
async fn kills_at_random_lose_nothing_and_serve_nothing_wrong_2() {
    life(2).await;
}

#[tokio::test]
async fn kills_at_random_lose_nothing_and_serve_nothing_wrong_3() {
    life(3).await;
}

#[tokio::test]
async fn kills_at_random_lose_nothing_and_serve_nothing_wrong_4() {
    life(4).await;
}
