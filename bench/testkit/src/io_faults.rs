//! An io engine over a disk that lies: it wraps a real engine and commits the faults it is told to.
//!
//! The fault model is that of a disk and of the kernel above it. An operation may move fewer bytes
//! than asked, end late, or never; fail with EIO or ENOSPC; a write may land only up to some
//! sector, land elsewhere, or change a bit, and be reported as done; a read may bring what lies
//! elsewhere, or change a bit. What is above must serve no wrong byte for any of these, and must
//! not wait for what never ends. Memory obeys the seam's law even here: what never ends keeps its
//! memory until the test lets go of it.
//!
//! Which operations are struck follows from their order and a seed, so a run is repeated by
//! repeating its operations. Everything but waiting happens in `submit`, as with a real engine.

use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use forebay_io::{
    AlignedBuf, DataFile, FileOffset, IoEngine, IoError, IoStats, Op, OpKind, OpTimes, Outcome,
    Payload, Pending, RegisterError, Registration,
};
use forebay_shm::Segment;

use crate::content::{as_u64, as_usize};
use crate::fault::When;
use crate::random::Prng;

const EIO: i32 = 5;
const ENOSPC: i32 = 28;

/// What bytes that were not read look like: no test mistakes them for its own zeroes.
const GARBAGE: u8 = 0xdb;

/// Something a disk does wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IoFault {
    /// Moves only this many bytes: a read says so, a write fails.
    Short(usize),
    /// Ends this much late.
    Late(Duration),
    /// Does nothing and says EIO.
    Eio,
    /// Does nothing and says ENOSPC.
    NoSpace,
    /// Of a write, only a prefix of whole units lands, fewer than all; as many as the seed says.
    Torn {
        /// 512 or 4096, as disks have it.
        unit_bytes: usize,
        /// What the caller is told.
        told: Told,
    },
    /// Goes to another place of the file, so far from the right one.
    Misdirected {
        /// How far; backwards if negative.
        by_bytes: i64,
    },
    /// One bit, chosen by the seed, is another one.
    FlipBit,
    /// Never ends, and is reported as hung after the hard limit.
    Never,
}

/// What a caller is told of a write that was torn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Told {
    /// That it is done.
    Done,
    /// That it failed, with EIO.
    Failed,
    /// Nothing: it hangs.
    Nothing,
}

/// A fault and the operations it strikes: by default every one of its kind.
#[derive(Debug, Clone)]
pub struct IoFaultRule {
    kind: OpKind,
    when: When,
    fault: IoFault,
}

impl IoFaultRule {
    /// `fault` at every operation of this kind.
    pub fn new(kind: OpKind, fault: IoFault) -> Self {
        Self { kind, when: When::Always, fault }
    }

    /// On this schedule over the operations of its kind.
    #[must_use]
    pub fn when(self, when: When) -> Self {
        Self { when, ..self }
    }
}

#[derive(Debug)]
struct ActiveRule {
    rule: IoFaultRule,
    matched: AtomicU64,
    hits: AtomicU64,
}

/// An engine that commits faults.
#[derive(Debug)]
pub struct FaultEngine {
    inner: Arc<dyn IoEngine>,
    hard_limit: Duration,
    rules: Mutex<Vec<ActiveRule>>,
    draws: Mutex<Prng>,
    /// Operations that never end.
    kept: Mutex<Vec<Payload>>,
}

impl FaultEngine {
    /// An engine over `inner` without faults. `hard_limit` is when it reports what never ends, on
    /// tokio's clock.
    pub fn new(inner: Arc<dyn IoEngine>, seed: u64, hard_limit: Duration) -> Self {
        Self {
            inner,
            hard_limit,
            rules: Mutex::default(),
            draws: Mutex::new(Prng::new(seed)),
            kept: Mutex::default(),
        }
    }

    /// Commits a fault from now on. The first rule that is due strikes, at most one for each
    /// operation; all count.
    pub fn add(&self, rule: IoFaultRule) {
        let rule = ActiveRule { rule, matched: AtomicU64::new(0), hits: AtomicU64::new(0) };
        lock(&self.rules).push(rule);
    }

    /// Commits no more faults.
    pub fn clear(&self) {
        lock(&self.rules).clear();
    }

    /// How many operations were struck by the rules that are there.
    pub fn hits(&self) -> u64 {
        lock(&self.rules).iter().map(|active| active.hits.load(Ordering::Relaxed)).sum()
    }

    /// Operations that never end, and still keep their memory.
    pub fn kept(&self) -> usize {
        lock(&self.kept).len()
    }

    /// Lets what never ends end after all: its memory is dropped.
    pub fn let_go(&self) {
        let kept = std::mem::take(&mut *lock(&self.kept));
        drop(kept);
    }

    fn strike(&self, kind: OpKind) -> Option<IoFault> {
        let mut struck = None;
        for active in lock(&self.rules).iter().filter(|active| active.rule.kind == kind) {
            let count = active.matched.fetch_add(1, Ordering::Relaxed) + 1;
            if struck.is_none() && active.rule.when.due(count) {
                active.hits.fetch_add(1, Ordering::Relaxed);
                struck = Some(active.rule.fault);
            }
        }
        struck
    }

    fn below(&self, bound: usize) -> usize {
        as_usize(lock(&self.draws).below(as_u64(bound)))
    }

    fn commit(&self, fault: IoFault, op: Op) -> Pending {
        let kind = op.kind();
        match fault {
            IoFault::Eio => refuse(op, EIO),
            IoFault::NoSpace => refuse(op, ENOSPC),
            IoFault::Never => self.never(kind, op.into_payload()),
            IoFault::Late(by) => {
                let pending = self.inner.submit(op);
                Box::pin(async move {
                    let mut outcome = pending.await;
                    tokio::time::sleep(by).await;
                    outcome.times.device += by;
                    outcome
                })
            }
            IoFault::Misdirected { by_bytes } => {
                let offset = FileOffset(op.offset().0.saturating_add_signed(by_bytes));
                self.inner.submit(op.at(offset))
            }
            IoFault::Short(bytes) => self.short(bytes, op),
            IoFault::FlipBit => self.flip(op),
            IoFault::Torn { unit_bytes, told } => {
                let units = op.range().len().div_ceil(unit_bytes.max(1));
                let landed = self.below(units) * unit_bytes;
                self.torn(landed, told, op)
            }
        }
    }

    fn never(&self, kind: OpKind, payload: Payload) -> Pending {
        lock(&self.kept).push(payload);
        let after = self.hard_limit;
        Box::pin(async move {
            tokio::time::sleep(after).await;
            let times = OpTimes { queue: Duration::ZERO, device: after };
            Outcome::without_memory(IoError::Hung { kind, after }, times)
        })
    }

    fn short(&self, bytes: usize, op: Op) -> Pending {
        let range = op.range();
        if op.kind() == OpKind::Write {
            let asked = range.len();
            let pending = self.torn(bytes.min(asked), Told::Done, op);
            let error = IoError::ShortWrite { written: bytes.min(asked), asked };
            return Box::pin(async move { Outcome { result: Err(error), ..pending.await } });
        }
        let pending = self.inner.submit(op);
        Box::pin(async move {
            let mut outcome = pending.await;
            let Ok(moved) = &mut outcome.result else { return outcome };
            *moved = bytes.min(*moved);
            let untouched = range.start + *moved..range.end;
            if let Some(payload) = &mut outcome.payload {
                payload.bytes_mut()[untouched].fill(GARBAGE);
            }
            outcome
        })
    }

    fn flip(&self, op: Op) -> Pending {
        let range = op.range();
        if range.is_empty() {
            return self.inner.submit(op);
        }
        let (at, bit) = (self.below(range.len()), self.below(8));
        if op.kind() == OpKind::Write {
            let mut bytes = op.payload().bytes()[range].to_vec();
            bytes[at] ^= 1 << bit;
            return self.write_instead(op, &bytes);
        }
        let pending = self.inner.submit(op);
        Box::pin(async move {
            let mut outcome = pending.await;
            if let (Ok(moved), Some(payload)) = (&outcome.result, &mut outcome.payload)
                && at < *moved
            {
                payload.bytes_mut()[range.start + at] ^= 1 << bit;
            }
            outcome
        })
    }

    /// Writes the first `landed` bytes over what lies there.
    fn torn(&self, landed: usize, told: Told, op: Op) -> Pending {
        let (kind, range) = (op.kind(), op.range());
        if kind != OpKind::Write {
            return self.inner.submit(op);
        }
        let mut bytes = match what_lies_there(op.file(), op.offset(), range.len()) {
            Ok(bytes) => bytes,
            Err(error) => return refuse(op, error.raw_os_error().unwrap_or(EIO)),
        };
        let new = &op.payload().bytes()[range][..landed];
        bytes[..landed].copy_from_slice(new);
        let pending = self.write_instead(op, &bytes);
        if told == Told::Nothing {
            // Its memory goes with the future, which nobody waits for: what is written is a copy.
            let hung = self.never(kind, Payload::None);
            return Box::pin(async move {
                let written = pending.await;
                let outcome = hung.await;
                drop(written);
                outcome
            });
        }
        Box::pin(async move {
            let outcome = pending.await;
            let failed = told == Told::Failed && outcome.result.is_ok();
            let result = if failed { Err(IoError::from_errno(kind, EIO)) } else { outcome.result };
            Outcome { result, ..outcome }
        })
    }

    /// Writes other bytes in the place of those of an operation, whose memory comes back as if
    /// nothing was.
    fn write_instead(&self, op: Op, bytes: &[u8]) -> Pending {
        let mut copy = match AlignedBuf::zeroed(bytes.len(), op.file().align_bytes().max(512)) {
            Ok(copy) => copy,
            Err(error) => {
                let refused = Outcome::refused(error, op.into_payload(), Duration::ZERO);
                return Box::pin(async move { refused });
            }
        };
        copy[..bytes.len()].copy_from_slice(bytes);
        let pending = self.inner.submit(Op::write(op.file(), op.offset(), copy, 0..bytes.len()));
        let payload = op.into_payload();
        Box::pin(async move { Outcome { payload: Some(payload), ..pending.await } })
    }
}

impl IoEngine for FaultEngine {
    fn submit(&self, op: Op) -> Pending {
        match self.strike(op.kind()) {
            None => self.inner.submit(op),
            Some(fault) => self.commit(fault, op),
        }
    }

    fn register(&self, segment: &Arc<Segment>) -> Result<Registration, RegisterError> {
        self.inner.register(segment)
    }

    fn stats(&self) -> IoStats {
        let mut stats = self.inner.stats();
        stats.hung += self.kept();
        stats
    }

    fn close(&self, wait: Duration) -> usize {
        self.inner.close(wait) + self.kept()
    }
}

fn refuse(op: Op, errno: i32) -> Pending {
    let error = IoError::from_errno(op.kind(), errno);
    let outcome = Outcome::refused(error, op.into_payload(), Duration::ZERO);
    Box::pin(async move { outcome })
}

/// The bytes of a file before a write, with zeroes behind its end.
fn what_lies_there(
    file: &Arc<DataFile>,
    offset: FileOffset,
    bytes: usize,
) -> std::io::Result<Vec<u8>> {
    use std::os::fd::AsFd;
    let descriptor = std::fs::File::from(file.as_fd().try_clone_to_owned()?);
    let no_memory = |_| std::io::Error::from(std::io::ErrorKind::OutOfMemory);
    let mut old = AlignedBuf::zeroed(bytes, file.align_bytes().max(512)).map_err(no_memory)?;
    let mut done = 0;
    while done < bytes {
        let at = offset.0 + as_u64(done);
        match descriptor.read_at(&mut old[done..], at)? {
            0 => break,
            read if read % file.align_bytes() != 0 => break,
            read => done += read,
        }
    }
    Ok(old[..bytes].to_vec())
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Lists and counters: consistent whoever panicked.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
