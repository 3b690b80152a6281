//! Files, for `file` origins: a few named threads that read pieces of them, and do whatever else
//! blocks.
//!
//! Reading a file blocks, and object_store's own stream hops to a blocking thread for every 8 KiB.
//! Here a read asks for pieces of 1 MiB, one ahead of the one in use, in buffers that go round. A
//! thread never waits for a reader, so a read that nobody polls holds up no other.
//!
//! A piece is read without waiting as far as it is in the page cache, and the rest of it with: how
//! much that was is told, since it is what a disk had to bring. Filesystems that cannot do that are
//! read plainly, and tell nothing.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{Builder, JoinHandle};

use rustix::io::{Errno, ReadWriteFlags, preadv2};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use crate::filling::length;

/// Threads of one kind.
const THREADS: usize = 4;
/// Pieces that are waiting for a thread or being read.
const QUEUE_MAX: usize = 256;
/// Bytes read at a time.
const PIECE_BYTES: u64 = 1 << 20;
/// Pieces asked for before one is used.
const AHEAD: usize = 2;

/// The threads, and the queue before them.
pub(crate) struct FileThreads {
    queue: Arc<Queue>,
    places: Arc<Semaphore>,
    threads: Vec<JoinHandle<()>>,
}

/// What is to be done. One thread is woken for each job: behind the lock of a channel, the next one
/// would be woken too, only to wait in its place.
#[derive(Default)]
struct Queue {
    waiting: Mutex<Waiting>,
    changed: Condvar,
}

#[derive(Default)]
struct Waiting {
    jobs: VecDeque<Job>,
    /// Threads that take them.
    takers: usize,
    /// No more will come.
    closed: bool,
}

/// A thread that takes jobs.
struct Taker(Arc<Queue>);

impl Queue {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        // A push or a pop is whole, whoever panicked beside it.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives the job back if nobody takes jobs.
    fn push(&self, job: Job) -> Result<(), Job> {
        let mut waiting = self.lock();
        if waiting.takers == 0 || waiting.closed {
            return Err(job);
        }
        waiting.jobs.push_back(job);
        drop(waiting);
        self.changed.notify_one();
        Ok(())
    }

    /// The next job; none when all are done and no more will come.
    fn next(&self) -> Option<Job> {
        let is_idle = |waiting: &mut Waiting| waiting.jobs.is_empty() && !waiting.closed;
        let waiting = self.changed.wait_while(self.lock(), is_idle);
        waiting.unwrap_or_else(PoisonError::into_inner).jobs.pop_front()
    }

    fn close(&self) {
        self.lock().closed = true;
        self.changed.notify_all();
    }
}

impl Taker {
    fn of(queue: &Arc<Queue>) -> Self {
        queue.lock().takers += 1;
        Self(Arc::clone(queue))
    }
}

impl Drop for Taker {
    fn drop(&mut self) {
        let mut waiting = self.0.lock();
        waiting.takers -= 1;
        // Jobs left behind by threads that panicked: who waits for them is told.
        let left =
            if waiting.takers == 0 { std::mem::take(&mut waiting.jobs) } else { VecDeque::new() };
        drop(waiting);
        drop(left);
    }
}

/// Something to do for a thread.
struct Job {
    task: Task,
    _place: OwnedSemaphorePermit,
}

enum Task {
    Read { file: Arc<File>, offset: u64, buffer: Vec<u8>, reply: Reply<Piece> },
    Do(Work),
}

/// Bytes that follow each other in a file.
#[derive(Debug, Default)]
pub(crate) struct Piece {
    pub(crate) bytes: Vec<u8>,
    /// How many at its end were known not to be in the page cache.
    pub(crate) cold_bytes: u64,
}

/// Something that blocks.
type Work = Box<dyn FnOnce() + Send>;

type Reply<T> = oneshot::Sender<io::Result<T>>;
type Answer<T> = oneshot::Receiver<io::Result<T>>;

impl std::fmt::Debug for FileThreads {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FileThreads").field("threads", &self.threads).finish_non_exhaustive()
    }
}

impl FileThreads {
    /// Starts the threads.
    pub(crate) fn start(name: &str) -> io::Result<Self> {
        let queue = Arc::new(Queue::default());
        let mut threads = Self {
            queue: Arc::clone(&queue),
            places: Arc::new(Semaphore::new(QUEUE_MAX)),
            threads: Vec::with_capacity(THREADS),
        };
        for number in 0..THREADS {
            let taker = Taker::of(&queue);
            let thread = Builder::new().name(format!("{name}-{number}"));
            threads.threads.push(thread.spawn(move || work(&taker.0))?);
        }
        Ok(threads)
    }

    /// Reads a range of a file.
    pub(crate) fn read(self: &Arc<Self>, file: File, range: Range<u64>) -> Pieces {
        Pieces {
            readers: Arc::clone(self),
            file: Arc::new(file),
            left: range,
            ahead: VecDeque::with_capacity(AHEAD),
            current: Piece::default(),
        }
    }

    /// Does something that blocks, and answers what came of it. It is done even if nobody waits for
    /// it any more.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        let (reply, answer) = oneshot::channel();
        let work = move || {
            if reply.send(work()).is_err() {
                tracing::trace!("nobody waits for what was done with a file any more");
            }
        };
        self.submit(Task::Do(Box::new(work))).await?;
        answer.await.unwrap_or_else(|_| Err(stopped()))
    }

    /// The same, with nobody to wait for it: here and now if there is no place for it.
    pub(crate) fn run_later(&self, work: Work) {
        let Ok(place) = Arc::clone(&self.places).try_acquire_owned() else { return work() };
        let unsent = self.queue.push(Job { task: Task::Do(work), _place: place });
        if let Err(Job { task: Task::Do(work), .. }) = unsent {
            work();
        }
    }

    /// Waits until everything that was to be done is done.
    pub(crate) async fn idle(&self) {
        let all = u32::try_from(QUEUE_MAX).unwrap_or(u32::MAX);
        // It is closed only when the threads are gone.
        drop(self.places.acquire_many(all).await.ok());
    }

    async fn piece(
        &self,
        file: &Arc<File>,
        offset: u64,
        buffer: Vec<u8>,
    ) -> io::Result<Answer<Piece>> {
        let (reply, answer) = oneshot::channel();
        let file = Arc::clone(file);
        self.submit(Task::Read { file, offset, buffer, reply }).await?;
        Ok(answer)
    }

    async fn submit(&self, task: Task) -> io::Result<()> {
        let place = Arc::clone(&self.places).acquire_owned().await.map_err(|_| stopped())?;
        self.queue.push(Job { task, _place: place }).map_err(|_unsent| stopped())
    }
}

fn stopped() -> io::Error {
    io::Error::other("the file readers have stopped")
}

impl Drop for FileThreads {
    fn drop(&mut self) {
        self.queue.close();
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("a file reader panicked");
            }
        }
    }
}

fn work(queue: &Queue) {
    while let Some(Job { task, _place }) = queue.next() {
        let heard = match task {
            Task::Read { reply, .. } if reply.is_closed() => false,
            Task::Read { file, offset, buffer, reply } => {
                reply.send(read_piece(&file, offset, buffer)).is_ok()
            }
            Task::Do(work) => {
                work();
                true
            }
        };
        if !heard {
            tracing::trace!("nobody waits for a piece of a file any more");
        }
    }
}

/// Fills the buffer from a file: what is in the page cache first.
fn read_piece(file: &File, offset: u64, mut buffer: Vec<u8>) -> io::Result<Piece> {
    let (mut filled, mut cold) = (0, false);
    while filled < buffer.len() {
        let at = offset + length(filled);
        let into = &mut [io::IoSliceMut::new(&mut buffer[filled..])];
        match preadv2(file, into, at, ReadWriteFlags::NOWAIT) {
            // The file is too short, which the read below says properly.
            Ok(0) => break,
            Ok(bytes) => filled += bytes,
            Err(Errno::INTR) => {}
            Err(errno) => {
                cold = errno == Errno::AGAIN;
                break;
            }
        }
    }
    let cold_bytes = if cold { length(buffer.len() - filled) } else { 0 };
    file.read_exact_at(&mut buffer[filled..], offset + length(filled))?;
    Ok(Piece { bytes: buffer, cold_bytes })
}

/// A range of a file, piece by piece, in order.
#[derive(Debug)]
pub(crate) struct Pieces {
    readers: Arc<FileThreads>,
    file: Arc<File>,
    left: Range<u64>,
    ahead: VecDeque<Answer<Piece>>,
    current: Piece,
}

impl Pieces {
    /// The next piece, or `None` behind the last one.
    pub(crate) async fn next(&mut self) -> Option<io::Result<&Piece>> {
        while self.ahead.len() < AHEAD && self.left.start < self.left.end {
            let bytes = PIECE_BYTES.min(self.left.end - self.left.start);
            let mut buffer = std::mem::take(&mut self.current.bytes);
            buffer.resize(usize::try_from(bytes).unwrap_or(usize::MAX), 0);
            match self.readers.piece(&self.file, self.left.start, buffer).await {
                Ok(answer) => self.ahead.push_back(answer),
                Err(error) => return Some(Err(error)),
            }
            self.left.start += bytes;
        }
        match self.ahead.pop_front()?.await {
            Ok(Ok(piece)) => self.current = piece,
            Ok(Err(error)) => return Some(Err(error)),
            Err(_) => return Some(Err(stopped())),
        }
        Some(Ok(&self.current))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    async fn all(mut pieces: Pieces) -> Vec<u8> {
        let mut got = Vec::new();
        while let Some(piece) = pieces.next().await {
            got.extend_from_slice(&piece.unwrap().bytes);
        }
        got
    }

    #[tokio::test]
    async fn ranges_come_whole_and_a_short_file_is_an_error() {
        let content: Vec<u8> = (0..3_500_000_u32).map(|n| n.to_le_bytes()[1]).collect();
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(&content).unwrap();
        let readers = Arc::new(FileThreads::start("origin-file").unwrap());
        for range in [0..1, 0..3_500_000, 1_048_575..2_097_153, 3_499_999..3_500_000] {
            let got = all(readers.read(file.reopen().unwrap(), range.clone())).await;
            let range = usize::try_from(range.start).unwrap()..usize::try_from(range.end).unwrap();
            assert_eq!(got, content[range]);
        }
        let mut pieces = readers.read(file.reopen().unwrap(), 3_499_999..3_500_001);
        let error = pieces.next().await.unwrap().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }

    #[tokio::test]
    async fn jobs_are_answered_though_threads_panic_and_refused_when_all_have() {
        let readers = FileThreads::start("origin-file").unwrap();
        let panics = async || readers.run(|| -> io::Result<()> { panic!("a job panics") }).await;
        for _ in 1..THREADS {
            panics().await.unwrap_err();
        }
        assert_eq!(readers.run(|| Ok(7)).await.unwrap(), 7);
        panics().await.unwrap_err();
        // Whether or not the last one is seen to be gone already.
        readers.run(|| Ok(7)).await.unwrap_err();
        readers.idle().await;
    }

    async fn cold_bytes(mut pieces: Pieces) -> u64 {
        let mut cold = 0;
        while let Some(piece) = pieces.next().await {
            cold += piece.unwrap().cold_bytes;
        }
        cold
    }

    #[tokio::test]
    async fn what_a_disk_had_to_bring_is_told() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(&vec![7; 3 << 20]).unwrap();
        rustix::fs::fdatasync(&file).unwrap();
        let readers = Arc::new(FileThreads::start("origin-file").unwrap());
        let cold = || cold_bytes(readers.read(file.reopen().unwrap(), 0..3 << 20));
        assert_eq!(cold().await, 0, "it was just written");
        // A quick disk has some of what it is asked for there at once, and at times all of it.
        let mut most = 0;
        for _ in 0..32 {
            rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
            most = most.max(cold().await);
        }
        if most == 0 {
            return println!(
                "skipped the part with dropped pages: they are kept, or there at once"
            );
        }
        assert!(most <= 3 << 20, "{most}");
        assert_eq!(cold().await, 0, "the read brought it into the page cache");
    }
}
