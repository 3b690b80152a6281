//! DNS ahead of time: names are looked up before anybody needs them, and kept while DNS fails.
//!
//! ```text
//! AheadResolver (resolver.rs)   one task that owns every lookup, and is owned by the resolver
//!      | asks, tells                    | looks up
//!   Table (table.rs)                 Upstream
//!   pure: what is known, what is        \- SystemDns (system.rs): hosts file, search list, name
//!   due, what is served                     servers of resolv.conf; getaddrinfo if there is none
//! ```
//!
//! The system's configuration says where to ask and for what; how long an answer is used is said
//! here. An answer is refreshed after 80 % of its TTL, so that a name in use never runs out; when
//! DNS fails, the last good answer is served until it is an hour too old. All callers that need a
//! name share one lookup. The configuration's files are looked at before every lookup, and read
//! again when they changed.

mod failure;
mod resolver;
mod route;
mod settings;
mod snapshot;
mod system;
mod table;

pub use failure::DnsFailure;
pub use resolver::AheadResolver;
pub use settings::DnsSettings;
pub use snapshot::{DnsAddress, DnsCounters, DnsName, DnsSnapshot, DnsState};
