//! The connector: name, TCP and TLS, each with its limit and its time.
//!
//! Addresses are dialled one after another within the connect limit, each with an equal share of
//! what is left of it, in the order of the address book: so a retry, which makes a new connection
//! and names the address to avoid, meets another machine. What the phases took is kept with the
//! connection and is taken by the first response on it.

use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::Uri;
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use socket2::{Domain, Protocol, Socket, TcpKeepalive, Type};
use tokio::net::{TcpSocket, TcpStream};
use tokio::runtime::Handle;
use tokio::time::{Instant, timeout};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_util::context::TokioContext;
use tower::Service;

use super::probe::{Break, DialPhase, Route};
use super::stream::{Io, PhaseTimes, Stream};
use super::tls::Trust;
use crate::engine::addresses::Deed;
use crate::engine::book::{Book, Held};
use crate::resolve::Resolve;
use crate::settings::Timeouts;

/// Addresses tried for one connection.
const DIALS_MAX: usize = 4;
/// A pooled connection whose peer is gone is noticed within idle + 3 probes, before it is reused.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(15);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);
const KEEPALIVE_RETRIES: u32 = 3;
/// A sent request that nobody acknowledges breaks the connection after this.
const UNACKNOWLEDGED_MAX: Duration = Duration::from_secs(10);

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
#[error("{host}: {source}")]
pub(crate) struct ConnectError {
    pub(crate) broke: Break,
    pub(crate) times: PhaseTimes,
    /// Where it got as far as a handshake.
    pub(crate) at: Option<IpAddr>,
    host: String,
    source: io::Error,
}

/// Makes connections.
#[derive(Clone, Debug)]
pub(crate) struct Connector {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    resolve: Arc<dyn Resolve>,
    trust: Trust,
    timeouts: Timeouts,
    book: Arc<Book>,
    runtime: Option<Handle>,
}

impl Connector {
    pub(crate) fn new(
        resolve: Arc<dyn Resolve>,
        trust: Trust,
        timeouts: Timeouts,
        book: Arc<Book>,
        runtime: Option<Handle>,
    ) -> Self {
        Self { shared: Arc::new(Shared { resolve, trust, timeouts, book, runtime }) }
    }

    /// Which runtime's threads look after connections; that of who asks, if none.
    pub(super) fn runtime(&self) -> Option<&Handle> {
        self.shared.runtime.as_ref()
    }

    /// Makes a connection to the host of `uri`.
    pub(crate) async fn open(&self, uri: &Uri, route: &Route) -> Result<Stream, ConnectError> {
        self.shared.open(uri, route).await
    }
}

impl Service<Uri> for Connector {
    type Response = TokioIo<Stream>;
    type Error = ConnectError;
    type Future = Pin<Box<dyn Future<Output = Result<TokioIo<Stream>, ConnectError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), ConnectError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let shared = Arc::clone(&self.shared);
        let route = Route::current();
        Box::pin(async move { shared.open(&uri, &route).await.map(TokioIo::new) })
    }
}

impl Shared {
    /// A socket is woken by the runtime in whose context it was made.
    async fn open(&self, uri: &Uri, route: &Route) -> Result<Stream, ConnectError> {
        let opening = self.open_here(uri, route);
        match &self.runtime {
            Some(runtime) => TokioContext::new(opening, runtime.clone()).await,
            None => opening.await,
        }
    }

    async fn open_here(&self, uri: &Uri, route: &Route) -> Result<Stream, ConnectError> {
        let https = uri.scheme_str() == Some("https");
        let host = uri.host().unwrap_or_default().trim_matches(['[', ']']);
        let port = uri.port_u16().unwrap_or(if https { 443 } else { 80 });
        let mut times = PhaseTimes::default();
        let fail = |broke, times, source| ConnectError {
            broke,
            times,
            at: None,
            host: host.into(),
            source,
        };

        let begun = Instant::now();
        let addresses = match host.parse::<IpAddr>() {
            Ok(address) => vec![address],
            Err(_) => {
                route.dials(DialPhase::Dns);
                let answer = limited(self.timeouts.dns, self.resolve.resolve(host)).await;
                times.dns = Some(begun.elapsed());
                answer.map_err(|source| fail(Break::Dns, times, source))?
            }
        };

        let begun = Instant::now();
        let addresses = self.book.order(host, &addresses, route.avoid, begun);
        let limits = &self.timeouts;
        let limit = if route.first { limits.connect_first } else { limits.connect };
        route.dials(DialPhase::Connect);
        let dialled = self.dial(host, &addresses, port, begun + limit).await;
        times.connect = Some(begun.elapsed());
        let (tcp, held) = dialled.map_err(|source| {
            let broke = if source.kind() == io::ErrorKind::TimedOut {
                Break::TimedOut
            } else {
                Break::Connect
            };
            fail(broke, times, source)
        })?;

        let io = if https {
            let begun = Instant::now();
            route.dials(DialPhase::Tls);
            let shaken = limited(self.timeouts.tls, self.handshake(host, tcp)).await;
            times.tls = Some(begun.elapsed());
            if shaken.is_err() {
                held.mark().did(Deed::Failed, Instant::now());
            }
            let tls = shaken.map_err(|source| ConnectError {
                at: Some(held.mark().address()),
                ..fail(timed_out_or(Break::Tls, &source), times, source)
            })?;
            Io::Tls(Box::new(tls))
        } else {
            Io::Plain(tcp)
        };
        route.dials(DialPhase::Over);
        Ok(Stream::new(io, times, held))
    }

    async fn dial(
        &self,
        host: &str,
        order: &[IpAddr],
        port: u16,
        until: Instant,
    ) -> io::Result<(TcpStream, Held)> {
        let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
        let dials = order.len().min(DIALS_MAX);
        for (dial, address) in order.iter().take(dials).enumerate() {
            // From before it exists, or all who dial at once choose the same.
            let held = Held::new(&self.book, host, *address);
            let left = until.saturating_duration_since(Instant::now());
            let share = left / u32::try_from(dials - dial).unwrap_or(1);
            let connecting = async { socket(*address)?.connect((*address, port).into()).await };
            match limited(share, connecting).await {
                Ok(tcp) => return Ok((tcp, held)),
                Err(error) => last = error,
            }
            held.mark().did(Deed::Failed, Instant::now());
        }
        Err(last)
    }

    async fn handshake(&self, host: &str, tcp: TcpStream) -> io::Result<TlsStream<TcpStream>> {
        let config = self.trust.config()?;
        let name = ServerName::try_from(host.to_owned())
            .map_err(|_invalid| io::Error::other("the host's name cannot be certified"))?;
        TlsConnector::from(config).connect(name, tcp).await
    }
}

fn timed_out_or(broke: Break, error: &io::Error) -> Break {
    if error.kind() == io::ErrorKind::TimedOut { Break::TimedOut } else { broke }
}

async fn limited<T>(limit: Duration, work: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    timeout(limit, work).await.unwrap_or_else(|_| {
        let text = format!("no answer within {} ms", limit.as_millis());
        Err(io::Error::new(io::ErrorKind::TimedOut, text))
    })
}

/// A socket with our options. SO_RCVBUF is left alone: setting it clamps the window at
/// net.core.rmem_max and ends autotuning. SO_RCVLOWAT too: it hangs on tails below the mark.
fn socket(address: IpAddr) -> io::Result<TcpSocket> {
    let domain = Domain::for_address(SocketAddr::new(address, 0));
    let socket = Socket::new(domain, Type::STREAM, Some(Protocol::TCP))?;
    socket.set_nonblocking(true)?;
    // A request is one small write that must not wait for an acknowledgement.
    socket.set_tcp_nodelay(true)?;
    let keepalive = TcpKeepalive::new()
        .with_time(KEEPALIVE_IDLE)
        .with_interval(KEEPALIVE_INTERVAL)
        .with_retries(KEEPALIVE_RETRIES);
    socket.set_tcp_keepalive(&keepalive)?;
    socket.set_tcp_user_timeout(Some(UNACKNOWLEDGED_MAX))?;
    Ok(TcpSocket::from_std_stream(socket.into()))
}
