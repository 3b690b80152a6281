//! The files of `docker/`, as text and as values, with what stands in them changed at will.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use saphyr::{LoadableYamlNode, Scalar, Yaml};
use serde_json::Value;

/// The folder.
pub(super) fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).with_file_name("docker")
}

/// Every file below `docker/`, by its path there.
#[derive(Debug, Clone)]
pub(super) struct Files(BTreeMap<String, String>);

impl Files {
    /// As they are.
    pub(super) fn read() -> Self {
        let (root, mut files, mut folders) = (folder(), BTreeMap::new(), vec![folder()]);
        while let Some(folder) = folders.pop() {
            let paths = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
            let (below, here): (Vec<_>, Vec<_>) = paths.partition(|path| path.is_dir());
            folders.extend(below);
            for path in here {
                let name = path.strip_prefix(&root).unwrap().to_str().unwrap().to_owned();
                files.insert(name, std::fs::read_to_string(path).unwrap());
            }
        }
        Self(files)
    }

    /// With another text in place of one that has to be there.
    pub(super) fn with(mut self, name: &str, from: &str, to: &str) -> Self {
        let text = self.0.get_mut(name).unwrap_or_else(|| panic!("there is no {name}"));
        assert!(text.contains(from), "{name} has no {from:?}");
        *text = text.replacen(from, to, 1);
        self
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    pub(super) fn text(&self, name: &str) -> &str {
        self.0.get(name).unwrap_or_else(|| panic!("there is no docker/{name}"))
    }

    pub(super) fn json(&self, name: &str) -> Value {
        serde_json::from_str(self.text(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
    }

    /// The documents of a YAML file.
    pub(super) fn yaml(&self, name: &str) -> Result<Vec<Value>, String> {
        let documents = Yaml::load_from_str(self.text(name));
        let documents = documents.map_err(|error| format!("{name}: {error}"))?;
        documents
            .into_iter()
            .map(|yaml| value(yaml).map_err(|of| format!("{name}: {of}")))
            .collect()
    }
}

fn value(yaml: Yaml<'_>) -> Result<Value, String> {
    Ok(match yaml {
        Yaml::Value(Scalar::Null) => Value::Null,
        Yaml::Value(Scalar::Boolean(truth)) => truth.into(),
        Yaml::Value(Scalar::Integer(number)) => number.into(),
        Yaml::Value(Scalar::FloatingPoint(number)) => number.into_inner().into(),
        // Readers of YAML 1.1, such as Kubernetes', take these for truth values unless they are
        // quoted. Nothing here needs them, but for compose's `restart`.
        Yaml::Value(Scalar::String(text)) if ["yes", "on", "off"].contains(&&*text) => {
            return Err(format!(
                "write something else than {text}, which some readers take for a truth value"
            ));
        }
        Yaml::Value(Scalar::String(text)) => text.into_owned().into(),
        Yaml::Sequence(items) => {
            items.into_iter().map(value).collect::<Result<Vec<_>, _>>()?.into()
        }
        Yaml::Mapping(members) => {
            let members = members.into_iter().map(|(key, of)| match value(key)? {
                Value::String(key) => Ok((key, value(of)?)),
                other => Err(format!("the key {other} is no text")),
            });
            Value::Object(members.collect::<Result<_, String>>()?)
        }
        other => return Err(format!("cannot be read: {other:?}")),
    })
}

/// The text at a path of keys; empty if there is none.
pub(super) fn text<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

/// The items at a path of keys.
pub(super) fn items<'a>(value: &'a Value, pointer: &str) -> &'a [Value] {
    value.pointer(pointer).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

/// The texts at a path of keys.
pub(super) fn texts(value: &Value, pointer: &str) -> Vec<String> {
    items(value, pointer).iter().filter_map(Value::as_str).map(str::to_owned).collect()
}
