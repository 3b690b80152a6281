//! What a daemon has when nobody wants anything: descriptors, segments, files, memory.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use forebay_client::model::DaemonStatus;
use forebay_testkit::S3Origin;

use crate::Outcome;
use crate::process::{DaemonProcess, status_bytes};

const MEMFD: &str = "/memfd:forebay";

/// Descriptors by what they are.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Descriptors {
    /// Without those to the origin: how many connections are kept is learnt.
    pub(super) counted: BTreeMap<&'static str, i64>,
    /// Files of the kernel that evidence is read from, of each thread that there was.
    pub(super) evidence: i64,
}

impl Descriptors {
    /// Those of a daemon now.
    pub(super) fn of(daemon: &DaemonProcess, origin: &S3Origin) -> Outcome<Self> {
        let mut descriptors = Self::default();
        for entry in std::fs::read_dir(format!("/proc/{}/fd", daemon.pid()))? {
            // It may be closed by now.
            let Ok(target) = std::fs::read_link(entry?.path()) else { continue };
            let target = target.to_string_lossy();
            let kind = match &*target {
                file if file.starts_with("/proc/") || file.starts_with("/sys/") => {
                    descriptors.evidence += 1;
                    continue;
                }
                file if file.starts_with(MEMFD) => "segments",
                file if file.starts_with("socket:") => "sockets",
                file if file.starts_with('/') => "files",
                _ => "others",
            };
            *descriptors.counted.entry(kind).or_default() += 1;
        }
        let open = i64::try_from(origin.connections().open)?;
        *descriptors.counted.entry("sockets").or_default() -= open;
        Ok(descriptors)
    }

    /// How many more there are than there were, and of what.
    pub(super) fn more_than(&self, before: &Self) -> (i64, String) {
        let was = |kind: &str| before.counted.get(kind).copied().unwrap_or(0);
        let more = self.counted.iter().map(|(kind, now)| (*kind, now - was(kind)));
        let more: Vec<(&str, i64)> = more.filter(|(_, more)| *more > 0).collect();
        let told: Vec<String> = more.iter().map(|(kind, more)| format!("{more} {kind}")).collect();
        (more.iter().map(|(_, more)| more).sum(), told.join(", "))
    }
}

/// Segments: those that a daemon has open or mapped, and how many its pool says it has.
pub(super) fn segments(daemon: &DaemonProcess, status: &DaemonStatus) -> Outcome<(u64, u64)> {
    let mut inodes = BTreeSet::new();
    for entry in std::fs::read_dir(format!("/proc/{}/fd", daemon.pid()))? {
        let path = entry?.path();
        let is_segment = |target: &Path| target.to_string_lossy().starts_with(MEMFD);
        if std::fs::read_link(&path).is_ok_and(|target| is_segment(&target)) {
            inodes.insert(std::fs::metadata(&path)?.ino());
        }
    }
    let maps = std::fs::read_to_string(format!("/proc/{}/maps", daemon.pid()))?;
    for line in maps.lines().filter(|line| line.contains(MEMFD)) {
        let inode = line.split_whitespace().nth(4).and_then(|inode| inode.parse().ok());
        inodes.insert(inode.ok_or("a mapping without an inode")?);
    }
    Ok((inodes.len() as u64, status.ram.segments))
}

/// Files that should not be there: in its cache those that no catalogue has, in its run directory
/// whatever is no socket or lock.
pub(super) fn files(daemon: &DaemonProcess, status: &DaemonStatus) -> Outcome<Vec<String>> {
    let cache = daemon.dir().join("cache");
    let mut extents = 0;
    let mut astray = Vec::new();
    for file in below(&cache)? {
        let name = file.strip_prefix(&cache)?.to_string_lossy().into_owned();
        let parts: Vec<&str> = name.split('/').collect();
        match parts.as_slice() {
            [".forebay.lock" | "first-fetch.2"] | ["nvme", "index.redb"] => {}
            ["nvme", "extents", shard, key] if is_hex(key) && key.starts_with(shard) => {
                extents += 1;
            }
            ["nvme", "blobs", digest] if is_hex(digest) => {}
            _ => astray.push(name),
        }
    }
    if extents != status.nvme.extents {
        astray.push(format!("{extents} extents, of which {} are known", status.nvme.extents));
    }
    let run = daemon.dir().join("run");
    for file in below(&run)? {
        let name = file.strip_prefix(&run)?.to_string_lossy().into_owned();
        if ![".forebay.lock", "forebay.sock", "handoff.sock"].contains(&name.as_str()) {
            astray.push(name);
        }
    }
    Ok(astray)
}

fn is_hex(name: &str) -> bool {
    name.len() == 64 && name.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// Every file below a folder; links are not followed.
fn below(folder: &Path) -> Outcome<Vec<std::path::PathBuf>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        match entry.file_type()?.is_dir() {
            true => files.extend(below(&entry.path())?),
            false => files.push(entry.path()),
        }
    }
    Ok(files)
}

/// Memory of its own, which no segment is part of.
pub(super) fn private_bytes(daemon: &DaemonProcess) -> Outcome<u64> {
    Ok(status_bytes(daemon.pid(), "RssAnon:")?)
}

/// Its threads.
pub(super) fn threads(daemon: &DaemonProcess) -> Outcome<i64> {
    let tasks = std::fs::read_dir(format!("/proc/{}/task", daemon.pid()))?;
    Ok(i64::try_from(tasks.count())?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_more_is_told_and_what_is_less_is_not_set_off_against_it() {
        let counted = |sockets, files| Descriptors {
            counted: [("sockets", sockets), ("files", files)].into(),
            evidence: 0,
        };
        assert_eq!(counted(4, 9).more_than(&counted(4, 9)).0, 0);
        let (more, told) = counted(6, 7).more_than(&counted(4, 9));
        assert_eq!((more, told.as_str()), (2, "2 sockets"));
    }
}
