//! One failed attempt, classified: from what the transport saw first, from object_store's error
//! last.
//!
//! object_store's public error tells a few statuses apart and hides the rest, so the status in the
//! [`Seen`] decides wherever there is one.

use std::error::Error;
use std::io;
use std::time::Duration;

use crate::credentials::Refusal;
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
    /// What the answer says about the credentials, if it may be for them.
    pub(crate) refusal: Option<Refusal>,
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
            refusal: None,
        }
    }

    /// A body that ended before its time.
    pub(crate) fn of_break(broke: Break, seen: &Seen, text: &str) -> Self {
        Self::new(kind_of_break(broke), seen, redact(text))
    }

    /// A fault of a request that went through object_store and our transport.
    pub(crate) fn of(error: &object_store::Error, seen: &Seen) -> Self {
        if let Some((broke, text)) = &seen.broke {
            return Self::of_break(*broke, seen, text);
        }
        // A key in a good answer that no path can stand for.
        if matches!(error, object_store::Error::InvalidPath { .. }) {
            return Self::new(OriginErrorKind::Unsupported, seen, detail_of(error));
        }
        match seen.status {
            Some(status) if status >= 300 => {
                let code = seen.error_code();
                Self {
                    kind: kind_of_status(status, code.as_deref()),
                    status: Some(status),
                    request_id: seen.request_id.clone(),
                    retry_after: seen.retry_after,
                    refusal: refusal_of(status, code.as_deref()),
                    detail: answer_text(seen, code),
                }
            }
            Some(_) => Self::in_good_answer(seen)
                .unwrap_or_else(|| Self::new(OriginErrorKind::Malformed, seen, detail_of(error))),
            None if seen.sent => Self::new(OriginErrorKind::Unreachable, seen, detail_of(error)),
            None => match error {
                object_store::Error::NotSupported { .. }
                | object_store::Error::NotImplemented { .. } => {
                    Self::new(OriginErrorKind::Unsupported, seen, detail_of(error))
                }
                // Before a request is sent there is only the getting of credentials.
                _ => {
                    let text = format!("no credentials could be had: {}", detail_of(error));
                    Self::new(OriginErrorKind::Unauthenticated, seen, text)
                }
            },
        }
    }

    /// A fault in a body that came with a good status; none if the body is what was asked for.
    pub(crate) fn in_good_answer(seen: &Seen) -> Option<Self> {
        let code = seen.holds_error().then(|| seen.error_code())?;
        let kind = kind_of_status(500, code.as_deref());
        Some(Self::new(kind, seen, answer_text(seen, code).unwrap_or_default()))
    }

    /// A fault of this machine's files.
    pub(crate) fn of_file(error: &object_store::Error) -> Self {
        use object_store::Error as E;
        let kind = match (error, io_kind(error)) {
            (E::NotFound { .. }, _) => OriginErrorKind::NotFound,
            (E::Precondition { .. }, _) => OriginErrorKind::Changed,
            (_, Some(kind)) => kind_of_io(kind),
            (_, None) => OriginErrorKind::Unsupported,
        };
        Self::new(kind, &Seen::default(), detail_of(error))
    }

    /// A fault of this machine's files that object_store had no part in.
    pub(crate) fn of_io(error: &io::Error) -> Self {
        Self::new(kind_of_io(error.kind()), &Seen::default(), error.to_string())
    }
}

/// What the status alone does not say.
fn answer_text(seen: &Seen, code: Option<String>) -> Option<String> {
    let region = seen.region.as_ref().filter(|_| seen.status.is_some_and(|status| status < 500));
    let region = region.map(|region| format!("the bucket is in region {region}"));
    let id = seen.request_id.as_ref().map(|id| format!("request id {id}"));
    let parts: Vec<String> = [code, region, id].into_iter().flatten().collect();
    (!parts.is_empty()).then(|| parts.join(", "))
}

pub(crate) fn kind_of_io(kind: io::ErrorKind) -> OriginErrorKind {
    match kind {
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => OriginErrorKind::NotFound,
        io::ErrorKind::PermissionDenied => OriginErrorKind::Denied,
        // The file is shorter than when it was opened.
        io::ErrorKind::UnexpectedEof => OriginErrorKind::Changed,
        kind => OriginErrorKind::Local(kind),
    }
}

fn kind_of_break(broke: Break) -> OriginErrorKind {
    match broke {
        Break::Dns => OriginErrorKind::DnsFailed,
        Break::Connect | Break::Tls | Break::Cut => OriginErrorKind::Unreachable,
        Break::TimedOut => OriginErrorKind::Timeout,
        Break::Short => OriginErrorKind::Truncated,
        Break::Protocol => OriginErrorKind::Malformed,
        Break::Forbidden | Break::Redirect => OriginErrorKind::Rejected,
        Break::TooLong => OriginErrorKind::LimitExceeded,
    }
}

fn kind_of_status(status: u16, code: Option<&str>) -> OriginErrorKind {
    // S3 has statuses that say less than their codes.
    match code {
        Some(code) if status < 500 && EXPIRED.contains(&code) => {
            return OriginErrorKind::Unauthenticated;
        }
        Some("RequestTimeout") => return OriginErrorKind::Timeout,
        Some("SlowDown" | "ServerBusy") => return OriginErrorKind::Throttled,
        _ => {}
    }
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

/// Codes of clouds for credentials that were good once.
const EXPIRED: [&str; 5] = [
    "ExpiredToken",
    "InvalidToken",
    "TokenRefreshRequired",
    "ExpiredAuthenticationToken",
    "InvalidAuthenticationInfo",
];
/// Codes for credentials that are not known, or not any more.
const UNKNOWN: [&str; 3] = ["InvalidAccessKeyId", "SignatureDoesNotMatch", "AuthenticationFailed"];
/// Codes for a request whose time is not the origin's.
const SKEWED: [&str; 2] = ["RequestTimeTooSkewed", "RequestExpired"];

fn refusal_of(status: u16, code: Option<&str>) -> Option<Refusal> {
    match (status, code) {
        (400 | 401 | 403, Some(code)) if SKEWED.contains(&code) => Some(Refusal::Skewed),
        (401, _) => Some(Refusal::Expired),
        (400 | 403, Some(code)) if EXPIRED.contains(&code) || UNKNOWN.contains(&code) => {
            Some(Refusal::Expired)
        }
        // An answer to HEAD has no code.
        (400 | 403, None) => Some(Refusal::Unsaid),
        _ => None,
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
            assert_eq!(kind_of_status(status, None), kind, "{status}");
        }
        assert_eq!(kind_of_status(400, Some("ExpiredToken")), K::Unauthenticated);
        assert_eq!(kind_of_status(400, Some("RequestTimeout")), K::Timeout);
        assert_eq!(kind_of_status(500, Some("SlowDown")), K::Throttled);
    }

    #[test]
    fn refusals_are_told_apart() {
        let table = [
            (400, Some("ExpiredToken"), Some(Refusal::Expired)),
            (403, Some("InvalidAccessKeyId"), Some(Refusal::Expired)),
            (401, None, Some(Refusal::Expired)),
            (403, Some("RequestTimeTooSkewed"), Some(Refusal::Skewed)),
            (403, None, Some(Refusal::Unsaid)),
            (403, Some("AccessDenied"), None),
            (400, Some("InvalidRequest"), None),
            (404, None, None),
            (500, Some("ExpiredToken"), None),
        ];
        for (status, code, refusal) in table {
            assert_eq!(refusal_of(status, code), refusal, "{status} {code:?}");
        }
    }

    #[test]
    fn an_answer_is_told_with_its_code_region_and_id() {
        let seen = Seen {
            status: Some(301),
            region: Some("eu-west-1".to_owned()),
            request_id: Some("R1".to_owned()),
            body_start: b"<?xml?><Error><Code>PermanentRedirect</Code><Message>m".to_vec(),
            ..Seen::default()
        };
        assert_eq!(
            answer_text(&seen, seen.error_code()).unwrap(),
            "PermanentRedirect, the bucket is in region eu-west-1, request id R1"
        );
        let odd = Seen { body_start: b"<Code>a secret</Code>".to_vec(), ..Seen::default() };
        assert_eq!(odd.error_code(), None);
    }
}
