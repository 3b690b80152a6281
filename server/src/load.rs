//! A load, read aloud: admission, resolve, plan; then for every chunk a slot, its bytes, their
//! digest, the cache and a lease; at the end the report.
//!
//! This is the only module that calls stages. [`lend`] serves a client that reads the bytes,
//! [`keep`] fetches without lending. Both take the chunks in plan order: a window token first (see
//! `admission`), then the RAM tier, then another load's flight, then a flight of its own. Chunks
//! become readable in any order; at most [`FILLS_AHEAD`] per load are on their way.
//!
//! Everything a load owns lives in these functions' frames: dropping the future, as a deadline or a
//! vanished client does, gives back tokens, leases, flights and connections.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use forebay_proto::{Failure, Reason};
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use futures::{FutureExt, StreamExt};
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::admission::{Admission, AdmissionError, AdmissionPermit, Holder, Lane, WindowSlot};
use crate::deadline::{Deadline, Expired};
use crate::fetch::Fetcher;
use crate::flight::{Boarded, Filled, Flight, Flights};
use crate::handoff::{GrantedSlot, Peer, Released, SessionStay};
use crate::loads::{Entry, LoadState, Loads};
use crate::plan::{ChunkSpec, FetchPlan, PlanError, Selection, plan};
use crate::ram::{PinnedChunk, RamTier, RevisionUse};
use crate::report::{Report, Subject, Tally, close};
use crate::resolve::{Manifest, Resolver};
use crate::timeline::{Kind, Span, Stage, Timeline};
use crate::verify::Verifier;

/// Chunks of one load that wait for bytes. Twice the connections keeps each of them busy while the
/// next part's slot is found; more would hold slots that nobody fills.
const FILLS_AHEAD: usize = 32;

/// The stages of one daemon.
#[derive(Debug)]
pub(crate) struct Stages {
    /// Who may start.
    pub(crate) admission: Admission,
    /// URI to manifest.
    pub(crate) resolver: Resolver,
    /// Bytes into slots.
    pub(crate) fetcher: Fetcher,
    /// Digests.
    pub(crate) verifier: Verifier,
    /// Slots and what is in them.
    pub(crate) ram: Arc<RamTier>,
    /// One fetch per chunk.
    pub(crate) flights: Flights,
    /// Loads that run.
    pub(crate) loads: Loads,
    /// One slot.
    pub(crate) chunk_bytes: u64,
    /// How long a load may stand still.
    pub(crate) no_progress: Duration,
}

/// What a client asks for.
#[derive(Debug)]
pub(crate) struct LoadRequest {
    /// As given.
    pub(crate) uri: String,
    /// Valid and never empty.
    pub(crate) load_id: String,
    /// Which lane.
    pub(crate) lane: Lane,
    /// Which part of the checkpoint.
    pub(crate) selection: Selection,
    /// Who asks.
    pub(crate) peer: Peer,
    /// When everything has to be handed over.
    pub(crate) deadline: Deadline,
}

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
    /// Whether it was in RAM already.
    pub(crate) was_cached: bool,
}

/// What a client says while it reads. The end of its channel means that it is done.
#[derive(Debug)]
pub(crate) enum ClientEvent {
    /// It has used these leases.
    Release(Vec<u64>),
    /// Its copy engine was busy: start and end since it saw `Opened`.
    Copies(Vec<(Duration, Duration)>),
    /// It is gone.
    Lost,
}

/// How far a [`keep`] is.
#[derive(Debug, Clone)]
pub(crate) struct Progress {
    /// What is fetched.
    pub(crate) manifest: Arc<Manifest>,
    /// Bytes that are cached now.
    pub(crate) done_bytes: u64,
    /// So far.
    pub(crate) tally: Tally,
}

/// Lends the checkpoint to a client, chunk by chunk, until the client is done.
///
/// The deadline covers everything up to the last grant. After that a client may keep its leases as
/// long as it lives: no timer takes memory away that a GPU may be reading.
pub(crate) async fn lend(
    stages: &Arc<Stages>,
    request: &LoadRequest,
    timeline: &Timeline,
    stay: SessionStay,
    talk: (mpsc::Sender<LoadEvent>, mpsc::Receiver<ClientEvent>),
) -> Result<(), Failure> {
    let deadline = request.deadline;
    let head = deadline.cut(open(stages, request, timeline, &stay)).await.map_err(expired)??;
    let superseded = head.entry.state().superseded.clone();
    let mut filler = Filler::new(stages, &head, timeline);
    let mut conversation = Conversation::new(&head, &stay, timeline, talk);
    let talking = async {
        let streaming = conversation.stream(&mut filler, request);
        deadline.cut(streaming).await.map_err(expired)??;
        conversation.linger().await
    };
    tokio::select! {
        ended = talking => ended?,
        () = superseded.cancelled() => return Err(Failure::new(
            Reason::Superseded,
            format!("another stream opened load id {}", request.load_id),
        )),
        () = stay.session().closed().cancelled() => return Err(lost()),
    }
    let report = report(request, &head, timeline, filler.tally(), &conversation.copies);
    conversation.say(LoadEvent::Report(Box::new(report))).await?;
    drop(conversation);
    stay.finish();
    Ok(())
}

/// Fetches the checkpoint into the RAM tier and keeps it there.
pub(crate) async fn keep(
    stages: &Arc<Stages>,
    request: &LoadRequest,
    timeline: &Timeline,
    stay: SessionStay,
    progress: mpsc::Sender<Progress>,
) -> Result<Report, Failure> {
    let deadline = request.deadline;
    let keeping = keep_all(stages, request, timeline, &stay, &progress);
    let report = deadline.cut(keeping).await.map_err(expired)??;
    stay.finish();
    Ok(report)
}

async fn keep_all(
    stages: &Arc<Stages>,
    request: &LoadRequest,
    timeline: &Timeline,
    stay: &SessionStay,
    progress: &mpsc::Sender<Progress>,
) -> Result<Report, Failure> {
    let head = open(stages, request, timeline, stay).await?;
    let budget = stages.ram.pool().spec().budget_bytes;
    let needed = head.plan.chunks().len() as u64 * stages.chunk_bytes;
    if needed > budget {
        let checkpoint = head.plan.bytes();
        return Err(Failure::new(
            Reason::RamExhausted,
            format!("the checkpoint takes {needed} bytes of slots and the RAM tier has {budget}"),
        )
        .with_quota(format!("ram: {budget} bytes for a checkpoint of {checkpoint}"))
        .at_stage("plan"));
    }
    let mut filler = Filler::new(stages, &head, timeline);
    let mut done_bytes = 0;
    while let Some(ready) = filler.next().await? {
        done_bytes += ready.spec.bytes;
        filler.granted(&ready);
        // Progress is a courtesy: a reader that is behind misses steps, not the report.
        let manifest = Arc::clone(head.plan.manifest());
        drop(progress.try_send(Progress { manifest, done_bytes, tally: filler.tally() }));
    }
    Ok(report(request, &head, timeline, filler.tally(), &[]))
}

/// What lies before the first chunk.
struct Head<'a> {
    // Dropped last to first: the permit outlives what was planned under it.
    plan: Arc<FetchPlan>,
    entry: Entry<'a>,
    _in_use: RevisionUse,
    permit: AdmissionPermit,
}

async fn open<'a>(
    stages: &'a Arc<Stages>,
    request: &LoadRequest,
    timeline: &Timeline,
    stay: &SessionStay,
) -> Result<Head<'a>, Failure> {
    let entry = stages.loads.enter(stay.load(), state_of(request, timeline));
    let holder =
        Holder { load_id: request.load_id.clone(), uid: request.peer.uid, pid: request.peer.pid };
    let permit = stages.admission.admit(request.lane, holder).await?;
    let admitted = Instant::now();
    timeline.load_span(Span::new(Stage::Admission, Kind::Queue, timeline.opened(), admitted));

    let attached = stages.loads.attach(request.peer.uid, &request.load_id, &request.uri)?;
    let manifest = match attached {
        Some(manifest) => manifest,
        None => Arc::new(stages.resolver.resolve(&permit, &request.uri).await?),
    };
    stages.loads.remember(request.peer.uid, &request.load_id, &request.uri, &manifest);
    let resolved = Instant::now();
    timeline.load_span(Span::new(Stage::Resolve, Kind::Service, admitted, resolved));

    let plan = plan(&manifest, &request.selection, stages.chunk_bytes)?;
    timeline.load_span(Span::new(Stage::Plan, Kind::Service, resolved, Instant::now()));
    entry.state().total_bytes.store(plan.bytes(), Ordering::Relaxed);
    let in_use = stages.ram.use_revision(&manifest);
    Ok(Head { plan: Arc::new(plan), entry, _in_use: in_use, permit })
}

fn state_of(request: &LoadRequest, timeline: &Timeline) -> LoadState {
    let uri = request.uri.split('?').next().unwrap_or_default().to_owned();
    LoadState {
        load_id: request.load_id.clone(),
        uri,
        lane: request.lane,
        peer: request.peer,
        opened: timeline.opened(),
        total_bytes: Default::default(),
        granted_bytes: Default::default(),
        released_bytes: Default::default(),
        superseded: Default::default(),
    }
}

impl From<PlanError> for Failure {
    fn from(error: PlanError) -> Self {
        Self::new(Reason::UnknownTensor, error.to_string()).at_stage("plan")
    }
}

fn expired(_: Expired) -> Failure {
    Failure::new(Reason::Deadline, "the deadline passed before everything was handed over")
}

fn lost() -> Failure {
    Failure::new(Reason::DaemonUnreachable, "the client is gone")
}

fn report(
    request: &LoadRequest,
    head: &Head<'_>,
    timeline: &Timeline,
    mut tally: Tally,
    copies: &[(Instant, Instant)],
) -> Report {
    let manifest = head.plan.manifest();
    let revision = manifest.revision().to_string();
    let subject = Subject {
        load_id: &request.load_id,
        uri: manifest.uri(),
        revision: &revision,
        lane: head.permit.lane().as_str(),
    };
    let slots = head.permit.peak_slots() as u64;
    tally.peak_window_bytes = slots * tally.slot_bytes;
    close(subject, timeline, tally, copies, Instant::now())
}

/// A chunk that is in RAM and pinned.
struct Ready {
    spec: Arc<ChunkSpec>,
    pinned: PinnedChunk,
    window: WindowSlot,
    was_cached: bool,
    offered: Instant,
}

type Filling<'a> = BoxFuture<'a, Result<(Ready, Filled, bool), Failure>>;
type Wanting<'a> = Pin<Box<dyn Future<Output = Result<WindowSlot, AdmissionError>> + Send + 'a>>;

/// Brings the chunks of one plan into RAM, in plan order, within the load's window.
struct Filler<'a> {
    stages: &'a Arc<Stages>,
    plan: &'a Arc<FetchPlan>,
    permit: &'a AdmissionPermit,
    timeline: &'a Timeline,
    planned: Instant,
    next_chunk: usize,
    wanting: Option<Wanting<'a>>,
    filling: FuturesUnordered<Filling<'a>>,
    tally: Tally,
}

impl<'a> Filler<'a> {
    fn new(stages: &'a Arc<Stages>, head: &'a Head<'_>, timeline: &'a Timeline) -> Self {
        Self {
            stages,
            plan: &head.plan,
            permit: &head.permit,
            timeline,
            planned: Instant::now(),
            next_chunk: 0,
            wanting: None,
            filling: FuturesUnordered::new(),
            tally: Tally { slot_bytes: stages.chunk_bytes, ..Tally::default() },
        }
    }

    fn tally(&self) -> Tally {
        self.tally
    }

    /// The next chunk that is ready; `None` after the last one. Cancel-safe: what is on its way
    /// stays in `self`.
    async fn next(&mut self) -> Result<Option<Ready>, Failure> {
        loop {
            self.want();
            if self.wanting.is_none() && self.filling.is_empty() {
                return Ok(None);
            }
            tokio::select! {
                biased;
                Some(filled) = self.filling.next() => return self.landed(filled?).map(Some),
                window = wanted(&mut self.wanting) => {
                    self.wanting = None;
                    if let Some(ready) = self.start(window?) {
                        return Ok(Some(ready));
                    }
                }
            }
        }
    }

    /// Asks for a window token for the next chunk, unless enough chunks are on their way.
    fn want(&mut self) {
        let more = self.next_chunk < self.plan.chunks().len();
        if self.wanting.is_none() && more && self.filling.len() < FILLS_AHEAD {
            let permit = self.permit;
            self.wanting = Some(Box::pin(permit.slot()));
        }
    }

    /// The next chunk has its token: it is here, or its flight is boarded.
    fn start(&mut self, window: WindowSlot) -> Option<Ready> {
        let spec = Arc::clone(self.plan.chunks().get(self.next_chunk)?);
        self.next_chunk += 1;
        let offered = Instant::now();
        let waited = Span::new(Stage::LeaseAlloc, Kind::Queue, self.planned, offered);
        self.timeline.chunk_spans(spec.index, [waited]);

        let manifest = self.plan.manifest();
        let revision = manifest.revision();
        let lookup = || self.stages.ram.get(&spec.key, revision);
        if let Some(pinned) = lookup() {
            return Some(self.hit(Ready { spec, pinned, window, was_cached: true, offered }));
        }
        let fill = || fill(Arc::clone(self.stages), Arc::clone(manifest), Arc::clone(&spec));
        let (flight, leads) = match self.stages.flights.board(spec.key, lookup, fill) {
            Boarded::Hit(pinned) => {
                return Some(self.hit(Ready { spec, pinned, window, was_cached: true, offered }));
            }
            Boarded::Leads(flight) => (flight, true),
            Boarded::Joins(flight) => (flight, false),
        };
        self.filling.push(ride(flight, leads, spec, window, offered).boxed());
        None
    }

    fn hit(&mut self, ready: Ready) -> Ready {
        self.tally.tiers.ram += ready.spec.bytes;
        ready
    }

    fn landed(&mut self, landed: (Ready, Filled, bool)) -> Result<Ready, Failure> {
        let (ready, filled, leads) = landed;
        self.tally.tiers.origin += ready.spec.bytes;
        if leads {
            self.tally.cost = self.tally.cost.plus(filled.cost);
        }
        // A flight that was in the air already counts from when this load boarded it.
        let spans = filled.spans.iter().filter_map(|span| span.since(ready.offered));
        self.timeline.chunk_spans(ready.spec.index, spans);
        Ok(ready)
    }

    /// The chunk is handed over: its publish span ends.
    fn granted(&self, ready: &Ready) -> Instant {
        let now = Instant::now();
        let since = self.timeline.last_end(ready.spec.index).unwrap_or(ready.offered);
        let span = Span::new(Stage::Publish, Kind::Service, since, now);
        self.timeline.chunk_spans(ready.spec.index, [span]);
        now
    }
}

async fn wanted(wanting: &mut Option<Wanting<'_>>) -> Result<WindowSlot, AdmissionError> {
    match wanting {
        Some(wanting) => wanting.await,
        None => std::future::pending().await,
    }
}

async fn ride(
    flight: Arc<Flight>,
    leads: bool,
    spec: Arc<ChunkSpec>,
    window: WindowSlot,
    offered: Instant,
) -> Result<(Ready, Filled, bool), Failure> {
    let filled = flight.landed().await?;
    let pinned = filled.pinned.clone();
    Ok((Ready { spec, pinned, window, was_cached: false, offered }, filled, leads))
}

/// One chunk's way from the origin into the cache: slot, bytes, digest, tier.
async fn fill(
    stages: Arc<Stages>,
    manifest: Arc<Manifest>,
    spec: Arc<ChunkSpec>,
) -> Result<Filled, Failure> {
    let started = Instant::now();
    let slot = stages.ram.claim().await?;
    let claimed = Span::new(Stage::LeaseAlloc, Kind::Service, started, Instant::now());
    let (fetched, fetch_spans, cost) = stages.fetcher.fetch(&manifest, &spec, slot).await?;
    let (verified, verify_spans) = stages.verifier.verify(fetched).await?;
    let pinned = stages.ram.insert(verified, manifest.revision());
    let spans = std::iter::once(claimed).chain(fetch_spans).chain(verify_spans).collect();
    Ok(Filled { pinned, spans: Arc::new(spans), cost })
}

/// The part of a load in which daemon and client take turns.
struct Conversation<'a> {
    head: &'a Head<'a>,
    stay: &'a SessionStay,
    timeline: &'a Timeline,
    outbox: mpsc::Sender<LoadEvent>,
    inbox: mpsc::Receiver<ClientEvent>,
    /// Events the client has not taken yet. Each grant among them holds a token of the window, so
    /// the pool bounds them.
    unsent: VecDeque<LoadEvent>,
    opened_sent: Instant,
    granted_at: Vec<Option<Instant>>,
    copies: Vec<(Instant, Instant)>,
    client_done: bool,
}

/// Copy spans that are kept: one per chunk and some, so that a client cannot grow the daemon.
const COPIES_PER_CHUNK_MAX: usize = 16;

impl<'a> Conversation<'a> {
    fn new(
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
            opened_sent: Instant::now(),
            granted_at: vec![None; head.plan.chunks().len()],
            copies: Vec::new(),
            client_done: false,
        }
    }

    /// Grants every chunk while listening to the client.
    async fn stream(
        &mut self,
        filler: &mut Filler<'_>,
        request: &LoadRequest,
    ) -> Result<(), Failure> {
        let stages = filler.stages;
        self.unsent.push_back(LoadEvent::Opened(Opened {
            load_id: request.load_id.clone(),
            plan: Arc::clone(&self.head.plan),
            window_bytes: self.head.permit.window_slots() as u64 * stages.chunk_bytes,
            chunk_bytes: stages.chunk_bytes,
        }));
        let outbox = self.outbox.clone();
        let mut complete = false;
        // A client that is done before the last grant wants no more.
        while !(self.client_done || complete && self.unsent.is_empty()) {
            // While bytes are on their way the origin's own limits tell a stall from slowness.
            let idle = filler.filling.is_empty();
            tokio::select! {
                biased;
                event = self.inbox.recv() => self.hear(event)?,
                place = outbox.reserve(), if !self.unsent.is_empty() => {
                    let place = place.map_err(|_closed| lost())?;
                    if let Some(event) = self.unsent.pop_front() {
                        place.send(event);
                    }
                }
                ready = filler.next(), if !complete => {
                    complete = self.grant(filler, ready?);
                }
                () = tokio::time::sleep(stages.no_progress), if idle => {
                    return Err(self.stands_still(stages.no_progress));
                }
            }
        }
        Ok(())
    }

    /// Listens until the client is done, then ends what it still holds.
    async fn linger(&mut self) -> Result<(), Failure> {
        while !self.client_done {
            let event = self.inbox.recv().await;
            self.hear(event)?;
        }
        let ended = self.stay.session().release_load(self.stay.load());
        self.released(&ended);
        Ok(())
    }

    async fn say(&self, event: LoadEvent) -> Result<(), Failure> {
        self.outbox.send(event).await.map_err(|_closed| lost())
    }

    /// Grants a chunk, or says that there are no more; true then.
    fn grant(&mut self, filler: &Filler<'_>, ready: Option<Ready>) -> bool {
        let Some(ready) = ready else {
            self.unsent.push_back(LoadEvent::Complete);
            return true;
        };
        let at = filler.granted(&ready);
        let Ready { spec, pinned, window, was_cached, .. } = ready;
        if let Some(granted_at) = self.granted_at.get_mut(spec.index) {
            *granted_at = Some(at);
        }
        let state = self.head.entry.state();
        state.granted_bytes.fetch_add(spec.bytes, Ordering::Relaxed);
        let slot = self.stay.session().grant(self.stay.load(), spec.index, pinned, window);
        self.unsent.push_back(LoadEvent::Granted(Granted { spec, slot, was_cached }));
        false
    }

    fn hear(&mut self, event: Option<ClientEvent>) -> Result<(), Failure> {
        match event {
            Some(ClientEvent::Release(leases)) => {
                let ended = self.stay.session().release(&leases);
                self.released(&ended);
            }
            Some(ClientEvent::Copies(spans)) => {
                let room = (self.granted_at.len() + 1) * COPIES_PER_CHUNK_MAX - self.copies.len();
                let opened = self.opened_sent;
                let spans = spans.into_iter().take(room);
                self.copies.extend(spans.map(|(start, end)| (opened + start, opened + end)));
            }
            Some(ClientEvent::Lost) => return Err(lost()),
            None => self.client_done = true,
        }
        Ok(())
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
