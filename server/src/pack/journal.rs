//! What a pack that is not finished keeps at its destination, so that the next one goes on there.
//!
//! ```text
//!   .forebay.pack/claim       which names it writes, and for which source: before the first is written
//!   .forebay.pack/<digest>    per object that is written and read again: its entry of the manifest,
//!                             and what the store says of what is stored
//! ```
//!
//! Each is two lines, as the manifest is: JSON, then the BLAKE3 of that line. What is damaged is as
//! good as not there. They are removed once the manifest is in place.

use forebay_codec::manifest::{PackManifest, PackedObject, PackedSource};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::PackError;

/// Where all of it lies; nothing here is part of a checkpoint.
pub(super) const FOLDER: &str = ".forebay.pack/";

/// The name of the claim.
pub(super) const CLAIM: &str = ".forebay.pack/claim";

/// Bytes of a claim, or of an entry.
pub(super) const BYTES_MAX: u64 = 256 << 20;

/// The names that a pack writes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Claim {
    /// The mark of its source.
    pub(super) source: String,
    /// What the objects are called, unpacked.
    pub(super) names: Vec<String>,
}

/// An object that is done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Entry {
    /// What the store says of what is stored.
    pub(super) stored: PackedSource,
    /// A manifest of this object alone.
    pub(super) manifest: PackManifest,
}

impl Entry {
    /// The object.
    pub(super) fn object(&self) -> Option<&PackedObject> {
        self.manifest.objects.first()
    }

    /// What an entry's bytes say, if they are whole and make sense.
    pub(super) fn parse(bytes: &[u8]) -> Option<Self> {
        let entry: Self = unsealed(bytes)?;
        let sound = entry.manifest.check().is_ok() && entry.manifest.objects.len() == 1;
        sound.then_some(entry)
    }
}

/// The name of an object's entry.
pub(super) fn entry_name(object: &str) -> String {
    let digest = blake3::hash(object.as_bytes()).to_hex();
    format!("{FOLDER}{}", digest.get(..32).unwrap_or_default())
}

/// The mark of a source: the same for the same URI, and nothing of it can be read there.
pub(super) fn mark(uri: &str) -> String {
    format!("b3:{}", blake3::hash(uri.trim_end_matches('/').as_bytes()).to_hex())
}

/// The two lines.
pub(super) fn sealed(value: &impl Serialize) -> Result<Vec<u8>, PackError> {
    let mut bytes =
        serde_json::to_vec(value).map_err(|error| PackError::Encoded(error.to_string()))?;
    bytes.push(b'\n');
    let digest = blake3::hash(&bytes).to_hex();
    bytes.extend_from_slice(format!("b3:{digest}\n").as_bytes());
    Ok(bytes)
}

/// What is sealed in two lines, if it is whole.
pub(super) fn unsealed<T: DeserializeOwned>(bytes: &[u8]) -> Option<T> {
    let body = bytes.split_inclusive(|byte| *byte == b'\n').next()?;
    let seal = format!("b3:{}\n", blake3::hash(body).to_hex());
    if bytes.get(body.len()..)? != seal.as_bytes() {
        return None;
    }
    serde_json::from_slice(body).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_claim_that_lost_a_bit_is_none() {
        let claim = Claim { source: mark("s3://b/k/"), names: vec!["a\nb".into(), "ü".into()] };
        let bytes = sealed(&claim).unwrap();
        assert_eq!(unsealed(&bytes), Some(claim));
        for at in 0..bytes.len() {
            for bit in [0, 5] {
                let mut bad = bytes.clone();
                bad[at] ^= 1 << bit;
                assert_eq!(unsealed::<Claim>(&bad), None, "bit {bit} of byte {at}");
            }
            assert_eq!(unsealed::<Claim>(&bytes[..at]), None, "cut at {at}");
        }
        assert_eq!(unsealed::<Claim>(&sealed(&["x"]).unwrap()), None);
    }

    #[test]
    fn marks_and_names_tell_sources_and_objects_apart() {
        assert_eq!(mark("s3://b/k"), mark("s3://b/k/"));
        assert_ne!(mark("s3://b/k"), mark("s3://b/l"));
        assert!(!mark("s3://secret/k").contains("secret"));
        assert_ne!(entry_name("a"), entry_name("b"));
        assert_eq!(entry_name("a/../b").len(), FOLDER.len() + 32);
    }
}
