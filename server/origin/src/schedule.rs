//! When to try again: a pure function of what failed, how often, and a random number.
//!
//! Full jitter: a wait is drawn from nothing up to `base * 2^(attempt - 1)`, capped. Throttles have
//! their own, longer base. A `Retry-After` of the origin is a floor; one beyond the cap ends the
//! attempts at once, because the caller can wait better than a held request can.

use std::time::Duration;

use crate::error::OriginErrorKind;

/// How often and how patiently a request is repeated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RetryPolicy {
    /// Attempts per request, the first included. A read that resumes counts on.
    pub attempts: u32,
    /// The same, for a request with a deadline while the endpoint has most of its tokens.
    pub attempts_rich: u32,
    /// First ceiling of the wait after a broken or failed attempt.
    pub transient_base: Duration,
    /// Largest ceiling of that wait.
    pub transient_cap: Duration,
    /// First ceiling of the wait after a throttled attempt.
    pub throttle_base: Duration,
    /// Largest ceiling of that wait, and the largest `Retry-After` that is waited for.
    pub throttle_cap: Duration,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self {
            attempts: 3,
            attempts_rich: 5,
            transient_base: Duration::from_millis(50),
            transient_cap: Duration::from_secs(1),
            throttle_base: Duration::from_secs(1),
            throttle_cap: Duration::from_secs(20),
        }
    }
}

/// How long to wait before the next attempt, or `None` if there shall be none.
///
/// `rich` says whether more attempts than usual may be made, `made` counts those so far, `unit` is
/// uniform in `0.0..1.0`.
pub(crate) fn next_wait(
    policy: &RetryPolicy,
    rich: bool,
    kind: OriginErrorKind,
    made: u32,
    retry_after: Option<Duration>,
    unit: f64,
) -> Option<Duration> {
    let attempts = if rich { policy.attempts.max(policy.attempts_rich) } else { policy.attempts };
    if made >= attempts || !kind.is_transient() {
        return None;
    }
    let (base, cap) = if kind == OriginErrorKind::Throttled {
        (policy.throttle_base, policy.throttle_cap)
    } else {
        (policy.transient_base, policy.transient_cap)
    };
    let doublings = made.saturating_sub(1).min(31);
    let ceiling = base.saturating_mul(1 << doublings).min(cap);
    let drawn = ceiling.mul_f64(unit.clamp(0.0, 1.0));
    match retry_after {
        None => Some(drawn),
        Some(hint) if hint > policy.throttle_cap => None,
        // The jitter comes on top, or all who were throttled together come back together.
        Some(hint) if hint >= drawn => {
            Some(hint + policy.transient_base.mul_f64(unit.clamp(0.0, 1.0)))
        }
        Some(_) => Some(drawn),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const POLICY: RetryPolicy = RetryPolicy {
        attempts: 10,
        attempts_rich: 10,
        transient_base: Duration::from_millis(50),
        transient_cap: Duration::from_secs(1),
        throttle_base: Duration::from_secs(1),
        throttle_cap: Duration::from_secs(20),
    };

    fn ceiling(kind: OriginErrorKind, made: u32) -> Duration {
        next_wait(&POLICY, false, kind, made, None, 1.0).unwrap()
    }

    #[test]
    fn ceilings_double_up_to_their_caps() {
        let transient: Vec<u128> =
            (1..=7).map(|made| ceiling(OriginErrorKind::Unreachable, made).as_millis()).collect();
        assert_eq!(transient, [50, 100, 200, 400, 800, 1000, 1000]);
        let throttled: Vec<u64> =
            (1..=7).map(|made| ceiling(OriginErrorKind::Throttled, made).as_secs()).collect();
        assert_eq!(throttled, [1, 2, 4, 8, 16, 20, 20]);
    }

    #[test]
    fn jitter_is_full() {
        let wait =
            |unit| next_wait(&POLICY, false, OriginErrorKind::Failed, 2, None, unit).unwrap();
        assert_eq!(wait(0.0), Duration::ZERO);
        assert_eq!(wait(0.5), Duration::from_millis(50));
    }

    #[test]
    fn attempts_are_limited_and_final_kinds_end_them() {
        let limited = RetryPolicy { attempts: 3, attempts_rich: 5, ..POLICY };
        let again = |rich, made| {
            next_wait(&limited, rich, OriginErrorKind::Truncated, made, None, 0.5).is_some()
        };
        assert_eq!([again(false, 2), again(false, 3)], [true, false]);
        assert_eq!([again(true, 4), again(true, 5)], [true, false]);
        for kind in [
            OriginErrorKind::NotFound,
            OriginErrorKind::Denied,
            OriginErrorKind::Unauthenticated,
            OriginErrorKind::Changed,
            OriginErrorKind::Rejected,
            OriginErrorKind::LimitExceeded,
            OriginErrorKind::Unsupported,
        ] {
            assert!(next_wait(&POLICY, false, kind, 1, None, 0.5).is_none(), "{kind:?}");
        }
    }

    #[test]
    fn a_hint_is_a_floor_and_a_far_one_ends_the_attempts() {
        let wait = |hint, unit| {
            let hint = Some(Duration::from_secs(hint));
            next_wait(&POLICY, false, OriginErrorKind::Throttled, 1, hint, unit)
        };
        assert_eq!(wait(7, 0.0), Some(Duration::from_secs(7)));
        assert_eq!(wait(7, 1.0), Some(Duration::from_millis(7_050)));
        assert_eq!(wait(0, 0.5), Some(Duration::from_millis(500)));
        assert_eq!(wait(21, 0.5), None);
    }
}
