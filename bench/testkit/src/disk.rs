//! Temporary directories, and content written to files: a `file` origin, or a baseline to compare.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::os::fd::AsFd;
use std::path::Path;

use tempfile::TempDir;

use crate::checkpoint::Checkpoint;
use crate::content::Content;

/// A directory that is gone when the handle is dropped, with a path short enough for a socket.
///
/// # Panics
/// If the system's directory for temporary files cannot be written to.
pub fn temp_dir() -> TempDir {
    tempfile::Builder::new().prefix("fb-").tempdir().expect("a temporary directory can be made")
}

/// Writes content to a file, in place of what it held; directories are made as needed.
pub fn write_content(path: &Path, content: &Content) -> io::Result<()> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    let mut out = BufWriter::with_capacity(1 << 20, File::create(path)?);
    let mut written = Ok(());
    content.visit(0..content.len(), &mut |piece| {
        if written.is_ok() {
            written = out.write_all(piece);
        }
    });
    written.and_then(|()| out.flush())
}

/// Writes the files of a checkpoint into a directory.
pub fn write_checkpoint(directory: &Path, checkpoint: &Checkpoint) -> io::Result<()> {
    for (name, content) in checkpoint.files() {
        write_content(&directory.join(name), content)?;
    }
    Ok(())
}

/// How many pages of a file are in the page cache, if the kernel tells. Asking brings none in.
pub fn cached_pages(file: &File) -> Option<u64> {
    let length = file.metadata().ok()?.len();
    forebay_io::cache_state(file.as_fd(), 0..length).ok().map(|state| state.cached_pages)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::{CheckpointSpec, checkpoint};

    #[test]
    fn a_checkpoint_on_disk_has_the_bytes_of_its_contents() {
        let directory = temp_dir();
        let made = checkpoint(CheckpointSpec::new(3, 2 << 20).shards(2));
        write_checkpoint(&directory.path().join("m"), &made).unwrap();
        for (name, content) in made.files() {
            let bytes = fs::read(directory.path().join("m").join(name)).unwrap();
            assert!(content.matches(0, &bytes) && content.len() == bytes.len() as u64, "{name}");
        }
        let path = directory.path().to_owned();
        drop(directory);
        assert!(!path.exists());
    }
}
