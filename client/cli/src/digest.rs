//! SHA-256 of what was handed over, object by object.
//!
//! Pieces of an object come in order; objects may alternate, each has a state of its own.

use std::collections::HashMap;
use std::fmt::Write;

use forebay_client::Piece;
use forebay_client::model::{Manifest, ObjectIndex};
use serde::Serialize;
use sha2::{Digest as _, Sha256};

use crate::worker::Feed;

/// The digest of one object.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub(crate) struct Digest {
    pub(crate) key: String,
    pub(crate) sha256: String,
}

impl Digest {
    /// The line that `sha256sum` writes: a backslash in front where the key had to be escaped.
    pub(crate) fn line(&self) -> String {
        if !self.key.contains(['\\', '\n', '\r']) {
            return format!("{}  {}\n", self.sha256, self.key);
        }
        let key = self.key.replace('\\', "\\\\").replace('\n', "\\n").replace('\r', "\\r");
        format!("\\{}  {key}\n", self.sha256)
    }
}

/// States of the objects that bytes came for.
pub(crate) type Hashers = HashMap<ObjectIndex, Sha256>;

/// The thread's work.
pub(crate) fn hash(feed: Feed<Piece>) -> Hashers {
    let mut hashers = Hashers::new();
    for piece in feed {
        hashers.entry(piece.object()).or_default().update(piece.bytes());
    }
    hashers
}

/// Digests in key order. Objects that no byte came for have one if they are empty and whole
/// objects were asked for.
pub(crate) fn digests(mut hashers: Hashers, manifest: &Manifest, whole: bool) -> Vec<Digest> {
    let objects = manifest.objects().iter().enumerate();
    let mut digests: Vec<Digest> = objects
        .filter_map(|(index, object)| {
            let hasher = hashers.remove(&ObjectIndex(index));
            let hasher = hasher.or_else(|| (whole && object.bytes == 0).then(Sha256::new))?;
            Some(Digest { key: object.key.clone(), sha256: hex(&hasher.finalize()) })
        })
        .collect();
    digests.sort();
    digests
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        // Writing to a string cannot fail.
        write!(text, "{byte:02x}").ok();
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_those_of_sha256sum() {
        let digest = |key: &str| Digest { key: key.into(), sha256: "ab".into() };
        assert_eq!(digest("a b/ü").line(), "ab  a b/ü\n");
        assert_eq!(digest("a\\b\nc").line(), "\\ab  a\\\\b\\nc\n");
    }

    #[test]
    fn hex_is_lower_case_with_both_digits() {
        assert_eq!(hex(&[0, 0xab, 0x0c]), "00ab0c");
    }
}
