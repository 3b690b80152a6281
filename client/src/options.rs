//! What a caller asks for: a load, a prefetch, an eviction, and what goes with every call.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use forebay_proto::{Placement, Shard};

/// What goes with every call of a [`Client`](crate::Client).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CallOptions {
    /// The budget of one call, everything included. None: as long as it takes.
    pub deadline: Option<Duration>,
    /// The trace that the call belongs to.
    pub trace_parent: Option<TraceParent>,
    /// The daemon is asked for every load, however many it refuses for overload. Else some are
    /// refused here meanwhile: see [`Client::load`](crate::Client::load).
    pub unthrottled: bool,
}

/// A W3C `traceparent`, version 00 or a later one that begins like it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TraceParent(String);

/// The text is no W3C `traceparent`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "no W3C traceparent: {0}; an example is 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
)]
pub struct BadTraceParent(&'static str);

impl TraceParent {
    /// Checks a `traceparent`.
    pub fn parse(text: &str) -> Result<Self, BadTraceParent> {
        let fields: Vec<&str> = text.split('-').collect();
        let [version, trace, parent, flags, rest @ ..] = fields.as_slice() else {
            return Err(BadTraceParent("it is not VERSION-TRACE-PARENT-FLAGS"));
        };
        let hex = |field: &str, digits: usize| {
            field.len() == digits
                && field.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
        };
        if !hex(version, 2) || *version == "ff" {
            return Err(BadTraceParent("the version is not 2 lower-case hex digits below ff"));
        }
        if !hex(trace, 32) || trace.bytes().all(|b| b == b'0') {
            return Err(BadTraceParent("the trace id is not 32 lower-case hex digits, not all 0"));
        }
        if !hex(parent, 16) || parent.bytes().all(|b| b == b'0') {
            return Err(BadTraceParent("the parent id is not 16 lower-case hex digits, not all 0"));
        }
        if !hex(flags, 2) {
            return Err(BadTraceParent("the flags are not 2 lower-case hex digits"));
        }
        let visible = |field: &&str| field.bytes().all(|b| b.is_ascii_graphic());
        if !rest.is_empty() && (*version == "00" || !rest.iter().all(visible)) {
            return Err(BadTraceParent("something follows the flags"));
        }
        Ok(Self(text.to_owned()))
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for TraceParent {
    type Err = BadTraceParent;

    fn from_str(text: &str) -> Result<Self, BadTraceParent> {
        Self::parse(text)
    }
}

impl fmt::Display for TraceParent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Which queue a load waits in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Lane {
    /// Someone waits for it.
    Interactive,
    /// Nobody does.
    Prefetch,
}

/// A tier of this node that keeps bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum KeepTier {
    /// Host memory.
    Ram,
    /// Local disk.
    Nvme,
}

/// What to load, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoadRequest {
    pub(crate) uri: String,
    pub(crate) load_id: String,
    pub(crate) lane: Option<Lane>,
    pub(crate) tensors: Vec<String>,
    pub(crate) objects: Vec<String>,
    pub(crate) placement: Option<Placement>,
    pub(crate) shard: Option<Shard>,
    pub(crate) deadline: Option<Duration>,
    pub(crate) verify: Option<VerifyPolicy>,
    pub(crate) sha256: BTreeMap<String, [u8; 32]>,
    pub(crate) workload: String,
}

/// When chunks are handed over of an object of which a digest of all its bytes is known, and no
/// digests of its chunks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VerifyPolicy {
    /// As they come: the load fails at its end if the digest does not hold, and nothing is kept.
    Stream,
    /// When all of the object has been compared with its digest.
    Strict,
}

impl LoadRequest {
    /// Every byte of every object of `uri`.
    pub fn new(uri: impl Into<String>) -> Self {
        Self {
            uri: uri.into(),
            load_id: String::new(),
            lane: None,
            tensors: Vec::new(),
            objects: Vec::new(),
            placement: None,
            shard: None,
            deadline: None,
            verify: None,
            sha256: BTreeMap::new(),
            workload: String::new(),
        }
    }

    /// What the load is for: a name of the daemon's `workloads`, by which its metrics tell loads
    /// apart. Names that it does not know count as `other`.
    #[must_use]
    pub fn workload(mut self, workload: impl Into<String>) -> Self {
        self.workload = workload.into();
        self
    }

    /// When chunks are handed over whose object has a digest; [`VerifyPolicy::Stream`] if not said.
    #[must_use]
    pub fn verify(mut self, policy: VerifyPolicy) -> Self {
        self.verify = Some(policy);
        self
    }

    /// The SHA-256 that objects should have, by their keys relative to the checkpoint. Keys that it
    /// does not have count for nothing, unless it has none of them.
    #[must_use]
    pub fn sha256<K: Into<String>>(
        mut self,
        digests: impl IntoIterator<Item = (K, [u8; 32])>,
    ) -> Self {
        self.sha256.extend(digests.into_iter().map(|(key, digest)| (key.into(), digest)));
        self
    }

    /// The budget of the whole load, from the call to the report; instead of the client's.
    #[must_use]
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = Some(deadline);
        self
    }

    /// The queue; interactive if not said.
    #[must_use]
    pub fn lane(mut self, lane: Lane) -> Self {
        self.lane = Some(lane);
        self
    }

    /// The id, 1 to 64 of `[A-Za-z0-9._-]`; opening an id again attaches to the same load.
    #[must_use]
    pub fn load_id(mut self, load_id: impl Into<String>) -> Self {
        self.load_id = load_id.into();
        self
    }

    /// Where the bytes should lie in host memory. What cannot be had is no error; see
    /// [`Report::placement`](crate::model::Report::placement).
    #[must_use]
    pub fn placement(mut self, placement: Placement) -> Self {
        self.placement = Some(placement);
        self
    }

    /// Only a rank's slice of each tensor, and the chunks that hold some of it. Such a load is
    /// copied to a device ([`Load::to_device`](crate::Load::to_device)), or read by chunks or
    /// pieces: the tensors that are cut have no bytes in one place to lend.
    #[must_use]
    pub fn shard(mut self, shard: Shard) -> Self {
        self.shard = Some(shard);
        self
    }

    /// Only the tensors whose name matches one of these globs, and the chunks that hold them.
    #[must_use]
    pub fn tensors<I: IntoIterator<Item: Into<String>>>(mut self, globs: I) -> Self {
        self.tensors.extend(globs.into_iter().map(Into::into));
        self
    }

    /// Only the objects whose key matches one of these globs.
    #[must_use]
    pub fn objects<I: IntoIterator<Item: Into<String>>>(mut self, globs: I) -> Self {
        self.objects.extend(globs.into_iter().map(Into::into));
        self
    }
}

/// What to fetch and keep.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PrefetchRequest {
    pub(crate) uri: String,
    pub(crate) load_id: String,
    pub(crate) tier: Option<KeepTier>,
    pub(crate) pin: bool,
    pub(crate) placement: Option<Placement>,
    pub(crate) workload: String,
}

impl PrefetchRequest {
    /// Every byte of every object of `uri`.
    pub fn new(uri: impl Into<String>) -> Self {
        Self {
            uri: uri.into(),
            load_id: String::new(),
            tier: None,
            pin: false,
            placement: None,
            workload: String::new(),
        }
    }

    /// What it is for; see [`LoadRequest::workload`].
    #[must_use]
    pub fn workload(mut self, workload: impl Into<String>) -> Self {
        self.workload = workload.into();
        self
    }

    /// Where it has to be in the end; RAM if not said.
    #[must_use]
    pub fn tier(mut self, tier: KeepTier) -> Self {
        self.tier = Some(tier);
        self
    }

    /// Where the bytes should lie in host memory; see [`LoadRequest::placement`].
    #[must_use]
    pub fn placement(mut self, placement: Placement) -> Self {
        self.placement = Some(placement);
        self
    }

    /// Pins it in the NVMe tier, where it has to be in the end too.
    #[must_use]
    pub fn pin(mut self) -> Self {
        self.pin = true;
        self
    }

    /// The id, 1 to 64 of `[A-Za-z0-9._-]`.
    #[must_use]
    pub fn load_id(mut self, load_id: impl Into<String>) -> Self {
        self.load_id = load_id.into();
        self
    }
}

/// What to pack, and where to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PackRequest {
    pub(crate) source: String,
    pub(crate) destination: String,
    pub(crate) frame_bytes: u64,
    pub(crate) level: i32,
}

impl PackRequest {
    /// Every object of the checkpoint `source`, into the folder `destination`.
    pub fn new(source: impl Into<String>, destination: impl Into<String>) -> Self {
        let (source, destination) = (source.into(), destination.into());
        Self { source, destination, frame_bytes: 0, level: 0 }
    }

    /// Bytes that are compressed and checked by themselves: a power of two from 64 KiB to 16 MiB;
    /// 8 MiB if not said. A load fetches no less than that at a time.
    #[must_use]
    pub fn frame_bytes(mut self, bytes: u64) -> Self {
        self.frame_bytes = bytes;
        self
    }

    /// zstd's level, 1 to 19, where there are no byte planes; 1 if not said.
    #[must_use]
    pub fn level(mut self, level: i32) -> Self {
        self.level = level;
        self
    }
}

/// What to drop from the tiers. A URI alone stands for all of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EvictRequest {
    pub(crate) uri: String,
    pub(crate) tier: Option<KeepTier>,
}

impl EvictRequest {
    /// What every tier holds of the checkpoints at or under `uri`.
    pub fn new(uri: impl Into<String>) -> Self {
        Self { uri: uri.into(), tier: None }
    }

    /// Only from this tier.
    #[must_use]
    pub fn tier(mut self, tier: KeepTier) -> Self {
        self.tier = Some(tier);
        self
    }
}

impl From<&str> for EvictRequest {
    fn from(uri: &str) -> Self {
        Self::new(uri)
    }
}

impl From<&String> for EvictRequest {
    fn from(uri: &String) -> Self {
        Self::new(uri)
    }
}

impl From<String> for EvictRequest {
    fn from(uri: String) -> Self {
        Self::new(uri)
    }
}

/// Whether any glob matches, or there is none.
pub(crate) fn selects(globs: &[String], text: &str) -> bool {
    globs.is_empty() || globs.iter().any(|glob| glob_match::glob_match(glob, text))
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn traceparent_is_checked() {
        assert_eq!(TraceParent::parse(GOOD).unwrap().as_str(), GOOD);
        TraceParent::parse(&format!("cc{}-more", &GOOD[2..])).unwrap();
        for bad in [
            "",
            "00",
            &GOOD.to_uppercase(),
            &format!("ff{}", &GOOD[2..]),
            &format!("{GOOD}-more"),
            &GOOD[..GOOD.len() - 1],
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-0g",
            &format!("cc{}-m\n", &GOOD[2..]),
        ] {
            TraceParent::parse(bad).unwrap_err();
        }
    }

    #[test]
    fn no_glob_selects_everything() {
        assert!(selects(&[], "x"));
        assert!(selects(&["a*".into(), "{x,y}".into()], "x"));
        assert!(!selects(&["a*".into()], "x"));
    }
}
