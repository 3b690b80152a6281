//! Objects as files under one directory, and never outside of it.
//!
//! A key is whatever a store allows, so it is checked before anything is fetched, and every path
//! is opened by the kernel beneath the directory without following links: neither a key nor a
//! link that lies there already can lead elsewhere.
//!
//! Bytes go to temporary files, in whatever order they come. Only [`Item::Commit`], which is sent
//! after the load has succeeded, gives the files their names, each once it is complete, synced and
//! of the right size. Without it, and after any error, the temporary files are removed.

use std::collections::{BTreeSet, HashMap};
use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::path::Path;

use forebay_client::Chunk;
use forebay_client::model::{ObjectEntry, ObjectIndex};
use rustix::fs::{AtFlags, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use serde::Serialize;

use crate::error::CliError;
use crate::worker::Feed;

/// Complete files that wait for the commit with their data unsynced and their descriptor open.
const UNSYNCED_MAX: usize = 64;

/// One file, as it was written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Written {
    pub(crate) key: String,
    pub(crate) path: String,
    pub(crate) bytes: u64,
}

/// What the writing thread is told.
#[derive(Debug)]
pub(crate) enum Item {
    /// More bytes.
    Chunk(Chunk),
    /// Every byte has come and the load has succeeded.
    Commit,
}

/// Which objects become which files.
#[derive(Debug)]
pub(crate) struct Plan {
    root: Root,
    objects: HashMap<ObjectIndex, Target>,
}

#[derive(Debug, Clone)]
struct Target {
    key: String,
    bytes: u64,
}

impl Target {
    /// The directory and the name in it.
    fn split(&self) -> (&str, &str) {
        self.key.rsplit_once('/').unwrap_or(("", &self.key))
    }
}

impl Plan {
    /// Checks every key, then opens the directory, making it if needed.
    pub(crate) fn new<'a>(
        dir: &Path,
        objects: impl Iterator<Item = (ObjectIndex, &'a ObjectEntry)>,
    ) -> Result<Self, CliError> {
        let objects: HashMap<ObjectIndex, Target> = objects
            .map(|(index, object)| (index, Target { key: object.key.clone(), bytes: object.bytes }))
            .collect();
        check_keys(objects.values().map(|target| target.key.as_str()))?;
        let root = Root::open(dir)
            .map_err(|error| CliError::local(format!("open {}", dir.display()), error))?;
        Ok(Self { root, objects })
    }
}

/// An error if a key cannot be a path, or two cannot be paths side by side.
fn check_keys<'a>(keys: impl Iterator<Item = &'a str> + Clone) -> Result<(), CliError> {
    let mut names = BTreeSet::new();
    let bad = |key: &str, why| Err(CliError::UnsafeKey { key: key.to_owned(), why });
    for key in keys.clone() {
        if key.split('/').any(|part| matches!(part, "" | "." | "..")) {
            return bad(key, "cannot be a path under the directory");
        }
        if !names.insert(key) {
            return bad(key, "appears twice");
        }
    }
    for key in keys {
        let mut above = key;
        while let Some((parent, _)) = above.rsplit_once('/') {
            if names.contains(parent) {
                return bad(parent, "would be a file and a directory");
            }
            above = parent;
        }
    }
    Ok(())
}

/// The directory that nothing leaves.
#[derive(Debug)]
struct Root {
    descriptor: OwnedFd,
    path: String,
}

impl Root {
    fn open(dir: &Path) -> io::Result<Self> {
        fs::create_dir_all(dir)?;
        let path = dir.to_string_lossy().trim_end_matches('/').to_owned();
        Ok(Self { descriptor: File::open(dir)?.into(), path })
    }

    /// Opens beneath this directory, through no link.
    fn beneath(&self, path: &str, flags: OFlags) -> Result<OwnedFd, Errno> {
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
        let flags = flags | OFlags::CLOEXEC;
        let mode = match flags.contains(OFlags::CREATE) {
            true => Mode::from_raw_mode(0o666),
            false => Mode::empty(),
        };
        let open = || rustix::fs::openat2(&self.descriptor, path, flags, mode, resolve);
        loop {
            match open() {
                // Something was renamed meanwhile: the kernel asks to try again.
                Err(Errno::AGAIN | Errno::INTR) => {}
                done => return done,
            }
        }
    }

    /// A directory beneath this one.
    fn directory(&self, path: &str) -> Result<OwnedFd, Errno> {
        let path = if path.is_empty() { "." } else { path };
        self.beneath(path, OFlags::RDONLY | OFlags::DIRECTORY)
    }

    /// A directory beneath this one, made if it is not there.
    fn make_directory(&self, path: &str) -> Result<OwnedFd, Errno> {
        match self.directory(path) {
            Err(Errno::NOENT) if !path.is_empty() => {}
            done => return done,
        }
        let (above, name) = path.rsplit_once('/').unwrap_or(("", path));
        let above = self.make_directory(above)?;
        match rustix::fs::mkdirat(above, name, Mode::from_raw_mode(0o777)) {
            Ok(()) | Err(Errno::EXIST) => self.directory(path),
            Err(errno) => Err(errno),
        }
    }
}

/// A temporary file. Dropping it without a rename removes it.
#[derive(Debug)]
struct TempFile<'a> {
    root: &'a Root,
    target: Target,
    name: String,
    /// Open until it is synced.
    file: Option<File>,
    written_bytes: u64,
    is_placed: bool,
}

impl<'a> TempFile<'a> {
    fn create(root: &'a Root, target: &Target, number: &mut u64) -> Result<Self, CliError> {
        let failed =
            |errno: Errno| CliError::local(format!("create the file of {}", target.key), errno);
        let (directory, _) = target.split();
        root.make_directory(directory).map_err(failed)?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL;
        loop {
            *number += 1;
            let name = format!(".forebay-{}-{number}.part", std::process::id());
            let path =
                if directory.is_empty() { name.clone() } else { format!("{directory}/{name}") };
            match root.beneath(&path, flags) {
                Ok(file) => {
                    return Ok(Self {
                        root,
                        target: target.clone(),
                        name,
                        file: Some(file.into()),
                        written_bytes: 0,
                        is_placed: false,
                    });
                }
                // Left behind by a process of this id that was killed.
                Err(Errno::EXIST) => {}
                Err(errno) => return Err(failed(errno)),
            }
        }
    }

    fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<(), CliError> {
        let Some(file) = &self.file else {
            return Err(CliError::internal("bytes came for a file that was complete"));
        };
        file.write_all_at(bytes, offset)
            .map_err(|error| CliError::local(format!("write {}", self.target.key), error))?;
        self.written_bytes += bytes.len() as u64;
        Ok(())
    }

    fn is_complete(&self) -> bool {
        self.written_bytes == self.target.bytes
    }

    /// Makes the data durable, checks the size, and closes.
    fn sync(&mut self) -> Result<(), CliError> {
        let Some(file) = self.file.take() else { return Ok(()) };
        let failed = |error| CliError::local(format!("sync {}", self.target.key), error);
        file.sync_all().map_err(failed)?;
        match file.metadata().map_err(failed)?.len() == self.target.bytes {
            true => Ok(()),
            false => Err(CliError::internal("a file has another size than what was written")),
        }
    }

    /// Gives it its name, in place of what had it.
    fn place(mut self) -> Result<Written, CliError> {
        self.sync()?;
        let (directory, name) = self.target.split();
        let placed = self
            .root
            .directory(directory)
            .and_then(|directory| rustix::fs::renameat(&directory, &self.name, &directory, name));
        placed.map_err(|errno| CliError::local(format!("replace {}", self.target.key), errno))?;
        self.is_placed = true;
        Ok(Written {
            key: self.target.key.clone(),
            path: format!("{}/{}", self.root.path, self.target.key),
            bytes: self.target.bytes,
        })
    }
}

impl Drop for TempFile<'_> {
    fn drop(&mut self) {
        if self.is_placed {
            return;
        }
        let (directory, _) = self.target.split();
        if let Ok(directory) = self.root.directory(directory) {
            // Its directory is gone or read-only now: then so is the file, or nothing can be done.
            rustix::fs::unlinkat(directory, &self.name, AtFlags::empty()).ok();
        }
    }
}

/// The thread's work.
pub(crate) fn write(feed: Feed<Item>, plan: Plan) -> Result<Vec<Written>, CliError> {
    let Plan { root, mut objects } = plan;
    let mut writer = Writer { root: &root, number: 0, open: HashMap::new(), complete: Vec::new() };
    for item in feed {
        match item {
            Item::Chunk(chunk) => writer.chunk(chunk, &mut objects)?,
            Item::Commit => {
                writer.empty_files(&objects)?;
                return writer.commit();
            }
        }
    }
    Err(CliError::internal("the load ended before its files were complete"))
}

struct Writer<'a> {
    root: &'a Root,
    /// Of the last temporary file.
    number: u64,
    open: HashMap<ObjectIndex, TempFile<'a>>,
    complete: Vec<TempFile<'a>>,
}

impl<'a> Writer<'a> {
    /// Writes a chunk, and gives it back before anything is synced.
    fn chunk(
        &mut self,
        chunk: Chunk,
        objects: &mut HashMap<ObjectIndex, Target>,
    ) -> Result<(), CliError> {
        for extent in chunk.extents() {
            let index = extent.object();
            if let Some(target) = objects.remove(&index) {
                let file = TempFile::create(self.root, &target, &mut self.number)?;
                self.open.insert(index, file);
            }
            let Some(file) = self.open.get_mut(&index) else {
                return Err(CliError::internal("bytes came for an object nobody asked for"));
            };
            file.write(extent.offset(), extent.bytes())?;
            if file.is_complete() {
                self.complete.extend(self.open.remove(&index));
            }
        }
        chunk.release();
        let unsynced = self.complete.iter_mut().rev().take_while(|file| file.file.is_some());
        unsynced.skip(UNSYNCED_MAX).try_for_each(TempFile::sync)
    }

    /// Objects without bytes come in no chunk.
    fn empty_files(&mut self, objects: &HashMap<ObjectIndex, Target>) -> Result<(), CliError> {
        for target in objects.values() {
            let file = TempFile::create(self.root, target, &mut self.number)?;
            self.complete.push(file);
        }
        Ok(())
    }

    /// Names the files, then makes their names durable.
    fn commit(self) -> Result<Vec<Written>, CliError> {
        let Self { root, open, mut complete, .. } = self;
        if !open.is_empty() || !complete.iter().all(TempFile::is_complete) {
            return Err(CliError::internal("an object misses bytes"));
        }
        complete.iter_mut().try_for_each(TempFile::sync)?;
        let directories: BTreeSet<String> =
            complete.iter().map(|file| file.target.split().0.to_owned()).collect();
        let mut written =
            complete.into_iter().map(TempFile::place).collect::<Result<Vec<_>, _>>()?;
        for directory in directories {
            let synced = root.directory(&directory).and_then(rustix::fs::fsync);
            synced.map_err(|errno| CliError::local(format!("sync {directory}"), errno))?;
        }
        written.sort_by(|a, b| a.key.cmp(&b.key));
        Ok(written)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_that_are_no_paths_are_refused() {
        let check = |keys: &[&'static str]| check_keys(keys.iter().copied());
        check(&["a", "b/c", "b/d e/%2e%2e", "ü", "...", "b/.x"]).unwrap();
        for bad in ["", "/", "/a", "a/", "a//b", ".", "..", "../a", "a/../b", "a/.", "./a"] {
            assert_eq!(check(&[bad]).unwrap_err().exit_code(), 2, "{bad}");
        }
        check(&["a", "a"]).unwrap_err();
        check(&["a/b/c", "a"]).unwrap_err();
        check(&["a/b", "a.b"]).unwrap();
    }

    fn target(key: &str, bytes: u64) -> Target {
        Target { key: key.to_owned(), bytes }
    }

    fn written(root: &Root, key: &str, bytes: &[u8]) -> Result<Written, CliError> {
        let mut file = TempFile::create(root, &target(key, bytes.len() as u64), &mut 0)?;
        file.write(0, bytes)?;
        file.place()
    }

    #[test]
    fn a_file_is_replaced_as_a_whole() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::open(&dir.path().join("new/dir")).unwrap();
        let first = written(&root, "a/b c/d", b"one").unwrap();
        assert_eq!(fs::read(&first.path).unwrap(), b"one");
        written(&root, "a/b c/d", b"two").unwrap();
        assert_eq!(fs::read(&first.path).unwrap(), b"two");
        let names = fs::read_dir(dir.path().join("new/dir/a/b c")).unwrap();
        assert_eq!(names.count(), 1, "no temporary file is left");
    }

    #[test]
    fn a_link_is_not_followed_and_one_in_the_way_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let (inside, outside) = (dir.path().join("in"), dir.path().join("out"));
        fs::create_dir_all(&inside).unwrap();
        fs::create_dir_all(&outside).unwrap();
        fs::write(outside.join("f"), "theirs").unwrap();
        std::os::unix::fs::symlink(&outside, inside.join("link")).unwrap();
        std::os::unix::fs::symlink(outside.join("f"), inside.join("f")).unwrap();
        let root = Root::open(&inside).unwrap();
        written(&root, "link/x", b"ours").unwrap_err();
        written(&root, "f", b"ours").unwrap();
        assert_eq!(fs::read(outside.join("f")).unwrap(), b"theirs");
        assert_eq!(fs::read(inside.join("f")).unwrap(), b"ours");
        assert_eq!(fs::read_dir(&outside).unwrap().count(), 1);
    }

    #[test]
    fn what_is_dropped_is_removed_and_a_wrong_size_is_never_placed() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::open(dir.path()).unwrap();
        let mut file = TempFile::create(&root, &target("x", 5), &mut 0).unwrap();
        file.write(0, b"abc").unwrap();
        assert!(!file.is_complete());
        file.place().unwrap_err();
        drop(TempFile::create(&root, &target("y", 5), &mut 0).unwrap());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_leftover_of_the_same_name_is_stepped_over() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::open(dir.path()).unwrap();
        let first = TempFile::create(&root, &target("x", 0), &mut 0).unwrap();
        let second = TempFile::create(&root, &target("y", 0), &mut 0).unwrap();
        assert_ne!(first.name, second.name);
    }
}
