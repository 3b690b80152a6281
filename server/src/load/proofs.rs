//! Holds the objects of one load to what is known of all their bytes.
//!
//! A chunk that has come is looked at once more, beside its hand-over: its sums were taken while it
//! landed, or are taken now, on a worker; where the bytes have to be seen in order, it waits until those
//! before it were. Until then it keeps its slot, and the token of the window that pays for it. Plans are
//! in the order of the bytes, so what it waits for has its token already.
//!
//! An object whose every byte was seen has the digest that is known of it, or nothing of it is kept: see
//! [`Mismatch`]. What an object was held to is recorded, so that it is done once.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use forebay_proto::{Failure, Reason};
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use futures::{FutureExt, StreamExt};

use super::{Expected, Stages};
use crate::admission::WindowSlot;
use crate::cpu::Stopped;
use crate::plan::{ChunkSpec, Extent, FetchPlan};
use crate::proof::{InOrder, ObjectDigest, PieceSum, Pieces};
use crate::ram::PinnedChunk;
use crate::report::Verified;
use crate::resolve::Manifest;

/// An object that has another digest than is known of it.
#[derive(Debug)]
pub(super) struct Mismatch {
    /// Which object.
    object: usize,
    /// As known.
    expected: ObjectDigest,
    /// As it is.
    found: ObjectDigest,
}

/// Why an object is not proven.
pub(super) enum Unproven {
    /// It is another one.
    Mismatch(Mismatch),
    /// The daemon is going away.
    Stopped(Stopped),
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
    /// What was compared, to be recorded.
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
    objects: BTreeMap<usize, Object>,
    working: FuturesUnordered<BoxFuture<'static, Result<Step, Stopped>>>,
}

impl Proofs {
    /// Of the objects of which the plan has every byte, and something is known.
    pub(super) fn new(stages: &Arc<Stages>, plan: &FetchPlan, expected: &Expected) -> Self {
        let manifest = Arc::clone(plan.manifest());
        let due = due(stages, &manifest, expected);
        let objects = match due.is_empty() {
            true => BTreeMap::new(),
            false => {
                let planned = planned_bytes(plan);
                let whole = |index: &usize| {
                    let bytes = manifest.objects().get(*index).map_or(0, |object| object.bytes);
                    planned.get(index).copied().unwrap_or(0) == bytes
                };
                let due = due.into_iter().filter(|(index, _)| whole(index));
                let object = |(index, digests): (usize, Vec<ObjectDigest>)| {
                    Some((index, Object::new(manifest.objects().get(index)?.bytes, digests)))
                };
                due.filter_map(object).collect()
            }
        };
        let stages = Arc::clone(stages);
        Self { stages, manifest, objects, working: FuturesUnordered::new() }
    }

    /// Whether every object has what is known of it, as far as the plan has it.
    pub(super) fn are_done(&self) -> bool {
        self.objects.is_empty() && self.working.is_empty()
    }

    /// A chunk has come.
    pub(super) fn saw(&mut self, spec: &ChunkSpec, pinned: &PinnedChunk, window: &Arc<WindowSlot>) {
        for (number, extent) in spec.extents.iter().enumerate() {
            let Some(object) = self.objects.get_mut(&extent.object) else { continue };
            if let Some(untaken) = object.take_sum(extent, pinned.sum(number)) {
                let held = held(pinned, extent, window);
                self.working.push(sum_of(&self.stages, held, untaken));
            }
            if object.sees_in_order() {
                object.waiting.insert(extent.object_offset, held(pinned, extent, window));
            }
        }
    }

    /// Goes on with what can be done now; waits for the next step if there is nothing. An object that
    /// has another digest is an error, and is looked at no more.
    pub(super) async fn go_on(&mut self) -> Result<(), Unproven> {
        self.advance()?;
        if let Some(step) = self.working.next().await {
            self.did(step.map_err(Unproven::Stopped)?);
        }
        self.advance()
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
        !self.working.is_empty() || self.objects.values().any(Object::can_go_on)
    }

    /// Compares what is complete and gives the workers what comes next.
    fn advance(&mut self) -> Result<(), Unproven> {
        let mut done = Vec::new();
        for (index, object) in &mut self.objects {
            object.compare(*index).map_err(Unproven::Mismatch)?;
            if object.open == 0 {
                done.push(*index);
            } else if let Some(work) = object.next_work() {
                self.working.push(see(&self.stages, *index, work));
            }
        }
        for index in done {
            if let Some(object) = self.objects.remove(&index) {
                self.working.push(record(&self.stages, &self.manifest, index, object.held_to));
            }
        }
        Ok(())
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
        let (next_byte, waiting, held_to) = (0, BTreeMap::new(), Vec::new());
        Self { pieces, in_order, next_byte, waiting, bytes, held_to, open }
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
        let whole = self.pieces.as_ref().is_some_and(|(pieces, _)| pieces.whole().is_some());
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
        self.open -= 1;
        self.held_to.push(expected);
        if expected == found { Ok(()) } else { Err(Mismatch { object, expected, found }) }
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

impl Mismatch {
    /// Gives up all that is kept of the object, and says why.
    pub(super) async fn disown(self, stages: &Arc<Stages>, plan: &FetchPlan) -> Failure {
        let Self { object, expected, found } = self;
        crate::metrics::digest_mismatch();
        give_up(stages, plan, object).await;
        let manifest = plan.manifest();
        let name = manifest.objects().get(object).map_or("", |object| &object.name);
        let message = format!("{name} has the {found}, and should have the {expected}");
        Failure::new(Reason::DigestMismatch, message).for_object(name).at_stage("verify_object")
    }
}

/// Gives up all that is kept of an object: no chunk of it is served again.
pub(super) async fn give_up(stages: &Arc<Stages>, plan: &FetchPlan, object: usize) {
    let of_object =
        |chunk: &&Arc<ChunkSpec>| chunk.extents.iter().any(|extent| extent.object == object);
    let keys: Vec<_> = plan.chunks().iter().filter(of_object).map(|chunk| chunk.key).collect();
    stages.verifier.records().forget(&keys);
    keys.iter().for_each(|key| stages.ram.discard(key));
    if let Some(nvme) = &stages.nvme {
        nvme.give_up(plan.manifest().revision(), &keys).await;
    }
}

/// What each object is held to that was not yet.
pub(super) fn due(
    stages: &Stages,
    manifest: &Manifest,
    expected: &Expected,
) -> Vec<(usize, Vec<ObjectDigest>)> {
    let records = stages.verifier.records();
    let of_object = |(index, object): (usize, &crate::resolve::Object)| {
        let asked = expected.sha256.get(&object.name).copied().map(ObjectDigest::Sha256);
        let asked = asked.filter(|by| {
            !(object.pinned && records.is_proven_by(&object.identity, *by))
                && Some(*by) != object.checksum
        });
        let digests: Vec<_> = object.checksum.into_iter().chain(asked).collect();
        (!digests.is_empty()).then_some((index, digests))
    };
    manifest.objects().iter().enumerate().filter_map(of_object).collect()
}

/// Objects of a load by what their bytes were held to, when it has succeeded.
pub(super) fn verified_by(plan: &FetchPlan, expected: &Expected) -> Verified {
    let planned = planned_bytes(plan);
    let mut counts = Verified::default();
    for (index, object) in plan.manifest().objects().iter().enumerate() {
        let bytes = planned.get(&index).copied().unwrap_or(0);
        let whole = bytes == object.bytes;
        if bytes == 0 && !whole {
            continue;
        }
        let known = object.checksum.is_some() || expected.sha256.contains_key(&object.name);
        let held = object.proven || (known && (whole || expected.strict));
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
    let cpu = Arc::clone(&stages.cpu);
    let work = async move {
        cpu.run(move || {
            let Extent { object, object_offset, bytes, .. } = held.extent;
            let sum = expected.crc().map(|crc| crc.of(held.bytes()));
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
    let cpu = Arc::clone(&stages.cpu);
    let work = async move {
        cpu.run(move || {
            let bytes = held.bytes();
            in_order.iter_mut().for_each(|(digest, _)| digest.update(bytes));
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
    held_to: Vec<ObjectDigest>,
) -> BoxFuture<'static, Result<Step, Stopped>> {
    let (stages, manifest) = (Arc::clone(stages), Arc::clone(manifest));
    let work = async move {
        let cpu = Arc::clone(&stages.cpu);
        cpu.run(move || {
            // What cannot be asked for again is another object the next time.
            let Some(object) = manifest.objects().get(index).filter(|object| object.pinned) else {
                return Step::Recorded;
            };
            for by in held_to {
                let resolved = object.checksum == Some(by);
                stages.verifier.records().prove(&object.identity, by, resolved);
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
