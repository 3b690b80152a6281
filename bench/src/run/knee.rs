//! Up to which rate the queues stay bounded: the judgement of one step, and the search over steps.
//!
//! A step is *bounded* if the age of the oldest work in the daemon does not go on growing while
//! loads arrive at its rate, and none was refused, given up or late. Where more arrives than can be
//! done, that age grows by a part of every second for as long as it goes on; where less arrives, it
//! goes up and down. So thirds of the step are compared. Rates rise by a constant factor to the
//! first step that is not bounded; then the gap between the last good and the first bad one is
//! halved some times, on a logarithmic scale.

/// Rates rise by this until a queue grows.
const RISE: f64 = 1.5;

/// How often the gap is halved after that: what is left is 1.5^(1/4), a tenth.
const HALVINGS: usize = 2;

/// Steps at most, so that a daemon that nothing fills does not go on for ever.
const STEPS_MAX: usize = 24;

/// Of a step's loads, so many may be late for reasons of their own.
const LATE_MAX: f64 = 0.01;

/// A step whose oldest work is younger than so many floor latencies has no queue.
const QUIET: f64 = 4.0;

/// The last third is older than the first by this factor where a queue grows: it is five times as
/// old where it grows from nothing all the time.
const GROWTH: f64 = 1.5;

/// What was seen of a step.
#[derive(Debug, Clone, Default)]
pub(super) struct Step {
    /// How long.
    pub(super) seconds: f64,
    /// Loads that arrived, and those of them that did not end well and in time.
    pub(super) arrived: usize,
    pub(super) missed: usize,
    /// Of the missed: refused.
    pub(super) refused: usize,
    /// Moments and how old the oldest work in the daemon was, in seconds.
    pub(super) ages: Vec<(f64, f64)>,
}

/// What became of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It can go on like that.
    Bounded,
    /// A queue grew, or loads were refused.
    Grows,
}

impl Step {
    /// Whether it could go on like that; `floor` is how long a load takes alone.
    pub(super) fn verdict(&self, floor: f64) -> Verdict {
        let late = self.missed as f64 > LATE_MAX * self.arrived as f64;
        let (first, last) = (self.age(0.0, 1.0 / 3.0), self.age(2.0 / 3.0, 1.0));
        let grows = last > QUIET * floor && last > GROWTH * first + floor;
        match self.refused > 0 || late || grows {
            true => Verdict::Grows,
            false => Verdict::Bounded,
        }
    }

    /// The mean age between two parts of the step.
    fn age(&self, from: f64, to: f64) -> f64 {
        let within = |at: f64| (from * self.seconds..to * self.seconds).contains(&at);
        let ages = self.ages.iter().filter(|(at, _)| within(*at)).map(|(_, age)| *age);
        let (sum, count) = ages.fold((0.0, 0_u32), |(sum, count), age| (sum + age, count + 1));
        if count == 0 { 0.0 } else { sum / f64::from(count) }
    }
}

/// The search.
#[derive(Debug, Clone, Default)]
pub(super) struct Search {
    tried: Vec<(f64, Verdict)>,
}

impl Search {
    /// The rate to try next, beginning with `first`; none when it is known well enough.
    pub(super) fn next(&self, first: f64) -> Option<f64> {
        if self.tried.len() >= STEPS_MAX {
            return None;
        }
        match (self.best(), self.worst()) {
            (None, None) => Some(first),
            (Some(best), None) => Some(best * RISE),
            // Even the first was too much: go down.
            (None, Some(worst)) if self.tried.len() < STEPS_MAX / 2 => Some(worst / RISE / RISE),
            (None, Some(_)) => None,
            (Some(best), Some(worst)) => {
                let wide = worst / best > RISE.powf(0.5_f64.powi(HALVINGS.try_into().ok()?)) * 1.01;
                wide.then(|| (best * worst).sqrt())
            }
        }
    }

    /// Notes what became of a rate.
    pub(super) fn note(&mut self, rate: f64, verdict: Verdict) {
        self.tried.push((rate, verdict));
    }

    /// The highest rate that was bounded, below every one that was not.
    pub(super) fn best(&self) -> Option<f64> {
        let worst = self.worst().unwrap_or(f64::INFINITY);
        let bounded = self.tried.iter().filter(|(_, verdict)| *verdict == Verdict::Bounded);
        bounded.map(|(rate, _)| *rate).filter(|rate| *rate < worst).max_by(f64::total_cmp)
    }

    fn worst(&self) -> Option<f64> {
        let grows = self.tried.iter().filter(|(_, verdict)| *verdict == Verdict::Grows);
        grows.map(|(rate, _)| *rate).min_by(f64::total_cmp)
    }
}

#[cfg(test)]
mod tests {
    use forebay_testkit::Prng;

    use super::*;

    const FLOOR: f64 = 0.01;

    fn step(age: impl FnMut(f64) -> f64) -> Step {
        let at = (0..100).map(|tenth| f64::from(tenth) / 10.0);
        let mut age = age;
        let ages = at.map(|at| (at, age(at))).collect();
        Step { seconds: 10.0, arrived: 100, ages, ..Step::default() }
    }

    #[test]
    fn a_queue_that_goes_up_and_down_is_bounded_and_one_that_goes_up_is_not() {
        for seed in 0..50 {
            let mut prng = Prng::new(seed);
            let mut noise = move || prng.below(1000) as f64 / 1000.0;
            assert_eq!(step(|_| 0.1 * noise()).verdict(FLOOR), Verdict::Bounded, "{seed}");
            assert_eq!(
                step(|at| 0.1 * at + 0.02 * noise()).verdict(FLOOR),
                Verdict::Grows,
                "{seed}"
            );
        }
        // As long as nothing is older than some floors, there is no queue.
        assert_eq!(step(|at| 0.003 * at).verdict(FLOOR), Verdict::Bounded);
        assert_eq!(step(|_| 0.0).verdict(FLOOR), Verdict::Bounded);
    }

    #[test]
    fn a_step_with_refusals_or_late_loads_is_not_bounded() {
        let quiet = step(|_| 0.0);
        let refused = Step { refused: 1, missed: 1, ..quiet.clone() };
        assert_eq!(refused.verdict(FLOOR), Verdict::Grows);
        assert_eq!(Step { missed: 1, ..quiet.clone() }.verdict(FLOOR), Verdict::Bounded);
        assert_eq!(Step { missed: 2, ..quiet }.verdict(FLOOR), Verdict::Grows);
    }

    /// Finds the knee of a daemon that keeps up with so many a second.
    fn found(knee: f64, first: f64) -> (Option<f64>, usize) {
        let mut search = Search::default();
        while let Some(rate) = search.next(first) {
            let verdict = if rate <= knee { Verdict::Bounded } else { Verdict::Grows };
            search.note(rate, verdict);
        }
        (search.best(), search.tried.len())
    }

    #[test]
    fn the_knee_is_found_within_a_tenth_wherever_the_search_begins() {
        for (knee, first) in [(100.0, 10.0), (100.0, 90.0), (3.0, 1.0), (7.0, 100.0)] {
            let (best, steps) = found(knee, first);
            let best = best.expect("a rate that is bounded");
            assert!(best <= knee && best > knee * 0.89, "{knee} from {first}: {best}");
            assert!(steps <= 12, "{steps} steps");
        }
    }

    #[test]
    fn the_search_ends_where_there_is_no_knee() {
        assert_eq!(found(0.0, 10.0).0, None);
        assert_eq!(found(f64::INFINITY, 10.0).1, STEPS_MAX);
    }
}
