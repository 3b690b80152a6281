//! The `HttpService` that object_store sends its requests through.
//!
//! One transport is shared by all origins with the same certificates; each store has a clone with
//! its own counters and, for a URI with a query, the exact target that was signed. The query goes
//! into the request here and nowhere earlier: object_store, whose errors quote URLs, never has it.

use std::error::Error;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use http::header::HOST;
use http::uri::PathAndQuery;
use http::{Extensions, StatusCode, Uri};
use hyper::body::Incoming;
use hyper_util::client::legacy::connect::capture_connection;
use hyper_util::client::legacy::{Client, Error as ClientError};
use hyper_util::rt::{TokioExecutor, TokioTimer};
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpRequestBody,
    HttpResponse, HttpResponseBody, HttpService,
};
use object_store::{ClientConfigKey, ClientOptions};
use tokio::runtime::Handle;
use tokio::time::{Instant, timeout_at};

use super::answer::{added, made_fit, note_head, note_times, note_unconnected, redirect};
use super::body::TimedBody;
use super::connect::{ConnectError, Connector};
use super::direct::{Direct, DirectBody};
use super::idle::IdlePool;
use super::probe::{BODY_START_MAX, Break, Probe, Route, Seen};
use super::send::{Limit, Outgoing, outgoing};
use super::stream::FreshTimes;
use crate::engine::book::Mark;
use crate::evidence::SocketEvidence;
use crate::settings::Timeouts;
use crate::stats::Counters;
use crate::trace::TRACE_PARENT;
use crate::uri::{Secret, WebTarget};

/// Idle connections are closed before the origins do it (S3 and nginx keep them for 20 s or more).
const POOL_IDLE: Duration = Duration::from_secs(15);
/// Idle connections kept per host when nothing is set.
const POOL_IDLE_MAX: usize = 64;

/// Redirects followed for one request.
const REDIRECTS_MAX: usize = 5;

/// The body of an answer: read by hyper, or by whoever wants it.
enum Received {
    Stream(Incoming),
    Direct(Box<DirectBody>),
}

/// A request target whose query is a secret.
#[derive(Debug, Clone)]
pub(crate) struct SignedTarget {
    /// The path, as object_store writes it, that stands for the exact target.
    pub(crate) path: String,
    /// What was signed.
    pub(crate) target: WebTarget,
}

/// A pool of connections and the limits on its exchanges.
#[derive(Debug, Clone)]
pub(crate) struct Transport {
    client: Client<Connector, Outgoing>,
    /// The same without a pool: for requests that shall have a connection of their own.
    fresh: Client<Connector, Outgoing>,
    pub(super) connector: Connector,
    /// Connections of requests whose bodies are received directly.
    pub(super) idle: IdlePool,
    pub(super) evidence: Arc<dyn SocketEvidence>,
    pub(super) timeouts: Timeouts,
    allow_http: bool,
    redirects: bool,
    pub(super) counters: Arc<Counters>,
    signed: Option<Arc<SignedTarget>>,
    probe: Option<Probe>,
    /// Requests say which trace they belong to.
    traced: bool,
}

#[derive(Debug, thiserror::Error)]
enum Refused {
    #[error("plain HTTP is not allowed here (set allow_http)")]
    PlainHttp,
    #[error("no response within {} ms", .0.as_millis())]
    Silent(Duration),
    #[error("no byte of the body was taken within {} ms, or too few on the whole", .0.as_millis())]
    Stalled(Duration),
    #[error("the signed URL is no valid request target")]
    BadTarget,
    #[error("{0} is not followed")]
    Redirect(&'static str),
}

/// Where hyper's own tasks run: on a given runtime, or on that of who asks.
#[derive(Debug, Clone)]
struct On(Option<Handle>);

impl<F> hyper::rt::Executor<F> for On
where
    F: Future<Output: Send + 'static> + Send + 'static,
{
    fn execute(&self, task: F) {
        match &self.0 {
            // It ends with its connection; nobody waits for it.
            Some(runtime) => drop(runtime.spawn(task)),
            None => TokioExecutor::new().execute(task),
        }
    }
}

impl Transport {
    pub(crate) fn new(
        connector: Connector,
        timeouts: Timeouts,
        idle_max: Option<usize>,
        evidence: Arc<dyn SocketEvidence>,
    ) -> Self {
        let mut builder = Client::builder(On(connector.runtime().cloned()));
        builder
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(POOL_IDLE)
            .pool_max_idle_per_host(idle_max.unwrap_or(POOL_IDLE_MAX))
            // A request that met a connection its server had closed was never sent: that is no
            // attempt, and takes the next connection.
            .retry_canceled_requests(true);
        let client = builder.build(connector.clone());
        Self {
            client,
            fresh: builder.pool_max_idle_per_host(0).build(connector.clone()),
            connector,
            idle: IdlePool::new(idle_max.unwrap_or(POOL_IDLE_MAX), POOL_IDLE),
            evidence,
            timeouts,
            allow_http: false,
            redirects: false,
            counters: Arc::default(),
            signed: None,
            probe: None,
            traced: false,
        }
    }

    /// Drops connections that have been idle too long.
    pub(crate) fn prune(&self, now: Instant) {
        self.idle.prune(now);
    }

    /// This transport, counting for one origin.
    pub(crate) fn counting(&self, counters: Arc<Counters>) -> Self {
        Self { counters, ..self.clone() }
    }

    /// This transport, saying which trace its requests belong to, or not.
    pub(crate) fn tracing(self, traced: bool) -> Self {
        Self { traced, ..self }
    }

    /// This transport for a web server: redirects are followed, as web servers for large files make
    /// them, and what was signed is asked for. No request of it carries credentials in a header.
    pub(crate) fn for_web(&self, signed: Option<Arc<SignedTarget>>) -> Self {
        Self { signed, redirects: true, ..self.clone() }
    }

    /// This transport, reporting every request to one probe: for calls without extensions.
    pub(crate) fn probed(&self, probe: Probe) -> Self {
        Self { probe: Some(probe), ..self.clone() }
    }

    fn prepare(&self, request: &mut HttpRequest, probe: &Probe) -> Result<(), HttpError> {
        if request.uri().scheme_str() == Some("http") && !self.allow_http {
            let text = Refused::PlainHttp.to_string();
            probe.note(|seen| seen.broke = Some((Break::Forbidden, text)));
            return Err(HttpError::new(HttpErrorKind::Request, Refused::PlainHttp));
        }
        if let Some(signed) = &self.signed {
            let target = signed.for_path(request.uri().path());
            *request.uri_mut() = with_target(request.uri(), target.reveal())
                .ok_or_else(|| HttpError::new(HttpErrorKind::Request, Refused::BadTarget))?;
        }
        let trace = Route::current().trace.filter(|_| self.traced);
        if let Some(header) = trace.and_then(|trace| trace.header()) {
            request.headers_mut().insert(TRACE_PARENT, header);
        }
        Ok(())
    }

    /// The response's head. The clock of the first byte starts once there is a connection, because
    /// making one has its own limits.
    async fn head(
        &self,
        mut request: HttpRequest,
        probe: &Probe,
    ) -> Result<http::Response<Incoming>, HttpError> {
        let mut captured = capture_connection(&mut request);
        let client = if Route::current().fresh { &self.fresh } else { &self.client };
        let (request, progress) = outgoing(request);
        let mut response = pin!(client.request(request));
        let connected = async {
            let metadata = captured.wait_for_connection_metadata().await;
            if let Some(connection) = metadata.as_ref() {
                let mut extras = Extensions::new();
                connection.get_extras(&mut extras);
                probe.note(|seen| seen.mark = extras.remove::<Mark>());
            }
        };
        let early = tokio::select! {
            biased;
            answer = &mut response => Some(answer),
            () = connected => None,
        };
        let begun = Instant::now();
        let answer = match early {
            Some(answer) => answer,
            None => loop {
                let Limit { until, limit, answers } = progress.limit(begun, &self.timeouts);
                match timeout_at(until, &mut response).await {
                    Ok(answer) => break answer,
                    // More of the body was taken meanwhile.
                    Err(_) if Instant::now() < progress.limit(begun, &self.timeouts).until => {}
                    Err(_elapsed) if answers => return Err(silent(limit, probe)),
                    Err(_elapsed) => return Err(stalled(limit, probe)),
                }
            },
        };
        let response = answer.map_err(|error| broke(error, probe))?;
        let times = response.extensions().get::<FreshTimes>().map(FreshTimes::take);
        let mark = response.extensions().get::<Mark>().cloned();
        let shunned = mark.as_ref().is_some_and(|mark| mark.is_shunned(Instant::now()));
        probe.note(|seen| {
            seen.mark = mark;
            seen.first_byte = added(seen.first_byte, Some(begun.elapsed()));
            note_times(seen, times.unwrap_or_default());
        });
        let status = response.status();
        if shunned || is_to_be_left(status) {
            // The next request shall meet another machine of the origin.
            if let Some(connection) = captured.connection_metadata().as_ref() {
                connection.poison();
            }
        }
        Ok(response)
    }

    async fn received(
        &self,
        request: HttpRequest,
        probe: &Probe,
        direct: bool,
    ) -> Result<http::Response<Received>, HttpError> {
        if direct {
            return Ok(self
                .wire_head(&request, probe)
                .await?
                .map(|body| Received::Direct(Box::new(body))));
        }
        Ok(self.head(request, probe).await?.map(Received::Stream))
    }

    /// The head of the response behind all redirects.
    async fn follow(
        &self,
        request: HttpRequest,
        probe: &Probe,
        direct: bool,
    ) -> Result<http::Response<Received>, HttpError> {
        let (mut parts, _) = request.into_parts();
        for _ in 0..=REDIRECTS_MAX {
            let mut request = HttpRequest::new(HttpRequestBody::empty());
            request.method_mut().clone_from(&parts.method);
            request.uri_mut().clone_from(&parts.uri);
            request.headers_mut().clone_from(&parts.headers);
            let response = self.received(request, probe, direct).await?;
            let Some(next) = redirect(&parts.uri, &response) else {
                return Ok(response);
            };
            if parts.uri.scheme_str() == Some("https") && next.scheme_str() != Some("https") {
                return Err(not_followed(probe, "a redirect from https to http"));
            }
            // Whatever names the first host does not name the next, nor is it said to it whose trace
            // this is.
            parts.headers.remove(HOST);
            parts.headers.remove(TRACE_PARENT);
            parts.uri = next;
        }
        Err(not_followed(probe, "too many redirects"))
    }
}

#[async_trait]
impl HttpService for Transport {
    async fn call(&self, mut request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let probe = request.extensions().get::<Probe>().or(self.probe.as_ref()).cloned();
        let probe = probe.or_else(Probe::of_write).unwrap_or_else(Probe::for_credentials);
        probe.note(|seen| *seen = Seen { sent: true, ..Seen::default() });
        self.prepare(&mut request, &probe)?;
        let direct = request.extensions().get::<Direct>().cloned();
        let response = match self.redirects {
            true => self.follow(request, &probe, direct.is_some()).await?,
            false => self.received(request, &probe, direct.is_some()).await?,
        };
        let (mut parts, body) = response.into_parts();
        probe.note(|seen| note_head(seen, parts.status, &parts.headers));
        made_fit(&mut parts);
        let body = match body {
            Received::Stream(body) => {
                let idle = self.timeouts.body_idle;
                let counters = Arc::clone(&self.counters);
                let body = TimedBody::new(body, parts.status, idle, probe, counters);
                HttpResponseBody::new(body)
            }
            Received::Direct(body) if parts.status == StatusCode::PARTIAL_CONTENT => {
                if let Some(direct) = direct {
                    direct.put(*body);
                }
                Bytes::new().into()
            }
            Received::Direct(body) => {
                let start = body.start(BODY_START_MAX).await;
                probe.note(|seen| seen.body_start.clone_from(&start));
                start.into()
            }
        };
        Ok(HttpResponse::from_parts(parts, body))
    }
}

impl HttpConnector for Transport {
    fn connect(&self, options: &ClientOptions) -> object_store::Result<HttpClient> {
        // object_store forbids plain HTTP for single clients, such as the one that gets tokens.
        let allow_http = options
            .get_config_value(&ClientConfigKey::AllowHttp)
            .is_some_and(|value| value == "true");
        Ok(HttpClient::new(Self { allow_http, ..self.clone() }))
    }
}

impl SignedTarget {
    fn for_path(&self, path: &str) -> Secret {
        if path == self.path {
            return self.target.exact.clone();
        }
        Secret::new(format!("{path}?{}", self.target.query.reveal()))
    }
}

/// Whether an answer says that its machine had better be left alone.
pub(super) fn is_to_be_left(status: StatusCode) -> bool {
    status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS
}

pub(super) fn silent(limit: Duration, probe: &Probe) -> HttpError {
    let text = Refused::Silent(limit).to_string();
    probe.note(|seen| seen.broke = Some((Break::TimedOut, text)));
    HttpError::new(HttpErrorKind::Timeout, Refused::Silent(limit))
}

fn stalled(limit: Duration, probe: &Probe) -> HttpError {
    let refused = Refused::Stalled(limit);
    probe.note(|seen| seen.broke = Some((Break::TimedOut, refused.to_string())));
    HttpError::new(HttpErrorKind::Timeout, refused)
}

fn not_followed(probe: &Probe, what: &'static str) -> HttpError {
    let refused = Refused::Redirect(what);
    probe.note(|seen| seen.broke = Some((Break::Redirect, refused.to_string())));
    HttpError::new(HttpErrorKind::Request, refused)
}

fn with_target(uri: &Uri, target: &str) -> Option<Uri> {
    let mut parts = uri.clone().into_parts();
    parts.path_and_query = Some(PathAndQuery::try_from(target).ok()?);
    Uri::from_parts(parts).ok()
}

/// Notes how an exchange broke before there was a head.
fn broke(error: ClientError, probe: &Probe) -> HttpError {
    let mut cause: Option<&(dyn Error + 'static)> = Some(&error);
    let mut found = (Break::Cut, HttpErrorKind::Interrupted, error.to_string());
    while let Some(layer) = cause {
        if let Some(connect) = layer.downcast_ref::<ConnectError>() {
            probe.note(|seen| note_unconnected(seen, connect));
            found = (connect.broke, HttpErrorKind::Connect, connect.to_string());
            break;
        }
        if let Some(hyper) = layer.downcast_ref::<hyper::Error>() {
            let parse = hyper.is_parse();
            let broke = if parse { Break::Protocol } else { Break::Cut };
            found = (broke, HttpErrorKind::Interrupted, hyper.to_string());
        }
        cause = layer.source();
    }
    let (broke, kind, text) = found;
    probe.note(|seen| seen.broke = Some((broke, text)));
    HttpError::new(kind, error)
}
