//! Every metric of the daemon, in one table: name, type, unit, labels, meaning.
//!
//! [`TABLE`] is what `describe` registers and what the document is compared with. Handles of hot
//! paths are made once and kept. Gauges are set from the state itself when somebody scrapes, so
//! that they cannot drift: see [`Metrics::render`]. Labels come from closed sets: never a key, a
//! URI, a uid or an address.

mod numa;
mod nvme;
mod origin;

use std::sync::OnceLock;
use std::time::Duration;

use forebay_proto::{Failure, Reason, StageSeconds};
use metrics::{
    Counter, Histogram, Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge,
    histogram,
};
use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};

use crate::attribution::{Attribution, Cause};
use crate::report::{Report, Tally};

pub(crate) use numa::{runtime_lag, slots, unplaced, workers};
pub(crate) use nvme::{DiskMeters, TierMeters, nvme};
pub(crate) use origin::{addresses, dns_lookups, endpoints};

/// What a metric counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Type {
    /// Only grows.
    Counter,
    /// Goes up and down.
    Gauge,
    /// A distribution.
    Histogram,
}

/// One row of the table.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Row {
    /// The name as scraped.
    pub(crate) name: &'static str,
    /// Its type.
    pub(crate) kind: Type,
    /// Its unit.
    pub(crate) unit: Unit,
    /// Its labels.
    pub(crate) labels: &'static [&'static str],
    /// What it means.
    pub(crate) meaning: &'static str,
}

macro_rules! table {
    ($($constant:ident $name:literal $kind:ident $unit:ident [$($label:literal)*] $meaning:literal;)*) => {
        $(#[doc = $meaning] pub(crate) const $constant: &str = $name;)*

        /// Every metric.
        pub(crate) const TABLE: &[Row] = &[$(Row {
            name: $name,
            kind: Type::$kind,
            unit: Unit::$unit,
            labels: &[$($label),*],
            meaning: $meaning,
        },)*];
    };
}

table! {
    REQUESTS "forebay_requests_total" Counter Count ["method" "code"] "RPCs ended, by gRPC code";
    REQUEST_SECONDS "forebay_request_duration_seconds" Histogram Seconds ["method"] "From the request to the end of its stream";
    UNATTRIBUTED_SECONDS "forebay_request_unattributed_seconds" Histogram Seconds [] "Wall time of a load that no stage accounts for";
    GPU_IDLE_SECONDS "forebay_gpu_idle_seconds" Histogram Seconds ["cause"] "Time per load in which the client's copy engine waited, by cause; of a client without one, all of its time";
    GPU_IDLE_GAP_SECONDS "forebay_gpu_idle_gap_seconds" Histogram Seconds ["cause"] "The longest such wait of a load for one cause";
    GPU_IDLE_CONFIDENCE "forebay_gpu_idle_confidence" Gauge Count [] "Of the last load: the share of its waiting for which all evidence could be read, 0 to 1";
    STAGE_QUEUE_SECONDS "forebay_stage_queue_seconds" Histogram Seconds ["stage"] "Time per load between being handed to a stage and being taken up, summed over its chunks";
    STAGE_SERVICE_SECONDS "forebay_stage_service_seconds" Histogram Seconds ["stage"] "Time per load being worked on in a stage, summed over its chunks";
    STAGE_BYTES "forebay_load_bytes_total" Counter Bytes ["tier"] "Bytes handed over or kept, by the tier they came from";
    ATTEMPTS "forebay_origin_attempts_total" Counter Count ["class" "outcome" "reason"] "Requests to origins that are over: first, retry or hedge; ok, error or cancelled";
    ATTEMPTS_PER_PART "forebay_origin_attempts_per_part" Histogram Count [] "Requests that one part took, without hedges";
    RETRY_DELAY_SECONDS "forebay_retry_delay_seconds" Histogram Seconds ["class"] "Time without a request before a retry: transient or throttle";
    RETRY_TOKENS "forebay_retry_budget_tokens" Gauge Count ["endpoint"] "Tokens left for retries and hedges; of several endpoints the least";
    RETRIES_DENIED "forebay_retry_budget_exhausted_total" Counter Count ["endpoint"] "Retries that were not made for want of tokens";
    HEDGE_WINS "forebay_hedge_wins_total" Counter Count [] "Second copies that were faster than the first";
    HEDGE_WASTED_BYTES "forebay_hedge_wasted_bytes_total" Counter Bytes [] "Body bytes that two copies brought";
    BREAKER_STATE "forebay_breaker_state" Gauge Count ["endpoint"] "0 closed, 1 half open, 2 open; of several endpoints the most";
    BREAKER_TURNS "forebay_breaker_transitions_total" Counter Count ["endpoint" "to"] "Changes of breakers to closed, half_open or open";
    LIMITER_LIMIT "forebay_limiter_limit" Gauge Count ["limiter"] "Requests that may be under way";
    LIMITER_INFLIGHT "forebay_limiter_inflight" Gauge Count ["limiter"] "Requests under way";
    LIMITER_WAITING "forebay_limiter_waiting" Gauge Count ["limiter"] "Requests that wait for their turn";
    LIMITER_OLDEST_SECONDS "forebay_limiter_oldest_wait_seconds" Gauge Seconds ["limiter"] "Age of the oldest request that waits for its turn";
    LIMITER_DROPS "forebay_limiter_drops_total" Counter Count ["limiter" "reason"] "Signs of overload (throttled, timeout) and requests not sent (breaker_open, queue_full, late)";
    POOL_SIZE "forebay_address_pool_size" Gauge Count [] "Addresses of origins that are known";
    POOL_EJECTED "forebay_address_ejected" Gauge Count [] "Those that are left out now";
    POOL_EJECTIONS "forebay_address_ejections_total" Counter Count ["reason"] "Times that an address was left out: failing or slow";
    ORIGIN_BYTES "forebay_origin_bytes_total" Counter Bytes [] "Body bytes received from origins by finished loads, failed attempts included";
    REJECTED "forebay_admission_rejected_total" Counter Count ["reason"] "Loads refused by admission";
    EVICTIONS "forebay_cache_evictions_total" Counter Count ["tier" "reason"] "Chunks given up: for room, for the filesystem's floor, because somebody asked, or with the segment that they lay in (resize)";
    CACHE_REQUESTS "forebay_cache_requests_total" Counter Count ["tier" "result"] "Chunks asked of a tier: hit, miss, corrupt, or bypass where its disk is left alone or fails";
    CACHE_BYTES "forebay_cache_bytes" Gauge Bytes ["tier" "state"] "Bytes of the NVMe tier: budget, stored, pinned, filling; free is what its filesystem has";
    CACHE_EXTENTS "forebay_cache_extents" Gauge Count ["tier"] "Chunks stored";
    FILLS "forebay_cache_fills_total" Counter Count ["tier"] "Chunks stored since the start";
    FILL_BYTES "forebay_cache_fill_bytes_total" Counter Bytes ["tier"] "Bytes of objects stored since the start";
    FILL_ABORTED "forebay_cache_fill_aborted_total" Counter Count ["tier" "reason"] "Chunks that were not stored";
    FILL_QUEUE "forebay_cache_fill_queue_depth" Gauge Count ["tier"] "Chunks that wait to be stored";
    QUARANTINED "forebay_cache_quarantined_total" Counter Count ["tier" "reason"] "Extents that were found to be bad";
    SCRUBBED_BYTES "forebay_cache_scrubbed_bytes_total" Counter Bytes ["tier"] "Bytes that the scrub has read";
    RECOVERY_SECONDS "forebay_cache_recovery_seconds" Gauge Seconds ["tier"] "From the start until every extent was known";
    RECOVERED "forebay_cache_recovered_entries" Gauge Count ["tier"] "Extents that were known then";
    DISK_STATE "forebay_cache_disk_state" Gauge Count ["tier"] "0 normal, 1 unstable, 2 down";
    DISK_TURNS "forebay_cache_disk_transitions_total" Counter Count ["tier" "to"] "Changes of that state";
    IO_SECONDS "forebay_nvme_io_seconds" Histogram Seconds ["op" "phase"] "Reads and writes of the NVMe tier: waiting for their turn, and with the device";
    IO_ERRORS "forebay_nvme_io_errors_total" Counter Count ["op" "reason"] "Reads and writes that failed";
    IO_QUEUE "forebay_nvme_io_queue_depth" Gauge Count ["op"] "Reads and writes that wait for their turn";
    IO_OLDEST_SECONDS "forebay_nvme_io_oldest_wait_seconds" Gauge Seconds ["op"] "Age of the oldest of them";
    IO_INFLIGHT "forebay_nvme_io_inflight" Gauge Count ["op"] "Reads and writes that the device has";
    IO_COUNTS "forebay_nvme_io_events_total" Counter Count ["event"] "Operations that were slow, hung, late or short, and others that the engine counts";
    IO_ENGINE "forebay_nvme_io_engine" Gauge Count ["engine"] "1 for the engine in use";
    DIGEST_MISMATCHES "forebay_digest_mismatches_total" Counter Count [] "Chunks whose bytes differ from their digest";
    DECODE_FAILURES "forebay_decode_failures_total" Counter Count [] "Frames that could not be decoded";
    DECOMPRESS_BYTES "forebay_decompress_bytes_total" Counter Bytes ["dir"] "Bytes that were decoded: in as stored, out as served";
    DECOMPRESS_CPU_SECONDS "forebay_decompress_cpu_seconds" Gauge Seconds [] "Time that decode workers had frames, their digests included";
    STAGING_BYTES "forebay_staging_bytes" Gauge Bytes ["state"] "Memory for parts that are to be decoded: budget, lent";
    NUMA_LOCAL_BYTES "forebay_numa_local_bytes_total" Counter Bytes ["stage"] "Bytes on the node that they were asked for near; stage handoff: of finished loads that named a GPU or a node";
    NUMA_REMOTE_BYTES "forebay_numa_remote_bytes_total" Counter Bytes ["stage"] "Bytes on another node than that";
    NUMA_SLOT_BYTES "forebay_numa_slot_bytes" Gauge Bytes ["node" "state"] "Slots of the RAM tier by the node that they lie on: free, filling, cached, leased";
    NUMA_STRAYED "forebay_numa_strayed_slots" Gauge Count ["node"] "Slots that were asked for on a node and lie on another";
    NUMA_MISPLACED "forebay_numa_misplaced_slots_total" Counter Count [] "Slots taken for a load from another node than it asked for";
    NUMA_UNPLACED "forebay_numa_unplaced_total" Counter Count ["reason"] "Loads that asked for a place which this machine cannot give: no_node (not known, or not there) or no_slots_there";
    RUNTIME_LAG_SECONDS "forebay_runtime_lag_seconds" Histogram Seconds ["runtime"] "How late the runtime wakes a task, looked at every 100 ms";
    WORKERS "forebay_workers" Gauge Count ["node" "pinned"] "Threads for work on slots, by the node that they are for: pinned to its CPUs (true) or not (false)";
    WORKER_JOBS "forebay_worker_jobs_total" Counter Count ["node"] "What these threads have done";
    WORKER_OFFNODE "forebay_worker_offnode_total" Counter Count ["node"] "What of that was for memory of another node than the one it ran on, by getcpu";
    QUEUE_DEPTH "forebay_admission_queue_depth" Gauge Count ["lane"] "Loads waiting for admission";
    QUEUE_LIMIT "forebay_admission_queue_limit" Gauge Count [] "Bound on loads waiting for admission";
    OLDEST_WAIT_SECONDS "forebay_admission_oldest_wait_seconds" Gauge Seconds ["lane"] "Age of the oldest load waiting for admission";
    ACTIVE_LOADS "forebay_loads_active" Gauge Count [] "Loads that run";
    FLIGHTS "forebay_flights" Gauge Count [] "Chunks being fetched";
    FREE_CONNECTIONS "forebay_origin_connections_free" Gauge Count [] "Requests that could be sent now, over the endpoints in use";
    PINNED_BYTES "forebay_pinned_bytes" Gauge Bytes ["state"] "Slots of the RAM tier: free, filling, cached, leased";
    POPULATED_BYTES "forebay_ram_populated_bytes" Gauge Bytes [] "Slots in segments so far";
    BUDGET_BYTES "forebay_ram_budget_bytes" Gauge Bytes [] "Size of the RAM tier as configured, or set since";
    RETIRING_BYTES "forebay_ram_retiring_bytes" Gauge Bytes [] "Slots of segments that are out of use and go when no lease of them is left";
    RETIRED_BYTES "forebay_ram_retired_bytes" Gauge Bytes [] "Retired segments that clients still map";
    RETIRE_WAITS "forebay_ram_retire_clients" Gauge Count ["told"] "Clients that still map retired segments: told and have not answered (true), or of a version that cannot be told (false)";
    SEGMENT_TURNS "forebay_ram_segments_total" Counter Count ["turn"] "Segments made, put back into use (revived), and let go (retired) since the start";
    LOCKED_BYTES "forebay_ram_locked_bytes" Gauge Bytes [] "Segment bytes locked in memory";
    LEASES "forebay_leases" Gauge Count [] "Slots lent to clients";
    LEASED_BYTES "forebay_leased_bytes" Gauge Bytes [] "Bytes lent to clients";
    SESSIONS "forebay_sessions" Gauge Count [] "Client processes";
    DNS_LOOKUPS "forebay_dns_lookups_total" Counter Count ["result"] "Look-ups of origins' names: ok, nxdomain, servfail, timeout; stale counts answers served past their time";
    DNS_AGE_SECONDS "forebay_dns_age_seconds" Gauge Seconds [] "Age of the oldest answer in use";
    BAD_TRACE_PARENTS "forebay_trace_parents_rejected_total" Counter Count [] "Calls whose traceparent is not valid: they begin a trace of their own";
    TRACE_SPANS "forebay_trace_spans_total" Counter Count ["result"] "Spans of finished loads: exported, rejected by the collector, or dropped because it is slow (queue_full) or fails (failed)";
    DEGRADED "forebay_degraded" Gauge Count ["what"] "1 where something asked for could not be had";
}

/// Bounds of the attempts that a part may take: at most 5.
const ATTEMPTS_BOUNDS: [f64; 5] = [1.0, 2.0, 3.0, 4.0, 5.0];

/// Bounds of all `_seconds` histograms: small enough to see that nothing waited.
const SECONDS_BOUNDS: [f64; 20] = [
    1e-5, 5e-5, 1e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0,
    10.0, 30.0, 60.0, 120.0,
];

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
        let handle = PrometheusBuilder::new()
            .set_buckets_for_metric(Matcher::Suffix("_seconds".into()), &SECONDS_BOUNDS)?
            .set_buckets_for_metric(Matcher::Full(ATTEMPTS_PER_PART.into()), &ATTEMPTS_BOUNDS)?
            .install_recorder()?;
        for row in TABLE {
            let text = match row.labels {
                [] => row.meaning.to_owned(),
                labels => format!("{} (by {})", row.meaning, labels.join(", ")),
            };
            match row.kind {
                Type::Counter => describe_counter!(row.name, row.unit, text),
                Type::Gauge => describe_gauge!(row.name, row.unit, text),
                Type::Histogram => describe_histogram!(row.name, row.unit, text),
            }
        }
        Ok(Self { handle: HANDLE.get_or_init(|| handle).clone() })
    }

    /// The exposition, after `set_gauges` has written the present state.
    pub(crate) fn render(&self, set_gauges: impl FnOnce()) -> String {
        set_gauges();
        self.handle.run_upkeep();
        self.handle.render()
    }
}

/// One RPC has ended.
pub(crate) fn request_ended(method: &'static str, code: &'static str, seconds: f64) {
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
    stages(&failure.stages);
}

/// A call has a `traceparent` that is not valid.
pub(crate) fn bad_trace_parent() {
    counter!(BAD_TRACE_PARENTS).increment(1);
}

/// What became of spans that were to be exported.
#[cfg_attr(not(feature = "otlp"), expect(dead_code, reason = "only exports have spans"))]
pub(crate) fn spans(result: &'static str, count: u64) {
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

/// What a load's copy engine waited for. Every cause is exposed from the first load on, so that none
/// is missing where nothing went wrong yet.
fn idle(idle: &Attribution) {
    for cause in Cause::ALL {
        let total = idle.causes.iter().find(|total| total.cause == cause);
        let (time, longest) = total.map(|total| (total.time, total.longest)).unwrap_or_default();
        histogram!(GPU_IDLE_SECONDS, "cause" => cause.as_str()).record(time.as_secs_f64());
        if !longest.is_zero() {
            let longest = longest.as_secs_f64();
            histogram!(GPU_IDLE_GAP_SECONDS, "cause" => cause.as_str()).record(longest);
        }
    }
    gauge!(GPU_IDLE_CONFIDENCE).set(idle.confidence());
}

/// A load has ended.
pub(crate) fn load_ended(report: &Report) {
    let Tally { tiers, cost, near, .. } = report.tally;
    counter!(STAGE_BYTES, "tier" => "ram").increment(tiers.ram);
    counter!(STAGE_BYTES, "tier" => "nvme").increment(tiers.nvme);
    counter!(STAGE_BYTES, "tier" => "origin").increment(tiers.origin);
    counter!(ORIGIN_BYTES).increment(cost.bytes);
    numa::handed_over(near);
    histogram!(UNATTRIBUTED_SECONDS).record(report.unattributed.as_secs_f64());
    idle(&report.idle);
    stages(&report.stages);
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
    counter!(SEGMENT_TURNS, "turn" => turn).increment(1);
}

fn stages(stages: &[StageSeconds]) {
    for stage in stages {
        let name = stage.stage.clone();
        histogram!(STAGE_QUEUE_SECONDS, "stage" => name.clone()).record(stage.queue.as_secs_f64());
        histogram!(STAGE_SERVICE_SECONDS, "stage" => name).record(stage.service.as_secs_f64());
    }
}

/// A gauge without labels.
pub(crate) fn set(name: &'static str, value: u64) {
    gauge!(name).set(as_f64(value));
}

/// A gauge of a span of time.
pub(crate) fn set_seconds(name: &'static str, value: Duration) {
    gauge!(name).set(value.as_secs_f64());
}

/// A gauge with one label.
pub(crate) fn set_of(name: &'static str, label: &'static str, of: &'static str, value: f64) {
    gauge!(name, label => of).set(value);
}

/// Counts of this size are exact in a double up to 2^53; beyond that nobody reads the last digit.
#[expect(clippy::cast_precision_loss, reason = "see above")]
pub(crate) fn as_f64(value: u64) -> f64 {
    value as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_the_conventions_and_are_unique() {
        let mut names: Vec<_> = TABLE.iter().map(|row| row.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), TABLE.len());
        for row in TABLE {
            assert!(row.name.starts_with("forebay_"), "{}", row.name);
            assert_eq!(row.name.ends_with("_total"), row.kind == Type::Counter, "{}", row.name);
            let body = row.name.trim_end_matches("_total");
            assert_eq!(body.ends_with("_seconds"), row.unit == Unit::Seconds, "{}", row.name);
            assert_eq!(body.ends_with("_bytes"), row.unit == Unit::Bytes, "{}", row.name);
            assert!(
                row.labels.iter().all(|label| !["key", "uri", "uid", "pid", "ip"].contains(label))
            );
            assert!(!row.meaning.is_empty());
        }
    }
}
