//! Reading request heads and writing response heads: what every HTTP dialect here shares.

use std::ops::Range;
use std::time::{Duration, UNIX_EPOCH};

use bytes::Bytes;
use http::header::{
    ACCEPT_RANGES, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, HeaderName, IF_MATCH,
    IF_UNMODIFIED_SINCE, RANGE, RETRY_AFTER,
};
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, Version};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use s3s::dto::{Range as RangeHeader, Timestamp, TimestampFormat};

use crate::contents::Object;
use crate::flow::{ObjectBody, Payload};
use crate::plan::{Bend, Head, Refusal};
use crate::text::escape;

/// A header's text.
pub(crate) fn header(headers: &HeaderMap, name: &HeaderName) -> Option<String> {
    headers.get(name)?.to_str().ok().map(str::to_owned)
}

/// The bytes that a `Range: bytes=first-last` asks for.
pub(crate) fn requested_range(headers: &HeaderMap) -> Option<Range<u64>> {
    match RangeHeader::parse(headers.get(RANGE)?.to_str().ok()?).ok()? {
        RangeHeader::Int { first, last } => {
            Some(first..last.map_or(u64::MAX, |last| last.saturating_add(1)))
        }
        RangeHeader::Suffix { .. } => None,
    }
}

/// Seconds since 1970 as an HTTP date.
pub(crate) fn http_date(seconds: u64) -> String {
    date(seconds, TimestampFormat::HttpDate)
}

/// Seconds since 1970 as listings of S3 and GCS write it.
pub(crate) fn iso_date(seconds: u64) -> String {
    date(seconds, TimestampFormat::DateTime)
}

fn date(seconds: u64, format: TimestampFormat) -> String {
    let mut out = Vec::new();
    let timestamp = Timestamp::from(UNIX_EPOCH + Duration::from_secs(seconds));
    // Writing to a Vec does not fail, and every date here is within the calendar.
    timestamp.format(format, &mut out).ok();
    String::from_utf8_lossy(&out).into_owned()
}

/// The entity tag and range rules of a dialect.
#[derive(Clone, Debug)]
pub(crate) struct Answering {
    /// As it stands in the `ETag` header; None leaves the header out.
    pub(crate) etag: Option<String>,
    pub(crate) ranges: bool,
}

/// Why an object is not sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reject {
    Precondition,
    Range,
}

impl Reject {
    fn refusal(self, object: &Object) -> Refusal {
        match self {
            Self::Precondition => Refusal::from(412),
            Self::Range => {
                Refusal { object_bytes: Some(object.content.len()), ..Refusal::from(416) }
            }
        }
    }
}

/// The range to send (with 206, where it was asked for), by the request's conditions.
pub(crate) fn select(
    object: &Object,
    headers: &HeaderMap,
    answering: &Answering,
    bend: Bend,
) -> Result<(Range<u64>, bool), Reject> {
    let bytes = object.content.len();
    if let Some(condition) = header(headers, &IF_MATCH) {
        let strong = answering.etag.as_deref().filter(|etag| !etag.starts_with("W/"));
        let matches =
            condition == "*" || condition.split(',').any(|tag| Some(tag.trim()) == strong);
        if !matches {
            return Err(Reject::Precondition);
        }
    } else if let Some(since) = header(headers, &IF_UNMODIFIED_SINCE) {
        // An unreadable date is ignored, as RFC 9110 has it.
        let since = Timestamp::parse(TimestampFormat::HttpDate, &since).ok();
        let modified = UNIX_EPOCH + Duration::from_secs(object.modified_seconds());
        if since.is_some_and(|since| Timestamp::from(modified) > since) {
            return Err(Reject::Precondition);
        }
    }
    let asked = headers.get(RANGE).and_then(|value| value.to_str().ok());
    match asked.and_then(|asked| RangeHeader::parse(asked).ok()) {
        Some(range) if answering.ranges && !bend.ignore_range => {
            range.check(bytes).map(|range| (range, true)).map_err(|_| Reject::Range)
        }
        _ => Ok((0..bytes, false)),
    }
}

/// The bytes of `object` to send for `range`: elsewhere, where a fault says so.
pub(crate) fn body(object: &Object, range: Range<u64>, bend: Bend) -> ObjectBody {
    let room = object.content.len() - range.end;
    let shifted = match bend.shift {
        0 => range,
        shift if shift <= room => range.start + shift..range.end + shift,
        shift => {
            let back = shift.min(range.start);
            range.start - back..range.end - back
        }
    };
    ObjectBody::new(object.content.clone(), shifted)
}

/// A GET or HEAD of an object in plain HTTP terms, or why it is refused; the dialect adds
/// its own headers.
pub(crate) fn object_response<T>(
    object: &Object,
    request: &Request<T>,
    answering: &Answering,
) -> Result<Response<Payload>, Refusal> {
    let bend = request.extensions().get::<Bend>().copied().unwrap_or_default();
    let selected = select(object, request.headers(), answering, bend);
    let (range, partial) = selected.map_err(|reject| reject.refusal(object))?;
    let body = Payload::Object(body(object, range.clone(), bend));
    let mut response = Response::new(body);
    let headers = response.headers_mut();
    headers.insert(CONTENT_LENGTH, HeaderValue::from(range.end - range.start));
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    set(headers, "last-modified", &http_date(object.modified_seconds()));
    if let Some(etag) = &answering.etag {
        set(headers, "etag", etag);
    }
    if answering.ranges {
        headers.insert(ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    }
    if partial {
        let value = format!("bytes {}-{}/{}", range.start, range.end - 1, object.content.len());
        set(headers, "content-range", &value);
        *response.status_mut() = StatusCode::PARTIAL_CONTENT;
    }
    Ok(response)
}

/// A whole small body with status 200.
pub(crate) fn page(kind: &'static str, body: String) -> Response<Payload> {
    let length = HeaderValue::from(body.len());
    let mut response = Response::new(Payload::Whole(Bytes::from(body)));
    response.headers_mut().insert(CONTENT_LENGTH, length);
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

/// Done, and nothing to say.
pub(crate) fn nothing() -> Response<Payload> {
    let mut response = Response::new(Payload::Whole(Bytes::new()));
    *response.status_mut() = StatusCode::NO_CONTENT;
    response
}

/// A request with its body, if that comes whole.
pub(crate) async fn received(request: Request<Incoming>) -> Option<(Parts, Bytes)> {
    let (parts, body) = request.into_parts();
    Some((parts, body.collect().await.ok()?.to_bytes()))
}

/// An error document.
pub(crate) fn document(refusal: &Refusal, kind: &'static str, body: String) -> Response<Payload> {
    let mut response = page(kind, body);
    let status = StatusCode::from_u16(refusal.status);
    *response.status_mut() = status.unwrap_or(StatusCode::IM_A_TEAPOT);
    if let Some(delay) = refusal.retry_after {
        response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(delay.as_secs()));
    }
    if let Some(bytes) = refusal.object_bytes {
        set(response.headers_mut(), "content-range", &format!("bytes */{bytes}"));
    }
    response
}

/// An error document of the S3 family.
pub(crate) fn s3_refusal(refusal: &Refusal, key: &str) -> Response<Payload> {
    let body = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Error><Code>{code}</Code>\
         <Message>{code}</Message><Resource>{key}</Resource>\
         <RequestId>4442587FB7D0A2F9</RequestId></Error>",
        code = refusal.code.unwrap_or_else(|| s3_code_of(refusal.status)),
        key = escape(key),
    );
    document(refusal, "application/xml", body)
}

/// The error code that S3 gives with a status.
pub(crate) fn s3_code_of(status: u16) -> &'static str {
    match status {
        400 => "InvalidRequest",
        401 => "InvalidAccessKeyId",
        403 => "AccessDenied",
        404 => "NoSuchKey",
        408 => "RequestTimeout",
        412 => "PreconditionFailed",
        416 => "InvalidRange",
        429 => "TooManyRequests",
        501 => "NotImplemented",
        503 => "SlowDown",
        _ => "InternalError",
    }
}

/// Does to a response's head what a fault says.
pub(crate) fn edit(response: &mut Response<Payload>, edit: Head) {
    let length = content_length(response.headers());
    match edit {
        Head::Keep => {}
        Head::CutLength(most) => set_length(response, length.map(|length| length.min(most))),
        Head::AddLength(more) => set_length(response, length.map(|length| length + more)),
        Head::DropLength => set_length(response, None),
        Head::DropLengthOld => {
            set_length(response, None);
            *response.version_mut() = Version::HTTP_10;
        }
        Head::ShiftRange(shift) => shift_range(response.headers_mut(), shift),
        Head::Set(name, value) => set(response.headers_mut(), name, &value),
        Head::Drop(name) => {
            response.headers_mut().remove(name);
        }
    }
}

fn content_length(headers: &HeaderMap) -> Option<u64> {
    headers.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

fn set_length(response: &mut Response<Payload>, length: Option<u64>) {
    match length {
        Some(length) => response.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from(length)),
        None => response.headers_mut().remove(CONTENT_LENGTH),
    };
}

fn shift_range(headers: &mut HeaderMap, shift: u64) {
    let Some(value) = header(headers, &CONTENT_RANGE) else { return };
    let parsed = value.strip_prefix("bytes ").and_then(|value| {
        let (range, total) = value.split_once('/')?;
        let (first, last) = range.split_once('-')?;
        Some((first.parse::<u64>().ok()?, last.parse::<u64>().ok()?, total))
    });
    if let Some((first, last, total)) = parsed {
        let value = format!("bytes {}-{}/{total}", first + shift, last + shift);
        set(headers, "content-range", &value);
    }
}

/// Sets a header; a value that HTTP cannot carry is left out.
pub(crate) fn set(headers: &mut HeaderMap, name: &'static str, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        headers.insert(HeaderName::from_static(name), value);
    }
}
