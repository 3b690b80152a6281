//! Azure Blob Storage, as far as who reads and writes blobs uses it.
//!
//! GET and HEAD of a blob, PUT of one and of its blocks and their list, DELETE in batches, a
//! listing of a container in pages (`comp=list` with `marker`), and an authorisation that must be
//! there, as a header (Shared Key, bearer) or as a SAS signature in the query; neither is verified.
//! Blob URLs are `ENDPOINT/CONTAINER/BLOB`.

use std::fmt::Write;
use std::ops::Deref;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use http::header::AUTHORIZATION;
use http::request::Parts;
use http::{Method, Request, Response, StatusCode};
use hyper::body::Incoming;

use crate::claims;
use crate::contents::{Contents, Page};
use crate::flow::Payload;
use crate::head::{self, Answering};
use crate::ledger::Op;
use crate::origin::{Origin, variables};
use crate::plan::Refusal;
use crate::serve::{Backend, LinkOptions};
use crate::text::{self, escape};

const PAGE_BLOBS: usize = 5000;
const ACCOUNT: &str = "testkit";

/// How an [`AzureOrigin`] behaves.
#[derive(Clone, Debug)]
pub struct AzureOptions {
    /// Address and speed.
    pub link: LinkOptions,
    /// The most blobs on one page of a listing.
    pub page_blobs: usize,
    /// Accept requests without authorisation.
    pub anonymous: bool,
    /// The blobs; several origins may share them.
    pub contents: Contents,
}

impl Default for AzureOptions {
    fn default() -> Self {
        Self {
            link: LinkOptions::default(),
            page_blobs: PAGE_BLOBS,
            anonymous: false,
            contents: Contents::new(),
        }
    }
}

/// A running Azure origin; its other methods are those of [`Origin`].
#[derive(Debug)]
pub struct AzureOrigin(Origin);

impl AzureOrigin {
    /// Starts an origin.
    ///
    /// # Panics
    /// If no socket or thread can be had.
    pub async fn start(options: AzureOptions) -> Self {
        let AzureOptions { link, page_blobs, anonymous, contents } = options;
        let page_blobs = page_blobs.clamp(1, PAGE_BLOBS);
        let backend = Arc::new(Azure { contents: contents.clone(), page_blobs, anonymous });
        Self(Origin::start("azure", link, contents, backend).await)
    }

    /// The storage account.
    pub fn account(&self) -> &'static str {
        ACCOUNT
    }

    /// The environment that makes object_store's `az` use this origin.
    pub fn env(&self) -> Vec<(String, String)> {
        variables([
            ("AZURE_STORAGE_ACCOUNT_NAME", ACCOUNT.to_owned()),
            ("AZURE_STORAGE_ENDPOINT", self.endpoint()),
            ("AZURE_ALLOW_HTTP", "true".to_owned()),
            // "testkit key Kanarienvogel, protects nothing!"
            (
                "AZURE_STORAGE_ACCOUNT_KEY",
                "dGVzdGtpdCBrZXkgS2FuYXJpZW52b2dlbCwgcHJvdGVjdHMgbm90aGluZyE=".to_owned(),
            ),
        ])
    }
}

impl Deref for AzureOrigin {
    type Target = Origin;

    fn deref(&self) -> &Origin {
        &self.0
    }
}

struct Azure {
    contents: Contents,
    page_blobs: usize,
    anonymous: bool,
}

impl Azure {
    fn respond(&self, request: &Request<Incoming>) -> Result<Response<Payload>, Refusal> {
        let uri = request.uri();
        let signed =
            request.headers().contains_key(AUTHORIZATION) || text::query(uri, "sig").is_some();
        if !self.anonymous && !signed {
            return Err(403.into());
        }
        let (op, container, blob) = locate(request.method(), uri);
        match op {
            Op::List if self.contents.has_bucket(&container) => {
                Ok(self.list(uri, &container, &blob))
            }
            Op::List => Err(404.into()),
            Op::Get | Op::Head => {
                let object =
                    self.contents.object(&container, &blob).ok_or_else(|| Refusal::from(404))?;
                let etag = Some(format!("\"{}\"", object.etag));
                let answering = Answering { etag, ranges: true };
                let mut response = head::object_response(&object, request, &answering)?;
                let partial = response.status() == StatusCode::PARTIAL_CONTENT;
                claims::azure(response.headers_mut(), &object.checksums, partial);
                head::set(response.headers_mut(), "x-ms-blob-type", "BlockBlob");
                Ok(response)
            }
            Op::Put | Op::Other => Err(405.into()),
        }
    }

    /// Whatever is neither a GET nor a HEAD.
    fn write(&self, parts: &Parts, body: Bytes) -> Result<Response<Payload>, Refusal> {
        let uri = &parts.uri;
        let signed = parts.headers.contains_key(AUTHORIZATION) || text::query(uri, "sig").is_some();
        if !self.anonymous && !signed {
            return Err(403.into());
        }
        let (_, container, blob) = locate(&parts.method, uri);
        if !self.contents.has_bucket(&container) {
            return Err(404.into());
        }
        match (parts.method.as_str(), text::query(uri, "comp").as_deref()) {
            ("PUT", None) => self.contents.put(&container, &blob, body),
            ("PUT", Some("block")) => {
                let name = text::query(uri, "blockid").ok_or(400)?;
                self.contents.block(&container, &blob, &name, body);
                return Ok(created());
            }
            ("PUT", Some("blocklist")) => {
                let xml = String::from_utf8_lossy(&body);
                let names = text::elements(&xml, "Uncommitted").into_iter().map(str::to_owned);
                let names: Vec<String> = names.collect();
                let unknown = Refusal { code: Some("InvalidBlockList"), ..Refusal::from(400) };
                self.contents.commit(&container, &blob, &names).ok_or(unknown)?;
            }
            ("POST", Some("batch")) => return Ok(self.batch(&body)),
            _ => return Err(405.into()),
        }
        let object = self.contents.object(&container, &blob).ok_or(404)?;
        let mut response = created();
        head::set(response.headers_mut(), "etag", &format!("\"{}\"", object.etag));
        Ok(response)
    }

    /// A batch of deletes; each of its requests names a blob and is answered by its place.
    fn batch(&self, body: &[u8]) -> Response<Payload> {
        let body = String::from_utf8_lossy(body);
        let blobs = body.lines().filter_map(|line| {
            let target = line.strip_prefix("DELETE ")?.strip_suffix(" HTTP/1.1")?;
            let path = target.split('?').next()?.strip_prefix('/')?;
            let (container, blob) = path.split_once('/')?;
            Some((text::decode(container), text::decode(blob)))
        });
        let mut answers = String::new();
        for (at, (container, blob)) in blobs.enumerate() {
            let there = self.contents.remove(&container, &blob);
            let status = if there { "202 Accepted" } else { "404 Not Found" };
            write!(
                answers,
                "--batch\r\nContent-Type: application/http\r\nContent-ID: {at}\r\n\r\n\
                 HTTP/1.1 {status}\r\nx-ms-version: 2020-04-08\r\n\r\n"
            )
            .ok();
        }
        let mut response = head::page("multipart/mixed; boundary=batch", answers + "--batch--\r\n");
        *response.status_mut() = StatusCode::ACCEPTED;
        response
    }

    fn list(&self, uri: &http::Uri, container: &str, prefix: &str) -> Response<Payload> {
        let asked = text::query(uri, "maxresults").and_then(|blobs| blobs.parse().ok());
        let limit = asked.unwrap_or(self.page_blobs).min(self.page_blobs);
        let after = text::query(uri, "marker");
        let page = self.contents.page(container, prefix, after.as_deref(), limit);
        head::page("application/xml", listing(container, prefix, &page))
    }
}

fn created() -> Response<Payload> {
    let mut response = head::page("application/xml", String::new());
    *response.status_mut() = StatusCode::CREATED;
    response
}

fn listing(container: &str, prefix: &str, page: &Page) -> String {
    let mut xml = format!(
        "<?xml version=\"1.0\" encoding=\"utf-8\"?><EnumerationResults ContainerName=\"{}\">\
         <Prefix>{}</Prefix><Blobs>",
        escape(container),
        escape(prefix),
    );
    for (key, object) in &page.objects {
        // A String takes whatever it is given.
        write!(
            xml,
            "<Blob><Name>{}</Name><Properties><Last-Modified>{}</Last-Modified><Etag>{}</Etag>\
             <Content-Length>{}</Content-Length>\
             <Content-Type>application/octet-stream</Content-Type>\
             <BlobType>BlockBlob</BlobType></Properties></Blob>",
            escape(key),
            head::http_date(object.modified_seconds()),
            object.etag,
            object.content.len(),
        )
        .ok();
    }
    let next = escape(page.next.as_deref().unwrap_or_default());
    write!(xml, "</Blobs><NextMarker>{next}</NextMarker></EnumerationResults>").ok();
    xml
}

/// Operation, container, and blob or prefix.
fn locate(method: &Method, uri: &http::Uri) -> (Op, String, String) {
    let (container, blob) = text::bucket_and_key(uri);
    match (method, text::query(uri, "comp").as_deref()) {
        (&Method::GET, Some("list")) => {
            (Op::List, container, text::query(uri, "prefix").unwrap_or_default())
        }
        (&Method::GET, None) => (Op::Get, container, blob),
        (&Method::HEAD, None) => (Op::Head, container, blob),
        (&Method::PUT, None | Some("block")) => (Op::Put, container, blob),
        _ => (Op::Other, container, blob),
    }
}

/// Azure's error code for a status.
fn code_of(status: u16) -> &'static str {
    match status {
        403 => "AuthenticationFailed",
        404 => "BlobNotFound",
        405 => "UnsupportedHttpVerb",
        412 => "ConditionNotMet",
        416 => "InvalidRange",
        429 | 503 => "ServerBusy",
        _ => "InternalError",
    }
}

#[async_trait]
impl Backend for Azure {
    fn locate(&self, request: &Parts) -> (Op, String, String) {
        locate(&request.method, &request.uri)
    }

    async fn answer(&self, request: Request<Incoming>) -> Response<Payload> {
        let answer = match *request.method() {
            Method::GET | Method::HEAD => self.respond(&request),
            _ => match head::received(request).await {
                Some((parts, body)) => self.write(&parts, body),
                None => Err(400.into()),
            },
        };
        answer.unwrap_or_else(|refusal| self.refuse(&refusal, ""))
    }

    fn refuse(&self, refusal: &Refusal, _key: &str) -> Response<Payload> {
        let code = refusal.code.unwrap_or_else(|| code_of(refusal.status));
        let body = format!(
            "<?xml version=\"1.0\" encoding=\"utf-8\"?><Error><Code>{code}</Code>\
             <Message>{code}</Message></Error>"
        );
        let mut response = head::document(refusal, "application/xml", body);
        head::set(response.headers_mut(), "x-ms-error-code", code);
        response
    }
}
