//! Real adapters in a real Python, with libraries that are not.

use std::path::Path;
use std::process::Command;

use forebay_testkit::{CheckpointSpec, checkpoint, temp_dir, write_checkpoint};

use super::adapter::{Adapters, Source};
use super::child::{Loader, Told};
use super::site::sums;

/// One that loads, one that fails, one that dies, and one whose bytes are wrong.
const LIBRARIES: &str = r#"
import os, sys

def safetensors(job):
    job.begin()
    files = {}
    for name, path in zip(job.names, job.paths):
        with open(path, "rb") as file:
            files[name] = file.read()
        job.first()
    print("what libraries print is no answer")
    return files

def runai(job):
    raise ValueError("no\n such region")

def tensorizer(job):
    job.begin()
    print("out of memory", file=sys.stderr, flush=True)
    os._exit(3)

def safetensors_pread(job):
    return {name: content[:-1] + b"?" for name, content in safetensors(job).items()}

safetensors_clone = runai_4 = fastsafetensors = runai
"#;

fn load(adapters: &Adapters, peer: &str, dir: &Path) -> Result<Told, String> {
    let command = adapters.load(peer, &Source::File, dir, true);
    let mut loader = Loader::start(command).unwrap()?;
    loader.ready().unwrap()?;
    loader.go();
    loader.told().unwrap()
}

#[test]
fn a_peer_loads_or_says_why_not() {
    if !Command::new("python3").arg("-V").output().is_ok_and(|said| said.status.success()) {
        eprintln!("skipped: there is no python3");
        return;
    }
    let (dir, made) = (temp_dir(), checkpoint(CheckpointSpec::new(5, 3 << 20).shards(2)));
    let (files, place) = (dir.path().join("files"), dir.path().join("adapters"));
    write_checkpoint(&files, &made).unwrap();
    Adapters::install("python3".into(), &place).unwrap();
    std::fs::write(place.join("libraries.py"), LIBRARIES).unwrap();
    let adapters = Adapters::ask("python3".into(), &place);
    let local = adapters.peers(&Source::File).unwrap();
    assert!(local.iter().any(|peer| peer == "fastsafetensors"), "{local:?}");
    assert!(!local.iter().any(|peer| peer == "rclone"), "{local:?}");

    let told = load(&adapters, "safetensors-mmap", &files).unwrap();
    let bytes: u64 = made.shard_names().map(|name| made.file(name).unwrap().len()).sum();
    assert_eq!(told.bytes, bytes);
    assert!(told.first_seconds <= told.wall_seconds && told.peak_bytes > bytes, "{told:?}");
    told.prove(&sums(&made)).unwrap();

    let reason = |peer: &str| load(&adapters, peer, &files).unwrap_err();
    assert_eq!(reason("runai-model-streamer"), "ValueError: no such region");
    assert_eq!(reason("tensorizer"), "it ended with exit status: 3: out of memory");
    assert!(reason("rclone").contains("does not load from file"), "{}", reason("rclone"));
    let wrong = load(&adapters, "safetensors-pread", &files).unwrap();
    assert!(wrong.prove(&sums(&made)).unwrap_err().starts_with("it loaded wrong bytes of model-"));
}
