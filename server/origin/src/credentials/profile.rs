//! The AWS tools' files of profiles: a pure reading of them, and which profile is meant.
//!
//! A profile's settings may be spread over both files; those of the credentials file win. The forms
//! of the sections differ: `[name]` there, `[profile name]` in the config file, but for
//! `[default]`. Indented lines under a setting without a value are settings of it:
//! `s3.endpoint_url`.

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::CredentialError;
use crate::uri::Secret;

/// A longer file is no file of profiles.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// Where the profiles are, and which one is meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Profiles {
    /// The file of credentials, if there can be one.
    pub(crate) credentials: Option<PathBuf>,
    /// The file of settings, likewise.
    pub(crate) config: Option<PathBuf>,
    pub(crate) name: String,
    /// Somebody asked for this profile: that it is missing is an error.
    pub(crate) named: bool,
}

/// The settings of one profile.
#[derive(Debug, Clone, Default)]
pub(crate) struct Profile {
    settings: BTreeMap<String, Secret>,
    /// Of its `services` section.
    services: BTreeMap<String, Secret>,
}

/// What tells one state of a file from another.
pub(crate) type Stamp = Option<(SystemTime, u64)>;

type Sections = BTreeMap<String, BTreeMap<String, Secret>>;

impl Profiles {
    pub(crate) fn of(env: &BTreeMap<String, String>) -> Self {
        let var = |name: &str| env.get(name).filter(|value| !value.is_empty());
        let home = var("HOME").map(|home| Path::new(home).join(".aws"));
        let file = |name: &str, usual: &str| {
            let set = var(name).map(PathBuf::from);
            set.or_else(|| home.as_ref().map(|home| home.join(usual)))
        };
        let name = var("AWS_PROFILE").or_else(|| var("AWS_DEFAULT_PROFILE"));
        Self {
            credentials: file("AWS_SHARED_CREDENTIALS_FILE", "credentials"),
            config: file("AWS_CONFIG_FILE", "config"),
            named: name.is_some(),
            name: name.cloned().unwrap_or_else(|| "default".to_owned()),
        }
    }

    /// The profile as the files have it now; none if it is not there and nobody asked for it.
    pub(crate) fn read(&self) -> Result<Option<Profile>, CredentialError> {
        let credentials = contents(self.credentials.as_deref())?;
        let config = contents(self.config.as_deref())?;
        let found = Profile::of(&self.name, &credentials, &config);
        if found.is_none() && self.named {
            let (credentials, config) = self.shown();
            let profile = self.name.clone();
            return Err(CredentialError::NoProfile { profile, credentials, config });
        }
        Ok(found)
    }

    /// The states of both files.
    pub(crate) fn stamps(&self) -> [Stamp; 2] {
        [&self.credentials, &self.config].map(|file| {
            let metadata = std::fs::metadata(file.as_deref()?).ok()?;
            Some((metadata.modified().ok()?, metadata.len()))
        })
    }

    /// The names of both files.
    pub(crate) fn shown(&self) -> (String, String) {
        let text = |file: &Option<PathBuf>| {
            let path = file.as_ref().map(|file| file.display().to_string());
            path.unwrap_or_else(|| "any file (HOME is not set)".to_owned())
        };
        (text(&self.credentials), text(&self.config))
    }
}

fn contents(file: Option<&Path>) -> Result<String, CredentialError> {
    let Some(path) = file else { return Ok(String::new()) };
    let mut text = String::new();
    let opened = std::fs::File::open(path);
    let read = opened.and_then(|file| file.take(FILE_BYTES_MAX).read_to_string(&mut text));
    match read {
        Ok(_) => Ok(text),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        Err(source) => Err(CredentialError::File { file: path.display().to_string(), source }),
    }
}

impl Profile {
    fn of(name: &str, credentials: &str, config: &str) -> Option<Self> {
        let (mut keys, mut config) = (sections(credentials), sections(config));
        let section = if name == "default" { name.to_owned() } else { format!("profile {name}") };
        let plain = config.remove(&section);
        // `[profile default]` is accepted as well, as the tools do, but `[default]` wins.
        let plain = plain.or_else(|| config.remove(&format!("profile {name}")));
        let secret = keys.remove(name);
        if plain.is_none() && secret.is_none() {
            return None;
        }
        let mut settings = plain.unwrap_or_default();
        settings.extend(secret.unwrap_or_default());
        let services = settings.get("services").map(|name| format!("services {}", name.reveal()));
        let services = services.and_then(|section| config.remove(&section)).unwrap_or_default();
        Some(Self { settings, services })
    }

    /// A setting that says something.
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.settings.get(name).map(Secret::reveal).filter(|value| !value.is_empty())
    }

    pub(crate) fn region(&self) -> Option<&str> {
        self.get("region")
    }

    /// The base URL for S3: that of the service wins.
    pub(crate) fn endpoint(&self) -> Option<&str> {
        let of_s3 = self.services.get("s3.endpoint_url").map(Secret::reveal);
        of_s3.filter(|url| !url.is_empty()).or_else(|| self.get("endpoint_url"))
    }
}

fn sections(text: &str) -> Sections {
    let mut all = Sections::new();
    let (mut section, mut above) = (None, String::new());
    for line in text.trim_start_matches('\u{feff}').lines() {
        let (indented, line) = (line.starts_with([' ', '\t']), line.trim());
        if line.is_empty() || line.starts_with(['#', ';']) {
            continue;
        }
        if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
            let name = name.0.split_whitespace().collect::<Vec<_>>().join(" ");
            all.entry(name.clone()).or_default();
            section = Some(name);
            continue;
        }
        let Some((name, value)) = line.split_once('=') else { continue };
        let Some(settings) = section.as_ref().and_then(|name| all.get_mut(name)) else { continue };
        let name = name.trim().to_ascii_lowercase();
        // A comment after a value has a space before it: a key may hold either sign.
        let value = [" #", " ;", "\t#", "\t;"]
            .iter()
            .fold(value, |value, sign| value.split_once(sign).map_or(value, |(value, _)| value));
        let name = if indented && !above.is_empty() {
            format!("{above}.{name}")
        } else {
            above = if value.trim().is_empty() { name.clone() } else { String::new() };
            name
        };
        settings.insert(name, Secret::new(value.trim().to_owned()));
    }
    all
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const CREDENTIALS: &str = "# of the tools\n[default]\naws_access_key_id = AKID\n\
        aws_secret_access_key=se=cr#et/+ # mine\n\n[ two ]\nAWS_ACCESS_KEY_ID = TWO\n";
    const CONFIG: &str = "[default]\nregion = eu-test-1\naws_access_key_id = LOSES\n\
        s3 =\n  max_concurrent_requests = 5\n\tendpoint_url = no\noutput = json\n\
        [profile two]\nendpoint_url = http://two\nservices = local\n\
        [services local]\ns3 =\n  endpoint_url = http://s3-of-two\n\
        [two]\nregion = not-a-profile\nstray\n";

    #[test]
    fn both_files_make_a_profile() {
        let default = Profile::of("default", CREDENTIALS, CONFIG).unwrap();
        assert_eq!(default.get("aws_access_key_id"), Some("AKID"));
        assert_eq!(default.get("aws_secret_access_key"), Some("se=cr#et/+"));
        assert_eq!((default.region(), default.endpoint()), (Some("eu-test-1"), None));
        assert_eq!(default.get("s3.max_concurrent_requests"), Some("5"));
        assert_eq!(default.get("output"), Some("json"));
        let two = Profile::of("two", CREDENTIALS, CONFIG).unwrap();
        assert_eq!(two.get("aws_access_key_id"), Some("TWO"));
        assert_eq!((two.region(), two.endpoint()), (None, Some("http://s3-of-two")));
        assert!(Profile::of("three", CREDENTIALS, CONFIG).is_none());
        let shown = format!("{two:?} {default:?}");
        assert!(!shown.contains("cr#et") && !shown.contains("AKID"), "{shown}");
    }

    #[test]
    fn the_environment_says_where_and_which() {
        let env = |vars: &[(&str, &str)]| {
            let vars = vars.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
            Profiles::of(&vars.collect())
        };
        let usual = env(&[("HOME", "/h")]);
        assert_eq!(usual.credentials.as_deref(), Some(Path::new("/h/.aws/credentials")));
        assert_eq!((usual.name.as_str(), usual.named), ("default", false));
        let set = env(&[("AWS_CONFIG_FILE", "/c"), ("AWS_PROFILE", "p")]);
        assert_eq!(
            (set.config.as_deref(), set.credentials.as_ref()),
            (Some(Path::new("/c")), None)
        );
        assert_eq!((set.name.as_str(), set.named), ("p", true));
        let error = set.read().unwrap_err().to_string();
        let want = "profile p is neither in any file (HOME is not set) nor in /c";
        assert_eq!(error, want);
        assert!(env(&[("HOME", "/nowhere")]).read().unwrap().is_none());
    }

    proptest! {
        #[test]
        fn no_file_breaks_the_reading(text in "([\\[\\]=# \\n\\ta-c]|.){0,200}") {
            let all = sections(&text);
            for name in all.keys().filter_map(|name| name.strip_prefix("profile ")) {
                prop_assert!(Profile::of(name, "", &text).is_some());
            }
        }
    }
}
