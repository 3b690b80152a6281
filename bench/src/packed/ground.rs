//! A checkpoint in the memory of an S3 origin, as it is and packed.
//!
//! A daemon packs it through the call that `forebay pack` makes, from one prefix of the origin to
//! another. Other origins may serve the same objects, at other speeds.

use forebay_client::PackRequest;
use forebay_client::model::{PackEvent, PackReport};
use forebay_codec::manifest::{MANIFEST_NAME, PackManifest};
use forebay_testkit::{
    Checkpoint, CheckpointSpec, Content, Contents, S3Options, S3Origin, checkpoint,
};

use crate::Outcome;
use crate::node::{self, Node};
use crate::origin::progress;

/// The bucket of all objects.
pub(super) const BUCKET: &str = "bench";
/// Where the checkpoint lies as it is.
pub(super) const RAW: &str = "raw/";
/// Where it lies packed.
pub(super) const PACKED: &str = "packed/";
const SEED: u64 = 20_261_126;
const SHARDS: usize = 4;
/// RAM of the daemon that packs: it serves nothing.
const RAM_BYTES: u64 = 64 << 20;

/// Objects and their packed forms.
pub(crate) struct Ground {
    origin: S3Origin,
    made: Checkpoint,
}

impl Ground {
    /// A checkpoint of normally distributed bf16 weights with all that lies beside them, packed.
    pub(crate) async fn of_weights(bytes: u64) -> Outcome<Self> {
        Self::of_other_weights(SEED, bytes).await
    }

    /// The same, of weights that are others for each seed.
    pub(crate) async fn of_other_weights(seed: u64, bytes: u64) -> Outcome<Self> {
        let made = checkpoint(CheckpointSpec::new(seed, bytes).shards(SHARDS).normal());
        let origin = S3Origin::start(S3Options::default()).await;
        let ground = Self { origin, made };
        ground.put(RAW, ground.made.files());
        let node = ground.node().await?;
        let report = pack(&node, RAW, PACKED).await?;
        progress(format_args!(
            "packed {} MiB in {:.1} s",
            report.bytes >> 20,
            report.wall.as_secs_f64()
        ));
        Ok(ground)
    }

    /// What was packed.
    pub(super) fn made(&self) -> &Checkpoint {
        &self.made
    }

    /// The objects, for another origin.
    pub(super) fn contents(&self) -> &Contents {
        self.origin.contents()
    }

    /// What a daemon needs to read from its origin.
    pub(crate) fn env(&self) -> impl IntoIterator<Item = (String, String)> {
        self.origin.env()
    }

    /// The URI of the packed form.
    pub(crate) fn uri(&self) -> String {
        uri(PACKED)
    }

    /// The objects of the packed form, by their names in it.
    pub(crate) fn packed(&self) -> Outcome<Vec<(String, Content)>> {
        let keys = self.contents().sizes(BUCKET, PACKED).into_iter().map(|(key, _)| key);
        keys.map(|key| {
            let name = key.strip_prefix(PACKED).ok_or("a key without its prefix")?;
            Ok((name.to_owned(), self.object(&key)?))
        })
        .collect()
    }

    /// A daemon that can pack.
    pub(super) async fn node(&self) -> Outcome<Node> {
        Node::start(node::daemon(RAM_BYTES, &[])?.env(self.origin.env())).await
    }

    /// Puts objects under a prefix, each in memory: nothing is made while it is sent.
    pub(super) fn put<'a>(
        &self,
        prefix: &str,
        files: impl IntoIterator<Item = &'a (String, Content)>,
    ) {
        for (name, content) in files {
            let bytes = Content::bytes(content.to_bytes());
            self.origin.put(BUCKET, &format!("{prefix}{name}"), bytes);
        }
    }

    /// An object that is there.
    pub(super) fn object(&self, key: &str) -> Outcome<Content> {
        Ok(self.contents().content(BUCKET, key).ok_or_else(|| format!("{key} is not there"))?)
    }

    /// The manifest under a prefix.
    pub(super) fn manifest(&self, prefix: &str) -> Outcome<PackManifest> {
        let bytes = self.object(&format!("{prefix}{MANIFEST_NAME}"))?.to_bytes();
        Ok(PackManifest::parse(&bytes)?)
    }

    /// The bytes of all objects under a prefix, whatever they are.
    pub(super) fn bytes(&self, prefix: &str) -> u64 {
        self.contents().sizes(BUCKET, prefix).iter().map(|(_, bytes)| bytes).sum()
    }
}

/// The URI of a prefix.
pub(super) fn uri(prefix: &str) -> String {
    format!("s3://{BUCKET}/{prefix}")
}

/// Packs one prefix into another, with default settings.
pub(super) async fn pack(node: &Node, source: &str, destination: &str) -> Outcome<PackReport> {
    let mut events = node.client().pack(PackRequest::new(uri(source), uri(destination))).await?;
    let mut done = None;
    while let Some(event) = events.next().await? {
        if let PackEvent::Report(report) = event {
            done = Some(*report);
        }
    }
    Ok(done.ok_or("a pack without a report")?)
}
