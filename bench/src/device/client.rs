//! A client in a process of its own.
//!
//! The parent starts itself with the hidden verb `device-client`. The child connects, makes its
//! device, and says so with a line on its standard output; then it loads once for every line on its
//! standard input, says with a line of JSON what that came to, and ends when its input does. In
//! between it is at rest with its connection, its session and its mappings, as a server would be.

use std::io::{self, BufRead, BufReader, Write};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use forebay_client::model::Report;
use forebay_client::{
    Client, CopySpan, Device, Endpoint, FakeDevice, Layout, LoadRequest, Resident, Shard,
};
use serde_json::{Value, json};
use tokio::io::AsyncBufReadExt;
use tokio::net::unix::pipe;
use tokio::time::Instant;

use crate::Outcome;

/// Ranks of tensor parallelism.
pub(super) const RANKS: u32 = 8;

/// Along which dimension tensors are cut whose names end so; the first that fits counts. Others,
/// the norms, are whole on every rank. As servers cut a Llama.
pub(crate) const CUTS: [(&str, u32); 5] = [
    ("o_proj.weight", 1),
    ("down_proj.weight", 1),
    ("proj.weight", 0),
    ("embed_tokens.weight", 0),
    ("lm_head.weight", 0),
];

/// What a client does.
#[derive(Debug, Clone, clap::Args)]
pub struct ClientArgs {
    /// The daemon's socket
    pub(super) socket: PathBuf,
    /// What to load
    pub(super) uri: String,
    /// To a device of so many GB/s; without it chunks are taken and given back
    #[arg(long)]
    pub(super) rate: Option<f64>,
    /// Only this rank's slices of eight
    #[arg(long)]
    pub(super) rank: Option<u32>,
}

/// What a load came to.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Loaded {
    /// From the call until all was handed over, or on the device, and the report was there.
    pub(super) seconds: f64,
    /// Bytes of the load's chunks, and how many of them were in RAM.
    pub(super) bytes: u64,
    pub(super) ram_bytes: u64,
    /// Bytes that the device was told to copy.
    pub(super) copied_bytes: u64,
    /// From the call until the first copy was handed to the device, by the device's timeline.
    pub(super) submit_seconds: f64,
    /// The same from when the load was open, as the library reports it.
    pub(super) reported_submit_seconds: f64,
    /// The part of the time between first and last byte in which the engine was busy, by the
    /// device's timeline and as the library reports it.
    pub(super) busy: f64,
    pub(super) reported_busy: f64,
}

impl Loaded {
    fn to_json(self) -> Value {
        json!({
            "seconds": self.seconds,
            "bytes": self.bytes,
            "ram_bytes": self.ram_bytes,
            "copied_bytes": self.copied_bytes,
            "submit_seconds": self.submit_seconds,
            "reported_submit_seconds": self.reported_submit_seconds,
            "busy": self.busy,
            "reported_busy": self.reported_busy,
        })
    }

    fn from_json(value: &Value) -> Option<Self> {
        let number = |name: &str| value.get(name)?.as_f64();
        let count = |name: &str| value.get(name)?.as_u64();
        Some(Self {
            seconds: number("seconds")?,
            bytes: count("bytes")?,
            ram_bytes: count("ram_bytes")?,
            copied_bytes: count("copied_bytes")?,
            submit_seconds: number("submit_seconds")?,
            reported_submit_seconds: number("reported_submit_seconds")?,
            busy: number("busy")?,
            reported_busy: number("reported_busy")?,
        })
    }
}

/// A running client; dropping it ends it.
pub(super) struct ClientProcess {
    child: Child,
    orders: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl ClientProcess {
    /// Starts it, and waits until it is connected.
    pub(super) fn start(args: &ClientArgs) -> Outcome<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("device-client").arg(&args.socket).arg(&args.uri);
        if let Some(rate) = args.rate {
            command.arg("--rate").arg(rate.to_string());
        }
        if let Some(rank) = args.rank {
            command.arg("--rank").arg(rank.to_string());
        }
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let (Some(orders), Some(answers)) = (child.stdin.take(), child.stdout.take()) else {
            return Err("a child without pipes".into());
        };
        let mut process = Self { child, orders, answers: BufReader::new(answers) };
        process.answer()?;
        Ok(process)
    }

    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Loads.
    pub(super) fn load(&mut self) -> Outcome<Loaded> {
        self.begin()?;
        self.end()
    }

    /// Has it begin to load.
    pub(super) fn begin(&mut self) -> io::Result<()> {
        self.orders.write_all(b"load\n")
    }

    /// What the load that was begun came to.
    pub(super) fn end(&mut self) -> Outcome<Loaded> {
        let answer = self.answer()?;
        Ok(Loaded::from_json(&answer).ok_or_else(|| format!("a client answered {answer}"))?)
    }

    fn answer(&mut self) -> Outcome<Value> {
        let mut line = String::new();
        if self.answers.read_line(&mut line)? == 0 {
            return Err("a client ended; what it said is above".into());
        }
        Ok(serde_json::from_str(&line)?)
    }
}

impl Drop for ClientProcess {
    fn drop(&mut self) {
        // A child that has ended already cannot be killed, which is as it should be.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// What the child does: loads whenever it is told to.
///
/// # Errors
/// If a load fails.
pub fn serve(args: &ClientArgs) -> Outcome<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(obey(args))
}

async fn obey(args: &ClientArgs) -> Outcome<()> {
    let client = Client::connect(Endpoint::unix(&args.socket)?).await?;
    let device = args.rate.map(|rate| Arc::new(FakeDevice::new(rate)));
    let client = match &device {
        Some(device) => client.with_device(Arc::clone(device) as Arc<dyn Device>),
        None => client,
    };
    let mut request = LoadRequest::new(&args.uri);
    if let Some(rank) = args.rank {
        let cut = |shard: Shard, (name, dim): (&str, u32)| shard.along(format!("*{name}"), dim);
        request = request.shard(CUTS.into_iter().try_fold(Shard::new(rank, RANKS)?, cut)?);
    }
    let layout = if args.rank.is_some() { Layout::PerTensor } else { Layout::PerObject };
    say(&json!("connected"))?;
    let orders = pipe::Receiver::from_owned_fd(io::stdin().as_fd().try_clone_to_owned()?)?;
    let mut orders = tokio::io::BufReader::new(orders).lines();
    while orders.next_line().await?.is_some() {
        let loaded = match &device {
            Some(device) => to_device(&client, device, request.clone(), layout.clone()).await?,
            None => to_nowhere(&client, request.clone()).await?,
        };
        say(&loaded.to_json())?;
    }
    Ok(())
}

fn say(value: &Value) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{value}")?;
    out.flush()
}

/// Copies everything to the device.
async fn to_device(
    client: &Client,
    device: &FakeDevice,
    request: LoadRequest,
    layout: Layout,
) -> Outcome<Loaded> {
    let bytes_before = device.bytes();
    let called = Instant::now();
    let resident = client.load(request).await?.to_device(layout)?.finish().await?;
    let wall = called.elapsed();
    let Resident { report, device: reported, .. } = &resident;
    let mut spans = device.spans();
    spans.retain(|span| span.started >= called.into_std());
    let first = spans.first().map(|span| span.started).ok_or("nothing was copied")?;
    Ok(Loaded {
        copied_bytes: device.bytes() - bytes_before,
        submit_seconds: first.saturating_duration_since(called.into_std()).as_secs_f64(),
        reported_submit_seconds: reported.first_submit.as_secs_f64(),
        busy: busy(&spans),
        reported_busy: reported.busy_ratio(),
        ..of(report, wall)
    })
}

/// The part of the time from the first to the last byte in which the engine copied. It makes one
/// copy after the other.
fn busy(spans: &[CopySpan]) -> f64 {
    let (Some(first), Some(last)) = (spans.first(), spans.last()) else { return f64::NAN };
    let time =
        |from: std::time::Instant, to: std::time::Instant| to.saturating_duration_since(from);
    let copying: Duration = spans.iter().map(|span| time(span.started, span.finished)).sum();
    copying.as_secs_f64() / time(first.started, last.finished).as_secs_f64()
}

/// Takes every chunk and gives it back, as `forebay load` does without a device.
async fn to_nowhere(client: &Client, request: LoadRequest) -> Outcome<Loaded> {
    let called = Instant::now();
    let mut load = client.load(request).await?;
    while let Some(chunk) = load.next_chunk().await? {
        chunk.release();
    }
    let report = load.finish().await?;
    Ok(of(&report, called.elapsed()))
}

fn of(report: &Report, wall: Duration) -> Loaded {
    Loaded {
        seconds: wall.as_secs_f64(),
        bytes: report.bytes,
        ram_bytes: report.bytes_by_tier.ram,
        ..Loaded::default()
    }
}

/// Bytes of a tensor's slice on a rank, of bf16 elements: what is to be copied, reckoned here and
/// not by the library.
pub(super) fn slice_bytes(name: &str, shape: &[u64], rank: u32) -> u64 {
    let cut = CUTS.iter().find(|(end, _)| name.ends_with(end)).map(|(_, dim)| *dim);
    let indexes = |(dim, size): (u32, u64)| match cut == Some(dim) {
        true => {
            size * u64::from(rank + 1) / u64::from(RANKS)
                - size * u64::from(rank) / u64::from(RANKS)
        }
        false => size,
    };
    2 * (0..).zip(shape.iter().copied()).map(indexes).product::<u64>()
}
