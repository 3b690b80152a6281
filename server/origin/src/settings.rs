//! Numbers and texts a person may set for origins, and which block applies to a URI.
//!
//! The environment comes in as a snapshot taken by the daemon's configuration: nothing here reads
//! it. A block of the configuration wins over the environment; of several blocks the one with the
//! longest prefix applies, whole: blocks are not merged.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use crate::error::redact;
use crate::schedule::RetryPolicy;
use crate::uri::OriginUri;

/// Everything that may be set about origins.
#[derive(Clone, Default)]
pub struct OriginSettings {
    /// Blocks for single origins.
    pub origins: Vec<OriginBlock>,
    /// The variables `AWS_*`, `GOOGLE_*` and `AZURE_*` of the daemon's environment.
    pub env: BTreeMap<String, String>,
    /// Limits on the phases of a request.
    pub timeouts: Timeouts,
    /// Attempts and waits.
    pub retry: RetryPolicy,
    /// What is done about slow and failing endpoints.
    pub engine: EngineSettings,
    /// Whether requests say which trace they belong to, where an origin's block does not say.
    pub trace: bool,
}

/// Settings of the origins under a prefix.
#[derive(Clone, PartialEq, Eq)]
pub struct OriginBlock {
    /// Canonical URI prefix; it matches at a segment boundary. `s3://` is every bucket.
    pub prefix: String,
    /// Base URL instead of the cloud's own.
    pub endpoint: Option<String>,
    /// Region (S3).
    pub region: Option<String>,
    /// Storage account (Azure).
    pub account: Option<String>,
    /// Whether plain HTTP may be used. An `http://` endpoint implies it.
    pub allow_http: bool,
    /// PEM file of certificate authorities that are trusted beside the system's.
    pub ca_file: Option<PathBuf>,
    /// Send requests unsigned.
    pub anonymous: bool,
    /// Whether objects are held to the checksums that the store keeps of them. One that anyone may
    /// set, as Azure's MD5, can be wrong of good bytes.
    pub checksums: bool,
    /// Bytes per second from this origin, on average over some parts.
    pub max_bytes_per_second: Option<u64>,
    /// Requests to this origin at a time, and idle connections kept.
    pub max_connections: Option<usize>,
    /// Whether requests say which trace they belong to; none: as the settings do.
    pub trace: Option<bool>,
}

impl Default for OriginBlock {
    fn default() -> Self {
        Self {
            prefix: String::new(),
            endpoint: None,
            region: None,
            account: None,
            allow_http: false,
            ca_file: None,
            anonymous: false,
            checksums: true,
            max_bytes_per_second: None,
            max_connections: None,
            trace: None,
        }
    }
}

/// Limits on the phases of one attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Timeouts {
    /// Name resolution.
    pub dns: Duration,
    /// TCP connect in the first attempt: short, because another address may be well.
    pub connect_first: Duration,
    /// TCP connect in later attempts.
    pub connect: Duration,
    /// TLS handshake.
    pub tls: Duration,
    /// From having a connection to the response's head.
    pub first_byte: Duration,
    /// Without a byte of body, while one is waited for, or taken of one that is sent.
    pub body_idle: Duration,
    /// From the last byte of a body that is sent to the head of its answer: a store may have to put
    /// together a large object first.
    pub written: Duration,
    /// A whole body of a part, from its head on, beside the time that its bytes take...
    pub part_base: Duration,
    /// ... at this many bytes per second. One at an origin that usually takes longer gets longer.
    pub part_bytes_per_second: u64,
}

impl Timeouts {
    /// The limit on a body of so many bytes at an origin of which nothing else is known.
    #[must_use]
    pub fn part(&self, bytes: u64) -> Duration {
        let rate = self.part_bytes_per_second.max(1);
        self.part_base + Duration::from_millis(bytes.saturating_mul(1000) / rate)
    }
}

/// What is done about slow and failing endpoints, and how many requests they get at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EngineSettings {
    /// Requests at a time, at first.
    pub limit_start: usize,
    /// Requests at a time, at least.
    pub limit_min: usize,
    /// Requests at a time, at most, where an origin's block does not say.
    pub limit_max: usize,
    /// First time that a breaker stays open; it doubles.
    pub breaker_open: Duration,
    /// Longest time.
    pub breaker_open_cap: Duration,
    /// First time that a failing address is left out; it grows by as much each time.
    pub ejection: Duration,
    /// Longest time.
    pub ejection_cap: Duration,
    /// Whether slow reads are asked for twice.
    pub hedging: bool,
    /// Shortest time after which one is.
    pub hedge_after_min: Duration,
}

impl Default for EngineSettings {
    fn default() -> Self {
        Self {
            limit_start: 8,
            limit_min: 2,
            limit_max: 256,
            breaker_open: Duration::from_secs(1),
            // With its jitter, an origin that is well again is asked again within 10 s.
            breaker_open_cap: Duration::from_secs(7),
            ejection: Duration::from_secs(30),
            ejection_cap: Duration::from_secs(300),
            hedging: true,
            hedge_after_min: Duration::from_millis(200),
        }
    }
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            dns: Duration::from_secs(3),
            connect_first: Duration::from_secs(1),
            connect: Duration::from_secs(3),
            tls: Duration::from_secs(3),
            first_byte: Duration::from_secs(10),
            body_idle: Duration::from_secs(5),
            written: Duration::from_secs(60),
            // A connection of S3 gives 85 MB/s: at 4 MB/s, 8 MiB within 3.1 s.
            part_base: Duration::from_secs(1),
            part_bytes_per_second: 4_000_000,
        }
    }
}

impl OriginSettings {
    /// The block for a URI, if any.
    #[must_use]
    pub fn block_for(&self, uri: &OriginUri) -> Option<&OriginBlock> {
        let text = uri.to_string();
        self.origins
            .iter()
            .filter(|block| covers(&block.prefix, &text))
            .max_by_key(|block| block.prefix.len())
    }
}

fn covers(prefix: &str, uri: &str) -> bool {
    uri.strip_prefix(prefix)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('/') || prefix.ends_with('/'))
}

impl fmt::Debug for OriginBlock {
    /// Shows URLs without what somebody may have put into them.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OriginBlock")
            .field("prefix", &redact(&self.prefix))
            .field("endpoint", &self.endpoint.as_deref().map(redact))
            .field("region", &self.region)
            .field("account", &self.account)
            .field("allow_http", &self.allow_http)
            .field("ca_file", &self.ca_file)
            .field("anonymous", &self.anonymous)
            .field("checksums", &self.checksums)
            .field("max_bytes_per_second", &self.max_bytes_per_second)
            .field("max_connections", &self.max_connections)
            .field("trace", &self.trace)
            .finish()
    }
}

impl fmt::Debug for OriginSettings {
    /// Shows which variables are set, never their values.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OriginSettings")
            .field("origins", &self.origins)
            .field("env", &self.env.keys().collect::<Vec<_>>())
            .field("timeouts", &self.timeouts)
            .field("retry", &self.retry)
            .field("engine", &self.engine)
            .field("trace", &self.trace)
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_prefix_wins_at_segment_boundaries() {
        let block = |prefix: &str| OriginBlock { prefix: prefix.into(), ..OriginBlock::default() };
        let settings = OriginSettings {
            origins: ["s3://", "s3://b/team", "s3://b", "https://h/"].map(block).to_vec(),
            ..OriginSettings::default()
        };
        let prefix_for = |uri: &str| {
            let uri = OriginUri::parse(uri).unwrap();
            settings.block_for(&uri).map(|block| block.prefix.clone())
        };
        let table = [
            ("s3://b/team/x", Some("s3://b/team")),
            ("s3://b/team", Some("s3://b/team")),
            ("s3://b/teamwork", Some("s3://b")),
            ("s3://b", Some("s3://b")),
            ("s3://bb/x", Some("s3://")),
            ("https://h/x", Some("https://h/")),
            ("gs://b/x", None),
        ];
        for (uri, want) in table {
            assert_eq!(prefix_for(uri).as_deref(), want, "{uri}");
        }
    }

    #[test]
    fn variables_are_shown_without_their_values() {
        let settings = OriginSettings {
            env: [("AWS_SECRET_ACCESS_KEY".to_owned(), "canary".to_owned())].into(),
            ..OriginSettings::default()
        };
        let shown = format!("{settings:?}");
        assert!(shown.contains("AWS_SECRET_ACCESS_KEY") && !shown.contains("canary"));
    }
}
