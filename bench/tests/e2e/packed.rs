//! Packed checkpoints that are named in other ways than by their root, and packed objects without a
//! manifest: their bytes, or none.

use std::time::Duration;

use forebay_client::{LoadRequest, Reason};
use forebay_codec::manifest::MANIFEST_NAME;
use forebay_testkit::{Content, Fault, FaultRule, HttpOptions, HttpOrigin, Op, S3Origin};

use crate::harness::{BUCKET, Node, NodeSpec, assert_ends, failure, s3, s3_uri};
use crate::pack::{Files, noise, pack, prose, put, request, safetensors, source, weights};

/// A node, and the source packed to `p/`.
async fn packed(files: &Files) -> (S3Origin, Node) {
    let origin = s3().await;
    put(&origin, "m/", files);
    let node = NodeSpec::of(&origin).ram("8MiB").start().await;
    let packed = pack(&node.client, request(&s3_uri("m/"), &s3_uri("p/"))).await;
    packed.expect("it is packed");
    (origin, node)
}

/// The files under a folder, by their names in it.
fn under(files: &Files, folder: &str) -> Files {
    let inner = |(name, content): &(String, Content)| {
        Some((name.strip_prefix(folder)?.to_owned(), content.clone()))
    };
    files.iter().filter_map(inner).collect()
}

#[tokio::test]
async fn folders_and_objects_of_a_packed_checkpoint_are_what_they_were() {
    let files = source();
    let (_origin, node) = packed(&files).await;
    for folder in ["deep/", "deep/er/", "with space/"] {
        node.loads(&s3_uri(&format!("p/{folder}")), &under(&files, folder)).await;
    }
    node.loads(&s3_uri("p/deep/er"), &under(&files, "deep/er/")).await;
    let one = |folder: &str, name: &str| -> Files {
        under(&files, folder).into_iter().filter(|(known, _)| known == name).collect()
    };
    let mixed = one("deep/er/", "mixed.safetensors");
    for name in ["mixed.safetensors", "mixed.safetensors.zst"] {
        node.loads(&s3_uri(&format!("p/deep/er/{name}")), &mixed).await;
    }
    for name in ["noise.bin", "pair", "pair.zst", "tokenizer.json"] {
        let report = node.loads(&s3_uri(&format!("p/{name}")), &one("", name)).await;
        assert_eq!(report.verified.first_fetch, 0, "{name} has the digests of the manifest");
    }
}

#[tokio::test]
async fn an_index_of_a_packed_checkpoint_brings_its_shards() {
    let shard = |seed| safetensors(&[("BF16", 2, weights(seed, 60_000, 16))]);
    let names = ["model-1-of-2.safetensors", "model-2-of-2.safetensors"];
    let map = serde_json::json!({"metadata": {"pad": " ".repeat(5000)},
        "weight_map": {"t0": names[0], "t1": names[1]}});
    let index = "model.safetensors.index.json";
    let files: Files = vec![
        (format!("a/{index}"), Content::bytes(serde_json::to_vec(&map).unwrap())),
        (format!("a/{}", names[0]), shard(1)),
        (format!("a/{}", names[1]), shard(2)),
        ("a/other.txt".into(), prose(300)),
    ];
    let (origin, node) = packed(&files).await;
    let key = format!("p/a/{index}.zst");
    assert!(origin.contents().content(BUCKET, &key).is_some(), "it is compressed");
    let expected: Files =
        under(&files, "a/").into_iter().filter(|(name, _)| name != "other.txt").collect();
    node.loads(&s3_uri(&format!("p/a/{index}")), &expected).await;
    node.loads(&s3_uri(&key), &expected).await;
}

#[tokio::test]
async fn byte_planes_are_not_served_without_their_manifest() {
    let files = source();
    let (origin, node) = packed(&files).await;
    let manifest = format!("p/{MANIFEST_NAME}");
    let denied = Fault::Status { code: 403, retry_after: None };
    let denied = origin.fault(FaultRule::new(manifest.clone(), denied).on_any());
    let uris = ["p/model.safetensors.zst", "p/deep/", "p/deep/er/mixed.safetensors.zst"];
    for uri in uris {
        failure(&node.client, LoadRequest::new(s3_uri(uri))).await;
    }
    denied.remove();
    assert!(origin.contents().remove(BUCKET, &manifest));
    for uri in uris.iter().chain(["p/"].iter()) {
        let error = failure(&node.client, LoadRequest::new(s3_uri(uri))).await;
        assert_ends(&error, Reason::DecodeFailed, 6);
        assert!(error.to_string().contains(MANIFEST_NAME), "{error}");
        assert!(error.failure().object.is_some(), "{error}");
    }
    // What has no planes needs none.
    let tokenizer = files.iter().find(|(name, _)| name == "tokenizer.json").unwrap();
    let tokenizer = vec![tokenizer.clone()];
    node.loads(&s3_uri("p/tokenizer.json.zst"), &tokenizer).await;
    node.settled().await;
}

/// Some web servers answer everything.
#[tokio::test]
async fn what_is_found_by_looking_and_is_no_manifest_is_none() {
    let origin = HttpOrigin::start(HttpOptions::default()).await;
    let node = NodeSpec::new().start().await;
    let file = ("noise.bin".to_owned(), Content::bytes(noise(3, 100_000)));
    origin.put("d/noise.bin", file.1.clone());
    origin.put(&format!("d/{MANIFEST_NAME}"), "<html><body>Welcome</body></html>");
    node.loads(&origin.url("d/noise.bin"), &[file]).await;
}

#[tokio::test]
async fn two_manifests_of_the_same_bytes_keep_their_own_tensors() {
    let files: Files = vec![("a.safetensors".into(), source().remove(0).1)];
    let (origin, node) = packed(&files).await;
    node.loads(&s3_uri("p/"), &files).await;
    let key = format!("p/{MANIFEST_NAME}");
    let bytes = origin.contents().content(BUCKET, &key).unwrap().to_bytes();
    let mut manifest = forebay_codec::manifest::PackManifest::parse(&bytes).unwrap();
    manifest.objects[0].tensors.as_mut().unwrap()[0].name = "renamed".into();
    origin.put(BUCKET, &key, manifest.to_bytes().unwrap());
    let by_name = |name: &str| LoadRequest::new(s3_uri("p/")).tensors([name]);
    crate::harness::digests(&node.client, by_name("renamed")).await.unwrap();
    failure(&node.client, by_name("t0")).await;
    node.settled().await;
}

/// A server that is slow to say that there is no manifest does not change what is loaded.
#[tokio::test]
async fn a_late_answer_about_a_manifest_changes_nothing() {
    let files = source();
    let (origin, node) = packed(&files).await;
    let late = Fault::Delay(Duration::from_millis(50));
    let late = origin.fault(FaultRule::new(format!("*{MANIFEST_NAME}"), late).on(Op::Head));
    node.loads(&s3_uri("p/deep/"), &under(&files, "deep/")).await;
    assert!(late.hits() > 0);
}
