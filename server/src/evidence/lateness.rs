//! How late the runtime was lately: the worst of the last minute.
//!
//! Owns six maxima of ten seconds each. Whoever measures tells it; whoever asks gets the greatest.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// Time of one maximum.
const SPAN: Duration = Duration::from_secs(10);

/// Maxima that are kept.
const SPANS: usize = 6;

/// See the module's head.
#[derive(Debug, Default)]
pub(crate) struct Lateness(Mutex<VecDeque<(Instant, Duration)>>);

impl Lateness {
    /// A wake-up came so much too late.
    pub(crate) fn saw(&self, late: Duration) {
        let (mut spans, now) = (self.lock(), Instant::now());
        match spans.back_mut().filter(|(begun, _)| now < *begun + SPAN) {
            Some((_, worst)) => *worst = late.max(*worst),
            None => spans.push_back((now, late)),
        }
        while spans.len() > SPANS {
            spans.pop_front();
        }
    }

    /// The worst of the last minute; none if nothing was measured then.
    pub(crate) fn worst(&self) -> Option<Duration> {
        let (spans, now) = (self.lock(), Instant::now());
        let age = SPAN.saturating_mul(u32::try_from(SPANS).unwrap_or(u32::MAX));
        let recent = spans.iter().filter(|(begun, _)| now < *begun + age);
        recent.map(|(_, worst)| *worst).max()
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<(Instant, Duration)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_worst_of_the_last_minute_is_told() {
        let lateness = Lateness::default();
        assert_eq!(lateness.worst(), None);
        let ms = Duration::from_millis;
        lateness.saw(ms(300));
        for _ in 0..500 {
            tokio::time::advance(ms(100)).await;
            lateness.saw(ms(2));
        }
        assert_eq!(lateness.worst(), Some(ms(300)));
        for _ in 0..200 {
            tokio::time::advance(ms(100)).await;
            lateness.saw(ms(2));
        }
        assert_eq!(lateness.worst(), Some(ms(2)));
        tokio::time::advance(ms(70_000)).await;
        assert_eq!(lateness.worst(), None, "nothing was measured");
    }
}
