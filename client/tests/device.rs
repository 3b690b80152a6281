//! Loads to a device: every byte at its place in every layout, slots given back only when they were
//! copied, and nothing left behind by a failure or a drop.

mod fake;

use std::sync::Arc;

use forebay_client::{
    Client, CopyStream, Device, DeviceError, DeviceInfo, DeviceMemory, DeviceTensor, Endpoint,
    FakeDevice, HostDevice, Layout, LoadRequest, Placement, Reason, Shard, Target, blocking,
};
use forebay_device::Registration;
use forebay_proto::pb;
use forebay_shm::SegmentMap;

use fake::{Fake, Fault, Script};

const CHUNK: usize = 16 << 10;

/// Fast enough not to be waited for.
const FAST: f64 = 100.0;

/// So slow that a chunk takes about 16 ms.
const SLOW: f64 = 0.001;

fn everything() -> LoadRequest {
    LoadRequest::new("fake://checkpoint/")
}

/// Small, empty and large objects; tensors in one chunk, over many, empty, and of two dimensions.
fn checkpoint() -> Script {
    Script::of(&[("config.json", 100), ("empty", 0), ("a", 6 * CHUNK + 17), ("b", 3 * CHUNK)])
        .tensor("in-one", 2, 10..CHUNK - 5)
        .tensor("over-two", 2, CHUNK - 5..2 * CHUNK - 100)
        .shaped("matrix", 2, 2 * CHUNK - 100, &[300, 200])
        .tensor("none", 2, 50..50)
        .tensor("tail", 2, 6 * CHUNK..6 * CHUNK + 17)
        .shaped("cube", 3, 7, &[4, 100, 121])
}

async fn connect(fake: &Fake, device: &Arc<FakeDevice>) -> Client {
    let endpoint = Endpoint::parse(&fake.endpoint()).expect("the fake's endpoint");
    let client = Client::connect(endpoint).await.expect("a running fake");
    client.with_device(Arc::clone(device) as Arc<dyn Device>)
}

fn device(gigabytes_per_second: f64) -> Arc<FakeDevice> {
    Arc::new(FakeDevice::with_memory(gigabytes_per_second))
}

fn bytes_on(device: &FakeDevice, tensor: &DeviceTensor) -> Vec<u8> {
    let start = tensor.address - tensor.memory.address();
    device.read(&tensor.memory, start..start + tensor.bytes).expect("memory of the device")
}

/// A tensor as the checkpoint has it.
fn stored(script: &Script, name: &str) -> (Vec<u64>, Vec<u8>) {
    let (_, object, range) =
        script.tensors.iter().find(|(known, ..)| known == name).expect("a tensor").clone();
    let bytes = script.objects[object].1[range].to_vec();
    let shape = script.shapes.get(name).cloned().unwrap_or_else(|| vec![bytes.len() as u64]);
    (shape, bytes)
}

/// A rank's slice of a tensor, found the slow way: byte by byte.
fn sliced(script: &Script, name: &str, (rank, ranks): (u64, u64), dim: usize) -> Vec<u8> {
    let (shape, bytes) = stored(script, name);
    let Some(size) = shape.get(dim) else { return bytes };
    let inner: u64 = shape[dim + 1..].iter().product();
    let mine = rank * size / ranks..(rank + 1) * size / ranks;
    let wanted = |(at, _): &(u64, u8)| mine.contains(&(at / inner % size));
    (0_u64..).zip(bytes).filter(wanted).map(|(_, byte)| byte).collect()
}

#[tokio::test]
async fn every_byte_arrives_whatever_the_order_and_the_window() {
    for (seed, slots) in (0..6).flat_map(|seed| [1, 2, 3, 16].map(|slots| (seed, slots))) {
        let script = checkpoint().seed(seed).slots(slots);
        let fake = Fake::start(script.clone());
        let device = device(FAST);
        let load = connect(&fake, &device).await.load(everything()).await.unwrap();
        let resident = load.to_device(Layout::PerObject).unwrap().finish().await.unwrap();
        assert_eq!(resident.tensors.len(), 8, "6 tensors and 2 objects without");
        for tensor in &resident.tensors {
            let object = script.objects.iter().find(|(key, _)| *key == tensor.name);
            let wanted = object.map_or_else(
                || stored(&script, &tensor.name),
                |(_, bytes)| (vec![bytes.len() as u64], bytes.clone()),
            );
            assert_eq!((tensor.shape.clone(), bytes_on(&device, tensor)), wanted, "{seed} {slots}");
        }
        let cube = resident.tensors.iter().find(|tensor| tensor.name == "cube").unwrap();
        let whole = device.read(&cube.memory, 0..3 * CHUNK as u64).unwrap();
        assert_eq!(whole, fake.object(3), "the object as it is");
        assert_eq!(resident.device.bytes, resident.report.bytes);
        assert!(resident.device.busy <= resident.device.last_copy);
        fake.until_leased(0).await;
        assert!(!fake.seen().released_untold);
        drop(resident);
        assert_eq!(device.allocated(), 0);
    }
}

#[tokio::test]
async fn tensors_come_as_they_are_complete_in_allocations_of_their_own() {
    let fake = Fake::start(checkpoint().slots(3));
    let device = device(FAST);
    let load = connect(&fake, &device).await.load(everything()).await.unwrap();
    let mut load = load.to_device(Layout::PerTensor).unwrap();
    let mut names = Vec::new();
    while let Some(tensor) = load.next().await.unwrap() {
        assert_eq!(tensor.address, tensor.memory.address());
        assert_eq!(bytes_on(&device, &tensor), stored(&checkpoint(), &tensor.name).1);
        names.push(tensor.name);
    }
    names.sort();
    assert_eq!(names, ["cube", "in-one", "matrix", "none", "over-two", "tail"]);
    assert!(load.next().await.unwrap().is_none());
    load.finish().await.unwrap();
}

#[tokio::test]
async fn slices_are_the_bytes_of_their_rank_and_pack_at_256() {
    let cuts = [(0, 2), (0, 3), (1, 2), (1, 7), (2, 4)];
    for (dim, rank, ranks) in
        cuts.into_iter().flat_map(|(dim, ranks)| (0..ranks).map(move |rank| (dim, rank, ranks)))
    {
        let script = checkpoint().slots(2);
        let fake = Fake::start(script.clone());
        let device = device(FAST);
        let client = connect(&fake, &device).await;
        let shard = Shard::new(rank, ranks).unwrap().along("**", dim).unwrap();
        let load = client.load(everything().shard(shard)).await.unwrap();
        let resident = load.to_device(Layout::PerObject).unwrap().finish().await.unwrap();
        let mut bytes = 0;
        for tensor in &resident.tensors {
            let (at, dim) = ((u64::from(rank), u64::from(ranks)), dim as usize);
            let wanted = sliced(&script, &tensor.name, at, dim);
            assert_eq!(bytes_on(&device, tensor), wanted, "{} {dim} {at:?}", tensor.name);
            assert_eq!(tensor.shape.iter().product::<u64>(), tensor.bytes);
            assert_eq!((tensor.address - tensor.memory.address()) % 256, 0);
            bytes += tensor.bytes;
        }
        assert_eq!(resident.tensors.len(), 6);
        assert_eq!(resident.device.bytes, bytes, "only the slice is copied");
    }
}

#[tokio::test]
async fn some_tensors_need_memory_for_themselves_only() {
    let fake = Fake::start(checkpoint());
    let device = device(FAST);
    let client = connect(&fake, &device).await;
    let load = client.load(everything().tensors(["tail", "in-one"])).await.unwrap();
    let resident = load.to_device(Layout::PerObject).unwrap().finish().await.unwrap();
    let in_one = CHUNK as u64 - 15;
    assert_eq!(device.allocated(), in_one.next_multiple_of(256) + 17);
    assert_eq!(resident.device.bytes, in_one + 17);
}

#[tokio::test]
async fn targets_get_what_they_name_in_their_order() {
    let fake = Fake::start(checkpoint().slots(16));
    let device = device(SLOW);
    let client = connect(&fake, &device).await;
    let memory = Arc::new(device.allocate(8 * CHUNK as u64).unwrap());
    let target = |name: &str, offset: usize| Target {
        name: name.to_owned(),
        memory: Arc::clone(&memory),
        offset: offset as u64,
    };
    let load = client.load(everything()).await.unwrap();
    let targets =
        vec![target("b", 1), target("in-one", 4 * CHUNK), target("config.json", 7 * CHUNK)];
    let mut load = load.to_device(Layout::Into(targets)).unwrap();
    let mut tensors = Vec::new();
    while let Some(tensor) = load.next().await.unwrap() {
        tensors.push(tensor);
    }
    for tensor in &tensors {
        let wanted = match tensor.name.as_str() {
            "b" => fake.object(3),
            "config.json" => fake.object(0),
            name => stored(&checkpoint(), name).1,
        };
        assert_eq!(bytes_on(&device, tensor), wanted, "{}", tensor.name);
    }
    assert_eq!(tensors.len(), 3);
    load.finish().await.unwrap();
    for (bad, reason) in [
        (target("b", 6 * CHUNK), Reason::BadRequest),
        (target("tail", 9 * CHUNK), Reason::BadRequest),
        (target("nothing", 0), Reason::UnknownTensor),
    ] {
        let load = client.load(everything()).await.unwrap();
        let error = load.to_device(Layout::Into(vec![bad])).unwrap_err();
        assert_eq!(error.reason(), reason, "{error}");
    }
}

#[tokio::test]
async fn a_failed_copy_ends_the_load_and_gives_everything_back() {
    for copies in [0, 1, 5] {
        let fake = Fake::start(checkpoint().slots(4));
        let device = device(FAST);
        device.fail_after(copies);
        let load = connect(&fake, &device).await.load(everything()).await.unwrap();
        let mut load = load.to_device(Layout::PerObject).unwrap();
        let mut outcome = load.next().await;
        while let Ok(Some(_)) = outcome {
            outcome = load.next().await;
        }
        let error = outcome.unwrap_err();
        assert_eq!(error.failure().stage.as_deref(), Some("dma"), "{error}");
        assert_eq!(load.next().await.unwrap_err(), error);
        fake.until_leased(0).await;
        assert_eq!(device.allocated(), 0, "although the load is still there");
    }
}

#[tokio::test]
async fn a_dropped_load_waits_for_its_copies_and_gives_everything_back() {
    let fake = Fake::start(checkpoint().slots(4));
    let device = device(SLOW);
    let load = connect(&fake, &device).await.load(everything()).await.unwrap();
    let mut load = load.to_device(Layout::PerObject).unwrap();
    load.next().await.unwrap();
    drop(load);
    assert_eq!(device.allocated(), 0);
    fake.until_leased(0).await;
}

#[tokio::test]
async fn what_the_daemon_fails_at_ends_the_copies_too() {
    let fake = Fake::start(checkpoint().fault(Fault::BreakAfter(3)));
    let device = device(FAST);
    let load = connect(&fake, &device).await.load(everything()).await.unwrap();
    let error = load.to_device(Layout::PerObject).unwrap().finish().await.unwrap_err();
    assert_eq!(error.reason(), Reason::DaemonUnreachable);
    assert_eq!(device.allocated(), 0);
    fake.until_leased(0).await;
}

#[tokio::test]
async fn a_slow_device_holds_no_more_than_the_window() {
    let fake = Fake::start(checkpoint().slots(2));
    let device = device(SLOW);
    let load = connect(&fake, &device).await.load(everything()).await.unwrap();
    let mut load = load.to_device(Layout::PerObject).unwrap();
    while load.next().await.unwrap().is_some() {
        let seen = fake.seen();
        assert!(seen.granted - seen.released_by_stream.len() <= 2);
    }
    let resident = load.finish().await.unwrap();
    assert!(resident.device.busy_ratio() > 0.0);
    assert!(!fake.seen().released_untold);
}

#[tokio::test]
async fn segments_are_registered_once_and_until_the_session_ends() {
    let fake = Fake::start(checkpoint().slots(4));
    let device = device(FAST);
    let client = connect(&fake, &device).await;
    for _ in 0..2 {
        let load = client.load(everything()).await.unwrap();
        drop(load.to_device(Layout::PerObject).unwrap().finish().await.unwrap());
    }
    assert_eq!((device.registrations(), fake.seen().segments_sent), (2, 2));
    drop(client);
    assert_eq!(device.registrations(), 0);
}

#[tokio::test]
async fn a_retired_segment_is_unregistered_and_unmapped_and_later_loads_do_without() {
    let fake = Fake::start(checkpoint().slots(4));
    let device = device(FAST);
    let client = connect(&fake, &device).await;
    for (left, retired) in [(2, vec![]), (1, vec![0])] {
        let load = client.load(everything()).await.unwrap();
        let resident = load.to_device(Layout::PerObject).unwrap().finish().await.unwrap();
        let tensor = resident.tensors.iter().find(|tensor| tensor.name == "matrix").unwrap();
        assert_eq!(bytes_on(&device, tensor), stored(&checkpoint(), "matrix").1);
        assert_eq!((device.registrations(), fake.seen().retired), (left, retired));
        if left == 2 {
            fake.retire(0).await;
            fake.until(|seen| seen.retired == [0]).await;
            assert_eq!(device.registrations(), 1, "unregistered before it is unmapped");
        }
    }
    // One that it does not know, or no more.
    fake.retire(0).await;
    fake.until(|seen| seen.retired == [0, 0]).await;
    assert_eq!((fake.seen().retires, fake.seen().hellos), (vec![true], 1));
}

#[tokio::test]
async fn a_retired_segment_lasts_as_long_as_copies_of_it() {
    let fake = Fake::start(checkpoint().slots(2));
    // A copy of a chunk takes some 160 ms.
    let device = device(SLOW / 10.0);
    let client = connect(&fake, &device).await;
    let mut load = client.load(everything().tensors(["in-one"])).await.unwrap();
    let tensor = load.next_tensor().await.unwrap().unwrap();
    let memory = Arc::new(device.allocate(CHUNK as u64).unwrap());
    let stream = device.stream().unwrap();
    let copy = tensor.copy_to(stream.as_ref(), &memory, 0).unwrap();
    // Told too early: the slot is being copied.
    fake.retire(0).await;
    drop(tensor);
    client.status().await.unwrap();
    assert_eq!((device.registrations(), fake.seen().retired.len()), (1, 0));
    copy.wait(stream.as_ref()).unwrap();
    fake.until(|seen| seen.retired == [0]).await;
    assert_eq!(device.registrations(), 0);
    let copied = device.read(&memory, 0..CHUNK as u64 - 15).unwrap();
    assert_eq!(copied, stored(&checkpoint(), "in-one").1);
    load.finish().await.unwrap();
}

#[tokio::test]
async fn bytes_of_a_retired_segment_can_be_read_until_they_are_released() {
    let script = Script::of(&[("a", 2 * CHUNK)]).slots(2);
    let fake = Fake::start(script);
    let client = Client::connect(Endpoint::parse(&fake.endpoint()).unwrap()).await.unwrap();
    let mut load = client.load(everything()).await.unwrap();
    let mut chunks = Vec::new();
    while let Some(chunk) = load.next_chunk().await.unwrap() {
        chunks.push(chunk);
    }
    fake.retire(0).await;
    // A second one is answered behind the first.
    let other = client.load(everything()).await.map(drop);
    assert!(other.is_ok() && fake.seen().retired.is_empty());
    for chunk in chunks.drain(..) {
        let extent = chunk.extents().next().unwrap();
        let at = usize::try_from(extent.offset()).unwrap();
        assert_eq!(extent.bytes(), &fake.object(0)[at..at + extent.bytes().len()]);
        assert!(fake.seen().retired.is_empty());
    }
    fake.until(|seen| seen.retired == [0]).await;
    fake.until_leased(0).await;
}

/// A device that takes as long to register as a test wants.
#[derive(Debug)]
struct Gated {
    device: Arc<FakeDevice>,
    begun: tokio::sync::Notify,
    gate: std::sync::Mutex<std::sync::mpsc::Receiver<()>>,
}

impl Device for Gated {
    fn info(&self) -> &DeviceInfo {
        self.device.info()
    }

    fn register(&self, segment: &Arc<SegmentMap>) -> Result<Registration, DeviceError> {
        self.begun.notify_one();
        self.gate.lock().expect("no panic").recv().ok();
        self.device.register(segment)
    }

    fn allocate(&self, bytes: u64) -> Result<DeviceMemory, DeviceError> {
        self.device.allocate(bytes)
    }

    fn stream(&self) -> Result<Box<dyn CopyStream>, DeviceError> {
        self.device.stream()
    }
}

#[tokio::test]
async fn what_is_retired_before_it_is_registered_is_unregistered_at_once() {
    let fake = Fake::start(checkpoint().slots(4));
    let (open, gate) = std::sync::mpsc::channel();
    let (device, begun) = (device(FAST), tokio::sync::Notify::new());
    let gated = Arc::new(Gated { device: Arc::clone(&device), begun, gate: gate.into() });
    let client = Client::connect(Endpoint::parse(&fake.endpoint()).unwrap()).await.unwrap();
    let client = client.with_device(Arc::clone(&gated) as Arc<dyn Device>);
    let load = client.load(everything().tensors(["matrix"])).await.unwrap();
    let mut load = load.to_device(Layout::PerObject).unwrap();
    // Of the segments of the first grants one is being registered, the other one waits.
    let mut next = Box::pin(load.next());
    tokio::select! {
        outcome = &mut next => panic!("{outcome:?}"),
        () = fake.until(|seen| seen.segments_sent == 2) => {}
    }
    gated.begun.notified().await;
    assert!(futures::poll!(&mut next).is_pending());
    // Told too early. The one that waits goes unregistered, the other one when the driver is done.
    fake.retire(0).await;
    fake.retire(1).await;
    fake.until(|seen| seen.retired.len() == 1).await;
    open.send(()).unwrap();
    let error = next.as_mut().await.unwrap_err();
    drop(next);
    assert!(error.to_string().contains("never came"), "{error}");
    drop((load, client));
    fake.until_leased(0).await;
    assert_eq!(device.registrations(), 0);
}

#[tokio::test]
async fn the_daemon_is_told_which_device_and_where_it_is() {
    let fake = Fake::start(checkpoint());
    let device = device(FAST);
    let client = connect(&fake, &device).await;
    let shard = Shard::new(1, 2).unwrap().along("m*", 1).unwrap();
    let request = everything().shard(shard.clone()).placement(Placement::Node(1));
    let load = client.load(request).await.unwrap();
    drop(load);
    let open = fake.seen().opens.remove(0);
    assert_eq!(open.shard, Some(shard.to_wire()));
    let told = open.device.expect("a device");
    assert_eq!((told.kind.as_str(), told.path.as_str()), ("fake", "registered_read_only"));
    assert_eq!((told.name, told.why), (device.info().name.clone(), String::new()));
    let near = open.placement.and_then(|placement| placement.near);
    assert_eq!(near, Some(pb::placement::Near::NumaNode(1)));
}

#[tokio::test]
async fn what_cannot_be_laid_out_is_said_at_once() {
    let fake = Fake::start(Script::of(&[("a", CHUNK)]));
    let device = device(FAST);
    let client = connect(&fake, &device).await;
    let load = client.load(everything()).await.unwrap();
    let error = load.to_device(Layout::PerTensor).unwrap_err();
    assert!(error.to_string().contains("per object"), "{error}");
    let mut load = client.load(everything()).await.unwrap();
    drop(load.next_chunk().await.unwrap());
    assert_eq!(load.to_device(Layout::PerObject).unwrap_err().reason(), Reason::BadRequest);
    let endpoint = Endpoint::parse(&fake.endpoint()).unwrap();
    let load = Client::connect(endpoint).await.unwrap().load(everything()).await.unwrap();
    let error = load.to_device(Layout::PerObject).unwrap_err();
    assert!(error.to_string().contains("with_device"), "{error}");
    fake.until_leased(0).await;
}

#[test]
fn the_blocking_facade_loads_to_a_device_too() {
    let fake = Fake::start(checkpoint());
    let client = blocking::Client::connect_unix(&fake.socket()).unwrap();
    let client = client.with_device(Arc::new(HostDevice::new()));
    let mut load = client.load(everything()).unwrap().to_device(Layout::PerTensor).unwrap();
    assert_eq!(load.manifest().objects().len(), 4);
    let mut count = 0;
    while load.next().unwrap().is_some() {
        count += 1;
    }
    assert_eq!((count, load.finish().unwrap().tensors.len()), (6, 6));
}

#[tokio::test]
async fn a_caller_with_a_stream_copies_tensors_itself() {
    for slots in [1, 4, 16] {
        let fake = Fake::start(checkpoint().slots(slots));
        let device = device(FAST);
        let stream = device.stream().unwrap();
        let mut load = connect(&fake, &device).await.load(everything()).await.unwrap();
        while let Some(tensor) = load.next_tensor().await.unwrap() {
            let bytes = tensor.bytes().len() as u64;
            let memory = Arc::new(device.allocate(bytes + 3).unwrap());
            let copy = tensor.copy_to(stream.as_ref(), &memory, 3).unwrap();
            let name = tensor.name().to_owned();
            tensor.release();
            let spans = copy.wait(stream.as_ref()).unwrap();
            assert_eq!(spans.iter().map(|span| span.bytes).sum::<u64>(), bytes);
            let copied = device.read(&memory, 3..3 + bytes).unwrap();
            assert_eq!(copied, stored(&checkpoint(), &name).1, "{name} {slots}");
        }
        load.finish().await.unwrap();
        fake.until_leased(0).await;
    }
}
