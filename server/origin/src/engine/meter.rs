//! What an endpoint has brought per second while it was asked for as much as it may be.
//!
//! Only such time says what an endpoint can do: a load of a few parts, or one whose client is slow,
//! asks for less than there is. Time in which every permit is out is cut into windows, and the best
//! window of the last minute is the rate that is known to be possible. It is an upper bound of what
//! can be counted on, which is what a refusal needs; and because who is refused measures nothing, a
//! slow minute is forgotten after one.
//!
//! Times and counts come in as arguments; owned by the endpoint, under its lock.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

/// Shorter windows would show the rhythm of the parts.
const WINDOW: Duration = Duration::from_secs(1);
/// Windows before anything is known.
const WINDOWS_MIN: usize = 3;
/// How long a window counts.
const KEPT: Duration = Duration::from_secs(60);

/// The windows.
#[derive(Debug, Default)]
pub(crate) struct Meter {
    /// Begin of the window that is open, and what had been received then.
    open: Option<(Instant, u64)>,
    /// Ends and bytes per second of those that were full, oldest first.
    windows: VecDeque<(Instant, f64)>,
}

impl Meter {
    /// Whether the endpoint is asked for as much as it may be from now on, and what it has sent in
    /// all until now.
    pub(crate) fn look(&mut self, now: Instant, full: bool, received: u64) {
        if let Some((opened, before)) = self.open {
            let time = now.saturating_duration_since(opened);
            if time < WINDOW && full {
                return;
            }
            if time >= WINDOW {
                self.forget(now);
                let bytes = received.saturating_sub(before);
                self.windows.push_back((now, bytes as f64 / time.as_secs_f64()));
            }
        }
        self.open = full.then_some((now, received));
    }

    /// Bytes per second that were reached lately, if enough is known.
    pub(crate) fn sustained(&self, now: Instant) -> Option<f64> {
        let recent = self.windows.iter().filter(|(end, _)| now < *end + KEPT);
        let rates: Vec<f64> = recent.map(|(_, rate)| *rate).collect();
        let best = rates.iter().copied().fold(0.0, f64::max);
        (rates.len() >= WINDOWS_MIN && best > 0.0).then_some(best)
    }

    fn forget(&mut self, now: Instant) {
        while self.windows.front().is_some_and(|(end, _)| *end + KEPT <= now) {
            self.windows.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    /// An endpoint that brings so many bytes in each millisecond.
    struct Sim {
        meter: Meter,
        now: Instant,
        received: u64,
    }

    impl Sim {
        fn new() -> Self {
            Self { meter: Meter::default(), now: Instant::now(), received: 0 }
        }

        fn run(&mut self, millis: u32, full: bool, bytes_per_ms: u64) {
            for _ in 0..millis / 10 {
                self.meter.look(self.now, full, self.received);
                self.now += 10 * MS;
                self.received += 10 * bytes_per_ms;
            }
            self.meter.look(self.now, full, self.received);
        }

        /// In bytes per millisecond.
        fn sustained(&self) -> Option<f64> {
            self.meter.sustained(self.now).map(|rate| (rate / 1000.0).round())
        }
    }

    #[test]
    fn three_full_windows_are_enough_and_two_are_not() {
        let mut sim = Sim::new();
        sim.run(2900, true, 70);
        assert_eq!(sim.sustained(), None);
        sim.run(100, true, 70);
        assert_eq!(sim.sustained(), Some(70.0));
    }

    #[test]
    fn time_in_which_more_could_have_been_asked_for_says_nothing() {
        let mut sim = Sim::new();
        for _ in 0..20 {
            // Never a whole second in one piece.
            sim.run(900, true, 100);
            sim.run(500, false, 1000);
        }
        assert_eq!(sim.sustained(), None);
        sim.run(10_000, false, 1000);
        assert_eq!(sim.sustained(), None);
    }

    #[test]
    fn the_best_of_the_last_minute_counts() {
        let mut sim = Sim::new();
        sim.run(5000, true, 300);
        sim.run(30_000, true, 10);
        assert_eq!(sim.sustained(), Some(300.0));
        sim.run(30_000, true, 10);
        assert_eq!(sim.sustained(), Some(10.0));
        sim.run(61_000, false, 0);
        assert_eq!(sim.sustained(), None, "all of it is long ago");
    }

    #[test]
    fn an_endpoint_that_brings_nothing_has_no_rate() {
        let mut sim = Sim::new();
        sim.run(10_000, true, 0);
        assert_eq!(sim.sustained(), None);
    }
}
