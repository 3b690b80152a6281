//! The settings of who watches: where spans of finished loads go, and the names of what loads may be
//! for, by which metrics tell them apart.

use super::{ConfigError, Take};
use crate::workload::Workloads;

/// What an endpoint looks like.
const FORM: &str = "is http://HOST:PORT of a collector that takes OTLP over gRPC, or off";

impl Take<'_> {
    /// Where spans go; none if they go nowhere.
    pub(super) fn otlp_endpoint(&mut self) -> Result<Option<String>, ConfigError> {
        self.read("otlp_endpoint", None, |text| match text {
            "off" => Ok(None),
            _ if !cfg!(feature = "otlp") => {
                Err("this build exports no spans: build forebayd with `--features otlp`")
            }
            _ => endpoint(text).map(Some),
        })
    }

    /// What loads may be for.
    pub(super) fn workloads(&mut self) -> Result<Workloads, ConfigError> {
        self.read("workloads", Workloads::default(), |text| {
            let names = text.split(',').map(str::trim);
            // An empty list, and not a list of an empty name.
            Workloads::parse(names.filter(|_| !text.is_empty()))
        })
    }
}

/// A collector's address. It is spoken to in the clear, so nothing secret can be part of it.
fn endpoint(text: &str) -> Result<String, &'static str> {
    let url: http::Uri = text.parse().map_err(|_other| FORM)?;
    let authority = url.authority().ok_or(FORM)?;
    if url.scheme_str() == Some("https") {
        return Err("this build has no TLS for exports: name a collector on this host, by http://");
    }
    let is_plain = url.scheme_str() == Some("http") && authority.port_u16().is_some();
    let is_bare = matches!(url.path(), "" | "/") && url.query().is_none();
    if !is_plain || !is_bare || authority.as_str().contains('@') {
        return Err(FORM);
    }
    Ok(format!("http://{authority}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Settings;

    #[test]
    fn an_endpoint_is_a_host_and_a_port() {
        for good in ["http://127.0.0.1:4317", "http://[::1]:4317", "http://collector:4317"] {
            assert_eq!(endpoint(good).as_deref(), Ok(good));
        }
        assert_eq!(endpoint("http://h:1/").as_deref(), Ok("http://h:1"));
        for bad in ["", "h", "h:4317", "http://h", "http://h:4317/v1/traces", "http://h:1/?key=x"] {
            assert_eq!(endpoint(bad), Err(FORM), "{bad}");
        }
        assert_eq!(endpoint("http://user:pw@h:4317"), Err(FORM));
        assert!(endpoint("https://h:4317").unwrap_err().contains("TLS"));
    }

    #[test]
    fn workloads_are_a_list_of_names() {
        let names = |text: &str| {
            let settings = Settings::of_file("f.toml", text).map_err(|error| error.to_string())?;
            Ok(settings.workloads.names().join(" "))
        };
        assert_eq!(names("workloads = [\"serving\", \"batch\"]").as_deref(), Ok("serving batch"));
        assert_eq!(names("workloads = []").as_deref(), Ok(""));
        let problem: Result<String, String> = names("workloads = [\"Serving\"]");
        assert!(problem.unwrap_err().starts_with("f.toml:1: workloads: \"Serving\" is not"));
    }

    #[test]
    fn a_build_without_exports_says_so() {
        let text = "otlp_endpoint = \"http://h:4317\"";
        match Settings::of_file("f.toml", text) {
            Ok(settings) if cfg!(feature = "otlp") => {
                assert_eq!(settings.otlp_endpoint.as_deref(), Some("http://h:4317"));
            }
            Err(error) if !cfg!(feature = "otlp") => {
                let said = error.to_string();
                let begins = "f.toml:1: otlp_endpoint: this build exports no spans";
                assert!(said.starts_with(begins) && said.contains("--features otlp"), "{said}");
            }
            other => panic!("{other:?}"),
        }
    }
}
