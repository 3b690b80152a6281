//! `forebay-bench`: the demo, the benches, and the processes that they start as children.

use std::process::ExitCode;

use clap::{Parser, Subcommand, ValueEnum};
use forebay_bench::accuracy::{self, AccuracyOptions, AccuracyRow};
use forebay_bench::cost::{self, CostOptions, CostRow};
use forebay_bench::device::{self, ClientArgs, DeviceOptions, DeviceRow};
use forebay_bench::nvme::{self, NvmeOptions, NvmeRow};
use forebay_bench::origin::{self, OriginOptions, Promise};
use forebay_bench::packed::{self, PackedOptions, PackedRow};
use forebay_bench::peers::{self, LoaderArgs, PeersOptions};
use forebay_bench::report::Table;
use forebay_bench::run::{self, CompareArgs, OriginArgs as RunOriginArgs, RunArgs};
use forebay_bench::soak::{self, SoakOptions};

const ORIGIN_HELP: &str = "\
The table has medians of all runs, and the bound that each row is held to. Origins are local and
their speed is shaped: no network is needed. A full run takes about 25 minutes and 8 GiB of
memory, --quick --runs 1 two minutes.

Example: forebay-bench origin --only cold --only stalls --check";

const NVME_HELP: &str = "\
The table has medians of all runs, and the bound that each row is held to. The rows hit and
threads need fio. The disk is that of --dir: a full run writes some 60 GB to it and needs 20 GB
of room, of which 10 stay free, 14 GiB of memory, and about 15 minutes.

Example: forebay-bench nvme --only hit --only threads --check";

const PACKED_HELP: &str = "\
The table has medians of all runs, and the bound that each row is held to. Origins are local and
their speed is shaped: no network is needed. A full run takes about five minutes and 8 GiB of
memory, --quick --runs 1 half a minute.

Example: forebay-bench packed --only decode --only verify --check";

const DEVICE_HELP: &str = "\
The table has medians of all runs, and the bound that each row is held to. Origins are local and
devices are pretended: neither a network nor a GPU is needed. A full run takes about two minutes
and 5 GiB of memory.

Example: forebay-bench device --only cold --cold-device 0.4 --check";

const COST_HELP: &str = "\
Two daemons run side by side, one with `evidence = false`; loads go through them in turns. A full
run takes about three minutes and 6 GiB of memory.

Example: forebay-bench cost --only warm --runs 31";

const ACCURACY_HELP: &str = "\
The table has the share of each stall's seconds that was charged to its cause, over all runs, and
the bound that its median is held to. Origins are local. Rows that need the kernel (dns,
tcp_connect, tcp_retransmit, cpu_throttle, disk, page_cache) want root, and the programs unshare,
ip, mount and nft; without, they are skipped and say so. A full run takes about 12 minutes and
2 GiB of memory.

Example: forebay-bench accuracy --runs 3 --only origin_throttle --only client --check";

#[derive(Debug, Parser)]
#[command(name = "forebay-bench", version, about = "Shows what Forebay does, on this machine")]
struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Load a generated checkpoint from an embedded S3 origin: cold, warm, and proven by SHA-256
    Demo {
        /// Size of the checkpoint in MiB
        #[arg(
            long,
            default_value_t = 1024,
            value_parser = clap::value_parser!(u64).range(8..=65536)
        )]
        mib: u64,
    },
    /// Measure what the origin client promises, each promise beside what it is compared with
    #[command(after_help = ORIGIN_HELP)]
    Origin(OriginArgs),
    /// Measure what the NVMe tier promises, each promise beside what it is compared with
    #[command(after_help = NVME_HELP)]
    Nvme(NvmeArgs),
    /// Measure what packed checkpoints and digests promise, each promise beside what it is compared
    /// with
    #[command(after_help = PACKED_HELP)]
    Packed(PackedArgs),
    /// Measure what loads to a device promise
    #[command(after_help = DEVICE_HELP)]
    Device(DeviceArgs),
    /// Measure what it costs to say where the time went
    #[command(after_help = COST_HELP)]
    Cost(CostArgs),
    /// Measure how much of a stall of known cause is charged to that cause
    #[command(after_help = ACCURACY_HELP)]
    Accuracy(AccuracyArgs),
    /// Measure loads beside what users would run instead
    #[command(after_help = peers::HELP)]
    Peers {
        #[command(flatten)]
        options: PeersOptions,
        /// Form of the result
        #[arg(long, value_enum, default_value_t = Format::Human)]
        format: Format,
        /// Exit with 1 if a bound is missed
        #[arg(long)]
        check: bool,
    },
    /// Measure one load at a time, as many as can be, and too many
    #[command(after_help = run::HELP)]
    Run(Box<RunArgs>),
    /// Say what changed between two runs, beyond noise; exit with 1 if something got worse
    Compare(CompareArgs),
    /// Kill clients and the daemon at random while the origin has faults; see what is wrong or left
    #[command(after_help = soak::HELP)]
    Soak {
        #[command(flatten)]
        options: SoakOptions,
        /// Form of the result
        #[arg(long, value_enum, default_value_t = Format::Human)]
        format: Format,
    },
    /// What `forebayd` does; demo and benches start themselves with this
    #[command(hide = true, disable_help_flag = true)]
    Daemon {
        /// Flags of forebayd
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<std::ffi::OsString>,
    },
    /// The origin of the cold load; the bench starts itself with this
    #[command(hide = true)]
    RawOrigin {
        /// Size of its checkpoint
        bytes: u64,
    },
    /// The origin of the verified loads; the bench starts itself with this
    #[command(hide = true)]
    ClaimingOrigin {
        /// Size of its checkpoint
        bytes: u64,
    },
    /// A client beside peers; the bench starts itself with this
    #[command(hide = true)]
    PeerClient(LoaderArgs),
    /// The origin of `run`; the bench starts itself with this
    #[command(hide = true)]
    RunOrigin(RunOriginArgs),
    /// A client of the soak, which starts itself with this
    #[command(hide = true)]
    SoakClient(soak::ClientArgs),
    /// A client that loads to a device; the bench starts itself with this
    #[command(hide = true)]
    DeviceClient(ClientArgs),
}

#[derive(Debug, clap::Args)]
struct OriginArgs {
    /// What to measure; may be repeated [default: everything]
    #[arg(long, value_name = "PROMISE")]
    only: Vec<Promise>,
    /// Runs of each side
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u8).range(1..))]
    runs: u8,
    /// Size of the checkpoint of the cold load in MiB
    #[arg(long, default_value_t = 2048, value_parser = clap::value_parser!(u64).range(64..=65536))]
    mib: u64,
    /// Connections of the cold load and of the raw loop
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u8).range(1..=128))]
    connections: u8,
    /// Shorter storms and smaller loads, for a first look
    #[arg(long)]
    quick: bool,
    /// Form of the result
    #[arg(long, value_enum, default_value_t = Format::Human)]
    format: Format,
    /// Exit with 1 if a bound is missed
    #[arg(long)]
    check: bool,
}

#[derive(Debug, clap::Args)]
struct NvmeArgs {
    /// What to measure; may be repeated [default: everything]
    #[arg(long, value_name = "ROW")]
    only: Vec<NvmeRow>,
    /// Runs of each side
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u8).range(1..))]
    runs: u8,
    /// Size of the checkpoint of the loads in MiB
    #[arg(long, default_value_t = 4096, value_parser = clap::value_parser!(u64).range(64..=65536))]
    mib: u64,
    /// Extents of the start, of 8 MiB each
    #[arg(long, default_value_t = 131_072, value_parser = clap::value_parser!(u32).range(1..))]
    extents: u32,
    /// A directory on the disk to measure [default: that of temporary files]
    #[arg(long)]
    dir: Option<std::path::PathBuf>,
    /// Form of the result
    #[arg(long, value_enum, default_value_t = Format::Human)]
    format: Format,
    /// Exit with 1 if a bound is missed
    #[arg(long)]
    check: bool,
}

#[derive(Debug, clap::Args)]
struct PackedArgs {
    /// What to measure; may be repeated [default: everything]
    #[arg(long, value_name = "ROW")]
    only: Vec<PackedRow>,
    /// Runs of each side
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u8).range(1..))]
    runs: u8,
    /// Size of the checkpoint in MiB [default: 1024; 128 with --quick]
    #[arg(long, value_parser = clap::value_parser!(u64).range(64..=16384))]
    mib: Option<u64>,
    /// Smaller checkpoints, for a first look
    #[arg(long)]
    quick: bool,
    /// Form of the result
    #[arg(long, value_enum, default_value_t = Format::Human)]
    format: Format,
    /// Exit with 1 if a bound is missed
    #[arg(long)]
    check: bool,
}

#[derive(Debug, clap::Args)]
struct DeviceArgs {
    /// What to measure; may be repeated [default: everything]
    #[arg(long, value_name = "ROW")]
    only: Vec<DeviceRow>,
    /// Runs of each side
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u8).range(1..))]
    runs: u8,
    /// Size of the checkpoint in MiB
    #[arg(long, default_value_t = 2048, value_parser = clap::value_parser!(u64).range(16..=16384))]
    mib: u64,
    /// Speed of the device of the warm loads
    #[arg(long, value_name = "GBPS", default_value_t = 2.0, value_parser = speed)]
    warm_device: f64,
    /// Speed of the device of the cold loads, and of each rank
    #[arg(long, value_name = "GBPS", default_value_t = 8.0, value_parser = speed)]
    cold_device: f64,
    /// Speed of the origin of the cold loads
    #[arg(
        long,
        value_name = "MBPS",
        default_value_t = 500,
        value_parser = clap::value_parser!(u64).range(1..=100_000)
    )]
    origin: u64,
    /// Form of the result
    #[arg(long, value_enum, default_value_t = Format::Human)]
    format: Format,
    /// Exit with 1 if a bound is missed
    #[arg(long)]
    check: bool,
}

#[derive(Debug, clap::Args)]
struct CostArgs {
    /// What to measure; may be repeated [default: everything]
    #[arg(long, value_name = "ROW")]
    only: Vec<CostRow>,
    /// Pairs of loads
    #[arg(long, default_value_t = 15, value_parser = clap::value_parser!(u8).range(1..))]
    runs: u8,
    /// Size of the checkpoint in MiB
    #[arg(long, default_value_t = 1024, value_parser = clap::value_parser!(u64).range(16..=16384))]
    mib: u64,
    /// Form of the result
    #[arg(long, value_enum, default_value_t = Format::Human)]
    format: Format,
    /// Exit with 1 if a bound is missed
    #[arg(long)]
    check: bool,
}

#[derive(Debug, clap::Args)]
struct AccuracyArgs {
    /// What to measure; may be repeated [default: everything]
    #[arg(long, value_name = "CAUSE")]
    only: Vec<AccuracyRow>,
    /// Clean loads and stalled ones of each row
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u8).range(1..))]
    runs: u8,
    /// Size of the checkpoint in MiB
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u64).range(16..=4096))]
    mib: u64,
    /// A directory for the timeline of each load, to find out why a bound is missed
    #[arg(long, value_name = "DIR")]
    traces: Option<std::path::PathBuf>,
    /// Form of the result
    #[arg(long, value_enum, default_value_t = Format::Human)]
    format: Format,
    /// Exit with 1 if a bound is missed
    #[arg(long)]
    check: bool,
}

/// Reads a speed in units of 1e9 bytes a second.
fn speed(text: &str) -> Result<f64, String> {
    let speed = text.parse().ok().filter(|speed: &f64| *speed > 0.0 && *speed <= 1e6);
    speed.ok_or_else(|| "it is no positive number of GB/s up to 1000000".to_owned())
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// A table
    Human,
    /// One object
    Json,
}

fn main() -> ExitCode {
    let ended = match Args::parse().verb {
        Verb::Demo { mib } => forebay_bench::demo::run(mib << 20).map(|()| true),
        Verb::Origin(args) => origin(&args),
        Verb::Nvme(args) => nvme(&args),
        Verb::Packed(args) => packed(&args),
        Verb::Device(args) => device(&args),
        Verb::Cost(args) => cost(&args),
        Verb::Accuracy(args) => accuracy(&args),
        Verb::Peers { options, format, check } => peers::run(&options).map(|table| {
            show(&table, format);
            table.holds() || !check
        }),
        Verb::PeerClient(args) => peers::serve(&args).map(|()| true),
        Verb::Run(args) => run::main(&args),
        Verb::Compare(args) => run::compare(&args),
        Verb::RunOrigin(args) => run::serve(&args).map(|()| true),
        Verb::Soak { options, format } => soak::run(&options).map(|table| {
            show(&table, format);
            table.holds()
        }),
        Verb::SoakClient(args) => soak::serve(&args).map(|()| true),
        Verb::DeviceClient(args) => device::serve(&args).map(|()| true),
        Verb::ClaimingOrigin { bytes } => packed::serve(bytes).map(|()| true),
        Verb::RawOrigin { bytes } => origin::serve(bytes).map(|()| true),
        Verb::Daemon { args } => {
            let name = std::ffi::OsString::from("forebayd");
            return forebay_server::daemon::main(std::iter::once(name).chain(args));
        }
    };
    match ended {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            complain(&*error);
            ExitCode::FAILURE
        }
    }
}

/// Runs the bench; whether the caller is to be content.
fn origin(args: &OriginArgs) -> forebay_bench::Outcome<bool> {
    let table = origin::run(&OriginOptions {
        promises: args.only.clone(),
        runs: args.runs.into(),
        bytes: args.mib << 20,
        connections: args.connections.into(),
        quick: args.quick,
    })?;
    show(&table, args.format);
    Ok(table.holds() || !args.check)
}

/// The same of the NVMe tier.
fn nvme(args: &NvmeArgs) -> forebay_bench::Outcome<bool> {
    let table = nvme::run(&NvmeOptions {
        rows: args.only.clone(),
        runs: args.runs.into(),
        bytes: args.mib << 20,
        extents: args.extents,
        dir: args.dir.clone(),
    })?;
    show(&table, args.format);
    Ok(table.holds() || !args.check)
}

/// The same of packed checkpoints and digests.
fn packed(args: &PackedArgs) -> forebay_bench::Outcome<bool> {
    let mib = args.mib.unwrap_or(if args.quick { 128 } else { 1024 });
    let table = packed::run(&PackedOptions {
        rows: args.only.clone(),
        runs: args.runs.into(),
        bytes: mib << 20,
        quick: args.quick,
    })?;
    show(&table, args.format);
    Ok(table.holds() || !args.check)
}

/// The same of loads to a device.
fn device(args: &DeviceArgs) -> forebay_bench::Outcome<bool> {
    let table = device::run(&DeviceOptions {
        rows: args.only.clone(),
        runs: args.runs.into(),
        bytes: args.mib << 20,
        warm_device: args.warm_device,
        cold_device: args.cold_device,
        origin_bytes_per_second: args.origin * 1_000_000,
    })?;
    show(&table, args.format);
    Ok(table.holds() || !args.check)
}

fn cost(args: &CostArgs) -> forebay_bench::Outcome<bool> {
    let table = cost::run(&CostOptions {
        rows: args.only.clone(),
        runs: args.runs.into(),
        bytes: args.mib << 20,
    })?;
    show(&table, args.format);
    Ok(table.holds() || !args.check)
}

/// The same of explanations.
fn accuracy(args: &AccuracyArgs) -> forebay_bench::Outcome<bool> {
    accuracy::isolate();
    let table = accuracy::run(&AccuracyOptions {
        rows: args.only.clone(),
        runs: args.runs.into(),
        bytes: args.mib << 20,
        traces: args.traces.clone(),
    })?;
    show(&table, args.format);
    Ok(table.holds() || !args.check)
}

#[expect(clippy::print_stdout, reason = "the result of the verb")]
fn show(table: &Table, format: Format) {
    match format {
        Format::Human => print!("{}", table.text()),
        Format::Json => println!("{}", table.json()),
    }
}

#[expect(clippy::print_stderr, reason = "the sentence that a failed run owes its caller")]
fn complain(error: &dyn std::error::Error) {
    eprintln!("forebay-bench: {error}");
}
