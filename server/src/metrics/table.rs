//! The rows: name, type, unit, labels, meaning.
//!
//! [`TABLE`] is what is registered with the recorder and what the document is made of. Every label
//! has its set of values in [`labels`](super::labels).

use metrics::Unit;

use super::labels::{
    ALIAS_RULE, ATTEMPT_OUTCOME, ATTEMPT_REASON, BAD, BREAKER_TO, CACHE, CACHE_STATE, CALLER,
    CAUSE, CHOICE, CLASS, CODE, DEGRADED_WHAT, DEVICE, DIRECTION, DISK_TO, DNS_RESULT, DOMAIN,
    DROP, EJECTION, ENDPOINT, ENGINE, EVICTION, FAILURE, FALLBACK, FALLBACK_REASON, HANDOFF,
    HEDGE_REASON, IO_EVENT, IO_REASON, LANE, LIMITER, LOAD_OUTCOME, LOAD_TIER, LOOK, LOOKUP, Label,
    MADE, METHOD, NODE, NOT_FILLED, NVME, OP, PHASE, PINNED, REJECTION, RETRY_CLASS, RETRY_REASON,
    RUNTIME, SLOT_STATE, SOURCE, SPANS_RESULT, STAGE, STAGING_STATE, STEP, STEP_REASON, SWITCH,
    TOLD, TURN, UNPLACED, WORKLOAD,
};

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
    pub(crate) labels: &'static [Label],
    /// What it means.
    pub(crate) meaning: &'static str,
}

macro_rules! table {
    ($($constant:ident $name:literal $kind:ident $unit:ident [$($label:ident)*] $meaning:literal;)*) => {
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
    REQUESTS "forebay_requests_total" Counter Count [METHOD CODE] "RPCs ended, by gRPC code";
    REQUEST_SECONDS "forebay_request_duration_seconds" Histogram Seconds [METHOD] "From the request to the end of its stream";
    UNATTRIBUTED_SECONDS "forebay_request_unattributed_seconds" Histogram Seconds [] "Wall time of a load that no stage accounts for";
    LOADS "forebay_loads_total" Counter Count [WORKLOAD LOAD_OUTCOME] "Loads and prefetches that ended; deadline: it passed, or was refused because it could not be met; cancelled: the client left, or opened the load again";
    LOADS_IN_DEADLINE "forebay_loads_in_deadline_total" Counter Count [WORKLOAD] "Those that succeeded, which is within their deadline where they had one: over all loads this is the goodput";
    GPU_IDLE_SECONDS "forebay_gpu_idle_seconds" Histogram Seconds [CAUSE] "Time per load in which the client's copy engine waited, by cause; of a client without one, all of its time";
    GPU_IDLE_GAP_SECONDS "forebay_gpu_idle_gap_seconds" Histogram Seconds [CAUSE] "The longest such wait of a load for one cause";
    GPU_IDLE_CONFIDENCE "forebay_gpu_idle_confidence" Gauge Count [] "Of the last load: the share of its waiting for which all evidence could be read, 0 to 1";
    STAGE_QUEUE_SECONDS "forebay_stage_queue_seconds" Histogram Seconds [STAGE LOAD_TIER WORKLOAD DEVICE LOAD_OUTCOME] "Time per load between being handed to a stage and being taken up, summed over its chunks; tier: where the bytes of the load came from";
    STAGE_SERVICE_SECONDS "forebay_stage_service_seconds" Histogram Seconds [STAGE LOAD_TIER WORKLOAD DEVICE LOAD_OUTCOME] "Time per load being worked on in a stage, summed over its chunks; tier: where the bytes of the load came from";
    STAGE_BYTES "forebay_load_bytes_total" Counter Bytes [SOURCE] "Bytes handed over or kept, by the tier they came from";
    ATTEMPTS "forebay_origin_attempts_total" Counter Count [CLASS ATTEMPT_OUTCOME ATTEMPT_REASON] "Requests to origins that are over: first, retry or hedge; ok, error or cancelled";
    ATTEMPTS_PER_PART "forebay_origin_attempts_per_part" Histogram Count [] "Requests that one part took, without hedges";
    RETRY_DELAY_SECONDS "forebay_retry_delay_seconds" Histogram Seconds [RETRY_CLASS] "Time without a request before a retry: transient or throttle";
    RETRY_TOKENS "forebay_retry_budget_tokens" Gauge Count [ENDPOINT] "Tokens left for retries and hedges; of several endpoints the least";
    RETRIES_DENIED "forebay_retry_budget_exhausted_total" Counter Count [ENDPOINT] "Retries that were not made for want of tokens";
    RETRY_DECISIONS "forebay_retry_decisions_total" Counter Count [MADE RETRY_REASON] "Whether a request that failed, and could do better a moment later, was made again: made for what failed, not made for want of attempts, time, tokens or a closed breaker";
    HEDGE_DECISIONS "forebay_hedge_decisions_total" Counter Count [MADE HEDGE_REASON] "Whether a request that took long got a second copy, and why not: it was nearly done, the endpoint is not well, one in twenty requests had one, or tokens are used up";
    HEDGE_WINS "forebay_hedge_wins_total" Counter Count [] "Second copies that were faster than the first";
    HEDGE_WASTED_BYTES "forebay_hedge_wasted_bytes_total" Counter Bytes [] "Body bytes that two copies brought";
    BREAKER_STATE "forebay_breaker_state" Gauge Count [ENDPOINT] "0 closed, 1 half open, 2 open; of several endpoints the most";
    BREAKER_TURNS "forebay_breaker_transitions_total" Counter Count [ENDPOINT BREAKER_TO] "Changes of breakers to closed, half_open or open";
    BREAKER_OPENINGS "forebay_breaker_openings_total" Counter Count [ENDPOINT FAILURE] "Times that a breaker opened, by the last failure before that";
    LIMITER_LIMIT "forebay_limiter_limit" Gauge Count [LIMITER] "Requests that may be under way";
    LIMITER_INFLIGHT "forebay_limiter_inflight" Gauge Count [LIMITER] "Requests under way";
    LIMITER_WAITING "forebay_limiter_waiting" Gauge Count [LIMITER] "Requests that wait for their turn";
    LIMITER_OLDEST_SECONDS "forebay_limiter_oldest_wait_seconds" Gauge Seconds [LIMITER] "Age of the oldest request that waits for its turn";
    LIMITER_DROPS "forebay_limiter_drops_total" Counter Count [LIMITER DROP] "Signs of overload (throttled, timeout) and requests not sent (breaker_open, queue_full, late)";
    LIMITER_STEPS "forebay_limiter_steps_total" Counter Count [LIMITER STEP STEP_REASON] "Changes of the number of requests that may be under way: up for a trial, down because that gained nothing or the endpoint throttled or timed out";
    POOL_SIZE "forebay_address_pool_size" Gauge Count [] "Addresses of origins that are known";
    POOL_EJECTED "forebay_address_ejected" Gauge Count [] "Those that are left out now";
    POOL_EJECTIONS "forebay_address_ejections_total" Counter Count [EJECTION] "Times that an address was left out: failing or slow";
    ORIGIN_BYTES "forebay_origin_bytes_total" Counter Bytes [] "Body bytes received from origins by finished loads, failed attempts included";
    REJECTED "forebay_admission_rejected_total" Counter Count [REJECTION] "Loads refused by admission";
    REFUSAL_SECONDS "forebay_refusal_duration_seconds" Histogram Seconds [] "From a call's headers to its refusal with QUEUE_FULL: at once, or after a wait that turned out to be too long or was ended for somebody else's";
    EVICTIONS "forebay_cache_evictions_total" Counter Count [CACHE EVICTION] "Chunks given up: for room, for the filesystem's floor, because somebody asked, or with the segment that they lay in (resize)";
    CACHE_REQUESTS "forebay_cache_requests_total" Counter Count [CACHE LOOKUP] "Chunks asked of a tier: hit, miss, corrupt, or bypass where its disk is left alone or fails";
    CHOICES "forebay_tier_decisions_total" Counter Count [SOURCE CHOICE] "Chunks of loads by the tier that they were taken from, and why from there: cached or stored there, or joined on the way for another load; from the origin because there is no NVMe tier, it does not have them, its disk is left alone, or what it had could not be read or was bad";
    FALLBACKS "forebay_fallbacks_total" Counter Count [FALLBACK FALLBACK_REASON] "What was done another way than it should be: to what, and why";
    CACHE_BYTES "forebay_cache_bytes" Gauge Bytes [NVME CACHE_STATE] "Bytes of the NVMe tier: budget, stored, pinned, filling; free is what its filesystem has";
    CACHE_EXTENTS "forebay_cache_extents" Gauge Count [NVME] "Chunks stored";
    FILLS "forebay_cache_fills_total" Counter Count [NVME] "Chunks stored since the start";
    FILL_BYTES "forebay_cache_fill_bytes_total" Counter Bytes [NVME] "Bytes of objects stored since the start";
    FILL_ABORTED "forebay_cache_fill_aborted_total" Counter Count [NVME NOT_FILLED] "Chunks that were not stored";
    FILL_QUEUE "forebay_cache_fill_queue_depth" Gauge Count [NVME] "Chunks that wait to be stored";
    QUARANTINED "forebay_cache_quarantined_total" Counter Count [NVME BAD] "Extents that were found to be bad";
    SCRUBBED_BYTES "forebay_cache_scrubbed_bytes_total" Counter Bytes [NVME] "Bytes that the scrub has read";
    RECOVERY_SECONDS "forebay_cache_recovery_seconds" Gauge Seconds [NVME] "From the start until every extent was known";
    RECOVERED "forebay_cache_recovered_entries" Gauge Count [NVME] "Extents that were known then";
    DISK_STATE "forebay_cache_disk_state" Gauge Count [NVME] "0 normal, 1 unstable, 2 down";
    DISK_TURNS "forebay_cache_disk_transitions_total" Counter Count [NVME DISK_TO] "Changes of that state";
    IO_SECONDS "forebay_nvme_io_seconds" Histogram Seconds [OP PHASE] "Reads and writes of the NVMe tier: waiting for their turn, and with the device";
    IO_ERRORS "forebay_nvme_io_errors_total" Counter Count [OP IO_REASON] "Reads and writes that failed";
    IO_QUEUE "forebay_nvme_io_queue_depth" Gauge Count [OP] "Reads and writes that wait for their turn";
    IO_OLDEST_SECONDS "forebay_nvme_io_oldest_wait_seconds" Gauge Seconds [OP] "Age of the oldest of them";
    IO_INFLIGHT "forebay_nvme_io_inflight" Gauge Count [OP] "Reads and writes that the device has";
    IO_COUNTS "forebay_nvme_io_events_total" Counter Count [IO_EVENT] "Operations that were slow, hung, late or short, and others that the engine counts";
    IO_ENGINE "forebay_nvme_io_engine" Gauge Count [ENGINE] "1 for the engine in use";
    DIGEST_MISMATCHES "forebay_digest_mismatches_total" Counter Count [] "Chunks whose bytes differ from their digest";
    DECODE_FAILURES "forebay_decode_failures_total" Counter Count [] "Frames that could not be decoded";
    DECOMPRESS_BYTES "forebay_decompress_bytes_total" Counter Bytes [DIRECTION] "Bytes that were decoded: in as stored, out as served";
    DECOMPRESS_CPU_SECONDS "forebay_decompress_cpu_seconds" Gauge Seconds [] "Time that decode workers had frames, their digests included";
    STAGING_BYTES "forebay_staging_bytes" Gauge Bytes [STAGING_STATE] "Memory for parts that are to be decoded: budget, lent";
    NUMA_LOCAL_BYTES "forebay_numa_local_bytes_total" Counter Bytes [HANDOFF] "Bytes on the node that they were asked for near; stage handoff: of finished loads that named a GPU or a node";
    NUMA_REMOTE_BYTES "forebay_numa_remote_bytes_total" Counter Bytes [HANDOFF] "Bytes on another node than that";
    NUMA_SLOT_BYTES "forebay_numa_slot_bytes" Gauge Bytes [NODE SLOT_STATE] "Slots of the RAM tier by the node that they lie on: free, filling, cached, leased";
    NUMA_STRAYED "forebay_numa_strayed_slots" Gauge Count [NODE] "Slots that were asked for on a node and lie on another";
    NUMA_MISPLACED "forebay_numa_misplaced_slots_total" Counter Count [] "Slots taken for a load from another node than it asked for";
    NUMA_UNPLACED "forebay_numa_unplaced_total" Counter Count [UNPLACED] "Loads that asked for a place which this machine cannot give: no_node (not known, or not there) or no_slots_there";
    EVIDENCE_LOOK_SECONDS "forebay_evidence_look_seconds" Histogram Seconds [LOOK] "CPU time of one look at the machine while loads run, for explain: a glance, or a thorough one";
    RUNTIME_LAG_SECONDS "forebay_runtime_lag_seconds" Histogram Seconds [RUNTIME] "How late a runtime wakes a task, looked at every 100 ms: of the threads that answer calls, or of those that take bytes in";
    WORKERS "forebay_workers" Gauge Count [NODE PINNED] "Threads for work on slots, by the node that they are for: pinned to its CPUs (true) or not (false)";
    WORKER_JOBS "forebay_worker_jobs_total" Counter Count [NODE] "What these threads have done";
    WORKER_OFFNODE "forebay_worker_offnode_total" Counter Count [NODE] "What of that was for memory of another node than the one it ran on, by getcpu";
    QUEUE_DEPTH "forebay_admission_queue_depth" Gauge Count [LANE] "Loads waiting for admission";
    QUEUE_LIMIT "forebay_admission_queue_limit" Gauge Count [] "Bound on loads waiting for admission";
    WIDTH "forebay_admission_width" Gauge Count [] "Loads of one lane that run at once at most while others wait: more would bring no more, as was measured; `max_loads` where that is not known. As many again may run that want what is on its way to one of them";
    OLDEST_WAIT_SECONDS "forebay_admission_oldest_wait_seconds" Gauge Seconds [LANE] "Age of the oldest load waiting for admission";
    ACTIVE_LOADS "forebay_loads_active" Gauge Count [] "Loads that run";
    FLIGHTS "forebay_flights" Gauge Count [] "Chunks being fetched";
    FREE_CONNECTIONS "forebay_origin_connections_free" Gauge Count [] "Requests that could be sent now, over the endpoints in use";
    PINNED_BYTES "forebay_pinned_bytes" Gauge Bytes [SLOT_STATE] "Slots of the RAM tier: free, filling, cached, leased";
    POPULATED_BYTES "forebay_ram_populated_bytes" Gauge Bytes [] "Slots in segments so far";
    BUDGET_BYTES "forebay_ram_budget_bytes" Gauge Bytes [] "Size of the RAM tier as configured, or set since";
    RETIRING_BYTES "forebay_ram_retiring_bytes" Gauge Bytes [] "Slots of segments that are out of use and go when no lease of them is left";
    RETIRED_BYTES "forebay_ram_retired_bytes" Gauge Bytes [] "Retired segments that clients still map";
    RETIRE_WAITS "forebay_ram_retire_clients" Gauge Count [TOLD] "Clients that still map retired segments: told and have not answered (true), or of a version that cannot be told (false)";
    SEGMENT_TURNS "forebay_ram_segments_total" Counter Count [TURN] "Segments made, put back into use (revived), and let go (retired) since the start";
    LOCKED_BYTES "forebay_ram_locked_bytes" Gauge Bytes [] "Segment bytes locked in memory";
    HUGE_BYTES "forebay_ram_huge_bytes" Gauge Bytes [] "Slot bytes that lie on huge pages (2 MiB)";
    LEASES "forebay_leases" Gauge Count [] "Slots lent to clients";
    LEASED_BYTES "forebay_leased_bytes" Gauge Bytes [] "Bytes lent to clients";
    OLDEST_LEASE_SECONDS "forebay_leases_oldest_seconds" Gauge Seconds [] "Age of the oldest lease: how long some client has kept a slot; 0 without leases";
    SESSIONS "forebay_sessions" Gauge Count [] "Client processes";
    DOMAIN_BUDGET_BYTES "forebay_domain_ram_budget_bytes" Gauge Bytes [DOMAIN] "RAM of a domain, as configured or set since";
    DOMAIN_PINNED_BYTES "forebay_domain_pinned_bytes" Gauge Bytes [DOMAIN SLOT_STATE] "Slots of a domain: free, filling, cached, leased";
    DOMAIN_LOADS "forebay_domain_loads_active" Gauge Count [DOMAIN] "Loads of a domain that run";
    DOMAIN_QUEUE_DEPTH "forebay_domain_admission_queue_depth" Gauge Count [DOMAIN LANE] "Loads of a domain waiting for admission";
    DOMAIN_SESSIONS "forebay_domain_sessions" Gauge Count [DOMAIN] "Client processes of a domain";
    CALLERS_REFUSED "forebay_callers_refused_total" Counter Count [CALLER] "Calls of somebody who is in no domain (whose uid is in none, or whose token is missing or wrong), and connections that were closed: over TCP without a TLS handshake, or too many of one uid";
    DNS_LOOKUPS "forebay_dns_lookups_total" Counter Count [DNS_RESULT] "Look-ups of origins' names: ok, nxdomain, servfail, timeout; stale counts answers served past their time";
    DNS_AGE_SECONDS "forebay_dns_age_seconds" Gauge Seconds [] "Age of the oldest answer in use";
    ALIASES "forebay_aliases" Gauge Count [ALIAS_RULE] "Names of revisions: those whose rollback rule watches (armed), and the others; 64 at most";
    ALIAS_SWITCHES "forebay_alias_switches_total" Counter Count [SWITCH] "Times that a name was switched to another revision: by alias set, by rollback, by its rule";
    BAD_TRACE_PARENTS "forebay_trace_parents_rejected_total" Counter Count [] "Calls whose traceparent is not valid: they begin a trace of their own";
    TRACE_SPANS "forebay_trace_spans_total" Counter Count [SPANS_RESULT] "Spans of finished loads: exported, rejected by the collector, or dropped because it is slow (queue_full) or fails (failed)";
    DEGRADED "forebay_degraded" Gauge Count [DEGRADED_WHAT] "1 where something asked for could not be had";
}
