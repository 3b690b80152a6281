//! Reads and writes of local files, from and into memory that a client may map: the machinery
//! below the NVMe tier.
//!
//! A [`Directory`] opens [`DataFile`]s, with O_DIRECT where the filesystem can do it. An
//! [`IoEngine`] carries out operations on them; [`choose`] makes the best one that this kernel
//! allows, and says why.
//!
//! ```text
//!   caller                     engine                                    kernel
//!   engine.read(file, at,      Desk: two bounded lanes, quotas, clocks
//!     slot, range) ── Op ────►   │ start()           ┌─ uring: one thread, one ring ─┐
//!        │                       ├──────────────────►│                               ├─► device
//!        ▼                       │                   └─ threads: pread, pwrite ──────┘
//!   Done { bytes, target,  ◄─────┴ finish()              │
//!          times }               ▲                       │ owns the op, and so its memory,
//!                                └── watch: soft and     │ until the completion arrives
//!                                    hard time limit
//! ```
//!
//! *Memory moves.* An operation owns what it reads into or writes from ([`StableBytes`]): an
//! [`AlignedBuf`], or a slot of a segment, so that bytes go from the device to where a client maps
//! them without a copy. It comes back with the completion. Whoever stops waiting loses it to the
//! engine, which keeps it until the kernel is done: a future that is dropped, or an operation that
//! is reported as hung, never frees memory that the device may still write.
//!
//! Engines have threads of their own and know no runtime: their futures can be awaited anywhere.
//! Unsafe code lies in `buffer`, `crc`, `numa`, `page_cache`, `target`, `tcp` and `uring`.
//!
//! Beside that: what the kernel tells of TCP connections ([`tcp_info`]) and of the page cache
//! ([`cache_state`]), and memory and threads on NUMA nodes ([`NumaPlan`]); and CRCs, with what only
//! some processors have ([`WideCrc64Nvme`]).

mod buffer;
mod call;
mod choose;
mod clock;
mod core;
mod crc;
mod desk;
mod directory;
mod engine;
mod error;
mod file;
mod numa;
mod op;
mod page_cache;
mod progress;
mod quota;
mod stats;
mod target;
mod tcp;
mod threads;
mod uring;
mod watch;

pub use buffer::AlignedBuf;
pub use choose::{EngineChoice, EngineReason, Preference, choose};
pub use crc::{Polynomial, WideCrc64Nvme};
pub use directory::{Create, Directory, OpenHow};
pub use engine::{EngineSettings, IoEngine, Pending, Registration};
pub use error::{FileError, IoError, RegisterError};
pub use file::{BufferedReason, DataFile, FileMode};
pub use numa::{
    Allowed, CpuList, Near, NodeId, NodeList, Nodes, NumaError, NumaNode, NumaPlan, PageNodes,
    PciAddress, PlannedNode, SysfsTopology, Topology, TopologyError, bind_memory, current_node,
    page_nodes, pin_thread,
};
pub use op::{Done, Failed, FileOffset, Lane, Op, OpKind, OpTimes, Outcome, Payload};
pub use page_cache::{CacheState, CacheUnknown, cache_state};
pub use stats::{EngineKind, IoStats, LaneStats};
pub use target::{Carried, StableBytes, StableBytesMut};
pub use tcp::{TcpInfo, tcp_info, unread_bytes};
