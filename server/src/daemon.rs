//! Builds the daemon, serves, and takes it down again.
//!
//! Calls and bytes have a runtime each: a call that is refused shall hear of it at once, and must not
//! wait its turn behind bodies that are taken in. `forebay-calls` has connections of clients,
//! admission, loads and what they hand over, and background work; `forebay-bytes` has flights, packs,
//! connections to origins, and the looks at the machine that come by the clock, which tell what bytes
//! wait for.
//!
//! Start: sockets' folder and its lock, cache directory, RAM tier (its first segment; a task has
//! the rest made), stages, sockets, then one log line and `READY=1`. Nothing touches an origin
//! before a load does. What cannot be had without being essential degrades the daemon and is said
//! in the log, in `Status` and in a metric.
//!
//! Stop: SIGTERM or SIGINT turns health to NOT_SERVING, refuses new loads and waits for those that
//! run, up to the drain limit; a second signal ends at once. Every task is in one of two trackers.
//! Threads are joined, but for those that a disk may hold up: the ones that call it, the NVMe
//! tier's background and its recovery. They end by themselves, or with the process.

mod cells;
mod lag;
mod place;
mod tiers;
mod vitals;

use std::process::ExitCode;
use std::sync::Arc;

use clap::Parser;
use forebay_io::SysfsTopology;
use forebay_origin::{AheadResolver, DnsSettings, NoEvidence, Origins, Resolve, SocketEvidence};
use forebay_proto::ErrorKind;
use forebay_proto::pb::forebay_server::ForebayServer;
use tokio::net::TcpListener;
use tokio::runtime::{Handle, Runtime};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::service::Routes;
use tonic_health::ServingStatus;
use tonic_health::server::{HealthReporter, health_reporter};

use crate::alias::{AliasFiles, Aliases};
use crate::config::{ConfigError, Flags, Settings};
use crate::cpu::NodeWorkers;
use crate::domain::Domains;
use crate::evidence::{CachePlace, Evidence, KernelEvidence, ProcEvidence, Roots};
use crate::load::Stages;
use crate::metrics::{self, Metrics};
use crate::numa::Numa;
use crate::otlp::Exporter;
use crate::pack::Packer;
use crate::rpc::serve::{self, Door, Face};
use crate::rpc::tls::Tls;
use crate::rpc::{Service, Shared};
use cells::{Common, Parts};
use place::{CacheDir, Places, notify_ready};
use vitals::DaemonVitals;

/// What a client message may have at most: releases and opens are small.
const MESSAGE_BYTES_MAX: usize = 1 << 20;

/// The health name beside the empty one.
const SERVICE_NAME: &str = "forebay.v1.Forebay";

/// Why the daemon does not run.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// The settings cannot be used.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Another daemon serves there.
    #[error("{path} is served already: stop that daemon or give another --listen")]
    Taken {
        /// The socket.
        path: String,
    },
    /// A socket, folder or thread cannot be had.
    #[error("{what}: {source}")]
    System {
        /// What was tried.
        what: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// Not even the first segment of the RAM tier can be had.
    #[error("the RAM tier cannot be made: {0}")]
    Ram(#[from] forebay_shm::ShmError),
    /// Something inside is inconsistent.
    #[error("{0}")]
    Internal(String),
}

impl DaemonError {
    fn system(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        let what = what.into();
        move |source| Self::System { what, source }
    }

    /// The exit code, as those of the `forebay` command.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Config(_) => ErrorKind::InvalidArgument,
            Self::Taken { .. } => ErrorKind::FailedPrecondition,
            Self::System { source, .. }
                if source.kind() == std::io::ErrorKind::PermissionDenied =>
            {
                ErrorKind::PermissionDenied
            }
            Self::System { .. } => ErrorKind::Unavailable,
            Self::Ram(_) => ErrorKind::ResourceExhausted,
            Self::Internal(_) => ErrorKind::Internal,
        }
        .exit_code()
    }
}

/// `forebayd`, from its arguments to its exit code.
#[must_use]
pub fn main(args: impl IntoIterator<Item = std::ffi::OsString>) -> ExitCode {
    let flags = match Flags::try_parse_from(args) {
        Ok(flags) => flags,
        Err(error) => {
            // clap's own text goes where it belongs; a closed stream has no reader to tell.
            drop(error.print());
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
        }
    };
    match run(&flags) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain(&error);
            ExitCode::from(error.exit_code())
        }
    }
}

#[expect(clippy::print_stderr, reason = "the one sentence that a failed start owes its caller")]
fn complain(error: &DaemonError) {
    eprintln!("forebayd: {error}");
}

#[expect(clippy::print_stdout, reason = "--check-config prints the settings")]
fn run(flags: &Flags) -> Result<(), DaemonError> {
    let settings = Settings::load(flags)?;
    if flags.check_config {
        print!("{settings}");
        return Ok(());
    }
    crate::log::start(settings.log(), settings.log_level);
    crate::remains::limit(settings.core_dumps);
    let bytes = runtime("forebay-bytes")?;
    let calls = runtime("forebay-calls")?;
    let serving = async { Daemon::start(settings, bytes.handle()).await?.until_stopped().await };
    let ran = calls.block_on(serving);
    // What is left are tasks that ignored their end; they do not hold up the exit.
    calls.shutdown_background();
    bytes.shutdown_background();
    ran
}

fn runtime(name: &str) -> Result<Runtime, DaemonError> {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .thread_name(name)
        .build()
        .map_err(DaemonError::system(format!("start the runtime {name}")))
}

/// A daemon that serves.
struct Daemon {
    settings: Settings,
    /// One per domain.
    stages: Vec<Arc<Stages>>,
    origins: Arc<Origins>,
    places: Places,
    _cache: Option<CacheDir>,
    nvme_tasks: TaskTracker,
    health: HealthReporter,
    /// Calls.
    streams: TaskTracker,
    /// Fetches.
    flights: TaskTracker,
    /// Listeners.
    listeners: JoinSet<()>,
    draining: CancellationToken,
    closing: CancellationToken,
    stop: CancellationToken,
    signals: Signals,
}

impl Daemon {
    async fn start(settings: Settings, bytes: &Handle) -> Result<Self, DaemonError> {
        let signals = Signals::listen()?;
        let mut degraded = Vec::new();
        let descriptors = place::raise_descriptor_limit();
        let domains = Domains::new(&settings.domains);
        let mut places = Places::take(&settings.listen.sockets, &domains)?;
        let recorder = Metrics::install()
            .map_err(|error| DaemonError::Internal(format!("the metrics recorder: {error}")))?;
        let (records, cache) = tiers::open_cache(&settings, &mut degraded)?;
        let (numa, workers) = survey(&mut degraded)?;
        let rams = tiers::make_rams(&settings, &domains, descriptors, numa.plan())?;
        let (resolver, origins) = open_origins(&settings, bytes)?;
        let (flights, nvme_tasks) = (TaskTracker::new(), TaskTracker::new());
        let under = (cache.as_ref(), rams.as_slice(), &workers, &nvme_tasks);
        let (nvme, named) = tiers::open_nvme(&settings, under, &mut degraded);
        let flying = (&flights, bytes);
        let parts = Parts { origins: &origins, records, flying, rams, nvme, numa, workers };
        let evidence = open_evidence(&settings, cache.as_ref());
        crate::remains::close(settings.core_dumps);
        let stages = cells::build_stages(&settings, &domains, parts, evidence)?;
        let closing = CancellationToken::new();
        let mut listeners = JoinSet::new();
        let exporter = exporter(&settings, &mut listeners, &closing)?;
        let common = Common {
            aliases: open_aliases(named, &stages)?,
            origins: Arc::clone(&origins),
            packer: Arc::new(packer(&origins)?),
            exporter: exporter.map(Arc::new),
            resolver,
            degraded: Arc::new(degraded),
            tasks: TaskTracker::new(),
            handoffs: TaskTracker::new(),
            stop: CancellationToken::new(),
            draining: CancellationToken::new(),
        };
        common.degraded.iter().for_each(|what| tracing::warn!("degraded: {what}"));
        let shared = cells::share(&settings, &domains, &stages, &common)?;
        let (health, health_service) = health_reporter();
        let routes: Result<Arc<[Routes]>, DaemonError> =
            shared.iter().map(|shared| routes(shared, health_service.clone())).collect();
        let face = Face { routes: routes?, domains };
        watch((&mut listeners, bytes), &shared, &recorder, &closing);
        places.serve(&mut listeners, &shared, &face, &closing)?;
        let tcp_at = serve_tcp(&settings, &mut listeners, &face, &closing).await?;
        let metrics_at = serve_metrics(&settings, &mut listeners, &shared, recorder).await?;
        set_health(&health, ServingStatus::Serving).await;
        let listen = [places.shown()].into_iter().chain(tcp_at).collect::<Vec<_>>().join(",");
        tell_ready(&settings, &listen, metrics_at.as_deref());
        Ok(Self {
            stages,
            origins,
            places,
            _cache: cache,
            nvme_tasks,
            health,
            streams: common.tasks,
            flights,
            listeners,
            draining: common.draining,
            closing,
            stop: common.stop,
            signals,
            settings,
        })
    }

    /// Serves until a signal, then drains.
    async fn until_stopped(mut self) -> Result<(), DaemonError> {
        self.signals.next().await;
        tracing::info!(drain = ?self.settings.drain, "stopping");
        self.draining.cancel();
        set_health(&self.health, ServingStatus::NotServing).await;
        self.stages.iter().for_each(|stages| stages.admission.drain());
        self.streams.close();
        let limit = Instant::now() + self.settings.drain;
        tokio::select! {
            () = self.streams.wait() => {}
            () = tokio::time::sleep_until(limit) => {
                tracing::warn!(streams = self.streams.len(), "the drain limit has passed");
            }
            () = self.signals.next() => {
                tracing::warn!(streams = self.streams.len(), "a second signal: ending at once");
                return self.take_down(Instant::now()).await;
            }
        }
        self.take_down(limit).await
    }

    /// What waits to be stored has until `limit` for that, or until another signal.
    async fn take_down(mut self, limit: Instant) -> Result<(), DaemonError> {
        self.stop.cancel();
        self.streams.wait().await;
        // Connections send what their streams ended with; a client that does not read is cut.
        self.closing.cancel();
        let ended = async { while self.listeners.join_next().await.is_some() {} };
        if tokio::time::timeout(place::FAREWELL, ended).await.is_err() {
            self.listeners.shutdown().await;
        }
        self.flights.close();
        self.flights.wait().await;
        // Uploads that were cut off are cleared away, as far as their stores answer.
        if tokio::time::timeout(place::FAREWELL, self.origins.cleared()).await.is_err() {
            tracing::warn!("parts of uploads that were given up are left to their stores");
        }
        if let Some(nvme) = self.stages.iter().find_map(|stages| stages.nvme.as_ref()) {
            let hurry = async { self.signals.next().await };
            nvme.close(limit, hurry).await;
        }
        self.nvme_tasks.close();
        if tokio::time::timeout(place::FAREWELL, self.nvme_tasks.wait()).await.is_err() {
            tracing::warn!("the disk of the NVMe tier does not answer; its tasks are left behind");
        }
        drop(self.places);
        tracing::info!("stopped");
        Ok(())
    }
}

/// The machine's NUMA nodes, and the workers of each.
fn survey(degraded: &mut Vec<String>) -> Result<(Arc<Numa>, Arc<NodeWorkers>), DaemonError> {
    let numa = Numa::survey(Arc::new(SysfsTopology::system()));
    degraded.extend_from_slice(numa.plan().degraded());
    let workers = NodeWorkers::start("forebay", Arc::clone(numa.plan()))
        .map_err(DaemonError::system("start the workers of each node"))?;
    Ok((Arc::new(numa), Arc::new(workers)))
}

/// The looks at this machine, and at the disk below the cache directory.
fn open_evidence(settings: &Settings, cache: Option<&CacheDir>) -> Arc<Evidence> {
    if !settings.evidence {
        return Arc::new(Evidence::off());
    }
    let place = cache.and_then(|cache| CachePlace::of(cache.path()).ok());
    let host = ProcEvidence::open(Roots::system(), place.as_ref());
    Arc::new(Evidence::new(Arc::new(host)))
}

/// The names that were kept.
fn open_aliases(named: AliasFiles, stages: &[Arc<Stages>]) -> Result<Arc<Aliases>, DaemonError> {
    let first = stages.first().ok_or_else(|| DaemonError::Internal("no domain".to_owned()))?;
    Aliases::open(named, first.nvme.as_ref(), &first.resolver)
        .map_err(DaemonError::system("start the thread that keeps aliases"))
}

/// What writes checkpoints anew.
fn packer(origins: &Arc<Origins>) -> Result<Packer, DaemonError> {
    Packer::start(Arc::clone(origins)).map_err(DaemonError::system("start the pack workers"))
}

/// Where spans of finished loads go, if anywhere.
fn exporter(
    settings: &Settings,
    tasks: &mut JoinSet<()>,
    closing: &CancellationToken,
) -> Result<Option<Exporter>, DaemonError> {
    let exporter = settings.otlp_endpoint.as_deref();
    let exporter = exporter.map(|url| Exporter::start(url, tasks, closing));
    exporter.transpose().map_err(DaemonError::Internal)
}

/// One line, and a message to who waits for it.
fn tell_ready(settings: &Settings, listen: &str, metrics: Option<&str>) {
    tracing::info!(
        listen,
        metrics = metrics.unwrap_or("off"),
        ram_bytes = settings.ram_bytes,
        version = env!("CARGO_PKG_VERSION"),
        "ready"
    );
    notify_ready(settings.notify_socket.as_deref());
}

/// The object stores, and the resolver under them, which begins to look up what is configured.
/// Connections run on `bytes`, what asks for them anywhere.
fn open_origins(
    settings: &Settings,
    bytes: &Handle,
) -> Result<(Arc<AheadResolver>, Arc<Origins>), DaemonError> {
    let resolver = Arc::new(AheadResolver::start(DnsSettings::default(), &Handle::current()));
    resolver.prime(settings.origin_hosts().iter().map(String::as_str));
    let shared: Arc<dyn Resolve> = Arc::clone(&resolver) as _;
    let sockets: Arc<dyn SocketEvidence> = match settings.evidence {
        true => Arc::new(KernelEvidence),
        false => Arc::new(NoEvidence),
    };
    let origins = Origins::new(settings.origins.clone(), shared)
        .map_err(|error| DaemonError::Internal(error.to_string()))?
        .with_evidence(sockets)
        .on(bytes.clone());
    Ok((resolver, Arc::new(origins)))
}

fn routes<H>(shared: &Arc<Shared>, health: H) -> Result<Routes, DaemonError>
where
    H: tower::Service<
            http::Request<tonic::body::Body>,
            Response = http::Response<tonic::body::Body>,
            Error = std::convert::Infallible,
        > + tonic::server::NamedService
        + Clone
        + Send
        + Sync
        + 'static,
    H::Future: Send + 'static,
{
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(forebay_proto::DESCRIPTOR_SET)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .build_v1()
        .map_err(|error| DaemonError::Internal(format!("reflection: {error}")))?;
    let forebay = ForebayServer::new(Service::new(Arc::clone(shared)))
        .max_decoding_message_size(MESSAGE_BYTES_MAX);
    Ok(Routes::new(forebay).add_service(health).add_service(reflection).prepare())
}

async fn set_health(health: &HealthReporter, status: ServingStatus) {
    health.set_service_status("", status).await;
    health.set_service_status(SERVICE_NAME, status).await;
}

/// Serves the HTTP endpoint; returns its address.
async fn serve_metrics(
    settings: &Settings,
    listeners: &mut JoinSet<()>,
    shared: &[Arc<Shared>],
    recorder: Metrics,
) -> Result<Option<String>, DaemonError> {
    let Some(address) = settings.metrics else { return Ok(None) };
    metrics::expect(&settings.workloads);
    let what = format!("serve metrics on {address}");
    let listener = TcpListener::bind(address).await.map_err(DaemonError::system(what))?;
    let bound = listener.local_addr().map_err(DaemonError::system("read the metrics address"))?;
    let Some(vitals) = DaemonVitals::new(shared.to_vec(), recorder) else { return Ok(None) };
    let vitals = Arc::new(vitals);
    listeners.spawn(async move {
        let closing = vitals.closing();
        tokio::select! {
            () = crate::http::serve(listener, vitals) => {}
            () = closing.cancelled() => {}
        }
    });
    Ok(Some(bound.to_string()))
}

/// The tasks that live until the end: they give the RAM tier its size, measure how late the runtimes
/// are, look at the machine, sort what was measured, and have the rules of aliases act.
fn watch(
    (tasks, bytes): (&mut JoinSet<()>, &Handle),
    shared: &[Arc<Shared>],
    recorder: &Metrics,
    closing: &CancellationToken,
) {
    for shared in shared {
        tasks.spawn(Arc::clone(&shared.resizer).run(shared.stop.clone()));
    }
    let Some(first) = shared.first() else { return };
    let (evidence, closing) = (Arc::clone(&first.stages.evidence), closing.clone());
    let recorder = recorder.clone();
    let (lateness, aliases) = (Arc::clone(&first.setup.lateness), Arc::clone(&first.aliases));
    let closed = closing.clone();
    // A look that comes late says what bytes wait for, and no call waits for a look.
    let of_bytes = async move {
        tokio::select! {
            () = lag::watch(|late| metrics::runtime_lag("bytes", late)) => {}
            () = evidence.watch() => {}
            () = closed.cancelled() => {}
        }
    };
    tasks.spawn_on(of_bytes, bytes);
    tasks.spawn(async move {
        tokio::select! {
            () = lag::watch(|late| {
                metrics::runtime_lag("calls", late);
                lateness.saw(late);
            }) => {}
            () = recorder.keep_up() => {}
            () = aliases.watch() => {}
            () = closing.cancelled() => {}
        }
    });
}

/// Serves control over TCP; returns the addresses.
async fn serve_tcp(
    settings: &Settings,
    listeners: &mut JoinSet<()>,
    face: &Face,
    closing: &CancellationToken,
) -> Result<Vec<String>, DaemonError> {
    let listen = &settings.listen;
    if listen.is_plain() {
        tracing::warn!("control over TCP is open to every user of this machine: it has no TLS");
    }
    let tls = listen.tls.as_ref().map(Tls::open).transpose();
    let tls = tls.map_err(DaemonError::system("TLS"))?;
    let mut bound = Vec::new();
    for address in &listen.tcp {
        let what = || format!("listen on tcp://{address}");
        let listener = TcpListener::bind(address).await.map_err(DaemonError::system(what()))?;
        let at = listener.local_addr().map_err(DaemonError::system(what()))?;
        bound.push(format!("tcp://{at}"));
        let door = Door::Tcp(listener, tls.clone());
        listeners.spawn(serve::serve(door, face.clone(), closing.clone()));
    }
    Ok(bound)
}

/// SIGTERM and SIGINT.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn listen() -> Result<Self, DaemonError> {
        let listen = |kind| signal(kind).map_err(DaemonError::system("listen for signals"));
        Ok(Self {
            terminate: listen(SignalKind::terminate())?,
            interrupt: listen(SignalKind::interrupt())?,
        })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}
