//! Every setting with its default and why it is that one; the operators' handbook,
//! `docker/README.md`, is made of it.
//!
//! Tests compare it with the keys that there are, and each default with what a daemon without
//! settings works with. `cargo test -p forebay-server handbook -- --ignored` writes the handbook.

use std::fmt::Write;

use clap::CommandFactory;

use super::domains::DOMAIN_KEYS;
use super::raw::{ENV_PREFIX, KEYS, ORIGIN_KEYS};
use super::{Flags, Settings};
use crate::handbook;

/// One setting.
struct Row {
    key: &'static str,
    /// As it would be written in the file; none where there is no value for "not set".
    default: Option<&'static str>,
    /// On which machines it is another one.
    but: &'static str,
    /// What it does, and the reason of the default.
    meaning: &'static str,
}

const fn row(key: &'static str, default: &'static str, meaning: &'static str) -> Row {
    Row { key, default: Some(default), but: "", meaning }
}

const fn unset(key: &'static str, meaning: &'static str) -> Row {
    Row { key, default: None, but: "", meaning }
}

impl Row {
    const fn but(self, but: &'static str) -> Self {
        Self { but, ..self }
    }
}

/// Settings of the top level, in the order of [`KEYS`].
const TABLE: &[Row] = &[
    row(
        "listen",
        "unix:///run/forebay/forebay.sock",
        "where clients call; `handoff.sock`, which passes the memory, lies beside it. A folder of its own, because whoever sees the folder sees both",
    )
    .but("`$XDG_RUNTIME_DIR/forebay/forebay.sock` without root"),
    row(
        "cache_dir",
        "/var/cache/forebay",
        "digests of first fetches, and the NVMe tier. It belongs to the daemon's uid, nobody else may write to it, and each daemon has its own: bytes that are served come from there",
    )
    .but("`~/.cache/forebay` without root"),
    row(
        "ram",
        "25%",
        "size of the RAM tier, of what the cgroup or the host allows. A quarter leaves the node to the servers it is for; two checkpoints of the usual size are a good start (see [Sizing](#sizing))",
    ),
    row(
        "nvme",
        "80%",
        "size of the NVMe tier, of what is free in `cache_dir` at the start; `0` for none. 5 % of the filesystem (10 GiB at most) stay free in any case",
    ),
    row(
        "nvme_engine",
        "auto",
        "io_uring where the kernel and the seccomp profile allow it, because it needs no thread per read; `threads` to do without",
    ),
    row(
        "scrub_bytes_per_second",
        "16MiB",
        "how fast what is stored is read again to find decay: a terabyte in 18 hours, less than a hundredth of what a disk can; `0` for never",
    ),
    row(
        "metrics",
        "127.0.0.1:9464",
        "`/metrics`, `/healthz`, `/readyz`, without a password, so on the loopback only; `0.0.0.0:9464` in a pod, `off` for none",
    ),
    row("log", "human", "or `json`, one object a line, for collectors"),
    row(
        "log_level",
        "info",
        "`error`, `warn`, `info`, `debug` or `trace`: at `info` some lines per load, at `trace` some per network packet. No level has secrets",
    ),
    row(
        "core_dumps",
        "false",
        "a core dump has the origins' credentials: by default there is none (the limit is 0, and the process not dumpable), and nobody but root can attach a debugger",
    ),
    row(
        "allow_uids",
        "0",
        "uids that may call, by the kernel's word and not by the caller's. Whoever may call can read every checkpoint that the daemon's credentials can",
    )
    .but("and the daemon's own uid"),
    row(
        "chunk",
        "8MiB",
        "the unit of fetching, caching and lending: in the 8 to 16 MiB where one connection of an object store is at its best rate. A power of two from 64KiB to 16MiB; another one makes what is cached miss",
    ),
    row(
        "lock_memory",
        "true",
        "lock the RAM tier, so that it is never swapped out under a copy. What the memlock limit does not cover stays unlocked, and `status` says how much",
    ),
    row(
        "evidence",
        "true",
        "read the kernel's counters while loads run, for `forebay explain`; costs under 1 % of a load's time",
    ),
    row(
        "max_loads",
        "64",
        "loads that run at a time, at most; while others wait fewer do, where more would bring no more (`forebay_admission_width`). Each is guaranteed a window of the RAM tier, so more of them make each window smaller",
    ),
    row(
        "max_queue",
        "256",
        "loads that wait for their turn; one more is refused at once, with the time to come back after",
    ),
    row(
        "connections",
        "250",
        "requests that an origin may get at a time, at most: 100 Gbit/s at the 0.4 Gbit/s of one connection of an object store. How many it does get is found while loading",
    ),
    row(
        "deadline",
        "15m",
        "of a load whose client gives none: a 140 GB checkpoint at 1 GB/s takes 140 s",
    ),
    row("deadline_max", "60m", "the longest deadline that a client gets"),
    row(
        "no_progress",
        "30s",
        "how long a load may stand still before it fails: no byte from the origin that is asked, or nothing taken by the client",
    ),
    row(
        "drain",
        "30s",
        "how long SIGTERM waits for running loads. The supervisor has to wait longer: `TimeoutStopSec`, `terminationGracePeriodSeconds`",
    ),
    row(
        "first_byte_timeout",
        "10s",
        "of one attempt at an origin, from the request to the first byte; a store that is well answers in a tenth of a second",
    ),
    row(
        "body_idle_timeout",
        "5s",
        "how long a body may stand still before the rest is asked for over another connection: what is waited for is a GPU",
    ),
    row(
        "trace_origins",
        "false",
        "send origins a `traceparent`; off, because it tells a third party which requests belong together",
    ),
    row(
        "otlp_endpoint",
        "off",
        "where spans of finished loads go, `http://HOST:PORT`; builds with `--features otlp` only",
    ),
    row(
        "workloads",
        "",
        "names of what loads may be for, 16 at most: metrics tell loads apart by them, and each multiplies the series",
    ),
    unset("tls_cert", "certificate chain that a `tcp://` listener shows; needed unless it is loopback"),
    unset("tls_key", "the key of `tls_cert`: readable by the daemon's uid only"),
    unset("tls_client_ca", "who signs the certificates that clients have to show over TCP"),
    unset(
        "tls_client_auth",
        "`none` where clients show no certificate, which has to be said: then only tokens tell who calls over TCP",
    ),
    unset("origin", "a block per store that needs more than the cloud's own environment, below"),
    unset("domain", "a block per group of callers who may share memory, below; without one, all of `allow_uids` are one"),
];

/// Settings of an `[[origin]]`, in the order of [`ORIGIN_KEYS`].
const ORIGIN_TABLE: &[Row] = &[
    unset("prefix", "of the URIs that the block is for; the longest that fits counts. Required"),
    unset("endpoint", "`http(s)://HOST:PORT` of a store that speaks the cloud's protocol"),
    unset("region", "instead of the one in the environment"),
    unset("account", "of Azure"),
    row(
        "allow_http",
        "false",
        "bytes and signed requests in the clear: for stores on the same network only",
    ),
    unset("ca_file", "certificates to trust beside the system's"),
    row(
        "anonymous",
        "false",
        "do not sign, for public buckets: no time is lost looking for credentials",
    ),
    row(
        "checksums",
        "true",
        "hold objects against the checksums that the store keeps; `false` for stores where somebody set a wrong one",
    ),
    unset("max_bytes_per_second", "leave something of the link to others"),
    unset("max_connections", "instead of `connections`, for a store that throttles"),
    unset("trace", "instead of `trace_origins`"),
];

/// Settings of a `[[domain]]`, in the order of [`DOMAIN_KEYS`].
const DOMAIN_TABLE: &[Row] = &[
    unset("name", "what metrics and `status` call it. Required"),
    unset("uids", "uids that are in it, by the kernel's word; this or `token_sha256` is required"),
    unset(
        "token_sha256",
        "the SHA-256 of a token that its callers send, for containers that share a uid: the file of settings then holds no secret",
    ),
    unset("uri_prefixes", "what it may load and pack; everything, if it is left out"),
    unset(
        "ram",
        "its quota of `ram`, or a percentage; what the others leave, by `share`, if it is left out",
    ),
    row(
        "share",
        "1",
        "its part of `max_loads`, `max_queue` and an origin's connections, beside those of other domains",
    ),
    unset("lanes", "lanes that it may use: `interactive`, `prefetch`; both, if it is left out"),
];

fn head(text: &mut String) {
    text.push_str("\n| setting | default | what it does, and why that default |\n|---|---|---|\n");
}

fn line(text: &mut String, name: &str, row: &Row) {
    let default = match row.default {
        Some("") => "none".to_owned(),
        Some(default) => format!("`{default}`"),
        None => "not set".to_owned(),
    };
    let but = if row.but.is_empty() { String::new() } else { format!("; {}", row.but) };
    writeln!(text, "| {name} | {default}{but} | {} |", row.meaning).unwrap();
}

/// The flag of a setting, if it has one.
fn flag(key: &str) -> Option<String> {
    let flags = Flags::command();
    let found = flags.get_arguments().find(|argument| argument.get_id() == key)?;
    found.get_long().map(|long| format!("`--{long}`"))
}

/// The handbook's part about settings.
fn part() -> String {
    let mut text = String::new();
    head(&mut text);
    for row in TABLE {
        let flag = flag(row.key).map(|flag| format!(" {flag}")).unwrap_or_default();
        let key = match row.key {
            key @ ("origin" | "domain") => format!("[[{key}]]"),
            key => key.to_owned(),
        };
        line(&mut text, &format!("`{key}`{flag}"), row);
    }
    write!(
        text,
        "\nIn the environment a setting is `{ENV_PREFIX}` and its name in capitals: `{ENV_PREFIX}RAM`. \
         Blocks are for the file: `[[origin]]`,\n"
    )
    .unwrap();
    head(&mut text);
    ORIGIN_TABLE.iter().for_each(|row| line(&mut text, &format!("`{}`", row.key), row));
    text.push_str("\nand `[[domain]]`:\n");
    head(&mut text);
    DOMAIN_TABLE.iter().for_each(|row| line(&mut text, &format!("`{}`", row.key), row));
    text.push('\n');
    text
}

/// A file that sets every default.
fn defaults(table: &[Row]) -> String {
    let written =
        table.iter().filter_map(|row| Some(format!("{} = \"{}\"\n", row.key, row.default?)));
    written.collect()
}

#[test]
fn every_key_has_a_row() {
    let keys = |table: &[Row]| table.iter().map(|row| row.key).collect::<Vec<_>>();
    assert_eq!(keys(TABLE), KEYS, "server/src/config/table.rs says what each setting is for");
    assert_eq!(keys(ORIGIN_TABLE), ORIGIN_KEYS);
    assert_eq!(keys(DOMAIN_TABLE), DOMAIN_KEYS);
}

#[test]
fn defaults_are_those_that_a_daemon_works_with() {
    let shown = |text: &str| Settings::of_file("f.toml", text).unwrap().to_string();
    assert_eq!(shown(&defaults(TABLE)), shown(""));
    let of_origin = |text: &str| shown(&format!("[[origin]]\nprefix = \"s3://b\"\n{text}"));
    assert_eq!(of_origin(&defaults(ORIGIN_TABLE)), of_origin(""));
    let of_domain = |text: &str| shown(&format!("[[domain]]\nname = \"d\"\nuids = [1]\n{text}"));
    assert_eq!(of_domain(&defaults(DOMAIN_TABLE)), of_domain(""));
    // A wrong one is noticed.
    assert_ne!(shown(&defaults(TABLE).replace("\"30s\"", "\"31s\"")), shown(""));
}

#[test]
#[ignore = "writes the handbook"]
fn write_the_handbook() {
    handbook::write("settings", &part());
}

#[test]
fn the_handbook_has_the_settings() {
    handbook::assert_is_of_the_table("settings", &part());
}
