//! Connections between two requests: kept per host for a while, the last one used first.
//!
//! The pool of hyper-util serves requests whose bodies hyper reads; this one those whose bodies are
//! read by us. What has been idle too long is dropped when anyone comes by, at the latest by the
//! next look at the statistics.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use http::Uri;
use tokio::time::Instant;

use super::wire::Wire;

/// Scheme and authority of a URI: who a connection leads to.
type Host = String;

/// The connections that wait.
#[derive(Debug, Clone)]
pub(crate) struct IdlePool {
    shared: Arc<Mutex<Waiting>>,
    per_host_max: usize,
    idle_max: Duration,
}

#[derive(Debug, Default)]
struct Waiting(HashMap<Host, Vec<(Instant, Wire)>>);

impl IdlePool {
    /// Keeps at most so many for each host, and each at most so long.
    pub(crate) fn new(per_host_max: usize, idle_max: Duration) -> Self {
        Self { shared: Arc::default(), per_host_max, idle_max }
    }

    /// A connection to the host of `uri` that nobody uses, if its address is well.
    pub(crate) fn take(&self, uri: &Uri, now: Instant) -> Option<Wire> {
        let mut waiting = self.lock();
        waiting.prune(now, self.idle_max);
        let wires = waiting.0.get_mut(&host(uri))?;
        let usable = |wire: &Wire| wire.is_clean() && !wire.stream.mark().is_shunned(now);
        std::iter::from_fn(|| wires.pop()).map(|(_, wire)| wire).find(usable)
    }

    /// Keeps a connection for the next request.
    pub(crate) fn put(&self, uri: &Uri, wire: Wire, now: Instant) {
        let mut waiting = self.lock();
        waiting.prune(now, self.idle_max);
        let wires = waiting.0.entry(host(uri)).or_default();
        if wires.len() < self.per_host_max {
            wires.push((now, wire));
        }
    }

    /// Drops what has been idle too long.
    pub(crate) fn prune(&self, now: Instant) {
        self.lock().prune(now, self.idle_max);
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Waiting {
    fn prune(&mut self, now: Instant, idle_max: Duration) {
        self.0.retain(|_, wires| {
            wires.retain(|(since, _)| now < *since + idle_max);
            !wires.is_empty()
        });
    }
}

fn host(uri: &Uri) -> Host {
    let authority = uri.authority().map_or("", |authority| authority.as_str());
    format!("{}://{authority}", uri.scheme_str().unwrap_or_default())
}
