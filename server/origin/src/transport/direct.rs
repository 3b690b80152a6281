//! Direct receive: the body of a part goes from the socket to where it belongs.
//!
//! object_store signs the request and checks the head of the answer; the body it gets is empty. The
//! real one waits in the request's [`Direct`], from which the read takes it and fills its slot:
//! over plain HTTP the kernel's copy is the only one, over TLS there is the decryption beside it.
//!
//! Two clocks run: for silence while a byte is waited for (time the reader takes to use what it got
//! is not the origin's), and for the whole attempt, which a body that only drips runs into.

use std::future::poll_fn;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use http::Uri;
use tokio::io::{AsyncRead, ReadBuf};
use tokio::time::{Instant, Sleep, sleep_until};

use super::idle::IdlePool;
use super::probe::{Break, Probe};
use super::stream::Stream;
use super::wire::{Framing, Head, Wire};
use crate::evidence::{Silence, SocketEvidence, TcpDelta, TcpSnapshot};
use crate::filling::{Filling, length};
use crate::stats::Counters;

/// What is received at a time: enough to make calls rare, and little enough to be in the cache of
/// the core still when it is looked at.
const RECEIVE: usize = 256 << 10;
/// The longest line of a chunked body: its size, and extensions that nobody uses.
const LINE_MAX: usize = 4096;
/// Trailers that are passed over.
const TRAILERS_MAX: usize = 64;

/// Shorter waits for the next bytes are summed, and no more: they are the pace of the connection.
const SILENCE_MIN: Duration = Duration::from_millis(10);
/// Silences of one body that are told apart: the longest.
const SILENCES_MAX: usize = 16;

/// The place in a request where the transport leaves the body of its answer.
#[derive(Debug, Clone, Default)]
pub(crate) struct Direct(Arc<Mutex<Option<DirectBody>>>);

impl Direct {
    pub(crate) fn put(&self, body: DirectBody) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(body);
    }

    /// The body, once there is one.
    pub(crate) fn take(&self) -> Option<DirectBody> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// What a body needs to know beside its connection.
#[derive(Debug, Clone)]
pub(crate) struct BodyTerms {
    pub(crate) idle: Duration,
    pub(crate) counters: Arc<Counters>,
    /// Where the connection goes when the body was read to its end, and for whom.
    pub(crate) pool: IdlePool,
    pub(crate) uri: Uri,
    pub(crate) watch: TcpWatch,
}

/// The state of a connection when its request was sent.
#[derive(Debug, Clone)]
pub(crate) struct TcpWatch {
    evidence: Arc<dyn SocketEvidence>,
    before: Option<TcpSnapshot>,
    probe: Probe,
}

impl TcpWatch {
    pub(crate) fn begin(
        evidence: &Arc<dyn SocketEvidence>,
        stream: &Stream,
        probe: &Probe,
    ) -> Self {
        let before = evidence.tcp(stream.socket());
        Self { evidence: Arc::clone(evidence), before, probe: probe.clone() }
    }

    /// Notes what happened until the head was there.
    pub(crate) fn head(&self, stream: &Stream) {
        let delta = self.since(stream);
        self.probe.note(|seen| seen.head_tcp = delta);
    }

    fn since(&self, stream: &Stream) -> Option<TcpDelta> {
        let (before, after) = self.before.zip(self.evidence.tcp(stream.socket()))?;
        Some(after.since(&before))
    }

    /// Notes what happened since, and what the waits for bytes came to.
    pub(crate) fn end(&self, stream: &Stream, waits: &mut Waits) {
        let silences = waits.longest();
        let delta = self.since(stream);
        self.probe.note(|seen| {
            seen.tcp = delta;
            seen.waited += waits.all;
            seen.silences.extend(silences);
        });
    }

    /// What the kernel says of a silence that has just ended, with a byte or because nobody waits any
    /// longer.
    fn silence(
        &self,
        stream: &Stream,
        (start, length, came): (Instant, Duration, bool),
        waits: &mut Waits,
    ) {
        let now = self.evidence.tcp(stream.socket());
        let before = waits.out_of_order.or_else(|| self.before.map(|before| before.out_of_order));
        let (mut late, mut out_of_order, mut receive_rtt) = Default::default();
        if let Some(now) = now {
            // Of what came last before it, if nothing ended it.
            late = if came { now.silent.min(length) } else { Duration::ZERO };
            out_of_order = before.map_or(0, |before| now.out_of_order.saturating_sub(before));
            receive_rtt = now.receive_rtt;
            waits.out_of_order = Some(now.out_of_order);
        }
        waits.silences.push(Silence { start, length, late, out_of_order, receive_rtt });
        if waits.silences.len() >= 2 * SILENCES_MAX {
            waits.silences = waits.longest();
        }
    }
}

/// Notes, if a body is cut off while it is waited for, what the kernel knows of its connection: the
/// silence that made a copy of the request, or a deadline, come first.
struct LastLook {
    watch: TcpWatch,
    /// None once the body has ended by itself.
    socket: Option<OwnedFd>,
}

impl LastLook {
    fn new(watch: &TcpWatch, stream: &Stream) -> Self {
        let known = watch.before.and_then(|_| stream.socket().try_clone_to_owned().ok());
        Self { watch: watch.clone(), socket: known }
    }

    /// The body has ended.
    fn spare(mut self) {
        self.socket = None;
    }
}

impl Drop for LastLook {
    fn drop(&mut self) {
        let Some(socket) = &self.socket else { return };
        let now = self.watch.evidence.tcp(socket.as_fd());
        let Some((before, now)) = self.watch.before.zip(now) else { return };
        let (ended, delta) = (Instant::now(), now.since(&before));
        let silence = Silence {
            start: ended.checked_sub(now.silent).unwrap_or(ended),
            length: now.silent,
            late: Duration::ZERO,
            out_of_order: delta.out_of_order,
            receive_rtt: now.receive_rtt,
        };
        self.watch.probe.note(|seen| {
            seen.tcp = Some(delta);
            if silence.length >= SILENCE_MIN {
                seen.waited += silence.length;
                seen.silences.push(silence);
            }
        });
    }
}

/// The waits of one body.
#[derive(Debug, Default)]
pub(crate) struct Waits {
    all: Duration,
    silences: Vec<Silence>,
    /// Segments out of order when it was last looked.
    out_of_order: Option<u64>,
}

impl Waits {
    /// The longest silences, in the order of time.
    fn longest(&mut self) -> Vec<Silence> {
        let mut silences = std::mem::take(&mut self.silences);
        if silences.len() > SILENCES_MAX {
            silences.sort_by_key(|silence| std::cmp::Reverse(silence.length));
            silences.truncate(SILENCES_MAX);
            silences.sort_by_key(|silence| silence.start);
        }
        silences
    }
}

/// A body that nobody has read yet.
#[derive(Debug)]
pub(crate) struct DirectBody {
    wire: Wire,
    framing: Framing,
    keeps: bool,
    terms: BodyTerms,
    patience: Patience,
    waits: Waits,
}

/// How a body ended before its time.
#[derive(Debug)]
pub(crate) struct Stopped {
    pub(crate) broke: Break,
    pub(crate) text: String,
}

impl Stopped {
    fn new(broke: Break, text: impl Into<String>) -> Self {
        Self { broke, text: text.into() }
    }

    fn short() -> Self {
        Self::new(Break::Short, "the connection ended before the body did")
    }

    fn by(error: &io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::UnexpectedEof => Self::short(),
            io::ErrorKind::InvalidData => Self::new(Break::Protocol, error.to_string()),
            _ => Self::new(Break::Cut, error.to_string()),
        }
    }
}

impl DirectBody {
    pub(crate) fn new(wire: Wire, head: &Head, terms: BodyTerms) -> Self {
        let patience = Patience::new(terms.idle);
        let waits = Waits::default();
        Self { wire, framing: head.framing, keeps: head.keeps, terms, patience, waits }
    }

    /// Receives the whole body, which has to be over `until` then.
    pub(crate) async fn fill(
        mut self,
        filling: &mut Filling<'_>,
        until: Option<Instant>,
    ) -> Result<(), Stopped> {
        self.patience.until = until;
        let begun = filling.filled;
        let last_look = LastLook::new(&self.terms.watch, &self.wire.stream);
        let received = match self.framing {
            Framing::Length(bytes) => self.receive(filling, bytes).await,
            Framing::Chunked => self.receive_chunks(filling).await,
            Framing::Close => self.receive_to_the_end(filling).await,
        };
        last_look.spare();
        self.terms.watch.end(&self.wire.stream, &mut self.waits);
        if received.as_ref().is_err_and(|stopped| stopped.broke == Break::Protocol) {
            // Whatever it was that came, it was not what the head promised.
            filling.take_back(begun);
        }
        match received {
            Ok(()) => self.finished(),
            // Everything that was asked for is there. How the connection ends then, without the end
            // of the chunks or that of TLS, is nothing but a reason not to use it again.
            Err(stopped) if stopped.broke != Break::Protocol && filling.missing() == 0 => {}
            Err(stopped) => return Err(stopped),
        }
        Ok(())
    }

    /// The start of a body that is not wanted: of an error. At most so many bytes, and what comes
    /// of them within the limit on silence.
    pub(crate) async fn start(mut self, bytes_max: usize) -> Vec<u8> {
        self.patience.until = Some(Instant::now() + self.terms.idle);
        let mut start = vec![0; bytes_max];
        let mut filling = Filling::new(&mut start);
        let received = match self.framing {
            Framing::Length(bytes) => {
                self.receive(&mut filling, bytes.min(length(bytes_max))).await
            }
            Framing::Chunked => self.receive_chunks(&mut filling).await,
            Framing::Close => self.receive_to_the_end(&mut filling).await,
        };
        self.terms.watch.end(&self.wire.stream, &mut self.waits);
        let filled = filling.filled;
        if received.is_ok() && self.framing == Framing::Length(length(filled)) {
            self.finished();
        }
        start.truncate(filled);
        start
    }

    /// The answer was read to its end: its connection may serve the next request.
    fn finished(self) {
        let now = Instant::now();
        if self.keeps && self.wire.is_clean() && !self.wire.stream.mark().is_shunned(now) {
            self.terms.pool.put(&self.terms.uri, self.wire, now);
        }
    }

    /// So many bytes of the body, and no more than there is room for.
    async fn receive(&mut self, filling: &mut Filling<'_>, bytes: u64) -> Result<(), Stopped> {
        let mut left = bytes;
        while left > 0 {
            let most = usize::try_from(left).unwrap_or(usize::MAX).min(RECEIVE);
            let got = self.some(filling.room(most)).await?;
            if got == 0 && filling.missing() == 0 {
                return Err(Stopped::new(Break::Protocol, "more bytes than the range"));
            }
            if got == 0 {
                return Err(Stopped::short());
            }
            self.terms.counters.received(got);
            filling.landed(got);
            left -= length(got);
        }
        Ok(())
    }

    async fn receive_to_the_end(&mut self, filling: &mut Filling<'_>) -> Result<(), Stopped> {
        loop {
            let got = self.some(filling.room(RECEIVE)).await?;
            if got == 0 {
                break;
            }
            self.terms.counters.received(got);
            filling.landed(got);
        }
        let full = filling.missing() == 0;
        if full && (!self.wire.unread().is_empty() || self.more().await? > 0) {
            return Err(Stopped::new(Break::Protocol, "more bytes than the range"));
        }
        Ok(())
    }

    async fn receive_chunks(&mut self, filling: &mut Filling<'_>) -> Result<(), Stopped> {
        loop {
            let line = self.line().await?;
            let digits = line.split(';').next().unwrap_or_default().trim();
            let bytes = u64::from_str_radix(digits, 16).ok().filter(|_| !digits.starts_with('+'));
            let no_size = || Stopped::new(Break::Protocol, "a chunk without a size");
            match bytes.ok_or_else(no_size)? {
                0 => break,
                bytes => self.receive(filling, bytes).await?,
            }
            if !self.line().await?.is_empty() {
                return Err(Stopped::new(Break::Protocol, "a chunk longer than its size"));
            }
        }
        for _ in 0..TRAILERS_MAX {
            if self.line().await?.is_empty() {
                return Ok(());
            }
        }
        Err(Stopped::new(Break::Protocol, "too many trailers"))
    }

    /// A line of a chunked body, without its end.
    async fn line(&mut self) -> Result<String, Stopped> {
        loop {
            let unread = self.wire.unread();
            if let Some(end) = unread.windows(2).position(|two| two == b"\r\n") {
                let line = String::from_utf8_lossy(&unread[..end]).into_owned();
                self.wire.consume(end + 2);
                return Ok(line);
            }
            if unread.len() > LINE_MAX {
                return Err(Stopped::new(Break::Protocol, "a chunk without a size"));
            }
            if self.more().await? == 0 {
                return Err(Stopped::short());
            }
        }
    }

    /// The next bytes of the connection; none at its end, or if there is no room for any.
    async fn some(&mut self, into: &mut [u8]) -> Result<usize, Stopped> {
        let unread = self.wire.unread();
        if !unread.is_empty() || into.is_empty() {
            let bytes = unread.len().min(into.len());
            into[..bytes].copy_from_slice(&unread[..bytes]);
            self.wire.consume(bytes);
            return Ok(bytes);
        }
        self.patience.begin();
        let some = poll_fn(|cx| {
            let mut buffer = ReadBuf::new(into);
            match Pin::new(&mut self.wire.stream).poll_read(cx, &mut buffer) {
                Poll::Ready(read) => {
                    Poll::Ready(read.map(|()| buffer.filled().len()).map_err(|e| Stopped::by(&e)))
                }
                Poll::Pending => self.patience.poll(cx).map(Err),
            }
        });
        let some = some.await;
        self.waited(some.as_ref().is_ok_and(|bytes| *bytes > 0));
        some
    }

    /// A wait for bytes is over, if there was one.
    fn waited(&mut self, came: bool) {
        let Some(since) = self.patience.since.take() else { return };
        let length = since.elapsed();
        self.waits.all += length;
        if length >= SILENCE_MIN {
            let stream = &self.wire.stream;
            self.terms.watch.silence(stream, (since, length, came), &mut self.waits);
        }
    }

    /// More of the connection behind what is unread.
    async fn more(&mut self) -> Result<usize, Stopped> {
        self.patience.begin();
        let more = {
            let mut reading = std::pin::pin!(self.wire.read_more());
            let more = poll_fn(|cx| match reading.as_mut().poll(cx) {
                Poll::Ready(read) => Poll::Ready(read.map_err(|error| Stopped::by(&error))),
                Poll::Pending => self.patience.poll(cx).map(Err),
            });
            more.await
        };
        self.waited(more.as_ref().is_ok_and(|bytes| *bytes > 0));
        more
    }
}

/// How long a byte is waited for.
#[derive(Debug)]
struct Patience {
    idle: Duration,
    until: Option<Instant>,
    since: Option<Instant>,
    /// Set when a wait begins that finds it too early or not at all, and not at every wait: bytes
    /// come thousands of times as often as they stay away.
    alarm: Option<Pin<Box<Sleep>>>,
}

impl Patience {
    fn new(idle: Duration) -> Self {
        Self { idle, until: None, since: None, alarm: None }
    }

    /// A wait begins, if there is to be one.
    fn begin(&mut self) {
        self.since = None;
    }

    /// The end of all patience.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Stopped> {
        let since = *self.since.get_or_insert_with(Instant::now);
        let silent = since + self.idle;
        let due = self.until.map_or(silent, |until| until.min(silent));
        loop {
            let alarm = self.alarm.get_or_insert_with(|| Box::pin(sleep_until(due)));
            ready!(alarm.as_mut().poll(cx));
            if alarm.deadline() >= due {
                break;
            }
            alarm.as_mut().reset(due);
        }
        let text = if due == silent {
            format!("no byte of body within {} ms", self.idle.as_millis())
        } else {
            "the body came too slowly".to_owned()
        };
        Poll::Ready(Stopped::new(Break::TimedOut, text))
    }
}
