//! The stream of a load: from `opened` to the report.
//!
//! ```text
//!   open ──► opened, manifest ──► Granting ── complete ──► Complete ── report ──► done
//!                                    │                        │
//!                                    └── error or drop ───────┴──► Ended: leases go by handoff
//! ```
//!
//! [`GrantStream::next_chunk`] may be dropped at any await: a grant is owned, with its lease, from
//! the moment it is received.
//!
//! When a stream ends early, releases that were on their way may be lost, so all are sent again
//! over the handoff socket. When it was not the daemon that ended it, grants may be lost as well:
//! leases that only the daemon knows of. Only the end of the session frees those, so the client
//! stops using it for new loads, and it ends with the last view of it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use forebay_device::{CopySpan, Device, MemoryPath};
use forebay_proto::model::{Grant, LeaseId, Malformed, Manifest, Opened, Report};
use forebay_proto::pb::load_response::Event;
use forebay_proto::{Placement, Reason, Shard, pb};
use forebay_shm::{Generation, SlotIndex};
use tokio::time::Instant;
use tonic::Streaming;

use crate::chunk::{Chunk, LentSlot};
use crate::client::Client;
use crate::coverage::Coverage;
use crate::error::{ClientError, is_from_daemon};
use crate::options::{Lane, LoadRequest, VerifyPolicy};
use crate::outbox::{Lease, Outbox};
use crate::session::Session;
use crate::wire::{self, Deadline};

/// How long a daemon may take for a report when it has nothing else to wait for.
const REPORT_WAIT: Duration = Duration::from_secs(30);

/// How long the stream may take to say why a load ended whose session is gone.
const OWN_END_WAIT: Duration = Duration::from_secs(1);

#[derive(Debug)]
enum Phase {
    Granting,
    Complete,
    Ended(ClientError),
    Reported,
}

/// The receiving side of one load.
#[derive(Debug)]
pub(crate) struct GrantStream {
    client: Client,
    deadline: Deadline,
    inbound: Streaming<pb::LoadResponse>,
    outbox: Arc<Outbox>,
    session: Arc<Session>,
    opened: Opened,
    opened_at: Instant,
    manifest: Arc<Manifest>,
    coverage: Coverage,
    /// A grant whose segment has not come yet.
    arriving: Option<(Grant, Lease)>,
    phase: Phase,
    /// Chunks are used where they are lent.
    in_place: bool,
}

/// A load up to its `opened`: who is on the stream, and how to speak.
struct Opening {
    client: Client,
    deadline: Deadline,
    inbound: Streaming<pb::LoadResponse>,
    outbox: Arc<Outbox>,
}

impl GrantStream {
    /// Opens a load and receives its manifest.
    ///
    /// The connection may have ended while nobody used it, with a daemon that was restarted, and
    /// the first call may be the one that finds out. It said nothing to the daemon of now, so it is
    /// made again, once.
    pub(crate) async fn open(client: &Client, request: LoadRequest) -> Result<Self, ClientError> {
        let deadline = client.deadline(request.deadline);
        match Box::pin(Self::open_once(client, request.clone(), deadline)).await {
            Err(error) if error.reason() == Reason::DaemonUnreachable => {
                Box::pin(Self::open_once(client, request, deadline)).await
            }
            opened => opened,
        }
    }

    async fn open_once(
        client: &Client,
        request: LoadRequest,
        deadline: Deadline,
    ) -> Result<Self, ClientError> {
        let handoff = client.endpoint().handoff().ok_or_else(|| {
            let message =
                format!("a load needs the daemon's Unix socket, not {}", client.endpoint());
            ClientError::new(Reason::BadRequest, message)
        })?;
        let (known, device) = (client.session(), client.device());
        let session = known.as_ref().map(|session| session.token().as_bytes().to_vec());
        let outbox = Outbox::new(pb::LoadOpen {
            uri: request.uri,
            load_id: request.load_id,
            workload: request.workload,
            lane: lane(request.lane).into(),
            session: session.unwrap_or_default().into(),
            tensors: request.tensors,
            objects: request.objects,
            verify: policy(request.verify).into(),
            sha256: expected(request.sha256),
            placement: placement(request.placement, device.as_deref()).map(Placement::to_wire),
            shard: request.shard.as_ref().map(Shard::to_wire),
            device: device.as_deref().map(device_use),
        });
        let call = wire::request(outbox.requests(), deadline, client)?;
        let response = deadline.cut(client.grpc().load(call)).await?;
        let inbound = response.map_err(|status| client.failed(&status))?.into_inner();
        let mut opening = Opening { client: client.clone(), deadline, inbound, outbox };
        let Event::Opened(opened) = opening.receive().await? else {
            return Err(unexpected("something else came before `opened`"));
        };
        let opened_at = Instant::now();
        let opened = Opened::receive(opened)?;
        let session = match known.filter(|session| *session.token() == opened.session) {
            Some(session) => session,
            None => {
                let connecting = Session::connect(&handoff, opened.session.clone(), device);
                let session = deadline.cut(connecting).await??;
                client.keep_session(&session);
                session
            }
        };
        let mut stream = opening.stream(session, opened, opened_at);
        stream.receive_manifest().await?;
        Ok(stream)
    }

    /// What the daemon said first.
    pub(crate) fn opened(&self) -> &Opened {
        &self.opened
    }

    /// What is being loaded.
    pub(crate) fn manifest(&self) -> &Arc<Manifest> {
        &self.manifest
    }

    /// When the load was opened.
    pub(crate) fn opened_at(&self) -> Instant {
        self.opened_at
    }

    /// Chunks will be copied: whoever does tells the result when.
    pub(crate) fn copy_log(&mut self) -> (Arc<Outbox>, Instant) {
        self.in_place = false;
        (Arc::clone(&self.outbox), self.opened_at)
    }

    /// Ends the load because of something that happened to its chunks.
    pub(crate) fn cancel(&mut self, error: ClientError) {
        self.end(error);
    }

    async fn receive_manifest(&mut self) -> Result<(), ClientError> {
        let mut builder = Manifest::builder(self.opened.object_count, self.opened.tensor_count);
        loop {
            let page = match self.receive().await {
                Ok(Event::Manifest(page)) => page,
                Ok(_) => return Err(self.end(unexpected("something else came amid the manifest"))),
                Err(error) => return Err(error),
            };
            match builder.push(page) {
                Ok(false) => {}
                Ok(true) => break,
                Err(malformed) => return Err(self.end(malformed.into())),
            }
        }
        let manifest = builder.finish().map_err(|malformed| self.end(malformed.into()))?;
        self.manifest = Arc::new(manifest);
        Ok(())
    }

    /// The next chunk; none when all were granted.
    pub(crate) async fn next_chunk(&mut self) -> Result<Option<Chunk>, ClientError> {
        loop {
            match &self.phase {
                Phase::Ended(error) => return Err(error.clone()),
                Phase::Complete | Phase::Reported => return Ok(None),
                Phase::Granting => {}
            }
            if self.arriving.is_some() {
                return match self.open_chunk().await {
                    Ok(chunk) => Ok(Some(chunk)),
                    Err(error) => Err(self.end(error)),
                };
            }
            let taken = match self.receive().await? {
                Event::Grant(grant) => self.take_grant(grant),
                Event::Complete(_) => self.take_complete(),
                _ => Err(unexpected("something else came amid the grants")),
            };
            taken.map_err(|error| self.end(error))?;
        }
    }

    fn take_grant(&mut self, grant: pb::Grant) -> Result<(), ClientError> {
        let lease = self.outbox.lease(LeaseId(grant.lease_id));
        let grant = Grant::receive(grant, &self.manifest, self.opened.chunk_bytes)?;
        self.coverage.add(&grant)?;
        self.arriving = Some((grant, lease));
        Ok(())
    }

    fn take_complete(&mut self) -> Result<(), ClientError> {
        let (chunks, bytes) = self.coverage.totals();
        if (chunks, bytes) != (self.opened.chunk_count, self.opened.granted_bytes) {
            let what = format!(
                "{chunks} chunks of {bytes} bytes came, {} of {} were announced",
                self.opened.chunk_count, self.opened.granted_bytes
            );
            return Err(Malformed::new("LoadComplete", what).into());
        }
        self.phase = Phase::Complete;
        Ok(())
    }

    /// Opens the chunk whose grant has arrived, once its segment has.
    async fn open_chunk(&mut self) -> Result<Chunk, ClientError> {
        let segment_id = self.arriving.as_ref().map_or(0, |(grant, _)| grant.segment_id);
        let (segment, registration) = match self.session.segment(segment_id, self.deadline).await {
            Ok(segment) => segment,
            Err(error) => return Err(self.own_end_or(error).await),
        };
        let Some((grant, lease)) = self.arriving.take() else {
            return Err(unexpected("a grant was opened twice"));
        };
        let (slot, generation) = (SlotIndex(grant.slot), Generation(grant.generation));
        let view = segment.view(slot, generation, grant.slot_len())?;
        if self.in_place {
            // The bytes are usable from now on.
            let (now, bytes) = (Instant::now().into_std(), grant.slot_len() as u64);
            self.outbox.copied(&CopySpan { started: now, finished: now, bytes }, self.opened_at);
        }
        Ok(Chunk {
            slot: Arc::new(LentSlot::new(view, registration, lease)),
            index: grant.chunk,
            tier: grant.tier,
            extents: grant.extents,
            manifest: Arc::clone(&self.manifest),
        })
    }

    /// Why the load ended, if its stream says so now. A load that fails before the daemon has read
    /// the hello takes its session with it, and that the session is gone explains nothing.
    async fn own_end_or(&mut self, error: ClientError) -> ClientError {
        let limited = self.deadline.at_most(Instant::now(), OWN_END_WAIT);
        let ending = own_end(&mut self.inbound, limited, &self.client);
        limited.cut(ending).await.ok().flatten().unwrap_or(error)
    }

    /// Waits for the last lease, then for the report.
    ///
    /// The deadline was for the handing over. How long the caller keeps its views is its own
    /// affair; once they are gone, only a daemon that hangs owes the report.
    pub(crate) async fn report(&mut self) -> Result<Report, ClientError> {
        self.deadline = Deadline::none();
        let outbox = Arc::clone(&self.outbox);
        let early = tokio::select! {
            biased;
            () = outbox.settled() => None,
            event = self.receive() => Some(event),
        };
        if let Some(event) = early {
            event?;
            return Err(self.end(unexpected("something came after `complete`")));
        }
        self.outbox.close();
        self.deadline = Deadline::after(Instant::now(), Some(REPORT_WAIT));
        let Event::Report(report) = self.receive().await? else {
            return Err(self.end(unexpected("something else came instead of the report")));
        };
        let report = Report::receive(report).map_err(|malformed| self.end(malformed.into()))?;
        match self.deadline.cut(self.inbound.message()).await {
            Ok(Ok(None)) => {
                self.phase = Phase::Reported;
                self.retire_unanswered();
                Ok(report)
            }
            Ok(Ok(Some(_))) => Err(self.end(unexpected("something came after the report"))),
            Ok(Err(status)) => Err(self.end(self.client.failed(&status))),
            Err(expired) => Err(self.end(expired)),
        }
    }

    async fn receive(&mut self) -> Result<Event, ClientError> {
        let received = receive(&mut self.inbound, self.deadline, &self.client).await;
        received.map_err(|(error, by_daemon)| self.end_by(error, by_daemon))
    }

    /// The daemon forgets a session whose last load ended before the hello came: a new load must
    /// not name it.
    fn retire_unanswered(&self) {
        if !self.session.is_answered() {
            self.client.retire_session(&self.session);
        }
    }

    /// Ends the stream from this side.
    fn end(&mut self, error: ClientError) -> ClientError {
        self.end_by(error, false)
    }

    fn end_by(&mut self, error: ClientError, by_daemon: bool) -> ClientError {
        match self.phase {
            Phase::Granting if !by_daemon => self.client.retire_session(&self.session),
            Phase::Granting | Phase::Complete => {}
            Phase::Ended(_) | Phase::Reported => return error,
        }
        self.retire_unanswered();
        self.phase = Phase::Ended(error.clone());
        let released = self.outbox.end(Arc::clone(&self.session));
        self.session.release(&released);
        self.arriving = None;
        error
    }
}

impl Drop for GrantStream {
    fn drop(&mut self) {
        self.end(ClientError::new(Reason::Internal, "the load was dropped"));
    }
}

impl Opening {
    async fn receive(&mut self) -> Result<Event, ClientError> {
        let received = receive(&mut self.inbound, self.deadline, &self.client).await;
        received.map_err(|(error, _)| error)
    }

    fn stream(self, session: Arc<Session>, opened: Opened, opened_at: Instant) -> GrantStream {
        let Self { client, deadline, inbound, outbox } = self;
        GrantStream {
            client,
            deadline,
            inbound,
            outbox,
            session,
            opened,
            opened_at,
            manifest: Arc::default(),
            coverage: Coverage::default(),
            arriving: None,
            phase: Phase::Granting,
            in_place: true,
        }
    }
}

/// The next event, or why there is none and whether it was the daemon that ended the stream.
async fn receive(
    inbound: &mut Streaming<pb::LoadResponse>,
    deadline: Deadline,
    client: &Client,
) -> Result<Event, (ClientError, bool)> {
    let message = deadline.cut(inbound.message()).await.map_err(|expired| (expired, false))?;
    match message {
        Ok(Some(pb::LoadResponse { event: Some(event) })) => Ok(event),
        Ok(Some(_)) => Err((unexpected("a message is empty, or of a newer version"), false)),
        Ok(None) => Err((unexpected("the stream ended without a report"), false)),
        Err(status) => Err((client.failed(&status), is_from_daemon(&status))),
    }
}

/// Why the daemon ended a stream, whatever it sent before; none if it did not.
async fn own_end(
    inbound: &mut Streaming<pb::LoadResponse>,
    deadline: Deadline,
    client: &Client,
) -> Option<ClientError> {
    loop {
        let Err((end, by_daemon)) = receive(inbound, deadline, client).await else { continue };
        return by_daemon.then_some(end);
    }
}

fn unexpected(what: &str) -> ClientError {
    Malformed::new("LoadResponse", what).into()
}

/// Near what the caller says, else near its device.
fn placement(asked: Option<Placement>, device: Option<&dyn Device>) -> Option<Placement> {
    let pci = || device?.info().pci.as_deref()?.parse().ok();
    asked.or_else(|| pci().map(Placement::Gpu))
}

fn device_use(device: &dyn Device) -> pb::DeviceUse {
    let info = device.info();
    let why = match &info.path {
        MemoryPath::Staged { why } => why.as_str(),
        _ => "",
    };
    let kind = info.spec.to_string();
    pb::DeviceUse {
        kind: kind.split(':').next().unwrap_or_default().to_owned(),
        name: at_most(&info.name, 256).to_owned(),
        path: info.path.as_str().to_owned(),
        why: at_most(why, 1024).to_owned(),
    }
}

/// As much of a text as fits into so many bytes.
fn at_most(text: &str, bytes: usize) -> &str {
    text.get(..text.floor_char_boundary(bytes)).unwrap_or(text)
}

fn policy(policy: Option<VerifyPolicy>) -> pb::VerifyPolicy {
    match policy {
        None => pb::VerifyPolicy::Unspecified,
        Some(VerifyPolicy::Stream) => pb::VerifyPolicy::Stream,
        Some(VerifyPolicy::Strict) => pb::VerifyPolicy::Strict,
    }
}

fn expected(sha256: BTreeMap<String, [u8; 32]>) -> Vec<pb::ExpectedDigest> {
    let digest = |(key, sha256): (String, [u8; 32])| {
        let sha256 = sha256.to_vec().into();
        pb::ExpectedDigest { key, sha256 }
    };
    sha256.into_iter().map(digest).collect()
}

fn lane(lane: Option<Lane>) -> pb::Lane {
    match lane {
        None => pb::Lane::Unspecified,
        Some(Lane::Interactive) => pb::Lane::Interactive,
        Some(Lane::Prefetch) => pb::Lane::Prefetch,
    }
}
