//! What the copy engine waited for: every gap between copies, moment by moment, charged to one cause
//! of a closed set.
//!
//! A gap ends when a copy begins. [`Paths::to_copy`] follows the chunk that became readable last
//! before that, backwards through its waits and its work, so that the gap is cut into pieces with a
//! stage each. A stage alone is no cause: what is known of the piece decides (its [`Clue`], and what
//! the machine went through meanwhile), by the rules of [`charge`]. Where nothing became readable
//! and the client holds chunks, it waited for nothing but itself. What no rule covers is `unknown`.
//!
//! Pure: spans and differences of counters in, charges out. Pieces have no overlap and leave no
//! hole, so the causes sum to the gaps.

use std::borrow::Cow;
use std::cell::Cell;
use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

use crate::timeline::path::{CriticalPath, Paths};
use crate::timeline::{Clue, Kind, Moment, Span, Stage};

/// From this share of the time on, a CPU quota is what a load waits for.
const THROTTLED_SHARE: f64 = 0.2;

/// From this share of its threads' time in the run queue on, work of ours is slow for want of CPUs.
const RUN_QUEUE_SHARE: f64 = 0.2;

/// A hand-over that takes longer is no mere latency.
const HAND_OVER_MAX: Duration = Duration::from_millis(5);

/// How long after the origin said "slow down" our own restraint is its doing.
const RESTRAINT: Duration = Duration::from_secs(10);

/// A load that has no longer gaps is asked about as a whole: nobody looks more often.
const SHORT: Duration = Duration::from_millis(25);

/// Charges that are kept one by one; beyond that the shortest are only in the sums.
const CHARGES_MAX: usize = 4096;

/// What the copy engine waited for. Names as in metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Cause {
    /// Name resolution.
    Dns,
    /// Making a connection: TCP and TLS.
    TcpConnect,
    /// Segments were lost on the way, and sent again.
    TcpRetransmit,
    /// The origin said "slow down", or is asked for no more than is configured.
    OriginThrottle,
    /// The origin, or the path to it, was as slow as that.
    OriginSlow,
    /// Bytes of a file that were not in the page cache.
    PageCache,
    /// Waiting for the disk of the NVMe tier.
    NvmeQueue,
    /// Reads of the NVMe tier; of what is to be kept there, its writes.
    NvmeService,
    /// Waiting for a decode worker, or for memory to decode from.
    DecompressQueue,
    /// Decoding, with the digests that belong to it.
    DecompressCpu,
    /// Work on memory of another NUMA node, as far as it was slower than on its own.
    NumaRemote,
    /// Waiting for a place among the active loads.
    AdmissionQueue,
    /// Waiting for a slot that other loads held.
    LeaseMemory,
    /// Digests, and waiting for them.
    Verify,
    /// The daemon did not get the CPU: a quota, or others who run.
    CpuThrottle,
    /// Readable, and the client did not take it.
    Client,
    /// No evidence.
    Unknown,
}

impl Cause {
    /// Every cause.
    pub(crate) const ALL: [Self; 17] = [
        Self::Dns,
        Self::TcpConnect,
        Self::TcpRetransmit,
        Self::OriginThrottle,
        Self::OriginSlow,
        Self::PageCache,
        Self::NvmeQueue,
        Self::NvmeService,
        Self::DecompressQueue,
        Self::DecompressCpu,
        Self::NumaRemote,
        Self::AdmissionQueue,
        Self::LeaseMemory,
        Self::Verify,
        Self::CpuThrottle,
        Self::Client,
        Self::Unknown,
    ];

    /// The name on the wire.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Dns => "dns",
            Self::TcpConnect => "tcp_connect",
            Self::TcpRetransmit => "tcp_retransmit",
            Self::OriginThrottle => "origin_throttle",
            Self::OriginSlow => "origin_slow",
            Self::PageCache => "page_cache",
            Self::NvmeQueue => "nvme_queue",
            Self::NvmeService => "nvme_service",
            Self::DecompressQueue => "decompress_queue",
            Self::DecompressCpu => "decompress_cpu",
            Self::NumaRemote => "numa_remote",
            Self::AdmissionQueue => "admission_queue",
            Self::LeaseMemory => "lease_memory",
            Self::Verify => "verify",
            Self::CpuThrottle => "cpu_throttle",
            Self::Client => "client",
            Self::Unknown => "unknown",
        }
    }
}

/// What the machine went through in some stretch of time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Troubles {
    /// Between the two looks, which lie around the stretch.
    pub(crate) over: Duration,
    /// For whatever lies within this the answer is the same; none if a better one may be had.
    pub(crate) same_within: Option<(Instant, Instant)>,
    /// The daemon's group was kept off the CPUs by its quota; none where nothing tells.
    pub(crate) throttled: Option<Duration>,
    /// The daemon's threads waited for a CPU, and ran, all together; none where nothing tells.
    pub(crate) run_queue: Option<(Duration, Duration)>,
}

impl Troubles {
    /// The share of the time in which a quota kept the daemon off the CPUs.
    fn throttled_share(&self) -> f64 {
        self.throttled.map_or(0.0, |time| share(time, self.over))
    }

    /// The share of their time that the daemon's threads waited for a CPU.
    fn run_queue_share(&self) -> f64 {
        self.run_queue.map_or(0.0, |(waited, ran)| share(waited, waited + ran))
    }
}

fn share(part: Duration, whole: Duration) -> f64 {
    if whole.is_zero() { 0.0 } else { (part.as_secs_f64() / whole.as_secs_f64()).min(1.0) }
}

/// Knows what the machine went through.
pub(crate) trait HostTroubles: Sync {
    /// Between two moments; none where nobody looked.
    fn between(&self, from: Instant, to: Instant) -> Option<Troubles>;
}

/// Nobody looked.
#[cfg(test)]
#[derive(Debug, Clone, Copy)]
pub(crate) struct Unwatched;

#[cfg(test)]
impl HostTroubles for Unwatched {
    fn between(&self, _from: Instant, _to: Instant) -> Option<Troubles> {
        None
    }
}

/// A stretch in which the copy engine waited for one thing.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Charge {
    /// For what.
    pub(crate) cause: Cause,
    /// From when.
    pub(crate) from: Moment,
    /// Until when.
    pub(crate) to: Moment,
}

impl Charge {
    fn length(&self) -> Duration {
        self.to - self.from
    }
}

/// Time by stage: waiting, and being worked on.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct StageSums([[Duration; 2]; Stage::ALL.len()]);

impl StageSums {
    fn add(&mut self, span: &Span) {
        if let Some(sums) = self.0.get_mut(span.stage as usize) {
            sums[span.kind as usize] += span.length();
        }
    }

    /// Those that are not zero, in the order of a load.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (Stage, Kind, Duration)> {
        let sums = Stage::ALL.into_iter().zip(&self.0);
        let both = sums.flat_map(|(stage, [queue, service])| {
            [(stage, Kind::Queue, *queue), (stage, Kind::Service, *service)]
        });
        both.filter(|(.., time)| !time.is_zero())
    }
}

/// What there is of evidence for one cause.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct CauseTotal {
    /// Which.
    pub(crate) cause: Cause,
    /// In all gaps together.
    pub(crate) time: Duration,
    /// The longest stretch.
    pub(crate) longest: Duration,
    /// How sure that is, 0 to 1: the share of that time for which everything was there that could
    /// have said otherwise.
    pub(crate) confidence: f64,
    /// What it rests on, by stage of the load.
    pub(crate) stages: StageSums,
    /// Segments that came out of order, or were sent again.
    pub(crate) lost_segments: u64,
    /// KiB of files that were not in the page cache.
    pub(crate) cold_kib: u64,
    /// Time that a CPU quota took, and that threads waited for a CPU, around these stretches.
    pub(crate) throttled: Duration,
    /// See `throttled`.
    pub(crate) run_queue: Duration,
}

/// Every gap, charged.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct Attribution {
    /// In the order of time, at most 4096: the longest.
    pub(crate) charges: Vec<Charge>,
    /// The sums, the largest first.
    pub(crate) causes: Vec<CauseTotal>,
    /// How many gaps there were.
    pub(crate) gaps: u64,
    /// How long they were, together.
    pub(crate) idle: Duration,
}

impl Attribution {
    /// Seconds by cause, the largest first.
    pub(crate) fn sums(&self) -> impl Iterator<Item = (Cause, Duration)> {
        self.causes.iter().map(|total| (total.cause, total.time))
    }

    /// How sure all of it is: the mean over the time; 1 without a gap.
    pub(crate) fn confidence(&self) -> f64 {
        if self.idle.is_zero() {
            return 1.0;
        }
        let sure = |total: &CauseTotal| total.confidence * total.time.as_secs_f64();
        self.causes.iter().map(sure).sum::<f64>() / self.idle.as_secs_f64()
    }
}

/// Charges every gap. Gaps come in the order of time, without overlap. `whole` is the critical path
/// of all the time that they lie in; where it is one of other times, another is looked for.
pub(crate) fn attribute(
    gaps: &[(Moment, Moment)],
    paths: &Paths<'_>,
    whole: (&CriticalPath, (Moment, Moment)),
    host: &dyn HostTroubles,
) -> Attribution {
    let (path, times) = whole;
    let chain = match (gaps.first(), gaps.last()) {
        (Some((from, _)), Some((_, to))) if (*from, *to) == times => Cow::from(&path.segments),
        (Some((from, _)), Some((_, to))) => Cow::from(paths.walk(*from, *to).segments),
        _ => Cow::default(),
    };
    let context = Context {
        throttles: paths.throttles(),
        far: paths.far_shares(),
        chain,
        host: Asked::about(gaps, host),
    };
    let (mut books, mut path) = (Books::default(), Vec::new());
    for (from, to) in gaps.iter().copied().filter(|(from, to)| from < to) {
        books.gaps += 1;
        if !paths.to_copy((from, to), &mut path) {
            if paths.is_held(from, to) {
                // It had what to copy, and did not.
                let span = Span::new(Stage::ClientAck, Kind::Service, from, to);
                books.piece(&span, &context);
                continue;
            }
            paths.to_nothing((from, to), &mut path);
        }
        books.path(&path, (from, to), &context);
    }
    books.close()
}

/// What the rules look at beside a piece.
struct Context<'a> {
    /// When the origin said "slow down", until when it was waited for that: in the order of time.
    throttles: Vec<(Moment, Moment)>,
    /// By stage: the share of the time that work on another node's memory took more than on its own.
    far: BTreeMap<Stage, f64>,
    /// What decided when the last copy began: newest first.
    chain: Cow<'a, [Span]>,
    host: Asked<'a>,
}

/// What the machine went through, asked for as seldom as it makes a difference.
struct Asked<'a> {
    host: &'a dyn HostTroubles,
    /// The answer for all of a load that was shorter than a look takes to come round.
    whole: Option<Option<Troubles>>,
    /// The last answer, which is the same for whatever lies within it.
    last: Cell<Option<Known>>,
}

/// An answer that is the same for all between two moments.
type Known = ((Moment, Moment), Troubles);

impl<'a> Asked<'a> {
    fn about(gaps: &[(Moment, Moment)], host: &'a dyn HostTroubles) -> Self {
        let all = gaps.first().zip(gaps.last()).map(|((from, _), (_, to))| (*from, *to));
        let short = all.filter(|(from, to)| *to - *from <= SHORT);
        let whole = short.map(|(from, to)| host.between(from.into(), to.into()));
        Self { host, whole, last: Cell::new(None) }
    }

    fn between(&self, from: Moment, to: Moment) -> Option<Troubles> {
        if let Some(whole) = self.whole {
            return whole;
        }
        let known = self.last.get().filter(|((begin, end), _)| *begin <= from && to <= *end);
        if let Some((_, known)) = known {
            return Some(known);
        }
        let told = self.host.between(from.into(), to.into());
        self.last.set(told.and_then(|told| {
            told.same_within.map(|(begin, end)| ((begin.into(), end.into()), told))
        }));
        told
    }
}

impl Context<'_> {
    /// What a piece of a short hand-over stands for: itself; or, if it was under way while the end of the
    /// load waited for something else, that. Without the hand-over the copy would have begun sooner,
    /// and the next one would have waited longer for that.
    fn behind(&self, piece: &Span) -> Vec<Span> {
        let newer = self.chain.partition_point(|span| span.start >= piece.end);
        let (mut at, mut parts) = (piece.end, Vec::new());
        let under_way = self.chain[newer..].iter().take_while(|span| span.end > piece.start);
        for span in under_way.filter(|span| !is_hand_over(span)) {
            let (from, to) = (span.start.max(piece.start), span.end.min(at));
            if to < at {
                parts.push(Span { start: to, end: at, ..*piece });
            }
            parts.push(Span { start: from, end: to, ..*span });
            at = from;
        }
        if piece.start < at {
            parts.push(Span { end: at, ..*piece });
        }
        parts.reverse();
        parts
    }

    /// Whether the origin had asked for restraint.
    fn is_restrained(&self, at: Moment) -> bool {
        let before = self.throttles.partition_point(|(from, _)| *from <= at);
        self.throttles[..before].last().is_some_and(|(_, to)| *to + RESTRAINT > at)
    }
}

/// What a stage and its clue say, before the machine is asked.
fn charge(span: &Span, context: &Context<'_>) -> Cause {
    match (span.stage, span.kind, span.clue) {
        (Stage::Admission, ..) => Cause::AdmissionQueue,
        (Stage::Dns, ..) => Cause::Dns,
        (Stage::Connect | Stage::Tls, ..) => Cause::TcpConnect,
        (Stage::LeaseAlloc, ..) => Cause::LeaseMemory,
        (Stage::NvmeRead, Kind::Queue, _) => Cause::NvmeQueue,
        (Stage::NvmeRead, Kind::Service, _) | (Stage::NvmeWrite, ..) => Cause::NvmeService,
        (Stage::Decompress, Kind::Queue, _) => Cause::DecompressQueue,
        (Stage::Decompress, Kind::Service, _) => Cause::DecompressCpu,
        (Stage::VerifyPart | Stage::VerifyObject, ..) => Cause::Verify,
        (Stage::ClientAck, ..) => Cause::Client,
        (Stage::Ttfb | Stage::Body | Stage::Backoff, _, Clue::Throttled) => Cause::OriginThrottle,
        (Stage::Ttfb | Stage::Body, _, Clue::Lost(_)) => Cause::TcpRetransmit,
        (Stage::Body, _, Clue::Cold(_)) => Cause::PageCache,
        (Stage::Body, _, Clue::Unread | Clue::Busy) => Cause::Unknown,
        (Stage::Ttfb | Stage::Body | Stage::Backoff, ..) => Cause::OriginSlow,
        (Stage::ConnAcquire, _, Clue::Rated) => Cause::OriginThrottle,
        (Stage::ConnAcquire, ..) if context.is_restrained(span.start) => Cause::OriginThrottle,
        (Stage::ConnAcquire, ..) => Cause::OriginSlow,
        (Stage::Resolve | Stage::Plan | Stage::Turn | Stage::Fetch | Stage::Publish, ..) => {
            Cause::Unknown
        }
    }
}

/// Whether a piece is work of this process, which is as slow as it gets the CPU.
fn is_ours(span: &Span) -> bool {
    match span.stage {
        Stage::Plan
        | Stage::Turn
        | Stage::Fetch
        | Stage::Resolve
        | Stage::Publish
        | Stage::VerifyPart
        | Stage::VerifyObject => true,
        // Who waits for a decoder, or for memory to decode from, does not want the CPU.
        Stage::Decompress => span.kind == Kind::Service,
        Stage::Body => matches!(span.clue, Clue::Unread | Clue::Busy),
        _ => false,
    }
}

/// Whether a piece lies between the last byte of a chunk and its copy.
fn is_hand_over(span: &Span) -> bool {
    matches!(span.stage, Stage::VerifyPart | Stage::Publish | Stage::ClientAck)
}

struct Books {
    gaps: u64,
    charges: Vec<Charge>,
    /// By cause.
    totals: [CauseTotal; Cause::ALL.len()],
}

impl Default for Books {
    fn default() -> Self {
        let totals = Cause::ALL.map(|cause| CauseTotal {
            cause,
            time: Duration::ZERO,
            longest: Duration::ZERO,
            confidence: 0.0,
            stages: StageSums::default(),
            lost_segments: 0,
            cold_kib: 0,
            throttled: Duration::ZERO,
            run_queue: Duration::ZERO,
        });
        Self { gaps: 0, charges: Vec::new(), totals }
    }
}

impl Books {
    /// Books a path backwards through a gap; what it does not cover is unknown.
    fn path(&mut self, segments: &[Span], (from, to): (Moment, Moment), context: &Context<'_>) {
        let mut at = from;
        for span in segments.iter().rev() {
            if span.start > at {
                self.hole(at, span.start, context);
            }
            self.piece(span, context);
            at = span.end;
        }
        if at < to {
            self.hole(at, to, context);
        }
    }

    fn piece(&mut self, span: &Span, context: &Context<'_>) {
        if !is_hand_over(span) || span.length() > HAND_OVER_MAX {
            return self.part(span, context);
        }
        for span in context.behind(span) {
            self.part(&span, context);
        }
    }

    fn part(&mut self, span: &Span, context: &Context<'_>) {
        let cause = charge(span, context);
        let troubles = context.host.between(span.start, span.end);
        if let Some(troubles) = &troubles {
            let starved = is_ours(span) && troubles.run_queue_share() > RUN_QUEUE_SHARE;
            if troubles.throttled_share() > THROTTLED_SHARE || starved {
                // The two looks lie around the piece, and maybe around others.
                let part = share(span.length(), troubles.over);
                let throttled = troubles.throttled.unwrap_or_default().min(troubles.over);
                let run_queue = troubles.run_queue.map_or(Duration::ZERO, |(wait, _)| wait);
                let total = self.book(Cause::CpuThrottle, span, 1.0);
                total.throttled += throttled.mul_f64(part);
                total.run_queue += run_queue.mul_f64(part);
                return;
            }
        }
        // Without a look at the CPUs, work of ours may have been starved.
        let sure = if is_ours(span) && troubles.is_none() { 0.5 } else { 1.0 };
        let far = context.far.get(&span.stage).filter(|_| span.clue == Clue::Far);
        if let Some(far) = far {
            let more = span.length().mul_f64(*far);
            let own = span.end - more;
            self.book(cause, &Span { end: own, ..*span }, sure);
            // By where the memory lies, and how long it took: nobody counts the accesses.
            self.book(Cause::NumaRemote, &Span { start: own, ..*span }, 0.5);
            return;
        }
        self.book(cause, span, sure);
    }

    /// Nothing was at work, so something of ours was to go on: it did not get the CPU, or nobody
    /// knows.
    fn hole(&mut self, from: Moment, to: Moment, context: &Context<'_>) {
        let troubles = context.host.between(from, to);
        let starved = troubles.is_some_and(|troubles| {
            troubles.throttled_share() > THROTTLED_SHARE
                || troubles.run_queue_share() > RUN_QUEUE_SHARE
        });
        let (cause, sure) = if starved { (Cause::CpuThrottle, 0.5) } else { (Cause::Unknown, 0.0) };
        self.charge(cause, from, to);
        self.total(cause, to - from, sure);
    }

    fn book(&mut self, cause: Cause, span: &Span, sure: f64) -> &mut CauseTotal {
        self.charge(cause, span.start, span.end);
        let sure = if cause == Cause::Unknown { 0.0 } else { sure };
        let total = self.total(cause, span.length(), sure);
        total.stages.add(span);
        match span.clue {
            Clue::Lost(segments) => total.lost_segments += u64::from(segments),
            Clue::Cold(kib) => total.cold_kib += u64::from(kib),
            _ => {}
        }
        total
    }

    fn charge(&mut self, cause: Cause, from: Moment, to: Moment) {
        match self.charges.last_mut() {
            Some(last) if last.cause == cause && last.to == from => last.to = to,
            _ if from < to => self.charges.push(Charge { cause, from, to }),
            _ => {}
        }
    }

    /// The confidence is a sum over the time until the books are closed.
    fn total(&mut self, cause: Cause, time: Duration, sure: f64) -> &mut CauseTotal {
        let total = &mut self.totals[cause as usize];
        total.time += time;
        total.confidence += sure * time.as_secs_f64();
        total
    }

    fn close(self) -> Attribution {
        let Self { gaps, mut charges, mut totals } = self;
        for charge in &charges {
            let total = &mut totals[charge.cause as usize];
            total.longest = total.longest.max(charge.length());
        }
        if charges.len() > CHARGES_MAX {
            charges.sort_by_key(|charge| std::cmp::Reverse(charge.length()));
            charges.truncate(CHARGES_MAX);
            charges.sort_by_key(|charge| charge.from);
        }
        let mut causes: Vec<CauseTotal> =
            totals.into_iter().filter(|total| !total.time.is_zero()).collect();
        for total in &mut causes {
            total.confidence /= total.time.as_secs_f64();
        }
        causes.sort_by_key(|total| std::cmp::Reverse(total.time));
        let idle = causes.iter().map(|total| total.time).sum();
        Attribution { charges, causes, gaps, idle }
    }
}

#[cfg(test)]
#[path = "attribution_tests.rs"]
mod tests;
