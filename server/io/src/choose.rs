//! Which engine this kernel allows, found by making it, and the reason in words.
//!
//! io_uring is forbidden in many containers (a seccomp filter), on some distributions (a sysctl),
//! and missing in old kernels. None of that is an error: the engine with threads takes over, and
//! the reason is a value for the log, the metrics and `forebay doctor`.

use std::fmt;
use std::io;
use std::sync::Arc;

use rustix::io::Errno;
use rustix::process::{Resource, getrlimit};

use crate::engine::{EngineSettings, IoEngine};
use crate::stats::EngineKind;
use crate::threads::ThreadsEngine;
use crate::uring::{Features, SetupError, UringEngine};

/// What is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Preference {
    /// io_uring where it can be had.
    Auto,
    /// Threads in any case.
    Threads,
}

/// An engine, and why it is that one.
#[derive(Debug, Clone)]
pub struct EngineChoice {
    /// The engine.
    pub engine: Arc<dyn IoEngine>,
    /// Why it is that one.
    pub reason: EngineReason,
}

/// Why an engine was chosen. `Display` is a sentence for a person, with what to do.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum EngineReason {
    /// io_uring works.
    Uring {
        /// Whether completions are worked off when asked for (Linux 6.1).
        deferred: bool,
        /// Whether memory can be registered (Linux 5.19).
        registered_memory: bool,
    },
    /// Threads were asked for.
    Asked,
    /// The sysctl kernel.io_uring_disabled forbids it.
    DisabledBySysctl(u8),
    /// The process may not: most likely a seccomp filter of its container.
    Forbidden,
    /// The kernel does not have it.
    NotInKernel,
    /// The process may not lock enough memory (kernels before 5.12 count rings).
    Memlock(Option<u64>),
    /// The kernel has it, but not these operations.
    MissingOpcodes(Vec<&'static str>),
    /// It failed in another way.
    Failed(String),
}

impl EngineReason {
    /// The engine this is the reason for.
    #[must_use]
    pub fn kind(&self) -> EngineKind {
        match self {
            Self::Uring { .. } => EngineKind::Uring,
            _ => EngineKind::Threads,
        }
    }

    /// A short name for a metric's label.
    #[must_use]
    pub fn label(&self) -> &'static str {
        match self {
            Self::Uring { .. } => "available",
            Self::Asked => "asked",
            Self::DisabledBySysctl(_) => "sysctl",
            Self::Forbidden => "forbidden",
            Self::NotInKernel => "not_in_kernel",
            Self::Memlock(_) => "memlock",
            Self::MissingOpcodes(_) => "missing_opcodes",
            Self::Failed(_) => "failed",
        }
    }

    fn of(error: &SetupError, sysctl: Option<u8>) -> Self {
        let error = match error {
            SetupError::MissingOpcodes(missing) => return Self::MissingOpcodes(missing.clone()),
            SetupError::Failed(error) => error,
        };
        match (error.raw_os_error().map(Errno::from_raw_os_error), sysctl) {
            (Some(Errno::PERM | Errno::ACCESS), Some(level @ 1..)) => Self::DisabledBySysctl(level),
            (Some(Errno::PERM | Errno::ACCESS), _) => Self::Forbidden,
            (Some(Errno::NOSYS), _) => Self::NotInKernel,
            (Some(Errno::NOMEM), _) => Self::Memlock(getrlimit(Resource::Memlock).current),
            _ => Self::Failed(error.to_string()),
        }
    }
}

impl fmt::Display for EngineReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Uring { deferred, registered_memory } => {
                let has = |has| if has { "with" } else { "without" };
                let (deferred, registered) = (has(*deferred), has(*registered_memory));
                write!(f, "io_uring {deferred} deferred work, {registered} registered memory")
            }
            Self::Asked => f.write_str("threads, as asked for"),
            Self::DisabledBySysctl(level) => write!(
                f,
                "threads, as the sysctl kernel.io_uring_disabled is {level}: set it to 0, or to 1 \
                 with this process in kernel.io_uring_group"
            ),
            Self::Forbidden => f.write_str(
                "threads, as this process may not use io_uring: allow io_uring_setup, \
                 io_uring_enter and io_uring_register in the container's seccomp profile",
            ),
            Self::NotInKernel => {
                f.write_str("threads, as this kernel has no io_uring: it needs Linux 5.6 or newer")
            }
            Self::Memlock(limit) => {
                let limit = limit.map_or_else(|| "none".to_owned(), |bytes| bytes.to_string());
                write!(
                    f,
                    "threads, as no more memory may be locked (limit {limit}): raise LimitMEMLOCK \
                     of the service"
                )
            }
            Self::MissingOpcodes(missing) => write!(
                f,
                "threads, as this kernel's io_uring lacks {}: it needs Linux 5.6 or newer",
                missing.join(", ")
            ),
            Self::Failed(error) => write!(f, "threads, as io_uring cannot be set up: {error}"),
        }
    }
}

/// Makes the best engine that this kernel allows. Fails only where no thread can be started.
pub fn choose(settings: &EngineSettings, preference: Preference) -> io::Result<EngineChoice> {
    let reason = match preference {
        Preference::Threads => EngineReason::Asked,
        Preference::Auto => match UringEngine::start(settings) {
            Ok((engine, Features { deferred, registered_memory })) => {
                let reason = EngineReason::Uring { deferred, registered_memory };
                return Ok(EngineChoice { engine: Arc::new(engine), reason });
            }
            Err(error) => EngineReason::of(&error, sysctl()),
        },
    };
    Ok(EngineChoice { engine: Arc::new(ThreadsEngine::start(settings)?), reason })
}

/// What the sysctl says: 0 everyone may, 1 a group, 2 nobody. None where it does not exist.
fn sysctl() -> Option<u8> {
    let text = std::fs::read_to_string("/proc/sys/kernel/io_uring_disabled").ok()?;
    text.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_refusal_has_its_reason_and_a_remedy() {
        let reason =
            |errno: Errno, sysctl| EngineReason::of(&SetupError::Failed(errno.into()), sysctl);
        let cases = [
            (reason(Errno::PERM, Some(0)), "seccomp profile", "forbidden"),
            (reason(Errno::PERM, None), "seccomp profile", "forbidden"),
            (reason(Errno::PERM, Some(2)), "kernel.io_uring_disabled is 2", "sysctl"),
            (reason(Errno::NOSYS, None), "Linux 5.6", "not_in_kernel"),
            (reason(Errno::NOMEM, Some(0)), "LimitMEMLOCK", "memlock"),
            (reason(Errno::MFILE, Some(0)), "Too many open files", "failed"),
            (
                EngineReason::of(&SetupError::MissingOpcodes(vec!["read", "fsync"]), None),
                "lacks read, fsync",
                "missing_opcodes",
            ),
        ];
        for (reason, part, label) in cases {
            assert!(reason.to_string().contains(part), "{reason}");
            assert_eq!((reason.label(), reason.kind()), (label, EngineKind::Threads));
        }
    }
}
