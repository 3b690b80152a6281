//! A plain HTTP client that hides nothing: every request is made on a connection of its own, and
//! what arrived before a failure is kept.

use http_body_util::{BodyExt, Empty};
use hyper::body::Bytes;
use hyper::{HeaderMap, Request};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;

pub(super) type Http = Client<HttpConnector, Empty<Bytes>>;

/// What came back.
#[derive(Debug)]
pub(super) struct Reply {
    pub(super) status: u16,
    pub(super) headers: HeaderMap,
    pub(super) body: Vec<u8>,
    /// How the body broke off, if it did.
    pub(super) broken: Option<std::io::ErrorKind>,
}

impl Reply {
    pub(super) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    pub(super) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

pub(super) fn client() -> Http {
    Client::builder(TokioExecutor::new()).build_http()
}

/// Sends a request without a body; Err where no response came, with the kind of the I/O error.
pub(super) async fn send(
    method: &str,
    url: &str,
    headers: &[(&str, &str)],
) -> Result<Reply, std::io::ErrorKind> {
    send_with(&client(), method, url, headers).await
}

pub(super) async fn send_with(
    client: &Http,
    method: &str,
    url: &str,
    headers: &[(&str, &str)],
) -> Result<Reply, std::io::ErrorKind> {
    let mut request = Request::builder().method(method).uri(url);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let response = client.request(request.body(Empty::new()).unwrap()).await;
    let (parts, mut body) = response.map_err(|error| kind_of(&error))?.into_parts();
    let mut reply =
        Reply { status: parts.status.as_u16(), headers: parts.headers, body: vec![], broken: None };
    while let Some(frame) = body.frame().await {
        match frame {
            Ok(frame) => reply.body.extend_from_slice(&frame.into_data().unwrap()),
            Err(error) => reply.broken = Some(kind_of(&error)),
        }
    }
    Ok(reply)
}

/// The kind of the I/O error at the root of an error, `UnexpectedEof` for an early end.
fn kind_of(error: &(dyn std::error::Error + 'static)) -> std::io::ErrorKind {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(io) = error.downcast_ref::<std::io::Error>() {
            return io.kind();
        }
        cause = error.source();
    }
    std::io::ErrorKind::UnexpectedEof
}

pub(super) async fn get(url: &str) -> Reply {
    send("GET", url, &[]).await.unwrap()
}

pub(super) async fn get_range(url: &str, range: &str) -> Reply {
    send("GET", url, &[("range", range)]).await.unwrap()
}
