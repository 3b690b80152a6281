//! Stalls of disks: files that are not in the page cache, and an NVMe tier that is held to a rate.

use std::os::linux::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use forebay_client::{KeepTier, PrefetchRequest};
use forebay_testkit::{RawOptions, RawOrigin, write_checkpoint};

use super::ground::{Scene, Seen, Stall, load, skipped, uri};
use super::machine::Group;
use crate::Outcome;
use crate::node::Node;
use crate::nvme::forget_pages;
use crate::report::Row;

/// How long the load takes from the disk that is held to a rate, about.
const SLOW_SECONDS: u64 = 2;
/// Room of the tier beyond the checkpoint.
const ROOM: u64 = 64 << 20;
const KNOWN_WITHIN: Duration = Duration::from_secs(20);

pub(super) async fn page_cache(scene: &Scene) -> Outcome<Row> {
    const NAME: &str = "page_cache";
    let dir = tempfile::TempDir::with_prefix("forebay-")?;
    write_checkpoint(dir.path(), &scene.made)?;
    for entry in std::fs::read_dir(dir.path())? {
        std::fs::File::open(entry?.path())?.sync_all()?;
    }
    let slow = Throttle::of(dir.path(), scene.made.bytes() / SLOW_SECONDS);
    let (group, rule) = match slow {
        Ok(slow) => slow,
        Err(why) => return Ok(skipped(NAME, why)),
    };
    let node = Node::start(group.with(scene.daemon(&[])?)).await?;
    let uri = format!("file://{}/", dir.path().display());
    let stall = Stall {
        name: NAME,
        what: format!(
            "loads of files that are not in the page cache, from a disk held to {} MB/s",
            scene.made.bytes() / SLOW_SECONDS / 1_000_000
        ),
        causes: &["page_cache"],
    };
    stall
        .compare(scene, async |stalled| {
            rule.set(stalled)?;
            if stalled {
                forget_pages(dir.path())?;
            }
            let seen = load(scene, node.client(), &uri).await?;
            node.forget(&uri).await?;
            Ok(seen)
        })
        .await
}

pub(super) async fn disk(scene: &Scene) -> Outcome<Row> {
    const NAME: &str = "disk";
    let stored = match Stored::new(scene).await {
        Ok(stored) => stored,
        // A full disk, for one.
        Err(why) => return Ok(skipped(NAME, why.to_string())),
    };
    if let Err(why) = &stored.throttle {
        return Ok(skipped(NAME, why.clone()));
    }
    let stall = Stall {
        name: NAME,
        what: format!("loads from the NVMe tier into empty RAM, {}", stored.pace()),
        causes: &["nvme_queue", "nvme_service"],
    };
    stall
        .compare(scene, async |stalled| {
            stored.slow(stalled)?;
            stored.load(scene).await
        })
        .await
}

/// A daemon with the checkpoint in its NVMe tier, on a disk that may be held to a rate.
pub(super) struct Stored {
    node: Node,
    uri: String,
    throttle: Result<Throttle, String>,
    rate: u64,
    // It answers whether the checkpoint is still the same.
    _origin: RawOrigin,
    // After the daemon that is in it.
    _group: Option<Group>,
}

impl Stored {
    pub(super) async fn new(scene: &Scene) -> Outcome<Self> {
        let dir = tempfile::TempDir::with_prefix("forebay-")?;
        let rate = scene.made.bytes() / SLOW_SECONDS;
        let (group, throttle) = match Throttle::of(dir.path(), rate) {
            Ok((group, rule)) => (Some(group), Ok(rule)),
            Err(why) => (None, Err(why)),
        };
        let nvme = scene.made.bytes() + ROOM;
        let spec = scene.tiered_daemon(nvme, &[("FOREBAY_SCRUB_BYTES_PER_SECOND", "0")])?;
        let spec = match &group {
            Some(group) => group.with(spec),
            None => spec,
        };
        let node = Node::start_in(spec, dir).await?;
        node.until(KNOWN_WITHIN, |status| status.nvme.recovery.is_some()).await?;
        let origin = scene.origin(RawOptions::default())?;
        let uri = uri(&origin);
        let request = PrefetchRequest::new(&uri).tier(KeepTier::Nvme);
        let mut prefetch = node.client().prefetch(request).await?;
        while prefetch.next().await?.is_some() {}
        Ok(Self { node, uri, throttle, rate, _origin: origin, _group: group })
    }

    /// How fast the disk is.
    pub(super) fn pace(&self) -> String {
        match &self.throttle {
            Ok(_) => format!("from a disk held to {} MB/s", self.rate / 1_000_000),
            Err(why) => format!("from a disk as fast as it is ({why})"),
        }
    }

    /// Holds the disk to its rate, where that can be done, or not.
    pub(super) fn slow(&self, slow: bool) -> Outcome<()> {
        self.throttle.as_ref().map_or(Ok(()), |throttle| throttle.set(slow))
    }

    pub(super) async fn load(&self, scene: &Scene) -> Outcome<Seen> {
        self.node.empty_ram(&self.uri).await?;
        load(scene, self.node.client(), &self.uri).await
    }
}

/// A rate that reads of one disk are held to, for one control group.
struct Throttle {
    file: PathBuf,
    device: String,
    bytes_per_second: u64,
}

impl Throttle {
    /// Of the disk that a directory lies on; or why that cannot be done.
    fn of(dir: &Path, bytes_per_second: u64) -> Result<(Group, Self), String> {
        let group = Group::make("blkio", "blkio.throttle.read_bps_device")?;
        let number = std::fs::metadata(dir).map_err(|error| error.to_string())?.st_dev();
        let (major, minor) = (rustix::fs::major(number), rustix::fs::minor(number));
        let device = format!("{major}:{minor}");
        let file = group.file("blkio.throttle.read_bps_device");
        let rule = Self { file, device, bytes_per_second };
        // Disks without a queue of their own, as that of a tmpfs, know no rate.
        rule.set(true).map_err(|error| format!("disk {}: {error}", rule.device))?;
        Ok((group, rule))
    }

    fn set(&self, slow: bool) -> Outcome<()> {
        let rate = if slow { self.bytes_per_second } else { 0 };
        Ok(std::fs::write(&self.file, format!("{} {rate}", self.device))?)
    }
}
