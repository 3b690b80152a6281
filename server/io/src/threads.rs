//! The engine that works everywhere: named threads, each with one blocking call at a time.
//!
//! As many operations are with the device as there are threads, so 8 to 16 of them come close to
//! what io_uring gets from a disk. A thread that the kernel does not let go keeps its operation;
//! the watch tells the caller, and the others go on.
//!
//! They are not pinned to a NUMA node, and neither is the thread of the ring: with O_DIRECT the
//! device writes to the memory itself, and the CPU that asked touches no byte of it.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

use forebay_shm::Segment;

use crate::call::{Calls, SystemCalls};
use crate::core::Core;
use crate::desk::OpId;
use crate::engine::{EngineSettings, IoEngine, Pending, Registration};
use crate::error::RegisterError;
use crate::op::Op;
use crate::progress::{Progress, Step};
use crate::stats::{EngineKind, IoStats};
use crate::watch;

/// A desk, and the threads that serve it.
pub(crate) struct ThreadsEngine {
    core: Arc<Core>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    drop_wait: Duration,
}

impl ThreadsEngine {
    pub(crate) fn start(settings: &EngineSettings) -> std::io::Result<Self> {
        Self::with_calls(settings, Arc::new(SystemCalls))
    }

    fn with_calls(settings: &EngineSettings, calls: Arc<dyn Calls>) -> std::io::Result<Self> {
        let limits = settings.limits(settings.threads);
        let core = Arc::new(Core::new(EngineKind::Threads, limits));
        // From here on the value's drop ends what was started, should a later thread be refused.
        let engine = Self {
            core: Arc::clone(&core),
            threads: Mutex::default(),
            drop_wait: limits.drop_wait(),
        };
        let mut threads = vec![watch::start(Arc::clone(&core), limits.soft)?];
        for index in 0..limits.quotas.depth() {
            let (core, calls) = (Arc::clone(&core), Arc::clone(&calls));
            let name = format!("forebay-io-{index}");
            let work = move || serve(&core, &*calls);
            match Builder::new().name(name).spawn(work) {
                Ok(thread) => threads.push(thread),
                Err(error) => {
                    *engine.threads.lock().unwrap_or_else(PoisonError::into_inner) = threads;
                    return Err(error);
                }
            }
        }
        *engine.threads.lock().unwrap_or_else(PoisonError::into_inner) = threads;
        Ok(engine)
    }
}

/// Does what there is to do until the desk is closed.
fn serve(core: &Core, calls: &dyn Calls) {
    while let Some((id, op)) = core.wait_for_turn() {
        carry_out(core, calls, id, op);
    }
}

/// Asks the kernel until the operation has ended.
fn carry_out(core: &Core, calls: &dyn Calls, id: OpId, mut op: Op) {
    let mut progress = Progress::new(&op);
    loop {
        let answer = calls.call(&mut op, progress.done());
        match progress.advance(answer) {
            Step::Continue { moved } => core.count(|stats| stats.count_again(moved)),
            Step::End(result) => return core.finish(id, op, result),
        }
    }
}

impl IoEngine for ThreadsEngine {
    fn submit(&self, op: Op) -> Pending {
        self.core.submit(op).0
    }

    fn register(&self, _segment: &Arc<Segment>) -> Result<Registration, RegisterError> {
        Err(RegisterError::NotUsed("pread and pwrite have no such thing"))
    }

    fn stats(&self) -> IoStats {
        self.core.stats()
    }

    fn close(&self, wait: Duration) -> usize {
        self.core.close();
        self.core.drain(wait)
    }
}

impl Drop for ThreadsEngine {
    fn drop(&mut self) {
        let running = self.close(self.drop_wait);
        if running > 0 {
            // Their threads are in the kernel, with the memory of these operations. They end by
            // themselves when the kernel lets them go.
            tracing::warn!(running, "the disk still has operations of an io engine that ends");
            return;
        }
        let threads =
            std::mem::take(&mut *self.threads.lock().unwrap_or_else(PoisonError::into_inner));
        for thread in threads {
            if thread.join().is_err() {
                tracing::error!("a thread of the io engine had panicked");
            }
        }
    }
}

impl fmt::Debug for ThreadsEngine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ThreadsEngine").field("stats", &self.core.stats()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Condvar;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::buffer::AlignedBuf;
    use crate::error::IoError;
    use crate::file::DataFile;
    use crate::op::FileOffset;

    fn engine(calls: Arc<dyn Calls>, hard_limit: Duration) -> Arc<dyn IoEngine> {
        let settings = EngineSettings {
            threads: 2,
            soft_limit: Duration::from_millis(2),
            hard_limit,
            ..EngineSettings::default()
        };
        Arc::new(ThreadsEngine::with_calls(&settings, calls).unwrap())
    }

    fn buffer() -> AlignedBuf {
        AlignedBuf::zeroed(4096, 4096).unwrap()
    }

    /// Answers what it is told to, one after the other.
    #[derive(Debug)]
    struct Scripted(Vec<i32>, AtomicUsize);

    impl Calls for Scripted {
        fn call(&self, op: &mut Op, done: usize) -> i32 {
            let answer = self.0[self.1.fetch_add(1, Ordering::Relaxed)];
            if let Ok(moved) = usize::try_from(answer) {
                op.payload_mut().bytes_mut()[done..done + moved].fill(7);
            }
            answer
        }
    }

    #[tokio::test]
    async fn interruptions_and_short_answers_are_continued() {
        let script = vec![-libc::EINTR, 1000, -libc::EAGAIN, 3000, 96];
        let engine = engine(Arc::new(Scripted(script, AtomicUsize::new(0))), Duration::MAX);
        let file = Arc::new(DataFile::in_memory());
        let read = engine.read(&file, FileOffset(0), buffer(), 0..4096).await.unwrap();
        assert_eq!(read.bytes, 4096);
        assert!(read.target.iter().all(|&byte| byte == 7));
        assert_eq!((engine.stats().short_total, engine.stats().retried_total), (2, 2));
    }

    /// Lets no call end before it is opened.
    #[derive(Debug, Default)]
    struct Gate(Mutex<bool>, Condvar);

    impl Gate {
        fn open(&self) {
            *self.0.lock().unwrap() = true;
            self.1.notify_all();
        }
    }

    impl Calls for Gate {
        fn call(&self, op: &mut Op, done: usize) -> i32 {
            drop(self.1.wait_while(self.0.lock().unwrap(), |open| !*open).unwrap());
            i32::try_from(op.range().len() - done).unwrap()
        }
    }

    /// Long enough for a thread to begin with an operation, on a machine that does much else.
    const HUNG_AFTER: Duration = Duration::from_millis(500);

    #[tokio::test]
    async fn a_hung_call_is_told_and_keeps_its_memory_until_it_ends() {
        let gate = Arc::new(Gate::default());
        let engine = engine(Arc::clone(&gate) as Arc<dyn Calls>, HUNG_AFTER);
        let file = Arc::new(DataFile::in_memory());
        let (kept, dropped) = futures::channel::oneshot::channel::<()>();
        let target = crate::Carried { bytes: buffer(), with: kept };
        let hung = engine.read(&file, FileOffset(0), target, 0..4096).await.unwrap_err();
        assert!(matches!(hung.error, IoError::Hung { .. }), "{hung:?}");
        assert!(hung.target.is_none());
        assert_eq!(engine.stats().hung, 1);
        assert_eq!(engine.close(Duration::ZERO), 1, "it still runs");
        gate.open();
        assert!(dropped.await.is_err(), "the memory is dropped when the call has ended");
        assert_eq!(engine.close(Duration::MAX), 0);
        assert_eq!((engine.stats().hung, engine.stats().late_total), (0, 1));
    }

    #[tokio::test]
    async fn reads_pass_the_writes_that_wait() {
        let gate = Arc::new(Gate::default());
        let engine = engine(Arc::clone(&gate) as Arc<dyn Calls>, Duration::MAX);
        let file = Arc::new(DataFile::in_memory());
        let write = || engine.write(&file, FileOffset(0), buffer(), 0..4096);
        let writes = [write(), write(), write(), write()];
        let read = engine.read(&file, FileOffset(0), buffer(), 0..4096);
        // Of two places, writes take one: the read gets the other while three writes wait.
        let running = |stats: IoStats| (stats.reads.running, stats.writes.running);
        while running(engine.stats()) != (1, 1) {
            tokio::task::yield_now().await;
        }
        assert_eq!(engine.stats().writes.queued, 3);
        gate.open();
        read.await.unwrap();
        futures::future::try_join_all(writes).await.unwrap();
        let stats = engine.stats();
        assert_eq!((stats.writes.done, stats.writes.bytes, stats.reads.done), (4, 4 * 4096, 1));
    }
}
