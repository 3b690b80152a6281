//! Which trace a request to an origin belongs to.
//!
//! Whoever calls a store says so with [`TraceTag::scope`]: calls within it, in the same task, go out
//! with a `traceparent` of their own for every request, where the settings of the origin say so. The
//! header is put on behind object_store, which has signed the request by then: no store counts it
//! among what has to be signed. Requests for credentials never carry it, nor do those that a
//! redirect leads to. What is kept of `tracestate` does not go out.

use std::fmt::Write;
use std::future::Future;

use http::{HeaderName, HeaderValue};

/// The header.
pub(crate) const TRACE_PARENT: HeaderName = HeaderName::from_static("traceparent");

tokio::task_local! {
    static CURRENT: TraceTag;
}

/// The trace that requests belong to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TraceTag {
    /// Its id, not all zeros.
    pub trace_id: [u8; 16],
    /// Whether its caller records it.
    pub sampled: bool,
}

impl TraceTag {
    /// Runs `work`, whose calls of stores belong to this trace.
    pub async fn scope<T>(self, work: impl Future<Output = T>) -> T {
        CURRENT.scope(self, work).await
    }

    /// Work that goes on in another task, as part of the current task's trace if there is one.
    pub fn carry<T>(work: impl Future<Output = T>) -> impl Future<Output = T> {
        let tag = Self::current();
        async move {
            match tag {
                Some(tag) => tag.scope(work).await,
                None => work.await,
            }
        }
    }

    /// That of the current task.
    pub(crate) fn current() -> Option<Self> {
        CURRENT.try_with(|tag| *tag).ok()
    }

    /// The header of one request, with a span id of its own. None without a random source: a
    /// request is worth more than its trace.
    pub(crate) fn header(&self) -> Option<HeaderValue> {
        let span_id = getrandom::u64().ok().filter(|id| *id != 0)?;
        HeaderValue::try_from(self.text(span_id)).ok()
    }

    fn text(&self, span_id: u64) -> String {
        let mut text = String::from("00-");
        for byte in self.trace_id {
            // Writing to a text cannot fail.
            write!(text, "{byte:02x}").ok();
        }
        text + &format!("-{span_id:016x}-{:02x}", u8::from(self.sampled))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_is_written_as_w3c_says() {
        let mut trace_id = [0xab; 16];
        trace_id[0] = 1;
        let tag = TraceTag { trace_id, sampled: true };
        let digits = format!("01{}", "ab".repeat(15));
        assert_eq!(tag.text(0x5), format!("00-{digits}-0000000000000005-01"));
        let tag = TraceTag { sampled: false, ..tag };
        assert_eq!(tag.text(u64::MAX), format!("00-{digits}-ffffffffffffffff-00"));
        assert_ne!(tag.header().unwrap(), tag.header().unwrap(), "each request is a span");
    }
}
