//! Plain `.zst` objects: they are decoded, whatever they were made with, or refused with the object
//! and the place.

use std::process::{Command, Stdio};

use forebay_client::{LoadRequest, Reason};
use forebay_codec::coding::Frame;
use forebay_codec::encode::{EncodeSettings, FrameEncoder, seek_table};
use forebay_testkit::{Content, Fault, FaultRule, S3Origin, When, checksums};

use crate::harness::{
    BUCKET, CHUNK, Node, NodeSpec, assert_ends, digests, expected_digests, s3, s3_uri,
};

const CHUNK_BYTES: usize = 64 << 10;
const _: () = assert!(CHUNK_BYTES as u64 == CHUNK);

/// Text that compresses, different everywhere.
fn text(bytes: usize) -> Vec<u8> {
    let lines = (0_u64..).map(|n| format!("{n} layers.{}.weight {:x}\n", n % 80, n * n * 7919));
    lines.flat_map(String::into_bytes).take(bytes).collect()
}

fn frame(plain: &[u8]) -> Vec<u8> {
    let mut stored = Vec::new();
    let mut encoder = FrameEncoder::new(EncodeSettings::default()).unwrap();
    encoder.encode(plain, 0, &[], &mut stored).unwrap();
    stored
}

/// Frames of so many bytes, with or without the table that lists them.
fn framed(plain: &[u8], frame_bytes: usize, table: bool) -> Vec<u8> {
    let mut stored = Vec::new();
    let mut frames = Vec::new();
    for (n, piece) in plain.chunks(frame_bytes).enumerate() {
        let bytes = frame(piece);
        frames.push(Frame {
            stored_offset: stored.len() as u64,
            stored_bytes: bytes.len() as u64,
            plain_offset: (n * frame_bytes) as u64,
            plain_bytes: piece.len() as u64,
            digest: None,
        });
        stored.extend(bytes);
    }
    if table {
        stored.extend(seek_table(&frames, false).unwrap());
    }
    stored
}

async fn node_with(objects: &[(&str, Vec<u8>)]) -> (S3Origin, Node) {
    let origin = s3().await;
    for (name, bytes) in objects {
        origin.put(BUCKET, &format!("z/{name}"), Content::bytes(bytes.clone()));
    }
    let node = NodeSpec::of(&origin).start().await;
    (origin, node)
}

#[tokio::test]
async fn every_way_to_lay_frames_out_is_decoded() {
    let plain = text(11 * CHUNK_BYTES + 321);
    let chunk = CHUNK_BYTES;
    let objects = [
        ("a.txt.zst", framed(&plain, chunk, true)),
        ("b.txt.zst", framed(&plain, chunk / 3, true)),
        ("c.txt.zst", framed(&plain, 5 * chunk / 2, true)),
        ("d.txt.zst", framed(&plain, 2 * chunk, false)),
        ("e.txt.zst", frame(&plain)),
        ("f.txt.zst", frame(b"")),
        ("small.zst", frame(b"hello")),
        ("plain.txt", plain.clone()),
        // This one has a name that is taken, so it stays what it is.
        ("plain.txt.zst", frame(b"other")),
    ];
    let (_origin, node) = node_with(&objects).await;
    let whole = Content::bytes(plain);
    let mut expected: Vec<(String, Content)> =
        ["a.txt", "b.txt", "c.txt", "d.txt", "e.txt", "plain.txt"]
            .map(|name| (name.to_owned(), whole.clone()))
            .into();
    expected.push(("f.txt".into(), Content::bytes(Vec::new())));
    expected.push(("small".into(), Content::bytes(b"hello".to_vec())));
    expected.push(("plain.txt.zst".into(), Content::bytes(frame(b"other"))));
    for _ in 0..2 {
        node.loads(&s3_uri("z/"), &expected).await;
    }
    node.loads(&s3_uri("z/e.txt.zst"), &[("e.txt".to_owned(), whole)]).await;
}

/// One large frame, as `zstd FILE` makes it, through a pool that is a fraction of it, for two
/// loads.
#[tokio::test]
async fn a_large_frame_streams_through_a_small_pool() {
    let plain = text(20 << 20);
    let origin = s3().await;
    origin.put(BUCKET, "z/large.zst", Content::bytes(frame(&plain)));
    let node = NodeSpec::of(&origin).ram("2MiB").set("nvme", "0").start().await;
    let expected = expected_digests(&[("large".to_owned(), Content::bytes(plain))]);
    let one = || digests(&node.client, LoadRequest::new(s3_uri("z/large.zst")));
    let (first, second) = tokio::join!(one(), one());
    for done in [first, second] {
        assert_eq!(done.unwrap().0, expected);
    }
    node.settled().await;
}

/// A frame that is cut off, flipped, or followed by another one that it does not declare.
#[tokio::test]
async fn broken_streams_lose_the_load_and_all_it_kept() {
    let plain = text(17 << 20);
    let good = frame(&plain);
    let cut = good[..good.len() - 5].to_vec();
    let mut odd = good.clone();
    odd[good.len() / 2..][..64].fill(0xff);
    let (_origin, node) = node_with(&[("cut.zst", cut), ("odd.zst", odd)]).await;
    for name in ["cut", "odd"] {
        let uri = s3_uri(&format!("z/{name}.zst"));
        let error = node.refused(&uri).await;
        assert_ends(&error, Reason::DecodeFailed, 6);
        let object = error.failure().object.clone().unwrap_or_default();
        assert!(object.contains(name), "{error}");
        let listed = node.client.list(Some(&uri)).await.unwrap();
        assert!(listed.iter().all(|one| one.cached.ram + one.cached.nvme == 0), "{listed:?}");
    }
}

#[tokio::test]
async fn what_cannot_be_decoded_is_served_as_it_is() {
    let undeclared = [0x28, 0xb5, 0x2f, 0xfd, 0x00, 0x58, 0x29, 0x00, 0x00, 1, 2, 3, 4, 5];
    let dictionary = [0x28, 0xb5, 0x2f, 0xfd, 0x21, 0x07, 0x05, 0x29, 0x00, 0x00, 1, 2, 3, 4, 5];
    let objects = [
        ("text.zst", b"this is no zstd at all".to_vec()),
        ("ab.zst", b"ab".to_vec()),
        ("undeclared.zst", undeclared.to_vec()),
        ("dictionary.zst", dictionary.to_vec()),
    ];
    let (_origin, node) = node_with(&objects).await;
    let expected = objects.map(|(name, bytes)| (name.to_owned(), Content::bytes(bytes)));
    for _ in 0..2 {
        node.loads(&s3_uri("z/"), &expected).await;
    }
    for one in &expected {
        node.loads(&s3_uri(&format!("z/{}", one.0)), std::slice::from_ref(one)).await;
    }
}

#[tokio::test]
async fn bombs_and_broken_tables_are_refused_with_their_names() {
    let bomb = {
        let mut bytes = vec![0x28, 0xb5, 0x2f, 0xfd, 0xe0];
        bytes.extend((100_u64 << 30).to_le_bytes());
        bytes.extend([0x03, 0x00, 0x00]);
        bytes
    };
    let mut table = framed(&text(3 * CHUNK_BYTES), CHUNK_BYTES, true);
    let at = table.len() - 17;
    table[at] ^= 1;
    let objects = [("bomb.zst", bomb), ("table.zst", table), ("empty.zst", Vec::new())];
    let (_origin, node) = node_with(&objects).await;
    for (name, _) in &objects {
        let uri = s3_uri(&format!("z/{name}"));
        if *name == "empty.zst" {
            node.loads(&uri, &[("empty".to_owned(), Content::bytes(Vec::new()))]).await;
            continue;
        }
        let error = node.refused(&uri).await;
        assert_ends(&error, Reason::DecodeFailed, 6);
        assert!(error.to_string().contains(name), "{error}");
    }
}

/// A table that is in order, of frames that claim gigabytes for a byte each.
#[tokio::test]
async fn frames_that_take_more_than_they_hold_cost_no_memory() {
    let frames = [(3 << 20, 1_u64), (3 << 20, 1)].map(|(stored_bytes, plain_bytes)| Frame {
        stored_offset: 0,
        stored_bytes,
        plain_offset: 0,
        plain_bytes,
        digest: None,
    });
    let mut object = vec![0; 6 << 20];
    object[..4].copy_from_slice(&[0x28, 0xb5, 0x2f, 0xfd]);
    object.extend(seek_table(&frames, false).unwrap());
    let (_origin, node) = node_with(&[("sparse.zst", object)]).await;
    let error = node.refused(&s3_uri("z/sparse.zst")).await;
    assert_ends(&error, Reason::DecodeFailed, 6);
}

/// A head that is broken on its way once: the stream is read once more.
#[tokio::test]
async fn a_stream_that_comes_damaged_is_read_once_more() {
    let plain = text(17 << 20);
    let (origin, node) = node_with(&[("large.zst", frame(&plain))]).await;
    let expected = [("large".to_owned(), Content::bytes(plain))];
    // The first read that covers the first byte is that of resolving.
    let once = FaultRule::new("z/large.zst", Fault::FlipBit(0)).covering(0);
    let rule = origin.fault(once.when(When::Nth(2)));
    node.loads(&s3_uri("z/large.zst"), &expected).await;
    assert_eq!(rule.hits(), 1);
}

/// Frames without digests are held to the digest of their first fetch like everything else.
#[tokio::test]
async fn a_bit_that_flips_later_is_seen_and_fetched_once_more() {
    let plain = text(6 * CHUNK_BYTES);
    let (origin, node) = node_with(&[("a.zst", framed(&plain, CHUNK_BYTES, true))]).await;
    let expected = [("a".to_owned(), Content::bytes(plain))];
    node.loads(&s3_uri("z/a.zst"), &expected).await;
    node.client.evict(&s3_uri("z/")).await.unwrap();
    let rule = origin.fault(FaultRule::new("z/a.zst", Fault::FlipBit(100)).covering(100));
    let error = node.refused(&s3_uri("z/a.zst")).await;
    assert_eq!(error.kind().exit_code(), 6, "{error}");
    rule.remove();
    let once = FaultRule::new("z/a.zst", Fault::FlipBit(100)).when(When::First(1));
    let rule = origin.fault(once.covering(100));
    node.loads(&s3_uri("z/a.zst"), &expected).await;
    assert_eq!(rule.hits(), 1);
}

/// What the real tool writes: with a checksum, with a long window, and cut into frames by nobody.
#[tokio::test]
async fn what_the_zstd_tool_writes_is_decoded() {
    let plain = text(18 << 20);
    let zstd = |flags: &[&str]| {
        let dir = tempfile::tempdir().ok()?;
        let path = dir.path().join("plain");
        std::fs::write(&path, &plain).ok()?;
        let mut command = Command::new("zstd");
        let output =
            command.args(flags).arg("-c").arg(&path).stderr(Stdio::null()).output().ok()?;
        output.status.success().then_some(output.stdout)
    };
    let (Some(usual), Some(long)) = (zstd(&["-3"]), zstd(&["-1", "--long=27"])) else {
        println!("skipped: there is no zstd command");
        return;
    };
    let (origin, node) = node_with(&[("usual.zst", usual), ("long.zst", long)]).await;
    let whole = Content::bytes(plain);
    let sha256 = checksums(&whole).sha256.unwrap();
    for name in ["usual", "long"] {
        let uri = s3_uri(&format!("z/{name}.zst"));
        let request = LoadRequest::new(&uri).sha256([(name, sha256)]);
        let (mapped, report) = digests(&node.client, request).await.unwrap();
        assert_eq!(mapped[name], whole.sha256());
        assert_eq!(report.verified.object_digest, 1);
        node.settled().await;
    }
    drop(origin);
}
