//! What the built `forebayd` and `forebay` make of a command line that a manifest has.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use forebay_testkit::temp_dir;

use crate::binaries::{forebay, forebayd};

/// The settings that a daemon would work with.
#[derive(Debug)]
pub(super) struct Resolved(BTreeMap<String, String>);

impl Resolved {
    /// Of a command line and an environment; `files` are what it sees of files, by their paths there.
    pub(super) fn of(
        args: &[String],
        env: &[(String, String)],
        files: &[(String, String)],
    ) -> Result<Self, String> {
        let at_config = args.iter().position(|arg| arg == "--config").map(|at| at + 1);
        if let Some(path) = at_config.and_then(|at| args.get(at))
            && !files.iter().any(|(mounted, _)| mounted == path)
        {
            return Err(format!("nothing is mounted at {path}"));
        }
        let mut shown = check_config(args, env, files);
        // A node has more memory than the machine that runs this.
        if shown.as_ref().is_err_and(|of| of.contains(" this host allows")) {
            let small = [env, &[("FOREBAY_RAM".to_owned(), "64MiB".to_owned())]].concat();
            let written = files.iter().flat_map(|(_, text)| text.lines());
            let mut ram = written.filter_map(|line| line.strip_prefix("ram = "));
            let ram = ram.next().map(|ram| format!("ram = {ram}"));
            shown = check_config(args, &small, files);
            shown = shown.map(|shown| format!("{shown}\n{}", ram.unwrap_or_default()));
        }
        let shown = shown?;
        let pairs = shown.lines().filter_map(|line| line.split_once(" = "));
        let bare = |text: &str| text.trim_matches(['[', ']']).replace('"', "");
        Ok(Self(pairs.map(|(key, value)| (key.to_owned(), bare(value))).collect()))
    }

    pub(super) fn get(&self, key: &str) -> &str {
        self.0.get(key).unwrap_or_else(|| panic!("forebayd shows no {key}"))
    }

    /// The first socket.
    pub(super) fn socket(&self) -> PathBuf {
        let first = self.get("listen").split(", ").next().unwrap();
        PathBuf::from(first.strip_prefix("unix://").unwrap())
    }

    /// The folder of the first socket.
    pub(super) fn socket_folder(&self) -> PathBuf {
        self.socket().parent().unwrap().to_owned()
    }

    /// The port of the metrics, and whether it can be reached from outside.
    pub(super) fn metrics(&self) -> Option<(u16, bool)> {
        let (host, port) = self.get("metrics").rsplit_once(':')?;
        Some((port.parse().unwrap(), host != "127.0.0.1"))
    }

    pub(super) fn allows(&self, uid: u64) -> bool {
        self.get("allow_uids").split(", ").any(|allowed| allowed == uid.to_string())
    }

    pub(super) fn drain(&self) -> Duration {
        let millis = self.get("drain").strip_suffix("ms").unwrap();
        Duration::from_millis(millis.parse().unwrap())
    }

    pub(super) fn ram_bytes(&self) -> u64 {
        bytes(self.get("ram")).unwrap()
    }
}

/// What `forebayd --check-config` prints.
fn check_config(
    args: &[String],
    env: &[(String, String)],
    files: &[(String, String)],
) -> Result<String, String> {
    let dir = temp_dir();
    let copied = args.iter().map(|arg| {
        let Some((path, text)) = files.iter().find(|(path, _)| path == arg) else {
            return arg.clone();
        };
        let copy = dir.path().join(Path::new(path).file_name().unwrap());
        std::fs::write(&copy, text).unwrap();
        copy.display().to_string()
    });
    let mut command = Command::new(forebayd());
    command.env_clear().envs(env.iter().cloned()).arg("--check-config").args(copied);
    let output = command.output().unwrap();
    match output.status.success() {
        true => Ok(String::from_utf8(output.stdout).unwrap()),
        false => Err(format!("forebayd: {}", said(&output))),
    }
}

/// An amount as Kubernetes (512Mi), compose (2g) and the settings (1GiB) have them.
pub(super) fn bytes(text: &str) -> Option<u64> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let factor: u64 = match &text[digits.len()..] {
        "" => 1,
        "Ki" | "KiB" | "k" => 1 << 10,
        "Mi" | "MiB" | "m" => 1 << 20,
        "Gi" | "GiB" | "g" => 1 << 30,
        "Ti" | "TiB" => 1 << 40,
        "M" | "MB" => 1_000_000,
        "G" | "GB" => 1_000_000_000,
        _ => return None,
    };
    digits.parse::<u64>().ok()?.checked_mul(factor)
}

/// Why `forebay` would not run with these arguments: they are tried where no daemon is.
pub(super) fn cannot_run(args: &[String]) -> Option<String> {
    let dir = temp_dir();
    let nowhere = format!("unix://{}", dir.path().join("none.sock").display());
    let output =
        Command::new(forebay()).env_clear().env("FOREBAY_ENDPOINT", nowhere).args(args).output();
    let output = output.unwrap();
    (output.status.code() != Some(7)).then(|| format!("forebay {args:?}: {}", said(&output)))
}

fn said(output: &Output) -> String {
    format!("{} {}", output.status, String::from_utf8_lossy(&output.stderr).trim())
}
