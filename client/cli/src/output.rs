//! Stdout: results, and nothing else.
//!
//! A reader that goes away early (`forebay ls | head -1`) is no failure: the command just ends.

use std::io::{self, Stdout, Write};

use serde::Serialize;

use crate::args::Format;
use crate::error::CliError;
use crate::is_json;

/// Where results go, and how they look.
#[derive(Debug)]
pub(crate) struct Output<W = Stdout> {
    format: Format,
    writer: W,
}

impl Output<Stdout> {
    /// The process's stdout.
    pub(crate) fn stdout(format: Format) -> Self {
        Self { format, writer: io::stdout() }
    }
}

impl<W: Write> Output<W> {
    /// Whether results are objects for scripts.
    pub(crate) fn is_json(&self) -> bool {
        is_json(self.format)
    }

    /// How results look.
    pub(crate) fn format(&self) -> Format {
        self.format
    }

    /// Writes text as it is, and lets it be seen.
    pub(crate) fn text(&mut self, text: &str) -> Result<(), CliError> {
        let written = self.writer.write_all(text.as_bytes()).and_then(|()| self.writer.flush());
        written.map_err(|error| match error.kind() {
            io::ErrorKind::BrokenPipe => CliError::BrokenPipe,
            _ => CliError::local("write to stdout", error),
        })
    }

    /// Writes one object on a line of its own.
    pub(crate) fn object<T: Serialize>(&mut self, object: &T) -> Result<(), CliError> {
        let line = serde_json::to_string(object)
            .map_err(|error| CliError::local("encode the result", error))?;
        self.text(&(line + "\n"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Closed;

    impl Write for Closed {
        fn write(&mut self, _bytes: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::BrokenPipe.into())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_reader_that_went_away_is_no_failure() {
        let mut output = Output { format: Format::Human, writer: Closed };
        assert!(matches!(output.text("x"), Err(CliError::BrokenPipe)));
    }

    #[test]
    fn an_object_is_a_line() {
        let mut output = Output { format: Format::Json, writer: Vec::new() };
        output.object(&["a\nb"]).unwrap();
        assert_eq!(output.writer, b"[\"a\\nb\"]\n");
    }
}
