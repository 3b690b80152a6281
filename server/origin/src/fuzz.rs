//! What the fuzz targets of the server run of this crate: what a caller says of where an object is,
//! and what an origin says of which bytes it sends. Each takes any bytes and asserts what has to
//! hold of what is accepted.

use http::header::{CONTENT_LENGTH, CONTENT_RANGE, HeaderValue};
use http::{Response, StatusCode};

use crate::key::KEY_BYTES_MAX;
use crate::transport::answer::made_fit;
use crate::uri::OriginUri;

/// A URI, and with it a key: its canonical form means the same, has no segment that leads
/// elsewhere, and shows nothing of a query.
pub fn uri(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let query = text.split_once('?').map(|(_, query)| query).filter(|query| query.len() > 8);
    match OriginUri::parse(text) {
        Ok(uri) => {
            let canonical = uri.to_string();
            let key = uri.key().as_str();
            assert!(key.len() <= KEY_BYTES_MAX, "{} bytes of key", key.len());
            let leads_elsewhere = |segment: &str| matches!(segment, "" | "." | "..");
            assert!(uri.key().is_root() || !key.split('/').any(leads_elsewhere), "{key:?}");
            assert!(!key.bytes().any(|byte| byte.is_ascii_control()), "{key:?}");
            let again = OriginUri::parse(&canonical);
            let same = again.as_ref().is_ok_and(|again| {
                let parts = |uri: &OriginUri| (uri.origin(), uri.key().clone(), uri.is_prefix());
                parts(again) == parts(&uri) && again.to_string() == canonical
            });
            assert!(same, "{canonical:?} becomes {again:?}");
            // What is a query is secret; where it is part of a key it is not.
            let secret = query.filter(|query| uri.has_query() && !canonical.contains(query));
            let shown = format!("{uri} {uri:?}");
            assert!(secret.is_none_or(|secret| !shown.contains(secret)), "a query is shown");
        }
        Err(error) => assert!(!error.to_string().is_empty(), "{error:?} says nothing"),
    }
}

/// A Content-Range: what is left of a head can be added to and compared.
pub fn content_range(bytes: &[u8]) {
    let Ok(value) = HeaderValue::from_bytes(bytes) else { return };
    for status in [StatusCode::PARTIAL_CONTENT, StatusCode::OK] {
        let mut response = Response::new(());
        *response.status_mut() = status;
        response.headers_mut().insert(CONTENT_RANGE, value.clone());
        let (mut parts, ()) = response.into_parts();
        made_fit(&mut parts);
        let range = parts.headers.get(CONTENT_RANGE).map(|range| range.to_str().unwrap_or(""));
        let Some(range) = range else {
            assert!(!parts.headers.contains_key(CONTENT_LENGTH), "a length of no range");
            continue;
        };
        let ends = range.trim().strip_prefix("bytes ").and_then(|rest| rest.split_once('-'));
        let last = ends.and_then(|(start, rest)| Some((start, rest.split_once('/')?.0)));
        let numbers = last.and_then(|(start, last)| {
            Some((start.parse::<u64>().ok()?, last.parse::<u64>().ok()?))
        });
        let length = numbers.and_then(|(start, last)| last.checked_add(1)?.checked_sub(start));
        assert!(length.is_some(), "{range:?} has no length");
        let said = parts.headers.get(CONTENT_LENGTH).and_then(|said| said.to_str().ok());
        let said = said.and_then(|said| said.parse::<u64>().ok());
        // Only what answers a request for a range is given a length.
        assert!(said == length.filter(|_| status == StatusCode::PARTIAL_CONTENT), "{range:?}");
    }
}
