//! Nodes of written machines and of this one, memory and threads on them, and what happens where
//! the kernel forbids the calls.

use forebay_io::{
    NodeId, NumaPlan, PciAddress, SysfsTopology, Topology, TopologyError, bind_memory,
    current_node, page_nodes, pin_thread,
};
use forebay_shm::{Segment, SegmentId, SegmentSpec};
use forebay_testkit::contract::topology;
use forebay_testkit::{WrittenMachine, WrittenNode};

use crate::forbidden::{confined, forbid};

fn node(id: u32, cpus: &'static str, memory_kilobytes: u64) -> WrittenNode {
    WrittenNode { id, cpus, memory_kilobytes }
}

fn two_nodes() -> WrittenMachine {
    WrittenMachine::new(&[node(0, "0-3", 1 << 20), node(1, "4-7", 1 << 20)])
}

fn plan(machine: &WrittenMachine) -> NumaPlan {
    NumaPlan::of(&machine.topology())
}

fn slots(plan: &NumaPlan) -> Vec<u32> {
    plan.slot_nodes().map(|node| node.id.0).collect()
}

#[test]
fn this_machine_keeps_the_contract() {
    topology(&SysfsTopology::system());
}

#[test]
fn written_machines_keep_the_contract() {
    let machines = [
        vec![node(0, "0-7", 1 << 20)],
        vec![node(0, "0-3", 1 << 20), node(1, "4-7", 1 << 20)],
        vec![node(0, "0-1,8-9", 1 << 20), node(1, "2-3", 0), node(2, "", 1 << 20)],
        vec![node(0, "0", 1 << 20), node(5, "2,4", 1 << 20), node(1000, "6", 4)],
        vec![node(3, "", 0)],
    ];
    for nodes in machines {
        let machine = WrittenMachine::new(&nodes);
        topology(&machine.topology());
        for (cpus, nodes) in [("0-1", "0"), ("63", "9"), ("", "")] {
            machine.allow(cpus, nodes);
            topology(&machine.topology());
        }
        machine.remove("proc/self/status");
        topology(&machine.topology());
        machine.remove("sys/devices/system/node/online");
        topology(&machine.topology());
    }
}

#[test]
fn two_nodes_are_read() {
    let found = two_nodes().topology().nodes().unwrap();
    assert!(found.unreadable.is_empty(), "{found:?}");
    let [first, second] = &found.nodes[..] else { panic!("{found:?}") };
    assert_eq!((first.id, second.id), (NodeId(0), NodeId(1)));
    assert_eq!(second.cpus.to_string(), "4-7");
    let cores: Vec<String> = second.cores.iter().map(ToString::to_string).collect();
    assert_eq!(cores, ["4-5", "6-7"]);
    assert_eq!(second.memory_bytes, 1 << 30);
    assert_eq!(second.distances[&NodeId(0)], 20);
}

#[test]
fn a_cpuset_narrows_the_plan() {
    let machine = two_nodes();
    machine.allow("4-5,9", "1");
    let plan = plan(&machine);
    assert_eq!(slots(&plan), [1]);
    assert_eq!(plan.nodes()[1].cpus.to_string(), "4-5");
    assert_eq!((plan.nodes()[1].cores, plan.nodes()[0].cores), (1, 0));
    assert_eq!(plan.degraded().len(), 1, "{:?}", plan.degraded());
}

#[test]
fn distances_follow_the_nodes_that_are_online() {
    let machine = WrittenMachine::new(&[node(0, "0-1", 4096), node(4, "2-3", 4096)]);
    machine.write("sys/devices/system/node/node4/distance", "31 10 what\n");
    let found = machine.topology().nodes().unwrap();
    let distances: Vec<_> = found.nodes[1].distances.iter().collect();
    assert_eq!(distances, [(&NodeId(0), &31), (&NodeId(4), &10)]);
}

#[test]
fn garbage_leaves_out_what_it_is_about_and_is_said() {
    for (file, text) in [
        ("cpulist", "0-99999999999\n"),
        ("cpulist", "\u{0}\u{1}"),
        ("meminfo", "Node 1 MemTotal: many kB\n"),
        ("meminfo", "Node 1 MemTotal: 99999999999999999999 kB\n"),
        ("meminfo", ""),
    ] {
        let machine = two_nodes();
        machine.write(&format!("sys/devices/system/node/node1/{file}"), text);
        topology(&machine.topology());
        let plan = plan(&machine);
        assert_eq!(slots(&plan), [0], "{file}");
        let said = plan.degraded().iter().any(|why| why.contains(file));
        assert!(said, "{file}: {:?}", plan.degraded());
    }
    let machine = two_nodes();
    machine.remove("sys/devices/system/node/node1/distance");
    assert_eq!(slots(&plan(&machine)), [0, 1], "only the order of others is lost");
    assert!(plan(&machine).degraded()[0].contains("distance"));
    machine.write("sys/devices/system/cpu/cpu4/topology/thread_siblings_list", "no\n");
    assert_eq!(plan(&machine).nodes()[1].cores, 3, "a CPU without siblings is a core");
    for online in ["", "zero\n", "9-3"] {
        machine.write("sys/devices/system/node/online", online);
        let plan = plan(&machine);
        assert_eq!(slots(&plan), [0], "{online}");
        assert!(plan.degraded()[0].contains("not placed"), "{:?}", plan.degraded());
    }
    machine.write("proc/self/status", "Mems_allowed_list:\t-\n");
    let plan = plan(&machine);
    assert!(plan.degraded()[0].contains("may use is not known"), "{:?}", plan.degraded());
}

#[test]
fn devices_hang_on_nodes() {
    let machine = two_nodes();
    let gpu = |bus| PciAddress { domain: 0, bus, device: 0, function: 0 };
    machine.device("0000:3b:00.0", "1\n");
    machine.device("0000:3c:00.0", "-1\n");
    machine.device("0000:3d:00.0", "east\n");
    let topology = machine.topology();
    assert_eq!(topology.node_of(gpu(0x3b)).unwrap(), Some(NodeId(1)));
    assert_eq!(topology.node_of(gpu(0x3c)).unwrap(), None);
    let garbage = topology.node_of(gpu(0x3d)).unwrap_err();
    assert!(matches!(garbage, TopologyError::Malformed { .. }), "{garbage}");
    let missing = topology.node_of(gpu(0x3e)).unwrap_err();
    assert!(missing.to_string().contains("0000:3e:00.0"), "{missing}");
}

fn segment_on(node: NodeId) -> std::sync::Arc<Segment> {
    let spec =
        SegmentSpec { id: SegmentId(1), domain: 0, slot_bytes: 1 << 20, slots: 3, lock: false };
    let bind = |memory: *const [u8]| bind_memory(memory, node).expect("a node of this machine");
    Segment::create_with(&spec, bind).expect("a segment")
}

#[test]
fn memory_lies_where_it_was_asked_for() {
    let plan = NumaPlan::of(&SysfsTopology::system());
    for node in plan.slot_nodes() {
        if forbidden_here(node.id) {
            continue;
        }
        let segment = segment_on(node.id);
        let pages = page_nodes(segment.slot_memory(), usize::MAX).expect("they can be asked for");
        let all = (3 << 20) / rustix::param::page_size() as u64;
        assert_eq!((pages.most(), pages.missing), (Some(node.id), 0), "{pages:?}");
        assert_eq!(pages.pages[&node.id], all, "{pages:?}");
        let few = page_nodes(segment.slot_memory(), 5).expect("they can be asked for");
        assert!((1..=5).contains(&few.pages[&node.id]), "{few:?}");
    }
}

/// Whether this process may not place memory, as in some containers; says so.
#[expect(clippy::print_stdout, reason = "says why a test was skipped")]
fn forbidden_here(node: NodeId) -> bool {
    let spec =
        SegmentSpec { id: SegmentId(2), domain: 0, slot_bytes: 64 << 10, slots: 1, lock: false };
    let segment = Segment::create(&spec).expect("a segment");
    let memory = segment.slot_memory();
    let refused = bind_memory(memory, node).err().or_else(|| page_nodes(memory, 1).err());
    if let Some(why) = &refused {
        println!("skipped: memory cannot be placed here: {why}");
    }
    refused.is_some()
}

#[test]
fn what_is_forbidden_is_a_reason_and_no_failure() {
    if !confined("numa::what_is_forbidden_is_a_reason_and_no_failure") {
        return;
    }
    let spec =
        SegmentSpec { id: SegmentId(1), domain: 0, slot_bytes: 64 << 10, slots: 1, lock: false };
    forbid(libc::SYS_mbind, libc::EPERM);
    forbid(libc::SYS_move_pages, libc::ENOSYS);
    forbid(libc::SYS_sched_setaffinity, libc::EPERM);
    let mut bound = Ok(());
    let segment = Segment::create_with(&spec, |memory| bound = bind_memory(memory, NodeId(0)));
    let segment = segment.expect("memory without a place is memory");
    assert_eq!(bound.unwrap_err().label(), "forbidden");
    let looked = page_nodes(segment.slot_memory(), 1).unwrap_err();
    assert_eq!(looked.label(), "not_in_kernel");
    let pinned = pin_thread(&"0".parse().unwrap()).unwrap_err();
    assert!(pinned.to_string().contains("seccomp"), "{pinned}");
    current_node().expect("getcpu is not forbidden");
}
