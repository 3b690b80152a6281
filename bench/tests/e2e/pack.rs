//! `forebay pack`: what it writes loads as its source does, whatever happened while it was written.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use forebay_client::model::{PackEvent, PackReport};
use forebay_client::{Client, ClientError, LoadRequest, PackRequest, Reason};
use forebay_codec::manifest::{MANIFEST_NAME, PackManifest, PackedObject};
use forebay_origin::Checksums;
use forebay_testkit::{Content, Fault, FaultRule, Op, Prng, S3Origin, temp_dir, write_content};
use serde_json::Value;

use crate::command::{run, text};
use crate::harness::{
    BUCKET, CHUNK, Node, NodeSpec, assert_ends, connect, digests, expected_digests, failure, s3,
    s3_uri, until,
};
use crate::nvme_files::files_below;

pub(crate) type Files = Vec<(String, Content)>;

/// Normally distributed numbers, as floats of so many bits.
pub(crate) fn weights(seed: u64, count: usize, bits: u32) -> Vec<u8> {
    let mut random = Prng::new(seed);
    let mut bytes = Vec::new();
    for _ in 0..count {
        let sum: u64 = (0..12).map(|_| random.below(1_000_000)).sum();
        #[expect(clippy::cast_precision_loss, reason = "seven digits")]
        let value = (sum as f32 - 6e6) / 1e8;
        let all = value.to_bits().to_le_bytes();
        bytes.extend_from_slice(if bits == 16 { &all[2..] } else { &all });
    }
    bytes
}

pub(crate) fn noise(seed: u64, bytes: usize) -> Vec<u8> {
    let mut out = vec![0; bytes];
    Prng::new(seed).fill(&mut out);
    out
}

/// A safetensors object of such tensors: type, elements of so many bytes, content.
pub(crate) fn safetensors(tensors: &[(&str, u64, Vec<u8>)]) -> Content {
    let mut header = serde_json::Map::new();
    let mut at = 0;
    for (number, (dtype, width, bytes)) in tensors.iter().enumerate() {
        let length = bytes.len() as u64;
        let entry = serde_json::json!({
            "dtype": dtype, "shape": [length / width], "data_offsets": [at, at + length],
        });
        header.insert(format!("t{number}"), entry);
        at += length;
    }
    let header = serde_json::to_vec(&header).unwrap();
    let mut object = (header.len() as u64).to_le_bytes().to_vec();
    object.extend(header);
    tensors.iter().for_each(|(_, _, bytes)| object.extend(bytes));
    Content::bytes(object)
}

/// A GGUF object of one F32 tensor.
fn gguf(bytes: &[u8]) -> Content {
    let mut object = b"GGUF".to_vec();
    object.extend(3_u32.to_le_bytes());
    object.extend(1_u64.to_le_bytes());
    object.extend(0_u64.to_le_bytes());
    object.extend(6_u64.to_le_bytes());
    object.extend(b"weight");
    object.extend(1_u32.to_le_bytes());
    object.extend((bytes.len() as u64 / 4).to_le_bytes());
    object.extend(0_u32.to_le_bytes());
    object.extend(0_u64.to_le_bytes());
    object.resize(object.len().next_multiple_of(32), 0);
    object.extend(bytes);
    Content::bytes(object)
}

pub(crate) fn prose(bytes: usize) -> Content {
    let line = b"{\"token\": \"the quick brown fox\", \"id\": 4711},\n";
    Content::bytes(line.iter().copied().cycle().take(bytes).collect::<Vec<_>>())
}

/// Every kind of object, in folders.
pub(crate) fn source() -> Files {
    let mixed = safetensors(&[
        ("BF16", 2, weights(1, 150_001, 16)),
        ("I64", 8, noise(2, 80_000)),
        ("F32", 4, weights(3, 60_000, 32)),
        ("F16", 2, noise(4, 40_000)),
    ]);
    let whole = safetensors(&[("BF16", 2, weights(5, 500_000, 16))]);
    let files = [
        ("model.safetensors", whole),
        ("deep/er/mixed.safetensors", mixed),
        ("small.safetensors", safetensors(&[("BF16", 2, weights(6, 9_000, 16))])),
        ("weights.gguf", gguf(&weights(7, 50_000, 32))),
        ("tokenizer.json", prose(300_000)),
        ("config.json", prose(500)),
        ("noise.bin", Content::bytes(noise(8, 200_000))),
        ("frame.bin", Content::bytes(noise(9, 64 << 10))),
        ("empty", Content::bytes(Vec::new())),
        ("deep/empty.txt", Content::bytes(Vec::new())),
        ("one", Content::bytes(vec![7])),
        ("pair", prose(5_000)),
        ("pair.zst", Content::bytes(noise(10, 3_000))),
        ("with space/ü#%.txt", prose(70_000)),
    ];
    files.map(|(name, content)| (name.to_owned(), content)).into()
}

pub(crate) fn put(origin: &S3Origin, prefix: &str, files: &Files) {
    for (name, content) in files {
        origin.put(BUCKET, &format!("{prefix}{name}"), content.clone());
    }
}

pub(crate) fn request(source: &str, destination: &str) -> PackRequest {
    PackRequest::new(source, destination).frame_bytes(CHUNK)
}

pub(crate) async fn pack(client: &Client, request: PackRequest) -> Result<PackReport, ClientError> {
    let mut pack = client.pack(request).await?;
    let (mut done, mut report) = (0, None);
    while let Some(event) = pack.next().await? {
        match event {
            PackEvent::Progress(progress) => {
                assert!(progress.done_bytes <= progress.total_bytes, "{progress:?}");
                done = done.max(progress.done_bytes);
            }
            PackEvent::Report(end) => report = Some(end),
        }
    }
    let report = report.expect("a report");
    assert!(done <= report.bytes);
    Ok(*report)
}

/// The manifest of a packed checkpoint.
fn manifest(origin: &S3Origin, prefix: &str) -> PackManifest {
    let bytes =
        origin.contents().content(BUCKET, &format!("{prefix}{MANIFEST_NAME}")).unwrap().to_bytes();
    PackManifest::parse(&bytes).unwrap()
}

/// Each object, and what is stored of it, is what the manifest says, and not larger than it may be.
fn assert_packed(files: &Files, manifest: &PackManifest, stored: impl Fn(&str) -> Vec<u8>) {
    let by_name: BTreeMap<&str, &PackedObject> =
        manifest.objects.iter().map(|packed| (packed.name.as_str(), packed)).collect();
    assert_eq!(by_name.len(), files.len());
    for (name, content) in files {
        let packed = by_name[name.as_str()];
        let plain = content.to_bytes();
        assert_eq!(packed.bytes, content.len(), "{name}");
        assert_eq!(packed.blake3, *blake3::hash(&plain).as_bytes(), "{name}");
        let sha256: String = packed.sha256.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(sha256, content.sha256(), "{name}");
        let stored = stored(&packed.stored_name);
        assert_eq!(stored.len() as u64, packed.stored_bytes, "{name}");
        assert!(packed.stored_bytes <= packed.bytes + packed.bytes / 1000, "{name}");
        if packed.coded {
            zstd(name, packed, &stored, &plain);
        } else {
            assert_eq!(stored, plain, "{name}");
        }
    }
}

/// The tool that everyone has takes what is stored, and restores what is not in planes.
fn zstd(name: &str, packed: &PackedObject, stored: &[u8], plain: &[u8]) {
    if Command::new("zstd").arg("--version").output().is_err() {
        println!("skipped for {name}: there is no zstd (apt-get install zstd)");
        return;
    }
    let dir = temp_dir();
    let path = dir.path().join("x.zst");
    std::fs::write(&path, stored).unwrap();
    let tested = Command::new("zstd").args(["-q", "-t"]).arg(&path).output().unwrap();
    assert!(tested.status.success(), "{name}: {tested:?}");
    let restored = Command::new("zstd").args(["-q", "-d", "-c"]).arg(&path).output().unwrap();
    assert_eq!(restored.stdout.len(), plain.len(), "{name}");
    assert_eq!(restored.stdout == plain, packed.planes.is_empty(), "{name}");
}

#[tokio::test]
async fn a_packed_checkpoint_loads_as_its_source_does() {
    let origin = s3().await;
    let files = source();
    put(&origin, "m/", &files);
    origin.put(BUCKET, "packed/mine.txt", "left alone");
    let node = NodeSpec::of(&origin).ram("8MiB").start().await;
    let report = pack(&node.client, request(&s3_uri("m/"), &s3_uri("packed"))).await.unwrap();
    let bytes: u64 = files.iter().map(|(_, content)| content.len()).sum();
    assert_eq!((report.objects, report.bytes), (files.len() as u64, bytes));
    assert_eq!((report.written_objects, report.skipped_objects), (report.objects, 0));
    let manifest = manifest(&origin, "packed/");
    let stored = |name: &str| {
        let key = format!("packed/{name}");
        origin.contents().content(BUCKET, &key).expect("it is stored").to_bytes().to_vec()
    };
    assert_packed(&files, &manifest, stored);
    let sums = manifest.objects.iter().map(|packed| packed.stored_bytes).sum::<u64>();
    assert_eq!(report.packed_bytes, sums);
    let coded = |name: &str| {
        let packed = manifest.objects.iter().find(|packed| packed.name == name).unwrap();
        (packed.coded, !packed.planes.is_empty(), packed.tensors.as_ref().map_or(0, Vec::len))
    };
    assert_eq!(coded("model.safetensors"), (true, true, 1));
    assert_eq!(coded("deep/er/mixed.safetensors"), (true, true, 4));
    assert_eq!(coded("weights.gguf"), (true, true, 1));
    assert_eq!(coded("tokenizer.json"), (true, false, 0));
    for name in ["noise.bin", "frame.bin", "empty", "one", "pair", "pair.zst"] {
        assert_eq!(coded(name), (false, false, 0), "{name}");
    }
    let model = manifest.objects.iter().find(|packed| packed.name == "model.safetensors").unwrap();
    assert!(
        model.stored_bytes * 10 <= model.bytes * 7,
        "{} of {}",
        model.stored_bytes,
        model.bytes
    );
    node.loads(&s3_uri("packed/"), &files).await;

    // Everything is there: nothing is written, and nothing but the checkpoint is left.
    let before = origin.total().puts;
    let again = pack(&node.client, request(&s3_uri("m/"), &s3_uri("packed/"))).await.unwrap();
    assert_eq!((again.written_objects, again.skipped_objects), (0, report.objects));
    assert_eq!(again.packed_bytes, report.packed_bytes);
    assert_eq!(origin.total().puts, before);
    assert!(origin.contents().content(BUCKET, "packed/.forebay.pack/claim").is_none());
    assert!(origin.contents().content(BUCKET, "packed/mine.txt").is_some());
    assert_eq!(origin.contents().unfinished(), 0);
    node.settled().await;
}

#[tokio::test]
async fn folders_are_packed_by_their_paths() {
    let node = NodeSpec::new().ram("8MiB").start().await;
    let dir = temp_dir();
    let files = source();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    for (name, content) in &files {
        write_content(&dir.path().join("from a").join(name), content).unwrap();
    }
    let (from, to) = (path("from a"), path("to/b"));
    let json = |args: &[&str]| run(&node, &[&["--format", "json"], args].concat());
    let packed = json(&["pack", &from, &to, "--chunk", "128KiB", "--level", "3"]);
    assert_eq!(packed.status.code(), Some(0), "{packed:?}");
    let lines: Vec<Value> =
        text(&packed.stdout).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let report = lines.last().unwrap();
    assert_eq!((&report["event"], &report["objects"]), (&"report".into(), &files.len().into()));
    let bytes = std::fs::read(dir.path().join("to/b").join(MANIFEST_NAME)).unwrap();
    let manifest = PackManifest::parse(&bytes).unwrap();
    assert_eq!((manifest.frame_bytes, manifest.level), (128 << 10, 3));
    let stored = |name: &str| std::fs::read(dir.path().join("to/b").join(name)).unwrap();
    assert_packed(&files, &manifest, stored);
    assert_eq!(files_below(&dir.path().join("to/b")).len(), files.len() + 1, "nothing else");
    node.loads(&format!("file://{to}/"), &files).await;
    // One object of it, by its own name.
    let one: Files = files.iter().filter(|(name, _)| name == "tokenizer.json").cloned().collect();
    node.loads(&format!("file://{to}/tokenizer.json"), &one).await;
    let human = run(&node, &["pack", &from, &to, "--chunk", "128KiB", "--level", "3"]);
    assert_eq!(human.status.code(), Some(0), "{human:?}");
    assert!(text(&human.stdout).contains("it was packed already"), "{human:?}");

    // What changed is packed again, what is gone goes, and the rest is as it was.
    std::fs::remove_file(dir.path().join("from a/noise.bin")).unwrap();
    std::fs::write(dir.path().join("from a/config.json"), "changed").unwrap();
    let changed = json(&["pack", &from, &to, "--chunk", "128KiB", "--level", "3"]);
    let report: Value =
        serde_json::from_str(text(&changed.stdout).lines().last().unwrap()).unwrap();
    assert_eq!((&report["written_objects"], &report["removed_objects"]), (&1.into(), &2.into()));
    let mut expected: Files = files.into_iter().filter(|(name, _)| name != "noise.bin").collect();
    let config = expected.iter_mut().find(|(name, _)| name == "config.json").unwrap();
    config.1 = Content::bytes("changed");
    assert_eq!(files_below(&dir.path().join("to/b")).len(), expected.len() + 1);
    node.loads(&format!("file://{to}/"), &expected).await;
}

/// Uploads in parts, copies in parts, and an object of which all samples lie: it is stored as it
/// is.
#[tokio::test]
async fn large_objects_come_in_parts() {
    const LIAR_BYTES: usize = 30 << 20;
    const SAMPLE_BYTES: usize = 128 << 10;
    let origin = s3().await;
    let model = safetensors(&[("BF16", 2, weights(21, 500_000, 16).repeat(20))]);
    let mut liar = noise(22, LIAR_BYTES);
    for n in 0..4 {
        let at = (LIAR_BYTES - SAMPLE_BYTES) * n / 3;
        liar[at..at + SAMPLE_BYTES].fill(0);
    }
    let files: Files = vec![
        ("copied.bin".into(), Content::synthetic(23, 20 << 20)),
        ("liar.bin".into(), Content::bytes(liar)),
        ("model.safetensors".into(), model),
    ];
    put(&origin, "m/", &files);
    let node = NodeSpec::of(&origin).set("chunk", "1MiB").ram("32MiB").start().await;
    let packing = PackRequest::new(s3_uri("m/"), s3_uri("p/")).frame_bytes(1 << 20);
    let report = pack(&node.client, packing).await.unwrap();
    assert_eq!((report.objects, report.raw_objects), (3, 2));
    let manifest = manifest(&origin, "p/");
    let stored = |name: &str| {
        origin.contents().content(BUCKET, &format!("p/{name}")).unwrap().to_bytes().to_vec()
    };
    assert_packed(&files, &manifest, stored);
    node.loads(&s3_uri("p/"), &files).await;
    assert_eq!(origin.contents().unfinished(), 0);
    assert!(origin.contents().content(BUCKET, "p/liar.bin.zst").is_none());
}

/// An object of any size and kind.
fn any_object(random: &mut Prng) -> (&'static str, Content) {
    let most = [1, 100, 70_000, 400_000][usize::try_from(random.below(4)).unwrap()];
    let bytes = usize::try_from(random.below(most)).unwrap();
    let seed = random.next_u64();
    match random.below(6) {
        0 => ("bin", Content::bytes(noise(seed, bytes))),
        1 => ("txt", prose(bytes)),
        2 => ("gguf", gguf(&weights(seed, bytes / 4, 32))),
        3 => ("zst", Content::bytes(noise(seed, bytes + 1))),
        _ => {
            let tensors = (0..random.below(4)).map(|n| {
                let count = usize::try_from(random.below(bytes as u64 / 2 + 1)).unwrap();
                match random.below(3) {
                    0 => ("BF16", 2, weights(seed + n, count, 16)),
                    1 => ("F32", 4, weights(seed + n, count / 2, 32)),
                    _ => ("U8", 1, noise(seed + n, count)),
                }
            });
            ("safetensors", safetensors(&tensors.collect::<Vec<_>>()))
        }
    }
}

/// Whatever the contents, frames and levels are, what is packed loads as what it was.
#[tokio::test]
async fn any_contents_and_frames_come_back() {
    let slow = std::env::var_os("FOREBAY_SLOW_TESTS").is_some_and(|value| value == "1");
    let cases = if slow { 200 } else { 10 };
    println!("{cases} checkpoints (200 with FOREBAY_SLOW_TESTS=1)");
    let origin = s3().await;
    let node = NodeSpec::of(&origin).ram("16MiB").start().await;
    for case in 0..cases {
        let mut random = Prng::new(case);
        let (from, to) = (format!("m{case}/"), format!("p{case}/"));
        let files: Files = (0..1 + random.below(6))
            .map(|n| {
                let (kind, content) = any_object(&mut random);
                (format!("{n}/x.{kind}"), content)
            })
            .collect();
        put(&origin, &from, &files);
        let frame_bytes = (64 << 10) << random.below(5);
        let level = i32::try_from(1 + random.below(4)).unwrap();
        let packing = PackRequest::new(s3_uri(&from), s3_uri(&to));
        let packing = packing.frame_bytes(frame_bytes).level(level);
        pack(&node.client, packing).await.unwrap_or_else(|error| panic!("case {case}: {error}"));
        let manifest = manifest(&origin, &to);
        let stored = |name: &str| {
            origin.contents().content(BUCKET, &format!("{to}{name}")).unwrap().to_bytes().to_vec()
        };
        assert_packed(&files, &manifest, stored);
        println!("case {case}: {frame_bytes} bytes a frame, level {level}");
        node.loads(&s3_uri(&to), &files).await;
    }
}

#[tokio::test]
async fn many_small_objects_are_packed() {
    let origin = s3().await;
    let files: Files = (0..300_u64)
        .map(|n| (format!("{n:03}.json"), prose(usize::try_from(n * 7 % 400).unwrap())))
        .collect();
    put(&origin, "m/", &files);
    let node = NodeSpec::of(&origin).start().await;
    pack(&node.client, request(&s3_uri("m/"), &s3_uri("p/"))).await.unwrap();
    node.loads(&s3_uri("p/"), &files).await;
}

/// A daemon that is killed in the middle costs what it was at, and no wrong byte.
#[tokio::test]
async fn a_pack_goes_on_after_a_kill() {
    let origin = s3().await;
    let files = source();
    put(&origin, "m/", &files);
    let rule = FaultRule::new("p/tokenizer.json*", Fault::StallUpload(10)).on(Op::Put);
    let stalled = origin.fault(rule);
    let node = NodeSpec::of(&origin).ram("8MiB").start().await;
    let client = connect(&node.daemon).await;
    let (from, to) = (s3_uri("m/"), s3_uri("p/"));
    let packing = pack(&client, request(&from, &to));
    let entry = |name: &str| {
        let digest = blake3::hash(name.as_bytes()).to_hex();
        format!("p/.forebay.pack/{}", &digest[..32])
    };
    let entered = |name: &str| origin.contents().content(BUCKET, &entry(name)).is_some();
    let others = files.iter().filter(|(name, _)| name != "tokenizer.json");
    let others: Vec<&str> = others.map(|(name, _)| name.as_str()).collect();
    let all_others = until("the others are done", async || {
        others.iter().all(|name| entered(name)).then_some(())
    });
    tokio::select! {
        ended = packing => panic!("{ended:?}"),
        () = all_others => {}
    }
    assert!(origin.contents().content(BUCKET, &format!("p/{MANIFEST_NAME}")).is_none());
    let dir = node.daemon.kill().unwrap();
    stalled.remove();
    // An entry that lost a bit is none.
    let damaged = entry("one");
    let mut bytes = origin.contents().content(BUCKET, &damaged).unwrap().to_bytes().to_vec();
    bytes[30] ^= 1;
    origin.put(BUCKET, &damaged, bytes);
    let node = NodeSpec::of(&origin).ram("8MiB").dir(dir).start().await;
    let report = pack(&node.client, request(&from, &to)).await.unwrap();
    assert_eq!((report.written_objects, report.objects), (2, files.len() as u64));
    assert!(origin.contents().content(BUCKET, &damaged).is_none(), "no entry is left");
    node.loads(&to, &files).await;
}

/// A client that goes away leaves no half object and no upload behind, and the place is free again.
#[tokio::test]
async fn a_client_that_is_gone_ends_its_pack() {
    let origin = s3().await;
    let files = source();
    put(&origin, "m/", &files);
    let rule = FaultRule::new("p/tokenizer.json*", Fault::StallUpload(10)).on(Op::Put);
    let stalled = origin.fault(rule);
    let node = NodeSpec::of(&origin).ram("8MiB").start().await;
    let (from, to) = (s3_uri("m/"), s3_uri("p/"));
    let running = node.client.pack(request(&from, &to)).await.unwrap();
    until("the upload is under way", async || (stalled.hits() > 0).then_some(())).await;
    // Meanwhile nobody else writes there, or around it.
    for place in ["p/", "p", "p/q/", ""] {
        let error =
            pack(&node.client, request(&s3_uri("m/one"), &s3_uri(place))).await.unwrap_err();
        assert_ends(&error, Reason::DestinationInUse, 9);
    }
    drop(running);
    stalled.remove();
    let report =
        until("the place is free", async || pack(&node.client, request(&from, &to)).await.ok());
    assert_eq!(report.await.objects, files.len() as u64);
    node.loads(&to, &files).await;
    assert_eq!(origin.contents().unfinished(), 0);
}

#[tokio::test]
async fn a_flipped_bit_at_rest_is_never_served() {
    let origin = s3().await;
    let files = source();
    put(&origin, "m/", &files);
    let node = NodeSpec::of(&origin).ram("8MiB").start().await;
    pack(&node.client, request(&s3_uri("m/"), &s3_uri("p/"))).await.unwrap();
    let manifest = manifest(&origin, "p/");
    let names = manifest.objects.iter().filter(|packed| packed.stored_bytes > 0);
    let names: Vec<_> = names.map(|packed| packed.stored_name.clone()).collect();
    let mut random = Prng::new(11);
    for name in names.iter().map(String::as_str).chain([MANIFEST_NAME]) {
        let key = format!("p/{name}");
        let sound = origin.contents().content(BUCKET, &key).unwrap();
        let mut bytes = sound.to_bytes().to_vec();
        // The seek table at an object's end is for other readers.
        let coded = name != "pair.zst" && name.ends_with(".zst");
        let table = if coded { 17 + 8 * (bytes.len() as u64).div_ceil(20_000) } else { 0 };
        let end = (bytes.len() as u64).saturating_sub(table).max(1);
        let at = usize::try_from(random.below(end)).unwrap();
        bytes[at] ^= 1 << random.below(8);
        origin.put(BUCKET, &key, bytes);
        let error = failure(&node.client, LoadRequest::new(s3_uri("p/"))).await;
        assert_eq!(error.kind().exit_code(), 6, "{name}: {error}");
        node.settled().await;
        origin.put(BUCKET, &key, sound);
        node.client.evict(s3_uri("p/")).await.unwrap();
    }
    node.loads(&s3_uri("p/"), &files).await;
}

#[tokio::test]
async fn what_does_not_fit_its_checksum_is_not_packed() {
    let origin = s3().await;
    let files = source();
    put(&origin, "m/", &files);
    let node = NodeSpec::of(&origin).ram("8MiB").start().await;
    for (name, content) in &files {
        let right = forebay_testkit::checksums(content);
        origin.contents().claim(BUCKET, &format!("m/{name}"), right);
    }
    pack(&node.client, request(&s3_uri("m/"), &s3_uri("right/"))).await.unwrap();
    for name in ["model.safetensors", "config.json", "noise.bin", "empty"] {
        let (_, content) = files.iter().find(|(known, _)| known == name).unwrap();
        let right = forebay_testkit::checksums(content);
        let crc64_nvme = right.crc64_nvme.map(|crc| crc ^ 1);
        let wrong = Checksums { crc64_nvme, ..Checksums::default() };
        origin.put(BUCKET, &format!("w/{name}/{name}"), content.clone());
        origin.contents().claim(BUCKET, &format!("w/{name}/{name}"), wrong);
        let to = format!("bad/{name}/");
        let packing = request(&s3_uri(&format!("w/{name}/")), &s3_uri(&to));
        let error = pack(&node.client, packing).await.unwrap_err();
        assert_ends(&error, Reason::DigestMismatch, 6);
        for suffix in ["", ".zst"] {
            let key = format!("{to}{name}{suffix}");
            assert!(origin.contents().content(BUCKET, &key).is_none(), "{key}");
        }
    }
    node.settled().await;
}

#[tokio::test]
async fn what_comes_back_damaged_is_removed() {
    let origin = s3().await;
    let files = source();
    put(&origin, "m/", &files);
    let node = NodeSpec::of(&origin).ram("8MiB").start().await;
    for (number, name) in ["model.safetensors", "config.json", "noise.bin"].into_iter().enumerate()
    {
        let key = format!("m/{name}");
        let to = format!("p{number}/");
        let flip = FaultRule::new(format!("{to}{name}*"), Fault::FlipBit(40)).on(Op::Get);
        let flip = origin.fault(flip);
        let packing = || request(&s3_uri(&key), &s3_uri(&to));
        let error = pack(&node.client, packing()).await.unwrap_err();
        assert_ends(&error, Reason::DigestMismatch, 6);
        for suffix in ["", ".zst"] {
            let stored = format!("{to}{name}{suffix}");
            assert!(origin.contents().content(BUCKET, &stored).is_none(), "{stored}");
        }
        flip.remove();
        pack(&node.client, packing()).await.unwrap();
    }
    node.settled().await;
}

#[tokio::test]
async fn what_is_in_the_way_is_left_alone() {
    let origin = s3().await;
    let files: Files = vec![("a".into(), prose(5_000)), ("b".into(), prose(9))];
    put(&origin, "m/", &files);
    put(&origin, "n/", &files);
    let node = NodeSpec::of(&origin).start().await;
    let refused = async |from: &str, to: &str, reason: Reason, exit_code: u8| {
        let error = pack(&node.client, request(from, to)).await.unwrap_err();
        assert_ends(&error, reason, exit_code);
    };
    let m = s3_uri("m/");
    origin.put(BUCKET, "p/a.zst", "mine");
    refused(&m, &s3_uri("p/"), Reason::DestinationInUse, 9).await;
    assert_eq!(origin.contents().content(BUCKET, "p/a.zst").unwrap().to_bytes(), "mine");
    assert!(origin.contents().content(BUCKET, "p/.forebay.pack/claim").is_none());
    refused(&m, &m, Reason::BadRequest, 2).await;
    refused(&m, &s3_uri("m/x"), Reason::BadRequest, 2).await;
    refused(&m, "http://127.0.0.1:1/x/", Reason::BadRequest, 2).await;
    refused(&m, "nowhere", Reason::BadUri, 2).await;
    refused(&s3_uri("none/"), &s3_uri("q/"), Reason::ObjectNotFound, 3).await;
    for odd in [1, CHUNK + 1, 32 << 20] {
        let odd = PackRequest::new(&m, s3_uri("q/")).frame_bytes(odd);
        assert_ends(&pack(&node.client, odd).await.unwrap_err(), Reason::BadRequest, 2);
    }
    pack(&node.client, request(&m, &s3_uri("q/"))).await.unwrap();
    refused(&s3_uri("q/"), &s3_uri("r/"), Reason::BadRequest, 2).await;
    refused(&s3_uri("q/a.zst"), &s3_uri("r/"), Reason::BadRequest, 2).await;
    refused(&s3_uri("n/"), &s3_uri("q/"), Reason::DestinationInUse, 9).await;
    let loaded = digests(&node.client, LoadRequest::new(s3_uri("q/"))).await.unwrap().0;
    assert_eq!(loaded, expected_digests(&files));
    node.settled().await;
}

#[tokio::test]
async fn files_of_others_are_not_written_for_them() {
    let own = rustix::process::geteuid();
    if !own.is_root() {
        println!("skipped: only root can run a command as somebody else");
        return;
    }
    let node = NodeSpec::new().set("allow_uids", "0,65534").start().await;
    let dir = temp_dir();
    write_content(&dir.path().join("from/x"), &prose(100)).unwrap();
    let refused = as_nobody(&node, dir.path());
    assert_eq!(refused.status.code(), Some(8), "{refused:?}");
    let said = text(&refused.stderr);
    assert!(said.contains("WRITE_NOT_ALLOWED") && said.contains("uid 65534"), "{said}");
    assert!(!dir.path().join("to").exists());
}

/// The command, run by nobody, who may reach the socket.
fn as_nobody(node: &Node, dir: &Path) -> std::process::Output {
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::process::CommandExt;

    for path in node.daemon.socket().ancestors().take(3).collect::<Vec<_>>() {
        if path.starts_with(node.daemon.dir()) {
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o777)).unwrap();
        }
    }
    let uri = |name: &str| format!("file://{}/{name}/", dir.display());
    let mut command = crate::command::command(node);
    command.uid(65_534).gid(65_534).args(["pack", &uri("from"), &uri("to")]);
    command.output().unwrap()
}
