//! Our own client, as a process that keeps the rules of [`child`](super::child).
//!
//! It connects when it is told to go: a user's process has that to do as well. It takes tensor
//! after tensor, reads one byte of every page of each, as the adapter of safetensors does, with as
//! many threads as there are CPUs, as torch has for that, and has
//! all of them in its memory at the end; or with `--stream` gives each back, as one does that
//! copies them to a device; or with `--unread` leaves the reading to others. Memory that it maps is
//! the daemon's and counts there: its own peak is what it had resident less what is shared.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

use crc_fast::{CrcAlgorithm, checksum};
use forebay_client::{Client, Endpoint, LoadRequest, Tensor};
use rustix::time::{ClockId, clock_gettime};
use serde_json::json;
use tokio::time::Instant;

use crate::Outcome;
use crate::process::status_bytes;

/// One byte of each of these is read.
const PAGE_BYTES: usize = 4096;
/// Tensors that were handed over and are not read yet.
const QUEUE_MAX: usize = 64;
/// A load that takes longer has failed.
const DEADLINE: Duration = Duration::from_secs(300);

/// What to load, from which daemon.
#[derive(Debug, Clone, clap::Args)]
pub struct LoaderArgs {
    /// The daemon's socket
    socket: PathBuf,
    /// What to load
    uri: String,
    /// Give each tensor back at once
    #[arg(long)]
    stream: bool,
    /// Do not read what is handed over
    #[arg(long)]
    unread: bool,
    /// With the CRC-32 of every tensor
    #[arg(long)]
    verify: bool,
}

/// Loads once, when told to, and says what it came to.
///
/// # Errors
/// If the load fails; it is said as well.
pub fn serve(args: &LoaderArgs) -> Outcome<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    say(&json!({ "ready": true }))?;
    if io::stdin().read_line(&mut String::new())? == 0 {
        return Ok(());
    }
    let loaded = runtime.block_on(load(args));
    match &loaded {
        Ok(told) => say(told)?,
        Err(error) => say(&json!({ "error": error.to_string() }))?,
    }
    loaded.map(|_| ())
}

fn say(value: &serde_json::Value) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{value}")?;
    out.flush()
}

async fn load(args: &LoaderArgs) -> Outcome<serde_json::Value> {
    let (called, cpu) = (Instant::now(), cpu_seconds());
    let readers = Readers::start(args)?;
    let client = Client::connect(Endpoint::unix(&args.socket)?).await?;
    let mut load = client.load(LoadRequest::new(&args.uri).deadline(DEADLINE)).await?;
    let mut first = None;
    while let Some(tensor) = load.next_tensor().await? {
        first.get_or_insert_with(|| called.elapsed());
        readers.work.send(tensor)?;
    }
    let kept = readers.end()?;
    // The report comes when all is given back, which no peer does: it keeps what it has loaded.
    let (wall, cpu) = (called.elapsed(), cpu_seconds() - cpu);
    let own = std::process::id();
    let peak = status_bytes(own, "VmHWM:")?.saturating_sub(status_bytes(own, "RssShmem:")?);
    let sums: BTreeMap<String, u64> =
        kept.iter().flat_map(|kept| kept.sums.iter().cloned()).collect();
    drop(kept);
    let report = load.finish().await?;
    Ok(json!({
        "wall": wall.as_secs_f64(),
        "cpu": cpu,
        "first": first.ok_or("there is no tensor in it")?.as_secs_f64(),
        "bytes": report.bytes,
        "peak_bytes": peak,
        "disk_bytes": 0,
        "ram_bytes": report.bytes_by_tier.ram,
        "crc32": sums,
    }))
}

/// Threads that read what is handed over.
struct Readers {
    work: SyncSender<Tensor>,
    threads: Vec<JoinHandle<Kept>>,
}

/// What a thread has at the end.
#[derive(Default)]
struct Kept {
    tensors: Vec<Tensor>,
    sums: Vec<(String, u64)>,
}

impl Readers {
    /// As many as there are CPUs, as torch has.
    fn start(args: &LoaderArgs) -> io::Result<Self> {
        let (work, queue) = sync_channel(QUEUE_MAX);
        let queue = Arc::new(Mutex::new(queue));
        let reader = |number| {
            let (args, queue) = (args.clone(), Arc::clone(&queue));
            let thread = Builder::new().name(format!("reader-{number}"));
            thread.spawn(move || read(&args, &queue))
        };
        let count = std::thread::available_parallelism()?.get();
        Ok(Self { work, threads: (0..count).map(reader).collect::<io::Result<_>>()? })
    }

    /// Waits until all is read.
    fn end(self) -> Outcome<Vec<Kept>> {
        drop(self.work);
        let ended = self.threads.into_iter().map(JoinHandle::join);
        ended.map(|kept| kept.map_err(|_| "a reader panicked".into())).collect()
    }
}

fn read(args: &LoaderArgs, queue: &Mutex<Receiver<Tensor>>) -> Kept {
    let mut kept = Kept::default();
    loop {
        let next = queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(tensor) = next else { return kept };
        if !args.unread {
            std::hint::black_box(touch(tensor.bytes()));
        }
        if args.verify {
            kept.sums.push(sum(&tensor));
        }
        if !args.stream {
            kept.tensors.push(tensor);
        }
    }
}

fn touch(bytes: &[u8]) -> u64 {
    bytes.iter().step_by(PAGE_BYTES).map(|byte| u64::from(*byte)).sum()
}

fn sum(tensor: &Tensor) -> (String, u64) {
    (tensor.name().to_owned(), checksum(CrcAlgorithm::Crc32IsoHdlc, tensor.bytes()))
}

/// What this process has used so far.
#[expect(clippy::cast_precision_loss, reason = "seconds, to a microsecond")]
fn cpu_seconds() -> f64 {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}
