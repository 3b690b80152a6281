//! Whether the disk is to be trusted with time: the breaker of the NVMe tier, without a disk or a
//! clock.
//!
//! ```text
//!             3 errors in a minute                 an op that hangs, or 30 minutes
//!   normal ──────────────────────► unstable ───────────────────────────────────► down
//!      ▲                              │  ▲                                        │
//!      └──── 60 clean ops in a row ───┘  └────────── 60 clean ops in a row ───────┘
//! ```
//!
//! *Normal*: everything. *Unstable*: a few reads at a time, no fills. *Down*: nothing but probes.
//! In both of the latter a probe is made every 500 ms, so that a disk that is well again is found
//! to be so without a restart. An operation that hangs takes the disk down at once: whoever waits
//! for the next one would wait as long. Figures: reliability.md, table B.3.
//!
//! Owned by the tier, under its lock.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

/// Errors within [`ERROR_WINDOW`] that make a disk unstable.
const ERRORS: usize = 3;
const ERROR_WINDOW: Duration = Duration::from_secs(60);
/// Clean operations in a row after which it is better by one state.
const CLEAN_OPS: u32 = 60;
/// Reads at a time of an unstable disk.
const UNSTABLE_READS: usize = 10;
/// How long a disk may be unstable.
const UNSTABLE_MAX: Duration = Duration::from_secs(30 * 60);
/// How often an unstable disk is probed.
pub(super) const PROBE_EVERY: Duration = Duration::from_millis(500);

/// What the disk is like.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum DiskState {
    /// It does what it is told.
    Normal,
    /// It fails now and then.
    Unstable,
    /// It fails, or does not answer.
    Down,
}

impl DiskState {
    /// The name for people and metrics.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Normal => "normal",
            Self::Unstable => "unstable",
            Self::Down => "down",
        }
    }
}

/// How an operation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ended {
    /// As it should.
    Well,
    /// With an error of the device.
    Failed,
    /// It did not, in time.
    Hung,
}

/// See the module's head.
#[derive(Debug)]
pub(super) struct Breaker {
    state: DiskState,
    since: Instant,
    errors: VecDeque<Instant>,
    clean: u32,
    reads: usize,
}

impl Breaker {
    pub(super) fn new(now: Instant) -> Self {
        let errors = VecDeque::new();
        Self { state: DiskState::Normal, since: now, errors, clean: 0, reads: 0 }
    }

    pub(super) fn state(&self) -> DiskState {
        self.state
    }

    /// An operation has ended. The new state, if it is another one.
    pub(super) fn ended(&mut self, how: Ended, now: Instant) -> Option<DiskState> {
        match how {
            Ended::Well => self.clean_op(now),
            Ended::Failed => self.failed_op(now),
            Ended::Hung => {
                self.clean = 0;
                self.turn(DiskState::Down, now)
            }
        }
    }

    /// Time has passed. The new state, if it is another one.
    pub(super) fn tick(&mut self, now: Instant) -> Option<DiskState> {
        let too_long = self.state == DiskState::Unstable && now >= self.since + UNSTABLE_MAX;
        if too_long { self.turn(DiskState::Down, now) } else { None }
    }

    /// Counts a read, if one more may be made. Ends with [`Breaker::read_ended`].
    pub(super) fn may_read(&mut self) -> bool {
        let may = match self.state {
            DiskState::Normal => true,
            DiskState::Unstable => self.reads < UNSTABLE_READS,
            DiskState::Down => false,
        };
        self.reads += usize::from(may);
        may
    }

    /// A read that was counted is over.
    pub(super) fn read_ended(&mut self) {
        self.reads = self.reads.saturating_sub(1);
    }

    /// Whether chunks may be written.
    pub(super) fn may_fill(&self) -> bool {
        self.state == DiskState::Normal
    }

    fn clean_op(&mut self, now: Instant) -> Option<DiskState> {
        self.clean = self.clean.saturating_add(1);
        if self.clean < CLEAN_OPS {
            return None;
        }
        match self.state {
            DiskState::Normal => None,
            DiskState::Unstable => self.turn(DiskState::Normal, now),
            DiskState::Down => self.turn(DiskState::Unstable, now),
        }
    }

    fn failed_op(&mut self, now: Instant) -> Option<DiskState> {
        self.clean = 0;
        self.errors.push_back(now);
        while self.errors.front().is_some_and(|at| now.duration_since(*at) > ERROR_WINDOW)
            || self.errors.len() > ERRORS
        {
            self.errors.pop_front();
        }
        let many = self.errors.len() >= ERRORS;
        if many && self.state == DiskState::Normal {
            self.turn(DiskState::Unstable, now)
        } else {
            None
        }
    }

    fn turn(&mut self, state: DiskState, now: Instant) -> Option<DiskState> {
        if self.state == state {
            return None;
        }
        self.state = state;
        self.since = now;
        self.clean = 0;
        self.errors.clear();
        Some(state)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Bench {
        breaker: Breaker,
        now: Instant,
    }

    impl Bench {
        fn new() -> Self {
            let now = Instant::now();
            Self { breaker: Breaker::new(now), now }
        }

        fn after(&mut self, time: Duration, how: Ended, times: usize) -> Option<DiskState> {
            self.now += time;
            (0..times).filter_map(|_| self.breaker.ended(how, self.now)).last()
        }
    }

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn three_errors_in_a_minute_make_it_unstable_and_two_do_not() {
        let mut bench = Bench::new();
        for _ in 0..10 {
            assert_eq!(bench.after(SECOND * 31, Ended::Failed, 1), None);
        }
        assert_eq!(bench.after(SECOND, Ended::Failed, 1), Some(DiskState::Unstable));
        assert!(!bench.breaker.may_fill());
        let reads = (0..100).filter(|_| bench.breaker.may_read()).count();
        assert_eq!(reads, UNSTABLE_READS);
        bench.breaker.read_ended();
        assert!(bench.breaker.may_read() && !bench.breaker.may_read());
    }

    #[test]
    fn sixty_clean_operations_make_it_better_by_one() {
        let mut bench = Bench::new();
        assert_eq!(bench.after(SECOND, Ended::Hung, 1), Some(DiskState::Down));
        assert!(!bench.breaker.may_read());
        assert_eq!(bench.after(SECOND, Ended::Well, 59), None);
        assert_eq!(bench.after(SECOND, Ended::Failed, 1), None, "not in a row");
        assert_eq!(bench.after(SECOND, Ended::Well, 60), Some(DiskState::Unstable));
        assert_eq!(bench.after(SECOND, Ended::Well, 60), Some(DiskState::Normal));
        assert!(bench.breaker.may_fill() && bench.breaker.may_read());
    }

    #[test]
    fn a_disk_is_not_unstable_for_ever() {
        let mut bench = Bench::new();
        bench.after(SECOND, Ended::Failed, 3);
        let at = |bench: &Bench, minutes: u32| bench.now + SECOND * 60 * minutes;
        let (before, after) = (at(&bench, 29), at(&bench, 30));
        assert_eq!(bench.breaker.tick(before), None);
        assert_eq!(bench.breaker.tick(after), Some(DiskState::Down));
        assert_eq!(bench.breaker.tick(after), None);
    }
}
