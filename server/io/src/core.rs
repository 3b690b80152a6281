//! What both engines share: the desk behind its lock, and who is woken when it changes.
//!
//! Callers and engine threads meet here and nowhere else. Answers are given after the lock is open:
//! they wake tasks and may drop what callers own.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures::channel::oneshot;

use crate::clock;
use crate::desk::{Answer, Desk, Limits, OpId};
use crate::engine::Pending;
use crate::error::IoError;
use crate::op::{Op, OpTimes, Outcome};
use crate::stats::{EngineKind, IoStats};

/// What a submission wants of the engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Nudge {
    /// Nothing: it could not start anything.
    None,
    /// Something may start.
    Start,
}

#[derive(Debug)]
pub(crate) struct Core {
    desk: Mutex<Desk>,
    /// For worker threads: something may start, or the desk has closed.
    turn: Condvar,
    /// For the watch: something came that has limits.
    watch: Condvar,
    /// For whoever closes: something has ended.
    ended: Condvar,
}

impl Core {
    pub(crate) fn new(kind: EngineKind, limits: Limits) -> Self {
        Self {
            desk: Mutex::new(Desk::new(kind, limits)),
            turn: Condvar::new(),
            watch: Condvar::new(),
            ended: Condvar::new(),
        }
    }

    pub(crate) fn desk(&self) -> MutexGuard<'_, Desk> {
        // Every change of the desk is complete when a method returns, and none of them panics
        // half-way: whoever panicked did so elsewhere.
        self.desk.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts an operation into its lane.
    pub(crate) fn submit(&self, op: Op) -> (Pending, Nudge) {
        let (waiter, outcome) = oneshot::channel();
        let mut desk = self.desk();
        let was_idle = desk.is_idle();
        let refused = desk.admit(op, waiter, clock::now()).err();
        let nudge = if desk.may_start() { Nudge::Start } else { Nudge::None };
        let is_watched = !was_idle || desk.is_idle();
        drop(desk);
        if !is_watched {
            self.watch.notify_one();
        }
        if let Some(answer) = refused {
            answer.give();
        }
        if nudge == Nudge::Start {
            self.turn.notify_one();
        }
        (pending(outcome), nudge)
    }

    /// All operations whose turn it is.
    pub(crate) fn start_all(&self) -> Vec<(OpId, Op)> {
        let mut answers = Vec::new();
        let mut started = Vec::new();
        let mut desk = self.desk();
        let now = clock::now();
        while let Some(op) = desk.start(now, &mut answers) {
            started.push(op);
        }
        drop(desk);
        answers.into_iter().for_each(Answer::give);
        started
    }

    /// The next operation whose turn it is, once there is one; none when the desk has closed.
    pub(crate) fn wait_for_turn(&self) -> Option<(OpId, Op)> {
        loop {
            let (started, is_over) = self.wait_for_change();
            if started.is_some() || is_over {
                return started;
            }
        }
    }

    /// As above, but comes back without an operation when others had to be answered first; and
    /// whether the desk has closed.
    fn wait_for_change(&self) -> (Option<(OpId, Op)>, bool) {
        let mut answers = Vec::new();
        let mut desk = self.desk();
        let started = loop {
            let started = desk.start(clock::now(), &mut answers);
            if started.is_some() || desk.is_closed() || !answers.is_empty() {
                break started;
            }
            desk = self.turn.wait(desk).unwrap_or_else(PoisonError::into_inner);
        };
        let (more, is_over) = (started.is_some() && desk.may_start(), desk.is_closed());
        drop(desk);
        if more {
            // One thread wakes the next: an end may have made room for several.
            self.turn.notify_one();
        }
        answers.into_iter().for_each(Answer::give);
        (started, is_over)
    }

    /// Takes an operation back and answers its caller. The thread that calls it looks for its next
    /// turn by itself.
    pub(crate) fn finish(&self, id: OpId, op: Op, result: Result<usize, IoError>) {
        let mut desk = self.desk();
        let answer = desk.finish(id, op, result, clock::now());
        drop(desk);
        answer.give();
        self.ended.notify_all();
    }

    /// Answers what is past its limits, whenever it is, until the desk is closed and empty.
    pub(crate) fn watch(&self, tick: Duration) {
        let mut desk = self.desk();
        loop {
            if desk.is_closed() && desk.is_idle() {
                return;
            }
            let Some(limit) = desk.next_limit() else {
                desk = self.wait_to_watch(desk, tick);
                continue;
            };
            let now = clock::now();
            let answers = desk.overdue(now);
            if !answers.is_empty() {
                drop(desk);
                answers.into_iter().for_each(Answer::give);
                desk = self.desk();
                continue;
            }
            let wait = limit.saturating_duration_since(now).min(tick);
            let woken = self.watch.wait_timeout(desk, wait);
            desk = woken.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Waits until there is something to watch. Operations that were given up already are looked
    /// for now and then: that they ended may be what a closed desk waits for.
    fn wait_to_watch<'a>(
        &self,
        desk: MutexGuard<'a, Desk>,
        tick: Duration,
    ) -> MutexGuard<'a, Desk> {
        if desk.is_idle() {
            return self.watch.wait(desk).unwrap_or_else(PoisonError::into_inner);
        }
        let woken = self.watch.wait_timeout(desk, tick);
        woken.unwrap_or_else(PoisonError::into_inner).0
    }

    /// Takes no more operations and gives back those that have not begun.
    pub(crate) fn close(&self) {
        let answers = self.desk().close(clock::now());
        answers.into_iter().for_each(Answer::give);
        self.turn.notify_all();
        self.watch.notify_all();
    }

    /// Waits until a closed engine has nothing left; how many operations it still has after `wait`.
    pub(crate) fn drain(&self, wait: Duration) -> usize {
        let until = clock::now().checked_add(wait);
        let mut desk = self.desk();
        while desk.running() > 0 {
            let left = |until: Instant| until.saturating_duration_since(clock::now());
            let left = until.map_or(Duration::MAX, left);
            if left.is_zero() {
                break;
            }
            let woken = self.ended.wait_timeout(desk, left);
            desk = woken.unwrap_or_else(PoisonError::into_inner).0;
        }
        let running = desk.running();
        drop(desk);
        self.watch.notify_all();
        running
    }

    /// Whether a closed engine has nothing left.
    pub(crate) fn is_over(&self) -> bool {
        let desk = self.desk();
        desk.is_closed() && desk.is_idle()
    }

    pub(crate) fn count(&self, change: impl FnOnce(&mut IoStats)) {
        change(self.desk().stats_mut());
    }

    pub(crate) fn stats(&self) -> IoStats {
        self.desk().stats(clock::now())
    }
}

/// The future of an answer.
fn pending(outcome: oneshot::Receiver<Outcome>) -> Pending {
    Box::pin(async move {
        let lost = |_| Outcome::without_memory(IoError::Lost, OpTimes::default());
        outcome.await.unwrap_or_else(lost)
    })
}
