//! A network and a mount namespace for the bench and the daemons that it starts.
//!
//! What is done to packets and to `/etc/resolv.conf` there is seen by nobody else, and is gone when
//! the bench ends. Namespaces are for root here; `nft` and `mount` are the system's.

use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::Outcome;

/// Set in the environment of a bench that is in namespaces of its own.
const INSIDE: &str = "FOREBAY_BENCH_ISOLATED";

/// Starts the loopback device, then the bench again.
const SCRIPT: &str = "ip link set lo up && exec \"$0\" \"$@\"";

/// Starts this process again in namespaces of its own, with the same arguments, if that is allowed;
/// it then does not return. Where it is not allowed, the rows that need it are skipped.
pub fn isolate() {
    if is_isolated() || missing("unshare").is_some() || missing("ip").is_some() {
        return;
    }
    let unshare = ["--net", "--mount", "--propagation", "private"];
    let allowed = Command::new("unshare").args(unshare).arg("true").stderr(Stdio::null()).status();
    let Ok(exe) = std::env::current_exe() else { return };
    if allowed.is_ok_and(|status| status.success()) {
        let mut again = Command::new("unshare");
        again.args(unshare).args(["--", "sh", "-c", SCRIPT]).arg(exe);
        // It only returns if it could not be started, and then this process goes on without.
        drop(again.args(std::env::args_os().skip(1)).env(INSIDE, "1").exec());
    }
}

fn is_isolated() -> bool {
    std::env::var_os(INSIDE).is_some()
}

/// Why a program cannot be used.
fn missing(program: &str) -> Option<String> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).any(|dir| dir.join(program).is_file());
    (!found).then(|| format!("the program {program} is not installed"))
}

/// Why the network of this process cannot be played with, if it cannot.
pub(super) fn refused() -> Option<String> {
    if is_isolated() {
        return None;
    }
    Some("it needs namespaces of its own: root, and the programs unshare and ip".to_owned())
}

/// Rules for packets on the loopback device; they are gone when this is dropped.
pub(super) struct Rules(());

impl Rules {
    /// Why there can be none.
    pub(super) fn refused() -> Option<String> {
        refused().or_else(|| missing("nft"))
    }

    /// Has the kernel apply a rule to everything that comes in.
    pub(super) fn apply(rule: &str) -> Outcome<Self> {
        let table = format!(
            "table inet bench {{\nchain incoming {{\ntype filter hook input priority 0\n{rule}\n}}\n}}\n"
        );
        succeed(Command::new("nft").arg(table))?;
        Ok(Self(()))
    }
}

impl Drop for Rules {
    fn drop(&mut self) {
        // The namespace goes with the process, whatever becomes of this.
        drop(succeed(Command::new("nft").args(["delete", "table", "inet", "bench"])));
    }
}

/// Lays a file over another one, for this process and its children.
pub(super) fn lay_over(file: &Path, place: &str) -> Outcome<()> {
    succeed(Command::new("mount").arg("--bind").arg(file).arg(place))
}

fn succeed(command: &mut Command) -> Outcome<()> {
    let output = command.output()?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(format!("{command:?}: {}: {}", output.status, said.trim()).into())
}
