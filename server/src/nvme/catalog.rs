//! What the tier holds, what it is about to hold, and what has to go for that. No files here.
//!
//! *Room.* Every byte of the budget is either stored, reserved by a fill that is under way, or
//! leaving (evicted, and its file not removed yet). A fill reserves before it writes, under the
//! lock, so fills side by side cannot overshoot. Beside the budget a floor of the filesystem's free
//! space is kept. At either limit room is made down to a low mark, by whole revisions first (see
//! [`Residency`]); what the revision that is being filled holds itself is never given up for it,
//! since a checkpoint larger than the tier would then only chase its own tail.
//!
//! *One at a time.* A key that is being written or removed is busy, and nobody else writes or
//! removes it meanwhile.
//!
//! Owned by the tier, under its lock; times come in as arguments.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::extent::file_bytes;
use super::index::{ChunkRow, RevisionRow};
use super::store::DiskRoom;
use crate::plan::ChunkKey;
use crate::residency::Residency;
use crate::resolve::Revision;

/// Of the filesystem, what stays free: 5 %, and 10 GiB at most.
const FLOOR_PERCENT: u64 = 5;
const FLOOR_BYTES_MAX: u64 = 10 << 30;
/// What is given up at a limit: a tenth of the budget, or as much again as the floor.
const LOW_PERCENT: u64 = 90;

/// A chunk that is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stored {
    pub(super) key: ChunkKey,
    /// The one it was stored for.
    pub(super) revision: Revision,
    pub(super) generation: u64,
    pub(super) payload_bytes: u32,
    pub(super) content_bytes: u64,
}

impl Stored {
    fn file_bytes(&self) -> u64 {
        file_bytes(self.payload_bytes as usize)
    }
}

/// How a wish for room is answered.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Room {
    /// The bytes are reserved and the key is busy.
    Reserved,
    /// Remove these first, say so with [`Catalog::left`], and ask again.
    Evict(Vec<Stored>),
    /// Others are removing; ask again when they have.
    Wait,
    /// It is stored already, or busy.
    NotNeeded,
    /// There is none, and nothing that may go.
    None,
}

impl Room {
    /// What is to be removed for it.
    pub(super) fn evicted(&self) -> &[Stored] {
        match self {
            Self::Evict(gone) => gone,
            _ => &[],
        }
    }
}

/// A checkpoint that is stored or in use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct StoredCheckpoint {
    /// Where it was loaded from last.
    pub(crate) uri: String,
    /// Which revision.
    pub(crate) revision: Revision,
    /// Bytes of all its objects.
    pub(crate) bytes: u64,
    /// How many objects.
    pub(crate) objects: usize,
    /// Bytes of it in this tier.
    pub(crate) stored_bytes: u64,
    /// Whether an operator or an alias keeps it.
    pub(crate) pinned: bool,
    /// Seconds since its last use.
    pub(crate) idle_seconds: u64,
}

/// What [`Catalog::drop_uri`] gave up.
#[derive(Debug)]
pub(super) struct Dropped {
    /// Whatever of them is or was to be stored.
    pub(super) revisions: Vec<Revision>,
    /// How many of them had something stored.
    pub(super) checkpoints: u64,
    /// What is to be removed.
    pub(super) gone: Vec<Stored>,
    /// How many stay for their pin.
    pub(super) pinned: u64,
}

/// How the budget is used.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Use {
    pub(super) budget: u64,
    pub(super) stored: u64,
    pub(super) reserved: u64,
    pub(super) pinned: u64,
    pub(super) extents: usize,
}

/// See the module's head.
#[derive(Debug)]
pub(super) struct Catalog {
    residency: Residency<Stored>,
    last_used: BTreeMap<Revision, u64>,
    /// What an operator keeps, what aliases keep, and what a prefetch pins until it knows how it
    /// ends. Only the first is remembered here (aliases remember their own), and only the last is not
    /// shown.
    kept: HashSet<Revision>,
    held: HashSet<Revision>,
    kept_for_now: HashMap<Revision, usize>,
    /// Changes with everything that may make room, and when a search for it last found none.
    changes: u64,
    barren: Option<(u64, Revision)>,
    /// Being removed.
    busy: HashSet<ChunkKey>,
    /// Being written.
    filling: HashSet<ChunkKey>,
    budget: u64,
    stored: u64,
    reserved: u64,
    leaving: u64,
}

impl Catalog {
    pub(super) fn new() -> Self {
        Self {
            residency: Residency::new(),
            last_used: BTreeMap::new(),
            kept: HashSet::new(),
            held: HashSet::new(),
            kept_for_now: HashMap::new(),
            changes: 0,
            barren: None,
            busy: HashSet::new(),
            filling: HashSet::new(),
            budget: 0,
            stored: 0,
            reserved: 0,
            leaving: 0,
        }
    }

    pub(super) fn set_budget(&mut self, bytes: u64) {
        self.budget = bytes;
    }

    /// Bytes of all files, those that leave included.
    pub(super) fn on_disk(&self) -> u64 {
        self.stored + self.leaving
    }

    /// Takes in the revisions that an index knows, in the order of their last use. They count as in
    /// use until [`Catalog::revisions_known`]: their chunks follow.
    pub(super) fn take_in_revisions(&mut self, revisions: &mut [(Revision, RevisionRow)]) {
        revisions.sort_by_key(|(revision, row)| (row.last_used, *revision));
        for (revision, row) in revisions {
            let objects = usize::try_from(row.objects).unwrap_or(usize::MAX);
            self.begin(*revision, &row.uri, row.bytes, objects, row.last_used);
            if row.pinned {
                self.kept.insert(*revision);
                self.residency.pin(*revision, true);
            }
        }
    }

    /// The chunks of these revisions are all taken in.
    pub(super) fn revisions_known(&mut self, revisions: &[(Revision, RevisionRow)]) {
        revisions.iter().for_each(|(revision, row)| self.end(*revision, row.last_used));
    }

    /// Takes in chunks that an index knows; how many were new. What is known already, or busy, is
    /// left as it is.
    pub(super) fn take_in(&mut self, chunks: &[(ChunkKey, ChunkRow)]) -> usize {
        chunks.iter().filter(|(key, row)| self.take_in_one(*key, row)).count()
    }

    fn take_in_one(&mut self, key: ChunkKey, row: &ChunkRow) -> bool {
        let ChunkRow { generation, payload_bytes, content_bytes, ref revisions } = *row;
        let revision = revisions.first().copied().unwrap_or(Revision([0; 32]));
        let new = self.adopt(Stored { key, revision, generation, payload_bytes, content_bytes });
        if new {
            revisions.iter().for_each(|other| self.residency.refer(key, *other));
        }
        new
    }

    /// Takes in an extent that is there; whether it was new.
    pub(super) fn adopt(&mut self, stored: Stored) -> bool {
        if self.is_known(&stored.key) {
            return false;
        }
        self.stored += stored.file_bytes();
        // One that nobody has a name for is a revision too, so that it can be given up as one.
        if self.residency.revision(&stored.revision).is_none() {
            self.residency.begin(stored.revision, "", 0, 0);
            self.pin_if_held(stored.revision);
            self.residency.insert(stored.key, stored.revision, stored.content_bytes, stored);
            self.residency.end(stored.revision);
        } else {
            self.residency.insert(stored.key, stored.revision, stored.content_bytes, stored);
        }
        self.changes += 1;
        true
    }

    fn is_known(&self, key: &ChunkKey) -> bool {
        self.residency.holds(key) || self.busy.contains(key) || self.filling.contains(key)
    }

    /// A chunk of a revision that is known waits to be written: as good as a load that uses it, or
    /// its name would be forgotten before the first chunk is stored. Ends with
    /// [`Catalog::release`].
    pub(super) fn hold(&mut self, revision: Revision) -> bool {
        self.residency.hold(revision)
    }

    /// See [`Catalog::hold`].
    pub(super) fn release(&mut self, revision: Revision) {
        self.residency.end(revision);
        self.changes += 1;
        self.trim();
    }

    /// A load begins to use a revision.
    pub(super) fn begin(
        &mut self,
        revision: Revision,
        uri: &str,
        bytes: u64,
        objects: usize,
        now: u64,
    ) {
        self.residency.begin(revision, uri, bytes, objects);
        self.pin_if_held(revision);
        self.last_used.insert(revision, now);
    }

    /// A load ends to use a revision.
    pub(super) fn end(&mut self, revision: Revision, now: u64) {
        self.residency.end(revision);
        self.last_used.insert(revision, now);
        self.changes += 1;
        self.trim();
    }

    /// What a revision's row is now; none if it is not known.
    pub(super) fn revision_row(&self, revision: &Revision) -> Option<RevisionRow> {
        let entry = self.residency.revision(revision)?;
        Some(RevisionRow {
            uri: entry.uri.clone(),
            bytes: entry.bytes,
            objects: entry.objects as u64,
            pinned: self.kept.contains(revision),
            last_used: self.last_used.get(revision).copied().unwrap_or_default(),
        })
    }

    /// What a chunk's row is now; none if it is not stored.
    pub(super) fn chunk_row(&self, key: &ChunkKey) -> Option<ChunkRow> {
        let stored = self.residency.peek(key)?;
        Some(ChunkRow {
            generation: stored.generation,
            payload_bytes: stored.payload_bytes,
            content_bytes: stored.content_bytes,
            revisions: self.residency.revisions_of(key).copied().collect(),
        })
    }

    /// The chunk, without counting as a use.
    pub(super) fn peek(&self, key: &ChunkKey) -> Option<Stored> {
        self.residency.peek(key).copied()
    }

    /// The chunk, which `revision` uses now. Whether its row changed with that.
    pub(super) fn find(&mut self, key: &ChunkKey, revision: Revision) -> Option<(Stored, bool)> {
        let referred = self.residency.revisions_of(key).any(|known| *known == revision);
        let found = self.residency.get(key, revision)?;
        let refers = self.residency.revisions_of(key).any(|known| *known == revision);
        Some((found, refers && !referred))
    }

    /// `revision` refers to the chunk from now on; whether its row changed.
    pub(super) fn refer(&mut self, key: &ChunkKey, revision: Revision) -> bool {
        let before = self.residency.revisions_of(key).count();
        self.residency.refer(*key, revision);
        self.residency.revisions_of(key).count() > before
    }

    /// Asks for room for a chunk of `revision`.
    pub(super) fn reserve(
        &mut self,
        key: &ChunkKey,
        revision: Revision,
        payload_bytes: usize,
        disk: DiskRoom,
    ) -> Room {
        if self.busy.contains(key) {
            return Room::Wait;
        }
        if self.is_known(key) {
            return Room::NotNeeded;
        }
        let need = file_bytes(payload_bytes);
        let (surplus, low) = self.surplus(need, disk);
        if surplus == 0 {
            self.reserved += need;
            self.filling.insert(*key);
            return Room::Reserved;
        }
        if self.leaving >= surplus {
            return Room::Wait;
        }
        if self.barren == Some((self.changes, revision)) {
            return if self.leaving > 0 { Room::Wait } else { Room::None };
        }
        let victims = self.evict((surplus, low), Some(revision));
        if victims.is_empty() {
            self.barren = Some((self.changes, revision));
        }
        match victims.is_empty() {
            true if self.leaving > 0 => Room::Wait,
            true => Room::None,
            false => Room::Evict(victims),
        }
    }

    /// Room that others have taken from the filesystem: what is to be removed for that.
    pub(super) fn shrink(&mut self, disk: DiskRoom) -> Vec<Stored> {
        let (surplus, low) = self.surplus(0, disk);
        if surplus <= self.leaving {
            return Vec::new();
        }
        self.evict((surplus, low), None)
    }

    /// The filesystem takes no more although it says that it has room: a tenth of what is stored is
    /// to be removed.
    pub(super) fn make_room(&mut self) -> Vec<Stored> {
        let bytes = self.stored / 10;
        self.evict((bytes, bytes), None)
    }

    /// What stays free of a filesystem.
    pub(super) fn floor(disk: DiskRoom) -> u64 {
        (disk.total / 100 * FLOOR_PERCENT).min(FLOOR_BYTES_MAX)
    }

    /// How many bytes have to go for `need` more, at least, and so that the low marks are met.
    fn surplus(&self, need: u64, disk: DiskRoom) -> (u64, u64) {
        let floor = Self::floor(disk);
        // What is reserved may not be taken from the filesystem yet.
        let after = self.stored + self.reserved + self.leaving + need;
        let beyond = |budget: u64| after.saturating_sub(budget);
        let below = |floor: u64| (floor + need + self.reserved).saturating_sub(disk.free);
        let surplus = beyond(self.budget).max(below(floor));
        let low = beyond(self.budget / 100 * LOW_PERCENT).max(below(2 * floor));
        (surplus, low)
    }

    /// Gives up whole revisions down to the low mark, and if that is not enough, as many single
    /// chunks as are needed and no more.
    fn evict(&mut self, (needed, low): (u64, u64), own: Option<Revision>) -> Vec<Stored> {
        let mut victims = Vec::new();
        let mut freed = self.leaving;
        let sum = |gone: &[Stored]| gone.iter().map(Stored::file_bytes).sum::<u64>();
        while freed < needed.max(low) {
            let more = self.residency.evict_sized(needed.max(low) - freed);
            if more.is_empty() {
                break;
            }
            freed += sum(&more);
            victims.extend(more);
        }
        if freed < needed {
            victims.extend(self.residency.evict_chunks(needed - freed, own, Stored::file_bytes));
        }
        victims.iter().for_each(|victim| self.leaves(victim));
        self.trim();
        victims
    }

    /// A stored chunk that was taken out of the residency.
    fn leaves(&mut self, stored: &Stored) {
        self.changes += 1;
        self.stored -= stored.file_bytes();
        self.leaving += stored.file_bytes();
        self.busy.insert(stored.key);
    }

    /// The file of a chunk that left is removed.
    pub(super) fn left(&mut self, stored: &Stored) {
        self.leaving -= stored.file_bytes();
        self.busy.remove(&stored.key);
    }

    /// A chunk for which room was reserved is written. If nobody wants it any more, its file is to
    /// be removed, and [`Catalog::left`] to be called then.
    pub(super) fn written(&mut self, stored: Stored, wanted: bool) {
        self.given_up(&stored.key, stored.payload_bytes as usize);
        self.adopt(stored);
        if !wanted && self.residency.remove(&stored.key).is_some() {
            self.leaves(&stored);
        }
    }

    /// A chunk for which room was reserved will not be written.
    pub(super) fn given_up(&mut self, key: &ChunkKey, payload_bytes: usize) {
        self.reserved -= file_bytes(payload_bytes);
        self.filling.remove(key);
    }

    /// Gives up a chunk, if it is still this generation of it: its file is to be removed, and
    /// [`Catalog::left`] to be called then.
    pub(super) fn forget(&mut self, key: &ChunkKey, generation: u64) -> Option<Stored> {
        self.peek(key).filter(|stored| stored.generation == generation)?;
        let stored = self.residency.remove(key)?;
        self.leaves(&stored);
        self.trim();
        Some(stored)
    }

    /// Gives up what the revisions at or under a URI refer to alone, except what is pinned. What
    /// waits or is being written for them is for the caller to forget.
    pub(super) fn drop_uri(&mut self, under: impl Fn(&str) -> bool) -> Dropped {
        let found = self.residency.revisions().filter(|(_, entry)| under(&entry.uri));
        let (mut revisions, mut checkpoints, mut pinned) = (Vec::new(), 0, 0);
        for (revision, entry) in found {
            if entry.pinned {
                pinned += 1;
            } else {
                checkpoints += u64::from(entry.cached_bytes > 0);
                revisions.push(*revision);
            }
        }
        let gone = self.residency.drop_revisions(&revisions);
        gone.iter().for_each(|stored| self.leaves(stored));
        self.trim();
        Dropped { revisions, checkpoints, gone, pinned }
    }

    /// Pins or unpins what lies at or under a URI and is stored in part at least; the revisions.
    pub(super) fn pin_uri(&mut self, under: impl Fn(&str) -> bool, pinned: bool) -> Vec<Revision> {
        let found = self.residency.revisions().filter(|(_, entry)| under(&entry.uri));
        let changed: Vec<Revision> = found
            .filter(|(revision, entry)| match pinned {
                true => entry.cached_bytes > 0,
                false => self.kept.contains(revision),
            })
            .map(|(revision, _)| *revision)
            .collect();
        changed.iter().for_each(|revision| self.pin(*revision, pinned));
        changed
    }

    /// Pins one revision, or lets it go again.
    pub(super) fn pin(&mut self, revision: Revision, pinned: bool) {
        if pinned {
            self.kept.insert(revision);
        } else {
            self.kept.remove(&revision);
        }
        self.pins_changed(revision);
    }

    /// Pins a revision until [`Catalog::unpin_for_now`], and does not have that remembered.
    pub(super) fn pin_for_now(&mut self, revision: Revision) {
        *self.kept_for_now.entry(revision).or_default() += 1;
        self.pins_changed(revision);
    }

    /// See [`Catalog::pin_for_now`].
    pub(super) fn unpin_for_now(&mut self, revision: Revision) {
        if let Some(count) = self.kept_for_now.get_mut(&revision) {
            *count -= 1;
            if *count == 0 {
                self.kept_for_now.remove(&revision);
            }
        }
        self.pins_changed(revision);
    }

    /// Has these revisions pinned for aliases, and no others; also those of which nothing is known
    /// yet, from when it is.
    pub(super) fn hold_revisions(&mut self, held: HashSet<Revision>) {
        let before = std::mem::replace(&mut self.held, held);
        let changed: Vec<Revision> = before.symmetric_difference(&self.held).copied().collect();
        changed.into_iter().for_each(|revision| self.pins_changed(revision));
    }

    /// A revision has become known.
    fn pin_if_held(&mut self, revision: Revision) {
        if self.held.contains(&revision) || self.kept_for_now.contains_key(&revision) {
            self.residency.pin(revision, true);
        }
    }

    fn pins_changed(&mut self, revision: Revision) {
        let pinned = self.kept.contains(&revision)
            || self.held.contains(&revision)
            || self.kept_for_now.contains_key(&revision);
        if !self.residency.pin(revision, pinned) {
            self.kept.remove(&revision);
        }
        self.changes += 1;
    }

    /// What is stored or in use at or under a URI.
    pub(super) fn list(&self, under: impl Fn(&str) -> bool, now: u64) -> Vec<StoredCheckpoint> {
        let named = self.residency.revisions().filter(|(_, entry)| !entry.uri.is_empty());
        let found = named.filter(|(_, entry)| under(&entry.uri));
        found
            .map(|(revision, entry)| StoredCheckpoint {
                uri: entry.uri.clone(),
                revision: *revision,
                bytes: entry.bytes,
                objects: entry.objects,
                stored_bytes: entry.cached_bytes,
                pinned: self.kept.contains(revision) || self.held.contains(revision),
                idle_seconds: self
                    .last_used
                    .get(revision)
                    .map_or(0, |last_used| now.saturating_sub(*last_used)),
            })
            .collect()
    }

    /// Bytes that are stored of a revision.
    pub(super) fn stored_of(&self, revision: &Revision) -> u64 {
        self.residency.revision(revision).map_or(0, |entry| entry.cached_bytes)
    }

    /// The chunks of a revision.
    pub(super) fn chunks_of(&self, revision: &Revision) -> Vec<Stored> {
        self.residency.chunks_of(revision).copied().collect()
    }

    /// Every chunk.
    pub(super) fn chunks(&self) -> Vec<Stored> {
        self.residency.values().copied().collect()
    }

    /// How the budget is used.
    pub(super) fn used(&self) -> Use {
        let pinned = self.residency.revisions().filter(|(_, entry)| entry.pinned);
        Use {
            budget: self.budget,
            stored: self.stored,
            reserved: self.reserved,
            // What two of them refer to counts for both, and no more than there is.
            pinned: pinned.map(|(_, entry)| entry.cached_bytes).sum::<u64>().min(self.stored),
            extents: self.residency.len(),
        }
    }

    /// Bounded like the residency: what it forgot is forgotten here.
    fn trim(&mut self) {
        if self.last_used.len() > 2 * self.residency.revisions().count() + 16 {
            let known: HashSet<Revision> =
                self.residency.revisions().map(|(revision, _)| *revision).collect();
            self.last_used.retain(|revision, _| known.contains(revision));
        }
    }
}

#[cfg(test)]
#[path = "catalog_tests.rs"]
mod tests;
