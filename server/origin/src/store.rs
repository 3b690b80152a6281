//! The seam between Forebay and an object store: three calls, and what they say about themselves.

use std::fmt::Debug;
use std::fs::File;
use std::net::IpAddr;
use std::ops::Range;
use std::time::Duration;

use async_trait::async_trait;
use tokio::time::Instant;

use crate::checksum::Checksums;
use crate::error::{OriginError, OriginErrorKind};
use crate::evidence::{Silence, TcpDelta};
use crate::key::ObjectKey;
use crate::pin::Pin;
pub use crate::terms::ReadTerms;

/// What is known of an object before it is read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectMeta {
    /// Its key, from the root of the store.
    pub key: ObjectKey,
    /// Its size.
    pub bytes: u64,
    /// What makes this version of it recognisable.
    pub pin: Pin,
    /// What the store says of its bytes. Only a head asks for it: a listing has none.
    pub checksums: Checksums,
}

/// A byte range of one version of an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReadRequest {
    /// The object.
    pub key: ObjectKey,
    /// The version that was resolved: any other is an error.
    pub pin: Pin,
    /// The size that was resolved: any other is an error.
    pub object_bytes: u64,
    /// The bytes that are wanted; its length is the length of the destination.
    pub range: Range<u64>,
}

/// Who a read is for. Interactive reads go first where an origin has no room for all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum Lane {
    /// Someone waits for it.
    #[default]
    Interactive,
    /// Nobody waits for it yet.
    Prefetch,
}

/// How an attempt ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AttemptOutcome {
    /// It brought everything that was still missing.
    Done,
    /// It failed so.
    Failed(OriginErrorKind),
    /// A second copy of it was faster, and brought what was missing.
    Overtaken,
    /// It was under way when nobody wanted it any more, or when it was looked at.
    GivenUp,
    /// The same before it was let.
    Unsent,
}

/// One attempt at one request, with the time of each phase.
#[derive(Debug, Clone, PartialEq)]
pub struct AttemptRecord {
    /// When it began.
    pub started: Instant,
    /// Before it began it waited mostly for the rate that is configured.
    pub rated: bool,
    /// Name resolution, if this attempt was the first on a new connection.
    pub dns: Option<Duration>,
    /// TCP connect, likewise.
    pub connect: Option<Duration>,
    /// TLS handshake, likewise.
    pub tls: Option<Duration>,
    /// From having a connection to the response's head.
    pub first_byte: Option<Duration>,
    /// From the response's head to the end of the attempt.
    pub body: Duration,
    /// Body bytes received.
    pub bytes: u64,
    /// The address that it went to, if it got as far.
    pub address: Option<IpAddr>,
    /// What happened on its connection, where the kernel tells.
    pub tcp: Option<TcpDelta>,
    /// The same until the head of the answer was there.
    pub head_tcp: Option<TcpDelta>,
    /// Of `body`: how long the next bytes were waited for, with none in the socket.
    pub waited: Duration,
    /// The longest of these waits, at most 16, in the order of time.
    pub silences: Vec<Silence>,
    /// Bytes of a file that were known not to be in the page cache when they were wanted: a disk
    /// had to bring them. Counted from the first that was missing to the end of its piece of a MiB.
    pub cold_bytes: u64,
    /// When a second copy of it was made, if one was.
    pub copied: Option<Instant>,
    /// Why none was made, if one was due.
    pub not_copied: Option<&'static str>,
    /// How it ended.
    pub outcome: AttemptOutcome,
}

/// What a finished read cost.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct ReadRecord {
    /// Attempts made.
    pub attempts: u32,
    /// Body bytes received by all attempts.
    pub bytes_received: u64,
    /// Each attempt, in order.
    pub attempt_log: Vec<AttemptRecord>,
    /// Time spent waiting between attempts.
    pub backoff: Duration,
    /// Time spent waiting for leave to send, before all attempts together.
    pub queued: Duration,
    /// Second copies of slow attempts. They are no attempts.
    pub hedges: u32,
    /// Those that were faster.
    pub hedge_wins: u32,
    /// Body bytes, among those received, that another copy brought too.
    pub wasted_bytes: u64,
}

impl ReadRecord {
    /// The address that all its bytes came from; none if they came from several, or from a copy.
    #[must_use]
    pub fn source(&self) -> Option<IpAddr> {
        match self.attempt_log.as_slice() {
            [only] if only.outcome == AttemptOutcome::Done => only.address,
            _ => None,
        }
    }
}

/// Looks at the bytes of a read as they land, while they are still in the cache of the core.
pub trait Landing: Send {
    /// The next bytes of the range. Called in order, for some hundred KiB at a time.
    fn landed(&mut self, bytes: &[u8]);

    /// What was shown is not what is there: everything is shown anew.
    fn restart(&mut self);
}

/// Where the bytes of a read go.
pub struct Destination<'a> {
    /// As long as the range.
    pub into: &'a mut [u8],
    /// Who looks at them as they land.
    pub landing: Option<&'a mut dyn Landing>,
}

impl<'a> From<&'a mut [u8]> for Destination<'a> {
    fn from(into: &'a mut [u8]) -> Self {
        Self { into, landing: None }
    }
}

impl Debug for Destination<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Destination").field("bytes", &self.into.len()).finish_non_exhaustive()
    }
}

/// Reads a file of this machine into a place of its own: for who has a shorter way than a copy.
#[async_trait]
pub trait FileReader: Send {
    /// Fills the place with the range of the file; how many of its bytes a disk had to bring, as
    /// far as is known. A file that suits it not comes back, with its offset anywhere, and is then
    /// copied to [`FileReader::destination`]. A file that ends within the range is
    /// [`std::io::ErrorKind::UnexpectedEof`].
    async fn read(&mut self, file: File, range: Range<u64>) -> std::io::Result<FileRead>;

    /// The place, for a copy; none if it is not to be had any more.
    fn destination(&mut self) -> Option<Destination<'_>>;
}

/// What came of a file that a [`FileReader`] was given.
#[derive(Debug)]
pub enum FileRead {
    /// The place is filled.
    Done {
        /// Bytes that a disk had to bring.
        cold_bytes: u64,
    },
    /// Nothing was read of it.
    Unsuited(File),
}

/// An object store, or one bucket, host or file system of it.
///
/// Every call retries transient failures itself and is safe to drop at any point: the connection is
/// closed at once. The destination of a dropped or failed read holds undefined bytes.
#[async_trait]
pub trait OriginStore: Send + Sync + Debug {
    /// Size and version of one object.
    async fn head(&self, key: &ObjectKey) -> Result<ObjectMeta, OriginError>;

    /// Every object under a prefix, at any depth, sorted by key. Folder markers are left out. More
    /// than `limit` objects are an error. A prefix with nothing under it is an empty list, but for
    /// http(s), where it is [`OriginErrorKind::NotFound`].
    async fn list(&self, prefix: &ObjectKey, limit: usize) -> Result<Vec<ObjectMeta>, OriginError>;

    /// Fills the destination with the range, or fails.
    async fn read_on(
        &self,
        request: &ReadRequest,
        terms: ReadTerms,
        to: Destination<'_>,
    ) -> Result<ReadRecord, OriginError>;

    /// Whether its objects are files of this machine, which [`OriginStore::read_file`] is for.
    fn holds_files(&self) -> bool {
        false
    }

    /// As [`OriginStore::read_on`], by a reader that has a place of its own.
    async fn read_file(
        &self,
        request: &ReadRequest,
        terms: ReadTerms,
        reader: &mut dyn FileReader,
    ) -> Result<ReadRecord, OriginError> {
        let (_, _) = (terms, reader);
        let text = "its objects are no files of this machine";
        Err(OriginError::new(OriginErrorKind::Unsupported, &request.key, text))
    }

    /// The same, on the usual terms.
    async fn read(
        &self,
        request: &ReadRequest,
        into: &mut [u8],
    ) -> Result<ReadRecord, OriginError> {
        self.read_on(request, ReadTerms::default(), into.into()).await
    }
}
