//! Where the time of a load went: the explanation, and the timeline.

use std::time::Duration;

use super::{Malformed, PathStep, Report, span};
use crate::pb;

const EXPLAIN: &str = "ExplainResponse";
const TRACE: &str = "TraceResponse";

/// Where the time of a load went.
#[derive(Debug, Clone, PartialEq)]
pub struct Explanation {
    /// The load's id.
    pub load_id: String,
    /// What was loaded, without a query.
    pub uri: String,
    /// All of it in one sentence.
    pub verdict: String,
    /// The report, of a load that did not fail.
    pub report: Option<Report>,
    /// Why it failed, if it did.
    pub failure: Option<String>,
    /// When it was opened, in seconds of Unix time by the daemon's clock.
    pub opened_unix_seconds: f64,
    /// From the request to its end.
    pub wall: Duration,
    /// How long no copy ran, all gaps together; without a device, how long it took.
    pub idle: Duration,
    /// How many gaps there were.
    pub gaps: u64,
    /// The share of `idle` for which all evidence could be read, 0 to 1.
    pub confidence: f64,
    /// What was waited for, the longest first; the times sum to `idle`.
    pub causes: Vec<CauseReport>,
    /// The longest gaps, in the order of time.
    pub longest_gaps: Vec<IdleGap>,
    /// What evidence is read from.
    pub sources: Vec<EvidenceSource>,
    /// The chain of waits and work that decided how long it took; with `unattributed`, it sums to
    /// `wall`.
    pub critical_path: Vec<PathStep>,
    /// What of `wall` no stage accounts for.
    pub unattributed: Duration,
}

/// One thing that was waited for.
#[derive(Debug, Clone, PartialEq)]
pub struct CauseReport {
    /// Its name, of a closed set.
    pub cause: String,
    /// What it means, as the end of "it waited ...".
    pub meaning: String,
    /// How long.
    pub time: Duration,
    /// Of all waiting, 0 to 1.
    pub share: f64,
    /// The longest stretch of it.
    pub longest: Duration,
    /// How sure that is, 0 to 1.
    pub confidence: f64,
    /// What that rests on.
    pub evidence: Vec<Fact>,
    /// What to change.
    pub advice: String,
}

/// A figure, and who says so.
#[derive(Debug, Clone, PartialEq)]
pub struct Fact {
    /// `clock` for the daemon's own, else the kernel's name of the source.
    pub source: String,
    /// What.
    pub name: String,
    /// How much.
    pub value: f64,
    /// `s`, `B`, or what is counted.
    pub unit: String,
}

/// A stretch in which one thing was waited for; times since the load was opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdleGap {
    /// Its beginning.
    pub from: Duration,
    /// Its end.
    pub to: Duration,
    /// For what.
    pub cause: String,
}

/// Something that evidence is read from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EvidenceSource {
    /// Its name.
    pub source: String,
    /// Whether it can be read on this node.
    pub available: bool,
    /// Why not, or with what reservation; may be empty.
    pub why: String,
}

/// What a timeline is of.
#[derive(Debug, Clone, PartialEq)]
pub struct TraceHead {
    /// The load's id.
    pub load_id: String,
    /// What was loaded, without a query.
    pub uri: String,
    /// When it was opened, in seconds of Unix time by the daemon's clock.
    pub opened_unix_seconds: f64,
    /// From the request to its end.
    pub wall: Duration,
    /// Why it failed, if it did.
    pub failure: Option<String>,
}

/// What a span is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum TraceTrack {
    /// The load itself.
    Load,
    /// One of its chunks.
    Chunk(u64),
    /// The client's copy engine.
    Copy,
    /// The time without a copy.
    Gap,
    /// What the daemon decided on the way: moments, without a length.
    Event,
}

/// One stretch of a timeline.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TraceSpan {
    /// What it is of.
    pub track: TraceTrack,
    /// The stage; the cause of a gap; what was decided.
    pub name: String,
    /// `queue` or `service`; empty for copies, gaps and events.
    pub kind: String,
    /// Since the load was opened.
    pub start: Duration,
    /// How long it was.
    pub length: Duration,
    /// What is known of why it took its time, or was decided so; may be empty.
    pub clue: String,
}

impl Explanation {
    /// Checks the message.
    pub fn receive(message: pb::ExplainResponse) -> Result<Self, Malformed> {
        let time = |field: &str, seconds: f64| span(EXPLAIN, field, seconds);
        let gap = |gap: pb::IdleGap| {
            let from = time("from_seconds", gap.from_seconds)?;
            Ok(IdleGap {
                from,
                to: time("to_seconds", gap.to_seconds)?.max(from),
                cause: gap.cause,
            })
        };
        let step = |step: pb::PathStep| {
            let time = time("critical_path.seconds", step.seconds)?;
            Ok(PathStep { stage: step.stage, kind: step.kind, time })
        };
        let source = |source: pb::EvidenceSource| EvidenceSource {
            source: source.source,
            available: source.available,
            why: source.why,
        };
        let causes = message.causes.into_iter().map(CauseReport::receive);
        let steps = message.critical_path.into_iter().map(step);
        Ok(Self {
            load_id: message.load_id,
            uri: message.uri,
            verdict: message.verdict,
            report: message.report.map(Report::receive).transpose()?,
            failure: Some(message.failure).filter(|failure| !failure.is_empty()),
            opened_unix_seconds: finite("opened_unix_seconds", message.opened_unix_seconds)?,
            wall: time("wall_seconds", message.wall_seconds)?,
            idle: time("idle_seconds", message.idle_seconds)?,
            gaps: message.gaps,
            confidence: finite("confidence", message.confidence)?,
            causes: causes.collect::<Result<_, Malformed>>()?,
            longest_gaps: message.longest_gaps.into_iter().map(gap).collect::<Result<_, _>>()?,
            sources: message.sources.into_iter().map(source).collect(),
            critical_path: steps.collect::<Result<_, Malformed>>()?,
            unattributed: time("unattributed_seconds", message.unattributed_seconds)?,
        })
    }
}

impl CauseReport {
    fn receive(message: pb::CauseReport) -> Result<Self, Malformed> {
        let fact = |fact: pb::Fact| {
            let value = finite("evidence.value", fact.value)?;
            Ok(Fact { source: fact.source, name: fact.name, value, unit: fact.unit })
        };
        let evidence = message.evidence.into_iter().map(fact);
        Ok(Self {
            cause: message.cause,
            meaning: message.meaning,
            time: span(EXPLAIN, "causes.seconds", message.seconds)?,
            share: finite("causes.share", message.share)?,
            longest: span(EXPLAIN, "causes.longest_seconds", message.longest_seconds)?,
            confidence: finite("causes.confidence", message.confidence)?,
            evidence: evidence.collect::<Result<_, Malformed>>()?,
            advice: message.advice,
        })
    }
}

impl TraceHead {
    /// Checks the message.
    pub fn receive(message: pb::TraceHead) -> Result<Self, Malformed> {
        Ok(Self {
            load_id: message.load_id,
            uri: message.uri,
            opened_unix_seconds: message.opened_unix_seconds,
            wall: span(TRACE, "wall_seconds", message.wall_seconds)?,
            failure: Some(message.failure).filter(|failure| !failure.is_empty()),
        })
    }
}

impl TraceSpan {
    /// Checks the message.
    pub fn receive(message: pb::TraceSpan) -> Result<Self, Malformed> {
        let track = match message.track.as_str() {
            "load" => TraceTrack::Load,
            "chunk" => TraceTrack::Chunk(message.chunk),
            "copy" => TraceTrack::Copy,
            "gap" => TraceTrack::Gap,
            "event" => TraceTrack::Event,
            other => return Err(Malformed::new(TRACE, format!("track {other:?} is unknown"))),
        };
        let start = Duration::from_nanos(message.start_nanos);
        let length = Duration::from_nanos(message.length_nanos);
        Ok(Self {
            track,
            name: message.name,
            kind: message.kind,
            start,
            length,
            clue: message.clue,
        })
    }
}

fn finite(field: &str, value: f64) -> Result<f64, Malformed> {
    if value.is_finite() {
        return Ok(value);
    }
    Err(Malformed::new(EXPLAIN, format!("{field} is {value}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_that_cannot_be_are_refused() {
        let good = pb::ExplainResponse {
            idle_seconds: 1.5,
            causes: vec![pb::CauseReport { seconds: 1.5, share: 1.0, ..Default::default() }],
            ..Default::default()
        };
        let explained = Explanation::receive(good.clone()).unwrap();
        assert_eq!(explained.causes[0].time, Duration::from_millis(1500));
        assert_eq!((explained.report, explained.failure), (None, None));
        for wrong in [f64::NAN, f64::INFINITY, -1.0] {
            let mut bad = good.clone();
            bad.causes[0].seconds = wrong;
            Explanation::receive(bad).unwrap_err();
        }
        let share = pb::CauseReport { share: f64::NAN, ..Default::default() };
        Explanation::receive(pb::ExplainResponse { causes: vec![share], ..good }).unwrap_err();
    }

    #[test]
    fn tracks_are_of_a_closed_set() {
        let of =
            |track: &str| pb::TraceSpan { track: track.into(), chunk: 7, ..Default::default() };
        assert_eq!(TraceSpan::receive(of("chunk")).unwrap().track, TraceTrack::Chunk(7));
        assert_eq!(TraceSpan::receive(of("gap")).unwrap().track, TraceTrack::Gap);
        assert_eq!(TraceSpan::receive(of("event")).unwrap().track, TraceTrack::Event);
        TraceSpan::receive(of("")).unwrap_err();
    }
}
