//! A daemon as it stands on a node that has been up for a moment, and cold loads through it.
//!
//! The daemon is a child process; its pool has its full size before anything is timed. The client
//! takes every chunk and gives it back, on one thread, as `forebay load` does.

use std::time::Duration;

use forebay_client::model::Report;
use forebay_client::{Chunk, Client, Endpoint, LoadRequest};

use crate::Outcome;
use crate::measure::{Counted, Measurement, Stopwatch};
use crate::process::{DaemonProcess, DaemonSpec};

/// How often the pool is looked at.
const LOOK_AGAIN: Duration = Duration::from_millis(20);
/// How often it is looked at until it has to be empty.
const LOOKS_MAX: usize = 500;
/// RAM beyond a checkpoint: the tail chunks of its shards, and the chunk of its small files.
const HEADROOM_BYTES: u64 = 192 << 20;

/// A daemon and a client of it.
pub(crate) struct Node {
    // Dropped before the daemon.
    client: Client,
    daemon: DaemonProcess,
}

/// A daemon that can keep checkpoints of so many bytes; the variables are settings of its.
pub(crate) fn daemon(bytes: u64, env: &[(&str, String)]) -> Outcome<DaemonSpec> {
    // A whole number of chunks, so that the pool can reach it.
    let ram = format!("{}MiB", ((bytes + HEADROOM_BYTES) >> 23) << 3);
    let env = env.iter().map(|(name, value)| ((*name).to_owned(), value.clone()));
    let spec = DaemonSpec::new(std::env::current_exe()?, &["daemon", "--metrics", "off"]);
    Ok(spec.arg("--nvme").arg("0").arg("--ram").arg(ram).env(env))
}

/// Waits until the pool has its size, as it has on a node whose daemon has been up for a second:
/// the cold load then shows the origin and not the kernel's first touch of memory.
pub(crate) async fn until_populated(client: &Client) -> Outcome<u64> {
    loop {
        let status = client.status().await?;
        if let Some(why) = status.degraded.iter().find(|sentence| sentence.starts_with("ram:")) {
            return Err(why.clone().into());
        }
        if status.ram.populated_bytes >= status.ram.budget_bytes {
            return Ok(status.ram.populated_bytes);
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

impl Node {
    /// Starts the daemon and waits for its pool.
    pub(crate) async fn start(spec: DaemonSpec) -> Outcome<Self> {
        let daemon = spec.start()?;
        let client = Client::connect(Endpoint::unix(&daemon.socket())?).await?;
        until_populated(&client).await?;
        Ok(Self { client, daemon })
    }

    /// Loads `uri` with nothing of it in the RAM tier; `see` sees every chunk before it goes back.
    /// CPU time is that of the daemon and of this process, the client.
    ///
    /// # Errors
    /// If the load fails, or any byte came from elsewhere than the origin.
    pub(crate) async fn cold(
        &self,
        uri: &str,
        mut see: impl FnMut(&Chunk) -> Outcome<()>,
    ) -> Outcome<(Measurement, Report)> {
        self.forget(uri).await?;
        let processes = [
            Counted { name: "daemon", pid: self.daemon.pid() },
            Counted { name: "client", pid: std::process::id() },
        ];
        let watch = Stopwatch::start(&processes)?;
        let mut load = self.client.load(LoadRequest::new(uri)).await?;
        while let Some(chunk) = load.next_chunk().await? {
            see(&chunk)?;
        }
        let report = load.finish().await?;
        let run = watch.stop(report.bytes)?;
        let tiers = report.bytes_by_tier;
        if tiers.origin != report.bytes {
            let (bytes, ram) = (report.bytes, tiers.ram);
            return Err(format!("of {bytes} bytes {ram} came from RAM: not a cold load").into());
        }
        Ok((run, report))
    }

    /// Evicts `uri` until nothing of it is left: the releases of the last load may still be on
    /// their way.
    async fn forget(&self, uri: &str) -> Outcome<()> {
        for _ in 0..LOOKS_MAX {
            self.client.evict(uri).await?;
            let ram = self.client.status().await?.ram;
            if ram.cached_bytes + ram.leased_bytes + ram.filling_bytes == 0 {
                return Ok(());
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
        Err("the RAM tier does not become empty".into())
    }
}
