//! Callers that abuse the protocol: bounded, answered in kind, and nobody else notices.
//!
//! What goes out here is written frame by frame (RFC 9113): no library would send it.

use std::cell::Cell;
use std::time::Duration;

use forebay_client::{CallOptions, Client, Failure, LoadRequest, Reason};
use forebay_proto::pb;
use forebay_proto::pb::load_request::Event as Said;
use forebay_testkit::Content;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;

use crate::harness::{
    BUCKET, CHUNK, Node, NodeSpec, assert_ends, connect, digests, expected_digests, failure, s3,
    s3_uri, until,
};
use crate::raw::{RawLoad, forebay, opening, within};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const GOAWAY: u8 = 7;
const CONTINUATION: u8 = 9;

const END_HEADERS: u8 = 4;

/// Streams of one connection before another one is made: a peer that breaks the rules is cut off.
const STREAMS_PER_CONNECTION: usize = 1000;

/// Frames of 15 KiB of one header: 16 MiB together.
const ENDLESS: usize = 1100;

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut frame = length[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// A literal header field without indexing, uncoded.
fn field(name: &str, value: &str) -> Vec<u8> {
    let mut bytes = vec![0];
    for text in [name, value] {
        integer(&mut bytes, text.len());
        bytes.extend(text.as_bytes());
    }
    bytes
}

/// An HPACK integer with a prefix of 7 bits.
fn integer(bytes: &mut Vec<u8>, mut value: usize) {
    if value < 127 {
        return bytes.push(u8::try_from(value).unwrap());
    }
    bytes.push(127);
    value -= 127;
    while value >= 128 {
        bytes.push(u8::try_from(value % 128).unwrap() | 128);
        value /= 128;
    }
    bytes.push(u8::try_from(value).unwrap());
}

/// The head of a call of a method.
fn head(method: &str) -> Vec<u8> {
    // POST and http, by their numbers in the static table.
    let mut head = vec![0x83, 0x86];
    head.extend(field(":path", &format!("/forebay.v1.Forebay/{method}")));
    head.extend(field(":authority", "localhost"));
    head.extend(field("content-type", "application/grpc"));
    head.extend(field("te", "trailers"));
    head
}

/// The number of a client's n-th stream.
fn number(n: usize) -> u32 {
    u32::try_from(2 * n + 1).unwrap()
}

/// The beginning of the n-th load, which never says what it wants.
fn opened(n: usize) -> Vec<u8> {
    frame(HEADERS, END_HEADERS, number(n), &head("Load"))
}

/// The same, and given up at once.
fn opened_and_reset(n: usize) -> Vec<u8> {
    let mut bytes = opened(n);
    bytes.extend(frame(RST_STREAM, 0, number(n), &8_u32.to_be_bytes()));
    bytes
}

/// The frames of a call with huge headers: as one field of 64 KiB, as many small ones, and as
/// frames that hardly end.
fn huge_headers(kind: usize) -> Vec<Vec<u8>> {
    let piece: Vec<u8> = match kind {
        0 => field("x-large", &"x".repeat(64 << 10)),
        1 => (0..2000).flat_map(|n| field(&format!("x-{n}"), "small")).collect(),
        _ => field("x-endless", &"y".repeat(15 << 10)),
    };
    let mut head = head("Status");
    head.extend(&piece);
    let mut pieces: Vec<&[u8]> = head.chunks(16 << 10).collect();
    if kind == 2 {
        pieces.extend((0..ENDLESS).map(|_| piece.as_slice()));
    }
    let last = pieces.len() - 1;
    let frame_of = |(n, piece): (usize, &[u8])| {
        let flags = if n == last { END_HEADERS } else { 0 };
        frame(if n == 0 { HEADERS } else { CONTINUATION }, flags, 1, piece)
    };
    pieces.into_iter().enumerate().map(frame_of).collect()
}

/// What a connection came to.
#[derive(Debug, Default)]
struct Heard {
    goaway: Option<u32>,
    resets: usize,
    headers: usize,
}

/// A connection that says what it is told to, and listens.
struct Rude {
    writer: tokio::net::unix::OwnedWriteHalf,
    listener: JoinSet<Heard>,
}

impl Rude {
    async fn connect(node: &Node) -> Self {
        Self::listening(node, false).await
    }

    /// One that listens until the first answer only, if `once`.
    async fn listening(node: &Node, once: bool) -> Self {
        let stream = UnixStream::connect(node.daemon.socket()).await.unwrap();
        let (reader, mut writer) = stream.into_split();
        let mut hello = PREFACE.to_vec();
        hello.extend(frame(SETTINGS, 0, 0, &[]));
        writer.write_all(&hello).await.unwrap();
        let mut listener = JoinSet::new();
        listener.spawn(listen(reader, once));
        Self { writer, listener }
    }

    /// False when the daemon has had enough.
    async fn say(&mut self, bytes: &[u8]) -> bool {
        self.writer.write_all(bytes).await.is_ok()
    }

    /// The first answer, while the connection stays open.
    async fn answered(mut self) -> Heard {
        let ended = tokio::time::timeout(Duration::from_secs(30), self.listener.join_next()).await;
        ended.expect("the daemon answers").unwrap().unwrap()
    }

    /// Ends the connection; what came back.
    async fn heard(mut self) -> Heard {
        drop(self.writer);
        let ended = tokio::time::timeout(Duration::from_secs(30), self.listener.join_next()).await;
        ended.expect("the daemon ends the connection").unwrap().unwrap()
    }
}

async fn listen(mut reader: tokio::net::unix::OwnedReadHalf, once: bool) -> Heard {
    let mut heard = Heard::default();
    let mut head = [0; 9];
    while reader.read_exact(&mut head).await.is_ok() {
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let mut payload = vec![0; length as usize];
        if reader.read_exact(&mut payload).await.is_err() {
            break;
        }
        match head[3] {
            GOAWAY => {
                let code = payload.get(4..8).map(|code| <[u8; 4]>::try_from(code).unwrap());
                heard.goaway = code.map(u32::from_be_bytes);
            }
            RST_STREAM => heard.resets += 1,
            HEADERS => heard.headers += 1,
            _ => continue,
        }
        if once {
            break;
        }
    }
    heard
}

fn cases() -> usize {
    let slow = std::env::var_os("FOREBAY_SLOW_TESTS").is_some_and(|value| value == "1");
    let cases = if slow { 100_000 } else { 10_000 };
    println!("{cases} streams (100000 with FOREBAY_SLOW_TESTS=1)");
    cases
}

/// A node with an object, and what to load from it meanwhile.
async fn node() -> (forebay_testkit::S3Origin, Node, Content) {
    let origin = s3().await;
    let content = Content::synthetic(6, 8 * CHUNK);
    origin.put(BUCKET, "m", content.clone());
    let node = NodeSpec::of(&origin).start().await;
    (origin, node, content)
}

/// Somebody else is served as if nothing was.
async fn serves(client: &Client, content: &Content) {
    let mapped = digests(client, LoadRequest::new(s3_uri("m"))).await.unwrap().0;
    assert_eq!(mapped, expected_digests(&[("m".to_owned(), content.clone())]));
}

/// A stream on which nothing is said is not kept for as long as a load may take.
#[tokio::test]
async fn a_load_that_is_not_opened_ends_soon() {
    let (_origin, node, content) = node().await;
    let (_said, silent) = mpsc::channel::<pb::LoadRequest>(1);
    let mut client = forebay(&node.daemon).await;
    let mut heard = client.load(ReceiverStream::new(silent)).await.unwrap().into_inner();
    let failure = Failure::from_status(&heard.message().await.unwrap_err());
    assert_eq!(failure.reason, Reason::BadRequest, "{failure}");
    assert!(failure.message.contains("`open`"), "{failure}");
    serves(&node.client, &content).await;
    node.settled().await;
}

fn descriptors(node: &Node) -> usize {
    std::fs::read_dir(format!("/proc/{}/fd", node.daemon.pid())).unwrap().count()
}

/// Runs `abuse` while somebody else loads; in the end the daemon is as it was before.
async fn while_others_load(abuse: impl AsyncFn(&Node)) {
    let (_origin, node, content) = node().await;
    let other = connect(&node.daemon).await;
    serves(&other, &content).await;
    let (open_before, resident_before) =
        (descriptors(&node), node.daemon.peak_resident_bytes().unwrap());
    let (since, over) = (Instant::now(), Cell::new(false));
    let abusing = async {
        abuse(&node).await;
        over.set(true);
    };
    let loading = async {
        let mut loads = 0;
        while loads < 20 || !over.get() {
            serves(&other, &content).await;
            loads += 1;
        }
        loads
    };
    let ((), loads) = tokio::join!(abusing, loading);
    let took = since.elapsed();
    serves(&connect(&node.daemon).await, &content).await;
    node.settled().await;
    until("descriptors are given back", async || {
        (descriptors(&node) <= open_before + 2).then_some(())
    })
    .await;
    let grown = node.daemon.peak_resident_bytes().unwrap().saturating_sub(resident_before);
    println!(
        "{took:.1?} of abuse, {loads} loads meanwhile; resident {} KiB at most before, {} KiB more after",
        resident_before >> 10,
        grown >> 10
    );
    assert!(grown < 64 << 20, "it grew by {grown} bytes");
}

#[tokio::test]
async fn rapid_resets_end_the_connection_and_nothing_else() {
    while_others_load(async |node| {
        let (mut sent, mut cut_off) = (0, 0);
        while sent < cases() {
            let mut rude = Rude::connect(node).await;
            // At one go: so many are reset before the first one can be served.
            let resets = (0..STREAMS_PER_CONNECTION).flat_map(opened_and_reset);
            rude.say(&resets.collect::<Vec<u8>>()).await;
            sent += STREAMS_PER_CONNECTION;
            cut_off += usize::from(rude.heard().await.goaway == Some(11));
        }
        assert!(cut_off > 0, "ENHANCE_YOUR_CALM was never said");
    })
    .await;
}

#[tokio::test]
async fn streams_beyond_the_bound_are_refused() {
    while_others_load(async |node| {
        let (mut sent, mut refused) = (0, 0);
        while sent < cases() {
            let mut rude = Rude::connect(node).await;
            let streams = (0..STREAMS_PER_CONNECTION).flat_map(opened);
            rude.say(&streams.collect::<Vec<u8>>()).await;
            sent += STREAMS_PER_CONNECTION;
            let heard = rude.heard().await;
            refused += heard.resets;
            assert!(heard.headers <= 64, "{heard:?}");
        }
        assert!(refused > 0);
    })
    .await;
}

#[tokio::test]
async fn huge_headers_are_not_kept() {
    while_others_load(async |node| {
        for kind in 0..3 {
            let mut rude = Rude::listening(node, true).await;
            rude.say(&huge_headers(kind).concat()).await;
            let heard = rude.answered().await;
            let answered = heard.goaway.is_some() || heard.resets + heard.headers > 0;
            assert!(answered, "{kind}: {heard:?}");
        }
    })
    .await;
}

#[tokio::test]
async fn a_message_over_the_bound_is_the_callers_mistake() {
    while_others_load(async |node| {
        let mut client = forebay(&node.daemon).await;
        let uri = "s3://".to_owned() + &"x".repeat((1 << 20) + 1);
        let status = client.list(pb::ListRequest { uri: uri.clone() }).await.unwrap_err();
        let kind = forebay_client::ErrorKind::from_code(status.code());
        assert_eq!(kind, forebay_client::ErrorKind::InvalidArgument, "{status}");
        // One that fits is read, and refused for what it says.
        let uri = uri[..uri.len() - 64].to_owned();
        let status = client.stat(pb::StatRequest { uri }).await.map(drop).err();
        assert!(status.is_none_or(|status| status.code() == tonic::Code::InvalidArgument));
    })
    .await;
}

#[tokio::test]
async fn what_is_no_http_is_dropped() {
    while_others_load(async |node| {
        for bytes in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0; 4096], b"\x16\x03\x01\x02\x00\x01"] {
            let mut stream = UnixStream::connect(node.daemon.socket()).await.unwrap();
            stream.write_all(bytes).await.unwrap();
            stream.shutdown().await.unwrap();
            let mut rest = Vec::new();
            // A reset is an answer, too.
            drop(stream.read_to_end(&mut rest).await);
        }
        // Connections that say nothing keep nobody from being served.
        let mut silent = Vec::new();
        for _ in 0..200 {
            silent.push(UnixStream::connect(node.daemon.socket()).await.unwrap());
        }
        connect(&node.daemon).await.status().await.unwrap();
    })
    .await;
}

/// Every number that a client may send, at its end: none is added to another without a look.
#[tokio::test]
async fn numbers_at_their_end_are_only_numbers() {
    const MOST: u64 = u64::MAX;
    while_others_load(async |node| {
        let device =
            pb::DeviceUse { kind: "fake".into(), path: "cpu".into(), ..Default::default() };
        let open = pb::LoadOpen { device: Some(device), ..opening(&s3_uri("m")) };
        let mut load = RawLoad::open(&node.daemon, open).await;
        let held = load.hold(8).await;
        let spans = [(0, MOST), (MOST, MOST), (MOST, 0), (1, 2), (MOST - 1, 1), (0, 0)];
        let span = |(start_nanos, end_nanos)| pb::CopySpan { start_nanos, end_nanos, bytes: MOST };
        for sent_nanos in [0, 1, MOST] {
            let spans = spans.into_iter().cycle().take(200).map(span).collect();
            load.say(Said::Copies(pb::CopyTimings { spans, sent_nanos })).await;
        }
        load.say(Said::Release(pb::Release { lease_ids: vec![MOST, 0, MOST, 1 << 63] })).await;
        load.release(&held).await;
        let report = load.report().await.unwrap();
        assert_eq!(report.bytes, 8 * CHUNK);
        assert!(report.wall_seconds < 3600.0, "{report:?}");

        let mut client = forebay(&node.daemon).await;
        client.capacity(pb::CapacityRequest::default()).await.unwrap();
        client.explain(pb::ExplainRequest::default()).await.unwrap();
        let resize = client.resize_ram(pb::ResizeRamRequest { bytes: MOST }).await;
        let ended = match resize {
            Ok(stream) => stream.into_inner().message().await.map(drop),
            Err(status) => Err(status),
        };
        let code = ended.expect_err("there is no such memory").code();
        assert!(matches!(code, tonic::Code::InvalidArgument | tonic::Code::ResourceExhausted));
        let rules = vec![pb::ShardRule { tensors: "**".into(), dim: u32::MAX }];
        for (rank, ranks) in [(u32::MAX, u32::MAX), (0, 0), (u32::MAX, 1), (65_535, 65_536)] {
            let shard = Some(pb::Shard { rank, ranks, rules: rules.clone() });
            let open = pb::LoadOpen { shard, ..opening(&s3_uri("m")) };
            let failure = RawLoad::open(&node.daemon, open).await.failure().await;
            assert_eq!(failure.kind(), forebay_client::ErrorKind::InvalidArgument, "{failure}");
        }
        let near = Some(pb::placement::Near::NumaNode(u32::MAX));
        let placement = Some(pb::Placement { near });
        let open = pb::LoadOpen { placement, ..opening(&s3_uri("m")) };
        let mut load = RawLoad::open(&node.daemon, open).await;
        load.hold(8).await;
        load.report().await.unwrap();
        // The longest deadline that can be written is a deadline.
        let open = RawLoad::open_with(&node.daemon, opening(&s3_uri("m")), |stream| {
            within(stream, "99999999H")
        });
        open.await.unwrap().report().await.unwrap();
    })
    .await;
}

/// What an origin says of itself is as foreign: offsets and lengths whose sum is no number.
#[tokio::test]
async fn tensors_that_end_beyond_all_numbers_are_refused() {
    const MOST: u64 = u64::MAX;
    let origin = s3().await;
    let node = NodeSpec::of(&origin).start().await;
    for (n, offsets) in
        [[0, MOST], [MOST - 7, MOST], [MOST, MOST], [MOST, 8], [8, 1 << 63]].into_iter().enumerate()
    {
        let [begin, end] = offsets;
        let header = format!(
            r#"{{"a":{{"dtype":"U8","shape":[{}],"data_offsets":[{begin},{end}]}}}}"#,
            end.wrapping_sub(begin)
        );
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header.as_bytes());
        bytes.extend([0; 64]);
        let key = format!("{n}.safetensors");
        origin.put(BUCKET, &key, Content::bytes(bytes));
        let options =
            CallOptions { deadline: Some(Duration::from_secs(30)), ..CallOptions::default() };
        let client = node.client.with_options(options);
        let error = client.stat(&s3_uri(&key)).await.unwrap_err();
        assert_ends(&error, Reason::DecodeFailed, 6);
        let tensors = LoadRequest::new(s3_uri(&key)).tensors(["a"]);
        assert_ends(&failure(&node.client, tensors).await, Reason::DecodeFailed, 6);
    }
    // A header that says it is longer than all memory.
    for length in [MOST, MOST - 8, 1 << 62] {
        let mut bytes = length.to_le_bytes().to_vec();
        bytes.extend([b'{'; 64]);
        origin.put(BUCKET, "long.safetensors", Content::bytes(bytes));
        let error = node.client.stat(s3_uri("long.safetensors")).await.unwrap_err();
        assert_ends(&error, Reason::DecodeFailed, 6);
    }
    node.settled().await;
}
