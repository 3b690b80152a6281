//! Where the daemon listens: unix sockets, and TCP for control, with TLS unless it is loopback.

use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use super::{ConfigError, Take, Written, bad, default_socket, quoted, quoted_list};
use crate::domain::{DEFAULT, DomainSpec};

/// Where it listens.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Listen {
    /// Sockets; at least one, since loads need one.
    pub(crate) sockets: Vec<PathBuf>,
    /// `HOST:PORT`, for control only.
    pub(crate) tcp: Vec<String>,
    /// What TCP is served with; none: in the clear, on loopback.
    pub(crate) tls: Option<TlsFiles>,
}

/// The files that TLS is served with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TlsFiles {
    /// The daemon's certificate, and those between it and its authority (PEM).
    pub(crate) cert: PathBuf,
    /// Its key (PEM).
    pub(crate) key: PathBuf,
    /// Who certifies clients; none: they need no certificate.
    pub(crate) client_ca: Option<PathBuf>,
}

impl Listen {
    /// Whether TCP is served to whoever is on this machine, uids unseen.
    pub(crate) fn is_plain(&self) -> bool {
        !self.tcp.is_empty() && self.tls.is_none()
    }

    /// As TOML.
    pub(super) fn show(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sockets = self.sockets.iter().map(|path| format!("unix://{}", path.display()));
        let tcp = self.tcp.iter().map(|address| format!("tcp://{address}"));
        writeln!(f, "listen = {}", quoted_list(&sockets.chain(tcp).collect::<Vec<_>>()))?;
        let Some(TlsFiles { cert, key, client_ca }) = &self.tls else { return Ok(()) };
        let ca = client_ca.iter().map(|path| ("tls_client_ca", path));
        for (name, path) in [("tls_cert", cert), ("tls_key", key)].into_iter().chain(ca) {
            writeln!(f, "{name} = {}", quoted(path.display().to_string()))?;
        }
        let auth = if client_ca.is_some() { "require" } else { "none" };
        writeln!(f, "tls_client_auth = \"{auth}\"")
    }
}

impl Take<'_> {
    pub(super) fn listen(&mut self, domains: &[DomainSpec]) -> Result<Listen, ConfigError> {
        let written = self.take("listen");
        let tls = self.tls(domains.iter().all(|domain| &*domain.name == DEFAULT))?;
        let Some(Written { value, place }) = written else {
            let sockets = vec![default_socket(self.env, self.host.uid)];
            return match tls {
                None => Ok(Listen { sockets, ..Listen::default() }),
                Some((_, place)) => Err(bad("tls_cert", place, NOTHING_ON_TCP)),
            };
        };
        let mut listen = Listen::default();
        for uri in value.split(',').map(str::trim) {
            match uri.strip_prefix("tcp://") {
                Some(address) => listen.tcp.push(tcp(uri, address, &place)?),
                None => {
                    let path = socket_path(uri).map_err(|why| bad("listen", place.clone(), why))?;
                    listen.sockets.push(path);
                }
            }
        }
        if listen.sockets.is_empty() {
            let problem = "names no unix:///PATH: loads are served there only";
            return Err(bad("listen", place, problem));
        }
        match &tls {
            Some((_, place)) if listen.tcp.is_empty() => {
                return Err(bad("tls_cert", place.clone(), NOTHING_ON_TCP));
            }
            None => {
                let open = listen.tcp.iter().find(|address| !is_loopback(address));
                if let Some(address) = open {
                    let problem = format!(
                        "tcp://{address} needs TLS, since it is not loopback: give tls_cert, \
                         tls_key and tls_client_ca"
                    );
                    return Err(bad("listen", place, problem));
                }
            }
            Some(_) => {}
        }
        Ok(Listen { tls: tls.map(|(files, _)| files), ..listen })
    }

    /// The files of TLS, and where the certificate was named. Whoever calls has to be known by
    /// something: where there are no domains, by a certificate.
    fn tls(&mut self, no_domains: bool) -> Result<Option<(TlsFiles, String)>, ConfigError> {
        let (cert, key) = (self.take("tls_cert"), self.take("tls_key"));
        let (ca, auth) = (self.take("tls_client_ca"), self.take("tls_client_auth"));
        let lacks = |what: &str| format!("needs {what}, too");
        let (cert, key) = match (cert, key) {
            (Some(cert), Some(key)) => (cert, key),
            (Some(cert), None) => return Err(bad("tls_cert", cert.place, lacks("tls_key"))),
            (None, Some(key)) => return Err(bad("tls_key", key.place, lacks("tls_cert"))),
            (None, None) => {
                let of = [("tls_client_ca", ca), ("tls_client_auth", auth)];
                let stray = of.into_iter().find_map(|(key, said)| Some((key, said?)));
                return match stray {
                    None => Ok(None),
                    Some((key, said)) => Err(bad(key, said.place, lacks("tls_cert and tls_key"))),
                };
            }
        };
        let none = match auth {
            None => None,
            Some(said) => match said.value.as_str() {
                "require" => None,
                "none" => Some(said.place),
                _ => return Err(bad("tls_client_auth", said.place, "is require or none")),
            },
        };
        let client_ca = match (ca, none) {
            (Some(ca), None) => Some(PathBuf::from(ca.value)),
            (None, Some(place)) if no_domains => {
                let problem = "is none, so anyone could call: give each [[domain]] a token_sha256";
                return Err(bad("tls_client_auth", place, problem));
            }
            (None, Some(_)) => None,
            (Some(_), Some(place)) => {
                return Err(bad("tls_client_auth", place, "is none, and there is a tls_client_ca"));
            }
            (None, None) => {
                let problem = "needs tls_client_ca, by which clients are known; if they need no \
                               certificate, say tls_client_auth = \"none\"";
                return Err(bad("tls_cert", cert.place, problem));
            }
        };
        let files = TlsFiles { cert: cert.value.into(), key: key.value.into(), client_ca };
        Ok(Some((files, cert.place)))
    }
}

const NOTHING_ON_TCP: &str = "is for tcp://HOST:PORT in `listen`, and there is none";

fn tcp(uri: &str, address: &str, place: &str) -> Result<String, ConfigError> {
    let address = address.strip_suffix('/').unwrap_or(address);
    let port = address.rsplit_once(':').filter(|(host, _)| !host.is_empty());
    match port.map(|(_, port)| port.parse::<u16>()) {
        Some(Ok(_)) if !address.contains(['/', '@', '?', '#']) => Ok(address.to_owned()),
        _ => Err(bad("listen", place.to_owned(), format!("{uri:?} is not tcp://HOST:PORT"))),
    }
}

/// Whether an address can be reached from this machine only.
pub(crate) fn is_loopback(address: &str) -> bool {
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
    let host = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || host.parse().is_ok_and(|address: IpAddr| address.is_loopback())
}

fn socket_path(uri: &str) -> Result<PathBuf, String> {
    let path = uri.strip_prefix("unix://").filter(|path| path.starts_with('/'));
    let path = path.map(Path::new).map(Path::to_owned);
    path.ok_or_else(|| format!("{uri:?} is neither unix:///PATH nor tcp://HOST:PORT"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Settings;

    fn listen(text: &str) -> Result<Listen, String> {
        let settings = Settings::of_file("f.toml", text);
        settings.map(|settings| settings.listen).map_err(|error| error.to_string())
    }

    const BOTH: &str = "listen = [\"unix:///r/f.sock\", \"tcp://0.0.0.0:7000\"]\n";
    const FILES: &str = "tls_cert = \"/c\"\ntls_key = \"/k\"\n";

    #[test]
    fn tcp_needs_tls_and_clients_a_certificate() {
        let plain = listen("listen = [\"unix:///r/f.sock\", \"tcp://127.0.0.1:0\"]").unwrap();
        assert_eq!((plain.tcp, plain.tls), (vec!["127.0.0.1:0".to_owned()], None));
        listen("listen = \"unix:///r/f.sock,tcp://[::1]:7000/,tcp://localhost:7\"").unwrap();
        let mutual = listen(&format!("{BOTH}{FILES}tls_client_ca = \"/a\"\n")).unwrap();
        assert_eq!(mutual.tls.unwrap().client_ca, Some(PathBuf::from("/a")));
        let tenants = "[[domain]]\nname = \"a\"\nuids = [1]\n";
        let text = format!("{BOTH}{FILES}tls_client_auth = \"none\"\n{tenants}");
        assert_eq!(listen(&text).unwrap().tls.unwrap().client_ca, None);
    }

    #[test]
    fn contradictions_are_said_with_their_line() {
        for (text, said) in [
            (BOTH.to_owned(), "f.toml:1: listen: tcp://0.0.0.0:7000 needs TLS"),
            (format!("{BOTH}tls_cert = \"/c\""), "f.toml:2: tls_cert: needs tls_key"),
            (format!("{BOTH}tls_key = \"/k\""), "f.toml:2: tls_key: needs tls_cert"),
            (format!("{BOTH}tls_client_ca = \"/a\""), "f.toml:2: tls_client_ca: needs tls_cert"),
            (format!("{BOTH}{FILES}"), "f.toml:2: tls_cert: needs tls_client_ca"),
            (
                FILES.replace("tls_key", "tls_client_ca = \"/a\"\ntls_key"),
                "f.toml:1: tls_cert: is for",
            ),
            (
                format!("{BOTH}{FILES}tls_client_auth = \"maybe\""),
                "f.toml:4: tls_client_auth: is require",
            ),
            (
                format!("{BOTH}{FILES}tls_client_auth = \"none\"\ntls_client_ca = \"/a\""),
                "f.toml:4: tls_client_auth: is none, and",
            ),
            (
                format!("{BOTH}{FILES}tls_client_auth = \"none\""),
                "f.toml:4: tls_client_auth: is none, so",
            ),
            ("listen = \"tcp://127.0.0.1:1\"".to_owned(), "names no unix:///PATH"),
            ("listen = \"unix:///a,tcp://h\"".to_owned(), "is not tcp://HOST:PORT"),
            ("listen = \"unix:///a,tcp://u@h:1\"".to_owned(), "is not tcp://HOST:PORT"),
            (format!("listen = \"unix:///a\"\n{FILES}tls_client_ca = \"/a\""), "and there is none"),
        ] {
            let problem = listen(&text).unwrap_err();
            assert!(problem.contains(said), "{problem}\nis not\n{said}");
        }
    }

    #[test]
    fn only_this_machine_is_loopback() {
        for loopback in ["127.0.0.1:1", "127.9.9.9:1", "[::1]:1", "localhost:1"] {
            assert!(is_loopback(loopback), "{loopback}");
        }
        for open in
            ["0.0.0.0:1", "[::]:1", "10.0.0.1:1", "localhost.example:1", "127.0.0.1.nip.io:1"]
        {
            assert!(!is_loopback(open), "{open}");
        }
    }
}
