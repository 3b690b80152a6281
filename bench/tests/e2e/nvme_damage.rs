//! What a disk does to what was stored: bits that flip, an index that is lost. Whatever it is, the
//! first load is right, and costs no more than what is damaged.

use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use forebay_client::model::BytesByTier;
use forebay_client::{EvictRequest, KeepTier, PrefetchRequest};
use forebay_testkit::{Checkpoint, CheckpointSpec, Content, S3Origin, Seed, checkpoint};
use tempfile::TempDir;

use crate::harness::{BUCKET, Node, NodeSpec, files, s3, s3_uri, until};
use crate::nvme::prefetch;
use crate::nvme_files::{cache, extents, fetched, files_below, flip};

/// A checkpoint that was stored by a daemon that has ended since.
struct Stored {
    origin: S3Origin,
    made: Checkpoint,
    uri: String,
    dir: TempDir,
}

impl Stored {
    async fn new(seed: u64, bytes: u64) -> Self {
        let origin = s3().await;
        let made = checkpoint(CheckpointSpec::new(seed, bytes).shards(2));
        origin.put_checkpoint(BUCKET, "m/", &made);
        let uri = s3_uri("m/");
        let node = spec(&origin).start().await;
        prefetch(&node.client, PrefetchRequest::new(&uri)).await.unwrap();
        let dir = node.stopped().await;
        Self { origin, made, uri, dir }
    }

    /// A daemon over a copy of what was stored, in which `damage` was done.
    async fn damaged(&self, damage: impl FnOnce(&Path)) -> Node {
        let dir = TempDir::with_prefix("forebay-").unwrap();
        copy(&cache(self.dir.path()), &cache(dir.path()));
        damage(dir.path());
        spec(&self.origin).dir(dir).start().await
    }

    /// The first load is right, and `lost` bytes of it come from the origin.
    async fn loses(&self, node: &Node, lost: u64, what: &str) {
        let before = fetched(&self.origin).1;
        let report = node.loads(&self.uri, &files(&self.made)).await;
        let tiers = BytesByTier { nvme: self.made.bytes() - lost, origin: lost, ram: 0 };
        assert_eq!(report.bytes_by_tier, tiers, "{what}\n{}", node.daemon.log());
        assert_eq!(fetched(&self.origin).1 - before, lost, "{what}");
    }
}

impl Stored {
    /// The first load has every chunk from NVMe, and asks the origin again for so many headers.
    async fn loses_headers(&self, node: &Node, headers: u64, what: &str) {
        let before = fetched(&self.origin).0;
        let report = node.loads(&self.uri, &files(&self.made)).await;
        assert_eq!(report.bytes_by_tier.nvme, self.made.bytes(), "{what}\n{}", node.daemon.log());
        assert_eq!(fetched(&self.origin).0 - before, headers, "{what}");
        assert_eq!(node.sum("forebay_cache_quarantined_total").await, 0.0, "{what}");
    }
}

fn spec(origin: &S3Origin) -> NodeSpec {
    NodeSpec::of(origin).nvme("64MiB").set("scrub_bytes_per_second", "0")
}

/// Copies a folder with its modes.
fn copy(from: &Path, to: &Path) {
    std::fs::create_dir(to).unwrap();
    std::fs::set_permissions(to, from.metadata().unwrap().permissions()).unwrap();
    for entry in std::fs::read_dir(from).unwrap().map(Result::unwrap) {
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// Files of the cache directory that hold anything, but no extents.
fn others(dir: &Path) -> Vec<PathBuf> {
    let mut files = files_below(&cache(dir));
    files.retain(|path| {
        let is_extent = path.ancestors().any(|above| above.ends_with("nvme/extents"));
        !is_extent && path.metadata().unwrap().size() > 0
    });
    files
}

fn name(path: &Path) -> &str {
    path.file_name().unwrap().to_str().unwrap()
}

#[tokio::test]
async fn one_bit_in_an_extent_costs_that_extent() {
    let seed = Seed::new(1);
    let mut rng = seed.prng();
    let stored = Stored::new(40, 500 << 10).await;
    let all = extents(stored.dir.path());
    // Magic, version, key, revision, generation, payload bytes, digest, content bytes, the first
    // sum, the header's own; then wherever, in header and payload.
    let fields = [0, 8, 16, 48, 80, 88, 104, 136, 256, 4088].map(|at| Some(8 * at));
    let sample = fields.into_iter().chain([None; 10]);
    for at in sample {
        let victim = &all[usize::try_from(rng.below(all.len() as u64)).unwrap()];
        let used = 8 * (4096 + victim.content_bytes);
        let bit = at.unwrap_or_else(|| rng.below(used));
        let at = victim.path.strip_prefix(stored.dir.path()).unwrap();
        let node = stored.damaged(|dir| flip(&dir.join(at), bit)).await;
        let what = format!("bit {bit} of {}", at.display());
        stored.loses(&node, victim.content_bytes, &what).await;
        assert_eq!(node.sum("forebay_cache_quarantined_total").await, 1.0, "{what}");
        // It is stored again: the next load has all of it.
        let again = prefetch(&node.client, PrefetchRequest::new(&stored.uri)).await.unwrap();
        assert_eq!(again.bytes_by_tier.ram, stored.made.bytes());
        let evict = EvictRequest::new(&stored.uri).tier(KeepTier::Ram);
        node.client.evict(evict).await.unwrap();
        stored.loses(&node, 0, &what).await;
    }
}

#[tokio::test]
async fn one_bit_in_any_other_file_costs_no_extent() {
    let seed = Seed::new(2);
    let mut rng = seed.prng();
    let stored = Stored::new(41, 300 << 10).await;
    std::fs::write(cache(stored.dir.path()).join(".forebay.lock"), b"x").unwrap();
    let others = others(stored.dir.path());
    let names: Vec<_> = others.iter().map(|path| name(path)).collect();
    for needed in ["first-fetch.2", "index.redb", ".forebay.lock"] {
        assert!(names.contains(&needed), "{names:?}");
    }
    for path in others {
        let bits = 8 * path.metadata().unwrap().size();
        let at = path.strip_prefix(stored.dir.path()).unwrap();
        let times = match name(at) {
            "index.redb" => 40,
            ".forebay.lock" => 1,
            _ => 4,
        };
        for _ in 0..times {
            let bit = match rng.below(4) {
                // Of a database, the pages that say where the others are.
                0 => rng.below(bits.min(8 * 4096)),
                _ => rng.below(bits),
            };
            let node = stored.damaged(|dir| flip(&dir.join(at), bit)).await;
            let what = format!("bit {bit} of {}", at.display());
            let headers = at.starts_with("cache/nvme/blobs").into();
            stored.loses_headers(&node, headers, &what).await;
        }
    }
}

#[tokio::test]
async fn a_lost_index_costs_nothing() {
    let stored = Stored::new(42, 500 << 10).await;
    let count = extents(stored.dir.path()).len() as u64;
    let index = Path::new("cache/nvme/index.redb");
    let garbage = |bytes: Content| {
        move |dir: &Path| {
            std::fs::write(dir.join(index), bytes.to_bytes()).unwrap();
        }
    };
    let lengths = [0, 1, 4096, 100_000];
    let mut nodes =
        vec![stored.damaged(|dir| std::fs::remove_file(dir.join(index)).unwrap()).await];
    for bytes in lengths {
        nodes.push(stored.damaged(garbage(Content::synthetic(43, bytes))).await);
    }
    let whole = std::fs::read(stored.dir.path().join(index)).unwrap();
    let half = whole[..whole.len() / 2].to_vec();
    nodes.push(stored.damaged(garbage(Content::bytes(half))).await);
    for node in nodes {
        // At once, whether or not everything is known yet.
        stored.loses(&node, 0, "at once").await;
        until("every extent is known", async || {
            let nvme = node.client.status().await.unwrap().nvme;
            (nvme.recovery.is_some() && nvme.extents == count).then_some(())
        })
        .await;
        assert_eq!(node.sum("forebay_cache_recovered_entries").await, count as f64);
        assert_eq!(node.sum("forebay_cache_quarantined_total").await, 0.0);
        // And is remembered again.
        let dir = node.stopped().await;
        let node = spec(&stored.origin).dir(dir).start().await;
        stored.loses(&node, 0, "again").await;
        let listed = node.client.list(None).await.unwrap();
        assert_eq!(listed.len(), 1, "{listed:?}");
        assert_eq!(listed[0].cached.nvme, stored.made.bytes());
    }
}

#[tokio::test]
async fn the_scrub_finds_what_no_load_has() {
    let stored = Stored::new(44, 500 << 10).await;
    let victim = extents(stored.dir.path()).swap_remove(2);
    let at = victim.path.strip_prefix(stored.dir.path()).unwrap();
    let dir = TempDir::with_prefix("forebay-").unwrap();
    copy(&cache(stored.dir.path()), &cache(dir.path()));
    flip(&dir.path().join(at), 8 * 5000);
    let scrubbing =
        NodeSpec::of(&stored.origin).nvme("64MiB").set("scrub_bytes_per_second", "1GiB").dir(dir);
    let node = scrubbing.start().await;
    until("the scrub has found it", async || {
        (node.sum("forebay_cache_quarantined_total").await == 1.0).then_some(())
    })
    .await;
    assert!(!node.daemon.dir().join(at).exists());
    let aside = files_below(&node.daemon.dir().join("cache/nvme/quarantine"));
    assert!(aside.len() == 1 && name(&aside[0]).starts_with(&victim.name), "{aside:?}");
    stored.loses(&node, victim.content_bytes, "the scrubbed one").await;
    assert_eq!(node.client.status().await.unwrap().nvme.quarantined, 1);
}

/// The page cache of a file that somebody else reads never answers for the device.
#[tokio::test]
async fn a_file_that_is_overwritten_while_the_daemon_runs_is_seen() {
    let stored = Stored::new(45, 300 << 10).await;
    let node = stored.damaged(|_| {}).await;
    stored.loses(&node, 0, "whole").await;
    let victim = extents(node.daemon.dir()).swap_remove(1);
    let file = std::fs::OpenOptions::new().write(true).open(&victim.path).unwrap();
    file.write_all_at(&[0x55; 512], 4096).unwrap();
    let evict = EvictRequest::new(&stored.uri).tier(KeepTier::Ram);
    node.client.evict(evict).await.unwrap();
    stored.loses(&node, victim.content_bytes, "overwritten").await;
}
