//! Machines as a test writes them: the files that sysfs and procfs would have.

use std::fs;
use std::path::Path;

use forebay_io::SysfsTopology;
use tempfile::TempDir;

use crate::temp_dir;

/// One node of a written machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WrittenNode {
    /// Its number.
    pub id: u32,
    /// Its CPUs as the kernel lists them, `0-3,8`; two neighbours are the threads of a core.
    pub cpus: &'static str,
    /// Its memory.
    pub memory_kilobytes: u64,
}

/// The files of a machine, until it is dropped.
#[derive(Debug)]
pub struct WrittenMachine {
    root: TempDir,
}

impl WrittenMachine {
    /// A machine whose nodes are 20 from each other; the process may use all of it.
    ///
    /// # Panics
    /// If its files cannot be written.
    #[must_use]
    pub fn new(nodes: &[WrittenNode]) -> Self {
        let machine = Self { root: temp_dir() };
        let online: Vec<String> = nodes.iter().map(|node| node.id.to_string()).collect();
        machine.write("sys/devices/system/node/online", &(online.join(",") + "\n"));
        for node in nodes {
            let folder = format!("sys/devices/system/node/node{}", node.id);
            machine.write(&format!("{folder}/cpulist"), &format!("{}\n", node.cpus));
            let (id, kilobytes) = (node.id, node.memory_kilobytes);
            let meminfo = format!(
                "Node {id} MemTotal:       {kilobytes} kB\nNode {id} MemFree:        1 kB\n"
            );
            machine.write(&format!("{folder}/meminfo"), &meminfo);
            let distances = nodes.iter().map(|to| if to.id == id { "10" } else { "20" });
            let distances: Vec<&str> = distances.collect();
            machine.write(&format!("{folder}/distance"), &(distances.join(" ") + "\n"));
            for cpu in cpus(node.cpus) {
                let core = cpu / 2 * 2;
                let topology = format!("sys/devices/system/cpu/cpu{cpu}/topology");
                let siblings = format!("{core}-{}\n", core + 1);
                machine.write(&format!("{topology}/thread_siblings_list"), &siblings);
            }
        }
        machine.allow("0-4095", "0-1023");
        machine
    }

    /// What the process may use.
    pub fn allow(&self, cpus: &str, nodes: &str) {
        let status =
            format!("Name:\tforebayd\nCpus_allowed_list:\t{cpus}\nMems_allowed_list:\t{nodes}\n");
        self.write("proc/self/status", &status);
    }

    /// A PCI device, by its name in sysfs, and what its `numa_node` says.
    pub fn device(&self, address: &str, numa_node: &str) {
        self.write(&format!("sys/bus/pci/devices/{address}/numa_node"), numa_node);
    }

    /// Writes one file, whatever was there.
    ///
    /// # Panics
    /// If it cannot be written.
    pub fn write(&self, path: &str, text: &str) {
        let path = self.root.path().join(path);
        fs::create_dir_all(path.parent().expect("a path in a folder")).expect("a folder");
        fs::write(path, text).expect("a file");
    }

    /// Removes one file.
    ///
    /// # Panics
    /// If it is not there.
    pub fn remove(&self, path: &str) {
        fs::remove_file(self.root.path().join(path)).expect("a file that is there");
    }

    /// Where its files are.
    #[must_use]
    pub fn root(&self) -> &Path {
        self.root.path()
    }

    /// The real topology over them.
    #[must_use]
    pub fn topology(&self) -> SysfsTopology {
        SysfsTopology::written(self.root())
    }
}

fn cpus(list: &str) -> Vec<u32> {
    let list: forebay_io::CpuList = list.parse().expect("a list of CPUs");
    list.iter().collect()
}
