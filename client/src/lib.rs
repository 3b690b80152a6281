//! Load a checkpoint from the Forebay daemon of this node, without copying it.
//!
//! A [`Client`] speaks gRPC to the daemon for control. The bytes come as *segments*: sealed shared
//! memory that the daemon passes over its handoff socket and this process maps read-only. A
//! [`Load`] lends them chunk by chunk; what it gives out ([`Chunk`], [`Tensor`], [`ObjectView`],
//! [`Piece`]) holds the lease on its bytes and releases it when it is dropped.
//!
//! ```text
//!   Client ── load ──► Load ── next_tensor / next_object / next_chunk / next_piece ──► a view
//!     │                  │                                                                │ drop
//!     │ handoff.sock     │ stream of grants ◄── daemon ◄── stream of releases ◄───────────┘
//!     └─► Session: segments, mapped once and reused over loads
//! ```
//!
//! ```no_run
//! # async fn example() -> Result<(), forebay_client::ClientError> {
//! use forebay_client::{Client, Endpoint, LoadRequest};
//!
//! let client = Client::connect(Endpoint::parse("unix:///run/forebay/forebay.sock")?).await?;
//! let mut load = client.load(LoadRequest::new("s3://models/llama/")).await?;
//! while let Some(tensor) = load.next_tensor().await? {
//!     println!("{} {} {:?}: {} bytes", tensor.name(), tensor.dtype(), tensor.shape(),
//!         tensor.bytes().len());
//! }
//! let report = load.finish().await?;
//! println!("{} bytes in {:?}", report.bytes, report.wall);
//! # Ok(()) }
//! ```
//!
//! The daemon lends at most [`Opened::window_bytes`](model::Opened::window_bytes) at one time.
//! Hold at most about half of it (one tensor and the next are fine): a caller that keeps more
//! waits for itself, and the load ends with `NO_PROGRESS` or its deadline.
//!
//! A client made by [`Client::with_device`] registers the segments with its device in the
//! background. [`Load::to_device`] then copies chunks as they become readable, by two streams with a
//! thread each, to where a [`Layout`] says, and gives each slot back when the last copy out of it is
//! done; [`Tensor::copy_to`] is for callers with a stream of their own.
//!
//! [`blocking`] has the same verbs for callers without a runtime. This library reads no
//! environment variable and writes no log.

#![forbid(unsafe_code)]

mod access;
pub mod blocking;
mod chunk;
mod client;
mod coverage;
mod device;
mod doctor;
mod endpoint;
mod error;
mod gather;
mod grants;
#[cfg(feature = "json")]
pub mod json;
mod load;
mod options;
mod order;
mod outbox;
mod session;
mod throttle;
mod verbs;
mod view;
mod wire;

pub use access::Access;
pub use chunk::{Chunk, ChunkExtent};
pub use client::Client;
pub use device::{DeviceLoad, DeviceReport, DeviceTensor, Layout, Resident, Target};
pub use doctor::check_client;
pub use endpoint::Endpoint;
pub use error::ClientError;
pub use forebay_device::{
    CopySpan, CopyState, CopyStream, CopyTicket, CudaDevice, Device, DeviceError, DeviceInfo,
    DeviceMemory, DeviceSpec, FakeDevice, HostDevice, MemoryPath,
};
pub use forebay_proto::{
    AliasName, BadAliasName, BadPciAddress, BadRule, BadShard, ErrorKind, Failure, PciAddress,
    Placement, Reason, RollbackRule, RuleMetric, Shard, Slice, StageSeconds, model,
};
pub use load::Load;
pub use options::{
    BadTraceParent, CallOptions, EvictRequest, KeepTier, Lane, LoadRequest, PackRequest,
    PrefetchRequest, TraceParent, VerifyPolicy,
};
pub use order::Piece;
pub use verbs::{Pack, Prefetch, Resize, SetAlias, Stat, Trace, Verify};
pub use view::{ObjectView, RunCopy, Tensor};
