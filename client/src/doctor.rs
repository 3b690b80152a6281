//! What only the client's side can check: who this process is, whether it reaches the daemon's
//! sockets, what it may lock, and whether there is a GPU that it can use.
//!
//! Nothing is sent to the daemon but a connection that is closed at once. Owns nothing.

use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use forebay_device::{CudaDriver, cuda_driver};
use forebay_proto::model::{Check, Verdict};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use rustix::process::{Resource, getrlimit};

use crate::endpoint::Endpoint;

/// Memory that a driver may register: less than this is what systems give who were never asked.
const MEMLOCK_BYTES_MIN: u64 = 64 << 20;

/// Where the kernel shows devices.
const DEVICES: &str = "/dev";

/// Checks what this process needs of the machine to use the daemon there, and what it can see of
/// the daemon without calling it. Opens the CUDA driver if there is one, which can take a second.
#[must_use]
pub fn check_client(endpoint: &Endpoint) -> Vec<Check> {
    let uid = rustix::process::geteuid().as_raw();
    let gid = rustix::process::getegid().as_raw();
    let mut checks = vec![ok("uid", format!("uid {uid}, gid {gid}"))];
    match (endpoint.socket(), endpoint.handoff()) {
        (Some(grpc), Some(handoff)) => {
            checks.push(socket("socket", &grpc, SocketType::STREAM));
            checks.push(socket("handoff", &handoff, SocketType::SEQPACKET));
        }
        _ => checks.push(but(
            ok("socket", format!("{endpoint}, which passes no memory")),
            Verdict::Warn,
            "give a unix:// endpoint: over TCP there are control verbs only, no load and no get",
        )),
    }
    let nodes = device_nodes(Path::new(DEVICES));
    let driver = cuda_driver();
    let has_gpu = !nodes.is_empty() || driver.is_ok();
    checks.push(memlock(getrlimit(Resource::Memlock).current, has_gpu));
    checks.extend(gpu(&nodes, driver));
    checks
}

fn ok(name: &str, found: impl Into<String>) -> Check {
    Check {
        group: "client".to_owned(),
        name: name.to_owned(),
        verdict: Verdict::Ok,
        found: found.into(),
        advice: String::new(),
    }
}

fn but(check: Check, verdict: Verdict, advice: &str) -> Check {
    Check { verdict, advice: advice.to_owned(), ..check }
}

/// Whether this process can connect to a socket.
fn socket(name: &str, path: &Path, kind: SocketType) -> Check {
    let shown = path.display();
    let found = match std::fs::metadata(path) {
        Ok(found) if found.file_type().is_socket() => {
            format!("{shown}, mode {:04o}, uid {}", found.mode() & 0o7777, found.uid())
        }
        Ok(_) => {
            let advice = "give another --endpoint: that is no socket";
            return but(ok(name, format!("{shown} is no socket")), Verdict::Bad, advice);
        }
        Err(error) => {
            let advice = match error.kind() {
                io::ErrorKind::PermissionDenied => {
                    "its folder is closed to this user: run as the daemon's user, or have \
                     `allow_uids` name this uid"
                }
                _ => "start forebayd, or give the --endpoint where it listens",
            };
            return but(ok(name, format!("{shown}: {error}")), Verdict::Bad, advice);
        }
    };
    let advice = match connect(path, kind) {
        // Somebody accepts there, and is busy.
        Ok(()) | Err(Errno::AGAIN) => return ok(name, found),
        Err(Errno::ACCESS) => {
            "run as the daemon's user, or have `allow_uids` name this uid: the socket is closed to it"
        }
        Err(Errno::CONNREFUSED) => "start forebayd: nobody listens there any more",
        Err(Errno::PROTOTYPE) => "give another --endpoint: that is a socket of another program",
        Err(errno) => {
            let advice = "start forebayd, or give the --endpoint where it listens";
            return but(ok(name, format!("{found}: {errno}")), Verdict::Bad, advice);
        }
    };
    but(ok(name, format!("{found}: cannot connect")), Verdict::Bad, advice)
}

fn connect(path: &Path, kind: SocketType) -> Result<(), Errno> {
    let address = SocketAddrUnix::new(path)?;
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, kind, flags, None)?;
    rustix::net::connect(&socket, &address)
}

/// What may be locked, which matters where a driver registers the segments.
fn memlock(limit: Option<u64>, has_gpu: bool) -> Check {
    let found = limit.map_or_else(|| "unlimited".to_owned(), |bytes| format!("{bytes} bytes"));
    let little = limit.is_some_and(|bytes| bytes < MEMLOCK_BYTES_MIN);
    match little && has_gpu {
        false => ok("memlock", found),
        true => but(
            ok("memlock", found),
            Verdict::Warn,
            "run it with `ulimit -l unlimited`: a driver may refuse to register segments, and \
             copies are then staged",
        ),
    }
}

/// Names of the device nodes of GPUs: `nvidia0` and so on.
fn device_nodes(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    let is_gpu = |name: &String| {
        let number = name.strip_prefix("nvidia");
        number.is_some_and(|number| {
            !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit())
        })
    };
    let mut names: Vec<String> = names.filter(is_gpu).collect();
    names.sort();
    names
}

/// What is there of GPUs. A machine without any is as it should be.
fn gpu(nodes: &[String], driver: Result<CudaDriver, String>) -> [Check; 2] {
    let shown = match nodes {
        [] => ok("gpu_nodes", "no /dev/nvidia*"),
        some => ok("gpu_nodes", format!("/dev/{}", some.join(", /dev/"))),
    };
    let driver = match (driver, nodes.is_empty()) {
        (Ok(CudaDriver { version, devices: 0 }), _) => but(
            ok("cuda_driver", format!("CUDA {version}, no device")),
            Verdict::Warn,
            "look at CUDA_VISIBLE_DEVICES, and whether this container was given a GPU",
        ),
        (Ok(CudaDriver { version, devices }), _) => {
            ok("cuda_driver", format!("CUDA {version}, {devices} devices"))
        }
        (Err(why), true) => ok("cuda_driver", format!("none: {why}")),
        (Err(why), false) => but(
            ok("cuda_driver", why),
            Verdict::Bad,
            "install NVIDIA's driver, or have the container's runtime mount it: there are GPUs, and \
             --device cuda cannot use them",
        ),
    };
    [shown, driver]
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn sockets_are_tried() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("forebay.sock");
        let verdict = |kind| {
            let check = socket("socket", &path, kind);
            assert_eq!(check.verdict == Verdict::Ok, check.advice.is_empty(), "{check:?}");
            check.verdict
        };
        assert_eq!(verdict(SocketType::STREAM), Verdict::Bad, "nothing is there");
        let listener = UnixListener::bind(&path).unwrap();
        assert_eq!(verdict(SocketType::STREAM), Verdict::Ok);
        assert_eq!(verdict(SocketType::SEQPACKET), Verdict::Bad, "of another kind");
        drop(listener);
        assert_eq!(verdict(SocketType::STREAM), Verdict::Bad, "nobody listens");
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, b"").unwrap();
        assert_eq!(verdict(SocketType::STREAM), Verdict::Bad, "no socket");
    }

    #[test]
    fn an_endpoint_that_passes_no_memory_is_told() {
        let checks = check_client(&Endpoint::parse("tcp://127.0.0.1:1").unwrap());
        let socket = checks.iter().find(|check| check.name == "socket").unwrap();
        assert_eq!(socket.verdict, Verdict::Warn);
        assert!(!checks.iter().any(|check| check.name == "handoff"));
    }

    #[test]
    fn a_gpu_without_a_driver_is_bad_and_no_gpu_is_not() {
        let dir = tempfile::tempdir().unwrap();
        assert!(device_nodes(dir.path()).is_empty());
        for name in ["nvidia1", "nvidia0", "nvidiactl", "nvidia-uvm", "sda"] {
            std::fs::write(dir.path().join(name), b"").unwrap();
        }
        let nodes = device_nodes(dir.path());
        assert_eq!(nodes, ["nvidia0", "nvidia1"]);
        let none = || Err("there is no driver".to_owned());
        let driver = |devices| Ok(CudaDriver { version: "12.4".into(), devices });
        let verdict = |nodes: &[String], driver| gpu(nodes, driver)[1].verdict;
        assert_eq!(verdict(&nodes, none()), Verdict::Bad);
        assert_eq!(verdict(&[], none()), Verdict::Ok);
        assert_eq!(verdict(&nodes, driver(2)), Verdict::Ok);
        assert_eq!(verdict(&nodes, driver(0)), Verdict::Warn);
    }

    #[test]
    fn little_may_be_locked_where_there_is_no_gpu() {
        assert_eq!(memlock(Some(8 << 20), false).verdict, Verdict::Ok);
        assert_eq!(memlock(Some(8 << 20), true).verdict, Verdict::Warn);
        assert_eq!(memlock(None, true).verdict, Verdict::Ok);
    }
}
