//! How far a command is: a bar on a terminal, plain lines elsewhere, both on stderr.

use std::io::{self, IsTerminal, Write};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::args::Format;
use crate::is_json;
use crate::text::size;

/// A plain line for each of so many parts.
const LINES: u64 = 10;

/// Progress in bytes.
#[derive(Debug)]
pub(crate) struct Progress {
    bar: ProgressBar,
    lines: Option<Lines>,
}

#[derive(Debug)]
struct Lines {
    subject: String,
    /// In parts of [`LINES`].
    shown: Option<u64>,
}

impl Progress {
    /// A bar if stderr is a terminal, else nothing.
    pub(crate) fn bar(format: Format, total_bytes: u64) -> Self {
        let is_drawn = !is_json(format) && io::stderr().is_terminal();
        let target = match is_drawn {
            true => ProgressDrawTarget::stderr(),
            false => ProgressDrawTarget::hidden(),
        };
        let bar = ProgressBar::with_draw_target(Some(total_bytes), target);
        let template = "{bar:40} {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec} {eta}";
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        Self { bar, lines: None }
    }

    /// A bar if stderr is a terminal, else lines about `subject`; neither for scripts.
    pub(crate) fn bar_or_lines(format: Format, subject: &str) -> Self {
        let mut progress = Self::bar(format, 0);
        if !is_json(format) && progress.bar.is_hidden() {
            progress.lines = Some(Lines { subject: subject.to_owned(), shown: None });
        }
        progress
    }

    /// So many more bytes are done.
    pub(crate) fn add(&mut self, bytes: u64) {
        self.bar.inc(bytes);
    }

    /// So many bytes are done, of so many.
    pub(crate) fn set(&mut self, done_bytes: u64, total_bytes: u64) {
        self.bar.set_length(total_bytes);
        self.bar.set_position(done_bytes);
        if let Some(line) =
            self.lines.as_mut().and_then(|lines| lines.next(done_bytes, total_bytes))
        {
            // A line that nobody can read is not worth failing for.
            io::stderr().lock().write_all(line.as_bytes()).ok();
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

impl Lines {
    /// The line for this state, unless one like it was shown.
    fn next(&mut self, done_bytes: u64, total_bytes: u64) -> Option<String> {
        let part = u128::from(done_bytes) * u128::from(LINES);
        let part = u64::try_from(part.checked_div(total_bytes.into())?).unwrap_or(LINES);
        if self.shown.is_some_and(|shown| part <= shown) {
            return None;
        }
        self.shown = Some(part);
        let (done, total) = (size(done_bytes), size(total_bytes));
        Some(format!("{}: {done} of {total} ({}%)\n", self.subject, part * 100 / LINES))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_come_at_tenths_and_once() {
        let mut lines = Lines { subject: "x".into(), shown: None };
        assert_eq!(lines.next(0, 0), None);
        assert_eq!(lines.next(0, 1000).unwrap(), "x: 0 B of 1000 B (0%)\n");
        assert_eq!(lines.next(99, 1000), None);
        assert_eq!(lines.next(350, 1000).unwrap(), "x: 350 B of 1000 B (30%)\n");
        assert_eq!(lines.next(350, 1000), None);
        assert_eq!(lines.next(1000, 1000).unwrap(), "x: 1000 B of 1000 B (100%)\n");
    }
}
