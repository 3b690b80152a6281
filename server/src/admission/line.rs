//! A lane's line, fair to users: whose loads run least goes first, and who asks first among equals.
//!
//! Who would wait for how many is told by the same rule ([`Line::ahead`], [`Line::places`]): whoever
//! runs less is served before those that came earlier.
//!
//! A full queue is no way for one user to keep others out: who has the most in it makes room for
//! somebody who has clearly less ([`crowder`]). So a user who asks fifty times as often as another
//! waits in its own line, and the other one gets its part.

use std::collections::{BTreeMap, VecDeque};

use tokio::time::Instant;

use super::queue::{Ticket, What};

/// One that waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Waiter {
    pub(super) ticket: Ticket,
    pub(super) user: u32,
    /// What it wants, if that can be told.
    pub(super) what: Option<What>,
    offered: Instant,
}

/// Those that wait in one lane, in the order in which they came.
#[derive(Debug, Default)]
pub(super) struct Line(VecDeque<Waiter>);

impl Line {
    /// One more, at the end.
    pub(super) fn push(
        &mut self,
        ticket: Ticket,
        (user, what): (u32, Option<What>),
        offered: Instant,
    ) {
        self.0.push_back(Waiter { ticket, user, what, offered });
    }

    /// The next to start: of the user with the fewest that run, and its first.
    pub(super) fn next(&mut self, running: impl Fn(u32) -> usize) -> Option<Waiter> {
        let fewest = self.0.iter().enumerate().min_by_key(|(_, waiter)| running(waiter.user));
        let (at, _) = fewest?;
        self.0.remove(at)
    }

    /// The first that wants one of these.
    pub(super) fn first_that_wants(&self, these: &[What]) -> Option<Ticket> {
        let is_it = |waiter: &&Waiter| waiter.what.is_some_and(|what| these.contains(&what));
        self.0.iter().find(is_it).map(|waiter| waiter.ticket)
    }

    /// Takes one out to start it, wherever it is.
    pub(super) fn take(&mut self, ticket: Ticket) -> Option<Waiter> {
        let at = self.0.iter().position(|waiter| waiter.ticket == ticket)?;
        self.0.remove(at)
    }

    /// Takes one out, wherever it is.
    pub(super) fn remove(&mut self, ticket: Ticket) {
        self.0.retain(|waiter| waiter.ticket != ticket);
    }

    /// Takes all out.
    pub(super) fn drain(&mut self) -> impl Iterator<Item = Ticket> + '_ {
        self.0.drain(..).map(|waiter| waiter.ticket)
    }

    /// Takes out the last one of a user.
    fn pop_last_of(&mut self, user: u32) -> Option<Ticket> {
        let at = self.0.iter().rposition(|waiter| waiter.user == user)?;
        self.0.remove(at).map(|waiter| waiter.ticket)
    }

    /// Those that start before one more of `user`.
    pub(super) fn ahead(&self, user: u32, running: impl Fn(u32) -> usize) -> usize {
        let counts = counts([self]);
        ahead(&counts, user, counts.get(&user).copied().unwrap_or_default(), &running)
    }

    /// All that wait, in the order in which they came, and how many start before each.
    pub(super) fn places(&self, running: impl Fn(u32) -> usize) -> Vec<(Ticket, usize)> {
        let counts = counts([self]);
        let run: BTreeMap<u32, usize> = counts.keys().map(|user| (*user, running(*user))).collect();
        let running = |user| run.get(&user).copied().unwrap_or_default();
        let mut seen: BTreeMap<u32, usize> = BTreeMap::new();
        let place = |waiter: &Waiter| {
            let own = seen.entry(waiter.user).or_default();
            let ahead = ahead(&counts, waiter.user, *own, &running);
            *own += 1;
            (waiter.ticket, ahead)
        };
        self.0.iter().map(place).collect()
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// When the first of them came.
    pub(super) fn oldest(&self) -> Option<Instant> {
        self.0.front().map(|waiter| waiter.offered)
    }
}

/// Those that start before the load of `user` that has `own` others before it: these, and of each
/// other user as many as it takes until that one runs no fewer and has got as far in the line. Of one
/// that runs more none start until both run as many: each place that it leaves goes to `user`.
fn ahead(
    counts: &BTreeMap<u32, usize>,
    user: u32,
    own: usize,
    running: &impl Fn(u32) -> usize,
) -> usize {
    let runs = running(user);
    let of = |(other, waiting): (&u32, &usize)| {
        let more = own + 1 + runs.saturating_sub(running(*other));
        let less = running(*other).saturating_sub(runs).div_ceil(2);
        (*waiting).min(more.saturating_sub(less))
    };
    own + counts.iter().filter(|(other, _)| **other != user).map(of).sum::<usize>()
}

/// How many of each user are in these lines.
fn counts<'a>(lines: impl IntoIterator<Item = &'a Line>) -> BTreeMap<u32, usize> {
    let mut counts = BTreeMap::new();
    for waiter in lines.into_iter().flat_map(|line| &line.0) {
        *counts.entry(waiter.user).or_default() += 1;
    }
    counts
}

/// Takes out the last of the user with the most in these lines, if those are more than `user` would
/// have with one more: the later lane gives way first.
pub(super) fn crowder(lines: &mut [Line], user: u32) -> Option<Ticket> {
    let counts = counts(&*lines);
    let own = counts.get(&user).copied().unwrap_or_default();
    let (crowder, most) = counts.into_iter().max_by_key(|(_, count)| *count)?;
    if crowder == user || most <= own + 1 {
        return None;
    }
    lines.iter_mut().rev().find_map(|line| line.pop_last_of(crowder))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whose_loads_run_least_goes_first() {
        let mut line = Line::default();
        for (ticket, user) in [(1, 7), (2, 7), (3, 8), (4, 7)] {
            line.push(Ticket(ticket), (user, None), Instant::now());
        }
        let running = |user| if user == 7 { 3 } else { 1 };
        let mut next = |running: &dyn Fn(u32) -> usize| line.next(running).map(|next| next.ticket);
        assert_eq!(next(&running), Some(Ticket(3)));
        assert_eq!(next(&|_| 0), Some(Ticket(1)), "else who came first");
        line.remove(Ticket(2));
        assert_eq!(line.drain().collect::<Vec<_>>(), [Ticket(4)]);
        assert_eq!(line.next(|_| 0), None);
    }

    #[test]
    fn who_waits_in_a_long_line_of_its_own_is_in_nobody_elses_way() {
        let mut line = Line::default();
        (0..60).for_each(|ticket| line.push(Ticket(ticket), (7, None), Instant::now()));
        assert_eq!(line.ahead(7, |_| 2), 60);
        assert_eq!(line.ahead(8, |_| 2), 1, "one in turn");
        assert_eq!(line.places(|_| 2)[41], (Ticket(41), 41));
        assert_eq!(line.ahead(8, |user| if user == 8 { 5 } else { 2 }), 4, "it runs more");
        assert_eq!(line.ahead(8, |user| if user == 8 { 0 } else { 2 }), 0, "it goes first");
        line.push(Ticket(60), (8, None), Instant::now());
        assert_eq!((line.ahead(7, |_| 0), line.ahead(8, |_| 0)), (61, 3));
        // What it is told is how it comes.
        let running = std::cell::RefCell::new(BTreeMap::from([(7, 1_usize), (8, 1)]));
        let of = |user| running.borrow().get(&user).copied().unwrap_or_default();
        let before = line.ahead(8, of);
        line.push(Ticket(61), (8, None), Instant::now());
        let mut gone = 0;
        while let Some(Waiter { ticket, user, .. }) = line.next(of) {
            if ticket == Ticket(61) {
                break;
            }
            *running.borrow_mut().entry(user).or_default() += 1;
            gone += 1;
        }
        assert_eq!(gone, before);
    }

    /// Places that come free one after the other, each of a load of whoever runs most.
    #[test]
    fn what_is_told_of_a_wait_is_how_it_comes_where_one_user_has_all_places() {
        let mut line = Line::default();
        (0..31).for_each(|ticket| line.push(Ticket(ticket), (7, None), Instant::now()));
        (31..63).for_each(|ticket| line.push(Ticket(ticket), (8, None), Instant::now()));
        let mut running = BTreeMap::from([(7, 64_usize), (8, 0)]);
        let told = line.places(|user| running[&user]);
        assert_eq!(told[31], (Ticket(31), 0));
        assert_eq!(told[62], (Ticket(62), 31));
        for start in 0..32 {
            *running.get_mut(&7).unwrap() -= 1;
            let Waiter { ticket, user, .. } = line.next(|user| running[&user]).unwrap();
            assert_eq!(told[31 + start], (ticket, start));
            *running.get_mut(&user).unwrap() += 1;
        }
        assert_eq!(running[&8], 32);
    }

    #[test]
    fn who_has_the_most_makes_room_and_nobody_else() {
        let mut lines = [Line::default(), Line::default()];
        for ticket in 0..4 {
            lines[usize::from(ticket % 2 == 1)].push(Ticket(ticket), (7, None), Instant::now());
        }
        assert!(crowder(&mut lines, 7).is_none(), "not for itself");
        assert_eq!(crowder(&mut lines, 8), Some(Ticket(3)));
        lines[0].push(Ticket(9), (8, None), Instant::now());
        assert_eq!(crowder(&mut lines, 8), Some(Ticket(1)));
        lines[0].push(Ticket(10), (8, None), Instant::now());
        assert!(crowder(&mut lines, 8).is_none(), "they have the same");
    }
}
