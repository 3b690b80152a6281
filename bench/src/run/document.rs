//! What a run found, as JSON that keeps every load, and as rows of a table with their bounds.

use std::collections::BTreeMap;

use forebay_client::Trace;
use forebay_client::model::TraceTrack;
use serde_json::{Value, json};

use super::Scenario;
use super::capacity::Prediction;
use super::goodput::Sums;
use super::knee::Verdict;
use super::regimes::{AT_ONCE, LARGEST, Overload, Phase, Round, Steady, oldest_queue, usual_queue};
use super::sample::{self, Sample, micro};
use super::watch;
use crate::measure::Spread;
use crate::origin::row;
use crate::report::{Bound, Figure, Limit, Row};

/// The form of the document; a later one that cannot be read like it has another number.
pub(super) const FORM: u64 = 1;

/// At ten times what the queues bear, of the goodput there, at least.
const GOODPUT_MIN: f64 = 0.9;
/// Seconds after the end of an overload until loads are as fast as alone, at most.
const RECOVERY_MAX: f64 = 1.0;
/// How long the slowest of a hundred loads that were let in takes, of what it does at the steady
/// rate, at most.
const P99_MAX: f64 = 2.0;
/// Of all refusals those that come at once, at least.
const AT_ONCE_MIN: f64 = 0.99;

/// Where most loads ended in time.
pub(super) fn peak_of<'a>(
    steady: Option<&'a Steady>,
    overloads: &'a [Overload],
) -> Option<&'a Phase> {
    let steps = steady.into_iter().flat_map(|steady| &steady.steps).map(|step| &step.phase);
    let all = steps.chain(overloads.iter().map(|overload| &overload.phase));
    all.max_by(|a, b| a.sums.goodput.total_cmp(&b.sums.goodput))
}

/// Everything that was found of a scenario.
#[derive(Debug)]
pub(super) struct Measured {
    pub(super) scenario: Scenario,
    /// What was loaded, in a sentence.
    pub(super) what: String,
    /// Seconds that a load may take where loads arrive.
    pub(super) deadline: f64,
    /// Lines of the daemon's settings that differ from its defaults.
    pub(super) settings: Vec<String>,
    /// What the first of the checkpoints is.
    pub(super) checkpoint: Value,
    pub(super) floor: Phase,
    pub(super) steady: Option<Steady>,
    pub(super) overloads: Vec<Overload>,
    /// The last of them once more, in turn with the rate at which most loads ended in time.
    pub(super) rounds: Vec<Round>,
    pub(super) prediction: Option<Prediction>,
    /// The timeline of a usual load.
    pub(super) trace: Option<Trace>,
    /// What the machine had to do meanwhile.
    pub(super) machine: Value,
}

impl Measured {
    /// The step with the highest rate at which the queues stayed bounded.
    pub(super) fn best(&self) -> Option<&Phase> {
        self.steady.as_ref()?.best()
    }

    /// The most loads a second that ended in time at any rate: loads at random moments leave gaps
    /// at the rates that queues bear, so an overload may bring more.
    fn peak(&self) -> Option<f64> {
        peak_of(self.steady.as_ref(), &self.overloads).map(|phase| phase.sums.goodput)
    }

    /// What ends in time at the largest multiple, of what does at most, each time that both were
    /// measured next to each other.
    fn kept(&self) -> Spread {
        self.rounds.iter().map(Round::kept).collect()
    }

    /// Bytes a second at that step.
    pub(super) fn ceiling(&self) -> Option<f64> {
        self.best().map(|best| best.sums.goodput * bytes_of_a_load(best))
    }

    /// Its JSON.
    pub(super) fn json(&self) -> Value {
        let peak = self.peak();
        let steady = self.steady.as_ref().map(|steady| {
            let step = |step: &super::regimes::SteadyStep| {
                json!({
                    "bounded": step.verdict == Verdict::Bounded,
                    "phase": phase(&step.phase),
                })
            };
            json!({
                "best_step": steady.best,
                "best_rate": steady.best().and_then(|best| best.rate),
                "peak_goodput": peak,
                "bytes_per_second": self.ceiling(),
                "steps": steady.steps.iter().map(step).collect::<Vec<_>>(),
            })
        });
        let overload = |overload: &Overload| {
            json!({
                "factor": overload.factor,
                "goodput_of_peak": peak.map(|peak| overload.phase.sums.goodput / peak),
                "recovery_seconds": overload.recovery,
                "refused_at_once": overload.refused_at_once,
                "as_fast_as_alone_seconds": overload.threshold,
                "probes": overload.probes,
                "phase": phase(&overload.phase),
            })
        };
        let largest = self.overloads.iter().find(|overload| overload.factor == LARGEST);
        let round = |round: &Round| {
            json!({
                "goodput_of_peak": round.kept(),
                "peak": phase(&round.peak),
                "overload": phase(&round.over),
            })
        };
        json!({
            "scenario": self.scenario.name(),
            "what": self.what,
            "deadline_seconds": self.deadline,
            "seconds_of_the_largest_overload": largest.map(|largest| micro(largest.phase.seconds)),
            "settings_that_differ": self.settings,
            "checkpoint": self.checkpoint,
            "machine_meanwhile": self.machine,
            "floor": phase(&self.floor),
            "steady": steady,
            "overload": self.overloads.iter().map(overload).collect::<Vec<_>>(),
            "overload_rounds": self.rounds.iter().map(round).collect::<Vec<_>>(),
            "capacity": self.prediction.as_ref().map(|found| found.json(self.ceiling())),
            "timeline": self.trace.as_ref().map(timeline),
        })
    }

    /// Its rows.
    pub(super) fn rows(&self) -> Vec<Row> {
        let mut rows = vec![self.floor_row()];
        rows.extend(self.steady.as_ref().map(|steady| self.steady_row(steady)));
        rows.extend(self.overloads.iter().map(|overload| self.overload_row(overload)));
        rows
    }

    fn floor_row(&self) -> Row {
        let mut row = row(self.scenario.name(), format!("floor: {}, one at a time", self.what));
        let samples = &self.floor.samples;
        let of = |value: fn(&Sample) -> f64| -> Spread { samples.iter().map(value).collect() };
        let rate = |sample: &Sample| sample.bytes as f64 / 1e9 / sample.latency();
        row.figures.push(Figure::new("a load", "s", of(Sample::latency)));
        row.figures.push(Figure::new("a load", "GB/s", of(rate)));
        let tiers = tiers(samples);
        for (tier, share) in &tiers {
            row.figures.push(figure(format!("bytes from {tier}"), "of it", *share));
        }
        if let Some((tier, least)) = self.scenario.tier().filter(|_| !tiers.is_empty()) {
            let share =
                tiers.iter().find(|(from, _)| *from == tier).map_or(0.0, |(_, share)| *share);
            let what = format!("of the bytes from {tier}, as it should be");
            row.bounds.push(Bound::new(what, share, Limit::AtLeast(least)));
        }
        let well = samples.iter().filter(|sample| sample.is_complete()).count();
        let share = well as f64 / samples.len() as f64;
        row.bounds.push(Bound::new("loads that ended well", share, Limit::AtLeast(1.0)));
        row
    }

    fn steady_row(&self, steady: &Steady) -> Row {
        let what = format!(
            "steady: loads arrive at random, each has {:.3} s; the highest rate with bounded queues",
            self.deadline
        );
        let mut row = row(self.scenario.name(), what);
        let Some(best) = steady.best() else {
            row.bounds.push(Bound::new("a rate was bounded", f64::NAN, Limit::AtLeast(1.0)));
            return row;
        };
        let Sums { goodput, median, p99, behind_p99, .. } = best.sums;
        let limited_by =
            self.prediction.as_ref().map_or("nothing measured", |found| found.limited_by.as_str());
        let predicted = self.prediction.as_ref().map(|found| found.bytes_per_second);
        let (measured, predicted) =
            (self.ceiling().unwrap_or(f64::NAN), predicted.unwrap_or(f64::NAN));
        row.figures = vec![
            figure("rate", "loads/s", best.rate.unwrap_or(f64::NAN)),
            figure("in time", "loads/s", goodput),
            figure("ceiling, measured", "GB/s", measured / 1e9),
            figure(format!("ceiling, predicted: {limited_by}"), "GB/s", predicted / 1e9),
            figure("measured, of predicted", "of it", measured / predicted),
            figure("latency, median", "s", median),
            figure("latency, p99", "s", p99),
            figure("age of the oldest waiter, usual", "s", usual_queue(best)),
            figure("age of the oldest waiter, worst", "s", oldest_queue(best)),
            figure("the generator was late by, p99", "s", behind_p99),
        ];
        for (tier, share) in tiers(&best.samples) {
            row.figures.push(figure(format!("bytes from {tier}"), "of it", share));
        }
        row
    }

    fn overload_row(&self, overload: &Overload) -> Row {
        let Overload { factor, phase, recovery, .. } = overload;
        let rate = phase.rate.unwrap_or(f64::NAN);
        let what = format!("overload {factor}x: {rate:.1} loads/s for {:.0} s", phase.seconds);
        let mut row = row(self.scenario.name(), what);
        let Sums { arrived, met, refused, goodput, p99, .. } = phase.sums;
        let Sums { refusal_median, refusal_p99, behind_p99, .. } = phase.sums;
        let at_once = overload.refused_at_once;
        let peak = self.peak().unwrap_or(f64::NAN);
        let recovered = recovery.unwrap_or(f64::NAN);
        let usual = self.best().map_or(f64::NAN, |best| best.sums.p99);
        let other = arrived - met - refused;
        row.figures = vec![
            figure("in time", "loads/s", goodput),
            figure("in time, of the peak", "of it", goodput / peak),
            figure("admitted, p99", "s", p99),
            figure("admitted, p99, of the steady one", "times", p99 / usual),
            figure("refused", "of all", refused as f64 / arrived as f64),
            figure("refused after, median", "s", refusal_median),
            figure("refused after, p99", "s", refusal_p99),
            figure(format!("refused within {AT_ONCE} s, says the daemon"), "of it", at_once),
            figure("neither refused nor in time", "of all", other as f64 / arrived as f64),
            figure("as fast as alone again after", "s", recovered),
            figure("age of the oldest waiter, worst", "s", oldest_queue(phase)),
            figure("the generator was late by, p99", "s", behind_p99),
        ];
        if *factor == LARGEST {
            row.figures.push(Figure::new("in time, of the peak, in turn", "of it", self.kept()));
        }
        // Nothing was refused, say.
        row.figures.retain(|figure| figure.spread.median().is_finite());
        if *factor == LARGEST {
            let kept = self.kept();
            row.bounds = vec![
                Bound::new("goodput, of the peak", kept.median(), Limit::AtLeast(GOODPUT_MIN)),
                Bound::new("s until floor latency", recovered, Limit::AtMost(RECOVERY_MAX)),
                Bound::new(
                    "times the steady p99, of those let in",
                    p99 / usual,
                    Limit::AtMost(P99_MAX),
                ),
            ];
            let told = Bound::new("of refusals at once", at_once, Limit::AtLeast(AT_ONCE_MIN));
            row.bounds.extend((refused > 0).then_some(told));
        }
        row
    }
}

fn figure(of: impl Into<String>, unit: &'static str, value: f64) -> Figure {
    Figure::new(of, unit, [value].into_iter().collect())
}

/// Bytes of a load that ended well, on average.
fn bytes_of_a_load(phase: &Phase) -> f64 {
    let complete = phase.samples.iter().filter(|sample| sample.is_complete());
    let (bytes, count) = complete
        .fold((0.0, 0.0), |(bytes, count), sample| (bytes + sample.bytes as f64, count + 1.0));
    bytes / count
}

/// The part of all bytes that came from each tier, of those that brought any.
fn tiers(samples: &[Sample]) -> Vec<(&'static str, f64)> {
    let mut sums: BTreeMap<&'static str, f64> = BTreeMap::new();
    for sample in samples {
        for (tier, bytes) in [
            ("RAM", sample.tiers.ram),
            ("NVMe", sample.tiers.nvme),
            ("origin", sample.tiers.origin),
        ] {
            *sums.entry(tier).or_default() += bytes as f64;
        }
    }
    let all: f64 = sums.values().sum();
    sums.into_iter().filter(|(_, bytes)| *bytes > 0.0).map(|(t, bytes)| (t, bytes / all)).collect()
}

fn phase(phase: &Phase) -> Value {
    let Sums { arrived, met, late, refused, expired, failed, .. } = phase.sums;
    let Sums { goodput, median, p99, refusal_median, refusal_p99, behind_p99, .. } = phase.sums;
    json!({
        "rate": phase.rate,
        "seconds": micro(phase.seconds),
        "cpu_seconds": micro(phase.cpu_seconds),
        "seed": phase.seed,
        "sums": {
            "arrived": arrived, "met": met, "late": late, "refused": refused,
            "expired": expired, "failed": failed, "goodput": goodput,
            "latency_median_seconds": median, "latency_p99_seconds": p99,
            "refusal_median_seconds": refusal_median, "refusal_p99_seconds": refusal_p99,
            "generator_late_p99_seconds": behind_p99,
            "queue_age_worst_seconds": oldest_queue(phase),
        },
        "loads": sample::table(&phase.samples),
        "watched": watch::table(&phase.looks),
    })
}

/// The track of a span as a name.
pub(super) fn track(track: TraceTrack) -> String {
    match track {
        TraceTrack::Load => "load".to_owned(),
        TraceTrack::Chunk(number) => format!("chunk {number}"),
        TraceTrack::Copy => "copy".to_owned(),
        TraceTrack::Gap => "gap".to_owned(),
        _ => "event".to_owned(),
    }
}

fn timeline(trace: &Trace) -> Value {
    let span = |span: &forebay_client::model::TraceSpan| {
        let (start, length) = (span.start.as_secs_f64(), span.length.as_secs_f64());
        json!([track(span.track), span.name, span.kind, micro(start), micro(length), span.clue])
    };
    json!({
        "load_id": trace.head.load_id,
        "wall_seconds": micro(trace.head.wall.as_secs_f64()),
        "columns": ["track", "name", "kind", "start", "length", "clue"],
        "spans": trace.spans.iter().map(span).collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use forebay_client::model::BytesByTier;

    use super::super::goodput::sums;
    use super::super::regimes::SteadyStep;
    use super::super::sample::Ended;
    use super::super::sample::tests::sample;
    use super::*;

    fn phase_of(rate: f64, count: u32) -> Phase {
        let samples: Vec<Sample> = (0..count)
            .map(|n| sample(f64::from(n) * 10.0 / f64::from(count), 0.01, Ended::Met))
            .collect();
        let sums = sums(&samples, 10.0);
        let mut phase = Phase { rate: Some(rate), seconds: 10.0, ..Phase::default() };
        (phase.samples, phase.sums) = (samples, sums);
        phase
    }

    fn measured(recovery: Option<f64>, overload: u32) -> Measured {
        let step = SteadyStep { phase: phase_of(10.0, 100), verdict: Verdict::Bounded };
        Measured {
            scenario: Scenario::Ram,
            what: "loads".to_owned(),
            deadline: 1.0,
            settings: Vec::new(),
            checkpoint: Value::Null,
            floor: phase_of(1.0, 10),
            steady: Some(Steady { steps: vec![step], best: Some(0) }),
            overloads: vec![Overload {
                factor: 10,
                phase: phase_of(100.0, overload),
                probes: Vec::new(),
                refused_at_once: 0.995,
                threshold: 0.01,
                recovery,
            }],
            rounds: vec![Round { peak: phase_of(10.0, 100), over: phase_of(100.0, overload) }],
            prediction: None,
            trace: None,
            machine: Value::Null,
        }
    }

    #[test]
    fn an_overload_is_held_to_its_bounds() {
        let holds = |measured: &Measured| {
            measured.rows().iter().flat_map(|row| &row.bounds).all(Bound::holds)
        };
        assert!(holds(&measured(Some(0.9), 95)));
        assert!(!holds(&measured(Some(1.1), 95)));
        assert!(!holds(&measured(None, 95)));
        assert!(!holds(&measured(Some(0.9), 80)));
        // Where the machine was slower for a while, what is next to each other says so.
        let round = |peak, over| Round { peak: phase_of(10.0, peak), over: phase_of(100.0, over) };
        let rounds = vec![round(100, 95), round(50, 48), round(100, 40)];
        assert!(holds(&Measured { rounds, ..measured(Some(0.9), 50) }));
        let rounds = vec![round(100, 85), round(50, 48), round(100, 40)];
        assert!(!holds(&Measured { rounds, ..measured(Some(0.9), 95) }));
        // Those that are let in, and those that are not, are to know soon.
        let mut slow = measured(Some(0.9), 95);
        slow.overloads[0].phase.sums.met -= 5;
        slow.overloads[0].phase.sums.refused = 5;
        assert!(holds(&slow));
        slow.overloads[0].refused_at_once = 0.98;
        assert!(!holds(&slow));
        slow.overloads[0].refused_at_once = f64::NAN;
        assert!(!holds(&slow), "the daemon counts none of those that clients had");
        slow.overloads[0].phase.sums.refused = 0;
        assert!(holds(&slow), "nobody was refused");
        slow.overloads[0].phase.sums.p99 *= 2.1;
        assert!(!holds(&slow));
        // What came from elsewhere is no load of that kind.
        let from = |ram, origin| {
            let mut elsewhere = measured(Some(0.9), 95);
            let tiers = BytesByTier { ram, origin, ..BytesByTier::default() };
            elsewhere.floor.samples.iter_mut().for_each(|sample| sample.tiers = tiers);
            elsewhere
        };
        assert!(holds(&from(96, 4)) && !holds(&from(80, 20)) && !holds(&from(0, 1)));
        let (overloads, rounds) = (Vec::new(), Vec::new());
        let nothing = Measured { steady: None, overloads, rounds, ..measured(None, 1) };
        assert!(holds(&nothing));
    }

    #[test]
    fn the_peak_is_where_most_ended_in_time_whatever_came() {
        let mut measured = measured(Some(0.9), 95);
        let more =
            Overload { factor: 5, phase: phase_of(100.0, 120), ..measured.overloads[0].clone() };
        assert_eq!(measured.peak(), Some(10.0));
        measured.overloads.insert(0, more);
        assert_eq!(measured.peak(), Some(12.0));
    }

    #[test]
    fn json_keeps_every_load_of_every_phase() {
        let json = measured(Some(0.5), 95).json();
        assert_eq!(json["floor"]["loads"]["rows"].as_array().map(Vec::len), Some(10));
        let best = &json["steady"]["steps"][0]["phase"];
        assert_eq!(best["loads"]["rows"].as_array().map(Vec::len), Some(100));
        assert_eq!(json["overload"][0]["recovery_seconds"], 0.5);
        assert!(json["overload"][0]["goodput_of_peak"].as_f64() > Some(0.9));
    }
}
