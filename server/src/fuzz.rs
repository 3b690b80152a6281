//! What the fuzz targets of the server run, and its suite replays over their corpora: the
//! configuration file and the `grpc-timeout` header. Each takes any bytes, must not panic, and
//! asserts what has to hold of what it accepts. The formats of objects have theirs in
//! `forebay-codec`.

use std::time::Duration;

use tokio::time::Instant;

use crate::config::Settings;
use crate::deadline::{Deadline, parse_grpc_timeout};

/// A name and what runs under it.
pub type Target = (&'static str, fn(&[u8]));

/// Targets by name: the folders of the corpora, and the files of the fuzz package.
pub const TARGETS: &[Target] = &[("config", config_file), ("grpc_timeout", grpc_timeout)];

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
