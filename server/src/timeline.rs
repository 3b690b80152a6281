//! Where the time of one load went, and what its reads cost.
//!
//! Every load owns a [`Timeline`]. The stages' shells write spans into it: load-wide ones (waiting
//! for admission, resolving, planning) and, per chunk, the chain from waiting for a window slot to
//! the client's release. A span is either *queue* (handed to a stage, not taken up yet) or
//! *service* (being worked on). Spans of one chunk never overlap, so sums are honest; chunks do
//! overlap each other, so stage sums may exceed the wall time, which is why the report also has the
//! critical path (see [`path`]): the chain of spans that ended last, walked backwards.
//!
//! Beside spans there are [`Event`]s: what was decided on the way of this load, and why. Their number
//! is bounded; those beyond it are counted.
//!
//! Costs are booked when a [`Spending`] ends, so what is cut off or fails is booked too.
//!
//! A timeline holds at most one trace per chunk of the plan; the plan is bounded by resolve's
//! limits.

mod attempts;
mod moment;
pub(crate) mod path;

use std::future::Future;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use forebay_origin::{Journal, ReadTerms};
use forebay_proto::StageSeconds;
use tokio::time::Instant;

use crate::cost::FetchCost;
use crate::report::Tier;
use crate::trace::TraceContext;

pub(crate) use attempts::{attempt_events, attempt_spans, call_spans};
pub(crate) use moment::Moment;

/// Spans that a chunk has at least, for one allocation in place of two.
const SPANS_USUAL: usize = 6;

/// The stages a load's time is split into; names as in metrics and reports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Stage {
    /// Waiting for a place among the active loads and for the guaranteed window.
    Admission,
    /// URI to manifest: listing, HEAD, headers.
    Resolve,
    /// Manifest to chunks.
    Plan,
    /// Waiting behind earlier chunks of the same load: enough of them are on their way.
    Turn,
    /// Waiting for a slot of the window: leases have to come back first.
    LeaseAlloc,
    /// On the wire; what exactly is known when the part has ended.
    Fetch,
    /// Waiting for one of the origin's connections.
    ConnAcquire,
    /// Name resolution of a new connection.
    Dns,
    /// TCP connect of a new connection.
    Connect,
    /// TLS handshake of a new connection.
    Tls,
    /// Request sent, first byte of the response not there yet.
    Ttfb,
    /// Body bytes arriving and being written into the slot.
    Body,
    /// Waiting before another attempt.
    Backoff,
    /// From the NVMe tier into the slot.
    NvmeRead,
    /// From what the store has to the bytes of the object.
    Decompress,
    /// Digest of the chunk.
    VerifyPart,
    /// Looking at the last bytes of objects that are held to a digest of the whole.
    VerifyObject,
    /// Entering the RAM tier and being granted.
    Publish,
    /// Granted, not released yet: the client works.
    ClientAck,
    /// Of what is to be kept on NVMe: not stored yet.
    NvmeWrite,
}

impl Stage {
    /// Every stage, in the order of a load.
    pub(crate) const ALL: [Self; 20] = [
        Self::Admission,
        Self::Resolve,
        Self::Plan,
        Self::Turn,
        Self::LeaseAlloc,
        Self::Fetch,
        Self::ConnAcquire,
        Self::Dns,
        Self::Connect,
        Self::Tls,
        Self::Ttfb,
        Self::Body,
        Self::Backoff,
        Self::NvmeRead,
        Self::Decompress,
        Self::VerifyPart,
        Self::VerifyObject,
        Self::Publish,
        Self::ClientAck,
        Self::NvmeWrite,
    ];

    /// The name on the wire.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Admission => "admission",
            Self::Resolve => "resolve",
            Self::Plan => "plan",
            Self::Turn => "turn",
            Self::LeaseAlloc => "lease_alloc",
            Self::Fetch => "fetch",
            Self::ConnAcquire => "conn_acquire",
            Self::Dns => "dns",
            Self::Connect => "connect",
            Self::Tls => "tls",
            Self::Ttfb => "ttfb",
            Self::Body => "body",
            Self::Backoff => "backoff",
            Self::NvmeRead => "nvme_read",
            Self::Decompress => "decompress",
            Self::VerifyPart => "verify_part",
            Self::VerifyObject => "verify_object",
            Self::Publish => "publish",
            Self::ClientAck => "client_ack",
            Self::NvmeWrite => "nvme_write",
        }
    }
}

/// Waiting, or being worked on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Kind {
    /// Handed to the stage, not taken up.
    Queue,
    /// Being worked on.
    Service,
}

impl Kind {
    /// The name on the wire.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Queue => "queue",
            Self::Service => "service",
        }
    }
}

/// What is known of why a span took its time, beyond its stage.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Clue {
    /// Nothing.
    #[default]
    None,
    /// The origin said "slow down", or this is the wait after that.
    Throttled,
    /// The rate that is configured for the origin did not allow it yet.
    Rated,
    /// The attempt failed, or this is the wait after that.
    Failed,
    /// Not a byte came, and no sign of a loss.
    Silent,
    /// Not a byte came while segments were lost: so many came out of order then.
    Lost(u32),
    /// The bytes were here, and this side had not taken them yet.
    Unread,
    /// Bytes were here whenever this side looked: it was as slow as this side is.
    Busy,
    /// Bytes of a file came from its disk: so many KiB were not in the page cache.
    Cold(u32),
    /// The work was for memory of another NUMA node than its CPU's.
    Far,
    /// Earlier bytes of the same object come first.
    Behind,
}

impl Clue {
    /// In words.
    pub(crate) fn text(self) -> String {
        match self {
            Self::None => String::new(),
            Self::Throttled => "throttled".to_owned(),
            Self::Rated => "max_bytes_per_second".to_owned(),
            Self::Failed => "the attempt failed".to_owned(),
            Self::Silent => "no byte came".to_owned(),
            Self::Lost(segments) => format!("{segments} segments were lost"),
            Self::Unread => "bytes were in the socket".to_owned(),
            Self::Busy => "bytes came as fast as they were read".to_owned(),
            Self::Cold(kib) => format!("{kib} KiB were not in the page cache"),
            Self::Far => "memory of another NUMA node".to_owned(),
            Self::Behind => "behind earlier bytes of the object".to_owned(),
        }
    }
}

/// One stretch of time in one stage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Span {
    /// The stage.
    pub(crate) stage: Stage,
    /// Queue or service.
    pub(crate) kind: Kind,
    /// Begin.
    pub(crate) start: Moment,
    /// End; never before `start`.
    pub(crate) end: Moment,
    /// Why.
    pub(crate) clue: Clue,
}

impl Span {
    /// A span; an end before the start is taken as the start.
    pub(crate) fn new(
        stage: Stage,
        kind: Kind,
        start: impl Into<Moment>,
        end: impl Into<Moment>,
    ) -> Self {
        let (start, end) = (start.into(), end.into());
        Self { stage, kind, start, end: end.max(start), clue: Clue::None }
    }

    /// The same, and why it took its time.
    pub(crate) fn with(self, clue: Clue) -> Self {
        Self { clue, ..self }
    }

    /// Its length.
    pub(crate) fn length(&self) -> Duration {
        self.end - self.start
    }

    /// The part of it after `from`, if any.
    pub(crate) fn since(&self, from: impl Into<Moment>) -> Option<Self> {
        let from = from.into();
        (self.end > from).then(|| Self { start: self.start.max(from), ..*self })
    }
}

/// The spans of one chunk, in time order.
#[derive(Debug, Clone, Default)]
pub(crate) struct ChunkTrace {
    /// In time order, without overlap.
    pub(crate) spans: Vec<Span>,
}

impl ChunkTrace {
    /// When the last span of `stage` ended.
    pub(crate) fn end_of(&self, stage: Stage) -> Option<Moment> {
        self.spans.iter().rev().find(|span| span.stage == stage).map(|span| span.end)
    }
}

/// Events of one load that are kept; more are counted.
const EVENTS_MAX: usize = 1024;

/// The name of the event that says who held the slots that a load waited for.
pub(crate) const LEASE_WAIT: &str = "lease_wait";

/// Something that was decided on the way of a load.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Event {
    /// When.
    pub(crate) at: Instant,
    /// What: `tier`, `retry`, `no_retry`, `hedge`, `no_hedge`, `throttle`, `attempt_failed`, `evict`,
    /// `fallback`, `limit`, `breaker`, `lease_wait`, `shed` or `failed`.
    pub(crate) name: &'static str,
    /// Why.
    pub(crate) detail: String,
}

/// The spans of one load. Shared by the load and its faces; the lock is held for pushes only.
#[derive(Debug)]
pub(crate) struct Timeline {
    opened: Instant,
    trace: Option<TraceContext>,
    inner: Mutex<Inner>,
}

/// A span of the load, or of a chunk, that has not ended.
#[derive(Debug)]
pub(crate) struct OpenSpan<'a> {
    timeline: &'a Timeline,
    chunk: Option<usize>,
    stage: Stage,
    kind: Kind,
    start: Instant,
}

impl Drop for OpenSpan<'_> {
    fn drop(&mut self) {
        let span = Span::new(self.stage, self.kind, self.start, Instant::now());
        match self.chunk {
            Some(chunk) => self.timeline.chunk_spans(chunk, [span]),
            None => self.timeline.load_span(span),
        }
    }
}

impl Inner {
    fn event(&mut self, event: Event) {
        if self.events.len() < EVENTS_MAX {
            self.events.push(event);
        } else {
            self.unkept += 1;
        }
    }
}

#[derive(Debug, Default)]
struct Inner {
    load: Vec<Span>,
    /// By chunk; those of which nothing is known yet are empty.
    chunks: Vec<ChunkTrace>,
    /// The busy stretches of the client's copy engine, as they were told: since the client saw
    /// `Opened`.
    copies: Vec<(Duration, Duration)>,
    /// No later than when it saw it: of what it sent, what was the fastest to come says best.
    copies_since: Option<Instant>,
    cost: FetchCost,
    events: Vec<Event>,
    /// Events that found no room.
    unkept: u64,
}

/// A load-wide step that consists of calls to an origin; it ends as [`OpenSpan`] does.
#[derive(Debug)]
pub(crate) struct OpenCalls<'a> {
    timeline: &'a Timeline,
    stage: Stage,
    start: Instant,
    journal: Journal,
}

impl OpenCalls<'_> {
    /// Does work of the step.
    pub(crate) async fn of<T>(&self, work: impl Future<Output = T>) -> T {
        self.journal.of(work).await
    }
}

impl Drop for OpenCalls<'_> {
    fn drop(&mut self) {
        let time = (self.start.into(), Instant::now().into());
        let entries = self.journal.entries();
        for span in call_spans(&entries, time, self.stage) {
            self.timeline.load_span(span);
        }
        self.timeline.events(attempt_events(&entries), self.stage.as_str());
    }
}

/// Reads that this load pays for; booked when it is dropped.
#[derive(Debug)]
pub(crate) struct Spending<'a> {
    timeline: &'a Timeline,
    terms: ReadTerms,
}

impl Drop for Spending<'_> {
    fn drop(&mut self) {
        let cost = FetchCost::of(&self.terms);
        let mut inner = self.timeline.lock();
        inner.cost = inner.cost.plus(cost);
    }
}

impl Timeline {
    /// A timeline that begins now.
    pub(crate) fn new(opened: Instant) -> Self {
        Self { opened, trace: None, inner: Mutex::default() }
    }

    /// The same, of a load that belongs to a trace.
    pub(crate) fn of_trace(opened: Instant, trace: TraceContext) -> Self {
        Self { trace: Some(trace), ..Self::new(opened) }
    }

    /// The trace that it belongs to.
    pub(crate) fn trace(&self) -> Option<TraceContext> {
        self.trace
    }

    /// When the load was opened.
    pub(crate) fn opened(&self) -> Instant {
        self.opened
    }

    /// Begins a load-wide span. It ends when the guard drops: at the end of the step, or when the
    /// step is cut off.
    pub(crate) fn begin(&self, stage: Stage, kind: Kind) -> OpenSpan<'_> {
        OpenSpan { timeline: self, chunk: None, stage, kind, start: Instant::now() }
    }

    /// Begins a step whose calls to an origin are spans of their own; what lies between them is the
    /// step's.
    pub(crate) fn begin_calls(&self, stage: Stage) -> OpenCalls<'_> {
        OpenCalls { timeline: self, stage, start: Instant::now(), journal: Journal::default() }
    }

    /// Begins the first span: the time since the load was opened is part of it.
    pub(crate) fn begin_first(&self, stage: Stage, kind: Kind) -> OpenSpan<'_> {
        OpenSpan { timeline: self, chunk: None, stage, kind, start: self.opened }
    }

    /// Begins work on a chunk: from when its last span ended.
    pub(crate) fn begin_of(&self, chunk: usize, stage: Stage) -> OpenSpan<'_> {
        let start = self.last_end(chunk).map_or_else(Instant::now, Instant::from);
        OpenSpan { timeline: self, chunk: Some(chunk), stage, kind: Kind::Service, start }
    }

    /// The reads on these terms are for this load to pay.
    pub(crate) fn spending(&self, terms: &ReadTerms) -> Spending<'_> {
        Spending { timeline: self, terms: terms.clone() }
    }

    /// What was booked so far.
    pub(crate) fn cost(&self) -> FetchCost {
        self.lock().cost
    }

    /// Adds a load-wide span.
    pub(crate) fn load_span(&self, span: Span) {
        self.lock().load.push(span);
    }

    /// Adds spans of one chunk; they follow those it already has.
    pub(crate) fn chunk_spans(&self, chunk: usize, spans: impl IntoIterator<Item = Span>) {
        let mut inner = self.lock();
        if inner.chunks.len() <= chunk {
            inner.chunks.resize_with(chunk + 1, ChunkTrace::default);
        }
        let Some(trace) = inner.chunks.get_mut(chunk) else { return };
        if trace.spans.capacity() == 0 {
            trace.spans.reserve(SPANS_USUAL);
        }
        trace.spans.extend(spans);
    }

    /// Something was decided now.
    pub(crate) fn event(&self, name: &'static str, detail: impl Into<String>) {
        self.lock().event(Event { at: Instant::now(), name, detail: detail.into() });
    }

    /// Something was decided then.
    pub(crate) fn event_at(&self, event: Event) {
        self.lock().event(event);
    }

    /// Adds events of a part of the load, which is said with each.
    pub(crate) fn events(&self, events: impl IntoIterator<Item = Event>, part: &str) {
        let mut inner = self.lock();
        for event in events {
            let detail = format!("{part}: {}", event.detail);
            inner.event(Event { detail, ..event });
        }
    }

    /// What was decided, in the order of time, and how many more decisions there were.
    pub(crate) fn decided(&self) -> (Vec<Event>, u64) {
        let inner = self.lock();
        let mut events = inner.events.clone();
        events.sort_by_key(|event| event.at);
        (events, inner.unkept)
    }

    /// Adds busy stretches of the client's copy engine, since a moment that was no later than `since`;
    /// no more than `most` in all.
    pub(crate) fn copies_ran(
        &self,
        copies: impl IntoIterator<Item = (Duration, Duration)>,
        since: Instant,
        most: usize,
    ) {
        let mut inner = self.lock();
        inner.copies_since = Some(inner.copies_since.map_or(since, |known| known.min(since)));
        let room = most.saturating_sub(inner.copies.len());
        inner.copies.extend(copies.into_iter().take(room));
    }

    /// The busy stretches of the client's copy engine, in the order of time.
    pub(crate) fn copies(&self) -> Vec<(Moment, Moment)> {
        let inner = self.lock();
        let since = Moment::from(inner.copies_since.unwrap_or(self.opened));
        let mut copies: Vec<_> =
            inner.copies.iter().map(|(start, end)| (since + *start, since + *end)).collect();
        copies.sort_unstable();
        copies
    }

    /// When the last span of a chunk ended.
    pub(crate) fn last_end(&self, chunk: usize) -> Option<Moment> {
        self.lock().chunks.get(chunk).and_then(|trace| trace.spans.last()).map(|span| span.end)
    }

    /// Queue and service time per stage, over all chunks, in path order.
    pub(crate) fn stages(&self) -> Vec<StageSeconds> {
        let inner = self.lock();
        // By stage: queue, service; whether it was there at all.
        let mut sums = [(Duration::ZERO, Duration::ZERO, false); Stage::ALL.len()];
        let chunks = inner.chunks.iter().flat_map(|trace| &trace.spans);
        for span in inner.load.iter().chain(chunks) {
            let Some((queue, service, there)) = sums.get_mut(span.stage as usize) else { continue };
            *there = true;
            match span.kind {
                Kind::Queue => *queue += span.length(),
                Kind::Service => *service += span.length(),
            }
        }
        let sums = Stage::ALL.iter().zip(sums).filter(|(_, (_, _, there))| *there);
        let seconds = sums.map(|(stage, (queue, service, _))| StageSeconds {
            stage: stage.as_str().to_owned(),
            queue,
            service,
        });
        seconds.collect()
    }

    /// Shows the tier of each chunk that was on its way, by what it was at.
    pub(crate) fn tiers(&self, mut show: impl FnMut(Tier)) {
        for trace in &self.lock().chunks {
            // Waiting to be taken up is no tier's.
            let at = |s: &Span| (s.stage, s.kind) != (Stage::Fetch, Kind::Queue);
            let was_at =
                |stages: &[Stage]| trace.spans.iter().any(|s| stages.contains(&s.stage) && at(s));
            let of_origin = [Stage::Fetch, Stage::ConnAcquire, Stage::Ttfb, Stage::Body];
            if was_at(&of_origin) {
                show(Tier::Origin);
            } else if was_at(&[Stage::NvmeRead]) {
                show(Tier::Nvme);
            } else if was_at(&[Stage::Publish]) {
                show(Tier::Ram);
            }
        }
    }

    /// Looks at its spans in the order of walks. Nothing can be added meanwhile.
    pub(crate) fn read<T>(&self, look: impl FnOnce(&path::Paths<'_>) -> T) -> T {
        let inner = self.lock();
        look(&path::Paths::of(&inner.load, &inner.chunks))
    }

    /// Shows every span: of the load itself first, then those of each chunk.
    pub(crate) fn each_span(&self, mut show: impl FnMut(Option<usize>, &Span)) {
        let inner = self.lock();
        inner.load.iter().for_each(|span| show(None, span));
        for (chunk, trace) in inner.chunks.iter().enumerate() {
            trace.spans.iter().for_each(|span| show(Some(chunk), span));
        }
    }

    /// How many spans it has.
    pub(crate) fn len(&self) -> usize {
        let inner = self.lock();
        inner.load.len() + inner.chunks.iter().map(|trace| trace.spans.len()).sum::<usize>()
    }

    /// Reads the spans of the load, and those of each chunk. Nobody can write meanwhile.
    #[cfg(feature = "otlp")]
    pub(crate) fn spans<T>(&self, read: impl FnOnce(&[Span], &[ChunkTrace]) -> T) -> T {
        let inner = self.lock();
        read(&inner.load, &inner.chunks)
    }

    /// When the first chunk was readable by the client.
    pub(crate) fn first_chunk_at(&self) -> Option<Moment> {
        let inner = self.lock();
        inner.chunks.iter().filter_map(|trace| trace.end_of(Stage::Publish)).min()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        // A panic while pushing a span cannot leave the vectors inconsistent.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
