//! The gRPC face: the only place, with its sub-modules, that sees tonic.
//!
//! A method checks its input, gives the request a deadline, and hands it to `load` or reads the
//! state. Deadlines are parsed and enforced here and in `load`: tonic's own handling covers response
//! heads only. A stream runs as a task of the daemon's tree and ends with it: when the client drops
//! its response stream, a guard in it cancels the task.

mod convert;
pub(crate) mod serve;
mod stream;

use std::sync::Arc;
use std::time::Duration;

use forebay_origin::{OriginUri, Origins};
use forebay_proto::pb::forebay_server::Forebay;
use forebay_proto::{Failure, Reason, pb};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::metadata::MetadataMap;
use tonic::{Request, Response, Status, Streaming};

use crate::deadline::{Deadline, parse_grpc_timeout};
use crate::handoff::{Peer, Sessions};
use crate::load::Stages;
use crate::metrics;
use crate::plan::{Selection, plan};
use crate::timeline::Timeline;
use stream::{Ending, GuardedStream, PAGE_QUEUE};

/// Checkpoints of one `List` message.
const LIST_PAGE: usize = 100;

/// What the methods need of the daemon.
#[derive(Debug, Clone)]
pub(crate) struct Shared {
    /// The stages.
    pub(crate) stages: Arc<Stages>,
    /// Client processes.
    pub(crate) sessions: Arc<Sessions>,
    /// Object stores, for their statistics.
    pub(crate) origins: Arc<Origins>,
    /// The tree that streams run in.
    pub(crate) tasks: TaskTracker,
    /// The tree that handoff connections run in: they last as long as their clients.
    pub(crate) handoffs: TaskTracker,
    /// Ends every stream.
    pub(crate) stop: CancellationToken,
    /// Set on SIGTERM.
    pub(crate) draining: CancellationToken,
    /// What could not be had.
    pub(crate) degraded: Arc<Vec<String>>,
    /// When the daemon started.
    pub(crate) started: Instant,
    /// Deadline of a request that has none.
    pub(crate) deadline: Duration,
    /// The longest deadline a request gets.
    pub(crate) deadline_max: Duration,
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
}

impl Service {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    fn context<T>(&self, request: &Request<T>) -> Result<Context, Status> {
        let opened = Instant::now();
        let budget = self.budget(request.metadata()).map_err(|failure| failure.to_status())?;
        let peer = request.extensions().get::<Peer>().copied().ok_or_else(|| {
            Failure::new(Reason::Internal, "a request without its peer").to_status()
        })?;
        Ok(Context { peer, deadline: Deadline::after(opened, budget), opened })
    }

    fn budget(&self, metadata: &MetadataMap) -> Result<Duration, Failure> {
        let Some(value) = metadata.get("grpc-timeout") else { return Ok(self.shared.deadline) };
        let parsed = value.to_str().ok().and_then(parse_grpc_timeout).ok_or_else(|| {
            Failure::new(Reason::BadDeadline, "grpc-timeout is not up to 8 digits and a unit")
        })?;
        if parsed.is_zero() {
            return Err(Failure::new(Reason::Deadline, "the deadline had passed on arrival"));
        }
        Ok(parsed.min(self.shared.deadline_max))
    }

    /// Resolves a URI under a permit of its own, and says what is cached of it.
    async fn stat_uri(&self, uri: &str) -> Result<Vec<pb::StatResponse>, Failure> {
        let stages = &self.shared.stages;
        let permit = stages.admission.look_up()?;
        let manifest = Arc::new(stages.resolver.resolve(&permit, uri).await?);
        let plan = plan(&manifest, &Selection::default(), stages.chunk_bytes)?;
        let mut cached = vec![0; manifest.objects().len()];
        let resident = plan.chunks().iter().filter(|chunk| stages.ram.holds(&chunk.key));
        for extent in resident.flat_map(|chunk| &chunk.extents) {
            cached[extent.object] += extent.bytes;
        }
        let summary = pb::StatSummary {
            uri: manifest.uri().to_owned(),
            revision: manifest.revision().to_string(),
            object_count: manifest.objects().len() as u64,
            tensor_count: manifest.tensors().len() as u64,
            bytes: manifest.bytes(),
            cached: Some(convert::in_tiers(cached.iter().sum(), manifest.bytes())),
        };
        let event = |event| pb::StatResponse { event: Some(event) };
        let pages = convert::pages(&manifest, &cached).map(pb::stat_response::Event::Page);
        let summary = std::iter::once(pb::stat_response::Event::Summary(summary));
        Ok(summary.chain(pages).map(event).collect())
    }

    fn status_now(&self) -> pb::StatusResponse {
        let now = Instant::now();
        let Shared { stages, origins, .. } = &*self.shared;
        let queues = stages.admission.lanes(now).map(|lane| pb::QueueStatus {
            name: format!("admission.{}", lane.lane.as_str()),
            depth: lane.depth as u64,
            limit: lane.limit as u64,
            oldest_wait_seconds: lane.oldest_wait.as_secs_f64(),
        });
        let running = stages.loads.running();
        let origins = origins.stats().into_iter().map(|stats| pb::OriginStatus {
            origin: stats.origin,
            requests: stats.requests,
            errors: stats.errors,
            bytes: stats.bytes,
            inflight: stats.inflight,
        });
        let degraded = self.shared.degraded.iter().cloned();
        pb::StatusResponse {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            uptime_seconds: (now - self.shared.started).as_secs_f64(),
            draining: self.shared.draining.is_cancelled(),
            ram: Some(convert::ram(stages.ram.sizes())),
            queues: queues.into(),
            loads: running.iter().map(|load| convert::load(load, now - load.opened)).collect(),
            origins: origins.collect(),
            degraded: degraded.chain(stages.ram.pool().degraded()).collect(),
        }
    }

    /// Answers with the messages that `work` makes before the deadline.
    fn answer<T: Send + 'static>(
        &self,
        method: &'static str,
        context: Context,
        work: impl Future<Output = Result<Vec<T>, Failure>> + Send + 'static,
    ) -> GuardedStream<T> {
        let (out, stream, gone) = stream::open(PAGE_QUEUE, &self.shared.stop);
        self.shared.tasks.spawn(async move {
            let answering = async {
                let messages =
                    context.deadline.cut(work).await.map_err(|_expired| deadline())??;
                stream::send_all(&out, messages).await
            };
            let outcome = tokio::select! {
                outcome = answering => outcome,
                () = gone.cancelled() => Err(client_gone()),
            };
            Ending { method, context: context.opened }.tell(outcome, &out, &gone).await;
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
        outcome.map(Response::new).map_err(|failure| failure.to_status())
    }
}

fn deadline() -> Failure {
    Failure::new(Reason::Deadline, "the deadline passed before the answer was there")
}

fn client_gone() -> Failure {
    Failure::new(Reason::DaemonUnreachable, "the client is gone")
}

/// A URI without a query, in its canonical form.
fn canonical(uri: &str) -> Result<String, Failure> {
    if uri.is_empty() {
        return Ok(String::new());
    }
    let uri = OriginUri::parse(uri);
    uri.map(|uri| uri.to_string()).map_err(|e| Failure::new(Reason::BadUri, e.to_string()))
}

#[tonic::async_trait]
impl Forebay for Service {
    type LoadStream = GuardedStream<pb::LoadResponse>;
    type PrefetchStream = GuardedStream<pb::PrefetchResponse>;
    type StatStream = GuardedStream<pb::StatResponse>;
    type ListStream = GuardedStream<pb::ListResponse>;

    async fn load(
        &self,
        request: Request<Streaming<pb::LoadRequest>>,
    ) -> Result<Response<Self::LoadStream>, Status> {
        let context = self.context(&request)?;
        let (out, stream, gone) = stream::open(stream::GRANT_QUEUE, &self.shared.stop);
        let shared = Arc::clone(&self.shared);
        let incoming = request.into_inner();
        self.shared.tasks.spawn(async move {
            let timeline = Timeline::new(context.opened);
            let outcome = tokio::select! {
                outcome = stream::load(&shared, context, &timeline, incoming, &out) => outcome,
                () = gone.cancelled() => Err(client_gone()),
            };
            let outcome = outcome.map_err(|failure| stream::with_stages(failure, &timeline));
            Ending { method: "Load", context: context.opened }.tell(outcome, &out, &gone).await;
        });
        Ok(Response::new(stream))
    }

    async fn prefetch(
        &self,
        request: Request<pb::PrefetchRequest>,
    ) -> Result<Response<Self::PrefetchStream>, Status> {
        let context = self.context(&request)?;
        let (out, stream, gone) = stream::open(PAGE_QUEUE, &self.shared.stop);
        let shared = Arc::clone(&self.shared);
        let asked = request.into_inner();
        self.shared.tasks.spawn(async move {
            let timeline = Timeline::new(context.opened);
            let outcome = tokio::select! {
                outcome = stream::prefetch(&shared, context, &timeline, asked, &out) => outcome,
                () = gone.cancelled() => Err(client_gone()),
            };
            let outcome = outcome.map_err(|failure| stream::with_stages(failure, &timeline));
            Ending { method: "Prefetch", context: context.opened }.tell(outcome, &out, &gone).await;
        });
        Ok(Response::new(stream))
    }

    async fn stat(
        &self,
        request: Request<pb::StatRequest>,
    ) -> Result<Response<Self::StatStream>, Status> {
        let context = self.context(&request)?;
        let service = self.clone();
        let uri = request.into_inner().uri;
        let work = async move { service.stat_uri(&uri).await };
        Ok(Response::new(self.answer("Stat", context, work)))
    }

    async fn list(
        &self,
        request: Request<pb::ListRequest>,
    ) -> Result<Response<Self::ListStream>, Status> {
        let context = self.context(&request)?;
        let stages = Arc::clone(&self.shared.stages);
        let uri = request.into_inner().uri;
        let work = async move {
            let listed = stages.ram.list(&canonical(&uri)?, Instant::now());
            let checkpoints: Vec<_> = listed.iter().map(convert::checkpoint).collect();
            let page =
                |page: &[pb::CachedCheckpoint]| pb::ListResponse { checkpoints: page.to_vec() };
            Ok(checkpoints.chunks(LIST_PAGE).map(page).collect())
        };
        Ok(Response::new(self.answer("List", context, work)))
    }

    async fn evict(
        &self,
        request: Request<pb::EvictRequest>,
    ) -> Result<Response<pb::EvictResponse>, Status> {
        let context = self.context(&request)?;
        let uri = request.into_inner().uri;
        let outcome = if uri.is_empty() {
            Err(Failure::new(Reason::BadUri, "evict needs a URI"))
        } else {
            canonical(&uri).map(|uri| self.shared.stages.ram.evict_uri(&uri))
        };
        let response = outcome.map(|evicted| pb::EvictResponse {
            checkpoints: evicted.checkpoints,
            freed_bytes: evicted.freed_bytes,
            leased_bytes: evicted.leased_bytes,
        });
        Self::unary("Evict", context, response)
    }

    async fn status(
        &self,
        request: Request<pb::StatusRequest>,
    ) -> Result<Response<pb::StatusResponse>, Status> {
        let context = self.context(&request)?;
        Self::unary("Status", context, Ok(self.status_now()))
    }
}
