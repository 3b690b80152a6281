//! How the tier's bytes are used: all together, by segment, and by NUMA node.

use std::collections::BTreeMap;

use forebay_io::NodeId;
use forebay_shm::SegmentId;

use super::RamTier;
use super::places::OnNode;
use super::pool::Idle;
use super::steps::SegmentUse;

/// Sizes of the tier.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct RamSizes {
    /// As configured, or set since.
    pub(crate) budget: u64,
    /// In segments so far.
    pub(crate) populated: u64,
    /// Of them: in segments that are out of use.
    pub(crate) retiring: u64,
    /// Of those: lent or being filled.
    pub(crate) retiring_busy: u64,
    /// Readable, not leased.
    pub(crate) cached: u64,
    /// Leased or being handed over.
    pub(crate) leased: u64,
    /// Being filled, or evicted and still leased; not of segments that are out of use.
    pub(crate) filling: u64,
    /// On the free list.
    pub(crate) free: u64,
    /// Locked in memory.
    pub(crate) locked: u64,
    /// On huge pages.
    pub(crate) huge: u64,
    /// One slot.
    pub(crate) chunk: u64,
    /// Segments.
    pub(crate) segments: u64,
}

impl RamSizes {
    /// Together with those of another domain.
    pub(crate) fn and(self, other: Self) -> Self {
        Self {
            budget: self.budget + other.budget,
            populated: self.populated + other.populated,
            retiring: self.retiring + other.retiring,
            retiring_busy: self.retiring_busy + other.retiring_busy,
            cached: self.cached + other.cached,
            leased: self.leased + other.leased,
            filling: self.filling + other.filling,
            free: self.free + other.free,
            locked: self.locked + other.locked,
            huge: self.huge + other.huge,
            chunk: self.chunk.max(other.chunk),
            segments: self.segments + other.segments,
        }
    }
}

/// The slots of one NUMA node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct NodeSizes {
    /// Which node.
    pub(crate) node: NodeId,
    /// Slots that lie there.
    pub(crate) slots: u64,
    /// Slots that were asked for there and lie elsewhere.
    pub(crate) strayed: u64,
    /// Bytes of those that are readable and not leased.
    pub(crate) cached: u64,
    /// Leased or being handed over.
    pub(crate) leased: u64,
    /// Being filled, or evicted and still leased.
    pub(crate) filling: u64,
    /// On the free list.
    pub(crate) free: u64,
}

impl NodeSizes {
    /// Together with those of another domain on the same node.
    pub(crate) fn and(self, other: Self) -> Self {
        Self {
            node: self.node,
            slots: self.slots + other.slots,
            strayed: self.strayed + other.strayed,
            cached: self.cached + other.cached,
            leased: self.leased + other.leased,
            filling: self.filling + other.filling,
            free: self.free + other.free,
        }
    }
}

impl RamTier {
    /// How the tier's bytes are used.
    pub(crate) fn sizes(&self) -> RamSizes {
        let spec = self.pool.spec();
        let segments = self.pool.segments();
        let (mut in_use, mut retiring, mut retiring_busy) = (0, 0, 0);
        for one in self.pool.idle() {
            let side = if one.retiring { &mut retiring } else { &mut in_use };
            *side += u64::from(one.slots) * spec.chunk_bytes;
            if one.retiring {
                retiring_busy += u64::from(one.slots - one.idle) * spec.chunk_bytes;
            }
        }
        let free = self.pool.free_slots() as u64 * spec.chunk_bytes;
        let index = self.lock();
        let (mut cached, mut leased) = (0, 0);
        for chunk in index.residency.values() {
            let side = if chunk.is_leased() { &mut leased } else { &mut cached };
            *side += spec.chunk_bytes;
        }
        RamSizes {
            budget: spec.budget_bytes,
            populated: in_use + retiring,
            retiring,
            retiring_busy,
            cached,
            leased,
            filling: in_use.saturating_sub(free + cached + leased),
            free,
            locked: segments
                .iter()
                .filter(|segment| segment.placement().locked)
                .map(|segment| segment.bytes() as u64)
                .sum(),
            huge: segments.iter().map(|segment| segment.placement().huge_bytes as u64).sum(),
            chunk: spec.chunk_bytes,
            segments: segments.len() as u64,
        }
    }

    /// Every segment, and how it is used.
    pub(crate) fn uses(&self) -> Vec<SegmentUse> {
        let mut cached: BTreeMap<SegmentId, u32> = BTreeMap::new();
        let idle = {
            let index = self.lock();
            for chunk in index.residency.values().filter(|chunk| !chunk.is_leased()) {
                *cached.entry(chunk.segment_id()).or_default() += 1;
            }
            drop(index);
            self.pool.idle()
        };
        let uses = |Idle { id, asked, slots, idle, retiring }: Idle| {
            let cached = cached.get(&id).copied().unwrap_or_default();
            let busy = slots.saturating_sub(idle.saturating_add(cached));
            SegmentUse { id, node: asked, slots, busy, cached, retiring }
        };
        idle.into_iter().map(uses).collect()
    }

    /// The same by node.
    pub(crate) fn on_nodes(&self) -> Vec<NodeSizes> {
        let chunk_bytes = self.pool.spec().chunk_bytes;
        let free = self.pool.free_on_nodes();
        let mut sums: BTreeMap<NodeId, [u64; 2]> = BTreeMap::new();
        for chunk in self.lock().residency.values() {
            let [cached, leased] = sums.entry(chunk.node()).or_default();
            *(if chunk.is_leased() { leased } else { cached }) += chunk_bytes;
        }
        let sizes = |(node, on): (NodeId, OnNode)| {
            let [cached, leased] = sums.get(&node).copied().unwrap_or_default();
            let free = free.get(&node).map_or(0, |slots| *slots as u64) * chunk_bytes;
            let filling = (on.slots * chunk_bytes).saturating_sub(free + cached + leased);
            let OnNode { slots, strayed } = on;
            NodeSizes { node, slots, strayed, cached, leased, filling, free }
        };
        self.pool.on_nodes().into_iter().map(sizes).collect()
    }
}
