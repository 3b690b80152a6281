//! Mounts, as `/proc/self/mountinfo` lists them: what a path lies on.
//!
//! Pure functions on the file's text. The last mount whose point is the longest prefix of a path is
//! the one that the path lies on: a later mount hides an earlier one. Owns nothing.

use std::path::{Path, PathBuf};

/// One mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mount {
    /// Major and minor number of its device; major 0 is none that exists.
    pub(crate) device: (u32, u32),
    /// Which folder of the filesystem is mounted.
    pub(super) root: String,
    /// Where.
    pub(crate) point: PathBuf,
    /// Options of this mount.
    pub(crate) options: String,
    /// Kind of filesystem.
    pub(crate) kind: String,
    /// What is mounted.
    pub(crate) source: String,
    /// Options of the filesystem.
    pub(crate) super_options: String,
}

impl Mount {
    /// Whether an option is set, of the mount or of its filesystem.
    pub(crate) fn has(&self, option: &str) -> bool {
        let options = self.options.split(',').chain(self.super_options.split(','));
        options.into_iter().any(|set| set == option)
    }

    fn parse(line: &str) -> Option<Self> {
        let (mount, filesystem) = line.split_once(" - ")?;
        let mut mount = mount.split(' ').skip(2);
        let (major, minor) = mount.next()?.split_once(':')?;
        let (root, point, options) = (mount.next()?, mount.next()?, mount.next()?);
        let mut filesystem = filesystem.split(' ');
        Some(Self {
            device: (major.parse().ok()?, minor.parse().ok()?),
            root: unescaped(root),
            point: unescaped(point).into(),
            options: options.to_owned(),
            kind: filesystem.next()?.to_owned(),
            source: unescaped(filesystem.next()?),
            super_options: filesystem.next().unwrap_or_default().to_owned(),
        })
    }
}

/// All mounts of the file.
pub(crate) fn mounts(mountinfo: &str) -> Vec<Mount> {
    mountinfo.lines().filter_map(Mount::parse).collect()
}

/// The mount that an absolute path without links lies on.
pub(crate) fn mount_of<'a>(mounts: &'a [Mount], path: &Path) -> Option<&'a Mount> {
    let above = mounts.iter().filter(|mount| path.starts_with(&mount.point));
    above.max_by_key(|mount| mount.point.components().count())
}

/// Blanks, tabs, line ends and backslashes are written as three octal digits.
fn unescaped(text: &str) -> String {
    let mut parts = text.split('\\');
    let mut whole = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let code = part.get(..3).and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match code {
            Some(code) => {
                whole.push(char::from(code));
                whole.push_str(&part[3..]);
            }
            None => {
                whole.push('\\');
                whole.push_str(part);
            }
        }
    }
    whole
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "\
22 27 0:21 / /proc rw,relatime - proc proc rw
27 1 254:0 / / rw,relatime shared:1 master:2 - ext4 /dev/vda rw,discard,resv_strict
30 27 0:27 / /srv/with\\040blank ro,nosuid - tmpfs model\\134x ro,size=4k,mode=755
31 27 0:30 / /srv rw - overlay overlay rw,lowerdir=/l,upperdir=/u,workdir=/w
32 27 259:3 /sub /srv/cache rw,noatime - btrfs /dev/nvme0n1p3 rw,ssd,subvol=/sub
33 27 0:99 / /srv/cache rw - fuse.sshfs host:/x rw,user_id=0
bad line
";

    #[test]
    fn a_path_lies_on_the_last_and_deepest_mount() {
        let mounts = mounts(TEXT);
        assert_eq!(mounts.len(), 6);
        let of = |path: &str| mount_of(&mounts, Path::new(path)).unwrap();
        assert_eq!((of("/home/x").kind.as_str(), of("/home/x").device), ("ext4", (254, 0)));
        assert!(of("/").has("discard") && of("/").has("relatime") && !of("/").has("ro"));
        assert_eq!(of("/srv/x").kind, "overlay");
        assert_eq!(of("/srvx").kind, "ext4", "no prefix of a name");
        assert_eq!(of("/srv/cache/x").kind, "fuse.sshfs", "it hides the one before");
        let blank = of("/srv/with blank/x");
        assert_eq!((blank.kind.as_str(), blank.source.as_str()), ("tmpfs", "model\\x"));
        assert!(blank.has("ro"));
        assert_eq!(unescaped("a\\04"), "a\\04");
        assert_eq!(unescaped("\\"), "\\");
    }
}
