//! What a load has to tell the daemon: its request stream.
//!
//! A lease may be dropped on any thread, in any context; dropping only notes its id here. The
//! request stream takes whatever has been noted when the connection is ready to send, so releases
//! that come together travel together, and no task is needed. The number of ids noted is bounded
//! by the load's window: the daemon lends no more until it has read them.
//!
//! ```text
//!   Streaming ── close ──► Closing (half-closes once everything noted is sent)
//!       │                     │
//!       └──────── end ────────┴──► Ended: releases go over the handoff socket
//! ```
//!
//! Ids stay known after they are sent. When the stream ends early nobody can tell which messages
//! the daemon still read, so [`Outbox::end`] gives all of them back to be released once more,
//! which does nothing to a lease that is gone.

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use forebay_device::CopySpan;
use forebay_proto::model::LeaseId;
use forebay_proto::pb;
use futures::Stream;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::session::Session;

/// Ids or spans in one message.
const BATCH_MAX: usize = 4096;

#[derive(Debug)]
enum Phase {
    Streaming,
    Closing,
    Ended(Arc<Session>),
}

#[derive(Debug)]
struct State {
    phase: Phase,
    open: Option<pb::LoadOpen>,
    held: usize,
    released: Vec<u64>,
    sent: Vec<u64>,
    copies: Vec<pb::CopySpan>,
    /// What their times count from.
    opened_at: Option<Instant>,
    waker: Option<Waker>,
}

/// The request side of one load.
#[derive(Debug)]
pub(crate) struct Outbox {
    state: Mutex<State>,
    /// Someone waits for the last lease.
    settled: Notify,
}

impl Outbox {
    /// A stream that begins with `open`.
    pub(crate) fn new(open: pb::LoadOpen) -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::new(State {
                phase: Phase::Streaming,
                open: Some(open),
                held: 0,
                released: Vec::new(),
                sent: Vec::new(),
                copies: Vec::new(),
                opened_at: None,
                waker: None,
            }),
            settled: Notify::new(),
        })
    }

    /// The messages, for tonic.
    pub(crate) fn requests(self: &Arc<Self>) -> Requests {
        Requests(Arc::clone(self))
    }

    /// Takes charge of a granted lease.
    pub(crate) fn lease(self: &Arc<Self>, id: LeaseId) -> Lease {
        self.state().held += 1;
        Lease { id, outbox: Arc::clone(self) }
    }

    /// Notes when a copy ran. It travels ahead of the next release.
    pub(crate) fn copied(&self, span: &CopySpan, opened_at: Instant) {
        let mut state = self.state();
        state.opened_at = Some(opened_at);
        state.copies.push(pb::CopySpan {
            start_nanos: nanos(opened_at, span.started),
            end_nanos: nanos(opened_at, span.finished),
            bytes: span.bytes,
        });
    }

    /// Waits until no lease is held.
    pub(crate) async fn settled(&self) {
        while self.state().held > 0 {
            self.settled.notified().await;
        }
    }

    /// Half-closes the stream after what is noted.
    pub(crate) fn close(&self) {
        let mut state = self.state();
        if matches!(state.phase, Phase::Streaming) {
            state.phase = Phase::Closing;
        }
        wake(state);
    }

    /// The stream is over: what is still held will be released through `session`. Gives the
    /// leases that were released before, for the same purpose.
    pub(crate) fn end(&self, session: Arc<Session>) -> Vec<LeaseId> {
        let mut state = self.state();
        state.phase = Phase::Ended(session);
        let mut released = std::mem::take(&mut state.sent);
        released.append(&mut state.released);
        wake(state);
        released.into_iter().map(LeaseId).collect()
    }

    fn release(&self, id: LeaseId) {
        let mut state = self.state();
        state.held = state.held.saturating_sub(1);
        if state.held == 0 {
            self.settled.notify_one();
        }
        if let Phase::Ended(session) = &state.phase {
            let session = Arc::clone(session);
            drop(state);
            session.release(&[id]);
            return;
        }
        state.released.push(id.0);
        wake(state);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Wakes the request stream, outside of the lock.
fn wake(mut state: MutexGuard<'_, State>) {
    let waker = state.waker.take();
    drop(state);
    if let Some(waker) = waker {
        waker.wake();
    }
}

/// One granted lease. Dropping it releases it.
#[derive(Debug)]
pub(crate) struct Lease {
    id: LeaseId,
    outbox: Arc<Outbox>,
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.outbox.release(self.id);
    }
}

/// The request stream of one load.
#[derive(Debug)]
pub(crate) struct Requests(Arc<Outbox>);

/// From one moment to another.
fn nanos(from: Instant, to: std::time::Instant) -> u64 {
    let since = to.saturating_duration_since(from.into_std());
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

impl Stream for Requests {
    type Item = pb::LoadRequest;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<pb::LoadRequest>> {
        let mut state = self.0.state();
        let request = |event| Poll::Ready(Some(pb::LoadRequest { event: Some(event) }));
        if let Some(open) = state.open.take() {
            return request(pb::load_request::Event::Open(open));
        }
        if let Phase::Ended(_) = state.phase {
            return Poll::Ready(None);
        }
        if !state.released.is_empty() && !state.copies.is_empty() {
            let spans = first(&mut state.copies);
            let sent = state.opened_at.map(|at| nanos(at, Instant::now().into_std()));
            let sent_nanos = sent.unwrap_or_default();
            let copies = pb::CopyTimings { spans, sent_nanos };
            return request(pb::load_request::Event::Copies(copies));
        }
        if !state.released.is_empty() {
            let lease_ids = first(&mut state.released);
            state.sent.extend_from_slice(&lease_ids);
            return request(pb::load_request::Event::Release(pb::Release { lease_ids }));
        }
        if let Phase::Closing = state.phase {
            return Poll::Ready(None);
        }
        state.waker = Some(context.waker().clone());
        Poll::Pending
    }
}

/// Takes up to a message's worth off the front.
fn first<T>(items: &mut Vec<T>) -> Vec<T> {
    let rest = items.split_off(items.len().min(BATCH_MAX));
    std::mem::replace(items, rest)
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;
    use futures::StreamExt;
    use pb::load_request::Event;

    use super::*;

    fn opened() -> (Arc<Outbox>, Requests) {
        let outbox = Outbox::new(pb::LoadOpen::default());
        let mut requests = outbox.requests();
        assert!(matches!(next(&mut requests), Some(Some(Event::Open(_)))));
        (outbox, requests)
    }

    /// None: nothing to send yet. Some(None): half-closed.
    fn next(requests: &mut Requests) -> Option<Option<Event>> {
        requests.next().now_or_never().map(|item| item.and_then(|request| request.event))
    }

    #[test]
    fn releases_that_come_together_travel_together_and_after_their_copies() {
        let (outbox, mut requests) = opened();
        let leases: Vec<Lease> = (0..3).map(|id| outbox.lease(LeaseId(id))).collect();
        assert!(next(&mut requests).is_none());
        let at = Instant::now();
        let copy = CopySpan { started: at.into_std(), finished: at.into_std(), bytes: 9 };
        outbox.copied(&copy, at);
        assert!(next(&mut requests).is_none(), "a copy alone can wait");
        drop(leases);
        let Some(Some(Event::Copies(copies))) = next(&mut requests) else { panic!() };
        assert_eq!(copies.spans[0], pb::CopySpan { start_nanos: 0, end_nanos: 0, bytes: 9 });
        let Some(Some(Event::Release(release))) = next(&mut requests) else { panic!() };
        assert_eq!(release.lease_ids, [0, 1, 2]);
        assert!(next(&mut requests).is_none());
    }

    #[test]
    fn a_message_is_bounded() {
        let (outbox, mut requests) = opened();
        drop((0..5000).map(|id| outbox.lease(LeaseId(id))).collect::<Vec<_>>());
        let Some(Some(Event::Release(release))) = next(&mut requests) else { panic!() };
        assert_eq!(release.lease_ids.len(), BATCH_MAX);
        let Some(Some(Event::Release(release))) = next(&mut requests) else { panic!() };
        assert_eq!(release.lease_ids.last(), Some(&4999));
    }

    #[test]
    fn closing_sends_what_is_noted_first() {
        let (outbox, mut requests) = opened();
        let lease = outbox.lease(LeaseId(7));
        assert!(outbox.settled().now_or_never().is_none());
        drop(lease);
        assert!(outbox.settled().now_or_never().is_some());
        outbox.close();
        assert!(matches!(next(&mut requests), Some(Some(Event::Release(_)))));
        assert_eq!(next(&mut requests), Some(None));
    }
}
