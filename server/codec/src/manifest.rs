//! The pack manifest: what `forebay pack` writes beside the objects, as [`MANIFEST_NAME`].
//!
//! Two lines and nothing else: the manifest as JSON, then `b3:` and the BLAKE3 of the first line
//! with its line feed, in hex. So a manifest that lost a bit, or its end, is no manifest.
//!
//! It says of every object what it was (size, digests, where it came from), how it is stored, and
//! the BLAKE3 of each of its frames' plain bytes. An object that compression does not shrink is
//! stored as it is, under its own name; its frames are then ranges of itself, so it has chunk
//! digests all the same. Nothing in a manifest is believed before [`PackManifest::parse`] has
//! checked it: names stay below the manifest and are there once, sizes add up, runs and tensors lie
//! in their objects.

mod check;
mod hex;

use serde::{Deserialize, Serialize};

use crate::coding::{Coding, CodingError, Frame, PlaneRun, Width};
use crate::tensor::TensorEntry;
use hex::Hex;

/// The name of the manifest, at the root of a packed checkpoint.
pub const MANIFEST_NAME: &str = "forebay.manifest";

/// Bytes of a manifest: a checkpoint of 64 TiB in frames of 16 MiB has fewer.
pub const MANIFEST_BYTES_MAX: usize = 512 << 20;

/// The version of the format that is written and read.
pub const FORMAT: u32 = 1;

/// Objects of a packed checkpoint.
pub const OBJECTS_MAX: usize = 100_000;

/// Bytes of an object's name.
pub const NAME_BYTES_MAX: usize = 1024;

/// The smallest frame.
pub const FRAME_BYTES_MIN: u64 = 4 << 10;

/// The largest frame: what a decoder is given at one time, and the largest chunk.
pub const FRAME_BYTES_MAX: u64 = 16 << 20;

/// Bytes of the mark of a source.
pub const SOURCE_BYTES_MAX: usize = 128;

/// What a stored object's name ends in, if it is compressed.
pub const CODED_SUFFIX: &str = ".zst";

/// The last line: `b3:`, 64 digits and a line feed.
const SEAL_BYTES: usize = 3 + 64 + 1;

/// What is wrong with a manifest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ManifestError {
    /// More bytes than there may be.
    #[error("{0} bytes are more than {MANIFEST_BYTES_MAX}")]
    TooLarge(usize),
    /// Not two lines, the second one a digest.
    #[error("these are not the two lines of a manifest")]
    Lines,
    /// The second line is not the digest of the first.
    #[error("the digest does not match")]
    Digest,
    /// The first line is not JSON, or other JSON than a manifest's.
    #[error("not valid: {0}")]
    Json(String),
    /// A version that is not known here.
    #[error("format {0} is not known, only {FORMAT}")]
    Format(u64),
    /// A parameter that cannot be.
    #[error("{what} cannot be {value}")]
    Parameter {
        /// Which one.
        what: &'static str,
        /// Its value.
        value: i64,
    },
    /// A mark of the source that is none.
    #[error("the mark of the source is not up to {SOURCE_BYTES_MAX} printable characters")]
    Source,
    /// More objects than there may be.
    #[error("{0} objects are more than {OBJECTS_MAX}")]
    Objects(usize),
    /// Something about one object.
    #[error("object {name:?} {problem}")]
    Object {
        /// Its name, cut to a printable length.
        name: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// Its frames or plane runs cannot be.
    #[error("object {name:?}: {problem}")]
    Coding {
        /// Its name, cut to a printable length.
        name: String,
        /// What is wrong with it.
        problem: CodingError,
    },
}

/// One packed checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PackManifest {
    /// [`FORMAT`].
    pub format: u32,
    /// Plain bytes of every frame but an object's last one.
    pub frame_bytes: u64,
    /// zstd's level.
    pub level: i32,
    /// A mark of what it was packed from, the same for the same URI and telling nothing of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// Its objects, each once.
    pub objects: Vec<PackedObject>,
}

/// One object of a packed checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PackedObject {
    /// What it is called, relative to the checkpoint.
    pub name: String,
    /// What it has, unpacked.
    pub bytes: u64,
    /// The name of what is stored: its own, with `.zst` if it is compressed.
    pub stored_name: String,
    /// What that has, with the seek table.
    pub stored_bytes: u64,
    /// Whether it is compressed.
    pub coded: bool,
    /// BLAKE3 of the object.
    #[serde(with = "hex")]
    pub blake3: [u8; 32],
    /// SHA-256 of the object.
    #[serde(with = "hex")]
    pub sha256: [u8; 32],
    /// Its frames, in order.
    pub frames: Vec<PackedFrame>,
    /// Its plane runs, in order.
    pub planes: Vec<PackedRun>,
    /// Plain bytes of a tile, where there are plane runs.
    pub tile: u32,
    /// Its tensors, in the order of their bytes, if its format has any.
    pub tensors: Option<Vec<TensorEntry>>,
    /// Where it came from.
    pub source: PackedSource,
}

/// Stored bytes of a frame, and BLAKE3 of its plain bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "(u64, Hex)", into = "(u64, Hex)")]
pub struct PackedFrame {
    /// In what is stored.
    pub stored_bytes: u64,
    /// BLAKE3 of the plain bytes.
    pub blake3: [u8; 32],
}

impl From<(u64, Hex)> for PackedFrame {
    fn from((stored_bytes, Hex(blake3)): (u64, Hex)) -> Self {
        Self { stored_bytes, blake3 }
    }
}

impl From<PackedFrame> for (u64, Hex) {
    fn from(frame: PackedFrame) -> Self {
        (frame.stored_bytes, Hex(frame.blake3))
    }
}

/// A plane run: first byte, bytes, bytes of an element.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "(u64, u64, u64)", into = "(u64, u64, u64)")]
pub struct PackedRun(pub PlaneRun);

impl TryFrom<(u64, u64, u64)> for PackedRun {
    type Error = &'static str;

    fn try_from((offset, bytes, width): (u64, u64, u64)) -> Result<Self, Self::Error> {
        let width = Width::of_bytes(width).ok_or("elements of planes have 2 or 4 bytes")?;
        Ok(Self(PlaneRun { offset, bytes, width }))
    }
}

impl From<PackedRun> for (u64, u64, u64) {
    fn from(PackedRun(run): PackedRun) -> Self {
        (run.offset, run.bytes, run.width.bytes())
    }
}

/// What an object was where it came from: enough to see that it has changed there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PackedSource {
    /// The entity tag, as the store writes it.
    pub etag: Option<String>,
    /// The store's version id.
    pub version: Option<String>,
    /// The time of last change, in milliseconds since 1970.
    pub modified_ms: Option<u64>,
    /// Its size there.
    pub bytes: u64,
}

impl PackManifest {
    /// What a manifest's bytes say, once everything is checked.
    pub fn parse(bytes: &[u8]) -> Result<Self, ManifestError> {
        if bytes.len() > MANIFEST_BYTES_MAX {
            return Err(ManifestError::TooLarge(bytes.len()));
        }
        let split = bytes.len().checked_sub(SEAL_BYTES).ok_or(ManifestError::Lines)?;
        let (line, seal) = bytes.split_at(split);
        let body = line.strip_suffix(b"\n").ok_or(ManifestError::Lines)?;
        let digits = seal.strip_prefix(b"b3:").and_then(|rest| rest.strip_suffix(b"\n"));
        let digest = digits.and_then(hex::parse).ok_or(ManifestError::Lines)?;
        if body.contains(&b'\n') {
            return Err(ManifestError::Lines);
        }
        if blake3::hash(line) != digest {
            return Err(ManifestError::Digest);
        }
        check::format(body)?;
        let manifest: Self = serde_json::from_slice(body).map_err(json)?;
        manifest.check()?;
        Ok(manifest)
    }

    /// The bytes of a manifest, once everything is checked.
    pub fn to_bytes(&self) -> Result<Vec<u8>, ManifestError> {
        self.check()?;
        let mut bytes = serde_json::to_vec(self).map_err(json)?;
        bytes.push(b'\n');
        let digest = blake3::hash(&bytes);
        bytes.extend_from_slice(format!("b3:{}\n", digest.to_hex()).as_bytes());
        match bytes.len() > MANIFEST_BYTES_MAX {
            true => Err(ManifestError::TooLarge(bytes.len())),
            false => Ok(bytes),
        }
    }

    /// Checks everything that the module's head promises.
    pub fn check(&self) -> Result<(), ManifestError> {
        check::manifest(self)
    }

    /// How an object of this manifest is coded: also one that is stored as it is, as frames that
    /// need no decoding.
    pub fn coding(&self, object: &PackedObject) -> Result<Coding, CodingError> {
        object.coding(self.frame_bytes)
    }
}

impl PackedObject {
    /// See [`PackManifest::coding`].
    pub fn coding(&self, frame_bytes: u64) -> Result<Coding, CodingError> {
        let planes = self.planes.iter().map(|run| run.0).collect();
        let frames = self.frames(frame_bytes);
        Coding::new(self.stored_bytes, self.bytes, frames, planes, self.tile)
    }

    /// Its frames, every one but the last with `frame_bytes` plain bytes.
    pub fn frames(&self, frame_bytes: u64) -> Vec<Frame> {
        let (mut stored_offset, mut plain_offset) = (0u64, 0u64);
        let frame = |packed: &PackedFrame| {
            let frame = Frame {
                stored_offset,
                stored_bytes: packed.stored_bytes,
                plain_offset,
                plain_bytes: frame_bytes.min(self.bytes.saturating_sub(plain_offset)),
                digest: Some(packed.blake3),
            };
            stored_offset = stored_offset.saturating_add(frame.stored_bytes);
            plain_offset = plain_offset.saturating_add(frame.plain_bytes);
            frame
        };
        self.frames.iter().map(frame).collect()
    }
}

fn json(error: serde_json::Error) -> ManifestError {
    ManifestError::Json(error.to_string())
}
