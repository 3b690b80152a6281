//! `forebay trace`: the timeline of a load as Chrome trace JSON, which Perfetto opens.
//!
//! The load itself, copies, gaps and decisions have a track each; a decision is a moment. Chunks
//! share tracks: each goes to the first one that is free from when its turn came until it was
//! released, so that there are as many as chunks were on their way at one time. Waits for the turn
//! overlap all others and are left out.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;
use std::time::Duration;

use forebay_client::Trace;
use forebay_client::model::{TraceSpan, TraceTrack};
use serde_json::{Value, json};

use crate::context::Context;
use crate::error::CliError;
use crate::output::Output;

/// Numbers of the tracks.
const LOAD: usize = 1;
const COPIES: usize = 2;
const GAPS: usize = 3;
const EVENTS: usize = 4;
const CHUNKS: usize = 10;

pub(crate) async fn run(
    context: &Context,
    load_id: Option<&str>,
    file: Option<&Path>,
    output: &mut Output,
) -> Result<(), CliError> {
    let trace = context.client().trace(load_id).await?;
    let text = chrome(&trace).to_string() + "\n";
    let Some(file) = file.filter(|file| *file != Path::new("-")) else {
        return output.text(&text);
    };
    let write = || -> io::Result<()> {
        let mut to = BufWriter::new(File::create(file)?);
        to.write_all(text.as_bytes())?;
        to.flush()
    };
    write().map_err(|error| CliError::local(format!("write {}", file.display()), error))?;
    let done = json!({
        "load_id": trace.head.load_id,
        "file": file.display().to_string(),
        "spans": trace.spans.len(),
    });
    match output.is_json() {
        true => output.object(&done),
        false => output.text(&format!(
            "{} spans of load {} in {}: open it with https://ui.perfetto.dev\n",
            trace.spans.len(),
            trace.head.load_id,
            file.display(),
        )),
    }
}

/// The trace as Chrome's JSON object format has it.
fn chrome(trace: &Trace) -> Value {
    let lanes = Lanes::of(&trace.spans);
    let mut events = vec![named("process_name", 0, &format!("load {}", trace.head.load_id))];
    for (track, name) in [
        (LOAD, "load"),
        (COPIES, "copies"),
        (GAPS, "waits of the copy engine"),
        (EVENTS, "decisions"),
    ] {
        events.push(named("thread_name", track, name));
    }
    for lane in 0..lanes.count {
        events.push(named("thread_name", CHUNKS + lane, &format!("chunks {lane}")));
    }
    events.extend(trace.spans.iter().filter_map(|span| {
        let (track, category) = match span.track {
            TraceTrack::Load => (LOAD, "load"),
            TraceTrack::Chunk(_) if span.name == "turn" => return None,
            TraceTrack::Chunk(chunk) => (CHUNKS + lanes.lane(chunk)?, "chunk"),
            TraceTrack::Copy => (COPIES, "copy"),
            TraceTrack::Gap => (GAPS, "gap"),
            TraceTrack::Event => return Some(instant(span)),
            _ => return None,
        };
        Some(event(span, track, category))
    }));
    let head = &trace.head;
    json!({
        "traceEvents": events,
        "displayTimeUnit": "ms",
        "otherData": {
            "load_id": head.load_id,
            "uri": head.uri,
            "opened_unix_seconds": head.opened_unix_seconds,
            "wall_seconds": head.wall.as_secs_f64(),
            "failure": head.failure,
        },
    })
}

fn named(what: &str, track: usize, name: &str) -> Value {
    json!({ "ph": "M", "name": what, "pid": 1, "tid": track, "args": { "name": name } })
}

fn event(span: &TraceSpan, track: usize, category: &str) -> Value {
    let name = match span.kind.as_str() {
        "queue" => format!("{} (queue)", span.name),
        _ => span.name.clone(),
    };
    let mut args = json!({});
    if let TraceTrack::Chunk(chunk) = span.track {
        args["chunk"] = json!(chunk);
    }
    if !span.clue.is_empty() {
        args["why"] = json!(span.clue);
    }
    json!({
        "ph": "X",
        "name": name,
        "cat": category,
        "pid": 1,
        "tid": track,
        "ts": micros(span.start),
        "dur": micros(span.length),
        "args": args,
    })
}

/// A moment on the track of decisions.
fn instant(span: &TraceSpan) -> Value {
    json!({
        "ph": "i",
        "s": "t",
        "name": span.name,
        "cat": "event",
        "pid": 1,
        "tid": EVENTS,
        "ts": micros(span.start),
        "args": { "why": span.clue },
    })
}

/// Microseconds, to the nanosecond.
fn micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

/// Which track each chunk is on.
#[derive(Debug, Default)]
struct Lanes {
    count: usize,
    of: std::collections::BTreeMap<u64, usize>,
}

impl Lanes {
    fn of(spans: &[TraceSpan]) -> Self {
        let mut chunks: std::collections::BTreeMap<u64, (Duration, Duration)> = Default::default();
        for span in spans.iter().filter(|span| span.name != "turn") {
            let TraceTrack::Chunk(chunk) = span.track else { continue };
            let end = span.start + span.length;
            let (from, to) = chunks.entry(chunk).or_insert((span.start, end));
            (*from, *to) = ((*from).min(span.start), (*to).max(end));
        }
        let mut chunks: Vec<(Duration, Duration, u64)> =
            chunks.into_iter().map(|(chunk, (from, to))| (from, to, chunk)).collect();
        chunks.sort_unstable();
        let (mut free_from, mut of) = (Vec::<Duration>::new(), Self::default());
        for (from, to, chunk) in chunks {
            let free = free_from.iter().position(|free| *free <= from);
            let lane = free.unwrap_or(free_from.len());
            match free_from.get_mut(lane) {
                Some(free) => *free = to,
                None => free_from.push(to),
            }
            of.of.insert(chunk, lane);
        }
        of.count = free_from.len();
        of
    }

    fn lane(&self, chunk: u64) -> Option<usize> {
        self.of.get(&chunk).copied()
    }
}

#[cfg(test)]
mod tests {
    use forebay_client::model::TraceHead;

    use super::*;

    fn span(track: TraceTrack, name: &str, start: u64, length: u64) -> TraceSpan {
        TraceSpan {
            track,
            name: name.into(),
            kind: "service".into(),
            start: Duration::from_millis(start),
            length: Duration::from_millis(length),
            clue: String::new(),
        }
    }

    fn trace() -> Trace {
        let chunk = TraceTrack::Chunk;
        let head = TraceHead {
            load_id: "l".into(),
            uri: "s3://b/".into(),
            opened_unix_seconds: 1.0,
            wall: Duration::from_millis(100),
            failure: None,
        };
        let spans = vec![
            span(TraceTrack::Load, "resolve", 0, 10),
            span(chunk(0), "turn", 0, 10),
            span(chunk(0), "body", 10, 30),
            span(chunk(1), "turn", 0, 20),
            span(chunk(1), "body", 20, 30),
            span(chunk(2), "turn", 0, 40),
            span(chunk(2), "body", 40, 20),
            span(TraceTrack::Copy, "copy", 60, 10),
            span(TraceTrack::Gap, "origin_slow", 0, 60),
            TraceSpan { clue: "throttled".into(), ..span(TraceTrack::Event, "retry", 30, 0) },
        ];
        Trace { head, spans }
    }

    #[test]
    fn spans_of_a_track_never_overlap() {
        let chrome = chrome(&trace());
        let events = chrome["traceEvents"].as_array().unwrap();
        let mut spans: Vec<(u64, f64, f64)> = Vec::new();
        for event in events.iter().filter(|event| event["ph"] == "X") {
            let number = |field: &str| event[field].as_f64().unwrap();
            spans.push((event["tid"].as_u64().unwrap(), number("ts"), number("dur")));
        }
        assert_eq!(spans.len(), 6, "waits for the turn are left out");
        spans.sort_by(|a, b| a.partial_cmp(b).unwrap());
        for pair in spans.windows(2) {
            assert!(pair[0].0 != pair[1].0 || pair[0].1 + pair[0].2 <= pair[1].1, "{pair:?}");
        }
        let tracks: std::collections::BTreeSet<u64> = spans.iter().map(|(tid, ..)| *tid).collect();
        assert_eq!(tracks.len(), 5, "two chunks were on their way at one time");
    }

    #[test]
    fn a_decision_is_a_moment_with_its_reason() {
        let chrome = chrome(&trace());
        let events = chrome["traceEvents"].as_array().unwrap();
        let moments: Vec<_> = events.iter().filter(|event| event["ph"] == "i").collect();
        let [moment] = moments.as_slice() else { panic!("{moments:?}") };
        assert_eq!(
            (&moment["name"], &moment["args"]["why"]),
            (&json!("retry"), &json!("throttled"))
        );
        assert_eq!((moment["ts"].as_f64(), &moment["dur"]), (Some(30_000.0), &Value::Null));
    }

    #[test]
    fn every_track_has_a_name() {
        let chrome = chrome(&trace());
        let events = chrome["traceEvents"].as_array().unwrap();
        let of = |ph: &str, name: &str| -> std::collections::BTreeSet<u64> {
            let named =
                |event: &&Value| event["ph"] == ph && (name.is_empty() || event["name"] == name);
            events.iter().filter(named).map(|event| event["tid"].as_u64().unwrap()).collect()
        };
        let shown = &of("X", "") | &of("i", "");
        assert_eq!(of("M", "thread_name"), shown);
    }
}
