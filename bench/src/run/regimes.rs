//! The three regimes, as they are run on a [`Ground`].
//!
//! *Floor*: one load at a time, and nothing else. *Steady*: loads arrive at moments drawn before,
//! whatever became of those before them, at rates that rise until a queue grows. *Overload*: they
//! arrive at a multiple of the best of these rates; when they stop, loads are made one after the
//! other again until they are as fast as alone.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::Instant;

use super::goodput::{self, Sums, recovery, sums, threshold};
use super::ground::Ground;
use super::knee::{Search, Step, Verdict};
use super::sample::Sample;
use super::schedule::arrivals;
use super::statistics::quantile_of;
use super::watch::{Look, Watch};
use crate::Outcome;
use crate::origin::progress;

/// What the rates of overload are of the best steady one; the largest is held to bounds.
pub(super) const FACTORS: [u32; 3] = [2, 5, LARGEST];
pub(super) const LARGEST: u32 = 10;
/// How many times as long as other rates the largest multiple is held: what a queue that fills at
/// once does to the first loads is not to be what the slowest hundredth of all is.
const LARGEST_LONGER: f64 = 6.0;
/// A refusal that came within this was there at once, in seconds as metrics name it.
pub(super) const AT_ONCE: &str = "0.01";
/// How often the largest multiple is compared with the rate at which most loads end in time.
const ROUNDS: u64 = 3;
/// Arrivals of a step, at least; it is made longer for that, up to so many times.
const ARRIVALS_MIN: f64 = 30.0;
const LONGER_MAX: f64 = 4.0;
/// How long loads are made after an overload, at most, until they are as fast as alone.
const RECOVERY_MAX: Duration = Duration::from_secs(20);
/// How long after a refusal the next load is made.
const AGAIN: Duration = Duration::from_millis(20);

/// A stretch of time with loads.
#[derive(Debug, Clone, Default)]
pub(super) struct Phase {
    /// Loads that were to arrive each second; none of loads that followed each other.
    pub(super) rate: Option<f64>,
    /// For how long they arrived.
    pub(super) seconds: f64,
    /// The seed of the moments.
    pub(super) seed: u64,
    pub(super) samples: Vec<Sample>,
    pub(super) looks: Vec<Look>,
    pub(super) sums: Sums,
    /// CPU seconds of the daemon, the origin and the generator together.
    pub(super) cpu_seconds: f64,
}

/// A step of the steady regime.
#[derive(Debug, Clone)]
pub(super) struct SteadyStep {
    pub(super) phase: Phase,
    pub(super) verdict: Verdict,
}

/// The steady regime.
#[derive(Debug, Clone)]
pub(super) struct Steady {
    pub(super) steps: Vec<SteadyStep>,
    /// Which of them is the one with the highest rate that was bounded.
    pub(super) best: Option<usize>,
}

/// An overload and what followed.
#[derive(Debug, Clone)]
pub(super) struct Overload {
    pub(super) factor: u32,
    pub(super) phase: Phase,
    /// Loads after it: seconds since its end at which each ended, and what it took if it ended well.
    pub(super) probes: Vec<(f64, Option<f64>)>,
    /// Of the refusals of the daemon, by its own clock, the part that came at once.
    pub(super) refused_at_once: f64,
    /// What counts as being as fast as alone.
    pub(super) threshold: f64,
    /// When they were.
    pub(super) recovery: Option<f64>,
}

/// Two rates right after each other, so that both meet the same machine.
#[derive(Debug, Clone)]
pub(super) struct Round {
    /// At the rate at which most loads ended in time.
    pub(super) peak: Phase,
    /// At the largest multiple.
    pub(super) over: Phase,
}

impl Round {
    /// What ends in time at the multiple, of what does at the other rate.
    pub(super) fn kept(&self) -> f64 {
        self.over.sums.goodput / self.peak.sums.goodput
    }
}

/// How the regimes are run.
#[derive(Debug, Clone, Copy)]
pub(super) struct Terms {
    pub(super) seconds: f64,
    pub(super) seed: u64,
    pub(super) deadline: Duration,
}

impl Steady {
    /// The step with the highest rate at which the queues stayed bounded.
    pub(super) fn best(&self) -> Option<&Phase> {
        self.steps.get(self.best?).map(|step| &step.phase)
    }
}

/// Loads one after the other.
pub(super) async fn floor(ground: &Arc<Ground>, runs: usize) -> Outcome<Phase> {
    let before = ground.cpu_seconds()?;
    let epoch = Instant::now();
    let mut samples = Vec::new();
    let loads = async {
        for _ in 0..runs {
            let at = epoch.elapsed().as_secs_f64();
            samples.push(ground.next(epoch, at, None).await);
        }
        Ok(())
    };
    let looks = watched(ground, epoch, loads).await?;
    let seconds = epoch.elapsed().as_secs_f64();
    let sums = sums(&samples, seconds);
    let cpu_seconds = ground.cpu_seconds()? - before;
    Ok(Phase { rate: None, seconds, seed: 0, samples, looks, sums, cpu_seconds })
}

/// Loads that arrive at a rate, to the end of the last one.
async fn open_loop(ground: &Arc<Ground>, terms: Terms, rate: f64, seed: u64) -> Outcome<Phase> {
    let seconds = terms.seconds.max((ARRIVALS_MIN / rate).min(terms.seconds * LONGER_MAX));
    let before = ground.cpu_seconds()?;
    let epoch = Instant::now();
    let mut samples = Vec::new();
    let loads = async {
        let mut running = JoinSet::new();
        for at in arrivals(rate, seconds, seed) {
            let moment = epoch + Duration::try_from_secs_f64(at)?;
            tokio::time::sleep_until(moment).await;
            let ground = Arc::clone(ground);
            running.spawn(async move { ground.next(epoch, at, Some(terms.deadline)).await });
            while let Some(ended) = running.try_join_next() {
                samples.push(ended?);
            }
        }
        while let Some(ended) = running.join_next().await {
            samples.push(ended?);
        }
        Ok(())
    };
    let looks = watched(ground, epoch, loads).await?;
    samples.sort_by(|a, b| a.scheduled.total_cmp(&b.scheduled));
    let sums = sums(&samples, seconds);
    let cpu_seconds = ground.cpu_seconds()? - before;
    Ok(Phase { rate: Some(rate), seconds, seed, samples, looks, sums, cpu_seconds })
}

/// Looks at the daemon while something is done.
async fn watched(
    ground: &Arc<Ground>,
    epoch: Instant,
    work: impl Future<Output = Outcome<()>>,
) -> Outcome<Vec<Look>> {
    let node = ground.node();
    let mut watch = Watch::new(node.client(), node.pid(), epoch);
    let mut looks = Vec::new();
    tokio::pin!(work);
    loop {
        tokio::select! {
            done = &mut work => break done.map(|()| looks),
            look = watch.next() => looks.push(look?),
        }
    }
}

/// Rates that rise until a queue grows.
pub(super) async fn steady(ground: &Arc<Ground>, terms: Terms, floor: &Phase) -> Outcome<Steady> {
    let alone = floor.sums.median;
    // Half of what one caller after the other would get.
    let first = 0.5 / alone;
    let mut search = Search::default();
    let mut steps: Vec<SteadyStep> = Vec::new();
    while let Some(rate) = search.next(first) {
        let seed = terms.seed.wrapping_add(u64::try_from(steps.len())?);
        let phase = open_loop(ground, terms, rate, seed).await?;
        let verdict = judged(&phase).verdict(alone);
        let Sums { arrived, met, p99, .. } = phase.sums;
        progress(format_args!(
            "  steady {rate:.2}/s: {met} of {arrived} in time, p99 {p99:.3} s, oldest queue {:.3} s: \
             {verdict:?}",
            oldest_queue(&phase)
        ));
        let grew_before = steps
            .last()
            .is_some_and(|step| step.phase.rate == Some(rate) && step.verdict == Verdict::Grows);
        steps.push(SteadyStep { phase, verdict });
        // A queue may have grown because the machine had something else to do: it has to do so
        // twice.
        if verdict == Verdict::Bounded || grew_before {
            search.note(rate, verdict);
        }
    }
    let rate = search.best();
    let is_best = |step: &SteadyStep| {
        rate.is_some() && step.phase.rate == rate && step.verdict == Verdict::Bounded
    };
    let best = steps.iter().position(is_best);
    Ok(Steady { steps, best })
}

fn judged(phase: &Phase) -> Step {
    Step {
        seconds: phase.seconds,
        arrived: phase.sums.arrived,
        missed: phase.sums.arrived - phase.sums.met,
        refused: phase.sums.refused,
        ages: phase.looks.iter().map(|look| (look.at, look.age())).collect(),
    }
}

/// The age, in seconds, that the oldest waiter of any queue had while loads arrived, at worst.
pub(super) fn oldest_queue(phase: &Phase) -> f64 {
    let during = phase.looks.iter().filter(|look| look.at <= phase.seconds);
    during.map(|look| look.queue_age).fold(0.0, f64::max)
}

/// What it was half of the time.
pub(super) fn usual_queue(phase: &Phase) -> f64 {
    let during = phase.looks.iter().filter(|look| look.at <= phase.seconds);
    quantile_of(&during.map(|look| look.queue_age).collect::<Vec<_>>(), 500)
}

/// The rate at which most loads ended in time so far, and a multiple of the best steady rate, in
/// turn.
pub(super) async fn rounds(
    ground: &Arc<Ground>,
    terms: Terms,
    (peak, over): (f64, f64),
) -> Outcome<Vec<Round>> {
    let mut rounds = Vec::new();
    for round in 0..ROUNDS {
        let seed = terms.seed.wrapping_add(2000 + 2 * round);
        let peak = open_loop(ground, terms, peak, seed).await?;
        let over = open_loop(ground, terms, over, seed.wrapping_add(1)).await?;
        rounds.push(Round { peak, over });
    }
    Ok(rounds)
}

/// A multiple of a rate, and then loads one after the other.
pub(super) async fn overload(
    ground: &Arc<Ground>,
    terms: Terms,
    floor: &Phase,
    (rate, factor): (f64, u32),
) -> Outcome<Overload> {
    let alone: Vec<f64> = floor.samples.iter().map(Sample::latency).collect();
    let threshold = threshold(&alone);
    let longer = if factor == LARGEST { LARGEST_LONGER } else { 1.0 };
    let terms = Terms { seconds: terms.seconds * longer, ..terms };
    let refused_before = refusals(ground)?;
    let seed = terms.seed.wrapping_add(1000).wrapping_add(factor.into());
    let ended = Instant::now();
    let (rate, mut probes) = (rate * f64::from(factor), Vec::new());
    let seconds = terms.seconds.max((ARRIVALS_MIN / rate).min(terms.seconds * LONGER_MAX));
    let end = ended + Duration::try_from_secs_f64(seconds)?;
    let probing = async {
        tokio::time::sleep_until(end).await;
        while !goodput::is_known(&probes, threshold) && end.elapsed() < RECOVERY_MAX {
            let at = end.elapsed().as_secs_f64();
            let sample = ground.next(end, at, None).await;
            let took = sample.is_complete().then(|| sample.latency());
            probes.push((sample.ended, took));
            if took.is_none() {
                tokio::time::sleep(AGAIN).await;
            }
        }
        Ok(())
    };
    let (phase, probed) = tokio::join!(open_loop(ground, terms, rate, seed), probing);
    let phase = probed.and(phase)?;
    let refused = refusals(ground)?;
    let refused_at_once = (refused.0 - refused_before.0) / (refused.1 - refused_before.1);
    let recovery = recovery(&probes, threshold);
    Ok(Overload { factor, phase, probes, refused_at_once, threshold, recovery })
}

/// How many calls the daemon refused at once so far, and how many in all.
fn refusals(ground: &Ground) -> Outcome<(f64, f64)> {
    let of = |what: &str| ground.node().metric(&format!("forebay_refusal_duration_seconds_{what}"));
    Ok((of(&format!("bucket{{le=\"{AT_ONCE}\"}}"))?, of("count")?))
}
