//! `forebay-bench nvme`: what the NVMe tier promises, each promise measured against what it is
//! compared with, in one run. As in [`origin`](crate::origin), each row is a module.
//!
//! *What is fair on a disk that is not.* The disks of virtual machines are often held to a rate by
//! a bucket that refills while nobody reads, and other guests come and go: the same `fio` may
//! differ by half from one run to the next, and whoever reads first after a pause is faster. So
//! everyone who is compared reads the same bytes, of the same files, past the page cache; the same
//! time passes between the end of one and the beginning of the next (see [`Pace`]), whatever has to
//! be prepared in it; and the order changes with every round, so that everyone is first and last,
//! and follows everyone else, about equally often ([`order`]). Bounds are made of medians; `fio` is
//! its best shape by the median, which is a bit more than its due, since the best of several is a
//! matter of luck too.

mod extents;
mod fill;
pub(crate) mod fio;
mod hit;
mod rollback;
mod start;

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::ValueEnum;
use tempfile::TempDir;
use tokio::time::{Instant, sleep_until};

use crate::Outcome;
use crate::report::{self, Table};

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum NvmeRow {
    /// Loads from NVMe with io_uring, against fio on the same files
    Hit,
    /// The same with threads
    Threads,
    /// Starts over a terabyte of extents
    Start,
    /// Cold loads while the tier is filled, against cold loads without the tier
    Fill,
    /// Rollbacks of a name, and the loads by it after them
    Rollback,
}

/// How it is measured.
#[derive(Debug, Clone)]
pub struct NvmeOptions {
    /// What is measured; all of it, if empty.
    pub rows: Vec<NvmeRow>,
    /// Runs of each side.
    pub runs: usize,
    /// The checkpoint of the loads.
    pub bytes: u64,
    /// Extents of the start.
    pub extents: u32,
    /// On which disk; that of temporary files, if not said.
    pub dir: Option<PathBuf>,
}

impl NvmeOptions {
    fn asked(&self, row: NvmeRow) -> bool {
        self.rows.is_empty() || self.rows.contains(&row)
    }

    /// A directory on the disk that is measured.
    fn directory(&self) -> Outcome<TempDir> {
        let dir = self.dir.clone().unwrap_or_else(std::env::temp_dir);
        Ok(TempDir::with_prefix_in("forebay-", dir)?)
    }
}

/// Measures.
///
/// # Errors
/// If something fails; a bound that is missed is no error.
pub fn run(options: &NvmeOptions) -> Outcome<Table> {
    let mut rows = Vec::new();
    if options.asked(NvmeRow::Hit) || options.asked(NvmeRow::Threads) {
        rows.extend(hit::run(options)?);
    }
    if options.asked(NvmeRow::Start) {
        rows.push(start::run(options)?);
    }
    if options.asked(NvmeRow::Fill) {
        rows.extend(fill::run(options)?);
    }
    if options.asked(NvmeRow::Rollback) {
        rows.push(rollback::run(options)?);
    }
    let dir = options.dir.clone().unwrap_or_else(std::env::temp_dir);
    let ground = report::ground(options.runs, ("disk of", dir.display().to_string()))?;
    Ok(Table { bench: "nvme", ground, rows })
}

/// Lets the same time pass between the end of one who used the disk and the beginning of the next.
#[derive(Debug)]
pub(crate) struct Pace {
    pause: Duration,
    last: Instant,
}

impl Pace {
    pub(crate) fn new(pause: Duration) -> Self {
        Self { pause, last: Instant::now() }
    }

    /// Waits for the rest of the pause; how long it was in all. It is longer than it should be if
    /// what had to be prepared took longer.
    pub(crate) async fn wait(&self) -> Duration {
        sleep_until(self.last + self.pause).await;
        self.last.elapsed()
    }

    /// The disk was used until now.
    pub(crate) fn ended(&mut self) {
        self.last = Instant::now();
    }
}

/// The order of `count` contestants in a round: a Latin square over rounds, in which, for an even
/// count, each follows each other one once (E. J. Williams, 1949).
pub(crate) fn order(count: usize, round: usize) -> Vec<usize> {
    let zigzag = |place: usize| match place % 2 {
        0 => count - place / 2,
        _ => place.div_ceil(2),
    };
    (0..count).map(|place| (zigzag(place) + round) % count).collect()
}

/// Removes what is in a directory from the page cache, as far as it is there at all.
pub(crate) fn forget_pages(dir: &Path) -> Outcome<()> {
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        let kind = entry.file_type()?;
        if kind.is_dir() {
            forget_pages(&entry.path())?;
        } else if kind.is_file() {
            let file = std::fs::File::open(entry.path())?;
            rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everyone_has_every_place_and_follows_everyone_else_once() {
        for count in [2, 4, 6, 8] {
            let rounds: Vec<Vec<usize>> = (0..count).map(|round| order(count, round)).collect();
            for place in 0..count {
                let mut at: Vec<usize> = rounds.iter().map(|round| round[place]).collect();
                at.sort_unstable();
                assert!(at.into_iter().eq(0..count), "place {place} of {count}");
            }
            let pairs = rounds.iter().flat_map(|round| round.windows(2));
            let mut pairs: Vec<(usize, usize)> = pairs.map(|pair| (pair[0], pair[1])).collect();
            pairs.sort_unstable();
            pairs.dedup();
            assert_eq!(pairs.len(), count * (count - 1), "{count}");
        }
        let mut odd = order(5, 3);
        odd.sort_unstable();
        assert_eq!(odd, [0, 1, 2, 3, 4]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_pause_is_as_long_as_said_whatever_was_prepared_in_it() {
        let mut pace = Pace::new(Duration::from_secs(5));
        pace.ended();
        tokio::time::advance(Duration::from_secs(3)).await;
        assert_eq!(pace.wait().await, Duration::from_secs(5));
        pace.ended();
        tokio::time::advance(Duration::from_secs(7)).await;
        assert_eq!(pace.wait().await, Duration::from_secs(7));
    }
}
