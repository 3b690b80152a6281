//! The gRPC socket: accepts, learns who is there, and serves HTTP/2.
//!
//! tonic's own server would apply its timeout handling; here its routes run directly on hyper.
//! Every connection is a task of the daemon's tree. The peer's credentials are those the kernel
//! recorded at connect; a uid that is not allowed gets PERMISSION_DENIED for every call and learns
//! nothing else.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use forebay_proto::{Failure, Reason};
use http::{Request, Response};
use hyper::body::Incoming;
use hyper::server::conn::http2::Builder;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tonic::body::Body;
use tonic::service::Routes;
use tower::Service as _;

use crate::handoff::Peer;

/// Streams of one connection.
const STREAMS_MAX: u32 = 64;

/// Headers of one request.
const HEADER_BYTES_MAX: u32 = 16 << 10;

/// Streams that a peer may reset before they are served (rapid reset).
const PENDING_RESETS_MAX: usize = 20;

/// Wait after a failed accept: out of descriptors, which others have to give back first.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// What connections are served with.
#[derive(Debug, Clone)]
pub(crate) struct Face {
    /// The services.
    pub(crate) routes: Routes,
    /// Who may call.
    pub(crate) allow_uids: Arc<Vec<u32>>,
}

/// Accepts until `closing` is set, then lets every connection end its calls.
pub(crate) async fn serve(listener: UnixListener, face: Face, closing: CancellationToken) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    connections.spawn(converse(stream, face.clone(), closing.clone()));
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

async fn converse(stream: UnixStream, face: Face, closing: CancellationToken) {
    let Some(peer) = peer_of(&stream) else { return };
    let mut builder = Builder::new(TokioExecutor::new());
    builder
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS_MAX)
        .max_header_list_size(HEADER_BYTES_MAX)
        .max_pending_accept_reset_streams(PENDING_RESETS_MAX);
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

async fn answer(
    mut face: Face,
    peer: Peer,
    mut request: Request<Incoming>,
) -> Result<Response<Body>, Infallible> {
    if !face.allow_uids.contains(&peer.uid) {
        let failure = Failure::new(
            Reason::UidNotAllowed,
            format!("uid {} may not use this daemon", peer.uid),
        );
        return Ok(failure.to_status().into_http());
    }
    request.extensions_mut().insert(peer);
    face.routes.call(request.map(Body::new)).await
}
