//! Why a name has no addresses, in the words of whoever reads the load's error.

use std::io;
use std::time::Duration;

/// Why a lookup gave no address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DnsFailure {
    /// NXDOMAIN, for every name of the search list.
    #[error("DNS: the name does not exist (NXDOMAIN)")]
    NameUnknown {
        /// How long the zone lets this be believed.
        ttl: Option<Duration>,
    },
    /// The name exists, without A or AAAA records.
    #[error("DNS: the name has no address")]
    NoAddress {
        /// How long the zone lets this be believed.
        ttl: Option<Duration>,
    },
    /// The last server asked answered with an error: SERVFAIL, REFUSED and the like.
    #[error("DNS: the name server failed ({0})")]
    ServerFailed(String),
    /// No server answered in time.
    #[error("DNS: no answer within {} ms", .0.as_millis())]
    TimedOut(Duration),
    /// No server could be asked.
    #[error("DNS: no name server can be asked ({0})")]
    Unreachable(String),
    /// No name that DNS could know.
    #[error("DNS: not a host name")]
    BadName,
    /// The table of names is full of names in use.
    #[error("DNS: too many names are being looked up at once")]
    TooManyNames,
}

impl DnsFailure {
    /// Whether DNS works and says that there is nothing.
    pub(crate) fn is_negative(&self) -> bool {
        matches!(self, Self::NameUnknown { .. } | Self::NoAddress { .. } | Self::BadName)
    }

    pub(crate) fn negative_ttl(&self) -> Option<Duration> {
        match self {
            Self::NameUnknown { ttl } | Self::NoAddress { ttl } => *ttl,
            _ => None,
        }
    }
}

impl From<DnsFailure> for io::Error {
    fn from(failure: DnsFailure) -> Self {
        let kind = match failure {
            DnsFailure::NameUnknown { .. } | DnsFailure::NoAddress { .. } => {
                io::ErrorKind::NotFound
            }
            DnsFailure::TimedOut(_) => io::ErrorKind::TimedOut,
            DnsFailure::BadName => io::ErrorKind::InvalidInput,
            DnsFailure::ServerFailed(_) | DnsFailure::Unreachable(_) | DnsFailure::TooManyNames => {
                io::ErrorKind::Other
            }
        };
        Self::new(kind, failure)
    }
}
