//! What C programs do beyond reading in place: every other verb, devices, streams and slices. The
//! GPU is the stand-in driver, which checks what it is asked for and that nothing is left at the
//! end.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use forebay_testkit::{Checkpoint, CheckpointSpec, CudaDriver, S3Origin, checkpoint, temp_dir};
use tempfile::TempDir;

use crate::capi::{assert_printed, compiled, endpoint, fnv1a};
use crate::harness::{BUCKET, Node, NodeSpec, files, s3, s3_uri};

const WATCHED: &[&str] = &["-fsanitize=address,undefined"];

/// Less than the checkpoint: what is copied has to come back for the rest.
const SMALL: &str = "512KiB";

/// A daemon with a checkpoint, and a program.
struct Scene {
    made: Checkpoint,
    node: Node,
    program: PathBuf,
    args: [String; 2],
    _origin: S3Origin,
    _dir: TempDir,
}

impl Scene {
    /// An error that says why where there is no C compiler.
    async fn of(program: &str, ram: &str) -> Result<Self, String> {
        let dir = temp_dir();
        let program = compiled(program, dir.path(), WATCHED)?;
        let origin = s3().await;
        let made = checkpoint(CheckpointSpec::new(1, 1 << 20).shards(2));
        origin.put_checkpoint(BUCKET, "m/", &made);
        let node = NodeSpec::of(&origin).ram(ram).start().await;
        let args = [endpoint(&node), s3_uri("m/")];
        Ok(Self { made, node, program, args, _origin: origin, _dir: dir })
    }

    fn command(&self, more: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.args(&self.args).args(more);
        command
    }

    /// Runs the program on the stand-in driver, which has to be content.
    fn on_the_stand_in(&self, more: &[&str], script: &[(&str, &str)]) -> Output {
        let driver = CudaDriver::compiled().expect("what compiled the program");
        let mut command = self.command(more);
        driver.lend(&mut command, script);
        let output = command.output().expect("a program that was compiled");
        assert_eq!(driver.report(), ["ok"], "{output:?}");
        output
    }
}

#[track_caller]
fn fails_saying(output: &Output, what: &[&str]) {
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    for what in what {
        assert!(said.contains(what), "{what:?} is not in {said:?}");
    }
}

/// Lines by their first word; of each the rest, sorted.
fn by_way(output: &Output) -> BTreeMap<String, Vec<String>> {
    let mut ways: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        let (way, rest) = line.split_once(' ').unwrap_or((line, ""));
        ways.entry(way.to_owned()).or_default().push(rest.to_owned());
    }
    ways.values_mut().for_each(|lines| lines.sort());
    ways
}

fn line(name: &str, bytes: &[u8]) -> String {
    format!("{name} {} {:016x}", bytes.len(), fnv1a(bytes))
}

/// A tensor's bytes for one of two ranks, found the slow way: element by element.
fn half(bytes: &[u8], shape: &[u64], dim: usize, rank: u64) -> Vec<u8> {
    let Some(size) = shape.get(dim) else { return bytes.to_vec() };
    let inner: u64 = shape[dim + 1..].iter().product();
    let mine = rank * size / 2..(rank + 1) * size / 2;
    let elements = (0_u64..).zip(bytes.chunks(2));
    let wanted = elements.filter(|(at, _)| mine.contains(&(at / inner % size)));
    wanted.flat_map(|(_, element)| element.to_vec()).collect()
}

#[tokio::test]
async fn every_verb_works_from_c() {
    let scene = match Scene::of("verbs", "4MiB").await {
        Ok(scene) => scene,
        Err(why) => return println!("skipped: {why}"),
    };
    let output = scene.command(&[]).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    let ways = by_way(&output);
    let made = &scene.made;
    let mut tensors: Vec<_> = made
        .tensors()
        .map(|tensor| line(&tensor.name, &made.tensor_bytes(&tensor.name).unwrap()))
        .collect();
    tensors.sort();
    for way in ["all", "thread-1", "thread-2", "stream"] {
        assert_eq!(ways[way], tensors, "{way}");
    }
    let mut objects: Vec<_> =
        files(made).iter().map(|(key, content)| line(key, &content.to_bytes())).collect();
    objects.sort();
    assert_eq!(ways["object"], objects);
    let mut described: Vec<_> =
        files(made).iter().map(|(key, content)| format!("{key} {}", content.len())).collect();
    described.sort();
    assert_eq!(ways["described"], described);
    let (count, bytes) = (made.tensors().count(), made.bytes());
    let info = format!("by-objects {} {} {count} {bytes} {bytes} 1 1", s3_uri("m/"), objects.len());
    assert_eq!(ways["info"], [info]);
    assert_eq!(ways["prefetch"], [bytes.to_string()]);
    assert_eq!(ways["slowly"], ["1"], "a copy that was started is not done");
    for rank in 0..2 {
        let mut slices: Vec<_> = made
            .tensors()
            .map(|tensor| {
                let dim = usize::from(tensor.name.contains("proj"));
                let bytes = made.tensor_bytes(&tensor.name).unwrap();
                line(&tensor.name, &half(&bytes, &tensor.shape, dim, rank))
            })
            .collect();
        slices.sort();
        assert_eq!(ways[&format!("rank-{rank}")], slices, "rank {rank}");
    }
    scene.node.settled().await;
}

#[tokio::test]
async fn a_c_program_copies_to_a_gpu_on_its_own_stream() {
    let scene = match Scene::of("load_cuda", SMALL).await {
        Ok(scene) => scene,
        Err(why) => return println!("skipped: {why}"),
    };
    // Registered, registered plainly, and staged; fast, and slower than the load.
    let scripts: [&[(&str, &str)]; 4] = [
        &[],
        &[("GBPS", "0.02")],
        &[("READ_ONLY", "0"), ("PLAIN", "1")],
        &[("READ_ONLY", "0"), ("GBPS", "0.05")],
    ];
    for script in scripts {
        assert_printed(&scene.on_the_stand_in(&["0"], script), &scene.made);
        scene.node.settled().await;
    }
}

#[tokio::test]
async fn a_c_program_gets_its_slices_in_one_call() {
    let scene = match Scene::of("load_cuda", SMALL).await {
        Ok(scene) => scene,
        Err(why) => return println!("skipped: {why}"),
    };
    let made = &scene.made;
    for rank in 0..2 {
        let output = scene.on_the_stand_in(&["0", &rank.to_string(), "2"], &[]);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(0), "{said}");
        let printed = String::from_utf8_lossy(&output.stdout);
        let mut count = 0;
        for tensor in made.tensors() {
            let bytes = made.tensor_bytes(&tensor.name).unwrap();
            let slice = half(&bytes, &tensor.shape, 0, rank);
            let end = format!("{} {:016x}", slice.len(), fnv1a(&slice));
            let start = format!("{} BF16 [", tensor.name);
            let found = printed.lines().find(|line| line.starts_with(&start));
            assert!(found.is_some_and(|line| line.ends_with(&end)), "{start} {end}: {printed}");
            count += 1;
        }
        assert_eq!(printed.lines().count(), count);
        scene.node.settled().await;
    }
}

#[tokio::test]
async fn what_a_gpu_fails_at_is_said_and_leaves_nothing() {
    let scene = match Scene::of("load_cuda", SMALL).await {
        Ok(scene) => scene,
        Err(why) => return println!("skipped: {why}"),
    };
    let failed = "(DEVICE_FAILED";
    let output = scene.on_the_stand_in(&["0"], &[("FAIL_COPY", "3")]);
    fails_saying(&output, &["cuStreamSynchronize: CUDA_ERROR_LAUNCH_FAILED", "fb_stream_wait"]);
    fails_saying(&output, &[failed, "unspecified launch failure"]);
    scene.node.settled().await;
    let output = scene.on_the_stand_in(&["0", "0", "2"], &[("FAIL_COPY", "3")]);
    fails_saying(&output, &["fb_load_to_device", failed, "unspecified launch failure"]);
    scene.node.settled().await;
    let output = scene.on_the_stand_in(&["0"], &[("MEMORY", "100000")]);
    fails_saying(&output, &["cuMemAlloc: CUDA_ERROR_OUT_OF_MEMORY"]);
    scene.node.settled().await;
    let output = scene.on_the_stand_in(&["1"], &[]);
    fails_saying(&output, &["cuDeviceGet: CUDA_ERROR_INVALID_DEVICE"]);
}

#[tokio::test]
async fn copies_hold_what_they_read_whatever_else_is_closed() {
    let scene = match Scene::of("verbs", SMALL).await {
        Ok(scene) => scene,
        Err(why) => return println!("skipped: {why}"),
    };
    let output = scene.on_the_stand_in(&["cuda:0"], &[("GBPS", "0.002")]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert_eq!(by_way(&output)["all"].len(), scene.made.tensors().count());
    scene.node.settled().await;
}

#[tokio::test]
async fn a_device_that_cannot_be_had_is_an_argument_that_says_why() {
    let scene = match Scene::of("verbs", "4MiB").await {
        Ok(scene) => scene,
        Err(why) => return println!("skipped: {why}"),
    };
    let open = |spec: &str, script: &[(&str, &str)]| scene.on_the_stand_in(&[spec], script);
    fails_saying(&open("cuda:1", &[]), &["(-14)", "1 devices"]);
    fails_saying(&open("cuda:0", &[("DEVICES", "0")]), &["(-14)", "no CUDA-capable device"]);
    fails_saying(&open("cuda:0", &[("VERSION", "11000")]), &["(-14)", "install one of 11.4"]);
    // The kernel's part: a device node alone may be left of something.
    if Path::new("/proc/driver/nvidia").exists() {
        return println!("skipped in part: this machine has a driver");
    }
    let output = scene.command(&["cuda:0"]).output().unwrap();
    fails_saying(&output, &["(-14)", "libcuda.so.1 is not found"]);
}
