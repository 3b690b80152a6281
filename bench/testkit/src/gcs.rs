//! Google Cloud Storage's XML API, as far as who reads and writes objects uses it.
//!
//! GET and HEAD of an object, PUT and DELETE, uploads in parts, a listing in pages (`list-type=2`),
//! `generation` in the query, and a bearer token that must be there; whose it is, is not checked.

use std::fmt::Write;
use std::ops::Deref;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use http::header::AUTHORIZATION;
use http::request::Parts;
use http::{Method, Request, Response};
use hyper::body::Incoming;

use crate::canary::CANARY;
use crate::claims;
use crate::contents::{Contents, Page};
use crate::flow::Payload;
use crate::head::{self, Answering};
use crate::ledger::Op;
use crate::origin::{Origin, variables};
use crate::plan::Refusal;
use crate::serve::{Backend, LinkOptions};
use crate::text::{self, escape};
use crate::uploads::Unfit;

const PAGE_KEYS: usize = 1000;

/// How a [`GcsOrigin`] behaves.
#[derive(Clone, Debug)]
pub struct GcsOptions {
    /// Address and speed.
    pub link: LinkOptions,
    /// The most keys on one page of a listing.
    pub page_keys: usize,
    /// Accept requests without a bearer token.
    pub anonymous: bool,
    /// The objects; several origins may share them.
    pub contents: Contents,
}

impl Default for GcsOptions {
    fn default() -> Self {
        Self {
            link: LinkOptions::default(),
            page_keys: PAGE_KEYS,
            anonymous: false,
            contents: Contents::new(),
        }
    }
}

/// A running GCS origin; its other methods are those of [`Origin`].
#[derive(Debug)]
pub struct GcsOrigin(Origin);

impl GcsOrigin {
    /// Starts an origin.
    ///
    /// # Panics
    /// If no socket or thread can be had.
    pub async fn start(options: GcsOptions) -> Self {
        let GcsOptions { link, page_keys, anonymous, contents } = options;
        let page_keys = page_keys.clamp(1, PAGE_KEYS);
        let backend = Arc::new(Gcs { contents: contents.clone(), page_keys, anonymous });
        Self(Origin::start("gcs", link, contents, backend).await)
    }

    /// The environment that makes object_store's `gs` use this origin.
    pub fn env(&self) -> Vec<(String, String)> {
        variables([
            ("GOOGLE_BASE_URL", self.endpoint()),
            ("GOOGLE_ALLOW_HTTP", "true".to_owned()),
            ("GOOGLE_BEARER_TOKEN", format!("testkit-{CANARY}-token")),
        ])
    }
}

impl Deref for GcsOrigin {
    type Target = Origin;

    fn deref(&self) -> &Origin {
        &self.0
    }
}

struct Gcs {
    contents: Contents,
    page_keys: usize,
    anonymous: bool,
}

impl Gcs {
    fn respond(&self, request: &Request<Incoming>) -> Result<Response<Payload>, Refusal> {
        if !self.anonymous && !request.headers().contains_key(AUTHORIZATION) {
            return Err(401.into());
        }
        let (op, bucket, key) = locate(request.method(), request.uri());
        match op {
            Op::List if self.contents.has_bucket(&bucket) => {
                Ok(self.list(request.uri(), &bucket, &key))
            }
            Op::Get | Op::Head => self.object(request, &bucket, &key),
            Op::List => Err(404.into()),
            Op::Put | Op::Other => Err(405.into()),
        }
    }

    /// Whatever is neither a GET nor a HEAD.
    fn write(&self, parts: &Parts, body: Bytes) -> Result<Response<Payload>, Refusal> {
        if !self.anonymous && !parts.headers.contains_key(AUTHORIZATION) {
            return Err(401.into());
        }
        let (_, bucket, key) = locate(&parts.method, &parts.uri);
        if !self.contents.has_bucket(&bucket) {
            return Err(404.into());
        }
        let id = text::query(&parts.uri, "uploadId");
        let number = text::query(&parts.uri, "partNumber").and_then(|number| number.parse().ok());
        match (parts.method.as_str(), id, number) {
            ("PUT", Some(id), Some(number)) => {
                let tag = self.contents.part(&id, number, body).map_err(unfit)?;
                Ok(tagged(head::page("application/xml", String::new()), &tag))
            }
            ("PUT", None, None) => {
                self.contents.put(&bucket, &key, body);
                let object = self.contents.object(&bucket, &key).ok_or(404)?;
                Ok(tagged(head::page("application/xml", String::new()), &object.etag))
            }
            ("POST", None, None) if text::query(&parts.uri, "uploads").is_some() => {
                let id = self.contents.begin(&bucket, &key);
                let (bucket, key) = (escape(&bucket), escape(&key));
                let xml = format!(
                    "<InitiateMultipartUploadResult><Bucket>{bucket}</Bucket><Key>{key}</Key>\
                     <UploadId>{id}</UploadId></InitiateMultipartUploadResult>"
                );
                Ok(head::page("application/xml", xml))
            }
            ("POST", Some(id), None) => {
                let wanted = text::listed_parts(&body).ok_or(400)?;
                let tag = self.contents.complete(&id, &wanted).map_err(unfit)?;
                let xml = format!(
                    "<CompleteMultipartUploadResult><ETag>&quot;{tag}&quot;</ETag>\
                     </CompleteMultipartUploadResult>"
                );
                Ok(tagged(head::page("application/xml", xml), &tag))
            }
            ("DELETE", Some(id), None) if self.contents.give_up(&id) => Ok(head::nothing()),
            ("DELETE", None, None) if self.contents.remove(&bucket, &key) => Ok(head::nothing()),
            ("DELETE", _, None) => Err(404.into()),
            _ => Err(405.into()),
        }
    }

    fn object(
        &self,
        request: &Request<Incoming>,
        bucket: &str,
        key: &str,
    ) -> Result<Response<Payload>, Refusal> {
        let object = self.contents.object(bucket, key).ok_or_else(|| Refusal::from(404))?;
        let generation = object.version.to_string();
        if text::query(request.uri(), "generation").is_some_and(|asked| asked != generation) {
            return Err(404.into());
        }
        let answering = Answering { etag: Some(format!("\"{}\"", object.etag)), ranges: true };
        let mut response = head::object_response(&object, request, &answering)?;
        head::set(response.headers_mut(), "x-goog-generation", &generation);
        claims::google(response.headers_mut(), &object.checksums);
        Ok(response)
    }

    fn list(&self, uri: &http::Uri, bucket: &str, prefix: &str) -> Response<Payload> {
        let asked = text::query(uri, "max-keys").and_then(|keys| keys.parse().ok());
        let limit = asked.unwrap_or(self.page_keys).min(self.page_keys);
        let after =
            text::query(uri, "continuation-token").or_else(|| text::query(uri, "start-after"));
        let page = self.contents.page(bucket, prefix, after.as_deref(), limit);
        head::page("application/xml", listing(bucket, prefix, &page))
    }
}

fn tagged(mut response: Response<Payload>, tag: &str) -> Response<Payload> {
    head::set(response.headers_mut(), "etag", &format!("\"{tag}\""));
    response
}

fn unfit(unfit: Unfit) -> Refusal {
    let (status, code) = match unfit {
        Unfit::NoUpload => (404, "NoSuchUpload"),
        Unfit::Part => (400, "InvalidPart"),
        Unfit::TooSmall => (400, "EntityTooSmall"),
    };
    Refusal { code: Some(code), ..Refusal::from(status) }
}

fn listing(bucket: &str, prefix: &str, page: &Page) -> String {
    let mut xml = String::from("<?xml version='1.0' encoding='UTF-8'?>\n<ListBucketResult>");
    let next = page
        .next
        .as_ref()
        .map(|next| format!("<NextContinuationToken>{}</NextContinuationToken>", escape(next)));
    // A String takes whatever it is given.
    write!(
        xml,
        "<Name>{}</Name><Prefix>{}</Prefix><KeyCount>{}</KeyCount><IsTruncated>{}</IsTruncated>{}",
        escape(bucket),
        escape(prefix),
        page.objects.len(),
        next.is_some(),
        next.unwrap_or_default(),
    )
    .ok();
    for (key, object) in &page.objects {
        write!(
            xml,
            "<Contents><Key>{}</Key><Generation>{}</Generation><LastModified>{}</LastModified>\
             <ETag>&quot;{}&quot;</ETag><Size>{}</Size></Contents>",
            escape(key),
            object.version,
            head::iso_date(object.modified_seconds()),
            object.etag,
            object.content.len(),
        )
        .ok();
    }
    xml.push_str("</ListBucketResult>");
    xml
}

/// Operation, bucket, and key or prefix.
fn locate(method: &Method, uri: &http::Uri) -> (Op, String, String) {
    let (bucket, key) = text::bucket_and_key(uri);
    match (method, key.is_empty()) {
        (&Method::GET, true) => (Op::List, bucket, text::query(uri, "prefix").unwrap_or_default()),
        (&Method::GET, false) => (Op::Get, bucket, key),
        (&Method::HEAD, false) => (Op::Head, bucket, key),
        (&Method::PUT, false) => (Op::Put, bucket, key),
        _ => (Op::Other, bucket, key),
    }
}

#[async_trait]
impl Backend for Gcs {
    fn locate(&self, request: &Parts) -> (Op, String, String) {
        locate(&request.method, &request.uri)
    }

    async fn answer(&self, request: Request<Incoming>) -> Response<Payload> {
        let (_, _, key) = locate(request.method(), request.uri());
        let answer = match *request.method() {
            Method::GET | Method::HEAD => self.respond(&request),
            _ => match head::received(request).await {
                Some((parts, body)) => self.write(&parts, body),
                None => Err(400.into()),
            },
        };
        answer.unwrap_or_else(|refusal| self.refuse(&refusal, &key))
    }

    fn refuse(&self, refusal: &Refusal, key: &str) -> Response<Payload> {
        head::s3_refusal(refusal, key)
    }
}
