//! `run --all`: every bench of this program, one after the other, and a list at the end of what was
//! promised and what came of it.
//!
//! Each bench runs in a process of its own, which this program starts as a person would, and answers
//! with its table as JSON: one that fails takes no other along, and one that has to begin anew in
//! namespaces of its own can.

use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::Value;

use super::plot::{put, shown};
use crate::Outcome;
use crate::origin::progress;

/// A bench, and what it is told beyond its name.
struct Bench {
    name: &'static str,
    full: &'static [&'static str],
    /// For a first look.
    quick: &'static [&'static str],
}

/// All of them, in the order in which they run. A bench that is added to the program gets a line
/// here: it takes `--format json` and answers with a `Table`.
const BENCHES: [Bench; 7] = [
    Bench { name: "origin", full: &[], quick: &["--quick", "--runs", "1"] },
    Bench {
        name: "nvme",
        full: &[],
        quick: &["--runs", "1", "--mib", "256", "--extents", "16384"],
    },
    Bench { name: "packed", full: &[], quick: &["--quick", "--runs", "1"] },
    Bench { name: "device", full: &[], quick: &["--runs", "1", "--mib", "128"] },
    Bench { name: "cost", full: &[], quick: &["--runs", "3", "--mib", "256"] },
    Bench { name: "accuracy", full: &[], quick: &["--runs", "2", "--mib", "16"] },
    Bench { name: "peers", full: &[], quick: &["--runs", "1", "--mib", "256"] },
];

/// What one promise came to.
#[derive(Debug, Clone, PartialEq)]
struct Line {
    bench: String,
    row: String,
    what: String,
    value: String,
    verdict: Kept,
}

/// Whether a promise was kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kept {
    Pass,
    Miss,
    Skipped,
}

impl Kept {
    /// By a bound of a table.
    fn of(bound: &Value) -> Self {
        if bound["holds"] == true { Self::Pass } else { Self::Miss }
    }

    fn as_str(self) -> &'static str {
        match self {
            Self::Pass => "pass",
            Self::Miss => "MISS",
            Self::Skipped => "skipped",
        }
    }
}

/// Runs every bench; their tables, as JSON. One that cannot be run is a table with its reason.
pub(super) fn tables(quick: bool, dir: Option<&Path>) -> Vec<Value> {
    let table = |bench: &Bench| {
        progress(format_args!("{}", bench.name));
        let (args, left_out) = arguments(bench, quick, dir, has_fio());
        let mut table = told(bench.name, &args).unwrap_or_else(|error| {
            progress(format_args!("{}: {error}", bench.name));
            failed(bench.name, &error.to_string())
        });
        if let Some(rows) = table["rows"].as_array_mut() {
            rows.extend(left_out);
        }
        table
    };
    BENCHES.iter().map(table).collect()
}

/// What a bench is told, and rows that are left out for want of a program.
fn arguments(
    bench: &Bench,
    quick: bool,
    dir: Option<&Path>,
    fio: bool,
) -> (Vec<String>, Vec<Value>) {
    let usual = if quick { bench.quick } else { bench.full };
    let mut args: Vec<String> = usual.iter().map(|arg| (*arg).to_owned()).collect();
    let mut left_out = Vec::new();
    if bench.name == "nvme" {
        args.extend(
            dir.into_iter().flat_map(|dir| ["--dir".to_owned(), dir.display().to_string()]),
        );
        if !fio {
            args.extend(["--only", "start", "--only", "fill"].map(str::to_owned));
            let why = "skipped: it compares with fio, which is not there: apt-get install fio";
            left_out = ["hit", "threads"].map(|row| row_of(row, why)).into();
        }
    }
    (args, left_out)
}

fn has_fio() -> bool {
    let asked = Command::new("fio").arg("--version").stdout(Stdio::null()).status();
    asked.is_ok_and(|status| status.success())
}

fn row_of(row: &str, what: &str) -> Value {
    serde_json::json!({ "row": row, "what": what, "figures": [], "bounds": [] })
}

/// The table of a bench that could not be run.
fn failed(bench: &str, why: &str) -> Value {
    let mut row = row_of("all", &format!("failed: {why}"));
    row["bounds"] = serde_json::json!([{
        "what": "it ran", "value": null, "kind": "at least", "limit": 1, "holds": false,
    }]);
    serde_json::json!({ "bench": bench, "ground": {}, "holds": false, "rows": [row] })
}

/// Runs one of this program's verbs; what it says.
fn told(verb: &str, args: &[String]) -> Outcome<Value> {
    let mut command = Command::new(std::env::current_exe()?);
    command.arg(verb).args(args).args(["--format", "json"]);
    let output = command.stdin(Stdio::null()).stderr(Stdio::inherit()).output()?;
    if !output.status.success() {
        return Err(format!("it ended with {}; what it said is above", output.status).into());
    }
    Ok(serde_json::from_slice(&output.stdout)?)
}

/// A table for a terminal.
pub(super) fn text(table: &Value) -> String {
    let string = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let ground = table["ground"].as_object().into_iter().flatten();
    let ground: Vec<String> =
        ground.map(|(name, value)| format!("{name} {}", string(value))).collect();
    let mut out = format!("\n{}: {}\n", string(&table["bench"]), ground.join(", "));
    for row in table["rows"].as_array().into_iter().flatten() {
        put(&mut out, format_args!("\n{}  {}\n", string(&row["row"]), string(&row["what"])));
        for figure in row["figures"].as_array().into_iter().flatten() {
            let [median, min, max] = ["median", "min", "max"]
                .map(|name| shown(figure[name].as_f64().unwrap_or(f64::NAN)));
            put(
                &mut out,
                format_args!(
                    "  {:<44} {median:>9} {:<9} ({min} to {max})\n",
                    string(&figure["of"]),
                    string(&figure["unit"])
                ),
            );
        }
        for bound in row["bounds"].as_array().into_iter().flatten() {
            let verdict = if bound["holds"] == true { "holds" } else { "MISSED" };
            put(
                &mut out,
                format_args!("  {:<44} {}: {verdict}\n", string(&bound["what"]), value_of(bound)),
            );
        }
    }
    out
}

/// A bound's value beside its limit.
fn value_of(bound: &Value) -> String {
    let value = shown(bound["value"].as_f64().unwrap_or(f64::NAN));
    format!("{value:>9} {} {}", bound["kind"].as_str().unwrap_or_default(), bound["limit"])
}

/// What was promised and what came of it, of all tables.
pub(super) fn summary(tables: &[Value]) -> String {
    let lines = lines(tables);
    let mut out = "\nsummary\n".to_owned();
    for Line { bench, row, what, value, verdict } in &lines {
        let verdict = verdict.as_str();
        put(&mut out, format_args!("  {verdict:<8} {bench:<9} {row:<16} {what:<44} {value}\n"));
    }
    let count = |verdict| lines.iter().filter(|line| line.verdict == verdict).count();
    put(
        &mut out,
        format_args!(
            "{} pass, {} missed, {} skipped\n",
            count(Kept::Pass),
            count(Kept::Miss),
            count(Kept::Skipped)
        ),
    );
    out
}

fn lines(tables: &[Value]) -> Vec<Line> {
    let mut lines = Vec::new();
    let string = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    for table in tables {
        for row in table["rows"].as_array().into_iter().flatten() {
            let line = |what: String, value: String, verdict| Line {
                bench: string(&table["bench"]),
                row: string(&row["row"]),
                what,
                value,
                verdict,
            };
            let what = string(&row["what"]);
            if what.starts_with("skipped: ") {
                lines.push(line(what, String::new(), Kept::Skipped));
            }
            for bound in row["bounds"].as_array().into_iter().flatten() {
                lines.push(line(string(&bound["what"]), value_of(bound), Kept::of(bound)));
            }
        }
    }
    lines
}

/// Whether every bound of every table holds.
pub(super) fn holds(tables: &[Value]) -> bool {
    lines(tables).iter().all(|line| line.verdict != Kept::Miss)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn table() -> Value {
        let bound = |what, value: Option<f64>, holds| json!({ "what": what, "value": value, "kind": "at least", "limit": 0.9, "holds": holds });
        let mut row = row_of("cold", "a load");
        row["bounds"] = json!([bound("fast", Some(0.95), true), bound("lean", None, false)]);
        json!({
            "bench": "origin", "ground": {"cores": "2"}, "rows": [row, row_of("dns", "skipped: no root")],
        })
    }

    #[test]
    fn a_summary_has_every_bound_and_every_row_that_was_skipped() {
        let tables = [table(), failed("nvme", "no disk")];
        let found: Vec<Kept> = lines(&tables).iter().map(|line| line.verdict).collect();
        assert_eq!(found, [Kept::Pass, Kept::Miss, Kept::Skipped, Kept::Miss]);
        let summary = summary(&tables);
        assert!(summary.ends_with("1 pass, 2 missed, 1 skipped\n"), "{summary}");
        assert!(summary.contains("skipped: no root"), "{summary}");
        assert!(!holds(&tables) && holds(&[]));
        let text = text(&tables[0]);
        assert!(text.contains("0.950 at least 0.9: holds") && text.contains("MISSED"), "{text}");
    }

    #[test]
    fn without_fio_its_rows_are_left_out_and_say_so() {
        let bench = &BENCHES[1];
        let (args, left_out) = arguments(bench, true, Some(Path::new("/d")), false);
        assert_eq!(args[args.len() - 4..], ["--only", "start", "--only", "fill"]);
        assert_eq!(left_out.len(), 2);
        let (args, left_out) = arguments(bench, false, None, true);
        assert!(args.is_empty() && left_out.is_empty());
    }
}
