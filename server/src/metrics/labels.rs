//! The labels of metrics, and the closed set of values that each one has.
//!
//! A label's values are written down here, or they come from a source that is bounded and has a name:
//! the settings, or the machine. So the number of series of every metric has a bound, which the
//! document shows.

use crate::config::raw::ORIGINS_MAX;
use crate::domain::{DEFAULT, DOMAINS_MAX};
use crate::workload::WORKLOADS_MAX;

/// Which values a label has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Values {
    /// These.
    Of(&'static [&'static str]),
    /// These, and as many more as the source has, `most` at most.
    And {
        fixed: &'static [&'static str],
        /// Where the others come from.
        source: &'static str,
        /// How many others there can be.
        most: usize,
    },
}

/// A label.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Label {
    /// Its key.
    pub(crate) key: &'static str,
    /// Its values.
    pub(crate) values: Values,
}

const fn label(key: &'static str, values: &'static [&'static str]) -> Label {
    Label { key, values: Values::Of(values) }
}

const fn named(key: &'static str, source: &'static str, most: usize) -> Label {
    Label { key, values: Values::And { fixed: &[], source, most } }
}

impl Label {
    /// How many values it can have.
    #[cfg(test)]
    pub(crate) fn most(&self) -> usize {
        match self.values {
            Values::Of(values) => values.len(),
            Values::And { fixed, most, .. } => fixed.len() + most,
        }
    }

    /// Whether it may have the value; of what comes from elsewhere only its form is known.
    pub(crate) fn allows(&self, value: &str) -> bool {
        match self.values {
            Values::Of(values) => values.contains(&value),
            Values::And { .. } => {
                let plain = |byte: u8| byte.is_ascii_graphic() && byte != b'?';
                (1..=128).contains(&value.len()) && value.bytes().all(plain)
            }
        }
    }
}

pub(crate) const METHOD: Label = label(
    "method",
    &[
        "Load",
        "Prefetch",
        "Stat",
        "List",
        "Pin",
        "Unpin",
        "Evict",
        "Verify",
        "Pack",
        "Explain",
        "Trace",
        "Status",
        "ResizeRam",
        "SetAlias",
        "Rollback",
        "ListAliases",
        "RemoveAlias",
        "Capacity",
        "Doctor",
    ],
);
pub(crate) const CODE: Label = label(
    "code",
    &[
        "OK",
        "INVALID_ARGUMENT",
        "NOT_FOUND",
        "PERMISSION_DENIED",
        "UNAUTHENTICATED",
        "RESOURCE_EXHAUSTED",
        "UNAVAILABLE",
        "DEADLINE_EXCEEDED",
        "FAILED_PRECONDITION",
        "DATA_LOSS",
        "INTERNAL",
    ],
);
pub(crate) const CAUSE: Label = label(
    "cause",
    &[
        "dns",
        "tcp_connect",
        "tcp_retransmit",
        "origin_throttle",
        "origin_slow",
        "page_cache",
        "nvme_queue",
        "nvme_service",
        "decompress_queue",
        "decompress_cpu",
        "numa_remote",
        "admission_queue",
        "lease_memory",
        "verify",
        "cpu_throttle",
        "client",
        "unknown",
    ],
);
pub(crate) const STAGE: Label = label(
    "stage",
    &[
        "admission",
        "resolve",
        "plan",
        "turn",
        "lease_alloc",
        "fetch",
        "conn_acquire",
        "dns",
        "connect",
        "tls",
        "ttfb",
        "body",
        "backoff",
        "nvme_read",
        "decompress",
        "verify_part",
        "verify_object",
        "publish",
        "client_ack",
        "nvme_write",
    ],
);
pub(crate) const HANDOFF: Label = label("stage", &["handoff"]);
pub(crate) const SOURCE: Label = label("tier", &["ram", "nvme", "origin"]);
pub(crate) const LOAD_TIER: Label = label("tier", &["ram", "nvme", "origin", "mixed", "none"]);
pub(crate) const CACHE: Label = label("tier", &["ram", "nvme"]);
pub(crate) const NVME: Label = label("tier", &["nvme"]);
pub(crate) const WORKLOAD: Label = Label {
    key: "workload",
    values: Values::And {
        fixed: &["none", "other"],
        source: "the names in `workloads` of the settings",
        most: WORKLOADS_MAX,
    },
};
pub(crate) const DEVICE: Label = label("device", &["none", "host", "fake", "cuda"]);
pub(crate) const LOAD_OUTCOME: Label = label("outcome", &["ok", "error", "cancelled", "deadline"]);
pub(crate) const CLASS: Label = label("class", &["first", "retry", "hedge"]);
pub(crate) const ATTEMPT_OUTCOME: Label = label("outcome", &["ok", "error", "cancelled"]);
/// Kinds of failures of origins.
pub(crate) const FAILURES: &[&str] = &[
    "not_found",
    "denied",
    "unauthenticated",
    "changed",
    "rejected",
    "throttled",
    "failed",
    "unreachable",
    "dns_failed",
    "truncated",
    "malformed",
    "timeout",
    "breaker_open",
    "limit_exceeded",
    "unsupported",
    "local",
];
pub(crate) const FAILURE: Label = label("reason", FAILURES);
pub(crate) const ATTEMPT_REASON: Label = label(
    "reason",
    &[
        "none",
        "unsent",
        "not_found",
        "denied",
        "unauthenticated",
        "changed",
        "rejected",
        "throttled",
        "failed",
        "unreachable",
        "dns_failed",
        "truncated",
        "malformed",
        "timeout",
        "breaker_open",
        "limit_exceeded",
        "unsupported",
        "local",
    ],
);
pub(crate) const RETRY_CLASS: Label = label("class", &["transient", "throttle"]);
pub(crate) const MADE: Label = label("made", &["true", "false"]);
pub(crate) const RETRY_REASON: Label = label(
    "reason",
    &[
        "throttled",
        "failed",
        "unreachable",
        "dns_failed",
        "truncated",
        "malformed",
        "timeout",
        "renewed_credentials",
        "attempts_spent",
        "told_to_wait",
        "deadline",
        "breaker_open",
        "budget",
    ],
);
pub(crate) const HEDGE_REASON: Label = label(
    "reason",
    &["slow", "ends_soon", "breaker_open", "limit_shrinking", "too_many", "budget"],
);
pub(crate) const ENDPOINT: Label = named("endpoint", ALIASES, ORIGINS_MAX + SCHEMES);
pub(crate) const LIMITER: Label = named("limiter", ALIASES, ORIGINS_MAX + SCHEMES);
/// Schemes of URIs.
const SCHEMES: usize = 6;
const ALIASES: &str = "the prefixes of the `[[origin]]` blocks, and schemes";
pub(crate) const BREAKER_TO: Label = label("to", &["closed", "half_open", "open"]);
pub(crate) const STEP: Label = label("step", &["up", "down"]);
pub(crate) const STEP_REASON: Label =
    label("reason", &["trial", "no_gain", "throttled", "timeout"]);
pub(crate) const DROP: Label =
    label("reason", &["throttled", "timeout", "breaker_open", "queue_full", "late"]);
pub(crate) const EJECTION: Label = label("reason", &["failing", "slow"]);
pub(crate) const REJECTION: Label =
    label("reason", &["QUEUE_FULL", "RAM_EXHAUSTED", "DRAINING", "DEADLINE_INFEASIBLE"]);
pub(crate) const EVICTION: Label = label("reason", &["room", "floor", "full", "asked", "resize"]);
pub(crate) const LOOKUP: Label = label("result", &["hit", "miss", "corrupt", "bypass"]);
pub(crate) const CHOICE: Label = label(
    "reason",
    &[
        "cached",
        "stored",
        "joined",
        "copied",
        "no_nvme",
        "not_stored",
        "left_alone",
        "read_failed",
        "bad_extent",
    ],
);
pub(crate) const CACHE_STATE: Label =
    label("state", &["budget", "stored", "pinned", "filling", "free"]);
pub(crate) const NOT_FILLED: Label = label(
    "reason",
    &[
        "queue_full",
        "evicted",
        "unwanted",
        "no_room",
        "disk_full",
        "distrusted",
        "disk_error",
        "stopped",
        "impossible",
    ],
);
pub(crate) const BAD: Label = label(
    "reason",
    &[
        "header",
        "version",
        "contradiction",
        "other",
        "truncated",
        "grain",
        "digest",
        "unreadable",
        "foreign",
        "recovery",
    ],
);
pub(crate) const DISK_TO: Label = label("to", &["normal", "unstable", "down"]);
pub(crate) const OP: Label = label("op", &["read", "write"]);
pub(crate) const PHASE: Label = label("phase", &["queue", "device"]);
pub(crate) const IO_REASON: Label = label(
    "reason",
    &["no_space", "device", "hung", "stalled", "queue_full", "length", "closed", "other"],
);
pub(crate) const IO_EVENT: Label = label(
    "event",
    &[
        "slow",
        "hung",
        "late",
        "short",
        "retried",
        "unstarted",
        "unknown",
        "engine_error",
        "registered",
    ],
);
pub(crate) const ENGINE: Label = label("engine", &["io_uring", "threads"]);
pub(crate) const FALLBACK: Label = label(
    "to",
    &["staged_copy", "thread_engine", "buffered_io", "far_slot", "other_source", "origin"],
);
pub(crate) const FALLBACK_REASON: Label = label(
    "reason",
    &[
        "not_registered",
        "sysctl",
        "forbidden",
        "not_in_kernel",
        "memlock",
        "missing_opcodes",
        "direct_refused",
        "node_full",
        "bad_bytes",
        "left_alone",
        "read_failed",
        "bad_extent",
        "failed",
    ],
);
pub(crate) const DIRECTION: Label = label("dir", &["in", "out"]);
pub(crate) const STAGING_STATE: Label = label("state", &["budget", "lent"]);
pub(crate) const NODE: Label = named("node", "the NUMA nodes of the machine", 1024);
pub(crate) const SLOT_STATE: Label = label("state", &["free", "filling", "cached", "leased"]);
pub(crate) const TOLD: Label = label("told", &["true", "false"]);
pub(crate) const TURN: Label = label("turn", &["made", "revived", "retired"]);
pub(crate) const UNPLACED: Label = label("reason", &["no_node", "no_slots_there"]);
pub(crate) const RUNTIME: Label = label("runtime", &["calls", "bytes"]);
pub(crate) const LOOK: Label = label("look", &["glance", "thorough"]);
pub(crate) const PINNED: Label = label("pinned", &["true", "false"]);
pub(crate) const LANE: Label = label("lane", &["interactive", "prefetch"]);
pub(crate) const DOMAIN: Label = Label {
    key: "domain",
    values: Values::And {
        fixed: &[DEFAULT],
        source: "the names of `[[domain]]` in the settings",
        most: DOMAINS_MAX,
    },
};
pub(crate) const CALLER: Label =
    label("reason", &["UID_NOT_ALLOWED", "TOKEN_UNKNOWN", "HANDSHAKE", "CONNECTIONS"]);
pub(crate) const DNS_RESULT: Label =
    label("result", &["ok", "nxdomain", "servfail", "timeout", "stale"]);
pub(crate) const SPANS_RESULT: Label =
    label("result", &["exported", "rejected", "queue_full", "failed"]);
pub(crate) const SWITCH: Label = label("by", &["set", "rollback", "rule"]);
pub(crate) const ALIAS_RULE: Label = label("rule", &["armed", "none"]);
pub(crate) const DEGRADED_WHAT: Label =
    label("what", &["ram", "memlock", "numa", "nvme", "cache-dir", "dns", "aliases"]);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admission::Lane;
    use crate::attribution::Cause;
    use crate::timeline::Stage;

    fn values(label: Label) -> Vec<&'static str> {
        match label.values {
            Values::Of(values) => values.to_vec(),
            Values::And { fixed, .. } => fixed.to_vec(),
        }
    }

    #[test]
    fn sets_are_those_of_what_they_name() {
        assert_eq!(values(CAUSE), Cause::ALL.map(Cause::as_str));
        assert_eq!(values(STAGE), Stage::ALL.map(Stage::as_str));
        assert_eq!(values(LANE), Lane::ALL.map(Lane::as_str));
        let with_failures: Vec<_> = ["none", "unsent"].iter().chain(FAILURES).copied().collect();
        assert_eq!(values(ATTEMPT_REASON), with_failures);
    }

    #[test]
    fn what_comes_from_elsewhere_is_a_name() {
        assert!(ENDPOINT.allows("s3://bucket/prefix") && WORKLOAD.allows("serving"));
        for bad in ["", "https://h/?sig=x", "a b", "line\n"] {
            assert!(!ENDPOINT.allows(bad), "{bad:?}");
        }
        assert!(STAGE.allows("body") && !STAGE.allows("nobody"));
    }
}
