//! Object keys: the one form in which a key travels inside Forebay.
//!
//! A key is kept raw: for s3, gs and az exactly as the store knows it, for http and file after URL
//! decoding. Keys that a path on disk or a URL could read differently (`.`, `..`, an empty segment,
//! a control character) are refused here, so no other layer has to think about them.

use std::fmt;
use std::sync::Arc;

/// The longest key that any of the stores accepts.
pub const KEY_BYTES_MAX: usize = 1024;

/// How much of a refused key an error shows.
const SHOWN_CHARS_MAX: usize = 120;

/// A validated object key without leading or trailing slash. The empty key is the root of a store.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectKey(Arc<str>);

/// Why a text is no key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum KeyError {
    /// Two slashes in a row, or a slash at the start or the end.
    #[error("key {key} has an empty segment")]
    EmptySegment {
        /// The refused key, clipped and escaped.
        key: String,
    },
    /// A segment that a path or URL would resolve away.
    #[error("key {key} has the segment {segment:?}")]
    DotSegment {
        /// The refused key, clipped and escaped.
        key: String,
        /// `.` or `..`.
        segment: &'static str,
    },
    /// A control character, NUL among them.
    #[error("key {key} has a control character")]
    Control {
        /// The refused key, clipped and escaped.
        key: String,
    },
    /// Longer than [`KEY_BYTES_MAX`].
    #[error("a key of {bytes} bytes is longer than {KEY_BYTES_MAX}")]
    TooLong {
        /// Its length.
        bytes: usize,
    },
}

impl ObjectKey {
    /// Validates a key; the empty text is the root.
    pub fn parse(text: &str) -> Result<Self, KeyError> {
        if text.len() > KEY_BYTES_MAX {
            return Err(KeyError::TooLong { bytes: text.len() });
        }
        if text.is_empty() {
            return Ok(Self::root());
        }
        if text.bytes().any(|byte| byte.is_ascii_control()) {
            return Err(KeyError::Control { key: shown(text) });
        }
        for segment in text.split('/') {
            match segment {
                "" => return Err(KeyError::EmptySegment { key: shown(text) }),
                "." => return Err(KeyError::DotSegment { key: shown(text), segment: "." }),
                ".." => return Err(KeyError::DotSegment { key: shown(text), segment: ".." }),
                _ => {}
            }
        }
        Ok(Self(text.into()))
    }

    /// The root of a store: the prefix of every key.
    #[must_use]
    pub fn root() -> Self {
        Self("".into())
    }

    /// Whether this is the root.
    #[must_use]
    pub fn is_root(&self) -> bool {
        self.0.is_empty()
    }

    /// The key as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The last segment; empty for the root.
    #[must_use]
    pub fn file_name(&self) -> &str {
        self.0.rsplit('/').next().unwrap_or_default()
    }

    /// The key without its last segment.
    #[must_use]
    pub fn parent(&self) -> Self {
        self.0.rsplit_once('/').map_or_else(Self::root, |(parent, _)| Self(parent.into()))
    }

    /// The key of `relative` under this prefix.
    pub fn join(&self, relative: &str) -> Result<Self, KeyError> {
        if self.is_root() {
            return Self::parse(relative);
        }
        Self::parse(&format!("{self}/{relative}"))
    }

    /// This key relative to a prefix that holds it; `None` if the prefix does not.
    #[must_use]
    pub fn relative_to(&self, prefix: &Self) -> Option<&str> {
        if prefix.is_root() {
            return (!self.is_root()).then_some(self.as_str());
        }
        self.0.strip_prefix(prefix.as_str())?.strip_prefix('/')
    }
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", &*self.0)
    }
}

/// A refused text for an error: escaped, and clipped at a character.
pub(crate) fn shown(text: &str) -> String {
    let clipped: String = text.chars().take(SHOWN_CHARS_MAX).collect();
    let more = if clipped.len() < text.len() { "…" } else { "" };
    format!("{clipped:?}{more}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn odd_keys_are_kept_as_they_are() {
        for text in ["a b", "%2e", "%2E%2e/x", "ü/日本", "a?b#c&d=e", "...", ".hidden", "a\\b", "~"]
        {
            assert_eq!(ObjectKey::parse(text).unwrap().as_str(), text);
        }
        assert_eq!(ObjectKey::parse(&"k".repeat(1024)).unwrap().as_str().len(), 1024);
    }

    #[test]
    fn ambiguous_keys_are_refused() {
        for text in ["/a", "a/", "a//b", "/"] {
            assert!(matches!(ObjectKey::parse(text), Err(KeyError::EmptySegment { .. })), "{text}");
        }
        for text in [".", "..", "a/../b", "./a", "a/."] {
            assert!(matches!(ObjectKey::parse(text), Err(KeyError::DotSegment { .. })), "{text}");
        }
        assert!(matches!(ObjectKey::parse("a\0b"), Err(KeyError::Control { .. })));
        assert_eq!(ObjectKey::parse(&"k".repeat(1025)), Err(KeyError::TooLong { bytes: 1025 }));
    }

    #[test]
    fn relative_keys_end_at_a_segment() {
        let key = ObjectKey::parse("models/a/x").unwrap();
        let prefix = ObjectKey::parse("models/a").unwrap();
        assert_eq!(key.relative_to(&prefix), Some("x"));
        assert_eq!(key.relative_to(&ObjectKey::root()), Some("models/a/x"));
        assert_eq!(prefix.relative_to(&key), None);
        assert_eq!(key.relative_to(&key), None);
        assert_eq!(ObjectKey::parse("models/ab").unwrap().relative_to(&prefix), None);
        assert_eq!(prefix.join("x").unwrap(), key);
        assert_eq!(key.parent(), prefix);
        assert_eq!(key.file_name(), "x");
        prefix.join("../x").unwrap_err();
    }
}
