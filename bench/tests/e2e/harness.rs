//! A daemon under test, what can be asked of it, and how a client reads a load.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use forebay_bench::process::{DaemonProcess, DaemonSpec};
use forebay_client::model::Report;
use forebay_client::{Client, ClientError, Endpoint, Load, LoadRequest, Reason};
use forebay_testkit::{Checkpoint, Content, S3Options, S3Origin};
use rustix::process::Signal;
use sha2::{Digest, Sha256};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::binaries::forebayd;
use crate::canary;

/// The bucket of every S3 origin here.
pub(crate) const BUCKET: &str = "models";

/// The chunk size of most tests.
pub(crate) const CHUNK: u64 = 64 << 10;

/// Looks at a condition, at most.
const LOOKS: usize = 1500;

/// Time between two looks.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// Gauges that are zero when no client holds anything.
const GAUGES: [&str; 10] = [
    "forebay_leases",
    "forebay_leases_oldest_seconds",
    "forebay_leased_bytes",
    "forebay_loads_active",
    "forebay_flights",
    "forebay_pinned_bytes{state=\"filling\"}",
    "forebay_pinned_bytes{state=\"leased\"}",
    "forebay_admission_queue_depth{lane=\"interactive\"}",
    "forebay_admission_queue_depth{lane=\"prefetch\"}",
    "forebay_admission_oldest_wait_seconds{lane=\"interactive\"}",
];

/// Looks until `look` finds something.
pub(crate) async fn until<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    for _ in 0..LOOKS {
        if let Some(found) = look().await {
            return found;
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
    panic!("{what}: it did not come to that");
}

/// How to start a [`Node`]: 64 KiB chunks, 4 MiB of RAM and no NVMe tier, if not told otherwise.
#[derive(Debug)]
pub(crate) struct NodeSpec {
    ram: String,
    nvme: String,
    wrapper: Vec<String>,
    listen: Vec<String>,
    cache: Option<PathBuf>,
    env: Vec<(String, String)>,
    config: Option<PathBuf>,
    dir: Option<TempDir>,
}

impl NodeSpec {
    /// A daemon without credentials.
    pub(crate) fn new() -> Self {
        let (ram, nvme) = ("4MiB".into(), "0".into());
        let (wrapper, listen, env) = (Vec::new(), Vec::new(), Vec::new());
        let (cache, config, dir) = (None, None, None);
        let plain = Self { ram, nvme, wrapper, listen, cache, env, config, dir };
        plain.set("chunk", "64KiB").set("log_level", "trace")
    }

    /// A daemon that can read from `origin`.
    pub(crate) fn of(origin: &S3Origin) -> Self {
        origin.accept(canary::key());
        Self::new().env(origin.env()).env(canary::env_of(&canary::key()))
    }

    pub(crate) fn ram(self, ram: &str) -> Self {
        Self { ram: ram.to_owned(), ..self }
    }

    /// With an NVMe tier of this size.
    pub(crate) fn nvme(self, nvme: &str) -> Self {
        Self { nvme: nvme.to_owned(), ..self }
    }

    /// Started by another program, which gets the daemon's command line behind its own.
    pub(crate) fn under(self, wrapper: &[&str]) -> Self {
        Self { wrapper: wrapper.iter().map(|word| (*word).to_owned()).collect(), ..self }
    }

    /// Listening there as well.
    pub(crate) fn listen(mut self, uri: &str) -> Self {
        self.listen.push(uri.to_owned());
        self
    }

    /// With its cache in this directory, instead of one in its own.
    pub(crate) fn cache(self, dir: &Path) -> Self {
        Self { cache: Some(dir.to_owned()), ..self }
    }

    /// A setting, by its name in the file.
    pub(crate) fn set(mut self, key: &str, value: &str) -> Self {
        self.env.push((format!("FOREBAY_{}", key.to_uppercase()), value.to_owned()));
        self
    }

    /// Variables; later ones win.
    pub(crate) fn env(mut self, env: impl IntoIterator<Item = (String, String)>) -> Self {
        self.env.extend(env);
        self
    }

    /// With a configuration file.
    pub(crate) fn config(self, path: &Path) -> Self {
        Self { config: Some(path.to_owned()), ..self }
    }

    /// In a directory that is there already.
    pub(crate) fn dir(self, dir: TempDir) -> Self {
        Self { dir: Some(dir), ..self }
    }

    pub(crate) async fn start(self) -> Node {
        let flags = ["--metrics", "127.0.0.1:0", "--log", "json"];
        let mut spec = match self.wrapper.split_first() {
            None => DaemonSpec::new(forebayd(), &[]),
            Some((program, args)) => {
                args.iter().fold(DaemonSpec::new(program, &[]), DaemonSpec::arg).arg(forebayd())
            }
        };
        for flag in flags {
            spec = spec.arg(flag);
        }
        spec = spec.arg("--ram").arg(self.ram).arg("--nvme").arg(self.nvme);
        for uri in self.listen {
            spec = spec.arg("--listen").arg(uri);
        }
        if let Some(config) = self.config {
            spec = spec.arg("--config").arg(config);
        }
        if let Some(cache) = self.cache {
            spec = spec.cache(cache);
        }
        let spec = spec.env(canary::env(&self.env)).env(self.env).watched(canary::WATCH);
        let daemon = match self.dir {
            Some(dir) => spec.start_in(dir),
            None => spec.start(),
        };
        let daemon = daemon.expect("the daemon starts");
        let metrics = metrics_address(&daemon.log());
        let client = connect(&daemon).await;
        Node { client, metrics, daemon }
    }
}

/// The address in the line that says the daemon is ready.
fn metrics_address(log: &str) -> SocketAddr {
    let lines = log.lines().filter(|line| line.contains("\"ready\""));
    let ready = lines.filter_map(|line| {
        let line: serde_json::Value = serde_json::from_str(line).expect("a log line is JSON");
        let fields = &line["fields"];
        (fields["message"] == "ready").then(|| fields["metrics"].as_str().map(str::to_owned))
    });
    let address = ready.flatten().next().expect("a ready line with its metrics address");
    address.parse().expect("an address and a port")
}

/// A new connection, as another process would have.
pub(crate) async fn connect(daemon: &DaemonProcess) -> Client {
    let endpoint = Endpoint::unix(&daemon.socket()).expect("a socket path");
    Client::connect(endpoint).await.expect("the daemon takes connections")
}

/// A running daemon and a client of it.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) client: Client,
    pub(crate) daemon: DaemonProcess,
    metrics: SocketAddr,
}

impl Node {
    /// GET on the metrics address: status and body.
    pub(crate) async fn get(&self, path: &str) -> (u16, String) {
        let mut socket = tokio::net::TcpStream::connect(self.metrics).await.unwrap();
        let request =
            format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        socket.write_all(request.as_bytes()).await.unwrap();
        let mut response = String::new();
        socket.read_to_string(&mut response).await.unwrap();
        let (head, body) = response.split_once("\r\n\r\n").expect("a head and a body");
        let status = head.split(' ').nth(1).and_then(|code| code.parse().ok());
        (status.expect("a status"), body.to_owned())
    }

    /// The sum of a metric over its labels; zero if it is not exposed yet.
    pub(crate) async fn sum(&self, name: &str) -> f64 {
        let exposition = self.get("/metrics").await.1;
        let of_name = exposition.lines().filter_map(|line| {
            let rest = line.strip_prefix(name)?;
            if !rest.starts_with(['{', ' ']) {
                return None;
            }
            rest.rsplit_once(' ')?.1.parse::<f64>().ok()
        });
        of_name.sum()
    }

    /// Ends the daemon as an operator does; its directory, for another one.
    pub(crate) async fn stopped(mut self) -> TempDir {
        self.daemon.signal(Signal::TERM).unwrap();
        let daemon = &mut self.daemon;
        let status = until("the daemon has ended", async || daemon.try_wait().unwrap()).await;
        assert_eq!(status.code(), Some(0), "{}", self.daemon.log());
        self.daemon.kill().unwrap()
    }

    /// The value of a metric, with its labels as exposed.
    pub(crate) async fn metric(&self, name: &str) -> Option<f64> {
        value_of(&self.get("/metrics").await.1, name)
    }

    /// Waits until nothing is held, fetched or queued any more.
    pub(crate) async fn settled(&self) {
        let mut busy = Vec::new();
        for _ in 0..LOOKS {
            let exposition = self.get("/metrics").await.1;
            busy = GAUGES.iter().map(|name| (name, value_of(&exposition, name))).collect();
            busy.retain(|(_, value)| *value != Some(0.0));
            if busy.is_empty() {
                return;
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
        panic!("gauges do not return to zero: {busy:?}\n{}", self.daemon.log());
    }

    /// The failure that loading `uri` ends with, after everything it held went back.
    pub(crate) async fn refused(&self, uri: &str) -> ClientError {
        let error = failure(&self.client, LoadRequest::new(uri)).await;
        self.settled().await;
        error
    }

    /// Loads `uri` and compares every object with `expected`, by key.
    pub(crate) async fn loads(&self, uri: &str, expected: &[(String, Content)]) -> Report {
        let (mapped, report) =
            digests(&self.client, LoadRequest::new(uri)).await.expect("the load succeeds");
        assert_eq!(mapped, expected_digests(expected), "{uri}");
        self.settled().await;
        report
    }
}

/// SHA-256 by key.
pub(crate) type Digests = BTreeMap<String, String>;

pub(crate) fn expected_digests(files: &[(String, Content)]) -> Digests {
    files.iter().map(|(key, content)| (key.clone(), content.sha256())).collect()
}

fn value_of(exposition: &str, name: &str) -> Option<f64> {
    let line = exposition.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))?;
    line.parse().ok()
}

/// An S3 origin without objects, beside a bucket that exists.
pub(crate) async fn s3() -> S3Origin {
    let origin = S3Origin::start(S3Options::default()).await;
    origin.put(BUCKET, "there/is/something", "beside");
    origin
}

pub(crate) fn s3_uri(key: &str) -> String {
    format!("s3://{BUCKET}/{key}")
}

/// A checkpoint's files with their names.
pub(crate) fn files(checkpoint: &Checkpoint) -> Vec<(String, Content)> {
    checkpoint.files().to_vec()
}

/// Takes everything, mapped, piece by piece.
pub(crate) async fn digests(
    client: &Client,
    request: LoadRequest,
) -> Result<(Digests, Report), ClientError> {
    let mut load = client.load(request).await?;
    let mapped = read(&mut load).await?;
    let report = load.finish().await?;
    assert_adds_up(&report);
    canary::check("a report", format!("{report:?}"));
    Ok((mapped, report))
}

/// The critical path and what nothing accounts for are the wall time.
#[track_caller]
pub(crate) fn assert_adds_up(report: &Report) {
    let path: Duration = report.critical_path.iter().map(|step| step.time).sum();
    let apart = (path + report.unattributed).abs_diff(report.wall);
    assert!(apart <= report.wall / 100, "{report:?}");
    let tiers = report.bytes_by_tier;
    assert_eq!(tiers.ram + tiers.nvme + tiers.origin, report.bytes, "{report:?}");
}

/// Takes everything of a load that has begun.
pub(crate) async fn read(load: &mut Load) -> Result<Digests, ClientError> {
    let mut hashers: BTreeMap<String, Sha256> = Default::default();
    for object in load.manifest().objects() {
        hashers.insert(object.key.clone(), Sha256::new());
    }
    while let Some(piece) = load.next_piece().await? {
        hashers.get_mut(piece.key()).expect("a key of the manifest").update(piece.bytes());
    }
    Ok(hashers.into_iter().map(|(key, hasher)| (key, hex(&hasher.finalize()))).collect())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Takes everything until the load fails.
pub(crate) async fn failure(client: &Client, request: LoadRequest) -> ClientError {
    match digests(client, request).await {
        Ok((_, report)) => panic!("the load succeeded: {report:?}"),
        Err(error) => {
            canary::check("an error of a client", format!("{error} {error:?}"));
            error
        }
    }
}

/// Checks the reason and the exit code that the command would end with.
#[track_caller]
pub(crate) fn assert_ends(error: &ClientError, reason: Reason, exit_code: u8) {
    canary::check("an error of a client", format!("{error} {error:?}"));
    assert_eq!(error.reason(), reason, "{error}");
    assert_eq!(error.kind().exit_code(), exit_code, "{error}");
}
