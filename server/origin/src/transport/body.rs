//! The response body with an idle limit, counting what comes.
//!
//! The clock runs only while a byte is waited for: time the reader takes to use what it got is not
//! the origin's.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use object_store::client::{HttpError, HttpErrorKind};
use tokio::time::{Instant, Sleep, sleep};

use super::probe::{Break, Probe};
use crate::stats::Counters;

/// A body that fails when it stalls.
#[derive(Debug)]
pub(crate) struct TimedBody {
    inner: Incoming,
    idle: Duration,
    alarm: Pin<Box<Sleep>>,
    waiting: bool,
    probe: Probe,
    counters: Arc<Counters>,
}

/// No byte came within the limit.
#[derive(Debug, thiserror::Error)]
#[error("no byte of body within {} ms", .0.as_millis())]
struct Stalled(Duration);

impl TimedBody {
    pub(crate) fn new(
        inner: Incoming,
        idle: Duration,
        probe: Probe,
        counters: Arc<Counters>,
    ) -> Self {
        Self { inner, idle, alarm: Box::pin(sleep(idle)), waiting: false, probe, counters }
    }

    fn stalled(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if !self.waiting {
            self.waiting = true;
            self.alarm.as_mut().reset(Instant::now() + self.idle);
        }
        self.alarm.as_mut().poll(cx)
    }

    fn broke(&self, error: hyper::Error) -> HttpError {
        let (broke, kind) = if error.is_incomplete_message() {
            (Break::Short, HttpErrorKind::Interrupted)
        } else if error.is_parse() {
            (Break::Protocol, HttpErrorKind::Decode)
        } else {
            (Break::Cut, HttpErrorKind::Interrupted)
        };
        self.probe.note(|seen| seen.broke = Some((broke, error.to_string())));
        HttpError::new(kind, error)
    }
}

impl Body for TimedBody {
    type Data = Bytes;
    type Error = HttpError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, HttpError>>> {
        match Pin::new(&mut self.inner).poll_frame(cx) {
            Poll::Ready(frame) => {
                self.waiting = false;
                if let Some(data) = frame.as_ref().and_then(|f| f.as_ref().ok()?.data_ref()) {
                    self.counters.received(data.len());
                }
                Poll::Ready(frame.map(|frame| frame.map_err(|error| self.broke(error))))
            }
            Poll::Pending => match self.stalled(cx) {
                Poll::Pending => Poll::Pending,
                Poll::Ready(()) => {
                    let stalled = Stalled(self.idle);
                    let text = stalled.to_string();
                    self.probe.note(|seen| seen.broke = Some((Break::TimedOut, text)));
                    Poll::Ready(Some(Err(HttpError::new(HttpErrorKind::Timeout, stalled))))
                }
            },
        }
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
