//! The peers: Python, in the virtual environment that `bench/peers/setup.py` makes.
//!
//! The adapters are part of this program and are written out where it runs. They say themselves
//! who is there and what each can load from; an environment without Python, or a peer that cannot
//! load, becomes a [`Missing`] with its reason.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::Outcome;

/// The adapters.
const FILES: [(&str, &str); 5] = [
    ("load.py", include_str!("../../peers/load.py")),
    ("job.py", include_str!("../../peers/job.py")),
    ("libraries.py", include_str!("../../peers/libraries.py")),
    ("stores.py", include_str!("../../peers/stores.py")),
    ("convert.py", include_str!("../../peers/convert.py")),
];

/// What a machine may have set for its own stores, and peers must not heed.
const MACHINES: [&str; 4] =
    ["AWS_CA_BUNDLE", "AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL_S3"];

/// A peer that cannot be measured, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Missing {
    /// Its name; of several with one reason, what they have in common.
    pub(super) peer: String,
    /// One sentence, or the end of what it printed.
    pub(super) reason: String,
}

impl Missing {
    /// As the table notes it.
    pub(super) fn note(&self) -> String {
        format!("{} did not run: {}", self.peer, self.reason)
    }
}

/// From where a peer loads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Source {
    /// A store, at this endpoint.
    S3(String),
    /// The directory itself.
    File,
}

impl Source {
    /// As adapters say it.
    fn name(&self) -> &'static str {
        match self {
            Self::S3(_) => "s3",
            Self::File => "file",
        }
    }
}

/// A Python and the adapters.
#[derive(Debug, Clone)]
pub(super) struct Adapters {
    python: PathBuf,
    dir: PathBuf,
    peers: Result<BTreeMap<String, Vec<String>>, String>,
}

/// The bucket and the prefix that everything lies under.
pub(super) const BUCKET: &str = "models";
/// With its slash.
pub(super) const PREFIX: &str = "llama/";

impl Adapters {
    /// Writes them into a directory, and asks who is there.
    pub(super) fn install(python: PathBuf, dir: &Path) -> Outcome<Self> {
        std::fs::create_dir_all(dir)?;
        for (name, text) in FILES {
            std::fs::write(dir.join(name), text)?;
        }
        Ok(Self::ask(python, dir))
    }

    /// Asks who is there.
    pub(super) fn ask(python: PathBuf, dir: &Path) -> Self {
        let asked = Command::new(&python).arg(dir.join("load.py")).arg("--list").output();
        let peers = match asked {
            Ok(said) if said.status.success() => listed(&said.stdout),
            Ok(said) => Err(String::from_utf8_lossy(&said.stderr).trim().to_owned()),
            Err(error) => Err(format!(
                "{} cannot be started ({error}): run bench/peers/setup.py",
                python.display()
            )),
        };
        Self { python, dir: dir.to_owned(), peers }
    }

    /// An error if one of these names is no peer's.
    pub(super) fn know(&self, names: &[String]) -> Outcome<()> {
        let Ok(peers) = &self.peers else { return Ok(()) };
        match names.iter().find(|name| !peers.contains_key(*name)) {
            None => Ok(()),
            Some(unknown) => {
                let known: Vec<&str> = peers.keys().map(String::as_str).collect();
                Err(format!("no peer is called {unknown}; there are {}", known.join(", ")).into())
            }
        }
    }

    /// Who can load from there.
    pub(super) fn peers(&self, source: &Source) -> Result<Vec<String>, Missing> {
        let missing =
            |reason: &String| Missing { peer: "every peer".to_owned(), reason: reason.clone() };
        let peers = self.peers.as_ref().map_err(missing)?.iter();
        let can = |(_, sources): &(&String, &Vec<String>)| {
            sources.iter().any(|name| name == source.name())
        };
        Ok(peers.filter(can).map(|(name, _)| name.clone()).collect())
    }

    /// The command that loads what is in `dir` with this peer, once it is told to.
    pub(super) fn load(&self, peer: &str, source: &Source, dir: &Path, verify: bool) -> Command {
        let mut command = Command::new(&self.python);
        command.arg(self.dir.join("load.py")).args([peer, source.name(), "--gate"]);
        command.arg("--dir").arg(dir);
        if verify {
            command.arg("--verify");
        }
        if let Source::S3(endpoint) = source {
            command.args(["--endpoint", endpoint, "--bucket", BUCKET, "--prefix", PREFIX]);
            for name in MACHINES {
                command.env_remove(name);
            }
            command.envs(environment(endpoint));
            command.env("RUNAI_STREAMER_S3_USE_VIRTUAL_ADDRESSING", "0");
        }
        command
    }

    /// Converts what is in `dir` for the peer that needs it.
    pub(super) fn convert(&self, dir: &Path) -> Outcome<Result<(), String>> {
        if self.peers.is_err() {
            return Ok(Ok(()));
        }
        let ran = Command::new(&self.python).arg(self.dir.join("convert.py")).arg(dir).output()?;
        let said = String::from_utf8_lossy(&ran.stderr);
        let last = said.lines().rfind(|line| !line.trim().is_empty()).unwrap_or_default();
        Ok(if ran.status.success() { Ok(()) } else { Err(last.to_owned()) })
    }
}

/// What makes clients of S3 use an endpoint, and nothing of this machine's.
pub(super) fn environment(endpoint: &str) -> Vec<(String, String)> {
    let variables = [
        ("AWS_ENDPOINT_URL", endpoint),
        ("AWS_ALLOW_HTTP", "true"),
        ("AWS_REGION", "us-east-1"),
        ("AWS_DEFAULT_REGION", "us-east-1"),
        ("AWS_ACCESS_KEY_ID", "bench"),
        ("AWS_SECRET_ACCESS_KEY", "benchbench"),
        ("AWS_EC2_METADATA_DISABLED", "true"),
        ("AWS_CONFIG_FILE", "/dev/null"),
        ("AWS_SHARED_CREDENTIALS_FILE", "/dev/null"),
    ];
    variables.map(|(name, value)| (name.to_owned(), value.to_owned())).into()
}

fn listed(said: &[u8]) -> Result<BTreeMap<String, Vec<String>>, String> {
    serde_json::from_slice(said)
        .map_err(|_| format!("the adapters answered {:?}", String::from_utf8_lossy(said).trim()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn adapters(peers: Result<&[u8], &str>) -> Adapters {
        let peers = peers.map_err(str::to_owned).and_then(listed);
        Adapters { python: "python3".into(), dir: "/adapters".into(), peers }
    }

    #[test]
    fn peers_are_those_that_can_load_from_there() {
        let adapters = adapters(Ok(br#"{"b": ["s3", "file"], "a": ["file"], "c": ["s3"]}"#));
        let store = Source::S3("http://127.0.0.1:1".to_owned());
        assert_eq!(adapters.peers(&store).unwrap(), ["b", "c"]);
        assert_eq!(adapters.peers(&Source::File).unwrap(), ["a", "b"]);
        adapters.know(&["c".to_owned(), "a".to_owned()]).unwrap();
        let unknown = adapters.know(&["d".to_owned()]).unwrap_err().to_string();
        assert_eq!(unknown, "no peer is called d; there are a, b, c");
    }

    #[test]
    fn without_python_everybody_is_missing_for_a_reason() {
        let nobody = Adapters::ask("/nowhere/python".into(), Path::new("/adapters"));
        let missing = nobody.peers(&Source::File).unwrap_err();
        assert!(missing.note().starts_with("every peer did not run: /nowhere/python"));
        assert!(missing.reason.ends_with("run bench/peers/setup.py"), "{missing:?}");
        let odd = adapters(Ok(b"Python 2\n")).peers(&Source::File).unwrap_err();
        assert_eq!(odd.reason, "the adapters answered \"Python 2\"");
    }

    #[test]
    fn a_peer_is_told_where_the_store_is_and_no_secret_of_ours() {
        let store = Source::S3("http://127.0.0.1:1".to_owned());
        let command = adapters(Ok(b"{}")).load("b", &store, Path::new("/files"), true);
        let args: Vec<_> = command.get_args().map(|arg| arg.to_string_lossy()).collect();
        assert_eq!(args[..4], ["/adapters/load.py", "b", "s3", "--gate"]);
        assert!(args.iter().any(|arg| arg == "--verify"), "{args:?}");
        let told = |name: &str| command.get_envs().any(|(key, _)| key == name);
        assert!(told("AWS_ENDPOINT_URL") && told("AWS_SHARED_CREDENTIALS_FILE"));
        assert!(command.get_envs().any(|pair| pair == ("AWS_CA_BUNDLE".as_ref(), None)));
        let local = adapters(Ok(b"{}")).load("b", &Source::File, Path::new("/files"), false);
        assert_eq!(local.get_envs().count(), 0);
    }
}
