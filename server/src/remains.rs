//! What a crash leaves behind: nothing, unless it was asked for.
//!
//! The process knows the origins' credentials, and what it read of them lies anywhere in its memory. A
//! core dump would write all of that to a disk, or hand it to whatever `core_pattern` names; and
//! whoever shares the daemon's uid could read it by `/proc/PID/mem` or a debugger. So the limit on core
//! files is 0, which handlers of dumps honour if they like, and the process is not *dumpable*, which
//! the kernel enforces for both. Slots are kept out of any dump by `forebay_shm`.
//!
//! What is not dumpable belongs to root in `/proc`, its own counters included: [`close`] comes
//! after they were opened.

use rustix::process::{
    DumpableBehavior, Resource, Rlimit, dumpable_behavior, getrlimit, set_dumpable_behavior,
    setrlimit,
};

/// From here on no core file is written. This comes as soon as the settings are known.
pub(crate) fn limit(core_dumps: bool) {
    if core_dumps {
        return tracing::warn!("core dumps are allowed: one has the credentials of origins in it");
    }
    let none = Rlimit { current: Some(0), maximum: Some(0) };
    if let Err(error) = setrlimit(Resource::Core, none) {
        tracing::warn!(%error, "the limit on core dumps cannot be set");
    }
}

/// From here on only root can look into this process.
pub(crate) fn close(core_dumps: bool) {
    if core_dumps {
        return;
    }
    if let Err(error) = set_dumpable_behavior(DumpableBehavior::NotDumpable) {
        tracing::warn!(%error, "the memory of this process is not closed to its own user");
    }
}

/// How it is now: why there is no core dump, or that there may be one.
pub(crate) fn core_dumps() -> Result<&'static str, &'static str> {
    let dumpable = dumpable_behavior();
    let may_be = !matches!(getrlimit(Resource::Core).current, Some(0));
    match dumpable {
        Ok(DumpableBehavior::NotDumpable) => Ok("none; root alone can look into the process"),
        _ if !may_be => Ok("none: the limit is 0"),
        _ => Err("allowed, with the credentials of origins in it"),
    }
}
