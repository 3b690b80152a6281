//! What there is of each NUMA node, how late the runtime is, and what looks at the machine cost.

use std::time::Duration;

use metrics::{counter, gauge, histogram};

use super::{
    EVIDENCE_LOOK_SECONDS, NUMA_LOCAL_BYTES, NUMA_MISPLACED, NUMA_REMOTE_BYTES, NUMA_SLOT_BYTES,
    NUMA_STRAYED, NUMA_UNPLACED, RUNTIME_LAG_SECONDS, WORKER_JOBS, WORKER_OFFNODE, WORKERS, as_f64,
    labels,
};
use crate::cpu::WorkerState;
use crate::ram::NodeSizes;
use crate::report::NearBytes;

/// The slots of each node, as they are now.
pub(crate) fn slots(nodes: &[NodeSizes], misplaced: u64) {
    for sizes in nodes {
        let node = sizes.node.to_string();
        let states = [
            ("free", sizes.free),
            ("filling", sizes.filling),
            ("cached", sizes.cached),
            ("leased", sizes.leased),
        ];
        for (state, bytes) in states {
            gauge!(NUMA_SLOT_BYTES, "node" => node.clone(), "state" => state).set(as_f64(bytes));
        }
        gauge!(NUMA_STRAYED, "node" => node).set(as_f64(sizes.strayed));
    }
    counter!(NUMA_MISPLACED).absolute(misplaced);
}

/// A load asked for a place that it does not get.
pub(crate) fn unplaced(reason: &'static str) {
    debug_assert!(labels::UNPLACED.allows(reason), "{reason}");
    counter!(NUMA_UNPLACED, "reason" => reason).increment(1);
}

/// A load that may have asked for a place is handed over.
pub(super) fn handed_over(bytes: NearBytes) {
    counter!(NUMA_LOCAL_BYTES, "stage" => "handoff").increment(bytes.near);
    counter!(NUMA_REMOTE_BYTES, "stage" => "handoff").increment(bytes.far);
}

/// A runtime woke a task so late.
pub(crate) fn runtime_lag(runtime: &'static str, late: Duration) {
    debug_assert!(labels::RUNTIME.allows(runtime), "{runtime}");
    histogram!(RUNTIME_LAG_SECONDS, "runtime" => runtime).record(late.as_secs_f64());
}

/// A look at the machine took so much CPU time.
pub(crate) fn looked(look: &'static str, spent: Duration) {
    debug_assert!(labels::LOOK.allows(look), "{look}");
    histogram!(EVIDENCE_LOOK_SECONDS, "look" => look).record(spent.as_secs_f64());
}

/// The workers of each node, as they are now.
pub(crate) fn workers(states: &[WorkerState]) {
    for state in states {
        let node = state.node.to_string();
        let loose = state.workers.saturating_sub(state.pinned);
        for (pinned, count) in [("true", state.pinned), ("false", loose)] {
            gauge!(WORKERS, "node" => node.clone(), "pinned" => pinned).set(as_f64(count as u64));
        }
        counter!(WORKER_JOBS, "node" => node.clone()).absolute(state.jobs);
        counter!(WORKER_OFFNODE, "node" => node).absolute(state.offnode);
    }
}
