//! Whether a deadline can be met: what cannot is refused before it costs anybody anything.
//!
//! Only what is certain is refused. The rate is the best that the endpoint sustained lately, while
//! it was asked for all it could (nothing is known before enough was measured), and only bytes
//! count that no tier holds and no flight brings. A load that has to wait for a place waits at
//! least until the first of those that run can be over. What is in RAM is never refused.

use std::sync::Arc;
use std::time::Duration;

use forebay_proto::{Failure, Reason};
use tokio::time::Instant;

use super::Stages;
use crate::deadline::Deadline;
use crate::fetch::wire_bytes;
use crate::plan::FetchPlan;

/// What is known about a load that has a plan.
#[derive(Debug, Clone, Copy)]
struct Estimate {
    missing_bytes: u64,
    bytes_per_second: f64,
    /// Until there is a place for it, at least.
    wait: Duration,
}

impl Estimate {
    /// What it takes, in seconds, at least.
    fn seconds(&self) -> f64 {
        self.wait.as_secs_f64() + self.missing_bytes as f64 / self.bytes_per_second
    }

    /// Why a load with so much time left is refused, if it is.
    fn refusal(&self, remaining: Duration) -> Option<Failure> {
        let (needed, left) = (self.seconds(), remaining.as_secs_f64());
        if needed <= left {
            return None;
        }
        let (missing, rate) = (self.missing_bytes, self.bytes_per_second / 1e6);
        let message = format!(
            "{missing} bytes are missing and the origin sustains {rate:.1} MB/s, so the load takes \
             {needed:.3} s at least, and {left:.3} s remain"
        );
        Some(
            refused(message, needed, left)
                .with_fact("missing_bytes", missing)
                .with_fact("bytes_per_second", format_args!("{:.0}", self.bytes_per_second)),
        )
    }
}

fn refused(message: String, needed: f64, left: f64) -> Failure {
    Failure::new(Reason::DeadlineInfeasible, &message)
        .with_quota(message)
        .with_fact("needed_seconds", format_args!("{needed:.3}"))
        .with_fact("remaining_seconds", format_args!("{left:.3}"))
        .at_stage("admission")
}

/// How long a load that came now would wait for a place, at least.
fn wait_for_a_place(stages: &Stages) -> Duration {
    if stages.admission.has_place() {
        return Duration::ZERO;
    }
    stages.loads.first_end(stages.admission.active()).unwrap_or_default()
}

/// Refuses a load of which only the deadline is known.
pub(super) fn check_queue(stages: &Stages, deadline: Deadline) -> Result<(), Failure> {
    let (wait, remaining) = (wait_for_a_place(stages), deadline.remaining(Instant::now()));
    if wait <= remaining {
        return Ok(());
    }
    let (wait, left) = (wait.as_secs_f64(), remaining.as_secs_f64());
    let message = format!(
        "no load that runs can be over before {wait:.3} s, so there is no place for another, and \
         {left:.3} s remain"
    );
    Err(refused(message, wait, left))
}

/// Refuses a load whose plan cannot be carried out in time; else how much of it is missing.
/// `queued` is a load that has no place yet.
pub(super) fn check_plan(
    stages: &Arc<Stages>,
    plan: &FetchPlan,
    deadline: Deadline,
    queued: bool,
) -> Result<u64, Failure> {
    let stored = |key| stages.nvme.as_ref().is_some_and(|nvme| nvme.holds(key));
    let held = |key| stages.ram.holds(key) || stages.flights.holds(key) || stored(key);
    let missing = plan.chunks().iter().filter(|chunk| !held(&chunk.key));
    let missing_bytes = missing.map(|chunk| wire_bytes(plan.manifest(), chunk)).sum();
    let endpoint = stages.fetcher.endpoint(plan.manifest());
    let rate = endpoint.and_then(|endpoint| endpoint.sustained());
    if let Some(bytes_per_second) = rate.filter(|_| missing_bytes > 0) {
        let wait = if queued { wait_for_a_place(stages) } else { Duration::ZERO };
        let estimate = Estimate { missing_bytes, bytes_per_second, wait };
        let refusal = estimate.refusal(deadline.remaining(Instant::now()));
        refusal.map_or(Ok(()), Err)?;
    }
    Ok(missing_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_cannot_be_is_refused_and_says_why() {
        let estimate = Estimate {
            missing_bytes: 10_000_000,
            bytes_per_second: 2_000_000.0,
            wait: Duration::ZERO,
        };
        assert!(estimate.refusal(Duration::from_secs(5)).is_none());
        let failure = estimate.refusal(Duration::from_millis(4999)).unwrap();
        assert_eq!(failure.reason, Reason::DeadlineInfeasible);
        for (name, value) in [
            ("missing_bytes", "10000000"),
            ("bytes_per_second", "2000000"),
            ("needed_seconds", "5.000"),
            ("remaining_seconds", "4.999"),
        ] {
            assert_eq!(failure.facts.get(name).map(String::as_str), Some(value), "{name}");
        }
        for part in ["10000000 bytes", "2.0 MB/s", "5.000 s", "4.999 s"] {
            assert!(failure.message.contains(part), "{failure}");
        }
        let queued = Estimate { wait: Duration::from_secs(1), ..estimate };
        assert!(queued.refusal(Duration::from_millis(5999)).is_some());
        assert!(queued.refusal(Duration::from_secs(6)).is_none());
    }
}
