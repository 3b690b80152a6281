//! What the machine's counters say about a cause, over the time of the whole load.
//!
//! They are of everything on the machine, or in the daemon's cgroup or network namespace, and not of
//! one load: they support a charge that was made on the load's own evidence, and never make one.

use std::time::Duration;

use super::Fact;
use crate::attribution::Cause;
use crate::evidence::{DiskDelta, GroupIoDelta, HostDelta, MemoryDelta, NetDelta, PressureDelta};

/// Figures that have to do with a cause, without those that are zero.
pub(super) fn facts(cause: Cause, host: &HostDelta) -> Vec<Fact> {
    let mut facts = match cause {
        Cause::TcpRetransmit => net(host, &[OUT_OF_ORDER, DUPLICATES, DROPPED]),
        Cause::TcpConnect => net(host, &[SYN_AGAIN, NOT_CONNECTED]),
        Cause::Dns => net(host, &[BAD_DATAGRAMS, DROPPED_DATAGRAMS]),
        Cause::OriginSlow => net(host, &[OUT_OF_ORDER, CLOSED_WINDOWS]),
        Cause::PageCache => memory(host),
        Cause::CpuThrottle | Cause::DecompressCpu | Cause::DecompressQueue | Cause::Verify => {
            cpu(host)
        }
        _ => Vec::new(),
    };
    if matches!(cause, Cause::PageCache | Cause::NvmeQueue | Cause::NvmeService) {
        facts.extend(disk(host));
    }
    facts.retain(|fact| fact.value > 0.0);
    facts
}

fn fact(source: &'static str, name: &str, value: f64, unit: &'static str) -> Fact {
    Fact { source, name: name.to_owned(), value, unit }
}

/// A counter of the network namespace: its name, what it counts, and where it is.
type NetFact = (&'static str, &'static str, fn(&NetDelta) -> u64);

const OUT_OF_ORDER: NetFact = ("out of order on this node", "segments", |net| net.ofo_queue);
const DUPLICATES: NetFact =
    ("sent again by others for nothing", "segments", |net| net.dsack_old + net.dsack_ofo);
const DROPPED: NetFact = ("dropped by full queues of this node", "segments", |net| {
    net.rcvq_drop + net.backlog_drop + net.ofo_drop + net.zero_window_drop
});
const SYN_AGAIN: NetFact = ("connection requests sent again", "segments", |net| net.syn_retrans);
const NOT_CONNECTED: NetFact = ("connects that failed", "connects", |net| net.failed_connects);
const BAD_DATAGRAMS: NetFact = ("bad datagrams", "datagrams", |net| net.datagram_errors);
const DROPPED_DATAGRAMS: NetFact =
    ("datagrams without room", "datagrams", |net| net.datagram_drops);
const CLOSED_WINDOWS: NetFact =
    ("windows that this node closed", "windows", |net| net.to_zero_window);

fn net(host: &HostDelta, wanted: &[NetFact]) -> Vec<Fact> {
    let Some(net) = &host.net else { return Vec::new() };
    let told = |(name, unit, get): &NetFact| fact("netstat", name, get(net) as f64, unit);
    wanted.iter().map(told).collect()
}

fn memory(host: &HostDelta) -> Vec<Fact> {
    let Some(memory) = &host.memory else { return Vec::new() };
    let MemoryDelta { major_faults, refaults, .. } = memory;
    vec![
        fact("memory", "major faults", *major_faults as f64, "faults"),
        fact("memory", "pages read again that had been given up", *refaults as f64, "pages"),
    ]
}

fn cpu(host: &HostDelta) -> Vec<Fact> {
    let mut facts = Vec::new();
    let seconds = |time: Duration| time.as_secs_f64();
    if let Some(cpu) = &host.cpu {
        let (spent, periods) = (cpu.throttled_periods as f64, cpu.periods as f64);
        facts.push(fact("cgroup", "periods in which the quota ran out", spent, "periods"));
        facts.push(fact("cgroup", "periods in all", periods, "periods"));
        let stolen = cpu.steal.map_or(0.0, seconds);
        facts.push(fact("proc_stat", "taken by the hypervisor, all CPUs", stolen, "s"));
    }
    let late = host.latest.map_or(0.0, seconds);
    let what = "the latest that a task was woken that takes bytes in";
    facts.push(fact("runtime_lag", what, late, "s"));
    if let Some(PressureDelta { cpu_some, .. }) = &host.pressure {
        let waited = seconds(*cpu_some);
        facts.push(fact("pressure", "some task had no CPU", waited, "s"));
    }
    facts
}

fn disk(host: &HostDelta) -> Vec<Fact> {
    let mut facts = Vec::new();
    if let Some(disk) = &host.disk {
        let DiskDelta { reads, read_ticks, busy, time_in_queue, .. } = disk;
        let over = host.over.as_secs_f64().max(1e-9);
        let each = if *reads == 0 { 0.0 } else { read_ticks.as_secs_f64() / *reads as f64 };
        facts.push(fact("block", "reads of the device", *reads as f64, "reads"));
        facts.push(fact("block", "time of a read", each, "s"));
        let queued = time_in_queue.as_secs_f64() / over;
        facts.push(fact("block", "in its queue, on average", queued, "requests"));
        facts.push(fact("block", "busy", busy.as_secs_f64(), "s"));
    }
    if let Some(GroupIoDelta { read_bytes, .. }) = &host.group_io {
        facts.push(fact("cgroup_io", "read by our cgroup", *read_bytes as f64, "B"));
    }
    if let Some(PressureDelta { io_some, .. }) = &host.pressure {
        facts.push(fact("pressure", "some task waited for a disk", io_some.as_secs_f64(), "s"));
    }
    facts
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::evidence::CpuDelta;

    fn host() -> HostDelta {
        let mut pressure = PressureDelta::default();
        pressure.cpu_some = Duration::from_millis(500);
        let mut group_io = GroupIoDelta::default();
        group_io.read_bytes = 4096;
        HostDelta {
            over: Duration::from_secs(2),
            over_slow: Duration::from_secs(2),
            cpu: Some(CpuDelta {
                throttled: Duration::from_secs(1),
                periods: 20,
                throttled_periods: 15,
                steal: None,
            }),
            pressure: Some(pressure),
            net: Some(NetDelta { ofo_queue: 7, ..NetDelta::default() }),
            memory: None,
            disk: Some(DiskDelta {
                reads: 10,
                read_ticks: Duration::from_millis(100),
                time_in_queue: Duration::from_secs(4),
                ..DiskDelta::default()
            }),
            sched: None,
            group_io: Some(group_io),
            latest: Some(Duration::from_millis(250)),
        }
    }

    const DISK: [(&str, f64); 4] =
        [("block", 10.0), ("block", 0.01), ("block", 2.0), ("cgroup_io", 4096.0)];

    #[test]
    fn a_cause_has_the_figures_that_belong_to_it_and_none_that_are_zero() {
        let told = |cause| {
            let facts = facts(cause, &host());
            facts.iter().map(|fact| (fact.source, fact.value)).collect::<Vec<_>>()
        };
        assert_eq!(told(Cause::TcpRetransmit), [("netstat", 7.0)]);
        assert_eq!(told(Cause::NvmeService), DISK);
        let late = ("runtime_lag", 0.25);
        let cpu = [("cgroup", 15.0), ("cgroup", 20.0), late, ("pressure", 0.5)];
        assert_eq!(told(Cause::CpuThrottle), cpu);
        assert_eq!(told(Cause::Client), []);
        assert_eq!(told(Cause::Dns), []);
    }
}
