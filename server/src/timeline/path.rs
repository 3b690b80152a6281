//! The critical path of a load: which chain of waits and work decided its length.
//!
//! [`Paths::walk`] starts at the end of the load and goes backwards in time. It takes the chunk that
//! was used last and follows its spans towards their start. [`Paths::to_copy`] does the same for one
//! gap between two copies, from the chunk that ended it. Where the chunk waited for a resource, the
//! walk jumps to the chunk that held it:
//!
//! * a wait for its turn (`turn`) ended because an earlier chunk was readable, or had its slot: the
//!   walk goes on with that chunk;
//! * a wait for a window slot (`lease_alloc`) ended because some chunk was released: the walk goes
//!   on with that chunk, through the client's work on it;
//! * a wait for a connection (`conn_acquire`) ended because some chunk's body was complete: the walk
//!   goes on with that chunk, unless it was the configured rate that held it up. The same of a wait
//!   for earlier bytes of the same object.
//!
//! What is left of the wait after the jump stays charged as queue time. Stretches that no span of a
//! chunk covers may be the load's own; the rest of them is `unattributed`. Pure: instants in, durations out.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::time::Duration;

use super::{ChunkTrace, Clue, Kind, Moment, Span, Stage};

/// Pieces of work on near and on far memory, at least, before one is compared with the other.
const FAR_PIECES_MIN: u32 = 3;

/// How much longer far ones take, at least, before they are said to.
const FAR_DIFFERENCE_MIN: f64 = 1.1;

/// The chain that decided the length of a load.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct CriticalPath {
    /// Newest first, without overlap; with `unattributed` they sum to the wall time.
    pub(crate) segments: Vec<Span>,
    /// Time that no span covers.
    pub(crate) unattributed: Duration,
}

impl CriticalPath {
    /// The segments summed per stage and kind, in path order.
    pub(crate) fn steps(&self) -> Vec<(Stage, Kind, Duration)> {
        let mut sums: BTreeMap<(Stage, Kind), Duration> = BTreeMap::new();
        for segment in &self.segments {
            *sums.entry((segment.stage, segment.kind)).or_default() += segment.length();
        }
        sums.into_iter().map(|((stage, kind), time)| (stage, kind, time)).collect()
    }
}

/// The spans of a load, in order for walks.
pub(crate) struct Paths<'a> {
    load: &'a [Span],
    chunks: &'a [ChunkTrace],
    events: Events,
    visits: RefCell<Visits>,
}

/// Walks back from `end` to `opened`.
#[cfg(test)]
fn walk(opened: Moment, end: Moment, load: &[Span], chunks: &[ChunkTrace]) -> CriticalPath {
    Paths::of(load, chunks).walk(opened, end)
}

impl<'a> Paths<'a> {
    /// Of a load's own spans and those of its chunks.
    pub(crate) fn of(load: &'a [Span], chunks: &'a [ChunkTrace]) -> Self {
        let visits = RefCell::new(Visits { number: 0, last: vec![0; chunks.len()] });
        Self { load, chunks, events: Events::of(chunks), visits }
    }

    /// The critical path from `opened` to `end`: back from the chunk that ended last.
    pub(crate) fn walk(&self, opened: Moment, end: Moment) -> CriticalPath {
        let (mut segments, last) = (Vec::new(), latest(&self.events.last, opened, end));
        let unattributed = self.walk_into(&mut segments, last, (opened, end));
        CriticalPath { segments, unattributed }
    }

    /// What decided that a copy began at `end` and not at `from`: back from the chunk that was
    /// readable last by then, newest first. False if no chunk became readable in between: then the
    /// one that holds what is readable is to be asked.
    pub(crate) fn to_copy(&self, (from, end): (Moment, Moment), segments: &mut Vec<Span>) -> bool {
        let Some(readable) = latest(&self.events.published, from, end) else { return false };
        self.walk_into(segments, Some(readable), (from, end));
        true
    }

    /// What went on in a gap that no chunk ended: back from the one that was readable next, else
    /// from the one that was given up last.
    pub(crate) fn to_nothing(&self, (from, end): (Moment, Moment), segments: &mut Vec<Span>) {
        let after = |events: &[(Moment, usize)]| {
            events.get(events.partition_point(|(at, _)| *at < end)).copied()
        };
        let next = after(&self.events.published).or_else(|| after(&self.events.last));
        let next = next.or_else(|| latest(&self.events.last, from, end));
        self.walk_into(segments, next, (from, end));
    }

    /// Whether a client held a chunk all the time, readable before and released after.
    pub(crate) fn is_held(&self, from: Moment, to: Moment) -> bool {
        let until =
            |events: &[(Moment, usize)], when| events.partition_point(|(at, _)| *at <= when);
        until(&self.events.published, from) > until(&self.events.released, to)
    }

    /// When the origin said "slow down", until when it was waited for that: in the order of time.
    pub(crate) fn throttles(&self) -> Vec<(Moment, Moment)> {
        let throttled = self.spans().filter(|span| span.clue == Clue::Throttled);
        let mut throttles: Vec<_> = throttled.map(|span| (span.start, span.end)).collect();
        throttles.sort_unstable();
        throttles
    }

    /// By stage, the share of its time that work on another node's memory took more than on its
    /// own, if there was enough of both to tell, and a difference.
    pub(crate) fn far_shares(&self) -> BTreeMap<Stage, f64> {
        // Time and number of pieces: near, far.
        let mut sums: BTreeMap<Stage, [(Duration, u32); 2]> = BTreeMap::new();
        let compared =
            |stage| matches!(stage, Stage::Decompress | Stage::VerifyPart | Stage::NvmeRead);
        let work = self.spans().filter(|span| span.kind == Kind::Service && compared(span.stage));
        for span in work {
            let sums = sums.entry(span.stage).or_default();
            let (time, pieces) = &mut sums[usize::from(span.clue == Clue::Far)];
            *time += span.length();
            *pieces += 1;
        }
        let more = |[near, far]: [(Duration, u32); 2]| {
            let mean = |(time, pieces): (Duration, u32)| {
                (pieces >= FAR_PIECES_MIN).then(|| time.as_secs_f64() / f64::from(pieces))
            };
            let (near, far) = mean(near).zip(mean(far))?;
            (far > near * FAR_DIFFERENCE_MIN).then(|| 1.0 - near / far)
        };
        sums.into_iter().filter_map(|(stage, sums)| Some((stage, more(sums)?))).collect()
    }

    fn spans(&self) -> impl Iterator<Item = &Span> {
        self.load.iter().chain(self.chunks.iter().flat_map(|trace| &trace.spans))
    }

    /// Leaves the path in `segments`; what it does not cover.
    fn walk_into(
        &self,
        segments: &mut Vec<Span>,
        last: Option<(Moment, usize)>,
        (opened, end): (Moment, Moment),
    ) -> Duration {
        segments.clear();
        let mut visits = self.visits.borrow_mut();
        visits.begin();
        let mut walk = Walk {
            load: self.load,
            at: end,
            opened,
            segments,
            unattributed: Duration::ZERO,
            visits: &mut visits,
        };
        let mut current = last.map(|(_, chunk)| chunk);
        // Every turn moves `at` towards `opened`, or visits a chunk it has not visited at this
        // instant.
        while let Some(chunk) = current.and_then(|index| self.chunks.get(index)) {
            current = walk.through(chunk, &self.events);
        }
        walk.hole(opened);
        walk.unattributed
    }
}

/// When what a wait may wait for happened, and to which chunk: each list in the order of time.
struct Events {
    /// The last span of a chunk ended.
    last: Vec<(Moment, usize)>,
    /// A chunk was released by the client, or was stored.
    released: Vec<(Moment, usize)>,
    /// A chunk's body was complete: its connection is free.
    body_done: Vec<(Moment, usize)>,
    /// A chunk was readable, or had its slot: the next one has its turn.
    moved_on: Vec<(Moment, usize)>,
    /// A chunk was readable.
    published: Vec<(Moment, usize)>,
}

impl Events {
    fn of(chunks: &[ChunkTrace]) -> Self {
        let list = || Vec::with_capacity(chunks.len());
        let (last, released, published) = (list(), list(), list());
        let moved_on = Vec::with_capacity(2 * chunks.len());
        let mut events = Self { last, released, body_done: Vec::new(), moved_on, published };
        for (index, trace) in chunks.iter().enumerate() {
            events.add(index, trace);
        }
        let Self { last, released, body_done, moved_on, published } = &mut events;
        // Chunks mostly come in their order, and what is in order already is not sorted again.
        for list in [last, released, body_done, moved_on, published] {
            list.sort_unstable();
        }
        events
    }

    /// Each of them is the last of its kind in the chunk: spans are looked at from their end.
    fn add(&mut self, index: usize, trace: &ChunkTrace) {
        let Some(end) = trace.spans.last().map(|span| span.end) else { return };
        self.last.push((end, index));
        let (mut released, mut body, mut readable, mut placed) = (false, false, false, false);
        let first = |seen: &mut bool| !std::mem::replace(seen, true);
        for span in trace.spans.iter().rev() {
            let event = (span.end, index);
            match (span.stage, span.kind) {
                (Stage::ClientAck | Stage::NvmeWrite, _) if first(&mut released) => {
                    self.released.push(event)
                }
                (Stage::Body, _) if first(&mut body) => self.body_done.push(event),
                (Stage::Publish, _) if first(&mut readable) => {
                    self.published.push(event);
                    self.moved_on.push(event);
                }
                (Stage::LeaseAlloc, Kind::Queue) if first(&mut placed) => self.moved_on.push(event),
                _ => {}
            }
        }
    }

    /// What ends a wait of this kind.
    fn ending(&self, span: &Span) -> Option<&[(Moment, usize)]> {
        if span.clue == Clue::Rated {
            return None;
        }
        match (span.stage, span.kind) {
            (Stage::Turn, Kind::Queue) => Some(&self.moved_on),
            (Stage::LeaseAlloc, Kind::Queue) => Some(&self.released),
            (Stage::ConnAcquire, Kind::Queue) => Some(&self.body_done),
            (Stage::Decompress, Kind::Queue) if span.clue == Clue::Behind => Some(&self.body_done),
            _ => None,
        }
    }
}

/// The last event in (`after`, `until`].
fn latest(events: &[(Moment, usize)], after: Moment, until: Moment) -> Option<(Moment, usize)> {
    let count = events.partition_point(|(at, _)| *at <= until);
    events[..count].last().filter(|(at, _)| *at > after).copied()
}

/// Which chunks a walk came to without moving on in time: at one instant each is visited once.
struct Visits {
    /// Of the instant, over all walks.
    number: u32,
    /// By chunk: at which instant it was visited last.
    last: Vec<u32>,
}

impl Visits {
    /// Another instant.
    fn begin(&mut self) {
        self.number = self.number.wrapping_add(1);
        if self.number == 0 {
            self.last.fill(0);
            self.number = 1;
        }
    }

    /// Whether this is the first visit.
    fn insert(&mut self, chunk: usize) -> bool {
        let number = self.number;
        self.last.get_mut(chunk).is_some_and(|last| std::mem::replace(last, number) != number)
    }
}

struct Walk<'a> {
    load: &'a [Span],
    at: Moment,
    opened: Moment,
    segments: &'a mut Vec<Span>,
    unattributed: Duration,
    /// Chunks jumped to without moving `at`.
    visits: &'a mut Visits,
}

impl Walk<'_> {
    /// Follows one chunk back; returns the chunk to go on with, if its wait was caused by one.
    fn through(&mut self, chunk: &ChunkTrace, events: &Events) -> Option<usize> {
        for span in chunk.spans.iter().rev() {
            if span.start >= self.at {
                continue;
            }
            if self.at <= self.opened {
                return None;
            }
            let until = span.end.min(self.at);
            let cause = events.ending(span).and_then(|events| latest(events, span.start, until));
            match cause {
                // At one instant each chunk is visited once: two waits must not blame each other
                // for ever.
                Some((freed_at, holder)) if freed_at < self.at || self.visits.insert(holder) => {
                    self.charge(&Span { start: freed_at, ..*span });
                    return Some(holder);
                }
                _ => self.charge(span),
            }
        }
        None
    }

    /// Charges the part of `span` before `at`, and what lies between the two as a hole.
    fn charge(&mut self, span: &Span) {
        let start = span.start.max(self.opened);
        if start >= self.at {
            return;
        }
        let end = span.end.min(self.at).max(start);
        self.hole(end);
        if end > start {
            self.segments.push(Span { start, end, ..*span });
        }
        self.at = start;
        self.visits.begin();
    }

    /// Charges what lies between `from` and `at`, where no chunk was at anything, to the load's own
    /// spans; what is left is unattributed.
    fn hole(&mut self, from: Moment) {
        for span in self.load.iter().rev() {
            let (start, end) = (span.start.max(from), span.end.min(self.at));
            if start < end {
                self.unattributed += self.at - end;
                self.segments.push(Span { start, end, ..*span });
                self.at = start;
            }
        }
        self.unattributed += self.at.since(from);
        self.at = from;
    }
}

#[cfg(test)]
mod tests {
    use super::Kind::{Queue, Service};
    use super::Stage::{
        Admission, Body, ClientAck, ConnAcquire, LeaseAlloc, Publish, Resolve, Ttfb, Turn,
    };
    use super::*;
    use tokio::time::Instant;

    struct Scene {
        zero: Moment,
        chunks: Vec<ChunkTrace>,
        load: Vec<Span>,
    }

    impl Scene {
        fn at(&self, ms: u64) -> Moment {
            self.zero + Duration::from_millis(ms)
        }

        fn chunk(&mut self, index: usize, spans: &[(Stage, Kind, u64, u64)]) {
            let spans = spans
                .iter()
                .map(|&(stage, kind, start, end)| {
                    Span::new(stage, kind, self.at(start), self.at(end))
                })
                .collect();
            if self.chunks.len() <= index {
                self.chunks.resize_with(index + 1, ChunkTrace::default);
            }
            self.chunks[index] = ChunkTrace { spans };
        }

        fn path(&self, end: u64) -> (Vec<(Stage, Kind, u128)>, u128) {
            let path = walk(self.zero, self.at(end), &self.load, &self.chunks);
            let steps =
                path.steps().into_iter().map(|(s, k, time)| (s, k, time.as_millis())).collect();
            (steps, path.unattributed.as_millis())
        }
    }

    fn scene() -> Scene {
        let zero = Moment::from(Instant::now());
        let load = vec![
            Span::new(Admission, Queue, zero, zero + Duration::from_millis(10)),
            Span::new(
                Resolve,
                Service,
                zero + Duration::from_millis(10),
                zero + Duration::from_millis(30),
            ),
        ];
        Scene { zero, chunks: Vec::new(), load }
    }

    #[test]
    fn one_chunk_is_its_own_path() {
        let mut scene = scene();
        scene.chunk(
            0,
            &[
                (Ttfb, Service, 30, 70),
                (Body, Service, 70, 90),
                (Publish, Service, 90, 91),
                (ClientAck, Service, 91, 100),
            ],
        );
        let (steps, unattributed) = scene.path(100);
        assert_eq!(
            steps,
            [
                (Admission, Queue, 10),
                (Resolve, Service, 20),
                (Ttfb, Service, 40),
                (Body, Service, 20),
                (Publish, Service, 1),
                (ClientAck, Service, 9),
            ]
        );
        assert_eq!(unattributed, 0);
    }

    #[test]
    fn what_no_chunk_was_at_may_be_the_load_s_own() {
        let mut scene = scene();
        scene.chunk(0, &[(Body, Service, 30, 80), (Publish, Service, 80, 81)]);
        let proving = Span::new(Stage::VerifyObject, Service, scene.at(70), scene.at(98));
        scene.load.push(proving);
        let (steps, unattributed) = scene.path(100);
        assert_eq!(
            steps[2..],
            [(Body, Service, 50), (Stage::VerifyObject, Service, 17), (Publish, Service, 1)]
        );
        assert_eq!(unattributed, 2);
    }

    #[test]
    fn a_wait_for_a_connection_leads_to_the_chunk_that_held_it() {
        let mut scene = scene();
        scene.chunk(
            0,
            &[(Ttfb, Service, 30, 40), (Body, Service, 40, 80), (ClientAck, Service, 80, 82)],
        );
        scene.chunk(
            1,
            &[(ConnAcquire, Queue, 30, 81), (Body, Service, 81, 99), (ClientAck, Service, 99, 100)],
        );
        let (steps, unattributed) = scene.path(100);
        assert_eq!(
            steps,
            [
                (Admission, Queue, 10),
                (Resolve, Service, 20),
                (ConnAcquire, Queue, 1),
                (Ttfb, Service, 10),
                (Body, Service, 58),
                (ClientAck, Service, 1),
            ]
        );
        assert_eq!(unattributed, 0);
    }

    #[test]
    fn a_wait_for_a_slot_leads_to_the_client_that_held_it() {
        let mut scene = scene();
        scene.chunk(0, &[(Body, Service, 30, 40), (ClientAck, Service, 40, 90)]);
        scene.chunk(
            1,
            &[(LeaseAlloc, Queue, 30, 90), (Body, Service, 90, 95), (ClientAck, Service, 95, 100)],
        );
        let (steps, _) = scene.path(100);
        assert!(steps.contains(&(ClientAck, Service, 55)), "{steps:?}");
        assert!(!steps.iter().any(|(stage, ..)| *stage == LeaseAlloc), "{steps:?}");
    }

    #[test]
    fn what_no_span_covers_is_unattributed_and_the_sum_is_the_wall_time() {
        let mut scene = scene();
        scene.chunk(0, &[(Body, Service, 50, 80)]);
        let (steps, unattributed) = scene.path(100);
        assert_eq!(unattributed, 40);
        assert_eq!(steps.iter().map(|(.., ms)| ms).sum::<u128>() + unattributed, 100);
    }

    #[test]
    fn spans_without_length_do_not_make_the_walk_turn_for_ever() {
        let mut scene = scene();
        scene.chunk(0, &[(ConnAcquire, Queue, 30, 40), (Body, Service, 40, 40)]);
        scene.chunk(1, &[(ConnAcquire, Queue, 30, 40), (Body, Service, 40, 40)]);
        let (steps, unattributed) = scene.path(40);
        assert_eq!(steps.iter().map(|(.., ms)| ms).sum::<u128>() + unattributed, 40);
    }

    #[test]
    fn a_wait_for_the_configured_rate_leads_to_nobody() {
        let mut scene = scene();
        scene.chunk(0, &[(Body, Service, 30, 50)]);
        scene.chunk(1, &[(ConnAcquire, Queue, 30, 80), (Body, Service, 80, 90)]);
        let (steps, _) = scene.path(90);
        assert!(steps.contains(&(ConnAcquire, Queue, 30)), "{steps:?}");
        for span in &mut scene.chunks.get_mut(1).unwrap().spans {
            span.clue = Clue::Rated;
        }
        let (steps, _) = scene.path(90);
        assert!(steps.contains(&(ConnAcquire, Queue, 50)), "{steps:?}");
    }

    #[test]
    fn a_wait_for_its_turn_leads_to_the_chunk_before() {
        let mut scene = scene();
        scene.chunk(0, &[(Body, Service, 30, 60), (Publish, Service, 60, 62)]);
        scene.chunk(
            1,
            &[(Turn, Queue, 30, 62), (Body, Service, 62, 90), (ClientAck, Service, 90, 100)],
        );
        let (steps, unattributed) = scene.path(100);
        assert_eq!(unattributed, 0);
        assert!(!steps.iter().any(|(stage, ..)| *stage == Turn), "{steps:?}");
        assert!(steps.contains(&(Body, Service, 58)), "{steps:?}");
    }

    #[test]
    fn a_long_load_is_walked_in_a_moment() {
        let mut scene = scene();
        for n in 0..50_000_u64 {
            let at = 30 + n;
            scene.chunk(
                usize::try_from(n).unwrap(),
                &[
                    (Turn, Queue, 30, at),
                    (Body, Service, at, at + 1),
                    (ClientAck, Service, at + 1, at + 2),
                ],
            );
        }
        let (steps, unattributed) = scene.path(50_031);
        assert_eq!(steps.iter().map(|(.., ms)| ms).sum::<u128>() + unattributed, 50_031);
    }

    #[test]
    fn an_empty_load_has_a_path() {
        let scene = scene();
        assert_eq!(scene.path(30), (vec![(Admission, Queue, 10), (Resolve, Service, 20)], 0));
    }
}
