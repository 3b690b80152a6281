//! The house's laws, read off the sources: who may use whom, and where some things may be named.
//!
//! * Packages have the edges of design.md section 4 and no other.
//! * A stage of the server names no stage after it, and calls none: only `load` brings them together
//!   (and `pack`, which resolves), only `daemon` builds them.
//! * tonic is seen by `rpc*`, by what installs it and by what exports spans, wire types by the
//!   edges, the environment by `config*`.
//! * Every file opens with its purpose; every crate without a licence for it forbids unsafe code.

#![expect(clippy::unwrap_used, reason = "a test: what cannot be read fails it")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// Packages and the packages they may depend on.
const EDGES: &[(&str, &str, &[&str])] = &[
    ("forebay-proto", "proto", &[]),
    ("forebay-shm", "proto/shm", &[]),
    ("forebay-codec", "server/codec", &[]),
    ("forebay-origin", "server/origin", &[]),
    ("forebay-io", "server/io", &["forebay-shm"]),
    (
        "forebay-server",
        "server",
        &["forebay-proto", "forebay-shm", "forebay-codec", "forebay-origin", "forebay-io"],
    ),
    ("forebay-device", "client/device", &["forebay-shm"]),
    ("forebay-client", "client", &["forebay-proto", "forebay-shm", "forebay-device"]),
    ("forebay-cli", "client/cli", &["forebay-client"]),
    ("forebay-ffi", "loader-ffi", &["forebay-client"]),
    (
        "forebay-testkit",
        "bench/testkit",
        &[
            "forebay-proto",
            "forebay-shm",
            "forebay-codec",
            "forebay-origin",
            "forebay-io",
            "forebay-device",
        ],
    ),
    (
        "forebay-bench",
        "bench",
        &["forebay-client", "forebay-server", "forebay-codec", "forebay-origin", "forebay-testkit"],
    ),
];

/// Crates that may hold unsafe code.
const UNSAFE: &[&str] = &["proto/shm", "client/device", "server/io", "loader-ffi"];

/// Modules of the server in the order in which a request travels.
const STAGES: &[&str] = &[
    "admission",
    "resolve",
    "plan",
    "fetch",
    "decode",
    "nvme",
    "flight",
    "verify",
    "ram",
    "handoff",
];

/// Uses of later modules' types by earlier ones, each with its reason.
const ALLOWED_BACKWARD: &[(&str, &str, &str)] = &[
    ("fetch", "ram", "the slot a chunk is fetched into is claimed from the pool before the fetch"),
    ("decode", "ram", "the slot passes through, and is filled"),
    ("nvme", "ram", "as for fetch; and what is written was read from a pinned chunk"),
    ("verify", "ram", "the claimed slot passes through, and pinned chunks are checked again"),
    ("flight", "ram", "what a flight brings is a pinned chunk"),
];

fn rust_files(dir: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    let mut folders = vec![dir.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                files.push(path);
            }
        }
    }
    assert!(!files.is_empty(), "no sources under {}", dir.display());
    files.sort();
    files
}

/// The code of a file before its tests; none of a file that holds tests only.
fn code(path: &Path) -> String {
    if path.file_name().is_some_and(|name| name.to_string_lossy().ends_with("_tests.rs")) {
        return String::new();
    }
    let text = std::fs::read_to_string(path).unwrap();
    let end = text.find("\n#[cfg(test)]\nmod tests").unwrap_or(text.len());
    text[..end].to_owned()
}

/// The top-level module of the server that a file belongs to.
fn module_of(path: &Path) -> String {
    let relative = path.strip_prefix(root().join("server/src")).unwrap();
    let first = relative.components().next().unwrap().as_os_str().to_str().unwrap();
    first.trim_end_matches(".rs").to_owned()
}

/// The top-level modules that a file's `crate::` paths name.
fn crate_uses(code: &str) -> Vec<String> {
    code.lines()
        .filter(|line| !line.trim_start().starts_with("//"))
        .flat_map(|line| {
            line.match_indices("crate::").map(move |(at, found)| (line, at + found.len()))
        })
        .filter(|(line, _)| !line.contains("pub(crate)") || line.contains("use "))
        .map(|(line, at)| {
            line[at..].chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect()
        })
        .collect()
}

#[test]
fn packages_have_the_edges_of_the_design() {
    for (package, folder, allowed) in EDGES {
        let manifest = std::fs::read_to_string(root().join(folder).join("Cargo.toml")).unwrap();
        assert!(manifest.contains(&format!("name = \"{package}\"")), "{folder} is not {package}");
        let normal = manifest.split("[dev-dependencies]").next().unwrap();
        let uses = normal
            .lines()
            .filter(|line| line.starts_with("forebay-"))
            .map(|line| line.split(['.', ' ', '=']).next().unwrap());
        for used in uses {
            assert!(allowed.contains(&used), "{package} may not use {used}");
        }
    }
    let workspace = std::fs::read_to_string(root().join("Cargo.toml")).unwrap();
    let members = workspace.split("members = [").nth(1).unwrap().split(']').next().unwrap();
    let members: Vec<_> = members.split('"').skip(1).step_by(2).collect();
    let known: Vec<_> = EDGES.iter().map(|(_, folder, _)| *folder).collect();
    assert!(
        members.iter().all(|member| known.contains(member)),
        "a package without edges: {members:?}"
    );
}

#[test]
fn no_stage_names_a_later_one() {
    let position = |module: &str| STAGES.iter().position(|stage| *stage == module);
    for path in rust_files(&root().join("server/src")) {
        let module = module_of(&path);
        let Some(own) = position(&module) else { continue };
        for used in crate_uses(&code(&path)) {
            let allowed = ALLOWED_BACKWARD.iter().any(|(by, of, _)| *by == module && *of == used);
            let later = position(&used).is_some_and(|other| other > own) && !allowed;
            assert!(!later, "{} names the later stage {used}", path.display());
            let outside = ["load", "alias", "pack", "daemon", "rpc", "config", "http"]
                .contains(&used.as_str());
            assert!(!outside, "{} names {used}, which is above the stages", path.display());
        }
    }
}

#[test]
fn every_backward_use_that_is_allowed_exists() {
    let mut uses: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for path in rust_files(&root().join("server/src")) {
        uses.entry(module_of(&path)).or_default().extend(crate_uses(&code(&path)));
    }
    for (by, of, reason) in ALLOWED_BACKWARD {
        assert!(uses[*by].iter().any(|used| used == of), "{by} no longer uses {of}: {reason}");
    }
}

/// Whether `line` names the path `name` itself, and not a longer word that ends with it.
fn names(line: &str, name: &str) -> bool {
    let inside_a_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    line.match_indices(name).any(|(at, _)| !line[..at].ends_with(inside_a_word))
}

#[test]
fn edges_stay_at_the_edges() {
    let laws: &[(&str, &[&str])] = &[
        ("tonic::", &["rpc", "daemon", "otlp"]),
        ("pb::", &["rpc", "daemon", "handoff"]),
        ("std::env::", &["config", "bin"]),
        ("clap::", &["config", "daemon"]),
        (
            "metrics::",
            &[
                "metrics", "daemon", "rpc", "ram", "fetch", "decode", "nvme", "verify", "load",
                "resolve", "numa", "otlp", "alias", "evidence", "history",
            ],
        ),
    ];
    for path in rust_files(&root().join("server/src")) {
        let module = module_of(&path);
        let code = code(&path);
        for line in code.lines().filter(|line| !line.trim_start().starts_with("//")) {
            for (name, allowed) in laws {
                let may = !names(line, name) || allowed.contains(&module.as_str());
                assert!(may, "{}: {line}", path.display());
            }
        }
    }
}

#[test]
fn only_load_calls_stages_and_only_daemon_builds_them() {
    let calls = [".admit(", ".resolve(", ".fetch(", ".verify(", ".board(", ".claim(", ".decode("];
    let builds =
        ["Admission::new(", "Resolver::new(", "Fetcher::new(", "Verifier::new(", "RamTier::new("];
    for path in rust_files(&root().join("server/src")) {
        let module = module_of(&path);
        let code = code(&path);
        let may_call =
            ["load", "pack", "rpc"].contains(&module.as_str()) || STAGES.contains(&&*module);
        for name in calls {
            assert!(may_call || !code.contains(name), "{} calls a stage: {name}", path.display());
        }
        for name in builds {
            let may_build = module == "daemon" || !code.contains(name);
            assert!(may_build, "{} builds a stage: {name}", path.display());
        }
    }
}

#[test]
fn every_file_opens_with_its_purpose_and_stays_readable() {
    for (_, folder, _) in EDGES {
        for path in rust_files(&root().join(folder).join("src")) {
            let text = std::fs::read_to_string(&path).unwrap();
            assert!(text.starts_with("//! "), "{} has no head", path.display());
            let lines = code(&path).lines().count();
            assert!(lines <= 600, "{} has {lines} lines", path.display());
            assert!(!text.contains("TODO"), "{} has a TODO", path.display());
        }
    }
}

#[test]
fn crates_without_a_licence_for_it_forbid_unsafe_code() {
    for (package, folder, _) in EDGES {
        if UNSAFE.contains(folder) {
            continue;
        }
        for name in ["lib.rs", "main.rs"] {
            let path = root().join(folder).join("src").join(name);
            if let Ok(text) = std::fs::read_to_string(&path) {
                let binary_of_a_library =
                    name == "main.rs" && path.with_file_name("lib.rs").exists();
                let forbids = text.contains("#![forbid(unsafe_code)]");
                assert!(forbids || binary_of_a_library, "{package}: {}", path.display());
            }
        }
    }
}

#[test]
fn the_top_level_is_the_one_of_the_design() {
    let expected = [
        "Cargo.lock",
        "Cargo.toml",
        "LICENSE",
        "README.md",
        "bench",
        "client",
        "docker",
        "loader-ffi",
        "proto",
        "server",
        "target",
    ];
    for entry in std::fs::read_dir(root()).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        assert!(name.starts_with('.') || expected.contains(&name.as_str()), "{name} at the top");
    }
}
