//! The sockets of gRPC: accept, learn who is there, and serve HTTP/2.
//!
//! tonic's own server would apply its timeout handling; here its routes run directly on hyper.
//! Every connection is a task of the daemon's tree. Who calls is known by the uid that the kernel
//! recorded at connect, or by a token; see [`crate::domain`]. Each domain has routes of its own, so
//! that a call cannot reach what is another domain's. Who is in none gets a refusal for every call,
//! and learns nothing else. A token ends here: what is behind the routes never sees it.
//!
//! Over TCP there is control only: nothing is lent there.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use forebay_proto::{Failure, Reason};
use http::header::AUTHORIZATION;
use http::{HeaderMap, Request, Response};
use hyper::body::Incoming;
use hyper::server::conn::http2::Builder;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tonic::body::Body;
use tonic::service::Routes;
use tower::Service as _;

use super::tls::Tls;
use crate::domain::{Caller, Domains};
use crate::handoff::Peer;
use crate::metrics;
use crate::places::Places;

/// Streams of one connection.
const STREAMS_MAX: u32 = 64;

/// Headers of one request.
const HEADER_BYTES_MAX: u32 = 16 << 10;

/// Streams that a peer may reset before they are served (rapid reset).
const PENDING_RESETS_MAX: usize = 20;

/// Over TCP a peer may be gone without a word: it is asked this often...
const KEEP_ALIVE: Duration = Duration::from_secs(30);
/// ... and has to answer within this.
const KEEP_ALIVE_WITHIN: Duration = Duration::from_secs(20);

/// Wait after a failed accept: out of descriptors, which others have to give back first.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// What connections are served with.
#[derive(Debug, Clone)]
pub(crate) struct Face {
    /// The services of each domain, by its number.
    pub(crate) routes: Arc<[Routes]>,
    /// Who may call.
    pub(crate) domains: Domains,
}

/// Where connections come from.
pub(crate) enum Door {
    /// The node's own processes.
    Unix(UnixListener),
    /// For control only; in the clear without TLS.
    Tcp(TcpListener, Option<Tls>),
}

/// Who came.
enum Came {
    Unix(UnixStream),
    Tcp(TcpStream, Option<Tls>),
}

impl Door {
    async fn accept(&self) -> std::io::Result<Came> {
        match self {
            Self::Unix(listener) => Ok(Came::Unix(listener.accept().await?.0)),
            Self::Tcp(listener, tls) => Ok(Came::Tcp(listener.accept().await?.0, tls.clone())),
        }
    }
}

/// Accepts until `closing` is set, then lets every connection end its calls.
pub(crate) async fn serve(door: Door, face: Face, closing: CancellationToken) {
    let places = Places::default();
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = door.accept() => match accepted {
                Ok(came) => {
                    connections.spawn(attend(came, places.clone(), face.clone(), closing.clone()));
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot accept");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
            Some(ended) = connections.join_next() => if let Err(error) = ended {
                tracing::error!(%error, "a connection's task failed");
            },
            () = closing.cancelled() => break,
        }
    }
    while connections.join_next().await.is_some() {}
}

async fn attend(came: Came, places: Places, face: Face, closing: CancellationToken) {
    let peer = match &came {
        Came::Unix(stream) => peer_of(stream),
        Came::Tcp(..) => Some(Peer::REMOTE),
    };
    let Some(peer) = peer else { return };
    let is_member = peer.is_remote() || face.domains.may_connect(peer.uid);
    let Some(_place) = places.take(peer.uid, is_member) else {
        metrics::caller_refused("CONNECTIONS");
        return tracing::debug!(uid = peer.uid, "too many connections of one uid: one is closed");
    };
    let (stream, tls) = match came {
        Came::Unix(stream) => return converse(stream, peer, face, closing).await,
        Came::Tcp(stream, tls) => (stream, tls),
    };
    let Some(tls) = tls else { return converse(stream, Peer::REMOTE, face, closing).await };
    let shaken = tokio::select! {
        shaken = tls.accept(stream) => shaken,
        () = closing.cancelled() => return,
    };
    match shaken {
        Ok(stream) => converse(stream, Peer::REMOTE, face, closing).await,
        Err(error) => {
            // Whoever can reach the port can do this as often as it likes.
            metrics::caller_refused("HANDSHAKE");
            tracing::debug!(%error, "a connection over TCP did not shake hands");
        }
    }
}

async fn converse(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    peer: Peer,
    face: Face,
    closing: CancellationToken,
) {
    let mut builder = Builder::new(TokioExecutor::new());
    builder
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS_MAX)
        .max_header_list_size(HEADER_BYTES_MAX)
        .max_pending_accept_reset_streams(PENDING_RESETS_MAX);
    if peer.is_remote() {
        builder.keep_alive_interval(KEEP_ALIVE).keep_alive_timeout(KEEP_ALIVE_WITHIN);
    }
    let service = hyper::service::service_fn(move |request| answer(face.clone(), peer, request));
    let connection = builder.serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = closing.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, pid = peer.pid, "a connection ended");
    }
}

fn peer_of(stream: &UnixStream) -> Option<Peer> {
    let credentials = match stream.peer_cred() {
        Ok(credentials) => credentials,
        Err(error) => {
            tracing::warn!(%error, "a connection without credentials");
            return None;
        }
    };
    let pid = credentials.pid().and_then(|pid| u32::try_from(pid).ok()).unwrap_or(0);
    Some(Peer { uid: credentials.uid(), pid })
}

/// Answers in the routes of the caller's domain, and without its token.
async fn answer(
    face: Face,
    peer: Peer,
    mut request: Request<Incoming>,
) -> Result<Response<Body>, Infallible> {
    let found = token(request.headers()).and_then(|token| {
        let uid = (!peer.is_remote()).then_some(peer.uid);
        face.domains.find(Caller { uid, token })
    });
    let routes = found.map(|domain| face.routes.get(domain).cloned());
    let mut routes = match routes {
        Ok(Some(routes)) => routes,
        Ok(None) => {
            let failure = Failure::new(Reason::Internal, "a domain without services");
            return Ok(failure.to_status().into_http());
        }
        Err(failure) => {
            metrics::caller_refused(failure.reason.as_str());
            return Ok(failure.to_status().into_http());
        }
    };
    request.headers_mut().remove(AUTHORIZATION);
    request.extensions_mut().insert(peer);
    routes.call(request.map(Body::new)).await
}

/// The token in a request's headers, if there is one. Whoever gives something else than one token
/// is refused: it means to be known by it.
fn token(headers: &HeaderMap) -> Result<Option<&[u8]>, Failure> {
    let mut given = headers.get_all(AUTHORIZATION).iter();
    let Some(value) = given.next() else { return Ok(None) };
    let (scheme, token) = value.as_bytes().split_at_checked("Bearer ".len()).unwrap_or_default();
    if !scheme.eq_ignore_ascii_case(b"Bearer ") || token.is_empty() || given.next().is_some() {
        let message = "`authorization` is not `Bearer TOKEN`, once";
        return Err(Failure::new(Reason::TokenUnknown, message));
    }
    Ok(Some(token))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(values: &[&str]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(AUTHORIZATION, value.parse().unwrap());
        }
        headers
    }

    #[test]
    fn a_token_is_given_once_or_not_at_all() {
        assert_eq!(token(&headers(&[])).unwrap(), None);
        assert_eq!(token(&headers(&["bearer abc"])).unwrap(), Some(&b"abc"[..]));
        let bad: [&[&str]; 5] =
            [&["Basic abc"], &["Bearer"], &["Bearer "], &[""], &["Bearer a", "Bearer b"]];
        for values in bad {
            let failure = token(&headers(values)).unwrap_err();
            assert_eq!(failure.reason, Reason::TokenUnknown);
            assert!(!failure.message.contains("abc"));
        }
    }
}
