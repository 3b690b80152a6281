//! What defaults depend on: the memory that this process may use, and whose it is.

use std::path::{Path, PathBuf};

/// What the defaults depend on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Host {
    /// Memory that the cgroup or the host allows; 0 if that is not known.
    pub(super) memory_bytes: u64,
    /// The daemon's own.
    pub(super) uid: u32,
}

impl Host {
    /// Looks.
    pub(super) fn probe() -> Self {
        Self { memory_bytes: memory_bytes(), uid: rustix::process::getuid().as_raw() }
    }
}

/// Memory that the cgroup or the host allows.
fn memory_bytes() -> u64 {
    let host = std::fs::read_to_string("/proc/meminfo")
        .ok()
        .and_then(|text| {
            let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
            line.split_whitespace().next()?.parse::<u64>().ok()
        })
        .map_or(0, |kib| kib * 1024);
    let own = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    limit_files(&own)
        .iter()
        .filter_map(|path| std::fs::read_to_string(path).ok()?.trim().parse::<u64>().ok())
        .fold(host, u64::min)
}

/// The files that may limit this process: those of its own cgroup and of every ancestor, version 2
/// and 1. `own` is what `/proc/self/cgroup` says.
pub(super) fn limit_files(own: &str) -> Vec<PathBuf> {
    let of_line = |line: &str| {
        let mut fields = line.splitn(3, ':').skip(1);
        let (controllers, path) = (fields.next()?, fields.next()?);
        let (root, file) = if controllers.is_empty() {
            ("/sys/fs/cgroup", "memory.max")
        } else if controllers.split(',').any(|name| name == "memory") {
            ("/sys/fs/cgroup/memory", "memory.limit_in_bytes")
        } else {
            return None;
        };
        let path = Path::new(path.trim_start_matches('/')).to_owned();
        let below_root = path.ancestors().map(|dir| Path::new(root).join(dir).join(file));
        Some(below_root.collect::<Vec<_>>())
    };
    own.lines().filter_map(of_line).flatten().collect()
}
