//! Where the binaries under test are, and that they are those of this tree.
//!
//! `cargo test --workspace` builds them beside this test, because their own packages have tests
//! that run them; `cargo test -p forebay-bench` alone does not. So each is looked up beside this
//! test, and built, once, if it is missing or older than one of the sources that cargo says it was
//! made of.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::SystemTime;

/// The daemon.
pub(crate) fn forebayd() -> &'static Path {
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    PATH.get_or_init(|| built("forebayd", "forebay-server", &["--bin", "forebayd"]))
}

/// The command.
pub(crate) fn forebay() -> &'static Path {
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    PATH.get_or_init(|| built("forebay", "forebay-cli", &["--bin", "forebay"]))
}

/// The C library.
pub(crate) fn libforebay() -> &'static Path {
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    PATH.get_or_init(|| built("libforebay.so", "forebay-ffi", &["--lib"]))
}

fn built(name: &str, package: &str, target: &[&str]) -> PathBuf {
    let exe = std::env::current_exe().expect("a test knows its own path");
    let deps = exe.parent().expect("a test lies in target/PROFILE/deps");
    let folder = deps.parent().expect("a test lies in target/PROFILE/deps");
    let path = folder.join(name);
    if !is_fresh(&path) {
        let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        cargo.args(["build", "--offline", "--package", package]).args(target);
        // What cargo says to this test would have build scripts think that their package has
        // changed.
        let of_cargo = std::env::vars_os().filter(|(name, _)| is_of_a_package(name));
        for (name, _) in of_cargo {
            cargo.env_remove(name);
        }
        if folder.file_name().is_some_and(|profile| profile == "release") {
            cargo.arg("--release");
        }
        let status = cargo.status().expect("cargo can be run");
        assert!(status.success(), "cargo build --package {package}: {status}");
    }
    assert!(path.exists(), "{} is missing: run `cargo build --workspace` first", path.display());
    path
}

fn is_of_a_package(variable: &OsStr) -> bool {
    let prefixes = ["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_CRATE_", "CARGO_BIN_"];
    variable.to_str().is_some_and(|name| prefixes.iter().any(|prefix| name.starts_with(prefix)))
}

/// Whether the binary is there and no older than its sources.
fn is_fresh(path: &Path) -> bool {
    let modified = |path: &Path| path.metadata().and_then(|found| found.modified()).ok();
    let Some(built) = modified(path) else { return false };
    let Ok(made_of) = std::fs::read_to_string(path.with_extension("d")) else { return false };
    // One line: the binary, a colon, and its sources, with spaces in names escaped.
    let sources = made_of.split_once(": ").map_or("", |(_, sources)| sources);
    let sources = sources.replace("\\ ", "\0");
    // A copied target folder has binaries of another tree.
    let tree = Path::new(env!("CARGO_MANIFEST_DIR")).with_file_name("proto");
    if !sources.contains(&*tree.to_string_lossy().replace(' ', "\0")) {
        return false;
    }
    let newest: Option<SystemTime> = sources
        .split_whitespace()
        .filter_map(|source| modified(Path::new(&source.replace('\0', " "))))
        .max();
    newest.is_some_and(|newest| newest <= built)
}
