//! A daemon as a child process, in a directory of its own.
//!
//! [`DaemonProcess`] owns the child and the directory with its sockets and cache. Readiness comes
//! over `NOTIFY_SOCKET`, as it does under systemd: nothing polls or sleeps. Dropped, the child is
//! killed and reaped and the directory removed. A [`Watch`] hears of that before and after.

use std::ffi::OsString;
use std::fs::Permissions;
use std::io::{self, Read};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

/// How long a daemon may take until it is ready: populating the first segment on a slow machine.
const READY_WITHIN: Duration = Duration::from_secs(60);

/// Who looks at what a daemon leaves behind.
#[derive(Debug, Clone, Copy)]
pub struct Watch {
    /// Asks a daemon that is about to be dropped whatever it tells; it may be dead, or stand still.
    pub ask: fn(&DaemonProcess) -> String,
    /// Gets its directory, with all it wrote there, once it has ended; and what was asked.
    pub look: fn(&Path, &str),
}

/// How to start a daemon.
#[derive(Debug)]
pub struct DaemonSpec {
    program: PathBuf,
    args: Vec<OsString>,
    env: Vec<(String, String)>,
    cache: Option<PathBuf>,
    log: bool,
    watch: Option<Watch>,
}

impl DaemonSpec {
    /// A daemon run by `program` with its first arguments.
    #[must_use]
    pub fn new(program: impl Into<PathBuf>, args: &[&str]) -> Self {
        Self {
            program: program.into(),
            args: args.iter().map(OsString::from).collect(),
            env: Vec::new(),
            cache: None,
            log: false,
            watch: None,
        }
    }

    /// Has it watched.
    #[must_use]
    pub fn watched(self, watch: Watch) -> Self {
        Self { watch: Some(watch), ..self }
    }

    /// Adds an argument.
    #[must_use]
    pub fn arg(mut self, arg: impl Into<OsString>) -> Self {
        self.args.push(arg.into());
        self
    }

    /// Has it started by another program, which gets the daemon's command line behind its own.
    #[must_use]
    pub fn under(mut self, program: impl Into<PathBuf>, args: &[&str]) -> Self {
        let daemon = std::mem::replace(&mut self.program, program.into());
        let wrapper = args.iter().map(OsString::from).chain([daemon.into_os_string()]);
        self.args.splice(0..0, wrapper);
        self
    }

    /// Adds variables; the child has no others but `PATH`.
    #[must_use]
    pub fn env(mut self, env: impl IntoIterator<Item = (String, String)>) -> Self {
        self.env.extend(env);
        self
    }

    /// With its cache in this directory, instead of `cache/` in its own.
    #[must_use]
    pub fn cache(self, dir: impl Into<PathBuf>) -> Self {
        Self { cache: Some(dir.into()), ..self }
    }

    /// Lets the child's log through to this process's stderr.
    #[must_use]
    pub fn with_log(mut self) -> Self {
        self.log = true;
        self
    }

    /// The settings that a daemon started like this has, as it prints them.
    ///
    /// # Errors
    /// If it cannot be started, or refuses its settings.
    pub fn settings(&self) -> io::Result<String> {
        self.printed(&self.args, &self.env)
    }

    /// The same of one that is told nothing.
    ///
    /// # Errors
    /// As for [`settings`](Self::settings).
    pub fn default_settings(&self) -> io::Result<String> {
        self.printed(self.args.get(..1).unwrap_or_default(), &[])
    }

    fn printed(&self, args: &[OsString], env: &[(String, String)]) -> io::Result<String> {
        let mut command = Command::new(&self.program);
        command.args(args).arg("--check-config").env_clear().envs(env.iter().cloned());
        let output = command.output()?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            return Err(io::Error::other(format!("the daemon refuses its settings: {said}")));
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Starts the daemon and waits until it is ready.
    ///
    /// # Errors
    /// If it cannot be started or ends before it is ready; its log is in the error.
    pub fn start(self) -> io::Result<DaemonProcess> {
        DaemonProcess::start(self, TempDir::with_prefix("forebay-")?)
    }

    /// As [`start`](Self::start), in the directory of a daemon that is gone: its cache is found.
    ///
    /// # Errors
    /// As for [`start`](Self::start).
    pub fn start_in(self, dir: TempDir) -> io::Result<DaemonProcess> {
        DaemonProcess::start(self, dir)
    }
}

/// A running daemon.
#[derive(Debug)]
pub struct DaemonProcess {
    child: Child,
    dir: Option<TempDir>,
    watch: Option<Watch>,
}

impl DaemonProcess {
    fn start(spec: DaemonSpec, dir: TempDir) -> io::Result<Self> {
        let notify_path = dir.path().join("notify.sock");
        drop(std::fs::remove_file(&notify_path));
        let notify = UnixDatagram::bind(&notify_path)?;
        // The daemon may be another user's; the directory decides who comes here.
        std::fs::set_permissions(&notify_path, Permissions::from_mode(0o666))?;
        notify.set_read_timeout(Some(Duration::from_millis(50)))?;
        let log = std::fs::File::create(dir.path().join("log"))?;
        let stdout = std::fs::File::create(dir.path().join("stdout"))?;
        let mut command = Command::new(&spec.program);
        command
            .args(&spec.args)
            .arg("--listen")
            .arg(format!("unix://{}", socket_in(dir.path()).display()))
            .arg("--cache-dir")
            .arg(spec.cache.unwrap_or_else(|| dir.path().join("cache")))
            .env_clear()
            .envs(std::env::var_os("PATH").map(|path| ("PATH", path)))
            .envs(spec.env)
            .env("NOTIFY_SOCKET", &notify_path)
            .stdin(Stdio::null())
            .stdout(stdout);
        if spec.log {
            command.stderr(Stdio::inherit());
        } else {
            command.stderr(log);
        }
        let child = command.spawn()?;
        let mut daemon = Self { child, dir: Some(dir), watch: spec.watch };
        daemon.wait_ready(&notify)?;
        Ok(daemon)
    }

    fn wait_ready(&mut self, notify: &UnixDatagram) -> io::Result<()> {
        let mut packet = [0; 64];
        let tries = READY_WITHIN.as_millis() / 50;
        for _ in 0..tries {
            match notify.recv(&mut packet) {
                Ok(length) if packet[..length].starts_with(b"READY=1") => return Ok(()),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
            if let Some(status) = self.child.try_wait()? {
                let log = self.log();
                return Err(io::Error::other(format!("the daemon ended with {status}: {log}")));
            }
        }
        Err(io::Error::new(io::ErrorKind::TimedOut, "the daemon did not become ready"))
    }

    /// Its socket.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        socket_in(self.dir())
    }

    /// Its directory: `run/`, `cache/`, `log` and `stdout`.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.dir.as_ref().map_or_else(|| Path::new("/"), TempDir::path)
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it logged so far.
    #[must_use]
    pub fn log(&self) -> String {
        let mut text = String::new();
        let read = std::fs::File::open(self.dir().join("log"))
            .and_then(|mut file| file.read_to_string(&mut text));
        if let Err(error) = read {
            return format!("(no log: {error})");
        }
        text
    }

    /// The most bytes it had resident so far (`VmHWM`).
    ///
    /// # Errors
    /// If the process is gone.
    pub fn peak_resident_bytes(&self) -> io::Result<u64> {
        status_bytes(self.child.id(), "VmHWM:")
    }

    /// Resident memory now.
    ///
    /// # Errors
    /// If it is gone.
    pub fn resident_bytes(&self) -> io::Result<u64> {
        status_bytes(self.child.id(), "VmRSS:")
    }

    /// Sends it a signal.
    ///
    /// # Errors
    /// If it is gone.
    pub fn signal(&self, signal: Signal) -> io::Result<()> {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        let pid = pid.ok_or_else(|| io::Error::other("no process id"))?;
        Ok(kill_process(pid, signal)?)
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// If it cannot be waited for.
    pub fn wait(&mut self) -> io::Result<ExitStatus> {
        self.child.wait()
    }

    /// How it ended, if it has.
    ///
    /// # Errors
    /// If it cannot be waited for.
    pub fn try_wait(&mut self) -> io::Result<Option<ExitStatus>> {
        self.child.try_wait()
    }

    /// Ends it with SIGTERM; returns how it ended.
    ///
    /// # Errors
    /// If it is gone already.
    pub fn stop(&mut self) -> io::Result<ExitStatus> {
        self.signal(Signal::TERM)?;
        self.wait()
    }

    /// Kills it at once and keeps its directory for another one.
    ///
    /// # Errors
    /// If it cannot be killed.
    pub fn kill(mut self) -> io::Result<TempDir> {
        self.child.kill()?;
        self.child.wait()?;
        if let Some(watch) = self.watch.take() {
            (watch.look)(self.dir(), "");
        }
        self.dir.take().ok_or_else(|| io::Error::other("no directory"))
    }
}

impl Drop for DaemonProcess {
    fn drop(&mut self) {
        // One whose directory went to another was looked at then.
        let watch = self.watch.take().filter(|_| !std::thread::panicking());
        let told = watch.map(|watch| (watch.ask)(self));
        // A child that has ended already cannot be killed, which is as it should be.
        drop(self.child.kill());
        drop(self.child.wait());
        if let Some(watch) = watch {
            (watch.look)(self.dir(), told.as_deref().unwrap_or_default());
        }
    }
}

fn socket_in(dir: &Path) -> PathBuf {
    dir.join("run/forebay.sock")
}

/// A size in `/proc/PID/status`, in bytes.
pub(crate) fn status_bytes(pid: u32, field: &str) -> io::Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    status
        .lines()
        .find_map(|line| line.strip_prefix(field))
        .and_then(|rest| rest.split_whitespace().next())
        .and_then(|kib| kib.parse::<u64>().ok())
        .map(|kib| kib * 1024)
        .ok_or_else(|| io::Error::other(format!("no {field} of process {pid}")))
}
