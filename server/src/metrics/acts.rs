//! What an operator does when a metric moves, one sentence each: a column of [`TABLE`](super::TABLE)
//! that only the operators' handbook, `docker/README.md`, is made of.
//!
//! Apart from the table, because a row of code needs it nowhere; a test asks for a sentence for every
//! row, and for no other. `cargo test -p forebay-server handbook -- --ignored` writes the handbook.

use std::collections::BTreeSet;
use std::fmt::Write;

use super::TABLE;
use super::labels::{Label, Values};
use crate::config::domains::DOMAIN_KEYS;
use crate::config::raw::{KEYS, ORIGIN_KEYS};
use crate::handbook::{self, quoted_words};

/// The metric and the sentence.
pub(super) const ACTS: &[(&str, &str)] = &[
    (
        "forebay_requests_total",
        "look at the codes: `INVALID_ARGUMENT` and `PERMISSION_DENIED` are the callers' to mend, `RESOURCE_EXHAUSTED` and `UNAVAILABLE` are told apart by `forebay_admission_rejected_total` and `forebay_breaker_state`, `INTERNAL` is a bug to report with the log",
    ),
    (
        "forebay_request_duration_seconds",
        "only `method=\"Load\"` and `Prefetch` may be long; where others are, the runtime is late: see `forebay_runtime_lag_seconds`",
    ),
    (
        "forebay_request_unattributed_seconds",
        "above 1 % of a load it is a bug: report it with `forebay trace LOAD-ID`",
    ),
    (
        "forebay_loads_total",
        "`outcome=\"error\"`: the reason is in the log by `load_id`; `deadline`: compare the deadline with `forebay capacity`",
    ),
    (
        "forebay_loads_in_deadline_total",
        "falling against `forebay_loads_total` is what users feel: `forebay explain last` on the node, then the rows below that it names",
    ),
    (
        "forebay_gpu_idle_seconds",
        "go by the cause that grows; `origin_slow` and `origin_throttle` are the store, `nvme_*` the disk, `decompress_*` and `cpu_throttle` the CPU limit, `lease_memory` and `admission_queue` the size of the RAM tier, `client` the application",
    ),
    (
        "forebay_gpu_idle_gap_seconds",
        "one long gap is an outage and many short ones a rate: `forebay trace last` shows where the gap lies",
    ),
    (
        "forebay_gpu_idle_confidence",
        "below 0.5 give the daemon what it cannot read: `forebay explain last` names the source, `forebay doctor` what hides it",
    ),
    (
        "forebay_stage_queue_seconds",
        "the stage with the longest queue is the one that is too narrow: `forebay capacity` says what sets its rate",
    ),
    (
        "forebay_stage_service_seconds",
        "the stage itself became slow: compare with `forebay capacity` of a good day",
    ),
    (
        "forebay_load_bytes_total",
        "a growing share of `origin` is a cache too small or an `evict` too many: compare with `forebay_cache_evictions_total`",
    ),
    (
        "forebay_origin_attempts_total",
        "errors by reason: `throttled` see `forebay_limiter_steps_total`, `denied` and `unauthenticated` the credentials in `forebay doctor`, `dns_failed` the resolver, `timeout` the path to the store",
    ),
    (
        "forebay_origin_attempts_per_part",
        "above 1.2 on average retries eat the bandwidth: find the reason in `forebay_origin_attempts_total`",
    ),
    (
        "forebay_retry_delay_seconds",
        "long `throttle` delays: lower `max_connections` or `max_bytes_per_second` of that `[[origin]]`, or ask for a higher quota",
    ),
    (
        "forebay_retry_budget_tokens",
        "near 0 the origin is failing, and retries are about to stop: treat as an outage of the store",
    ),
    (
        "forebay_retry_budget_exhausted_total",
        "any growth: the store fails more than one in a few requests; nothing here is to be tuned, mend the store",
    ),
    (
        "forebay_retry_decisions_total",
        "`made=\"false\"` with `deadline`: deadlines are too short for a second try; with `budget` or `breaker_open`: see those",
    ),
    (
        "forebay_hedge_decisions_total",
        "many made: single connections are slow, see `forebay_address_ejected`; many refused for `too_many`: the whole store is slow",
    ),
    (
        "forebay_hedge_wins_total",
        "wins close to the copies made: the first address is bad; look at `forebay status`, addresses",
    ),
    (
        "forebay_hedge_wasted_bytes_total",
        "above a tenth of `forebay_origin_bytes_total`: the store's latency is uneven, tell its operator",
    ),
    (
        "forebay_breaker_state",
        "2: nothing is asked of that endpoint; `forebay_breaker_openings_total` has the failure; it closes by itself after a probe",
    ),
    (
        "forebay_breaker_transitions_total",
        "opening again and again: the endpoint comes and goes, look at its own health",
    ),
    (
        "forebay_breaker_openings_total",
        "the reason says whose it is: `denied` yours (credentials), `throttled` the quota, `dns_failed` the resolver, others the store or the path to it",
    ),
    (
        "forebay_limiter_limit",
        "falling: the store throttles or gains nothing by more requests; at its most (`connections`) while the network is not full: raise `connections`",
    ),
    (
        "forebay_limiter_inflight",
        "0 while loads run and none come from a cache: they wait elsewhere, see `forebay explain last`",
    ),
    (
        "forebay_limiter_waiting",
        "large for long: the origin is the bottleneck; that is its rate unless `forebay_limiter_limit` is at the setting",
    ),
    (
        "forebay_limiter_oldest_wait_seconds",
        "above some seconds parts wait longer than they take: fewer loads at a time (`max_loads`), or a faster origin",
    ),
    (
        "forebay_limiter_drops_total",
        "`throttled` and `timeout`: the store is overloaded; `queue_full` and `late`: the node asks for more than it can get",
    ),
    (
        "forebay_limiter_steps_total",
        "`down` for `throttled` again and again: set `max_connections` or `max_bytes_per_second` below what the store takes",
    ),
    (
        "forebay_address_pool_size",
        "1 for a large store: its name resolves to one address only; look at the resolver in front of it",
    ),
    (
        "forebay_address_ejected",
        "above 0 for long: some addresses of the store are bad; `forebay status` names them, tell its operator",
    ),
    (
        "forebay_address_ejections_total",
        "`failing` in bursts: a front of the store went down; `slow`: one is overloaded",
    ),
    (
        "forebay_origin_bytes_total",
        "the bill of the store: more than the sum of new checkpoints means that the caches do not hold them",
    ),
    (
        "forebay_admission_rejected_total",
        "`QUEUE_FULL`: spread the starts or raise `max_queue`; `RAM_EXHAUSTED`: a larger `ram`, or find who holds it in `forebay status`; `DEADLINE_INFEASIBLE`: longer deadlines or a prefetch; `DRAINING`: an upgrade is under way",
    ),
    (
        "forebay_refusal_duration_seconds",
        "callers are to go elsewhere at once. More than 10 ms, and `forebay_runtime_lag_seconds` with it: the CPUs are used up; without it: many came at once, before it was known how fast loads start, or loads became slower while some waited, see `forebay_stage_service_seconds`",
    ),
    (
        "forebay_cache_evictions_total",
        "`room` while the same checkpoints come back: a larger tier; `floor`: somebody else fills the filesystem",
    ),
    (
        "forebay_cache_requests_total",
        "misses up: new checkpoints or a tier too small; `corrupt`: see `forebay_cache_quarantined_total`; `bypass`: see `forebay_cache_disk_state`",
    ),
    (
        "forebay_tier_decisions_total",
        "`origin` with `left_alone`, `read_failed` or `bad_extent`: the disk; with `not_stored`: prefetch, or pin what is needed",
    ),
    (
        "forebay_fallbacks_total",
        "each reason is a set-up to mend: `sysctl`, `forbidden`: allow io_uring (seccomp profile); `memlock`: raise the limit; `node_full`: memory of that NUMA node; `direct_refused`: another filesystem for `cache_dir`",
    ),
    (
        "forebay_cache_bytes",
        "`stored` near `budget` is as it should be; `free` near 5 % of the filesystem: somebody else fills it, or lower `nvme`; `pinned` near `budget`: unpin, nothing else fits",
    ),
    (
        "forebay_cache_extents",
        "falling without evictions or a restart: look at `forebay_cache_quarantined_total`",
    ),
    (
        "forebay_cache_fills_total",
        "flat while loads come from the origin: see `forebay_cache_fill_aborted_total`",
    ),
    (
        "forebay_cache_fill_bytes_total",
        "what the disk is worn by: prefetch with `--tier ram` what is loaded once",
    ),
    (
        "forebay_cache_fill_aborted_total",
        "`queue_full`: the disk is slower than the origin, which costs later hits only; `no_room`, `disk_full`: make room; `disk_error`, `distrusted`: the disk",
    ),
    (
        "forebay_cache_fill_queue_depth",
        "full for long: the disk does not follow; nothing waits for it, chunks are just not stored",
    ),
    (
        "forebay_cache_quarantined_total",
        "any growth: the disk, its cable or the memory returns wrong bytes; none were served; `smartctl`, `dmesg`, then replace",
    ),
    (
        "forebay_cache_scrubbed_bytes_total",
        "flat for a day with `scrub_bytes_per_second` above 0: the disk is left alone, see `forebay_cache_disk_state`",
    ),
    (
        "forebay_cache_recovery_seconds",
        "long: the index was lost, and extents were read one by one; hits come back meanwhile",
    ),
    (
        "forebay_cache_recovered_entries",
        "far below what was stored before the restart: another `cache_dir`, another uid, or a disk that lost writes",
    ),
    (
        "forebay_cache_disk_state",
        "1: errors or long waits, look at `dmesg`; 2: the disk is left alone and loads come from their origins until probes succeed",
    ),
    ("forebay_cache_disk_transitions_total", "more than one a day: replace the disk"),
    (
        "forebay_nvme_io_seconds",
        "`phase=\"device\"` up: the disk or who else uses it; `queue` up alone: more asked than the disk gives, see `forebay capacity`",
    ),
    (
        "forebay_nvme_io_errors_total",
        "`no_space`: room; `device`, `hung`, `stalled`: the disk, see `dmesg`",
    ),
    (
        "forebay_nvme_io_queue_depth",
        "full for long: the disk sets the rate; warm loads need a larger `ram`",
    ),
    (
        "forebay_nvme_io_oldest_wait_seconds",
        "above 1: the disk hangs or is shared with something heavy",
    ),
    ("forebay_nvme_io_inflight", "stuck above 0 without loads: an operation hangs; see `dmesg`"),
    (
        "forebay_nvme_io_events_total",
        "`hung` and `late`: the disk; `engine_error`, `unknown`: a bug to report",
    ),
    (
        "forebay_nvme_io_engine",
        "`threads` where io_uring was expected: `forebay doctor` says why; with containers it is the seccomp profile",
    ),
    (
        "forebay_digest_mismatches_total",
        "any growth: bytes changed on the way or at rest; they were not served; single ones are the network or memory (`edac-util`), many of one object its store",
    ),
    (
        "forebay_decode_failures_total",
        "an object that ends in `.zst` or was packed is broken: verify it at its source and pack it anew",
    ),
    (
        "forebay_decompress_bytes_total",
        "`out` over `in` is what packing saves; near 1: pack nothing of that kind",
    ),
    (
        "forebay_decompress_cpu_seconds",
        "near one second per second and worker: decoding sets the rate; a higher CPU limit, or load what is not packed",
    ),
    (
        "forebay_staging_bytes",
        "`lent` at `budget` for long: packed loads wait for decoders: more CPU",
    ),
    ("forebay_numa_local_bytes_total", "should be nearly all of what named a GPU or a node"),
    (
        "forebay_numa_remote_bytes_total",
        "growing: the node beside the GPU is full or shut out by the cpuset: `forebay status`, nodes",
    ),
    (
        "forebay_numa_slot_bytes",
        "all `leased` on one node: loads for its GPUs get far memory; more `ram`, or spread them",
    ),
    (
        "forebay_numa_strayed_slots",
        "above 0: the kernel had no memory there at the start; free it, then restart or resize",
    ),
    ("forebay_numa_misplaced_slots_total", "as for `forebay_numa_remote_bytes_total`"),
    (
        "forebay_numa_unplaced_total",
        "`no_node`: the name of the GPU is wrong or the container does not see `/sys`; `no_slots_there`: that node has no memory for us",
    ),
    (
        "forebay_domain_ram_budget_bytes",
        "the quota of the domain: compare with `forebay_domain_pinned_bytes`, and give more to the one whose loads wait",
    ),
    (
        "forebay_domain_pinned_bytes",
        "all of it `leased`: a client of that domain does not release; `forebay status` as one of its callers names the holder",
    ),
    (
        "forebay_domain_loads_active",
        "at its part of `max_loads` for long: the domain wants a larger `share`, or fewer loads at a time",
    ),
    (
        "forebay_domain_admission_queue_depth",
        "grows in one domain only: that domain asks for more than its `share`; the others do not feel it",
    ),
    (
        "forebay_domain_sessions",
        "more than there are processes that load: somebody does not close its client",
    ),
    (
        "forebay_callers_refused_total",
        "find the caller in the log by its uid: it belongs into `allow_uids` or a `domain`, its token is wrong, or it is none of yours",
    ),
    (
        "forebay_aliases",
        "`rule=\"armed\"` falls to none after a rule has acted: look at `forebay alias ls`, mend the new revision, and set it again with its rule",
    ),
    (
        "forebay_alias_switches_total",
        "by `rule`: a new revision was bad, and the node went back by itself; `forebay alias ls NAME` has the value that it acted on",
    ),
    (
        "forebay_evidence_look_seconds",
        "its sum is what evidence costs; above 2 % of a CPU there are very many threads or disks, and the setting `evidence` turns it off, with what `forebay explain` says beyond our own clocks",
    ),
    (
        "forebay_runtime_lag_seconds",
        "p99 of `calls` above 50 ms: the daemon gets no CPU; raise its limit, see `cpu_throttle` in `forebay explain last`",
    ),
    (
        "forebay_workers",
        "fewer than CPUs: the cpuset or the CPU limit; `pinned=\"false\"`: affinity is forbidden",
    ),
    ("forebay_worker_jobs_total", "one node far above others: its GPUs get all the loads"),
    (
        "forebay_worker_offnode_total",
        "growing with `pinned=\"true\"`: the cpuset changed under the daemon; restart it",
    ),
    (
        "forebay_admission_queue_depth",
        "above 0 for long: more loads than this node serves at once (`forebay_admission_width`), than `max_loads`, or than RAM has windows for",
    ),
    (
        "forebay_admission_width",
        "what this node can do at once; lower than before with as many bytes: loads have become larger or their origins nearer; with fewer: look for the bottleneck in `forebay explain`",
    ),
    ("forebay_admission_queue_limit", "`max_queue`, for comparison with the depth"),
    (
        "forebay_admission_oldest_wait_seconds",
        "near deadlines: raise `ram` or `max_loads`, or have batch work use `--lane prefetch`",
    ),
    (
        "forebay_loads_active",
        "at `max_loads`: others wait; stuck above 0 with no client: report it",
    ),
    ("forebay_flights", "stuck above 0 without loads: report it"),
    ("forebay_origin_connections_free", "0 while loads wait: the origins set the rate"),
    (
        "forebay_pinned_bytes",
        "`leased` near the budget: clients hold the tier (`forebay status` says who); `free` large for weeks: a smaller `ram` would do",
    ),
    (
        "forebay_ram_populated_bytes",
        "below the budget a minute after the start: memory is short, see `forebay_degraded{what=\"ram\"}`",
    ),
    ("forebay_ram_budget_bytes", "changes by the settings and `forebay resize` only"),
    (
        "forebay_ram_retiring_bytes",
        "stuck: a load or a client holds leases in segments that are to go; see `forebay status`",
    ),
    (
        "forebay_ram_retired_bytes",
        "stuck: a client still maps memory that was given back; restart that client",
    ),
    (
        "forebay_ram_retire_clients",
        "`told=\"false\"`: clients of an old version; restart them to free it",
    ),
    ("forebay_ram_segments_total", "`retired` without a `resize`: report it"),
    (
        "forebay_ram_locked_bytes",
        "below `forebay_ram_populated_bytes`: the memlock limit; pages may be swapped out and drivers may refuse them",
    ),
    (
        "forebay_ram_huge_bytes",
        "below `forebay_ram_populated_bytes`: the kernel had no huge pages to give (memory in small pieces, shmem_enabled of the kernel set to deny, or chunks that are no multiple of 2 MiB); readers fault 512 times as often",
    ),
    (
        "forebay_leases",
        "never falling: a client keeps what it read; `forebay status` names its process",
    ),
    ("forebay_leased_bytes", "as for `forebay_leases`"),
    (
        "forebay_leases_oldest_seconds",
        "growing for longer than a load takes: a client does not release; nothing takes memory from it, so end it, or see `RAM_EXHAUSTED`, which names the load, uid and pid that hold most",
    ),
    (
        "forebay_sessions",
        "growing without end: a client opens a connection per load; it should keep one",
    ),
    (
        "forebay_dns_lookups_total",
        "`servfail` and `timeout`: the resolver; `stale`: it fails, and old answers are still used; `nxdomain`: a wrong name in the settings",
    ),
    (
        "forebay_dns_age_seconds",
        "above 300: the resolver does not answer; loads go on with what is known for an hour",
    ),
    (
        "forebay_trace_parents_rejected_total",
        "a caller sends a broken `traceparent`; loads are not affected",
    ),
    (
        "forebay_trace_spans_total",
        "`queue_full`, `failed`: the collector is slow or gone; loads are not affected",
    ),
    (
        "forebay_degraded",
        "1: `forebay status` ends with the sentence that says what could not be had, and `forebay doctor` what to do",
    ),
];

/// The handbook's part about metrics.
fn part() -> String {
    let mut text = String::from("\n| metric | when it moves |\n|---|---|\n");
    for (metric, act) in ACTS {
        writeln!(text, "| `{metric}` | {act} |").unwrap();
    }
    text.push('\n');
    text
}

/// What a sentence may name in backticks: metrics, values of labels, settings, and commands.
fn exists(word: &str) -> bool {
    let label = |label: &Label| match label.values {
        Values::Of(values) => values.contains(&word),
        Values::And { fixed, .. } => fixed.contains(&word),
    };
    let selector = word.split_once("=\"").and_then(|(key, value)| {
        let (key, value) = (key.rsplit('{').next()?, value.trim_end_matches(['"', '}']));
        Some(TABLE.iter().flat_map(|row| row.labels).any(|label| {
            label.key == key && matches!(label.values, Values::Of(of) if of.contains(&value))
        }))
    });
    let name = word.split('{').next().unwrap_or_default();
    let metric = TABLE.iter().any(|row| row.name == name);
    let setting = [&KEYS[..], &ORIGIN_KEYS, &DOMAIN_KEYS].iter().any(|keys| keys.contains(&word))
        || word == "[[origin]]";
    let command = word.starts_with("forebay ") || word.starts_with("--");
    let elsewhere = [
        "status",
        "resize",
        "evict",
        "traceparent",
        "smartctl",
        "dmesg",
        "edac-util",
        ".zst",
        "/sys",
        "nvme_*",
        "decompress_*",
        "load_id",
    ];
    match selector {
        Some(found) => found && (metric || !word.contains('{')),
        None => {
            metric
                || setting
                || command
                || elsewhere.contains(&word)
                || TABLE.iter().flat_map(|row| row.labels).any(label)
        }
    }
}

#[test]
fn every_metric_has_a_sentence() {
    let names = |of: Vec<&'static str>| of.into_iter().collect::<BTreeSet<_>>();
    let said = names(ACTS.iter().map(|(metric, _)| *metric).collect());
    let metrics = names(TABLE.iter().map(|row| row.name).collect());
    let silent: Vec<_> = metrics.difference(&said).collect();
    assert!(silent.is_empty(), "say in server/src/metrics/acts.rs what to do about {silent:?}");
    let gone: Vec<_> = said.difference(&metrics).collect();
    assert!(gone.is_empty() && ACTS.len() == TABLE.len(), "{gone:?}, or one is there twice");
}

#[test]
fn what_a_sentence_names_exists() {
    assert!(!exists("forebay_nothing") && !exists("outcome=\"failed\"") && exists("deadline"));
    for (metric, act) in ACTS {
        for word in quoted_words(act) {
            assert!(exists(word), "{metric}: `{word}` is no metric, label, setting or command");
        }
    }
}

#[test]
#[ignore = "writes the handbook"]
fn write_the_handbook() {
    handbook::write("metrics", &part());
}

#[test]
fn the_handbook_has_every_metric() {
    handbook::assert_is_of_the_table("metrics", &part());
}
