//! The fuzz targets over their committed corpora, and over mutations of them.

#![expect(clippy::unwrap_used, reason = "a test, which says what it does")]

use std::path::{Path, PathBuf};

use forebay_server::fuzz::TARGETS;
use forebay_testkit::{Prng, Seed};

fn fuzz() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz")
}

/// Every file of a target's corpus.
fn files(target: &str) -> Vec<Vec<u8>> {
    let entries = std::fs::read_dir(fuzz().join("corpus").join(target)).unwrap();
    let mut paths: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    assert!(!paths.is_empty(), "{target} has no corpus");
    paths.iter().map(|path| std::fs::read(path).unwrap()).collect()
}

#[test]
fn every_file_is_replayed() {
    for (target, run) in TARGETS {
        files(target).iter().for_each(|bytes| run(bytes));
        let file = fuzz().join(format!("fuzz_targets/{target}.rs"));
        assert!(file.exists(), "{target} is no target");
    }
}

/// A fuzzer without a compiler's help: bytes changed, cut out, doubled, and lines of other files.
#[test]
fn mutations_of_the_corpora_do_no_harm() {
    let slow = std::env::var_os("FOREBAY_SLOW_TESTS").is_some_and(|value| value == "1");
    let rounds = if slow { 20_000 } else { 400 };
    println!("{rounds} mutations of each file (20,000 with FOREBAY_SLOW_TESTS=1)");
    let seed = Seed::new(1);
    let mut random = seed.prng();
    for (target, run) in TARGETS {
        let files = files(target);
        let lines: Vec<&[u8]> =
            files.iter().flat_map(|file| file.split_inclusive(|byte| *byte == b'\n')).collect();
        for file in &files {
            for _ in 0..rounds {
                run(&mutated(file.clone(), &lines, &mut random));
            }
        }
    }
}

fn below(random: &mut Prng, bound: usize) -> usize {
    usize::try_from(random.below(bound as u64)).unwrap()
}

fn mutated(mut bytes: Vec<u8>, lines: &[&[u8]], random: &mut Prng) -> Vec<u8> {
    for _ in 0..=random.below(4) {
        if bytes.is_empty() {
            break;
        }
        let at = below(random, bytes.len());
        match random.below(7) {
            0 => bytes[at] = random.next_u64().to_le_bytes()[0],
            1 => bytes[at] ^= 1 << random.below(8),
            2 => bytes[at] = b"\"'\\,.[]{}=#@?:/09- \t\n"[below(random, 21)],
            3 => bytes.truncate(at + 1),
            4 => drop(bytes.drain(at..(at + 1 + below(random, 16)).min(bytes.len()))),
            5 => drop(bytes.splice(at..at, lines[below(random, lines.len())].iter().copied())),
            _ => {
                let copy = bytes[at..bytes.len().min(at + 32)].to_vec();
                let to = below(random, bytes.len());
                drop(bytes.splice(to..to, copy));
            }
        }
    }
    bytes
}
