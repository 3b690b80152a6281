//! The codec as its users see it: what is packed comes back, and nothing else does.

mod contents;
mod corpus;
mod flips;
mod gguf;
mod hostile;
mod manifest;
mod round_trip;
mod tool;
