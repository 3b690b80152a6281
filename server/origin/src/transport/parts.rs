//! Requests for parts: over connections of our own, so that their bodies can be received directly.

use std::sync::Arc;

use http::Uri;
use object_store::client::{HttpError, HttpErrorKind, HttpRequest};
use tokio::time::{Instant, timeout};

use super::answer::{added, note_times, note_unconnected};
use super::direct::{BodyTerms, DirectBody, TcpWatch, Waits};
use super::probe::{Break, Probe, Route};
use super::service::{Transport, is_to_be_left, silent};
use super::stream::Stream;
use super::wire::{Head, Wire, WireError};

impl Transport {
    /// The head of an answer whose body is received directly.
    pub(super) async fn wire_head(
        &self,
        request: &HttpRequest,
        probe: &Probe,
    ) -> Result<http::Response<DirectBody>, HttpError> {
        let route = Route::current();
        let mut fresh = route.fresh;
        loop {
            let kept = if fresh { None } else { self.idle.take(request.uri(), Instant::now()) };
            let reused = kept.is_some();
            let mut wire = match kept {
                Some(wire) => wire,
                None => Wire::new(self.connect(request.uri(), &route, probe).await?),
            };
            let mark = wire.stream.mark();
            let times = wire.stream.times().take();
            probe.note(|seen| {
                seen.mark = Some(mark);
                note_times(seen, times);
            });
            let watch = TcpWatch::begin(&self.evidence, &wire.stream, probe);
            let begun = Instant::now();
            let limit = self.timeouts.first_byte;
            let answered = timeout(limit, wire.exchange(request)).await;
            if !matches!(answered, Ok(Ok(_))) {
                watch.end(&wire.stream, &mut Waits::default());
            }
            let head = match answered {
                Ok(Ok(head)) => head,
                // Closed by its server while it was idle, most likely: the request was not seen.
                // Once, for it may have been, and then repeating it is for the schedule to decide.
                Ok(Err(WireError::Unanswered(_))) if reused => {
                    fresh = true;
                    continue;
                }
                Ok(Err(error)) => return Err(unanswered(error, probe)),
                Err(_elapsed) => return Err(silent(limit, probe)),
            };
            probe.note(|seen| {
                seen.first_byte = added(seen.first_byte, Some(begun.elapsed()));
            });
            watch.head(&wire.stream);
            return Ok(self.with_body(request.uri(), wire, head, watch));
        }
    }

    async fn connect(&self, uri: &Uri, route: &Route, probe: &Probe) -> Result<Stream, HttpError> {
        // What a connection before this one led to says nothing about it.
        probe.note(|seen| (seen.mark, seen.tcp, seen.head_tcp) = (None, None, None));
        self.connector.open(uri, route).await.map_err(|error| {
            probe.note(|seen| note_unconnected(seen, &error));
            HttpError::new(HttpErrorKind::Connect, error)
        })
    }

    fn with_body(
        &self,
        uri: &Uri,
        wire: Wire,
        mut head: Head,
        watch: TcpWatch,
    ) -> http::Response<DirectBody> {
        let status = head.response.status();
        // The next request shall meet another machine of the origin.
        head.keeps &= !is_to_be_left(status);
        let terms = BodyTerms {
            idle: self.timeouts.body_idle,
            counters: Arc::clone(&self.counters),
            pool: self.idle.clone(),
            uri: uri.clone(),
            watch,
        };
        let body = DirectBody::new(wire, &head, terms);
        head.response.map(|()| body)
    }
}

fn unanswered(error: WireError, probe: &Probe) -> HttpError {
    let (broke, kind) = match &error {
        WireError::Unanswered(_) | WireError::Broken(_) => (Break::Cut, HttpErrorKind::Interrupted),
        WireError::NoHttp(_) => (Break::Protocol, HttpErrorKind::Decode),
    };
    probe.note(|seen| seen.broke = Some((broke, error.to_string())));
    HttpError::new(kind, error)
}
