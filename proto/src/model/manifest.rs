//! What a checkpoint holds: objects, and the tensors found in them.
//!
//! Pages arrive one after the other into a [`ManifestBuilder`], which never holds more than the
//! counts announced before; [`ManifestBuilder::finish`] checks what only the whole can show (every
//! tensor lies in its object) and gives the immutable [`Manifest`].

use std::fmt;
use std::ops::Range;

use super::Malformed;
use crate::pb;

const MESSAGE: &str = "ManifestPage";

/// Position of an object in its manifest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectIndex(pub usize);

impl fmt::Display for ObjectIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// One object of a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectEntry {
    /// Key relative to the checkpoint's URI; whatever the store allows, `..` included.
    pub key: String,
    /// Size of the object.
    pub bytes: u64,
    /// The store's entity tag.
    pub etag: Option<String>,
    /// The store's version.
    pub version: Option<String>,
    /// How much of it the RAM tier holds; only `stat` says so.
    pub cached_ram_bytes: u64,
    /// How much of it the NVMe tier holds; only `stat` says so.
    pub cached_nvme_bytes: u64,
}

/// One tensor, found in the header of its object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorEntry {
    /// Its name.
    pub name: String,
    /// Element type as the header writes it: `BF16`, `F32`, ...
    pub dtype: String,
    /// Dimensions, outermost first.
    pub shape: Vec<u64>,
    /// The object that holds it.
    pub object: ObjectIndex,
    /// Where in the object.
    pub range: Range<u64>,
}

impl TensorEntry {
    /// Size of its data.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.range.end - self.range.start
    }

    fn receive(tensor: pb::Tensor) -> Result<Self, Malformed> {
        let pb::Tensor { name, dtype, shape, object_index, offset, bytes } = tensor;
        let end = offset
            .checked_add(bytes)
            .ok_or_else(|| Malformed::new(MESSAGE, format!("tensor {name:?} ends past 2^64")))?;
        let object = usize::try_from(object_index).map_err(|_| {
            Malformed::new(MESSAGE, format!("tensor {name:?} lies in object {object_index}"))
        })?;
        Ok(Self { name, dtype, shape, object: ObjectIndex(object), range: offset..end })
    }
}

/// The objects and tensors of one revision.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Manifest {
    objects: Vec<ObjectEntry>,
    tensors: Vec<TensorEntry>,
}

impl Manifest {
    /// Starts to receive a manifest of so many objects and tensors.
    #[must_use]
    pub fn builder(object_count: u64, tensor_count: u64) -> ManifestBuilder {
        ManifestBuilder { object_count, tensor_count, last: false, manifest: Self::default() }
    }

    /// All objects; an [`ObjectIndex`] is a position in here.
    #[must_use]
    pub fn objects(&self) -> &[ObjectEntry] {
        &self.objects
    }

    /// All tensors.
    #[must_use]
    pub fn tensors(&self) -> &[TensorEntry] {
        &self.tensors
    }

    /// The object at this position.
    #[must_use]
    pub fn object(&self, index: ObjectIndex) -> Option<&ObjectEntry> {
        self.objects.get(index.0)
    }
}

/// A manifest of which not every page has come.
#[derive(Debug)]
pub struct ManifestBuilder {
    object_count: u64,
    tensor_count: u64,
    last: bool,
    manifest: Manifest,
}

impl ManifestBuilder {
    /// Takes the next page; true when it was the last.
    pub fn push(&mut self, page: pb::ManifestPage) -> Result<bool, Malformed> {
        if self.last {
            return Err(Malformed::new(MESSAGE, "a page follows the last one"));
        }
        self.last = page.last;
        for object in page.objects {
            self.manifest.objects.push(receive_object(object)?);
        }
        for tensor in page.tensors {
            self.manifest.tensors.push(TensorEntry::receive(tensor)?);
        }
        let (objects, tensors) = self.counts();
        if objects > self.object_count || tensors > self.tensor_count {
            return Err(self.miscounted());
        }
        Ok(self.last)
    }

    /// The whole manifest, once the last page has come.
    pub fn finish(self) -> Result<Manifest, Malformed> {
        if !self.last || self.counts() != (self.object_count, self.tensor_count) {
            return Err(self.miscounted());
        }
        for tensor in &self.manifest.tensors {
            let fits = self
                .manifest
                .object(tensor.object)
                .is_some_and(|object| tensor.range.end <= object.bytes);
            if !fits {
                let what = format!("tensor {:?} does not lie in its object", tensor.name);
                return Err(Malformed::new(MESSAGE, what));
            }
        }
        Ok(self.manifest)
    }

    fn counts(&self) -> (u64, u64) {
        (self.manifest.objects.len() as u64, self.manifest.tensors.len() as u64)
    }

    fn miscounted(&self) -> Malformed {
        let (objects, tensors) = self.counts();
        Malformed::new(
            MESSAGE,
            format!(
                "{objects} objects and {tensors} tensors came, {} and {} were announced",
                self.object_count, self.tensor_count
            ),
        )
    }
}

fn receive_object(object: pb::Object) -> Result<ObjectEntry, Malformed> {
    let pb::Object { key, bytes, etag, version, cached_ram_bytes, cached_nvme_bytes } = object;
    if key.is_empty() || key.contains('\0') {
        return Err(Malformed::new(MESSAGE, format!("object key {key:?}")));
    }
    let given = |text: String| Some(text).filter(|text| !text.is_empty());
    Ok(ObjectEntry {
        key,
        bytes,
        etag: given(etag),
        version: given(version),
        cached_ram_bytes,
        cached_nvme_bytes,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(key: &str, bytes: u64) -> pb::Object {
        pb::Object { key: key.into(), bytes, ..Default::default() }
    }

    fn tensor(object_index: u64, offset: u64, bytes: u64) -> pb::Tensor {
        pb::Tensor { name: "w".into(), object_index, offset, bytes, ..Default::default() }
    }

    fn page(objects: Vec<pb::Object>, tensors: Vec<pb::Tensor>, last: bool) -> pb::ManifestPage {
        pb::ManifestPage { objects, tensors, last }
    }

    #[test]
    fn pages_join_and_a_tensor_may_precede_its_object() {
        let mut builder = Manifest::builder(2, 1);
        let first = page(vec![object("a", 4)], vec![tensor(1, 8, 2)], false);
        assert!(!builder.push(first).unwrap());
        assert!(builder.push(page(vec![object("b", 10)], vec![], true)).unwrap());
        let manifest = builder.finish().unwrap();
        assert_eq!(manifest.tensors()[0].range, 8..10);
        assert_eq!(manifest.object(ObjectIndex(1)).unwrap().key, "b");
        assert_eq!(manifest.object(ObjectIndex(2)), None);
    }

    #[test]
    fn counts_must_agree() {
        let mut builder = Manifest::builder(1, 0);
        builder.push(page(vec![object("a", 0), object("b", 0)], vec![], true)).unwrap_err();
        let mut builder = Manifest::builder(2, 0);
        builder.push(page(vec![object("a", 0)], vec![], true)).unwrap();
        builder.finish().unwrap_err();
        let mut builder = Manifest::builder(1, 0);
        builder.push(page(vec![object("a", 0)], vec![], false)).unwrap();
        builder.finish().unwrap_err();
        let mut builder = Manifest::builder(0, 0);
        builder.push(page(vec![], vec![], true)).unwrap();
        builder.push(page(vec![], vec![], true)).unwrap_err();
    }

    #[test]
    fn a_tensor_lies_in_its_object() {
        for bad in [tensor(0, 3, 2), tensor(1, 0, 1), tensor(0, 5, 0)] {
            let mut builder = Manifest::builder(1, 1);
            builder.push(page(vec![object("a", 4)], vec![bad], true)).unwrap();
            builder.finish().unwrap_err();
        }
        let mut builder = Manifest::builder(1, 1);
        builder.push(page(vec![object("a", 4)], vec![tensor(0, u64::MAX, 2)], true)).unwrap_err();
    }

    #[test]
    fn a_key_is_some_text_without_nul() {
        for bad in ["", "a\0b"] {
            Manifest::builder(1, 0).push(page(vec![object(bad, 0)], vec![], true)).unwrap_err();
        }
    }
}
