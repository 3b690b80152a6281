//! What `/metrics` and `/readyz` say: gauges are read from the state when somebody asks.

use std::sync::Arc;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::http::Vitals;
use crate::metrics::{self, Metrics, as_f64, set, set_of};
use crate::rpc::Shared;

/// The daemon's vital signs.
pub(super) struct DaemonVitals {
    shared: Arc<Shared>,
    recorder: Metrics,
}

impl DaemonVitals {
    pub(super) fn new(shared: Arc<Shared>, recorder: Metrics) -> Self {
        Self { shared, recorder }
    }

    /// Set when the endpoint has to end.
    pub(super) fn closing(&self) -> CancellationToken {
        self.shared.stop.clone()
    }

    fn set_gauges(&self) {
        let stages = &self.shared.stages;
        for lane in stages.admission.lanes(Instant::now()) {
            let name = lane.lane.as_str();
            set_of(metrics::QUEUE_DEPTH, "lane", name, as_f64(lane.depth as u64));
            let oldest = lane.oldest_wait.as_secs_f64();
            set_of(metrics::OLDEST_WAIT_SECONDS, "lane", name, oldest);
            set(metrics::QUEUE_LIMIT, lane.limit as u64);
        }
        set(metrics::ACTIVE_LOADS, stages.admission.active() as u64);
        set(metrics::FLIGHTS, stages.flights.len() as u64);
        metrics::endpoints(&self.shared.origins.endpoints());
        metrics::addresses(&self.shared.origins.addresses());
        let sizes = stages.ram.sizes();
        for (state, bytes) in [
            ("free", sizes.free),
            ("filling", sizes.filling),
            ("cached", sizes.cached),
            ("leased", sizes.leased),
        ] {
            set_of(metrics::PINNED_BYTES, "state", state, as_f64(bytes));
        }
        set(metrics::POPULATED_BYTES, sizes.populated);
        set(metrics::BUDGET_BYTES, sizes.budget);
        set(metrics::LOCKED_BYTES, sizes.locked);
        set(metrics::RETIRING_BYTES, sizes.retiring);
        let unmapping = self.shared.sessions.unmapping();
        set(metrics::RETIRED_BYTES, unmapping.bytes);
        for (told, clients) in [("true", unmapping.told), ("false", unmapping.untold)] {
            set_of(metrics::RETIRE_WAITS, "told", told, as_f64(clients));
        }
        let (lent, budget) = stages.fetcher.staging();
        for (state, bytes) in [("lent", lent), ("budget", budget)] {
            set_of(metrics::STAGING_BYTES, "state", state, as_f64(bytes));
        }
        let (sessions, leases, leased_bytes) = self.shared.sessions.totals();
        set(metrics::SESSIONS, sessions as u64);
        set(metrics::LEASES, leases as u64);
        set(metrics::LEASED_BYTES, leased_bytes);
        let dns = self.shared.resolver.snapshot();
        metrics::dns_lookups(&dns.counters);
        let oldest = dns.names.iter().filter_map(|name| name.age).max().unwrap_or_default();
        metrics::set_seconds(metrics::DNS_AGE_SECONDS, oldest);
        metrics::slots(&stages.ram.on_nodes(), stages.ram.misplaced());
        metrics::workers(&stages.workers.states());
        let mut troubles = stages.ram.pool().degraded();
        troubles.extend(stages.workers.degraded());
        if let Some(nvme) = &stages.nvme {
            metrics::nvme(&nvme.state());
            troubles.extend(nvme.degraded());
        }
        troubles.extend(dns.degraded.map(|why| format!("dns: {why}")));
        for what in ["ram", "memlock", "numa", "nvme", "cache-dir", "dns"] {
            let is_degraded = self.shared.degraded.iter().chain(&troubles).any(|sentence| {
                sentence.split_once(':').is_some_and(|(subject, _)| subject == what)
            });
            set_of(metrics::DEGRADED, "what", what, f64::from(u8::from(is_degraded)));
        }
    }
}

impl Vitals for DaemonVitals {
    fn metrics(&self) -> String {
        self.recorder.render(|| self.set_gauges())
    }

    fn ready(&self) -> bool {
        !self.shared.draining.is_cancelled()
    }
}
