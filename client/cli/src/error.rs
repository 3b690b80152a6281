//! How a command fails: one sentence on stderr, with `--format json` an object as well, and the
//! exit code of the kind.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::time::Duration;

use forebay_client::model::BytesByTier;
use forebay_client::{ClientError, ErrorKind, Failure, Reason};
use serde::Serialize;

use crate::args::Format;
use crate::is_json;
use crate::text::{printable, tiers};

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CliError {
    /// The daemon, or the way to it.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// This machine, while doing something.
    #[error("cannot {doing}: {source} (LOCAL_IO)")]
    Local { doing: String, source: io::Error },
    /// An object's key cannot be the path of a file.
    #[error("object key {key:?} {why} (UNSAFE_KEY): leave it out with --only")]
    UnsafeKey { key: String, why: &'static str },
    /// A file of digests is none.
    #[error("{file} cannot be used: {problem} (BAD_DIGESTS): write it with sha256sum")]
    BadSums { file: String, problem: String },
    /// A verification found cached bytes that are wrong.
    #[error("{}", bad_cache(.uri, *.bad, *.unreadable))]
    BadCache { uri: String, bad: BytesByTier, unreadable: BytesByTier },
    /// A check-up found what does not work.
    #[error("{bad} of the checks are bad (BAD_CHECKS): see what they advise")]
    BadChecks { bad: usize },
    /// Nobody reads stdout any more.
    #[error("stdout is closed")]
    BrokenPipe,
    /// This and others failed; the others were reported.
    #[error("{failed} of {all} checkpoints failed; the first was: {first}")]
    Several { failed: usize, all: usize, first: Box<Self> },
}

impl CliError {
    /// A failure of this machine.
    pub(crate) fn local(doing: impl Into<String>, source: impl Into<io::Error>) -> Self {
        Self::Local { doing: doing.into(), source: source.into() }
    }

    /// A request that cannot be.
    pub(crate) fn bad_request(message: &str) -> Self {
        Self::Client(Failure::new(Reason::BadRequest, message).into())
    }

    /// A failure that is a bug.
    pub(crate) fn internal(message: &str) -> Self {
        Self::Client(Failure::new(Reason::Internal, message).into())
    }

    fn kind(&self) -> ErrorKind {
        match self {
            Self::Client(error) => error.kind(),
            Self::Local { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
                ErrorKind::PermissionDenied
            }
            Self::Local { .. } | Self::BrokenPipe => ErrorKind::Internal,
            Self::UnsafeKey { .. } | Self::BadSums { .. } => ErrorKind::InvalidArgument,
            Self::BadCache { .. } => ErrorKind::DataLoss,
            Self::BadChecks { .. } => ErrorKind::FailedPrecondition,
            Self::Several { first, .. } => first.kind(),
        }
    }

    /// What the process ends with.
    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            Self::BrokenPipe => 0,
            _ => self.kind().exit_code(),
        }
    }

    /// Tells a person, and a script that asked for JSON.
    pub(crate) fn report(&self, format: Format) {
        if let Self::BrokenPipe = self {
            return;
        }
        let mut text = format!("forebay: {self}\n");
        // Each of several has had its object.
        if is_json(format)
            && !matches!(self, Self::Several { .. })
            && let Ok(object) = serde_json::to_string(&self.json())
        {
            text.push_str(&object);
            text.push('\n');
        }
        // Nothing is left to tell a person whose terminal is gone.
        io::stderr().lock().write_all(text.as_bytes()).ok();
    }

    fn json(&self) -> ErrorJson<'_> {
        let failure = match self {
            Self::Client(error) => Some(error.failure()),
            Self::Several { first, .. } => return first.json(),
            _ => None,
        };
        ErrorJson {
            code: self.kind().as_str(),
            reason: match (self, failure) {
                (_, Some(failure)) => failure.reason.as_str(),
                (Self::UnsafeKey { .. }, _) => "UNSAFE_KEY",
                (Self::BadCache { .. }, _) => "BAD_CACHE",
                (Self::BadChecks { .. }, _) => "BAD_CHECKS",
                _ => "LOCAL_IO",
            },
            message: failure.map_or_else(|| self.to_string(), |failure| failure.message.clone()),
            stage: failure.and_then(|failure| failure.stage.as_deref()),
            object: match self {
                Self::UnsafeKey { key, .. } => Some(key),
                _ => failure.and_then(|failure| failure.object.as_deref()),
            },
            attempt: failure.and_then(|failure| failure.attempt),
            origin_status: failure.and_then(|failure| failure.origin_status),
            retry_after_seconds: failure
                .and_then(|failure| failure.retry_after)
                .map(|after: Duration| after.as_secs_f64()),
            stages: failure.map_or_else(Vec::new, stages),
            facts: failure.map(|failure| &failure.facts),
        }
    }
}

#[derive(Debug, Serialize)]
struct ErrorJson<'a> {
    code: &'static str,
    reason: &'static str,
    message: String,
    stage: Option<&'a str>,
    object: Option<&'a str>,
    attempt: Option<u32>,
    origin_status: Option<u16>,
    retry_after_seconds: Option<f64>,
    /// Where the time went before the error.
    stages: Vec<StageJson<'a>>,
    /// Further facts, by name.
    facts: Option<&'a BTreeMap<String, String>>,
}

#[derive(Debug, Serialize)]
struct StageJson<'a> {
    stage: &'a str,
    queue_seconds: f64,
    service_seconds: f64,
}

fn bad_cache(uri: &str, bad: BytesByTier, unreadable: BytesByTier) -> String {
    let mut text = format!("what is cached of {} was bad: {}", printable(uri), tiers(bad));
    if unreadable.cached() > 0 {
        text += &format!("; {} could not be read", tiers(unreadable));
    }
    text + " (BAD_CACHE): what was bad is given up, and fetched again when it is next needed"
}

fn stages(failure: &Failure) -> Vec<StageJson<'_>> {
    let stages = failure.stages.iter().map(|stage| StageJson {
        stage: &stage.stage,
        queue_seconds: stage.queue.as_secs_f64(),
        service_seconds: stage.service.as_secs_f64(),
    });
    stages.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes_follow_the_kind() {
        let failed = |reason| CliError::from(ClientError::from(Failure::new(reason, "x")));
        assert_eq!(failed(Reason::BadUri).exit_code(), 2);
        assert_eq!(failed(Reason::DaemonUnreachable).exit_code(), 7);
        assert_eq!(failed(Reason::RevisionChanged).exit_code(), 9);
        assert_eq!(CliError::local("write", io::ErrorKind::StorageFull).exit_code(), 1);
        assert_eq!(CliError::local("write", io::ErrorKind::PermissionDenied).exit_code(), 8);
        assert_eq!(CliError::BrokenPipe.exit_code(), 0);
    }

    #[test]
    fn bad_bytes_are_told_by_tier_and_what_becomes_of_them() {
        let bad = BytesByTier { ram: 1024, nvme: 2048, origin: 0 };
        let unreadable = BytesByTier { nvme: 3, ..Default::default() };
        let error = CliError::BadCache { uri: "s3://b/".into(), bad, unreadable };
        let sentence = "what is cached of s3://b/ was bad: RAM 1.0 KiB and NVMe 2.0 KiB; \
                        NVMe 3 B could not be read (BAD_CACHE): \
                        what was bad is given up, and fetched again when it is next needed";
        assert_eq!(error.to_string(), sentence);
        assert_eq!(error.exit_code(), 6);
        let json = serde_json::to_value(error.json()).unwrap();
        assert_eq!((&json["code"], &json["reason"]), (&"DATA_LOSS".into(), &"BAD_CACHE".into()));
        let bad = CliError::BadCache { uri: "x".into(), bad, unreadable: BytesByTier::default() };
        assert!(!bad.to_string().contains("could not be read"), "{bad}");
    }

    #[test]
    fn the_object_has_every_fact() {
        let mut failure = Failure::new(Reason::OriginThrottled, "slow down")
            .at_stage("fetch")
            .for_object("a b")
            .retry_in(Duration::from_millis(1500))
            .with_fact("attempts", 4);
        failure.attempt = Some(3);
        failure.origin_status = Some(503);
        let error = CliError::from(ClientError::from(failure));
        let json = serde_json::to_value(error.json()).unwrap();
        let expected = serde_json::json!({
            "code": "UNAVAILABLE", "reason": "ORIGIN_THROTTLED", "message": "slow down",
            "stage": "fetch", "object": "a b", "attempt": 3, "origin_status": 503,
            "retry_after_seconds": 1.5, "stages": [], "facts": {"attempts": "4"},
        });
        assert_eq!(json, expected);
    }
}
