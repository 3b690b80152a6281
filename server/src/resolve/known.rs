//! What is known of whole objects before they are read: the checksums that a cloud keeps of them,
//! and files of digests that lie beside them, as `sha256sum` writes them.
//!
//! Files of digests are those that were listed; where a single object or an index was named, those
//! that are called `SHA256SUMS` or `NAME.sha256` beside it. Two that contradict each other count
//! for nothing.
//!
//! A listing has no checksums, so each object is asked for them, the largest ones first, while
//! headers are read anyway. Objects that were held to what is known of them once are not asked
//! about again. Whatever cannot be had here is not an error: the object is held to less then, and
//! the load's report says so.

use std::collections::{HashMap, HashSet};

use forebay_origin::{KeyError, ObjectKey, OriginErrorKind, Pin, Scheme};
use futures::StreamExt;
use tokio::time::Instant;

use super::beside::Beside;
use super::manifest::{Content, Object};
use super::{Listing, ResolveError};
use crate::proof::ObjectDigest;

/// Objects of one checkpoint that are asked about.
const HEADS_MAX: usize = 1024;

/// Of them side by side.
const HEADS_AT_ONCE: usize = 64;

/// Bytes of a file of digests: some hundred thousand of them.
const SUMS_BYTES_MAX: u64 = 16 << 20;

/// Files of digests of one checkpoint.
const SUMS_MAX: usize = 64;

/// What a file of the digests of a folder is called.
const SUMS_NAME: &str = "SHA256SUMS";

/// What stores said of objects that were asked about before.
pub(crate) trait KnownDigests: std::fmt::Debug + Send + Sync {
    /// What a store said of this one, if it was asked; nothing is an answer too.
    fn known(&self, identity: &[u8; 32]) -> Option<Option<ObjectDigest>>;

    /// The store has said so.
    fn remember(&self, identity: &[u8; 32], digest: Option<ObjectDigest>);
}

impl Listing<'_> {
    /// What is known of objects, by their place in the list.
    pub(super) async fn known(&self, objects: &[Object]) -> Vec<(usize, ObjectDigest)> {
        let open = |object: &Object| {
            let plain = matches!(object.content, Content::Plain);
            plain && object.pinned && object.checksum.is_none()
        };
        let mut unknown: Vec<usize> =
            (0..objects.len()).filter(|index| objects.get(*index).is_some_and(open)).collect();
        let mut known = self.checksums(objects, &mut unknown).await;
        if unknown.len() > known.len() {
            let said: HashSet<usize> = known.iter().map(|(at, _)| *at).collect();
            unknown.retain(|index| !said.contains(index));
            let told = self.sums(objects, &unknown).await;
            let beside = unknown.iter().filter_map(|index| {
                let digest = told.get(objects.get(*index)?.name.as_str())?;
                Some((*index, ObjectDigest::Sha256(*digest)))
            });
            let beside: Vec<_> = beside.collect();
            known.extend(beside);
        }
        known
    }

    /// What the store says, if it is one that says such things.
    async fn checksums(
        &self,
        objects: &[Object],
        unknown: &mut [usize],
    ) -> Vec<(usize, ObjectDigest)> {
        if !matches!(self.uri.scheme(), Scheme::S3 | Scheme::Gs | Scheme::Az) {
            return Vec::new();
        }
        let bytes = |index: &usize| objects.get(*index).map_or(0, |object| object.bytes);
        unknown.sort_by_key(|index| std::cmp::Reverse(bytes(index)));
        if unknown.len() > HEADS_MAX {
            let (uri, left) = (self.uri, unknown.len() - HEADS_MAX);
            tracing::debug!(%uri, left, "the smallest objects are not asked for their checksums");
        }
        let asked = unknown.iter().take(HEADS_MAX).map(|index| async move {
            let object = objects.get(*index)?;
            if let Some(said) = self.resolver.known.known(&object.identity) {
                return Some((*index, said?));
            }
            match self.store.head(&object.key).await {
                // Another version's checksum is none of this one; the fetch will tell.
                Ok(meta) if is_same(&meta.pin, &object.pin) => {
                    let said = ObjectDigest::best_of(&meta.checksums);
                    self.resolver.known.remember(&object.identity, said);
                    Some((*index, said?))
                }
                Ok(_) => None,
                Err(error) => {
                    tracing::debug!(%error, object = object.name, "its checksum cannot be had");
                    None
                }
            }
        });
        let asked: Vec<_> = asked.collect();
        let asked = futures::stream::iter(asked).buffer_unordered(HEADS_AT_ONCE);
        asked.filter_map(std::future::ready).collect().await
    }

    /// What files of digests say, by the objects' names. Where they contradict each other, or
    /// themselves, they say nothing.
    async fn sums(&self, objects: &[Object], open: &[usize]) -> HashMap<String, [u8; 32]> {
        let mut told: HashMap<String, Option<[u8; 32]>> = HashMap::new();
        let listed = objects.iter().filter(|object| is_sums(&object.name)).take(SUMS_MAX);
        let mut files: Vec<Object> = listed.cloned().collect();
        if objects.iter().any(|object| object.key == *self.uri.key()) {
            // Nothing was listed.
            files.extend(self.beside(objects, open).await);
        }
        for file in &files {
            match self.read_sums(file).await {
                Ok(text) => {
                    let lines = sums(&file.name, &text);
                    let digests = lines.len();
                    tracing::debug!(file = file.name, digests, "a file of digests was read");
                    lines.into_iter().for_each(|line| tell(&mut told, &file.name, line));
                }
                Err(error) => {
                    tracing::debug!(%error, file = file.name, "a file of digests cannot be read");
                }
            }
        }
        told.into_iter().filter_map(|(name, digest)| Some((name, digest?))).collect()
    }

    /// The files of digests that lie beside named objects: one for all, or each its own.
    async fn beside(&self, objects: &[Object], open: &[usize]) -> Vec<Object> {
        let folder = self.uri.key().parent();
        let missing = &self.resolver.missing;
        let unknown = |object: &&Object| {
            !missing.is_missing(&object.identity, Beside::Digests, Instant::now())
        };
        let open = open.iter().filter_map(|index| objects.get(*index)).filter(unknown);
        let open: Vec<&Object> = open.take(SUMS_MAX).collect();
        if open.is_empty() {
            return Vec::new();
        }
        let own = open.iter().map(|object| format!("{}.sha256", object.name));
        let names = std::iter::once(SUMS_NAME.to_owned()).chain(own);
        let found: Vec<_> = names.map(|name| self.file_beside(folder.join(&name), name)).collect();
        let found = futures::stream::iter(found).buffered(HEADS_AT_ONCE);
        let found: Vec<Option<Option<Object>>> = found.collect().await;
        if found.iter().all(|found| matches!(found, Some(None))) {
            let now = Instant::now();
            open.iter().for_each(|object| missing.note(object.identity, Beside::Digests, now));
        }
        found.into_iter().flatten().flatten().collect()
    }

    /// The file, or that there is none; nothing if that cannot be told.
    async fn file_beside(
        &self,
        key: Result<ObjectKey, KeyError>,
        name: String,
    ) -> Option<Option<Object>> {
        match self.store.head(&key.ok()?).await {
            Ok(meta) => self.object(name, meta).ok().map(Some),
            Err(error) => {
                tracing::debug!(%error, file = name, "there is no such file of digests");
                (error.kind == OriginErrorKind::NotFound).then_some(None)
            }
        }
    }

    async fn read_sums(&self, file: &Object) -> Result<String, ResolveError> {
        if file.bytes > SUMS_BYTES_MAX {
            return Err(self.limit("bytes of digests", SUMS_BYTES_MAX));
        }
        let _room = self.resolver.headers.room(file.bytes).await?;
        let bytes = self.read(file, 0, file.bytes).await?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }
}

/// Whether two pins are of one version.
fn is_same(one: &Pin, other: &Pin) -> bool {
    one == other || (one.etag.is_some() && one.etag == other.etag)
}

/// Notes what a line says.
fn tell(
    told: &mut HashMap<String, Option<[u8; 32]>>,
    file: &str,
    (name, digest): (String, [u8; 32]),
) {
    if told.get(&name).is_some_and(|before| *before != Some(digest)) {
        tracing::warn!(file, object = name, "there are two digests of it, so neither counts");
        told.insert(name, None);
    } else {
        told.insert(name, Some(digest));
    }
}

/// Whether this is what such files are called.
fn is_sums(name: &str) -> bool {
    let file = name.rsplit('/').next().unwrap_or(name).to_ascii_lowercase();
    let known = ["sha256sums", "sha256sum", "checksums"];
    let stem = file.strip_suffix(".txt").unwrap_or(&file);
    known.contains(&stem) || file.ends_with(".sha256") || file.ends_with(".sha256sum")
}

/// The digests in a file called `file`, by the names of the objects: those in it are relative to
/// it. A file `NAME.sha256` may hold the digest of `NAME` alone. Lines that are something else are
/// left out.
fn sums(file: &str, text: &str) -> Vec<(String, [u8; 32])> {
    let folder = file.rfind('/').map_or("", |slash| file.get(..=slash).unwrap_or_default());
    let of_its_own = [".sha256", ".sha256sum"].iter().find_map(|suffix| file.strip_suffix(suffix));
    let line = |line: &str| {
        let (digits, name) = line.trim_end().split_at_checked(64)?;
        let digest = unhex(digits)?;
        let name = name.strip_prefix(" *").or_else(|| name.strip_prefix("  ")).unwrap_or(name);
        let name = name.strip_prefix("./").unwrap_or(name);
        match (name.is_empty(), of_its_own) {
            (true, Some(own)) => Some((own.to_owned(), digest)),
            (true, None) => None,
            (false, _) => Some((format!("{folder}{name}"), digest)),
        }
    };
    text.lines().filter_map(line).collect()
}

fn unhex(digits: &str) -> Option<[u8; 32]> {
    let mut digest = [0; 32];
    if digits.len() != 64 || !digits.is_ascii() {
        return None;
    }
    for (at, byte) in digest.iter_mut().enumerate() {
        *byte = u8::from_str_radix(digits.get(2 * at..2 * at + 2)?, 16).ok()?;
    }
    Some(digest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_digests_are_known_by_their_names() {
        for name in ["SHA256SUMS", "a/sha256sum.txt", "w.bin.sha256", "checksums.txt"] {
            assert!(is_sums(name), "{name}");
        }
        for name in ["model.safetensors", "SHA256SUMS.asc", "sha256", "sums"] {
            assert!(!is_sums(name), "{name}");
        }
    }

    #[test]
    fn versions_without_tags_are_not_the_same_for_that() {
        let pin = |etag: Option<&str>, seconds| Pin {
            etag: etag.map(str::to_owned),
            version: None,
            last_modified: Some(std::time::UNIX_EPOCH + std::time::Duration::from_secs(seconds)),
        };
        assert!(is_same(&pin(Some("a"), 1), &pin(Some("a"), 2)));
        assert!(!is_same(&pin(None, 1), &pin(None, 2)));
        assert!(is_same(&pin(None, 1), &pin(None, 1)));
        assert!(!is_same(&pin(Some("a"), 1), &pin(Some("b"), 1)));
    }

    #[test]
    fn digests_that_contradict_each_other_count_for_nothing() {
        let mut told = HashMap::new();
        for (name, digest) in [("a", 1), ("b", 1), ("a", 1), ("b", 2), ("b", 1)] {
            tell(&mut told, "SHA256SUMS", (name.to_owned(), [digest; 32]));
        }
        assert_eq!(told["a"], Some([1; 32]));
        assert_eq!(told["b"], None);
    }

    #[test]
    fn lines_of_sha256sum_are_read_and_others_are_not() {
        let one = "ab".repeat(32);
        let text = format!(
            "{one}  a.bin\n{one} *sub/b.bin\r\n# a comment\n{one}\nzz{one}\n{one}  ./c d.bin\n\n"
        );
        let names = |file: &str| -> Vec<String> {
            sums(file, &text).into_iter().map(|(name, _)| name).collect()
        };
        assert_eq!(names("SHA256SUMS"), ["a.bin", "sub/b.bin", "c d.bin"]);
        assert_eq!(names("x/SHA256SUMS"), ["x/a.bin", "x/sub/b.bin", "x/c d.bin"]);
        assert_eq!(names("x/w.sha256"), ["x/a.bin", "x/sub/b.bin", "x/w", "x/c d.bin"]);
        assert_eq!(sums("w.sha256", &one), [("w".to_owned(), [0xab; 32])]);
        assert!(sums("SHA256SUMS", "é".repeat(40).as_str()).is_empty());
    }
}
