//! Manifests: written, read, and refused for everything that is wrong with them.

use forebay_codec::manifest::{
    FORMAT, MANIFEST_NAME, ManifestError, PackManifest, PackedFrame, PackedObject, PackedRun,
    PackedSource,
};
use forebay_codec::tensor::TensorEntry;

use crate::contents::{Kind, Packed, contents, pack, sha256, two_runs};
use forebay_codec::encode::EncodeSettings;

/// The manifest of one packed object, and of one that is stored as it is.
pub(crate) fn manifest_of(packed: &Packed, frame_bytes: u64) -> PackManifest {
    let coding = &packed.coding;
    let source = |bytes: usize| PackedSource {
        etag: Some("\"5d41402abc4b2a76b9719d911017c592\"".into()),
        version: None,
        modified_ms: Some(1_700_000_000_000),
        bytes: bytes as u64,
    };
    let coded = PackedObject {
        name: "shards/model.safetensors".into(),
        bytes: packed.plain.len() as u64,
        stored_name: "shards/model.safetensors.zst".into(),
        stored_bytes: packed.stored.len() as u64,
        coded: true,
        blake3: *blake3::hash(&packed.plain).as_bytes(),
        sha256: sha256(&packed.plain),
        frames: coding
            .frames()
            .iter()
            .map(|frame| PackedFrame {
                stored_bytes: frame.stored_bytes,
                blake3: frame.digest.unwrap(),
            })
            .collect(),
        planes: coding.planes().iter().copied().map(PackedRun).collect(),
        tile: coding.tile(),
        tensors: Some(vec![TensorEntry {
            name: "wte \"ü\"".into(),
            dtype: "BF16".into(),
            shape: vec![2, 3],
            offset: 100,
            bytes: 12,
        }]),
        source: source(packed.plain.len()),
    };
    let plain = b"{}\n";
    let digest = *blake3::hash(plain).as_bytes();
    let raw = PackedObject {
        name: "config.json".into(),
        bytes: 3,
        stored_name: "config.json".into(),
        stored_bytes: 3,
        coded: false,
        blake3: digest,
        sha256: sha256(plain),
        frames: vec![PackedFrame { stored_bytes: 3, blake3: digest }],
        planes: vec![],
        tile: 0,
        tensors: None,
        source: source(3),
    };
    PackManifest { format: FORMAT, frame_bytes, level: 1, source: None, objects: vec![coded, raw] }
}

fn manifest() -> PackManifest {
    let settings = EncodeSettings { level: 1, tile: 1024 };
    let packed = pack(contents(Kind::Weights, 9000, 1), two_runs(9000), 4096, settings);
    let manifest = manifest_of(&packed, 4096);
    assert_eq!(manifest.coding(&manifest.objects[0]), Ok(packed.coding));
    manifest
}

/// The first line with the second one that belongs to it.
fn sealed(line: &str) -> Vec<u8> {
    let line = format!("{line}\n");
    format!("{line}b3:{}\n", blake3::hash(line.as_bytes()).to_hex()).into_bytes()
}

#[test]
fn what_is_written_is_read() {
    let manifest = manifest();
    let bytes = manifest.to_bytes().unwrap();
    assert_eq!(PackManifest::parse(&bytes), Ok(manifest.clone()));
    assert_eq!(bytes.iter().filter(|byte| **byte == b'\n').count(), 2);
    let raw = manifest.coding(&manifest.objects[1]).unwrap();
    assert_eq!(raw.frames()[0].stored_range(), raw.frames()[0].plain_range());
    let none = PackManifest { objects: vec![], ..manifest };
    assert_eq!(PackManifest::parse(&none.to_bytes().unwrap()), Ok(none));
}

#[test]
fn an_empty_object_has_no_frames() {
    let mut manifest = manifest();
    let object = &mut manifest.objects[1];
    object.frames.clear();
    (object.bytes, object.stored_bytes, object.source.bytes) = (0, 0, 0);
    let again = PackManifest::parse(&manifest.to_bytes().unwrap()).unwrap();
    assert_eq!(again.coding(&again.objects[1]).unwrap().frames(), []);
}

#[test]
fn exactly_two_lines_and_the_digest() {
    let bytes = manifest().to_bytes().unwrap();
    for end in 0..bytes.len() {
        assert!(PackManifest::parse(&bytes[..end]).is_err(), "cut after {end} bytes");
    }
    let more = [&bytes[..], b"\n"].concat();
    PackManifest::parse(&more).unwrap_err();
    PackManifest::parse(&bytes[1..]).unwrap_err();
    let upper = String::from_utf8(bytes).unwrap().replace("\nb3:", "\nB3:");
    assert_eq!(PackManifest::parse(upper.as_bytes()), Err(ManifestError::Lines));
    assert_eq!(PackManifest::parse(&sealed("{}\n{}")), Err(ManifestError::Lines));
}

#[test]
fn other_formats_are_named() {
    let line = r#"{"format":2,"what":{"a":[1]}}"#;
    assert_eq!(PackManifest::parse(&sealed(line)), Err(ManifestError::Format(2)));
    for line in ["", "[]", "{}", "{\"format\":-1}", "{\"format\":1}", &"[".repeat(100_000)] {
        let error = PackManifest::parse(&sealed(line)).unwrap_err();
        assert!(matches!(error, ManifestError::Json(_)), "{line:.20}: {error}");
    }
    let text = String::from_utf8(manifest().to_bytes().unwrap()).unwrap();
    let line = text.lines().next().unwrap();
    PackManifest::parse(&sealed(line)).unwrap();
    for (from, to) in [
        ("\"level\":1", "\"level\":1,\"more\":1"),
        ("\"level\":1", "\"level\":1,\"level\":1"),
        ("\"level\":1", "\"level\":1.5"),
        ("\"coded\":true", "\"coded\":true,\"x\":0"),
        ("\"dtype\":\"BF16\"", "\"dtype\":16"),
        (",2]", ",3]"),
    ] {
        let changed = line.replacen(from, to, 1);
        assert_ne!(changed, line, "{from}");
        let error = PackManifest::parse(&sealed(&changed)).unwrap_err();
        assert!(matches!(error, ManifestError::Json(_)), "{to}: {error}");
    }
}

type Change = (&'static str, fn(&mut PackManifest));

/// What can be wrong, one at a time, with a word of what is said about it.
const CHANGES: &[Change] = &[
    ("format", |manifest| manifest.format = 7),
    ("frame_bytes", |manifest| manifest.frame_bytes = 4095),
    ("frame_bytes", |manifest| manifest.frame_bytes = u64::MAX),
    ("level", |manifest| manifest.level = 0),
    ("level", |manifest| manifest.level = i32::MAX),
    ("mark of the source", |manifest| manifest.source = Some("a b".into())),
    ("mark of the source", |manifest| manifest.source = Some("x".repeat(129))),
    ("as many frames", |manifest| manifest.frame_bytes = 9000),
    ("twice", |manifest| manifest.objects[1].name = manifest.objects[0].name.clone()),
    ("twice", |manifest| rename(manifest, MANIFEST_NAME)),
    ("where something else is", |manifest| rename(manifest, "shards/model.safetensors.zst")),
    ("not below", |manifest| rename(manifest, "../config.json")),
    ("not below", |manifest| rename(manifest, "/config.json")),
    ("not below", |manifest| rename(manifest, "a//b")),
    ("not below", |manifest| rename(manifest, "a/./b")),
    ("not below", |manifest| rename(manifest, "a/..")),
    ("not below", |manifest| rename(manifest, "a/")),
    ("not below", |manifest| rename(manifest, "")),
    ("control character", |manifest| rename(manifest, "a\0b")),
    ("control character", |manifest| rename(manifest, "a\nb")),
    ("longer than 1024", |manifest| rename(manifest, &"n".repeat(1025))),
    ("another name", |manifest| manifest.objects[0].stored_name = "elsewhere.zst".into()),
    ("another name", |manifest| manifest.objects[1].stored_name = "config.json.zst".into()),
    ("as many bytes", |manifest| manifest.objects[0].stored_bytes += 1),
    ("as many bytes", |manifest| manifest.objects[0].frames[0].stored_bytes += 1),
    ("as many bytes", |manifest| manifest.objects[1].stored_bytes = 4),
    ("as many frames", |manifest| manifest.objects[0].frames.truncate(2)),
    ("as many frames", |manifest| manifest.objects[0].bytes = u64::MAX),
    ("another size", |manifest| manifest.objects[0].bytes -= 1),
    ("another size", |manifest| manifest.objects[1].source.bytes = 4),
    ("overflow", |manifest| manifest.objects[0].frames[1].stored_bytes = u64::MAX),
    ("overflow", |manifest| {
        let sum: u64 = manifest.objects[0].frames[..2].iter().map(|frame| frame.stored_bytes).sum();
        manifest.objects[0].frames[2].stored_bytes = u64::MAX - sum;
    }),
    ("larger than compression", |manifest| {
        manifest.objects[0].frames[2].stored_bytes += 1 << 20;
        manifest.objects[0].stored_bytes += 1 << 20;
    }),
    ("holds nothing", |manifest| {
        let frame = &mut manifest.objects[0].frames[1];
        manifest.objects[0].stored_bytes -= std::mem::take(&mut frame.stored_bytes);
    }),
    ("frames of other sizes", |manifest| {
        manifest.objects[1].frames[0].stored_bytes = 4;
        manifest.objects[1].stored_bytes = 4;
    }),
    ("in planes", |manifest| manifest.objects[1].planes = manifest.objects[0].planes.clone()),
    ("before the one before", |manifest| manifest.objects[0].planes.swap(0, 1)),
    ("ends after the object", |manifest| manifest.objects[0].planes[1].0.bytes = 4500),
    ("ends after the object", |manifest| manifest.objects[0].planes[1].0.bytes = u64::MAX),
    ("is empty", |manifest| manifest.objects[0].planes[0].0.bytes = 0),
    ("tiles of 6 bytes", |manifest| manifest.objects[0].tile = 6),
    ("ends after it", |manifest| tensors(manifest)[0].bytes = 9000),
    ("ends after it", |manifest| tensors(manifest)[0].offset = u64::MAX),
    ("a tensor twice", |manifest| {
        let tensor = tensors(manifest)[0].clone();
        tensors(manifest).push(tensor);
    }),
    ("tensors that overlap", |manifest| {
        let tensor = TensorEntry { name: "b".into(), offset: 111, ..tensors(manifest)[0].clone() };
        tensors(manifest).push(tensor);
    }),
    ("another order", |manifest| {
        let tensor = TensorEntry { name: "b".into(), offset: 80, ..tensors(manifest)[0].clone() };
        tensors(manifest).push(tensor);
    }),
    ("frame_bytes cannot be 33554432", |manifest| manifest.frame_bytes = 32 << 20),
    ("32 dimensions", |manifest| tensors(manifest)[0].shape = vec![1; 33]),
    ("longer than 4096", |manifest| tensors(manifest)[0].name = "n".repeat(4097)),
    ("longer than 4096", |manifest| tensors(manifest)[0].dtype = "n".repeat(4097)),
];

fn rename(manifest: &mut PackManifest, name: &str) {
    manifest.objects[1].name = name.into();
    manifest.objects[1].stored_name = name.into();
}

fn tensors(manifest: &mut PackManifest) -> &mut Vec<TensorEntry> {
    manifest.objects[0].tensors.as_mut().unwrap()
}

#[test]
fn what_does_not_add_up_is_refused() {
    let good = manifest();
    for (index, (expected, change)) in CHANGES.iter().enumerate() {
        let mut wrong = good.clone();
        change(&mut wrong);
        let written = wrong.to_bytes().unwrap_err();
        let line = serde_json::to_string(&wrong).unwrap();
        let read = PackManifest::parse(&sealed(&line)).unwrap_err();
        assert_eq!(written, read, "change {index}");
        assert!(read.to_string().contains(expected), "change {index}: {read}");
    }
}
