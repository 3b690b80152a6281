//! The contract suite over both engines and over the fake one without faults, on the filesystem of
//! the temporary directory and on tmpfs.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use forebay_io::IoEngine;
use forebay_testkit::contract::{IoSubject, io_engine};
use forebay_testkit::{FaultEngine, temp_dir};

use crate::{threads, uring};

async fn check(engine: Arc<dyn IoEngine>) {
    let directory = temp_dir();
    io_engine(IoSubject { engine: &engine, directory: directory.path() }).await;
}

#[tokio::test]
async fn threads_keep_the_contract() {
    check(threads()).await;
}

#[tokio::test]
async fn io_uring_keeps_the_contract() {
    let Some(engine) = uring() else { return };
    check(engine).await;
}

#[tokio::test]
async fn the_fault_engine_without_faults_keeps_the_contract() {
    let engine = FaultEngine::new(threads(), 1, Duration::from_secs(5));
    check(Arc::new(engine)).await;
}

#[tokio::test]
async fn the_contract_holds_on_tmpfs() {
    let shm = Path::new("/dev/shm");
    let Ok(directory) = tempfile::Builder::new().prefix("fb-").tempdir_in(shm) else {
        return println!("skipped: /dev/shm cannot be written to");
    };
    for engine in [Some(threads()), uring()].into_iter().flatten() {
        let own = tempfile::tempdir_in(directory.path()).expect("a directory");
        io_engine(IoSubject { engine: &engine, directory: own.path() }).await;
    }
}

/// The futures need no runtime: this one is driven by a bare executor.
#[test]
fn engines_are_awaited_without_a_runtime() {
    for engine in [Some(threads()), uring()].into_iter().flatten() {
        let directory = temp_dir();
        let file = crate::file(directory.path(), "x");
        let buffer = crate::buffer(4096);
        let write = engine.write(&file, forebay_io::FileOffset(0), buffer, 0..4096);
        assert_eq!(futures::executor::block_on(write).expect("a write").bytes, 4096);
    }
}
