//! Files: odd names, links, things that are no files, and changes under a reader.

use std::fs;
use std::os::unix::fs::{FileExt, symlink};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use forebay_origin::{
    Destination, FileRead, FileReader, ObjectKey, OriginErrorKind, OriginStore, ReadTerms,
};
use tempfile::TempDir;

use crate::{origins, pattern, quick, request, uri, whole};

fn folder() -> (TempDir, Arc<dyn OriginStore>, ObjectKey) {
    let folder = tempfile::tempdir().unwrap();
    let uri = uri(&format!("file://{}/", folder.path().display()));
    let store = origins(quick()).open(&uri).unwrap();
    let key = uri.key().clone();
    (folder, store, key)
}

fn write(folder: &Path, name: &str, bytes: &[u8]) {
    let path = folder.join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, bytes).unwrap();
}

#[tokio::test]
async fn odd_names_are_listed_and_read() {
    let (folder, store, prefix) = folder();
    let names = [
        "%2e",
        "a b",
        "c/d/e",
        "empty",
        "x?y",
        "ü/日本",
        "back\\slash",
        "h#ash",
        "...",
        "~",
        "c:d",
    ];
    for name in names {
        let bytes = if name == "empty" { Vec::new() } else { pattern(name.len() * 1000) };
        write(folder.path(), name, &bytes);
    }
    let found = store.list(&prefix, names.len()).await.unwrap();
    let mut listed: Vec<&str> = found.iter().map(|m| m.key.relative_to(&prefix).unwrap()).collect();
    assert!(listed.is_sorted());
    let mut wanted = names;
    wanted.sort_unstable();
    listed.sort_unstable();
    assert_eq!(listed, wanted);
    for meta in &found {
        assert_eq!(&store.head(&meta.key).await.unwrap(), meta);
        let name = meta.key.relative_to(&prefix).unwrap();
        assert_eq!(whole(&*store, meta).await, fs::read(folder.path().join(name)).unwrap());
    }
    let error = store.list(&prefix, names.len() - 1).await.unwrap_err();
    assert_eq!(error.kind, OriginErrorKind::LimitExceeded);
}

#[tokio::test]
async fn links_are_followed_and_broken_ones_are_not_there() {
    let (folder, store, prefix) = folder();
    let (elsewhere, ..) = self::folder();
    write(elsewhere.path(), "blob", b"linked");
    write(folder.path(), "real/x", b"real");
    symlink(elsewhere.path().join("blob"), folder.path().join("link")).unwrap();
    symlink("real", folder.path().join("dir")).unwrap();
    symlink("gone", folder.path().join("broken")).unwrap();
    let found = store.list(&prefix, 9).await.unwrap();
    let listed: Vec<&str> = found.iter().map(|m| m.key.relative_to(&prefix).unwrap()).collect();
    assert_eq!(listed, ["dir/x", "link", "real/x"]);
    assert_eq!(whole(&*store, &found[1]).await, b"linked");
    let broken = store.head(&prefix.join("broken").unwrap()).await.unwrap_err();
    assert_eq!(broken.kind, OriginErrorKind::NotFound);

    symlink("..", folder.path().join("real/loop")).unwrap();
    let error = store.list(&prefix, 99).await.unwrap_err();
    assert!(error.to_string().contains("loop"), "{error}");
}

#[tokio::test]
async fn what_is_no_file_is_not_found() {
    let (folder, store, prefix) = folder();
    write(folder.path(), "d/x", b"x");
    let pipe = folder.path().join("pipe");
    let mode = rustix::fs::Mode::RUSR;
    rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, mode, 0).unwrap();
    for name in ["d", "pipe", "gone", "d/x/y"] {
        let error = store.head(&prefix.join(name).unwrap()).await.unwrap_err();
        assert_eq!(error.kind, OriginErrorKind::NotFound, "{name}: {error}");
        assert_eq!(error.attempts, 1);
    }
    assert_eq!(store.list(&prefix, 9).await.unwrap().len(), 1);
    assert!(store.list(&prefix.join("gone").unwrap(), 9).await.unwrap().is_empty());
    assert!(store.list(&prefix.join("d/x").unwrap(), 9).await.unwrap().is_empty());
    let error = store.head(&ObjectKey::root()).await.unwrap_err();
    assert_eq!(error.kind, OriginErrorKind::NotFound);
}

#[tokio::test]
async fn names_that_the_library_keeps_for_itself_are_refused() {
    let (folder, store, prefix) = folder();
    for name in ["part#1", "c:", "abc|"] {
        write(folder.path(), name, b"x");
        let error = store.head(&prefix.join(name).unwrap()).await.unwrap_err();
        assert_eq!(error.kind, OriginErrorKind::Unsupported, "{error}");
        assert!(error.to_string().contains(name));
    }
}

#[tokio::test]
async fn a_name_that_is_no_text_is_an_error_that_names_it() {
    use std::os::unix::ffi::OsStrExt;
    let (folder, store, prefix) = folder();
    fs::write(folder.path().join(std::ffi::OsStr::from_bytes(b"odd\xff")), b"x").unwrap();
    let error = store.list(&prefix, 9).await.unwrap_err();
    assert_eq!(error.kind, OriginErrorKind::Unsupported, "{error}");
    assert!(error.to_string().contains("odd%FF"), "{error}");
}

#[tokio::test]
async fn a_changed_file_is_never_read() {
    let (folder, store, prefix) = folder();
    let key = prefix.join("o").unwrap();
    let path = folder.path().join("o");
    write(folder.path(), "o", &pattern(5000));
    let meta = store.head(&key).await.unwrap();
    assert!(meta.pin.etag.as_ref().unwrap().starts_with('"'));

    // Replaced by another file of the same size and time.
    let modified = fs::metadata(&path).unwrap().modified().unwrap();
    write(folder.path(), "new", &pattern(5000));
    let new = fs::File::options().write(true).open(folder.path().join("new")).unwrap();
    new.set_modified(modified).unwrap();
    fs::rename(folder.path().join("new"), &path).unwrap();
    let error = store.read(&request(&meta, 0..5000), &mut [0; 5000]).await.unwrap_err();
    assert_eq!((error.kind, error.attempts), (OriginErrorKind::Changed, 1));

    // Written to in place.
    let meta = store.head(&key).await.unwrap();
    let file = fs::File::options().write(true).open(&path).unwrap();
    file.set_modified(modified + Duration::from_secs(5)).unwrap();
    let error = store.read(&request(&meta, 0..5000), &mut [0; 5000]).await.unwrap_err();
    assert_eq!(error.kind, OriginErrorKind::Changed);

    // Cut off, then gone.
    let meta = store.head(&key).await.unwrap();
    file.set_len(10).unwrap();
    let error = store.read(&request(&meta, 0..5000), &mut [0; 5000]).await.unwrap_err();
    assert_eq!(error.kind, OriginErrorKind::Changed);
    fs::remove_file(&path).unwrap();
    let error = store.read(&request(&meta, 0..5000), &mut [0; 5000]).await.unwrap_err();
    assert_eq!(error.kind, OriginErrorKind::NotFound);
}

#[tokio::test]
async fn ranges_of_large_files_come_in_pieces() {
    let (folder, store, prefix) = folder();
    let content = pattern(5_000_001);
    write(folder.path(), "o", &content);
    let meta = store.head(&prefix.join("o").unwrap()).await.unwrap();
    for range in [0..5_000_001_usize, 1..2, 1_048_575..3_145_730] {
        let mut bytes = vec![0; range.len()];
        let asked = request(&meta, range.start as u64..range.end as u64);
        let record = store.read(&asked, &mut bytes).await.unwrap();
        assert_eq!((record.attempts, record.bytes_received), (1, range.len() as u64));
        assert!(bytes == content[range]);
    }
}

#[tokio::test]
async fn an_attempt_says_how_much_a_disk_had_to_bring() {
    let (folder, store, prefix) = folder();
    write(folder.path(), "o", &pattern(3_000_000));
    let file = fs::File::open(folder.path().join("o")).unwrap();
    rustix::fs::fdatasync(&file).unwrap();
    let meta = store.head(&prefix.join("o").unwrap()).await.unwrap();
    let cold = async || {
        let read = store.read(&request(&meta, 0..3_000_000), &mut vec![0; 3_000_000]).await;
        read.unwrap().attempt_log[0].cold_bytes
    };
    assert_eq!(cold().await, 0, "it was just written");
    // A quick disk has some of what it is asked for there at once, and at times all of it.
    let mut most = 0;
    for _ in 0..32 {
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
        most = most.max(cold().await);
    }
    if most == 0 {
        return println!("skipped the part with dropped pages: they are kept, or there at once");
    }
    assert!(most <= 3_000_000, "{most}");
    assert_eq!(cold().await, 0, "the read brought it into the page cache");
}

/// Reads as one with a way of its own would, or has the file copied.
struct Reader {
    bytes: Vec<u8>,
    suits: bool,
    /// What happens to the file while it is read.
    meanwhile: Option<Box<dyn FnOnce() + Send>>,
    fails: Option<std::io::ErrorKind>,
}

impl Reader {
    fn of(bytes: usize) -> Self {
        Self { bytes: vec![0; bytes], suits: true, meanwhile: None, fails: None }
    }
}

#[async_trait::async_trait]
impl FileReader for Reader {
    async fn read(
        &mut self,
        file: fs::File,
        range: std::ops::Range<u64>,
    ) -> std::io::Result<FileRead> {
        if let Some(kind) = self.fails.take() {
            return Err(kind.into());
        }
        if !self.suits {
            return Ok(FileRead::Unsuited(file));
        }
        file.read_exact_at(&mut self.bytes, range.start)?;
        if let Some(meanwhile) = self.meanwhile.take() {
            meanwhile();
        }
        Ok(FileRead::Done { cold_bytes: 77 })
    }

    fn destination(&mut self) -> Option<Destination<'_>> {
        Some(self.bytes.as_mut_slice().into())
    }
}

#[tokio::test]
async fn a_reader_with_a_place_of_its_own_is_held_to_the_version() {
    let (folder, store, prefix) = folder();
    let content = pattern(5_000_000);
    write(folder.path(), "o", &content);
    let path = folder.path().join("o");
    let meta = store.head(&prefix.join("o").unwrap()).await.unwrap();
    assert!(store.holds_files());
    let asked = request(&meta, 4096..3_000_001);
    for suits in [true, false] {
        let mut reader = Reader { suits, ..Reader::of(3_000_001 - 4096) };
        let terms = ReadTerms::default();
        let record = store.read_file(&asked, terms.clone(), &mut reader).await.unwrap();
        assert!(reader.bytes == content[4096..3_000_001]);
        let [attempt] = record.attempt_log.as_slice() else { panic!("{record:?}") };
        assert_eq!(attempt.bytes, 3_000_001 - 4096);
        assert_eq!(attempt.cold_bytes, if suits { 77 } else { 0 });
        assert_eq!(terms.landed_bytes(), 3_000_001 - 4096);
    }

    // A disk that fails is no matter of another attempt.
    let mut reader = Reader::of(3_000_001 - 4096);
    let kind = std::io::ErrorKind::TimedOut;
    reader.fails = Some(kind);
    let error = store.read_file(&asked, ReadTerms::default(), &mut reader).await.unwrap_err();
    assert_eq!((error.kind, error.attempts), (OriginErrorKind::Local(kind), 1));

    // Written to while it is read, by whichever way.
    let touched = path.clone();
    let mut reader = Reader::of(3_000_001 - 4096);
    reader.meanwhile = Some(Box::new(move || {
        let file = fs::File::options().write(true).open(touched).unwrap();
        let later = file.metadata().unwrap().modified().unwrap() + Duration::from_secs(5);
        file.set_modified(later).unwrap();
    }));
    let error = store.read_file(&asked, ReadTerms::default(), &mut reader).await.unwrap_err();
    assert_eq!((error.kind, error.attempts), (OriginErrorKind::Changed, 1));

    // Another version by now; beyond its end; nothing.
    let mut reader = Reader::of(3_000_001 - 4096);
    let error = store.read_file(&asked, ReadTerms::default(), &mut reader).await.unwrap_err();
    assert_eq!(error.kind, OriginErrorKind::Changed);
    for range in [0..5_000_001, 9..9] {
        let asked = request(&meta, range);
        let error = store.read_file(&asked, ReadTerms::default(), &mut reader).await.unwrap_err();
        assert_eq!(error.kind, OriginErrorKind::Local(std::io::ErrorKind::InvalidInput));
    }
}
