//! The state word of each slot: what makes the safe API of a segment sound.
//!
//! ```text
//!            claim                 publish              share +1
//!   free ───────────► writing ───────────────► n readers ◄──────┐
//!     ▲                  │ abandon                 │  └─────────┘
//!     └──────────────────┴─────────────────────────┘ unshare, at the last one
//! ```
//!
//! Each arrow is one method, and whoever calls it owns the state it leaves: `claim` gives the one
//! [`crate::SlotWriter`], `publish` and `share` give one [`crate::SlotReader`] each. The word is
//! in the daemon's own memory, so no client can reach it. It is 64 bits wide because a count of
//! readers that wide cannot overflow.

use std::sync::atomic::{AtomicU64, Ordering};

const FREE: u64 = 0;
const WRITING: u64 = u64::MAX;

/// What a slot is used for at this moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SlotState {
    /// Nobody uses it: it can be taken for writing.
    Free,
    /// A [`crate::SlotWriter`] owns it.
    Writing,
    /// This many [`crate::SlotReader`]s use it.
    Reading(u64),
}

/// The state words of the slots of one segment. An index past the end is a bug of the caller.
#[derive(Debug)]
pub(crate) struct SlotStates(Box<[AtomicU64]>);

impl SlotStates {
    pub(crate) fn new(slots: u32) -> Self {
        Self((0..slots).map(|_| AtomicU64::new(FREE)).collect())
    }

    pub(crate) fn state(&self, index: usize) -> SlotState {
        match self.0[index].load(Ordering::Relaxed) {
            FREE => SlotState::Free,
            WRITING => SlotState::Writing,
            readers => SlotState::Reading(readers),
        }
    }

    /// free -> writing; false if the slot is not free.
    ///
    /// Acquire: what the last reader did with the bytes happens before the writer's stores.
    pub(crate) fn claim(&self, index: usize) -> bool {
        self.0[index].compare_exchange(FREE, WRITING, Ordering::Acquire, Ordering::Relaxed).is_ok()
    }

    /// writing -> one reader, by the writer.
    pub(crate) fn publish(&self, index: usize) {
        let before = self.0[index].swap(1, Ordering::Release);
        debug_assert_eq!(before, WRITING, "only the writer publishes");
    }

    /// writing -> free, by the writer.
    pub(crate) fn abandon(&self, index: usize) {
        let before = self.0[index].swap(FREE, Ordering::Release);
        debug_assert_eq!(before, WRITING, "only the writer abandons");
    }

    /// One reader more, by a reader.
    pub(crate) fn share(&self, index: usize) {
        let before = self.0[index].fetch_add(1, Ordering::Relaxed);
        debug_assert!(before != FREE && before < WRITING - 1, "only a reader shares");
    }

    /// One reader less, by a reader; free after the last one.
    pub(crate) fn unshare(&self, index: usize) {
        let before = self.0[index].fetch_sub(1, Ordering::Release);
        debug_assert!(before != FREE && before != WRITING, "only a reader ends reading");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_drawn_arrows_exist() {
        let states = SlotStates::new(2);
        assert_eq!(states.state(0), SlotState::Free);
        assert!(states.claim(0));
        assert_eq!(states.state(0), SlotState::Writing);
        assert!(!states.claim(0), "one writer");
        states.abandon(0);
        assert!(states.claim(0), "free again");
        states.publish(0);
        assert_eq!(states.state(0), SlotState::Reading(1));
        states.share(0);
        assert_eq!(states.state(0), SlotState::Reading(2));
        states.unshare(0);
        assert!(!states.claim(0), "one reader is left");
        states.unshare(0);
        assert_eq!(states.state(0), SlotState::Free);
        assert_eq!(states.state(1), SlotState::Free, "slots do not share a state");
    }
}
