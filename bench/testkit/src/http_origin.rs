//! A plain HTTP/1.1 file server over the same contents, as clever or as simple as a test wants.
//!
//! GET and HEAD with `Last-Modified`, and by option an entity tag (strong, weak or none), ranges,
//! and a query that every URL must carry, as a presigned one does. Keys are URL paths, decoded.

use std::io;
use std::ops::Deref;
use std::sync::Arc;

use async_trait::async_trait;
use http::{Method, Request, Response, StatusCode};
use hyper::body::Incoming;

use crate::checkpoint::Checkpoint;
use crate::claims;
use crate::content::Content;
use crate::contents::{Contents, Object};
use crate::flow::Payload;
use crate::head::{self, Answering};
use crate::ledger::Op;
use crate::origin::Origin;
use crate::plan::Refusal;
use crate::serve::{Backend, LinkOptions};
use crate::text;

/// Plain HTTP has no buckets: its objects lie in the nameless one.
const BUCKET: &str = "";

/// The entity tags that an [`HttpOrigin`] gives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum EntityTag {
    /// `"tag"`.
    #[default]
    Strong,
    /// `W/"tag"`, which `If-Match` never matches.
    Weak,
    /// No `ETag` header.
    None,
}

/// How an [`HttpOrigin`] behaves.
#[derive(Clone, Debug)]
pub struct HttpOptions {
    /// Address and speed.
    pub link: LinkOptions,
    /// The entity tags.
    pub etag: EntityTag,
    /// Whether ranges are honoured; if not, every GET gets the whole object with 200.
    pub ranges: bool,
    /// The query that each request must have, as it stands after the `?`; others get 403.
    pub query: Option<String>,
    /// The objects; several origins may share them.
    pub contents: Contents,
}

impl Default for HttpOptions {
    fn default() -> Self {
        Self {
            link: LinkOptions::default(),
            etag: EntityTag::Strong,
            ranges: true,
            query: None,
            contents: Contents::new(),
        }
    }
}

/// A running HTTP origin; its other methods are those of [`Origin`].
#[derive(Debug)]
pub struct HttpOrigin {
    origin: Origin,
    query: Option<String>,
}

impl HttpOrigin {
    /// Starts an origin.
    ///
    /// # Panics
    /// If no socket or thread can be had.
    pub async fn start(options: HttpOptions) -> Self {
        Self::try_start(options).await.expect("a loopback server can be started")
    }

    /// Starts an origin, if its address is free.
    pub async fn try_start(options: HttpOptions) -> io::Result<Self> {
        let HttpOptions { link, etag, ranges, query, contents } = options;
        let backend = Plain { contents: contents.clone(), etag, ranges, query: query.clone() };
        let origin = Origin::try_start("http", link, contents, Arc::new(backend)).await?;
        Ok(Self { origin, query })
    }

    /// The URL of a key, with the query that the origin asks for.
    pub fn url(&self, key: &str) -> String {
        let query = self.query.as_ref().map(|query| format!("?{query}")).unwrap_or_default();
        format!("{}/{}{query}", self.endpoint(), text::encode(key))
    }

    /// Stores an object, in place of the one that was there.
    pub fn put(&self, key: &str, content: impl Into<Content>) {
        self.origin.put(BUCKET, key, content);
    }

    /// Stores a checkpoint's files under `prefix`, which ends in a slash or is empty.
    pub fn put_checkpoint(&self, prefix: &str, checkpoint: &Checkpoint) {
        self.origin.put_checkpoint(BUCKET, prefix, checkpoint);
    }

    /// The same as [`HttpOrigin::put`], for an object that is there.
    pub fn replace(&self, key: &str, content: impl Into<Content>) {
        self.put(key, content);
    }

    /// Takes an object away; answers whether it was there.
    pub fn remove(&self, key: &str) -> bool {
        self.origin.remove(BUCKET, key)
    }
}

impl Deref for HttpOrigin {
    type Target = Origin;

    fn deref(&self) -> &Origin {
        &self.origin
    }
}

struct Plain {
    contents: Contents,
    etag: EntityTag,
    ranges: bool,
    query: Option<String>,
}

impl Plain {
    fn answering(&self, object: &Object) -> Answering {
        let etag = match self.etag {
            EntityTag::Strong => Some(format!("\"{}\"", object.etag)),
            EntityTag::Weak => Some(format!("W/\"{}\"", object.etag)),
            EntityTag::None => None,
        };
        Answering { etag, ranges: self.ranges }
    }

    fn respond(&self, request: &Request<Incoming>) -> Result<Response<Payload>, Refusal> {
        if self.query.is_some() && request.uri().query() != self.query.as_deref() {
            return Err(403.into());
        }
        let reading = matches!(*request.method(), Method::GET | Method::HEAD);
        let key = reading.then(|| key_of(request.uri())).ok_or_else(|| Refusal::from(405))?;
        let object = self.contents.object(BUCKET, &key).ok_or_else(|| Refusal::from(404))?;
        let mut response = head::object_response(&object, request, &self.answering(&object))?;
        let partial = response.status() == StatusCode::PARTIAL_CONTENT;
        claims::web(response.headers_mut(), &object.checksums, partial);
        Ok(response)
    }
}

fn key_of(uri: &http::Uri) -> String {
    let path = uri.path();
    text::decode(path.strip_prefix('/').unwrap_or(path))
}

#[async_trait]
impl Backend for Plain {
    fn locate(&self, request: &http::request::Parts) -> (Op, String, String) {
        let op = match request.method {
            Method::GET => Op::Get,
            Method::HEAD => Op::Head,
            _ => Op::Other,
        };
        (op, BUCKET.to_owned(), key_of(&request.uri))
    }

    async fn answer(&self, request: Request<Incoming>) -> Response<Payload> {
        self.respond(&request).unwrap_or_else(|refusal| self.refuse(&refusal, ""))
    }

    fn refuse(&self, refusal: &Refusal, _key: &str) -> Response<Payload> {
        head::document(refusal, "text/plain", format!("{}\n", refusal.code.unwrap_or("refused")))
    }
}
