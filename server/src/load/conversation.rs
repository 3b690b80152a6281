//! The part of a load in which daemon and client take turns.
//!
//! The daemon grants chunks as they become ready and listens for releases in between; when every
//! chunk is granted it only listens, until the client is done. Events that the client has not taken
//! wait in a queue that the window bounds: each grant in it holds a token. So neither side can
//! block the other for good.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use forebay_proto::{Failure, Reason};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::filler::{Filler, Ready};
use super::{Head, LoadRequest, lost};
use crate::admission::AdmissionPermit;
use crate::capacity::Union;
use crate::capacity::meter::Meter;
use crate::handoff::{GrantedSlot, Released, SessionStay};
use crate::plan::{ChunkSpec, FetchPlan};
use crate::report::{DeviceUse, Report, Tier};
use crate::timeline::{Kind, Span, Stage, Timeline};

/// Copy spans that are kept per chunk, so that a client cannot grow the daemon.
const COPIES_PER_CHUNK_MAX: usize = 16;

/// What a client hears, in this order.
#[derive(Debug)]
pub(crate) enum LoadEvent {
    /// The load is planned.
    Opened(Opened),
    /// A chunk is readable.
    Granted(Granted),
    /// Every chunk was granted.
    Complete,
    /// The client is done; the last event.
    Report(Box<Report>),
}

/// A planned load.
#[derive(Debug)]
pub(crate) struct Opened {
    /// The load's id.
    pub(crate) load_id: String,
    /// What will be granted.
    pub(crate) plan: Arc<FetchPlan>,
    /// The most bytes that can be leased to it at one time.
    pub(crate) window_bytes: u64,
    /// One slot.
    pub(crate) chunk_bytes: u64,
}

/// One readable chunk.
#[derive(Debug)]
pub(crate) struct Granted {
    /// What it holds.
    pub(crate) spec: Arc<ChunkSpec>,
    /// Where it is.
    pub(crate) slot: GrantedSlot,
    /// Where it came from.
    pub(crate) tier: Tier,
}

/// What a client says while it reads. The end of its channel means that it is done.
#[derive(Debug)]
pub(crate) enum ClientEvent {
    /// It has used these leases.
    Release(Vec<u64>),
    /// Its copy engine was busy: start and end since it saw `Opened`; and no later than when that
    /// was, if it says so.
    Copies(Vec<CopyRan>, Option<Instant>),
    /// It is gone.
    Lost,
}

/// A copy that a client made, since it saw `Opened`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct CopyRan {
    /// Its begin.
    pub(crate) start: Duration,
    /// Its end.
    pub(crate) end: Duration,
    /// What it brought.
    pub(crate) bytes: u64,
}

/// An event that the client has not taken yet.
struct Unsent {
    event: LoadEvent,
    /// Of a chunk that was in RAM: when it was found, and its bytes.
    found: Option<(Instant, u64)>,
}

impl From<LoadEvent> for Unsent {
    fn from(event: LoadEvent) -> Self {
        Self { event, found: None }
    }
}

/// See the module's head.
pub(super) struct Conversation<'a> {
    head: &'a Head<'a>,
    stay: &'a SessionStay,
    timeline: &'a Timeline,
    outbox: mpsc::Sender<LoadEvent>,
    inbox: mpsc::Receiver<ClientEvent>,
    /// Events the client has not taken yet. Each grant among them holds a token of the window, so
    /// the pool bounds them.
    unsent: VecDeque<Unsent>,
    /// When the last event was taken.
    taken: Instant,
    opened_sent: Instant,
    granted_at: Vec<Option<Instant>>,
    client_done: bool,
    /// Of the device that the client named.
    copies: Option<Arc<Meter>>,
    /// When copies ran, by the client's clock.
    copied: Union,
}

impl<'a> Conversation<'a> {
    pub(super) fn new(
        head: &'a Head<'_>,
        stay: &'a SessionStay,
        timeline: &'a Timeline,
        (outbox, inbox): (mpsc::Sender<LoadEvent>, mpsc::Receiver<ClientEvent>),
    ) -> Self {
        Self {
            head,
            stay,
            timeline,
            outbox,
            inbox,
            unsent: VecDeque::new(),
            taken: Instant::now(),
            opened_sent: Instant::now(),
            granted_at: vec![None; head.plan.chunks().len()],
            client_done: false,
            copies: None,
            copied: Union::default(),
        }
    }

    /// Grants every chunk while listening to the client.
    pub(super) async fn stream(
        &mut self,
        filler: &mut Filler<'_>,
        permit: &AdmissionPermit,
        request: &LoadRequest,
    ) -> Result<(), Failure> {
        let stages = filler.stages();
        self.copies = request.device.as_ref().map(|device| stages.rates.copies.of(&named(device)));
        self.unsent.push_back(Unsent::from(LoadEvent::Opened(Opened {
            load_id: request.load_id.clone(),
            plan: Arc::clone(&self.head.plan),
            window_bytes: permit.window_slots() as u64 * stages.chunk_bytes,
            chunk_bytes: stages.chunk_bytes,
        })));
        let outbox = self.outbox.clone();
        let mut complete = false;
        // A client that is done before the last grant wants no more.
        while !(self.client_done || complete && self.unsent.is_empty()) {
            let look_again = filler.quiet(stages.no_progress)?;
            tokio::select! {
                biased;
                event = self.inbox.recv() => self.hear(event)?,
                place = outbox.reserve(), if !self.unsent.is_empty() => {
                    let place = place.map_err(|_closed| lost())?;
                    if let Some(Unsent { event, found }) = self.unsent.pop_front() {
                        place.send(event);
                        self.took(found, &stages.rates.handoff);
                    }
                }
                ready = filler.next(), if !complete => {
                    complete = self.grant(filler, ready?);
                }
                () = tokio::time::sleep_until(look_again) => {
                    if !filler.is_filling() {
                        return Err(self.stands_still(stages.no_progress));
                    }
                }
            }
        }
        Ok(())
    }

    /// An event was taken; of a chunk that was found in RAM the hand-over is over.
    fn took(&mut self, found: Option<(Instant, u64)>, meter: &Meter) {
        let now = Instant::now();
        if let Some((found, bytes)) = found {
            meter.ran((found, found.max(self.taken).min(now)), now, bytes);
        }
        self.taken = now;
    }

    /// Listens until the client is done. What it still holds is its session's: it may be reading.
    pub(super) async fn linger(&mut self) -> Result<(), Failure> {
        while !self.client_done {
            let event = self.inbox.recv().await;
            self.hear(event)?;
        }
        Ok(())
    }

    pub(super) async fn say(&self, event: LoadEvent) -> Result<(), Failure> {
        self.outbox.send(event).await.map_err(|_closed| lost())
    }

    /// Grants a chunk, or says that there are no more; true then.
    fn grant(&mut self, filler: &Filler<'_>, ready: Option<Ready>) -> bool {
        let Some(ready) = ready else {
            self.unsent.push_back(LoadEvent::Complete.into());
            return true;
        };
        let at = filler.granted(&ready);
        let found = ready.found().map(|at| (at, ready.spec.bytes));
        let Ready { spec, pinned, window, tier, .. } = ready;
        if let Some(granted_at) = self.granted_at.get_mut(spec.index) {
            *granted_at = Some(at);
        }
        let state = self.head.entry.state();
        state.granted_bytes.fetch_add(spec.bytes, Ordering::Relaxed);
        let slot = self.stay.session().grant(self.stay.load(), spec.index, pinned, window);
        let event = LoadEvent::Granted(Granted { spec, slot, tier });
        self.unsent.push_back(Unsent { event, found });
        false
    }

    fn hear(&mut self, event: Option<ClientEvent>) -> Result<(), Failure> {
        match event {
            Some(ClientEvent::Release(leases)) => {
                let ended = self.stay.session().release(&leases);
                self.released(&ended);
            }
            Some(ClientEvent::Copies(spans, opened)) => {
                let most = (self.granted_at.len() + 1) * COPIES_PER_CHUNK_MAX;
                let opened = opened.unwrap_or(self.opened_sent);
                let times = spans.iter().map(|copy| (copy.start, copy.end));
                self.timeline.copies_ran(times, opened, most);
                self.measure(&spans, opened);
            }
            Some(ClientEvent::Lost) => return Err(lost()),
            None => self.client_done = true,
        }
        Ok(())
    }

    /// Counts copies that are over by now; what a client says of later ones cannot be. Those that
    /// overlap are told apart by the client's clock: when that began is guessed anew each time.
    fn measure(&mut self, copies: &[CopyRan], opened: Instant) {
        let Some(meter) = &self.copies else { return };
        let now = Instant::now();
        for CopyRan { start, end, bytes } in copies {
            let at = |time: Duration| opened.checked_add(time).filter(|at| *at <= now);
            let Some((began, ended)) = at(*start).zip(at(*end)) else { continue };
            let alone = ended.checked_sub(self.copied.add(*start, *end)).unwrap_or(began);
            meter.ran((began, alone), ended, *bytes);
        }
    }

    fn released(&self, ended: &[Released]) {
        let now = Instant::now();
        let own = ended.iter().filter(|lease| lease.load == self.stay.load());
        for lease in own {
            let state = self.head.entry.state();
            state.released_bytes.fetch_add(lease.bytes, Ordering::Relaxed);
            if let Some(Some(granted)) = self.granted_at.get(lease.chunk) {
                let span = Span::new(Stage::ClientAck, Kind::Service, *granted, now);
                self.timeline.chunk_spans(lease.chunk, [span]);
            }
        }
    }

    fn stands_still(&self, limit: Duration) -> Failure {
        let held = self.head.entry.state().leased_bytes();
        Failure::new(
            Reason::NoProgress,
            format!("nothing moved for {limit:?} while the client held {held} bytes of leases"),
        )
    }
}

/// Kind and name of a device, as far as it has one.
fn named(device: &DeviceUse) -> String {
    format!("{} {}", device.kind.as_str(), device.name).trim_end().to_owned()
}
