//! What has to be done for each object: decided from what the source has, what lies at the
//! destination, and what earlier packs wrote there. No clock, no I/O.
//!
//! An object is kept as it is if it was packed with the same parameters from the same version, and
//! what is stored of it is still what was written. A name that is in the way is written over only
//! if a pack of the same source had it.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::SystemTime;

use forebay_codec::manifest::{
    CODED_SUFFIX, MANIFEST_NAME, PackManifest, PackedObject, PackedSource,
};
use forebay_origin::ObjectMeta;

use super::PackError;
use super::journal::{Entry, FOLDER};
use super::place::{facts, is_same};

/// How objects are packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Parameters {
    /// Plain bytes of a frame.
    pub(super) frame_bytes: u64,
    /// zstd's level.
    pub(super) level: i32,
}

impl Parameters {
    fn are_of(self, manifest: &PackManifest) -> bool {
        self == Self { frame_bytes: manifest.frame_bytes, level: manifest.level }
    }
}

/// What is known of a destination.
#[derive(Debug, Default)]
pub(super) struct Known {
    /// What lies there, by name.
    pub(super) listed: BTreeMap<String, ObjectMeta>,
    /// The manifest that is there.
    pub(super) manifest: Option<PackManifest>,
    /// Objects that an unfinished pack had done, by their names.
    pub(super) entries: HashMap<String, Entry>,
    /// Names that an unfinished pack was to write.
    pub(super) claimed: HashSet<String>,
}

/// An object of the source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Wanted {
    /// What it is called.
    pub(super) name: String,
    /// Its version.
    pub(super) source: PackedSource,
}

/// What comes of an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Decision {
    /// It is there.
    Keep(Box<PackedObject>),
    /// It has to be written; compressed only if it may be.
    Write {
        /// Whether its compressed form has a name that nothing else has.
        may_be_coded: bool,
    },
}

/// What comes of each object of a source, in order.
pub(super) fn decide(
    wanted: &[Wanted],
    known: &Known,
    parameters: Parameters,
) -> Result<Vec<Decision>, PackError> {
    let names: HashSet<&str> = wanted.iter().map(|wanted| wanted.name.as_str()).collect();
    let stored = known.stored_names();
    let old: HashMap<&str, &PackedObject> = known
        .manifest
        .iter()
        .filter(|manifest| parameters.are_of(manifest))
        .flat_map(|manifest| &manifest.objects)
        .map(|packed| (packed.name.as_str(), packed))
        .collect();
    let decide = |wanted: &Wanted| {
        let finished = || known.finished(old.get(wanted.name.as_str()).copied(), wanted);
        if let Some(packed) = known.entered(wanted, parameters).or_else(finished) {
            return Ok(Decision::Keep(Box::new(packed.clone())));
        }
        let coded = format!("{}{CODED_SUFFIX}", wanted.name);
        let may_be_coded = wanted.source.bytes > 0
            && !wanted.name.ends_with(CODED_SUFFIX)
            && !names.contains(coded.as_str());
        for name in [Some(&wanted.name), Some(&coded).filter(|_| may_be_coded)] {
            let Some(name) = name.filter(|name| known.listed.contains_key(*name)) else { continue };
            if !stored.contains(name.as_str()) && !known.claimed.contains(&wanted.name) {
                return Err(PackError::InTheWay { name: name.clone() });
            }
        }
        Ok(Decision::Write { may_be_coded })
    };
    wanted.iter().map(decide).collect()
}

impl Known {
    /// What packs of the same source have stored here.
    pub(super) fn stored_names(&self) -> HashSet<&str> {
        let of_manifest = self.manifest.iter().flat_map(|manifest| &manifest.objects);
        let of_entries = self.entries.values().filter_map(Entry::object);
        of_manifest.chain(of_entries).map(|packed| packed.stored_name.as_str()).collect()
    }

    /// The object, if an unfinished pack had done it.
    fn entered(&self, wanted: &Wanted, parameters: Parameters) -> Option<&PackedObject> {
        let entry = self.entries.get(&wanted.name)?;
        let packed = entry.object()?;
        let stored = self.listed.get(&packed.stored_name)?;
        let is_there = is_same(&entry.stored, &facts(&stored.pin, stored.bytes))
            && packed.stored_bytes == stored.bytes;
        let is_wanted = parameters.are_of(&entry.manifest)
            && packed.name == wanted.name
            && is_same(&packed.source, &wanted.source);
        (is_there && is_wanted).then_some(packed)
    }

    /// The object, if a finished pack has it, and nothing was written over it since.
    fn finished<'a>(
        &self,
        packed: Option<&'a PackedObject>,
        wanted: &Wanted,
    ) -> Option<&'a PackedObject> {
        let packed = packed?;
        let stored = self.listed.get(&packed.stored_name)?;
        let sealed: Option<SystemTime> = self.listed.get(MANIFEST_NAME)?.pin.last_modified;
        let untouched = match (stored.pin.last_modified, sealed) {
            (Some(stored), Some(sealed)) => stored <= sealed,
            _ => true,
        };
        let is_there = stored.bytes == packed.stored_bytes && untouched;
        (is_there && is_same(&packed.source, &wanted.source)).then_some(packed)
    }

    /// What packs of the same source have left here and `manifest` does not need: removed once that
    /// is in place.
    pub(super) fn leftovers(&self, manifest: &PackManifest) -> Vec<String> {
        let needed: HashSet<&str> =
            manifest.objects.iter().map(|packed| packed.stored_name.as_str()).collect();
        let stored = self.stored_names();
        let is_left = |name: &&String| {
            let own = name.starts_with(FOLDER) || stored.contains(name.as_str());
            own && !needed.contains(name.as_str())
        };
        self.listed.keys().filter(is_left).cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use forebay_codec::manifest::{FORMAT, PackedFrame};
    use forebay_origin::{Checksums, ObjectKey, Pin};

    use super::*;

    const PARAMETERS: Parameters = Parameters { frame_bytes: 64 << 10, level: 1 };

    fn wanted(name: &str, etag: &str) -> Wanted {
        let pin = Pin { etag: Some(etag.into()), ..Pin::default() };
        Wanted { name: name.into(), source: facts(&pin, 10) }
    }

    fn packed(name: &str, etag: &str, coded: bool) -> PackedObject {
        PackedObject {
            name: name.into(),
            bytes: 10,
            stored_name: format!("{name}{}", if coded { ".zst" } else { "" }),
            stored_bytes: if coded { 5 + 25 } else { 10 },
            coded,
            blake3: [1; 32],
            sha256: [2; 32],
            frames: vec![PackedFrame { stored_bytes: if coded { 5 } else { 10 }, blake3: [1; 32] }],
            planes: Vec::new(),
            tile: 0,
            tensors: None,
            source: wanted(name, etag).source,
        }
    }

    fn manifest(objects: Vec<PackedObject>) -> PackManifest {
        let Parameters { frame_bytes, level } = PARAMETERS;
        PackManifest { format: FORMAT, frame_bytes, level, source: None, objects }
    }

    fn meta(name: &str, bytes: u64, etag: &str, second: u64) -> (String, ObjectMeta) {
        let at = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(second);
        let pin = Pin { etag: Some(etag.into()), version: None, last_modified: Some(at) };
        let key = ObjectKey::parse(name).unwrap();
        (name.into(), ObjectMeta { key, bytes, pin, checksums: Checksums::default() })
    }

    fn entry(object: PackedObject, stored: &ObjectMeta) -> (String, Entry) {
        let stored = facts(&stored.pin, stored.bytes);
        (object.name.clone(), Entry { stored, manifest: manifest(vec![object]) })
    }

    const WRITE: Decision = Decision::Write { may_be_coded: true };

    fn one(known: &Known, wanted: Wanted) -> Decision {
        decide(&[wanted], known, PARAMETERS).unwrap().remove(0)
    }

    #[test]
    fn what_an_entry_proves_is_kept_and_nothing_else() {
        let stored = meta("a.zst", 30, "\"s\"", 5);
        let mut known = Known::default();
        known.entries.extend([entry(packed("a", "\"e\"", true), &stored.1)]);
        known.claimed.insert("a".into());
        assert_eq!(one(&known, wanted("a", "\"e\"")), WRITE, "it is not there");
        known.listed.extend([stored]);
        let kept = Decision::Keep(Box::new(packed("a", "\"e\"", true)));
        assert_eq!(one(&known, wanted("a", "\"e\"")), kept);
        assert_eq!(one(&known, wanted("a", "\"f\"")), WRITE, "another version");
        let other = Parameters { level: 3, ..PARAMETERS };
        assert_eq!(decide(&[wanted("a", "\"e\"")], &known, other).unwrap(), [WRITE]);
        known.listed.extend([meta("a.zst", 30, "\"t\"", 5)]);
        assert_eq!(one(&known, wanted("a", "\"e\"")), WRITE, "it was written over");
    }

    #[test]
    fn a_finished_pack_is_kept_unless_it_was_touched() {
        let old = Some(manifest(vec![packed("a", "\"e\"", false)]));
        let mut known = Known { manifest: old, ..Known::default() };
        known.listed.extend([meta("a", 10, "\"s\"", 5), meta(MANIFEST_NAME, 99, "\"m\"", 6)]);
        let kept = Decision::Keep(Box::new(packed("a", "\"e\"", false)));
        assert_eq!(one(&known, wanted("a", "\"e\"")), kept);
        known.listed.extend([meta("a", 10, "\"s\"", 7)]);
        assert_eq!(one(&known, wanted("a", "\"e\"")), WRITE, "younger than the manifest");
        known.listed.extend([meta("a", 11, "\"s\"", 5)]);
        assert_eq!(one(&known, wanted("a", "\"e\"")), WRITE, "another size");
        let new = manifest(vec![packed("b", "\"e\"", false)]);
        assert_eq!(known.leftovers(&new), ["a"]);
    }

    #[test]
    fn foreign_names_are_in_the_way_of_both_forms() {
        for name in ["a", "a.zst"] {
            let mut known = Known::default();
            known.listed.extend([meta(name, 10, "\"s\"", 5), meta("other", 1, "\"o\"", 5)]);
            let refused = decide(&[wanted("a", "\"e\"")], &known, PARAMETERS).unwrap_err();
            assert!(matches!(refused, PackError::InTheWay { name: way } if way == name));
            known.claimed.insert("a".into());
            assert_eq!(one(&known, wanted("a", "\"e\"")), WRITE, "an unfinished pack had it");
            assert!(known.leftovers(&manifest(Vec::new())).is_empty(), "nothing foreign goes");
        }
    }

    #[test]
    fn a_compressed_form_never_takes_the_name_of_another_object() {
        let source = [wanted("a", "\"e\""), wanted("a.zst", "\"f\""), wanted("b", "\"g\"")];
        let decided = decide(&source, &Known::default(), PARAMETERS).unwrap();
        let coded = |may_be_coded| Decision::Write { may_be_coded };
        assert_eq!(decided, [coded(false), coded(false), coded(true)]);
        let mut empty = wanted("c", "\"h\"");
        empty.source.bytes = 0;
        assert_eq!(one(&Known::default(), empty), coded(false));
    }
}
