//! The codec as its users see it: what is packed comes back, and nothing else does.

#![expect(clippy::unwrap_used, reason = "a test: what cannot be had fails it")]
#![expect(clippy::cast_possible_truncation, reason = "random bytes are the low ones of a number")]
#![expect(clippy::print_stdout, reason = "what is skipped, and why, is said there")]

mod contents;
mod corpus;
mod flips;
mod gguf;
mod hostile;
mod manifest;
mod round_trip;
mod tool;
