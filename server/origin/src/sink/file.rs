//! Objects as files of a folder.
//!
//! The bytes go to a file beside the place of the object, under a name that nobody else has;
//! synced, it is renamed, and then the folder is synced ([`super::draft`]). Whoever drops an upload
//! leaves nothing behind; what a killed process left goes when a sink first writes into its folder.
//!
//! Below the folder that the sink was opened for no link is followed: one that leads elsewhere
//! would have bytes written where nobody asked for them. Folders that are missing are made. Modes
//! are those of files that a person makes: 0644 and 0755, less the umask.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;
use rustix::fs::{AtFlags, CWD, Mode, OFlags, mkdirat, openat, unlinkat};
use rustix::io::Errno;

use super::draft::Draft;
use super::{OriginSink, Upload};
use crate::error::{OriginError, OriginErrorKind};
use crate::fault::kind_of_io;
use crate::file::FileThreads;
use crate::filling::length;
use crate::key::ObjectKey;
use crate::pin::Pin;
use crate::uri::OriginUri;

const FOLDER_MODE: Mode = Mode::from_raw_mode(0o755);

/// Folders that a sink remembers to have swept.
const SWEPT_MAX: usize = 4096;

/// A folder.
#[derive(Debug, Clone)]
pub(super) struct FileSink {
    origin: String,
    /// The folder's key: keys of objects begin with it.
    root: ObjectKey,
    writers: Arc<FileThreads>,
    swept: Arc<Swept>,
}

/// The folders below the sink's in which it has looked for what killed processes left.
#[derive(Debug, Default)]
struct Swept(Mutex<BTreeSet<Vec<String>>>);

/// A file on its way.
#[derive(Debug)]
struct FileUpload {
    sink: FileSink,
    key: ObjectKey,
    draft: Option<Draft>,
    written: u64,
}

impl FileSink {
    pub(super) fn new(uri: &OriginUri, writers: Arc<FileThreads>) -> Self {
        let root = match uri.key().as_str().rsplit_once('/') {
            _ if uri.is_prefix() => uri.key().clone(),
            // Of a file, its folder. A part of a valid key is one.
            Some((folder, _)) => ObjectKey::parse(folder).unwrap_or_else(|_| ObjectKey::root()),
            None => ObjectKey::root(),
        };
        Self { origin: uri.origin(), root, writers, swept: Arc::default() }
    }

    fn error(&self, key: &ObjectKey, error: &io::Error) -> OriginError {
        let kind = kind_of_io(error.kind());
        OriginError::new(kind, key, error.to_string()).at(&self.origin)
    }

    /// The folder of the sink, and the names of the folders and of the file below it.
    fn place(&self, key: &ObjectKey) -> Result<(PathBuf, Vec<String>), OriginError> {
        let root = self.root.as_str();
        let below = match root {
            "" => Some(key.as_str()),
            root => key.as_str().strip_prefix(root).and_then(|rest| rest.strip_prefix('/')),
        };
        let Some(below) = below.filter(|below| !below.is_empty()) else {
            let text = format!("it is not below /{root}, which is being written to");
            return Err(OriginError::new(OriginErrorKind::Unsupported, key, text).at(&self.origin));
        };
        Ok((Path::new("/").join(root), below.split('/').map(str::to_owned).collect()))
    }

    async fn on_thread<T: Send + 'static>(
        &self,
        key: &ObjectKey,
        work: impl FnOnce() -> io::Result<T> + Send + 'static,
    ) -> Result<T, OriginError> {
        self.writers.run(work).await.map_err(|error| self.error(key, &error))
    }

    async fn begin(&self, key: &ObjectKey) -> Result<FileUpload, OriginError> {
        let (root, mut names) = self.place(key)?;
        let (writers, swept) = (Arc::clone(&self.writers), Arc::clone(&self.swept));
        let draft = self.on_thread(key, move || {
            names.pop();
            std::fs::create_dir_all(&root)?;
            let folder = below(open_folder(&root)?, &names, true)?;
            let draft = Draft::new(folder, writers)?;
            if swept.is_first(names) {
                draft.sweep();
            }
            Ok(draft)
        });
        let draft = Some(draft.await?);
        Ok(FileUpload { sink: self.clone(), key: key.clone(), draft, written: 0 })
    }
}

impl Swept {
    /// Whether it is the first time for a folder, as far as is remembered.
    fn is_first(&self, folder: Vec<String>) -> bool {
        let mut swept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if swept.len() >= SWEPT_MAX {
            swept.clear();
        }
        swept.insert(folder)
    }
}

#[async_trait]
impl OriginSink for FileSink {
    async fn put(&self, key: &ObjectKey, bytes: Bytes) -> Result<Pin, OriginError> {
        let mut upload = self.begin(key).await?;
        upload.write(bytes).await?;
        Box::new(upload).finish().await
    }

    async fn upload(&self, key: &ObjectKey, _: u64) -> Result<Box<dyn Upload>, OriginError> {
        Ok(Box::new(self.begin(key).await?))
    }

    async fn delete(&self, key: &ObjectKey) -> Result<(), OriginError> {
        let (root, mut names) = self.place(key)?;
        let deleted = self.on_thread(key, move || {
            let Some(name) = names.pop() else { return Ok(()) };
            let folder = below(open_folder(&root)?, &names, false)?;
            unlinkat(&folder, &*name, AtFlags::empty())?;
            Ok(rustix::fs::fsync(&folder)?)
        });
        match deleted.await {
            Err(error) if error.kind == OriginErrorKind::NotFound => Ok(()),
            deleted => deleted,
        }
    }
}

#[async_trait]
impl Upload for FileUpload {
    async fn write(&mut self, bytes: Bytes) -> Result<(), OriginError> {
        // Put back when it went well: a write that failed or was dropped may have left a hole.
        let draft = self.draft.take().ok_or_else(|| self.is_failed())?;
        let (file, at) = (Arc::clone(&draft.file), self.written);
        self.written += length(bytes.len());
        let written = self.sink.on_thread(&self.key, move || file.write_all_at(&bytes, at)).await;
        self.draft = Some(draft);
        if written.is_err() {
            self.clear().await;
        }
        written
    }

    async fn finish(mut self: Box<Self>) -> Result<Pin, OriginError> {
        let mut draft = self.draft.take().ok_or_else(|| self.is_failed())?;
        let (_, mut names) = self.sink.place(&self.key)?;
        let name = names.pop().unwrap_or_default();
        let placed = self.sink.on_thread(&self.key, move || {
            let placed = draft.place(&name);
            if placed.is_err() {
                draft.clear_unplaced();
            }
            placed
        });
        placed.await
    }

    async fn abort(mut self: Box<Self>) {
        self.clear().await;
    }
}

impl FileUpload {
    async fn clear(&mut self) {
        let Some(mut draft) = self.draft.take() else { return };
        let clear = draft.clear();
        let cleared = self.sink.on_thread(&self.key, move || {
            clear();
            Ok(())
        });
        if let Err(error) = cleared.await {
            tracing::warn!(%error, "an upload that was given up could not be cleared away");
        }
    }

    fn is_failed(&self) -> OriginError {
        let error = io::Error::new(io::ErrorKind::BrokenPipe, "the upload has failed before");
        self.sink.error(&self.key, &error)
    }
}

const FOLDER: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

/// The folder that the sink is for. It is the user's word, links and all.
fn open_folder(path: &Path) -> io::Result<OwnedFd> {
    Ok(openat(CWD, path, FOLDER, Mode::empty())?)
}

/// A folder below another, made where it is missing if `make` says so. No link is followed.
fn below(mut folder: OwnedFd, names: &[String], make: bool) -> io::Result<OwnedFd> {
    for name in names {
        folder = match enter(&folder, name) {
            Err(error) if make && error.kind() == io::ErrorKind::NotFound => {
                make_folder(&folder, name)?;
                enter(&folder, name)?
            }
            entered => entered?,
        };
    }
    Ok(folder)
}

fn enter(folder: &OwnedFd, name: &str) -> io::Result<OwnedFd> {
    match openat(folder, name, FOLDER | OFlags::NOFOLLOW, Mode::empty()) {
        Err(Errno::NOTDIR | Errno::LOOP) => {
            let text = format!("{name} is a link or no folder, and links are not followed");
            Err(io::Error::new(io::ErrorKind::InvalidInput, text))
        }
        entered => Ok(entered?),
    }
}

fn make_folder(within: &OwnedFd, name: &str) -> io::Result<()> {
    match mkdirat(within, name, FOLDER_MODE) {
        // Somebody else was faster.
        Err(Errno::EXIST) => Ok(()),
        made => Ok(made.and_then(|()| rustix::fs::fsync(within))?),
    }
}
