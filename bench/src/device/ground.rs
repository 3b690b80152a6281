//! The checkpoint of all rows, its origins, and a daemon in front of one.
//!
//! Files lie in memory once, for all origins. An origin is threads of this process that send from
//! there with `sendfile`, and counts what it sends.

use std::path::PathBuf;

use forebay_testkit::{Checkpoint, CheckpointSpec, RawFiles, RawOptions, RawOrigin, checkpoint};

use super::client::ClientArgs;
use crate::Outcome;
use crate::node::{self, Node};

/// Of the checkpoint.
pub(super) const SEED: u64 = 20_261_129;
/// Its safetensors files.
pub(super) const SHARDS: usize = 4;
const PREFIX: &str = "llama/";

/// The checkpoint.
pub(super) struct Files {
    raw: RawFiles,
    made: Checkpoint,
}

/// An origin of it, and a daemon whose RAM can keep it.
pub(super) struct Ground {
    // Dropped before the origin.
    node: Node,
    origin: RawOrigin,
}

impl Files {
    pub(super) fn make(bytes: u64) -> Outcome<Self> {
        let made = checkpoint(CheckpointSpec::new(SEED, bytes).shards(SHARDS));
        Ok(Self { raw: RawFiles::checkpoint(PREFIX, &made)?, made })
    }

    pub(super) fn made(&self) -> &Checkpoint {
        &self.made
    }
}

impl Ground {
    /// Starts both; the origin sends so many bytes per second in all, or as many as it can.
    pub(super) async fn start(files: &Files, bytes_per_second: Option<u64>) -> Outcome<Self> {
        let link = RawOptions { total_bytes_per_second: bytes_per_second, ..RawOptions::default() };
        let origin = RawOrigin::start(link, &files.raw)?;
        let node = Node::start(node::daemon(files.made.bytes(), &[])?).await?;
        Ok(Self { node, origin })
    }

    pub(super) fn node(&self) -> &Node {
        &self.node
    }

    pub(super) fn uri(&self) -> String {
        format!("{}/{PREFIX}", self.origin.endpoint())
    }

    /// Bytes of bodies that were sent so far.
    pub(super) fn sent(&self) -> u64 {
        self.origin.counts().body_bytes
    }

    /// What a client process is told: to load it all, to a device of this rate or to none.
    pub(super) fn client(&self, rate: Option<f64>) -> ClientArgs {
        let socket: PathBuf = self.node.socket();
        ClientArgs { socket, uri: self.uri(), rate, rank: None }
    }
}
