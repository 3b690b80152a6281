//! Tests of the origin layer against servers and files of their own.

#[cfg(test)]
mod bodies;
#[cfg(test)]
mod cloud;
#[cfg(test)]
mod common;
#[cfg(test)]
mod credentials;
#[cfg(test)]
mod dns;
#[cfg(test)]
mod engine;
#[cfg(test)]
mod faults;
#[cfg(test)]
mod files;
#[cfg(test)]
mod landing;
#[cfg(test)]
mod moto;
#[cfg(test)]
mod rows;
#[cfg(test)]
mod server;
#[cfg(test)]
mod sinks;
#[cfg(test)]
mod storm;
#[cfg(test)]
mod tls;
#[cfg(test)]
mod web;

#[cfg(test)]
use common::{Names, log, origins, pattern, quick, request, uri, whole};
