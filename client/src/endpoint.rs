//! Where the daemon listens.

use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use forebay_proto::handoff::SOCKET_NAME;
use forebay_proto::{Failure, Reason};

use crate::error::ClientError;

/// Where the daemon listens: `unix:///path/to/forebay.sock`, or `tcp://HOST:PORT` for the control
/// verbs only.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Endpoint(Kind);

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Kind {
    /// Absolute, UTF-8.
    Unix(String),
    /// `HOST:PORT`.
    Tcp(String),
}

impl Endpoint {
    /// Reads `unix:///path` or `tcp://HOST:PORT`. A path is taken as it is, without decoding.
    pub fn parse(text: &str) -> Result<Self, ClientError> {
        let bad = |why: &str| {
            let message = format!(
                "endpoint {text:?} {why}: give unix:///path/to/forebay.sock or tcp://HOST:PORT"
            );
            Err(ClientError::from(Failure::new(Reason::BadRequest, message)))
        };
        if let Some(path) = text.strip_prefix("unix:") {
            let path = path.strip_prefix("//").unwrap_or(path);
            return match path.starts_with('/') && !path.contains('\0') {
                true => Ok(Self(Kind::Unix(path.to_owned()))),
                false => bad("does not name an absolute path"),
            };
        }
        let Some(authority) = text.strip_prefix("tcp://") else {
            return bad("has no known scheme");
        };
        let authority = authority.strip_suffix('/').unwrap_or(authority);
        let port = authority.rsplit_once(':').filter(|(host, _)| !host.is_empty());
        match port.map(|(_, port)| port.parse::<u16>()) {
            Some(Ok(_)) if !authority.contains(['/', '@', '?', '#']) => {
                Ok(Self(Kind::Tcp(authority.to_owned())))
            }
            _ => bad("is no HOST:PORT"),
        }
    }

    /// The daemon's socket at this absolute path.
    pub fn unix(path: &Path) -> Result<Self, ClientError> {
        match path.to_str() {
            Some(text) => Self::parse(&format!("unix://{text}")),
            None => {
                let message = format!("socket path {} is not UTF-8", path.display());
                Err(Failure::new(Reason::BadRequest, message).into())
            }
        }
    }

    /// What tonic dials.
    pub(crate) fn dial(&self, over_tls: bool) -> String {
        match &self.0 {
            Kind::Unix(path) => format!("unix://{path}"),
            Kind::Tcp(authority) if over_tls => format!("https://{authority}"),
            Kind::Tcp(authority) => format!("http://{authority}"),
        }
    }

    /// Whether what is said to it stays on this machine.
    pub(crate) fn is_local(&self) -> bool {
        let Kind::Tcp(authority) = &self.0 else { return true };
        let host = authority.rsplit_once(':').map_or(authority.as_str(), |(host, _)| host);
        let host = host.trim_start_matches('[').trim_end_matches(']');
        host == "localhost" || host.parse().is_ok_and(|address: IpAddr| address.is_loopback())
    }

    /// The daemon's socket; none over TCP.
    pub(crate) fn socket(&self) -> Option<PathBuf> {
        match &self.0 {
            Kind::Unix(path) => Some(PathBuf::from(path)),
            Kind::Tcp(_) => None,
        }
    }

    /// The descriptor socket; none over TCP.
    pub(crate) fn handoff(&self) -> Option<PathBuf> {
        match &self.0 {
            Kind::Unix(path) => Some(Path::new(path).with_file_name(SOCKET_NAME)),
            Kind::Tcp(_) => None,
        }
    }
}

impl FromStr for Endpoint {
    type Err = ClientError;

    fn from_str(text: &str) -> Result<Self, ClientError> {
        Self::parse(text)
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Kind::Unix(path) => write!(f, "unix://{path}"),
            Kind::Tcp(authority) => write!(f, "tcp://{authority}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_handoff_socket_lies_beside() {
        let endpoint = Endpoint::parse("unix:///run/a b/forebay.sock").unwrap();
        assert_eq!(endpoint.to_string(), "unix:///run/a b/forebay.sock");
        assert_eq!(endpoint.handoff().unwrap(), Path::new("/run/a b/handoff.sock"));
        assert_eq!(Endpoint::parse("unix:/x/y").unwrap().to_string(), "unix:///x/y");
        assert_eq!(Endpoint::unix(Path::new("/x/y")).unwrap().to_string(), "unix:///x/y");
    }

    #[test]
    fn tcp_is_a_host_and_a_port() {
        let endpoint = Endpoint::parse("tcp://[::1]:7000/").unwrap();
        assert_eq!(endpoint.to_string(), "tcp://[::1]:7000");
        assert_eq!(endpoint.handoff(), None);
        assert_eq!(endpoint.dial(true), "https://[::1]:7000");
        assert!(endpoint.is_local() && !Endpoint::parse("tcp://10.0.0.1:7").unwrap().is_local());
    }

    #[test]
    fn what_is_no_endpoint_is_refused_with_an_example() {
        for bad in [
            "",
            "/run/x.sock",
            "unix://run/x",
            "unix:x",
            "tcp://",
            "tcp://:1",
            "tcp://h",
            "tcp://h:99999",
            "tcp://u@h:1",
            "http://h:1",
        ] {
            let error = Endpoint::parse(bad).unwrap_err();
            assert_eq!(error.kind().exit_code(), 2, "{bad}");
            assert!(error.to_string().contains("unix:///path"), "{error}");
        }
    }
}
