//! Objects that the store has in another form: packed checkpoints, and plain `.zst` objects.
//!
//! A checkpoint is packed if there is a manifest at its root ([`MANIFEST_NAME`], written by `forebay
//! pack`). It is then what the manifest says, under the original names: what else lies there is not part
//! of it. A manifest proves itself by a digest of its own; one that does not is read once more, another
//! way, and then refused. Naming one packed object, by its original name or by its stored one, gives
//! that one.
//!
//! An object whose name ends in `.zst` is decoded, and loses that ending, unless another object has that
//! name already. How its frames lie is found out by [`scan`](super::scan).

use std::collections::HashMap;
use std::sync::Arc;

use forebay_codec::manifest::{MANIFEST_NAME, ManifestError, PackManifest, PackedObject};
use forebay_origin::{ObjectKey, ObjectMeta, OriginErrorKind};
use futures::{StreamExt, TryStreamExt};

use super::manifest::{Content, Object, Tensor, coded_object};
use super::{HEADERS_AT_ONCE, Listed, Listing, ResolveError};
use crate::metrics;

/// Bytes of a pack manifest: some 2 million chunks.
const MANIFEST_BYTES_MAX: u64 = 256 << 20;

/// How the names of compressed objects end.
pub(super) const SUFFIX: &str = ".zst";

impl Listing<'_> {
    /// The packed checkpoint whose manifest lies among the listed objects, if there is one.
    pub(super) async fn packed(
        &self,
        prefix: &ObjectKey,
        listed: &[ObjectMeta],
    ) -> Result<Option<Listed>, ResolveError> {
        let at_root = |meta: &&ObjectMeta| meta.key.relative_to(prefix) == Some(MANIFEST_NAME);
        let Some(manifest) = listed.iter().find(at_root) else { return Ok(None) };
        let manifest = self.manifest(manifest.clone()).await?;
        let by_name: HashMap<&str, &ObjectMeta> = listed
            .iter()
            .map(|meta| (meta.key.relative_to(prefix).unwrap_or(meta.key.as_str()), meta))
            .collect();
        let mut objects = Vec::with_capacity(manifest.objects.len());
        for packed in &manifest.objects {
            let meta = by_name.get(packed.stored_name.as_str()).ok_or_else(|| missing(packed))?;
            objects.push(self.unpacked(&manifest, packed, (*meta).clone())?);
        }
        Ok(Some(Listed { objects, packed: Some(manifest) }))
    }

    /// The packed checkpoint of a manifest that was named itself. Its objects are looked up one by one:
    /// web servers have no listing.
    pub(super) async fn packed_at(&self, manifest: ObjectMeta) -> Result<Listed, ResolveError> {
        let folder = manifest.key.parent();
        let manifest = self.manifest(manifest).await?;
        let found: Vec<_> = manifest
            .objects
            .iter()
            .map(|packed| self.packed_object(&folder, &manifest, packed))
            .collect();
        let objects: Vec<Object> =
            futures::stream::iter(found).buffered(HEADERS_AT_ONCE).try_collect().await?;
        Ok(Listed { objects, packed: Some(manifest) })
    }

    /// One object of a packed checkpoint, named by `key`: as it is called, or as it is stored.
    pub(super) async fn one_packed(&self, key: &ObjectKey) -> Result<Option<Listed>, ResolveError> {
        let folder = key.parent();
        let Ok(manifest_key) = folder.join(MANIFEST_NAME) else { return Ok(None) };
        let manifest = match self.store.head(&manifest_key).await {
            Ok(meta) => self.manifest(meta).await?,
            Err(error) if is_not_there(error.kind) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let name = key.file_name();
        let names_it = |packed: &&PackedObject| packed.name == name || packed.stored_name == name;
        let Some(packed) = manifest.objects.iter().find(names_it) else { return Ok(None) };
        let object = self.packed_object(&folder, &manifest, packed).await?;
        Ok(Some(Listed { objects: vec![object], packed: Some(manifest) }))
    }

    async fn packed_object(
        &self,
        folder: &ObjectKey,
        manifest: &PackManifest,
        packed: &PackedObject,
    ) -> Result<Object, ResolveError> {
        let key = folder.join(&packed.stored_name).map_err(|_odd| missing(packed))?;
        match self.store.head(&key).await {
            Ok(meta) => self.unpacked(manifest, packed, meta),
            Err(error) if error.kind == OriginErrorKind::NotFound => Err(missing(packed)),
            Err(error) => Err(error.into()),
        }
    }

    fn unpacked(
        &self,
        manifest: &PackManifest,
        packed: &PackedObject,
        meta: ObjectMeta,
    ) -> Result<Object, ResolveError> {
        if meta.bytes != packed.stored_bytes {
            return Err(ResolveError::PackedSize {
                key: packed.stored_name.clone(),
                bytes: meta.bytes,
                expected: packed.stored_bytes,
            });
        }
        let stored = self.object(packed.name.clone(), meta)?;
        let coding = manifest.coding(packed).map_err(|problem| {
            let (key, name) = (packed.stored_name.clone(), packed.name.clone());
            ResolveError::Manifest { key, problem: ManifestError::Coding { name, problem } }
        })?;
        let coding = Arc::new(coding);
        let content = match packed.coded {
            true => Content::Framed(coding),
            false => Content::Digested(coding),
        };
        Ok(coded_object(stored, packed.name.clone(), (packed.bytes, content)))
    }

    /// Reads and checks a manifest. A damaged one may have been damaged on its way.
    async fn manifest(&self, meta: ObjectMeta) -> Result<Arc<PackManifest>, ResolveError> {
        let name = meta.key.file_name().to_owned();
        let object = self.object(name, meta)?;
        if let Some(manifest) = self.resolver.manifest_of(&object.identity) {
            return Ok(manifest);
        }
        let manifest = Arc::new(self.fresh_manifest(&object).await?);
        self.resolver.remember_manifest(object.identity, &manifest);
        Ok(manifest)
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
            metrics::digest_mismatch();
            if !std::mem::take(&mut again) {
                let key = object.key.as_str().to_owned();
                return Err(ResolveError::Manifest { key, problem });
            }
            self.terms.distrust(address);
        }
    }
}

/// The tensors that a manifest knows of these objects.
pub(super) fn tensors(manifest: &PackManifest, objects: &[Object]) -> Vec<Tensor> {
    let known: HashMap<&str, &PackedObject> =
        manifest.objects.iter().map(|packed| (packed.name.as_str(), packed)).collect();
    let of_object = |(index, object): (usize, &Object)| {
        let packed = known.get(object.name.as_str())?;
        let entries = packed.tensors.as_deref().unwrap_or_default();
        Some(entries.iter().map(move |entry| Tensor { object: index, entry: entry.clone() }))
    };
    objects.iter().enumerate().filter_map(of_object).flatten().collect()
}

fn is_not_there(kind: OriginErrorKind) -> bool {
    // Web servers and buckets without a right to list say so in several ways.
    matches!(kind, OriginErrorKind::NotFound | OriginErrorKind::Denied | OriginErrorKind::Rejected)
}

fn missing(packed: &PackedObject) -> ResolveError {
    ResolveError::PackedMissing { key: packed.stored_name.clone() }
}
