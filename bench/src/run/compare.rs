//! `forebay-bench compare A.json B.json`: what changed between two runs beyond noise.
//!
//! Figures are made anew from the raw loads of both, and each difference is tested against chance
//! (see [`statistics`](super::statistics)), all of them together at one level. A latency is its
//! median and its p99; it is worse if either is. It is better only if one of them is and the p99
//! did not rise: who pays a better median with a longer tail has improved nothing.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::document::FORM;
use super::goodput::by_piece;
use super::plot::{put, shown};
use super::sample::{Kept, read};
use super::statistics::{Measure, block, chance, holm, mean, quantile_of};
use super::{Form, SEED};
use crate::Outcome;

/// The probability that chance makes any of the findings.
const LEVEL: f64 = 0.05;
/// Changes that are smaller are nobody's concern, however sure they are.
const CHANGE_MIN: f64 = 0.02;
/// Rates that differ by more are not compared by the latency at them.
const RATES_ALIKE: f64 = 0.05;
/// Seconds of a piece of a phase in which ends are counted.
const PIECE: f64 = 1.0;
/// Pieces, at least.
const PIECES_MIN: u32 = 8;
/// After an overload, seconds until floor latency, at most.
const RECOVERY_MAX: f64 = 1.0;

/// What `forebay-bench compare` is told.
#[derive(Debug, Clone, clap::Args)]
pub struct CompareArgs {
    /// The file of a run, written with --output
    before: PathBuf,
    /// The file of a later one
    after: PathBuf,
    /// Form of the result
    #[arg(long, value_enum, default_value_t = Form::Human)]
    format: Form,
}

/// Whether a change is for the better.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Better,
    Worse,
    /// A better median, a worse tail: no improvement.
    Paid,
    Same,
}

impl Verdict {
    fn as_str(self) -> &'static str {
        match self {
            Self::Better => "better",
            Self::Worse => "WORSE",
            Self::Paid => "median better, p99 not: no improvement",
            Self::Same => "no change beyond noise",
        }
    }
}

/// A figure of both runs, by its raw samples.
#[derive(Debug, Clone)]
struct Pair {
    scenario: String,
    name: String,
    /// Latencies have two measures and fall when they are better; rates have one and rise.
    is_latency: bool,
    before: Vec<f64>,
    after: Vec<f64>,
}

/// One measure of a figure: before, after, and the probability that chance did it.
#[derive(Debug, Clone, PartialEq)]
struct Tested {
    measure: &'static str,
    before: f64,
    after: f64,
    chance: f64,
    /// Whether it changed beyond noise.
    changed: bool,
}

/// A figure with what was found of it.
#[derive(Debug, Clone, PartialEq)]
struct Compared {
    scenario: String,
    name: String,
    tested: Vec<Tested>,
    verdict: Verdict,
}

impl Tested {
    /// By which part it rose.
    fn rise(&self) -> f64 {
        self.after / self.before - 1.0
    }
}

/// All that two runs have to say to each other.
#[derive(Debug, Clone)]
struct Comparison {
    /// Conditions that are not the same.
    unlike: Vec<String>,
    compared: Vec<Compared>,
}

/// Compares; whether nothing got worse.
///
/// # Errors
/// If a file cannot be read or is of no run.
#[expect(clippy::print_stdout, reason = "the result of the verb")]
pub fn main(args: &CompareArgs) -> Outcome<bool> {
    let (before, after) = (document(&args.before)?, document(&args.after)?);
    let comparison = compare(&before, &after);
    if comparison.compared.is_empty() {
        return Err("the runs have no scenario in common: nothing to compare".into());
    }
    match args.format {
        Form::Human => print!("{}", comparison.text()),
        Form::Json => println!("{}", comparison.json()),
    }
    Ok(comparison.compared.iter().all(|compared| compared.verdict != Verdict::Worse))
}

fn document(path: &Path) -> Outcome<Value> {
    let bad = |why: String| format!("{}: {why}", path.display());
    let text = std::fs::read_to_string(path).map_err(|error| bad(error.to_string()))?;
    let document: Value =
        serde_json::from_str(&text).map_err(|error| bad(format!("it is no JSON: {error}")))?;
    if document["forebay_bench"] != FORM {
        return Err(bad(format!(
            "it is no file of `forebay-bench run --output` of form {FORM}: make it anew"
        ))
        .into());
    }
    Ok(document)
}

fn compare(before: &Value, after: &Value) -> Comparison {
    let (mut unlike, mut pairs, mut recovered) =
        (conditions(before, after), Vec::new(), Vec::new());
    for one in before["scenarios"].as_array().into_iter().flatten() {
        let same = |other: &&Value| other["scenario"] == one["scenario"];
        let Some(other) = after["scenarios"].as_array().into_iter().flatten().find(same) else {
            unlike.push(format!("{} is in the first run only", one["scenario"]));
            continue;
        };
        unlike.extend(conditions_of(one, other));
        pairs.extend(pairs_of(one, other));
        recovered.extend(recovery_of(one, other));
    }
    let mut compared = judged(pairs);
    compared.extend(recovered);
    Comparison { unlike, compared }
}

/// What of the machine and the build is not the same.
fn conditions(before: &Value, after: &Value) -> Vec<String> {
    let places = [
        "/envelope/hardware/cpu",
        "/envelope/hardware/cores",
        "/envelope/hardware/memory_bytes",
        "/envelope/kernel",
        "/envelope/limits",
        "/envelope/versions/build",
        "/envelope/versions/rustc",
    ];
    differing(before, after, &places, "")
}

/// What of a scenario has to be the same, beside what is loaded.
const CONDITIONS: [&str; 4] =
    ["/settings_that_differ", "/what", "/deadline_seconds", "/seconds_of_the_largest_overload"];

/// What of a scenario is not the same.
fn conditions_of(before: &Value, after: &Value) -> Vec<String> {
    let scenario = before["scenario"].as_str().unwrap_or_default();
    let ours = before["checkpoint"]["embedded"] == true;
    // The embedded origin is elsewhere each time, and a revision is of a place.
    let checkpoint: &[&str] = match ours {
        true => &[
            "/checkpoint/embedded",
            "/checkpoint/generated_from_seed",
            "/checkpoint/objects",
            "/checkpoint/tensors",
            "/checkpoint/bytes",
        ],
        false => &["/checkpoint/embedded", "/checkpoint/revision"],
    };
    let places = [checkpoint, &CONDITIONS].concat();
    differing(before, after, &places, &format!("{scenario}: "))
}

fn differing(before: &Value, after: &Value, places: &[&str], of: &str) -> Vec<String> {
    let at = |document: &Value, place: &str| {
        document.pointer(place).map_or_else(|| "nothing".to_owned(), Value::to_string)
    };
    let unlike = places.iter().filter_map(|place| {
        let (one, other) = (at(before, place), at(after, place));
        let name = place.rsplit('/').next().unwrap_or_default().replace('_', " ");
        (one != other).then(|| format!("{of}{name}: {one}, then {other}"))
    });
    unlike.collect()
}

/// The figures that both runs of a scenario have.
fn pairs_of(before: &Value, after: &Value) -> Vec<Pair> {
    let scenario = before["scenario"].as_str().unwrap_or_default().to_owned();
    let pair = |name: String, is_latency, before, after| {
        let scenario = scenario.clone();
        Pair { scenario, name, is_latency, before, after }
    };
    let mut pairs = vec![pair(
        "floor latency, s".to_owned(),
        true,
        latencies(&before["floor"]),
        latencies(&after["floor"]),
    )];
    if let (Some(one), Some(other)) = (best(before), best(after)) {
        pairs.push(pair("steady goodput, /s".to_owned(), false, rates(one), rates(other)));
        let rate = |phase: &Value| phase["rate"].as_f64().unwrap_or(f64::NAN);
        if (rate(other) / rate(one) - 1.0).abs() <= RATES_ALIKE {
            let name = "steady latency, s".to_owned();
            pairs.push(pair(name, true, latencies(one), latencies(other)));
        }
    }
    for (factor, one, other) in overloads(before, after) {
        let (one, other) = (&one["phase"], &other["phase"]);
        let name = |what: &str| format!("overload {factor}x {what}");
        pairs.push(pair(name("goodput, /s"), false, rates(one), rates(other)));
        pairs.push(pair(name("admitted, s"), true, latencies(one), latencies(other)));
    }
    pairs
}

/// The best step of the steady regime.
fn best(scenario: &Value) -> Option<&Value> {
    let step = usize::try_from(scenario["steady"]["best_step"].as_u64()?).ok()?;
    scenario["steady"]["steps"].get(step)?.get("phase")
}

/// The overloads that both have, by their factor.
fn overloads<'a>(before: &'a Value, after: &'a Value) -> Vec<(u64, &'a Value, &'a Value)> {
    let of = |scenario: &'a Value| scenario["overload"].as_array().into_iter().flatten();
    let both = of(before).filter_map(|one| {
        let other = of(after).find(|other| other["factor"] == one["factor"])?;
        Some((one["factor"].as_u64()?, one, other))
    });
    both.collect()
}

/// Seconds that loads took which were let in, in the order in which they came.
fn latencies(phase: &Value) -> Vec<f64> {
    let let_in = |load: &Kept| ["met", "late", "expired"].contains(&load.outcome.as_str());
    let loads = read(&phase["loads"]);
    loads.iter().filter(|load| let_in(load)).map(|load| load.ended - load.scheduled).collect()
}

/// Loads a second that ended in time, for each piece of a phase.
fn rates(phase: &Value) -> Vec<f64> {
    let loads = read(&phase["loads"]);
    let met = loads.iter().filter(|load| load.outcome == "met");
    let ends: Vec<f64> = met.map(|load| load.ended).collect();
    let seconds = phase["seconds"].as_f64().unwrap_or(0.0);
    let pieces = (1..=600).take_while(|pieces| f64::from(*pieces) * PIECE <= 0.8 * seconds);
    by_piece(&ends, seconds, pieces.last().unwrap_or(0).max(PIECES_MIN))
}

/// The times until floor latency are one each: only the bound tells them apart.
fn recovery_of(before: &Value, after: &Value) -> Vec<Compared> {
    let known = |overload: &Value| overload["recovery_seconds"].as_f64().unwrap_or(f64::INFINITY);
    let one = |(factor, one, other): (u64, &Value, &Value)| {
        let (before_s, after_s) = (known(one), known(other));
        let verdict = match (before_s <= RECOVERY_MAX, after_s <= RECOVERY_MAX) {
            (true, false) => Verdict::Worse,
            (false, true) => Verdict::Better,
            _ => Verdict::Same,
        };
        let changed = verdict != Verdict::Same;
        let tested =
            Tested { measure: "once", before: before_s, after: after_s, chance: f64::NAN, changed };
        Compared {
            scenario: before["scenario"].as_str().unwrap_or_default().to_owned(),
            name: format!("overload {factor}x until floor latency, s"),
            tested: vec![tested],
            verdict,
        }
    };
    overloads(before, after).into_iter().map(one).collect()
}

/// Tests all figures, together.
fn judged(pairs: Vec<Pair>) -> Vec<Compared> {
    let mut tested: Vec<Vec<Tested>> = pairs.iter().map(tests).collect();
    let chances: Vec<f64> = tested.iter().flatten().map(|test| test.chance).collect();
    for (test, holds) in tested.iter_mut().flatten().zip(holm(&chances, LEVEL)) {
        test.changed = holds && test.rise().abs() > CHANGE_MIN;
    }
    let both = pairs.into_iter().zip(tested);
    both.map(|(pair, tested)| {
        let verdict = verdict(pair.is_latency, &tested);
        Compared { scenario: pair.scenario, name: pair.name, tested, verdict }
    })
    .collect()
}

fn tests(pair: &Pair) -> Vec<Tested> {
    let measures: &[(&'static str, Measure)] = match pair.is_latency {
        true => &[("median", Measure::Quantile(500)), ("p99", Measure::Beyond(990))],
        false => &[("mean", Measure::Mean)],
    };
    let of = |measure: Measure, values: &[f64]| match measure {
        Measure::Quantile(per_mille) | Measure::Beyond(per_mille) => quantile_of(values, per_mille),
        Measure::Mean => mean(values),
    };
    let blocks = block(pair.before.len().min(pair.after.len()));
    let test = |(name, measure): &(&'static str, Measure)| Tested {
        measure: name,
        before: of(*measure, &pair.before),
        after: of(*measure, &pair.after),
        chance: chance(&pair.before, &pair.after, *measure, blocks, SEED),
        changed: false,
    };
    measures.iter().map(test).collect()
}

/// What became of a figure.
fn verdict(is_latency: bool, tested: &[Tested]) -> Verdict {
    let rose = |test: &Tested| test.changed && test.rise() > 0.0;
    let fell = |test: &Tested| test.changed && test.rise() < 0.0;
    let (up, down) = (tested.iter().any(rose), tested.iter().any(fell));
    if !is_latency {
        return match (up, down) {
            (_, true) => Verdict::Worse,
            (true, false) => Verdict::Better,
            (false, false) => Verdict::Same,
        };
    }
    // Even a rise that may be chance takes the improvement away: the tail has to prove itself.
    let longer_tail = tested.iter().any(|test| test.measure == "p99" && test.rise() > CHANGE_MIN);
    match (up, down) {
        (true, _) => Verdict::Worse,
        (false, true) if longer_tail => Verdict::Paid,
        (false, true) => Verdict::Better,
        (false, false) => Verdict::Same,
    }
}

impl Comparison {
    fn text(&self) -> String {
        let mut out = String::new();
        if !self.unlike.is_empty() {
            put(&mut out, format_args!("NOT MADE UNDER THE SAME CONDITIONS:\n"));
        }
        for unlike in &self.unlike {
            put(&mut out, format_args!("  {unlike}\n"));
        }
        let width = self.compared.iter().map(|one| one.name.len()).max().unwrap_or(0);
        for one in &self.compared {
            // The verdict stands in the first line of a figure.
            let verdicts = [one.verdict.as_str()].into_iter().chain(std::iter::repeat(""));
            for (test, verdict) in one.tested.iter().zip(verdicts) {
                put(
                    &mut out,
                    format_args!(
                        "{:<16} {:<width$} {:<7} {:>9} {:>9} {:>+8.1} %  {:<10} {verdict}\n",
                        one.scenario,
                        one.name,
                        test.measure,
                        shown(test.before),
                        shown(test.after),
                        100.0 * test.rise(),
                        by_chance(test.chance)
                    ),
                );
            }
        }
        let count = |verdict| self.compared.iter().filter(|one| one.verdict == verdict).count();
        put(
            &mut out,
            format_args!(
                "{} better, {} worse, {} without a change beyond noise\n",
                count(Verdict::Better),
                count(Verdict::Worse),
                count(Verdict::Same) + count(Verdict::Paid)
            ),
        );
        out
    }

    fn json(&self) -> Value {
        let test = |test: &Tested| {
            json!({
                "measure": test.measure, "before": test.before, "after": test.after,
                "chance": test.chance, "changed": test.changed,
            })
        };
        let one = |one: &Compared| {
            json!({
                "scenario": one.scenario, "figure": one.name, "verdict": one.verdict.as_str(),
                "measures": one.tested.iter().map(test).collect::<Vec<_>>(),
            })
        };
        json!({
            "different_conditions": self.unlike,
            "figures": self.compared.iter().map(one).collect::<Vec<_>>(),
        })
    }
}

fn by_chance(chance: f64) -> String {
    if chance.is_finite() { format!("p {chance:.4}") } else { String::new() }
}

#[cfg(test)]
#[path = "compare_tests.rs"]
mod tests;
