//! Bodies of `file` origins: a few named threads that read pieces of files.
//!
//! Reading a file blocks, and object_store's own stream hops to a blocking thread for every 8 KiB.
//! Here a read asks for pieces of 1 MiB, one ahead of the one in use, in buffers that go round. A
//! thread never waits for a reader, so a read that nobody polls holds up no other.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{Builder, JoinHandle};

use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

/// Threads that read files.
const READERS: usize = 4;
/// Pieces that are waiting for a thread or being read.
const QUEUE_MAX: usize = 256;
/// Bytes read at a time.
const PIECE_BYTES: u64 = 1 << 20;
/// Pieces asked for before one is used.
const AHEAD: usize = 2;

/// The threads, and the queue before them.
#[derive(Debug)]
pub(crate) struct FileReaders {
    queue: Option<SyncSender<Job>>,
    places: Arc<Semaphore>,
    threads: Vec<JoinHandle<()>>,
}

/// One piece to read.
#[derive(Debug)]
struct Job {
    file: Arc<File>,
    offset: u64,
    buffer: Vec<u8>,
    reply: oneshot::Sender<io::Result<Vec<u8>>>,
    _place: OwnedSemaphorePermit,
}

impl FileReaders {
    /// Starts the threads.
    pub(crate) fn start() -> io::Result<Self> {
        let (queue, jobs) = sync_channel(QUEUE_MAX);
        let jobs = Arc::new(Mutex::new(jobs));
        let threads = (0..READERS)
            .map(|number| {
                let jobs = Arc::clone(&jobs);
                Builder::new().name(format!("origin-file-{number}")).spawn(move || work(&jobs))
            })
            .collect::<io::Result<_>>()?;
        Ok(Self { queue: Some(queue), places: Arc::new(Semaphore::new(QUEUE_MAX)), threads })
    }

    /// Reads a range of a file.
    pub(crate) fn read(self: &Arc<Self>, file: File, range: Range<u64>) -> Pieces {
        Pieces {
            readers: Arc::clone(self),
            file: Arc::new(file),
            left: range,
            ahead: VecDeque::with_capacity(AHEAD),
            current: Vec::new(),
        }
    }

    async fn submit(
        &self,
        file: &Arc<File>,
        offset: u64,
        buffer: Vec<u8>,
    ) -> io::Result<oneshot::Receiver<io::Result<Vec<u8>>>> {
        let place = Arc::clone(&self.places).acquire_owned().await.map_err(io::Error::other)?;
        let (reply, answer) = oneshot::channel();
        let job = Job { file: Arc::clone(file), offset, buffer, reply, _place: place };
        // There are as many permits as places, so the queue cannot be full.
        let sent = self.queue.as_ref().map(|queue| queue.try_send(job).is_ok());
        if sent != Some(true) {
            return Err(io::Error::other("the file readers have stopped"));
        }
        Ok(answer)
    }
}

impl Drop for FileReaders {
    fn drop(&mut self) {
        drop(self.queue.take());
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("a file reader panicked");
            }
        }
    }
}

fn work(jobs: &Mutex<Receiver<Job>>) {
    loop {
        let job = jobs.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(Job { file, offset, mut buffer, reply, _place }) = job else { return };
        if reply.is_closed() {
            continue;
        }
        let read = file.read_exact_at(&mut buffer, offset).map(|()| buffer);
        if reply.send(read).is_err() {
            tracing::trace!("a read was dropped while its piece was read");
        }
    }
}

/// A range of a file, piece by piece, in order.
#[derive(Debug)]
pub(crate) struct Pieces {
    readers: Arc<FileReaders>,
    file: Arc<File>,
    left: Range<u64>,
    ahead: VecDeque<oneshot::Receiver<io::Result<Vec<u8>>>>,
    current: Vec<u8>,
}

impl Pieces {
    /// The next piece, or `None` behind the last one.
    pub(crate) async fn next(&mut self) -> Option<io::Result<&[u8]>> {
        while self.ahead.len() < AHEAD && self.left.start < self.left.end {
            let bytes = PIECE_BYTES.min(self.left.end - self.left.start);
            let mut buffer = std::mem::take(&mut self.current);
            buffer.resize(usize::try_from(bytes).unwrap_or(usize::MAX), 0);
            match self.readers.submit(&self.file, self.left.start, buffer).await {
                Ok(answer) => self.ahead.push_back(answer),
                Err(error) => return Some(Err(error)),
            }
            self.left.start += bytes;
        }
        match self.ahead.pop_front()?.await {
            Ok(Ok(piece)) => self.current = piece,
            Ok(Err(error)) => return Some(Err(error)),
            Err(_) => return Some(Err(io::Error::other("a file reader has stopped"))),
        }
        Some(Ok(&self.current))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[tokio::test]
    async fn ranges_come_whole_and_a_short_file_is_an_error() {
        let content: Vec<u8> = (0..3_500_000_u32).map(|n| n.to_le_bytes()[1]).collect();
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(&content).unwrap();
        let readers = Arc::new(FileReaders::start().unwrap());
        for range in [0..1, 0..3_500_000, 1_048_575..2_097_153, 3_499_999..3_500_000] {
            let mut pieces = readers.read(file.reopen().unwrap(), range.clone());
            let mut got = Vec::new();
            while let Some(piece) = pieces.next().await {
                got.extend_from_slice(piece.unwrap());
            }
            let range = usize::try_from(range.start).unwrap()..usize::try_from(range.end).unwrap();
            assert_eq!(got, content[range]);
        }
        let mut pieces = readers.read(file.reopen().unwrap(), 3_499_999..3_500_001);
        let error = pieces.next().await.unwrap().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }
}
