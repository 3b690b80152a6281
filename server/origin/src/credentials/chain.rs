//! The places where credentials of AWS are looked for, in the order of the AWS tools: the
//! environment, the token of a web identity, the profile, the container, the instance.
//!
//! The first place that has something counts, even if what it has is of no use: whoever set it up
//! does not want to be somebody else. What a profile may say and Forebay does not follow is an
//! error that names it.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use object_store::aws::AwsCredential;
use object_store::client::{HttpClient, HttpConnector};
use object_store::{ClientOptions, Result as StoreResult};

use super::CredentialError;
use super::fetch::{Service, Temporary};
use super::profile::{Profile, Profiles, Stamp};
use crate::transport::service::Transport;
use crate::uri::Secret;

const METADATA: &str = "http://169.254.169.254";
const METADATA_V6: &str = "http://[fd00:ec2::254]";
/// Where a container's relative URI is served.
const CONTAINER: &str = "http://169.254.170.2";
/// Hosts beside this machine's own that may be asked over plain HTTP: those of ECS and EKS.
const CONTAINER_HOSTS: [&str; 3] = ["169.254.170.2", "169.254.170.23", "[fd00:ec2::23]"];

/// What a profile may say that is not followed, and what to do about it.
const UNSUPPORTED: [(&str, &str); 5] = [
    ("source_profile", "set the keys of the assumed role, or a web identity"),
    ("credential_source", "set the keys of the assumed role, or a web identity"),
    ("credential_process", "run the command and set what it prints"),
    ("sso_session", "run aws configure export-credentials"),
    ("sso_start_url", "run aws configure export-credentials"),
];

/// Where a credential came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Place {
    /// Variables: they do not change.
    Environment,
    /// A profile's keys, as of these states of its files.
    Files([Stamp; 2]),
    /// A service that gives another one.
    Service,
}

/// A credential as it was found.
pub(crate) struct Found {
    pub(crate) credential: AwsCredential,
    pub(crate) place: Place,
    pub(crate) life: Option<Duration>,
}

/// The places, for one set of variables.
pub(crate) struct Chain {
    env: BTreeMap<String, String>,
    pub(crate) profiles: Profiles,
    region: String,
    /// Sends what goes out in the clear to this machine and its neighbours only.
    near: HttpClient,
    /// Sends nothing in the clear.
    secure: HttpClient,
}

impl Chain {
    pub(crate) fn new(
        env: &BTreeMap<String, String>,
        region: String,
        transport: &Transport,
    ) -> StoreResult<Self> {
        let options = ClientOptions::new();
        Ok(Self {
            env: env.clone(),
            profiles: Profiles::of(env),
            region,
            near: transport.connect(&options.clone().with_allow_http(true))?,
            secure: transport.connect(&options.with_allow_http(false))?,
        })
    }

    fn var(&self, name: &str) -> Option<&str> {
        self.env.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }

    fn first_var(&self, names: &[&str]) -> Option<&str> {
        names.iter().find_map(|name| self.var(name))
    }

    fn is_set(&self, name: &str) -> bool {
        self.var(name).is_some_and(|value| value.eq_ignore_ascii_case("true") || value == "1")
    }

    /// What there is now. Files are read where they are: they are few, small and on this machine.
    pub(crate) async fn find(&self) -> Result<Found, CredentialError> {
        if let Some(credential) = self.keys()? {
            return Ok(Found { credential, place: Place::Environment, life: None });
        }
        let identity = (self.var("AWS_WEB_IDENTITY_TOKEN_FILE"), self.var("AWS_ROLE_ARN"));
        if let (Some(file), Some(role)) = identity {
            return self.by_web_identity(file, role, self.var("AWS_ROLE_SESSION_NAME")).await;
        }
        if let Some(found) = self.by_profile().await? {
            return Ok(found);
        }
        if let Some(found) = self.by_container().await? {
            return Ok(found);
        }
        self.by_instance().await
    }

    fn keys(&self) -> Result<Option<AwsCredential>, CredentialError> {
        const NAMES: [&str; 2] = ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"];
        match NAMES.map(|name| self.var(name)) {
            [None, None] => Ok(None),
            [Some(id), Some(secret)] => {
                let token = self.first_var(&["AWS_SESSION_TOKEN", "AWS_TOKEN"]);
                Ok(Some(AwsCredential {
                    key_id: id.to_owned(),
                    secret_key: secret.to_owned(),
                    token: token.map(str::to_owned),
                }))
            }
            [Some(_), None] => {
                Err(CredentialError::HalfKey { present: NAMES[0], missing: NAMES[1] })
            }
            [None, Some(_)] => {
                Err(CredentialError::HalfKey { present: NAMES[1], missing: NAMES[0] })
            }
        }
    }

    async fn by_profile(&self) -> Result<Option<Found>, CredentialError> {
        // Before they are read: a change in between is then seen as one.
        let stamps = self.profiles.stamps();
        let Some(profile) = self.profiles.read()? else { return Ok(None) };
        let name = || self.profiles.name.clone();
        if let Some((setting, instead)) = UNSUPPORTED.iter().find(|(s, _)| profile.get(s).is_some())
        {
            return Err(CredentialError::Unsupported { profile: name(), setting, instead });
        }
        let (role, file) = (profile.get("role_arn"), profile.get("web_identity_token_file"));
        if let (Some(role), Some(file)) = (role, file) {
            let session = profile.get("role_session_name");
            return self.by_web_identity(file, role, session).await.map(Some);
        }
        let credential = keys_of(&profile, name)?;
        Ok(credential.map(|credential| Found {
            credential,
            place: Place::Files(stamps),
            life: None,
        }))
    }

    async fn by_web_identity(
        &self,
        file: &str,
        role: &str,
        session: Option<&str>,
    ) -> Result<Found, CredentialError> {
        let token = secret_in(file)?;
        let usual = || {
            let china = if self.region.starts_with("cn-") { ".cn" } else { "" };
            format!("https://sts.{}.amazonaws.com{china}", self.region)
        };
        let endpoint = self.first_var(&["AWS_ENDPOINT_URL_STS", "AWS_STS_ENDPOINT"]);
        let endpoint = endpoint.map_or_else(usual, str::to_owned);
        let service = Service { client: &self.secure, name: format!("the STS at {endpoint}") };
        let session = session.unwrap_or("forebay");
        let found = service.web_identity(&endpoint, role, session, &token).await?;
        Ok(of_service(found))
    }

    async fn by_container(&self) -> Result<Option<Found>, CredentialError> {
        let relative = self.var("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI");
        let full = self.var("AWS_CONTAINER_CREDENTIALS_FULL_URI");
        let Some(url) =
            relative.map(|path| format!("{CONTAINER}{path}")).or_else(|| full.map(str::to_owned))
        else {
            return Ok(None);
        };
        if !may_be_asked(&url) {
            let url = crate::error::redact(&url);
            return Err(CredentialError::Exposed { url });
        }
        let token = match self.var("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE") {
            Some(file) => Some(secret_in(file)?),
            None => self
                .var("AWS_CONTAINER_AUTHORIZATION_TOKEN")
                .map(|token| Secret::new(token.to_owned())),
        };
        let name = format!("the container's credential service at {}", crate::error::redact(&url));
        let service = Service { client: &self.near, name };
        let found = service.container(&url, token.as_ref()).await?;
        Ok(Some(of_service(found)))
    }

    async fn by_instance(&self) -> Result<Found, CredentialError> {
        let (credentials, config) = self.profiles.shown();
        let profiles = format!("no profile {} in {credentials} or {config}", self.profiles.name);
        let nowhere = |last: String| CredentialError::Nowhere { profiles, last };
        if self.is_set("AWS_EC2_METADATA_DISABLED") {
            return Err(nowhere("the instance metadata service is disabled".to_owned()));
        }
        let names = ["AWS_EC2_METADATA_SERVICE_ENDPOINT", "AWS_METADATA_ENDPOINT"];
        let mode = self.var("AWS_EC2_METADATA_SERVICE_ENDPOINT_MODE");
        let v6 = mode.is_some_and(|mode| mode.eq_ignore_ascii_case("ipv6"));
        let endpoint = self.first_var(&names).unwrap_or(if v6 { METADATA_V6 } else { METADATA });
        let endpoint = endpoint.trim_end_matches('/');
        let name = format!("the instance metadata service at {endpoint}");
        let service = Service { client: &self.near, name };
        let first_version = self.is_set("AWS_IMDSV1_FALLBACK");
        let found = service.instance(endpoint, first_version).await;
        found.map(of_service).map_err(|error| nowhere(error.to_string()))
    }
}

fn of_service(found: Temporary) -> Found {
    Found { credential: found.credential, place: Place::Service, life: found.life }
}

fn keys_of(
    profile: &Profile,
    name: impl Fn() -> String,
) -> Result<Option<AwsCredential>, CredentialError> {
    const NAMES: [&str; 2] = ["aws_access_key_id", "aws_secret_access_key"];
    let half =
        |present, missing| Err(CredentialError::HalfProfile { profile: name(), present, missing });
    match NAMES.map(|name| profile.get(name)) {
        [Some(id), Some(secret)] => Ok(Some(AwsCredential {
            key_id: id.to_owned(),
            secret_key: secret.to_owned(),
            token: profile.get("aws_session_token").map(str::to_owned),
        })),
        [Some(_), None] => half(NAMES[0], NAMES[1]),
        [None, Some(_)] => half(NAMES[1], NAMES[0]),
        [None, None] => Ok(None),
    }
}

fn secret_in(file: &str) -> Result<Secret, CredentialError> {
    let text = std::fs::read_to_string(Path::new(file));
    text.map(Secret::new).map_err(|source| CredentialError::File { file: file.to_owned(), source })
}

/// Whether a container's token may be sent there.
fn may_be_asked(url: &str) -> bool {
    let Ok(url) = url::Url::parse(url) else { return false };
    let Some(host) = url.host_str() else { return false };
    let local = host.trim_matches(['[', ']']).parse().is_ok_and(|ip: IpAddr| ip.is_loopback());
    url.scheme() == "https"
        || (url.scheme() == "http"
            && (local || host == "localhost" || CONTAINER_HOSTS.contains(&host)))
}

impl std::fmt::Debug for Chain {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Chain")
            .field("env", &self.env.keys().collect::<Vec<_>>())
            .field("profiles", &self.profiles)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_containers_token_stays_near() {
        for good in [
            "http://169.254.170.2/v2/x",
            "http://169.254.170.23/v1/credentials",
            "http://[fd00:ec2::23]/v1/credentials",
            "http://127.0.0.9:1/x",
            "http://[::1]/x",
            "http://localhost:5/",
            "https://example.com/x",
        ] {
            assert!(may_be_asked(good), "{good}");
        }
        for bad in ["http://example.com/", "http://10.0.0.1/", "ftp://localhost/", "/relative"] {
            assert!(!may_be_asked(bad), "{bad}");
        }
    }
}
