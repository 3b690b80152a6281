//! `forebay-bench peers`: loads beside what users would run instead, and beside what the machine
//! can do, on the same bytes, from the same server, in turns.
//!
//! ```text
//! cold.rs, disk.rs, again.rs   rows: who loads, in which order, what it is held to
//!    │  site.rs                checkpoint, server, and a machine made ready for a load
//!    │  ├ server.rs            nginx
//!    │  ├ adapter.rs           peers, by the Python adapters of bench/peers
//!    │  └ child.rs, client.rs  one load in a process of its own; ours
//!    └► sides.rs, limits.rs    medians, the fastest, the cheapest; memcpy
//! ```
//!
//! Every load is by a new process, whose start and imports do not count. Of ours CPU time and
//! memory are those of the daemon, a child of this process, and of its client together. Who is
//! compared loads in turns, in an order that changes with every round, so that a machine that is
//! slow for a while is slow for all; each once untimed before that, and then every byte is
//! compared. A peer that cannot load is noted, with its reason.

mod adapter;
#[cfg(test)]
mod adapter_tests;
mod again;
mod child;
mod client;
mod cold;
mod disk;
mod limits;
mod server;
mod sides;
mod site;

use std::path::PathBuf;

use clap::ValueEnum;

use crate::Outcome;
use crate::report::{self, Row, Table};

pub use client::{LoaderArgs, serve};

/// What the command says below its flags.
pub const HELP: &str = "\
Peers come from a virtual environment: python3 bench/peers/setup.py makes one. Those that cannot
run are noted with the reason. The server is nginx (apt-get install nginx-light); the row disk
needs fio. A full run takes about 15 minutes, 12 GiB of memory, and 5 GiB of room in --dir, whose
disk is measured.

Example: forebay-bench peers --only cold --only runai --runs 3";

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum PeersRow {
    /// Cold loads from S3, against every peer
    Cold,
    /// The same against runai-model-streamer at its best setting
    Runai,
    /// The same against raw ranged reads
    Raw,
    /// Peak memory with a pool of a quarter of the checkpoint, against the fastest peer's
    Memory,
    /// Cold loads from local files, against every peer and fio
    Disk,
    /// A second process, against mapped files in the page cache
    Warm,
    /// Eight processes at once, against one
    Eight,
}

/// How it is measured.
#[derive(Debug, Clone, clap::Args)]
pub struct PeersOptions {
    /// What to measure; may be repeated [default: everything]
    #[arg(long, value_name = "ROW")]
    only: Vec<PeersRow>,
    /// Compare with this peer; may be repeated [default: with every peer]
    #[arg(long, value_name = "NAME")]
    peer: Vec<String>,
    /// Runs of each side
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u8).range(1..))]
    runs: u8,
    /// Size of the checkpoint in MiB
    #[arg(long, default_value_t = 2048, value_parser = clap::value_parser!(u64).range(64..=16384))]
    mib: u64,
    /// The Python that has the peers [default: that of bench/peers/setup.py]
    #[arg(long, value_name = "PROGRAM")]
    python: Option<PathBuf>,
    /// Where the checkpoint is written [default: the directory of temporary files]
    #[arg(long)]
    dir: Option<PathBuf>,
}

impl PeersOptions {
    fn asked(&self, row: PeersRow) -> bool {
        self.only.is_empty() || self.only.contains(&row)
    }

    /// Whether a peer is one to compare with.
    fn compares(&self, peer: &str) -> bool {
        self.peer.is_empty() || self.peer.iter().any(|name| name == peer)
    }

    fn bytes(&self) -> u64 {
        self.mib << 20
    }

    /// The pool of the row that is about memory: a quarter of the checkpoint, in whole chunks.
    fn pool_bytes(&self) -> u64 {
        self.mib.div_ceil(32) << 23
    }

    /// That of the setup, in its default place.
    fn python(&self) -> PathBuf {
        let made = || {
            let home = std::env::home_dir().unwrap_or_default();
            home.join(".cache/forebay/peers/bin/python")
        };
        self.python.clone().unwrap_or_else(made)
    }
}

/// Measures.
///
/// # Errors
/// If something of ours fails; neither a peer that does nor a bound that is missed is an error.
pub fn run(options: &PeersOptions) -> Outcome<Table> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let rows = runtime.block_on(measure(options))?;
    let mut ground =
        report::ground(options.runs.into(), ("checkpoint", format!("{} MiB", options.mib)))?;
    let busy = std::fs::read_to_string("/proc/loadavg")?;
    ground.push(("load averages", busy.split(' ').take(2).collect::<Vec<_>>().join(" and ")));
    Ok(Table { bench: "peers", ground, rows })
}

async fn measure(options: &PeersOptions) -> Outcome<Vec<Row>> {
    let site = site::Site::make(options).await?;
    let mut rows = Vec::new();
    if cold::ROWS.into_iter().any(|row| options.asked(row)) {
        rows.extend(cold::run(options, &site).await?);
    }
    if options.asked(PeersRow::Disk) {
        rows.push(disk::run(options, &site).await?);
    }
    if options.asked(PeersRow::Warm) {
        rows.push(again::warm(options, &site).await?);
    }
    if options.asked(PeersRow::Eight) {
        rows.push(again::eight(options, &site).await?);
    }
    for row in &mut rows {
        row.notes.extend(site.notes.iter().cloned());
    }
    Ok(rows)
}
