//! The books of an engine, with time as an argument.

use std::sync::Arc;

use futures::FutureExt;

use super::*;
use crate::buffer::AlignedBuf;
use crate::clock;
use crate::file::DataFile;
use crate::op::FileOffset;

const SOFT: Duration = Duration::from_secs(1);
const HARD: Duration = Duration::from_secs(5);

struct Books {
    desk: Desk,
    file: Arc<DataFile>,
    now: Instant,
    answers: Vec<Answer>,
}

impl Books {
    fn new(depth: usize, queue_bound: usize) -> Self {
        let limits = Limits { quotas: Quotas::new(depth), queue_bound, soft: SOFT, hard: HARD };
        Self {
            desk: Desk::new(EngineKind::Threads, limits),
            file: Arc::new(DataFile::in_memory()),
            now: clock::now(),
            answers: Vec::new(),
        }
    }

    fn submit(&mut self, kind: OpKind) -> oneshot::Receiver<Outcome> {
        let buffer = || AlignedBuf::zeroed(64, 64).unwrap();
        let op = match kind {
            OpKind::Read => Op::read(&self.file, FileOffset(0), buffer(), 0..64),
            OpKind::Write => Op::write(&self.file, FileOffset(0), buffer(), 0..64),
            OpKind::Sync => Op::sync(&self.file),
        };
        let (waiter, outcome) = oneshot::channel();
        if let Err(answer) = self.desk.admit(op, waiter, self.now) {
            answer.give();
        }
        outcome
    }

    fn start(&mut self) -> Option<(OpId, Op)> {
        self.desk.start(self.now, &mut self.answers)
    }

    fn finish(&mut self, (id, op): (OpId, Op), result: Result<usize, IoError>) {
        self.desk.finish(id, op, result, self.now).give();
    }

    fn after(&mut self, time: Duration) -> usize {
        self.now += time;
        let answers = self.desk.overdue(self.now);
        let count = answers.len();
        answers.into_iter().for_each(Answer::give);
        count
    }

    fn stats(&self) -> IoStats {
        self.desk.stats(self.now)
    }
}

fn told(outcome: oneshot::Receiver<Outcome>) -> Outcome {
    outcome.now_or_never().expect("an answer").expect("not lost")
}

#[test]
fn queue_and_device_time_are_told_apart() {
    let mut books = Books::new(2, 8);
    let outcome = books.submit(OpKind::Read);
    books.now += Duration::from_millis(30);
    let op = books.start().unwrap();
    books.now += Duration::from_millis(200);
    books.finish(op, Ok(64));
    let outcome = told(outcome);
    assert_eq!(outcome.times.queue, Duration::from_millis(30));
    assert_eq!(outcome.times.device, Duration::from_millis(200));
    assert_eq!(outcome.payload.unwrap().bytes().len(), 64);
    let stats = books.stats();
    assert_eq!((stats.reads.done, stats.reads.bytes, stats.reads.running), (1, 64, 0));
    assert_eq!(stats.reads.device_time, Duration::from_millis(200));
}

#[test]
fn a_full_lane_refuses_and_gives_the_memory_back() {
    let mut books = Books::new(2, 2);
    let _waiting = [books.submit(OpKind::Write), books.submit(OpKind::Sync)];
    let refused = told(books.submit(OpKind::Write));
    assert!(matches!(refused.result, Err(IoError::QueueFull { lane: Lane::Write, bound: 2 })));
    assert!(refused.payload.is_some());
    let _read = books.submit(OpKind::Read);
    books.now += SOFT;
    let stats = books.stats();
    assert_eq!((stats.writes.queued, stats.writes.failed, stats.reads.queued), (2, 1, 1));
    assert_eq!(stats.writes.oldest_queued, SOFT);
}

#[test]
fn a_hung_operation_is_told_once_and_its_completion_is_late() {
    let mut books = Books::new(2, 8);
    let outcome = books.submit(OpKind::Write);
    let op = books.start().unwrap();
    assert_eq!(books.desk.next_limit(), Some(books.now + SOFT));
    assert_eq!(books.after(SOFT), 0);
    assert_eq!(books.stats().slow_total, 1);
    assert_eq!(books.desk.next_limit(), Some(books.now + HARD - SOFT));
    assert_eq!(books.after(HARD - SOFT), 1);
    assert_eq!(books.desk.next_limit(), None, "nothing is left to tell");
    let hung = told(outcome);
    assert!(matches!(hung.result, Err(IoError::Hung { kind: OpKind::Write, after: HARD })));
    assert!(hung.payload.is_none(), "the engine keeps the memory");
    assert_eq!(books.after(HARD), 0, "it is told once");
    assert_eq!((books.stats().hung, books.stats().writes.failed), (1, 1));
    books.finish(op, Ok(64));
    let stats = books.stats();
    assert_eq!((stats.hung, stats.hung_total, stats.late_total), (0, 1, 1));
    assert_eq!((stats.writes.done, stats.writes.failed, stats.slow_total), (0, 1, 1));
}

#[test]
fn what_never_gets_a_turn_comes_back_with_its_memory() {
    let mut books = Books::new(2, 8);
    let first = [books.submit(OpKind::Read), books.submit(OpKind::Read)];
    let _running = [books.start().unwrap(), books.start().unwrap()];
    assert!(books.start().is_none());
    books.now += SOFT;
    let waiting = books.submit(OpKind::Read);
    assert_eq!(books.after(HARD - SOFT), 2, "the two that run");
    assert_eq!(books.after(SOFT), 1);
    let stalled = told(waiting);
    assert!(matches!(stalled.result, Err(IoError::Stalled { after: HARD, .. })));
    assert!(stalled.payload.is_some());
    assert!(first.map(told).iter().all(|outcome| outcome.payload.is_none()));
}

#[test]
fn what_nobody_waits_for_does_not_begin() {
    let mut books = Books::new(2, 8);
    drop(books.submit(OpKind::Write));
    let wanted = books.submit(OpKind::Sync);
    let op = books.start().unwrap();
    assert_eq!(op.1.kind(), OpKind::Sync);
    assert_eq!(books.answers.len(), 1, "the memory of the other is dropped outside");
    books.finish(op, Ok(0));
    told(wanted).result.unwrap();
    assert_eq!(books.stats().unstarted_total, 1);
}

#[test]
fn dropping_the_future_of_a_running_operation_keeps_its_memory() {
    let mut books = Books::new(2, 8);
    let outcome = books.submit(OpKind::Read);
    let op = books.start().unwrap();
    drop(outcome);
    assert_eq!(op.1.payload().bytes().len(), 64, "the engine has it");
    books.finish(op, Ok(64));
    assert_eq!((books.stats().late_total, books.stats().reads.done), (1, 1));
}

#[test]
fn a_completion_that_is_not_known_is_counted() {
    let mut books = Books::new(2, 8);
    let _outcome = books.submit(OpKind::Read);
    let (id, op) = books.start().unwrap();
    books.finish((OpId(id.0 + 1), op), Ok(64));
    assert_eq!((books.stats().unknown_total, books.stats().reads.running), (1, 1));
}

#[test]
fn a_closed_desk_gives_back_what_has_not_begun() {
    let mut books = Books::new(2, 8);
    let running = books.submit(OpKind::Read);
    let op = books.start().unwrap();
    let queued = [books.submit(OpKind::Read), books.submit(OpKind::Write)];
    books.desk.close(books.now).into_iter().for_each(Answer::give);
    for outcome in queued.map(told) {
        assert!(matches!(outcome.result, Err(IoError::Closed)) && outcome.payload.is_some());
    }
    assert!(matches!(told(books.submit(OpKind::Sync)).result, Err(IoError::Closed)));
    assert!(!books.desk.is_idle());
    books.finish(op, Ok(64));
    assert!(told(running).result.is_ok() && books.desk.is_idle());
}
