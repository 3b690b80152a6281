//! How many operations of each lane the device may have at once. Pure.
//!
//! Reads first: somebody waits for them. While one waits or runs, writes have a quarter of the
//! depth at most, and otherwise three quarters, so that a read that comes meets a device with room.
//! One place is kept for the writes that wait, so that reads do not starve them either.

use crate::op::Lane;

/// Counts of one lane.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Load {
    pub(crate) queued: usize,
    pub(crate) running: usize,
}

/// The limits of one device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Quotas {
    depth: usize,
    writes_beside_reads: usize,
    writes_alone: usize,
}

impl Quotas {
    /// The limits for a device that takes `depth` operations at once, two at least.
    pub(crate) fn new(depth: usize) -> Self {
        let depth = depth.max(2);
        let writes_beside_reads = (depth / 4).max(1);
        let writes_alone = (depth - depth / 4).min(depth - 1).max(1);
        Self { depth, writes_beside_reads, writes_alone }
    }

    pub(crate) fn depth(&self) -> usize {
        self.depth
    }

    /// The lane whose turn it is; none while all that may run does.
    pub(crate) fn next(&self, reads: Load, writes: Load) -> Option<Lane> {
        let write_owed = usize::from(writes.queued > 0 && writes.running == 0);
        let running = reads.running + writes.running;
        if reads.queued > 0 && running + write_owed < self.depth {
            return Some(Lane::Read);
        }
        let beside = reads.queued > 0 || reads.running > 0;
        let writes_max = if beside { self.writes_beside_reads } else { self.writes_alone };
        let write = writes.queued > 0 && writes.running < writes_max && running < self.depth;
        write.then_some(Lane::Write)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn load(queued: usize, running: usize) -> Load {
        Load { queued, running }
    }

    #[test]
    fn reads_go_first_and_writes_get_their_share() {
        let quotas = Quotas::new(32);
        assert_eq!(quotas.next(load(1, 0), load(9, 1)), Some(Lane::Read));
        assert_eq!(quotas.next(load(9, 31), load(9, 0)), Some(Lane::Write), "the place kept");
        assert_eq!(quotas.next(load(9, 30), load(9, 1)), Some(Lane::Read));
        assert_eq!(quotas.next(load(0, 1), load(9, 7)), Some(Lane::Write));
        assert_eq!(quotas.next(load(0, 1), load(9, 8)), None);
        assert_eq!(quotas.next(load(0, 0), load(9, 23)), Some(Lane::Write));
        assert_eq!(quotas.next(load(0, 0), load(9, 24)), None, "room for a read that comes");
        assert_eq!(quotas.next(load(0, 3), load(0, 3)), None);
    }

    proptest! {
        // Queues that never run dry, and completions in any order.
        #[test]
        fn neither_lane_starves_and_the_depth_holds(
            depth in 0_usize..70,
            ends in prop::collection::vec(any::<prop::sample::Index>(), 1..300),
        ) {
            let quotas = Quotas::new(depth);
            let mut running = Vec::new();
            let count = |running: &[Lane], lane| running.iter().filter(|&&l| l == lane).count();
            for end in ends {
                while let Some(lane) = quotas.next(
                    load(1, count(&running, Lane::Read)),
                    load(1, count(&running, Lane::Write)),
                ) {
                    running.push(lane);
                }
                prop_assert_eq!(running.len(), quotas.depth());
                let writes = count(&running, Lane::Write);
                prop_assert!(writes >= 1 && writes <= (quotas.depth() / 4).max(1));
                running.swap_remove(end.index(running.len()));
            }
        }

        #[test]
        fn an_idle_device_never_refuses(depth in 0_usize..70, reads in 0_usize..3, writes in 0_usize..3) {
            let next = Quotas::new(depth).next(load(reads, 0), load(writes, 0));
            prop_assert_eq!(next.is_some(), reads + writes > 0);
        }
    }
}
