//! The critical path of a load: which chain of waits and work decided its length.
//!
//! [`walk`] starts at the end of the load and goes backwards in time. It takes the chunk that was
//! used last and follows its spans towards their start. Where the chunk waited for a resource, the
//! walk jumps to the chunk that held it:
//!
//! * a wait for a window slot (`lease_alloc`) ended because some chunk was released: the walk goes
//!   on with that chunk, through the client's work on it;
//! * a wait for a connection (`conn_acquire`) ended because some chunk's body was complete: the walk
//!   goes on with that chunk.
//!
//! What is left of the wait after the jump stays charged as queue time. Stretches that no span
//! covers are `unattributed`. Pure: instants in, durations out.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

use super::{ChunkTrace, Kind, Span, Stage};

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

/// Walks back from `end` to `opened`.
pub(crate) fn walk(
    opened: Instant,
    end: Instant,
    load: &[Span],
    chunks: &BTreeMap<usize, ChunkTrace>,
) -> CriticalPath {
    let mut walk = Walk { at: end, opened, segments: Vec::new(), unattributed: Duration::ZERO };
    let mut current = latest(chunks, opened, end, last_end);
    // Every turn moves `at` towards `opened` or leaves the chunks: one turn per span at most.
    while let Some(chunk) = current {
        current = walk.through(chunk, chunks);
    }
    for span in load.iter().rev() {
        walk.charge(span);
    }
    walk.close();
    CriticalPath { segments: walk.segments, unattributed: walk.unattributed }
}

struct Walk {
    at: Instant,
    opened: Instant,
    segments: Vec<Span>,
    unattributed: Duration,
}

impl Walk {
    /// Follows one chunk back; returns the chunk to go on with, if its wait was caused by one.
    fn through<'a>(
        &mut self,
        chunk: &'a ChunkTrace,
        chunks: &'a BTreeMap<usize, ChunkTrace>,
    ) -> Option<&'a ChunkTrace> {
        for span in chunk.spans.iter().rev() {
            if span.start >= self.at {
                continue;
            }
            let ended_by: Option<fn(&ChunkTrace) -> Option<Instant>> = match (span.stage, span.kind)
            {
                (Stage::LeaseAlloc, Kind::Queue) => Some(released_at),
                (Stage::ConnAcquire, Kind::Queue) => Some(body_done_at),
                _ => None,
            };
            let until = span.end.min(self.at);
            let holder = ended_by.and_then(|ended| {
                let holder = latest(chunks, span.start, until, ended)?;
                ended(holder).map(|at| (holder, at))
            });
            if let Some((holder, freed_at)) = holder {
                self.charge(&Span { start: freed_at, ..*span });
                return Some(holder);
            }
            self.charge(span);
        }
        None
    }

    /// Charges the part of `span` before `at`, and what lies between the two as unattributed.
    fn charge(&mut self, span: &Span) {
        let start = span.start.max(self.opened);
        if start >= self.at {
            return;
        }
        let end = span.end.min(self.at).max(start);
        self.unattributed += self.at - end;
        if end > start {
            self.segments.push(Span { start, end, ..*span });
        }
        self.at = start;
    }

    fn close(&mut self) {
        self.unattributed += self.at.saturating_duration_since(self.opened);
        self.at = self.opened;
    }
}

/// The chunk with the latest `event` in (`after`, `until`].
fn latest(
    chunks: &BTreeMap<usize, ChunkTrace>,
    after: Instant,
    until: Instant,
    event: fn(&ChunkTrace) -> Option<Instant>,
) -> Option<&ChunkTrace> {
    chunks
        .values()
        .filter_map(|trace| event(trace).map(|at| (at, trace)))
        .filter(|(at, _)| *at > after && *at <= until)
        .max_by_key(|(at, _)| *at)
        .map(|(_, trace)| trace)
}

fn last_end(trace: &ChunkTrace) -> Option<Instant> {
    trace.spans.last().map(|span| span.end)
}

fn released_at(trace: &ChunkTrace) -> Option<Instant> {
    trace.end_of(Stage::ClientAck)
}

fn body_done_at(trace: &ChunkTrace) -> Option<Instant> {
    trace.end_of(Stage::Body)
}

#[cfg(test)]
mod tests {
    use super::Kind::{Queue, Service};
    use super::Stage::{
        Admission, Body, ClientAck, ConnAcquire, LeaseAlloc, Publish, Resolve, Ttfb,
    };
    use super::*;

    struct Scene {
        zero: Instant,
        chunks: BTreeMap<usize, ChunkTrace>,
        load: Vec<Span>,
    }

    impl Scene {
        fn at(&self, ms: u64) -> Instant {
            self.zero + Duration::from_millis(ms)
        }

        fn chunk(&mut self, index: usize, spans: &[(Stage, Kind, u64, u64)]) {
            let spans = spans
                .iter()
                .map(|&(stage, kind, start, end)| {
                    Span::new(stage, kind, self.at(start), self.at(end))
                })
                .collect();
            self.chunks.insert(index, ChunkTrace { spans });
        }

        fn path(&self, end: u64) -> (Vec<(Stage, Kind, u128)>, u128) {
            let path = walk(self.zero, self.at(end), &self.load, &self.chunks);
            let steps =
                path.steps().into_iter().map(|(s, k, time)| (s, k, time.as_millis())).collect();
            (steps, path.unattributed.as_millis())
        }
    }

    fn scene() -> Scene {
        let zero = Instant::now();
        let load = vec![
            Span::new(Admission, Queue, zero, zero + Duration::from_millis(10)),
            Span::new(
                Resolve,
                Service,
                zero + Duration::from_millis(10),
                zero + Duration::from_millis(30),
            ),
        ];
        Scene { zero, chunks: BTreeMap::new(), load }
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
    fn an_empty_load_has_a_path() {
        let scene = scene();
        assert_eq!(scene.path(30), (vec![(Admission, Queue, 10), (Resolve, Service, 20)], 0));
    }
}
