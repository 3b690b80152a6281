//! The back channel of one attempt: what the transport saw, for the layer above object_store.
//!
//! A probe is put into the extensions of a request, which object_store hands through unread; the
//! transport writes into it. The route goes the other way, down to the connector, in a task-local:
//! hyper-util's pool calls the connector within the requesting task.

use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::stream::PhaseTimes;
use crate::checksum::Checksums;
use crate::engine::book::Mark;
use crate::evidence::{Silence, TcpDelta};
use crate::trace::TraceTag;

tokio::task_local! {
    /// The route of the attempt that the current task makes.
    pub(crate) static ROUTE: Route;
    /// The probe of the write that the current task makes: writes cannot carry extensions. None
    /// within the getting of credentials, which has no part in it.
    pub(crate) static WRITE: Option<Probe>;
}

/// How an attempt shall reach its origin.
#[derive(Debug, Clone, Default)]
pub(crate) struct Route {
    /// It is the first: it had better fail soon.
    pub(crate) first: bool,
    /// Over a new connection, ...
    pub(crate) fresh: bool,
    /// ... and not to the address that has just failed, if there is another.
    pub(crate) avoid: Option<IpAddr>,
    /// The trace that it belongs to.
    pub(crate) trace: Option<TraceTag>,
    /// Who hears what a connection that is made for it is at.
    pub(crate) dials: Option<Probe>,
}

impl Route {
    /// The current task's.
    pub(crate) fn current() -> Self {
        ROUTE.try_with(Self::clone).unwrap_or_default()
    }

    /// A connection for it is at this phase from now on.
    pub(crate) fn dials(&self, phase: DialPhase) {
        if let Some(probe) = &self.dials {
            let now = Instant::now();
            probe.note(|seen| seen.dial.goes_on(phase, now));
        }
    }
}

/// What making a connection consists of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum DialPhase {
    /// Its name is resolved.
    Dns,
    /// TCP.
    Connect,
    /// The handshake.
    Tls,
    /// There is one, or there will be none.
    Over,
}

/// A connection in the making. What it took is noted by whoever uses it, so this matters only until
/// then.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Dial {
    times: PhaseTimes,
    at: Option<(DialPhase, Instant)>,
}

impl Dial {
    fn goes_on(&mut self, phase: DialPhase, now: Instant) {
        *self = match phase {
            DialPhase::Dns => Self { times: PhaseTimes::default(), at: Some((phase, now)) },
            _ => Self { times: self.so_far(now), at: Some((phase, now)) },
        };
    }

    fn so_far(&self, now: Instant) -> PhaseTimes {
        let Some((phase, since)) = self.at else { return self.times };
        let time = Some(now.saturating_duration_since(since));
        match phase {
            DialPhase::Dns => PhaseTimes { dns: time, ..self.times },
            DialPhase::Connect => PhaseTimes { connect: time, ..self.times },
            DialPhase::Tls => PhaseTimes { tls: time, ..self.times },
            DialPhase::Over => self.times,
        }
    }
}

/// Where an exchange broke.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Break {
    /// The name did not resolve.
    Dns,
    /// No connection.
    Connect,
    /// The TLS handshake failed.
    Tls,
    /// A phase ran into its limit.
    TimedOut,
    /// The connection broke or was cut.
    Cut,
    /// The body ended before its declared length.
    Short,
    /// What came was no HTTP.
    Protocol,
    /// Plain HTTP where it is not allowed.
    Forbidden,
    /// A redirect that is not followed.
    Redirect,
    /// More bytes than anything of this kind has.
    TooLong,
}

/// Bytes of a body's start that are looked at: enough for the code that clouds put into an error.
pub(crate) const BODY_START_MAX: usize = 4096;
/// The largest body of a request that nobody asked for by name: a credential.
const CREDENTIAL_BODY_MAX: u64 = 1 << 20;

/// What the transport saw of one attempt.
#[derive(Debug, Clone, Default)]
pub(crate) struct Seen {
    /// The request reached the transport: its credentials were had.
    pub(crate) sent: bool,
    pub(crate) status: Option<u16>,
    pub(crate) retry_after: Option<Duration>,
    pub(crate) request_id: Option<String>,
    /// The origin's own name for an error: `SlowDown`, `NoSuchBucket`.
    pub(crate) code: Option<String>,
    /// The start of an error's or a listing's body.
    pub(crate) body_start: Vec<u8>,
    pub(crate) region: Option<String>,
    pub(crate) content_length: Option<u64>,
    pub(crate) content_range: Option<String>,
    pub(crate) etag: Option<String>,
    pub(crate) checksums: Checksums,
    /// The MD5 that the tag is, if the origin is an S3.
    pub(crate) tag_md5: Option<[u8; 16]>,
    pub(crate) dns: Option<Duration>,
    pub(crate) connect: Option<Duration>,
    pub(crate) tls: Option<Duration>,
    /// A connection that is made for it.
    pub(crate) dial: Dial,
    pub(crate) first_byte: Option<Duration>,
    pub(crate) broke: Option<(Break, String)>,
    /// What happened on the connection until now, or the end of the body.
    pub(crate) tcp: Option<TcpDelta>,
    /// The same until the head of the answer was there.
    pub(crate) head_tcp: Option<TcpDelta>,
    /// How long the body's next bytes were waited for, all waits together.
    pub(crate) waited: Duration,
    /// The longest of these waits, in the order of time.
    pub(crate) silences: Vec<Silence>,
    /// Bytes of a file that were not in the page cache.
    pub(crate) cold_bytes: u64,
    /// The address that the request went to.
    pub(crate) mark: Option<Mark>,
    /// The address that it did not go to, because no handshake came about.
    pub(crate) no_handshake: Option<IpAddr>,
}

impl Seen {
    /// The origin's own name for its error, from a header or the XML of the body.
    pub(crate) fn error_code(&self) -> Option<String> {
        if self.code.is_some() {
            return self.code.clone();
        }
        let body = String::from_utf8_lossy(&self.body_start);
        let (_, rest) = body.split_once("<Code>")?;
        let (code, _) = rest.split_once("</Code>")?;
        is_code(code).then(|| code.to_owned())
    }
}

impl Seen {
    /// The same of an attempt that has not ended: with what its connection has taken until now, if
    /// that was not noted yet.
    pub(crate) fn so_far(self, now: Instant) -> Self {
        let noted = self.dns.or(self.connect).or(self.tls).is_some();
        // One that it got before the one it had asked for was made.
        let kept = self.mark.is_some() && !matches!(self.dial.at, Some((DialPhase::Over, _)));
        if noted || kept {
            return self;
        }
        let PhaseTimes { dns, connect, tls } = self.dial.so_far(now);
        Self { dns, connect, tls, ..self }
    }

    /// Whether the body is an error's, whatever the status: S3 may fail after it has said 200.
    pub(crate) fn holds_error(&self) -> bool {
        let body = String::from_utf8_lossy(&self.body_start);
        let body = body.trim_start_matches('\u{feff}').trim_start();
        let root = match body.strip_prefix("<?") {
            Some(rest) => rest.split_once("?>").map_or("", |(_, root)| root.trim_start()),
            None => body,
        };
        root.starts_with("<Error>") || root.starts_with("<Error ")
    }
}

/// Whether a text looks like an error's name rather than like something to keep out of logs.
pub(crate) fn is_code(text: &str) -> bool {
    !text.is_empty() && text.len() <= 64 && text.bytes().all(|byte| byte.is_ascii_alphanumeric())
}

/// A handle on the [`Seen`] of one attempt, shared by both ends.
#[derive(Debug, Clone)]
pub(crate) struct Probe {
    seen: Arc<Mutex<Seen>>,
    body_max: u64,
}

impl Probe {
    /// For a body that its reader bounds.
    pub(crate) fn new() -> Self {
        Self { seen: Arc::default(), body_max: u64::MAX }
    }

    /// For requests that object_store makes on its own, and reads whole.
    pub(crate) fn for_credentials() -> Self {
        Self { seen: Arc::default(), body_max: CREDENTIAL_BODY_MAX }
    }

    /// That of the write that the current task makes, if it makes one.
    pub(crate) fn of_write() -> Option<Self> {
        WRITE.try_with(Clone::clone).ok().flatten()
    }

    /// The same, for a body that object_store reads whole.
    pub(crate) fn with_body_max(&self, body_max: u64) -> Self {
        Self { seen: Arc::clone(&self.seen), body_max }
    }

    pub(crate) fn body_max(&self) -> u64 {
        self.body_max
    }

    /// Whether the start of a good body is kept: of a listing, which may hold an error.
    pub(crate) fn keeps_start(&self) -> bool {
        self.body_max < u64::MAX
    }

    pub(crate) fn note(&self, write: impl FnOnce(&mut Seen)) {
        write(&mut self.seen.lock().unwrap_or_else(PoisonError::into_inner));
    }

    pub(crate) fn seen(&self) -> Seen {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
