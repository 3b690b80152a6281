//! What is in the NVMe tier, remembered over restarts: a hint, in redb.
//!
//! One table of chunks and one of revisions. Every row ends in a sum over its key and its bytes, so
//! that a row that was damaged is a row that is missing; an index that cannot be read at all is put
//! aside and begun anew. In both cases the extents themselves say what they are (see `recover`).
//!
//! A thread owns the database. Changes wait in a map, the last one of each key, and are written
//! together once a second: what a kill loses of them is found again by looking at the names of the
//! extents. redb may panic on a damaged file, so nothing of it is called but under `catch_unwind`.

use std::collections::HashMap;
use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use crc_fast::{CrcAlgorithm, Digest};
use forebay_io::{Create, Directory, FileError, OpenHow};
use redb::backends::FileBackend;
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};

use super::extent::PAYLOAD_BYTES_MAX;
use crate::plan::ChunkKey;
use crate::resolve::Revision;

const FILE_NAME: &str = "index.redb";
const BAD_NAME: &str = "index.redb.bad";
const CHUNKS: TableDefinition<'_, [u8; 32], &[u8]> = TableDefinition::new("chunks.1");
const REVISIONS: TableDefinition<'_, [u8; 32], &[u8]> = TableDefinition::new("revisions.1");

/// How long changes wait for others.
const COMMIT_EVERY: Duration = Duration::from_secs(1);

/// Memory of redb for pages: the index of 1 TB has some 20 MB.
const CACHE_BYTES: usize = 32 << 20;

const SUM_BYTES: usize = 8;

/// What is remembered of a chunk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ChunkRow {
    /// Of its extent.
    pub(super) generation: u64,
    /// Of its extent.
    pub(super) payload_bytes: u32,
    /// Bytes of objects in it.
    pub(super) content_bytes: u64,
    /// Who refers to it.
    pub(super) revisions: Vec<Revision>,
}

/// What is remembered of a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct RevisionRow {
    /// Where it was loaded from last.
    pub(super) uri: String,
    /// Of all its objects.
    pub(super) bytes: u64,
    /// How many.
    pub(super) objects: u64,
    /// Whether an operator keeps it.
    pub(super) pinned: bool,
    /// Seconds since the epoch.
    pub(super) last_used: u64,
}

/// All that could be read.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Rows {
    pub(super) chunks: Vec<(ChunkKey, ChunkRow)>,
    pub(super) revisions: Vec<(Revision, RevisionRow)>,
    /// Rows that were damaged.
    pub(super) damaged: usize,
    /// Whether there was an index that could not be read at all.
    pub(super) lost: bool,
}

#[derive(Debug, Default)]
struct Changes {
    chunks: HashMap<ChunkKey, Option<ChunkRow>>,
    revisions: HashMap<Revision, Option<RevisionRow>>,
    closed: bool,
    /// Written so far, and asked for.
    written: u64,
    wanted: u64,
}

#[derive(Debug, Default)]
struct Shared {
    changes: Mutex<Changes>,
    changed: Condvar,
    trouble: Mutex<Option<String>>,
}

/// The index of a tier.
#[derive(Debug)]
pub(super) struct Index {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Index {
    /// Opens the index in `dir` and hands what it holds to `on_rows`, on its thread.
    pub(super) fn start(
        dir: Directory,
        on_rows: impl FnOnce(Rows) + Send + 'static,
    ) -> std::io::Result<Self> {
        let shared = Arc::<Shared>::default();
        let own = Arc::clone(&shared);
        let thread = std::thread::Builder::new().name("forebay-index".into()).spawn(move || {
            let (database, rows) = open(&dir, &own);
            on_rows(rows);
            Keeper { dir, shared: own, database }.run();
        })?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Remembers a chunk, or forgets it.
    pub(super) fn chunk(&self, key: ChunkKey, row: Option<ChunkRow>) {
        self.shared.lock().chunks.insert(key, row);
        self.shared.changed.notify_all();
    }

    /// Remembers a checkpoint, or forgets it.
    pub(super) fn revision(&self, revision: Revision, row: Option<RevisionRow>) {
        self.shared.lock().revisions.insert(revision, row);
        self.shared.changed.notify_all();
    }

    /// What waits until everything so far is written, or will not be. Blocks.
    pub(super) fn flusher(&self) -> impl FnOnce() + Send + use<> {
        let shared = Arc::clone(&self.shared);
        move || {
            let mut changes = shared.lock();
            changes.wanted += 1;
            let wanted = changes.wanted;
            shared.changed.notify_all();
            while changes.written < wanted && !changes.closed {
                changes = shared.wait(changes, COMMIT_EVERY);
            }
        }
    }

    /// Why nothing is remembered any more, if that is so.
    pub(super) fn trouble(&self) -> Option<String> {
        self.shared.trouble.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Index {
    /// Writes what waits.
    fn drop(&mut self) {
        self.shared.lock().closed = true;
        self.shared.changed.notify_all();
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the thread of the NVMe index panicked");
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Changes> {
        self.changes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(
        &self,
        changes: MutexGuard<'a, Changes>,
        limit: Duration,
    ) -> MutexGuard<'a, Changes> {
        let waited = self.changed.wait_timeout(changes, limit);
        waited.unwrap_or_else(PoisonError::into_inner).0
    }

    fn trouble(&self, sentence: String) {
        tracing::warn!("{sentence}");
        *self.trouble.lock().unwrap_or_else(PoisonError::into_inner) = Some(sentence);
    }
}

/// The thread's own.
struct Keeper {
    dir: Directory,
    shared: Arc<Shared>,
    database: Option<Database>,
}

impl Keeper {
    fn run(mut self) {
        while let Some((changes, closed)) = self.next() {
            let wanted = changes.wanted;
            self.write(&changes);
            self.shared.lock().written = wanted;
            self.shared.changed.notify_all();
            if closed {
                break;
            }
        }
        // Closing the database writes too.
        let database = self.database.take();
        drop(catch_unwind(AssertUnwindSafe(|| drop(database))));
    }

    /// The changes of about a second; none when the index is closed and all is written.
    fn next(&self) -> Option<(Changes, bool)> {
        let mut changes = self.shared.lock();
        let nothing = |changes: &Changes| {
            changes.chunks.is_empty()
                && changes.revisions.is_empty()
                && changes.wanted == changes.written
        };
        while nothing(&changes) {
            if changes.closed {
                return None;
            }
            changes = self.shared.wait(changes, Duration::from_secs(60));
        }
        let patient = |changes: &mut Changes| !changes.closed && changes.wanted == changes.written;
        let waited = self.shared.changed.wait_timeout_while(changes, COMMIT_EVERY, patient);
        let mut changes = waited.unwrap_or_else(PoisonError::into_inner).0;
        let (closed, wanted, written) = (changes.closed, changes.wanted, changes.written);
        let taken = Changes {
            chunks: std::mem::take(&mut changes.chunks),
            revisions: std::mem::take(&mut changes.revisions),
            closed,
            wanted,
            written,
        };
        Some((taken, closed))
    }

    fn write(&mut self, changes: &Changes) {
        let Some(database) = &self.database else { return };
        match catch_unwind(AssertUnwindSafe(|| commit(database, changes))) {
            Ok(Ok(())) => {}
            Ok(Err(error)) => self.give_up(&error.to_string()),
            Err(_panic) => self.give_up("its file is damaged"),
        }
    }

    /// The next start finds no index and looks at the extents.
    fn give_up(&mut self, why: &str) {
        let database = self.database.take();
        drop(catch_unwind(AssertUnwindSafe(|| drop(database))));
        put_aside(&self.dir);
        let what = "the next start looks at every extent";
        self.shared.trouble(format!("nvme: the index is not written any more: {why}; {what}"));
    }
}

fn commit(database: &Database, changes: &Changes) -> Result<(), redb::Error> {
    let transaction = database.begin_write()?;
    {
        let mut chunks = transaction.open_table(CHUNKS)?;
        for (key, row) in &changes.chunks {
            match row {
                Some(row) => drop(chunks.insert(key.0, encode_chunk(key, row).as_slice())?),
                None => drop(chunks.remove(key.0)?),
            }
        }
        let mut revisions = transaction.open_table(REVISIONS)?;
        for (revision, row) in &changes.revisions {
            match row {
                Some(row) => {
                    let bytes = encode_revision(revision, row);
                    drop(revisions.insert(revision.0, bytes.as_slice())?);
                }
                None => drop(revisions.remove(revision.0)?),
            }
        }
    }
    transaction.commit()?;
    Ok(())
}

/// The database and what it holds. One that cannot be read is put aside, and a new one begun.
fn open(dir: &Directory, shared: &Shared) -> (Option<Database>, Rows) {
    let why = match catch_unwind(|| open_and_read(dir)) {
        Ok(Ok((database, rows))) => return (Some(database), rows),
        Ok(Err(error)) => error,
        Err(_panic) => "its file is damaged".to_owned(),
    };
    tracing::warn!(%why, "the NVMe index is begun anew");
    put_aside(dir);
    match catch_unwind(|| open_and_read(dir)) {
        Ok(Ok((database, rows))) => (Some(database), Rows { lost: true, ..rows }),
        Ok(Err(error)) => {
            shared.trouble(format!("nvme: there is no index: {error}"));
            (None, Rows::default())
        }
        Err(_panic) => {
            shared.trouble("nvme: there is no index: a new file is damaged at once".into());
            (None, Rows::default())
        }
    }
}

fn put_aside(dir: &Directory) {
    // One of before is in its way.
    let moved = dir.remove(BAD_NAME).and_then(|_| dir.rename(FILE_NAME, dir, BAD_NAME));
    match moved {
        Ok(()) | Err(FileError::NotFound(_)) => {}
        Err(error) => tracing::warn!(%error, "the damaged NVMe index stays where it is"),
    }
}

fn open_and_read(dir: &Directory) -> Result<(Database, Rows), String> {
    let how = OpenHow { write: true, create: Create::IfMissing, direct: false };
    let file = File::from(dir.file(FILE_NAME, how).map_err(|error| error.to_string())?);
    let read = || -> Result<(Database, Rows), redb::Error> {
        let file = FileBackend::new(file)?;
        let mut builder = Database::builder();
        let database = builder.set_cache_size(CACHE_BYTES).create_with_backend(file)?;
        let rows = read_all(&database)?;
        Ok((database, rows))
    };
    read().map_err(|error| error.to_string())
}

fn read_all(database: &Database) -> Result<Rows, redb::Error> {
    let transaction = database.begin_write()?;
    // Made, so that they can be read.
    drop(transaction.open_table(CHUNKS)?);
    drop(transaction.open_table(REVISIONS)?);
    transaction.commit()?;
    let transaction = database.begin_read()?;
    let mut rows = Rows::default();
    for entry in transaction.open_table(CHUNKS)?.iter()? {
        let (key, row) = entry?;
        let key = ChunkKey(key.value());
        match decode_chunk(&key, row.value()) {
            Some(row) => rows.chunks.push((key, row)),
            None => rows.damaged += 1,
        }
    }
    for entry in transaction.open_table(REVISIONS)?.iter()? {
        let (revision, row) = entry?;
        let revision = Revision(revision.value());
        match decode_revision(&revision, row.value()) {
            Some(row) => rows.revisions.push((revision, row)),
            None => rows.damaged += 1,
        }
    }
    Ok(rows)
}

fn encode_chunk(key: &ChunkKey, row: &ChunkRow) -> Vec<u8> {
    let mut bytes = row.generation.to_le_bytes().to_vec();
    bytes.extend(row.content_bytes.to_le_bytes());
    bytes.extend(row.payload_bytes.to_le_bytes());
    bytes.extend(row.revisions.iter().flat_map(|revision| revision.0));
    seal(&key.0, bytes)
}

fn decode_chunk(key: &ChunkKey, bytes: &[u8]) -> Option<ChunkRow> {
    let bytes = unseal(&key.0, bytes)?;
    let (generation, bytes) = bytes.split_first_chunk()?;
    let (content_bytes, bytes) = bytes.split_first_chunk()?;
    let (payload_bytes, revisions) = bytes.split_first_chunk()?;
    let (revisions, rest) = revisions.as_chunks::<32>();
    // No chunk is larger, and it holds no more than its extent: sums of such rows are numbers.
    let payload = u32::from_le_bytes(*payload_bytes) as usize;
    let possible =
        payload <= PAYLOAD_BYTES_MAX && u64::from_le_bytes(*content_bytes) <= payload as u64;
    (rest.is_empty() && possible).then(|| ChunkRow {
        generation: u64::from_le_bytes(*generation),
        content_bytes: u64::from_le_bytes(*content_bytes),
        payload_bytes: u32::from_le_bytes(*payload_bytes),
        revisions: revisions.iter().map(|revision| Revision(*revision)).collect(),
    })
}

fn encode_revision(revision: &Revision, row: &RevisionRow) -> Vec<u8> {
    let mut bytes = vec![u8::from(row.pinned)];
    for number in [row.bytes, row.objects, row.last_used] {
        bytes.extend(number.to_le_bytes());
    }
    bytes.extend(row.uri.as_bytes());
    seal(&revision.0, bytes)
}

fn decode_revision(revision: &Revision, bytes: &[u8]) -> Option<RevisionRow> {
    let bytes = unseal(&revision.0, bytes)?;
    let (pinned, bytes) = bytes.split_first()?;
    let (size, bytes) = bytes.split_first_chunk()?;
    let (objects, bytes) = bytes.split_first_chunk()?;
    let (last_used, uri) = bytes.split_first_chunk()?;
    Some(RevisionRow {
        uri: std::str::from_utf8(uri).ok()?.to_owned(),
        bytes: u64::from_le_bytes(*size),
        objects: u64::from_le_bytes(*objects),
        pinned: *pinned == 1,
        last_used: u64::from_le_bytes(*last_used),
    })
}

/// A row of either table, as it is and with the sum that would make it whole.
pub(super) fn fuzzed_rows(bytes: &[u8]) {
    const KEY: [u8; 32] = [7; 32];
    for row in [bytes.to_vec(), seal(&KEY, bytes.to_vec())] {
        if let Some(chunk) = decode_chunk(&ChunkKey(KEY), &row) {
            assert!(encode_chunk(&ChunkKey(KEY), &chunk) == row, "{chunk:?} is another row");
            assert!(chunk.content_bytes <= u64::from(chunk.payload_bytes), "{chunk:?}");
        }
        if let Some(revision) = decode_revision(&Revision(KEY), &row) {
            let again = encode_revision(&Revision(KEY), &revision);
            let again = decode_revision(&Revision(KEY), &again);
            assert!(again.as_ref() == Some(&revision), "{revision:?} becomes {again:?}");
        }
    }
}

fn seal(key: &[u8; 32], mut bytes: Vec<u8>) -> Vec<u8> {
    let sum = sum_of(key, &bytes);
    bytes.extend(sum);
    bytes
}

fn unseal<'a>(key: &[u8; 32], bytes: &'a [u8]) -> Option<&'a [u8]> {
    let (bytes, sum) = bytes.split_last_chunk()?;
    (sum_of(key, bytes) == *sum).then_some(bytes)
}

fn sum_of(key: &[u8; 32], bytes: &[u8]) -> [u8; SUM_BYTES] {
    let mut sum = Digest::new(CrcAlgorithm::Crc64Nvme);
    sum.update(key);
    sum.update(bytes);
    sum.finalize().to_le_bytes()
}

#[cfg(test)]
#[path = "index_tests.rs"]
mod tests;
