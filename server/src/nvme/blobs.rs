//! Small things that a load reads before its first chunk, kept over restarts: headers and indexes
//! of objects, under the digests of the objects' identities.
//!
//! A blob is a file of bytes and the BLAKE3 of its name and its bytes. One that does not fit its
//! digest is removed, and is a blob that is missing. A load does not wait for one to be written; a
//! prefetch does, at its end. All of them together are bounded in number and bytes; they lie beside
//! the budget of the extents.

use std::io;
use std::sync::Arc;

use forebay_io::{DataFile, FileError};
use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::sync::OwnedSemaphorePermit;

use super::NvmeTier;
use super::disk::DiskError;
use super::store::{BlobsMax, Store};
use crate::resolve::HeaderCache;

/// How large one may be: headers of published checkpoints have a few MB at most.
const BLOB_BYTES_MAX: usize = 32 << 20;
/// How many there may be, and how large all of them together: the headers of all that fits a disk.
const BLOBS_MAX: BlobsMax = BlobsMax { blobs: 4096, bytes: 256 << 20 };

const DIGEST_BYTES: usize = 32;

impl HeaderCache for Arc<NvmeTier> {
    fn bytes_of(&self, name: [u8; 32]) -> BoxFuture<'_, Option<u64>> {
        self.look(move |store| bytes_of(store, &name)).boxed()
    }

    fn get(&self, name: [u8; 32], bytes: u64) -> BoxFuture<'_, Option<Vec<u8>>> {
        self.look(move |store| read(store, &name, bytes)).boxed()
    }

    fn put(&self, name: [u8; 32], bytes: Vec<u8>, room: OwnedSemaphorePermit) {
        if bytes.len() > BLOB_BYTES_MAX || !self.disk.may_fill() {
            return;
        }
        let (tier, mark) = (Self::clone(self), self.next_generation());
        let writing = async move {
            // Left to the disk together: should it hang, it keeps both.
            let work = move |store: &Store| {
                let _room = room;
                write(store, (&name, mark), &bytes)
            };
            match tier.disk.call(work).await {
                Ok(()) => {}
                Err(error @ DiskError::Stopped(_)) => tracing::debug!(%error, "not kept"),
                Err(error) => tracing::warn!(%error, "a header is not kept"),
            }
        };
        self.tasks.spawn(self.blobs.track_future(writing));
    }

    fn forget(&self, name: [u8; 32]) -> BoxFuture<'_, ()> {
        let removing = async move {
            if let Err(error) = self.disk.call(move |store| store.remove_blob(&name)).await {
                tracing::warn!(%error, "a header that was kept cannot be removed");
            }
        };
        removing.boxed()
    }
}

impl NvmeTier {
    /// Waits until what was to be kept so far is, or will not be.
    pub(crate) async fn blobs_kept(&self) {
        self.blobs.wait().await;
    }

    /// What a look at the blobs gives; nothing if the disk is left alone or fails.
    async fn look<T: Send + 'static>(
        &self,
        look: impl FnOnce(&Store) -> Result<Option<T>, FileError> + Send + 'static,
    ) -> Option<T> {
        let _leave = self.disk.may_read()?;
        self.disk.call(look).await.unwrap_or_else(|error| {
            tracing::debug!(%error, "a header that was kept cannot be read");
            None
        })
    }
}

/// How long a blob is; none if there is none.
fn bytes_of(store: &Store, name: &[u8; 32]) -> Result<Option<u64>, FileError> {
    let Some(file) = store.blob(name)? else { return Ok(None) };
    // One that is too short is removed when it is read.
    Ok(Some(file.bytes()?.saturating_sub(DIGEST_BYTES as u64)))
}

/// Reads a blob of so many bytes; none if there is none, or none any more because it was damaged.
fn read(store: &Store, name: &[u8; 32], bytes: u64) -> Result<Option<Vec<u8>>, FileError> {
    let Some(file) = store.blob(name)? else { return Ok(None) };
    let whole = file.bytes()?;
    if whole > (BLOB_BYTES_MAX + DIGEST_BYTES) as u64 {
        store.remove_blob(name)?;
        return Ok(None);
    }
    if whole > bytes + DIGEST_BYTES as u64 {
        return Ok(None);
    }
    let bytes = usize::try_from(whole).unwrap_or(BLOB_BYTES_MAX);
    let mut blob = vec![0; bytes];
    read_all(&file, &mut blob).map_err(system("read a blob"))?;
    match blob.split_last_chunk::<DIGEST_BYTES>() {
        Some((body, digest)) if digest_of(name, body) == *digest => {}
        _ => {
            tracing::warn!("a header that was kept is damaged and is read anew");
            store.remove_blob(name)?;
            return Ok(None);
        }
    }
    blob.truncate(bytes - DIGEST_BYTES);
    Ok(Some(blob))
}

fn write(store: &Store, (name, mark): (&[u8; 32], u64), bytes: &[u8]) -> Result<(), FileError> {
    let file = store.new_blob(name, mark)?;
    let digest = digest_of(name, bytes);
    let written = write_all(&file, bytes, 0)
        .and_then(|()| write_all(&file, &digest, bytes.len() as u64))
        .map_err(system("write a blob"));
    drop(file);
    let committed = written.and_then(|()| store.commit_blob(name, mark, BLOBS_MAX));
    if committed.is_err() {
        // If that cannot be done either, the next start does it.
        drop(store.discard_blob(name, mark));
    }
    committed
}

fn digest_of(name: &[u8; 32], bytes: &[u8]) -> [u8; DIGEST_BYTES] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(name);
    hasher.update(bytes);
    *hasher.finalize().as_bytes()
}

fn read_all(file: &DataFile, mut into: &mut [u8]) -> io::Result<()> {
    let mut at = 0;
    while !into.is_empty() {
        let read = rustix::io::retry_on_intr(|| rustix::io::pread(file, &mut *into, at))?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        at += read as u64;
        into = into.get_mut(read..).unwrap_or_default();
    }
    Ok(())
}

fn write_all(file: &DataFile, mut bytes: &[u8], mut at: u64) -> io::Result<()> {
    while !bytes.is_empty() {
        let written = rustix::io::retry_on_intr(|| rustix::io::pwrite(file, bytes, at))?;
        if written == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        at += written as u64;
        bytes = bytes.get(written..).unwrap_or_default();
    }
    Ok(())
}

fn system(operation: &'static str) -> impl Fn(io::Error) -> FileError {
    move |source| match source.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            FileError::NoSpace { operation, source }
        }
        _ => FileError::System { operation, source },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn whole(store: &Store, name: &[u8; 32]) -> Result<Option<Vec<u8>>, FileError> {
        match bytes_of(store, name)? {
            Some(bytes) => read(store, name, bytes),
            None => Ok(None),
        }
    }

    #[test]
    fn a_blob_is_read_as_it_was_written_or_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let (one, two) = ([1; 32], [2; 32]);
        assert_eq!(whole(&store, &one).unwrap(), None);
        for bytes in [&b""[..], b"header", &vec![7; 100_000]] {
            write(&store, (&one, 1), bytes).unwrap();
            assert_eq!(whole(&store, &one).unwrap().as_deref(), Some(bytes));
        }
        let folder = dir.path().join("nvme/blobs");
        let path = |name: u8| folder.join(format!("{name:02x}").repeat(32));
        let mut file = std::fs::read(path(1)).unwrap();
        std::fs::write(path(2), &file).unwrap();
        assert_eq!(whole(&store, &two).unwrap(), None, "under another name");
        file[50_000] ^= 4;
        std::fs::write(path(1), &file).unwrap();
        assert_eq!(whole(&store, &one).unwrap(), None);
        assert!(!path(1).exists() && !path(2).exists());
        for torn in [0, 31, 99_999] {
            std::fs::write(path(1), &file[..torn]).unwrap();
            assert_eq!(whole(&store, &one).unwrap(), None);
        }
    }

    #[test]
    fn two_that_are_written_side_by_side_leave_one_that_is_whole() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let name = [1; 32];
        let one = store.new_blob(&name, 1).unwrap();
        write(&store, (&name, 2), b"header").unwrap();
        assert_eq!(whole(&store, &name).unwrap().as_deref(), Some(&b"header"[..]));
        write_all(&one, b"header", 0).unwrap();
        write_all(&one, &digest_of(&name, b"header"), 6).unwrap();
        store.commit_blob(&name, 1, BLOBS_MAX).unwrap();
        assert_eq!(whole(&store, &name).unwrap().as_deref(), Some(&b"header"[..]));
        assert_eq!(std::fs::read_dir(dir.path().join("nvme/filling")).unwrap().count(), 0);
    }

    #[test]
    fn one_that_is_larger_than_was_said_is_not_read() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        write(&store, (&[1; 32], 1), &[7; 100]).unwrap();
        assert_eq!(bytes_of(&store, &[1; 32]).unwrap(), Some(100));
        assert_eq!(bytes_of(&store, &[2; 32]).unwrap(), None);
        assert_eq!(read(&store, &[1; 32], 99).unwrap(), None);
        assert!(whole(&store, &[1; 32]).unwrap().is_some());
    }

    #[test]
    fn blobs_have_a_bound() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let held = |max: BlobsMax, bytes: u64| {
            for name in 0..9 {
                store.new_blob(&[name; 32], 1).unwrap().truncate(bytes).unwrap();
                store.commit_blob(&[name; 32], 1, max).unwrap();
                assert!(store.blob(&[name; 32]).unwrap().is_some());
            }
            (0..9).filter(|n| store.blob(&[*n; 32]).unwrap().is_some()).count()
        };
        assert_eq!(held(BlobsMax { blobs: 4, bytes: 1 << 20 }, 1000), 4);
        assert_eq!(held(BlobsMax { blobs: 9, bytes: 3500 }, 1000), 3);
        assert_eq!(held(BlobsMax { blobs: 9, bytes: 500 }, 1000), 1);
    }
}
