//! Sizes and durations as people write them: `512MiB`, `4GiB`, `25%`; `250ms`, `30s`, `10m`.

use std::time::Duration;

/// A size, absolute or as a share of what the host has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Size {
    /// Bytes.
    Bytes(u64),
    /// Per cent, 0 to 100.
    Percent(u8),
}

/// A text that is no size or duration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not {wanted}")]
pub(crate) struct BadUnit {
    text: String,
    wanted: &'static str,
}

const SIZE_WANTED: &str = "a size such as 512MiB, 4GiB or 25%";
const DURATION_WANTED: &str = "a duration such as 250ms, 30s or 10m";

impl Size {
    /// Reads a size. A bare `0` needs no unit; any other number does.
    pub(crate) fn parse(text: &str) -> Result<Self, BadUnit> {
        let bad = || BadUnit { text: text.to_owned(), wanted: SIZE_WANTED };
        let (number, unit) = split(text).ok_or_else(bad)?;
        if unit == "%" {
            let percent: u8 = number.parse().map_err(|_range| bad())?;
            return if percent <= 100 { Ok(Self::Percent(percent)) } else { Err(bad()) };
        }
        let factor: u64 = match unit {
            "B" => 1,
            "KiB" => 1 << 10,
            "MiB" => 1 << 20,
            "GiB" => 1 << 30,
            "TiB" => 1 << 40,
            "kB" | "KB" => 1_000,
            "MB" => 1_000_000,
            "GB" => 1_000_000_000,
            "TB" => 1_000_000_000_000,
            "" if number == "0" => 1,
            _ => return Err(bad()),
        };
        let number: u64 = number.parse().map_err(|_range| bad())?;
        number.checked_mul(factor).map(Self::Bytes).ok_or_else(bad)
    }

    /// In bytes, of a whole.
    pub(crate) fn of(self, whole: u64) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes,
            Self::Percent(percent) => whole / 100 * u64::from(percent),
        }
    }
}

/// Reads a duration: a whole number and one of `ms`, `s`, `m`, `h`.
pub(crate) fn parse_duration(text: &str) -> Result<Duration, BadUnit> {
    let bad = || BadUnit { text: text.to_owned(), wanted: DURATION_WANTED };
    let (number, unit) = split(text).ok_or_else(bad)?;
    let number: u64 = number.parse().map_err(|_range| bad())?;
    let millis = match unit {
        "ms" => Some(number),
        "s" => number.checked_mul(1000),
        "m" => number.checked_mul(60_000),
        "h" => number.checked_mul(3_600_000),
        _ => None,
    };
    millis.map(Duration::from_millis).ok_or_else(bad)
}

fn split(text: &str) -> Option<(&str, &str)> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    (end > 0).then(|| text.split_at(end))
}

/// Bytes with the largest binary unit that loses nothing.
pub(crate) fn show_bytes(bytes: u64) -> String {
    for (shift, unit) in [(40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")] {
        if bytes > 0 && bytes.is_multiple_of(1 << shift) {
            return format!("{}{unit}", bytes >> shift);
        }
    }
    format!("{bytes}B")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_need_a_unit() {
        assert_eq!(Size::parse("512MiB"), Ok(Size::Bytes(512 << 20)));
        assert_eq!(Size::parse("0"), Ok(Size::Bytes(0)));
        assert_eq!(Size::parse("1GB"), Ok(Size::Bytes(1_000_000_000)));
        assert_eq!(Size::parse("25%"), Ok(Size::Percent(25)));
        assert_eq!(Size::parse("25%").map(|size| size.of(1000)), Ok(250));
        for text in ["", "5", "MiB", "-1GiB", "1.5GiB", "101%", "1 GiB", "99999999999TiB", "4gib"] {
            assert!(Size::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn durations_need_a_unit() {
        assert_eq!(parse_duration("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(parse_duration("10m"), Ok(Duration::from_secs(600)));
        for text in ["", "30", "s", "1d", "-1s", "18446744073709551615h"] {
            assert!(parse_duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn shown_sizes_parse_back() {
        for bytes in [1, 1023, 1 << 10, 3 << 20, 5 << 30, 7 << 40, (1 << 30) + 1] {
            assert_eq!(Size::parse(&show_bytes(bytes)), Ok(Size::Bytes(bytes)));
        }
    }
}
