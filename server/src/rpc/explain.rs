//! `Explain` and `Trace`: one of the last loads, as the wire has it.

use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use forebay_proto::model::is_load_id;
use forebay_proto::{Failure, Reason, pb};
use tokio::time::Instant;

use super::{Shared, convert};
use crate::evidence::SourceState;
use crate::explain::{Explanation, Told, explain};
use crate::history::KeptLoad;

/// Spans of one message: some tens of kilobytes.
const SPANS_PER_MESSAGE: usize = 1000;

/// The load that is meant.
pub(super) fn find(shared: &Shared, load_id: &str) -> Result<Arc<KeptLoad>, Failure> {
    let history = &shared.stages.history;
    let none = |what: String| Failure::new(Reason::LoadNotKept, what);
    if load_id.is_empty() {
        let what = "no load has ended since the daemon was started";
        return history.last().ok_or_else(|| none(what.to_owned()));
    }
    if !is_load_id(load_id) {
        return Err(Failure::new(Reason::BadRequest, "a load id is 1 to 64 of A-Z a-z 0-9 . _ -"));
    }
    history.find(load_id).ok_or_else(|| none(format!("load {load_id} is not among the last ones")))
}

/// Where its time went.
pub(super) fn explained(load: &KeptLoad, sources: &[SourceState]) -> pb::ExplainResponse {
    let idle = &load.report.idle;
    let Explanation { verdict, causes, gaps, confidence } = explain(load);
    let gap = |(from, to, cause): (Duration, Duration, crate::attribution::Cause)| pb::IdleGap {
        from_seconds: from.as_secs_f64(),
        to_seconds: to.as_secs_f64(),
        cause: cause.as_str().to_owned(),
    };
    pb::ExplainResponse {
        verdict,
        report: load
            .failure
            .is_none()
            .then(|| convert::report(&load.report, load.timeline.trace())),
        failure: failure(load),
        opened_unix_seconds: opened(load),
        idle_seconds: idle.idle.as_secs_f64(),
        gaps: idle.gaps,
        confidence,
        causes: causes.into_iter().map(cause).collect(),
        longest_gaps: gaps.into_iter().map(gap).collect(),
        sources: sources.iter().map(source).collect(),
        load_id: load.report.load_id.clone(),
        uri: load.report.uri.clone(),
        wall_seconds: load.report.wall.as_secs_f64(),
        critical_path: convert::path(&load.report),
        unattributed_seconds: load.report.unattributed.as_secs_f64(),
    }
}

fn source(state: &SourceState) -> pb::EvidenceSource {
    pb::EvidenceSource {
        source: state.source.as_str().to_owned(),
        available: state.available,
        why: state.why.clone(),
    }
}

fn cause(told: Told) -> pb::CauseReport {
    let fact = |fact: crate::explain::Fact| pb::Fact {
        source: fact.source.to_owned(),
        name: fact.name,
        value: fact.value,
        unit: fact.unit.to_owned(),
    };
    pb::CauseReport {
        cause: told.cause.as_str().to_owned(),
        meaning: told.meaning.to_owned(),
        seconds: told.time.as_secs_f64(),
        share: told.share,
        longest_seconds: told.longest.as_secs_f64(),
        confidence: told.confidence,
        evidence: told.evidence.into_iter().map(fact).collect(),
        advice: told.advice.to_owned(),
    }
}

/// Its timeline, in messages.
pub(super) fn traced(load: &KeptLoad) -> Vec<pb::TraceResponse> {
    let opened_at = load.timeline.opened();
    let nanos = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
    let span = |track: &str, name: &str, (from, to): (Instant, Instant)| pb::TraceSpan {
        track: track.to_owned(),
        name: name.to_owned(),
        start_nanos: nanos(from.saturating_duration_since(opened_at)),
        length_nanos: nanos(to.saturating_duration_since(from)),
        ..Default::default()
    };
    let mut spans = Vec::with_capacity(load.timeline.len());
    load.timeline.each_span(|chunk, of| {
        let track = if chunk.is_some() { "chunk" } else { "load" };
        spans.push(pb::TraceSpan {
            chunk: chunk.unwrap_or_default() as u64,
            kind: of.kind.as_str().to_owned(),
            clue: of.clue.text(),
            ..span(track, of.stage.as_str(), (of.start, of.end))
        });
    });
    spans.extend(load.timeline.copies().into_iter().map(|copy| span("copy", "copy", copy)));
    let charges = load.report.idle.charges.iter();
    spans.extend(charges.map(|gap| span("gap", gap.cause.as_str(), (gap.from, gap.to))));
    let (events, unkept) = load.timeline.decided();
    let event = |name: &str, why: String, at: Instant| pb::TraceSpan {
        clue: why,
        ..span("event", name, (at, at))
    };
    let last = events.last().map(|event| event.at).filter(|_| unkept > 0);
    spans.extend(events.into_iter().map(|of| event(of.name, of.detail, of.at)));
    spans.extend(last.map(|at| event("left_out", format!("{unkept} decisions after these"), at)));
    let head = pb::TraceHead {
        load_id: load.report.load_id.clone(),
        uri: load.report.uri.clone(),
        opened_unix_seconds: opened(load),
        wall_seconds: load.report.wall.as_secs_f64(),
        failure: failure(load),
    };
    let mut messages: Vec<pb::TraceResponse> = spans
        .chunks(SPANS_PER_MESSAGE)
        .map(|spans| pb::TraceResponse { head: None, spans: spans.to_vec() })
        .collect();
    if messages.is_empty() {
        messages.push(pb::TraceResponse::default());
    }
    if let Some(first) = messages.first_mut() {
        first.head = Some(head);
    }
    messages
}

fn failure(load: &KeptLoad) -> String {
    load.failure.as_ref().map(ToString::to_string).unwrap_or_default()
}

fn opened(load: &KeptLoad) -> f64 {
    load.opened_at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}
