//! The destination of a pack: a folder of an object store or of this machine, and what lies in it.
//!
//! The daemon writes with its own rights and credentials. Who may have it write is decided here:
//! files only for its own uid and for root, to whom they belong anyway. What lies beside a packed
//! checkpoint is never touched.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use forebay_codec::manifest::PackedSource;
use forebay_origin::{
    ObjectKey, ObjectMeta, OriginErrorKind, OriginSink, OriginStore, OriginUri, Origins, Pin,
    ReadRequest, ReadTerms, Scheme,
};

use super::PackError;

/// Objects that may lie at a destination: twice those of a checkpoint, and as many of others.
const LISTED_MAX: usize = 300_000;

/// The folder that a URI names as a destination, if this uid may have it written to.
pub(super) fn destination(text: &str, uid: u32) -> Result<OriginUri, PackError> {
    let uri = OriginUri::parse(text)?;
    match uri.scheme() {
        scheme if scheme.is_web() => return Err(PackError::Web),
        Scheme::File => {
            let own = rustix::process::geteuid().as_raw();
            if uid != own && uid != 0 {
                return Err(PackError::NotAllowed { uid, own });
            }
        }
        _ => {}
    }
    Ok(uri.with_key(uri.key().clone(), true))
}

/// Whether a folder is another one, or lies in it.
pub(super) fn is_in(inner: &OriginUri, outer: &OriginUri) -> bool {
    inner.origin() == outer.origin()
        && (inner.key() == outer.key() || inner.key().relative_to(outer.key()).is_some())
}

/// See the module's head.
#[derive(Debug)]
pub(super) struct Place {
    uri: OriginUri,
    sink: Arc<dyn OriginSink>,
    store: Arc<dyn OriginStore>,
    terms: ReadTerms,
}

impl Place {
    /// Opens it. Nothing is asked for yet.
    pub(super) fn open(
        origins: &Origins,
        uri: OriginUri,
        terms: ReadTerms,
    ) -> Result<Self, PackError> {
        let (sink, store) = (origins.open_sink(&uri)?, origins.open(&uri)?);
        Ok(Self { uri, sink, store, terms })
    }

    /// Its URI.
    pub(super) fn uri(&self) -> &OriginUri {
        &self.uri
    }

    /// What is written through.
    pub(super) fn sink(&self) -> &dyn OriginSink {
        &*self.sink
    }

    /// The key of a name in it.
    pub(super) fn key(&self, name: &str) -> Result<ObjectKey, PackError> {
        self.uri.key().join(name).map_err(|problem| PackError::Name {
            name: name.chars().take(120).collect(),
            problem: problem.to_string(),
        })
    }

    /// What lies in it, by name.
    pub(super) async fn listed(&self) -> Result<BTreeMap<String, ObjectMeta>, PackError> {
        let prefix = self.uri.key();
        let listed = match self.store.list(prefix, LISTED_MAX).await {
            Ok(listed) => listed,
            Err(error) if error.kind == OriginErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(error.into()),
        };
        let named = |meta: ObjectMeta| {
            let name = meta.key.relative_to(prefix)?.to_owned();
            Some((name, meta))
        };
        Ok(listed.into_iter().filter_map(named).collect())
    }

    /// What the store says of one object.
    pub(super) async fn head(&self, name: &str) -> Result<ObjectMeta, PackError> {
        Ok(self.store.head(&self.key(name)?).await?)
    }

    /// Writes a small object.
    pub(super) async fn put(&self, name: &str, bytes: Bytes) -> Result<(), PackError> {
        self.sink.put(&self.key(name)?, bytes).await?;
        Ok(())
    }

    /// Removes an object.
    pub(super) async fn delete(&self, name: &str) -> Result<(), PackError> {
        Ok(self.sink.delete(&self.key(name)?).await?)
    }

    /// Fills memory with a range of an object, as it was when it was listed.
    pub(super) async fn read(
        &self,
        meta: &ObjectMeta,
        range: Range<u64>,
        into: &mut [u8],
    ) -> Result<(), PackError> {
        let version = (&meta.key, &meta.pin, meta.bytes);
        read(&*self.store, version, range, (&self.terms, into)).await
    }

    /// A whole object, if it is not larger than that.
    pub(super) async fn whole(
        &self,
        meta: &ObjectMeta,
        most: u64,
    ) -> Result<Option<Vec<u8>>, PackError> {
        if meta.bytes > most {
            return Ok(None);
        }
        let mut bytes = vec![0; usize::try_from(meta.bytes).unwrap_or(0)];
        self.read(meta, 0..meta.bytes, &mut bytes).await?;
        Ok(Some(bytes))
    }
}

/// What makes a version of an object recognisable, as it is kept.
pub(super) fn facts(pin: &Pin, bytes: u64) -> PackedSource {
    let since = |at: SystemTime| at.duration_since(SystemTime::UNIX_EPOCH).ok();
    let modified_ms = pin.last_modified.and_then(since).map(|since| since.as_millis());
    PackedSource {
        etag: pin.etag.clone(),
        version: pin.version.clone(),
        modified_ms: modified_ms.and_then(|ms| u64::try_from(ms).ok()),
        bytes,
    }
}

/// Whether two descriptions are of the same version. What says nothing is never the same. A listing
/// may know less than a head, and the other way round.
pub(super) fn is_same(a: &PackedSource, b: &PackedSource) -> bool {
    let differ = |a: &Option<String>, b: &Option<String>| a.is_some() && b.is_some() && a != b;
    if a.bytes != b.bytes || differ(&a.etag, &b.etag) || differ(&a.version, &b.version) {
        return false;
    }
    let strong = a.etag.as_ref().is_some_and(|tag| !tag.starts_with("W/"));
    if (strong && a.etag == b.etag) || (a.version.is_some() && a.version == b.version) {
        return true;
    }
    a.modified_ms.is_some() && a.modified_ms == b.modified_ms
}

/// Fills memory with a range of one version of an object: its key, pin and size.
pub(super) async fn read(
    store: &dyn OriginStore,
    (key, pin, object_bytes): (&ObjectKey, &Pin, u64),
    range: Range<u64>,
    (terms, into): (&ReadTerms, &mut [u8]),
) -> Result<(), PackError> {
    if into.is_empty() {
        return Ok(());
    }
    let (key, pin) = (key.clone(), pin.clone());
    let request = ReadRequest { key, pin, object_bytes, range };
    store.read_on(&request, terms.clone(), into.into()).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(etag: Option<&str>, version: Option<&str>, modified_ms: Option<u64>) -> PackedSource {
        let text = |text: Option<&str>| text.map(str::to_owned);
        PackedSource { etag: text(etag), version: text(version), modified_ms, bytes: 5 }
    }

    #[test]
    fn the_same_version_is_recognised_and_nothing_else() {
        let same = [
            (of(Some("\"a\""), None, Some(1)), of(Some("\"a\""), Some("v"), Some(2))),
            (of(None, Some("v"), None), of(None, Some("v"), Some(2))),
            (of(None, None, Some(7)), of(None, None, Some(7))),
            (of(Some("W/\"a\""), None, Some(7)), of(Some("W/\"a\""), None, Some(7))),
        ];
        for (a, b) in same {
            assert!(is_same(&a, &b) && is_same(&b, &a), "{a:?} {b:?}");
            assert!(!is_same(&a, &PackedSource { bytes: 6, ..b }));
        }
        let other = [
            (of(Some("\"a\""), None, Some(1)), of(Some("\"b\""), None, Some(1))),
            (of(Some("\"a\""), Some("v"), None), of(Some("\"a\""), Some("w"), None)),
            (of(None, None, Some(7)), of(None, None, Some(8))),
            (of(Some("W/\"a\""), None, Some(7)), of(Some("W/\"a\""), None, Some(8))),
            (of(None, None, None), of(None, None, None)),
            (of(Some("\"a\""), None, None), of(None, None, None)),
        ];
        for (a, b) in other {
            assert!(!is_same(&a, &b) && !is_same(&b, &a), "{a:?} {b:?}");
        }
    }

    #[test]
    fn who_may_write_where() {
        let own = rustix::process::geteuid().as_raw();
        let uri = destination("s3://b/packed", 12_345).unwrap();
        assert!(uri.is_prefix() && uri.to_string().ends_with("packed/"), "{uri}");
        destination("file:///tmp/x", own).unwrap();
        destination("file:///tmp/x", 0).unwrap();
        let other = own.wrapping_add(77);
        let refused = destination("file:///tmp/x", other).unwrap_err();
        assert!(matches!(refused, PackError::NotAllowed { uid, .. } if uid == other));
        for web in ["http://h/x/", "https://h/x"] {
            assert!(matches!(destination(web, 0), Err(PackError::Web)), "{web}");
        }
        assert!(matches!(destination("nowhere", 0), Err(PackError::Uri(_))));
    }

    #[test]
    fn a_folder_is_in_itself_and_in_what_is_above() {
        let folder = |text: &str| destination(text, 0).unwrap();
        assert!(is_in(&folder("s3://b/a"), &folder("s3://b/a/")));
        assert!(is_in(&folder("s3://b/a/c"), &folder("s3://b/a/")));
        assert!(is_in(&folder("s3://b/a"), &folder("s3://b")));
        assert!(!is_in(&folder("s3://b/ab"), &folder("s3://b/a")));
        assert!(!is_in(&folder("s3://c/a"), &folder("s3://b/a")));
        assert!(!is_in(&folder("s3://b/a"), &folder("s3://b/a/c")));
    }
}
