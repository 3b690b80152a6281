//! Bits that flip, wherever bytes of a packed checkpoint are: on the wire, in the packed objects,
//! in their manifest, in extents of the NVMe tier. Nothing wrong is ever served: a load ends with
//! the right bytes, or with exit code 6 and nothing.
//!
//! What counts as a flip is one bit that is checked by itself. On the wire every chunk of a load
//! comes with one flipped bit, its own, and right when it is asked for once more; in the NVMe tier
//! every extent of a load has one. At rest there is one flip for each load. The bulk of 10^5 flips
//! is tried in this process on the objects that the daemon packed: by the decoder, the digests and
//! the parser of manifests that the daemon has. `FOREBAY_SLOW_TESTS=1` takes 10^5 in all, some
//! hundreds if not.

use std::path::Path;

use forebay_client::model::{PackEvent, Report};
use forebay_client::{EvictRequest, KeepTier, LoadRequest, PackRequest, PrefetchRequest};
use forebay_codec::coding::Frame;
use forebay_codec::decode::FrameDecoder;
use forebay_codec::manifest::{MANIFEST_NAME, PackManifest};
use forebay_testkit::{
    Checkpoint, CheckpointSpec, Fault, FaultRule, Prng, S3Origin, Seed, checkpoint, temp_dir,
};

use crate::harness::{
    BUCKET, CHUNK, Digests, Node, NodeSpec, digests, expected_digests, s3, s3_uri, until,
};
use crate::nvme::prefetch;
use crate::nvme_files::{extents, flip};

const MISMATCHES: &str = "forebay_digest_mismatches_total";
const DECODE_FAILURES: &str = "forebay_decode_failures_total";
const QUARANTINED: &str = "forebay_cache_quarantined_total";

/// Of all flips, in the slow run.
const IN_PROCESS: usize = 95_500;
const ON_THE_WIRE: usize = 2000;
const IN_EXTENTS: usize = 2000;
const AT_REST: usize = 300;
const IN_MANIFESTS: usize = 200;
const _: () = assert!(IN_PROCESS + ON_THE_WIRE + IN_EXTENTS + AT_REST + IN_MANIFESTS >= 100_000);

/// So many in the slow run, fewer if not.
fn flips(slowly: usize, otherwise: usize) -> usize {
    let slow = std::env::var_os("FOREBAY_SLOW_TESTS").is_some_and(|value| value == "1");
    let flips = if slow { slowly } else { otherwise };
    println!("{flips} flips ({slowly} with FOREBAY_SLOW_TESTS=1)");
    flips
}

/// Weights and all that lies beside them: frames of planes, of text, and of what is stored as it
/// is.
fn made(bytes: u64) -> Checkpoint {
    checkpoint(CheckpointSpec::new(51, bytes).shards(2).normal())
}

async fn pack(node: &Node, source: &str, destination: &str) {
    let request = PackRequest::new(source, destination).frame_bytes(CHUNK);
    let mut events = node.client.pack(request).await.unwrap();
    let mut over = false;
    while let Some(event) = events.next().await.unwrap() {
        over = matches!(event, PackEvent::Report(_));
    }
    assert!(over, "no report");
}

/// An origin with a checkpoint that was packed there, and a daemon.
struct Packed {
    origin: S3Origin,
    node: Node,
    expected: Digests,
    manifest: PackManifest,
}

impl Packed {
    async fn new(bytes: u64, spec: impl FnOnce(NodeSpec) -> NodeSpec) -> Self {
        let origin = s3().await;
        let made = made(bytes);
        origin.put_checkpoint(BUCKET, "m/", &made);
        let node = spec(NodeSpec::of(&origin).ram("16MiB")).start().await;
        pack(&node, &s3_uri("m/"), &s3_uri("packed/")).await;
        let bytes = origin.contents().content(BUCKET, &format!("packed/{MANIFEST_NAME}")).unwrap();
        let manifest = PackManifest::parse(&bytes.to_bytes()).unwrap();
        assert!(manifest.objects.iter().any(|object| !object.planes.is_empty()));
        Self { origin, node, expected: expected_digests(made.files()), manifest }
    }

    /// A load whose bytes are right.
    async fn loads(&self, what: &str) -> Report {
        let request = LoadRequest::new(s3_uri("packed/"));
        let (mapped, report) = digests(&self.node.client, request)
            .await
            .unwrap_or_else(|error| panic!("{what}: {error}"));
        assert_eq!(mapped, self.expected, "{what}");
        self.node.settled().await;
        report
    }

    async fn caught(&self) -> f64 {
        self.node.sum(MISMATCHES).await + self.node.sum(DECODE_FAILURES).await
    }
}

/// What is stored as it is needs no decoder.
fn copied(stored: &[u8], plain: &mut [u8]) -> bool {
    plain.copy_from_slice(stored);
    true
}

/// One bit of a frame, the first time that it is asked for.
fn flip_of(key: &str, (frame, seed): (&Frame, u64)) -> FaultRule {
    let one = Fault::FlipBits { seed, every: frame.stored_bytes };
    FaultRule::new(key, one).covering(frame.stored_offset).nth(1)
}

#[tokio::test]
async fn on_the_wire_each_chunk_is_told_and_fetched_once_more() {
    let flips = flips(ON_THE_WIRE, 120);
    let packed = Packed::new(4 << 20, |spec| spec).await;
    let (mut done, mut seed) = (0, 0);
    while done < flips {
        let mut rules = Vec::new();
        for object in &packed.manifest.objects {
            let key = format!("packed/{}", object.stored_name);
            let frames = object.frames(packed.manifest.frame_bytes);
            let flipped = frames.iter().zip(seed + 1..).map(|frame| flip_of(&key, frame));
            rules.extend(flipped.map(|rule| packed.origin.fault(rule)));
            seed += frames.len() as u64;
        }
        let before = packed.caught().await;
        let report = packed.loads(&format!("flips of seeds up to {seed}")).await;
        let hits: u64 = rules.iter().map(forebay_testkit::FaultHandle::hits).sum();
        assert_eq!(hits, rules.len() as u64, "every chunk came flipped");
        let caught = packed.caught().await - before;
        // Some bits of a frame mean nothing: what it decodes to is right, and that was checked.
        let harmless = rules.len() as f64 - caught;
        // Nor is one caught of which a second copy came first.
        let most = 2.0 + report.hedges as f64;
        assert!((0.0..=most).contains(&harmless), "{caught} of {} are caught", rules.len());
        assert!(report.attempts as f64 >= rules.len() as f64 + caught, "{report:?}");
        done += rules.len();
        packed.origin.clear_faults();
        packed.node.client.evict(&s3_uri("packed/")).await.unwrap();
    }
}

#[tokio::test]
async fn in_extents_each_is_told_and_put_aside() {
    let flips = flips(IN_EXTENTS, 120);
    let packed =
        Packed::new(4 << 20, |spec| spec.nvme("1GiB").set("scrub_bytes_per_second", "0")).await;
    let seed = Seed::new(52);
    let mut random = seed.prng();
    let uri = s3_uri("packed/");
    prefetch(&packed.node.client, PrefetchRequest::new(&uri)).await.unwrap();
    let all = extents(packed.node.daemon.dir()).len();
    let mut done = 0;
    while done < flips {
        let stored = extents(packed.node.daemon.dir());
        assert_eq!(stored.len(), all);
        for extent in &stored {
            // The header's first kilobyte and its own sum mean something, and all of the payload.
            let bit = match random.below(4) {
                0 => random.below(8 * 160),
                _ => 8 * 4096 + random.below(8 * extent.content_bytes),
            };
            flip(&extent.path, bit);
        }
        let evict = EvictRequest::new(&uri).tier(KeepTier::Ram);
        packed.node.client.evict(evict).await.unwrap();
        let before = packed.node.sum(QUARANTINED).await;
        let report = packed.loads(&format!("flips in extents, {done} before")).await;
        assert_eq!(report.bytes_by_tier.nvme, 0, "{report:?}");
        let aside = packed.node.sum(QUARANTINED).await - before;
        assert_eq!(aside, all as f64, "every extent is put aside");
        done += all;
        until("all is stored again", async || {
            let nvme = packed.node.client.status().await.unwrap().nvme;
            (nvme.extents == all as u64).then_some(())
        })
        .await;
    }
}

/// A checkpoint that was packed into a folder, and a daemon that loads it from there.
async fn at_rest(node: &Node, folder: &Path) -> (String, Digests) {
    let made = made(300 << 10);
    forebay_testkit::write_checkpoint(&folder.join("m"), &made).unwrap();
    let uri = format!("file://{}/packed/", folder.display());
    pack(node, &format!("file://{}/m/", folder.display()), &uri).await;
    (uri, expected_digests(made.files()))
}

/// Flips a bit, loads, and flips it back; whether the load ended with exit code 6.
async fn caught(node: &Node, (uri, expected): &(String, Digests), path: &Path, bit: u64) -> bool {
    let what = format!("bit {bit} of {}", path.display());
    flip(path, bit);
    // What another load has proven would be served from RAM, whatever became of the file.
    node.client.evict(uri).await.unwrap();
    let ended = digests(&node.client, LoadRequest::new(uri)).await;
    flip(path, bit);
    node.settled().await;
    match ended {
        Ok((mapped, report)) => {
            assert_eq!(mapped, *expected, "{what}");
            assert_eq!(report.bytes_by_tier.origin, report.bytes, "{what}");
            false
        }
        Err(error) => {
            assert_eq!(error.kind().exit_code(), 6, "{what}: {error}");
            true
        }
    }
}

fn any_bit(random: &mut Prng, path: &Path) -> u64 {
    random.below(8 * path.metadata().unwrap().len())
}

#[tokio::test]
async fn at_rest_a_load_is_right_or_refused() {
    let flips = flips(AT_REST, 30);
    let folder = temp_dir();
    let node = NodeSpec::new().start().await;
    let source = at_rest(&node, folder.path()).await;
    let packed = folder.path().join("packed");
    let bytes = std::fs::read(packed.join(MANIFEST_NAME)).unwrap();
    let manifest = PackManifest::parse(&bytes).unwrap();
    let objects: Vec<_> =
        manifest.objects.iter().filter(|object| object.stored_bytes > 0).collect();
    let seed = Seed::new(53);
    let mut random = seed.prng();
    let (mut refused, mut harmless) = (0, 0);
    for round in 0..flips {
        let object = objects[round % objects.len()];
        let path = packed.join(&object.stored_name);
        // What is behind the frames is for other programs.
        let frames: u64 = object.frames.iter().map(|frame| frame.stored_bytes).sum();
        let bit = random.below(8 * frames);
        if caught(&node, &source, &path, bit).await {
            refused += 1;
        } else {
            harmless += 1;
        }
    }
    println!("{refused} refused, {harmless} harmless");
    assert!(harmless * 10 <= flips, "{harmless} of {flips} flips were not seen");
    node.settled().await;
    let (mapped, _) = digests(&node.client, LoadRequest::new(&source.0)).await.unwrap();
    assert_eq!(mapped, source.1);
}

#[tokio::test]
async fn in_a_manifest_every_bit_is_told() {
    let flips = flips(IN_MANIFESTS, 30);
    let folder = temp_dir();
    let node = NodeSpec::new().start().await;
    let source = at_rest(&node, folder.path()).await;
    let path = folder.path().join("packed").join(MANIFEST_NAME);
    let seed = Seed::new(54);
    let mut random = seed.prng();
    for _ in 0..flips {
        let bit = any_bit(&mut random, &path);
        assert!(caught(&node, &source, &path, bit).await, "bit {bit} was not seen");
    }
    node.settled().await;
    let (mapped, _) = digests(&node.client, LoadRequest::new(&source.0)).await.unwrap();
    assert_eq!(mapped, source.1);
}

/// The decoder, the digests and the parser of the daemon, on what it packed.
#[tokio::test]
async fn the_bulk_of_them_in_this_process() {
    let flips = flips(IN_PROCESS, 2000);
    let packed = Packed::new(1 << 20, |spec| spec).await;
    let stored = |name: &str| {
        let content = packed.origin.contents().content(BUCKET, &format!("packed/{name}"));
        content.unwrap().to_bytes().to_vec()
    };
    let mut manifest = stored(MANIFEST_NAME);
    let mut objects: Vec<_> = packed.manifest.objects.iter().filter(|one| one.bytes > 0).collect();
    objects.sort_by_key(|object| std::cmp::Reverse(object.bytes));
    let mut bodies: Vec<_> = objects.iter().map(|object| stored(&object.stored_name)).collect();
    let seed = Seed::new(55);
    let mut random = seed.prng();
    let mut decoder = FrameDecoder::new().unwrap();
    let mut told = [0; 3];
    for round in 0..flips {
        if round % 10 == 9 {
            let bit = random.below(8 * manifest.len() as u64);
            flip_in(&mut manifest, bit);
            assert!(PackManifest::parse(&manifest).is_err(), "bit {bit} of the manifest");
            flip_in(&mut manifest, bit);
            continue;
        }
        let which = usize::try_from(random.below(objects.len() as u64)).unwrap();
        let (object, body) = (objects[which], &mut bodies[which]);
        let coding = packed.manifest.coding(object).unwrap();
        let number = usize::try_from(random.below(coding.frames().len() as u64)).unwrap();
        let frame = &coding.frames()[number];
        let bit = 8 * frame.stored_offset + random.below(8 * frame.stored_bytes);
        let mut plain = vec![0; usize::try_from(frame.plain_bytes).unwrap()];
        let mut decode = |body: &[u8]| {
            let range = frame.stored_range();
            let [start, end] = [range.start, range.end].map(|at| usize::try_from(at).unwrap());
            let stored = &body[start..end];
            let decoded = match object.coded {
                true => decoder.decode(&coding, number, stored, &mut plain).is_ok(),
                false => copied(stored, &mut plain),
            };
            let right = Some(*blake3::hash(&plain).as_bytes()) == frame.digest;
            (decoded, right, plain.clone())
        };
        let right = decode(body);
        assert!(right.0 && right.1);
        flip_in(body, bit);
        let flipped = decode(body);
        flip_in(body, bit);
        match flipped {
            (false, ..) => told[0] += 1,
            (true, false, _) => told[1] += 1,
            (true, true, plain) => {
                assert!(plain == right.2, "bit {bit} of {}: other bytes", object.stored_name);
                told[2] += 1;
            }
        }
    }
    println!("told by the decoder, by a digest, harmless: {told:?}");
    assert!(told[0] > 0 && told[1] > 0 && told[2] * 50 < flips, "{told:?}");
}

fn flip_in(bytes: &mut [u8], bit: u64) {
    bytes[usize::try_from(bit / 8).unwrap()] ^= 1 << (bit % 8);
}
