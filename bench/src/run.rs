//! `forebay-bench run`: a daemon in three regimes (floor, steady, overload), for each way that
//! bytes come. `forebay-bench compare` says what changed between two runs.
//!
//! ```text
//! schedule ─ arrivals ─► regimes ─ loads ─► ground ─► daemon (child) ─► origin (child, or a URI)
//!                           │  └ looks ─► watch
//!                           ▼
//!          sample, goodput, knee, capacity ─► document (JSON, rows) ─► page (HTML)
//!                                                 └► compare ─► statistics
//! ```
//!
//! This process is the load generator; the daemon and the origin are others. Every load that was
//! made is in the JSON, so that whoever doubts a figure can make it anew.

mod all;
mod capacity;
mod compare;
mod document;
mod envelope;
mod goodput;
mod ground;
mod knee;
mod origin;
mod page;
mod plot;
mod regimes;
mod sample;
mod schedule;
mod statistics;
mod watch;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use clap::ValueEnum;
use serde_json::json;

use crate::Outcome;
use crate::origin::{progress, row};
use crate::report::{self, Table};
use document::{FORM, Measured};
use ground::Ground;
use regimes::{FACTORS, Overload, Phase, Terms};

pub use compare::{CompareArgs, main as compare};
pub use origin::{OriginArgs, serve};

/// The seed of all draws.
const SEED: u64 = 20_261_129;
/// The least that the pool has: enough for some loads of small checkpoints at once.
const POOL_MIN: u64 = 512 << 20;
const POOL_MIN_QUICK: u64 = 256 << 20;
/// Room for so many of the checkpoint.
const POOL_CHECKPOINTS: u64 = 3;
/// Where loads arrive, each has so many times what it takes alone, and this at least.
const DEADLINE_FLOORS: f64 = 20.0;
const DEADLINE_MIN: Duration = Duration::from_secs(1);
/// Of the bytes those that come from where the scenario is about, at least. Ranks share the chunks at
/// the edges of their slices, and all but the first may find these in RAM.
const FROM_TIER_MIN: f64 = 0.9;
const FROM_TIER_MIN_OF_RANKS: f64 = 0.7;
/// The daemon knows its last 64 loads.
const KNOWN_LOADS: usize = 48;

/// What `--help` says at its end.
pub const HELP: &str = "\
Every load that was made is in the file of --output; `forebay-bench compare A.json B.json` says what
changed between two. A full run takes some 30 minutes and 4 GiB of memory, --quick six.

Example: forebay-bench run ram cold --quick --html report.html";

/// Which way bytes come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Scenario {
    /// From the origin
    Cold,
    /// From the NVMe tier
    Nvme,
    /// From the RAM tier
    Ram,
    /// From the origin, packed
    Packed,
    /// From RAM, NVMe and the origin, in turns that a seed draws
    Mixed,
    /// From the origin, to four ranks at once, a slice each
    TensorParallel,
    /// From the origin, in an object for each tensor
    ManySmall,
}

impl Scenario {
    /// Where bytes come from, if from one tier only, and how much of them at least: or a run
    /// measures something else.
    fn tier(self) -> Option<(&'static str, f64)> {
        match self {
            Self::Cold | Self::Packed | Self::ManySmall => Some(("origin", FROM_TIER_MIN)),
            Self::TensorParallel => Some(("origin", FROM_TIER_MIN_OF_RANKS)),
            Self::Nvme => Some(("NVMe", FROM_TIER_MIN)),
            Self::Ram => Some(("RAM", FROM_TIER_MIN)),
            Self::Mixed => None,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Cold => "cold",
            Self::Nvme => "nvme",
            Self::Ram => "ram",
            Self::Packed => "packed",
            Self::Mixed => "mixed",
            Self::TensorParallel => "tensor-parallel",
            Self::ManySmall => "many-small",
        }
    }

    /// Why it cannot be had of URIs that a user names, if it cannot.
    fn needs_ours(self) -> Option<&'static str> {
        match self {
            Self::Packed => Some("a URI is packed or it is not: run cold with a packed one"),
            Self::ManySmall => Some("a URI has the objects that it has: run cold"),
            Self::Mixed => Some("it takes many checkpoints: leave --uri out"),
            _ => None,
        }
    }
}

/// How loads come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Regime {
    /// One load at a time
    Floor,
    /// At random, at rates that rise until a queue grows
    Steady,
    /// At 2, 5 and 10 times the best of these rates, and what follows (runs steady too)
    Overload,
}

/// What `forebay-bench run` is told.
#[derive(Debug, Clone, clap::Args)]
pub struct RunArgs {
    /// What to measure [default: everything]
    #[arg(value_name = "SCENARIO")]
    scenarios: Vec<Scenario>,
    /// In which regimes; may be repeated [default: all]
    #[arg(long, value_name = "REGIME")]
    regime: Vec<Regime>,
    /// A checkpoint to load, instead of one of an embedded origin; may be repeated
    #[arg(long, value_name = "URI")]
    uri: Vec<String>,
    /// Speed of the embedded origin [default: as fast as it can]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=100_000))]
    origin_mbps: Option<u64>,
    /// Time between a request to the embedded origin and its response
    #[arg(long, value_name = "DURATION", default_value = "0ms", value_parser = duration)]
    origin_latency: Duration,
    /// Loads of the floor [default: 31; 11 with --quick]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(3..))]
    runs: Option<u16>,
    /// Size of the checkpoint of one load in MiB [default: 64; 16 with --quick]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=65536))]
    mib: Option<u64>,
    /// Seconds of each rate; ten times the best is held for six times that [default: 10; 2 with --quick]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=3600))]
    seconds: Option<u16>,
    /// What a load may take where loads arrive [default: 20 times what it takes alone, 1s at least]
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    deadline: Option<Duration>,
    /// Ask for every load, as callers would that know nothing of refusals; else clients hold some
    /// back while the daemon refuses many
    #[arg(long)]
    unthrottled: bool,
    /// A directory on the disk of the NVMe tier [default: that of temporary files]
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// A setting of the daemon, such as `max_loads=16`; may be repeated
    #[arg(long, value_name = "NAME=VALUE", value_parser = setting)]
    set: Vec<(String, String)>,
    /// The seed of arrivals and of mixed loads
    #[arg(long, value_name = "N", default_value_t = SEED)]
    seed: u64,
    /// Run every other bench of this program too, and list what was promised and what came of it
    #[arg(long)]
    all: bool,
    /// Shorter steps and smaller checkpoints, for a first look
    #[arg(long)]
    quick: bool,
    /// A file for the JSON, with every load
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// A file for the page with plots
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Form of what is printed
    #[arg(long, value_enum, default_value_t = Form::Human)]
    format: Form,
    /// Exit with 1 if a bound is missed
    #[arg(long)]
    check: bool,
}

/// The form of a result.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Form {
    /// A table
    Human,
    /// One object
    Json,
}

/// What a run works with.
#[derive(Debug, Clone)]
struct Options {
    uris: Vec<String>,
    origin_bytes_per_second: Option<u64>,
    origin_latency: Duration,
    runs: usize,
    bytes: u64,
    seconds: f64,
    deadline: Option<Duration>,
    unthrottled: bool,
    dir: Option<PathBuf>,
    /// Variables of the daemon.
    env: Vec<(String, String)>,
    seed: u64,
    quick: bool,
    steady: bool,
    overload: bool,
}

impl Options {
    fn of(args: &RunArgs) -> Self {
        let asked = |regime| args.regime.is_empty() || args.regime.contains(&regime);
        let quick = |usual, short| if args.quick { short } else { usual };
        Self {
            uris: args.uri.clone(),
            origin_bytes_per_second: args.origin_mbps.map(|rate| rate * 1_000_000),
            origin_latency: args.origin_latency,
            runs: args.runs.map_or_else(|| quick(31, 11), usize::from),
            bytes: args.mib.unwrap_or(if args.quick { 16 } else { 64 }) << 20,
            seconds: args.seconds.map_or(if args.quick { 2.0 } else { 10.0 }, f64::from),
            deadline: args.deadline,
            unthrottled: args.unthrottled,
            dir: args.dir.clone(),
            env: args.set.clone(),
            seed: args.seed,
            quick: args.quick,
            steady: asked(Regime::Steady) || asked(Regime::Overload),
            overload: asked(Regime::Overload),
        }
    }

    /// The RAM tier of the daemon, a whole number of chunks.
    fn pool(&self) -> u64 {
        let least = if self.quick { POOL_MIN_QUICK } else { POOL_MIN };
        (POOL_CHECKPOINTS * self.bytes).max(least).next_multiple_of(8 << 20)
    }
}

/// Reads a duration such as `250ms`, `30s` or `10m`.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let millis = match unit {
        "ms" => 1,
        "s" => 1000,
        "m" => 60_000,
        _ => 0,
    };
    let number: Option<u64> = number.parse().ok().filter(|_| millis > 0);
    let found = number.and_then(|number| number.checked_mul(millis)).map(Duration::from_millis);
    found.ok_or_else(|| "it is no duration such as 250ms, 30s or 10m".to_owned())
}

/// The variable that a daemon takes a setting from, and its value.
fn setting(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("it is no NAME=VALUE")?;
    let is_name = !name.is_empty() && name.chars().all(|c| c.is_ascii_lowercase() || c == '_');
    match is_name {
        true => Ok((format!("FOREBAY_{}", name.to_ascii_uppercase()), value.to_owned())),
        false => Err(format!("`{name}` is no name of a setting")),
    }
}

/// Measures, and shows what was found; whether the caller is to be content.
///
/// # Errors
/// If something fails; a bound that is missed is no error.
#[expect(clippy::print_stdout, reason = "the result of the verb")]
pub fn main(args: &RunArgs) -> Outcome<bool> {
    let options = Options::of(args);
    let envelope = envelope::envelope();
    let (measured, table) = run(&args.scenarios, &options)?;
    let mut tables = vec![table.json()];
    let others = if args.all { all::tables(args.quick, args.dir.as_deref()) } else { Vec::new() };
    tables.extend(others);
    let json = json!({
        "forebay_bench": FORM,
        "envelope": envelope,
        "seed": options.seed,
        "scenarios": measured.iter().map(Measured::json).collect::<Vec<_>>(),
        "tables": tables,
    });
    if let Some(file) = &args.output {
        write(file, &json.to_string())?;
    }
    if let Some(file) = &args.html {
        write(file, &page::page(&envelope, &measured, &tables))?;
    }
    match args.format {
        Form::Human => {
            print!("{}", table.text());
            tables.iter().skip(1).for_each(|table| print!("{}", all::text(table)));
            print!("{}", all::summary(&tables));
        }
        Form::Json => println!("{json}"),
    }
    Ok(all::holds(&tables) || !args.check)
}

fn write(file: &Path, text: &str) -> Outcome<()> {
    Ok(std::fs::write(file, text).map_err(|error| format!("{}: {error}", file.display()))?)
}

/// Measures scenarios, all if none is named.
fn run(scenarios: &[Scenario], options: &Options) -> Outcome<(Vec<Measured>, Table)> {
    let scenarios = match scenarios {
        [] => Scenario::value_variants(),
        some => some,
    };
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    let runtime = runtime.worker_threads(2).enable_all().build()?;
    let (mut found, mut rows) = (Vec::new(), Vec::new());
    for scenario in scenarios {
        let name = scenario.name();
        if let Some(why) = scenario.needs_ours().filter(|_| !options.uris.is_empty()) {
            progress(format_args!("{name}: skipped: {why}"));
            rows.push(row(name, format!("skipped: {why}")));
            continue;
        }
        progress(format_args!("{name}"));
        let measured = runtime.block_on(measure(*scenario, options))?;
        rows.extend(measured.rows());
        found.push(measured);
    }
    let more = ("a load", format!("{} MiB", options.bytes >> 20));
    let mut ground = report::ground(options.runs, more)?;
    ground.push(("seconds of each rate", options.seconds.to_string()));
    ground.push(("seed", options.seed.to_string()));
    Ok((found, Table { bench: "run", ground, rows }))
}

async fn measure(scenario: Scenario, options: &Options) -> Outcome<Measured> {
    let before = envelope::Counters::now();
    let ground = Arc::new(Ground::make(scenario, options).await?);
    let floor = regimes::floor(&ground, options.runs).await?;
    let alone = floor.sums.median;
    if !alone.is_finite() {
        let reasons = floor.samples.iter().map(|sample| sample.reason);
        let reasons: std::collections::BTreeSet<&str> = reasons.collect();
        return Err(format!("{}: no load ended well: {reasons:?}", scenario.name()).into());
    }
    progress(format_args!("  floor: median {alone:.4} s, p99 {:.4} s", floor.sums.p99));
    let capacity = ground.node().client().capacity().await?;
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let bytes = floor.samples.iter().map(|sample| sample.bytes as f64).sum();
    let prediction = capacity::predict(&capacity, &ground.kinds())
        .map(|found| found.with_cpus(cores, bytes, floor.cpu_seconds));
    let trace = usual(&ground, &floor).await;
    let checkpoint = ground.checkpoint().await?;
    let deadline = options
        .deadline
        .unwrap_or(Duration::try_from_secs_f64(DEADLINE_FLOORS * alone)?.max(DEADLINE_MIN));
    let terms = Terms { seconds: options.seconds, seed: options.seed, deadline };
    let steady = match options.steady {
        true => Some(regimes::steady(&ground, terms, &floor).await?),
        false => None,
    };
    let rate = steady.as_ref().and_then(|steady| steady.best()?.rate);
    let mut overloads = Vec::new();
    for factor in FACTORS.into_iter().filter(|_| options.overload) {
        let Some(rate) = rate else { break };
        let overload = regimes::overload(&ground, terms, &floor, (rate, factor)).await?;
        progress(format_args!(
            "  overload {factor}x: {:.2}/s in time, refused {} of {}, floor latency after {:?} s",
            overload.phase.sums.goodput,
            overload.phase.sums.refused,
            overload.phase.sums.arrived,
            overload.recovery
        ));
        overloads.push(overload);
    }
    let rounds = match overloads.split_last() {
        Some((Overload { phase: last, .. }, milder)) => {
            let peak = document::peak_of(steady.as_ref(), milder).and_then(|phase| phase.rate);
            let rates = peak.zip(last.rate).ok_or("an overload without a rate")?;
            regimes::rounds(&ground, terms, rates).await?
        }
        None => Vec::new(),
    };
    Ok(Measured {
        scenario,
        what: ground.what(),
        deadline: deadline.as_secs_f64(),
        settings: ground.settings.clone(),
        checkpoint,
        floor,
        steady,
        overloads,
        rounds,
        prediction,
        trace,
        machine: envelope::Counters::now().since(&before),
    })
}

/// The timeline of the load that took as long as most; none if the daemon does not know it any
/// more.
async fn usual(ground: &Ground, floor: &Phase) -> Option<forebay_client::Trace> {
    let last = floor.samples.len().saturating_sub(KNOWN_LOADS);
    let mut known: Vec<_> =
        floor.samples[last..].iter().filter(|sample| sample.is_complete()).collect();
    known.sort_by(|a, b| a.latency().total_cmp(&b.latency()));
    let load = known.get(known.len() / 2)?;
    ground.node().client().trace(Some(&load.load_id)).await.ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_setting_is_a_variable_of_the_daemon() {
        let variable = ("FOREBAY_MAX_LOADS".to_owned(), "16".to_owned());
        assert_eq!(setting("max_loads=16"), Ok(variable));
        assert_eq!(setting("ram=").map(|(name, _)| name), Ok("FOREBAY_RAM".to_owned()));
        for bad in ["max_loads", "=1", "MAX=1", "a-b=1"] {
            setting(bad).unwrap_err();
        }
    }

    #[test]
    fn durations_have_a_unit() {
        assert_eq!(duration("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(duration("2s"), Ok(Duration::from_secs(2)));
        assert_eq!(duration("3m"), Ok(Duration::from_secs(180)));
        for bad in ["", "5", "s", "1h", "-1s", "1.5s", "99999999999999999999s"] {
            duration(bad).unwrap_err();
        }
    }
}
