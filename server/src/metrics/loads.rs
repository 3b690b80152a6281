//! What is counted of a load or prefetch when it ends, however it ends.
//!
//! Its task has a [`LoadMeter`], which hears what the load is as soon as that is known, and where
//! its bytes came from once it has a report. So whoever is refused before anything began is counted
//! as well, as a load that did not meet its deadline.

use std::sync::OnceLock;

use forebay_proto::{Failure, Reason};
use metrics::{Label, counter, gauge, histogram};

use super::{
    GPU_IDLE_CONFIDENCE, GPU_IDLE_GAP_SECONDS, GPU_IDLE_SECONDS, LOADS, LOADS_IN_DEADLINE,
    ORIGIN_BYTES, STAGE_BYTES, STAGE_QUEUE_SECONDS, STAGE_SERVICE_SECONDS, UNATTRIBUTED_SECONDS,
    numa,
};
use crate::attribution::{Attribution, Cause};
use crate::report::{DeviceKind, Report, Tally, Tier, TierBytes};
use crate::timeline::Timeline;
use crate::workload::{NONE, OTHER, Workload, Workloads};

/// Loads of these workloads may come: they are counted from zero, so that rates see the first one.
pub(crate) fn expect(workloads: &Workloads) {
    for name in workloads.names().into_iter().chain([NONE, OTHER]) {
        counter!(LOADS_IN_DEADLINE, "workload" => name.to_owned()).increment(0);
        for outcome in ["ok", "error", "cancelled", "deadline"] {
            counter!(LOADS, "workload" => name.to_owned(), "outcome" => outcome).increment(0);
        }
    }
}

/// What is known of a load for its end.
#[derive(Debug, Default)]
pub(crate) struct LoadMeter {
    kind: OnceLock<(Workload, Option<DeviceKind>)>,
    tier: OnceLock<&'static str>,
}

impl LoadMeter {
    /// It is known what the load is.
    pub(crate) fn is_of(&self, workload: Workload, device: Option<DeviceKind>) {
        // A load has one request.
        self.kind.set((workload, device)).ok();
    }

    /// Everything is handed over, or kept.
    pub(crate) fn handed_over(&self, report: &Report) {
        let Tally { tiers, cost, near, .. } = report.tally;
        self.tier.set(tier_of(tiers)).ok();
        counter!(STAGE_BYTES, "tier" => "ram").increment(tiers.ram);
        counter!(STAGE_BYTES, "tier" => "nvme").increment(tiers.nvme);
        counter!(STAGE_BYTES, "tier" => "origin").increment(tiers.origin);
        counter!(ORIGIN_BYTES).increment(cost.bytes);
        numa::handed_over(near);
        waited(report);
    }

    /// The load is over.
    pub(crate) fn ended(&self, outcome: Result<(), &Failure>, timeline: &Timeline) {
        let (workload, device) = self.kind.get().cloned().unwrap_or_default();
        let workload = || workload.as_str().to_owned();
        let outcome = outcome.map_or_else(outcome_of, |()| "ok");
        counter!(LOADS, "workload" => workload(), "outcome" => outcome).increment(1);
        let in_deadline = u64::from(outcome == "ok");
        counter!(LOADS_IN_DEADLINE, "workload" => workload()).increment(in_deadline);
        let tier = self.tier.get().copied().unwrap_or_else(|| seen_in(timeline));
        let device = device.map_or("none", DeviceKind::as_str);
        for stage in timeline.stages() {
            let labels = [
                Label::new("stage", stage.stage),
                Label::from_static_parts("tier", tier),
                Label::new("workload", workload()),
                Label::from_static_parts("device", device),
                Label::from_static_parts("outcome", outcome),
            ];
            histogram!(STAGE_QUEUE_SECONDS, labels.iter()).record(stage.queue.as_secs_f64());
            histogram!(STAGE_SERVICE_SECONDS, labels.iter()).record(stage.service.as_secs_f64());
        }
    }
}

/// What a load waited for, whether or not it failed.
pub(crate) fn waited(report: &Report) {
    histogram!(UNATTRIBUTED_SECONDS).record(report.unattributed.as_secs_f64());
    idle(&report.idle);
}

/// How a load that failed ended.
fn outcome_of(failure: &Failure) -> &'static str {
    match failure.reason {
        Reason::Deadline | Reason::DeadlineInfeasible => "deadline",
        // Within the daemon this is the client.
        Reason::DaemonUnreachable | Reason::Superseded => "cancelled",
        _ => "error",
    }
}

/// The tier that all bytes came from.
fn tier_of(TierBytes { ram, nvme, origin }: TierBytes) -> &'static str {
    match (ram > 0, nvme > 0, origin > 0) {
        (true, false, false) => "ram",
        (false, true, false) => "nvme",
        (false, false, true) => "origin",
        (false, false, false) => "none",
        _ => "mixed",
    }
}

/// The same of a load without a report, by what its chunks were at.
fn seen_in(timeline: &Timeline) -> &'static str {
    let mut tiers = TierBytes::default();
    timeline.tiers(|tier: Tier| tiers.add(tier, 1));
    tier_of(tiers)
}

/// What a load's copy engine waited for. Every cause is exposed from the first load on, so that none
/// is missing where nothing went wrong yet.
fn idle(idle: &Attribution) {
    for cause in Cause::ALL {
        let total = idle.causes.iter().find(|total| total.cause == cause);
        let (time, longest) = total.map(|total| (total.time, total.longest)).unwrap_or_default();
        histogram!(GPU_IDLE_SECONDS, "cause" => cause.as_str()).record(time.as_secs_f64());
        if !longest.is_zero() {
            let longest = longest.as_secs_f64();
            histogram!(GPU_IDLE_GAP_SECONDS, "cause" => cause.as_str()).record(longest);
        }
    }
    gauge!(GPU_IDLE_CONFIDENCE).set(idle.confidence());
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use metrics_exporter_prometheus::PrometheusBuilder;
    use tokio::time::Instant;

    use super::*;
    use crate::timeline::{Kind, Span, Stage};

    #[test]
    fn every_load_counts_and_those_that_succeed_count_as_good() {
        let recorder = PrometheusBuilder::new().build_recorder();
        let handle = recorder.handle();
        let workloads = Workloads::parse(["serving"]).unwrap();
        let zero = Instant::now();
        let timeline = Timeline::new(zero);
        timeline.chunk_spans(
            0,
            [Span::new(Stage::Body, Kind::Service, zero, zero + Duration::from_secs(2))],
        );
        let end = |given: &str, outcome: Result<(), Reason>| {
            let meter = LoadMeter::default();
            meter.is_of(workloads.class_of(given), Some(DeviceKind::Cuda));
            let failure = outcome.map_err(|reason| Failure::new(reason, "x"));
            meter.ended(failure.as_ref().copied(), &timeline);
        };
        metrics::with_local_recorder(&recorder, || {
            expect(&workloads);
            end("serving", Ok(()));
            end("serving", Err(Reason::Deadline));
            end("serving", Err(Reason::DaemonUnreachable));
            end("batch", Err(Reason::OriginFailed));
            // Refused before anything was known of it.
            let early = Failure::new(Reason::BadRequest, "x");
            LoadMeter::default().ended(Err(&early), &Timeline::new(zero));
        });
        let shown = handle.render();
        for line in [
            "forebay_loads_total{workload=\"serving\",outcome=\"ok\"} 1",
            "forebay_loads_total{workload=\"serving\",outcome=\"deadline\"} 1",
            "forebay_loads_total{workload=\"serving\",outcome=\"cancelled\"} 1",
            "forebay_loads_total{workload=\"other\",outcome=\"error\"} 1",
            "forebay_loads_total{workload=\"none\",outcome=\"error\"} 1",
            "forebay_loads_in_deadline_total{workload=\"serving\"} 1",
            "forebay_loads_in_deadline_total{workload=\"other\"} 0",
            "forebay_stage_service_seconds_sum{stage=\"body\",tier=\"origin\",\
             workload=\"serving\",device=\"cuda\",outcome=\"deadline\"} 2",
        ] {
            assert!(shown.lines().any(|shown| shown == line), "{line} is not in\n{shown}");
        }
    }

    #[test]
    fn a_load_is_of_the_tier_that_all_of_it_came_from() {
        let tiers = |ram, nvme, origin| tier_of(TierBytes { ram, nvme, origin });
        assert_eq!([tiers(1, 0, 0), tiers(0, 1, 0), tiers(0, 0, 1)], ["ram", "nvme", "origin"]);
        assert_eq!([tiers(1, 0, 1), tiers(0, 0, 0)], ["mixed", "none"]);
    }
}
