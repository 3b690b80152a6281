//! A small daemon for tests: the real protocol over real sockets with real segments, and bytes
//! from a list in place of origins and caches.
//!
//! It lends at most [`Script::slots`] slots at one time, fills them in plan order and delivers
//! them in an order drawn from a seed. A [`Fault`] is what a daemon may do wrong, or be made to do:
//!
//! * refuse a load, fail or stall after some grants, or never answer at all;
//! * name a stale generation, grant bytes twice, announce less or more than it grants;
//! * keep a segment to itself;
//! * end a prefetch or a verification before it is done, or find that what it cached has gone bad.
//!
//! What a client must survive: every one of them, with an error that says what happened, and no
//! lease left behind.

#![allow(dead_code, unreachable_pub, reason = "several test binaries use it, none all of it")]
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::cast_possible_truncation,
    reason = "what goes wrong in here fails the test"
)]

mod explain;
mod health;

use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use forebay_proto::handoff::{decode, encode};
use forebay_proto::pb::forebay_server::{Forebay, ForebayServer};
use forebay_proto::pb::handoff_message::Event as Packet;
use forebay_proto::pb::load_response::Event;
use forebay_proto::{Failure, Shard, pb};
use forebay_shm::{
    Segment, SegmentId, SegmentSpec, SlotIndex, SlotReader, recv_descriptor, send_descriptor,
};
use futures::Stream;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use tokio::io::Interest;
use tokio::net::{UnixListener, UnixStream};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinSet;
use tokio_stream::wrappers::{ReceiverStream, UnixListenerStream};
use tonic::{Request, Response, Status, Streaming};

/// Slots of one segment.
const SEGMENT_SLOTS: u32 = 2;

/// What the daemon does wrong.
#[derive(Debug, Clone)]
pub enum Fault {
    None,
    Refuse(Failure),
    FailAfter(usize, Failure),
    StallAfter(usize),
    BreakAfter(usize),
    Silent,
    StaleGeneration,
    GrantTwice,
    ShortComplete,
    NoSegments,
    Unsealed,
    Unfinished,
    Ill,
    Decayed { bad: pb::BytesByTier, unreadable: pb::BytesByTier },
}

/// What the daemon serves.
#[derive(Debug, Clone)]
pub struct Script {
    pub objects: Vec<(String, Vec<u8>)>,
    pub tensors: Vec<(String, usize, Range<usize>)>,
    /// Of tensors that are no plain row of bytes.
    pub shapes: HashMap<String, Vec<u64>>,
    pub chunk_bytes: usize,
    pub slots: u32,
    pub seed: u64,
    pub fault: Fault,
}

impl Script {
    /// Objects of these sizes with bytes that depend on everything, in chunks of 16 KiB.
    pub fn of(objects: &[(&str, usize)]) -> Self {
        let bytes = |object: usize, len: usize| {
            let word =
                |at: usize| (at as u64 ^ (object as u64) << 40).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            (0..len).map(|at| word(at).to_be_bytes()[at % 3]).collect()
        };
        let objects = objects.iter().enumerate();
        Self {
            objects: objects.map(|(n, (key, len))| ((*key).to_owned(), bytes(n, *len))).collect(),
            tensors: Vec::new(),
            shapes: HashMap::new(),
            chunk_bytes: 16 << 10,
            slots: 4,
            seed: 1,
            fault: Fault::None,
        }
    }

    /// A tensor of an object.
    pub fn tensor(mut self, name: &str, object: usize, range: Range<usize>) -> Self {
        self.tensors.push((name.to_owned(), object, range));
        self
    }

    /// A tensor of bytes with this shape, from `start` of an object.
    pub fn shaped(mut self, name: &str, object: usize, start: usize, shape: &[u64]) -> Self {
        let bytes = shape.iter().product::<u64>() as usize;
        self.shapes.insert(name.to_owned(), shape.to_vec());
        self.tensor(name, object, start..start + bytes)
    }

    fn shape(&self, name: &str, bytes: usize) -> Vec<u64> {
        self.shapes.get(name).cloned().unwrap_or_else(|| vec![bytes as u64])
    }

    pub fn slots(mut self, slots: u32) -> Self {
        self.slots = slots;
        self
    }

    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    pub fn fault(mut self, fault: Fault) -> Self {
        self.fault = fault;
        self
    }

    /// Small objects share a chunk, others have chunks of their own.
    fn plan(&self, wanted: impl Fn(usize, &Range<usize>) -> bool) -> Vec<Vec<pb::Extent>> {
        let is_small = |bytes: &[u8]| bytes.len() < self.chunk_bytes / 4;
        let extent = |object: usize, range: Range<usize>, slot_offset: usize| pb::Extent {
            object_index: object as u64,
            object_offset: range.start as u64,
            slot_offset: slot_offset as u64,
            bytes: range.len() as u64,
        };
        let (mut plan, mut shared, mut at) = (Vec::new(), Vec::new(), 0);
        for (index, (_, bytes)) in self.objects.iter().enumerate() {
            let range = 0..bytes.len();
            if is_small(bytes) && !bytes.is_empty() && wanted(index, &range) {
                shared.push(extent(index, range, at));
                at = (at + bytes.len()).next_multiple_of(256);
            }
        }
        assert!(at <= self.chunk_bytes, "the fake has one shared chunk");
        plan.extend(Some(shared).filter(|shared| !shared.is_empty()));
        for (index, (_, bytes)) in self.objects.iter().enumerate().filter(|(_, o)| !is_small(&o.1))
        {
            for start in (0..bytes.len()).step_by(self.chunk_bytes) {
                let range = start..bytes.len().min(start + self.chunk_bytes);
                plan.extend(wanted(index, &range).then(|| vec![extent(index, range, 0)]));
            }
        }
        plan
    }

    fn pages(&self) -> Vec<pb::ManifestPage> {
        let objects = self.objects.iter().map(|(key, bytes)| pb::Object {
            key: key.clone(),
            bytes: bytes.len() as u64,
            cached_ram_bytes: bytes.len().min(1024) as u64,
            cached_nvme_bytes: bytes.len().min(3 << 10) as u64,
            ..Default::default()
        });
        let tensors = self.tensors.iter().map(|(name, object, range)| pb::Tensor {
            name: name.clone(),
            dtype: "U8".into(),
            shape: self.shape(name, range.len()),
            object_index: *object as u64,
            offset: range.start as u64,
            bytes: range.len() as u64,
        });
        let first = pb::ManifestPage { objects: objects.collect(), ..Default::default() };
        let last =
            pb::ManifestPage { tensors: tensors.collect(), last: true, ..Default::default() };
        vec![first, last]
    }
}

/// What the daemon has seen.
#[derive(Debug, Default, Clone)]
pub struct Seen {
    pub opens: Vec<pb::LoadOpen>,
    pub timeouts: Vec<Option<String>>,
    pub trace_parents: Vec<Option<String>>,
    pub hellos: usize,
    /// Whether they said that they understand a segment's end.
    pub retires: Vec<bool>,
    pub segments_sent: usize,
    /// Segments that clients said they do not map any more.
    pub retired: Vec<u64>,
    pub granted: usize,
    pub released_by_stream: Vec<u64>,
    pub released_by_handoff: Vec<u64>,
    pub copy_spans: usize,
    /// Whether ever more slots were released than copies told of.
    pub released_untold: bool,
    pub streams_over: usize,
    pub prefetches: Vec<pb::PrefetchRequest>,
    pub pins: Vec<pb::PinRequest>,
    pub unpins: Vec<pb::UnpinRequest>,
    pub evictions: Vec<pb::EvictRequest>,
    pub verifications: Vec<pb::VerifyRequest>,
}

/// A running daemon, on threads of its own; it dies like a process when this is dropped.
#[derive(Debug)]
pub struct Fake {
    dir: Option<tempfile::TempDir>,
    daemon: Arc<Daemon>,
    runtime: Option<Runtime>,
}

impl Drop for Fake {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // All of it is gone at once, as of a process. A runtime cannot wait for another one.
            let wait = move || runtime.shutdown_timeout(std::time::Duration::from_secs(10));
            let gone = std::thread::Builder::new().spawn(wait).map(std::thread::JoinHandle::join);
            assert!(matches!(gone, Ok(Ok(()))), "{gone:?}");
        }
    }
}

#[derive(Debug)]
struct Daemon {
    script: Mutex<Script>,
    revision: String,
    segments: Vec<Arc<Segment>>,
    free: Mutex<Vec<(usize, u32)>>,
    freed: Notify,
    /// Segments that have gone.
    retired: Mutex<HashSet<usize>>,
    leases: Mutex<HashMap<u64, (u64, Held)>>,
    sessions: Mutex<HashMap<Vec<u8>, Arc<Session>>>,
    seen: watch::Sender<Seen>,
}

#[derive(Debug)]
struct Session {
    id: u64,
    connected: watch::Sender<bool>,
    sent: Mutex<HashSet<usize>>,
    outgoing: mpsc::Sender<Outgoing>,
    incoming: Mutex<Option<mpsc::Receiver<Outgoing>>>,
}

/// What a session is sent.
#[derive(Debug, Clone, Copy)]
enum Outgoing {
    Segment(usize),
    Retire(usize),
}

/// A slot that is readable until this is dropped.
#[derive(Debug)]
struct Held {
    reader: Option<SlotReader>,
    at: (usize, u32),
    daemon: Arc<Daemon>,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.reader = None;
        if !self.daemon.retired.lock().unwrap().contains(&self.at.0) {
            self.daemon.free.lock().unwrap().insert(0, self.at);
        }
        self.daemon.freed.notify_one();
    }
}

impl Fake {
    pub fn start(script: Script) -> Self {
        Self::start_in(script, tempfile::tempdir().unwrap())
    }

    /// Takes the place of one that was killed.
    pub fn start_in(script: Script, dir: tempfile::TempDir) -> Self {
        for name in ["forebay.sock", "handoff.sock"] {
            std::fs::remove_file(dir.path().join(name)).ok();
        }
        let segments = (0..u64::from(script.slots.div_ceil(SEGMENT_SLOTS)))
            .map(|id| {
                let spec = SegmentSpec {
                    id: SegmentId(id),
                    domain: 0,
                    slot_bytes: script.chunk_bytes,
                    slots: SEGMENT_SLOTS,
                    lock: false,
                };
                Segment::create(&spec).unwrap()
            })
            .collect();
        let free = (0..script.slots)
            .map(|slot| ((slot / SEGMENT_SLOTS) as usize, slot % SEGMENT_SLOTS))
            .collect();
        let daemon = Arc::new(Daemon {
            script: Mutex::new(script),
            revision: format!("b3:{}", "5a".repeat(32)),
            segments,
            free: Mutex::new(free),
            freed: Notify::new(),
            retired: Mutex::default(),
            leases: Mutex::default(),
            sessions: Mutex::default(),
            seen: watch::channel(Seen::default()).0,
        });
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let handle = runtime.handle().clone();
        let _inside = handle.enter();
        let grpc = UnixListener::bind(dir.path().join("forebay.sock")).unwrap();
        let service = ForebayServer::new(Service(Arc::clone(&daemon)));
        let server = tonic::transport::Server::builder().add_service(service);
        let accepting = accept(handoff(&dir.path().join("handoff.sock")), Arc::clone(&daemon));
        let mut tasks = JoinSet::new();
        tasks.spawn_on(accepting, &handle);
        tasks.spawn_on(
            async move {
                server.serve_with_incoming(UnixListenerStream::new(grpc)).await.unwrap();
            },
            &handle,
        );
        tasks.detach_all();
        Self { dir: Some(dir), daemon, runtime: Some(runtime) }
    }

    pub fn socket(&self) -> PathBuf {
        self.dir.as_ref().unwrap().path().join("forebay.sock")
    }

    pub fn endpoint(&self) -> String {
        format!("unix://{}", self.socket().display())
    }

    /// From here on.
    pub fn set_fault(&self, fault: Fault) {
        self.daemon.script.lock().unwrap().fault = fault;
    }

    pub fn object(&self, index: usize) -> Vec<u8> {
        self.daemon.script.lock().unwrap().objects[index].1.clone()
    }

    pub fn seen(&self) -> Seen {
        self.daemon.seen.borrow().clone()
    }

    /// Waits until the daemon has seen it.
    pub async fn until(&self, seen: impl FnMut(&Seen) -> bool) {
        self.daemon.seen.subscribe().wait_for(seen).await.unwrap();
    }

    /// Waits until so many leases are held.
    pub async fn until_leased(&self, count: usize) {
        self.until(|_| self.daemon.leases.lock().unwrap().len() == count).await;
    }

    /// Takes so many slots, as other loads would, until the result is dropped.
    pub fn occupy(&self, slots: usize) -> Vec<impl Sized> {
        (0..slots).map(|_| self.daemon.take_slot(&[]).unwrap()).collect()
    }

    /// Lends nothing of a segment any more, and tells every session that it has gone. Its slots may
    /// be lent yet: then the daemon tells too early.
    pub async fn retire(&self, index: usize) {
        self.daemon.retired.lock().unwrap().insert(index);
        self.daemon.free.lock().unwrap().retain(|(of, _)| *of != index);
        let sessions: Vec<_> = self.daemon.sessions.lock().unwrap().values().cloned().collect();
        for session in sessions {
            session.outgoing.send(Outgoing::Retire(index)).await.unwrap();
        }
    }

    /// [`Fake::until`], blocking.
    pub fn wait(&self, seen: impl FnMut(&Seen) -> bool) {
        self.runtime.as_ref().unwrap().block_on(self.until(seen));
    }

    /// [`Fake::until_leased`], blocking.
    pub fn wait_leased(&self, count: usize) {
        self.runtime.as_ref().unwrap().block_on(self.until_leased(count));
    }

    /// Dies; its files stay.
    pub fn kill(mut self) -> tempfile::TempDir {
        self.dir.take().unwrap()
    }
}

impl Daemon {
    fn saw(&self, note: impl FnOnce(&mut Seen)) {
        self.seen.send_modify(note);
    }

    fn script(&self) -> Script {
        self.script.lock().unwrap().clone()
    }

    /// Answers as if nothing were wrong, or as the fault has it.
    async fn answer<T>(&self, response: T) -> Result<Response<T>, Status> {
        match self.script().fault {
            Fault::Silent => std::future::pending().await,
            Fault::Refuse(failure) => Err(failure.to_status()),
            _ => Ok(Response::new(response)),
        }
    }

    /// The events of a stream, without the last one if the daemon is to end it early.
    async fn stream<T: Send + 'static>(
        &self,
        mut events: Vec<T>,
    ) -> Result<Response<Responses<T>>, Status> {
        if let Fault::Unfinished = self.script().fault {
            events.pop();
        }
        let events = tokio_stream::iter(events.into_iter().map(Ok));
        self.answer(Box::pin(events) as Responses<T>).await
    }

    fn take_slot(self: &Arc<Self>, extents: &[pb::Extent]) -> Option<Held> {
        let at = self.free.lock().unwrap().pop()?;
        let mut writer = self.segments[at.0].writer(SlotIndex(at.1)).unwrap();
        let script = self.script.lock().unwrap();
        for extent in extents {
            let [from, to, len] =
                [extent.object_offset, extent.slot_offset, extent.bytes].map(|n| n as usize);
            let object = &script.objects[extent.object_index as usize].1;
            writer.as_mut_slice()[to..to + len].copy_from_slice(&object[from..from + len]);
        }
        Some(Held { reader: Some(writer.publish()), at, daemon: Arc::clone(self) })
    }

    fn release(&self, ids: &[u64]) {
        let ended: Vec<_> = {
            let mut leases = self.leases.lock().unwrap();
            ids.iter().filter_map(|id| leases.remove(id)).collect()
        };
        drop(ended);
        self.saw(|_| {});
    }

    /// Frees what a session holds that is not connected any more.
    fn end_session(&self, id: u64) {
        if self.sessions.lock().unwrap().values().any(|session| session.id == id) {
            return;
        }
        let theirs: Vec<u64> = {
            let leases = self.leases.lock().unwrap();
            leases.iter().filter(|(_, (of, _))| *of == id).map(|(lease, _)| *lease).collect()
        };
        self.release(&theirs);
    }

    fn session(&self, token: &[u8]) -> Result<(Vec<u8>, Arc<Session>), Status> {
        static SESSIONS: AtomicU64 = AtomicU64::new(1);
        let mut sessions = self.sessions.lock().unwrap();
        if !token.is_empty() {
            let session = sessions.get(token).ok_or_else(|| Status::invalid_argument("session"))?;
            return Ok((token.to_vec(), Arc::clone(session)));
        }
        let id = SESSIONS.fetch_add(1, Ordering::Relaxed);
        let (outgoing, incoming) = mpsc::channel(64);
        let session = Arc::new(Session {
            id,
            connected: watch::channel(false).0,
            sent: Mutex::default(),
            outgoing,
            incoming: Mutex::new(Some(incoming)),
        });
        let token = [id.to_le_bytes(), id.to_be_bytes()].concat();
        sessions.insert(token.clone(), Arc::clone(&session));
        Ok((token, session))
    }
}

fn handoff(path: &std::path::Path) -> UnixListener {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let kind = SocketType::SEQPACKET;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, kind, flags, None).unwrap();
    rustix::net::bind(&socket, &SocketAddrUnix::new(path).unwrap()).unwrap();
    rustix::net::listen(&socket, 16).unwrap();
    UnixListener::from_std(socket.into()).unwrap()
}

async fn accept(socket: UnixListener, daemon: Arc<Daemon>) {
    let mut connections = JoinSet::new();
    loop {
        let (connection, _) = socket.accept().await.unwrap();
        connections.spawn(attend(connection, Arc::clone(&daemon)));
    }
}

async fn receive(connection: &UnixStream) -> Option<Packet> {
    let mut packet = [0; 4096];
    let receive = || recv_descriptor(connection.as_fd(), &mut packet);
    let (length, _) = connection.async_io(Interest::READABLE, receive).await.ok()?;
    (length > 0).then(|| decode(&packet[..length]).unwrap())
}

async fn attend(connection: UnixStream, daemon: Arc<Daemon>) {
    let Some(Packet::Hello(hello)) = receive(&connection).await else { panic!("no hello") };
    let session = Arc::clone(&daemon.sessions.lock().unwrap()[&hello.session.to_vec()]);
    let mut outgoing = session.incoming.lock().unwrap().take().expect("one connection");
    daemon.saw(|seen| {
        seen.hellos += 1;
        seen.retires.push(hello.retires);
    });
    session.connected.send_replace(true);
    loop {
        tokio::select! {
            packet = receive(&connection) => match packet {
                Some(Packet::Release(release)) => {
                    daemon.saw(|seen| seen.released_by_handoff.extend(&release.lease_ids));
                    daemon.release(&release.lease_ids);
                }
                Some(Packet::Retired(retired)) => {
                    daemon.saw(|seen| seen.retired.extend(&retired.segment_ids));
                }
                Some(_) => panic!("no such packet is expected"),
                None => break,
            },
            Some(out) = outgoing.recv() => match out {
                Outgoing::Segment(index) => send(&connection, &daemon, index).await,
                Outgoing::Retire(index) => retire(&connection, &daemon, index).await,
            },
        }
    }
    daemon.sessions.lock().unwrap().remove(&hello.session.to_vec());
    daemon.end_session(session.id);
}

async fn send(connection: &UnixStream, daemon: &Daemon, index: usize) {
    let segment = &daemon.segments[index];
    let (segment_id, bytes) = (segment.id().0, segment.bytes() as u64);
    let packet = encode(Packet::Segment(pb::SegmentDescriptor { segment_id, bytes }));
    let unsealed = rustix::fs::memfd_create("x", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    let descriptor = match daemon.script().fault {
        Fault::Unsealed => unsealed.as_fd(),
        _ => segment.descriptor(),
    };
    let send = || send_descriptor(connection.as_fd(), &packet, Some(descriptor));
    connection.async_io(Interest::WRITABLE, send).await.ok();
    daemon.saw(|seen| seen.segments_sent += 1);
}

async fn retire(connection: &UnixStream, daemon: &Daemon, index: usize) {
    let segment_ids = vec![daemon.segments[index].id().0];
    let packet = encode(Packet::Retire(pb::Retire { segment_ids }));
    let send = || send_descriptor(connection.as_fd(), &packet, None);
    connection.async_io(Interest::WRITABLE, send).await.ok();
}

struct Service(Arc<Daemon>);

type Responses<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

type Out = mpsc::Sender<Result<pb::LoadResponse, Status>>;

/// A stream that carries the tasks that feed it.
struct Owned<T> {
    stream: T,
    _tasks: JoinSet<()>,
}

impl<T: Stream + Unpin> Stream for Owned<T> {
    type Item = T::Item;

    fn poll_next(
        mut self: Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<T::Item>> {
        Pin::new(&mut self.stream).poll_next(context)
    }
}

/// Notes the end of a stream, however it comes.
struct Over<'a> {
    daemon: &'a Daemon,
    session: u64,
}

impl Drop for Over<'_> {
    fn drop(&mut self) {
        // The last grant may have come after the session's end.
        self.daemon.end_session(self.session);
        self.daemon.saw(|seen| seen.streams_over += 1);
    }
}

#[tonic::async_trait]
impl Forebay for Service {
    type LoadStream = Responses<pb::LoadResponse>;

    async fn load(
        &self,
        request: Request<Streaming<pb::LoadRequest>>,
    ) -> Result<Response<Self::LoadStream>, Status> {
        let header = |name: &str| {
            request.metadata().get(name).map(|value| value.to_str().unwrap().to_owned())
        };
        let (timeout, trace_parent) = (header("grpc-timeout"), header("traceparent"));
        self.0.saw(|seen| {
            seen.timeouts.push(timeout);
            seen.trace_parents.push(trace_parent);
        });
        let (out, responses) = mpsc::channel(1);
        let mut tasks = JoinSet::new();
        let (daemon, incoming) = (Arc::clone(&self.0), request.into_inner());
        tasks.spawn(async move {
            if let Err(status) = load(&daemon, incoming, &out).await {
                out.send(Err(status)).await.ok();
            }
        });
        let stream = Owned { stream: ReceiverStream::new(responses), _tasks: tasks };
        Ok(Response::new(Box::pin(stream)))
    }

    type PrefetchStream = Responses<pb::PrefetchResponse>;

    async fn prefetch(
        &self,
        request: Request<pb::PrefetchRequest>,
    ) -> Result<Response<Self::PrefetchStream>, Status> {
        use pb::prefetch_response::Event;
        let (script, asked) = (self.0.script(), request.into_inner());
        self.0.saw(|seen| seen.prefetches.push(asked.clone()));
        let total_bytes = script.objects.iter().map(|(_, bytes)| bytes.len() as u64).sum();
        let progress = |done_bytes| {
            Event::Progress(pb::PrefetchProgress { done_bytes, total_bytes, ..Default::default() })
        };
        let mut report = report(&self.0, total_bytes);
        report.placement = asked.placement.as_ref().map(became);
        report.uri = asked.uri;
        let events = [progress(0), progress(total_bytes), Event::Report(report)];
        let events = events.map(|event| pb::PrefetchResponse { event: Some(event) });
        self.0.stream(events.into()).await
    }

    type PackStream = Responses<pb::PackResponse>;

    async fn pack(
        &self,
        request: Request<pb::PackRequest>,
    ) -> Result<Response<Self::PackStream>, Status> {
        use pb::pack_response::Event;
        let pb::PackRequest { source, destination, frame_bytes, level } = request.into_inner();
        let progress = Event::Progress(pb::PackProgress {
            source: source.clone(),
            destination: destination.clone(),
            done_bytes: frame_bytes / 2,
            total_bytes: frame_bytes,
        });
        let report = Event::Report(pb::PackReport {
            source,
            destination,
            objects: 2,
            bytes: frame_bytes,
            packed_bytes: frame_bytes / 2,
            written_objects: 1,
            skipped_objects: 1,
            raw_objects: u64::from(level.unsigned_abs()),
            wall_seconds: 0.5,
            ..Default::default()
        });
        let events = [progress, report];
        let events = events.map(|event| pb::PackResponse { event: Some(event) });
        self.0.stream(events.into()).await
    }

    type ResizeRamStream = Responses<pb::ResizeRamResponse>;

    type SetAliasStream = Responses<pb::SetAliasResponse>;

    async fn set_alias(
        &self,
        request: Request<pb::SetAliasRequest>,
    ) -> Result<Response<Self::SetAliasStream>, Status> {
        use pb::set_alias_response::Event;
        let pb::SetAliasRequest { name, uri, rule } = request.into_inner();
        let progress = Event::Progress(pb::SetAliasProgress {
            step: "store".into(),
            revision: revision(1),
            done_bytes: 1,
            total_bytes: 3,
        });
        let report = Event::Report(pb::SetAliasReport {
            alias: Some(pb::Alias { rule, rule_state: "armed".into(), ..alias(name, uri) }),
            switched: true,
            ..Default::default()
        });
        let events = [progress, report];
        let events = events.map(|event| pb::SetAliasResponse { event: Some(event) });
        self.0.stream(events.into()).await
    }

    async fn rollback(
        &self,
        request: Request<pb::RollbackRequest>,
    ) -> Result<Response<pb::RollbackResponse>, Status> {
        let alias = Some(alias(request.into_inner().name, "s3://b/k".into()));
        self.0.answer(pb::RollbackResponse { alias, wall_seconds: 0.002 }).await
    }

    async fn list_aliases(
        &self,
        request: Request<pb::ListAliasesRequest>,
    ) -> Result<Response<pb::ListAliasesResponse>, Status> {
        let aliases = vec![alias(request.into_inner().name, "s3://b/k".into())];
        self.0.answer(pb::ListAliasesResponse { aliases }).await
    }

    async fn remove_alias(
        &self,
        _request: Request<pb::RemoveAliasRequest>,
    ) -> Result<Response<pb::RemoveAliasResponse>, Status> {
        self.0.answer(pb::RemoveAliasResponse { revisions: 2 }).await
    }

    async fn resize_ram(
        &self,
        request: Request<pb::ResizeRamRequest>,
    ) -> Result<Response<Self::ResizeRamStream>, Status> {
        use pb::resize_ram_response::Event;
        let budget_bytes = request.into_inner().bytes;
        let progress = Event::Progress(pb::ResizeRamProgress {
            budget_bytes,
            held_bytes: budget_bytes * 2,
            retiring_bytes: budget_bytes,
            busy_bytes: budget_bytes / 2,
            owed_bytes: 0,
            clients: 1,
            client_bytes: 4096,
        });
        let report = Event::Report(pb::ResizeRamReport {
            budget_bytes,
            held_bytes: budget_bytes,
            before_bytes: budget_bytes * 2,
            untold_clients: 2,
            untold_bytes: 4096,
            wall_seconds: 0.5,
        });
        let events = [progress, report];
        let events = events.map(|event| pb::ResizeRamResponse { event: Some(event) });
        self.0.stream(events.into()).await
    }

    type StatStream = Responses<pb::StatResponse>;

    async fn stat(
        &self,
        request: Request<pb::StatRequest>,
    ) -> Result<Response<Self::StatStream>, Status> {
        use pb::stat_response::Event;
        let script = self.0.script();
        let summary = pb::StatSummary {
            uri: request.into_inner().uri,
            revision: self.0.revision.clone(),
            object_count: script.objects.len() as u64,
            tensor_count: script.tensors.len() as u64,
            bytes: script.objects.iter().map(|(_, bytes)| bytes.len() as u64).sum(),
            cached: Some(pb::BytesByTier { ram: 1024, nvme: 3 << 10, origin: 0 }),
        };
        let pages = script.pages().into_iter().map(Event::Page);
        let events: Vec<_> = std::iter::once(Event::Summary(summary))
            .chain(pages)
            .map(|event| Ok(pb::StatResponse { event: Some(event) }))
            .collect();
        Ok(Response::new(Box::pin(tokio_stream::iter(events))))
    }

    type ListStream = Responses<pb::ListResponse>;

    async fn list(
        &self,
        _request: Request<pb::ListRequest>,
    ) -> Result<Response<Self::ListStream>, Status> {
        let checkpoint = pb::CachedCheckpoint {
            uri: "s3://b/k/".into(),
            revision: self.0.revision.clone(),
            bytes: 3 << 20,
            cached: Some(pb::BytesByTier { nvme: 2 << 20, ..Default::default() }),
            idle_seconds: 1.5,
            pinned: true,
            ..Default::default()
        };
        let page = pb::ListResponse { checkpoints: vec![checkpoint] };
        Ok(Response::new(Box::pin(tokio_stream::iter([Ok(page)]))))
    }

    async fn pin(
        &self,
        request: Request<pb::PinRequest>,
    ) -> Result<Response<pb::PinResponse>, Status> {
        self.0.saw(|seen| seen.pins.push(request.into_inner()));
        let pinned = pb::PinResponse { checkpoints: 1, nvme_bytes: 2048, missing_bytes: 512 };
        self.0.answer(pinned).await
    }

    async fn unpin(
        &self,
        request: Request<pb::UnpinRequest>,
    ) -> Result<Response<pb::UnpinResponse>, Status> {
        self.0.saw(|seen| seen.unpins.push(request.into_inner()));
        self.0.answer(pb::UnpinResponse { checkpoints: 2 }).await
    }

    async fn evict(
        &self,
        request: Request<pb::EvictRequest>,
    ) -> Result<Response<pb::EvictResponse>, Status> {
        self.0.saw(|seen| seen.evictions.push(request.into_inner()));
        let evicted = pb::EvictResponse {
            checkpoints: 1,
            freed_bytes: 2048,
            leased_bytes: 1,
            nvme_freed_bytes: 4096,
            pinned_checkpoints: 3,
        };
        self.0.answer(evicted).await
    }

    type VerifyStream = Responses<pb::VerifyResponse>;

    async fn verify(
        &self,
        request: Request<pb::VerifyRequest>,
    ) -> Result<Response<Self::VerifyStream>, Status> {
        use pb::verify_response::Event;
        self.0.saw(|seen| seen.verifications.push(request.into_inner()));
        let (bad, unreadable) = match self.0.script().fault {
            Fault::Decayed { bad, unreadable } => (Some(bad), Some(unreadable)),
            _ => (None, None),
        };
        let checked = pb::BytesByTier { ram: 1024, nvme: 3 << 10, origin: 0 };
        let summary = pb::VerifySummary { checkpoints: 1, checked: Some(checked), bad, unreadable };
        let progress = |checked_bytes| {
            Event::Progress(pb::VerifyProgress { checked_bytes, total_bytes: 4096 })
        };
        let events = [progress(0), progress(4096), Event::Summary(summary)];
        let events = events.map(|event| pb::VerifyResponse { event: Some(event) });
        self.0.stream(events.into()).await
    }

    async fn explain(
        &self,
        request: Request<pb::ExplainRequest>,
    ) -> Result<Response<pb::ExplainResponse>, Status> {
        self.0.answer(explain::explained(request.into_inner().load_id)).await
    }

    type TraceStream = Responses<pb::TraceResponse>;

    async fn trace(
        &self,
        request: Request<pb::TraceRequest>,
    ) -> Result<Response<Self::TraceStream>, Status> {
        self.0.stream(explain::traced(&request.into_inner().load_id)).await
    }

    async fn capacity(
        &self,
        _request: Request<pb::CapacityRequest>,
    ) -> Result<Response<pb::CapacityResponse>, Status> {
        self.0.answer(health::capacity()).await
    }

    async fn doctor(
        &self,
        _request: Request<pb::DoctorRequest>,
    ) -> Result<Response<pb::DoctorResponse>, Status> {
        let ill = matches!(self.0.script().fault, Fault::Ill);
        self.0.answer(health::checked(ill)).await
    }

    async fn status(
        &self,
        _request: Request<pb::StatusRequest>,
    ) -> Result<Response<pb::StatusResponse>, Status> {
        self.0
            .answer(pb::StatusResponse {
                version: "fake".into(),
                degraded: vec!["memory is not locked".into()],
                numa: Some(pb::NumaStatus { nodes: vec![node(0), node(1)], misplaced_slots: 5 }),
                names: vec![pb::DnsStatus {
                    name: "store.example".into(),
                    state: "fresh".into(),
                    addresses: vec!["192.0.2.1".into(), "192.0.2.2".into()],
                    age_seconds: 12.0,
                    last_failure: String::new(),
                }],
                endpoints: vec![pb::EndpointStatus {
                    origin: "s3://models".into(),
                    limit: 24,
                    inflight: 7,
                    breaker: "open".into(),
                    breaker_open_seconds: 3.0,
                    retry_tokens: 486,
                    sustained_bytes_per_second: 2.5e9,
                    ..Default::default()
                }],
                addresses: vec![pb::AddressStatus {
                    host: "store.example".into(),
                    address: "192.0.2.2".into(),
                    ejected_seconds: 30.0,
                    failures: 5,
                    ..Default::default()
                }],
                nvme: Some(pb::NvmeStatus {
                    state: "recovering".into(),
                    budget_bytes: 100 << 30,
                    stored_bytes: 3 << 30,
                    extents: 412,
                    engine: "threads".into(),
                    engine_reason: "io_uring is forbidden".into(),
                    recovery_seconds: -1.0,
                    ..Default::default()
                }),
                ..Default::default()
            })
            .await
    }
}

/// What the alias that is called so stands for.
fn alias(name: String, uri: String) -> pb::Alias {
    let of = |n| pb::AliasRevision {
        uri: uri.clone(),
        revision: revision(n),
        bytes: 3 << 20,
        object_count: 2,
        nvme_bytes: 3 << 20,
        damaged: String::new(),
    };
    let event = pb::AliasEvent {
        unix_seconds: 1_700_000_000.0,
        kind: "set".into(),
        uri: uri.clone(),
        revision: revision(1),
        from_revision: revision(2),
        why: String::new(),
    };
    pb::Alias {
        name,
        current: Some(of(1)),
        previous: Some(of(2)),
        since_unix_seconds: 1_700_000_000.0,
        history: vec![event],
        ..Default::default()
    }
}

fn revision(n: u8) -> String {
    format!("b3:{}", format!("{n:02x}").repeat(32))
}

fn report(daemon: &Daemon, bytes: u64) -> pb::LoadReport {
    pb::LoadReport {
        load_id: "fake-load".into(),
        uri: "fake://".into(),
        revision: daemon.revision.clone(),
        bytes,
        wall_seconds: 0.5,
        unattributed_seconds: 0.5,
        lane: "interactive".into(),
        ..Default::default()
    }
}

/// A NUMA node, every number of which is another.
fn node(node: u32) -> pb::NodeStatus {
    pb::NodeStatus {
        node,
        cpus: format!("{}-{}", 8 * node, 8 * node + 7),
        memory_bytes: 64 << 30,
        slots: 321,
        strayed_slots: 12,
        cached_bytes: 3 << 20,
        leased_bytes: 4 << 20,
        filling_bytes: 5 << 20,
        free_bytes: 6 << 20,
        workers: 7,
        pinned_workers: 6,
        worker_jobs: 4321,
        offnode_jobs: 77,
    }
}

/// What became of a placement: some of it.
fn became(placement: &pb::Placement) -> pb::PlacementReport {
    let asked = match placement.near.as_ref().expect("a place") {
        pb::placement::Near::Gpu(address) => format!("gpu {address}"),
        pb::placement::Near::NumaNode(node) => format!("node {node}"),
    };
    let degraded = "why not".into();
    pb::PlacementReport { asked, node: Some(1), near_bytes: 4096, far_bytes: 1024, degraded }
}

async fn say(out: &Out, event: Event) -> Result<(), Status> {
    let response = pb::LoadResponse { event: Some(event) };
    out.send(Ok(response)).await.map_err(|_| Status::cancelled("client"))
}

/// The client's half, until it closes.
async fn hear(
    daemon: Arc<Daemon>,
    mut incoming: Streaming<pb::LoadRequest>,
    closed: watch::Sender<bool>,
) {
    while let Ok(Some(request)) = incoming.message().await {
        match request.event.expect("an event") {
            pb::load_request::Event::Release(release) => {
                daemon.saw(|seen| {
                    seen.released_by_stream.extend(&release.lease_ids);
                    seen.released_untold |= seen.released_by_stream.len() > seen.copy_spans;
                });
                daemon.release(&release.lease_ids);
            }
            pb::load_request::Event::Copies(copies) => {
                daemon.saw(|seen| seen.copy_spans += copies.spans.len());
            }
            pb::load_request::Event::Open(_) => panic!("a second open"),
        }
    }
    closed.send_replace(true);
}

async fn load(
    daemon: &Arc<Daemon>,
    mut incoming: Streaming<pb::LoadRequest>,
    out: &Out,
) -> Result<(), Status> {
    let first = incoming.message().await?.and_then(|request| request.event);
    let Some(pb::load_request::Event::Open(open)) = first else { panic!("no open") };
    let placement = open.placement.as_ref().map(became);
    let script = daemon.script();
    daemon.saw(|seen| seen.opens.push(open.clone()));
    match &script.fault {
        Fault::Refuse(failure) => return Err(failure.to_status()),
        Fault::Silent => std::future::pending().await,
        _ => {}
    }
    let selects =
        |globs: &[String], text: &str| globs.is_empty() || globs.iter().any(|glob| glob == text);
    let shard = open.shard.clone().map(|shard| Shard::receive(shard).unwrap());
    let wanted = |object: usize, range: &Range<usize>| {
        let touches = |(name, of, bytes): &(String, usize, Range<usize>)| {
            let overlaps = bytes.start < range.end && range.start < bytes.end;
            if *of != object || !selects(&open.tensors, name) || !overlaps {
                return false;
            }
            let Some(shard) = &shard else { return true };
            let shape = script.shape(name, bytes.len());
            let slice = shard.slice(name, "U8", &shape, bytes.len() as u64).unwrap();
            let within = |at: usize| at.clamp(bytes.start, bytes.end) - bytes.start;
            slice.touches(within(range.start) as u64..within(range.end) as u64)
        };
        selects(&open.objects, &script.objects[object].0)
            && (open.tensors.is_empty() && shard.is_none() || script.tensors.iter().any(touches))
    };
    let plan = script.plan(wanted);
    let bytes = |extents: &[pb::Extent]| extents.iter().map(|extent| extent.bytes).sum::<u64>();
    let granted_bytes = plan.iter().map(|extents| bytes(extents)).sum();
    let (token, session) = daemon.session(&open.session)?;
    let _over = Over { daemon, session: session.id };
    let opened = pb::LoadOpened {
        load_id: if open.load_id.is_empty() { "fake-load".into() } else { open.load_id.clone() },
        session: token.into(),
        uri: open.uri.clone(),
        revision: daemon.revision.clone(),
        object_count: script.objects.len() as u64,
        tensor_count: script.tensors.len() as u64,
        chunk_count: plan.len() as u64,
        granted_bytes,
        checkpoint_bytes: script.objects.iter().map(|(_, bytes)| bytes.len() as u64).sum(),
        chunk_bytes: script.chunk_bytes as u64,
        window_bytes: u64::from(script.slots) * script.chunk_bytes as u64,
        trace_id: String::new(),
    };
    say(out, Event::Opened(opened)).await?;
    for page in script.pages() {
        say(out, Event::Manifest(page)).await?;
    }
    session.connected.subscribe().wait_for(|connected| *connected).await.unwrap();
    let (closed_sender, mut closed) = watch::channel(false);
    let mut tasks = JoinSet::new();
    tasks.spawn(hear(Arc::clone(daemon), incoming, closed_sender));
    grant_all(daemon, &script, &session, &plan, out).await?;
    say(out, Event::Complete(pb::LoadComplete {})).await?;
    closed.wait_for(|closed| *closed).await.unwrap();
    let mut report = report(daemon, granted_bytes);
    report.placement = placement;
    say(out, Event::Report(report)).await
}

/// Fills slots in plan order, delivers them in an order of its own.
async fn grant_all(
    daemon: &Arc<Daemon>,
    script: &Script,
    session: &Session,
    plan: &[Vec<pb::Extent>],
    out: &Out,
) -> Result<(), Status> {
    static LEASES: AtomicU64 = AtomicU64::new(1);
    let mut dice = script.seed;
    let mut filled: Vec<(usize, Held)> = Vec::new();
    let (mut next, mut granted) = (0, 0);
    while granted < plan.len() {
        while next < plan.len()
            && let Some(held) = daemon.take_slot(&plan[next])
        {
            filled.push((next, held));
            next += 1;
        }
        if filled.is_empty() {
            daemon.freed.notified().await;
            continue;
        }
        dice = dice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let (chunk, held) = filled.swap_remove((dice >> 33) as usize % filled.len());
        let lease_id = LEASES.fetch_add(1, Ordering::Relaxed);
        let (index, slot) = held.at;
        let generation = held.reader.as_ref().unwrap().generation().0;
        daemon.leases.lock().unwrap().insert(lease_id, (session.id, held));
        daemon.saw(|seen| seen.granted += 1);
        let grant = pb::Grant {
            lease_id,
            chunk_index: chunk as u64,
            segment_id: index as u64,
            slot,
            generation: generation + u64::from(matches!(script.fault, Fault::StaleGeneration)),
            tier: pb::Tier::Origin.into(),
            extents: plan[chunk].clone(),
        };
        say(out, Event::Grant(grant.clone())).await?;
        granted += 1;
        // The descriptor comes after the grant that needs it: clients have to wait for it.
        let is_new = session.sent.lock().unwrap().insert(index);
        if is_new && !matches!(script.fault, Fault::NoSegments) {
            session.outgoing.send(Outgoing::Segment(index)).await.ok();
        }
        match &script.fault {
            Fault::FailAfter(after, failure) if granted == *after => {
                return Err(failure.to_status());
            }
            Fault::StallAfter(after) if granted == *after => std::future::pending().await,
            Fault::BreakAfter(after) if granted == *after => {
                return Err(Status::unknown("h2 protocol error"));
            }
            Fault::GrantTwice => say(out, Event::Grant(grant)).await?,
            Fault::ShortComplete if granted + 1 == plan.len() => return Ok(()),
            _ => {}
        }
    }
    Ok(())
}
