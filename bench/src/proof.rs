//! What proves that a load handed over the right bytes: each is compared with what it has to be.

use forebay_client::Chunk;
use forebay_testkit::{Checkpoint, Content};

use crate::Outcome;

/// Compares every byte that a load hands over.
#[derive(Debug, Default)]
pub(crate) struct Proof {
    bytes: u64,
}

impl Proof {
    /// Compares a chunk.
    pub(crate) fn see(&mut self, chunk: &Chunk, made: &Checkpoint) -> Outcome<()> {
        for extent in chunk.extents() {
            let (key, bytes) = (extent.key(), extent.bytes());
            let content = made.file(key).ok_or_else(|| format!("{key} is of no checkpoint"))?;
            differ(key, content, extent.offset(), bytes)?;
            self.bytes += u64::try_from(bytes.len())?;
        }
        Ok(())
    }

    /// Chunks come once each, so that so many right bytes are all of them.
    pub(crate) fn end(self, made: &Checkpoint) -> Outcome<()> {
        if self.bytes == made.bytes() {
            return Ok(());
        }
        Err(format!("{} bytes were handed over of {}", self.bytes, made.bytes()).into())
    }
}

/// An error if the bytes are not those of the content at that offset.
pub(crate) fn differ(name: &str, content: &Content, offset: u64, bytes: &[u8]) -> Outcome<()> {
    match content.first_difference(offset, bytes) {
        None => Ok(()),
        Some(at) => Err(format!("{name} differs at byte {at}").into()),
    }
}
