//! Threads on CPUs.

use rustix::thread::CpuSet;

use super::list::CpuList;
use super::{NodeId, NumaError};

/// Lets the calling thread run on these CPUs only, and with it the threads that it starts later.
pub fn pin_thread(cpus: &CpuList) -> Result<(), NumaError> {
    let mut set = CpuSet::new();
    let known = cpus.iter().map(|cpu| cpu as usize).filter(|cpu| *cpu < CpuSet::MAX_CPU);
    known.for_each(|cpu| set.set(cpu));
    rustix::thread::sched_setaffinity(None, &set)
        .map_err(|errno| NumaError::of("sched_setaffinity", errno, || format!("CPUs {cpus}")))
}

/// The CPUs that the calling thread may run on, if the kernel tells.
pub(super) fn affinity() -> Option<CpuList> {
    let set = rustix::thread::sched_getaffinity(None).ok()?;
    let cpus = (0..CpuSet::MAX_CPU).filter(|cpu| set.is_set(*cpu));
    let cpus: CpuList = cpus.filter_map(|cpu| u32::try_from(cpu).ok()).collect();
    Some(cpus).filter(|cpus| !cpus.is_empty())
}

/// The node of the CPU that the calling thread runs on at this moment.
pub fn current_node() -> Result<NodeId, NumaError> {
    let mut node = 0_u32;
    // SAFETY: getcpu writes one number to `node`; what is null it leaves out.
    let result = unsafe {
        libc::syscall(
            libc::SYS_getcpu,
            std::ptr::null_mut::<u32>(),
            &raw mut node,
            std::ptr::null_mut::<libc::c_void>(),
        )
    };
    if result == 0 { Ok(NodeId(node)) } else { Err(NumaError::last("getcpu", String::new)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// In a thread of its own: its affinity ends with it.
    fn apart<T: Send>(work: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| scope.spawn(work).join().unwrap())
    }

    #[test]
    fn a_thread_runs_where_it_is_pinned() {
        let Some(own) = affinity() else {
            return println!("skipped: this kernel does not tell the affinity of a thread");
        };
        let one: CpuList = own.iter().take(1).collect();
        apart(|| {
            pin_thread(&one).unwrap();
            assert_eq!(affinity(), Some(one.clone()));
            let cpu = rustix::thread::sched_getcpu();
            assert!(one.contains(u32::try_from(cpu).unwrap()), "it runs on {cpu}");
            current_node().unwrap();
        });
    }

    #[test]
    fn cpus_that_are_not_there_are_refused() {
        for cpus in ["", "1023", "60000"] {
            let cpus: CpuList = cpus.parse().unwrap();
            let refused = apart(|| pin_thread(&cpus).unwrap_err());
            assert_eq!(refused.label(), "not_allowed", "{refused}");
        }
    }
}
