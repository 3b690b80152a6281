//! Single flight: one fetch per chunk, however many loads wait for it.
//!
//! A flight is a task that fills one chunk. It belongs to those who wait: each holds an
//! `Arc<Flight>`, the registry only a weak reference. When the last of them leaves, the task is
//! aborted, and with it its connection, within one turn of the scheduler. A flight has no deadline
//! of its own: a waiter that runs out of time leaves, and the others go on.
//!
//! A failed flight fails everyone who waits for it; whoever comes later starts a new one. A flight
//! that succeeded has put its chunk into the RAM tier before its waiters hear of it, so that a
//! newcomer finds either the flight or the chunk.

use std::collections::HashMap;
use std::future::Future;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use forebay_proto::{Failure, Reason};
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio::time::Instant;
use tokio_util::task::TaskTracker;

use crate::cost::FetchCost;
use crate::plan::ChunkKey;
use crate::ram::PinnedChunk;
use crate::timeline::{Kind, Span, Stage};

/// What a flight brought.
#[derive(Debug, Clone)]
pub(crate) struct Filled {
    /// The chunk.
    pub(crate) pinned: PinnedChunk,
    /// What it cost.
    pub(crate) cost: FetchCost,
}

type Outcome = Result<Filled, Failure>;

/// What a flight was at, and since when.
#[derive(Debug, Default)]
pub(crate) struct FlightLog {
    spans: Mutex<Vec<Span>>,
}

impl FlightLog {
    /// The flight is at `stage` from now on.
    pub(crate) fn at(&self, stage: Stage, kind: Kind) {
        let now = Instant::now();
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

    /// Everything up to `now`. What has landed is not at anything any more: its last span keeps its
    /// end.
    pub(crate) fn until(&self, now: Instant) -> Vec<Span> {
        let mut spans = self.lock().clone();
        if let Some(last) = spans.last_mut()
            && last.start == last.end
        {
            last.end = now.max(last.start);
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
    cost_taken: AtomicBool,
    task: AbortHandle,
    registry: Arc<Registry>,
}

type Registry = Mutex<HashMap<ChunkKey, Weak<Flight>>>;

impl Flight {
    /// What it was at.
    pub(crate) fn log(&self) -> &FlightLog {
        &self.log
    }

    /// True for the one waiter that accounts for what the flight cost.
    pub(crate) fn take_cost(&self) -> bool {
        !self.cost_taken.swap(true, Ordering::Relaxed)
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
    Flight(Arc<Flight>),
}

/// The flights of one daemon.
#[derive(Debug)]
pub(crate) struct Flights {
    registry: Arc<Registry>,
    tasks: TaskTracker,
}

impl Flights {
    /// Flights that run as tasks of `tasks`.
    pub(crate) fn new(tasks: TaskTracker) -> Self {
        Self { registry: Arc::default(), tasks }
    }

    /// The chunk if `lookup` finds it, else its flight, started with `fill` if there is none.
    pub(crate) fn board<F>(
        &self,
        key: ChunkKey,
        lookup: impl FnOnce() -> Option<PinnedChunk>,
        fill: impl FnOnce(Arc<FlightLog>) -> F,
    ) -> Boarded
    where
        F: Future<Output = Outcome> + Send + 'static,
    {
        let mut registry = lock(&self.registry);
        if let Some(flight) = registry.get(&key).and_then(Weak::upgrade) {
            drop(registry);
            return Boarded::Flight(flight);
        }
        // Under the registry's lock: a flight that landed since the caller last looked is found.
        if let Some(pinned) = lookup() {
            return Boarded::Hit(pinned);
        }
        let (sender, outcome) = watch::channel(None);
        let log = Arc::new(FlightLog::default());
        let filling = fill(Arc::clone(&log));
        let task = self.tasks.spawn(async move {
            let landed = filling.await;
            sender.send_replace(Some(landed));
        });
        let flight = Arc::new(Flight {
            key,
            outcome,
            log,
            cost_taken: AtomicBool::new(false),
            task: task.abort_handle(),
            registry: Arc::clone(&self.registry),
        });
        registry.insert(key, Arc::downgrade(&flight));
        Boarded::Flight(flight)
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
    use std::sync::atomic::AtomicUsize;

    use super::*;

    fn flights() -> Flights {
        Flights::new(TaskTracker::new())
    }

    fn failing(count: &Arc<AtomicUsize>) -> impl Future<Output = Outcome> + Send + 'static {
        let count = Arc::clone(count);
        async move {
            count.fetch_add(1, Ordering::SeqCst);
            tokio::task::yield_now().await;
            Err(Failure::new(Reason::OriginFailed, "no"))
        }
    }

    async fn landing(boarded: Boarded) -> Outcome {
        match boarded {
            Boarded::Flight(flight) => flight.landed().await,
            Boarded::Hit(_) => panic!("nothing is cached here"),
        }
    }

    #[tokio::test]
    async fn a_thousand_callers_are_one_flight() {
        let flights = flights();
        let count = Arc::default();
        let boarded: Vec<_> = (0..1000)
            .map(|_| flights.board(ChunkKey([1; 32]), || None, |_| failing(&count)))
            .collect();
        for boarded in boarded {
            assert_eq!(landing(boarded).await.unwrap_err().reason, Reason::OriginFailed);
        }
        assert_eq!(count.load(Ordering::SeqCst), 1);
        assert_eq!(flights.len(), 0);
        let again = flights.board(ChunkKey([1; 32]), || None, |_| failing(&count));
        landing(again).await.unwrap_err();
        assert_eq!(count.load(Ordering::SeqCst), 2, "a failure is not kept");
    }

    #[tokio::test]
    async fn a_flight_that_nobody_waits_for_is_dropped() {
        let flights = flights();
        let (guard, dropped) = tokio::sync::oneshot::channel::<()>();
        let fill = |_| async move {
            let _guard = guard;
            std::future::pending::<()>().await;
            Err(Failure::new(Reason::Internal, "never"))
        };
        let first = flights.board(ChunkKey([2; 32]), || None, fill);
        let second = flights.board(ChunkKey([2; 32]), || None, |_| async { unreachable!() });
        drop(first);
        tokio::task::yield_now().await;
        assert_eq!(flights.len(), 1, "someone still waits");
        drop(second);
        dropped.await.unwrap_err();
        assert_eq!(flights.len(), 0);
    }
}
