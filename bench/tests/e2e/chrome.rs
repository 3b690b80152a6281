//! What a trace in Chrome's JSON format has to be for Perfetto to show it as it is meant: the fields of
//! each kind of event, a name for each track, and spans of a track that nest or follow each other.
//! Perfetto leaves out what breaks these rules, and says so in a corner.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

/// Times are written in microseconds, to the nanosecond.
const EXACT: f64 = 0.002;

/// What is wrong with a trace, if something is.
pub(crate) fn problem(trace: &Value) -> Option<String> {
    check(trace).err()
}

fn check(trace: &Value) -> Result<(), String> {
    let wall = number(&trace["otherData"], "wall_seconds")? * 1e6;
    if !["ms", "ns"].contains(&trace["displayTimeUnit"].as_str().unwrap_or_default()) {
        return Err("displayTimeUnit is neither ms nor ns".to_owned());
    }
    let events = trace["traceEvents"].as_array().ok_or("there are no traceEvents")?;
    let (mut named, mut used) = (BTreeSet::new(), BTreeSet::new());
    let mut spans: BTreeMap<(u64, u64), Vec<(f64, f64)>> = BTreeMap::new();
    let mut processes = 0;
    for event in events {
        let track = (whole(event, "pid")?, whole(event, "tid")?);
        let name = text(event, "name")?;
        match text(event, "ph")? {
            "M" => {
                text(&event["args"], "name")?;
                match name {
                    "process_name" => processes += 1,
                    "thread_name" if named.insert(track) => {}
                    _ => return Err(format!("a name twice, or of nothing: {event}")),
                }
                continue;
            }
            "X" => {
                let (from, length) = (number(event, "ts")?, number(event, "dur")?);
                if from + length > wall + 1.0 {
                    return Err(format!("it ends after the load: {event}"));
                }
                spans.entry(track).or_default().push((from, from + length));
            }
            "i" => {
                let inside = number(event, "ts")? <= wall + 1.0;
                if !inside || !["t", "p", "g"].contains(&text(event, "s")?) {
                    return Err(format!("a moment of no scope, or after the load: {event}"));
                }
                if !event["dur"].is_null() {
                    return Err(format!("a moment that lasts: {event}"));
                }
            }
            _ => return Err(format!("no kind of event that Forebay writes: {event}")),
        }
        if !event["args"].is_object() {
            return Err(format!("its args are no object: {event}"));
        }
        text(event, "cat")?;
        used.insert(track);
    }
    if processes != 1 || named != used {
        return Err(format!("{processes} processes; tracks {named:?} are named, {used:?} used"));
    }
    spans.iter_mut().try_for_each(|(track, spans)| nested(*track, spans))
}

fn nested(track: (u64, u64), spans: &mut [(f64, f64)]) -> Result<(), String> {
    // Of two that begin together the longer one is around the other.
    spans.sort_by(|a, b| a.0.total_cmp(&b.0).then(b.1.total_cmp(&a.1)));
    let mut around: Vec<f64> = Vec::new();
    for &(from, to) in spans.iter() {
        while around.last().is_some_and(|end| *end <= from + EXACT) {
            around.pop();
        }
        if around.last().is_some_and(|end| to > end + EXACT) {
            return Err(format!("{from}..{to} on {track:?} ends after what it began in"));
        }
        around.push(to);
    }
    Ok(())
}

fn number(of: &Value, field: &str) -> Result<f64, String> {
    let number = of[field].as_f64().filter(|number| number.is_finite() && *number >= 0.0);
    number.ok_or_else(|| format!("no number that is not negative in {field}: {of}"))
}

fn whole(of: &Value, field: &str) -> Result<u64, String> {
    of[field].as_u64().ok_or_else(|| format!("no whole number in {field}: {of}"))
}

fn text<'a>(of: &'a Value, field: &str) -> Result<&'a str, String> {
    let text = of[field].as_str().filter(|text| !text.is_empty());
    text.ok_or_else(|| format!("no text in {field}: {of}"))
}

mod tests {
    use serde_json::{Value, json};

    use super::problem;

    fn good() -> Value {
        let span = |tid, ts, dur| {
            json!({ "ph": "X", "name": "body", "cat": "chunk", "pid": 1, "tid": tid,
            "ts": ts, "dur": dur, "args": {} })
        };
        let name = |what, tid| json!({ "ph": "M", "name": what, "pid": 1, "tid": tid, "args": { "name": "n" } });
        json!({
            "displayTimeUnit": "ms",
            "otherData": { "wall_seconds": 1.0 },
            "traceEvents": [
                name("process_name", 0), name("thread_name", 1), name("thread_name", 2),
                span(1, 0.0, 10.0), span(1, 2.0, 8.0), span(1, 10.0, 5.0),
                json!({ "ph": "i", "s": "t", "name": "retry", "cat": "event", "pid": 1, "tid": 2,
                    "ts": 3.0, "args": {} }),
            ],
        })
    }

    #[test]
    fn a_trace_that_perfetto_would_not_show_as_it_is_meant_is_found() {
        assert_eq!(problem(&good()), None);
        let spoilt: [(&str, Value); 11] = [
            ("/traceEvents/3/ph", json!("B")),
            ("/traceEvents/3/dur", Value::Null),
            ("/traceEvents/3/dur", json!(-1)),
            ("/traceEvents/3/ts", json!("0")),
            ("/traceEvents/3/tid", json!("one")),
            ("/traceEvents/3/pid", Value::Null),
            ("/traceEvents/3/name", json!("")),
            ("/traceEvents/4/dur", json!(9.0)),
            ("/traceEvents/5/dur", json!(2e6)),
            ("/traceEvents/2/tid", json!(3)),
            ("/traceEvents/6/s", json!("x")),
        ];
        for (place, value) in spoilt {
            let mut trace = good();
            *trace.pointer_mut(place).unwrap() = value.clone();
            assert!(problem(&trace).is_some(), "{place} = {value} is not found");
        }
    }
}
