//! What the attempts of a piece of work came to, for whoever wants to know where its time went.
//!
//! Reads hand out the log of their attempts; heads and listings, which resolving consists of, have
//! no record of their own. So a [`Journal`] is lent to a future, and every attempt that ends within
//! it is entered, whatever it was for. What is spawned is not within it.

use std::future::Future;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::time::Instant;

use crate::store::AttemptRecord;

/// Entries of one journal; what ends later is left out.
const ENTRIES_MAX: usize = 4096;

tokio::task_local! {
    static JOURNAL: Journal;
}

/// One call of the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct CallId(u64);

impl CallId {
    pub(crate) fn next() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Self(NEXT.fetch_add(1, Ordering::Relaxed))
    }
}

/// One attempt that has ended.
#[derive(Debug, Clone, PartialEq)]
pub struct JournalEntry {
    /// The same for all attempts of one call, different for any two calls.
    pub call: u64,
    /// When the attempt was asked for; from then until it started it waited for leave to send.
    pub wanted: Instant,
    /// The attempt.
    pub attempt: AttemptRecord,
    /// When it ended.
    pub ended: Instant,
}

/// The attempts of a piece of work, in the order in which they ended.
#[derive(Debug, Clone, Default)]
pub struct Journal(Arc<Mutex<Vec<JournalEntry>>>);

impl Journal {
    /// Does a piece of work whose attempts are entered here.
    pub async fn of<T>(&self, work: impl Future<Output = T>) -> T {
        JOURNAL.scope(self.clone(), work).await
    }

    /// What was entered so far.
    #[must_use]
    pub fn entries(&self) -> Vec<JournalEntry> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// An attempt has ended.
pub(crate) fn note(call: CallId, wanted: Instant, attempt: &AttemptRecord) {
    let enter = |journal: &Journal| {
        let mut entries = journal.0.lock().unwrap_or_else(PoisonError::into_inner);
        if entries.len() < ENTRIES_MAX {
            let (attempt, ended) = (attempt.clone(), Instant::now());
            entries.push(JournalEntry { call: call.0, wanted, attempt, ended });
        }
    };
    // Nobody may want to know.
    JOURNAL.try_with(enter).ok();
}
