//! The start: from what the index remembers and what lies in the folders to what is stored.
//!
//! The index is read first, and believed as far as it goes: reading it takes a fraction of a second
//! for a terabyte of extents, and every extent is checked anyway before it is served. Then the
//! names in the folders are compared with it. An extent that the index does not know (its second
//! was not written when the daemon was killed, or the index was lost) says itself what it is: its
//! header is read. One that the index knows and that is not there is forgotten.
//!
//! All of that runs on threads, while the daemon serves: until it is done, a chunk that is not
//! known is looked for under its name, and nothing is written.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, mpsc};
use std::time::Duration;

use forebay_io::{AlignedBuf, DataFile, FileError};

use super::catalog::Stored;
use super::extent::{BadExtent, ExtentHeader, HEADER_BYTES, file_bytes};
use super::index::{Index, Rows};
use super::store::Store;
use super::{NvmeTier, lock};
use crate::plan::ChunkKey;
use crate::resolve::Revision;

/// Chunks that are taken in while loads wait for the catalog.
const AT_ONCE: usize = 256;

/// What was found.
#[derive(Debug, Default)]
struct Found {
    remembered: usize,
    adopted: usize,
    missing: usize,
    bad: usize,
}

/// Starts the threads.
pub(super) fn start(tier: &Arc<NvmeTier>) -> io::Result<()> {
    let (sender, rows) = mpsc::channel();
    // Received by the thread below, which lives until it has them.
    let on_rows = move |rows: Rows| drop(sender.send(rows));
    let root = tier.disk.store().root().try_clone().map_err(io::Error::other)?;
    let index = Index::start(root, on_rows)?;
    *lock(&tier.index) = Some(index);
    let tier = Arc::downgrade(tier);
    std::thread::Builder::new().name("forebay-recover".into()).spawn(move || {
        let rows = rows.recv().unwrap_or_default();
        if let Some(tier) = tier.upgrade() {
            let _over = Over(&tier);
            recover(&tier, rows);
        }
    })?;
    Ok(())
}

/// The end of the recovery, also by a panic: nobody is to wait for it any more.
struct Over<'a>(&'a NvmeTier);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        let took = self.0.opened.elapsed().max(Duration::from_nanos(1));
        self.0.recovery.send_replace(Some(took));
    }
}

fn recover(tier: &NvmeTier, rows: Rows) {
    let Rows { chunks, mut revisions, damaged, lost } = rows;
    if lost || damaged > 0 {
        lock(&tier.trouble).push(
            "nvme: the index was damaged: what it knew of pins and names may be lost; pin again \
             what is to stay"
                .into(),
        );
    }
    let mut found = Found::default();
    tier.catalog().take_in_revisions(&mut revisions);
    for some in chunks.chunks(AT_ONCE) {
        found.remembered += tier.catalog().take_in(some);
    }
    {
        let mut catalog = tier.catalog();
        catalog.revisions_known(&revisions);
        // Of those whose last chunk was evicted, a row may be left; and a load that began before
        // they were known may have had its own remembered, without their pins.
        tier.remember(&catalog, [], revisions.iter().map(|(revision, _)| *revision));
    }
    let mut by_shard: HashMap<u8, Vec<Stored>> = HashMap::new();
    for stored in tier.catalog().chunks() {
        by_shard.entry(stored.key.0[0]).or_default().push(stored);
    }
    for shard in 0..=u8::MAX {
        if tier.stop.is_cancelled() {
            return;
        }
        let known = by_shard.remove(&shard).unwrap_or_default();
        if let Err(error) = compare(tier, shard, &known, &mut found) {
            tracing::warn!(%error, shard, "a folder of the NVMe tier cannot be read");
        }
    }
    tier.set_budget();
    let took = tier.opened.elapsed();
    let Found { remembered, adopted, missing, bad } = found;
    tracing::info!(?took, remembered, adopted, missing, bad, damaged, "the NVMe tier is known");
    tier.meters.recovered(took, remembered + adopted);
}

/// Compares one folder with what is known of it.
fn compare(
    tier: &NvmeTier,
    shard: u8,
    known: &[Stored],
    found: &mut Found,
) -> Result<(), FileError> {
    let store = tier.disk.store();
    let mut known: HashMap<ChunkKey, u64> =
        known.iter().map(|stored| (stored.key, stored.generation)).collect();
    for key in store.keys(shard)? {
        if known.remove(&key).is_some() {
            continue;
        }
        match adopt(tier, store, &key) {
            Ok(true) => found.adopted += 1,
            Ok(false) => {}
            Err(Unfit::Unreadable(error)) => tracing::warn!(?key, error, "an extent is left alone"),
            Err(Unfit::Bad(error)) => {
                found.bad += 1;
                tracing::warn!(?key, error, "a bad extent of the NVMe tier is put aside");
                match store.quarantine(&key, tier.next_generation()) {
                    Ok(true) => tier.count_bad("recovery"),
                    // A load has come before.
                    Ok(false) => {}
                    // Others in this folder may be sound.
                    Err(error) => tracing::warn!(%error, ?key, "a bad extent cannot be put aside"),
                }
            }
        }
    }
    for (key, generation) in known {
        let mut catalog = tier.catalog();
        // Unless it was given up meanwhile.
        if let Some(stored) = catalog.forget(&key, generation) {
            catalog.left(&stored);
            tier.remember(&catalog, [key], [stored.revision]);
            found.missing += 1;
        }
    }
    Ok(())
}

/// Why an extent is not taken in.
enum Unfit {
    /// It is none.
    Bad(String),
    /// Who knows.
    Unreadable(String),
}

impl From<BadExtent> for Unfit {
    fn from(bad: BadExtent) -> Self {
        Self::Bad(bad.to_string())
    }
}

impl From<FileError> for Unfit {
    fn from(error: FileError) -> Self {
        match error {
            FileError::Foreign { .. } => Self::Bad(error.to_string()),
            _ => Self::Unreadable(error.to_string()),
        }
    }
}

/// Takes in an extent on its own word; false if that is not needed.
fn adopt(tier: &NvmeTier, store: &Store, key: &ChunkKey) -> Result<bool, Unfit> {
    if tier.catalog().peek(key).is_some() {
        return Ok(false);
    }
    let Some(file) = store.read(key)? else { return Ok(false) };
    let header = read_header(&file).map_err(|error| Unfit::Unreadable(error.to_string()))??;
    header.expect(key, None)?;
    let wanted = file_bytes(header.payload_bytes());
    let bytes = file.bytes()?;
    if bytes < wanted {
        return Err(Unfit::Bad(format!("the file has {bytes} of {wanted} bytes")));
    }
    let identity = header.identity();
    let stored = Stored {
        key: *key,
        revision: Revision(identity.revision),
        generation: identity.generation,
        payload_bytes: u32::try_from(header.payload_bytes()).unwrap_or(u32::MAX),
        content_bytes: header.content_bytes(),
    };
    let adopted = {
        let mut catalog = tier.catalog();
        let adopted = catalog.adopt(stored);
        catalog.refer(key, stored.revision);
        tier.remember(&catalog, [*key], []);
        adopted
    };
    // A load that found it to be bad may have put it aside meanwhile.
    if adopted && store.read(key)?.is_none() {
        let forgotten = tier.forget_old(key);
        tier.all_left(forgotten.as_slice());
        return Ok(false);
    }
    Ok(adopted)
}

fn read_header(file: &DataFile) -> io::Result<Result<ExtentHeader, BadExtent>> {
    let mut block = AlignedBuf::zeroed(HEADER_BYTES, HEADER_BYTES).map_err(io::Error::other)?;
    let bytes = rustix::io::retry_on_intr(|| rustix::io::pread(file, &mut block[..], 0))?;
    let header = block.first_chunk().filter(|_| bytes == HEADER_BYTES);
    Ok(header.ok_or(BadExtent::Header).and_then(ExtentHeader::decode))
}
