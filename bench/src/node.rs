//! A daemon as it stands on a node that has been up for a moment, and loads through it.
//!
//! The daemon is a child process; its pool has its full size before anything is timed. The client
//! takes every chunk and gives it back, on one thread, as `forebay load` does.

use std::path::{Path, PathBuf};
use std::time::Duration;

use forebay_client::model::{DaemonStatus, Report};
use forebay_client::{Chunk, Client, Endpoint, EvictRequest, KeepTier, LoadRequest};
use tempfile::TempDir;

use crate::Outcome;
use crate::measure::{Counted, Measurement, Stopwatch};
use crate::process::{DaemonProcess, DaemonSpec};
use crate::scrape::{exposition, metrics_address};

/// How often the pool is looked at.
const LOOK_AGAIN: Duration = Duration::from_millis(20);
/// How often it is looked at until it has to be empty.
const LOOKS_MAX: usize = 500;
/// RAM beyond a checkpoint: the tail chunks of its shards, and the chunk of its small files.
pub(crate) const HEADROOM_BYTES: u64 = 192 << 20;

/// A daemon and a client of it.
pub(crate) struct Node {
    // Dropped before the daemon.
    client: Client,
    daemon: DaemonProcess,
}

/// A daemon that can keep checkpoints of so many bytes, without an NVMe tier; the variables are
/// settings of its.
pub(crate) fn daemon(bytes: u64, env: &[(&str, String)]) -> Outcome<DaemonSpec> {
    tiered_daemon(bytes, 0, env)
}

/// A daemon whose RAM can keep checkpoints of so many bytes, and whose NVMe tier has a budget.
pub(crate) fn tiered_daemon(
    bytes: u64,
    nvme_bytes: u64,
    env: &[(&str, String)],
) -> Outcome<DaemonSpec> {
    // A whole number of chunks, so that the pool can reach it.
    let ram = format!("{}MiB", ((bytes + HEADROOM_BYTES) >> 23) << 3);
    sized_daemon(ram, nvme_bytes, env)
}

/// A daemon with so much RAM, as the flag says it, and an NVMe tier with a budget.
pub(crate) fn sized_daemon(
    ram: String,
    nvme_bytes: u64,
    env: &[(&str, String)],
) -> Outcome<DaemonSpec> {
    let nvme = format!("{}MiB", nvme_bytes >> 20);
    let env = env.iter().map(|(name, value)| ((*name).to_owned(), value.clone()));
    let spec = DaemonSpec::new(std::env::current_exe()?, &["daemon", "--log", "json"]);
    let spec = spec.arg("--metrics").arg("127.0.0.1:0");
    Ok(spec.arg("--nvme").arg(nvme).arg("--ram").arg(ram).env(env))
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
        Self::begin(spec.start()?).await
    }

    /// The same in the directory of one that is gone: its cache is found.
    pub(crate) async fn start_in(spec: DaemonSpec, dir: TempDir) -> Outcome<Self> {
        Self::begin(spec.start_in(dir)?).await
    }

    /// The same as soon as it answers; its pool may still grow.
    pub(crate) async fn start_unpopulated_in(spec: DaemonSpec, dir: TempDir) -> Outcome<Self> {
        let daemon = spec.start_in(dir)?;
        let client = Client::connect(Endpoint::unix(&daemon.socket())?).await?;
        Ok(Self { client, daemon })
    }

    async fn begin(daemon: DaemonProcess) -> Outcome<Self> {
        let client = Client::connect(Endpoint::unix(&daemon.socket())?).await?;
        until_populated(&client).await?;
        Ok(Self { client, daemon })
    }

    pub(crate) fn client(&self) -> &Client {
        &self.client
    }

    /// A connection and a session of its own.
    pub(crate) async fn another_client(&self) -> Outcome<Client> {
        Ok(Client::connect(Endpoint::unix(&self.daemon.socket())?).await?)
    }

    pub(crate) fn pid(&self) -> u32 {
        self.daemon.pid()
    }

    /// The most memory that it had resident so far.
    pub(crate) fn peak_resident_bytes(&self) -> std::io::Result<u64> {
        self.daemon.peak_resident_bytes()
    }

    /// The value of one of its metrics, with its labels as exposed; zero if it is not there yet.
    pub(crate) fn metric(&self, name: &str) -> Outcome<f64> {
        let exposed = exposition(&metrics_address(&self.daemon.log())?)?;
        let value = exposed.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        Ok(value.map_or(Ok(0.0), str::parse)?)
    }

    /// Its socket.
    pub(crate) fn socket(&self) -> PathBuf {
        self.daemon.socket()
    }

    /// Where its files are.
    pub(crate) fn dir(&self) -> &Path {
        self.daemon.dir()
    }

    /// Waits until its status is as wanted, for so long.
    pub(crate) async fn until(
        &self,
        limit: Duration,
        mut wanted: impl FnMut(&DaemonStatus) -> bool,
    ) -> Outcome<DaemonStatus> {
        let begun = tokio::time::Instant::now();
        loop {
            let status = self.client.status().await?;
            if wanted(&status) {
                return Ok(status);
            }
            if begun.elapsed() > limit {
                return Err(
                    format!("the daemon is not as wanted after {limit:?}: {status:?}").into()
                );
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    /// Ends the daemon as an operator would, and keeps its directory for the next one.
    pub(crate) fn stop(self) -> Outcome<TempDir> {
        drop(self.client);
        let mut daemon = self.daemon;
        let status = daemon.stop()?;
        if !status.success() {
            return Err(format!("the daemon ended with {status}: {}", daemon.log()).into());
        }
        // It has ended; what is left to take is the directory.
        Ok(daemon.kill()?)
    }

    /// Ends the daemon at once, and keeps its directory for the next one.
    pub(crate) fn kill(self) -> Outcome<TempDir> {
        drop(self.client);
        Ok(self.daemon.kill()?)
    }

    /// Loads `uri` with nothing of it in the RAM tier; `see` sees every chunk before it goes back.
    /// CPU time is that of the daemon and of this process, the client.
    ///
    /// # Errors
    /// If the load fails, or any byte came from elsewhere than the origin.
    pub(crate) async fn cold(
        &self,
        uri: &str,
        see: impl FnMut(&Chunk) -> Outcome<()>,
    ) -> Outcome<(Measurement, Report)> {
        self.forget(uri).await?;
        let (run, report) = self.load(uri, see).await?;
        let tiers = report.bytes_by_tier;
        if tiers.origin != report.bytes {
            let (bytes, ram) = (report.bytes, tiers.ram);
            return Err(format!("of {bytes} bytes {ram} came from RAM: not a cold load").into());
        }
        Ok((run, report))
    }

    /// Loads `uri` from wherever it is; otherwise as [`Node::cold`].
    ///
    /// # Errors
    /// If the load fails.
    pub(crate) async fn load(
        &self,
        uri: &str,
        mut see: impl FnMut(&Chunk) -> Outcome<()>,
    ) -> Outcome<(Measurement, Report)> {
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
        Ok((run, report))
    }

    /// Evicts `uri`, and what lies under it, from every tier, until the RAM tier is empty.
    pub(crate) async fn forget(&self, uri: &str) -> Outcome<()> {
        self.evict(EvictRequest::new(uri)).await
    }

    /// Evicts `uri` from the RAM tier alone.
    pub(crate) async fn empty_ram(&self, uri: &str) -> Outcome<()> {
        self.evict(EvictRequest::new(uri).tier(KeepTier::Ram)).await
    }

    /// Evicts until the RAM tier is empty: the releases of the last load may still be on their way.
    async fn evict(&self, what: EvictRequest) -> Outcome<()> {
        for _ in 0..LOOKS_MAX {
            self.client.evict(what.clone()).await?;
            let ram = self.client.status().await?.ram;
            if ram.cached_bytes + ram.leased_bytes + ram.filling_bytes == 0 {
                return Ok(());
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
        Err("the RAM tier does not become empty".into())
    }
}
