//! The one error vocabulary of Forebay.
//!
//! Inside, every layer has its own typed error. Where a layer ends, the error becomes a
//! [`Failure`]: a [`Reason`] from a closed set, which fixes the [`ErrorKind`] that tells a caller
//! what to do, and the facts (stage, object, attempt, origin status, time per stage). This module
//! is the only place that turns a failure into a gRPC status and back, an exit code, or a C status
//! number.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::time::Duration;

use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

/// The `domain` of every `google.rpc.ErrorInfo` that Forebay sends.
pub const ERROR_DOMAIN: &str = "forebay";

/// The trailer budget is 8 KiB for all details, in base64: longer texts are cut to this many bytes.
const DETAIL_BYTES_MAX: usize = 1024;

/// What a caller can do about an error. Each kind is one gRPC code, one exit code and one C status.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The caller's mistake: correct the call.
    InvalidArgument,
    /// No such object.
    NotFound,
    /// The caller or the origin's policy refuses.
    PermissionDenied,
    /// Credentials are missing or have expired.
    Unauthenticated,
    /// Overload on this node: wait and call again.
    ResourceExhausted,
    /// A dependency fails: retry later.
    Unavailable,
    /// The time budget is spent.
    DeadlineExceeded,
    /// The world changed: open again to get the new revision.
    FailedPrecondition,
    /// The bytes are wrong.
    DataLoss,
    /// A bug of Forebay.
    Internal,
}

impl ErrorKind {
    /// The gRPC code of this kind.
    #[must_use]
    pub fn code(self) -> Code {
        match self {
            Self::InvalidArgument => Code::InvalidArgument,
            Self::NotFound => Code::NotFound,
            Self::PermissionDenied => Code::PermissionDenied,
            Self::Unauthenticated => Code::Unauthenticated,
            Self::ResourceExhausted => Code::ResourceExhausted,
            Self::Unavailable => Code::Unavailable,
            Self::DeadlineExceeded => Code::DeadlineExceeded,
            Self::FailedPrecondition => Code::FailedPrecondition,
            Self::DataLoss => Code::DataLoss,
            Self::Internal => Code::Internal,
        }
    }

    /// The exit code of the `forebay` command.
    #[must_use]
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Internal => 1,
            Self::InvalidArgument => 2,
            Self::NotFound => 3,
            Self::DeadlineExceeded => 4,
            Self::ResourceExhausted => 5,
            Self::DataLoss => 6,
            Self::Unavailable => 7,
            Self::PermissionDenied | Self::Unauthenticated => 8,
            Self::FailedPrecondition => 9,
        }
    }

    /// The status number of the C library: that of the gRPC code, negated.
    #[must_use]
    pub fn c_status(self) -> i32 {
        -i32::from(self.code())
    }

    /// The name of the gRPC code, as metrics and JSON show it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::InvalidArgument => "INVALID_ARGUMENT",
            Self::NotFound => "NOT_FOUND",
            Self::PermissionDenied => "PERMISSION_DENIED",
            Self::Unauthenticated => "UNAUTHENTICATED",
            Self::ResourceExhausted => "RESOURCE_EXHAUSTED",
            Self::Unavailable => "UNAVAILABLE",
            Self::DeadlineExceeded => "DEADLINE_EXCEEDED",
            Self::FailedPrecondition => "FAILED_PRECONDITION",
            Self::DataLoss => "DATA_LOSS",
            Self::Internal => "INTERNAL",
        }
    }

    /// The kind a client sees for a gRPC code, whoever sent it.
    #[must_use]
    pub fn from_code(code: Code) -> Self {
        match code {
            Code::InvalidArgument | Code::OutOfRange | Code::Unimplemented => Self::InvalidArgument,
            Code::NotFound => Self::NotFound,
            Code::PermissionDenied => Self::PermissionDenied,
            Code::Unauthenticated => Self::Unauthenticated,
            Code::ResourceExhausted => Self::ResourceExhausted,
            Code::Unavailable => Self::Unavailable,
            Code::DeadlineExceeded => Self::DeadlineExceeded,
            Code::FailedPrecondition | Code::Aborted | Code::AlreadyExists => {
                Self::FailedPrecondition
            }
            Code::DataLoss => Self::DataLoss,
            Code::Ok | Code::Cancelled | Code::Unknown | Code::Internal => Self::Internal,
        }
    }
}

macro_rules! reasons {
    ($($(#[$doc:meta])* $variant:ident = $name:literal, $kind:ident, $next:literal;)*) => {
        /// Why a call failed: a closed set, stable on the wire.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub enum Reason { $($(#[$doc])* $variant,)* }

        impl Reason {
            /// Every reason, for tables and tests.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// The wire name, UPPER_SNAKE.
            #[must_use]
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }

            /// The kind this reason always has.
            #[must_use]
            pub fn kind(self) -> ErrorKind {
                match self { $(Self::$variant => ErrorKind::$kind,)* }
            }

            /// What to do next, as the end of a sentence to a person.
            #[must_use]
            pub fn next_step(self) -> &'static str {
                match self { $(Self::$variant => $next,)* }
            }
        }
    };
}

reasons! {
    /// The URI cannot be parsed or names an unsupported scheme.
    BadUri = "BAD_URI", InvalidArgument, "give s3://, gs://, az://, http(s):// or file:///";
    /// `grpc-timeout` or `--deadline` is malformed.
    BadDeadline = "BAD_DEADLINE", InvalidArgument, "give a deadline such as 250ms, 30s or 10m";
    /// A tensor filter matches nothing.
    UnknownTensor = "UNKNOWN_TENSOR", InvalidArgument, "list the tensors with `forebay stat URI`";
    /// Any other malformed request.
    BadRequest = "BAD_REQUEST", InvalidArgument, "correct the request";
    /// The origin says the request itself is wrong (400).
    OriginRejected = "ORIGIN_REJECTED", InvalidArgument, "check the URI, the region and the endpoint";
    /// The object or prefix does not exist.
    ObjectNotFound = "OBJECT_NOT_FOUND", NotFound, "check the URI";
    /// No tier holds anything of it.
    NotCached = "NOT_CACHED", NotFound, "fetch it with `forebay prefetch URI`";
    /// No alias has this name.
    AliasUnknown = "ALIAS_UNKNOWN", NotFound, "see `forebay alias ls`, or make it with `forebay alias set NAME URI`";
    /// The load runs, never was, or is too long ago.
    LoadNotKept = "LOAD_NOT_KEPT", NotFound, "see `forebay status` for loads that run; the daemon knows its last 64";
    /// The peer's uid is not on the allow-list.
    UidNotAllowed = "UID_NOT_ALLOWED", PermissionDenied, "add the uid to `allow_uids`, or to `uids` of a [[domain]]";
    /// The caller's domain may not load this.
    UriNotAllowed = "URI_NOT_ALLOWED", PermissionDenied, "add it to `uri_prefixes` of the caller's [[domain]]";
    /// The caller's domain may not use this lane.
    LaneNotAllowed = "LANE_NOT_ALLOWED", PermissionDenied, "use another lane, or add it to `lanes` of the caller's [[domain]]";
    /// A token is missing, or it is that of no domain of the caller.
    TokenUnknown = "TOKEN_UNKNOWN", Unauthenticated, "give the domain's token with --token-file or FOREBAY_TOKEN";
    /// A verb that hands memory over was called over TCP.
    ControlOnly = "CONTROL_ONLY", InvalidArgument, "load on the daemon's node, over its unix socket";
    /// The peer's uid may not have files written with the daemon's rights.
    WriteNotAllowed = "WRITE_NOT_ALLOWED", PermissionDenied, "run it as the daemon's user or as root, or write to an object store";
    /// The origin refuses the daemon's credentials (403).
    OriginDenied = "ORIGIN_DENIED", PermissionDenied, "give the daemon credentials that may read it";
    /// The origin wants credentials, or those it got have expired (401).
    CredentialsExpired = "CREDENTIALS_EXPIRED", Unauthenticated, "renew the daemon's credentials";
    /// The admission queue is full.
    QueueFull = "QUEUE_FULL", ResourceExhausted, "retry after the hinted delay";
    /// No slot can be had: leases hold the pool.
    RamExhausted = "RAM_EXHAUSTED", ResourceExhausted, "release leases or raise --ram";
    /// The NVMe tier has no room: what is in it is pinned or in use, or the disk is full.
    NvmeExhausted = "NVME_EXHAUSTED", ResourceExhausted, "unpin or evict checkpoints, or raise --nvme";
    /// The deadline cannot be met at the measured rates.
    DeadlineInfeasible = "DEADLINE_INFEASIBLE", ResourceExhausted, "give a longer deadline";
    /// A limit on the size or count of what a checkpoint may hold.
    LimitExceeded = "LIMIT_EXCEEDED", ResourceExhausted, "split the checkpoint or raise the limit";
    /// No connection to the origin, or it broke every time.
    OriginUnreachable = "ORIGIN_UNREACHABLE", Unavailable, "check the endpoint and the network";
    /// The origin throttles (429, 503).
    OriginThrottled = "ORIGIN_THROTTLED", Unavailable, "retry after the hinted delay";
    /// The origin fails (5xx).
    OriginFailed = "ORIGIN_FAILED", Unavailable, "retry later";
    /// The origin's name does not resolve.
    DnsFailed = "DNS_FAILED", Unavailable, "check the endpoint's name and the node's resolver";
    /// The breaker of the endpoint is open.
    BreakerOpen = "BREAKER_OPEN", Unavailable, "retry after the hinted delay";
    /// The daemon is shutting down.
    Draining = "DRAINING", Unavailable, "retry when the daemon is back";
    /// The client cannot reach the daemon, or lost it.
    DaemonUnreachable = "DAEMON_UNREACHABLE", Unavailable, "start forebayd or correct --endpoint";
    /// The device's driver is missing, or there is no such device.
    DeviceUnavailable = "DEVICE_UNAVAILABLE", Unavailable, "check the driver with `nvidia-smi`, or give another device";
    /// The device has no room for the load.
    DeviceExhausted = "DEVICE_MEMORY_EXHAUSTED", ResourceExhausted, "free memory of the device, or load fewer tensors or a rank's slices";
    /// The device or its driver failed, at a copy or before one.
    DeviceFailed = "DEVICE_FAILED", Unavailable, "see the driver's messages in the kernel log";
    /// The deadline passed.
    Deadline = "DEADLINE", DeadlineExceeded, "give a longer deadline";
    /// Nothing moved for the no-progress limit.
    NoProgress = "NO_PROGRESS", DeadlineExceeded, "see which stage the time went to";
    /// There is no NVMe tier, or its disk fails.
    NvmeOff = "NVME_OFF", FailedPrecondition, "see `forebay status`, and start forebayd with --nvme";
    /// An object is no longer the one that was resolved.
    RevisionChanged = "REVISION_CHANGED", FailedPrecondition, "load again to get the new revision";
    /// What lies at the destination of a pack, or is being done there, stands in the way.
    DestinationInUse = "DESTINATION_IN_USE", FailedPrecondition, "give another destination, or clear this one";
    /// Another call sets the same alias.
    AliasBusy = "ALIAS_BUSY", FailedPrecondition, "see `forebay alias ls NAME`, and set it again when the other call has ended";
    /// The alias was switched, or removed, by somebody else while it was being set.
    AliasChanged = "ALIAS_CHANGED", FailedPrecondition, "see `forebay alias ls NAME`, and set it again if that is still wanted";
    /// The alias has stood for no other revision.
    NoPreviousRevision = "NO_PREVIOUS_REVISION", FailedPrecondition, "set it to what is wanted with `forebay alias set NAME URI`";
    /// Another stream opened the same load id.
    Superseded = "SUPERSEDED", FailedPrecondition, "use the newer stream, or another load id";
    /// Another call set another size of the RAM tier.
    ResizeSuperseded = "RESIZE_SUPERSEDED", FailedPrecondition, "see `forebay status` for the size that holds now";
    /// Bytes do not match their digest.
    DigestMismatch = "DIGEST_MISMATCH", DataLoss, "compare the object with its source";
    /// The origin keeps sending fewer bytes than it declares.
    Truncated = "TRUNCATED", DataLoss, "upload the object again";
    /// A header or frame cannot be decoded.
    DecodeFailed = "DECODE_FAILED", DataLoss, "compare the object with its source";
    /// What was kept of an alias cannot be read any more.
    AliasDamaged = "ALIAS_DAMAGED", DataLoss, "set it again with `forebay alias set NAME URI`, or roll back";
    /// What is kept of an alias cannot be written.
    AliasNotKept = "ALIAS_NOT_KEPT", Unavailable, "see to the disk of the cache directory";
    /// A bug of Forebay.
    Internal = "INTERNAL", Internal, "report it with the daemon's log";
}

impl Reason {
    /// The reason with this wire name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|reason| reason.as_str() == name)
    }
}

/// Queue and service time of one stage, summed.
#[derive(Debug, Clone, PartialEq)]
pub struct StageSeconds {
    /// Stage name, as in metrics.
    pub stage: String,
    /// Time between being handed to the stage and being taken up by it.
    pub queue: Duration,
    /// Time being worked on.
    pub service: Duration,
}

/// One failed call, with the facts a caller or an operator needs.
#[derive(Debug, Clone, PartialEq)]
pub struct Failure {
    /// Why.
    pub reason: Reason,
    /// One sentence: what failed. Never holds a secret or a query string.
    pub message: String,
    /// The stage that failed.
    pub stage: Option<String>,
    /// The object's key, relative to the checkpoint.
    pub object: Option<String>,
    /// Attempts made.
    pub attempt: Option<u32>,
    /// The HTTP status the origin gave last.
    pub origin_status: Option<u16>,
    /// When a retry can help.
    pub retry_after: Option<Duration>,
    /// At a bound: what is exhausted, and by whom.
    pub quota: Option<String>,
    /// Where the time went before the error.
    pub stages: Vec<StageSeconds>,
    /// Further facts by name: what the reads had cost, what an estimate was made of.
    pub facts: BTreeMap<String, String>,
}

/// Names in the metadata that have fields of their own.
const FIELDS: [&str; 4] = ["stage", "object", "attempt", "origin_status"];

impl Failure {
    /// A failure with nothing but its reason and message.
    #[must_use]
    pub fn new(reason: Reason, message: impl Into<String>) -> Self {
        Self {
            reason,
            message: plain(message.into()),
            stage: None,
            object: None,
            attempt: None,
            origin_status: None,
            retry_after: None,
            quota: None,
            stages: Vec::new(),
            facts: BTreeMap::new(),
        }
    }

    /// Names the stage, unless an inner layer already did.
    #[must_use]
    pub fn at_stage(mut self, stage: &str) -> Self {
        self.stage.get_or_insert_with(|| stage.to_owned());
        self
    }

    /// Names the object, unless an inner layer already did.
    #[must_use]
    pub fn for_object(mut self, key: &str) -> Self {
        self.object.get_or_insert_with(|| key.to_owned());
        self
    }

    /// Adds when a retry can help.
    #[must_use]
    pub fn retry_in(mut self, after: Duration) -> Self {
        self.retry_after = Some(after);
        self
    }

    /// Adds what is exhausted, and by whom.
    #[must_use]
    pub fn with_quota(mut self, violation: impl Into<String>) -> Self {
        self.quota = Some(violation.into());
        self
    }

    /// Adds a fact. Its name is none of the fields of a failure.
    #[must_use]
    pub fn with_fact(mut self, name: &str, value: impl fmt::Display) -> Self {
        self.facts.insert(name.to_owned(), value.to_string());
        self
    }

    /// The kind, which is fixed by the reason.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        self.reason.kind()
    }

    /// The gRPC status with its `google.rpc` details.
    #[must_use]
    pub fn to_status(&self) -> Status {
        let mut metadata = HashMap::new();
        let mut put = |key: &str, value: Option<String>| {
            if let Some(value) = value {
                metadata.insert(key.to_owned(), clipped(&value));
            }
        };
        put("stage", self.stage.clone());
        put("object", self.object.clone());
        put("attempt", self.attempt.map(|n| n.to_string()));
        put("origin_status", self.origin_status.map(|n| n.to_string()));
        for (name, value) in &self.facts {
            put(name, Some(value.clone()));
        }
        for stage in &self.stages {
            put(
                &format!("queue_seconds.{}", stage.stage),
                Some(format!("{:.6}", stage.queue.as_secs_f64())),
            );
            put(
                &format!("service_seconds.{}", stage.stage),
                Some(format!("{:.6}", stage.service.as_secs_f64())),
            );
        }
        let mut details = ErrorDetails::new();
        details.set_error_info(self.reason.as_str(), ERROR_DOMAIN, metadata);
        if let Some(after) = self.retry_after {
            details.set_retry_info(Some(after));
        }
        if let Some(quota) = &self.quota {
            details.add_quota_failure_violation(ERROR_DOMAIN, clipped(quota));
        }
        Status::with_error_details(self.kind().code(), clipped(&self.message), details)
    }

    /// What a status says, whether Forebay, tonic or something between them made it.
    #[must_use]
    pub fn from_status(status: &Status) -> Self {
        let details = status.get_error_details();
        let info = details.error_info().filter(|info| info.domain == ERROR_DOMAIN);
        let named = info.and_then(|info| Reason::from_name(&info.reason));
        let mut failure =
            Self::new(named.unwrap_or_else(|| reason_of_foreign(status)), status.message());
        failure.retry_after = details.retry_info().and_then(|retry| retry.retry_delay);
        failure.quota = details
            .quota_failure()
            .and_then(|quota| quota.violations.first().map(|v| v.description.clone()));
        if let Some(info) = info {
            failure.stage = info.metadata.get("stage").cloned();
            failure.object = info.metadata.get("object").cloned();
            failure.attempt = info.metadata.get("attempt").and_then(|n| n.parse().ok());
            failure.origin_status = info.metadata.get("origin_status").and_then(|n| n.parse().ok());
            failure.stages = stages_of(&info.metadata);
            let is_fact = |name: &str| !(FIELDS.contains(&name) || name.contains("_seconds."));
            let facts = info.metadata.iter().filter(|(name, _)| is_fact(name));
            failure.facts = facts.map(|(name, value)| (name.clone(), value.clone())).collect();
        }
        failure
    }
}

/// A status without our details: made by tonic, hyper or a proxy.
fn reason_of_foreign(status: &Status) -> Reason {
    match ErrorKind::from_code(status.code()) {
        ErrorKind::InvalidArgument => Reason::BadRequest,
        ErrorKind::NotFound => Reason::ObjectNotFound,
        ErrorKind::PermissionDenied => Reason::UidNotAllowed,
        ErrorKind::Unauthenticated => Reason::CredentialsExpired,
        ErrorKind::ResourceExhausted => Reason::QueueFull,
        ErrorKind::Unavailable => Reason::DaemonUnreachable,
        ErrorKind::DeadlineExceeded => Reason::Deadline,
        ErrorKind::FailedPrecondition => Reason::Superseded,
        ErrorKind::DataLoss => Reason::DecodeFailed,
        // tonic's client answers its own `grpc-timeout` with CANCELLED "Timeout expired", and a
        // connection that breaks under a stream shows as UNKNOWN or INTERNAL from h2.
        ErrorKind::Internal if status.code() == Code::Cancelled => Reason::Deadline,
        ErrorKind::Internal if status.code() == Code::Unknown => Reason::DaemonUnreachable,
        ErrorKind::Internal => Reason::Internal,
    }
}

fn stages_of(metadata: &HashMap<String, String>) -> Vec<StageSeconds> {
    let seconds = |key: String| {
        metadata
            .get(&key)
            .and_then(|text| text.parse::<f64>().ok())
            .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
            .unwrap_or_default()
    };
    let mut stages: Vec<StageSeconds> = metadata
        .keys()
        .filter_map(|key| key.strip_prefix("service_seconds."))
        .map(|stage| StageSeconds {
            stage: stage.to_owned(),
            queue: seconds(format!("queue_seconds.{stage}")),
            service: seconds(format!("service_seconds.{stage}")),
        })
        .collect();
    stages.sort_by(|a, b| a.stage.cmp(&b.stage));
    stages
}

/// A message may quote names that others chose. Their control characters are shown, not obeyed, by
/// the terminals and logs that the message ends in.
fn plain(text: String) -> String {
    if !text.contains(char::is_control) {
        return text;
    }
    let mut plain = String::with_capacity(text.len() + 8);
    for character in text.chars() {
        match character.is_control() {
            true => plain.extend(character.escape_default()),
            false => plain.push(character),
        }
    }
    plain
}

/// Cuts a text to what fits a trailer, at a character boundary.
fn clipped(text: &str) -> String {
    if text.len() <= DETAIL_BYTES_MAX {
        return text.to_owned();
    }
    let mut end = DETAIL_BYTES_MAX;
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}…", &text[..end])
}

impl fmt::Display for Failure {
    /// One sentence with the reason and what to do next.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({}", self.message, self.reason.as_str())?;
        if let Some(stage) = &self.stage {
            write!(f, ", stage {stage}")?;
        }
        if let Some(object) = &self.object
            && !self.message.contains(object.as_str())
        {
            write!(f, ", object {object}")?;
        }
        if let Some(attempt) = self.attempt {
            write!(f, ", attempt {attempt}")?;
        }
        if let Some(status) = self.origin_status {
            write!(f, ", origin status {status}")?;
        }
        write!(f, "): {}", self.reason.next_step())
    }
}

impl std::error::Error for Failure {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_survives_the_wire() {
        for &reason in Reason::ALL {
            let mut failure = Failure::new(reason, "it failed")
                .at_stage("fetch")
                .for_object("a b/ü")
                .retry_in(Duration::from_millis(250))
                .with_quota("pool held by load x")
                .with_fact("missing_bytes", 7);
            failure.attempt = Some(3);
            failure.origin_status = Some(503);
            failure.stages = vec![StageSeconds {
                stage: "fetch".into(),
                queue: Duration::from_millis(1500),
                service: Duration::from_millis(20),
            }];
            let back = Failure::from_status(&failure.to_status());
            assert_eq!(back, failure);
            assert_eq!(failure.to_status().code(), reason.kind().code());
        }
    }

    #[test]
    fn details_fit_a_trailer_and_cut_at_a_character() {
        let failure =
            Failure::new(Reason::ObjectNotFound, "ü".repeat(4000)).for_object(&"é".repeat(3000));
        let status = failure.to_status();
        assert!(status.details().len() < 8192);
        assert!(status.message().ends_with('…'));
    }

    #[test]
    fn control_characters_are_shown_and_not_obeyed() {
        let failure = Failure::new(Reason::DecodeFailed, "key \"a\u{1b}[31m\n\u{9b}b ü\"");
        assert_eq!(failure.message, "key \"a\\u{1b}[31m\\n\\u{9b}b ü\"");
    }

    #[test]
    fn a_foreign_timeout_is_a_deadline() {
        let failure = Failure::from_status(&Status::cancelled("Timeout expired"));
        assert_eq!(failure.kind().exit_code(), 4);
    }

    #[test]
    fn exit_codes_are_the_contract() {
        let codes: Vec<u8> = [
            ErrorKind::Internal,
            ErrorKind::InvalidArgument,
            ErrorKind::NotFound,
            ErrorKind::DeadlineExceeded,
            ErrorKind::ResourceExhausted,
            ErrorKind::DataLoss,
            ErrorKind::Unavailable,
            ErrorKind::PermissionDenied,
            ErrorKind::FailedPrecondition,
        ]
        .map(ErrorKind::exit_code)
        .to_vec();
        assert_eq!(codes, [1, 2, 3, 4, 5, 6, 7, 8, 9]);
    }
}
