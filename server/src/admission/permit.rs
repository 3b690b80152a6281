//! What an admitted load has in hand: its place, and the tokens of its window.
//!
//! Each of them owns what it stands for, and gives it back when it is dropped: a permit the place and
//! the guaranteed tokens, a [`WindowSlot`] its one token, and a wish that nobody waits for any more
//! what it was handed in the same instant.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Instant;

use super::queue::Ticket;
use super::{AdmissionError, Shared};

/// The right to run one load. First witness of the path; dropped, it gives everything back.
#[derive(Debug)]
pub(crate) struct AdmissionPermit {
    pub(super) shared: Arc<Shared>,
    pub(super) ticket: Ticket,
    pub(super) stall: Duration,
}

impl AdmissionPermit {
    /// Waits for one more slot of the window. One call at a time per permit. Not cancel-safe in
    /// its place in the queue: a dropped call asks anew.
    pub(crate) async fn slot(&self) -> Result<WindowSlot, AdmissionError> {
        let (sender, granted) = oneshot::channel();
        let mut wish = Wish { permit: self, open: true };
        {
            let mut state = self.shared.lock();
            state.waiters.insert(self.ticket, sender);
            state.queue.want_slot(self.ticket);
            state.dispatch();
        }
        self.shared.wait(self.ticket, granted, self.stall).await?;
        wish.open = false;
        self.shared.lock().token_out(self.ticket);
        let lent = AtomicBool::new(false);
        Ok(WindowSlot { shared: Arc::clone(&self.shared), ticket: self.ticket, lent })
    }

    /// The load has one more of its chunks.
    pub(crate) fn has_chunk(&self) {
        let mut state = self.shared.lock();
        // What it has along with another one is no more than that one has alone, and is counted there.
        if !state.queue.rides(self.ticket) {
            state.width.had_chunk();
        }
    }

    /// What the load wants is not here, and is brought to it from now on, or most of it has been:
    /// until then others that want the same may start and have it too.
    pub(crate) fn brings(&self, yes: bool) {
        let mut state = self.shared.lock();
        state.queue.brings(self.ticket, yes);
        state.dispatch();
    }

    /// The most slots this load held at one time.
    pub(crate) fn peak_slots(&self) -> usize {
        self.shared.lock().queue.peak(self.ticket)
    }

    /// The most slots this load can hold: all of the pool, as it is now.
    pub(crate) fn window_slots(&self) -> usize {
        self.shared.lock().queue.capacity()
    }
}

impl Drop for AdmissionPermit {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.queue.finish(self.ticket);
        state.waiters.remove(&self.ticket);
        state.over(self.ticket);
        state.moved = Instant::now();
        state.dispatch();
        drop(state);
        self.shared.paid.notify_one();
    }
}

/// A wish for a slot; dropped while open it is withdrawn, or what it was handed is given back.
#[derive(Debug)]
struct Wish<'a> {
    permit: &'a AdmissionPermit,
    open: bool,
}

impl Drop for Wish<'_> {
    fn drop(&mut self) {
        if !self.open {
            return;
        }
        let mut state = self.permit.shared.lock();
        state.waiters.remove(&self.permit.ticket);
        if !state.queue.unwant_slot(self.permit.ticket) {
            state.queue.give_back(self.permit.ticket);
        }
        state.dispatch();
        drop(state);
        self.permit.shared.paid.notify_one();
    }
}

/// One token of a load's window. It travels with the slot it covers.
#[derive(Debug)]
pub(crate) struct WindowSlot {
    shared: Arc<Shared>,
    ticket: Ticket,
    lent: AtomicBool,
}

impl WindowSlot {
    /// The slot is lent to a client from now on, until the token is dropped.
    pub(crate) fn lend(&self) {
        if !self.lent.swap(true, Ordering::Relaxed) {
            self.shared.lock().lent += 1;
        }
    }
}

impl Drop for WindowSlot {
    fn drop(&mut self) {
        self.shared.give_back(self.ticket, *self.lent.get_mut());
    }
}
