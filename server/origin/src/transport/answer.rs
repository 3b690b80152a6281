//! What the head of a response says: pure functions from headers to facts.

use std::time::Duration;

use http::header::{CONTENT_LENGTH, CONTENT_RANGE, ETAG, HeaderMap, LOCATION, RETRY_AFTER};
use http::response::Parts;
use http::{Response, StatusCode, Uri};

use super::connect::ConnectError;
use super::probe::{Seen, is_code};
use super::stream::PhaseTimes;
use crate::checksum::{Checksums, md5_of_tag};

/// Where a response redirects to. The target may be signed: nothing shows it.
pub(crate) fn redirect<B>(from: &Uri, response: &Response<B>) -> Option<Uri> {
    if !matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
        return None;
    }
    let location = response.headers().get(LOCATION)?.to_str().ok()?;
    let base = url::Url::parse(&from.to_string()).ok()?;
    let mut next = base.join(location).ok()?;
    next.set_fragment(None);
    let plain = next.username().is_empty() && next.password().is_none();
    if plain && matches!(next.scheme(), "http" | "https") {
        next.as_str().parse().ok()
    } else {
        None
    }
}

/// Makes a head fit for object_store: it adds 1 to the last byte of a Content-Range unchecked, and
/// insists on a Content-Length, which a chunked answer to a range has not.
pub(crate) fn made_fit(parts: &mut Parts) {
    let Some(value) = parts.headers.get(CONTENT_RANGE) else { return };
    let length = value.to_str().ok().and_then(length_of_range);
    match length {
        None => {
            parts.headers.remove(CONTENT_RANGE);
        }
        Some(length) if parts.status == StatusCode::PARTIAL_CONTENT => {
            parts.headers.entry(CONTENT_LENGTH).or_insert(length.into());
        }
        Some(_) => {}
    }
}

/// The length of `bytes 5-9/100`; `None` for any other form, and for ranges that cannot be.
fn length_of_range(text: &str) -> Option<u64> {
    let (start, rest) = text.trim().strip_prefix("bytes ")?.split_once('-')?;
    let (last, _) = rest.split_once('/')?;
    let end = last.parse::<u64>().ok()?.checked_add(1)?;
    end.checked_sub(start.parse().ok()?)
}

/// An attempt that follows redirects may make several connections: their times add up.
pub(crate) fn note_times(seen: &mut Seen, times: PhaseTimes) {
    seen.dns = added(seen.dns, times.dns);
    seen.connect = added(seen.connect, times.connect);
    seen.tls = added(seen.tls, times.tls);
}

/// Notes why there is no connection.
pub(crate) fn note_unconnected(seen: &mut Seen, error: &ConnectError) {
    note_times(seen, error.times);
    seen.no_handshake = error.at;
    seen.broke = Some((error.broke, error.to_string()));
}

pub(crate) fn added(before: Option<Duration>, more: Option<Duration>) -> Option<Duration> {
    match (before, more) {
        (Some(before), Some(more)) => Some(before + more),
        (before, more) => before.or(more),
    }
}

pub(crate) fn note_head(seen: &mut Seen, status: StatusCode, headers: &HeaderMap) {
    seen.status = Some(status.as_u16());
    seen.checksums = Checksums::in_head(status, headers);
    seen.tag_md5 = md5_of_tag(headers);
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    seen.content_length = text(CONTENT_LENGTH.as_str()).and_then(|value| value.parse().ok());
    seen.etag = text(ETAG.as_str()).map(str::to_owned);
    seen.content_range = text(CONTENT_RANGE.as_str()).map(str::to_owned);
    seen.request_id =
        ["x-amz-request-id", "x-ms-request-id", "x-guploader-uploadid", "x-request-id"]
            .iter()
            .find_map(|name| text(name))
            .map(|id| id.chars().take(128).collect());
    seen.code = text("x-ms-error-code").filter(|code| is_code(code)).map(str::to_owned);
    seen.region = text("x-amz-bucket-region")
        .filter(|region| region.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-'))
        .map(str::to_owned);
    // Seconds; S3's own hint is in milliseconds. A date, which the clouds do not send, is ignored.
    let seconds = text(RETRY_AFTER.as_str()).and_then(|value| value.trim().parse().ok());
    let millis = text("x-amz-retry-after").and_then(|value| value.trim().parse().ok());
    seen.retry_after =
        millis.map(Duration::from_millis).or_else(|| seconds.map(Duration::from_secs));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(status: u16, headers: &[(&'static str, &'static str)]) -> Parts {
        let mut response = Response::builder().status(status);
        for (name, value) in headers {
            response = response.header(*name, *value);
        }
        response.body(()).unwrap().into_parts().0
    }

    #[test]
    fn redirects_lead_only_to_the_web() {
        let from: Uri = "https://h/a/b?old".parse().unwrap();
        let to = |status, location: &'static str| {
            let parts = head(status, &[("location", location)]);
            redirect(&from, &Response::from_parts(parts, ())).map(|uri| uri.to_string())
        };
        assert_eq!(to(302, "c?new#f").as_deref(), Some("https://h/a/c?new"));
        assert_eq!(to(307, "//other/x").as_deref(), Some("https://other/x"));
        assert_eq!(to(200, "c"), None);
        assert_eq!(to(304, "c"), None);
        for bad in ["file:///etc/passwd", "ftp://h/", "https://user@h/", "https://:x@h/"] {
            assert_eq!(to(301, bad), None, "{bad}");
        }
    }

    #[test]
    fn heads_are_made_fit() {
        let fit = |status, headers: &[(&'static str, &'static str)]| {
            let mut parts = head(status, headers);
            made_fit(&mut parts);
            let text =
                |name| parts.headers.get(name).map(|value| value.to_str().unwrap().to_owned());
            (text(CONTENT_RANGE), text(CONTENT_LENGTH))
        };
        let range = ("content-range", "bytes 5-9/100");
        let some = |text: &str| Some(text.to_owned());
        assert_eq!(fit(206, &[range]), (some(range.1), some("5")));
        assert_eq!(fit(200, &[range]), (some(range.1), None));
        assert_eq!(fit(206, &[range, ("content-length", "7")]), (some(range.1), some("7")));
        for odd in ["bytes 9-5/100", "bytes */100", "5-9", "bytes 0-18446744073709551615/1"] {
            assert_eq!(fit(206, &[("content-range", odd)]), (None, None), "{odd}");
        }
    }

    #[test]
    fn hints_are_seconds_or_s3_milliseconds() {
        let hint = |name, value| {
            let mut seen = Seen::default();
            note_head(
                &mut seen,
                StatusCode::SERVICE_UNAVAILABLE,
                &head(503, &[(name, value)]).headers,
            );
            seen.retry_after
        };
        assert_eq!(hint("retry-after", "7"), Some(Duration::from_secs(7)));
        assert_eq!(hint("x-amz-retry-after", "1500"), Some(Duration::from_millis(1500)));
        assert_eq!(hint("retry-after", "Tue, 01 Jan 2030 00:00:00 GMT"), None);
        assert_eq!(hint("retry-after", "-1"), None);
    }
}
