//! What the fuzz targets of the server run, and its suite replays over their corpora: the
//! configuration file and the headers `grpc-timeout` and `traceparent`. Each takes any bytes, must not panic, and
//! asserts what has to hold of what it accepts. The formats of objects have theirs in
//! `forebay-codec`.

use std::time::Duration;

use tokio::time::Instant;

use crate::config::Settings;
use crate::deadline::{Deadline, parse_grpc_timeout};
use crate::trace::TraceParent;

/// A name and what runs under it.
pub type Target = (&'static str, fn(&[u8]));

/// Targets by name: the folders of the corpora, and the files of the fuzz package.
pub const TARGETS: &[Target] =
    &[("config", config_file), ("grpc_timeout", grpc_timeout), ("traceparent", traceparent)];

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
