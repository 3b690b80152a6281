//! The wall clock: what is compared over restarts has no other. A clock that jumps makes an old
//! checkpoint look young, and nothing worse.

use std::time::{Duration, SystemTime};

#[expect(clippy::disallowed_methods, reason = "see the module's head")]
fn since_epoch() -> Duration {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default()
}

/// Seconds since the epoch.
pub(super) fn seconds() -> u64 {
    since_epoch().as_secs()
}

/// Nanoseconds since the epoch.
pub(super) fn nanos() -> u64 {
    u64::try_from(since_epoch().as_nanos()).unwrap_or(u64::MAX)
}
