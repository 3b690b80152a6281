//! A load, read aloud: admission, resolve, plan; then for every chunk a slot, its bytes, their
//! digest, the cache and a lease; at the end the report.
//!
//! This is the only module that calls stages. [`lend`] serves a client that reads the bytes,
//! [`keep()`] fetches without lending. Both bring the plan's chunks into RAM with a [`filler`];
//! `lend` holds a [`conversation`] about them. [`bring`] is one chunk's way, from the NVMe tier or
//! the origin.
//!
//! Everything a load owns lives in these functions' frames: dropping the future, as a deadline or a
//! vanished client does, gives back tokens, leases, flights and connections.

pub(crate) mod across;
pub(crate) mod conversation;
mod feasible;
mod filler;
mod given;
mod keep;
mod proofs;
mod slot;
mod strict;
mod waiting;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use forebay_io::NodeId;
use forebay_origin::ReadTerms;
use forebay_proto::{Failure, Reason};
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::admission::{Admission, AdmissionPermit, Holder, Lane, What};
use crate::capacity::meter::LoadMeters;
use crate::cpu::{NodeWorkers, Workers};
use crate::deadline::{Deadline, Expired};
use crate::decode::{DecodeError, Decoder};
use crate::domain::Domain;
use crate::evidence::{Evidence, Sampling};
use crate::fetch::{FetchedChunk, Fetcher, staged_bytes};
use crate::flight::{FlightLog, Flights, Landed, Waiter};
use crate::handoff::{Peer, SessionStay};
use crate::history::{History, Keeper, Opening};
use crate::loads::{Entry, LoadState, Loads};
use crate::metrics::{Fallback, fell_back};
use crate::numa::{Numa, Placed};
use crate::nvme::{NvmeTier, TierUse};
use crate::plan::{ChunkSpec, FetchPlan, PlanError, Selection, plan};
use crate::ram::pool::ClaimedSlot;
use crate::ram::{PinnedChunk, RamTier, RevisionUse};
use crate::report::{DeviceUse, Report, Subject, Tally, Tier, Why, close};
use crate::resolve::{Manifest, Resolver};
use crate::timeline::{Kind, Stage, Timeline};
use crate::verify::{Decayed, VerifiedChunk, Verifier, VerifyError};
use crate::workload::Workload;
use across::Across;
use conversation::{ClientEvent, Conversation, LoadEvent};
use filler::Filler;
use slot::claim;
use waiting::Waiting;

pub(crate) use given::Given;
pub(crate) use keep::{Keep, Progress, keep};

/// How long a load that is opened again waits for a place before it ends its old stream for it. A
/// refusal comes at once, and then the old stream goes on.
const ATTACH_PATIENCE: Duration = Duration::from_millis(50);

/// How long the machine is looked at after the last grant, while the client holds leases.
const LINGER_WATCHED: Duration = Duration::from_secs(60);

/// The stages of one domain.
#[derive(Debug)]
pub(crate) struct Stages {
    /// Whose stages these are.
    pub(crate) domain: Arc<Domain>,
    /// Who may start.
    pub(crate) admission: Admission,
    /// URI to manifest.
    pub(crate) resolver: Arc<Resolver>,
    /// Bytes into slots.
    pub(crate) fetcher: Arc<Fetcher>,
    /// From what a store has to what is served.
    pub(crate) decoder: Arc<Decoder>,
    /// Digests.
    pub(crate) verifier: Arc<Verifier>,
    /// Slots and what is in them.
    pub(crate) ram: Arc<RamTier>,
    /// What other domains have of a chunk.
    pub(crate) across: Arc<Across>,
    /// Chunks in files, if there is such a tier.
    pub(crate) nvme: Option<Arc<NvmeTier>>,
    /// The machine's nodes.
    pub(crate) numa: Arc<Numa>,
    /// One fetch per chunk.
    pub(crate) flights: Flights,
    /// Loads that run.
    pub(crate) loads: Loads,
    /// Loads that have ended.
    pub(crate) history: History,
    /// Threads for work that burns CPU.
    pub(crate) cpu: Arc<Workers>,
    /// Threads of each NUMA node, for work on what lies in slots.
    pub(crate) workers: Arc<NodeWorkers>,
    /// One slot.
    pub(crate) chunk_bytes: u64,
    /// How long a load may stand still.
    pub(crate) no_progress: Duration,
    /// Looks at the machine while loads run.
    pub(crate) evidence: Arc<Evidence>,
    /// What loads themselves do, measured.
    pub(crate) rates: Arc<LoadMeters>,
}

/// What a client asks for.
pub(crate) struct LoadRequest {
    /// As given: may hold a query with a signature, so this type has no `Debug`.
    pub(crate) uri: String,
    /// Without a query, in canonical form: what others may see.
    pub(crate) shown_uri: String,
    /// Which revision of it, if that is known: of a load by name.
    pub(crate) given: Option<Given>,
    /// Valid and never empty.
    pub(crate) load_id: String,
    /// Which lane.
    pub(crate) lane: Lane,
    /// Which part of the checkpoint.
    pub(crate) selection: Selection,
    /// Where its slots should lie, if it says so.
    pub(crate) placed: Option<Placed>,
    /// What it copies the bytes to, if it does.
    pub(crate) device: Option<DeviceUse>,
    /// Who asks.
    pub(crate) peer: Peer,
    /// When everything has to be handed over.
    pub(crate) deadline: Deadline,
    /// What the objects are held to.
    pub(crate) expected: Expected,
    /// What it is for.
    pub(crate) workload: Workload,
}

/// What a client wants the bytes to be, and when.
#[derive(Debug, Clone, Default)]
pub(crate) struct Expected {
    /// Nothing is handed over of an object before all of it has what is known of it.
    pub(crate) strict: bool,
    /// Digests that the client knows, by the objects' names.
    pub(crate) sha256: BTreeMap<String, [u8; 32]>,
}

impl LoadRequest {
    /// As one who waits for reads.
    fn waiter(&self) -> Waiter {
        Waiter { lane: self.lane, deadline: self.deadline }
    }

    /// Until when somebody waits for it alone. One rank that made way would waste what the others
    /// load, and who comes first among them is no guess about the last.
    fn waited_for_until(&self) -> Option<Instant> {
        let alone = self.lane == Lane::Interactive && !self.selection.is_one_of_many();
        alone.then(|| self.deadline.at())
    }

    /// What was asked for, by whatever name.
    fn asked(&self) -> &str {
        self.given.as_ref().map_or(&self.shown_uri, |given| &given.name)
    }

    /// What it wants.
    pub(crate) fn what(&self) -> What {
        let Selection { tensors, objects, shard } = &self.selection;
        let shard = shard.as_ref().map(|shard| format!("{shard:?}"));
        // With its query, which may name what is there.
        let revision = self.given.as_ref().map(|given| given.manifest.revision());
        What::of((&self.uri, revision, tensors, objects, shard))
    }

    fn alias(&self) -> &str {
        self.given.as_ref().map_or("", |given| &given.name)
    }
}

/// Lends the checkpoint to a client, chunk by chunk, until the client is done.
///
/// The deadline covers everything up to the last grant. After that a client may keep its leases as
/// long as it lives: no timer takes memory away that a GPU may be reading. It keeps its place among
/// the running loads only until then.
pub(crate) async fn lend(
    stages: &Arc<Stages>,
    request: &LoadRequest,
    timeline: &Arc<Timeline>,
    stay: SessionStay,
    talk: (mpsc::Sender<LoadEvent>, mpsc::Receiver<ClientEvent>),
) -> Result<(), Failure> {
    let sampling = stages.evidence.begin();
    let entry = stages.loads.enter(stay.load(), state_of(request, timeline));
    let state = Arc::clone(entry.state());
    let keeper = keeper(stages, request, timeline);
    let lending = async {
        let deadline = request.deadline;
        let opening = Box::pin(open(stages, request, timeline, &entry));
        let (head, permit) = in_time(deadline, opening).await?;
        strict::check_expected(request, &head.plan)?;
        let mut brought = BTreeMap::new();
        if request.expected.strict {
            let proving = strict::prove(stages, request, timeline, (&head, &permit));
            brought = in_time(deadline, proving).await?;
        }
        let mut conversation = Conversation::new(&head, &stay, timeline, talk);
        let what = (&head.plan, head.entry);
        let filler = Filler::new(stages, what, &permit, request, timeline);
        let mut filler = filler.after(brought);
        let streaming = conversation.stream(&mut filler, &permit, request);
        in_time(deadline, streaming).await?;
        let verified = proofs::verified_by(stages, &head.plan, &request.expected, filler.proven());
        let tally = Tally { peak_slots: permit.peak_slots(), verified, ..filler.tally() };
        drop(filler);
        drop(permit);
        head.handed_over();
        request.given.iter().for_each(Given::handed_over);
        // What the client does beyond its last release is its time too.
        let lingering = timeline.begin(Stage::ClientAck, Kind::Service);
        linger(&mut conversation, sampling).await?;
        drop(lingering);
        stages.evidence.look_after(timeline.opened());
        let report = Box::new(report(stages, request, &head, timeline, tally));
        let said = conversation.say(LoadEvent::Report(report.clone()));
        tokio::time::timeout(stages.no_progress, said).await.map_err(|_elapsed| lost())??;
        Ok(report)
    };
    let ended = tokio::select! {
        ended = lending => ended,
        () = state.superseded.cancelled() => Err(superseded(request)),
        () = stay.session().closed().cancelled() => Err(lost()),
    };
    answered(stages, request, &ended);
    keeper.keep(ended.as_deref());
    ended.map(drop)
}

/// Listens until the client is done. It may keep what it has for hours; the machine is looked at for
/// as long as it may still be copying.
async fn linger(conversation: &mut Conversation<'_>, sampling: Sampling) -> Result<(), Failure> {
    let mut lingering = pin!(conversation.linger());
    if let Ok(done) = tokio::time::timeout(LINGER_WATCHED, &mut lingering).await {
        return done;
    }
    drop(sampling);
    lingering.await
}

/// Keeps what is known of a load when it ends.
fn keeper<'a>(
    stages: &'a Stages,
    request: &'a LoadRequest,
    timeline: &'a Arc<Timeline>,
) -> Keeper<'a> {
    let LoadRequest { load_id, shown_uri: uri, lane, .. } = request;
    stages.history.keeper(
        Opening { load_id, uri, alias: request.alias(), lane: lane.as_str() },
        timeline,
        stages.evidence.samples(),
    )
}

/// An id whose load is answered is free again; so is one whose revision is gone.
fn answered<T>(stages: &Stages, request: &LoadRequest, ended: &Result<T, Failure>) {
    let forget = match ended {
        Ok(_) => true,
        Err(failure) => failure.reason == Reason::RevisionChanged,
    };
    if forget {
        stages.loads.forget(request.peer.uid, &request.load_id);
    }
}

fn superseded(request: &LoadRequest) -> Failure {
    let message = format!("another stream opened load id {}", request.load_id);
    Failure::new(Reason::Superseded, message)
}

/// What lies before the first chunk.
struct Head<'a> {
    plan: Arc<FetchPlan>,
    entry: &'a Entry<'a>,
    _in_use: RevisionUse,
    stored: Option<TierUse>,
}

impl Head<'_> {
    /// Every chunk is granted; the client may keep them for hours.
    fn handed_over(&self) {
        if let Some(stored) = &self.stored {
            stored.handed_over();
        }
    }
}

async fn open<'a>(
    stages: &Arc<Stages>,
    request: &LoadRequest,
    timeline: &Timeline,
    entry: &'a Entry<'_>,
) -> Result<(Head<'a>, AdmissionPermit), Failure> {
    let (uid, load_id) = (request.peer.uid, &request.load_id);
    let attached = stages.loads.attach(uid, load_id, request.asked())?;
    if let (Some(manifest), Some(given)) = (&attached, &request.given) {
        given.attached(manifest);
    }
    let given = request.given.as_ref().map(|given| Arc::clone(&given.manifest));
    let attached = attached.or(given);
    feasible::check_queue(stages, request.deadline)?;
    let known = match &attached {
        Some(manifest) => {
            let planning = timeline.begin_first(Stage::Plan, Kind::Service);
            let plan = planned(stages, request, manifest).await?;
            drop(planning);
            feasible::check_plan(stages, &plan, request.deadline, true)?;
            Some(plan)
        }
        None => None,
    };
    let (pid, what) = (request.peer.pid, Some(request.what()));
    let holder = Holder { load_id: load_id.clone(), uid, pid, what };
    let since = if known.is_some() { Instant::now() } else { timeline.opened() };
    let waiting = Waiting::begin(&stages.admission, timeline, since);
    let until = request.waited_for_until();
    let admission = stages.admission.admit_until(request.lane, holder, until);
    tokio::pin!(admission);
    let permit = match tokio::time::timeout(ATTACH_PATIENCE, &mut admission).await {
        Ok(permit) => permit?,
        // Queued and not refused. The same load's old stream may hold what this one waits for.
        Err(_elapsed) => {
            if attached.is_some() {
                entry.supersede_others();
            }
            admission.await?
        }
    };
    drop(waiting);

    let resolving = timeline.begin_calls(Stage::Resolve);
    let manifest = match attached {
        Some(manifest) => manifest,
        None => {
            let terms = request.waiter().terms();
            let _spending = timeline.spending(&terms);
            resolving.of(stages.resolver.resolve(&permit, &request.uri, &terms)).await?
        }
    };
    drop(resolving);

    let planning = timeline.begin(Stage::Plan, Kind::Service);
    let plan = match known {
        Some(plan) => plan,
        None => planned(stages, request, &manifest).await?,
    };
    let missing_bytes = feasible::check_plan(stages, &plan, request.deadline, false)?;
    drop(planning);

    entry.state().planned(missing_bytes, stages.fetcher.endpoint(&manifest));
    entry.state().total_bytes.store(plan.bytes(), Ordering::Relaxed);
    stages.loads.remember(uid, load_id, request.asked(), &manifest);
    entry.supersede_others();
    let in_use = stages.ram.use_revision(&manifest);
    let stored = stages.nvme.as_ref().map(|nvme| nvme.use_revision(&manifest, request.lane));
    Ok((Head { plan: Arc::new(plan), entry, _in_use: in_use, stored }, permit))
}

async fn planned(
    stages: &Arc<Stages>,
    request: &LoadRequest,
    manifest: &Arc<Manifest>,
) -> Result<FetchPlan, Failure> {
    let (chunk_bytes, selection) = (stages.chunk_bytes, request.selection.clone());
    let manifest = Arc::clone(manifest);
    Ok(stages.cpu.run(move || plan(&manifest, &selection, chunk_bytes)).await??)
}

fn state_of(request: &LoadRequest, timeline: &Timeline) -> LoadState {
    LoadState {
        load_id: request.load_id.clone(),
        uri: request.shown_uri.clone(),
        alias: request.alias().to_owned(),
        lane: request.lane,
        peer: request.peer,
        opened: timeline.opened(),
        total_bytes: Default::default(),
        granted_bytes: Default::default(),
        released_bytes: Default::default(),
        superseded: Default::default(),
        missing_bytes: Default::default(),
        endpoint: Default::default(),
    }
}

impl From<PlanError> for Failure {
    fn from(error: PlanError) -> Self {
        let message = error.to_string();
        match error {
            PlanError::UnknownTensor | PlanError::NoTensors => {
                Self::new(Reason::UnknownTensor, message)
            }
            PlanError::Slice(_) => Self::new(Reason::BadRequest, message),
            PlanError::UnknownObject => Self::new(Reason::ObjectNotFound, message),
            PlanError::TooManyChunks { .. } => {
                Self::new(Reason::LimitExceeded, &message).with_quota(message)
            }
        }
        .at_stage("plan")
    }
}

/// Runs a part of a load until its deadline. What fails because no time was left fails with it.
async fn in_time<T>(
    deadline: Deadline,
    work: impl Future<Output = Result<T, Failure>>,
) -> Result<T, Failure> {
    match deadline.cut(work).await {
        Ok(Ok(done)) => Ok(done),
        Ok(Err(failure)) if !deadline.remaining(Instant::now()).is_zero() => Err(failure),
        Ok(Err(_)) | Err(Expired) => {
            let message = "the deadline passed before everything was handed over";
            Err(Failure::new(Reason::Deadline, message))
        }
    }
}

fn lost() -> Failure {
    Failure::new(Reason::DaemonUnreachable, "the client is gone")
}

fn report(
    stages: &Stages,
    request: &LoadRequest,
    head: &Head<'_>,
    timeline: &Timeline,
    tally: Tally,
) -> Report {
    let manifest = head.plan.manifest();
    let revision = manifest.revision().to_string();
    let subject = Subject {
        load_id: &request.load_id,
        uri: manifest.uri(),
        alias: request.alias(),
        revision: &revision,
        lane: request.lane.as_str(),
        placed: request.placed.as_ref(),
        device: request.device.as_ref(),
    };
    let tally = Tally { cost: timeline.cost(), ..tally };
    close(subject, timeline, tally, (Instant::now(), stages.evidence.samples()))
}

/// One chunk's way into the cache, near a node if one is given: from the NVMe tier if it is there,
/// else from the origin. Notes in `log` what it is at, for those who run out of time before it
/// lands.
async fn bring(
    stages: Arc<Stages>,
    manifest: Arc<Manifest>,
    (spec, near): (Arc<ChunkSpec>, Option<NodeId>),
    terms: ReadTerms,
    log: Arc<FlightLog>,
) -> Result<Landed, Failure> {
    let revision = manifest.revision();
    let stored = fill_from_nvme(&stages, (&manifest, &terms), (&spec, near), &log).await?;
    let (mut claimed, why) = match stored {
        Ok(pinned) => return Ok(Landed { pinned, tier: Tier::Nvme, why: Why::Stored }),
        Err(missing) => missing,
    };
    if why.is_fallback() {
        fell_back(Fallback::Origin(why));
        log.decided("fallback", format!("to the origin, since NVMe is no help: {}", why.as_str()));
    }
    let mut again = true;
    loop {
        let staging = match staged_bytes(&manifest, &spec) {
            0 => None,
            bytes => {
                log.at(Stage::Decompress, Kind::Queue);
                Some(stages.fetcher.stage(bytes).await?)
            }
        };
        // Memory to decode from comes before the slot to decode into.
        let slot = match claimed.take().filter(|_| staging.is_none()) {
            Some(slot) => slot,
            None => claim(&stages, near, &log).await?,
        };
        log.at(Stage::Fetch, Kind::Service);
        let into = (slot, staging);
        let fetching = stages.fetcher.fetch(&manifest, &spec, &terms, into);
        let (fetched, spans) = log.journal().of(fetching).await?;
        // Now the phases are known.
        log.fetched(spans);
        match check(&stages, fetched, &log).await {
            Ok(verified) => {
                let digest = verified.to_store();
                let pinned = stages.ram.insert(verified, &manifest);
                if let (Some(nvme), Some(digest)) = (&stages.nvme, digest) {
                    nvme.offer(&spec, digest, revision);
                }
                return Ok(Landed { pinned, tier: Tier::Origin, why });
            }
            // The way here may have done it, so the bytes are asked for once more, another way.
            Err(Bad { suspect: Some(address), failure }) if again => {
                again = false;
                fell_back(Fallback::OtherSource);
                let why = failure.reason.as_str();
                log.decided("fallback", format!("to another connection and address: {why}"));
                terms.distrust(address);
            }
            Err(Bad { failure, .. }) => return Err(failure),
        }
    }
}

/// Why what was fetched may not be served.
struct Bad {
    failure: Failure,
    /// If asking again may help: the address that it came from, where that is one.
    suspect: Option<Option<IpAddr>>,
}

impl From<DecodeError> for Bad {
    fn from(error: DecodeError) -> Self {
        Self { suspect: error.suspect(), failure: error.into() }
    }
}

impl From<VerifyError> for Bad {
    fn from(error: VerifyError) -> Self {
        Self { suspect: error.suspect(), failure: error.into() }
    }
}

/// Decodes what has to be decoded, and verifies.
async fn check(
    stages: &Stages,
    fetched: FetchedChunk,
    log: &FlightLog,
) -> Result<VerifiedChunk, Bad> {
    if fetched.is_plain() {
        log.at(Stage::VerifyPart, Kind::Service);
        let raw = stages.decoder.pass(fetched)?;
        let (verified, spans) = stages.verifier.verify(raw).await?;
        log.replace_last(spans.to_vec());
        return Ok(verified);
    }
    log.at(Stage::Decompress, Kind::Service);
    let checking = stages.decoder.decode(fetched, stages.verifier.of_raw());
    let ((checked, verify), decompress) = checking.await?;
    log.replace_last(decompress.into_iter().chain([verify]).collect());
    Ok(checked?)
}

/// The chunk from the NVMe tier; else why not, and the slot that was claimed for that, if it came
/// back.
async fn fill_from_nvme(
    stages: &Stages,
    (manifest, terms): (&Manifest, &ReadTerms),
    (spec, near): (&Arc<ChunkSpec>, Option<NodeId>),
    log: &FlightLog,
) -> Result<Result<PinnedChunk, (Option<ClaimedSlot>, Why)>, Failure> {
    let Some(nvme) = &stages.nvme else { return Ok(Err((None, Why::NoNvme))) };
    log.at(Stage::NvmeRead, Kind::Queue);
    let lane = || match terms.lane() {
        forebay_origin::Lane::Interactive => Lane::Interactive,
        forebay_origin::Lane::Prefetch => Lane::Prefetch,
    };
    let found = match nvme.find(&spec.key, manifest.revision(), lane).await {
        Ok(found) => found,
        Err(why) => return Ok(Err((None, why))),
    };
    let slot = claim(stages, near, log).await?;
    log.at(Stage::NvmeRead, Kind::Service);
    let ((checked, verified), read) =
        match nvme.read(found, spec, slot, stages.verifier.of_stored()).await {
            Ok(read) => read,
            Err(missing) => return Ok(Err(missing)),
        };
    log.replace_last(read.into_iter().chain([verified]).collect());
    match checked {
        Ok(verified) => {
            nvme.was_right();
            Ok(Ok(stages.ram.insert(verified, manifest)))
        }
        Err(Decayed { why, generation, slot }) => {
            nvme.quarantine(spec.key, generation, why).await;
            Ok(Err((Some(slot), Why::BadExtent)))
        }
    }
}
