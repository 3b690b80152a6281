//! Who may start, and who gets the next slot: the decisions of admission without a clock or a task.
//!
//! ```text
//!  offer ──► lane queues ──admit (needs `guarantee` free tokens)──► active load ──finish──►
//!                                                                     │    ▲
//!                                          want_slot ─► own guarantee │    │ give_back
//!                                                    └► spare queue ──┘    │
//! ```
//!
//! The pool's slots are counted as *tokens*. Each slot that cannot be evicted (being filled or
//! leased) is covered by at least one token, and there are never more tokens out than slots, so the
//! holder of a fresh token always finds a slot that is free or can be evicted. An active load owns
//! `guarantee` tokens for its lifetime; what it holds beyond them is *spare*. Free tokens go first
//! to loads that wait for admission (a minimum for everybody before more for anybody), then to
//! waiting loads in the order they asked.
//!
//! A pool that shrinks has its tokens taken away first, as they come free and before anybody else
//! gets one ([`Queue::withdraw`]): slots go out of use when there are as many tokens less, so that
//! the law above holds at every moment. What an active load owns it keeps, so it goes on; nobody
//! starts and nobody gets more meanwhile.
//!
//! Of each lane at most `width` run, as far as admission knows what is of use
//! ([`width`](super::width)), but for those that have waited for long, and for those that *ride*:
//! somebody waits for them, and what they want is on its way to one that runs. They cost little and
//! keep nobody waiting, so where it is not their turn they start all the same, beside those that are
//! counted, and are not counted themselves; of them too no more than `width` run. If the one goes, one
//! of them brings what is missing, and is counted.
//!
//! In a lane the user goes first whose loads run least ([`line`](super::line)). Between the lanes,
//! interactive goes first; after [`INTERACTIVE_RUN_MAX`] interactive admissions
//! while prefetches wait, one prefetch goes; and one goes where no more of the other lane may run.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};

use tokio::time::Instant;

use super::line::{Line, Waiter, crowder};

/// Interactive admissions in a row while a prefetch waits.
const INTERACTIVE_RUN_MAX: u32 = 4;

/// Guaranteed slots of a load, at most: 4 chunks of 8 MiB keep four connections busy.
const GUARANTEE_SLOTS_MAX: usize = 4;

/// Share of the pool that one load's guarantee may take, as a divisor.
const GUARANTEE_POOL_DIVISOR: usize = 8;

/// Whose work it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Lane {
    /// Someone waits for the bytes.
    Interactive,
    /// Ahead of need.
    Prefetch,
}

impl Lane {
    /// Both lanes, in order of precedence.
    pub(crate) const ALL: [Self; 2] = [Self::Interactive, Self::Prefetch];

    /// The name on the wire.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Interactive => "interactive",
            Self::Prefetch => "prefetch",
        }
    }

    fn index(self) -> usize {
        match self {
            Self::Interactive => 0,
            Self::Prefetch => 1,
        }
    }
}

/// One request of admission, for its whole life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Ticket(pub(crate) u64);

/// What a load wants, as a digest of its description: two with the same want the same bytes, as far as
/// can be told before they are looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct What(u64);

impl What {
    /// Of whatever describes it.
    pub(crate) fn of(description: impl Hash) -> Self {
        let mut hasher = DefaultHasher::new();
        description.hash(&mut hasher);
        Self(hasher.finish())
    }
}

/// The bounds of admission.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// Loads that wait, over both lanes.
    pub(crate) queued_max: usize,
    /// Loads that run.
    pub(crate) active_max: usize,
}

/// Why an offer is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// The queue is at its bound.
    QueueFull {
        /// Loads waiting.
        depth: usize,
    },
    /// The daemon is going away.
    Draining,
}

/// A decision to carry out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Decision {
    /// This load may start, with so many guaranteed slots.
    Admit(Ticket, usize),
    /// This load got the slot token it asked for.
    Slot(Ticket),
}

#[derive(Debug, Clone, Copy)]
struct Active {
    lane: Lane,
    user: u32,
    what: Option<What>,
    /// Most of what it wants is on its way to it.
    brings: bool,
    /// It did not start in its turn, but since this was on its way to another one.
    rides: bool,
    guarantee: usize,
    held: usize,
    peak: usize,
    wants_slot: bool,
}

/// Who starts next.
#[derive(Debug, Clone, Copy)]
enum Next {
    /// Whose turn it is.
    InTurn(Lane),
    /// One that rides.
    Rides(Ticket),
}

/// The state of admission; see the module's head.
#[derive(Debug)]
pub(crate) struct Queue {
    limits: Limits,
    /// Loads of one lane that run at most, for now: of both together it would let prefetches keep
    /// out whom somebody waits for.
    width: usize,
    /// Who came before that waits for no place of those.
    hurries: Option<Instant>,
    capacity: usize,
    free: usize,
    /// Tokens that are to be taken away and have not come free yet: while there are any, none is
    /// free.
    owed: usize,
    /// Tokens that were taken away; part of the capacity until their slots are out of use.
    withdrawn: usize,
    lanes: [Line; 2],
    active: BTreeMap<Ticket, Active>,
    lookups: BTreeSet<Ticket>,
    spare_waiters: VecDeque<Ticket>,
    interactive_run: u32,
    next_ticket: u64,
    draining: bool,
}

impl Queue {
    pub(crate) fn new(limits: Limits) -> Self {
        Self {
            limits,
            width: usize::MAX,
            hurries: None,
            capacity: 0,
            free: 0,
            owed: 0,
            withdrawn: 0,
            lanes: Default::default(),
            active: BTreeMap::new(),
            lookups: BTreeSet::new(),
            spare_waiters: VecDeque::new(),
            interactive_run: 0,
            next_ticket: 0,
            draining: false,
        }
    }

    /// Of each lane so many may run from now on, and more if others wait that came before `hurries`.
    /// Those that do go on.
    pub(crate) fn set_width(&mut self, width: usize, hurries: Option<Instant>) {
        (self.width, self.hurries) = (width, hurries);
    }

    /// The lane of a load that runs.
    pub(crate) fn lane(&self, ticket: Ticket) -> Option<Lane> {
        self.active.get(&ticket).map(|load| load.lane)
    }

    /// The pool has `slots` more.
    pub(crate) fn grow(&mut self, slots: usize) {
        self.capacity += slots;
        self.freed(slots);
    }

    /// So many slots are to go out of use: their tokens are taken away as they come free.
    pub(crate) fn withdraw(&mut self, slots: usize) {
        self.owed += slots;
        let free = std::mem::take(&mut self.free);
        self.freed(free);
    }

    /// What is still to be taken away.
    pub(crate) fn owed(&self) -> usize {
        self.owed
    }

    /// The slots of what was taken away are out of use.
    pub(crate) fn withdrawn(&mut self) {
        debug_assert_eq!(self.owed, 0);
        self.capacity -= std::mem::take(&mut self.withdrawn);
    }

    /// The slots stay in use.
    pub(crate) fn keep(&mut self) {
        self.owed = 0;
        let back = std::mem::take(&mut self.withdrawn);
        self.freed(back);
    }

    /// Tokens come free: what is owed goes first.
    fn freed(&mut self, tokens: usize) {
        let taken = tokens.min(self.owed);
        self.owed -= taken;
        self.withdrawn += taken;
        self.free += tokens - taken;
    }

    /// Takes no more offers, and drops those that wait; returns them.
    pub(crate) fn drain(&mut self) -> Vec<Ticket> {
        self.draining = true;
        self.lanes.iter_mut().flat_map(Line::drain).collect()
    }

    /// A user's load asks to start. In a full queue it may get the place of another one, which is
    /// refused instead.
    pub(crate) fn offer(
        &mut self,
        lane: Lane,
        (user, what): (u32, Option<What>),
        now: Instant,
    ) -> Result<(Ticket, Option<Ticket>), Refusal> {
        if self.draining {
            return Err(Refusal::Draining);
        }
        let depth = self.queued();
        // One that rides does not wait.
        let rides = || lane == Lane::Interactive && what.is_some_and(|what| self.would_ride(what));
        let is_full = depth >= self.limits.queued_max && !rides();
        let instead = if is_full { crowder(&mut self.lanes, user) } else { None };
        if is_full && instead.is_none() {
            return Err(Refusal::QueueFull { depth });
        }
        let ticket = self.ticket();
        self.lanes[lane.index()].push(ticket, (user, what), now);
        Ok((ticket, instead))
    }

    /// A call that only looks things up starts at once or is refused: it needs no slot, so it does
    /// not wait behind loads that do. As many as loads may run.
    pub(crate) fn look_up(&mut self) -> Result<Ticket, Refusal> {
        if self.draining {
            return Err(Refusal::Draining);
        }
        let depth = self.lookups.len();
        if depth >= self.limits.active_max {
            return Err(Refusal::QueueFull { depth });
        }
        let ticket = self.ticket();
        self.lookups.insert(ticket);
        Ok(ticket)
    }

    fn ticket(&mut self) -> Ticket {
        self.next_ticket += 1;
        Ticket(self.next_ticket)
    }

    /// An active load asks for one more slot token. At most one wish at a time.
    pub(crate) fn want_slot(&mut self, ticket: Ticket) {
        let Some(load) = self.active.get_mut(&ticket) else { return };
        debug_assert!(!load.wants_slot, "one wish at a time");
        load.wants_slot = true;
        self.spare_waiters.push_back(ticket);
    }

    /// A wish is withdrawn. True if it was still waiting.
    pub(crate) fn unwant_slot(&mut self, ticket: Ticket) -> bool {
        let Some(load) = self.active.get_mut(&ticket) else { return false };
        self.spare_waiters.retain(|waiter| *waiter != ticket);
        std::mem::take(&mut load.wants_slot)
    }

    /// A slot token comes back.
    pub(crate) fn give_back(&mut self, ticket: Ticket) {
        let Some(load) = self.active.get_mut(&ticket) else {
            // The load finished first: all its tokens became free as they came back.
            self.freed(1);
            debug_assert!(self.free <= self.capacity);
            return;
        };
        debug_assert!(load.held > 0);
        let spare = load.held > load.guarantee;
        load.held -= 1;
        if spare {
            self.freed(1);
        }
    }

    /// The load is over, or its offer is withdrawn. Tokens it still holds come back one by one.
    pub(crate) fn finish(&mut self, ticket: Ticket) {
        for lane in &mut self.lanes {
            lane.remove(ticket);
        }
        self.spare_waiters.retain(|waiter| *waiter != ticket);
        self.lookups.remove(&ticket);
        if let Some(load) = self.active.remove(&ticket) {
            self.freed(load.guarantee.saturating_sub(load.held));
            self.count_next(load.what);
        }
    }

    /// If all that want this ride, the first of them has it brought from now on.
    fn count_next(&mut self, what: Option<What>) {
        let mut same: Vec<_> =
            self.active.values_mut().filter(|load| what.is_some() && load.what == what).collect();
        if same.iter().all(|load| load.rides)
            && let Some(first) = same.first_mut()
        {
            first.rides = false;
        }
    }

    /// The next thing that can be granted, if anything can.
    pub(crate) fn decide(&mut self) -> Option<Decision> {
        self.decide_own().or_else(|| self.decide_admission()).or_else(|| self.decide_spare())
    }

    /// A load below its guarantee never waits.
    fn decide_own(&mut self) -> Option<Decision> {
        let at = self.spare_waiters.iter().position(|ticket| {
            self.active.get(ticket).is_some_and(|load| load.held < load.guarantee)
        })?;
        let ticket = self.spare_waiters.remove(at)?;
        self.hand_token(ticket)
    }

    fn decide_admission(&mut self) -> Option<Decision> {
        let guarantee = self.guarantee();
        if guarantee == 0 || self.free < guarantee {
            return None;
        }
        let next = self.next()?;
        let (lane, waiter) = match next {
            Next::InTurn(lane) => (lane, self.lanes[lane.index()].next(running_in(&self.active))?),
            Next::Rides(ticket) => {
                let lane = Lane::Interactive;
                (lane, self.lanes[lane.index()].take(ticket)?)
            }
        };
        let rides = matches!(next, Next::Rides(_));
        self.interactive_run = match lane {
            Lane::Interactive if rides => self.interactive_run,
            Lane::Interactive => self.interactive_run + 1,
            Lane::Prefetch => 0,
        };
        self.free -= guarantee;
        let Waiter { ticket, user, what, .. } = waiter;
        let load = Active {
            lane,
            user,
            what,
            brings: false,
            rides,
            guarantee,
            held: 0,
            peak: 0,
            wants_slot: false,
        };
        self.active.insert(ticket, load);
        Some(Decision::Admit(ticket, guarantee))
    }

    /// Who starts next, if somebody waits for whom there is a place.
    fn next(&self) -> Option<Next> {
        if self.active.len() >= self.limits.active_max {
            return None;
        }
        let turn = match self.interactive_run >= INTERACTIVE_RUN_MAX {
            false => [Lane::Interactive, Lane::Prefetch],
            true => [Lane::Prefetch, Lane::Interactive],
        };
        let waits = |lane: &Lane| self.depth(*lane) > 0;
        let in_turn = turn.into_iter().find(|lane| waits(lane) && self.has_place(*lane));
        in_turn.map(Next::InTurn).or_else(|| self.rider().map(Next::Rides))
    }

    fn has_place(&self, lane: Lane) -> bool {
        let counted = || self.active.values().filter(|load| !load.rides);
        let is_full = counted().count() >= self.width;
        let is_narrow = is_full && counted().filter(|load| load.lane == lane).count() >= self.width;
        let hurries = || self.hurries.zip(self.oldest(lane)).is_some_and(|(by, came)| came <= by);
        !is_narrow || hurries()
    }

    /// The first that waits for what is on its way already.
    fn rider(&self) -> Option<Ticket> {
        let brought: Vec<_> = self.brought().collect();
        if brought.is_empty() || !self.may_one_ride() {
            return None;
        }
        self.lanes[Lane::Interactive.index()].first_that_wants(&brought)
    }

    fn may_one_ride(&self) -> bool {
        self.active.len() - self.counted() < self.width
    }

    /// Whether a load that wants this would start at once, since that is on its way already.
    pub(crate) fn would_ride(&self, what: What) -> bool {
        let has_room = self.active.len() < self.limits.active_max && self.free >= self.guarantee();
        has_room && self.may_one_ride() && self.brought().any(|brought| brought == what)
    }

    /// What is on its way right now.
    fn brought(&self) -> impl Iterator<Item = What> + '_ {
        self.active.values().filter(|load| load.brings).filter_map(|load| load.what)
    }

    /// Whether most of what `ticket` wants is still to be brought to it, and on its way. Of one that
    /// rides what is missing is what was there and is no more: nobody rides on that.
    pub(crate) fn brings(&mut self, ticket: Ticket, yes: bool) {
        if let Some(load) = self.active.get_mut(&ticket) {
            load.brings = yes && !load.rides;
        }
    }

    /// Whether `ticket` did not start in its turn, but since what it wants was on its way.
    pub(crate) fn rides(&self, ticket: Ticket) -> bool {
        self.active.get(&ticket).is_some_and(|load| load.rides)
    }

    /// Loads that run, without those that ride.
    pub(crate) fn counted(&self) -> usize {
        self.active.values().filter(|load| !load.rides).count()
    }

    fn decide_spare(&mut self) -> Option<Decision> {
        // Free tokens are kept together for a load that could start with them.
        if self.free == 0 || self.next().is_some() {
            return None;
        }
        let ticket = self.spare_waiters.pop_front()?;
        self.free -= 1;
        self.hand_token(ticket)
    }

    fn hand_token(&mut self, ticket: Ticket) -> Option<Decision> {
        let load = self.active.get_mut(&ticket)?;
        load.held += 1;
        load.peak = load.peak.max(load.held);
        load.wants_slot = false;
        Some(Decision::Slot(ticket))
    }

    /// Guaranteed slots of the next load to start.
    fn guarantee(&self) -> usize {
        (self.capacity / GUARANTEE_POOL_DIVISOR).clamp(1, GUARANTEE_SLOTS_MAX).min(self.capacity)
    }

    /// Whether those that wait to start wait for a place, with tokens enough.
    pub(crate) fn waits_for_a_place(&self) -> bool {
        self.next().is_none() && self.free >= self.guarantee()
    }

    /// Whether those that wait to start wait for tokens: there is a place.
    pub(crate) fn waits_for_tokens(&self) -> bool {
        self.next().is_some()
    }

    /// Loads that wait to start.
    pub(crate) fn queued(&self) -> usize {
        self.lanes.iter().map(Line::len).sum()
    }

    /// Loads that wait to start in `lane`.
    pub(crate) fn depth(&self, lane: Lane) -> usize {
        self.lanes[lane.index()].len()
    }

    /// Of those that wait in `lane`, how many would start before another one of `user`.
    pub(crate) fn ahead(&self, lane: Lane, user: u32) -> usize {
        self.lanes[lane.index()].ahead(user, |user| self.running(user))
    }

    /// Those that wait in `lane`, in the order in which they came, and how many start before each.
    pub(crate) fn places(&self, lane: Lane) -> Vec<(Ticket, usize)> {
        self.lanes[lane.index()].places(|user| self.running(user))
    }

    /// Loads of a user that run.
    fn running(&self, user: u32) -> usize {
        running_in(&self.active)(user)
    }

    /// When the first of those that wait in `lane` was offered.
    pub(crate) fn oldest(&self, lane: Lane) -> Option<Instant> {
        self.lanes[lane.index()].oldest()
    }

    /// Loads that run.
    pub(crate) fn active(&self) -> usize {
        self.active.len()
    }

    /// Slots in the pool.
    pub(crate) fn capacity(&self) -> usize {
        self.capacity
    }

    /// The bound on loads that wait.
    pub(crate) fn limits(&self) -> Limits {
        self.limits
    }

    /// The most tokens `ticket` held at one time.
    pub(crate) fn peak(&self, ticket: Ticket) -> usize {
        self.active.get(&ticket).map_or(0, |load| load.peak)
    }
}

/// Loads of a user that run, without those that took no place of anybody's.
fn running_in(active: &BTreeMap<Ticket, Active>) -> impl Fn(u32) -> usize {
    |user| active.values().filter(|load| load.user == user && !load.rides).count()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn queue(slots: usize) -> Queue {
        let mut queue = Queue::new(Limits { queued_max: 4, active_max: 3 });
        queue.grow(slots);
        queue
    }

    fn offer(queue: &mut Queue, lane: Lane) -> Ticket {
        queue.offer(lane, (0, None), Instant::now()).unwrap().0
    }

    #[test]
    fn nothing_starts_before_the_pool_has_slots() {
        let mut queue = queue(0);
        let load = offer(&mut queue, Lane::Interactive);
        assert_eq!(queue.decide(), None);
        queue.grow(1);
        assert_eq!(queue.decide(), Some(Decision::Admit(load, 1)));
    }

    #[test]
    fn the_queue_is_bounded_and_a_withdrawn_offer_leaves_it() {
        let mut queue = queue(0);
        let tickets: Vec<_> = (0..4).map(|_| offer(&mut queue, Lane::Prefetch)).collect();
        let refused = queue.offer(Lane::Interactive, (0, None), Instant::now());
        assert_eq!(refused, Err(Refusal::QueueFull { depth: 4 }));
        queue.finish(tickets[1]);
        assert_eq!(queue.queued(), 3);
    }

    #[test]
    fn interactive_goes_first_but_never_starves_prefetch() {
        let mut queue = Queue::new(Limits { queued_max: 64, active_max: 64 });
        queue.grow(1000);
        let prefetch = offer(&mut queue, Lane::Prefetch);
        for _ in 0..6 {
            offer(&mut queue, Lane::Interactive);
        }
        let order: Vec<_> = std::iter::from_fn(|| queue.decide()).collect();
        let at = order.iter().position(|d| matches!(d, Decision::Admit(t, _) if *t == prefetch));
        assert_eq!(at, Some(INTERACTIVE_RUN_MAX as usize));
    }

    #[test]
    fn a_waiting_load_comes_before_more_slots_for_a_running_one() {
        let mut queue = queue(2);
        let first = offer(&mut queue, Lane::Interactive);
        assert_eq!(queue.decide(), Some(Decision::Admit(first, 1)));
        queue.want_slot(first);
        assert_eq!(queue.decide(), Some(Decision::Slot(first)));
        let second = offer(&mut queue, Lane::Interactive);
        queue.want_slot(first);
        assert_eq!(queue.decide(), Some(Decision::Admit(second, 1)));
        assert_eq!(queue.decide(), None, "no spare token is left");
        queue.give_back(first);
        assert_eq!(queue.decide(), Some(Decision::Slot(first)), "its own guarantee is free again");
    }

    #[test]
    fn a_lookup_needs_no_slot_and_is_bounded() {
        let mut queue = queue(0);
        offer(&mut queue, Lane::Interactive);
        let first = queue.look_up().unwrap();
        (0..2).for_each(|_| assert!(queue.look_up().is_ok(), "up to three"));
        assert_eq!(queue.look_up(), Err(Refusal::QueueFull { depth: 3 }));
        queue.finish(first);
        queue.look_up().unwrap();
    }

    #[test]
    fn tokens_are_taken_away_as_they_come_free_and_nobody_starts_before() {
        let mut queue = queue(16);
        let load = offer(&mut queue, Lane::Interactive);
        assert_eq!(queue.decide(), Some(Decision::Admit(load, 2)));
        for _ in 0..6 {
            queue.want_slot(load);
            assert_eq!(queue.decide(), Some(Decision::Slot(load)));
        }
        // Ten are free at once, four are out beyond the guarantee.
        queue.withdraw(12);
        assert_eq!((queue.owed(), queue.free), (2, 0));
        let waiting = offer(&mut queue, Lane::Interactive);
        queue.want_slot(load);
        assert_eq!(queue.decide(), None);
        queue.give_back(load);
        assert_eq!((queue.owed(), queue.decide()), (1, None));
        queue.give_back(load);
        assert_eq!((queue.owed(), queue.decide()), (0, None), "the first of the others is next");
        queue.withdrawn();
        assert_eq!(queue.capacity(), 4);
        queue.give_back(load);
        assert_eq!(queue.decide(), Some(Decision::Admit(waiting, 1)));
        // It owns two, however small the pool has become.
        queue.give_back(load);
        queue.give_back(load);
        queue.withdraw(4);
        assert_eq!((queue.owed(), queue.decide()), (3, Some(Decision::Slot(load))));
        queue.keep();
        assert_eq!((queue.owed(), queue.free), (0, 1));
    }

    #[test]
    fn who_wants_what_another_one_brings_starts_beside_it() {
        let mut queue = Queue::new(Limits { queued_max: 64, active_max: 5 });
        queue.grow(64);
        queue.set_width(2, None);
        let offer = |queue: &mut Queue, what| {
            let what = Some(What::of(what));
            queue.offer(Lane::Interactive, (0, what), Instant::now()).unwrap().0
        };
        let started = |queue: &mut Queue| {
            std::iter::from_fn(|| queue.decide())
                .map(|decision| match decision {
                    Decision::Admit(ticket, _) | Decision::Slot(ticket) => ticket,
                })
                .collect::<Vec<_>>()
        };
        let first = ["a", "b"].map(|what| offer(&mut queue, what));
        assert_eq!(started(&mut queue), first);
        let [c, b, a, again, more] = ["c", "b", "a", "a", "a"].map(|what| offer(&mut queue, what));
        assert_eq!(started(&mut queue), [], "it may be there, and cost as much for each");
        queue.brings(first[0], true);
        assert_eq!(started(&mut queue), [a, again], "and as many as others may");
        assert_eq!((queue.counted(), queue.active()), (2, 4));
        assert!(queue.rides(a) && !queue.rides(first[0]));
        // A place that one leaves which rode is for another one that does.
        queue.finish(again);
        assert_eq!(started(&mut queue), [more]);
        // The turn is not theirs, and they keep none of the places of those whose it is.
        queue.finish(first[1]);
        assert_eq!(started(&mut queue), [c]);
        // Who brought it goes: one of them has it brought now, in that place.
        queue.finish(first[0]);
        assert_eq!(started(&mut queue), []);
        assert!(!queue.rides(a) && queue.rides(more));
        queue.finish(a);
        assert!(!queue.rides(more));
        queue.finish(more);
        assert_eq!(started(&mut queue), [b]);
        assert_eq!((queue.counted(), queue.active()), (2, 2));
        // There is no more room than there is, and in a full queue it takes nobody's.
        queue.brings(b, true);
        queue.set_width(3, None);
        let rest: Vec<_> = (0..64).map(|_| offer(&mut queue, "d")).collect();
        assert_eq!(started(&mut queue), rest[..1]);
        let more = offer(&mut queue, "e");
        let full = queue.offer(Lane::Interactive, (0, Some(What::of("e"))), Instant::now());
        assert_eq!(full, Err(Refusal::QueueFull { depth: 64 }));
        let rider = offer(&mut queue, "b");
        assert_eq!(started(&mut queue), [rider]);
        let rider = offer(&mut queue, "b");
        assert_eq!(started(&mut queue), [rider]);
        let full = queue.offer(Lane::Interactive, (0, Some(What::of("b"))), Instant::now());
        assert_eq!(full, Err(Refusal::QueueFull { depth: 64 }), "all places are taken");
        queue.finish(rider);
        queue.brings(b, false);
        let full = queue.offer(Lane::Interactive, (0, Some(What::of("b"))), Instant::now());
        assert_eq!(full, Err(Refusal::QueueFull { depth: 64 }), "most of it came");
        queue.finish(more);
    }

    #[test]
    fn draining_refuses_and_returns_those_that_wait() {
        let mut queue = queue(0);
        let waiting = offer(&mut queue, Lane::Interactive);
        assert_eq!(queue.drain(), [waiting]);
        assert_eq!(
            queue.offer(Lane::Interactive, (0, None), Instant::now()),
            Err(Refusal::Draining)
        );
    }

    #[derive(Debug, Clone)]
    enum Op {
        Offer(bool, u8),
        Want(usize),
        GiveBack(usize),
        Unwant(usize),
        Finish(usize),
        Grow,
        Withdraw(usize),
        Keep,
        Brings(usize, bool),
        Width(usize),
    }

    fn op() -> impl Strategy<Value = Op> {
        prop_oneof![
            (any::<bool>(), 0..3u8).prop_map(|(lane, what)| Op::Offer(lane, what)),
            (0..8usize).prop_map(Op::Want),
            (0..8usize).prop_map(Op::GiveBack),
            (0..8usize).prop_map(Op::Unwant),
            (0..8usize).prop_map(Op::Finish),
            Just(Op::Grow),
            (1..8usize).prop_map(Op::Withdraw),
            Just(Op::Keep),
            (0..8usize, any::<bool>()).prop_map(|(n, yes)| Op::Brings(n, yes)),
            (1..4usize).prop_map(Op::Width),
        ]
    }

    /// The model: tokens out, per load, as a caller sees them.
    #[derive(Default)]
    struct Model {
        live: Vec<(Ticket, usize, usize, bool)>, // ticket, guarantee, held, wants
        zombies: Vec<Ticket>,
    }

    proptest! {
        /// Tokens out never exceed the slots in use, also while some are taken away; a load below
        /// its guarantee never waits; when everything ends, every token is free again.
        #[test]
        fn tokens_are_conserved(ops in proptest::collection::vec(op(), 1..200)) {
            let mut queue = Queue::new(Limits { queued_max: 8, active_max: 4 });
            let mut model = Model::default();
            for op in ops {
                let pick = |n: usize| model.live.get(n).map(|load| load.0);
                match op {
                    Op::Offer(interactive, what) => {
                        let lane = if interactive { Lane::Interactive } else { Lane::Prefetch };
                        let who = (0, Some(What::of(what)));
                        let _refused = queue.offer(lane, who, Instant::now()).is_err();
                    }
                    Op::Want(n) => if let Some(load) = model.live.get_mut(n).filter(|l| !l.3) {
                        load.3 = true;
                        queue.want_slot(load.0);
                    },
                    Op::GiveBack(n) => if let Some(load) = model.live.get_mut(n).filter(|l| l.2 > 0) {
                        load.2 -= 1;
                        queue.give_back(load.0);
                    } else if let Some(ticket) = model.zombies.pop() {
                        queue.give_back(ticket);
                    },
                    Op::Unwant(n) => if let Some(ticket) = pick(n) {
                        prop_assert_eq!(queue.unwant_slot(ticket), model.live[n].3);
                        model.live[n].3 = false;
                    },
                    Op::Finish(n) => if let Some(ticket) = pick(n) {
                        queue.finish(ticket);
                        let (_, _, held, _) = model.live.remove(n);
                        model.zombies.extend(std::iter::repeat_n(ticket, held));
                    },
                    Op::Grow => queue.grow(3),
                    Op::Withdraw(n) => if queue.owed() == 0 && queue.withdrawn == 0 {
                        queue.withdraw(n.min(queue.capacity()));
                    },
                    Op::Keep => queue.keep(),
                    Op::Brings(n, yes) => if let Some(ticket) = pick(n) {
                        queue.brings(ticket, yes);
                    },
                    Op::Width(width) => queue.set_width(width, None),
                }
                // The slots go out of use at once.
                if queue.owed() == 0 {
                    queue.withdrawn();
                }
                while let Some(decision) = queue.decide() {
                    match decision {
                        Decision::Admit(ticket, guarantee) => model.live.push((ticket, guarantee, 0, false)),
                        Decision::Slot(ticket) => {
                            let load = model.live.iter_mut().find(|load| load.0 == ticket).unwrap();
                            prop_assert!(load.3);
                            load.2 += 1;
                            load.3 = false;
                        }
                    }
                }
                let out: usize = model.live.iter().map(|load| load.2.max(load.1)).sum();
                prop_assert!(out + model.zombies.len() <= queue.capacity());
                prop_assert!(queue.owed() == 0 || queue.free == 0);
                prop_assert!(queue.active() <= queue.limits().active_max);
                prop_assert!(queue.active() == 0 || queue.counted() > 0, "one of them brings it");
                let all = out + model.zombies.len() + queue.free + queue.withdrawn;
                prop_assert_eq!(all, queue.capacity());
                prop_assert!(model.live.iter().all(|load| !load.3 || load.2 >= load.1));
            }
            for (ticket, _, held, _) in model.live {
                queue.finish(ticket);
                (0..held).for_each(|_| queue.give_back(ticket));
            }
            model.zombies.into_iter().for_each(|ticket| queue.give_back(ticket));
            queue.keep();
            prop_assert_eq!(queue.free, queue.capacity);
            prop_assert_eq!(queue.active(), 0);
        }
    }
}
