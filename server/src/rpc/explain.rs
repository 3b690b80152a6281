//! `Explain` and `Trace`: one of the last loads, as the wire has it.

use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use forebay_origin::{DnsName, DnsState};
use forebay_proto::model::is_load_id;
use forebay_proto::{Failure, Reason, pb};

use super::{Shared, convert};
use crate::attribution::Cause;
use crate::evidence::SourceState;
use crate::explain::{Explanation, Fact, Told, explain};
use crate::history::KeptLoad;
use crate::timeline::Moment;

/// Spans of one message: some tens of kilobytes.
const SPANS_PER_MESSAGE: usize = 1000;

/// Names whose records are told.
const NAMES_TOLD: usize = 4;

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
    // An alias' name stands for its last load.
    let load = history.find(load_id).or_else(|| history.find_alias(load_id));
    load.ok_or_else(|| none(format!("load {load_id} is not among the last ones")))
}

/// Where its time went. What the daemon knows of names and of the disk at this moment stands beside
/// the causes that have to do with them.
pub(super) fn explained(shared: &Shared, load: &KeptLoad) -> pb::ExplainResponse {
    let sources = shared.stages.evidence.sources();
    let idle = &load.report.idle;
    let Explanation { verdict, causes, gaps, confidence } = explain(load);
    let gap = |(from, to, cause): (Duration, Duration, Cause)| pb::IdleGap {
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
        causes: causes.into_iter().map(|told| cause(shared, told)).collect(),
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

/// What is known now and not of the time of the load.
fn standing(shared: &Shared, cause: Cause) -> Vec<Fact> {
    match cause {
        Cause::Dns => {
            let names = shared.resolver.snapshot().names;
            names.into_iter().take(NAMES_TOLD).flat_map(|name| name_facts(&name)).collect()
        }
        Cause::NvmeQueue | Cause::NvmeService => {
            let state = shared.stages.nvme.as_ref().map(|nvme| nvme.state());
            let fact = state.map(|state| Fact {
                source: "disk_breaker",
                name: format!("the disk is {} now; bad extents so far", state.state),
                value: state.quarantined as f64,
                unit: "extents",
            });
            fact.into_iter().collect()
        }
        _ => Vec::new(),
    }
}

fn name_facts(name: &DnsName) -> Vec<Fact> {
    let fact = |what: String, value: f64, unit| Fact { source: "dns", name: what, value, unit };
    let (shown, state) = (&name.name, name.state.as_str());
    let took = name.took.map(|took| {
        fact(format!("the last look-up of {shown}, {state} now"), took.as_secs_f64(), "s")
    });
    let failures = (name.failures > 0).then(|| {
        let what = format!("of {shown} that failed since an answer");
        fact(what, f64::from(name.failures), "look-ups")
    });
    let pending = (name.state == DnsState::Pending)
        .then(|| fact(format!("of {shown} that have not ended"), 1.0, "look-ups"));
    took.into_iter().chain(failures).chain(pending).collect()
}

fn cause(shared: &Shared, mut told: Told) -> pb::CauseReport {
    told.evidence.extend(standing(shared, told.cause));
    let fact = |fact: Fact| pb::Fact {
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
    let opened_at = Moment::from(load.timeline.opened());
    let nanos = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
    let span = |track: &str, name: &str, (from, to): (Moment, Moment)| pb::TraceSpan {
        track: track.to_owned(),
        name: name.to_owned(),
        start_nanos: nanos(from.since(opened_at)),
        length_nanos: nanos(to.since(from)),
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
    let event = |name: &str, why: String, at: Moment| pb::TraceSpan {
        clue: why,
        ..span("event", name, (at, at))
    };
    let last = events.last().map(|event| event.at.into()).filter(|_| unkept > 0);
    spans.extend(events.into_iter().map(|of| event(of.name, of.detail, of.at.into())));
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
