//! The error of this layer, and how foreign texts are made safe to show.
//!
//! An [`OriginError`] says in one sentence what was asked of whom and what came back, and carries
//! the facts apart from it. Texts of libraries below may quote URLs: [`redact`] cuts every query
//! and user name out of them before they become part of an error.

use std::error::Error;
use std::fmt;
use std::io;
use std::ops::{Deref, Range};
use std::time::Duration;

use crate::key::ObjectKey;
use crate::store::AttemptRecord;

/// How much of a library's text an error keeps.
const DETAIL_CHARS_MAX: usize = 400;

/// What went wrong at the origin, as far as a caller has to tell cases apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum OriginErrorKind {
    /// No such object (404, 410).
    NotFound,
    /// The origin refuses (403).
    Denied,
    /// The origin wants credentials, or none could be had (401).
    Unauthenticated,
    /// The object is not the pinned one (412, 416, another ETag, size or time).
    Changed,
    /// The request itself is refused (400 and other 4xx, redirects that are not followed).
    Rejected,
    /// The origin throttles (429, 503).
    Throttled,
    /// The origin fails (5xx).
    Failed,
    /// No connection, or it broke.
    Unreachable,
    /// The origin's name does not resolve.
    DnsFailed,
    /// Fewer bytes than declared.
    Truncated,
    /// An answer that is none: 200 to a range, a wrong range, too many bytes.
    Malformed,
    /// A phase took longer than its limit.
    Timeout,
    /// Nothing was sent: of the requests before, too many failed. `retry_after` says how long.
    BreakerOpen,
    /// More objects or bytes than the caller's limit.
    LimitExceeded,
    /// The origin or the build cannot do this.
    Unsupported,
    /// This machine's file system or configuration.
    Local(io::ErrorKind),
}

impl OriginErrorKind {
    /// Whether the same request can succeed a moment later.
    #[must_use]
    pub fn is_transient(self) -> bool {
        matches!(
            self,
            Self::Throttled
                | Self::Failed
                | Self::Unreachable
                | Self::DnsFailed
                | Self::Truncated
                | Self::Malformed
                | Self::Timeout
        )
    }

    /// A short name, for logs and metrics.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NotFound => "not_found",
            Self::Denied => "denied",
            Self::Unauthenticated => "unauthenticated",
            Self::Changed => "changed",
            Self::Rejected => "rejected",
            Self::Throttled => "throttled",
            Self::Failed => "failed",
            Self::Unreachable => "unreachable",
            Self::DnsFailed => "dns_failed",
            Self::Truncated => "truncated",
            Self::Malformed => "malformed",
            Self::Timeout => "timeout",
            Self::BreakerOpen => "breaker_open",
            Self::LimitExceeded => "limit_exceeded",
            Self::Unsupported => "unsupported",
            Self::Local(_) => "local",
        }
    }

    fn says(self) -> &'static str {
        match self {
            Self::NotFound => "was not found",
            Self::Denied => "was refused by the origin",
            Self::Unauthenticated => "needs credentials that the origin accepts",
            Self::Changed => "is no longer the object that was resolved",
            Self::Rejected => "was rejected",
            Self::Throttled => "was throttled by the origin",
            Self::Failed => "failed at the origin",
            Self::Unreachable => "could not be had: the connection failed",
            Self::DnsFailed => "could not be had: the origin's name does not resolve",
            Self::Truncated => "came with fewer bytes than declared",
            Self::Malformed => "got an answer that does not fit the request",
            Self::Timeout => "timed out",
            Self::BreakerOpen => "was not asked for: the origin fails too often",
            Self::LimitExceeded => "is over a limit",
            Self::Unsupported => "is not supported",
            Self::Local(_) => "failed on this machine",
        }
    }
}

/// The facts of a failed call. See [`OriginError`].
#[derive(Debug)]
pub struct OriginFailure {
    /// What went wrong.
    pub kind: OriginErrorKind,
    /// Scheme and bucket or host.
    pub origin: String,
    /// The key that was asked for; the root for calls about no object.
    pub key: ObjectKey,
    /// The byte range that was asked for.
    pub range: Option<Range<u64>>,
    /// Attempts made.
    pub attempts: u32,
    /// The last HTTP status.
    pub status: Option<u16>,
    /// The origin's id of the last request.
    pub request_id: Option<String>,
    /// When the origin says that a retry can help.
    pub retry_after: Option<Duration>,
    /// Body bytes received by all attempts.
    pub bytes_received: u64,
    /// What each attempt did.
    pub attempt_log: Vec<AttemptRecord>,
    /// Time spent waiting between attempts.
    pub backoff: Duration,
    /// What the layer below said, redacted.
    pub detail: Option<String>,
    /// The typed cause, where there is one that cannot hold a secret.
    pub source: Option<Box<dyn Error + Send + Sync>>,
}

/// A failed call. Its fields are those of [`OriginFailure`]; its text is one sentence without
/// secrets.
#[derive(Debug)]
pub struct OriginError(Box<OriginFailure>);

impl OriginError {
    /// An error with nothing but its kind, its key and a text.
    #[must_use]
    pub fn new(kind: OriginErrorKind, key: &ObjectKey, detail: impl Into<String>) -> Self {
        Self(Box::new(OriginFailure {
            kind,
            origin: String::new(),
            key: key.clone(),
            range: None,
            attempts: 0,
            status: None,
            request_id: None,
            retry_after: None,
            bytes_received: 0,
            attempt_log: Vec::new(),
            backoff: Duration::ZERO,
            detail: Some(redact(&detail.into())),
            source: None,
        }))
    }

    pub(crate) fn from_failure(failure: OriginFailure) -> Self {
        Self(Box::new(failure))
    }

    pub(crate) fn at(mut self, origin: &str) -> Self {
        if self.0.origin.is_empty() {
            origin.clone_into(&mut self.0.origin);
        }
        self
    }

    /// The facts.
    #[must_use]
    pub fn into_failure(self) -> OriginFailure {
        *self.0
    }
}

impl Deref for OriginError {
    type Target = OriginFailure;

    fn deref(&self) -> &OriginFailure {
        &self.0
    }
}

impl fmt::Display for OriginError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let this = &self.0;
        match (this.origin.is_empty(), this.key.is_root()) {
            (false, _) => write!(f, "{}/{}", this.origin, this.key)?,
            (true, false) => write!(f, "{}", this.key)?,
            (true, true) => f.write_str("the origin")?,
        }
        if let Some(range) = &this.range {
            write!(f, " bytes {}..{}", range.start, range.end)?;
        }
        write!(f, " {}", this.kind.says())?;
        if let Some(status) = this.status.filter(|status| *status >= 300) {
            write!(f, " (status {status})")?;
        }
        if this.attempts > 1 {
            write!(f, " after {} attempts", this.attempts)?;
        }
        if let Some(detail) = &this.detail {
            write!(f, ": {detail}")?;
        }
        Ok(())
    }
}

impl Error for OriginError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.0.source.as_ref().map(|source| &**source as &(dyn Error + 'static))
    }
}

/// A foreign text without queries, user names and line breaks, clipped.
pub(crate) fn redact(text: &str) -> String {
    let mut out = String::with_capacity(text.len().min(DETAIL_CHARS_MAX));
    let mut rest = text;
    while let Some(at) = rest.find("://") {
        let (before, after) = rest.split_at(at + 3);
        out.push_str(before);
        let end = after.find(|c: char| c.is_whitespace() || "\"'<>`".contains(c));
        let (url, tail) = after.split_at(end.unwrap_or(after.len()));
        out.push_str(&redact_target(url));
        rest = tail;
    }
    out.push_str(rest);
    let flat = out.split_whitespace().collect::<Vec<_>>().join(" ");
    match flat.char_indices().nth(DETAIL_CHARS_MAX) {
        Some((end, _)) => format!("{}…", &flat[..end]),
        None => flat,
    }
}

/// The part of a URL behind `://` without user name and query.
fn redact_target(url: &str) -> String {
    let (path, query) = url.split_once('?').map_or((url, false), |(path, _)| (path, true));
    let (host, rest) = path.split_at(path.find('/').unwrap_or(path.len()));
    let host = host.rsplit_once('@').map_or(host, |(_, host)| host);
    format!("{host}{rest}{}", if query { "?***" } else { "" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_and_passwords_are_cut_out_of_foreign_texts() {
        let text =
            "GET http://u:canary@h:1/p?sig=canary&x=1 failed: \"https://h?canary\"\n(b) s3://b/k";
        assert_eq!(redact(text), "GET http://h:1/p?*** failed: \"https://h?***\" (b) s3://b/k");
        assert!(redact(&"x".repeat(1000)).chars().count() <= DETAIL_CHARS_MAX + 1);
    }

    #[test]
    fn the_text_is_one_sentence_with_the_facts() {
        let mut failure = OriginError::new(
            OriginErrorKind::Throttled,
            &ObjectKey::parse("a b").unwrap(),
            "SlowDown",
        )
        .at("s3://b")
        .into_failure();
        failure.range = Some(0..10);
        failure.status = Some(503);
        failure.attempts = 3;
        assert_eq!(
            OriginError::from_failure(failure).to_string(),
            "s3://b/a b bytes 0..10 was throttled by the origin (status 503) after 3 attempts: SlowDown"
        );
    }
}
