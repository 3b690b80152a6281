//! Points in time as single numbers.
//!
//! A load notes some five points a chunk, and its path and its charges compare and subtract each of
//! them many times over. An `Instant` is a pair of numbers with a carry between them, which took a
//! sixth of all that; a [`Moment`] counts nanoseconds since [`EPOCH`]. The two convert into each other
//! without loss for as long as anything lasts here. Nothing is owned.

use std::ops::{Add, Sub};
use std::sync::LazyLock;
use std::time::Duration;

use tokio::time::Instant;

/// How long before the first moment that is asked about the count begins: longer than any load, and
/// than whatever a load joined.
const BEFORE: Duration = Duration::from_secs(1 << 20);

/// Where the count begins. Nobody tells it from any other, so it is no setting and no argument.
static EPOCH: LazyLock<Instant> = LazyLock::new(|| {
    let now = Instant::now();
    now.checked_sub(BEFORE).unwrap_or(now)
});

/// A point in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Moment(u64);

impl Moment {
    /// The time since an earlier one; zero if that is later.
    pub(crate) fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

impl From<Instant> for Moment {
    fn from(instant: Instant) -> Self {
        let since = instant.saturating_duration_since(*EPOCH);
        // 584 years of them fit.
        Self(u64::try_from(since.as_nanos()).unwrap_or(u64::MAX))
    }
}

impl From<Moment> for Instant {
    fn from(moment: Moment) -> Self {
        *EPOCH + Duration::from_nanos(moment.0)
    }
}

impl Sub for Moment {
    type Output = Duration;

    fn sub(self, earlier: Self) -> Duration {
        self.since(earlier)
    }
}

impl Sub<Duration> for Moment {
    type Output = Self;

    fn sub(self, time: Duration) -> Self {
        Self(self.0.saturating_sub(nanos(time)))
    }
}

impl Add<Duration> for Moment {
    type Output = Self;

    fn add(self, time: Duration) -> Self {
        Self(self.0.saturating_add(nanos(time)))
    }
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_is_the_instant_it_was_made_of() {
        let now = Instant::now();
        let moment = Moment::from(now);
        assert_eq!(Instant::from(moment), now);
        let later = now + Duration::new(3, 7);
        assert_eq!(Moment::from(later) - moment, Duration::new(3, 7));
        assert_eq!(moment + Duration::new(3, 7), Moment::from(later));
        assert_eq!(Moment::from(later) - Duration::new(3, 7), moment);
        assert_eq!(moment.since(Moment::from(later)), Duration::ZERO);
        let before = now.checked_sub(Duration::from_secs(3600)).unwrap();
        assert_eq!(moment - Moment::from(before), Duration::from_secs(3600), "so long before too");
    }
}
