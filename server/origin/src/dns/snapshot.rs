//! What Status and the metrics show of DNS.

use std::net::IpAddr;
use std::time::Duration;

/// Everything known about names, at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DnsSnapshot {
    /// The name servers asked, in order. None if the operating system resolves instead.
    pub servers: Vec<IpAddr>,
    /// What is not as it should be, as one sentence.
    pub degraded: Option<String>,
    /// The names, sorted.
    pub names: Vec<DnsName>,
    /// What happened since the start.
    pub counters: DnsCounters,
}

/// One name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DnsName {
    /// The name as asked for, in lower case.
    pub name: String,
    /// Whether its addresses may be used.
    pub state: DnsState,
    /// Those of the last answer first, then those of earlier answers that are still remembered.
    pub addresses: Vec<DnsAddress>,
    /// Time since the last good answer.
    pub age: Option<Duration>,
    /// How long that answer may be used, after the bounds of the settings.
    pub ttl: Option<Duration>,
    /// Time until the name is looked up again; zero while it is.
    pub refresh_in: Option<Duration>,
    /// How long the last lookup took.
    pub took: Option<Duration>,
    /// Lookups that failed since the last good answer.
    pub failures: u32,
    /// Why the last one failed.
    pub last_failure: Option<String>,
}

/// One address of a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DnsAddress {
    /// The address.
    pub address: IpAddr,
    /// Whether the last answer named it. Only such addresses are handed out.
    pub current: bool,
    /// Time since an answer named it.
    pub age: Duration,
}

/// Whether the addresses of a name may be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DnsState {
    /// The first lookup has not ended.
    Pending,
    /// Within the TTL.
    Fresh,
    /// Past the TTL, and still served.
    Stale,
    /// There is nothing to serve.
    Failed,
}

impl DnsState {
    /// The word for labels and tables.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Fresh => "fresh",
            Self::Stale => "stale",
            Self::Failed => "failed",
        }
    }
}

/// Counts since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DnsCounters {
    /// Lookups that gave addresses.
    pub ok: u64,
    /// Lookups that ended with "no such name" or "no address".
    pub nxdomain: u64,
    /// Lookups that ended with an error of a name server, or without one that could be asked.
    pub servfail: u64,
    /// Lookups that ended without an answer.
    pub timeout: u64,
    /// Times that addresses past their TTL were handed out.
    pub stale: u64,
    /// Time that all lookups together took.
    pub lookup_time: Duration,
}

impl DnsCounters {
    /// All lookups.
    #[must_use]
    pub const fn lookups(&self) -> u64 {
        self.ok + self.nxdomain + self.servfail + self.timeout
    }
}
