//! The bytes of each object in order, although chunks arrive in any order.
//!
//! A piece goes out as soon as it continues its object; until then it is held. Objects do not wait
//! for each other. When only some tensors were asked for, objects have gaps that nobody announces:
//! a piece behind a gap goes out once every chunk before it in the plan has come, because the plan
//! is ascending in every object. Either way what is held is what overtook an earlier chunk, so a
//! window of any size progresses.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Range;
use std::sync::Arc;

use forebay_proto::model::{Manifest, ObjectIndex};

use crate::chunk::{Chunk, LentSlot, key_of};

/// Some bytes of one object. Dropping it releases them.
#[derive(Debug)]
#[must_use = "dropping a piece gives its bytes back"]
pub struct Piece {
    slot: Arc<LentSlot>,
    slot_range: Range<usize>,
    object: ObjectIndex,
    offset: u64,
    chunk: u64,
    manifest: Arc<Manifest>,
}

impl Piece {
    /// The object's position in the manifest.
    #[must_use]
    pub fn object(&self) -> ObjectIndex {
        self.object
    }

    /// The object's key.
    #[must_use]
    pub fn key(&self) -> &str {
        key_of(&self.manifest, self.object)
    }

    /// Where in the object it begins.
    #[must_use]
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// The bytes, where the daemon wrote them.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        self.slot.bytes(self.slot_range.clone())
    }

    /// Gives the bytes back; what dropping it does.
    pub fn release(self) {}
}

/// Holds pieces until their turn.
#[derive(Debug)]
pub(crate) struct Order {
    held: BTreeMap<(ObjectIndex, u64), Piece>,
    /// Where each object continues; 0 if absent.
    next: HashMap<ObjectIndex, u64>,
    /// Whether objects may have gaps.
    gaps: bool,
    /// Every chunk before this one has come.
    chunks_before: u64,
    /// Chunks that came ahead of one before them.
    chunks_ahead: BTreeSet<u64>,
    /// Objects to look at.
    touched: BTreeSet<ObjectIndex>,
}

impl Order {
    /// `gaps`: not every byte of every object will come.
    pub(crate) fn new(gaps: bool) -> Self {
        Self {
            held: BTreeMap::new(),
            next: HashMap::new(),
            gaps,
            chunks_before: 0,
            chunks_ahead: BTreeSet::new(),
            touched: BTreeSet::new(),
        }
    }

    /// Takes the pieces of a chunk.
    pub(crate) fn add(&mut self, chunk: Chunk) {
        for extent in &chunk.extents {
            let piece = Piece {
                slot: Arc::clone(&chunk.slot),
                slot_range: extent.slot_range.clone(),
                object: extent.object,
                offset: extent.object_range.start,
                chunk: chunk.index.0,
                manifest: Arc::clone(&chunk.manifest),
            };
            self.touched.insert(extent.object);
            self.held.insert((extent.object, extent.object_range.start), piece);
        }
        self.chunks_ahead.insert(chunk.index.0);
        let before = self.chunks_before;
        while self.chunks_ahead.remove(&self.chunks_before) {
            self.chunks_before += 1;
        }
        if self.gaps && self.chunks_before > before {
            self.touched.extend(self.held.keys().map(|(object, _)| *object));
        }
    }

    /// The next piece whose turn it is.
    pub(crate) fn next_ready(&mut self) -> Option<Piece> {
        while let Some(object) = self.touched.first().copied() {
            if let Some(piece) = self.take(object) {
                return Some(piece);
            }
            self.touched.remove(&object);
        }
        None
    }

    /// Whether something waits for a chunk that has not come.
    pub(crate) fn is_empty(&self) -> bool {
        self.held.is_empty()
    }

    fn take(&mut self, object: ObjectIndex) -> Option<Piece> {
        let next = self.next.entry(object).or_default();
        let (key, first) = self.held.range((object, 0)..=(object, u64::MAX)).next()?;
        let is_due = first.offset == *next || self.gaps && first.chunk < self.chunks_before;
        let key = Some(*key).filter(|_| is_due)?;
        let piece = self.held.remove(&key)?;
        *next = piece.offset + piece.slot_range.len() as u64;
        Some(piece)
    }
}
