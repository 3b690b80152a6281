//! Whole objects, held to what is known of them: checksums of the store, files of digests, digests
//! that the caller gives. Right ones pass, and are compared once; wrong ones lose the load and all
//! it kept.

use forebay_client::model::Report;
use forebay_client::{
    ClientError, KeepTier, LoadRequest, Prefetch, PrefetchRequest, Reason, VerifyPolicy,
};
use forebay_origin::Checksums;
use forebay_testkit::{
    CheckpointSpec, Content, Fault, FaultRule, HttpOptions, HttpOrigin, S3Origin, When, checkpoint,
    checksums,
};

use crate::harness::{
    BUCKET, CHUNK, Node, NodeSpec, assert_ends, digests, failure, read, s3, s3_uri, until,
};

const BYTES: u64 = 9 * CHUNK + 12_345;

fn content() -> Content {
    Content::synthetic(77, BYTES)
}

fn files(name: &str) -> Vec<(String, Content)> {
    vec![(name.to_owned(), content())]
}

/// One of the checksums, right or with a bit flipped.
fn one(kind: usize, right: bool) -> Checksums {
    let all = checksums(&content());
    let flip = u8::from(!right);
    let mut one = Checksums::default();
    match kind {
        0 => one.crc64_nvme = all.crc64_nvme.map(|sum| sum ^ u64::from(flip)),
        1 => one.crc32c = all.crc32c.map(|sum| sum ^ u32::from(flip)),
        2 => one.sha256 = all.sha256.map(|[first, rest @ ..]| join(first ^ flip, rest)),
        _ => one.md5 = all.md5.map(|[first, rest @ ..]| join(first ^ flip, rest)),
    }
    one
}

fn join<const N: usize, const M: usize>(first: u8, rest: [u8; N]) -> [u8; M] {
    let mut all = [first; M];
    all[1..].copy_from_slice(&rest);
    all
}

async fn stored(checksums: Checksums) -> S3Origin {
    let origin = s3().await;
    origin.put(BUCKET, "m/blob", content());
    assert!(origin.contents().claim(BUCKET, "m/blob", checksums));
    origin
}

async fn mismatches(node: &Node) -> f64 {
    node.metric("forebay_digest_mismatches_total").await.unwrap_or(0.0)
}

async fn holds_nothing(node: &Node, uri: &str) {
    let listed = node.client.list(Some(uri)).await.unwrap();
    let held: u64 = listed.iter().map(|one| one.cached.ram + one.cached.nvme).sum();
    assert_eq!(held, 0, "{listed:?}");
}

#[tokio::test]
async fn the_checksums_of_a_store_are_compared_once() {
    for kind in 0..4 {
        let origin = stored(one(kind, true)).await;
        let node = NodeSpec::of(&origin).start().await;
        for uri in [s3_uri("m/"), s3_uri("m/blob")] {
            let report = node.loads(&uri, &files("blob")).await;
            assert_eq!((report.verified.object_digest, report.verified.first_fetch), (1, 0));
        }
        // What was compared is recorded: nobody asks again.
        node.client.evict(&s3_uri("m/")).await.unwrap();
        let dir = node.stopped().await;
        let node = NodeSpec::of(&origin).dir(dir).start().await;
        let before = origin.counts("m/blob").heads;
        let report = node.loads(&s3_uri("m/"), &files("blob")).await;
        assert_eq!(report.verified.object_digest, 1, "kind {kind}");
        assert_eq!(origin.counts("m/blob").heads, before, "kind {kind}");
    }
}

#[tokio::test]
async fn other_bytes_than_the_store_says_lose_the_load_and_all_it_kept() {
    for kind in 0..4 {
        let origin = stored(one(kind, false)).await;
        let node = NodeSpec::of(&origin).nvme("1GiB").start().await;
        for round in 1..3 {
            let error = node.refused(&s3_uri("m/")).await;
            assert_ends(&error, Reason::DigestMismatch, 6);
            assert_eq!(error.failure().object.as_deref(), Some("blob"), "{error}");
            assert_eq!(mismatches(&node).await, f64::from(round));
            holds_nothing(&node, &s3_uri("m/")).await;
        }
        assert!(origin.contents().claim(BUCKET, "m/blob", one(kind, true)));
        node.loads(&s3_uri("m/"), &files("blob")).await;
    }
}

async fn taken_until_the_end(
    node: &Node,
    request: LoadRequest,
    taken: &mut u64,
) -> Result<Report, ClientError> {
    let mut load = node.client.load(request).await?;
    while let Some(piece) = load.next_piece().await? {
        *taken += piece.bytes().len() as u64;
    }
    load.finish().await
}

/// What is wrong was handed over by then, and the end says so; or nothing was.
#[tokio::test]
async fn a_stream_hands_chunks_over_before_and_strict_does_not() {
    let origin = stored(one(0, false)).await;
    let node = NodeSpec::of(&origin).start().await;
    let mut taken = [0, 0];
    for (taken, policy) in taken.iter_mut().zip([VerifyPolicy::Stream, VerifyPolicy::Strict]) {
        let request = LoadRequest::new(s3_uri("m/")).verify(policy);
        let failed = taken_until_the_end(&node, request, taken);
        assert_ends(&failed.await.unwrap_err(), Reason::DigestMismatch, 6);
        node.settled().await;
    }
    assert_eq!(taken[1], 0);
    assert!(taken[0] > 0);
}

/// A bit that flips on the way, the first time that its chunk is fetched: nothing is known of the
/// chunk then, but something is of the object.
#[tokio::test]
async fn a_bit_that_flips_on_the_first_fetch_is_seen() {
    for kind in 0..4 {
        let origin = stored(one(kind, true)).await;
        let node = NodeSpec::of(&origin).start().await;
        let flip = FaultRule::new("m/blob", Fault::FlipBit(9)).when(When::First(1));
        let rule = origin.fault(flip.covering(4 * CHUNK));
        let error = node.refused(&s3_uri("m/")).await;
        assert_ends(&error, Reason::DigestMismatch, 6);
        assert_eq!(rule.hits(), 1);
        node.loads(&s3_uri("m/"), &files("blob")).await;
    }
}

#[tokio::test]
async fn strictly_what_came_wrong_is_fetched_once_more() {
    let origin = stored(one(0, true)).await;
    let node = NodeSpec::of(&origin).start().await;
    let flip = FaultRule::new("m/blob", Fault::FlipBit(9)).when(When::First(1));
    let rule = origin.fault(flip.covering(4 * CHUNK));
    let request = LoadRequest::new(s3_uri("m/")).verify(VerifyPolicy::Strict);
    let (mapped, report) = digests(&node.client, request).await.unwrap();
    assert_eq!(mapped["blob"], content().sha256());
    assert_eq!(rule.hits(), 1);
    assert_eq!(report.verified.object_digest, 1);
    node.settled().await;
}

/// The object is proven piece by piece, and what had to make room is compared with what was proven.
#[tokio::test]
async fn strict_needs_no_room_for_the_whole_object() {
    let origin = stored(one(3, true)).await;
    let node = NodeSpec::of(&origin).ram("256KiB").set("nvme", "0").start().await;
    let request = LoadRequest::new(s3_uri("m/")).verify(VerifyPolicy::Strict);
    let (mapped, report) = digests(&node.client, request).await.unwrap();
    assert_eq!(mapped["blob"], content().sha256());
    // Once to prove it, and what had to make room meanwhile once more.
    assert!(report.origin_bytes > BYTES, "{report:?}");
    assert_eq!(report.bytes_by_tier.origin, BYTES, "{report:?}");
    node.settled().await;
}

fn sha256() -> [u8; 32] {
    checksums(&content()).sha256.unwrap()
}

#[tokio::test]
async fn a_digest_of_the_caller_holds_or_loses_the_load() {
    let origin = HttpOrigin::start(HttpOptions::default()).await;
    origin.put("w/blob", content());
    let node = NodeSpec::new().start().await;
    let uri = origin.url("w/blob");
    let request = || LoadRequest::new(&uri);
    for policy in [VerifyPolicy::Stream, VerifyPolicy::Strict] {
        let wrong = request().verify(policy).sha256([("blob", [7; 32])]);
        let error = failure(&node.client, wrong).await;
        assert_ends(&error, Reason::DigestMismatch, 6);
        node.settled().await;
        let right = request().verify(policy).sha256([("blob", sha256()), ("other", [1; 32])]);
        let (mapped, report) = digests(&node.client, right).await.unwrap();
        assert_eq!(mapped["blob"], content().sha256());
        assert_eq!(report.verified.object_digest, 1);
        node.settled().await;
        // It is cached now, and still it is not what another caller expects.
        let wrong = request().verify(policy).sha256([("blob", [7; 32])]);
        assert_ends(&failure(&node.client, wrong).await, Reason::DigestMismatch, 6);
        node.settled().await;
    }
    let unknown = request().sha256([("other", [1; 32])]);
    assert_ends(&failure(&node.client, unknown).await, Reason::BadRequest, 2);
}

#[tokio::test]
async fn a_file_of_digests_beside_the_objects_counts_where_the_store_says_nothing() {
    let origin = s3().await;
    let sums = |digest: &str| {
        Content::bytes(format!("{digest}  blob\n{digest} *not-there\nnonsense\n").into_bytes())
    };
    let wrong = "ab".repeat(32);
    origin.put(BUCKET, "m/blob", content());
    origin.put(BUCKET, "m/SHA256SUMS", sums(&wrong));
    let node = NodeSpec::of(&origin).start().await;
    let error = node.refused(&s3_uri("m/")).await;
    assert_ends(&error, Reason::DigestMismatch, 6);
    let right = sums(&content().sha256());
    origin.put(BUCKET, "m/SHA256SUMS", right.clone());
    let expected = [("SHA256SUMS".to_owned(), right), ("blob".to_owned(), content())];
    let report = node.loads(&s3_uri("m/"), &expected).await;
    // The file of digests itself has an MD5 for a tag.
    assert_eq!((report.verified.object_digest, report.verified.first_fetch), (2, 0));
    // The store's own checksum comes before a file beside it.
    origin.put(BUCKET, "m/SHA256SUMS", sums(&wrong));
    let other = Content::synthetic(78, BYTES);
    origin.put(BUCKET, "m/blob", other.clone());
    let crc64_nvme = checksums(&other).crc64_nvme;
    let claim = Checksums { crc64_nvme, ..Checksums::default() };
    assert!(origin.contents().claim(BUCKET, "m/blob", claim));
    let expected = [("SHA256SUMS".to_owned(), sums(&wrong)), ("blob".to_owned(), other)];
    node.loads(&s3_uri("m/"), &expected).await;
}

/// Where one object is named, nothing is listed: its file of digests is looked for.
#[tokio::test]
async fn a_file_of_digests_beside_a_named_object_counts() {
    let origin = HttpOrigin::start(HttpOptions::default()).await;
    let node = NodeSpec::new().start().await;
    let uri = origin.url("m/blob");
    let line = |digest: &str| format!("{digest}  blob\n");
    origin.put("m/blob", content());
    for file in ["m/blob.sha256", "m/SHA256SUMS"] {
        origin.put(file, line(&"ab".repeat(32)));
        let error = node.refused(&uri).await;
        assert_ends(&error, Reason::DigestMismatch, 6);
        origin.remove(file);
    }
    origin.put("m/blob.sha256", line(&content().sha256()));
    // One that contradicts it: neither counts.
    origin.put("m/SHA256SUMS", line(&"ab".repeat(32)));
    let report = node.loads(&uri, &files("blob")).await;
    assert_eq!(report.verified.object_digest, 0);
    node.client.evict(&uri).await.unwrap();
    origin.remove("m/SHA256SUMS");
    let report = node.loads(&uri, &files("blob")).await;
    assert_eq!(report.verified.object_digest, 1);
}

/// Many small objects in a chunk, empty ones, and loads beside each other.
#[tokio::test]
async fn objects_that_share_chunks_are_held_one_by_one() {
    let origin = s3().await;
    let mut expected = Vec::new();
    for n in 0..40_usize {
        let seed = n as u64;
        let small = Content::synthetic(seed, seed * 50);
        let key = format!("m/{n:02}");
        origin.put(BUCKET, &key, small.clone());
        let all = checksums(&small);
        let kinds = [
            Checksums { crc64_nvme: all.crc64_nvme, ..Checksums::default() },
            Checksums { sha256: all.sha256, ..Checksums::default() },
            Checksums { md5: all.md5, ..Checksums::default() },
            Checksums::default(),
        ];
        assert!(origin.contents().claim(BUCKET, &key, kinds[n % 4]));
        expected.push((format!("{n:02}"), small));
    }
    let node = NodeSpec::of(&origin).start().await;
    let one = || digests(&node.client, LoadRequest::new(s3_uri("m/")));
    let (first, second) = tokio::join!(one(), one());
    let (report, _) = (first.unwrap().1, second.unwrap());
    assert_eq!((report.verified.object_digest, report.verified.first_fetch), (30, 10));
    node.loads(&s3_uri("m/"), &expected).await;
    let wrong = Checksums { crc32c: Some(1), ..Checksums::default() };
    origin.put(BUCKET, "m/33", Content::synthetic(133, 1650));
    assert!(origin.contents().claim(BUCKET, "m/33", wrong));
    let error = node.refused(&s3_uri("m/")).await;
    assert_ends(&error, Reason::DigestMismatch, 6);
    assert_eq!(error.failure().object.as_deref(), Some("33"), "{error}");
}

/// A load of some tensors or objects cannot be held to a digest of what it does not load.
#[tokio::test]
async fn what_is_loaded_in_part_is_refused_a_digest_of_the_whole_unless_strict() {
    let spec = CheckpointSpec::new(5, 12 * CHUNK);
    let checkpoint = checkpoint(spec);
    let origin = s3().await;
    origin.put_checkpoint(BUCKET, "m/", &checkpoint);
    let node = NodeSpec::of(&origin).start().await;
    let (shard, whole) = checkpoint
        .files()
        .iter()
        .find(|(name, _)| name.ends_with(".safetensors"))
        .map(|(name, content)| (name.clone(), content.clone()))
        .unwrap();
    let sha256 = checksums(&whole).sha256.unwrap();
    let tensor = node.client.stat(&s3_uri("m/")).await.unwrap().manifest.tensors()[0].name.clone();
    let part = |policy| {
        let request = LoadRequest::new(s3_uri("m/")).tensors([tensor.clone()]).verify(policy);
        request.sha256([(shard.clone(), sha256)])
    };
    let error = failure(&node.client, part(VerifyPolicy::Stream)).await;
    assert_ends(&error, Reason::BadRequest, 2);
    node.settled().await;
    let mut load = node.client.load(part(VerifyPolicy::Strict)).await.unwrap();
    read(&mut load).await.unwrap();
    let report = load.finish().await.unwrap();
    assert!(report.bytes < whole.len());
    assert_eq!(report.verified.object_digest, 1);
    node.settled().await;
}

/// What was proven stands with the chunks that it was proven of: a load of other neighbours is
/// looked at again, from what is cached, and the store is not asked again.
#[tokio::test]
async fn a_proof_is_of_the_chunks_that_were_seen() {
    let origin = s3().await;
    let mut expected = Vec::new();
    for n in 0..3_u64 {
        let small = Content::synthetic(n, 900);
        let key = format!("m/{n}");
        origin.put(BUCKET, &key, small.clone());
        let crc64_nvme = checksums(&small).crc64_nvme;
        let claim = Checksums { crc64_nvme, ..Checksums::default() };
        assert!(origin.contents().claim(BUCKET, &key, claim));
        expected.push((n.to_string(), small));
    }
    let node = NodeSpec::of(&origin).start().await;
    node.loads(&s3_uri("m/"), &expected).await;
    // One object alone is another chunk, fetched anew. A bit that flips then is seen, although the
    // object was proven as a part of another chunk.
    let rule = origin.fault(FaultRule::new("m/1", Fault::FlipBit(7)).when(When::First(1)));
    let error = node.refused(&s3_uri("m/1")).await;
    assert_ends(&error, Reason::DigestMismatch, 6);
    assert_eq!(rule.hits(), 1);
    let report = node.loads(&s3_uri("m/1"), &expected[1..2]).await;
    assert_eq!(report.verified.object_digest, 1);
    node.loads(&s3_uri("m/"), &expected).await;
}

/// A caller that is wrong fails alone: what the store has proven, and what was here before, stays.
#[tokio::test]
async fn a_wrong_digest_of_a_caller_costs_others_nothing() {
    for claim in [one(0, true), Checksums::default()] {
        let origin = stored(claim).await;
        let node = NodeSpec::of(&origin).start().await;
        node.loads(&s3_uri("m/"), &files("blob")).await;
        let fetched = origin.counts("m/blob").gets;
        let wrong = LoadRequest::new(s3_uri("m/")).sha256([("blob", [7; 32])]);
        let error = failure(&node.client, wrong).await;
        assert_ends(&error, Reason::DigestMismatch, 6);
        node.loads(&s3_uri("m/"), &files("blob")).await;
        assert_eq!(origin.counts("m/blob").gets, fetched, "nothing was given up");
    }
}

async fn prefetched(prefetch: &mut Prefetch) -> Result<(), ClientError> {
    while prefetch.next().await?.is_some() {}
    Ok(())
}

/// Chunks that a load of some tensors has stored were held to nothing: a prefetch of all looks at
/// them too, and not only at what it brings.
#[tokio::test]
async fn a_prefetch_into_nvme_looks_at_what_is_stored_too() {
    let checkpoint = checkpoint(CheckpointSpec::new(6, 12 * CHUNK));
    let origin = s3().await;
    origin.put_checkpoint(BUCKET, "m/", &checkpoint);
    let wrong = Checksums { crc64_nvme: Some(1), ..Checksums::default() };
    assert!(origin.contents().claim(BUCKET, "m/model.safetensors", wrong));
    let node = NodeSpec::of(&origin).nvme("1GiB").start().await;
    let tensor = node.client.stat(&s3_uri("m/")).await.unwrap().manifest.tensors()[0].name.clone();
    let mut load =
        node.client.load(LoadRequest::new(s3_uri("m/")).tensors([tensor])).await.unwrap();
    read(&mut load).await.unwrap();
    let report = load.finish().await.unwrap();
    assert!(report.bytes > 0 && report.verified.object_digest == 0, "{report:?}");
    until("the chunks of a tensor are stored", async || {
        let listed = node.client.list(Some(&s3_uri("m/"))).await.unwrap();
        (listed.iter().map(|one| one.cached.nvme).sum::<u64>() >= report.bytes).then_some(())
    })
    .await;
    let request = PrefetchRequest::new(s3_uri("m/")).tier(KeepTier::Nvme);
    let mut prefetch = node.client.prefetch(request).await.unwrap();
    let failed = prefetched(&mut prefetch).await.unwrap_err();
    assert_ends(&failed, Reason::DigestMismatch, 6);
    assert_eq!(failed.failure().object.as_deref(), Some("model.safetensors"), "{failed}");
    node.settled().await;
}

/// A warm load of one object asks its origin for that object, and not again for what is not beside
/// it.
#[tokio::test]
async fn what_is_not_beside_an_object_is_not_looked_for_each_time() {
    let origin = HttpOrigin::start(HttpOptions::default()).await;
    origin.put("w/blob", content());
    let node = NodeSpec::new().start().await;
    let uri = origin.url("w/blob");
    let beside = ["w/forebay.manifest", "w/SHA256SUMS", "w/blob.sha256"];
    let asked = || beside.map(|key| origin.counts(key).heads);
    node.loads(&uri, &files("blob")).await;
    let first = asked();
    assert!(first.iter().all(|heads| *heads > 0), "{first:?}");
    node.loads(&uri, &files("blob")).await;
    assert_eq!(asked(), first);
}
