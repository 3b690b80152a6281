//! Security domains: callers who share a node and no memory.

use std::collections::BTreeSet;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use forebay_client::model::DomainStatus;
use forebay_client::{
    Access, Client, ClientError, Endpoint, Lane, LoadRequest, PackRequest, PrefetchRequest, Reason,
};
use forebay_proto::handoff::{SOCKET_NAME, decode, encode};
use forebay_proto::pb;
use forebay_proto::pb::handoff_message::Event as Packet;
use forebay_proto::pb::load_response::Event;
use forebay_shm::{SegmentMap, recv_descriptor, send_descriptor};
use forebay_testkit::{Content, S3Origin, temp_dir};
use rustix::fs::{OFlags, SealFlags};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect as dial};
use sha2::{Digest, Sha256};
use tempfile::TempDir;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use crate::aliases;
use crate::canary;
use crate::command::{command, object, run, text};
use crate::harness::{
    BUCKET, CHUNK, Digests, Node, NodeSpec, assert_ends, digests, expected_digests, failure, s3,
    s3_uri,
};
use crate::raw::{forebay, opening};

pub(crate) const BLUE: &str = "blue-token-1f0c";
pub(crate) const RED: &str = "red-token-77aa";

/// A `[[domain]]` of whoever has the token.
pub(crate) fn block(name: &str, token: &str, more: &str) -> String {
    canary::keep(token);
    let hash: String = Sha256::digest(token).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("[[domain]]\nname = \"{name}\"\ntoken_sha256 = \"{hash}\"\n{more}\n")
}

pub(crate) fn configured(text: &str) -> (TempDir, PathBuf) {
    let dir = temp_dir();
    let path = dir.path().join("forebay.toml");
    std::fs::write(&path, text).unwrap();
    (dir, path)
}

/// A client with a token.
pub(crate) async fn with(node: &Node, token: &str) -> Client {
    let access = Access::new().token(token).unwrap();
    let endpoint = Endpoint::unix(&node.daemon.socket()).unwrap();
    Client::connect_with(endpoint, access).await.unwrap()
}

/// Two domains of one uid, told apart by their tokens, and an object.
async fn two(ram: &str, nvme: &str) -> (S3Origin, Node, Content, TempDir) {
    let origin = s3().await;
    let content = Content::synthetic(3, 24 * CHUNK + 17);
    origin.put(BUCKET, "m", content.clone());
    let (dir, path) = configured(&(block("blue", BLUE, "") + &block("red", RED, "")));
    let node = NodeSpec::of(&origin).ram(ram).nvme(nvme).config(&path).start().await;
    (origin, node, content, dir)
}

fn expected(content: &Content) -> Digests {
    expected_digests(&[("m".to_owned(), content.clone())])
}

/// A refusal that says nothing of what is here.
#[track_caller]
fn check(error: ClientError) {
    assert_ends(&error, Reason::TokenUnknown, 8);
    let said = format!("{error} {error:?}");
    for secret in ["blue", "red", "s3://", BLUE, "1f0d"] {
        assert!(!said.contains(secret), "{said}");
    }
}

#[tokio::test]
async fn who_gives_no_token_or_a_wrong_one_is_told_nothing() {
    let (origin, node, _content, _dir) = two("8MiB", "0").await;
    let nobody = Access::new();
    let wrong = Access::new().token("blue-token-1f0d").unwrap();
    for access in [nobody, wrong] {
        let endpoint = Endpoint::unix(&node.daemon.socket()).unwrap();
        let client = Client::connect_with(endpoint, access).await.unwrap();
        check(failure(&client, LoadRequest::new(s3_uri("m"))).await);
        check(client.stat(&s3_uri("m")).await.unwrap_err());
        check(client.list(None).await.unwrap_err());
        check(client.status().await.unwrap_err());
        check(client.doctor().await.unwrap_err());
        check(client.evict(&s3_uri("m")).await.unwrap_err());
    }
    assert_eq!(origin.total().requests(), 0);
    assert!(node.sum("forebay_callers_refused_total").await >= 12.0);
    let (log, metrics) = (node.daemon.log(), node.get("/metrics").await.1);
    for text in [log, metrics] {
        assert!(!text.contains("token-1f0"), "{text}");
    }
    node.settled().await;
}

#[tokio::test]
async fn domains_share_the_origin_and_no_memory() {
    let (origin, node, content, _dir) = two("8MiB", "0").await;
    let (blue, red) = (with(&node, BLUE).await, with(&node, RED).await);
    let request = |id: &str| LoadRequest::new(s3_uri("m")).load_id(id);
    let (mapped, first) = digests(&blue, request("of-blue")).await.unwrap();
    assert_eq!(mapped, expected(&content));
    assert_eq!(first.origin_bytes, content.len());

    // Until it loads something, another domain sees nothing.
    assert!(red.list(None).await.unwrap().is_empty());
    let status = red.status().await.unwrap();
    assert!(status.origins.is_empty() && status.loads.is_empty(), "{status:?}");
    assert_eq!(status.ram.cached_bytes, 0);
    for load_id in ["of-blue", ""] {
        let error = red.explain(Some(load_id).filter(|id| !id.is_empty())).await.unwrap_err();
        assert_eq!(error.reason(), Reason::LoadNotKept, "{error}");
    }
    assert_eq!(red.evict(&s3_uri("m")).await.unwrap().checkpoints, 0);

    let gets = origin.counts("m").gets;
    let (mapped, second) = digests(&red, request("of-red")).await.unwrap();
    assert_eq!(mapped, expected(&content));
    assert_eq!((second.origin_bytes, origin.counts("m").gets), (0, gets), "copied on this node");
    let both = "forebay_domain_pinned_bytes";
    for domain in ["blue", "red"] {
        let series = format!("{both}{{domain=\"{domain}\",state=\"cached\"}}");
        assert_eq!(node.metric(&series).await, Some((25 * CHUNK) as f64), "{series}");
    }
    // What one gives up the other keeps.
    assert_eq!(red.evict(&s3_uri("m")).await.unwrap().checkpoints, 1);
    let (_, again) = digests(&blue, request("again")).await.unwrap();
    assert_eq!(again.bytes_by_tier.ram, content.len());
    assert_eq!(blue.list(None).await.unwrap().len(), 1);
    node.settled().await;
}

#[tokio::test]
async fn two_that_load_at_once_ask_the_origin_once() {
    let (origin, node, content, _dir) = two("8MiB", "64MiB").await;
    let (blue, red) = (with(&node, BLUE).await, with(&node, RED).await);
    let load = |client| digests(client, LoadRequest::new(s3_uri("m")));
    let (of_blue, of_red) = tokio::join!(load(&blue), load(&red));
    for of in [of_blue, of_red] {
        assert_eq!(of.unwrap().0, expected(&content));
    }
    let counts = origin.counts("m");
    assert_eq!(counts.body_bytes, content.len(), "{counts:?}");
    node.settled().await;
}

/// A load of `uri` with a token, and everything that comes over its handoff socket.
struct Lent {
    socket: OwnedFd,
    session: Vec<u8>,
    _said: mpsc::Sender<pb::LoadRequest>,
    _heard: tonic::Streaming<pb::LoadResponse>,
}

async fn lent(node: &Node, token: &str) -> Lent {
    let (said, stream) = mpsc::channel(16);
    let open = pb::load_request::Event::Open(opening(&s3_uri("m")));
    said.send(pb::LoadRequest { event: Some(open) }).await.unwrap();
    let mut request = tonic::Request::new(ReceiverStream::new(stream));
    let value = format!("Bearer {token}").parse().unwrap();
    request.metadata_mut().insert("authorization", value);
    let mut client = forebay(&node.daemon).await;
    let mut heard = client.load(request).await.unwrap().into_inner();
    let first = heard.message().await.unwrap().unwrap().event;
    let Some(Event::Opened(opened)) = first else { panic!("{first:?}") };
    let session = opened.session.to_vec();
    Lent { socket: handoff(node), session, _said: said, _heard: heard }
}

fn handoff(node: &Node) -> OwnedFd {
    let path = node.daemon.socket().with_file_name(SOCKET_NAME);
    let flags = SocketFlags::CLOEXEC;
    let socket =
        rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap();
    dial(&socket, &SocketAddrUnix::new(path).unwrap()).unwrap();
    socket
}

/// Says which session it is; what comes back.
fn hello(socket: &OwnedFd, session: &[u8]) -> (Packet, Option<OwnedFd>) {
    let hello = pb::Hello { session: session.to_vec().into(), retires: true };
    send_descriptor(socket.as_fd(), &encode(Packet::Hello(hello)), None).unwrap();
    let mut packet = [0; 4096];
    let (length, descriptor) = recv_descriptor(socket.as_fd(), &mut packet).unwrap();
    (decode(&packet[..length]).unwrap(), descriptor)
}

#[tokio::test]
async fn the_socket_passes_only_segments_of_the_callers_domain() {
    let (_origin, node, _content, _dir) = two("8MiB", "0").await;
    let mut seen = Vec::new();
    for (token, domain) in [(BLUE, 0), (RED, 1)] {
        let lent = lent(&node, token).await;
        let (packet, descriptor) = hello(&lent.socket, &lent.session);
        let Packet::Segment(told) = packet else { panic!("{packet:?}") };
        let descriptor = descriptor.expect("a segment's descriptor");
        let map = SegmentMap::open(descriptor.try_clone().unwrap()).unwrap();
        assert_eq!((map.domain(), map.id().0), (domain, told.segment_id));
        // Memory that can be read and never written, nor made another size: by its seals, however
        // the file is opened again, and whoever does.
        let file = std::fs::File::from(descriptor);
        file.set_len(0).unwrap_err();
        std::os::unix::fs::FileExt::write_at(&file, b"x", 0).unwrap_err();
        let seals = rustix::fs::fcntl_get_seals(&file).unwrap();
        let wanted =
            SealFlags::GROW | SealFlags::SHRINK | SealFlags::FUTURE_WRITE | SealFlags::SEAL;
        assert!(seals.contains(wanted), "{seals:?}");
        let flags = rustix::fs::fcntl_getfl(&file).unwrap();
        assert!(!flags.intersects(OFlags::WRONLY | OFlags::RDWR), "{flags:?}");
        let again = format!("/proc/self/fd/{}", file.as_raw_fd());
        if let Ok(again) = std::fs::OpenOptions::new().write(true).open(again) {
            std::os::unix::fs::FileExt::write_at(&again, b"x", 0).unwrap_err();
            again.set_len(0).unwrap_err();
        }
        seen.push((told.segment_id, inode(&file)));
    }
    assert!(seen[0].0 != seen[1].0 && seen[0].1 != seen[1].1, "{seen:?}");
    // A session that is not known, or is another's guess, gets nothing.
    for guess in [vec![0; 16], Vec::new(), vec![7; 4000]] {
        let (packet, descriptor) = hello(&handoff(&node), &guess);
        let refused =
            matches!(&packet, Packet::Refused(refused) if refused.reason.contains("unknown"));
        assert!(refused && descriptor.is_none(), "{packet:?}");
    }
    node.settled().await;
}

fn inode(file: &std::fs::File) -> u64 {
    std::os::unix::fs::MetadataExt::ino(&file.metadata().unwrap())
}

#[tokio::test]
async fn what_a_domain_may_load_and_in_which_lane() {
    let origin = s3().await;
    for key in ["a/x", "ab/x", "b/x"] {
        origin.put(BUCKET, key, Content::synthetic(9, CHUNK));
    }
    let more = format!("uri_prefixes = [\"s3://{BUCKET}/a\"]\nlanes = [\"prefetch\"]");
    let text = block("blue", BLUE, &more) + &block("red", RED, "");
    let (_dir, path) = configured(&text);
    let node = NodeSpec::of(&origin).ram("8MiB").nvme("64MiB").config(&path).start().await;
    let (blue, red) = (with(&node, BLUE).await, with(&node, RED).await);
    for uri in ["ab/x", "b/x", "", "a/../b/x", "b/"].map(s3_uri) {
        let dots = uri.contains("..");
        let reason = if dots { Reason::BadUri } else { Reason::UriNotAllowed };
        let code = if dots { 2 } else { 8 };
        assert_ends(&failure(&blue, LoadRequest::new(&uri)).await, reason, code);
        assert_ends(&prefetched(&blue, &uri).await.unwrap_err(), reason, code);
        assert_ends(&blue.stat(&uri).await.unwrap_err(), reason, code);
        for (from, to) in [(uri.clone(), s3_uri("a/p/")), (s3_uri("a/"), uri.clone())] {
            assert_ends(&packed(&blue, from, to).await.unwrap_err(), reason, code);
        }
    }
    assert_eq!(origin.total().requests(), 0, "nothing was asked for");
    let lane = LoadRequest::new(s3_uri("a/x"));
    assert_ends(&failure(&blue, lane.clone()).await, Reason::LaneNotAllowed, 8);
    digests(&blue, lane.lane(Lane::Prefetch)).await.unwrap();
    prefetched(&blue, &s3_uri("a/x")).await.unwrap();
    prefetched(&red, &s3_uri("b/x")).await.unwrap();
    let listed = |list: Vec<forebay_client::model::CachedCheckpoint>| {
        list.into_iter().map(|one| one.uri).collect::<Vec<_>>()
    };
    assert_eq!(listed(blue.list(None).await.unwrap()), [s3_uri("a/x")]);
    assert_eq!(listed(red.list(None).await.unwrap()), [s3_uri("b/x")]);
    // What is stored on NVMe can be given up by who may load it, and by nobody else.
    assert_eq!(red.evict(&format!("s3://{BUCKET}")).await.unwrap().checkpoints, 1);
    assert_eq!(listed(blue.list(None).await.unwrap()), [s3_uri("a/x")]);
    node.settled().await;
}

async fn packed(client: &Client, from: String, to: String) -> Result<(), ClientError> {
    let mut pack = client.pack(PackRequest::new(from, to)).await?;
    while pack.next().await?.is_some() {}
    Ok(())
}

async fn prefetched(client: &Client, uri: &str) -> Result<(), ClientError> {
    let mut prefetch = client.prefetch(PrefetchRequest::new(uri)).await?;
    while prefetch.next().await?.is_some() {}
    Ok(())
}

#[tokio::test]
async fn only_the_domain_that_set_a_name_may_change_it() {
    let (origin, node, _content, _dir) = two("8MiB", "64MiB").await;
    let next = Content::synthetic(4, CHUNK);
    origin.put(BUCKET, "n", next.clone());
    let (blue, red) = (with(&node, BLUE).await, with(&node, RED).await);
    for object in ["m", "n"] {
        aliases::set(&blue, "prod", &s3_uri(object)).await.unwrap();
    }
    // Whoever may load what it stands for may do so by the name, and see it.
    let (mapped, _) = digests(&red, LoadRequest::new("prod")).await.unwrap();
    assert_eq!(mapped, expected_digests(&[("n".to_owned(), next)]));
    assert_eq!(red.aliases(Some("prod")).await.unwrap().len(), 1);
    for error in [
        red.rollback("prod").await.unwrap_err(),
        red.remove_alias("prod").await.unwrap_err(),
        aliases::set(&red, "prod", &s3_uri("m")).await.unwrap_err(),
    ] {
        assert_ends(&error, Reason::UriNotAllowed, 8);
        assert!(!error.to_string().contains("blue"), "{error}");
    }
    let stands_for =
        async |client: &Client| client.aliases(Some("prod")).await.unwrap().remove(0).current.uri;
    assert_eq!(stands_for(&blue).await, s3_uri("n"));
    blue.rollback("prod").await.unwrap();
    assert_eq!(stands_for(&red).await, s3_uri("m"));
    assert_eq!(blue.remove_alias("prod").await.unwrap(), 2);
    aliases::set(&red, "prod", &s3_uri("n")).await.unwrap();
    assert_ends(&blue.rollback("prod").await.unwrap_err(), Reason::UriNotAllowed, 8);
    node.settled().await;
}

#[tokio::test]
async fn a_domain_stays_within_its_quota() {
    let origin = s3().await;
    origin.put(BUCKET, "m", Content::synthetic(4, 64 * CHUNK));
    let text = block("small", BLUE, "ram = \"1MiB\"") + &block("large", RED, "");
    let (_dir, path) = configured(&text);
    let node = NodeSpec::of(&origin).ram("8MiB").config(&path).start().await;
    let small = with(&node, BLUE).await;
    assert_eq!(small.status().await.unwrap().ram.budget_bytes, 1 << 20);
    let content = Content::synthetic(4, 64 * CHUNK);
    let streamed = digests(&small, LoadRequest::new(s3_uri("m"))).await.unwrap().0;
    assert_eq!(streamed, expected(&content), "more than it has streams through");
    let mut resize = small.resize_ram(2 << 20).await.unwrap();
    assert_eq!(resize.next().await.unwrap_err().reason(), Reason::BadRequest);
    let mut resize = small.resize_ram(512 << 10).await.unwrap();
    while resize.next().await.unwrap().expect("a report").into_report().is_none() {}
    let sums = "forebay_domain_ram_budget_bytes";
    assert_eq!(node.metric(&format!("{sums}{{domain=\"small\"}}")).await, Some(524_288.0));
    assert_eq!(node.metric(&format!("{sums}{{domain=\"large\"}}")).await, Some(7_340_032.0));
    node.settled().await;
}

#[test]
fn the_command_takes_a_token_from_a_file_or_a_variable() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let (_origin, node, _content, dir) = runtime.block_on(two("8MiB", "0"));
    let file = dir.path().join("token");
    std::fs::write(&file, format!("{RED}\n")).unwrap();
    let run = |token: Option<&str>, args: &[&str]| {
        let mut command = command(&node);
        command.envs(token.map(|token| ("FOREBAY_TOKEN", token)));
        command.args(args).output().unwrap()
    };
    let file = file.to_str().unwrap();
    for (token, args, code) in [
        (None, vec!["ls"], 8),
        (Some(RED), vec!["ls"], 0),
        (Some("wrong"), vec!["ls"], 8),
        (None, vec!["ls", "--token-file", file], 0),
        (Some("wrong"), vec!["ls", "--token-file", file], 0),
        (None, vec!["ls", "--token-file", "/no/such/file"], 1),
    ] {
        let ran = run(token, &args);
        assert_eq!(ran.status.code(), Some(code), "{args:?} {ran:?}");
        let said = format!("{}{}", text(&ran.stdout), text(&ran.stderr));
        assert!(!said.contains(RED) && !said.contains("wrong"), "{said}");
        assert_eq!(code == 8, said.contains("TOKEN_UNKNOWN"), "{said}");
    }
    drop(runtime);
}

/// The command, run by nobody.
fn as_nobody(node: &Node, args: &[&str]) -> std::process::Output {
    use std::os::unix::process::CommandExt;

    let mut command = command(node);
    command.uid(65_534).gid(65_534).args(args);
    command.output().unwrap()
}

/// Lets everybody reach the sockets, as if their modes were no wall.
pub(crate) fn open_to_all(node: &Node) {
    use std::os::unix::fs::PermissionsExt;

    for path in node.daemon.socket().ancestors().take(3).collect::<Vec<&Path>>() {
        if path.starts_with(node.daemon.dir()) {
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o777)).unwrap();
        }
    }
    let handoff = node.daemon.socket().with_file_name(SOCKET_NAME);
    std::fs::set_permissions(handoff, std::fs::Permissions::from_mode(0o777)).unwrap();
}

/// What a process of nobody gets from the socket that passes memory, if it says hello: Python's
/// answer, so that nothing of ours is in the way.
fn handoff_as_nobody(node: &Node) -> Option<std::process::Output> {
    use std::os::unix::process::CommandExt;

    let script = "import socket, sys\n\
        s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)\n\
        s.settimeout(10)\n\
        try:\n    s.connect(sys.argv[1])\n    s.send(bytes.fromhex(sys.argv[2]))\n\
        except (PermissionError, BrokenPipeError, ConnectionResetError) as e:\n\
            \x20   print(type(e).__name__); sys.exit()\n\
        try:\n    data, fds, _, _ = socket.recv_fds(s, 4096, 4)\n\
        except ConnectionResetError:\n    data, fds = b'', []\n\
        print(len(data), len(fds))\n";
    let hello = encode(Packet::Hello(pb::Hello { session: vec![0; 16].into(), retires: true }));
    let hello: String = hello.iter().map(|byte| format!("{byte:02x}")).collect();
    let mut python = std::process::Command::new("python3");
    python.arg("-c").arg(script).arg(node.daemon.socket().with_file_name(SOCKET_NAME)).arg(hello);
    python.uid(65_534).gid(65_534).current_dir("/").env_clear().output().ok()
}

#[tokio::test]
async fn nobody_is_refused_and_learns_nothing() {
    if !rustix::process::geteuid().is_root() {
        println!("skipped: only root can run a command as somebody else");
        return;
    }
    let origin = s3().await;
    origin.put(BUCKET, "m", Content::synthetic(3, CHUNK));
    let node = NodeSpec::of(&origin).start().await;
    let (socket, handoff) =
        (node.daemon.socket(), node.daemon.socket().with_file_name(SOCKET_NAME));
    for path in [&socket, &handoff] {
        use std::os::unix::fs::PermissionsExt;
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(path), 0o660);
        assert_eq!(mode(path.parent().unwrap()), 0o750);
    }
    digests(&node.client, LoadRequest::new(s3_uri("m")).load_id("mine")).await.unwrap();
    let uri = s3_uri("m");
    let verbs: [&[&str]; 16] = [
        &["ls"],
        &["status"],
        &["stat", &uri],
        &["load", &uri],
        &["prefetch", &uri],
        &["get", &uri, "/tmp/nobody-gets-this"],
        &["pin", &uri],
        &["evict", &uri],
        &["verify", &uri],
        &["pack", &uri, "s3://models/packed/"],
        &["alias", "ls"],
        &["alias", "set", "name", &uri],
        &["resize", "--ram", "1MiB"],
        &["explain", "mine"],
        &["capacity"],
        &["trace", "mine", "-o", "-"],
    ];
    let requests = origin.total().requests();
    // The folder is the first wall: nobody does not get as far as the socket.
    let refused = as_nobody(&node, &["status"]);
    assert_eq!(refused.status.code(), Some(8), "{refused:?}");
    assert!(text(&refused.stderr).contains("no permission to open the socket"), "{refused:?}");
    assert_eq!(node.sum("forebay_callers_refused_total").await, 0.0);

    // The kernel's word is the second.
    open_to_all(&node);
    for verb in verbs {
        let refused = as_nobody(&node, verb);
        assert_eq!(refused.status.code(), Some(8), "{verb:?} {refused:?}");
        let said = text(&refused.stderr);
        assert!(said.contains("UID_NOT_ALLOWED") && !said.contains("revision"), "{said}");
        assert!(refused.stdout.is_empty(), "{refused:?}");
    }
    // Its own checks, and that it may not call; nothing that the daemon knows.
    let checked = as_nobody(&node, &["doctor"]);
    let said = format!("{}{}", text(&checked.stdout), text(&checked.stderr));
    assert!(said.contains("UID_NOT_ALLOWED") || checked.status.code() == Some(8), "{checked:?}");
    assert!(!said.contains(BUCKET) && !said.contains("credentials"), "{said}");
    match handoff_as_nobody(&node) {
        None => println!("skipped in part: there is no python3"),
        Some(output) => {
            assert!(output.status.success(), "{output:?}");
            let descriptors = text(&output.stdout).split_whitespace().nth(1);
            assert!(matches!(descriptors, None | Some("0")), "{output:?}");
        }
    }
    assert_eq!(origin.total().requests(), requests);
    node.settled().await;
}

#[tokio::test]
async fn a_uid_gets_segments_of_its_own_domain() {
    if !rustix::process::geteuid().is_root() {
        println!("skipped: only root can run a command as somebody else");
        return;
    }
    let origin = s3().await;
    let content = Content::synthetic(3, 8 * CHUNK);
    origin.put(BUCKET, "m", content.clone());
    let domains =
        "[[domain]]\nname = \"ops\"\nuids = [0]\n[[domain]]\nname = \"nobody\"\nuids = [65534]\n";
    let (_dir, path) = configured(domains);
    let node = NodeSpec::of(&origin).ram("8MiB").config(&path).start().await;
    let mapped = digests(&node.client, LoadRequest::new(s3_uri("m"))).await.unwrap().0;
    assert_eq!(mapped, expected(&content));
    open_to_all(&node);
    let loaded = as_nobody(&node, &["load", &s3_uri("m"), "--digest"]);
    assert_eq!(loaded.status.code(), Some(0), "{loaded:?}");
    assert!(text(&loaded.stdout).contains(&content.sha256()), "{loaded:?}");
    assert_eq!(origin.counts("m").body_bytes, content.len());
    let cached = "forebay_domain_pinned_bytes";
    for domain in ["ops", "nobody"] {
        let series = format!("{cached}{{domain=\"{domain}\",state=\"cached\"}}");
        assert_eq!(node.metric(&series).await, Some((8 * CHUNK) as f64));
    }
    node.settled().await;
}

/// How many keys and callers there are for [`callers_cannot_make_series`].
fn names() -> usize {
    let slow = std::env::var_os("FOREBAY_SLOW_TESTS").is_some_and(|value| value == "1");
    let names = if slow { 100_000 } else { 300 };
    println!("{names} keys (100000 with FOREBAY_SLOW_TESTS=1)");
    names
}

/// What is exposed, but for what the clock alone makes: when the machine and the runtime are looked
/// at.
async fn series(node: &Node) -> BTreeSet<String> {
    let exposition = node.get("/metrics").await.1;
    // The buckets of a histogram are one.
    let named = |line: &str| {
        let name = line.rsplit_once(' ')?.0;
        let bucket = name.find(",le=\"").or_else(|| name.find("{le=\""));
        Some(name[..bucket.unwrap_or(name.len())].to_owned())
    };
    // When the machine and the runtime are looked at is up to the clock, and whether the kernel
    // throttles the daemon is up to the machine.
    let by_clock = ["forebay_evidence_look_seconds", "forebay_runtime_lag_seconds"];
    let by_clock = |name: &String| {
        by_clock.iter().any(|clock| name.starts_with(clock)) || name.contains("\"cpu_throttle\"")
    };
    let lines = exposition.lines().filter(|line| !line.starts_with('#'));
    lines.filter_map(named).filter(|name| !by_clock(name)).collect()
}

/// Somebody who asks for one key after the other: every other one is there. Each load has an id and
/// a class of its own, and each call a session, and a token is guessed for each.
async fn ask(node: &Node, origin: &S3Origin, (first, step, last): (usize, usize, usize)) {
    let mut blue = with(node, BLUE).await;
    for n in (first..last).step_by(step) {
        let key = format!("no/such/{n}");
        if n % 200 < step {
            blue = with(node, BLUE).await;
            let stranger = with(node, &format!("guess-{n}")).await;
            assert_eq!(stranger.list(None).await.unwrap_err().reason(), Reason::TokenUnknown);
            blue.list(Some(&s3_uri(&format!("x{n}")))).await.unwrap();
        }
        let request = LoadRequest::new(s3_uri(&key));
        let request = request.load_id(format!("load-{n}")).workload(format!("class-{n}"));
        if n % 2 == 0 {
            origin.put(BUCKET, &key, Content::synthetic(n as u64, 64));
            digests(&blue, request).await.unwrap();
        } else {
            let error = failure(&blue, request).await;
            assert_eq!(error.reason(), Reason::ObjectNotFound, "{error}");
        }
    }
}

/// Names that callers choose are never the value of a label: whatever they send, there are no more
/// series than before.
#[tokio::test]
async fn callers_cannot_make_series() {
    const CALLERS: usize = 8;
    const FIRST: usize = 24;
    let (origin, node, _content, _dir) = two("8MiB", "64MiB").await;
    // Every kind of event has happened then; loads of another length fill other buckets only.
    ask(&node, &origin, (0, 1, FIRST)).await;
    let (before, resident) = (series(&node).await, node.daemon.resident_bytes().unwrap());
    let names = names();
    let asking = (0..CALLERS).map(|n| ask(&node, &origin, (FIRST + n, CALLERS, names)));
    futures::future::join_all(asking).await;
    let after = series(&node).await;
    let more: Vec<_> = after.difference(&before).collect();
    println!(
        "{} series before and {} after; resident {} KiB before and {} KiB after",
        before.len(),
        after.len(),
        resident >> 10,
        node.daemon.resident_bytes().unwrap() >> 10
    );
    // Over so many loads something happens for the first time that has a series: an eviction, a
    // retry, a step of a limiter. A name that was a label would make one for each.
    let most = if names > 1000 { names / 200 } else { names / 10 };
    assert!(more.len() <= most, "{more:?}");
    let exposition = node.get("/metrics").await.1;
    for name in ["load-", "class-", "guess-", "no/such", "s3://"] {
        assert!(!exposition.contains(name), "{name}");
    }
    for label in ["uid", "pid", "session", "load_id", "key", "uri", "url", "object", "token"] {
        let is_label = |before: &str| exposition.contains(&format!("{before}{label}=\""));
        assert!(!is_label("{") && !is_label(","), "{label}");
    }
    node.settled().await;
}

#[tokio::test]
async fn status_names_the_callers_domain_and_no_other() {
    let origin = s3().await;
    origin.put(BUCKET, "a/m", Content::synthetic(3, 4 * CHUNK));
    let more = format!(
        "uri_prefixes = [\"s3://{BUCKET}/a\"]\nram = \"2MiB\"\nshare = 3\n\
         lanes = [\"interactive\"]"
    );
    let (dir, path) = configured(&(block("blue", BLUE, &more) + &block("red", RED, "")));
    let spec = NodeSpec::of(&origin).ram("8MiB").config(&path).set("max_loads", "8");
    let node = spec.start().await;
    let blue = with(&node, BLUE).await;
    digests(&blue, LoadRequest::new(s3_uri("a/m"))).await.unwrap();
    let load = blue.load(LoadRequest::new(s3_uri("a/m"))).await.unwrap();
    let told = blue.status().await.unwrap().domain;
    let expected = DomainStatus {
        name: "blue".to_owned(),
        ram_budget_bytes: 2 << 20,
        ram_used_bytes: 4 * CHUNK,
        loads: 1,
        loads_max: 6,
        queued_max: 192,
        sessions: 1,
        share: 3,
        lanes: vec!["interactive".to_owned()],
        uri_prefixes: vec![format!("s3://{BUCKET}/a")],
    };
    assert_eq!(told, expected);
    let told = with(&node, RED).await.status().await.unwrap();
    assert!(!format!("{told:?}").contains("blue"), "{told:?}");
    let told = told.domain;
    assert_eq!((&*told.name, told.ram_budget_bytes, told.ram_used_bytes), ("red", 6 << 20, 0));
    assert_eq!((told.loads, told.loads_max, told.sessions), (0, 2, 0));
    drop(load);

    let file = dir.path().join("token");
    std::fs::write(&file, BLUE).unwrap();
    let status = ["status", "--token-file", file.to_str().unwrap()];
    let said = run(&node, &status);
    assert!(
        text(&said.stdout).contains("\nDomain blue, 256.0 KiB of 2.0 MiB RAM used"),
        "{said:?}"
    );
    let json = object(&run(&node, &[&["--format", "json"][..], &status].concat()));
    assert_eq!((&json["domain"]["name"], &json["domain"]["share"]), (&"blue".into(), &3.into()));
    assert_eq!(json["domain"]["uri_prefixes"][0], format!("s3://{BUCKET}/a"));
    node.settled().await;

    // Where there are no domains all callers are in the one that has everything.
    let plain = NodeSpec::of(&origin).start().await;
    let told = plain.client.status().await.unwrap().domain;
    assert_eq!((&*told.name, told.ram_budget_bytes, told.loads_max), ("default", 4 << 20, 64));
}
