//! Stalls of the origin itself.

use std::time::Duration;

use forebay_testkit::{Fault, FaultRule, HttpOptions, HttpOrigin, Op, RawOptions, When};

use super::ground::{PREFIX, Scene, Stall, load, uri};
use crate::Outcome;
use crate::node::Node;
use crate::report::Row;

/// How late every answer of a late origin is.
const LATE: Duration = Duration::from_millis(300);
/// How long a slow body takes, about.
const SLOW_SECONDS: u64 = 2;
/// What an origin that throttles says.
const RETRY_AFTER: Duration = Duration::from_secs(1);

pub(super) async fn first_byte(scene: &Scene) -> Outcome<Row> {
    let late = RawOptions { first_byte: LATE, ..RawOptions::default() };
    let what = format!("loads from an origin that answers {LATE:?} late");
    let stall = Stall { name: "first_byte", what, causes: &["origin_slow"] };
    links(scene, stall, late).await
}

pub(super) async fn body(scene: &Scene) -> Outcome<Row> {
    let rate = scene.made.bytes() / SLOW_SECONDS;
    let slow = RawOptions { total_bytes_per_second: Some(rate), ..RawOptions::default() };
    let what = format!("loads from an origin that sends {} MB/s in all", rate / 1_000_000);
    links(scene, Stall { name: "body", what, causes: &["origin_slow"] }, slow).await
}

/// Loads from origins that are as usual, or as told.
async fn links(scene: &Scene, stall: Stall, bad: RawOptions) -> Outcome<Row> {
    let node = Node::start(scene.daemon(&[])?).await?;
    stall
        .compare(scene, async |stalled| {
            let link = if stalled { bad.clone() } else { RawOptions::default() };
            let origin = scene.origin(link)?;
            let seen = load(scene, node.client(), &uri(&origin)).await?;
            node.forget(&uri(&origin)).await?;
            Ok(seen)
        })
        .await
}

pub(super) async fn throttle(scene: &Scene) -> Outcome<Row> {
    let node = Node::start(scene.daemon(&[])?).await?;
    let what = format!(
        "loads from an origin that answers the first 4 reads with 503 and Retry-After of \
         {RETRY_AFTER:?}"
    );
    let stall = Stall { name: "origin_throttle", what, causes: &["origin_throttle"] };
    stall
        .compare(scene, async |stalled| {
            // What the engine learns of an endpoint stays with it.
            let origin = HttpOrigin::try_start(HttpOptions::default()).await?;
            origin.put_checkpoint(PREFIX, &scene.made);
            if stalled {
                let slow_down = Fault::Status { code: 503, retry_after: Some(RETRY_AFTER) };
                let rule = FaultRule::new("*.safetensors", slow_down);
                origin.fault(rule.on(Op::Get).when(When::First(4)));
            }
            let uri = origin.url(PREFIX);
            let seen = load(scene, node.client(), &uri).await?;
            node.forget(&uri).await?;
            Ok(seen)
        })
        .await
}

pub(super) async fn configured(scene: &Scene) -> Outcome<Row> {
    let clean = scene.origin(RawOptions::default())?;
    let held = scene.origin(RawOptions::default())?;
    let rate = scene.made.bytes() / SLOW_SECONDS;
    let file = tempfile::NamedTempFile::new()?;
    let block = format!(
        "[[origin]]\nprefix = \"{}\"\nmax_bytes_per_second = \"{}KiB\"\n",
        held.endpoint(),
        rate >> 10
    );
    std::fs::write(file.path(), block)?;
    let node = Node::start(scene.daemon(&[])?.arg("--config").arg(file.path())).await?;
    let what = format!("loads with max_bytes_per_second of {} MB/s", rate / 1_000_000);
    let stall = Stall { name: "configured_rate", what, causes: &["origin_throttle"] };
    stall
        .compare(scene, async |stalled| {
            let uri = uri(if stalled { &held } else { &clean });
            let seen = load(scene, node.client(), &uri).await?;
            node.forget(&uri).await?;
            Ok(seen)
        })
        .await
}
