//! Steps, carried out on a list of segments.

use proptest::prelude::*;

use super::*;

fn node(id: u32) -> NodeId {
    NodeId(id)
}

fn segment(id: u64, slots: u32, busy: u32) -> SegmentUse {
    SegmentUse { id: SegmentId(id), node: node(0), slots, busy, cached: 0, retiring: false }
}

/// A pool without memory.
#[derive(Debug, Default)]
struct Model {
    segments: Vec<SegmentUse>,
    made: u64,
    /// The most slots that there were at one time.
    most: u64,
}

impl Model {
    fn make(&mut self, node: NodeId, slots: u32) -> SegmentId {
        self.made += 1;
        let id = SegmentId(self.made);
        self.segments.push(SegmentUse { id, node, ..segment(0, slots, 0) });
        self.most = self.most.max(self.held());
        id
    }

    fn held(&self) -> u64 {
        self.segments.iter().map(|one| u64::from(one.slots)).sum()
    }

    fn in_use(&self, of: NodeId) -> u64 {
        let there = self.segments.iter().filter(|one| one.node == of && !one.retiring);
        there.map(|one| u64::from(one.slots)).sum()
    }

    fn find(&mut self, id: SegmentId) -> &mut SegmentUse {
        self.segments.iter_mut().find(|one| one.id == id).unwrap()
    }

    /// Goes on until there is nothing to do but to wait; the last step.
    fn settle(&mut self, shares: &[(NodeId, u64)], slots_max: u32) -> Step {
        let least = |model: &Self| {
            let in_use = shares.iter().map(|(node, share)| model.in_use(*node).min(*share));
            in_use.collect::<Vec<u64>>()
        };
        let floor = least(self);
        for _ in 0..1000 {
            match next(shares, &self.segments, slots_max) {
                Step::Revive(id) => self.find(id).retiring = false,
                Step::Make(plan) => drop(self.make(plan.node, plan.slots)),
                Step::Retire { node, slots, instead } => {
                    let new = (instead > 0).then(|| self.make(node, instead));
                    let id = victim(&self.segments, (node, slots), new).unwrap();
                    self.find(id).retiring = true;
                }
                last => return last,
            }
            assert!(least(self).iter().zip(&floor).all(|(now, before)| now >= before));
        }
        panic!("it does not come to an end: {self:?}");
    }

    /// What is out of use and idle goes.
    fn reap(&mut self) {
        self.segments.retain(|one| !one.retiring || one.busy > 0);
    }
}

#[test]
fn segments_stay_below_their_limit_and_nodes_take_turns() {
    let mut model = Model::default();
    assert_eq!(model.settle(&[(node(0), 70), (node(1), 65)], 31), Step::Done);
    let made: Vec<_> = model.segments.iter().map(|one| (one.node.0, one.slots)).collect();
    assert_eq!(made, [(0, 31), (1, 31), (0, 31), (1, 31), (0, 8), (1, 3)]);
}

#[test]
fn what_is_least_in_use_goes_and_what_is_too_large_is_replaced_first() {
    let segments = [segment(1, 10, 3), segment(2, 10, 0), segment(3, 10, 1)];
    let out = |slots, instead| Step::Retire { node: node(0), slots, instead };
    assert_eq!(next(&[(node(0), 20)], &segments, 31), out(10, 0));
    assert_eq!(victim(&segments, (node(0), 10), None), Some(SegmentId(2)));
    assert_eq!(victim(&segments, (node(0), 10), Some(SegmentId(2))), Some(SegmentId(3)));
    assert_eq!(next(&[(node(0), 26)], &segments, 31), out(10, 6));
    // Of idle ones, the one that needs no replacement.
    let segments = [segment(1, 10, 0), segment(2, 4, 0)];
    assert_eq!(next(&[(node(0), 9)], &segments, 31), out(4, 0));
    assert_eq!(next(&[(node(0), 14)], &segments, 31), Step::Done);
}

#[test]
fn growing_takes_back_what_was_to_go_and_keeps_to_the_budget() {
    let going = |id, slots, busy| SegmentUse { retiring: true, ..segment(id, slots, busy) };
    let segments = [segment(1, 10, 0), going(2, 10, 1), going(3, 10, 7)];
    assert_eq!(next(&[(node(0), 20)], &segments, 31), Step::Revive(SegmentId(3)));
    // None fits, and before one has gone there is no room.
    assert_eq!(next(&[(node(0), 15)], &segments, 31), Step::Wait);
    let plan = SegmentPlan { node: node(0), slots: 5 };
    assert_eq!(next(&[(node(0), 15)], &segments[..1], 31), Step::Make(plan));
    assert_eq!(next(&[(node(0), 35)], &segments, 31), Step::Revive(SegmentId(3)));
}

proptest! {
    /// Whatever is asked for and however it is used: it ends with as many slots in use as were
    /// asked for, on every node. On the way no node has fewer than before, unless it should, and there
    /// are never more slots than before or asked for, but for a segment of each node.
    #[test]
    fn every_size_is_reached(
        sizes in proptest::collection::vec((0..60u64, 0..60u64, any::<u64>()), 1..12),
        slots_max in 1..20u32,
    ) {
        let mut model = Model::default();
        let mut before = 0;
        for (first, second, mut busy) in sizes {
            let shares = [(node(0), first + 1), (node(1), second)];
            let budget = first + 1 + second;
            model.most = model.held();
            let bound = model.most.max(budget).max(before) + 2 * u64::from(slots_max);
            let mut last = model.settle(&shares, slots_max);
            prop_assert!(model.most <= bound, "{} of {bound}", model.most);
            for one in &mut model.segments {
                busy = busy.rotate_left(7);
                one.busy = u32::try_from(busy % 3).unwrap().min(one.slots);
            }
            model.reap();
            if last == Step::Wait {
                prop_assert!(model.segments.iter().any(|one| one.retiring) || model.held() < budget);
                model.segments.iter_mut().for_each(|one| one.busy = 0);
                model.reap();
                last = model.settle(&shares, slots_max);
            }
            prop_assert_eq!(last, Step::Done);
            for (node, share) in shares {
                prop_assert_eq!(model.in_use(node), share);
            }
            before = budget;
        }
    }
}
