//! Comparisons of runs whose distributions are known.

use forebay_testkit::Prng;
use serde_json::{Value, json};

use super::super::sample::tests::sample;
use super::super::sample::{Ended, table};
use super::*;

/// How loads of a made-up run are.
#[derive(Clone, Copy)]
struct Made {
    scale: f64,
    /// Of so many loads one takes this many times as long.
    tail: (u64, f64),
    /// Loads in time each second of the overload.
    goodput: u32,
    recovery: f64,
    cores: u64,
}

const USUAL: Made = Made { scale: 1.0, tail: (1000, 1.0), goodput: 40, recovery: 0.2, cores: 2 };

fn loads(made: Made, seed: u64, count: u32) -> Value {
    let mut prng = Prng::new(seed);
    let samples: Vec<_> = (0..count)
        .map(|n| {
            let unit = (prng.next_u64() >> 11) as f64 / (1_u64 << 53) as f64;
            let late = if prng.below(made.tail.0) == 0 { made.tail.1 } else { 1.0 };
            let latency = made.scale * late * (0.010 - 0.002 * (1.0 - unit).ln());
            sample(f64::from(n) * 10.0 / f64::from(count), latency, Ended::Met)
        })
        .collect();
    table(&samples)
}

fn run(made: Made, seed: u64) -> Value {
    let over = loads(made, seed + 1, made.goodput * 10);
    json!({
        "forebay_bench": FORM,
        "envelope": { "hardware": { "cores": made.cores } },
        "scenarios": [{
            "scenario": "ram",
            "floor": { "seconds": 10.0, "loads": loads(made, seed, 400) },
            "steady": null,
            "overload": [{
                "factor": 10, "recovery_seconds": made.recovery,
                "phase": { "rate": 400.0, "seconds": 10.0, "loads": over },
            }],
        }],
    })
}

fn verdicts(before: Made, after: Made, seed: u64) -> Vec<(String, Verdict)> {
    let comparison = compare(&run(before, seed), &run(after, seed + 77_000));
    comparison.compared.into_iter().map(|one| (one.name, one.verdict)).collect()
}

fn of(found: &[(String, Verdict)], name: &str) -> Verdict {
    found.iter().find(|(known, _)| known.starts_with(name)).expect(name).1
}

#[test]
fn two_runs_of_the_same_are_not_called_different() {
    let alarms = (0..20).filter(|seed| {
        verdicts(USUAL, USUAL, seed * 10).iter().any(|(_, verdict)| *verdict != Verdict::Same)
    });
    // At a level of 5 % one of twenty; more than four would be three in a thousand.
    let alarms = alarms.count();
    assert!(alarms <= 4, "{alarms} of 20");
}

#[test]
fn a_slower_run_is_worse_and_a_faster_one_better() {
    let slower = Made { scale: 1.2, ..USUAL };
    let found = verdicts(USUAL, slower, 1);
    assert_eq!(of(&found, "floor latency"), Verdict::Worse, "{found:?}");
    let found = verdicts(slower, USUAL, 1);
    assert_eq!(of(&found, "floor latency"), Verdict::Better, "{found:?}");
}

#[test]
fn a_better_median_does_not_make_up_for_a_longer_tail() {
    let traded = Made { scale: 0.8, tail: (30, 6.0), ..USUAL };
    let found = verdicts(USUAL, traded, 3);
    assert_eq!(of(&found, "floor latency"), Verdict::Worse, "{found:?}");
}

#[test]
fn a_tail_that_may_have_risen_by_chance_takes_the_improvement_away() {
    let test =
        |measure, after, changed| Tested { measure, before: 1.0, after, chance: 0.001, changed };
    let better = test("median", 0.8, true);
    assert_eq!(verdict(true, &[better.clone(), test("p99", 1.1, false)]), Verdict::Paid);
    assert_eq!(verdict(true, &[better.clone(), test("p99", 1.0, false)]), Verdict::Better);
    assert_eq!(verdict(true, &[better, test("p99", 1.1, true)]), Verdict::Worse);
    assert_eq!(verdict(false, &[test("mean", 1.1, true)]), Verdict::Better);
    assert_eq!(verdict(false, &[test("mean", 0.9, true)]), Verdict::Worse);
}

#[test]
fn less_goodput_and_a_late_recovery_are_worse() {
    let found = verdicts(USUAL, Made { goodput: 30, recovery: 1.5, ..USUAL }, 5);
    assert_eq!(of(&found, "overload 10x goodput"), Verdict::Worse, "{found:?}");
    assert_eq!(of(&found, "overload 10x until"), Verdict::Worse, "{found:?}");
    assert_eq!(of(&found, "floor latency"), Verdict::Same, "{found:?}");
}

#[test]
fn other_conditions_are_said_first() {
    let comparison = compare(&run(USUAL, 1), &run(Made { cores: 4, ..USUAL }, 2));
    assert_eq!(comparison.unlike, ["cores: 2, then 4"]);
    let text = comparison.text();
    assert!(
        text.starts_with("NOT MADE UNDER THE SAME CONDITIONS:\n  cores: 2, then 4\n"),
        "{text}"
    );
    let json = comparison.json();
    assert_eq!(json["figures"].as_array().map(Vec::len), Some(comparison.compared.len()));
}

#[test]
fn a_file_that_is_no_run_is_refused() {
    let file = tempfile::NamedTempFile::new().unwrap();
    for text in ["", "{}", "[1]", "{\"forebay_bench\": 99}"] {
        std::fs::write(file.path(), text).unwrap();
        document(file.path()).unwrap_err();
    }
    std::fs::write(file.path(), run(USUAL, 1).to_string()).unwrap();
    document(file.path()).unwrap();
    document(Path::new("/nowhere/a.json")).unwrap_err();
}
