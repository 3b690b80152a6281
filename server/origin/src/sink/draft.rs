//! Files that have not their names yet, and what is left of those whose process was killed.
//!
//! A draft has a name that nobody else has, and is locked (`flock`) as long as its process lives:
//! the lock goes with the process, however that ends. So one that is not locked is nobody's any
//! more. Where locks are known to one machine only, or between the making of a file and its lock,
//! that is not so: one that was written to lately is left alone in any case. How late it is, the
//! file system says, with the time of a file that was just made. Listings leave out all drafts.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustix::fs::{
    AtFlags, Dir, FileType, FlockOperation, Mode, OFlags, flock, openat, renameat, unlinkat,
};
use rustix::io::Errno;

use crate::file::FileThreads;
use crate::pin::Pin;

const MODE: Mode = Mode::from_raw_mode(0o644);
/// How long nothing was written to what is taken for a dead process's.
const LEFT_AFTER: Duration = Duration::from_secs(60 * 60);

const PREFIX: &str = ".forebay-";
const SUFFIX: &str = ".part";

/// A file that has not its name yet.
#[derive(Debug)]
pub(super) struct Draft {
    pub(super) file: Arc<File>,
    folder: Arc<OwnedFd>,
    /// The name that it has meanwhile.
    name: String,
    writers: Arc<FileThreads>,
    /// It has its own name now, or is being removed.
    placed: bool,
}

/// Whether a file's name is one that drafts have.
pub(crate) fn is_name(name: &str) -> bool {
    let digits = name.strip_prefix(PREFIX).and_then(|rest| rest.strip_suffix(SUFFIX));
    digits.is_some_and(|digits| {
        digits.len() == 16 && digits.bytes().all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f'))
    })
}

impl Draft {
    pub(super) fn new(folder: OwnedFd, writers: Arc<FileThreads>) -> io::Result<Self> {
        let mut random = [0; 8];
        getrandom::fill(&mut random).map_err(|error| io::Error::other(error.to_string()))?;
        let name = format!("{PREFIX}{:016x}{SUFFIX}", u64::from_le_bytes(random));
        let new = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let file = openat(&folder, &*name, new | OFlags::NOFOLLOW, MODE)?;
        if let Err(error) = flock(&file, FlockOperation::NonBlockingLockExclusive) {
            // Whoever sweeps a folder without locks cannot have one either, and leaves it.
            tracing::debug!(name, %error, "a file that is being written to is not locked");
        }
        let (file, folder) = (Arc::new(File::from(file)), Arc::new(folder));
        Ok(Self { file, folder, name, writers, placed: false })
    }

    /// Gives it its own name, for good.
    pub(super) fn place(&mut self, name: &str) -> io::Result<Pin> {
        self.file.sync_all()?;
        renameat(&*self.folder, &*self.name, &*self.folder, name)?;
        self.placed = true;
        rustix::fs::fsync(&*self.folder)?;
        let last_modified = Some(self.file.metadata()?.modified()?);
        Ok(Pin { last_modified, ..Pin::default() })
    }

    /// The work of removing it.
    pub(super) fn clear(&mut self) -> impl FnOnce() + Send + 'static {
        self.placed = true;
        let (folder, file) = (Arc::clone(&self.folder), Arc::clone(&self.file));
        let name = std::mem::take(&mut self.name);
        move || {
            if let Err(error) = unlinkat(&*folder, &*name, AtFlags::empty()) {
                tracing::warn!(name, %error, "a file that was given up could not be removed");
            }
            // The bytes are freed when the last handle goes: here, not where it was dropped.
            drop(file);
        }
    }

    /// Removes it, here and now, unless it has its own name.
    pub(super) fn clear_unplaced(&mut self) {
        if !self.placed {
            self.clear()();
        }
    }

    /// Removes what killed processes left beside it. Nothing depends on that.
    pub(super) fn sweep(&self) {
        if let Err(error) = self.sweep_folder() {
            tracing::debug!(%error, "what was left in a folder could not be looked for");
        }
    }

    fn sweep_folder(&self) -> io::Result<()> {
        let now = self.file.metadata()?.modified()?;
        for entry in Dir::read_from(&*self.folder)? {
            let entry = entry?;
            let Ok(name) = entry.file_name().to_str() else { continue };
            if !is_name(name) || name == self.name {
                continue;
            }
            match remove_left(&self.folder, name, now) {
                Ok(true) => tracing::info!(name, "removed what a killed process had written"),
                // It is being written to, or somebody else was faster.
                Ok(false) | Err(Errno::WOULDBLOCK | Errno::NOENT) => {}
                Err(error) => tracing::debug!(name, %error, "an old file is left where it is"),
            }
        }
        Ok(())
    }
}

/// Removes a draft if it is nobody's, and says whether it was.
fn remove_left(folder: &OwnedFd, name: &str, now: SystemTime) -> Result<bool, Errno> {
    let is_file = |mode| FileType::from_raw_mode(mode) == FileType::RegularFile;
    let beside = rustix::fs::statat(folder, name, AtFlags::SYMLINK_NOFOLLOW)?;
    if !is_file(beside.st_mode) {
        return Ok(false);
    }
    // NFS wants a file that it locks to be open for writing.
    let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = File::from(openat(folder, name, flags, Mode::empty())?);
    flock(&file, FlockOperation::NonBlockingLockExclusive)?;
    // Only now: it may have been written to before its process ended.
    let modified = file.metadata().and_then(|meta| meta.modified());
    let idle = modified.ok().and_then(|modified| now.duration_since(modified).ok());
    if idle.is_none_or(|idle| idle < LEFT_AFTER) {
        return Ok(false);
    }
    unlinkat(folder, name, AtFlags::empty())?;
    Ok(true)
}

impl Drop for Draft {
    fn drop(&mut self) {
        if !self.placed {
            let clear = self.clear();
            Arc::clone(&self.writers).run_later(Box::new(clear));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_drafts_are_taken_for_such() {
        assert!(is_name(".forebay-0123456789abcdef.part"));
        for other in [
            "forebay-0123456789abcdef.part",
            ".forebay-0123456789abcde.part",
            ".forebay-0123456789abcdef0.part",
            ".forebay-0123456789ABCDEF.part",
            ".forebay-0123456789abcdeg.part",
            ".forebay-0123456789abcdef.part2",
            ".forebay-.part",
            ".forebay-0123456789abcdef",
            "",
        ] {
            assert!(!is_name(other), "{other}");
        }
    }
}
