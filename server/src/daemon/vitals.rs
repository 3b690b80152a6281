//! What `/metrics` and `/readyz` say: gauges are read from the state when somebody asks. They are sums
//! over the domains, but for those that have a domain's name.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::admission::Lane;
use crate::handoff::Unmapping;
use crate::http::Vitals;
use crate::metrics::{self, Metrics, as_f64, set, set_of};
use crate::ram::{NodeSizes, RamSizes};
use crate::rpc::Shared;

/// The daemon's vital signs.
pub(super) struct DaemonVitals {
    first: Arc<Shared>,
    /// One per domain, the first as well.
    domains: Vec<Arc<Shared>>,
    recorder: Metrics,
}

impl DaemonVitals {
    /// None without a domain, which no daemon is.
    pub(super) fn new(domains: Vec<Arc<Shared>>, recorder: Metrics) -> Option<Self> {
        Some(Self { first: Arc::clone(domains.first()?), domains, recorder })
    }

    /// Set when the endpoint has to end.
    pub(super) fn closing(&self) -> CancellationToken {
        self.first.stop.clone()
    }

    fn sum(&self, of: impl Fn(&Shared) -> u64) -> u64 {
        self.domains.iter().map(|shared| of(shared)).sum()
    }

    fn set_gauges(&self) {
        self.set_queues();
        self.set_ram();
        self.set_clients();
        self.domains.iter().for_each(|shared| set_domain(shared));
        let (stages, origins) = (&self.first.stages, &self.first.origins);
        set(metrics::FLIGHTS, self.sum(|shared| shared.stages.flights.len() as u64));
        metrics::endpoints(&origins.endpoints());
        metrics::addresses(&origins.addresses());
        let (lent, budget) = stages.fetcher.staging();
        for (state, bytes) in [("lent", lent), ("budget", budget)] {
            set_of(metrics::STAGING_BYTES, "state", state, as_f64(bytes));
        }
        let dns = self.first.resolver.snapshot();
        metrics::dns_lookups(&dns.counters);
        let oldest = dns.names.iter().filter_map(|name| name.age).max().unwrap_or_default();
        metrics::set_seconds(metrics::DNS_AGE_SECONDS, oldest);
        metrics::workers(&stages.workers.states());
        let pools = self.domains.iter().flat_map(|shared| shared.stages.ram.pool().degraded());
        let mut troubles: Vec<String> = pools.collect();
        troubles.extend(stages.workers.degraded());
        if let Some(nvme) = &stages.nvme {
            metrics::nvme(&nvme.state());
            troubles.extend(nvme.degraded());
        }
        metrics::aliases(self.first.aliases.counts());
        troubles.extend(self.first.aliases.troubles(|_| true));
        troubles.extend(dns.degraded.map(|why| format!("dns: {why}")));
        for what in ["ram", "memlock", "numa", "nvme", "cache-dir", "dns", "aliases"] {
            let is_degraded = self.first.degraded.iter().chain(&troubles).any(|sentence| {
                sentence.split_once(':').is_some_and(|(subject, _)| subject == what)
            });
            set_of(metrics::DEGRADED, "what", what, f64::from(u8::from(is_degraded)));
        }
    }

    fn set_queues(&self) {
        let now = Instant::now();
        let of_domains: Vec<_> =
            self.domains.iter().map(|shared| shared.stages.admission.lanes(now)).collect();
        for (index, lane) in Lane::ALL.into_iter().enumerate() {
            let lanes = || of_domains.iter().filter_map(|lanes| lanes.get(index));
            let depth: usize = lanes().map(|lane| lane.depth).sum();
            let oldest = lanes().map(|lane| lane.oldest_wait).max().unwrap_or_default();
            let name = lane.as_str();
            set_of(metrics::QUEUE_DEPTH, "lane", name, as_f64(depth as u64));
            set_of(metrics::OLDEST_WAIT_SECONDS, "lane", name, oldest.as_secs_f64());
            // Of both lanes together.
            let limit: usize = lanes().map(|lane| lane.limit).sum();
            set(metrics::QUEUE_LIMIT, limit as u64);
        }
        set(metrics::WIDTH, self.sum(|shared| shared.stages.admission.width() as u64));
        set(metrics::ACTIVE_LOADS, self.sum(|shared| shared.stages.admission.active() as u64));
    }

    fn set_ram(&self) {
        let rams = || self.domains.iter().map(|shared| &shared.stages.ram);
        let sizes = rams().fold(RamSizes::default(), |sum, ram| sum.and(ram.sizes()));
        for (state, bytes) in states(&sizes) {
            set_of(metrics::PINNED_BYTES, "state", state, as_f64(bytes));
        }
        set(metrics::POPULATED_BYTES, sizes.populated);
        set(metrics::BUDGET_BYTES, sizes.budget);
        set(metrics::LOCKED_BYTES, sizes.locked);
        set(metrics::HUGE_BYTES, sizes.huge);
        set(metrics::RETIRING_BYTES, sizes.retiring);
        let mut nodes: BTreeMap<_, NodeSizes> = BTreeMap::new();
        for of_node in rams().flat_map(|ram| ram.on_nodes()) {
            let sum = nodes.remove(&of_node.node);
            nodes.insert(of_node.node, sum.map_or(of_node, |sum| sum.and(of_node)));
        }
        let nodes: Vec<NodeSizes> = nodes.into_values().collect();
        metrics::slots(&nodes, rams().map(|ram| ram.misplaced()).sum());
    }

    fn set_clients(&self) {
        let sum = |sum: Unmapping, shared: &Arc<Shared>| sum.and(shared.sessions.unmapping());
        let unmapping = self.domains.iter().fold(Unmapping::default(), sum);
        set(metrics::RETIRED_BYTES, unmapping.bytes);
        for (told, clients) in [("true", unmapping.told), ("false", unmapping.untold)] {
            set_of(metrics::RETIRE_WAITS, "told", told, as_f64(clients));
        }
        set(metrics::SESSIONS, self.sum(|shared| shared.sessions.totals().0 as u64));
        set(metrics::LEASES, self.sum(|shared| shared.sessions.totals().1 as u64));
        set(metrics::LEASED_BYTES, self.sum(|shared| shared.sessions.totals().2));
        let now = Instant::now();
        let ages = self.domains.iter().filter_map(|shared| shared.sessions.oldest_lease(now));
        metrics::set_seconds(metrics::OLDEST_LEASE_SECONDS, ages.max().unwrap_or_default());
    }
}

/// What is told of one domain.
fn set_domain(shared: &Shared) {
    let Shared { stages, sessions, .. } = shared;
    let sizes = stages.ram.sizes();
    let lanes = stages.admission.lanes(Instant::now());
    let waiting = lanes.map(|lane| (lane.lane.as_str(), lane.depth));
    metrics::domain(
        &stages.domain.spec().name,
        (sizes.budget, states(&sizes)),
        (stages.admission.active(), waiting),
        sessions.totals().0,
    );
}

fn states(sizes: &RamSizes) -> [(&'static str, u64); 4] {
    [
        ("free", sizes.free),
        ("filling", sizes.filling),
        ("cached", sizes.cached),
        ("leased", sizes.leased),
    ]
}

impl Vitals for DaemonVitals {
    fn metrics(&self) -> String {
        self.recorder.render(|| self.set_gauges())
    }

    fn ready(&self) -> bool {
        !self.first.draining.is_cancelled()
    }
}
