//! A cold load against a raw loop: what Forebay adds to the kernel's own copy.
//!
//! Both read the same checkpoint from the same origin process, in parts of the same size, over the
//! same number of connections, one after the other. Before anything is timed the daemon's pool has
//! its size and the loop's buffer has been touched; each side runs once untimed, and in that run
//! every byte is compared with what it has to be.

use forebay_client::Chunk;
use forebay_testkit::Checkpoint;

use super::child::{self, OriginProcess, PREFIX};
use super::raw_loop::RawLoop;
use super::{OriginOptions, gib, progress, ratio, row};
use crate::Outcome;
use crate::measure::{Measurement, Spread};
use crate::node::{self, Node};
use crate::proof::{Proof, differ};
use crate::report::{Bound, Figure, Limit, Row};

/// The daemon's default chunk, which is its part.
const PART_BYTES: u32 = 8 << 20;
/// Of the loop's rate, at least.
const RATE_MIN: f64 = 0.85;
/// Of its CPU time for each byte, at most.
const CPU_MAX: f64 = 1.3;

pub(super) fn run(options: &OriginOptions) -> Outcome<Row> {
    let connections = options.connections;
    let made = child::made(options.bytes);
    let origin = OriginProcess::start(options.bytes)?;
    let mut raw = RawLoop::new(origin.address(), PREFIX, &made, PART_BYTES);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let settings = [("FOREBAY_CONNECTIONS", connections.to_string())];
    let node = runtime.block_on(Node::start(node::daemon(options.bytes, &settings)?))?;

    raw.run(connections)?;
    prove_raw(&raw, &made)?;
    let proof = Proof::default();
    let proof = std::cell::RefCell::new(proof);
    let see = |chunk: &Chunk| proof.borrow_mut().see(chunk, &made);
    runtime.block_on(node.cold(&origin.uri(), see))?;
    proof.into_inner().end(&made)?;

    let (mut loops, mut loads) = (Vec::new(), Vec::new());
    for number in 1..=options.runs {
        loops.push(raw.run(connections)?);
        loads.push(runtime.block_on(node.cold(&origin.uri(), |_| Ok(())))?.0);
        if let ([.., raw], [.., load]) = (&loops[..], &loads[..]) {
            let (raw, load) = (raw.gigabytes_per_second(), load.gigabytes_per_second());
            progress(format_args!("cold {number}: raw loop {raw:.2} GB/s, forebay {load:.2} GB/s"));
        }
    }
    let what = format!(
        "cold load of {:.2} GiB from an unshaped HTTP origin, {connections} connections, parts of \
         8 MiB, against a raw loop",
        gib(made.bytes())
    );
    Ok(judge(row("cold", what), &loops, &loads))
}

fn judge(mut row: Row, loops: &[Measurement], loads: &[Measurement]) -> Row {
    let of = |runs: &[Measurement], value: &dyn Fn(&Measurement) -> f64| -> Spread {
        runs.iter().map(value).collect()
    };
    let rates = (loads, loops);
    let rate = |runs| of(runs, &Measurement::gigabytes_per_second);
    let cpu = |runs| of(runs, &Measurement::cpu_per_gib);
    let (load_rate, loop_rate) = (rate(rates.0), rate(rates.1));
    let (load_cpu, loop_cpu) = (cpu(loads), cpu(loops));
    row.bounds = vec![
        Bound::new(
            "GB/s, of the raw loop's",
            ratio(&load_rate, &loop_rate),
            Limit::AtLeast(RATE_MIN),
        ),
        Bound::new(
            "CPU s/GiB, of the raw loop's",
            ratio(&load_cpu, &loop_cpu),
            Limit::AtMost(CPU_MAX),
        ),
    ];
    let part = |name: &'static str| of(loads, &|run| run.cpu_per_gib_of(name));
    row.figures = vec![
        Figure::new("raw loop", "GB/s", loop_rate),
        Figure::new("forebay", "GB/s", load_rate),
        Figure::new("raw loop, CPU", "s/GiB", loop_cpu),
        Figure::new("forebay, CPU", "s/GiB", load_cpu),
        Figure::new("of which the daemon", "s/GiB", part("daemon")),
        Figure::new("of which the client", "s/GiB", part("client")),
    ];
    row
}

fn prove_raw(raw: &RawLoop, made: &Checkpoint) -> Outcome<()> {
    let mut rest = raw.bytes();
    for (name, content) in made.files() {
        let bytes = usize::try_from(content.len())?;
        let (file, after) = rest.split_at_checked(bytes).ok_or("the raw loop read too little")?;
        differ(name, content, 0, file)?;
        rest = after;
    }
    Ok(())
}
