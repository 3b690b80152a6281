//! Loads to a device with the real daemon: every byte at its place, ranks that share one fetch, and
//! nothing held by either side after a failure.

use std::collections::BTreeMap;
use std::process::Command;
use std::sync::Arc;

use forebay_client::{
    Client, Device, DeviceTensor, Endpoint, FakeDevice, Layout, LoadRequest, Reason, Shard,
};
use forebay_testkit::{CheckpointSpec, CudaDriver, checkpoint};
use serde_json::Value;

use crate::command::{command, text};
use crate::harness::{BUCKET, Node, NodeSpec, s3, s3_uri, until};

/// Faster than the loopback.
const FAST: f64 = 100.0;

/// So slow that a chunk takes some 7 ms.
const SLOW: f64 = 0.01;

fn on(node: &Node, device: &Arc<FakeDevice>) -> Client {
    node.client.with_device(Arc::clone(device) as Arc<dyn Device>)
}

fn bytes_on(device: &FakeDevice, tensor: &DeviceTensor) -> Vec<u8> {
    let start = tensor.address - tensor.memory.address();
    device.read(&tensor.memory, start..start + tensor.bytes).expect("memory of the device")
}

async fn loaded(
    client: &Client,
    device: &FakeDevice,
    request: LoadRequest,
    layout: Layout,
) -> BTreeMap<String, (Vec<u64>, Vec<u8>)> {
    let load = client.load(request).await.unwrap();
    let resident = load.to_device(layout).unwrap().finish().await.unwrap();
    assert_eq!(resident.report.device.as_ref().map(|used| used.kind.as_str()), Some("fake"));
    let bytes = |tensor: &DeviceTensor| (tensor.shape.clone(), bytes_on(device, tensor));
    resident.tensors.iter().map(|tensor| (tensor.name.clone(), bytes(tensor))).collect()
}

#[tokio::test]
async fn ranks_put_together_are_the_tensors_and_share_one_fetch() {
    let origin = s3().await;
    let made = checkpoint(CheckpointSpec::new(1, 1 << 20).shards(2));
    origin.put_checkpoint(BUCKET, "m/", &made);
    // The least pool: chunks go round.
    let node = NodeSpec::of(&origin).ram("512KiB").start().await;
    let device = Arc::new(FakeDevice::with_memory(FAST));
    let client = on(&node, &device);
    let whole = loaded(&client, &device, LoadRequest::new(s3_uri("m/")), Layout::PerTensor).await;
    let mut ranks = Vec::new();
    for rank in 0..2 {
        let shard = Shard::new(rank, 2).unwrap().along("**", 0).unwrap();
        let request = LoadRequest::new(s3_uri("m/")).shard(shard);
        ranks.push(loaded(&client, &device, request, Layout::PerTensor).await);
    }
    assert_eq!(whole.len(), made.tensors().count());
    for (name, (_, bytes)) in &whole {
        assert_eq!(bytes, &made.tensor_bytes(name).unwrap(), "{name}");
        let put: Vec<u8> = ranks.iter().flat_map(|rank| rank[name].1.clone()).collect();
        assert_eq!(&put, bytes, "{name}");
    }
    node.settled().await;
}

#[tokio::test]
async fn a_copy_that_fails_ends_the_load_on_both_sides() {
    let origin = s3().await;
    let made = checkpoint(CheckpointSpec::new(2, 1 << 20).shards(1));
    origin.put_checkpoint(BUCKET, "m/", &made);
    let node = NodeSpec::of(&origin).start().await;
    let device = Arc::new(FakeDevice::with_memory(FAST));
    device.fail_after(3);
    let load = on(&node, &device).load(LoadRequest::new(s3_uri("m/"))).await.unwrap();
    load.to_device(Layout::PerObject).unwrap().finish().await.unwrap_err();
    assert_eq!(device.allocated(), 0);
    node.settled().await;
}

#[tokio::test]
async fn a_daemon_that_is_killed_leaves_nothing_on_the_client() {
    let origin = s3().await;
    let made = checkpoint(CheckpointSpec::new(3, 4 << 20).shards(1));
    origin.put_checkpoint(BUCKET, "m/", &made);
    let node = NodeSpec::of(&origin).ram("512KiB").start().await;
    let device = Arc::new(FakeDevice::with_memory(SLOW));
    let endpoint = Endpoint::unix(&node.daemon.socket()).unwrap();
    let client = Client::connect(endpoint).await.unwrap();
    let client = client.with_device(Arc::clone(&device) as Arc<dyn Device>);
    let load = client.load(LoadRequest::new(s3_uri("m/"))).await.unwrap();
    let mut load = load.to_device(Layout::PerTensor).unwrap();
    drop(load.next().await.unwrap().expect("a tensor"));
    node.daemon.kill().unwrap();
    let error = loop {
        match load.next().await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("the load is complete"),
            Err(error) => break error,
        }
    };
    assert_eq!(error.reason(), Reason::DaemonUnreachable, "{error}");
    drop((load, client));
    assert_eq!(device.allocated(), 0);
    until("nothing is registered", async || (device.registrations() == 0).then_some(())).await;
}

/// `forebay load m/ --device cuda:0`, with the stand-in for a driver.
fn load_to_cuda(node: &Node, driver: &CudaDriver, script: &[(&str, &str)]) -> Command {
    let mut command = command(node);
    driver.lend(&mut command, script);
    command.args(["--format", "json", "load", &s3_uri("m/"), "--device", "cuda:0"]);
    command
}

#[tokio::test]
async fn the_command_loads_to_a_cuda_device() {
    let driver = match CudaDriver::compiled() {
        Ok(driver) => driver,
        Err(why) => return println!("skipped: {why}"),
    };
    let origin = s3().await;
    let made = checkpoint(CheckpointSpec::new(4, 2 << 20).shards(2));
    origin.put_checkpoint(BUCKET, "m/", &made);
    // Every slot goes round several times.
    let node = NodeSpec::of(&origin).ram("512KiB").start().await;
    let output = load_to_cuda(&node, &driver, &[]).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let whole: Value = serde_json::from_str(text(&output.stdout)).unwrap();
    assert_eq!(whole["device"]["bytes"], made.bytes());
    assert_eq!(whole["device"]["path"], "registered_read_only");
    // Nobody said where the bytes should lie: near the device, as the driver has it.
    assert_eq!(whole["placement"]["asked"], "gpu 0000:17:00.0", "{whole}");

    // One that cannot register what is read-only, and a rank of two.
    let mut rank = load_to_cuda(&node, &driver, &[("READ_ONLY", "0")]);
    let output = rank.args(["--rank", "1/2"]).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let half: Value = serde_json::from_str(text(&output.stdout)).unwrap();
    assert_eq!(half["device"]["path"], "staged");
    assert!(half["device"]["bytes"].as_u64().unwrap() < made.bytes() * 2 / 3, "{half}");
    assert_eq!(driver.report(), ["ok", "ok"]);
    node.settled().await;
}

#[tokio::test]
async fn what_a_cuda_device_fails_at_is_said_and_leaves_nothing() {
    let driver = match CudaDriver::compiled() {
        Ok(driver) => driver,
        Err(why) => return println!("skipped: {why}"),
    };
    let origin = s3().await;
    origin.put_checkpoint(BUCKET, "m/", &checkpoint(CheckpointSpec::new(5, 2 << 20).shards(1)));
    let node = NodeSpec::of(&origin).ram("512KiB").start().await;
    for (script, code, reason) in [
        (("DEVICES", "0"), 7, "cuda:0 cannot be had"),
        (("MEMORY", "65536"), 5, "free memory of the device"),
        (("FAIL_COPY", "3"), 7, "failed to copy"),
    ] {
        let output = load_to_cuda(&node, &driver, &[script]).output().unwrap();
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{script:?}: {said}");
        assert!(said.contains(reason), "{script:?}: {said}");
        node.settled().await;
    }
    let report = driver.report();
    assert!(report.iter().all(|line| line == "ok"), "{report:?}");
}

#[tokio::test]
async fn a_client_that_is_killed_while_it_copies_leaves_nothing_on_the_daemon() {
    let driver = match CudaDriver::compiled() {
        Ok(driver) => driver,
        Err(why) => return println!("skipped: {why}"),
    };
    let origin = s3().await;
    let made = checkpoint(CheckpointSpec::new(6, 4 << 20).shards(1));
    origin.put_checkpoint(BUCKET, "m/", &made);
    let node = NodeSpec::of(&origin).ram("512KiB").start().await;
    // 0.4 s for all of it, an eighth of which fits into the pool.
    let mut child = load_to_cuda(&node, &driver, &[("GBPS", "0.01")]).spawn().unwrap();
    until("a slot has gone round", async || (origin.total().body_bytes > 1 << 20).then_some(()))
        .await;
    child.kill().unwrap();
    assert_eq!(child.wait().unwrap().code(), None, "it was still copying");
    node.settled().await;

    let output = load_to_cuda(&node, &driver, &[]).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert_eq!(driver.report(), ["ok"], "of the second one alone: the first could not write any");
}
