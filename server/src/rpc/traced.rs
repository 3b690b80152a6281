//! Trace identity at the edge: `traceparent` and `tracestate` of a call.

use std::sync::Arc;

use forebay_proto::{Failure, Reason};
use tonic::metadata::MetadataMap;

use super::Context;
use crate::metrics;
use crate::trace::{RequestTrace, TraceContext, TraceParent, kept_state};

/// The trace of a call: the caller's, or one that begins here. A `traceparent` that is not valid, or
/// is there twice, is passed over, as W3C wants it.
pub(super) fn context(metadata: &MetadataMap) -> Result<TraceContext, Failure> {
    let mut said = metadata.get_all("traceparent").iter();
    let first = said.next();
    let parent = first
        .filter(|_| said.next().is_none())
        .and_then(|value| TraceParent::parse(value.to_str().ok()?));
    if first.is_some() && parent.is_none() {
        metrics::bad_trace_parent();
        tracing::debug!("a traceparent that is not valid is passed over");
    }
    TraceContext::of(parent)
        .map_err(|error| Failure::new(Reason::Internal, format!("no random bytes: {error}")))
}

/// Begins the trace of a call.
pub(super) fn begin(
    method: &'static str,
    context: &Context,
    metadata: &MetadataMap,
) -> Arc<RequestTrace> {
    let lines = metadata.get_all("tracestate").iter().filter_map(|value| value.to_str().ok());
    // Without a valid parent it says nothing.
    let state = context.trace.parent.and_then(|_| kept_state(lines));
    RequestTrace::begin(method, context.peer.uid, context.trace, state)
}

/// Says in a failure which trace it belongs to.
pub(super) fn named(failure: Failure, trace: TraceContext) -> Failure {
    failure.with_fact("trace_id", trace.trace_id)
}
