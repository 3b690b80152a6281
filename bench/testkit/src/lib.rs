//! What Forebay's tests and its demo run against: fake origins with faults, checkpoints to load,
//! and contract suites for the seams.
//!
//! - [`S3Origin`], [`GcsOrigin`], [`AzureOrigin`] and [`HttpOrigin`] serve [`Contents`] over real
//!   sockets on the loopback, commit the faults they are told to ([`FaultRule`]), and count what
//!   was asked of them.
//! - [`RawOrigin`] serves files from memory at the cost of the kernel's `sendfile`, for measurements.
//! - [`Site`] is one host of several such origins, each at a loopback address of its own.
//! - [`Content`] is bytes in memory or bytes made on the fly from a seed, so that an object of
//!   5 GiB takes no memory; [`checkpoint`] lays such content out as sharded safetensors.
//! - [`DnsServer`] is a name server with faults, for the real resolver.
//! - [`FakeDns`] stands in for the resolver, [`CudaDriver`] for the driver of a GPU.
//! - [`contract`] says what every implementation of a seam must do.
//! - [`FaultEngine`] is an io engine over a disk that lies.
//! - [`WrittenMachine`] is a machine with NUMA nodes, as the files that sysfs would have.
//! - [`CANARY`] marks every credential that is given out here, and [`canary_in`] finds it.
//! - [`documented_calls`] finds the commands that documents tell people to run.
//! - [`Prng`] is the seeded randomness of fixtures and fault schedules; a [`Seed`] is printed by the
//!   test that fails with it.
//!
//! Origins own their thread and stop when dropped. Nothing here reads the environment, uses a fixed
//! port or keeps state between instances, so tests run in parallel.
#![forbid(unsafe_code)]

mod azure;
mod black_hole;
mod canary;
mod chaos;
mod checkpoint;
mod claims;
mod content;
mod contents;
pub mod contract;
mod cuda_driver;
mod disk;
mod dns;
mod dns_server;
mod fault;
mod flow;
mod gcs;
mod head;
mod http_origin;
mod io_faults;
mod keys;
mod ledger;
mod link;
mod model;
mod origin;
mod pace;
mod pattern;
mod plan;
mod random;
mod raw_files;
mod raw_origin;
mod raw_serve;
mod s3;
mod s3_backend;
mod serve;
mod shell;
mod site;
mod text;
mod topology;
mod uploads;

pub use azure::{AzureOptions, AzureOrigin};
pub use black_hole::BlackHole;
pub use canary::{CANARY, canary_in};
pub use chaos::{Chaos, chaos};
pub use checkpoint::{CHECKPOINT_BYTES_MIN, Checkpoint, CheckpointSpec, Tensor, checkpoint};
pub use claims::checksums;
pub use content::{Concat, Content, sha256, sha256_of};
pub use contents::Contents;
pub use cuda_driver::{CudaDriver, is_child, run_again_with_libraries};
pub use disk::{cached_pages, temp_dir, write_checkpoint, write_content};
pub use dns::FakeDns;
pub use dns_server::{DnsAnswer, DnsQueries, DnsServer};
pub use fault::{Fault, FaultHandle, FaultRule, When};
pub use gcs::{GcsOptions, GcsOrigin};
pub use http_origin::{EntityTag, HttpOptions, HttpOrigin};
pub use io_faults::{FaultEngine, IoFault, IoFaultRule, Told};
pub use keys::AccessKey;
pub use ledger::{Counts, Op, RequestRecord};
pub use origin::Origin;
pub use random::{Prng, Seed};
pub use raw_files::RawFiles;
pub use raw_origin::{RawCounts, RawOptions, RawOrigin, RawStalls};
pub use s3::{S3Options, S3Origin};
pub use serve::{Connections, LinkOptions};
pub use shell::documented_calls;
pub use site::{Site, SiteOptions};
pub use topology::{WrittenMachine, WrittenNode};
