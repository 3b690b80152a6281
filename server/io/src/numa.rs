//! NUMA: which nodes there are, which of them this process may use, and how memory and threads are
//! put on one.
//!
//! ```text
//!   Topology (seam) ── facts ──► NumaPlan ── nodes for slots, CPUs for workers, what degrades
//!     sysfs, or a written tree                  │
//!                                               ├─► bind_memory   before pages exist   (mbind)
//!                                               ├─► page_nodes    where they came to lie (move_pages)
//!                                               └─► pin_thread, current_node
//! ```
//!
//! Nothing here is essential. A kernel without NUMA, a container whose seccomp profile forbids the
//! calls, a cpuset that leaves one node: each is a typed reason, and memory and threads stay where
//! the kernel puts them.

mod list;
mod memory;
mod plan;
mod sysfs;
mod thread;
mod topology;

pub use list::{CpuList, NodeList};
pub use memory::{PageNodes, bind_memory, page_nodes};
pub use plan::{Near, NumaPlan, PlannedNode};
pub use sysfs::SysfsTopology;
pub use thread::{current_node, pin_thread};
pub use topology::{Allowed, Nodes, NumaNode, Topology, TopologyError};

use std::fmt;
use std::io;

use rustix::io::Errno;

/// The number of a NUMA node, as the kernel has it. Numbers may have holes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(pub u32);

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Where a device sits on PCI. `Display` is the name that sysfs has for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PciAddress {
    /// The domain: more than 16 bits behind some bridges.
    pub domain: u32,
    /// The bus.
    pub bus: u8,
    /// The device on it, 0 to 31.
    pub device: u8,
    /// Its function, 0 to 7.
    pub function: u8,
}

impl fmt::Display for PciAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { domain, bus, device, function } = self;
        write!(f, "{domain:04x}:{bus:02x}:{device:02x}.{function:x}")
    }
}

/// Why memory or a thread is not where it should be. `Display` is a sentence for a person.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NumaError {
    /// Most likely a seccomp filter of the process's container.
    #[error(
        "this process may not call {call}: allow it in the seccomp profile, or give CAP_SYS_NICE"
    )]
    Forbidden {
        /// The system call.
        call: &'static str,
    },
    /// The kernel was built without it.
    #[error("this kernel has no {call}")]
    NotInKernel {
        /// The system call.
        call: &'static str,
    },
    /// There is no such node or CPU, or the process's cpuset leaves it out.
    #[error("{call} refuses {what}: it is offline, or outside of the cpuset of this process")]
    NotAllowed {
        /// The system call.
        call: &'static str,
        /// What was asked for.
        what: String,
    },
    /// Any other refusal of the kernel.
    #[error("{call}: {source}")]
    System {
        /// The system call.
        call: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
}

impl NumaError {
    fn of(call: &'static str, errno: Errno, what: impl FnOnce() -> String) -> Self {
        match errno {
            Errno::PERM | Errno::ACCESS => Self::Forbidden { call },
            Errno::NOSYS => Self::NotInKernel { call },
            Errno::INVAL => Self::NotAllowed { call, what: what() },
            errno => Self::System { call, source: errno.into() },
        }
    }

    /// What the last system call through libc failed with.
    fn last(call: &'static str, what: impl FnOnce() -> String) -> Self {
        let error = io::Error::last_os_error();
        match error.raw_os_error() {
            Some(raw) => Self::of(call, Errno::from_raw_os_error(raw), what),
            None => Self::System { call, source: error },
        }
    }

    /// A short name for a metric's label.
    #[must_use]
    pub fn label(&self) -> &'static str {
        match self {
            Self::Forbidden { .. } => "forbidden",
            Self::NotInKernel { .. } => "not_in_kernel",
            Self::NotAllowed { .. } => "not_allowed",
            Self::System { .. } => "failed",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_named_as_sysfs_names_them() {
        let gpu = PciAddress { domain: 0, bus: 0x3b, device: 0, function: 0 };
        assert_eq!(gpu.to_string(), "0000:3b:00.0");
        let behind_a_bridge = PciAddress { domain: 0x1_0000, bus: 0xff, device: 31, function: 7 };
        assert_eq!(behind_a_bridge.to_string(), "10000:ff:1f.7");
    }

    #[test]
    fn refusals_have_reasons_with_a_remedy() {
        let of = |errno| NumaError::of("mbind", errno, || "node 7".into());
        assert!(of(Errno::PERM).to_string().contains("seccomp"));
        assert!(of(Errno::NOSYS).to_string().contains("no mbind"));
        assert!(of(Errno::INVAL).to_string().contains("node 7"));
        let labels = [Errno::PERM, Errno::NOSYS, Errno::INVAL, Errno::NOMEM].map(|e| of(e).label());
        assert_eq!(labels, ["forbidden", "not_in_kernel", "not_allowed", "failed"]);
    }
}
