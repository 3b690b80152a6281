//! Stalls for want of CPUs: a quota, and a decoder that has others to serve.

use std::path::{Path, PathBuf};

use forebay_client::{Client, LoadRequest};

use super::ground::{Scene, Stall, load, settings, skipped, uri};
use crate::Outcome;
use crate::node::{self, Node};
use crate::packed;
use crate::process::DaemonSpec;
use crate::report::Row;
use forebay_testkit::RawOptions;

/// Where the controllers of version 1 lie, each in a folder of its name.
const GROUPS: &str = "/sys/fs/cgroup";
/// What the daemon may use of each tenth of a second.
const QUOTA_MICROSECONDS: &str = "8000";
/// Loads that want the decoder beside the one that is measured.
const RIVALS: usize = 3;

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
    let spec = node::daemon((1 + RIVALS as u64) * scene.made.bytes(), &settings())?;
    let node = Node::start(spec.env(ground.env())).await?;
    let names: Vec<String> =
        (0..=RIVALS).map(|number| ground.copy(number)).collect::<Result<_, _>>()?;
    let (own, rivals) = names.split_first().ok_or("no name")?;
    let stall = Stall {
        name: "decompress",
        what: format!("cold loads of a packed checkpoint beside {RIVALS} others of others"),
        causes: &["decompress_queue", "decompress_cpu"],
    };
    stall
        .compare(scene, async |stalled| {
            for uri in &names {
                node.forget(uri).await?;
            }
            let rivals = if stalled { rivals } else { &[] };
            let running = futures_of(node.client(), rivals).await?;
            let seen = load(scene, node.client(), own).await?;
            for rival in running {
                finish(rival).await?;
            }
            Ok(seen)
        })
        .await
}

/// Begins loads that nobody reads yet: the daemon works ahead for them.
async fn futures_of(client: &Client, uris: &[String]) -> Outcome<Vec<forebay_client::Load>> {
    let mut loads = Vec::new();
    for uri in uris {
        loads.push(client.load(LoadRequest::new(uri)).await?);
    }
    Ok(loads)
}

async fn finish(mut load: forebay_client::Load) -> Outcome<()> {
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
