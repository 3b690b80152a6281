//! The disk under the tier: every call to it passes here, is timed, and is counted by the breaker.
//!
//! Reads and writes of extents go through the io engine, which bounds them and tells when one
//! hangs. Opening, renaming and removing go through a few threads of their own, since a disk that
//! hangs hangs those as well; whoever waits for them gives up after the same limit. A task watches
//! over the disk ([`Disk::keep_watch`]): it tells the breaker of calls and operations that hang
//! although nobody waits for them any more, and probes a disk that is not trusted.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use forebay_io::{
    AlignedBuf, DataFile, Done, Failed, FileError, FileOffset, IoEngine, IoError, OpTimes,
    StableBytes, StableBytesMut,
};
use tokio::time::Instant;

use super::breaker::{Breaker, DiskState, Ended, PROBE_EVERY};
use super::extent::HEADER_BYTES;
use super::lock;
use super::news::News;
use super::store::Store;
use crate::cpu::{Stopped, Workers};
use crate::metrics::DiskMeters;

/// Threads for calls that the engine does not make.
const CALL_THREADS: usize = 2;

/// Why the disk did not do something.
#[derive(Debug, thiserror::Error)]
pub(super) enum DiskError {
    /// A call on a file or folder failed.
    #[error(transparent)]
    File(#[from] FileError),
    /// A read or write failed.
    #[error(transparent)]
    Io(#[from] IoError),
    /// It has not answered.
    #[error("the disk has not answered a call on a file for {0:?}")]
    Silent(Duration),
    /// The tier is being closed.
    #[error(transparent)]
    Stopped(#[from] Stopped),
}

impl DiskError {
    /// Whether it is for want of room.
    pub(super) fn is_full(&self) -> bool {
        matches!(self, Self::File(FileError::NoSpace { .. }) | Self::Io(IoError::NoSpace { .. }))
    }

    /// What it says of the disk; nothing if it is about us.
    fn ended(&self) -> Option<Ended> {
        match self {
            Self::File(FileError::System { source, .. }) if !is_ours(source) => Some(Ended::Failed),
            Self::Io(error) => ended(error),
            // Of a call that hangs the watch tells: one that waited for its turn says nothing.
            Self::File(_) | Self::Silent(_) | Self::Stopped(_) => None,
        }
    }
}

/// Whether it is for want of something of this process, as descriptors.
fn is_ours(error: &std::io::Error) -> bool {
    use rustix::io::Errno;
    let ours = [Errno::MFILE, Errno::NFILE, Errno::NOMEM].map(|errno| errno.raw_os_error());
    error.raw_os_error().is_some_and(|errno| ours.contains(&errno))
}

/// What an operation's error says of the disk.
fn ended(error: &IoError) -> Option<Ended> {
    match error {
        IoError::Device { .. } | IoError::ShortWrite { .. } | IoError::TooLong { .. } => {
            Some(Ended::Failed)
        }
        IoError::Hung { .. } | IoError::Stalled { .. } => Some(Ended::Hung),
        _ => None,
    }
}

/// The disk of a tier.
#[derive(Debug)]
pub(super) struct Disk {
    store: Arc<Store>,
    engine: Arc<dyn IoEngine>,
    calls: Workers,
    /// How long a call on a file may take.
    patience: Duration,
    breaker: Mutex<Breaker>,
    calling: Mutex<Calling>,
    /// Operations that hung, as far as the breaker has heard.
    hung_heard: AtomicU64,
    meters: DiskMeters,
    news: Arc<Mutex<News>>,
}

/// Calls on files that have begun, and since when.
#[derive(Debug, Default)]
struct Calling {
    next: u64,
    since: BTreeMap<u64, Instant>,
}

/// A call on a file, from its begin to its end.
#[derive(Debug)]
pub(super) struct Call {
    disk: Arc<Disk>,
    number: u64,
}

impl Drop for Call {
    fn drop(&mut self) {
        lock(&self.disk.calling).since.remove(&self.number);
    }
}

/// Leave to read; counted while the disk is not well.
#[derive(Debug)]
pub(super) struct ReadLeave {
    disk: Arc<Disk>,
}

impl Drop for ReadLeave {
    fn drop(&mut self) {
        self.disk.breaker().read_ended();
    }
}

impl Disk {
    pub(super) fn new(
        store: Store,
        engine: Arc<dyn IoEngine>,
        patience: Duration,
        news: Arc<Mutex<News>>,
    ) -> std::io::Result<Self> {
        Ok(Self {
            store: Arc::new(store),
            engine,
            calls: Workers::start_loose("forebay-disk", CALL_THREADS)?,
            patience,
            breaker: Mutex::new(Breaker::new(Instant::now())),
            calling: Mutex::default(),
            hung_heard: AtomicU64::new(0),
            meters: DiskMeters::new(),
            news,
        })
    }

    /// The files, for threads that may block.
    pub(super) fn store(&self) -> &Arc<Store> {
        &self.store
    }

    /// The engine, for its counters and for registering memory.
    pub(super) fn engine(&self) -> &Arc<dyn IoEngine> {
        &self.engine
    }

    pub(super) fn state(&self) -> DiskState {
        self.breaker().state()
    }

    pub(super) fn may_fill(&self) -> bool {
        self.breaker().may_fill()
    }

    /// Leave to read, unless the disk is left alone.
    pub(super) fn may_read(self: &Arc<Self>) -> Option<ReadLeave> {
        self.breaker().may_read().then(|| ReadLeave { disk: Arc::clone(self) })
    }

    /// A call on files and folders.
    pub(super) async fn call<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Store) -> Result<T, FileError> + Send + 'static,
    ) -> Result<T, DiskError> {
        let disk = Arc::clone(self);
        let working = self.calls.run(move || disk.call_here(work));
        match tokio::time::timeout(self.patience, working).await {
            Ok(Ok(done)) => done,
            Ok(Err(stopped)) => Err(stopped.into()),
            Err(_elapsed) => Err(DiskError::Silent(self.patience)),
        }
    }

    /// The same on this thread, which may block.
    pub(super) fn call_here<T>(
        self: &Arc<Self>,
        work: impl FnOnce(&Store) -> Result<T, FileError>,
    ) -> Result<T, DiskError> {
        let begun = self.begin();
        let done = work(&self.store).map_err(DiskError::from);
        drop(begun);
        if let Err(error) = &done
            && let Some(ended) = error.ended()
        {
            self.heard(ended, error);
        }
        done
    }

    fn begin(self: &Arc<Self>) -> Call {
        let mut calling = lock(&self.calling);
        let number = calling.next;
        calling.next += 1;
        calling.since.insert(number, Instant::now());
        Call { disk: Arc::clone(self), number }
    }

    /// Reads into `range` of `target`.
    pub(super) async fn read<T: StableBytesMut>(
        &self,
        file: &Arc<DataFile>,
        offset: FileOffset,
        target: T,
        range: std::ops::Range<usize>,
    ) -> Result<Done<T>, Failed<T>> {
        let read = self.engine.read(file, offset, target, range).await;
        self.count("read", &read);
        read
    }

    /// Writes `range` of `source`.
    pub(super) async fn write<T: StableBytes>(
        &self,
        file: &Arc<DataFile>,
        offset: FileOffset,
        source: T,
        range: std::ops::Range<usize>,
    ) -> Result<Done<T>, Failed<T>> {
        let written = self.engine.write(file, offset, source, range).await;
        self.count("write", &written);
        written
    }

    fn count<T>(&self, op: &'static str, ended_as: &Result<Done<T>, Failed<T>>) {
        match ended_as {
            Ok(Done { times, .. }) => {
                let OpTimes { queue, device } = *times;
                self.meters.ended(op, queue, device);
                self.turned(self.breaker().ended(Ended::Well, Instant::now()), None);
            }
            Err(failed) => {
                self.meters.failed(op, &failed.error);
                if let Some(ended) = ended(&failed.error) {
                    self.heard(ended, &failed.error);
                }
            }
        }
    }

    fn heard(&self, how: Ended, error: &dyn std::fmt::Display) {
        let turned = self.breaker().ended(how, Instant::now());
        self.turned(turned, Some(error));
    }

    fn turned(&self, to: Option<DiskState>, why: Option<&dyn std::fmt::Display>) {
        let Some(state) = to else { return };
        self.meters.turned(state.as_str());
        let because = why.map(|why| format!(": {why}")).unwrap_or_default();
        let detail = format!("the NVMe tier's disk is {}{because}", state.as_str());
        lock(&self.news).tell("breaker", detail);
        let path = self.store.path().display();
        match (state, why) {
            (DiskState::Normal, _) => tracing::info!(%path, "the disk of the NVMe tier is well"),
            (_, Some(why)) => {
                tracing::warn!(%path, state = state.as_str(), %why, "the NVMe tier leaves its disk alone");
            }
            (_, None) => tracing::warn!(%path, state = state.as_str(), "the NVMe tier's disk"),
        }
    }

    /// Watches over the disk. Never ends.
    pub(super) async fn keep_watch(self: &Arc<Self>) {
        loop {
            tokio::time::sleep(PROBE_EVERY).await;
            self.look_for_hung(Instant::now());
            let turned = self.breaker().tick(Instant::now());
            self.turned(turned, None);
            if self.state() == DiskState::Normal {
                continue;
            }
            if let Err(error) = self.probe().await {
                tracing::debug!(%error, "a probe of the NVMe tier's disk failed");
            }
        }
    }

    /// Tells the breaker of what hangs, whether or not somebody still waits for it.
    fn look_for_hung(&self, now: Instant) {
        let hung = self.engine.stats().hung_total;
        let more = hung > self.hung_heard.fetch_max(hung, Ordering::Relaxed);
        let oldest = lock(&self.calling).since.values().min().copied();
        let silent = oldest.is_some_and(|since| now.duration_since(since) >= self.patience);
        if more || silent {
            self.heard(Ended::Hung, &"an operation hangs");
        }
    }

    /// One block written and read again; both are counted like any other.
    async fn probe(self: &Arc<Self>) -> Result<(), DiskError> {
        let file = self.call(Store::probe_file).await?;
        let block = AlignedBuf::zeroed(HEADER_BYTES, HEADER_BYTES)?;
        let size = 0..HEADER_BYTES;
        let failed = |failed: Failed<AlignedBuf>| DiskError::from(failed.error);
        let written = self.write(&file, FileOffset(0), block, size.clone()).await;
        let block = written.map_err(failed)?.target;
        self.read(&file, FileOffset(0), block, size).await.map_err(failed)?;
        Ok(())
    }

    fn breaker(&self) -> MutexGuard<'_, Breaker> {
        lock(&self.breaker)
    }
}
