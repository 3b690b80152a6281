//! What the verbs about what is cached answer: `stat`, `ls`, `pin`, `unpin`, `evict`, `verify`.

use std::time::Duration;

use super::{BytesByTier, Malformed, Revision, required, span};
use crate::pb;

/// What a URI resolves to, and how much of it is cached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StatSummary {
    /// The URI as resolved, without a query.
    pub uri: String,
    /// What it resolved to.
    pub revision: Revision,
    /// Objects in the manifest.
    pub object_count: u64,
    /// Tensors in the manifest.
    pub tensor_count: u64,
    /// Size of the checkpoint.
    pub bytes: u64,
    /// Where its bytes are.
    pub cached: BytesByTier,
}

impl StatSummary {
    /// Checks the message.
    pub fn receive(summary: pb::StatSummary) -> Result<Self, Malformed> {
        let pb::StatSummary { uri, revision, object_count, tensor_count, bytes, cached } = summary;
        Ok(Self {
            uri,
            revision: Revision::receive("StatSummary", revision)?,
            object_count,
            tensor_count,
            bytes,
            cached: BytesByTier::receive(cached),
        })
    }
}

/// One checkpoint of which something is cached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CachedCheckpoint {
    /// Its URI, without a query.
    pub uri: String,
    /// Which revision of it.
    pub revision: Revision,
    /// Size of the checkpoint.
    pub bytes: u64,
    /// Objects in the manifest.
    pub object_count: u64,
    /// Where its bytes are.
    pub cached: BytesByTier,
    /// Loads that use it.
    pub active_loads: u64,
    /// Time since its last use.
    pub idle: Duration,
    /// Whether the NVMe tier keeps it whatever else comes.
    pub pinned: bool,
}

impl CachedCheckpoint {
    /// Checks the message.
    pub fn receive(checkpoint: pb::CachedCheckpoint) -> Result<Self, Malformed> {
        const MESSAGE: &str = "CachedCheckpoint";
        let pb::CachedCheckpoint {
            uri,
            revision,
            bytes,
            object_count,
            cached,
            active_loads,
            idle_seconds,
            pinned,
        } = checkpoint;
        Ok(Self {
            uri,
            revision: Revision::receive(MESSAGE, revision)?,
            bytes,
            object_count,
            cached: BytesByTier::receive(cached),
            active_loads,
            idle: span(MESSAGE, "idle_seconds", idle_seconds)?,
            pinned,
        })
    }
}

/// What is pinned after a pin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pinned {
    /// Checkpoints that are pinned.
    pub checkpoints: u64,
    /// Bytes of them that the NVMe tier holds.
    pub nvme_bytes: u64,
    /// Bytes of them that it does not hold, or not yet.
    pub missing_bytes: u64,
}

impl Pinned {
    /// Takes the message: every value of it is possible.
    #[must_use]
    pub fn receive(response: pb::PinResponse) -> Self {
        let pb::PinResponse { checkpoints, nvme_bytes, missing_bytes } = response;
        Self { checkpoints, nvme_bytes, missing_bytes }
    }
}

/// What an unpin did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unpinned {
    /// Checkpoints that were pinned and are not any more.
    pub checkpoints: u64,
}

impl Unpinned {
    /// Takes the message: every value of it is possible.
    #[must_use]
    pub fn receive(response: pb::UnpinResponse) -> Self {
        let pb::UnpinResponse { checkpoints } = response;
        Self { checkpoints }
    }
}

/// What an eviction did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Evicted {
    /// Checkpoints dropped.
    pub checkpoints: u64,
    /// Bytes of RAM that are free now.
    pub freed_bytes: u64,
    /// Bytes of RAM that become free when their last lease is released.
    pub leased_bytes: u64,
    /// Bytes freed in the NVMe tier.
    pub nvme_freed_bytes: u64,
    /// Checkpoints that stay in the NVMe tier because they are pinned.
    pub pinned_checkpoints: u64,
}

impl Evicted {
    /// Takes the message: every value of it is possible.
    #[must_use]
    pub fn receive(response: pb::EvictResponse) -> Self {
        let pb::EvictResponse {
            checkpoints,
            freed_bytes,
            leased_bytes,
            nvme_freed_bytes,
            pinned_checkpoints,
        } = response;
        Self { checkpoints, freed_bytes, leased_bytes, nvme_freed_bytes, pinned_checkpoints }
    }
}

/// How far a verification is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VerifyProgress {
    /// Bytes read again and checked.
    pub checked_bytes: u64,
    /// Bytes there are to check.
    pub total_bytes: u64,
}

/// What a verification found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VerifySummary {
    /// Checkpoints it went through.
    pub checkpoints: u64,
    /// What was read again and checked.
    pub checked: BytesByTier,
    /// What was wrong. The daemon has given it up and fetches it again when it is next needed.
    pub bad: BytesByTier,
    /// What could not be checked: evicted meanwhile, or the disk did not answer.
    pub unreadable: BytesByTier,
}

impl VerifySummary {
    fn receive(summary: pb::VerifySummary) -> Self {
        let pb::VerifySummary { checkpoints, checked, bad, unreadable } = summary;
        Self {
            checkpoints,
            checked: BytesByTier::receive(checked),
            bad: BytesByTier::receive(bad),
            unreadable: BytesByTier::receive(unreadable),
        }
    }
}

/// What a verification says while it runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VerifyEvent {
    /// How far it is.
    Progress(VerifyProgress),
    /// It is done; nothing follows.
    Summary(VerifySummary),
}

impl VerifyEvent {
    /// The summary, if this is it.
    #[must_use]
    pub fn into_summary(self) -> Option<VerifySummary> {
        match self {
            Self::Progress(_) => None,
            Self::Summary(summary) => Some(summary),
        }
    }

    /// Checks the message.
    pub fn receive(response: pb::VerifyResponse) -> Result<Self, Malformed> {
        match required("VerifyResponse", response.event)? {
            pb::verify_response::Event::Progress(progress) => {
                let pb::VerifyProgress { checked_bytes, total_bytes } = progress;
                Ok(Self::Progress(VerifyProgress { checked_bytes, total_bytes }))
            }
            pb::verify_response::Event::Summary(summary) => {
                Ok(Self::Summary(VerifySummary::receive(summary)))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_summary_needs_its_revision() {
        StatSummary::receive(pb::StatSummary::default()).unwrap_err();
        CachedCheckpoint::receive(pb::CachedCheckpoint::default()).unwrap_err();
    }

    #[test]
    fn a_verification_says_how_far_it_is_and_then_what_it_found() {
        let receive = |event| VerifyEvent::receive(pb::VerifyResponse { event });
        let progress = pb::VerifyProgress { checked_bytes: 1, total_bytes: 3 };
        let progress = receive(Some(pb::verify_response::Event::Progress(progress))).unwrap();
        assert_eq!(progress.into_summary(), None);
        let bad = Some(pb::BytesByTier { nvme: 2, ..Default::default() });
        let summary = pb::VerifySummary { checkpoints: 1, bad, ..Default::default() };
        let summary = receive(Some(pb::verify_response::Event::Summary(summary))).unwrap();
        let summary = summary.into_summary().unwrap();
        assert_eq!((summary.bad.nvme, summary.unreadable), (2, BytesByTier::default()));
        receive(None).unwrap_err();
    }
}
