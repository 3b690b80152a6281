//! Clients that share, hoard, vanish and come back.

use std::io::{BufRead, BufReader, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use forebay_client::{Client, Endpoint, Failure, LoadRequest, Reason};
use forebay_proto::handoff::{SOCKET_NAME, encode};
use forebay_proto::pb;
use forebay_proto::pb::handoff_message::Event as Answer;
use forebay_shm::{recv_descriptor, send_descriptor};
use forebay_testkit::{Content, Fault, FaultRule, When, temp_dir};
use rustix::net::{
    AddressFamily, SocketAddrAny, SocketAddrUnix, SocketFlags, SocketType, accept, bind,
    getpeername, listen, socket_with,
};
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};

use crate::harness::{
    BUCKET, CHUNK, Node, NodeSpec, assert_ends, connect, digests, expected_digests, failure, read,
    s3, s3_uri, until,
};
use crate::raw::{RawLoad, opening};

/// Another process that loads `uri` and keeps what it is lent until it is killed.
pub(crate) struct Holder {
    child: Child,
    pub(crate) held: usize,
}

impl Holder {
    pub(crate) fn start(node: &Node, uri: &str) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "clients::a_child_that_holds_leases", "--nocapture"])
            .env("FOREBAY_E2E_SOCKET", node.daemon.socket())
            .env("FOREBAY_E2E_URI", uri)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let held = lines
            .map(|line| line.expect("the child speaks UTF-8"))
            .find_map(|line| line.split_once("holding ")?.1.parse().ok());
        Self { child, held: held.expect("the child holds something") }
    }

    /// Its handoff socket, by a descriptor of this process's own, as one has that it shares it
    /// with; none if the kernel does not allow that.
    fn handoff(&self, node: &Node) -> rustix::io::Result<OwnedFd> {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw).unwrap();
        let process = pidfd_open(pid, PidfdFlags::empty())?;
        let entries = std::fs::read_dir(format!("/proc/{}/fd", self.child.id())).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name());
        let numbers = names.filter_map(|name| name.to_str()?.parse().ok());
        let handoff = SocketAddrUnix::new(node.daemon.socket().with_file_name(SOCKET_NAME));
        let handoff = SocketAddrAny::from(handoff.unwrap());
        for number in numbers {
            let descriptor = pidfd_getfd(&process, number, PidfdGetfdFlags::empty())?;
            if getpeername(&descriptor).ok().flatten() == Some(handoff.clone()) {
                return Ok(descriptor);
            }
        }
        panic!("it has no handoff socket")
    }

    /// kill -9.
    pub(crate) fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

/// The child's side: holds half of the window, or all chunks where there are fewer.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_child_that_holds_leases() {
    let names = ["FOREBAY_E2E_SOCKET", "FOREBAY_E2E_URI"];
    let [Some(socket), Some(uri)] = names.map(std::env::var_os) else {
        println!("skipped: other tests start this one as a process of its own");
        return;
    };
    let endpoint = Endpoint::unix(socket.as_ref()).unwrap();
    let client = Client::connect(endpoint).await.unwrap();
    let request = LoadRequest::new(uri.to_str().unwrap());
    let mut load = client.load(request).await.unwrap();
    let opened = load.opened();
    let window = opened.window_bytes / opened.chunk_bytes as u64 / 2;
    let mut held = Vec::new();
    for _ in 0..opened.chunk_count.min(window) {
        held.push(load.next_chunk().await.unwrap().unwrap());
    }
    println!("\nholding {}", held.len());
    // The parent's end: nobody is left to kill this process.
    tokio::task::block_in_place(|| std::io::stdin().read_to_end(&mut Vec::new())).unwrap();
}

#[tokio::test]
async fn a_client_that_is_killed_gives_everything_back() {
    let origin = s3().await;
    // One that fits into the pool of eight slots, and one that streams through it.
    for chunks in [4, 32] {
        let content = Content::synthetic(chunks, chunks * CHUNK);
        origin.put(BUCKET, "blob", content.clone());
        let node = NodeSpec::of(&origin).ram("512KiB").start().await;
        let holder = Holder::start(&node, &s3_uri("blob"));
        assert_eq!(holder.held, 4);
        assert!(node.metric("forebay_leases").await.unwrap() >= 4.0);
        assert_eq!(node.metric("forebay_sessions").await, Some(1.0));
        holder.kill();
        node.settled().await;
        assert_eq!(node.metric("forebay_sessions").await, Some(0.0));
        // Every slot can be used again.
        origin.put(BUCKET, "other", Content::synthetic(9, 8 * CHUNK));
        let mut load = RawLoad::open(&node.daemon, opening(&s3_uri("other"))).await;
        assert_eq!(load.hold(8).await.len(), 8);
        drop(load);
        node.loads(&s3_uri("blob"), &[("blob".to_owned(), content)]).await;
    }
}

/// A pool of two hundred slots, and a client process that holds a hundred of them.
async fn a_hundred_leases() -> (forebay_testkit::S3Origin, Node, Content, Holder) {
    let origin = s3().await;
    let content = Content::synthetic(15, 100 * CHUNK);
    origin.put(BUCKET, "blob", content.clone());
    origin.put(BUCKET, "other", Content::synthetic(16, 300 * CHUNK));
    let node = NodeSpec::of(&origin).ram("12800KiB").start().await;
    let holder = Holder::start(&node, &s3_uri("blob"));
    assert_eq!(holder.held, 100);
    assert_eq!(node.metric("forebay_leases").await, Some(100.0));
    (origin, node, content, holder)
}

#[tokio::test]
async fn a_hundred_leases_of_a_killed_client_are_free_within_a_second() {
    let mut fastest = Duration::MAX;
    // This machine may have other things to do, but not each time.
    for _ in 0..3 {
        let (_origin, node, _, holder) = a_hundred_leases().await;
        let killed = tokio::time::Instant::now();
        holder.kill();
        until("nothing is lent", async || {
            (node.metric("forebay_leases").await? == 0.0).then_some(())
        })
        .await;
        fastest = fastest.min(killed.elapsed());
        node.settled().await;
        // Every slot can be used again.
        let mut load = RawLoad::open(&node.daemon, opening(&s3_uri("other"))).await;
        assert_eq!(load.hold(200).await.len(), 200);
        drop(load);
        node.settled().await;
    }
    assert!(fastest <= Duration::from_secs(1), "{fastest:?}");
}

#[tokio::test]
async fn memory_of_a_killed_client_is_not_reused_while_a_descriptor_of_it_lives() {
    let (_origin, node, content, holder) = a_hundred_leases().await;
    let shared = match holder.handoff(&node) {
        Ok(socket) => socket,
        Err(errno) => {
            println!("skipped: descriptors of another process cannot be had: {errno}");
            return;
        }
    };
    holder.kill();
    until("its stream has ended", async || {
        (node.metric("forebay_loads_active").await? == 0.0).then_some(())
    })
    .await;
    // Three hundred chunks go through the other hundred slots, twice.
    for _ in 0..2 {
        let load = LoadRequest::new(s3_uri("other"));
        assert_eq!(digests(&node.client, load).await.unwrap().1.bytes, 300 * CHUNK);
        assert_eq!(node.metric("forebay_leases").await, Some(100.0));
    }
    let (mapped, report) = digests(&node.client, LoadRequest::new(s3_uri("blob"))).await.unwrap();
    assert_eq!(mapped, expected_digests(&[("blob".to_owned(), content)]));
    assert_eq!(report.bytes_by_tier.ram, 100 * CHUNK, "every slot holds what it held");
    drop(shared);
    node.settled().await;
}

#[tokio::test]
async fn a_client_that_is_killed_while_bytes_are_on_their_way_stops_them() {
    let origin = s3().await;
    origin.put(BUCKET, "blob", Content::synthetic(1, 32 * CHUNK));
    origin.fault(FaultRule::new("blob", Fault::StallAfter(10)).when(When::After(6)));
    let node = NodeSpec::of(&origin).ram("512KiB").set("connections", "2").start().await;
    let holder = Holder::start(&node, &s3_uri("blob"));
    until("a part is on its way", async || {
        (node.metric("forebay_flights").await? > 0.0).then_some(())
    })
    .await;
    holder.kill();
    node.settled().await;
    until("the stalled connections are closed", async || {
        (origin.connections().open <= 1).then_some(())
    })
    .await;
}

#[tokio::test]
async fn two_clients_are_lent_the_same_slots() {
    let origin = s3().await;
    origin.put(BUCKET, "blob", Content::synthetic(2, 6 * CHUNK + 17));
    let node = NodeSpec::of(&origin).start().await;
    let mut loads = Vec::new();
    let mut places = Vec::new();
    for _ in 0..2 {
        let mut load = RawLoad::open(&node.daemon, opening(&s3_uri("blob"))).await;
        let mut held = load.hold(7).await;
        held.sort_by_key(|grant| grant.chunk_index);
        let place = |grant: &pb::Grant| (grant.segment_id, grant.slot, grant.generation);
        places.push(held.iter().map(place).collect::<Vec<_>>());
        loads.push(load);
    }
    assert_eq!(places[0], places[1]);
    assert_eq!(node.metric("forebay_leases").await, Some(14.0));
    assert_eq!(origin.counts("blob").gets, 7);
    let status = node.client.status().await.unwrap();
    assert_eq!(status.ram.leased_bytes, 7 * CHUNK, "a slot counts once");
    assert_eq!(status.loads.len(), 2);
    drop(loads);
    node.settled().await;
}

#[tokio::test]
async fn a_client_without_handoff_releases_on_its_stream() {
    let origin = s3().await;
    origin.put(BUCKET, "blob", Content::synthetic(3, 40 * CHUNK));
    let node = NodeSpec::of(&origin).ram("512KiB").start().await;
    let mut load = RawLoad::open(&node.daemon, opening(&s3_uri("blob"))).await;
    let mut chunks = Vec::new();
    while let Some(grant) = load.grant().await.unwrap() {
        // Twice: a release can be repeated.
        load.release(std::slice::from_ref(&grant)).await;
        load.release(std::slice::from_ref(&grant)).await;
        chunks.push(grant.chunk_index);
    }
    chunks.sort_unstable();
    assert_eq!(chunks, (0..40).collect::<Vec<_>>());
    let report = load.report().await.unwrap();
    assert_eq!((report.bytes, report.origin_bytes), (40 * CHUNK, 40 * CHUNK));
    assert!(report.peak_window_bytes <= 8 * CHUNK);
    node.settled().await;
    // One that goes without releasing anything.
    let mut load = RawLoad::open(&node.daemon, opening(&s3_uri("blob"))).await;
    load.hold(8).await;
    drop(load);
    node.settled().await;
}

#[tokio::test]
async fn a_client_that_holds_its_window_makes_no_progress() {
    let origin = s3().await;
    origin.put(BUCKET, "blob", Content::synthetic(4, 32 * CHUNK));
    let node = NodeSpec::of(&origin).ram("512KiB").set("no_progress", "1s").start().await;
    let load = RawLoad::open(&node.daemon, opening(&s3_uri("blob"))).await;
    let failure = load.failure().await;
    assert_eq!(failure.reason, Reason::NoProgress, "{failure}");
    assert_eq!(failure.kind().exit_code(), 4);
    assert!(failure.message.contains(&(8 * CHUNK).to_string()), "{failure}");
    assert!(!failure.stages.is_empty(), "where the time went");
    node.settled().await;
}

#[tokio::test]
async fn a_pool_that_is_held_is_refused_with_the_name_of_its_holder() {
    let origin = s3().await;
    origin.put(BUCKET, "held", Content::synthetic(5, 8 * CHUNK));
    origin.put(BUCKET, "blob", Content::synthetic(6, CHUNK));
    let node = NodeSpec::of(&origin).ram("512KiB").set("no_progress", "1s").start().await;
    let open = pb::LoadOpen { load_id: "hoarder".to_owned(), ..opening(&s3_uri("held")) };
    let mut hoarder = RawLoad::open(&node.daemon, open).await;
    // It has all it asked for, so it may keep it for as long as it lives.
    let held = hoarder.hold(8).await;
    assert!(hoarder.grant().await.unwrap().is_none());
    let failure = RawLoad::open(&node.daemon, opening(&s3_uri("blob"))).await.failure().await;
    assert_eq!(failure.reason, Reason::RamExhausted, "{failure}");
    assert_eq!(failure.kind().exit_code(), 5);
    assert!(failure.message.contains("hoarder"), "{failure}");
    assert!(failure.quota.is_some_and(|quota| quota.contains("load hoarder of uid")));
    assert!(failure.retry_after.is_some());
    // With one slot back there is room for one more load.
    hoarder.release(&held[..1]).await;
    let blob = Content::synthetic(6, CHUNK);
    let (mapped, _) = digests(&node.client, LoadRequest::new(s3_uri("blob"))).await.unwrap();
    assert_eq!(mapped, expected_digests(&[("blob".to_owned(), blob)]));
    hoarder.report().await.unwrap();
    node.settled().await;
}

#[tokio::test]
async fn the_same_load_id_attaches_to_the_same_revision() {
    let origin = s3().await;
    let old = Content::synthetic(7, 8 * CHUNK);
    let expected = expected_digests(&[("blob".to_owned(), old.clone())]);
    origin.put(BUCKET, "blob", old);
    let node = NodeSpec::of(&origin).start().await;
    let request = || LoadRequest::new(s3_uri("blob")).load_id("pod-7");
    let mut first = node.client.load(request()).await.unwrap();
    let held = first.next_chunk().await.unwrap().unwrap();
    until("everything is cached", async || {
        let status = node.client.status().await.unwrap();
        (status.loads[0].granted_bytes == 8 * CHUNK).then_some(())
    })
    .await;
    origin.replace(BUCKET, "blob", Content::synthetic(8, 8 * CHUNK));

    let client = connect(&node.daemon).await;
    let mut second = client.load(request()).await.unwrap();
    assert_eq!(second.opened().revision, first.opened().revision);
    // Whether it has seen its last grant or not.
    let superseded = first.finish().await.unwrap_err();
    assert_ends(&superseded, Reason::Superseded, 9);
    assert_eq!(read(&mut second).await.unwrap(), expected);
    drop(held);
    // A call that is refused does not end the load it would have replaced.
    let other = LoadRequest::new(s3_uri("there/is/something")).load_id("pod-7");
    assert_ends(&digests(&client, other.clone()).await.unwrap_err(), Reason::BadRequest, 2);
    assert_eq!(second.finish().await.unwrap().load_id, "pod-7");
    node.settled().await;

    // The load is answered: its id is free, and gets what there is now.
    let (mapped, _) = digests(&client, request()).await.unwrap();
    let new = Content::synthetic(8, 8 * CHUNK);
    assert_eq!(mapped, expected_digests(&[("blob".to_owned(), new)]));
    digests(&client, other).await.unwrap();
    node.settled().await;
}

#[tokio::test]
async fn what_is_not_cached_cannot_be_had_in_the_old_revision() {
    let origin = s3().await;
    let old = Content::synthetic(7, 8 * CHUNK);
    origin.put(BUCKET, "blob", old.clone());
    let node = NodeSpec::of(&origin).start().await;
    let request = || LoadRequest::new(s3_uri("blob")).load_id("pod-7");
    let mut first = node.client.load(request()).await.unwrap();
    let mut held = Vec::new();
    while let Some(chunk) = first.next_chunk().await.unwrap() {
        held.push(chunk);
    }
    origin.replace(BUCKET, "blob", Content::synthetic(8, 8 * CHUNK));
    node.client.evict(s3_uri("blob")).await.unwrap();

    let client = connect(&node.daemon).await;
    let mut second = client.load(request()).await.unwrap();
    assert_eq!(second.opened().revision, first.opened().revision);
    assert_ends(&second.next_chunk().await.unwrap_err(), Reason::RevisionChanged, 9);
    assert_ends(&first.finish().await.unwrap_err(), Reason::Superseded, 9);
    for chunk in &held {
        let run = chunk.extents().next().unwrap();
        assert!(old.matches(run.offset(), run.bytes()), "what is held stays as it was");
    }
    drop((held, second));
    node.settled().await;
}

#[tokio::test]
async fn a_load_that_is_opened_again_gets_the_pool_that_its_old_stream_holds() {
    let origin = s3().await;
    let blob = Content::synthetic(14, 5 << 20);
    origin.put(BUCKET, "blob", blob.clone());
    let node = NodeSpec::of(&origin).set("max_loads", "1").start().await;
    let again = || pb::LoadOpen { load_id: "pod-9".to_owned(), ..opening(&s3_uri("blob")) };
    let mut first = RawLoad::open(&node.daemon, again()).await;
    first.hold(8).await;
    // The one place is taken by the stream that this one replaces.
    let request = LoadRequest::new(s3_uri("blob")).load_id("pod-9");
    let (mapped, _) = digests(&node.client, request).await.unwrap();
    assert_eq!(mapped, expected_digests(&[("blob".to_owned(), blob)]));
    drop(first);
    node.settled().await;
}

#[tokio::test]
async fn clients_of_one_warm_checkpoint_share_its_slots_and_its_tokens() {
    // 48 of the pool's 64 slots: four clients that each paid for their own leases would need 192.
    let origin = s3().await;
    origin.put(BUCKET, "blob", Content::synthetic(12, 48 * CHUNK));
    let node = NodeSpec::of(&origin).set("no_progress", "2s").start().await;
    digests(&node.client, LoadRequest::new(s3_uri("blob"))).await.unwrap();
    let mut clients = Vec::new();
    for _ in 0..4 {
        let mut client = RawLoad::open(&node.daemon, opening(&s3_uri("blob"))).await;
        client.hold(48).await;
        clients.push(client);
    }
    let status = node.client.status().await.unwrap();
    assert_eq!(status.ram.leased_bytes, 48 * CHUNK, "a slot is lent once, to four");
    // And there is room for another checkpoint.
    origin.put(BUCKET, "other", Content::synthetic(13, 8 * CHUNK));
    digests(&node.client, LoadRequest::new(s3_uri("other"))).await.unwrap();
    for client in clients {
        assert_eq!(client.report().await.unwrap().bytes, 48 * CHUNK);
    }
    node.settled().await;
}

#[tokio::test]
async fn a_load_that_is_dropped_lets_go_of_its_connections() {
    let origin = s3().await;
    origin.put(BUCKET, "blob", Content::synthetic(10, 16 * CHUNK));
    origin.fault(FaultRule::new("blob", Fault::StallAfter(1)));
    let node = NodeSpec::of(&origin).start().await;
    let load = node.client.load(LoadRequest::new(s3_uri("blob"))).await.unwrap();
    until("parts are on their way", async || {
        (node.metric("forebay_flights").await? > 1.0).then_some(())
    })
    .await;
    drop(load);
    node.settled().await;
    until("no connection is left", async || (origin.connections().open == 0).then_some(())).await;
}

#[tokio::test]
async fn what_is_held_of_a_dropped_load_keeps_its_bytes() {
    let origin = s3().await;
    let content = Content::synthetic(12, 4 * CHUNK);
    origin.put(BUCKET, "held", content.clone());
    origin.put(BUCKET, "other", Content::synthetic(13, 32 * CHUNK));
    // Eight slots: the other load goes round all that are not held.
    let node = NodeSpec::of(&origin).ram("512KiB").start().await;
    let mut load = node.client.load(LoadRequest::new(s3_uri("held"))).await.unwrap();
    let held = load.next_chunk().await.unwrap().expect("a chunk");
    drop(load);
    for _ in 0..2 {
        read(&mut node.client.load(LoadRequest::new(s3_uri("other"))).await.unwrap())
            .await
            .unwrap();
    }
    let stored = content.to_bytes();
    for extent in held.extents() {
        let start = usize::try_from(extent.offset()).unwrap();
        assert!(stored[start..].starts_with(extent.bytes()), "the slot was given to others");
    }
    drop(held);
    node.settled().await;
}

#[tokio::test]
async fn bytes_that_someone_else_waits_for_are_fetched_on() {
    let origin = s3().await;
    let content = Content::synthetic(11, 4 * CHUNK);
    origin.put(BUCKET, "blob", content.clone());
    let late = origin.fault(FaultRule::new("blob", Fault::Delay(Duration::from_secs(1))));
    let node = NodeSpec::of(&origin).start().await;
    let request = || LoadRequest::new(s3_uri("blob"));
    // The first load leads every flight, and goes when the second has joined.
    let first = node.client.load(request()).await.unwrap();
    until("the flights are in the air", async || (late.matched() == 4).then_some(())).await;
    let second = connect(&node.daemon).await;
    let first_goes = async {
        until("both are planned", async || {
            let loads = node.client.status().await.unwrap().loads;
            let planned = loads.iter().filter(|load| load.total_bytes == 4 * CHUNK);
            (planned.count() == 2).then_some(())
        })
        .await;
        drop(first);
    };
    let ((), loaded) = tokio::join!(first_goes, digests(&second, request()));
    let (mapped, report) = loaded.unwrap();
    assert_eq!(mapped, expected_digests(&[("blob".to_owned(), content)]));
    assert_eq!(origin.counts("blob").gets, 4, "each byte is asked for once");
    assert_eq!(report.bytes_by_tier.origin, 4 * CHUNK);
    node.settled().await;
}

/// The daemon's socket beside a handoff socket that reads one hello and sends `answer`, if any.
/// What a client sees whose hello comes late.
async fn behind_a_slow_handoff(node: &Node, dir: &Path, answer: Option<Answer>) -> Client {
    std::os::unix::fs::symlink(node.daemon.socket(), dir.join("forebay.sock")).unwrap();
    let flags = SocketFlags::CLOEXEC;
    let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap();
    bind(&socket, &SocketAddrUnix::new(dir.join(SOCKET_NAME)).unwrap()).unwrap();
    listen(&socket, 8).unwrap();
    let answering = std::thread::Builder::new().spawn(move || {
        let mut open = Vec::new();
        while let Ok(connection) = accept(&socket) {
            recv_descriptor(connection.as_fd(), &mut [0; 4096]).unwrap();
            if let Some(answer) = &answer {
                send_descriptor(connection.as_fd(), &encode(answer.clone()), None).unwrap();
            }
            open.push(connection);
        }
    });
    drop(answering.unwrap());
    let endpoint = Endpoint::unix(&dir.join("forebay.sock")).unwrap();
    Client::connect(endpoint).await.unwrap()
}

#[tokio::test]
async fn a_load_that_ends_before_its_hello_was_read_says_why() {
    let origin = s3().await;
    origin.put(BUCKET, "blob", Content::synthetic(12, 8 * CHUNK));
    let other = Content::synthetic(13, 8 * CHUNK);
    origin.fault(FaultRule::new("blob", Fault::ReplaceObject(other)).nth(6));
    let node = NodeSpec::of(&origin).start().await;
    let dir = temp_dir();
    let reason = "the session is unknown: its socket has closed".to_owned();
    let refused = Answer::Refused(pb::Refused { reason });
    let client = behind_a_slow_handoff(&node, dir.path(), Some(refused)).await;
    let error = failure(&client, LoadRequest::new(s3_uri("blob"))).await;
    assert_ends(&error, Reason::RevisionChanged, 9);
    node.settled().await;
}

#[tokio::test]
async fn a_session_that_the_daemon_never_answered_is_not_used_again() {
    let origin = s3().await;
    origin.put(BUCKET, "empty", "");
    let node = NodeSpec::of(&origin).start().await;
    let dir = temp_dir();
    let client = behind_a_slow_handoff(&node, dir.path(), None).await;
    for _ in 0..3 {
        // The daemon forgets a session with its last load while nobody has joined it.
        let report = digests(&client, LoadRequest::new(s3_uri("empty"))).await.unwrap().1;
        assert_eq!(report.bytes, 0);
        until("the session is forgotten", async || {
            (node.metric("forebay_sessions").await? == 0.0).then_some(())
        })
        .await;
    }
    node.settled().await;
}

#[tokio::test]
async fn a_broken_conversation_is_refused() {
    let origin = s3().await;
    let node = NodeSpec::of(&origin).start().await;
    let uri = s3_uri("there/is/something");
    let near = Some(pb::placement::Near::Gpu("GPU-0".to_owned()));
    let bad = [
        pb::LoadOpen { load_id: "a b".to_owned(), ..opening(&uri) },
        pb::LoadOpen { lane: 77, ..opening(&uri) },
        pb::LoadOpen { session: vec![1; 16].into(), ..opening(&uri) },
        pb::LoadOpen { tensors: vec!["x".repeat(5000)], ..opening(&uri) },
        pb::LoadOpen { placement: Some(pb::Placement { near }), ..opening(&uri) },
    ];
    for open in bad {
        let failure = RawLoad::open(&node.daemon, open).await.failure().await;
        assert_eq!(failure.reason, Reason::BadRequest, "{failure}");
    }
    let mut client = crate::raw::forebay(&node.daemon).await;
    let release = pb::load_request::Event::Release(pb::Release { lease_ids: vec![1, 2] });
    let stream = tokio_stream::iter([pb::LoadRequest { event: Some(release) }]);
    let mut heard = client.load(stream).await.unwrap().into_inner();
    let failure = Failure::from_status(&heard.message().await.unwrap_err());
    assert_eq!(failure.reason, Reason::BadRequest, "{failure}");
    node.settled().await;
}
