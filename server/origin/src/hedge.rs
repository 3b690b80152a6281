//! A second copy of a read that takes unusually long.
//!
//! Once an attempt has taken longer than 95 % of its size do, and will not be done in a moment,
//! what is missing of it is asked for again: over a new connection, at another address, into a
//! buffer of its own. Whichever is complete first counts and the other is dropped, which closes its
//! connection. The endpoint says whether a copy is in order at all: it has to be paid for, and is
//! not made while the endpoint throttles.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use object_store::path::Path;
use tokio::time::{Instant, sleep, sleep_until};

use crate::engine::endpoint::{Endpoint, Permit};
use crate::fault::Fault;
use crate::filling::{Filling, length};
use crate::object::ObjectOrigin;
use crate::store::{Lane, ReadRequest};
use crate::tries::Attempt;

/// How often it is asked anew whether a copy is in order.
const LOOK: Duration = Duration::from_millis(50);

/// What is read, and for whom.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Subject<'a> {
    pub(crate) request: &'a ReadRequest,
    pub(crate) path: &'a Path,
    pub(crate) lane: Lane,
}

/// What an attempt, with its copy if it had one, came to.
#[derive(Debug)]
pub(crate) enum Race {
    /// The attempt brought what was missing.
    Done,
    /// The copy did; the attempt had failed before, or was still at it.
    Overtaken(Overtaken),
    /// It failed, and so did the copy.
    Failed(Fault),
}

/// The state of an attempt whose copy was faster.
#[derive(Debug)]
pub(crate) enum Overtaken {
    /// It had failed.
    Failed(Fault),
    /// Not a byte had come since the copy was asked for.
    Silent,
    /// It was slow.
    Slow,
}

/// What a copy cost.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Copied {
    pub(crate) made: bool,
    /// When it was made.
    pub(crate) at: Option<Instant>,
    /// Why it was not, if one was due.
    pub(crate) why_not: Option<&'static str>,
    pub(crate) won: bool,
    pub(crate) received: u64,
    pub(crate) wasted: u64,
}

/// An attempt that is watched.
struct Watch<'a> {
    endpoint: &'a Arc<Endpoint>,
    lane: Lane,
    started: Instant,
    from: usize,
    end: usize,
    progress: Arc<AtomicUsize>,
    /// Why there was no copy when one was due last.
    why_not: Mutex<Option<&'static str>>,
}

impl ObjectOrigin {
    /// Makes an attempt, and a copy of it if it takes too long.
    pub(crate) async fn race(
        &self,
        subject: Subject<'_>,
        filling: &mut Filling<'_>,
        attempt: &Attempt,
    ) -> (Race, Copied) {
        let Subject { request, path, lane } = subject;
        let (from, end) = (filling.filled, filling.filled + filling.missing());
        let progress = Arc::clone(&filling.progress);
        let work = self.read_once(request, path, filling, &attempt.probe);
        let mut first = Box::pin(attempt.run(work));
        let Some(endpoint) = &self.endpoint else {
            return (Race::of(first.await), Copied::default());
        };
        let watch = Watch::new(endpoint, lane, attempt.started, (from, end), &progress);
        let (permit, cost) = tokio::select! {
            biased;
            result = &mut first => {
                let why_not = watch.not_made();
                return (Race::of(result), Copied { why_not, ..Copied::default() });
            }
            leave = watch.copy_is_due() => leave,
        };

        let at = progress.load(Ordering::Relaxed);
        let mut tail = vec![0; end - at];
        let mut into = Filling::new(&mut tail);
        let start = request.range.start + length(at);
        let rest = ReadRequest { range: start..request.range.end, ..request.clone() };
        let copy = Attempt::new(attempt.route_of_copy(), &self.counters, Some(permit));
        let work = self.read_once(&rest, path, &mut into, &copy.probe);
        let mut second = Box::pin(copy.run(work));
        let mut failed = None;
        let outcome = tokio::select! {
            biased;
            result = &mut first => match result {
                Ok(()) => None,
                Err(fault) => {
                    failed = Some(fault);
                    // If what came before the copy's part was taken back, the copy is no use.
                    let whole = progress.load(Ordering::Relaxed) >= at;
                    if whole { Some(second.as_mut().await) } else { None }
                }
            },
            result = &mut second => Some(result),
        };
        drop(second);
        let received = into.received;
        let mut copied = Copied::made(copy.started, received);
        let race = match (outcome, failed) {
            (None, None) => Race::Done,
            (None, Some(failed)) => Race::Failed(failed),
            (Some(Ok(())), failed) => {
                drop(first);
                copied.won = true;
                let reached = progress.load(Ordering::Relaxed);
                copied.wasted = length(reached.saturating_sub(at));
                copy.served(received);
                filling.complete_with(at, &tail);
                Race::Overtaken(match failed {
                    Some(fault) => Overtaken::Failed(fault),
                    None if reached == at => Overtaken::Silent,
                    None => Overtaken::Slow,
                })
            }
            (Some(Err(fault)), failed) => {
                self.counters.failed();
                copy.failed(&fault, received);
                match failed {
                    Some(failed) => Race::Failed(failed),
                    None => Race::of(first.await),
                }
            }
        };
        endpoint.hedged(copied.won, copied.wasted, cost);
        (race, copied)
    }
}

impl Copied {
    /// One that brought so much, for nothing so far.
    fn made(at: Instant, received: u64) -> Self {
        let (at, wasted) = (Some(at), received);
        Self { made: true, at, why_not: None, won: false, received, wasted }
    }
}

impl Race {
    fn of(result: Result<(), Fault>) -> Self {
        result.map_or_else(Self::Failed, |()| Self::Done)
    }
}

impl<'a> Watch<'a> {
    fn new(
        endpoint: &'a Arc<Endpoint>,
        lane: Lane,
        started: Instant,
        (from, end): (usize, usize),
        progress: &Arc<AtomicUsize>,
    ) -> Self {
        let progress = Arc::clone(progress);
        Self { endpoint, lane, started, from, end, progress, why_not: Mutex::default() }
    }

    /// Returns once a copy is worth it and allowed.
    async fn copy_is_due(&self) -> (Permit, u32) {
        loop {
            let Some(patience) = self.endpoint.hedge_after(length(self.end - self.from)) else {
                sleep(LOOK).await;
                continue;
            };
            let late = self.started + patience;
            if Instant::now() < late {
                sleep_until(late).await;
                continue;
            }
            let leave = match self.ends_soon() {
                true => Err("ends_soon"),
                false => self.endpoint.hedge(self.lane),
            };
            match leave {
                Ok(leave) => return leave,
                Err(why) => {
                    *self.why_not.lock().unwrap_or_else(PoisonError::into_inner) = Some(why);
                }
            }
            sleep(LOOK).await;
        }
    }

    /// The attempt is over without a copy; if one was due, there is a reason.
    fn not_made(&self) -> Option<&'static str> {
        let why = *self.why_not.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(why) = why {
            self.endpoint.not_hedged(why);
        }
        why
    }

    /// Whether at its pace the attempt is done before a copy could be.
    fn ends_soon(&self) -> bool {
        let filled = self.progress.load(Ordering::Relaxed);
        let (done, left) = (filled.saturating_sub(self.from), self.end.saturating_sub(filled));
        if left == 0 {
            return true;
        }
        let pace = self.started.elapsed().as_secs_f64() / done.max(1) as f64;
        let usual = self.endpoint.usual(length(left)).unwrap_or_default();
        done > 0 && pace * left as f64 <= usual.as_secs_f64()
    }
}
