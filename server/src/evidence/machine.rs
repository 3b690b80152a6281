//! What of this machine's set-up helps or hinders loads, as a list of facts with advice.
//!
//! Read when somebody asks, from files below the roots: the cgroup's quota, limits, pages, the
//! mount and the device of the cache directory. What cannot be read is left out or said to be
//! unknown; nothing here fails. Owns nothing.

use std::path::Path;

use rustix::process::{Resource, getrlimit};

use super::block::{BlockDevice, CachePlace};
use super::files::Roots;
use super::mounts::{Mount, mount_of, mounts};

/// Registered memory that is too little for a RAM tier: what most systems give by default.
const MEMLOCK_BYTES_MIN: u64 = 64 << 20;

/// Descriptors for sockets, segments and extents of a daemon that has something to do.
const DESCRIPTORS_MIN: u64 = 4096;

/// Whether a fact is in the way of loads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// As it should be, or of no matter.
    Ok,
    /// It costs something.
    Warn,
    /// Something does not work.
    Bad,
}

impl Verdict {
    /// Its name.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warn => "warn",
            Self::Bad => "bad",
        }
    }
}

/// Something that was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Fact {
    /// What it is about.
    pub(crate) name: &'static str,
    /// What was found.
    pub(crate) value: String,
    /// What that means.
    pub(crate) verdict: Verdict,
    /// What to do; empty if nothing has to be done.
    pub(crate) advice: String,
}

impl Fact {
    fn ok(name: &'static str, value: impl Into<String>) -> Self {
        Self { name, value: value.into(), verdict: Verdict::Ok, advice: String::new() }
    }

    fn but(self, verdict: Verdict, advice: impl Into<String>) -> Self {
        Self { verdict, advice: advice.into(), ..self }
    }

    /// The same with advice, if it is needed.
    fn if_so(self, needed: bool, verdict: Verdict, advice: &str) -> Self {
        if needed { self.but(verdict, advice) } else { self }
    }
}

/// The facts of a machine, for a daemon with that cache directory.
pub(crate) fn machine(roots: &Roots, cache: Option<&Path>) -> Vec<Fact> {
    let mut facts = Vec::new();
    let kernel = roots.read_proc("sys/kernel/osrelease");
    facts.extend(kernel.ok().map(|text| Fact::ok("kernel", text.trim())));
    facts.push(quota(roots));
    facts.push(pressure(roots));
    facts.extend(limits());
    facts.push(io_uring(roots));
    facts.extend(large_pages(roots));
    facts.extend(balancing(roots));
    match cache.map(CachePlace::of) {
        Some(Ok(place)) => facts.extend(cache_facts(roots, &place)),
        Some(Err(error)) => {
            facts.push(
                Fact::ok("cache_mount", format!("unknown: {error}")).but(
                    Verdict::Bad,
                    "make the cache directory, or give another with --cache-dir",
                ),
            );
        }
        None => facts.push(Fact::ok("cache_mount", "no cache directory")),
    }
    facts
}

/// How many CPUs the cgroup leaves us.
fn quota(roots: &Roots) -> Fact {
    let quota = super::cgroup::cpu_quota(roots);
    let Some(cpus) = quota else { return Fact::ok("cpu_quota", "none") };
    let advice = "the daemon stops whenever its CPU quota runs out: give the cgroup more, or none";
    Fact::ok("cpu_quota", format!("{cpus:.2} CPUs")).but(Verdict::Warn, advice)
}

fn pressure(roots: &Roots) -> Fact {
    match roots.read_proc("pressure/cpu") {
        Ok(_) => Fact::ok("pressure", "told"),
        Err(error) => Fact::ok("pressure", format!("not told: {error}")).but(
            Verdict::Warn,
            "boot with psi=1: without it, waiting for CPU, disk and memory shows less clearly",
        ),
    }
}

fn limits() -> [Fact; 2] {
    let words = |limit: Option<u64>| match limit {
        Some(most) => most.to_string(),
        None => "unlimited".to_owned(),
    };
    let locked = getrlimit(Resource::Memlock).current;
    let descriptors = getrlimit(Resource::Nofile).maximum;
    [
        Fact::ok("memlock_bytes", words(locked)).if_so(
            locked.is_some_and(|bytes| bytes < MEMLOCK_BYTES_MIN),
            Verdict::Warn,
            "set LimitMEMLOCK=infinity: little memory can be registered with io_uring or a GPU",
        ),
        Fact::ok("descriptors_max", words(descriptors)).if_so(
            descriptors.is_some_and(|most| most < DESCRIPTORS_MIN),
            Verdict::Warn,
            "set LimitNOFILE=65536: connections and segments take descriptors",
        ),
    ]
}

fn io_uring(roots: &Roots) -> Fact {
    let text = roots.read_proc("sys/kernel/io_uring_disabled").unwrap_or_default();
    let advice = "set the sysctl kernel.io_uring_disabled to 0: until then threads read the disk";
    match text.trim() {
        "0" => Fact::ok("io_uring", "for all"),
        "1" => Fact::ok("io_uring", "for a group only").but(Verdict::Warn, advice),
        "2" => Fact::ok("io_uring", "for nobody").but(Verdict::Warn, advice),
        // The switch came with Linux 6.6.
        _ => Fact::ok("io_uring", "no switch"),
    }
}

/// The segments of the RAM tier ask for large pages, which are those of shared memory.
fn large_pages(roots: &Roots) -> Vec<Fact> {
    let mut facts = Vec::new();
    let chosen = |text: &str| {
        let (_, rest) = text.split_once('[')?;
        Some(rest.split_once(']')?.0.to_owned())
    };
    let shared = roots.read_sys("kernel/mm/transparent_hugepage/shmem_enabled");
    if let Some(chosen) = shared.ok().as_deref().and_then(chosen) {
        let off = ["never", "deny"].contains(&chosen.as_str());
        let advice = "write `advise` to /sys/kernel/mm/transparent_hugepage/shmem_enabled: the RAM \
                      tier gets small pages only";
        facts.push(Fact::ok("shared_large_pages", chosen).if_so(off, Verdict::Warn, advice));
    }
    let folder = "kernel/mm/hugepages/hugepages-2048kB";
    let count = |name: &str| -> Option<u64> {
        roots.read_sys(&format!("{folder}/{name}")).ok()?.trim().parse().ok()
    };
    if let Some((reserved, free)) = count("nr_hugepages").zip(count("free_hugepages")) {
        let idle = reserved > 0 && free == reserved;
        let advice = "free them with `sysctl vm.nr_hugepages=0`, or use them: nobody does, and \
                      Forebay does not need them";
        facts.push(Fact::ok("reserved_huge_pages", format!("{reserved}, {free} free")).if_so(
            idle,
            Verdict::Warn,
            advice,
        ));
    }
    facts
}

/// The kernel's own moving of pages between nodes works against where slots were put.
fn balancing(roots: &Roots) -> Option<Fact> {
    let nodes = roots.read_sys("devices/system/node/online").ok()?;
    let balancing = roots.read_proc("sys/kernel/numa_balancing").ok()?;
    let several = nodes.trim() != "0";
    let needed = several && balancing.trim() != "0";
    let value = if balancing.trim() == "0" { "off" } else { "on" };
    let advice = "set the sysctl kernel.numa_balancing to 0: it moves pages away from their device";
    Some(Fact::ok("numa_balancing", value).if_so(needed, Verdict::Warn, advice))
}

fn cache_facts(roots: &Roots, place: &CachePlace) -> Vec<Fact> {
    let mountinfo = roots.read_proc("self/mountinfo").unwrap_or_default();
    let mounts = mounts(&mountinfo);
    let mount = match mount_of(&mounts, &place.dir) {
        Some(mount) => mount_fact(mount),
        None => Fact::ok("cache_mount", "unknown: no mount that can be seen"),
    };
    let below = BlockDevice::below(roots, Some(place));
    let (known, words) = below.state();
    let device = Fact::ok("cache_device", words);
    let device = match known {
        false => device.but(Verdict::Warn, "waiting for the disk can be told from our side only"),
        true if below.hides_disk() => device
            .but(Verdict::Warn, "put the cache on a local NVMe disk that the daemon sees itself"),
        true => device,
    };
    vec![mount, device]
}

fn mount_fact(mount: &Mount) -> Fact {
    let Mount { point, options, kind, .. } = mount;
    let fact = Fact::ok("cache_mount", format!("{kind} on {} ({options})", point.display()));
    if mount.has("ro") {
        return fact.but(Verdict::Bad, "it is mounted read-only: give another with --cache-dir");
    }
    let (verdict, advice) = match kind.as_str() {
        "ext4" | "xfs" => return fact,
        "tmpfs" | "ramfs" => (Verdict::Bad, "its files are memory: put the cache on a disk"),
        "overlay" => (Verdict::Warn, "mount a volume there: an overlay adds a layer to each read"),
        "nfs" | "nfs4" | "cifs" | "smb3" | "ceph" | "lustre" | "9p" | "virtiofs" => {
            (Verdict::Bad, "its files are elsewhere: put the cache on a local disk")
        }
        fuse if fuse.starts_with("fuse") => {
            (Verdict::Bad, "a process serves its files: put the cache on a local disk")
        }
        _ => (Verdict::Warn, "ext4 and xfs are what reads past the page cache were tried on"),
    };
    fact.but(verdict, advice)
}

#[cfg(test)]
mod tests {
    use super::super::proc_tests::{Tree, V1, V2};
    use super::*;

    fn fact(facts: &[Fact], name: &str) -> (String, Verdict) {
        let fact = facts.iter().find(|fact| fact.name == name).unwrap();
        assert_eq!(fact.verdict == Verdict::Ok, fact.advice.is_empty(), "{fact:?}");
        (fact.value.clone(), fact.verdict)
    }

    #[test]
    fn a_poor_set_up_is_told_with_advice() {
        let tree = Tree::new(V2);
        tree.write("sys/fs/cgroup/pods/a/cpu.max", "max 100000\n");
        tree.write("sys/fs/cgroup/pods/cpu.max", "150000 100000\n");
        tree.write("proc/sys/kernel/io_uring_disabled", "2\n");
        tree.write("proc/sys/kernel/numa_balancing", "1\n");
        tree.write("sys/devices/system/node/online", "0-1\n");
        let pages = "sys/kernel/mm/transparent_hugepage/shmem_enabled";
        tree.write(pages, "always within_size advise [never] deny force\n");
        tree.write("sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages", "512\n");
        tree.write("sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages", "512\n");
        tree.remove("proc/pressure/cpu");
        let facts = machine(&tree.roots(), None);
        assert_eq!(fact(&facts, "cpu_quota"), ("1.50 CPUs".to_owned(), Verdict::Warn));
        for name in ["io_uring", "numa_balancing", "shared_large_pages", "reserved_huge_pages"] {
            assert_eq!(fact(&facts, name).1, Verdict::Warn, "{name}");
        }
        assert_eq!(fact(&facts, "pressure").1, Verdict::Warn);
        assert_eq!(fact(&facts, "cache_mount").0, "no cache directory");
    }

    #[test]
    fn a_good_set_up_is_told_without() {
        let tree = Tree::new(V1);
        tree.write("sys/fs/cgroup/cpu,cpuacct/pods/a/cpu.cfs_quota_us", "-1\n");
        tree.write("sys/fs/cgroup/cpu,cpuacct/pods/a/cpu.cfs_period_us", "100000\n");
        tree.write("proc/sys/kernel/io_uring_disabled", "0\n");
        let facts = machine(&tree.roots(), None);
        assert_eq!(fact(&facts, "cpu_quota"), ("none".to_owned(), Verdict::Ok));
        assert_eq!(fact(&facts, "io_uring").1, Verdict::Ok);
        assert_eq!(fact(&facts, "pressure").1, Verdict::Ok);
        tree.write("sys/fs/cgroup/cpu,cpuacct/pods/a/cpu.cfs_quota_us", "50000\n");
        assert_eq!(fact(&machine(&tree.roots(), None), "cpu_quota").0, "0.50 CPUs");
    }

    #[test]
    fn the_cache_s_mount_is_judged_by_its_kind() {
        let (tree, folder) = (Tree::new(V2), tempfile::tempdir().unwrap());
        let dir = std::fs::canonicalize(folder.path()).unwrap();
        let judged = |kind: &str, options: &str| {
            let point = dir.display();
            let text = format!("30 1 0:5 / {point} {options} - {kind} source {options}\n");
            tree.write("proc/self/mountinfo", &text);
            fact(&machine(&tree.roots(), Some(&dir)), "cache_mount").1
        };
        assert_eq!(judged("ext4", "rw,noatime"), Verdict::Ok);
        assert_eq!(judged("xfs", "ro"), Verdict::Bad);
        assert_eq!(judged("overlay", "rw"), Verdict::Warn);
        assert_eq!(judged("btrfs", "rw"), Verdict::Warn);
        for kind in ["nfs4", "fuse.sshfs", "tmpfs"] {
            assert_eq!(judged(kind, "rw"), Verdict::Bad, "{kind}");
        }
        let gone = machine(&tree.roots(), Some(&dir.join("gone")));
        assert_eq!(fact(&gone, "cache_mount").1, Verdict::Bad);
    }

    #[test]
    fn this_machine_has_facts() {
        let folder = tempfile::tempdir().unwrap();
        for fact in machine(&Roots::system(), Some(folder.path())) {
            println!("{} {}: {} {}", fact.verdict.as_str(), fact.name, fact.value, fact.advice);
        }
    }
}
