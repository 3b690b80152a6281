//! What a scenario runs on: an origin or the user's URIs, a daemon in a process of its own, and the
//! clients that load from it, which are this process.
//!
//! There are several clients with a connection and a handoff session each, since a daemon serves a
//! bounded number of streams per connection; loads take them in turn. The daemon is at rest with
//! its pool populated, every client has loaded once, and what a scenario expects to be in a tier is
//! there, before anything is measured.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use forebay_client::model::BytesByTier;
use forebay_client::{
    CallOptions, Client, ClientError, EvictRequest, KeepTier, LoadRequest, PrefetchRequest, Shard,
};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::time::Instant;

use super::origin::{Form, OriginArgs, OriginProcess};
use super::sample::{Ended, Sample, stages};
use super::{Options, Scenario, schedule};
use crate::Outcome;
use crate::cpu::thread_times;
use crate::device::CUTS;
use crate::node::{self, Node};
use crate::process::DaemonSpec;

/// Connections: a daemon serves 64 streams of each, and holds a few hundred loads.
const CLIENTS: usize = 16;
/// Ranks that load one checkpoint at once.
pub(super) const RANKS: u32 = 4;
/// How many pools' worth of checkpoints there are, so that what comes round again is not in RAM any
/// more even if most loads of a round are refused.
const COLD_POOLS: u64 = 30;
const COLD_COPIES_MIN: u64 = 64;
/// Packed checkpoints: each has to be packed before. A load that comes round to one again finds it
/// dropped.
const PACKED_COPIES: u64 = 24;
/// The same of those that lie on NVMe.
const NVME_POOLS: u64 = 2;
const NVME_COPIES_MIN: u64 = 8;
/// Checkpoints that stay in RAM.
const HOT: usize = 2;
/// Room of the NVMe tier beyond what is put there: heads of files, and slots that are not full.
const NVME_ROOM: u64 = 1 << 30;
/// How long the daemon may take to know what is on its disk, which is empty.
const KNOWN_WITHIN: Duration = Duration::from_secs(30);
/// Shares of a mixed load, by where the bytes are.
const MIX: [(Tier, f64); 3] = [(Tier::Ram, 0.60), (Tier::Nvme, 0.25), (Tier::Origin, 0.15)];

/// Where the bytes of a load are before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Tier {
    Ram,
    Nvme,
    Origin,
}

/// See the module's head.
pub(super) struct Ground {
    // Dropped before the daemon, which is dropped before the origin.
    clients: Vec<Client>,
    node: Node,
    origin: Option<OriginProcess>,
    scenario: Scenario,
    uris: Vec<String>,
    /// How many of the first checkpoints lie on NVMe; the last ones are hot.
    stored: usize,
    seed: u64,
    next: AtomicU64,
    /// What differs from the settings that a daemon has if nothing is said.
    pub(super) settings: Vec<String>,
}

/// What is loaded.
#[derive(Debug, Clone)]
struct Target {
    uri: String,
    /// Dropped afterwards, so that it comes from the same tier the next time.
    forget: Option<EvictRequest>,
    ranks: u32,
}

impl Ground {
    /// Makes it; tells why not, where a scenario cannot be had.
    pub(super) async fn make(scenario: Scenario, options: &Options) -> Outcome<Self> {
        let pool = options.pool();
        let copies = |pools: u64, least: u64| (pools * pool / options.bytes.max(1)).max(least);
        let stored = match scenario {
            Scenario::Nvme | Scenario::Mixed => copies(NVME_POOLS, NVME_COPIES_MIN),
            _ => 0,
        };
        let all = match scenario {
            Scenario::Packed => PACKED_COPIES,
            _ => stored + copies(COLD_POOLS, COLD_COPIES_MIN),
        };
        let origin = match options.uris.is_empty() {
            true => {
                let form = match scenario {
                    Scenario::Packed => Form::Packed,
                    Scenario::ManySmall => Form::Small,
                    _ => Form::Plain,
                };
                let args = OriginArgs::new(form, options.bytes, usize::try_from(all)?);
                let args = args.shaped(options.origin_bytes_per_second, options.origin_latency);
                Some(OriginProcess::start(&args)?)
            }
            false => None,
        };
        let uris = match &origin {
            Some(origin) => (0..origin.copies).map(|copy| origin.uri(copy)).collect(),
            None => options.uris.clone(),
        };
        let nvme = if stored > 0 { NVME_ROOM + stored * options.bytes } else { 0 };
        let spec = daemon(pool, nvme, options)?;
        let settings = changed(&spec.default_settings()?, &spec.settings()?);
        let dir = options.dir.clone().unwrap_or_else(std::env::temp_dir);
        let node = Node::start_in(spec, TempDir::with_prefix_in("forebay-", dir)?).await?;
        if nvme > 0 {
            node.until(KNOWN_WITHIN, |status| status.nvme.recovery.is_some()).await?;
        }
        let mut clients = Vec::new();
        for _ in 0..CLIENTS {
            let callers = CallOptions { unthrottled: options.unthrottled, ..Default::default() };
            clients.push(node.another_client().await?.with_options(callers));
        }
        let stored = usize::try_from(stored)?.min(uris.len());
        let (seed, next) = (options.seed, AtomicU64::new(0));
        let ground = Self { clients, node, origin, scenario, uris, stored, seed, next, settings };
        Box::pin(ground.prepare()).await?;
        Ok(ground)
    }

    /// Brings everything to where the scenario expects it.
    async fn prepare(&self) -> Outcome<()> {
        for uri in self.uris.iter().take(self.stored) {
            let request = PrefetchRequest::new(uri).tier(KeepTier::Nvme);
            let mut prefetch = self.client(0).prefetch(request).await?;
            while prefetch.next().await?.is_some() {}
            self.client(0).evict(EvictRequest::new(uri).tier(KeepTier::Ram)).await?;
        }
        for (number, _) in (0..).zip(&self.clients) {
            let uri = match self.scenario {
                Scenario::Ram | Scenario::Mixed => self.hot(number),
                _ => self.cold(number),
            };
            let target = Target { uri, forget: None, ranks: 0 };
            Box::pin(self.load(number, &target, None)).await?;
        }
        // A checkpoint that comes round again is not left in a tier that it is not measured from.
        let left = match self.scenario {
            Scenario::Ram => &[],
            Scenario::Packed => self.uris.as_slice(),
            _ if self.origin.is_some() => &[],
            _ => self.uris.as_slice(),
        };
        for uri in left {
            let what = EvictRequest::new(uri);
            let is_nvme = self.scenario == Scenario::Nvme;
            let what = if is_nvme { what.tier(KeepTier::Ram) } else { what };
            self.client(0).evict(what).await?;
        }
        Ok(())
    }

    pub(super) fn node(&self) -> &Node {
        &self.node
    }

    /// CPU seconds so far of everybody who has a part in a load and is here: the daemon, the
    /// origin, and the clients, which are this process.
    pub(super) fn cpu_seconds(&self) -> Outcome<f64> {
        let origin = self.origin.iter().map(OriginProcess::pid);
        let all = [self.node.pid(), std::process::id()].into_iter().chain(origin);
        let seconds = |pid: u32| {
            let times = thread_times(pid)?;
            Ok(times.names().map(|name| times.of(name).as_secs_f64()).sum::<f64>())
        };
        all.map(seconds).sum()
    }

    /// What is loaded, in a sentence.
    pub(super) fn what(&self) -> String {
        let from = match &self.origin {
            Some(_) => "an embedded origin".to_owned(),
            None => self.uris.join(" and "),
        };
        match self.scenario {
            Scenario::Cold => format!("cold loads from {from}"),
            Scenario::Nvme => format!("loads from NVMe into empty RAM, first from {from}"),
            Scenario::Ram => format!("loads from RAM, first from {from}"),
            Scenario::Packed => format!("cold loads of a packed checkpoint from {from}"),
            Scenario::Mixed => format!("60 % from RAM, 25 % from NVMe, 15 % from {from}"),
            Scenario::TensorParallel => format!("{RANKS} ranks at once, cold, from {from}"),
            Scenario::ManySmall => format!("cold loads of an object per tensor from {from}"),
        }
    }

    /// What the first checkpoint resolves to: the others have the same bytes.
    pub(super) async fn checkpoint(&self) -> Outcome<Value> {
        let uri = self.uris.first().ok_or("there is nothing to load")?;
        let stat = self.node.client().stat(uri).await?;
        Ok(json!({
            "uri": stat.summary.uri,
            "revision": stat.summary.revision.to_string(),
            "objects": stat.manifest.objects().len(),
            "tensors": stat.manifest.tensors().len(),
            "bytes": stat.summary.bytes,
            "checkpoints": self.uris.len(),
            "embedded": self.origin.is_some(),
            "generated_from_seed": self.origin.as_ref().map(|_| super::origin::SEED),
            "disk_of_the_cache": self.node.dir().display().to_string(),
        }))
    }

    /// What each kind of load is a part of: for a prediction from what the stages can do.
    pub(super) fn kinds(&self) -> Vec<(&'static str, f64)> {
        let kind = |tier: Tier| match tier {
            Tier::Ram => "warm",
            Tier::Nvme => "nvme",
            Tier::Origin => "cold",
        };
        match self.scenario {
            Scenario::Ram => vec![("warm", 1.0)],
            Scenario::Nvme => vec![("nvme", 1.0)],
            Scenario::Packed => vec![("packed", 1.0)],
            Scenario::Mixed => MIX.iter().map(|(tier, share)| (kind(*tier), *share)).collect(),
            Scenario::Cold | Scenario::TensorParallel | Scenario::ManySmall => vec![("cold", 1.0)],
        }
    }

    fn client(&self, number: u64) -> &Client {
        let count = u64::try_from(self.clients.len()).unwrap_or(1);
        let place = usize::try_from(number % count.max(1)).unwrap_or(0);
        self.clients.get(place).unwrap_or_else(|| self.node.client())
    }

    /// The `number`th of the checkpoints that lie on NVMe, of those that stay in RAM, of the rest.
    fn uri(&self, number: u64, from: usize, to: usize) -> String {
        let count = u64::try_from(to.saturating_sub(from)).unwrap_or(0).max(1);
        let place = from + usize::try_from(number % count).unwrap_or(0);
        self.uris.get(place).or_else(|| self.uris.first()).cloned().unwrap_or_default()
    }

    fn stored(&self, number: u64) -> String {
        self.uri(number, 0, self.stored)
    }

    fn hot(&self, number: u64) -> String {
        self.uri(number, self.uris.len().saturating_sub(HOT), self.uris.len())
    }

    fn cold(&self, number: u64) -> String {
        let end = self.uris.len().saturating_sub(HOT);
        if end > self.stored {
            self.uri(number, self.stored, end)
        } else {
            self.uri(number, 0, self.uris.len())
        }
    }

    /// What the next load is of.
    fn target(&self, number: u64) -> Target {
        let tier = match self.scenario {
            Scenario::Ram => Tier::Ram,
            Scenario::Nvme => Tier::Nvme,
            Scenario::Mixed => schedule::kind(number, self.seed, &MIX).unwrap_or(Tier::Ram),
            _ => Tier::Origin,
        };
        let ranks = if self.scenario == Scenario::TensorParallel { RANKS } else { 0 };
        let (uri, forget) = match tier {
            Tier::Ram => (self.hot(number), None),
            Tier::Nvme => {
                let uri = self.stored(number);
                (uri.clone(), Some(EvictRequest::new(uri).tier(KeepTier::Ram)))
            }
            // The user's are few, and would be in RAM the next time, as would packed ones; of our
            // others there are plenty.
            Tier::Origin => {
                let uri = self.cold(number);
                let are_few = self.origin.is_none() || self.scenario == Scenario::Packed;
                let forget = are_few.then(|| EvictRequest::new(&uri));
                (uri, forget)
            }
        };
        Target { uri, forget, ranks }
    }

    /// Makes the next load, which was to begin so many seconds after `epoch`; its budget counts
    /// from there.
    pub(super) async fn next(
        &self,
        epoch: Instant,
        scheduled: f64,
        deadline: Option<Duration>,
    ) -> Sample {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let target = self.target(number);
        let started = epoch.elapsed().as_secs_f64();
        let behind = Duration::try_from_secs_f64(started - scheduled).unwrap_or_default();
        let left = deadline.map(|deadline| deadline.saturating_sub(behind));
        let loaded = Box::pin(self.load(number, &target, left)).await;
        let ended = epoch.elapsed().as_secs_f64();
        if let Some(forget) = target.forget {
            // What cannot be dropped comes from RAM the next time, which its bytes then say.
            drop(self.client(number).evict(forget).await);
        }
        let in_time = deadline.is_none_or(|deadline| ended - scheduled <= deadline.as_secs_f64());
        let mut sample = match loaded {
            Ok(sample) => sample,
            Err(error) => {
                Sample { outcome: Ended::of(&error), reason: error.reason().as_str(), ..blank() }
            }
        };
        if sample.outcome == Ended::Met && !in_time {
            sample.outcome = Ended::Late;
        }
        Sample { scheduled, started, ended, ..sample }
    }

    async fn load(
        &self,
        number: u64,
        target: &Target,
        deadline: Option<Duration>,
    ) -> Result<Sample, ClientError> {
        let mut request = LoadRequest::new(&target.uri);
        if let Some(deadline) = deadline {
            request = request.deadline(deadline.max(Duration::from_millis(1)));
        }
        if target.ranks == 0 {
            return one(self.client(number), request).await;
        }
        let rank = |rank: u32| {
            let shard = shard(rank, target.ranks);
            let request = shard.map_or_else(|| request.clone(), |s| request.clone().shard(s));
            one(self.client(number + u64::from(rank)), request)
        };
        let [a, b, c, d] = [0, 1, 2, 3].map(rank);
        let (a, b, c, d) = tokio::join!(a, b, c, d);
        Ok(together([a?, b?, c?, d?]))
    }
}

/// A rank's slices.
fn shard(rank: u32, ranks: u32) -> Option<Shard> {
    let cut = |shard: Shard, (name, dim): (&str, u32)| shard.along(format!("*{name}"), dim);
    let whole = Shard::new(rank, ranks).ok()?;
    CUTS.into_iter().try_fold(whole, cut).ok()
}

/// Takes every chunk and gives it back.
async fn one(client: &Client, request: LoadRequest) -> Result<Sample, ClientError> {
    let mut load = client.load(request).await?;
    while let Some(chunk) = load.next_chunk().await? {
        chunk.release();
    }
    let report = load.finish().await?;
    Ok(Sample {
        bytes: report.bytes,
        tiers: report.bytes_by_tier,
        stages: stages(&report),
        load_id: report.load_id,
        ..blank()
    })
}

fn blank() -> Sample {
    Sample {
        scheduled: 0.0,
        started: 0.0,
        ended: 0.0,
        outcome: Ended::Met,
        reason: "",
        bytes: 0,
        tiers: BytesByTier::default(),
        stages: Vec::new(),
        load_id: String::new(),
    }
}

/// Loads of ranks as one: all their bytes, and the time of the one that took longest by its report.
fn together(ranks: [Sample; 4]) -> Sample {
    let critical = |sample: &Sample| sample.stages.iter().map(|stage| stage.critical).sum::<f64>();
    let sum = |of: fn(&Sample) -> u64| ranks.iter().map(of).sum();
    let (bytes, tiers) = (
        sum(|sample| sample.bytes),
        BytesByTier {
            ram: sum(|sample| sample.tiers.ram),
            nvme: sum(|sample| sample.tiers.nvme),
            origin: sum(|sample| sample.tiers.origin),
        },
    );
    let slowest = ranks.into_iter().max_by(|a, b| critical(a).total_cmp(&critical(b)));
    Sample { bytes, tiers, ..slowest.unwrap_or_else(blank) }
}

/// A daemon with so much RAM and NVMe; what it needs to reach a user's store it has from this
/// process's environment.
fn daemon(pool: u64, nvme: u64, options: &Options) -> Outcome<DaemonSpec> {
    let spec = node::sized_daemon(format!("{}MiB", pool >> 20), nvme, &[])?;
    let spec = spec.env(options.env.iter().cloned());
    let of_a_store = |name: &str| {
        ["AWS_", "GOOGLE_", "AZURE_", "FOREBAY_"].iter().any(|prefix| name.starts_with(prefix))
            || ["HOME", "STORAGE_EMULATOR_HOST"].contains(&name)
    };
    if options.uris.is_empty() {
        return Ok(spec);
    }
    let told = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
    Ok(spec.env(told.filter(|(name, _)| of_a_store(name))))
}

/// The lines that are in the second and not in the first.
fn changed(default: &str, own: &str) -> Vec<String> {
    let usual: Vec<&str> = default.lines().collect();
    own.lines().filter(|line| !usual.contains(line)).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_together_have_all_bytes_and_the_slowest_ones_time() {
        let stage = |critical| super::super::sample::StageSeconds {
            stage: "body".to_owned(),
            queue: 0.0,
            service: critical,
            critical,
        };
        let rank = |bytes, critical| Sample { bytes, stages: vec![stage(critical)], ..blank() };
        let all = together([rank(1, 0.1), rank(2, 0.4), rank(3, 0.2), rank(4, 0.3)]);
        assert_eq!((all.bytes, all.stages), (10, vec![stage(0.4)]));
    }

    #[test]
    fn settings_that_differ_are_told() {
        let (default, own) =
            ("ram = \"4GiB\"\nevidence = true\n", "ram = \"1GiB\"\nevidence = true");
        assert_eq!(changed(default, own), ["ram = \"1GiB\""]);
    }

    #[test]
    fn every_rank_has_a_slice() {
        assert!((0..RANKS).all(|rank| shard(rank, RANKS).is_some()));
        assert!(shard(RANKS, RANKS).is_none());
    }
}
