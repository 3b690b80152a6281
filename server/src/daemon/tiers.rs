//! What is kept where: the cache directory, the RAM tier's slots, the NVMe tier. What cannot be had
//! without being essential is said and left out.

use std::collections::HashSet;
use std::sync::Arc;

use forebay_io::{EngineSettings, NumaPlan};
use tokio_util::task::TaskTracker;

use super::DaemonError;
use super::place::CacheDir;
use crate::alias::AliasFiles;
use crate::config::Settings;
use crate::cpu::NodeWorkers;
use crate::domain::{Domain, Domains};
use crate::metrics;
use crate::nvme::{Budget, NvmeSettings, NvmeTier, OpenError, RamSide};
use crate::ram::RamTier;
use crate::ram::places::Places;
use crate::ram::pool::{Pool, PoolSpec};
use crate::resolve::Revision;
use crate::verify::record::Records;

/// The cache directory, if it can be had, and the digests that are recorded there or in memory.
pub(super) fn open_cache(
    settings: &Settings,
    degraded: &mut Vec<String>,
) -> Result<(Records, Option<CacheDir>), DaemonError> {
    let in_memory = || Records::in_memory().map_err(DaemonError::system("get random bytes"));
    let Some(dir) = &settings.cache_dir else {
        degraded.push(
            "cache-dir: no home directory, so digests last as long as the daemon and nothing is \
             stored"
                .into(),
        );
        return Ok((in_memory()?, None));
    };
    let opened = CacheDir::take(dir).and_then(|cache| Ok((Records::open(dir)?, cache)));
    match opened {
        Ok((records, cache)) => Ok((records, Some(cache))),
        Err(error) => {
            degraded.push(format!(
                "cache-dir: {}: {error}; digests last as long as the daemon and nothing is stored",
                dir.display()
            ));
            Ok((in_memory()?, None))
        }
    }
}

/// The NVMe tier, if one is wanted and can be had, and the records of aliases: what they stand for
/// is never evicted from it.
pub(super) fn open_nvme(
    settings: &Settings,
    (cache, rams, workers, tasks): (
        Option<&CacheDir>,
        &[Arc<RamTier>],
        &Arc<NodeWorkers>,
        &TaskTracker,
    ),
    degraded: &mut Vec<String>,
) -> (Option<Arc<NvmeTier>>, AliasFiles) {
    let named = AliasFiles::read(cache.map(CacheDir::path), degraded);
    let Some((budget, cache)) = settings.nvme.zip(cache) else { return (None, named) };
    let held = (tasks, named.revisions());
    match open_tier(settings, (budget, cache), (rams, workers), held) {
        Ok(tier) => (Some(tier), named),
        Err(why) => {
            degraded.push(format!("nvme: there is no NVMe tier: {why}"));
            (None, named)
        }
    }
}

fn open_tier(
    settings: &Settings,
    (budget, cache): (Budget, &CacheDir),
    (rams, workers): (&[Arc<RamTier>], &Arc<NodeWorkers>),
    (tasks, held): (&TaskTracker, HashSet<Revision>),
) -> Result<Arc<NvmeTier>, OpenError> {
    let engine = forebay_io::choose(&EngineSettings::default(), settings.nvme_engine)?;
    tracing::info!(engine = engine.reason.kind().as_str(), why = %engine.reason, "io engine");
    let (chunks, slots, workers) = (rams.to_vec(), rams.to_vec(), Arc::clone(workers));
    let ram_side = RamSide {
        chunk: Box::new(move |key| chunks.iter().find_map(|ram| ram.peek(key))),
        free_slots: Box::new(move || {
            // Who waits for a chunk to be stored may wait for a slot of any of them.
            let free = |pool: &Pool| {
                if pool.is_growing() { usize::MAX } else { pool.free_slots() }
            };
            slots.iter().map(|ram| free(ram.pool())).min().unwrap_or(usize::MAX)
        }),
        sit: Box::new(move |node| workers.sit(node)),
    };
    let nvme_settings = NvmeSettings {
        cache_dir: cache.path().to_owned(),
        budget,
        chunk_bytes: settings.chunk_bytes,
        scrub_bytes_per_second: settings.scrub_bytes_per_second,
    };
    let tier = NvmeTier::open(nvme_settings, engine, ram_side, tasks.clone())?;
    let segments = rams.iter().flat_map(|ram| ram.pool().segments());
    segments.for_each(|segment| tier.register(&segment));
    tier.slots(rams.iter().map(|ram| ram.pool().slots()).sum());
    // Before anything can be evicted.
    tier.hold_revisions(held);
    tier.run();
    Ok(tier)
}

/// The RAM tier of each domain: the first segment of each node.
pub(super) fn make_rams(
    settings: &Settings,
    domains: &Domains,
    descriptors: u64,
    plan: &NumaPlan,
) -> Result<Vec<Arc<RamTier>>, DaemonError> {
    // The rest is for connections, clients and files.
    let segments = usize::try_from(descriptors / 2).unwrap_or(usize::MAX);
    let make = |domain: &Arc<Domain>| -> Result<_, DaemonError> {
        let spec = PoolSpec {
            budget_bytes: domain.spec().ram_bytes,
            chunk_bytes: settings.chunk_bytes,
            lock: settings.lock_memory,
            segments_max: (segments / domains.iter().len()).max(1),
        };
        let pool = Pool::of_domain(domain.index(), spec, Places::of(plan))?;
        Ok(Arc::new(RamTier::new(Arc::new(pool), metrics::ram())))
    };
    domains.iter().map(make).collect()
}
