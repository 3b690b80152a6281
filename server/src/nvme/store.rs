//! The files of the NVMe tier, and nothing but them: names, folders, renames.
//!
//! ```text
//!   CACHE_DIR/nvme/            0700, ours alone, no links (see forebay-io's Directory)
//!     extents/00 .. ff/KEY     one extent each, named after the digest of its identity
//!     filling/KEY.GENERATION   being written; whatever lies here at the start is removed
//!     quarantine/KEY.GENERATION  bad ones, the last few of them, to be looked at
//!     blobs/DIGEST             see `blobs`
//!     index.redb               see `index`
//! ```
//!
//! *Commit.* An extent is written under `filling`: first the payload, then, when that is done, the
//! header that describes it. Then the file is renamed into `extents`. So whoever is killed, at any
//! point, leaves a whole extent or a file that is removed at the next start.
//!
//! *Nothing here is synced.* A process that is killed loses nothing that the kernel has. A power
//! cut may leave a name without its bytes, or an extent torn: every grain has a sum and is checked
//! before anyone sees it, so what is lost is a download, never the truth. A flush per extent would
//! cost the reads that share the device milliseconds each, to save what can be fetched again. Of
//! the index, redb syncs its one file with each commit, once a second at most.
//!
//! Everything here blocks.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use forebay_io::{BufferedReason, Create, DataFile, Directory, FileError, FileMode, OpenHow};

use super::extent::HEADER_BYTES;
use crate::plan::ChunkKey;

/// Bad extents that are kept.
const QUARANTINE_MAX: usize = 8;

const SHARDS: u16 = 256;

/// The open folders.
#[derive(Debug)]
pub(super) struct Store {
    path: PathBuf,
    root: Directory,
    mode: FileMode,
    shards: Vec<Directory>,
    filling: Directory,
    quarantine: Directory,
    blobs: Directory,
}

/// What blobs may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct BlobsMax {
    /// How many.
    pub(super) blobs: usize,
    /// All of them together.
    pub(super) bytes: u64,
}

/// Room of a filesystem.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct DiskRoom {
    /// All of it.
    pub(super) total: u64,
    /// What we may still take.
    pub(super) free: u64,
}

impl Store {
    /// Opens the tier's folders below a cache directory, which is ours; makes what is missing, and
    /// removes what was never finished.
    pub(super) fn open(cache_dir: &Path) -> Result<Self, FileError> {
        let root = Directory::open(cache_dir)?.subdirectory("nvme", true)?;
        let extents = root.subdirectory("extents", true)?;
        let shard = |n: u16| extents.subdirectory(&format!("{n:02x}"), true);
        let store = Self {
            path: cache_dir.join("nvme"),
            mode: FileMode::Buffered(BufferedReason::Asked),
            shards: (0..SHARDS).map(shard).collect::<Result<_, _>>()?,
            filling: root.subdirectory("filling", true)?,
            quarantine: root.subdirectory("quarantine", true)?,
            blobs: root.subdirectory("blobs", true)?,
            root,
        };
        for name in store.filling.names()? {
            remove(&store.filling, &name)?;
        }
        Ok(Self { mode: store.probe()?, ..store })
    }

    /// How files of this filesystem reach the device. A file that cannot be made, renamed or
    /// removed here ends the tier before it begins.
    fn probe(&self) -> Result<FileMode, FileError> {
        const NAME: &str = "probe";
        let probe = self.filling.file(NAME, OpenHow::NEW)?;
        probe.truncate(HEADER_BYTES as u64)?;
        drop(probe);
        let mode = self.filling.file(NAME, OpenHow::READ)?.mode();
        // As an extent is committed; what an earlier probe may have left is in its way.
        self.quarantine.remove(NAME)?;
        self.filling.rename(NAME, &self.quarantine, NAME)?;
        self.quarantine.remove(NAME)?;
        Ok(usable(mode))
    }

    /// How its files reach the device.
    pub(super) fn mode(&self) -> FileMode {
        self.mode
    }

    /// Where it lies.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The tier's own folder.
    pub(super) fn root(&self) -> &Directory {
        &self.root
    }

    /// Opens an extent to read; none if there is none.
    pub(super) fn read(&self, key: &ChunkKey) -> Result<Option<Arc<DataFile>>, FileError> {
        match self.shard(key).file_as(&hex(&key.0), OpenHow::READ, self.mode) {
            Ok(file) => Ok(Some(Arc::new(file))),
            Err(FileError::NotFound(_)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// A new file of so many bytes, whose room is taken.
    pub(super) fn create(
        &self,
        key: &ChunkKey,
        generation: u64,
        bytes: u64,
    ) -> Result<Arc<DataFile>, FileError> {
        let name = generation_name(key, generation);
        let file = self.filling.file_as(&name, OpenHow::NEW, self.mode)?;
        match file.allocate(bytes) {
            // Some filesystems take no room ahead: then writing finds out.
            Ok(()) | Err(FileError::Unsupported { .. }) => Ok(Arc::new(file)),
            Err(error) => {
                drop(file);
                self.filling.remove(&name)?;
                Err(error)
            }
        }
    }

    /// Makes a written file an extent.
    pub(super) fn commit(&self, key: &ChunkKey, generation: u64) -> Result<(), FileError> {
        let (from, to, shard) = (generation_name(key, generation), hex(&key.0), self.shard(key));
        match self.filling.rename(&from, shard, &to) {
            // What lies there is not in the index, or nobody would have written this one.
            Err(FileError::Exists(_)) => {
                shard.remove(&to)?;
                self.filling.rename(&from, shard, &to)
            }
            renamed => renamed,
        }
    }

    /// Removes a file that will not become an extent.
    pub(super) fn discard(&self, key: &ChunkKey, generation: u64) -> Result<(), FileError> {
        self.filling.remove(&generation_name(key, generation)).map(drop)
    }

    /// Removes an extent.
    pub(super) fn remove(&self, key: &ChunkKey) -> Result<(), FileError> {
        self.shard(key).remove(&hex(&key.0)).map(drop)
    }

    /// Puts a bad extent aside; whether there was one: two who found it bad do this, and one of
    /// them has. `mark` tells it from others of this key.
    pub(super) fn quarantine(&self, key: &ChunkKey, mark: u64) -> Result<bool, FileError> {
        let name = generation_name(key, mark);
        let was_there = match self.shard(key).rename(&hex(&key.0), &self.quarantine, &name) {
            Ok(()) => true,
            Err(FileError::NotFound(_)) => false,
            // A name that is taken, or nothing that can be renamed: gone is as good.
            Err(_) => self.shard(key).remove(&hex(&key.0))?,
        };
        // This one is out of the way, whatever becomes of those before it.
        if let Err(error) = self.thin_out(&name) {
            tracing::warn!(%error, "bad extents that were put aside cannot be removed");
        }
        Ok(was_there)
    }

    /// Removes what was put aside, but for this and some others.
    fn thin_out(&self, name: &str) -> Result<(), FileError> {
        let mut kept = self.quarantine.names()?;
        // Names say nothing of age; that some are kept is what matters.
        kept.retain(|kept| kept != name);
        for surplus in kept.iter().skip(QUARANTINE_MAX - 1) {
            remove(&self.quarantine, surplus)?;
        }
        Ok(())
    }

    /// The keys of the extents in one of the 256 folders. What has no such name is not ours, and is
    /// left alone.
    pub(super) fn keys(&self, shard: u8) -> Result<Vec<ChunkKey>, FileError> {
        let Some(folder) = self.shards.get(usize::from(shard)) else { return Ok(Vec::new()) };
        let keys = folder.names()?.into_iter().filter_map(|name| Some(ChunkKey(unhex(&name)?)));
        Ok(keys.filter(|key| key.0[0] == shard).collect())
    }

    /// Opens a blob to read; none if there is none.
    pub(super) fn blob(&self, name: &[u8; 32]) -> Result<Option<DataFile>, FileError> {
        match self.blobs.file(&hex(name), OpenHow { direct: false, ..OpenHow::READ }) {
            Ok(file) => Ok(Some(file)),
            Err(FileError::NotFound(_)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// A new file for a blob; it counts once it is committed. `mark` tells it from others of this
    /// name, which may be written side by side.
    pub(super) fn new_blob(&self, name: &[u8; 32], mark: u64) -> Result<DataFile, FileError> {
        let how = OpenHow { direct: false, ..OpenHow::NEW };
        self.filling.file(&marked(name, mark), how)
    }

    /// Removes a file that will not become a blob.
    pub(super) fn discard_blob(&self, name: &[u8; 32], mark: u64) -> Result<(), FileError> {
        self.filling.remove(&marked(name, mark)).map(drop)
    }

    /// Puts a written blob in its place, and removes others for which there is no more room. Which
    /// ones is left to the order of the folder.
    pub(super) fn commit_blob(
        &self,
        name: &[u8; 32],
        mark: u64,
        max: BlobsMax,
    ) -> Result<(), FileError> {
        let (from, name) = (marked(name, mark), hex(name));
        match self.filling.rename(&from, &self.blobs, &name) {
            Err(FileError::Exists(_)) => {
                self.blobs.remove(&name)?;
                self.filling.rename(&from, &self.blobs, &name)?;
            }
            renamed => renamed?,
        }
        // Others may make room too, at the same time.
        let size = |blob: &str| match self.blobs.bytes_of(blob) {
            Err(FileError::NotFound(_)) => Ok(0),
            size => size,
        };
        let (mut blobs, mut bytes) = (1, size(&name)?);
        for other in self.blobs.names()? {
            // No name of ours is anything but hexadecimal.
            let Some(other) = other.to_str().filter(|other| *other != name) else { continue };
            let with_it = size(other)?.saturating_add(bytes);
            if blobs < max.blobs && with_it <= max.bytes {
                (blobs, bytes) = (blobs + 1, with_it);
            } else {
                self.blobs.remove(other)?;
            }
        }
        Ok(())
    }

    /// Removes a blob.
    pub(super) fn remove_blob(&self, name: &[u8; 32]) -> Result<(), FileError> {
        self.blobs.remove(&hex(name)).map(drop)
    }

    /// A file to try the disk with.
    pub(super) fn probe_file(&self) -> Result<Arc<DataFile>, FileError> {
        let how = OpenHow { write: true, create: Create::IfMissing, direct: true };
        self.filling.file_as("probe", how, self.mode).map(Arc::new)
    }

    /// How much room its filesystem has.
    pub(super) fn room(&self) -> Result<DiskRoom, rustix::io::Errno> {
        let told = rustix::fs::fstatvfs(&self.filling)?;
        let bytes = |blocks: u64| blocks.saturating_mul(told.f_frsize);
        Ok(DiskRoom { total: bytes(told.f_blocks), free: bytes(told.f_bavail) })
    }

    fn shard(&self, key: &ChunkKey) -> &Directory {
        // As many folders as a byte has values: the last one stands for none.
        self.shards.get(usize::from(key.0[0])).unwrap_or(&self.filling)
    }
}

/// Extents are read and written in blocks of their format, from memory that is aligned to those.
fn usable(mode: FileMode) -> FileMode {
    match mode {
        FileMode::Direct { memory_align_bytes, offset_align_bytes }
            if memory_align_bytes.max(offset_align_bytes) as usize > HEADER_BYTES =>
        {
            FileMode::Buffered(BufferedReason::LargeBlocks)
        }
        mode => mode,
    }
}

fn remove(folder: &Directory, name: &OsStr) -> Result<(), FileError> {
    match name.to_str() {
        Some(name) => folder.remove(name).map(drop),
        None => Ok(()),
    }
}

fn generation_name(key: &ChunkKey, generation: u64) -> String {
    marked(&key.0, generation)
}

fn marked(name: &[u8; 32], mark: u64) -> String {
    format!("{}.{mark}", hex(name))
}

fn hex(bytes: &[u8; 32]) -> String {
    blake3::Hash::from_bytes(*bytes).to_hex().to_string()
}

fn unhex(name: &OsStr) -> Option<[u8; 32]> {
    let name = name.to_str()?;
    // Only as it is written, so that a key has one name.
    let bytes = *blake3::Hash::from_hex(name).ok()?.as_bytes();
    (hex(&bytes) == name).then_some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: ChunkKey = ChunkKey([0xab; 32]);

    fn store() -> (tempfile::TempDir, Store) {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        (dir, store)
    }

    fn filled(store: &Store, generation: u64) {
        store.create(&KEY, generation, 8192).unwrap();
        store.commit(&KEY, generation).unwrap();
    }

    #[test]
    fn an_extent_is_there_once_it_is_committed() {
        let (dir, store) = store();
        let file = store.create(&KEY, 7, 8192).unwrap();
        assert_eq!(file.bytes().unwrap(), 8192);
        assert!(store.read(&KEY).unwrap().is_none());
        store.commit(&KEY, 7).unwrap();
        assert_eq!(store.read(&KEY).unwrap().unwrap().bytes().unwrap(), 8192);
        assert_eq!(store.keys(0xab).unwrap(), [KEY]);
        filled(&store, 8);
        store.create(&KEY, 9, 8192).unwrap();
        drop(store);
        let store = Store::open(dir.path()).unwrap();
        assert_eq!(store.keys(0xab).unwrap(), [KEY]);
        assert!(store.filling.names().unwrap().is_empty(), "what was not committed is gone");
        store.remove(&KEY).unwrap();
        store.remove(&KEY).unwrap();
        assert!(store.read(&KEY).unwrap().is_none());
    }

    #[test]
    fn the_quarantine_has_a_bound() {
        let (_dir, store) = store();
        for generation in 0..20 {
            filled(&store, generation);
            assert!(store.quarantine(&KEY, generation).unwrap());
            assert!(!store.quarantine(&KEY, generation).unwrap(), "it is there once");
            assert!(store.read(&KEY).unwrap().is_none());
            let kept = store.quarantine.names().unwrap();
            assert!(kept.len() <= QUARANTINE_MAX);
            assert!(kept.iter().any(|name| *name == *generation_name(&KEY, generation)));
        }
        filled(&store, 20);
        filled(&store, 20);
        store.quarantine(&KEY, 20).unwrap();
        filled(&store, 21);
        assert!(store.quarantine(&KEY, 20).unwrap());
        assert!(store.read(&KEY).unwrap().is_none(), "put aside under a name that is taken");
    }

    #[test]
    fn what_is_not_ours_is_neither_listed_nor_touched() {
        let (dir, store) = store();
        let shard = dir.path().join("nvme/extents/ab");
        for name in ["notes.txt", &"AB".repeat(32), &"ab".repeat(31), &"cd".repeat(32)] {
            std::fs::write(shard.join(name), b"x").unwrap();
        }
        filled(&store, 1);
        assert_eq!(store.keys(0xab).unwrap(), [KEY]);
        assert_eq!(std::fs::read_dir(shard).unwrap().count(), 5);
    }

    #[test]
    fn blocks_that_are_larger_than_ours_make_files_buffered() {
        let direct = |memory_align_bytes, offset_align_bytes| FileMode::Direct {
            memory_align_bytes,
            offset_align_bytes,
        };
        for fits in [direct(512, 512), direct(4, 4096), direct(4096, 512)] {
            assert_eq!(usable(fits), fits);
        }
        for large in [direct(512, 8192), direct(65_536, 4096)] {
            assert_eq!(usable(large), FileMode::Buffered(BufferedReason::LargeBlocks));
        }
        let refused = FileMode::Buffered(BufferedReason::Refused);
        assert_eq!(usable(refused), refused);
    }

    #[test]
    fn a_full_disk_is_said_and_leaves_nothing() {
        let (_dir, store) = store();
        let error = store.create(&KEY, 1, 1 << 62).unwrap_err();
        assert!(matches!(error, FileError::NoSpace { .. } | FileError::System { .. }), "{error}");
        assert!(store.filling.names().unwrap().is_empty());
    }
}
