//! What the fake daemon says of its last loads.

use forebay_proto::pb;

/// The id that an empty one stands for.
const LAST: &str = "last-load";

fn id(load_id: &str) -> String {
    if load_id.is_empty() { LAST.to_owned() } else { load_id.to_owned() }
}

/// A load that waited for a throttling origin.
pub(super) fn explained(load_id: String) -> pb::ExplainResponse {
    let fact = pb::Fact {
        source: "http".into(),
        name: "answers that said slow down".into(),
        value: 12.0,
        unit: "answers".into(),
    };
    let cause = pb::CauseReport {
        cause: "origin_throttle".into(),
        meaning: "because the origin throttles".into(),
        seconds: 0.75,
        share: 1.0,
        longest_seconds: 0.5,
        confidence: 1.0,
        evidence: vec![fact],
        advice: "Ask for a higher request rate.".into(),
    };
    let gap = pb::IdleGap { from_seconds: 0.1, to_seconds: 0.6, cause: "origin_throttle".into() };
    pb::ExplainResponse {
        verdict: "The GPU waited 750.0 ms of 1.00 s.".into(),
        load_id: id(&load_id),
        uri: "s3://b/k/".into(),
        wall_seconds: 1.0,
        idle_seconds: 0.75,
        gaps: 2,
        confidence: 1.0,
        causes: vec![cause],
        longest_gaps: vec![gap],
        ..Default::default()
    }
}

/// Its timeline, in two messages.
pub(super) fn traced(load_id: &str) -> Vec<pb::TraceResponse> {
    let span = |track: &str, chunk, name: &str, start_nanos| pb::TraceSpan {
        track: track.into(),
        chunk,
        name: name.into(),
        kind: "service".into(),
        start_nanos,
        length_nanos: 1000,
        clue: String::new(),
    };
    let head = pb::TraceHead { load_id: id(load_id), wall_seconds: 1.0, ..Default::default() };
    vec![
        pb::TraceResponse { head: Some(head), spans: vec![span("load", 0, "resolve", 0)] },
        pb::TraceResponse {
            head: None,
            spans: vec![span("chunk", 3, "body", 1000), span("copy", 0, "copy", 2000)],
        },
    ]
}
