//! What the fuzz targets of the server run, and its suite replays over their corpora: the
//! configuration file, the headers `grpc-timeout` and `traceparent`, messages of the wire, URIs and
//! their keys, ranges of objects and tensors, and what the NVMe tier finds on its disk. Each takes
//! any bytes, must not panic, and asserts what has to hold of what it accepts. The formats of
//! objects have theirs in `forebay-codec`.

use std::time::Duration;

use forebay_proto::Shard;
use tokio::time::Instant;

use crate::config::Settings;
use crate::deadline::{Deadline, parse_grpc_timeout};
use crate::trace::TraceParent;

/// A name and what runs under it.
pub type Target = (&'static str, fn(&[u8]));

/// Targets by name: the folders of the corpora, and the files of the fuzz package.
pub const TARGETS: &[Target] = &[
    ("config", config_file),
    ("grpc_timeout", grpc_timeout),
    ("traceparent", traceparent),
    ("message", message),
    ("uri", uri),
    ("content_range", content_range),
    ("ranges", ranges),
    ("index", index),
];

/// The name of the file in messages.
const FILE: &str = "fuzzed.toml";

/// A configuration file: it is refused with its place, or makes settings which, as
/// `forebayd --check-config` prints them, make the same settings again.
pub fn config_file(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    match Settings::of_file(FILE, text) {
        Ok(settings) => {
            let printed = settings.to_string();
            let again = Settings::of_file(FILE, &printed).map(|again| again.to_string());
            assert!(again.as_ref() == Ok(&printed), "{printed}\nbecomes {again:?}");
        }
        Err(error) => assert!(error.to_string().contains(FILE), "no place: {error}"),
    }
}

/// A header: one that is accepted is digits and a unit, means that long, and a deadline can be made
/// of it.
pub fn grpc_timeout(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let Some(timeout) = parse_grpc_timeout(text) else { return };
    let count = text.bytes().take(text.len() - 1).fold(0, |sum: u128, digit| {
        assert!(digit.is_ascii_digit(), "{text:?} is not digits and a unit");
        sum * 10 + u128::from(digit - b'0')
    });
    let nanos: u128 = match text.as_bytes().last() {
        Some(b'H') => 3_600_000_000_000,
        Some(b'M') => 60_000_000_000,
        Some(b'S') => 1_000_000_000,
        Some(b'm') => 1_000_000,
        Some(b'u') => 1_000,
        _ => 1,
    };
    assert!(timeout.as_nanos() == count * nanos && text.len() <= 9, "{text:?} is {timeout:?}");
    let now = Instant::now();
    let left = Deadline::after(now, timeout).remaining(now);
    assert!(left == timeout && timeout <= Duration::from_hours(99_999_999), "{left:?}");
}

/// A header: what is made of one that is accepted, written again, is how it begins.
pub fn traceparent(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let Some(TraceParent { trace_id, parent, sampled }) = TraceParent::parse(text) else { return };
    let ids = format!("-{trace_id}-{parent:016x}-");
    assert!(text.get(2..53) == Some(&ids), "{text:?} is {ids}");
    let flags = text.get(53..55).and_then(|flags| u8::from_str_radix(flags, 16).ok());
    assert!(flags.is_some_and(|flags| (flags & 1 == 1) == sampled), "{text:?}");
    let ends =
        text.len() == 55 || !text.starts_with("00") && text.as_bytes().get(55) == Some(&b'-');
    assert!(ends && !text.starts_with("ff") && parent != 0, "{text:?}");
}

/// A message of a caller or of a daemon, behind a byte that says which.
pub fn message(bytes: &[u8]) {
    crate::rpc::fuzzed::message(bytes);
}

/// A URI, and the key in it.
pub fn uri(bytes: &[u8]) {
    forebay_origin::fuzz::uri(bytes);
}

/// What an origin says of which bytes it sends.
pub fn content_range(bytes: &[u8]) {
    forebay_origin::fuzz::content_range(bytes);
}

/// What a disk may bring back in the place of the index, or of an extent.
pub fn index(bytes: &[u8]) {
    crate::nvme::fuzzed::index_file(bytes);
}

/// A tensor and who wants which slice of it, in numbers of eight bytes: the slice and each part of
/// it lie in the tensor, and two halves of a tensor hold all of it.
pub fn ranges(bytes: &[u8]) {
    const DTYPES: [&str; 4] = ["BF16", "U8", "Q4_K", "no such"];
    let (numbers, _) = bytes.as_chunks();
    let mut numbers = numbers.iter().map(|number| u64::from_le_bytes(*number));
    let mut next = || numbers.next().unwrap_or_default();
    let [rank, ranks, dim] = [next(), next(), next()].map(|n| u32::try_from(n).unwrap_or(u32::MAX));
    let (dtype, tensor_bytes, cut) = (next(), next(), next());
    let dtype = usize::try_from(dtype).ok().and_then(|n| DTYPES.get(n)).unwrap_or(&"F32");
    let shape: Vec<u64> = (0..1 + next() % 4).map(|_| next()).collect();
    let shard = Shard::new(rank, ranks).and_then(|shard| shard.along("**", dim));
    let Ok(slice) = shard.and_then(|shard| shard.slice("w", dtype, &shape, tensor_bytes)) else {
        return;
    };
    let wide = u128::from;
    let end = |first: u64, rows: u64, row: u64| {
        wide(first) + wide(rows.saturating_sub(1)) * wide(slice.pitch) + wide(row)
    };
    let within = end(slice.start, slice.runs, slice.run_bytes) <= wide(tensor_bytes);
    assert!(within && slice.bytes() <= tensor_bytes, "{slice:?} of {tensor_bytes}");
    let cut = cut % tensor_bytes.saturating_add(1).max(1);
    let mut sum = 0;
    for range in [0..cut, cut..tensor_bytes] {
        for part in slice.parts(range.clone()) {
            let behind = end(part.tensor_start, part.rows, part.row_bytes);
            let inside = part.tensor_start >= range.start && behind <= wide(range.end);
            assert!(inside, "{part:?} of {slice:?} is not in {range:?}");
            sum += part.row_bytes * part.rows;
        }
    }
    assert!(sum == slice.bytes(), "{slice:?} has {sum} bytes before and behind {cut}");
}
