//! The engines on real files: the contract of the seam, the faults of the fake, and what happens
//! where the kernel forbids what an engine is made of.

mod contract;
mod faults;
mod forbidden;
mod memlock;
mod numa;

use std::path::Path;
use std::sync::Arc;

use forebay_io::{
    AlignedBuf, Create, DataFile, Directory, EngineKind, EngineSettings, IoEngine, OpenHow,
    Preference, choose,
};

fn settings() -> EngineSettings {
    EngineSettings { depth: 8, threads: 8, ..EngineSettings::default() }
}

fn threads() -> Arc<dyn IoEngine> {
    choose(&settings(), Preference::Threads).expect("threads").engine
}

/// io_uring, where this kernel has it; otherwise says why not.
#[expect(clippy::print_stdout, reason = "says why a test was skipped")]
fn uring() -> Option<Arc<dyn IoEngine>> {
    let choice = choose(&settings(), Preference::Auto).expect("an engine");
    if choice.reason.kind() == EngineKind::Threads {
        println!("skipped the part with io_uring: {}", choice.reason);
        return None;
    }
    Some(choice.engine)
}

fn file(directory: &Path, name: &str) -> Arc<DataFile> {
    let how = OpenHow { write: true, create: Create::IfMissing, direct: true };
    let directory = Directory::open(directory).expect("a directory of our own");
    Arc::new(directory.file(name, how).expect("a file"))
}

fn buffer(bytes: usize) -> AlignedBuf {
    AlignedBuf::zeroed(bytes, 4096).expect("memory")
}
