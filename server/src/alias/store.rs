//! The files of aliases, and nothing but them.
//!
//! ```text
//!   CACHE_DIR/aliases/       0700, ours alone, no links (see forebay-io's Directory)
//!     DIGEST.alias           one record, under the digest of its name
//!     REVISION.manifest      what a revision consists of
//!     *.new                  being written; whatever lies here at the start is removed
//!     *.bad                  could not be read, to be looked at
//! ```
//!
//! *Commit.* A file is written as `.new`, synced, put in the place of the old one by one rename, and
//! the folder is synced. Whoever is killed, or loses power, at any point leaves the old record or the
//! new one. A manifest is there before the record that names it, and goes after the last one that
//! does.
//!
//! *What is read is compared* with a digest of the file's name and its body. What does not fit is put
//! aside, and costs its own alias and no other.
//!
//! Everything here blocks.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;

use forebay_io::{Directory, FileError, OpenHow};

use super::record::Record;

const FOLDER: &str = "aliases";
const ALIAS: &str = ".alias";
const MANIFEST: &str = ".manifest";
const NEW: &str = ".new";
const BAD: &str = ".bad";

/// How every file begins.
const MAGIC: &[u8] = b"forebay-alias 1\n";
/// The digest, in hex, and a line's end.
const DIGEST_BYTES: usize = 65;

/// Bytes of a file: more than the largest manifest that is saved.
const FILE_BYTES_MAX: u64 = 1 << 30;

/// Written at a time.
const PIECE_BYTES: usize = 1 << 20;

/// Why a file was not written, or not removed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StoreError {
    /// Nothing has changed.
    #[error(transparent)]
    File(#[from] FileError),
    /// The new file is in its place, and the disk has not confirmed that it stays there.
    #[error("it is written, and a crash may bring back what was before: {0}")]
    Unconfirmed(FileError),
    /// Cannot be put into bytes.
    #[error(transparent)]
    Form(#[from] serde_json::Error),
}

/// Why a file is not used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BadFile {
    /// It is not there, or the disk does not give it.
    #[error(transparent)]
    File(#[from] FileError),
    /// What it holds is not what was written.
    #[error("{0}")]
    Damaged(&'static str),
}

/// What was found at the start.
#[derive(Debug, Default)]
pub(crate) struct Found {
    /// Records that are whole.
    pub(crate) records: Vec<Record>,
    /// Others: the digest of the name, and what is wrong.
    pub(crate) bad: Vec<(String, BadFile)>,
}

/// See the module's head.
#[derive(Debug)]
pub(crate) struct Store {
    folder: Directory,
    #[cfg(test)]
    pub(super) fuse: tests::Fuse,
}

impl Store {
    /// Opens the folder below a cache directory, which is ours.
    pub(crate) fn open(cache_dir: &Path) -> Result<Self, FileError> {
        let folder = Directory::open(cache_dir)?.subdirectory(FOLDER, true)?;
        Ok(Self {
            folder,
            #[cfg(test)]
            fuse: tests::Fuse::default(),
        })
    }

    /// Reads every record. What is damaged is put aside.
    pub(crate) fn records(&self) -> Result<Found, FileError> {
        let mut found = Found::default();
        for file in self.names()? {
            let Some(stem) = file.strip_suffix(ALIAS) else { continue };
            let record = self.get(&file).and_then(|body| {
                let record: Record = serde_json::from_slice(&body)
                    .map_err(|_| BadFile::Damaged("it is no record of this version"))?;
                match stem_of(&record.name) == stem && record.targets().all(is_revision) {
                    true => Ok(record),
                    false => Err(BadFile::Damaged("it is of another name")),
                }
            });
            match record {
                Ok(record) => found.records.push(record),
                Err(bad) => {
                    self.put_aside(&file, &bad);
                    found.bad.push((stem.to_owned(), bad));
                }
            }
        }
        Ok(found)
    }

    /// The saved manifest of a revision. What is damaged is put aside.
    pub(crate) fn manifest(&self, revision: &str) -> Result<Vec<u8>, BadFile> {
        let file = format!("{revision}{MANIFEST}");
        self.get(&file).inspect_err(|bad| self.put_aside(&file, bad))
    }

    /// Keeps the saved manifest of a revision.
    pub(crate) fn keep_manifest(&self, revision: &str, body: &[u8]) -> Result<(), StoreError> {
        self.put(&format!("{revision}{MANIFEST}"), body)
    }

    /// Keeps a record, in the place of the one of before.
    pub(crate) fn keep(&self, record: &Record) -> Result<(), StoreError> {
        self.put(&format!("{}{ALIAS}", stem_of(&record.name)), &serde_json::to_vec(record)?)
    }

    /// Forgets a record, and a damaged one of this name.
    pub(crate) fn forget(&self, name: &str) -> Result<(), StoreError> {
        let stem = stem_of(name);
        self.step()?;
        self.folder.remove(&format!("{stem}{ALIAS}"))?;
        self.folder.remove(&format!("{stem}{ALIAS}{BAD}"))?;
        self.confirm()
    }

    /// Removes what no record needs: manifests of other revisions, and what was never finished.
    pub(crate) fn sweep(&self, needed: &BTreeSet<String>) -> Result<(), FileError> {
        for file in self.names()? {
            let unneeded =
                file.strip_suffix(MANIFEST).is_some_and(|revision| !needed.contains(revision));
            if unneeded || file.ends_with(NEW) {
                self.step()?;
                self.folder.remove(&file)?;
            }
        }
        Ok(())
    }

    fn names(&self) -> Result<Vec<String>, FileError> {
        let names = self.folder.names()?;
        Ok(names.into_iter().filter_map(|name| name.into_string().ok()).collect())
    }

    fn get(&self, name: &str) -> Result<Vec<u8>, BadFile> {
        let file = self.folder.file(name, OpenHow { direct: false, ..OpenHow::READ })?;
        let mut bytes = Vec::new();
        File::from(file)
            .take(FILE_BYTES_MAX)
            .read_to_end(&mut bytes)
            .map_err(|source| FileError::System { operation: "read an alias", source })?;
        let body = bytes.strip_prefix(MAGIC).and_then(|rest| {
            let (digest, body) = rest.split_at_checked(DIGEST_BYTES)?;
            (digest == digest_line(name, body).as_bytes()).then_some(body)
        });
        body.map(<[u8]>::to_vec).ok_or(BadFile::Damaged("its bytes do not fit its digest"))
    }

    fn put(&self, name: &str, body: &[u8]) -> Result<(), StoreError> {
        let new = format!("{name}{NEW}");
        let head = [MAGIC, digest_line(name, body).as_bytes()].concat();
        let how = OpenHow { direct: false, ..OpenHow::NEW };
        self.step()?;
        // One that was not finished is in the way.
        self.folder.remove(&new)?;
        self.step()?;
        let mut file = File::from(self.folder.file(&new, how)?);
        let failed = |source| FileError::System { operation: "write an alias", source };
        for piece in std::iter::once(head.as_slice()).chain(body.chunks(PIECE_BYTES)) {
            self.step()?;
            file.write_all(piece).map_err(failed)?;
        }
        self.step()?;
        file.sync_data().map_err(failed)?;
        self.step()?;
        self.folder.replace(&new, name)?;
        self.confirm()
    }

    fn confirm(&self) -> Result<(), StoreError> {
        self.step().and_then(|()| self.folder.sync()).map_err(StoreError::Unconfirmed)
    }

    /// What cannot be read stays where it is if the disk is to blame.
    fn put_aside(&self, name: &str, bad: &BadFile) {
        if let BadFile::Damaged(_) = bad
            && let Err(error) = self.folder.replace(name, &format!("{name}{BAD}"))
        {
            tracing::warn!(%error, name, "a damaged file of an alias stays where it is");
        }
    }

    /// Where a test may have the daemon killed.
    fn step(&self) -> Result<(), FileError> {
        #[cfg(test)]
        self.fuse.burn()?;
        Ok(())
    }
}

/// What the files of a name are called.
pub(crate) fn stem_of(name: &str) -> String {
    blake3::hash(name.as_bytes()).to_hex().to_string()
}

fn is_revision(target: &super::record::Target) -> bool {
    target.revision().is_some()
}

fn digest_line(name: &str, body: &[u8]) -> String {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&(name.len() as u64).to_le_bytes());
    hasher.update(name.as_bytes());
    hasher.update(body);
    format!("{}\n", hasher.finalize().to_hex())
}

#[cfg(test)]
#[path = "store_tests.rs"]
mod tests;
