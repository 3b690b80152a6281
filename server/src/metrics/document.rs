//! The document of the metrics, `server/METRICS.md`, made from the table.
//!
//! `cargo test -p forebay-server metrics -- --ignored` writes it; a test compares it.

use std::fmt::Write;

use metrics::Unit;

use super::labels::{Label, Values};
use super::{Row, TABLE, Type, bounds};
use crate::workload::WORKLOADS_MAX;

/// Series that a scrape holds for each series of a histogram beside its buckets: `+Inf`, sum, count.
const BESIDE_BUCKETS: usize = 3;

const HEAD: &str = "\
# Metrics

What `GET /metrics` of `forebayd` exposes, in Prometheus' text format. This file is made from the
table in `server/src/metrics/table.rs`; to write it anew:

```sh
cargo test -p forebay-server metrics -- --ignored
```

A label has the values that are listed with it and no others. Where they come from the settings or
from the machine, the bound is in brackets. Counters with one such label, or none, begin at zero;
others and histograms appear when they first count something. *Series* is the most there can be of one daemon: one for each combination of labels, times
the buckets, sum and count of a histogram. Real numbers are far below that: a combination takes room
only after it occurred.
";

fn kind(row: &Row) -> &'static str {
    match row.kind {
        Type::Counter => "counter",
        Type::Gauge => "gauge",
        Type::Histogram => "histogram",
    }
}

fn unit(row: &Row) -> &'static str {
    match row.unit {
        Unit::Seconds => "seconds",
        Unit::Bytes => "bytes",
        _ => "1",
    }
}

/// The most series that there can be of it.
fn series(row: &Row) -> usize {
    let labels: usize = row.labels.iter().map(Label::most).product();
    match row.kind {
        Type::Histogram => labels * (bounds(row.name).len() + BESIDE_BUCKETS),
        Type::Counter | Type::Gauge => labels,
    }
}

fn label(label: &Label) -> String {
    let code = |values: &[&str]| {
        let quoted: Vec<String> = values.iter().map(|value| format!("`{value}`")).collect();
        quoted.join(" ")
    };
    match label.values {
        Values::Of(values) => format!("`{}`: {}", label.key, code(values)),
        Values::And { fixed: [], source, most } => {
            format!("`{}`: {source} [{most}]", label.key)
        }
        Values::And { fixed, source, most } => {
            format!("`{}`: {} and {source} [{most}]", label.key, code(fixed))
        }
    }
}

/// The document.
pub(super) fn document() -> String {
    let mut text = HEAD.to_owned();
    for row in TABLE {
        let Row { name, meaning, .. } = row;
        let (kind, unit, most) = (kind(row), unit(row), series(row));
        write!(text, "\n## {name}\n\n{kind}, {unit}; at most {most} series. {meaning}.\n").unwrap();
        if !row.labels.is_empty() {
            text.push('\n');
        }
        for of in row.labels {
            writeln!(text, "- {}", label(of)).unwrap();
        }
    }
    let all: usize = TABLE.iter().map(series).sum();
    let stages = || TABLE.iter().filter(|row| row.name.starts_with("forebay_stage_"));
    // Of one workload, kind of device and outcome.
    let usual = |row: &Row| {
        let counted = row.labels.iter().filter(|label| ["stage", "tier"].contains(&label.key));
        counted.map(Label::most).product::<usize>() * (bounds(row.name).len() + BESIDE_BUCKETS)
    };
    let usual: usize = stages().map(usual).sum();
    let stages: usize = stages().map(series).sum();
    write!(
        text,
        "\n## All of them\n\n{} metrics, at most {all} series; {stages} of these are the two \
         histograms of stages with {WORKLOADS_MAX} workloads, every kind of device, every tier and \
         every outcome. Of loads of one workload, to one kind of device and with one outcome there \
         are at most {usual}.\n",
        TABLE.len(),
    )
    .unwrap();
    text
}

fn path() -> std::path::PathBuf {
    std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("METRICS.md")
}

#[test]
#[ignore = "writes the document"]
fn write_the_document() {
    std::fs::write(path(), document()).unwrap();
}

#[test]
fn the_document_is_that_of_the_table() {
    let written = std::fs::read_to_string(path()).unwrap_or_default();
    let same = written == document();
    assert!(same, "run `cargo test -p forebay-server metrics -- --ignored` and commit METRICS.md");
}
