//! Trace identity: which trace a request belongs to, and what is told of that.
//!
//! [`TraceParent::parse`] takes a W3C `traceparent` by the letter (Trace Context, level 1): one that
//! is not valid counts as none, and then the request begins a trace of its own, which is recorded.
//! `tracestate` is kept as it is, or dropped whole if it is longer than [`STATE_BYTES_MAX`].
//!
//! A [`RequestTrace`] lives as long as its request. What runs in [`RequestTrace::run`] logs with its
//! ids, and asks origins as part of the trace; flights take both along from the load that starts
//! them. Ids are not secret; a URI is kept without its query.

use std::fmt;
use std::future::Future;
use std::sync::{Arc, OnceLock};

use forebay_origin::TraceTag;
use tracing::field::Empty;
use tracing::{Instrument, Span};

use crate::report::Report;

/// Bytes of a `tracestate` that are kept: W3C wants at least so many to be.
const STATE_BYTES_MAX: usize = 512;

/// Digits of version, trace id, parent id and flags, with the hyphens between.
const PARENT_BYTES: usize = 55;

/// Names a trace; never all zeros.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct TraceId(pub(crate) [u8; 16]);

impl fmt::Display for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", u128::from_be_bytes(self.0))
    }
}

impl fmt::Debug for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What a caller said of its trace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TraceParent {
    /// The trace.
    pub(crate) trace_id: TraceId,
    /// The caller's span; not zero.
    pub(crate) parent: u64,
    /// Whether the caller records the trace.
    pub(crate) sampled: bool,
}

impl TraceParent {
    /// Reads a `traceparent`; none if it is not valid. Versions after 00 may have more fields,
    /// which are passed over; of the flags only `sampled` is known.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let bytes = text.as_bytes();
        let (known, rest) = bytes.split_at_checked(PARENT_BYTES)?;
        let mut fields = known.split(|byte| *byte == b'-');
        let version = hex(fields.next()?, 2)?;
        let trace_id = hex(fields.next()?, 32).filter(|id| *id != 0)?;
        let parent = hex(fields.next()?, 16).filter(|id| *id != 0)?;
        let flags = hex(fields.next()?, 2)?;
        let ended = match version {
            0 => rest.is_empty(),
            0xff => false,
            _ => rest.is_empty() || rest.starts_with(b"-"),
        };
        if !ended || fields.next().is_some() {
            return None;
        }
        Some(Self {
            trace_id: TraceId(trace_id.to_be_bytes()),
            parent: u64::try_from(parent).ok()?,
            sampled: flags & 1 == 1,
        })
    }
}

/// A number of exactly so many lower-case hex digits.
fn hex(field: &[u8], digits: usize) -> Option<u128> {
    let digit = |byte: &u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(byte);
    if field.len() != digits || !field.iter().all(digit) {
        return None;
    }
    u128::from_str_radix(std::str::from_utf8(field).ok()?, 16).ok()
}

/// A `tracestate` that is kept: short, and nothing but visible ASCII and blanks.
pub(crate) fn kept_state<'a>(lines: impl Iterator<Item = &'a str>) -> Option<String> {
    let state = lines.collect::<Vec<_>>().join(",");
    let plain = state.bytes().all(|byte| matches!(byte, b' '..=b'~' | b'\t'));
    (plain && (1..=STATE_BYTES_MAX).contains(&state.len())).then_some(state)
}

/// The identity of one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TraceContext {
    /// The trace it belongs to.
    pub(crate) trace_id: TraceId,
    /// The caller's span; none if the trace begins here.
    pub(crate) parent: Option<u64>,
    /// Its own span, under which those of its steps are.
    pub(crate) span_id: u64,
    /// Whether the trace is recorded. One that begins here is.
    pub(crate) sampled: bool,
}

impl TraceContext {
    /// Goes on with the caller's trace, or begins one. Fails without a random source.
    pub(crate) fn of(parent: Option<TraceParent>) -> Result<Self, getrandom::Error> {
        let mut random = [0; 24];
        getrandom::fill(&mut random)?;
        let (trace_id, span_id) = random.split_at(16);
        let fresh = u128::from_be_bytes(trace_id.try_into().unwrap_or([1; 16])).max(1);
        let span_id = u64::from_be_bytes(span_id.try_into().unwrap_or([1; 8])).max(1);
        Ok(match parent {
            Some(TraceParent { trace_id, parent, sampled }) => {
                Self { trace_id, parent: Some(parent), span_id, sampled }
            }
            None => {
                let trace_id = TraceId(fresh.to_be_bytes());
                Self { trace_id, parent: None, span_id, sampled: true }
            }
        })
    }

    /// As requests to origins are told of it.
    fn tag(&self) -> TraceTag {
        TraceTag { trace_id: self.trace_id.0, sampled: self.sampled }
    }
}

/// What a request is about, once that is known.
#[derive(Debug, Clone)]
#[cfg_attr(not(feature = "otlp"), expect(dead_code, reason = "what exports need"))]
pub(crate) struct About {
    /// The load's id.
    pub(crate) load_id: String,
    /// What is loaded, without a query.
    pub(crate) uri: String,
    /// In which lane.
    pub(crate) lane: &'static str,
}

/// What a load came to.
#[derive(Debug, Clone)]
#[cfg_attr(not(feature = "otlp"), expect(dead_code, reason = "what exports need"))]
pub(crate) struct Done {
    /// Which revision it was.
    pub(crate) revision: String,
    /// Bytes handed over or kept.
    pub(crate) bytes: u64,
}

/// The trace of one request, from its arrival to its end.
#[derive(Debug)]
pub(crate) struct RequestTrace {
    context: TraceContext,
    method: &'static str,
    uid: u32,
    state: Option<String>,
    span: Span,
    about: OnceLock<About>,
    done: OnceLock<Done>,
}

impl RequestTrace {
    /// A request has come.
    pub(crate) fn begin(
        method: &'static str,
        uid: u32,
        context: TraceContext,
        state: Option<String>,
    ) -> Arc<Self> {
        let span = tracing::info_span!(
            "request",
            method,
            trace_id = %context.trace_id,
            uid,
            load_id = Empty,
            lane = Empty,
        );
        let (about, done) = (OnceLock::new(), OnceLock::new());
        Arc::new(Self { context, method, uid, state, span, about, done })
    }

    /// Runs the request's work as part of its trace.
    pub(crate) fn run<F: Future>(&self, work: F) -> impl Future<Output = F::Output> + use<F> {
        self.context.tag().scope(work).instrument(self.span.clone())
    }

    /// Its identity.
    pub(crate) fn context(&self) -> TraceContext {
        self.context
    }

    /// It is known what it is about: lines of the log say so from now on.
    pub(crate) fn is_about(&self, about: About) {
        self.span.record("load_id", about.load_id.as_str()).record("lane", about.lane);
        self.about.get_or_init(|| about);
    }

    /// The load is over.
    pub(crate) fn is_done(&self, report: &Report) {
        let bytes = report.tally.tiers.total();
        self.done.get_or_init(|| Done { revision: report.revision.clone(), bytes });
    }

    /// All that is known of it, for those that record it.
    #[cfg_attr(not(feature = "otlp"), expect(dead_code, reason = "what exports need"))]
    pub(crate) fn facts(&self) -> Facts<'_> {
        Facts {
            method: self.method,
            uid: self.uid,
            state: self.state.as_deref(),
            about: self.about.get(),
            done: self.done.get(),
        }
    }
}

/// See [`RequestTrace::facts`].
#[derive(Debug, Clone, Copy)]
#[cfg_attr(not(feature = "otlp"), expect(dead_code, reason = "what exports need"))]
pub(crate) struct Facts<'a> {
    /// The call.
    pub(crate) method: &'static str,
    /// Whose.
    pub(crate) uid: u32,
    /// The caller's `tracestate`.
    pub(crate) state: Option<&'a str>,
    /// What it is about.
    pub(crate) about: Option<&'a About>,
    /// What it came to, if it succeeded.
    pub(crate) done: Option<&'a Done>,
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
    const PARENT: &str = "00f067aa0ba902b7";

    fn parsed(text: &str) -> Option<(String, u64, bool)> {
        let TraceParent { trace_id, parent, sampled } = TraceParent::parse(text)?;
        Some((trace_id.to_string(), parent, sampled))
    }

    #[test]
    fn what_w3c_allows_is_read() {
        let found = |sampled| Some((TRACE.to_owned(), 0x00f0_67aa_0ba9_02b7, sampled));
        for (text, want) in [
            (format!("00-{TRACE}-{PARENT}-01"), found(true)),
            (format!("00-{TRACE}-{PARENT}-00"), found(false)),
            // Flags that are not known count for nothing.
            (format!("00-{TRACE}-{PARENT}-fe"), found(false)),
            (format!("00-{TRACE}-{PARENT}-ff"), found(true)),
            // A later version begins like this one, and may go on.
            (format!("cc-{TRACE}-{PARENT}-01"), found(true)),
            (format!("cc-{TRACE}-{PARENT}-01-what-the-future-has"), found(true)),
            (format!("01-{TRACE}-{PARENT}-01-"), found(true)),
        ] {
            assert_eq!(parsed(&text), want, "{text}");
        }
    }

    #[test]
    fn everything_else_is_none() {
        for text in [
            String::new(),
            "00".to_owned(),
            "-".repeat(55),
            format!("00-{}-{PARENT}-01", "0".repeat(32)),
            format!("00-{TRACE}-{}-01", "0".repeat(16)),
            format!("00-{}-{PARENT}-01", TRACE.to_uppercase()),
            format!("00-{TRACE}-{}-01", PARENT.to_uppercase()),
            format!("0A-{TRACE}-{PARENT}-01"),
            format!("ff-{TRACE}-{PARENT}-01"),
            format!("00-{TRACE}-{PARENT}-0"),
            format!("00-{TRACE}-{PARENT}-0x"),
            format!("00-{TRACE}-{PARENT}-01-"),
            format!("00-{TRACE}-{PARENT}-01-more"),
            format!("cc-{TRACE}-{PARENT}-01.more"),
            format!("cc-{TRACE}-{PARENT}-012"),
            format!("00-{TRACE}{PARENT}--01"),
            format!("00_{TRACE}_{PARENT}_01"),
            format!(" 00-{TRACE}-{PARENT}-01"),
            format!("00-{TRACE}-{PARENT}-01 "),
            format!("00-+{}-{PARENT}-01", &TRACE[1..]),
            format!("00-{}é-{PARENT}-01", &TRACE[2..]),
        ] {
            assert_eq!(parsed(&text), None, "{text:?}");
        }
    }

    #[test]
    fn a_trace_goes_on_or_begins() {
        let parent = TraceParent::parse(&format!("00-{TRACE}-{PARENT}-00")).unwrap();
        let context = TraceContext::of(Some(parent)).unwrap();
        assert_eq!((context.trace_id, context.parent), (parent.trace_id, Some(parent.parent)));
        assert!(!context.sampled);
        let (one, other) = (TraceContext::of(None).unwrap(), TraceContext::of(None).unwrap());
        assert!(one.sampled && one.parent.is_none() && one.span_id != 0);
        assert_ne!(one.trace_id, other.trace_id);
        assert_ne!(one.span_id, other.span_id);
    }

    #[test]
    fn a_state_is_kept_whole_or_not_at_all() {
        let kept = |lines: &[&str]| kept_state(lines.iter().copied());
        assert_eq!(kept(&["a=1", "b@c=2"]).as_deref(), Some("a=1,b@c=2"));
        assert_eq!(kept(&[]), None);
        assert_eq!(kept(&["a=\u{1}"]), None);
        let longest = "a".repeat(STATE_BYTES_MAX);
        assert_eq!(kept(&[&longest]), Some(longest.clone()));
        assert_eq!(kept(&[&longest, ""]), None);
    }
}
