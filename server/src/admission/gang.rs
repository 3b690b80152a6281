//! One answer for all ranks of a load.
//!
//! Processes that hold a checkpoint together each load their part of it, at about the same time, and
//! can begin only when all of them have it. If a queue that is too slow refused some of them, the
//! others would load for nothing, and at a tenfold load hardly any would ever be complete. So what
//! the first rank is told is what the others are told that come within [`WITHIN`] of it; a rank that
//! comes again begins anew.
//!
//! Ranks belong together by who asks, for what, and of how many they are. Two jobs that are alike
//! in all of that may share an answer, which does neither any harm.

use std::collections::HashMap;
use std::time::Duration;

use tokio::time::Instant;

use super::queue::What;
use super::refusal::SlowQueue;

/// How long after the first of them the last one may come.
const WITHIN: Duration = Duration::from_secs(1);

/// So many are remembered; what exceeds them is answered rank by rank.
const GANGS_MAX: usize = 1024;

/// Whose part of what a load is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Part<'a> {
    /// The user's.
    pub(crate) uid: u32,
    /// What is loaded.
    pub(crate) uri: &'a str,
    /// Which part, of how many; none if it is the whole.
    pub(crate) rank: Option<(u32, u32)>,
    /// What it wants of that.
    pub(crate) what: What,
}

/// Some ranks that were told the same.
#[derive(Debug)]
struct Gang {
    since: Instant,
    seen: Vec<u32>,
    told: Option<SlowQueue>,
}

/// What was told to whom lately.
#[derive(Debug, Default)]
pub(super) struct Gangs(HashMap<(u32, String, u32), Gang>);

impl Gangs {
    /// What this part is told: what the others were, or what `decide` says.
    pub(super) fn answer(
        &mut self,
        part: &Part<'_>,
        now: Instant,
        decide: impl FnOnce() -> Option<SlowQueue>,
    ) -> Option<SlowQueue> {
        let Some((rank, ranks)) = part.rank.filter(|(_, ranks)| *ranks > 1) else {
            return decide();
        };
        let key = (part.uid, part.uri.to_owned(), ranks);
        let known = self.0.get_mut(&key).filter(|gang| {
            now.saturating_duration_since(gang.since) < WITHIN && !gang.seen.contains(&rank)
        });
        if let Some(gang) = known {
            gang.seen.push(rank);
            let told = gang.told;
            if u32::try_from(gang.seen.len()).is_ok_and(|seen| seen >= ranks) {
                self.0.remove(&key);
            }
            return told;
        }
        let told = decide();
        if self.0.len() >= GANGS_MAX {
            self.0.retain(|_, gang| now.saturating_duration_since(gang.since) < WITHIN);
        }
        if self.0.len() < GANGS_MAX || self.0.contains_key(&key) {
            self.0.insert(key, Gang { since: now, seen: vec![rank], told });
        }
        told
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SLOW: SlowQueue = SlowQueue { depth: 3, wait: Duration::from_secs(2) };

    fn part(uri: &str, rank: u32) -> Part<'_> {
        Part { uid: 7, uri, rank: Some((rank, 4)), what: What::of(uri) }
    }

    fn nobody_asks() -> Option<SlowQueue> {
        panic!("it is known already")
    }

    #[test]
    fn all_ranks_are_told_what_the_first_is() {
        for first in [None, Some(SLOW)] {
            let (mut gangs, now) = (Gangs::default(), Instant::now());
            assert_eq!(gangs.answer(&part("a", 2), now, || first), first);
            for rank in [0, 3, 1] {
                assert_eq!(gangs.answer(&part("a", rank), now, nobody_asks), first);
            }
            assert!(gangs.0.is_empty(), "all of them came");
        }
    }

    #[test]
    fn who_comes_again_late_or_for_something_else_is_answered_anew() {
        let (mut gangs, now) = (Gangs::default(), Instant::now());
        assert_eq!(gangs.answer(&part("a", 0), now, || Some(SLOW)), Some(SLOW));
        assert_eq!(gangs.answer(&part("b", 1), now, || None), None, "another checkpoint");
        let other = Part { uid: 8, ..part("a", 1) };
        assert_eq!(gangs.answer(&other, now, || None), None, "another user");
        let other = Part { rank: Some((1, 8)), ..part("a", 1) };
        assert_eq!(gangs.answer(&other, now, || None), None, "of another size");
        assert_eq!(gangs.answer(&part("a", 1), now, nobody_asks), Some(SLOW));
        // The first rank tries again: the others will too.
        assert_eq!(gangs.answer(&part("a", 0), now, || None), None);
        assert_eq!(gangs.answer(&part("a", 1), now, nobody_asks), None);
        assert_eq!(gangs.answer(&part("a", 2), now + WITHIN, || Some(SLOW)), Some(SLOW));
    }

    #[test]
    fn a_whole_checkpoint_is_nobodys_part() {
        let (mut gangs, now) = (Gangs::default(), Instant::now());
        for rank in [None, Some((0, 1))] {
            let part = Part { uid: 7, uri: "a", rank, what: What::of("a") };
            assert_eq!(gangs.answer(&part, now, || Some(SLOW)), Some(SLOW));
            assert_eq!(gangs.answer(&part, now, || None), None);
        }
        assert!(gangs.0.is_empty());
    }

    #[test]
    fn so_many_are_remembered_and_old_ones_make_room() {
        let (mut gangs, now) = (Gangs::default(), Instant::now());
        let uris: Vec<String> = (0..=GANGS_MAX).map(|n| n.to_string()).collect();
        for uri in &uris {
            gangs.answer(&part(uri, 0), now, || Some(SLOW));
        }
        assert_eq!(gangs.0.len(), GANGS_MAX);
        assert_eq!(gangs.answer(&part(&uris[GANGS_MAX], 1), now, || None), None);
        gangs.answer(&part("late", 0), now + WITHIN, || Some(SLOW));
        assert_eq!(gangs.0.len(), 1);
    }
}
