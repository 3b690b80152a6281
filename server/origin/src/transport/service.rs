//! The `HttpService` that object_store sends its requests through.
//!
//! One transport is shared by all origins with the same certificates; each store has a clone with its
//! own counters and, for a URI with a query, the exact target that was signed. The query goes into the
//! request here and nowhere earlier: object_store, whose errors quote URLs, never has it.

use std::error::Error;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use http::header::{CONTENT_LENGTH, CONTENT_RANGE, ETAG, HOST, HeaderMap, LOCATION, RETRY_AFTER};
use http::response::Parts;
use http::uri::PathAndQuery;
use http::{StatusCode, Uri};
use hyper::body::Incoming;
use hyper_util::client::legacy::connect::capture_connection;
use hyper_util::client::legacy::{Client, Error as ClientError};
use hyper_util::rt::{TokioExecutor, TokioTimer};
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpRequestBody,
    HttpResponse, HttpResponseBody, HttpService,
};
use object_store::{ClientConfigKey, ClientOptions};
use tokio::time::{Instant, timeout};

use super::body::TimedBody;
use super::connect::{ConnectError, Connector, FreshTimes, PhaseTimes};
use super::probe::{Break, Probe, Seen, is_code};
use crate::settings::Timeouts;
use crate::stats::Counters;
use crate::uri::{Secret, WebTarget};

/// Idle connections are closed before the origins do it (S3 and nginx keep them for 20 s or more).
const POOL_IDLE: Duration = Duration::from_secs(15);
/// Idle connections kept per host when nothing is set.
const POOL_IDLE_MAX: usize = 64;

/// Redirects followed for one request.
const REDIRECTS_MAX: usize = 5;

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
    client: Client<Connector, HttpRequestBody>,
    timeouts: Timeouts,
    allow_http: bool,
    redirects: bool,
    counters: Arc<Counters>,
    signed: Option<Arc<SignedTarget>>,
    probe: Option<Probe>,
}

#[derive(Debug, thiserror::Error)]
enum Refused {
    #[error("plain HTTP is not allowed here (set allow_http)")]
    PlainHttp,
    #[error("no response within {} ms", .0.as_millis())]
    Silent(Duration),
    #[error("the signed URL is no valid request target")]
    BadTarget,
    #[error("{0} is not followed")]
    Redirect(&'static str),
}

impl Transport {
    pub(crate) fn new(connector: Connector, timeouts: Timeouts, idle_max: Option<usize>) -> Self {
        let mut builder = Client::builder(TokioExecutor::new());
        builder
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(POOL_IDLE)
            .pool_max_idle_per_host(idle_max.unwrap_or(POOL_IDLE_MAX))
            // A request that met a connection its server had closed was never sent: that is no
            // attempt, and takes the next connection.
            .retry_canceled_requests(true);
        Self {
            client: builder.build(connector),
            timeouts,
            allow_http: false,
            redirects: false,
            counters: Arc::default(),
            signed: None,
            probe: None,
        }
    }

    /// This transport, counting for one origin.
    pub(crate) fn counting(&self, counters: Arc<Counters>) -> Self {
        Self { counters, ..self.clone() }
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
        let mut response = pin!(self.client.request(request));
        let connected = async {
            drop(captured.wait_for_connection_metadata().await);
        };
        let early = tokio::select! {
            biased;
            answer = &mut response => Some(answer),
            () = connected => None,
        };
        let begun = Instant::now();
        let limit = self.timeouts.first_byte;
        let answer = match early {
            Some(answer) => answer,
            None => match timeout(limit, response).await {
                Ok(answer) => answer,
                Err(_) => {
                    let text = Refused::Silent(limit).to_string();
                    probe.note(|seen| seen.broke = Some((Break::TimedOut, text)));
                    return Err(HttpError::new(HttpErrorKind::Timeout, Refused::Silent(limit)));
                }
            },
        };
        let response = answer.map_err(|error| broke(error, probe))?;
        let times = response.extensions().get::<FreshTimes>().map(FreshTimes::take);
        probe.note(|seen| {
            seen.first_byte = added(seen.first_byte, Some(begun.elapsed()));
            note_times(seen, times.unwrap_or_default());
        });
        let status = response.status();
        if status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS {
            // The next attempt shall meet another machine of the origin.
            if let Some(connection) = captured.connection_metadata().as_ref() {
                connection.poison();
            }
        }
        Ok(response)
    }

    /// The head of the response behind all redirects.
    async fn follow(
        &self,
        request: HttpRequest,
        probe: &Probe,
    ) -> Result<http::Response<Incoming>, HttpError> {
        let (mut parts, _) = request.into_parts();
        for _ in 0..=REDIRECTS_MAX {
            let mut request = HttpRequest::new(HttpRequestBody::empty());
            request.method_mut().clone_from(&parts.method);
            request.uri_mut().clone_from(&parts.uri);
            request.headers_mut().clone_from(&parts.headers);
            let response = self.head(request, probe).await?;
            let Some(next) = redirect(&parts.uri, &response) else {
                return Ok(response);
            };
            if parts.uri.scheme_str() == Some("https") && next.scheme_str() != Some("https") {
                return Err(not_followed(probe, "a redirect from https to http"));
            }
            // Whatever names the first host does not name the next.
            parts.headers.remove(HOST);
            parts.uri = next;
        }
        Err(not_followed(probe, "too many redirects"))
    }
}

#[async_trait]
impl HttpService for Transport {
    async fn call(&self, mut request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let probe = request.extensions().get::<Probe>().or(self.probe.as_ref()).cloned();
        let probe = probe.unwrap_or_else(Probe::for_credentials);
        probe.note(|seen| *seen = Seen { sent: true, ..Seen::default() });
        self.prepare(&mut request, &probe)?;
        let response = match self.redirects {
            true => self.follow(request, &probe).await?,
            false => self.head(request, &probe).await?,
        };
        let (mut parts, body) = response.into_parts();
        probe.note(|seen| {
            seen.status = Some(parts.status.as_u16());
            note_headers(seen, &parts.headers);
        });
        if let Some(length) = length_of_range(&parts) {
            parts.headers.insert(CONTENT_LENGTH, length.into());
        }
        let idle = self.timeouts.body_idle;
        let body = TimedBody::new(body, parts.status, idle, probe, Arc::clone(&self.counters));
        Ok(HttpResponse::from_parts(parts, HttpResponseBody::new(body)))
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

/// Where a response redirects to. The target may be signed: nothing shows it.
fn redirect(from: &Uri, response: &http::Response<Incoming>) -> Option<Uri> {
    if !matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
        return None;
    }
    let location = response.headers().get(LOCATION)?.to_str().ok()?;
    let base = url::Url::parse(&from.to_string()).ok()?;
    let mut next = base.join(location).ok()?;
    next.set_fragment(None);
    let named = matches!(next.scheme(), "http" | "https") && next.username().is_empty();
    if named { next.as_str().parse().ok() } else { None }
}

/// The length of a chunked answer to a range: object_store insists on a Content-Length.
fn length_of_range(parts: &Parts) -> Option<u64> {
    if parts.status != StatusCode::PARTIAL_CONTENT || parts.headers.contains_key(CONTENT_LENGTH) {
        return None;
    }
    let range = parts.headers.get(CONTENT_RANGE)?.to_str().ok()?;
    let (start, rest) = range.strip_prefix("bytes ")?.split_once('-')?;
    let (last, _) = rest.split_once('/')?;
    last.parse::<u64>().ok()?.checked_sub(start.parse().ok()?)?.checked_add(1)
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

/// An attempt that follows redirects may make several connections: their times add up.
fn note_times(seen: &mut Seen, times: PhaseTimes) {
    seen.dns = added(seen.dns, times.dns);
    seen.connect = added(seen.connect, times.connect);
    seen.tls = added(seen.tls, times.tls);
}

fn added(before: Option<Duration>, more: Option<Duration>) -> Option<Duration> {
    match (before, more) {
        (Some(before), Some(more)) => Some(before + more),
        (before, more) => before.or(more),
    }
}

fn note_headers(seen: &mut Seen, headers: &HeaderMap) {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    seen.content_length = text(CONTENT_LENGTH.as_str()).and_then(|value| value.parse().ok());
    seen.etag = text(ETAG.as_str()).map(str::to_owned);
    seen.content_range = text(CONTENT_RANGE.as_str()).map(str::to_owned);
    seen.request_id =
        ["x-amz-request-id", "x-ms-request-id", "x-guploader-uploadid", "x-request-id"]
            .iter()
            .find_map(|name| text(name))
            .map(|id| id.chars().take(128).collect());
    seen.code = text("x-ms-error-code").filter(|code| is_code(code)).map(str::to_owned);
    seen.region = text("x-amz-bucket-region")
        .filter(|region| region.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-'))
        .map(str::to_owned);
    // Seconds; S3's own hint is in milliseconds. A date, which the clouds do not send, is ignored.
    let seconds = text(RETRY_AFTER.as_str()).and_then(|value| value.trim().parse().ok());
    let millis = text("x-amz-retry-after").and_then(|value| value.trim().parse().ok());
    seen.retry_after =
        millis.map(Duration::from_millis).or_else(|| seconds.map(Duration::from_secs));
}

/// Notes how an exchange broke before there was a head.
fn broke(error: ClientError, probe: &Probe) -> HttpError {
    let mut cause: Option<&(dyn Error + 'static)> = Some(&error);
    let mut found = (Break::Cut, HttpErrorKind::Interrupted, error.to_string());
    while let Some(layer) = cause {
        if let Some(connect) = layer.downcast_ref::<ConnectError>() {
            probe.note(|seen| note_times(seen, connect.times));
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
