//! The faults an origin can be told to commit, and which requests they strike.
//!
//! A rule is a key pattern, an operation, a schedule and a fault. Every rule counts the requests
//! that match it, and the first rule, in the order they were added, whose schedule is due at its
//! count is applied; at most one fault strikes a request. Schedules are pure functions of that
//! count and a seed, so a run is repeated by repeating its requests. Rules belong to one origin,
//! and tests that share an origin keep apart by their keys.
//!
//! A `Fault` is what a test writes; `Plan` is the same thing cut by the place where it acts: before
//! the backend is asked, in how the object is read, in the response's head, in its body.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::content::Content;
use crate::ledger::{Op, Target};
use crate::random::mix;

/// Something an origin or the network between does wrong.
#[derive(Clone, Debug)]
pub enum Fault {
    /// An error response with the body the origin's protocol has for it, and a `Retry-After` in
    /// whole seconds where given. 503 is S3's SlowDown.
    Status {
        /// The HTTP status.
        code: u16,
        /// The time the client is told to wait.
        retry_after: Option<Duration>,
    },
    /// An error response with this status and error code (`ExpiredToken`,
    /// `RequestTimeTooSkewed`, ..). With status 200, a success that holds an error document.
    ErrorCode {
        /// The HTTP status.
        status: u16,
        /// The code in the error document.
        code: &'static str,
    },
    /// The connection is reset, with no response.
    ResetBeforeHeaders,
    /// The connection is closed, with no response.
    CloseBeforeHeaders,
    /// Right head, this many body bytes, then a TCP reset once the client's kernel has them.
    ResetAfter(u64),
    /// Right head with the right `Content-Length`, this many body bytes, then an orderly close.
    TruncateTo(u64),
    /// A body cut to this many bytes under a `Content-Length` that agrees with the cut.
    ShortBody(u64),
    /// No `Content-Length`: a chunked body that ends properly after this many bytes.
    ChunkedTo(u64),
    /// No `Content-Length`: an HTTP/1.0 body whose only end is the close, after this many bytes.
    CloseDelimitedTo(u64),
    /// This many bytes too many, under a `Content-Length` that includes them.
    Overlong(u64),
    /// A `Content-Range` whose both ends are this much too high.
    WrongRange(u64),
    /// The whole object with status 200, whatever range was asked for.
    FullBodyTo200,
    /// The right head over bytes that lie this much further on (or back, at the end).
    Misplaced(u64),
    /// The lowest bit of the body byte at this offset is flipped.
    FlipBit(u64),
    /// One bit, chosen by the seed, is flipped in every `every` bytes of the body.
    FlipBits {
        /// Chooses the bits.
        seed: u64,
        /// Bytes per flipped bit.
        every: u64,
    },
    /// A response that starts this much late.
    Delay(Duration),
    /// The request is read and never answered.
    StallBeforeHeaders,
    /// Head and this many body bytes, then nothing, with the connection left open.
    StallAfter(u64),
    /// A body at this speed.
    Drip {
        /// Bytes per second, at least 1.
        bytes_per_second: u64,
    },
    /// The connection is reset once this many bytes of the request's body have come.
    ResetUpload(u64),
    /// No more than this many bytes of the request's body are taken, with the connection left open.
    StallUpload(u64),
    /// The object is replaced when the request arrives, before it is looked at.
    ReplaceObject(Content),
    /// The object is gone when the request arrives.
    RemoveObject,
    /// A response header is set to another value.
    SetHeader(&'static str, String),
    /// A response header is left out.
    DropHeader(&'static str),
}

/// At which of the requests that match a rule its fault strikes, counted from 1.
#[derive(Clone, Debug)]
pub enum When {
    /// At each.
    Always,
    /// At this one only.
    Nth(u64),
    /// At the first so many.
    First(u64),
    /// At each after the first so many.
    After(u64),
    /// At each one whose number is a multiple of this.
    Every(u64),
    /// At each with this probability, by a draw that depends on the seed and its number.
    Chance {
        /// The seed of the draws.
        seed: u64,
        /// The probability in thousandths.
        per_mille: u32,
    },
}

/// A fault and the requests it strikes: by default every GET whose key matches.
#[derive(Clone, Debug)]
pub struct FaultRule {
    keys: String,
    bucket: Option<String>,
    op: Option<Op>,
    covering: Option<u64>,
    when: When,
    fault: Fault,
}

impl FaultRule {
    /// `fault` at every GET of a key that matches `keys`: `*` stands for any characters, slashes
    /// included, and `?` for one.
    pub fn new(keys: impl Into<String>, fault: Fault) -> Self {
        let keys = keys.into();
        Self { keys, bucket: None, op: Some(Op::Get), covering: None, when: When::Always, fault }
    }

    /// Only in this bucket.
    #[must_use]
    pub fn in_bucket(mut self, bucket: impl Into<String>) -> Self {
        self.bucket = Some(bucket.into());
        self
    }

    /// At this operation in place of GET.
    #[must_use]
    pub fn on(mut self, op: Op) -> Self {
        self.op = Some(op);
        self
    }

    /// At every operation.
    #[must_use]
    pub fn on_any(mut self) -> Self {
        self.op = None;
        self
    }

    /// Only where the requested bytes include the one at `offset`.
    #[must_use]
    pub fn covering(mut self, offset: u64) -> Self {
        self.covering = Some(offset);
        self
    }

    /// On this schedule over the requests that match.
    #[must_use]
    pub fn when(mut self, when: When) -> Self {
        self.when = when;
        self
    }

    /// At the `n`th request that matches only, counted from 1.
    #[must_use]
    pub fn nth(self, n: u64) -> Self {
        self.when(When::Nth(n))
    }

    /// At the first `n` requests that match.
    #[must_use]
    pub fn first(self, n: u64) -> Self {
        self.when(When::First(n))
    }

    fn matches(&self, target: &Target) -> bool {
        let covered = |offset| target.range.as_ref().is_none_or(|range| range.contains(&offset));
        self.op.is_none_or(|op| op == target.op)
            && self.bucket.as_ref().is_none_or(|bucket| *bucket == target.bucket)
            && self.covering.is_none_or(covered)
            && glob(self.keys.as_bytes(), target.key.as_bytes())
    }
}

impl When {
    /// Whether the `count`th matching request, from 1, is struck.
    pub(crate) fn due(&self, count: u64) -> bool {
        match *self {
            Self::Always => true,
            Self::Nth(n) => count == n,
            Self::First(n) => count <= n,
            Self::After(n) => count > n,
            Self::Every(n) => n > 0 && count.is_multiple_of(n),
            Self::Chance { seed, per_mille } => {
                mix(seed ^ mix(count)) % 1000 < u64::from(per_mille)
            }
        }
    }
}

/// A rule that an origin is following.
#[derive(Clone, Debug)]
pub struct FaultHandle {
    rule: Arc<ActiveRule>,
    book: Arc<FaultBook>,
}

impl FaultHandle {
    /// How many requests the fault has struck.
    pub fn hits(&self) -> u64 {
        self.rule.hits.load(Ordering::Relaxed)
    }

    /// How many requests the rule matched, struck or not.
    pub fn matched(&self) -> u64 {
        self.rule.matched.load(Ordering::Relaxed)
    }

    /// Takes the rule away; requests already struck stay so.
    pub fn remove(&self) {
        self.book.rules().retain(|rule| !Arc::ptr_eq(rule, &self.rule));
    }
}

#[derive(Debug)]
struct ActiveRule {
    rule: FaultRule,
    matched: AtomicU64,
    hits: AtomicU64,
}

/// The rules of one origin.
#[derive(Debug, Default)]
pub(crate) struct FaultBook(Mutex<Vec<Arc<ActiveRule>>>);

impl FaultBook {
    pub(crate) fn add(self: &Arc<Self>, rule: FaultRule) -> FaultHandle {
        let active = ActiveRule { rule, matched: AtomicU64::new(0), hits: AtomicU64::new(0) };
        let active = Arc::new(active);
        self.rules().push(Arc::clone(&active));
        FaultHandle { rule: active, book: Arc::clone(self) }
    }

    pub(crate) fn clear(&self) {
        self.rules().clear();
    }

    /// Counts the request at every rule, and gives the fault of the first one that is due.
    pub(crate) fn strike(&self, target: &Target) -> Option<Fault> {
        let mut struck = None;
        for active in self.rules().iter().filter(|active| active.rule.matches(target)) {
            let count = active.matched.fetch_add(1, Ordering::Relaxed) + 1;
            if struck.is_none() && active.rule.when.due(count) {
                active.hits.fetch_add(1, Ordering::Relaxed);
                struck = Some(active.rule.fault.clone());
            }
        }
        struck
    }

    fn rules(&self) -> MutexGuard<'_, Vec<Arc<ActiveRule>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn glob(pattern: &[u8], text: &[u8]) -> bool {
    match pattern {
        [] => text.is_empty(),
        [b'*', rest @ ..] => (0..=text.len()).any(|skip| glob(rest, &text[skip..])),
        [b'?', rest @ ..] => text.split_first().is_some_and(|(_, text)| glob(rest, text)),
        [byte, rest @ ..] => {
            text.split_first().is_some_and(|(first, text)| first == byte && glob(rest, text))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(key: &str) -> Target {
        Target {
            op: Op::Get,
            bucket: "b".into(),
            key: key.into(),
            range: Some(100..200),
            if_match: None,
            if_unmodified_since: None,
            traceparent: None,
        }
    }

    #[test]
    fn patterns_match_as_documented() {
        for (pattern, key, expected) in [
            ("*", "a/b", true),
            ("a/*.safetensors", "a/x/y.safetensors", true),
            ("a/*.safetensors", "a/x.json", false),
            ("?", "ab", false),
            ("a?c", "abc", true),
            ("", "", true),
        ] {
            assert_eq!(glob(pattern.as_bytes(), key.as_bytes()), expected, "{pattern} on {key}");
        }
    }

    #[test]
    fn rules_are_narrowed_by_operation_bucket_and_offset() {
        let rule = || FaultRule::new("k", Fault::ResetBeforeHeaders);
        assert!(rule().matches(&target("k")));
        assert!(!rule().on(Op::Head).matches(&target("k")));
        assert!(rule().on_any().in_bucket("b").matches(&target("k")));
        assert!(!rule().in_bucket("c").matches(&target("k")));
        assert!(rule().covering(199).matches(&target("k")));
        assert!(!rule().covering(200).matches(&target("k")));
    }

    #[test]
    fn schedules_strike_when_they_say() {
        let strikes = |when: When| (1..=6).filter(|count| when.due(*count)).collect::<Vec<_>>();
        assert_eq!(strikes(When::Nth(3)), [3]);
        assert_eq!(strikes(When::First(2)), [1, 2]);
        assert_eq!(strikes(When::After(4)), [5, 6]);
        assert_eq!(strikes(When::Every(3)), [3, 6]);
        let chance = When::Chance { seed: 5, per_mille: 250 };
        let hits = (1..=10_000).filter(|count| chance.due(*count)).count();
        assert!((2300..2700).contains(&hits), "{hits}");
    }

    #[test]
    fn the_first_rule_that_is_due_strikes_and_all_count() {
        let book = Arc::new(FaultBook::default());
        let first = book.add(FaultRule::new("*", Fault::ResetAfter(1)).nth(1));
        let second = book.add(FaultRule::new("*", Fault::ResetAfter(2)));
        assert!(matches!(book.strike(&target("a")), Some(Fault::ResetAfter(1))));
        assert!(matches!(book.strike(&target("a")), Some(Fault::ResetAfter(2))));
        assert_eq!((first.hits(), first.matched()), (1, 2));
        assert_eq!((second.hits(), second.matched()), (1, 2));
        second.remove();
        assert!(book.strike(&target("a")).is_none());
    }
}
