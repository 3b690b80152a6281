//! What domains share of a chunk: one at a time brings it in, and the next ones copy it.
//!
//! Each domain has flights and slots of its own, so two that load the same revision want the same
//! chunk twice. Per chunk and node one of them has the *turn*: it copies the chunk from another
//! domain's slot if it is there, else it brings it from the NVMe tier or the origin. The others
//! wait for the turn and find the bytes then. The origin is asked once, each domain has the bytes
//! in memory of its own, and nobody sees a page that was another's.
//!
//! Who waits holds nothing but the window token of its load. A turn ends when its holder is
//! dropped: a domain whose load is given up leaves the turn to the next, which starts anew.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use forebay_io::NodeId;
use forebay_origin::{Lane, ReadTerms};
use forebay_proto::Failure;
use tokio_util::sync::CancellationToken;

use super::slot::claim;
use super::{Stages, bring};
use crate::error::stopping;
use crate::flight::{FlightLog, Landed};
use crate::plan::{ChunkKey, ChunkSpec};
use crate::ram::{PinnedChunk, RamTier};
use crate::report::{Tier, Why};
use crate::resolve::Manifest;
use crate::timeline::{Kind, Stage};

/// The RAM tiers of all domains, and who has the turn at which chunk.
#[derive(Debug)]
pub(crate) struct Across {
    tiers: Vec<Arc<RamTier>>,
    turns: Mutex<HashMap<ChunkKey, Holder>>,
}

/// Who has a turn: until when, and on what terms it reads.
#[derive(Debug)]
struct Holder {
    over: CancellationToken,
    terms: ReadTerms,
}

/// The turn at a chunk. Dropped, it is the next one's.
#[derive(Debug)]
struct Turn {
    across: Arc<Across>,
    key: ChunkKey,
}

impl Drop for Turn {
    fn drop(&mut self) {
        if let Some(holder) = self.across.lock().remove(&self.key) {
            holder.over.cancel();
        }
    }
}

impl Across {
    /// Over the tiers of all domains, by their numbers.
    pub(crate) fn new(tiers: Vec<Arc<RamTier>>) -> Self {
        Self { tiers, turns: Mutex::default() }
    }

    /// Slots of all domains.
    pub(crate) fn slots(&self) -> usize {
        self.tiers.iter().map(|tier| tier.pool().slots()).sum()
    }

    /// Whether there is more than one domain.
    fn is_shared(&self) -> bool {
        self.tiers.len() > 1
    }

    /// A verified chunk in a slot of any domain, without counting as a use.
    fn find(&self, key: &ChunkKey) -> Option<PinnedChunk> {
        self.tiers.iter().find_map(|tier| tier.peek(key))
    }

    /// The turn at a chunk, or what says that its holder's is over. Its holder's reads are as
    /// urgent as those of who waits.
    fn turn(self: &Arc<Self>, key: ChunkKey, terms: &ReadTerms) -> Result<Turn, CancellationToken> {
        match self.lock().entry(key) {
            Entry::Vacant(free) => {
                free.insert(Holder { over: CancellationToken::new(), terms: terms.clone() });
                Ok(Turn { across: Arc::clone(self), key })
            }
            Entry::Occupied(held) => {
                let Holder { over, terms: theirs } = held.get();
                let urgent = [theirs.lane(), terms.lane()].contains(&Lane::Interactive);
                let lane = if urgent { Lane::Interactive } else { Lane::Prefetch };
                theirs.set(lane, theirs.deadline().zip(terms.deadline()).map(|(a, b)| a.max(b)));
                Err(over.clone())
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<ChunkKey, Holder>> {
        self.turns.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One chunk's way into the domain's cache: from another domain's slot, else as [`bring`] finds it.
pub(super) async fn fill(
    stages: Arc<Stages>,
    manifest: Arc<Manifest>,
    (spec, near): (Arc<ChunkSpec>, Option<NodeId>),
    terms: ReadTerms,
    log: Arc<FlightLog>,
) -> Result<Landed, Failure> {
    if !stages.across.is_shared() {
        return bring(stages, manifest, (spec, near), terms, log).await;
    }
    let _turn = loop {
        match stages.across.turn(spec.key, &terms) {
            Ok(turn) => break turn,
            Err(over) => {
                log.at(Stage::Turn, Kind::Queue);
                over.cancelled().await;
            }
        }
    };
    if stages.across.find(&spec.key).is_some()
        && let Some(pinned) = copy(&stages, &manifest, (&spec, near), &log).await?
    {
        return Ok(Landed { pinned, tier: Tier::Ram, why: Why::Copied });
    }
    bring(stages, manifest, (spec, near), terms, log).await
}

/// A copy of what lies in another domain's slot, if it is there still and as it was verified.
async fn copy(
    stages: &Stages,
    manifest: &Manifest,
    (spec, near): (&Arc<ChunkSpec>, Option<NodeId>),
    log: &FlightLog,
) -> Result<Option<PinnedChunk>, Failure> {
    let slot = claim(stages, near, log).await?;
    // After the slot is there: nobody else's memory is kept while waiting for it.
    let Some(theirs) = stages.across.find(&spec.key) else { return Ok(None) };
    log.at(Stage::VerifyPart, Kind::Service);
    let copying = stages.verifier.copied(theirs, slot, Arc::clone(spec));
    let copied =
        copying.await.map_err(|stopped| stopping(stopped.to_string()).at_stage("verify_part"))?;
    Ok(copied.map(|verified| stages.ram.insert(verified, manifest)))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::Instant;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_turn_is_the_next_ones_when_its_holder_is_gone() {
        let across = Arc::new(Across::new(Vec::new()));
        let (key, now) = (ChunkKey([1; 32]), Instant::now());
        let terms = |lane, seconds| ReadTerms::new(lane, Some(now + Duration::from_secs(seconds)));
        let lazy = terms(Lane::Prefetch, 5);
        let first = across.turn(key, &lazy).unwrap();
        // Each chunk has its own.
        drop(across.turn(ChunkKey([2; 32]), &lazy).unwrap());
        let over = across.turn(key, &terms(Lane::Interactive, 9)).unwrap_err();
        assert_eq!(lazy.lane(), Lane::Interactive, "who waits hurries it");
        assert_eq!(lazy.deadline(), Some(now + Duration::from_secs(9)));
        assert!(!over.is_cancelled());
        drop(first);
        over.cancelled().await;
        let second = across.turn(key, &lazy).unwrap();
        drop(second);
        assert!(across.lock().is_empty());
    }
}
