//! The topology as sysfs and procfs tell it, below a root that tests replace.

use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};

use super::list::{CpuList, NodeList};
use super::topology::{Allowed, Nodes, NumaNode, Topology, TopologyError};
use super::{NodeId, PciAddress, thread};

/// No file that is read here comes close.
const FILE_BYTES_MAX: u64 = 256 << 10;

/// The topology that `/sys` and `/proc` tell of.
#[derive(Debug, Clone)]
pub struct SysfsTopology {
    root: PathBuf,
    /// What the calling thread may run on, which a cpuset narrows further than files tell.
    affinity: fn() -> Option<CpuList>,
}

impl SysfsTopology {
    /// This machine.
    #[must_use]
    pub fn system() -> Self {
        Self { root: "/".into(), affinity: thread::affinity }
    }

    /// The machine that the files below `root` describe: `sys/devices/system/{node,cpu}`,
    /// `sys/bus/pci/devices` and `proc/self/status`.
    pub fn written(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into(), affinity: || None }
    }

    fn path(&self, relative: impl AsRef<Path>) -> PathBuf {
        self.root.join(relative)
    }

    /// One of the nodes that are `online`.
    fn node(
        &self,
        id: NodeId,
        online: &NodeList,
        unreadable: &mut Vec<String>,
    ) -> Result<NumaNode, TopologyError> {
        let folder = self.path(format!("sys/devices/system/node/node{id}"));
        let cpus: CpuList = parsed(&folder.join("cpulist"))?;
        let memory_bytes = memory(&folder.join("meminfo"))?;
        let cores = self.cores(&cpus);
        // What is lost without it is only which other node is the next best.
        let distances = read(&folder.join("distance")).unwrap_or_else(|error| {
            unreadable.push(error.to_string());
            String::new()
        });
        // They come in the order of the nodes that are online.
        let distances = online.iter().zip(distances.split_whitespace());
        let distances = distances.filter_map(|(id, word)| Some((id, word.parse().ok()?))).collect();
        Ok(NumaNode { id, cpus, cores, memory_bytes, distances })
    }

    /// The physical cores of some CPUs. A CPU whose siblings are not told is a core of its own.
    fn cores(&self, cpus: &CpuList) -> Vec<CpuList> {
        let mut cores: Vec<CpuList> = Vec::new();
        for cpu in cpus.iter() {
            if cores.iter().any(|core| core.contains(cpu)) {
                continue;
            }
            let folder = self.path(format!("sys/devices/system/cpu/cpu{cpu}/topology"));
            let siblings = parsed::<CpuList>(&folder.join("core_cpus_list"))
                .or_else(|_| parsed::<CpuList>(&folder.join("thread_siblings_list")));
            let known = siblings.ok().filter(|siblings| siblings.contains(cpu));
            let core = known.map(|siblings| siblings.both(cpus)).unwrap_or_default();
            let taken = |cpu| cores.iter().any(|core| core.contains(cpu));
            let core: CpuList = core.iter().filter(|cpu| !taken(*cpu)).chain([cpu]).collect();
            cores.push(core);
        }
        cores
    }
}

impl Topology for SysfsTopology {
    fn nodes(&self) -> Result<Nodes, TopologyError> {
        let online = self.path("sys/devices/system/node/online");
        let ids: NodeList = match parsed(&online) {
            Err(TopologyError::Unreadable { source, .. })
                if source.kind() == ErrorKind::NotFound =>
            {
                return Err(TopologyError::NoNuma);
            }
            read => read?,
        };
        let mut found = Nodes::default();
        for id in ids.iter() {
            // One node that is odd, or leaves while it is looked at, is left out.
            match self.node(id, &ids, &mut found.unreadable) {
                Ok(node) => found.nodes.push(node),
                Err(error) => found.unreadable.push(error.to_string()),
            }
        }
        if found.nodes.is_empty() {
            let why = found.unreadable.into_iter().next().unwrap_or_else(|| "it is empty".into());
            return Err(TopologyError::Malformed { path: online, why });
        }
        Ok(found)
    }

    fn allowed(&self) -> Result<Allowed, TopologyError> {
        let path = self.path("proc/self/status");
        let text = read(&path)?;
        let line = |name: &str| text.lines().find_map(|line| line.strip_prefix(name));
        let malformed = |why: String| TopologyError::Malformed { path: path.clone(), why };
        let cpus = line("Cpus_allowed_list:").map(str::parse::<CpuList>).transpose();
        let cpus = cpus.map_err(|error| malformed(error.to_string()))?;
        let memory = line("Mems_allowed_list:").map(str::parse::<NodeList>).transpose();
        let memory = memory.map_err(|error| malformed(error.to_string()))?;
        let cpus = match (cpus, (self.affinity)()) {
            (Some(told), Some(own)) => Some(told.both(&own)),
            (told, own) => told.or(own),
        };
        Ok(Allowed { cpus, memory })
    }

    fn node_of(&self, device: PciAddress) -> Result<Option<NodeId>, TopologyError> {
        let path = self.path(format!("sys/bus/pci/devices/{device}/numa_node"));
        let text = match read(&path) {
            Err(TopologyError::Unreadable { source, .. })
                if source.kind() == ErrorKind::NotFound =>
            {
                return Err(TopologyError::NoSuchDevice(device));
            }
            text => text?,
        };
        let node = text.trim().parse::<i32>();
        let node =
            node.map_err(|error| TopologyError::Malformed { path, why: error.to_string() })?;
        // -1: the firmware does not say.
        Ok(u32::try_from(node).ok().map(NodeId))
    }
}

fn read(path: &Path) -> Result<String, TopologyError> {
    let mut text = String::new();
    let reading = std::fs::File::open(path)
        .and_then(|file| file.take(FILE_BYTES_MAX).read_to_string(&mut text));
    match reading {
        Ok(_) => Ok(text),
        Err(source) => Err(TopologyError::Unreadable { path: path.to_owned(), source }),
    }
}

fn parsed<T: std::str::FromStr<Err: std::fmt::Display>>(path: &Path) -> Result<T, TopologyError> {
    let malformed = |why: String| TopologyError::Malformed { path: path.to_owned(), why };
    read(path)?.parse().map_err(|error: T::Err| malformed(error.to_string()))
}

/// The memory of a node: its line is `Node 0 MemTotal:  16330408 kB`.
fn memory(path: &Path) -> Result<u64, TopologyError> {
    let text = read(path)?;
    let total = text.lines().find_map(|line| line.split_once("MemTotal:").map(|(_, rest)| rest));
    let kilobytes = total.and_then(|rest| rest.trim().strip_suffix("kB")?.trim().parse().ok());
    let bytes = kilobytes.and_then(|kilobytes: u64| kilobytes.checked_mul(1024));
    let why = || "there is no line `MemTotal: N kB`".to_owned();
    bytes.ok_or_else(|| TopologyError::Malformed { path: path.to_owned(), why: why() })
}
