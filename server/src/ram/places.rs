//! Which NUMA node slots lie on: how the budget is split over nodes, how memory is asked for on
//! one, and where it came to lie.
//!
//! The kernel is asked before a segment has memory and looked at when it has: a slot counts for the
//! node that most of its pages lie on, wherever it was asked for. With one node nothing is asked,
//! and every slot lies there. A kernel that forbids the calls, or does not tell, is said once.

use std::collections::BTreeMap;

use forebay_io::{NodeId, NumaError, NumaPlan};
use forebay_shm::{Segment, SegmentSpec, ShmError};

use super::pool::PoolSpec;

/// A segment's file, at most: larger registrations with a GPU driver fail in practice.
pub(super) const SEGMENT_BYTES_MAX: u64 = 256 << 20;

/// The first segments of all nodes together: enough to start, populated in some tens of
/// milliseconds.
pub(super) const FIRST_SEGMENTS_BYTES: u64 = 64 << 20;

/// What a segment holds beside its slots, at most: its header, and the hole that aligns the slots.
const SEGMENT_HEADER_BYTES: u64 = 2 << 20;

/// Pages of a slot that are looked at. Memory that runs out on a node does so once, so that a slot
/// lies on one node or, now and then, on two.
const PAGES_LOOKED_AT: usize = 64;

/// A node that gets slots, and its share of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct NodeShare {
    /// The node.
    pub(crate) node: NodeId,
    /// Shares are as these to each other.
    pub(crate) weight: u64,
}

/// What the kernel is asked.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PlaceCalls {
    /// For memory that has no pages yet.
    pub(crate) bind: fn(*const [u8], NodeId) -> Result<(), NumaError>,
    /// For where memory lies; none if it has no pages.
    pub(crate) look: fn(*const [u8]) -> Result<Option<NodeId>, NumaError>,
}

impl PlaceCalls {
    const KERNEL: Self = Self {
        bind: forebay_io::bind_memory,
        look: |memory| Ok(forebay_io::page_nodes(memory, PAGES_LOOKED_AT)?.most()),
    };
}

/// The nodes of a pool; at least one.
#[derive(Debug, Clone)]
pub(crate) struct Places {
    nodes: Vec<NodeShare>,
    calls: PlaceCalls,
}

/// One segment to make.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct SegmentPlan {
    pub(super) node: NodeId,
    pub(super) slots: u32,
}

/// A segment, the node that each slot of it lies on, and what could not be had.
#[derive(Debug)]
pub(super) struct PlacedSegment {
    pub(super) segment: std::sync::Arc<Segment>,
    pub(super) nodes: Vec<NodeId>,
    pub(super) refused: Option<NumaError>,
}

impl Places {
    /// The nodes of a machine that slots are put on, by how much memory each has.
    pub(crate) fn of(plan: &NumaPlan) -> Self {
        let share = |node: &forebay_io::PlannedNode| NodeShare {
            node: node.id,
            weight: node.memory_bytes >> 20,
        };
        Self::with(plan.slot_nodes().map(share).collect(), PlaceCalls::KERNEL)
    }

    /// These nodes.
    pub(crate) fn with(nodes: Vec<NodeShare>, calls: PlaceCalls) -> Self {
        let anywhere = NodeShare { node: NodeId(0), weight: 1 };
        let nodes = if nodes.is_empty() { vec![anywhere] } else { nodes };
        Self { nodes, calls }
    }

    /// One node, which everything lies on.
    #[cfg(test)]
    pub(crate) fn one() -> Self {
        Self::with(Vec::new(), PlaceCalls::KERNEL)
    }

    /// The segments to make: the first of each node, then by turns. And how many are the first
    /// ones.
    pub(super) fn segments(&self, spec: PoolSpec) -> (Vec<SegmentPlan>, usize) {
        let nodes = self.nodes.len() as u64;
        let shares = self.shares(spec.budget_bytes / spec.chunk_bytes);
        let first = |bytes: u64| slots_in(bytes, spec.chunk_bytes);
        let mut queues: Vec<(NodeId, std::vec::IntoIter<u32>)> = self
            .nodes
            .iter()
            .zip(shares)
            .map(|(share, slots)| {
                let sizes = sizes(slots, first(FIRST_SEGMENTS_BYTES / nodes), spec.chunk_bytes);
                (share.node, sizes.into_iter())
            })
            .collect();
        let mut segments = Vec::new();
        let mut first_ones = 0;
        loop {
            let before = segments.len();
            for (node, sizes) in &mut queues {
                segments.extend(sizes.next().map(|slots| SegmentPlan { node: *node, slots }));
            }
            if before == 0 {
                first_ones = segments.len();
            }
            if segments.len() == before || segments.len() >= spec.segments_max {
                break;
            }
        }
        segments.truncate(spec.segments_max);
        (segments, first_ones.min(spec.segments_max))
    }

    /// `slots` by weight; what does not divide goes to the first ones.
    fn shares(&self, slots: u64) -> Vec<u64> {
        let weights: Vec<u128> = self.nodes.iter().map(|share| share.weight.into()).collect();
        let sum: u128 = weights.iter().sum();
        // Memory that is not known counts the same everywhere.
        let (weights, sum) = match sum {
            0 => (vec![1; self.nodes.len()], self.nodes.len() as u128),
            sum => (weights, sum),
        };
        let share = |weight: &u128| u64::try_from(u128::from(slots) * weight / sum);
        let mut shares: Vec<u64> = weights.iter().map(|w| share(w).unwrap_or(slots)).collect();
        let left = slots.saturating_sub(shares.iter().sum());
        let some = shares.iter_mut().zip(&weights).filter(|(_, weight)| **weight > 0);
        some.map(|(share, _)| share)
            .take(usize::try_from(left).unwrap_or(usize::MAX))
            .for_each(|share| *share += 1);
        shares
    }

    /// Makes a segment on its node. Not to get it there is no error.
    pub(super) fn create(
        &self,
        spec: &SegmentSpec,
        node: NodeId,
    ) -> Result<PlacedSegment, ShmError> {
        let slots = spec.slots as usize;
        if self.nodes.len() == 1 {
            let segment = Segment::create(spec)?;
            return Ok(PlacedSegment { segment, nodes: vec![node; slots], refused: None });
        }
        let mut refused = None;
        let bind = |memory| refused = (self.calls.bind)(memory, node).err();
        let segment = Segment::create_with(spec, bind)?;
        let memory = segment.slot_memory().cast::<u8>();
        let mut nodes = Vec::with_capacity(slots);
        for slot in 0..slots {
            let start = memory.wrapping_add(slot * spec.slot_bytes);
            let of_slot = std::ptr::slice_from_raw_parts(start, spec.slot_bytes);
            let found = (self.calls.look)(of_slot).unwrap_or_else(|error| {
                refused.get_or_insert(error);
                None
            });
            nodes.push(found.unwrap_or(node));
        }
        Ok(PlacedSegment { segment, nodes, refused })
    }

    /// Every node, with nothing on it yet.
    pub(super) fn empty(&self) -> BTreeMap<NodeId, OnNode> {
        self.nodes.iter().map(|share| (share.node, OnNode::default())).collect()
    }
}

/// The slots of one node.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct OnNode {
    /// Slots that lie there.
    pub(crate) slots: u64,
    /// Slots that were asked for there and lie elsewhere.
    pub(crate) strayed: u64,
}

/// Slots of a segment of `bytes`; one at least.
fn slots_in(bytes: u64, chunk_bytes: u64) -> u64 {
    (bytes.saturating_sub(SEGMENT_HEADER_BYTES) / chunk_bytes).max(1)
}

/// Slots of each segment of one node.
fn sizes(slots: u64, first: u64, chunk_bytes: u64) -> Vec<u32> {
    let mut left = slots;
    let mut sizes = Vec::new();
    while left > 0 {
        let most = if sizes.is_empty() { first } else { slots_in(SEGMENT_BYTES_MAX, chunk_bytes) };
        let slots = most.min(left);
        left -= slots;
        sizes.push(u32::try_from(slots).unwrap_or(u32::MAX));
    }
    sizes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn places(weights: &[u64]) -> Places {
        let share = |(node, weight): (u32, &u64)| NodeShare { node: NodeId(node), weight: *weight };
        Places::with((0..).zip(weights).map(share).collect(), PlaceCalls::KERNEL)
    }

    fn spec(budget_bytes: u64, chunk_bytes: u64) -> PoolSpec {
        PoolSpec { budget_bytes, chunk_bytes, lock: false, segments_max: 1000 }
    }

    #[test]
    fn segments_stay_below_their_limit_and_sum_to_the_budget() {
        for weights in [&[1][..], &[1, 1], &[3, 2, 1]] {
            for (budget, chunk) in [(256 << 20, 8 << 20), (10 << 30, 16 << 20), (3 << 20, 1 << 16)]
            {
                let (segments, first) = places(weights).segments(spec(budget, chunk));
                let slots: u64 = segments.iter().map(|plan| u64::from(plan.slots)).sum();
                assert_eq!(slots, budget / chunk);
                let at_first: u64 =
                    segments[..first].iter().map(|plan| u64::from(plan.slots)).sum();
                assert!(at_first * chunk <= FIRST_SEGMENTS_BYTES);
                assert_eq!(first, weights.len());
                let small = |plan: &SegmentPlan| u64::from(plan.slots) * chunk < SEGMENT_BYTES_MAX;
                assert!(segments.iter().all(small));
            }
        }
    }

    #[test]
    fn nodes_take_turns_and_get_their_share() {
        let (segments, first) = places(&[2, 1]).segments(spec(3 << 30, 8 << 20));
        assert_eq!(first, 2);
        let on = |node| segments.iter().filter(move |plan| plan.node == NodeId(node));
        let slots = |node| on(node).map(|plan| u64::from(plan.slots)).sum::<u64>();
        assert_eq!((slots(0), slots(1)), (256, 128));
        let order: Vec<u32> = segments.iter().take(6).map(|plan| plan.node.0).collect();
        assert_eq!(order, [0, 1, 0, 1, 0, 1]);
    }

    #[test]
    fn memory_that_is_not_known_counts_the_same_and_nothing_is_lost() {
        assert_eq!(places(&[0, 0, 0]).shares(11), [4, 4, 3]);
        assert_eq!(places(&[1, 0, 1]).shares(5), [3, 0, 2]);
        assert_eq!(places(&[u64::MAX, u64::MAX]).shares(u64::MAX).iter().sum::<u64>(), u64::MAX);
        assert_eq!(places(&[1]).shares(0), [0]);
    }

    #[test]
    fn fewer_slots_than_nodes_leave_nodes_without() {
        let (segments, first) = places(&[1, 1, 1]).segments(spec(2 << 20, 1 << 20));
        let nodes: Vec<u32> = segments.iter().map(|plan| plan.node.0).collect();
        assert_eq!((nodes, first), (vec![0, 1], 2));
    }

    #[test]
    fn the_limit_on_segments_holds() {
        let few = PoolSpec { segments_max: 3, ..spec(100 << 30, 8 << 20) };
        let (segments, first) = places(&[1, 1]).segments(few);
        assert_eq!((segments.len(), first), (3, 2));
        let none = PoolSpec { segments_max: 1, ..few };
        assert_eq!(places(&[1, 1]).segments(none).1, 1);
    }
}
