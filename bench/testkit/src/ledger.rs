//! What a fake origin saw: one record per request, and sums over them.
//!
//! A record is opened when the request's head has been read, before any fault or check, so refused
//! and broken requests count as well. Its body counter is shared with the response body and grows
//! as bytes are handed to the connection. Sums are kept per key for ever; single records only up
//! to a bound, the oldest leaving first.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::sync::atomic::{AtomicU16, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Single records kept.
const RECORDS: usize = 65_536;

/// What a request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Op {
    /// The bytes of an object.
    Get,
    /// The size and tag of an object.
    Head,
    /// The objects under a prefix.
    List,
    /// Bytes to store: of an object, or of a part of one.
    Put,
    /// Anything else.
    Other,
}

/// What a request is about, read from its head.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    pub(crate) op: Op,
    pub(crate) bucket: String,
    /// The decoded key; the prefix of a listing.
    pub(crate) key: String,
    /// The bytes asked for, where the request has a plain `Range`.
    pub(crate) range: Option<Range<u64>>,
    pub(crate) if_match: Option<String>,
    pub(crate) if_unmodified_since: Option<String>,
    pub(crate) traceparent: Option<String>,
}

/// Sums over requests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Requests for bytes.
    pub gets: u64,
    /// Requests for size and tag.
    pub heads: u64,
    /// Requests for a page of a listing.
    pub lists: u64,
    /// Requests that bring bytes.
    pub puts: u64,
    /// Other requests.
    pub others: u64,
    /// Body bytes handed to the connections, listings and error bodies included.
    pub body_bytes: u64,
}

impl Counts {
    /// All requests.
    pub fn requests(&self) -> u64 {
        self.gets + self.heads + self.lists + self.puts + self.others
    }
}

/// One request as the origin saw it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestRecord {
    /// What it asked for.
    pub op: Op,
    /// The bucket or container; empty for plain HTTP.
    pub bucket: String,
    /// The decoded key, or the prefix of a listing.
    pub key: String,
    /// The bytes it asked for, where it had a `Range: bytes=first-last`.
    pub range: Option<Range<u64>>,
    /// Its `If-Match`.
    pub if_match: Option<String>,
    /// Its `If-Unmodified-Since`.
    pub if_unmodified_since: Option<String>,
    /// Its `traceparent`.
    pub traceparent: Option<String>,
    /// The status answered; 0 while or where no response was made.
    pub status: u16,
    /// Body bytes handed to the connection so far.
    pub body_bytes: u64,
}

/// The open record of a request that is being served.
#[derive(Debug)]
pub(crate) struct Entry {
    target: Target,
    status: AtomicU16,
    body_bytes: AtomicU64,
    per_key: Arc<Sums>,
}

#[derive(Debug, Default)]
struct Sums {
    gets: AtomicU64,
    heads: AtomicU64,
    lists: AtomicU64,
    puts: AtomicU64,
    others: AtomicU64,
    body_bytes: AtomicU64,
}

/// All that an origin saw.
#[derive(Debug, Default)]
pub(crate) struct Ledger(Mutex<Book>);

#[derive(Debug, Default)]
struct Book {
    entries: VecDeque<Arc<Entry>>,
    /// By key, then by bucket.
    sums: BTreeMap<String, BTreeMap<String, Arc<Sums>>>,
}

impl Entry {
    pub(crate) fn answered(&self, status: u16) {
        self.status.store(status, Ordering::Relaxed);
    }

    pub(crate) fn sent(&self, bytes: u64) {
        self.body_bytes.fetch_add(bytes, Ordering::Relaxed);
        self.per_key.body_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    fn record(&self) -> RequestRecord {
        RequestRecord {
            op: self.target.op,
            bucket: self.target.bucket.clone(),
            key: self.target.key.clone(),
            range: self.target.range.clone(),
            if_match: self.target.if_match.clone(),
            if_unmodified_since: self.target.if_unmodified_since.clone(),
            traceparent: self.target.traceparent.clone(),
            status: self.status.load(Ordering::Relaxed),
            body_bytes: self.body_bytes.load(Ordering::Relaxed),
        }
    }
}

impl Sums {
    fn requests(&self, op: Op) -> &AtomicU64 {
        match op {
            Op::Get => &self.gets,
            Op::Head => &self.heads,
            Op::List => &self.lists,
            Op::Put => &self.puts,
            Op::Other => &self.others,
        }
    }

    fn add_to(&self, counts: &mut Counts) {
        counts.gets += self.gets.load(Ordering::Relaxed);
        counts.heads += self.heads.load(Ordering::Relaxed);
        counts.lists += self.lists.load(Ordering::Relaxed);
        counts.puts += self.puts.load(Ordering::Relaxed);
        counts.others += self.others.load(Ordering::Relaxed);
        counts.body_bytes += self.body_bytes.load(Ordering::Relaxed);
    }
}

impl Ledger {
    pub(crate) fn open(&self, target: Target) -> Arc<Entry> {
        let mut book = self.book();
        let by_bucket = book.sums.entry(target.key.clone()).or_default();
        let per_key = Arc::clone(by_bucket.entry(target.bucket.clone()).or_default());
        per_key.requests(target.op).fetch_add(1, Ordering::Relaxed);
        let entry = Arc::new(Entry {
            target,
            status: AtomicU16::new(0),
            body_bytes: AtomicU64::new(0),
            per_key,
        });
        if book.entries.len() == RECORDS {
            book.entries.pop_front();
        }
        book.entries.push_back(Arc::clone(&entry));
        entry
    }

    /// Sums for one key, over every bucket.
    pub(crate) fn counts(&self, key: &str) -> Counts {
        let mut counts = Counts::default();
        for sums in self.book().sums.get(key).into_iter().flat_map(BTreeMap::values) {
            sums.add_to(&mut counts);
        }
        counts
    }

    pub(crate) fn total(&self) -> Counts {
        let mut counts = Counts::default();
        for sums in self.book().sums.values().flat_map(BTreeMap::values) {
            sums.add_to(&mut counts);
        }
        counts
    }

    pub(crate) fn records(&self) -> Vec<RequestRecord> {
        self.book().entries.iter().map(|entry| entry.record()).collect()
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
