//! The origin of the cold load, in a process of its own, so that its CPU time is nobody else's.
//!
//! The parent starts itself with the hidden verb `raw-origin`. The child makes the checkpoint, says
//! on its standard output at which port it serves, and ends when its standard input does, which is
//! when its parent ends, however that comes about.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::process::{Child, Command, Stdio};

use forebay_testkit::{Checkpoint, CheckpointSpec, RawFiles, RawOptions, RawOrigin, checkpoint};

use crate::Outcome;

/// Under which the checkpoint lies.
pub(crate) const PREFIX: &str = "llama/";
const SEED: u64 = 20_261_125;
const SHARDS: usize = 4;

/// A running origin; dropping it ends it.
pub(crate) struct OriginProcess {
    child: Child,
    address: SocketAddr,
}

/// The checkpoint of about so many bytes that both ends know.
pub(crate) fn made(bytes: u64) -> Checkpoint {
    checkpoint(CheckpointSpec::new(SEED, bytes).shards(SHARDS))
}

impl OriginProcess {
    pub(crate) fn start(bytes: u64) -> Outcome<Self> {
        let mut child = Command::new(std::env::current_exe()?)
            .arg("raw-origin")
            .arg(bytes.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut line = String::new();
        let told = child.stdout.take().map(|told| BufReader::new(told).read_line(&mut line));
        told.transpose()?;
        // Owns the child from here on, whatever it said.
        let mut process = Self { child, address: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)) };
        let port = line.trim().parse();
        process.address.set_port(port.map_err(|_| "the origin did not say where it serves")?);
        Ok(process)
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(crate) fn uri(&self) -> String {
        format!("http://{}/{PREFIX}", self.address)
    }
}

impl Drop for OriginProcess {
    fn drop(&mut self) {
        // A child that has ended already cannot be killed, which is as it should be.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// What the child does: serves until standard input ends.
///
/// # Errors
/// If the memory or a socket cannot be had.
pub fn serve(bytes: u64) -> Outcome<()> {
    let files = RawFiles::checkpoint(PREFIX, &made(bytes))?;
    let origin = RawOrigin::start(RawOptions::default(), &files)?;
    let mut out = io::stdout().lock();
    writeln!(out, "{}", origin.address().port())?;
    out.flush()?;
    io::stdin().lock().read_to_end(&mut Vec::new())?;
    Ok(())
}
