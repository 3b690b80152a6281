//! The handoff session: one SEQPACKET connection per client, over which segments come.
//!
//! One task owned by the session receives descriptors and maps them as they come, so that the
//! daemon never waits for this process; a load that is granted a slot waits here for its segment.
//! Mappings serve every load on the session, and so do their registrations with a device
//! ([`crate::device`]), which come a while after them. They stay until the session ends or the
//! daemon retires the segment, of which it then lends nothing any more: then the registration ends,
//! with the last copy that uses it, and the mapping, with the last view of it, and the daemon hears
//! that. It frees whatever a session holds when its connection closes, which dropping the session
//! does at once.
//!
//! Releases of loads whose stream has ended go out here, and word of mappings that ended. They are
//! sent right where that happens; only if the socket is full they wait for the task.

use std::collections::{HashMap, HashSet};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use forebay_device::{Device, Registration};
use forebay_proto::handoff::{IDS_PER_PACKET, PACKET_BYTES_MAX, decode, encode};
use forebay_proto::model::{LeaseId, Malformed, SessionToken};
use forebay_proto::pb::handoff_message::Event;
use forebay_proto::{Reason, pb};
use forebay_shm::{SegmentMap, recv_descriptor, send_descriptor};
use rustix::io::Errno;
use rustix::net::{AddressFamily, Shutdown, SocketAddrUnix, SocketFlags, SocketType};
use tokio::io::Interest;
use tokio::net::UnixDatagram;
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::device::register::{Incoming, Registered, Registrar};
use crate::error::ClientError;
use crate::wire::Deadline;

/// How long a segment may be named by a grant before it comes.
const SEGMENT_WAIT: Duration = Duration::from_secs(10);

/// How long to wait when the daemon's accept queue is full.
const CONNECT_PAUSE: Duration = Duration::from_millis(5);

/// What has come over the socket.
#[derive(Debug, Default)]
struct Received {
    segments: HashMap<u64, Mapped>,
    /// The daemon has sent a segment: it knows this session.
    answered: bool,
    closed: Option<ClientError>,
}

#[derive(Debug)]
struct Mapped {
    /// None until it is there, and if there is no device.
    registration: Option<Registered>,
    map: Arc<SegmentMap>,
}

/// The socket, shared with the task.
#[derive(Debug)]
struct Link {
    /// Really SOCK_SEQPACKET: what tokio has that passes packets, for its readiness only.
    socket: UnixDatagram,
    unsent: Mutex<Unsent>,
    /// Segments that the daemon has retired and this process still maps.
    retiring: Mutex<HashSet<u64>>,
    more: Notify,
}

/// What did not fit into the socket.
#[derive(Debug, Default)]
struct Unsent {
    released: Vec<u64>,
    retired: Vec<u64>,
}

impl Unsent {
    fn is_empty(&self) -> bool {
        self.released.is_empty() && self.retired.is_empty()
    }
}

/// One handoff connection.
#[derive(Debug)]
pub(crate) struct Session {
    token: SessionToken,
    link: Arc<Link>,
    received: watch::Receiver<Received>,
    /// Ends with the session.
    _task: JoinSet<()>,
    /// Ends with it too; none without a device.
    registrar: Option<Registrar>,
}

impl Session {
    /// Connects and says which session this is.
    pub(crate) async fn connect(
        path: &Path,
        token: SessionToken,
        device: Option<Arc<dyn Device>>,
    ) -> Result<Arc<Self>, ClientError> {
        let unreachable = |error: io::Error| ClientError::unreachable(&error, &path.display());
        let socket = connect(path).await.map_err(unreachable)?;
        let hello = pb::Hello { session: token.as_bytes().to_vec().into(), retires: true };
        let packet = encode(Event::Hello(hello));
        send_descriptor(socket.as_fd(), &packet, None).map_err(unreachable)?;
        let socket = UnixDatagram::from_std(socket.into()).map_err(unreachable)?;
        let link = Arc::new(Link {
            socket,
            unsent: Mutex::default(),
            retiring: Mutex::default(),
            more: Notify::new(),
        });
        let (sender, received) = watch::channel(Received::default());
        let sender = Arc::new(sender);
        let registrar = device.map(|device| register_with(device, &sender)).transpose()?;
        let incoming = registrar.as_ref().map(Registrar::incoming);
        let mut task = JoinSet::new();
        task.spawn(serve(Arc::clone(&link), incoming, sender, path.display().to_string()));
        Ok(Arc::new(Self { token, link, received, _task: task, registrar }))
    }

    /// What names it to the daemon.
    pub(crate) fn token(&self) -> &SessionToken {
        &self.token
    }

    /// Whether the daemon has not ended it.
    pub(crate) fn is_open(&self) -> bool {
        self.received.borrow().closed.is_none()
    }

    /// Whether the daemon has shown that it knows this session, by sending a segment.
    pub(crate) fn is_answered(&self) -> bool {
        self.received.borrow().answered
    }

    /// The segment with this id, once it has come; with its registration, if there is a device.
    pub(crate) async fn segment(
        &self,
        id: u64,
        deadline: Deadline,
    ) -> Result<(Arc<SegmentMap>, Option<Arc<Registration>>), ClientError> {
        let map = self.mapped(id, deadline).await?;
        let registration = match self.registrar {
            Some(_) => Some(self.registered(id, deadline).await?),
            None => None,
        };
        Ok((map, registration))
    }

    /// A segment's registration. How long it takes depends on the driver, and on how many came
    /// before.
    async fn registered(
        &self,
        id: u64,
        deadline: Deadline,
    ) -> Result<Arc<Registration>, ClientError> {
        let mut received = self.received.clone();
        let outcome = |received: &Received| {
            received.segments.get(&id).and_then(|mapped| mapped.registration.clone())
        };
        // One that has gone is registered no more.
        let is_gone = |received: &Received| !received.segments.contains_key(&id);
        let arrival =
            received.wait_for(|received| outcome(received).is_some() || is_gone(received));
        let arrived = deadline.cut(arrival).await?;
        let registered = arrived.ok().and_then(|received| outcome(&received));
        Ok(registered.ok_or_else(|| missing(id))??)
    }

    async fn mapped(&self, id: u64, deadline: Deadline) -> Result<Arc<SegmentMap>, ClientError> {
        let mut received = self.received.clone();
        let limited = deadline.at_most(Instant::now(), SEGMENT_WAIT);
        let arrival = received
            .wait_for(|received| received.segments.contains_key(&id) || received.closed.is_some());
        let arrived = match limited.cut(arrival).await {
            Ok(arrived) => arrived,
            Err(expired) if limited == deadline => return Err(expired),
            Err(_) => return Err(missing(id)),
        };
        let Ok(received) = arrived else { return Err(missing(id)) };
        match (received.segments.get(&id), &received.closed) {
            (Some(mapped), _) => Ok(Arc::clone(&mapped.map)),
            (None, Some(error)) => Err(error.clone()),
            (None, None) => Err(missing(id)),
        }
    }

    /// Releases leases whose load stream has ended.
    pub(crate) fn release(&self, leases: &[LeaseId]) {
        let leases: Vec<u64> = leases.iter().map(|lease| lease.0).collect();
        self.link.release(&leases);
    }
}

impl Drop for Session {
    /// The task's hold on the socket may outlive this by a turn of the runtime; the daemon must
    /// not have to wait for that.
    fn drop(&mut self) {
        rustix::net::shutdown(&self.link.socket, Shutdown::Both).ok();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    // What they hold is consistent after each statement.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn missing(id: u64) -> ClientError {
    let what = format!("segment {id} of it never came over the handoff socket");
    Malformed::new("Grant", what).into()
}

impl Link {
    fn release(&self, lease_ids: &[u64]) {
        let packet = |lease_ids| Event::Release(pb::Release { lease_ids });
        let rest = self.send(lease_ids, packet);
        self.keep(rest, |unsent| &mut unsent.released);
    }

    /// This process does not map a segment any more. If the daemon has retired it, it waits for
    /// that word.
    fn unmapped(&self, id: u64) {
        if lock(&self.retiring).remove(&id) {
            self.retired(&[id]);
        }
    }

    fn retired(&self, segment_ids: &[u64]) {
        let packet = |segment_ids| Event::Retired(pb::Retired { segment_ids });
        let rest = self.send(segment_ids, packet);
        self.keep(rest, |unsent| &mut unsent.retired);
    }

    /// Sends as many ids as the socket takes; the rest.
    fn send<'a>(&self, ids: &'a [u64], event: impl Fn(Vec<u64>) -> Event) -> &'a [u64] {
        for (at, batch) in ids.chunks(IDS_PER_PACKET).enumerate() {
            let packet = encode(event(batch.to_vec()));
            let send = || send_descriptor(self.socket.as_fd(), &packet, None);
            match self.socket.try_io(Interest::WRITABLE, send) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return ids.get(at * IDS_PER_PACKET..).unwrap_or_default();
                }
                // The connection is gone, and with it all that the daemon keeps for it.
                Err(_) => break,
            }
        }
        &[]
    }

    /// Leaves what did not fit to the task.
    fn keep(&self, ids: &[u64], of: impl Fn(&mut Unsent) -> &mut Vec<u64>) {
        if !ids.is_empty() {
            of(&mut lock(&self.unsent)).extend_from_slice(ids);
            self.more.notify_one();
        }
    }

    /// Sends what did not fit, when there is room.
    async fn flush(&self) -> io::Result<()> {
        while lock(&self.unsent).is_empty() {
            self.more.notified().await;
        }
        self.socket.writable().await?;
        let Unsent { released, retired } = std::mem::take(&mut *lock(&self.unsent));
        self.release(&released);
        self.retired(&retired);
        Ok(())
    }

    async fn receive(&self) -> io::Result<(Event, Option<OwnedFd>)> {
        let mut packet = [0; PACKET_BYTES_MAX];
        let receive = || recv_descriptor(self.socket.as_fd(), &mut packet);
        let (length, descriptor) = self.socket.async_io(Interest::READABLE, receive).await?;
        if length == 0 {
            return Err(io::ErrorKind::ConnectionReset.into());
        }
        let packet = packet.get(..length).unwrap_or_default();
        Ok((decode(packet).map_err(io::Error::other)?, descriptor))
    }
}

/// The task: receives until the connection ends, and says why it did.
async fn serve(
    link: Arc<Link>,
    registrar: Option<Incoming>,
    received: Arc<watch::Sender<Received>>,
    path: String,
) {
    let closed = loop {
        let packet = tokio::select! {
            packet = link.receive() => packet,
            flushed = link.flush() => match flushed {
                Ok(()) => continue,
                Err(error) => Err(error),
            },
        };
        let taken = match packet {
            Ok((message, descriptor)) => take(message, descriptor, &link),
            Err(error) => Err(ClientError::unreachable(&error, &path)),
        };
        match taken {
            Ok(Taken::Mapped(map)) => {
                let mapped = Mapped { registration: None, map: Arc::clone(&map) };
                received.send_modify(|received| {
                    received.segments.insert(map.id().0, mapped);
                    received.answered = true;
                });
                if let Some(registrar) = &registrar {
                    registrar.add(map);
                }
            }
            Ok(Taken::Retired(ids)) => {
                ids.iter().for_each(|id| retire(*id, &link, &received, registrar.as_ref()));
            }
            Err(error) => break error,
        }
    };
    received.send_modify(|received| received.closed = Some(closed));
}

/// The daemon has let go of a segment and lends nothing of it any more.
fn retire(id: u64, link: &Link, received: &watch::Sender<Received>, registrar: Option<&Incoming>) {
    // Noted first: whoever ends the last use of it has to find that.
    lock(&link.retiring).insert(id);
    let mut gone = None;
    received.send_modify(|received| gone = received.segments.remove(&id));
    let Some(Mapped { registration, map }) = gone else { return link.unmapped(id) };
    // A thread that registers it finds it gone, and ends that.
    if let Some(registrar) = registrar {
        registrar.end(id, registration.and_then(Result::ok));
    }
    drop(map);
}

/// What came.
enum Taken {
    Mapped(Arc<SegmentMap>),
    /// The ids of segments that have gone.
    Retired(Vec<u64>),
}

/// Takes what a packet brings.
fn take(
    message: Event,
    descriptor: Option<OwnedFd>,
    link: &Arc<Link>,
) -> Result<Taken, ClientError> {
    match message {
        Event::Retire(retire) => Ok(Taken::Retired(retire.segment_ids)),
        message => map(message, descriptor, link).map(Taken::Mapped),
    }
}

/// Maps the segment that a packet carries.
fn map(
    message: Event,
    descriptor: Option<OwnedFd>,
    link: &Arc<Link>,
) -> Result<Arc<SegmentMap>, ClientError> {
    const MESSAGE: &str = "HandoffMessage";
    let segment = match message {
        Event::Segment(segment) => segment,
        Event::Refused(refused) => {
            return Err(ClientError::new(
                Reason::from_name(&refused.reason).unwrap_or(Reason::Internal),
                format!("forebayd refuses the handoff session: {}", refused.reason),
            ));
        }
        _ => return Err(Malformed::new(MESSAGE, "it is none that a daemon sends").into()),
    };
    let descriptor =
        descriptor.ok_or_else(|| Malformed::new(MESSAGE, "a segment without its descriptor"))?;
    // Views may outlive the session, and then there is nobody to tell.
    let (link, id) = (Arc::downgrade(link), segment.segment_id);
    let unmapped = move || link.upgrade().into_iter().for_each(|link| link.unmapped(id));
    let map = SegmentMap::open_with(descriptor, unmapped)?;
    if map.id().0 != segment.segment_id || map.bytes() as u64 != segment.bytes {
        let what =
            format!("segment {} of {} bytes is another one", segment.segment_id, segment.bytes);
        return Err(Malformed::new(MESSAGE, what).into());
    }
    Ok(map)
}

/// Registers what comes with a device. At the end its thread lets go of the registrations.
fn register_with(
    device: Arc<dyn Device>,
    received: &Arc<watch::Sender<Received>>,
) -> Result<Registrar, ClientError> {
    let (done, over) = (Arc::clone(received), Arc::clone(received));
    let done = move |id, registered| {
        let mut registered = Some(registered);
        done.send_modify(|received| {
            if let Some(mapped) = received.segments.get_mut(&id) {
                mapped.registration = registered.take();
            }
        });
        // It was retired meanwhile: ended here, outside of the lock.
        drop(registered);
    };
    let over = move || {
        let mut ended = Vec::new();
        over.send_modify(|received| {
            ended.extend(received.segments.values_mut().map(|mapped| mapped.registration.take()));
        });
        drop(ended);
    };
    Registrar::start(device, done, over)
}

/// A connection that never blocks.
async fn connect(path: &Path) -> io::Result<OwnedFd> {
    let address = SocketAddrUnix::new(path)?;
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
    loop {
        match rustix::net::connect(&socket, &address) {
            Ok(()) => return Ok(socket),
            Err(Errno::AGAIN) => tokio::time::sleep(CONNECT_PAUSE).await,
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}
