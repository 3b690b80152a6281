//! Reports as JSON objects, with the names of the interface: what the command prints and what the C
//! library gives out. Behind the feature `json`.

use forebay_device::MemoryPath;
use forebay_proto::model::{BytesByTier, Report};
use serde_json::{Value, json};

use crate::device::DeviceReport;

/// A load's report.
#[must_use]
pub fn report(report: &Report) -> Value {
    json!({
        "load_id": report.load_id,
        "trace_id": report.trace_id,
        "uri": report.uri,
        "alias": report.alias,
        "revision": report.revision.as_str(),
        "bytes": report.bytes,
        "wall_seconds": report.wall.as_secs_f64(),
        "time_to_first_chunk_seconds": report.time_to_first_chunk.as_secs_f64(),
        "bytes_by_tier": by_tier(report.bytes_by_tier),
        "origin_bytes": report.origin_bytes,
        "attempts": report.attempts,
        "retries": report.retries,
        "hedges": report.hedges,
        "hedge_wins": report.hedge_wins,
        "throttles": report.throttles,
        "wasted_bytes": report.wasted_bytes,
        "origin_queue_seconds": report.origin_queue.as_secs_f64(),
        "backoff_seconds": report.backoff.as_secs_f64(),
        "stages": array(&report.stages, |stage| json!({
            "stage": stage.stage,
            "queue_seconds": stage.queue.as_secs_f64(),
            "service_seconds": stage.service.as_secs_f64(),
        })),
        "critical_path": array(&report.critical_path, |step| json!({
            "stage": step.stage,
            "kind": step.kind,
            "seconds": step.time.as_secs_f64(),
        })),
        "unattributed_seconds": report.unattributed.as_secs_f64(),
        "device_idle": array(&report.device_idle, |idle| json!({
            "cause": idle.cause,
            "seconds": idle.time.as_secs_f64(),
        })),
        "peak_window_bytes": report.peak_window_bytes,
        "lane": report.lane,
        "verified": {
            "manifest": report.verified.manifest,
            "object_digest": report.verified.object_digest,
            "first_fetch": report.verified.first_fetch,
        },
        "placement": report.placement.as_ref().map(|placement| json!({
            "asked": placement.asked,
            "node": placement.node,
            "near_bytes": placement.near_bytes,
            "far_bytes": placement.far_bytes,
            "degraded": placement.degraded,
        })),
        "device": report.device.as_ref().map(|device| json!({
            "kind": device.kind,
            "name": device.name,
            "path": device.path,
            "staged_because": device.why,
        })),
    })
}

/// How the copies of a load went: the object `device` of a report, where this library made them.
#[must_use]
pub fn device(report: &DeviceReport) -> Value {
    let why = match &report.path {
        MemoryPath::Staged { why } => Some(why),
        _ => None,
    };
    json!({
        "device": report.spec.to_string(),
        "name": report.name,
        "path": report.path.as_str(),
        "staged_because": why,
        "streams": report.streams,
        "copies": report.copies,
        "bytes": report.bytes,
        "busy_seconds": report.busy.as_secs_f64(),
        "idle_seconds": report.idle.as_secs_f64(),
        "busy_ratio": report.busy_ratio(),
        "first_submit_seconds": report.first_submit.as_secs_f64(),
        "first_copy_seconds": report.first_copy.as_secs_f64(),
        "last_copy_seconds": report.last_copy.as_secs_f64(),
    })
}

fn by_tier(bytes: BytesByTier) -> Value {
    json!({ "ram": bytes.ram, "nvme": bytes.nvme, "origin": bytes.origin })
}

fn array<T>(items: &[T], object: impl Fn(&T) -> Value) -> Value {
    items.iter().map(object).collect()
}
