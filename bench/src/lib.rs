//! What the demo, the scenarios and the end-to-end tests share: real daemon processes on ephemeral
//! places.

#![forbid(unsafe_code)]

pub mod demo;
pub mod process;
