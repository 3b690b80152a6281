//! The index remembers over restarts, and damage to it is damage to a hint.

use std::path::Path;
use std::sync::mpsc;

use super::*;

fn start(dir: &Path) -> (Index, Rows) {
    let (sender, rows) = mpsc::channel();
    let dir = Directory::open(dir).unwrap();
    let index = Index::start(dir, move |rows| sender.send(rows).unwrap()).unwrap();
    let mut rows = rows.recv().unwrap();
    rows.chunks.sort_by_key(|(key, _)| *key);
    rows.revisions.sort_by_key(|(revision, _)| *revision);
    (index, rows)
}

fn chunk(n: u8) -> (ChunkKey, ChunkRow) {
    let row = ChunkRow {
        generation: u64::from(n) << 40,
        payload_bytes: 8 << 20,
        content_bytes: 7 << 20,
        revisions: (0..n % 3).map(|n| Revision([n; 32])).collect(),
    };
    (ChunkKey([n; 32]), row)
}

fn revision(n: u8) -> (Revision, RevisionRow) {
    let uri = format!("s3://bucket/\u{fc}/{n}");
    let row = RevisionRow { uri, bytes: 5, objects: 2, pinned: n.is_multiple_of(2), last_used: 9 };
    (Revision([n; 32]), row)
}

#[test]
fn what_was_said_is_remembered() {
    let dir = tempfile::tempdir().unwrap();
    let (index, rows) = start(dir.path());
    assert_eq!(rows, Rows::default());
    for n in 0..20 {
        let (key, row) = chunk(n);
        index.chunk(key, Some(row));
        let (key, row) = revision(n);
        index.revision(key, Some(row));
    }
    index.flusher()();
    index.chunk(chunk(3).0, None);
    index.revision(revision(4).0, None);
    drop(index);
    let (index, rows) = start(dir.path());
    assert_eq!(rows.chunks, (0..20).filter(|n| *n != 3).map(chunk).collect::<Vec<_>>());
    assert_eq!(rows.revisions, (0..20).filter(|n| *n != 4).map(revision).collect::<Vec<_>>());
    assert_eq!((rows.damaged, index.trouble()), (0, None));
}

/// One bit, anywhere in the file: whatever is said then was said before.
#[test]
fn a_flipped_bit_makes_no_row_another_one() {
    let dir = tempfile::tempdir().unwrap();
    let (index, _) = start(dir.path());
    for n in 0..200 {
        let (key, row) = chunk(n);
        index.chunk(key, Some(row));
    }
    drop(index);
    let path = dir.path().join(FILE_NAME);
    let sound = std::fs::read(&path).unwrap();
    // Where the file is used at all: bits of free pages say nothing.
    let used: Vec<usize> = (0..sound.len()).filter(|at| sound[*at] != 0).collect();
    let mut lost = 0;
    for n in 0..60 {
        let at = used[n * used.len() / 60];
        let mut flipped = sound.clone();
        flipped[at] ^= 1 << (n % 8);
        std::fs::write(&path, flipped).unwrap();
        let (index, rows) = start(dir.path());
        for (key, row) in &rows.chunks {
            assert_eq!(*row, chunk(key.0[0]).1, "byte {at}");
        }
        lost += usize::from(rows.chunks.len() < 200);
        let (key, row) = chunk(250);
        index.chunk(key, Some(row));
        index.flusher()();
    }
    assert!(lost > 0, "no flip hit anything");
}

#[test]
fn a_foreign_file_is_put_aside_and_a_link_is_never_followed() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join(FILE_NAME), vec![b'x'; 100_000]).unwrap();
    let (index, rows) = start(dir.path());
    let lost = || Rows { lost: true, ..Rows::default() };
    assert_eq!((rows, index.trouble()), (lost(), None));
    drop(index);
    assert!(dir.path().join(BAD_NAME).exists());
    let elsewhere = dir.path().join("elsewhere");
    std::fs::write(&elsewhere, b"precious").unwrap();
    std::fs::remove_file(dir.path().join(FILE_NAME)).unwrap();
    std::os::unix::fs::symlink(&elsewhere, dir.path().join(FILE_NAME)).unwrap();
    let (index, rows) = start(dir.path());
    assert_eq!((rows, index.trouble()), (lost(), None));
    assert_eq!(std::fs::read(elsewhere).unwrap(), b"precious");
}

#[test]
fn a_folder_in_the_place_of_ours_is_not_written_to() {
    let dir = tempfile::tempdir().unwrap();
    let (ours, theirs) = (dir.path().join("ours"), dir.path().join("theirs"));
    let open = Directory::open(dir.path()).unwrap().subdirectory("ours", true).unwrap();
    std::fs::create_dir(&theirs).unwrap();
    std::fs::rename(&ours, dir.path().join("moved")).unwrap();
    std::os::unix::fs::symlink(&theirs, &ours).unwrap();
    drop(Index::start(open, |_rows| {}).unwrap());
    assert!(dir.path().join("moved").join(FILE_NAME).exists());
    assert_eq!(std::fs::read_dir(theirs).unwrap().count(), 0);
}
