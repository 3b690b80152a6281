//! Which chunks wait to be written, and who waits for that. No files and no memory here.
//!
//! Chunks are written in the order in which they came into RAM: those that came first are the first
//! to be evicted there. Only their names wait here, so that waiting holds no slot; a chunk that is
//! evicted from RAM before its turn is not written.
//!
//! *Behind the hand-over.* While somebody waits for a load, a chunk is written only if waiting
//! longer could lose it: when fewer slots of the RAM tier are free than chunks wait, eviction may
//! reach them. Whoever waits for a chunk to be stored ([`Fills::settled`]) hurries it.
//!
//! Owned by the tier; workers take from it with [`Fills::next`].

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;

use super::Hold;
use crate::digest::ChunkDigest;
use crate::plan::{ChunkKey, ChunkSpec};
use crate::resolve::Revision;

/// Chunks that may wait: 128 GiB at 8 MiB.
const WAITING_MAX: usize = 1 << 14;

/// How soon it is looked again whether a chunk may be written now.
const LOOK_AGAIN: Duration = Duration::from_millis(25);

/// A chunk to be written.
#[derive(Debug)]
pub(super) struct Fill {
    pub(super) spec: Arc<ChunkSpec>,
    pub(super) digest: ChunkDigest,
    pub(super) revision: Revision,
    pub(super) hold: Option<Hold>,
}

/// A chunk that waits or is being written.
#[derive(Debug)]
struct Known {
    /// Where in `waiting`; being written if it is not there any more.
    number: u64,
    revision: Revision,
    /// Whether that one still wants it stored.
    own: bool,
    /// Other revisions that want it stored too.
    also: Vec<(Revision, Option<Hold>)>,
}

impl Known {
    /// Some revisions do not want it any more. It is wanted, and theirs, by whoever else does. What
    /// is dropped here is returned.
    fn forget(&mut self, unwanted: impl Fn(&Revision) -> bool) -> Vec<(Revision, Option<Hold>)> {
        let gone = self.also.extract_if(.., |(revision, _)| unwanted(revision)).collect();
        self.own &= !unwanted(&self.revision);
        gone
    }

    fn is_wanted(&self) -> bool {
        self.own || !self.also.is_empty()
    }

    /// Another revision wants it. The hold comes back if that is known.
    fn add(&mut self, revision: Revision, hold: Option<Hold>) -> Option<Hold> {
        self.own |= self.revision == revision;
        let known =
            self.revision == revision || self.also.iter().any(|(also, _)| *also == revision);
        if known {
            return hold;
        }
        self.also.push((revision, hold));
        None
    }
}

#[derive(Debug, Default)]
struct State {
    next: u64,
    waiting: BTreeMap<u64, Fill>,
    known: HashMap<ChunkKey, Known>,
    /// How many wait for the chunk to be stored, and why it was not, if it was tried meanwhile.
    hurried: HashMap<ChunkKey, (usize, Option<&'static str>)>,
    closed: bool,
}

/// The chunks that wait.
#[derive(Debug, Default)]
pub(super) struct Fills {
    state: Mutex<State>,
    /// Something came, or is hurried.
    came: Notify,
    /// Something ended.
    ended: Notify,
}

impl Fills {
    /// Takes a chunk in; false if too many wait. One that is known already is not taken twice, but
    /// for another revision as well.
    pub(super) fn offer(&self, fill: Fill) -> bool {
        let mut state = self.lock();
        if let Some(known) = state.known.get_mut(&fill.spec.key) {
            let surplus = known.add(fill.revision, fill.hold);
            // The end of a hold locks the catalog, under whose lock this one is taken.
            drop(state);
            drop(surplus);
            return true;
        }
        if state.waiting.len() >= WAITING_MAX || state.closed {
            return false;
        }
        let number = state.next;
        state.next += 1;
        let known = Known { number, revision: fill.revision, own: true, also: Vec::new() };
        state.known.insert(fill.spec.key, known);
        state.waiting.insert(number, fill);
        drop(state);
        self.came.notify_one();
        true
    }

    /// How many wait.
    pub(super) fn waiting(&self) -> usize {
        self.lock().waiting.len()
    }

    /// The next chunk to write; none when nothing will come any more. `patient` says for a number
    /// of waiting chunks whether they can wait. What is returned is over with [`Fills::done`].
    pub(super) async fn next(&self, patient: impl Fn(usize) -> bool) -> Option<Fill> {
        loop {
            let came = self.came.notified();
            tokio::pin!(came);
            came.as_mut().enable();
            let turn = self.lock().turn(&patient);
            match turn {
                Turn::Write(fill) => {
                    // There may be more for another worker.
                    self.came.notify_one();
                    return Some(*fill);
                }
                Turn::Wait => drop(tokio::time::timeout(LOOK_AGAIN, came).await),
                Turn::Nothing => came.await,
                Turn::Over => return None,
            }
        }
    }

    /// Whether a chunk that was taken is still to be stored.
    pub(super) fn is_wanted(&self, key: &ChunkKey) -> bool {
        self.lock().known.get(key).is_some_and(Known::is_wanted)
    }

    /// A chunk that was taken is written, or given up for a reason: the other revisions that want
    /// it.
    pub(super) fn done(
        &self,
        key: &ChunkKey,
        why_not: Option<&'static str>,
    ) -> Vec<(Revision, Option<Hold>)> {
        let mut state = self.lock();
        if let Some((_, why)) = state.hurried.get_mut(key) {
            *why = why_not;
        }
        let known = state.known.remove(key);
        drop(state);
        self.ended.notify_waiters();
        known.map(|known| known.also).unwrap_or_default()
    }

    /// Waits until the chunk neither waits nor is being written; why it was given up, if it was
    /// meanwhile.
    pub(super) async fn settled(&self, key: &ChunkKey) -> Option<&'static str> {
        let hurry = Hurry::new(self, *key);
        loop {
            let ended = self.ended.notified();
            tokio::pin!(ended);
            ended.as_mut().enable();
            let over = self.lock().ended(key);
            if let Some(why_not) = over {
                drop(hurry);
                return why_not;
            }
            ended.await;
        }
    }

    /// Waits until nothing waits and nothing is being written.
    pub(super) async fn drained(&self) {
        loop {
            let ended = self.ended.notified();
            tokio::pin!(ended);
            ended.as_mut().enable();
            if self.lock().known.is_empty() {
                return;
            }
            ended.await;
        }
    }

    /// Takes nothing in any more; what waits is written without patience.
    pub(super) fn close(&self) {
        self.lock().closed = true;
        self.came.notify_waiters();
        self.came.notify_one();
    }

    /// Forgets what waits for these revisions; what is being written for them is not wanted any
    /// more. What is forgotten is to be dropped without a lock.
    pub(super) fn forget(&self, revisions: &[Revision]) -> Forgotten {
        self.forget_where(|revision| revisions.contains(revision))
    }

    /// Forgets what waits.
    pub(super) fn give_up(&self) -> Forgotten {
        self.forget_where(|_| true)
    }

    fn forget_where(&self, unwanted: impl Fn(&Revision) -> bool) -> Forgotten {
        // With nobody left, `also` of what is dropped below is empty: no hold ends under the lock.
        let mut state = self.lock();
        let State { waiting, known, .. } = &mut *state;
        let also = known.values_mut().flat_map(|known| known.forget(&unwanted)).collect();
        let is_wanted = |fill: &Fill| known.get(&fill.spec.key).is_some_and(Known::is_wanted);
        let fills: Vec<Fill> =
            waiting.extract_if(.., |_, fill| !is_wanted(fill)).map(|(_, fill)| fill).collect();
        fills.iter().for_each(|fill| drop(known.remove(&fill.spec.key)));
        drop(state);
        self.came.notify_waiters();
        self.ended.notify_waiters();
        Forgotten { fills, _also: also }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a worker is to do.
enum Turn {
    Write(Box<Fill>),
    /// Chunks wait, and can.
    Wait,
    Nothing,
    /// Nothing will come any more.
    Over,
}

/// What is not to be written any more.
#[derive(Debug)]
pub(super) struct Forgotten {
    fills: Vec<Fill>,
    _also: Vec<(Revision, Option<Hold>)>,
}

impl Forgotten {
    /// How many chunks.
    pub(super) fn len(&self) -> usize {
        self.fills.len()
    }
}

impl State {
    /// Whether a chunk neither waits nor is being written; why it was given up, then.
    fn ended(&self, key: &ChunkKey) -> Option<Option<&'static str>> {
        let over = !self.known.contains_key(key);
        over.then(|| self.hurried.get(key).and_then(|(_, why)| *why))
    }

    fn turn(&mut self, patient: impl Fn(usize) -> bool) -> Turn {
        if self.waiting.is_empty() {
            return if self.closed { Turn::Over } else { Turn::Nothing };
        }
        // Whoever drains the tier waits for it too.
        let hurried = self.closed || !patient(self.waiting.len());
        self.take(hurried).map_or(Turn::Wait, |fill| Turn::Write(Box::new(fill)))
    }

    /// The first chunk that is hurried; the first of all if all are.
    fn take(&mut self, all_hurried: bool) -> Option<Fill> {
        let hurried = self.hurried.keys().filter_map(|key| Some(self.known.get(key)?.number));
        let hurried = hurried.filter(|number| self.waiting.contains_key(number));
        let number = match hurried.min() {
            Some(number) => number,
            None if all_hurried => self.waiting.keys().next().copied()?,
            None => return None,
        };
        self.waiting.remove(&number)
    }
}

/// Someone waits for a chunk to be stored.
struct Hurry<'a> {
    fills: &'a Fills,
    key: ChunkKey,
}

impl<'a> Hurry<'a> {
    fn new(fills: &'a Fills, key: ChunkKey) -> Self {
        fills.lock().hurried.entry(key).or_default().0 += 1;
        fills.came.notify_one();
        Self { fills, key }
    }
}

impl Drop for Hurry<'_> {
    fn drop(&mut self) {
        let mut state = self.fills.lock();
        if let Some((count, _)) = state.hurried.get_mut(&self.key) {
            *count -= 1;
            if *count == 0 {
                state.hurried.remove(&self.key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fill(n: u8) -> Fill {
        let spec = ChunkSpec { index: 0, key: ChunkKey([n; 32]), extents: Vec::new(), bytes: 1 };
        let revision = Revision([n; 32]);
        Fill { spec: Arc::new(spec), digest: [0; 32], revision, hold: None }
    }

    fn name(fill: Option<Fill>) -> Option<u8> {
        fill.map(|fill| fill.spec.key.0[0])
    }

    #[tokio::test(start_paused = true)]
    async fn chunks_wait_while_they_can_and_go_in_order() {
        let fills = Fills::default();
        (1..=3).for_each(|n| assert!(fills.offer(fill(n)) && fills.offer(fill(n))));
        assert_eq!(fills.waiting(), 3);
        let never = Duration::from_secs(3600);
        let patient = fills.next(|_| true);
        tokio::time::timeout(never, patient).await.unwrap_err();
        let patient_with_two = |waiting| waiting <= 2;
        assert_eq!(name(fills.next(patient_with_two).await), Some(1));
        tokio::time::timeout(never, fills.next(patient_with_two)).await.unwrap_err();
        assert_eq!(name(fills.next(|_| false).await), Some(2));
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_for_a_chunk_hurries_it() {
        let fills = Fills::default();
        (1..=3).for_each(|n| assert!(fills.offer(fill(n))));
        let (third, nothing) = (ChunkKey([3; 32]), ChunkKey([9; 32]));
        assert_eq!(fills.settled(&nothing).await, None);
        let writer = async {
            let taken = name(fills.next(|_| true).await);
            assert!(fills.done(&third, Some("why")).is_empty());
            taken
        };
        let (taken, why_not) = tokio::join!(writer, fills.settled(&third));
        assert_eq!((taken, why_not), (Some(3), Some("why")));
        assert!(fills.lock().hurried.is_empty());
    }

    #[tokio::test]
    async fn others_want_it_too_and_what_is_taken_can_be_unwanted() {
        let fills = Fills::default();
        let other = |revision| Fill { revision: Revision([revision; 32]), ..fill(1) };
        for revision in [1, 5, 5, 1] {
            assert!(fills.offer(other(revision)));
        }
        let taken = fills.next(|_| false).await.unwrap();
        assert!(fills.is_wanted(&taken.spec.key));
        assert_eq!(fills.forget(&[Revision([1; 32])]).len(), 0);
        assert!(fills.is_wanted(&taken.spec.key), "another one wants it");
        let also = fills.done(&taken.spec.key, None);
        assert_eq!(also.iter().map(|(also, _)| also.0[0]).collect::<Vec<_>>(), [5]);
        assert!(fills.offer(other(1)) && fills.offer(other(5)));
        assert_eq!(fills.forget(&[Revision([1; 32])]).len(), 0, "it waits for another one");
        let taken = fills.next(|_| false).await.unwrap();
        assert_eq!(fills.forget(&[Revision([5; 32])]).len(), 0);
        assert!(!fills.is_wanted(&taken.spec.key));
    }

    #[tokio::test(start_paused = true)]
    async fn closed_it_writes_what_waits_and_ends() {
        let fills = Fills::default();
        assert!(fills.offer(fill(1)));
        fills.close();
        assert!(!fills.offer(fill(2)));
        assert_eq!(name(fills.next(|_| true).await), Some(1));
        assert_eq!(name(fills.next(|_| true).await), None);
        let fills = Fills::default();
        assert!(fills.offer(fill(1)) && fills.offer(fill(2)));
        assert_eq!(fills.forget(&[Revision([2; 32])]).len(), 1);
        fills.settled(&ChunkKey([2; 32])).await;
        fills.close();
        assert_eq!(fills.give_up().len(), 1);
        fills.settled(&ChunkKey([1; 32])).await;
        assert_eq!(name(fills.next(|_| true).await), None);
    }
}
