//! Loads without a stall: nothing but what is slowest by nature may be charged.

use std::time::Duration;

use forebay_client::{KeepTier, PrefetchRequest};
use forebay_testkit::RawOptions;

use super::ground::{Scene, Seen, load, uri};
use crate::Outcome;
use crate::measure::Spread;
use crate::node::Node;
use crate::origin::{progress, row};
use crate::report::{Bound, Figure, Limit, Row};

/// Of the wall time, at most.
const OTHERS_MAX: f64 = 0.01;
/// The rate of the origin.
const BYTES_PER_SECOND: u64 = 50 << 20;
const ROOM: u64 = 64 << 20;
const KNOWN_WITHIN: Duration = Duration::from_secs(20);

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
    let what = "warm loads: what is left is this machine's CPUs, and the client".to_owned();
    repeat(scene, ("clean_warm", what), &["client", "cpu_throttle", "unknown"], async || {
        load(scene, node.client(), &uri).await
    })
    .await
}

async fn nvme(scene: &Scene) -> Outcome<Row> {
    let nvme = scene.made.bytes() + ROOM;
    let spec = scene.tiered_daemon(nvme, &[("FOREBAY_SCRUB_BYTES_PER_SECOND", "0")])?;
    let node = Node::start(spec).await?;
    node.until(KNOWN_WITHIN, |status| status.nvme.recovery.is_some()).await?;
    let origin = scene.origin(RawOptions::default())?;
    let uri = uri(&origin);
    let request = PrefetchRequest::new(&uri).tier(KeepTier::Nvme);
    let mut prefetch = node.client().prefetch(request).await?;
    while prefetch.next().await?.is_some() {}
    let what = "loads from the NVMe tier into empty RAM".to_owned();
    repeat(scene, ("clean_nvme", what), &["nvme_service", "nvme_queue"], async || {
        node.empty_ram(&uri).await?;
        load(scene, node.client(), &uri).await
    })
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
