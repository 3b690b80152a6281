//! Objects that are stored in parts, until they are whole or given up.
//!
//! S3 and Google begin an upload and name it; its parts are put together in the order of their
//! numbers, and all but the last have at least 5 MiB. Azure has blocks that wait, by blob and name,
//! until a list of them makes a blob. What waits is not to be seen in any other way.

use std::collections::BTreeMap;

use bytes::{Bytes, BytesMut};
use forebay_origin::Checksums;
use md5::{Digest, Md5};

use crate::content::{Content, hex};
use crate::contents::Contents;

/// The smallest part that is not the last.
const PART_BYTES_MIN: usize = 5 << 20;

/// What waits to be put together.
#[derive(Debug, Default)]
pub(crate) struct Uploads {
    begun: u64,
    pending: BTreeMap<String, Pending>,
    /// By container and blob, then by name.
    blocks: BTreeMap<(String, String), BTreeMap<String, Bytes>>,
}

#[derive(Debug)]
struct Pending {
    bucket: String,
    key: String,
    parts: BTreeMap<u32, Bytes>,
}

/// Why parts do not become an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unfit {
    NoUpload,
    Part,
    TooSmall,
}

impl Contents {
    /// Uploads that were begun and neither finished nor given up, and blobs with blocks that wait.
    pub fn unfinished(&self) -> usize {
        let shelf = self.shelf();
        shelf.uploads.pending.len() + shelf.uploads.blocks.len()
    }

    /// Begins an upload; its name.
    pub(crate) fn begin(&self, bucket: &str, key: &str) -> String {
        let mut shelf = self.shelf();
        shelf.uploads.begun += 1;
        let id = format!("upload-{}", shelf.uploads.begun);
        let (bucket, key) = (bucket.to_owned(), key.to_owned());
        shelf.uploads.pending.insert(id.clone(), Pending { bucket, key, parts: BTreeMap::new() });
        id
    }

    /// Takes a part, in place of the one of that number; its tag.
    pub(crate) fn part(&self, id: &str, number: u32, bytes: Bytes) -> Result<String, Unfit> {
        let mut shelf = self.shelf();
        let pending = shelf.uploads.pending.get_mut(id).ok_or(Unfit::NoUpload)?;
        let tag = tag_of(&bytes);
        pending.parts.insert(number, bytes);
        Ok(tag)
    }

    /// Makes an object of the parts with these numbers and tags; the object's tag.
    pub(crate) fn complete(&self, id: &str, wanted: &[(u32, String)]) -> Result<String, Unfit> {
        let mut shelf = self.shelf();
        let pending = shelf.uploads.pending.get(id).ok_or(Unfit::NoUpload)?;
        let (mut whole, mut tags, mut last) = (BytesMut::new(), Md5::new(), 0);
        for (at, (number, tag)) in wanted.iter().enumerate() {
            let part = pending.parts.get(number).filter(|part| tag_of(part) == *tag);
            let part = part.filter(|_| *number > last).ok_or(Unfit::Part)?;
            if at + 1 < wanted.len() && part.len() < PART_BYTES_MIN {
                return Err(Unfit::TooSmall);
            }
            whole.extend_from_slice(part);
            tags.update(Md5::digest(part));
            last = *number;
        }
        if wanted.is_empty() {
            return Err(Unfit::Part);
        }
        let etag = format!("{}-{}", hex(&tags.finalize()), wanted.len());
        let (bucket, key) = (pending.bucket.clone(), pending.key.clone());
        shelf.uploads.pending.remove(id);
        let content = Content::Bytes(whole.freeze());
        shelf.store(&bucket, &key, content, etag.clone(), Checksums::default());
        Ok(etag)
    }

    /// Forgets an upload; answers whether there was one.
    pub(crate) fn give_up(&self, id: &str) -> bool {
        self.shelf().uploads.pending.remove(id).is_some()
    }

    /// Keeps a block of a blob.
    pub(crate) fn block(&self, container: &str, blob: &str, name: &str, bytes: Bytes) {
        let place = (container.to_owned(), blob.to_owned());
        let mut shelf = self.shelf();
        shelf.uploads.blocks.entry(place).or_default().insert(name.to_owned(), bytes);
    }

    /// Makes a blob of blocks, and forgets all others that wait for it.
    pub(crate) fn commit(&self, container: &str, blob: &str, names: &[String]) -> Option<()> {
        let mut shelf = self.shelf();
        let place = (container.to_owned(), blob.to_owned());
        let blocks = shelf.uploads.blocks.get(&place)?;
        let mut whole = BytesMut::new();
        for name in names {
            whole.extend_from_slice(blocks.get(name)?);
        }
        shelf.uploads.blocks.remove(&place);
        // Azure's tags are no digests.
        let etag = format!("0x{:016X}", shelf.versions + 1);
        let content = Content::Bytes(whole.freeze());
        shelf.store(container, blob, content, etag, Checksums::default());
        Some(())
    }
}

fn tag_of(part: &[u8]) -> String {
    hex(&Md5::digest(part))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_become_an_object_in_their_order_or_not_at_all() {
        let contents = Contents::new();
        let id = contents.begin("b", "k");
        let large = Bytes::from(vec![1; PART_BYTES_MIN]);
        let second = contents.part(&id, 2, Bytes::from_static(b"end")).unwrap();
        let first = contents.part(&id, 1, large.clone()).unwrap();
        let parts = |tags: &[(u32, &String)]| {
            tags.iter().map(|(number, tag)| (*number, (*tag).clone())).collect::<Vec<_>>()
        };
        for (unfit, wanted) in [
            (Unfit::Part, parts(&[])),
            (Unfit::Part, parts(&[(1, &second)])),
            (Unfit::Part, parts(&[(3, &first)])),
            (Unfit::TooSmall, parts(&[(2, &second), (3, &first)])),
        ] {
            assert_eq!(contents.complete(&id, &wanted), Err(unfit));
        }
        assert!(contents.content("b", "k").is_none() && contents.unfinished() == 1);
        let etag = contents.complete(&id, &parts(&[(1, &first), (2, &second)])).unwrap();
        assert!(etag.ends_with("-2"), "{etag}");
        let whole = contents.content("b", "k").unwrap();
        assert!(whole.matches(0, &[&large[..], b"end"].concat()));
        assert_eq!(contents.part(&id, 1, large), Err(Unfit::NoUpload));
        assert!(contents.unfinished() == 0 && !contents.give_up(&id));
    }
}
