//! The real evidence: the files of `/proc` and `/sys`, kept open and read from their start.
//!
//! A look reads in two sizes. A glance reads the small files (throttling, pressure, the disk's
//! `stat`: a microsecond or two each). A thorough look also reads those that the kernel puts
//! together from many places (`netstat`, `snmp`, `vmstat`, `/proc/stat`, one `schedstat` per
//! thread), and asks whether the process was moved to another cgroup, whose files it then opens.
//! Owns all of these files, and the text buffer that they are read into, behind one lock.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use std::os::fd::AsFd;

use forebay_io::cache_state;
use tokio::time::Instant;

use super::block::{BlockDevice, CachePlace};
use super::cgroup::Cgroup;
use super::files::{KeptFile, Roots, TextBuffer};
use super::host::{
    CpuSample, GroupIoSample, HostEvidence, HostSample, MemorySample, NET_COUNTERS, NetCounters,
    Pressure, Source, SourceState,
};
use super::mounts::mounts;
use super::text;
use super::threads::Threads;

/// Reads `/proc` and `/sys`.
#[derive(Debug)]
pub(crate) struct ProcEvidence {
    roots: Roots,
    readers: Mutex<Readers>,
}

#[derive(Debug)]
struct Readers {
    buffer: TextBuffer,
    group_file: KeptFile,
    /// What it said.
    group_text: String,
    /// How often that changed.
    moves: u32,
    group: Cgroup,
    pressure: [KeptFile; 3],
    netstat: KeptFile,
    snmp: KeptFile,
    vmstat: KeptFile,
    machine_stat: KeptFile,
    own_stat: KeptFile,
    own_io: KeptFile,
    disk: BlockDevice,
    threads: Threads,
    ticks_per_second: u64,
}

impl ProcEvidence {
    /// Opens what there is below the roots, for the daemon whose cache lies in that place.
    pub(crate) fn open(roots: Roots, cache: Option<&CachePlace>) -> Self {
        let proc = |name: &str| KeptFile::open(roots.proc.join(name));
        let mut buffer = TextBuffer::new();
        let group_file = proc("self/cgroup");
        let group_text = group_file.read(&mut buffer).unwrap_or_default().to_owned();
        let readers = Readers {
            buffer,
            group: Cgroup::open(&roots, &group_text),
            group_file,
            group_text,
            moves: 0,
            pressure: ["cpu", "io", "memory"].map(|name| proc(&format!("pressure/{name}"))),
            netstat: proc("net/netstat"),
            snmp: proc("net/snmp"),
            vmstat: proc("vmstat"),
            machine_stat: proc("stat"),
            own_stat: proc("self/stat"),
            own_io: proc("self/io"),
            disk: BlockDevice::below(&roots, cache),
            threads: Threads::of(&roots),
            ticks_per_second: rustix::param::clock_ticks_per_second(),
        };
        Self { roots, readers: Mutex::new(readers) }
    }

    fn lock(&self) -> MutexGuard<'_, Readers> {
        // A panic while reading leaves counters that are read anew the next time.
        self.readers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl HostEvidence for ProcEvidence {
    fn sample(&self) -> HostSample {
        let (mut readers, at) = (self.lock(), Instant::now());
        readers.follow(&self.roots);
        let net = readers.net().map(|(net, _)| net);
        let memory = readers.memory();
        let steal = readers.steal();
        let group_io = readers.group_io();
        let Readers { threads, buffer, .. } = &mut *readers;
        let sched = threads.read(at, buffer);
        let glance = readers.glance(at);
        let cpu = glance.cpu.map(|cpu| CpuSample { steal, ..cpu });
        HostSample { cpu, net, memory, sched, group_io, ..glance }
    }

    fn glance(&self) -> HostSample {
        let mut readers = self.lock();
        readers.glance(Instant::now())
    }

    fn sources(&self) -> Vec<SourceState> {
        let mut states = self.lock().states();
        states.extend(called(&self.roots));
        states.sort_by_key(|state| state.source);
        states
    }
}

impl Readers {
    fn glance(&mut self, at: Instant) -> HostSample {
        let cpu = self.group.throttling(&mut self.buffer).map(|of| CpuSample {
            moves: self.moves,
            throttled: of.throttled,
            periods: of.periods,
            throttled_periods: of.throttled_periods,
            steal: None,
        });
        let disk = self.disk.read(&mut self.buffer);
        HostSample { cpu, pressure: self.pressure(), disk, ..HostSample::blind(at) }
    }

    /// Opens the files of the group that the process is in, if it was moved.
    fn follow(&mut self, roots: &Roots) {
        let Some(text) = self.group_file.read(&mut self.buffer) else { return };
        if text != self.group_text {
            self.group_text = text.to_owned();
            self.group = Cgroup::open(roots, &self.group_text);
            self.moves += 1;
        }
    }

    fn pressure(&mut self) -> Option<Pressure> {
        let [cpu, io, memory] = self.group.pressure.as_ref().unwrap_or(&self.pressure);
        let (cpu_some, _) = text::pressure(cpu.read(&mut self.buffer)?);
        let (io_some, io_full) = text::pressure(io.read(&mut self.buffer)?);
        let (memory_some, memory_full) = text::pressure(memory.read(&mut self.buffer)?);
        Some(Pressure {
            moves: self.moves,
            cpu_some: cpu_some?,
            io_some: io_some?,
            io_full: io_full?,
            memory_some: memory_some?,
            memory_full: memory_full?,
        })
    }

    /// The counters, and how many of them this kernel has.
    fn net(&mut self) -> Option<(NetCounters, Vec<&'static str>)> {
        let (mut net, mut absent) = (NetCounters::default(), Vec::new());
        let mut found = [false; NET_COUNTERS.len()];
        let mut see = |table: &str, name: &str, value: u64| {
            let same = |(of, known, _): &(&str, &str, _)| *known == name && *of == table;
            if let Some(place) = NET_COUNTERS.iter().position(same) {
                *NET_COUNTERS[place].2(&mut net) = value;
                found[place] = true;
            }
        };
        text::each_column(self.netstat.read(&mut self.buffer)?, &mut see);
        text::each_column(self.snmp.read(&mut self.buffer)?, &mut see);
        if found.contains(&false) {
            let named = NET_COUNTERS.iter().zip(found).filter(|(_, found)| !found);
            absent.extend(named.map(|((_, name, _), _)| *name));
        }
        (absent.len() < NET_COUNTERS.len()).then_some((net, absent))
    }

    fn memory(&mut self) -> Option<MemorySample> {
        let mut memory = MemorySample { moves: self.moves, ..MemorySample::default() };
        text::each_value(self.vmstat.read(&mut self.buffer)?, |name, value| match name {
            "workingset_refault_file" | "workingset_refault" => memory.refaults = value,
            "pgscan_direct" => memory.direct_scans = value,
            "compact_stall" => memory.compact_stalls = value,
            _ if name.starts_with("allocstall") => memory.stalls += value,
            _ => {}
        });
        if let Some(refaults) = self.group.refaults(&mut self.buffer) {
            (memory.refaults, memory.of_group) = (refaults, true);
        }
        memory.high_events = self.group.held_back(&mut self.buffer);
        memory.major_faults = text::major_faults(self.own_stat.read(&mut self.buffer)?)?;
        let io = self.own_io.read(&mut self.buffer).unwrap_or_default();
        text::each_value(io, |name, value| match name {
            "rchar" => memory.read_calls_bytes = Some(value),
            "read_bytes" => memory.read_storage_bytes = Some(value),
            _ => {}
        });
        Some(memory)
    }

    fn group_io(&mut self) -> Option<GroupIoSample> {
        let (read_bytes, reads) = self.group.block_reads(&mut self.buffer)?;
        Some(GroupIoSample { moves: self.moves, read_bytes, reads })
    }

    fn steal(&mut self) -> Option<Duration> {
        let ticks = text::steal_ticks(self.machine_stat.read(&mut self.buffer)?)?;
        let millis = ticks.saturating_mul(1000) / self.ticks_per_second.max(1);
        Some(Duration::from_millis(millis))
    }

    fn states(&mut self) -> Vec<SourceState> {
        let state = |source, (available, why)| SourceState { source, available, why };
        let file = |source, file: &KeptFile| {
            let why = file.why_not();
            state(source, (why.is_none(), why.unwrap_or_default()))
        };
        let absent = self.net().map(|(_, absent)| absent).unwrap_or_default();
        let mut netstat = file(Source::NetStat, &self.netstat);
        if netstat.available && !absent.is_empty() {
            netstat.why = format!("this kernel does not count {}", absent.join(", "));
        }
        let sched = self.threads.read(Instant::now(), &mut self.buffer);
        let sched = match sched {
            Some(sched) => (true, format!("{} threads", sched.threads)),
            None => (false, "no schedstat of threads: needs CONFIG_SCHED_INFO".to_owned()),
        };
        vec![
            state(Source::CpuStat, self.group.throttling_state()),
            state(Source::Pressure, self.pressure_state()),
            netstat,
            file(Source::Snmp, &self.snmp),
            state(Source::MemoryStat, self.group.memory_state()),
            file(Source::Vmstat, &self.vmstat),
            state(Source::BlockDevice, self.disk.state()),
            state(Source::SchedStat, sched),
            file(Source::IoAccounting, &self.own_io),
            state(Source::GroupIo, self.group.io_state()),
        ]
    }

    fn pressure_state(&mut self) -> (bool, String) {
        if self.pressure().is_some() {
            let whose = if self.group.pressure.is_some() { "our cgroup" } else { "the machine" };
            return (true, format!("of {whose}"));
        }
        let why = self.pressure.iter().find_map(KeptFile::why_not).unwrap_or_default();
        (false, format!("{why}: needs CONFIG_PSI, and psi=1 at boot where it is off by default"))
    }
}

/// What is no file to be sampled.
fn called(roots: &Roots) -> Vec<SourceState> {
    let state = |source, why: Result<String, String>| SourceState {
        source,
        available: why.is_ok(),
        why: why.unwrap_or_else(|why| why),
    };
    let listed = roots.read_proc("self/mountinfo").map_err(|error| error.to_string());
    let listed = listed.map(|text| format!("{} mounts", mounts(&text).len()));
    vec![
        state(Source::Mounts, listed),
        state(Source::CacheStat, try_cachestat().map(|()| String::new())),
        state(Source::TcpInfo, try_tcp_info().map(|()| String::new())),
        state(Source::Numa, numa(roots)),
        state(Source::ReadNowait, try_nowait().map(|()| String::new())),
        state(Source::RuntimeLag, Ok("by when a look comes that is due".to_owned())),
    ]
}

/// Asks for the cached pages of a file of our own.
fn try_cachestat() -> Result<(), String> {
    let file = rustix::fs::memfd_create("forebay-probe", rustix::fs::MemfdFlags::CLOEXEC)
        .map_err(|errno| errno.to_string())?;
    cache_state(file.as_fd(), 0..1).map(drop).map_err(|error| error.to_string())
}

/// Reads a byte of our own program without waiting: whether it is in the page cache is no matter.
fn try_nowait() -> Result<(), String> {
    let program = std::fs::File::open("/proc/self/exe").map_err(|error| error.to_string())?;
    let mut byte = [0];
    let into = &mut [std::io::IoSliceMut::new(&mut byte)];
    match rustix::io::preadv2(&program, into, 0, rustix::io::ReadWriteFlags::NOWAIT) {
        Ok(_) | Err(rustix::io::Errno::AGAIN) => Ok(()),
        Err(errno) => Err(format!("preadv2 with RWF_NOWAIT: {errno}")),
    }
}

/// Asks for the state of a socket that is not connected.
fn try_tcp_info() -> Result<(), String> {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
    let socket = socket_with(AddressFamily::INET, SocketType::STREAM, SocketFlags::CLOEXEC, None);
    let socket = socket.map_err(|errno| errno.to_string())?;
    forebay_io::tcp_info(socket.as_fd()).map(drop).map_err(|error| error.to_string())
}

fn numa(roots: &Roots) -> Result<String, String> {
    let folder = roots.sys.join("devices/system/node");
    let entries =
        std::fs::read_dir(&folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let nodes = names
        .filter(|name| name.strip_prefix("node").is_some_and(|id| id.parse::<u32>().is_ok()))
        .count();
    let estimate = "remote bytes are an estimate from where pages and workers are";
    Ok(match nodes {
        1 => "one node: nothing is remote".to_owned(),
        nodes => format!("{nodes} nodes; {estimate}"),
    })
}
