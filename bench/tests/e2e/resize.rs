//! The RAM tier's size, changed while it runs: memory that goes back to the system, nothing taken
//! from those who have it, and every byte right meanwhile.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use forebay_client::model::{ResizeEvent, ResizeReport};
use forebay_client::{
    CallOptions, Client, ClientError, Device, DeviceSpec, FakeDevice, Layout, LoadRequest, Reason,
};
use forebay_proto::handoff::{SOCKET_NAME, decode, encode};
use forebay_proto::pb;
use forebay_proto::pb::handoff_message::Event as Packet;
use forebay_proto::pb::load_response::Event;
use forebay_shm::{recv_descriptor, send_descriptor};
use forebay_testkit::{CheckpointSpec, Content, CudaDriver, S3Origin, checkpoint, is_child};
use futures::future::join_all;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect as dial};

use crate::clients::Holder;
use crate::command::{run, text};
use crate::raw::{RawLoad, opening};

use crate::harness::{
    BUCKET, Digests, Node, NodeSpec, connect, digests, expected_digests, files, s3, s3_uri, until,
};

const MIB: u64 = 1 << 20;

/// Shared memory that the daemon has resident.
fn shared_bytes(node: &Node) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", node.daemon.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("RssShmem:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}

async fn try_resized(client: &Client, bytes: u64) -> Result<ResizeReport, ClientError> {
    let mut resize = client.resize_ram(bytes).await?;
    loop {
        let event = resize.next().await?.expect("a report before the end");
        if let Some(report) = event.into_report() {
            return Ok(report);
        }
    }
}

async fn resized(client: &Client, bytes: u64) -> ResizeReport {
    try_resized(client, bytes).await.unwrap()
}

/// A pool of several segments, and one object of 41 chunks.
/// With an NVMe tier, whose engine registers segments too.
async fn large(ram: &str) -> (S3Origin, Node, Vec<(String, Content)>) {
    let origin = s3().await;
    let content = Content::synthetic(77, 40 * MIB + 4321);
    origin.put(BUCKET, "m", content.clone());
    let node = NodeSpec::of(&origin).set("chunk", "1MiB").ram(ram).nvme("64MiB").start().await;
    until("the tier is populated", async || {
        let ram = node.client.status().await.unwrap().ram;
        (ram.populated_bytes == ram.budget_bytes).then_some(())
    })
    .await;
    (origin, node, vec![("m".to_owned(), content)])
}

#[tokio::test]
async fn it_shrinks_behind_leases_gives_memory_back_and_grows_again() {
    let (_origin, node, expected) = large("160MiB").await;
    assert!(shared_bytes(&node) >= 160 * MIB);
    let mut load = node.client.load(LoadRequest::new(s3_uri("m"))).await.unwrap();
    let mut held = Vec::new();
    while let Some(chunk) = load.next_chunk().await.unwrap() {
        held.push(chunk);
    }
    assert_eq!(held.len(), 41);
    let other = connect(&node.daemon).await;
    let mut resize = other.resize_ram(16 * MIB).await.unwrap();
    until("it waits for the leases", async || match resize.next().await.unwrap() {
        Some(ResizeEvent::Progress(progress)) => (progress.held_bytes < 160 * MIB
            && progress.busy_bytes + progress.owed_bytes > 0)
            .then_some(()),
        other => panic!("{other:?}"),
    })
    .await;
    // Nothing is taken away.
    for chunk in &held {
        let extent = chunk.extents().next().unwrap();
        assert!(expected[0].1.matches(extent.offset(), extent.bytes()));
    }
    let status = node.client.status().await.unwrap();
    assert_eq!(status.ram.budget_bytes, 16 * MIB);
    let options =
        CallOptions { deadline: Some(Duration::from_millis(300)), ..CallOptions::default() };
    let error = try_resized(&other.with_options(options), 15 * MIB).await.unwrap_err();
    assert_eq!(error.reason(), Reason::Deadline, "{error}");
    let superseded = loop {
        match resize.next().await {
            Ok(event) => assert!(event.is_some()),
            Err(error) => break error,
        }
    };
    assert_eq!(superseded.reason(), Reason::ResizeSuperseded, "{superseded}");
    drop(held);
    load.finish().await.unwrap();
    // The deadline ended the waiting only.
    until("it has its size", async || {
        let ram = node.client.status().await.unwrap().ram;
        let done = ram.populated_bytes == 15 * MIB && ram.retiring_bytes + ram.retired_bytes == 0;
        done.then_some(())
    })
    .await;
    until("memory is the system's", async || (shared_bytes(&node) < 20 * MIB).then_some(())).await;
    println!("{} MiB of shared memory left", shared_bytes(&node) / MIB);
    node.loads(&s3_uri("m"), &expected).await;
    let report = resized(&other, 160 * MIB).await;
    assert_eq!((report.held_bytes, report.before_bytes), (160 * MIB, 15 * MIB));
    node.loads(&s3_uri("m"), &expected).await;
    let report = node.loads(&s3_uri("m"), &expected).await;
    assert_eq!(report.bytes_by_tier.ram, 40 * MIB + 4321, "all of it fits again");
    node.settled().await;
}

#[tokio::test]
async fn a_size_that_cannot_be_is_refused_and_the_command_says_so() {
    let node = NodeSpec::new().start().await;
    for (size, says) in [("64KiB", "at least 131072 bytes"), ("4096TiB", "this host allows")] {
        let output = run(&node, &["resize", "--ram", size]);
        assert_eq!(output.status.code(), Some(2), "{output:?}");
        assert!(text(&output.stderr).contains(says), "{}", text(&output.stderr));
    }
    let output = run(&node, &["resize", "--ram", "128KiB"]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let said = text(&output.stdout);
    assert!(said.starts_with("RAM: 128.0 KiB budget, was 4.0 MiB; 128.0 KiB held"), "{said}");
    let status = text(&run(&node, &["status"]).stdout).to_owned();
    assert!(status.contains("128.0 KiB budget, 128.0 KiB populated"), "{status}");
    assert_eq!(node.sum("forebay_ram_budget_bytes").await, 131_072.0);
}

#[tokio::test]
async fn a_client_that_is_killed_meanwhile_holds_nothing_up() {
    let (_origin, node, expected) = large("160MiB").await;
    let holders = [Holder::start(&node, &s3_uri("m")), Holder::start(&node, &s3_uri("m"))];
    assert!(holders.iter().all(|holder| holder.held == 41));
    let mut resize = node.client.resize_ram(8 * MIB).await.unwrap();
    assert!(matches!(resize.next().await.unwrap(), Some(ResizeEvent::Progress(_))));
    let [first, second] = holders;
    first.kill();
    assert!(matches!(resize.next().await.unwrap(), Some(ResizeEvent::Progress(_))));
    second.kill();
    while resize.next().await.unwrap().is_some_and(|event| event.into_report().is_none()) {}
    until("memory is the system's", async || (shared_bytes(&node) < 12 * MIB).then_some(())).await;
    node.loads(&s3_uri("m"), &expected).await;
}

/// A client that takes a chunk and its segment, gives the chunk back, and says nothing more.
async fn silent(node: &Node, retires: bool) -> (OwnedFd, OwnedFd) {
    let mut load = RawLoad::open(&node.daemon, opening(&s3_uri("m"))).await;
    let Some(Event::Opened(opened)) = load.next().await.unwrap() else { panic!("no opened") };
    let kind = SocketType::SEQPACKET;
    let socket =
        rustix::net::socket_with(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None).unwrap();
    let path = node.daemon.socket().with_file_name(SOCKET_NAME);
    dial(&socket, &SocketAddrUnix::new(path).unwrap()).unwrap();
    let hello = Packet::Hello(pb::Hello { session: opened.session, retires });
    send_descriptor(socket.as_fd(), &encode(hello), None).unwrap();
    let grants = load.hold(1).await;
    let mut packet = [0; 4096];
    let (length, segment) = recv_descriptor(socket.as_fd(), &mut packet).unwrap();
    assert!(matches!(decode(&packet[..length]), Ok(Packet::Segment(_))));
    load.release(&grants).await;
    load.report().await.unwrap();
    (socket, segment.expect("its descriptor"))
}

#[tokio::test]
async fn clients_that_do_not_answer_delay_nobody_and_are_counted() {
    for retires in [false, true] {
        let origin = s3().await;
        let content = Content::synthetic(78, 1000);
        origin.put(BUCKET, "m", content.clone());
        let node = NodeSpec::of(&origin).start().await;
        let (socket, segment) = silent(&node, retires).await;
        let options =
            CallOptions { deadline: Some(Duration::from_secs(1)), ..CallOptions::default() };
        let client = node.client.with_options(options);
        let ended = try_resized(&client, MIB).await;
        match (retires, ended) {
            (false, Ok(report)) => {
                assert!(report.untold_clients == 1 && report.untold_bytes >= 4 * MIB);
            }
            (true, Err(error)) => {
                assert_eq!(error.reason(), Reason::Deadline);
                assert!(error.to_string().contains("still mapped by clients (1)"), "{error}");
            }
            (_, other) => panic!("{retires}: {other:?}"),
        }
        let ram = node.client.status().await.unwrap().ram;
        assert_eq!((ram.populated_bytes, ram.segments, ram.retiring_bytes), (MIB, 1, 0));
        assert!(ram.retired_bytes >= 4 * MIB && shared_bytes(&node) < 2 * MIB);
        assert_eq!(node.sum("forebay_ram_retire_clients").await, 1.0);
        node.loads(&s3_uri("m"), &[("m".to_owned(), content)]).await;
        if retires {
            let mut packet = [0; 4096];
            let (length, _) = recv_descriptor(socket.as_fd(), &mut packet).unwrap();
            let told = decode(&packet[..length]).unwrap();
            assert_eq!(told, Packet::Retire(pb::Retire { segment_ids: vec![0] }));
        }
        drop((socket, segment));
        until("nobody maps it any more", async || {
            let ram = node.client.status().await.unwrap().ram;
            (ram.retired_bytes == 0).then_some(())
        })
        .await;
    }
}

#[tokio::test]
async fn clients_unregister_and_unmap_what_is_retired() {
    let origin = s3().await;
    let made = checkpoint(CheckpointSpec::new(9, 2 * MIB).shards(1));
    origin.put_checkpoint(BUCKET, "m/", &made);
    let node = NodeSpec::of(&origin).start().await;
    let devices = [1, 2].map(|_| Arc::new(FakeDevice::with_memory(100.0)));
    let clients = devices
        .each_ref()
        .map(|device| node.client.with_device(Arc::clone(device) as Arc<dyn Device>));
    let load = async |client: &Client, device: &FakeDevice| {
        let load = client.load(LoadRequest::new(s3_uri("m/"))).await.unwrap();
        let resident = load.to_device(Layout::PerTensor).unwrap().finish().await.unwrap();
        for tensor in &resident.tensors {
            let bytes = device.read(&tensor.memory, 0..tensor.bytes).unwrap();
            assert_eq!(bytes, made.tensor_bytes(&tensor.name).unwrap(), "{}", tensor.name);
        }
    };
    for (client, device) in clients.iter().zip(&devices) {
        load(client, device).await;
        assert_eq!(device.registrations(), 1);
    }
    let report = resized(&node.client, MIB).await;
    assert_eq!((report.held_bytes, report.untold_clients), (MIB, 0));
    assert_eq!(devices.each_ref().map(|device| device.registrations()), [0, 0]);
    assert_eq!(node.sum("forebay_ram_retired_bytes").await, 0.0);
    for (client, device) in clients.iter().zip(&devices) {
        load(client, device).await;
        assert_eq!(device.registrations(), 1);
    }
    node.settled().await;
}

#[tokio::test]
async fn a_driver_finds_nothing_wrong_when_segments_go() {
    let test = "resize::a_driver_finds_nothing_wrong_when_segments_go";
    if !is_child() {
        match CudaDriver::compiled() {
            Ok(driver) => {
                driver.run_again(test, &[]);
                assert_eq!(driver.report(), ["ok"]);
            }
            Err(why) => println!("skipped {test}: {why}"),
        }
        return;
    }
    let origin = s3().await;
    let made = checkpoint(CheckpointSpec::new(10, 2 * MIB).shards(1));
    origin.put_checkpoint(BUCKET, "m/", &made);
    let node = NodeSpec::of(&origin).start().await;
    let device = DeviceSpec::parse("cuda:0").unwrap().open().unwrap();
    let client = node.client.with_device(Arc::clone(&device));
    for ram in [4, 1, 4, 2, 8] {
        // The one before this load's resize is retired while the load runs.
        let load = async {
            let load = client.load(LoadRequest::new(s3_uri("m/"))).await.unwrap();
            load.to_device(Layout::PerObject).unwrap().finish().await.unwrap()
        };
        let (resident, report) = tokio::join!(load, resized(&node.client, ram * MIB));
        assert_eq!(resident.device.bytes, resident.report.bytes);
        assert_eq!(report.held_bytes, ram * MIB);
    }
    node.settled().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn loads_go_on_while_the_size_goes_up_and_down() {
    let origin = s3().await;
    let made = checkpoint(CheckpointSpec::new(11, 3 * MIB).shards(2));
    origin.put_checkpoint(BUCKET, "m/", &made);
    for nvme in ["0", "2MiB"] {
        let node = NodeSpec::of(&origin).nvme(nvme).start().await;
        up_and_down(&node, &expected_digests(&files(&made))).await;
    }
}

async fn up_and_down(node: &Node, expected: &Digests) {
    let over = AtomicBool::new(false);
    let loads = (0..5).map(async |_| {
        let client = connect(&node.daemon).await;
        let mut loads = 0;
        while !over.load(Ordering::Relaxed) {
            let request = LoadRequest::new(s3_uri("m/"));
            assert_eq!(&digests(&client, request).await.unwrap().0, expected);
            loads += 1;
        }
        loads
    });
    let sizes = async {
        let mut dice: u64 = 5;
        for _ in 0..40 {
            dice = dice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(99_991);
            let bytes = (2 + (dice >> 33) % 120) * (64 << 10);
            assert_eq!(resized(&node.client, bytes).await.held_bytes, bytes);
        }
        over.store(true, Ordering::Relaxed);
    };
    let (loads, ()) = tokio::join!(join_all(loads), sizes);
    println!("{loads:?} loads while the size changed 40 times");
    assert!(loads.iter().all(|loads| *loads > 0));
    node.settled().await;
    assert_eq!(node.sum("forebay_ram_retiring_bytes").await, 0.0);
}
