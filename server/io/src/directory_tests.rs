//! What a directory refuses, and what files in it do, on the filesystem of the temporary directory.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};

use super::*;
use crate::file::FileMode;

struct Ours {
    path: tempfile::TempDir,
    directory: Directory,
}

fn ours() -> Ours {
    let path = tempfile::tempdir().unwrap();
    let directory = Directory::open(path.path()).unwrap();
    Ours { path, directory }
}

fn is_foreign<T: std::fmt::Debug>(result: Result<T, FileError>, part: &str) {
    let error = result.unwrap_err();
    assert!(matches!(error, FileError::Foreign { .. }), "{error}");
    assert!(error.to_string().contains(part), "{error}");
}

#[test]
fn names_that_lead_elsewhere_are_refused() {
    let Ours { directory, path: _path } = ours();
    for name in ["", ".", "..", "a/b", "/etc/passwd", "../x", "a\0b"] {
        let bad = |result: Result<(), FileError>| {
            assert!(matches!(result, Err(FileError::BadName(_))), "{name:?}: {result:?}");
        };
        bad(directory.file(name, OpenHow::NEW).map(drop));
        bad(directory.subdirectory(name, true).map(drop));
        bad(directory.remove(name).map(drop));
        bad(directory.rename(name, &directory, "x"));
        bad(directory.rename("x", &directory, name));
    }
}

#[test]
fn links_pipes_and_second_names_are_refused() {
    let Ours { path, directory } = ours();
    fs::write(path.path().join("real"), b"x").unwrap();
    fs::create_dir(path.path().join("folder")).unwrap();
    symlink(path.path().join("real"), path.path().join("link")).unwrap();
    symlink(path.path().join("folder"), path.path().join("folder-link")).unwrap();
    symlink(path.path().join("nothing"), path.path().join("dangling")).unwrap();
    let fifo = std::process::Command::new("mkfifo").arg(path.path().join("pipe")).status();
    assert!(fifo.unwrap().success());
    let any = OpenHow { write: true, create: Create::IfMissing, direct: true };
    is_foreign(directory.file("link", OpenHow::READ), "link");
    is_foreign(directory.file("dangling", any), "dangling");
    assert!(!path.path().join("nothing").exists(), "nothing was made behind the link");
    is_foreign(directory.subdirectory("folder-link", true), "folder-link");
    is_foreign(directory.file("folder", OpenHow { direct: false, ..any }), "folder");
    is_foreign(directory.file("pipe", OpenHow { direct: false, ..any }), "Fifo");
    is_foreign(directory.subdirectory("real", true), "real");
    is_foreign(Directory::open(&path.path().join("folder-link")), "folder-link");
    directory.file("real", OpenHow::READ).unwrap();
    fs::hard_link(path.path().join("real"), path.path().join("second")).unwrap();
    is_foreign(directory.file("real", OpenHow::READ), "2 names");
}

#[test]
fn what_others_may_change_is_refused() {
    let Ours { path, directory } = ours();
    fs::write(path.path().join("file"), b"x").unwrap();
    let mode = |name: &str, mode| {
        fs::set_permissions(path.path().join(name), fs::Permissions::from_mode(mode)).unwrap();
    };
    for others in [0o620, 0o602] {
        mode("file", others);
        is_foreign(directory.file("file", OpenHow::READ), "chmod");
    }
    for others in [0o770, 0o707] {
        mode("", others);
        is_foreign(Directory::open(path.path()), "chmod");
    }
    mode("", 0o755);
    mode("file", 0o644);
    let directory = Directory::open(path.path()).unwrap();
    directory.file("file", OpenHow::READ).unwrap();
}

#[test]
fn what_belongs_to_somebody_else_is_refused() {
    let Ours { path, directory: _ } = ours();
    let stat = rustix::fs::stat(path.path()).unwrap();
    assert_eq!(trouble(&stat, FileType::Directory, stat.st_uid), None);
    let reason = trouble(&stat, FileType::Directory, stat.st_uid + 1).unwrap();
    assert!(reason.contains(&format!("uid {}", stat.st_uid)), "{reason}");
}

#[test]
fn what_is_made_is_ours_alone() {
    let Ours { path, directory } = ours();
    let below = directory.subdirectory("aa", true).unwrap();
    below.file("x", OpenHow::NEW).unwrap();
    let mode = |name: &str| fs::metadata(path.path().join(name)).unwrap().permissions().mode();
    assert_eq!((mode("aa") & 0o777, mode("aa/x") & 0o777), (0o700, 0o600));
    assert!(matches!(below.file("x", OpenHow::NEW), Err(FileError::Exists(_))));
    assert!(matches!(below.file("y", OpenHow::READ), Err(FileError::NotFound(_))));
    assert!(matches!(directory.subdirectory("bb", false), Err(FileError::NotFound(_))));
}

#[test]
fn names_change_and_go_without_replacing_any() {
    let Ours { directory, path: _path } = ours();
    let below = directory.subdirectory("below", true).unwrap();
    for name in ["a", "b"] {
        directory.file(name, OpenHow::NEW).unwrap();
    }
    let taken = directory.rename("a", &directory, "b").unwrap_err();
    assert!(matches!(taken, FileError::Exists(name) if name == "b"));
    directory.rename("a", &below, "c").unwrap();
    directory.sync().unwrap();
    below.sync().unwrap();
    assert!(matches!(directory.rename("a", &below, "d"), Err(FileError::NotFound(_))));
    assert_eq!(below.names().unwrap(), ["c"]);
    let mut names = directory.names().unwrap();
    names.sort();
    assert_eq!(names, ["b", "below"]);
    assert!(directory.remove("b").unwrap());
    assert!(!directory.remove("b").unwrap());
}

/// As where the kernel cannot do both at once.
#[test]
fn names_change_in_two_steps_without_replacing_any() {
    let Ours { directory, path } = ours();
    for name in ["a", "b"] {
        directory.file(name, OpenHow::NEW).unwrap();
    }
    symlink(path.path().join("nothing"), path.path().join("dangling")).unwrap();
    let own = directory.as_fd();
    for taken in ["b", "dangling"] {
        assert_eq!(rename_if_free((own, "a"), (own, taken)), Err(Errno::EXIST));
    }
    rename_if_free((own, "a"), (own, "c")).unwrap();
    assert_eq!(rename_if_free((own, "a"), (own, "d")), Err(Errno::NOENT));
    directory.file("c", OpenHow::READ).unwrap();
}

#[test]
fn a_directory_stays_the_one_that_was_opened() {
    let Ours { directory, path } = ours();
    let below = directory.subdirectory("below", true).unwrap();
    fs::rename(path.path().join("below"), path.path().join("moved")).unwrap();
    fs::create_dir(path.path().join("below")).unwrap();
    below.try_clone().unwrap().file("x", OpenHow::NEW).unwrap();
    assert!(path.path().join("moved/x").exists());
}

#[test]
fn a_file_is_handed_to_those_who_write_it_themselves() {
    let Ours { directory, path } = ours();
    let file = directory.file("x", OpenHow { direct: false, ..OpenHow::NEW }).unwrap();
    std::io::Write::write_all(&mut fs::File::from(file), b"bytes").unwrap();
    assert_eq!(fs::read(path.path().join("x")).unwrap(), b"bytes");
    assert_eq!(directory.bytes_of("x").unwrap(), 5);
    assert!(matches!(directory.bytes_of("y"), Err(FileError::NotFound(_))));
}

#[test]
fn room_is_taken_and_given_back() {
    let Ours { directory, path: _path } = ours();
    let file = directory.file("x", OpenHow::NEW).unwrap();
    assert_eq!(file.bytes().unwrap(), 0);
    file.allocate(1 << 20).unwrap();
    assert_eq!(file.bytes().unwrap(), 1 << 20);
    file.truncate(4096).unwrap();
    file.sync_data().unwrap();
    assert_eq!(file.bytes().unwrap(), 4096);
    let full = file.allocate(u64::MAX >> 1).unwrap_err();
    assert!(matches!(full, FileError::NoSpace { .. }), "{full}");
}

#[test]
fn the_mode_of_a_file_says_how_its_bytes_travel() {
    let Ours { directory, path: _path } = ours();
    let asked = OpenHow { direct: false, ..OpenHow::NEW };
    let file = directory.file("buffered", asked).unwrap();
    assert_eq!(file.mode(), FileMode::Buffered(BufferedReason::Asked));
    assert_eq!(file.align_bytes(), 1);
    let file = directory.file("direct", OpenHow::NEW).unwrap();
    let flags = rustix::fs::fcntl_getfl(&file).unwrap();
    match file.mode() {
        FileMode::Direct { memory_align_bytes, offset_align_bytes } => {
            assert!(flags.contains(OFlags::DIRECT));
            assert!(memory_align_bytes.is_power_of_two() && offset_align_bytes.is_power_of_two());
        }
        FileMode::Buffered(reason) => {
            assert!(!flags.contains(OFlags::DIRECT) && reason != BufferedReason::Asked);
        }
    }
}

/// /proc takes no O_DIRECT: a filesystem like the tmpfs of old kernels.
#[test]
fn a_filesystem_without_direct_files_is_buffered_and_says_so() {
    let own = Directory {
        descriptor: rustix::fs::open("/proc/self", OFlags::DIRECTORY, Mode::empty()).unwrap(),
    };
    let file = own.file("stat", OpenHow::READ).unwrap();
    assert_eq!(file.mode(), FileMode::Buffered(BufferedReason::Refused));
    assert!(BufferedReason::Refused.to_string().contains("refuses O_DIRECT"));
    let mut start = [0; 16];
    assert!(rustix::io::read(&file, &mut start).unwrap() > 0, "it can be read");
}

#[test]
fn a_file_takes_the_place_of_another_in_one_step() {
    let Ours { path, directory } = ours();
    fs::write(path.path().join("new"), b"new").unwrap();
    fs::write(path.path().join("old"), b"old").unwrap();
    directory.replace("new", "old").unwrap();
    assert_eq!(fs::read(path.path().join("old")).unwrap(), b"new");
    assert!(!path.path().join("new").exists());
    directory.replace("old", "free").unwrap();
    assert!(matches!(directory.replace("old", "free"), Err(FileError::NotFound(_))));
    for name in ["", "..", "a/b"] {
        assert!(matches!(directory.replace("free", name), Err(FileError::BadName(_))));
        assert!(matches!(directory.replace(name, "free"), Err(FileError::BadName(_))));
    }
}
