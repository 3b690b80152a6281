//! The one place that reads the clock: when a copy that this crate does itself was done, and until
//! when to block. Everything else is told the time.

use std::time::Instant;

#[expect(clippy::disallowed_methods, reason = "a device measures copies that happen in real time")]
pub(crate) fn now() -> Instant {
    Instant::now()
}
