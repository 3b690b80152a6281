//! Formats of foreign bytes, and how packed objects are coded: pure functions on memory.
//!
//! Whatever comes in here was written by somebody else: a header, a manifest, a compressed frame.
//! Every parser bounds what it is told before it believes it, allocates by what is there and never
//! by what is claimed, and says with a typed error what is wrong. There is no I/O here, no clock
//! and no thread; who reads the bytes, and when, is the caller's business.
//!
//! ```text
//!   object ──► safetensors, gguf ──► TensorEntry ──► planes: which ranges are cut into byte planes
//!                                                       │
//!   pack:  plain frame ── FrameEncoder ──► stored frame ┴─► manifest::PackManifest
//!   load:  manifest, or scan (seek table, frames) ──► Coding ── FrameDecoder ──► plain frame
//! ```
//!
//! [`safetensors`] and [`gguf`] find the tensors of an object. [`coding`] says how an object's
//! plain bytes lie in what is stored, [`scan`] finds that out for objects without a manifest,
//! [`encode`] and [`decode`] go from one to the other, [`planes`] is the reordering that makes
//! floating point numbers compress, and [`manifest`] is what `forebay pack` writes beside the
//! objects.

#![forbid(unsafe_code)]

pub mod coding;
pub mod decode;
pub mod encode;
#[doc(hidden)]
pub mod fuzz;
pub mod gguf;
pub mod manifest;
pub mod planes;
pub mod safetensors;
pub mod scan;
pub mod tensor;
