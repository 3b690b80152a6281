//! Streams: their queue, their end, and the two long ones, `Load` and `Prefetch`.
//!
//! A stream is a bounded queue between the task that works and the connection that sends. The
//! receiving half carries a guard: dropped with the connection or by a client that cancels, it
//! cancels the task.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context as TaskContext, Poll};
use std::time::Duration;

use forebay_proto::{Failure, Placement, Reason, pb};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_stream::Stream;
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::{Code, Status, Streaming};

use super::aliasing::{self, Target};
use super::traced::named;
use super::{Context, Shared, client_gone, convert, deadline};
use crate::admission::{Lane, Part};
use crate::load::conversation::{ClientEvent, LoadEvent};
use crate::load::{Expected, Keep, LoadRequest, Progress, keep, lend};
use crate::metrics::{self, Fallback, LoadMeter};
use crate::numa::Placed;
use crate::plan::{Selection, plan};
use crate::report::Report;
use crate::timeline::Timeline;
use crate::trace::{About, RequestTrace};

/// Grants on their way to the connection.
pub(super) const GRANT_QUEUE: usize = 64;

/// Pages on their way to the connection.
pub(super) const PAGE_QUEUE: usize = 4;

/// How long the `open` of a load may take: a stream without is kept for nothing, and holds up a daemon
/// that stops.
const OPEN_WITHIN: Duration = Duration::from_secs(5);

/// Client messages between the connection and the load.
const CLIENT_QUEUE: usize = 64;

type Out<T> = mpsc::Sender<Result<T, Status>>;

/// The sending connection's half of a stream.
#[derive(Debug)]
pub(crate) struct GuardedStream<T> {
    messages: mpsc::Receiver<Result<T, Status>>,
    _guard: DropGuard,
}

impl<T> Stream for GuardedStream<T> {
    type Item = Result<T, Status>;

    fn poll_next(
        mut self: Pin<&mut Self>,
        context: &mut TaskContext<'_>,
    ) -> Poll<Option<Self::Item>> {
        self.messages.poll_recv(context)
    }
}

/// A stream: the task's half, the connection's half, and the token that is set when the
/// connection's half is dropped or the daemon stops.
pub(super) fn open<T>(
    depth: usize,
    stop: &CancellationToken,
) -> (Out<T>, GuardedStream<T>, CancellationToken) {
    let (out, messages) = mpsc::channel(depth);
    let gone = stop.child_token();
    let stream = GuardedStream { messages, _guard: gone.clone().drop_guard() };
    (out, stream, gone)
}

/// Where a load writes down what it does.
#[derive(Clone, Copy)]
pub(super) struct Told<'a> {
    pub(super) timeline: &'a Arc<Timeline>,
    pub(super) trace: &'a RequestTrace,
    pub(super) meter: &'a LoadMeter,
}

impl Told<'_> {
    /// It is known what is loaded.
    fn is_about(&self, request: &LoadRequest) {
        self.trace.is_about(About {
            load_id: request.load_id.clone(),
            uri: request.shown_uri.clone(),
            lane: request.lane.as_str(),
        });
        let device = request.device.as_ref().map(|device| device.kind);
        self.meter.is_of(request.workload.clone(), device);
    }

    /// How it ended.
    pub(super) fn count(&self, outcome: &Result<(), Failure>) {
        self.meter.ended(outcome.as_ref().copied(), self.timeline);
    }
}

/// The end of a call.
pub(super) struct Ending {
    pub(super) method: &'static str,
    pub(super) context: Context,
}

impl Ending {
    /// Counts and logs the end, and tells the client if it failed.
    pub(super) async fn tell<T>(
        self,
        outcome: Result<(), Failure>,
        out: &Out<T>,
        gone: &CancellationToken,
    ) {
        let seconds = self.context.opened.elapsed().as_secs_f64();
        let Err(failure) = outcome else {
            metrics::request_ended(self.method, "OK", seconds);
            return;
        };
        metrics::request_ended(self.method, failure.kind().as_str(), seconds);
        metrics::failed(&failure);
        if failure.reason == Reason::QueueFull {
            metrics::refused(seconds);
            // A flood of refusals would be a flood of lines; metrics count them.
            tracing::debug!(method = self.method, seconds, %failure, "request refused");
        } else {
            tracing::warn!(method = self.method, seconds, %failure, "request failed");
        }
        // A client that is gone is not told, nor is one that does not read while the daemon stops.
        tokio::select! {
            biased;
            told = out.send(Err(named(failure, self.context.trace).to_status())) => drop(told),
            () = gone.cancelled() => {}
        }
    }
}

/// Adds where the time went, and what the reads cost, to a failure.
pub(super) fn with_account(mut failure: Failure, timeline: &Timeline) -> Failure {
    failure.stages = timeline.stages();
    let cost = timeline.cost();
    if cost.attempts == 0 {
        return failure;
    }
    failure
        .with_fact("attempts", cost.attempts)
        .with_fact("retries", cost.retries)
        .with_fact("throttles", cost.throttles)
        .with_fact("hedges", cost.hedges)
        .with_fact("origin_bytes", cost.bytes)
}

/// One `Load`: the open message, then the conversation.
pub(super) async fn load(
    shared: &Arc<Shared>,
    context: Context,
    told: Told<'_>,
    mut incoming: Streaming<pb::LoadRequest>,
    out: &Out<pb::LoadResponse>,
) -> Result<(), Failure> {
    let first = tokio::time::timeout(OPEN_WITHIN, incoming.message());
    let first = context.deadline.cut(first).await.map_err(|_expired| deadline())?;
    let first = first.map_err(|_silent| {
        Failure::new(Reason::BadRequest, format!("no `open` came within {OPEN_WITHIN:?}"))
    })?;
    let first = first.map_err(|_broken| client_gone())?.and_then(|first| first.event);
    let Some(pb::load_request::Event::Open(open)) = first else {
        return Err(Failure::new(Reason::BadRequest, "a load begins with `open`"));
    };
    let Target { uri, shown_uri, given } = aliasing::target(shared, open.uri)?;
    let request = LoadRequest {
        shown_uri,
        uri,
        given,
        load_id: convert::load_id(open.load_id)?,
        lane: convert::lane(open.lane, Lane::Interactive)?,
        selection: Selection {
            tensors: convert::globs(open.tensors)?,
            objects: convert::globs(open.objects)?,
            shard: convert::shard(open.shard)?,
        },
        device: convert::device(open.device)?,
        placed: placed(shared, open.placement)?,
        peer: context.peer,
        deadline: context.deadline,
        expected: convert::expected(open.verify, open.sha256)?,
        workload: shared.workloads.class_of(&open.workload),
    };
    told.is_about(&request);
    shared.stages.domain.check_lane(request.lane)?;
    if request.lane == Lane::Interactive {
        // Before anything is kept of it: a flood of loads that are refused is to cost little, and
        // is not to take the place of loads that ran in the history. A prefetch may wait.
        let remaining = request.deadline.remaining(Instant::now());
        let shard = request.selection.shard.as_ref();
        let part = Part {
            uid: request.peer.uid,
            uri: &request.uri,
            rank: shard.map(|shard| (shard.rank(), shard.ranks())),
            what: request.what(),
        };
        shared.stages.admission.check_wait(&part, remaining)?;
    }
    if request.device.as_ref().is_some_and(|device| device.path == "staged") {
        metrics::fell_back(Fallback::StagedCopy);
        told.timeline.event("fallback", "to copies through the client's own memory");
    }
    let stay = shared.sessions.enter(&open.session, context.peer)?;
    let token = stay.session().token();
    let (events, heard) = mpsc::channel(GRANT_QUEUE);
    let (said, client_events) = mpsc::channel(CLIENT_QUEUE);
    let lending = lend(&shared.stages, &request, told.timeline, stay, (events, client_events));
    let talking = async {
        let (ended, heard) = tokio::join!(lending, tell(heard, token.as_bytes(), told, out));
        ended.and(heard)
    };
    let ended = tokio::select! {
        ended = talking => ended,
        failure = hear(incoming, said) => Err(failure),
    };
    aliasing::ended(shared, &request, context.opened, ended)
}

/// Where the slots of a load should lie.
fn placed(shared: &Shared, wish: Option<pb::Placement>) -> Result<Option<Placed>, Failure> {
    let placed = Placement::receive(wish)?.map(|wish| shared.stages.numa.place(wish));
    if let Some(Placed { asked, degraded: Some(why), .. }) = &placed {
        tracing::info!(asked, why, "a load does not get the place that it asks for");
    }
    Ok(placed)
}

/// Passes the client's messages on; ends only with a client that breaks the protocol.
async fn hear(
    mut incoming: Streaming<pb::LoadRequest>,
    said: mpsc::Sender<ClientEvent>,
) -> Failure {
    loop {
        let event = match incoming.message().await {
            Ok(Some(pb::LoadRequest { event: Some(event) })) => {
                match convert::client_event(event) {
                    Ok(event) => event,
                    Err(failure) => return failure,
                }
            }
            Ok(Some(pb::LoadRequest { event: None })) => continue,
            Ok(None) => break,
            Err(status) => match status.code() {
                // tonic's codes for a message that is too large or is none of ours.
                Code::OutOfRange | Code::Internal => {
                    return Failure::new(Reason::BadRequest, status.message());
                }
                _ => ClientEvent::Lost,
            },
        };
        if said.send(event).await.is_err() {
            break;
        }
    }
    // The end of the channel is the client's "done"; what the load makes of it comes from `lend`.
    drop(said);
    std::future::pending().await
}

/// Passes the load's events on.
async fn tell(
    mut heard: mpsc::Receiver<LoadEvent>,
    session: &[u8],
    told: Told<'_>,
    out: &Out<pb::LoadResponse>,
) -> Result<(), Failure> {
    use pb::load_response::Event;
    let trace = told.trace;
    let send = |event: Event| send(out, pb::LoadResponse { event: Some(event) });
    while let Some(event) = heard.recv().await {
        match event {
            LoadEvent::Opened(opened) => {
                send(Event::Opened(convert::opened(&opened, session, trace.context()))).await?;
                for page in convert::pages(opened.plan.manifest(), &[]) {
                    send(Event::Manifest(page)).await?;
                }
            }
            LoadEvent::Granted(granted) => send(Event::Grant(convert::grant(&granted))).await?,
            LoadEvent::Complete => send(Event::Complete(pb::LoadComplete {})).await?,
            LoadEvent::Report(report) => {
                ended("load", &report, told);
                send(Event::Report(convert::report(&report, Some(trace.context())))).await?;
            }
        }
    }
    Ok(())
}

/// One `Stat`: resolved under a permit of its own, then told page by page.
pub(super) async fn stat(
    shared: &Shared,
    context: Context,
    uri: &str,
    out: &Out<pb::StatResponse>,
) -> Result<(), Failure> {
    use pb::stat_response::Event;
    let stages = &shared.stages;
    let target = aliasing::target(shared, uri.to_owned())?;
    let manifest = aliasing::manifest_of(shared, target, context.deadline).await?;
    let (whole, chunk_bytes) = (Arc::clone(&manifest), stages.chunk_bytes);
    let plan = stages.cpu.run(move || plan(&whole, &Selection::default(), chunk_bytes)).await??;
    let mut cached = vec![convert::Cached::default(); manifest.objects().len()];
    let mut sums = pb::BytesByTier::default();
    for chunk in plan.chunks() {
        let ram = stages.ram.holds(&chunk.key);
        let nvme = stages.nvme.as_ref().is_some_and(|nvme| nvme.holds(&chunk.key));
        sums.ram += u64::from(ram) * chunk.bytes;
        sums.nvme += u64::from(nvme) * chunk.bytes;
        sums.origin += u64::from(!ram && !nvme) * chunk.bytes;
        for extent in &chunk.extents {
            let Some(object) = cached.get_mut(extent.object) else { continue };
            object.ram += u64::from(ram) * extent.bytes;
            object.nvme += u64::from(nvme) * extent.bytes;
        }
    }
    let send = |event: Event| send(out, pb::StatResponse { event: Some(event) });
    send(Event::Summary(pb::StatSummary {
        uri: manifest.uri().to_owned(),
        revision: manifest.revision().to_string(),
        object_count: manifest.objects().len() as u64,
        tensor_count: manifest.tensors().len() as u64,
        bytes: manifest.bytes(),
        cached: Some(sums),
    }))
    .await?;
    for page in convert::pages(&manifest, &cached) {
        send(Event::Page(page)).await?;
    }
    Ok(())
}

/// One `Prefetch`.
pub(super) async fn prefetch(
    shared: &Arc<Shared>,
    context: Context,
    told: Told<'_>,
    asked: pb::PrefetchRequest,
    out: &Out<pb::PrefetchResponse>,
) -> Result<(), Failure> {
    use pb::prefetch_response::Event;
    let on_nvme = match pb::Tier::try_from(asked.tier) {
        Ok(pb::Tier::Unspecified | pb::Tier::Ram) => false,
        Ok(pb::Tier::Nvme) => true,
        _ => return Err(Failure::new(Reason::BadRequest, "prefetch is into ram or nvme")),
    };
    let wanted = Keep { on_nvme, pin: asked.pin };
    let Target { uri, shown_uri, given } = aliasing::target(shared, asked.uri)?;
    let request = LoadRequest {
        shown_uri,
        uri,
        given,
        load_id: convert::load_id(asked.load_id)?,
        lane: Lane::Prefetch,
        selection: Selection::default(),
        device: None,
        placed: placed(shared, asked.placement)?,
        peer: context.peer,
        deadline: context.deadline,
        expected: Expected::default(),
        workload: shared.workloads.class_of(&asked.workload),
    };
    told.is_about(&request);
    shared.stages.domain.check_lane(request.lane)?;
    let stay = shared.sessions.enter(&[], context.peer)?;
    let (steps, heard) = mpsc::channel(1);
    let send = |event: Event| send(out, pb::PrefetchResponse { event: Some(event) });
    let telling = async {
        let mut heard: mpsc::Receiver<Progress> = heard;
        while let Some(step) = heard.recv().await {
            send(Event::Progress(convert::progress(&step))).await?;
        }
        Ok::<(), Failure>(())
    };
    let keeping = keep(&shared.stages, &request, wanted, told.timeline, stay, steps);
    let (kept, heard) = tokio::join!(keeping, telling);
    heard?;
    let report = kept.map_err(|failure| aliasing::told(&request, failure))?;
    ended("prefetch", &report, told);
    send(Event::Report(convert::report(&report, Some(told.trace.context())))).await
}

/// Sends messages one after the other.
pub(super) async fn send_all<T>(out: &Out<T>, messages: Vec<T>) -> Result<(), Failure> {
    for message in messages {
        send(out, message).await?;
    }
    Ok(())
}

async fn send<T>(out: &Out<T>, message: T) -> Result<(), Failure> {
    out.send(Ok(message)).await.map_err(|_closed| client_gone())
}

/// Counts and logs a finished load.
fn ended(what: &'static str, report: &Report, told: Told<'_>) {
    told.meter.handed_over(report);
    told.trace.is_done(report);
    let bytes = report.tally.tiers.total();
    tracing::info!(
        load_id = report.load_id,
        uri = report.uri,
        revision = report.revision,
        lane = report.lane,
        bytes,
        ram_percent = format_args!("{:.0}", convert::percent(report.tally.tiers.ram, bytes)),
        nvme_percent = format_args!("{:.0}", convert::percent(report.tally.tiers.nvme, bytes)),
        wall_seconds = report.wall.as_secs_f64(),
        attempts = report.tally.cost.attempts,
        retries = report.tally.cost.retries,
        throttles = report.tally.cost.throttles,
        hedges = report.tally.cost.hedges,
        "{what} done"
    );
}
