//! Objects that the store has in another form: packed checkpoints, and plain `.zst` objects.
//!
//! A checkpoint is packed if there is a manifest at its root ([`MANIFEST_NAME`], written by
//! `forebay pack`). It is then what the manifest says, under the original names: what else lies
//! there is not part of it. A manifest proves itself by a digest of its own; one that does not is
//! read once more, another way, and then refused. Naming one packed object, by its original name or
//! by its stored one, gives that one, or an index and its shards; naming a folder in the checkpoint
//! gives what lies under it. For these the manifest is looked for in the folder and up to
//! [`FOLDERS_MAX`] above it, where something compressed, or nothing, is named; next to an object
//! that is stored as it is, in its folder only. What is found there by looking and is no manifest
//! (some web servers answer everything) is none.
//!
//! An object whose name ends in `.zst` is decoded, and loses that ending, unless another object has
//! that name already. How its frames lie is found out by [`scan`](super::scan).

use std::collections::HashMap;
use std::sync::Arc;

use forebay_codec::manifest::{MANIFEST_NAME, ManifestError, PackManifest, PackedObject};
use forebay_origin::{ObjectKey, ObjectMeta, OriginErrorKind};
use futures::{StreamExt, TryStreamExt};

use super::manifest::{Content, Object, Revision, Tensor, coded_object};
use super::{HEADERS_AT_ONCE, INDEX_SUFFIX, Listed, Listing, ResolveError};
use crate::metrics;

/// Bytes of a pack manifest: some 2 million chunks.
const MANIFEST_BYTES_MAX: u64 = 256 << 20;

/// How the names of compressed objects end.
pub(super) const SUFFIX: &str = ".zst";

/// Folders in which the manifest of a named object is looked for.
pub(super) const FOLDERS_MAX: usize = 16;

/// Of them side by side.
const FOLDERS_AT_ONCE: usize = 4;

/// How every manifest begins.
const MANIFEST_BEGINS: &[u8] = b"{\"format\"";

/// The manifest of a packed checkpoint, and which part of that is meant.
#[derive(Debug)]
pub(super) struct Packed {
    manifest: Arc<PackManifest>,
    /// Of the manifest, as the store has it.
    identity: [u8; 32],
    /// The folder that is the root of what is meant; empty, or with a slash at its end.
    base: String,
}

impl Packed {
    /// What the tensor index of these objects is kept under. Manifests may name the same bytes and
    /// other tensors.
    pub(super) fn place(&self, revision: Revision) -> Revision {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&revision.0).update(&self.identity);
        Revision(*hasher.finalize().as_bytes())
    }

    /// The tensors that the manifest knows of these objects, in the order of objects and bytes.
    pub(super) fn tensors(&self, objects: &[Object]) -> Vec<Tensor> {
        let known: HashMap<&str, &PackedObject> = self
            .objects()
            .map(|packed| (packed.name.get(self.base.len()..).unwrap_or_default(), packed))
            .collect();
        let of_object = |(index, object): (usize, &Object)| {
            let packed = known.get(object.name.as_str())?;
            let mut entries = packed.tensors.clone()?;
            entries.sort_by(|a, b| (a.offset, a.bytes, &a.name).cmp(&(b.offset, b.bytes, &b.name)));
            Some(entries.into_iter().map(move |entry| Tensor { object: index, entry }))
        };
        objects.iter().enumerate().filter_map(of_object).flatten().collect()
    }

    /// The objects under the base.
    fn objects(&self) -> impl Iterator<Item = &PackedObject> {
        self.manifest.objects.iter().filter(|packed| packed.name.starts_with(&self.base))
    }

    /// The one that has this name, or is stored under it.
    fn named(&self, name: &str) -> Option<&PackedObject> {
        let mut objects = self.manifest.objects.iter();
        let stored = |packed: &&PackedObject| packed.stored_name == name;
        objects
            .find(|packed| packed.name == name)
            .or_else(|| self.manifest.objects.iter().find(stored))
    }
}

/// A folder relative to one that holds it, as [`Packed`] has it.
fn base_of(inner: &ObjectKey, folder: &ObjectKey) -> String {
    inner.relative_to(folder).map_or_else(String::new, |base| format!("{base}/"))
}

impl Listing<'_> {
    /// The packed checkpoint, or the part of one, that the listed objects are, if they are.
    pub(super) async fn packed(
        &self,
        prefix: &ObjectKey,
        listed: &[ObjectMeta],
    ) -> Result<Option<Listed>, ResolveError> {
        let at_root = |meta: &&ObjectMeta| meta.key.relative_to(prefix) == Some(MANIFEST_NAME);
        let (folder, packed) = if let Some(manifest) = listed.iter().find(at_root) {
            let (manifest, identity) = self.manifest(manifest.clone()).await?;
            (prefix.clone(), Packed { manifest, identity, base: String::new() })
        } else {
            let coded = listed.iter().any(|meta| meta.key.as_str().ends_with(SUFFIX));
            if !coded || prefix.is_root() {
                return Ok(None);
            }
            let names_it = |packed: &Packed| packed.objects().next().is_some();
            let above = self.above(&prefix.parent(), prefix, FOLDERS_MAX, names_it).await?;
            let Some(found) = above else { return Ok(None) };
            found
        };
        let by_name: HashMap<&str, &ObjectMeta> = listed
            .iter()
            .map(|meta| (meta.key.relative_to(&folder).unwrap_or(meta.key.as_str()), meta))
            .collect();
        let mut objects = Vec::with_capacity(packed.manifest.objects.len());
        for one in packed.objects() {
            let meta = by_name.get(one.stored_name.as_str()).ok_or_else(|| missing(one))?;
            objects.push(self.unpacked(&packed, one, (*meta).clone())?);
        }
        Ok(Some(Listed { objects, packed: Some(packed) }))
    }

    /// The packed checkpoint of a manifest that was named itself. Its objects are looked up one by
    /// one: web servers have no listing.
    pub(super) async fn packed_at(&self, manifest: ObjectMeta) -> Result<Listed, ResolveError> {
        let folder = manifest.key.parent();
        let (manifest, identity) = self.manifest(manifest).await?;
        let packed = Packed { manifest, identity, base: String::new() };
        let objects = self.packed_objects(&folder, &packed, packed.objects()).await?;
        Ok(Listed { objects, packed: Some(packed) })
    }

    /// One object of a packed checkpoint, named by `key`, as it is called or as it is stored, with
    /// its shards if it is an index. The manifest is looked for in so many folders.
    pub(super) async fn one_packed(
        &self,
        key: &ObjectKey,
        folders: usize,
    ) -> Result<Option<Listed>, ResolveError> {
        let folder = key.parent();
        let full = |packed: &Packed| format!("{}{}", packed.base, key.file_name());
        let names_it = |packed: &Packed| packed.named(&full(packed)).is_some();
        let above = self.above(&folder, &folder, folders, names_it).await?;
        let Some((root, packed)) = above else { return Ok(None) };
        let Some(one) = packed.named(&full(&packed)) else { return Ok(None) };
        let object = self.packed_object(&root, &packed, one).await?;
        let mut objects = Vec::new();
        if one.name.ends_with(INDEX_SUFFIX) {
            let shards = self.shards(&object, Some(one.blake3)).await?;
            let named = |shard: String| {
                let name = format!("{}{shard}", packed.base);
                packed.named(&name).ok_or(ResolveError::PackedMissing { key: name })
            };
            let shards: Vec<&PackedObject> =
                shards.into_iter().map(named).collect::<Result<_, _>>()?;
            objects = self.packed_objects(&root, &packed, shards.into_iter()).await?;
        }
        objects.push(object);
        Ok(Some(Listed { objects, packed: Some(packed) }))
    }

    /// The nearest packed checkpoint whose root is this folder or one above it, and that
    /// `names_it`; `inner` is the folder that is meant.
    async fn above(
        &self,
        folder: &ObjectKey,
        inner: &ObjectKey,
        folders: usize,
        names_it: impl Fn(&Packed) -> bool,
    ) -> Result<Option<(ObjectKey, Packed)>, ResolveError> {
        let up = |folder: &ObjectKey| (!folder.is_root()).then(|| folder.parent());
        let folders = std::iter::successors(Some(folder.clone()), up).take(folders);
        let guesses: Vec<_> = folders.map(|folder| self.guessed(folder, inner)).collect();
        let mut guesses = futures::stream::iter(guesses).buffered(FOLDERS_AT_ONCE);
        while let Some(guess) = guesses.next().await {
            if let Some(found) = guess?.filter(|(_, packed)| names_it(packed)) {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    async fn guessed(
        &self,
        folder: ObjectKey,
        inner: &ObjectKey,
    ) -> Result<Option<(ObjectKey, Packed)>, ResolveError> {
        let Ok(key) = folder.join(MANIFEST_NAME) else { return Ok(None) };
        let meta = match self.store.head(&key).await {
            Ok(meta) => meta,
            Err(error) if is_not_there(error.kind) => {
                if error.kind != OriginErrorKind::NotFound {
                    tracing::debug!(%error, %key, "whether there is a manifest cannot be told");
                }
                return Ok(None);
            }
            Err(error) => return Err(error.into()),
        };
        match self.manifest(meta).await {
            Ok((manifest, identity)) => {
                let base = base_of(inner, &folder);
                Ok(Some((folder, Packed { manifest, identity, base })))
            }
            Err(ResolveError::NoManifest { .. }) => {
                tracing::debug!(%key, "what is there is no manifest");
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    async fn packed_objects<'o>(
        &self,
        folder: &ObjectKey,
        packed: &Packed,
        objects: impl Iterator<Item = &'o PackedObject>,
    ) -> Result<Vec<Object>, ResolveError> {
        let found: Vec<_> = objects.map(|one| self.packed_object(folder, packed, one)).collect();
        futures::stream::iter(found).buffered(HEADERS_AT_ONCE).try_collect().await
    }

    async fn packed_object(
        &self,
        folder: &ObjectKey,
        packed: &Packed,
        one: &PackedObject,
    ) -> Result<Object, ResolveError> {
        let key = folder.join(&one.stored_name).map_err(|_odd| missing(one))?;
        match self.store.head(&key).await {
            Ok(meta) => self.unpacked(packed, one, meta),
            Err(error) if error.kind == OriginErrorKind::NotFound => Err(missing(one)),
            Err(error) => Err(error.into()),
        }
    }

    fn unpacked(
        &self,
        Packed { manifest, base, .. }: &Packed,
        packed: &PackedObject,
        meta: ObjectMeta,
    ) -> Result<Object, ResolveError> {
        let name = packed.name.get(base.len()..).unwrap_or(&packed.name).to_owned();
        if meta.bytes != packed.stored_bytes {
            return Err(ResolveError::PackedSize {
                key: packed.stored_name.clone(),
                bytes: meta.bytes,
                expected: packed.stored_bytes,
            });
        }
        let stored = self.object(name.clone(), meta)?;
        let coding = manifest.coding(packed).map_err(|problem| {
            let (key, name) = (packed.stored_name.clone(), packed.name.clone());
            ResolveError::Manifest { key, problem: ManifestError::Coding { name, problem } }
        })?;
        let coding = Arc::new(coding);
        let content = match packed.coded {
            true => Content::Framed(coding),
            false => Content::Digested(coding),
        };
        Ok(coded_object(&self.uri.origin(), stored, name, (packed.bytes, content)))
    }

    /// Reads and checks a manifest, and what the store's one is known by. A damaged one may have
    /// been damaged on its way.
    async fn manifest(
        &self,
        meta: ObjectMeta,
    ) -> Result<(Arc<PackManifest>, [u8; 32]), ResolveError> {
        let name = meta.key.file_name().to_owned();
        let object = self.object(name, meta)?;
        if let Some(manifest) = self.resolver.manifest_of(&object.identity) {
            return Ok((manifest, object.identity));
        }
        let manifest = Arc::new(self.fresh_manifest(&object).await?);
        self.resolver.remember_manifest(object.identity, &manifest);
        Ok((manifest, object.identity))
    }

    async fn fresh_manifest(&self, object: &Object) -> Result<PackManifest, ResolveError> {
        if object.bytes > MANIFEST_BYTES_MAX {
            return Err(self.limit("bytes of manifest", MANIFEST_BYTES_MAX));
        }
        let headers = &self.resolver.headers;
        if let Some(manifest) = headers.kept(object, PackManifest::parse).await? {
            return Ok(manifest);
        }
        let _room = headers.room(object.bytes).await?;
        let mut again = true;
        loop {
            let (bytes, address) = self.read_from(object, 0, object.bytes).await?;
            let (parsed, bytes) = headers.parsed(bytes, PackManifest::parse).await?;
            let problem = match parsed {
                Ok(manifest) => {
                    headers.keep(object, bytes);
                    return Ok(manifest);
                }
                Err(problem) => problem,
            };
            let key = object.key.as_str().to_owned();
            if problem == ManifestError::Lines && !bytes.starts_with(MANIFEST_BEGINS) {
                return Err(ResolveError::NoManifest { key });
            }
            metrics::digest_mismatch();
            if !std::mem::take(&mut again) {
                return Err(ResolveError::Manifest { key, problem });
            }
            self.terms.distrust(address);
        }
    }
}

fn is_not_there(kind: OriginErrorKind) -> bool {
    // Web servers and buckets without a right to list say so in several ways.
    matches!(kind, OriginErrorKind::NotFound | OriginErrorKind::Denied | OriginErrorKind::Rejected)
}

fn missing(packed: &PackedObject) -> ResolveError {
    ResolveError::PackedMissing { key: packed.stored_name.clone() }
}
