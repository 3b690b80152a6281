//! The client against a daemon that speaks the real protocol: what it lends, how it gives back,
//! and what it makes of a daemon that fails.

mod fake;

use std::time::Duration;

use forebay_client::model::{
    BytesByTier, NvmeStatus, PrefetchEvent, TraceTrack, Verdict, VerifyEvent,
};
use forebay_client::{
    CallOptions, Client, Endpoint, ErrorKind, EvictRequest, Failure, KeepTier, Lane, Load,
    LoadRequest, PrefetchRequest, Reason, Tensor, TraceParent, blocking,
};
use forebay_proto::pb;
use futures::TryFutureExt;

use fake::{Fake, Fault, Script};

const CHUNK: usize = 16 << 10;

async fn connect(fake: &Fake) -> Client {
    let endpoint = Endpoint::parse(&fake.endpoint()).expect("the fake's endpoint");
    Client::connect(endpoint).await.expect("a running fake")
}

fn everything() -> LoadRequest {
    LoadRequest::new("fake://checkpoint/")
}

/// Small, empty and large objects; tensors in one chunk, over two, over many, empty, and packed.
fn checkpoint() -> Script {
    Script::of(&[("config.json", 100), ("empty", 0), ("a", 6 * CHUNK + 17), ("b", 3 * CHUNK)])
        .tensor("in-one", 2, 10..CHUNK - 5)
        .tensor("over-two", 2, CHUNK - 5..2 * CHUNK - 100)
        .tensor("over-many", 2, 2 * CHUNK - 100..6 * CHUNK)
        .tensor("none", 2, 50..50)
        .tensor("tail", 2, 6 * CHUNK..6 * CHUNK + 17)
        .tensor("other", 3, 0..3 * CHUNK)
        .tensor("small", 0, 1..99)
}

/// Seeds of the order of delivery, and slots.
fn orders_and_windows() -> impl Iterator<Item = (u64, u32)> {
    (0..20).flat_map(|seed| [1, 2, 3, 4, 16].map(|slots| (seed, slots)))
}

fn expected(tensor: &Tensor) -> Vec<u8> {
    let script = checkpoint();
    let entry = script.tensors.iter().find(|(name, ..)| name == tensor.name());
    let (_, object, range) = entry.expect("a tensor of the checkpoint").clone();
    script.objects[object].1[range].to_vec()
}

#[tokio::test]
async fn tensors_are_whole_whatever_the_order_and_the_window() {
    for (seed, slots) in orders_and_windows() {
        let fake = Fake::start(checkpoint().seed(seed).slots(slots));
        let mut load = connect(&fake).await.load(everything()).await.unwrap();
        let mut names = Vec::new();
        while let Some(tensor) = load.next_tensor().await.unwrap() {
            assert_eq!(tensor.bytes(), expected(&tensor), "{slots} {seed}");
            assert_eq!(tensor.shape(), [tensor.bytes().len() as u64]);
            names.push(tensor.name().to_owned());
        }
        names.sort();
        let all = ["in-one", "none", "other", "over-many", "over-two", "small", "tail"];
        assert_eq!(names, all, "{slots} {seed}");
        assert_eq!(load.finish().await.unwrap().bytes, load_bytes());
        fake.until_leased(0).await;
    }
}

fn load_bytes() -> u64 {
    checkpoint().objects.iter().map(|(_, bytes)| bytes.len() as u64).sum()
}

#[tokio::test]
async fn a_tensor_is_lent_if_half_the_window_holds_it_and_copied_if_not() {
    for (slots, lent) in [(1, 0), (4, 5), (16, 7)] {
        let fake = Fake::start(checkpoint().slots(slots));
        let mut load = connect(&fake).await.load(everything()).await.unwrap();
        let mut count = 0;
        while let Some(tensor) = load.next_tensor().await.unwrap() {
            count += usize::from(!tensor.is_copy() || tensor.bytes().is_empty() && slots > 1);
        }
        assert_eq!(count, lent, "{slots} slots");
    }
}

#[tokio::test]
async fn a_view_stays_readable_until_it_is_dropped() {
    let fake = Fake::start(checkpoint().slots(16));
    let mut load = connect(&fake).await.load(everything()).await.unwrap();
    let mut held = Vec::new();
    while let Some(tensor) = load.next_tensor().await.unwrap() {
        held.push(tensor);
    }
    let finish = load.finish();
    tokio::pin!(finish);
    tokio::select! {
        biased;
        report = &mut finish => panic!("finished with leases held: {report:?}"),
        () = fake.until_leased(11) => {}
    }
    for tensor in &held {
        assert_eq!(tensor.bytes(), expected(tensor));
    }
    drop(held);
    finish.await.unwrap();
    fake.until_leased(0).await;
    let seen = fake.seen();
    assert_eq!(seen.released_by_stream.len(), seen.granted);
    assert_eq!(seen.copy_spans, seen.granted);
    assert!(seen.released_by_handoff.is_empty());
}

#[tokio::test]
async fn only_the_tensors_asked_for_come() {
    let fake = Fake::start(checkpoint().slots(3));
    let client = connect(&fake).await;
    let request = everything().tensors(["in-one", "other"]);
    let mut load = client.load(request.clone()).await.unwrap();
    let mut names = Vec::new();
    while let Some(tensor) = load.next_tensor().await.unwrap() {
        names.push(tensor.name().to_owned());
    }
    names.sort();
    assert_eq!(names, ["in-one", "other"]);
    load.finish().await.unwrap();
    let mut load = client.load(request).await.unwrap();
    let error = load.next_object().await.unwrap_err();
    assert_eq!(error.reason(), Reason::BadRequest);
}

#[tokio::test]
async fn objects_are_whole_and_empty_ones_are_not_forgotten() {
    for (seed, slots) in [(1, 1), (2, 2), (3, 4), (4, 16)] {
        let fake = Fake::start(checkpoint().seed(seed).slots(slots));
        let client = connect(&fake).await;
        let mut load = client.load(everything()).await.unwrap();
        let mut keys = Vec::new();
        while let Some(object) = load.next_object().await.unwrap() {
            assert_eq!(object.bytes(), fake.object(object.index().0));
            assert_eq!(object.entry().unwrap().bytes, object.bytes().len() as u64);
            keys.push(object.key().to_owned());
        }
        keys.sort();
        assert_eq!(keys, ["a", "b", "config.json", "empty"]);
        load.finish().await.unwrap();
        let mut load = client.load(everything().objects(["b"])).await.unwrap();
        assert_eq!(load.selected_objects().count(), 1);
        assert_eq!(load.next_object().await.unwrap().unwrap().key(), "b");
        assert!(load.next_object().await.unwrap().is_none());
    }
}

#[tokio::test]
async fn pieces_of_an_object_come_in_order() {
    for (seed, slots) in orders_and_windows() {
        let fake = Fake::start(checkpoint().seed(seed).slots(slots));
        let mut load = connect(&fake).await.load(everything()).await.unwrap();
        let mut objects = vec![Vec::new(); 4];
        while let Some(piece) = load.next_piece().await.unwrap() {
            let object = &mut objects[piece.object().0];
            assert_eq!(piece.offset(), object.len() as u64);
            object.extend_from_slice(piece.bytes());
        }
        let all: Vec<Vec<u8>> = (0..4).map(|index| fake.object(index)).collect();
        assert!(objects == all, "{slots} {seed}");
        load.finish().await.unwrap();
    }
}

#[tokio::test]
async fn pieces_skip_what_was_not_asked_for() {
    for seed in 0..20 {
        let fake = Fake::start(checkpoint().seed(seed).slots(2));
        let client = connect(&fake).await;
        let mut load =
            client.load(everything().tensors(["tail", "over-two", "other"])).await.unwrap();
        let mut ends = [0; 4];
        let mut bytes = 0;
        while let Some(piece) = load.next_piece().await.unwrap() {
            let (index, offset) = (piece.object().0, piece.offset());
            assert!(offset >= ends[index], "in order");
            let start = usize::try_from(offset).unwrap();
            let end = start + piece.bytes().len();
            assert_eq!(piece.bytes(), &fake.object(index)[start..end]);
            ends[index] = end as u64;
            bytes += piece.bytes().len() as u64;
        }
        assert_eq!(load.finish().await.unwrap().bytes, bytes);
    }
}

#[tokio::test]
async fn chunks_come_as_they_are() {
    let fake = Fake::start(checkpoint());
    let mut load = connect(&fake).await.load(everything()).await.unwrap();
    let mut bytes = 0;
    let mut indexes = Vec::new();
    while let Some(chunk) = load.next_chunk().await.unwrap() {
        for extent in chunk.extents() {
            let start = usize::try_from(extent.offset()).unwrap();
            let object = fake.object(extent.object().0);
            assert_eq!(extent.bytes(), &object[start..start + extent.bytes().len()]);
            bytes += extent.bytes().len() as u64;
        }
        indexes.push(chunk.index().0);
    }
    assert_eq!(bytes, load_bytes());
    indexes.sort_unstable();
    assert_eq!(indexes, (0..11).collect::<Vec<_>>());
    let error = load.next_tensor().await.unwrap_err();
    assert_eq!(error.reason(), Reason::BadRequest);
}

#[tokio::test]
async fn a_second_load_reuses_the_session_and_its_segments() {
    let fake = Fake::start(checkpoint());
    let client = connect(&fake).await;
    for _ in 0..3 {
        let load = client.load(everything().lane(Lane::Prefetch).load_id("mine")).await.unwrap();
        assert_eq!(load.opened().load_id, "mine");
        load.finish().await.unwrap();
    }
    let seen = fake.seen();
    assert_eq!((seen.hellos, seen.segments_sent), (1, 2));
    assert!(seen.opens[0].session.is_empty());
    assert!(!seen.opens[1].session.is_empty());
    assert_eq!(seen.opens[1].session, seen.opens[2].session);
}

#[tokio::test]
async fn loads_run_side_by_side() {
    let fake = Fake::start(checkpoint().slots(16));
    let client = connect(&fake).await;
    client.load(everything()).await.unwrap().finish().await.unwrap();
    let read = async |client: Client| {
        let mut load = client.load(everything()).await.unwrap();
        while let Some(object) = load.next_object().await.unwrap() {
            assert_eq!(object.bytes(), fake.object(object.index().0));
        }
        load.finish().await.unwrap();
    };
    tokio::join!(read(client.clone()), read(client.clone()), read(client.clone()));
    assert_eq!(fake.seen().hellos, 1);
    fake.until_leased(0).await;
}

#[tokio::test]
async fn a_load_that_others_leave_one_slot_still_progresses() {
    let fake = Fake::start(checkpoint().slots(8));
    // By the window, four chunks could be lent at one time.
    let others = fake.occupy(7);
    let mut load = connect(&fake).await.load(everything().tensors(["other"])).await.unwrap();
    let tensor = load.next_tensor().await.unwrap().unwrap();
    assert_eq!(tensor.bytes(), expected(&tensor));
    drop(tensor);
    load.finish().await.unwrap();
    drop(others);
}

#[test]
fn a_daemon_restarted_between_two_blocking_calls_costs_nothing() {
    let first = Fake::start(checkpoint());
    let client = blocking::Client::connect_unix(&first.socket()).unwrap();
    client.load(everything()).unwrap().finish().unwrap();
    let dir = first.kill();
    // Nothing runs on the client's runtime between these calls.
    let second = Fake::start_in(checkpoint(), dir);
    let mut load = client.load(everything()).unwrap();
    while let Some(object) = load.next_object().unwrap() {
        assert_eq!(object.bytes(), second.object(object.index().0));
    }
    load.finish().unwrap();
    assert!(second.seen().opens[0].session.is_empty());
}

#[tokio::test]
async fn an_error_of_the_daemon_keeps_the_session_and_views_go_back_over_it() {
    let failure = Failure::new(Reason::RevisionChanged, "it changed").for_object("a");
    let fake = Fake::start(checkpoint().fault(Fault::FailAfter(3, failure.clone())));
    let client = connect(&fake).await;
    let mut load = client.load(everything()).await.unwrap();
    let held = load.next_chunk().await.unwrap().unwrap();
    let error = loop {
        match load.next_chunk().await {
            Ok(chunk) => drop(chunk.unwrap()),
            Err(error) => break error,
        }
    };
    assert_eq!(*error.failure(), failure);
    assert_eq!(load.next_chunk().await.unwrap_err(), error, "and it stays ended");
    // All but the one that is held, some of them for the second time.
    fake.until_leased(1).await;
    assert!(!fake.seen().released_by_handoff.is_empty());
    let extent = held.extents().next().unwrap();
    let start = usize::try_from(extent.offset()).unwrap();
    let object = fake.object(extent.object().0);
    assert_eq!(extent.bytes(), &object[start..start + extent.bytes().len()]);
    drop(load);
    held.release();
    fake.until_leased(0).await;

    fake.set_fault(Fault::None);
    client.load(everything()).await.unwrap().finish().await.unwrap();
    assert_eq!(fake.seen().hellos, 1, "the session is still good");
}

#[tokio::test]
async fn a_dropped_load_is_cancelled_and_nothing_stays_leased() {
    let fake = Fake::start(checkpoint().fault(Fault::StallAfter(4)));
    let client = connect(&fake).await;
    let mut load = client.load(everything()).await.unwrap();
    let held = load.next_chunk().await.unwrap().unwrap();
    // The others may be lent, on their way, or only granted: nobody knows.
    fake.until(|seen| seen.granted == 4).await;
    drop(load);
    fake.until(|seen| seen.streams_over == 1).await;
    assert!(!held.extents().next().unwrap().bytes().is_empty());
    drop(held);
    fake.until_leased(0).await;

    fake.set_fault(Fault::None);
    client.load(everything()).await.unwrap().finish().await.unwrap();
    assert_eq!(fake.seen().hellos, 2, "leases that only the daemon knew of ended with the session");
}

#[tokio::test]
async fn a_daemon_that_dies_is_unreachable_and_what_it_lent_stays_readable() {
    let fake = Fake::start(checkpoint().fault(Fault::StallAfter(2)));
    let client = connect(&fake).await;
    let mut load = client.load(everything()).await.unwrap();
    let held = load.next_chunk().await.unwrap().unwrap();
    let objects: Vec<Vec<u8>> = (0..4).map(|index| fake.object(index)).collect();
    fake.until(|seen| seen.granted == 2).await;
    let _dir = fake.kill();
    let error = loop {
        match load.next_chunk().await {
            Ok(chunk) => drop(chunk.unwrap()),
            Err(error) => break error,
        }
    };
    assert_eq!(error.reason(), Reason::DaemonUnreachable, "{error}");
    assert!(error.failure().retry_after.is_some(), "one that is restarted is soon back");
    let extent = held.extents().next().unwrap();
    let start = usize::try_from(extent.offset()).unwrap();
    let object = &objects[extent.object().0];
    assert_eq!(extent.bytes(), &object[start..start + extent.bytes().len()]);
    let error = client.status().await.unwrap_err();
    assert_eq!(error.reason(), Reason::DaemonUnreachable, "{error}");
}

#[tokio::test]
async fn no_daemon_is_unreachable_with_the_path_and_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("forebay.sock");
    let connect = || Client::connect(Endpoint::unix(&path).unwrap());
    let missing = connect().await.unwrap_err();
    assert_eq!(missing.reason(), Reason::DaemonUnreachable);
    assert!(missing.to_string().contains(path.to_str().unwrap()), "{missing}");
    assert!(missing.to_string().contains("start forebayd"), "{missing}");
    assert!(missing.failure().retry_after.is_some(), "it may be on its way");
    // A socket that its process left behind.
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    let refused = connect().await.unwrap_err();
    assert!(refused.to_string().contains("connection refused"), "{refused}");
    assert!(refused.failure().retry_after.is_some(), "it may be on its way");
    let tcp = Client::connect(Endpoint::parse("tcp://127.0.0.1:1").unwrap()).await.unwrap_err();
    assert_eq!(tcp.reason(), Reason::DaemonUnreachable);
}

#[tokio::test]
async fn a_daemon_that_breaks_the_protocol_is_an_internal_error() {
    for fault in [Fault::StaleGeneration, Fault::GrantTwice, Fault::ShortComplete, Fault::Unsealed]
    {
        let fake = Fake::start(checkpoint().fault(fault.clone()));
        let mut load = connect(&fake).await.load(everything()).await.unwrap();
        let error = loop {
            match load.next_tensor().await {
                Ok(tensor) => drop(tensor.unwrap()),
                Err(error) => break error,
            }
        };
        assert_eq!(error.kind(), ErrorKind::Internal, "{fault:?}: {error}");
        drop(load);
        fake.until_leased(0).await;
    }
}

#[tokio::test]
async fn a_refusal_is_told_as_it_is_and_harms_no_session() {
    let failure = Failure::new(Reason::QueueFull, "256 loads wait")
        .retry_in(Duration::from_secs(2))
        .with_quota("queue: 256");
    let fake = Fake::start(checkpoint());
    let client = connect(&fake).await;
    client.load(everything()).await.unwrap().finish().await.unwrap();
    fake.set_fault(Fault::Refuse(failure.clone()));
    let error = client.load(everything()).await.unwrap_err();
    assert_eq!(*error.failure(), failure);
    assert_eq!(*client.status().await.unwrap_err().failure(), failure);
    fake.set_fault(Fault::None);
    client.load(everything()).await.unwrap().finish().await.unwrap();
    assert_eq!(fake.seen().hellos, 1);
}

#[tokio::test]
async fn every_wait_ends_with_the_deadline() {
    let short = Duration::from_millis(50);
    for fault in [Fault::Silent, Fault::NoSegments, Fault::StallAfter(1)] {
        let fake = Fake::start(checkpoint().fault(fault.clone()));
        let client = connect(&fake).await;
        let loading = client.load(everything().deadline(short));
        let error = loading.and_then(Load::finish).await.unwrap_err();
        assert_eq!(error.reason(), Reason::Deadline, "{fault:?}: {error}");
        fake.until_leased(0).await;
    }
    let fake = Fake::start(checkpoint().fault(Fault::Silent));
    let options = CallOptions { deadline: Some(short), ..CallOptions::default() };
    let error = connect(&fake).await.with_options(options).status().await.unwrap_err();
    assert_eq!(error.reason(), Reason::Deadline);
}

#[tokio::test]
async fn a_daemon_that_refuses_for_overload_is_not_asked_for_all() {
    let fake = Fake::start(checkpoint());
    let client = connect(&fake).await;
    let failure = Failure::new(Reason::QueueFull, "256 loads wait");
    fake.set_fault(Fault::Refuse(failure.clone()));
    let mut held = 0;
    for _ in 0..50 {
        let error = client.load(everything()).await.unwrap_err();
        assert_eq!(error.reason(), Reason::QueueFull);
        held += usize::from(error.failure().message.contains("not asked"));
    }
    assert!(held > 0, "it was asked each time");
    let options = CallOptions { unthrottled: true, ..CallOptions::default() };
    let insistent = client.with_options(options);
    for _ in 0..50 {
        let error = insistent.load(everything()).await.unwrap_err();
        assert_eq!(*error.failure(), failure);
    }
}

#[tokio::test]
async fn headers_carry_the_deadline_and_the_trace() {
    let fake = Fake::start(checkpoint());
    let text = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let options = CallOptions {
        deadline: Some(Duration::from_secs(3600)),
        trace_parent: Some(TraceParent::parse(text).unwrap()),
        ..CallOptions::default()
    };
    let client = connect(&fake).await;
    let traced = client.with_options(options);
    traced.load(everything()).await.unwrap().finish().await.unwrap();
    traced
        .load(everything().deadline(Duration::from_secs(9)))
        .await
        .unwrap()
        .finish()
        .await
        .unwrap();
    client.load(everything()).await.unwrap().finish().await.unwrap();
    let seen = fake.seen();
    let [long, short, none] = seen.timeouts.as_slice() else { panic!("{seen:?}") };
    // 3600 s are 36e8 us: one digit too many.
    assert!(long.as_ref().unwrap().ends_with('m') && long.as_ref().unwrap().len() <= 9);
    assert!(short.as_ref().unwrap().ends_with('u') && short.as_ref().unwrap().len() <= 9);
    assert_eq!(*none, None);
    assert_eq!(seen.trace_parents, [Some(text.to_owned()), Some(text.to_owned()), None]);
}

#[tokio::test]
async fn a_deadline_that_has_passed_sends_nothing() {
    let fake = Fake::start(checkpoint());
    let client = connect(&fake).await;
    let error = client.load(everything().deadline(Duration::ZERO)).await.unwrap_err();
    assert_eq!(error.reason(), Reason::Deadline);
    assert!(fake.seen().opens.is_empty());
}

#[tokio::test]
async fn control_verbs_answer() {
    let fake = Fake::start(checkpoint());
    let client = connect(&fake).await;
    let stat = client.stat("s3://b/k/").await.unwrap();
    assert_eq!((stat.manifest.objects().len(), stat.manifest.tensors().len()), (4, 7));
    assert_eq!(stat.summary.bytes, load_bytes());
    assert_eq!(stat.manifest.objects()[2].cached_nvme_bytes, 3072);
    let listed = &client.list(None).await.unwrap()[0];
    assert_eq!(listed.idle, Duration::from_millis(1500));
    assert_eq!((listed.cached.nvme, listed.pinned), (2 << 20, true));
    let explained = client.explain(None).await.unwrap();
    assert_eq!(explained.load_id, "last-load");
    assert_eq!(explained.causes[0].time, Duration::from_millis(750));
    let trace = client.trace(Some("x")).await.unwrap();
    assert_eq!((trace.head.load_id.as_str(), trace.spans.len()), ("x", 3));
    assert_eq!(trace.spans[1].track, TraceTrack::Chunk(3));
    let capacity = client.capacity().await.unwrap();
    let origin = capacity.stages[0].measured.as_ref().unwrap();
    assert_eq!((origin.workers, origin.age), (Some(24), Duration::from_secs(7)));
    assert!(capacity.stages[1].measured.is_none() && capacity.loads[1].ceiling.is_none());
    let checks = client.doctor().await.unwrap();
    assert_eq!((checks.len(), checks[1].verdict), (2, Verdict::Warn));
    let status = client.status().await.unwrap();
    assert_eq!(status.version, "fake");
    let NvmeStatus { state, extents, engine, recovery, .. } = status.nvme;
    assert_eq!((state.as_str(), extents, recovery), ("recovering", 412, None));
    assert_eq!(engine.as_deref(), Some("threads"));
    let mut prefetch = client.prefetch(PrefetchRequest::new("s3://b/k/")).await.unwrap();
    let mut events = Vec::new();
    while let Some(event) = prefetch.next().await.unwrap() {
        events.push(event);
    }
    assert!(matches!(&events[..], [
        PrefetchEvent::Progress(start),
        PrefetchEvent::Progress(done),
        PrefetchEvent::Report(report),
    ] if start.done_bytes == 0 && done.done_bytes == report.bytes));
}

#[tokio::test]
async fn tiers_and_pins_are_asked_for() {
    let fake = Fake::start(checkpoint());
    let client = connect(&fake).await;
    let uri = "s3://b/k/";
    for request in [
        PrefetchRequest::new(uri),
        PrefetchRequest::new(uri).tier(KeepTier::Ram).pin(),
        PrefetchRequest::new(uri).tier(KeepTier::Nvme),
    ] {
        client.prefetch(request).await.unwrap();
    }
    let evicted = client.evict(uri).await.unwrap();
    assert_eq!((evicted.freed_bytes, evicted.nvme_freed_bytes), (2048, 4096));
    assert_eq!((evicted.leased_bytes, evicted.pinned_checkpoints), (1, 3));
    client.evict(EvictRequest::new(uri).tier(KeepTier::Ram)).await.unwrap();
    client.evict(EvictRequest::new(uri).tier(KeepTier::Nvme)).await.unwrap();
    let pinned = client.pin(uri).await.unwrap();
    assert_eq!((pinned.checkpoints, pinned.nvme_bytes, pinned.missing_bytes), (1, 2048, 512));
    assert_eq!(client.unpin(uri).await.unwrap().checkpoints, 2);

    let seen = fake.seen();
    let (none, ram, nvme) = (pb::Tier::Unspecified, pb::Tier::Ram, pb::Tier::Nvme);
    let asked: Vec<_> = seen.prefetches.iter().map(|asked| (asked.tier(), asked.pin)).collect();
    assert_eq!(asked, [(none, false), (ram, true), (nvme, false)]);
    let dropped: Vec<_> = seen.evictions.iter().map(pb::EvictRequest::tier).collect();
    assert_eq!(dropped, [none, ram, nvme]);
    assert!(seen.evictions.iter().all(|eviction| eviction.uri == uri));
    assert_eq!((seen.pins[0].uri.as_str(), seen.unpins[0].uri.as_str()), (uri, uri));
}

#[tokio::test]
async fn a_verification_ends_with_what_it_found_and_bad_bytes_are_no_error() {
    let bad = pb::BytesByTier { nvme: 7, ..Default::default() };
    let unreadable = pb::BytesByTier { ram: 5, ..Default::default() };
    let fake = Fake::start(checkpoint().fault(Fault::Decayed { bad, unreadable }));
    let mut verify = connect(&fake).await.verify("s3://b/k/").await.unwrap();
    let mut events = Vec::new();
    while let Some(event) = verify.next().await.unwrap() {
        events.push(event);
    }
    let [VerifyEvent::Progress(start), VerifyEvent::Progress(done), VerifyEvent::Summary(found)] =
        events[..]
    else {
        panic!("{events:?}")
    };
    assert_eq!((start.checked_bytes, done.checked_bytes), (0, done.total_bytes));
    assert_eq!((found.checked.cached(), found.bad.nvme, found.unreadable.ram), (4096, 7, 5));
    assert_eq!(verify.next().await.unwrap(), None);
    assert_eq!(fake.seen().verifications[0].uri, "s3://b/k/");
}

#[tokio::test]
async fn a_stream_that_ends_before_its_last_message_is_an_error() {
    let fake = Fake::start(checkpoint().fault(Fault::Unfinished));
    let client = connect(&fake).await;
    let mut prefetch = client.prefetch(PrefetchRequest::new("s3://b/k/")).await.unwrap();
    let mut verify = client.verify("s3://b/k/").await.unwrap();
    for _ in 0..2 {
        assert!(prefetch.next().await.unwrap().is_some());
        assert!(verify.next().await.unwrap().is_some());
    }
    for error in [prefetch.next().await.unwrap_err(), verify.next().await.unwrap_err()] {
        assert_eq!(error.reason(), Reason::Internal, "{error}");
    }
}

#[tokio::test]
async fn a_load_needs_the_unix_socket() {
    let fake = Fake::start(checkpoint());
    // The same daemon, as if over TCP: what counts is what the endpoint says.
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (socket, mut relay) = (fake.socket(), tokio::task::JoinSet::new());
    relay.spawn(async move {
        let (mut tcp, _) = listener.accept().await.unwrap();
        let mut unix = tokio::net::UnixStream::connect(socket).await.unwrap();
        tokio::io::copy_bidirectional(&mut tcp, &mut unix).await.ok();
    });
    let endpoint = Endpoint::parse(&format!("tcp://{address}")).unwrap();
    let client = Client::connect(endpoint).await.unwrap();
    assert_eq!(client.status().await.unwrap().version, "fake");
    let error = client.load(everything()).await.unwrap_err();
    assert_eq!(error.reason(), Reason::BadRequest);
}

#[test]
fn the_blocking_facade_does_the_same() {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let fake = Fake::start(checkpoint());
    let client = blocking::Client::connect_unix(&fake.socket()).unwrap();
    assert_eq!(client.status().unwrap().version, "fake");
    assert_eq!(client.stat("s3://b/k/").unwrap().summary.object_count, 4);
    assert_eq!(client.list(None).unwrap().len(), 1);
    assert_eq!(client.evict("s3://b/k/").unwrap().checkpoints, 1);
    let mut steps = 0;
    let request = PrefetchRequest::new("s3://b/k/");
    let report = client.prefetch(request, |_| steps += 1).unwrap();
    assert_eq!((report.bytes, steps), (load_bytes(), 3));
    assert_eq!(client.pin("s3://b/k/").unwrap().nvme_bytes, 2048);
    assert_eq!(client.unpin("s3://b/k/").unwrap().checkpoints, 2);
    let mut steps = 0;
    let summary = client.verify("s3://b/k/", |_| steps += 1).unwrap();
    assert_eq!((summary.checked.cached(), summary.bad, steps), (4096, BytesByTier::default(), 3));
    fake.set_fault(Fault::Unfinished);
    client.verify("s3://b/k/", |_| {}).unwrap_err();
    fake.set_fault(Fault::None);

    let mut load = client.load(everything()).unwrap();
    let mut bytes = 0;
    while let Some(object) = load.next_object().unwrap() {
        assert_eq!(object.bytes(), fake.object(object.index().0));
        bytes += object.bytes().len() as u64;
    }
    assert_eq!(load.finish().unwrap().bytes, bytes);

    // A cancellation reaches the daemon although nobody calls the client again.
    fake.set_fault(Fault::StallAfter(3));
    let mut load = client.load(everything()).unwrap();
    drop(load.next_chunk().unwrap());
    drop(load);
    runtime.block_on(fake.until(|seen| seen.streams_over == 2));
    runtime.block_on(fake.until_leased(0));
}
