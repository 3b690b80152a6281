//! What `status` answers: the daemon at a glance.

use std::time::Duration;

use super::{Alias, Malformed, NumaStatus, span};
use crate::pb;

/// The RAM tier.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RamStatus {
    /// The most it may hold.
    pub budget_bytes: u64,
    /// In segments that exist.
    pub populated_bytes: u64,
    /// Readable, not leased.
    pub cached_bytes: u64,
    /// Leased to clients.
    pub leased_bytes: u64,
    /// Being written.
    pub filling_bytes: u64,
    /// Empty.
    pub free_bytes: u64,
    /// Locked in memory.
    pub locked_bytes: u64,
    /// Size of a slot.
    pub chunk_bytes: u64,
    /// Segments.
    pub segments: u64,
    /// Of the populated bytes: in segments that are out of use and go when no lease is left.
    pub retiring_bytes: u64,
    /// In segments that the daemon has let go of and clients still map.
    pub retired_bytes: u64,
}

impl RamStatus {
    fn receive(ram: pb::RamStatus) -> Self {
        let pb::RamStatus {
            budget_bytes,
            populated_bytes,
            cached_bytes,
            leased_bytes,
            filling_bytes,
            free_bytes,
            locked_bytes,
            chunk_bytes,
            segments,
            retiring_bytes,
            retired_bytes,
        } = ram;
        Self {
            budget_bytes,
            populated_bytes,
            cached_bytes,
            leased_bytes,
            filling_bytes,
            free_bytes,
            locked_bytes,
            chunk_bytes,
            segments,
            retiring_bytes,
            retired_bytes,
        }
    }
}

/// The NVMe tier.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NvmeStatus {
    /// `off`, `recovering`, `normal`, `unstable` or `down`; a daemon that says nothing has none.
    pub state: String,
    /// The most it may hold.
    pub budget_bytes: u64,
    /// Held.
    pub stored_bytes: u64,
    /// Of them: never evicted to make room.
    pub pinned_bytes: u64,
    /// Being written.
    pub filling_bytes: u64,
    /// Free on the file system that it lies on.
    pub disk_free_bytes: u64,
    /// Extents that hold them.
    pub extents: u64,
    /// Chunks in RAM that wait to be written.
    pub queued_fills: u64,
    /// How it reads and writes, `io_uring` or `threads`, if it does.
    pub engine: Option<String>,
    /// Why that way, or why there is no tier.
    pub engine_reason: Option<String>,
    /// Bad extents found since the start.
    pub quarantined: u64,
    /// Fills given up since the start.
    pub fills_given_up: u64,
    /// From the start until every extent was known, once that is so.
    pub recovery: Option<Duration>,
}

impl NvmeStatus {
    /// The state of a daemon without the tier.
    pub const OFF: &str = "off";

    fn receive(nvme: pb::NvmeStatus) -> Result<Self, Malformed> {
        let given = |text: String| Some(text).filter(|text| !text.is_empty());
        let recovered = nvme.recovery_seconds >= 0.0;
        let recovery = recovered
            .then(|| span("NvmeStatus", "recovery_seconds", nvme.recovery_seconds))
            .transpose()?;
        Ok(Self {
            state: given(nvme.state).unwrap_or_else(|| Self::OFF.to_owned()),
            budget_bytes: nvme.budget_bytes,
            stored_bytes: nvme.stored_bytes,
            pinned_bytes: nvme.pinned_bytes,
            filling_bytes: nvme.filling_bytes,
            disk_free_bytes: nvme.disk_free_bytes,
            extents: nvme.extents,
            queued_fills: nvme.queued_fills,
            engine: given(nvme.engine),
            engine_reason: given(nvme.engine_reason),
            quarantined: nvme.quarantined,
            fills_given_up: nvme.fills_given_up,
            recovery,
        })
    }
}

/// The caller's security domain: its quotas, and what it uses of them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DomainStatus {
    /// Its name; empty if the daemon is too old to tell, and then nothing else is known.
    pub name: String,
    /// The most it may hold in RAM.
    pub ram_budget_bytes: u64,
    /// What it holds there.
    pub ram_used_bytes: u64,
    /// Its loads that run.
    pub loads: u64,
    /// How many may.
    pub loads_max: u64,
    /// How many may wait.
    pub queued_max: u64,
    /// Clients that are connected to its memory.
    pub sessions: u64,
    /// Its part of what domains have in common, beside those of others.
    pub share: u32,
    /// Lanes that it may use.
    pub lanes: Vec<String>,
    /// Prefixes of what it may load; none: everything.
    pub uri_prefixes: Vec<String>,
}

impl DomainStatus {
    fn receive(domain: pb::DomainStatus) -> Self {
        Self {
            name: domain.name,
            ram_budget_bytes: domain.ram_budget_bytes,
            ram_used_bytes: domain.ram_used_bytes,
            loads: domain.loads,
            loads_max: domain.loads_max,
            queued_max: domain.queued_max,
            sessions: domain.sessions,
            share: domain.share,
            lanes: domain.lanes,
            uri_prefixes: domain.uri_prefixes,
        }
    }
}

/// One bounded queue of the daemon.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QueueStatus {
    /// Its name.
    pub name: String,
    /// How many wait.
    pub depth: u64,
    /// How many may.
    pub limit: u64,
    /// How long the oldest has waited.
    pub oldest_wait: Duration,
}

/// One running load.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoadStatus {
    /// Its id.
    pub load_id: String,
    /// Its URI, without a query.
    pub uri: String,
    /// The alias that it was opened by; empty if it was a URI.
    pub alias: String,
    /// Its lane.
    pub lane: String,
    /// Uid of the client.
    pub uid: u32,
    /// Pid of the client.
    pub pid: u32,
    /// Time since it was opened.
    pub age: Duration,
    /// Bytes granted so far.
    pub granted_bytes: u64,
    /// Bytes leased now.
    pub leased_bytes: u64,
    /// Bytes there will be.
    pub total_bytes: u64,
}

/// One origin the daemon has spoken to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OriginStatus {
    /// Scheme and bucket, or host.
    pub origin: String,
    /// Requests sent.
    pub requests: u64,
    /// Requests that failed.
    pub errors: u64,
    /// Body bytes received.
    pub bytes: u64,
    /// Requests under way.
    pub inflight: u64,
}

/// An origin as far as one block of the settings applies, and what it is asked for.
#[derive(Debug, Clone, PartialEq)]
pub struct EndpointStatus {
    /// Scheme and bucket, or host.
    pub origin: String,
    /// Requests that may be under way.
    pub limit: u64,
    /// Requests under way.
    pub inflight: u64,
    /// Requests that wait for their turn.
    pub waiting: u64,
    /// How long the first of them has waited.
    pub oldest_wait: Duration,
    /// Tokens left for retries and hedges.
    pub retry_tokens: u64,
    /// `closed`, `half_open` or `open`.
    pub breaker: String,
    /// How long it stays open.
    pub breaker_open: Duration,
    /// How often it opened.
    pub breaker_opened: u64,
    /// Answers that said "slow down".
    pub throttled: u64,
    /// Requests that repeated a failed one.
    pub retries: u64,
    /// Retries that were not made for want of tokens.
    pub retries_denied: u64,
    /// Second copies of slow requests.
    pub hedges: u64,
    /// Those that were faster.
    pub hedge_wins: u64,
    /// Bytes that two copies brought.
    pub hedge_wasted_bytes: u64,
    /// What it brought lately when it was asked for all it could, if that is known.
    pub sustained_bytes_per_second: Option<f64>,
}

impl EndpointStatus {
    fn receive(endpoint: pb::EndpointStatus) -> Result<Self, Malformed> {
        const MESSAGE: &str = "EndpointStatus";
        Ok(Self {
            origin: endpoint.origin,
            limit: endpoint.limit,
            inflight: endpoint.inflight,
            waiting: endpoint.waiting,
            oldest_wait: span(MESSAGE, "oldest_wait_seconds", endpoint.oldest_wait_seconds)?,
            retry_tokens: endpoint.retry_tokens,
            breaker: endpoint.breaker,
            breaker_open: span(MESSAGE, "breaker_open_seconds", endpoint.breaker_open_seconds)?,
            breaker_opened: endpoint.breaker_opened,
            throttled: endpoint.throttled,
            retries: endpoint.retries,
            retries_denied: endpoint.retries_denied,
            hedges: endpoint.hedges,
            hedge_wins: endpoint.hedge_wins,
            hedge_wasted_bytes: endpoint.hedge_wasted_bytes,
            sustained_bytes_per_second: known(endpoint.sustained_bytes_per_second),
        })
    }
}

/// One address of a host that was connected to.
#[derive(Debug, Clone, PartialEq)]
pub struct AddressStatus {
    /// The host.
    pub host: String,
    /// The address.
    pub address: String,
    /// Connections to it.
    pub connections: u64,
    /// Its share of new connections, against 1 of a good one.
    pub weight: f64,
    /// How long it is still left out, if it is.
    pub ejected: Option<Duration>,
    /// How often it was.
    pub ejections: u64,
    /// Failures in a row.
    pub failures: u64,
    /// Median speed of its last parts, if that is known.
    pub bytes_per_second: Option<f64>,
}

impl AddressStatus {
    fn receive(address: pb::AddressStatus) -> Result<Self, Malformed> {
        let ejected = span("AddressStatus", "ejected_seconds", address.ejected_seconds)?;
        Ok(Self {
            host: address.host,
            address: address.address,
            connections: address.connections,
            weight: known(address.weight).unwrap_or_default(),
            ejected: Some(ejected).filter(|time| !time.is_zero()),
            ejections: address.ejections,
            failures: address.failures,
            bytes_per_second: known(address.bytes_per_second),
        })
    }
}

/// A name of an origin and what is known of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NameStatus {
    /// The name.
    pub name: String,
    /// `pending`, `fresh`, `stale` or `failed`.
    pub state: String,
    /// Those of the last answer.
    pub addresses: Vec<String>,
    /// Of the last answer, if there was one.
    pub age: Option<Duration>,
    /// How the last look-up failed, if it did.
    pub last_failure: Option<String>,
}

impl NameStatus {
    fn receive(name: pb::DnsStatus) -> Result<Self, Malformed> {
        let known = name.age_seconds >= 0.0;
        let age = known.then(|| span("DnsStatus", "age_seconds", name.age_seconds)).transpose()?;
        Ok(Self {
            name: name.name,
            state: name.state,
            addresses: name.addresses,
            age,
            last_failure: Some(name.last_failure).filter(|text| !text.is_empty()),
        })
    }
}

/// A measured number; 0 and what is none stand for "not known".
fn known(number: f64) -> Option<f64> {
    (number.is_finite() && number > 0.0).then_some(number)
}

/// The daemon at a glance.
#[derive(Debug, Clone, PartialEq)]
pub struct DaemonStatus {
    /// The daemon's version.
    pub version: String,
    /// Time since it started.
    pub uptime: Duration,
    /// Whether it is shutting down.
    pub draining: bool,
    /// The caller's domain; all else is as that domain sees it.
    pub domain: DomainStatus,
    /// The RAM tier.
    pub ram: RamStatus,
    /// The NVMe tier.
    pub nvme: NvmeStatus,
    /// The NUMA nodes.
    pub numa: NumaStatus,
    /// Its queues.
    pub queues: Vec<QueueStatus>,
    /// Running loads.
    pub loads: Vec<LoadStatus>,
    /// Origins.
    pub origins: Vec<OriginStatus>,
    /// What they are asked for.
    pub endpoints: Vec<EndpointStatus>,
    /// Addresses of their hosts.
    pub addresses: Vec<AddressStatus>,
    /// Names of their hosts.
    pub names: Vec<NameStatus>,
    /// Names of revisions, without their history.
    pub aliases: Vec<Alias>,
    /// One sentence for each thing that could not be had.
    pub degraded: Vec<String>,
}

impl DaemonStatus {
    /// Checks the message.
    pub fn receive(status: pb::StatusResponse) -> Result<Self, Malformed> {
        const MESSAGE: &str = "StatusResponse";
        let queues = status.queues.into_iter().map(|queue| {
            Ok(QueueStatus {
                name: queue.name,
                depth: queue.depth,
                limit: queue.limit,
                oldest_wait: span(MESSAGE, "oldest_wait_seconds", queue.oldest_wait_seconds)?,
            })
        });
        let loads = status.loads.into_iter().map(|load| {
            Ok(LoadStatus {
                load_id: load.load_id,
                uri: load.uri,
                alias: load.alias,
                lane: load.lane,
                uid: load.uid,
                pid: load.pid,
                age: span(MESSAGE, "age_seconds", load.age_seconds)?,
                granted_bytes: load.granted_bytes,
                leased_bytes: load.leased_bytes,
                total_bytes: load.total_bytes,
            })
        });
        let origins = status.origins.into_iter().map(|origin| OriginStatus {
            origin: origin.origin,
            requests: origin.requests,
            errors: origin.errors,
            bytes: origin.bytes,
            inflight: origin.inflight,
        });
        Ok(Self {
            version: status.version,
            uptime: span(MESSAGE, "uptime_seconds", status.uptime_seconds)?,
            draining: status.draining,
            domain: DomainStatus::receive(status.domain.unwrap_or_default()),
            ram: RamStatus::receive(status.ram.unwrap_or_default()),
            nvme: NvmeStatus::receive(status.nvme.unwrap_or_default())?,
            numa: NumaStatus::receive(status.numa.unwrap_or_default()),
            queues: queues.collect::<Result<_, Malformed>>()?,
            loads: loads.collect::<Result<_, Malformed>>()?,
            origins: origins.collect(),
            endpoints: all(status.endpoints, EndpointStatus::receive)?,
            addresses: all(status.addresses, AddressStatus::receive)?,
            names: all(status.names, NameStatus::receive)?,
            aliases: all(status.aliases, Alias::receive)?,
            degraded: status.degraded,
        })
    }
}

fn all<T, M>(
    messages: Vec<M>,
    receive: fn(M) -> Result<T, Malformed>,
) -> Result<Vec<T>, Malformed> {
    messages.into_iter().map(receive).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_known_is_none() {
        let endpoint = EndpointStatus::receive(pb::EndpointStatus::default()).unwrap();
        assert_eq!(endpoint.sustained_bytes_per_second, None);
        let address = AddressStatus::receive(pb::AddressStatus::default()).unwrap();
        assert_eq!((address.ejected, address.bytes_per_second), (None, None));
        let name = pb::DnsStatus { age_seconds: -1.0, ..Default::default() };
        let name = NameStatus::receive(name).unwrap();
        assert_eq!((name.age, name.last_failure), (None, None));
        let name = pb::DnsStatus { age_seconds: f64::INFINITY, ..Default::default() };
        NameStatus::receive(name).unwrap_err();
        let nvme = |recovery_seconds| {
            NvmeStatus::receive(pb::NvmeStatus { recovery_seconds, ..Default::default() })
        };
        assert_eq!(nvme(-1.0).unwrap().recovery, None);
        assert_eq!(nvme(1.5).unwrap().recovery, Some(Duration::from_millis(1500)));
        nvme(f64::INFINITY).unwrap_err();
    }

    #[test]
    fn an_empty_status_is_possible_and_an_impossible_age_is_not() {
        let status = DaemonStatus::receive(pb::StatusResponse::default()).unwrap();
        assert_eq!(status.ram, RamStatus::default());
        assert_eq!((status.nvme.state.as_str(), status.nvme.engine), (NvmeStatus::OFF, None));
        let load = pb::LoadStatus { age_seconds: -5.0, ..Default::default() };
        let status = pb::StatusResponse { loads: vec![load], ..Default::default() };
        DaemonStatus::receive(status).unwrap_err();
    }
}
