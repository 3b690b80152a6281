//! Tokens that are taken away from a pool that shrinks.
//!
//! [`super::Admission::withdraw`] makes one before the first token is taken; it owns what was taken so
//! far, and gives that back if it is dropped before its slots are out of use.

use std::sync::Arc;

use super::Shared;

/// Tokens that were taken away, and nobody has. Dropped, they are free again.
#[derive(Debug)]
#[must_use = "dropped, the tokens are free again"]
pub(crate) struct Withdrawn {
    pub(super) shared: Arc<Shared>,
}

impl Withdrawn {
    /// Their slots are out of use: they are gone for good.
    pub(crate) fn spend(self) {
        self.shared.lock().queue.withdrawn();
    }
}

impl Drop for Withdrawn {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.queue.keep();
        state.dispatch();
    }
}
