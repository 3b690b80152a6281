//! The response body with an idle limit and a size limit, counting what comes.
//!
//! Bodies of errors end after a few KiB, whatever the origin sends: object_store reads them whole.

//! The clock runs only while a byte is waited for: time the reader takes to use what it got is not
//! the origin's.

use std::error::Error;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::StatusCode;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use object_store::client::{HttpError, HttpErrorKind};
use tokio::time::{Instant, Sleep, sleep};

use super::probe::{BODY_START_MAX, Break, Probe};
use crate::stats::Counters;

/// A body that fails when it stalls.
#[derive(Debug)]
pub(crate) struct TimedBody {
    inner: Incoming,
    error: bool,
    received: u64,
    idle: Duration,
    alarm: Pin<Box<Sleep>>,
    waiting: bool,
    probe: Probe,
    counters: Arc<Counters>,
}

#[derive(Debug, thiserror::Error)]
enum Stopped {
    #[error("no byte of body within {} ms", .0.as_millis())]
    Stalled(Duration),
    #[error("a body of more than {0} bytes")]
    TooLong(u64),
}

impl TimedBody {
    pub(crate) fn new(
        inner: Incoming,
        status: StatusCode,
        idle: Duration,
        probe: Probe,
        counters: Arc<Counters>,
    ) -> Self {
        let error = status.is_client_error() || status.is_server_error();
        let alarm = Box::pin(sleep(idle));
        Self { inner, error, received: 0, idle, alarm, waiting: false, probe, counters }
    }

    fn take(&mut self, data: &Bytes) -> Result<(), HttpError> {
        self.counters.received(data.len());
        self.received = self.received.saturating_add(u64::try_from(data.len()).unwrap_or(u64::MAX));
        if self.error || self.probe.keeps_start() {
            self.probe.note(|seen| {
                let room = BODY_START_MAX.saturating_sub(seen.body_start.len()).min(data.len());
                seen.body_start.extend_from_slice(&data[..room]);
            });
        }
        if self.error {
            return Ok(());
        }
        let max = self.probe.body_max();
        if self.received > max {
            return Err(self.stop(Break::TooLong, HttpErrorKind::Decode, Stopped::TooLong(max)));
        }
        Ok(())
    }

    fn stop(&self, broke: Break, kind: HttpErrorKind, stopped: Stopped) -> HttpError {
        self.probe.note(|seen| seen.broke = Some((broke, stopped.to_string())));
        HttpError::new(kind, stopped)
    }

    fn is_enough(&self) -> bool {
        self.error && self.received >= u64::try_from(BODY_START_MAX).unwrap_or(u64::MAX)
    }

    fn stalled(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if !self.waiting {
            self.waiting = true;
            self.alarm.as_mut().reset(Instant::now() + self.idle);
        }
        self.alarm.as_mut().poll(cx)
    }

    fn broke(&self, error: hyper::Error) -> HttpError {
        let (broke, kind) = if error.is_incomplete_message() || is_eof(&error) {
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

/// Whether the connection was closed in order, but before the body's declared end.
fn is_eof(error: &hyper::Error) -> bool {
    let mut cause = error.source();
    while let Some(layer) = cause {
        if let Some(io) = layer.downcast_ref::<io::Error>() {
            return io.kind() == io::ErrorKind::UnexpectedEof;
        }
        cause = layer.source();
    }
    false
}

impl Body for TimedBody {
    type Data = Bytes;
    type Error = HttpError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, HttpError>>> {
        if self.is_enough() {
            return Poll::Ready(None);
        }
        match Pin::new(&mut self.inner).poll_frame(cx) {
            Poll::Ready(None) => Poll::Ready(None),
            Poll::Ready(Some(Err(error))) => Poll::Ready(Some(Err(self.broke(error)))),
            Poll::Ready(Some(Ok(frame))) => {
                self.waiting = false;
                let taken = frame.data_ref().map_or(Ok(()), |data| self.take(data));
                Poll::Ready(Some(taken.map(|()| frame)))
            }
            Poll::Pending => self.stalled(cx).map(|()| {
                let stalled = Stopped::Stalled(self.idle);
                Some(Err(self.stop(Break::TimedOut, HttpErrorKind::Timeout, stalled)))
            }),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.is_enough() || self.inner.is_end_stream()
    }

    /// Nothing: object_store would allocate whatever the origin announces.
    fn size_hint(&self) -> SizeHint {
        SizeHint::default()
    }
}
