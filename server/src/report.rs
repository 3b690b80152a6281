//! The report of a load: what was handed over, from where, and where the time went.

use std::time::Duration;

use forebay_proto::StageSeconds;
use tokio::time::Instant;

use crate::attribution::{Attribution, HostTroubles, attribute};
use crate::cost::FetchCost;
use crate::numa::Placed;
use crate::timeline::{Kind, Moment, Stage, Timeline};

/// Where the bytes of a chunk came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tier {
    /// They were in RAM.
    Ram,
    /// They were in the NVMe tier.
    Nvme,
    /// They were fetched.
    Origin,
}

impl Tier {
    /// The name in metrics.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Ram => "ram",
            Self::Nvme => "nvme",
            Self::Origin => "origin",
        }
    }
}

/// Why a chunk was taken from its tier.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Why {
    /// RAM had it.
    Cached,
    /// The NVMe tier had it.
    Stored,
    /// It was on its way for another load.
    Joined,
    /// Another domain of this node had it: it was copied from its slot.
    Copied,
    /// There is no NVMe tier.
    NoNvme,
    /// The NVMe tier does not have it.
    NotStored,
    /// Its disk is left alone.
    LeftAlone,
    /// What it has could not be read.
    ReadFailed,
    /// What it had was bad.
    BadExtent,
}

impl Why {
    /// All of them.
    #[cfg(test)]
    pub(crate) const ALL: [Self; 9] = [
        Self::Cached,
        Self::Stored,
        Self::Joined,
        Self::Copied,
        Self::NoNvme,
        Self::NotStored,
        Self::LeftAlone,
        Self::ReadFailed,
        Self::BadExtent,
    ];

    /// The name in metrics.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Cached => "cached",
            Self::Stored => "stored",
            Self::Joined => "joined",
            Self::Copied => "copied",
            Self::NoNvme => "no_nvme",
            Self::NotStored => "not_stored",
            Self::LeftAlone => "left_alone",
            Self::ReadFailed => "read_failed",
            Self::BadExtent => "bad_extent",
        }
    }

    /// Whether the NVMe tier should have had it.
    pub(crate) fn is_fallback(self) -> bool {
        matches!(self, Self::LeftAlone | Self::ReadFailed | Self::BadExtent)
    }
}

/// Which tier the bytes of a load came from.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct TierBytes {
    /// RAM hits.
    pub(crate) ram: u64,
    /// NVMe hits.
    pub(crate) nvme: u64,
    /// From the origin, by this load's fetches or by those it joined.
    pub(crate) origin: u64,
}

impl TierBytes {
    /// Counts bytes.
    pub(crate) fn add(&mut self, tier: Tier, bytes: u64) {
        let sum = match tier {
            Tier::Ram => &mut self.ram,
            Tier::Nvme => &mut self.nvme,
            Tier::Origin => &mut self.origin,
        };
        *sum += bytes;
    }

    /// All of them.
    pub(crate) fn total(&self) -> u64 {
        self.ram + self.nvme + self.origin
    }
}

/// Objects by what their bytes were held to, now or when they were first fetched.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Verified {
    /// Digests of their chunks, from a manifest.
    pub(crate) manifest: u64,
    /// A digest of the whole.
    pub(crate) object_digest: u64,
    /// The digest of the first fetch.
    pub(crate) first_fetch: u64,
}

/// Where bytes lay that were asked for near a node.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct NearBytes {
    /// On that node.
    pub(crate) near: u64,
    /// On others.
    pub(crate) far: u64,
}

/// What a load counts while it runs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    /// Bytes by tier.
    pub(crate) tiers: TierBytes,
    /// What the objects were held to.
    pub(crate) verified: Verified,
    /// What its own fetches cost.
    pub(crate) cost: FetchCost,
    /// One slot.
    pub(crate) slot_bytes: u64,
    /// The most slots it held at one time.
    pub(crate) peak_slots: usize,
    /// Where its bytes lay, if it asked for a place.
    pub(crate) near: NearBytes,
}

impl Tally {
    /// The most bytes in slots at one time.
    pub(crate) fn peak_window_bytes(&self) -> u64 {
        self.peak_slots as u64 * self.slot_bytes
    }
}

/// A finished load.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Report {
    /// The load's id.
    pub(crate) load_id: String,
    /// What was loaded, without a query.
    pub(crate) uri: String,
    /// The alias that it was opened by; empty if it was a URI.
    pub(crate) alias: String,
    /// Which revision.
    pub(crate) revision: String,
    /// In which lane.
    pub(crate) lane: &'static str,
    /// Counts.
    pub(crate) tally: Tally,
    /// From open to end.
    pub(crate) wall: Duration,
    /// From open to the first readable chunk; the wall time if there was none.
    pub(crate) first_chunk: Duration,
    /// Sums per stage.
    pub(crate) stages: Vec<StageSeconds>,
    /// The chain that decided the wall time.
    pub(crate) critical_path: Vec<(Stage, Kind, Duration)>,
    /// What no span covers.
    pub(crate) unattributed: Duration,
    /// What the client's copy engine waited for.
    pub(crate) idle: Attribution,
    /// Where its slots should lie, if it asked for that.
    pub(crate) placed: Option<Placed>,
    /// What the client copied to, if it did.
    pub(crate) device: Option<DeviceUse>,
}

/// The device that a client copies to, as it says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DeviceUse {
    /// What kind it is.
    pub(crate) kind: DeviceKind,
    /// What its driver calls it.
    pub(crate) name: String,
    /// How bytes of segments get there.
    pub(crate) path: String,
    /// Why not straight from the segments; empty if they do.
    pub(crate) why: String,
}

/// Kinds of devices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum DeviceKind {
    /// Memory of the client's own.
    Host,
    /// One that only takes the time.
    Fake,
    /// A GPU.
    Cuda,
}

impl DeviceKind {
    /// Its name.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Host => "host",
            Self::Fake => "fake",
            Self::Cuda => "cuda",
        }
    }
}

/// Who and what a report is about.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Subject<'a> {
    /// The load's id.
    pub(crate) load_id: &'a str,
    /// What was loaded.
    pub(crate) uri: &'a str,
    /// By which alias; empty if by none.
    pub(crate) alias: &'a str,
    /// Which revision.
    pub(crate) revision: &'a str,
    /// In which lane.
    pub(crate) lane: &'static str,
    /// Where its slots should lie, if it asked for that.
    pub(crate) placed: Option<&'a Placed>,
    /// What the client copied to, if it did.
    pub(crate) device: Option<&'a DeviceUse>,
}

/// Closes the books of a load at `end`; `host` knows what went on beside it.
pub(crate) fn close(
    subject: Subject<'_>,
    timeline: &Timeline,
    tally: Tally,
    (end, host): (Instant, &dyn HostTroubles),
) -> Report {
    let (opened, end) = (Moment::from(timeline.opened()), Moment::from(end));
    let (copies, wall) = (timeline.copies(), end - opened);
    // A device that has its bytes does not wait for what the client still does.
    let last_copy = copies.iter().map(|(_, stop)| (*stop).min(end)).max();
    let idle_until = subject.device.and(last_copy).unwrap_or(end);
    let gaps = gaps(opened, idle_until, &copies);
    let (path, idle) = timeline.read(|paths| {
        let path = paths.walk(opened, end);
        let idle = attribute(&gaps, paths, (&path, (opened, end)), host);
        (path, idle)
    });
    Report {
        load_id: subject.load_id.to_owned(),
        uri: subject.uri.to_owned(),
        alias: subject.alias.to_owned(),
        revision: subject.revision.to_owned(),
        lane: subject.lane,
        tally,
        wall,
        first_chunk: timeline.first_chunk_at().map_or(wall, |at| at - opened),
        stages: timeline.stages(),
        critical_path: path.steps(),
        unattributed: path.unattributed,
        idle,
        placed: subject.placed.cloned(),
        device: subject.device.cloned(),
    }
}

/// The stretches of `opened..end` in which no copy ran. Copies come in the order of time.
fn gaps(opened: Moment, end: Moment, copies: &[(Moment, Moment)]) -> Vec<(Moment, Moment)> {
    let mut gaps = Vec::new();
    let mut at = opened;
    for &(start, stop) in copies {
        if start > at {
            gaps.push((at, start.min(end)));
        }
        at = at.max(stop.min(end));
    }
    if end > at {
        gaps.push((at, end));
    }
    gaps
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attribution::Unwatched;
    use crate::timeline::Span;

    #[test]
    fn idle_time_is_charged_once_and_completely() {
        let zero = Instant::now();
        let (at, ms) = (|ms| zero + Duration::from_millis(ms), Duration::from_millis);
        let timeline = Timeline::new(zero);
        timeline.load_span(Span::new(Stage::Admission, Kind::Queue, at(0), at(10)));
        timeline.chunk_spans(
            0,
            [
                Span::new(Stage::Body, Kind::Service, at(10), at(50)),
                Span::new(Stage::VerifyPart, Kind::Service, at(50), at(55)),
                Span::new(Stage::Publish, Kind::Service, at(55), at(60)),
                Span::new(Stage::ClientAck, Kind::Service, at(60), at(100)),
            ],
        );
        let subject = Subject {
            load_id: "l",
            uri: "u",
            alias: "",
            revision: "r",
            lane: "interactive",
            placed: None,
            device: None,
        };
        timeline.copies_ran([(ms(65), ms(80)), (ms(60), ms(70))], at(10), 9);
        let report = close(subject, &timeline, Tally::default(), (at(100), &Unwatched));
        let idle: Vec<_> = report.idle.sums().map(|(c, t)| (c.as_str(), t.as_millis())).collect();
        let expected = [("origin_slow", 40), ("client", 20), ("admission_queue", 10)];
        assert_eq!(idle[..3], expected);
        assert_eq!(idle[3..], [("verify", 5), ("unknown", 5)]);
        let busy = 20;
        assert_eq!(idle.iter().map(|(_, ms)| ms).sum::<u128>() + busy, report.wall.as_millis());
        let path: Duration = report.critical_path.iter().map(|(.., time)| *time).sum();
        assert_eq!(path + report.unattributed, report.wall);
        assert_eq!(report.first_chunk, Duration::from_millis(60));
    }

    #[test]
    fn a_device_that_has_its_bytes_waits_for_nothing() {
        let zero = Instant::now();
        let (at, ms) = (|ms| zero + Duration::from_millis(ms), Duration::from_millis);
        let timeline = Timeline::new(zero);
        timeline.load_span(Span::new(Stage::Admission, Kind::Queue, at(0), at(10)));
        let device = DeviceUse {
            kind: DeviceKind::Fake,
            name: "fake:1".into(),
            path: "registered_read_only".into(),
            why: String::new(),
        };
        let subject = Subject {
            load_id: "l",
            uri: "u",
            alias: "",
            revision: "r",
            lane: "interactive",
            placed: None,
            device: Some(&device),
        };
        timeline.copies_ran([(ms(10), ms(30)), (ms(40), ms(60)), (ms(60), ms(70))], zero, 2);
        let report = close(subject, &timeline, Tally::default(), (at(100), &Unwatched));
        let idle: Duration = report.idle.idle;
        assert_eq!(idle, Duration::from_millis(20), "10 before the first copy, 10 between two");
        let in_place = Subject { device: None, ..subject };
        let report = close(in_place, &timeline, Tally::default(), (at(100), &Unwatched));
        let idle: Duration = report.idle.idle;
        assert_eq!(idle, Duration::from_millis(60));
    }

    #[test]
    fn copies_beyond_the_load_do_not_count() {
        let zero = Instant::now();
        let at = |ms| Moment::from(zero) + Duration::from_millis(ms);
        assert_eq!(gaps(at(0), at(10), &[(at(2), at(20))]), [(at(0), at(2))]);
        assert_eq!(gaps(at(0), at(10), &[]), [(at(0), at(10))]);
    }
}
