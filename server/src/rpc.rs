//! The gRPC face: the only place, with its sub-modules, that sees tonic.
//!
//! A method checks its input, gives the request a deadline, and hands it to `load` or reads the
//! state. Deadlines are parsed and enforced here and in `load`: tonic's own handling covers
//! response heads only. A stream runs as a task of the daemon's tree and ends with it: when the
//! client drops its response stream, a guard in it cancels the task.

mod aliasing;
mod capacity;
mod convert;
mod doctor;
mod explain;
pub(crate) mod fuzzed;
mod kept;
mod packing;
mod resizing;
pub(crate) mod serve;
mod status;
mod stream;
pub(crate) mod tls;
mod traced;

use std::sync::Arc;
use std::time::Duration;

use forebay_origin::{AheadResolver, OriginUri, Origins};
use forebay_proto::pb::forebay_server::Forebay;
use forebay_proto::{Failure, Reason, pb};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::metadata::MetadataMap;
use tonic::{Request, Response, Status, Streaming};

use crate::alias::Aliases;
use crate::deadline::{Deadline, parse_grpc_timeout};
use crate::error::stopping;
use crate::handoff::{Peer, Sessions};
use crate::load::Stages;
use crate::metrics::{self, LoadMeter};
use crate::otlp::Exporter;
use crate::pack::Packer;
use crate::resize::Resizer;
use crate::timeline::Timeline;
use crate::trace::TraceContext;
use crate::workload::Workloads;
pub(crate) use doctor::Setup;
use stream::{Ending, GuardedStream, PAGE_QUEUE, Told};

/// Checkpoints of one `List` message.
const LIST_PAGE: usize = 100;

/// The longest deadline of a call that takes as long as it takes.
const LONG_DEADLINE_MAX: Duration = Duration::from_secs(7 * 24 * 3600);

/// What the methods need of the daemon.
#[derive(Debug)]
pub(crate) struct Shared {
    /// The stages.
    pub(crate) stages: Arc<Stages>,
    /// Names of revisions.
    pub(crate) aliases: Arc<Aliases>,
    /// Client processes.
    pub(crate) sessions: Arc<Sessions>,
    /// Object stores, for their statistics.
    pub(crate) origins: Arc<Origins>,
    /// Writes checkpoints anew.
    pub(crate) packer: Arc<Packer>,
    /// Where spans of finished loads go, if they are exported.
    pub(crate) exporter: Option<Arc<Exporter>>,
    /// Gives the RAM tier its size.
    pub(crate) resizer: Arc<Resizer>,
    /// Names of origins, looked up ahead of time.
    pub(crate) resolver: Arc<AheadResolver>,
    /// The tree that streams run in.
    pub(crate) tasks: TaskTracker,
    /// The tree that handoff connections run in: they last as long as their clients.
    pub(crate) handoffs: TaskTracker,
    /// Ends every stream.
    pub(crate) stop: CancellationToken,
    /// Set on SIGTERM.
    pub(crate) draining: CancellationToken,
    /// How it was set up.
    pub(crate) setup: Arc<Setup>,
    /// What could not be had.
    pub(crate) degraded: Arc<Vec<String>>,
    /// When the daemon started.
    pub(crate) started: Instant,
    /// Deadline of a request that has none.
    pub(crate) deadline: Duration,
    /// The longest deadline a request gets.
    pub(crate) deadline_max: Duration,
    /// What loads may be for.
    pub(crate) workloads: Workloads,
}

impl Shared {
    /// Why a stream was cut: by the daemon's end, or by its client's.
    fn ended(&self) -> Failure {
        if self.stop.is_cancelled() {
            return stopping("the daemon is stopping");
        }
        client_gone()
    }

    /// A URI that the caller's domain may load, without a query and in its canonical form.
    fn loadable(&self, uri: &str) -> Result<String, Failure> {
        let (uri, domain) = (shown_uri(uri)?, &self.stages.domain);
        domain.check_uri(&uri)?;
        domain.uses(&uri);
        Ok(uri)
    }

    /// What a load did, to whoever records traces. It was answered by then.
    fn export(&self, told: Told<'_>, failed: Option<&Failure>) {
        if let Some(exporter) = &self.exporter {
            exporter.finished(told.trace, told.timeline, failed);
        }
    }
}

/// The service.
#[derive(Debug, Clone)]
pub(crate) struct Service {
    shared: Arc<Shared>,
}

/// What every request has.
#[derive(Debug, Clone, Copy)]
struct Context {
    peer: Peer,
    deadline: Deadline,
    opened: Instant,
    trace: TraceContext,
}

impl Service {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    fn context<T>(&self, method: &'static str, request: &Request<T>) -> Result<Context, Status> {
        let opened = Instant::now();
        let trace = traced::context(request.metadata()).map_err(|failure| failure.to_status())?;
        let budget = self.budget(request.metadata()).map_err(|failure| {
            metrics::request_ended(method, failure.kind().as_str(), 0.0);
            traced::named(failure, trace).to_status()
        })?;
        let peer = request.extensions().get::<Peer>().copied().ok_or_else(|| {
            Failure::new(Reason::Internal, "a request without its peer").to_status()
        })?;
        Ok(Context { peer, deadline: Deadline::after(opened, budget), opened, trace })
    }

    fn budget(&self, metadata: &MetadataMap) -> Result<Duration, Failure> {
        let longest = self.shared.deadline_max;
        let Some(value) = metadata.get("grpc-timeout") else {
            return Ok(self.shared.deadline.min(longest));
        };
        let parsed = value.to_str().ok().and_then(parse_grpc_timeout).ok_or_else(|| {
            Failure::new(Reason::BadDeadline, "grpc-timeout is not up to 8 digits and a unit")
        })?;
        if parsed.is_zero() {
            return Err(Failure::new(Reason::Deadline, "the deadline had passed on arrival"));
        }
        Ok(parsed.min(longest))
    }

    /// Answers with the messages that `work` makes before the deadline.
    fn answer<T: Send + 'static>(
        &self,
        method: &'static str,
        context: Context,
        work: impl Future<Output = Result<Vec<T>, Failure>> + Send + 'static,
    ) -> GuardedStream<T> {
        let (out, stream, gone) = stream::open(PAGE_QUEUE, &self.shared.stop);
        let shared = Arc::clone(&self.shared);
        self.shared.tasks.spawn(async move {
            let answering = async {
                let messages =
                    context.deadline.cut(work).await.map_err(|_expired| deadline())??;
                stream::send_all(&out, messages).await
            };
            let outcome = tokio::select! {
                outcome = answering => outcome,
                () = gone.cancelled() => Err(shared.ended()),
            };
            Ending { method, context }.tell(outcome, &out, &gone).await;
        });
        stream
    }

    /// Ends a unary call.
    fn unary<T>(
        method: &'static str,
        context: Context,
        outcome: Result<T, Failure>,
    ) -> Result<Response<T>, Status> {
        let code = outcome.as_ref().map_or_else(|failure| failure.kind().as_str(), |_| "OK");
        metrics::request_ended(method, code, context.opened.elapsed().as_secs_f64());
        let named = |failure| traced::named(failure, context.trace).to_status();
        outcome.map(Response::new).map_err(named)
    }
}

/// When a call has to be over that holds nothing that others wait for, and takes as long as it
/// takes: when the client says so, whatever loads may have. It ends with its client in any case.
fn long_deadline(opened: Instant, metadata: &MetadataMap) -> Deadline {
    let asked = metadata.get("grpc-timeout").and_then(|value| value.to_str().ok());
    let asked = asked.and_then(parse_grpc_timeout).unwrap_or(LONG_DEADLINE_MAX);
    Deadline::after(opened, asked.min(LONG_DEADLINE_MAX))
}

fn deadline() -> Failure {
    Failure::new(Reason::Deadline, "the deadline passed before the answer was there")
}

fn client_gone() -> Failure {
    Failure::new(Reason::DaemonUnreachable, "the client is gone")
}

/// A URI that names something, without a query, in its canonical form. What is none is refused
/// before it waits for anything: waiting does not mend it.
fn shown_uri(uri: &str) -> Result<String, Failure> {
    OriginUri::parse(uri)
        .map(|uri| uri.to_string())
        .map_err(|error| Failure::new(Reason::BadUri, error.to_string()).at_stage("resolve"))
}

#[tonic::async_trait]
impl Forebay for Service {
    type LoadStream = GuardedStream<pb::LoadResponse>;
    type PrefetchStream = GuardedStream<pb::PrefetchResponse>;
    type StatStream = GuardedStream<pb::StatResponse>;
    type ListStream = GuardedStream<pb::ListResponse>;
    type VerifyStream = GuardedStream<pb::VerifyResponse>;
    type PackStream = GuardedStream<pb::PackResponse>;
    type TraceStream = GuardedStream<pb::TraceResponse>;
    type SetAliasStream = GuardedStream<pb::SetAliasResponse>;
    type ResizeRamStream = GuardedStream<pb::ResizeRamResponse>;

    async fn load(
        &self,
        request: Request<Streaming<pb::LoadRequest>>,
    ) -> Result<Response<Self::LoadStream>, Status> {
        let context = self.context("Load", &request)?;
        if context.peer.is_remote() {
            let message = "loads are lent as memory of this machine, and not over TCP";
            let refused = Err(Failure::new(Reason::ControlOnly, message));
            return Self::unary("Load", context, refused);
        }
        let (out, stream, gone) = stream::open(stream::GRANT_QUEUE, &self.shared.stop);
        let shared = Arc::clone(&self.shared);
        let trace = traced::begin("Load", &context, request.metadata());
        let incoming = request.into_inner();
        self.shared.tasks.spawn(Arc::clone(&trace).run(async move {
            let timeline = Arc::new(Timeline::of_trace(context.opened, trace.context()));
            let meter = LoadMeter::default();
            let told = Told { timeline: &timeline, trace: &trace, meter: &meter };
            let outcome = tokio::select! {
                outcome = stream::load(&shared, context, told, incoming, &out) => outcome,
                () = gone.cancelled() => Err(shared.ended()),
            };
            let outcome = outcome.map_err(|failure| stream::with_account(failure, told.timeline));
            told.count(&outcome);
            let failed = outcome.as_ref().err().cloned();
            Ending { method: "Load", context }.tell(outcome, &out, &gone).await;
            // The client has the end of its stream before anything else is done.
            drop(out);
            shared.export(told, failed.as_ref());
        }));
        Ok(Response::new(stream))
    }

    async fn prefetch(
        &self,
        request: Request<pb::PrefetchRequest>,
    ) -> Result<Response<Self::PrefetchStream>, Status> {
        let context = self.context("Prefetch", &request)?;
        let (out, stream, gone) = stream::open(PAGE_QUEUE, &self.shared.stop);
        let shared = Arc::clone(&self.shared);
        let trace = traced::begin("Prefetch", &context, request.metadata());
        let asked = request.into_inner();
        self.shared.tasks.spawn(Arc::clone(&trace).run(async move {
            let timeline = Arc::new(Timeline::of_trace(context.opened, trace.context()));
            let meter = LoadMeter::default();
            let told = Told { timeline: &timeline, trace: &trace, meter: &meter };
            let outcome = tokio::select! {
                outcome = stream::prefetch(&shared, context, told, asked, &out) => outcome,
                () = gone.cancelled() => Err(shared.ended()),
            };
            let outcome = outcome.map_err(|failure| stream::with_account(failure, told.timeline));
            told.count(&outcome);
            let failed = outcome.as_ref().err().cloned();
            Ending { method: "Prefetch", context }.tell(outcome, &out, &gone).await;
            // The client has the end of its stream before anything else is done.
            drop(out);
            shared.export(told, failed.as_ref());
        }));
        Ok(Response::new(stream))
    }

    async fn stat(
        &self,
        request: Request<pb::StatRequest>,
    ) -> Result<Response<Self::StatStream>, Status> {
        let context = self.context("Stat", &request)?;
        let (out, stream, gone) = stream::open(PAGE_QUEUE, &self.shared.stop);
        let shared = Arc::clone(&self.shared);
        let trace = traced::begin("Stat", &context, request.metadata());
        let uri = request.into_inner().uri;
        self.shared.tasks.spawn(trace.run(async move {
            let answering = context.deadline.cut(stream::stat(&shared, context, &uri, &out));
            let outcome = tokio::select! {
                outcome = answering => outcome.map_err(|_expired| deadline()).and_then(|done| done),
                () = gone.cancelled() => Err(shared.ended()),
            };
            Ending { method: "Stat", context }.tell(outcome, &out, &gone).await;
        }));
        Ok(Response::new(stream))
    }

    async fn list(
        &self,
        request: Request<pb::ListRequest>,
    ) -> Result<Response<Self::ListStream>, Status> {
        let context = self.context("List", &request)?;
        let shared = Arc::clone(&self.shared);
        let uri = request.into_inner().uri;
        let work = async move {
            let under = match uri.is_empty() {
                true => uri,
                false => aliasing::named(&shared, &uri)?,
            };
            let checkpoints = kept::list(&shared.stages, &under).await;
            let page =
                |page: &[pb::CachedCheckpoint]| pb::ListResponse { checkpoints: page.to_vec() };
            Ok(checkpoints.chunks(LIST_PAGE).map(page).collect())
        };
        Ok(Response::new(self.answer("List", context, work)))
    }

    async fn pin(
        &self,
        request: Request<pb::PinRequest>,
    ) -> Result<Response<pb::PinResponse>, Status> {
        let context = self.context("Pin", &request)?;
        let pinned = match aliasing::named(&self.shared, &request.into_inner().uri) {
            Ok(uri) => kept::pin(&self.shared.stages, &uri).await,
            Err(failure) => Err(failure),
        };
        Self::unary("Pin", context, pinned)
    }

    async fn unpin(
        &self,
        request: Request<pb::UnpinRequest>,
    ) -> Result<Response<pb::UnpinResponse>, Status> {
        let context = self.context("Unpin", &request)?;
        let unpinned = match aliasing::named(&self.shared, &request.into_inner().uri) {
            Ok(uri) => kept::unpin(&self.shared.stages, &uri).await,
            Err(failure) => Err(failure),
        };
        Self::unary("Unpin", context, unpinned)
    }

    async fn evict(
        &self,
        request: Request<pb::EvictRequest>,
    ) -> Result<Response<pb::EvictResponse>, Status> {
        let context = self.context("Evict", &request)?;
        let pb::EvictRequest { uri, tier } = request.into_inner();
        let evicting = async {
            let uri = aliasing::named(&self.shared, &uri)?;
            kept::evict(&self.shared.stages, &uri, tier).await
        };
        let evicted = context.deadline.cut(evicting).await;
        let evicted = evicted.map_err(|_expired| deadline()).and_then(|done| done);
        Self::unary("Evict", context, evicted)
    }

    async fn verify(
        &self,
        request: Request<pb::VerifyRequest>,
    ) -> Result<Response<Self::VerifyStream>, Status> {
        let context = self.context("Verify", &request)?;
        let (out, stream, gone) = stream::open(PAGE_QUEUE, &self.shared.stop);
        let shared = Arc::clone(&self.shared);
        let trace = traced::begin("Verify", &context, request.metadata());
        let uri = request.into_inner().uri;
        self.shared.tasks.spawn(trace.run(async move {
            let checking = context.deadline.cut(async {
                let uri = aliasing::named(&shared, &uri)?;
                kept::verify(&shared.stages, &uri, &out).await
            });
            let outcome = tokio::select! {
                outcome = checking => outcome.map_err(|_expired| deadline()).and_then(|done| done),
                () = gone.cancelled() => Err(shared.ended()),
            };
            Ending { method: "Verify", context }.tell(outcome, &out, &gone).await;
        }));
        Ok(Response::new(stream))
    }

    async fn pack(
        &self,
        request: Request<pb::PackRequest>,
    ) -> Result<Response<Self::PackStream>, Status> {
        let mut context = self.context("Pack", &request)?;
        context.deadline = long_deadline(context.opened, request.metadata());
        let (out, stream, gone) = stream::open(PAGE_QUEUE, &self.shared.stop);
        let shared = Arc::clone(&self.shared);
        let trace = traced::begin("Pack", &context, request.metadata());
        let asked = request.into_inner();
        // It reads and writes every byte of a checkpoint: no call waits behind that.
        let bytes = self.shared.stages.flights.runtime().clone();
        let packing = trace.run(async move {
            let packing = context.deadline.cut(packing::pack(&shared, context, asked, &out));
            let outcome = tokio::select! {
                outcome = packing => outcome.map_err(|_expired| deadline()).and_then(|done| done),
                () = gone.cancelled() => Err(shared.ended()),
            };
            Ending { method: "Pack", context }.tell(outcome, &out, &gone).await;
        });
        self.shared.tasks.spawn_on(packing, &bytes);
        Ok(Response::new(stream))
    }

    async fn explain(
        &self,
        request: Request<pb::ExplainRequest>,
    ) -> Result<Response<pb::ExplainResponse>, Status> {
        let context = self.context("Explain", &request)?;
        let load = explain::find(&self.shared, &request.into_inner().load_id);
        Self::unary("Explain", context, load.map(|load| explain::explained(&self.shared, &load)))
    }

    async fn trace(
        &self,
        request: Request<pb::TraceRequest>,
    ) -> Result<Response<Self::TraceStream>, Status> {
        let context = self.context("Trace", &request)?;
        let load = explain::find(&self.shared, &request.into_inner().load_id);
        let work = async move { Ok(explain::traced(&*load?)) };
        Ok(Response::new(self.answer("Trace", context, work)))
    }

    async fn resize_ram(
        &self,
        request: Request<pb::ResizeRamRequest>,
    ) -> Result<Response<Self::ResizeRamStream>, Status> {
        let mut context = self.context("ResizeRam", &request)?;
        context.deadline = long_deadline(context.opened, request.metadata());
        let (out, stream, gone) = stream::open(PAGE_QUEUE, &self.shared.stop);
        let shared = Arc::clone(&self.shared);
        let asked = request.into_inner();
        self.shared.tasks.spawn(async move {
            let outcome = tokio::select! {
                outcome = resizing::resize(&shared, context, asked, &out) => outcome,
                () = gone.cancelled() => Err(shared.ended()),
            };
            Ending { method: "ResizeRam", context }.tell(outcome, &out, &gone).await;
        });
        Ok(Response::new(stream))
    }

    async fn set_alias(
        &self,
        request: Request<pb::SetAliasRequest>,
    ) -> Result<Response<Self::SetAliasStream>, Status> {
        let mut context = self.context("SetAlias", &request)?;
        context.deadline = long_deadline(context.opened, request.metadata());
        let (out, stream, gone) = stream::open(PAGE_QUEUE, &self.shared.stop);
        let shared = Arc::clone(&self.shared);
        let trace = traced::begin("SetAlias", &context, request.metadata());
        let asked = request.into_inner();
        self.shared.tasks.spawn(trace.run(async move {
            let outcome = tokio::select! {
                outcome = aliasing::set_alias(&shared, context, asked, &out) => outcome,
                () = gone.cancelled() => Err(shared.ended()),
            };
            Ending { method: "SetAlias", context }.tell(outcome, &out, &gone).await;
        }));
        Ok(Response::new(stream))
    }

    async fn rollback(
        &self,
        request: Request<pb::RollbackRequest>,
    ) -> Result<Response<pb::RollbackResponse>, Status> {
        let context = self.context("Rollback", &request)?;
        let rolling = aliasing::rollback(&self.shared, context, request.into_inner());
        Self::unary("Rollback", context, rolling.await)
    }

    async fn list_aliases(
        &self,
        request: Request<pb::ListAliasesRequest>,
    ) -> Result<Response<pb::ListAliasesResponse>, Status> {
        let context = self.context("ListAliases", &request)?;
        let listed = aliasing::list(&self.shared, &request.into_inner().name);
        Self::unary("ListAliases", context, listed)
    }

    async fn remove_alias(
        &self,
        request: Request<pb::RemoveAliasRequest>,
    ) -> Result<Response<pb::RemoveAliasResponse>, Status> {
        let context = self.context("RemoveAlias", &request)?;
        let removing = aliasing::remove(&self.shared, context, request.into_inner());
        Self::unary("RemoveAlias", context, removing.await)
    }

    async fn status(
        &self,
        request: Request<pb::StatusRequest>,
    ) -> Result<Response<pb::StatusResponse>, Status> {
        let context = self.context("Status", &request)?;
        Self::unary("Status", context, Ok(status::now(&self.shared)))
    }

    async fn capacity(
        &self,
        request: Request<pb::CapacityRequest>,
    ) -> Result<Response<pb::CapacityResponse>, Status> {
        let context = self.context("Capacity", &request)?;
        Self::unary("Capacity", context, Ok(capacity::now(&self.shared)))
    }

    async fn doctor(
        &self,
        request: Request<pb::DoctorRequest>,
    ) -> Result<Response<pb::DoctorResponse>, Status> {
        let context = self.context("Doctor", &request)?;
        let looking = context.deadline.cut(doctor::look(&self.shared));
        Self::unary("Doctor", context, looking.await.map_err(|_expired| deadline()))
    }
}
