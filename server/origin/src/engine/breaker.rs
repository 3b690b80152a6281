//! The breaker of an endpoint: closed, open, or looking whether it may close.
//!
//! Counts are exact: ten buckets of a second, each forgotten whole when it is ten old. An open
//! breaker lets nothing through; when its time is over one request goes as a probe, and the result
//! of that one decides. Times come in as arguments; owned by the endpoint, under its lock.

use std::time::Duration;

use tokio::time::Instant;

use super::jittered;

/// Counts are kept for so many buckets.
const BUCKETS: usize = 10;
const BUCKET: Duration = Duration::from_secs(1);
/// Fewer requests than this within the window say nothing.
const REQUESTS_MIN: u32 = 20;

/// Whether a request may go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Admission {
    /// It may.
    Pass,
    /// It may, and its result decides: it must be recorded or abandoned.
    Probe,
    /// Not before so long.
    Refused(Duration),
}

/// What a breaker shows of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BreakerState {
    /// Requests pass.
    Closed,
    /// Requests are refused for so long.
    Open(Duration),
    /// The next request, or the one under way, is a probe.
    HalfOpen,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Closed,
    Open { until: Instant, failed_probes: u32 },
    Probing { failed_probes: u32 },
}

/// A breaker.
#[derive(Debug)]
pub(crate) struct Breaker {
    epoch: Instant,
    /// How long it stays open first; doubled at each probe that fails.
    open_first: Duration,
    open_cap: Duration,
    state: State,
    counts: [Bucket; BUCKETS],
    turns: BreakerTurns,
}

/// How often a breaker changed its state.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct BreakerTurns {
    /// To open, a failed probe included.
    pub opened: u64,
    /// To letting a probe through.
    pub half_opened: u64,
    /// To closed.
    pub closed: u64,
}

#[derive(Debug, Clone, Copy, Default)]
struct Bucket {
    number: usize,
    good: u32,
    failed: u32,
}

impl Breaker {
    pub(crate) fn new(now: Instant, open_first: Duration, open_cap: Duration) -> Self {
        let counts = Default::default();
        let turns = BreakerTurns::default();
        Self { epoch: now, open_first, open_cap, state: State::Closed, counts, turns }
    }

    /// Asks for one request.
    pub(crate) fn admit(&mut self, now: Instant) -> Admission {
        match self.state {
            State::Closed => Admission::Pass,
            State::Open { until, .. } if now < until => Admission::Refused(until - now),
            State::Open { failed_probes, .. } => {
                self.state = State::Probing { failed_probes };
                self.turns.half_opened += 1;
                Admission::Probe
            }
            State::Probing { .. } => Admission::Refused(self.open_first),
        }
    }

    /// Whether a request would be refused now.
    pub(crate) fn refuses(&self, now: Instant) -> Option<Duration> {
        match self.state {
            State::Open { until, .. } if now < until => Some(until - now),
            State::Probing { .. } => Some(self.open_first),
            State::Closed | State::Open { .. } => None,
        }
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.state == State::Closed
    }

    /// The result of a request. `unit` is uniform in `0.0..1.0`.
    pub(crate) fn record(&mut self, now: Instant, good: bool, probe: bool, unit: f64) {
        match (self.state, probe) {
            (State::Probing { .. }, true) if good => {
                self.state = State::Closed;
                self.turns.closed += 1;
                self.counts = Default::default();
            }
            (State::Probing { failed_probes }, true) => {
                self.open(now, failed_probes.saturating_add(1), unit);
            }
            (State::Closed, _) => {
                self.count(now, good);
                let (good, failed) = self.sums(now);
                if good + failed >= REQUESTS_MIN && failed >= good {
                    self.open(now, 0, unit);
                }
            }
            // It was sent before the breaker opened: known already.
            (State::Open { .. } | State::Probing { .. }, _) => {}
        }
    }

    /// A probe that ended without a result: the next request is one.
    pub(crate) fn abandon(&mut self, now: Instant) {
        if let State::Probing { failed_probes } = self.state {
            self.state = State::Open { until: now, failed_probes };
        }
    }

    pub(crate) fn state(&self, now: Instant) -> BreakerState {
        match self.state {
            State::Closed => BreakerState::Closed,
            State::Open { until, .. } if now < until => BreakerState::Open(until - now),
            State::Open { .. } | State::Probing { .. } => BreakerState::HalfOpen,
        }
    }

    pub(crate) fn turns(&self) -> BreakerTurns {
        self.turns
    }

    fn open(&mut self, now: Instant, failed_probes: u32, unit: f64) {
        let time = self.open_first.saturating_mul(1 << failed_probes.min(16)).min(self.open_cap);
        self.state = State::Open { until: now + jittered(time, unit), failed_probes };
        self.turns.opened += 1;
    }

    fn number(&self, now: Instant) -> usize {
        let seconds = now.saturating_duration_since(self.epoch).as_secs();
        // From one on: zero is a bucket that was never used.
        1 + usize::try_from(seconds / BUCKET.as_secs()).unwrap_or(usize::MAX - 1 - BUCKETS)
    }

    fn count(&mut self, now: Instant, good: bool) {
        let number = self.number(now);
        let Some(bucket) = self.counts.get_mut(number % BUCKETS) else { return };
        if bucket.number != number {
            *bucket = Bucket { number, ..Bucket::default() };
        }
        if good {
            bucket.good += 1;
        } else {
            bucket.failed += 1;
        }
    }

    fn sums(&self, now: Instant) -> (u32, u32) {
        let number = self.number(now);
        self.counts
            .iter()
            .filter(|bucket| bucket.number > 0 && bucket.number + BUCKETS > number)
            .fold((0, 0), |(good, failed), b| (good + b.good, failed + b.failed))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MIDDLE: f64 = 0.5;
    const OPEN_FIRST: Duration = Duration::from_secs(1);

    fn breaker(now: Instant) -> Breaker {
        Breaker::new(now, OPEN_FIRST, Duration::from_secs(30))
    }

    fn after(now: Instant, millis: u64) -> Instant {
        now + Duration::from_millis(millis)
    }

    fn opened(now: Instant) -> Breaker {
        let mut breaker = breaker(now);
        for _ in 0..20 {
            assert_eq!(breaker.admit(now), Admission::Pass);
            breaker.record(now, false, false, MIDDLE);
        }
        breaker
    }

    #[test]
    fn twenty_requests_of_which_half_fail_open_it() {
        let now = Instant::now();
        let mut breaker = breaker(now);
        for number in 0..19 {
            breaker.record(now, number % 2 == 0, false, MIDDLE);
        }
        assert!(breaker.is_closed());
        breaker.record(now, false, false, MIDDLE);
        assert_eq!(breaker.state(now), BreakerState::Open(OPEN_FIRST));
        assert_eq!(breaker.admit(after(now, 400)), Admission::Refused(Duration::from_millis(600)));
    }

    #[test]
    fn one_probe_at_a_time_and_its_wait_doubles() {
        let mut now = Instant::now();
        let mut breaker = opened(now);
        for wait in [1, 2, 4, 8, 16, 30, 30] {
            assert_eq!(breaker.state(now), BreakerState::Open(Duration::from_secs(wait)));
            now += Duration::from_secs(wait);
            assert_eq!(breaker.admit(now), Admission::Probe);
            assert!(matches!(breaker.admit(now), Admission::Refused(_)));
            breaker.record(now, true, false, MIDDLE);
            assert!(!breaker.is_closed(), "an old request's success is no probe's");
            breaker.record(now, false, true, MIDDLE);
        }
        now += Duration::from_secs(30);
        assert_eq!(breaker.admit(now), Admission::Probe);
        breaker.record(now, true, true, MIDDLE);
        assert!(breaker.is_closed());
        breaker.record(now, false, false, MIDDLE);
        assert!(breaker.is_closed(), "the counts begin anew");
    }

    #[test]
    fn an_abandoned_probe_is_followed_by_another() {
        let now = Instant::now();
        let mut breaker = opened(now);
        let then = after(now, 1000);
        assert_eq!(breaker.admit(then), Admission::Probe);
        breaker.abandon(then);
        assert_eq!(breaker.admit(then), Admission::Probe);
    }

    proptest! {
        /// Closed or open as a list of everything that happened says.
        #[test]
        fn counts_are_exact(steps in prop::collection::vec((0_u64..1500, any::<bool>()), 1..300)) {
            let begun = Instant::now();
            let mut breaker = breaker(begun);
            let mut all: Vec<(u64, bool)> = Vec::new();
            let mut millis = 0;
            for (pause, good) in steps {
                millis += pause;
                breaker.record(after(begun, millis), good, false, MIDDLE);
                all.push((millis / 1000, good));
                let recent: Vec<bool> = all
                    .iter()
                    .filter(|(second, _)| second + 10 > millis / 1000)
                    .map(|(_, good)| *good)
                    .collect();
                let failed = recent.iter().filter(|good| !**good).count();
                let open = recent.len() >= 20 && failed * 2 >= recent.len();
                prop_assert_eq!(!breaker.is_closed(), open);
                if open { break }
            }
        }
    }
}
