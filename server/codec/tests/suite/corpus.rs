//! The fuzz targets over their committed corpora, and over mutations of them.
//!
//! `FOREBAY_WRITE_CORPUS=1` writes the seeds anew: run it after a change of a format.

use std::path::{Path, PathBuf};

use forebay_codec::coding::{PlaneRun, Width};
use forebay_codec::encode::{EncodeSettings, FrameEncoder};
use forebay_codec::fuzz::TARGETS;

use crate::contents::{Kind, Random, contents, pack, range, slow, two_runs};
use crate::manifest::manifest_of;

fn corpus(target: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target)
}

/// Every file of a target's corpus.
fn files(target: &str) -> Vec<(PathBuf, Vec<u8>)> {
    let mut files: Vec<_> = std::fs::read_dir(corpus(target))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .map(|path| (path.clone(), std::fs::read(path).unwrap()))
        .collect();
    files.sort();
    files
}

/// Sound inputs of every target; the first of each is the whole of something.
fn seeds() -> Vec<(&'static str, &'static str, Vec<u8>)> {
    let json = br#"{"__metadata__":{"format":"pt"},"a":{"dtype":"BF16","shape":[2,3],"data_offsets":[0,12]},"b":{"dtype":"F32","shape":[],"data_offsets":[12,16]}}"#;
    let header = [&(json.len() as u64).to_le_bytes()[..], json].concat();
    let index = br#"{"metadata":{"total_size":1},"weight_map":{"a":"m-1.safetensors","b":"d/m-2.safetensors"}}"#;
    let settings = EncodeSettings { level: 1, tile: 1024 };
    let packed = pack(contents(Kind::Weights, 9000, 1), two_runs(9000), 4096, settings);
    let manifest = manifest_of(&packed, 4096).to_bytes().unwrap();
    let text = pack(contents(Kind::Text, 4096, 1), vec![], 4096, settings);
    let frame = |planes: &[PlaneRun], kind| {
        let mut out = Vec::new();
        let mut encoder = FrameEncoder::new(settings).unwrap();
        encoder.encode(&contents(kind, 4096, 2), 0, planes, &mut out).unwrap();
        out
    };
    let runs = [
        PlaneRun { offset: 1, bytes: 1001, width: Width::Two },
        PlaneRun { offset: 1003, bytes: 3093, width: Width::Four },
    ];
    vec![
        ("safetensors", "header", header),
        ("safetensors", "index", index.to_vec()),
        ("gguf", "full", crate::gguf::full().0),
        ("gguf", "one", crate::gguf::Header::new(2, 1, 0).tensor("t", &[8], 0, 0).0),
        ("manifest", "two_objects", manifest),
        ("seek_table", "packed", packed.stored.clone()),
        ("seek_table", "text", text.stored.clone()),
        ("frame", "planes", frame(&runs, Kind::Weights)),
        ("frame", "text", text.stored[range(text.coding.frames()[0].stored_range())].to_vec()),
        ("frame", "zeros", frame(&[], Kind::Zeros)),
    ]
}

#[test]
fn every_file_is_replayed() {
    if std::env::var_os("FOREBAY_WRITE_CORPUS").is_some() {
        for (target, name, bytes) in seeds() {
            std::fs::create_dir_all(corpus(target)).unwrap();
            std::fs::write(corpus(target).join(name), bytes).unwrap();
        }
    }
    for (target, run) in TARGETS {
        let files = files(target);
        assert!(!files.is_empty(), "{target} has no corpus");
        for (_, bytes) in files {
            run(&bytes);
        }
    }
}

#[test]
fn the_seeds_are_committed() {
    for (target, name, _) in seeds() {
        assert!(corpus(target).join(name).exists(), "{target}/{name}");
        let known = TARGETS.iter().any(|(known, _)| *known == target);
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/fuzz_targets");
        assert!(known && file.join(format!("{target}.rs")).exists(), "{target} is no target");
    }
}

/// A fuzzer without a compiler's help: bytes changed, cut out, doubled, at random places.
#[test]
fn mutations_of_the_corpora_do_no_harm() {
    let rounds = if slow("mutations of the corpora") { 20_000 } else { 400 };
    let mut random = Random(1);
    for (_, run, file) in TARGETS
        .iter()
        .flat_map(|(target, run)| files(target).into_iter().map(move |file| (target, run, file)))
    {
        for _ in 0..rounds {
            run(&mutated(file.1.clone(), &mut random));
        }
    }
}

fn mutated(mut bytes: Vec<u8>, random: &mut Random) -> Vec<u8> {
    for _ in 0..=random.below(4) {
        if bytes.is_empty() {
            break;
        }
        let at = random.below(bytes.len());
        match random.below(6) {
            0 => bytes[at] = random.next() as u8,
            1 => bytes[at] ^= 1 << random.below(8),
            2 => bytes[at..].iter_mut().take(8).for_each(|byte| *byte = 0xFF),
            3 => bytes.truncate(at + 1),
            4 => drop(bytes.drain(at..(at + 1 + random.below(16)).min(bytes.len() - 1).max(at))),
            _ => {
                let copy = bytes[at..bytes.len().min(at + 32)].to_vec();
                let to = random.below(bytes.len());
                bytes.splice(to..to, copy);
            }
        }
    }
    bytes
}
