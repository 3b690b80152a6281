//! What there is of each NUMA node.

use metrics::{counter, gauge};

use super::{WORKER_JOBS, WORKER_OFFNODE, WORKERS, as_f64};
use crate::cpu::WorkerState;

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
