//! An S3 origin in this process: s3s parses, checks SigV4 and writes the XML; the objects are ours.
//!
//! What S3 does and this does as well: 403 for a wrong or missing signature, `If-Match` and
//! `If-Unmodified-Since` on GET and HEAD, single ranges, listings in pages, error documents. The
//! ETag of synthetic content is not its MD5, which S3 does not promise either.

use std::ops::{Deref, Range};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use http::{HeaderMap, Request, Response};
use hyper::body::Incoming;
use s3s::config::{S3Config, StaticConfigProvider};
use s3s::dto::{
    ETag, GetObjectInput, GetObjectOutput, HeadObjectInput, HeadObjectOutput, ListObjectsV2Input,
    ListObjectsV2Output, StreamingBlob, Timestamp,
};
use s3s::service::{S3Service, S3ServiceBuilder};
use s3s::{S3, S3Request, S3Response, S3Result, s3_error};

use crate::contents::{Contents, Object};
use crate::flow::Payload;
use crate::head::{self, Answering, Reject};
use crate::keys::{self, AccessKey, Keys};
use crate::ledger::Op;
use crate::origin::{Origin, variables};
use crate::plan::{Bend, Refusal};
use crate::serve::{Backend, LinkOptions};
use crate::text;

const ACCESS_KEY: &str = "AKIAFOREBAYTESTKIT";
const SECRET_KEY: &str = "testkit/secret+key/that/protects/nothing";
const REGION: &str = "us-east-1";
/// The most keys that S3 puts on one page.
const PAGE_KEYS: usize = 1000;

/// How an [`S3Origin`] behaves.
#[derive(Clone, Debug)]
pub struct S3Options {
    /// Address and speed.
    pub link: LinkOptions,
    /// The most keys on one page of a listing.
    pub page_keys: usize,
    /// Accept requests without a signature, and refuse those with one.
    pub anonymous: bool,
    /// Seconds that its clock is ahead of this machine's. Requests that are signed for a time more
    /// than 15 minutes from it are refused, as S3 does.
    pub clock_ahead_seconds: i64,
    /// The objects; several origins may share them.
    pub contents: Contents,
}

impl Default for S3Options {
    fn default() -> Self {
        Self {
            link: LinkOptions::default(),
            page_keys: PAGE_KEYS,
            anonymous: false,
            clock_ahead_seconds: 0,
            contents: Contents::new(),
        }
    }
}

/// A running S3 origin; its other methods are those of [`Origin`].
#[derive(Debug)]
pub struct S3Origin {
    origin: Origin,
    keys: Keys,
}

impl S3Origin {
    /// Starts an origin.
    ///
    /// # Panics
    /// If no socket or thread can be had.
    pub async fn start(options: S3Options) -> Self {
        let backend = S3Backend {
            contents: options.contents.clone(),
            page_keys: options.page_keys.clamp(1, PAGE_KEYS),
        };
        let mut builder = S3ServiceBuilder::new(backend);
        let keys = Keys::default();
        if !options.anonymous {
            let (id, secret) = (ACCESS_KEY.to_owned(), SECRET_KEY.to_owned());
            keys.accept(AccessKey { id, secret, token: None });
            builder.set_auth(keys.clone());
        }
        // s3s knows this machine's clock only: the skew from the origin's is looked at before it.
        let mut config = S3Config::default();
        config.presigned_url_max_skew_time_secs = u32::MAX;
        builder.set_config(Arc::new(StaticConfigProvider::new(Arc::new(config))));
        let ahead_seconds = options.clock_ahead_seconds;
        let service = builder.build();
        let dialect = Arc::new(Dialect { service, keys: keys.clone(), ahead_seconds });
        let origin = Origin::start("s3", options.link, options.contents, dialect).await;
        Self { origin, keys }
    }

    /// The access key that is accepted.
    pub fn access_key(&self) -> &'static str {
        ACCESS_KEY
    }

    /// Its secret.
    pub fn secret_key(&self) -> &'static str {
        SECRET_KEY
    }

    /// Accepts this key from now on, beside the others.
    pub fn accept(&self, key: AccessKey) {
        self.keys.accept(key);
    }

    /// Answers requests signed with this key with `ExpiredToken` from now on.
    pub fn expire(&self, id: &str) {
        self.keys.expire(id);
    }

    /// Does not know this key any more.
    pub fn forget(&self, id: &str) {
        self.keys.forget(id);
    }

    /// The region to sign for.
    pub fn region(&self) -> &'static str {
        REGION
    }

    /// The environment that makes an S3 client of the usual kind use this origin.
    pub fn env(&self) -> Vec<(String, String)> {
        variables([
            ("AWS_ENDPOINT_URL", self.endpoint()),
            ("AWS_ALLOW_HTTP", "true".to_owned()),
            ("AWS_REGION", REGION.to_owned()),
            ("AWS_ACCESS_KEY_ID", ACCESS_KEY.to_owned()),
            ("AWS_SECRET_ACCESS_KEY", SECRET_KEY.to_owned()),
            ("AWS_EC2_METADATA_DISABLED", "true".to_owned()),
        ])
    }
}

impl Deref for S3Origin {
    type Target = Origin;

    fn deref(&self) -> &Origin {
        &self.origin
    }
}

/// The S3 protocol, as the gate sees it.
struct Dialect {
    service: S3Service,
    keys: Keys,
    ahead_seconds: i64,
}

#[async_trait]
impl Backend for Dialect {
    fn locate(&self, request: &http::request::Parts) -> (Op, String, String) {
        let (bucket, key) = text::bucket_and_key(&request.uri);
        match (request.method.as_str(), key.is_empty()) {
            ("GET", true) => {
                (Op::List, bucket, text::query(&request.uri, "prefix").unwrap_or_default())
            }
            ("GET", false) => (Op::Get, bucket, key),
            ("HEAD", false) => (Op::Head, bucket, key),
            _ => (Op::Other, bucket, key),
        }
    }

    async fn answer(&self, request: Request<Incoming>) -> Response<Payload> {
        let refusal = self.keys.refusal(request.headers(), self.ahead_seconds);
        let mut response = match refusal {
            Some(refusal) => self.refuse(&refusal, ""),
            None => match self.service.call(request.map(s3s::Body::from)).await {
                Ok(response) => response.map(Payload::S3),
                Err(_) => self.refuse(&Refusal::from(500), ""),
            },
        };
        head::set(response.headers_mut(), "date", &keys::date(self.ahead_seconds));
        response
    }

    fn refuse(&self, refusal: &Refusal, key: &str) -> Response<Payload> {
        head::s3_refusal(refusal, key)
    }
}

/// The operations, over the contents.
struct S3Backend {
    contents: Contents,
    page_keys: usize,
}

impl S3Backend {
    fn find(&self, bucket: &str, key: &str) -> S3Result<Arc<Object>> {
        match self.contents.object(bucket, key) {
            Some(object) => Ok(object),
            None if self.contents.has_bucket(bucket) => Err(s3_error!(NoSuchKey)),
            None => Err(s3_error!(NoSuchBucket)),
        }
    }
}

fn answering(object: &Object) -> Answering {
    Answering { etag: Some(format!("\"{}\"", object.etag)), ranges: true }
}

/// What the request's headers select; s3s has checked that they are well formed.
fn select(object: &Object, headers: &HeaderMap, bend: Bend) -> S3Result<(Range<u64>, bool)> {
    head::select(object, headers, &answering(object), bend).map_err(|reject| match reject {
        Reject::Precondition => s3_error!(PreconditionFailed),
        Reject::Range => {
            let mut headers = HeaderMap::new();
            let range = format!("bytes */{}", object.content.len());
            head::set(&mut headers, "content-range", &range);
            let mut error = s3_error!(InvalidRange);
            error.set_headers(headers);
            error
        }
    })
}

fn modified(object: &Object) -> Timestamp {
    let time: SystemTime = UNIX_EPOCH + Duration::from_secs(object.modified_seconds());
    time.into()
}

fn signed(bytes: u64) -> Option<i64> {
    i64::try_from(bytes).ok()
}

#[async_trait]
impl S3 for S3Backend {
    async fn get_object(
        &self,
        request: S3Request<GetObjectInput>,
    ) -> S3Result<S3Response<GetObjectOutput>> {
        let object = self.find(&request.input.bucket, &request.input.key)?;
        let bend = request.extensions.get::<Bend>().copied().unwrap_or_default();
        let (range, partial) = select(&object, &request.headers, bend)?;
        let total = object.content.len();
        Ok(S3Response::new(GetObjectOutput {
            accept_ranges: Some("bytes".into()),
            content_length: signed(range.end - range.start),
            content_range: partial
                .then(|| format!("bytes {}-{}/{total}", range.start, range.end - 1)),
            content_type: Some("application/octet-stream".into()),
            e_tag: Some(ETag::Strong(object.etag.clone())),
            last_modified: Some(modified(&object)),
            body: Some(StreamingBlob::wrap(head::body(&object, range, bend))),
            ..GetObjectOutput::default()
        }))
    }

    async fn head_object(
        &self,
        request: S3Request<HeadObjectInput>,
    ) -> S3Result<S3Response<HeadObjectOutput>> {
        let object = self.find(&request.input.bucket, &request.input.key)?;
        let (range, _) = select(&object, &request.headers, Bend::default())?;
        Ok(S3Response::new(HeadObjectOutput {
            accept_ranges: Some("bytes".into()),
            content_length: signed(range.end - range.start),
            content_type: Some("application/octet-stream".into()),
            e_tag: Some(ETag::Strong(object.etag.clone())),
            last_modified: Some(modified(&object)),
            ..HeadObjectOutput::default()
        }))
    }

    async fn list_objects_v2(
        &self,
        request: S3Request<ListObjectsV2Input>,
    ) -> S3Result<S3Response<ListObjectsV2Output>> {
        let input = request.input;
        if input.delimiter.is_some() {
            return Err(s3_error!(NotImplemented));
        }
        if !self.contents.has_bucket(&input.bucket) {
            return Err(s3_error!(NoSuchBucket));
        }
        let asked = input.max_keys.and_then(|keys| usize::try_from(keys).ok());
        let limit = asked.unwrap_or(self.page_keys).min(self.page_keys);
        let prefix = input.prefix.clone().unwrap_or_default();
        let after = input.continuation_token.clone().or_else(|| input.start_after.clone());
        let page = self.contents.page(&input.bucket, &prefix, after.as_deref(), limit);
        let contents: Vec<_> =
            page.objects.iter().map(|(key, object)| listed(key, object)).collect();
        Ok(S3Response::new(ListObjectsV2Output {
            name: Some(input.bucket),
            prefix: input.prefix,
            key_count: i32::try_from(contents.len()).ok(),
            max_keys: i32::try_from(limit).ok(),
            contents: Some(contents),
            continuation_token: input.continuation_token,
            is_truncated: Some(page.next.is_some()),
            next_continuation_token: page.next,
            ..ListObjectsV2Output::default()
        }))
    }
}

fn listed(key: &str, object: &Object) -> s3s::dto::Object {
    s3s::dto::Object {
        key: Some(key.to_owned()),
        size: signed(object.content.len()),
        e_tag: Some(ETag::Strong(object.etag.clone())),
        last_modified: Some(modified(object)),
        ..s3s::dto::Object::default()
    }
}
