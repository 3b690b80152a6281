//! Reading again what is stored, to see whether it is still right: when somebody asks (`verify`),
//! and all the time, slowly (the scrub).
//!
//! The scrub reads every extent about once a day, at its rate and no faster, and not while somebody
//! waits for a load, unless that is always so. A bad extent that it finds is put aside before a
//! load would have found it.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use forebay_io::{AlignedBuf, FileError, FileOffset};
use futures::StreamExt;
use tokio::time::Instant;

use super::NvmeTier;
use super::breaker::DiskState;
use super::catalog::Stored;
use super::disk::DiskError;
use super::extent::{BadExtent, ExtentHeader, HEADER_BYTES, file_bytes};
use crate::resolve::Revision;

/// Extents that are read side by side when somebody waits.
const AT_ONCE: usize = 4;

/// From the start of one round of the scrub to that of the next, at least.
const ROUND: Duration = Duration::from_secs(24 * 3600);

/// How long the scrub gives way to loads, at a time and at most.
const GIVE_WAY: Duration = Duration::from_secs(1);
const GIVE_WAY_MAX: u32 = 30;

/// What a check found, in bytes of objects.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Checked {
    /// Right.
    pub(crate) right: u64,
    /// Wrong, and given up.
    pub(crate) bad: u64,
    /// Gone meanwhile, or not to be had from the disk.
    pub(crate) unreadable: u64,
}

/// What one extent is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum One {
    Right,
    Bad(BadExtent),
    Unreadable,
    /// Given up or stored anew since it was looked up.
    Another,
}

impl NvmeTier {
    /// Reads what is stored at or under a URI again; `on_step` hears of the bytes so far. What is
    /// bad is put aside.
    pub(crate) async fn check(
        self: &Arc<Self>,
        under: impl Fn(&str) -> bool,
        on_step: impl Fn(u64),
    ) -> Checked {
        self.check_all(self.stored_under(under), on_step).await
    }

    /// The same of one revision.
    pub(crate) async fn check_revision(
        self: &Arc<Self>,
        revision: Revision,
        on_step: impl Fn(u64),
    ) -> Checked {
        let stored = self.catalog().chunks_of(&revision);
        self.check_all(stored, on_step).await
    }

    async fn check_all(self: &Arc<Self>, stored: Vec<Stored>, on_step: impl Fn(u64)) -> Checked {
        let mut checked = Checked::default();
        let mut checked_bytes = 0;
        let checks = stored.into_iter().map(|stored| async move {
            (stored.content_bytes, self.check_one(stored, &mut None).await)
        });
        let mut checks = futures::stream::iter(checks).buffer_unordered(AT_ONCE);
        while let Some((bytes, one)) = checks.next().await {
            match one {
                One::Right => checked.right += bytes,
                One::Bad(_) => checked.bad += bytes,
                One::Unreadable => checked.unreadable += bytes,
                One::Another => {}
            }
            checked_bytes += bytes;
            on_step(checked_bytes);
        }
        checked
    }

    /// Bytes of objects that are stored at or under a URI.
    pub(crate) fn stored_bytes(&self, under: impl Fn(&str) -> bool) -> u64 {
        self.stored_under(under).iter().map(|stored| stored.content_bytes).sum()
    }

    /// Each chunk once, whoever refers to it.
    fn stored_under(&self, under: impl Fn(&str) -> bool) -> Vec<Stored> {
        let catalog = self.catalog();
        let listed = catalog.list(under, 0);
        let mut stored: Vec<Stored> =
            listed.iter().flat_map(|listed| catalog.chunks_of(&listed.revision)).collect();
        stored.sort_by_key(|stored| stored.key);
        stored.dedup_by_key(|stored| stored.key);
        stored
    }

    /// Never ends.
    pub(super) async fn scrub(self: &Arc<Self>) {
        let rate = self.settings.scrub_bytes_per_second;
        let mut recovered = self.recovery.subscribe();
        if rate == 0 || recovered.wait_for(Option::is_some).await.is_err() {
            return std::future::pending().await;
        }
        let mut buffer = None;
        loop {
            let begun = Instant::now();
            let mut chunks = self.catalog().chunks();
            chunks.sort_by_key(|stored| stored.key);
            let mut bad = 0_usize;
            for stored in &chunks {
                let bytes = file_bytes(stored.payload_bytes as usize);
                tokio::time::sleep(pace(bytes, rate)).await;
                self.give_way().await;
                let one = self.check_one(*stored, &mut buffer).await;
                bad += usize::from(matches!(one, One::Bad(_)));
                self.meters.scrubbed(u64::from(one == One::Right) * bytes);
            }
            tracing::info!(extents = chunks.len(), bad, "the NVMe tier was read through");
            tokio::time::sleep_until(begun + ROUND).await;
        }
    }

    async fn give_way(&self) {
        for _ in 0..GIVE_WAY_MAX {
            let awaited = self.awaited.load(Ordering::Relaxed) > 0;
            if !awaited && self.disk.state() == DiskState::Normal {
                return;
            }
            tokio::time::sleep(GIVE_WAY).await;
        }
    }

    /// Reads one extent as a whole. The buffer is kept for the next one.
    async fn check_one(self: &Arc<Self>, stored: Stored, buffer: &mut Option<AlignedBuf>) -> One {
        let is_another = || {
            let now = self.catalog().peek(&stored.key);
            now.is_none_or(|now| now.generation != stored.generation)
        };
        if is_another() {
            return One::Another;
        }
        let Some(_leave) = self.disk.may_read() else { return One::Unreadable };
        let one = match self.read_whole(&stored, buffer.take()).await {
            Ok((read, bytes)) => {
                let generation = self.required(Some(stored.generation));
                let checking = self.background.run(move || {
                    let whole = judge(&stored, generation, &read[..bytes]);
                    (whole, read)
                });
                match checking.await {
                    Ok((whole, read)) => {
                        *buffer = Some(read);
                        whole.map_or_else(One::Bad, |()| One::Right)
                    }
                    Err(_stopped) => One::Unreadable,
                }
            }
            Err(DiskError::File(FileError::Foreign { .. })) => One::Bad(BadExtent::Foreign),
            Err(DiskError::File(FileError::NotFound(_))) => {
                self.is_gone(&stored.key, Some(stored.generation));
                One::Unreadable
            }
            Err(error) => {
                tracing::debug!(%error, "an extent cannot be checked");
                One::Unreadable
            }
        };
        if is_another() {
            return if one == One::Unreadable { one } else { One::Another };
        }
        if let One::Bad(why) = one {
            self.quarantine(stored.key, Some(stored.generation), why).await;
        }
        one
    }

    async fn read_whole(
        &self,
        stored: &Stored,
        buffer: Option<AlignedBuf>,
    ) -> Result<(AlignedBuf, usize), DiskError> {
        let key = stored.key;
        let file = self.disk.call(move |store| store.read(&key)).await?;
        let file = file.ok_or_else(|| FileError::NotFound("extent".into()))?;
        let whole = usize::try_from(file_bytes(stored.payload_bytes as usize)).unwrap_or(0);
        let buffer = match buffer.filter(|buffer| buffer.len() >= whole) {
            Some(buffer) => buffer,
            None => AlignedBuf::zeroed(whole, HEADER_BYTES)?,
        };
        let read = self.disk.read(&file, FileOffset(0), buffer, 0..whole).await;
        let done = read.map_err(|failed| DiskError::from(failed.error))?;
        Ok((done.target, done.bytes))
    }
}

/// How long so many bytes take.
fn pace(bytes: u64, per_second: u64) -> Duration {
    let nanos = u128::from(bytes) * 1_000_000_000 / u128::from(per_second.max(1));
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}

/// Whether a file is the extent that it should be, and whole.
fn judge(stored: &Stored, generation: Option<u64>, file: &[u8]) -> Result<(), BadExtent> {
    let (header, payload) = file.split_first_chunk::<HEADER_BYTES>().ok_or(BadExtent::Header)?;
    let header = ExtentHeader::decode(header)?;
    header.expect(&stored.key, generation)?;
    header.check_all(payload)
}
