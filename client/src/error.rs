//! The one error of this library: a [`Failure`], wherever it was found.
//!
//! What the daemon answers carries its own facts. What happens on the way to it (no socket, no
//! permission, a connection that breaks, a deadline that nobody answered) is told apart here, from
//! the causes that tonic keeps, because "transport error" helps nobody.

use std::error::Error;
use std::fmt;
use std::io;
use std::time::Duration;

use forebay_device::DeviceError;
use forebay_proto::model::Malformed;
use forebay_proto::{ErrorKind, Failure, Reason};
use forebay_shm::ShmError;
use tonic::{Code, Status, TimeoutExpired};

use crate::endpoint::Endpoint;

/// When to try again a daemon that cannot be reached: one that is restarted serves again within
/// two seconds, whatever its cache holds, and mostly within half of one.
const RESTART_RETRY: Duration = Duration::from_millis(500);

/// A call that failed.
#[derive(Debug, Clone, PartialEq)]
pub struct ClientError(Box<Failure>);

impl ClientError {
    /// The facts.
    #[must_use]
    pub fn failure(&self) -> &Failure {
        &self.0
    }

    /// What can be done about it.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        self.0.kind()
    }

    /// Why.
    #[must_use]
    pub fn reason(&self) -> Reason {
        self.0.reason
    }

    /// A failure of this library with its reason and message.
    pub(crate) fn new(reason: Reason, message: impl Into<String>) -> Self {
        Self(Box::new(Failure::new(reason, message)))
    }

    /// What a status means to a caller of the daemon at `endpoint`.
    pub(crate) fn from_status(status: &Status, endpoint: &Endpoint) -> Self {
        if is_from_daemon(status) {
            return Failure::from_status(status).into();
        }
        if let Some(error) = root_io_error(status) {
            return Self::unreachable(error, endpoint);
        }
        match status.code() {
            Code::DeadlineExceeded => Self::passed(),
            // Of the deadline that the channel keeps too; a connection that ends is "cancelled", as
            // that of a client whose certificate is refused.
            Code::Cancelled if status.message() == TimeoutExpired(()).to_string() => Self::passed(),
            Code::Cancelled | Code::Unavailable | Code::Unknown | Code::Internal => Self::gone(
                format!("the connection to forebayd at {endpoint} broke: {}", status.message()),
            ),
            _ => Failure::from_status(status).into(),
        }
    }

    fn passed() -> Self {
        Self::new(Reason::Deadline, "the deadline passed before the daemon answered")
    }

    /// A daemon that cannot be reached, or not any more.
    pub(crate) fn gone(message: String) -> Self {
        Failure::new(Reason::DaemonUnreachable, message).retry_in(RESTART_RETRY).into()
    }

    /// What an error of a socket of the daemon means.
    pub(crate) fn unreachable(error: &io::Error, endpoint: &dyn fmt::Display) -> Self {
        match error.kind() {
            io::ErrorKind::PermissionDenied => Self::new(
                Reason::UidNotAllowed,
                format!("no permission to open the socket of forebayd at {endpoint}"),
            ),
            io::ErrorKind::NotFound => {
                Self::gone(format!("no forebayd listens at {endpoint}: there is no such socket"))
            }
            io::ErrorKind::ConnectionRefused => {
                Self::gone(format!("no forebayd listens at {endpoint}: connection refused"))
            }
            _ => Self::gone(format!("the connection to forebayd at {endpoint} failed: {error}")),
        }
    }
}

/// Whether Forebay itself made a status, rather than the transport under it.
pub(crate) fn is_from_daemon(status: &Status) -> bool {
    !status.details().is_empty()
}

/// The first cause that the operating system gave.
pub(crate) fn root_io_error<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a io::Error> {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(error) = error.downcast_ref::<io::Error>() {
            return Some(error);
        }
        cause = error.source();
    }
    None
}

impl fmt::Display for ClientError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Error for ClientError {}

impl From<Failure> for ClientError {
    fn from(failure: Failure) -> Self {
        Self(Box::new(failure))
    }
}

impl From<Malformed> for ClientError {
    fn from(malformed: Malformed) -> Self {
        Failure::from(malformed).into()
    }
}

impl From<ShmError> for ClientError {
    fn from(error: ShmError) -> Self {
        Self(Box::new(Failure::new(Reason::Internal, error.to_string()).at_stage("handoff")))
    }
}

impl From<DeviceError> for ClientError {
    fn from(error: DeviceError) -> Self {
        let reason = match error {
            DeviceError::BadSpec { .. }
            | DeviceError::OutOfRange { .. }
            | DeviceError::WrongDevice { .. } => Reason::BadRequest,
            DeviceError::Unavailable { .. } => Reason::DeviceUnavailable,
            DeviceError::OutOfMemory { .. } => Reason::DeviceExhausted,
            DeviceError::Driver { .. } | DeviceError::CopyFailed { .. } => Reason::DeviceFailed,
            _ => Reason::Internal,
        };
        Self(Box::new(Failure::new(reason, error.to_string()).at_stage("dma")))
    }
}
