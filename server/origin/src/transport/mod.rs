//! The HTTP transport: the only way to the network for every store but `file`.
//!
//! ```text
//! object_store -> Transport (service.rs) -> hyper-util pool -> Connector (connect.rs)
//!                    |  head: first-byte limit                  |- Resolve (dns limit)
//!                    |  bodies: idle limits (send.rs, body.rs)  |- TCP (connect limit)
//!                    |- fills the request's Probe (probe.rs)    `- TLS (tls.rs, handshake limit)
//!                    `- parts: Wire (wire.rs) from a pool of ours (idle.rs), whose body the reader
//!                       receives into its slot (direct.rs): idle limit and a limit on the whole
//! ```
//!
//! object_store does requests, signatures and XML; with a connector of our own none of its timeouts
//! apply, so all of them are here. It hides the status of most failures; the [`probe::Probe`] that
//! travels in the request's extensions brings it back.

pub(crate) mod answer;
pub(crate) mod body;
pub(crate) mod connect;
pub(crate) mod direct;
pub(crate) mod idle;
mod parts;
pub(crate) mod probe;
pub(crate) mod send;
pub(crate) mod service;
pub(crate) mod stream;
pub(crate) mod tls;
pub(crate) mod wire;
