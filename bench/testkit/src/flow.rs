//! Response bodies: the bytes of an object in large pieces, and the faults done to them.
//!
//! `ObjectBody` makes the pieces. Content in memory is sent without a copy; other content is made
//! into one buffer that is taken back as soon as hyper has written it. `Flow` wraps any body of any
//! backend: it counts the bytes, holds them to the speed limits, flips bits, pads, and ends the
//! body before its time by the steps Send -> Flush -> Drain -> cut:
//!
//! - Flush: the body says "nothing yet", at which hyper writes all it holds to the socket;
//! - Drain, before a reset: until the peer's kernel has acknowledged it, at most `DRAIN_LIMIT`;
//! - then the body fails, at which hyper drops the socket, which closes or resets it.

use std::convert::Infallible;
use std::io;
use std::ops::Range;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::Stream;
use http_body::{Body, Frame};
use tokio::time::{Instant, Sleep};

use crate::content::{Content, as_u64, as_usize};
use crate::ledger::Entry;
use crate::link::Link;
use crate::pace::Pace;
use crate::plan::{End, Flip, Script};
use crate::random::mix;

/// Bytes made and handed to hyper at once: small enough to stay in the CPU's cache on the way.
const PIECE_BYTES: u64 = 256 << 10;
/// How long the peer's kernel is given to take what was sent before a cut: without a reader the
/// window closes, and the cut must come nevertheless.
const DRAIN_LIMIT: Duration = Duration::from_millis(500);
const DRAIN_STEP: Duration = Duration::from_millis(1);

/// A range of a content as a stream of pieces.
#[derive(Debug)]
pub(crate) struct ObjectBody {
    content: Content,
    left: Range<u64>,
    buffer: BytesMut,
}

impl ObjectBody {
    pub(crate) fn new(content: Content, range: Range<u64>) -> Self {
        Self { content, left: range, buffer: BytesMut::new() }
    }

    fn next_piece(&mut self) -> Option<Bytes> {
        if self.left.is_empty() {
            return None;
        }
        let end = self.left.end.min(self.left.start + PIECE_BYTES);
        let range = self.left.start..end;
        self.left.start = end;
        if let Content::Bytes(_) = self.content {
            return Some(self.content.slice(range));
        }
        self.buffer.reserve(as_usize(range.end - range.start));
        let buffer = &mut self.buffer;
        self.content.visit(range, &mut |piece| buffer.extend_from_slice(piece));
        Some(self.buffer.split().freeze())
    }
}

impl Stream for ObjectBody {
    type Item = Result<Bytes, Infallible>;

    fn poll_next(mut self: Pin<&mut Self>, _context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        Poll::Ready(self.next_piece().map(Ok))
    }
}

/// The body of a response, by who made it.
#[derive(Debug)]
pub(crate) enum Payload {
    Whole(Bytes),
    Object(ObjectBody),
    S3(s3s::Body),
}

impl Payload {
    fn poll_piece(&mut self, context: &mut Context<'_>) -> Poll<Option<io::Result<Bytes>>> {
        match self {
            Self::Whole(bytes) if bytes.is_empty() => Poll::Ready(None),
            Self::Whole(bytes) => Poll::Ready(Some(Ok(std::mem::take(bytes)))),
            Self::Object(body) => Poll::Ready(body.next_piece().map(Ok)),
            Self::S3(body) => loop {
                return match ready!(Pin::new(&mut *body).poll_frame(context)) {
                    None => Poll::Ready(None),
                    Some(Err(error)) => Poll::Ready(Some(Err(io::Error::other(error)))),
                    Some(Ok(frame)) => match frame.into_data() {
                        Ok(bytes) => Poll::Ready(Some(Ok(bytes))),
                        Err(_trailers) => continue,
                    },
                };
            },
        }
    }
}

#[derive(Debug)]
enum Step {
    Send,
    Flush { seen: u64 },
    Drain { until: Instant },
    Stalled,
}

/// A body with its faults, limits and counters.
#[derive(Debug)]
pub(crate) struct Flow {
    payload: Payload,
    script: Script,
    at: u64,
    pad_left: u64,
    carry: Bytes,
    /// Cut off `carry` and waiting for its time.
    due: Bytes,
    step: Step,
    sleep: Option<Pin<Box<Sleep>>>,
    link: Arc<Link>,
    entry: Arc<Entry>,
    shared_pace: Arc<Pace>,
    drip: Option<Pace>,
}

impl Flow {
    pub(crate) fn new(
        payload: Payload,
        script: Script,
        link: Arc<Link>,
        entry: Arc<Entry>,
        shared_pace: Arc<Pace>,
    ) -> Self {
        let drip = script.bytes_per_second.map(|rate| Pace::new(Some(rate)));
        Self {
            payload,
            script,
            at: 0,
            pad_left: script.pad,
            carry: Bytes::new(),
            due: Bytes::new(),
            step: Step::Send,
            sleep: None,
            link,
            entry,
            shared_pace,
            drip,
        }
    }

    fn paces(&self) -> impl Iterator<Item = &Pace> {
        [&self.link.pace, &*self.shared_pace].into_iter().chain(&self.drip)
    }

    fn poll_sleep(&mut self, context: &mut Context<'_>) -> Poll<()> {
        if let Some(sleep) = &mut self.sleep {
            ready!(sleep.as_mut().poll(context));
            self.sleep = None;
        }
        Poll::Ready(())
    }

    fn sleep_until(&mut self, at: Instant) {
        self.sleep = Some(Box::pin(tokio::time::sleep_until(at)));
    }

    /// Makes `carry` hold the next bytes; None at the end of the body.
    fn poll_fill(&mut self, context: &mut Context<'_>) -> Poll<Option<io::Result<()>>> {
        while self.carry.is_empty() {
            match ready!(self.payload.poll_piece(context)) {
                Some(Ok(bytes)) => self.carry = bytes,
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                None if self.pad_left > 0 => {
                    let bytes = self.pad_left.min(PIECE_BYTES);
                    self.pad_left -= bytes;
                    self.carry = Bytes::from(vec![0xa5; as_usize(bytes)]);
                }
                None => return Poll::Ready(None),
            }
        }
        Poll::Ready(Some(Ok(())))
    }

    /// Cuts the next piece off `carry`, at most `left` bytes, and books its time.
    fn cut_piece(&mut self, left: u64) -> Bytes {
        let most = self.paces().map(Pace::piece_bytes).min().unwrap_or(u64::MAX).min(left);
        let bytes = as_u64(self.carry.len()).min(most);
        let now = Instant::now();
        if let Some(go_at) = self.paces().filter_map(|pace| pace.book(now, bytes)).max() {
            self.sleep_until(go_at);
        }
        let piece = self.carry.split_to(as_usize(bytes));
        flip(self.script.flip, self.at, piece)
    }

    fn poll_send(&mut self, context: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        if self.due.is_empty() {
            let left = match self.script.end {
                Some((end, how)) if self.at >= end => return self.begin_end(how),
                Some((end, _)) => end - self.at,
                None => u64::MAX,
            };
            match ready!(self.poll_fill(context)) {
                Some(Ok(())) => {}
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                None => return Poll::Ready(None),
            }
            self.due = self.cut_piece(left);
        }
        ready!(self.poll_sleep(context));
        let piece = std::mem::take(&mut self.due);
        self.at += as_u64(piece.len());
        self.entry.sent(as_u64(piece.len()));
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }

    /// Takes the first step towards an early end; Pending here means that the step goes on at once.
    fn begin_end(&mut self, how: End) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        self.step = match how {
            End::Clean => return Poll::Ready(None),
            End::Stall => Step::Stalled,
            End::Close | End::Reset => Step::Flush { seen: self.link.flushes() },
        };
        Poll::Pending
    }

    /// Ready when it is time to cut.
    fn poll_end(&mut self, context: &mut Context<'_>) -> Poll<()> {
        if let Step::Flush { seen } = self.step {
            self.link.wake_on_flush(context);
            if self.link.flushes() == seen {
                return Poll::Pending;
            }
            if !matches!(self.script.end, Some((_, End::Reset))) {
                return Poll::Ready(()); // an orderly close delivers what was written before it
            }
            self.step = Step::Drain { until: Instant::now() + DRAIN_LIMIT };
        }
        let Step::Drain { until } = self.step else {
            return Poll::Pending;
        };
        loop {
            ready!(self.poll_sleep(context));
            if self.link.unacknowledged() == 0 || Instant::now() >= until {
                return Poll::Ready(());
            }
            self.sleep_until(Instant::now() + DRAIN_STEP);
        }
    }
}

impl Body for Flow {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        if matches!(self.step, Step::Send) {
            let sent = self.poll_send(context);
            if sent.is_ready() || matches!(self.step, Step::Send) {
                return sent;
            }
        }
        ready!(self.poll_end(context));
        if matches!(self.script.end, Some((_, End::Reset))) {
            self.link.reset_on_close();
        }
        Poll::Ready(Some(Err(io::Error::other("cut by a fault"))))
    }
}

/// The piece that starts at body offset `at`, with the bits flipped that `flip` asks for.
fn flip(flip: Flip, at: u64, piece: Bytes) -> Bytes {
    let end = at + as_u64(piece.len());
    match flip {
        Flip::None => piece,
        Flip::At(offset) if !(at..end).contains(&offset) => piece,
        Flip::At(offset) => {
            let mut bytes = BytesMut::from(piece);
            bytes[as_usize(offset - at)] ^= 1;
            bytes.freeze()
        }
        Flip::OnePer { seed, every } => {
            let mut bytes = BytesMut::from(piece);
            for window in at / every..=end / every {
                let drawn = mix(seed ^ mix(window));
                let offset = window * every + (drawn >> 3) % every;
                if (at..end).contains(&offset) {
                    bytes[as_usize(offset - at)] ^= 1 << (drawn & 7);
                }
            }
            bytes.freeze()
        }
    }
}
