//! The connector: name, TCP and TLS, each with its limit and its time.
//!
//! Addresses are dialled one after another within the connect limit, each with an equal share of what
//! is left of it, in the order of the address book: so a retry, which makes a new connection and names
//! the address to avoid, meets another machine. What the phases took is kept with the connection and
//! is taken by the first response on it.

use std::fmt;
use std::future::{Future, Ready, ready};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use http::Uri;
use hyper::rt::ReadBufCursor;
use hyper_rustls::{HttpsConnector, MaybeHttpsStream};
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::rt::TokioIo;
use socket2::{Domain, Protocol, Socket, TcpKeepalive, Type};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::{Instant, timeout};
use tower::Service;

use super::probe::{Break, Route};
use super::tls::Trust;
use crate::engine::addresses::Deed;
use crate::engine::book::{Book, Held, Mark};
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

/// What it took to make a connection.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct PhaseTimes {
    pub(crate) dns: Option<Duration>,
    pub(crate) connect: Option<Duration>,
    pub(crate) tls: Option<Duration>,
}

/// The times of a connection, for whoever asks first.
#[derive(Debug, Clone)]
pub(crate) struct FreshTimes {
    times: PhaseTimes,
    taken: Arc<AtomicBool>,
}

impl FreshTimes {
    /// The times, once.
    pub(crate) fn take(&self) -> PhaseTimes {
        if self.taken.swap(true, Ordering::Relaxed) { PhaseTimes::default() } else { self.times }
    }
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
#[error("{host}: {source}")]
pub(crate) struct ConnectError {
    pub(crate) broke: Break,
    pub(crate) times: PhaseTimes,
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
}

impl Connector {
    pub(crate) fn new(
        resolve: Arc<dyn Resolve>,
        trust: Trust,
        timeouts: Timeouts,
        book: Arc<Book>,
    ) -> Self {
        Self { shared: Arc::new(Shared { resolve, trust, timeouts, book }) }
    }
}

impl Service<Uri> for Connector {
    type Response = Stream;
    type Error = ConnectError;
    type Future = Pin<Box<dyn Future<Output = Result<Stream, ConnectError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), ConnectError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let shared = Arc::clone(&self.shared);
        let route = Route::current();
        Box::pin(async move { shared.open(&uri, route).await })
    }
}

impl Shared {
    async fn open(&self, uri: &Uri, route: Route) -> Result<Stream, ConnectError> {
        let https = uri.scheme_str() == Some("https");
        let host = uri.host().unwrap_or_default().trim_matches(['[', ']']);
        let port = uri.port_u16().unwrap_or(if https { 443 } else { 80 });
        let mut times = PhaseTimes::default();
        let fail = |broke, times, source| ConnectError { broke, times, host: host.into(), source };

        let begun = Instant::now();
        let addresses = match host.parse::<IpAddr>() {
            Ok(address) => vec![address],
            Err(_) => {
                let answer = limited(self.timeouts.dns, self.resolve.resolve(host)).await;
                times.dns = Some(begun.elapsed());
                answer.map_err(|source| fail(Break::Dns, times, source))?
            }
        };

        let begun = Instant::now();
        let addresses = self.book.order(host, &addresses, route.avoid, begun);
        let limits = &self.timeouts;
        let limit = if route.first { limits.connect_first } else { limits.connect };
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

        let tcp = TokioIo::new(tcp);
        let inner = if https {
            let begun = Instant::now();
            let shaken = limited(self.timeouts.tls, self.handshake(uri, tcp)).await;
            times.tls = Some(begun.elapsed());
            if shaken.is_err() {
                held.mark().did(Deed::Failed, Instant::now());
            }
            shaken.map_err(|source| fail(timed_out_or(Break::Tls, &source), times, source))?
        } else {
            MaybeHttpsStream::Http(tcp)
        };
        let taken = Arc::new(AtomicBool::new(false));
        Ok(Stream { inner, times: FreshTimes { times, taken }, held })
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

    /// TLS over a connection that exists: hyper-rustls gets a connector that just hands it over.
    async fn handshake(&self, uri: &Uri, tcp: Tcp) -> io::Result<MaybeHttpsStream<Tcp>> {
        let config = self.trust.config()?;
        let mut https = HttpsConnector::from((Established(Some(tcp)), config));
        https.call(uri.clone()).await.map_err(io::Error::other)
    }
}

type Tcp = TokioIo<TcpStream>;

/// Hands out the connection it holds.
struct Established(Option<Tcp>);

impl Service<Uri> for Established {
    type Response = Tcp;
    type Error = io::Error;
    type Future = Ready<io::Result<Tcp>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        ready(self.0.take().ok_or_else(|| io::Error::from(io::ErrorKind::NotConnected)))
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

/// A connection, plain or encrypted.
pub(crate) struct Stream {
    inner: MaybeHttpsStream<Tcp>,
    times: FreshTimes,
    held: Held,
}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stream").field("times", &self.times).finish_non_exhaustive()
    }
}

impl Connection for Stream {
    fn connected(&self) -> Connected {
        let mark: Mark = self.held.mark();
        self.inner.connected().extra(self.times.clone()).extra(mark)
    }
}

impl hyper::rt::Read for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(cx, buffer)
    }
}

impl hyper::rt::Write for Stream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(cx, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}
