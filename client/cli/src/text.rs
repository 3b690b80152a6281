//! How numbers, names and tables look to a person.

use std::fmt::Write;
use std::time::Duration;

use forebay_client::model::{BytesByTier, Revision};

/// Space between columns.
const GAP: usize = 3;

/// `0 B`, `1.5 KiB`, `86.7 MiB`, `1.0 GiB`.
pub(crate) fn size(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut unit = 0;
    let mut divisor = 1024_u64;
    // The next unit begins where rounding to a tenth would show 1024.0.
    while unit + 1 < UNITS.len() && bytes.saturating_mul(20) >= divisor.saturating_mul(20_479) {
        unit += 1;
        divisor = divisor.saturating_mul(1024);
    }
    let tenths = (u128::from(bytes) * 10 + u128::from(divisor) / 2) / u128::from(divisor);
    format!("{}.{} {}", tenths / 10, tenths % 10, UNITS.get(unit).unwrap_or(&"B"))
}

/// `850us`, `12.3ms`, `4.56s`, `3m05s`, `2h07m`.
pub(crate) fn duration(time: Duration) -> String {
    let seconds = time.as_secs();
    match time {
        _ if time.is_zero() => "0s".into(),
        _ if time < Duration::from_millis(1) => format!("{}us", time.as_micros()),
        _ if time < Duration::from_secs(1) => format!("{:.1}ms", time.as_secs_f64() * 1e3),
        _ if seconds < 60 => format!("{:.2}s", time.as_secs_f64()),
        _ if seconds < 3600 => format!("{}m{:02}s", seconds / 60, seconds % 60),
        _ => format!("{}h{:02}m", seconds / 3600, seconds / 60 % 60),
    }
}

/// Bytes a second in decimal gigabytes, as networks and disks are sold.
pub(crate) fn rate(bytes: u64, time: Duration) -> String {
    match time.is_zero() {
        true => "-".into(),
        false => {
            #[allow(clippy::cast_precision_loss, reason = "shown with two digits")]
            let gigabytes = bytes as f64 / 1e9;
            format!("{:.2} GB/s", gigabytes / time.as_secs_f64())
        }
    }
}

/// `1 checkpoint`, `2 checkpoints`.
pub(crate) fn count(number: u64, thing: &str) -> String {
    format!("{number} {thing}{}", if number == 1 { "" } else { "s" })
}

/// What the tiers of a node hold, without those that hold nothing.
pub(crate) fn tiers(bytes: BytesByTier) -> String {
    match bytes {
        BytesByTier { ram: 0, nvme: 0, .. } => "nothing".into(),
        BytesByTier { ram, nvme: 0, .. } => format!("RAM {}", size(ram)),
        BytesByTier { ram: 0, nvme, .. } => format!("NVMe {}", size(nvme)),
        BytesByTier { ram, nvme, .. } => format!("RAM {} and NVMe {}", size(ram), size(nvme)),
    }
}

/// The start of a revision, enough to tell two apart.
pub(crate) fn short(revision: &Revision) -> &str {
    revision.as_str().get(.."b3:".len() + 12).unwrap_or(revision.as_str())
}

/// A name that others chose, safe for a terminal.
pub(crate) fn printable(name: &str) -> String {
    let mut text = String::with_capacity(name.len());
    for character in name.chars() {
        match character.is_control() {
            true => text.extend(character.escape_default()),
            false => text.push(character),
        }
    }
    text
}

/// A table: columns as wide as their widest cell, the last one as it is.
#[derive(Debug)]
pub(crate) struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with these headings.
    pub(crate) fn new(headings: &[&str]) -> Self {
        Self { rows: vec![headings.iter().map(|&heading| heading.to_owned()).collect()] }
    }

    /// Adds a row.
    pub(crate) fn row(&mut self, cells: Vec<String>) {
        self.rows.push(cells);
    }

    /// Whether there are only headings.
    pub(crate) fn is_empty(&self) -> bool {
        self.rows.len() <= 1
    }

    /// The lines.
    pub(crate) fn render(&self) -> String {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |column: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(column));
            cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        let mut text = String::new();
        for row in &self.rows {
            let mut line = String::new();
            for (cell, width) in row.iter().zip(&widths) {
                // Writing to a string cannot fail.
                write!(line, "{cell:<width$}{:GAP$}", "").ok();
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        for (bytes, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (1536, "1.5 KiB"),
            ((1 << 20) - 1, "1.0 MiB"),
            (90_868_376, "86.7 MiB"),
            (1 << 30, "1.0 GiB"),
            (u64::MAX, "16384.0 PiB"),
        ] {
            assert_eq!(size(bytes), text);
        }
    }

    #[test]
    fn tiers_that_hold_nothing_are_left_out() {
        let held = |ram, nvme| tiers(BytesByTier { ram, nvme, origin: 7 });
        assert_eq!(held(0, 0), "nothing");
        assert_eq!(held(1024, 0), "RAM 1.0 KiB");
        assert_eq!(held(0, 3), "NVMe 3 B");
        assert_eq!(held(1, 2), "RAM 1 B and NVMe 2 B");
    }

    #[test]
    fn durations() {
        for (micros, text) in [
            (0, "0s"),
            (850, "850us"),
            (12_345, "12.3ms"),
            (4_560_000, "4.56s"),
            (185_000_000, "3m05s"),
            (7_620_000_000, "2h07m"),
        ] {
            assert_eq!(duration(Duration::from_micros(micros)), text);
        }
    }

    #[test]
    fn columns_line_up_and_names_cannot_move_the_cursor() {
        let mut table = Table::new(&["URI", "SIZE"]);
        table.row(vec![printable("s3://b/\x1b[2Jü"), "1 B".into()]);
        let lines = ["URI                 SIZE", "s3://b/\\u{1b}[2Jü   1 B", ""];
        assert_eq!(table.render(), lines.join("\n"));
    }
}
