//! The contract between `forebayd` and its clients.
//!
//! * [`pb`]: the types generated from `forebay/v1/forebay.proto`. They never leave the edges: the
//!   server names them only in its `rpc` modules, the client only in its transport.
//! * `otlp`: those of `otlp/trace_service.proto`, with the feature of that name.
//! * [`model`]: the mirror types a client works with, validated when they are received.
//! * [`handoff`]: the packets that accompany descriptors.
//! * [`AliasName`], [`RollbackRule`]: what both ends check of aliases.
//! * [`failure`]: the one error vocabulary, and the only place that maps an error to a gRPC status,
//!   an exit code or a C status number.

#![forbid(unsafe_code)]

mod alias;
pub mod failure;
#[doc(hidden)]
pub mod fuzz;
pub mod handoff;
pub mod model;
mod placement;
mod shard;

pub use alias::{AliasName, BadAliasName, BadRule, RollbackRule, RuleMetric};
pub use failure::{ErrorKind, Failure, Reason, StageSeconds};
pub use placement::{BadPciAddress, PciAddress, Placement};
pub use shard::{BadShard, Shard, Slice, SlicePart};

/// Types generated from `forebay/v1/forebay.proto`; the comments are in that file.
#[allow(missing_docs, reason = "generated; documented in the .proto")]
#[allow(
    unreachable_pub,
    unused_qualifications,
    clippy::allow_attributes_without_reason,
    clippy::all,
    clippy::pedantic,
    reason = "generated"
)]
pub mod pb {
    tonic::include_proto!("forebay.v1");
}

/// Types generated from `otlp/trace_service.proto`; the comments are in that file.
#[cfg(feature = "otlp")]
#[allow(missing_docs, reason = "generated; documented in the .proto")]
#[allow(
    unreachable_pub,
    unused_qualifications,
    clippy::allow_attributes_without_reason,
    clippy::all,
    clippy::pedantic,
    reason = "generated"
)]
pub mod otlp {
    tonic::include_proto!("opentelemetry.proto.collector.trace.v1");
}

/// The encoded descriptor set of `forebay.v1`, which gRPC reflection serves.
pub const DESCRIPTOR_SET: &[u8] =
    include_bytes!(concat!(env!("OUT_DIR"), "/forebay_descriptor.bin"));
