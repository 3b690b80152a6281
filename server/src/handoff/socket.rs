//! `handoff.sock`: descriptors go out, and word that segments have gone; releases come in, and word
//! that segments are unmapped; a close ends the session.
//!
//! The socket is a `SOCK_SEQPACKET` one, so a packet is a message. tokio has no type for these; its
//! stream types serve, since only readiness and the descriptor are taken from them. A connection
//! begins with `Hello` and the session's token within [`HELLO_WITHIN`]; the peer's uid has to be
//! the one that opened the session. The session is one of one domain, and only segments of that
//! domain can come to be lent to it. One connection per session. Each connection is a task of the
//! daemon's tree.

use std::io;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use forebay_proto::handoff::{PACKET_BYTES_MAX, decode, encode};
use forebay_proto::pb::{self, handoff_message::Event};
use forebay_shm::{recv_descriptor, send_descriptor};
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, listen, socket_with,
};
use tokio::io::Interest;
use tokio::net::{UnixListener, UnixStream};
use tokio_util::task::TaskTracker;

use super::{Outgoing, Peer, Session, Sessions, unknown_session};
use crate::places::Place;

/// A connection that does not say which session it belongs to is closed after this long.
const HELLO_WITHIN: Duration = Duration::from_secs(5);

/// Connections that wait to be accepted.
const BACKLOG: i32 = 128;

/// Wait after a failed accept: out of descriptors, which others have to give back first.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Opens the socket at `path`, which must not exist.
pub(crate) fn open(path: &Path) -> io::Result<UnixListener> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let fd = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
    bind(&fd, &SocketAddrUnix::new(path)?)?;
    listen(&fd, BACKLOG)?;
    UnixListener::from_std(fd.into())
}

/// Accepts until dropped. `sessions` are those of each domain; `places` has one for each connection
/// of a uid that may connect.
pub(crate) async fn serve(
    socket: UnixListener,
    sessions: Arc<[Arc<Sessions>]>,
    places: impl Fn(u32) -> Option<Place>,
    tasks: TaskTracker,
) {
    loop {
        match accept(&socket).await {
            Ok((connection, peer)) => match places(peer.uid) {
                Some(place) => {
                    tasks.spawn(attend(connection, Arc::clone(&sessions), peer, place));
                }
                None => tracing::debug!(uid = peer.uid, "refused on handoff.sock"),
            },
            Err(error) => {
                tracing::warn!(%error, "cannot accept on handoff.sock");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn accept(socket: &UnixListener) -> io::Result<(UnixStream, Peer)> {
    let (connection, _) = socket.accept().await?;
    let credentials = connection.peer_cred()?;
    let pid = credentials.pid().and_then(|pid| u32::try_from(pid).ok()).unwrap_or(0);
    Ok((connection, Peer { uid: credentials.uid(), pid }))
}

async fn attend(connection: UnixStream, sessions: Arc<[Arc<Sessions>]>, peer: Peer, _place: Place) {
    if let Err(error) = converse(connection, &sessions, peer).await {
        tracing::debug!(%error, pid = peer.pid, "a handoff connection ended");
    }
}

/// One connection: hello, then descriptors out and releases in until the client is gone.
async fn converse(
    connection: UnixStream,
    sessions: &[Arc<Sessions>],
    peer: Peer,
) -> io::Result<()> {
    let hello = tokio::time::timeout(HELLO_WITHIN, receive(&connection)).await??;
    let Some(Event::Hello(hello)) = hello else {
        return refuse(&connection, "the first packet is not a hello").await;
    };
    // The token is of one session of one domain, and told to nobody but who is in that.
    let found = sessions.iter().find_map(|sessions| sessions.find(&hello.session, peer).ok());
    let session = match found.ok_or_else(unknown_session) {
        Ok(session) => session,
        Err(failure) => return refuse(&connection, &failure.message).await,
    };
    if !session.connect(hello.retires) {
        return refuse(&connection, "the session is connected already, or over").await;
    }
    let _connected = Connected(Arc::clone(&session));
    loop {
        while let Some(outgoing) = session.next_to_send() {
            send(&connection, &outgoing).await?;
        }
        tokio::select! {
            packet = receive(&connection) => match packet? {
                Some(Event::Release(release)) => drop(session.release(&release.lease_ids)),
                Some(Event::Retired(retired)) => session.retired(&retired.segment_ids),
                Some(_) => return refuse(&connection, "no such packet is expected").await,
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
    /// The client is here; false if it was already, or the session is over.
    fn connect(&self, retires: bool) -> bool {
        let mut state = self.lock();
        state.retires |= retires && !state.connected;
        !state.over && !std::mem::replace(&mut state.connected, true)
    }

    fn next_to_send(&self) -> Option<Outgoing> {
        self.lock().to_send.pop_front()
    }
}

/// The next packet; `None` when the peer is gone. A packet that is no message is an error.
async fn receive(connection: &UnixStream) -> io::Result<Option<Event>> {
    let mut packet = [0; PACKET_BYTES_MAX];
    loop {
        connection.readable().await?;
        let received = connection
            .try_io(Interest::READABLE, || recv_descriptor(connection.as_fd(), &mut packet));
        match received {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Ok((0, _)) => return Ok(None),
            // A descriptor that a client sends is closed unseen.
            Ok((length, _unwanted)) => {
                return decode(&packet[..length]).map(Some).map_err(io::Error::other);
            }
            Err(error) => return Err(error),
        }
    }
}

async fn send(connection: &UnixStream, outgoing: &Outgoing) -> io::Result<()> {
    let (message, descriptor) = match outgoing {
        Outgoing::Segment(segment) => {
            let (segment_id, bytes) = (segment.id().0, segment.bytes() as u64);
            let event = Event::Segment(pb::SegmentDescriptor { segment_id, bytes });
            (encode(event), Some(segment.descriptor()))
        }
        Outgoing::Retire(id) => {
            (encode(Event::Retire(pb::Retire { segment_ids: vec![id.0] })), None)
        }
    };
    loop {
        connection.writable().await?;
        let sent = connection.try_io(Interest::WRITABLE, || {
            send_descriptor(connection.as_fd(), &message, descriptor)
        });
        match sent {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            sent => return sent,
        }
    }
}

async fn refuse(connection: &UnixStream, reason: &str) -> io::Result<()> {
    let message = encode(Event::Refused(pb::Refused { reason: reason.to_owned() }));
    connection.writable().await?;
    let sent = connection
        .try_io(Interest::WRITABLE, || send_descriptor(connection.as_fd(), &message, None));
    match sent {
        // A client that does not read its refusal does without.
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
        sent => sent,
    }
}
