//! Checkpoints to load: sharded bf16 safetensors as a model hub lays them out.
//!
//! A spec gives a seed and a size; the model's width, depth and vocabulary are chosen so that its
//! tensors come to that size, or less by a few per cent at most. Each tensor's bytes are made from
//! the seed and the tensor's name when they are read, so the same seed and size give the same
//! tensors however they are cut into shards, and a checkpoint of any size takes no memory. A file
//! is an eight-byte length, a JSON header padded to eight bytes, and the tensors by name.

use std::collections::BTreeMap;
use std::ops::Range;

use bytes::Bytes;
use serde_json::{Map, Value, json};

use crate::content::{Content, as_u64};
use crate::model::{Shape, TensorShape};
use crate::random::mix;

/// The smallest sum of tensor bytes that is honoured.
pub const CHECKPOINT_BYTES_MIN: u64 = 32 << 10;

/// What checkpoint to make.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CheckpointSpec {
    /// The seed of every weight.
    pub seed: u64,
    /// The sum of all tensors; [`CHECKPOINT_BYTES_MIN`] at least.
    pub bytes: u64,
    /// How many safetensors files. One is `model.safetensors`, with no index.
    pub shards: usize,
    /// Whether weights are normally distributed, with mean 0 and deviation 0.02; they take longer
    /// to make. They have a bell shape in any case.
    pub normal: bool,
}

impl CheckpointSpec {
    /// A single-file checkpoint of about `bytes` bytes.
    pub fn new(seed: u64, bytes: u64) -> Self {
        Self { seed, bytes, shards: 1, normal: false }
    }

    /// In `shards` files with an index.
    #[must_use]
    pub fn shards(mut self, shards: usize) -> Self {
        self.shards = shards;
        self
    }

    /// With normally distributed weights.
    #[must_use]
    pub fn normal(mut self) -> Self {
        self.normal = true;
        self
    }
}

/// A tensor and where it lies.
#[derive(Clone, Debug)]
pub struct Tensor {
    /// Its name, as `model.layers.0.self_attn.q_proj.weight`.
    pub name: String,
    /// Its dimensions; every element is a bf16.
    pub shape: Vec<u64>,
    /// The safetensors file it is in.
    pub file: String,
    /// Its bytes within that file.
    pub range: Range<u64>,
    /// Its bytes.
    pub content: Content,
}

/// The files of a checkpoint, and its tensors.
#[derive(Clone, Debug)]
pub struct Checkpoint {
    files: Vec<(String, Content)>,
    tensors: BTreeMap<String, Tensor>,
}

/// Makes the checkpoint that `spec` asks for.
pub fn checkpoint(spec: CheckpointSpec) -> Checkpoint {
    let shape = Shape::fitting(spec.bytes.max(CHECKPOINT_BYTES_MIN));
    let shards = split(shape.tensors(), spec.shards);
    let count = shards.len();
    let mut made = Checkpoint { files: Vec::new(), tensors: BTreeMap::new() };
    for (number, tensors) in (1usize..).zip(shards) {
        let file = match count {
            1 => "model.safetensors".to_owned(),
            _ => format!("model-{number:05}-of-{count:05}.safetensors"),
        };
        made.add_shard(spec, &file, tensors);
    }
    if count > 1 {
        let index = made.index();
        made.files.push(("model.safetensors.index.json".to_owned(), document(&index)));
    }
    made.files.push(("config.json".to_owned(), document(&shape.config())));
    made.files.push(("generation_config.json".to_owned(), document(&shape.generation_config())));
    made.files.push(("tokenizer.json".to_owned(), document(&shape.tokenizer())));
    made
}

impl Checkpoint {
    /// Every file by name: the shards first, in order.
    pub fn files(&self) -> &[(String, Content)] {
        &self.files
    }

    /// The content of a file.
    pub fn file(&self, name: &str) -> Option<&Content> {
        self.files.iter().find(|(file, _)| file == name).map(|(_, content)| content)
    }

    /// The names of the safetensors files, in order.
    pub fn shard_names(&self) -> impl Iterator<Item = &str> {
        let names = self.files.iter().map(|(name, _)| name.as_str());
        names.filter(|name| name.ends_with(".safetensors"))
    }

    /// Every tensor, by name.
    pub fn tensors(&self) -> impl Iterator<Item = &Tensor> {
        self.tensors.values()
    }

    /// A tensor.
    pub fn tensor(&self, name: &str) -> Option<&Tensor> {
        self.tensors.get(name)
    }

    /// The bytes of a tensor, copied out.
    pub fn tensor_bytes(&self, name: &str) -> Option<Bytes> {
        self.tensor(name).map(|tensor| tensor.content.to_bytes())
    }

    /// The bytes of all files.
    pub fn bytes(&self) -> u64 {
        self.files.iter().map(|(_, content)| content.len()).sum()
    }

    fn add_shard(&mut self, spec: CheckpointSpec, file: &str, mut tensors: Vec<TensorShape>) {
        tensors.sort_by(|a, b| a.name.cmp(&b.name));
        let header = header(&tensors);
        let mut at = as_u64(header.len());
        let mut parts = vec![Content::bytes(header)];
        for TensorShape { name, shape } in tensors {
            let bytes = 2 * shape.iter().product::<u64>();
            let seed = tensor_seed(spec.seed, &name);
            let content = match spec.normal {
                true => Content::Normal { seed, bytes },
                false => Content::Weights { seed, bytes },
            };
            parts.push(content.clone());
            let range = at..at + bytes;
            at = range.end;
            let tensor =
                Tensor { name: name.clone(), shape, file: file.to_owned(), range, content };
            self.tensors.insert(name, tensor);
        }
        self.files.push((file.to_owned(), Content::concat(parts)));
    }

    fn index(&self) -> Value {
        let total: u64 = self.tensors().map(|tensor| tensor.content.len()).sum();
        let files: Map<String, Value> =
            self.tensors().map(|tensor| (tensor.name.clone(), json!(tensor.file))).collect();
        json!({ "metadata": { "total_size": total }, "weight_map": files })
    }
}

impl IntoIterator for Checkpoint {
    type Item = (String, Content);
    type IntoIter = std::vec::IntoIter<Self::Item>;

    fn into_iter(self) -> Self::IntoIter {
        self.files.into_iter()
    }
}

/// Cuts the tensors, in order, into at most `shards` runs of about the same size, none empty.
fn split(tensors: Vec<TensorShape>, shards: usize) -> Vec<Vec<TensorShape>> {
    let shards = shards.clamp(1, tensors.len());
    let total: u64 = tensors.iter().map(TensorShape::elements).sum();
    let count = tensors.len();
    let mut runs = vec![Vec::new()];
    let mut elements = 0;
    for (index, tensor) in tensors.into_iter().enumerate() {
        let full = elements * as_u64(shards) >= total * as_u64(runs.len());
        let must = count - index <= shards - runs.len();
        let current_empty = runs.last().is_some_and(Vec::is_empty);
        if (full || must) && !current_empty && runs.len() < shards {
            runs.push(Vec::new());
        }
        elements += tensor.elements();
        runs.last_mut().into_iter().for_each(|run| run.push(tensor.clone()));
    }
    runs
}

fn tensor_seed(seed: u64, name: &str) -> u64 {
    name.bytes().fold(mix(seed), |state, byte| mix(state ^ u64::from(byte)))
}

/// The length and the JSON header of a safetensors file.
fn header(tensors: &[TensorShape]) -> Vec<u8> {
    let mut entries = Map::new();
    entries.insert("__metadata__".to_owned(), json!({ "format": "pt" }));
    let mut at = 0;
    for tensor in tensors {
        let end = at + 2 * tensor.elements();
        let entry = json!({ "dtype": "BF16", "shape": tensor.shape, "data_offsets": [at, end] });
        entries.insert(tensor.name.clone(), entry);
        at = end;
    }
    let mut json = Value::Object(entries).to_string().into_bytes();
    json.resize(json.len().next_multiple_of(8), b' ');
    let mut out = as_u64(json.len()).to_le_bytes().to_vec();
    out.append(&mut json);
    out
}

fn document(value: &Value) -> Content {
    Content::bytes(format!("{value:#}\n"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::content::{as_usize, sha256};

    fn read_header(content: &Content) -> (u64, Map<String, Value>) {
        let mut length = [0; 8];
        content.read_at(0, &mut length);
        let length = u64::from_le_bytes(length);
        let json = serde_json::from_slice(&content.slice(8..8 + length)).unwrap();
        (8 + length, json)
    }

    #[test]
    fn every_shard_is_a_well_formed_safetensors_file() {
        let made = checkpoint(CheckpointSpec::new(1, 3 << 20).shards(4));
        assert_eq!(made.shard_names().count(), 4);
        let mut seen = 0;
        for name in made.shard_names() {
            let content = made.file(name).unwrap();
            let (start, header) = read_header(content);
            assert_eq!(start % 8, 0);
            let mut end = 0;
            for (tensor, entry) in header.iter().filter(|(name, _)| *name != "__metadata__") {
                let offsets: Vec<u64> =
                    serde_json::from_value(entry["data_offsets"].clone()).unwrap();
                let shape: Vec<u64> = serde_json::from_value(entry["shape"].clone()).unwrap();
                assert_eq!(offsets[1] - offsets[0], 2 * shape.iter().product::<u64>());
                let bytes = content.slice(start + offsets[0]..start + offsets[1]);
                assert_eq!(bytes, made.tensor_bytes(tensor).unwrap(), "{tensor}");
                assert_eq!(made.tensor(tensor).unwrap().file, name);
                end = end.max(offsets[1]);
                seen += 1;
            }
            assert_eq!(start + end, content.len(), "no gap at the end of {name}");
        }
        assert_eq!(seen, made.tensors().count());
    }

    #[test]
    fn the_index_places_every_tensor() {
        let made = checkpoint(CheckpointSpec::new(1, 1 << 20).shards(3));
        let index = made.file("model.safetensors.index.json").unwrap().to_bytes();
        let index: Value = serde_json::from_slice(&index).unwrap();
        let map = index["weight_map"].as_object().unwrap();
        assert_eq!(map.len(), made.tensors().count());
        assert!(made.tensors().all(|tensor| map[&tensor.name] == tensor.file.as_str()));
        let total: u64 = made.tensors().map(|tensor| tensor.content.len()).sum();
        assert_eq!(index["metadata"]["total_size"], total);
    }

    #[test]
    fn the_size_is_the_one_asked_for() {
        for bytes in [CHECKPOINT_BYTES_MIN, 1 << 20, 100_000_000, 5 << 30, 140 << 30] {
            let made = checkpoint(CheckpointSpec::new(0, bytes).shards(5));
            let total: u64 = made.tensors().map(|tensor| tensor.content.len()).sum();
            assert!(total <= bytes && bytes - total <= bytes / 20, "{total} of {bytes}");
            let shards: Vec<u64> =
                made.shard_names().map(|name| made.file(name).unwrap().len()).collect();
            assert_eq!(shards.len(), 5);
            if bytes > 1 << 20 {
                let even = bytes / 5;
                assert!(shards.iter().all(|shard| *shard < 2 * even), "{shards:?}");
            }
        }
    }

    #[test]
    fn tensors_do_not_depend_on_the_sharding_but_on_the_seed() {
        let one = checkpoint(CheckpointSpec::new(7, 1 << 20));
        let many = checkpoint(CheckpointSpec::new(7, 1 << 20).shards(6));
        let other = checkpoint(CheckpointSpec::new(8, 1 << 20));
        assert_eq!(one.shard_names().collect::<Vec<_>>(), ["model.safetensors"]);
        assert!(one.file("model.safetensors.index.json").is_none());
        let mut digests = std::collections::BTreeSet::new();
        for tensor in one.tensors() {
            let digest = sha256(&tensor.content);
            assert_eq!(digest, sha256(&many.tensor(&tensor.name).unwrap().content));
            assert_ne!(digest, sha256(&other.tensor(&tensor.name).unwrap().content));
            digests.insert(digest);
        }
        assert_eq!(digests.len(), one.tensors().count(), "no two tensors are alike");
    }

    #[test]
    fn the_configuration_agrees_with_the_tensors() {
        let made = checkpoint(CheckpointSpec::new(7, 8 << 20));
        let config = made.file("config.json").unwrap().to_bytes();
        let config: Value = serde_json::from_slice(&config).unwrap();
        let embedding = made.tensor("model.embed_tokens.weight").unwrap();
        assert_eq!(config["vocab_size"], embedding.shape[0]);
        assert_eq!(config["hidden_size"], embedding.shape[1]);
        let last = config["num_hidden_layers"].as_u64().unwrap() - 1;
        assert!(made.tensor(&format!("model.layers.{last}.mlp.up_proj.weight")).is_some());
        let tokenizer = made.file("tokenizer.json").unwrap();
        let bytes = tokenizer.to_bytes();
        assert!(as_usize(tokenizer.len()) == bytes.len());
        let tokenizer: Value = serde_json::from_slice(&bytes).unwrap();
        let vocabulary = tokenizer["model"]["vocab"].as_object().unwrap();
        assert_eq!(config["vocab_size"], vocabulary.len());
    }
}
