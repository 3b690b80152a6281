//! The embedded origin, in a process of its own: one checkpoint in memory, under many prefixes.
//!
//! To a daemon each prefix is a checkpoint of its own, so that as many cold loads can be made as
//! anybody wants from the memory of one. Not so where it is packed: chunks are known by their
//! digests then, wherever they lie, and each prefix has weights of its own. As with `raw-origin`, the
//! parent starts itself with a hidden verb; the child says on its standard output where it serves,
//! and ends when its standard input does.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use clap::ValueEnum;
use forebay_codec::manifest::MANIFEST_NAME;
use forebay_testkit::{CheckpointSpec, RawFiles, RawOptions, RawOrigin, checkpoint};
use serde_json::{Value, json};

use crate::{Outcome, packed};

/// Of every checkpoint that is not packed.
pub(super) const SEED: u64 = 20_261_201;
/// Safetensors files of a checkpoint.
const SHARDS: usize = 4;
/// The same of one that has as many as it has tensors, or this many.
const SMALL_SHARDS: usize = 512;

/// What the checkpoint is like.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Form {
    /// A few large objects
    Plain,
    /// The same, packed by `forebay pack`
    Packed,
    /// An object for each tensor
    Small,
}

/// How the origin behaves.
#[derive(Debug, Clone, clap::Args)]
pub struct OriginArgs {
    /// What the checkpoint is like
    form: Form,
    /// About how large it is
    bytes: u64,
    /// Under how many prefixes
    copies: usize,
    /// Bytes per second of all bodies together
    #[arg(long)]
    bytes_per_second: Option<u64>,
    /// Milliseconds between a request and its response
    #[arg(long, default_value_t = 0)]
    first_byte: u64,
}

impl OriginArgs {
    pub(super) fn new(form: Form, bytes: u64, copies: usize) -> Self {
        Self { form, bytes, copies, bytes_per_second: None, first_byte: 0 }
    }

    pub(super) fn shaped(self, bytes_per_second: Option<u64>, first_byte: Duration) -> Self {
        let first_byte = u64::try_from(first_byte.as_millis()).unwrap_or(u64::MAX);
        Self { bytes_per_second, first_byte, ..self }
    }

    fn command(&self) -> io::Result<Command> {
        let mut command = Command::new(std::env::current_exe()?);
        let form = self.form.to_possible_value().map(|form| form.get_name().to_owned());
        command.arg("run-origin").arg(form.unwrap_or_default());
        command.arg(self.bytes.to_string()).arg(self.copies.to_string());
        if let Some(rate) = self.bytes_per_second {
            command.arg("--bytes-per-second").arg(rate.to_string());
        }
        command.arg("--first-byte").arg(self.first_byte.to_string());
        Ok(command)
    }
}

/// A running origin; dropping it ends it.
#[derive(Debug)]
pub(super) struct OriginProcess {
    child: Child,
    address: SocketAddr,
    entry: String,
    /// Under how many prefixes its checkpoint lies.
    pub(super) copies: usize,
}

impl OriginProcess {
    pub(super) fn start(args: &OriginArgs) -> Outcome<Self> {
        let mut child = args.command()?.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let mut line = String::new();
        let told = child.stdout.take().map(|told| BufReader::new(told).read_line(&mut line));
        // Owns the child from here on, whatever it said.
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let mut process = Self { child, address, entry: String::new(), copies: args.copies };
        told.transpose()?;
        let told: Value = serde_json::from_str(&line)
            .map_err(|_| "the origin did not say where it serves; what it said is above")?;
        let port = told["port"].as_u64().and_then(|port| u16::try_from(port).ok());
        process.address.set_port(port.ok_or("the origin named no port")?);
        told["entry"].as_str().unwrap_or_default().clone_into(&mut process.entry);
        Ok(process)
    }

    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The URI of the checkpoint under one of its prefixes.
    pub(super) fn uri(&self, copy: usize) -> String {
        format!("http://{}/{}{}", self.address, prefix(copy % self.copies.max(1)), self.entry)
    }
}

impl Drop for OriginProcess {
    fn drop(&mut self) {
        // A child that has ended already cannot be killed, which is as it should be.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn prefix(copy: usize) -> String {
    format!("{copy:06}/")
}

/// What the child does: serves until standard input ends.
///
/// # Errors
/// If the memory or a socket cannot be had.
pub fn serve(args: &OriginArgs) -> Outcome<()> {
    let (files, entry) = files(args)?;
    let options = RawOptions {
        total_bytes_per_second: args.bytes_per_second,
        first_byte: Duration::from_millis(args.first_byte),
        ..RawOptions::default()
    };
    let origin = RawOrigin::start(options, &files)?;
    let mut out = io::stdout().lock();
    writeln!(out, "{}", json!({ "port": origin.address().port(), "entry": entry }))?;
    out.flush()?;
    io::stdin().lock().read_to_end(&mut Vec::new())?;
    Ok(())
}

/// The files of all prefixes, and which of one to name where the prefix itself is not enough.
fn files(args: &OriginArgs) -> Outcome<(RawFiles, &'static str)> {
    let shards = match args.form {
        Form::Plain => SHARDS,
        Form::Small => SMALL_SHARDS,
        // Web servers have no listing, so a packed checkpoint is named by its manifest.
        Form::Packed => return Ok((packed_files(args)?, MANIFEST_NAME)),
    };
    let made = checkpoint(CheckpointSpec::new(SEED, args.bytes).shards(shards));
    Ok((RawFiles::checkpoint("", &made)?.below((0..args.copies).map(prefix)), ""))
}

fn packed_files(args: &OriginArgs) -> Outcome<RawFiles> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut files = RawFiles::default();
    for (copy, seed) in (0..args.copies).zip(SEED..) {
        let ground = runtime.block_on(packed::Ground::of_other_weights(seed, args.bytes))?;
        let packed = ground.packed()?;
        let one = packed.iter().map(|(name, content)| (format!("{}{name}", prefix(copy)), content));
        files = files.and(&RawFiles::make(one)?);
    }
    Ok(files)
}
