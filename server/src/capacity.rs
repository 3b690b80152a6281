//! What the stages bring per second, as measured, and the most that a load can get of that.
//!
//! A [`Series`] is what one stage did in the last minutes, in buckets of ten seconds: bytes, the
//! time in which it worked at all, and the time of its operations together. The rate of a stage is
//! the median over its buckets, each counted for as long as it worked, of bytes over working time:
//! pauses say nothing about a stage, and neither do the best and the worst seconds. Buckets in which
//! far less was under way than in others are left out, since less was asked for. Where more workers
//! bring as much more, the rate is that of one worker, times the workers there are.
//!
//! [`predict`] makes of the stages' rates what each kind of load can get: the least of the stages it
//! passes. What was not measured is none, and never zero.
//!
//! Times come in as arguments: nothing here has a clock or a lock. [`meter`] has both, and belongs
//! to the stages.

pub(crate) mod meter;

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

/// Long enough for some operations of a slow stage.
pub(crate) const BUCKET: Duration = Duration::from_secs(10);

/// Five minutes, and the bucket that is open.
const BUCKETS_MAX: u64 = 31;

/// How far back measurements go.
pub(crate) const WINDOW: Duration = Duration::from_secs(300);

/// Operations before a stage counts as measured.
const OPERATIONS_MIN: u64 = 8;

/// Buckets with less than this share of the most that was under way are left out.
const CROWDED: f64 = 0.5;

/// What a stage did in one bucket.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct Bucket {
    /// Made, or brought.
    bytes: f64,
    /// Of what they were made.
    source: f64,
    /// Seconds in which at least one operation was under way.
    busy: f64,
    /// Seconds of all operations together.
    work: f64,
}

/// See the module's head.
#[derive(Debug)]
pub(crate) struct Series {
    /// Begin of the first bucket.
    epoch: Instant,
    /// By number, oldest first; those without anything are left out.
    buckets: VecDeque<(u64, Bucket)>,
    under_way: u64,
    /// Until when working time is booked.
    booked: Instant,
    operations: u64,
    /// When an operation ended last.
    last: Option<Instant>,
}

/// Stretches that are kept apart; of more, the oldest count as over.
const STRETCHES_MAX: usize = 64;

/// Stretches of time that are told in any order, as one.
#[derive(Debug, Default)]
pub(crate) struct Union {
    /// Disjoint, in order.
    stretches: Vec<(Duration, Duration)>,
}

impl Union {
    /// Adds a stretch; how much of it was in none before.
    pub(crate) fn add(&mut self, start: Duration, end: Duration) -> Duration {
        let first = self.stretches.partition_point(|(_, known)| *known < start);
        let behind = self.stretches.partition_point(|(known, _)| *known <= end);
        let (mut whole, mut known) = ((start, end), Duration::ZERO);
        for (from, to) in self.stretches.drain(first..behind.max(first)) {
            known += to.min(end).saturating_sub(from.max(start));
            whole = (whole.0.min(from), whole.1.max(to));
        }
        self.stretches.insert(first, whole);
        if self.stretches.len() > STRETCHES_MAX {
            self.stretches.remove(0);
        }
        end.saturating_sub(start).saturating_sub(known)
    }
}

/// How a stage's rate follows from what was measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scale {
    /// It is that of all that was under way.
    Whole,
    /// It is that of one worker, times so many.
    Workers(usize),
}

/// What was measured of a stage.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Rate {
    /// What it can do.
    pub(crate) bytes_per_second: f64,
    /// Of one worker, if it scales with them.
    pub(crate) of_worker: Option<f64>,
    /// Bytes that one byte is made of: less than one where they are decoded.
    pub(crate) ratio: f64,
    /// Operations under way while it worked, on average.
    pub(crate) concurrency: f64,
    /// Time in which it worked.
    pub(crate) busy: Duration,
    /// Since an operation ended last.
    pub(crate) age: Duration,
}

impl Series {
    /// Of a stage that has done nothing yet.
    pub(crate) fn new(now: Instant) -> Self {
        let buckets = VecDeque::new();
        Self { epoch: now, buckets, under_way: 0, booked: now, operations: 0, last: None }
    }

    /// An operation begins.
    pub(crate) fn begin(&mut self, now: Instant) {
        self.book(now);
        self.under_way += 1;
    }

    /// An operation that began then ends, and has made `bytes` of `source`.
    pub(crate) fn end(&mut self, began: Instant, now: Instant, (bytes, source): (u64, u64)) {
        self.book(now);
        self.under_way = self.under_way.saturating_sub(1);
        self.did(began, now, (bytes, source));
    }

    /// An operation that is only heard of when it is over. Working time counts from `alone` on: what
    /// lies before was that of another one.
    pub(crate) fn ran(&mut self, (began, alone): (Instant, Instant), ended: Instant, bytes: u64) {
        self.spread(alone, ended, |bucket, seconds| bucket.busy += seconds);
        self.did(began, ended, (bytes, bytes));
    }

    fn did(&mut self, began: Instant, ended: Instant, (bytes, source): (u64, u64)) {
        let took = ended.saturating_duration_since(began).as_secs_f64();
        let [bytes, source] = [bytes, source].map(as_f64);
        match took > 0.0 {
            true => self.spread(began, ended, |bucket, seconds| {
                bucket.work += seconds;
                bucket.bytes += bytes * seconds / took;
                bucket.source += source * seconds / took;
            }),
            false => {
                let bucket = self.bucket(self.number(ended));
                bucket.bytes += bytes;
                bucket.source += source;
            }
        }
        self.operations += u64::from(bytes > 0.0);
        let last = self.last.map_or(ended, |last| last.max(ended));
        self.last = Some(last);
        // What is told of a time long ago goes at once.
        self.forget(last);
    }

    /// Books the time until now as working time, if anything is under way.
    fn book(&mut self, now: Instant) {
        if now <= self.booked {
            return;
        }
        if self.under_way > 0 {
            self.spread(self.booked, now, |bucket, seconds| bucket.busy += seconds);
        }
        self.booked = now;
    }

    /// Gives each bucket between two moments its seconds.
    fn spread(&mut self, from: Instant, to: Instant, mut give: impl FnMut(&mut Bucket, f64)) {
        let oldest = self.number(to).saturating_sub(BUCKETS_MAX);
        for number in self.number(from).max(oldest)..=self.number(to) {
            let begin =
                self.epoch + BUCKET.saturating_mul(u32::try_from(number).unwrap_or(u32::MAX));
            let within = to.min(begin + BUCKET).saturating_duration_since(from.max(begin));
            if !within.is_zero() {
                give(self.bucket(number), within.as_secs_f64());
            }
        }
    }

    fn number(&self, at: Instant) -> u64 {
        at.saturating_duration_since(self.epoch).as_secs() / BUCKET.as_secs()
    }

    fn bucket(&mut self, number: u64) -> &mut Bucket {
        let at = self.buckets.partition_point(|(known, _)| *known < number);
        if self.buckets.get(at).is_none_or(|(known, _)| *known != number) {
            self.buckets.insert(at, (number, Bucket::default()));
        }
        &mut self.buckets[at].1
    }

    fn forget(&mut self, now: Instant) {
        let newest = self.number(now);
        while self.buckets.front().is_some_and(|(number, _)| *number + BUCKETS_MAX <= newest) {
            self.buckets.pop_front();
        }
    }

    /// Bytes per second over the last [`BUCKET`].
    pub(crate) fn present(&self, now: Instant) -> f64 {
        let number = self.number(now);
        let into = now.saturating_duration_since(self.epoch).as_secs_f64() % BUCKET.as_secs_f64();
        let of = |number: u64| {
            let found = self.buckets.iter().rev().find(|(known, _)| *known == number);
            found.map_or(0.0, |(_, bucket)| bucket.bytes)
        };
        let before = number.checked_sub(1).map_or(0.0, of);
        (of(number) + before * (1.0 - into / BUCKET.as_secs_f64())) / BUCKET.as_secs_f64()
    }

    /// What it can do, if it was measured in the last minutes.
    pub(crate) fn rate(&self, now: Instant, scale: Scale) -> Option<Rate> {
        let newest = self.number(now);
        let recent = self.buckets.iter().filter(|(number, bucket)| {
            number + BUCKETS_MAX > newest && bucket.busy > 0.0 && bucket.bytes > 0.0
        });
        let recent: Vec<Bucket> = recent.map(|(_, bucket)| *bucket).collect();
        let most = recent.iter().map(|b| b.work / b.busy).fold(0.0, f64::max);
        let crowded: Vec<Bucket> =
            recent.into_iter().filter(|b| b.work / b.busy >= most * CROWDED).collect();
        let sum = |of: fn(&Bucket) -> f64| crowded.iter().map(of).sum::<f64>();
        let (busy, work, bytes) = (sum(|b| b.busy), sum(|b| b.work), sum(|b| b.bytes));
        if self.operations < OPERATIONS_MIN || bytes <= 0.0 {
            return None;
        }
        let (bytes_per_second, of_worker) = match scale {
            Scale::Whole => (median(&crowded, |b| (b.bytes, b.busy))?, None),
            Scale::Workers(workers) => {
                let one = median(&crowded, |b| (b.bytes, b.work))?;
                (one * as_f64(workers as u64), Some(one))
            }
        };
        Some(Rate {
            bytes_per_second,
            of_worker,
            ratio: sum(|b| b.source) / bytes,
            concurrency: work / busy,
            busy: Duration::try_from_secs_f64(busy).unwrap_or_default(),
            age: self.last.map_or(Duration::ZERO, |last| now.saturating_duration_since(last)),
        })
    }
}

/// The median of bytes over seconds, each bucket counted for its seconds.
fn median(buckets: &[Bucket], of: impl Fn(&Bucket) -> (f64, f64)) -> Option<f64> {
    let timed = buckets.iter().map(of).filter(|(_, seconds)| *seconds > 0.0);
    let mut rates: Vec<(f64, f64)> = timed.map(|(bytes, s)| (bytes / s, s)).collect();
    rates.sort_by(|(a, _), (b, _)| a.total_cmp(b));
    let half = rates.iter().map(|(_, seconds)| seconds).sum::<f64>() / 2.0;
    let mut passed = 0.0;
    let found = rates.iter().find(|(_, seconds)| {
        passed += seconds;
        passed >= half
    });
    found.or_else(|| rates.last()).map(|(rate, _)| *rate)
}

/// Exact up to 2^53; beyond that nobody reads the last digit.
#[expect(clippy::cast_precision_loss, reason = "see above")]
fn as_f64(value: u64) -> f64 {
    value as f64
}

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Stage {
    /// An origin sends, on the wire.
    Origin,
    /// Extents are read from NVMe.
    NvmeRead,
    /// Extents are written to NVMe, behind the hand-over.
    NvmeWrite,
    /// What a store has in another form is decoded, and compared with its digests.
    Decompress,
    /// What was read from NVMe is compared with its sums.
    Verify,
    /// Digests of whole objects are taken, beside the hand-over.
    VerifyObject,
    /// Chunks in RAM are found and granted.
    Handoff,
    /// Clients copy to a device, as they say.
    Dma,
}

impl Stage {
    /// Its name.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Origin => "origin",
            Self::NvmeRead => "nvme_read",
            Self::NvmeWrite => "nvme_write",
            Self::Decompress => "decompress",
            Self::Verify => "verify",
            Self::VerifyObject => "verify_object",
            Self::Handoff => "handoff",
            Self::Dma => "dma",
        }
    }

    /// Whether loads pass it only where it is there: not every load has a device, nor digests of
    /// whole objects.
    fn is_optional(self) -> bool {
        matches!(self, Self::VerifyObject | Self::Dma)
    }
}

/// A way that loads go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Path {
    /// From an origin that has the bytes as they are.
    Cold,
    /// From an origin that has them packed.
    Packed,
    /// From the NVMe tier.
    Nvme,
    /// From the RAM tier.
    Warm,
    /// From an origin into the NVMe tier, until they are there.
    Fill,
}

impl Path {
    /// Its name.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Cold => "cold",
            Self::Packed => "packed",
            Self::Nvme => "nvme",
            Self::Warm => "warm",
            Self::Fill => "fill",
        }
    }

    /// The stages that it passes.
    fn stages(self) -> &'static [Stage] {
        use Stage::*;
        match self {
            Self::Cold => &[Origin, VerifyObject, Handoff, Dma],
            Self::Packed => &[Origin, Decompress, Handoff, Dma],
            Self::Nvme => &[NvmeRead, Verify, Handoff, Dma],
            Self::Warm => &[Handoff, Dma],
            Self::Fill => &[Origin, NvmeWrite],
        }
    }
}

/// What is known of a stage, for a prediction.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Known {
    /// What it can do; none if it was not measured.
    pub(crate) rate: Option<f64>,
    /// What it does now.
    pub(crate) present: f64,
}

/// What a kind of load can get, in bytes of the checkpoint.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Prediction {
    /// The least of its stages, which one that is, and what is left of it.
    pub(crate) ceiling: Option<(f64, Stage, f64)>,
    /// Every stage that it passes, and what it can do.
    pub(crate) stages: Vec<(Stage, Option<f64>)>,
}

/// What loads on a path can get of what is known of its stages. `ratio` is bytes on the wire for
/// one of the checkpoint where they are packed; without it nothing is known of an origin's part in
/// that.
pub(crate) fn predict(
    path: Path,
    known: impl Fn(Stage) -> Option<Known>,
    ratio: Option<f64>,
) -> Prediction {
    let wire = |stage: Stage| match (path, stage) {
        (Path::Packed, Stage::Origin) => ratio.filter(|ratio| *ratio > 0.0),
        _ => Some(1.0),
    };
    let mut stages = Vec::new();
    let mut ceiling: Option<(f64, Stage, f64)> = None;
    for &stage in path.stages() {
        let found = known(stage).and_then(|known| {
            let wire = wire(stage)?;
            let rate = known.rate?;
            Some((rate / wire, (rate - known.present).max(0.0) / wire))
        });
        if found.is_none() && stage.is_optional() {
            continue;
        }
        stages.push((stage, found.map(|(rate, _)| rate)));
        if let Some((rate, left)) = found
            && ceiling.is_none_or(|(least, ..)| rate < least)
        {
            ceiling = Some((rate, stage, left));
        }
    }
    Prediction { ceiling, stages }
}

#[cfg(test)]
#[path = "capacity_tests.rs"]
mod tests;
