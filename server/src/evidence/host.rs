//! The seam to what the machine did: a look at it, the difference of two looks, and what a source
//! of evidence says of itself.
//!
//! Counters only mean something as differences, and what cannot be read is `None` and never zero.
//! All parts are plain values; whoever took them owns them.

use std::fmt::Debug;
use std::time::Duration;

use tokio::time::Instant;

/// Reads the machine. A look at everything takes about as long as its slowest files do, so there is
/// a cheaper one.
pub(crate) trait HostEvidence: Send + Sync + Debug {
    /// Looks at everything.
    fn sample(&self) -> HostSample;

    /// Looks at what is cheap to read: throttling, pressure and the disk. The rest is `None`.
    fn glance(&self) -> HostSample {
        self.sample()
    }

    /// What can be read here, and why the rest cannot.
    fn sources(&self) -> Vec<SourceState>;
}

/// One look at the machine. Each part is `None` where it was not or cannot be read.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct HostSample {
    /// When.
    pub(crate) at: Instant,
    /// The CPU quota of our cgroup.
    pub(crate) cpu: Option<CpuSample>,
    /// Stalls of our cgroup, or of the machine where that is not told.
    pub(crate) pressure: Option<Pressure>,
    /// TCP and UDP of our network namespace.
    pub(crate) net: Option<NetCounters>,
    /// Faults and reclaim.
    pub(crate) memory: Option<MemorySample>,
    /// The device below the cache directory.
    pub(crate) disk: Option<DiskSample>,
    /// The daemon's threads.
    pub(crate) sched: Option<SchedSample>,
    /// What our cgroup read from block devices.
    pub(crate) group_io: Option<GroupIoSample>,
    /// How late the runtime was to look, if it was to look at a certain time.
    pub(crate) late: Option<Duration>,
}

impl HostSample {
    /// A look that saw nothing.
    pub(crate) fn blind(at: Instant) -> Self {
        Self {
            at,
            cpu: None,
            pressure: None,
            net: None,
            memory: None,
            disk: None,
            sched: None,
            group_io: None,
            late: None,
        }
    }

    /// Whether it looked at what is dear to read.
    pub(super) fn is_thorough(&self) -> bool {
        self.net.is_some() || self.memory.is_some() || self.sched.is_some()
    }
}

/// What happened between two looks; each part is `None` where it is not known.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct HostDelta {
    /// Time between the two looks that `cpu`, `pressure` and `disk` are from.
    pub(crate) over: Duration,
    /// Time between the two looks that `net`, `memory`, `sched` and the steal of `cpu` are from,
    /// which are taken less often; zero if there are no two such looks.
    pub(crate) over_slow: Duration,
    /// The CPU quota of our cgroup.
    pub(crate) cpu: Option<CpuDelta>,
    /// Stalls.
    pub(crate) pressure: Option<PressureDelta>,
    /// TCP and UDP of our network namespace.
    pub(crate) net: Option<NetDelta>,
    /// Faults and reclaim.
    pub(crate) memory: Option<MemoryDelta>,
    /// The device below the cache directory.
    pub(crate) disk: Option<DiskDelta>,
    /// The daemon's threads.
    pub(crate) sched: Option<SchedDelta>,
    /// What our cgroup read from block devices.
    pub(crate) group_io: Option<GroupIoDelta>,
    /// The latest that the runtime was to wake a task; none where nobody measured.
    pub(crate) latest: Option<Duration>,
}

/// How often and how long the CPU quota ran out, since the cgroups were made, summed over our
/// cgroup and those above it that can be seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct CpuSample {
    /// How often the process had been moved to another cgroup: counters of different ones do not
    /// compare.
    pub(super) moves: u32,
    /// See [`CpuDelta::throttled`].
    pub(crate) throttled: Duration,
    /// See [`CpuDelta::periods`].
    pub(crate) periods: u64,
    /// See [`CpuDelta::throttled_periods`].
    pub(crate) throttled_periods: u64,
    /// See [`CpuDelta::steal`]; none after a glance.
    pub(crate) steal: Option<Duration>,
}

/// What the CPU quota took.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct CpuDelta {
    /// Time without quota, summed over CPUs, so it can exceed the time that passed. The kernel
    /// counts it when it ends.
    pub(crate) throttled: Duration,
    /// Periods of the quota in which something ran.
    pub(crate) periods: u64,
    /// Those in which it ran out.
    pub(crate) throttled_periods: u64,
    /// Time that a hypervisor gave to others, of all CPUs of the machine together.
    pub(crate) steal: Option<Duration>,
}

/// Time in which some tasks, or all of them, were held up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Pressure {
    /// See [`CpuSample::moves`]; zero for the whole machine.
    pub(super) moves: u32,
    /// Some task had no CPU.
    pub(crate) cpu_some: Duration,
    /// Some task waited for a disk.
    pub(crate) io_some: Duration,
    /// All that were not idle did.
    pub(crate) io_full: Duration,
    /// Some task waited for memory.
    pub(crate) memory_some: Duration,
    /// All that were not idle did.
    pub(crate) memory_full: Duration,
}

/// The difference has the same fields.
pub(crate) type PressureDelta = Pressure;

/// Counters of `/proc/net/netstat` and `/proc/net/snmp`, of all sockets of the network namespace.
/// One that this kernel does not have stays zero, and its source names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct NetCounters {
    /// Segments that came out of order: loss or reordering on the way here.
    pub(crate) ofo_queue: u64,
    /// Segments out of order that there was no memory for.
    pub(crate) ofo_drop: u64,
    /// Connection requests sent again.
    pub(crate) syn_retrans: u64,
    /// Retransmission timers that ran out, of what we sent.
    pub(crate) timeouts: u64,
    /// Probes for the loss of the last segments that we sent.
    pub(crate) loss_probes: u64,
    /// Segments that we sent again on the word of later ones.
    pub(crate) fast_retrans: u64,
    /// Segments that we sent again, of any kind.
    pub(crate) retrans_segments: u64,
    /// Timers that ran out for nothing.
    pub(crate) spurious_timeouts: u64,
    /// Duplicates that we told the sender of: it sent something again that we had.
    pub(crate) dsack_old: u64,
    /// The same for segments out of order.
    pub(crate) dsack_ofo: u64,
    /// Segments merged in a receive queue that was short of memory.
    pub(crate) rcv_collapsed: u64,
    /// Receive queues cut for want of memory.
    pub(crate) pruned: u64,
    /// Segments that a full receive queue dropped.
    pub(crate) rcvq_drop: u64,
    /// Segments that a full backlog dropped, while a reader had the socket.
    pub(crate) backlog_drop: u64,
    /// Windows closed to the sender: we did not read.
    pub(crate) to_zero_window: u64,
    /// Segments dropped because our window was closed.
    pub(crate) zero_window_drop: u64,
    /// Windows that others closed to us.
    pub(crate) from_zero_window: u64,
    /// Segments with errors.
    pub(crate) segment_errors: u64,
    /// Connects that failed.
    pub(crate) failed_connects: u64,
    /// Connections that were reset.
    pub(crate) resets: u64,
    /// Datagrams with errors, or that there was no room for: of DNS.
    pub(crate) datagram_errors: u64,
    /// Datagrams for which the socket had no room.
    pub(crate) datagram_drops: u64,
}

/// The difference has the same fields.
pub(crate) type NetDelta = NetCounters;

/// Faults, and what making room in memory cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct MemorySample {
    /// See [`CpuSample::moves`].
    pub(super) moves: u32,
    /// Whether the refaults are those of our cgroup.
    pub(super) of_group: bool,
    /// See [`MemoryDelta`], as the rest.
    pub(crate) major_faults: u64,
    pub(crate) refaults: u64,
    pub(crate) direct_scans: u64,
    pub(crate) stalls: u64,
    pub(crate) compact_stalls: u64,
    pub(crate) high_events: Option<u64>,
    pub(crate) read_calls_bytes: Option<u64>,
    pub(crate) read_storage_bytes: Option<u64>,
}

/// What happened in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct MemoryDelta {
    /// Faults of the daemon that had to read from a disk.
    pub(crate) major_faults: u64,
    /// Pages of files that had been evicted a short while before they were wanted again: of our
    /// cgroup, or of the machine where that is not told.
    pub(crate) refaults: u64,
    /// Pages that tasks of the machine had to look through themselves to get memory.
    pub(crate) direct_scans: u64,
    /// How often tasks of the machine had to wait for memory.
    pub(crate) stalls: u64,
    /// How often they had to wait for large pages to be put together.
    pub(crate) compact_stalls: u64,
    /// How often our cgroup was held back at its limit.
    pub(crate) high_events: Option<u64>,
    /// Bytes that the daemon got from read calls, sockets included.
    pub(crate) read_calls_bytes: Option<u64>,
    /// Bytes that a disk had to bring for the daemon, by whichever way.
    pub(crate) read_storage_bytes: Option<u64>,
}

/// Counters of the device below the cache directory: of all who use it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct DiskSample {
    /// See [`DiskDelta`], as the rest.
    pub(crate) reads: u64,
    pub(crate) read_bytes: u64,
    pub(crate) read_ticks: Duration,
    pub(crate) writes: u64,
    pub(crate) write_ticks: Duration,
    pub(crate) busy: Duration,
    pub(crate) time_in_queue: Duration,
    pub(crate) inflight: u64,
}

/// What the device did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct DiskDelta {
    /// Reads that ended.
    pub(crate) reads: u64,
    /// What they brought.
    pub(crate) read_bytes: u64,
    /// How long they took, all together.
    pub(crate) read_ticks: Duration,
    /// Writes that ended.
    pub(crate) writes: u64,
    /// How long they took, all together.
    pub(crate) write_ticks: Duration,
    /// Time in which it had something to do. One that works on many things at once may have room
    /// for more.
    pub(crate) busy: Duration,
    /// Time that requests spent in it, all together: divided by the time that passed, the length of
    /// its queue.
    pub(crate) time_in_queue: Duration,
    /// Requests that it had at the end.
    pub(crate) inflight_at_end: u64,
}

/// Times of all threads of the daemon together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct SchedSample {
    /// On a CPU.
    pub(crate) run: Duration,
    /// Ready to run, and without a CPU.
    pub(crate) run_queue_wait: Duration,
    /// Threads that there are.
    pub(crate) threads: usize,
}

/// The difference has the same fields; `threads` is the number at the end.
pub(crate) type SchedDelta = SchedSample;

/// What the tasks of our cgroup read from block devices, since it was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct GroupIoSample {
    /// See [`CpuSample::moves`].
    pub(super) moves: u32,
    /// What the reads brought.
    pub(crate) read_bytes: u64,
    /// How many there were.
    pub(crate) reads: u64,
}

/// The difference has the same fields.
pub(crate) type GroupIoDelta = GroupIoSample;

impl GroupIoSample {
    pub(super) fn since(&self, before: &Self) -> Option<Self> {
        (self.moves == before.moves).then(|| Self {
            moves: self.moves,
            read_bytes: self.read_bytes.saturating_sub(before.read_bytes),
            reads: self.reads.saturating_sub(before.reads),
        })
    }
}

impl CpuSample {
    /// What happened since `before`, but for steal, which has looks of its own.
    pub(super) fn since(&self, before: &Self) -> Option<CpuDelta> {
        (self.moves == before.moves).then(|| CpuDelta {
            throttled: self.throttled.saturating_sub(before.throttled),
            periods: self.periods.saturating_sub(before.periods),
            throttled_periods: self.throttled_periods.saturating_sub(before.throttled_periods),
            steal: None,
        })
    }
}

impl Pressure {
    pub(super) fn since(&self, before: &Self) -> Option<Self> {
        (self.moves == before.moves).then(|| Self {
            moves: self.moves,
            cpu_some: self.cpu_some.saturating_sub(before.cpu_some),
            io_some: self.io_some.saturating_sub(before.io_some),
            io_full: self.io_full.saturating_sub(before.io_full),
            memory_some: self.memory_some.saturating_sub(before.memory_some),
            memory_full: self.memory_full.saturating_sub(before.memory_full),
        })
    }
}

/// A counter of [`NetCounters`]: where the kernel has it, and where it goes.
type NetCounter = (&'static str, &'static str, fn(&mut NetCounters) -> &mut u64);

/// All of them.
pub(super) const NET_COUNTERS: [NetCounter; 22] = [
    ("TcpExt", "TCPOFOQueue", |net| &mut net.ofo_queue),
    ("TcpExt", "TCPOFODrop", |net| &mut net.ofo_drop),
    ("TcpExt", "TCPSynRetrans", |net| &mut net.syn_retrans),
    ("TcpExt", "TCPTimeouts", |net| &mut net.timeouts),
    ("TcpExt", "TCPLossProbes", |net| &mut net.loss_probes),
    ("TcpExt", "TCPFastRetrans", |net| &mut net.fast_retrans),
    ("TcpExt", "TCPSpuriousRTOs", |net| &mut net.spurious_timeouts),
    ("TcpExt", "TCPDSACKOldSent", |net| &mut net.dsack_old),
    ("TcpExt", "TCPDSACKOfoSent", |net| &mut net.dsack_ofo),
    ("TcpExt", "TCPRcvCollapsed", |net| &mut net.rcv_collapsed),
    ("TcpExt", "PruneCalled", |net| &mut net.pruned),
    ("TcpExt", "TCPRcvQDrop", |net| &mut net.rcvq_drop),
    ("TcpExt", "TCPBacklogDrop", |net| &mut net.backlog_drop),
    ("TcpExt", "TCPToZeroWindowAdv", |net| &mut net.to_zero_window),
    ("TcpExt", "TCPZeroWindowDrop", |net| &mut net.zero_window_drop),
    ("TcpExt", "TCPFromZeroWindowAdv", |net| &mut net.from_zero_window),
    ("Tcp", "RetransSegs", |net| &mut net.retrans_segments),
    ("Tcp", "InErrs", |net| &mut net.segment_errors),
    ("Tcp", "AttemptFails", |net| &mut net.failed_connects),
    ("Tcp", "EstabResets", |net| &mut net.resets),
    ("Udp", "InErrors", |net| &mut net.datagram_errors),
    ("Udp", "RcvbufErrors", |net| &mut net.datagram_drops),
];

impl NetCounters {
    pub(super) fn since(mut self, mut before: Self) -> Self {
        for (_, _, counter) in &NET_COUNTERS {
            let counted = counter(&mut self);
            *counted = counted.saturating_sub(*counter(&mut before));
        }
        self
    }
}

impl MemorySample {
    pub(super) fn since(&self, before: &Self) -> Option<MemoryDelta> {
        let both = |now: Option<u64>, then: Option<u64>| Some(now?.saturating_sub(then?));
        let comparable = (self.moves, self.of_group) == (before.moves, before.of_group);
        comparable.then(|| MemoryDelta {
            major_faults: self.major_faults.saturating_sub(before.major_faults),
            refaults: self.refaults.saturating_sub(before.refaults),
            direct_scans: self.direct_scans.saturating_sub(before.direct_scans),
            stalls: self.stalls.saturating_sub(before.stalls),
            compact_stalls: self.compact_stalls.saturating_sub(before.compact_stalls),
            high_events: both(self.high_events, before.high_events),
            read_calls_bytes: both(self.read_calls_bytes, before.read_calls_bytes),
            read_storage_bytes: both(self.read_storage_bytes, before.read_storage_bytes),
        })
    }
}

impl DiskSample {
    pub(super) fn since(&self, before: &Self) -> DiskDelta {
        DiskDelta {
            reads: self.reads.saturating_sub(before.reads),
            read_bytes: self.read_bytes.saturating_sub(before.read_bytes),
            read_ticks: self.read_ticks.saturating_sub(before.read_ticks),
            writes: self.writes.saturating_sub(before.writes),
            write_ticks: self.write_ticks.saturating_sub(before.write_ticks),
            busy: self.busy.saturating_sub(before.busy),
            time_in_queue: self.time_in_queue.saturating_sub(before.time_in_queue),
            inflight_at_end: self.inflight,
        }
    }
}

impl SchedSample {
    pub(super) fn since(&self, before: &Self) -> Self {
        Self {
            run: self.run.saturating_sub(before.run),
            run_queue_wait: self.run_queue_wait.saturating_sub(before.run_queue_wait),
            threads: self.threads,
        }
    }
}

/// Where evidence comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Source {
    /// Throttling: `cpu.stat` of the cgroup.
    CpuStat,
    /// Stalls: PSI.
    Pressure,
    /// `/proc/net/netstat`.
    NetStat,
    /// `/proc/net/snmp`.
    Snmp,
    /// `memory.stat` of the cgroup.
    MemoryStat,
    /// `/proc/vmstat`.
    Vmstat,
    /// `stat` of the device below the cache directory.
    BlockDevice,
    /// `schedstat` of the daemon's threads.
    SchedStat,
    /// `/proc/self/mountinfo`.
    Mounts,
    /// cachestat(2).
    CacheStat,
    /// `/proc/self/io`.
    IoAccounting,
    /// The machine's nodes.
    Numa,
    /// TCP_INFO.
    TcpInfo,
    /// `io.stat` of the cgroup, or what version 1 has of that.
    GroupIo,
    /// preadv2(2) that does not wait.
    ReadNowait,
    /// How late the runtime is.
    RuntimeLag,
}

impl Source {
    /// Every source.
    pub(crate) const ALL: [Self; 16] = [
        Self::CpuStat,
        Self::Pressure,
        Self::NetStat,
        Self::Snmp,
        Self::MemoryStat,
        Self::Vmstat,
        Self::BlockDevice,
        Self::SchedStat,
        Self::Mounts,
        Self::CacheStat,
        Self::IoAccounting,
        Self::Numa,
        Self::TcpInfo,
        Self::GroupIo,
        Self::ReadNowait,
        Self::RuntimeLag,
    ];

    /// Its name.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::CpuStat => "cpu_stat",
            Self::Pressure => "pressure",
            Self::NetStat => "netstat",
            Self::Snmp => "snmp",
            Self::MemoryStat => "memory_stat",
            Self::Vmstat => "vmstat",
            Self::BlockDevice => "block_device",
            Self::SchedStat => "schedstat",
            Self::Mounts => "mounts",
            Self::CacheStat => "cachestat",
            Self::IoAccounting => "io_accounting",
            Self::Numa => "numa",
            Self::TcpInfo => "tcp_info",
            Self::GroupIo => "cgroup_io",
            Self::ReadNowait => "rwf_nowait",
            Self::RuntimeLag => "runtime_lag",
        }
    }
}

/// What a source says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SourceState {
    /// Which.
    pub(crate) source: Source,
    /// Whether it can be read.
    pub(crate) available: bool,
    /// Why not; or what to know of what it says. May be empty.
    pub(crate) why: String,
}
