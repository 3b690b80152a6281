//! Stalls of disks: files that are not in the page cache, and an NVMe tier that is held to a rate.

use std::os::linux::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use forebay_client::{KeepTier, PrefetchRequest};
use forebay_testkit::{RawOptions, write_checkpoint};

use super::ground::{Scene, Stall, load, skipped, uri};
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
    let dir = tempfile::TempDir::with_prefix("forebay-")?;
    let (group, rule) = match Throttle::of(dir.path(), scene.made.bytes() / SLOW_SECONDS) {
        Ok(slow) => slow,
        Err(why) => return Ok(skipped(NAME, why)),
    };
    let nvme = scene.made.bytes() + ROOM;
    let spec = scene.tiered_daemon(nvme, &[("FOREBAY_SCRUB_BYTES_PER_SECOND", "0")])?;
    let node = Node::start_in(group.with(spec), dir).await?;
    node.until(KNOWN_WITHIN, |status| status.nvme.recovery.is_some()).await?;
    let origin = scene.origin(RawOptions::default())?;
    let uri = uri(&origin);
    let request = PrefetchRequest::new(&uri).tier(KeepTier::Nvme);
    let mut prefetch = node.client().prefetch(request).await?;
    while prefetch.next().await?.is_some() {}
    let stall = Stall {
        name: NAME,
        what: format!(
            "loads from the NVMe tier on a disk held to {} MB/s by its control group",
            scene.made.bytes() / SLOW_SECONDS / 1_000_000
        ),
        causes: &["nvme_queue", "nvme_service"],
    };
    stall
        .compare(scene, async |stalled| {
            rule.set(stalled)?;
            node.empty_ram(&uri).await?;
            load(scene, node.client(), &uri).await
        })
        .await
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
