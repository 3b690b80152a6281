//! Loads to a device with the real daemon: every byte at its place, ranks that share one fetch, and
//! nothing held by either side after a failure.

use std::collections::BTreeMap;
use std::sync::Arc;

use forebay_client::{
    Client, Device, DeviceTensor, Endpoint, FakeDevice, Layout, LoadRequest, Reason, Shard,
};
use forebay_testkit::{CheckpointSpec, checkpoint};

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
