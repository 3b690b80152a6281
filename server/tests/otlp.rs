//! Spans of loads, as a collector gets them: a gRPC server in this process that implements OTLP's
//! service; a `forebayd` of its own per test.
//!
//! Built with the feature `otlp` only.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a test: what is not there fails it")]

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use forebay_client::{CallOptions, Client, Endpoint, LoadRequest, Reason, TraceParent};
use forebay_proto::otlp::any_value::Value;
use forebay_proto::otlp::trace_service_server::{TraceService, TraceServiceServer};
use forebay_proto::otlp::{
    ExportTraceServiceRequest, ExportTraceServiceResponse, KeyValue, Span, SpanKind, StatusCode,
};
use forebay_testkit::{BlackHole, CANARY, Content, HttpOptions, HttpOrigin, canary_in, temp_dir};
use futures::StreamExt;
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status};

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const PARENT: u64 = 0x00f0_67aa_0ba9_02b7;
const CHUNK: u64 = 64 << 10;
const QUERY: &str = "X-Amz-Signature=canary-Kanarienvogel-sig";

/// Looks at a condition, at most, and the time between two.
const LOOKS: usize = 1500;
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// What came.
#[derive(Debug, Clone, Default)]
struct Collector {
    requests: Arc<Mutex<Vec<ExportTraceServiceRequest>>>,
}

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        self.requests.lock().unwrap().push(request.into_inner());
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

impl Collector {
    /// Serves until the tasks are dropped.
    async fn start() -> (Self, SocketAddr, JoinSet<()>) {
        let collector = Self::default();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let service = TraceServiceServer::new(collector.clone());
        let mut tasks = JoinSet::new();
        let serving =
            Server::builder().add_service(service).serve_with_incoming(TcpIncoming::from(listener));
        tasks.spawn(async move { serving.await.unwrap() });
        (collector, address, tasks)
    }

    fn spans(&self) -> Vec<Span> {
        let requests = self.requests.lock().unwrap();
        let scopes = requests.iter().flat_map(|r| &r.resource_spans).flat_map(|r| &r.scope_spans);
        scopes.flat_map(|scope| scope.spans.clone()).collect()
    }

    /// The spans of the load with this id, once they have come: in one message.
    async fn spans_of(&self, load_id: &str) -> Vec<Span> {
        let spans = until("the spans come", async || {
            let spans = self.spans();
            let is_it = |span: &Span| text(&span.attributes, "forebay.load_id") == Some(load_id);
            let root = spans.iter().find(|span| is_it(span))?.clone();
            Some(spans.into_iter().filter(|s| s.trace_id == root.trace_id).collect::<Vec<_>>())
        });
        spans.await
    }
}

async fn until<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    for _ in 0..LOOKS {
        if let Some(found) = look().await {
            return found;
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
    panic!("{what}: it did not come to that");
}

fn value<'a>(attributes: &'a [KeyValue], key: &str) -> Option<&'a Value> {
    attributes.iter().find(|attribute| attribute.key == key)?.value.as_ref()?.value.as_ref()
}

fn text<'a>(attributes: &'a [KeyValue], key: &str) -> Option<&'a str> {
    match value(attributes, key)? {
        Value::StringValue(text) => Some(text),
        _ => None,
    }
}

fn number(attributes: &[KeyValue], key: &str) -> Option<i64> {
    match value(attributes, key)? {
        Value::IntValue(number) => Some(*number),
        _ => None,
    }
}

/// A daemon with 64 KiB chunks and 4 MiB of RAM; killed when it is dropped.
struct Daemon {
    child: Child,
    dir: TempDir,
    client: Client,
}

impl Daemon {
    async fn start(collector: SocketAddr) -> Self {
        let dir = temp_dir();
        let socket = dir.path().join("run/forebay.sock");
        let listen = format!("unix://{}", socket.display());
        let endpoint = format!("http://{collector}");
        let log = std::fs::File::create(dir.path().join("log")).unwrap();
        let mut child = Command::new(env!("CARGO_BIN_EXE_forebayd"))
            .args(["--listen", &listen, "--otlp-endpoint", &endpoint, "--ram", "4MiB"])
            .args(["--nvme", "0", "--metrics", "127.0.0.1:0", "--log", "json", "--cache-dir"])
            .arg(dir.path().join("cache"))
            .env_clear()
            .env("FOREBAY_CHUNK", "64KiB")
            .env("FOREBAY_LOG_LEVEL", "trace")
            .env("AWS_ACCESS_KEY_ID", "AKIA")
            .env("AWS_SECRET_ACCESS_KEY", CANARY)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        let client = until("the daemon takes connections", async || {
            assert!(child.try_wait().unwrap().is_none(), "the daemon has ended");
            Client::connect(Endpoint::unix(&socket).unwrap()).await.ok()
        });
        let client = client.await;
        Self { child, dir, client }
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap()
    }

    /// Loads a URI within a trace.
    async fn load(&self, uri: &str, load_id: &str, flags: &str) -> Result<(), Reason> {
        let parent = format!("00-{TRACE}-{PARENT:016x}-{flags}");
        let trace_parent = Some(TraceParent::parse(&parent).unwrap());
        let client =
            self.client.with_options(CallOptions { trace_parent, ..CallOptions::default() });
        let load = client.load(LoadRequest::new(uri).load_id(load_id)).await;
        let load = load.map_err(|error| error.reason())?;
        load.finish().await.map(drop).map_err(|error| error.reason())
    }

    /// What is counted of spans, by result.
    async fn counted(&self) -> BTreeMap<String, f64> {
        let log = self.log();
        let ready = log.lines().find(|line| line.contains("\"ready\"")).unwrap();
        let ready: serde_json::Value = serde_json::from_str(ready).unwrap();
        let address = ready["fields"]["metrics"].as_str().unwrap();
        let mut socket = TcpStream::connect(address).await.unwrap();
        let ask = "GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
        socket.write_all(ask.as_bytes()).await.unwrap();
        let mut answer = String::new();
        socket.read_to_string(&mut answer).await.unwrap();
        let of_line = |line: &str| {
            let rest = line.strip_prefix("forebay_trace_spans_total{result=\"")?;
            let (result, count) = rest.split_once("\"} ")?;
            Some((result.to_owned(), count.parse().ok()?))
        };
        answer.lines().filter_map(of_line).collect()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

async fn origin() -> HttpOrigin {
    let options = HttpOptions { query: Some(QUERY.to_owned()), ..Default::default() };
    let origin = HttpOrigin::start(options).await;
    origin.put("blob", Content::synthetic(1, 4 * CHUNK));
    origin
}

fn by_name<'a>(spans: &'a [Span], name: &str) -> Vec<&'a Span> {
    spans.iter().filter(|span| span.name == name).collect()
}

/// Every span but the root has its parent among the others, and lies within it.
fn check_tree(spans: &[Span]) {
    let by_id: BTreeMap<&[u8], &Span> = spans.iter().map(|s| (&s.span_id[..], s)).collect();
    assert_eq!(by_id.len(), spans.len(), "span ids are told apart");
    let mut roots = 0;
    for span in spans {
        assert!(span.start_time_unix_nano <= span.end_time_unix_nano, "{span:?}");
        assert_eq!((span.span_id.len(), span.flags), (8, 1), "{span:?}");
        for event in &span.events {
            let within = span.start_time_unix_nano..=span.end_time_unix_nano;
            assert!(within.contains(&event.time_unix_nano), "{event:?} of {span:?}");
        }
        let Some(parent) = by_id.get(&span.parent_span_id[..]) else {
            roots += 1;
            continue;
        };
        assert!(parent.start_time_unix_nano <= span.start_time_unix_nano, "{span:?}");
        assert!(span.end_time_unix_nano <= parent.end_time_unix_nano, "{span:?}");
    }
    assert_eq!(roots, 1, "one root");
}

#[tokio::test]
async fn a_load_is_one_tree_of_spans_under_its_caller() {
    let (collector, address, _serving) = Collector::start().await;
    let origin = origin().await;
    let daemon = Daemon::start(address).await;
    daemon.load(&origin.url("blob"), "whole", "01").await.unwrap();
    let spans = collector.spans_of("whole").await;
    check_tree(&spans);
    let root = &spans[0];
    assert_eq!((&root.name[..], root.kind), ("Load", SpanKind::Server.into()));
    assert_eq!(
        u128::from_be_bytes(root.trace_id[..].try_into().unwrap()),
        u128::from_str_radix(TRACE, 16).unwrap()
    );
    assert_eq!(u64::from_be_bytes(root.parent_span_id[..].try_into().unwrap()), PARENT);
    assert_eq!(text(&root.attributes, "forebay.lane"), Some("interactive"));
    assert_eq!(number(&root.attributes, "forebay.bytes"), i64::try_from(4 * CHUNK).ok());
    assert!(root.status.is_none());
    for step in ["admission", "resolve", "plan", "transfer", "delivery"] {
        let found = by_name(&spans, step);
        assert_eq!(found.len(), 1, "{step}");
        assert_eq!(found[0].parent_span_id, root.span_id, "{step}");
    }
    let chunks = by_name(&spans, "chunk");
    assert_eq!(chunks.len(), 4);
    for chunk in chunks {
        assert_eq!(chunk.parent_span_id, by_name(&spans, "transfer")[0].span_id);
        let stages: Vec<&str> = chunk.events.iter().map(|event| &event.name[..]).collect();
        for stage in ["lease_alloc", "ttfb", "body", "verify_part", "publish"] {
            assert!(stages.contains(&stage), "{stage} is not among {stages:?}");
        }
    }

    // One that fails, and what nobody gets to see.
    assert_eq!(daemon.load(&origin.url("gone"), "gone", "01").await, Err(Reason::ObjectNotFound));
    let is_gone = |span: &Span| text(&span.attributes, "forebay.load_id") == Some("gone");
    let failed =
        until("the failure comes", async || collector.spans().into_iter().find(is_gone)).await;
    let status = failed.status.clone().unwrap();
    assert_eq!(status.code, i32::from(StatusCode::Error));
    assert_eq!(text(&failed.attributes, "forebay.reason"), Some("OBJECT_NOT_FOUND"));
    let resource = collector.requests.lock().unwrap()[0].resource_spans[0].resource.clone();
    assert_eq!(text(&resource.unwrap().attributes, "service.name"), Some("forebayd"));
    let exported = format!("{:?}", collector.requests.lock().unwrap());
    let log = daemon.log();
    assert!(exported.contains("forebay.load_id") && log.contains("TRACE"), "{log}");
    for told in [exported, log] {
        assert!(!told.contains("canary"), "{told}");
        assert_eq!(canary_in(told.as_bytes(), &[]), None);
    }
}

#[tokio::test]
async fn what_is_not_sampled_is_not_exported_and_the_last_spans_are_not_lost() {
    let (collector, address, _serving) = Collector::start().await;
    let origin = origin().await;
    let mut daemon = Daemon::start(address).await;
    daemon.load(&origin.url("blob"), "quiet", "00").await.unwrap();
    daemon.load(&origin.url("blob"), "last", "01").await.unwrap();
    let pid = Pid::from_raw(i32::try_from(daemon.child.id()).unwrap()).unwrap();
    kill_process(pid, Signal::TERM).unwrap();
    let ended = until("the daemon ends", async || daemon.child.try_wait().unwrap()).await;
    assert!(ended.success(), "{}", daemon.log());
    let loads: Vec<String> = collector
        .spans()
        .iter()
        .filter_map(|span| text(&span.attributes, "forebay.load_id").map(str::to_owned))
        .collect();
    assert_eq!(loads, ["last"]);
}

#[tokio::test]
async fn a_dead_collector_costs_spans_and_nothing_else() {
    let origin = origin().await;
    // Nobody listens there.
    let free = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = free.local_addr().unwrap();
    drop(free);
    let daemon = Daemon::start(address).await;
    daemon.load(&origin.url("blob"), "one", "01").await.unwrap();
    let failed = until("spans are counted", async || {
        daemon.counted().await.get("failed").copied().filter(|spans| *spans > 0.0)
    });
    let failed = failed.await;
    assert!(failed >= 10.0, "{failed}");
    until("it is logged", async || daemon.log().contains("the collector fails").then_some(()))
        .await;

    // Nobody answers there: the queue fills up, and then spans are dropped.
    let hole = BlackHole::open();
    let daemon = Daemon::start(hole.address()).await;
    let uri = origin.url("blob");
    let load = async |n: usize| daemon.load(&uri, &format!("l{n}"), "01").await;
    // Many more than the queue holds, while it is tried to connect.
    until("spans are dropped", async || {
        let mut loads = futures::stream::iter((0..100).map(&load)).buffer_unordered(8);
        while let Some(ended) = loads.next().await {
            ended.unwrap();
        }
        daemon.counted().await.get("queue_full").copied().filter(|spans| *spans > 0.0)
    })
    .await;
}
