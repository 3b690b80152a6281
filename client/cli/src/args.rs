//! The command line.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use forebay_client::{DeviceSpec, Endpoint, KeepTier, PciAddress, Placement, TraceParent};

use crate::access::AccessArgs;
use crate::alias::{AliasVerb, RollbackArgs};
use crate::device::ShardArgs;
use crate::health::HealthArgs;
use crate::resize::ResizeArgs;

/// Load model checkpoints through the Forebay daemon of this node
#[derive(Debug, Parser)]
#[command(name = "forebay", version, max_term_width = 100, after_help = EXAMPLES)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) verb: Verb,
}

const EXAMPLES: &str = "\
Examples:
  forebay prefetch s3://models/llama-3-8b/
  forebay load s3://models/llama-3-8b/ --digest
  forebay --deadline 30s get s3://models/llama-3-8b/ ./llama --only '*.json'
  forebay ls
  forebay --format json status

Exit codes: 0 ok, 1 internal, 2 usage, 3 not found, 4 deadline, 5 overloaded, 6 data wrong,
7 dependency unavailable, 8 permission, 9 precondition (revision changed), 130 interrupted.";

const CAPACITY: &str = "\
Loads: cold and packed come from an origin, nvme and warm from a tier of this node, fill goes from an
origin into the NVMe tier. A stage that did nothing in the last minutes is not measured.

Examples:
  forebay capacity
  forebay capacity --format json | jq -r '.loads[] | [.kind, .bytes_per_second, .limited_by] | @tsv'";

const DOCTOR: &str = "\
Each check is ok, warn (it costs something) or bad (something does not work). Credentials are looked
for and never shown. Without a daemon the checks of this side are printed all the same.

Exit codes: 0 nothing is bad, 9 something is, 7 no daemon answers; others as of every verb.

Examples:
  forebay doctor
  forebay doctor --format json | jq -r '.checks[] | select(.verdict != \"ok\") | .name + \": \" + .advice'";

/// Flags that every verb takes, before or after it.
#[derive(Debug, Args)]
pub(crate) struct Global {
    /// Where forebayd listens: unix:///PATH, or tcp://HOST:PORT for all verbs but load and get
    /// [default: /run/forebay/forebay.sock, else $XDG_RUNTIME_DIR/forebay/forebay.sock]
    #[arg(long, global = true, value_name = "URI", env = "FOREBAY_ENDPOINT")]
    #[arg(value_parser = endpoint)]
    pub(crate) endpoint: Option<Endpoint>,

    /// Give up after this long, everything included: 250ms, 30s, 10m, or none
    #[arg(long, global = true, value_name = "DURATION", default_value = "none")]
    #[arg(value_parser = budget)]
    pub(crate) deadline: Budget,

    /// How results look: tables, or JSON objects (one a line where there are several)
    #[arg(long, global = true, value_enum, default_value_t = Format::Human)]
    pub(crate) format: Format,

    /// W3C traceparent of the trace this command belongs to
    #[arg(long, global = true, value_name = "TP", value_parser = TraceParent::parse)]
    pub(crate) trace_parent: Option<TraceParent>,

    #[command(flatten)]
    pub(crate) access: AccessArgs,
}

/// For whom output is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// For people.
    Human,
    /// For scripts.
    Json,
}

/// How long a command may take; none: as long as it takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Budget(pub(crate) Option<Duration>);

#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// Fetch checkpoints and keep them on this node
    Prefetch(PrefetchArgs),
    /// Load a checkpoint as a client would, and print the report
    Load(LoadArgs),
    /// Write the objects of a checkpoint to files
    Get(GetArgs),
    /// List what is cached
    Ls(LsArgs),
    /// Show what a URI resolves to: objects, tensors, and how much is cached
    Stat(UriArg),
    /// Keep checkpoints in the NVMe tier: they are never evicted to make room
    Pin(CachedArg),
    /// Let pinned checkpoints be evicted again
    Unpin(CachedArg),
    /// Drop checkpoints from the cache; what is in use stays until it is released
    Evict(EvictArgs),
    /// Read again what is cached and check it; what is bad is given up and fetched again
    Verify(CachedArg),
    /// Write a checkpoint anew, compressed and with digests of everything; loads take it as it is
    Pack(PackArgs),
    /// Say where the time of a load went, cause by cause, with the evidence
    Explain(ExplainArgs),
    /// Write the timeline of a load as Chrome trace JSON, which Perfetto opens
    Trace(TraceArgs),
    /// Give revisions names on this node, which stand for them wherever a URI can
    #[command(subcommand)]
    Alias(AliasVerb),
    /// Switch an alias back to the revision that it stood for before; nothing is fetched
    Rollback(RollbackArgs),
    /// Give the RAM tier another size, until the daemon ends
    Resize(ResizeArgs),
    /// Show the daemon at a glance: tiers, queues, loads, origins
    Status,
    /// Show what each stage brings per second as measured, and the most that loads can get of it
    #[command(after_help = CAPACITY)]
    Capacity,
    /// Check limits, mounts, io_uring, memory, NUMA, sockets, DNS, credentials and GPUs
    #[command(after_help = DOCTOR)]
    Doctor,
    /// Say whether the daemon takes loads, for probes: exit code 0, or 7
    #[command(after_help = crate::health::HELP)]
    Health(HealthArgs),
}

#[derive(Debug, Args)]
#[command(after_help = "\
The name of an alias stands for its last load.

Examples:
  forebay explain
  forebay explain my-load --format json | jq -r '.causes[] | [.cause, .seconds] | @tsv'")]
pub(crate) struct ExplainArgs {
    /// The id of one of the last loads; without it, or with `last`, the one that ended last
    #[arg(value_name = "LOAD-ID|last")]
    pub(crate) load_id: Option<String>,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  forebay trace last -o load.json
  forebay trace my-load -o - | gzip > load.json.gz")]
pub(crate) struct TraceArgs {
    /// The id of one of the last loads, or `last`
    #[arg(value_name = "LOAD-ID|last")]
    pub(crate) load_id: String,

    /// Where to write it; `-` for stdout
    #[arg(short, long, value_name = "FILE")]
    pub(crate) output: Option<PathBuf>,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  forebay prefetch s3://models/llama-3-8b/ s3://models/lora/a.safetensors
  forebay prefetch --tier nvme s3://models/llama-3-8b/
  forebay prefetch --format json s3://models/llama-3-8b/ | jq -c '[.done_bytes, .total_bytes]'")]
pub(crate) struct PrefetchArgs {
    /// Checkpoints: one object, or all under a prefix that ends in a slash; or aliases
    #[arg(required = true, value_name = "URI")]
    pub(crate) uris: Vec<String>,

    /// Pin them in the NVMe tier: they are never evicted to make room
    #[arg(long)]
    pub(crate) pin: bool,

    /// Where they have to be in the end [default: ram]
    #[arg(long, value_enum)]
    pub(crate) tier: Option<TierArg>,

    #[command(flatten)]
    pub(crate) near: NearArgs,

    #[command(flatten)]
    pub(crate) purpose: PurposeArgs,
}

/// What a load is for.
#[derive(Debug, Clone, Args)]
pub(crate) struct PurposeArgs {
    /// What it is for: one of the daemon's `workloads`, by which its metrics tell loads apart
    #[arg(long, value_name = "NAME")]
    pub(crate) workload: Option<String>,
}

/// Where bytes should lie in host memory. What cannot be had is said in the report.
#[derive(Debug, Clone, Copy, Args)]
pub(crate) struct NearArgs {
    /// Near this GPU: its PCI address, as `nvidia-smi --query-gpu=pci.bus_id --format=csv` prints
    /// it
    #[arg(long, value_name = "PCI", conflicts_with = "numa_node")]
    pub(crate) gpu: Option<PciAddress>,

    /// On this NUMA node
    #[arg(long, value_name = "N")]
    pub(crate) numa_node: Option<u32>,
}

impl NearArgs {
    /// What was asked for, if anything.
    pub(crate) fn placement(self) -> Option<Placement> {
        self.gpu.map(Placement::Gpu).or_else(|| self.numa_node.map(Placement::Node))
    }
}

/// A tier of the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum TierArg {
    /// Host memory
    Ram,
    /// Local disk
    Nvme,
}

impl From<TierArg> for KeepTier {
    fn from(tier: TierArg) -> Self {
        match tier {
            TierArg::Ram => Self::Ram,
            TierArg::Nvme => Self::Nvme,
        }
    }
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  forebay load s3://models/llama-3-8b/
  forebay load s3://models/llama-3-8b/ --tensors 'model.layers.{0,1}.**' --lane prefetch
  forebay load s3://models/llama-3-8b/ --device cuda:0 --rank 0/8 --shard '*.o_proj.weight=1'
  forebay load s3://models/llama-3-8b/ --verify strict --sha256 SHA256SUMS
  forebay load file:///data/ckpt/ --digest | grep safetensors")]
pub(crate) struct LoadArgs {
    /// Checkpoint: one object, or all under a prefix that ends in a slash; or an alias
    pub(crate) uri: String,

    /// Where the bytes go: host (they stay in shared memory), cuda:N (device N as the driver
    /// counts), or fake:GBPS (nowhere, in the time that a device of so many GB/s would take)
    #[arg(long, value_name = "DEVICE", default_value = "host")]
    pub(crate) device: DeviceSpec,

    #[command(flatten)]
    pub(crate) shard: ShardArgs,

    /// Only tensors whose name matches; several by commas or by repeating the flag
    #[arg(long, value_name = "GLOB", value_parser = globs)]
    pub(crate) tensors: Vec<Globs>,

    /// Which queue to wait in
    #[arg(long, value_enum)]
    pub(crate) lane: Option<LaneArg>,

    #[command(flatten)]
    pub(crate) purpose: PurposeArgs,

    /// When bytes are handed over of objects that are only known by a digest of the whole: as they
    /// come, and the load fails at its end if the digest does not hold; or when it holds
    #[arg(long, value_enum)]
    pub(crate) verify: Option<VerifyArg>,

    /// Hold objects to the SHA-256 in this file, as `sha256sum` writes it; - for stdin
    #[arg(long, value_name = "FILE")]
    pub(crate) sha256: Option<PathBuf>,

    /// Print `sha256  key` lines of the bytes that were handed over, in key order; for the host
    /// only, which is where they can be read
    #[arg(long)]
    pub(crate) digest: bool,

    /// Id of the load, 1 to 64 of A-Z a-z 0-9 . _ -; an id that is open is attached to
    #[arg(long, value_name = "ID", value_parser = load_id)]
    pub(crate) load_id: Option<String>,

    #[command(flatten)]
    pub(crate) near: NearArgs,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum VerifyArg {
    /// As they come
    Stream,
    /// When the digest holds
    Strict,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum LaneArg {
    /// Someone waits for it
    Interactive,
    /// Nobody waits for it
    Prefetch,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Files appear under DIR with the objects' keys as paths, all at the end and only if every byte came.

Examples:
  forebay get s3://models/llama-3-8b/ ./llama
  forebay get s3://models/llama-3-8b/ ./llama --only '*.json' --only tokenizer.model")]
pub(crate) struct GetArgs {
    /// Checkpoint: one object, or all under a prefix that ends in a slash; or an alias
    pub(crate) uri: String,

    /// Directory to write to; made if it is not there
    pub(crate) dir: PathBuf,

    /// Only objects whose key matches; several by commas or by repeating the flag
    #[arg(long, value_name = "GLOB", value_parser = globs)]
    pub(crate) only: Vec<Globs>,
}

#[derive(Debug, Args)]
pub(crate) struct LsArgs {
    /// Only checkpoints at or under this URI, or that of this alias
    pub(crate) uri: Option<String>,
}

#[derive(Debug, Args)]
#[command(after_help = "\
What is pinned stays in NVMe; `forebay unpin URI` lets it go.

Examples:
  forebay evict s3://models/llama-3-8b/
  forebay evict s3://models/ --tier ram")]
pub(crate) struct EvictArgs {
    /// Checkpoints at or under this URI, or that of this alias
    pub(crate) uri: String,

    /// Only from this tier
    #[arg(long, value_enum)]
    pub(crate) tier: Option<TierArg>,
}

#[derive(Debug, Args)]
#[command(after_help = "\
SRC and DST: s3://, gs://, az://, file:///, or a local path; SRC also http(s)://; no aliases. The daemon reads and
writes, with its own credentials; local folders it writes for its own user and for root only.
A pack that was cut off goes on where it was when it is run again.

Examples:
  forebay pack s3://models/llama-3-8b/ s3://models/llama-3-8b.packed/
  forebay pack ./llama ./llama.packed --level 3
  forebay load s3://models/llama-3-8b.packed/ --digest")]
pub(crate) struct PackArgs {
    /// Checkpoint: one object, or all under a prefix that ends in a slash
    #[arg(value_name = "SRC")]
    pub(crate) source: String,

    /// Folder to write to; made if it is not there
    #[arg(value_name = "DST")]
    pub(crate) destination: String,

    /// Bytes that are compressed and checked by themselves: a power of two from 64KiB to 16MiB
    #[arg(long, value_name = "SIZE", default_value = "8MiB", value_parser = frame_size)]
    pub(crate) chunk: u64,

    /// zstd's level, where no byte planes are used
    #[arg(long, value_name = "N", default_value_t = 1)]
    #[arg(value_parser = clap::value_parser!(i32).range(1..=19))]
    pub(crate) level: i32,
}

#[derive(Debug, Args)]
pub(crate) struct CachedArg {
    /// Checkpoints at or under this URI, or that of this alias
    pub(crate) uri: String,
}

#[derive(Debug, Args)]
pub(crate) struct UriArg {
    /// Checkpoint: one object, or all under a prefix that ends in a slash; or an alias
    pub(crate) uri: String,
}

/// The globs of one flag.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Globs(Vec<String>);

/// The globs of all occurrences of a flag.
pub(crate) fn all_globs(flags: Vec<Globs>) -> Vec<String> {
    flags.into_iter().flat_map(|globs| globs.0).collect()
}

/// Splits at commas that are not inside of `{..}` or `[..]`.
fn globs(text: &str) -> Result<Globs, String> {
    let mut parts = vec![String::new()];
    let (mut depth, mut escaped) = (0_usize, false);
    for character in text.chars() {
        match character {
            ',' if depth == 0 && !escaped => {
                parts.push(String::new());
                continue;
            }
            '{' | '[' if !escaped => depth += 1,
            '}' | ']' if !escaped => depth = depth.saturating_sub(1),
            _ => {}
        }
        escaped = character == '\\' && !escaped;
        if let Some(part) = parts.last_mut() {
            part.push(character);
        }
    }
    match parts.iter().any(String::is_empty) {
        true => Err("an empty glob matches nothing".into()),
        false => Ok(Globs(parts)),
    }
}

fn endpoint(text: &str) -> Result<Endpoint, String> {
    Endpoint::parse(text).map_err(|error| error.failure().message.clone())
}

fn load_id(text: &str) -> Result<String, String> {
    match forebay_client::model::is_load_id(text) {
        true => Ok(text.to_owned()),
        false => Err("a load id is 1 to 64 of A-Z a-z 0-9 . _ -".into()),
    }
}

/// `64KiB` to `16MiB`, in powers of two.
fn frame_size(text: &str) -> Result<u64, String> {
    let allowed = |bytes: &u64| bytes.is_power_of_two() && (64 << 10..=16 << 20).contains(bytes);
    let size = text.parse().ok().or_else(|| size(text)).filter(allowed);
    size.ok_or_else(|| "give a power of two from 64KiB to 16MiB, such as 1MiB".to_owned())
}

/// `512MiB`, `4GiB`, as `forebayd --ram` takes them, but for shares of the host.
pub(crate) fn memory_size(text: &str) -> Result<u64, String> {
    size(text).ok_or_else(|| "give a size such as 512MiB or 4GiB".to_owned())
}

/// A whole number and its unit, in bytes.
fn size(text: &str) -> Option<u64> {
    let (count, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit())?);
    let unit_bytes: u64 = match unit {
        "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        "TiB" => 1 << 40,
        "kB" | "KB" => 1_000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        "TB" => 1_000_000_000_000,
        _ => return None,
    };
    count.parse::<u64>().ok()?.checked_mul(unit_bytes)
}

/// `250ms`, `1.5s`, `30s`, `10m`, `2h`, `0` or `none`.
fn budget(text: &str) -> Result<Budget, String> {
    let bad = || "give a duration such as 250ms, 30s or 10m, or none".to_owned();
    match text {
        "none" => return Ok(Budget(None)),
        "0" => return Ok(Budget(Some(Duration::ZERO))),
        _ => {}
    }
    let unit_at = text.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(bad)?;
    let (count, unit) = text.split_at(unit_at);
    let unit_seconds = match unit {
        "us" => 1e-6,
        "ms" => 1e-3,
        "s" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        _ => return Err(bad()),
    };
    let count: f64 = count.parse().map_err(|_| bad())?;
    let budget = Duration::try_from_secs_f64(count * unit_seconds).map_err(|_| bad())?;
    Ok(Budget(Some(budget)))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_table_of_flags_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn global_flags_stand_before_or_after_the_verb() {
        for line in [
            "forebay --deadline 30s --format json ls s3://b/",
            "forebay ls s3://b/ --format json --deadline 30s",
        ] {
            let cli = Cli::try_parse_from(line.split(' ')).unwrap();
            assert_eq!(cli.global.format, Format::Json);
            assert_eq!(cli.global.deadline, Budget(Some(Duration::from_secs(30))));
        }
    }

    #[test]
    fn memory_sizes() {
        for (text, bytes) in [("512MiB", 512 << 20), ("4GiB", 4 << 30), ("1GB", 1_000_000_000)] {
            assert_eq!(memory_size(text), Ok(bytes), "{text}");
        }
        for text in ["", "4", "GiB", "-1GiB", "1.5GiB", "25%", "4gib", "99999999999TiB"] {
            memory_size(text).unwrap_err();
        }
    }

    #[test]
    fn durations() {
        for (text, budget_) in [
            ("none", None),
            ("0", Some(Duration::ZERO)),
            ("0s", Some(Duration::ZERO)),
            ("250ms", Some(Duration::from_millis(250))),
            ("1.5s", Some(Duration::from_millis(1500))),
            ("10m", Some(Duration::from_secs(600))),
            ("2h", Some(Duration::from_secs(7200))),
        ] {
            assert_eq!(budget(text), Ok(Budget(budget_)), "{text}");
        }
        for bad in ["", "5", "s", "-1s", "1 s", "1d", "1e9s", "1.2.3s", "9999999999999999999999h"] {
            budget(bad).unwrap_err();
        }
    }

    #[test]
    fn frames_are_powers_of_two_within_bounds() {
        let good = [("64KiB", 64 << 10), ("1MiB", 1 << 20), ("16MiB", 16 << 20), ("65536", 65536)];
        for (text, bytes) in good {
            assert_eq!(frame_size(text), Ok(bytes), "{text}");
        }
        for bad in ["", "KiB", "32KiB", "3MiB", "32MiB", "1.5MiB", "-1", "18446744073709551615MiB"]
        {
            frame_size(bad).unwrap_err();
        }
    }

    #[test]
    fn globs_split_at_outer_commas() {
        let split = |text: &str| globs(text).map(|globs| globs.0);
        assert_eq!(split("a,b*").unwrap(), ["a", "b*"]);
        assert_eq!(split("l.{0,1},[a,b]").unwrap(), ["l.{0,1}", "[a,b]"]);
        assert_eq!(split(r"a\,b,c").unwrap(), [r"a\,b", "c"]);
        for bad in ["", "a,", ",a"] {
            split(bad).unwrap_err();
        }
    }

    #[test]
    fn a_place_is_a_gpu_or_a_node() {
        for verb in ["load", "prefetch"] {
            let parse = |flags: &str| {
                let line = format!("forebay {verb} file:///x {flags}");
                let cli = Cli::try_parse_from(line.split_whitespace())?;
                Ok::<_, clap::Error>(match cli.verb {
                    Verb::Load(args) => args.near.placement(),
                    Verb::Prefetch(args) => args.near.placement(),
                    _ => None,
                })
            };
            assert_eq!(parse("").unwrap(), None);
            assert_eq!(parse("--numa-node 1").unwrap(), Some(Placement::Node(1)));
            let gpu = Placement::Gpu("3b:00.0".parse().unwrap());
            assert_eq!(parse("--gpu 00000000:3B:00.0").unwrap(), Some(gpu));
            let bad = parse("--gpu 0").unwrap_err().to_string();
            assert!(bad.contains("nvidia-smi"), "{bad}");
            parse("--gpu 3b:00.0 --numa-node 1").unwrap_err();
            parse("--numa-node -1").unwrap_err();
        }
    }

    #[test]
    fn devices_that_are_none_are_usage_errors() {
        let parse = |device: &str| {
            Cli::try_parse_from(["forebay", "load", "file:///x", "--device", device])
        };
        parse("host").unwrap();
        parse("fake:10").unwrap();
        for missing in ["fake:0", "fake", "tpu"] {
            let message = parse(missing).unwrap_err().to_string();
            assert!(message.contains("host"), "{message}");
        }
    }
}
