//! Where the system's configuration lies, and how long names are looked up, used and kept.

use std::path::PathBuf;
use std::time::Duration;

/// Everything that may be set about DNS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DnsSettings {
    /// The resolver configuration: name servers, search list, ndots.
    pub resolv_conf: PathBuf,
    /// The hosts file, which wins over the name servers.
    pub hosts: PathBuf,
    /// The port of the name servers: the configuration cannot name one.
    pub server_port: u16,
    /// How long one name server may take for one question.
    pub try_timeout: Duration,
    /// How often each name server is asked before the lookup failed.
    pub tries: u32,
    /// How long a lookup may take over all servers and the search list.
    pub lookup_timeout: Duration,
    /// The least time between refreshes of a name in use, whatever its TTL.
    pub refresh_min: Duration,
    /// The same for names whose answers rotate over many machines.
    pub refresh_min_rotating: Duration,
    /// Domains whose names' answers rotate.
    pub rotating: Vec<String>,
    /// The least time between refreshes of a name that is not in use.
    pub refresh_idle: Duration,
    /// A name nobody asked for this long is not in use.
    pub idle_after: Duration,
    /// An address is used without a new confirmation by DNS for this long while DNS works, and
    /// remembered this long after the last answer that named it.
    pub address_kept: Duration,
    /// How long past its end an answer is used while DNS fails.
    pub stale_max: Duration,
    /// How long at most "there is no such name" is believed.
    pub negative_max: Duration,
    /// The wait after a first failure, before the name is looked up again; it doubles.
    pub retry_base: Duration,
    /// The longest such wait.
    pub retry_max: Duration,
    /// Names kept.
    pub names_max: usize,
}

impl Default for DnsSettings {
    fn default() -> Self {
        Self {
            resolv_conf: PathBuf::from("/etc/resolv.conf"),
            hosts: PathBuf::from("/etc/hosts"),
            server_port: 53,
            try_timeout: Duration::from_secs(1),
            tries: 2,
            lookup_timeout: Duration::from_secs(3),
            refresh_min: Duration::from_secs(5),
            refresh_min_rotating: Duration::from_secs(1),
            rotating: vec!["amazonaws.com".to_owned(), "amazonaws.com.cn".to_owned()],
            refresh_idle: Duration::from_secs(30),
            idle_after: Duration::from_secs(30),
            address_kept: Duration::from_secs(300),
            stale_max: Duration::from_secs(60 * 60),
            negative_max: Duration::from_secs(5),
            retry_base: Duration::from_secs(1),
            retry_max: Duration::from_secs(30),
            names_max: 256,
        }
    }
}

impl DnsSettings {
    /// The least time between refreshes of this name while it is in use.
    pub(crate) fn refresh_min_of(&self, name: &str) -> Duration {
        let name = name.trim_end_matches('.');
        let within = |domain: &String| {
            name.strip_suffix(domain.as_str())
                .is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
        };
        if self.rotating.iter().any(within) { self.refresh_min_rotating } else { self.refresh_min }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rotating_names_lie_in_a_rotating_domain() {
        let settings = DnsSettings::default();
        let table = [
            ("s3.us-east-1.amazonaws.com", 1),
            ("s3.us-east-1.amazonaws.com.", 1),
            ("amazonaws.com", 1),
            ("notamazonaws.com", 5),
            ("amazonaws.com.example", 5),
        ];
        for (name, seconds) in table {
            assert_eq!(settings.refresh_min_of(name), Duration::from_secs(seconds), "{name}");
        }
    }
}
