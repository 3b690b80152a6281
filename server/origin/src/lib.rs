//! Reads and writes object stores: S3, Google Cloud Storage, Azure Blob Storage, web servers and
//! files.
//!
//! ```text
//! Origins --open--> OriginStore (object.rs: attempts, resume, checks)
//!                        |            |- tries.rs, schedule.rs: the one retry layer of Forebay
//!                        |            \- engine/: how much an endpoint is asked for, and where
//!                   object_store      (signatures, XML, credentials; its retries are off)
//!                        |
//!                   transport/        (HTTP/1.1, TLS; every limit on a phase)
//!                        |
//!                     Resolve         (dns/: names looked up ahead of time, kept while DNS fails)
//!
//! Origins --open_sink--> OriginSink (sink.rs: through the same; objects are there once they are whole)
//! ```
//!
//! A read writes into the memory it is given and nowhere else, and answers only with bytes of the
//! version that was pinned. The caller owns deadlines, permits and scheduling: to give up, it drops
//! the future. No text that leaves this crate holds a query, a key or a password.

#![forbid(unsafe_code)]

mod checksum;
mod credentials;
mod dns;
mod engine;
mod error;
mod evidence;
mod fault;
mod file;
mod filling;
#[doc(hidden)]
pub mod fuzz;
mod head;
mod hedge;
mod journal;
mod key;
mod list;
mod object;
mod origins;
mod pin;
mod providers;
mod resolve;
mod schedule;
mod settings;
mod sink;
mod stats;
mod store;
mod terms;
mod trace;
mod transport;
mod tries;
mod uri;
mod web;

pub use checksum::Checksums;
pub use credentials::standing::CredentialStanding;
pub use dns::{
    AheadResolver, DnsAddress, DnsCounters, DnsFailure, DnsName, DnsSettings, DnsSnapshot, DnsState,
};
pub use engine::addresses::AddressStats;
pub use engine::breaker::{BreakerState, BreakerTurns};
pub use engine::news::EndpointEvent;
pub use engine::standing::{
    AttemptClass, AttemptCount, AttemptEnd, Decisions, EndpointStats, RefusedCounts,
};
pub use engine::view::{EndpointView, Party, Share, Sharing};
pub use error::{OriginError, OriginErrorKind, OriginFailure};
pub use evidence::{NoEvidence, Silence, SocketEvidence, TcpDelta, TcpSnapshot};
pub use journal::{Journal, JournalEntry};
pub use key::{KEY_BYTES_MAX, KeyError, ObjectKey};
pub use origins::Origins;
pub use pin::Pin;
pub use resolve::{Resolve, SystemResolver};
pub use schedule::RetryPolicy;
pub use settings::{EngineSettings, OriginBlock, OriginSettings, Timeouts};
pub use sink::{OriginSink, Upload};
pub use stats::OriginStats;
pub use store::{
    AttemptOutcome, AttemptRecord, Destination, FileRead, FileReader, Landing, Lane, ObjectMeta,
    OriginStore, ReadRecord, ReadRequest, ReadTerms,
};
pub use terms::Spent;
pub use trace::TraceTag;
pub use uri::{OriginUri, Scheme, UriError};
