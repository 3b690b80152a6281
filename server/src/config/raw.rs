//! The first step of configuration: what was written, one to one, from file, environment and flags.
//!
//! All values stay texts, so that a bad one is reported by the second step with the place it came
//! from. Unknown keys of the file are found here, with their line and the nearest key there is.

use std::collections::BTreeMap;
use std::fmt;

use serde::Deserialize;
use toml::de::{DeTable, DeValue};

use super::domains::RawDomain;

/// Settings of the top level: file key, and the flag and variable of the same name.
pub(crate) const KEYS: [&str; 32] = [
    "listen",
    "cache_dir",
    "ram",
    "nvme",
    "nvme_engine",
    "scrub_bytes_per_second",
    "metrics",
    "log",
    "log_level",
    "core_dumps",
    "allow_uids",
    "chunk",
    "lock_memory",
    "evidence",
    "max_loads",
    "max_queue",
    "connections",
    "deadline",
    "deadline_max",
    "no_progress",
    "drain",
    "first_byte_timeout",
    "body_idle_timeout",
    "trace_origins",
    "otlp_endpoint",
    "workloads",
    "tls_cert",
    "tls_key",
    "tls_client_ca",
    "tls_client_auth",
    "origin",
    "domain",
];

/// Those that a variable can set, too: all but the tables.
pub(crate) fn plain_keys() -> &'static [&'static str] {
    &KEYS[..KEYS.len() - 2]
}

/// Settings of one `[[origin]]`.
pub(crate) const ORIGIN_KEYS: [&str; 11] = [
    "prefix",
    "endpoint",
    "region",
    "account",
    "allow_http",
    "ca_file",
    "anonymous",
    "checksums",
    "max_bytes_per_second",
    "max_connections",
    "trace",
];

/// Blocks of `[[origin]]`: each is a name in metrics.
pub(crate) const ORIGINS_MAX: usize = 64;

/// The prefix of environment variables: `FOREBAY_RAM` is `ram`.
pub(crate) const ENV_PREFIX: &str = "FOREBAY_";

/// What `forebay` reads, by its name behind the prefix. Both may run with the same variables.
const OF_CLIENTS: [&str; 6] =
    ["ENDPOINT", "TOKEN", "TOKEN_FILE", "TLS_CA", "TLS_CLIENT_CERT", "TLS_CLIENT_KEY"];

/// What is wrong with a setting, and where it was written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read {path}: {problem}")]
    Unreadable {
        /// The file.
        path: String,
        /// What the system said.
        problem: String,
    },
    /// The file is not TOML, or a value has the wrong type.
    #[error("{file}:{line}: {problem}")]
    Syntax {
        /// The file.
        file: String,
        /// Counted from one.
        line: usize,
        /// What is wrong.
        problem: String,
    },
    /// A key that does not exist.
    #[error("{place}: unknown key `{key}`; the nearest valid key is `{nearest}`")]
    UnknownKey {
        /// File and line, or the variable.
        place: String,
        /// As written.
        key: String,
        /// The nearest there is.
        nearest: String,
    },
    /// A value that cannot be used, or that contradicts another one.
    #[error("{place}: {key}: {problem}")]
    BadValue {
        /// File and line, the variable or the flag.
        place: String,
        /// The setting.
        key: String,
        /// What is wrong.
        problem: String,
    },
}

/// A value and where it was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Written<T> {
    /// The value.
    pub(crate) value: T,
    /// `forebay.toml:3`, `FOREBAY_RAM` or `--ram`.
    pub(crate) place: String,
}

/// One `[[origin]]` as written.
#[derive(Clone, Default, PartialEq, Eq, Deserialize)]
pub(crate) struct RawOrigin {
    pub(crate) prefix: String,
    pub(crate) endpoint: Option<String>,
    pub(crate) region: Option<String>,
    pub(crate) account: Option<String>,
    pub(crate) allow_http: Option<bool>,
    pub(crate) ca_file: Option<String>,
    pub(crate) anonymous: Option<bool>,
    pub(crate) checksums: Option<bool>,
    pub(crate) max_bytes_per_second: Option<String>,
    pub(crate) max_connections: Option<usize>,
    pub(crate) trace: Option<bool>,
}

/// Somebody may have put a password or a signature into a URL.
impl fmt::Debug for RawOrigin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RawOrigin(***)")
    }
}

/// All settings as written. Lists are joined by commas.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Raw {
    /// By key of [`KEYS`].
    pub(crate) values: BTreeMap<String, Written<String>>,
    /// In the order of the file.
    pub(crate) origins: Vec<Written<RawOrigin>>,
    /// In the order of the file.
    pub(crate) domains: Vec<RawDomain>,
}

impl Raw {
    /// Sets `key`, which wins over what was set before.
    pub(crate) fn set(&mut self, key: &str, value: String, place: String) {
        self.values.insert(key.to_owned(), Written { value, place });
    }

    /// Adds what a file says.
    pub(crate) fn read_file(&mut self, file: &str, text: &str) -> Result<(), ConfigError> {
        let line_of = |offset: usize| 1 + text[..offset.min(text.len())].matches('\n').count();
        let syntax = |error: toml::de::Error| ConfigError::Syntax {
            file: file.to_owned(),
            line: line_of(error.span().map_or(0, |span| span.start)),
            problem: error.message().to_owned(),
        };
        let table = DeTable::parse(text).map_err(syntax)?;
        for (key, value) in table.get_ref() {
            let place = format!("{file}:{}", line_of(key.span().start));
            let key: &str = key.get_ref();
            known(key, &KEYS, &place)?;
            if key == "origin" {
                self.read_origins(value.get_ref(), &place)?;
            } else if key == "domain" {
                let place_of = |offset: usize| format!("{file}:{}", line_of(offset));
                self.domains = RawDomain::read_all(value, &place_of)?;
            } else {
                let value = plain(value.get_ref()).ok_or_else(|| ConfigError::BadValue {
                    place: place.clone(),
                    key: key.to_owned(),
                    problem: "is not a text, a number, a truth value or a list of them".into(),
                })?;
                self.set(key, value, place);
            }
        }
        Ok(())
    }

    fn read_origins(&mut self, value: &DeValue<'_>, place: &str) -> Result<(), ConfigError> {
        let bad = |problem: &str| ConfigError::BadValue {
            place: place.to_owned(),
            key: "origin".into(),
            problem: problem.to_owned(),
        };
        let DeValue::Array(blocks) = value else {
            return Err(bad("is written as [[origin]], once per origin"));
        };
        if blocks.len() > ORIGINS_MAX {
            return Err(bad(&format!("has more than {ORIGINS_MAX} blocks")));
        }
        for block in blocks {
            let DeValue::Table(table) = block.get_ref() else {
                return Err(bad("is written as [[origin]], once per origin"));
            };
            for key in table.keys() {
                known(key.get_ref(), &ORIGIN_KEYS, place)?;
            }
            let text = |key: &str| table.get(key).and_then(|value| plain(value.get_ref()));
            let truth = |key: &str| match text(key).as_deref() {
                None => Ok(None),
                Some("true") => Ok(Some(true)),
                Some("false") => Ok(Some(false)),
                Some(_) => Err(bad(&format!("`{key}` is true or false"))),
            };
            let value = RawOrigin {
                prefix: text("prefix").ok_or_else(|| bad("has no `prefix`"))?,
                endpoint: text("endpoint"),
                region: text("region"),
                account: text("account"),
                allow_http: truth("allow_http")?,
                ca_file: text("ca_file"),
                anonymous: truth("anonymous")?,
                checksums: truth("checksums")?,
                trace: truth("trace")?,
                max_bytes_per_second: text("max_bytes_per_second"),
                max_connections: match text("max_connections") {
                    None => None,
                    Some(text) => {
                        Some(text.parse().map_err(|_nan| bad("`max_connections` is a number"))?)
                    }
                },
            };
            self.origins.push(Written { value, place: place.to_owned() });
        }
        Ok(())
    }

    /// Adds what `FOREBAY_…` variables say. `FOREBAY_CONFIG` and those of clients are no
    /// settings.
    pub(crate) fn read_env(&mut self, env: &BTreeMap<String, String>) -> Result<(), ConfigError> {
        for (name, value) in env {
            let Some(rest) = name.strip_prefix(ENV_PREFIX) else { continue };
            // Kubernetes gives every pod FOREBAY_SERVICE_HOST, FOREBAY_PORT_9464_TCP and the like
            // when a Service is named `forebay`.
            let of_kubernetes =
                rest == "PORT" || rest.starts_with("PORT_") || rest.starts_with("SERVICE_");
            if of_kubernetes || rest == "CONFIG" || OF_CLIENTS.contains(&rest) {
                continue;
            }
            let key = rest.to_ascii_lowercase();
            known(&key, plain_keys(), name)?;
            self.set(&key, value.clone(), name.clone());
        }
        Ok(())
    }
}

/// A value as text; lists joined by commas.
pub(super) fn plain(value: &DeValue<'_>) -> Option<String> {
    Some(match value {
        DeValue::String(text) => text.to_string(),
        DeValue::Integer(number) => number.to_string(),
        DeValue::Boolean(truth) => truth.to_string(),
        DeValue::Array(items) => {
            items.iter().map(|item| plain(item.get_ref())).collect::<Option<Vec<_>>>()?.join(",")
        }
        DeValue::Float(_) | DeValue::Datetime(_) | DeValue::Table(_) => return None,
    })
}

pub(super) fn known(key: &str, keys: &[&str], place: &str) -> Result<(), ConfigError> {
    if keys.contains(&key) {
        return Ok(());
    }
    let nearest = keys.iter().min_by_key(|known| distance(key, known)).copied();
    Err(ConfigError::UnknownKey {
        place: place.to_owned(),
        key: key.to_owned(),
        nearest: nearest.unwrap_or_default().to_owned(),
    })
}

/// Edits that turn one text into the other.
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.bytes().enumerate() {
            let substituted = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_key_is_reported_with_its_line_and_neighbour() {
        let mut raw = Raw::default();
        let error = raw.read_file("f.toml", "ram = \"1GiB\"\n\nmetrcs = \"x\"\n").unwrap_err();
        assert_eq!(
            error.to_string(),
            "f.toml:3: unknown key `metrcs`; the nearest valid key is `metrics`"
        );
        let error = raw.read_file("f.toml", "[[origin]]\nprefx = \"s3://\"\n").unwrap_err();
        assert!(
            error.to_string().contains("`prefx`; the nearest valid key is `prefix`"),
            "{error}"
        );
    }

    #[test]
    fn broken_files_are_reported_with_their_line() {
        let mut raw = Raw::default();
        let error = raw.read_file("f.toml", "ram = \"1GiB\"\nnvme = = 3\n").unwrap_err();
        assert!(error.to_string().starts_with("f.toml:2: "), "{error}");
        let error = raw.read_file("f.toml", "ram = 1.5\n").unwrap_err();
        assert!(error.to_string().starts_with("f.toml:1: ram: "), "{error}");
    }

    #[test]
    fn later_sources_win_and_remember_their_place() {
        let mut raw = Raw::default();
        raw.read_file("f.toml", "ram = \"1GiB\"\nallow_uids = [0, 7]\n").unwrap();
        let env =
            [("FOREBAY_RAM", "2GiB"), ("FOREBAY_PORT_9464_TCP", "x"), ("FOREBAY_TLS_CA", "x")];
        raw.read_env(&env.map(|(k, v)| (k.to_owned(), v.to_owned())).into()).unwrap();
        assert_eq!(raw.values["ram"].value, "2GiB");
        assert_eq!(raw.values["ram"].place, "FOREBAY_RAM");
        assert_eq!(raw.values["allow_uids"].value, "0,7");
        let env = [("FOREBAY_RAMM".to_owned(), "1".to_owned())].into();
        assert!(raw.read_env(&env).unwrap_err().to_string().contains("nearest valid key is `ram`"));
    }

    #[test]
    fn origins_are_read_in_order() {
        let mut raw = Raw::default();
        let text = "[[origin]]\nprefix = \"s3://a\"\nallow_http = true\n[[origin]]\nprefix = \"gs://b\"\nmax_connections = 4\n";
        raw.read_file("f.toml", text).unwrap();
        let prefixes: Vec<_> = raw.origins.iter().map(|o| o.value.prefix.as_str()).collect();
        assert_eq!(prefixes, ["s3://a", "gs://b"]);
        assert_eq!(raw.origins[0].value.allow_http, Some(true));
        assert_eq!(raw.origins[1].value.max_connections, Some(4));
        assert!(raw.read_file("f.toml", "[[origin]]\nregion = \"x\"\n").is_err());
    }
}
