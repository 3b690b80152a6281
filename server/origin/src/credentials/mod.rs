//! The credentials of the clouds: where they come from, how long they last, and when they are had
//! anew.
//!
//! ```text
//! tries.rs --"refused"--> Renewal --+-- S3Signer (sign.rs): signs again with the origin's time
//!                                   |      |- Keyring (keyring.rs): one refresh for all callers
//!                                   |      |     \- Chain (chain.rs): where AWS tools look
//!                                   |      |           |- profile.rs: ~/.aws, pure
//!                                   |      |           \- fetch.rs: STS, containers, IMDS
//!                                   |      \- clock.rs: how far the origin's clock is from ours
//!                                   \-- Regrown (cloud.rs): Google's and Azure's, object_store's
//! ```
//!
//! object_store asks for a credential before each request. Whoever asks first fetches it and all
//! others share the fetch. An origin that refuses one leads to one renewal per generation, however
//! many calls it refused; a call renews once and then takes the refusal for what it says. Nothing
//! here reads the environment, and nothing shows a secret.

use std::fmt::Debug;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use crate::error::redact;
use standing::Standing;

pub(crate) mod chain;
pub(crate) mod clock;
pub(crate) mod cloud;
pub(crate) mod date;
mod fetch;
pub(crate) mod keyring;
pub(crate) mod profile;
pub(crate) mod sign;
pub(crate) mod standing;

/// The longest wait for a service that is next door: that of an instance's or a container's
/// credentials.
pub(crate) const METADATA_LIMIT: Duration = Duration::from_secs(2);
/// The longest wait for a service of tokens elsewhere.
pub(crate) const TOKENS_LIMIT: Duration = Duration::from_secs(10);

/// What an origin's refusal says about the credentials it was asked with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// They are expired, or no longer known.
    Expired,
    /// Nothing: the answer has no code, as none to HEAD has.
    Unsaid,
    /// The request's time is too far from the origin's.
    Skewed,
}

/// What a store can do about a refusal.
#[async_trait]
pub(crate) trait Renewal: Debug + Send + Sync {
    /// Waits for credentials, so that no attempt's time is spent on it. That there are none is told
    /// when a request asks for them.
    async fn ready(&self) {}

    /// Which credentials, and which clock, requests are signed with now.
    fn generation(&self) -> u64;

    /// Does what may help a request that was refused when signed so. Answers whether the next one
    /// is signed otherwise.
    async fn renew(&self, refusal: Refusal, generation: u64) -> bool;

    /// What is known of the cause, for an error.
    fn says(&self, refusal: Refusal) -> Option<String>;

    /// What there is to sign requests with, if it can be told here; looked for if it is not held.
    async fn standing(&self) -> Option<Standing> {
        None
    }
}

/// The renewal of one store, if it has any.
pub(crate) type Renews = Option<Arc<dyn Renewal>>;

/// Why there are no credentials.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CredentialError {
    #[error("{missing} is not set, {present} is")]
    HalfKey { present: &'static str, missing: &'static str },
    #[error("profile {profile} is neither in {credentials} nor in {config}")]
    NoProfile { profile: String, credentials: String, config: String },
    #[error("profile {profile} has {setting}, which Forebay does not follow: {instead}")]
    Unsupported { profile: String, setting: &'static str, instead: &'static str },
    #[error("profile {profile} has {present} without {missing}")]
    HalfProfile { profile: String, present: &'static str, missing: &'static str },
    #[error("{file} could not be read: {source}")]
    File { file: String, source: io::Error },
    #[error("{service} did not answer within {} s", .limit.as_secs_f64())]
    Silent { service: String, limit: Duration },
    #[error("{service} could not be asked: {detail}")]
    Unreachable { service: String, detail: String },
    #[error("{service} answered with status {status}{}", code_text(.code))]
    Refused { service: String, status: u16, code: Option<String> },
    #[error("{service} gave an answer without {what}")]
    Malformed { service: String, what: &'static str },
    #[error("{url} may not be asked for credentials: it is neither https nor on this machine")]
    Exposed { url: String },
    #[error("none in the environment, {profiles}, none of a container or a web identity; {last}")]
    Nowhere { profiles: String, last: String },
}

impl CredentialError {
    /// A service that could not be asked, in the words of a library, which may quote URLs.
    fn unreachable(service: &str, error: &impl ToString) -> Self {
        let detail = redact(&error.to_string());
        Self::Unreachable { service: service.to_owned(), detail }
    }
}

fn code_text(code: &Option<String>) -> String {
    code.as_ref().map(|code| format!(" ({code})")).unwrap_or_default()
}
