//! Loads over a link that carries 200 MB/s in all, packed against raw.
//!
//! An S3 origin that is held to that rate has the checkpoint as it is and packed. One daemon loads
//! either in turn, each time with nothing of it in RAM and without an NVMe tier. A first packed
//! load is not counted: every byte of it is compared with what was packed. What the daemon itself
//! says of decoding is beside that: plain bytes for each second that a worker had a frame, with the
//! digests.

use forebay_testkit::{LinkOptions, S3Options, S3Origin};

use super::PackedOptions;
use super::ground::{Ground, PACKED, RAW, uri};
use crate::Outcome;
use crate::measure::{Measurement, Spread};
use crate::node::{self, Node};
use crate::nvme::order;
use crate::origin::{gib, progress, ratio, row};
use crate::proof::Proof;
use crate::report::{Bound, Figure, Limit, Row};

const LINK_BYTES_PER_SECOND: u64 = 200_000_000;
/// How many times as fast, at least.
const FASTER_MIN: f64 = 1.35;

/// One load, and what the daemon said of its decoding, if any: 10^9 bytes for each worker's second.
struct Loaded {
    run: Measurement,
    decoded: f64,
}

pub(super) async fn run(options: &PackedOptions, ground: &Ground) -> Outcome<Row> {
    let link = LinkOptions {
        total_bytes_per_second: Some(LINK_BYTES_PER_SECOND),
        ..LinkOptions::default()
    };
    let contents = ground.contents().clone();
    let origin = S3Origin::start(S3Options { link, contents, ..S3Options::default() }).await;
    let made = ground.made();
    let node = Node::start(node::daemon(made.bytes(), &[])?.env(origin.env())).await?;
    let mut proof = Proof::default();
    node.cold(&uri(PACKED), |chunk| proof.see(chunk, made)).await?;
    proof.end(made)?;
    let (mut raw, mut packed) = (Vec::new(), Vec::new());
    for round in 0..options.runs {
        for side in order(2, round) {
            match side {
                0 => raw.push(load(&node, RAW).await?),
                _ => packed.push(load(&node, PACKED).await?),
            }
        }
        if let ([.., raw], [.., packed]) = (&raw[..], &packed[..]) {
            let (raw, packed) = (raw.run.wall.as_secs_f64(), packed.run.wall.as_secs_f64());
            progress(format_args!("link {}: raw {raw:.2} s, packed {packed:.2} s", round + 1));
        }
    }
    let what = format!(
        "cold loads of {:.2} GiB of bf16 weights over a link of 200 MB/s, packed against raw",
        gib(made.bytes())
    );
    Ok(judge(row("link", what), &raw, &packed))
}

async fn load(node: &Node, prefix: &str) -> Outcome<Loaded> {
    let told = || -> Outcome<(f64, f64)> {
        let bytes = node.metric("forebay_decompress_bytes_total{dir=\"out\"}")?;
        Ok((bytes, node.metric("forebay_decompress_cpu_seconds")?))
    };
    node.forget(&uri("")).await?;
    let before = told()?;
    let (run, _) = node.cold(&uri(prefix), |_| Ok(())).await?;
    let after = told()?;
    Ok(Loaded { run, decoded: (after.0 - before.0) / 1e9 / (after.1 - before.1) })
}

fn judge(mut row: Row, raw: &[Loaded], packed: &[Loaded]) -> Row {
    let of =
        |runs: &[Loaded], value: fn(&Loaded) -> f64| -> Spread { runs.iter().map(value).collect() };
    let seconds = |loaded: &Loaded| loaded.run.wall.as_secs_f64();
    let cpu = |loaded: &Loaded| loaded.run.cpu_per_gib_of("daemon");
    let (without, with) = (of(raw, seconds), of(packed, seconds));
    let faster = ratio(&without, &with);
    row.bounds = vec![Bound::new("times as fast", faster, Limit::AtLeast(FASTER_MIN))];
    row.figures = vec![
        Figure::new("raw", "s", without),
        Figure::new("packed", "s", with),
        Figure::new("raw, CPU of the daemon", "s/GiB", of(raw, cpu)),
        Figure::new("packed, CPU of the daemon", "s/GiB", of(packed, cpu)),
        Figure::new("a worker, by metrics", "GB/s", of(packed, |loaded| loaded.decoded)),
    ];
    row
}
