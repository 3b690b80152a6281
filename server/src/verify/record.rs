//! The digest found on first fetch, recorded and enforced ever after.
//!
//! One append-only file, `first-fetch`, in the cache directory: the key under which the digests are
//! taken (see [`crate::digest`]), then fixed records of chunk key, digest and a check word. A
//! chunk's key is a digest of origin, object, version and range, so the file holds no name a caller
//! chose. Appends go through the page cache and are not synced: what a power cut loses is a record,
//! never a byte that is served. A torn or foreign record fails its check word and is skipped. At
//! [`RECORDS_MAX`] the older half is dropped when the file is next read.
//!
//! Without a cache directory the records live as long as the daemon.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use crate::digest::{ChunkDigest, DIGEST_BYTES, DigestKey};
use crate::plan::ChunkKey;
use crate::proof::ObjectDigest;
use crate::resolve::KnownDigests;

/// Records kept: 75 MB of file, for 8 TiB of chunks of 8 MiB.
const RECORDS_MAX: usize = 1 << 20;

const KEY_BYTES: usize = 32;
const CHECK_BYTES: usize = 8;
const RECORD_BYTES: usize = KEY_BYTES + DIGEST_BYTES + CHECK_BYTES;
/// Digest key and check word.
const HEAD_BYTES: usize = crate::digest::KEY_BYTES + CHECK_BYTES;

/// The name in the cache directory; the number is the version of the format.
const FILE_NAME: &str = "first-fetch.2";

/// What is recorded where there is nothing to say but that.
const PRESENT: ChunkDigest = [1; DIGEST_BYTES];

/// What is recorded of a chunk whose record counts no more: no digest of anything.
const FORGOTTEN: ChunkDigest = [0; DIGEST_BYTES];

type Record = (ChunkKey, ChunkDigest);

/// What a digest says about earlier fetches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Never seen before; recorded.
    First,
    /// As recorded.
    Same,
    /// Other bytes than were recorded.
    Different,
}

/// The records of one daemon.
#[derive(Debug)]
pub(crate) struct Records {
    key: DigestKey,
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    digests: HashMap<ChunkKey, ChunkDigest>,
    file: Option<File>,
}

impl Records {
    /// Records that live as long as the daemon.
    pub(crate) fn in_memory() -> std::io::Result<Self> {
        let inner = Inner { digests: HashMap::new(), file: None };
        Ok(Self { key: DigestKey::random()?, inner: Mutex::new(inner) })
    }

    /// The key under which the digests are to be taken.
    pub(crate) fn key(&self) -> DigestKey {
        self.key
    }

    /// Reads what `dir` holds and appends to it from now on.
    pub(crate) fn open(dir: &Path) -> std::io::Result<Self> {
        let path = dir.join(FILE_NAME);
        let (key, records) = read(&path)?;
        let key = key.map_or_else(DigestKey::random, Ok)?;
        let keep = records.len().saturating_sub(if records.len() >= RECORDS_MAX {
            records.len() - RECORDS_MAX / 2
        } else {
            0
        });
        let kept = &records[records.len() - keep..];
        rewrite(dir, &path, key, kept)?;
        let file = OpenOptions::new().append(true).mode(0o600).open(&path)?;
        let digests = kept.iter().copied().collect();
        Ok(Self { key, inner: Mutex::new(Inner { digests, file: Some(file) }) })
    }

    /// What was recorded of a chunk.
    pub(crate) fn known(&self, key: &ChunkKey) -> Option<ChunkDigest> {
        let inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.digests.get(key).copied()
    }

    /// Forgets what was recorded of chunks: their bytes turned out to be wrong.
    pub(crate) fn forget(&self, keys: &[ChunkKey]) {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        // A record without a digest takes those before it back.
        let gone = keys.iter().filter(|key| inner.digests.remove(key).is_some());
        let gone: Vec<Record> = gone.map(|key| (*key, FORGOTTEN)).collect();
        inner.append(&gone);
    }

    /// An object whose bytes lie in these chunks, in order, has this digest. That stands as long as
    /// these digests of the chunks do.
    pub(crate) fn prove(
        &self,
        identity: &[u8; 32],
        by: ObjectDigest,
        chunks: impl IntoIterator<Item = (ChunkKey, ChunkDigest)>,
    ) {
        let mut seal = blake3::Hasher::new();
        for (key, digest) in chunks {
            seal.update(&key.0).update(&digest);
        }
        self.set(proof_of(identity, by), *seal.finalize().as_bytes());
    }

    /// Whether an object whose bytes lie in these chunks, in order, was held to this digest, and
    /// the digests of the chunks that were compared then are those that are recorded now.
    pub(crate) fn stands(
        &self,
        identity: &[u8; 32],
        by: ObjectDigest,
        chunks: impl IntoIterator<Item = ChunkKey>,
    ) -> bool {
        let Some(proof) = self.known(&proof_of(identity, by)) else { return false };
        let mut seal = blake3::Hasher::new();
        for key in chunks {
            let Some(digest) = self.known(&key) else { return false };
            seal.update(&key.0).update(&digest);
        }
        *seal.finalize().as_bytes() == proof
    }

    /// Forgets what a store said of an object.
    pub(crate) fn forget_said(&self, identity: &[u8; 32]) {
        let kinds = ObjectDigest::KINDS.into_iter().chain([0]);
        let said: Vec<ChunkKey> = kinds.map(|kind| said_of(identity, kind)).collect();
        self.forget(&said);
    }

    /// Records anew.
    fn set(&self, key: ChunkKey, value: ChunkDigest) {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let same = inner.digests.get(&key) == Some(&value);
        if !same && (inner.digests.len() < RECORDS_MAX || inner.digests.contains_key(&key)) {
            inner.digests.insert(key, value);
            inner.append(&[(key, value)]);
        }
    }

    /// Compares with what was recorded, or records it.
    pub(crate) fn check(&self, key: ChunkKey, digest: ChunkDigest) -> Verdict {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        match inner.digests.get(&key) {
            Some(known) if *known == digest => return Verdict::Same,
            Some(_) => return Verdict::Different,
            None => {}
        }
        if inner.digests.len() < RECORDS_MAX {
            inner.digests.insert(key, digest);
            inner.append(&[(key, digest)]);
        }
        Verdict::First
    }
}

impl KnownDigests for Records {
    fn known(&self, identity: &[u8; 32]) -> Option<Option<ObjectDigest>> {
        let record = |kind| Self::known(self, &said_of(identity, kind));
        if record(0).is_some() {
            return Some(None);
        }
        let of_kind = |kind| ObjectDigest::from_record(kind, record(kind)?);
        ObjectDigest::KINDS.into_iter().find_map(of_kind).map(Some)
    }

    fn remember(&self, identity: &[u8; 32], digest: Option<ObjectDigest>) {
        let (kind, value) = digest.map_or((0, PRESENT), ObjectDigest::to_record);
        self.set(said_of(identity, kind), value);
    }
}

impl Inner {
    fn append(&mut self, records: &[Record]) {
        let Some(file) = &mut self.file else { return };
        let bytes: Vec<u8> = records.iter().flat_map(|(key, value)| encode(*key, *value)).collect();
        if let Err(error) = file.write_all(&bytes) {
            tracing::warn!(%error, "first-fetch digests are no longer kept on disk");
            self.file = None;
        }
    }
}

/// The key of the record of what a store says of an object, by the kind of digest.
fn said_of(identity: &[u8; 32], kind: u8) -> ChunkKey {
    let mut hasher = blake3::Hasher::new();
    hasher.update(b"forebay store says").update(identity).update(&[kind]);
    ChunkKey(*hasher.finalize().as_bytes())
}

/// The key of the record that an object has a digest.
fn proof_of(identity: &[u8; 32], by: ObjectDigest) -> ChunkKey {
    let (kind, value) = by.to_record();
    let mut hasher = blake3::Hasher::new();
    hasher.update(b"forebay whole object").update(identity).update(&[kind]).update(&value);
    ChunkKey(*hasher.finalize().as_bytes())
}

fn encode(key: ChunkKey, digest: ChunkDigest) -> [u8; RECORD_BYTES] {
    let mut record = [0; RECORD_BYTES];
    record[..KEY_BYTES].copy_from_slice(&key.0);
    record[KEY_BYTES..KEY_BYTES + DIGEST_BYTES].copy_from_slice(&digest);
    let check = check_word(&record[..KEY_BYTES + DIGEST_BYTES]);
    record[KEY_BYTES + DIGEST_BYTES..].copy_from_slice(&check);
    record
}

fn decode(record: &[u8; RECORD_BYTES]) -> Option<Record> {
    let (body, check) = record.split_at(KEY_BYTES + DIGEST_BYTES);
    if check_word(body) != check {
        return None;
    }
    let (key, digest) = body.split_at(KEY_BYTES);
    Some((ChunkKey(key.try_into().ok()?), digest.try_into().ok()?))
}

fn check_word(body: &[u8]) -> [u8; CHECK_BYTES] {
    let mut check = [0; CHECK_BYTES];
    check.copy_from_slice(&blake3::hash(body).as_bytes()[..CHECK_BYTES]);
    check
}

fn encode_head(key: DigestKey) -> [u8; HEAD_BYTES] {
    let mut head = [0; HEAD_BYTES];
    let (body, check) = head.split_at_mut(crate::digest::KEY_BYTES);
    body.copy_from_slice(&key.0);
    check.copy_from_slice(&check_word(body));
    head
}

fn decode_head(bytes: &[u8]) -> Option<(DigestKey, &[u8])> {
    let (head, records) = bytes.split_at_checked(HEAD_BYTES)?;
    let (body, check) = head.split_at_checked(crate::digest::KEY_BYTES)?;
    let key = DigestKey(body.try_into().ok()?);
    (check_word(body) == check).then_some((key, records))
}

/// The key and all sound records of a file; none if there is no file. Under a lost key no digest
/// can be compared, so its records are lost too.
fn read(path: &Path) -> std::io::Result<(Option<DigestKey>, Vec<Record>)> {
    let mut bytes = Vec::new();
    match OpenOptions::new().read(true).custom_flags(nofollow()).open(path) {
        Ok(file) => {
            // Twice the bound: more than that is not a file of ours.
            let limit = (2 * RECORDS_MAX * RECORD_BYTES) as u64;
            file.take(limit).read_to_end(&mut bytes)?;
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let Some((key, records)) = decode_head(&bytes) else { return Ok((None, Vec::new())) };
    let (records, _torn_tail) = records.as_chunks::<RECORD_BYTES>();
    Ok((Some(key), standing(records.iter().filter_map(decode).collect())))
}

/// Those that were not taken back later, in order. A key that was recorded anew counts from then
/// on.
fn standing(records: Vec<Record>) -> Vec<Record> {
    let taken_back: HashMap<ChunkKey, usize> = records
        .iter()
        .enumerate()
        .filter(|(_, (_, digest))| *digest == FORGOTTEN)
        .map(|(at, (key, _))| (*key, at))
        .collect();
    let stands = |(at, (key, digest)): &(usize, Record)| {
        *digest != FORGOTTEN && taken_back.get(key).is_none_or(|gone| gone < at)
    };
    records.into_iter().enumerate().filter(stands).map(|(_, record)| record).collect()
}

/// Writes the sound records anew, so that a torn tail cannot shift those appended after it.
fn rewrite(dir: &Path, path: &Path, key: DigestKey, records: &[Record]) -> std::io::Result<()> {
    let temporary: PathBuf = dir.join(format!("{FILE_NAME}.new"));
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .custom_flags(nofollow())
        .open(&temporary)?;
    let records = records.iter().flat_map(|(key, digest)| encode(*key, *digest));
    let bytes: Vec<u8> = encode_head(key).into_iter().chain(records).collect();
    file.write_all(&bytes)?;
    file.sync_all()?;
    std::fs::rename(&temporary, path)
}

/// Never through a link that someone put there.
fn nofollow() -> i32 {
    rustix::fs::OFlags::NOFOLLOW.bits().cast_signed()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(n: u8) -> ChunkKey {
        ChunkKey([n; 32])
    }

    #[test]
    fn a_digest_is_enforced_across_restarts() {
        let dir = tempfile::tempdir().unwrap();
        let records = Records::open(dir.path()).unwrap();
        assert_eq!(records.check(key(1), [1; 32]), Verdict::First);
        assert_eq!(records.check(key(1), [1; 32]), Verdict::Same);
        let digest_key = records.key();
        drop(records);
        let records = Records::open(dir.path()).unwrap();
        assert_eq!(records.key(), digest_key);
        assert_eq!(records.check(key(1), [2; 32]), Verdict::Different);
        assert_eq!(records.check(key(1), [1; 32]), Verdict::Same);
    }

    #[test]
    fn torn_and_flipped_records_are_skipped() {
        let dir = tempfile::tempdir().unwrap();
        let records = Records::open(dir.path()).unwrap();
        for n in 0..3 {
            records.check(key(n), [n + 1; 32]);
        }
        drop(records);
        let path = dir.path().join(FILE_NAME);
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[HEAD_BYTES + RECORD_BYTES + 5] ^= 1;
        bytes.truncate(HEAD_BYTES + 3 * RECORD_BYTES - 1);
        std::fs::write(&path, bytes).unwrap();
        let records = Records::open(dir.path()).unwrap();
        assert_eq!(records.check(key(0), [1; 32]), Verdict::Same);
        assert_eq!(records.check(key(1), [9; 32]), Verdict::First);
        assert_eq!(records.check(key(2), [9; 32]), Verdict::First);
        drop(records);
        let records = Records::open(dir.path()).unwrap();
        assert_eq!(records.check(key(2), [9; 32]), Verdict::Same, "appended after the repair");
    }

    #[test]
    fn what_is_forgotten_is_forgotten_after_a_restart_too() {
        let dir = tempfile::tempdir().unwrap();
        let records = Records::open(dir.path()).unwrap();
        for n in 0..3 {
            records.check(key(n), [n + 1; 32]);
        }
        records.forget(&[key(0), key(1), key(9)]);
        assert_eq!(records.check(key(1), [9; 32]), Verdict::First, "recorded anew");
        drop(records);
        let records = Records::open(dir.path()).unwrap();
        assert_eq!(records.known(&key(0)), None);
        assert_eq!(records.known(&key(1)), Some([9; 32]));
        assert_eq!(records.known(&key(2)), Some([3; 32]));
    }

    #[test]
    fn a_proof_is_of_one_object_and_one_digest_and_stands_with_its_chunks() {
        let dir = tempfile::tempdir().unwrap();
        let records = Records::open(dir.path()).unwrap();
        let (by, keys) = (ObjectDigest::Crc64Nvme(7), [key(1), key(2)]);
        let digests = [[11; 32], [12; 32]];
        for (key, digest) in keys.into_iter().zip(digests) {
            records.check(key, digest);
        }
        records.prove(&[1; 32], by, keys.into_iter().zip(digests));
        drop(records);
        let records = Records::open(dir.path()).unwrap();
        let stands = |identity: u8, by| records.stands(&[identity; 32], by, keys);
        assert!(stands(1, by));
        assert!(!stands(2, by));
        assert!(!stands(1, ObjectDigest::Crc64Nvme(8)));
        assert!(!stands(1, ObjectDigest::Crc32c(7)));
        assert!(!records.stands(&[1; 32], by, [key(1)]));
        // A chunk that is forgotten, and recorded anew with another digest, is not what was proven.
        records.forget(&[key(2)]);
        assert!(!records.stands(&[1; 32], by, keys));
        records.check(key(2), [13; 32]);
        assert!(!records.stands(&[1; 32], by, keys));
        // What was proven is what was seen, whatever is recorded meanwhile.
        records.prove(&[1; 32], by, keys.into_iter().zip(digests));
        assert!(!records.stands(&[1; 32], by, keys));
        records.prove(&[1; 32], by, [(key(1), [11; 32]), (key(2), [13; 32])]);
        assert!(records.stands(&[1; 32], by, keys));
    }

    #[test]
    fn what_a_store_says_is_remembered_and_that_it_says_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let records = Records::open(dir.path()).unwrap();
        let said = [
            Some(ObjectDigest::Crc64Nvme(0)),
            Some(ObjectDigest::Crc32c(u32::MAX)),
            Some(ObjectDigest::Sha256([9; 32])),
            Some(ObjectDigest::Md5([0; 16])),
            None,
        ];
        for (n, digest) in (0..).zip(said) {
            records.remember(&[n; 32], digest);
        }
        drop(records);
        let records = Records::open(dir.path()).unwrap();
        for (n, digest) in (0..).zip(said) {
            assert_eq!(KnownDigests::known(&records, &[n; 32]), Some(digest));
        }
        assert_eq!(KnownDigests::known(&records, &[77; 32]), None);
        records.forget_said(&[2; 32]);
        assert_eq!(KnownDigests::known(&records, &[2; 32]), None);
    }

    #[test]
    fn a_lost_key_loses_the_records() {
        let dir = tempfile::tempdir().unwrap();
        let records = Records::open(dir.path()).unwrap();
        records.check(key(0), [1; 32]);
        let lost = records.key();
        drop(records);
        let path = dir.path().join(FILE_NAME);
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[3] ^= 1;
        std::fs::write(&path, bytes).unwrap();
        let records = Records::open(dir.path()).unwrap();
        assert_ne!(records.key(), lost);
        assert_eq!(records.check(key(0), [9; 32]), Verdict::First);
    }

    #[test]
    fn a_link_in_the_place_of_the_file_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("elsewhere");
        std::fs::write(&target, b"x").unwrap();
        std::os::unix::fs::symlink(&target, dir.path().join(FILE_NAME)).unwrap();
        Records::open(dir.path()).unwrap_err();
    }
}
