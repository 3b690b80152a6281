//! Waits for what other loads have, and for the client itself.

use std::time::Duration;

use forebay_client::{Client, EvictRequest, LoadRequest};
use forebay_testkit::RawOptions;

use super::ground::{Scene, Seen, Stall, load, load_slowly, settings, uri};
use crate::Outcome;
use crate::node::{self, Node};
use crate::report::Row;

/// How long another load keeps what it has.
const HELD: Duration = Duration::from_millis(800);
/// How late the origin of a load answers that others wait for: to each of some ten requests.
const LATE: Duration = Duration::from_millis(100);
/// How long a slow client holds each chunk.
const PAUSE: Duration = Duration::from_millis(15);
/// A pool that one load fills.
const SMALL_POOL: &str = "16MiB";

pub(super) async fn place(scene: &Scene) -> Outcome<Row> {
    let node = Node::start(scene.daemon(&[("FOREBAY_MAX_LOADS", "1")])?).await?;
    let stall = Stall {
        name: "admission_queue",
        what: format!(
            "warm loads behind another one, which has the only place and whose origin answers {LATE:?} late"
        ),
        causes: &["admission_queue"],
    };
    let own = scene.origin(RawOptions::default())?;
    stall
        .compare(scene, async |stalled| {
            let uri = uri(&own);
            if !stalled {
                return load(scene, node.client(), &uri).await;
            }
            // Its origin keeps it, and nothing that the other load needs.
            let late = scene.origin(RawOptions { first_byte: LATE, ..RawOptions::default() })?;
            let behind = async {
                node.until(HELD, |status| !status.loads.is_empty()).await?;
                load(scene, node.client(), &uri).await
            };
            let other = super::ground::uri(&late);
            let (first, seen) = tokio::join!(load(scene, node.client(), &other), behind);
            first.and(seen)
        })
        .await
}

pub(super) async fn memory(scene: &Scene) -> Outcome<Row> {
    let spec = node::sized_daemon(SMALL_POOL.to_owned(), 0, &settings())?;
    let node = Node::start(spec).await?;
    let stall = Stall {
        name: "lease_memory",
        what: format!(
            "loads through a pool of {SMALL_POOL}, which another load keeps to itself for {HELD:?}"
        ),
        causes: &["lease_memory"],
    };
    let origins = [scene.origin(RawOptions::default())?, scene.origin(RawOptions::default())?];
    let [own, other] = origins.each_ref().map(uri);
    stall
        .compare(scene, async |stalled| {
            for uri in [&own, &other] {
                node.client().evict(EvictRequest::new(uri)).await?;
            }
            if !stalled {
                return load(scene, node.client(), &own).await;
            }
            let holder = Holder::start(node.client(), &other).await?;
            let (seen, ended) = tokio::join!(load(scene, node.client(), &own), holder.end());
            ended.and(seen)
        })
        .await
}

/// A load that keeps what it was given.
struct Holder {
    load: forebay_client::Load,
    chunks: Vec<forebay_client::Chunk>,
}

impl Holder {
    /// Takes chunks until there are no more to be had.
    async fn start(client: &Client, uri: &str) -> Outcome<Self> {
        let mut load = client.load(LoadRequest::new(uri)).await?;
        let mut chunks = Vec::new();
        let patience = Duration::from_millis(300);
        while let Ok(chunk) = tokio::time::timeout(patience, load.next_chunk()).await {
            let Some(chunk) = chunk? else { break };
            chunks.push(chunk);
        }
        Ok(Self { load, chunks })
    }

    /// Keeps them for a while, and loads the rest.
    async fn end(mut self) -> Outcome<()> {
        tokio::time::sleep(HELD).await;
        self.chunks.clear();
        while self.load.next_chunk().await?.is_some() {}
        self.load.finish().await?;
        Ok(())
    }
}

pub(super) async fn client(scene: &Scene) -> Outcome<Row> {
    let spec = node::daemon(scene.made.bytes(), &settings())?;
    let node = Node::start(spec).await?;
    let origin = scene.origin(RawOptions::default())?;
    let stall = Stall {
        name: "client",
        what: format!("warm loads by a client that holds each chunk for {PAUSE:?}"),
        causes: &["client"],
    };
    let uri = uri(&origin);
    stall
        .compare(scene, async |stalled| -> Outcome<Seen> {
            let pause = if stalled { PAUSE } else { Duration::ZERO };
            load_slowly(scene, node.client(), &uri, pause).await
        })
        .await
}
