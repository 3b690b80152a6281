//! An index and the shards it names: beside it, or in the same packed checkpoint.

use forebay_codec::manifest::ManifestError;
use forebay_codec::safetensors::{self, HeaderError};
use forebay_origin::{ObjectKey, ObjectMeta};
use futures::{StreamExt, TryStreamExt};

use super::manifest::Object;
use super::{HEADERS_AT_ONCE, INDEX_BYTES_MAX, Listing, OBJECTS_MAX, ResolveError};
use crate::metrics;

impl Listing<'_> {
    /// An index and the shards it names, beside it.
    pub(super) async fn indexed(&self, index: ObjectMeta) -> Result<Vec<Object>, ResolveError> {
        let folder = index.key.parent();
        let index_name = index.key.file_name().to_owned();
        let index = self.object(index_name, index)?;
        let shards = self.shards(&index, None).await?;
        let shards: Vec<_> = shards.into_iter().map(|shard| self.shard(&folder, shard)).collect();
        let mut objects: Vec<Object> =
            futures::stream::iter(shards).buffered(HEADERS_AT_ONCE).try_collect().await?;
        objects.push(index);
        Ok(objects)
    }

    /// The names of the shards that an index names, which has this digest if one is known.
    pub(super) async fn shards(
        &self,
        index: &Object,
        blake3: Option<[u8; 32]>,
    ) -> Result<Vec<String>, ResolveError> {
        if index.bytes > INDEX_BYTES_MAX {
            return Err(self.limit("bytes of index", INDEX_BYTES_MAX));
        }
        let shards = self.named_shards(index, blake3).await?;
        match shards.len() >= OBJECTS_MAX {
            true => Err(self.limit("objects", OBJECTS_MAX as u64)),
            false => Ok(shards),
        }
    }

    async fn named_shards(
        &self,
        index: &Object,
        blake3: Option<[u8; 32]>,
    ) -> Result<Vec<String>, ResolveError> {
        let headers = &self.resolver.headers;
        let index_bytes = index.bytes;
        let whole = move |json: &[u8]| match json.len() as u64 == index_bytes {
            true => safetensors::parse_index(json),
            false => Err(HeaderError::Length(json.len() as u64)),
        };
        if let Some(shards) = headers.kept(index, whole).await? {
            return Ok(shards);
        }
        let _room = self.room_for(index, 0, index.bytes).await?;
        let mut json = self.read_decoded(index, 0, index.bytes).await?;
        let is_other = |json: &[u8]| blake3.is_some_and(|known| blake3::hash(json) != known);
        if is_other(&json) {
            metrics::digest_mismatch();
            json = self.read_decoded(index, 0, index.bytes).await?;
        }
        if is_other(&json) {
            metrics::digest_mismatch();
            let (key, problem) = (index.key.as_str().to_owned(), ManifestError::Digest);
            return Err(ResolveError::Manifest { key, problem });
        }
        let (parsed, json) = headers.parsed(json, safetensors::parse_index).await?;
        let shards =
            parsed.map_err(|problem| ResolveError::Header { key: index.name.clone(), problem })?;
        headers.keep(index, json);
        Ok(shards)
    }

    async fn shard(&self, folder: &ObjectKey, name: String) -> Result<Object, ResolveError> {
        let key = folder.join(&name).map_err(|problem| ResolveError::Header {
            key: name.clone(),
            problem: HeaderError::Json(problem.to_string()),
        })?;
        let meta = self.store.head(&key).await?;
        self.object(name, meta)
    }
}
