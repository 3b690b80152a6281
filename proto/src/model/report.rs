//! How a load or a prefetch went.

use std::time::Duration;

use super::{BytesByTier, Malformed, Revision, is_trace_id, required, span};
use crate::pb;

const MESSAGE: &str = "LoadReport";

/// Queue and service time of one stage, summed over chunks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StageTime {
    /// The stage.
    pub stage: String,
    /// Time between being handed to the stage and being taken up by it.
    pub queue: Duration,
    /// Time being worked on.
    pub service: Duration,
}

/// One step of the chain of causes that made the load take as long as it took.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PathStep {
    /// The stage.
    pub stage: String,
    /// `queue` or `service`.
    pub kind: String,
    /// How long.
    pub time: Duration,
}

/// Time in which the client's copy engine had nothing to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdleTime {
    /// What it waited for.
    pub cause: String,
    /// How long.
    pub time: Duration,
}

/// The report of one load.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// The load's id.
    pub load_id: String,
    /// The URI as resolved, without a query.
    pub uri: String,
    /// What it resolved to.
    pub revision: Revision,
    /// Bytes handed over.
    pub bytes: u64,
    /// From the request to the last release.
    pub wall: Duration,
    /// From the request to the first grant.
    pub time_to_first_chunk: Duration,
    /// Where the bytes came from.
    pub bytes_by_tier: BytesByTier,
    /// Body bytes this load itself caused to be fetched, failed attempts included.
    pub origin_bytes: u64,
    /// Requests to the origin.
    pub attempts: u64,
    /// Those that repeated a failed one.
    pub retries: u64,
    /// Those that raced a slow one; they are not among the attempts.
    pub hedges: u64,
    /// Those of them that were faster.
    pub hedge_wins: u64,
    /// Answers that said "slow down".
    pub throttles: u64,
    /// Of `origin_bytes`: what was brought twice.
    pub wasted_bytes: u64,
    /// Time in the line before the origin, summed over parts.
    pub origin_queue: Duration,
    /// Time between attempts, summed over parts.
    pub backoff: Duration,
    /// Sums over chunks: stages overlap, so they may exceed the wall time.
    pub stages: Vec<StageTime>,
    /// With `unattributed` this sums to `wall`.
    pub critical_path: Vec<PathStep>,
    /// The rest.
    pub unattributed: Duration,
    /// Why the copy engine was idle.
    pub device_idle: Vec<IdleTime>,
    /// The most bytes leased at one time.
    pub peak_window_bytes: u64,
    /// The lane it ran in.
    pub lane: String,
    /// What the bytes were held to.
    pub verified: VerifiedObjects,
    /// What became of the placement that was asked for, if one was.
    pub placement: Option<PlacementReport>,
    /// What the client copied the bytes to, if it did.
    pub device: Option<DeviceUse>,
    /// The trace it belongs to, 32 hex digits; empty from a daemon that does not say.
    pub trace_id: String,
    /// The alias that was loaded; empty if it was a URI.
    pub alias: String,
}

/// Objects of a load by what their bytes were held to, now or when they were first fetched.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct VerifiedObjects {
    /// Digests of their chunks, from the manifest of a packed checkpoint.
    pub manifest: u64,
    /// A digest of the whole: from the store, a file of digests, or the caller.
    pub object_digest: u64,
    /// The digest of the first fetch: nothing was known before.
    pub first_fetch: u64,
}

/// The device that a client copied to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceUse {
    /// `host`, `fake` or `cuda`.
    pub kind: String,
    /// What its driver calls it.
    pub name: String,
    /// How bytes of segments got there: `registered_read_only`, `registered`, `staged` or `cpu`.
    pub path: String,
    /// Why copies were staged, if they were.
    pub why: Option<String>,
}

impl DeviceUse {
    fn receive(device: pb::DeviceUse) -> Self {
        let pb::DeviceUse { kind, name, path, why } = device;
        Self { kind, name, path, why: Some(why).filter(|why| !why.is_empty()) }
    }
}

/// What became of a placement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlacementReport {
    /// What was asked for: `gpu 0000:3b:00.0` or `node 1`.
    pub asked: String,
    /// The NUMA node that slots were taken from; none: any.
    pub node: Option<u32>,
    /// Bytes handed over from the node that was asked for.
    pub near_bytes: u64,
    /// Bytes handed over from others.
    pub far_bytes: u64,
    /// Why it could not be had, if it could not.
    pub degraded: Option<String>,
}

impl PlacementReport {
    fn receive(placement: pb::PlacementReport) -> Self {
        let pb::PlacementReport { asked, node, near_bytes, far_bytes, degraded } = placement;
        let degraded = Some(degraded).filter(|why| !why.is_empty());
        Self { asked, node, near_bytes, far_bytes, degraded }
    }
}

impl Report {
    /// Checks the message.
    pub fn receive(report: pb::LoadReport) -> Result<Self, Malformed> {
        let time = |field: &str, seconds: f64| span(MESSAGE, field, seconds);
        let stages = report.stages.into_iter().map(|stage| {
            Ok(StageTime {
                queue: time("queue_seconds", stage.queue_seconds)?,
                service: time("service_seconds", stage.service_seconds)?,
                stage: stage.stage,
            })
        });
        let critical_path = report.critical_path.into_iter().map(|step| {
            let time = time("critical_path.seconds", step.seconds)?;
            Ok(PathStep { stage: step.stage, kind: step.kind, time })
        });
        let device_idle = report.device_idle.into_iter().map(|idle| {
            Ok(IdleTime { time: time("device_idle.seconds", idle.seconds)?, cause: idle.cause })
        });
        let verified = report.verified.unwrap_or_default();
        if !is_trace_id(&report.trace_id) {
            return Err(Malformed::new(MESSAGE, format!("trace id {:?}", report.trace_id)));
        }
        Ok(Self {
            load_id: report.load_id,
            uri: report.uri,
            revision: Revision::receive(MESSAGE, report.revision)?,
            bytes: report.bytes,
            wall: time("wall_seconds", report.wall_seconds)?,
            time_to_first_chunk: time(
                "time_to_first_chunk_seconds",
                report.time_to_first_chunk_seconds,
            )?,
            bytes_by_tier: BytesByTier::receive(report.bytes_by_tier),
            origin_bytes: report.origin_bytes,
            attempts: report.attempts,
            retries: report.retries,
            hedges: report.hedges,
            hedge_wins: report.hedge_wins,
            throttles: report.throttles,
            wasted_bytes: report.wasted_bytes,
            origin_queue: time("origin_queue_seconds", report.origin_queue_seconds)?,
            backoff: time("backoff_seconds", report.backoff_seconds)?,
            stages: stages.collect::<Result<_, Malformed>>()?,
            critical_path: critical_path.collect::<Result<_, Malformed>>()?,
            unattributed: time("unattributed_seconds", report.unattributed_seconds)?,
            device_idle: device_idle.collect::<Result<_, Malformed>>()?,
            peak_window_bytes: report.peak_window_bytes,
            lane: report.lane,
            verified: VerifiedObjects {
                manifest: verified.manifest,
                object_digest: verified.object_digest,
                first_fetch: verified.first_fetch,
            },
            placement: report.placement.map(PlacementReport::receive),
            device: report.device.map(DeviceUse::receive),
            trace_id: report.trace_id,
            alias: report.alias,
        })
    }
}

/// How far a prefetch is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PrefetchProgress {
    /// The URI as resolved, without a query.
    pub uri: String,
    /// What it resolved to, once it has.
    pub revision: Option<Revision>,
    /// Bytes in the tier.
    pub done_bytes: u64,
    /// Bytes there will be.
    pub total_bytes: u64,
    /// Where the bytes came from.
    pub bytes_by_tier: BytesByTier,
}

/// What a prefetch says while it runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PrefetchEvent {
    /// How far it is.
    Progress(PrefetchProgress),
    /// It is done; nothing follows.
    Report(Box<Report>),
}

impl PrefetchEvent {
    /// The report, if this is it.
    #[must_use]
    pub fn into_report(self) -> Option<Report> {
        match self {
            Self::Progress(_) => None,
            Self::Report(report) => Some(*report),
        }
    }

    /// Checks the message.
    pub fn receive(response: pb::PrefetchResponse) -> Result<Self, Malformed> {
        const MESSAGE: &str = "PrefetchResponse";
        let progress = match required(MESSAGE, response.event)? {
            pb::prefetch_response::Event::Progress(progress) => progress,
            pb::prefetch_response::Event::Report(report) => {
                return Ok(Self::Report(Box::new(Report::receive(report)?)));
            }
        };
        let pb::PrefetchProgress { uri, revision, done_bytes, total_bytes, bytes_by_tier } =
            progress;
        let revision = Some(revision)
            .filter(|text| !text.is_empty())
            .map(|text| Revision::receive(MESSAGE, text))
            .transpose()?;
        let bytes_by_tier = BytesByTier::receive(bytes_by_tier);
        Ok(Self::Progress(PrefetchProgress {
            uri,
            revision,
            done_bytes,
            total_bytes,
            bytes_by_tier,
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> pb::LoadReport {
        pb::LoadReport {
            revision: format!("b3:{}", "00".repeat(32)),
            wall_seconds: 2.0,
            critical_path: vec![pb::PathStep {
                stage: "fetch".into(),
                kind: "service".into(),
                seconds: 1.99,
            }],
            unattributed_seconds: 0.01,
            ..Default::default()
        }
    }

    #[test]
    fn a_report_keeps_its_times() {
        let report = Report::receive(report()).unwrap();
        assert_eq!(report.critical_path[0].time + report.unattributed, report.wall);
    }

    #[test]
    fn impossible_times_are_malformed() {
        for bad in [
            pb::LoadReport { wall_seconds: f64::NAN, ..report() },
            pb::LoadReport { unattributed_seconds: -1.0, ..report() },
            pb::LoadReport { revision: String::new(), ..report() },
            pb::LoadReport { trace_id: "4bf9".into(), ..report() },
        ] {
            Report::receive(bad).unwrap_err();
        }
    }

    #[test]
    fn progress_may_come_before_the_revision_is_known() {
        let progress = pb::PrefetchProgress { total_bytes: 3, ..Default::default() };
        let event = pb::prefetch_response::Event::Progress(progress);
        let event = PrefetchEvent::receive(pb::PrefetchResponse { event: Some(event) }).unwrap();
        assert!(matches!(event, PrefetchEvent::Progress(p) if p.revision.is_none()));
        PrefetchEvent::receive(pb::PrefetchResponse { event: None }).unwrap_err();
    }
}
