//! The engine with one thread and one io_uring.
//!
//! Callers put operations on the desk and, if the thread sleeps, write to an eventfd that the ring
//! polls; nothing spins. The thread owns the ring, the operations in flight and the table of
//! registered memory, so none of them needs a lock. It ends when the desk is closed and the last
//! completion has come; while the device keeps an operation, the thread stays, because it owns
//! memory that the device may write to.

mod flight;
mod memory;
mod ring;
mod setup;

use std::fmt;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

use forebay_shm::Segment;
use rustix::event::EventfdFlags;

pub(crate) use self::setup::{Features, SetupError};

use self::memory::RegionId;
use self::ring::Ring;
use crate::core::{Core, Nudge};
use crate::engine::{EngineSettings, IoEngine, Pending, Registration};
use crate::error::RegisterError;
use crate::op::Op;
use crate::stats::{EngineKind, IoStats};
use crate::watch;

/// What the thread is asked to do beside operations.
enum Command {
    Register(Arc<Segment>, SyncSender<Result<RegionId, RegisterError>>),
    Unregister(RegionId),
}

/// What callers and the thread share beside the desk.
pub(crate) struct Mailbox {
    /// None when the thread has gone.
    commands: Mutex<Option<Vec<Command>>>,
    /// Whether the thread is about to wait, or does.
    asleep: AtomicBool,
    bell: OwnedFd,
}

impl Mailbox {
    fn new() -> Result<Self, rustix::io::Errno> {
        let bell = rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self { commands: Mutex::new(Some(Vec::new())), asleep: AtomicBool::new(false), bell })
    }

    fn commands(&self) -> MutexGuard<'_, Option<Vec<Command>>> {
        // A list that is pushed to and taken: consistent whoever panicked.
        self.commands.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Wakes the thread if it sleeps.
    ///
    /// The thread says that it sleeps before it looks at the desk and the commands for the last
    /// time, under their locks. So whoever changed one of them since then, under the same lock,
    /// sees it sleeping here.
    fn ring(&self) {
        if self.asleep.swap(false, Ordering::AcqRel) {
            let written =
                rustix::io::retry_on_intr(|| rustix::io::write(&self.bell, &1_u64.to_ne_bytes()));
            // EAGAIN: so many wakings that were not heard yet.
            if let Err(errno) = written
                && errno != rustix::io::Errno::AGAIN
            {
                tracing::error!(%errno, "the io engine's thread cannot be woken");
            }
        }
    }

    /// Gives the thread a command; false if it has gone.
    fn send(&self, command: Command) -> bool {
        let mut commands = self.commands();
        let Some(list) = commands.as_mut() else { return false };
        list.push(command);
        drop(commands);
        self.ring();
        true
    }
}

/// A desk, a mailbox, and the thread that serves both.
pub(crate) struct UringEngine {
    core: Arc<Core>,
    mailbox: Arc<Mailbox>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    drop_wait: Duration,
}

impl UringEngine {
    /// Starts the engine, or says what this kernel lacks.
    pub(crate) fn start(settings: &EngineSettings) -> Result<(Self, Features), SetupError> {
        let limits = settings.limits(settings.depth.min(setup::DEPTH_MAX));
        let core = Arc::new(Core::new(EngineKind::Uring, limits));
        let mailbox = Arc::new(Mailbox::new().map_err(|errno| SetupError::Failed(errno.into()))?);
        let (ready, is_ready) = sync_channel(1);
        let work = {
            let (core, mailbox) = (Arc::clone(&core), Arc::clone(&mailbox));
            let depth = limits.quotas.depth();
            move || serve(depth, core, mailbox, &ready)
        };
        let ring = Builder::new()
            .name("forebay-io-ring".into())
            .spawn(work)
            .map_err(SetupError::Failed)?;
        let gone = |_| SetupError::Failed(std::io::Error::other("its thread ended"));
        let features = is_ready.recv().map_err(gone)??;
        let engine = Self {
            core: Arc::clone(&core),
            mailbox,
            threads: Mutex::new(vec![ring]),
            drop_wait: limits.drop_wait(),
        };
        let watch = watch::start(core, limits.soft).map_err(SetupError::Failed)?;
        engine.threads.lock().unwrap_or_else(PoisonError::into_inner).push(watch);
        Ok((engine, features))
    }
}

/// Makes the ring, says how that went, and serves. The ring is made on its thread because only the
/// thread that made it may use it.
fn serve(
    depth: usize,
    core: Arc<Core>,
    mailbox: Arc<Mailbox>,
    ready: &SyncSender<Result<Features, SetupError>>,
) {
    let (made, told) = match setup::build(depth) {
        Ok((uring, features)) => (Some((uring, features)), Ok(features)),
        Err(error) => (None, Err(error)),
    };
    let heard = ready.send(told).is_ok();
    if let (Some((uring, features)), true) = (made, heard) {
        Ring::new(uring, features, core, mailbox).run();
    }
}

impl IoEngine for UringEngine {
    fn submit(&self, op: Op) -> Pending {
        let (pending, nudge) = self.core.submit(op);
        if nudge == Nudge::Start {
            self.mailbox.ring();
        }
        pending
    }

    fn register(&self, segment: &Arc<Segment>) -> Result<Registration, RegisterError> {
        let (answer, answered) = sync_channel(1);
        if !self.mailbox.send(Command::Register(Arc::clone(segment), answer)) {
            return Err(RegisterError::Closed);
        }
        let region = answered.recv().map_err(|_| RegisterError::Closed)??;
        let mailbox = Arc::downgrade(&self.mailbox);
        Ok(Registration::new(move || {
            // A thread that has gone has unregistered everything.
            if let Some(mailbox) = mailbox.upgrade() {
                mailbox.send(Command::Unregister(region));
            }
        }))
    }

    fn stats(&self) -> IoStats {
        self.core.stats()
    }

    fn close(&self, wait: Duration) -> usize {
        self.core.close();
        self.mailbox.ring();
        self.core.drain(wait)
    }
}

impl Drop for UringEngine {
    fn drop(&mut self) {
        let running = self.close(self.drop_wait);
        if running > 0 {
            tracing::warn!(running, "the disk still has operations of an io engine that ends");
            return;
        }
        let threads =
            std::mem::take(&mut *self.threads.lock().unwrap_or_else(PoisonError::into_inner));
        for thread in threads {
            if thread.join().is_err() {
                tracing::error!("a thread of the io engine had panicked");
            }
        }
    }
}

impl fmt::Debug for UringEngine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UringEngine").field("stats", &self.core.stats()).finish_non_exhaustive()
    }
}

#[cfg(test)]
#[path = "uring_tests.rs"]
mod tests;
