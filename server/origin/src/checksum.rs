//! The checksums that stores keep of their objects: read off the head of an answer.
//!
//! Every family of stores has headers of its own, and none of them collide. Only what is of the
//! whole object and of the bytes as they are sent counts: a checksum of the checksums of parts, or
//! one of a form that the store keeps but does not send, would refuse good bytes. What is not well
//! formed is left out: a store that says nothing useful is as good as one that says nothing.

use std::sync::{Arc, OnceLock};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use http::header::{HeaderName, HeaderValue};
use http::{HeaderMap, StatusCode};
use object_store::ObjectStore;

use crate::error::OriginError;

/// What a store says of an object's bytes, all of them. Each is there if the store has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Checksums {
    /// CRC-64/NVME.
    pub crc64_nvme: Option<u64>,
    /// CRC-32C (Castagnoli).
    pub crc32c: Option<u32>,
    /// SHA-256.
    pub sha256: Option<[u8; 32]>,
    /// MD5.
    pub md5: Option<[u8; 16]>,
}

impl Checksums {
    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Those in an answer's head.
    pub(crate) fn in_head(status: StatusCode, headers: &HeaderMap) -> Self {
        let head = HeadText(headers);
        let mut found = Self::default();
        head.amazon(&mut found);
        head.google(&mut found);
        head.microsoft(&mut found);
        head.web(&mut found);
        // Of what was sent, so of the object only if that was sent whole.
        if status == StatusCode::OK {
            found.md5 = found.md5.or_else(|| head.value("content-md5"));
        }
        found
    }
}

/// The MD5 that an entity tag of S3 is: of an object that was stored in one piece, and not
/// encrypted with a key of its own. Whether the answer is S3's, the caller knows.
pub(crate) fn md5_of_tag(headers: &HeaderMap) -> Option<[u8; 16]> {
    let head = HeadText(headers);
    let plain = head.text("x-amz-server-side-encryption").is_none_or(|kind| kind == "AES256");
    let own_key = headers.contains_key("x-amz-server-side-encryption-customer-algorithm");
    let tag = head.text("etag")?.trim().strip_prefix('"')?.strip_suffix('"')?;
    if own_key || !plain || tag.len() != 32 {
        return None;
    }
    let mut md5 = [0; 16];
    for (byte, digits) in md5.iter_mut().zip(tag.as_bytes().chunks_exact(2)) {
        let [high, low] = digits else { return None };
        *byte = nibble(*high)? << 4 | nibble(*low)?;
    }
    Some(md5)
}

fn nibble(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).and_then(|value| u8::try_from(value).ok())
}

/// How a store is asked for checksums that it does not tell unasked: S3, with a header of its own.
///
/// Stores that only resemble S3 may refuse a header that they do not know. So as long as it is not
/// known whether this one does, a head that is refused is followed by one without it; what comes
/// of that is kept for all that follow. Forbidden is another matter: S3 forbids to ask this of an
/// object whose key one may not use, so that says nothing of the next object, or of the next time.
#[derive(Debug, Clone)]
pub(crate) struct Asking {
    /// The store, with the header in all its requests.
    pub(crate) store: Arc<dyn ObjectStore>,
    learnt: Arc<OnceLock<bool>>,
}

impl Asking {
    pub(crate) fn new(store: Arc<dyn ObjectStore>) -> Self {
        Self { store, learnt: Arc::default() }
    }

    /// The header, for [`object_store::ClientOptions::with_default_headers`]: it has to be signed.
    pub(crate) fn headers() -> HeaderMap {
        let mode = HeaderName::from_static("x-amz-checksum-mode");
        HeaderMap::from_iter([(mode, HeaderValue::from_static("ENABLED"))])
    }

    /// Whether it is asked, as far as is known.
    pub(crate) fn is_in_use(&self) -> bool {
        self.learnt.get() != Some(&false)
    }

    /// Whether a head may have failed for the header.
    pub(crate) fn may_be_why(&self, error: &OriginError) -> bool {
        match error.status {
            Some(FORBIDDEN) => true,
            Some(400 | 405 | 501) => self.learnt.get().is_none(),
            _ => false,
        }
    }

    /// It was asked, and answered.
    pub(crate) fn is_understood(&self) {
        self.learnt.get_or_init(|| true);
    }

    /// It answered when it was not asked, and only then: this is what it said when it was.
    pub(crate) fn is_refused(&self, origin: &str, error: &OriginError) {
        if error.status == Some(FORBIDDEN) {
            let key = &error.key;
            tracing::debug!(origin, %key, "it is forbidden to ask for an object's checksums");
        } else if !self.learnt.get_or_init(|| false) {
            tracing::debug!(origin, "the origin refuses to be asked for checksums");
        }
    }
}

const FORBIDDEN: u16 = 403;

struct HeadText<'a>(&'a HeaderMap);

impl<'a> HeadText<'a> {
    fn text(&self, name: &str) -> Option<&'a str> {
        self.0.get(name).and_then(|value| value.to_str().ok())
    }

    /// The bytes that a header holds in base64.
    fn value<const N: usize>(&self, name: &'static str) -> Option<[u8; N]> {
        decoded(name, self.text(name)?)
    }

    fn amazon(&self, found: &mut Checksums) {
        // Composite ones are of the parts' checksums. Stores from before the type was told write
        // the number of parts behind such a one, which makes it no base64.
        let kind = self.text("x-amz-checksum-type");
        if kind.is_some_and(|kind| !kind.eq_ignore_ascii_case("FULL_OBJECT")) {
            return;
        }
        found.crc64_nvme = self.value("x-amz-checksum-crc64nvme").map(u64::from_be_bytes);
        found.crc32c = self.value("x-amz-checksum-crc32c").map(u32::from_be_bytes);
        found.sha256 = self.value("x-amz-checksum-sha256");
    }

    fn google(&self, found: &mut Checksums) {
        // They are of what is stored, and that may be decompressed on its way.
        let stored = self.text("x-goog-stored-content-encoding").unwrap_or("identity");
        let sent = self.text("content-encoding").unwrap_or("identity");
        if !stored.eq_ignore_ascii_case(sent) {
            return;
        }
        for (name, value) in self.listed("x-goog-hash") {
            match name {
                "crc32c" => {
                    let crc = decoded("x-goog-hash", value).map(u32::from_be_bytes);
                    found.crc32c = found.crc32c.or(crc);
                }
                "md5" => found.md5 = found.md5.or_else(|| decoded("x-goog-hash", value)),
                _ => {}
            }
        }
    }

    fn microsoft(&self, found: &mut Checksums) {
        found.md5 = found.md5.or_else(|| self.value("x-ms-blob-content-md5"));
    }

    /// RFC 9530, and RFC 3230 before it. Both are of the whole, whatever range was sent.
    fn web(&self, found: &mut Checksums) {
        for (name, value) in self.listed("repr-digest") {
            let Some(value) = value.strip_prefix(':').and_then(|rest| rest.strip_suffix(':'))
            else {
                continue;
            };
            if name.eq_ignore_ascii_case("sha-256") {
                found.sha256 = found.sha256.or_else(|| decoded("repr-digest", value));
            }
        }
        for (name, value) in self.listed("digest") {
            if name.eq_ignore_ascii_case("sha-256") {
                found.sha256 = found.sha256.or_else(|| decoded("digest", value));
            } else if name.eq_ignore_ascii_case("md5") {
                found.md5 = found.md5.or_else(|| decoded("digest", value));
            }
        }
    }

    /// The `name=value` of a header that lists them, over several lines or in one.
    fn listed(&self, name: &str) -> impl Iterator<Item = (&'a str, &'a str)> {
        let lines = self.0.get_all(name).into_iter().filter_map(|value| value.to_str().ok());
        lines.flat_map(|line| line.split(',')).filter_map(|item| item.trim().split_once('='))
    }
}

/// So many bytes in base64, or nothing.
fn decoded<const N: usize>(header: &'static str, text: &str) -> Option<[u8; N]> {
    let bytes = BASE64_STANDARD.decode(text.trim()).ok();
    let bytes = bytes.and_then(|bytes| <[u8; N]>::try_from(bytes).ok());
    if bytes.is_none() {
        tracing::debug!(header, "a checksum of the origin is left out: it is not well formed");
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    // Of "123456789", from the catalogue of CRCs and the RFCs.
    const CRC64: u64 = 0xae8b_1486_0a79_9888;
    const CRC32C: u32 = 0xe306_9283;
    const SHA: &str = "FeKw08M4keuw8e9gnsQZQgwg4yDOlMZfvIwzEkSOsiU=";
    const MD5: &str = "JfnnlDI7RTiF9RgfG2JNCw==";

    fn head(headers: &[(&str, &str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            let name = HeaderName::from_bytes(name.as_bytes()).unwrap();
            map.append(name, HeaderValue::from_str(value).unwrap());
        }
        map
    }

    fn found(headers: &[(&str, &str)]) -> Checksums {
        Checksums::in_head(StatusCode::OK, &head(headers))
    }

    #[test]
    fn each_family_of_stores_is_understood() {
        let amazon = found(&[
            ("x-amz-checksum-crc64nvme", "rosUhgp5mIg="),
            ("x-amz-checksum-crc32c", "4waSgw=="),
            ("x-amz-checksum-sha256", SHA),
            ("x-amz-checksum-type", "FULL_OBJECT"),
        ]);
        assert_eq!((amazon.crc64_nvme, amazon.crc32c), (Some(CRC64), Some(CRC32C)));
        assert!(amazon.sha256.is_some_and(|sha| sha[..2] == [0x15, 0xe2]) && amazon.md5.is_none());
        let md5 = Some([37, 249, 231, 148, 50, 59, 69, 56, 133, 245, 24, 31, 27, 98, 77, 11]);
        let google = Checksums { crc32c: Some(CRC32C), md5, ..Checksums::default() };
        assert_eq!(found(&[("x-goog-hash", &format!("crc32c=4waSgw==,md5={MD5}"))]), google);
        let lines = [("x-goog-hash", "crc32c=4waSgw=="), ("x-goog-hash", &format!("md5={MD5}"))];
        assert_eq!(found(&lines), google);
        for name in ["content-md5", "x-ms-blob-content-md5"] {
            assert_eq!(found(&[(name, MD5)]), Checksums { md5, ..Checksums::default() }, "{name}");
        }
        let sha256 = amazon.sha256;
        let web = format!("sha-512=:AAAA:, sha-256=:{SHA}:");
        assert_eq!(found(&[("repr-digest", &web)]), Checksums { sha256, ..Checksums::default() });
        let old = format!("SHA-256={SHA},MD5={MD5}");
        assert_eq!(found(&[("digest", &old)]), Checksums { sha256, md5, ..Checksums::default() });
    }

    #[test]
    fn what_is_not_of_the_whole_object_is_left_out() {
        for odd in [
            &[("x-amz-checksum-crc32c", "4waSgw=="), ("x-amz-checksum-type", "COMPOSITE")][..],
            &[("x-amz-checksum-sha256", "FeKw08M4keuw8e9gnsQZQgwg4yDOlMZfvIwzEkSOsiU=-3")],
            &[("x-goog-hash", "crc32c=4waSgw=="), ("x-goog-stored-content-encoding", "gzip")],
        ] {
            assert!(found(odd).is_empty(), "{odd:?}");
        }
        let part = Checksums::in_head(StatusCode::PARTIAL_CONTENT, &head(&[("content-md5", MD5)]));
        assert!(part.is_empty());
        let kept = [
            ("x-goog-hash", "crc32c=4waSgw=="),
            ("x-goog-stored-content-encoding", "gzip"),
            ("content-encoding", "gzip"),
        ];
        assert_eq!(found(&kept).crc32c, Some(CRC32C), "it is sent as it is stored");
    }

    #[test]
    fn what_is_not_well_formed_is_left_out() {
        for (name, value) in [
            ("x-amz-checksum-crc64nvme", "rosUhgp5mIg"),
            ("x-amz-checksum-crc64nvme", "4waSgw=="),
            ("x-amz-checksum-sha256", "no base64!"),
            ("x-goog-hash", "crc32c"),
            ("x-goog-hash", "crc32c=="),
            ("repr-digest", &format!("sha-256={SHA}")),
            ("repr-digest", "sha-256=::"),
            ("digest", "SHA-256="),
            ("content-md5", ""),
        ] {
            assert!(found(&[(name, value)]).is_empty(), "{name}: {value}");
        }
    }

    #[test]
    fn a_tag_of_s3_is_an_md5_only_where_it_looks_so() {
        let tag = ("etag", "\"25f9e794323b453885f5181f1b624d0b\"");
        assert_eq!(
            md5_of_tag(&head(&[tag])).map(|md5| md5[..3].to_vec()),
            Some(vec![37, 249, 231])
        );
        assert!(md5_of_tag(&head(&[tag, ("x-amz-server-side-encryption", "AES256")])).is_some());
        for (name, value) in [
            ("x-amz-server-side-encryption", "aws:kms"),
            ("x-amz-server-side-encryption", "aws:kms:dsse"),
            ("x-amz-server-side-encryption-customer-algorithm", "AES256"),
        ] {
            assert!(md5_of_tag(&head(&[tag, (name, value)])).is_none(), "{name}: {value}");
        }
        for odd in [
            "\"25f9e794323b453885f5181f1b624d0b-2\"",
            "25f9e794323b453885f5181f1b624d0b",
            "W/\"25f9e794323b453885f5181f1b624d0b\"",
            "\"25f9e794323b453885f5181f1b624d0g\"",
            "\"\"",
        ] {
            assert!(md5_of_tag(&head(&[("etag", odd)])).is_none(), "{odd}");
        }
    }
}
