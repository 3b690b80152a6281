//! `handoff.sock`: descriptors go out, releases come in, and a close ends the session.
//!
//! The socket is a `SOCK_SEQPACKET` one, so a packet is a message. A connection begins with `Hello`
//! and the session's token within [`HELLO_WITHIN`]; the peer's uid has to be the one that opened the
//! session. One connection per session. Each connection is a task of the daemon's tree.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use forebay_proto::handoff::{PACKET_BYTES_MAX, decode, encode};
use forebay_proto::pb::{self, handoff_message::Event};
use forebay_shm::{Segment, recv_descriptor, send_descriptor};
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, accept_with, bind, listen, socket_with,
    sockopt,
};
use tokio::io::unix::AsyncFd;
use tokio_util::task::TaskTracker;

use super::{Peer, Session, Sessions};

/// A connection that does not say which session it belongs to is closed after this long.
const HELLO_WITHIN: Duration = Duration::from_secs(5);

/// Connections that wait to be accepted.
const BACKLOG: i32 = 128;

/// Wait after a failed accept: out of descriptors, which others have to give back first.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Opens the socket at `path`, which must not exist.
pub(crate) fn open(path: &Path) -> io::Result<AsyncFd<OwnedFd>> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let fd = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
    bind(&fd, &SocketAddrUnix::new(path)?)?;
    listen(&fd, BACKLOG)?;
    AsyncFd::new(fd)
}

/// Accepts until dropped.
pub(crate) async fn serve(
    socket: AsyncFd<OwnedFd>,
    sessions: Arc<Sessions>,
    allowed: impl Fn(u32) -> bool,
    tasks: TaskTracker,
) {
    loop {
        match accept(&socket).await {
            Ok((connection, peer)) if allowed(peer.uid) => {
                let sessions = Arc::clone(&sessions);
                tasks.spawn(async move {
                    if let Err(error) = converse(connection, &sessions, peer).await {
                        tracing::debug!(%error, pid = peer.pid, "a handoff connection ended");
                    }
                });
            }
            Ok((_, peer)) => tracing::warn!(uid = peer.uid, "uid not allowed on handoff.sock"),
            Err(error) => {
                tracing::warn!(%error, "cannot accept on handoff.sock");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn accept(socket: &AsyncFd<OwnedFd>) -> io::Result<(AsyncFd<OwnedFd>, Peer)> {
    loop {
        let mut ready = socket.readable().await?;
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        match ready.try_io(|fd| accept_with(fd, flags).map_err(io::Error::from)) {
            Err(_would_block) => {}
            Ok(accepted) => {
                let fd = accepted?;
                let credentials = sockopt::socket_peercred(&fd)?;
                let pid = u32::try_from(credentials.pid.as_raw_nonzero().get()).unwrap_or(0);
                let peer = Peer { uid: credentials.uid.as_raw(), pid };
                return Ok((AsyncFd::new(fd)?, peer));
            }
        }
    }
}

/// One connection: hello, then descriptors out and releases in until the client is gone.
async fn converse(
    connection: AsyncFd<OwnedFd>,
    sessions: &Arc<Sessions>,
    peer: Peer,
) -> io::Result<()> {
    let hello = tokio::time::timeout(HELLO_WITHIN, receive(&connection)).await??;
    let Some(Event::Hello(hello)) = hello else {
        return refuse(&connection, "the first packet is not a hello").await;
    };
    let session = match sessions.find(&hello.session, peer) {
        Ok(session) => session,
        Err(failure) => return refuse(&connection, &failure.message).await,
    };
    if !session.connect(sessions.pool.segments()) {
        return refuse(&connection, "the session is connected already").await;
    }
    let _connected = Connected(Arc::clone(&session));
    loop {
        while let Some(segment) = session.next_to_send() {
            send_segment(&connection, &segment).await?;
        }
        tokio::select! {
            packet = receive(&connection) => match packet? {
                Some(Event::Release(release)) => drop(session.release(&release.lease_ids)),
                Some(_) => return refuse(&connection, "only releases are expected").await,
                None => return Ok(()),
            },
            () = session.outgoing.notified() => {}
        }
    }
}

/// Ends the session when the connection ends, however it ends.
#[derive(Debug)]
struct Connected(Arc<Session>);

impl Drop for Connected {
    fn drop(&mut self) {
        self.0.leave();
    }
}

impl Session {
    /// The client is here; false if it was already.
    fn connect(&self, segments: Vec<Arc<Segment>>) -> bool {
        let mut state = self.lock();
        state.offer(segments);
        !std::mem::replace(&mut state.connected, true)
    }

    fn next_to_send(&self) -> Option<Arc<Segment>> {
        self.lock().to_send.pop_front()
    }
}

/// The next packet; `None` when the peer is gone. A packet that is no message is an error.
async fn receive(connection: &AsyncFd<OwnedFd>) -> io::Result<Option<Event>> {
    let mut packet = [0; PACKET_BYTES_MAX];
    loop {
        let mut ready = connection.readable().await?;
        match ready.try_io(|fd| recv_descriptor(fd.as_fd(), &mut packet)) {
            Err(_would_block) => {}
            Ok(received) => {
                // A descriptor that a client sends is closed unseen.
                let (length, _unwanted) = received?;
                if length == 0 {
                    return Ok(None);
                }
                return decode(&packet[..length]).map(Some).map_err(io::Error::other);
            }
        }
    }
}

async fn send_segment(connection: &AsyncFd<OwnedFd>, segment: &Segment) -> io::Result<()> {
    let message = encode(Event::Segment(pb::SegmentDescriptor {
        segment_id: segment.id().0,
        bytes: segment.bytes() as u64,
    }));
    loop {
        let mut ready = connection.writable().await?;
        let sent = ready
            .try_io(|fd| send_descriptor(fd.as_fd(), &message, Some(segment.descriptor())));
        if let Ok(sent) = sent {
            return sent;
        }
    }
}

async fn refuse(connection: &AsyncFd<OwnedFd>, reason: &str) -> io::Result<()> {
    let message = encode(Event::Refused(pb::Refused { reason: reason.to_owned() }));
    let mut ready = connection.writable().await?;
    match ready.try_io(|fd| send_descriptor(fd.as_fd(), &message, None)) {
        Ok(sent) => sent,
        // A client that does not read its refusal does without.
        Err(_would_block) => Ok(()),
    }
}
