//! The manifest: what a URI named at one moment, with every version pinned.
//!
//! Built only by [`Resolver`](super::Resolver). Its digest is the *revision*: BLAKE3 over the
//! identities of its objects. An identity binds origin, key, size and the store's ETag, version or
//! time of change: never a name and a size alone. A store that gives none of them cannot be pinned,
//! nor can an object whose query may select it unless an ETag or version names it: such objects get
//! an identity of their own each time, so nothing of them is shared or recorded.

use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use forebay_codec::coding::Coding;
use forebay_codec::tensor::TensorEntry;
use forebay_origin::{ObjectKey, ObjectMeta, OriginStore, Pin};

use crate::proof::ObjectDigest;

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
    /// Whether the same bytes can be asked for again: the store names this version, or digests do.
    pub(crate) pinned: bool,
    /// How the store has its bytes.
    pub(crate) content: Content,
    /// What is known of all its bytes, if anything is.
    pub(crate) checksum: Option<ObjectDigest>,
}

impl Object {
    /// The size of what the store has.
    pub(crate) fn stored_bytes(&self) -> u64 {
        match &self.content {
            Content::Plain | Content::Digested(_) => self.bytes,
            Content::Framed(coding) => coding.stored_bytes(),
            Content::Stream(stream) => stream.stored_bytes,
        }
    }
}

/// How the bytes of an object lie in what the store has.
#[derive(Debug, Clone)]
pub(crate) enum Content {
    /// As they are.
    Plain,
    /// As they are, and digests of them are known, frame by frame.
    Digested(Arc<Coding>),
    /// In frames that are decoded one by one.
    Framed(Arc<Coding>),
    /// In frames so large that they are decoded in pieces, from the beginning.
    Stream(StreamCoding),
}

/// An object that is one stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct StreamCoding {
    /// Bytes of what the store has.
    pub(crate) stored_bytes: u64,
}

impl Content {
    /// Whether digests of all its bytes are known, frame by frame.
    pub(crate) fn has_digests(&self) -> bool {
        match self {
            Self::Digested(_) => true,
            Self::Framed(coding) => coding.frames().first().is_some_and(|f| f.digest.is_some()),
            Self::Plain | Self::Stream(_) => false,
        }
    }

    /// The digest of the digests of all its frames, if each has one.
    fn digests(&self) -> Option<[u8; 32]> {
        let (Self::Digested(coding) | Self::Framed(coding)) = self else { return None };
        let mut hasher = blake3::Hasher::new();
        for frame in coding.frames() {
            hasher.update(&frame.plain_bytes.to_le_bytes());
            hasher.update(&frame.digest?);
        }
        Some(*hasher.finalize().as_bytes())
    }
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

/// Where an object was found: the origin's name, and whether a query helped to select it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Found<'a> {
    /// Scheme and bucket or host.
    pub(super) origin: &'a str,
    /// Whether the URI has a query.
    pub(super) by_query: bool,
}

/// Makes an object of what the store said of it.
pub(super) fn object_of(
    found: Found<'_>,
    name: String,
    meta: ObjectMeta,
) -> Result<Object, getrandom::Error> {
    let ObjectMeta { key, bytes, pin, checksums } = meta;
    let mut hasher = blake3::Hasher::new();
    field(&mut hasher, found.origin.as_bytes());
    field(&mut hasher, key.as_str().as_bytes());
    hasher.update(&bytes.to_le_bytes());
    field(&mut hasher, pin.etag.as_deref().unwrap_or_default().as_bytes());
    field(&mut hasher, pin.version.as_deref().unwrap_or_default().as_bytes());
    let strong =
        pin.version.is_some() || pin.etag.as_ref().is_some_and(|tag| !tag.starts_with("W/"));
    let modified = pin.last_modified.and_then(|at| at.duration_since(SystemTime::UNIX_EPOCH).ok());
    // A strong tag identifies; the time beside it may differ between replicas of a store.
    if let Some(modified) = modified.filter(|_| !strong) {
        hasher.update(&modified.as_nanos().to_le_bytes());
    }
    let pinned = strong || (!found.by_query && (modified.is_some() || pin.etag.is_some()));
    if !pinned {
        let mut nonce = [0; 16];
        getrandom::fill(&mut nonce)?;
        hasher.update(&nonce);
    }
    let identity = *hasher.finalize().as_bytes();
    let checksum = ObjectDigest::best_of(&checksums);
    Ok(Object { key, name, bytes, pin, identity, pinned, content: Content::Plain, checksum })
}

/// Makes an object whose store has it in another form: `name`, its size and its content are those
/// of what it decodes to. Where the digests of all its bytes are known, they are its identity,
/// wherever it lies in its origin: other bytes do not fit them. Another origin's manifest does not
/// name them.
pub(super) fn coded_object(
    origin: &str,
    stored: Object,
    name: String,
    (bytes, content): (u64, Content),
) -> Object {
    let mut hasher = blake3::Hasher::new();
    let digests = content.digests();
    match &digests {
        Some(digests) => {
            field(&mut hasher, b"content");
            field(&mut hasher, origin.as_bytes());
            hasher.update(digests);
        }
        None => {
            field(&mut hasher, b"decoded");
            hasher.update(&stored.identity);
        }
    }
    hasher.update(&bytes.to_le_bytes());
    let identity = *hasher.finalize().as_bytes();
    let pinned = stored.pinned || digests.is_some();
    // The store's checksum is of what it stores.
    Object { name, bytes, content, identity, pinned, checksum: None, ..stored }
}

/// Hashes a field with its length, so that fields cannot run into each other.
fn field(hasher: &mut blake3::Hasher, bytes: &[u8]) {
    hasher.update(&(bytes.len() as u64).to_le_bytes());
    hasher.update(bytes);
}

#[cfg(test)]
mod tests {
    use forebay_origin::Checksums;

    use super::*;

    fn meta(key: &str, bytes: u64, etag: Option<&str>) -> ObjectMeta {
        let pin = Pin { etag: etag.map(str::to_owned), version: None, last_modified: None };
        let checksums = Checksums::default();
        ObjectMeta { key: ObjectKey::parse(key).unwrap(), bytes, pin, checksums }
    }

    fn found(origin: &str) -> Found<'_> {
        Found { origin, by_query: false }
    }

    fn identity(origin: &str, key: &str, bytes: u64, etag: Option<&str>) -> [u8; 32] {
        object_of(found(origin), key.to_owned(), meta(key, bytes, etag)).unwrap().identity
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
    fn content_is_known_by_its_digests_within_its_origin() {
        let frame = |digest: u8| forebay_codec::coding::Frame {
            stored_offset: 0,
            stored_bytes: 5,
            plain_offset: 0,
            plain_bytes: 5,
            digest: Some([digest; 32]),
        };
        let coded = |origin: &str, key: &str, digest: u8| {
            let stored = object_of(found(origin), key.into(), meta(key, 5, Some("\"e\""))).unwrap();
            let coding = Coding::new(5, 5, vec![frame(digest)], Vec::new(), 0).unwrap();
            let content = Content::Digested(Arc::new(coding));
            coded_object(origin, stored, key.into(), (5, content)).identity
        };
        let base = coded("s3://b", "k", 1);
        assert_eq!(base, coded("s3://b", "l", 1));
        assert_ne!(base, coded("s3://c", "k", 1));
        assert_ne!(base, coded("s3://b", "k", 2));
    }

    #[test]
    fn what_cannot_be_pinned_is_never_the_same_twice() {
        assert_ne!(identity("http://h", "k", 5, None), identity("http://h", "k", 5, None));
        assert!(!object_of(found("http://h"), "k".into(), meta("k", 5, None)).unwrap().pinned);
    }

    #[test]
    fn a_query_that_may_select_the_object_needs_a_strong_tag() {
        let by_query = Found { origin: "http://h", by_query: true };
        let timed = || {
            let mut meta = meta("get", 5, None);
            meta.pin.last_modified = Some(SystemTime::UNIX_EPOCH);
            meta
        };
        let object = |found| object_of(found, "get".into(), timed()).unwrap();
        assert!(object(found("http://h")).pinned);
        assert!(!object(by_query).pinned);
        assert_ne!(object(by_query).identity, object(by_query).identity);
        let tagged = object_of(by_query, "get".into(), meta("get", 5, Some("\"e\""))).unwrap();
        assert!(tagged.pinned);
        let weak = object_of(by_query, "get".into(), meta("get", 5, Some("W/\"e\""))).unwrap();
        assert!(!weak.pinned);
    }
}
