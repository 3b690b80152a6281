//! Where the time of one load went, and what its reads cost.
//!
//! Every load owns a [`Timeline`]. The stages' shells write spans into it: load-wide ones (waiting
//! for admission, resolving, planning) and, per chunk, the chain from waiting for a window slot to
//! the client's release. A span is either *queue* (handed to a stage, not taken up yet) or
//! *service* (being worked on). Spans of one chunk never overlap, so sums are honest; chunks do
//! overlap each other, so stage sums may exceed the wall time, which is why the report also has the
//! critical path (see [`path`]): the chain of spans that ended last, walked backwards.
//!
//! Costs are booked when a [`Spending`] ends, so what is cut off or fails is booked too.
//!
//! A timeline holds at most one trace per chunk of the plan; the plan is bounded by resolve's
//! limits.

pub(crate) mod path;

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use forebay_origin::ReadTerms;
use forebay_proto::StageSeconds;
use tokio::time::Instant;

use crate::cost::FetchCost;

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
}

impl Stage {
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

/// One stretch of time in one stage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Span {
    /// The stage.
    pub(crate) stage: Stage,
    /// Queue or service.
    pub(crate) kind: Kind,
    /// Begin.
    pub(crate) start: Instant,
    /// End; never before `start`.
    pub(crate) end: Instant,
}

impl Span {
    /// A span; an end before the start is taken as the start.
    pub(crate) fn new(stage: Stage, kind: Kind, start: Instant, end: Instant) -> Self {
        Self { stage, kind, start, end: end.max(start) }
    }

    /// Its length.
    pub(crate) fn length(&self) -> Duration {
        self.end - self.start
    }

    /// The part of it after `from`, if any.
    pub(crate) fn since(&self, from: Instant) -> Option<Self> {
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
    pub(crate) fn end_of(&self, stage: Stage) -> Option<Instant> {
        self.spans.iter().rev().find(|span| span.stage == stage).map(|span| span.end)
    }

    /// When the last wait for `stage` ended.
    pub(crate) fn end_of_queue(&self, stage: Stage) -> Option<Instant> {
        let waited = |span: &&Span| span.stage == stage && span.kind == Kind::Queue;
        self.spans.iter().rev().find(waited).map(|span| span.end)
    }
}

/// The spans of one load. Shared by the load and its faces; the lock is held for pushes only.
#[derive(Debug)]
pub(crate) struct Timeline {
    opened: Instant,
    inner: Mutex<Inner>,
}

/// A load-wide span that has not ended.
#[derive(Debug)]
pub(crate) struct OpenSpan<'a> {
    timeline: &'a Timeline,
    stage: Stage,
    kind: Kind,
    start: Instant,
}

impl Drop for OpenSpan<'_> {
    fn drop(&mut self) {
        let span = Span::new(self.stage, self.kind, self.start, Instant::now());
        self.timeline.load_span(span);
    }
}

#[derive(Debug, Default)]
struct Inner {
    load: Vec<Span>,
    chunks: BTreeMap<usize, ChunkTrace>,
    cost: FetchCost,
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
        Self { opened, inner: Mutex::default() }
    }

    /// When the load was opened.
    pub(crate) fn opened(&self) -> Instant {
        self.opened
    }

    /// Begins a load-wide span. It ends when the guard drops: at the end of the step, or when the
    /// step is cut off.
    pub(crate) fn begin(&self, stage: Stage, kind: Kind) -> OpenSpan<'_> {
        OpenSpan { timeline: self, stage, kind, start: Instant::now() }
    }

    /// Begins the first span: the time since the load was opened is part of it.
    pub(crate) fn begin_first(&self, stage: Stage, kind: Kind) -> OpenSpan<'_> {
        OpenSpan { timeline: self, stage, kind, start: self.opened }
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
        self.lock().chunks.entry(chunk).or_default().spans.extend(spans);
    }

    /// When the last span of a chunk ended.
    pub(crate) fn last_end(&self, chunk: usize) -> Option<Instant> {
        self.lock().chunks.get(&chunk).and_then(|trace| trace.spans.last()).map(|span| span.end)
    }

    /// Queue and service time per stage, over all chunks, in path order.
    pub(crate) fn stages(&self) -> Vec<StageSeconds> {
        let inner = self.lock();
        let mut sums: BTreeMap<Stage, (Duration, Duration)> = BTreeMap::new();
        let chunks = inner.chunks.values().flat_map(|trace| &trace.spans);
        for span in inner.load.iter().chain(chunks) {
            let (queue, service) = sums.entry(span.stage).or_default();
            match span.kind {
                Kind::Queue => *queue += span.length(),
                Kind::Service => *service += span.length(),
            }
        }
        sums.into_iter()
            .map(|(stage, (queue, service))| StageSeconds {
                stage: stage.as_str().to_owned(),
                queue,
                service,
            })
            .collect()
    }

    /// The critical path up to `end`.
    pub(crate) fn critical_path(&self, end: Instant) -> path::CriticalPath {
        let inner = self.lock();
        path::walk(self.opened, end, &inner.load, &inner.chunks)
    }

    /// Reads the spans of the load, and those of each chunk. Nobody can write meanwhile.
    #[cfg(feature = "otlp")]
    pub(crate) fn read<T>(
        &self,
        read: impl FnOnce(&[Span], &BTreeMap<usize, ChunkTrace>) -> T,
    ) -> T {
        let inner = self.lock();
        read(&inner.load, &inner.chunks)
    }

    /// When the first chunk was readable by the client.
    pub(crate) fn first_chunk_at(&self) -> Option<Instant> {
        let inner = self.lock();
        inner.chunks.values().filter_map(|trace| trace.end_of(Stage::Publish)).min()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        // A panic while pushing a span cannot leave the vectors inconsistent.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
