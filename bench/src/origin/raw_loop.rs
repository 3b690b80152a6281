//! What a cold load is compared with: ranged reads in a loop, with nothing around them.
//!
//! So many threads with a connection each take part after part, send one request, and `read` the
//! body into its place in one buffer that was allocated and touched before, or, where bodies are
//! dropped, into a small buffer of their own, again and again. Nothing is retried, checked or handed
//! over; what this takes is the kernel's copy and the wire.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::{Mutex, PoisonError};

use forebay_testkit::Checkpoint;

use crate::measure::{Counted, Measurement, Stopwatch};

/// The longest response head.
const HEAD_BYTES_MAX: usize = 4096;
/// What memory is filled with when it is touched.
const TOUCH: u8 = 0xa5;
/// What a body that is dropped is read into.
const DROPPED_BYTES: usize = 1 << 20;

/// One ranged read.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Part {
    path: String,
    first: u64,
    bytes: usize,
}

/// The reads and their memory, which is empty if bodies are dropped.
pub(crate) struct RawLoop {
    address: SocketAddr,
    parts: Vec<Part>,
    buffer: Vec<u8>,
}

impl RawLoop {
    /// Reads of every file of a checkpoint in parts of `part_bytes`.
    pub(crate) fn new(
        address: SocketAddr,
        prefix: &str,
        checkpoint: &Checkpoint,
        part_bytes: u32,
    ) -> Self {
        let mut raw = Self::dropping(address, prefix, checkpoint, part_bytes);
        raw.buffer = vec![TOUCH; raw.parts.iter().map(|part| part.bytes).sum()];
        raw
    }

    /// The same, of which nothing is kept.
    pub(crate) fn dropping(
        address: SocketAddr,
        prefix: &str,
        checkpoint: &Checkpoint,
        part_bytes: u32,
    ) -> Self {
        let files = checkpoint.files().iter();
        let parts: Vec<Part> = files
            .flat_map(|(name, content)| {
                parts(&format!("/{prefix}{name}"), content.len(), part_bytes)
            })
            .collect();
        Self { address, parts, buffer: Vec::new() }
    }

    /// All bytes, as they lie in the buffer: file after file.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.buffer
    }

    /// Reads everything over so many connections.
    pub(crate) fn run(&mut self, connections: usize) -> io::Result<Measurement> {
        let bytes = self.parts.iter().map(|part| part.bytes).sum::<usize>();
        let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
        let own = Counted { name: "raw loop", pid: std::process::id() };
        let watch = Stopwatch::start(&[own])?;
        let mut rest = self.buffer.as_mut_slice();
        let mut places = Vec::with_capacity(self.parts.len());
        for part in &self.parts {
            let place = rest.split_off_mut(..part.bytes);
            places.push((part, place));
        }
        let queue = Mutex::new(places.into_iter());
        let address = self.address;
        let reader = || read_parts(address, &queue);
        std::thread::scope(|scope| {
            let readers: Vec<_> = (0..connections).map(|_| scope.spawn(reader)).collect();
            let ended = |thread: std::thread::ScopedJoinHandle<'_, io::Result<()>>| {
                thread.join().unwrap_or_else(|_| Err(io::Error::other("a reader panicked")))
            };
            readers.into_iter().map(ended).collect::<io::Result<Vec<()>>>()
        })?;
        watch.stop(bytes)
    }
}

fn parts(path: &str, bytes: u64, part_bytes: u32) -> Vec<Part> {
    let step = u64::from(part_bytes.max(1));
    let firsts = (0..bytes.div_ceil(step)).map(|number| number * step);
    let part = |first| {
        let most = usize::try_from(part_bytes).unwrap_or(usize::MAX);
        let bytes = usize::try_from(bytes - first).map_or(most, |left| left.min(most));
        Part { path: path.to_owned(), first, bytes }
    };
    firsts.map(part).collect()
}

/// One connection: takes the next part until there is none. A part without a place is dropped.
fn read_parts<'a>(
    address: SocketAddr,
    queue: &Mutex<impl Iterator<Item = (&'a Part, Option<&'a mut [u8]>)>>,
) -> io::Result<()> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_nodelay(true)?;
    let mut dropped = Vec::new();
    loop {
        let next = queue.lock().unwrap_or_else(PoisonError::into_inner).next();
        let Some((part, place)) = next else { return Ok(()) };
        if place.is_none() {
            dropped.resize(DROPPED_BYTES.min(part.bytes), TOUCH);
        }
        read_part(&mut stream, part, place.unwrap_or(&mut dropped))?;
    }
}

/// Reads a part into a place of its length, or over and over into a shorter one.
fn read_part(stream: &mut TcpStream, part: &Part, place: &mut [u8]) -> io::Result<()> {
    let Part { path, first, bytes } = part;
    let last = first + u64::try_from(*bytes).unwrap_or(u64::MAX) - 1;
    let request =
        format!("GET {path} HTTP/1.1\r\nHost: raw\r\nRange: bytes={first}-{last}\r\n\r\n");
    stream.write_all(request.as_bytes())?;
    let mut filled = read_head(stream, *bytes, place)?;
    while filled < *bytes {
        let at = filled % place.len();
        let end = place.len().min(at + bytes - filled);
        match stream.read(&mut place[at..end]) {
            Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
            Ok(more) => filled += more,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Reads and checks a response's head; the bytes of the body that came with it are put in place.
fn read_head(stream: &mut TcpStream, length: usize, place: &mut [u8]) -> io::Result<usize> {
    let mut head = [0; HEAD_BYTES_MAX];
    let mut filled = 0;
    let odd = |text: &str| io::Error::new(ErrorKind::InvalidData, text.to_owned());
    loop {
        // Never beyond the part: what follows it would be the next answer's.
        let more = stream.read(&mut head[filled..])?;
        if more == 0 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        filled += more;
        let end = head[..filled].windows(4).position(|four| four == b"\r\n\r\n");
        if let Some(end) = end {
            let (text, body) = head[..filled].split_at(end + 4);
            let text = String::from_utf8_lossy(text).to_ascii_lowercase();
            let as_asked = text.starts_with("http/1.1 206 ")
                && text.contains(&format!("\r\ncontent-length: {length}\r\n"));
            let into = place.get_mut(..body.len()).filter(|_| as_asked);
            into.ok_or_else(|| odd(&text))?.copy_from_slice(body);
            return Ok(body.len());
        }
        if filled == head.len() {
            return Err(odd("a head that does not end"));
        }
    }
}

#[cfg(test)]
mod tests {
    use forebay_testkit::{CheckpointSpec, RawFiles, RawOptions, RawOrigin, checkpoint};

    use super::*;

    #[test]
    fn parts_cover_a_file_once() {
        let cut = |bytes| {
            let parts = parts("/f", bytes, 10);
            parts.into_iter().map(|part| (part.first, part.bytes)).collect::<Vec<_>>()
        };
        assert_eq!(cut(25), [(0, 10), (10, 10), (20, 5)]);
        assert_eq!(cut(20), [(0, 10), (10, 10)]);
        assert_eq!(cut(0), []);
    }

    #[test]
    fn the_loop_reads_every_byte_into_its_place() {
        let made = checkpoint(CheckpointSpec::new(2, 4 << 20).shards(3));
        let files = RawFiles::checkpoint("p/", &made).unwrap();
        let origin = RawOrigin::start(RawOptions::default(), &files).unwrap();
        let mut raw = RawLoop::new(origin.address(), "p/", &made, 300_000);
        let run = raw.run(3).unwrap();
        // Its thread counts what it sent after that was sent.
        let counted = |bytes| {
            while origin.counts().body_bytes < bytes {
                std::thread::yield_now();
            }
            assert_eq!(origin.counts().body_bytes, bytes);
        };
        counted(made.bytes());
        assert_eq!((run.bytes, origin.counts().connections), (made.bytes(), 3));
        let mut at = 0;
        for (name, content) in made.files() {
            let end = at + usize::try_from(content.len()).unwrap();
            assert!(content.matches(0, &raw.bytes()[at..end]), "{name}");
            at = end;
        }
        assert_eq!(at, raw.bytes().len());

        let mut none = RawLoop::dropping(origin.address(), "p/", &made, 3_000_000);
        assert_eq!(none.run(2).unwrap().bytes, made.bytes());
        counted(2 * made.bytes());
        assert!(none.bytes().is_empty());
        drop(origin);
        raw.run(3).unwrap_err();
    }
}
