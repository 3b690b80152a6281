//! On what terms a read is made, and what it has come to so far: a handle shared by the read and by
//! those who wait for it.
//!
//! Clones of a [`ReadTerms`] are the same terms. Who waits for a read may change while it is under
//! way, and with that its lane and its deadline: [`ReadTerms::set`] tells the read, wherever it
//! waits. The other way, the read counts what it does as it does it, so that a read that fails or
//! is dropped is accounted for like one that succeeds. Several reads may share terms; they count
//! together.

use std::net::IpAddr;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use crate::store::Lane;

/// On what terms a read is made; see the module's head.
#[derive(Debug, Clone)]
pub struct ReadTerms(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    demand: watch::Sender<Demand>,
    epoch: Instant,
    /// Body bytes that have arrived, and when the last of them did, in nanoseconds after `epoch`.
    landed: AtomicU64,
    moved: AtomicU64,
    /// Reads whose turn has come: the origin is asked, or soon again.
    on_wire: AtomicU32,
    spent: Mutex<Spent>,
    distrusted: Mutex<Option<Distrust>>,
}

/// Whose last answer had wrong bytes, if the address is known.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Distrust(pub(crate) Option<IpAddr>);

/// What those who wait for a read want of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Demand {
    pub(crate) lane: Lane,
    pub(crate) deadline: Option<Instant>,
}

/// What reads have cost so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Spent {
    /// Attempts begun.
    pub attempts: u32,
    /// Those beyond the first of each read.
    pub retries: u32,
    /// Answers that were throttles.
    pub throttles: u32,
    /// Second copies of slow attempts. They are no attempts.
    pub hedges: u32,
    /// Those that were faster.
    pub hedge_wins: u32,
    /// Body bytes received, by all attempts and copies.
    pub bytes: u64,
    /// Body bytes, among those received, that another copy brought too.
    pub wasted_bytes: u64,
    /// Time spent waiting for leave to send, before all attempts together.
    pub queued: Duration,
    /// Time spent waiting between attempts.
    pub backoff: Duration,
}

impl Default for ReadTerms {
    fn default() -> Self {
        Self::new(Lane::default(), None)
    }
}

impl ReadTerms {
    /// Terms for reads in this lane. No attempt begins that is to end after the deadline, and a
    /// read that has one may have more attempts; it is not cut off.
    #[must_use]
    pub fn new(lane: Lane, deadline: Option<Instant>) -> Self {
        Self(Arc::new(Shared {
            demand: watch::Sender::new(Demand { lane, deadline }),
            epoch: Instant::now(),
            landed: AtomicU64::new(0),
            moved: AtomicU64::new(0),
            on_wire: AtomicU32::new(0),
            spent: Mutex::default(),
            distrusted: Mutex::default(),
        }))
    }

    /// Who the read is for now.
    #[must_use]
    pub fn lane(&self) -> Lane {
        self.0.demand.borrow().lane
    }

    /// When it has to be done, as it is now.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        self.0.demand.borrow().deadline
    }

    /// Changes the terms under way. A read that waits for its turn hears of it at once.
    pub fn set(&self, lane: Lane, deadline: Option<Instant>) {
        let demand = Demand { lane, deadline };
        self.0.demand.send_if_modified(|current| {
            let differs = *current != demand;
            *current = demand;
            differs
        });
    }

    /// Body bytes have arrived.
    pub fn landed(&self, bytes: u64) {
        self.0.landed.fetch_add(bytes, Ordering::Relaxed);
        if bytes > 0 {
            self.0.moved.fetch_max(self.now(), Ordering::Relaxed);
        }
    }

    /// Body bytes that have arrived so far.
    #[must_use]
    pub fn landed_bytes(&self) -> u64 {
        self.0.landed.load(Ordering::Relaxed)
    }

    /// Since when the origin, asked, has not sent a byte. `None` while it is not asked: a read that
    /// waits for its turn says nothing about the origin.
    #[must_use]
    pub fn quiet_since(&self) -> Option<Instant> {
        let asked = self.0.on_wire.load(Ordering::Relaxed) > 0;
        let moved = Duration::from_nanos(self.0.moved.load(Ordering::Relaxed));
        asked.then(|| self.0.epoch + moved)
    }

    /// What was read had wrong bytes: the next reads go over new connections, and to another
    /// address than this if there is one.
    pub fn distrust(&self, address: Option<IpAddr>) {
        *self.distrusting() = Some(Distrust(address));
    }

    pub(crate) fn distrusted(&self) -> Option<Distrust> {
        *self.distrusting()
    }

    fn distrusting(&self) -> MutexGuard<'_, Option<Distrust>> {
        self.0.distrusted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the reads have cost so far.
    #[must_use]
    pub fn spent(&self) -> Spent {
        let spent = *self.spending();
        // What is still on its way is not in an attempt's account yet.
        Spent { bytes: spent.bytes.max(self.landed_bytes()), ..spent }
    }

    /// Hears of every change from now on.
    pub(crate) fn news(&self) -> watch::Receiver<Demand> {
        self.0.demand.subscribe()
    }

    pub(crate) fn spending(&self) -> MutexGuard<'_, Spent> {
        self.0.spent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A read's turn has come, after it waited so long for it: that time was not the origin's.
    pub(crate) fn on_wire(&self, waited: Duration) -> OnWire {
        let now = self.now();
        if self.0.on_wire.fetch_add(1, Ordering::Relaxed) == 0 {
            let waited = u64::try_from(waited.as_nanos()).unwrap_or(u64::MAX);
            let moved = match self.0.moved.load(Ordering::Relaxed) {
                0 => now,
                moved => moved.saturating_add(waited).min(now),
            };
            self.0.moved.store(moved, Ordering::Relaxed);
        }
        OnWire(self.clone())
    }

    /// Nanoseconds after the epoch, never 0: that stands for "not yet".
    fn now(&self) -> u64 {
        u64::try_from(self.0.epoch.elapsed().as_nanos()).unwrap_or(u64::MAX).max(1)
    }
}

/// A read whose turn has come, until it is over or waits for another.
#[derive(Debug)]
pub(crate) struct OnWire(ReadTerms);

impl Drop for OnWire {
    fn drop(&mut self) {
        self.0.0.on_wire.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn only_silence_of_an_origin_that_is_asked_is_quiet() {
        let second = Duration::from_secs(1);
        let terms = ReadTerms::default();
        let begun = Instant::now();
        let quiet = || terms.quiet_since().map(|since| since.elapsed().as_secs());
        tokio::time::advance(5 * second).await;
        assert_eq!(quiet(), None, "it waits for its turn");
        let wire = terms.on_wire(5 * second);
        tokio::time::advance(2 * second).await;
        assert_eq!(quiet(), Some(2));
        // A retry that waits for its turn does not count, and does not begin anew.
        drop(wire);
        tokio::time::advance(10 * second).await;
        assert_eq!(quiet(), None);
        let wire = terms.on_wire(10 * second);
        tokio::time::advance(second).await;
        assert_eq!(quiet(), Some(3));
        terms.landed(7);
        tokio::time::advance(4 * second).await;
        assert_eq!((quiet(), terms.landed_bytes(), terms.spent().bytes), (Some(4), 7, 7));
        drop(wire);
        assert_eq!(begun.elapsed(), 22 * second);
    }

    #[tokio::test]
    async fn clones_are_the_same_terms_and_hear_of_changes_once() {
        let terms = ReadTerms::new(Lane::Prefetch, None);
        let mut news = terms.news();
        let deadline = Some(Instant::now());
        terms.clone().set(Lane::Interactive, deadline);
        assert_eq!((terms.lane(), terms.deadline()), (Lane::Interactive, deadline));
        assert!(news.has_changed().unwrap());
        news.mark_unchanged();
        terms.set(Lane::Interactive, deadline);
        assert!(!news.has_changed().unwrap());
    }
}
