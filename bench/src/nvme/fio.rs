//! `fio`, the yardstick: direct reads through io_uring into registered memory, of files that are
//! there already. Registered, since the daemon's memory is too: without it `fio` is up to half as
//! fast on some disks, at several times the CPU.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use crate::Outcome;
use crate::measure::Measurement;

/// How many reads at a time, and how large each is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Shape {
    depth: u32,
    mebibytes: u32,
}

/// What it may be best at.
pub(crate) const SHAPES: [Shape; 4] = [
    Shape { depth: 32, mebibytes: 1 },
    Shape { depth: 8, mebibytes: 4 },
    Shape { depth: 16, mebibytes: 8 },
    Shape { depth: 32, mebibytes: 8 },
];

impl Shape {
    /// Its name in the table.
    pub(crate) fn name(self) -> String {
        let Self { depth, mebibytes } = self;
        format!("fio, {depth} of {mebibytes} MiB")
    }
}

/// Whether it is there, and how to get it.
pub(crate) fn check() -> Outcome<()> {
    let told = Command::new("fio").arg("--version").output();
    match told {
        Ok(told) if told.status.success() => Ok(()),
        _ => Err("these rows compare with fio, which is not there: apt-get install fio".into()),
    }
}

/// Reads all files below a directory once, whole blocks of them. The time is fio's own, from its
/// first read to its last.
pub(crate) fn read(dir: &Path, shape: Shape) -> Outcome<Measurement> {
    let Shape { depth, mebibytes } = shape;
    let mut command = Command::new("fio");
    command.args(["--name=read", "--readonly", "--rw=read", "--direct=1", "--ioengine=io_uring"]);
    command.args(["--fixedbufs", "--file_service_type=sequential", "--output-format=json"]);
    command.arg(format!("--iodepth={depth}")).arg(format!("--bs={mebibytes}m"));
    command.arg(format!("--opendir={}", dir.display()));
    let output = command.output()?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        let hint = "it needs a memlock limit of 257 MiB";
        return Err(format!("fio ended with {} ({hint}): {said}", output.status).into());
    }
    measured(&output.stdout)
}

/// What there is in whole blocks of this shape below a directory: what [`read`] reads.
pub(crate) fn whole_blocks(dir: &Path, shape: Shape) -> Outcome<u64> {
    let block = u64::from(shape.mebibytes) << 20;
    let mut bytes = 0;
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        let kind = entry.file_type()?;
        bytes += match kind.is_dir() {
            true => whole_blocks(&entry.path(), shape)?,
            false if kind.is_file() => entry.metadata()?.len() / block * block,
            false => 0,
        };
    }
    Ok(bytes)
}

fn measured(output: &[u8]) -> Outcome<Measurement> {
    // Notes may come before the object.
    let start = output.iter().position(|byte| *byte == b'{').unwrap_or(output.len());
    let report: Value = serde_json::from_slice(&output[start..])?;
    let job = &report["jobs"][0];
    let number = |value: &Value| value.as_f64().ok_or("fio did not say what it did");
    let read = &job["read"];
    let bytes = read["io_bytes"].as_u64().ok_or("fio did not say how much it read")?;
    let milliseconds = read["runtime"].as_u64().ok_or("fio did not say how long it took")?;
    if job["error"].as_i64() != Some(0) || bytes == 0 || milliseconds == 0 {
        return Err(format!("fio read {bytes} bytes, error {}", job["error"]).into());
    }
    let wall = Duration::from_millis(milliseconds);
    let share = (number(&job["usr_cpu"])? + number(&job["sys_cpu"])?) / 100.0;
    Ok(Measurement { wall, bytes, cpu: vec![("fio", wall.mul_f64(share))] })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_of_a_file_is_no_block() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("below")).unwrap();
        for (name, bytes) in [("a", (9 << 20) + 5), ("below/b", 8 << 20), ("below/c", 7)] {
            std::fs::File::create(dir.path().join(name)).unwrap().set_len(bytes).unwrap();
        }
        let shape = |mebibytes| Shape { depth: 1, mebibytes };
        assert_eq!(whole_blocks(dir.path(), shape(1)).unwrap(), 17 << 20);
        assert_eq!(whole_blocks(dir.path(), shape(8)).unwrap(), 16 << 20);
    }

    #[test]
    fn what_fio_says_is_understood_or_an_error() {
        let said = r#"fio: a note
            {"jobs": [{"error": 0, "usr_cpu": 1.5, "sys_cpu": 8.5,
             "read": {"io_bytes": 4000000000, "runtime": 4000}}]}"#;
        let run = measured(said.as_bytes()).unwrap();
        assert!((run.gigabytes_per_second() - 1.0).abs() < 1e-9);
        assert_eq!(run.cpu, [("fio", Duration::from_millis(400))]);
        for bad in ["", "{}", &said.replace("\"error\": 0", "\"error\": 5")] {
            measured(bad.as_bytes()).unwrap_err();
        }
        measured(said.replace("4000}", "0}").as_bytes()).unwrap_err();
    }
}
