//! What was looked for beside single objects lately, and was not there.
//!
//! An object that is named alone may be part of a packed checkpoint, or have a file of digests
//! beside it. To find that out takes a request each, which a warm load should not wait for. So what
//! was not there is taken as not there for [`AGAIN_AFTER`]: whatever appears meanwhile would add
//! nothing to bytes that are known already.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// When it is looked for again.
const AGAIN_AFTER: Duration = Duration::from_secs(10 * 60);

/// Objects that are remembered.
const OBJECTS_MAX: usize = 4096;

/// What may lie beside an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Beside {
    /// The manifest of a packed checkpoint.
    Manifest,
    /// A file of digests.
    Digests,
}

/// See the module's head.
#[derive(Debug, Default)]
pub(super) struct Missing(Mutex<HashMap<([u8; 32], Beside), Instant>>);

impl Missing {
    /// Whether it was not there lately.
    pub(super) fn is_missing(&self, identity: &[u8; 32], what: Beside, now: Instant) -> bool {
        let missing = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        missing.get(&(*identity, what)).is_some_and(|since| now < *since + AGAIN_AFTER)
    }

    /// It is not there.
    pub(super) fn note(&self, identity: [u8; 32], what: Beside, now: Instant) {
        let mut missing = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if missing.len() >= OBJECTS_MAX {
            missing.retain(|_, since| now < *since + AGAIN_AFTER);
        }
        if missing.len() < OBJECTS_MAX {
            missing.insert((identity, what), now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_is_missing_is_looked_for_again_some_time_later() {
        let (missing, now) = (Missing::default(), Instant::now());
        assert!(!missing.is_missing(&[1; 32], Beside::Manifest, now));
        missing.note([1; 32], Beside::Manifest, now);
        assert!(missing.is_missing(&[1; 32], Beside::Manifest, now));
        assert!(!missing.is_missing(&[1; 32], Beside::Digests, now));
        assert!(!missing.is_missing(&[2; 32], Beside::Manifest, now));
        assert!(!missing.is_missing(&[1; 32], Beside::Manifest, now + AGAIN_AFTER));
    }

    #[tokio::test(start_paused = true)]
    async fn so_many_are_remembered_and_old_ones_make_room() {
        let (missing, now) = (Missing::default(), Instant::now());
        let name = |n: usize| {
            let mut name = [0; 32];
            name[..8].copy_from_slice(&n.to_le_bytes());
            name
        };
        (0..=OBJECTS_MAX).for_each(|n| missing.note(name(n), Beside::Digests, now));
        assert!(!missing.is_missing(&name(OBJECTS_MAX), Beside::Digests, now));
        let later = now + AGAIN_AFTER;
        missing.note(name(OBJECTS_MAX), Beside::Digests, later);
        assert!(missing.is_missing(&name(OBJECTS_MAX), Beside::Digests, later));
    }
}
