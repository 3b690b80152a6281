//! A few named threads for work that burns CPU: plans, digests, decoders.
//!
//! Such work on the async runtime would delay every socket of the daemon. Jobs wait in one bounded
//! queue; a caller that meets a full queue waits. The threads live as long as [`Workers`]: dropping
//! it closes the queue, what is queued is still run, and then they end.
//!
//! [`Workers`] are one such queue. [`NodeWorkers`] are one per NUMA node, for work that touches
//! every byte of a slot.

mod nodes;

use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use forebay_proto::Failure;
use tokio::sync::{mpsc, oneshot};

use crate::error::stopping;

pub(crate) use nodes::{NodeWorkers, WorkerState, distance};

/// Jobs that may wait per worker. Two keep a worker busy while its next job is on the way.
const QUEUED_PER_WORKER: usize = 2;

/// The nice value of threads in the background: a tenth of a core that others want too. With less
/// (19 leaves 1.5 %) nothing of a checkpoint larger than the RAM tier is stored while its load
/// runs.
const LOWER_PRIORITY: i32 = 10;

type Job = Box<dyn FnOnce() + Send>;

/// The threads and their queue.
#[derive(Debug)]
pub(crate) struct Workers {
    jobs: Option<mpsc::Sender<Job>>,
    threads: Vec<JoinHandle<()>>,
    /// Whether the end waits for them.
    joined: bool,
}

/// The worker's thread is gone: the daemon is shutting down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the worker threads have stopped")]
pub(crate) struct Stopped;

impl From<Stopped> for Failure {
    fn from(stopped: Stopped) -> Self {
        stopping(stopped.to_string())
    }
}

impl Workers {
    /// Starts `count` threads named after `name`.
    pub(crate) fn start(name: &str, count: usize) -> std::io::Result<Self> {
        Self::start_threads(name, count, true, |_| {})
    }

    /// The same for work that may never end, as calls to a disk that hangs: dropping this leaves
    /// such threads behind.
    pub(crate) fn start_loose(name: &str, count: usize) -> std::io::Result<Self> {
        Self::start_threads(name, count, false, |_| {})
    }

    /// The same for work that nobody waits for: it gets what the others leave of the CPU. It may
    /// close files, so it may hang as well.
    pub(crate) fn start_in_background(name: &str, count: usize) -> std::io::Result<Self> {
        let lower = |_| {
            // Of Linux: with no id, the priority of the calling thread.
            if let Err(error) = rustix::process::setpriority_process(None, LOWER_PRIORITY) {
                tracing::debug!(%error, "a background thread has the usual priority");
            }
        };
        Self::start_threads(name, count, false, lower)
    }

    /// `begin` is what each thread does first, given its number.
    fn start_threads(
        name: &str,
        count: usize,
        joined: bool,
        begin: impl Fn(usize) + Clone + Send + 'static,
    ) -> std::io::Result<Self> {
        let (jobs, queue) = mpsc::channel::<Job>(count.max(1) * QUEUED_PER_WORKER);
        let queue = Arc::new(Mutex::new(queue));
        let spawn = |n: usize| {
            let (queue, begin) = (Arc::clone(&queue), begin.clone());
            std::thread::Builder::new().name(format!("{name}-{n}")).spawn(move || {
                begin(n);
                work(&queue);
            })
        };
        let threads = (0..count.max(1)).map(spawn).collect::<std::io::Result<_>>()?;
        Ok(Self { jobs: Some(jobs), threads, joined })
    }

    /// Runs `work` on one of the threads. Dropped before it ran, the work is still run, and its
    /// result dropped there.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Stopped> {
        let jobs = self.jobs.as_ref().ok_or(Stopped)?;
        let (sender, result) = oneshot::channel();
        // A caller that is gone drops its receiver, and the result with it.
        let job: Job = Box::new(move || drop(sender.send(work())));
        jobs.send(job).await.map_err(|_closed| Stopped)?;
        result.await.map_err(|_dropped| Stopped)
    }
}

/// One thread: jobs until the queue is closed.
fn work(queue: &Mutex<mpsc::Receiver<Job>>) {
    // The lock is held while waiting: one worker waits for a job, the others for the lock.
    let next = || queue.lock().unwrap_or_else(PoisonError::into_inner).blocking_recv();
    while let Some(job) = next() {
        job();
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        self.jobs = None;
        if !self.joined {
            return;
        }
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("a worker thread panicked");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn work_runs_off_the_runtime_and_returns() {
        let workers = Workers::start("test", 2).unwrap();
        let name = workers.run(|| std::thread::current().name().map(str::to_owned)).await.unwrap();
        assert!(name.unwrap().starts_with("test-"));
    }

    #[tokio::test]
    async fn many_jobs_pass_a_bounded_queue() {
        let workers = Workers::start("test", 1).unwrap();
        let sums = futures::future::join_all((0..100u64).map(|n| workers.run(move || n * n))).await;
        assert_eq!(sums.into_iter().map(Result::unwrap).sum::<u64>(), 328_350);
    }
}
