//! What has to be done next so that the pool has the size it should have: a pure function.
//!
//! Memory is had and given back by whole segments, node by node. Where a node has too many slots,
//! the segment that is least in use goes; if it is larger than what is too much, a smaller one is
//! made in its place first, so that the slots in use never become fewer than they should be. Where
//! a node has too few, a segment that was to go comes back, or one is made. Nothing is made beyond
//! the budget but what replaces something: until segments that are out of use have gone, it waits.

use forebay_io::NodeId;
use forebay_shm::SegmentId;

use super::places::SegmentPlan;

/// A segment, and how it is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SegmentUse {
    /// Which one.
    pub(crate) id: SegmentId,
    /// The node that it was made for.
    pub(crate) node: NodeId,
    /// How many slots it has.
    pub(crate) slots: u32,
    /// Slots that are lent or being filled.
    pub(crate) busy: u32,
    /// Slots with chunks that nobody uses.
    pub(crate) cached: u32,
    /// It is out of use, and goes when no slot is busy.
    pub(crate) retiring: bool,
}

/// What to do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    /// Take a segment back into use that was to go.
    Revive(SegmentId),
    /// Make a segment.
    Make(SegmentPlan),
    /// Take a segment with so many slots of a node out of use, after one of `instead` slots was
    /// made in its place.
    Retire {
        /// Of which node.
        node: NodeId,
        /// How large it is.
        slots: u32,
        /// How large its replacement is; 0: it needs none.
        instead: u32,
    },
    /// Nothing, before a segment that is out of use has gone.
    Wait,
    /// The pool is as it should be.
    Done,
}

/// The next step towards `shares`, the slots that each node should have; a segment has `slots_max`
/// slots at most.
pub(crate) fn next(shares: &[(NodeId, u64)], segments: &[SegmentUse], slots_max: u32) -> Step {
    let in_use = |node: NodeId| {
        let there = segments.iter().filter(|one| one.node == node && !one.retiring);
        there.map(|one| u64::from(one.slots)).sum::<u64>()
    };
    let over = shares.iter().map(|(node, share)| (in_use(*node).saturating_sub(*share), *node));
    if let Some((surplus @ 1.., node)) = over.max_by_key(|(surplus, _)| *surplus) {
        return retire(node, surplus, segments);
    }
    // Of equal ones the first: nodes take turns.
    let under = shares.iter().rev();
    let under = under.map(|(node, share)| (share.saturating_sub(in_use(*node)), *node));
    match under.max_by_key(|(missing, _)| *missing) {
        Some((missing @ 1.., node)) => grow(node, missing, (shares, segments), slots_max),
        _ => Step::Done,
    }
}

fn retire(node: NodeId, surplus: u64, segments: &[SegmentUse]) -> Step {
    let fits = |one: &SegmentUse| u64::from(one.slots) <= surplus;
    let there = segments.iter().filter(|one| one.node == node && !one.retiring);
    let victim = there.min_by_key(|one| (one.busy, !fits(one), one.cached, one.slots));
    victim.map_or(Step::Done, |victim| {
        let instead = u64::from(victim.slots).saturating_sub(surplus);
        let instead = u32::try_from(instead).unwrap_or(u32::MAX);
        Step::Retire { node, slots: victim.slots, instead }
    })
}

fn grow(
    node: NodeId,
    missing: u64,
    (shares, segments): (&[(NodeId, u64)], &[SegmentUse]),
    slots_max: u32,
) -> Step {
    let retiring = || segments.iter().filter(|one| one.retiring);
    let fitting = retiring().filter(|one| one.node == node && u64::from(one.slots) <= missing);
    if let Some(back) = fitting.max_by_key(|one| one.busy) {
        return Step::Revive(back.id);
    }
    let slots = u32::try_from(missing).unwrap_or(u32::MAX).min(slots_max);
    let budget: u64 = shares.iter().map(|(_, share)| share).sum();
    let held: u64 = segments.iter().map(|one| u64::from(one.slots)).sum();
    match held + u64::from(slots) > budget && retiring().next().is_some() {
        true => Step::Wait,
        false => Step::Make(SegmentPlan { node, slots }),
    }
}

/// The segment to take out of use, of those with so many slots of a node: the one that is least in
/// use, and not `but`.
pub(crate) fn victim(
    segments: &[SegmentUse],
    (node, slots): (NodeId, u32),
    but: Option<SegmentId>,
) -> Option<SegmentId> {
    let like = |one: &&SegmentUse| {
        one.node == node && one.slots == slots && !one.retiring && Some(one.id) != but
    };
    segments.iter().filter(like).min_by_key(|one| (one.busy, one.cached)).map(|one| one.id)
}

#[cfg(test)]
#[path = "steps_tests.rs"]
mod tests;
