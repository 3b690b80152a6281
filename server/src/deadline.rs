//! The time budget of a request: one value that travels with it.
//!
//! A deadline is an instant of the runtime's clock (paused in tests). [`Deadline::cut`] bounds any
//! future by it: when it passes, the future is dropped, and with it every permit, connection and
//! waiter that it owned, so nothing outlives its budget.

use std::future::Future;
use std::time::Duration;

use tokio::time::Instant;

/// When a request has to be over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Deadline {
    at: Instant,
}

/// The deadline passed before the future was done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Expired;

impl Deadline {
    /// The deadline `budget` after `now`.
    pub(crate) fn after(now: Instant, budget: Duration) -> Self {
        Self { at: now + budget }
    }

    /// When it passes.
    pub(crate) fn at(self) -> Instant {
        self.at
    }

    /// What is left of it; zero once it has passed.
    pub(crate) fn remaining(self, now: Instant) -> Duration {
        self.at.saturating_duration_since(now)
    }

    /// Runs `future` for at most what is left. A deadline that has passed runs nothing.
    pub(crate) async fn cut<F: Future>(self, future: F) -> Result<F::Output, Expired> {
        if self.remaining(Instant::now()).is_zero() {
            return Err(Expired);
        }
        tokio::time::timeout_at(self.at, future).await.map_err(|_elapsed| Expired)
    }
}

/// Parses the value of a `grpc-timeout` header: at most eight digits and one unit of `H M S m u n`.
pub(crate) fn parse_grpc_timeout(text: &str) -> Option<Duration> {
    let unit_at = text.len().checked_sub(1)?;
    if !text.is_char_boundary(unit_at) {
        return None;
    }
    let (digits, unit) = text.split_at(unit_at);
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let count: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(count * 3600),
        "M" => Duration::from_secs(count * 60),
        "S" => Duration::from_secs(count),
        "m" => Duration::from_millis(count),
        "u" => Duration::from_micros(count),
        "n" => Duration::from_nanos(count),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grpc_timeouts_parse_or_are_refused() {
        let good = [
            ("0m", Duration::ZERO),
            ("1m", Duration::from_millis(1)),
            ("99999999n", Duration::from_nanos(99_999_999)),
            ("2H", Duration::from_secs(7200)),
            ("3M", Duration::from_secs(180)),
            ("4S", Duration::from_secs(4)),
            ("5u", Duration::from_micros(5)),
        ];
        for (text, expected) in good {
            assert_eq!(parse_grpc_timeout(text), Some(expected), "{text}");
        }
        for text in ["", "m", "1", "123456789m", "-1m", "1 m", "1x", "1mm", "1é", "+1m"] {
            assert_eq!(parse_grpc_timeout(text), None, "{text}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_passed_deadline_runs_nothing() {
        let deadline = Deadline::after(Instant::now(), Duration::ZERO);
        let mut ran = false;
        let outcome = deadline.cut(async { ran = true }).await;
        assert_eq!((outcome, ran), (Err(Expired), false));
    }

    #[tokio::test(start_paused = true)]
    async fn the_cut_comes_at_the_deadline() {
        let start = Instant::now();
        let deadline = Deadline::after(start, Duration::from_millis(250));
        assert_eq!(deadline.cut(std::future::pending::<()>()).await, Err(Expired));
        assert_eq!(start.elapsed(), Duration::from_millis(250));
    }
}
