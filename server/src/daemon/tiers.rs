//! What is kept where: the cache directory, the RAM tier's slots, the NVMe tier. What cannot be had
//! without being essential is said and left out.

use std::sync::Arc;

use forebay_io::{EngineSettings, NumaPlan};
use tokio_util::task::TaskTracker;

use super::DaemonError;
use super::place::CacheDir;
use crate::config::Settings;
use crate::cpu::NodeWorkers;
use crate::nvme::{Budget, NvmeSettings, NvmeTier, OpenError, RamSide};
use crate::ram::RamTier;
use crate::ram::places::Places;
use crate::ram::pool::{Pool, PoolSpec};
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

/// The NVMe tier, if one is wanted and can be had.
pub(super) fn open_nvme(
    settings: &Settings,
    (cache, ram, workers, tasks): (
        Option<&CacheDir>,
        &Arc<RamTier>,
        &Arc<NodeWorkers>,
        &TaskTracker,
    ),
    degraded: &mut Vec<String>,
) -> Option<Arc<NvmeTier>> {
    let (budget, cache) = settings.nvme.zip(cache)?;
    match open_tier(settings, (budget, cache), (ram, workers), tasks) {
        Ok(tier) => Some(tier),
        Err(why) => {
            degraded.push(format!("nvme: there is no NVMe tier: {why}"));
            None
        }
    }
}

fn open_tier(
    settings: &Settings,
    (budget, cache): (Budget, &CacheDir),
    (ram, workers): (&Arc<RamTier>, &Arc<NodeWorkers>),
    tasks: &TaskTracker,
) -> Result<Arc<NvmeTier>, OpenError> {
    let engine = forebay_io::choose(&EngineSettings::default(), settings.nvme_engine)?;
    tracing::info!(engine = engine.reason.kind().as_str(), why = %engine.reason, "io engine");
    let (chunks, slots, workers) = (Arc::clone(ram), Arc::clone(ram), Arc::clone(workers));
    let ram_side = RamSide {
        chunk: Box::new(move |key| chunks.peek(key)),
        free_slots: Box::new(move || {
            let pool = slots.pool();
            if pool.is_growing() { usize::MAX } else { pool.free_slots() }
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
    ram.pool().segments().iter().for_each(|segment| tier.register(segment));
    tier.slots(ram.pool().slots());
    tier.run();
    Ok(tier)
}

/// The RAM tier's slots: the first segment of each node.
pub(super) fn make_pool(
    settings: &Settings,
    descriptors: u64,
    plan: &NumaPlan,
) -> Result<Arc<Pool>, DaemonError> {
    let spec = PoolSpec {
        budget_bytes: settings.ram_bytes,
        chunk_bytes: settings.chunk_bytes,
        lock: settings.lock_memory,
        // The rest is for connections, clients and files.
        segments_max: usize::try_from(descriptors / 2).unwrap_or(usize::MAX),
    };
    Ok(Arc::new(Pool::create(spec, Places::of(plan))?))
}
