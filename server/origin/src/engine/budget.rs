//! What retries and hedges may cost: a token bucket per endpoint.
//!
//! A retry takes tokens before it is made, and gives them back if it succeeds; a call that needed
//! none adds one. So an endpoint that fails now and then is retried freely, and one that is down is
//! retried for a moment and then no more, however many callers there are. Owned by the endpoint,
//! under its lock.

use crate::error::OriginErrorKind;

/// A full bucket.
pub(crate) const TOKENS_MAX: u32 = 500;
/// A retry after a broken or failed attempt, or one that timed out; a hedge.
const TRANSIENT_COST: u32 = 14;
/// A retry after a throttled attempt: cheaper, because it also waits longer.
const THROTTLE_COST: u32 = 5;

/// The bucket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Budget {
    tokens: u32,
}

impl Budget {
    /// A full one.
    pub(crate) fn new() -> Self {
        Self { tokens: TOKENS_MAX }
    }

    /// Takes what a retry after such a failure costs; none if that is not there.
    pub(crate) fn take(&mut self, kind: OriginErrorKind) -> Option<u32> {
        let cost = if kind == OriginErrorKind::Throttled { THROTTLE_COST } else { TRANSIENT_COST };
        self.tokens = self.tokens.checked_sub(cost)?;
        Some(cost)
    }

    /// A call that succeeded, and what its last retry had taken.
    pub(crate) fn succeeded(&mut self, taken: Option<u32>) {
        self.tokens = self.tokens.saturating_add(taken.unwrap_or(1)).min(TOKENS_MAX);
    }

    /// Whether more than half is left: calls with time may then have more attempts.
    pub(crate) fn is_rich(&self) -> bool {
        self.tokens > TOKENS_MAX / 2
    }

    pub(crate) fn tokens(&self) -> u32 {
        self.tokens
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_outage_is_retried_a_hundred_times_at_most() {
        let mut budget = Budget::new();
        let taken = (0..1000).filter(|_| budget.take(OriginErrorKind::Throttled).is_some()).count();
        assert_eq!(taken, 100);
        let mut budget = Budget::new();
        let taken = (0..1000).filter(|_| budget.take(OriginErrorKind::Timeout).is_some()).count();
        assert_eq!((taken, budget.tokens()), (35, 10));
        assert!(!budget.is_rich());
    }

    #[test]
    fn what_helped_is_given_back() {
        let mut budget = Budget::new();
        let cost = budget.take(OriginErrorKind::Unreachable);
        budget.succeeded(cost);
        assert_eq!(budget, Budget::new());
        assert!(budget.is_rich());
    }

    proptest! {
        /// Whatever the mix: retries that failed are at most what the bucket and the good calls
        /// pay.
        #[test]
        fn failed_retries_are_paid_for(steps in prop::collection::vec((0_u8..4, any::<bool>()), 0..2000)) {
            let mut budget = Budget::new();
            let (mut good, mut spent) = (0_u32, 0_u32);
            for (what, helps) in steps {
                let kind = match what {
                    0 => { budget.succeeded(None); good += 1; continue }
                    1 => OriginErrorKind::Throttled,
                    2 => OriginErrorKind::Timeout,
                    _ => OriginErrorKind::Truncated,
                };
                let before = budget.tokens();
                match budget.take(kind) {
                    Some(cost) if helps => budget.succeeded(Some(cost)),
                    Some(cost) => spent += cost,
                    None => prop_assert!(before < TRANSIENT_COST),
                }
                prop_assert!(budget.tokens() <= TOKENS_MAX);
                prop_assert!(spent <= TOKENS_MAX + good);
            }
        }
    }
}
