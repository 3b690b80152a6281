//! The reader over real files, with both engines, cold and warm.

use std::io::{Read, Write};

use super::*;
use crate::digest::DigestKey;
use crate::ram::RamTier;
use crate::ram::places::Places;
use crate::ram::pool::{Pool, PoolSpec};

const SLOT: usize = 64 << 10;
const KEY: DigestKey = DigestKey([5; 16]);

fn content(bytes: u32) -> Vec<u8> {
    (0..bytes).map(|n| n.wrapping_mul(2_654_435_761).to_be_bytes()[0]).collect()
}

fn file_of(content: &[u8]) -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(content).unwrap();
    rustix::fs::fdatasync(&file).unwrap();
    file
}

fn cold(file: &tempfile::NamedTempFile) {
    rustix::fs::fadvise(file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
}

/// A slot that is full of something else.
async fn slot() -> ClaimedSlot {
    let spec = PoolSpec {
        budget_bytes: SLOT as u64,
        chunk_bytes: SLOT as u64,
        lock: false,
        segments_max: 9,
    };
    let pool = Arc::new(Pool::create(spec, Places::one()).unwrap());
    let tier = RamTier::new(pool, std::array::from_fn(|_| metrics::Counter::noop()));
    let mut slot = tier.claim(None).await.unwrap();
    slot.as_mut_slice().fill(0xee);
    slot
}

fn taken(bytes: &[u8]) -> Taken {
    let mut digest = ExtentDigest::new(KEY);
    digest.landed(bytes);
    digest.finish()
}

/// Whether files of the temporary folder can be read past the page cache.
fn direct(file: &tempfile::NamedTempFile) -> bool {
    let opened = DataFile::opened_direct(file.reopen().unwrap()).unwrap();
    matches!(opened.mode(), FileMode::Direct { .. })
}

/// Reads a range and looks at every byte of the slot; none where there is no O_DIRECT.
async fn lands(
    files: &LocalFiles,
    file: &tempfile::NamedTempFile,
    content: &[u8],
    range: Range<usize>,
) -> Option<()> {
    let (wanted, bytes) = (&content[range.clone()], range.len());
    let mut read = LocalRead::new(files, slot().await, ExtentDigest::new(KEY), bytes);
    let range = range.start as u64..range.end as u64;
    assert!(LocalFiles::suits(&range, SLOT));
    match read.read(file.reopen().unwrap(), range).await.unwrap() {
        FileRead::Done { cold_bytes } => assert!(cold_bytes <= bytes as u64, "{cold_bytes}"),
        FileRead::Unsuited(_) => return None,
    }
    let (slot, landed) = read.finish().unwrap();
    assert!(&slot.as_slice()[..bytes] == wanted);
    assert_eq!(landed, taken(wanted));
    // The rest of the last block was read as well, and is not of the chunk.
    let (rest, beyond) =
        slot.as_slice()[bytes..].split_at(bytes.next_multiple_of(BLOCK_BYTES) - bytes);
    assert!(rest.iter().all(|byte| *byte == 0) || rest.iter().all(|byte| *byte == 0xee));
    assert!(beyond.iter().all(|byte| *byte == 0xee));
    Some(())
}

#[tokio::test]
async fn a_range_lands_whole_and_nothing_beyond_it() {
    let content = content(200_001);
    let file = file_of(&content);
    let ranges = [0..SLOT, 4096..5000, 8192..12288, 196_608..200_001, 0..1];
    for (preference, range) in [Preference::Auto, Preference::Threads]
        .into_iter()
        .flat_map(|preference| ranges.clone().map(|range| (preference, range)))
    {
        let files = LocalFiles::new(preference);
        cold(&file);
        let direct = lands(&files, &file, &content, range.clone()).await;
        let mut all = Vec::new();
        file.reopen().unwrap().read_to_end(&mut all).unwrap();
        let warm = lands(&files, &file, &content, range).await;
        if direct.and(warm).is_none() {
            return println!("skipped: no O_DIRECT here");
        }
    }
}

#[tokio::test]
async fn what_is_cold_stays_out_of_the_page_cache_and_what_is_warm_comes_from_it() {
    let content = content(60_000);
    let file = file_of(&content);
    let cached = || cache_state(file.as_fd(), 0..60_000).map(|state| state.cached_pages);
    cold(&file);
    if !direct(&file) || cached().ok() != Some(0) {
        return println!("skipped: no O_DIRECT here, or the kernel does not tell what is cached");
    }
    let files = LocalFiles::new(Preference::Auto);
    let read = async || {
        let mut read = LocalRead::new(&files, slot().await, ExtentDigest::new(KEY), content.len());
        match read.read(file.reopen().unwrap(), 0..60_000).await.unwrap() {
            FileRead::Done { cold_bytes } => cold_bytes,
            FileRead::Unsuited(_) => panic!("it suits"),
        }
    };
    assert_eq!(read().await, 60_000);
    assert_eq!(cached().unwrap(), 0, "it went past the page cache");
    let mut all = Vec::new();
    file.reopen().unwrap().read_to_end(&mut all).unwrap();
    assert_eq!(read().await, 0, "it is in the page cache");
}

#[tokio::test]
async fn a_device_that_refused_has_its_files_copied() {
    let content = content(60_000);
    let file = file_of(&content);
    let files = LocalFiles::new(Preference::Auto);
    files.refused().insert(file.as_file().metadata().unwrap().dev());
    let mut read = LocalRead::new(&files, slot().await, ExtentDigest::new(KEY), content.len());
    let answer = read.read(file.reopen().unwrap(), 0..60_000).await.unwrap();
    assert!(matches!(answer, FileRead::Unsuited(_)));
    for half in 0..2 {
        // The first copy is given up half way.
        let Destination { into, landing } = read.destination().unwrap();
        let end = if half == 0 { 30_000 } else { 60_000 };
        into[..end].copy_from_slice(&content[..end]);
        landing.unwrap().landed(&into[..end]);
    }
    let (slot, landed) = read.finish().unwrap();
    assert!(slot.as_slice()[..60_000] == content);
    assert_eq!(landed, taken(&content));
}

#[tokio::test]
async fn a_file_that_ends_early_says_so_and_the_slot_is_not_lost() {
    let file = file_of(&content(10_000));
    let files = LocalFiles::new(Preference::Auto);
    let mut read = LocalRead::new(&files, slot().await, ExtentDigest::new(KEY), 20_000);
    match read.read(file.reopen().unwrap(), 0..20_000).await {
        Err(error) => assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof),
        Ok(FileRead::Unsuited(_)) => return println!("skipped: no O_DIRECT here"),
        Ok(FileRead::Done { .. }) => panic!("there are 10,000 bytes"),
    }
    assert!(read.destination().is_some());
}

#[test]
fn only_whole_blocks_that_fit_the_slot_suit() {
    for (range, suits) in [
        (0..1, true),
        (4096..SLOT as u64 + 4096, true),
        (0..SLOT as u64 + 1, false),
        (512..1000, false),
        (5..5, false),
    ] {
        assert_eq!(LocalFiles::suits(&range, SLOT), suits, "{range:?}");
    }
}
