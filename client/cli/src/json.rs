//! Results as objects, with the names of the interface.

use forebay_client::Stat;
use forebay_client::model::{
    AddressStatus, Alias, AliasRevision, BytesByTier, CachedCheckpoint, DaemonStatus, DomainStatus,
    EndpointStatus, Evicted, NameStatus, NumaStatus, NvmeStatus, ObjectEntry, PackEvent, Pinned,
    PrefetchProgress, Report, ResizeEvent, Revision, SetAliasEvent, TensorEntry, Unpinned,
    VerifyEvent,
};
use serde_json::{Value, json};

use crate::digest::Digest;
use crate::files::Written;

/// A load's report, with digests if they were asked for.
pub(crate) fn report(report: &Report, digests: Option<&[Digest]>) -> Value {
    let mut object = forebay_client::json::report(report);
    if let Some(digests) = digests {
        object["digests"] = array(digests, |digest| json!(digest));
    }
    object
}

/// What `get` did.
pub(crate) fn get(done: &Report, dir: &str, files: &[Written]) -> Value {
    let mut object = report(done, None);
    object["dir"] = json!(dir);
    object["files"] = array(files, |file| json!(file));
    object
}

/// One line of a running prefetch.
pub(crate) fn progress(progress: &PrefetchProgress) -> Value {
    json!({
        "event": "progress",
        "uri": progress.uri,
        "revision": progress.revision.as_ref().map(|revision| revision.as_str()),
        "done_bytes": progress.done_bytes,
        "total_bytes": progress.total_bytes,
        "bytes_by_tier": by_tier(progress.bytes_by_tier),
    })
}

/// The last line of a prefetch.
pub(crate) fn prefetched(done: &Report) -> Value {
    let mut object = report(done, None);
    object["event"] = json!("report");
    object
}

/// What a URI resolves to.
pub(crate) fn stat(stat: &Stat) -> Value {
    let summary = &stat.summary;
    json!({
        "uri": summary.uri,
        "revision": summary.revision.as_str(),
        "object_count": summary.object_count,
        "tensor_count": summary.tensor_count,
        "bytes": summary.bytes,
        "cached": by_tier(summary.cached),
        "objects": array(stat.manifest.objects(), object),
        "tensors": array(stat.manifest.tensors(), |entry| {
            let key = stat.manifest.object(entry.object).map(|object| object.key.as_str());
            tensor(entry, key)
        }),
    })
}

fn object(object: &ObjectEntry) -> Value {
    json!({
        "key": object.key,
        "bytes": object.bytes,
        "etag": object.etag,
        "version": object.version,
        "cached_ram_bytes": object.cached_ram_bytes,
        "cached_nvme_bytes": object.cached_nvme_bytes,
    })
}

fn tensor(tensor: &TensorEntry, key: Option<&str>) -> Value {
    json!({
        "name": tensor.name,
        "dtype": tensor.dtype,
        "shape": tensor.shape,
        "object": key,
        "offset": tensor.range.start,
        "bytes": tensor.bytes(),
    })
}

/// What is cached.
pub(crate) fn list(checkpoints: &[CachedCheckpoint]) -> Value {
    json!({ "checkpoints": array(checkpoints, |checkpoint| json!({
        "uri": checkpoint.uri,
        "revision": checkpoint.revision.as_str(),
        "bytes": checkpoint.bytes,
        "object_count": checkpoint.object_count,
        "cached": by_tier(checkpoint.cached),
        "active_loads": checkpoint.active_loads,
        "idle_seconds": checkpoint.idle.as_secs_f64(),
        "pinned": checkpoint.pinned,
    })) })
}

/// What is pinned after a pin.
pub(crate) fn pinned(uri: &str, pinned: Pinned) -> Value {
    json!({
        "uri": uri,
        "checkpoints": pinned.checkpoints,
        "nvme_bytes": pinned.nvme_bytes,
        "missing_bytes": pinned.missing_bytes,
    })
}

/// What an unpin did.
pub(crate) fn unpinned(uri: &str, unpinned: Unpinned) -> Value {
    json!({ "uri": uri, "checkpoints": unpinned.checkpoints })
}

/// One line of a verification; the last one is the summary.
pub(crate) fn verification(uri: &str, event: &VerifyEvent) -> Value {
    match event {
        VerifyEvent::Progress(progress) => json!({
            "event": "progress",
            "uri": uri,
            "checked_bytes": progress.checked_bytes,
            "total_bytes": progress.total_bytes,
        }),
        VerifyEvent::Summary(summary) => json!({
            "event": "summary",
            "uri": uri,
            "checkpoints": summary.checkpoints,
            "checked": by_tier(summary.checked),
            "bad": by_tier(summary.bad),
            "unreadable": by_tier(summary.unreadable),
        }),
    }
}

/// One line of a pack; the last one is the report.
pub(crate) fn packing(event: &PackEvent) -> Value {
    match event {
        PackEvent::Progress(progress) => json!({
            "event": "progress",
            "source": progress.source,
            "destination": progress.destination,
            "done_bytes": progress.done_bytes,
            "total_bytes": progress.total_bytes,
        }),
        PackEvent::Report(report) => json!({
            "event": "report",
            "source": report.source,
            "destination": report.destination,
            "objects": report.objects,
            "bytes": report.bytes,
            "packed_bytes": report.packed_bytes,
            "manifest_bytes": report.manifest_bytes,
            "written_objects": report.written_objects,
            "written_bytes": report.written_bytes,
            "skipped_objects": report.skipped_objects,
            "skipped_bytes": report.skipped_bytes,
            "raw_objects": report.raw_objects,
            "removed_objects": report.removed_objects,
            "wall_seconds": report.wall.as_secs_f64(),
        }),
    }
}

/// One line of a resize; the last one is the report.
pub(crate) fn resizing(event: &ResizeEvent) -> Value {
    match event {
        ResizeEvent::Progress(progress) => json!({
            "event": "progress",
            "budget_bytes": progress.budget_bytes,
            "held_bytes": progress.held_bytes,
            "retiring_bytes": progress.retiring_bytes,
            "busy_bytes": progress.busy_bytes,
            "owed_bytes": progress.owed_bytes,
            "clients": progress.clients,
            "client_bytes": progress.client_bytes,
        }),
        ResizeEvent::Report(report) => json!({
            "event": "report",
            "budget_bytes": report.budget_bytes,
            "held_bytes": report.held_bytes,
            "before_bytes": report.before_bytes,
            "untold_clients": report.untold_clients,
            "untold_bytes": report.untold_bytes,
            "wall_seconds": report.wall.as_secs_f64(),
        }),
    }
}

/// What an eviction did.
pub(crate) fn evicted(uri: &str, evicted: Evicted) -> Value {
    json!({
        "uri": uri,
        "checkpoints": evicted.checkpoints,
        "freed_bytes": evicted.freed_bytes,
        "leased_bytes": evicted.leased_bytes,
        "nvme_freed_bytes": evicted.nvme_freed_bytes,
        "pinned_checkpoints": evicted.pinned_checkpoints,
    })
}

/// What an alias stands for.
pub(crate) fn alias(alias: &Alias) -> Value {
    let revision = |of: &AliasRevision| {
        json!({
            "uri": of.uri,
            "revision": of.revision.as_str(),
            "bytes": of.bytes,
            "object_count": of.object_count,
            "nvme_bytes": of.nvme_bytes,
            "missing_bytes": of.missing_bytes(),
            "damaged": of.damaged,
        })
    };
    json!({
        "name": alias.name,
        "uri": alias.current.uri,
        "revision": alias.current.revision.as_str(),
        "current": revision(&alias.current),
        "previous": alias.previous.as_ref().map(revision),
        "since_unix_seconds": alias.since.as_secs_f64(),
        "rule": alias.rule.as_ref().map(|rule| json!({
            "metric": rule.rule.metric.as_str(),
            "bound": rule.rule.bound,
            "window_seconds": rule.rule.window.as_secs_f64(),
            "min_loads": rule.rule.min_loads,
            "state": rule.state,
            "loads": rule.loads,
            "value": rule.value,
        })),
        "history": array(&alias.history, |event| json!({
            "unix_seconds": event.at.as_secs_f64(),
            "kind": event.kind,
            "uri": event.uri,
            "revision": event.revision.as_str(),
            "from_revision": event.from.as_ref().map(Revision::as_str),
            "why": event.why,
        })),
        "setting": alias.setting,
    })
}

/// How an alias is set.
pub(crate) fn setting(event: &SetAliasEvent) -> Value {
    match event {
        SetAliasEvent::Progress(progress) => json!({
            "event": "progress",
            "step": progress.step,
            "revision": progress.revision.as_str(),
            "done_bytes": progress.done_bytes,
            "total_bytes": progress.total_bytes,
        }),
        SetAliasEvent::Report(report) => {
            let mut object = alias(&report.alias);
            object["event"] = json!("report");
            object["switched"] = json!(report.switched);
            object["bytes_by_tier"] = by_tier(report.bytes_by_tier);
            object["origin_bytes"] = json!(report.origin_bytes);
            object["checked_bytes"] = json!(report.checked_bytes);
            object["wall_seconds"] = json!(report.wall.as_secs_f64());
            object
        }
    }
}

/// The daemon at a glance.
pub(crate) fn status(status: &DaemonStatus) -> Value {
    let ram = &status.ram;
    json!({
        "version": status.version,
        "uptime_seconds": status.uptime.as_secs_f64(),
        "draining": status.draining,
        "domain": domain(&status.domain),
        "ram": {
            "budget_bytes": ram.budget_bytes,
            "populated_bytes": ram.populated_bytes,
            "cached_bytes": ram.cached_bytes,
            "leased_bytes": ram.leased_bytes,
            "filling_bytes": ram.filling_bytes,
            "free_bytes": ram.free_bytes,
            "locked_bytes": ram.locked_bytes,
            "chunk_bytes": ram.chunk_bytes,
            "segments": ram.segments,
            "retiring_bytes": ram.retiring_bytes,
            "retired_bytes": ram.retired_bytes,
        },
        "nvme": nvme(&status.nvme),
        "numa": numa(&status.numa),
        "queues": array(&status.queues, |queue| json!({
            "name": queue.name,
            "depth": queue.depth,
            "limit": queue.limit,
            "oldest_wait_seconds": queue.oldest_wait.as_secs_f64(),
        })),
        "loads": array(&status.loads, |load| json!({
            "load_id": load.load_id,
            "uri": load.uri,
            "alias": load.alias,
            "lane": load.lane,
            "uid": load.uid,
            "pid": load.pid,
            "age_seconds": load.age.as_secs_f64(),
            "granted_bytes": load.granted_bytes,
            "leased_bytes": load.leased_bytes,
            "total_bytes": load.total_bytes,
        })),
        "origins": array(&status.origins, |origin| json!({
            "origin": origin.origin,
            "requests": origin.requests,
            "errors": origin.errors,
            "bytes": origin.bytes,
            "inflight": origin.inflight,
        })),
        "endpoints": array(&status.endpoints, endpoint),
        "addresses": array(&status.addresses, address),
        "names": array(&status.names, name),
        "aliases": array(&status.aliases, alias),
        "degraded": status.degraded,
    })
}

fn domain(domain: &DomainStatus) -> Value {
    json!({
        "name": domain.name,
        "ram_budget_bytes": domain.ram_budget_bytes,
        "ram_used_bytes": domain.ram_used_bytes,
        "loads": domain.loads,
        "loads_max": domain.loads_max,
        "queued_max": domain.queued_max,
        "sessions": domain.sessions,
        "share": domain.share,
        "lanes": domain.lanes,
        "uri_prefixes": domain.uri_prefixes,
    })
}

fn nvme(nvme: &NvmeStatus) -> Value {
    json!({
        "state": nvme.state,
        "budget_bytes": nvme.budget_bytes,
        "stored_bytes": nvme.stored_bytes,
        "pinned_bytes": nvme.pinned_bytes,
        "filling_bytes": nvme.filling_bytes,
        "disk_free_bytes": nvme.disk_free_bytes,
        "extents": nvme.extents,
        "queued_fills": nvme.queued_fills,
        "engine": nvme.engine,
        "engine_reason": nvme.engine_reason,
        "quarantined": nvme.quarantined,
        "fills_given_up": nvme.fills_given_up,
        "recovery_seconds": nvme.recovery.map(|time| time.as_secs_f64()),
    })
}

fn numa(numa: &NumaStatus) -> Value {
    json!({
        "misplaced_slots": numa.misplaced_slots,
        "nodes": array(&numa.nodes, |node| json!({
            "node": node.node,
            "cpus": node.cpus,
            "memory_bytes": node.memory_bytes,
            "slots": node.slots,
            "strayed_slots": node.strayed_slots,
            "cached_bytes": node.cached_bytes,
            "leased_bytes": node.leased_bytes,
            "filling_bytes": node.filling_bytes,
            "free_bytes": node.free_bytes,
            "workers": node.workers,
            "pinned_workers": node.pinned_workers,
            "worker_jobs": node.worker_jobs,
            "offnode_jobs": node.offnode_jobs,
        })),
    })
}

fn endpoint(endpoint: &EndpointStatus) -> Value {
    json!({
        "origin": endpoint.origin,
        "limit": endpoint.limit,
        "inflight": endpoint.inflight,
        "waiting": endpoint.waiting,
        "oldest_wait_seconds": endpoint.oldest_wait.as_secs_f64(),
        "retry_tokens": endpoint.retry_tokens,
        "breaker": endpoint.breaker,
        "breaker_open_seconds": endpoint.breaker_open.as_secs_f64(),
        "breaker_opened": endpoint.breaker_opened,
        "throttled": endpoint.throttled,
        "retries": endpoint.retries,
        "retries_denied": endpoint.retries_denied,
        "hedges": endpoint.hedges,
        "hedge_wins": endpoint.hedge_wins,
        "hedge_wasted_bytes": endpoint.hedge_wasted_bytes,
        "sustained_bytes_per_second": endpoint.sustained_bytes_per_second,
    })
}

fn address(address: &AddressStatus) -> Value {
    json!({
        "host": address.host,
        "address": address.address,
        "connections": address.connections,
        "weight": address.weight,
        "ejected_seconds": address.ejected.map(|time| time.as_secs_f64()),
        "ejections": address.ejections,
        "failures": address.failures,
        "bytes_per_second": address.bytes_per_second,
    })
}

fn name(name: &NameStatus) -> Value {
    json!({
        "name": name.name,
        "state": name.state,
        "addresses": name.addresses,
        "age_seconds": name.age.map(|age| age.as_secs_f64()),
        "last_failure": name.last_failure,
    })
}

fn by_tier(bytes: BytesByTier) -> Value {
    json!({ "ram": bytes.ram, "nvme": bytes.nvme, "origin": bytes.origin })
}

pub(crate) fn array<T>(items: &[T], object: impl Fn(&T) -> Value) -> Value {
    items.iter().map(object).collect()
}
