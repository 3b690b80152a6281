//! Single flight: one fetch per chunk, however many loads wait for it.
//!
//! A flight is a task that fills one chunk. It belongs to those who wait: each holds a [`Seat`],
//! the registry only a weak reference. When the last of them leaves, the task is aborted, and with
//! it its connection, within one turn of the scheduler.
//!
//! What a flight wants of the origin follows from who is on it: it is interactive as long as one of
//! them is, and its deadline is the latest of theirs. Each who boards or leaves sets the terms of
//! its reads anew. A waiter that runs out of time leaves, and the others go on.
//!
//! A failed flight fails everyone who waits for it; whoever comes later starts a new one. A flight
//! that succeeded has put its chunk into the RAM tier before its waiters hear of it, so that a
//! newcomer finds either the flight or the chunk.

use std::collections::{BTreeMap, HashMap};
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use forebay_origin::{Journal, ReadTerms, TraceTag};
use forebay_proto::{Failure, Reason};
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio::time::Instant;
use tokio_util::task::TaskTracker;
use tracing::Instrument;

use crate::admission::Lane;
use crate::deadline::Deadline;
use crate::plan::ChunkKey;
use crate::ram::PinnedChunk;
use crate::report::{Tier, Why};
use crate::timeline::{Event, Kind, Moment, Span, Stage, attempt_events, call_spans};

/// Who waits for a flight.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Waiter {
    /// Whose work it is.
    pub(crate) lane: Lane,
    /// Until when it is of use.
    pub(crate) deadline: Deadline,
}

impl Waiter {
    /// Terms for reads that are for this one alone.
    pub(crate) fn terms(self) -> ReadTerms {
        ReadTerms::new(origin_lane(self.lane), Some(self.deadline.at()))
    }
}

/// Prefetches yield to loads that someone waits for, at the endpoint too.
fn origin_lane(lane: Lane) -> forebay_origin::Lane {
    match lane {
        Lane::Interactive => forebay_origin::Lane::Interactive,
        Lane::Prefetch => forebay_origin::Lane::Prefetch,
    }
}

/// What a flight brought.
#[derive(Debug, Clone)]
pub(crate) struct Landed {
    /// The chunk.
    pub(crate) pinned: PinnedChunk,
    /// From where.
    pub(crate) tier: Tier,
    /// Why from there.
    pub(crate) why: Why,
}

type Outcome = Result<Landed, Failure>;

/// What a flight was at, and since when.
#[derive(Debug)]
pub(crate) struct FlightLog {
    spans: Mutex<Vec<Span>>,
    /// What was decided; a few, since a flight ends.
    decided: Mutex<Vec<Event>>,
    /// What became of its requests, also of those of a read that is cut off.
    journal: Journal,
}

impl FlightLog {
    /// Of a flight that waits for the runtime to take it up.
    fn begin() -> Self {
        let now = Instant::now();
        let spans = Mutex::new(vec![Span::new(Stage::Fetch, Kind::Queue, now, now)]);
        Self { spans, decided: Mutex::default(), journal: Journal::default() }
    }

    /// The flight is at `stage` from now on.
    pub(crate) fn at(&self, stage: Stage, kind: Kind) {
        let now = Moment::from(Instant::now());
        let mut spans = self.lock();
        if let Some(last) = spans.last_mut() {
            last.end = now;
        }
        spans.push(Span::new(stage, kind, now, now));
    }

    /// What the flight was at last is known in detail.
    pub(crate) fn replace_last(&self, details: Vec<Span>) {
        let mut spans = self.lock();
        spans.pop();
        spans.extend(details);
    }

    /// The same of a fetch. Of one that decoded as it read, the journal knows when it read.
    pub(crate) fn fetched(&self, details: Vec<Span>) {
        let cut = |span: Span| match span.stage {
            Stage::Fetch => {
                let entries = self.journal.entries();
                call_spans(&entries, (span.start, span.end), Stage::Decompress)
            }
            _ => vec![span],
        };
        self.replace_last(details.into_iter().flat_map(cut).collect());
    }

    /// Something was decided about it, for a reason.
    pub(crate) fn decided(&self, name: &'static str, detail: impl Into<String>) {
        let event = Event { at: Instant::now(), name, detail: detail.into() };
        self.decided.lock().unwrap_or_else(PoisonError::into_inner).push(event);
    }

    /// Where its requests are entered.
    pub(crate) fn journal(&self) -> &Journal {
        &self.journal
    }

    /// What was decided since `from`, about its requests too.
    pub(crate) fn events(&self, from: Instant) -> Vec<Event> {
        let mut events = self.decided.lock().unwrap_or_else(PoisonError::into_inner).clone();
        events.extend(attempt_events(&self.journal.entries()));
        events.retain(|event| event.at >= from);
        events
    }

    /// Everything up to `now`. What has landed is not at anything any more: its last span keeps its
    /// end. Of a fetch that has not ended, or has failed, the journal knows what it was at.
    pub(crate) fn until(&self, now: Instant) -> Vec<Span> {
        let mut spans = self.lock().clone();
        let Some(last) = spans.pop_if(|last| last.start == last.end) else { return spans };
        let until = Moment::from(now).max(last.start);
        match (last.stage, last.kind) {
            (Stage::Fetch, Kind::Service) => {
                let entries = self.journal.entries();
                spans.extend(call_spans(&entries, (last.start, until), Stage::Fetch));
            }
            _ => spans.push(Span { end: until, ..last }),
        }
        spans
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Span>> {
        self.spans.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One fetch in progress. Dropping the last reference aborts it.
#[derive(Debug)]
pub(crate) struct Flight {
    key: ChunkKey,
    outcome: watch::Receiver<Option<Outcome>>,
    log: Arc<FlightLog>,
    terms: ReadTerms,
    waiters: Mutex<Waiters>,
    task: AbortHandle,
    registry: Arc<Registry>,
}

/// Who is on a flight, by the number of the seat.
#[derive(Debug, Default)]
struct Waiters {
    next_seat: u64,
    seated: BTreeMap<u64, Waiter>,
}

/// A place on a flight: as long as someone has one, it flies.
#[derive(Debug)]
pub(crate) struct Seat {
    flight: Arc<Flight>,
    number: u64,
    /// Whoever boarded first started it.
    pub(crate) started_it: bool,
}

impl Seat {
    /// What it is a place on.
    pub(crate) fn flight(&self) -> &Flight {
        &self.flight
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.flight.seat(|waiters| {
            waiters.seated.remove(&self.number);
        });
    }
}

type Registry = Mutex<HashMap<ChunkKey, Weak<Flight>>>;

impl Flight {
    /// What it was at.
    pub(crate) fn log(&self) -> &FlightLog {
        &self.log
    }

    /// The terms of its reads.
    pub(crate) fn terms(&self) -> &ReadTerms {
        &self.terms
    }

    fn board(self: Arc<Self>, waiter: Waiter, started_it: bool) -> Seat {
        let number = self.seat(|waiters| {
            waiters.next_seat += 1;
            waiters.seated.insert(waiters.next_seat, waiter);
            waiters.next_seat
        });
        Seat { flight: self, number, started_it }
    }

    /// Changes who is on it, and the terms with that. Under the lock, so that the terms of the last
    /// change are those that stay.
    fn seat<T>(&self, change: impl FnOnce(&mut Waiters) -> T) -> T {
        let mut waiters = self.waiters.lock().unwrap_or_else(PoisonError::into_inner);
        let changed = change(&mut waiters);
        let seated = || waiters.seated.values();
        let interactive = seated().any(|waiter| waiter.lane == Lane::Interactive);
        let lane = if interactive { Lane::Interactive } else { Lane::Prefetch };
        if let Some(deadline) = seated().map(|waiter| waiter.deadline.at()).max() {
            self.terms.set(origin_lane(lane), Some(deadline));
        }
        changed
    }

    /// Waits for the end of the flight.
    pub(crate) async fn landed(&self) -> Outcome {
        let mut outcome = self.outcome.clone();
        let outcome = match outcome.wait_for(Option::is_some).await {
            Ok(outcome) => outcome.clone(),
            Err(_gone) => None,
        };
        // The task ends without an outcome only when it panicked: that is our bug.
        outcome.unwrap_or_else(|| Err(Failure::new(Reason::Internal, "a fetch task ended early")))
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        self.task.abort();
        let mut registry = lock(&self.registry);
        // A newer flight of the same chunk may have taken the place.
        if registry.get(&self.key).is_some_and(|flight| flight.strong_count() == 0) {
            registry.remove(&self.key);
        }
    }
}

/// What a load that needs a chunk gets.
#[derive(Debug)]
pub(crate) enum Boarded {
    /// The chunk is here.
    Hit(PinnedChunk),
    /// It is being fetched, for this load alone or for others too.
    Flight(Seat),
}

/// The flights of one daemon.
#[derive(Debug)]
pub(crate) struct Flights {
    registry: Arc<Registry>,
    tasks: TaskTracker,
    runtime: Handle,
}

impl Flights {
    /// Flights that run as tasks of `tasks`, on the threads of `runtime`: those that answer calls do
    /// not wait for bytes that come in.
    pub(crate) fn new(tasks: TaskTracker, runtime: Handle) -> Self {
        Self { registry: Arc::default(), tasks, runtime }
    }

    /// Whose threads move bytes.
    pub(crate) fn runtime(&self) -> &Handle {
        &self.runtime
    }

    /// Whether a chunk is being fetched.
    pub(crate) fn holds(&self, key: &ChunkKey) -> bool {
        lock(&self.registry).get(key).is_some_and(|flight| flight.strong_count() > 0)
    }

    /// The chunk if `lookup` finds it, else a seat on its flight, started with `fill` if there is
    /// none.
    pub(crate) fn board<F>(
        &self,
        key: ChunkKey,
        waiter: Waiter,
        lookup: impl FnOnce() -> Option<PinnedChunk>,
        fill: impl FnOnce(Arc<FlightLog>, ReadTerms) -> F,
    ) -> Boarded
    where
        F: Future<Output = Outcome> + Send + 'static,
    {
        let mut registry = lock(&self.registry);
        if let Some(flight) = registry.get(&key).and_then(Weak::upgrade) {
            drop(registry);
            return Boarded::Flight(flight.board(waiter, false));
        }
        // Under the registry's lock: a flight that landed since the caller last looked is found.
        if let Some(pinned) = lookup() {
            return Boarded::Hit(pinned);
        }
        let (sender, outcome) = watch::channel(None);
        let log = Arc::new(FlightLog::begin());
        let terms = waiter.terms();
        let filling = fill(Arc::clone(&log), terms.clone());
        // Its requests and its lines in the log belong to the load that starts it.
        let flying = TraceTag::carry(async move {
            let landed = filling.await;
            sender.send_replace(Some(landed));
        });
        let task = self.tasks.spawn_on(flying.in_current_span(), &self.runtime);
        let flight = Arc::new(Flight {
            key,
            outcome,
            log,
            terms,
            waiters: Mutex::default(),
            task: task.abort_handle(),
            registry: Arc::clone(&self.registry),
        });
        registry.insert(key, Arc::downgrade(&flight));
        Boarded::Flight(flight.board(waiter, true))
    }

    /// Flights in the air.
    pub(crate) fn len(&self) -> usize {
        lock(&self.registry).len()
    }
}

fn lock(registry: &Registry) -> MutexGuard<'_, HashMap<ChunkKey, Weak<Flight>>> {
    registry.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    use super::*;

    fn flights() -> Flights {
        Flights::new(TaskTracker::new(), Handle::current())
    }

    fn failing(count: &Arc<AtomicUsize>) -> impl Future<Output = Outcome> + Send + 'static {
        let count = Arc::clone(count);
        async move {
            count.fetch_add(1, Ordering::SeqCst);
            tokio::task::yield_now().await;
            Err(Failure::new(Reason::OriginFailed, "no"))
        }
    }

    fn waiter(lane: Lane, seconds: u64) -> Waiter {
        let deadline = Deadline::after(Instant::now(), Duration::from_secs(seconds));
        Waiter { lane, deadline }
    }

    fn anyone() -> Waiter {
        waiter(Lane::Interactive, 60)
    }

    async fn landing(boarded: Boarded) -> Outcome {
        match boarded {
            Boarded::Flight(seat) => seat.flight().landed().await,
            Boarded::Hit(_) => panic!("nothing is cached here"),
        }
    }

    #[tokio::test]
    async fn a_thousand_callers_are_one_flight() {
        let flights = flights();
        let count = Arc::default();
        let boarded: Vec<_> = (0..1000)
            .map(|_| flights.board(ChunkKey([1; 32]), anyone(), || None, |_, _| failing(&count)))
            .collect();
        for boarded in boarded {
            assert_eq!(landing(boarded).await.unwrap_err().reason, Reason::OriginFailed);
        }
        assert_eq!(count.load(Ordering::SeqCst), 1);
        assert_eq!(flights.len(), 0);
        let again = flights.board(ChunkKey([1; 32]), anyone(), || None, |_, _| failing(&count));
        landing(again).await.unwrap_err();
        assert_eq!(count.load(Ordering::SeqCst), 2, "a failure is not kept");
    }

    #[tokio::test]
    async fn a_flight_that_nobody_waits_for_is_dropped() {
        let flights = flights();
        let (guard, dropped) = tokio::sync::oneshot::channel::<()>();
        let fill = |_, _| async move {
            let _guard = guard;
            std::future::pending::<()>().await;
            Err(Failure::new(Reason::Internal, "never"))
        };
        let first = flights.board(ChunkKey([2; 32]), anyone(), || None, fill);
        let second =
            flights.board(ChunkKey([2; 32]), anyone(), || None, |_, _| async { unreachable!() });
        drop(first);
        tokio::task::yield_now().await;
        assert_eq!(flights.len(), 1, "someone still waits");
        drop(second);
        dropped.await.unwrap_err();
        assert_eq!(flights.len(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_flight_accounts_for_all_of_its_time() {
        let (flights, ms) = (flights(), Duration::from_millis);
        let fill = |log: Arc<FlightLog>, _| async move {
            log.at(Stage::VerifyPart, Kind::Service);
            std::future::pending().await
        };
        let boarded = flights.board(ChunkKey([4; 32]), anyone(), || None, fill);
        let Boarded::Flight(seat) = boarded else { panic!("nothing is cached here") };
        let begun = Moment::from(Instant::now());
        // The runtime is busy with others.
        tokio::time::advance(ms(3)).await;
        tokio::time::sleep(ms(4)).await;
        let spans = seat.flight().log().until(Instant::now());
        let seen: Vec<_> = spans.iter().map(|s| (s.stage, s.kind, s.start - begun)).collect();
        let [waited, at] = &seen[..] else { panic!("{seen:?}") };
        assert_eq!(*waited, (Stage::Fetch, Kind::Queue, Duration::ZERO));
        assert_eq!(
            (at.0, spans[0].end, spans[1].end),
            (Stage::VerifyPart, spans[1].start, Instant::now().into())
        );
    }

    #[tokio::test(start_paused = true)]
    async fn the_terms_are_those_of_who_is_on_it() {
        use forebay_origin::Lane as L;
        let flights = flights();
        let begun = Instant::now();
        let board = |waiter| {
            let fill = |_, _| std::future::pending();
            match flights.board(ChunkKey([3; 32]), waiter, || None, fill) {
                Boarded::Flight(seat) => seat,
                Boarded::Hit(_) => panic!("nothing is cached here"),
            }
        };
        let first = board(waiter(Lane::Prefetch, 60));
        let terms = first.flight().terms().clone();
        let seen = || (terms.lane(), terms.deadline().map(|deadline| (deadline - begun).as_secs()));
        assert_eq!(seen(), (L::Prefetch, Some(60)));
        assert!(first.started_it);
        let hurried = board(waiter(Lane::Interactive, 5));
        assert!(!hurried.started_it);
        assert_eq!(seen(), (L::Interactive, Some(60)));
        let patient = board(waiter(Lane::Prefetch, 90));
        assert_eq!(seen(), (L::Interactive, Some(90)));
        drop(hurried);
        assert_eq!(seen(), (L::Prefetch, Some(90)));
        drop(patient);
        assert_eq!(seen(), (L::Prefetch, Some(60)));
        drop(first);
        assert_eq!((seen(), flights.len()), ((L::Prefetch, Some(60)), 0));
    }
}
