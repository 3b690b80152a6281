//! How many requests at a time: as many as help.
//!
//! A throttle or a timeout takes a tenth off the limit, once per round trip: what was sent before
//! the last change says nothing about it. Otherwise the limit climbs by trial. A window of good
//! requests gives an index of throughput: requests at a time, times how fast each was against what
//! its size should have taken (so a window of small parts is comparable with one of large parts,
//! and a handful of requests is enough). A step up that raised the index by 2 % is kept and
//! followed by the next; one that did not is taken back, and the next trial waits longer. The first
//! steps, until one fails, are of half the limit: a load must not be over before the limit is
//! found.
//!
//! Times come in as arguments; owned by the endpoint, under its lock.

use std::time::Duration;

use tokio::time::Instant;

use super::model::Model;

/// A window is over after so many requests, and at least one for each that may be under way...
const WINDOW_REQUESTS: usize = 10;
/// ... or after so long, with a few.
const WINDOW: Duration = Duration::from_millis(500);
const WINDOW_REQUESTS_MIN: usize = 3;
/// What a step has to gain, and what one of the large first steps has to.
const GAIN_MIN: f64 = 1.02;
const GAIN_MIN_STARTING: f64 = 1.1;
/// Windows before the next trial after one that failed; doubled each time, up to the last.
const HOLD_FIRST: u32 = 2;
const HOLD_MAX: u32 = 16;
/// How long after a decrease the limit counts as shrinking.
const SHRINKING: Duration = Duration::from_secs(5);

/// What a request that ended says about the load of the endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Load {
    /// It brought so many bytes in so much time on the wire.
    Served { bytes: u64, service: Duration },
    /// The endpoint throttled it, or was silent.
    Overloaded,
    /// Nothing.
    Unknown,
}

/// The limit and what it is learnt from.
#[derive(Debug)]
pub(crate) struct Limiter {
    min: usize,
    max: usize,
    limit: usize,
    inflight: usize,
    changed: Instant,
    decreased: Option<Instant>,
    window: Window,
    trial: Option<Trial>,
    hold: u32,
    patience: u32,
    starting: bool,
}

/// A step that is being tried: what was before it.
#[derive(Debug, Clone, Copy)]
struct Trial {
    from: usize,
    before: Window,
}

/// Good requests that began within a window, summed up.
#[derive(Debug, Clone, Copy)]
struct Window {
    opened: Instant,
    requests: usize,
    bytes: f64,
    service: f64,
    inflight: f64,
}

impl Window {
    fn open(now: Instant) -> Self {
        Self { opened: now, requests: 0, bytes: 0.0, service: 0.0, inflight: 0.0 }
    }

    fn mean_inflight(&self) -> f64 {
        self.inflight / self.requests.max(1) as f64
    }

    /// Throughput in units of what one request at a time, as fast as the model says, would have.
    fn index(&self, model: &Model) -> f64 {
        let expected = model.line().map_or(0.0, |l| l.total(self.requests as f64, self.bytes));
        self.mean_inflight() * expected / self.service.max(1e-9)
    }
}

impl Limiter {
    pub(crate) fn new(now: Instant, start: usize, min: usize, max: usize) -> Self {
        let max = max.max(1);
        let min = min.clamp(1, max);
        Self {
            min,
            max,
            limit: start.clamp(min, max),
            inflight: 0,
            changed: now,
            decreased: None,
            window: Window::open(now),
            trial: None,
            hold: 0,
            patience: HOLD_FIRST,
            starting: true,
        }
    }

    pub(crate) fn limit(&self) -> usize {
        self.limit
    }

    pub(crate) fn inflight(&self) -> usize {
        self.inflight
    }

    pub(crate) fn has_room(&self) -> bool {
        self.inflight < self.limit
    }

    /// Whether the limit is found: the first large steps are over, or there is none left to take.
    pub(crate) fn is_settled(&self) -> bool {
        !self.starting || self.limit == self.max
    }

    /// Whether the limit fell a moment ago.
    pub(crate) fn is_shrinking(&self, now: Instant) -> bool {
        self.decreased.is_some_and(|then| now < then + SHRINKING)
    }

    pub(crate) fn begin(&mut self) {
        self.inflight += 1;
    }

    /// A request that began at `started` is over. The model has learnt from it already.
    pub(crate) fn end(&mut self, started: Instant, now: Instant, load: Load, model: &Model) {
        let inflight = self.inflight;
        self.inflight = self.inflight.saturating_sub(1);
        match load {
            Load::Overloaded if started >= self.changed => self.decrease(now),
            Load::Served { bytes, service } if started >= self.window.opened => {
                self.window.requests += 1;
                self.window.bytes += bytes as f64;
                self.window.service += service.as_secs_f64();
                self.window.inflight += inflight as f64;
                self.look(now, model);
            }
            Load::Overloaded | Load::Served { .. } | Load::Unknown => {}
        }
    }

    fn decrease(&mut self, now: Instant) {
        self.limit = (self.limit * 9 / 10).max(self.min);
        self.decreased = Some(now);
        self.changed = now;
        self.starting = false;
        self.trial = None;
        self.hold = HOLD_FIRST;
        self.window = Window::open(now);
    }

    /// Ends the window if it is full, and decides about the limit.
    fn look(&mut self, now: Instant, model: &Model) {
        let window = self.window;
        let full = window.requests >= WINDOW_REQUESTS.max(self.limit);
        let over = now >= window.opened + WINDOW
            && window.requests >= WINDOW_REQUESTS_MIN.max(self.limit / 2);
        if !full && !over {
            return;
        }
        self.window = Window::open(now);
        let used = window.mean_inflight() * 2.0 >= self.limit as f64;
        let gain = if self.starting { GAIN_MIN_STARTING } else { GAIN_MIN };
        match self.trial.take() {
            Some(trial) if window.index(model) < trial.before.index(model) * gain => {
                self.limit = trial.from;
                self.changed = now;
                self.starting = false;
                self.hold = self.patience;
                self.patience = (self.patience * 2).min(HOLD_MAX);
            }
            Some(_) => {
                self.patience = HOLD_FIRST;
                self.step(now, window, used);
            }
            None if self.hold > 0 => self.hold -= 1,
            None => self.step(now, window, used),
        }
    }

    fn step(&mut self, now: Instant, before: Window, used: bool) {
        let step = if self.starting { (self.limit / 2).max(1) } else { 1 };
        let next = self.limit.saturating_add(step).min(self.max);
        if used && next > self.limit {
            self.trial = Some(Trial { from: self.limit, before });
            self.limit = next;
            self.changed = now;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PART: u64 = 8 << 20;

    /// An endpoint in virtual time: 40 ms to the first byte, so much per connection and in all.
    struct Sim {
        now: Instant,
        limiter: Limiter,
        model: Model,
        running: Vec<(Instant, Instant)>,
        served: usize,
    }

    impl Sim {
        fn new(max: usize) -> Self {
            let now = Instant::now();
            let limiter = Limiter::new(now, 8, 2, max);
            Self { now, limiter, model: Model::default(), running: Vec::new(), served: 0 }
        }

        fn fill(&mut self, per_connection: f64, total: f64, noise: &mut impl FnMut() -> f64) {
            while self.limiter.has_room() {
                self.limiter.begin();
                // Who waits for a first byte leaves the link to the others.
                let alone = 0.04 + PART as f64 / per_connection;
                let seconds = alone.max(PART as f64 * self.limiter.inflight() as f64 / total);
                let time = Duration::from_secs_f64(seconds * (0.9 + 0.2 * noise()));
                self.running.push((self.now + time, self.now));
            }
        }

        fn next(&mut self, load: impl Fn(Duration) -> Load) {
            self.running.sort_by(|a, b| b.cmp(a));
            let (ended, started) = self.running.pop().unwrap();
            self.now = ended;
            let load = load(ended - started);
            if let Load::Served { bytes, service } = load {
                self.model.learn(bytes, service);
                self.served += 1;
            }
            self.limiter.end(started, ended, load, &self.model);
        }

        fn run(&mut self, parts: usize, per_connection: f64, total: f64, seed: u64) {
            let mut state = seed;
            let mut noise = move || {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                (state >> 40) as f64 / f64::from(1_u32 << 24)
            };
            for _ in 0..parts {
                self.fill(per_connection, total, &mut noise);
                self.next(|service| Load::Served { bytes: PART, service });
            }
        }
    }

    #[test]
    fn it_climbs_to_what_the_link_carries_and_not_far_beyond() {
        for seed in 0..20 {
            let mut sim = Sim::new(256);
            // 30 connections of 90 MB/s, and their first bytes, fill 2 GB/s.
            sim.run(3000, 90e6, 2e9, seed);
            let limit = sim.limiter.limit();
            assert!((24..=64).contains(&limit), "seed {seed}: {limit}");
        }
    }

    #[test]
    fn it_stays_low_where_more_does_not_help() {
        for seed in 0..20 {
            let mut sim = Sim::new(256);
            sim.run(2000, 1e9, 3e8, seed);
            let limit = sim.limiter.limit();
            assert!(limit <= 24, "seed {seed}: {limit}");
        }
    }

    #[test]
    fn an_unused_limit_does_not_grow() {
        let mut sim = Sim::new(256);
        for _ in 0..500 {
            sim.limiter.begin();
            let started = sim.now;
            sim.now += Duration::from_millis(100);
            let service = Duration::from_millis(100);
            sim.model.learn(PART, service);
            let load = Load::Served { bytes: PART, service };
            sim.limiter.end(started, sim.now, load, &sim.model);
        }
        assert_eq!(sim.limiter.limit(), 8);
    }

    #[test]
    fn throttles_shrink_it_once_per_round_trip() {
        let mut sim = Sim::new(64);
        sim.limiter.limit = 40;
        sim.fill(90e6, 1e12, &mut || 0.5);
        for _ in 0..40 {
            sim.next(|_| Load::Overloaded);
        }
        assert_eq!((sim.limiter.limit(), sim.limiter.inflight()), (36, 0));
        assert!(sim.limiter.is_shrinking(sim.now));
        for _ in 0..40 {
            sim.fill(90e6, 1e12, &mut || 0.5);
            sim.next(|_| Load::Overloaded);
            sim.running.clear();
            sim.limiter.inflight = 0;
        }
        assert_eq!(sim.limiter.limit(), 2);
    }

    proptest! {
        /// In its bounds, with a true count, whatever ends in whatever order.
        #[test]
        fn bounds_hold(steps in prop::collection::vec((0_u8..5, 1_u64..2000), 1..600), max in 1_usize..40) {
            let mut now = Instant::now();
            let mut limiter = Limiter::new(now, 8, 2, max);
            let mut model = Model::default();
            let mut running = Vec::new();
            for (what, millis) in steps {
                now += Duration::from_millis(millis);
                let bytes = millis << 10;
                let load = match what {
                    0 | 1 => {
                        if limiter.has_room() { limiter.begin(); running.push(now); }
                        continue;
                    }
                    2 => Load::Overloaded,
                    3 => Load::Served { bytes, service: Duration::from_millis(millis) },
                    _ => Load::Unknown,
                };
                let Some(started) = running.pop() else { continue };
                if let Load::Served { bytes, service } = load { model.learn(bytes, service); }
                limiter.end(started, now, load, &model);
                prop_assert!((2.min(max)..=max).contains(&limiter.limit()));
                prop_assert_eq!(limiter.inflight(), running.len());
                prop_assert!(limiter.inflight() <= max);
            }
        }
    }
}
