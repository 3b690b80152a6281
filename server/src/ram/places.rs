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
pub(crate) struct SegmentPlan {
    /// For which node.
    pub(crate) node: NodeId,
    /// How many slots.
    pub(crate) slots: u32,
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

    /// The first segment of each node that gets slots.
    pub(super) fn first(&self, spec: PoolSpec) -> Vec<SegmentPlan> {
        let nodes = self.nodes.len() as u64;
        let most = slots_in(FIRST_SEGMENTS_BYTES / nodes, spec.chunk_bytes);
        let shares = self.shares(spec.budget_bytes / spec.chunk_bytes).into_iter();
        let first = shares.filter(|(_, slots)| *slots > 0).map(|(node, slots)| SegmentPlan {
            node,
            slots: u32::try_from(slots.min(most)).unwrap_or(u32::MAX),
        });
        first.take(spec.segments_max).collect()
    }

    /// What each node gets of so many slots, by weight.
    pub(super) fn shares(&self, slots: u64) -> Vec<(NodeId, u64)> {
        let nodes = self.nodes.iter().map(|share| share.node);
        nodes.zip(self.parts(slots)).collect()
    }

    /// `slots` by weight; what does not divide goes to the first ones.
    fn parts(&self, slots: u64) -> Vec<u64> {
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

/// Slots of a segment, at most.
pub(super) fn slots_max(chunk_bytes: u64) -> u32 {
    u32::try_from(slots_in(SEGMENT_BYTES_MAX, chunk_bytes)).unwrap_or(u32::MAX)
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
    fn the_first_segments_are_small_and_one_per_node() {
        for weights in [&[1][..], &[1, 1], &[3, 2, 1]] {
            for (budget, chunk) in [(256 << 20, 8 << 20), (10 << 30, 16 << 20), (3 << 20, 1 << 16)]
            {
                let first = places(weights).first(spec(budget, chunk));
                let slots: u64 = first.iter().map(|plan| u64::from(plan.slots)).sum();
                assert!(slots * chunk <= FIRST_SEGMENTS_BYTES && slots <= budget / chunk);
                assert_eq!(first.len(), weights.len());
            }
        }
    }

    #[test]
    fn memory_that_is_not_known_counts_the_same_and_nothing_is_lost() {
        assert_eq!(places(&[0, 0, 0]).parts(11), [4, 4, 3]);
        assert_eq!(places(&[1, 0, 1]).parts(5), [3, 0, 2]);
        assert_eq!(places(&[u64::MAX, u64::MAX]).parts(u64::MAX).iter().sum::<u64>(), u64::MAX);
        assert_eq!(places(&[1]).parts(0), [0]);
    }

    #[test]
    fn fewer_slots_than_nodes_leave_nodes_without() {
        let first = places(&[1, 1, 1]).first(spec(2 << 20, 1 << 20));
        let nodes: Vec<u32> = first.iter().map(|plan| plan.node.0).collect();
        assert_eq!(nodes, [0, 1]);
    }

    #[test]
    fn the_limit_on_segments_holds() {
        let one = PoolSpec { segments_max: 1, ..spec(100 << 30, 8 << 20) };
        assert_eq!(places(&[1, 1]).first(one).len(), 1);
    }
}
