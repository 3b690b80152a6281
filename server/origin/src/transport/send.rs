//! The body of a request on its way out, in pieces: so that it is known how far it got.
//!
//! hyper asks for a piece when it has room for one, which it has when the socket takes bytes. A
//! body of which nothing was asked for in a while is stalled: its origin takes nothing. Once the
//! last piece is given, it is the answer that is waited for.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use object_store::client::{HttpError, HttpRequest, HttpRequestBody};
use tokio::time::Instant;

use crate::settings::Timeouts;

/// Bytes given at a time: what hyper holds back at most is twice as much.
const PIECE_BYTES: usize = 256 << 10;
/// Below this, on the whole, an origin takes a body too slowly to go on.
const BYTES_PER_SECOND_MIN: u64 = 64 << 10;

/// A body that says how far it got.
#[derive(Debug)]
pub(crate) struct Outgoing {
    inner: HttpRequestBody,
    /// Of the last frame.
    rest: Bytes,
    progress: Arc<Progress>,
}

/// How far a body got.
#[derive(Debug)]
pub(crate) struct Progress {
    epoch: Instant,
    bytes: u64,
    /// When a piece was last given, in nanoseconds after `epoch`.
    moved: AtomicU64,
    given: AtomicBool,
}

/// A limit, and when it is reached.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limit {
    pub(crate) until: Instant,
    pub(crate) limit: Duration,
    /// It is the origin's turn to answer, not to take more.
    pub(crate) answers: bool,
}

impl Progress {
    /// Until when more of a request has to be taken, or its answer to begin, if it was sent from
    /// `begun` on.
    pub(crate) fn limit(&self, begun: Instant, timeouts: &Timeouts) -> Limit {
        if self.bytes == 0 {
            let limit = timeouts.first_byte;
            return Limit { until: begun + limit, limit, answers: true };
        }
        let answers = self.given.load(Ordering::Relaxed);
        let limit = if answers { timeouts.written } else { timeouts.body_idle };
        let moved = self.epoch + Duration::from_nanos(self.moved.load(Ordering::Relaxed));
        let slowest = Duration::from_millis(self.bytes.saturating_mul(1000) / BYTES_PER_SECOND_MIN);
        let whole = begun + timeouts.written + slowest;
        Limit { until: (moved.max(begun) + limit).min(whole), limit, answers }
    }

    fn moves(&self, given: bool) {
        let now = u64::try_from(self.epoch.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.moved.store(now, Ordering::Relaxed);
        self.given.store(given, Ordering::Relaxed);
    }
}

/// A request whose body says how far it got.
pub(crate) fn outgoing(request: HttpRequest) -> (http::Request<Outgoing>, Arc<Progress>) {
    let bytes = u64::try_from(request.body().content_length()).unwrap_or(u64::MAX);
    let progress = Arc::new(Progress {
        epoch: Instant::now(),
        bytes,
        moved: AtomicU64::new(0),
        given: AtomicBool::new(false),
    });
    let told = Arc::clone(&progress);
    let body = |inner| Outgoing { inner, rest: Bytes::new(), progress: told };
    (request.map(body), progress)
}

impl Body for Outgoing {
    type Data = Bytes;
    type Error = HttpError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, HttpError>>> {
        while self.rest.is_empty() {
            match Pin::new(&mut self.inner).poll_frame(cx) {
                Poll::Ready(Some(Ok(frame))) => self.rest = frame.into_data().unwrap_or_default(),
                other => {
                    self.progress.moves(true);
                    return other;
                }
            }
        }
        let bytes = self.rest.len().min(PIECE_BYTES);
        let piece = self.rest.split_to(bytes);
        self.progress.moves(self.is_end_stream());
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let rest = u64::try_from(self.rest.len()).unwrap_or(u64::MAX);
        let inner = self.inner.size_hint().exact().unwrap_or_default();
        SizeHint::with_exact(inner.saturating_add(rest))
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;
    use object_store::PutPayload;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_body_goes_in_pieces_and_its_limit_moves_along() {
        let timeouts = Timeouts::default();
        let whole = vec![7; 3 * PIECE_BYTES + 1];
        let payload = PutPayload::from_iter([Bytes::from(whole), Bytes::from_static(b"end")]);
        let (mut request, progress) = outgoing(HttpRequest::new(payload.into()));
        let begun = Instant::now();
        let body = request.body_mut();
        let (mut sizes, mut waits, mut bytes) =
            (Vec::new(), Vec::new(), body.size_hint().exact().unwrap());
        while let Some(frame) = body.frame().await {
            sizes.push(frame.unwrap().into_data().unwrap().len());
            bytes -= sizes.last().copied().unwrap() as u64;
            assert_eq!(body.size_hint().exact(), Some(bytes));
            let limit = progress.limit(begun, &timeouts);
            assert_eq!(limit.answers, bytes == 0);
            waits.push(limit.until - Instant::now());
            tokio::time::advance(Duration::from_secs(1)).await;
        }
        assert_eq!(sizes, [PIECE_BYTES, PIECE_BYTES, PIECE_BYTES, 1, 3]);
        let (idle, written) = (timeouts.body_idle, timeouts.written);
        assert_eq!(waits, [idle, idle, idle, idle, written]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_only_drips_has_an_end() {
        let timeouts = Timeouts::default();
        let (_request, progress) = outgoing(HttpRequest::new(vec![0; PIECE_BYTES].into()));
        let begun = Instant::now();
        let whole = timeouts.written + Duration::from_secs(4);
        for _ in 0..100 {
            tokio::time::advance(Duration::from_secs(1)).await;
            progress.moves(false);
        }
        assert_eq!(progress.limit(begun, &timeouts).until, begun + whole);
        let (_, none) = outgoing(HttpRequest::new(HttpRequestBody::empty()));
        let limit = none.limit(begun, &timeouts);
        assert_eq!((limit.until, limit.answers), (begun + timeouts.first_byte, true));
    }
}
