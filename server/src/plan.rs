//! Plan: a pure function from manifest and selection to chunks.
//!
//! A chunk is what one slot holds. Objects of at least a quarter of a chunk are cut into chunks of
//! their own, so that an object has the same chunks in every checkpoint that names it. Smaller
//! objects share chunks, in manifest order, each at a multiple of [`PACK_ALIGN`]: ten thousand
//! configuration files take some slots, not ten thousand. Shared chunks come first, because
//! configuration and tokenizer are what a server reads first, then the large objects in key order.
//!
//! Each [`Extent`] is one part: one ranged GET into its place in the slot. With chunks of 8 MiB
//! (16 MiB at most) parts are in the range where one connection of an object store is at its best
//! rate and a lost part is cheap to repeat.
//!
//! A chunk's key is a digest of the identities of the bytes in it, so equal keys mean equal bytes.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fmt;
use std::sync::Arc;

use forebay_proto::{BadShard, Shard, Slice};
use glob_match::glob_match;

use crate::resolve::{Manifest, Object};

/// Alignment of objects that share a chunk: what a DMA engine and SIMD code like.
const PACK_ALIGN: u64 = 256;

/// Objects in one shared chunk: bounds the size of its grant to some 30 KB.
const PACK_OBJECTS_MAX: usize = 1024;

/// Objects of at least a chunk divided by this have chunks of their own.
const PACK_DIVISOR: u64 = 4;

/// Chunks of a plan: 8 TiB at the default size. Bounds what a load costs in memory.
const CHUNKS_MAX: u64 = 1 << 20;

/// The identity of a chunk's bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct ChunkKey(pub(crate) [u8; 32]);

impl fmt::Debug for ChunkKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", blake3::Hash::from_bytes(self.0).to_hex())
    }
}

/// A run of one object in a slot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Extent {
    /// Index into the manifest's objects.
    pub(crate) object: usize,
    /// First byte in the object.
    pub(crate) object_offset: u64,
    /// First byte in the slot.
    pub(crate) slot_offset: u64,
    /// Length; never zero.
    pub(crate) bytes: u64,
}

/// One chunk of the plan.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct ChunkSpec {
    /// Position in the plan.
    pub(crate) index: usize,
    /// Identity of its bytes.
    pub(crate) key: ChunkKey,
    /// In the order of their slot offsets, without overlap.
    pub(crate) extents: Vec<Extent>,
    /// Sum over the extents.
    pub(crate) bytes: u64,
}

/// What to fetch, in the order in which the client will use it.
#[derive(Debug)]
pub(crate) struct FetchPlan {
    manifest: Arc<Manifest>,
    chunks: Vec<Arc<ChunkSpec>>,
    bytes: u64,
}

impl FetchPlan {
    /// What the plan is for.
    pub(crate) fn manifest(&self) -> &Arc<Manifest> {
        &self.manifest
    }

    /// The chunks, in order.
    pub(crate) fn chunks(&self) -> &[Arc<ChunkSpec>] {
        &self.chunks
    }

    /// Sum over the chunks.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The plan without the chunks that are there already.
    pub(crate) fn without(&self, there: impl Fn(&ChunkSpec) -> bool) -> Self {
        let missing = self.chunks.iter().filter(|chunk| !there(chunk));
        let chunks: Vec<Arc<ChunkSpec>> = missing.cloned().collect();
        let bytes = chunks.iter().map(|chunk| chunk.bytes).sum();
        Self { manifest: Arc::clone(&self.manifest), chunks, bytes }
    }
}

/// What a client asked for. Empty: everything.
#[derive(Debug, Clone, Default)]
pub(crate) struct Selection {
    /// Globs over tensor names.
    pub(crate) tensors: Vec<String>,
    /// Globs over object names.
    pub(crate) objects: Vec<String>,
    /// Only this slice of every tensor.
    pub(crate) shard: Option<Shard>,
}

impl Selection {
    /// Whether others load the rest of the same checkpoint at the same time, and need all of it.
    pub(crate) fn is_one_of_many(&self) -> bool {
        self.shard.as_ref().is_some_and(|shard| shard.ranks() > 1)
    }
}

/// Nothing matches.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum PlanError {
    /// No tensor matches the globs.
    #[error("no tensor of the checkpoint matches the filter")]
    UnknownTensor,
    /// Slices are asked for, and there is nothing to slice.
    #[error(
        "no tensors were found in the checkpoint, so a rank has no slices of them: load it without a \
         rank"
    )]
    NoTensors,
    /// A tensor has no such slice.
    #[error(transparent)]
    Slice(#[from] BadShard),
    /// No object matches the globs.
    #[error("no object of the checkpoint matches the filter")]
    UnknownObject,
    /// More than a load may have.
    #[error("the checkpoint takes {chunks} chunks, and a load has at most {CHUNKS_MAX}")]
    TooManyChunks {
        /// How many it takes, at most.
        chunks: u64,
    },
}

/// Plans the chunks of `manifest` that `selection` needs.
pub(crate) fn plan(
    manifest: &Arc<Manifest>,
    selection: &Selection,
    chunk_bytes: u64,
) -> Result<FetchPlan, PlanError> {
    let upper = |object: &Object| object.bytes.div_ceil(chunk_bytes);
    let chunks = manifest.objects().iter().map(upper).fold(0, u64::saturating_add);
    if chunks > CHUNKS_MAX {
        return Err(PlanError::TooManyChunks { chunks });
    }
    let wanted = Wanted::of(manifest, selection)?;
    let mut planner = Planner { manifest, chunk_bytes, chunks: Vec::new(), bytes: 0 };
    planner.shared_chunks(&wanted);
    planner.own_chunks(&wanted);
    Ok(FetchPlan { manifest: Arc::clone(manifest), bytes: planner.bytes, chunks: planner.chunks })
}

/// The chunks that hold nothing but this object, all of it, in order; none if it shares its chunk.
pub(crate) fn own_keys(object: &Object, chunk_bytes: u64) -> Option<Vec<ChunkKey>> {
    let has_own = object.bytes >= chunk_bytes / PACK_DIVISOR;
    let key = |n: u64| {
        let object_offset = n * chunk_bytes;
        let bytes = chunk_bytes.min(object.bytes - object_offset);
        key_of([(&object.identity, [object_offset, 0, bytes])])
    };
    has_own.then(|| (0..object.bytes.div_ceil(chunk_bytes)).map(key).collect())
}

/// The key of a chunk of such extents: whose bytes they are, where they begin there and in the
/// slot, and how many they are.
fn key_of<'a>(extents: impl IntoIterator<Item = (&'a [u8; 32], [u64; 3])>) -> ChunkKey {
    let mut hasher = blake3::Hasher::new();
    for (identity, numbers) in extents {
        hasher.update(identity);
        for number in numbers {
            hasher.update(&number.to_le_bytes());
        }
    }
    ChunkKey(*hasher.finalize().as_bytes())
}

/// Plans all chunks of some of the `objects` of a load, and leaves out those that hold nothing of
/// any in `due`. They are those of a plan of the same objects: small ones share chunks in the same
/// way.
pub(crate) fn plan_whole(
    load: &FetchPlan,
    objects: &BTreeSet<usize>,
    due: &BTreeSet<usize>,
    chunk_bytes: u64,
) -> FetchPlan {
    let manifest = &load.manifest;
    let objects = (0..manifest.objects().len()).map(|index| objects.contains(&index)).collect();
    let wanted = Wanted { objects, ranges: None };
    let mut planner = Planner { manifest, chunk_bytes, chunks: Vec::new(), bytes: 0 };
    planner.shared_chunks(&wanted);
    planner.own_chunks(&wanted);
    let is_due =
        |chunk: &&Arc<ChunkSpec>| chunk.extents.iter().any(|extent| due.contains(&extent.object));
    // Their spans go on where those of the plan of the load are, or behind them.
    let by_key: HashMap<ChunkKey, &Arc<ChunkSpec>> =
        load.chunks.iter().map(|chunk| (chunk.key, chunk)).collect();
    let place = |(n, chunk): (usize, &Arc<ChunkSpec>)| {
        let known = by_key.get(&chunk.key);
        let index = known.map_or(load.chunks.len() + n, |known| known.index);
        let ChunkSpec { key, ref extents, bytes, .. } = **chunk;
        Arc::new(ChunkSpec { index, key, extents: extents.clone(), bytes })
    };
    let due = planner.chunks.iter().filter(is_due);
    let chunks: Vec<_> = due.enumerate().map(place).collect();
    let bytes = chunks.iter().map(|chunk| chunk.bytes).sum();
    FetchPlan { manifest: Arc::clone(manifest), bytes, chunks }
}

/// Which objects are wanted, and of which only some ranges.
struct Wanted {
    objects: Vec<bool>,
    /// With a filter of tensors, or slices of them: what is wanted of each object, in order.
    ranges: Option<Vec<Vec<WantedRange>>>,
}

/// Bytes of an object that a tensor has, and what of them is wanted.
struct WantedRange {
    begin: u64,
    end: u64,
    /// None: all.
    slice: Option<Slice>,
}

impl WantedRange {
    fn touches(&self, begin: u64, end: u64) -> bool {
        let (from, to) = (begin.max(self.begin), end.min(self.end));
        let within = || from - self.begin..to - self.begin;
        from < to && self.slice.as_ref().is_none_or(|slice| slice.touches(within()))
    }
}

impl Wanted {
    fn of(manifest: &Manifest, selection: &Selection) -> Result<Self, PlanError> {
        let (tensor_globs, object_globs) =
            (Globs::of(&selection.tensors), Globs::of(&selection.objects));
        let mut objects: Vec<bool> = manifest
            .objects()
            .iter()
            .map(|object| selection.objects.is_empty() || object_globs.match_any(&object.name))
            .collect();
        if !objects.contains(&true) && !objects.is_empty() {
            return Err(PlanError::UnknownObject);
        }
        if selection.tensors.is_empty() && selection.shard.is_none() {
            return Ok(Self { objects, ranges: None });
        }
        let mut ranges: Vec<Vec<WantedRange>> = objects.iter().map(|_| Vec::new()).collect();
        let mut found = false;
        for tensor in manifest.tensors() {
            let entry = &tensor.entry;
            let named = selection.tensors.is_empty() || tensor_globs.match_any(&entry.name);
            if !objects[tensor.object] || !named {
                continue;
            }
            let slice =
                |shard: &Shard| shard.slice(&entry.name, &entry.dtype, &entry.shape, entry.bytes);
            let slice = selection.shard.as_ref().map(slice).transpose()?;
            let (begin, end) = (entry.offset, entry.offset + entry.bytes);
            ranges[tensor.object].push(WantedRange { begin, end, slice });
            found = true;
        }
        if !found {
            return Err(match selection.tensors.is_empty() {
                true => PlanError::NoTensors,
                false => PlanError::UnknownTensor,
            });
        }
        for (wanted, ranges) in objects.iter_mut().zip(&ranges) {
            *wanted = !ranges.is_empty();
        }
        Ok(Self { objects, ranges: Some(ranges) })
    }

    /// Whether any wanted byte of `object` lies in `begin..end`.
    fn touches(&self, object: usize, begin: u64, end: u64) -> bool {
        let Some(ranges) = &self.ranges else { return true };
        // Ranges of one object are in order and do not overlap: so are their ends.
        let first = ranges[object].partition_point(|range| range.end <= begin);
        let overlapping = ranges[object][first..].iter().take_while(|range| range.begin < end);
        overlapping.into_iter().any(|range| range.touches(begin, end))
    }
}

/// Globs, with those that are plain names apart: a rank that asks for its thousand tensors by name
/// costs one look-up per tensor.
struct Globs<'a> {
    names: HashSet<&'a str>,
    patterns: Vec<&'a str>,
}

impl<'a> Globs<'a> {
    fn of(globs: &'a [String]) -> Self {
        let is_pattern = |glob: &&str| glob.contains(['*', '?', '[', '{', '!', '\\']);
        let (patterns, names): (Vec<&str>, Vec<&str>) =
            globs.iter().map(String::as_str).partition(is_pattern);
        Self { names: names.into_iter().collect(), patterns }
    }

    fn match_any(&self, text: &str) -> bool {
        self.names.contains(text) || self.patterns.iter().any(|glob| glob_match(glob, text))
    }
}

struct Planner<'a> {
    manifest: &'a Manifest,
    chunk_bytes: u64,
    chunks: Vec<Arc<ChunkSpec>>,
    bytes: u64,
}

impl<'a> Planner<'a> {
    fn is_small(&self, object: &Object) -> bool {
        object.bytes < self.chunk_bytes / PACK_DIVISOR
    }

    fn wanted_objects(
        &self,
        wanted: &'a Wanted,
    ) -> impl Iterator<Item = (usize, &'a Object)> + use<'a> {
        let objects = self.manifest.objects().iter().enumerate();
        objects.filter(|(index, object)| wanted.objects[*index] && object.bytes > 0)
    }

    fn shared_chunks(&mut self, wanted: &'a Wanted) {
        let mut extents: Vec<Extent> = Vec::new();
        for (index, object) in self.wanted_objects(wanted) {
            if !self.is_small(object) {
                continue;
            }
            let end = extents.last().map_or(0, |last| last.slot_offset + last.bytes);
            let mut slot_offset = end.next_multiple_of(PACK_ALIGN);
            let full =
                slot_offset + object.bytes > self.chunk_bytes || extents.len() == PACK_OBJECTS_MAX;
            if full {
                self.push(std::mem::take(&mut extents));
                slot_offset = 0;
            }
            let bytes = object.bytes;
            extents.push(Extent { object: index, object_offset: 0, slot_offset, bytes });
        }
        if !extents.is_empty() {
            self.push(extents);
        }
    }

    fn own_chunks(&mut self, wanted: &'a Wanted) {
        for (index, object) in self.wanted_objects(wanted) {
            if self.is_small(object) {
                continue;
            }
            let chunk_bytes = self.chunk_bytes;
            let extents = (0..object.bytes.div_ceil(chunk_bytes)).map(|n| {
                let object_offset = n * chunk_bytes;
                let bytes = chunk_bytes.min(object.bytes - object_offset);
                Extent { object: index, object_offset, slot_offset: 0, bytes }
            });
            let touched = |extent: &Extent| {
                wanted.touches(index, extent.object_offset, extent.object_offset + extent.bytes)
            };
            extents.filter(touched).for_each(|extent| self.push(vec![extent]));
        }
    }

    fn push(&mut self, extents: Vec<Extent>) {
        let key = key_of(extents.iter().map(|extent| {
            let identity = &self.manifest.objects()[extent.object].identity;
            (identity, [extent.object_offset, extent.slot_offset, extent.bytes])
        }));
        let bytes = extents.iter().map(|extent| extent.bytes).sum();
        self.bytes += bytes;
        let index = self.chunks.len();
        self.chunks.push(Arc::new(ChunkSpec { index, key, extents, bytes }));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::resolve::manifest_for_tests;

    const CHUNK: u64 = 1 << 16;

    fn all() -> Selection {
        Selection::default()
    }

    #[test]
    fn small_objects_share_a_chunk_and_come_first() {
        let manifest = manifest_for_tests(&[("big", 3 * CHUNK + 5), ("a", 10), ("z", 300)], &[]);
        let plan = plan(&manifest, &all(), CHUNK).unwrap();
        let first: Vec<_> =
            plan.chunks()[0].extents.iter().map(|e| (e.slot_offset, e.bytes)).collect();
        assert_eq!(first, [(0, 10), (256, 300)]);
        assert_eq!(plan.chunks().len(), 1 + 4);
        assert_eq!(plan.chunks()[4].bytes, 5);
        assert_eq!(plan.bytes(), 3 * CHUNK + 315);
    }

    #[test]
    fn ten_thousand_small_objects_take_a_few_chunks() {
        let names: Vec<String> = (0..10_000).map(|n| format!("o{n:05}")).collect();
        let objects: Vec<_> = names.iter().map(|name| (name.as_str(), 100)).collect();
        let manifest = manifest_for_tests(&objects, &[]);
        let plan = plan(&manifest, &all(), 8 << 20).unwrap();
        assert_eq!(plan.chunks().len(), 10);
        assert!(plan.chunks().iter().all(|chunk| chunk.extents.len() <= PACK_OBJECTS_MAX));
    }

    #[test]
    fn empty_objects_and_empty_checkpoints_have_no_chunk() {
        let manifest = manifest_for_tests(&[("empty", 0)], &[]);
        assert!(plan(&manifest, &all(), CHUNK).unwrap().chunks().is_empty());
        assert!(plan(&manifest_for_tests(&[], &[]), &all(), CHUNK).unwrap().chunks().is_empty());
    }

    #[test]
    fn a_tensor_filter_plans_only_the_chunks_it_needs() {
        let manifest = manifest_for_tests(
            &[("a", 100), ("m", 10 * CHUNK)],
            &[("head", 1, CHUNK / 2, CHUNK), ("body.0", 1, 4 * CHUNK, CHUNK), ("tiny", 0, 10, 5)],
        );
        let chosen = |glob: &str| {
            let selection = Selection { tensors: vec![glob.into()], ..all() };
            plan(&manifest, &selection, CHUNK).map(|plan| {
                plan.chunks()
                    .iter()
                    .map(|chunk| (chunk.extents[0].object, chunk.extents[0].object_offset / CHUNK))
                    .collect::<Vec<_>>()
            })
        };
        assert_eq!(chosen("head").unwrap(), [(1, 0), (1, 1)]);
        assert_eq!(chosen("body.*").unwrap(), [(1, 4)]);
        assert_eq!(chosen("t*").unwrap(), [(0, 0)]);
        assert_eq!(chosen("tiny").unwrap(), [(0, 0)]);
        assert_eq!(chosen("nothing"), Err(PlanError::UnknownTensor));
        let none = Selection { objects: vec!["x*".into()], ..all() };
        assert_eq!(plan(&manifest, &none, CHUNK).unwrap_err(), PlanError::UnknownObject);
    }

    #[test]
    fn a_rank_plans_only_the_chunks_of_its_slices() {
        let manifest = manifest_for_tests(
            &[("config", 100), ("m", 10 * CHUNK)],
            &[("head", 1, CHUNK / 2, CHUNK), ("body", 1, 2 * CHUNK, 4 * CHUNK)],
        );
        let chosen = |rank, ranks, tensors: &[&str]| {
            let shard = Shard::new(rank, ranks).unwrap().along("**", 0).unwrap();
            let tensors = tensors.iter().map(|glob| (*glob).into()).collect();
            let selection = Selection { tensors, shard: Some(shard), ..all() };
            let plan = plan(&manifest, &selection, CHUNK).unwrap();
            let place = |chunk: &Arc<ChunkSpec>| chunk.extents[0].object_offset / CHUNK;
            plan.chunks().iter().map(place).collect::<Vec<_>>()
        };
        assert_eq!(chosen(0, 1, &[]), [0, 1, 2, 3, 4, 5]);
        assert_eq!(chosen(0, 2, &[]), [0, 2, 3]);
        assert_eq!(chosen(1, 2, &[]), [1, 4, 5]);
        assert_eq!(chosen(3, 4, &["body"]), [5]);
        let shard = Shard::new(0, 2).unwrap().along("**", 0).unwrap();
        let selection = Selection { shard: Some(shard), ..all() };
        assert!(selection.is_one_of_many() && !all().is_one_of_many());
        let whole = Selection { shard: Some(Shard::new(0, 1).unwrap()), ..all() };
        assert!(!whole.is_one_of_many());
        let none = manifest_for_tests(&[("config", 100)], &[]);
        assert_eq!(plan(&none, &selection, CHUNK).unwrap_err(), PlanError::NoTensors);
    }

    #[test]
    fn a_plan_has_a_bound() {
        let manifest = manifest_for_tests(&[("m", CHUNK * (CHUNKS_MAX + 1))], &[]);
        let refused = plan(&manifest, &all(), CHUNK).unwrap_err();
        assert_eq!(refused, PlanError::TooManyChunks { chunks: CHUNKS_MAX + 1 });
    }

    #[test]
    fn chunk_keys_depend_on_the_object_not_on_its_checkpoint() {
        let one = plan(&manifest_for_tests(&[("m", 2 * CHUNK)], &[]), &all(), CHUNK).unwrap();
        let two =
            plan(&manifest_for_tests(&[("a", 3), ("m", 2 * CHUNK)], &[]), &all(), CHUNK).unwrap();
        assert_eq!(one.chunks()[0].key, two.chunks()[1].key);
        assert_ne!(one.chunks()[0].key, one.chunks()[1].key);
    }

    proptest! {
        /// Every byte of every object lies in exactly one extent, and slots do not overflow.
        #[test]
        fn a_plan_covers_every_byte_once(sizes in proptest::collection::vec(0u64..5 * CHUNK, 0..20)) {
            let names: Vec<String> = (0..sizes.len()).map(|n| format!("{n:03}")).collect();
            let objects: Vec<_> = names.iter().map(String::as_str).zip(sizes.iter().copied()).collect();
            let manifest = manifest_for_tests(&objects, &[]);
            let plan = plan(&manifest, &all(), CHUNK).unwrap();
            let mut next = vec![0u64; sizes.len()];
            for (index, chunk) in plan.chunks().iter().enumerate() {
                prop_assert_eq!(chunk.index, index);
                let mut used = 0;
                for extent in &chunk.extents {
                    prop_assert!(extent.slot_offset >= used && extent.bytes > 0);
                    used = extent.slot_offset + extent.bytes;
                    prop_assert_eq!(extent.object_offset, next[extent.object]);
                    next[extent.object] += extent.bytes;
                }
                prop_assert!(used <= CHUNK);
            }
            prop_assert_eq!(next, sizes);
        }
    }
}
