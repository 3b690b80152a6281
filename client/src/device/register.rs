//! Registers segments with a device in the background.
//!
//! A registration takes some 100 ms, too long for the task that receives segments and for any task
//! of the caller's runtime. So each session with a device has one thread that registers segment
//! after segment, as they come, and ends the registrations when the session ends, or when the daemon
//! retires a segment. A registration lives on with the last copy that uses it.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{Builder, JoinHandle};

use forebay_device::{Device, DeviceError, Registration};
use forebay_proto::Reason;
use forebay_shm::SegmentMap;

use crate::error::ClientError;

/// What became of the registration of a segment.
pub(crate) type Registered = Result<Arc<Registration>, DeviceError>;

/// What the thread does, in this order.
#[derive(Debug)]
enum Work {
    Register(Arc<SegmentMap>),
    /// Ends here unless a copy uses it: a driver takes its time for that as well.
    End(Arc<Registration>),
}

impl Work {
    fn run(self, device: &dyn Device, done: &impl Fn(u64, Registered)) {
        match self {
            Self::Register(segment) => {
                done(segment.id().0, device.register(&segment).map(Arc::new));
            }
            Self::End(registration) => drop(registration),
        }
    }
}

/// Segments to register, or to let go of: as many as the daemon has at most.
#[derive(Debug, Default)]
struct Queue {
    work: VecDeque<Work>,
    closed: bool,
}

#[derive(Debug, Default)]
struct Shared {
    queue: Mutex<Queue>,
    changed: Condvar,
}

/// The thread of one session.
pub(crate) struct Registrar {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

/// The way to give it segments.
#[derive(Debug, Clone)]
pub(crate) struct Incoming(Arc<Shared>);

impl Registrar {
    /// Starts it. `done` gets every segment's outcome, to keep or to drop, and `over` is called at the end; both on the
    /// thread.
    pub(crate) fn start(
        device: Arc<dyn Device>,
        done: impl Fn(u64, Registered) + Send + 'static,
        over: impl FnOnce() + Send + 'static,
    ) -> Result<Self, ClientError> {
        let shared = Arc::new(Shared::default());
        let theirs = Arc::clone(&shared);
        let register = move || {
            while let Some(work) = theirs.next() {
                work.run(device.as_ref(), &done);
            }
            let left = std::mem::take(&mut theirs.queue().work);
            drop(left);
            over();
        };
        let thread = Builder::new().name("forebay-register".to_owned()).spawn(register);
        let thread = thread.map_err(|error| no_thread(&error))?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// The way to give it segments.
    pub(crate) fn incoming(&self) -> Incoming {
        Incoming(Arc::clone(&self.shared))
    }
}

impl Incoming {
    /// Registers a segment when its turn comes.
    pub(crate) fn add(&self, segment: Arc<SegmentMap>) {
        self.push(Work::Register(segment));
    }

    /// A segment has gone: it is not registered if that has not begun, and its registration ends.
    /// One that is being registered ends as `done` finds that nobody wants it.
    pub(crate) fn end(&self, id: u64, registration: Option<Arc<Registration>>) {
        let is_it = |work: &Work| matches!(work, Work::Register(one) if one.id().0 == id);
        let unregistered: VecDeque<Work> = {
            let mut queue = self.0.queue();
            let (gone, left) = std::mem::take(&mut queue.work).into_iter().partition(is_it);
            queue.work = left;
            gone
        };
        drop(unregistered);
        if let Some(registration) = registration {
            self.push(Work::End(registration));
        }
    }

    fn push(&self, work: Work) {
        self.0.queue().work.push_back(work);
        self.0.changed.notify_one();
    }
}

impl Shared {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next thing to do; none when the session is over.
    fn next(&self) -> Option<Work> {
        let waits = |queue: &mut Queue| !queue.closed && queue.work.is_empty();
        let waiting = self.changed.wait_while(self.queue(), waits);
        let mut queue = waiting.unwrap_or_else(PoisonError::into_inner);
        match queue.closed {
            true => None,
            false => queue.work.pop_front(),
        }
    }
}

/// Waits for the registration under way, and for the end of those that no copy uses.
impl Drop for Registrar {
    fn drop(&mut self) {
        self.shared.queue().closed = true;
        self.shared.changed.notify_all();
        if let Some(thread) = self.thread.take() {
            // A panic of a driver is on stderr already, and there is nobody to tell.
            thread.join().ok();
        }
    }
}

impl fmt::Debug for Registrar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Registrar")
    }
}

/// There is no thread for work that blocks.
pub(crate) fn no_thread(error: &std::io::Error) -> ClientError {
    ClientError::new(Reason::Internal, format!("no thread for the device: {error}"))
}
