//! Holds the objects of one load to what is known of all their bytes.
//!
//! A chunk that has come is looked at once more, beside its hand-over: its sums were taken while it
//! landed, or are taken now, on a worker; where the bytes have to be seen in order, it waits until
//! those before it were. Until then it keeps its slot, and the token of the window that pays for
//! it. Plans are in the order of the bytes, so what it waits for has its token already.
//!
//! An object whose every byte was seen has the digests that are known of it, or the load fails and
//! nothing of it is kept. What an object was held to is recorded with the digests of its chunks,
//! and stands as long as they do, so that it is done once.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use forebay_proto::{Failure, Reason};
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use futures::{FutureExt, StreamExt};

use tokio::task::JoinHandle;

use super::filler::Ready;
use super::{Expected, Stages};
use crate::admission::WindowSlot;
use crate::cpu::Stopped;
use crate::digest::ChunkDigest;
use crate::metrics;
use crate::plan::{ChunkKey, ChunkSpec, Extent, FetchPlan, own_keys};
use crate::proof::{InOrder, ObjectDigest, PieceSum, Pieces};
use crate::ram::PinnedChunk;
use crate::report::{Tier, Verified};
use crate::resolve::{self, Manifest};

/// An object that has another digest than it should.
struct Mismatch {
    object: usize,
    /// As known.
    expected: ObjectDigest,
    /// As it is.
    found: ObjectDigest,
    /// Whether any of it came from the origin, for this load.
    fresh: bool,
}

/// A chunk that is kept until its bytes were seen.
struct Held {
    pinned: PinnedChunk,
    extent: Extent,
    _window: Arc<WindowSlot>,
}

/// One object that is held to something.
struct Object {
    /// By a sum of pieces.
    pieces: Option<(Pieces, ObjectDigest)>,
    /// By digests that see the bytes in order; not here while a worker has them.
    in_order: Option<Vec<(InOrder, ObjectDigest)>>,
    next_byte: u64,
    waiting: BTreeMap<u64, Held>,
    bytes: u64,
    /// The chunks that it lies in, by where in it they begin, with the digests that they were seen
    /// with.
    chunks: BTreeMap<u64, (ChunkKey, ChunkDigest)>,
    /// Whether any of them came from the origin, for this load.
    fresh: bool,
    /// What was compared and held, to be recorded.
    held_to: Vec<ObjectDigest>,
    open: usize,
}

/// What a worker has done.
enum Step {
    /// It has taken the sum of a piece.
    Piece { object: usize, offset: u64, bytes: u64, sum: PieceSum },
    /// It has shown the next bytes to the digests.
    Seen { object: usize, in_order: Vec<(InOrder, ObjectDigest)>, end: u64 },
    /// It has recorded a proof.
    Recorded,
}

/// See the module's head.
pub(super) struct Proofs {
    stages: Arc<Stages>,
    manifest: Arc<Manifest>,
    plan: Arc<FetchPlan>,
    expected: Expected,
    objects: BTreeMap<usize, Object>,
    working: FuturesUnordered<BoxFuture<'static, Result<Step, Stopped>>>,
    /// Objects that had every digest that they were held to.
    proven: BTreeSet<usize>,
    /// Why it is over. It stays so, whoever is not there to hear it the first time.
    failed: Option<Failure>,
    /// Files of what is given up, being put aside.
    clearing: Option<JoinHandle<()>>,
}

impl Proofs {
    /// Of the objects of which the plan has every byte, and that are to be held to something.
    pub(super) fn new(stages: &Arc<Stages>, plan: &Arc<FetchPlan>, expected: &Expected) -> Self {
        let manifest = Arc::clone(plan.manifest());
        let due = due(stages, plan, expected);
        let planned = if due.is_empty() { BTreeMap::new() } else { planned_bytes(plan) };
        let object = |(index, digests): (usize, Vec<ObjectDigest>)| {
            let bytes = manifest.objects().get(index)?.bytes;
            let whole = planned.get(&index).copied().unwrap_or(0) == bytes;
            whole.then(|| (index, Object::new(bytes, digests)))
        };
        let objects = due.into_iter().filter_map(object).collect();
        Self {
            stages: Arc::clone(stages),
            plan: Arc::clone(plan),
            manifest,
            expected: expected.clone(),
            objects,
            working: FuturesUnordered::new(),
            proven: BTreeSet::new(),
            failed: None,
            clearing: None,
        }
    }

    /// Whether every object has what is known of it, as far as the plan has it.
    pub(super) fn are_done(&self) -> bool {
        self.objects.is_empty() && self.working.is_empty() && self.failed.is_none()
    }

    /// Why it is over, if it is.
    pub(super) fn failure(&self) -> Option<&Failure> {
        self.failed.as_ref()
    }

    /// Objects that had every digest that they were held to.
    pub(super) fn proven(&self) -> &BTreeSet<usize> {
        &self.proven
    }

    /// A chunk has come.
    pub(super) fn saw(&mut self, ready: &Ready) {
        let Ready { spec, pinned, window, tier, .. } = ready;
        for (number, extent) in spec.extents.iter().enumerate() {
            let Some(object) = self.objects.get_mut(&extent.object) else { continue };
            object.chunks.insert(extent.object_offset, (spec.key, pinned.digest()));
            object.fresh |= *tier == Tier::Origin;
            if let Some(untaken) = object.take_sum(extent, pinned.sum(number)) {
                let held = held(pinned, extent, window);
                self.working.push(sum_of(&self.stages, held, untaken));
            }
            if object.sees_in_order() {
                object.waiting.insert(extent.object_offset, held(pinned, extent, window));
            }
        }
    }

    /// Goes on with what can be done now; waits for the next step if there is nothing. An object
    /// that has another digest is an error, this time and ever after. Cancel-safe.
    pub(super) async fn go_on(&mut self) -> Result<(), Failure> {
        self.advance();
        if self.failed.is_none()
            && let Some(step) = self.working.next().await
        {
            self.did(step?);
            self.advance();
        }
        let Some(failed) = &self.failed else { return Ok(()) };
        if let Some(clearing) = &mut self.clearing {
            drop(clearing.await);
            self.clearing = None;
        }
        Err(failed.clone())
    }

    fn did(&mut self, step: Step) {
        match step {
            Step::Piece { object, offset, bytes, sum } => {
                let object = self.objects.get_mut(&object);
                if let Some((pieces, _)) = object.and_then(|object| object.pieces.as_mut()) {
                    pieces.add(offset, bytes, sum.sum);
                }
            }
            Step::Seen { object, in_order, end } => {
                if let Some(object) = self.objects.get_mut(&object) {
                    object.in_order = Some(in_order);
                    object.next_byte = end;
                }
            }
            Step::Recorded => {}
        }
    }

    /// Whether a worker is at it: then [`go_on`](Self::go_on) comes to an end.
    pub(super) fn is_working(&self) -> bool {
        let can_go_on = self.objects.values().any(Object::can_go_on);
        !self.working.is_empty() || can_go_on || self.failed.is_some()
    }

    /// Compares what is complete and gives the workers what comes next.
    fn advance(&mut self) {
        let mut done = Vec::new();
        for (index, object) in &mut self.objects {
            if let Err(mismatch) = object.compare(*index) {
                return self.fail(&mismatch);
            }
            if object.open == 0 {
                done.push(*index);
            } else if let Some(work) = object.next_work() {
                self.working.push(see(&self.stages, *index, work));
            }
        }
        for index in done {
            if let Some(object) = self.objects.remove(&index) {
                self.proven.insert(index);
                self.working.push(record(&self.stages, &self.manifest, index, object));
            }
        }
    }

    /// It is over. Nothing of the object is kept, unless the caller alone says that it is another
    /// one, and either somebody who should know says that it is not, or it was here before.
    fn fail(&mut self, mismatch: &Mismatch) {
        let Mismatch { object: index, expected, found, fresh } = *mismatch;
        metrics::digest_mismatch();
        let object = self.manifest.objects().get(index);
        let name = object.map_or("", |object| &object.name);
        let of_caller = self.expected.sha256.get(name).copied().map(ObjectDigest::Sha256);
        let known = |object: &resolve::Object| {
            let by_store = object.checksum.filter(|by| *by != expected);
            let chunks = || chunks_of(&self.stages, &self.plan, index);
            let records = self.stages.verifier.records();
            let stands = |by| chunks().is_some_and(|c| records.stands(&object.identity, by, c));
            object.content.has_digests() || by_store.is_some_and(stands)
        };
        let disputed = of_caller == Some(expected)
            && object.is_some_and(|object| object.checksum != Some(expected))
            && (!fresh || object.is_some_and(known));
        let message = format!("{name} has the {found}, and should have the {expected}");
        self.failed = Some(
            Failure::new(Reason::DigestMismatch, message)
                .for_object(name)
                .at_stage("verify_object"),
        );
        if let Some(object) = object {
            // Should the store have been wrong, it may have been put right by the next time.
            self.stages.verifier.records().forget_said(&object.identity);
        }
        if !disputed {
            self.clearing = give_up(&self.stages, &self.plan, index);
        }
    }
}

impl Object {
    fn new(bytes: u64, digests: Vec<ObjectDigest>) -> Self {
        let sum = digests.iter().find_map(|digest| Some((digest.crc()?, *digest)));
        let pieces = sum.map(|(crc, digest)| (Pieces::new(crc, bytes), digest));
        let in_order = digests.iter().filter_map(|digest| Some((InOrder::like(*digest)?, *digest)));
        let in_order: Vec<_> = in_order.collect();
        let open = in_order.len() + usize::from(pieces.is_some());
        let in_order = Some(in_order).filter(|digests| !digests.is_empty());
        Self {
            pieces,
            in_order,
            next_byte: 0,
            waiting: BTreeMap::new(),
            bytes,
            chunks: BTreeMap::new(),
            fresh: false,
            held_to: Vec::new(),
            open,
        }
    }

    /// Adds the sum of an extent, if the object is held to one. If it was not taken while the bytes
    /// landed, what the object is held to comes back.
    fn take_sum(&mut self, extent: &Extent, taken: Option<PieceSum>) -> Option<ObjectDigest> {
        let (pieces, expected) = self.pieces.as_mut()?;
        let crc = expected.crc();
        match taken.filter(|sum| Some(sum.crc) == crc) {
            Some(sum) => {
                pieces.add(extent.object_offset, extent.bytes, sum.sum);
                None
            }
            None => Some(*expected),
        }
    }

    /// Whether digests are at work, or will be.
    fn sees_in_order(&self) -> bool {
        self.open > usize::from(self.pieces.is_some())
    }

    fn can_go_on(&self) -> bool {
        let whole = self.pieces.as_ref().is_some_and(|(pieces, _)| pieces.are_all());
        let next = self.in_order.is_some()
            && (self.next_byte == self.bytes || self.waiting.contains_key(&self.next_byte));
        whole || next
    }

    /// Compares the digests that have seen everything.
    fn compare(&mut self, index: usize) -> Result<(), Mismatch> {
        if let Some((pieces, expected)) = &self.pieces
            && let Some(found) = pieces.whole()
        {
            let expected = *expected;
            self.pieces = None;
            self.held(index, expected, found)?;
        }
        if self.next_byte == self.bytes {
            for (digest, expected) in self.in_order.take().unwrap_or_default() {
                self.held(index, expected, digest.finish())?;
            }
        }
        Ok(())
    }

    fn held(
        &mut self,
        object: usize,
        expected: ObjectDigest,
        found: ObjectDigest,
    ) -> Result<(), Mismatch> {
        if expected != found {
            return Err(Mismatch { object, expected, found, fresh: self.fresh });
        }
        self.open -= 1;
        self.held_to.push(expected);
        Ok(())
    }

    /// What the digests have to see next, if it is here and they are.
    fn next_work(&mut self) -> Option<(Vec<(InOrder, ObjectDigest)>, Held)> {
        if !self.waiting.contains_key(&self.next_byte) {
            return None;
        }
        let in_order = self.in_order.take()?;
        let held = self.waiting.remove(&self.next_byte)?;
        Some((in_order, held))
    }
}

/// Gives up all that is kept of an object: no chunk of it is served again. Files may take longer.
pub(super) fn give_up(
    stages: &Arc<Stages>,
    plan: &FetchPlan,
    object: usize,
) -> Option<JoinHandle<()>> {
    let of_object =
        |chunk: &&Arc<ChunkSpec>| chunk.extents.iter().any(|extent| extent.object == object);
    let keys: Vec<_> = plan.chunks().iter().filter(of_object).map(|chunk| chunk.key).collect();
    stages.verifier.records().forget(&keys);
    keys.iter().for_each(|key| stages.ram.discard(key));
    stages.nvme.as_ref().map(|nvme| nvme.give_up(plan.manifest().revision(), keys))
}

/// The chunks that an object lies in, in order; none if the plan does not have it and it shares
/// one.
fn chunks_of(stages: &Stages, plan: &FetchPlan, index: usize) -> Option<Vec<ChunkKey>> {
    let object = plan.manifest().objects().get(index)?;
    if object.bytes == 0 {
        return Some(Vec::new());
    }
    if let Some(own) = own_keys(object, stages.chunk_bytes) {
        return Some(own);
    }
    let has_it =
        |chunk: &&Arc<ChunkSpec>| chunk.extents.iter().any(|extent| extent.object == index);
    // Chunks that are shared come first.
    let shared = plan.chunks().iter().take_while(|chunk| chunk.extents.len() > 1 || has_it(chunk));
    shared.clone().find(has_it).map(|chunk| vec![chunk.key])
}

/// What each object that the plan touches is to be held to: what is known of it and does not stand.
pub(super) fn due(
    stages: &Stages,
    plan: &FetchPlan,
    expected: &Expected,
) -> Vec<(usize, Vec<ObjectDigest>)> {
    let records = stages.verifier.records();
    let touched = touched(plan);
    let mut due = Vec::new();
    for (index, object) in plan.manifest().objects().iter().enumerate() {
        let asked = expected.sha256.get(&object.name).copied().map(ObjectDigest::Sha256);
        let asked = asked.filter(|by| Some(*by) != object.checksum);
        let known: Vec<_> = object.checksum.into_iter().chain(asked).collect();
        if known.is_empty() || !(touched.contains(&index) || object.bytes == 0) {
            continue;
        }
        let chunks = chunks_of(stages, plan, index).filter(|_| object.pinned);
        let stands = |by: &ObjectDigest| {
            let chunks = chunks.iter().flatten().copied();
            object.pinned && records.stands(&object.identity, *by, chunks)
        };
        let open: Vec<_> = known.into_iter().filter(|by| !stands(by)).collect();
        if !open.is_empty() {
            due.push((index, open));
        }
    }
    due
}

/// Objects of a load by what their bytes were held to, when it has succeeded: now, or before, and
/// that stands.
pub(super) fn verified_by(
    stages: &Stages,
    plan: &FetchPlan,
    expected: &Expected,
    proven: &BTreeSet<usize>,
) -> Verified {
    let touched = touched(plan);
    let due: BTreeSet<usize> =
        due(stages, plan, expected).iter().map(|(index, _)| *index).collect();
    let mut counts = Verified::default();
    for (index, object) in plan.manifest().objects().iter().enumerate() {
        if !touched.contains(&index) && object.bytes > 0 {
            continue;
        }
        let known = object.checksum.is_some() || expected.sha256.contains_key(&object.name);
        let held = proven.contains(&index) || (known && !due.contains(&index));
        *match (object.content.has_digests(), held) {
            (true, _) => &mut counts.manifest,
            (false, true) => &mut counts.object_digest,
            (false, false) => &mut counts.first_fetch,
        } += 1;
    }
    counts
}

/// Bytes of each object that a plan has.
pub(super) fn planned_bytes(plan: &FetchPlan) -> BTreeMap<usize, u64> {
    let mut planned = BTreeMap::new();
    for extent in plan.chunks().iter().flat_map(|chunk| &chunk.extents) {
        *planned.entry(extent.object).or_insert(0) += extent.bytes;
    }
    planned
}

/// The objects that a plan has any byte of.
pub(super) fn touched(plan: &FetchPlan) -> BTreeSet<usize> {
    planned_bytes(plan).into_keys().collect()
}

fn held(pinned: &PinnedChunk, extent: &Extent, window: &Arc<WindowSlot>) -> Held {
    Held { pinned: pinned.clone(), extent: extent.clone(), _window: Arc::clone(window) }
}

fn sum_of(
    stages: &Arc<Stages>,
    held: Held,
    expected: ObjectDigest,
) -> BoxFuture<'static, Result<Step, Stopped>> {
    let (cpu, stages) = (Arc::clone(&stages.cpu), Arc::clone(stages));
    let work = async move {
        cpu.run(move || {
            let Extent { object, object_offset, bytes, .. } = held.extent;
            let working = stages.rates.objects.begin();
            let sum = expected.crc().map(|crc| crc.of(held.bytes()));
            working.done(bytes);
            match sum {
                Some(sum) => Step::Piece { object, offset: object_offset, bytes, sum },
                None => Step::Recorded,
            }
        })
        .await
    };
    work.boxed()
}

fn see(
    stages: &Arc<Stages>,
    object: usize,
    (mut in_order, held): (Vec<(InOrder, ObjectDigest)>, Held),
) -> BoxFuture<'static, Result<Step, Stopped>> {
    let (cpu, stages) = (Arc::clone(&stages.cpu), Arc::clone(stages));
    let work = async move {
        cpu.run(move || {
            let (bytes, working) = (held.bytes(), stages.rates.objects.begin());
            in_order.iter_mut().for_each(|(digest, _)| digest.update(bytes));
            working.done(bytes.len() as u64);
            Step::Seen { object, in_order, end: held.extent.object_offset + held.extent.bytes }
        })
        .await
    };
    work.boxed()
}

fn record(
    stages: &Arc<Stages>,
    manifest: &Arc<Manifest>,
    index: usize,
    proven: Object,
) -> BoxFuture<'static, Result<Step, Stopped>> {
    let (stages, manifest) = (Arc::clone(stages), Arc::clone(manifest));
    let work = async move {
        let cpu = Arc::clone(&stages.cpu);
        cpu.run(move || {
            // What cannot be asked for again is another object the next time.
            let Some(object) = manifest.objects().get(index).filter(|object| object.pinned) else {
                return Step::Recorded;
            };
            for by in proven.held_to {
                let chunks = proven.chunks.values().copied();
                stages.verifier.records().prove(&object.identity, by, chunks);
            }
            Step::Recorded
        })
        .await
    };
    work.boxed()
}

impl Held {
    /// Its bytes of the object. A chunk has room for what its plan says.
    fn bytes(&self) -> &[u8] {
        self.pinned.extent(&self.extent).unwrap_or_default()
    }
}
