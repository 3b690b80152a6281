//! Builds object_store's stores: which setting and which variable goes where.
//!
//! A block of the settings wins over the environment. Variables keep the names of the clouds' own
//! tools; those that object_store spells differently are translated here. Retries are off
//! everywhere: this crate has the only ones. Credentials are ours ([`crate::credentials`]), so that
//! they can be had anew when an origin refuses them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};
use object_store::azure::{AzureConfigKey, MicrosoftAzureBuilder};
use object_store::gcp::{GoogleCloudStorageBuilder, GoogleConfigKey};
use object_store::http::HttpBuilder;
use object_store::list::PaginatedListStore;
use object_store::multipart::MultipartStore;
use object_store::{BackoffConfig, ClientConfigKey, ClientOptions, ObjectStore, RetryConfig};

use crate::checksum::Asking;
use crate::credentials::chain::Chain;
use crate::credentials::cloud::{Listener, Regrown};
use crate::credentials::keyring::Keyring;
use crate::credentials::profile::{Profile, Profiles};
use crate::credentials::sign::{S3Signer, SignedConnector};
use crate::credentials::{CredentialError, Renews};
use crate::object::CloudBackend;
use crate::settings::OriginBlock;
use crate::transport::service::Transport;

/// A cloud store under all of its interfaces.
pub(crate) struct Cloud {
    pub(crate) store: Arc<dyn ObjectStore>,
    pub(crate) backend: CloudBackend,
    pub(crate) renewal: Renews,
}

impl Cloud {
    fn of<T>(store: T, renewal: Renews) -> Self
    where
        T: ObjectStore + PaginatedListStore + MultipartStore,
    {
        let store = Arc::new(store);
        let (pages, parts) = (Arc::clone(&store) as Arc<_>, Arc::clone(&store) as Arc<_>);
        Self { store, backend: CloudBackend { pages, parts, asking: None }, renewal }
    }
}

/// What a store is built from.
#[derive(Debug)]
pub(crate) struct Plan<'a> {
    /// Bucket or container.
    pub(crate) bucket: &'a str,
    pub(crate) block: &'a OriginBlock,
    pub(crate) env: &'a BTreeMap<String, String>,
    pub(crate) transport: Transport,
}

const NO_RETRY: RetryConfig = RetryConfig {
    backoff: BackoffConfig { init_backoff: Duration::ZERO, max_backoff: Duration::ZERO, base: 1.0 },
    max_retries: 0,
    retry_timeout: Duration::ZERO,
};

/// The region of who says nothing.
const REGION: &str = "us-east-1";

impl Plan<'_> {
    /// Variables with a prefix that are set to something, as object_store's key names.
    fn vars<'a>(&'a self, prefix: &'a str) -> impl Iterator<Item = (String, &'a str)> {
        self.env
            .iter()
            .filter(move |(name, value)| name.starts_with(prefix) && !value.is_empty())
            .map(|(name, value)| (name.to_ascii_lowercase(), value.as_str()))
    }

    fn var(&self, name: &str) -> Option<&str> {
        self.env.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }

    /// The first of these variables that is set.
    fn first_var(&self, names: &[&str]) -> Option<&str> {
        names.iter().find_map(|name| self.var(name))
    }

    /// Whether plain HTTP is meant: said so, or by an endpoint.
    fn plain_http(&self, endpoint: Option<&str>) -> bool {
        self.block.allow_http || endpoint.is_some_and(is_plain)
    }

    /// Amazon S3. Of the AWS tools' profile only what neither block nor variables say counts.
    pub(crate) fn s3(self) -> object_store::Result<Cloud> {
        let profiles = Profiles::of(self.env);
        let profile = match profiles.read() {
            Ok(profile) => profile.unwrap_or_default(),
            Err(error @ CredentialError::NoProfile { .. }) => return Err(unusable(error)),
            // It is told when a credential is looked for there.
            Err(_) => Profile::default(),
        };
        let from_env = self.first_var(&["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT"]);
        let ignored = self.var("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS") == Some("true");
        let from_profile = profile.endpoint().filter(|_| !ignored);
        let endpoint = self.block.endpoint.as_deref().or(from_env).or(from_profile);
        let region = self.block.region.as_deref();
        let region = region.or_else(|| self.first_var(&["AWS_REGION", "AWS_DEFAULT_REGION"]));
        let region = region.or_else(|| profile.region()).unwrap_or(REGION);
        let mut builder = self
            .vars("AWS_")
            .filter_map(|(name, value)| Some((name.parse::<AmazonS3ConfigKey>().ok()?, value)))
            .fold(AmazonS3Builder::new(), |builder, (key, value)| builder.with_config(key, value))
            .with_bucket_name(self.bucket)
            .with_region(region)
            // Not every store that resembles S3 has the batches of it.
            .with_disable_bulk_delete(true)
            .with_retry(NO_RETRY);
        if let Some(endpoint) = endpoint {
            // The S3 endpoint is the one that wins in object_store.
            builder = builder.with_config(AmazonS3ConfigKey::S3Endpoint, endpoint);
        }
        if self.block.anonymous {
            builder = builder.with_skip_signature(true);
        }
        if self.plain_http(endpoint) {
            builder = builder.with_allow_http(true);
        }
        let chain = Chain::new(self.env, region.to_owned(), &self.transport)?;
        let signer = S3Signer::new(Keyring::new(Arc::new(chain)));
        let credentials = Arc::clone(&signer) as Arc<_>;
        let connector = SignedConnector { transport: self.transport, signer: Arc::clone(&signer) };
        let builder = builder.with_credentials(credentials).with_http_connector(connector);
        let signed = builder.get_config_value(&AmazonS3ConfigKey::SkipSignature);
        let signed = signed.as_deref() != Some("true");
        let mut cloud = Cloud::of(builder.clone().build()?, signed.then_some(signer as Arc<_>));
        let allow_http = AmazonS3ConfigKey::Client(ClientConfigKey::AllowHttp);
        let allow_http = builder.get_config_value(&allow_http).as_deref() == Some("true");
        if !self.block.checksums {
            return Ok(cloud);
        }
        let options = ClientOptions::new().with_default_headers(Asking::headers());
        let asking = builder.with_client_options(options.with_allow_http(allow_http)).build()?;
        cloud.backend.asking = Some(Asking::new(Arc::new(asking)));
        Ok(cloud)
    }

    /// Google Cloud Storage.
    pub(crate) fn gs(self) -> object_store::Result<Cloud> {
        let emulator = self.var("STORAGE_EMULATOR_HOST").map(|host| {
            if host.contains("://") { host.to_owned() } else { format!("http://{host}") }
        });
        let from_env = self.var("GOOGLE_BASE_URL").map(str::to_owned);
        let endpoint = self.block.endpoint.clone().or(from_env).or_else(|| emulator.clone());
        let mut builder = self
            .vars("GOOGLE_")
            .filter_map(|(name, value)| Some((name.parse::<GoogleConfigKey>().ok()?, value)))
            .fold(GoogleCloudStorageBuilder::new(), |b, (key, value)| b.with_config(key, value))
            .with_bucket_name(self.bucket)
            .with_retry(NO_RETRY);
        if let Some(endpoint) = &endpoint {
            let base = endpoint.trim_end_matches('/');
            builder = builder.with_config(GoogleConfigKey::BaseUrl, base);
        }
        if self.block.anonymous || (emulator.is_some() && endpoint == emulator) {
            builder = builder.with_skip_signature(true);
        }
        if self.plain_http(endpoint.as_deref()) {
            builder =
                builder.with_config(GoogleConfigKey::Client(ClientConfigKey::AllowHttp), "true");
        }
        let listener = Listener::new(self.transport);
        let builder = builder.with_http_connector(listener.clone());
        let store = builder.clone().build()?;
        let Some(limit) = listener.limit() else { return Ok(Cloud::of(store, None)) };
        let grow = builder.clone();
        let make = move || Ok(Arc::clone(grow.clone().build()?.credentials()));
        let regrown = Arc::new(Regrown::new(Box::new(make), limit)?);
        let credentials = Arc::clone(&regrown) as Arc<_>;
        Ok(Cloud::of(builder.with_credentials(credentials).build()?, Some(regrown)))
    }

    /// Azure Blob Storage.
    pub(crate) fn az(self) -> object_store::Result<Cloud> {
        let account = self.block.account.as_deref();
        let account = account
            .or_else(|| self.first_var(&["AZURE_STORAGE_ACCOUNT_NAME", "AZURE_STORAGE_ACCOUNT"]));
        let from_env = self.first_var(&[
            "AZURE_STORAGE_SERVICE_ENDPOINT",
            "AZURE_STORAGE_ENDPOINT",
            "AZURE_ENDPOINT",
        ]);
        let endpoint = self.block.endpoint.as_deref().or(from_env);
        let mut builder = MicrosoftAzureBuilder::new();
        // The az tool's name first: object_store's own then wins.
        if let Some(key) = self.var("AZURE_STORAGE_KEY") {
            builder = builder.with_config(AzureConfigKey::AccessKey, key);
        }
        builder = self
            .vars("AZURE_")
            .filter_map(|(name, value)| Some((name.parse::<AzureConfigKey>().ok()?, value)))
            .fold(builder, |builder, (key, value)| builder.with_config(key, value))
            .with_container_name(self.bucket)
            .with_retry(NO_RETRY);
        if let Some(account) = account {
            builder = builder.with_account(account);
        }
        if let Some(endpoint) = endpoint {
            builder = builder.with_endpoint(endpoint.trim_end_matches('/').to_owned());
        }
        if self.block.anonymous {
            builder = builder.with_skip_signature(true);
        }
        if self.plain_http(endpoint) {
            builder = builder.with_allow_http(true);
        }
        let listener = Listener::new(self.transport);
        let builder = builder.with_http_connector(listener.clone());
        let store = builder.clone().build()?;
        let Some(limit) = listener.limit() else { return Ok(Cloud::of(store, None)) };
        let grow = builder.clone();
        let make = move || Ok(Arc::clone(grow.clone().build()?.credentials()));
        let regrown = Arc::new(Regrown::new(Box::new(make), limit)?);
        let credentials = Arc::clone(&regrown) as Arc<_>;
        Ok(Cloud::of(builder.with_credentials(credentials).build()?, Some(regrown)))
    }
}

fn unusable(error: CredentialError) -> object_store::Error {
    object_store::Error::Generic { store: "S3", source: Box::new(error) }
}

/// A web server. `http://` in the URI is leave enough to use it.
pub(crate) fn web(base: &str, transport: Transport) -> object_store::Result<Arc<dyn ObjectStore>> {
    let options = ClientOptions::new().with_allow_http(is_plain(base));
    let builder = HttpBuilder::new()
        .with_url(base)
        .with_client_options(options)
        .with_retry(NO_RETRY)
        .with_http_connector(transport);
    Ok(Arc::new(builder.build()?))
}

fn is_plain(url: &str) -> bool {
    url.get(..7).is_some_and(|start| start.eq_ignore_ascii_case("http://"))
}

/// The path that object_store writes into a request for a key: how a signed target is recognised.
pub(crate) fn web_path(base: &str, key: &str) -> String {
    let Ok(mut url) = url::Url::parse(base) else { return String::new() };
    if let Ok(mut segments) = url.path_segments_mut() {
        segments.extend(key.split('/'));
    }
    url.path().to_owned()
}
