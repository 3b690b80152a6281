//! How many loads run at once, where more of them would bring no more.
//!
//! Loads share what brings their bytes: a link, an origin, a disk, the CPUs. Up to some number each
//! further one brings more; beyond it each only gets a smaller part of the same, and all of them end
//! later. What that number is depends on where the bytes come from and on the machine, and changes
//! with both, so it is measured: how many chunks loads get in a second while so many run
//! (that is the load-dependent service rate of queueing theory, and what the concurrency limiters of
//! Netflix and Envoy look for by the round trip, which says nothing where loads are of all sizes).
//! The numbers are taken together in [`TOPS`], half an octave each.
//!
//! The [`limit`](Width::limit) is the smallest number, and no less than four, at which there is as much
//! as at any larger one that is known. What was not seen for [`FORGOTTEN`] is not known any more. So that it is found out
//! anew, one level above the limit is let in where nothing above is known, and one below is tried
//! while loads wait, where that is not known or [`STALE`]; each until it is. A daemon that knows
//! nothing sets no limit: it then learns from what comes. More may bring more for long, and slowly:
//! the more loads, the more of them want the same chunk, which is brought once. Therefore all levels
//! are compared, and not each with the next.
//!
//! They are seen at different times, and the machine, its neighbours and the link are faster at one
//! than at another. So where the rate of the level that runs changes although that was well known,
//! what is known of the others is taken to change with it: else loads would be let in, level after
//! level, for what more of them brought in a better minute. Where it changes by much ([`ANOTHER`]),
//! it is another world, and nothing is known of the others.
//!
//! The limit is for loads that are short beside what one may wait. It keeps nobody waiting for longer
//! than [`PATIENCE`]: who waits behind long loads, or behind some that stand still since their origin
//! or their client does, starts beside them then.

use std::time::Duration;

use tokio::time::Instant;

/// The largest number of each level. Beyond the last there is no limit.
const TOPS: [usize; 18] = [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512];
/// The level of the least that may run, whatever they bring.
const LEAST: usize = 3;

/// How long one waits for others to make room, though there are places.
pub(super) const PATIENCE: Duration = Duration::from_secs(1);

/// Chunks, and seconds, after which a level is known; or seconds alone, if few come.
const KNOWN_CHUNKS: f64 = 128.0;
const KNOWN_SECONDS_MIN: f64 = 1.0;
const KNOWN_SECONDS: f64 = 8.0;

/// Over how much of the past a rate is taken: so many chunks, but so many seconds at least, and not
/// more of them than that.
const KEPT_CHUNKS: f64 = 2048.0;
const KEPT_SECONDS_MIN: f64 = 4.0;
const KEPT_SECONDS: f64 = 16.0;

/// How long a level is known that was not seen again.
const FORGOTTEN: Duration = Duration::from_secs(120);
/// After which time what was seen then does not count beside what is seen now, and the level below
/// is tried again.
const STALE: Duration = Duration::from_secs(30);

/// As much as at a larger number, of rates that are known to some hundredths each. What is given up
/// does not add up from level to level: all that are known are compared.
const ENOUGH: f64 = 0.9;

/// From which change of a rate on what was known of others tells nothing.
const ANOTHER: f64 = 1.5;

/// What loads got while so many ran.
#[derive(Debug, Clone, Copy, Default)]
struct Level {
    chunks: f64,
    seconds: f64,
    seen: Option<Instant>,
    /// Chunks a second, when it was looked at last since as much was seen as is kept.
    settled: Option<f64>,
    /// By how much others have changed since this one ran.
    since: f64,
}

impl Level {
    /// Nothing is known of it yet.
    fn new(now: Instant) -> Self {
        Self { seen: Some(now), since: 1.0, ..Self::default() }
    }

    /// So many seconds more. By how much its rate changed, if it was well known.
    fn ran(&mut self, seconds: f64, now: Instant) -> Option<f64> {
        self.seen = Some(now);
        self.seconds += seconds;
        let over = (self.chunks / KEPT_CHUNKS).min(self.seconds / KEPT_SECONDS_MIN);
        let over = over.max(self.seconds / KEPT_SECONDS);
        if over <= 1.0 {
            return None;
        }
        self.chunks /= over;
        self.seconds /= over;
        let rate = self.chunks / self.seconds;
        let before = self.settled.replace(rate);
        before.map(|before| rate / before).filter(|change| change.is_finite() && *change > 0.0)
    }

    /// Another one brings so many times as much as before.
    fn changes(&mut self, change: f64) {
        self.since *= change;
        if !(1.0 / ANOTHER..=ANOTHER).contains(&self.since) {
            *self = Self::default();
        }
    }

    /// It runs again: what was seen of it is taken as it would be now.
    fn begins(&mut self, now: Instant) {
        if !self.was_seen_within(STALE, now) {
            *self = Self::new(now);
        }
        self.chunks *= self.since;
        self.settled = self.settled.map(|rate| rate * self.since);
        self.since = 1.0;
    }

    fn was_seen_within(&self, limit: Duration, now: Instant) -> bool {
        self.seen.is_some_and(|seen| now.saturating_duration_since(seen) <= limit)
    }

    /// Chunks a second, if that is known.
    fn rate(&self, now: Instant) -> Option<f64> {
        let enough = self.chunks >= KNOWN_CHUNKS && self.seconds >= KNOWN_SECONDS_MIN
            || self.seconds >= KNOWN_SECONDS;
        let is_known = enough && self.was_seen_within(FORGOTTEN, now);
        is_known.then(|| self.since * self.chunks / self.seconds)
    }
}

/// See the module's head.
#[derive(Debug, Clone, Copy)]
pub(super) struct Width {
    levels: [Level; TOPS.len()],
    /// Where it is, and since when; none while nothing runs, or more than are looked at.
    at: Option<usize>,
    since: Instant,
}

impl Width {
    pub(super) fn new(now: Instant) -> Self {
        Self { levels: [Level::default(); TOPS.len()], at: None, since: now }
    }

    /// From now on so many run.
    pub(super) fn run(&mut self, active: usize, now: Instant) {
        let ran = now.saturating_duration_since(self.since);
        let level = self.at.and_then(|at| self.levels.get_mut(at));
        let change = level.and_then(|level| level.ran(ran.as_secs_f64(), now));
        // What fewer bring than ever run while others wait is up to each of them.
        if let Some(change) = change.filter(|_| self.at >= Some(LEAST)) {
            let others = self.levels.iter_mut().enumerate().filter(|(n, _)| Some(*n) != self.at);
            others.for_each(|(_, level)| level.changes(change));
        }
        let at = (active > 0).then(|| level_of(active)).flatten();
        if let Some(level) = at.filter(|_| at != self.at).and_then(|at| self.levels.get_mut(at)) {
            level.begins(now);
        }
        (self.at, self.since) = (at, now);
    }

    /// A load has one more of its chunks.
    pub(super) fn had_chunk(&mut self) {
        if let Some(level) = self.at.and_then(|at| self.levels.get_mut(at)) {
            level.chunks += 1.0;
        }
    }

    /// How many may run, as far as is known; `waited` is whether others wait.
    pub(super) fn limit(&self, waited: bool, now: Instant) -> usize {
        let rates = self.levels.map(|level| level.rate(now));
        let Some(highest) = rates.iter().rposition(Option::is_some) else { return usize::MAX };
        let (mut above, mut enough) = (0.0_f64, None);
        for (level, rate) in rates.iter().enumerate().skip(LEAST).rev() {
            let Some(rate) = *rate else { continue };
            if above > 0.0 && rate >= ENOUGH * above {
                enough = Some(level);
            }
            above = above.max(rate);
        }
        let limit = enough.unwrap_or(highest).max(LEAST);
        let below = limit.checked_sub(1).filter(|below| waited && *below >= LEAST);
        let is_open = |below: &usize| {
            let level = self.levels.get(*below);
            level.is_some_and(|level| {
                level.rate(now).is_none() || !level.was_seen_within(STALE, now)
            })
        };
        match below.filter(is_open) {
            Some(below) => top(below),
            // As far as is known, more bring more.
            None if enough.is_none() => top(limit + 1),
            None => top(limit),
        }
    }
}

fn top(level: usize) -> usize {
    TOPS.get(level).copied().unwrap_or(usize::MAX)
}

fn level_of(active: usize) -> Option<usize> {
    let level = TOPS.partition_point(|top| *top < active);
    (level < TOPS.len()).then_some(level)
}

#[cfg(test)]
mod tests {
    use super::*;

    const STEP: Duration = Duration::from_millis(1);

    /// A service that has `all` chunks a second, and no more than `each` to one load.
    #[derive(Debug, Clone, Copy)]
    struct Service {
        all: f64,
        each: f64,
    }

    /// Loads at a service, while more wait than can start.
    struct Sim {
        width: Width,
        now: Instant,
        /// What each that runs has still to get.
        running: Vec<f64>,
        ended: usize,
        most: usize,
        seed: u32,
    }

    impl Sim {
        fn new() -> Self {
            let now = Instant::now();
            Self { width: Width::new(now), now, running: Vec::new(), ended: 0, most: 0, seed: 7 }
        }

        /// Goes on for some seconds, in which a load of `offered` a second comes; tells how many
        /// ended in one.
        fn go_on(&mut self, seconds: u32, service: Service, offered: Option<f64>) -> f64 {
            (self.ended, self.most) = (0, 0);
            let mut due = 0.0;
            for _ in 0..seconds * 1000 {
                self.now += STEP;
                due += offered.map_or(f64::INFINITY, |offered| offered / 1000.0);
                let limit = self.width.limit(offered.is_none(), self.now).min(64);
                due -= self.start(limit, due);
                self.width.run(self.running.len(), self.now);
                self.most = self.most.max(self.running.len());
                self.step(service);
            }
            self.ended as f64 / f64::from(seconds)
        }

        /// Starts loads of four to twelve chunks each, of those that are due; tells how many.
        fn start(&mut self, limit: usize, due: f64) -> f64 {
            let mut started = 0.0;
            while self.running.len() < limit && due - started >= 1.0 {
                self.seed = self.seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                self.running.push(4.0 + 8.0 * f64::from(self.seed >> 8) / f64::from(1 << 24));
                started += 1.0;
            }
            started
        }

        /// What they get in a thousandth of a second.
        fn step(&mut self, service: Service) {
            let share = (service.all / self.running.len() as f64).min(service.each) / 1000.0;
            // Less than one chunk each.
            let ends_a_chunk = |left: &mut f64| {
                let whole = left.ceil();
                *left -= share;
                left.max(0.0).ceil() < whole
            };
            let chunks = self.running.iter_mut().map(ends_a_chunk).filter(|ends| *ends).count();
            (0..chunks).for_each(|_| self.width.had_chunk());
            let before = self.running.len();
            self.running.retain(|left| *left > 0.0);
            self.ended += before - self.running.len();
        }

        fn limit(&self) -> usize {
            self.width.limit(true, self.now)
        }
    }

    #[test]
    fn a_daemon_that_knows_nothing_sets_no_limit() {
        let sim = Sim::new();
        assert_eq!(sim.limit(), usize::MAX);
    }

    #[test]
    fn no_more_run_than_bring_more() {
        // Ten loads take all that there is.
        let service = Service { all: 800.0, each: 80.0 };
        let mut sim = Sim::new();
        let rate = sim.go_on(20, service, None);
        assert!(rate >= 95.0, "nothing is lost while it is found out: {rate}");
        let rate = sim.go_on(90, service, None);
        assert!(rate >= 97.0, "{rate}");
        assert!(
            sim.most <= 16 && (8..=12).contains(&sim.limit()),
            "{} of {}",
            sim.limit(),
            sim.most
        );
    }

    #[test]
    fn what_was_learned_before_anybody_waited_is_of_use() {
        let service = Service { all: 800.0, each: 80.0 };
        let mut sim = Sim::new();
        // Below what it can do, and then a little more than that for a moment.
        sim.go_on(10, service, Some(90.0));
        sim.go_on(4, service, Some(115.0));
        sim.go_on(1, service, None);
        assert!(sim.most <= 24, "{}", sim.most);
    }

    #[test]
    fn a_service_that_changes_is_learned_anew() {
        let mut sim = Sim::new();
        sim.go_on(20, Service { all: 800.0, each: 80.0 }, None);
        // Each is slower by itself, and together they could be as fast.
        let wide = Service { all: 800.0, each: 25.0 };
        sim.go_on(60, wide, None);
        let rate = sim.go_on(60, wide, None);
        assert!(rate >= 95.0 && sim.limit() == 32, "{rate} with {}", sim.limit());
        // One alone takes all.
        let narrow = Service { all: 800.0, each: 800.0 };
        sim.go_on(60, narrow, None);
        let rate = sim.go_on(60, narrow, None);
        assert!(rate >= 95.0 && sim.limit() == 4, "{rate} with {}", sim.limit());
    }

    /// What a machine brings that is faster in one minute than in another.
    #[test]
    fn a_better_minute_is_not_taken_for_what_more_loads_bring() {
        let at = |pace: f64| Service { all: 800.0 * pace, each: 200.0 * pace };
        let mut sim = Sim::new();
        sim.go_on(60, at(1.0), None);
        assert_eq!(sim.limit(), 4);
        // Long enough for what was known of more to be forgotten, and looked for again.
        sim.go_on(90, at(1.2), None);
        for pace in [1.0, 0.9, 1.1, 0.85] {
            let rate = sim.go_on(25, at(pace), None);
            assert!(sim.most <= 6 && rate >= 95.0 * pace, "{} run, {rate} at {pace}", sim.most);
        }
    }

    #[test]
    fn what_more_brought_before_is_not_looked_for_when_all_is_slower() {
        let mut sim = Sim::new();
        sim.go_on(60, Service { all: 800.0, each: 25.0 }, None);
        assert_eq!(sim.limit(), 32);
        // A tenth of it is left, and each could have as much of that as before.
        let little = Service { all: 80.0, each: 25.0 };
        sim.go_on(70, little, None);
        assert!(sim.most <= 48, "{}", sim.most);
        sim.go_on(60, little, None);
        assert!(sim.limit() <= 6, "{}", sim.limit());
    }

    #[test]
    fn what_more_bring_slowly_is_not_given_up_level_by_level() {
        // Five hundredths more with each, up to sixteen.
        let mut sim = Sim::new();
        let at = |running: usize| 300.0 * (1.0 + 0.05 * running.min(16) as f64);
        for _ in 0..600 {
            let all = at(sim.running.len().max(1));
            sim.go_on(1, Service { all, each: 100.0 }, None);
        }
        assert!((12..=16).contains(&sim.limit()), "{}", sim.limit());
    }
}
