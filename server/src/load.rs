//! A load, read aloud: admission, resolve, plan; then for every chunk a slot, its bytes, their
//! digest, the cache and a lease; at the end the report.
//!
//! This is the only module that calls stages. [`lend`] serves a client that reads the bytes,
//! [`keep`] fetches without lending. Both bring the plan's chunks into RAM with a [`filler`]; `lend`
//! holds a [`conversation`] about them. [`fill`] is one chunk's way from the origin.
//!
//! Everything a load owns lives in these functions' frames: dropping the future, as a deadline or a
//! vanished client does, gives back tokens, leases, flights and connections.

pub(crate) mod conversation;
mod filler;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use forebay_proto::{Failure, Reason};
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::admission::{Admission, AdmissionPermit, Holder, Lane};
use crate::deadline::{Deadline, Expired};
use crate::fetch::Fetcher;
use crate::flight::{Filled, Flights};
use crate::handoff::{Peer, SessionStay};
use crate::loads::{Entry, LoadState, Loads};
use crate::plan::{ChunkSpec, FetchPlan, PlanError, Selection, plan};
use crate::ram::{RamTier, RevisionUse};
use crate::report::{Report, Subject, Tally, close};
use crate::resolve::{Manifest, Resolver};
use crate::timeline::{Kind, Span, Stage, Timeline};
use crate::verify::Verifier;
use conversation::{ClientEvent, Conversation, LoadEvent};
use filler::Filler;

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
    let report = report(request, &head, timeline, filler.tally(), conversation.copies());
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
    stages.resolver.check(&request.uri)?;
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
