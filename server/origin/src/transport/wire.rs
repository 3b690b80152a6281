//! One HTTP/1.1 exchange at a time over a connection of ours: a GET out, the head of its answer in.
//!
//! hyper reads a body into buffers of its own, from which it would have to be copied into its slot;
//! here only the head goes through a buffer, and what follows is read from the socket to where it
//! belongs (see [`super::direct`]). Heads are parsed by httparse, as hyper's are.

use std::io;

use http::header::{CONNECTION, CONTENT_LENGTH, HOST, TRANSFER_ENCODING};
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode};
use object_store::client::HttpRequest;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::stream::Stream;

/// What is read at a time while a head is awaited. Heads have some 500 bytes; what comes of the
/// body with one is copied from here.
const HEAD_READ: usize = 4096;
/// The longest head.
const HEAD_BYTES_MAX: usize = 64 << 10;
const HEADERS_MAX: usize = 100;

/// Why there is no head.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WireError {
    /// The connection ended before any byte of an answer: one that was kept may have been closed by
    /// its server, and then the request was never seen.
    #[error("the connection was closed before an answer: {0}")]
    Unanswered(io::Error),
    /// It ended within the head.
    #[error("the connection broke within the head of the answer: {0}")]
    Broken(io::Error),
    /// What came is no HTTP.
    #[error("the answer is no HTTP: {0}")]
    NoHttp(String),
}

/// Where a body ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Framing {
    /// After so many bytes.
    Length(u64),
    /// After the last of its chunks.
    Chunked,
    /// With the connection.
    Close,
}

/// A connection and what was read of it beyond the last answer's end.
#[derive(Debug)]
pub(crate) struct Wire {
    pub(crate) stream: Stream,
    buffer: Vec<u8>,
    begin: usize,
    end: usize,
}

/// The head of an answer.
#[derive(Debug)]
pub(crate) struct Head {
    pub(crate) response: Response<()>,
    pub(crate) framing: Framing,
    /// Whether the connection serves another request afterwards.
    pub(crate) keeps: bool,
}

impl Wire {
    pub(crate) fn new(stream: Stream) -> Self {
        Self { stream, buffer: vec![0; HEAD_READ], begin: 0, end: 0 }
    }

    /// Whether it can be used again: everything that came was asked for.
    pub(crate) fn is_clean(&self) -> bool {
        self.begin == self.end && self.stream.is_quiet()
    }

    /// What was read and not used.
    pub(crate) fn unread(&self) -> &[u8] {
        self.buffer.get(self.begin..self.end).unwrap_or_default()
    }

    /// So many of the unread bytes are used.
    pub(crate) fn consume(&mut self, bytes: usize) {
        self.begin = self.end.min(self.begin + bytes);
    }

    /// Reads more behind what is unread; how much came. Nothing is the end of the connection.
    pub(crate) async fn read_more(&mut self) -> io::Result<usize> {
        if self.begin == self.end {
            (self.begin, self.end) = (0, 0);
        } else if self.begin > 0 {
            self.buffer.copy_within(self.begin..self.end, 0);
            (self.begin, self.end) = (0, self.end - self.begin);
        }
        if self.end == self.buffer.len() {
            let longer = (self.buffer.len() * 2).min(HEAD_BYTES_MAX);
            self.buffer.resize(longer, 0);
        }
        let room = self.buffer.get_mut(self.end..).unwrap_or_default();
        if room.is_empty() {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "a line without an end"));
        }
        let read = self.stream.read(room).await?;
        self.end += read;
        Ok(read)
    }

    /// Sends a request and waits for the head of its answer.
    pub(crate) async fn exchange(&mut self, request: &HttpRequest) -> Result<Head, WireError> {
        let text = request_text(request);
        self.stream.write_all(&text).await.map_err(WireError::Unanswered)?;
        self.stream.flush().await.map_err(WireError::Unanswered)?;
        loop {
            if let Some(head) = self.parsed()? {
                return Ok(head);
            }
            let before = self.unread().len();
            let broke = if before == 0 { WireError::Unanswered } else { WireError::Broken };
            if before >= HEAD_BYTES_MAX {
                return Err(WireError::NoHttp(format!("a head of more than {before} bytes")));
            }
            if self.read_more().await.map_err(broke)? == 0 {
                return Err(broke(io::ErrorKind::UnexpectedEof.into()));
            }
        }
    }

    /// The head that is unread, if it is whole. Interim answers are passed over.
    fn parsed(&mut self) -> Result<Option<Head>, WireError> {
        let no_http = |error: &dyn std::fmt::Display| WireError::NoHttp(error.to_string());
        loop {
            let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
            let mut answer = httparse::Response::new(&mut headers);
            let length = match answer.parse(self.unread()).map_err(|error| no_http(&error))? {
                httparse::Status::Complete(length) => length,
                httparse::Status::Partial => return Ok(None),
            };
            let status = StatusCode::from_u16(answer.code.unwrap_or_default())
                .map_err(|error| no_http(&error))?;
            let old = answer.version == Some(0);
            let mut map = HeaderMap::with_capacity(answer.headers.len());
            for header in answer.headers.iter() {
                let name = HeaderName::from_bytes(header.name.as_bytes());
                let value = HeaderValue::from_bytes(header.value);
                map.append(name.map_err(|e| no_http(&e))?, value.map_err(|e| no_http(&e))?);
            }
            self.consume(length);
            if status.is_informational() && status != StatusCode::SWITCHING_PROTOCOLS {
                continue;
            }
            let framing = framing(status, &map).map_err(|error| no_http(&error))?;
            let keeps = !old && framing != Framing::Close && !says(&map, &CONNECTION, "close");
            let mut response = Response::new(());
            *response.status_mut() = status;
            *response.headers_mut() = map;
            return Ok(Some(Head { response, framing, keeps }));
        }
    }
}

/// A GET, or another request without a body, as it goes over the wire.
fn request_text(request: &HttpRequest) -> Vec<u8> {
    let target = request.uri().path_and_query().map_or("/", |target| target.as_str());
    let mut text = Vec::with_capacity(1024);
    text.extend_from_slice(request.method().as_str().as_bytes());
    text.push(b' ');
    text.extend_from_slice(target.as_bytes());
    text.extend_from_slice(b" HTTP/1.1\r\n");
    let mut line = |name: &[u8], value: &[u8]| {
        for piece in [name, b": ", value, b"\r\n"] {
            text.extend_from_slice(piece);
        }
    };
    if !request.headers().contains_key(HOST) {
        let host = request.uri().authority().map_or("", |authority| authority.as_str());
        let host = host.rsplit_once('@').map_or(host, |(_, host)| host);
        line(b"host", host.as_bytes());
    }
    for (name, value) in request.headers() {
        line(name.as_str().as_bytes(), value.as_bytes());
    }
    text.extend_from_slice(b"\r\n");
    text
}

/// Whether a header has `token` among its values.
fn says(headers: &HeaderMap, name: &HeaderName, token: &str) -> bool {
    let values = headers.get_all(name).into_iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).any(|word| word.trim().eq_ignore_ascii_case(token))
}

/// RFC 9112, section 6.3, for answers to GET.
fn framing(status: StatusCode, headers: &HeaderMap) -> Result<Framing, &'static str> {
    if matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED) {
        return Ok(Framing::Length(0));
    }
    if headers.contains_key(TRANSFER_ENCODING) {
        // With a length beside it the answer may be an attempt to confuse: RFC 9112, 6.1.
        if headers.contains_key(CONTENT_LENGTH) {
            return Err("both a length and a transfer encoding");
        }
        // Alone: what is coded otherwise too is not the object's bytes.
        let mut values = headers.get_all(TRANSFER_ENCODING).into_iter();
        let first = values.next().and_then(|value| value.to_str().ok()).map(str::trim);
        let plain = first.is_some_and(|value| value.eq_ignore_ascii_case("chunked"));
        return match plain && values.next().is_none() {
            true => Ok(Framing::Chunked),
            false => Err("an unknown transfer encoding"),
        };
    }
    let mut length = None;
    for value in headers.get_all(CONTENT_LENGTH) {
        let digits = value.to_str().map_err(|_text| "a length that is no number")?.trim();
        let this = digits.bytes().all(|byte| byte.is_ascii_digit()).then(|| digits.parse().ok());
        let this: u64 = this.flatten().ok_or("a length that is no number")?;
        if length.is_some_and(|length| length != this) {
            return Err("two different lengths");
        }
        length = Some(this);
    }
    Ok(length.map_or(Framing::Close, Framing::Length))
}

#[cfg(test)]
mod tests {
    use object_store::client::HttpRequestBody;

    use super::*;

    #[test]
    fn a_request_is_written_as_rfc_9112_says() {
        let mut request = HttpRequest::new(HttpRequestBody::empty());
        *request.uri_mut() = "http://h:81/a%20b?x=1".parse().unwrap();
        request.headers_mut().insert("range", HeaderValue::from_static("bytes=0-9"));
        let text = String::from_utf8(request_text(&request)).unwrap();
        assert_eq!(text, "GET /a%20b?x=1 HTTP/1.1\r\nhost: h:81\r\nrange: bytes=0-9\r\n\r\n");
        request.headers_mut().insert("host", HeaderValue::from_static("signed"));
        let text = String::from_utf8(request_text(&request)).unwrap();
        assert!(text.contains("\r\nhost: signed\r\n") && !text.contains("h:81"), "{text}");
    }

    #[test]
    fn bodies_end_where_rfc_9112_says() {
        let of = |status: u16, headers: &[(&'static str, &'static str)]| {
            let mut map = HeaderMap::new();
            for (name, value) in headers {
                map.append(*name, HeaderValue::from_static(value));
            }
            framing(StatusCode::from_u16(status).unwrap(), &map).ok()
        };
        let length = ("content-length", "7");
        assert_eq!(of(206, &[length]), Some(Framing::Length(7)));
        assert_eq!(of(206, &[length, length]), Some(Framing::Length(7)));
        assert_eq!(of(206, &[length, ("content-length", "8")]), None);
        for bad in ["+7", "7, 8", "", "0x7", "18446744073709551616"] {
            assert_eq!(of(206, &[("content-length", bad)]), None, "{bad}");
        }
        assert_eq!(of(204, &[]), Some(Framing::Length(0)));
        assert_eq!(of(304, &[length]), Some(Framing::Length(0)));
        assert_eq!(of(200, &[]), Some(Framing::Close));
        assert_eq!(of(200, &[("transfer-encoding", "Chunked")]), Some(Framing::Chunked));
        assert_eq!(of(200, &[("transfer-encoding", "gzip, chunked")]), None);
        assert_eq!(of(200, &[("transfer-encoding", "chunked, gzip")]), None);
        assert_eq!(of(200, &[("transfer-encoding", "gzip")]), None);
        assert_eq!(of(200, &[("transfer-encoding", "chunked"), length]), None);
    }
}
