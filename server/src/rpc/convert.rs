//! From the daemon's own types to those of the wire, and the few that come in.

use std::collections::BTreeMap;
use std::time::Duration;

use forebay_proto::model::is_load_id;
use forebay_proto::{BadShard, Failure, Reason, Shard, StageSeconds, pb};
use tokio::time::Instant;

use crate::admission::Lane;
use crate::load::conversation::{ClientEvent, CopyRan, Granted, Opened};
use crate::load::{Expected, Progress};
use crate::metrics::as_f64;
use crate::nvme::StoredCheckpoint;
use crate::ram::CachedCheckpoint;
use crate::report::{DeviceKind, DeviceUse, Report, Tier, TierBytes};
use crate::resolve::{Manifest, Object, Revision, Tensor};
use crate::timeline::{Kind, Stage};
use crate::trace::TraceContext;

/// Objects or tensors of one page: some hundreds of kilobytes at most, as keys have at most 1 KiB
/// and names at most 4 KiB.
const PAGE_ITEMS: usize = 200;

/// Bytes of a device's name, and of the reason why copies to it are staged.
const DEVICE_NAME_MAX: usize = 256;
const DEVICE_WHY_MAX: usize = 1024;

/// Globs of one filter.
const GLOBS_MAX: usize = 1000;

/// Checks a client-chosen load id; an empty one is replaced.
pub(super) fn load_id(text: String) -> Result<String, Failure> {
    if text.is_empty() {
        let mut bytes = [0; 8];
        getrandom::fill(&mut bytes)
            .map_err(|error| Failure::new(Reason::Internal, format!("no random bytes: {error}")))?;
        return Ok(format!("{:016x}", u64::from_le_bytes(bytes)));
    }
    if is_load_id(&text) {
        Ok(text)
    } else {
        Err(Failure::new(Reason::BadRequest, "a load id is 1 to 64 of A-Z a-z 0-9 . _ -"))
    }
}

/// The lane of a request, or the default of its method.
pub(super) fn lane(lane: i32, default: Lane) -> Result<Lane, Failure> {
    match pb::Lane::try_from(lane) {
        Ok(pb::Lane::Unspecified) => Ok(default),
        Ok(pb::Lane::Interactive) => Ok(Lane::Interactive),
        Ok(pb::Lane::Prefetch) => Ok(Lane::Prefetch),
        Err(_unknown) => Err(Failure::new(Reason::BadRequest, format!("there is no lane {lane}"))),
    }
}

/// What the client wants the bytes to be, and when.
pub(super) fn expected(policy: i32, sha256: Vec<pb::ExpectedDigest>) -> Result<Expected, Failure> {
    let bad = |message: String| Failure::new(Reason::BadRequest, message);
    let strict = match pb::VerifyPolicy::try_from(policy) {
        Ok(pb::VerifyPolicy::Unspecified | pb::VerifyPolicy::Stream) => false,
        Ok(pb::VerifyPolicy::Strict) => true,
        Err(_unknown) => return Err(bad(format!("{policy} is no policy of verification"))),
    };
    let digest = |given: pb::ExpectedDigest| {
        let wrong = |_| bad(format!("the SHA-256 of {:?} has not 32 bytes", given.key));
        let digest = <[u8; 32]>::try_from(&given.sha256[..]).map_err(wrong)?;
        Ok((given.key, digest))
    };
    Ok(Expected { strict, sha256: sha256.into_iter().map(digest).collect::<Result<_, Failure>>()? })
}

/// Checks a list of globs.
pub(super) fn globs(globs: Vec<String>) -> Result<Vec<String>, Failure> {
    if globs.len() > GLOBS_MAX || globs.iter().any(|glob| glob.len() > 4096) {
        return Err(Failure::new(Reason::BadRequest, "at most 1000 globs of 4096 bytes each"));
    }
    Ok(globs)
}

/// Which slice of the tensors a client wants.
pub(super) fn shard(shard: Option<pb::Shard>) -> Result<Option<Shard>, Failure> {
    let shard = shard.map(|shard| {
        globs(shard.rules.iter().map(|rule| rule.tensors.clone()).collect())?;
        let bad = |error: BadShard| Failure::new(Reason::BadRequest, error.to_string());
        Shard::receive(shard).map_err(bad)
    });
    shard.transpose()
}

/// What a client copies to.
pub(super) fn device(device: Option<pb::DeviceUse>) -> Result<Option<DeviceUse>, Failure> {
    const PATHS: &[&str] = &["registered_read_only", "registered", "staged", "cpu"];
    let Some(pb::DeviceUse { kind, name, path, why }) = device else { return Ok(None) };
    let bad = |what: &str| Failure::new(Reason::BadRequest, format!("the device {what}"));
    let kind = match kind.as_str() {
        "host" => DeviceKind::Host,
        "fake" => DeviceKind::Fake,
        "cuda" => DeviceKind::Cuda,
        _ => return Err(bad("is none of host, fake and cuda")),
    };
    if !PATHS.contains(&path.as_str()) {
        return Err(bad("has a path that is none of the known ones"));
    }
    if name.len() > DEVICE_NAME_MAX || why.len() > DEVICE_WHY_MAX {
        return Err(bad("has a longer name or reason than 256 and 1024 bytes"));
    }
    Ok(Some(DeviceUse { kind, name, path, why }))
}

/// What a client says in the middle of a load.
pub(super) fn client_event(event: pb::load_request::Event) -> Result<ClientEvent, Failure> {
    let received = Instant::now();
    match event {
        pb::load_request::Event::Open(_) => {
            Err(Failure::new(Reason::BadRequest, "the load is open already"))
        }
        pb::load_request::Event::Release(release) => Ok(ClientEvent::Release(release.lease_ids)),
        pb::load_request::Event::Copies(copies) => {
            let span = |span: pb::CopySpan| {
                let end = Duration::from_nanos(span.end_nanos.max(span.start_nanos));
                CopyRan { start: Duration::from_nanos(span.start_nanos), end, bytes: span.bytes }
            };
            // Clients of before did not say when they sent it.
            let sent = Some(copies.sent_nanos).filter(|nanos| *nanos > 0);
            let opened = sent.and_then(|sent| received.checked_sub(Duration::from_nanos(sent)));
            Ok(ClientEvent::Copies(copies.spans.into_iter().map(span).collect(), opened))
        }
    }
}

pub(super) fn opened(opened: &Opened, session: &[u8], trace: TraceContext) -> pb::LoadOpened {
    let manifest = opened.plan.manifest();
    pb::LoadOpened {
        load_id: opened.load_id.clone(),
        session: session.to_vec().into(),
        uri: manifest.uri().to_owned(),
        revision: manifest.revision().to_string(),
        object_count: manifest.objects().len() as u64,
        tensor_count: manifest.tensors().len() as u64,
        chunk_count: opened.plan.chunks().len() as u64,
        granted_bytes: opened.plan.bytes(),
        checkpoint_bytes: manifest.bytes(),
        chunk_bytes: opened.chunk_bytes,
        window_bytes: opened.window_bytes,
        trace_id: trace.trace_id.to_string(),
    }
}

/// What is cached of one object.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Cached {
    pub(super) ram: u64,
    pub(super) nvme: u64,
}

/// A manifest in pages; at least one, the last one marked. `cached` is per object, or empty.
pub(super) fn pages<'a>(
    manifest: &'a Manifest,
    cached: &'a [Cached],
) -> impl Iterator<Item = pb::ManifestPage> + 'a {
    let objects = manifest.objects().chunks(PAGE_ITEMS).enumerate().map(move |(page, objects)| {
        let first = page * PAGE_ITEMS;
        let convert = |(n, o)| object(o, cached.get(first + n).copied().unwrap_or_default());
        let objects = objects.iter().enumerate().map(convert).collect();
        pb::ManifestPage { objects, tensors: Vec::new(), last: false }
    });
    let tensors = manifest.tensors().chunks(PAGE_ITEMS).map(|tensors| pb::ManifestPage {
        objects: Vec::new(),
        tensors: tensors.iter().map(tensor).collect(),
        last: false,
    });
    let end = pb::ManifestPage { objects: Vec::new(), tensors: Vec::new(), last: true };
    objects.chain(tensors).chain(std::iter::once(end))
}

fn object(object: &Object, cached: Cached) -> pb::Object {
    pb::Object {
        key: object.name.clone(),
        bytes: object.bytes,
        etag: object.pin.etag.clone().unwrap_or_default(),
        version: object.pin.version.clone().unwrap_or_default(),
        cached_ram_bytes: cached.ram,
        cached_nvme_bytes: cached.nvme,
    }
}

fn tensor(tensor: &Tensor) -> pb::Tensor {
    pb::Tensor {
        name: tensor.entry.name.clone(),
        dtype: tensor.entry.dtype.clone(),
        shape: tensor.entry.shape.clone(),
        object_index: tensor.object as u64,
        offset: tensor.entry.offset,
        bytes: tensor.entry.bytes,
    }
}

pub(super) fn grant(granted: &Granted) -> pb::Grant {
    let tier = match granted.tier {
        Tier::Ram => pb::Tier::Ram,
        Tier::Nvme => pb::Tier::Nvme,
        Tier::Origin => pb::Tier::Origin,
    };
    let extents = granted.spec.extents.iter().map(|extent| pb::Extent {
        object_index: extent.object as u64,
        object_offset: extent.object_offset,
        slot_offset: extent.slot_offset,
        bytes: extent.bytes,
    });
    pb::Grant {
        lease_id: granted.slot.lease_id,
        chunk_index: granted.spec.index as u64,
        segment_id: granted.slot.segment,
        slot: granted.slot.slot,
        generation: granted.slot.generation,
        tier: tier.into(),
        extents: extents.collect(),
    }
}

pub(super) fn tiers(tiers: TierBytes) -> pb::BytesByTier {
    pb::BytesByTier { ram: tiers.ram, nvme: tiers.nvme, origin: tiers.origin }
}

fn stage(stage: &StageSeconds) -> pb::StageTime {
    pb::StageTime {
        stage: stage.stage.clone(),
        queue_seconds: stage.queue.as_secs_f64(),
        service_seconds: stage.service.as_secs_f64(),
    }
}

pub(super) fn report(report: &Report, trace: Option<TraceContext>) -> pb::LoadReport {
    let tally = &report.tally;
    pb::LoadReport {
        load_id: report.load_id.clone(),
        uri: report.uri.clone(),
        revision: report.revision.clone(),
        bytes: tally.tiers.total(),
        wall_seconds: report.wall.as_secs_f64(),
        time_to_first_chunk_seconds: report.first_chunk.as_secs_f64(),
        bytes_by_tier: Some(tiers(tally.tiers)),
        origin_bytes: tally.cost.bytes,
        attempts: tally.cost.attempts,
        retries: tally.cost.retries,
        hedges: tally.cost.hedges,
        stages: report.stages.iter().map(stage).collect(),
        critical_path: path(report),
        unattributed_seconds: report.unattributed.as_secs_f64(),
        device_idle: report
            .idle
            .sums()
            .map(|(cause, time)| pb::IdleTime {
                cause: cause.as_str().to_owned(),
                seconds: time.as_secs_f64(),
            })
            .collect(),
        peak_window_bytes: tally.peak_window_bytes(),
        lane: report.lane.to_owned(),
        throttles: tally.cost.throttles,
        hedge_wins: tally.cost.hedge_wins,
        wasted_bytes: tally.cost.wasted_bytes,
        origin_queue_seconds: tally.cost.queued.as_secs_f64(),
        backoff_seconds: tally.cost.backoff.as_secs_f64(),
        verified: Some(pb::VerifiedObjects {
            manifest: tally.verified.manifest,
            object_digest: tally.verified.object_digest,
            first_fetch: tally.verified.first_fetch,
        }),
        placement: report.placed.as_ref().map(|placed| pb::PlacementReport {
            asked: placed.asked.clone(),
            node: placed.node.map(|node| node.0),
            near_bytes: tally.near.near,
            far_bytes: tally.near.far,
            degraded: placed.degraded.clone().unwrap_or_default(),
        }),
        device: report.device.as_ref().map(|device| pb::DeviceUse {
            kind: device.kind.as_str().to_owned(),
            name: device.name.clone(),
            path: device.path.clone(),
            why: device.why.clone(),
        }),
        trace_id: trace.map(|trace| trace.trace_id.to_string()).unwrap_or_default(),
        alias: report.alias.clone(),
    }
}

/// The critical path of a load.
pub(super) fn path(report: &Report) -> Vec<pb::PathStep> {
    let step = |(stage, kind, time): &(Stage, Kind, Duration)| pb::PathStep {
        stage: stage.as_str().to_owned(),
        kind: kind.as_str().to_owned(),
        seconds: time.as_secs_f64(),
    };
    report.critical_path.iter().map(step).collect()
}

pub(super) fn progress(progress: &Progress) -> pb::PrefetchProgress {
    pb::PrefetchProgress {
        uri: progress.manifest.uri().to_owned(),
        revision: progress.manifest.revision().to_string(),
        done_bytes: progress.done_bytes,
        total_bytes: progress.manifest.bytes(),
        bytes_by_tier: Some(tiers(progress.tally.tiers)),
    }
}

/// What the tiers hold, by checkpoint: each once, whichever tiers have something of it.
pub(super) fn checkpoints(
    ram: Vec<CachedCheckpoint>,
    nvme: Vec<StoredCheckpoint>,
) -> Vec<pb::CachedCheckpoint> {
    let mut checkpoints: BTreeMap<(String, Revision), pb::CachedCheckpoint> = BTreeMap::new();
    for cached in ram {
        let (revision, idle) = (cached.revision, cached.idle.as_secs_f64());
        let checkpoint = pb::CachedCheckpoint {
            uri: cached.uri.clone(),
            revision: revision.to_string(),
            bytes: cached.bytes,
            object_count: cached.objects as u64,
            cached: Some(in_tiers(cached.cached_bytes, 0, cached.bytes)),
            active_loads: cached.active as u64,
            idle_seconds: if cached.active > 0 { 0.0 } else { idle },
            pinned: false,
        };
        checkpoints.insert((cached.uri, revision), checkpoint);
    }
    for stored in nvme {
        let key = (stored.uri.clone(), stored.revision);
        let checkpoint = checkpoints.entry(key).or_insert_with(|| pb::CachedCheckpoint {
            uri: stored.uri,
            revision: stored.revision.to_string(),
            bytes: stored.bytes,
            object_count: stored.objects as u64,
            cached: None,
            // Loads use the RAM tier as well.
            active_loads: 0,
            idle_seconds: as_f64(stored.idle_seconds),
            pinned: false,
        });
        checkpoint.pinned = stored.pinned;
        let ram = checkpoint.cached.map_or(0, |cached| cached.ram);
        checkpoint.cached = Some(in_tiers(ram, stored.stored_bytes, stored.bytes));
    }
    let shown = |checkpoint: &pb::CachedCheckpoint| {
        checkpoint.active_loads > 0
            || checkpoint.pinned
            || checkpoint.cached.is_some_and(|cached| cached.ram + cached.nvme > 0)
    };
    checkpoints.into_values().filter(shown).collect()
}

/// What is cached of a whole. What is in no tier is at the origin: what is in both counts once, as
/// far as sums can tell.
pub(super) fn in_tiers(ram: u64, nvme: u64, whole: u64) -> pb::BytesByTier {
    pb::BytesByTier { ram, nvme, origin: whole.saturating_sub(ram.max(nvme)) }
}

/// A share in per cent, for logs.
pub(super) fn percent(part: u64, whole: u64) -> f64 {
    if whole == 0 { 100.0 } else { as_f64(part) / as_f64(whole) * 100.0 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resolve::manifest_for_tests;

    #[test]
    fn load_ids_are_checked_or_made() {
        assert_eq!(load_id("pod-1_a.b".into()).unwrap(), "pod-1_a.b");
        assert_eq!(load_id(String::new()).unwrap().len(), 16);
        assert_ne!(load_id(String::new()).unwrap(), load_id(String::new()).unwrap());
        for text in ["a b", "ü", "a/b", &"x".repeat(65)] {
            assert!(load_id(text.to_owned()).is_err(), "{text}");
        }
    }

    #[test]
    fn pages_hold_everything_once_and_end() {
        let names: Vec<String> = (0..450).map(|n| format!("o{n:04}")).collect();
        let objects: Vec<_> = names.iter().map(|name| (name.as_str(), 1)).collect();
        let manifest = manifest_for_tests(&objects, &[("t", 0, 0, 1)]);
        let cached: Vec<Cached> = (0..450).map(|n| Cached { ram: n, nvme: 2 * n }).collect();
        let pages: Vec<_> = pages(&manifest, &cached).collect();
        assert_eq!(pages.len(), 3 + 1 + 1);
        assert!(pages.iter().rev().skip(1).all(|page| !page.last) && pages.last().unwrap().last);
        let objects: Vec<_> = pages.iter().flat_map(|page| &page.objects).collect();
        assert_eq!(objects.len(), 450);
        assert_eq!(objects[449].cached_ram_bytes, 449);
        assert_eq!(objects[449].cached_nvme_bytes, 898);
        let empty = manifest_for_tests(&[], &[]);
        assert_eq!(super::pages(&empty, &[]).count(), 1);
    }
}
