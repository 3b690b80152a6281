//! Origin URIs: scheme, bucket or host, key, and for http a query that stays secret.
//!
//! s3, gs and az URIs are not URLs: what follows the bucket is the key, byte for byte, as the
//! clouds' own tools read it. http(s) and file URIs are URLs: their paths are decoded once, here. A
//! query may carry a signature, so it is shown by nothing: not by `Display`, not by `Debug`, not by
//! errors.

use std::fmt;
use std::str::FromStr;

use crate::key::{KeyError, ObjectKey, shown};

/// The longest bucket, container or host name that is accepted.
const AUTHORITY_BYTES_MAX: usize = 255;

/// How an origin is spoken to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Scheme {
    /// Amazon S3 and what speaks its protocol.
    S3,
    /// Google Cloud Storage.
    Gs,
    /// Azure Blob Storage.
    Az,
    /// HTTP without TLS.
    Http,
    /// HTTP over TLS.
    Https,
    /// Files of this machine.
    File,
}

impl Scheme {
    /// The scheme as written before `://`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::S3 => "s3",
            Self::Gs => "gs",
            Self::Az => "az",
            Self::Http => "http",
            Self::Https => "https",
            Self::File => "file",
        }
    }

    /// Whether this is plain or encrypted HTTP.
    #[must_use]
    pub fn is_web(self) -> bool {
        matches!(self, Self::Http | Self::Https)
    }

    fn from_name(name: &str) -> Option<Self> {
        Some(match name.to_ascii_lowercase().as_str() {
            "s3" => Self::S3,
            "gs" => Self::Gs,
            "az" => Self::Az,
            "http" => Self::Http,
            "https" => Self::Https,
            "file" => Self::File,
            _ => return None,
        })
    }
}

/// A text that no formatter shows.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(crate) struct Secret(String);

impl Secret {
    pub(crate) fn new(text: String) -> Self {
        Self(text)
    }

    pub(crate) fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// Why a text is no origin URI.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum UriError {
    /// No `scheme://`.
    #[error("{uri} has no scheme")]
    NoScheme {
        /// The refused text without its query.
        uri: String,
    },
    /// A scheme that is not supported.
    #[error("scheme {scheme} is not supported")]
    UnknownScheme {
        /// The refused scheme.
        scheme: String,
    },
    /// No bucket, container or host, or one that cannot be.
    #[error("{authority} is no {wanted}")]
    BadAuthority {
        /// The refused text.
        authority: String,
        /// What was wanted there.
        wanted: &'static str,
    },
    /// A user name or password in the URI.
    #[error("a user name or password in a URI is not accepted")]
    Credentials,
    /// A fragment, which no server ever sees.
    #[error("{uri} has a fragment: write # in a name as %23")]
    Fragment {
        /// The refused text without its query.
        uri: String,
    },
    /// A percent sign that encodes nothing, or bytes that are no UTF-8.
    #[error("{uri} is not percent-encoded UTF-8")]
    BadEncoding {
        /// The refused text without its query.
        uri: String,
    },
    /// An encoded slash, which would change the number of segments.
    #[error("{uri} has an encoded slash")]
    EncodedSlash {
        /// The refused text without its query.
        uri: String,
    },
    /// The key is refused.
    #[error(transparent)]
    Key(#[from] KeyError),
}

/// A validated origin URI. `Display` is its canonical form, without any query.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct OriginUri {
    scheme: Scheme,
    authority: String,
    key: ObjectKey,
    prefix: bool,
    web: Option<WebTarget>,
}

/// What an http(s) URI says beyond its decoded key: needed to ask for exactly what was signed.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) struct WebTarget {
    /// Path and query as written.
    pub(crate) exact: Secret,
    /// The query without its question mark.
    pub(crate) query: Secret,
}

impl OriginUri {
    /// Reads a URI.
    pub fn parse(text: &str) -> Result<Self, UriError> {
        let Some((scheme, rest)) = text.split_once("://") else {
            return Err(UriError::NoScheme { uri: shown_without_query(text) });
        };
        let Some(scheme) = Scheme::from_name(scheme) else {
            return Err(UriError::UnknownScheme { scheme: shown(scheme) });
        };
        match scheme {
            Scheme::S3 | Scheme::Gs | Scheme::Az => Self::cloud(scheme, rest),
            Scheme::Http | Scheme::Https => Self::web(scheme, rest, text),
            Scheme::File => Self::file(rest, text),
        }
    }

    fn cloud(scheme: Scheme, rest: &str) -> Result<Self, UriError> {
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        let wanted = if scheme == Scheme::Az { "container" } else { "bucket" };
        let named = authority.starts_with(|c: char| c.is_ascii_alphanumeric())
            && authority.len() <= AUTHORITY_BYTES_MAX
            && authority.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b));
        if !named {
            return Err(UriError::BadAuthority { authority: shown(authority), wanted });
        }
        let (key, prefix) = split_prefix(path);
        let key = ObjectKey::parse(key)?;
        Ok(Self { scheme, authority: authority.to_owned(), key, prefix, web: None })
    }

    fn web(scheme: Scheme, rest: &str, text: &str) -> Result<Self, UriError> {
        let (target, query) = rest.split_once('?').map_or((rest, None), |(t, q)| (t, Some(q)));
        if rest.contains('#') {
            return Err(UriError::Fragment { uri: shown_without_query(text) });
        }
        let (authority, path) = target.split_once('/').unwrap_or((target, ""));
        let authority = host_and_port(scheme, authority)?;
        let (raw, prefix) = split_prefix(path);
        let key = ObjectKey::parse(&decoded(raw, text)?)?;
        let web = query.map(|query| WebTarget {
            exact: Secret::new(format!("/{path}?{query}")),
            query: Secret::new(query.to_owned()),
        });
        Ok(Self { scheme, authority, key, prefix, web })
    }

    fn file(rest: &str, text: &str) -> Result<Self, UriError> {
        if rest.contains('#') {
            return Err(UriError::Fragment { uri: shown_without_query(text) });
        }
        let Some((host, path)) = rest.split_once('/') else {
            return Err(UriError::BadAuthority {
                authority: shown(rest),
                wanted: "absolute path (file:///path)",
            });
        };
        if !host.is_empty() && !host.eq_ignore_ascii_case("localhost") {
            return Err(UriError::BadAuthority {
                authority: shown(host),
                wanted: "host of this machine (file:///path)",
            });
        }
        let (raw, prefix) = split_prefix(path);
        let key = ObjectKey::parse(&decoded(raw, text)?)?;
        Ok(Self { scheme: Scheme::File, authority: String::new(), key, prefix, web: None })
    }

    /// How the origin is spoken to.
    #[must_use]
    pub fn scheme(&self) -> Scheme {
        self.scheme
    }

    /// Bucket, container, or host with its port; empty for file.
    #[must_use]
    pub fn authority(&self) -> &str {
        &self.authority
    }

    /// The object's key, or the prefix without its trailing slash.
    #[must_use]
    pub fn key(&self) -> &ObjectKey {
        &self.key
    }

    /// Whether the URI ends with a slash or names a whole store.
    #[must_use]
    pub fn is_prefix(&self) -> bool {
        self.prefix
    }

    /// Scheme and bucket or host: the name of the origin in statistics.
    #[must_use]
    pub fn origin(&self) -> String {
        format!("{}://{}", self.scheme.as_str(), self.authority)
    }

    /// Whether the URI carries a query, which may be a signature.
    #[must_use]
    pub fn has_query(&self) -> bool {
        self.web.is_some()
    }

    /// The URI of another object of the same origin, with the same query.
    #[must_use]
    pub fn with_key(&self, key: ObjectKey, prefix: bool) -> Self {
        Self { key, prefix, ..self.clone() }
    }

    pub(crate) fn web_target(&self) -> Option<&WebTarget> {
        self.web.as_ref()
    }
}

impl FromStr for OriginUri {
    type Err = UriError;

    fn from_str(text: &str) -> Result<Self, UriError> {
        Self::parse(text)
    }
}

impl fmt::Display for OriginUri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}/", self.scheme.as_str(), self.authority)?;
        match self.scheme {
            Scheme::Http | Scheme::Https | Scheme::File => f.write_str(&encoded(&self.key))?,
            Scheme::S3 | Scheme::Gs | Scheme::Az => f.write_str(self.key.as_str())?,
        }
        let slash = self.prefix && !self.key.is_root();
        f.write_str(if slash { "/" } else { "" })
    }
}

impl fmt::Debug for OriginUri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "OriginUri({self}{})", if self.web.is_some() { "?***" } else { "" })
    }
}

/// A path without its trailing slash, and whether it had one or was empty.
fn split_prefix(path: &str) -> (&str, bool) {
    match path.strip_suffix('/') {
        Some(key) if !key.is_empty() => (key, true),
        _ => (path, path.is_empty()),
    }
}

/// Host and port in canonical form: lower case, no default port.
fn host_and_port(scheme: Scheme, authority: &str) -> Result<String, UriError> {
    if authority.contains('@') {
        return Err(UriError::Credentials);
    }
    let bad = || UriError::BadAuthority { authority: shown(authority), wanted: "host" };
    let written = as_written(scheme, authority).ok_or_else(bad)?;
    // A name in letters beyond ASCII is written longer than it was given, and has to be a name as it
    // is written: that is what is shown, and what names of revisions keep.
    if as_written(scheme, &written).as_ref() == Some(&written) { Ok(written) } else { Err(bad()) }
}

/// How a host and its port are written, if they can be one.
fn as_written(scheme: Scheme, authority: &str) -> Option<String> {
    if authority.is_empty() || authority.len() > AUTHORITY_BYTES_MAX {
        return None;
    }
    let url = url::Url::parse(&format!("{}://{authority}/", scheme.as_str())).ok()?;
    let host = url.host_str()?;
    Some(url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}")))
}

/// Undoes percent-encoding, once.
fn decoded(raw: &str, text: &str) -> Result<String, UriError> {
    let bad = || UriError::BadEncoding { uri: shown_without_query(text) };
    let mut bytes = Vec::with_capacity(raw.len());
    let mut rest = raw.as_bytes();
    while let Some((&byte, tail)) = rest.split_first() {
        rest = tail;
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let (digits, tail) = tail.split_at_checked(2).ok_or_else(bad)?;
        rest = tail;
        let value = hex(digits).ok_or_else(bad)?;
        if value == b'/' {
            return Err(UriError::EncodedSlash { uri: shown_without_query(text) });
        }
        bytes.push(value);
    }
    String::from_utf8(bytes).map_err(|_| bad())
}

fn hex(digits: &[u8]) -> Option<u8> {
    digits.iter().try_fold(0_u8, |value, digit| {
        let digit = char::from(*digit).to_digit(16).and_then(|d| u8::try_from(d).ok())?;
        Some(value << 4 | digit)
    })
}

/// The key as the path of a URL.
pub(crate) fn encoded(key: &ObjectKey) -> String {
    let mut path = String::with_capacity(key.as_str().len());
    for byte in key.as_str().bytes() {
        if byte.is_ascii_alphanumeric() || b"/-._~!$&'()*+,;=:@".contains(&byte) {
            path.push(char::from(byte));
        } else {
            path.push_str(&format!("%{byte:02X}"));
        }
    }
    path
}

fn shown_without_query(text: &str) -> String {
    let end = text.find(['?', '#']).unwrap_or(text.len());
    let text = &text[..end];
    // Whatever stands before an @ may be a password.
    shown(text.rsplit_once('@').map_or(text, |(_, host)| host))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(text: &str) -> (String, String, bool, String) {
        let uri = OriginUri::parse(text).unwrap();
        (uri.authority().into(), uri.key().to_string(), uri.is_prefix(), uri.to_string())
    }

    #[test]
    fn uris_are_read_as_their_schemes_mean_them() {
        let table = [
            ("s3://b/k", "b", "k", false, "s3://b/k"),
            ("S3://b", "b", "", true, "s3://b/"),
            ("s3://b/", "b", "", true, "s3://b/"),
            ("s3://b/p/", "b", "p", true, "s3://b/p/"),
            ("s3://b/a b%20c?x#y", "b", "a b%20c?x#y", false, "s3://b/a b%20c?x#y"),
            ("s3://b/%2e/%2E%2e", "b", "%2e/%2E%2e", false, "s3://b/%2e/%2E%2e"),
            ("gs://b.c_d/ü", "b.c_d", "ü", false, "gs://b.c_d/ü"),
            ("az://cont/p/x", "cont", "p/x", false, "az://cont/p/x"),
            ("http://H:80/a%20b", "h", "a b", false, "http://h/a%20b"),
            ("http://h:8080/a/", "h:8080", "a", true, "http://h:8080/a/"),
            ("https://[::1]:443/%C3%BC", "[::1]", "ü", false, "https://[::1]/%C3%BC"),
            ("https://h/%252e", "h", "%2e", false, "https://h/%252e"),
            ("https://h", "h", "", true, "https://h/"),
            ("file:///a%20b/c%23", "", "a b/c#", false, "file:///a%20b/c%23"),
            ("file://localhost/a/", "", "a", true, "file:///a/"),
            ("file:///a?b", "", "a?b", false, "file:///a%3Fb"),
        ];
        for (text, authority, key, prefix, canonical) in table {
            let want = (authority.into(), key.into(), prefix, canonical.into());
            assert_eq!(parts(text), want, "{text}");
            assert_eq!(parts(canonical), want, "canonical form of {text}");
        }
    }

    #[test]
    fn what_is_no_uri_is_refused_with_its_reason() {
        let bad = |text: &str| OriginUri::parse(text).unwrap_err();
        assert!(matches!(bad("model"), UriError::NoScheme { .. }));
        assert!(matches!(bad("ftp://h/x"), UriError::UnknownScheme { .. }));
        for text in ["s3://", "s3:///k", "s3://../k", "s3://b c/k", "s3://b:80/k", "az:///x"] {
            assert!(matches!(bad(text), UriError::BadAuthority { .. }), "{text}");
        }
        for text in ["http://", "http:///x", "file://other/x", "file://x", "http://h:99999/x"] {
            assert!(matches!(bad(text), UriError::BadAuthority { .. }), "{text}");
        }
        // Short enough as it is given, too long as it would be written.
        let long = format!("http://\u{fc}{}/x", "a".repeat(AUTHORITY_BYTES_MAX - 2));
        assert!(matches!(bad(&long), UriError::BadAuthority { .. }));
        assert_eq!(bad("https://user:pass@h/x"), UriError::Credentials);
        assert!(matches!(bad("https://h/x#y"), UriError::Fragment { .. }));
        assert!(matches!(bad("http://h/%zz"), UriError::BadEncoding { .. }));
        assert!(matches!(bad("http://h/%2"), UriError::BadEncoding { .. }));
        assert!(matches!(bad("http://h/%ff"), UriError::BadEncoding { .. }));
        assert!(matches!(bad("http://h/a%2Fb"), UriError::EncodedSlash { .. }));
        for text in [
            "s3://b/a/../b",
            "s3://b//a",
            "s3://b/a//",
            "http://h/%2e%2E/x",
            "http://h/./x",
            "file:///a/../b",
            "file:////a",
            "file:///a%00b",
        ] {
            assert!(matches!(bad(text), UriError::Key(_)), "{text}");
        }
        let long = format!("s3://b/{}", "k".repeat(1025));
        assert!(matches!(bad(&long), UriError::Key(KeyError::TooLong { bytes: 1025 })));
    }

    #[test]
    fn a_query_is_shown_nowhere() {
        let canary = "X-Amz-Signature=canary";
        let uri = OriginUri::parse(&format!("https://h/a%20b?{canary}")).unwrap();
        assert_eq!(uri.web_target().unwrap().exact.reveal(), format!("/a%20b?{canary}"));
        assert_eq!(uri.to_string(), "https://h/a%20b");
        assert!(!format!("{uri:?} {uri} {:?}", uri.web_target()).contains("canary"));
        for text in [
            format!("https://h/%zz?{canary}"),
            format!("https://h/a/../b?{canary}"),
            format!("https://h/a?{canary}#f"),
            format!("nothing?{canary}"),
            "https://canary:canary@h/%zz".to_owned(),
            "canary@h?x".to_owned(),
        ] {
            let error = OriginUri::parse(&text).unwrap_err();
            assert!(!format!("{error} {error:?}").contains("canary"), "{error}");
        }
        assert_ne!(uri, OriginUri::parse("https://h/a%20b?other").unwrap());
    }
}
