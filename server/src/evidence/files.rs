//! Files of the kernel that are read again and again: opened once, then read from their start.
//!
//! The kernel makes such a file's text anew for each read at its start, and opening costs more than
//! that. A descriptor keeps meaning what it was opened on: its process, its cgroup, its device.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// Nothing that is read here comes close.
const TEXT_BYTES_MAX: usize = 256 << 10;

/// Where the kernel's file systems are; tests write their own.
#[derive(Debug, Clone)]
pub(crate) struct Roots {
    /// For `/proc`.
    pub(crate) proc: PathBuf,
    /// For `/sys`.
    pub(crate) sys: PathBuf,
}

impl Roots {
    /// This machine's.
    pub(crate) fn system() -> Self {
        Self { proc: "/proc".into(), sys: "/sys".into() }
    }

    /// The place of an absolute path of the machine.
    pub(super) fn place(&self, path: &Path) -> PathBuf {
        path.strip_prefix("/sys").map_or_else(|_| path.to_owned(), |below| self.sys.join(below))
    }

    /// A file of `/proc`, read once.
    pub(super) fn read_proc(&self, name: &str) -> io::Result<String> {
        std::fs::read_to_string(self.proc.join(name))
    }

    /// A file of `/sys`, read once.
    pub(super) fn read_sys(&self, name: &str) -> io::Result<String> {
        std::fs::read_to_string(self.sys.join(name))
    }
}

/// What texts are read into.
#[derive(Debug)]
pub(super) struct TextBuffer(Vec<u8>);

impl TextBuffer {
    pub(super) fn new() -> Self {
        Self(vec![0; 16 << 10])
    }
}

/// A file that is kept open.
#[derive(Debug)]
pub(super) struct KeptFile {
    path: PathBuf,
    file: io::Result<File>,
}

impl KeptFile {
    pub(super) fn open(path: PathBuf) -> Self {
        let file = File::open(&path);
        Self { path, file }
    }

    /// What it says; none if it cannot be read.
    pub(super) fn read<'a>(&self, buffer: &'a mut TextBuffer) -> Option<&'a str> {
        self.try_read(buffer).ok()
    }

    /// Why it cannot be read, in words; none if it can.
    pub(super) fn why_not(&self) -> Option<String> {
        let error = self.try_read(&mut TextBuffer::new()).err()?;
        Some(format!("{}: {error}", self.path.display()))
    }

    pub(super) fn try_read<'a>(&self, buffer: &'a mut TextBuffer) -> io::Result<&'a str> {
        let file = self.file.as_ref().map_err(|error| io::Error::from(error.kind()))?;
        let TextBuffer(bytes) = buffer;
        let mut filled = 0;
        // Long files come a page at a time.
        while filled < TEXT_BYTES_MAX {
            if filled == bytes.len() {
                bytes.resize(filled * 2, 0);
            }
            let at = u64::try_from(filled).unwrap_or(u64::MAX);
            match file.read_at(&mut bytes[filled..], at) {
                Ok(0) => {
                    let text = std::str::from_utf8(&bytes[..filled]);
                    return text.map_err(|_| io::Error::from(io::ErrorKind::InvalidData));
                }
                Ok(read) => filled += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Err(io::Error::from(io::ErrorKind::FileTooLarge))
    }
}
