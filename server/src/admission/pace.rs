//! How fast loads start while others wait, and what that means for one that comes now.
//!
//! A bound on how many wait does not bound how long: behind 256 loads that start five a second,
//! the last waits for most of a minute, and then has no time left for what it waited for. If all
//! that start are late, nothing is in time, however busy the daemon is. So the gaps between starts
//! are averaged while loads wait, and a load that would wait for too much of its time is refused at
//! once, when its caller can still go elsewhere.
//!
//! Nothing of one stretch of time in which loads wait is taken for granted in the next one, but for
//! one thing: where they follow each other closely, those that come before enough have started wait
//! by what was so before, or all that come in that moment would be let in, and most of them told
//! better later.
//!
//! What is too much: a quarter of its time, or half a second if that is less, so that a daemon that
//! was asked for too much is itself again soon after. Where loads take longer than that, one may
//! wait for as long as they usually take, at first. Nothing is known, and nothing refused, before
//! some loads have started while others waited.
//!
//! What it may wait is less where the load itself will take most of its time: for that, what loads
//! usually take is left to it. As that is of loads of all sizes, a sixteenth of its time may always
//! be waited.
//!
//! Half a second is for a burst, which is over when it was worked off. Where loads have waited for a
//! fifth of that without a break, and clearly more have asked lately than started, more come than can
//! be served: a queue then only makes each of them late, and no more of them end. From there on one
//! may wait for ten milliseconds, or half as long as loads usually take (controlled delay: "Fail at
//! Scale", ACM Queue 13(8), has it for servers); and always for two starts, its own and one of
//! somebody else. Where as many start as ask, a queue that is there at most times is the nature of
//! random arrivals, and passes.
//!
//! One that waits already may turn out to wait for too much of its time: it came before anything was
//! known, loads became slower, or somebody who runs less goes before it. It is told as soon as that
//! is known, with half of that time on top, so that a pace that varies turns nobody away who was let
//! in. One that has the time may wait on, however many came with it.

use std::time::Duration;

use tokio::time::Instant;

/// Gaps until something is known, and over which they are averaged.
const GAPS_MIN: u32 = 8;
const GAPS_AVERAGED: u32 = 64;

/// Of the time that a load has, what it may wait at most, as a divisor.
const WAIT_DIVISOR: u32 = 4;

/// Of that time, the part in which it should be over; and what it may wait however long others
/// take, as a divisor.
const OVER_WITHIN: f64 = 0.75;
const ALWAYS_DIVISOR: u32 = 16;

/// What any load may wait if its time allows: in a burst, and where more come than can be served.
const WAIT: Duration = Duration::from_millis(500);
const WAIT_STANDING: Duration = Duration::from_millis(10);

/// For how many starts one may wait however few run: its own, and one of somebody else whose turn it
/// is before.
const STARTS_MIN: usize = 2;

/// How long a queue has to have been there to be no burst.
const STANDING: Duration = Duration::from_millis(100);

/// For how long nobody waits at a break: a queue that is kept short is empty at times.
const BREAK: Duration = Duration::from_millis(100);

/// How long the pace of one stretch tells something of the next one.
const RECENT: Duration = Duration::from_secs(10);

/// How many times as many ask as start where more come than can be served, and how many more these
/// are at least. Those that wait have asked and not started: where few start a second, some that come
/// together are not yet too many.
const TOO_MANY: f64 = 1.5;
const TOO_MANY_MIN: f64 = 8.0;

/// Over which time these are counted: so long, or so many starts if they take longer.
const COUNTED: f64 = 1.0;
const COUNTED_STARTS: f64 = 16.0;

/// Where a load would wait.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place {
    /// Those that start before it.
    pub(super) ahead: usize,
    /// Loads that run.
    pub(super) active: usize,
}

/// The gaps between starts of one stretch of time in which loads wait; see the module's head.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Pace {
    last: Option<Instant>,
    gaps: u32,
    seconds: f64,
    /// Since when loads wait, without a break.
    since: Option<Instant>,
    /// Since when none does.
    empty: Option<Instant>,
    /// Seconds between starts in the stretch before, and when that was over.
    before: Option<(f64, Instant)>,
    /// Over all stretches.
    counts: Counts,
}

/// Loads that asked and that started lately: the longer ago, the less they count.
#[derive(Debug, Clone, Copy, Default)]
struct Counts {
    asked: f64,
    started: f64,
    at: Option<Instant>,
}

impl Counts {
    /// Goes on to `now`, with starts every so many seconds.
    fn age(&mut self, seconds: f64, now: Instant) {
        let past = self.at.map_or(Duration::ZERO, |at| now.saturating_duration_since(at));
        let left = (-past.as_secs_f64() / COUNTED.max(COUNTED_STARTS * seconds)).exp();
        (self.asked, self.started) = (self.asked * left, self.started * left);
        self.at = Some(now);
    }

    /// Whether more ask than can start.
    fn are_too_many(&self) -> bool {
        self.asked >= (TOO_MANY * self.started).max(self.started + TOO_MANY_MIN)
    }
}

impl Pace {
    /// A load asks to be let in.
    pub(super) fn asked(&mut self, now: Instant) {
        self.counts.age(self.seconds, now);
        self.counts.asked += 1.0;
    }

    /// A load starts.
    pub(super) fn started(&mut self, now: Instant) {
        self.counts.age(self.seconds, now);
        self.counts.started += 1.0;
        if let Some(last) = self.last {
            self.gaps = self.gaps.saturating_add(1);
            let gap = now.saturating_duration_since(last).as_secs_f64();
            self.seconds += (gap - self.seconds) / f64::from(self.gaps.min(GAPS_AVERAGED));
        }
        self.last = Some(now);
    }

    /// A load starts that took nobody's turn: more can be served than turns tell.
    pub(super) fn started_beside(&mut self, now: Instant) {
        self.counts.age(self.seconds, now);
        self.counts.started += 1.0;
    }

    /// Whether loads wait, now that all have started that can.
    pub(super) fn looked(&mut self, waits: bool, now: Instant) {
        if self.empty.is_some_and(|empty| now.saturating_duration_since(empty) >= BREAK) {
            // What comes next may be quite another time.
            let known = (self.gaps >= GAPS_MIN).then_some(self.seconds).zip(self.empty);
            let before = known.or(self.before);
            *self = Self { before, counts: self.counts, ..Self::default() };
        }
        if waits {
            self.empty = None;
            self.since.get_or_insert(now);
            // Loads that began together end together: what they took belongs to the next start.
            self.last.get_or_insert(now);
        } else {
            self.empty.get_or_insert(now);
            // From the last start to the next one it is not that somebody waits.
            self.last = None;
        }
    }

    /// Whether loads wait, or did so just before.
    pub(super) fn is_waited(&self) -> bool {
        self.since.is_some()
    }

    /// Whether a load that starts now, while `active` run, would hardly end in the time that it has.
    pub(super) fn is_too_late(&self, active: usize, remaining: Duration) -> bool {
        let usual = self.seconds * active as f64;
        self.gaps >= GAPS_MIN && remaining.as_secs_f64() < usual * OVER_WITHIN
    }

    /// How long a load would wait, if that is too long for one that has `remaining`.
    pub(super) fn too_long(
        &self,
        place: Place,
        remaining: Duration,
        now: Instant,
    ) -> Option<Duration> {
        if let Some(before) = self.before(now) {
            let wait = before.starts(place.ahead + 1)?;
            let bearable = before.bearable(place.active, remaining, now)?;
            return (wait > bearable).then_some(wait);
        }
        let wait = self.wait(place.ahead)?;
        (wait > self.bearable(place.active, remaining, now)?).then_some(wait)
    }

    /// The pace that was before, while loads wait and nothing else is known.
    fn before(&self, now: Instant) -> Option<Self> {
        let (seconds, over) = self.before.filter(|_| self.gaps < GAPS_MIN)?;
        let is_recent = now.saturating_duration_since(over) <= RECENT;
        (is_recent && self.empty.is_none()).then_some(Self { seconds, ..*self })
    }

    /// How long a load that waits already will go on to, if it has no time for that.
    pub(super) fn turned_out_too_long(
        &self,
        place: Place,
        remaining: Duration,
    ) -> Option<Duration> {
        let wait = self.wait(place.ahead)?;
        let bearable = of_its_time(self.starts(place.active)?, remaining);
        (wait > bearable + bearable / 2).then_some(wait)
    }

    /// How long a load waits behind `ahead` others, if that is known.
    fn wait(&self, ahead: usize) -> Option<Duration> {
        let is_known = self.gaps >= GAPS_MIN && self.empty.is_none();
        is_known.then(|| self.starts(ahead + 1)).flatten()
    }

    /// How long so many take to start.
    fn starts(&self, loads: usize) -> Option<Duration> {
        Duration::try_from_secs_f64(self.seconds * loads as f64).ok()
    }

    /// How long a load may wait.
    fn bearable(&self, active: usize, remaining: Duration, now: Instant) -> Option<Duration> {
        // As many run as start while one of them does.
        let usual = self.starts(active)?;
        let since = self.since.map_or(Duration::ZERO, |since| now.saturating_duration_since(since));
        let any = match since > STANDING && self.counts.are_too_many() {
            true => WAIT_STANDING.max(self.starts((active / 2).max(STARTS_MIN))?),
            false => WAIT.max(usual),
        };
        Some(of_its_time(usual, remaining).min(any))
    }
}

/// What a load may wait of the time that it has, where loads usually take so long.
fn of_its_time(usual: Duration, remaining: Duration) -> Duration {
    let left = remaining.mul_f64(OVER_WITHIN).saturating_sub(usual);
    (remaining / WAIT_DIVISOR).min(left.max(remaining / ALWAYS_DIVISOR))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn millis(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    fn at(ahead: usize, active: usize) -> Place {
        Place { ahead, active }
    }

    /// Of loads that started every so many milliseconds while others waited, and when the last did;
    /// twice as many asked.
    fn pace(gap: u64, starts: u64) -> (Pace, Instant) {
        let (mut pace, mut now) = (Pace::default(), Instant::now());
        for start in 0..starts {
            now += millis(if start == 0 { 0 } else { gap });
            pace.asked(now);
            pace.asked(now);
            pace.started(now);
            pace.looked(true, now);
        }
        (pace, now)
    }

    #[test]
    fn a_quarter_of_a_loads_time_is_what_it_may_wait() {
        let (pace, now) = pace(10, 11);
        assert_eq!(pace.too_long(at(23, 8), SECOND, now), None);
        let wait = pace.too_long(at(30, 8), SECOND, now).unwrap();
        assert!((wait.as_secs_f64() - 0.31).abs() < 1e-6, "{wait:?}");
        // However much time it has, it is refused where the wait is out of proportion.
        assert_eq!(pace.too_long(at(45, 8), 100 * SECOND, now), None);
        assert!(pace.too_long(at(60, 8), 100 * SECOND, now).is_some());
    }

    #[test]
    fn where_loads_are_slow_one_may_wait_as_long_as_they_take() {
        // Sixty-four run, and one is over every two seconds: each takes about two minutes, and half
        // of that one may wait.
        let (pace, now) = pace(2000, 40);
        assert_eq!(pace.too_long(at(31, 64), 900 * SECOND, now), None);
        assert!(pace.too_long(at(32, 64), 900 * SECOND, now).is_some());
        assert!(pace.too_long(at(31, 64), 240 * SECOND, now).is_some(), "it has no time for that");
    }

    #[test]
    fn what_loads_take_is_left_to_them() {
        // Sixteen run, of which one is over every 40 ms: each takes 0.64 s.
        let (pace, now) = pace(40, 11);
        let now = now - millis(300);
        assert_eq!(pace.too_long(at(1, 16), SECOND, now), None);
        assert!(pace.too_long(at(2, 16), SECOND, now).is_some());
        assert_eq!(pace.too_long(at(9, 16), 2 * SECOND, now), None);
        // Who has less time than others take is perhaps not like them.
        assert_eq!(pace.too_long(at(0, 64), SECOND, now), None);
        assert!(pace.too_long(at(1, 64), SECOND, now).is_some());
    }

    #[test]
    fn what_loads_took_that_began_together_counts() {
        let (mut pace, start) = (Pace::default(), Instant::now());
        pace.looked(true, start);
        for n in 0..16 {
            let now = start + millis(640 + n);
            pace.started(now);
            pace.looked(true, now);
        }
        // Sixteen in 0.655 s: each takes about that.
        assert!(pace.is_too_late(16, millis(490)));
        assert!(!pace.is_too_late(16, millis(500)));
        assert!(!Pace::default().is_too_late(16, Duration::ZERO), "nothing is known");
    }

    #[test]
    fn a_queue_that_stays_is_kept_short() {
        let (burst, now) = pace(1, 101);
        assert_eq!(burst.too_long(at(400, 8), 100 * SECOND, now), None);
        let (mut stays, now) = pace(1, 102);
        assert!(stays.too_long(at(400, 8), 100 * SECOND, now).is_some());
        assert!(stays.too_long(at(10, 8), 100 * SECOND, now).is_some());
        assert_eq!(stays.too_long(at(9, 8), 100 * SECOND, now), None);
        // Half as long as those take of whom so many run at once.
        assert_eq!(stays.too_long(at(63, 128), 100 * SECOND, now), None);
        assert!(stays.too_long(at(64, 128), 100 * SECOND, now).is_some());
        let (slow, then) = pace(1000, 20);
        assert_eq!(slow.too_long(at(1, 1), 100 * SECOND, then), None);
        assert!(slow.too_long(at(2, 1), 100 * SECOND, then).is_some());
        // Who waits already and has the time waits on.
        assert_eq!(stays.turned_out_too_long(at(400, 8), 100 * SECOND), None);
        assert_eq!(stays.turned_out_too_long(at(74, 8), millis(202)), None);
        assert!(stays.turned_out_too_long(at(75, 8), millis(202)).is_some());

        // That it is empty for a moment is no break. A load that comes then finds none ahead.
        stays.looked(false, now);
        assert_eq!(stays.too_long(at(0, 8), millis(1), now), None);
        stays.looked(true, now + millis(99));
        assert!(stays.too_long(at(10, 8), 100 * SECOND, now + millis(99)).is_some());
        // And the pause is not the pace of starts.
        stays.started(now + millis(100));
        assert_eq!(stays.too_long(at(9, 8), 100 * SECOND, now + millis(100)), None);
        stays.looked(false, now + millis(100));
        stays.looked(true, now + millis(200));
        assert_eq!(stays.too_long(at(400, 8), 100 * SECOND, now + millis(200)), None);
    }

    #[test]
    fn a_queue_that_is_there_all_the_time_is_none_that_stays_if_as_many_start_as_ask() {
        let (mut pace, mut now) = (Pace::default(), Instant::now());
        let mut go_on = |asks: u32| {
            for second in 0..2000 {
                now += millis(1);
                (0..asks + u32::from(second % 8 == 0)).for_each(|_| pace.asked(now));
                pace.started(now);
                pace.looked(true, now);
            }
            pace.too_long(at(400, 8), 100 * SECOND, now)
        };
        assert_eq!(go_on(1), None, "an eighth more");
        assert!(go_on(2).is_some());
        assert_eq!(go_on(1), None);
        assert!(go_on(10).is_some());
    }

    #[test]
    fn four_that_come_with_all_their_ranks_are_not_yet_too_many() {
        let (mut pace, mut now) = (Pace::default(), Instant::now());
        for _ in 0..200 {
            now += millis(10);
            pace.asked(now);
            pace.started(now);
            pace.looked(true, now);
        }
        (0..16).for_each(|_| pace.asked(now));
        assert_eq!(pace.too_long(at(16, 8), 100 * SECOND, now), None);
        (0..80).for_each(|_| pace.asked(now));
        assert!(pace.too_long(at(16, 8), 100 * SECOND, now).is_some());
    }

    #[test]
    fn nothing_is_refused_before_enough_is_known_or_when_that_is_long_ago() {
        let few = u64::from(GAPS_MIN);
        let (pace_of_few, now) = pace(10_000, few);
        assert_eq!(pace_of_few.too_long(at(9, 1), SECOND, now), None);
        let (mut known, now) = pace(10_000, few + 1);
        assert!(known.too_long(at(9, 1), SECOND, now).is_some());
        known.looked(false, now);
        assert_eq!(known.too_long(at(9, 1), SECOND, now), None, "nobody waits");
        let now = now + RECENT + BREAK / 2;
        known.looked(true, now);
        assert_eq!(known.too_long(at(9, 1), SECOND, now), None, "that was another time");
    }

    #[test]
    fn what_was_just_before_tells_how_many_may_wait_until_more_is_known() {
        let (mut pace, now) = pace(10, 26);
        pace.looked(false, now);
        let now = now + BREAK;
        pace.looked(true, now);
        // A quarter of its time at the pace of before.
        assert_eq!(pace.too_long(at(24, 8), SECOND, now), None);
        assert!(pace.too_long(at(25, 8), SECOND, now).is_some());
        assert_eq!(pace.turned_out_too_long(at(90, 8), SECOND), None, "nobody is sent away for it");
        for start in 0..=GAPS_MIN {
            pace.started(now + millis(u64::from(start)));
        }
        let now = now + millis(8);
        assert_eq!(pace.too_long(at(100, 8), SECOND, now), None, "it is faster now");
    }
}
