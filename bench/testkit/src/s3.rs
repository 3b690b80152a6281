//! An S3 origin in this process: s3s parses, checks SigV4 and writes the XML; the objects are ours.
//!
//! What S3 does and this does as well: 403 for a wrong or missing signature, `If-Match` and
//! `If-Unmodified-Since` on GET and HEAD, single ranges, listings in pages, error documents. The
//! ETag of synthetic content is not its MD5, which S3 does not promise either. Objects are stored
//! whole or in parts, and removed.

use std::ops::Deref;
use std::sync::Arc;

use async_trait::async_trait;
use http::{Request, Response};
use hyper::body::Incoming;
use s3s::config::{S3Config, StaticConfigProvider};
use s3s::service::{S3Service, S3ServiceBuilder};

use crate::contents::Contents;
use crate::flow::Payload;
use crate::head;
use crate::keys::{self, AccessKey, Keys};
use crate::ledger::Op;
use crate::origin::{Origin, variables};
use crate::plan::Refusal;
use crate::s3_backend::S3Backend;
use crate::serve::{Backend, LinkOptions};
use crate::text;

const ACCESS_KEY: &str = "AKIAFOREBAYTESTKIT";
const SECRET_KEY: &str = "testkit/Kanarienvogel+key/that/protects/nothing";
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
    /// Refuse to be asked for checksums, as some stores do that only resemble S3.
    pub refuse_checksum_mode: bool,
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
            refuse_checksum_mode: false,
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
        let no_checksums = options.refuse_checksum_mode;
        let dialect =
            Arc::new(Dialect { service, keys: keys.clone(), ahead_seconds, no_checksums });
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
    no_checksums: bool,
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
            ("PUT", false) => (Op::Put, bucket, key),
            _ => (Op::Other, bucket, key),
        }
    }

    async fn answer(&self, request: Request<Incoming>) -> Response<Payload> {
        let refusal = self.keys.refusal(request.headers(), self.ahead_seconds);
        let unknown = self.no_checksums && request.headers().contains_key("x-amz-checksum-mode");
        let refusal = refusal.or_else(|| unknown.then(|| Refusal::from(400)));
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
