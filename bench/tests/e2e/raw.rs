//! The wire itself: gRPC over HTTP/2 with nothing of ours and nothing of tonic's channel between,
//! which has deadlines and errors of its own.

use forebay_bench::process::DaemonProcess;
use forebay_client::{Failure, Reason};
use forebay_proto::pb;
use forebay_proto::pb::forebay_client::ForebayClient;
use forebay_proto::pb::load_request::Event as Said;
use forebay_proto::pb::load_response::Event;
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::body::Body;
use tonic::{Request, Status, Streaming};
use tower::util::BoxCloneService;

/// A connection of HTTP/2, for any generated client.
pub(crate) type Wire = BoxCloneService<http::Request<Body>, http::Response<Incoming>, hyper::Error>;

/// Connects; the connection ends with the runtime of the test.
pub(crate) async fn wire(daemon: &DaemonProcess) -> Wire {
    let socket = UnixStream::connect(daemon.socket()).await.unwrap();
    let handshake =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(socket)).await;
    let (sender, connection) = handshake.unwrap();
    let mut driver = tokio::task::JoinSet::new();
    driver.spawn(connection);
    // Its handle goes with the service: the connection ends when its last user does.
    let driver = std::sync::Arc::new(driver);
    BoxCloneService::new(tower::service_fn(move |mut request: http::Request<Body>| {
        let (mut sender, driver) = (sender.clone(), std::sync::Arc::clone(&driver));
        let path = request.uri().path_and_query().cloned().unwrap();
        *request.uri_mut() = format!("http://localhost{path}").parse().unwrap();
        async move {
            let answered = sender.send_request(request).await;
            drop(driver);
            answered
        }
    }))
}

/// A client of the service.
pub(crate) async fn forebay(daemon: &DaemonProcess) -> ForebayClient<Wire> {
    ForebayClient::new(wire(daemon).await)
}

/// A request with this `grpc-timeout`, as it stands.
pub(crate) fn within<T>(message: T, timeout: &str) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("grpc-timeout", timeout.parse().unwrap());
    request
}

/// What to open, with everything else as it is by default.
pub(crate) fn opening(uri: &str) -> pb::LoadOpen {
    pb::LoadOpen { uri: uri.to_owned(), ..Default::default() }
}

/// A load, message by message, of a client that never connects to the handoff socket.
#[derive(Debug)]
pub(crate) struct RawLoad {
    said: Option<mpsc::Sender<pb::LoadRequest>>,
    heard: Streaming<pb::LoadResponse>,
}

impl RawLoad {
    pub(crate) async fn open(daemon: &DaemonProcess, open: pb::LoadOpen) -> Self {
        Self::open_with(daemon, open, Request::new).await.unwrap()
    }

    /// As [`RawLoad::open`], with what `request` makes of the stream.
    pub(crate) async fn open_with(
        daemon: &DaemonProcess,
        open: pb::LoadOpen,
        request: impl FnOnce(
            ReceiverStream<pb::LoadRequest>,
        ) -> Request<ReceiverStream<pb::LoadRequest>>,
    ) -> Result<Self, Status> {
        let (said, stream) = mpsc::channel(16);
        said.send(pb::LoadRequest { event: Some(Said::Open(open)) }).await.unwrap();
        let mut client = forebay(daemon).await;
        let heard = client.load(request(ReceiverStream::new(stream))).await?.into_inner();
        Ok(Self { said: Some(said), heard })
    }

    /// The next event; none at the end of the stream.
    pub(crate) async fn next(&mut self) -> Result<Option<Event>, Status> {
        Ok(self.heard.message().await?.map(|message| message.event.expect("an event")))
    }

    /// The next grant; none when all have come.
    pub(crate) async fn grant(&mut self) -> Result<Option<pb::Grant>, Status> {
        loop {
            match self.next().await? {
                Some(Event::Grant(grant)) => return Ok(Some(grant)),
                Some(Event::Opened(_) | Event::Manifest(_)) => {}
                Some(Event::Complete(_)) => return Ok(None),
                other => panic!("{other:?} in the place of a grant"),
            }
        }
    }

    /// The next `count` grants, which stay held.
    pub(crate) async fn hold(&mut self, count: usize) -> Vec<pb::Grant> {
        let mut held = Vec::new();
        while held.len() < count {
            held.push(self.grant().await.unwrap().expect("one more grant"));
        }
        held
    }

    /// Gives leases back.
    pub(crate) async fn release(&self, grants: &[pb::Grant]) {
        let lease_ids = grants.iter().map(|grant| grant.lease_id).collect();
        self.say(Said::Release(pb::Release { lease_ids })).await;
    }

    /// Says whatever it is.
    pub(crate) async fn say(&self, event: Said) {
        let said = self.said.as_ref().expect("the request stream is open");
        said.send(pb::LoadRequest { event: Some(event) }).await.unwrap();
    }

    /// Closes the request stream and waits for the report.
    pub(crate) async fn report(mut self) -> Result<pb::LoadReport, Status> {
        self.said = None;
        loop {
            match self.next().await? {
                Some(Event::Report(report)) => return Ok(report),
                Some(_) => {}
                None => panic!("the stream ended without a report"),
            }
        }
    }

    /// What the load fails with.
    pub(crate) async fn failure(mut self) -> Failure {
        loop {
            match self.next().await {
                Ok(Some(Event::Report(report))) => panic!("the load succeeded: {report:?}"),
                Ok(Some(_)) => {}
                Ok(None) => panic!("the stream ended without a report"),
                Err(status) => return Failure::from_status(&status),
            }
        }
    }
}

/// Checks a status against the documented code.
#[track_caller]
pub(crate) fn assert_status<T: std::fmt::Debug>(answer: Result<T, Status>, reason: Reason) {
    let status = answer.expect_err("an error");
    let failure = Failure::from_status(&status);
    assert_eq!((failure.reason, status.code()), (reason, reason.kind().code()), "{status}");
}
