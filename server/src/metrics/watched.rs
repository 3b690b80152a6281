//! Tests over what people watch: the dashboard and the alert rules in `docker/grafana` use the table's
//! names and labels and no others.

use std::collections::BTreeSet;
use std::path::Path;

use super::labels::Values;
use super::{Row, TABLE, Type};

/// Labels that Prometheus adds to each target, or that a histogram's buckets have.
const OF_PROMETHEUS: [&str; 3] = ["instance", "job", "le"];

fn text(name: &str) -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    std::fs::read_to_string(root.join("docker/grafana").join(name)).unwrap()
}

/// The expressions of the rules, one line each.
fn rules() -> Vec<String> {
    let rules = text("rules.yml");
    let expressions = rules.lines().filter_map(|line| line.trim().strip_prefix("expr: "));
    expressions.map(str::to_owned).collect()
}

/// The expressions of the panels, and the queries of the variables.
fn panels() -> Vec<String> {
    let dashboard: serde_json::Value = serde_json::from_str(&text("dashboard.json")).unwrap();
    let variables = dashboard["templating"]["list"].as_array().unwrap();
    let queries = variables.iter().filter_map(|of| of["query"]["query"].as_str());
    let panels = dashboard["panels"].as_array().unwrap();
    let targets = panels.iter().filter_map(|panel| panel["targets"].as_array()).flatten();
    let expressions = targets.map(|target| target["expr"].as_str().unwrap());
    queries.chain(expressions).map(str::to_owned).collect()
}

/// The row of a metric, or of a histogram that it is a part of.
fn row(name: &str) -> Option<&'static Row> {
    let whole = TABLE.iter().find(|row| row.name == name && row.kind != Type::Histogram);
    let of_part = |part: &str| {
        let histogram = name.strip_suffix(part)?;
        TABLE.iter().find(|row| row.name == histogram && row.kind == Type::Histogram)
    };
    whole.or_else(|| ["_bucket", "_sum", "_count"].into_iter().find_map(of_part))
}

/// The labels in `by (...)` of an expression.
fn grouped(expression: &str) -> Vec<&str> {
    let groups = expression.split(" by (").skip(1);
    groups.flat_map(|rest| rest.split(')').next().unwrap().split(',').map(str::trim)).collect()
}

/// What an expression selects: the metric, and the matchers of its labels.
fn selections(expression: &str) -> Vec<(&str, Vec<(&str, &str)>)> {
    let starts = expression.match_indices("forebay_").map(|(at, _)| at);
    let of = |at: usize| {
        let rest = &expression[at..];
        let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        let (name, rest) = rest.split_at(end.unwrap_or(rest.len()));
        let matchers = rest.strip_prefix('{').and_then(|rest| rest.split_once('}'));
        let matchers = matchers.map_or("", |(matchers, _)| matchers);
        let matchers = matchers.split(',').filter(|matcher| !matcher.is_empty());
        let parsed = matchers.map(|matcher| {
            let (key, value) = matcher.split_once(['=', '!']).unwrap();
            (key, value.trim_start_matches(['=', '~']).trim_matches('"'))
        });
        (name, parsed.collect())
    };
    starts.map(of).collect()
}

fn check(expression: &str) {
    let mut keys: BTreeSet<&str> = OF_PROMETHEUS.into();
    for (name, matchers) in selections(expression) {
        let row = row(name).unwrap_or_else(|| panic!("{name} of {expression:?} is not there"));
        keys.extend(row.labels.iter().map(|label| label.key));
        for (key, values) in matchers {
            if OF_PROMETHEUS.contains(&key) {
                continue;
            }
            let label = row.labels.iter().find(|label| label.key == key);
            let label = label.unwrap_or_else(|| panic!("{name} has no {key}: {expression:?}"));
            for value in values.split('|').filter(|value| !value.starts_with('$')) {
                let known = matches!(label.values, Values::And { .. }) || label.allows(value);
                assert!(known, "{name} has no {key}={value:?}: {expression:?}");
            }
        }
    }
    for key in grouped(expression) {
        assert!(keys.contains(key), "nothing in {expression:?} has {key}");
    }
    let balance = |open, close| {
        expression.matches::<char>(open).count() == expression.matches::<char>(close).count()
    };
    assert!(balance('(', ')') && balance('{', '}') && balance('[', ']'), "{expression:?}");
}

#[test]
fn alert_rules_use_what_there_is() {
    let rules = rules();
    assert!(rules.len() >= 10, "{rules:?}");
    rules.iter().for_each(|rule| check(rule));
    let all = rules.join("\n");
    for needed in [
        "forebay_gpu_idle_seconds",
        "forebay_breaker_state",
        "forebay_cache_disk_state",
        "forebay_runtime_lag_seconds",
        "forebay_admission_oldest_wait_seconds",
        "forebay_loads_in_deadline_total",
        "forebay_digest_mismatches_total",
        "forebay_degraded",
        "forebay_gpu_idle_confidence",
    ] {
        assert!(all.contains(needed), "no rule looks at {needed}");
    }
}

#[test]
fn the_dashboard_shows_what_there_is() {
    let panels = panels();
    assert!(panels.len() >= 50, "{}", panels.len());
    panels.iter().for_each(|panel| check(panel));
}

#[test]
#[should_panic(expected = "has no outcome")]
fn a_label_that_a_metric_does_not_have_is_found() {
    check("sum(rate(forebay_flights{outcome=\"ok\"}[5m]))");
}

#[test]
#[should_panic(expected = "has no outcome=\"good\"")]
fn a_value_that_a_label_does_not_have_is_found() {
    check("sum(rate(forebay_loads_total{outcome=~\"ok|good\"}[5m]))");
}

#[test]
#[should_panic(expected = "has lane")]
fn a_group_that_nothing_has_is_found() {
    check("sum by (lane) (forebay_flights)");
}
