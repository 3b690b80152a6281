//! One connection of a [`RawOrigin`](crate::RawOrigin): request heads in, heads and files out.
//!
//! It knows as much of HTTP/1.1 as clients of an object store ask for: GET and HEAD, one `Range`,
//! `If-Match`, keep-alive. Anything else is refused, and a request with a body ends the connection.

use std::fmt::Write as _;
use std::io::{self, ErrorKind, Read};
use std::net::TcpStream;
use std::ops::Range;
use std::sync::Arc;

use rustix::fs::sendfile;
use rustix::net::{SendFlags, send};
use s3s::dto::Range as RangeHeader;
use tokio::time::Instant;

use crate::content::as_usize;
use crate::pace::Pace;
use crate::raw_files::RawFile;
use crate::raw_origin::{Shared, Stall};
use crate::text;

/// The longest request head.
const HEAD_BYTES_MAX: usize = 16 << 10;
/// Bytes sent at once under a speed limit, so that a body flows rather than jumps.
const PACED_BYTES: u64 = 256 << 10;
/// Bytes sent at once without one.
const SENT_BYTES: u64 = 8 << 20;

/// A connection and what its requests share.
pub(crate) struct Connection {
    stream: TcpStream,
    shared: Arc<Shared>,
    pace: Pace,
}

/// What a request asks for.
#[derive(Debug, Default, PartialEq, Eq)]
struct Asked {
    method: String,
    key: String,
    range: Option<String>,
    if_match: Option<String>,
    close: bool,
    body: bool,
}

/// How a request is answered.
#[derive(Debug, PartialEq, Eq)]
enum Answer {
    Status(&'static str),
    OutOfRange(u64),
    File { range: Range<u64>, partial: bool },
}

impl Connection {
    pub(crate) fn new(stream: TcpStream, shared: Arc<Shared>) -> Self {
        let pace = Pace::new(shared.options.bytes_per_second);
        Self { stream, shared, pace }
    }

    /// Serves requests until the client or the origin ends the connection.
    pub(crate) fn run(mut self) -> io::Result<()> {
        let mut received = Vec::new();
        let most = self.shared.options.requests_per_connection.unwrap_or(u64::MAX);
        for number in 1..=most {
            let Some(head) = self.read_head(&mut received)? else { break };
            let asked = Asked::parse(&head);
            let close = asked.close || asked.body || number == most;
            self.respond(&asked, close)?;
            if close {
                break;
            }
        }
        self.stream.shutdown(std::net::Shutdown::Both)
    }

    /// The next head; none at the end of the connection.
    fn read_head(&mut self, received: &mut Vec<u8>) -> io::Result<Option<String>> {
        loop {
            if let Some(end) = received.windows(4).position(|four| four == b"\r\n\r\n") {
                let rest = received.split_off(end + 4);
                let head = std::mem::replace(received, rest);
                return Ok(Some(String::from_utf8_lossy(&head).into_owned()));
            }
            if received.len() > HEAD_BYTES_MAX {
                return Err(ErrorKind::InvalidData.into());
            }
            let mut more = [0; 2048];
            match self.stream.read(&mut more) {
                Ok(0) => return Ok(None),
                Ok(bytes) => received.extend_from_slice(&more[..bytes]),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    fn respond(&self, asked: &Asked, close: bool) -> io::Result<()> {
        let shared = Arc::clone(&self.shared);
        let file = shared.files.get(&asked.key);
        let answer = asked.answer(file);
        let sends = match &answer {
            Answer::File { range, .. } if asked.method == "GET" => range.clone(),
            _ => 0..0,
        };
        let get = asked.method == "GET";
        let stall = if get { shared.got(sends.end - sends.start) } else { None };
        shared.wait_until(Instant::now() + shared.options.first_byte)?;
        if let Some(Stall { before: None, time }) = stall {
            shared.wait_until(Instant::now() + time)?;
        }
        let head = answer.head(file, close);
        let more = if sends.is_empty() { SendFlags::empty() } else { SendFlags::MORE };
        self.send_head(head.as_bytes(), more)?;
        match file {
            Some(file) => self.send_file(file, sends, stall),
            None => Ok(()),
        }
    }

    fn send_head(&self, mut head: &[u8], flags: SendFlags) -> io::Result<()> {
        while !head.is_empty() {
            let sent = send(&self.stream, head, flags | SendFlags::NOSIGNAL)?;
            head = &head[sent..];
        }
        Ok(())
    }

    fn send_file(&self, file: &RawFile, range: Range<u64>, stall: Option<Stall>) -> io::Result<()> {
        let paces = [&self.pace, &self.shared.total];
        let paced = paces.iter().map(|pace| pace.piece_bytes()).min().unwrap_or(u64::MAX);
        let most = if paced == u64::MAX { SENT_BYTES } else { paced.min(PACED_BYTES) };
        let mut stall = stall.and_then(|stall| Some((range.start + stall.before?, stall.time)));
        let mut at = range.start;
        while at < range.end {
            let mut end = range.end.min(at + most);
            match stall {
                Some((place, time)) if place == at => {
                    stall = None;
                    self.shared.wait_until(Instant::now() + time)?;
                }
                Some((place, _)) => end = end.min(place),
                None => {}
            }
            let now = Instant::now();
            if let Some(go_at) = paces.iter().filter_map(|pace| pace.book(now, end - at)).max() {
                self.shared.wait_until(go_at)?;
            }
            at = self.send_piece(file, at..end)?;
        }
        Ok(())
    }

    /// Sends all of a piece; answers where it ended.
    fn send_piece(&self, file: &RawFile, piece: Range<u64>) -> io::Result<u64> {
        let mut at = piece.start;
        while at < piece.end {
            let before = at;
            match sendfile(&self.stream, &file.file, Some(&mut at), as_usize(piece.end - before)) {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(_) => self.shared.sent(at - before),
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(at)
    }
}

impl Asked {
    fn parse(head: &str) -> Self {
        let mut lines = head.split("\r\n");
        let mut first = lines.next().unwrap_or_default().split(' ');
        let method = first.next().unwrap_or_default().to_owned();
        let path = first.next().unwrap_or_default();
        let path = path.split('?').next().unwrap_or_default();
        let key = text::decode(path.strip_prefix('/').unwrap_or(path));
        let mut asked = Self { method, key, ..Self::default() };
        for (name, value) in lines.filter_map(|line| line.split_once(':')) {
            let value = value.trim();
            match name.to_ascii_lowercase().as_str() {
                "range" => asked.range = Some(value.to_owned()),
                "if-match" => asked.if_match = Some(value.to_owned()),
                "connection" => asked.close |= value.eq_ignore_ascii_case("close"),
                "content-length" => asked.body |= value != "0",
                "transfer-encoding" => asked.body = true,
                _ => {}
            }
        }
        asked
    }

    fn answer(&self, file: Option<&RawFile>) -> Answer {
        if !matches!(self.method.as_str(), "GET" | "HEAD") || self.body {
            return Answer::Status("405 Method Not Allowed");
        }
        let Some(file) = file else { return Answer::Status("404 Not Found") };
        let tags = self.if_match.as_deref();
        let fits = |tag: &str| tag.trim() == "*" || tag.trim() == file.etag;
        if tags.is_some_and(|tags| !tags.split(',').any(fits)) {
            return Answer::Status("412 Precondition Failed");
        }
        let range = self.range.as_deref().and_then(|range| RangeHeader::parse(range).ok());
        match range.map(|range| range.check(file.bytes)) {
            None => Answer::File { range: 0..file.bytes, partial: false },
            Some(Ok(range)) => Answer::File { range, partial: true },
            Some(Err(_)) => Answer::OutOfRange(file.bytes),
        }
    }
}

impl Answer {
    fn head(&self, file: Option<&RawFile>, close: bool) -> String {
        let (status, length) = match self {
            Self::Status(status) => (*status, 0),
            Self::OutOfRange(_) => ("416 Range Not Satisfiable", 0),
            Self::File { range, partial: true } => ("206 Partial Content", range.end - range.start),
            Self::File { range, partial: false } => ("200 OK", range.end - range.start),
        };
        let mut head = format!("HTTP/1.1 {status}\r\nContent-Length: {length}\r\n");
        let mut line = |line: std::fmt::Arguments<'_>| {
            // A String takes whatever it is given.
            head.write_fmt(format_args!("{line}\r\n")).ok();
        };
        match self {
            Self::File { range, partial } => {
                if let Some(file) = file {
                    line(format_args!("ETag: {}", file.etag));
                }
                line(format_args!("Accept-Ranges: bytes"));
                if let (true, Some(file)) = (partial, file) {
                    let (first, last) = (range.start, range.end - 1);
                    line(format_args!("Content-Range: bytes {first}-{last}/{}", file.bytes));
                }
            }
            Self::OutOfRange(bytes) => line(format_args!("Content-Range: bytes */{bytes}")),
            Self::Status(_) => {}
        }
        if close {
            line(format_args!("Connection: close"));
        }
        line(format_args!(""));
        head
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, Write};
    use std::time::Duration;

    use super::*;
    use crate::content::Content;
    use crate::{RawFiles, RawOptions, RawOrigin, RawStalls};

    /// A client's end of one connection.
    struct Peer(BufReader<TcpStream>);

    /// Status, headers in lower case, body.
    type Got = (u16, String, Vec<u8>);

    impl Peer {
        fn of(origin: &RawOrigin) -> Self {
            Self(BufReader::new(TcpStream::connect(origin.address()).unwrap()))
        }

        fn ask(&mut self, method: &str, path: &str, headers: &str) -> Got {
            let request = format!("{method} {path} HTTP/1.1\r\nHost: h\r\n{headers}\r\n");
            self.0.get_mut().write_all(request.as_bytes()).unwrap();
            let mut head = String::new();
            while !head.ends_with("\r\n\r\n") {
                assert_ne!(self.0.read_line(&mut head).unwrap(), 0, "closed: {head}");
            }
            let head = head.to_ascii_lowercase();
            let status = head.split(' ').nth(1).unwrap().parse().unwrap();
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
            let length = if method == "HEAD" { 0 } else { length.unwrap().parse().unwrap() };
            let mut body = vec![0; length];
            self.0.read_exact(&mut body).unwrap();
            (status, head, body)
        }

        fn closed(&mut self) -> bool {
            self.0.read(&mut [0]).unwrap() == 0
        }
    }

    fn content() -> Content {
        Content::synthetic(3, 3 << 20)
    }

    fn origin(options: RawOptions) -> RawOrigin {
        let (large, empty) = (content(), Content::bytes(""));
        let files = [("m/a b".to_owned(), &large), ("m/empty".to_owned(), &empty)];
        RawOrigin::start(options, &RawFiles::make(files).unwrap()).unwrap()
    }

    #[test]
    fn one_connection_serves_ranges_heads_and_refusals() {
        let origin = origin(RawOptions::default());
        let mut peer = Peer::of(&origin);
        let (status, head, body) = peer.ask("GET", "/m/a%20b", "");
        assert_eq!((status, body), (200, content().to_bytes().to_vec()));
        assert!(head.contains("accept-ranges: bytes"), "{head}");
        let tag = head.lines().find_map(|line| line.strip_prefix("etag: ")).unwrap().to_owned();

        let (status, head, body) = peer.ask("GET", "/m/a%20b", "Range: bytes=1000000-2999999\r\n");
        assert_eq!((status, body.len()), (206, 2_000_000));
        assert!(content().matches(1_000_000, &body));
        assert!(head.contains("content-range: bytes 1000000-2999999/3145728"), "{head}");

        let (status, head, _) = peer.ask("HEAD", "/m/a%20b", "");
        assert_eq!(status, 200);
        assert!(head.contains("content-length: 3145728") && head.contains(&tag), "{head}");

        let matching = format!("If-Match: {tag}\r\nRange: bytes=-5\r\n");
        assert_eq!(peer.ask("GET", "/m/a%20b", &matching).2.len(), 5);
        assert_eq!(peer.ask("GET", "/m/a%20b", "If-Match: \"other\"\r\n").0, 412);
        let beyond = peer.ask("GET", "/m/a%20b", "Range: bytes=3145728-\r\n");
        assert_eq!(beyond.0, 416);
        assert!(beyond.1.contains("content-range: bytes */3145728"), "{}", beyond.1);
        assert_eq!(peer.ask("GET", "/m/none", "").0, 404);
        assert_eq!(peer.ask("DELETE", "/m/a%20b", "").0, 405);
        assert!(peer.ask("GET", "/m/empty?query", "").2.is_empty());

        let counts = origin.counts();
        assert_eq!((counts.connections, counts.gets, counts.stalls), (1, 7, 0));
        assert_eq!(counts.body_bytes, 3_145_728 + 2_000_000 + 5);
    }

    #[test]
    fn connections_end_when_either_side_wants() {
        let origin =
            origin(RawOptions { requests_per_connection: Some(2), ..RawOptions::default() });
        let mut peer = Peer::of(&origin);
        assert!(!peer.ask("HEAD", "/m/empty", "").1.contains("connection: close"));
        assert!(peer.ask("HEAD", "/m/empty", "").1.contains("connection: close"));
        assert!(peer.closed());
        let mut peer = Peer::of(&origin);
        peer.ask("GET", "/m/empty", "Connection: close\r\n");
        assert!(peer.closed());
        let mut idle = Peer::of(&origin);
        idle.ask("HEAD", "/m/empty", "");
        drop(origin);
        assert!(idle.closed());
    }

    #[test]
    fn limits_and_stalls_change_no_byte_and_a_stalled_origin_can_end() {
        let origin = origin(RawOptions {
            bytes_per_second: Some(1 << 30),
            total_bytes_per_second: Some(1 << 30),
            first_byte: Duration::from_millis(1),
            ..RawOptions::default()
        });
        let short = Duration::from_millis(1);
        origin.stall(Some(RawStalls { seed: 1, one_in: 1, shortest: short, longest: short }));
        let mut peer = Peer::of(&origin);
        for _ in 0..8 {
            assert!(content().matches(0, &peer.ask("GET", "/m/a%20b", "").2));
        }
        assert_eq!(origin.counts().stalls, 8);
        let long = Duration::from_secs(3600);
        origin.stall(Some(RawStalls { seed: 1, one_in: 1, shortest: long, longest: long }));
        let request = b"GET /m/a%20b HTTP/1.1\r\n\r\n";
        peer.0.get_mut().write_all(request).unwrap();
        while origin.counts().stalls < 9 {
            std::thread::yield_now();
        }
        drop(origin);
    }
}
