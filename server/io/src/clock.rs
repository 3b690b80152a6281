//! The one place of this crate that reads a clock.
//!
//! Engines run on threads of their own, below any runtime, and time the device: tokio's clock,
//! which tests pause, says nothing about it. What decides by time takes `now` as an argument.

use std::time::Instant;

/// The monotonic clock.
#[expect(clippy::disallowed_methods, reason = "times a real device, on threads without a runtime")]
pub(crate) fn now() -> Instant {
    Instant::now()
}
