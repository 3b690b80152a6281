//! Workers by NUMA node: work on a slot is done by CPUs of the node that the slot lies on.
//!
//! Each node whose CPUs this process may use has threads of its own, one per physical core less two
//! (at least one), with a queue of its own; they may run on any of the node's CPUs and on no other.
//! Work for memory of a node without usable CPUs goes to the nearest that has some. A machine with
//! one node has one queue, and its threads are not pinned: they are where they should be, and a
//! cpuset that grows later is theirs too.
//!
//! Threads of others that touch a slot, as those that read the NVMe tier, [`sit`](NodeWorkers::sit)
//! down at its node for as long as they work on it.
//!
//! Pinning is asked for and not relied on: it may be forbidden, and a CPU may be unplugged. So each
//! job looks, when it is done, on which node it ran, and what was done far from its memory is
//! counted.

use std::cell::Cell;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use forebay_io::{CpuList, NodeId, NumaError, NumaPlan};

use super::{Stopped, Workers};
use crate::timeline::Clue;

/// Physical cores of a node that are left to the runtime, the kernel and the clients.
const CORES_LEFT: usize = 2;

/// What the calling thread's work on some memory has to say about itself: whether it is far.
pub(crate) fn distance(memory: NodeId) -> Clue {
    match forebay_io::current_node() {
        Ok(here) if here != memory => Clue::Far,
        _ => Clue::None,
    }
}

thread_local! {
    /// The node that this thread sat down at last.
    static SEAT: Cell<Option<NodeId>> = const { Cell::new(None) };
}

/// How a thread is pinned, and how it learns where it runs.
#[derive(Debug, Clone, Copy)]
struct Calls {
    pin: fn(&CpuList) -> Result<(), NumaError>,
    here: fn() -> Option<NodeId>,
}

impl Calls {
    const KERNEL: Self =
        Self { pin: forebay_io::pin_thread, here: || forebay_io::current_node().ok() };
}

/// The threads of every node.
#[derive(Debug)]
pub(crate) struct NodeWorkers {
    plan: Arc<NumaPlan>,
    pools: Vec<NodePool>,
    /// Whose turn it is for work that is the same everywhere.
    next: AtomicUsize,
    calls: Calls,
}

#[derive(Debug)]
struct NodePool {
    node: NodeId,
    workers: Workers,
    count: usize,
    /// What they are pinned to, if to anything.
    cpus: Option<CpuList>,
    told: Arc<Told>,
}

/// What the threads of a node have to tell.
#[derive(Debug, Default)]
struct Told {
    pinned: AtomicUsize,
    jobs: AtomicU64,
    offnode: AtomicU64,
    refused: OnceLock<String>,
}

impl Told {
    fn pinned(&self, pinned: Result<(), NumaError>) {
        match pinned {
            Ok(()) => drop(self.pinned.fetch_add(1, Ordering::Relaxed)),
            // The first one speaks for all: what is forbidden is so for each of them.
            Err(error) => drop(self.refused.set(error.to_string())),
        }
    }
}

/// The workers of one node, for whoever looks at the daemon.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct WorkerState {
    /// Which node.
    pub(crate) node: NodeId,
    /// Threads.
    pub(crate) workers: usize,
    /// Those that are pinned to the node's CPUs.
    pub(crate) pinned: usize,
    /// What they have done.
    pub(crate) jobs: u64,
    /// What of that was for memory of another node than the one it ran on.
    pub(crate) offnode: u64,
}

impl NodeWorkers {
    /// Starts the threads, named after `name` and their node.
    pub(crate) fn start(name: &str, plan: Arc<NumaPlan>) -> std::io::Result<Self> {
        Self::start_with(name, plan, Calls::KERNEL)
    }

    fn start_with(name: &str, plan: Arc<NumaPlan>, calls: Calls) -> std::io::Result<Self> {
        let several = plan.nodes().len() > 1;
        let mut pools = Vec::new();
        for node in plan.work_nodes() {
            let count = node.cores.saturating_sub(CORES_LEFT).max(1);
            let cpus = several.then(|| node.cpus.clone());
            pools.push(NodePool::start((name, calls), node.id, count, cpus)?);
        }
        if pools.is_empty() {
            // Which CPUs are whose is not known.
            let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
            let count = cores.saturating_sub(CORES_LEFT).max(1);
            let node = plan.nodes().first().map_or(NodeId(0), |node| node.id);
            pools.push(NodePool::start((name, calls), node, count, None)?);
        }
        Ok(Self { plan, pools, next: AtomicUsize::new(0), calls })
    }

    /// Runs `work` on a worker of the node that the memory it works on lies on; on any, if that is
    /// the same or not known. Waits while the node's queue is full. Dropped before it ran, the work
    /// is still run, and its result dropped there.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        memory: Option<NodeId>,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Stopped> {
        let pool = self.pool_for(memory).ok_or(Stopped)?;
        let (told, here) = (Arc::clone(&pool.told), self.calls.here);
        let watched = move || {
            let done = work();
            told.jobs.fetch_add(1, Ordering::Relaxed);
            let elsewhere = memory.zip(here()).is_some_and(|(memory, here)| memory != here);
            told.offnode.fetch_add(u64::from(elsewhere), Ordering::Relaxed);
            done
        };
        pool.workers.run(watched).await
    }

    /// Has the calling thread run on the node of some memory from now on, or on the nearest with
    /// CPUs, if it may. With one node nothing changes.
    pub(crate) fn sit(&self, memory: NodeId) {
        let node = self.plan.workers_for(memory);
        let Some(pool) = self.pools.iter().find(|pool| Some(pool.node) == node) else { return };
        let Some(cpus) = pool.cpus.as_ref().filter(|_| SEAT.get() != node) else { return };
        // The workers of the node were refused the same, and have said so.
        if (self.calls.pin)(cpus).is_ok() {
            SEAT.set(node);
        }
    }

    fn pool_for(&self, memory: Option<NodeId>) -> Option<&NodePool> {
        let node = memory.and_then(|memory| self.plan.workers_for(memory));
        let found = node.and_then(|node| self.pools.iter().find(|pool| pool.node == node));
        found.or_else(|| {
            let turn = self.next.fetch_add(1, Ordering::Relaxed) % self.pools.len().max(1);
            self.pools.get(turn)
        })
    }

    /// The workers of each node.
    pub(crate) fn states(&self) -> Vec<WorkerState> {
        let state = |pool: &NodePool| WorkerState {
            node: pool.node,
            workers: pool.count,
            pinned: pool.told.pinned.load(Ordering::Relaxed),
            jobs: pool.told.jobs.load(Ordering::Relaxed),
            offnode: pool.told.offnode.load(Ordering::Relaxed),
        };
        self.pools.iter().map(state).collect()
    }

    /// Threads that are not pinned although they should be, and why.
    pub(crate) fn degraded(&self) -> Vec<String> {
        let refused = |pool: &NodePool| {
            let why = pool.told.refused.get()?;
            Some(format!("numa: workers for node {} run anywhere: {why}", pool.node))
        };
        self.pools.iter().filter_map(refused).collect()
    }

    /// One thread on one node.
    #[cfg(test)]
    pub(crate) fn for_tests() -> Arc<Self> {
        let machine = forebay_testkit::WrittenMachine::new(&[forebay_testkit::WrittenNode {
            id: 0,
            cpus: "0-1",
            memory_kilobytes: 4096,
        }]);
        let plan = Arc::new(NumaPlan::of(&machine.topology()));
        Arc::new(Self::start("test", plan).unwrap())
    }
}

impl NodePool {
    /// Starts threads that run on `cpus`, or anywhere.
    fn start(
        (name, calls): (&str, Calls),
        node: NodeId,
        count: usize,
        cpus: Option<CpuList>,
    ) -> std::io::Result<Self> {
        let told = Arc::<Told>::default();
        let (teller, own) = (Arc::clone(&told), cpus.clone());
        let begin = move |_| {
            if let Some(cpus) = &own {
                teller.pinned((calls.pin)(cpus));
            }
        };
        let workers = Workers::start_threads(&format!("{name}-n{node}"), count, true, begin)?;
        Ok(Self { node, workers, count, cpus, told })
    }
}

#[cfg(test)]
mod tests {
    use forebay_testkit::{WrittenMachine, WrittenNode};

    use super::*;

    thread_local! {
        static PINNED_TO: Cell<Option<u32>> = const { Cell::new(None) };
    }

    /// Threads run on the first CPU that they are pinned to; four CPUs make a node.
    const TAME: Calls = Calls {
        pin: |cpus| {
            PINNED_TO.set(cpus.iter().next());
            Ok(())
        },
        here: || PINNED_TO.get().map(|cpu| NodeId(cpu / 4)),
    };

    /// Nothing may be pinned; everything runs on node 0.
    const FORBIDDEN: Calls = Calls {
        pin: |_| Err(NumaError::Forbidden { call: "sched_setaffinity" }),
        here: || Some(NodeId(0)),
    };

    fn plan(nodes: &[(u32, &'static str)], allowed: &str) -> Arc<NumaPlan> {
        let node =
            |&(id, cpus): &(u32, &'static str)| WrittenNode { id, cpus, memory_kilobytes: 1 << 20 };
        let machine = WrittenMachine::new(&nodes.iter().map(node).collect::<Vec<_>>());
        machine.allow(allowed, "0-9");
        Arc::new(NumaPlan::of(&machine.topology()))
    }

    fn two() -> Arc<NumaPlan> {
        plan(&[(0, "0-3"), (1, "4-7")], "0-7")
    }

    fn start(plan: Arc<NumaPlan>, calls: Calls) -> NodeWorkers {
        NodeWorkers::start_with("test", plan, calls).unwrap()
    }

    async fn where_it_runs(workers: &NodeWorkers, memory: Option<u32>) -> Option<NodeId> {
        let here = workers.calls.here;
        workers.run(memory.map(NodeId), here).await.unwrap()
    }

    fn offnode(workers: &NodeWorkers) -> Vec<u64> {
        workers.states().iter().map(|state| state.offnode).collect()
    }

    #[tokio::test]
    async fn work_runs_on_the_node_of_its_memory() {
        let workers = start(two(), TAME);
        for node in [1, 0, 1, 1] {
            assert_eq!(where_it_runs(&workers, Some(node)).await, Some(NodeId(node)));
        }
        let state = |node, jobs| WorkerState {
            node: NodeId(node),
            workers: 1,
            pinned: 1,
            jobs,
            offnode: 0,
        };
        assert_eq!(workers.states(), [state(0, 1), state(1, 3)]);
        assert!(workers.degraded().is_empty());
    }

    #[tokio::test]
    async fn work_without_a_place_is_spread() {
        let workers = start(two(), TAME);
        let first = where_it_runs(&workers, None).await;
        assert_ne!(first, where_it_runs(&workers, None).await);
        assert_eq!(offnode(&workers), [0, 0]);
    }

    #[tokio::test]
    async fn workers_that_cannot_be_pinned_run_anywhere_and_say_so() {
        let workers = start(two(), FORBIDDEN);
        assert_eq!(where_it_runs(&workers, Some(1)).await, Some(NodeId(0)));
        assert_eq!(where_it_runs(&workers, Some(0)).await, Some(NodeId(0)));
        assert_eq!(offnode(&workers), [0, 1]);
        assert_eq!(workers.states()[1].pinned, 0);
        let said = workers.degraded();
        assert!(said.len() == 2 && said[1].contains("node 1 run anywhere"), "{said:?}");
        assert!(said[1].contains("seccomp"), "{said:?}");
    }

    #[tokio::test]
    async fn memory_without_usable_cpus_is_worked_on_elsewhere_and_counted() {
        for plan in [plan(&[(0, "0-3"), (1, "4-7")], "0-3"), plan(&[(0, "0-3"), (1, "")], "0-7")] {
            let workers = start(plan, TAME);
            assert_eq!(where_it_runs(&workers, Some(1)).await, Some(NodeId(0)));
            assert_eq!(offnode(&workers), [1]);
        }
    }

    #[test]
    fn threads_of_others_sit_down_where_they_work() {
        let workers = start(two(), TAME);
        let here = || (TAME.here)().map(|node| node.0);
        for node in [1, 1, 0, 1] {
            workers.sit(NodeId(node));
            assert_eq!((here(), SEAT.get()), (Some(node), Some(NodeId(node))));
        }
        let only_first = start(plan(&[(0, "0-3"), (1, "4-7")], "0-3"), TAME);
        only_first.sit(NodeId(1));
        assert_eq!(here(), Some(0), "the nearest with CPUs");
        start(two(), FORBIDDEN).sit(NodeId(1));
        assert_eq!(
            (here(), SEAT.get()),
            (Some(0), Some(NodeId(0))),
            "what is refused changes nothing"
        );
        start(plan(&[(1, "4-7")], "0-9"), TAME).sit(NodeId(1));
        assert_eq!(here(), Some(0), "nor does one node");
    }

    #[tokio::test]
    async fn one_node_is_not_pinned_and_a_process_without_cpus_works() {
        let one = start(plan(&[(0, "0-7")], "0-7"), FORBIDDEN);
        where_it_runs(&one, Some(0)).await;
        assert_eq!((one.states()[0].workers, one.states()[0].pinned), (2, 0));
        assert!(one.degraded().is_empty(), "nothing was asked for");
        let none = start(plan(&[(0, "0-3"), (1, "4-7")], "60"), TAME);
        where_it_runs(&none, Some(1)).await;
        assert_eq!(none.states().iter().map(|state| state.jobs).sum::<u64>(), 1);
    }
}
