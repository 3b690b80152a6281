//! Every metric of the daemon, in one table: name, type, unit, labels, meaning.
//!
//! [`TABLE`] is what `describe` registers and what the document, `server/METRICS.md`, is made of.
//! Handles of hot paths are made once and kept. Gauges are set from the state itself when somebody
//! scrapes, so that they cannot drift: see [`Metrics::render`]. Labels come from closed sets
//! ([`labels`]): never a key, a URI, a uid or an address.

#[cfg(test)]
mod acts;
mod decisions;
#[cfg(test)]
mod document;
#[cfg(test)]
mod exposition;
pub(crate) mod labels;
mod loads;
mod numa;
mod nvme;
mod origin;
mod table;
#[cfg(test)]
mod watched;

use std::sync::OnceLock;
use std::time::Duration;

use forebay_proto::{Failure, Reason};
use metrics::{
    Counter, Histogram, counter, describe_counter, describe_gauge, describe_histogram, gauge,
    histogram,
};
use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};
use tokio::time::MissedTickBehavior;

pub(crate) use decisions::{Fallback, chose, fell_back};
pub(crate) use loads::{LoadMeter, expect, waited};
pub(crate) use numa::{looked, runtime_lag, slots, unplaced, workers};
pub(crate) use nvme::{DiskMeters, TierMeters, nvme};
pub(crate) use origin::{addresses, dns_lookups, endpoints};
pub(crate) use table::*;

/// Bounds of the attempts that a part may take: at most 5.
const ATTEMPTS_BOUNDS: [f64; 5] = [1.0, 2.0, 3.0, 4.0, 5.0];

/// Bounds of other histograms, which are of seconds: small enough to see that nothing waited.
const SECONDS_BOUNDS: [f64; 20] = [
    1e-5, 5e-5, 1e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0,
    10.0, 30.0, 60.0, 120.0,
];

/// Bounds of what is kept for every combination of stage, tier, workload, device and outcome: as wide,
/// and fewer.
const STAGE_BOUNDS: [f64; 10] = [1e-5, 1e-3, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 30.0, 120.0];

/// How often observations are sorted into buckets: a busy daemon makes some ten thousand in this
/// time, of eight bytes each.
const UPKEEP: Duration = Duration::from_secs(5);

/// The recorder of this process.

#[derive(Debug, Clone)]
pub(crate) struct Metrics {
    handle: PrometheusHandle,
}

impl Metrics {
    /// Installs the recorder, once per process; later calls share it.
    pub(crate) fn install() -> Result<Self, BuildError> {
        static HANDLE: OnceLock<PrometheusHandle> = OnceLock::new();
        if let Some(handle) = HANDLE.get() {
            return Ok(Self { handle: handle.clone() });
        }
        let handle = builder()?.install_recorder()?;
        describe();
        begin();
        Ok(Self { handle: HANDLE.get_or_init(|| handle).clone() })
    }

    /// Sorts what was observed into the buckets of histograms, for as long as it is polled. Until
    /// then every observation is kept as it came: without this, whoever is never scraped would keep
    /// them all.
    pub(crate) async fn keep_up(self) {
        let mut turns = tokio::time::interval(UPKEEP);
        turns.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            turns.tick().await;
            self.handle.run_upkeep();
        }
    }

    /// The exposition, after `set_gauges` has written the present state.
    pub(crate) fn render(&self, set_gauges: impl FnOnce()) -> String {
        set_gauges();
        self.handle.run_upkeep();
        self.handle.render()
    }
}

fn builder() -> Result<PrometheusBuilder, BuildError> {
    TABLE.iter().filter(|row| row.kind == Type::Histogram).try_fold(
        PrometheusBuilder::new(),
        |builder, row| {
            builder.set_buckets_for_metric(Matcher::Full(row.name.into()), bounds(row.name))
        },
    )
}

/// The bounds of a histogram's buckets.
fn bounds(name: &str) -> &'static [f64] {
    match name {
        ATTEMPTS_PER_PART => &ATTEMPTS_BOUNDS,
        STAGE_QUEUE_SECONDS | STAGE_SERVICE_SECONDS => &STAGE_BOUNDS,
        _ => &SECONDS_BOUNDS,
    }
}

fn describe() {
    for row in TABLE {
        let keys: Vec<&str> = row.labels.iter().map(|label| label.key).collect();
        let text = match keys.as_slice() {
            [] => row.meaning.to_owned(),
            keys => format!("{} (by {})", row.meaning, keys.join(", ")),
        };
        match row.kind {
            Type::Counter => describe_counter!(row.name, row.unit, text),
            Type::Gauge => describe_gauge!(row.name, row.unit, text),
            Type::Histogram => describe_histogram!(row.name, row.unit, text),
        }
    }
}

/// Has counters begin at zero: one that begins with its first event hides it from rates. Those with
/// more than one label, or with one from elsewhere, begin where they are used.
fn begin() {
    for row in TABLE.iter().filter(|row| row.kind == Type::Counter) {
        match row.labels {
            [] => counter!(row.name).increment(0),
            [labels::Label { key, values: labels::Values::Of(values) }] => {
                values.iter().for_each(|value| counter!(row.name, *key => *value).increment(0));
            }
            _ => {}
        }
    }
}

/// One RPC has ended.
pub(crate) fn request_ended(method: &'static str, code: &'static str, seconds: f64) {
    debug_assert!(labels::METHOD.allows(method) && labels::CODE.allows(code), "{method} {code}");
    counter!(REQUESTS, "method" => method, "code" => code).increment(1);
    histogram!(REQUEST_SECONDS, "method" => method).record(seconds);
}

/// A call has failed.
pub(crate) fn failed(failure: &Failure) {
    match failure.reason {
        Reason::QueueFull
        | Reason::RamExhausted
        | Reason::Draining
        | Reason::DeadlineInfeasible => {
            counter!(REJECTED, "reason" => failure.reason.as_str()).increment(1);
        }
        _ => {}
    }
}

/// A call was refused since too many wait.
pub(crate) fn refused(seconds: f64) {
    histogram!(REFUSAL_SECONDS).record(seconds);
}

/// A call has a `traceparent` that is not valid.
pub(crate) fn bad_trace_parent() {
    counter!(BAD_TRACE_PARENTS).increment(1);
}

/// A name was switched to another revision.
pub(crate) fn alias_switched(by: &'static str) {
    debug_assert!(labels::SWITCH.allows(by), "{by}");
    counter!(ALIAS_SWITCHES, "by" => by).increment(1);
}

/// So many names there are, and so many rules watch.
pub(crate) fn aliases((all, armed): (usize, usize)) {
    set_of(ALIASES, "rule", "armed", as_f64(armed as u64));
    set_of(ALIASES, "rule", "none", as_f64(all.saturating_sub(armed) as u64));
}

/// What became of spans that were to be exported.
#[cfg_attr(not(feature = "otlp"), expect(dead_code, reason = "only exports have spans"))]
pub(crate) fn spans(result: &'static str, count: u64) {
    debug_assert!(labels::SPANS_RESULT.allows(result), "{result}");
    counter!(TRACE_SPANS, "result" => result).increment(count);
}

/// A chunk's bytes differ from their digest.
pub(crate) fn digest_mismatch() {
    counter!(DIGEST_MISMATCHES).increment(1);
}

/// A worker has decoded frames of a chunk.
pub(crate) fn decoded(stored_bytes: u64, plain_bytes: u64, time: Duration) {
    counter!(DECOMPRESS_BYTES, "dir" => "in").increment(stored_bytes);
    counter!(DECOMPRESS_BYTES, "dir" => "out").increment(plain_bytes);
    gauge!(DECOMPRESS_CPU_SECONDS).increment(time.as_secs_f64());
}

/// A frame could not be decoded.
pub(crate) fn decode_failure() {
    counter!(DECODE_FAILURES).increment(1);
}

/// What is counted of each part.
#[derive(Clone)]
pub(crate) struct PartMeters {
    attempts: Histogram,
    after_throttle: Histogram,
    after_failure: Histogram,
}

impl PartMeters {
    /// The handles.
    pub(crate) fn new() -> Self {
        Self {
            attempts: histogram!(ATTEMPTS_PER_PART),
            after_throttle: histogram!(RETRY_DELAY_SECONDS, "class" => "throttle"),
            after_failure: histogram!(RETRY_DELAY_SECONDS, "class" => "transient"),
        }
    }

    /// A part was read, or given up, after so many attempts. A delay comes with whether a throttle
    /// was the reason.
    pub(crate) fn ended(&self, attempts: usize, delays: impl Iterator<Item = (bool, Duration)>) {
        if attempts > 0 {
            self.attempts.record(as_f64(attempts as u64));
        }
        for (throttled, delay) in delays {
            let class = if throttled { &self.after_throttle } else { &self.after_failure };
            class.record(delay.as_secs_f64());
        }
    }
}

impl std::fmt::Debug for PartMeters {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PartMeters").finish_non_exhaustive()
    }
}

/// The counters of the RAM tier: chunks given up, hits, misses.
pub(crate) fn ram() -> [Counter; 3] {
    let requests = |result| counter!(CACHE_REQUESTS, "tier" => "ram", "result" => result);
    [counter!(EVICTIONS, "tier" => "ram", "reason" => "room"), requests("hit"), requests("miss")]
}

/// Chunks were given up with the segment that they lay in.
pub(crate) fn retired_chunks(chunks: u64) {
    counter!(EVICTIONS, "tier" => "ram", "reason" => "resize").increment(chunks);
}

/// A segment was made, revived or retired.
pub(crate) fn segment(turn: &'static str) {
    debug_assert!(labels::TURN.allows(turn), "{turn}");
    counter!(SEGMENT_TURNS, "turn" => turn).increment(1);
}

/// Somebody called who may not, or not as often.
pub(crate) fn caller_refused(reason: &'static str) {
    debug_assert!(labels::CALLER.allows(reason), "{reason}");
    counter!(CALLERS_REFUSED, "reason" => reason).increment(1);
}

/// How a domain's part is used: its slots by state, its loads, who waits, and its clients.
pub(crate) fn domain(
    name: &str,
    (budget_bytes, slots): (u64, [(&'static str, u64); 4]),
    (active, waiting): (usize, [(&'static str, usize); 2]),
    sessions: usize,
) {
    debug_assert!(labels::DOMAIN.allows(name), "{name}");
    let count = |count: usize| as_f64(count as u64);
    gauge!(DOMAIN_BUDGET_BYTES, "domain" => name.to_owned()).set(as_f64(budget_bytes));
    for (state, bytes) in slots {
        let of_state = gauge!(DOMAIN_PINNED_BYTES, "domain" => name.to_owned(), "state" => state);
        of_state.set(as_f64(bytes));
    }
    gauge!(DOMAIN_LOADS, "domain" => name.to_owned()).set(count(active));
    for (lane, depth) in waiting {
        let of_lane = gauge!(DOMAIN_QUEUE_DEPTH, "domain" => name.to_owned(), "lane" => lane);
        of_lane.set(count(depth));
    }
    gauge!(DOMAIN_SESSIONS, "domain" => name.to_owned()).set(count(sessions));
}

/// A gauge without labels.
pub(crate) fn set(name: &'static str, value: u64) {
    gauge!(name).set(as_f64(value));
}

/// A gauge of a span of time.
pub(crate) fn set_seconds(name: &'static str, value: Duration) {
    gauge!(name).set(value.as_secs_f64());
}

/// Whether a metric may have a value of a label.
fn is_known(name: &str, key: &str, value: &str) -> bool {
    let row = TABLE.iter().find(|row| row.name == name);
    let label = row.and_then(|row| row.labels.iter().find(|label| label.key == key));
    label.is_some_and(|label| label.allows(value))
}

/// A gauge with one label.
pub(crate) fn set_of(name: &'static str, label: &'static str, of: &'static str, value: f64) {
    debug_assert!(is_known(name, label, of), "{name} has no {label} {of}");
    gauge!(name, label => of).set(value);
}

/// Counts of this size are exact in a double up to 2^53; beyond that nobody reads the last digit.
#[expect(clippy::cast_precision_loss, reason = "see above")]
pub(crate) fn as_f64(value: u64) -> f64 {
    value as f64
}
