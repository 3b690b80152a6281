//! What is seen of a daemon while loads run: how old its queues are, and what memory it has.
//!
//! Ages come from the daemon's own status, over a connection of its own: the admission queues, the
//! lines before origins, and the oldest load that it has, waiting or running. Memory comes from the
//! kernel, and from the status what the pool is used for.

use std::time::Duration;

use forebay_client::Client;
use forebay_client::model::DaemonStatus;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::sample::micro;
use crate::Outcome;
use crate::process::status_bytes;

/// How often it is looked at.
const EVERY: Duration = Duration::from_millis(100);

/// One look.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Look {
    /// Seconds since the epoch of the phase.
    pub(super) at: f64,
    /// The oldest waiter of the admission queues and of the lines before origins, in seconds.
    pub(super) queue_age: f64,
    /// Which queue that is in.
    pub(super) queue: String,
    /// The oldest load that the daemon has, in seconds.
    pub(super) load_age: f64,
    /// Loads that it has, and those of them that wait for admission.
    pub(super) loads: usize,
    pub(super) queued: u64,
    /// Resident memory of the daemon, shared and not, and of the generator.
    pub(super) daemon_bytes: u64,
    pub(super) daemon_private_bytes: u64,
    pub(super) generator_bytes: u64,
    /// What the pool is used for.
    pub(super) cached_bytes: u64,
    pub(super) leased_bytes: u64,
    pub(super) filling_bytes: u64,
}

impl Look {
    /// What a status says.
    fn of(status: &DaemonStatus) -> Self {
        let queues = status.queues.iter().map(|queue| (queue.name.as_str(), queue.oldest_wait));
        let lines = status.endpoints.iter().map(|line| ("origin", line.oldest_wait));
        let oldest = queues.chain(lines).max_by_key(|(_, age)| *age);
        let oldest = oldest.filter(|(_, age)| !age.is_zero());
        let ages = status.loads.iter().map(|load| load.age.as_secs_f64());
        Self {
            queue_age: oldest.map_or(0.0, |(_, age)| age.as_secs_f64()),
            queue: oldest.map(|(name, _)| name.to_owned()).unwrap_or_default(),
            load_age: ages.fold(0.0, f64::max),
            loads: status.loads.len(),
            queued: status.queues.iter().map(|queue| queue.depth).sum(),
            cached_bytes: status.ram.cached_bytes,
            leased_bytes: status.ram.leased_bytes,
            filling_bytes: status.ram.filling_bytes,
            ..Self::default()
        }
    }

    /// The oldest work in the daemon, wherever it waits.
    pub(super) fn age(&self) -> f64 {
        self.queue_age.max(self.load_age)
    }
}

/// Looks again and again.
pub(super) struct Watch<'a> {
    client: &'a Client,
    daemon: u32,
    epoch: Instant,
    looks: u32,
}

impl<'a> Watch<'a> {
    pub(super) fn new(client: &'a Client, daemon: u32, epoch: Instant) -> Self {
        Self { client, daemon, epoch, looks: 0 }
    }

    /// The next look, when it is time for it.
    pub(super) async fn next(&mut self) -> Outcome<Look> {
        tokio::time::sleep_until(self.epoch + EVERY * self.looks).await;
        // A look that took long makes those leave out that would have been meanwhile.
        while self.epoch + EVERY * self.looks <= Instant::now() {
            self.looks += 1;
        }
        let at = self.epoch.elapsed().as_secs_f64();
        let status = self.client.status().await?;
        Ok(Look {
            at,
            daemon_bytes: status_bytes(self.daemon, "VmRSS:")?,
            daemon_private_bytes: status_bytes(self.daemon, "RssAnon:")?,
            generator_bytes: status_bytes(std::process::id(), "RssAnon:")?,
            ..Look::of(&status)
        })
    }
}

const COLUMNS: [&str; 12] = [
    "at",
    "queue_age",
    "queue",
    "load_age",
    "loads",
    "queued",
    "daemon_bytes",
    "daemon_private_bytes",
    "generator_bytes",
    "cached_bytes",
    "leased_bytes",
    "filling_bytes",
];

/// All looks of a phase.
pub(super) fn table(looks: &[Look]) -> Value {
    let row = |look: &Look| {
        json!([
            micro(look.at),
            micro(look.queue_age),
            look.queue,
            micro(look.load_age),
            look.loads,
            look.queued,
            look.daemon_bytes,
            look.daemon_private_bytes,
            look.generator_bytes,
            look.cached_bytes,
            look.leased_bytes,
            look.filling_bytes,
        ])
    };
    json!({ "columns": COLUMNS, "rows": looks.iter().map(row).collect::<Vec<_>>() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_work_is_that_of_any_queue_or_load() {
        let look = Look { queue_age: 0.2, load_age: 0.5, ..Look::default() };
        assert!((look.age() - 0.5).abs() < 1e-12);
        let table = table(&[look]);
        assert_eq!(table["rows"][0].as_array().map(Vec::len), Some(COLUMNS.len()));
        assert_eq!(table["rows"][0][1], 0.2);
    }
}
