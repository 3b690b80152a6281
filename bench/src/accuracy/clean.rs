//! Loads without a stall: nothing but what is slowest by nature may be charged.

use std::sync::Arc;

use forebay_client::{Device, FakeDevice};
use forebay_testkit::RawOptions;

use super::ground::{Scene, Seen, load, skipped, to_device, uri};
use super::tiers::Stored;
use crate::Outcome;
use crate::measure::Spread;
use crate::node::Node;
use crate::origin::{progress, row};
use crate::report::{Bound, Figure, Limit, Row};

/// Of the wall time, at most.
const OTHERS_MAX: f64 = 0.01;
/// The rate of the origin.
const BYTES_PER_SECOND: u64 = 32 << 20;
/// The rate of the device, in units of 1e9 bytes a second.
const DEVICE_GIGABYTES: f64 = 0.04;

pub(super) async fn run(scene: &Scene) -> Outcome<Vec<Row>> {
    Ok(vec![origin(scene).await?, warm(scene).await?, nvme(scene).await?])
}

async fn origin(scene: &Scene) -> Outcome<Row> {
    let node = Node::start(scene.daemon(&[])?).await?;
    let link =
        RawOptions { total_bytes_per_second: Some(BYTES_PER_SECOND), ..RawOptions::default() };
    let origin = scene.origin(link)?;
    let uri = uri(&origin);
    let what = format!("cold loads from an origin of {} MB/s", BYTES_PER_SECOND / 1_000_000);
    repeat(scene, ("clean", what), &["origin_slow"], async || {
        node.forget(&uri).await?;
        load(scene, node.client(), &uri).await
    })
    .await
}

async fn warm(scene: &Scene) -> Outcome<Row> {
    let node = Node::start(scene.daemon(&[])?).await?;
    let origin = scene.origin(RawOptions::default())?;
    let uri = uri(&origin);
    let device: Arc<dyn Device> = Arc::new(FakeDevice::new(DEVICE_GIGABYTES));
    let client = node.client().with_device(device);
    let what = format!("warm loads to a device of {DEVICE_GIGABYTES} GB/s, which is slowest");
    repeat(scene, ("clean_warm", what), &[], async || to_device(scene, &client, &uri).await).await
}

async fn nvme(scene: &Scene) -> Outcome<Row> {
    const NAME: &str = "clean_nvme";
    let stored = match Stored::new(scene).await {
        Ok(stored) => stored,
        Err(why) => return Ok(skipped(NAME, why.to_string())),
    };
    stored.slow(true)?;
    let what = format!("loads from the NVMe tier into empty RAM, {}", stored.pace());
    repeat(scene, (NAME, what), &["nvme_service", "nvme_queue"], async || stored.load(scene).await)
        .await
}

async fn repeat(
    scene: &Scene,
    (name, what): (&'static str, String),
    bottleneck: &[&str],
    mut load: impl AsyncFnMut() -> Outcome<Seen>,
) -> Outcome<Row> {
    load().await?;
    let mut seen = Vec::new();
    for run in 0..scene.runs {
        let one = load().await?;
        let (wall, others) = (one.wall, others(&one, bottleneck));
        progress(format_args!("{name} {}: {wall:.3} s, others {others:?}", run + 1));
        seen.push(one);
    }
    Ok(judge(row(name, what), &seen, bottleneck))
}

/// The largest of the other causes, and its share of the wall time.
fn others<'a>(seen: &'a Seen, bottleneck: &[&str]) -> (&'a str, f64) {
    let largest = seen.others(bottleneck).max_by(|one, other| one.1.total_cmp(&other.1));
    largest.map_or(("", 0.0), |(cause, seconds)| (cause, seconds / seen.wall))
}

fn judge(mut row: Row, seen: &[Seen], bottleneck: &[&str]) -> Row {
    let of = |value: &dyn Fn(&Seen) -> f64| -> Spread { seen.iter().map(value).collect() };
    let largest = of(&|seen| others(seen, bottleneck).1);
    row.bounds = vec![Bound::new(
        "largest other cause, of wall, median",
        largest.median(),
        Limit::AtMost(OTHERS_MAX),
    )];
    row.figures = vec![
        Figure::new("wall", "s", of(&|seen| seen.wall)),
        Figure::new(
            format!("charged to {}", bottleneck.join(" + ")),
            "of wall",
            of(&|seen| seen.charged(bottleneck) / seen.wall),
        ),
        Figure::new("largest other cause", "of wall", largest),
        Figure::new("unknown", "of wall", of(&|seen| seen.charged(&["unknown"]) / seen.wall)),
    ];
    row
}
