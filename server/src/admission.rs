//! Admission: decides at once, or queues within bounds.
//!
//! [`Admission::admit`] gives an [`AdmissionPermit`], the first witness of a load's path. The
//! permit guarantees a minimum window of slots for as long as it lives, so that a load which
//! streams through a pool smaller than its checkpoint always makes progress;
//! [`AdmissionPermit::slot`] hands out the tokens of that window and, while there are some, spare
//! ones. A [`WindowSlot`] travels with the slot it covers and returns its token when dropped.
//!
//! The decisions are in [`queue`]; this file adds the waiting. A waiter that is dropped withdraws
//! what it asked for, and gives back what it was handed in the same instant.
//!
//! Nothing here times out on its own: deadlines cut from outside. The one exception is a pool that
//! does not move at all ([`Admission::stall`]): then the holder of most slots is named.

#[cfg(test)]
mod fair_tests;
mod gang;
mod line;
mod pace;
mod permit;
pub(crate) mod queue;
mod refusal;
mod width;
mod withdrawn;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;

use gang::Gangs;
use pace::{Pace, Place};
use queue::{Decision, Limits, Queue, Ticket};
use refusal::{Holding, SlowQueue};
use width::{PATIENCE, Width};

pub(crate) use gang::Part;
pub(crate) use permit::{AdmissionPermit, WindowSlot};
pub(crate) use queue::{Lane, What};
pub(crate) use refusal::{AdmissionError, Holder};
pub(crate) use withdrawn::Withdrawn;

/// How often one that waits looks whether it has waited for long enough to start beside others.
const LOOK_AGAIN: Duration = Duration::from_millis(500);

/// Depths and ages, for status and metrics.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LaneDepth {
    /// The lane.
    pub(crate) lane: Lane,
    /// Loads waiting in it.
    pub(crate) depth: usize,
    /// The bound over both lanes.
    pub(crate) limit: usize,
    /// Age of the oldest one.
    pub(crate) oldest_wait: Duration,
}

/// What a waiter is told; nothing if the daemon drains.
type Answer = Result<Decision, AdmissionError>;

/// The admission of one domain.
#[derive(Debug)]
pub(crate) struct Admission {
    shared: Arc<Shared>,
    stall: Duration,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    /// Whoever takes tokens away may have all of them now.
    paid: Notify,
}

#[derive(Debug)]
struct State {
    queue: Queue,
    /// Of those that wait for a place.
    pace: Pace,
    /// Of those that run.
    width: Width,
    gangs: Gangs,
    waiters: HashMap<Ticket, oneshot::Sender<Answer>>,
    /// Who runs, or still has tokens out although its load is over.
    holders: HashMap<Ticket, Held>,
    moved: Instant,
    /// How long loads waited for slots although there was a place, and since when they do again.
    short: Duration,
    short_since: Option<Instant>,
    /// Tokens out, and those of them whose slots are lent to clients.
    out: usize,
    lent: usize,
}

/// A holder and what it has out.
#[derive(Debug)]
struct Held {
    holder: Holder,
    /// Until when somebody waits for it.
    until: Option<Instant>,
    tokens: usize,
    /// When it had none before.
    since: Instant,
    over: bool,
}

impl Admission {
    /// An admission over an empty pool; [`Admission::grow`] adds slots. `stall` is how long the
    /// pool may stand still before a waiter is refused.
    pub(crate) fn new(limits: Limits, stall: Duration) -> Self {
        let state = State {
            queue: Queue::new(limits),
            pace: Pace::default(),
            width: Width::new(Instant::now()),
            gangs: Gangs::default(),
            waiters: HashMap::new(),
            holders: HashMap::new(),
            moved: Instant::now(),
            short: Duration::ZERO,
            short_since: None,
            out: 0,
            lent: 0,
        };
        let shared = Shared { state: Mutex::new(state), paid: Notify::new() };
        Self { shared: Arc::new(shared), stall }
    }

    /// The pool has `slots` more.
    pub(crate) fn grow(&self, slots: usize) {
        let mut state = self.shared.lock();
        state.queue.grow(slots);
        state.dispatch();
    }

    /// Takes the tokens of so many slots away, as they come free and before anybody else gets one.
    /// One call at a time. Dropped, like its result, it gives back what it has.
    pub(crate) async fn withdraw(&self, slots: usize) -> Withdrawn {
        let withdrawn = Withdrawn { shared: Arc::clone(&self.shared) };
        self.shared.lock().queue.withdraw(slots);
        while self.shared.lock().queue.owed() > 0 {
            // It keeps one notification: what comes between look and wait is not missed.
            self.shared.paid.notified().await;
        }
        withdrawn
    }

    /// Tokens that are to be taken away and have not come free yet.
    pub(crate) fn owed(&self) -> usize {
        self.shared.lock().queue.owed()
    }

    /// Refuses every load from now on, and those that wait.
    pub(crate) fn drain(&self) {
        let mut state = self.shared.lock();
        for ticket in state.queue.drain() {
            // Dropping the sender is the message.
            state.waiters.remove(&ticket);
            state.holders.remove(&ticket);
        }
        state.keep_time();
    }

    /// Refuses a load that somebody waits for and that would wait here for too much of the time it
    /// has: behind those that go before it, which are not all of a user who asks for much more.
    /// The ranks of one load are all refused, or none.
    pub(crate) fn check_wait(
        &self,
        part: &Part<'_>,
        remaining: Duration,
    ) -> Result<(), AdmissionError> {
        let mut state = self.shared.lock();
        let State { queue, pace, gangs, .. } = &mut *state;
        let now = Instant::now();
        pace.asked(now);
        // Of those that belong together the others may not be brought yet.
        let is_whole = part.rank.is_none_or(|(_, ranks)| ranks <= 1);
        if is_whole && queue.would_ride(part.what) {
            return Ok(());
        }
        let slow = gangs.answer(part, now, || {
            let ahead = queue.ahead(Lane::Interactive, part.uid);
            let place = Place { ahead, active: queue.counted() };
            let wait = pace.too_long(place, remaining, now)?;
            Some(SlowQueue { depth: queue.depth(Lane::Interactive), wait })
        });
        match slow {
            Some(SlowQueue { depth, wait }) => Err(AdmissionError::QueueSlow { depth, wait }),
            None => Ok(()),
        }
    }

    /// Waits for a place among the active loads.
    #[cfg(test)]
    pub(crate) async fn admit(
        &self,
        lane: Lane,
        holder: Holder,
    ) -> Result<AdmissionPermit, AdmissionError> {
        self.admit_until(lane, holder, None).await
    }

    /// Waits for a place among the active loads. A load that somebody waits for until a given time is
    /// refused while it waits, as soon as it is known that others before it take too much of that
    /// time; and when its turn comes, if others wait too and it would not end in time: its place is
    /// worth more to them.
    pub(crate) async fn admit_until(
        &self,
        lane: Lane,
        holder: Holder,
        until: Option<Instant>,
    ) -> Result<AdmissionPermit, AdmissionError> {
        let (ticket, granted) = {
            let mut state = self.shared.lock();
            let (ticket, instead) =
                state.queue.offer(lane, (holder.uid, holder.what), Instant::now())?;
            if let Some(crowder) = instead {
                state.displace(crowder, |depth| AdmissionError::QueueFull { depth });
            }
            let (sender, granted) = oneshot::channel();
            state.waiters.insert(ticket, sender);
            let held = Held { holder, until, tokens: 0, since: Instant::now(), over: false };
            state.holders.insert(ticket, held);
            state.dispatch();
            (ticket, granted)
        };
        // From here on, dropping the permit withdraws the offer or ends the load.
        let permit =
            AdmissionPermit { shared: Arc::clone(&self.shared), ticket, stall: self.stall };
        self.shared.wait(ticket, granted, self.stall).await?;
        Ok(permit)
    }

    /// A permit for a call that resolves and fetches nothing: at once, or refused.
    pub(crate) fn look_up(&self) -> Result<AdmissionPermit, AdmissionError> {
        let ticket = self.shared.lock().queue.look_up()?;
        Ok(AdmissionPermit { shared: Arc::clone(&self.shared), ticket, stall: self.stall })
    }

    /// Depth and age per lane.
    pub(crate) fn lanes(&self, now: Instant) -> [LaneDepth; 2] {
        let state = self.shared.lock();
        Lane::ALL.map(|lane| LaneDepth {
            lane,
            depth: state.queue.depth(lane),
            limit: state.queue.limits().queued_max,
            oldest_wait: state
                .queue
                .oldest(lane)
                .map_or(Duration::ZERO, |at| now.saturating_duration_since(at)),
        })
    }

    /// Who holds most slots, and how many: in words, if it is not the one that asks.
    pub(crate) fn largest_holder_but(&self, load_id: &str) -> Option<String> {
        let state = self.shared.lock();
        let (ticket, shown) = state.largest_holder()?;
        let held = state.holders.get(&ticket).filter(|held| held.holder.load_id != load_id);
        held.map(|_| shown.to_string())
    }

    /// How long, in all, loads waited to start for want of slots and not of a place.
    pub(crate) fn short_of_slots(&self) -> Duration {
        let state = self.shared.lock();
        state.short + state.short_since.map_or(Duration::ZERO, |since| since.elapsed())
    }

    /// Whether fewer loads run than may.
    pub(crate) fn has_place(&self) -> bool {
        let state = self.shared.lock();
        state.queue.active() < state.queue.limits().active_max
    }

    /// How many of a lane run at once while others wait, by what is known now.
    pub(crate) fn width(&self) -> usize {
        let state = self.shared.lock();
        state.width.limit(true, Instant::now()).min(state.queue.limits().active_max)
    }

    /// How many may run, and wait.
    pub(crate) fn limits(&self) -> Limits {
        self.shared.lock().queue.limits()
    }

    /// Loads that run.
    pub(crate) fn active(&self) -> usize {
        self.shared.lock().queue.active()
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // The queue is consistent after each call, whoever panicked between two of them.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for a decision; gives up when the pool stands still while another load's leases hold
    /// it.
    async fn wait(
        &self,
        ticket: Ticket,
        mut granted: oneshot::Receiver<Answer>,
        stall: Duration,
    ) -> Result<Decision, AdmissionError> {
        let mut limit = Instant::now() + stall;
        loop {
            let look = limit.min(Instant::now() + LOOK_AGAIN);
            if let Ok(answer) = tokio::time::timeout_at(look, &mut granted).await {
                let answer = answer.map_err(|_dropped| AdmissionError::Draining)?;
                return answer;
            }
            let mut state = self.lock();
            if look < limit {
                state.dispatch();
            } else {
                limit = state.next_limit(ticket, limit, stall)?;
            }
        }
    }

    fn give_back(&self, ticket: Ticket, was_lent: bool) {
        let mut state = self.lock();
        state.out -= 1;
        state.token_back(ticket);
        state.lent -= usize::from(was_lent);
        state.queue.give_back(ticket);
        state.moved = Instant::now();
        state.dispatch();
        drop(state);
        self.paid.notify_one();
    }
}

impl State {
    /// A load that waited has to go: for one of a user who has less waiting, or since it is or will
    /// be too late. Why, by the number of those that wait on.
    fn displace(&mut self, ticket: Ticket, why: impl FnOnce(usize) -> AdmissionError) {
        self.queue.finish(ticket);
        self.holders.remove(&ticket);
        let depth = self.queue.queued();
        if let Some(waiter) = self.waiters.remove(&ticket) {
            // One that is gone has nobody to be told.
            waiter.send(Err(why(depth))).ok();
        }
    }

    /// Refuses those of whom it turned out that they would wait for too long. Loads that nobody waits
    /// for, and ranks, of which all start or none, wait on.
    fn shorten(&mut self, now: Instant) {
        for (ticket, wait) in self.too_far_back(now) {
            let depth = self.queue.depth(Lane::Interactive) - 1;
            self.displace(ticket, |_| AdmissionError::QueueSlow { depth, wait });
        }
    }

    fn too_far_back(&self, now: Instant) -> Vec<(Ticket, Duration)> {
        let active = self.queue.counted();
        let mut told = Vec::new();
        for (ticket, ahead) in self.queue.places(Lane::Interactive) {
            // Those behind do not wait for those that go. One that starts next is in nobody's way, or
            // makes way when it does.
            let place = Place { ahead: ahead.saturating_sub(told.len()), active };
            let until = self.holders.get(&ticket).and_then(|held| held.until);
            let Some(until) = until.filter(|_| place.ahead > 0) else { continue };
            let remaining = until.saturating_duration_since(now);
            told.extend(self.pace.turned_out_too_long(place, remaining).map(|wait| (ticket, wait)));
        }
        told
    }

    /// Carries out what can be granted.
    fn dispatch(&mut self) {
        let now = Instant::now();
        self.set_width(now);
        let mut started = false;
        while let Some(decision) = self.queue.decide() {
            let (Decision::Admit(ticket, _) | Decision::Slot(ticket)) = decision;
            let starts = matches!(decision, Decision::Admit(..));
            if starts && !self.starts(ticket) {
                continue;
            }
            started |= starts;
            // A waiter that is gone gives back what it was handed when its guard drops, which is
            // after this lock is free again.
            let waiter = self.waiters.remove(&ticket);
            let _told = waiter.is_some_and(|waiter| waiter.send(Ok(decision)).is_ok());
        }
        self.width.run(self.queue.counted(), now);
        // Prefetches that wait keep nobody else waiting.
        self.pace.looked(self.queue.depth(Lane::Interactive) > 0, now);
        if started {
            self.shorten(now);
        }
        self.keep_time();
    }

    /// How many run at once. Where nobody waits yet, twice as many: a short load then need not wait
    /// behind long ones, and one that comes with others is served with them.
    fn set_width(&mut self, now: Instant) {
        let waited = self.pace.is_waited();
        let width = self.width.limit(waited, now);
        let width = if waited { width } else { width.saturating_mul(2) };
        self.queue.set_width(width, now.checked_sub(PATIENCE));
    }

    /// Whether a load that was admitted starts: not if it would end too late, and another one could
    /// start instead.
    fn starts(&mut self, ticket: Ticket) -> bool {
        let now = Instant::now();
        let lane = self.queue.lane(ticket);
        if self.queue.rides(ticket) {
            // It takes no place of anybody's, and tells nothing of how long one has to wait for that.
            if lane == Some(Lane::Interactive) {
                self.pace.started_beside(now);
            }
            return true;
        }
        let until = self.holders.get(&ticket).and_then(|held| held.until);
        let is_late = |until: Instant| {
            self.pace.is_too_late(self.queue.counted(), until.saturating_duration_since(now))
        };
        let makes_way = self.queue.depth(Lane::Interactive) > 0 && until.is_some_and(is_late);
        if makes_way {
            self.displace(ticket, |depth| AdmissionError::QueueFull { depth });
        } else if lane == Some(Lane::Interactive) {
            self.pace.started(now);
        }
        !makes_way
    }

    /// Counts the time in which loads wait to start for want of slots.
    fn keep_time(&mut self) {
        match (self.queue.waits_for_tokens(), self.short_since) {
            (true, None) => self.short_since = Some(Instant::now()),
            (false, Some(since)) => {
                self.short += since.elapsed();
                self.short_since = None;
            }
            _ => {}
        }
    }

    fn token_out(&mut self, ticket: Ticket) {
        self.out += 1;
        if let Some(held) = self.holders.get_mut(&ticket) {
            if held.tokens == 0 {
                held.since = Instant::now();
            }
            held.tokens += 1;
        }
    }

    fn token_back(&mut self, ticket: Ticket) {
        let Some(held) = self.holders.get_mut(&ticket) else { return };
        held.tokens -= 1;
        if held.over && held.tokens == 0 {
            self.holders.remove(&ticket);
        }
    }

    /// The load is over; its name stays while it has tokens out.
    fn over(&mut self, ticket: Ticket) {
        let Some(held) = self.holders.get_mut(&ticket) else { return };
        held.over = true;
        if held.tokens == 0 {
            self.holders.remove(&ticket);
        }
    }

    /// Until when `ticket` waits on, after nothing was granted until `limit`.
    fn next_limit(
        &self,
        ticket: Ticket,
        limit: Instant,
        stall: Duration,
    ) -> Result<Instant, AdmissionError> {
        if self.moved + stall > limit {
            return Ok(self.moved + stall);
        }
        // A token that is out and not lent is a slot being filled: the origin's own limits tell
        // whether that moves. And a load that waits for a place waits for no slot.
        if self.out > self.lent || self.queue.waits_for_a_place() {
            return Ok(limit + stall);
        }
        match self.largest_holder() {
            // A load that waits for its own client is ended by its own limit, with its own reason.
            Some((holder, _)) if holder == ticket => Ok(limit + stall),
            Some((_, holder)) => Err(AdmissionError::RamExhausted { waited: stall, holder }),
            // Nobody holds anything: the pool is still being populated.
            None => Ok(limit + stall),
        }
    }

    fn largest_holder(&self) -> Option<(Ticket, Holding)> {
        let with_tokens = self.holders.iter().filter(|(_, held)| held.tokens > 0);
        let (ticket, held) = with_tokens.max_by_key(|(_, held)| held.tokens)?;
        let holding = Holding {
            holder: held.holder.clone(),
            slots: held.tokens,
            of: self.queue.capacity(),
            age: held.since.elapsed(),
        };
        Some((*ticket, holding))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use forebay_proto::{Failure, Reason};
    use futures::FutureExt as _;

    use super::*;

    fn holder(id: &str) -> Holder {
        Holder { load_id: id.into(), uid: 7, pid: 9, what: None }
    }

    fn admission(slots: usize) -> Admission {
        let limits = Limits { queued_max: 2, active_max: 2 };
        let admission = Admission::new(limits, Duration::from_secs(10));
        admission.grow(slots);
        admission
    }

    async fn admit(admission: &Admission, id: &str) -> AdmissionPermit {
        admission.admit(Lane::Interactive, holder(id)).await.unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn a_dropped_waiter_leaves_no_trace() {
        let admission = admission(1);
        let first = admit(&admission, "a").await;
        {
            let waiting = admission.admit(Lane::Interactive, holder("b"));
            tokio::pin!(waiting);
            assert!(futures::poll!(&mut waiting).is_pending());
            assert_eq!(admission.lanes(Instant::now())[0].depth, 1);
        }
        assert_eq!(admission.lanes(Instant::now())[0].depth, 0);
        drop(first);
        assert_eq!(admission.active(), 0);
        drop(admit(&admission, "c").await);
    }

    #[tokio::test(start_paused = true)]
    async fn it_is_known_how_long_loads_lacked_slots_and_not_a_place() {
        let admission = admission(1);
        let second = Duration::from_secs(1);
        let holding = admit(&admission, "a").await;
        {
            // There are two places, and one slot.
            let waiting = admission.admit(Lane::Interactive, holder("b"));
            tokio::pin!(waiting);
            assert!(futures::poll!(&mut waiting).is_pending());
            tokio::time::advance(second).await;
            assert_eq!(admission.short_of_slots(), second, "it goes on");
        }
        tokio::time::advance(second).await;
        assert_eq!(admission.short_of_slots(), second, "nobody waits");
        drop(holding);

        let limits = Limits { queued_max: 2, active_max: 1 };
        let admission = Admission::new(limits, Duration::from_secs(10));
        admission.grow(8);
        let holding = admit(&admission, "a").await;
        let waiting = admission.admit(Lane::Interactive, holder("b"));
        tokio::pin!(waiting);
        assert!(futures::poll!(&mut waiting).is_pending());
        tokio::time::advance(second).await;
        assert_eq!(admission.short_of_slots(), Duration::ZERO, "it lacks a place");
        drop(holding);
        drop(waiting.await.unwrap());
    }

    #[tokio::test(start_paused = true)]
    async fn a_grant_that_meets_a_dropped_wish_is_given_back() {
        let admission = admission(1);
        let load = admit(&admission, "a").await;
        let slot = load.slot().await.unwrap();
        {
            let wish = load.slot();
            tokio::pin!(wish);
            assert!(futures::poll!(&mut wish).is_pending());
            drop(slot); // grants the wish, which is never polled again
        }
        drop(load.slot().await.unwrap());
    }

    #[tokio::test(start_paused = true)]
    async fn a_pool_that_stands_still_names_its_holder() {
        let admission = admission(1);
        let load = admit(&admission, "hoarder").await;
        let slot = load.slot().await.unwrap();
        slot.lend();
        let error = admission.admit(Lane::Interactive, holder("b")).await.unwrap_err();
        let failure = Failure::from(error);
        assert_eq!(failure.reason, Reason::RamExhausted);
        assert!(
            failure.message.contains("load hoarder of uid 7 (pid 9) holds 1 of 1"),
            "{failure}"
        );
        for (name, value) in [
            ("holder_load", "hoarder"),
            ("holder_uid", "7"),
            ("holder_pid", "9"),
            ("holder_slots", "1"),
            ("holder_seconds", "10.000"),
        ] {
            assert_eq!(failure.facts.get(name).map(String::as_str), Some(value), "{name}");
        }
        assert_eq!(admission.lanes(Instant::now())[0].depth, 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_load_that_holds_the_pool_itself_is_not_refused_here() {
        let admission = admission(1);
        let load = admit(&admission, "a").await;
        let slot = load.slot().await.unwrap();
        let wish = load.slot();
        tokio::pin!(wish);
        let much_later = tokio::time::sleep(Duration::from_secs(100));
        tokio::select! {
            outcome = &mut wish => panic!("{outcome:?}"),
            () = much_later => {}
        }
        drop(slot);
        wish.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_pool_that_moves_keeps_its_waiters() {
        // One slot; the stall limit is 10 s. The first load gives its slot back and takes it again
        // every 6 s, so the second one waits far beyond the limit and still gets its turn.
        let admission = admission(1);
        let streaming = admit(&admission, "a").await;
        let waiting = admission.admit(Lane::Interactive, holder("b"));
        tokio::pin!(waiting);
        for _ in 0..5 {
            let held = streaming.slot().await.unwrap();
            assert!(futures::poll!(&mut waiting).is_pending());
            tokio::time::sleep(Duration::from_secs(6)).await;
            assert!(futures::poll!(&mut waiting).is_pending());
            drop(held);
        }
        drop(streaming);
        drop(waiting.await.unwrap());
    }

    #[tokio::test(start_paused = true)]
    async fn a_pool_shrinks_behind_its_loads_which_go_on() {
        let admission = admission(4);
        let load = admit(&admission, "a").await;
        let (first, second) = (load.slot().await.unwrap(), load.slot().await.unwrap());
        {
            let given_up = admission.withdraw(3);
            tokio::pin!(given_up);
            assert!(futures::poll!(&mut given_up).is_pending());
            assert_eq!(admission.owed(), 1);
        }
        assert_eq!(admission.owed(), 0);
        drop(load.slot().await.unwrap());
        let shrinking = admission.withdraw(3);
        tokio::pin!(shrinking);
        assert!(futures::poll!(&mut shrinking).is_pending());
        drop(first);
        shrinking.await.spend();
        // One slot is left, which it owns.
        let wish = load.slot();
        tokio::pin!(wish);
        assert!(futures::poll!(&mut wish).is_pending());
        drop(second);
        drop(wish.await.unwrap());
        assert_eq!(load.window_slots(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn draining_refuses_those_that_wait_and_those_that_come() {
        let admission = admission(0);
        let waiting = admission.admit(Lane::Prefetch, holder("a"));
        tokio::pin!(waiting);
        assert!(futures::poll!(&mut waiting).is_pending());
        admission.drain();
        assert!(matches!(waiting.await, Err(AdmissionError::Draining)));
        let late = admission.admit(Lane::Prefetch, holder("b")).await;
        assert!(matches!(late, Err(AdmissionError::Draining)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_full_queue_refuses_at_once_with_a_hint() {
        let admission = admission(0);
        let a = admission.admit(Lane::Prefetch, holder("a"));
        let b = admission.admit(Lane::Prefetch, holder("b"));
        tokio::pin!(a, b);
        assert!(futures::poll!(&mut a).is_pending());
        assert!(futures::poll!(&mut b).is_pending());
        let failure =
            Failure::from(admission.admit(Lane::Prefetch, holder("c")).await.unwrap_err());
        assert_eq!(failure.reason, Reason::QueueFull);
        assert!(failure.retry_after.is_some() && failure.quota.is_some());
        assert_eq!(failure.facts["queue_length"], "2");
    }

    fn whole(uid: u32) -> Part<'static> {
        Part { uid, uri: "file:///m", rank: None, what: What::of("m") }
    }

    #[tokio::test(start_paused = true)]
    async fn a_queue_that_is_too_slow_refuses_at_once_and_only_while_others_wait() {
        let limits = Limits { queued_max: 256, active_max: 2 };
        let admission = Admission::new(limits, Duration::from_secs(1000));
        admission.grow(64);
        let mut running =
            VecDeque::from([admit(&admission, "a").await, admit(&admission, "b").await]);
        let mut waiting = VecDeque::new();
        for _ in 0..60 {
            let mut waiter = Box::pin(admission.admit(Lane::Interactive, holder("c")));
            assert!(futures::poll!(&mut waiter).is_pending());
            waiting.push_back(waiter);
        }
        let second = Duration::from_secs(1);
        admission.check_wait(&whole(7), second).unwrap();
        for _ in 0..20 {
            tokio::time::advance(second / 10).await;
            running.pop_front();
            running.push_back(waiting.pop_front().unwrap().await.unwrap());
        }
        let failure = Failure::from(admission.check_wait(&whole(7), second).unwrap_err());
        assert_eq!(failure.reason, Reason::QueueFull);
        assert!(failure.message.contains("40 loads already wait"), "{failure}");
        assert_eq!(failure.facts["queue_length"], "40");
        assert_eq!(failure.retry_after, Some(Duration::from_millis(4100)));
        // Nor is there a way past it for the rest of a load.
        let part = |rank| Part { rank: Some((rank, 2)), ..whole(7) };
        admission.check_wait(&part(1), second).unwrap_err();
        // Somebody else does not wait behind them.
        admission.check_wait(&whole(8), second).unwrap();
        drop(waiting);
        admission.check_wait(&whole(7), second).unwrap();
        admission.check_wait(&part(0), second).unwrap_err();
        admission.check_wait(&part(0), second).unwrap();
    }

    /// Takes the first out, if it is ready.
    fn first_ready<F: Future + Unpin>(line: &mut VecDeque<F>) -> Option<F::Output> {
        let ready = line.front_mut()?.now_or_never()?;
        line.pop_front();
        Some(ready)
    }

    #[tokio::test(start_paused = true)]
    async fn how_fast_prefetches_start_is_not_how_fast_somebody_is_served() {
        let limits = Limits { queued_max: 256, active_max: 1 };
        let admission = Admission::new(limits, Duration::from_secs(1000));
        admission.grow(64);
        let mut running = vec![admit(&admission, "a").await];
        let wait = |lane| {
            let mut waiter = Box::pin(admission.admit(lane, holder("b")));
            assert!((&mut waiter).now_or_never().is_none());
            waiter
        };
        let mut waiting: [VecDeque<_>; 2] =
            Lane::ALL.map(|lane| (0..60).map(|_| wait(lane)).collect());
        let tenth = Duration::from_millis(100);
        for _ in 0..40 {
            tokio::time::advance(tenth).await;
            running.clear();
            running.extend(waiting.iter_mut().filter_map(first_ready).map(Result::unwrap));
        }
        let [interactive, prefetches] = [0, 1].map(|lane: usize| 60 - waiting[lane].len());
        assert!(interactive + prefetches == 40 && prefetches >= 4, "{interactive}, {prefetches}");
        let interactive = interactive as f64;
        let failure = Failure::from(admission.check_wait(&whole(7), 10 * tenth).unwrap_err());
        // Each of them waits for its turn, and for those of prefetches between.
        let of_each = 40.0 / interactive * 0.1;
        let told = failure.retry_after.unwrap().as_secs_f64() / (61.0 - interactive);
        assert!((0.97..1.03).contains(&(told / of_each)), "{told} s, and it is {of_each}");
    }

    #[tokio::test(start_paused = true)]
    async fn who_waited_for_too_long_to_end_in_time_makes_way() {
        let limits = Limits { queued_max: 256, active_max: 2 };
        let admission = Admission::new(limits, Duration::from_secs(1000));
        admission.grow(64);
        let mut running =
            VecDeque::from([admit(&admission, "a").await, admit(&admission, "b").await]);
        let (now, second) = (Instant::now(), Duration::from_secs(1));
        let mut waiting = VecDeque::new();
        for until in [None; 10] {
            let mut waiter = Box::pin(admission.admit_until(Lane::Interactive, holder("c"), until));
            assert!(futures::poll!(&mut waiter).is_pending());
            waiting.push_back(waiter);
        }
        for _ in 0..10 {
            tokio::time::advance(second).await;
            running.pop_front();
            running.push_back(waiting.pop_front().unwrap().await.unwrap());
        }
        // Each takes two seconds: the first of these has one.
        for until in [12, 20, 15].map(|seconds| Some(now + second * seconds)) {
            let mut waiter = Box::pin(admission.admit_until(Lane::Interactive, holder("c"), until));
            assert!(futures::poll!(&mut waiter).is_pending());
            waiting.push_back(waiter);
        }
        tokio::time::advance(second).await;
        running.pop_front();
        let refused = waiting.pop_front().unwrap().await.unwrap_err();
        assert!(matches!(refused, AdmissionError::QueueFull { .. }), "{refused}");
        running.push_back(waiting.pop_front().unwrap().await.unwrap());
        tokio::time::advance(3 * second).await;
        running.pop_front();
        // It has as little now, and nobody would take its place.
        running.push_back(waiting.pop_front().unwrap().await.unwrap());
        assert_eq!(admission.active(), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_waits_for_long_behind_loads_that_stand_still() {
        let limits = Limits { queued_max: 256, active_max: 64 };
        let admission = Admission::new(limits, Duration::from_secs(1000));
        admission.grow(1024);
        // As much comes with six as with four.
        for active in [6, 4] {
            admission.shared.lock().width.run(active, Instant::now());
            tokio::time::advance(Duration::from_secs(4)).await;
            (0..2000).for_each(|_| admission.shared.lock().width.had_chunk());
        }
        admission.shared.lock().width.run(0, Instant::now());
        assert_eq!(admission.width(), 4);
        let mut stuck = Vec::new();
        for _ in 0..8 {
            stuck.push(admit(&admission, "stuck").await);
        }
        let mut waiting: VecDeque<_> =
            (0..8).map(|_| Box::pin(admission.admit(Lane::Interactive, holder("other")))).collect();
        for waiter in &mut waiting {
            assert!(waiter.now_or_never().is_none(), "twice as many as bring more");
        }
        let begun = Instant::now();
        for waiter in waiting {
            stuck.push(waiter.await.unwrap());
        }
        assert!(begun.elapsed() <= PATIENCE + LOOK_AGAIN, "{:?}", begun.elapsed());
        assert_eq!(stuck.len(), 16);
    }

    #[tokio::test(start_paused = true)]
    async fn who_wants_what_is_brought_is_not_refused_for_a_wait_that_it_has_not() {
        let limits = Limits { queued_max: 256, active_max: 64 };
        let admission = Admission::new(limits, Duration::from_secs(1000));
        admission.grow(1024);
        let tenth = Duration::from_millis(100);
        let of = |what| Holder { what: Some(What::of(what)), ..holder("x") };
        let start = async |what| admission.admit(Lane::Interactive, of(what)).await.unwrap();
        // As much comes with six as with four, and a hundred a second start while others wait.
        for active in [6, 4] {
            admission.shared.lock().width.run(active, Instant::now());
            tokio::time::advance(Duration::from_secs(4)).await;
            (0..2000).for_each(|_| admission.shared.lock().width.had_chunk());
        }
        admission.shared.lock().width.run(0, Instant::now());
        let leader = start("led").await;
        let mut running = VecDeque::new();
        for what in ["a", "b", "c", "d", "a", "b", "c"] {
            running.push_back(start(what).await);
        }
        let mut waiting: VecDeque<_> = (0..40).map(|_| Box::pin(start("e"))).collect();
        waiting.iter_mut().for_each(|waiter| assert!(waiter.now_or_never().is_none()));
        for _ in 0..20 {
            tokio::time::advance(tenth / 10).await;
            running.pop_front();
            running.extend(first_ready(&mut waiting));
        }
        let asks = |what| admission.check_wait(&Part { what: What::of(what), ..whole(7) }, tenth);
        asks("led").unwrap_err();
        // Of each that starts, the seconds.
        let pace = || match asks("f") {
            Err(AdmissionError::QueueSlow { depth, wait }) => {
                wait / u32::try_from(depth + 1).unwrap()
            }
            other => panic!("{other:?}"),
        };
        let known = pace();
        leader.brings(true);
        let rank = Part { what: What::of("led"), rank: Some((0, 2)), ..whole(7) };
        admission.check_wait(&rank, tenth).unwrap_err();
        // As many as may run beside it. The pace of the others is what it was.
        for _ in 0..4 {
            asks("led").unwrap();
            running.push_back(start("led").now_or_never().unwrap());
        }
        asks("led").unwrap_err();
        assert_eq!((admission.active(), pace()), (8, known));
    }

    #[tokio::test(start_paused = true)]
    async fn who_turns_out_to_wait_for_too_long_is_told_at_once() {
        let limits = Limits { queued_max: 256, active_max: 2 };
        let admission = Admission::new(limits, Duration::from_secs(1000));
        admission.grow(64);
        let mut running =
            VecDeque::from([admit(&admission, "a").await, admit(&admission, "b").await]);
        let until = Instant::now() + Duration::from_millis(2020);
        let waits = |until| {
            let mut waiter = Box::pin(admission.admit_until(Lane::Interactive, holder("c"), until));
            assert!((&mut waiter).now_or_never().is_none());
            waiter
        };
        // Nothing is known yet of how fast loads start.
        let mut waiting: VecDeque<_> = (0..100).map(|_| waits(Some(until))).collect();
        // A rank, and one that has the time: both wait on, and hide nobody.
        waiting.push_back(waits(None));
        waiting.push_back(waits(Some(until + Duration::from_secs(600))));
        for _ in 0..8 {
            tokio::time::advance(Duration::from_millis(10)).await;
            running.pop_front();
            running.push_back(waiting.pop_front().unwrap().await.unwrap());
        }
        // Each has 1.94 s, of which it may wait for a quarter, and half as long again.
        let stay = waiting.len() - 2;
        for told in waiting.drain(72..stay) {
            let refused = told.now_or_never().unwrap().unwrap_err();
            assert!(matches!(refused, AdmissionError::QueueSlow { .. }), "{refused}");
        }
        assert_eq!(waiting.len(), 74);
        for waiter in &mut waiting {
            assert!(waiter.now_or_never().is_none());
        }
        assert_eq!(admission.lanes(Instant::now())[0].depth, 74);
    }
}
