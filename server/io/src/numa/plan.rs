//! What the daemon makes of a machine's nodes: where slots may lie, where work may run, and what
//! cannot be had.
//!
//! * A node with memory that this process may use, and with CPUs, gets slots. CPU-less memory belongs
//!   to a device or an expander: slots are put there only if there is nothing else.
//! * A node whose CPUs this process may use gets workers.
//! * Whatever is asked for on another node is had from the nearest that has it.
//!
//! There is always at least one node, and at least one with slots.

use std::collections::BTreeMap;

use super::NodeId;
use super::list::{CpuList, NodeList};
use super::topology::{Allowed, Nodes, NumaNode, Topology, TopologyError};

/// The distance of a node to itself, and to another if the firmware does not say.
const LOCAL_DISTANCE: u32 = 10;
const UNKNOWN_DISTANCE: u32 = 255;

/// The nodes of a machine as this process may use them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NumaPlan {
    nodes: Vec<PlannedNode>,
    degraded: Vec<String>,
}

/// One node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlannedNode {
    /// Its number.
    pub id: NodeId,
    /// Its memory.
    pub memory_bytes: u64,
    /// Whether slots are put there.
    pub has_slots: bool,
    /// Its CPUs that this process may use. Empty where none may be, and on the one node of a
    /// machine whose CPUs are not known.
    pub cpus: CpuList,
    /// How many physical cores they are of.
    pub cores: usize,
    distances: BTreeMap<NodeId, u32>,
}

/// Where something comes to lie that was asked for near a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Near {
    /// There.
    There(NodeId),
    /// On another node, because that one has no slots.
    Instead {
        /// The nearest that has.
        node: NodeId,
        /// A sentence for a person.
        why: String,
    },
    /// Anywhere: there is no such node.
    Anywhere {
        /// A sentence for a person.
        why: String,
    },
}

impl NumaPlan {
    /// The plan for this process on a machine.
    #[must_use]
    pub fn of(topology: &dyn Topology) -> Self {
        let mut degraded = Vec::new();
        let allowed = topology.allowed().unwrap_or_else(|error| {
            degraded.push(format!("numa: what this process may use is not known: {error}"));
            Allowed::default()
        });
        let nodes = match topology.nodes() {
            Ok(Nodes { nodes, unreadable }) => {
                degraded.extend(unreadable.into_iter().map(|why| format!("numa: {why}")));
                nodes
            }
            Err(TopologyError::NoNuma) => Vec::new(),
            Err(error) => {
                degraded.push(format!("numa: memory and workers are not placed: {error}"));
                Vec::new()
            }
        };
        let mut plan = Self::with(&nodes, &allowed, degraded);
        if plan.nodes.is_empty() {
            plan.nodes.push(only_node(&allowed));
        }
        plan
    }

    fn with(nodes: &[NumaNode], allowed: &Allowed, mut degraded: Vec<String>) -> Self {
        let may_use =
            |id| allowed.memory.as_ref().is_none_or(|nodes: &NodeList| nodes.contains(id));
        let has_memory = |node: &&NumaNode| node.memory_bytes > 0 && may_use(node.id);
        let usual = nodes.iter().filter(has_memory).any(|node| !node.cpus.is_empty());
        let mut planned: Vec<PlannedNode> = nodes
            .iter()
            .map(|node| {
                let has_slots = has_memory(&node) && (!node.cpus.is_empty() || !usual);
                planned(node, allowed.cpus.as_ref(), has_slots)
            })
            .collect();
        if let Some(first) = planned.first_mut()
            && nodes.iter().all(|node| !has_memory(&node))
        {
            // The process runs, so there is memory: what was read does not fit, and binds nothing.
            degraded.push("numa: no node has memory that this process may use: not placed".into());
            first.has_slots = true;
        }
        if nodes.len() > 1 {
            let said = nodes.iter().zip(&planned);
            degraded.extend(
                said.filter_map(|(node, planned)| trouble(node, planned, may_use(node.id))),
            );
        }
        Self { nodes: planned, degraded }
    }

    /// Every node, by ascending number; those without slots and without CPUs too.
    #[must_use]
    pub fn nodes(&self) -> &[PlannedNode] {
        &self.nodes
    }

    /// Those that slots are put on; at least one.
    pub fn slot_nodes(&self) -> impl Iterator<Item = &PlannedNode> {
        self.nodes.iter().filter(|node| node.has_slots)
    }

    /// Those whose CPUs this process may use.
    pub fn work_nodes(&self) -> impl Iterator<Item = &PlannedNode> {
        self.nodes.iter().filter(|node| !node.cpus.is_empty())
    }

    /// What cannot be had of this machine: one sentence each.
    #[must_use]
    pub fn degraded(&self) -> &[String] {
        &self.degraded
    }

    /// Where slots lie that are asked for on `asked`.
    #[must_use]
    pub fn near(&self, asked: NodeId) -> Near {
        let Some(node) = self.nodes.iter().find(|node| node.id == asked) else {
            let online: Vec<String> = self.nodes.iter().map(|node| node.id.to_string()).collect();
            let online = online.join(", ");
            return Near::Anywhere { why: format!("there is no node {asked} here, only {online}") };
        };
        if node.has_slots {
            return Near::There(asked);
        }
        match self.nearest(node, self.slot_nodes()) {
            Some(other) => {
                let why =
                    format!("node {asked} has no slots; node {other} is the nearest that has");
                Near::Instead { node: other, why }
            }
            None => Near::Anywhere { why: "no node has slots".into() },
        }
    }

    /// The node whose CPUs are the nearest to memory of `memory`.
    #[must_use]
    pub fn workers_for(&self, memory: NodeId) -> Option<NodeId> {
        let node = self.nodes.iter().find(|node| node.id == memory)?;
        self.nearest(node, self.work_nodes())
    }

    fn nearest<'a>(
        &self,
        from: &PlannedNode,
        among: impl Iterator<Item = &'a PlannedNode>,
    ) -> Option<NodeId> {
        let distance = |to: &&PlannedNode| match to.id == from.id {
            true => (LOCAL_DISTANCE.min(from.distance(to.id)), to.id),
            false => (from.distance(to.id).max(LOCAL_DISTANCE + 1), to.id),
        };
        among.min_by_key(distance).map(|node| node.id)
    }
}

impl PlannedNode {
    fn distance(&self, to: NodeId) -> u32 {
        self.distances.get(&to).copied().unwrap_or(UNKNOWN_DISTANCE)
    }
}

fn planned(node: &NumaNode, allowed: Option<&CpuList>, has_slots: bool) -> PlannedNode {
    let own = |cpus: &CpuList| allowed.map_or_else(|| cpus.clone(), |allowed| cpus.both(allowed));
    PlannedNode {
        id: node.id,
        memory_bytes: node.memory_bytes,
        has_slots,
        cpus: own(&node.cpus),
        cores: node.cores.iter().filter(|core| !own(core).is_empty()).count(),
        distances: node.distances.clone(),
    }
}

/// The node of a machine that has none, or does not tell.
fn only_node(allowed: &Allowed) -> PlannedNode {
    let cpus = allowed.cpus.clone().unwrap_or_default();
    PlannedNode {
        id: allowed.memory.as_ref().and_then(|nodes| nodes.iter().next()).unwrap_or(NodeId(0)),
        memory_bytes: 0,
        has_slots: true,
        cores: cpus.len(),
        cpus,
        distances: BTreeMap::new(),
    }
}

/// What is missing on a node of several.
fn trouble(node: &NumaNode, planned: &PlannedNode, may_use_memory: bool) -> Option<String> {
    let id = node.id;
    let why = match (node.memory_bytes > 0, node.cpus.is_empty()) {
        (false, true) => return None,
        (true, _) if !may_use_memory => "this process may not use its memory: no slots lie there",
        (true, true) if planned.has_slots => "it has no CPUs: work on its slots is done elsewhere",
        (true, true) => "it has no CPUs (memory of a device or an expander): no slots lie there",
        (false, false) => "it has no memory: what is asked for there lies on the nearest node",
        (true, false) if planned.cpus.is_empty() => {
            "this process may not run on its CPUs: work on its slots is done elsewhere"
        }
        (true, false) => return None,
    };
    Some(format!("numa: node {id}: {why}"))
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
