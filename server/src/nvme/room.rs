//! Room: how much the tier may take, what goes when there is none, and the removal of files.
//!
//! Files are removed by tasks of their own, so that whoever asked may be dropped; what leaves
//! counts until its file is gone (see `catalog`).

use std::sync::Arc;
use std::time::Duration;

use forebay_io::FileError;
use tokio::time::Instant;

use super::catalog::{Catalog, Stored};
use super::disk::DiskError;
use super::store::{DiskRoom, Store};
use super::{Budget, NvmeTier, lock};
use crate::timeline::Event;

/// How long nothing is written after the disk was full.
const FULL_PAUSE: Duration = Duration::from_secs(10);

/// How often the room of the filesystem is looked at.
const ROOM_EVERY: Duration = Duration::from_secs(1);

impl NvmeTier {
    /// Removes the files of chunks that the catalog has given up.
    pub(super) async fn remove(self: &Arc<Self>, gone: Vec<Stored>) {
        if gone.is_empty() {
            return;
        }
        let tier = Arc::clone(self);
        // A task of its own: whoever asked may be dropped.
        let removing = self.tasks.spawn(async move {
            for stored in gone {
                tier.take_away(stored, move |store| store.remove(&stored.key)).await;
            }
        });
        drop(removing.await);
    }

    /// Takes the file of a chunk that was given up out of the way. Its bytes count until that is
    /// done: if it cannot be, it is tried again (see [`NvmeTier::keep_room`]).
    pub(super) async fn take_away(
        self: &Arc<Self>,
        stored: Stored,
        how: impl FnOnce(&Store) -> Result<(), FileError> + Send + 'static,
    ) {
        let tier = Arc::clone(self);
        let taken = self.disk.call(move |store| {
            how(store)?;
            // Here, since a call that nobody waits for any more may still be carried out.
            tier.all_left(&[stored]);
            Ok(())
        });
        match taken.await {
            Ok(()) => {}
            // It is with the disk, or will be.
            Err(DiskError::Silent(_)) => {}
            Err(error) => {
                tracing::warn!(%error, key = ?stored.key, "an extent cannot be removed for now");
                lock(&self.stuck).push(stored);
            }
        }
    }

    pub(super) fn all_left(&self, gone: &[Stored]) {
        let mut catalog = self.catalog();
        gone.iter().for_each(|stored| catalog.left(stored));
        drop(catalog);
        self.room_changed.notify_waiters();
    }

    /// A share of the disk is one of what would be free if nothing were stored. Blocks.
    pub(super) fn set_budget(&self) {
        let room = self.disk.store().room();
        if let Ok(room) = room {
            *lock(&self.last_room) = room;
        }
        let mut catalog = self.catalog();
        let budget = match self.settings.budget {
            Budget::Bytes(bytes) => bytes,
            Budget::Percent(percent) => {
                let free = room.map_or(0, |room| room.free);
                (free + catalog.on_disk()) / 100 * percent
            }
        };
        catalog.set_budget(budget);
    }

    /// The room of the filesystem as it was a second ago.
    pub(super) fn last_room(&self) -> DiskRoom {
        *lock(&self.last_room)
    }

    /// Makes room when others fill the filesystem. Never ends.
    pub(super) async fn keep_room(self: &Arc<Self>) {
        loop {
            tokio::time::sleep(ROOM_EVERY).await;
            let stuck = std::mem::take(&mut *lock(&self.stuck));
            self.remove(stuck).await;
            if self.recovery.borrow().is_none() {
                continue;
            }
            if let Ok(room) = self.room().await {
                let gone = self.evicted("floor", |catalog| catalog.shrink(room));
                self.remove(gone).await;
            }
        }
    }

    /// Evicts under the lock, counts, and has it remembered.
    pub(super) fn evicted(
        &self,
        reason: &'static str,
        evict: impl FnOnce(&mut Catalog) -> Vec<Stored>,
    ) -> Vec<Stored> {
        let mut catalog = self.catalog();
        let gone = evict(&mut catalog);
        let revisions = gone.iter().map(|stored| stored.revision);
        self.remember(&catalog, gone.iter().map(|stored| stored.key), revisions);
        self.meters.evicted(reason, gone.len());
        if !gone.is_empty() {
            let detail = format!("{} chunks of NVMe went: {reason}", gone.len());
            lock(&self.news).tell("evict", detail);
        }
        gone
    }

    /// What was decided since so many news, which are counted on: what was given up, and how far the
    /// disk is trusted.
    pub(crate) fn news(&self, heard: &mut u64) -> Vec<Event> {
        lock(&self.news).since(heard)
    }

    /// How many news there were.
    pub(crate) fn news_so_far(&self) -> u64 {
        lock(&self.news).count()
    }

    pub(super) async fn room(&self) -> Result<DiskRoom, DiskError> {
        let asked = |store: &Store| {
            store.room().map_err(|errno| FileError::System {
                operation: "ask for the room of a filesystem",
                source: errno.into(),
            })
        };
        let room = self.disk.call(asked).await?;
        *lock(&self.last_room) = room;
        Ok(room)
    }

    pub(super) fn is_full(&self, now: Instant) -> bool {
        lock(&self.full_until).is_some_and(|until| now < until)
    }

    /// If the disk was full although it says that it has room (a quota, no inodes): nothing is
    /// written for a while, and some of what is stored goes.
    pub(super) async fn make_room_if(self: &Arc<Self>, full: bool) {
        if !full {
            return;
        }
        tracing::warn!(pause = ?FULL_PAUSE, "the disk of the NVMe tier is full");
        *lock(&self.full_until) = Some(Instant::now() + FULL_PAUSE);
        let gone = self.evicted("full", Catalog::make_room);
        self.remove(gone).await;
    }
}
