//! The objects that a fake origin serves: buckets of keys, shared by every server over them.
//!
//! One lock guards the map; a request clones an `Arc` of the object it wants and never looks again,
//! so an object that is replaced while its body is being sent goes on being sent as it was, as a
//! real store does. Each put gives the object a new version number and a `Last-Modified` one second
//! later than every one before it. The entity tag is a digest of the content alone, as S3's is.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use forebay_origin::Checksums;
use md5::{Digest, Md5};

use crate::content::{Content, hex};
use crate::uploads::Uploads;

/// 2026-01-01T00:00:00Z: the `Last-Modified` of version 0.
const EPOCH_SECONDS: u64 = 1_767_225_600;

/// Objects by bucket and key. Clones share one map.
#[derive(Clone, Debug, Default)]
pub struct Contents(Arc<Mutex<Shelf>>);

#[derive(Debug, Default)]
pub(crate) struct Shelf {
    buckets: BTreeMap<String, BTreeMap<String, Arc<Object>>>,
    pub(crate) versions: u64,
    pub(crate) uploads: Uploads,
}

/// One version of one object.
#[derive(Debug)]
pub(crate) struct Object {
    pub(crate) content: Content,
    /// Without its quotes.
    pub(crate) etag: String,
    /// Counts every put of the origin; a GCS generation.
    pub(crate) version: u64,
    /// What is told of its bytes.
    pub(crate) checksums: Checksums,
}

/// One page of a listing.
#[derive(Debug)]
pub(crate) struct Page {
    pub(crate) objects: Vec<(String, Arc<Object>)>,
    /// The last key of the page, where more follow.
    pub(crate) next: Option<String>,
}

impl Object {
    /// Seconds since 1970 of the last change.
    pub(crate) fn modified_seconds(&self) -> u64 {
        EPOCH_SECONDS + self.version
    }
}

impl Shelf {
    /// Stores a new version of an object.
    pub(crate) fn store(
        &mut self,
        bucket: &str,
        key: &str,
        content: Content,
        etag: String,
        checksums: Checksums,
    ) {
        self.versions += 1;
        let object = Object { content, etag, version: self.versions, checksums };
        self.place(bucket, key, Arc::new(object));
    }

    /// Puts an object where it belongs.
    pub(crate) fn place(&mut self, bucket: &str, key: &str, object: Arc<Object>) {
        self.buckets.entry(bucket.to_owned()).or_default().insert(key.to_owned(), object);
    }
}

impl Contents {
    /// An empty set of objects.
    pub fn new() -> Self {
        Self::default()
    }

    /// Stores an object, in place of the one that was there, and makes the bucket if need be.
    pub fn put(&self, bucket: &str, key: &str, content: impl Into<Content>) {
        let content = content.into();
        let etag = entity_tag(&content);
        self.shelf().store(bucket, key, content, etag, Checksums::default());
    }

    /// Takes an object away; answers whether it was there.
    pub fn remove(&self, bucket: &str, key: &str) -> bool {
        let mut shelf = self.shelf();
        shelf.buckets.get_mut(bucket).is_some_and(|objects| objects.remove(key).is_some())
    }

    /// The content of an object.
    pub fn content(&self, bucket: &str, key: &str) -> Option<Content> {
        self.object(bucket, key).map(|object| object.content.clone())
    }

    /// Every object of a bucket whose key starts with `prefix`, by key, with its bytes.
    pub fn sizes(&self, bucket: &str, prefix: &str) -> Vec<(String, u64)> {
        let shelf = self.shelf();
        let objects = shelf.buckets.get(bucket).into_iter().flatten();
        let below = objects.filter(|(key, _)| key.starts_with(prefix));
        below.map(|(key, object)| (key.clone(), object.content.len())).collect()
    }

    /// The strong entity tag of an object, with its quotes.
    pub fn etag(&self, bucket: &str, key: &str) -> Option<String> {
        self.object(bucket, key).map(|object| format!("\"{}\"", object.etag))
    }

    pub(crate) fn has_bucket(&self, bucket: &str) -> bool {
        self.shelf().buckets.contains_key(bucket)
    }

    pub(crate) fn object(&self, bucket: &str, key: &str) -> Option<Arc<Object>> {
        self.shelf().buckets.get(bucket)?.get(key).cloned()
    }

    /// At most `limit` objects whose keys start with `prefix` and come after `after`, by key.
    pub(crate) fn page(
        &self,
        bucket: &str,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Page {
        let shelf = self.shelf();
        let none = BTreeMap::new();
        let from = after.map_or(prefix, |after| after.max(prefix)).to_owned();
        let mut found = (shelf.buckets.get(bucket).unwrap_or(&none))
            .range(from..)
            .skip_while(|(key, _)| after.is_some_and(|after| key.as_str() <= after))
            .take_while(|(key, _)| key.starts_with(prefix))
            .map(|(key, object)| (key.clone(), Arc::clone(object)));
        let objects: Vec<_> = found.by_ref().take(limit).collect();
        let last = objects.last().map(|(key, _)| key.clone());
        let next = last.filter(|_| found.next().is_some());
        Page { objects, next }
    }

    pub(crate) fn shelf(&self) -> MutexGuard<'_, Shelf> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// MD5 of bytes in memory, as S3's for a plain upload; synthetic content is named by its recipe,
/// so that a put never reads gigabytes, and has the look of an upload in parts: it is no MD5 of it.
fn entity_tag(content: &Content) -> String {
    match content {
        Content::Bytes(bytes) => hex(&Md5::digest(bytes)),
        Content::Concat(parts) => {
            let tags: String = parts.parts().iter().map(entity_tag).collect();
            format!("{}-1", hex(&Md5::digest(tags)))
        }
        recipe => format!("{}-1", hex(&Md5::digest(format!("{recipe:?}")))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_cover_a_prefix_once_and_in_order() {
        let contents = Contents::new();
        for key in ["a", "m/1", "m/2", "m/3", "m/4", "m0", "z"] {
            contents.put("b", key, key.to_owned());
        }
        let (mut after, mut seen) = (None, Vec::new());
        loop {
            let page = contents.page("b", "m/", after.as_deref(), 2);
            seen.extend(page.objects.into_iter().map(|(key, _)| key));
            after = page.next;
            if after.is_none() {
                break;
            }
        }
        assert_eq!(seen, ["m/1", "m/2", "m/3", "m/4"]);
    }

    #[test]
    fn a_replaced_object_has_another_tag_and_a_later_date() {
        let contents = Contents::new();
        contents.put("b", "k", "one");
        let before = contents.object("b", "k").unwrap();
        assert_eq!(contents.etag("b", "k").unwrap(), "\"f97c5d29941bfb1b2fdab0874906ab82\"");
        contents.put("b", "k", Content::synthetic(1, 3));
        let after = contents.object("b", "k").unwrap();
        assert_ne!(before.etag, after.etag);
        assert!(before.modified_seconds() < after.modified_seconds());
        assert!(contents.remove("b", "k") && !contents.remove("b", "k"));
    }
}
