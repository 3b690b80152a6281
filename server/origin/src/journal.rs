//! What the attempts of a piece of work came to, for whoever wants to know where its time went.
//!
//! Reads hand out the log of their attempts; heads and listings, which resolving consists of, have
//! no record of their own. So a [`Journal`] is lent to a future, and every attempt within it is
//! entered, whatever it was for: when it ends, and as far as it has come if somebody looks before
//! that. Work that is cut off never ends its attempts, and what it waited for is wanted then most of
//! all. What is spawned is not within it.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::time::Instant;

use crate::store::{AttemptOutcome, AttemptRecord};
use crate::transport::probe::Probe;
use crate::tries::record_of;

/// Entries of one journal; what ends later is left out.
const ENTRIES_MAX: usize = 4096;

tokio::task_local! {
    static JOURNAL: Journal;
}

/// One call of the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct CallId(u64);

impl CallId {
    fn next() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Self(NEXT.fetch_add(1, Ordering::Relaxed))
    }
}

/// One attempt.
#[derive(Debug, Clone, PartialEq)]
pub struct JournalEntry {
    /// The same for all attempts of one call, different for any two calls.
    pub call: u64,
    /// When the attempt was asked for; from then until it started it waited for leave to send.
    pub wanted: Instant,
    /// The attempt.
    pub attempt: AttemptRecord,
    /// When it ended, or was looked at.
    pub ended: Instant,
    /// Why it was not made again, if that could have helped.
    pub not_again: Option<&'static str>,
}

/// The attempts of a piece of work.
#[derive(Debug, Clone, Default)]
pub struct Journal(Arc<Mutex<Pages>>);

#[derive(Debug, Default)]
struct Pages {
    /// In the order in which they ended.
    ended: Vec<JournalEntry>,
    under_way: BTreeMap<CallId, UnderWay>,
}

/// A call's next attempt, which has not ended.
#[derive(Debug)]
struct UnderWay {
    wanted: Instant,
    /// None as long as it waits for leave to send.
    sent: Option<Sent>,
}

/// An attempt that was let.
#[derive(Debug)]
pub(crate) struct Sent {
    pub(crate) started: Instant,
    pub(crate) rated: bool,
    pub(crate) probe: Probe,
}

impl Journal {
    /// Does a piece of work whose attempts are entered here.
    pub async fn of<T>(&self, work: impl Future<Output = T>) -> T {
        JOURNAL.scope(self.clone(), work).await
    }

    /// Every attempt so far: those that have ended in that order, then those under way, as if they
    /// were given up now.
    #[must_use]
    pub fn entries(&self) -> Vec<JournalEntry> {
        let (pages, now) = (self.lock(), Instant::now());
        let mut entries = pages.ended.clone();
        entries.extend(pages.under_way.iter().map(|(call, one)| one.given_up(*call, now)));
        entries
    }

    fn lock(&self) -> MutexGuard<'_, Pages> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Pages {
    fn enter(&mut self, entry: JournalEntry) {
        if self.ended.len() < ENTRIES_MAX {
            self.ended.push(entry);
        }
    }
}

impl UnderWay {
    fn given_up(&self, call: CallId, now: Instant) -> JournalEntry {
        let attempt = match &self.sent {
            Some(Sent { started, rated, probe }) => {
                let seen = probe.seen().so_far(now);
                let took = now.saturating_duration_since(*started);
                record_of(seen, (*started, took), *rated, AttemptOutcome::GivenUp)
            }
            None => {
                let nothing = Probe::new().seen();
                record_of(nothing, (now, Default::default()), false, AttemptOutcome::Unsent)
            }
        };
        let (wanted, ended) = (self.wanted, now);
        JournalEntry { call: call.0, wanted, attempt, ended, not_again: None }
    }
}

/// One call, as the journal of its task has it. Dropping it enters what was given up.
#[derive(Debug)]
pub(crate) struct Line {
    /// None if nobody wants to know.
    journal: Option<Journal>,
    call: CallId,
}

impl Line {
    /// A new call of the current task.
    pub(crate) fn begin() -> Self {
        Self { journal: JOURNAL.try_with(Journal::clone).ok(), call: CallId::next() }
    }

    /// An attempt is wanted: it waits for its time, or for leave to send.
    pub(crate) fn wants(&self, wanted: Instant) {
        self.under_way(|| UnderWay { wanted, sent: None });
    }

    /// The attempt that was wanted then was let.
    pub(crate) fn sends(&self, wanted: Instant, sent: impl FnOnce() -> Sent) {
        self.under_way(|| UnderWay { wanted, sent: Some(sent()) });
    }

    /// The attempt has ended.
    pub(crate) fn ended(&self, wanted: Instant, attempt: &AttemptRecord) {
        let Some(journal) = &self.journal else { return };
        let entry = JournalEntry {
            call: self.call.0,
            wanted,
            attempt: attempt.clone(),
            ended: Instant::now(),
            not_again: None,
        };
        let mut pages = journal.lock();
        pages.under_way.remove(&self.call);
        pages.enter(entry);
    }

    /// The attempt that ended last was the last one, though another might have helped.
    pub(crate) fn gives_up(&self, why: &'static str) {
        let Some(journal) = &self.journal else { return };
        let mut pages = journal.lock();
        let last = pages.ended.iter_mut().rev().find(|entry| entry.call == self.call.0);
        if let Some(last) = last {
            last.not_again = Some(why);
        }
    }

    fn under_way(&self, what: impl FnOnce() -> UnderWay) {
        if let Some(journal) = &self.journal {
            let what = what();
            journal.lock().under_way.insert(self.call, what);
        }
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        let Some(journal) = &self.journal else { return };
        let mut pages = journal.lock();
        if let Some(one) = pages.under_way.remove(&self.call) {
            let entry = one.given_up(self.call, Instant::now());
            pages.enter(entry);
        }
    }
}
