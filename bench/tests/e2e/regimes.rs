//! `forebay-bench run` and `compare`, as a person runs them, at a size that says nothing.

use std::path::Path;
use std::process::{Command, Output};

use forebay_testkit::temp_dir;
use serde_json::Value;

use crate::command::text;

fn bench(args: &[&str]) -> Output {
    let bench = Command::new(env!("CARGO_BIN_EXE_forebay-bench")).args(args).output();
    bench.expect("the bench runs")
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).expect("the bench has written it")
}

/// What a table keeps of loads or looks: rows, and columns of loads that were refused.
fn count(table: &Value) -> usize {
    let columns = table["columns"].as_array().expect("columns").len();
    let rows = table["rows"].as_array().expect("rows");
    assert!(rows.iter().all(|row| row.as_array().is_some_and(|row| row.len() == columns)));
    let refused = ["scheduled", "began_after", "ended_after"]
        .map(|column| table["refused"][column].as_array().map_or(0, Vec::len));
    assert_eq!(refused, [refused[0]; 3]);
    rows.len() + refused[0]
}

/// Every element that is opened is closed, in order.
fn assert_well_formed(page: &str) {
    let mut open = Vec::new();
    let style = page.find("<style>").expect("a style")..page.find("</style>").expect("its end");
    let body = format!("{}{}", &page[..style.start], &page[style.end + "</style>".len()..]);
    for tag in body.split('<').skip(1) {
        let (tag, _) = tag.split_once('>').expect("a tag ends");
        let name = tag.split([' ', '/']).find(|name| !name.is_empty()).expect("a tag has a name");
        match tag {
            tag if tag.starts_with('!') || tag.ends_with('/') => {}
            tag if tag.starts_with('/') => assert_eq!(open.pop(), Some(name), "{tag}"),
            _ => open.push(name),
        }
    }
    assert!(open.is_empty(), "{open:?}");
}

#[test]
fn a_run_keeps_every_load_and_compares_with_itself() {
    let dir = temp_dir();
    let [json, html] = ["a.json", "a.html"].map(|name| dir.path().join(name));
    let [json_path, html_path] = [&json, &html].map(|path| path.display().to_string());
    let run = bench(&[
        "run",
        "ram",
        "--quick",
        "--mib",
        "1",
        "--runs",
        "5",
        "--seconds",
        "1",
        "--deadline",
        "5s",
        "-o",
        &json_path,
        "--html",
        &html_path,
    ]);
    assert_eq!(run.status.code(), Some(0), "{run:?}");
    let said = text(&run.stdout);
    assert!(said.contains("floor: ") && said.contains("overload 10x: "), "{said}");
    assert!(said.contains("summary"), "{said}");

    let document: Value = serde_json::from_str(&read(&json)).expect("JSON");
    let found = &document["scenarios"][0];
    assert_eq!(found["scenario"], "ram");
    assert_eq!(count(&found["floor"]["loads"]), 5);
    assert!(count(&found["floor"]["watched"]) > 0);
    let steps = found["steady"]["steps"].as_array().expect("steps");
    for step in steps {
        let phase = &step["phase"];
        assert_eq!(count(&phase["loads"]) as u64, phase["sums"]["arrived"].as_u64().unwrap());
    }
    for place in [
        "/envelope/hardware/cores",
        "/envelope/limits/files",
        "/checkpoint/revision",
        "/settings_that_differ/0",
        "/machine_meanwhile/busy",
        "/capacity/predicted_bytes_per_second",
        "/timeline/spans/0",
    ] {
        let within = if place.starts_with("/envelope") { &document } else { found };
        assert!(within.pointer(place).is_some_and(|value| !value.is_null()), "{place}");
    }

    let page = read(&html);
    assert_well_formed(&page);
    assert!(!page.contains("<script") && !page.contains("src="), "it needs nothing else");
    for needed in ["Timeline of a usual load", "Memory over time", "<polyline", "<circle", "<rect"]
    {
        assert!(page.contains(needed), "{needed}");
    }

    let same = bench(&["compare", &json_path, &json_path]);
    assert_eq!(same.status.code(), Some(0), "{same:?}");
    assert!(text(&same.stdout).contains("0 better, 0 worse"), "{same:?}");
}

#[test]
fn what_cannot_be_measured_says_why() {
    let skipped = bench(&["run", "packed", "--uri", "http://127.0.0.1:1/m/"]);
    assert!(text(&skipped.stderr).contains("packed: skipped: "), "{skipped:?}");
    let failed = bench(&["run", "cold", "--uri", "http://127.0.0.1:1/m/", "--regime", "floor"]);
    assert_eq!(failed.status.code(), Some(1), "{failed:?}");
    assert!(text(&failed.stderr).contains("ORIGIN_UNREACHABLE"), "{failed:?}");
    let wrong = bench(&["compare", "/nowhere/a.json", "/nowhere/b.json"]);
    assert_eq!(wrong.status.code(), Some(1), "{wrong:?}");
    assert!(text(&wrong.stderr).contains("/nowhere/a.json"), "{wrong:?}");
}
