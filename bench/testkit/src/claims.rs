//! The checksums that a store tells of its objects: right ones, or whatever a test wants told.
//!
//! An object has none unless [`Contents::claim`] gives it some. Each dialect tells those that its
//! like would know: S3 CRC-64/NVME, CRC-32C and SHA-256 to who asks for them and MD5 as its tag,
//! Google CRC-32C and MD5, Azure MD5, web servers SHA-256 and MD5.

use std::sync::Arc;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use crc_fast::CrcAlgorithm;
use forebay_origin::Checksums;
use http::HeaderMap;
use md5::Md5;
use sha2::{Digest, Sha256};

use crate::content::{Content, hex};
use crate::contents::{Contents, Object};
use crate::head;

/// The right checksums of a content, all of them.
pub fn checksums(content: &Content) -> Checksums {
    let mut crc64 = crc_fast::Digest::new(CrcAlgorithm::Crc64Nvme);
    let mut crc32c = crc_fast::Digest::new(CrcAlgorithm::Crc32Iscsi);
    let (mut sha256, mut md5) = (Sha256::new(), Md5::new());
    content.visit(0..content.len(), &mut |piece| {
        crc64.update(piece);
        crc32c.update(piece);
        sha256.update(piece);
        md5.update(piece);
    });
    Checksums {
        crc64_nvme: Some(crc64.finalize()),
        crc32c: u32::try_from(crc32c.finalize()).ok(),
        sha256: Some(sha256.finalize().into()),
        md5: Some(md5.finalize().into()),
    }
}

impl Contents {
    /// Has an object's checksums told from now on, right or wrong. An MD5 becomes its entity tag.
    /// Answers whether the object is there.
    pub fn claim(&self, bucket: &str, key: &str, checksums: Checksums) -> bool {
        let Some(object) = self.object(bucket, key) else { return false };
        let etag = checksums.md5.map_or_else(|| object.etag.clone(), |md5| hex(&md5));
        let (content, version) = (object.content.clone(), object.version);
        let object = Object { content, etag, version, checksums };
        self.shelf().place(bucket, key, Arc::new(object));
        true
    }
}

/// Bytes as headers carry them.
pub(crate) fn base64(bytes: &[u8]) -> String {
    BASE64_STANDARD.encode(bytes)
}

/// What Google says of an object.
pub(crate) fn google(headers: &mut HeaderMap, checksums: &Checksums) {
    let crc32c = checksums.crc32c.map(|crc| format!("crc32c={}", base64(&crc.to_be_bytes())));
    let md5 = checksums.md5.map(|md5| format!("md5={}", base64(&md5)));
    let told: Vec<String> = [crc32c, md5].into_iter().flatten().collect();
    if !told.is_empty() {
        head::set(headers, "x-goog-hash", &told.join(","));
    }
}

/// What Azure says of a blob, of which all was sent or a part.
pub(crate) fn azure(headers: &mut HeaderMap, checksums: &Checksums, partial: bool) {
    if let Some(md5) = checksums.md5 {
        let name = if partial { "x-ms-blob-content-md5" } else { "content-md5" };
        head::set(headers, name, &base64(&md5));
    }
}

/// What a web server says of a file, of which all was sent or a part.
pub(crate) fn web(headers: &mut HeaderMap, checksums: &Checksums, partial: bool) {
    if let Some(sha256) = checksums.sha256 {
        head::set(headers, "repr-digest", &format!("sha-256=:{}:", base64(&sha256)));
    }
    if let Some(md5) = checksums.md5.filter(|_| !partial) {
        head::set(headers, "content-md5", &base64(&md5));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksums_are_those_of_the_catalogues() {
        let found = checksums(&Content::bytes("123456789"));
        assert_eq!(found.crc64_nvme, Some(0xae8b_1486_0a79_9888));
        assert_eq!(found.crc32c, Some(0xe306_9283));
        assert_eq!(found.sha256.map(|sha| base64(&sha)[..8].to_owned()), Some("FeKw08M4".into()));
        assert_eq!(found.md5.map(|md5| hex(&md5)[..8].to_owned()), Some("25f9e794".into()));
    }
}
