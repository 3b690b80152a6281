//! The flags of `forebayd`.

use std::path::PathBuf;

use clap::Parser;

/// Keeps model checkpoints in pinned RAM and lends them to inference servers and training jobs.
#[derive(Debug, Parser)]
#[command(
    name = "forebayd",
    version,
    about,
    after_help = "Settings come from --config, then FOREBAY_… variables, then flags; later wins.\n\
                  Example: forebayd --ram 16GiB --cache-dir /var/cache/forebay"
)]
pub struct Flags {
    /// Settings file (TOML)
    #[arg(long, value_name = "FILE", env = "FOREBAY_CONFIG")]
    pub(crate) config: Option<PathBuf>,
    /// Where to serve gRPC, as unix:///PATH; handoff.sock lies beside it. May be repeated
    #[arg(long, value_name = "URI")]
    pub(crate) listen: Vec<String>,
    /// Where digests and the NVMe tier live
    #[arg(long, value_name = "DIR")]
    pub(crate) cache_dir: Option<String>,
    /// Size of the RAM tier [default: 25%]
    #[arg(long, value_name = "SIZE")]
    pub(crate) ram: Option<String>,
    /// Size of the NVMe tier; 0 turns it off
    #[arg(long, value_name = "SIZE")]
    pub(crate) nvme: Option<String>,
    /// Where to serve /metrics, /healthz and /readyz; 0 as port takes a free one, `off` none
    #[arg(long, value_name = "ADDR:PORT")]
    pub(crate) metrics: Option<String>,
    /// Form of the log: human or json
    #[arg(long, value_name = "FORM")]
    pub(crate) log: Option<String>,
    /// From which level on the log has lines: error, warn, info, debug or trace
    #[arg(long, value_name = "LEVEL")]
    pub(crate) log_level: Option<String>,
    /// Where spans of finished loads go, over OTLP/gRPC: http://HOST:PORT, or `off`
    #[arg(long, value_name = "URL")]
    pub(crate) otlp_endpoint: Option<String>,
    /// Print the resolved settings and exit
    #[arg(long)]
    pub(crate) check_config: bool,
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    /// Each call of the daemon in the documents is one that it takes.
    #[test]
    fn every_daemon_of_the_documents_can_be_started_like_that() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        for (path, at_least) in [("README.md", 3), ("docker/README.md", 2)] {
            let text = std::fs::read_to_string(root.join(path)).unwrap();
            let calls = forebay_testkit::documented_calls(&text, "forebayd");
            assert!(calls.len() >= at_least, "{path}: {calls:?}");
            for call in calls {
                let words = ["forebayd".to_owned()].into_iter().chain(call.clone());
                let parsed = Flags::try_parse_from(words);
                let problem = parsed.err().filter(clap::Error::use_stderr);
                assert!(problem.is_none(), "{path}: forebayd {call:?}: {}", problem.unwrap());
            }
        }
    }
}
