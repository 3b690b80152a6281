//! The block device below a directory, and what its queue does.
//!
//! From the number of the directory's device to `/sys/dev/block`, then down: from a partition to
//! its disk, from a mapping or an array over one disk to that disk, because there the requests
//! queue. An array over several is read itself. Owns the open `stat`.

use std::path::{Path, PathBuf};

use super::files::{KeptFile, Roots, TextBuffer};
use super::host::DiskSample;
use super::mounts::{Mount, mount_of, mounts};
use super::text;

/// Mappings over mappings that are followed.
const DEPTH_MAX: usize = 8;

/// Bytes of what the kernel counts in, whatever the device's own blocks are.
const SECTOR_BYTES: u64 = 512;

/// A directory, and the device number of its filesystem if that is known.
#[derive(Debug, Clone)]
pub(crate) struct CachePlace {
    /// Absolute, without links.
    pub(crate) dir: PathBuf,
    /// Major and minor number.
    pub(crate) device: Option<(u32, u32)>,
}

impl CachePlace {
    /// The place of an existing directory.
    pub(crate) fn of(dir: &Path) -> std::io::Result<Self> {
        let dir = std::fs::canonicalize(dir)?;
        let device = rustix::fs::stat(&dir)?.st_dev;
        let device = (rustix::fs::major(device), rustix::fs::minor(device));
        Ok(Self { dir, device: Some(device) })
    }
}

/// The device, or why there is none.
#[derive(Debug)]
pub(super) enum BlockDevice {
    Known {
        name: String,
        /// What to know of it; may be empty.
        note: String,
        /// Its counters are not those of the disk.
        hides_disk: bool,
        stat: KeptFile,
    },
    Unknown {
        why: String,
    },
}

impl BlockDevice {
    pub(super) fn below(roots: &Roots, place: Option<&CachePlace>) -> Self {
        let found = match place {
            Some(place) => find(roots, place),
            None => Err("there is no cache directory".to_owned()),
        };
        match found {
            Ok(folder) => Self::of(&folder),
            Err(why) => Self::Unknown { why },
        }
    }

    fn of(top: &Path) -> Self {
        let (folder, mut notes) = descend(top);
        let name = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let stats = std::fs::read_to_string(folder.join("queue/iostats"));
        if stats.is_ok_and(|on| on.trim() == "0") {
            let why =
                format!("{name} counts nothing: write 1 to {}/queue/iostats", folder.display());
            return Self::Unknown { why };
        }
        let hides_disk = is_virtual(&folder, &name);
        if hides_disk {
            notes.push("a virtual device: it hides the queue below it, confidence is low".into());
        }
        let stat = KeptFile::open(folder.join("stat"));
        match stat.why_not() {
            Some(why) => Self::Unknown { why },
            None => Self::Known { name, note: notes.join("; "), hides_disk, stat },
        }
    }

    /// Whether its counters are those of something above the disk.
    pub(super) fn hides_disk(&self) -> bool {
        matches!(self, Self::Known { hides_disk: true, .. })
    }

    pub(super) fn read(&self, buffer: &mut TextBuffer) -> Option<DiskSample> {
        let Self::Known { stat, .. } = self else { return None };
        let counted = text::block_stat(stat.read(buffer)?)?;
        Some(DiskSample {
            reads: counted.reads,
            read_bytes: counted.read_sectors.saturating_mul(SECTOR_BYTES),
            read_ticks: counted.read_ticks,
            writes: counted.writes,
            write_ticks: counted.write_ticks,
            busy: counted.busy,
            time_in_queue: counted.time_in_queue,
            inflight: counted.inflight,
        })
    }

    pub(super) fn state(&self) -> (bool, String) {
        match self {
            Self::Known { name, note, .. } if note.is_empty() => (true, name.clone()),
            Self::Known { name, note, .. } => (true, format!("{name}: {note}")),
            Self::Unknown { why } => (false, why.clone()),
        }
    }
}

/// The folder in sysfs of the device that a directory's filesystem is on.
fn find(roots: &Roots, place: &CachePlace) -> Result<PathBuf, String> {
    let numbered = |(major, minor): (u32, u32)| {
        let link = roots.sys.join(format!("dev/block/{major}:{minor}"));
        std::fs::canonicalize(link).ok()
    };
    if let Some(folder) = place.device.filter(|(major, _)| *major != 0).and_then(numbered) {
        return Ok(folder);
    }
    // Of btrfs and overlays the number is of no device; the mount may name one.
    let mountinfo = roots.read_proc("self/mountinfo").unwrap_or_default();
    let mounts = mounts(&mountinfo);
    let dir = place.dir.display();
    let Some(mount) = mount_of(&mounts, &place.dir) else {
        return Err(format!("{dir} lies on no mount that can be seen"));
    };
    let named = mount.source.strip_prefix("/dev/").and_then(|name| {
        std::fs::canonicalize(roots.sys.join("class/block").join(name.rsplit('/').next()?)).ok()
    });
    named.ok_or_else(|| {
        let Mount { kind, source, .. } = mount;
        format!("{dir} lies on {kind} ({source}), below which no block device can be seen")
    })
}

/// From a partition to its disk, from a mapping over one disk to that disk.
fn descend(top: &Path) -> (PathBuf, Vec<String>) {
    let (mut folder, mut notes) = (top.to_owned(), Vec::new());
    for _ in 0..DEPTH_MAX {
        if folder.join("partition").exists()
            && let Some(disk) = folder.parent()
        {
            folder = disk.to_owned();
        }
        let below = std::fs::read_dir(folder.join("slaves")).map(|entries| {
            entries.filter_map(|entry| std::fs::canonicalize(entry.ok()?.path()).ok())
        });
        let below: Vec<PathBuf> = below.map(Iterator::collect).unwrap_or_default();
        let name = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
        match below.as_slice() {
            [] => break,
            [only] => {
                notes.push(format!("below {name}"));
                folder.clone_from(only);
            }
            several => {
                notes.push(format!("an array over {} devices", several.len()));
                break;
            }
        }
    }
    (folder, notes)
}

/// Whether what looks like a disk is a file, memory or another machine's promise.
fn is_virtual(folder: &Path, name: &str) -> bool {
    let listed = folder.components().any(|part| part.as_os_str() == "virtual");
    listed || name.starts_with("vd") || name.starts_with("xvd")
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::time::Duration;

    use super::super::proc_tests::{STAT, Tree, V2};
    use super::*;

    const DEVICES: &str = "sys/devices/pci0000:00/0000:00:01.0/nvme/nvme0";

    /// A disk with a partition and a mapping over that, and one of two disks.
    fn machine() -> Tree {
        let tree = Tree::new(V2);
        let disk = format!("{DEVICES}/nvme0n1");
        tree.write(&format!("{disk}/stat"), STAT);
        tree.write(&format!("{disk}/queue/iostats"), "1\n");
        tree.write(&format!("{disk}/nvme0n1p2/partition"), "2\n");
        tree.write(&format!("{disk}/nvme0n1p2/stat"), "1 1 1 1 1 1 1 1 1 1 1\n");
        tree.write("sys/devices/virtual/block/dm-0/stat", "2 2 2 2 2 2 2 2 2 2 2\n");
        tree.write("sys/devices/virtual/block/md0/stat", "3 3 3 3 3 3 3 3 3 3 3\n");
        tree.write("sys/devices/virtual/block/zram0/stat", "4 4 4 4 4 4 4 4 4 4 4\n");
        tree.link("sys/devices/virtual/block/dm-0/slaves/nvme0n1p2", &format!("{disk}/nvme0n1p2"));
        for name in ["a", "b"] {
            tree.link(&format!("sys/devices/virtual/block/md0/slaves/{name}"), &disk);
        }
        tree.remove("sys/dev/block/259:0");
        tree.link("sys/dev/block/259:0", &disk);
        tree.link("sys/dev/block/259:2", &format!("{disk}/nvme0n1p2"));
        tree.link("sys/class/block/nvme0n1p2", &format!("{disk}/nvme0n1p2"));
        for (number, name) in [("253:0", "dm-0"), ("9:0", "md0"), ("253:9", "zram0")] {
            let device = format!("sys/devices/virtual/block/{name}");
            tree.link(&format!("sys/dev/block/{number}"), &device);
        }
        tree
    }

    fn below(tree: &Tree, dir: &str, device: (u32, u32)) -> BlockDevice {
        let place = CachePlace { dir: dir.into(), device: Some(device) };
        BlockDevice::below(&tree.roots(), Some(&place))
    }

    #[test]
    fn partitions_and_mappings_lead_to_the_disk() {
        let tree = machine();
        let buffer = &mut TextBuffer::new();
        for (device, note) in [((259, 0), "nvme0n1"), ((259, 2), "nvme0n1"), ((253, 0), "dm-0")] {
            let device = below(&tree, "/cache", device);
            let (available, why) = device.state();
            assert!(available && why.starts_with("nvme0n1") && why.contains(note), "{why}");
            assert!(!device.hides_disk(), "{why}");
            let disk = device.read(buffer).unwrap();
            assert_eq!((disk.reads, disk.read_bytes), (84930, 6_439_002 * 512));
            assert_eq!(disk.time_in_queue, Duration::from_millis(435_948));
        }
    }

    #[test]
    fn what_hides_its_queue_says_so() {
        let tree = machine();
        let (_, why) = below(&tree, "/cache", (9, 0)).state();
        assert!(why.contains("over 2 devices") && why.contains("confidence is low"), "{why}");
        let (_, why) = below(&tree, "/cache", (253, 9)).state();
        assert!(why.starts_with("zram0") && why.contains("virtual"), "{why}");
        tree.write(&format!("{DEVICES}/nvme0n1/queue/iostats"), "0\n");
        let frozen = below(&tree, "/cache", (259, 2));
        assert!(frozen.state().1.contains("iostats") && !frozen.state().0);
        assert_eq!(frozen.read(&mut TextBuffer::new()), None);
    }

    #[test]
    fn a_filesystem_without_a_device_number_is_found_by_its_source() {
        let tree = machine();
        let mounts = "31 27 0:30 / /over rw - overlay overlay rw,upperdir=/u\n\
                      32 27 0:40 /s /data rw - btrfs /dev/nvme0n1p2 rw\n";
        tree.write("proc/self/mountinfo", mounts);
        assert_eq!(below(&tree, "/data/x", (0, 40)).state(), (true, "nvme0n1".to_owned()));
        let (available, why) = below(&tree, "/over/x", (0, 30)).state();
        assert!(!available && why.contains("overlay"), "{why}");
        let (available, why) = below(&tree, "/nowhere", (0, 1)).state();
        assert!(!available && why.contains("no mount"), "{why}");
        assert!(!BlockDevice::below(&tree.roots(), None).state().0);
    }

    #[test]
    fn a_ring_of_mappings_ends() {
        let tree = machine();
        let dir = tree.path("sys/devices/virtual/block/dm-0");
        std::fs::remove_file(dir.join("slaves/nvme0n1p2")).unwrap();
        symlink(&dir, dir.join("slaves/self")).unwrap();
        assert!(below(&tree, "/cache", (253, 0)).state().0);
    }
}
