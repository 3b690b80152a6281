//! What reading from an origin costs: requests, bytes, and waits.

use std::time::Duration;

use forebay_origin::ReadTerms;

/// What reads took.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct FetchCost {
    /// Requests sent, without hedges.
    pub(crate) attempts: u64,
    /// Requests beyond one per part.
    pub(crate) retries: u64,
    /// Answers that were throttles.
    pub(crate) throttles: u64,
    /// Second copies of slow requests.
    pub(crate) hedges: u64,
    /// Those that were faster.
    pub(crate) hedge_wins: u64,
    /// Body bytes received, failed attempts included.
    pub(crate) bytes: u64,
    /// Those that another copy brought too.
    pub(crate) wasted_bytes: u64,
    /// Time in the line before the origin, summed over parts.
    pub(crate) queued: Duration,
    /// Time between attempts, summed over parts.
    pub(crate) backoff: Duration,
}

impl FetchCost {
    /// What the reads on these terms took so far.
    pub(crate) fn of(terms: &ReadTerms) -> Self {
        let spent = terms.spent();
        Self {
            attempts: u64::from(spent.attempts),
            retries: u64::from(spent.retries),
            throttles: u64::from(spent.throttles),
            hedges: u64::from(spent.hedges),
            hedge_wins: u64::from(spent.hedge_wins),
            bytes: spent.bytes,
            wasted_bytes: spent.wasted_bytes,
            queued: spent.queued,
            backoff: spent.backoff,
        }
    }

    /// The sum of both.
    pub(crate) fn plus(self, other: Self) -> Self {
        Self {
            attempts: self.attempts + other.attempts,
            retries: self.retries + other.retries,
            throttles: self.throttles + other.throttles,
            hedges: self.hedges + other.hedges,
            hedge_wins: self.hedge_wins + other.hedge_wins,
            bytes: self.bytes + other.bytes,
            wasted_bytes: self.wasted_bytes + other.wasted_bytes,
            queued: self.queued + other.queued,
            backoff: self.backoff + other.backoff,
        }
    }
}
