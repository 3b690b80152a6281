//! Headers and indexes of objects: read into bounded memory, parsed, and kept for the next time.
//!
//! *Kept is what made sense.* Only bytes that were parsed are kept, and what was kept is parsed
//! again when it is used: if that fails it is forgotten, and the origin is asked as if nothing had
//! been kept. So a bit that was flipped on the way cannot make an object unreadable for good.
//!
//! *Room.* Whatever is read takes its room in [`Headers::room`] first, whether it comes from the
//! origin or from what was kept. What waits to be written has a bound of its own, and beyond that
//! is not kept: nobody waits for a disk here.

use std::fmt::Display;
use std::sync::Arc;

use futures::future::BoxFuture;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, SemaphorePermit};

use super::manifest::Object;
use crate::cpu::{Stopped, Workers};

/// Mebibytes being read at one time, over all loads: what hostile ones can make the daemon hold.
/// The largest header fits once.
const READ_MIB_AT_ONCE: usize = 128;

/// Mebibytes that may wait to be written: the headers of a few large checkpoints.
const KEEP_MIB_AT_ONCE: usize = 64;

/// JSON from this size on is parsed on the workers.
const PARSE_ON_WORKER_BYTES: usize = 256 << 10;

/// Where headers and indexes of objects are kept over restarts, under the objects' identities. What
/// it gives is what it was given, or nothing.
pub(crate) trait HeaderCache: std::fmt::Debug + Send + Sync {
    /// How many bytes are kept under a name, if any are.
    fn bytes_of(&self, name: [u8; 32]) -> BoxFuture<'_, Option<u64>>;

    /// What is kept under a name, if it is so many bytes.
    fn get(&self, name: [u8; 32], bytes: u64) -> BoxFuture<'_, Option<Vec<u8>>>;

    /// Keeps bytes under a name, some time later, if that can be done. The room is theirs until
    /// then.
    fn put(&self, name: [u8; 32], bytes: Vec<u8>, room: OwnedSemaphorePermit);

    /// Keeps nothing under a name any more, if that can be done.
    fn forget(&self, name: [u8; 32]) -> BoxFuture<'_, ()>;
}

/// See the module's head.
#[derive(Debug)]
pub(super) struct Headers {
    cpu: Arc<Workers>,
    cache: Option<Arc<dyn HeaderCache>>,
    read_mib: Semaphore,
    keep_mib: Arc<Semaphore>,
}

impl Headers {
    /// Parses on `cpu`.
    pub(super) fn new(cpu: Arc<Workers>, cache: Option<Arc<dyn HeaderCache>>) -> Self {
        let keep_mib = Arc::new(Semaphore::new(KEEP_MIB_AT_ONCE));
        Self { cpu, cache, read_mib: Semaphore::new(READ_MIB_AT_ONCE), keep_mib }
    }

    /// Room to read so many bytes. Whoever has some asks for no more.
    pub(super) async fn room(&self, bytes: u64) -> Result<SemaphorePermit<'_>, Stopped> {
        let most = u32::try_from(READ_MIB_AT_ONCE).unwrap_or(u32::MAX);
        // The semaphore lives as long as the resolver and is never closed.
        self.read_mib.acquire_many(mib(bytes).min(most)).await.map_err(|_closed| Stopped)
    }

    /// Runs a parser, on the workers if there is much to parse. The bytes come back.
    pub(super) async fn parsed<T: Send + 'static>(
        &self,
        bytes: Vec<u8>,
        parse: impl FnOnce(&[u8]) -> T + Send + 'static,
    ) -> Result<(T, Vec<u8>), Stopped> {
        if bytes.len() < PARSE_ON_WORKER_BYTES {
            return Ok((parse(&bytes), bytes));
        }
        self.cpu.run(move || (parse(&bytes), bytes)).await
    }

    /// Runs a decoder, which may have much to do for few bytes: on the workers. The bytes come
    /// back.
    pub(super) async fn decoded<T: Send + 'static>(
        &self,
        bytes: Vec<u8>,
        decode: impl FnOnce(&[u8]) -> T + Send + 'static,
    ) -> Result<(T, Vec<u8>), Stopped> {
        self.cpu.run(move || (decode(&bytes), bytes)).await
    }

    /// What `parse` makes of what was kept of an object, if anything was. Only what is pinned is
    /// the same again.
    pub(super) async fn kept<T: Send + 'static, E: Display + Send + 'static>(
        &self,
        object: &Object,
        parse: impl FnOnce(&[u8]) -> Result<T, E> + Send + 'static,
    ) -> Result<Option<T>, Stopped> {
        let Some(cache) = self.cache.as_ref().filter(|_| object.pinned) else { return Ok(None) };
        let Some(bytes) = cache.bytes_of(object.identity).await else { return Ok(None) };
        let _room = self.room(bytes).await?;
        let Some(bytes) = cache.get(object.identity, bytes).await else { return Ok(None) };
        match self.parsed(bytes, parse).await? {
            (Ok(parsed), _) => Ok(Some(parsed)),
            (Err(problem), _) => {
                tracing::warn!(object = object.name, %problem, "what was kept of it is read anew");
                cache.forget(object.identity).await;
                Ok(None)
            }
        }
    }

    /// Keeps what was read of an object and made sense.
    pub(super) fn keep(&self, object: &Object, bytes: Vec<u8>) {
        let Some(cache) = self.cache.as_ref().filter(|_| object.pinned) else { return };
        match Arc::clone(&self.keep_mib).try_acquire_many_owned(mib(bytes.len() as u64)) {
            Ok(room) => cache.put(object.identity, bytes, room),
            Err(_full) => tracing::debug!(object = object.name, "too many headers wait to be kept"),
        }
    }
}

fn mib(bytes: u64) -> u32 {
    u32::try_from(bytes >> 20).unwrap_or(u32::MAX).saturating_add(1)
}

#[cfg(test)]
#[path = "headers_tests.rs"]
mod tests;
