//! An S3 origin that tells checksums, in a process of its own, so that its CPU time is nobody
//! else's.
//!
//! As with `raw-origin`, the parent starts itself with a hidden verb. The child makes a checkpoint,
//! puts it under a prefix for each kind of checksum, says on its standard output how a client
//! reaches it, and ends when its standard input does. The bytes are in memory once.

use std::collections::BTreeMap;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::process::{Child, Command, Stdio};

use forebay_origin::Checksums;
use forebay_testkit::{
    Checkpoint, CheckpointSpec, Content, S3Options, S3Origin, checkpoint, checksums,
};

use super::ground::BUCKET;
use crate::Outcome;

const SEED: u64 = 20_261_127;
const SHARDS: usize = 4;

/// What the store says of its objects; the prefix is named after it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Told {
    Nothing,
    Crc64Nvme,
    Sha256,
    Md5,
}

impl Told {
    pub(super) const ALL: [Self; 4] = [Self::Nothing, Self::Crc64Nvme, Self::Sha256, Self::Md5];

    pub(super) fn prefix(self) -> &'static str {
        match self {
            Self::Nothing => "nothing/",
            Self::Crc64Nvme => "crc64/",
            Self::Sha256 => "sha256/",
            Self::Md5 => "md5/",
        }
    }

    fn of(self, all: Checksums) -> Checksums {
        let none = Checksums::default();
        match self {
            Self::Nothing => none,
            Self::Crc64Nvme => Checksums { crc64_nvme: all.crc64_nvme, ..none },
            Self::Sha256 => Checksums { sha256: all.sha256, ..none },
            Self::Md5 => Checksums { md5: all.md5, ..none },
        }
    }
}

/// The checkpoint of about so many bytes that both ends know.
pub(super) fn made(bytes: u64) -> Checkpoint {
    checkpoint(CheckpointSpec::new(SEED, bytes).shards(SHARDS))
}

/// A running origin; dropping it ends it.
pub(super) struct ClaimingOrigin {
    child: Child,
    env: BTreeMap<String, String>,
}

impl ClaimingOrigin {
    pub(super) fn start(bytes: u64) -> Outcome<Self> {
        let mut child = Command::new(std::env::current_exe()?)
            .arg("claiming-origin")
            .arg(bytes.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut line = String::new();
        let told = child.stdout.take().map(|told| BufReader::new(told).read_line(&mut line));
        // Owns the child from here on, whatever it said.
        let mut process = Self { child, env: BTreeMap::new() };
        told.transpose()?;
        process.env = serde_json::from_str(&line)?;
        Ok(process)
    }

    /// What a client's environment needs.
    pub(super) fn env(&self) -> impl Iterator<Item = (String, String)> {
        self.env.clone().into_iter()
    }
}

impl Drop for ClaimingOrigin {
    fn drop(&mut self) {
        // A child that has ended already cannot be killed, which is as it should be.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// What the child does: serves until standard input ends.
///
/// # Errors
/// If a socket cannot be had.
pub fn serve(bytes: u64) -> Outcome<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let origin = runtime.block_on(S3Origin::start(S3Options::default()));
    for (name, content) in made(bytes) {
        // The tag of plain bytes would be their MD5.
        let content = Content::concat(vec![Content::bytes(content.to_bytes())]);
        let all = checksums(&content);
        for told in Told::ALL {
            let key = format!("{}{name}", told.prefix());
            origin.put(BUCKET, &key, content.clone());
            if told != Told::Nothing {
                origin.contents().claim(BUCKET, &key, told.of(all));
            }
        }
    }
    let env: BTreeMap<String, String> = origin.env().into_iter().collect();
    let mut out = io::stdout().lock();
    writeln!(out, "{}", serde_json::to_string(&env)?)?;
    out.flush()?;
    io::stdin().lock().read_to_end(&mut Vec::new())?;
    Ok(())
}
