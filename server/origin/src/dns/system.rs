//! Lookups by the system's own configuration: hosts file, then the search list over the name
//! servers.
//!
//! The files are parsed by hickory, which also speaks DNS (CNAME chains, TCP after a truncated
//! answer); the walk is ours, because it must be that of the C library: the hosts file answers
//! alone, a search list replaces the host's own domain, name servers are asked in their order, and
//! only one that fails or is silent makes room for the next. Where hickory differs (it adds the
//! host's domain, asks two servers at once, and starts again with the first after silence) split
//! horizons break.

use std::fs::{File, Metadata};
use std::io::{self, Read};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use hickory_resolver::config::{LookupIpStrategy, NameServerConfig, ResolveHosts, ResolverConfig};
use hickory_resolver::lookup::Lookup;
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::net::{DnsError, NetError};
use hickory_resolver::proto::op::Query;
use hickory_resolver::proto::rr::{Name, RecordType};
use hickory_resolver::{Hosts, Resolver, TokioResolver, system_conf};
use tokio::time::timeout;

use super::failure::DnsFailure;
use super::resolver::Upstream;
use super::route;
use super::settings::DnsSettings;
use super::table::Answer;
use crate::resolve::{Resolve, SystemResolver};

/// More of a configuration file is not read.
const FILE_MAX: u64 = 4 << 20;
/// How long answers without a TTL are used: those of files and of the operating system.
const LOCAL_TTL: Duration = Duration::from_secs(30);

/// When one family has answered, the other has this long.
const OTHER_FAMILY_MAX: Duration = Duration::from_millis(250);

/// Resolves by the configuration of the system.
#[derive(Debug)]
pub(crate) struct SystemDns {
    files: [PathBuf; 2],
    server_port: u16,
    try_timeout: Duration,
    tries: u32,
    loaded: Mutex<Arc<Loaded>>,
}

/// What the files said when they were read.
struct Loaded {
    stamps: [Stamp; 2],
    hosts: Hosts,
    servers: Vec<(IpAddr, TokioResolver)>,
    search: Vec<Name>,
    ndots: usize,
    degraded: Option<String>,
}

/// Another stamp means another content. `None`: no such file.
type Stamp = Option<(SystemTime, u64)>;

impl SystemDns {
    pub(crate) fn new(settings: &DnsSettings) -> Self {
        let files = [settings.resolv_conf.clone(), settings.hosts.clone()];
        let (port, limit) = (settings.server_port, settings.try_timeout);
        let loaded = Loaded::read(&files, port, limit);
        if let Some(degraded) = &loaded.degraded {
            tracing::warn!("{degraded}");
        }
        Self {
            files,
            server_port: port,
            try_timeout: limit,
            tries: settings.tries,
            loaded: Mutex::new(Arc::new(loaded)),
        }
    }

    /// The configuration as it is now: two `stat` calls, unless a file changed.
    fn current(&self) -> Arc<Loaded> {
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        if loaded.stamps != stamps(&self.files) {
            *loaded = Arc::new(Loaded::read(&self.files, self.server_port, self.try_timeout));
            let degraded = loaded.degraded.as_deref();
            tracing::info!(degraded, "the system's DNS configuration changed: read again");
        }
        Arc::clone(&loaded)
    }

    /// The search list, as the C library walks it: what was worst is told if nothing is found.
    async fn walk(&self, loaded: &Loaded, name: &Name) -> Result<Answer, DnsFailure> {
        let mut told = DnsFailure::NameUnknown { ttl: None };
        for candidate in candidates(name, &loaded.search, loaded.ndots) {
            match self.ask_servers(loaded, &candidate).await {
                Ok(answer) => return Ok(answer),
                Err(why @ (DnsFailure::TimedOut(_) | DnsFailure::Unreachable(_))) => {
                    return Err(why);
                }
                Err(why) => told = worse(told, why),
            }
        }
        Err(told)
    }

    async fn ask_servers(&self, loaded: &Loaded, name: &Name) -> Result<Answer, DnsFailure> {
        let mut told = DnsFailure::Unreachable("none is configured".to_owned());
        for _ in 0..self.tries {
            for (_, server) in &loaded.servers {
                match ask(server, name, self.try_timeout).await {
                    Err(why) if !why.is_negative() => told = why,
                    told => return told,
                }
            }
        }
        Err(told)
    }
}

#[async_trait]
impl Upstream for SystemDns {
    async fn lookup(&self, name: &str) -> Result<Answer, DnsFailure> {
        let loaded = self.current();
        let parsed = Name::from_ascii(name).map_err(|_| DnsFailure::BadName)?;
        if let Some(answer) = loaded.local(&parsed) {
            return Ok(answer);
        }
        let answer = if loaded.servers.is_empty() {
            by_operating_system(name).await
        } else {
            self.walk(&loaded, &parsed).await
        }?;
        let addresses = route::usable(answer.addresses, route::has_route);
        Ok(Answer { addresses, ..answer })
    }

    fn source(&self) -> (Vec<IpAddr>, Option<String>) {
        let loaded = self.current();
        let servers = loaded.servers.iter().map(|(address, _)| *address).collect();
        (servers, loaded.degraded.clone())
    }
}

impl Loaded {
    fn read(files: &[PathBuf; 2], port: u16, limit: Duration) -> Self {
        // Stamped first: a change while reading is seen next time.
        let stamps = stamps(files);
        let [resolv_conf, hosts_file] = files;
        let mut hosts = Hosts::default();
        let hosts_read = read(hosts_file).and_then(|text| hosts.read_hosts_conf(&*text));
        let conf = read(resolv_conf)
            .map_err(NetError::from)
            .and_then(system_conf::parse_resolv_conf)
            .and_then(|(config, options)| {
                let servers = servers(&config, options.edns0, port, limit)?;
                Ok((servers, search_list(&config), options.ndots))
            });
        let (conf, conf_problem) = match conf {
            Ok(conf) => (conf, None),
            Err(error) => {
                let file = resolv_conf.display();
                let text = format!("{file} gives no name server ({error}): ");
                (Default::default(), Some(text + "getaddrinfo resolves instead, without TTLs"))
            }
        };
        let hosts_problem = hosts_read
            .err()
            .filter(|error| error.kind() != io::ErrorKind::NotFound)
            .map(|error| format!("{} is not used ({error})", hosts_file.display()));
        let problems: Vec<_> = conf_problem.into_iter().chain(hosts_problem).collect();
        let degraded = (!problems.is_empty()).then(|| problems.join("; "));
        let (servers, search, ndots) = conf;
        Self { stamps, hosts, servers, search, ndots, degraded }
    }

    /// What no server is asked for: the hosts file, which answers for all families, and localhost.
    fn local(&self, name: &Name) -> Option<Answer> {
        let of = |record_type| {
            let found = self.hosts.lookup_static_host(&Query::query(name.clone(), record_type));
            found.map_or_else(Vec::new, |lookup| addresses(&lookup))
        };
        let mut found = of(RecordType::A);
        found.extend(of(RecordType::AAAA));
        if found.is_empty() && name.is_localhost() {
            found = vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
        }
        (!found.is_empty()).then_some(Answer { addresses: found, ttl: LOCAL_TTL })
    }
}

impl std::fmt::Debug for Loaded {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let servers: Vec<_> = self.servers.iter().map(|(address, _)| address).collect();
        f.debug_struct("Loaded")
            .field("servers", &servers)
            .field("search", &self.search)
            .field("ndots", &self.ndots)
            .field("degraded", &self.degraded)
            .finish_non_exhaustive()
    }
}

fn stamps(files: &[PathBuf; 2]) -> [Stamp; 2] {
    let stamp = |metadata: Metadata| Some((metadata.modified().ok()?, metadata.len()));
    files.each_ref().map(|file| std::fs::metadata(file).ok().and_then(stamp))
}

fn read(file: &Path) -> io::Result<Vec<u8>> {
    let mut text = Vec::new();
    File::open(file)?.take(FILE_MAX).read_to_end(&mut text)?;
    Ok(text)
}

/// One resolver per name server: which is asked when is decided here, and so is when to give up.
fn servers(
    config: &ResolverConfig,
    edns0: bool,
    port: u16,
    limit: Duration,
) -> Result<Vec<(IpAddr, TokioResolver)>, NetError> {
    let server = |address: IpAddr| {
        let mut server = NameServerConfig::udp_and_tcp(address);
        for connection in &mut server.connections {
            connection.port = port;
        }
        let config = ResolverConfig::from_name_servers(vec![server]);
        let mut builder = Resolver::builder_with_config(config, TokioRuntimeProvider::default());
        let options = builder.options_mut();
        options.timeout = limit;
        options.attempts = 0;
        options.cache_size = 0;
        options.edns0 = edns0;
        options.use_hosts_file = ResolveHosts::Never;
        options.ip_strategy = LookupIpStrategy::Ipv4AndIpv6;
        Ok((address, builder.build()?))
    };
    config.name_servers().iter().map(|known| server(known.ip)).collect()
}

/// The search list or, without one, the host's own domain.
fn search_list(config: &ResolverConfig) -> Vec<Name> {
    match config.search() {
        [] => config.domain().cloned().into_iter().filter(|domain| !domain.is_root()).collect(),
        search => search.to_vec(),
    }
}

/// The full names to try, in order.
fn candidates(name: &Name, search: &[Name], ndots: usize) -> Vec<Name> {
    let mut full = name.clone();
    full.set_fqdn(true);
    if name.is_fqdn() {
        return vec![full];
    }
    let dots = usize::from(name.num_labels()).saturating_sub(1);
    let mut names: Vec<Name> =
        search.iter().filter_map(|domain| name.clone().append_domain(domain).ok()).collect();
    let at = if dots >= ndots { 0 } else { names.len() };
    names.insert(at, full);
    names
}

/// A and AAAA at once. One family is enough; a failure of one says more than a "no" of the other.
async fn ask(server: &TokioResolver, name: &Name, limit: Duration) -> Result<Answer, DnsFailure> {
    let of = |record_type| async move {
        let found = timeout(limit, server.lookup(name.clone(), record_type)).await;
        found.unwrap_or(Err(NetError::Timeout))
    };
    let mut v4 = pin!(of(RecordType::A));
    let mut v6 = pin!(of(RecordType::AAAA));
    let families = tokio::select! {
        found = &mut v4 => {
            let other = other_family(&found, v6).await;
            [found, other]
        }
        found = &mut v6 => {
            let other = other_family(&found, v4).await;
            [other, found]
        }
    };
    let mut answer = Answer { addresses: Vec::new(), ttl: Duration::MAX };
    let mut told: Option<DnsFailure> = None;
    for family in families {
        let found = match family {
            Ok(found) => found,
            Err(error) => {
                let why = failure(&error, limit);
                told = Some(told.map_or_else(|| why.clone(), |told| worse(told, why.clone())));
                continue;
            }
        };
        let ttl = found.answers().iter().map(|record| record.ttl).min().unwrap_or(0);
        answer.ttl = answer.ttl.min(Duration::from_secs(ttl.into()));
        answer.addresses.extend(addresses(&found));
    }
    if answer.addresses.is_empty() {
        return Err(told.unwrap_or(DnsFailure::NoAddress { ttl: None }));
    }
    Ok(answer)
}

/// Middleboxes that drop AAAA questions are common: whoever has an address it can use does not wait
/// out the other family's time limit.
async fn other_family(
    found: &Result<Lookup, NetError>,
    other: impl Future<Output = Result<Lookup, NetError>>,
) -> Result<Lookup, NetError> {
    let first = found.as_ref().ok().and_then(|found| addresses(found).into_iter().next());
    if first.is_some_and(route::has_route) {
        timeout(OTHER_FAMILY_MAX, other).await.unwrap_or(Err(NetError::Timeout))
    } else {
        other.await
    }
}

/// A failure is worse than "no address", which is worse than "no such name".
fn worse(one: DnsFailure, other: DnsFailure) -> DnsFailure {
    let rank = |why: &DnsFailure| match why {
        DnsFailure::NameUnknown { .. } => 0,
        DnsFailure::NoAddress { .. } => 1,
        _ => 2,
    };
    if rank(&other) >= rank(&one) { other } else { one }
}

fn addresses(lookup: &Lookup) -> Vec<IpAddr> {
    lookup.answers().iter().filter_map(|record| record.data.ip_addr()).collect()
}

fn failure(error: &NetError, limit: Duration) -> DnsFailure {
    match error {
        NetError::Dns(DnsError::NoRecordsFound(none)) => {
            let ttl = none.negative_ttl.map(|seconds| Duration::from_secs(seconds.into()));
            if error.is_nx_domain() {
                DnsFailure::NameUnknown { ttl }
            } else {
                DnsFailure::NoAddress { ttl }
            }
        }
        NetError::Dns(DnsError::ResponseCode(code)) => DnsFailure::ServerFailed(code.to_string()),
        NetError::Timeout => DnsFailure::TimedOut(limit),
        NetError::Io(_) | NetError::NoConnections => DnsFailure::Unreachable(error.to_string()),
        other => DnsFailure::ServerFailed(other.to_string()),
    }
}

async fn by_operating_system(name: &str) -> Result<Answer, DnsFailure> {
    match SystemResolver.resolve(name).await {
        Ok(addresses) => Ok(Answer { addresses, ttl: LOCAL_TTL }),
        // getaddrinfo tells "no such name" from "try again" only in words.
        Err(error) => Err(DnsFailure::ServerFailed(error.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> ResolverConfig {
        system_conf::parse_resolv_conf(text).unwrap().0
    }

    #[test]
    fn a_search_list_replaces_the_domain() {
        let names = |text| -> Vec<String> {
            search_list(&parse(text)).iter().map(|name| name.to_ascii()).collect()
        };
        assert_eq!(
            names("nameserver 10.0.0.1\ndomain d.test\nsearch a.test b.test"),
            ["a.test", "b.test"]
        );
        assert_eq!(names("nameserver 10.0.0.1\nsearch a.test\ndomain d.test"), ["d.test"]);
    }

    #[test]
    fn a_failure_is_told_rather_than_a_denial() {
        let (unknown, failed) =
            (DnsFailure::NameUnknown { ttl: None }, DnsFailure::ServerFailed("x".to_owned()));
        assert_eq!(worse(unknown.clone(), failed.clone()), failed);
        assert_eq!(worse(failed.clone(), unknown.clone()), failed);
        let none = DnsFailure::NoAddress { ttl: None };
        assert_eq!(worse(none.clone(), unknown), none);
    }
}
