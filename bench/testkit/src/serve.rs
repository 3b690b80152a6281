//! The machinery under every fake origin: a listener, its connections, and the gate before the
//! backend.
//!
//! A server runs on a thread of its own with its own runtime, so that it neither shares the clock
//! of a test that pauses time nor takes turns with the code under test. The thread owns the
//! listener and a `JoinSet` of connections; dropping the `Server` tells it to stop and joins it,
//! and with its runtime every connection is gone.
//!
//! The gate sees each request before the backend does: it opens a record, picks the fault, waits
//! the first-byte latency, lets the backend answer, and bends the answer as the fault says.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use http::{Request, Response};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::runtime::Builder;
use tokio::sync::oneshot;
use tokio::task::JoinSet;

use crate::content::as_u64;
use crate::contents::Contents;
use crate::fault::FaultBook;
use crate::flow::{Flow, Payload};
use crate::head;
use crate::ledger::{Ledger, Op, Target};
use crate::link::{Link, Socket};
use crate::pace::Pace;
use crate::plan::{Before, Bend, Plan, Refusal, Script};
use crate::random::mix;

const TRACEPARENT: http::HeaderName = http::HeaderName::from_static("traceparent");

/// Where a fake origin listens and how fast it is.
#[derive(Clone, Debug)]
pub struct LinkOptions {
    /// The address; port 0 takes a free one.
    pub listen: SocketAddr,
    /// Threads that serve; one moves more than a GiB per second.
    pub threads: usize,
    /// The speed limit of each connection's bodies.
    pub bytes_per_second: Option<u64>,
    /// The speed limit of all bodies together.
    pub total_bytes_per_second: Option<u64>,
    /// Time between a request and its response.
    pub first_byte: Duration,
    /// At most so much more time, drawn anew for each request.
    pub jitter: Duration,
    /// Decides the draws: the how manieth request is late by how much.
    pub seed: u64,
}

impl LinkOptions {
    /// The time between the `request`th request, from 0, and its response.
    pub(crate) fn latency(&self, request: u64) -> Duration {
        let most = u64::try_from(self.jitter.as_nanos()).unwrap_or(u64::MAX);
        let late = mix(self.seed ^ mix(request)) % most.saturating_add(1).max(1);
        self.first_byte + Duration::from_nanos(late)
    }
}

impl Default for LinkOptions {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            threads: 1,
            bytes_per_second: None,
            total_bytes_per_second: None,
            first_byte: Duration::ZERO,
            jitter: Duration::ZERO,
            seed: 0,
        }
    }
}

/// Connections of a fake origin.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Connections {
    /// Open now.
    pub open: u64,
    /// The most that were open at once.
    pub peak: u64,
    /// All that were accepted.
    pub accepted: u64,
}

/// What speaks one protocol over the contents.
#[async_trait]
pub(crate) trait Backend: Send + Sync + 'static {
    /// What a request is about, read from its head alone.
    fn locate(&self, request: &http::request::Parts) -> (Op, String, String);

    /// The right answer; `Bend` in the request's extensions tells how to read the object.
    async fn answer(&self, request: Request<Incoming>) -> Response<Payload>;

    /// An error in the words of the protocol.
    fn refuse(&self, refusal: &Refusal, key: &str) -> Response<Payload>;
}

/// What an origin's handle and its server share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) contents: Contents,
    pub(crate) faults: Arc<FaultBook>,
    pub(crate) ledger: Ledger,
    link: LinkOptions,
    pace: Arc<Pace>,
    open: AtomicU64,
    peak: AtomicU64,
    accepted: AtomicU64,
    requests: AtomicU64,
}

/// A running server; dropping it stops it.
#[derive(Debug)]
pub(crate) struct Server {
    address: SocketAddr,
    shared: Arc<Shared>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Server {
    /// Starts serving `contents` through `backend`.
    pub(crate) async fn start(
        name: &str,
        link: LinkOptions,
        contents: Contents,
        backend: Arc<dyn Backend>,
    ) -> io::Result<Self> {
        let listener = TcpListener::bind(link.listen)?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let threads = link.threads.max(1);
        let pace = Arc::new(Pace::new(link.total_bytes_per_second));
        let shared = Arc::new(Shared {
            contents,
            faults: Arc::default(),
            ledger: Ledger::default(),
            link,
            pace,
            open: AtomicU64::new(0),
            peak: AtomicU64::new(0),
            accepted: AtomicU64::new(0),
            requests: AtomicU64::new(0),
        });
        let gate = Arc::new(Gate { shared: Arc::clone(&shared), backend });
        let runtime = match threads {
            1 => Builder::new_current_thread().enable_all().build()?,
            threads => Builder::new_multi_thread().worker_threads(threads).enable_all().build()?,
        };
        let (stop, stopped) = oneshot::channel();
        let (ready, started) = oneshot::channel();
        let thread =
            std::thread::Builder::new().name(format!("testkit-{name}")).spawn(move || {
                runtime.block_on(accept(listener, gate, ready, stopped));
            })?;
        started.await.map_err(io::Error::other)??;
        Ok(Self { address, shared, stop: Some(stop), thread: Some(thread) })
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(crate) fn shared(&self) -> &Shared {
        &self.shared
    }
}

impl Shared {
    pub(crate) fn connections(&self) -> Connections {
        Connections {
            open: self.open.load(Ordering::Acquire),
            peak: self.peak.load(Ordering::Acquire),
            accepted: self.accepted.load(Ordering::Acquire),
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // A thread that has already ended has nothing to be told, and a panic in it was reported.
        self.stop.take().map(|stop| stop.send(()));
        self.thread.take().map(std::thread::JoinHandle::join);
    }
}

async fn accept(
    listener: TcpListener,
    gate: Arc<Gate>,
    ready: oneshot::Sender<io::Result<()>>,
    mut stopped: oneshot::Receiver<()>,
) {
    let listener = match tokio::net::TcpListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => {
            ready.send(Err(error)).ok();
            return;
        }
    };
    ready.send(Ok(())).ok();
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            _ = &mut stopped => return,
            Some(_) = connections.join_next() => {}
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    connections.spawn(Arc::clone(&gate).connection(stream));
                }
                // Out of descriptors: those of the connections that end make room.
                Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
            },
        }
    }
}

/// Counts a connection while it lives.
struct Open<'a>(&'a Shared);

impl<'a> Open<'a> {
    fn new(shared: &'a Shared) -> Self {
        shared.accepted.fetch_add(1, Ordering::AcqRel);
        let open = shared.open.fetch_add(1, Ordering::AcqRel) + 1;
        shared.peak.fetch_max(open, Ordering::AcqRel);
        Self(shared)
    }
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::AcqRel);
    }
}

/// The request was answered by ending its connection.
#[derive(Debug, thiserror::Error)]
#[error("the connection was cut by a fault")]
struct Cut;

struct Gate {
    shared: Arc<Shared>,
    backend: Arc<dyn Backend>,
}

impl Gate {
    async fn connection(self: Arc<Self>, stream: tokio::net::TcpStream) {
        let _open = Open::new(&self.shared);
        let limit = self.shared.link.bytes_per_second;
        let Ok(link) = stream.set_nodelay(true).and_then(|()| Link::new(&stream, limit)) else {
            return; // the peer has gone already
        };
        let socket = TokioIo::new(Socket::new(stream, Arc::clone(&link)));
        let service = service_fn(|request| self.request(&link, request));
        // A connection that ends badly does so by a fault or by its client: both know.
        http1::Builder::new().timer(TokioTimer::new()).serve_connection(socket, service).await.ok();
    }

    async fn request(
        &self,
        link: &Arc<Link>,
        request: Request<Incoming>,
    ) -> Result<Response<Flow>, Cut> {
        let (mut parts, incoming) = request.into_parts();
        let (op, bucket, key) = self.backend.locate(&parts);
        let target = Target {
            op,
            bucket,
            key,
            range: head::requested_range(&parts.headers),
            if_match: head::header(&parts.headers, &http::header::IF_MATCH),
            if_unmodified_since: head::header(&parts.headers, &http::header::IF_UNMODIFIED_SINCE),
            traceparent: head::header(&parts.headers, &TRACEPARENT),
        };
        let entry = self.shared.ledger.open(target.clone());
        let plan = self.shared.faults.strike(&target).map_or_else(Plan::default, Plan::from);
        let number = self.shared.requests.fetch_add(1, Ordering::Relaxed);
        tokio::time::sleep(self.shared.link.latency(number)).await;
        parts.extensions.insert::<Bend>(plan.bend);
        let request = Request::from_parts(parts, incoming);
        let mut response = self.answer(&target, plan.before, link, request).await?;
        head::edit(&mut response, plan.head);
        entry.answered(response.status().as_u16());
        let pace = Arc::clone(&self.shared.pace);
        let script = if op == Op::Head { Script::default() } else { plan.body };
        Ok(response.map(|payload| Flow::new(payload, script, Arc::clone(link), entry, pace)))
    }

    async fn answer(
        &self,
        target: &Target,
        before: Before,
        link: &Link,
        request: Request<Incoming>,
    ) -> Result<Response<Payload>, Cut> {
        let contents = &self.shared.contents;
        match before {
            Before::Proceed => {}
            Before::Delay(delay) => tokio::time::sleep(delay).await,
            Before::Stall => std::future::pending().await,
            Before::Reset => {
                link.reset_on_close();
                return Err(Cut);
            }
            Before::Close => return Err(Cut),
            Before::ResetUpload(bytes) => {
                drop(receive(request.into_body(), bytes).await);
                link.reset_on_close();
                return Err(Cut);
            }
            Before::StallUpload(bytes) => {
                let _rest = receive(request.into_body(), bytes).await;
                return std::future::pending().await;
            }
            Before::Refuse(refusal) => {
                // Who is told while he still talks may not hear it.
                drop(receive(request.into_body(), u64::MAX).await);
                return Ok(self.backend.refuse(&refusal, &target.key));
            }
            Before::Replace(content) => contents.put(&target.bucket, &target.key, content),
            Before::Remove => {
                contents.remove(&target.bucket, &target.key);
            }
        }
        Ok(self.backend.answer(request).await)
    }
}

/// Takes so many bytes of a body; what is left of it.
async fn receive(mut body: Incoming, bytes: u64) -> Incoming {
    let mut taken = 0;
    while taken < bytes {
        match body.frame().await {
            Some(Ok(frame)) => taken += frame.data_ref().map_or(0, |data| as_u64(data.len())),
            Some(Err(_)) | None => break,
        }
    }
    body
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jitter_is_drawn_from_its_whole_width_by_the_seed() {
        let link = |seed| LinkOptions {
            first_byte: Duration::from_millis(40),
            jitter: Duration::from_millis(20),
            seed,
            ..LinkOptions::default()
        };
        let drawn = |seed| (0..1000).map(|at| link(seed).latency(at)).collect::<Vec<_>>();
        assert_eq!(drawn(1), drawn(1));
        assert_ne!(drawn(1), drawn(2));
        let (least, most) = (drawn(1).into_iter().min(), drawn(1).into_iter().max());
        assert!(
            least.unwrap() >= Duration::from_millis(40) && least < Some(Duration::from_millis(41))
        );
        assert!(
            most.unwrap() <= Duration::from_millis(60) && most > Some(Duration::from_millis(59))
        );
        assert_eq!(LinkOptions::default().latency(7), Duration::ZERO);
    }
}
