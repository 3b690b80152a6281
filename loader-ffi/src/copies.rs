//! Copies on a stream, and the thread that waits for them.
//!
//! ```text
//!   fb_copy_tensor ──► stream of the device
//!         └──► queue ──► thread: waits for the oldest, gives its bytes back, notes the outcome
//!                                                                              │
//!                                      fb_copy_wait, fb_stream_wait ◄──────────┘
//! ```
//!
//! What a copy reads is lent, and goes back when the copy is done, whatever the caller does
//! meanwhile: often it is blocked in `fb_load_next_tensor`, which waits for just that. So each
//! stream has a thread. Copies of one stream are done in order: it waits for the oldest. The queue
//! owns the copies, and is as short as what the load lends is little.

use std::collections::VecDeque;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{Builder, JoinHandle};

use forebay_client::{CopyStream, DeviceMemory, RunCopy};

use crate::entry;
use crate::lent::Lent;
use crate::status::{FB_RESOURCE_EXHAUSTED, Fault};

/// A copy that was started.
struct Started {
    copy: RunCopy,
    outcome: Arc<Outcome>,
}

/// How a copy ended; none while it runs.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    ended: Mutex<Option<Result<(), Fault>>>,
    changed: Condvar,
}

impl Outcome {
    fn ended(&self) -> MutexGuard<'_, Option<Result<(), Fault>>> {
        self.ended.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn end(&self, outcome: Result<(), Fault>) {
        *self.ended() = Some(outcome);
        self.changed.notify_all();
    }

    /// How it ended, if it has.
    pub(crate) fn now(&self) -> Option<Result<(), Fault>> {
        self.ended().clone()
    }

    /// How it ended. Blocks until it has.
    pub(crate) fn wait(&self) -> Result<(), Fault> {
        let ended = self.changed.wait_while(self.ended(), |ended| ended.is_none());
        ended.unwrap_or_else(PoisonError::into_inner).clone().unwrap_or(Ok(()))
    }
}

#[derive(Default)]
struct Queue {
    started: VecDeque<Started>,
    /// Started and not known to be done: the queue, and the one that is waited for.
    under_way: usize,
    /// The first failure that nobody was told of.
    failed: Option<Fault>,
    closed: bool,
}

struct Shared {
    stream: Box<dyn CopyStream>,
    queue: Mutex<Queue>,
    changed: Condvar,
}

/// A stream and its thread. When it is dropped it waits for the copies under way.
pub(crate) struct Copier {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Copier {
    pub(crate) fn start(stream: Box<dyn CopyStream>) -> Result<Self, Fault> {
        let (queue, changed) = (Mutex::default(), Condvar::new());
        let shared = Arc::new(Shared { stream, queue, changed });
        let theirs = Arc::clone(&shared);
        let settle = move || {
            entry::block_signals();
            while let Some(started) = theirs.next() {
                theirs.settle(started);
            }
        };
        let thread = Builder::new().name("forebay-copies".to_owned()).spawn(settle);
        let thread = thread.map_err(|error| {
            Fault::new(FB_RESOURCE_EXHAUSTED, format!("no thread for the stream: {error}"))
        })?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Starts to copy all bytes of a tensor to the start of `memory`.
    pub(crate) fn copy(
        &self,
        lent: &Lent,
        memory: &Arc<DeviceMemory>,
    ) -> Result<Arc<Outcome>, Fault> {
        let copy = lent.copy_to(self.shared.stream.as_ref(), memory)?;
        let outcome = Arc::<Outcome>::default();
        let mut queue = self.shared.queue();
        queue.started.push_back(Started { copy, outcome: Arc::clone(&outcome) });
        queue.under_way += 1;
        self.shared.changed.notify_all();
        Ok(outcome)
    }

    /// Waits for all copies that were started; the first failure that nobody was told of.
    pub(crate) fn wait(&self) -> Result<(), Fault> {
        self.shared.done().failed.take().map_or(Ok(()), Err)
    }

    /// Waits for all copies that were started.
    pub(crate) fn drain(&self) {
        drop(self.shared.done());
    }
}

impl Drop for Copier {
    fn drop(&mut self) {
        self.shared.queue().closed = true;
        self.shared.changed.notify_all();
        if let Some(thread) = self.thread.take() {
            // It catches what the driver may panic with: there is nothing to hear of.
            thread.join().ok();
        }
    }
}

impl fmt::Debug for Copier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Copier").field(&self.shared.stream).finish()
    }
}

impl Shared {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The queue when no copy is under way.
    fn done(&self) -> MutexGuard<'_, Queue> {
        let done = self.changed.wait_while(self.queue(), |queue| queue.under_way > 0);
        done.unwrap_or_else(PoisonError::into_inner)
    }

    /// The oldest copy; none when the stream is closed and all are done.
    fn next(&self) -> Option<Started> {
        let idle = |queue: &mut Queue| queue.started.is_empty() && !queue.closed;
        let waiting = self.changed.wait_while(self.queue(), idle);
        waiting.unwrap_or_else(PoisonError::into_inner).started.pop_front()
    }

    /// Waits for a copy, and gives back what it read.
    fn settle(&self, Started { copy, outcome }: Started) {
        let waited = catch_unwind(AssertUnwindSafe(|| copy.wait(self.stream.as_ref())));
        let ended = match waited {
            Ok(Ok(_spans)) => Ok(()),
            Ok(Err(error)) => Err(Fault::from(error)),
            Err(panic) => Err(entry::panicked(panic.as_ref())),
        };
        // First: who was told that the stream is done finds every copy done.
        outcome.end(ended.clone());
        let mut queue = self.queue();
        queue.under_way -= 1;
        if let Err(fault) = ended {
            queue.failed.get_or_insert(fault);
        }
        drop(queue);
        self.changed.notify_all();
    }
}
