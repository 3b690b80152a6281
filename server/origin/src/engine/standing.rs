//! How an endpoint stands: what it shows of itself to people and to metrics.

use std::collections::BTreeMap;
use std::time::Duration;

use super::breaker::{BreakerState, BreakerTurns};
use crate::error::OriginErrorKind;

/// What is known of an endpoint, and what it has cost beyond one request per call.
#[derive(Debug, Clone, PartialEq)]
pub struct EndpointStats {
    /// Scheme and bucket or host.
    pub origin: String,
    /// What metrics call it: the prefix of its block of the settings, or its scheme.
    pub alias: String,
    /// Tokens left for retries and hedges, of 500.
    pub tokens: u32,
    /// The breaker.
    pub breaker: BreakerState,
    /// Times that it opened after it had been closed.
    pub breaker_opened: u64,
    /// Times that it changed its state.
    pub breaker_turns: BreakerTurns,
    /// Requests that may be under way.
    pub limit: usize,
    /// Requests under way.
    pub inflight: usize,
    /// Requests that wait to be.
    pub waiting: usize,
    /// How long the first of them has waited.
    pub oldest_wait: Option<Duration>,
    /// Bytes per second that it brought lately when it was asked for all it could.
    pub sustained: Option<f64>,
    /// Requests that are over.
    pub attempts: Vec<AttemptCount>,
    /// Attempts beyond the first.
    pub retries: u64,
    /// Attempts that were not made for want of tokens.
    pub retries_denied: u64,
    /// Answers that were throttles.
    pub throttled: u64,
    /// Requests that were not answered in time.
    pub timed_out: u64,
    /// Requests that were not sent.
    pub refused: RefusedCounts,
    /// Second copies of slow requests.
    pub hedges: u64,
    /// Those that were faster than the first.
    pub hedge_wins: u64,
    /// Body bytes of copies that lost.
    pub hedge_wasted_bytes: u64,
    /// What it decided, and why.
    pub decisions: Decisions,
}

/// What an endpoint decided, why, and how often.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Decisions {
    /// Whether a request that failed was made again, by what it failed of, or by what there was no
    /// more of.
    pub retries: BTreeMap<(bool, &'static str), u64>,
    /// Whether a request that took long got a second copy, and why not.
    pub hedges: BTreeMap<(bool, &'static str), u64>,
    /// Times that the breaker opened after it was closed, by the last failure.
    pub breaker_openings: BTreeMap<&'static str, u64>,
    /// Changes of the number of requests that may be under way: `up` or `down`, and why.
    pub limit_steps: BTreeMap<(&'static str, &'static str), u64>,
}

/// Why requests were not sent, and how many.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RefusedCounts {
    /// The breaker was open.
    pub breaker_open: u64,
    /// Too many waited.
    pub queue_full: u64,
    /// There was not enough time left.
    pub late: u64,
}

/// What a request is to its call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum AttemptClass {
    /// The first.
    First,
    /// A later one.
    Retry,
    /// A second copy of one that is slow.
    Hedge,
}

impl AttemptClass {
    /// The name in metrics.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::First => "first",
            Self::Retry => "retry",
            Self::Hedge => "hedge",
        }
    }
}

/// How a request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum AttemptEnd {
    /// It was answered, if only with "no such object".
    Answered,
    /// It failed so.
    Failed(&'static str),
    /// It failed before the endpoint had a part in it.
    Unsent,
    /// Nobody wanted it any more.
    Cancelled,
}

impl AttemptEnd {
    pub(super) fn failed(kind: OriginErrorKind) -> Self {
        Self::Failed(kind.as_str())
    }

    /// Outcome and reason, as in metrics.
    #[must_use]
    pub fn labels(self) -> (&'static str, &'static str) {
        match self {
            Self::Answered => ("ok", "none"),
            Self::Failed(kind) => ("error", kind),
            Self::Unsent => ("error", "unsent"),
            Self::Cancelled => ("cancelled", "none"),
        }
    }
}

/// How many requests of a class ended so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AttemptCount {
    /// What they were.
    pub class: AttemptClass,
    /// How they ended.
    pub end: AttemptEnd,
    /// How many.
    pub count: u64,
}
