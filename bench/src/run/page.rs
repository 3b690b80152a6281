//! One HTML page of a run that needs nothing else: tables with their bounds, the conditions, and
//! plots of where the time went, of rates and queues, of one load, and of memory.

use std::collections::BTreeMap;

use forebay_client::Trace;
use serde_json::Value;

use super::document::{Measured, track};
use super::knee::Verdict;
use super::plot::{Bar, Chart, Series, bars, escaped, put, shown};
use super::regimes::{Phase, Steady, oldest_queue};
use super::statistics::quantile_of;

/// Tracks of a timeline that are drawn; a large load has hundreds of chunks.
const TRACKS_MAX: usize = 40;

const STYLE: &str = "\
body{font:15px/1.45 system-ui,sans-serif;max-width:76rem;margin:2rem auto;padding:0 1rem;\
color:#1b1b1b;background:#fff}h1{font-size:1.6rem}h2{margin-top:2.5rem;border-bottom:1px solid #ccc}\
table{border-collapse:collapse;margin:.6rem 0}td,th{padding:.15rem .7rem;text-align:left;\
border-bottom:1px solid #e4e4e4;vertical-align:top}td.n{text-align:right;\
font-variant-numeric:tabular-nums}.missed{color:#b00020;font-weight:600}.holds{color:#00663d}\
.plots{display:grid;grid-template-columns:repeat(auto-fit,minmax(30rem,1fr));gap:1rem}\
figure{margin:0}figcaption{font-weight:600}svg{width:100%;height:auto;font:11px system-ui,sans-serif}\
svg .grid{stroke:#ddd;stroke-width:1}.legend{font-size:.8rem;margin:.1rem 0}\
.legend i{display:inline-block;width:.8em;height:.8em;margin-right:.3em}\
.legend span{margin-right:.8em}pre{background:#f6f6f6;padding:.6rem;overflow:auto}";

/// The page. Tables are those of benches, as their JSON has them.
pub(super) fn page(envelope: &Value, measured: &[Measured], tables: &[Value]) -> String {
    let mut out = "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"/>\
        <title>forebay-bench run</title><style>"
        .to_owned();
    out.push_str(STYLE);
    out.push_str("</style></head><body><h1>forebay-bench run</h1>\n");
    for one in measured {
        scenario(&mut out, one);
    }
    for one in tables {
        table(&mut out, one);
    }
    out.push_str("<h2 id=\"conditions\">Conditions</h2>\n<table>");
    facts(&mut out, "", envelope);
    out.push_str("</table>\n");
    for one in measured {
        conditions(&mut out, one);
    }
    out.push_str("</body></html>\n");
    out
}

fn scenario(out: &mut String, measured: &Measured) {
    let name = measured.scenario.name();
    put(
        out,
        format_args!(
            "<h2 id=\"{0}\">{0}</h2>\n<p>{1}</p>\n<div class=\"plots\">",
            escaped(name),
            escaped(&measured.what)
        ),
    );
    plot(out, "Where the time of a load went (critical path, median load)", &split(measured));
    if let Some(steady) = &measured.steady {
        plot(out, "Rate against the age of the oldest waiter", &rate_and_age(steady));
    }
    if let Some(trace) = &measured.trace {
        plot(out, "Timeline of a usual load of the floor", &timeline(trace));
    }
    plot(out, "Memory over time", &memory(measured));
    out.push_str("</div>\n");
}

fn plot(out: &mut String, caption: &str, svg: &str) {
    let caption = escaped(caption);
    put(out, format_args!("<figure><figcaption>{caption}</figcaption>{svg}</figure>\n"));
}

/// The phases of a scenario, by name.
fn phases(measured: &Measured) -> Vec<(String, &Phase)> {
    let mut phases = vec![("floor".to_owned(), &measured.floor)];
    phases.extend(measured.best().map(|best| ("steady, best rate".to_owned(), best)));
    let over = measured.overloads.iter();
    phases.extend(over.map(|one| (format!("overload {}x", one.factor), &one.phase)));
    phases
}

/// The mean time of each stage on the critical path, of the tenth of loads around the median.
fn around_median(phase: &Phase) -> BTreeMap<&str, f64> {
    let mut loads: Vec<_> =
        phase.samples.iter().filter(|sample| !sample.stages.is_empty()).collect();
    loads.sort_by(|a, b| a.latency().total_cmp(&b.latency()));
    let (middle, reach) = (loads.len() / 2, loads.len() / 20);
    let near = loads.get(middle.saturating_sub(reach)..).unwrap_or_default();
    let near = near.get(..=2 * reach).unwrap_or(near);
    let mut sums: BTreeMap<&str, f64> = BTreeMap::new();
    for sample in near {
        let known: f64 = sample.stages.iter().map(|stage| stage.critical).sum();
        for stage in &sample.stages {
            *sums.entry(&stage.stage).or_default() += stage.critical;
        }
        // Before the request was at the daemon, and after its report.
        *sums.entry("outside the daemon").or_default() += (sample.latency() - known).max(0.0);
    }
    let count = near.len() as f64;
    sums.values_mut().for_each(|sum| *sum /= count);
    sums
}

fn split(measured: &Measured) -> String {
    let phases = phases(measured);
    let found: Vec<_> = phases.iter().map(|(name, phase)| (name, around_median(phase))).collect();
    let mut totals: BTreeMap<&str, f64> = BTreeMap::new();
    for (stage, time) in found.iter().flat_map(|(_, stages)| stages) {
        *totals.entry(stage).or_default() += time;
    }
    // The longest first: they have the colours that differ most.
    let mut kinds: Vec<&str> =
        totals.iter().filter(|(_, time)| **time > 0.0).map(|(stage, _)| *stage).collect();
    kinds.sort_by(|a, b| totals[b].total_cmp(&totals[a]));
    let bar = |(name, stages): &(&String, BTreeMap<&str, f64>)| {
        let mut at = 0.0;
        let parts = kinds.iter().enumerate().filter_map(|(number, kind)| {
            let time = *stages.get(kind)?;
            let from = at;
            at += time;
            Some((from, at, number, format!("{kind}: {} s", shown(time))))
        });
        Bar { name: (*name).clone(), parts: parts.collect() }
    };
    let kinds_told: Vec<String> = kinds.iter().map(|kind| (*kind).to_owned()).collect();
    bars(&found.iter().map(bar).collect::<Vec<_>>(), "where a load was", &kinds_told)
}

fn rate_and_age(steady: &Steady) -> String {
    let points = |verdict: Verdict, age: fn(&Phase) -> f64| {
        let steps = steady.steps.iter().filter(|step| step.verdict == verdict);
        steps.filter_map(|step| Some((step.phase.rate?, age(&step.phase)))).collect()
    };
    let oldest_load = |phase: &Phase| {
        let during = phase.looks.iter().filter(|look| look.at <= phase.seconds);
        quantile_of(&during.map(|look| look.load_age).collect::<Vec<_>>(), 900)
    };
    let series = |name: &str, points| Series { name: name.to_owned(), points, joined: false };
    let series = vec![
        series("bounded: oldest waiter, worst", points(Verdict::Bounded, oldest_queue)),
        series("a queue grew: oldest waiter, worst", points(Verdict::Grows, oldest_queue)),
        series("bounded: oldest load, p90", points(Verdict::Bounded, oldest_load)),
        series("a queue grew: oldest load, p90", points(Verdict::Grows, oldest_load)),
    ];
    Chart { x: "loads that arrive each second", y: "seconds", series }.svg()
}

fn timeline(trace: &Trace) -> String {
    let mut kinds: Vec<String> = Vec::new();
    let mut tracks: BTreeMap<_, Bar> = BTreeMap::new();
    for span in trace.spans.iter().filter(|span| !span.length.is_zero()) {
        let kind = format!("{} {}", span.name, span.kind).trim().to_owned();
        let number = kinds.iter().position(|known| *known == kind).unwrap_or_else(|| {
            kinds.push(kind.clone());
            kinds.len() - 1
        });
        let (from, to) = (span.start.as_secs_f64(), (span.start + span.length).as_secs_f64());
        let what = format!("{kind}: {} s {}", shown(to - from), span.clue);
        let name = track(span.track);
        let bar = tracks.entry(span.track).or_insert(Bar { name, parts: Vec::new() });
        bar.parts.push((from, to, number, what));
    }
    let drawn: Vec<Bar> = tracks.into_values().take(TRACKS_MAX).collect();
    bars(&drawn, "since the load was opened", &kinds)
}

/// Memory of all phases on one line of time, one after the other.
fn memory(measured: &Measured) -> String {
    let steps = measured.steady.iter().flat_map(|steady| &steady.steps).map(|step| &step.phase);
    let over = measured.overloads.iter().map(|one| &one.phase);
    let all: Vec<&Phase> = [&measured.floor].into_iter().chain(steps).chain(over).collect();
    let names =
        ["daemon, all resident", "daemon, private", "pool: kept", "pool: lent", "load generator"];
    let mut series: Vec<Series> =
        names.map(|name| Series { name: name.to_owned(), points: Vec::new(), joined: true }).into();
    let mut begun = 0.0;
    for phase in all {
        for look in &phase.looks {
            let values = [
                look.daemon_bytes,
                look.daemon_private_bytes,
                look.cached_bytes,
                look.leased_bytes,
                look.generator_bytes,
            ];
            for (series, bytes) in series.iter_mut().zip(values) {
                series.points.push((begun + look.at, bytes as f64 / f64::from(1 << 20)));
            }
        }
        begun += phase.looks.last().map_or(0.0, |look| look.at);
    }
    Chart { x: "seconds, phases one after the other", y: "MiB", series }.svg()
}

/// A table of a bench.
pub(super) fn table(out: &mut String, table: &Value) {
    let text = |value: &Value| escaped(value.as_str().unwrap_or_default());
    put(out, format_args!("<h2>Table: {}</h2>\n<p>", text(&table["bench"])));
    for (name, value) in table["ground"].as_object().into_iter().flatten() {
        put(out, format_args!("{} {}; ", escaped(name), text(value)));
    }
    out.push_str("</p>\n<table><tr><th>row</th><th>what</th><th>value</th><th></th></tr>\n");
    for row in table["rows"].as_array().into_iter().flatten() {
        put(
            out,
            format_args!(
                "<tr><th>{}</th><th colspan=\"3\">{}</th></tr>\n",
                text(&row["row"]),
                text(&row["what"])
            ),
        );
        for figure in row["figures"].as_array().into_iter().flatten() {
            let value = |name: &str| shown(figure[name].as_f64().unwrap_or(f64::NAN));
            put(
                out,
                format_args!(
                    "<tr><td></td><td>{}</td><td class=\"n\">{}</td><td>{} ({} to {})</td></tr>\n",
                    text(&figure["of"]),
                    value("median"),
                    text(&figure["unit"]),
                    value("min"),
                    value("max")
                ),
            );
        }
        for bound in row["bounds"].as_array().into_iter().flatten() {
            let verdict = if bound["holds"] == true { "holds" } else { "missed" };
            put(
                out,
                format_args!(
                    "<tr><td></td><td>{}</td><td class=\"n\">{}</td><td>{} {}: \
                 <span class=\"{verdict}\">{verdict}</span></td></tr>\n",
                    text(&bound["what"]),
                    shown(bound["value"].as_f64().unwrap_or(f64::NAN)),
                    text(&bound["kind"]),
                    bound["limit"]
                ),
            );
        }
    }
    out.push_str("</table>\n");
}

fn conditions(out: &mut String, measured: &Measured) {
    put(out, format_args!("<h3>{}</h3>\n<table>", escaped(measured.scenario.name())));
    facts(out, "checkpoint", &measured.checkpoint);
    facts(out, "machine meanwhile", &measured.machine);
    put(
        out,
        format_args!(
            "</table>\n<p>Settings that differ from the defaults:</p><pre>{}</pre>\n",
            escaped(&measured.settings.join("\n"))
        ),
    );
}

/// Whatever a value holds, as rows of names and values.
fn facts(out: &mut String, name: &str, value: &Value) {
    let joined =
        |part: &str| if name.is_empty() { part.to_owned() } else { format!("{name}, {part}") };
    match value {
        Value::Object(parts) => {
            parts.iter().for_each(|(part, value)| facts(out, &joined(part), value));
        }
        Value::Array(parts) if parts.iter().any(Value::is_object) => {
            let numbered = (1..).zip(parts);
            numbered.for_each(|(number, value): (u32, _)| {
                facts(out, &joined(&number.to_string()), value)
            });
        }
        value => {
            let shown = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            put(
                out,
                format_args!("<tr><td>{}</td><td>{}</td></tr>\n", escaped(name), escaped(&shown)),
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_page_is_whole_and_everything_in_it_is_text() {
        let bad = "<img src=x onerror=alert(1)>";
        let rows = json!([{
            "row": bad, "what": bad, "figures": [{"of": bad, "unit": bad, "median": 1.0}],
            "bounds": [{"what": bad, "value": null, "kind": "at least", "limit": 0.9, "holds": false}],
        }]);
        let tables = [json!({ "bench": bad, "ground": {bad: bad}, "rows": rows })];
        let page = page(&json!({ bad: [bad], "disks": [{"name": bad}] }), &[], &tables);
        assert!(page.starts_with("<!DOCTYPE html>") && page.ends_with("</body></html>\n"));
        assert!(!page.contains("<img") && !page.contains("<script"), "{page}");
        assert!(page.contains("<span class=\"missed\">missed</span>"), "{page}");
        assert!(!page.contains("http://") && !page.contains("https://"), "{page}");
    }
}
