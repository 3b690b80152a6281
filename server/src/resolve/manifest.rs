//! The manifest: what a URI named at one moment, with every version pinned.
//!
//! Built only by [`Resolver`](super::Resolver). Its digest is the *revision*: BLAKE3 over the
//! identities of its objects. An identity binds origin, key, size and the store's ETag, version or
//! time of change: never a name and a size alone. A store that gives none of them cannot be pinned;
//! its objects get an identity of their own each time, so nothing of them is shared or kept as known.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use forebay_origin::{ObjectKey, ObjectMeta, OriginStore, Pin};

use super::safetensors::TensorEntry;

/// The digest of what a checkpoint is made of.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Revision(pub(crate) [u8; 32]);

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "b3:{}", blake3::Hash::from_bytes(self.0).to_hex())
    }
}

impl fmt::Debug for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// One object of a checkpoint.
#[derive(Debug, Clone)]
pub(crate) struct Object {
    /// Its key in the store.
    pub(crate) key: ObjectKey,
    /// Its name relative to the checkpoint.
    pub(crate) name: String,
    /// Its size.
    pub(crate) bytes: u64,
    /// The version that is served.
    pub(crate) pin: Pin,
    /// The digest of all of that.
    pub(crate) identity: [u8; 32],
}

/// One tensor of a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Tensor {
    /// Index into the objects.
    pub(crate) object: usize,
    /// Where and what.
    pub(crate) entry: TensorEntry,
}

/// What a URI resolved to. Second witness of the path.
#[derive(Debug)]
pub(crate) struct Manifest {
    uri: String,
    revision: Revision,
    objects: Vec<Object>,
    tensors: Arc<Vec<Tensor>>,
    bytes: u64,
    store: Arc<dyn OriginStore>,
}

impl Manifest {
    pub(super) fn new(
        uri: String,
        objects: Vec<Object>,
        tensors: Arc<Vec<Tensor>>,
        store: Arc<dyn OriginStore>,
    ) -> Self {
        let bytes = objects.iter().map(|object| object.bytes).sum();
        Self { uri, revision: revision_of(&objects), objects, tensors, bytes, store }
    }

    /// The URI in its canonical form, without a query.
    pub(crate) fn uri(&self) -> &str {
        &self.uri
    }

    /// The digest of the whole.
    pub(crate) fn revision(&self) -> Revision {
        self.revision
    }

    /// In the order of their keys.
    pub(crate) fn objects(&self) -> &[Object] {
        &self.objects
    }

    /// In the order of objects and, within one, of their bytes.
    pub(crate) fn tensors(&self) -> &[Tensor] {
        &self.tensors
    }

    /// Bytes of all objects.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Where the bytes come from.
    pub(crate) fn store(&self) -> &Arc<dyn OriginStore> {
        &self.store
    }
}

/// The revision of a set of objects.
pub(super) fn revision_of(objects: &[Object]) -> Revision {
    let mut hasher = blake3::Hasher::new();
    for object in objects {
        hasher.update(&object.identity);
        field(&mut hasher, object.name.as_bytes());
    }
    Revision(*hasher.finalize().as_bytes())
}

/// Makes an object of what the store said of it.
pub(super) fn object_of(origin: &str, name: String, meta: ObjectMeta) -> Object {
    static UNPINNED: AtomicU64 = AtomicU64::new(0);
    let ObjectMeta { key, bytes, pin } = meta;
    let mut hasher = blake3::Hasher::new();
    field(&mut hasher, origin.as_bytes());
    field(&mut hasher, key.as_str().as_bytes());
    hasher.update(&bytes.to_le_bytes());
    field(&mut hasher, pin.etag.as_deref().unwrap_or_default().as_bytes());
    field(&mut hasher, pin.version.as_deref().unwrap_or_default().as_bytes());
    let modified = pin.last_modified.and_then(|at| at.duration_since(SystemTime::UNIX_EPOCH).ok());
    match (&pin.etag, &pin.version, modified) {
        // An ETag identifies; the time beside it may differ between replicas of a store.
        (Some(_), ..) | (_, Some(_), _) => {}
        (None, None, Some(at)) => {
            hasher.update(&at.as_nanos().to_le_bytes());
        }
        (None, None, None) => {
            hasher.update(&UNPINNED.fetch_add(1, Ordering::Relaxed).to_le_bytes());
            hasher.update(&std::process::id().to_le_bytes());
        }
    }
    Object { key, name, bytes, pin, identity: *hasher.finalize().as_bytes() }
}

/// Hashes a field with its length, so that fields cannot run into each other.
fn field(hasher: &mut blake3::Hasher, bytes: &[u8]) {
    hasher.update(&(bytes.len() as u64).to_le_bytes());
    hasher.update(bytes);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn meta(key: &str, bytes: u64, etag: Option<&str>) -> ObjectMeta {
        let pin = Pin { etag: etag.map(str::to_owned), version: None, last_modified: None };
        ObjectMeta { key: ObjectKey::parse(key).unwrap(), bytes, pin }
    }

    fn identity(origin: &str, key: &str, bytes: u64, etag: Option<&str>) -> [u8; 32] {
        object_of(origin, key.to_owned(), meta(key, bytes, etag)).identity
    }

    #[test]
    fn identity_is_more_than_name_and_size() {
        let base = identity("s3://b", "k", 5, Some("\"e\""));
        assert_eq!(base, identity("s3://b", "k", 5, Some("\"e\"")));
        assert_ne!(base, identity("s3://c", "k", 5, Some("\"e\"")));
        assert_ne!(base, identity("s3://b", "l", 5, Some("\"e\"")));
        assert_ne!(base, identity("s3://b", "k", 6, Some("\"e\"")));
        assert_ne!(base, identity("s3://b", "k", 5, Some("\"f\"")));
        assert_ne!(identity("s3://bk", "", 5, None), identity("s3://b", "k", 5, None));
    }

    #[test]
    fn what_cannot_be_pinned_is_never_the_same_twice() {
        assert_ne!(identity("http://h", "k", 5, None), identity("http://h", "k", 5, None));
    }
}
