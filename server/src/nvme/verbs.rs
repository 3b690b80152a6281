//! What operators do with what is stored: look, pin, evict.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinHandle;

use super::catalog::{Dropped, StoredCheckpoint};
use super::clock::seconds;
use super::extent::BadExtent;
use super::index::Index;
use super::{NvmeTier, PATIENCE, lock};
use crate::plan::ChunkKey;
use crate::resolve::Revision;

/// How long verbs and prefetches wait for the extents to be known: without an index a terabyte of
/// extents takes some 25 s.
const RECOVERY_PATIENCE: Duration = Duration::from_secs(30);

/// What an eviction did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct NvmeEvicted {
    /// Checkpoints dropped.
    pub(crate) checkpoints: u64,
    /// Bytes of their extents.
    pub(crate) freed_bytes: u64,
    /// Checkpoints that stay, being pinned.
    pub(crate) pinned: u64,
}

/// A pin that is under way: nothing of it is remembered unless it is [kept](Pin::keep).
#[derive(Debug)]
pub(crate) struct Pin {
    tier: Arc<NvmeTier>,
    revision: Revision,
}

impl Pin {
    /// It stays, as one that an operator asked for.
    pub(crate) async fn keep(self) {
        {
            let mut catalog = self.tier.catalog();
            catalog.pin(self.revision, true);
            self.tier.remember(&catalog, [], [self.revision]);
        }
        self.tier.flush().await;
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        self.tier.catalog().unpin_for_now(self.revision);
    }
}

impl NvmeTier {
    /// Waits until every extent is known: before that, whoever asks what is stored hears too
    /// little. False if that takes too long, as it does where the disk hangs.
    pub(crate) async fn known(&self) -> bool {
        tokio::time::timeout(RECOVERY_PATIENCE, self.recovered()).await.is_ok()
    }

    /// Waits until every extent is known, or the tier ends.
    pub(super) async fn recovered(&self) {
        let mut recovered = self.recovery.subscribe();
        tokio::select! {
            // The sender lives as long as the tier.
            known = recovered.wait_for(Option::is_some) => drop(known),
            () = self.stop.cancelled() => {}
        }
    }

    /// Waits until what was to be remembered is; not for long, should the disk hang.
    async fn flush(&self) {
        let flush = lock(&self.index).as_ref().map(Index::flusher);
        if let Some(flush) = flush {
            let flushing = self.background.run(flush);
            drop(tokio::time::timeout(PATIENCE, flushing).await);
        }
    }

    /// What is stored or in use at or under a URI.
    pub(crate) fn list(&self, under: impl Fn(&str) -> bool) -> Vec<StoredCheckpoint> {
        self.catalog().list(under, seconds())
    }

    /// Pins what is stored at or under a URI, or lets it go again; the revisions.
    pub(crate) async fn pin(&self, under: impl Fn(&str) -> bool, pinned: bool) -> Vec<Revision> {
        let changed = {
            let mut catalog = self.catalog();
            let changed = catalog.pin_uri(under, pinned);
            self.remember(&catalog, [], changed.iter().copied());
            changed
        };
        self.flush().await;
        changed
    }

    /// Bytes of pinned checkpoints beside this one.
    pub(crate) fn pinned_beside(&self, revision: Revision) -> u64 {
        let listed = self.catalog().list(|_| true, 0);
        let others = listed.iter().filter(|stored| stored.pinned && stored.revision != revision);
        others.map(|stored| stored.stored_bytes).sum()
    }

    /// Pins a revision from when it is in use, for as long as what is returned lives, and for good if it is
    /// [kept](Pin::keep).
    pub(crate) fn pin_revision(self: &Arc<Self>, revision: Revision) -> Pin {
        self.catalog().pin_for_now(revision);
        Pin { tier: Arc::clone(self), revision }
    }

    /// Has these revisions pinned, beside those that an operator pins, and no others any more.
    pub(crate) fn hold_revisions(&self, held: HashSet<Revision>) {
        self.catalog().hold_revisions(held);
    }

    /// Bytes of a revision that are stored.
    pub(crate) fn stored_of(&self, revision: Revision) -> u64 {
        self.catalog().stored_of(&revision)
    }

    /// Gives up chunks whose bytes turned out to be wrong, and what waits to be stored of their
    /// revision. What is being written is written to its end first, unless the disk hangs.
    pub(crate) fn give_up(
        self: &Arc<Self>,
        revision: Revision,
        keys: Vec<ChunkKey>,
    ) -> JoinHandle<()> {
        drop(self.fills.forget(&[revision]));
        let tier = Arc::clone(self);
        // A task of its own: whoever asked may be dropped.
        self.tasks.spawn(async move {
            let settled = keys.iter().map(|key| tier.fills.settled(key));
            drop(tokio::time::timeout(PATIENCE, futures::future::join_all(settled)).await);
            for key in keys {
                tier.put_aside(key).await;
            }
        })
    }

    /// Puts a chunk's extent aside, if it has one, or may have.
    async fn put_aside(self: &Arc<Self>, key: ChunkKey) {
        let generation = self.catalog().peek(&key).map(|stored| stored.generation);
        if generation.is_some() || self.recovery.borrow().is_none() {
            self.quarantine(key, generation, BadExtent::Digest).await;
        }
    }

    /// Gives up what is stored at or under a URI and not pinned.
    pub(crate) async fn evict(self: &Arc<Self>, under: impl Fn(&str) -> bool) -> NvmeEvicted {
        let (Dropped { checkpoints, gone, pinned, .. }, forgotten) = {
            let mut catalog = self.catalog();
            let dropped = catalog.drop_uri(under);
            let keys = dropped.gone.iter().map(|stored| stored.key);
            self.remember(&catalog, keys, dropped.revisions.iter().copied());
            // Under the lock, so that nothing of it is written in between.
            let forgotten = self.fills.forget(&dropped.revisions);
            (dropped, forgotten)
        };
        drop(forgotten);
        let freed_bytes = gone.iter().map(|stored| stored.content_bytes).sum();
        self.meters.evicted("asked", gone.len());
        self.remove(gone).await;
        NvmeEvicted { checkpoints, freed_bytes, pinned }
    }
}
