//! Brings the chunks of one plan into RAM, in plan order, within the load's window.
//!
//! For each chunk: a window token first (see `admission`), then the RAM tier, then another load's
//! flight, then a flight of its own. Chunks become ready in any order; how many of a load may be on
//! their way follows from its share of what its endpoint takes now. What is on its way lives in the
//! filler: dropping it leaves every flight and gives every token back.
//!
//! A load that names a place has its slots claimed there. A chunk that is in RAM already, or on
//! another load's flight, stays where it is: the tally says how many bytes lie near.
//!
//! The filler also says whether the origin stands still ([`Filler::quiet`]): it is asked for chunks
//! of this load, and has not sent a byte of any of them for too long.

use std::collections::{BTreeMap, BTreeSet};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use forebay_origin::{EndpointEvent, Party, Share, Sharing};
use forebay_proto::{Failure, Reason};
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use futures::{FutureExt, StreamExt};
use tokio::time::Instant;

use super::across::fill;
use super::proofs::{Proofs, give_up};
use super::{LoadRequest, Stages};
use crate::admission::{AdmissionError, AdmissionPermit, WindowSlot};
use crate::fetch::wire_bytes;
use crate::flight::{Boarded, Landed, Seat, Waiter};
use crate::loads::{Entry, LoadState};
use crate::metrics::chose;
use crate::numa::Placed;
use crate::plan::{ChunkKey, ChunkSpec, FetchPlan};
use crate::ram::PinnedChunk;
use crate::report::{NearBytes, Tally, Tier, Why};
use crate::resolve::{Content, Object};
use crate::timeline::{Event, Kind, LEASE_WAIT, OpenSpan, Span, Spending, Stage, Timeline};

/// Chunks of one load on their way, whatever its share of its endpoint: as many as slots are
/// guaranteed to it...
const FILLS_MIN: usize = 4;
/// ... and at most so many: more would hold slots that nobody fills.
const FILLS_MAX: usize = 512;
/// Where there is no endpoint: files, which a few threads read.
const FILLS_OF_FILES: usize = 32;

/// When so much of a load, or of what fits into RAM, has come, as a divisor, one that starts now may
/// find that gone again.
const BROUGHT_DIVISOR: usize = 4;

/// Whoever holds the slots that a chunk waited for so long is told.
const LONG_WAIT: Duration = Duration::from_millis(100);

/// How often a load tells on its timeline that its chunks come from somewhere else: more says nothing
/// and takes room.
const CHOICES_MAX: usize = 128;

/// A chunk that is in RAM and pinned.
pub(super) struct Ready {
    pub(super) spec: Arc<ChunkSpec>,
    pub(super) pinned: PinnedChunk,
    /// Pays for its slot.
    pub(super) window: Arc<WindowSlot>,
    pub(super) tier: Tier,
    why: Why,
    offered: Instant,
    /// It was there when it was looked for.
    hit: bool,
}

impl Ready {
    /// When it was found, if it was there.
    pub(super) fn found(&self) -> Option<Instant> {
        self.hit.then_some(self.offered)
    }
}

type Filling<'a> = BoxFuture<'a, Result<Ready, Failure>>;
type Wanting<'a> = Pin<Box<dyn Future<Output = Result<WindowSlot, AdmissionError>> + Send + 'a>>;

/// A chunk on its way.
struct InAir<'a> {
    seat: Arc<Seat>,
    /// Since when this load waits for it.
    offered: Instant,
    /// If this load's flight was the first.
    _spending: Option<Spending<'a>>,
}

/// See the module's head.
pub(super) struct Filler<'a> {
    stages: &'a Arc<Stages>,
    plan: &'a Arc<FetchPlan>,
    permit: &'a AdmissionPermit,
    waiter: Waiter,
    share: Option<Share>,
    placed: Option<&'a Placed>,
    state: &'a LoadState,
    timeline: &'a Timeline,
    planned: Instant,
    next_chunk: usize,
    wanting: Option<Wanting<'a>>,
    wanted_at: Instant,
    filling: FuturesUnordered<Filling<'a>>,
    in_air: BTreeMap<usize, InAir<'a>>,
    /// When a chunk landed last.
    moved: Instant,
    tally: Tally,
    proofs: Proofs,
    /// Chunks that came.
    came: usize,
    /// Whether most of them are still on their way, since a flight of its own was started.
    brings: Option<bool>,
    /// What was brought for this load already, and from where.
    brought: BTreeMap<ChunkKey, Tier>,
    /// Nothing is left but to look at the last bytes.
    proving: Option<OpenSpan<'a>>,
    /// Where the last chunk came from and why; how often that changed.
    chosen: (Option<(Tier, Why)>, usize),
    /// News of the NVMe tier that are heard, or were before its time.
    heard: u64,
}

impl Drop for Filler<'_> {
    /// What is cut off on its way is accounted for too.
    fn drop(&mut self) {
        self.hear_news();
        let now = Instant::now();
        for (chunk, InAir { seat, offered, .. }) in &self.in_air {
            let spans = seat.flight().log().until(now);
            let own = spans.iter().filter_map(|span| span.since(*offered));
            self.timeline.chunk_spans(*chunk, own);
            let events = seat.flight().log().events(*offered);
            self.timeline.events(events, &format!("chunk {chunk}"));
        }
        let wanted = self.wanting.as_ref().and_then(|_| self.plan.chunks().get(self.next_chunk));
        if let Some(wanted) = wanted {
            self.timeline.chunk_spans(wanted.index, self.waits_until(now));
        }
    }
}

impl<'a> Filler<'a> {
    pub(super) fn new(
        stages: &'a Arc<Stages>,
        (plan, entry): (&'a Arc<FetchPlan>, &'a Entry<'a>),
        permit: &'a AdmissionPermit,
        request: &'a LoadRequest,
        timeline: &'a Timeline,
    ) -> Self {
        let planned = Instant::now();
        let endpoint = stages.fetcher.endpoint(plan.manifest());
        let party = Party {
            group: stages.domain.index(),
            weight: stages.domain.spec().share,
            user: request.peer.uid,
        };
        let share = endpoint.map(|endpoint| endpoint.share_of(Sharing::Loads, party));
        Self {
            stages,
            plan,
            permit,
            waiter: request.waiter(),
            state: entry.state(),
            heard: stages.nvme.as_ref().map_or(0, |nvme| nvme.news_so_far()),
            share,
            placed: request.placed.as_ref(),
            timeline,
            planned,
            next_chunk: 0,
            wanting: None,
            wanted_at: planned,
            filling: FuturesUnordered::new(),
            in_air: BTreeMap::new(),
            moved: planned,
            tally: Tally { slot_bytes: stages.chunk_bytes, ..Tally::default() },
            proofs: Proofs::new(stages, plan, &request.expected),
            came: 0,
            brings: None,
            brought: BTreeMap::new(),
            proving: None,
            chosen: (None, 0),
        }
    }

    /// The same after some of the chunks were brought for this load already.
    pub(super) fn after(mut self, brought: BTreeMap<ChunkKey, Tier>) -> Self {
        self.brought = brought;
        self
    }

    /// Why an object is not what it should be, if one is not.
    pub(super) fn failure(&self) -> Option<&Failure> {
        self.proofs.failure()
    }

    /// Objects that had every digest that they were held to.
    pub(super) fn proven(&self) -> &BTreeSet<usize> {
        self.proofs.proven()
    }

    pub(super) fn tally(&self) -> Tally {
        self.tally
    }

    /// The next chunk that is ready; `None` after the last one, once every object has the digest
    /// that is known of it. Cancel-safe: what is on its way stays in `self`.
    pub(super) async fn next(&mut self) -> Result<Option<Ready>, Failure> {
        loop {
            self.want();
            let complete = self.wanting.is_none() && self.filling.is_empty();
            let working = self.proofs.is_working();
            if complete && working && self.proving.is_none() {
                self.proving = Some(self.timeline.begin(Stage::VerifyObject, Kind::Service));
            }
            if complete && !working {
                self.proving = None;
                return match self.proofs.are_done() {
                    true => Ok(None),
                    false => Err(Failure::new(Reason::Internal, "an object was not looked at")),
                };
            }
            tokio::select! {
                biased;
                Some(landed) = self.filling.next() => return self.landed_or_lost(landed).await,
                window = wanted(&mut self.wanting) => {
                    self.wanting = None;
                    if let Some(ready) = self.start(window?) {
                        return Ok(Some(ready));
                    }
                }
                gone_on = self.proofs.go_on(), if working => {
                    gone_on?;
                    self.moved = Instant::now();
                }
            }
        }
    }

    /// A chunk has landed, or not. Of an object that is one stream nothing is kept if any of it
    /// cannot be decoded: its checksum comes last.
    async fn landed_or_lost(
        &mut self,
        landed: Result<Ready, Failure>,
    ) -> Result<Option<Ready>, Failure> {
        let failure = match landed {
            Ok(ready) => return Ok(Some(self.landed(ready))),
            Err(failure) => failure,
        };
        let objects = self.plan.manifest().objects();
        let is_it = |object: &Object| failure.object.as_ref() == Some(&object.name);
        let broken = objects.iter().position(is_it).filter(|index| {
            let object = objects.get(*index);
            object.is_some_and(|object| matches!(object.content, Content::Stream(_)))
        });
        let broken = broken.filter(|_| failure.reason == Reason::DecodeFailed);
        let clearing = broken.and_then(|object| give_up(self.stages, self.plan, object));
        if let Some(clearing) = clearing {
            drop(clearing.await);
        }
        Err(failure)
    }

    /// The stages it works with.
    pub(super) fn stages(&self) -> &'a Stages {
        self.stages
    }

    /// Whether chunks are on their way.
    pub(super) fn is_filling(&self) -> bool {
        !self.filling.is_empty() || self.proofs.is_working()
    }

    /// An error if the origin has stood still for `limit`; else when to look again.
    ///
    /// Only chunks that it is asked for count: waiting for a slot, for the turn at the endpoint or
    /// for a digest is no silence of the origin.
    pub(super) fn quiet(&self, limit: Duration) -> Result<Instant, Failure> {
        let now = Instant::now();
        let asked = self.in_air.values().filter_map(|air| air.seat.flight().terms().quiet_since());
        let Some(last) = asked.max() else { return Ok(now + limit) };
        let due = last.max(self.moved) + limit;
        if due > now {
            return Ok(due);
        }
        let parts = self.in_air.len();
        let message =
            format!("the origin sent no byte for {limit:?} while {parts} chunks were on their way");
        Err(Failure::new(Reason::NoProgress, message).at_stage("fetch"))
    }

    /// How many chunks may be on their way now.
    fn ahead(&self) -> usize {
        let ahead = self.share.as_ref().map_or(FILLS_OF_FILES, Share::on_its_way);
        ahead.clamp(FILLS_MIN, FILLS_MAX)
    }

    /// Asks for a window token for the next chunk, unless enough chunks are on their way.
    fn want(&mut self) {
        let more = self.next_chunk < self.plan.chunks().len();
        if self.wanting.is_none() && more && self.filling.len() < self.ahead() {
            let permit = self.permit;
            self.wanting = Some(Box::pin(permit.slot()));
            self.wanted_at = Instant::now();
        }
    }

    /// The next chunk's waits so far: for its turn, then for a slot.
    fn waits_until(&self, now: Instant) -> [Span; 2] {
        [
            Span::new(Stage::Turn, Kind::Queue, self.planned, self.wanted_at),
            Span::new(Stage::LeaseAlloc, Kind::Queue, self.wanted_at, now),
        ]
    }

    /// The next chunk has its token: it is here, or its flight is boarded.
    fn start(&mut self, window: WindowSlot) -> Option<Ready> {
        let spec = Arc::clone(self.plan.chunks().get(self.next_chunk)?);
        self.next_chunk += 1;
        let offered = Instant::now();
        self.timeline.chunk_spans(spec.index, self.waits_until(offered));
        if offered - self.wanted_at >= LONG_WAIT {
            let others = self.stages.admission.largest_holder_but(&self.state.load_id);
            if let Some(detail) = others {
                self.timeline.event_at(Event { at: self.wanted_at, name: LEASE_WAIT, detail });
            }
        }

        let manifest = self.plan.manifest();
        let revision = manifest.revision();
        let lookup = || self.stages.ram.get(&spec.key, revision);
        if let Some(pinned) = lookup() {
            return Some(self.hit(spec, pinned, window, offered));
        }
        let fill = |log, terms| {
            let what = (Arc::clone(&spec), self.placed.and_then(|placed| placed.node));
            fill(Arc::clone(self.stages), Arc::clone(manifest), what, terms, log)
        };
        let seat = match self.stages.flights.board(spec.key, self.waiter, lookup, fill) {
            Boarded::Hit(pinned) => return Some(self.hit(spec, pinned, window, offered)),
            Boarded::Flight(seat) => Arc::new(seat),
        };
        if seat.started_it && self.brings.is_none() && self.is_mostly_to_come() {
            self.brings = Some(true);
            self.permit.brings(true);
        }
        let spending = seat.started_it.then(|| self.timeline.spending(seat.flight().terms()));
        let air = InAir { seat: Arc::clone(&seat), offered, _spending: spending };
        self.in_air.insert(spec.index, air);
        self.filling.push(ride(window, seat, spec, offered).boxed());
        None
    }

    /// Where a chunk in RAM came from, for this load.
    fn tier_of(&self, key: &ChunkKey) -> Tier {
        self.brought.get(key).copied().unwrap_or(Tier::Ram)
    }

    /// Whether one that starts now would find what came still there, and the rest on its way.
    fn is_mostly_to_come(&self) -> bool {
        let within = self.plan.chunks().len().min(self.permit.window_slots());
        self.came * BROUGHT_DIVISOR <= within
    }

    /// Counts a chunk that is ready.
    fn count(&mut self, ready: &Ready) {
        self.proofs.saw(ready);
        self.tell_choice(ready);
        self.tally.tiers.add(ready.tier, ready.spec.bytes);
        if !self.brought.contains_key(&ready.spec.key) {
            self.permit.has_chunk();
        }
        self.came += 1;
        if self.brings == Some(true) && !self.is_mostly_to_come() {
            self.brings = Some(false);
            self.permit.brings(false);
        }
        if let Some(wanted) = self.placed.and_then(|placed| placed.wanted) {
            let NearBytes { near, far } = &mut self.tally.near;
            *(if ready.pinned.node() == wanted { near } else { far }) += ready.spec.bytes;
        }
    }

    /// Where a chunk came from, and why; on the timeline if that is not as with the one before.
    fn tell_choice(&mut self, ready: &Ready) {
        // What was brought for this load was counted then.
        if self.brought.contains_key(&ready.spec.key) {
            return;
        }
        let choice = (ready.tier, ready.why);
        chose(ready.tier, ready.why);
        let (last, changes) = &mut self.chosen;
        if *last != Some(choice) && *changes < CHOICES_MAX {
            (*last, *changes) = (Some(choice), *changes + 1);
            let (chunk, tier, why) = (ready.spec.index, ready.tier.as_str(), ready.why.as_str());
            self.timeline.event("tier", format!("chunk {chunk} and on: {tier}, {why}"));
        }
    }

    /// What was decided elsewhere while this load ran: about its endpoint's limit and breaker, and
    /// about what the NVMe tier gives up.
    fn hear_news(&mut self) {
        let news = self.share.iter().flat_map(Share::news);
        for EndpointEvent { at, name, detail } in news {
            self.timeline.event_at(Event { at, name, detail });
        }
        let Some(nvme) = &self.stages.nvme else { return };
        for event in nvme.news(&mut self.heard) {
            self.timeline.event_at(event);
        }
    }

    /// A chunk that is in RAM.
    fn hit(
        &mut self,
        spec: Arc<ChunkSpec>,
        pinned: PinnedChunk,
        window: WindowSlot,
        offered: Instant,
    ) -> Ready {
        let (window, tier) = (pinned.pay(window), self.tier_of(&spec.key));
        let ready = Ready { spec, pinned, window, tier, why: Why::Cached, offered, hit: true };
        self.count(&ready);
        self.store_too(&ready.spec);
        ready
    }

    /// What is in RAM should be on NVMe too, under this revision. It is not if the disk was full or
    /// the fill was given up when it came.
    fn store_too(&self, spec: &Arc<ChunkSpec>) {
        let Some(nvme) = &self.stages.nvme else { return };
        let revision = self.plan.manifest().revision();
        if nvme.holds(&spec.key) {
            nvme.refer(&spec.key, revision);
        } else if let Some(digest) = self.stages.verifier.recorded(&spec.key) {
            nvme.offer(spec, digest, revision);
        }
    }

    fn landed(&mut self, ready: Ready) -> Ready {
        self.count(&ready);
        self.state.brought(wire_bytes(self.plan.manifest(), &ready.spec));
        self.moved = Instant::now();
        // Another load's flight may have brought it in for another revision.
        self.store_too(&ready.spec);
        self.stages.ram.refer(&ready.spec.key, self.plan.manifest().revision());
        if let Some(InAir { seat, offered, .. }) = self.in_air.remove(&ready.spec.index) {
            // A flight that was in the air already counts from when this load boarded it.
            let spans = seat.flight().log().until(self.moved);
            let own = spans.iter().filter_map(|span| span.since(offered));
            self.timeline.chunk_spans(ready.spec.index, own);
            let events = seat.flight().log().events(offered);
            self.timeline.events(events, &format!("chunk {}", ready.spec.index));
        }
        self.hear_news();
        ready
    }

    /// The chunk is handed over: its publish span ends.
    pub(super) fn granted(&self, ready: &Ready) -> Instant {
        let now = Instant::now();
        let since =
            self.timeline.last_end(ready.spec.index).unwrap_or_else(|| ready.offered.into());
        let span = Span::new(Stage::Publish, Kind::Service, since, now);
        self.timeline.chunk_spans(ready.spec.index, [span]);
        now
    }
}

async fn wanted(wanting: &mut Option<Wanting<'_>>) -> Result<WindowSlot, AdmissionError> {
    match wanting {
        Some(wanting) => wanting.await,
        None => std::future::pending().await,
    }
}

/// Waits for a flight. The token is declared first so that it is dropped last: what it pays for has
/// to be gone before it can be used again.
async fn ride(
    window: WindowSlot,
    seat: Arc<Seat>,
    spec: Arc<ChunkSpec>,
    offered: Instant,
) -> Result<Ready, Failure> {
    let Landed { pinned, tier, why } = seat.flight().landed().await?;
    let window = pinned.pay(window);
    let why = if seat.started_it { why } else { Why::Joined };
    Ok(Ready { spec, pinned, window, tier, why, offered, hit: false })
}
