//! The seam: what a machine says of its nodes.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::path::PathBuf;

use super::list::{CpuList, NodeList};
use super::{NodeId, PciAddress};

/// What a machine says of itself. Facts only; what is made of them is a
/// [`NumaPlan`](super::NumaPlan). Its calls read a few small files that are never on a disk.
pub trait Topology: fmt::Debug + Send + Sync {
    /// The nodes that are online.
    fn nodes(&self) -> Result<Nodes, TopologyError>;

    /// What this process may use of them.
    fn allowed(&self) -> Result<Allowed, TopologyError>;

    /// The node that a device hangs on; none where the firmware does not say.
    fn node_of(&self, device: PciAddress) -> Result<Option<NodeId>, TopologyError>;
}

/// The nodes of a machine.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Nodes {
    /// By ascending number.
    pub nodes: Vec<NumaNode>,
    /// What could not be read of them and was left out: one sentence each.
    pub unreadable: Vec<String>,
}

/// One node that is online.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NumaNode {
    /// Its number.
    pub id: NodeId,
    /// Its CPUs that are online. None: memory of a device, or of an expander.
    pub cpus: CpuList,
    /// The same by physical cores: the threads of each.
    pub cores: Vec<CpuList>,
    /// Its memory; 0 for a node without.
    pub memory_bytes: u64,
    /// How far other nodes are, 10 being its own distance; those that are not known are left out.
    pub distances: BTreeMap<NodeId, u32>,
}

/// What a process may use.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Allowed {
    /// CPUs that its threads may run on; all if it is not known.
    pub cpus: Option<CpuList>,
    /// Nodes that its memory may come from; all if it is not known.
    pub memory: Option<NodeList>,
}

/// Why a machine's nodes are not known. `Display` is a sentence for a person.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TopologyError {
    /// The kernel was built without NUMA, or hides it.
    #[error("this kernel tells of no NUMA nodes")]
    NoNuma,
    /// There is no such device.
    #[error("there is no PCI device {0} on this machine")]
    NoSuchDevice(PciAddress),
    /// A file that should be there cannot be read.
    #[error("{path}: {source}", path = path.display())]
    Unreadable {
        /// Which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file that holds something else than it should.
    #[error("{path} is not understood: {why}", path = path.display())]
    Malformed {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
}
