//! What `status` says of NUMA nodes.

use crate::pb;

/// The NUMA nodes of the machine.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NumaStatus {
    /// Every node that is online; none from a daemon that says nothing.
    pub nodes: Vec<NodeStatus>,
    /// Slots that were taken for a load from another node than it asked for.
    pub misplaced_slots: u64,
}

/// One NUMA node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NodeStatus {
    /// Its number.
    pub node: u32,
    /// Its CPUs that the daemon may use, as the kernel lists them.
    pub cpus: String,
    /// Its memory, if it has any and that is known.
    pub memory_bytes: Option<u64>,
    /// Slots that lie there.
    pub slots: u64,
    /// Slots that were asked for there and lie elsewhere.
    pub strayed_slots: u64,
    /// Of the slots: readable, not leased.
    pub cached_bytes: u64,
    /// Leased to clients.
    pub leased_bytes: u64,
    /// Being written.
    pub filling_bytes: u64,
    /// Empty.
    pub free_bytes: u64,
    /// Threads for work on slots of the node.
    pub workers: u64,
    /// Those that run on the node's CPUs only.
    pub pinned_workers: u64,
    /// What they have done.
    pub worker_jobs: u64,
    /// Of that: for memory of another node than the one that it ran on.
    pub offnode_jobs: u64,
}

impl NumaStatus {
    pub(super) fn receive(numa: pb::NumaStatus) -> Self {
        let nodes = numa.nodes.into_iter().map(NodeStatus::receive).collect();
        Self { nodes, misplaced_slots: numa.misplaced_slots }
    }
}

impl NodeStatus {
    fn receive(node: pb::NodeStatus) -> Self {
        Self {
            node: node.node,
            cpus: node.cpus,
            memory_bytes: Some(node.memory_bytes).filter(|bytes| *bytes > 0),
            slots: node.slots,
            strayed_slots: node.strayed_slots,
            cached_bytes: node.cached_bytes,
            leased_bytes: node.leased_bytes,
            filling_bytes: node.filling_bytes,
            free_bytes: node.free_bytes,
            workers: node.workers,
            pinned_workers: node.pinned_workers,
            worker_jobs: node.worker_jobs,
            offnode_jobs: node.offnode_jobs,
        }
    }
}
