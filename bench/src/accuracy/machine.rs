//! Stalls for want of CPUs, and of what decoding needs.

use std::path::{Path, PathBuf};
use std::time::Duration;

use forebay_client::{Client, EvictRequest, LoadRequest};
use forebay_testkit::{LinkOptions, RawOptions, S3Options, S3Origin};

use super::ground::{PREFIX, Scene, Stall, load, settings, skipped, uri};
use crate::Outcome;
use crate::node::{self, Node};
use crate::packed;
use crate::process::DaemonSpec;
use crate::report::Row;

/// Where the controllers of version 1 lie, each in a folder of its name.
const GROUPS: &str = "/sys/fs/cgroup";
/// What the daemon may use of each tenth of a second.
const QUOTA_MICROSECONDS: &str = "8000";
/// The rate of the load that has the memory to decode from.
const RIVAL_BYTES_PER_SECOND: u64 = 100 << 20;
const SLOW_BUCKET: &str = "slow";
/// How long before the load that is measured the other one begins.
const AHEAD: Duration = Duration::from_millis(300);
/// A quarter of it is memory to decode from.
const SMALL_POOL: &str = "32MiB";

pub(super) async fn quota(scene: &Scene) -> Outcome<Row> {
    const NAME: &str = "cpu_throttle";
    let file = "cpu.cfs_quota_us";
    let group = match Group::make("cpu", file) {
        Ok(group) => group,
        Err(why) => return Ok(skipped(NAME, why)),
    };
    let node = Node::start(group.with(scene.daemon(&[])?)).await?;
    let origin = scene.origin(RawOptions::default())?;
    let uri = uri(&origin);
    let stall = Stall {
        name: NAME,
        what: "cold loads by a daemon that may use 8 % of a CPU".to_owned(),
        causes: &["cpu_throttle"],
    };
    stall
        .compare(scene, async |stalled| {
            std::fs::write(group.file(file), if stalled { QUOTA_MICROSECONDS } else { "-1" })?;
            let seen = load(scene, node.client(), &uri).await;
            std::fs::write(group.file(file), "-1")?;
            node.forget(&uri).await?;
            seen
        })
        .await
}

pub(super) async fn decompress(scene: &Scene) -> Outcome<Row> {
    let ground = packed::Ground::of_weights(scene.made.bytes()).await?;
    let link = LinkOptions {
        total_bytes_per_second: Some(RIVAL_BYTES_PER_SECOND),
        ..LinkOptions::default()
    };
    let slow = S3Origin::start(S3Options { link, ..S3Options::default() }).await;
    for (name, content) in ground.packed()? {
        slow.put(SLOW_BUCKET, &format!("{PREFIX}{name}"), content);
    }
    let file = tempfile::NamedTempFile::new()?;
    let block = format!(
        "[[origin]]\nprefix = \"s3://{SLOW_BUCKET}\"\nendpoint = \"{}\"\nallow_http = true\n",
        slow.endpoint()
    );
    std::fs::write(file.path(), block)?;
    let spec = node::sized_daemon(SMALL_POOL.to_owned(), 0, &settings())?;
    let spec = spec.env(ground.env()).arg("--config").arg(file.path());
    let node = Node::start(spec).await?;
    let (own, rival) = (ground.uri(), format!("s3://{SLOW_BUCKET}/{PREFIX}"));
    let stall = Stall {
        name: "decompress",
        what: "cold loads of a packed checkpoint; the memory to decode from is another load's, \
               whose origin is slow"
            .to_owned(),
        causes: &["decompress_queue", "decompress_cpu"],
    };
    stall
        .compare(scene, async |stalled| {
            for uri in [&own, &rival] {
                node.client().evict(EvictRequest::new(uri)).await?;
            }
            if !stalled {
                return load(scene, node.client(), &own).await;
            }
            let behind = async {
                tokio::time::sleep(AHEAD).await;
                load(scene, node.client(), &own).await
            };
            let (seen, other) = tokio::join!(behind, through(node.client(), &rival));
            other.and(seen)
        })
        .await
}

/// Loads everything.
async fn through(client: &Client, uri: &str) -> Outcome<()> {
    let mut load = client.load(LoadRequest::new(uri)).await?;
    while load.next_chunk().await?.is_some() {}
    load.finish().await?;
    Ok(())
}

/// A control group for a daemon; it goes when this is dropped.
pub(super) struct Group {
    path: PathBuf,
}

impl Group {
    /// Makes one of a controller of version 1 that has a file; or why that cannot be done.
    pub(super) fn make(controller: &str, file: &str) -> Result<Self, String> {
        let path = Path::new(GROUPS).join(controller);
        let path = path.join(format!("forebay-bench-{}-{controller}", std::process::id()));
        let group = Self { path };
        if !group.path.exists()
            && let Err(error) = std::fs::create_dir(&group.path)
        {
            return Err(format!("no control group {}: {error}", group.path.display()));
        }
        match group.file(file).exists() {
            true => Ok(group),
            false => Err(format!("the controller {controller} has no {file}")),
        }
    }

    pub(super) fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// A daemon that begins in it.
    pub(super) fn with(&self, spec: DaemonSpec) -> DaemonSpec {
        let procs = self.file("cgroup.procs");
        spec.under("sh", &["-c", "echo $$ > \"$0\" && exec \"$@\"", &procs.display().to_string()])
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // An empty one that stays behind does no harm.
        drop(std::fs::remove_dir(&self.path));
    }
}
