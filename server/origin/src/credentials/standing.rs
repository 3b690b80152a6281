//! What there is to sign requests with, for people: where it comes from and how long it is good
//! for. Never the secret, nor any part of it.
//!
//! Of S3 the credential itself is looked for, as a request would do it. Of Google and Azure, whose
//! credentials are object_store's, only the place is told where it would look first.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use crate::settings::OriginBlock;
use crate::uri::Scheme;

/// The credentials of an origin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CredentialStanding {
    /// Scheme and bucket.
    pub origin: String,
    /// Where they come from, in some words.
    pub source: String,
    /// How long they are good for, if they end and that is known.
    pub expires_in: Option<Duration>,
    /// Why there are none.
    pub problem: Option<String>,
}

/// The same before it is known of which origin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Standing {
    pub(crate) source: String,
    pub(crate) expires_in: Option<Duration>,
    pub(crate) problem: Option<String>,
}

impl Standing {
    pub(crate) fn of(source: impl Into<String>) -> Self {
        Self { source: source.into(), expires_in: None, problem: None }
    }

    pub(crate) fn none(problem: String) -> Self {
        Self { source: "none".to_owned(), expires_in: None, problem: Some(problem) }
    }
}

/// Variables with credentials of Google, in the order in which they count.
const GOOGLE: [&str; 5] = [
    "GOOGLE_SERVICE_ACCOUNT",
    "GOOGLE_SERVICE_ACCOUNT_PATH",
    "GOOGLE_SERVICE_ACCOUNT_KEY",
    "GOOGLE_BEARER_TOKEN",
    "GOOGLE_APPLICATION_CREDENTIALS",
];

/// Those of them that name a file.
const GOOGLE_FILES: [&str; 3] =
    ["GOOGLE_SERVICE_ACCOUNT", "GOOGLE_SERVICE_ACCOUNT_PATH", "GOOGLE_APPLICATION_CREDENTIALS"];

/// What `gcloud auth application-default login` writes, below the home directory.
const GCLOUD: &str = ".config/gcloud/application_default_credentials.json";

/// Variables with credentials of Azure, in the order in which they count.
const AZURE: [&str; 9] = [
    "AZURE_STORAGE_TOKEN",
    "AZURE_STORAGE_ACCOUNT_KEY",
    "AZURE_STORAGE_ACCESS_KEY",
    "AZURE_STORAGE_KEY",
    "AZURE_FEDERATED_TOKEN_FILE",
    "AZURE_CLIENT_SECRET",
    "AZURE_STORAGE_CLIENT_SECRET",
    "AZURE_STORAGE_SAS_TOKEN",
    "AZURE_STORAGE_SAS_KEY",
];

/// Where credentials that are not looked for here would come from.
pub(crate) fn told(
    scheme: Scheme,
    block: &OriginBlock,
    env: &BTreeMap<String, String>,
) -> Standing {
    let var = |name: &&str| env.get(*name).filter(|value| !value.is_empty());
    if block.anonymous {
        return Standing::of("anonymous, as the settings say");
    }
    match scheme {
        Scheme::Gs => {
            if let Some(name) = GOOGLE.into_iter().find(|name| var(name).is_some()) {
                let file = GOOGLE_FILES.contains(&name).then(|| var(&name)).flatten();
                return named(name, file);
            }
            let written = var(&"HOME").map(|home| Path::new(home).join(GCLOUD));
            match written.filter(|file| file.exists()) {
                Some(file) => Standing::of(format!("the login of gcloud in {}", file.display())),
                None if var(&"STORAGE_EMULATOR_HOST").is_some() => {
                    Standing::of("anonymous, for an emulator")
                }
                None => Standing::of("the instance's metadata service, when it is needed"),
            }
        }
        Scheme::Az => match AZURE.into_iter().find(|name| var(name).is_some()) {
            Some(name) => named(name, var(&name).filter(|_| name == "AZURE_FEDERATED_TOKEN_FILE")),
            None => Standing::of("the instance's managed identity, when it is needed"),
        },
        _ => Standing::of("anonymous, as the environment says"),
    }
}

/// Credentials that a variable has, or the file that it names.
fn named(variable: &str, file: Option<&String>) -> Standing {
    let Some(file) = file else { return Standing::of(format!("{variable} of the environment")) };
    match std::fs::File::open(file) {
        Ok(_) => Standing::of(format!("the file that {variable} names")),
        Err(error) => {
            Standing::none(format!("the file that {variable} names cannot be read: {error}"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn env(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn the_first_place_counts_and_no_value_is_told() {
        let block = OriginBlock::default();
        let of = |scheme, pairs: &[(&str, &str)]| told(scheme, &block, &env(pairs));
        let key =
            of(Scheme::Az, &[("AZURE_STORAGE_SAS_KEY", "canary"), ("AZURE_STORAGE_KEY", "canary")]);
        assert_eq!(key, Standing::of("AZURE_STORAGE_KEY of the environment"));
        let google = of(Scheme::Gs, &[("GOOGLE_SERVICE_ACCOUNT_KEY", "canary")]);
        assert_eq!(google, Standing::of("GOOGLE_SERVICE_ACCOUNT_KEY of the environment"));
        let file = of(Scheme::Gs, &[("GOOGLE_APPLICATION_CREDENTIALS", "/no/such/canary")]);
        assert!(file.problem.as_ref().is_some_and(|problem| !problem.contains("canary")));
        let none = of(Scheme::Gs, &[("GOOGLE_SERVICE_ACCOUNT", "")]);
        assert!(none.source.contains("metadata") && none.problem.is_none());
    }

    #[test]
    fn settings_win_over_the_environment() {
        let block = OriginBlock { anonymous: true, ..Default::default() };
        let told = told(Scheme::Az, &block, &env(&[("AZURE_STORAGE_KEY", "canary")]));
        assert!(told.source.starts_with("anonymous"), "{told:?}");
    }
}
