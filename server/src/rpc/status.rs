//! The daemon at a glance: its state as `Status` tells it.

use std::time::Duration;

use forebay_io::PlannedNode;
use forebay_origin::{AddressStats, BreakerState, DnsName, EndpointStats, OriginStats};
use forebay_proto::pb;
use tokio::time::Instant;

use super::{Shared, aliasing};
use crate::load::Stages;
use crate::loads::LoadState;
use crate::nvme::NvmeState;
use crate::ram::RamSizes;

/// Everything, as it is now.
pub(super) fn now(shared: &Shared) -> pb::StatusResponse {
    let now = Instant::now();
    let Shared { stages, origins, .. } = shared;
    let queues = stages.admission.lanes(now).map(|lane| pb::QueueStatus {
        name: format!("admission.{}", lane.lane.as_str()),
        depth: lane.depth as u64,
        limit: lane.limit as u64,
        oldest_wait_seconds: lane.oldest_wait.as_secs_f64(),
    });
    let running = stages.loads.running();
    let domain = &stages.domain;
    let mut dns = shared.resolver.snapshot();
    let mut addresses = origins.addresses();
    if !domain.is_alone() {
        // A host's name may tell which bucket is whose.
        dns.names.clear();
        addresses.clear();
    }
    let (mut stats, mut endpoints) = (origins.stats(), origins.endpoints());
    stats.retain(|stats| domain.sees_origin(&stats.origin));
    endpoints.retain(|stats| domain.sees_origin(&stats.origin));
    let degraded = shared.degraded.iter().cloned().chain(dns.degraded.clone());
    pb::StatusResponse {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        uptime_seconds: (now - shared.started).as_secs_f64(),
        draining: shared.draining.is_cancelled(),
        ram: Some(ram(stages.ram.sizes(), shared.sessions.unmapping().bytes)),
        queues: queues.into(),
        loads: running.iter().map(|running| load(running, now - running.opened)).collect(),
        origins: stats.into_iter().map(origin).collect(),
        degraded: degraded
            .chain(stages.ram.pool().degraded())
            .chain(stages.workers.degraded())
            .chain(stages.nvme.iter().flat_map(|nvme| nvme.degraded()))
            .chain(shared.aliases.troubles(|record| aliasing::concerns(shared, record)))
            .collect(),
        names: dns.names.iter().map(name).collect(),
        endpoints: endpoints.into_iter().map(endpoint).collect(),
        addresses: addresses.into_iter().map(address).collect(),
        numa: Some(numa(stages)),
        nvme: Some(stages.nvme.as_ref().map_or_else(nvme_off, |tier| nvme(tier.state()))),
        aliases: aliasing::glance(shared),
        domain: Some(own_domain(shared)),
    }
}

/// Who asks, and what its domain has and uses. Nothing of any other domain is in it.
fn own_domain(shared: &Shared) -> pb::DomainStatus {
    let stages = &shared.stages;
    let (spec, sizes) = (stages.domain.spec(), stages.ram.sizes());
    let limits = stages.admission.limits();
    pb::DomainStatus {
        name: spec.name.to_string(),
        ram_budget_bytes: sizes.budget,
        ram_used_bytes: sizes.cached + sizes.leased + sizes.filling,
        loads: stages.loads.running().len() as u64,
        loads_max: limits.active_max as u64,
        queued_max: limits.queued_max as u64,
        sessions: shared.sessions.totals().0 as u64,
        share: spec.share,
        lanes: spec.lanes.iter().map(|lane| lane.as_str().to_owned()).collect(),
        uri_prefixes: spec.uri_prefixes.clone(),
    }
}

fn nvme_off() -> pb::NvmeStatus {
    pb::NvmeStatus { state: "off".to_owned(), recovery_seconds: -1.0, ..Default::default() }
}

fn nvme(state: NvmeState) -> pb::NvmeStatus {
    pb::NvmeStatus {
        state: state.state.to_owned(),
        budget_bytes: state.budget,
        stored_bytes: state.stored,
        pinned_bytes: state.pinned,
        filling_bytes: state.filling,
        disk_free_bytes: state.disk_free,
        extents: state.extents as u64,
        queued_fills: state.queued_fills as u64,
        engine: state.engine.to_owned(),
        engine_reason: state.engine_reason,
        quarantined: state.quarantined,
        fills_given_up: state.given_up,
        recovery_seconds: state.recovery.map_or(-1.0, |took| took.as_secs_f64()),
    }
}

fn origin(stats: OriginStats) -> pb::OriginStatus {
    let OriginStats { origin, requests, errors, bytes, inflight } = stats;
    pb::OriginStatus { origin, requests, errors, bytes, inflight }
}

fn endpoint(stats: EndpointStats) -> pb::EndpointStatus {
    let (breaker, open) = match stats.breaker {
        BreakerState::Closed => ("closed", Duration::ZERO),
        BreakerState::HalfOpen => ("half_open", Duration::ZERO),
        BreakerState::Open(time) => ("open", time),
    };
    pb::EndpointStatus {
        origin: stats.origin,
        limit: stats.limit as u64,
        inflight: stats.inflight as u64,
        waiting: stats.waiting as u64,
        oldest_wait_seconds: stats.oldest_wait.unwrap_or_default().as_secs_f64(),
        retry_tokens: u64::from(stats.tokens),
        breaker: breaker.to_owned(),
        breaker_open_seconds: open.as_secs_f64(),
        breaker_opened: stats.breaker_opened,
        throttled: stats.throttled,
        retries: stats.retries,
        retries_denied: stats.retries_denied,
        hedges: stats.hedges,
        hedge_wins: stats.hedge_wins,
        hedge_wasted_bytes: stats.hedge_wasted_bytes,
        sustained_bytes_per_second: stats.sustained.unwrap_or_default(),
    }
}

fn address(stats: AddressStats) -> pb::AddressStatus {
    pb::AddressStatus {
        host: stats.host,
        address: stats.address.to_string(),
        connections: stats.connections as u64,
        weight: stats.weight,
        ejected_seconds: stats.ejected.unwrap_or_default().as_secs_f64(),
        ejections: stats.ejections,
        failures: u64::from(stats.failures),
        bytes_per_second: stats.bytes_per_second.unwrap_or_default(),
    }
}

fn name(name: &DnsName) -> pb::DnsStatus {
    let current = name.addresses.iter().filter(|address| address.current);
    pb::DnsStatus {
        name: name.name.clone(),
        state: name.state.as_str().to_owned(),
        addresses: current.map(|address| address.address.to_string()).collect(),
        age_seconds: name.age.map_or(-1.0, |age| age.as_secs_f64()),
        last_failure: name.last_failure.as_ref().map(ToString::to_string).unwrap_or_default(),
    }
}

fn ram(sizes: RamSizes, retired_bytes: u64) -> pb::RamStatus {
    pb::RamStatus {
        budget_bytes: sizes.budget,
        populated_bytes: sizes.populated,
        cached_bytes: sizes.cached,
        leased_bytes: sizes.leased,
        filling_bytes: sizes.filling,
        free_bytes: sizes.free,
        locked_bytes: sizes.locked,
        chunk_bytes: sizes.chunk,
        segments: sizes.segments,
        retiring_bytes: sizes.retiring,
        retired_bytes,
    }
}

fn numa(stages: &Stages) -> pb::NumaStatus {
    let (slots, workers) = (stages.ram.on_nodes(), stages.workers.states());
    let node = |node: &PlannedNode| {
        let mut status = pb::NodeStatus {
            node: node.id.0,
            cpus: node.cpus.to_string(),
            memory_bytes: node.memory_bytes,
            ..Default::default()
        };
        if let Some(sizes) = slots.iter().find(|sizes| sizes.node == node.id) {
            status.slots = sizes.slots;
            status.strayed_slots = sizes.strayed;
            status.cached_bytes = sizes.cached;
            status.leased_bytes = sizes.leased;
            status.filling_bytes = sizes.filling;
            status.free_bytes = sizes.free;
        }
        if let Some(state) = workers.iter().find(|state| state.node == node.id) {
            status.workers = state.workers as u64;
            status.pinned_workers = state.pinned as u64;
            status.worker_jobs = state.jobs;
            status.offnode_jobs = state.offnode;
        }
        status
    };
    pb::NumaStatus {
        nodes: stages.numa.plan().nodes().iter().map(node).collect(),
        misplaced_slots: stages.ram.misplaced(),
    }
}

fn load(load: &LoadState, age: Duration) -> pb::LoadStatus {
    use std::sync::atomic::Ordering::Relaxed;
    pb::LoadStatus {
        load_id: load.load_id.clone(),
        uri: load.uri.clone(),
        lane: load.lane.as_str().to_owned(),
        uid: load.peer.uid,
        pid: load.peer.pid,
        age_seconds: age.as_secs_f64(),
        granted_bytes: load.granted_bytes.load(Relaxed),
        leased_bytes: load.leased_bytes(),
        total_bytes: load.total_bytes.load(Relaxed),
        alias: load.alias.clone(),
    }
}
