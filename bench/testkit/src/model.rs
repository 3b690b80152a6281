//! The architecture of a made-up model: a Llama whose tensors come to a given size.
//!
//! The width is the greatest power of two that leaves the model reasonably deep; most of the rest
//! of the bytes go into layers, and the vocabulary takes what is left over.

use serde_json::{Map, Value, json};

/// The name and dimensions of a tensor.
#[derive(Clone, Debug)]
pub(crate) struct TensorShape {
    pub(crate) name: String,
    pub(crate) shape: Vec<u64>,
}

impl TensorShape {
    pub(crate) fn elements(&self) -> u64 {
        self.shape.iter().product()
    }
}

/// The dimensions of a model.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    hidden: u64,
    intermediate: u64,
    layers: u64,
    vocabulary: u64,
}

const WIDTHS: [u64; 10] = [8192, 4096, 2048, 1024, 512, 256, 128, 64, 32, 16];
/// More rows than any tokenizer needs go into another layer instead.
const VOCABULARY_MAX: u64 = 128_256;

impl Shape {
    /// The model whose bf16 tensors come to at most `bytes`, and nearly to them.
    pub(crate) fn fitting(bytes: u64) -> Self {
        let elements = bytes / 2;
        let deep_enough = |hidden: &u64| Self::layers_within(*hidden, elements) >= 2 + hidden / 128;
        let hidden = WIDTHS.into_iter().find(deep_enough).unwrap_or(16);
        let layers = Self::layers_within(hidden, elements).max(1);
        let used = layers * layer_elements(hidden) + hidden;
        let rows = elements.saturating_sub(used) / (2 * hidden);
        let vocabulary = rows.min(VOCABULARY_MAX);
        Self { hidden, intermediate: intermediate(hidden), layers, vocabulary }
    }

    /// How many layers leave about a tenth for the vocabulary, or less where that is plenty.
    fn layers_within(hidden: u64, elements: u64) -> u64 {
        let tables = (elements / 10).min(2 * hidden * (VOCABULARY_MAX - 16_000));
        elements.saturating_sub(tables) / layer_elements(hidden)
    }

    pub(crate) fn tensors(&self) -> Vec<TensorShape> {
        let Self { hidden, intermediate, layers, vocabulary } = *self;
        let tensor = |name: String, shape: &[u64]| TensorShape { name, shape: shape.to_vec() };
        let mut tensors =
            vec![tensor("model.embed_tokens.weight".to_owned(), &[vocabulary, hidden])];
        for layer in 0..layers {
            for (name, shape) in [
                ("input_layernorm", &[hidden][..]),
                ("self_attn.q_proj", &[hidden, hidden]),
                ("self_attn.k_proj", &[key_value(hidden), hidden]),
                ("self_attn.v_proj", &[key_value(hidden), hidden]),
                ("self_attn.o_proj", &[hidden, hidden]),
                ("post_attention_layernorm", &[hidden]),
                ("mlp.gate_proj", &[intermediate, hidden]),
                ("mlp.up_proj", &[intermediate, hidden]),
                ("mlp.down_proj", &[hidden, intermediate]),
            ] {
                tensors.push(tensor(format!("model.layers.{layer}.{name}.weight"), shape));
            }
        }
        tensors.push(tensor("model.norm.weight".to_owned(), &[hidden]));
        tensors.push(tensor("lm_head.weight".to_owned(), &[vocabulary, hidden]));
        tensors
    }

    pub(crate) fn config(&self) -> Value {
        let heads = (self.hidden / 128).max(4);
        json!({
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "torch_dtype": "bfloat16",
            "hidden_size": self.hidden,
            "intermediate_size": self.intermediate,
            "num_hidden_layers": self.layers,
            "num_attention_heads": heads,
            "num_key_value_heads": heads / 4,
            "head_dim": self.hidden / heads,
            "vocab_size": self.vocabulary,
            "hidden_act": "silu",
            "max_position_embeddings": 8192,
            "rms_norm_eps": 1e-5,
            "rope_theta": 500_000.0,
            "tie_word_embeddings": false,
            "bos_token_id": 0,
            "eos_token_id": 1,
            "use_cache": true,
        })
    }

    pub(crate) fn generation_config(&self) -> Value {
        json!({ "bos_token_id": 0, "eos_token_id": 1, "max_length": 8192 })
    }

    pub(crate) fn tokenizer(&self) -> Value {
        let words = (0..self.vocabulary).map(|id| match id {
            0 => ("<s>".to_owned(), json!(0)),
            1 => ("</s>".to_owned(), json!(1)),
            id => (format!("t{id}"), json!(id)),
        });
        json!({
            "version": "1.0",
            "added_tokens": [],
            "normalizer": null,
            "pre_tokenizer": { "type": "Whitespace" },
            "post_processor": null,
            "decoder": null,
            "model": {
                "type": "WordLevel",
                "unk_token": "<s>",
                "vocab": words.collect::<Map<String, Value>>(),
            },
        })
    }
}

fn intermediate(hidden: u64) -> u64 {
    hidden * 7 / 2
}

/// A quarter of the heads have keys and values of their own.
fn key_value(hidden: u64) -> u64 {
    hidden / 4
}

fn layer_elements(hidden: u64) -> u64 {
    let attention = 2 * hidden * hidden + 2 * hidden * key_value(hidden);
    attention + 3 * hidden * intermediate(hidden) + 2 * hidden
}
