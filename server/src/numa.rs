//! Where a load's slots should lie: what it asks for, made into a NUMA node of this machine.
//!
//! A GPU is asked for by its PCI address; sysfs says which node it hangs on. Firmware that does not
//! say, a node without slots, a device that is not there: none of that fails a load. Its slots lie
//! as near as can be, its report says why, and a metric counts it.

use std::sync::Arc;

use forebay_io::{Near, NodeId, NumaPlan, PciAddress, Topology, TopologyError};
use forebay_proto::Placement;

use crate::metrics;

/// The machine's nodes.
#[derive(Debug)]
pub(crate) struct Numa {
    topology: Arc<dyn Topology>,
    plan: Arc<NumaPlan>,
}

/// Where the slots of one load should lie.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Placed {
    /// What was asked for, in words.
    pub(crate) asked: String,
    /// The node that this means, if it is known: what lies there is near.
    pub(crate) wanted: Option<NodeId>,
    /// The node that slots are taken from; none: any.
    pub(crate) node: Option<NodeId>,
    /// Why it is not the one that was asked for.
    pub(crate) degraded: Option<String>,
}

impl Numa {
    /// The nodes that `topology` tells of.
    pub(crate) fn survey(topology: Arc<dyn Topology>) -> Self {
        let plan = Arc::new(NumaPlan::of(&*topology));
        Self { topology, plan }
    }

    /// What is made of the machine's nodes.
    pub(crate) fn plan(&self) -> &Arc<NumaPlan> {
        &self.plan
    }

    /// Where slots lie that are asked for like this. Reads a file of sysfs for a GPU.
    pub(crate) fn place(&self, wish: Placement) -> Placed {
        let wanted = match wish {
            Placement::Node(node) => Ok(NodeId(node)),
            Placement::Gpu(address) => self.node_of(address),
        };
        let (wanted, near) = match wanted {
            Ok(wanted) => (Some(wanted), self.plan.near(wanted)),
            Err(why) => (None, Near::Anywhere { why }),
        };
        let (node, degraded, reason) = match near {
            Near::There(node) => (Some(node), None, None),
            Near::Instead { node, why } => (Some(node), Some(why), Some("no_slots_there")),
            Near::Anywhere { why } => (None, Some(why), Some("no_node")),
        };
        if let Some(reason) = reason {
            metrics::unplaced(reason);
        }
        Placed { asked: wish.to_string(), wanted, node, degraded }
    }

    fn node_of(&self, gpu: forebay_proto::PciAddress) -> Result<NodeId, String> {
        let forebay_proto::PciAddress { domain, bus, device, function } = gpu;
        let mut slot_nodes = self.plan.slot_nodes().map(|node| node.id);
        let only = slot_nodes.next().filter(|_| slot_nodes.next().is_none());
        match self.topology.node_of(PciAddress { domain, bus, device, function }) {
            Ok(Some(node)) => Ok(node),
            // Firmware of machines with one node often says nothing: it is that one.
            Ok(None) => only.ok_or_else(|| format!("the firmware does not say where {gpu} hangs")),
            Err(error @ TopologyError::NoSuchDevice(_)) => Err(error.to_string()),
            Err(error) => Err(format!("where {gpu} hangs is not known: {error}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use forebay_testkit::{WrittenMachine, WrittenNode};

    use super::*;

    fn machine(memory: &[u64]) -> WrittenMachine {
        const CPUS: [&str; 3] = ["0-1", "2-3", "4-5"];
        let node = |(id, memory_kilobytes): (u32, &u64)| WrittenNode {
            id,
            cpus: CPUS[id as usize],
            memory_kilobytes: *memory_kilobytes,
        };
        let machine = WrittenMachine::new(&(0..).zip(memory).map(node).collect::<Vec<_>>());
        machine.device("0000:3b:00.0", "1\n");
        machine.device("0000:3c:00.0", "-1\n");
        machine.device("0000:3d:00.0", "2\n");
        machine
    }

    fn place(machine: &WrittenMachine, wish: &str) -> Placed {
        let numa = Numa::survey(Arc::new(machine.topology()));
        let wish = match wish.parse() {
            Ok(node) => Placement::Node(node),
            Err(_) => Placement::Gpu(wish.parse().unwrap()),
        };
        numa.place(wish)
    }

    fn node(placed: &Placed) -> Option<u32> {
        placed.node.map(|node| node.0)
    }

    #[test]
    fn a_gpu_s_slots_lie_where_it_hangs() {
        let machine = machine(&[1 << 20, 1 << 20]);
        let placed = place(&machine, "00000000:3B:00.0");
        assert_eq!((node(&placed), placed.wanted), (Some(1), Some(NodeId(1))));
        assert_eq!((placed.asked.as_str(), placed.degraded), ("gpu 0000:3b:00.0", None));
        let placed = place(&machine, "0");
        assert_eq!((node(&placed), placed.asked.as_str()), (Some(0), "node 0"));
    }

    #[test]
    fn what_cannot_be_had_degrades_and_says_why() {
        let machine = machine(&[1 << 20, 1 << 20, 0]);
        for (wish, used, wanted, why) in [
            ("3c:00.0", None, None, "firmware does not say"),
            ("3e:00.0", None, None, "no PCI device 0000:3e:00.0"),
            ("3d:00.0", Some(0), Some(2), "node 2 has no slots"),
            ("2", Some(0), Some(2), "node 2 has no slots"),
            ("9", None, Some(9), "no node 9"),
        ] {
            let placed = place(&machine, wish);
            assert_eq!((node(&placed), placed.wanted), (used, wanted.map(NodeId)), "{wish}");
            let said = placed.degraded.unwrap();
            assert!(said.contains(why), "{wish}: {said}");
        }
    }

    #[test]
    fn on_one_node_silence_of_the_firmware_is_no_loss() {
        let placed = place(&machine(&[1 << 20]), "3c:00.0");
        assert_eq!((node(&placed), placed.degraded), (Some(0), None));
    }
}
