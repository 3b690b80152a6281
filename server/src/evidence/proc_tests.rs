//! Written machines, a fake host, and what every reader of evidence has to do.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use tokio::time::Instant;

use super::block::CachePlace;
use super::files::Roots;
use super::host::{
    CpuSample, DiskSample, HostDelta, HostEvidence, HostSample, NetCounters, Pressure, SchedSample,
    Source, SourceState,
};
use super::proc::ProcEvidence;
use super::samples::Samples;

/// How a machine has its cgroups.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Layout {
    /// Controllers of version 1, and version 2 beside them without any.
    V1,
    /// Version 2.
    V2,
}
pub(super) use Layout::{V1, V2};

/// A line of 17 columns, of Linux 6.18.
pub(super) const STAT: &str = "   84930     6366  6439002   108245    25732   166132 89222624   \
                               312013        3    25872   435948    71880       42 36692744    \
                               15684      107        4\n";

const NETSTAT: &str = "\
TcpExt: SyncookiesSent PruneCalled TCPTimeouts TCPLossProbes TCPFastRetrans TCPSynRetrans \
TCPSpuriousRTOs TCPOFOQueue TCPOFODrop TCPDSACKOldSent TCPDSACKOfoSent TCPRcvCollapsed TCPRcvQDrop \
TCPBacklogDrop TCPToZeroWindowAdv TCPZeroWindowDrop TCPFromZeroWindowAdv
TcpExt: 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16
";
const SNMP: &str = "\
Ip: Forwarding DefaultTTL
Ip: 2 64
Tcp: RtoAlgorithm MaxConn AttemptFails EstabResets RetransSegs InErrs
Tcp: 1 -1 30 31 32 33
Udp: InDatagrams InErrors RcvbufErrors
Udp: 23 40 41
UdpLite: InDatagrams InErrors
UdpLite: 0 99
";
const VMSTAT: &str = "nr_dirty 64989\nworkingset_refault_anon 4\nworkingset_refault_file 590250\n\
                      allocstall_dma 0\nallocstall_normal 42\nallocstall_movable 275\n\
                      pgmajfault 2196\npgscan_direct 54441\ncompact_stall 763\n";

/// The files of a machine, in a folder of their own.
#[derive(Debug)]
pub(super) struct Tree {
    folder: tempfile::TempDir,
}

impl Tree {
    /// A machine that has everything, with this process in a group that is two levels down.
    pub(super) fn new(layout: Layout) -> Self {
        let tree = Self { folder: tempfile::tempdir().unwrap() };
        let resource = |kind: &str, total: u64| {
            let averages = "avg10=75.38 avg60=33.93 avg300=18.49";
            let full = total / 2;
            let text = format!("some {averages} total={total}\nfull {averages} total={full}\n");
            (format!("proc/pressure/{kind}"), text)
        };
        for (name, text) in [resource("cpu", 100), resource("io", 200), resource("memory", 300)] {
            tree.write(&name, &text);
        }
        tree.write("proc/net/netstat", NETSTAT);
        tree.write("proc/net/snmp", SNMP);
        tree.write("proc/vmstat", VMSTAT);
        tree.write("proc/stat", "cpu  70673 0 23185 45163 1232 0 193 251 0 0\n");
        tree.write("proc/self/stat", "7 (forebayd) S 1 7 7 0 -1 4194560 1 0 21 0 7 8 0 0 20 0\n");
        tree.write("proc/self/io", "rchar: 6976\nwchar: 0\nsyscr: 10\nread_bytes: 4096\n");
        tree.write("proc/self/task/7/schedstat", "153480 1262785 6\n");
        tree.write("sys/devices/system/node/node0/cpulist", "0-1\n");
        tree.write("sys/devices/disk/nvme0n1/stat", STAT);
        tree.link("sys/dev/block/259:0", "sys/devices/disk/nvme0n1");
        match layout {
            V1 => tree.version_1(),
            V2 => tree.version_2(),
        }
        tree
    }

    fn version_1(&self) {
        self.write(
            "proc/self/cgroup",
            "9:name=systemd:/\n7:blkio:/pods/a\n4:memory:/pods/a\n2:cpu,cpuacct:/pods/a\n0::/\n",
        );
        let mounts = "32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n\
                      35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
                      37 31 0:34 / /sys/fs/cgroup/blkio rw - cgroup cgroup rw,blkio\n\
                      41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";
        self.write("proc/self/mountinfo", mounts);
        let cpu = |periods: u32, throttled: u32, nanos: u64| {
            format!(
                "nr_periods {periods}\nnr_throttled {throttled}\nthrottled_time {nanos}\n\
                 nr_bursts 0\nburst_time 0\n"
            )
        };
        let group = "sys/fs/cgroup/cpu,cpuacct";
        self.write(&format!("{group}/pods/a/cpu.stat"), &cpu(40, 30, 1_500_000_000));
        self.write(&format!("{group}/pods/cpu.stat"), &cpu(8, 4, 250_000_000));
        self.write(&format!("{group}/cpu.stat"), &cpu(0, 0, 0));
        let memory = "cache 1\nworkingset_refault_file 5\ntotal_workingset_refault_anon 6\n\
                      total_workingset_refault_file 77\ntotal_pgmajfault 3\n";
        self.write("sys/fs/cgroup/memory/pods/a/memory.stat", memory);
        self.write("sys/fs/cgroup/memory/pods/a/memory.failcnt", "9\n");
        let reads = |much: u64| format!("259:0 Read {much}\n259:0 Write 7\nTotal {much}\n");
        let io = "sys/fs/cgroup/blkio/pods/a/blkio.throttle";
        self.write(&format!("{io}.io_service_bytes_recursive"), &reads(12288));
        self.write(&format!("{io}.io_serviced_recursive"), &reads(3));
        self.write("sys/fs/cgroup/unified/cpu.stat", "usage_usec 1\nuser_usec 1\n");
    }

    fn version_2(&self) {
        self.write("proc/self/cgroup", "0::/pods/a\n");
        let mounts = "35 30 0:29 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw,nsdelegate\n";
        self.write("proc/self/mountinfo", mounts);
        let cpu = |periods: u32, throttled: u32, micros: u64| {
            format!(
                "usage_usec 965472022\nuser_usec 1\nsystem_usec 2\nnr_periods {periods}\n\
                 nr_throttled {throttled}\nthrottled_usec {micros}\nnr_bursts 0\nburst_usec 0\n"
            )
        };
        self.write("sys/fs/cgroup/pods/a/cpu.stat", &cpu(40, 30, 1_500_000));
        self.write("sys/fs/cgroup/pods/cpu.stat", &cpu(8, 4, 250_000));
        self.write("sys/fs/cgroup/cpu.stat", "usage_usec 965472022\nuser_usec 1\n");
        let memory = "anon 1\nfile 2\nworkingset_refault_anon 6\nworkingset_refault_file 77\n";
        self.write("sys/fs/cgroup/pods/a/memory.stat", memory);
        self.write("sys/fs/cgroup/pods/a/memory.events", "low 0\nhigh 9\nmax 2\noom_kill 0\n");
        let io =
            "259:0 rbytes=8192 wbytes=5 rios=2 wios=1\n8:0 rbytes=4096 wbytes=0 rios=1 wios=0\n";
        self.write("sys/fs/cgroup/pods/a/io.stat", io);
        for (kind, total) in [("cpu", 1), ("io", 2), ("memory", 3)] {
            let text = format!("some avg10=0.00 total={total}\nfull avg10=0.00 total=0\n");
            self.write(&format!("sys/fs/cgroup/pods/a/{kind}.pressure"), &text);
        }
    }

    pub(super) fn roots(&self) -> Roots {
        Roots { proc: self.path("proc"), sys: self.path("sys") }
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(super) fn write(&self, name: &str, text: &str) {
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }

    pub(super) fn remove(&self, name: &str) {
        std::fs::remove_file(self.path(name)).unwrap();
    }

    /// A link from one name to another of the tree.
    pub(super) fn link(&self, name: &str, to: &str) {
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::os::unix::fs::symlink(self.path(to), path).unwrap();
    }

    fn evidence(&self) -> ProcEvidence {
        let place = CachePlace { dir: "/cache".into(), device: Some((259, 0)) };
        ProcEvidence::open(self.roots(), Some(&place))
    }
}

/// A host whose counters grow by one with each look.
#[derive(Debug, Default)]
pub(super) struct FakeHost {
    thorough: AtomicU32,
    glances: AtomicU32,
}

impl FakeHost {
    /// How often it was looked at, thoroughly and otherwise.
    pub(super) fn looks(&self) -> (u32, u32) {
        (self.thorough.load(Ordering::Relaxed), self.glances.load(Ordering::Relaxed))
    }

    fn look(&self, counter: &AtomicU32) -> HostSample {
        counter.fetch_add(1, Ordering::Relaxed);
        let (thorough, glances) = self.looks();
        let time = Duration::from_millis(1) * (thorough + glances);
        HostSample {
            cpu: Some(CpuSample { throttled: time, ..CpuSample::default() }),
            pressure: Some(Pressure { cpu_some: time, ..Pressure::default() }),
            disk: Some(DiskSample { busy: time, ..DiskSample::default() }),
            ..HostSample::blind(Instant::now())
        }
    }
}

impl HostEvidence for FakeHost {
    fn sample(&self) -> HostSample {
        let look = self.look(&self.thorough);
        let run = look.cpu.unwrap().throttled;
        let sched = SchedSample { run, threads: 1, ..SchedSample::default() };
        HostSample { net: Some(NetCounters::default()), sched: Some(sched), ..look }
    }

    fn glance(&self) -> HostSample {
        self.look(&self.glances)
    }

    fn sources(&self) -> Vec<SourceState> {
        let why = "a fake".to_owned();
        let known = [Source::CpuStat, Source::BlockDevice, Source::SchedStat];
        let known = known.map(|source| SourceState { source, available: true, why: why.clone() });
        known.into()
    }
}

/// What every reader has to do.
fn contract(host: &dyn HostEvidence) -> HostDelta {
    let samples = Samples::default();
    let mut looks = vec![host.sample()];
    looks.extend((0..3).map(|_| host.glance()));
    looks.push(host.sample());
    for pair in looks.windows(2) {
        assert!(pair[0].at <= pair[1].at, "looks are in order");
    }
    let (first, last) = (&looks[0], &looks[4]);
    assert_eq!(first.net.is_some(), last.net.is_some(), "a source does not come and go");
    for glance in &looks[1..4] {
        assert!(!glance.is_thorough(), "a glance is cheap");
        assert_eq!(glance.cpu.is_some(), first.cpu.is_some());
        assert_eq!(glance.disk.is_some(), first.disk.is_some());
    }
    let sources = host.sources();
    assert!(sources.windows(2).all(|pair| pair[0].source < pair[1].source), "each once, in order");
    for state in &sources {
        assert!(state.available || !state.why.is_empty(), "{state:?} does not say why");
        let told = match state.source {
            Source::CpuStat => first.cpu.is_some(),
            Source::BlockDevice => first.disk.is_some(),
            Source::SchedStat => first.sched.is_some(),
            _ => continue,
        };
        assert_eq!(told, state.available, "{state:?}");
    }
    let (from, to) = (first.at, last.at);
    for look in looks {
        samples.record(look);
    }
    samples.between(from, to).unwrap()
}

#[test]
fn every_reader_keeps_the_contract() {
    let fake = contract(&FakeHost::default());
    assert_eq!(fake.cpu.unwrap().throttled, Duration::from_millis(4));
    for layout in [V1, V2] {
        let tree = Tree::new(layout);
        let still = contract(&tree.evidence());
        assert_eq!(still.cpu.unwrap().throttled, Duration::ZERO);
        assert_eq!(still.disk.unwrap().inflight_at_end, 3);
    }
    contract(&ProcEvidence::open(Roots::system(), None));
}

#[test]
fn a_whole_machine_is_read_in_our_units() {
    let tree = Tree::new(V1);
    let look = tree.evidence().sample();
    let cpu = look.cpu.unwrap();
    assert_eq!(cpu.throttled, Duration::from_millis(1750));
    let per_second = rustix::param::clock_ticks_per_second();
    assert_eq!(cpu.steal, Some(Duration::from_millis(251_000 / per_second)));
    let pressure = look.pressure.unwrap();
    assert_eq!((pressure.cpu_some.as_micros(), pressure.io_some.as_micros()), (100, 200));
    assert_eq!((pressure.io_full.as_micros(), pressure.memory_full.as_micros()), (100, 150));
    let net = look.net.unwrap();
    assert_eq!((net.ofo_queue, net.syn_retrans, net.to_zero_window), (7, 5, 14));
    assert_eq!((net.rcvq_drop, net.backlog_drop, net.pruned, net.dsack_old), (12, 13, 1, 9));
    assert_eq!((net.failed_connects, net.resets, net.retrans_segments), (30, 31, 32));
    assert_eq!((net.datagram_errors, net.datagram_drops), (40, 41));
    let memory = look.memory.unwrap();
    assert_eq!((memory.major_faults, memory.refaults, memory.high_events), (21, 77, Some(9)));
    assert_eq!((memory.direct_scans, memory.stalls, memory.compact_stalls), (54441, 317, 763));
    assert_eq!(memory.read_calls_bytes.zip(memory.read_storage_bytes), Some((6976, 4096)));
    assert_eq!(look.sched.unwrap().run_queue_wait.as_nanos(), 1_262_785);
    let disk = look.disk.unwrap();
    assert_eq!((disk.reads, disk.read_ticks.as_millis(), disk.inflight), (84930, 108_245, 3));
    // Of a group, where it tells.
    let pressure = Tree::new(V2).evidence().sample().pressure.unwrap();
    assert_eq!((pressure.cpu_some.as_micros(), pressure.memory_some.as_micros()), (1, 3));
}

#[test]
fn what_is_not_there_is_unknown_and_not_zero() {
    let tree = Tree::new(V1);
    for name in ["cpu", "io", "memory"] {
        tree.remove(&format!("proc/pressure/{name}"));
    }
    for name in ["net/snmp", "vmstat", "stat", "self/cgroup", "self/mountinfo"] {
        tree.remove(&format!("proc/{name}"));
    }
    std::fs::remove_dir_all(tree.path("proc/self/task")).unwrap();
    let evidence = ProcEvidence::open(tree.roots(), None);
    let look = evidence.sample();
    assert_eq!(look, HostSample::blind(look.at));
    let states = evidence.sources();
    let known: Vec<_> = states.iter().filter(|s| s.available).map(|s| s.source).collect();
    let here = [Source::NetStat, Source::CacheStat, Source::IoAccounting, Source::Numa];
    // What no file tells is there all the same.
    let called = [Source::TcpInfo, Source::ReadNowait, Source::RuntimeLag];
    let here: Vec<_> = here.into_iter().chain(called).collect();
    assert!(known.iter().all(|source| here.contains(source)), "{known:?}");
    let psi = states.iter().find(|state| state.source == Source::Pressure).unwrap();
    assert!(psi.why.contains("CONFIG_PSI"), "{psi:?}");
}

#[test]
fn counters_that_a_kernel_does_not_have_are_named() {
    let tree = Tree::new(V2);
    tree.write("proc/net/netstat", "TcpExt: TCPOFOQueue TCPTimeouts\nTcpExt: 4 2\n");
    let evidence = tree.evidence();
    let net = evidence.sample().net.unwrap();
    assert_eq!((net.ofo_queue, net.timeouts, net.rcvq_drop), (4, 2, 0));
    let states = evidence.sources();
    let netstat = states.iter().find(|state| state.source == Source::NetStat).unwrap();
    assert!(netstat.available && netstat.why.contains("TCPRcvQDrop"), "{netstat:?}");
    assert!(!netstat.why.contains("TCPOFOQueue"));
}

#[test]
fn a_process_that_is_moved_is_followed_and_its_groups_are_not_compared() {
    let tree = Tree::new(V2);
    let (evidence, samples) = (tree.evidence(), Samples::default());
    let first = evidence.sample();
    tree.write("sys/fs/cgroup/pods/a/cpu.stat", "nr_throttled 31\nthrottled_usec 1600000\n");
    let second = evidence.sample();
    tree.write(
        "sys/fs/cgroup/b/cpu.stat",
        "nr_periods 2\nnr_throttled 1\nthrottled_usec 2000000\n",
    );
    tree.write("proc/self/cgroup", "0::/b\n");
    let third = evidence.sample();
    assert_eq!(third.cpu.unwrap().throttled, Duration::from_secs(2));
    let (one, two, three) = (first.at, second.at, third.at);
    [first, second, third].into_iter().for_each(|look| samples.record(look));
    let cpu = samples.between(one, two).unwrap().cpu.unwrap();
    assert_eq!((cpu.throttled, cpu.throttled_periods), (Duration::from_millis(100), 1));
    assert_eq!(samples.between(two, three).unwrap().cpu, None);
}

/// Work that shows in the counters.
fn work(folder: &Path) {
    let mut sum = 0_u64;
    for number in 0..3_000_000_u64 {
        sum = sum.wrapping_add(std::hint::black_box(number * number));
    }
    std::fs::write(folder.join("work"), sum.to_string().repeat(50_000)).unwrap();
}

#[test]
fn this_machine_is_plausible() {
    let folder = tempfile::tempdir().unwrap();
    let place = CachePlace::of(folder.path()).unwrap();
    let evidence = ProcEvidence::open(Roots::system(), Some(&place));
    for state in evidence.sources() {
        println!("{:?} available={} {}", state.source, state.available, state.why);
    }
    let samples = Samples::default();
    let first = evidence.sample();
    work(folder.path());
    let last = evidence.sample();
    let (from, to) = (first.at, last.at);
    [first, last].into_iter().for_each(|look| samples.record(look));
    let delta = samples.between(from, to).unwrap();
    println!("{delta:#?}");
    let cpus = u32::try_from(std::thread::available_parallelism().unwrap().get()).unwrap();
    // Clocks of the kernel go in ticks of up to 10 ms, and its counters may be late by one.
    let over = delta.over + Duration::from_millis(20);
    if let Some(sched) = delta.sched {
        assert!(sched.run > Duration::ZERO && sched.threads > 0);
        let threads = u32::try_from(sched.threads).unwrap();
        assert!(sched.run <= over * cpus * 2 && sched.run_queue_wait <= over * threads * 2);
    }
    if let Some(disk) = delta.disk {
        assert!(disk.busy <= over * 2, "{disk:?}");
    }
    if let Some(pressure) = delta.pressure {
        assert!(pressure.cpu_some <= over * 2 && pressure.io_full <= pressure.io_some + over);
    }
    if let Some(memory) = delta.memory {
        assert!(memory.read_calls_bytes.is_none_or(|bytes| bytes > 0), "it read these very files");
    }
    if let Some(net) = delta.net {
        assert!(net.retrans_segments < 1 << 32, "a difference, and no sum since the boot");
    }
}

/// How long looks take, in this build: `cargo test -- --nocapture cost_of_a_look`.
#[test]
fn cost_of_a_look() {
    let folder = tempfile::tempdir().unwrap();
    let place = CachePlace::of(folder.path()).unwrap();
    let evidence = ProcEvidence::open(Roots::system(), Some(&place));
    let cost = |look: &dyn Fn() -> HostSample| {
        let rounds = 200_u32;
        let spent = || {
            Duration::try_from(rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime))
        };
        let before = spent().unwrap();
        for _ in 0..rounds {
            std::hint::black_box(look());
        }
        (spent().unwrap() - before) / rounds
    };
    let (thorough, glance) = (cost(&|| evidence.sample()), cost(&|| evidence.glance()));
    let per_second = (glance * 3 + thorough) * 10;
    println!("a thorough look {thorough:?}, a glance {glance:?}: {per_second:?} a second");
    assert!(glance < Duration::from_millis(10), "a glance {glance:?}");
}
