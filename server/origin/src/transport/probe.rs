//! The back channel of one attempt: what the transport saw, for the layer above object_store.
//!
//! A probe is put into the extensions of a request, which object_store hands through unread; the
//! transport writes into it. The number of the attempt goes the other way, down to the connector,
//! in a task-local: hyper-util's pool calls the connector within the requesting task.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

tokio::task_local! {
    /// The number of the attempt that the current task makes, from 1.
    pub(crate) static ATTEMPT: u32;
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
}

/// What the transport saw of one attempt.
#[derive(Debug, Clone, Default)]
pub(crate) struct Seen {
    /// The request reached the transport: its credentials were had.
    pub(crate) sent: bool,
    pub(crate) status: Option<u16>,
    pub(crate) retry_after: Option<Duration>,
    pub(crate) request_id: Option<String>,
    pub(crate) content_length: Option<u64>,
    pub(crate) content_range: Option<String>,
    pub(crate) etag: Option<String>,
    pub(crate) dns: Option<Duration>,
    pub(crate) connect: Option<Duration>,
    pub(crate) tls: Option<Duration>,
    pub(crate) first_byte: Option<Duration>,
    pub(crate) broke: Option<(Break, String)>,
}

impl Seen {
    /// What the status alone does not say.
    pub(crate) fn error_text(&self) -> Option<String> {
        let id = self.request_id.as_ref()?;
        Some(format!("request id {id}"))
    }
}

/// A handle on the [`Seen`] of one attempt, shared by both ends.
#[derive(Debug, Clone, Default)]
pub(crate) struct Probe(Arc<Mutex<Seen>>);

impl Probe {
    pub(crate) fn note(&self, write: impl FnOnce(&mut Seen)) {
        write(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner));
    }

    pub(crate) fn seen(&self) -> Seen {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
