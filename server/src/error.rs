//! From the origin's errors to the one vocabulary that leaves the daemon.
//!
//! Each stage turns its own error into a [`Failure`] beside its definition; what several stages
//! share is here. The gRPC side is `rpc`'s, through `forebay-proto`.

use std::time::Duration;

use forebay_origin::{OriginError, OriginErrorKind};
use forebay_proto::{Failure, Reason};

/// Hint to a caller that met a daemon which is stopping: it has loads to wait for before the next
/// one starts.
const STOPPING_RETRY: Duration = Duration::from_secs(5);

/// The failure of whatever cannot go on because the daemon is stopping.
pub(crate) fn stopping(message: impl Into<String>) -> Failure {
    Failure::new(Reason::Draining, message).retry_in(STOPPING_RETRY)
}

/// The failure of a call to an origin.
pub(crate) fn origin_failure(error: OriginError) -> Failure {
    let message = error.to_string();
    let facts = error.into_failure();
    let reason = match facts.kind {
        OriginErrorKind::NotFound => Reason::ObjectNotFound,
        OriginErrorKind::Denied => Reason::OriginDenied,
        OriginErrorKind::Unauthenticated => Reason::CredentialsExpired,
        OriginErrorKind::Changed => Reason::RevisionChanged,
        OriginErrorKind::Rejected | OriginErrorKind::Unsupported => Reason::OriginRejected,
        OriginErrorKind::Throttled => Reason::OriginThrottled,
        OriginErrorKind::BreakerOpen => Reason::BreakerOpen,
        OriginErrorKind::DnsFailed => Reason::DnsFailed,
        OriginErrorKind::Unreachable | OriginErrorKind::Timeout => Reason::OriginUnreachable,
        OriginErrorKind::Truncated => Reason::Truncated,
        OriginErrorKind::Malformed | OriginErrorKind::Failed => Reason::OriginFailed,
        OriginErrorKind::LimitExceeded => Reason::LimitExceeded,
        OriginErrorKind::Local(std::io::ErrorKind::NotFound) => Reason::ObjectNotFound,
        OriginErrorKind::Local(std::io::ErrorKind::PermissionDenied) => Reason::OriginDenied,
        // `OriginErrorKind` may grow; what is not known here yet is a failing dependency.
        _ => Reason::OriginFailed,
    };
    let mut failure = Failure::new(reason, message);
    failure.object = (!facts.key.is_root()).then(|| facts.key.to_string());
    failure.attempt = (facts.attempts > 0).then_some(facts.attempts);
    failure.origin_status = facts.status;
    failure.retry_after = facts.retry_after;
    failure
}
