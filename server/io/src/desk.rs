//! The books of an engine: what waits, what runs, who waits for it, and for how long. Without a
//! clock, a lock or a thread: `core` adds those.
//!
//! ```text
//!   admit ──► queued ── start ──► running ── finish ──► answered, with its memory
//!               │                    │
//!               │ overdue, cancelled │ overdue
//!               ▼                    ▼
//!            answered,            answered as hung; the engine keeps the memory,
//!            with its memory      and `finish` comes when it comes
//! ```
//!
//! An operation that runs is with the engine, which owns its memory; here only its waiter is kept.
//! Nothing that belongs to a caller is dropped or woken in here: it is handed out as an [`Answer`],
//! to be given when the lock is open again.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use futures::channel::oneshot;

use crate::error::IoError;
use crate::op::{Lane, Op, OpKind, OpTimes, Outcome};
use crate::quota::{Load, Quotas};
use crate::stats::{EngineKind, IoStats, LaneStats};

/// Names one operation; never used twice in the life of an engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct OpId(pub(crate) u64);

/// The bounds of a desk.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    pub(crate) quotas: Quotas,
    /// How many may wait in each lane.
    pub(crate) queue_bound: usize,
    /// From here an operation counts as slow.
    pub(crate) soft: Duration,
    /// From here it is given up.
    pub(crate) hard: Duration,
}

impl Limits {
    /// How long dropping an engine may wait for the device.
    pub(crate) fn drop_wait(&self) -> Duration {
        self.hard.min(Duration::from_secs(5))
    }
}

type Waiter = oneshot::Sender<Outcome>;

#[derive(Debug)]
struct Queued {
    id: OpId,
    op: Op,
    waiter: Waiter,
    since: Instant,
}

#[derive(Debug)]
struct Running {
    kind: OpKind,
    /// None once it was told that the operation hangs.
    waiter: Option<Waiter>,
    queue: Duration,
    since: Instant,
    slow: bool,
}

/// Something for a caller.
#[derive(Debug)]
#[must_use = "a caller waits for it"]
pub(crate) struct Answer {
    waiter: Option<Waiter>,
    outcome: Outcome,
}

impl Answer {
    /// Wakes the caller. If it has gone, what it owned is dropped.
    pub(crate) fn give(self) {
        if let Some(waiter) = self.waiter {
            // Whoever dropped the future in this moment wants no answer.
            drop(waiter.send(self.outcome));
        }
    }
}

#[derive(Debug)]
pub(crate) struct Desk {
    limits: Limits,
    reads: VecDeque<Queued>,
    writes: VecDeque<Queued>,
    running: BTreeMap<OpId, Running>,
    last_id: u64,
    closed: bool,
    stats: IoStats,
}

impl Desk {
    pub(crate) fn new(kind: EngineKind, limits: Limits) -> Self {
        Self {
            limits,
            reads: VecDeque::new(),
            writes: VecDeque::new(),
            running: BTreeMap::new(),
            last_id: 0,
            closed: false,
            stats: IoStats::new(kind),
        }
    }

    fn queue(&mut self, lane: Lane) -> &mut VecDeque<Queued> {
        match lane {
            Lane::Read => &mut self.reads,
            Lane::Write => &mut self.writes,
        }
    }

    fn lane_stats(&mut self, lane: Lane) -> &mut LaneStats {
        match lane {
            Lane::Read => &mut self.stats.reads,
            Lane::Write => &mut self.stats.writes,
        }
    }

    fn load(&self, lane: Lane) -> Load {
        match lane {
            Lane::Read => Load { queued: self.reads.len(), running: self.stats.reads.running },
            Lane::Write => Load { queued: self.writes.len(), running: self.stats.writes.running },
        }
    }

    /// Puts an operation into its lane, or answers at once why not.
    pub(crate) fn admit(&mut self, op: Op, waiter: Waiter, now: Instant) -> Result<(), Answer> {
        let (lane, bound) = (op.kind().lane(), self.limits.queue_bound);
        let refusal = if self.closed {
            Some(IoError::Closed)
        } else if self.queue(lane).len() >= bound {
            Some(IoError::QueueFull { lane, bound })
        } else {
            op.check().err()
        };
        if let Some(error) = refusal {
            self.lane_stats(lane).failed += 1;
            let outcome = Outcome::refused(error, op.into_payload(), Duration::ZERO);
            return Err(Answer { waiter: Some(waiter), outcome });
        }
        self.last_id += 1;
        let id = OpId(self.last_id);
        self.queue(lane).push_back(Queued { id, op, waiter, since: now });
        Ok(())
    }

    /// Whether something waits that may run.
    pub(crate) fn may_start(&self) -> bool {
        self.limits.quotas.next(self.load(Lane::Read), self.load(Lane::Write)).is_some()
    }

    /// Hands out the operation whose turn it is. What nobody waits for any more is answered
    /// instead.
    pub(crate) fn start(&mut self, now: Instant, answers: &mut Vec<Answer>) -> Option<(OpId, Op)> {
        loop {
            let lane = self.limits.quotas.next(self.load(Lane::Read), self.load(Lane::Write))?;
            let Queued { id, op, waiter, since } = self.queue(lane).pop_front()?;
            let queue = now.saturating_duration_since(since);
            if waiter.is_canceled() {
                self.lane_stats(lane).failed += 1;
                self.stats.unstarted_total += 1;
                let outcome = Outcome::refused(IoError::Closed, op.into_payload(), queue);
                answers.push(Answer { waiter: None, outcome });
                continue;
            }
            let stats = self.lane_stats(lane);
            stats.running += 1;
            stats.queue_time += queue;
            let kind = op.kind();
            let running = Running { kind, waiter: Some(waiter), queue, since: now, slow: false };
            self.running.insert(id, running);
            return Some((id, op));
        }
    }

    /// Takes an operation back from the engine.
    pub(crate) fn finish(
        &mut self,
        id: OpId,
        op: Op,
        result: Result<usize, IoError>,
        now: Instant,
    ) -> Answer {
        let payload = Some(op.into_payload());
        let Some(running) = self.running.remove(&id) else {
            self.stats.unknown_total += 1;
            let outcome = Outcome { result, payload, times: OpTimes::default() };
            return Answer { waiter: None, outcome };
        };
        let device = now.saturating_duration_since(running.since);
        let stats = self.lane_stats(running.kind.lane());
        stats.running -= 1;
        stats.device_time += device;
        match (&result, &running.waiter) {
            (Ok(bytes), Some(_)) => {
                stats.done += 1;
                stats.bytes += u64::try_from(*bytes).unwrap_or(u64::MAX);
            }
            (Err(_), Some(_)) => stats.failed += 1,
            // It was counted as failed when it was given up.
            (_, None) => self.stats.hung -= 1,
        }
        if running.waiter.as_ref().is_none_or(oneshot::Sender::is_canceled) {
            self.stats.late_total += 1;
        }
        if !running.slow && device >= self.limits.soft {
            self.stats.slow_total += 1;
        }
        let times = OpTimes { queue: running.queue, device };
        Answer { waiter: running.waiter, outcome: Outcome { result, payload, times } }
    }

    /// Gives up what is past its limits.
    pub(crate) fn overdue(&mut self, now: Instant) -> Vec<Answer> {
        let Limits { soft, hard, .. } = self.limits;
        let mut answers = Vec::new();
        for running in self.running.values_mut() {
            let after = now.saturating_duration_since(running.since);
            if after >= soft && !running.slow {
                running.slow = true;
                self.stats.slow_total += 1;
            }
            if after < hard {
                continue;
            }
            let Some(waiter) = running.waiter.take() else { continue };
            self.stats.hung += 1;
            self.stats.hung_total += 1;
            match running.kind.lane() {
                Lane::Read => self.stats.reads.failed += 1,
                Lane::Write => self.stats.writes.failed += 1,
            }
            let error = IoError::Hung { kind: running.kind, after };
            let times = OpTimes { queue: running.queue, device: after };
            let outcome = Outcome::without_memory(error, times);
            answers.push(Answer { waiter: Some(waiter), outcome });
        }
        for lane in [Lane::Read, Lane::Write] {
            let late = |queued: &Queued| now.saturating_duration_since(queued.since) >= hard;
            while self.queue(lane).front().is_some_and(late) {
                answers.extend(
                    self.give_back_first(lane, now, |kind, after| IoError::Stalled { kind, after }),
                );
            }
        }
        answers
    }

    fn give_back_first(
        &mut self,
        lane: Lane,
        now: Instant,
        error: impl Fn(OpKind, Duration) -> IoError,
    ) -> Option<Answer> {
        let Queued { op, waiter, since, .. } = self.queue(lane).pop_front()?;
        self.lane_stats(lane).failed += 1;
        self.stats.unstarted_total += 1;
        let waited = now.saturating_duration_since(since);
        let error = error(op.kind(), waited);
        let outcome = Outcome::refused(error, op.into_payload(), waited);
        Some(Answer { waiter: Some(waiter), outcome })
    }

    /// The next instant at which something may be overdue.
    pub(crate) fn next_limit(&self) -> Option<Instant> {
        let Limits { soft, hard, .. } = self.limits;
        let running = self.running.values().filter_map(|running| match running {
            Running { slow: false, since, .. } => Some(*since + soft.min(hard)),
            Running { waiter: Some(_), since, .. } => Some(*since + hard),
            Running { .. } => None,
        });
        let first = [&self.reads, &self.writes].into_iter().filter_map(VecDeque::front);
        running.chain(first.map(|queued| queued.since + hard)).min()
    }

    /// Takes no more operations, and gives back those that have not begun.
    pub(crate) fn close(&mut self, now: Instant) -> Vec<Answer> {
        self.closed = true;
        let mut answers = Vec::new();
        for lane in [Lane::Read, Lane::Write] {
            while let Some(answer) = self.give_back_first(lane, now, |_, _| IoError::Closed) {
                answers.push(answer);
            }
        }
        answers
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.closed
    }

    /// How many operations the engine has.
    pub(crate) fn running(&self) -> usize {
        self.running.len()
    }

    /// Whether there is nothing to watch.
    pub(crate) fn is_idle(&self) -> bool {
        self.running.is_empty() && self.reads.is_empty() && self.writes.is_empty()
    }

    /// What the engine counts by itself.
    pub(crate) fn stats_mut(&mut self) -> &mut IoStats {
        &mut self.stats
    }

    pub(crate) fn stats(&self, now: Instant) -> IoStats {
        let mut stats = self.stats;
        for (lane, queue) in [(&mut stats.reads, &self.reads), (&mut stats.writes, &self.writes)] {
            lane.queued = queue.len();
            let oldest = queue.front().map(|queued| now.saturating_duration_since(queued.since));
            lane.oldest_queued = oldest.unwrap_or_default();
        }
        stats
    }
}

#[cfg(test)]
#[path = "desk_tests.rs"]
mod tests;
