//! What every [`Topology`] must tell.

use std::collections::BTreeSet;

use forebay_io::{Near, NodeId, NumaPlan, PciAddress, Topology, TopologyError};

/// Runs every case of the contract.
///
/// # Panics
/// If a rule is broken.
pub fn topology(topology: &dyn Topology) {
    nodes_are_apart(topology);
    cores_are_the_cpus(topology);
    it_says_the_same_again(topology);
    a_device_that_is_not_there_is_named(topology);
    there_is_always_a_plan(topology);
}

fn nodes_are_apart(topology: &dyn Topology) {
    let Ok(found) = topology.nodes() else { return };
    assert!(!found.nodes.is_empty(), "a machine has a node, or an error says why not");
    assert!(
        found.nodes.windows(2).all(|pair| pair[0].id < pair[1].id),
        "nodes come by ascending number, each once"
    );
    let mut seen = BTreeSet::new();
    for cpu in found.nodes.iter().flat_map(|node| node.cpus.iter()) {
        assert!(seen.insert(cpu), "CPU {cpu} is on two nodes");
    }
    let known: BTreeSet<NodeId> = found.nodes.iter().map(|node| node.id).collect();
    for node in found.nodes.iter().filter(|_| found.unreadable.is_empty()) {
        assert!(
            node.distances.keys().all(|to| known.contains(to)),
            "distances are to nodes that are online"
        );
    }
}

fn cores_are_the_cpus(topology: &dyn Topology) {
    let Ok(found) = topology.nodes() else { return };
    for node in &found.nodes {
        let of_cores: Vec<u32> = node.cores.iter().flat_map(|core| core.iter()).collect();
        let once: BTreeSet<u32> = of_cores.iter().copied().collect();
        assert_eq!(once.len(), of_cores.len(), "a CPU is a thread of one core");
        assert!(node.cpus.iter().eq(once), "the cores of a node are its CPUs");
        assert!(node.cores.iter().all(|core| !core.is_empty()), "a core has a thread");
    }
}

fn it_says_the_same_again(topology: &dyn Topology) {
    let nodes = || topology.nodes().ok().map(|found| found.nodes.len());
    assert_eq!(nodes(), nodes(), "nothing was plugged in meanwhile");
    let allowed = || topology.allowed().ok();
    assert_eq!(allowed(), allowed(), "nothing was allowed meanwhile");
}

fn a_device_that_is_not_there_is_named(topology: &dyn Topology) {
    let device = PciAddress { domain: 0xfffe_dcba, bus: 0xff, device: 31, function: 7 };
    let told = topology.node_of(device);
    let named = matches!(told, Err(TopologyError::NoSuchDevice(named)) if named == device);
    assert!(named, "there is no PCI domain of that number: {told:?}");
}

fn there_is_always_a_plan(topology: &dyn Topology) {
    let plan = NumaPlan::of(topology);
    assert!(plan.slot_nodes().next().is_some(), "slots have a place");
    for node in plan.nodes() {
        assert!(node.cores <= node.cpus.len(), "no more cores than threads");
        let near = match plan.near(node.id) {
            Near::There(near) | Near::Instead { node: near, .. } => Some(near),
            Near::Anywhere { .. } => None,
        };
        assert!(plan.slot_nodes().any(|slots| Some(slots.id) == near), "what is near has slots");
        assert_eq!(near == Some(node.id), node.has_slots, "there if it has slots, else elsewhere");
        if !node.cpus.is_empty() {
            assert_eq!(plan.workers_for(node.id), Some(node.id), "its own CPUs are the nearest");
        }
    }
    assert!(matches!(plan.near(NodeId(u32::MAX)), Near::Anywhere { .. }), "no such node");
}
