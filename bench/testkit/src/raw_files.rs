//! The files of a [`RawOrigin`](crate::RawOrigin): each in a memfd, so that `sendfile` sends it
//! without a copy and without a disk.
//!
//! Content is made once, when it is put in; after that nothing writes to it. Clones share the
//! files. Whoever has cloned them last closes the descriptors, which gives the memory back.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::sync::Arc;

use rustix::fs::{MemfdFlags, memfd_create};

use crate::checkpoint::Checkpoint;
use crate::content::{Content, sha256_of};

/// Bytes written at once while content is made.
const WRITE_BYTES: usize = 1 << 20;
/// Hexadecimal digits of an entity tag.
const TAG_DIGITS: usize = 32;

/// Files by key.
#[derive(Clone, Debug, Default)]
pub struct RawFiles(Arc<BTreeMap<String, Arc<RawFile>>>);

/// One file, its size and its entity tag with quotes.
#[derive(Debug)]
pub(crate) struct RawFile {
    pub(crate) file: File,
    pub(crate) bytes: u64,
    pub(crate) etag: String,
}

impl RawFiles {
    /// Makes the files, whose keys are these.
    ///
    /// # Errors
    /// If the memory cannot be had.
    pub fn make<'a>(contents: impl IntoIterator<Item = (String, &'a Content)>) -> io::Result<Self> {
        let make = |(key, content)| Ok((key, Arc::new(RawFile::make(content)?)));
        Ok(Self(Arc::new(contents.into_iter().map(make).collect::<io::Result<_>>()?)))
    }

    /// The files of a checkpoint under `prefix`, which ends in a slash or is empty.
    ///
    /// # Errors
    /// If the memory cannot be had.
    pub fn checkpoint(prefix: &str, checkpoint: &Checkpoint) -> io::Result<Self> {
        let files = checkpoint.files().iter();
        Self::make(files.map(|(name, content)| (format!("{prefix}{name}"), content)))
    }

    /// The same files once below each prefix; they lie in memory once. To a client they are as many
    /// objects.
    #[must_use]
    pub fn below(&self, prefixes: impl IntoIterator<Item = String>) -> Self {
        let below = |prefix: String| {
            let files = self.0.iter();
            files.map(move |(key, file)| (format!("{prefix}{key}"), Arc::clone(file)))
        };
        Self(Arc::new(prefixes.into_iter().flat_map(below).collect()))
    }

    /// These and others.
    #[must_use]
    pub fn and(&self, others: &Self) -> Self {
        let all = self.0.iter().chain(others.0.iter());
        Self(Arc::new(all.map(|(key, file)| (key.clone(), Arc::clone(file))).collect()))
    }

    pub(crate) fn get(&self, key: &str) -> Option<&RawFile> {
        self.0.get(key).map(Arc::as_ref)
    }
}

impl RawFile {
    fn make(content: &Content) -> io::Result<Self> {
        let file = File::from(memfd_create("forebay-raw-origin", MemfdFlags::CLOEXEC)?);
        let mut out = BufWriter::with_capacity(WRITE_BYTES, &file);
        let mut written = Ok(());
        content.visit(0..content.len(), &mut |piece| {
            if written.is_ok() {
                written = out.write_all(piece);
            }
        });
        written.and_then(|()| out.flush())?;
        drop(out);
        let mut tag = sha256_of(format!("{content:?}").as_bytes());
        tag.truncate(TAG_DIGITS);
        Ok(Self { file, bytes: content.len(), etag: format!("\"{tag}\"") })
    }
}
