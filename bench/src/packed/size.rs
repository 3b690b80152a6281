//! What packed checkpoints take: of bf16 weights, and of what compression does nothing for.
//!
//! Bytes are counted at the store, of every object that a pack leaves there, the manifest among
//! them. Nothing here varies from one run to the next, so each checkpoint is packed once.

use forebay_testkit::Content;

use super::ground::{Ground, PACKED, RAW, pack};
use super::{PackedOptions, others};
use crate::Outcome;
use crate::node::Node;
use crate::origin::{gib, progress, row};
use crate::report::{Bound, Figure, Limit, Row};

/// Of the checkpoint of weights, at most.
const WEIGHTS_MAX: f64 = 0.70;
/// Of any other, beyond its bytes.
const OTHERS_MAX: f64 = 0.001;
const OTHER_BYTES: u64 = 64 << 20;
const OTHER_BYTES_QUICK: u64 = 8 << 20;

pub(super) async fn run(options: &PackedOptions, ground: &Ground) -> Outcome<Row> {
    let (raw, packed) = (ground.bytes(RAW), ground.bytes(PACKED));
    let what = format!(
        "{:.2} GiB of normally distributed bf16 weights with all that lies beside them, packed; and \
         other inputs",
        gib(raw)
    );
    let mut row = row("size", what);
    let of_weights = share(packed, raw);
    row.figures.push(figure("bf16 weights", "of raw", of_weights));
    let node = ground.node().await?;
    let bytes = if options.quick { OTHER_BYTES_QUICK } else { OTHER_BYTES };
    let mut most = f64::MIN;
    for (name, file, content) in others::inputs(bytes) {
        let (source, destination) = (format!("{name}/"), format!("{name}-packed/"));
        ground.put(&source, &[(file.to_owned(), content)]);
        pack(&node, &source, &destination).await?;
        let of_raw = share(ground.bytes(&destination), ground.bytes(&source));
        progress(format_args!("size: {name} {of_raw:.5} of raw"));
        most = most.max(of_raw - 1.0);
        row.figures.push(figure(name, "of raw", of_raw));
    }
    let tiny = tiny(ground, &node).await?;
    most = most.max(tiny.of_raw - 1.0);
    row.figures.push(figure("tiny objects, no manifest", "of raw", tiny.of_raw));
    row.figures.push(figure("manifest, of a tiny object", "bytes", tiny.entry_bytes));
    row.bounds = vec![
        Bound::new("bf16 weights, of raw", of_weights, Limit::AtMost(WEIGHTS_MAX)),
        Bound::new("beyond raw, whatever it is", most, Limit::AtMost(OTHERS_MAX)),
    ];
    Ok(row)
}

struct Tiny {
    of_raw: f64,
    entry_bytes: f64,
}

/// Objects of a few bytes each. What the manifest says of one is longer than it is; by itself each
/// is stored in no more than its bytes.
async fn tiny(ground: &Ground, node: &Node) -> Outcome<Tiny> {
    const COUNT: u64 = 100;
    let object = |n: u64| (format!("{n:03}.bin"), Content::synthetic(n, n * 7));
    let files: Vec<_> = (0..COUNT).map(object).collect();
    ground.put("tiny/", &files);
    let report = pack(node, "tiny/", "tiny-packed/").await?;
    let stored = ground.bytes("tiny-packed/") - report.manifest_bytes;
    Ok(Tiny {
        of_raw: share(stored, ground.bytes("tiny/")),
        entry_bytes: share(report.manifest_bytes, COUNT),
    })
}

fn figure(of: &str, unit: &'static str, value: f64) -> Figure {
    Figure::new(of, unit, [value].into_iter().collect())
}

#[expect(clippy::cast_precision_loss, reason = "sizes far below 2^52")]
fn share(bytes: u64, of: u64) -> f64 {
    bytes as f64 / of as f64
}
