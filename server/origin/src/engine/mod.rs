//! What is known of an endpoint, and what follows from it for the next request.
//!
//! ```text
//! budget.rs     tokens for retries and hedges          \
//! breaker.rs    whether anything is sent at all         \  pure: no clock, no lock, no I/O
//! limiter.rs    how many requests at a time             /
//! model.rs      what a part of some size should take   /
//! meter.rs      what it has brought per second      /
//! addresses.rs  which address a connection goes to    /
//! state.rs      the first five of one endpoint, and the line of those who wait
//! endpoint.rs   the lock over that
//! standing.rs   what it shows of itself
//! view.rs       what it takes now, and who has which share of that
//! book.rs       one lock over the addresses of all hosts
//! ```

pub(crate) mod addresses;
pub(crate) mod book;
pub(crate) mod breaker;
pub(crate) mod budget;
pub(crate) mod endpoint;
pub(crate) mod limiter;
mod meter;
pub(crate) mod model;
pub(crate) mod news;
pub(crate) mod standing;
mod state;
pub(crate) mod view;

use std::time::Duration;

/// A time, 20 % more or less. `unit` is uniform in `0.0..1.0`.
fn jittered(time: Duration, unit: f64) -> Duration {
    time.mul_f64(0.8 + 0.4 * unit.clamp(0.0, 1.0))
}

/// A random number in `0.0..1.0`; without a random source, the middle.
pub(crate) fn unit() -> f64 {
    getrandom::u32().map_or(0.5, |random| f64::from(random) / (f64::from(u32::MAX) + 1.0))
}
