//! Resolve: from a URI to an immutable [`Manifest`].
//!
//! A URI names one object, or all objects under a prefix, or, ending in `.safetensors.index.json`,
//! the index and the shards it names. Without a trailing slash the exact key is tried first, then
//! the prefix. Every object is pinned as the store described it at that moment; later stages ask
//! for exactly that version.
//!
//! Objects whose name ends in `.safetensors` or `.gguf` get their header read (see [`safetensors`]
//! and [`gguf`]); all others are plain objects. Tensor indexes are kept for the last
//! [`INDEXES_MAX`] revisions, so that a warm load asks the store for a listing and for nothing
//! else. What was read of an object for that is also given to a [`HeaderCache`], if there is one,
//! and asked of it first: after a restart too (see [`headers`]).

mod beside;
mod gguf;
mod headers;
mod index;
mod known;
mod manifest;
mod packed;
mod saved;
mod zst;

use std::collections::VecDeque;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

use forebay_codec::decode::DecodeError;
use forebay_codec::manifest::{MANIFEST_NAME, ManifestError, PackManifest};
use forebay_codec::safetensors::{self, HeaderError};
use forebay_codec::tensor::TensorEntry;
use forebay_origin::{
    ObjectMeta, OriginError, OriginErrorKind, OriginStore, OriginUri, Origins, ReadRequest,
    ReadTerms, UriError,
};
use forebay_proto::{Failure, Reason};
use futures::StreamExt;
use tokio::sync::OnceCell;
use tokio::time::Instant;

use crate::admission::AdmissionPermit;
use crate::cpu::{Stopped, Workers};
use crate::error::origin_failure;
use beside::{Beside, Missing};
use headers::Headers;
use manifest::Found;
use packed::Packed;

pub(crate) use headers::HeaderCache;
pub(crate) use known::KnownDigests;
pub(crate) use manifest::{Content, Manifest, Object, Revision, Tensor};
#[cfg(test)]
pub(crate) use saved::manifest_at;
pub(crate) use saved::saved;

/// Objects of a checkpoint.
const OBJECTS_MAX: usize = 100_000;

/// Bytes of a checkpoint: more than any node's NVMe.
const CHECKPOINT_BYTES_MAX: u64 = 64 << 40;

/// Tensors of a checkpoint, over all objects.
const TENSORS_MAX: usize = 2 << 20;

/// Bytes of headers of a checkpoint, over all objects: some hundred times the largest published.
const HEADER_BYTES_TOTAL_MAX: u64 = 256 << 20;

/// Bytes of an index file; the largest published ones have a few MB.
const INDEX_BYTES_MAX: u64 = 64 << 20;

/// Headers read at one time.
const HEADERS_AT_ONCE: usize = 16;

/// First read of a header: most are smaller, so one request is enough.
const HEADER_GUESS_BYTES: u64 = 64 << 10;

/// Manifests of packed checkpoints that are kept.
const MANIFESTS_MAX: usize = 16;

/// Revisions whose tensor index is kept.
const INDEXES_MAX: usize = 64;

const INDEX_SUFFIX: &str = ".safetensors.index.json";
const SAFETENSORS_SUFFIX: &str = ".safetensors";
const GGUF_SUFFIX: &str = ".gguf";

/// Why a URI cannot be resolved.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ResolveError {
    /// Not a URI of an origin.
    #[error(transparent)]
    Uri(#[from] UriError),
    /// The origin failed.
    #[error(transparent)]
    Origin(#[from] OriginError),
    /// Neither an object nor anything under it as a prefix.
    #[error("{uri} names no object, and nothing lies under it")]
    Nothing {
        /// As asked for, without a query.
        uri: String,
    },
    /// A header is not what the format asks for.
    #[error("{key}: {problem}")]
    Header {
        /// The object.
        key: String,
        /// What is wrong.
        problem: HeaderError,
    },
    /// An object is compressed, and cannot be decoded.
    #[error("{key} cannot be decoded: {problem}")]
    Frames {
        /// The object.
        key: String,
        /// What is wrong, and where.
        problem: DecodeError,
    },
    /// A pack manifest is not what the format asks for.
    #[error("{key}: {problem}")]
    Manifest {
        /// The manifest.
        key: String,
        /// What is wrong.
        problem: ManifestError,
    },
    /// A packed checkpoint, where one that is not is wanted.
    #[error("{uri} is packed already: it has a {MANIFEST_NAME}")]
    Packed {
        /// As asked for, without a query.
        uri: String,
    },
    /// A pack manifest names an object that is not there.
    #[error("{key} is not there, although the manifest of the packed checkpoint names it")]
    PackedMissing {
        /// The object, as it is stored.
        key: String,
    },
    /// A packed object is not as long as its manifest says.
    #[error("{key} has {bytes} bytes, and the manifest of the packed checkpoint says {expected}")]
    PackedSize {
        /// The object, as it is stored.
        key: String,
        /// As the store has it.
        bytes: u64,
        /// As the manifest says.
        expected: u64,
    },
    /// Something else under the name of a pack manifest.
    #[error("{key} is no manifest of a packed checkpoint")]
    NoManifest {
        /// The object.
        key: String,
    },
    /// A packed object of which no manifest says how its bytes lie.
    #[error("{key} was packed, and its {MANIFEST_NAME} is missing or not to be read")]
    Unmanifested {
        /// The object, as it is stored.
        key: String,
    },
    /// The daemon is going away.
    #[error(transparent)]
    Stopped(#[from] Stopped),
    /// The system gives no random bytes.
    #[error("no random bytes for an object's identity: {0}")]
    Random(#[from] getrandom::Error),
    /// More than a checkpoint may have.
    #[error("{uri} has more than {limit} {what}")]
    Limit {
        /// As asked for, without a query.
        uri: String,
        /// What there is too much of.
        what: &'static str,
        /// The limit.
        limit: u64,
    },
}

impl From<ResolveError> for Failure {
    fn from(error: ResolveError) -> Self {
        let message = error.to_string();
        match error {
            ResolveError::Uri(_) => Self::new(Reason::BadUri, message),
            ResolveError::Origin(error) => origin_failure(error),
            ResolveError::Packed { .. } => Self::new(Reason::BadRequest, message),
            ResolveError::Nothing { .. } => Self::new(Reason::ObjectNotFound, message),
            ResolveError::Header { key, .. }
            | ResolveError::Unmanifested { key }
            | ResolveError::NoManifest { key } => {
                Self::new(Reason::DecodeFailed, message).for_object(&key)
            }
            ResolveError::Frames { key, problem } => Self::new(Reason::DecodeFailed, message)
                .for_object(&key)
                .with_fact("stored_offset", problem.stored_offset),
            ResolveError::Manifest { key, problem } => {
                let reason = match problem {
                    ManifestError::Digest => Reason::DigestMismatch,
                    _ => Reason::DecodeFailed,
                };
                Self::new(reason, message).for_object(&key)
            }
            ResolveError::PackedMissing { key } => {
                Self::new(Reason::ObjectNotFound, message).for_object(&key)
            }
            ResolveError::PackedSize { key, .. } => {
                Self::new(Reason::Truncated, message).for_object(&key)
            }
            ResolveError::Stopped(stopped) => stopped.into(),
            ResolveError::Random(_) => Self::new(Reason::Internal, message),
            ResolveError::Limit { .. } => {
                Self::new(Reason::LimitExceeded, &message).with_quota(message)
            }
        }
        .at_stage("resolve")
    }
}

type TensorIndex = Arc<Vec<Tensor>>;

/// The resolve stage.
#[derive(Debug)]
pub(crate) struct Resolver {
    origins: Arc<Origins>,
    headers: Headers,
    known: Arc<dyn KnownDigests>,
    missing: Missing,
    /// The last manifests of packed checkpoints, by the identity of what the store has.
    manifests: Mutex<VecDeque<([u8; 32], Arc<PackManifest>)>>,
    indexes: Mutex<VecDeque<(Revision, Arc<OnceCell<TensorIndex>>)>>,
    /// What was found out about the last compressed objects.
    scans: zst::Scans,
}

impl Resolver {
    /// A stage that reads from `origins`, or from what was kept of them, and parses on `cpu`.
    pub(crate) fn new(
        origins: Arc<Origins>,
        cpu: Arc<Workers>,
        kept: Option<Arc<dyn HeaderCache>>,
        known: Arc<dyn KnownDigests>,
    ) -> Self {
        let headers = Headers::new(cpu, kept);
        let (manifests, indexes) = (Mutex::default(), Mutex::default());
        let (missing, scans) = (Missing::default(), zst::Scans::default());
        Self { origins, headers, known, missing, manifests, indexes, scans }
    }

    /// Resolves `uri` as it is now, with reads on these terms. The permit bounds how many do so at
    /// a time.
    pub(crate) async fn resolve(
        &self,
        _permit: &AdmissionPermit,
        uri: &str,
        terms: &ReadTerms,
    ) -> Result<Arc<Manifest>, ResolveError> {
        self.resolved(uri, terms, false).await
    }

    /// The same, but every object is what the store has of it: nothing is decoded, and a packed
    /// checkpoint is refused.
    pub(crate) async fn resolve_as_stored(
        &self,
        _permit: &AdmissionPermit,
        uri: &str,
        terms: &ReadTerms,
    ) -> Result<Arc<Manifest>, ResolveError> {
        self.resolved(uri, terms, true).await
    }

    async fn resolved(
        &self,
        uri: &str,
        terms: &ReadTerms,
        as_stored: bool,
    ) -> Result<Arc<Manifest>, ResolveError> {
        let uri = OriginUri::parse(uri)?;
        let store = self.origins.open(&uri)?;
        let listing = Listing { resolver: self, uri: &uri, store: &*store, terms, as_stored };
        let Listed { mut objects, packed } = listing.objects().await?;
        if as_stored && packed.is_some() {
            return Err(ResolveError::Packed { uri: uri.to_string() });
        }
        objects.sort_by(|a, b| a.name.cmp(&b.name));
        objects.dedup_by(|a, b| a.name == b.name);
        let total = objects.iter().try_fold(0_u64, |sum, object| sum.checked_add(object.bytes));
        if total.is_none_or(|total| total > CHECKPOINT_BYTES_MAX) {
            return Err(listing.limit("bytes", CHECKPOINT_BYTES_MAX));
        }
        // One reader per revision: eight loads of one checkpoint read its headers once.
        let revision = manifest::revision_of(&objects);
        let index =
            self.index_of(packed.as_ref().map_or(revision, |packed| packed.place(revision)));
        let tensors = index.get_or_try_init(|| listing.tensors(&objects, packed.as_ref()));
        let (tensors, known) = futures::join!(tensors, listing.known(&objects));
        let tensors = Arc::clone(tensors?);
        for (index, digest) in known {
            if let Some(object) = objects.get_mut(index) {
                object.checksum = Some(digest);
            }
        }
        let manifest = Manifest::new(uri.to_string(), objects, tensors, Arc::clone(&store));
        self.trim_indexes();
        Ok(Arc::new(manifest))
    }

    fn manifest_of(&self, identity: &[u8; 32]) -> Option<Arc<PackManifest>> {
        let manifests = self.manifests.lock().unwrap_or_else(PoisonError::into_inner);
        let (_, manifest) = manifests.iter().find(|(known, _)| known == identity)?;
        Some(Arc::clone(manifest))
    }

    fn remember_manifest(&self, identity: [u8; 32], manifest: &Arc<PackManifest>) {
        let mut manifests = self.manifests.lock().unwrap_or_else(PoisonError::into_inner);
        manifests.retain(|(known, _)| *known != identity);
        manifests.push_back((identity, Arc::clone(manifest)));
        if manifests.len() > MANIFESTS_MAX {
            manifests.pop_front();
        }
    }

    /// The place of a revision's tensor index; the most recently used ones are kept.
    fn index_of(&self, revision: Revision) -> Arc<OnceCell<TensorIndex>> {
        let mut indexes = self.indexes.lock().unwrap_or_else(PoisonError::into_inner);
        let known = indexes.iter().position(|(known, _)| *known == revision);
        let entry = known.and_then(|at| indexes.remove(at));
        let entry = entry.unwrap_or_else(|| (revision, Arc::default()));
        let index = Arc::clone(&entry.1);
        indexes.push_back(entry);
        index
    }

    fn trim_indexes(&self) {
        let mut indexes = self.indexes.lock().unwrap_or_else(PoisonError::into_inner);
        let size = |index: &OnceCell<TensorIndex>| index.get().map_or(0, |tensors| tensors.len());
        let mut total: usize = indexes.iter().map(|(_, index)| size(index)).sum();
        while indexes.len() > INDEXES_MAX || (total > TENSORS_MAX && indexes.len() > 1) {
            total -= indexes.pop_front().map_or(0, |(_, index)| size(&index));
        }
    }
}

/// What a URI names.
struct Listed {
    objects: Vec<Object>,
    /// What is known of them, if they are packed.
    packed: Option<Packed>,
}

impl From<Vec<Object>> for Listed {
    fn from(objects: Vec<Object>) -> Self {
        Self { objects, packed: None }
    }
}

/// One resolution: what is asked, and of whom.
struct Listing<'a> {
    resolver: &'a Resolver,
    uri: &'a OriginUri,
    store: &'a dyn OriginStore,
    terms: &'a ReadTerms,
    /// Whether compressed objects stay what they are.
    as_stored: bool,
}

impl Listing<'_> {
    /// The objects that the URI names.
    async fn objects(&self) -> Result<Listed, ResolveError> {
        if !self.uri.is_prefix() {
            match self.store.head(self.uri.key()).await {
                Ok(meta) => return self.one(meta).await,
                Err(error) if error.kind == OriginErrorKind::NotFound => {}
                Err(error) => return Err(error.into()),
            }
        }
        let prefix = self.uri.key();
        let listed = self.store.list(prefix, OBJECTS_MAX).await;
        let nothing = match &listed {
            Ok(listed) => listed.is_empty(),
            Err(error) => error.kind == OriginErrorKind::NotFound,
        };
        if nothing
            && !self.uri.is_prefix()
            && let Some(packed) = self.one_packed(prefix, packed::FOLDERS_MAX).await?
        {
            return Ok(packed);
        }
        let listed = listed?;
        if nothing {
            return Err(ResolveError::Nothing { uri: self.uri.to_string() });
        }
        if let Some(packed) = self.packed(prefix, &listed).await? {
            return Ok(packed);
        }
        let objects = listed
            .into_iter()
            .map(|meta| {
                let name = meta.key.relative_to(prefix).unwrap_or(meta.key.as_str()).to_owned();
                self.object(name, meta)
            })
            .collect::<Result<Vec<Object>, _>>()?;
        Ok(self.decoded(objects).await?.into())
    }

    /// What a single object stands for.
    async fn one(&self, meta: ObjectMeta) -> Result<Listed, ResolveError> {
        let name = meta.key.file_name();
        if name == MANIFEST_NAME {
            return self.packed_at(meta).await;
        }
        let (name, key) = (name.to_owned(), meta.key.clone());
        let object = self.object(name.clone(), meta.clone())?;
        let is_coded = name.ends_with(packed::SUFFIX);
        let missing = &self.resolver.missing;
        // Only what is decoded may have to be looked at with a manifest to be right.
        let looked = missing.is_missing(&object.identity, Beside::Manifest, Instant::now());
        if is_coded || !looked {
            let folders = if is_coded { packed::FOLDERS_MAX } else { 1 };
            if let Some(packed) = self.one_packed(&key, folders).await? {
                return Ok(packed);
            }
            missing.note(object.identity, Beside::Manifest, Instant::now());
        }
        if name.ends_with(INDEX_SUFFIX) {
            return Ok(self.indexed(meta).await?.into());
        }
        Ok(self.decoded(vec![object]).await?.into())
    }

    fn object(&self, name: String, meta: ObjectMeta) -> Result<Object, ResolveError> {
        let found = Found { origin: &self.uri.origin(), by_query: self.uri.has_query() };
        Ok(manifest::object_of(found, name, meta)?)
    }

    /// The tensors of all objects: as the manifest of packed ones says, else from their headers.
    async fn tensors(
        &self,
        objects: &[Object],
        packed: Option<&Packed>,
    ) -> Result<TensorIndex, ResolveError> {
        if let Some(packed) = packed {
            let tensors = packed.tensors(objects);
            return match tensors.len() <= TENSORS_MAX {
                true => Ok(Arc::new(tensors)),
                false => Err(self.limit("tensors", TENSORS_MAX as u64)),
            };
        }
        let of_format = |(_, object): &(usize, &Object)| {
            object.name.ends_with(SAFETENSORS_SUFFIX) || object.name.ends_with(GGUF_SUFFIX)
        };
        let header = |(index, object)| async move {
            let object: &Object = object;
            let (entries, bytes) = match object.name.ends_with(GGUF_SUFFIX) {
                true => self.gguf_header(object).await?,
                false => self.header(object).await?,
            };
            let of_object = move |entry| Tensor { object: index, entry };
            Ok::<_, ResolveError>((entries.into_iter().map(of_object), bytes))
        };
        let headers: Vec<_> = objects.iter().enumerate().filter(of_format).map(header).collect();
        let mut headers = futures::stream::iter(headers).buffered(HEADERS_AT_ONCE);
        let mut tensors = Vec::new();
        let mut total = 0;
        while let Some(header) = headers.next().await {
            let (more, header_bytes) = header?;
            tensors.extend(more);
            total += header_bytes;
            if tensors.len() > TENSORS_MAX {
                return Err(self.limit("tensors", TENSORS_MAX as u64));
            }
            if total > HEADER_BYTES_TOTAL_MAX {
                return Err(self.limit("bytes of headers", HEADER_BYTES_TOTAL_MAX));
            }
        }
        Ok(Arc::new(tensors))
    }

    /// The tensors of one object, and the size of its header.
    async fn header(&self, object: &Object) -> Result<(Vec<TensorEntry>, u64), ResolveError> {
        let object_bytes = object.bytes;
        let parse = move |bytes: &[u8]| {
            let entries = safetensors::parse_whole(bytes, object_bytes)?;
            Ok::<_, HeaderError>((entries, bytes.len() as u64))
        };
        match self.resolver.headers.kept(object, parse).await? {
            Some(kept) => Ok(kept),
            None => self.fresh_header(object).await,
        }
    }

    /// What the origin has for a header, and its size.
    async fn fresh_header(&self, object: &Object) -> Result<(Vec<TensorEntry>, u64), ResolveError> {
        let headers = &self.resolver.headers;
        let bad = |problem| ResolveError::Header { key: object.name.clone(), problem };
        let short = || bad(HeaderError::TooShort(object.bytes));
        let guess = HEADER_GUESS_BYTES.min(object.bytes);
        let mut room = self.room_for(object, 0, guess).await?;
        let mut bytes = self.read_decoded(object, 0, guess).await?;
        let prefix = bytes.first_chunk().copied().ok_or_else(short)?;
        let end = safetensors::PREFIX_BYTES
            + safetensors::header_bytes(prefix, object.bytes).map_err(bad)?;
        let have = bytes.len() as u64;
        if end > have {
            // Whoever has room asks for no more.
            drop(room);
            room = self.room_for(object, have, end).await?;
            bytes.extend(self.read_decoded(object, have, end).await?);
        }
        bytes.truncate(usize::try_from(end).map_err(|_wide| short())?);
        let object_bytes = object.bytes;
        let parse = move |bytes: &[u8]| safetensors::parse_whole(bytes, object_bytes);
        let (parsed, bytes) = headers.parsed(bytes, parse).await?;
        let entries = parsed.map_err(bad)?;
        headers.keep(object, bytes);
        drop(room);
        Ok((entries, end))
    }

    async fn read(&self, object: &Object, begin: u64, end: u64) -> Result<Vec<u8>, ResolveError> {
        Ok(self.read_from(object, begin, end).await?.0)
    }

    /// A range of what the store has of an object, and the address it came from, if it is one.
    async fn read_from(
        &self,
        object: &Object,
        begin: u64,
        end: u64,
    ) -> Result<(Vec<u8>, Option<IpAddr>), ResolveError> {
        let length = usize::try_from(end - begin).unwrap_or(usize::MAX);
        let mut bytes = vec![0; length];
        if length == 0 {
            return Ok((bytes, None));
        }
        let request = ReadRequest {
            key: object.key.clone(),
            pin: object.pin.clone(),
            object_bytes: object.stored_bytes(),
            range: begin..end,
        };
        let into = bytes.as_mut_slice().into();
        let record = self.store.read_on(&request, self.terms.clone(), into).await?;
        Ok((bytes, record.source()))
    }

    fn limit(&self, what: &'static str, limit: u64) -> ResolveError {
        ResolveError::Limit { uri: self.uri.to_string(), what, limit }
    }
}

/// A manifest of objects `(name, bytes)` and tensors `(name, object, offset, bytes)` over no store.
#[cfg(test)]
pub(crate) fn manifest_for_tests(
    objects: &[(&str, u64)],
    tensors: &[(&str, usize, u64, u64)],
) -> Arc<Manifest> {
    use forebay_origin::{Checksums, ObjectKey, OriginSettings, Pin, SystemResolver};

    let origins = Origins::new(OriginSettings::default(), Arc::new(SystemResolver)).unwrap();
    let store = origins.open(&OriginUri::parse("file:///nowhere/").unwrap()).unwrap();
    let objects = objects
        .iter()
        .map(|(name, bytes)| {
            let key = ObjectKey::parse(name).unwrap();
            let pin = Pin { etag: Some("\"e\"".into()), version: None, last_modified: None };
            let found = Found { origin: "test://", by_query: false };
            let meta = ObjectMeta { key, bytes: *bytes, pin, checksums: Checksums::default() };
            manifest::object_of(found, (*name).into(), meta).unwrap()
        })
        .collect();
    let tensors = tensors
        .iter()
        .map(|(name, object, offset, bytes)| Tensor {
            object: *object,
            entry: TensorEntry {
                name: (*name).into(),
                dtype: "U8".into(),
                shape: vec![*bytes],
                offset: *offset,
                bytes: *bytes,
            },
        })
        .collect();
    Arc::new(Manifest::new("test://checkpoint".into(), objects, Arc::new(tensors), store))
}
