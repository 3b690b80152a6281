//! The services that give temporary credentials of AWS: STS, those of containers, and an instance's
//! metadata. Each conversation has one limit, whatever it is made of.
//!
//! Lives are counted from the service's own `Date`, so that a clock of ours that is wrong makes no
//! credential look expired, or good.

use std::future::Future;
use std::time::Duration;

use http::header::{AUTHORIZATION, CONTENT_TYPE, DATE};
use http::{HeaderMap, HeaderValue, Method, StatusCode, Uri};
use object_store::aws::AwsCredential;
use object_store::client::{HttpClient, HttpRequest, HttpRequestBody};
use tokio::time::timeout;

use super::clock::{seconds, wall};
use super::{CredentialError, METADATA_LIMIT, TOKENS_LIMIT, date};
use crate::transport::probe::{ROUTE, Route, WRITE, is_code};
use crate::uri::Secret;

/// How long a token for the metadata is asked to live: longer than the conversation.
const IMDS_TOKEN_SECONDS: &str = "60";

/// A credential and how long it is good for.
pub(crate) struct Temporary {
    pub(crate) credential: AwsCredential,
    pub(crate) life: Option<Duration>,
}

/// A service that is asked, under the name that errors give it.
pub(crate) struct Service<'a> {
    pub(crate) client: &'a HttpClient,
    pub(crate) name: String,
}

struct Answer {
    headers: HeaderMap,
    body: String,
}

impl Service<'_> {
    /// A request's answer, if its status is a good one.
    async fn ask(&self, request: HttpRequest) -> Result<Answer, CredentialError> {
        let unreachable =
            |error: &dyn ToString| CredentialError::unreachable(&self.name, &error.to_string());
        let answer = self.client.execute(request).await.map_err(|error| unreachable(&error))?;
        let (parts, body) = answer.into_parts();
        let body = body.bytes().await.map_err(|error| unreachable(&error))?;
        let body = String::from_utf8_lossy(&body).into_owned();
        if parts.status == StatusCode::OK {
            return Ok(Answer { headers: parts.headers, body });
        }
        let code = element(&body, "Code").filter(|code| is_code(code)).map(str::to_owned);
        let (service, status) = (self.name.clone(), parts.status.as_u16());
        Err(CredentialError::Refused { service, status, code })
    }

    /// A conversation, bounded. It has no part in the route of the attempt that waits for it.
    async fn within<T>(
        &self,
        limit: Duration,
        talk: impl Future<Output = Result<T, CredentialError>>,
    ) -> Result<T, CredentialError> {
        let talk = ROUTE.scope(Route::default(), WRITE.scope(None, talk));
        timeout(limit, talk)
            .await
            .unwrap_or_else(|_| Err(CredentialError::Silent { service: self.name.clone(), limit }))
    }

    fn request(&self, method: Method, url: &str) -> Result<HttpRequest, CredentialError> {
        let uri: Uri = url.parse().map_err(|error: http::uri::InvalidUri| {
            CredentialError::unreachable(&self.name, &error)
        })?;
        let mut request = HttpRequest::new(HttpRequestBody::empty());
        *request.method_mut() = method;
        *request.uri_mut() = uri;
        Ok(request)
    }

    fn header(&self, text: &str) -> Result<HeaderValue, CredentialError> {
        let value = HeaderValue::from_str(text.trim());
        let mut value = value.map_err(|error| CredentialError::unreachable(&self.name, &error))?;
        value.set_sensitive(true);
        Ok(value)
    }

    /// The credentials in a JSON answer.
    fn in_json(&self, answer: &Answer) -> Result<Temporary, CredentialError> {
        let missing = |what| CredentialError::Malformed { service: self.name.clone(), what };
        let json: serde_json::Value =
            serde_json::from_str(&answer.body).map_err(|_| missing("JSON"))?;
        let text = |name: &str| json.get(name).and_then(serde_json::Value::as_str);
        let credential = AwsCredential {
            key_id: text("AccessKeyId").ok_or_else(|| missing("AccessKeyId"))?.to_owned(),
            secret_key: text("SecretAccessKey")
                .ok_or_else(|| missing("SecretAccessKey"))?
                .to_owned(),
            token: text("Token").map(str::to_owned),
        };
        let life = text("Expiration").and_then(|until| life(until, &answer.headers));
        Ok(Temporary { credential, life })
    }

    /// Those of the instance's role, by the second version of the protocol, or by the first where
    /// that is allowed.
    pub(crate) async fn instance(
        &self,
        endpoint: &str,
        first_version: bool,
    ) -> Result<Temporary, CredentialError> {
        let roles = format!("{endpoint}/latest/meta-data/iam/security-credentials/");
        let talk = async {
            let token = self.instance_token(endpoint, first_version).await?;
            let role = self.metadata(&roles, token.as_ref()).await?;
            let role = role.body.lines().next().map(str::trim).filter(|role| !role.is_empty());
            let missing = CredentialError::Malformed { service: self.name.clone(), what: "a role" };
            let url = format!("{roles}{}", role.ok_or(missing)?);
            let answer = self.metadata(&url, token.as_ref()).await?;
            self.in_json(&answer)
        };
        self.within(METADATA_LIMIT, talk).await
    }

    /// What the second version wants of whoever asks; none where the first will do.
    async fn instance_token(
        &self,
        endpoint: &str,
        first_version: bool,
    ) -> Result<Option<Secret>, CredentialError> {
        let mut request = self.request(Method::PUT, &format!("{endpoint}/latest/api/token"))?;
        let life = HeaderValue::from_static(IMDS_TOKEN_SECONDS);
        request.headers_mut().insert("x-aws-ec2-metadata-token-ttl-seconds", life);
        match self.ask(request).await {
            Ok(answer) => Ok(Some(Secret::new(answer.body))),
            Err(CredentialError::Refused { status: 403..=405, .. }) if first_version => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn metadata(&self, url: &str, token: Option<&Secret>) -> Result<Answer, CredentialError> {
        let mut request = self.request(Method::GET, url)?;
        if let Some(token) = token {
            let token = self.header(token.reveal())?;
            request.headers_mut().insert("x-aws-ec2-metadata-token", token);
        }
        self.ask(request).await
    }

    /// Those of a container's task or pod.
    pub(crate) async fn container(
        &self,
        url: &str,
        token: Option<&Secret>,
    ) -> Result<Temporary, CredentialError> {
        let talk = async {
            let mut request = self.request(Method::GET, url)?;
            if let Some(token) = token {
                let token = self.header(token.reveal())?;
                request.headers_mut().insert(AUTHORIZATION, token);
            }
            let answer = self.ask(request).await?;
            self.in_json(&answer)
        };
        self.within(METADATA_LIMIT, talk).await
    }

    /// Those of a role, for the token of a web identity.
    pub(crate) async fn web_identity(
        &self,
        endpoint: &str,
        role: &str,
        session: &str,
        token: &Secret,
    ) -> Result<Temporary, CredentialError> {
        let form = url::form_urlencoded::Serializer::new(String::new())
            .append_pair("Action", "AssumeRoleWithWebIdentity")
            .append_pair("Version", "2011-06-15")
            .append_pair("RoleArn", role)
            .append_pair("RoleSessionName", session)
            .append_pair("WebIdentityToken", token.reveal().trim())
            .finish();
        let talk = async {
            let mut request = self.request(Method::POST, endpoint)?;
            let kind = HeaderValue::from_static("application/x-www-form-urlencoded");
            request.headers_mut().insert(CONTENT_TYPE, kind);
            *request.body_mut() = HttpRequestBody::from(form);
            let answer = self.ask(request).await?;
            self.in_xml(&answer)
        };
        self.within(TOKENS_LIMIT, talk).await
    }

    fn in_xml(&self, answer: &Answer) -> Result<Temporary, CredentialError> {
        let text = |name, what| {
            let found = element(&answer.body, name);
            found.ok_or_else(|| CredentialError::Malformed { service: self.name.clone(), what })
        };
        let credential = AwsCredential {
            key_id: text("AccessKeyId", "AccessKeyId")?.to_owned(),
            secret_key: text("SecretAccessKey", "SecretAccessKey")?.to_owned(),
            token: Some(text("SessionToken", "SessionToken")?.to_owned()),
        };
        let until = element(&answer.body, "Expiration");
        let life = until.and_then(|until| life(until, &answer.headers));
        Ok(Temporary { credential, life })
    }
}

/// The time from an answer to the end of its credentials; nothing where that is past.
fn life(until: &str, headers: &HeaderMap) -> Option<Duration> {
    let until = date::from_iso(until)?;
    let now = headers.get(DATE).and_then(|date| date::from_http(date.to_str().ok()?));
    let now = now.unwrap_or_else(|| seconds(wall()));
    Some(Duration::from_secs(u64::try_from(until.saturating_sub(now)).unwrap_or(0)))
}

/// The text of an XML element without attributes: credentials hold no character that is escaped.
fn element<'a>(xml: &'a str, name: &str) -> Option<&'a str> {
    let (_, rest) = xml.split_once(&format!("<{name}>"))?;
    let (text, _) = rest.split_once(&format!("</{name}>"))?;
    Some(text.trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lives_are_counted_on_the_clock_of_who_gives_them() {
        let mut headers = HeaderMap::new();
        headers.insert(DATE, HeaderValue::from_static("Tue, 30 Aug 2022 10:00:00 GMT"));
        let left = |until| life(until, &headers).map(|life| life.as_secs());
        assert_eq!(left("2022-08-30T11:00:00Z"), Some(3600));
        assert_eq!(left("2022-08-30T09:00:00Z"), Some(0));
        assert_eq!(left("soon"), None);
        assert!(life("2999-01-01T00:00:00Z", &HeaderMap::new()).unwrap().as_secs() > 1_000_000);
    }

    #[test]
    fn elements_are_found_in_xml() {
        let xml = "<a><AccessKeyId> K </AccessKeyId><x>y</x><Open>";
        assert_eq!(element(xml, "AccessKeyId"), Some("K"));
        assert_eq!((element(xml, "Open"), element(xml, "b")), (None, None));
    }
}
