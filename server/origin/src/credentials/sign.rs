//! The signatures of S3: object_store makes them for our wall clock, and where the origin's is
//! another they are made again here, on the way to the transport.
//!
//! object_store's signer takes the time from the system and has no way to be given another. But a
//! signed request holds all that its signature is made of: method, target, signed headers and
//! scope. So the day and the time are replaced and the signature is computed anew, with the key
//! that is still held. A session of S3 Express is signed with a key that only object_store has: it
//! is sent as it is.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use http::header;
use http::header::{AUTHORIZATION, DATE, HeaderMap, HeaderValue};
use object_store::aws::AwsCredential;
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpRequest, HttpResponse, HttpService,
};
use object_store::{ClientOptions, CredentialProvider};
use sha2::{Digest, Sha256};

use super::clock::OriginClock;
use super::keyring::Keyring;
use super::standing::Standing;
use super::{Refusal, Renewal, date};
use crate::transport::service::Transport;

const TIME: &str = "x-amz-date";
const CONTENT: &str = "x-amz-content-sha256";
const ALGORITHM: &str = "AWS4-HMAC-SHA256";
/// The block of SHA-256, which HMAC pads its keys to.
const BLOCK: usize = 64;

/// Key and clock of one store.
#[derive(Debug)]
pub(crate) struct S3Signer {
    pub(crate) keyring: Arc<Keyring>,
    pub(crate) clock: OriginClock,
}

impl S3Signer {
    pub(crate) fn new(keyring: Arc<Keyring>) -> Arc<Self> {
        Arc::new(Self { keyring, clock: OriginClock::default() })
    }

    /// Signs a request again for the origin's time, where that is not ours.
    fn correct(&self, request: &mut HttpRequest) {
        let Some(time) = self.clock.other_time() else { return };
        let signed = request.headers().get(AUTHORIZATION).and_then(|value| value.to_str().ok());
        let Some(parts) = signed.and_then(SignedWith::parse) else { return };
        let Some(credential) = self.keyring.held(&parts.key_id) else { return };
        let time = date::to_amz(time);
        let Some(again) = parts.again(request, &credential, &time) else { return };
        if let (Ok(mut value), Ok(time)) =
            (HeaderValue::from_str(&again), HeaderValue::from_str(&time))
        {
            value.set_sensitive(true);
            request.headers_mut().insert(AUTHORIZATION, value);
            request.headers_mut().insert(TIME, time);
        }
    }

    fn looked_at(&self, response: &HttpResponse) {
        if response.status().is_client_error() {
            let date = response.headers().get(DATE).and_then(|date| date.to_str().ok());
            if let Some(origin) = date.and_then(date::from_http) {
                self.clock.saw(origin);
            }
        }
    }
}

#[async_trait]
impl CredentialProvider for S3Signer {
    type Credential = AwsCredential;

    async fn get_credential(&self) -> object_store::Result<Arc<AwsCredential>> {
        let got = self.keyring.get().await;
        got.map_err(|error| object_store::Error::Generic { store: "S3", source: Box::new(error) })
    }
}

#[async_trait]
impl Renewal for S3Signer {
    async fn ready(&self) {
        self.keyring.get().await.ok();
    }

    fn generation(&self) -> u64 {
        // Both only grow: the sum is another one when either is.
        self.keyring.generation() + self.clock.generation()
    }

    async fn renew(&self, refusal: Refusal, generation: u64) -> bool {
        let (keys, clock) = (self.keyring.generation(), self.clock.generation());
        if keys + clock != generation {
            return true;
        }
        match refusal {
            Refusal::Skewed => self.clock.adopt(clock),
            Refusal::Unsaid if self.clock.is_far() => self.clock.adopt(clock),
            Refusal::Unsaid | Refusal::Expired => self.keyring.renew(refusal, keys).await,
        }
    }

    async fn standing(&self) -> Option<Standing> {
        Some(self.keyring.standing().await)
    }

    fn says(&self, refusal: Refusal) -> Option<String> {
        (refusal == Refusal::Skewed || self.clock.is_far()).then(|| self.clock.says()).flatten()
    }
}

/// A transport whose requests are signed for the right time.
#[derive(Debug)]
pub(crate) struct SignedConnector {
    pub(crate) transport: Transport,
    pub(crate) signer: Arc<S3Signer>,
}

impl HttpConnector for SignedConnector {
    fn connect(&self, options: &ClientOptions) -> object_store::Result<HttpClient> {
        let inner = self.transport.connect(options)?;
        Ok(HttpClient::new(SignedService { inner, signer: Arc::clone(&self.signer) }))
    }
}

#[derive(Debug)]
struct SignedService {
    inner: HttpClient,
    signer: Arc<S3Signer>,
}

#[async_trait]
impl HttpService for SignedService {
    async fn call(&self, mut request: HttpRequest) -> Result<HttpResponse, HttpError> {
        self.signer.correct(&mut request);
        let response = self.inner.execute(request).await?;
        self.signer.looked_at(&response);
        Ok(response)
    }
}

/// What an `Authorization` of AWS4 says.
struct SignedWith {
    key_id: String,
    region: String,
    service: String,
    headers: String,
}

impl fmt::Debug for SignedWith {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SignedWith").field("headers", &self.headers).finish_non_exhaustive()
    }
}

impl SignedWith {
    /// `AWS4-HMAC-SHA256 Credential=ID/DAY/REGION/SERVICE/aws4_request, SignedHeaders=.., ..`
    fn parse(text: &str) -> Option<Self> {
        let rest = text.strip_prefix(ALGORITHM)?.trim_start();
        let field = |name: &str| {
            let mut fields = rest.split(',').map(str::trim);
            fields.find_map(|field| field.strip_prefix(name)?.strip_prefix('='))
        };
        let mut scope = field("Credential")?.rsplitn(5, '/');
        let (_, service) = (scope.next()?, scope.next()?);
        let (region, _, key_id) = (scope.next()?, scope.next()?, scope.next()?);
        Some(Self {
            key_id: key_id.to_owned(),
            region: region.to_owned(),
            service: service.to_owned(),
            headers: field("SignedHeaders")?.to_owned(),
        })
    }

    /// The `Authorization` of the same request at another time.
    fn again(
        &self,
        request: &HttpRequest,
        credential: &AwsCredential,
        time: &str,
    ) -> Option<String> {
        let day = time.get(..8)?;
        let content = request.headers().get(CONTENT)?.to_str().ok()?;
        let url = url::Url::parse(&request.uri().to_string()).ok()?;
        let mut lines = String::new();
        for name in self.headers.split(';') {
            let value = match name {
                TIME => time.to_owned(),
                "host" => url[url::Position::BeforeHost..url::Position::AfterPort].to_owned(),
                name => values(request.headers(), name)?,
            };
            lines.push_str(&format!("{name}:{value}\n"));
        }
        let canonical = format!(
            "{}\n{}\n{}\n{lines}\n{}\n{content}",
            request.method(),
            url.path(),
            query(&url),
            self.headers
        );
        let scope = format!("{day}/{}/{}/aws4_request", self.region, self.service);
        let digest = hex(&Sha256::digest(canonical.as_bytes()));
        let to_sign = format!("{ALGORITHM}\n{time}\n{scope}\n{digest}");
        let key = format!("AWS4{}", credential.secret_key);
        let mut key = hmac(key.as_bytes(), day.as_bytes());
        for part in [&self.region, &self.service, "aws4_request"] {
            key = hmac(&key, part.as_bytes());
        }
        let signature = hex(&hmac(&key, to_sign.as_bytes()));
        Some(format!(
            "{ALGORITHM} Credential={}/{scope}, SignedHeaders={}, Signature={signature}",
            self.key_id, self.headers
        ))
    }
}

/// A header's values in the canonical form.
fn values(headers: &HeaderMap, name: &str) -> Option<String> {
    let all = headers.get_all(header::HeaderName::from_bytes(name.as_bytes()).ok()?);
    let mut joined = Vec::new();
    for value in all {
        joined.push(value.to_str().ok()?.split_whitespace().collect::<Vec<_>>().join(" "));
    }
    (!joined.is_empty()).then(|| joined.join(","))
}

/// The query in the canonical form: sorted by what is written.
fn query(url: &url::Url) -> String {
    let mut pairs: Vec<(String, String)> =
        url.query_pairs().map(|(name, value)| (strict(&name), strict(&value))).collect();
    pairs.sort_unstable();
    let pairs: Vec<String> = pairs.iter().map(|(name, value)| format!("{name}={value}")).collect();
    pairs.join("&")
}

/// Percent-encodes all but the unreserved characters.
fn strict(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                out.push(char::from(byte));
            }
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// HMAC with SHA-256 (RFC 2104).
fn hmac(key: &[u8], message: &[u8]) -> [u8; 32] {
    let mut block = [0; BLOCK];
    if key.len() > BLOCK {
        block[..32].copy_from_slice(&Sha256::digest(key));
    } else {
        block[..key.len()].copy_from_slice(key);
    }
    let padded = |with: u8| block.map(|byte| byte ^ with);
    let inner = Sha256::new().chain_update(padded(0x36)).chain_update(message).finalize();
    Sha256::new().chain_update(padded(0x5c)).chain_update(inner).finalize().into()
}

#[cfg(test)]
mod tests {
    use http::Uri;
    use object_store::aws::AwsAuthorizer;
    use object_store::client::HttpRequestBody;

    use super::*;

    #[test]
    fn hmac_is_that_of_rfc_4231() {
        assert_eq!(
            hex(&hmac(b"Jefe", b"what do ya want for nothing?")),
            "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"
        );
        assert_eq!(
            hex(&hmac(&[0xaa; 131], b"Test Using Larger Than Block-Size Key - Hash Key First")),
            "60e431591ee0b67f0d8a26aacbf5b77f8e0bc6213728c5140546040f0ee37f54"
        );
    }

    fn request(uri: &str, headers: &[(&'static str, &'static str)]) -> HttpRequest {
        let mut request = HttpRequest::new(HttpRequestBody::empty());
        *request.uri_mut() = uri.parse::<Uri>().unwrap();
        for (name, value) in headers {
            request.headers_mut().append(*name, HeaderValue::from_static(value));
        }
        request
    }

    /// For object_store's own time the signature is object_store's.
    #[test]
    fn what_is_signed_again_is_signed_as_object_store_does() {
        let credential = AwsCredential {
            key_id: "AKID".to_owned(),
            secret_key: "se/cr+et".to_owned(),
            token: Some("session".to_owned()),
        };
        let table: [(&str, &[(&str, &str)]); 4] = [
            ("http://h:9000/b/k", &[]),
            ("https://h:443/b/a%20b%2B%C3%BC", &[("range", "bytes=0-9"), ("if-match", "\"v1\"")]),
            ("https://h/b?list-type=2&prefix=a%20b%2F%3D&continuation-token=%2Bx", &[]),
            ("http://127.0.0.1/b/k?versionId=", &[("x-odd", " two   spaces "), ("x-odd", "b")]),
        ];
        for (uri, headers) in table {
            let mut request = request(uri, headers);
            let authorizer = AwsAuthorizer::new(&credential, "s3", "eu-test-1");
            authorizer.try_authorize(&mut request, None).unwrap();
            let text = |name| request.headers().get(name).unwrap().to_str().unwrap().to_owned();
            let (signed, time) = (text("authorization"), text(TIME));
            let parts = SignedWith::parse(&signed).unwrap();
            assert_eq!(parts.again(&request, &credential, &time).unwrap(), signed, "{uri}");
            let later = parts.again(&request, &credential, "20300101T000000Z").unwrap();
            assert!(later.contains("AKID/20300101/eu-test-1/s3/aws4_request") && later != signed);
        }
    }

    #[test]
    fn what_is_no_signature_is_left_alone() {
        for odd in ["", "Bearer x", "AWS4-HMAC-SHA256 Credential=a/b, SignedHeaders=c"] {
            assert!(SignedWith::parse(odd).is_none(), "{odd}");
        }
        let parts = SignedWith::parse(
            "AWS4-HMAC-SHA256 Credential=a/b/20300101/r/s3/aws4_request, SignedHeaders=host, \
             Signature=0",
        );
        assert_eq!(parts.unwrap().key_id, "a/b");
    }
}
