//! Configuration, in two steps.
//!
//! [`raw`] mirrors what was written in the file, the environment and the flags, in that order;
//! [`Settings`] is what the daemon works with: every value checked, every default filled in, every
//! contradiction refused with the place of the value that causes it. This is the only module that
//! reads the environment, and it takes one snapshot of it.

pub(crate) mod domains;
mod export;
pub(crate) mod flags;
mod host;
pub(crate) mod listen;
mod log;
pub(crate) mod raw;
pub(crate) mod size;
#[cfg(test)]
mod table;

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use forebay_io::Preference;
use forebay_origin::{EngineSettings, OriginBlock, OriginSettings, OriginUri, Timeouts};
use tracing::level_filters::LevelFilter;

pub use flags::Flags;
use host::Host;
use listen::Listen;
pub use log::LogForm;
pub use raw::ConfigError;
use raw::{Raw, RawOrigin, Written};

use crate::domain::{DEFAULT, DomainSpec};
use crate::nvme::Budget;
use crate::workload::Workloads;
use size::{Size, parse_duration, show_bytes};

/// Default size of a slot: in the 8-16 MiB range where one connection of an object store is at its
/// best rate.
const CHUNK_BYTES: u64 = 8 << 20;

/// Slots the RAM tier has at least: one to read while one is filled.
pub(crate) const SLOTS_MIN: u64 = 2;

/// Share of the host's memory the RAM tier takes by default.
const RAM_DEFAULT: Size = Size::Percent(25);

/// Share of the free space of the cache directory that the NVMe tier takes by default.
const NVME_DEFAULT: Budget = Budget::Percent(80);

/// What the scrub reads by default: a terabyte in 18 hours, and less than a hundredth of what a
/// disk can.
const SCRUB_BYTES_PER_SECOND: u64 = 16 << 20;

/// Requests that one origin may get at a time. How many it does get is found while loading; this is
/// for a network of 100 Gbit/s at the 0.4 Gbit/s that a connection of an object store gives at
/// least: ceil(100 / 0.4).
const CONNECTIONS: usize = 250;

/// Loads that run at one time.
const LOADS_MAX: usize = 64;

/// Loads that wait.
const QUEUE_MAX: usize = 256;

/// The most any count may be set to.
const COUNT_MAX: usize = 65_536;

/// RPC deadline if the client gives none: a 140 GB checkpoint at 1 GB/s takes 140 s.
const DEADLINE: Duration = Duration::from_secs(15 * 60);

/// The longest deadline a client gets.
const DEADLINE_MAX: Duration = Duration::from_secs(60 * 60);

/// How long a load may stand still.
const NO_PROGRESS: Duration = Duration::from_secs(30);

/// How long SIGTERM waits for loads.
const DRAIN: Duration = Duration::from_secs(30);

const METRICS: &str = "127.0.0.1:9464";
const SOCKET: &str = "forebay/forebay.sock";

/// What the daemon works with.
#[derive(Clone)]
pub struct Settings {
    pub(crate) listen: Listen,
    pub(crate) cache_dir: Option<PathBuf>,
    pub(crate) ram_bytes: u64,
    /// What the host or the cgroup allows; 0 if that is not known.
    pub(crate) ram_bytes_max: u64,
    /// How large the NVMe tier may be; none if it is off.
    pub(crate) nvme: Option<Budget>,
    pub(crate) nvme_engine: Preference,
    pub(crate) scrub_bytes_per_second: u64,
    pub(crate) metrics: Option<SocketAddr>,
    pub(crate) log: LogForm,
    pub(crate) log_level: LevelFilter,
    /// Whether a crash may leave what this process knows.
    pub(crate) core_dumps: bool,
    pub(crate) allow_uids: Vec<u32>,
    /// Who may share memory; at least one.
    pub(crate) domains: Vec<DomainSpec>,
    pub(crate) chunk_bytes: u64,
    pub(crate) lock_memory: bool,
    /// Look at the machine and at sockets while loads run.
    pub(crate) evidence: bool,
    pub(crate) max_loads: usize,
    pub(crate) max_queue: usize,
    pub(crate) deadline: Duration,
    pub(crate) deadline_max: Duration,
    pub(crate) no_progress: Duration,
    pub(crate) drain: Duration,
    pub(crate) origins: OriginSettings,
    /// Where spans of finished loads go, if they are exported.
    pub(crate) otlp_endpoint: Option<String>,
    pub(crate) notify_socket: Option<PathBuf>,
    /// Names of what loads may be for.
    pub(crate) workloads: Workloads,
}

impl Settings {
    /// The settings that file, environment and flags make together.
    pub fn load(flags: &Flags) -> Result<Self, ConfigError> {
        let env = environment();
        let mut raw = Raw::default();
        if let Some(path) = &flags.config {
            let file = path.display().to_string();
            let text = std::fs::read_to_string(path).map_err(|error| ConfigError::Unreadable {
                path: file.clone(),
                problem: error.to_string(),
            })?;
            raw.read_file(&file, &text)?;
        }
        raw.read_env(&env)?;
        raw.read_flags(flags);
        Self::resolve(raw, env, &Host::probe())
    }

    /// What a file alone makes, on a machine of 64 GiB.
    pub(crate) fn of_file(file: &str, text: &str) -> Result<Self, ConfigError> {
        let mut raw = Raw::default();
        raw.read_file(file, text)?;
        Self::resolve(raw, BTreeMap::new(), &Host { memory_bytes: 64 << 30, uid: 0 })
    }

    /// The hosts that configuration names, to be looked up before anyone asks: those of endpoints
    /// and of web origins. A bucket's own host is known when it is first opened.
    pub(crate) fn origin_hosts(&self) -> Vec<String> {
        let blocks = self.origins.origins.iter();
        let written = blocks.flat_map(|block| block.endpoint.iter().chain([&block.prefix]));
        let of_env = self.origins.env.iter().filter(|(name, _)| name.contains("ENDPOINT_URL"));
        let mut hosts: Vec<String> = written
            .chain(of_env.map(|(_, value)| value))
            .filter_map(|text| OriginUri::parse(text).ok())
            .filter(|uri| uri.scheme().is_web())
            .map(|uri| host_of(uri.authority()).to_owned())
            .collect();
        hosts.sort_unstable();
        hosts.dedup();
        hosts
    }

    /// The form of the log.
    #[must_use]
    pub fn log(&self) -> LogForm {
        self.log
    }

    fn resolve(
        mut raw: Raw,
        env: BTreeMap<String, String>,
        host: &Host,
    ) -> Result<Self, ConfigError> {
        let mut take = Take { raw: &mut raw, env: &env, host };
        let chunk_bytes = take.chunk_bytes()?;
        let connections = take.count("connections", CONNECTIONS)?;
        let ram_bytes = take.ram_bytes(chunk_bytes)?;
        let uids_at = take.raw.values.get("allow_uids").map(|written| written.place.clone());
        let allow_uids = take.allow_uids()?;
        let domains = take.domains((allow_uids.as_slice(), uids_at), (ram_bytes, chunk_bytes))?;
        let listen = take.listen(&domains)?;
        let settings = Self {
            listen,
            domains,
            cache_dir: take.cache_dir(),
            ram_bytes,
            ram_bytes_max: host.memory_bytes,
            nvme: take.nvme()?,
            nvme_engine: take.nvme_engine()?,
            scrub_bytes_per_second: take.scrub()?,
            metrics: take.metrics()?,
            log: take.log()?,
            log_level: take.log_level()?,
            core_dumps: take.truth("core_dumps", false)?,
            allow_uids,
            chunk_bytes,
            lock_memory: take.truth("lock_memory", true)?,
            evidence: take.truth("evidence", true)?,
            max_loads: take.count("max_loads", LOADS_MAX)?,
            max_queue: take.count("max_queue", QUEUE_MAX)?,
            deadline: take.duration("deadline", DEADLINE)?,
            deadline_max: take.duration("deadline_max", DEADLINE_MAX)?,
            no_progress: take.duration("no_progress", NO_PROGRESS)?,
            drain: take.duration("drain", DRAIN)?,
            origins: take.origins(connections)?,
            otlp_endpoint: take.otlp_endpoint()?,
            workloads: take.workloads()?,
            notify_socket: env.get("NOTIFY_SOCKET").map(PathBuf::from),
        };
        debug_assert!(raw.values.is_empty(), "a known key that nothing takes: {:?}", raw.values);
        Ok(settings)
    }
}

/// One snapshot of the environment; variables that are no text are left out.
fn environment() -> BTreeMap<String, String> {
    std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect()
}

impl Raw {
    fn read_flags(&mut self, flags: &Flags) {
        let Flags { listen, cache_dir, ram, nvme, metrics, log, log_level, otlp_endpoint, .. } =
            flags;
        if !listen.is_empty() {
            self.set("listen", listen.join(","), "--listen".into());
        }
        let texts = [("cache_dir", cache_dir), ("ram", ram), ("nvme", nvme), ("metrics", metrics)];
        for (key, value) in texts.into_iter().chain([
            ("log", log),
            ("log_level", log_level),
            ("otlp_endpoint", otlp_endpoint),
        ]) {
            if let Some(value) = value {
                self.set(key, value.clone(), format!("--{}", key.replace('_', "-")));
            }
        }
    }
}

/// Takes settings out of the raw ones, one by one.
struct Take<'a> {
    raw: &'a mut Raw,
    env: &'a BTreeMap<String, String>,
    host: &'a Host,
}

impl Take<'_> {
    fn take(&mut self, key: &str) -> Option<Written<String>> {
        self.raw.values.remove(key)
    }

    /// The value of `key` as `read` makes it, or the default.
    fn read<T, E: fmt::Display>(
        &mut self,
        key: &str,
        default: T,
        read: impl FnOnce(&str) -> Result<T, E>,
    ) -> Result<T, ConfigError> {
        let Some(written) = self.take(key) else { return Ok(default) };
        read(&written.value).map_err(|problem| bad(key, written.place, problem))
    }

    fn duration(&mut self, key: &str, default: Duration) -> Result<Duration, ConfigError> {
        self.read(key, default, |text| match parse_duration(text) {
            Ok(Duration::ZERO) => Err("must be more than zero".to_owned()),
            Ok(duration) => Ok(duration),
            Err(error) => Err(error.to_string()),
        })
    }

    fn count(&mut self, key: &str, default: usize) -> Result<usize, ConfigError> {
        self.read(key, default, |text| match text.parse() {
            Ok(count) if (1..=COUNT_MAX).contains(&count) => Ok(count),
            _ => Err(format!("is a number from 1 to {COUNT_MAX}")),
        })
    }

    fn truth(&mut self, key: &str, default: bool) -> Result<bool, ConfigError> {
        self.read(key, default, |text| text.parse().map_err(|_other| "is true or false"))
    }

    fn cache_dir(&mut self) -> Option<PathBuf> {
        let written = self.take("cache_dir").map(|written| PathBuf::from(written.value));
        written.or_else(|| {
            if self.host.uid == 0 {
                return Some(PathBuf::from("/var/cache/forebay"));
            }
            let home =
                |name: &str, below: &str| self.env.get(name).map(|dir| Path::new(dir).join(below));
            home("XDG_CACHE_HOME", "forebay").or_else(|| home("HOME", ".cache/forebay"))
        })
    }

    fn chunk_bytes(&mut self) -> Result<u64, ConfigError> {
        self.read("chunk", CHUNK_BYTES, |text| match Size::parse(text) {
            Ok(Size::Bytes(bytes))
                if bytes.is_power_of_two() && (64 << 10..=16 << 20).contains(&bytes) =>
            {
                Ok(bytes)
            }
            Ok(_) => Err("is a power of two from 64KiB to 16MiB".to_owned()),
            Err(error) => Err(error.to_string()),
        })
    }

    fn ram_bytes(&mut self, chunk_bytes: u64) -> Result<u64, ConfigError> {
        let (host, least) = (self.host.memory_bytes, SLOTS_MIN * chunk_bytes);
        self.read("ram", RAM_DEFAULT.of(host).max(least), |text| {
            let bytes = Size::parse(text).map_err(|error| error.to_string())?.of(host);
            if bytes < least {
                return Err(format!(
                    "loads are lent from RAM, so the tier needs at least {} (two chunks)",
                    show_bytes(least)
                ));
            }
            if host > 0 && bytes > host {
                return Err(format!("is more than the {} this host allows", show_bytes(host)));
            }
            Ok(bytes)
        })
    }

    fn nvme(&mut self) -> Result<Option<Budget>, ConfigError> {
        self.read("nvme", Some(NVME_DEFAULT), |text| match Size::parse(text) {
            Ok(Size::Bytes(0) | Size::Percent(0)) => Ok(None),
            Ok(Size::Bytes(bytes)) => Ok(Some(Budget::Bytes(bytes))),
            Ok(Size::Percent(percent)) => Ok(Some(Budget::Percent(percent.into()))),
            Err(error) => Err(error.to_string()),
        })
    }

    fn nvme_engine(&mut self) -> Result<Preference, ConfigError> {
        self.read("nvme_engine", Preference::Auto, |text| match text {
            "auto" => Ok(Preference::Auto),
            "threads" => Ok(Preference::Threads),
            _ => Err("is auto or threads"),
        })
    }

    fn scrub(&mut self) -> Result<u64, ConfigError> {
        let default = SCRUB_BYTES_PER_SECOND;
        self.read("scrub_bytes_per_second", default, |text| match Size::parse(text) {
            Ok(Size::Bytes(bytes)) => Ok(bytes),
            Ok(Size::Percent(_)) => Err("is a size such as 16MiB, or 0".to_owned()),
            Err(error) => Err(error.to_string()),
        })
    }

    fn metrics(&mut self) -> Result<Option<SocketAddr>, ConfigError> {
        let written = self.take("metrics");
        let written = written
            .unwrap_or_else(|| Written { value: METRICS.to_owned(), place: "default".to_owned() });
        if written.value == "off" {
            return Ok(None);
        }
        let parsed = written.value.parse().map(Some);
        parsed.map_err(|_other| bad("metrics", written.place, "is ADDR:PORT or off"))
    }

    fn allow_uids(&mut self) -> Result<Vec<u32>, ConfigError> {
        let mut default = vec![0, self.host.uid];
        default.dedup();
        self.read("allow_uids", default, |text| {
            text.split(',')
                .map(|uid| uid.trim().parse().map_err(|_nan| "is a list of numeric uids"))
                .collect()
        })
    }

    fn origins(&mut self, connections: usize) -> Result<OriginSettings, ConfigError> {
        let blocks = std::mem::take(&mut self.raw.origins);
        let origins = blocks.into_iter().map(origin_block).collect::<Result<_, _>>()?;
        let mut timeouts = Timeouts::default();
        timeouts.first_byte = self.duration("first_byte_timeout", timeouts.first_byte)?;
        timeouts.body_idle = self.duration("body_idle_timeout", timeouts.body_idle)?;
        let of_a_cloud = |name: &&String| {
            ["AWS_", "GOOGLE_", "AZURE_"].iter().any(|prefix| name.starts_with(prefix))
                // Where the clouds' own tools keep their files, and what Google's call an emulator.
                || ["HOME", "STORAGE_EMULATOR_HOST"].contains(&name.as_str())
        };
        let env = self
            .env
            .iter()
            .filter(|(name, _)| of_a_cloud(name))
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect();
        let engine = EngineSettings { limit_max: connections, ..EngineSettings::default() };
        let trace = self.truth("trace_origins", false)?;
        Ok(OriginSettings { origins, env, timeouts, engine, trace, ..OriginSettings::default() })
    }
}

fn bad(key: &str, place: String, problem: impl fmt::Display) -> ConfigError {
    ConfigError::BadValue { place, key: key.to_owned(), problem: problem.to_string() }
}

fn origin_block(written: Written<RawOrigin>) -> Result<OriginBlock, ConfigError> {
    let Written { value, place } = written;
    let RawOrigin {
        prefix,
        endpoint,
        region,
        account,
        allow_http,
        ca_file,
        anonymous,
        checksums,
        max_bytes_per_second,
        max_connections,
        trace,
    } = value;
    if let Err(problem) = known_scheme(&prefix) {
        return Err(bad("origin.prefix", place, problem));
    }
    let max_bytes_per_second = match max_bytes_per_second.as_deref().map(Size::parse) {
        None => None,
        Some(Ok(Size::Bytes(bytes))) if bytes > 0 => Some(bytes),
        Some(_) => {
            return Err(bad("origin.max_bytes_per_second", place, "is a size such as 100MiB"));
        }
    };
    if max_connections.is_some_and(|count| !(1..=COUNT_MAX).contains(&count)) {
        let problem = format!("is a number from 1 to {COUNT_MAX}");
        return Err(bad("origin.max_connections", place, problem));
    }
    Ok(OriginBlock {
        prefix,
        endpoint,
        region,
        account,
        allow_http: allow_http.unwrap_or(false),
        ca_file: ca_file.map(PathBuf::from),
        anonymous: anonymous.unwrap_or(false),
        checksums: checksums.unwrap_or(true),
        max_bytes_per_second,
        max_connections,
        trace,
    })
}

/// The host of an authority, without its port.
fn host_of(authority: &str) -> &str {
    match authority.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => host,
        _ => authority,
    }
}

/// A prefix begins with a scheme that there is; it may end there.
fn known_scheme(prefix: &str) -> Result<(), String> {
    let Some((scheme, _)) = prefix.split_once("://") else {
        // What it is instead may have a secret in it.
        return Err("has no scheme, such as s3://".to_owned());
    };
    match scheme {
        "s3" | "gs" | "az" | "http" | "https" | "file" => Ok(()),
        _ => Err(format!("scheme {scheme:?} is none of s3, gs, az, http, https, file")),
    }
}

/// Where the daemon listens and clients look if nobody says otherwise.
fn default_socket(env: &BTreeMap<String, String>, uid: u32) -> PathBuf {
    match env.get("XDG_RUNTIME_DIR") {
        Some(dir) if uid != 0 => Path::new(dir).join(SOCKET),
        _ => Path::new("/run").join(SOCKET),
    }
}

impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for Settings {
    /// The resolved settings as TOML; secrets as `***`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.listen.show(f)?;
        if let Some(dir) = &self.cache_dir {
            writeln!(f, "cache_dir = {}", quoted(dir.display().to_string()))?;
        }
        writeln!(f, "ram = \"{}\"", show_bytes(self.ram_bytes))?;
        match self.nvme {
            None => writeln!(f, "nvme = \"0\"")?,
            Some(Budget::Bytes(bytes)) => writeln!(f, "nvme = \"{}\"", show_bytes(bytes))?,
            Some(Budget::Percent(percent)) => writeln!(f, "nvme = \"{percent}%\"")?,
        }
        let engine = if self.nvme_engine == Preference::Threads { "threads" } else { "auto" };
        writeln!(f, "nvme_engine = \"{engine}\"")?;
        let scrub = show_bytes(self.scrub_bytes_per_second);
        writeln!(f, "scrub_bytes_per_second = \"{scrub}\"")?;
        let metrics = self.metrics.map_or_else(|| "off".to_owned(), |addr| addr.to_string());
        writeln!(f, "metrics = \"{metrics}\"")?;
        let (form, level) = (self.log.as_str(), log::level_name(self.log_level));
        writeln!(f, "log = \"{form}\"\nlog_level = \"{level}\"")?;
        writeln!(f, "core_dumps = {}", self.core_dumps)?;
        if self.domains.iter().all(|domain| &*domain.name == DEFAULT) {
            writeln!(f, "allow_uids = {:?}", self.allow_uids)?;
        }
        writeln!(f, "chunk = \"{}\"", show_bytes(self.chunk_bytes))?;
        writeln!(f, "lock_memory = {}", self.lock_memory)?;
        writeln!(f, "evidence = {}", self.evidence)?;
        writeln!(f, "max_loads = {}", self.max_loads)?;
        writeln!(f, "max_queue = {}", self.max_queue)?;
        writeln!(f, "connections = {}", self.origins.engine.limit_max)?;
        writeln!(f, "trace_origins = {}", self.origins.trace)?;
        let otlp_endpoint = self.otlp_endpoint.clone().unwrap_or_else(|| "off".to_owned());
        writeln!(f, "otlp_endpoint = {}", quoted(otlp_endpoint))?;
        writeln!(f, "workloads = {:?}", self.workloads.names())?;
        let durations = [
            ("deadline", self.deadline),
            ("deadline_max", self.deadline_max),
            ("no_progress", self.no_progress),
            ("drain", self.drain),
            ("first_byte_timeout", self.origins.timeouts.first_byte),
            ("body_idle_timeout", self.origins.timeouts.body_idle),
        ];
        for (key, duration) in durations {
            writeln!(f, "{key} = \"{}ms\"", duration.as_millis())?;
        }
        for block in &self.origins.origins {
            writeln!(f, "\n[[origin]]\nprefix = {}", quoted(without_secrets(&block.prefix)))?;
            let texts = [
                ("endpoint", block.endpoint.clone()),
                ("region", block.region.clone()),
                ("account", block.account.clone()),
                ("ca_file", block.ca_file.as_ref().map(|path| path.display().to_string())),
                ("max_bytes_per_second", block.max_bytes_per_second.map(show_bytes)),
            ];
            for (key, value) in texts.into_iter().filter_map(|(k, v)| Some((k, v?))) {
                writeln!(f, "{key} = {}", quoted(without_secrets(&value)))?;
            }
            writeln!(f, "allow_http = {}\nanonymous = {}", block.allow_http, block.anonymous)?;
            writeln!(f, "checksums = {}", block.checksums)?;
            if let Some(connections) = block.max_connections {
                writeln!(f, "max_connections = {connections}")?;
            }
            if let Some(trace) = block.trace {
                writeln!(f, "trace = {trace}")?;
            }
        }
        domains::show(&self.domains, f)?;
        for name in self.origins.env.keys() {
            writeln!(f, "# {name} = ***")?;
        }
        Ok(())
    }
}

/// A text as TOML writes it.
fn quoted(text: String) -> toml::Value {
    toml::Value::String(text)
}

/// A list of texts as TOML writes it.
fn quoted_list(texts: &[String]) -> String {
    let quoted: Vec<_> = texts.iter().map(|text| quoted(text.clone()).to_string()).collect();
    format!("[{}]", quoted.join(", "))
}

/// A URL without the user name, password and query someone may have put into it.
fn without_secrets(text: &str) -> String {
    let text = text.split('?').next().unwrap_or_default();
    let Some((scheme, rest)) = text.split_once("://") else { return text.to_owned() };
    let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    match authority.rsplit_once('@') {
        Some((_, host)) => format!("{scheme}://***@{host}{path}"),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::host::limit_files;
    use super::*;

    const HOST: Host = Host { memory_bytes: 16 << 30, uid: 1000 };

    fn resolve(file: &str, env: &[(&str, &str)]) -> Result<Settings, ConfigError> {
        let env: BTreeMap<String, String> =
            env.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        let mut raw = Raw::default();
        raw.read_file("forebay.toml", file)?;
        raw.read_env(&env)?;
        Settings::resolve(raw, env, &HOST)
    }

    fn problem(file: &str) -> String {
        resolve(file, &[]).unwrap_err().to_string()
    }

    #[test]
    fn defaults_are_those_of_the_interface() {
        let settings =
            resolve("", &[("XDG_RUNTIME_DIR", "/run/user/1000"), ("HOME", "/h")]).unwrap();
        assert_eq!(settings.listen.sockets, [PathBuf::from("/run/user/1000/forebay/forebay.sock")]);
        assert_eq!(settings.ram_bytes, (16 << 30) / 100 * 25);
        assert_eq!(settings.metrics, Some("127.0.0.1:9464".parse().unwrap()));
        assert_eq!(settings.allow_uids, [0, 1000]);
        assert_eq!(settings.cache_dir, Some(PathBuf::from("/h/.cache/forebay")));
        assert_eq!(settings.drain, Duration::from_secs(30));
        assert_eq!(settings.origins.engine.limit_max, 250);
    }

    #[test]
    fn a_limit_of_the_own_cgroup_or_an_ancestor_is_seen() {
        let own = "0::/system.slice/forebayd.service\n5:cpu,memory:/docker/x\n3:cpuset:/\n";
        let files: Vec<_> =
            limit_files(own).into_iter().map(|path| path.display().to_string()).collect();
        assert_eq!(
            files,
            [
                "/sys/fs/cgroup/system.slice/forebayd.service/memory.max",
                "/sys/fs/cgroup/system.slice/memory.max",
                "/sys/fs/cgroup/memory.max",
                "/sys/fs/cgroup/memory/docker/x/memory.limit_in_bytes",
                "/sys/fs/cgroup/memory/docker/memory.limit_in_bytes",
                "/sys/fs/cgroup/memory/memory.limit_in_bytes",
            ]
        );
    }

    #[test]
    fn hosts_of_configured_origins_are_known_before_anyone_asks() {
        let file = "[[origin]]\nprefix = \"s3://b\"\nendpoint = \"http://minio.local:9000\"\n\
            [[origin]]\nprefix = \"https://models.example/x\"\n[[origin]]\nprefix = \"gs://c\"\n";
        let env = [("AWS_ENDPOINT_URL", "https://s3.example:8443"), ("AWS_REGION", "x")];
        let hosts = resolve(file, &env).unwrap().origin_hosts();
        assert_eq!(hosts, ["minio.local", "models.example", "s3.example"]);
    }

    #[test]
    fn an_origin_is_held_to_its_checksums_unless_it_is_said_not_to_be() {
        let file = "[[origin]]\nprefix = \"az://a\"\nchecksums = false\n\
            [[origin]]\nprefix = \"s3://b\"\n";
        let settings = resolve(file, &[]).unwrap();
        let held: Vec<bool> = settings.origins.origins.iter().map(|o| o.checksums).collect();
        assert_eq!(held, [false, true]);
        let shown = settings.to_string();
        assert_eq!(resolve(&shown, &[]).unwrap().origins.origins, settings.origins.origins);
        let problem = problem("[[origin]]\nprefix = \"az://a\"\nchecksums = \"md5\"\n");
        assert!(problem.contains("`checksums` is true or false"), "{problem}");
    }

    #[test]
    fn bad_values_name_their_place() {
        assert!(problem("\nram = \"5\"").starts_with("forebay.toml:2: ram: \"5\" is not a size"));
        assert!(problem("ram = \"0\"").contains("at least 16MiB"));
        assert!(problem("ram = \"32GiB\"").contains("more than the 16GiB"));
        assert!(problem("chunk = \"3MiB\"").contains("power of two"));
        assert!(problem("listen = \"unix:///a,tcp://0.0.0.0:1\"").contains("TLS"));
        assert!(problem("listen = \"/run/x.sock\"").contains("unix:///PATH"));
        assert!(problem("nvme = \"lots\"").contains("nvme"));
        assert!(problem("nvme_engine = \"spdk\"").contains("auto or threads"));
        assert!(problem("scrub_bytes_per_second = \"5%\"").contains("16MiB"));
        assert!(problem("drain = \"0s\"").contains("more than zero"));
        assert!(problem("connections = 0").contains("from 1"));
        assert!(problem("allow_uids = [\"root\"]").contains("numeric"));
        assert!(problem("log_level = \"loud\"").contains("debug or trace"));
        assert!(problem("metrics = \"9464\"").contains("ADDR:PORT"));
        assert!(problem("[[origin]]\nprefix = \"b\"").contains("no scheme"));
        assert!(problem("[[origin]]\nprefix = \"foo://b\"").contains("none of s3"));
        assert!(problem("connections = 9223372036854775807").contains("from 1"));
        let many = "[[origin]]\nprefix = \"s3://b\"\n".repeat(raw::ORIGINS_MAX + 1);
        assert!(problem(&many).contains("more than 64 blocks"));
    }

    #[test]
    fn every_key_is_taken_and_what_is_shown_reads_back() {
        let file = "listen = [\"unix:///a/b.sock\", \"tcp://0.0.0.0:1\"]\ncache_dir = \"/c\"\nram = \"1GiB\"\nnvme = \"70%\"\n\
            nvme_engine = \"threads\"\nscrub_bytes_per_second = \"1MiB\"\n\
            metrics = \"off\"\nlog = \"json\"\nlog_level = \"trace\"\ncore_dumps = true\nallow_uids = [5]\nchunk = \"1MiB\"\nlock_memory = false\nevidence = false\n\
            max_loads = 2\nmax_queue = 3\nconnections = 4\ndeadline = \"5s\"\ndeadline_max = \"6s\"\n\
            no_progress = \"7s\"\ndrain = \"8s\"\nfirst_byte_timeout = \"9s\"\nbody_idle_timeout = \"10s\"\n\
            trace_origins = true\notlp_endpoint = \"off\"\nworkloads = [\"serving\", \"training\"]\n\
            tls_cert = \"/t/c.pem\"\ntls_key = \"/t/k.pem\"\ntls_client_ca = \"/t/ca.pem\"\ntls_client_auth = \"require\"\n\
            [[origin]]\nprefix = \"s3://b\"\nendpoint = \"http://user:p@pw@h:1/x?sig=pw\"\nmax_bytes_per_second = \"1MiB\"\ntrace = false\n";
        for key in raw::plain_keys() {
            assert!(file.contains(&format!("{key} = ")), "{key} is not in this test");
        }
        let shown = resolve(file, &[("AWS_SECRET_ACCESS_KEY", "canary")]).unwrap().to_string();
        assert!(!shown.contains("canary") && !shown.contains("pw"), "{shown}");
        assert!(shown.contains("AWS_SECRET_ACCESS_KEY = ***"));
        let again = resolve(&shown, &[]).unwrap().to_string();
        let without_env = shown.lines().filter(|line| !line.starts_with('#'));
        assert_eq!(again.lines().collect::<Vec<_>>(), without_env.collect::<Vec<_>>());
    }

    /// Whatever is wrong with them, settings are refused without what may be secret in them.
    #[test]
    fn no_refusal_and_no_form_of_the_settings_shows_a_secret() {
        let domain = "[[domain]]\nname = \"d\"\n";
        let origin = "[[origin]]\nprefix = \"s3://b\"\n";
        for file in [
            "[[origin]]\nprefix = \"https:/u:canary@h/x\"".to_owned(),
            "[[origin]]\nprefix = \"h/x?sig=canary\"".to_owned(),
            "[[origin]]\nprefix = \"ftp://u:canary@h/x?sig=canary\"".to_owned(),
            format!("{origin}endpoint = \"http://u:canary@h:1/?sig=canary\"\nallow_http = \"x\""),
            format!("{domain}token_sha256 = \"canary\""),
            format!("{domain}token_sha256 = [\"canary\", \"canary\"]"),
            format!("{domain}token_sha256 = \"{}\"", "canary".repeat(11)),
            format!("{domain}uids = [1]\nuri_prefixes = [\"https://h/x?sig=canary\"]"),
            format!("{domain}uids = [1]\nuri_prefixes = [\"h/x?sig=canary\"]"),
            "otlp_endpoint = \"http://u:canary@h:1\"".to_owned(),
            "log = \"canary".to_owned(),
            "tls_key = \"-----BEGIN PRIVATE KEY-----\ncanary".to_owned(),
        ] {
            let error = problem(&file);
            assert!(!error.contains("canary"), "{file}\n{error}");
        }
        let env = ["AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AZURE_STORAGE_ACCOUNT_KEY"]
            .map(|name| (name, "canary"));
        let file = "[[origin]]\nprefix = \"https://u:canary@h/x?sig=canary\"\n";
        let settings = resolve(file, &env).unwrap();
        let shown = format!("{settings} {settings:?} {settings:#?} {:?}", settings.origins);
        assert!(!shown.contains("canary"), "{shown}");
    }
}
