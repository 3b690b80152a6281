//! Our cgroup, of version 2, of version 1, or of both as hybrid hosts have them.
//!
//! `/proc/self/cgroup` says which group we are in, the mounts say where its files are. A quota of a
//! group above ours stops us as well, so throttling is read of all groups from ours up to the
//! highest that can be seen. Owns the open files of those groups; units are converted here:
//! version 1 counts throttling in nanoseconds, version 2 in microseconds.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::files::{KeptFile, Roots, TextBuffer};
use super::mounts::{Mount, mounts};
use super::text;

/// Files of the group that this process is in.
#[derive(Debug)]
pub(super) struct Cgroup {
    /// `cpu.stat` of the group and of those above it.
    cpu: Vec<KeptFile>,
    cpu_folder: Option<PathBuf>,
    /// `memory.stat`.
    memory: Option<KeptFile>,
    /// `memory.events`, or `memory.failcnt` of version 1.
    held_back: Option<KeptFile>,
    /// `io.stat`, or the files of version 1: bytes and requests.
    io: Option<IoFiles>,
    /// `cpu.pressure`, `io.pressure`, `memory.pressure`, if the group is not the root.
    pub(super) pressure: Option<[KeptFile; 3]>,
}

/// Where the group's requests to block devices are counted.
#[derive(Debug)]
enum IoFiles {
    V1 { bytes: KeptFile, requests: KeptFile },
    V2(KeptFile),
}

/// Throttling of the groups together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Throttling {
    pub(super) throttled: Duration,
    pub(super) periods: u64,
    pub(super) throttled_periods: u64,
}

impl Cgroup {
    /// Opens the files of the group that `cgroup`, the text of `/proc/self/cgroup`, tells of.
    pub(super) fn open(roots: &Roots, cgroup: &str) -> Self {
        let mountinfo = roots.read_proc("self/mountinfo").unwrap_or_default();
        let found = Found { roots, mounts: mounts(&mountinfo), cgroup };
        let of = |controller: &str, file: &str| {
            let (folder, _) = found.folder(controller, file)?;
            Some(KeptFile::open(folder.join(file)))
        };
        let cpu_folders = found.throttled_folders();
        let pressure = found.unified().filter(|(folder, top)| folder != top);
        let pressure = pressure.map(|(folder, _)| {
            ["cpu.pressure", "io.pressure", "memory.pressure"]
                .map(|name| KeptFile::open(folder.join(name)))
        });
        Self {
            cpu_folder: cpu_folders.first().cloned(),
            cpu: cpu_folders.iter().map(|f| KeptFile::open(f.join("cpu.stat"))).collect(),
            memory: of("memory", "memory.stat"),
            io: found.io(),
            held_back: of("memory", "memory.events").or_else(|| of("memory", "memory.failcnt")),
            pressure: pressure.filter(|files| files.iter().all(|file| file.why_not().is_none())),
        }
    }

    /// Throttling since the groups were made; none if none of them counts it.
    pub(super) fn throttling(&self, buffer: &mut TextBuffer) -> Option<Throttling> {
        let mut sum = None;
        for file in &self.cpu {
            let Some(one) = file.read(buffer).and_then(throttling) else { continue };
            let sum = sum.get_or_insert_with(Throttling::default);
            sum.throttled += one.throttled;
            sum.periods += one.periods;
            sum.throttled_periods += one.throttled_periods;
        }
        sum
    }

    /// Pages of files that were evicted too early.
    pub(super) fn refaults(&self, buffer: &mut TextBuffer) -> Option<u64> {
        refaults(self.memory.as_ref()?.read(buffer)?)
    }

    /// How often the group was held back at its memory limit.
    pub(super) fn held_back(&self, buffer: &mut TextBuffer) -> Option<u64> {
        held_back(self.held_back.as_ref()?.read(buffer)?)
    }

    /// Bytes and requests that the group's tasks read from block devices.
    pub(super) fn block_reads(&self, buffer: &mut TextBuffer) -> Option<(u64, u64)> {
        match self.io.as_ref()? {
            IoFiles::V2(file) => Some(io_stat(file.read(buffer)?)),
            IoFiles::V1 { bytes, requests } => {
                let bytes = blkio_reads(bytes.read(buffer)?);
                Some((bytes, blkio_reads(requests.read(buffer)?)))
            }
        }
    }

    /// Whether they are counted.
    pub(super) fn io_state(&self) -> (bool, String) {
        let files = match &self.io {
            None => return (false, "no io.stat: the io controller is not there".to_owned()),
            Some(IoFiles::V2(file)) => vec![file],
            Some(IoFiles::V1 { bytes, requests }) => vec![bytes, requests],
        };
        let why = files.into_iter().find_map(KeptFile::why_not);
        (why.is_none(), why.unwrap_or_default())
    }

    /// Whether throttling is counted, and what to know of it.
    pub(super) fn throttling_state(&self) -> (bool, String) {
        if self.throttling(&mut TextBuffer::new()).is_none() {
            let why = "no cpu.stat with nr_throttled: no group of ours has the cpu controller";
            return (false, why.to_owned());
        }
        let folder = self.cpu_folder.as_deref().unwrap_or_else(|| Path::new("?"));
        (true, format!("from {} up", folder.display()))
    }

    /// The same of refaults.
    pub(super) fn memory_state(&self) -> (bool, String) {
        let Some(file) = &self.memory else {
            return (false, "no memory.stat: the memory controller is not there".to_owned());
        };
        match file.why_not() {
            Some(why) => (false, why),
            None if self.refaults(&mut TextBuffer::new()).is_none() => {
                (false, "memory.stat has no workingset_refault_file".to_owned())
            }
            None => (true, String::new()),
        }
    }
}

/// The mounts, and which group we are in.
struct Found<'a> {
    roots: &'a Roots,
    mounts: Vec<Mount>,
    cgroup: &'a str,
}

impl Found<'_> {
    /// Our folder of the hierarchy that has the file, and its top: version 1 if that has the
    /// controller.
    fn folder(&self, controller: &str, file: &str) -> Option<(PathBuf, PathBuf)> {
        let named = self.named(controller).into_iter().chain(self.unified());
        named.into_iter().find(|(folder, _)| folder.join(file).exists())
    }

    /// The folder of version 1.
    fn named(&self, controller: &str) -> Option<(PathBuf, PathBuf)> {
        let path = self.group(|controllers| controllers.split(',').any(|one| one == controller))?;
        let mounted = |mount: &&Mount| mount.kind == "cgroup" && mount.has(controller);
        self.below(self.mounts.iter().rfind(mounted)?, path)
    }

    /// The folder of version 2.
    fn unified(&self) -> Option<(PathBuf, PathBuf)> {
        let path = self.group(str::is_empty)?;
        self.below(self.mounts.iter().rfind(|mount| mount.kind == "cgroup2")?, path)
    }

    /// The path of the line whose controllers fit.
    fn group(&self, fits: impl Fn(&str) -> bool) -> Option<&str> {
        self.cgroup.lines().find_map(|line| {
            let (_, rest) = line.split_once(':')?;
            let (controllers, path) = rest.split_once(':')?;
            fits(controllers).then_some(path)
        })
    }

    /// Where the group's folder is below a mount. In a container the mount may begin at the group,
    /// or the path may lead to where nothing can be seen: then it is the top.
    fn below(&self, mount: &Mount, path: &str) -> Option<(PathBuf, PathBuf)> {
        let top = self.roots.place(&mount.point);
        let relative = Path::new(path).strip_prefix(&mount.root).ok();
        let relative = relative.filter(|relative| *relative != Path::new(""));
        let folder = relative.map(|relative| top.join(relative)).filter(|f| f.is_dir());
        top.is_dir().then(|| (folder.unwrap_or_else(|| top.clone()), top))
    }

    /// The files that count requests to block devices.
    fn io(&self) -> Option<IoFiles> {
        let (bytes, requests) =
            ("blkio.throttle.io_service_bytes_recursive", "blkio.throttle.io_serviced_recursive");
        if let Some((folder, _)) = self.named("blkio").filter(|(of, _)| of.join(bytes).exists()) {
            let open = |name: &str| KeptFile::open(folder.join(name));
            return Some(IoFiles::V1 { bytes: open(bytes), requests: open(requests) });
        }
        let (folder, _) = self.unified().filter(|(of, _)| of.join("io.stat").exists())?;
        Some(IoFiles::V2(KeptFile::open(folder.join("io.stat"))))
    }

    /// Our folder and those above it that count throttling.
    fn throttled_folders(&self) -> Vec<PathBuf> {
        let counts = |folder: &Path| {
            let text = std::fs::read_to_string(folder.join("cpu.stat"));
            text.is_ok_and(|text| throttling(&text).is_some())
        };
        // On hybrid hosts the controller is in one of the two, and the other's file says nothing.
        for (folder, top) in self.named("cpu").into_iter().chain(self.unified()) {
            let levels = folder.ancestors().take_while(|level| level.starts_with(&top));
            let levels: Vec<_> = levels.filter(|level| counts(level)).map(Path::to_owned).collect();
            if !levels.is_empty() {
                return levels;
            }
        }
        Vec::new()
    }
}

/// The CPUs that the tightest quota leaves, of our group and those above it.
pub(super) fn cpu_quota(roots: &Roots) -> Option<f64> {
    let cgroup = roots.read_proc("self/cgroup").ok()?;
    let mountinfo = roots.read_proc("self/mountinfo").ok()?;
    let found = Found { roots, mounts: mounts(&mountinfo), cgroup: &cgroup };
    let places = found.named("cpu").into_iter().chain(found.unified());
    let quotas = places.flat_map(|(folder, top)| {
        let levels = folder.ancestors().take_while(|level| level.starts_with(&top));
        levels.filter_map(quota_of).collect::<Vec<_>>()
    });
    quotas.min_by(f64::total_cmp)
}

/// The quota of one group, of either version.
fn quota_of(folder: &Path) -> Option<f64> {
    let read = |name: &str| std::fs::read_to_string(folder.join(name));
    let text = read("cpu.max").or_else(|_| {
        let (quota, period) = (read("cpu.cfs_quota_us")?, read("cpu.cfs_period_us")?);
        std::io::Result::Ok(format!("{quota} {period}"))
    });
    let text = text.ok()?;
    let mut words = text.split_ascii_whitespace();
    // Without a quota there is a word or a negative number.
    let quota: u32 = words.next()?.parse().ok()?;
    let period: u32 = words.next()?.parse().ok().filter(|period| *period > 0)?;
    Some(f64::from(quota) / f64::from(period))
}

fn throttling(text: &str) -> Option<Throttling> {
    let (mut found, mut time) = (Throttling::default(), None);
    text::each_value(text, |name, value| match name {
        "nr_periods" => found.periods = value,
        "nr_throttled" => found.throttled_periods = value,
        "throttled_usec" => time = Some(Duration::from_micros(value)),
        "throttled_time" => time = Some(Duration::from_nanos(value)),
        _ => {}
    });
    time.map(|throttled| Throttling { throttled, ..found })
}

/// Of the group and those below it: version 1 also has the counters without those below.
fn refaults(text: &str) -> Option<u64> {
    let (mut own, mut total) = (None, None);
    text::each_value(text, |name, value| match name {
        // Before Linux 5.9 files and anonymous pages are one counter.
        "workingset_refault_file" | "workingset_refault" => own = Some(value),
        "total_workingset_refault_file" | "total_workingset_refault" => total = Some(value),
        _ => {}
    });
    total.or(own)
}

/// Bytes and requests of reads, of all devices: a line has a device and `name=value`s.
fn io_stat(text: &str) -> (u64, u64) {
    let sum = |name: &str| {
        let values = text.split_ascii_whitespace().filter_map(|word| word.strip_prefix(name));
        values.filter_map(|value| value.parse::<u64>().ok()).sum()
    };
    (sum("rbytes="), sum("rios="))
}

/// The reads of a file of version 1: a line has a device, what it counts, and how much.
fn blkio_reads(text: &str) -> u64 {
    let read = |line: &str| {
        let mut words = line.split_ascii_whitespace().skip(1);
        (words.next()? == "Read").then(|| words.next()?.parse::<u64>().ok())?
    };
    text.lines().filter_map(read).sum()
}

fn held_back(text: &str) -> Option<u64> {
    if let Ok(failures) = text.trim().parse() {
        return Some(failures);
    }
    let mut high = None;
    text::each_value(text, |name, value| {
        if name == "high" {
            high = Some(value);
        }
    });
    high
}

#[cfg(test)]
mod tests {
    use super::super::proc_tests::{Tree, V1, V2};
    use super::*;

    fn open(tree: &Tree) -> Cgroup {
        let cgroup = tree.roots().read_proc("self/cgroup").unwrap();
        Cgroup::open(&tree.roots(), &cgroup)
    }

    #[test]
    fn both_versions_say_the_same_in_one_unit() {
        let buffer = &mut TextBuffer::new();
        for layout in [V1, V2] {
            let tree = Tree::new(layout);
            let group = open(&tree);
            let throttling = group.throttling(buffer).unwrap();
            // Of the group itself, and of the one above it.
            assert_eq!(throttling.throttled, Duration::from_millis(1500 + 250), "{layout:?}");
            assert_eq!((throttling.periods, throttling.throttled_periods), (40 + 8, 30 + 4));
            assert_eq!(group.refaults(buffer), Some(77));
            assert_eq!(group.held_back(buffer), Some(9));
            assert_eq!(group.block_reads(buffer), Some((12288, 3)), "{layout:?}");
            assert!(group.io_state().0);
            assert!(group.throttling_state().0 && group.memory_state().0);
        }
    }

    #[test]
    fn only_version_two_has_pressure_of_groups() {
        assert!(open(&Tree::new(V2)).pressure.is_some());
        assert!(open(&Tree::new(V1)).pressure.is_none());
    }

    #[test]
    fn a_container_that_sees_its_own_subtree_finds_its_files() {
        let tree = Tree::new(V2);
        // Mounted from the group on, with the path of the host.
        let mount = "35 30 0:29 /pods/a /sys/fs/cgroup ro - cgroup2 cgroup rw\n";
        tree.write("proc/self/mountinfo", mount);
        tree.write("sys/fs/cgroup/cpu.stat", "nr_periods 1\nnr_throttled 1\nthrottled_usec 5\n");
        let group = open(&tree);
        let throttled = group.throttling(&mut TextBuffer::new()).unwrap().throttled;
        assert_eq!(throttled, Duration::from_micros(5));
        // With a path that leads out of what is mounted.
        tree.write("proc/self/cgroup", "0::/../../other\n");
        assert!(open(&tree).throttling(&mut TextBuffer::new()).is_some());
    }

    #[test]
    fn without_groups_nothing_is_known_and_the_reason_is_told() {
        let tree = Tree::new(V2);
        tree.write("proc/self/mountinfo", "22 27 0:21 / /proc rw - proc proc rw\n");
        let group = open(&tree);
        let buffer = &mut TextBuffer::new();
        assert_eq!((group.throttling(buffer), group.refaults(buffer)), (None, None));
        assert!(!group.throttling_state().0 && group.throttling_state().1.contains("nr_throttled"));
        assert!(!group.memory_state().0);
        assert!(group.block_reads(buffer).is_none() && group.io_state().1.contains("io.stat"));
        // The root group of version 2 has the file without these lines.
        assert_eq!(throttling("usage_usec 1\nuser_usec 1\n"), None);
    }
}
