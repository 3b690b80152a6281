//! The manifests for Kubernetes: against the schema of their kinds, and against what the binaries know.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;

use super::binaries::{Resolved, bytes, cannot_run};
use super::read::{Files, items, text, texts};
use super::{SERVED, schema};

/// What the daemon needs beside its RAM tier, its memory for packed checkpoints included: up to 2 GiB
/// for those, and a round 1 GiB.
const BESIDE_RAM_BYTES: u64 = 3 << 30;

/// All that is wrong.
pub(super) fn problems(files: &Files) -> Vec<String> {
    let schemas = files.json("schemas/kubernetes.json");
    let mut problems = Vec::new();
    let mut read = Vec::new();
    for name in
        files.names().filter(|name| name.starts_with("kubernetes/") && name.ends_with(".yaml"))
    {
        match files.yaml(name) {
            Err(problem) => problems.push(problem),
            Ok(documents) => read.push((name, documents)),
        }
    }
    for (name, documents) in &read {
        problems.extend(documents.iter().flat_map(|document| of_schema(&schemas, name, document)));
    }
    if !problems.is_empty() {
        return problems;
    }
    let pods = || read.iter().flat_map(|(name, documents)| Pod::all(name, documents, files));
    let mut daemons = Vec::new();
    for pod in pods() {
        problems.extend(pod.is_whole());
        for container in pod.containers().filter(|container| pod.is_daemon(container)) {
            match Daemon::of(pod, container) {
                Ok(daemon) => daemons.push(daemon),
                Err(problem) => problems.push(problem),
            }
        }
    }
    problems.extend(daemons.iter().flat_map(Daemon::problems));
    problems.extend(pods().flat_map(|pod| pod.clients(&daemons)));
    problems
}

fn of_schema(schemas: &Value, name: &str, document: &Value) -> Vec<String> {
    let kind = text(document, "/kind");
    match schemas.pointer(&format!("/kinds/{kind}")) {
        Some(of) => schema::problems(schemas, of, document, &format!("{name}: {kind}")),
        None => vec![format!("{name}: the schema knows no kind {kind:?}")],
    }
}

/// Why a command cannot be run in the image.
fn not_of_the_image(command: Vec<String>) -> Option<String> {
    match command.split_first() {
        Some((program, args)) if program == "/usr/bin/forebay" => cannot_run(args),
        _ => Some(format!("the image has no {command:?}")),
    }
}

/// A pod, or the template of some.
#[derive(Clone, Copy)]
struct Pod<'a> {
    file: &'a str,
    documents: &'a [Value],
    files: &'a Files,
    /// What has its name and its selector.
    owner: &'a Value,
    metadata: &'a Value,
    spec: &'a Value,
}

impl<'a> Pod<'a> {
    fn all(file: &'a str, documents: &'a [Value], files: &'a Files) -> Vec<Self> {
        let pod = |owner: &'a Value| {
            let pod = if text(owner, "/kind") == "Pod" {
                Some(owner)
            } else {
                owner.pointer("/spec/template")
            }?;
            let (metadata, spec) = (pod.get("metadata")?, pod.get("spec")?);
            Some(Self { file, documents, files, owner, metadata, spec })
        };
        documents.iter().filter_map(pod).collect()
    }

    fn containers(self) -> impl Iterator<Item = &'a Value> {
        items(self.spec, "/initContainers").iter().chain(items(self.spec, "/containers"))
    }

    fn is_ours(self, container: &Value) -> bool {
        text(container, "/image").contains("/forebay:")
    }

    fn is_daemon(self, container: &Value) -> bool {
        self.is_ours(container) && items(container, "/command").is_empty()
    }

    fn at(self, container: &Value) -> String {
        format!("{}: container {}", self.file, text(container, "/name"))
    }

    /// Where it mounts what: path, volume, and whether it may write.
    fn mounts(self, container: &'a Value) -> impl Iterator<Item = (PathBuf, &'a Value, bool)> {
        items(container, "/volumeMounts").iter().filter_map(move |mount| {
            let writes = mount.get("readOnly") != Some(&Value::Bool(true));
            Some((
                PathBuf::from(text(mount, "/mountPath")),
                self.volume(text(mount, "/name"))?,
                writes,
            ))
        })
    }

    fn volume(self, name: &str) -> Option<&'a Value> {
        items(self.spec, "/volumes").iter().find(|volume| text(volume, "/name") == name)
    }

    /// The mount that a path lies in, and what of the path is below it.
    fn mount_of(self, container: &'a Value, path: &Path) -> Option<(PathBuf, &'a Value, bool)> {
        let mut of: Vec<_> =
            self.mounts(container).filter(|(mounted, ..)| path.starts_with(mounted)).collect();
        of.sort_by_key(|(mounted, ..)| mounted.as_os_str().len());
        of.pop()
    }

    /// The files of mounted ConfigMaps, by their paths in the container.
    fn config_files(self, container: &'a Value) -> Vec<(String, String)> {
        let entries = self.mounts(container).flat_map(|(path, volume, _)| {
            let name = text(volume, "/configMap/name");
            let map = self.documents.iter().find(|document| {
                text(document, "/kind") == "ConfigMap" && text(document, "/metadata/name") == name
            });
            let data = map.and_then(|map| map.get("data")?.as_object());
            data.into_iter().flatten().map(move |(key, value)| {
                (
                    path.join(key).display().to_string(),
                    value.as_str().unwrap_or_default().to_owned(),
                )
            })
        });
        entries.collect()
    }

    fn uid(self, container: &Value) -> Option<u64> {
        let of =
            |value: &Value| value.pointer("/securityContext/runAsUser").and_then(Value::as_u64);
        of(container).or_else(|| of(self.spec))
    }

    /// Names that refer to something, and containers that are closed.
    fn is_whole(self) -> Vec<String> {
        let mut problems = Vec::new();
        if let Some(selector) = self.owner.pointer("/spec/selector/matchLabels") {
            let labels = self.metadata.get("labels").and_then(Value::as_object);
            let all = selector.as_object().is_some_and(|selector| {
                selector.iter().all(|(key, value)| labels.and_then(|of| of.get(key)) == Some(value))
            });
            if !all {
                problems.push("the selector does not match the template's labels".to_owned());
            }
        }
        let has_ours = self.containers().any(|container| self.is_ours(container));
        if has_ours && self.spec.get("enableServiceLinks") != Some(&Value::Bool(false)) {
            problems.push("links to services would be settings of forebayd".to_owned());
        }
        for volume in items(self.spec, "/volumes") {
            let name = text(volume, "/name");
            let used = self.containers().any(|container| {
                items(container, "/volumeMounts").iter().any(|mount| text(mount, "/name") == name)
            });
            if !used {
                problems.push(format!("nothing mounts the volume {name}"));
            }
            let map = text(volume, "/configMap/name");
            let made = self.files.text(self.file).contains(&format!("create configmap {map} "));
            let mut names = self.documents.iter().map(|document| text(document, "/metadata/name"));
            if !map.is_empty() && !made && !names.any(|name| name == map) {
                problems.push(format!("there is no ConfigMap {map}"));
            }
        }
        let mut problems: Vec<_> =
            problems.into_iter().map(|problem| format!("{}: {problem}", self.file)).collect();
        problems.extend(self.containers().flat_map(|container| {
            let at = self.at(container);
            self.is_closed(container).into_iter().map(move |problem| format!("{at}: {problem}"))
        }));
        problems
    }

    /// What a container mounts is there, its image stays the same one, and ours has no privileges.
    fn is_closed(self, container: &'a Value) -> Vec<String> {
        let mounts = items(container, "/volumeMounts").iter().map(|mount| text(mount, "/name"));
        let missing = mounts.filter(|name| self.volume(name).is_none());
        let mut problems: Vec<_> =
            missing.map(|name| format!("there is no volume {name}")).collect();
        let (_, tag) = text(container, "/image").rsplit_once(':').unwrap_or(("", ""));
        let truth = |pointer: &str| container.pointer(pointer).and_then(Value::as_bool);
        let gains = truth("/securityContext/allowPrivilegeEscalation") != Some(false);
        let writes = truth("/securityContext/readOnlyRootFilesystem") != Some(true);
        let keeps = texts(container, "/securityContext/capabilities/drop") != ["ALL"];
        let unfiltered = text(container, "/securityContext/seccompProfile/type").is_empty();
        let is_root = self.uid(container).is_none_or(|uid| uid == 0);
        let ours = self.is_ours(container);
        let all = [
            (tag.is_empty() || tag == "latest", "its image is not pinned"),
            (text(container, "/resources/limits/memory").is_empty(), "it has no memory limit"),
            (ours && gains, "it may gain privileges"),
            (ours && writes, "it may write to its root"),
            (ours && keeps, "it keeps capabilities"),
            (ours && unfiltered, "it has no seccomp profile"),
            (ours && is_root, "it runs as root"),
        ];
        problems.extend(all.iter().filter(|(bad, _)| *bad).map(|(_, what)| (*what).to_owned()));
        problems
    }

    /// What is wrong with containers that call a daemon, and with probes that do.
    fn clients(self, daemons: &[Daemon<'a>]) -> Vec<String> {
        let mut problems = Vec::new();
        for container in self.containers().filter(|container| self.is_ours(container)) {
            let probes = ["startupProbe", "livenessProbe", "readinessProbe"];
            let probes = probes.map(|probe| texts(container, &format!("/{probe}/exec/command")));
            let command = [texts(container, "/command"), texts(container, "/args")].concat();
            let commands =
                [command].into_iter().filter(|_| !self.is_daemon(container)).chain(probes);
            let wrong = commands.filter(|command| !command.is_empty()).filter_map(not_of_the_image);
            problems.extend(wrong.map(|problem| format!("{}: {problem}", self.at(container))));
        }
        for container in self.containers() {
            let env = items(container, "/env").iter();
            let endpoint = env.clone().find(|of| text(of, "/name") == "FOREBAY_ENDPOINT");
            let needs_one = self.is_ours(container) && !self.is_daemon(container);
            match endpoint {
                Some(endpoint) => {
                    problems.extend(self.reaches(container, text(endpoint, "/value"), daemons))
                }
                None if needs_one => {
                    problems.push(format!("{}: has no FOREBAY_ENDPOINT", self.at(container)))
                }
                None => {}
            }
        }
        problems
    }

    /// Whether a container's endpoint is the socket of a daemon that takes its calls.
    fn reaches(
        self,
        container: &'a Value,
        endpoint: &str,
        daemons: &[Daemon<'a>],
    ) -> Option<String> {
        let at = self.at(container);
        let socket = Path::new(endpoint.strip_prefix("unix://").unwrap_or_default());
        let Some((mounted, volume, _)) = self.mount_of(container, socket) else {
            return Some(format!("{at}: {endpoint} is in no volume that it mounts"));
        };
        let same_place = |daemon: &&Daemon<'a>| {
            let theirs = daemon.settings.socket();
            let of_daemon = daemon.pod.mount_of(daemon.container, &theirs);
            of_daemon.is_some_and(|(at, of, _)| {
                let host = text(of, "/hostPath/path");
                let shared = std::ptr::eq(of, volume)
                    || (!host.is_empty() && host == text(volume, "/hostPath/path"));
                shared && theirs.strip_prefix(at).ok() == socket.strip_prefix(&mounted).ok()
            })
        };
        let Some(daemon) = daemons.iter().find(same_place) else {
            return Some(format!("{at}: no daemon serves {endpoint} there"));
        };
        let uid = self.uid(container);
        let allowed = uid.is_some_and(|uid| daemon.settings.allows(uid));
        (!allowed).then(|| format!("{at}: its uid {uid:?} is not in `allow_uids` of the daemon"))
    }
}

/// A container of `forebayd`, and the settings that it comes to.
struct Daemon<'a> {
    pod: Pod<'a>,
    container: &'a Value,
    settings: Resolved,
}

impl<'a> Daemon<'a> {
    fn of(pod: Pod<'a>, container: &'a Value) -> Result<Self, String> {
        let env = items(container, "/env")
            .iter()
            .map(|of| (text(of, "/name").to_owned(), text(of, "/value").to_owned()));
        let settings = Resolved::of(
            &texts(container, "/args"),
            &env.collect::<Vec<_>>(),
            &pod.config_files(container),
        );
        let settings = settings.map_err(|of| format!("{}: {of}", pod.at(container)))?;
        Ok(Self { pod, container, settings })
    }

    fn problems(&self) -> Vec<String> {
        let all =
            [self.places(), self.memory_and_time(), self.metrics(), self.probes(), self.profile()];
        let at = self.pod.at(self.container);
        all.concat().into_iter().map(|problem| format!("{at}: {problem}")).collect()
    }

    /// Its folders are mounted, and its own.
    fn places(&self) -> Vec<String> {
        let mut problems = Vec::new();
        for (what, path) in [
            ("listen", self.settings.socket_folder()),
            ("cache_dir", PathBuf::from(self.settings.get("cache_dir"))),
        ] {
            match self.pod.mount_of(self.container, &path) {
                None => problems.push(format!("{what}: {} is in no volume", path.display())),
                Some((.., false)) => {
                    problems.push(format!("{what}: {} is mounted read-only", path.display()))
                }
                // The kubelet makes it for everybody; the daemon wants a folder of its own.
                Some((at, volume, _))
                    if what == "cache_dir" && at == path && volume.get("emptyDir").is_some() =>
                {
                    let path = path.display();
                    problems
                        .push(format!("{what}: {path} is an emptyDir itself: name a folder below"));
                }
                Some(_) => {}
            }
        }
        match self.pod.uid(self.container) {
            Some(uid) if self.settings.allows(uid) => {}
            uid => problems
                .push(format!("its own uid {uid:?} is not in `allow_uids`, and probes call as it")),
        }
        problems
    }

    fn memory_and_time(&self) -> Vec<String> {
        let mut problems = Vec::new();
        let limit = bytes(text(self.container, "/resources/limits/memory")).unwrap_or(0);
        let least = self.settings.ram_bytes() + BESIDE_RAM_BYTES;
        if limit < least {
            problems.push(format!(
                "its memory limit is {limit}, and it needs {least} for `ram` and the rest"
            ));
        }
        let grace = self
            .pod
            .spec
            .get("terminationGracePeriodSeconds")
            .and_then(Value::as_u64)
            .unwrap_or(30);
        if Duration::from_secs(grace) <= self.settings.drain() {
            problems.push(format!("it is killed after {grace} s, within `drain`"));
        }
        problems
    }

    /// The port is the one of the settings, under the name that probes and scrapers use.
    fn metrics(&self) -> Vec<String> {
        let mut problems = Vec::new();
        let Some((port, outside)) = self.settings.metrics() else {
            return vec!["`metrics` is off".into()];
        };
        let ports = items(self.container, "/ports").iter();
        let named: Vec<_> = ports.filter(|of| text(of, "/name") == "metrics").collect();
        if named.first().and_then(|of| of.get("containerPort")?.as_u64()) != Some(port.into())
            || !outside
        {
            problems.push(format!(
                "`metrics` is {}, which is not its port `metrics`",
                self.settings.get("metrics")
            ));
        }
        let annotation =
            |name: &str| text(self.pod.metadata, &format!("/annotations/prometheus.io~1{name}"));
        if annotation("port") != port.to_string()
            || annotation("path") != "/metrics"
            || annotation("scrape") != "true"
        {
            problems.push("its annotations do not lead Prometheus to its metrics".into());
        }
        problems
    }

    /// All three are there, and ask for what is served.
    fn probes(&self) -> Vec<String> {
        let mut problems = Vec::new();
        for probe in ["startupProbe", "livenessProbe", "readinessProbe"] {
            let Some(of) = self.container.get(probe) else {
                problems.push(format!("has no {probe}"));
                continue;
            };
            let Some(get) = of.get("httpGet") else { continue };
            if !SERVED.contains(&text(get, "/path")) || text(get, "/port") != "metrics" {
                problems.push(format!("{probe}: nothing is served at {get}"));
            }
        }
        problems
    }

    /// A profile that lies on the node was put there by this pod.
    fn profile(&self) -> Vec<String> {
        let name = text(self.container, "/securityContext/seccompProfile/localhostProfile");
        let put = |container: &Value| {
            texts(container, "/args").iter().any(|text| text.contains(&format!("/{name}\n")))
        };
        let missing = !name.is_empty() && !items(self.pod.spec, "/initContainers").iter().any(put);
        missing.then(|| format!("no init container puts {name} on the node")).into_iter().collect()
    }
}
