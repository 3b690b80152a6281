//! From the timeline of a load to its spans.
//!
//! One span is the request, under the caller's; under it are the load-wide steps (`admission`,
//! `resolve`, `plan`), `transfer` from the first chunk's first wait to the last hand-over, and
//! `delivery`, while the client had chunks. Under `transfer` is a span per chunk, whose stages are
//! events at their begin. Everything is bounded: of chunks beyond [`CHUNKS_MAX`], steps beyond
//! [`STEPS_MAX`] and events beyond [`EVENTS_MAX`] only the number is told. Children lie within their
//! parents.
//!
//! Pure: the wall clock, which collectors want, is read once ([`Clock`]), and ids follow from the
//! request's own.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use forebay_proto::Failure;
use forebay_proto::otlp::any_value::Value;
use forebay_proto::otlp::{AnyValue, Event, KeyValue, Span, SpanKind, Status, StatusCode};
use tokio::time::Instant;

use crate::timeline::{self, ChunkTrace, Kind, Moment, Stage};
use crate::trace::{Facts, TraceContext};

/// Chunks of one load that have a span...
const CHUNKS_MAX: usize = 512;
/// ... its load-wide steps that have one...
const STEPS_MAX: usize = 32;
/// ... and stages of one chunk that are events: with two attempts at the origin some twenty.
const EVENTS_MAX: usize = 24;

/// What ids of children are apart: odd, so that no two of a load are equal.
const ID_STEP: u64 = 0x9e37_79b9_7f4a_7c15;

/// One instant on the wall clock.
#[derive(Debug, Clone, Copy)]
pub(super) struct Clock {
    moment: Moment,
    wall: Duration,
}

impl Clock {
    /// Reads the wall clock.
    #[expect(clippy::disallowed_methods, reason = "a collector puts spans of many hosts together")]
    pub(super) fn at(instant: Instant) -> Self {
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self { moment: instant.into(), wall }
    }

    /// Nanoseconds since 1970.
    fn nanos(&self, at: Moment) -> u64 {
        let (later, earlier) = (at.since(self.moment), self.moment.since(at));
        let wall = self.wall.saturating_add(later).saturating_sub(earlier);
        u64::try_from(wall.as_nanos()).unwrap_or(u64::MAX)
    }
}

/// A load that is over.
#[derive(Debug)]
pub(super) struct Load<'a> {
    pub(super) context: TraceContext,
    pub(super) facts: Facts<'a>,
    pub(super) failed: Option<&'a Failure>,
    pub(super) opened: Moment,
    pub(super) end: Moment,
    pub(super) clock: Clock,
}

/// A stretch of time with a name; not yet a span.
struct Stretch<'a> {
    name: &'a str,
    parent: Option<u64>,
    start: Moment,
    end: Moment,
    attributes: Vec<KeyValue>,
}

/// Whether a span of the load is a step by itself, and no part of resolving.
fn is_step(span: &timeline::Span) -> bool {
    matches!(span.stage, Stage::Admission | Stage::Plan)
}

impl Load<'_> {
    /// The spans, the request's first.
    pub(super) fn spans(&self, steps: &[timeline::Span], chunks: &[ChunkTrace]) -> Vec<Span> {
        let mut spans = vec![self.root(steps.len())];
        for step in steps.iter().filter(|step| is_step(step)).take(STEPS_MAX) {
            let attributes = vec![text("forebay.kind", step.kind.as_str())];
            let name = step.stage.as_str();
            let (start, end) = (step.start, step.end);
            self.add(&mut spans, Stretch { name, parent: None, start, end, attributes });
        }
        // Resolving consists of calls to an origin, whose phases are its events.
        let calls = || steps.iter().filter(|step| !is_step(step));
        if let Some((start, end)) = bounds(calls()) {
            let attributes = vec![text("forebay.kind", Kind::Service.as_str())];
            let name = Stage::Resolve.as_str();
            self.add(&mut spans, Stretch { name, parent: None, start, end, attributes });
            self.add_events(&mut spans, calls());
        }
        let transfer = bounds(chunks.iter().flat_map(work));
        if let Some((start, end)) = transfer {
            let left_out = chunks.len().saturating_sub(CHUNKS_MAX);
            let attributes = vec![
                number("forebay.chunks", count(chunks.len())),
                number("forebay.chunks_left_out", count(left_out)),
            ];
            let whole = Stretch { name: "transfer", parent: None, start, end, attributes };
            let parent = Some(self.add(&mut spans, whole));
            for (index, chunk) in chunks.iter().enumerate().take(CHUNKS_MAX) {
                self.add_chunk(&mut spans, parent, index, chunk);
            }
        }
        let held = || chunks.iter().flat_map(|chunk| &chunk.spans).filter(|span| is_held(span));
        if let Some((start, end)) = bounds(held()) {
            let seconds: f64 = held().map(|span| span.length().as_secs_f64()).sum();
            let attributes = vec![
                number("forebay.leases", count(held().count())),
                real("forebay.held_seconds", seconds),
            ];
            self.add(
                &mut spans,
                Stretch { name: "delivery", parent: None, start, end, attributes },
            );
        }
        spans
    }

    fn root(&self, steps: usize) -> Span {
        let Facts { method, uid, state, about, done } = self.facts;
        let mut attributes = vec![
            text("rpc.system", "grpc"),
            text("rpc.service", "forebay.v1.Forebay"),
            text("rpc.method", method),
            number("forebay.uid", uid.into()),
            number("forebay.steps_left_out", count(steps.saturating_sub(STEPS_MAX))),
        ];
        if let Some(about) = about {
            attributes.push(text("forebay.load_id", &about.load_id));
            attributes.push(text("forebay.uri", &about.uri));
            attributes.push(text("forebay.lane", about.lane));
        }
        if let Some(done) = done {
            attributes.push(text("forebay.revision", &done.revision));
            attributes.push(number("forebay.bytes", i64::try_from(done.bytes).unwrap_or(i64::MAX)));
        }
        let status = self.failed.map(|failure| {
            attributes.push(text("forebay.reason", failure.reason.as_str()));
            Status { message: failure.message.clone(), code: StatusCode::Error.into() }
        });
        let TraceContext { parent, span_id, .. } = self.context;
        let (start, end) = (self.opened, self.end);
        let whole = Stretch { name: method, parent: None, start, end, attributes };
        Span {
            parent_span_id: parent.map(|id| id.to_be_bytes().to_vec()).unwrap_or_default(),
            trace_state: state.unwrap_or_default().to_owned(),
            kind: SpanKind::Server.into(),
            status,
            ..self.span(span_id, whole)
        }
    }

    fn add_chunk(
        &self,
        spans: &mut Vec<Span>,
        parent: Option<u64>,
        index: usize,
        chunk: &ChunkTrace,
    ) {
        let Some((start, end)) = bounds(work(chunk)) else { return };
        let left_out = work(chunk).count().saturating_sub(EVENTS_MAX);
        let attributes = vec![
            number("forebay.chunk", count(index)),
            number("forebay.stages_left_out", count(left_out)),
        ];
        self.add(spans, Stretch { name: "chunk", parent, start, end, attributes });
        self.add_events(spans, work(chunk));
    }

    /// Stages as events of the last span.
    fn add_events<'s>(&self, spans: &mut [Span], stages: impl Iterator<Item = &'s timeline::Span>) {
        let event = |stage: &timeline::Span| Event {
            time_unix_nano: self.clock.nanos(self.clamped(stage.start)),
            name: stage.stage.as_str().to_owned(),
            attributes: vec![
                text("forebay.kind", stage.kind.as_str()),
                real("forebay.seconds", stage.length().as_secs_f64()),
            ],
        };
        if let Some(span) = spans.last_mut() {
            span.events = stages.take(EVENTS_MAX).map(event).collect();
        }
    }

    /// Adds a child of the request, or of another one; returns its id.
    fn add(&self, spans: &mut Vec<Span>, stretch: Stretch<'_>) -> u64 {
        let place = u64::try_from(spans.len()).unwrap_or(u64::MAX);
        let id = self.context.span_id.wrapping_add(ID_STEP.wrapping_mul(place)).max(1);
        spans.push(self.span(id, stretch));
        id
    }

    fn span(&self, id: u64, stretch: Stretch<'_>) -> Span {
        let Stretch { name, parent, start, end, attributes } = stretch;
        let start = self.clamped(start);
        let parent = parent.unwrap_or(self.context.span_id);
        Span {
            trace_id: self.context.trace_id.0.to_vec(),
            span_id: id.to_be_bytes().to_vec(),
            parent_span_id: parent.to_be_bytes().to_vec(),
            name: name.to_owned(),
            kind: SpanKind::Internal.into(),
            start_time_unix_nano: self.clock.nanos(start),
            end_time_unix_nano: self.clock.nanos(self.clamped(end).max(start)),
            attributes,
            flags: u32::from(self.context.sampled),
            ..Span::default()
        }
    }

    /// Within the request.
    fn clamped(&self, at: Moment) -> Moment {
        at.min(self.end).max(self.opened)
    }
}

/// The client has the chunk.
fn is_held(span: &timeline::Span) -> bool {
    span.stage == Stage::ClientAck
}

/// What is done for a chunk until the client has it.
fn work(chunk: &ChunkTrace) -> impl Iterator<Item = &timeline::Span> {
    chunk.spans.iter().filter(|span| !is_held(span))
}

/// From the first start to the last end.
fn bounds<'a>(spans: impl Iterator<Item = &'a timeline::Span>) -> Option<(Moment, Moment)> {
    spans.fold(None, |bounds, span| match bounds {
        None => Some((span.start, span.end)),
        Some((start, end)) => Some((span.start.min(start), span.end.max(end))),
    })
}

fn count(items: usize) -> i64 {
    i64::try_from(items).unwrap_or(i64::MAX)
}

/// An attribute that is a text.
pub(super) fn text(key: &str, value: &str) -> KeyValue {
    attribute(key, Value::StringValue(value.to_owned()))
}

/// One that is a number.
pub(super) fn number(key: &str, value: i64) -> KeyValue {
    attribute(key, Value::IntValue(value))
}

fn real(key: &str, value: f64) -> KeyValue {
    attribute(key, Value::DoubleValue(value))
}

fn attribute(key: &str, value: Value) -> KeyValue {
    KeyValue { key: key.to_owned(), value: Some(AnyValue { value: Some(value) }) }
}
