//! What lies in the cache directory of a daemon, read by the tests on their own: the layout and the
//! fields of a header that are documented in the server's `extent` and `store`.

use std::path::{Path, PathBuf};

use forebay_testkit::{Op, S3Origin};

/// An extent that lies in the cache directory.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Extent {
    /// The chunk's key, in hex: the name of the file.
    pub(crate) name: String,
    pub(crate) generation: u64,
    /// The revision that it was stored for.
    pub(crate) revision: [u8; 32],
    /// Bytes of objects in it.
    pub(crate) content_bytes: u64,
    pub(crate) path: PathBuf,
}

/// The daemon's cache directory, as the harness places it.
pub(crate) fn cache(dir: &Path) -> PathBuf {
    dir.join("cache")
}

/// The extents below a daemon's directory, sorted.
pub(crate) fn extents(dir: &Path) -> Vec<Extent> {
    let below = cache(dir).join("nvme/extents");
    let mut extents: Vec<Extent> = files_below(&below).iter().map(|path| extent(path)).collect();
    extents.sort();
    extents
}

fn extent(path: &Path) -> Extent {
    let header = std::fs::read(path).unwrap();
    let long = |at: usize| u64::from_le_bytes(header[at..at + 8].try_into().unwrap());
    assert_eq!(&header[..8], b"FBEXTENT", "{}", path.display());
    let name = path.file_name().unwrap().to_str().unwrap().to_owned();
    assert_eq!(hex(&header[16..48]), name, "the header of another chunk");
    Extent {
        name,
        generation: long(80),
        revision: header[48..80].try_into().unwrap(),
        content_bytes: long(136),
        path: path.to_owned(),
    }
}

/// Every file below a folder, links not followed, sorted; none if there is no folder.
pub(crate) fn files_below(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    let mut files = Vec::new();
    for entry in entries.map(Result::unwrap) {
        if entry.file_type().unwrap().is_dir() {
            files.extend(files_below(&entry.path()));
        } else {
            files.push(entry.path());
        }
    }
    files.sort();
    files
}

/// Flips one bit of a file.
pub(crate) fn flip(path: &Path, bit: u64) {
    use std::os::unix::fs::FileExt;
    let file = std::fs::OpenOptions::new().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, bit / 8).unwrap();
    byte[0] ^= 1 << (bit % 8);
    file.write_all_at(&byte, bit / 8).unwrap();
}

/// Requests for bytes of objects, and the bytes that were sent for them. Listings are not counted.
pub(crate) fn fetched(origin: &S3Origin) -> (u64, u64) {
    let gets = origin.records().into_iter().filter(|record| record.op == Op::Get);
    gets.fold((0, 0), |(gets, bytes), record| (gets + 1, bytes + record.body_bytes))
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
