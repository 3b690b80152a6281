//! What each domain has of its own, built over what all domains share.
//!
//! A cell is a domain's stages and its face to the wire: slots and segments, admission, flights, the
//! table of loads, the history, sessions. Origins, digests, workers, the NVMe tier and the names of
//! revisions are shared.

use std::sync::Arc;

use forebay_origin::{AheadResolver, Origins};
use tokio::runtime::Handle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::DaemonError;
use crate::admission::Admission;
use crate::admission::queue::Limits;
use crate::alias::Aliases;
use crate::capacity::meter::LoadMeters;
use crate::config::{self, Settings};
use crate::cpu::{NodeWorkers, Workers};
use crate::decode::Decoder;
use crate::domain::{DEFAULT, Domain, Domains};
use crate::evidence::{Evidence, Lateness};
use crate::fetch::{Fetcher, LocalFiles};
use crate::flight::Flights;
use crate::handoff::Sessions;
use crate::history::History;
use crate::load::Stages;
use crate::load::across::Across;
use crate::loads::Loads;
use crate::metrics::PartMeters;
use crate::numa::Numa;
use crate::nvme::NvmeTier;
use crate::otlp::Exporter;
use crate::pack::Packer;
use crate::ram::RamTier;
use crate::resize::{Bounds, Resizer};
use crate::resolve::{HeaderCache, KnownDigests, Resolver};
use crate::rpc::{Setup, Shared};
use crate::staging::Staging;
use crate::verify::Verifier;
use crate::verify::record::Records;

/// Chunks whose stored form there is memory for, at least...
const STAGED_CHUNKS_MIN: u64 = 4;
/// ... and at most: 256 requests are what an endpoint gets.
const STAGED_CHUNKS_MAX: u64 = 256;

/// What the stages are built over.
pub(super) struct Parts<'a> {
    pub(super) origins: &'a Arc<Origins>,
    pub(super) records: Records,
    /// The tasks of flights, and where they run.
    pub(super) flying: (&'a TaskTracker, &'a Handle),
    /// One per domain.
    pub(super) rams: Vec<Arc<RamTier>>,
    pub(super) nvme: Option<Arc<NvmeTier>>,
    pub(super) numa: Arc<Numa>,
    pub(super) workers: Arc<NodeWorkers>,
}

/// The stages of each domain.
pub(super) fn build_stages(
    settings: &Settings,
    domains: &Domains,
    parts: Parts<'_>,
    evidence: Arc<Evidence>,
) -> Result<Vec<Arc<Stages>>, DaemonError> {
    let Parts { origins, records, flying: (flights, bytes), rams, nvme, numa, workers } = parts;
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    // Plans and headers: short work, and rarely two at a time.
    let cpu = Workers::start("forebay-cpu", cores.div_ceil(2))
        .map_err(DaemonError::system("start the worker threads"))?;
    let cpu = Arc::new(cpu);
    let coded = (Staging::new(staging_bytes(settings)), Arc::clone(&workers));
    let digest_key = records.key();
    let decoder = Arc::new(Decoder::new(Arc::clone(&workers), digest_key));
    let verifier = Arc::new(Verifier::new(Arc::clone(&workers), records));
    let resolver = Arc::new(Resolver::new(
        Arc::clone(origins),
        Arc::clone(&cpu),
        nvme.clone().map(|nvme| Arc::new(nvme) as Arc<dyn HeaderCache>),
        Arc::clone(verifier.records()) as Arc<dyn KnownDigests>,
    ));
    let files = LocalFiles::new(settings.nvme_engine);
    let fetcher = Fetcher::new(Arc::clone(origins), digest_key, PartMeters::new(), coded, files);
    let (fetcher, rates) = (Arc::new(fetcher), Arc::new(LoadMeters::default()));
    let across = Arc::new(Across::new(rams.clone()));
    let stages = |(domain, ram): (&Arc<Domain>, Arc<RamTier>)| {
        let limits = Limits {
            queued_max: domains.part_of(domain, settings.max_queue),
            active_max: domains.part_of(domain, settings.max_loads),
        };
        let stages = Stages {
            domain: Arc::clone(domain),
            admission: Admission::new(limits, settings.no_progress),
            resolver: Arc::clone(&resolver),
            fetcher: Arc::clone(&fetcher),
            decoder: Arc::clone(&decoder),
            verifier: Arc::clone(&verifier),
            ram,
            across: Arc::clone(&across),
            nvme: nvme.clone(),
            numa: Arc::clone(&numa),
            flights: Flights::new(flights.clone(), bytes.clone()),
            loads: Loads::default(),
            history: History::default(),
            cpu: Arc::clone(&cpu),
            workers: Arc::clone(&workers),
            chunk_bytes: settings.chunk_bytes,
            no_progress: settings.no_progress,
            evidence: Arc::clone(&evidence),
            rates: Arc::clone(&rates),
        };
        stages.admission.grow(stages.ram.pool().slots());
        Arc::new(stages)
    };
    Ok(domains.iter().zip(rams).map(stages).collect())
}

/// Memory for what is to be decoded: a quarter of the RAM tier, for as many chunks as are on their
/// way of a fast origin at most, and for a few at least.
fn staging_bytes(settings: &Settings) -> u64 {
    let chunk = settings.chunk_bytes;
    (settings.ram_bytes / 4).clamp(STAGED_CHUNKS_MIN * chunk, STAGED_CHUNKS_MAX * chunk)
}

/// What the faces of all domains have in common.
pub(super) struct Common {
    pub(super) aliases: Arc<Aliases>,
    pub(super) origins: Arc<Origins>,
    pub(super) packer: Arc<Packer>,
    pub(super) exporter: Option<Arc<Exporter>>,
    pub(super) resolver: Arc<AheadResolver>,
    pub(super) degraded: Arc<Vec<String>>,
    pub(super) tasks: TaskTracker,
    pub(super) handoffs: TaskTracker,
    pub(super) stop: CancellationToken,
    pub(super) draining: CancellationToken,
}

/// What the methods of each domain work with.
pub(super) fn share(
    settings: &Settings,
    domains: &Domains,
    stages: &[Arc<Stages>],
    common: &Common,
) -> Result<Vec<Arc<Shared>>, DaemonError> {
    let lateness = Arc::<Lateness>::default();
    let share = |(domain, stages): (&Arc<Domain>, &Arc<Stages>)| -> Result<_, DaemonError> {
        let sessions = Arc::<Sessions>::default();
        let resizer = resizer(settings, stages, &sessions)?;
        let setup = Setup {
            sockets: settings.listen.sockets.clone(),
            allow_uids: domain.spec().uids.clone(),
            cache_dir: settings.cache_dir.clone(),
            nvme: settings.nvme.is_some(),
            lock_memory: settings.lock_memory,
            lateness: Arc::clone(&lateness),
        };
        Ok(Arc::new(Shared {
            stages: Arc::clone(stages),
            aliases: Arc::clone(&common.aliases),
            sessions,
            origins: Arc::clone(&common.origins),
            packer: Arc::clone(&common.packer),
            exporter: common.exporter.clone(),
            resizer: Arc::new(resizer),
            resolver: Arc::clone(&common.resolver),
            tasks: common.tasks.clone(),
            handoffs: common.handoffs.clone(),
            stop: common.stop.clone(),
            draining: common.draining.clone(),
            setup: Arc::new(setup),
            degraded: Arc::clone(&common.degraded),
            started: Instant::now(),
            deadline: settings.deadline,
            deadline_max: settings.deadline_max,
            workloads: settings.workloads.clone(),
        }))
    };
    domains.iter().zip(stages).map(share).collect()
}

/// What gives a domain's RAM tier its size: with others beside it, no more than its quota.
fn resizer(
    settings: &Settings,
    stages: &Arc<Stages>,
    sessions: &Arc<Sessions>,
) -> Result<Resizer, DaemonError> {
    let spec = stages.domain.spec();
    let most = if &*spec.name == DEFAULT { settings.ram_bytes_max } else { spec.ram_bytes };
    let bounds = Bounds { least: config::SLOTS_MIN * settings.chunk_bytes, most };
    Resizer::new(Arc::clone(stages), Arc::clone(sessions), bounds)
        .map_err(DaemonError::system("start the thread that makes segments"))
}
