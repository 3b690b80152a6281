//! One failed attempt, classified: from what the transport saw first, from object_store's error last.
//!
//! object_store's public error tells a few statuses apart and hides the rest, so the status in the
//! [`Seen`] decides wherever there is one.

use std::error::Error;
use std::io;
use std::time::Duration;

use crate::error::{OriginErrorKind, redact};
use crate::transport::probe::{Break, Seen};

/// Why an attempt failed.
#[derive(Debug)]
pub(crate) struct Fault {
    pub(crate) kind: OriginErrorKind,
    pub(crate) status: Option<u16>,
    pub(crate) request_id: Option<String>,
    pub(crate) retry_after: Option<Duration>,
    pub(crate) detail: Option<String>,
}

impl Fault {
    /// A fault that this layer found itself.
    pub(crate) fn new(kind: OriginErrorKind, seen: &Seen, detail: impl Into<String>) -> Self {
        Self {
            kind,
            status: seen.status,
            request_id: seen.request_id.clone(),
            retry_after: seen.retry_after,
            detail: Some(detail.into()),
        }
    }

    /// A fault on the way through object_store.
    pub(crate) fn of(error: &object_store::Error, seen: &Seen) -> Self {
        if let Some((broke, text)) = &seen.broke {
            return Self::new(kind_of_break(*broke), seen, redact(text));
        }
        match seen.status {
            Some(status) if status >= 300 => Self {
                kind: kind_of_status(status),
                status: Some(status),
                request_id: seen.request_id.clone(),
                retry_after: seen.retry_after,
                detail: seen.error_text(),
            },
            Some(_) => Self::new(OriginErrorKind::Malformed, seen, detail_of(error)),
            None => Self::new(kind_of_error(error, seen.sent), seen, detail_of(error)),
        }
    }
}

fn kind_of_break(broke: Break) -> OriginErrorKind {
    match broke {
        Break::Dns => OriginErrorKind::DnsFailed,
        Break::Connect | Break::Tls | Break::Cut => OriginErrorKind::Unreachable,
        Break::TimedOut => OriginErrorKind::Timeout,
        Break::Short => OriginErrorKind::Truncated,
        Break::Protocol => OriginErrorKind::Malformed,
        Break::Forbidden => OriginErrorKind::Rejected,
    }
}

fn kind_of_status(status: u16) -> OriginErrorKind {
    match status {
        401 => OriginErrorKind::Unauthenticated,
        403 => OriginErrorKind::Denied,
        404 | 410 => OriginErrorKind::NotFound,
        408 => OriginErrorKind::Timeout,
        // A range beyond the end: the object is shorter than the one that was resolved.
        304 | 412 | 416 => OriginErrorKind::Changed,
        429 | 503 => OriginErrorKind::Throttled,
        500.. => OriginErrorKind::Failed,
        _ => OriginErrorKind::Rejected,
    }
}

/// The kind of an error for which there was no response at all.
fn kind_of_error(error: &object_store::Error, sent: bool) -> OriginErrorKind {
    use object_store::Error as E;
    match error {
        E::NotFound { .. } => OriginErrorKind::NotFound,
        E::Precondition { .. } | E::NotModified { .. } => OriginErrorKind::Changed,
        E::PermissionDenied { .. } => OriginErrorKind::Denied,
        E::Unauthenticated { .. } => OriginErrorKind::Unauthenticated,
        E::NotSupported { .. } | E::NotImplemented { .. } | E::InvalidPath { .. } => {
            OriginErrorKind::Unsupported
        }
        _ => match io_kind(error) {
            Some(io::ErrorKind::NotFound) => OriginErrorKind::NotFound,
            Some(io::ErrorKind::PermissionDenied) => OriginErrorKind::Denied,
            Some(kind) => OriginErrorKind::Local(kind),
            // The request was signed and sent, and no response is known of.
            None if sent => OriginErrorKind::Unreachable,
            None => OriginErrorKind::Unauthenticated,
        },
    }
}

fn io_kind(error: &(dyn Error + 'static)) -> Option<io::ErrorKind> {
    let mut cause = Some(error);
    while let Some(layer) = cause {
        if let Some(io) = layer.downcast_ref::<io::Error>() {
            return Some(io.kind());
        }
        cause = layer.source();
    }
    None
}

/// What object_store says, without what it wraps twice and without secrets.
pub(crate) fn detail_of(error: &object_store::Error) -> String {
    redact(&match error {
        object_store::Error::Generic { source, .. } => source.to_string(),
        object_store::Error::InvalidPath { source } => source.to_string(),
        other => other.to_string(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_are_told_apart() {
        use OriginErrorKind as K;
        let table = [
            (301, K::Rejected),
            (400, K::Rejected),
            (401, K::Unauthenticated),
            (403, K::Denied),
            (404, K::NotFound),
            (405, K::Rejected),
            (408, K::Timeout),
            (410, K::NotFound),
            (412, K::Changed),
            (416, K::Changed),
            (429, K::Throttled),
            (500, K::Failed),
            (502, K::Failed),
            (503, K::Throttled),
            (504, K::Failed),
        ];
        for (status, kind) in table {
            assert_eq!(kind_of_status(status), kind, "{status}");
        }
    }
}
