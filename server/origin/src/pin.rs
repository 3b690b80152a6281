//! Version pins: what makes one version of an object recognisable, and whether an answer shows it.
//!
//! A strong ETag is sent as `If-Match`. A weak one, which RFC 9110 forbids there, or none at all is
//! replaced by `If-Unmodified-Since`. Because servers exist that ignore both, every answer's own
//! ETag and time are compared too, and the size always is.

use std::time::{Duration, SystemTime};

/// A version of an object, as far as its store tells versions apart.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Pin {
    /// The entity tag as the store writes it, quotes included.
    pub etag: Option<String>,
    /// The store's own version id. Part of the identity; reads are conditional on the tag.
    pub version: Option<String>,
    /// The time of last change.
    pub last_modified: Option<SystemTime>,
}

impl Pin {
    /// What `object_store` knows of an object.
    pub(crate) fn of(meta: &object_store::ObjectMeta) -> Self {
        let modified = SystemTime::from(meta.last_modified);
        Self {
            etag: meta.e_tag.as_deref().map(normal_etag),
            version: meta.version.clone(),
            // object_store says 1970 where a server says nothing.
            last_modified: (modified > SystemTime::UNIX_EPOCH).then_some(modified),
        }
    }

    /// What `object_store` knows of an object that it wrote.
    pub(crate) fn written(written: object_store::PutResult) -> Self {
        let etag = written.e_tag.as_deref().map(normal_etag);
        Self { etag, version: written.version, last_modified: None }
    }

    /// The tag, if it may be used in `If-Match`.
    pub(crate) fn strong_etag(&self) -> Option<&str> {
        self.etag.as_deref().filter(|etag| !etag.starts_with("W/"))
    }

    /// Why an answer with this pin is about another version; `None` if it may be the same.
    pub(crate) fn difference(&self, seen: &Self) -> Option<&'static str> {
        if let (Some(mine), Some(theirs)) = (&self.etag, &seen.etag) {
            return (mine != theirs).then_some("its ETag differs");
        }
        match (self.last_modified, seen.last_modified) {
            // Headers have whole seconds, listings may have finer ones.
            (Some(mine), Some(theirs)) if seconds(mine) != seconds(theirs) => {
                Some("its time of change differs")
            }
            _ => None,
        }
    }

    /// Whether the object with the second pin was written after the one with this: they differ in
    /// something that both have. One that was not written again differs in nothing.
    pub(crate) fn is_replaced_by(&self, later: &Self) -> bool {
        fn differ<T: PartialEq>(old: Option<T>, new: Option<T>) -> bool {
            old.zip(new).is_some_and(|(old, new)| old != new)
        }
        differ(self.etag.as_ref(), later.etag.as_ref())
            || differ(self.version.as_ref(), later.version.as_ref())
            || differ(self.last_modified.map(seconds), later.last_modified.map(seconds))
    }
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs()
}

/// Azure's listings leave out the quotes that its headers and `If-Match` have.
fn normal_etag(etag: &str) -> String {
    if etag.starts_with('"') || etag.starts_with("W/") {
        return etag.to_owned();
    }
    format!("\"{etag}\"")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pin(etag: Option<&str>, millis: Option<u64>) -> Pin {
        Pin {
            etag: etag.map(str::to_owned),
            version: None,
            last_modified: millis.map(|ms| SystemTime::UNIX_EPOCH + Duration::from_millis(ms)),
        }
    }

    #[test]
    fn the_tag_decides_where_both_have_one() {
        let mine = pin(Some("\"a\""), Some(1_500));
        assert_eq!(mine.difference(&pin(Some("\"a\""), Some(9_000))), None);
        assert!(mine.difference(&pin(Some("\"b\""), Some(1_500))).is_some());
        assert!(pin(Some("W/\"a\""), None).difference(&pin(Some("W/\"b\""), None)).is_some());
    }

    #[test]
    fn the_time_decides_otherwise_in_whole_seconds() {
        let mine = pin(None, Some(1_999));
        assert_eq!(mine.difference(&pin(Some("\"x\""), Some(1_000))), None);
        assert!(mine.difference(&pin(None, Some(2_000))).is_some());
        assert_eq!(mine.difference(&pin(None, None)), None);
    }

    #[test]
    fn another_object_is_told_by_whatever_tells_it() {
        let old = pin(Some("\"a\""), Some(1_500));
        assert!(!old.is_replaced_by(&old.clone()));
        assert!(!old.is_replaced_by(&pin(None, None)), "nothing says so");
        assert!(!old.is_replaced_by(&pin(Some("\"a\""), Some(1_000))), "headers have seconds");
        assert!(old.is_replaced_by(&pin(Some("\"b\""), Some(1_500))));
        assert!(old.is_replaced_by(&pin(Some("\"a\""), Some(2_000))), "the same content again");
        let version = |name: &str| Pin { version: Some(name.into()), ..old.clone() };
        assert!(version("1").is_replaced_by(&version("2")) && !old.is_replaced_by(&version("2")));
    }

    #[test]
    fn weak_tags_are_never_sent_as_if_match() {
        assert_eq!(pin(Some("W/\"a\""), None).strong_etag(), None);
        assert_eq!(pin(Some("\"a\""), None).strong_etag(), Some("\"a\""));
        assert_eq!(normal_etag("0x8D"), "\"0x8D\"");
        assert_eq!(normal_etag("W/\"a\""), "W/\"a\"");
    }
}
