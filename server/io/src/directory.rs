//! A directory that is ours, and what is done in it by name.
//!
//! Names are single components and never follow a symbolic link, so nothing here can be led out of
//! the directory, whoever plants what in it: `openat2` with RESOLVE_BENEATH and
//! RESOLVE_NO_SYMLINKS, or O_NOFOLLOW on kernels without it, which for one component says the same.
//! What is opened must be a file or directory of our own user that nobody else may change, with no
//! second name.
//!
//! Everything here blocks.

use std::ffi::OsString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::Path;

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, RenameFlags, ResolveFlags, Stat};
use rustix::io::Errno;

use crate::error::FileError;
use crate::file::{BufferedReason, DataFile, FileMode};

/// Ours alone.
const DIRECTORY_MODE: Mode = Mode::RWXU;
const FILE_MODE: Mode = Mode::RUSR.union(Mode::WUSR);

/// Others may not change what we rely on.
const OTHERS_WRITE: Mode = Mode::WGRP.union(Mode::WOTH);

/// What to do about a file that is there, or is not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Create {
    /// It must be there.
    Never,
    /// It must not be there.
    New,
    /// Whichever.
    IfMissing,
}

/// How to open a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OpenHow {
    /// Whether it will be written to. It can be read in any case.
    pub write: bool,
    /// What to do about a file that is there, or is not.
    pub create: Create,
    /// Whether to go past the page cache where that is possible.
    pub direct: bool,
}

impl OpenHow {
    /// To read, directly.
    pub const READ: Self = Self { write: false, create: Create::Never, direct: true };
    /// To write a file that is not there yet, directly.
    pub const NEW: Self = Self { write: true, create: Create::New, direct: true };

    fn flags(self) -> OFlags {
        let access = if self.write { OFlags::RDWR } else { OFlags::RDONLY };
        let create = match self.create {
            Create::Never => OFlags::empty(),
            Create::New => OFlags::CREATE | OFlags::EXCL,
            Create::IfMissing => OFlags::CREATE,
        };
        // NONBLOCK: should a pipe lie there, opening it must not wait for its other end.
        access | create | OFlags::NONBLOCK
    }
}

/// An open directory.
#[derive(Debug)]
pub struct Directory {
    descriptor: OwnedFd,
}

impl Directory {
    /// Opens a directory that an operator named. On the way there symbolic links are followed; the
    /// directory itself must be one that only our user can change.
    pub fn open(path: &Path) -> Result<Self, FileError> {
        let name = path.display().to_string();
        let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let descriptor = rustix::fs::open(path, flags, Mode::empty())
            .map_err(|errno| FileError::of_name("open a directory", &name, errno))?;
        check(descriptor.as_fd(), &name, FileType::Directory)?;
        Ok(Self { descriptor })
    }

    /// The same directory once more, wherever its path leads by now.
    pub fn try_clone(&self) -> Result<Self, FileError> {
        let descriptor = rustix::io::fcntl_dupfd_cloexec(&self.descriptor, 0)
            .map_err(|errno| FileError::system("open a directory once more", errno))?;
        Ok(Self { descriptor })
    }

    /// Opens a directory in this one; makes it if that is asked for.
    pub fn subdirectory(&self, name: &str, create: bool) -> Result<Self, FileError> {
        component(name)?;
        if create {
            match rustix::fs::mkdirat(&self.descriptor, name, DIRECTORY_MODE) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(errno) => return Err(FileError::of_name("make a directory", name, errno)),
            }
        }
        let flags = OFlags::DIRECTORY | OFlags::RDONLY;
        let descriptor = open_beneath(self.descriptor.as_fd(), name, flags, Mode::empty())
            .map_err(|errno| FileError::of_name("open a directory", name, errno))?;
        check(descriptor.as_fd(), name, FileType::Directory)?;
        Ok(Self { descriptor })
    }

    /// Opens a file. Where O_DIRECT does not work, the file is buffered: its mode says so.
    pub fn file(&self, name: &str, how: OpenHow) -> Result<DataFile, FileError> {
        component(name)?;
        if !how.direct {
            let descriptor = self.descriptor_of(name, how, how.flags())?;
            return Ok(DataFile::buffered(descriptor, BufferedReason::Asked));
        }
        let refused = match self.descriptor_of(name, how, how.flags() | OFlags::DIRECT) {
            Ok(descriptor) => match DataFile::direct(descriptor)? {
                Ok(file) => return Ok(file),
                Err(reason) => reason,
            },
            // Some filesystems make the file and only then refuse the flag.
            Err(FileError::System { source, .. })
                if source.raw_os_error() == Some(Errno::INVAL.raw_os_error()) =>
            {
                BufferedReason::Refused
            }
            Err(error) => return Err(error),
        };
        let again = match how.create {
            Create::New => how.flags() - OFlags::EXCL,
            Create::Never | Create::IfMissing => how.flags(),
        };
        let descriptor = self.descriptor_of(name, how, again)?;
        Ok(DataFile::buffered(descriptor, refused))
    }

    /// Opens a file in the mode that another one of this filesystem turned out to have: nothing is
    /// tried, so it costs no read.
    pub fn file_as(&self, name: &str, how: OpenHow, mode: FileMode) -> Result<DataFile, FileError> {
        component(name)?;
        let direct = match mode {
            FileMode::Direct { .. } => OFlags::DIRECT,
            FileMode::Buffered(_) => OFlags::empty(),
        };
        let descriptor = self.descriptor_of(name, how, how.flags() | direct)?;
        Ok(DataFile::in_mode(descriptor, mode))
    }

    fn descriptor_of(&self, name: &str, how: OpenHow, flags: OFlags) -> Result<OwnedFd, FileError> {
        let mode = if how.create == Create::Never { Mode::empty() } else { FILE_MODE };
        let descriptor = open_beneath(self.descriptor.as_fd(), name, flags, mode)
            .map_err(|errno| FileError::of_name("open a file", name, errno))?;
        check(descriptor.as_fd(), name, FileType::RegularFile)?;
        Ok(descriptor)
    }

    /// Removes a file; whether there was one.
    pub fn remove(&self, name: &str) -> Result<bool, FileError> {
        component(name)?;
        match rustix::fs::unlinkat(&self.descriptor, name, AtFlags::empty()) {
            Ok(()) => Ok(true),
            Err(Errno::NOENT) => Ok(false),
            Err(errno) => Err(FileError::of_name("remove a file", name, errno)),
        }
    }

    /// Gives a file of this directory another name, in this directory or another one. Never puts it
    /// in the place of a file that is there. Some filesystems cannot make sure of that (older NFS
    /// and FUSE); there it is looked at first, and what comes in between is replaced.
    pub fn rename(&self, from: &str, into: &Self, to: &str) -> Result<(), FileError> {
        component(from)?;
        component(to)?;
        let (old, new) = (&self.descriptor, &into.descriptor);
        let renamed = match rustix::fs::renameat_with(old, from, new, to, RenameFlags::NOREPLACE) {
            Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {
                rename_if_free((old.as_fd(), from), (new.as_fd(), to))
            }
            renamed => renamed,
        };
        renamed.map_err(|errno| {
            let name = if errno == Errno::EXIST { to } else { from };
            FileError::of_name("rename a file", name, errno)
        })
    }

    /// Puts a file of this directory in the place of another one, or of none, in one step: whoever
    /// looks finds the one or the other, whole.
    pub fn replace(&self, from: &str, to: &str) -> Result<(), FileError> {
        component(from)?;
        component(to)?;
        rustix::fs::renameat(&self.descriptor, from, &self.descriptor, to)
            .map_err(|errno| FileError::of_name("replace a file", from, errno))
    }

    /// How long a file is, without opening it: whatever lies there, and whoever made it.
    pub fn bytes_of(&self, name: &str) -> Result<u64, FileError> {
        component(name)?;
        let stat = rustix::fs::statat(&self.descriptor, name, AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|errno| FileError::of_name("look at a file", name, errno))?;
        Ok(u64::try_from(stat.st_size).unwrap_or(0))
    }

    /// Makes names that were made, removed or changed in this directory survive a crash.
    pub fn sync(&self) -> Result<(), FileError> {
        rustix::io::retry_on_intr(|| rustix::fs::fsync(&self.descriptor))
            .map_err(|errno| FileError::system("sync a directory", errno))
    }

    /// The names in this directory, in no order.
    pub fn names(&self) -> Result<Vec<OsString>, FileError> {
        let failed = |errno| FileError::system("list a directory", errno);
        let mut names = Vec::new();
        for entry in Dir::read_from(&self.descriptor).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let name = entry.file_name().to_bytes();
            if name != b"." && name != b".." {
                names.push(OsString::from_vec(name.to_vec()));
            }
        }
        Ok(names)
    }
}

impl AsFd for Directory {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

/// Renames where nothing lies yet, in two steps.
fn rename_if_free(
    (old, from): (BorrowedFd<'_>, &str),
    (new, to): (BorrowedFd<'_>, &str),
) -> Result<(), Errno> {
    match rustix::fs::statat(new, to, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(_) => Err(Errno::EXIST),
        Err(Errno::NOENT) => rustix::fs::renameat(old, from, new, to),
        Err(errno) => Err(errno),
    }
}

/// Refuses names that could lead elsewhere.
fn component(name: &str) -> Result<(), FileError> {
    let plain = !name.is_empty() && name != "." && name != ".." && !name.contains(['/', '\0']);
    if plain { Ok(()) } else { Err(FileError::BadName(name.escape_debug().to_string())) }
}

/// Opens one component, following no link.
fn open_beneath(
    directory: BorrowedFd<'_>,
    name: &str,
    flags: OFlags,
    mode: Mode,
) -> Result<OwnedFd, Errno> {
    let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    let opened =
        rustix::io::retry_on_intr(|| rustix::fs::openat2(directory, name, flags, mode, resolve));
    match opened {
        // Kernels before 5.6 do not know the call, and some seccomp filters forbid it. A name that
        // is truly forbidden is refused again.
        Err(Errno::NOSYS | Errno::PERM) => {
            rustix::io::retry_on_intr(|| rustix::fs::openat(directory, name, flags, mode))
        }
        opened => opened,
    }
}

/// Refuses what others made, can change, or can reach by another name.
fn check(descriptor: BorrowedFd<'_>, name: &str, expected: FileType) -> Result<(), FileError> {
    let stat = rustix::fs::fstat(descriptor)
        .map_err(|errno| FileError::system("look at a file", errno))?;
    match trouble(&stat, expected, rustix::process::geteuid().as_raw()) {
        Some(reason) => Err(FileError::Foreign { name: name.to_owned(), reason }),
        None => Ok(()),
    }
}

/// What is wrong with something for a process of user `own_uid`.
fn trouble(stat: &Stat, expected: FileType, own_uid: u32) -> Option<String> {
    let found = FileType::from_raw_mode(stat.st_mode);
    let mode = Mode::from_raw_mode(stat.st_mode);
    if found != expected {
        Some(format!("it is a {found:?} and should be a {expected:?}"))
    } else if stat.st_uid != own_uid {
        Some(format!("it belongs to uid {} and not to our own, {own_uid}: chown it", stat.st_uid))
    } else if mode.intersects(OTHERS_WRITE) {
        Some(format!("others may write to it (mode {:o}): chmod go-w", mode.as_raw_mode()))
    } else if expected == FileType::RegularFile && stat.st_nlink != 1 {
        Some(format!("it has {} names: remove it", stat.st_nlink))
    } else {
        None
    }
}

#[cfg(test)]
#[path = "directory_tests.rs"]
mod tests;
