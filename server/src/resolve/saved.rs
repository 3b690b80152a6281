//! Manifests that outlive the daemon: what an alias stands for, as bytes.
//!
//! Whoever keeps the bytes sees to it that they come back as they were. What is read here is checked
//! all the same, as far as it can be: the revision is taken anew of the objects, codings are checked
//! as those of a pack manifest, tensors lie in their objects. A manifest that was saved is as good as
//! one that was resolved: the origin is asked for exactly these versions, or not at all.
//!
//! Only what can be asked for again is saved: every object is pinned, and the URI has no query.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use forebay_codec::coding::{Coding, CodingError, Frame, PlaneRun, Width};
use forebay_codec::tensor::TensorEntry;
use forebay_origin::{KeyError, ObjectKey, OriginError, OriginUri, Pin, UriError};
use serde::{Deserialize, Serialize};

use super::Resolver;
use super::manifest::{Content, Manifest, Object, StreamCoding, Tensor};
use crate::proof::ObjectDigest;

/// Of the bytes' form.
const FORMAT: u32 = 1;

/// Why saved bytes are no manifest any more, or none of this daemon.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SavedError {
    /// They do not read as one.
    #[error("it is no saved manifest: {0}")]
    Form(#[from] serde_json::Error),
    /// Another version wrote it.
    #[error("it has format {0}, and this daemon reads {FORMAT}")]
    Format(u32),
    /// Its URI cannot be used.
    #[error(transparent)]
    Uri(#[from] UriError),
    /// Its origin cannot be opened with the present settings.
    #[error(transparent)]
    Origin(#[from] OriginError),
    /// A key cannot be.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// A coding cannot be.
    #[error(transparent)]
    Coding(#[from] CodingError),
    /// Something in it cannot be.
    #[error("{0}")]
    Impossible(&'static str),
}

/// A digest, in hex.
#[derive(Debug, Clone, Copy)]
struct Hex([u8; 32]);

impl Serialize for Hex {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&blake3::Hash::from_bytes(self.0).to_hex())
    }
}

impl<'de> Deserialize<'de> for Hex {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let hash = blake3::Hash::from_hex(text).map_err(serde::de::Error::custom)?;
        Ok(Self(*hash.as_bytes()))
    }
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SavedManifest {
    format: u32,
    uri: String,
    revision: Hex,
    objects: Vec<SavedObject>,
    /// Each with the index of its object.
    tensors: Vec<(usize, TensorEntry)>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SavedObject {
    key: String,
    name: String,
    bytes: u64,
    etag: Option<String>,
    version: Option<String>,
    /// Since the epoch.
    modified: Option<Duration>,
    identity: Hex,
    content: SavedContent,
    checksum: Option<SavedDigest>,
}

#[derive(Debug, Serialize, Deserialize)]
enum SavedContent {
    Plain,
    Digested(SavedCoding),
    Framed(SavedCoding),
    Stream { stored_bytes: u64 },
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SavedCoding {
    stored_bytes: u64,
    plain_bytes: u64,
    /// Offset and bytes as stored, offset and bytes as served, digest.
    frames: Vec<(u64, u64, u64, u64, Option<Hex>)>,
    /// Offset, bytes, bytes of an element.
    planes: Vec<(u64, u64, u64)>,
    tile: u32,
}

#[derive(Debug, Serialize, Deserialize)]
enum SavedDigest {
    Crc64Nvme(u64),
    Crc32c(u32),
    Sha256(Hex),
    Md5([u8; 16]),
}

/// The bytes of a manifest whose objects are all pinned.
pub(crate) fn saved(manifest: &Manifest) -> Result<Vec<u8>, SavedError> {
    if manifest.objects().iter().any(|object| !object.pinned) {
        return Err(SavedError::Impossible("an object of it cannot be asked for again"));
    }
    let tensor = |tensor: &Tensor| (tensor.object, tensor.entry.clone());
    let saved = SavedManifest {
        format: FORMAT,
        uri: manifest.uri().to_owned(),
        revision: Hex(manifest.revision().0),
        objects: manifest.objects().iter().map(object).collect(),
        tensors: manifest.tensors().iter().map(tensor).collect(),
    };
    Ok(serde_json::to_vec(&saved)?)
}

fn object(object: &Object) -> SavedObject {
    let since_epoch = |at: SystemTime| at.duration_since(SystemTime::UNIX_EPOCH).ok();
    SavedObject {
        key: object.key.as_str().to_owned(),
        name: object.name.clone(),
        bytes: object.bytes,
        etag: object.pin.etag.clone(),
        version: object.pin.version.clone(),
        modified: object.pin.last_modified.and_then(since_epoch),
        identity: Hex(object.identity),
        content: match &object.content {
            Content::Plain => SavedContent::Plain,
            Content::Digested(of) => SavedContent::Digested(coding(of)),
            Content::Framed(of) => SavedContent::Framed(coding(of)),
            Content::Stream(StreamCoding { stored_bytes }) => {
                SavedContent::Stream { stored_bytes: *stored_bytes }
            }
        },
        checksum: object.checksum.map(|digest| match digest {
            ObjectDigest::Crc64Nvme(sum) => SavedDigest::Crc64Nvme(sum),
            ObjectDigest::Crc32c(sum) => SavedDigest::Crc32c(sum),
            ObjectDigest::Sha256(digest) => SavedDigest::Sha256(Hex(digest)),
            ObjectDigest::Md5(digest) => SavedDigest::Md5(digest),
        }),
    }
}

fn coding(coding: &Coding) -> SavedCoding {
    let frame = |frame: &Frame| {
        let Frame { stored_offset, stored_bytes, plain_offset, plain_bytes, digest } = frame;
        (*stored_offset, *stored_bytes, *plain_offset, *plain_bytes, digest.map(Hex))
    };
    SavedCoding {
        stored_bytes: coding.stored_bytes(),
        plain_bytes: coding.plain_bytes(),
        frames: coding.frames().iter().map(frame).collect(),
        planes: coding.planes().iter().map(|p| (p.offset, p.bytes, p.width.bytes())).collect(),
        tile: coding.tile(),
    }
}

impl Resolver {
    /// The manifest that was [saved]: nothing is asked of its origin for it.
    pub(crate) fn restore(&self, bytes: &[u8]) -> Result<Arc<Manifest>, SavedError> {
        let saved: SavedManifest = serde_json::from_slice(bytes)?;
        if saved.format != FORMAT {
            return Err(SavedError::Format(saved.format));
        }
        let store = self.origins.open(&OriginUri::parse(&saved.uri)?)?;
        let objects: Vec<Object> =
            saved.objects.into_iter().map(restored).collect::<Result<_, _>>()?;
        let fits = |(index, entry): &(usize, TensorEntry)| {
            let end = entry.offset.checked_add(entry.bytes);
            objects.get(*index).is_some_and(|object| end.is_some_and(|end| end <= object.bytes))
        };
        if !saved.tensors.iter().all(fits) {
            return Err(SavedError::Impossible("a tensor of it lies outside its object"));
        }
        let total = objects.iter().try_fold(0_u64, |sum, object| sum.checked_add(object.bytes));
        if total.is_none_or(|total| total > super::CHECKPOINT_BYTES_MAX) {
            return Err(SavedError::Impossible("it is larger than a checkpoint can be"));
        }
        let tensors = saved.tensors.into_iter().map(|(object, entry)| Tensor { object, entry });
        let manifest = Manifest::new(saved.uri, objects, Arc::new(tensors.collect()), store);
        match manifest.revision().0 == saved.revision.0 {
            true => Ok(Arc::new(manifest)),
            false => Err(SavedError::Impossible("its objects are not those of its revision")),
        }
    }
}

fn restored(saved: SavedObject) -> Result<Object, SavedError> {
    let content = match saved.content {
        SavedContent::Plain => Content::Plain,
        SavedContent::Digested(coding) => Content::Digested(Arc::new(restored_coding(coding)?)),
        SavedContent::Framed(coding) => Content::Framed(Arc::new(restored_coding(coding)?)),
        SavedContent::Stream { stored_bytes } => Content::Stream(StreamCoding { stored_bytes }),
    };
    let last_modified = match saved.modified {
        Some(since) => Some(
            SystemTime::UNIX_EPOCH
                .checked_add(since)
                .ok_or(SavedError::Impossible("a time of it is beyond all times"))?,
        ),
        None => None,
    };
    Ok(Object {
        key: ObjectKey::parse(&saved.key)?,
        name: saved.name,
        bytes: saved.bytes,
        pin: Pin { etag: saved.etag, version: saved.version, last_modified },
        identity: saved.identity.0,
        pinned: true,
        content,
        checksum: saved.checksum.map(|digest| match digest {
            SavedDigest::Crc64Nvme(sum) => ObjectDigest::Crc64Nvme(sum),
            SavedDigest::Crc32c(sum) => ObjectDigest::Crc32c(sum),
            SavedDigest::Sha256(digest) => ObjectDigest::Sha256(digest.0),
            SavedDigest::Md5(digest) => ObjectDigest::Md5(digest),
        }),
    })
}

fn restored_coding(saved: SavedCoding) -> Result<Coding, SavedError> {
    let frame = |(stored_offset, stored_bytes, plain_offset, plain_bytes, digest)| {
        let digest: Option<Hex> = digest;
        let digest = digest.map(|digest| digest.0);
        Frame { stored_offset, stored_bytes, plain_offset, plain_bytes, digest }
    };
    let plane = |(offset, bytes, width)| {
        let width = Width::of_bytes(width).ok_or(SavedError::Impossible("no such width"))?;
        Ok::<_, SavedError>(PlaneRun { offset, bytes, width })
    };
    let planes = saved.planes.into_iter().map(plane).collect::<Result<_, _>>()?;
    let frames = saved.frames.into_iter().map(frame).collect();
    Ok(Coding::new(saved.stored_bytes, saved.plain_bytes, frames, planes, saved.tile)?)
}

/// A manifest that can be saved and restored: of one object of `bytes` below a folder.
#[cfg(test)]
pub(crate) fn manifest_at(uri: &str, bytes: u64) -> Arc<Manifest> {
    let plain = super::manifest_for_tests(&[("k", bytes)], &[("t", 0, 0, bytes)]);
    let (objects, tensors) = (plain.objects().to_vec(), Arc::new(plain.tensors().to_vec()));
    Arc::new(Manifest::new(uri.into(), objects, tensors, Arc::clone(plain.store())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resolve::manifest_for_tests;

    impl Resolver {
        /// One that can restore.
        pub(crate) fn for_tests() -> Self {
            use forebay_origin::{OriginSettings, Origins, SystemResolver};

            let origins =
                Origins::new(OriginSettings::default(), Arc::new(SystemResolver)).unwrap();
            let cpu = Arc::new(crate::cpu::Workers::start("test", 1).unwrap());
            let known = Arc::new(crate::verify::record::Records::in_memory().unwrap());
            Self::new(Arc::new(origins), cpu, None, known)
        }
    }

    /// Of every kind of content and digest, over a store that can be opened again.
    fn manifest() -> Manifest {
        let plain = manifest_for_tests(
            &[("a", 10), ("b", 20), ("c", 30), ("d", 40)],
            &[("t", 0, 2, 8), ("u", 3, 0, 40)],
        );
        let mut objects = plain.objects().to_vec();
        let frame = |digest| Frame {
            stored_offset: 3,
            stored_bytes: 7,
            plain_offset: 0,
            plain_bytes: if digest { 20 } else { 30 },
            digest: digest.then_some([7; 32]),
        };
        let run = PlaneRun { offset: 4, bytes: 8, width: Width::Two };
        let digested = Coding::new(20, 20, vec![frame(true)], vec![run], 64).unwrap();
        let framed = Coding::new(12, 30, vec![frame(false)], Vec::new(), 0).unwrap();
        objects[0].pin.last_modified = Some(SystemTime::UNIX_EPOCH + Duration::new(5, 7));
        objects[0].checksum = Some(ObjectDigest::Sha256([9; 32]));
        objects[1].content = Content::Digested(Arc::new(digested));
        objects[1].pin.version = Some("v1".into());
        objects[2].content = Content::Framed(Arc::new(framed));
        objects[2].checksum = Some(ObjectDigest::Md5([3; 16]));
        objects[3].content = Content::Stream(StreamCoding { stored_bytes: 11 });
        objects[3].checksum = Some(ObjectDigest::Crc64Nvme(u64::MAX));
        let tensors = Arc::new(plain.tensors().to_vec());
        Manifest::new("file:///nowhere/".into(), objects, tensors, Arc::clone(plain.store()))
    }

    #[test]
    fn what_was_saved_comes_back_as_it_was() {
        let manifest = manifest();
        let bytes = saved(&manifest).unwrap();
        let back = Resolver::for_tests().restore(&bytes).unwrap();
        assert_eq!(back.revision(), manifest.revision());
        assert_eq!(format!("{:?}", back.objects()), format!("{:?}", manifest.objects()));
        assert_eq!(back.tensors(), manifest.tensors());
        assert_eq!((back.uri(), back.bytes()), (manifest.uri(), manifest.bytes()));
        assert_eq!(saved(&back).unwrap(), bytes, "and again");
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let resolver = Resolver::for_tests();
        let text = String::from_utf8(saved(&manifest()).unwrap()).unwrap();
        for (from, to) in [
            ("\"format\":1", "\"format\":2"),
            ("\"name\":\"a\"", "\"name\":\"z\""),
            ("\"offset\":2,\"bytes\":8", "\"offset\":2,\"bytes\":9"),
            ("\"offset\":2,\"bytes\":8", "\"offset\":18446744073709551615,\"bytes\":8"),
            ("[[3,7,0,20,", "[[3,7,1,20,"),
            ("[[4,8,2]]", "[[4,8,3]]"),
            ("file:///nowhere/", "nowhere"),
        ] {
            let bent = text.replacen(from, to, 1);
            assert_ne!(bent, text, "{from} is in {text}");
            resolver.restore(bent.as_bytes()).unwrap_err();
        }
        for torn in [0, 1, text.len() / 2, text.len() - 1] {
            resolver.restore(&text.as_bytes()[..torn]).unwrap_err();
        }
    }

    #[test]
    fn what_cannot_be_asked_for_again_is_not_saved() {
        let manifest = manifest();
        let mut objects = manifest.objects().to_vec();
        objects[1].pinned = false;
        let store = Arc::clone(manifest.store());
        let unpinned = Manifest::new(manifest.uri().into(), objects, Arc::default(), store);
        saved(&unpinned).unwrap_err();
    }
}
