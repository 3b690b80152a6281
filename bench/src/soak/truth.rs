//! What clients should get, as files that every process can read.
//!
//! The bytes of every object lie in a file, written once before the first load; an object that
//! changes has a file for each of its versions. A client reads there what it compares with, so that
//! it knows of a piece at once whether it is right, also when the load fails later, and the kernel
//! keeps one copy for all of them.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use forebay_testkit::{Content, write_content};
use serde_json::{Value, json};

use crate::Outcome;

const PLAN: &str = "plan.json";

/// What becomes of a checkpoint while the soak runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Group {
    /// Nothing: it is fetched before anything else, and a hit ever after.
    Warm,
    /// It is evicted again and again, and fetched through faults.
    Cold,
    /// It is replaced by another version again and again.
    Changing,
}

impl Group {
    const ALL: [Self; 3] = [Self::Warm, Self::Cold, Self::Changing];

    fn name(self) -> &'static str {
        match self {
            Self::Warm => "warm",
            Self::Cold => "cold",
            Self::Changing => "changing",
        }
    }
}

/// One checkpoint, and what its objects hold.
#[derive(Debug)]
pub(super) struct Known {
    pub(super) uri: String,
    pub(super) group: Group,
    /// By key: the versions that it may have.
    objects: BTreeMap<String, Vec<File>>,
}

/// Writes what objects hold, checkpoint by checkpoint.
#[derive(Debug)]
pub(super) struct Writer {
    dir: PathBuf,
    checkpoints: Vec<Value>,
    files: usize,
}

impl Writer {
    pub(super) fn new(dir: &Path) -> Self {
        Self { dir: dir.to_owned(), checkpoints: Vec::new(), files: 0 }
    }

    /// Adds a checkpoint with its objects, each in its versions.
    pub(super) fn add<'a>(
        &mut self,
        uri: &str,
        group: Group,
        objects: impl IntoIterator<Item = (&'a str, Vec<Content>)>,
    ) -> Outcome<()> {
        let mut named = serde_json::Map::new();
        for (key, versions) in objects {
            let mut files = Vec::new();
            for content in versions {
                let name = self.files.to_string();
                write_content(&self.dir.join(&name), &content)?;
                self.files += 1;
                files.push(name);
            }
            named.insert(key.to_owned(), json!(files));
        }
        self.checkpoints.push(json!({ "uri": uri, "group": group.name(), "objects": named }));
        Ok(())
    }

    /// Writes the list of them all.
    pub(super) fn finish(self) -> Outcome<()> {
        let plan = Value::Array(self.checkpoints).to_string();
        Ok(std::fs::write(self.dir.join(PLAN), plan)?)
    }
}

/// Reads what a [`Writer`] wrote.
pub(super) fn read(dir: &Path) -> Outcome<Vec<Known>> {
    let plan: Value = serde_json::from_slice(&std::fs::read(dir.join(PLAN))?)?;
    let checkpoints = plan.as_array().ok_or("the plan is no list")?;
    checkpoints.iter().map(|one| Known::read(dir, one)).collect()
}

impl Known {
    fn read(dir: &Path, value: &Value) -> Outcome<Self> {
        let odd = || format!("the plan has {value}");
        let name = value["group"].as_str().ok_or_else(odd)?;
        let group = Group::ALL.into_iter().find(|group| group.name() == name).ok_or_else(odd)?;
        let mut objects = BTreeMap::new();
        for (key, files) in value["objects"].as_object().ok_or_else(odd)? {
            let names = files.as_array().ok_or_else(odd)?.iter();
            let open = |name: &Value| Ok(File::open(dir.join(name.as_str().ok_or_else(odd)?))?);
            objects.insert(key.clone(), names.map(open).collect::<Outcome<_>>()?);
        }
        Ok(Self { uri: value["uri"].as_str().ok_or_else(odd)?.to_owned(), group, objects })
    }

    /// Its objects, each with all versions open.
    pub(super) fn judge(&self) -> Judge<'_> {
        let versions = |files: &Vec<File>| (0..files.len()).collect();
        let seen = self.objects.iter().map(|(key, files)| (key.as_str(), (versions(files), 0)));
        Judge { known: self, seen: seen.collect() }
    }
}

/// Judges the bytes of one load.
#[derive(Debug)]
pub(super) struct Judge<'a> {
    known: &'a Known,
    /// By key: the versions that it can still be, and the bytes seen.
    seen: BTreeMap<&'a str, (Vec<usize>, u64)>,
}

impl Judge<'_> {
    /// Looks at bytes of an object. Those of one load are all of one version.
    ///
    /// # Errors
    /// Says what is wrong with them.
    pub(super) fn see(&mut self, key: &str, offset: u64, bytes: &[u8]) -> Result<(), String> {
        let uri = &self.known.uri;
        let files = self.known.objects.get(key).ok_or_else(|| format!("{uri} has no {key:?}"))?;
        let mut truth = vec![0; bytes.len()];
        let (versions, seen) = self.seen.get_mut(key).ok_or("an object without versions")?;
        versions.retain(|version| {
            let file = files.get(*version);
            file.is_some_and(|file| file.read_exact_at(&mut truth, offset).is_ok())
                && truth == bytes
        });
        *seen += bytes.len() as u64;
        match versions.is_empty() {
            true => Err(format!("{} wrong bytes at {offset} of {key:?} of {uri}", bytes.len())),
            false => Ok(()),
        }
    }

    /// Looks again at bytes that were right before.
    ///
    /// # Errors
    /// As for [`see`](Self::see).
    pub(super) fn see_again(&mut self, key: &str, offset: u64, bytes: &[u8]) -> Result<(), String> {
        let seen = self.seen.get(key).map_or(0, |(_, seen)| *seen);
        let again = self.see(key, offset, bytes);
        if let Some((_, now)) = self.seen.get_mut(key) {
            *now = seen;
        }
        again.map_err(|wrong| format!("{wrong}, which were right while it was lent"))
    }

    /// The load has ended well: nothing is missing.
    ///
    /// # Errors
    /// Says what is.
    pub(super) fn complete(&self) -> Result<(), String> {
        for (key, (versions, seen)) in &self.seen {
            let files = self.known.objects.get(*key).map_or(&[][..], Vec::as_slice);
            let file = versions.first().and_then(|version| files.get(*version));
            let bytes = file.and_then(|file| file.metadata().ok()).map(|found| found.len());
            if bytes != Some(*seen) {
                return Err(format!("{seen} bytes of {key:?} of {} came", self.known.uri));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use forebay_testkit::temp_dir;

    #[test]
    fn the_bytes_of_a_load_are_of_one_version_and_complete() {
        let dir = temp_dir();
        let mut writer = Writer::new(dir.path());
        let versions = [1, 2].map(|seed| Content::synthetic(seed, 100));
        writer.add("s3://m/x", Group::Changing, [("x", versions.to_vec())]).unwrap();
        writer.finish().unwrap();
        let known = read(dir.path()).unwrap();
        assert_eq!((known[0].uri.as_str(), known[0].group), ("s3://m/x", Group::Changing));
        let [one, other] = versions.map(|content| content.to_bytes());

        let mut judge = known[0].judge();
        judge.see("x", 50, &other[50..]).unwrap();
        judge.complete().unwrap_err();
        judge.see("x", 0, &other[..50]).unwrap();
        judge.see_again("x", 0, &other[..50]).unwrap();
        judge.complete().unwrap();
        judge.see_again("x", 0, &one[..50]).unwrap_err();

        let mut judge = known[0].judge();
        judge.see("x", 0, &one[..50]).unwrap();
        let mixed = judge.see("x", 50, &other[50..]).unwrap_err();
        assert!(mixed.contains("50 wrong bytes at 50"), "{mixed}");
        known[0].judge().see("y", 0, b"").unwrap_err();
        known[0].judge().see("x", 99, &one[98..]).unwrap_err();
    }
}
