//! Mirror types of the messages a client receives, validated on receipt.
//!
//! Every type here has one way in: a `receive` (or a builder) that takes the generated message and
//! answers [`Malformed`] when a count, an offset, a name or a time in it cannot be. What lies
//! behind that call may index, add and slice without asking again. Nothing here goes the other
//! way: requests are written by the client's transport as generated types.
//!
//! * [`Opened`], [`Manifest`], [`Grant`]: one load, in the order in which it speaks.
//! * [`Report`], [`PrefetchEvent`]: how it went. [`PackEvent`]: how a pack did.
//!   [`ResizeEvent`]: how the RAM tier changes its size.
//! * [`Explanation`], [`TraceHead`], [`TraceSpan`]: where its time went. [`Capacity`]: what it could be.
//! * [`Check`]: what is in the way of loads. [`Alias`], [`SetAliasEvent`], [`RolledBack`]: names of
//!   revisions.
//! * [`StatSummary`], [`CachedCheckpoint`], [`Pinned`], [`Evicted`], [`VerifyEvent`],
//!   [`DaemonStatus`]: the control verbs.

mod alias;
mod cached;
mod capacity;
mod doctor;
mod explain;
mod grant;
mod manifest;
mod numa;
mod pack;
mod report;
mod resize;
mod status;

use std::fmt;
use std::time::Duration;

use crate::failure::{Failure, Reason};
use crate::pb;

pub use alias::{
    Alias, AliasEvent, AliasProgress, AliasReport, AliasRevision, AliasRule, RolledBack,
    SetAliasEvent,
};
pub use cached::{
    CachedCheckpoint, Evicted, Pinned, StatSummary, Unpinned, VerifyEvent, VerifyProgress,
    VerifySummary,
};
pub use capacity::{Capacity, Ceiling, LoadCapacity, Measured, StageCapacity};
pub use doctor::{Check, Verdict};
pub use explain::{
    CauseReport, EvidenceSource, Explanation, Fact, IdleGap, TraceHead, TraceSpan, TraceTrack,
};
pub use grant::{ChunkIndex, Extent, Grant, LeaseId, Opened, SessionToken};
pub use manifest::{Manifest, ManifestBuilder, ObjectEntry, ObjectIndex, TensorEntry};
pub use numa::{NodeStatus, NumaStatus};
pub use pack::{PackEvent, PackProgress, PackReport};
pub use report::{
    DeviceUse, IdleTime, PathStep, PlacementReport, PrefetchEvent, PrefetchProgress, Report,
    StageTime, VerifiedObjects,
};
pub use resize::{ResizeEvent, ResizeProgress, ResizeReport};
pub use status::{
    AddressStatus, DaemonStatus, DomainStatus, EndpointStatus, LoadStatus, NameStatus, NvmeStatus,
    OriginStatus, QueueStatus, RamStatus,
};

/// A message of the daemon that cannot be: a bug of it, or a daemon of another version.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the daemon sent a malformed {message}: {what}")]
pub struct Malformed {
    message: &'static str,
    what: String,
}

impl Malformed {
    /// `message` names the wire message, `what` says what is wrong with it.
    pub fn new(message: &'static str, what: impl Into<String>) -> Self {
        Self { message, what: what.into() }
    }
}

impl From<Malformed> for Failure {
    fn from(malformed: Malformed) -> Self {
        Self::new(Reason::Internal, malformed.to_string())
    }
}

/// What a checkpoint resolved to: `b3:` and 64 hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Revision(String);

impl Revision {
    fn receive(message: &'static str, text: String) -> Result<Self, Malformed> {
        let digits = text.strip_prefix("b3:").unwrap_or_default();
        if digits.len() == 64 && digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Ok(Self(text));
        }
        Err(Malformed::new(message, format!("revision {text:?} is not b3: and 64 hex digits")))
    }

    /// The whole text, prefix included.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Where bytes were, or came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Tier {
    /// Host memory of this node.
    Ram,
    /// Local disk of this node.
    Nvme,
    /// The object store.
    Origin,
}

impl Tier {
    fn receive(message: &'static str, number: i32) -> Result<Self, Malformed> {
        match pb::Tier::try_from(number) {
            Ok(pb::Tier::Ram) => Ok(Self::Ram),
            Ok(pb::Tier::Nvme) => Ok(Self::Nvme),
            Ok(pb::Tier::Origin) => Ok(Self::Origin),
            Ok(pb::Tier::Unspecified) | Err(_) => {
                Err(Malformed::new(message, format!("tier {number} is unknown")))
            }
        }
    }

    /// The name, as reports and metrics show it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ram => "ram",
            Self::Nvme => "nvme",
            Self::Origin => "origin",
        }
    }
}

/// Bytes split by tier.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct BytesByTier {
    /// In host memory.
    pub ram: u64,
    /// On local disk.
    pub nvme: u64,
    /// In no tier of this node.
    pub origin: u64,
}

impl BytesByTier {
    /// Those that a tier of this node holds.
    #[must_use]
    pub fn cached(self) -> u64 {
        self.ram.saturating_add(self.nvme)
    }

    fn receive(message: Option<pb::BytesByTier>) -> Self {
        let pb::BytesByTier { ram, nvme, origin } = message.unwrap_or_default();
        Self { ram, nvme, origin }
    }
}

/// The message of a oneof that must be there.
fn required<T>(message: &'static str, event: Option<T>) -> Result<T, Malformed> {
    event.ok_or_else(|| Malformed::new(message, "it is empty, or of a newer version"))
}

/// Seconds as the wire has them. Rounding in the daemon may leave a tiny negative rest: zero.
fn span(message: &'static str, field: &str, seconds: f64) -> Result<Duration, Malformed> {
    if (-1e-3..0.0).contains(&seconds) {
        return Ok(Duration::ZERO);
    }
    Duration::try_from_secs_f64(seconds)
        .map_err(|_| Malformed::new(message, format!("{field} is {seconds} seconds")))
}

/// A load id: 1 to 64 of `[A-Za-z0-9._-]`.
#[must_use]
pub fn is_load_id(text: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    (1..=64).contains(&text.len()) && text.bytes().all(allowed)
}

/// A trace id as it is told: 32 lower-case hex digits, or nothing where it is not told.
fn is_trace_id(text: &str) -> bool {
    let digit = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    text.is_empty() || text.len() == 32 && text.bytes().all(digit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_revision_is_a_prefix_and_64_hex_digits() {
        let good = format!("b3:{}", "0f".repeat(32));
        assert_eq!(Revision::receive("x", good.clone()).unwrap().as_str(), good);
        for bad in ["", "b3:", "b3:zz", &good[..66], &format!("{good}0"), &"0f".repeat(32)] {
            Revision::receive("x", bad.to_owned()).unwrap_err();
        }
    }

    #[test]
    fn spans_are_finite_and_not_negative() {
        assert_eq!(span("x", "f", 1.5).unwrap(), Duration::from_millis(1500));
        assert_eq!(span("x", "f", -1e-9).unwrap(), Duration::ZERO);
        for bad in [-1.0, f64::NAN, f64::INFINITY, 1e300] {
            span("x", "f", bad).unwrap_err();
        }
    }

    #[test]
    fn a_malformed_message_is_a_failure_of_kind_internal() {
        let failure = Failure::from(Malformed::new("Grant", "no extent"));
        assert_eq!(failure.reason, Reason::Internal);
        assert_eq!(failure.message, "the daemon sent a malformed Grant: no extent");
    }

    #[test]
    fn load_ids() {
        assert!(is_load_id("a") && is_load_id("A-9._z") && is_load_id(&"x".repeat(64)));
        assert!(!is_load_id("") && !is_load_id(&"x".repeat(65)) && !is_load_id("a b"));
    }
}
