//! The real `zstd` reads what is written here, and what it writes is read here.

use std::io::Write;
use std::process::{Command, Stdio};

use forebay_codec::coding::Coding;
use forebay_codec::decode::{FrameDecoder, StreamDecoder, WINDOW_LOG_MAX};
use forebay_codec::encode::EncodeSettings;
use forebay_codec::{planes, scan};

use crate::contents::{Kind, contents, pack, two_runs, unpack};

/// Runs `zstd` with `input`; `None`, and why, where it is not installed.
fn zstd(arguments: &[&str], input: &[u8]) -> Option<Vec<u8>> {
    let spawned = Command::new("zstd")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn();
    let mut child = match spawned {
        Ok(child) => child,
        Err(error) => {
            println!("skipped: the zstd tool does not run: {error}");
            return None;
        }
    };
    let mut stdin = child.stdin.take().unwrap();
    let output = std::thread::scope(|scope| {
        scope.spawn(move || stdin.write_all(input).unwrap());
        child.wait_with_output().unwrap()
    });
    assert!(output.status.success(), "zstd {arguments:?}: {}", output.status);
    Some(output.stdout)
}

#[test]
fn the_tool_restores_what_is_packed() {
    let bytes = 300_001;
    for kind in [Kind::Weights, Kind::Text, Kind::Random, Kind::Zeros] {
        let settings = EncodeSettings { level: 2, tile: 4096 };
        let packed = pack(contents(kind, bytes, 1), vec![], 100_000, settings);
        let Some(plain) = zstd(&["-d", "-c"], &packed.stored) else { return };
        assert!(plain == packed.plain, "{kind:?}");

        let packed = pack(contents(kind, bytes, 1), two_runs(300_000), 100_000, settings);
        let Some(reordered) = zstd(&["-d", "-c"], &packed.stored) else { return };
        let mut plain = Vec::new();
        for (index, frame) in reordered.chunks(100_000).enumerate() {
            for (tile, from) in frame.chunks(4096).enumerate() {
                let mut into = vec![0; from.len()];
                let offset = (index * 100_000 + tile * 4096) as u64;
                planes::unsplit(packed.coding.planes(), offset, from, &mut into);
                plain.extend(into);
            }
        }
        assert!(plain == packed.plain, "{kind:?} in planes");
    }
}

#[test]
fn what_the_tool_writes_is_read() {
    let plain = contents(Kind::Text, 3_000_000, 1);
    // From a pipe it does not know the size; told it, it writes it.
    let size = format!("--stream-size={}", plain.len());
    for arguments in [&["-c"][..], &["-c", "-19", "--long=24"], &["-c", "--no-check"]] {
        let Some(silent) = zstd(arguments, &plain) else { return };
        let mut decoder = StreamDecoder::new(WINDOW_LOG_MAX).unwrap();
        let mut out = vec![0; plain.len() + 1];
        let step = decoder.decode(&silent, &mut out).unwrap();
        assert!(step.finished && step.consumed == silent.len(), "{step:?}");
        assert!(out[..step.produced] == plain, "{arguments:?}");

        let Some(sized) = zstd(&[arguments, &[&size]].concat(), &plain) else { return };
        let twice = [&sized[..], &sized].concat();
        let frames = scan::scan_whole(&twice).unwrap();
        assert_eq!(frames.len(), 2, "{arguments:?}");
        let plain_bytes = 2 * plain.len() as u64;
        let coding = Coding::new(twice.len() as u64, plain_bytes, frames, vec![], 0).unwrap();
        let out = unpack(&mut FrameDecoder::new().unwrap(), &coding, &twice).unwrap();
        assert!(out == [&plain[..], &plain].concat(), "{arguments:?}");
    }
}
