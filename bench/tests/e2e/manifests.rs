//! What `docker/` ships, without a cluster: every manifest fits the schema of its kind, and what it
//! says of the daemon (flags, settings, ports, paths, users, limits) is what the built binaries know.
//!
//! The checks return what is wrong as sentences, so that other tests here can spoil a manifest and see
//! that it is noticed.

mod binaries;
mod compose;
mod kubernetes;
mod read;
mod schema;
mod shipped;

use std::collections::BTreeSet;

use crate::harness::NodeSpec;
use read::Files;

/// What probes and scrapers may ask the metrics address for.
const SERVED: [&str; 3] = ["/metrics", "/healthz", "/readyz"];

/// Everything that is wrong with the files.
fn problems(files: &Files) -> Vec<String> {
    [
        unclaimed(files),
        kubernetes::problems(files),
        compose::problems(files),
        shipped::problems(files),
    ]
    .concat()
}

/// Files that no check here, or elsewhere, looks at.
fn unclaimed(files: &Files) -> Vec<String> {
    // The dashboard and the rules are looked at where the metrics are: `metrics.rs`.
    let looked_at = [
        "Dockerfile",
        "README.md",
        "build-image",
        "try-image",
        "compose.yaml",
        "compose/forebay.toml",
        "compose/prometheus.yml",
        "compose/grafana-datasources.yaml",
        "compose/grafana-dashboards.yaml",
        "grafana/dashboard.json",
        "grafana/rules.yml",
        "kubernetes/daemonset.yaml",
        "kubernetes/sidecar.yaml",
        "kubernetes/vllm.yaml",
        "kubernetes/seccomp.json",
        "schemas/README.md",
        "schemas/compose.json",
        "schemas/kubernetes.json",
        "schemas/make",
        "schemas/trim.py",
        "slurm/prolog",
        "systemd/forebay.sysusers",
        "systemd/forebay.toml",
        "systemd/forebayd.service",
    ];
    let new = files.names().filter(|name| !looked_at.contains(name));
    new.map(|name| format!("nothing checks docker/{name}: have bench/tests/e2e/manifests.rs do it"))
        .collect()
}

#[test]
fn manifests_fit_their_schemas_and_the_binaries() {
    let problems = problems(&Files::read());
    assert!(problems.is_empty(), "\n{}", problems.join("\n"));
}

/// A file, what stands there, what is written instead, and what has to be said of it.
type Spoilt = (&'static str, &'static str, &'static str, &'static str);

fn assert_noticed(cases: &[Spoilt]) {
    for (name, from, to, expected) in cases {
        let problems = problems(&Files::read().with(name, from, to));
        let noticed = problems.iter().any(|problem| problem.contains(expected));
        assert!(noticed, "{name}: {from:?} -> {to:?}: expected {expected:?}, said {problems:#?}");
    }
}

#[test]
fn a_field_that_does_not_exist_is_noticed() {
    let (daemonset, compose) = ("kubernetes/daemonset.yaml", "compose.yaml");
    assert_noticed(&[
        (daemonset, "readinessProbe:", "readynessProbe:", "there is no `readynessProbe`"),
        (daemonset, "        - name: forebayd\n", "        -\n", "`name` is missing"),
        (daemonset, "maxUnavailable: 1", "maxUnavailable: true", "is no [\"integer\",\"string\"]"),
        (daemonset, "type: Localhost", "type: LocalHost", "\"LocalHost\" is not of"),
        (daemonset, "memory: 67Gi }", "memory: 67GiB }", "no quantity"),
        (
            daemonset,
            "apiVersion: apps/v1",
            "apiVersion: apps/v1beta2",
            "\"apps/v1beta2\" is not of",
        ),
        (daemonset, "kind: DaemonSet", "kind: DemonSet", "no kind \"DemonSet\""),
        (daemonset, "runAsUser: 64640", "runAsUser: \"64640\"", "is no \"integer\""),
        (
            daemonset,
            "            - { name: metrics,",
            "            - { name: metrics, name: x,",
            "duplicate",
        ),
        (compose, "read_only: true", "readonly: true", "there is no `readonly`"),
        (compose, "stop_grace_period: 45s", "stop_grace_period: 45", "is no \"string\""),
        (compose, "service_healthy", "service_well", "fits none"),
    ]);
}

/// What a binary, or the other end of a socket, has to say.
const UNKNOWN: &[Spoilt] = &[
    (DAEMONSET, "args: [--config,", "args: [--confg,", "unexpected argument '--confg'"),
    (DAEMONSET, "ram = \"64GiB\"", "rams = \"64GiB\"", "unknown key `rams`"),
    (DAEMONSET, "ram = \"64GiB\"", "ram = \"64 gigs\"", "is not a size"),
    (DAEMONSET, "/etc/forebay/forebay.toml]", "/etc/forebay.toml]", "nothing is mounted at"),
    (
        DAEMONSET,
        "mountPath: /run/forebay }",
        "mountPath: /run/other }",
        "/run/forebay is in no volume",
    ),
    (
        DAEMONSET,
        "mountPath: /var/cache/forebay }",
        "mountPath: /var/cache/forebay, readOnly: true }",
        "mounted read-only",
    ),
    (DAEMONSET, "0.0.0.0:9464", "127.0.0.1:9464", "which is not its port `metrics`"),
    (DAEMONSET, "containerPort: 9464", "containerPort: 9465", "which is not its port `metrics`"),
    (DAEMONSET, "prometheus.io/port: \"9464\"", "prometheus.io/port: \"9090\"", "annotations"),
    (DAEMONSET, "path: /readyz", "path: /ready", "nothing is served at"),
    (DAEMONSET, "health, --live]", "health, --alive]", "unexpected argument '--alive'"),
    (
        DAEMONSET,
        "enableServiceLinks: false",
        "enableServiceLinks: true",
        "links to services would be settings",
    ),
    (
        DAEMONSET,
        "terminationGracePeriodSeconds: 45",
        "terminationGracePeriodSeconds: 30",
        "within `drain`",
    ),
    (DAEMONSET, "limits: { memory: 67Gi }", "limits: { memory: 64Gi }", "its memory limit"),
    (DAEMONSET, "[0, 64640, 2000]", "[0, 64640]", "uid Some(2000) is not in `allow_uids`"),
    (DAEMONSET, "[0, 64640, 2000]", "[0, 2000]", "its own uid Some(64640)"),
    (
        DAEMONSET,
        "/host/seccomp/forebay.json",
        "/host/seccomp/other.json",
        "puts forebay.json on the node",
    ),
    (
        DAEMONSET,
        "readOnlyRootFilesystem: true\n            capabilities:\n              drop: [ALL]\n            seccompProfile:\n              #",
        "capabilities:\n              drop: [ALL]\n            seccompProfile:\n              #",
        "it may write to its root",
    ),
    (VLLM, "[prefetch, s3", "[prefech, s3", "unrecognized subcommand"),
    (VLLM, "--deadline, 30m]", "--deadline, 30x]", "invalid value '30x'"),
    (
        VLLM,
        "unix:///run/forebay/forebay.sock",
        "unix:///run/forebay/forebayd.sock",
        "no daemon serves",
    ),
    (
        VLLM,
        "hostPath: { path: /run/forebay,",
        "hostPath: { path: /run/forebays,",
        "no daemon serves",
    ),
    (SIDECAR, "/var/cache/forebay/own", "/var/cache/forebay", "name a folder below"),
    (
        SIDECAR,
        "{ name: forebay-sidecar }",
        "{ name: forebay-sidecars }",
        "no ConfigMap forebay-sidecars",
    ),
];

const DAEMONSET: &str = "kubernetes/daemonset.yaml";
const SIDECAR: &str = "kubernetes/sidecar.yaml";
const VLLM: &str = "kubernetes/vllm.yaml";

#[test]
fn what_the_binaries_do_not_know_is_noticed() {
    assert_noticed(UNKNOWN);
}

#[test]
fn what_does_not_fit_together_is_noticed() {
    let (compose, unit) = ("compose.yaml", "systemd/forebayd.service");
    assert_noticed(&[
        (
            compose,
            "./compose/prometheus.yml",
            "./compose/prometheus.yaml",
            "there is no ./compose/prometheus.yaml",
        ),
        (
            compose,
            "./grafana/rules.yml",
            "./compose/prometheus.yml",
            "its rules are not docker/grafana/rules.yml",
        ),
        (compose, "./grafana/dashboard.json", "./grafana/rules.yml", "its dashboard is not"),
        (compose, "prom/prometheus:v3.4.1", "prom/prometheus:latest", "is not pinned"),
        (compose, "socket:/run/forebay:ro", "cache:/run/forebay:ro", "no daemon serves"),
        (compose, "user: \"65534:65534\"", "user: \"65535:65535\"", "not in `allow_uids`"),
        (compose, "mem_limit: 2g", "mem_limit: 1g", "too few for `ram`"),
        (
            compose,
            "seccomp=./kubernetes/seccomp.json",
            "seccomp=./seccomp.json",
            "no file of seccomp",
        ),
        (compose, "      fill: {", "      filler: {", "there is no service filler"),
        (
            "compose/prometheus.yml",
            "forebayd:9464",
            "forebayd:9465",
            "targets are not the daemon's",
        ),
        ("compose/forebay.toml", "allow_http", "allow_htp", "unknown key `allow_htp`"),
        ("compose/forebay.toml", "[0, 64640, 65534]", "[0, 65534]", "its own uid 64640"),
        (unit, "--config", "--conf", "unexpected argument '--conf'"),
        (
            unit,
            "RuntimeDirectory=forebay\n",
            "RuntimeDirectory=forebayd\n",
            "the settings say /run/forebay",
        ),
        (unit, "TimeoutStopSec=45", "TimeoutStopSec=20", "within `drain`"),
        (unit, "User=forebay", "User=nobody", "makes no \"nobody\""),
        (unit, "LimitMEMLOCK=infinity", "LimitMEMLOCK=8M", "LimitMEMLOCK"),
        ("Dockerfile", "FOREBAY_CACHE_DIR", "FOREBAY_CACHEDIR", "nearest valid key is `cache_dir`"),
        ("Dockerfile", "\"health\"]", "\"healthy\"]", "unrecognized subcommand"),
        ("Dockerfile", "USER 64640", "USER 0", "runs as root"),
        ("Dockerfile", "EXPOSE 9464", "EXPOSE 9465", "EXPOSE"),
        (
            "kubernetes/seccomp.json",
            "\"io_uring_setup\"",
            "\"io_uring_start\"",
            "io_uring_setup is missing",
        ),
        ("kubernetes/seccomp.json", "\"accept\"", "\"ptrace\"", "ptrace is allowed"),
    ]);
}

/// Where systemd is there to judge: a directive that it does not know.
#[test]
fn what_systemd_does_not_know_is_noticed() {
    if std::process::Command::new("systemd-analyze").arg("--version").output().is_err() {
        println!("skipped: systemd-analyze is not installed");
        return;
    }
    let unit = "systemd/forebayd.service";
    assert_noticed(&[
        (unit, "PrivateTmp=yes", "PrivateTemp=yes", "PrivateTemp"),
        (unit, "@system-service @aio", "@system-services @aio", "system-services"),
        (unit, "ProtectSystem=strict\n", "", "ProtectSystem"),
    ]);
}

#[tokio::test]
async fn probes_ask_for_what_is_served() {
    let node = NodeSpec::new().start().await;
    for path in SERVED {
        assert_eq!(node.get(path).await.0, 200, "{path}");
    }
    assert_eq!(node.get("/ready").await.0, 404);
}

/// Words of the handbook that look like metrics are metrics.
#[test]
fn the_handbook_names_metrics_that_there_are() {
    let document =
        std::fs::read_to_string(read::folder().with_file_name("server/METRICS.md")).unwrap();
    let metrics: BTreeSet<_> =
        document.lines().filter_map(|line| line.strip_prefix("## ")).collect();
    let handbook = Files::read();
    let words = handbook.text("README.md").split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    let named: BTreeSet<_> = words.filter(|word| word.starts_with("forebay_")).collect();
    assert!(named.len() > 80, "{}", named.len());
    let unknown: Vec<_> = named.difference(&metrics).collect();
    assert!(unknown.is_empty(), "{unknown:?}");
}
