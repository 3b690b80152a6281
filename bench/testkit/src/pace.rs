//! A speed limit: when the next bytes may go.
//!
//! Bytes are booked one piece after another on a line of time; a piece may go when those before it
//! have had their time. Shared by the requests of a connection, or by all of an origin.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// Pieces per second that a limit is cut into, so that a slow body flows rather than jumps.
const PIECES_PER_SECOND: u64 = 50;

/// A limit in bytes per second, or none.
#[derive(Debug, Default)]
pub(crate) struct Pace {
    bytes_per_second: Option<u64>,
    free_at: Mutex<Option<Instant>>,
}

impl Pace {
    pub(crate) fn new(bytes_per_second: Option<u64>) -> Self {
        Self { bytes_per_second, free_at: Mutex::new(None) }
    }

    /// The most bytes to book at once.
    pub(crate) fn piece_bytes(&self) -> u64 {
        self.bytes_per_second.map_or(u64::MAX, |rate| (rate / PIECES_PER_SECOND).max(1))
    }

    /// Books `bytes`; they may go at the time given.
    pub(crate) fn book(&self, now: Instant, bytes: u64) -> Option<Instant> {
        let rate = self.bytes_per_second?.max(1);
        let nanos = u128::from(bytes) * 1_000_000_000 / u128::from(rate);
        let takes = Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
        let mut free_at = self.free_at.lock().unwrap_or_else(PoisonError::into_inner);
        let start = free_at.map_or(now, |free_at| free_at.max(now));
        *free_at = Some(start + takes);
        (start > now).then_some(start)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn bytes_are_spread_over_their_time() {
        let (pace, now) = (Pace::new(Some(1000)), Instant::now());
        assert_eq!(pace.piece_bytes(), 20);
        assert_eq!(pace.book(now, 500), None);
        assert_eq!(pace.book(now, 500), Some(now + Duration::from_millis(500)));
        let late = now + Duration::from_secs(5);
        assert_eq!(pace.book(late, 1), None, "unused time is not saved up");
    }

    #[tokio::test(start_paused = true)]
    async fn no_limit_never_waits() {
        assert_eq!(Pace::new(None).book(Instant::now(), u64::MAX), None);
    }
}
