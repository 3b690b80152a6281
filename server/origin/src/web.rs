//! Listing on a web server that has no listing.
//!
//! A checkpoint says itself what belongs to it: `model.safetensors.index.json` names the shards,
//! and a few companions have fixed names. Without an index a single `model.safetensors` will do,
//! and last a WebDAV server is asked. What was tried is in the error if nothing was there.

use std::collections::{BTreeMap, BTreeSet};

use futures::{StreamExt, TryStreamExt};
use object_store::path::Path;

use crate::error::{OriginError, OriginErrorKind};
use crate::fault::Fault;
use crate::key::ObjectKey;
use crate::list::{LISTING_BYTES_MAX, LOOKS_AT_ONCE, absent_is_none};
use crate::object::{ObjectOrigin, WebBackend};
use crate::providers;
use crate::store::{ObjectMeta, OriginStore, ReadRequest};

const INDEX: &str = "model.safetensors.index.json";
const SINGLE: &str = "model.safetensors";
/// What lies beside the weights and is loaded with them.
const COMPANIONS: [&str; 10] = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    SINGLE,
];
/// The largest index that is read: the largest known ones have some 10 MB.
const INDEX_BYTES_MAX: u64 = 64 << 20;

/// The part of an index that names the shards.
#[derive(Debug)]
struct Shards(BTreeSet<String>);

impl ObjectOrigin {
    pub(crate) async fn list_web(
        &self,
        web: &WebBackend,
        prefix: &ObjectKey,
        limit: usize,
    ) -> Result<Vec<ObjectMeta>, OriginError> {
        let bad = |error: crate::key::KeyError| {
            OriginError::new(OriginErrorKind::Malformed, prefix, error.to_string()).at(&self.origin)
        };
        let index = prefix.join(INDEX).map_err(bad)?;
        if let Some(meta) = absent_is_none(self.head(&index).await)? {
            let shards = self.shards(&meta).await?;
            self.check_limit(shards.0.len(), prefix, limit)?;
            let keys = shards.0.iter().map(|name| prefix.join(name).map_err(bad));
            let keys = keys.collect::<Result<Vec<_>, _>>()?;
            let mut found: Vec<ObjectMeta> = futures::stream::iter(keys)
                .map(|key| async move { self.head(&key).await })
                .buffer_unordered(LOOKS_AT_ONCE)
                .try_collect()
                .await?;
            found.push(meta);
            found.extend(self.companions(prefix).await?);
            self.check_limit(found.len(), prefix, limit)?;
            return Ok(found);
        }
        let found = self.companions(prefix).await?;
        if found.iter().any(|meta| meta.key.file_name() == SINGLE) {
            self.check_limit(found.len(), prefix, limit)?;
            return Ok(found);
        }
        self.list_dav(web, prefix, limit).await
    }

    /// The companions that exist.
    async fn companions(&self, prefix: &ObjectKey) -> Result<Vec<ObjectMeta>, OriginError> {
        let keys: Vec<ObjectKey> =
            COMPANIONS.iter().filter_map(|name| prefix.join(name).ok()).collect();
        let found: Vec<Option<ObjectMeta>> = futures::stream::iter(keys)
            .map(|key| async move { absent_is_none(self.head(&key).await) })
            .buffer_unordered(LOOKS_AT_ONCE)
            .try_collect()
            .await?;
        Ok(found.into_iter().flatten().collect())
    }

    async fn shards(&self, index: &ObjectMeta) -> Result<Shards, OriginError> {
        let bad = |kind, text: String| OriginError::new(kind, &index.key, text).at(&self.origin);
        let bytes = usize::try_from(index.bytes).ok().filter(|_| index.bytes <= INDEX_BYTES_MAX);
        let Some(bytes) = bytes else {
            let text = format!("an index of {} bytes", index.bytes);
            return Err(bad(OriginErrorKind::LimitExceeded, text));
        };
        let mut json = vec![0; bytes];
        let request = ReadRequest {
            key: index.key.clone(),
            pin: index.pin.clone(),
            object_bytes: index.bytes,
            range: 0..index.bytes,
        };
        self.read(&request, &mut json).await?;
        Shards::parse(&json).map_err(|text| bad(OriginErrorKind::Malformed, text))
    }

    async fn list_dav(
        &self,
        web: &WebBackend,
        prefix: &ObjectKey,
        limit: usize,
    ) -> Result<Vec<ObjectMeta>, OriginError> {
        let path = Path::parse(prefix.as_str()).ok();
        let mut tries = self.tries(prefix, None);
        let listed = loop {
            let attempt = tries.begin(0).await?;
            let probe = attempt.probe.with_body_max(LISTING_BYTES_MAX);
            let store = providers::web(&web.base, web.transport.probed(probe));
            let work = async { store?.list(path.as_ref()).take(limit + 1).try_collect().await };
            let listed: object_store::Result<Vec<object_store::ObjectMeta>> =
                attempt.run(work).await;
            let fault = match listed {
                Ok(listed) => {
                    tries.done(attempt, 0);
                    break listed;
                }
                Err(error) => Fault::of(&error, &attempt.probe.seen()),
            };
            if no_dav(&fault) {
                tries.done(attempt, 0);
                break Vec::new();
            }
            tries.failed(attempt, 0, fault).await?;
        };
        let mut found = Vec::with_capacity(listed.len());
        for meta in &listed {
            found.extend(self.listed(meta, prefix)?);
        }
        self.check_limit(found.len(), prefix, limit)?;
        if found.is_empty() {
            let text = format!("no {INDEX}, no {SINGLE} and no WebDAV listing under it");
            return Err(OriginError::new(OriginErrorKind::NotFound, prefix, text).at(&self.origin));
        }
        Ok(found)
    }
}

/// Whether an answer to PROPFIND says no more than that the server has none.
fn no_dav(fault: &Fault) -> bool {
    match fault.status {
        Some(501) => true,
        Some(429) => false,
        Some(status) => status < 500,
        None => false,
    }
}

impl Shards {
    fn parse(json: &[u8]) -> Result<Self, String> {
        let index: BTreeMap<String, serde_json::Value> =
            serde_json::from_slice(json).map_err(|error| error.to_string())?;
        let map = index.get("weight_map").and_then(serde_json::Value::as_object);
        let map = map.ok_or("the index has no weight_map")?;
        let names = map.values().map(|name| name.as_str().map(str::to_owned));
        let names: Option<BTreeSet<String>> = names.collect();
        names.map(Self).ok_or_else(|| "a shard's name in the index is no text".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shards_are_the_values_of_the_weight_map() {
        let json = br#"{"metadata":{"total_size":1},"weight_map":{"a":"2","b":"1","c":"2"}}"#;
        let shards = Shards::parse(json).unwrap();
        assert_eq!(shards.0.into_iter().collect::<Vec<_>>(), ["1", "2"]);
        for bad in ["", "[]", "{}", r#"{"weight_map":[]}"#, r#"{"weight_map":{"a":1}}"#] {
            assert!(Shards::parse(bad.as_bytes()).is_err(), "{bad}");
        }
    }
}
