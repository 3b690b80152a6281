//! The verbs about what the tiers hold: list, pin, unpin, evict, verify.
//!
//! RAM is the caller's domain's own. What the NVMe tier holds belongs to nobody: a domain sees, and
//! can give up, what is its business there.

use std::collections::BTreeMap;
use std::sync::Arc;

use forebay_proto::{Failure, Reason, pb};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tonic::Status;

use super::{client_gone, convert};
use crate::load::Stages;
use crate::metrics;
use crate::nvme::{Checked, NvmeTier};
use crate::plan::ChunkKey;
use crate::ram::{RamTier, is_at_or_under};
use crate::resolve::Revision;
use crate::verify::Verifier;

/// Whether what is stored of a URI is at or under `uri`, and the domain's business.
fn within<'a>(stages: &'a Stages, uri: &'a str) -> impl Fn(&str) -> bool + 'a {
    move |known| (uri.is_empty() || is_at_or_under(known, uri)) && stages.domain.sees(known)
}

/// What is cached at or under `uri`; everything if it is empty.
pub(super) async fn list(stages: &Stages, uri: &str) -> Vec<pb::CachedCheckpoint> {
    known(stages).await;
    let ram = stages.ram.list(uri, Instant::now());
    let nvme = stages.nvme.as_ref().map(|nvme| nvme.list(within(stages, uri)));
    let nvme = nvme.unwrap_or_default();
    convert::checkpoints(ram, nvme)
}

/// Pins what is stored at or under `uri`.
pub(super) async fn pin(stages: &Stages, uri: &str) -> Result<pb::PinResponse, Failure> {
    let nvme = tier(stages)?;
    nvme.known().await;
    let pinned = nvme.pin(within(stages, uri), true).await;
    let listed = nvme.list(within(stages, uri));
    let listed: Vec<_> = listed.iter().filter(|stored| pinned.contains(&stored.revision)).collect();
    if listed.is_empty() {
        return Err(not_stored(uri));
    }
    Ok(pb::PinResponse {
        checkpoints: listed.len() as u64,
        nvme_bytes: listed.iter().map(|stored| stored.stored_bytes).sum(),
        missing_bytes: listed
            .iter()
            .map(|stored| stored.bytes.saturating_sub(stored.stored_bytes))
            .sum(),
    })
}

/// Lets what is pinned at or under `uri` go again.
pub(super) async fn unpin(stages: &Stages, uri: &str) -> Result<pb::UnpinResponse, Failure> {
    let nvme = tier(stages)?;
    nvme.known().await;
    let unpinned: Vec<Revision> = nvme.pin(within(stages, uri), false).await;
    if unpinned.is_empty() && nvme.list(within(stages, uri)).is_empty() {
        return Err(not_stored(uri));
    }
    Ok(pb::UnpinResponse { checkpoints: unpinned.len() as u64 })
}

/// Gives up what lies at or under a URI, in one tier or in all.
pub(super) async fn evict(
    stages: &Stages,
    uri: &str,
    tier_asked: i32,
) -> Result<pb::EvictResponse, Failure> {
    let (ram, nvme) = match pb::Tier::try_from(tier_asked) {
        Ok(pb::Tier::Unspecified) => (true, stages.nvme.as_ref()),
        Ok(pb::Tier::Ram) => (true, None),
        Ok(pb::Tier::Nvme) => (false, Some(tier(stages)?)),
        _ => return Err(Failure::new(Reason::BadRequest, "nothing can be evicted there")),
    };
    // One checkpoint in both tiers is one.
    let mut dropped: Vec<(String, String)> = Vec::new();
    let before = list(stages, uri).await.into_iter();
    let mut response = pb::EvictResponse::default();
    for checkpoint in before {
        let cached = checkpoint.cached.unwrap_or_default();
        let of_nvme = nvme.is_some() && cached.nvme > 0 && !checkpoint.pinned;
        if (ram && cached.ram > 0) || of_nvme {
            dropped.push((checkpoint.uri, checkpoint.revision));
        }
    }
    if ram {
        let evicted = stages.ram.evict_uri(uri);
        response.freed_bytes = evicted.freed_bytes;
        response.leased_bytes = evicted.leased_bytes;
    }
    if let Some(nvme) = nvme {
        let evicted = nvme.evict(within(stages, uri)).await;
        response.nvme_freed_bytes = evicted.freed_bytes;
        response.pinned_checkpoints = evicted.pinned;
    }
    response.checkpoints = dropped.len() as u64;
    Ok(response)
}

/// Reads what is cached at or under a URI again and checks it: RAM first, then NVMe.
pub(super) async fn verify(
    stages: &Arc<Stages>,
    uri: &str,
    out: &mpsc::Sender<Result<pb::VerifyResponse, Status>>,
) -> Result<(), Failure> {
    use pb::verify_response::Event;
    let checkpoints = list(stages, uri).await;
    if checkpoints.is_empty() {
        return Err(not_stored(uri));
    }
    let under = within(stages, uri);
    let stored_bytes = stages.nvme.as_ref().map_or(0, |nvme| nvme.stored_bytes(&under));
    let chunks = stages.ram.keys_under(uri);
    let ram_bytes: u64 = chunks.values().sum();
    let total_bytes = ram_bytes + stored_bytes;
    // Progress is a courtesy: a reader that is behind misses steps, not the summary.
    let tell = |checked_bytes: u64| {
        let progress = pb::VerifyProgress { checked_bytes, total_bytes };
        drop(out.try_send(Ok(pb::VerifyResponse { event: Some(Event::Progress(progress)) })));
    };
    let ram = check_ram((&stages.ram, &stages.verifier), &chunks, tell).await?;
    let nvme = match &stages.nvme {
        Some(nvme) => nvme.check(&under, |checked_bytes| tell(ram_bytes + checked_bytes)).await,
        None => Checked::default(),
    };
    let tiers = |ram, nvme| Some(pb::BytesByTier { ram, nvme, origin: 0 });
    let summary = pb::VerifySummary {
        checkpoints: checkpoints.len() as u64,
        checked: tiers(ram.right + ram.bad, nvme.right + nvme.bad),
        bad: tiers(ram.bad, nvme.bad),
        unreadable: tiers(ram.unreadable, nvme.unreadable),
    };
    let last = pb::VerifyResponse { event: Some(Event::Summary(summary)) };
    out.send(Ok(last)).await.map_err(|_closed| client_gone())
}

/// Reads these chunks in RAM again. Only the one that is being checked is kept from being evicted:
/// loads need the slots. One that is gone by then counts as nothing.
async fn check_ram(
    (ram, verifier): (&RamTier, &Verifier),
    chunks: &BTreeMap<ChunkKey, u64>,
    tell: impl Fn(u64),
) -> Result<Checked, Failure> {
    let mut checked = Checked::default();
    let mut passed = 0;
    for (key, bytes) in chunks {
        passed += bytes;
        let Some(chunk) = ram.peek(key) else { continue };
        match verifier.verify_cached(chunk).await? {
            Some(true) => checked.right += bytes,
            Some(false) => {
                metrics::digest_mismatch();
                tracing::error!(?key, "a chunk in RAM has changed and is given up");
                ram.discard(key);
                checked.bad += bytes;
            }
            None => checked.unreadable += bytes,
        }
        tell(passed);
    }
    Ok(checked)
}

async fn known(stages: &Stages) {
    if let Some(nvme) = &stages.nvme {
        nvme.known().await;
    }
}

fn tier(stages: &Stages) -> Result<&Arc<NvmeTier>, Failure> {
    let off = || Failure::new(Reason::NvmeOff, "this daemon has no NVMe tier");
    stages.nvme.as_ref().ok_or_else(off)
}

fn not_stored(uri: &str) -> Failure {
    Failure::new(Reason::NotCached, format!("nothing at or under {uri} is cached"))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::sync::oneshot;

    use super::*;
    use crate::cpu::NodeWorkers;
    use crate::plan::ChunkSpec;
    use crate::ram::places::Places;
    use crate::ram::pool::{Pool, PoolSpec};
    use crate::verify::VerifiedChunk;
    use crate::verify::record::Records;

    const CHUNK: u64 = 64 << 10;

    /// A load that needs slots gets them while RAM is checked; what was evicted for it counts as
    /// nothing.
    #[tokio::test(start_paused = true)]
    async fn a_check_keeps_no_slot_but_the_one_it_reads() {
        let spec =
            PoolSpec { budget_bytes: 4 * CHUNK, chunk_bytes: CHUNK, lock: false, segments_max: 1 };
        let pool = Arc::new(Pool::create(spec, Places::one()).unwrap());
        let counters = std::array::from_fn(|_| ::metrics::Counter::noop());
        let ram = Arc::new(RamTier::new(pool, counters));
        let workers = NodeWorkers::for_tests();
        let verifier = Verifier::new(Arc::clone(&workers), Records::in_memory().unwrap());
        let manifest = crate::resolve::manifest_for_tests(&[("m", 4 * CHUNK)], &[]);
        let used = ram.use_revision(&manifest);
        for n in 0..4 {
            let key = ChunkKey([n; 32]);
            let spec = ChunkSpec { index: n.into(), key, extents: Vec::new(), bytes: CHUNK };
            let verified = VerifiedChunk::for_tests(ram.claim(None).await.unwrap(), Arc::new(spec));
            ram.insert(verified, &manifest);
        }
        let chunks = ram.keys_under(manifest.uri());
        assert_eq!(chunks.len(), 4);
        // The first one is being read as long as the worker is busy.
        let (go_on, busy) = oneshot::channel::<()>();
        let working = workers.run(None, move || drop(busy.blocking_recv()));
        let checking = check_ram((&ram, &verifier), &chunks, |_| {});
        let loading = async {
            tokio::task::yield_now().await;
            let soon = || tokio::time::timeout(Duration::from_secs(3600), ram.claim(None));
            let three = [soon().await, soon().await, soon().await];
            go_on.send(()).unwrap();
            three
        };
        let (worked, three, checked) = tokio::join!(working, loading, checking);
        worked.unwrap();
        assert!(three.iter().all(|slot| matches!(slot, Ok(Ok(_)))));
        // Nothing is recorded of it.
        let read = Checked { unreadable: CHUNK, ..Checked::default() };
        assert_eq!(checked.unwrap(), read);
        drop(used);
    }
}
