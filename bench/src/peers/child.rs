//! One load in a process of its own, and what it says.
//!
//! A peer's adapter and our own client keep the same rules: the child prepares itself, says
//! `{"ready": true}` on its standard output, waits for a line on its standard input, loads, and
//! says in one line of JSON what that came to. Between the two its parent makes the machine ready.
//! What it prints besides goes to a file, whose end is the reason if it dies without an answer.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use serde_json::Value;

use crate::Outcome;

/// Of what a child printed, how much of the end is told as the reason.
const REASON_CHARS: usize = 300;

/// What a load came to, by the process that did it.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Told {
    /// From the call until all bytes are there.
    pub(super) wall_seconds: f64,
    /// User and system, of the process and its children.
    pub(super) cpu_seconds: f64,
    /// Until the first tensor, or whole file, is usable.
    pub(super) first_seconds: f64,
    /// Bytes that arrived.
    pub(super) bytes: u64,
    /// The most memory that it had.
    pub(super) peak_bytes: u64,
    /// What a disk had to bring for it.
    pub(super) disk_bytes: u64,
    /// Of a load through a daemon: what was in its RAM.
    pub(super) ram_bytes: u64,
    /// CRC-32 of tensors or files, by name; empty unless asked for.
    pub(super) sums: BTreeMap<String, u32>,
}

impl Told {
    /// Reads an answer.
    ///
    /// # Errors
    /// With the reason that the child gives, or with what is wrong with the answer.
    pub(super) fn parse(line: &str) -> Result<Self, String> {
        let odd = || format!("it answered {:?}", line.trim());
        let value: Value = serde_json::from_str(line).map_err(|_| odd())?;
        if let Some(error) = value.get("error") {
            return Err(error.as_str().map_or_else(odd, str::to_owned));
        }
        Self::of(&value).ok_or_else(odd)
    }

    fn of(value: &Value) -> Option<Self> {
        let seconds = |name: &str| value.get(name)?.as_f64().filter(|seconds| *seconds >= 0.0);
        let bytes = |name: &str| value.get(name)?.as_u64();
        let sums = value.get("crc32").and_then(Value::as_object).into_iter().flatten();
        let sum = |(name, sum): (&String, &Value)| {
            Some((name.clone(), u32::try_from(sum.as_u64()?).ok()?))
        };
        Some(Self {
            wall_seconds: seconds("wall").filter(|seconds| *seconds > 0.0)?,
            cpu_seconds: seconds("cpu")?,
            first_seconds: seconds("first")?,
            bytes: bytes("bytes").filter(|bytes| *bytes > 0)?,
            peak_bytes: bytes("peak_bytes")?,
            disk_bytes: bytes("disk_bytes")?,
            ram_bytes: bytes("ram_bytes").unwrap_or(0),
            sums: sums.map(sum).collect::<Option<_>>()?,
        })
    }

    /// Whether the bytes are those of every file, or of every tensor.
    ///
    /// # Errors
    /// Says what is wrong or missing.
    pub(super) fn prove(&self, expected: &[BTreeMap<String, u32>]) -> Result<(), String> {
        for (name, sum) in &self.sums {
            let right = expected.iter().find_map(|sums| sums.get(name));
            if right != Some(sum) {
                return Err(format!("it loaded wrong bytes of {name}"));
            }
        }
        let all = |sums: &BTreeMap<String, u32>| {
            !sums.is_empty() && sums.keys().all(|name| self.sums.contains_key(name))
        };
        match expected.iter().any(all) {
            true => Ok(()),
            false => Err(format!("it loaded {} names, which is not all", self.sums.len())),
        }
    }
}

/// A child that is getting ready; dropping it ends it.
#[derive(Debug)]
pub(super) struct Loader {
    child: Child,
    orders: ChildStdin,
    answers: BufReader<ChildStdout>,
    printed: File,
}

impl Loader {
    /// Starts it. That it cannot be started at all is a reason as any other.
    pub(super) fn start(mut command: Command) -> Outcome<Result<Self, String>> {
        let printed = tempfile::tempfile()?;
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(printed.try_clone()?);
        let mut child = match command.spawn() {
            Ok(child) => child,
            Err(error) => {
                let program = command.get_program().display();
                return Ok(Err(format!("{program} cannot be started: {error}")));
            }
        };
        let (Some(orders), Some(answers)) = (child.stdin.take(), child.stdout.take()) else {
            return Err("a child without pipes".into());
        };
        Ok(Ok(Self { child, orders, answers: BufReader::new(answers), printed }))
    }

    /// Waits until it is ready.
    pub(super) fn ready(&mut self) -> Outcome<Result<(), String>> {
        let line = match self.line()? {
            Ok(line) => line,
            Err(reason) => return Ok(Err(reason)),
        };
        let ready = serde_json::from_str(&line).is_ok_and(|said: Value| said["ready"] == true);
        Ok(if ready { Ok(()) } else { Told::parse(&line).map(|_| ()) })
    }

    /// Has it load.
    pub(super) fn go(&mut self) {
        // One that has died says why where its answer is read.
        self.orders.write_all(b"go\n").ok();
    }

    /// Waits for what that came to.
    pub(super) fn told(&mut self) -> Outcome<Result<Told, String>> {
        Ok(self.line()?.and_then(|line| Told::parse(&line)))
    }

    /// The next line, or why there is none.
    fn line(&mut self) -> Outcome<Result<String, String>> {
        let mut line = String::new();
        if self.answers.read_line(&mut line)? > 0 {
            return Ok(Ok(line));
        }
        let status = self.child.wait()?;
        let mut printed = Vec::new();
        self.printed.rewind()?;
        self.printed.read_to_end(&mut printed)?;
        Ok(Err(format!("it ended with {status}: {}", reason(&String::from_utf8_lossy(&printed)))))
    }
}

impl Drop for Loader {
    fn drop(&mut self) {
        // A child that has ended already cannot be killed, which is as it should be.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// The last line that is not empty, and not too much of it.
fn reason(printed: &str) -> String {
    let last = printed.lines().rfind(|line| !line.trim().is_empty()).unwrap_or("it said nothing");
    last.trim().chars().take(REASON_CHARS).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINE: &str = r#"{"peer": "p", "source": "s3", "wall": 1.5, "cpu": 2.0, "first": 0.5,
        "bytes": 100, "peak_bytes": 200, "disk_bytes": 7, "crc32": {"a": 4294967295, "b": 0}}"#;

    fn sums(of: &[(&str, u32)]) -> BTreeMap<String, u32> {
        of.iter().map(|(name, sum)| ((*name).to_owned(), *sum)).collect()
    }

    #[test]
    fn an_answer_is_read_whole_or_not_at_all() {
        let told = Told::parse(LINE).unwrap();
        assert_eq!(
            (told.bytes, told.peak_bytes, told.disk_bytes, told.ram_bytes),
            (100, 200, 7, 0)
        );
        assert!((told.wall_seconds - 1.5).abs() < 1e-9 && (told.first_seconds - 0.5).abs() < 1e-9);
        assert_eq!(told.sums, sums(&[("a", u32::MAX), ("b", 0)]));
        for (part, other) in [
            ("1.5", "0"),
            ("1.5", "-1"),
            ("\"bytes\": 100", "\"bytes\": 0"),
            ("\"cpu\": 2.0,", ""),
            ("4294967295", "4294967296"),
            ("}}", "}"),
        ] {
            let bad = LINE.replace(part, other);
            assert!(Told::parse(&bad).unwrap_err().starts_with("it answered"), "{bad}");
        }
        assert_eq!(Told::parse(r#"{"error": "no such thing"}"#).unwrap_err(), "no such thing");
        assert!(Told::parse(r#"{"error": 3}"#).unwrap_err().starts_with("it answered"));
    }

    #[test]
    fn bytes_are_right_if_all_files_or_all_tensors_are() {
        let told = Told::parse(LINE).unwrap();
        let (right, other) = (sums(&[("a", u32::MAX), ("b", 0)]), sums(&[("c", 1)]));
        told.prove(&[other.clone(), right.clone()]).unwrap();
        let wrong = [other.clone(), sums(&[("a", 1), ("b", 0)])];
        assert_eq!(told.prove(&wrong).unwrap_err(), "it loaded wrong bytes of a");
        let more = [other, right.into_iter().chain(sums(&[("z", 9)])).collect()];
        assert_eq!(told.prove(&more).unwrap_err(), "it loaded 2 names, which is not all");
        Told::default().prove(&[BTreeMap::new()]).unwrap_err();
    }

    #[test]
    fn the_reason_is_the_end_of_what_was_printed() {
        assert_eq!(reason("Traceback\n  ModuleNotFoundError: x\n\n"), "ModuleNotFoundError: x");
        assert_eq!(reason("\n"), "it said nothing");
        assert_eq!(reason(&"x".repeat(999)).len(), REASON_CHARS);
    }
}
