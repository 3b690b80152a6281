//! The Dockerfile, the seccomp profile and the systemd unit, against each other and the binaries.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use forebay_testkit::temp_dir;
use serde_json::Value;

use super::binaries::{Resolved, cannot_run};
use super::read::{Files, items, text, texts};
use crate::binaries::forebayd;

const UNIT: &str = "systemd/forebayd.service";

/// System calls that nothing may take out of the profile: without them the daemon degrades.
const NEEDED: [&str; 8] = [
    "io_uring_setup",
    "io_uring_enter",
    "io_uring_register",
    "mbind",
    "move_pages",
    "memfd_create",
    "mlock",
    "cachestat",
];

/// ... and that nobody may put in.
const FORBIDDEN: [&str; 12] = [
    "mount",
    "umount2",
    "unshare",
    "setns",
    "ptrace",
    "process_vm_readv",
    "bpf",
    "keyctl",
    "add_key",
    "kexec_load",
    "init_module",
    "pivot_root",
];

/// All that is wrong.
pub(super) fn problems(files: &Files) -> Vec<String> {
    [image(files), profile(files), unit(files)].concat()
}

/// The arguments of an instruction of the Dockerfile's last stage.
fn instruction<'a>(files: &'a Files, name: &str) -> Option<&'a str> {
    let text = files.text("Dockerfile");
    let last = text.rsplit("\nFROM ").next()?;
    last.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))
}

/// The uid that the image runs as.
pub(super) fn image_uid(files: &Files) -> u64 {
    let user = instruction(files, "USER").unwrap_or_default();
    user.split(':').next().and_then(|uid| uid.parse().ok()).unwrap_or(0)
}

fn image(files: &Files) -> Vec<String> {
    let mut problems = Vec::new();
    let words = |text: &str| serde_json::from_str::<Vec<String>>(text).unwrap_or_default();
    let env = instruction(files, "ENV").unwrap_or_default();
    let env: Vec<_> = env.split(' ').filter_map(|of| of.split_once('=')).collect();
    let env: Vec<_> =
        env.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    match Resolved::of(&[], &env, &[]) {
        Err(problem) => problems.push(format!("ENV: {problem}")),
        Ok(settings) => {
            let port = settings.metrics().map(|(port, _)| port.to_string());
            if instruction(files, "EXPOSE") != port.as_deref() {
                problems.push(format!("EXPOSE: the daemon's metrics are at {port:?}"));
            }
            let made = files.text("Dockerfile");
            for path in [settings.socket_folder(), PathBuf::from(settings.get("cache_dir"))] {
                if !made.contains(&format!(" /image{}", path.display())) {
                    problems
                        .push(format!("the image has no {} of the daemon's own", path.display()));
                }
            }
        }
    }
    if image_uid(files) == 0 {
        problems.push("USER: the image runs as root".into());
    }
    if words(instruction(files, "ENTRYPOINT").unwrap_or_default()) != ["/usr/bin/forebayd"] {
        problems.push("ENTRYPOINT: the image has /usr/bin/forebayd".into());
    }
    let health = instruction(files, "HEALTHCHECK").and_then(|line| line.split_once("CMD "));
    match words(health.unwrap_or_default().1).split_first() {
        Some((program, args)) if program == "/usr/bin/forebay" => problems.extend(cannot_run(args)),
        other => problems.push(format!("HEALTHCHECK: the image cannot run {other:?}")),
    }
    problems.iter().map(|problem| format!("Dockerfile: {problem}")).collect()
}

fn profile(files: &Files) -> Vec<String> {
    let profile = files.json("kubernetes/seccomp.json");
    let mut problems = Vec::new();
    // What the runtimes of Kubernetes read: the OCI's form, which has no `archMap` and no `includes`.
    let known = ["defaultAction", "defaultErrnoRet", "architectures", "syscalls"];
    let keys = profile.as_object().unwrap().keys();
    problems.extend(
        keys.filter(|key| !known.contains(&key.as_str())).map(|key| format!("there is no {key}")),
    );
    if text(&profile, "/defaultAction") != "SCMP_ACT_ERRNO" {
        problems.push("what is not listed is not refused".into());
    }
    let rules = items(&profile, "/syscalls");
    let allowed: Vec<String> = rules
        .iter()
        .filter(|rule| text(rule, "/action") == "SCMP_ACT_ALLOW")
        .flat_map(|rule| texts(rule, "/names"))
        .collect();
    let has = |name: &&str| allowed.iter().any(|allowed| allowed == name);
    problems
        .extend(NEEDED.iter().filter(|name| !has(name)).map(|name| format!("{name} is missing")));
    problems
        .extend(FORBIDDEN.iter().filter(|name| has(name)).map(|name| format!("{name} is allowed")));
    let keys = ["names", "action", "args"];
    let of_rule = |rule: &Value| {
        let keys = rule.as_object().unwrap().keys().filter(|key| !keys.contains(&key.as_str()));
        keys.map(|key| format!("a rule has {key}")).collect::<Vec<_>>()
    };
    problems.extend(rules.iter().flat_map(of_rule));
    problems.iter().map(|problem| format!("kubernetes/seccomp.json: {problem}")).collect()
}

/// The values of a directive of the unit.
fn directive<'a>(files: &'a Files, name: &str) -> Option<&'a str> {
    files.text(UNIT).lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='))
}

fn unit(files: &Files) -> Vec<String> {
    let mut problems = Vec::new();
    let start = directive(files, "ExecStart").unwrap_or_default();
    let mut words = start.split_whitespace().map(str::to_owned);
    if words.next().as_deref() != Some("/usr/bin/forebayd") {
        problems.push("ExecStart: /usr/bin/forebayd is what is installed".into());
    }
    let installed =
        [("/etc/forebay/forebay.toml".to_owned(), files.text("systemd/forebay.toml").to_owned())];
    match Resolved::of(&words.collect::<Vec<_>>(), &[], &installed) {
        Err(problem) => problems.push(problem),
        Ok(settings) => problems.extend(unit_and_settings(files, &settings)),
    }
    let user = directive(files, "User").unwrap_or_default();
    if !files.text("systemd/forebay.sysusers").contains(&format!("\nu {user} ")) {
        problems.push(format!("User: systemd/forebay.sysusers makes no {user:?}"));
    }
    for (name, value) in [
        ("Type", "notify"),
        ("LimitMEMLOCK", "infinity"),
        ("NoNewPrivileges", "yes"),
        ("ProtectSystem", "strict"),
        ("CapabilityBoundingSet", ""),
    ] {
        if directive(files, name) != Some(value) {
            problems.push(format!("{name}: is {value:?}"));
        }
    }
    problems.extend(judged_by_systemd(files));
    problems.iter().map(|problem| format!("{UNIT}: {problem}")).collect()
}

fn unit_and_settings(files: &Files, settings: &Resolved) -> Vec<String> {
    let mut problems = Vec::new();
    let cache = PathBuf::from(settings.get("cache_dir"));
    for (name, root, path) in [
        ("RuntimeDirectory", "/run", settings.socket_folder()),
        ("CacheDirectory", "/var/cache", cache),
    ] {
        let made = directive(files, name).map(|name| Path::new(root).join(name));
        if made.as_deref() != Some(&*path) {
            problems
                .push(format!("{name}: makes {made:?}, and the settings say {}", path.display()));
        }
    }
    let stop = directive(files, "TimeoutStopSec").and_then(|text| text.parse().ok()).unwrap_or(0);
    if Duration::from_secs(stop) <= settings.drain() {
        problems.push(format!("TimeoutStopSec: {stop} s are within `drain`"));
    }
    problems
}

/// What systemd says of the unit, where there is one.
fn judged_by_systemd(files: &Files) -> Vec<String> {
    let dir = temp_dir();
    let path = dir.path().join("forebayd.service");
    // The binary that it starts has to exist.
    let binary = forebayd().display().to_string();
    std::fs::write(&path, files.text(UNIT).replace("/usr/bin/forebayd", &binary)).unwrap();
    let judge = |args: &[&str]| Command::new("systemd-analyze").args(args).arg(&path).output();
    let Ok(verified) = judge(&["verify", "--man=no"]) else {
        println!(
            "skipped: systemd-analyze is not installed, so only our own checks look at {UNIT}"
        );
        return Vec::new();
    };
    let mut problems = Vec::new();
    let said = String::from_utf8_lossy(&verified.stderr);
    let about_it = said.lines().filter(|line| line.contains("forebayd.service"));
    problems.extend(about_it.map(str::to_owned));
    // In tenths; systemd calls up to 20 safe enough to be OK.
    let security = judge(&["security", "--offline=yes", "--threshold=20", "--no-pager"]).unwrap();
    if !security.status.success() {
        problems.push("`systemd-analyze security` finds it exposed by more than 2.0".into());
    }
    problems
}
