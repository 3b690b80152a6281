//! Plans of machines that a test makes up.

use super::*;
use crate::numa::PciAddress;

/// A machine as its facts.
#[derive(Debug)]
struct Facts(Result<Nodes, fn() -> TopologyError>, Allowed);

impl Topology for Facts {
    fn nodes(&self) -> Result<Nodes, TopologyError> {
        self.0.clone().map_err(|error| error())
    }

    fn allowed(&self) -> Result<Allowed, TopologyError> {
        Ok(self.1.clone())
    }

    fn node_of(&self, device: PciAddress) -> Result<Option<NodeId>, TopologyError> {
        Err(TopologyError::NoSuchDevice(device))
    }
}

/// A node: its number, CPUs in pairs of threads, memory in GiB, distances to nodes 0, 1, ...
fn node(id: u32, cpus: &str, gib: u64, distances: &[u32]) -> NumaNode {
    let cpus: CpuList = cpus.parse().unwrap();
    let all: Vec<u32> = cpus.iter().collect();
    NumaNode {
        id: NodeId(id),
        cores: all.chunks(2).map(|core| core.iter().copied().collect()).collect(),
        cpus,
        memory_bytes: gib << 30,
        distances: (0..).map(NodeId).zip(distances.iter().copied()).collect(),
    }
}

fn two() -> Vec<NumaNode> {
    vec![node(0, "0-3", 64, &[10, 21]), node(1, "4-7", 64, &[21, 10])]
}

fn plan(nodes: Vec<NumaNode>, cpus: Option<&str>, memory: Option<&str>) -> NumaPlan {
    let allowed = Allowed {
        cpus: cpus.map(|cpus| cpus.parse().unwrap()),
        memory: memory.map(|nodes| nodes.parse().unwrap()),
    };
    NumaPlan::of(&Facts(Ok(Nodes { nodes, unreadable: Vec::new() }), allowed))
}

fn ids<'a>(nodes: impl Iterator<Item = &'a PlannedNode>) -> Vec<u32> {
    nodes.map(|node| node.id.0).collect()
}

#[test]
fn two_nodes_have_slots_and_workers() {
    let plan = plan(two(), None, None);
    assert_eq!((ids(plan.slot_nodes()), ids(plan.work_nodes())), (vec![0, 1], vec![0, 1]));
    assert_eq!(plan.nodes()[1].cores, 2);
    assert_eq!(plan.near(NodeId(1)), Near::There(NodeId(1)));
    assert_eq!(plan.workers_for(NodeId(1)), Some(NodeId(1)));
    assert!(plan.degraded().is_empty(), "{:?}", plan.degraded());
}

#[test]
fn a_machine_that_tells_of_no_nodes_has_one() {
    let plan = NumaPlan::of(&Facts(Err(|| TopologyError::NoNuma), Allowed::default()));
    assert_eq!((ids(plan.slot_nodes()), ids(plan.work_nodes())), (vec![0], vec![]));
    assert!(plan.degraded().is_empty(), "nothing is missing that could be had");
    let bad = || TopologyError::Malformed { path: "/x".into(), why: "garbage".into() };
    let plan = NumaPlan::of(&Facts(Err(bad), Allowed::default()));
    assert_eq!(ids(plan.slot_nodes()), [0]);
    assert!(plan.degraded()[0].contains("garbage"), "{:?}", plan.degraded());
}

#[test]
fn a_node_without_memory_sends_to_the_nearest() {
    let mut nodes = two();
    nodes.push(node(2, "8-9", 0, &[40, 20, 10]));
    let plan = plan(nodes, None, None);
    assert_eq!((ids(plan.slot_nodes()), ids(plan.work_nodes())), (vec![0, 1], vec![0, 1, 2]));
    let Near::Instead { node, why } = plan.near(NodeId(2)) else { panic!("{plan:?}") };
    assert_eq!(node, NodeId(1));
    assert!(why.contains("node 2 has no slots") && why.contains("node 1"), "{why}");
    assert!(plan.degraded()[0].contains("node 2: it has no memory"), "{:?}", plan.degraded());
}

#[test]
fn memory_without_cpus_is_left_alone_unless_there_is_nothing_else() {
    let mut nodes = two();
    nodes.push(node(2, "", 96, &[20, 40, 10]));
    let mixed = plan(nodes, None, None);
    assert_eq!((ids(mixed.slot_nodes()), ids(mixed.work_nodes())), (vec![0, 1], vec![0, 1]));
    assert_eq!(mixed.workers_for(NodeId(2)), Some(NodeId(0)));
    assert!(mixed.degraded()[0].contains("no slots lie there"), "{:?}", mixed.degraded());
    let nodes = vec![node(0, "0-3", 0, &[10, 20]), node(1, "", 64, &[20, 10])];
    let apart = plan(nodes, None, None);
    assert_eq!((ids(apart.slot_nodes()), ids(apart.work_nodes())), (vec![1], vec![0]));
    assert_eq!(apart.workers_for(NodeId(1)), Some(NodeId(0)));
    assert!(apart.degraded()[1].contains("done elsewhere"), "{:?}", apart.degraded());
}

#[test]
fn a_node_with_neither_is_no_trouble() {
    let mut nodes = two();
    nodes.push(node(2, "", 0, &[12, 40, 10]));
    let plan = plan(nodes, None, None);
    assert!(plan.degraded().is_empty(), "{:?}", plan.degraded());
    assert!(matches!(plan.near(NodeId(2)), Near::Instead { node: NodeId(0), .. }));
}

#[test]
fn cpusets_are_kept_and_said() {
    let memory = plan(two(), None, Some("1"));
    assert_eq!((ids(memory.slot_nodes()), ids(memory.work_nodes())), (vec![1], vec![0, 1]));
    assert!(matches!(memory.near(NodeId(0)), Near::Instead { node: NodeId(1), .. }));
    assert!(
        memory.degraded()[0].contains("node 0: this process may not use its memory"),
        "{:?}",
        memory.degraded()
    );
    let cpus = plan(two(), Some("1-3"), None);
    assert_eq!((ids(cpus.slot_nodes()), ids(cpus.work_nodes())), (vec![0, 1], vec![0]));
    assert_eq!((cpus.nodes()[0].cores, cpus.nodes()[1].cores), (2, 0));
    assert_eq!(cpus.workers_for(NodeId(1)), Some(NodeId(0)));
    assert!(
        cpus.degraded()[0].contains("node 1: this process may not run on its CPUs"),
        "{:?}",
        cpus.degraded()
    );
}

#[test]
fn a_cpuset_that_fits_no_node_still_gives_a_plan() {
    let plan = plan(two(), Some("60"), Some("9"));
    assert_eq!((ids(plan.slot_nodes()), ids(plan.work_nodes())), (vec![0], vec![]));
    assert!(plan.degraded()[0].contains("no node has memory"), "{:?}", plan.degraded());
}

#[test]
fn numbers_with_holes_and_missing_distances() {
    let nodes = vec![node(0, "0-1", 8, &[]), node(4, "2-3", 8, &[]), node(7, "4-5", 0, &[])];
    let plan = plan(nodes, None, None);
    assert_eq!(ids(plan.slot_nodes()), [0, 4]);
    assert_eq!(plan.near(NodeId(4)), Near::There(NodeId(4)));
    assert!(matches!(plan.near(NodeId(7)), Near::Instead { node: NodeId(0), .. }));
    let Near::Anywhere { why } = plan.near(NodeId(1)) else { panic!("{plan:?}") };
    assert!(why.contains("no node 1") && why.contains("0, 4, 7"), "{why}");
    assert_eq!(plan.workers_for(NodeId(4)), Some(NodeId(4)));
}
