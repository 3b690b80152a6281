//! Everything but loading: health, reflection, who may call, queues and lanes, what is cached.

use std::collections::BTreeSet;

use forebay_client::model::{PrefetchEvent, Report};
use forebay_client::{ClientError, Lane, LoadRequest, PrefetchRequest, Reason};
use forebay_proto::pb;
use forebay_testkit::{CheckpointSpec, Content, Fault, FaultRule, checkpoint};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_reflection::pb::v1::ServerReflectionRequest;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;

use crate::harness::{
    BUCKET, CHUNK, Node, NodeSpec, assert_adds_up, assert_ends, connect, digests, expected_digests,
    failure, files, s3, s3_uri, until,
};
use crate::raw::{RawLoad, assert_status, forebay, opening, wire};

#[tokio::test]
async fn health_is_served() {
    let node = NodeSpec::new().start().await;
    let mut health = HealthClient::new(wire(&node.daemon).await);
    for service in ["", "forebay.v1.Forebay"] {
        let request = HealthCheckRequest { service: service.to_owned() };
        let answer = health.check(request).await.unwrap().into_inner();
        assert_eq!(answer.status(), ServingStatus::Serving);
    }
    let unknown = HealthCheckRequest { service: "no.such".to_owned() };
    let status = health.check(unknown).await.unwrap_err();
    assert_eq!(status.code(), tonic::Code::NotFound);
    let mut watch = health.watch(HealthCheckRequest::default()).await.unwrap().into_inner();
    let first = watch.message().await.unwrap().unwrap();
    assert_eq!(first.status(), ServingStatus::Serving);
}

#[tokio::test]
async fn reflection_tells_every_method() {
    let node = NodeSpec::new().start().await;
    let mut client = ServerReflectionClient::new(wire(&node.daemon).await);
    let ask = |message| {
        let request =
            ServerReflectionRequest { host: String::new(), message_request: Some(message) };
        tokio_stream::iter([request])
    };
    let list = ask(MessageRequest::ListServices(String::new()));
    let mut answers = client.server_reflection_info(list).await.unwrap().into_inner();
    let answer = answers.message().await.unwrap().unwrap().message_response;
    let Some(MessageResponse::ListServicesResponse(services)) = answer else {
        panic!("{answer:?}")
    };
    let names: BTreeSet<_> = services.service.iter().map(|service| service.name.as_str()).collect();
    for name in
        ["forebay.v1.Forebay", "grpc.health.v1.Health", "grpc.reflection.v1.ServerReflection"]
    {
        assert!(names.contains(name), "{name}: {names:?}");
    }
    let method = "forebay.v1.Forebay.Load".to_owned();
    let file = ask(MessageRequest::FileContainingSymbol(method));
    let mut answers = client.server_reflection_info(file).await.unwrap().into_inner();
    let answer = answers.message().await.unwrap().unwrap().message_response;
    assert!(matches!(answer, Some(MessageResponse::FileDescriptorResponse(_))), "{answer:?}");
}

#[tokio::test]
async fn what_watches_a_daemon_is_served_over_http() {
    let node = NodeSpec::new().start().await;
    assert_eq!(node.get("/healthz").await, (200, "ok\n".to_owned()));
    assert_eq!(node.get("/readyz").await, (200, "ready\n".to_owned()));
    let (status, exposition) = node.get("/metrics").await;
    assert_eq!(status, 200);
    for line in exposition.lines() {
        assert!(
            line.is_empty() || line.starts_with("# ") || line.starts_with("forebay_"),
            "{line}"
        );
    }
    assert_eq!(node.get("/secrets").await.0, 404);
}

#[tokio::test]
async fn a_uid_that_is_not_allowed_may_call_nothing() {
    let origin = s3().await;
    let node = NodeSpec::of(&origin).set("allow_uids", "12345").start().await;
    let uri = s3_uri("there/is/something");
    let denied = |what: &str, error: ClientError| {
        assert_ends(&error, Reason::UidNotAllowed, 8);
        assert!(error.to_string().contains("uid"), "{what}: {error}");
    };
    let client = &node.client;
    denied("load", failure(client, LoadRequest::new(&uri)).await);
    denied("prefetch", prefetch(client, &uri).await.unwrap_err());
    denied("stat", client.stat(&uri).await.unwrap_err());
    denied("list", client.list(None).await.unwrap_err());
    denied("evict", client.evict(&uri).await.unwrap_err());
    denied("status", client.status().await.unwrap_err());
    let mut health = HealthClient::new(wire(&node.daemon).await);
    assert_status(health.check(HealthCheckRequest::default()).await, Reason::UidNotAllowed);
    let mut reflection = ServerReflectionClient::new(wire(&node.daemon).await);
    let nothing = tokio_stream::iter([ServerReflectionRequest::default()]);
    assert_status(reflection.server_reflection_info(nothing).await, Reason::UidNotAllowed);
    assert_eq!(origin.total().requests(), 0);
    node.settled().await;
}

async fn prefetch(client: &forebay_client::Client, uri: &str) -> Result<Report, ClientError> {
    let mut prefetch = client.prefetch(PrefetchRequest::new(uri)).await?;
    let (mut done, mut report) = (0, None);
    while let Some(event) = prefetch.next().await? {
        match event {
            PrefetchEvent::Progress(step) => {
                assert!(step.done_bytes >= done && step.done_bytes <= step.total_bytes);
                done = step.done_bytes;
            }
            PrefetchEvent::Report(last) => report = Some(last),
        }
    }
    Ok(*report.expect("a report at the end"))
}

#[tokio::test]
async fn what_is_prefetched_is_there_until_it_is_evicted() {
    let origin = s3().await;
    let made = checkpoint(CheckpointSpec::new(1, 1 << 20).shards(2));
    origin.put_checkpoint(BUCKET, "m/", &made);
    let node = NodeSpec::of(&origin).start().await;
    let uri = s3_uri("m/");
    let stat = node.client.stat(&uri).await.unwrap();
    assert_eq!(stat.summary.bytes, made.bytes());
    assert_eq!((stat.summary.cached.ram, stat.summary.cached.origin), (0, made.bytes()));
    assert_eq!(stat.manifest.tensors().len(), made.tensors().count());
    assert!(node.client.list(None).await.unwrap().is_empty());

    let report = prefetch(&node.client, &uri).await.unwrap();
    assert_eq!((report.bytes_by_tier.origin, report.lane.as_str()), (made.bytes(), "prefetch"));
    node.settled().await;
    let listed = node.client.list(None).await.unwrap();
    let [cached] = listed.as_slice() else { panic!("{listed:?}") };
    assert_eq!((cached.revision.clone(), cached.cached.ram), (report.revision, made.bytes()));
    assert_eq!(cached.active_loads, 0);
    assert_eq!(node.client.list(Some(&s3_uri("m"))).await.unwrap().len(), 1);
    assert!(node.client.list(Some(&s3_uri("other"))).await.unwrap().is_empty());
    let stat = node.client.stat(&uri).await.unwrap();
    assert_eq!((stat.summary.cached.ram, stat.summary.cached.origin), (made.bytes(), 0));
    assert!(stat.manifest.objects().iter().all(|object| object.cached_ram_bytes == object.bytes));

    let before = origin.total().body_bytes;
    let warm = node.loads(&uri, &files(&made)).await;
    assert_eq!((warm.bytes_by_tier.ram, warm.bytes_by_tier.origin), (made.bytes(), 0));
    assert_eq!((warm.attempts, warm.origin_bytes), (0, 0));
    let listing = origin.total().body_bytes - before;
    assert!(listing < 4096, "{listing} bytes of listings and nothing else");

    let evicted = node.client.evict(&uri).await.unwrap();
    assert_eq!((evicted.checkpoints, evicted.freed_bytes), (1, made.bytes()));
    assert!(node.client.list(None).await.unwrap().is_empty());
    assert_eq!(node.metric("forebay_pinned_bytes{state=\"cached\"}").await, Some(0.0));
    assert_eq!(node.client.evict(&uri).await.unwrap().checkpoints, 0);
    node.loads(&uri, &files(&made)).await;
}

#[tokio::test]
async fn what_is_evicted_while_it_is_leased_stays_readable() {
    let origin = s3().await;
    let content = Content::synthetic(2, 4 * CHUNK);
    origin.put(BUCKET, "blob", content.clone());
    // A pool that holds the object once.
    let node = NodeSpec::of(&origin).ram("256KiB").start().await;
    let mut load = node.client.load(LoadRequest::new(s3_uri("blob"))).await.unwrap();
    let mut held = Vec::new();
    while let Some(chunk) = load.next_chunk().await.unwrap() {
        held.push(chunk);
    }
    let evicted = node.client.evict(s3_uri("blob")).await.unwrap();
    assert_eq!((evicted.freed_bytes, evicted.leased_bytes), (0, 4 * CHUNK));
    for chunk in &held {
        let run = chunk.extents().next().unwrap();
        assert!(content.matches(run.offset(), run.bytes()));
    }
    assert_eq!(node.metric("forebay_leases").await, Some(4.0));
    drop(held);
    load.finish().await.unwrap();
    node.settled().await;
    let free = node.metric("forebay_pinned_bytes{state=\"free\"}").await;
    assert_eq!(free, Some(262_144.0), "every slot came free");
    node.loads(&s3_uri("blob"), &[("blob".to_owned(), content)]).await;
}

#[tokio::test]
async fn a_prefetch_that_cannot_fit_is_refused() {
    let origin = s3().await;
    origin.put(BUCKET, "blob", Content::synthetic(3, 9 * CHUNK));
    let node = NodeSpec::of(&origin).ram("512KiB").start().await;
    let error = prefetch(&node.client, &s3_uri("blob")).await.unwrap_err();
    assert_ends(&error, Reason::RamExhausted, 5);
    assert!(error.failure().quota.is_some(), "{error}");
    assert_eq!(origin.counts("blob").gets, 0);
    node.settled().await;
    let error = prefetch(&node.client, &s3_uri("nothing")).await.unwrap_err();
    assert_ends(&error, Reason::ObjectNotFound, 3);
    let request = pb::PrefetchRequest { uri: s3_uri("blob"), tier: 2, ..Default::default() };
    let mut answer = forebay(&node.daemon).await.prefetch(request).await.unwrap().into_inner();
    assert_status(answer.message().await, Reason::NvmeOff);
    node.settled().await;
}

/// Waits until so many loads wait in the lane.
async fn queued(node: &Node, lane: &str, depth: u64) {
    let name = format!("admission.{lane}");
    until("the load waits", async || {
        let status = node.client.status().await.unwrap();
        let queue = status.queues.iter().find(|queue| queue.name == name).expect("a queue");
        (queue.depth == depth).then_some(())
    })
    .await;
}

/// An object of which a client that releases nothing never gets the last grant: its load keeps its
/// place.
fn longer_than_the_pool() -> Content {
    Content::synthetic(11, 5 << 20)
}

#[tokio::test]
async fn a_full_queue_refuses_and_says_when_to_come_again() {
    let origin = s3().await;
    let content = Content::synthetic(4, CHUNK);
    origin.put(BUCKET, "blob", content.clone());
    origin.put(BUCKET, "long", longer_than_the_pool());
    let spec = NodeSpec::of(&origin).set("max_loads", "1").set("max_queue", "1");
    let node = spec.start().await;
    let mut running = RawLoad::open(&node.daemon, opening(&s3_uri("long"))).await;
    running.hold(1).await;
    let waiting = async {
        let client = connect(&node.daemon).await;
        digests(&client, LoadRequest::new(s3_uri("blob"))).await.unwrap().0
    };
    let meanwhile = async {
        queued(&node, "interactive", 1).await;
        let error = failure(&node.client, LoadRequest::new(s3_uri("blob"))).await;
        assert_ends(&error, Reason::QueueFull, 5);
        assert!(error.failure().retry_after.is_some_and(|after| !after.is_zero()), "{error:?}");
        assert!(error.failure().quota.is_some(), "{error:?}");
        // Looking is not loading: it has a bound of its own.
        assert_eq!(node.client.stat(s3_uri("blob")).await.unwrap().summary.bytes, CHUNK);
        // The caller's mistake is told at once, whatever the load.
        let error = failure(&node.client, LoadRequest::new("nowhere")).await;
        assert_ends(&error, Reason::BadUri, 2);
        let rejected = "forebay_admission_rejected_total{reason=\"QUEUE_FULL\"}";
        assert_eq!(node.metric(rejected).await, Some(1.0));
        running.report().await.unwrap();
    };
    let (mapped, ()) = tokio::join!(waiting, meanwhile);
    assert_eq!(mapped, expected_digests(&[("blob".to_owned(), content)]));
    node.settled().await;
}

#[tokio::test]
async fn someone_who_waits_goes_before_a_prefetch() {
    let origin = s3().await;
    origin.put(BUCKET, "blob", Content::synthetic(5, CHUNK));
    origin.put(BUCKET, "long", longer_than_the_pool());
    let node = NodeSpec::of(&origin).set("max_loads", "1").start().await;
    let mut running = RawLoad::open(&node.daemon, opening(&s3_uri("long"))).await;
    running.hold(1).await;
    let client = connect(&node.daemon).await;
    let request = || LoadRequest::new(s3_uri("blob"));
    let ahead_of_need = async { digests(&client, request().lane(Lane::Prefetch)).await.unwrap().1 };
    let in_order = async {
        queued(&node, "prefetch", 1).await;
        let open = opening(&s3_uri("long"));
        let mut interactive = RawLoad::open(&node.daemon, open).await;
        queued(&node, "interactive", 1).await;
        running.report().await.unwrap();
        // It came later and holds the one place now.
        interactive.hold(1).await;
        queued(&node, "prefetch", 1).await;
        assert_eq!(interactive.report().await.unwrap().lane, "interactive");
    };
    let (report, ()) = tokio::join!(ahead_of_need, in_order);
    assert_eq!(report.lane, "prefetch");
    let queue = report.stages.iter().find(|stage| stage.stage == "admission").unwrap();
    assert!(!queue.queue.is_zero(), "it waited");
    node.settled().await;
}

#[tokio::test]
async fn a_load_that_leaves_the_queue_leaves_no_trace() {
    let origin = s3().await;
    origin.put(BUCKET, "blob", Content::synthetic(6, CHUNK));
    origin.put(BUCKET, "long", longer_than_the_pool());
    let node = NodeSpec::of(&origin).set("max_loads", "1").set("max_queue", "1").start().await;
    let mut running = RawLoad::open(&node.daemon, opening(&s3_uri("long"))).await;
    running.hold(1).await;
    for _ in 0..5 {
        let waiting = RawLoad::open(&node.daemon, opening(&s3_uri("blob"))).await;
        queued(&node, "interactive", 1).await;
        drop(waiting);
        queued(&node, "interactive", 0).await;
    }
    running.report().await.unwrap();
    node.settled().await;
}

/// Loads `key` and lets go of each chunk as it comes.
async fn read_chunks(node: &Node, key: &str) -> Report {
    let mut load = node.client.load(LoadRequest::new(s3_uri(key))).await.unwrap();
    while let Some(chunk) = load.next_chunk().await.unwrap() {
        chunk.release();
    }
    let report = load.finish().await.unwrap();
    assert_adds_up(&report);
    report
}

#[tokio::test]
async fn a_report_accounts_for_all_of_its_time() {
    let origin = s3().await;
    origin.put(BUCKET, "blob", Content::synthetic(7, 12 * CHUNK));
    origin.fault(FaultRule::new("blob", Fault::Drip { bytes_per_second: 256 << 10 }));
    let node = NodeSpec::of(&origin).set("connections", "4").start().await;
    // A machine that runs much else beside this test takes time from between two stages; not from
    // each of several loads.
    let mut reports = Vec::new();
    for _ in 0..5 {
        let report = read_chunks(&node, "blob").await;
        let is_accounted_for = report.unattributed <= report.wall / 100;
        reports.push(report);
        if is_accounted_for {
            break;
        }
        node.client.evict(s3_uri("blob")).await.unwrap();
    }
    let report = reports.last().unwrap();
    assert!(report.unattributed <= report.wall / 100, "{reports:#?}");
    let body = report.critical_path.iter().find(|step| step.stage == "body");
    let body = body.expect("the body is on the path").time;
    assert!(body > report.wall / 2, "a slow body is where the time went: {report:?}");
    assert!(report.time_to_first_chunk <= report.wall);
    let status = node.client.status().await.unwrap();
    assert_eq!(status.origins.len(), 1, "{status:?}");
    assert_eq!(status.origins[0].bytes, 12 * CHUNK * reports.len() as u64);
    assert!(status.loads.is_empty());
    node.settled().await;
}
