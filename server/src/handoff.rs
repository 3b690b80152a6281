//! Handoff: who may read which slots, and until when.
//!
//! A [`Session`] is one client process: it is made by the process's first load, named by a random
//! token, and joined by the process's connection to `handoff.sock`, over which it gets the
//! descriptors of segments. A [`Lease`] is the right to read one slot: it owns a reference to the
//! chunk, which keeps the slot from being rewritten, and the window token that pays for it. The
//! session owns its leases. They end
//!
//! * when the client releases them, over the load's stream or over the socket;
//! * when the socket closes, as the kernel does for a process that dies: no timer is involved;
//! * with the load's stream, if the process never connected: then it cannot have mapped anything.
//!
//! A stream that ends while the process lives, in whatever way, leaves its leases to the session: the
//! process may still read, and releases what it holds over the socket.
//!
//! When a segment has gone ([`Sessions::retire`]), every process that was sent it is told, and says
//! when it does not map it any more. Nobody waits for that: a process that never answers keeps that
//! memory until its socket closes, and is counted ([`Sessions::unmapping`]).

pub(crate) mod socket;

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use forebay_proto::{Failure, Reason};
use forebay_shm::{Segment, SegmentId};
use tokio::sync::Notify;
use tokio::sync::futures::Notified;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::admission::WindowSlot;
use crate::ram::PinnedChunk;

/// Sessions at one time: a node has some tens of inference servers and jobs.
const SESSIONS_MAX: usize = 4096;

/// Hint to a process that met the bound on sessions.
const SESSIONS_RETRY: Duration = Duration::from_secs(1);

/// A session's name: nobody who was not told it can guess it.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct SessionToken([u8; 16]);

impl SessionToken {
    /// The token in these bytes, if they can be one.
    pub(crate) fn from_bytes(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }

    /// Its bytes, for the owner's eyes only.
    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for SessionToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SessionToken(***)")
    }
}

/// The process at the other end of a socket, as the kernel told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Peer {
    /// Its uid when it connected.
    pub(crate) uid: u32,
    /// Its pid as seen from here; 0 if it cannot be seen.
    pub(crate) pid: u32,
}

impl Peer {
    /// Someone over TCP. No process has this uid: the kernel means "as it is" by it.
    pub(crate) const REMOTE: Self = Self { uid: u32::MAX, pid: 0 };

    /// Whether it came over TCP.
    pub(crate) fn is_remote(self) -> bool {
        self.uid == Self::REMOTE.uid
    }
}

/// One load, among all loads of the daemon's life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct LoadKey(pub(crate) u64);

/// The right to read one slot. Last witness of the path.
#[derive(Debug)]
pub(crate) struct Lease {
    // Before `window`: the slot can be evicted before its token can be used again.
    pinned: PinnedChunk,
    #[expect(dead_code, reason = "held for its Drop")]
    window: Arc<WindowSlot>,
    load: LoadKey,
    chunk: usize,
    granted: Instant,
}

/// What a client needs to find a leased slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct GrantedSlot {
    /// Names the lease in a release.
    pub(crate) lease_id: u64,
    /// Which segment.
    pub(crate) segment: u64,
    /// Which slot of it.
    pub(crate) slot: u32,
    /// The slot's generation.
    pub(crate) generation: u64,
}

/// A lease that ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Released {
    /// The load it was granted to.
    pub(crate) load: LoadKey,
    /// The chunk of that load's plan.
    pub(crate) chunk: usize,
    /// Bytes of the chunk.
    pub(crate) bytes: u64,
}

/// One client process.
#[derive(Debug)]
pub(crate) struct Session {
    token: SessionToken,
    peer: Peer,
    state: Mutex<State>,
    /// Wakes the connection when there are descriptors to send.
    outgoing: Notify,
    /// Set when the socket closed: loads of this session end.
    closed: CancellationToken,
    sessions: Weak<Sessions>,
}

/// What a client is sent.
#[derive(Debug)]
enum Outgoing {
    /// A segment that it is about to need.
    Segment(Arc<Segment>),
    /// That a segment has gone.
    Retire(SegmentId),
}

#[derive(Debug, Default)]
struct State {
    connected: bool,
    /// It can be told that a segment has gone.
    retires: bool,
    /// It has left the registry: nobody can join it any more.
    over: bool,
    loads: usize,
    leases: HashMap<u64, Lease>,
    known_segments: BTreeSet<SegmentId>,
    to_send: VecDeque<Outgoing>,
    /// What it still maps of segments that have gone, and how large they are.
    unmapping: BTreeMap<SegmentId, u64>,
}

impl Session {
    /// Its name.
    pub(crate) fn token(&self) -> SessionToken {
        self.token
    }

    /// Completes when the client's socket has closed.
    pub(crate) fn closed(&self) -> &CancellationToken {
        &self.closed
    }

    /// Leases one chunk to this session; `window` pays for its slot.
    pub(crate) fn grant(
        &self,
        load: LoadKey,
        chunk: usize,
        pinned: PinnedChunk,
        window: Arc<WindowSlot>,
    ) -> GrantedSlot {
        static LEASES: AtomicU64 = AtomicU64::new(1);
        let lease_id = LEASES.fetch_add(1, Ordering::Relaxed);
        let granted = GrantedSlot {
            lease_id,
            segment: pinned.segment_id().0,
            slot: pinned.slot().0,
            generation: pinned.generation().0,
        };
        window.lend();
        let segment = Arc::clone(pinned.segment());
        let lease = Lease { pinned, window, load, chunk, granted: Instant::now() };
        let mut state = self.lock();
        state.leases.insert(lease_id, lease);
        // Before the client is connected this only queues: it is sent after its hello.
        if state.offer(segment) {
            self.outgoing.notify_one();
        }
        granted
    }

    /// Ends the named leases; those it does not know are ignored, so that a release can be
    /// repeated.
    pub(crate) fn release(&self, lease_ids: &[u64]) -> Vec<Released> {
        let ended: Vec<Lease> = {
            let mut state = self.lock();
            lease_ids.iter().filter_map(|id| state.leases.remove(id)).collect()
        };
        // Dropped outside the lock: a slot that comes free may wake an eviction.
        ended.into_iter().map(|lease| lease.ended()).collect()
    }

    /// Ends every lease of one load.
    fn release_load(&self, load: LoadKey) {
        let ids: Vec<u64> = {
            let state = self.lock();
            state.leases.iter().filter(|(_, l)| l.load == load).map(|(id, _)| *id).collect()
        };
        self.release(&ids);
    }

    /// A segment has gone. The client is told, if it has it and can be.
    fn retire(&self, id: SegmentId, bytes: u64) {
        let mut state = self.lock();
        if !state.known_segments.remove(&id) {
            return;
        }
        let before = state.to_send.len();
        state.to_send.retain(|out| !matches!(out, Outgoing::Segment(one) if one.id() == id));
        if state.to_send.len() < before || !state.connected {
            return;
        }
        state.unmapping.insert(id, bytes);
        if state.retires {
            state.to_send.push_back(Outgoing::Retire(id));
            self.outgoing.notify_one();
        }
    }

    /// The client does not map these segments any more.
    fn retired(&self, segment_ids: &[u64]) {
        {
            let mut state = self.lock();
            for id in segment_ids {
                state.unmapping.remove(&SegmentId(*id));
            }
        }
        self.tell_unmapped();
    }

    fn tell_unmapped(&self) {
        if let Some(sessions) = self.sessions.upgrade() {
            sessions.unmapped.notify_waiters();
        }
    }

    /// Leases held, and their bytes.
    pub(crate) fn held(&self) -> (usize, u64) {
        let state = self.lock();
        (state.leases.len(), state.leases.values().map(|lease| lease.pinned.bytes()).sum())
    }

    /// When its oldest lease was granted.
    fn oldest_lease(&self) -> Option<Instant> {
        self.lock().leases.values().map(|lease| lease.granted).min()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Queues the segment if the client has not got it yet; true then.
    fn offer(&mut self, segment: Arc<Segment>) -> bool {
        let new = self.known_segments.insert(segment.id());
        if new {
            self.to_send.push_back(Outgoing::Segment(segment));
        }
        new
    }
}

impl Lease {
    fn ended(self) -> Released {
        Released { load: self.load, chunk: self.chunk, bytes: self.pinned.bytes() }
    }
}

/// A load's stay in a session.
#[derive(Debug)]
pub(crate) struct SessionStay {
    session: Arc<Session>,
    load: LoadKey,
}

impl SessionStay {
    /// The session.
    pub(crate) fn session(&self) -> &Arc<Session> {
        &self.session
    }

    /// The load.
    pub(crate) fn load(&self) -> LoadKey {
        self.load
    }
}

impl Drop for SessionStay {
    fn drop(&mut self) {
        let (connected, over) = {
            let mut state = self.session.lock();
            state.loads -= 1;
            state.over |= state.loads == 0 && !state.connected;
            (state.connected, state.over)
        };
        if !connected {
            self.session.release_load(self.load);
        }
        if over {
            self.session.leave();
        }
    }
}

impl Session {
    /// Leaves the registry and gives every lease back.
    fn leave(&self) {
        if let Some(sessions) = self.sessions.upgrade() {
            sessions.lock().remove(&self.token);
        }
        self.closed.cancel();
        let leases = std::mem::take(&mut self.lock().leases);
        drop(leases);
        self.tell_unmapped();
    }
}

fn unknown_session() -> Failure {
    Failure::new(Reason::BadRequest, "the session is unknown: its socket has closed")
}

/// What clients still map of segments that have gone.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Unmapping {
    /// Bytes of these segments: each counts once.
    pub(crate) bytes: u64,
    /// Of them: of segments that a client which cannot be told maps.
    pub(crate) untold_bytes: u64,
    /// Processes that were told and have not answered.
    pub(crate) told: u64,
    /// Processes that cannot be told.
    pub(crate) untold: u64,
}

impl Unmapping {
    /// Together with what those of another domain map.
    pub(crate) fn and(self, other: Self) -> Self {
        Self {
            bytes: self.bytes + other.bytes,
            untold_bytes: self.untold_bytes + other.untold_bytes,
            told: self.told + other.told,
            untold: self.untold + other.untold,
        }
    }
}

/// The sessions of one domain.
#[derive(Debug, Default)]
pub(crate) struct Sessions {
    by_token: Mutex<HashMap<SessionToken, Arc<Session>>>,
    /// A client has unmapped something, or is gone.
    unmapped: Notify,
}

impl Sessions {
    /// A stay of one load in the session named by `token`, or in a new one if it is empty.
    pub(crate) fn enter(
        self: &Arc<Self>,
        token: &[u8],
        peer: Peer,
    ) -> Result<SessionStay, Failure> {
        static LOADS: AtomicU64 = AtomicU64::new(1);
        let session = if token.is_empty() { self.make(peer)? } else { self.find(token, peer)? };
        {
            let mut state = session.lock();
            if state.over {
                return Err(unknown_session());
            }
            state.loads += 1;
        }
        let load = LoadKey(LOADS.fetch_add(1, Ordering::Relaxed));
        Ok(SessionStay { session, load })
    }

    fn make(self: &Arc<Self>, peer: Peer) -> Result<Arc<Session>, Failure> {
        let mut token = [0; 16];
        getrandom::fill(&mut token).map_err(|error| {
            Failure::new(Reason::Internal, format!("no random bytes for a session: {error}"))
        })?;
        let session = Arc::new(Session {
            token: SessionToken(token),
            peer,
            state: Mutex::default(),
            outgoing: Notify::new(),
            closed: CancellationToken::new(),
            sessions: Arc::downgrade(self),
        });
        let mut by_token = self.lock();
        if by_token.len() >= SESSIONS_MAX {
            return Err(Failure::new(Reason::QueueFull, "too many client processes")
                .with_quota(format!("sessions: {SESSIONS_MAX}"))
                .retry_in(SESSIONS_RETRY));
        }
        by_token.insert(session.token, Arc::clone(&session));
        Ok(session)
    }

    /// The session with this token, if it belongs to the peer's uid.
    pub(crate) fn find(&self, token: &[u8], peer: Peer) -> Result<Arc<Session>, Failure> {
        SessionToken::from_bytes(token)
            .and_then(|token| self.lock().get(&token).cloned())
            .filter(|session| session.peer.uid == peer.uid)
            .ok_or_else(unknown_session)
    }

    /// A segment has gone: no lease of it is left and none will come. Who has it is told.
    pub(crate) fn retire(&self, id: SegmentId, bytes: u64) {
        self.lock().values().for_each(|session| session.retire(id, bytes));
    }

    /// What clients still map of segments that have gone.
    pub(crate) fn unmapping(&self) -> Unmapping {
        let (mut all, mut untold) = (BTreeMap::new(), BTreeMap::new());
        let mut sums = Unmapping::default();
        for session in self.lock().values() {
            let state = session.lock();
            if state.unmapping.is_empty() {
                continue;
            }
            all.extend(state.unmapping.iter());
            if state.retires {
                sums.told += 1;
            } else {
                sums.untold += 1;
                untold.extend(state.unmapping.iter());
            }
        }
        let bytes = |segments: BTreeMap<SegmentId, u64>| segments.into_values().sum();
        Unmapping { bytes: bytes(all), untold_bytes: bytes(untold), ..sums }
    }

    /// Completes when that has changed since the future was enabled.
    pub(crate) fn unmapped(&self) -> Notified<'_> {
        self.unmapped.notified()
    }

    /// Sessions, leases and leased bytes.
    pub(crate) fn totals(&self) -> (usize, usize, u64) {
        let by_token = self.lock();
        let held = by_token.values().map(|session| session.held());
        held.fold((by_token.len(), 0, 0), |(sessions, leases, bytes), (more, their)| {
            (sessions, leases + more, bytes + their)
        })
    }

    /// How old the oldest lease is; nothing where there is none.
    pub(crate) fn oldest_lease(&self, now: Instant) -> Option<Duration> {
        let granted = self.lock().values().filter_map(|session| session.oldest_lease()).min();
        granted.map(|granted| now.saturating_duration_since(granted))
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<SessionToken, Arc<Session>>> {
        self.by_token.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
