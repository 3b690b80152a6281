//! The thread of the engine: one loop of starting, waiting and taking completions.
//!
//! Order of drop: the ring first, which ends the kernel's use of it; then the operations, of which
//! there are none unless the thread panics (see `flight`); then the registered memory.

use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{SendError, SyncSender};
use std::time::Duration;

use forebay_shm::Segment;
use io_uring::{IoUring, opcode, squeue, types};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;

use super::flight::{Flight, Flights, start_of};
use super::memory::{Memory, RegionId};
use super::setup::Features;
use super::{Command, Mailbox};
use crate::core::Core;
use crate::desk::OpId;
use crate::error::{IoError, RegisterError};
use crate::op::{Op, OpKind};
use crate::progress::{Progress, Step};

/// The user data of the bell's poll. Operations count from 1.
const BELL: u64 = 0;

/// How long to let the kernel recover when it cannot take entries.
const RECOVERY: Duration = Duration::from_millis(10);

pub(crate) struct Ring {
    uring: IoUring,
    flights: Flights,
    memory: Memory,
    core: Arc<Core>,
    mailbox: Arc<Mailbox>,
    completions: Vec<(u64, i32)>,
}

impl Ring {
    pub(crate) fn new(
        uring: IoUring,
        features: Features,
        core: Arc<Core>,
        mailbox: Arc<Mailbox>,
    ) -> Self {
        let memory = Memory::new(features.registered_memory);
        Self { uring, flights: Flights::default(), memory, core, mailbox, completions: Vec::new() }
    }

    /// Serves the desk until it is closed and everything has ended.
    pub(crate) fn run(mut self) {
        let _gone = Gone(Arc::clone(&self.mailbox));
        self.arm_bell();
        loop {
            self.mailbox.asleep.store(true, Ordering::Release);
            self.obey();
            for (id, op) in self.core.start_all() {
                self.start(id, op);
            }
            if self.flights.is_empty() && self.core.is_over() {
                return;
            }
            self.wait();
            self.mailbox.asleep.store(false, Ordering::Release);
            self.take_completions();
        }
    }

    /// Carries out the commands in the mailbox.
    fn obey(&mut self) {
        let commands = self.mailbox.commands().as_mut().map(std::mem::take).unwrap_or_default();
        for command in commands {
            match command {
                Command::Register(segment, answer) => self.register(segment, &answer),
                Command::Unregister(id) => self.unregister(id),
            }
        }
    }

    fn register(
        &mut self,
        segment: Arc<Segment>,
        answer: &SyncSender<Result<RegionId, RegisterError>>,
    ) {
        let registered = self.memory.register(&self.uring, segment);
        self.count_memory();
        // Whoever asked has gone: so has the handle that would end the registration.
        if let Err(SendError(Ok(id))) = answer.send(registered) {
            self.unregister(id);
        }
    }

    fn unregister(&mut self, id: RegionId) {
        self.memory.unregister(&self.uring, id);
        self.count_memory();
    }

    fn count_memory(&self) {
        let bytes = self.memory.bytes();
        self.core.count(|stats| stats.registered_bytes = bytes);
    }

    fn start(&mut self, id: OpId, mut op: Op) {
        let range = op.range();
        let start = start_of(op.payload_mut()).addr().wrapping_add(range.start);
        let buffer = match op.kind() {
            OpKind::Sync => None,
            OpKind::Read | OpKind::Write => self.memory.find(start, range.len()),
        };
        if buffer.is_some() {
            self.core.count(|stats| stats.registered_ops_total += 1);
        }
        let progress = Progress::new(&op);
        self.fly(id, Flight { op, progress, buffer });
    }

    fn fly(&mut self, id: OpId, flight: Flight) {
        let entry = self.flights.insert(id, flight);
        if !self.push(&entry)
            && let Some(flight) = self.flights.remove(id)
        {
            self.core.finish(id, flight.op, Err(IoError::Lost));
        }
    }

    /// Puts an entry into the submission queue. There is room: the queue has more entries than
    /// operations that may run, and each has at most one entry in it.
    fn push(&mut self, entry: &squeue::Entry) -> bool {
        // SAFETY: the entry's memory belongs to an operation in `flights`, which keeps it until the
        // completion has been taken; the bell's entry has no memory.
        let pushed = unsafe { self.uring.submission().push(entry) };
        if pushed.is_err() {
            tracing::error!("the submission queue of the io engine is full");
            self.core.count(|stats| stats.engine_errors_total += 1);
        }
        pushed.is_ok()
    }

    /// Submits, and waits for a completion. The bell is one.
    fn wait(&mut self) {
        let Err(error) = self.uring.submit_and_wait(1) else { return };
        let errno = error.raw_os_error().map(Errno::from_raw_os_error);
        if errno == Some(Errno::INTR) {
            return;
        }
        self.core.count(|stats| stats.engine_errors_total += 1);
        if !matches!(errno, Some(Errno::AGAIN | Errno::BUSY)) {
            tracing::error!(%error, "io_uring does not take operations");
        }
        // What is in the completion queue makes room; if nothing is there, trying again at once
        // would only burn the CPU.
        if self.uring.completion().is_empty() {
            let mut bell = [PollFd::new(&self.mailbox.bell, PollFlags::IN)];
            let recovery = Timespec::try_from(RECOVERY).ok();
            if let Err(errno) = rustix::event::poll(&mut bell, recovery.as_ref()) {
                // A signal ends the pause early, which is as good.
                tracing::debug!(%errno, "a pause of the io engine was cut");
            }
        }
    }

    fn take_completions(&mut self) {
        let mut completions = std::mem::take(&mut self.completions);
        completions
            .extend(self.uring.completion().map(|entry| (entry.user_data(), entry.result())));
        for (id, answer) in completions.drain(..) {
            if id == BELL {
                self.hear_bell();
            } else {
                self.take(OpId(id), answer);
            }
        }
        self.completions = completions;
    }

    fn take(&mut self, id: OpId, answer: i32) {
        let Some(mut flight) = self.flights.remove(id) else {
            tracing::error!(id = id.0, answer, "a completion for an operation that is not known");
            self.core.count(|stats| stats.unknown_total += 1);
            return;
        };
        match flight.progress.advance(answer) {
            Step::Continue { moved } => {
                self.core.count(|stats| stats.count_again(moved));
                self.fly(id, flight);
            }
            Step::End(result) => self.core.finish(id, flight.op, result),
        }
    }

    fn hear_bell(&mut self) {
        let mut rung = [0; 8];
        let heard = rustix::io::retry_on_intr(|| rustix::io::read(&self.mailbox.bell, &mut rung));
        if let Err(errno) = heard
            && errno != Errno::AGAIN
        {
            tracing::error!(%errno, "the bell of the io engine cannot be read");
        }
        self.arm_bell();
    }

    fn arm_bell(&mut self) {
        let bell = types::Fd(self.mailbox.bell.as_raw_fd());
        let readable = u32::try_from(libc::POLLIN).unwrap_or(1);
        let entry = opcode::PollAdd::new(bell, readable).build().user_data(BELL);
        self.push(&entry);
    }
}

/// The end of the thread, also by a panic: nobody waits for its answers any more.
struct Gone(Arc<Mailbox>);

impl Drop for Gone {
    fn drop(&mut self) {
        *self.0.commands() = None;
    }
}
