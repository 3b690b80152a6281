//! `compose.yaml` and the files it mounts: against the schema, against each other and the binaries.

use std::path::{Path, PathBuf};

use serde_json::Value;

use super::binaries::{Resolved, bytes, cannot_run};
use super::read::{Files, items, text, texts};
use super::schema;

const FILE: &str = "compose.yaml";

/// All that is wrong.
pub(super) fn problems(files: &Files) -> Vec<String> {
    let documents = match files.yaml(FILE) {
        Ok(documents) => documents,
        Err(problem) => return vec![problem],
    };
    let [compose] = &documents[..] else { return vec![format!("{FILE}: is not one document")] };
    let schema = files.json("schemas/compose.json");
    let problems = schema::problems(&schema, &schema, compose, FILE);
    if !problems.is_empty() {
        return problems;
    }
    let stack = Stack { files, compose };
    let all = [stack.services(), stack.daemon(), stack.client(), stack.watchers()];
    all.concat().into_iter().map(|problem| format!("{FILE}: {problem}")).collect()
}

struct Stack<'a> {
    files: &'a Files,
    compose: &'a Value,
}

/// One entry of a service's `volumes`, in its short form.
struct Mount {
    from: String,
    to: PathBuf,
    read_only: bool,
}

impl<'a> Stack<'a> {
    fn service(&self, name: &str) -> &'a Value {
        let service = self.compose.pointer(&format!("/services/{name}"));
        service.unwrap_or_else(|| panic!("{FILE} has no service {name}"))
    }

    fn mounts(&self, name: &str) -> Vec<Mount> {
        let mounts = texts(self.service(name), "/volumes").into_iter().map(|text| {
            let mut parts = text.split(':');
            let (from, to) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
            Mount { from: from.to_owned(), to: to.into(), read_only: parts.next() == Some("ro") }
        });
        mounts.collect()
    }

    /// The text of the file of `docker/` that a service has at a path.
    fn mounted(&self, name: &str, path: &str) -> Option<(String, &'a str)> {
        let mount = self.mounts(name).into_iter().find(|mount| mount.to == Path::new(path))?;
        let from = mount.from.strip_prefix("./")?.to_owned();
        let text = self.files.has(&from).then(|| self.files.text(&from))?;
        Some((from, text))
    }

    /// Names that refer to something, and images that stay what they are.
    fn services(&self) -> Vec<String> {
        let mut problems = Vec::new();
        let services = self.compose.get("services").and_then(Value::as_object).unwrap();
        for (name, service) in services {
            let image = text(service, "/image");
            let tag = image.rsplit_once(':').map_or("", |(_, tag)| tag);
            let pinned = !tag.is_empty() && (tag != "latest" || image.starts_with("localhost/"));
            if !pinned {
                problems.push(format!("{name}: the image {image} is not pinned"));
            }
            let after = service.get("depends_on").and_then(Value::as_object).into_iter().flatten();
            let missing = after.filter(|(other, _)| !services.contains_key(*other));
            problems
                .extend(missing.map(|(other, _)| format!("{name}: there is no service {other}")));
            let missing = self.mounts(name).into_iter().filter(|mount| !self.exists(&mount.from));
            problems.extend(missing.map(|mount| format!("{name}: there is no {}", mount.from)));
            let options = texts(service, "/security_opt").into_iter();
            let missing = options.filter(|option| {
                option.strip_prefix("seccomp=./").is_some_and(|profile| !self.files.has(profile))
            });
            problems.extend(missing.map(|option| format!("{name}: there is no file of {option}")));
        }
        problems
    }

    /// Whether what a service mounts is a file here, or a volume.
    fn exists(&self, from: &str) -> bool {
        match from.strip_prefix("./") {
            Some(file) => self.files.has(file),
            None => self.compose.pointer(&format!("/volumes/{from}")).is_some(),
        }
    }

    fn settings(&self) -> Result<Resolved, String> {
        let mounts = self.mounts("forebayd");
        let seen = mounts.iter().filter_map(|mount| {
            let to = mount.to.display().to_string();
            let (_, text) = self.mounted("forebayd", &to)?;
            Some((to, text.to_owned()))
        });
        let env = [("FOREBAY_CACHE_DIR".to_owned(), "/var/cache/forebay".to_owned())];
        let args = texts(self.service("forebayd"), "/command");
        Resolved::of(&args, &env, &seen.collect::<Vec<_>>())
    }

    fn daemon(&self) -> Vec<String> {
        let mut problems = Vec::new();
        let settings = match self.settings() {
            Ok(settings) => settings,
            Err(problem) => return vec![format!("forebayd: {problem}")],
        };
        let cache = PathBuf::from(settings.get("cache_dir"));
        for path in [settings.socket_folder(), cache] {
            let mounts = self.mounts("forebayd");
            if !mounts.iter().any(|mount| path == mount.to && !mount.read_only) {
                problems.push(format!(
                    "forebayd: {} is no volume that it may write to",
                    path.display()
                ));
            }
        }
        let service = self.service("forebayd");
        let limit = bytes(text(service, "/mem_limit")).unwrap_or(0);
        if limit < settings.ram_bytes() + (1 << 30) {
            problems.push(format!("forebayd: {limit} bytes of memory are too few for `ram`"));
        }
        let grace =
            text(service, "/stop_grace_period").trim_end_matches('s').parse().unwrap_or(10_u64);
        if grace <= settings.drain().as_secs() {
            problems.push(format!("forebayd: it is killed after {grace} s, within `drain`"));
        }
        let ours = super::shipped::image_uid(self.files);
        if !settings.allows(ours) {
            problems.push(format!("forebayd: its own uid {ours} is not in `allow_uids`"));
        }
        problems
    }

    /// The load is another user, without a network, and has the sockets.
    fn client(&self) -> Vec<String> {
        let (mut problems, service) = (Vec::new(), self.service("load"));
        let Ok(settings) = self.settings() else { return problems };
        problems.extend(cannot_run(&texts(service, "/command")));
        let uid = text(service, "/user").split(':').next().and_then(|uid| uid.parse().ok());
        if !uid.is_some_and(|uid| settings.allows(uid)) {
            problems.push(format!("load: its uid {uid:?} is not in `allow_uids`"));
        }
        let volume_at = |name: &str, path: &Path| {
            let mounts = self.mounts(name).into_iter();
            mounts.filter(|mount| mount.to == path).map(|mount| mount.from).next()
        };
        let endpoint = text(service, "/environment/FOREBAY_ENDPOINT");
        let socket = PathBuf::from(endpoint.strip_prefix("unix://").unwrap_or_default());
        let theirs = volume_at("forebayd", &settings.socket_folder());
        let folder = socket.parent().unwrap_or_else(|| Path::new("/"));
        if theirs.is_none()
            || theirs != volume_at("load", folder)
            || socket.file_name() != settings.socket().file_name()
        {
            problems.push(format!("load: no daemon serves {endpoint} there"));
        }
        problems
    }

    /// Prometheus asks the daemon and has our rules; Grafana asks Prometheus and has our dashboard.
    fn watchers(&self) -> Vec<String> {
        let mut problems = Vec::new();
        let mut say = |holds: bool, problem: &str| {
            if !holds {
                problems.push(problem.to_owned());
            }
        };
        let of_yaml = |name: &str| {
            self.files.yaml(name).ok().and_then(|of| of.into_iter().next()).unwrap_or_default()
        };
        let flags = texts(self.service("prometheus"), "/command");
        let config =
            flags.iter().find_map(|flag| flag.strip_prefix("--config.file=")).unwrap_or_default();
        let config =
            self.mounted("prometheus", config).map(|(name, _)| of_yaml(&name)).unwrap_or_default();
        let rules = texts(&config, "/rule_files");
        let of_rules = |path: &String| {
            self.mounted("prometheus", path).is_some_and(|(from, _)| from == "grafana/rules.yml")
        };
        say(
            !rules.is_empty() && rules.iter().all(of_rules),
            "prometheus: its rules are not docker/grafana/rules.yml",
        );
        let targets: Vec<String> = items(&config, "/scrape_configs")
            .iter()
            .flat_map(|job| items(job, "/static_configs"))
            .flat_map(|of| texts(of, "/targets"))
            .collect();
        let metrics = self.settings().ok().and_then(|settings| settings.metrics());
        let expected =
            metrics.filter(|(_, outside)| *outside).map(|(port, _)| format!("forebayd:{port}"));
        say(
            expected.is_some_and(|of| targets == [of]),
            "prometheus: its targets are not the daemon's metrics",
        );

        let provisioned = |folder: &str| {
            let mounts = self.mounts("grafana").into_iter();
            let mut of = mounts.filter(|mount| mount.to.starts_with(folder));
            of.next().map(|mount| of_yaml(mount.from.trim_start_matches("./"))).unwrap_or_default()
        };
        let datasource = provisioned("/etc/grafana/provisioning/datasources");
        say(
            text(&datasource, "/datasources/0/url") == "http://prometheus:9090",
            "grafana: its data is not Prometheus'",
        );
        let dashboards = provisioned("/etc/grafana/provisioning/dashboards");
        let folder = text(&dashboards, "/providers/0/options/path");
        let dashboard = self
            .mounts("grafana")
            .into_iter()
            .find(|mount| mount.from == "./grafana/dashboard.json");
        let shown = dashboard.is_some_and(|mount| {
            let home = text(
                self.service("grafana"),
                "/environment/GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH",
            );
            !folder.is_empty() && mount.to.starts_with(folder) && mount.to == Path::new(home)
        });
        say(shown, "grafana: its dashboard is not docker/grafana/dashboard.json");
        problems
    }
}
