//! The daemon's places in the file system: socket folders, their locks, the cache directory.
//!
//! A socket folder is made with mode 0750, the sockets get 0660; where other uids than the daemon's
//! own and root may call, 0755 and 0666, and the peer's credentials alone decide. Who may serve
//! there is decided by a lock on `.forebay.lock` in the folder, which the kernel drops with the
//! process: a socket that a killed daemon left behind is replaced, one of a living daemon never is.

use std::fs::{DirBuilder, File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use forebay_proto::handoff::SOCKET_NAME;
use rustix::fs::{FlockOperation, flock};
use tokio::net::UnixListener;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::DaemonError;
use crate::domain::Domains;
use crate::handoff::socket;
use crate::rpc::Shared;
use crate::rpc::serve::{Door, Face, serve};

/// How long connections may take to send their last bytes.
pub(super) const FAREWELL: Duration = Duration::from_secs(1);

const LOCK_NAME: &str = ".forebay.lock";
const FOLDER_MODE: u32 = 0o750;
const OPEN_FOLDER_MODE: u32 = 0o755;
const SOCKET_MODE: u32 = 0o660;
const OPEN_SOCKET_MODE: u32 = 0o666;
const CACHE_MODE: u32 = 0o700;

/// The sockets of this daemon. Dropped, they are removed.
pub(super) struct Places {
    sockets: Vec<Place>,
}

struct Place {
    socket: PathBuf,
    handoff: PathBuf,
    /// What this daemon bound, and so may remove.
    bound: Vec<PathBuf>,
    _lock: File,
}

impl Drop for Place {
    fn drop(&mut self) {
        for path in &self.bound {
            // Under the lock: it is ours. One that is gone already is as it should be.
            drop(std::fs::remove_file(path));
        }
    }
}

impl Places {
    /// Takes the folders of `sockets` for this daemon.
    pub(super) fn take(sockets: &[PathBuf], domains: &Domains) -> Result<Self, DaemonError> {
        let others = socket_mode(domains) == OPEN_SOCKET_MODE;
        let mode = if others { OPEN_FOLDER_MODE } else { FOLDER_MODE };
        let take = |path: &PathBuf| Place::take(path, mode);
        Ok(Self { sockets: sockets.iter().map(take).collect::<Result<_, _>>()? })
    }

    /// Binds every socket and serves it.
    pub(super) fn serve(
        &mut self,
        listeners: &mut JoinSet<()>,
        shared: &[Arc<Shared>],
        face: &Face,
        closing: &CancellationToken,
    ) -> Result<(), DaemonError> {
        let mode = socket_mode(&face.domains);
        for place in &mut self.sockets {
            let listener =
                place.bind(place.socket.clone(), mode, |path| UnixListener::bind(path))?;
            listeners.spawn(serve(Door::Unix(listener), face.clone(), closing.clone()));
            let handoff = place.bind(place.handoff.clone(), mode, socket::open)?;
            let domains = face.domains.clone();
            let sessions: Arc<[_]> = shared.iter().map(|one| Arc::clone(&one.sessions)).collect();
            let Some(connections) = shared.first().map(|one| one.handoffs.clone()) else {
                continue;
            };
            let closing = closing.clone();
            listeners.spawn(async move {
                let taken = crate::places::Places::default();
                let places = move |uid| taken.take(uid, true).filter(|_| domains.may_connect(uid));
                tokio::select! {
                    () = socket::serve(handoff, sessions, places, connections) => {}
                    () = closing.cancelled() => {}
                }
            });
        }
        Ok(())
    }

    /// The sockets, for the log.
    pub(super) fn shown(&self) -> String {
        let uris = self.sockets.iter().map(|place| format!("unix://{}", place.socket.display()));
        uris.collect::<Vec<_>>().join(",")
    }
}

impl Place {
    fn take(socket: &Path, folder_mode: u32) -> Result<Self, DaemonError> {
        let folder = socket.parent().unwrap_or_else(|| Path::new("/"));
        if !folder.exists() {
            DirBuilder::new()
                .recursive(true)
                .mode(folder_mode)
                .create(folder)
                .map_err(DaemonError::system(format!("make {}", folder.display())))?;
        }
        let lock_path = folder.join(LOCK_NAME);
        let lock = open_lock(folder)
            .map_err(DaemonError::system(format!("open {}", lock_path.display())))?;
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => {
                return Err(DaemonError::Taken { path: socket.display().to_string() });
            }
            Err(errno) => {
                let what = format!("lock {}", lock_path.display());
                return Err(DaemonError::system(what)(errno.into()));
            }
        }
        let handoff = folder.join(SOCKET_NAME);
        Ok(Self { socket: socket.to_owned(), handoff, bound: Vec::new(), _lock: lock })
    }

    fn bind<T>(
        &mut self,
        path: PathBuf,
        mode: u32,
        open: impl FnOnce(&Path) -> io::Result<T>,
    ) -> Result<T, DaemonError> {
        let socket = bind(&path, mode, open)?;
        self.bound.push(path);
        Ok(socket)
    }
}

/// Who may connect. The peer's credentials decide who is served; the mode only keeps the curious
/// out where nobody but the daemon's own uid and root is on the list.
fn socket_mode(domains: &Domains) -> u32 {
    let own = rustix::process::getuid().as_raw();
    if domains.are_within(&[0, own]) { SOCKET_MODE } else { OPEN_SOCKET_MODE }
}

/// Whether someone accepts there. A socket of another type than ours is somebody's too.
fn is_served(path: &Path) -> bool {
    match std::os::unix::net::UnixStream::connect(path) {
        Ok(_) => true,
        Err(error) => error.raw_os_error() == Some(rustix::io::Errno::PROTOTYPE.raw_os_error()),
    }
}

/// Binds at `path`, replacing a socket that nobody serves; anything else there is left alone.
fn bind<T>(
    path: &Path,
    mode: u32,
    open: impl FnOnce(&Path) -> io::Result<T>,
) -> Result<T, DaemonError> {
    use std::os::unix::fs::FileTypeExt;
    let what = || format!("listen on {}", path.display());
    match std::fs::symlink_metadata(path) {
        Ok(found) if found.file_type().is_socket() && is_served(path) => {
            return Err(DaemonError::Taken { path: path.display().to_string() });
        }
        Ok(found) if found.file_type().is_socket() => {
            std::fs::remove_file(path).map_err(DaemonError::system(what()))?;
        }
        Ok(_) => {
            let error = io::Error::new(io::ErrorKind::AlreadyExists, "it is no socket");
            return Err(DaemonError::system(what())(error));
        }
        Err(_absent) => {}
    }
    let socket = open(path).map_err(DaemonError::system(what()))?;
    std::fs::set_permissions(path, Permissions::from_mode(mode))
        .map_err(DaemonError::system(what()))?;
    Ok(socket)
}

/// The cache directory of this daemon, and of no other one as long as this lives.
pub(super) struct CacheDir {
    path: PathBuf,
    _lock: File,
}

impl CacheDir {
    /// Takes the directory, which is made if it is missing.
    pub(super) fn take(dir: &Path) -> io::Result<Self> {
        cache_dir(dir)?;
        let lock = open_lock(dir)?;
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Self { path: dir.to_owned(), _lock: lock }),
            Err(rustix::io::Errno::WOULDBLOCK) => Err(io::Error::new(
                io::ErrorKind::ResourceBusy,
                "another forebayd uses it: give each its own --cache-dir",
            )),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

fn open_lock(folder: &Path) -> io::Result<File> {
    OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .custom_flags(rustix::fs::OFlags::NOFOLLOW.bits().cast_signed())
        .open(folder.join(LOCK_NAME))
}

/// Makes sure of a cache directory that is ours alone.
fn cache_dir(dir: &Path) -> io::Result<()> {
    if !dir.exists() {
        DirBuilder::new().recursive(true).mode(CACHE_MODE).create(dir)?;
    }
    let found = std::fs::symlink_metadata(dir)?;
    let refused = |why: &str| Err(io::Error::new(io::ErrorKind::PermissionDenied, why));
    if found.is_symlink() {
        return refused("it is a symbolic link: name the directory that it leads to");
    }
    if !found.is_dir() {
        return refused("it is no directory");
    }
    if found.uid() != rustix::process::getuid().as_raw() {
        return refused("it belongs to another user");
    }
    if found.mode() & 0o022 != 0 {
        return refused("others may write to it (chmod go-w)");
    }
    Ok(())
}

/// Raises the soft limit on open files to the hard one, as every segment takes a descriptor;
/// returns what it is then.
pub(super) fn raise_descriptor_limit() -> u64 {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let raised = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit });
    if let Err(error) = raised {
        tracing::debug!(%error, "the limit on open files stays as it is");
    }
    getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)
}

/// Tells systemd that the daemon serves.
pub(super) fn notify_ready(socket: Option<&Path>) {
    let Some(path) = socket else { return };
    let sent = UnixDatagram::unbound().and_then(|datagram| match path.to_str() {
        // A leading @ is the abstract namespace.
        Some(name) if name.starts_with('@') => {
            use std::os::linux::net::SocketAddrExt;
            let address = std::os::unix::net::SocketAddr::from_abstract_name(&name[1..])?;
            datagram.send_to_addr(b"READY=1", &address)
        }
        _ => datagram.send_to(b"READY=1", path),
    });
    if let Err(error) = sent {
        tracing::warn!(%error, "cannot tell NOTIFY_SOCKET that the daemon is ready");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_has_one_daemon() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("run/forebay.sock");
        let first = Place::take(&socket, FOLDER_MODE).unwrap();
        let mode = std::fs::metadata(socket.parent().unwrap()).unwrap().mode();
        assert_eq!(mode & 0o777, FOLDER_MODE);
        assert!(matches!(Place::take(&socket, FOLDER_MODE), Err(DaemonError::Taken { .. })));
        drop(first);
        drop(Place::take(&socket, FOLDER_MODE).unwrap());
    }

    #[tokio::test]
    async fn a_stale_socket_is_replaced_and_a_file_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s.sock");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        assert!(path.exists(), "left behind");
        let listener = bind(&path, SOCKET_MODE, |path| UnixListener::bind(path)).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, SOCKET_MODE);
        drop(listener);
        let file = dir.path().join("precious");
        std::fs::write(&file, b"x").unwrap();
        bind(&file, SOCKET_MODE, |path| UnixListener::bind(path)).unwrap_err();
        assert_eq!(std::fs::read(&file).unwrap(), b"x");
    }

    #[test]
    fn what_was_not_bound_here_is_never_removed() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("model.safetensors");
        std::fs::write(&file, b"precious").unwrap();
        let mut place = Place::take(&file, FOLDER_MODE).unwrap();
        let open = |path: &Path| std::os::unix::net::UnixListener::bind(path);
        place.bind(file.clone(), SOCKET_MODE, open).unwrap_err();
        drop(place);
        assert_eq!(std::fs::read(&file).unwrap(), b"precious");
    }

    #[test]
    fn a_socket_that_someone_serves_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("docker.sock");
        let other = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let refused = bind(&path, SOCKET_MODE, |_| Ok(()));
        assert!(matches!(refused, Err(DaemonError::Taken { .. })));
        drop(other);
        let open = |path: &Path| std::os::unix::net::UnixListener::bind(path);
        drop(bind(&path, SOCKET_MODE, open).unwrap());
    }

    #[test]
    fn a_cache_directory_has_one_daemon() {
        let dir = tempfile::tempdir().unwrap();
        let first = CacheDir::take(dir.path()).unwrap();
        let error = CacheDir::take(dir.path()).map(|_| ()).unwrap_err();
        assert!(error.to_string().contains("--cache-dir"), "{error}");
        drop(first);
        assert_eq!(CacheDir::take(dir.path()).unwrap().path(), dir.path());
    }

    #[test]
    fn a_cache_directory_that_others_may_write_to_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let ours = dir.path().join("a/b");
        cache_dir(&ours).unwrap();
        assert_eq!(std::fs::metadata(&ours).unwrap().mode() & 0o777, CACHE_MODE);
        std::fs::set_permissions(&ours, Permissions::from_mode(0o777)).unwrap();
        assert!(cache_dir(&ours).unwrap_err().to_string().contains("chmod"));
        std::fs::set_permissions(&ours, Permissions::from_mode(0o700)).unwrap();
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(&ours, &link).unwrap();
        assert!(CacheDir::take(&link).map(|_| ()).unwrap_err().to_string().contains("link"));
        assert_eq!(std::fs::read_dir(&ours).unwrap().count(), 0);
    }
}
