//! Where everybody meets: one checkpoint on a disk, a server of it, and a machine made ready.
//!
//! ```text
//! DIR/www/models/llama/*   the checkpoint, written and synced once
//! DIR/www/models/llama.tensors   the same in tensorizer's format
//! DIR/www.nginx/           the server's files
//! DIR/adapters/            the adapters
//! ```
//!
//! *Memory.* Hypervisors take freed memory back within seconds, and charge its return to whoever
//! touches it next: one that allocates 2 GiB for a load may look half as fast as it is. So some GiB
//! are held while a child gets ready, and freed right before it loads; by the same rule for all.
//!
//! *Page cache.* The server's files are in it, always. Local files are removed from it for cold
//! loads, and what a disk had to bring says whether that worked.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Command;

use crc_fast::{CrcAlgorithm, Digest};
use forebay_testkit::{Checkpoint, Content, write_checkpoint};
use tempfile::TempDir;

use super::PeersOptions;
use super::adapter::{Adapters, BUCKET, PREFIX};
use super::child::{Loader, Told};
use super::server::Server;
use crate::Outcome;
use crate::node::Node;
use crate::nvme::forget_pages;
use crate::origin::{child, progress};

/// Of the bytes of a cold load, what a disk had to bring, at least.
const COLD_MIN: f64 = 0.9;

/// The checkpoint, its server, and the adapters.
#[derive(Debug)]
pub(super) struct Site {
    // Ends before its directory goes.
    pub(super) server: Server,
    pub(super) adapters: Adapters,
    pub(super) made: Checkpoint,
    sums: [BTreeMap<String, u32>; 2],
    /// What a reader of any row has to know.
    pub(super) notes: Vec<String>,
    dir: TempDir,
}

/// What the local files are when a load begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pages {
    /// In the page cache.
    Warm,
    /// Not there.
    Cold,
}

impl Site {
    /// Writes the checkpoint, and starts the server.
    pub(super) async fn make(options: &PeersOptions) -> Outcome<Self> {
        let dir = options.dir.clone().unwrap_or_else(std::env::temp_dir);
        let dir = TempDir::with_prefix_in("forebay-", std::path::absolute(dir)?)?;
        let bytes = options.bytes();
        let adapters = Adapters::install(options.python(), &dir.path().join("adapters"))?;
        adapters.know(&options.peer)?;
        let made = child::made(bytes);
        let files = files_in(dir.path());
        progress(format_args!("peers: writing {} MiB to {}", bytes >> 20, files.display()));
        write_checkpoint(&files, &made)?;
        let sums = sums(&made);
        let mut notes = Vec::new();
        if options.compares("tensorizer")
            && let Err(reason) = adapters.convert(&files)?
        {
            notes.push(format!("the checkpoint was not converted for tensorizer: {reason}"));
        }
        sync(&dir.path().join("www"))?;
        let (server, note) = Server::start(&dir.path().join("www"), &made).await?;
        notes.extend(note);
        Ok(Self { server, adapters, made, sums, notes, dir })
    }

    /// Where the local files are.
    pub(super) fn files(&self) -> PathBuf {
        files_in(self.dir.path())
    }

    /// Under which the server has them, without a slash in front.
    pub(super) fn path(&self) -> String {
        format!("{BUCKET}/{PREFIX}")
    }

    /// Their URI.
    pub(super) fn file_uri(&self) -> String {
        format!("file://{}/", self.files().display())
    }

    /// Has a child load once; an error of the inner kind is the child's. `ready` is what remains to
    /// be done when it is ready, such as to empty a cache.
    pub(super) async fn load(
        &self,
        command: Command,
        pages: Pages,
        timed: bool,
        ready: impl AsyncFnOnce() -> Outcome<()>,
    ) -> Outcome<Result<Told, String>> {
        let mut loader = match Loader::start(command)? {
            Ok(loader) => loader,
            Err(reason) => return Ok(Err(reason)),
        };
        let held = if timed { self.hold()? } else { Vec::new() };
        if let Err(reason) = loader.ready()? {
            return Ok(Err(reason));
        }
        self.set(pages)?;
        ready().await?;
        drop(held);
        loader.go();
        loader.told()
    }

    /// Memory that was touched: dropped, its pages go back to the kernel, for who loads next.
    pub(super) fn hold(&self) -> Outcome<Vec<u8>> {
        let text = std::fs::read_to_string("/proc/meminfo")?;
        let available = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
        let kib = available.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok());
        let available = kib.ok_or("the kernel does not say how much memory is available")? << 10;
        Ok(vec![1; usize::try_from(held_bytes(self.made.bytes(), available))?])
    }

    /// Puts the local files into the page cache, or removes them from it.
    pub(super) fn set(&self, pages: Pages) -> Outcome<()> {
        let www = self.dir.path().join("www");
        match pages {
            Pages::Warm => read_all(&www),
            Pages::Cold => forget_pages(&www),
        }
    }

    /// Has a peer load; with `verify` its bytes are compared.
    pub(super) async fn peer(
        &self,
        command: Command,
        pages: Pages,
        verify: bool,
    ) -> Outcome<Result<Told, String>> {
        let told = self.load(command, pages, !verify, async || Ok(())).await?;
        Ok(told.and_then(|told| self.check(told, pages, verify)))
    }

    /// Whether it was what it should be.
    fn check(&self, told: Told, pages: Pages, verify: bool) -> Result<Told, String> {
        if verify {
            told.prove(&self.sums)?;
        }
        if pages == Pages::Cold && part(told.disk_bytes, told.bytes) < COLD_MIN {
            let (disk, bytes) = (told.disk_bytes, told.bytes);
            return Err(format!("the page cache was not cold: a disk brought {disk} of {bytes}"));
        }
        Ok(told)
    }

    /// Has our own client load from a daemon, whose CPU time, memory and reads count as well. What
    /// is wrong with it is an error.
    pub(super) async fn ours(&self, node: &Node, load: Load<'_>) -> Outcome<Told> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("peer-client").arg(node.socket()).arg(load.uri);
        command.args(load.reader.flags());
        if load.verify {
            command.arg("--verify");
        }
        let mut before = Spent::default();
        let ready = async || {
            if load.evict {
                node.forget(load.uri).await?;
            }
            before = Spent::of(node.pid())?;
            Ok(())
        };
        let mut told = self.load(command, load.pages, !load.verify, ready).await??;
        let after = Spent::of(node.pid())?;
        told.cpu_seconds += after.cpu_seconds - before.cpu_seconds;
        told.disk_bytes += after.disk_bytes - before.disk_bytes;
        told.peak_bytes += node.peak_resident_bytes()?;
        if load.evict && told.ram_bytes > 0 {
            return Err(format!("{} bytes came from RAM: not a cold load", told.ram_bytes).into());
        }
        Ok(self.check(told, load.pages, load.verify)?)
    }

    /// A client process of ours, which keeps what it loads, for a load that others run beside.
    pub(super) fn beside(&self, node: &Node, uri: &str) -> Outcome<Loader> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("peer-client").arg(node.socket()).arg(uri).args(Reader::Keeps.flags());
        Ok(Loader::start(command)??)
    }
}

/// A load through a daemon.
#[derive(Debug, Clone, Copy)]
pub(super) struct Load<'a> {
    /// Of what.
    pub(super) uri: &'a str,
    /// The local files.
    pub(super) pages: Pages,
    /// Whether nothing may be in the daemon's RAM.
    pub(super) evict: bool,
    /// What the client does with tensors.
    pub(super) reader: Reader,
    /// Whether its bytes are compared.
    pub(super) verify: bool,
}

/// What a client of ours does with tensors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reader {
    /// Reads and keeps them.
    Keeps,
    /// Reads them and gives them back.
    Streams,
    /// Gives them back unread.
    Drops,
}

impl Reader {
    fn flags(self) -> &'static [&'static str] {
        match self {
            Self::Keeps => &[],
            Self::Streams => &["--stream"],
            Self::Drops => &["--stream", "--unread"],
        }
    }
}

/// What a process has used.
#[derive(Debug, Clone, Copy, Default)]
struct Spent {
    cpu_seconds: f64,
    disk_bytes: u64,
}

impl Spent {
    fn of(pid: u32) -> Outcome<Self> {
        let io = std::fs::read_to_string(format!("/proc/{pid}/io"))?;
        let read = io.lines().find_map(|line| line.strip_prefix("read_bytes: "));
        let disk_bytes = read.ok_or("the kernel does not count reads")?.parse()?;
        Ok(Self { cpu_seconds: crate::cpu::cpu_time(pid)?.as_secs_f64(), disk_bytes })
    }
}

fn files_in(dir: &Path) -> PathBuf {
    dir.join("www").join(BUCKET).join(PREFIX.trim_end_matches('/'))
}

/// Pages that are not on the disk yet cannot be removed from the page cache.
fn sync(dir: &Path) -> Outcome<()> {
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        match path.is_dir() {
            true => sync(&path)?,
            false => File::open(path)?.sync_all()?,
        }
    }
    Ok(())
}

fn read_all(dir: &Path) -> Outcome<()> {
    let mut buffer = vec![0; 4 << 20];
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() {
            read_all(&path)?;
            continue;
        }
        let mut file = File::open(path)?;
        while file.read(&mut buffer)? > 0 {}
    }
    Ok(())
}

/// Two and a half checkpoints, or two fifths of what is available.
fn held_bytes(checkpoint: u64, available: u64) -> u64 {
    (checkpoint / 2 * 5).min(available / 5 * 2)
}

/// CRC-32 of every file with tensors, and of every tensor: peers load nothing else.
pub(super) fn sums(made: &Checkpoint) -> [BTreeMap<String, u32>; 2] {
    let files = made.files().iter().filter(|(name, _)| name.ends_with(".safetensors"));
    let files = files.map(|(name, content)| (name.clone(), sum(content)));
    let tensors = made.tensors().map(|tensor| (tensor.name.clone(), sum(&tensor.content)));
    std::thread::scope(|scope| {
        let files = scope.spawn(|| files.collect());
        let tensors = tensors.collect();
        // One that could not be told is one that no load will match.
        [files.join().unwrap_or_default(), tensors]
    })
}

fn sum(content: &Content) -> u32 {
    let mut digest = Digest::new(CrcAlgorithm::Crc32IsoHdlc);
    content.visit(0..content.len(), &mut |piece| digest.update(piece));
    u32::try_from(digest.finalize()).unwrap_or(u32::MAX)
}

#[expect(clippy::cast_precision_loss, reason = "a ratio")]
fn part(of: u64, all: u64) -> f64 {
    of as f64 / all as f64
}
