//! The threads that copy, and the queue they pull from.
//!
//! ```text
//!   DeviceLoad ── add ──► queue, by need ──► stream thread ──► CopyStream ──► wait on the oldest
//!                ◄── Notify ── items that are complete, or the first failure ◄──┘
//! ```
//!
//! Each stream has a thread of its own, because waiting for a copy blocks. A thread keeps a few
//! copies in flight and waits on the oldest when it may start no more. A queued or running copy
//! holds its slot; when the last copy of a chunk is settled, its span is noted for the daemon and
//! then the slot goes back. The load's window bounds what is lent and so what is queued.
//!
//! After a failure, or a stop, nothing is started any more: queued copies are dropped, those under
//! way are waited for, the threads end. Whoever drops the [`Pipeline`] joins them.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{Builder, JoinHandle};

use forebay_device::{
    CopyJob, CopySource, CopySpan, CopyStream, CopyTicket, DeviceError, DeviceMemory, ProfileRange,
    Rows,
};
use tokio::sync::Notify;
use tokio::time::Instant;

use super::register::no_thread;
use super::report::Timeline;
use crate::chunk::LentSlot;
use crate::error::ClientError;
use crate::outbox::Outbox;

/// Copies that one stream has in flight at most.
const IN_FLIGHT_MAX: usize = 4;

/// Copies that wait for a stream before no further chunk is taken.
const QUEUED_MAX: usize = 1024;

/// One copy to make.
#[derive(Debug)]
pub(crate) struct Copy {
    pub(crate) slot: Arc<LentSlot>,
    pub(crate) memory: Arc<DeviceMemory>,
    pub(crate) rows: Rows,
    /// Items, and how many bytes of each it brings.
    pub(crate) credits: Vec<(usize, u64)>,
}

/// A copy under way.
struct Started {
    ticket: CopyTicket,
    copy: Copy,
    /// Until it is settled.
    profile: ProfileRange,
}

/// Whose turn it is: the smallest. The last part only tells copies apart.
type Turn = (u64, u64);

#[derive(Debug)]
struct State {
    queue: BTreeMap<Turn, Copy>,
    added: u64,
    /// Queued or under way.
    unsettled: usize,
    /// Bytes that each item misses.
    missing: Vec<u64>,
    complete: VecDeque<usize>,
    timeline: Timeline,
    failure: Option<DeviceError>,
    stopped: bool,
    threads: usize,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    work: Condvar,
    changed: Notify,
}

/// The copies of one load.
#[derive(Debug)]
pub(crate) struct Pipeline {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

impl Pipeline {
    /// Starts a thread per stream. `missing` are the sizes of the items.
    pub(crate) fn start(
        streams: Vec<Box<dyn CopyStream>>,
        missing: Vec<u64>,
        (outbox, opened_at): (Arc<Outbox>, Instant),
    ) -> Result<Self, ClientError> {
        let empty = missing.iter().enumerate().filter(|(_, bytes)| **bytes == 0);
        let complete = empty.map(|(item, _)| item).collect();
        let state = State {
            queue: BTreeMap::new(),
            added: 0,
            unsettled: 0,
            missing,
            complete,
            timeline: Timeline::default(),
            failure: None,
            stopped: false,
            threads: 0,
        };
        let shared =
            Shared { state: Mutex::new(state), work: Condvar::new(), changed: Notify::new() };
        let mut pipeline = Self { shared: Arc::new(shared), threads: Vec::new() };
        for (number, stream) in streams.into_iter().enumerate() {
            let running = Running::new(&pipeline.shared, &outbox, opened_at);
            let thread = Builder::new().name(format!("forebay-copy-{number}"));
            let body = move || {
                // Outlives the stream, which waits for its copies even if this thread panics.
                let mut in_flight = VecDeque::new();
                let stream = stream;
                run(&running, stream.as_ref(), &mut in_flight);
            };
            let thread = thread.spawn(body);
            pipeline.threads.push(thread.map_err(|error| no_thread(&error))?);
        }
        Ok(pipeline)
    }

    /// Queues a copy.
    pub(crate) fn add(&self, turn: u64, copy: Copy) {
        let mut state = self.shared.state();
        if state.stopped || state.failure.is_some() {
            return;
        }
        state.added += 1;
        state.unsettled += 1;
        let turn = (turn, state.added);
        state.queue.insert(turn, copy);
        drop(state);
        self.shared.work.notify_one();
    }

    /// Whether another chunk may be taken.
    pub(crate) fn has_room(&self) -> bool {
        self.shared.state().queue.len() < QUEUED_MAX
    }

    /// The next item that is complete, or why no more will be.
    pub(crate) fn next_complete(&self) -> Result<Option<usize>, DeviceError> {
        let mut state = self.shared.state();
        match &state.failure {
            Some(failure) => Err(failure.clone()),
            None => Ok(state.complete.pop_front()),
        }
    }

    /// How many copies are queued or under way.
    pub(crate) fn unsettled(&self) -> usize {
        self.shared.state().unsettled
    }

    /// How many items miss bytes.
    pub(crate) fn incomplete(&self) -> usize {
        self.shared.state().missing.iter().filter(|bytes| **bytes > 0).count()
    }

    /// Waits until a copy is settled, or fails, or a thread ends.
    pub(crate) async fn changed(&self) {
        self.shared.changed.notified().await;
    }

    /// Drops what is queued, and waits until what is under way is done.
    pub(crate) async fn stop(&self) {
        self.shared.stop();
        while self.shared.state().threads > 0 {
            self.shared.changed.notified().await;
        }
    }

    /// What is known about the copies so far.
    pub(crate) fn report<T>(&self, read: impl FnOnce(&Timeline) -> T) -> T {
        read(&self.shared.state().timeline)
    }
}

/// Waits for the copies under way.
impl Drop for Pipeline {
    fn drop(&mut self) {
        self.shared.stop();
        for thread in self.threads.drain(..) {
            // A panic of a driver is on stderr already, and made the load fail.
            thread.join().ok();
        }
    }
}

/// What a thread is to do next.
enum Next {
    Start(Copy),
    Nothing,
    End,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next copy. Waits for one if the caller has nothing else to do.
    fn next(&self, may_wait: bool) -> Next {
        let mut state = self.state();
        loop {
            if state.stopped || state.failure.is_some() {
                return Next::End;
            }
            if let Some((_, copy)) = state.queue.pop_first() {
                return Next::Start(copy);
            }
            if !may_wait {
                return Next::Nothing;
            }
            state = self.work.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn start(&self, stream: &dyn CopyStream, copy: &Copy) -> Result<CopyTicket, DeviceError> {
        let registration = copy.slot.registration()?;
        let source = CopySource::Slot { view: copy.slot.view(), registration };
        let job = CopyJob::new(source, &copy.memory, copy.rows)?;
        let now = Instant::now().into_std();
        self.state().timeline.submitted(now);
        stream.copy(job, now)
    }

    /// Notes a copy that is done.
    fn settled(&self, span: &CopySpan, credits: Vec<(usize, u64)>) {
        let mut state = self.state();
        state.timeline.ran(span);
        for (item, bytes) in credits {
            let Some(missing) = state.missing.get_mut(item) else { continue };
            *missing = missing.saturating_sub(bytes);
            if *missing == 0 {
                state.complete.push_back(item);
            }
        }
        state.unsettled -= 1;
        drop(state);
        self.changed.notify_one();
    }

    /// The first failure counts.
    fn fail(&self, error: DeviceError) {
        let mut state = self.state();
        state.failure.get_or_insert(error);
        self.abandon(state);
    }

    fn stop(&self) {
        let mut state = self.state();
        state.stopped = true;
        self.abandon(state);
    }

    /// Drops what is queued, outside of the lock, and tells everyone.
    fn abandon(&self, mut state: MutexGuard<'_, State>) {
        let queued = std::mem::take(&mut state.queue);
        drop(state);
        drop(queued);
        self.work.notify_all();
        self.changed.notify_one();
    }
}

/// Counts a thread for as long as it runs, however it ends.
struct Running {
    shared: Arc<Shared>,
    /// Where spans go. It keeps the session of a load that failed, so it is the threads' only.
    outbox: Arc<Outbox>,
    opened_at: Instant,
}

impl Running {
    fn new(shared: &Arc<Shared>, outbox: &Arc<Outbox>, opened_at: Instant) -> Self {
        shared.state().threads += 1;
        Self { shared: Arc::clone(shared), outbox: Arc::clone(outbox), opened_at }
    }

    /// Waits for a copy, then gives its slot back.
    fn settle(&self, stream: &dyn CopyStream, started: Started) {
        let Started { ticket, copy, profile: _profile } = started;
        let span = match stream.wait(ticket) {
            Ok(span) => span,
            Err(error) => return self.shared.fail(error),
        };
        // Ahead of the release of its slot, so that the daemon hears of it first.
        self.outbox.copied(&span, self.opened_at);
        let Copy { slot, credits, .. } = copy;
        drop(slot);
        self.shared.settled(&span, credits);
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.shared.fail(DeviceError::CopyFailed {
                device: "of the load".to_owned(),
                bytes: 0,
                reason: "its driver panicked".to_owned(),
            });
        }
        self.shared.state().threads -= 1;
        self.shared.changed.notify_one();
    }
}

/// The thread of a stream.
fn run(running: &Running, stream: &dyn CopyStream, in_flight: &mut VecDeque<Started>) {
    let shared = &running.shared;
    loop {
        let may_start = in_flight.len() < IN_FLIGHT_MAX;
        let next = if may_start { shared.next(in_flight.is_empty()) } else { Next::Nothing };
        match next {
            Next::Start(copy) => match shared.start(stream, &copy) {
                Ok(ticket) => {
                    let profile = ProfileRange::begin(c"forebay copy");
                    in_flight.push_back(Started { ticket, copy, profile });
                }
                Err(error) => shared.fail(error),
            },
            Next::Nothing | Next::End => match in_flight.pop_front() {
                Some(oldest) => running.settle(stream, oldest),
                None if matches!(next, Next::End) => return,
                None => {}
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

    use forebay_device::{CopyState, Device, FakeDevice, Registration};
    use forebay_proto::{model::LeaseId, pb};
    use forebay_shm::{Segment, SegmentId, SegmentMap, SegmentSpec, SlotIndex, SlotReader};

    use super::*;

    /// A stream that says where each copy goes to, and does not come back from starting one before
    /// it is told to.
    #[derive(Debug)]
    struct Gated {
        told: SyncSender<u64>,
        go_on: Mutex<Receiver<()>>,
    }

    impl CopyStream for Gated {
        fn copy(
            &self,
            job: CopyJob<'_>,
            now: std::time::Instant,
        ) -> Result<CopyTicket, DeviceError> {
            self.told.send(job.rows().destination_start).unwrap();
            self.go_on.lock().unwrap().recv().unwrap();
            Ok(CopyTicket::new(0, &job, now))
        }

        fn query(&self, _: &CopyTicket, _: std::time::Instant) -> Result<CopyState, DeviceError> {
            Ok(CopyState::Running)
        }

        fn wait(&self, ticket: CopyTicket) -> Result<CopySpan, DeviceError> {
            let at = ticket.submitted();
            Ok(CopySpan { started: at, finished: at, bytes: ticket.bytes() })
        }
    }

    /// A slot of eight bytes, as it is granted.
    fn lent(device: &FakeDevice, outbox: &Arc<Outbox>) -> (SlotReader, Arc<LentSlot>) {
        let spec =
            SegmentSpec { id: SegmentId(1), domain: 0, slot_bytes: 4096, slots: 1, lock: false };
        let segment = Segment::create(&spec).unwrap();
        let reader = segment.writer(SlotIndex(0)).unwrap().publish();
        let map = SegmentMap::open(segment.descriptor().try_clone_to_owned().unwrap()).unwrap();
        let view = map.view(SlotIndex(0), reader.generation(), 8).unwrap();
        let registration: Registration = device.register(&map).unwrap();
        let lease = outbox.lease(LeaseId(1));
        (reader, Arc::new(LentSlot::new(view, Some(Arc::new(registration)), lease)))
    }

    #[tokio::test]
    async fn what_is_needed_first_is_copied_first_whatever_came_first() {
        let (device, outbox) = (FakeDevice::new(1.0), Outbox::new(pb::LoadOpen::default()));
        let (_reader, slot) = lent(&device, &outbox);
        let memory = Arc::new(device.allocate(64).unwrap());
        let ((told, starts), (go_on, gate)) = (sync_channel(1), sync_channel(1));
        let stream = Box::new(Gated { told, go_on: Mutex::new(gate) });
        let log = (Arc::clone(&outbox), Instant::now());
        let pipeline = Pipeline::start(vec![stream], vec![7], log).unwrap();
        let add = |turn: u64, to: u64| {
            let (slot, memory) = (Arc::clone(&slot), Arc::clone(&memory));
            let copy = Copy { slot, memory, rows: Rows::range(0..1, to), credits: vec![(0, 1)] };
            pipeline.add(turn, copy);
        };
        add(9, 0);
        let mut order = vec![starts.recv().unwrap()];
        // The thread is held in the first copy while the others come.
        for (turn, to) in [(5, 1), (7, 2), (1, 3), (5, 4), (0, 5), (2, 6)] {
            add(turn, to);
        }
        for _ in 0..6 {
            go_on.send(()).unwrap();
            order.push(starts.recv().unwrap());
        }
        go_on.send(()).unwrap();
        assert_eq!(order, [0, 5, 3, 6, 1, 4, 2], "by turn, and in a turn as they came");
        while pipeline.unsettled() > 0 {
            pipeline.changed().await;
        }
        assert_eq!(pipeline.next_complete().unwrap(), Some(0));
        drop((pipeline, slot));
        outbox.settled().await;
    }
}
