//! The conditions of a measurement: the machine, its limits, who was there, and what else the
//! machine had to do meanwhile. A number without them is no evidence.
//!
//! Everything is read from the kernel or asked of a program, when the run begins; what cannot be
//! had is null. Load of the machine is the difference of counters between begin and end.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::process::{Resource, getrlimit};
use serde_json::{Value, json};

use super::sample::micro;

/// What the run was made on and with.
pub(super) fn envelope() -> Value {
    json!({
        "hardware": {
            "cpu": cpu_model(),
            "cores": std::thread::available_parallelism().map_or(0, usize::from),
            "memory_bytes": memory_bytes(),
            "disks": disks(Path::new("/sys/block")),
        },
        "kernel": read("/proc/sys/kernel/osrelease"),
        "limits": {
            "memlock_bytes": getrlimit(Resource::Memlock).current,
            "files": getrlimit(Resource::Nofile).current,
            "cgroup": cgroup(),
            "io_uring_disabled": read("/proc/sys/kernel/io_uring_disabled"),
        },
        "versions": {
            "forebay": env!("CARGO_PKG_VERSION"),
            "build": if cfg!(debug_assertions) { "debug" } else { "release" },
            "commit": commit(),
            "rustc": said("rustc", &["--version"]),
        },
        "arguments": std::env::args_os()
            .skip(1)
            .map(|argument| argument.to_string_lossy().into_owned())
            .collect::<Vec<_>>(),
        "started": said("date", &["-u", "+%Y-%m-%dT%H:%M:%SZ"]),
    })
}

/// The first line of a file.
fn read(path: &str) -> Option<String> {
    Some(std::fs::read_to_string(path).ok()?.lines().next()?.trim().to_owned())
}

/// What a program says, if it is there and ends well.
fn said(program: &str, args: &[&str]) -> Option<String> {
    let output = Command::new(program).args(args).stderr(Stdio::null()).output().ok()?;
    let said = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    (output.status.success() && !said.is_empty()).then_some(said)
}

/// The commit of the sources, if they are where they were built, and whether they were changed.
fn commit() -> Option<String> {
    let sources = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
    let commit = said("git", &["-C", sources, "rev-parse", "--short=12", "HEAD"])?;
    let changed = said("git", &["-C", sources, "status", "--porcelain", "--untracked-files=no"]);
    Some(if changed.is_some() { format!("{commit} with changes") } else { commit })
}

fn cpu_model() -> Option<String> {
    let cpus = std::fs::read_to_string("/proc/cpuinfo").ok()?;
    let named = |line: &str| {
        let (name, value) = line.split_once(':')?;
        ["model name", "CPU part"].contains(&name.trim()).then(|| value.trim().to_owned())
    };
    cpus.lines().find_map(named)
}

fn memory_bytes() -> Option<u64> {
    let memory = std::fs::read_to_string("/proc/meminfo").ok()?;
    let total = memory.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    total.split_whitespace().next()?.parse::<u64>().ok().map(|kib| kib * 1024)
}

/// Disks that are there: name, size, and what they are called.
fn disks(dir: &Path) -> Vec<Value> {
    let Ok(entries) = std::fs::read_dir(dir) else { return Vec::new() };
    let virtual_ones = ["loop", "ram", "zram", "sr", "fd"];
    let disk = |name: String| {
        let file = |file: &str| read(&dir.join(&name).join(file).display().to_string());
        let sectors: u64 = file("size")?.parse().ok().filter(|sectors| *sectors > 0)?;
        Some(json!({
            "name": name,
            "bytes": sectors * 512,
            "rotational": file("queue/rotational").map(|flag| flag == "1"),
            "model": file("device/model"),
        }))
    };
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let mut names: Vec<String> =
        names.filter(|name| !virtual_ones.iter().any(|kind| name.starts_with(kind))).collect();
    names.sort();
    names.into_iter().filter_map(disk).collect()
}

/// What this process's control groups allow, by file.
fn cgroup() -> BTreeMap<String, String> {
    let own = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let mut found = BTreeMap::new();
    for line in own.lines() {
        let mut parts = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (parts.next(), parts.next()) else { continue };
        let files: &[&str] = match controllers {
            "" => &["cpu.max", "memory.max", "io.max"],
            "cpu" | "cpu,cpuacct" => &["cpu.cfs_quota_us", "cpu.cfs_period_us"],
            "memory" => &["memory.limit_in_bytes"],
            _ => continue,
        };
        for file in files {
            let of_group = format!("/sys/fs/cgroup/{controllers}{path}/{file}");
            if let Some(value) = read(&of_group) {
                found.insert((*file).to_owned(), value);
            }
        }
    }
    found
}

/// Counters of the machine, to be subtracted.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Counters {
    /// Seconds in which somebody waited for it, by resource.
    stalled: BTreeMap<&'static str, f64>,
    /// Clock ticks of all CPUs: in all, idle, and those that the host gave to others.
    ticks: u64,
    idle: u64,
    steal: u64,
}

impl Counters {
    /// As they are now.
    pub(super) fn now() -> Self {
        let stalled = ["cpu", "io", "memory"].into_iter().filter_map(|resource| {
            let text = std::fs::read_to_string(format!("/proc/pressure/{resource}")).ok()?;
            Some((resource, stalled(&text)?))
        });
        let text = std::fs::read_to_string("/proc/stat").unwrap_or_default();
        let [ticks, idle, steal] = ticks(&text).unwrap_or_default();
        Self { stalled: stalled.collect(), ticks, idle, steal }
    }

    /// What the machine had to do since `before`: seconds of waiting, and shares of its CPU time.
    pub(super) fn since(&self, before: &Self) -> Value {
        let stalled: BTreeMap<&str, f64> = self
            .stalled
            .iter()
            .map(|(name, now)| (*name, micro(now - before.stalled.get(name).unwrap_or(&0.0))))
            .collect();
        let ticks = self.ticks.saturating_sub(before.ticks).max(1);
        let share = |now: u64, before: u64| micro(now.saturating_sub(before) as f64 / ticks as f64);
        let averages = read("/proc/loadavg").unwrap_or_default();
        json!({
            "stalled_seconds": stalled,
            "busy": micro(1.0 - share(self.idle, before.idle)),
            "steal": share(self.steal, before.steal),
            "load_averages": averages.split(' ').take(3).collect::<Vec<_>>(),
        })
    }
}

/// The seconds of `some` in a file of `/proc/pressure`.
fn stalled(text: &str) -> Option<f64> {
    let some = text.lines().find(|line| line.starts_with("some "))?;
    let total = some.split_whitespace().find_map(|field| field.strip_prefix("total="))?;
    total.parse::<f64>().ok().map(|micros| micros / 1e6)
}

/// All ticks, idle ones and stolen ones, of the first line of `/proc/stat`.
fn ticks(text: &str) -> Option<[u64; 3]> {
    let line = text.lines().next()?.strip_prefix("cpu ")?;
    let fields: Vec<u64> = line.split_whitespace().filter_map(|field| field.parse().ok()).collect();
    // User, nice, system, idle, iowait, irq, softirq, steal; what guests had is in user and nice.
    let own = fields.get(..8)?;
    Some([own.iter().sum(), own[3] + own[4], own[7]])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_read_as_the_kernel_writes_them() {
        let text = "some avg10=0.00 avg60=0.00 avg300=0.00 total=1500000\nfull avg10=0 total=9\n";
        assert_eq!(stalled(text), Some(1.5));
        let text = "cpu  10 0 20 60 5 0 1 4 0 0\ncpu0 1 1 1 1 1 1 1 1 1 1\n";
        assert_eq!(ticks(text), Some([100, 65, 4]));
        assert_eq!((stalled(""), ticks("cpu 1")), (None, None));
    }

    #[test]
    fn load_is_what_came_between() {
        let at = |micros: f64, ticks, idle, steal| Counters {
            stalled: [("cpu", micros)].into(),
            ticks,
            idle,
            steal,
        };
        let load = at(3.5, 300, 150, 30).since(&at(1.0, 100, 100, 10));
        assert_eq!(load["stalled_seconds"]["cpu"], 2.5);
        assert_eq!((load["busy"].as_f64(), load["steal"].as_f64()), (Some(0.75), Some(0.1)));
    }

    #[test]
    fn the_envelope_names_the_machine() {
        let envelope = envelope();
        assert!(envelope["hardware"]["cores"].as_u64() > Some(0), "{envelope}");
        assert!(envelope["kernel"].is_string(), "{envelope}");
        assert_eq!(envelope["versions"]["forebay"], env!("CARGO_PKG_VERSION"));
        assert!(disks(Path::new("/nowhere")).is_empty());
    }
}
