//! What the fuzz targets run, and the suite replays over their corpora: one function per parser of
//! foreign bytes. Each takes any bytes, must not panic, and asserts what has to hold of what it
//! accepts.

use crate::coding::{Coding, Frame, PlaneRun, Width};
use crate::decode::{FrameDecoder, StreamDecoder, WINDOW_LOG_MAX};
use crate::gguf::{self, Parsed};
use crate::manifest::PackManifest;
use crate::tensor::TensorEntry;
use crate::{safetensors, scan};

/// A name and what runs under it.
pub type Target = (&'static str, fn(&[u8]));

/// Targets by name: the folders of the corpora, and the files of the fuzz package.
pub const TARGETS: &[Target] = &[
    ("safetensors", safetensors_header),
    ("gguf", gguf_header),
    ("manifest", pack_manifest),
    ("seek_table", seek_table),
    ("frame", frame),
];

/// Plain bytes of the frame that [`frame`] decodes into.
const FRAME_BYTES: usize = 4096;

fn in_object(tensors: &[TensorEntry], object_bytes: u64) {
    let mut end = 0;
    for tensor in tensors.iter().filter(|tensor| tensor.bytes > 0) {
        assert!(tensor.offset >= end, "tensors overlap");
        end = tensor.offset.saturating_add(tensor.bytes);
        assert!(end <= object_bytes, "a tensor ends after its object");
    }
}

/// A safetensors header, as an object of a mebibyte, and an index.
pub fn safetensors_header(bytes: &[u8]) {
    const OBJECT_BYTES: u64 = 1 << 20;
    if let Ok(tensors) = safetensors::parse_whole(bytes, OBJECT_BYTES) {
        in_object(&tensors, OBJECT_BYTES);
    }
    if let Ok(shards) = safetensors::parse_index(bytes) {
        let beside = |shard: &String| shard.split('/').all(|part| !matches!(part, "" | "." | ".."));
        assert!(shards.iter().all(beside), "a shard that is not beside its index");
    }
}

/// A GGUF header, as the beginning of an object of a mebibyte, and as a whole object.
pub fn gguf_header(bytes: &[u8]) {
    for object_bytes in [1 << 20, bytes.len() as u64] {
        match gguf::parse(bytes, object_bytes) {
            Ok(Parsed::Tensors { tensors, header_bytes }) => {
                assert!(header_bytes <= bytes.len() as u64, "more header than bytes");
                in_object(&tensors, object_bytes);
            }
            Ok(Parsed::Need(needed)) => {
                let more = needed > bytes.len() as u64 && needed <= object_bytes;
                assert!(more, "{needed} bytes are no progress");
            }
            Err(_refused) => {}
        }
    }
}

/// A manifest: as it is, and with the digest that would make it one.
pub fn pack_manifest(bytes: &[u8]) {
    let line = bytes.strip_suffix(b"\n").unwrap_or(bytes);
    let mut sealed = [line, b"\n"].concat();
    let digest = blake3::hash(&sealed).to_hex();
    sealed.extend_from_slice(format!("b3:{digest}\n").as_bytes());
    for bytes in [bytes, &sealed] {
        let Ok(manifest) = PackManifest::parse(bytes) else { continue };
        let again = manifest.to_bytes().map(|bytes| PackManifest::parse(&bytes));
        assert!(again == Ok(Ok(manifest.clone())), "a manifest does not survive being written");
        for object in &manifest.objects {
            let coding = manifest.coding(object);
            assert!(coding.is_ok_and(|coding| coding.plain_bytes() == object.bytes));
        }
    }
}

/// A whole stored object: its seek table, and its frames without one.
pub fn seek_table(bytes: &[u8]) {
    let object_bytes = bytes.len() as u64;
    let mut found = Vec::new();
    if let Ok(Some(table_bytes)) = scan::seek_table_bytes(bytes)
        && let Some(at) = object_bytes.checked_sub(table_bytes)
    {
        let table = usize::try_from(at).ok().and_then(|at| bytes.get(at..)).unwrap_or_default();
        found.extend(scan::seek_table(table, object_bytes).map(|table| table.frames));
    }
    found.extend(scan::scan_whole(bytes));
    for frames in found {
        let plain_bytes = frames.last().map_or(0, |last| last.plain_range().end);
        let coding = Coding::new(object_bytes, plain_bytes, frames, Vec::new(), 0);
        assert!(coding.is_ok(), "frames that make no coding: {coding:?}");
    }
}

/// One frame, with and without planes; and as a stream.
pub fn frame(bytes: &[u8]) {
    let Ok(mut decoder) = FrameDecoder::new() else { return };
    let run = |offset, bytes, width| PlaneRun { offset, bytes, width };
    let planes =
        [vec![], vec![run(1, 1001, Width::Two), run(1003, FRAME_BYTES as u64 - 1003, Width::Four)]];
    for planes in planes {
        let (stored_bytes, plain_bytes) = (bytes.len() as u64, FRAME_BYTES as u64);
        let frame =
            Frame { stored_offset: 0, stored_bytes, plain_offset: 0, plain_bytes, digest: None };
        let coding = Coding::new(stored_bytes, plain_bytes, vec![frame], planes, 1024);
        // No bytes are no frame, and no coding.
        let Ok(coding) = coding else { continue };
        let mut into = vec![0; FRAME_BYTES];
        let _decoded = decoder.decode(&coding, 0, bytes, &mut into).is_ok();
    }
    stream(bytes);
}

/// Decodes a stream in small steps, up to a few mebibytes of output.
fn stream(bytes: &[u8]) {
    let Ok(mut decoder) = StreamDecoder::new(WINDOW_LOG_MAX.min(20)) else { return };
    let (mut at, mut room) = (0, [0; 1024]);
    for _ in 0..4096 {
        let input = bytes.get(at..bytes.len().min(at + 100)).unwrap_or_default();
        let Ok(step) = decoder.decode(input, &mut room) else { return };
        assert!(step.consumed <= input.len() && step.produced <= room.len());
        at += step.consumed;
        if step.consumed == 0 && step.produced == 0 {
            return;
        }
    }
}
