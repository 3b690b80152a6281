//! A load whose bytes go to a device, as its caller sees it.
//!
//! [`DeviceLoad::next`] takes chunks from the daemon and hands their copies to the pipeline until
//! something is complete. Between calls, copies of chunks that were taken go on; no further chunks
//! are taken, so a caller that stays away for long lets its window fill, and no more.
//!
//! Memory is held by what was given out ([`DeviceTensor`], [`Resident`]) and by the load. When the
//! load fails or is dropped, the load waits for the copies under way, gives every slot back, and
//! lets go of its memory.

use std::fmt;
use std::sync::Arc;

use forebay_device::{CopyStream, Device, DeviceError, DeviceMemory, ProfileRange};
use forebay_proto::Reason;
use forebay_proto::model::{Malformed, Manifest, Opened, Report};

use tokio::time::Instant;

use super::layout::{Layout, Memory, Plan, Selection};
use super::pipeline::{Copy, Pipeline};
use super::report::DeviceReport;
use crate::chunk::Chunk;
use crate::error::ClientError;
use crate::grants::GrantStream;

/// Streams of a load: with two, one copies while the other's thread turns to its next copy.
const STREAMS: usize = 2;

/// A tensor, a slice of one, or an object without tensors, in memory of a device. The memory is
/// freed with the last of what shares it.
#[derive(Debug, Clone)]
#[must_use = "dropping it may free its memory"]
pub struct DeviceTensor {
    /// The tensor's name, or the object's key.
    pub name: String,
    /// Element type as the object's header writes it; `U8` for an object.
    pub dtype: String,
    /// Dimensions, outermost first; of the slice, if the load asked for slices.
    pub shape: Vec<u64>,
    /// Where it begins, as kernels of the device see it.
    pub address: u64,
    /// How many bytes it has.
    pub bytes: u64,
    /// The memory that it lies in.
    pub memory: Arc<DeviceMemory>,
}

/// A checkpoint, or what was asked for of it, in memory of a device.
#[derive(Debug)]
pub struct Resident {
    /// How the load went.
    pub report: Report,
    /// How the copies went.
    pub device: DeviceReport,
    /// Everything that was loaded, also what [`DeviceLoad::next`] gave out before. In the order of
    /// the manifest, or of the targets.
    pub tensors: Vec<DeviceTensor>,
}

/// A running load to a device. Dropping it cancels the load, and waits for the copies under way.
pub struct DeviceLoad {
    // Dropped first: nothing copies any more when the rest goes.
    pipeline: Pipeline,
    plan: Plan,
    memories: Vec<Arc<DeviceMemory>>,
    device: Arc<dyn Device>,
    opened: Opened,
    opened_at: Instant,
    manifest: Arc<Manifest>,
    /// None after a failure: grants that nobody took go back with it.
    stream: Option<GrantStream>,
    /// Every chunk has been taken.
    all_taken: bool,
    failed: Option<ClientError>,
}

impl DeviceLoad {
    pub(crate) fn start(
        mut stream: GrantStream,
        device: Arc<dyn Device>,
        selection: &Selection,
        layout: Layout,
    ) -> Result<Self, ClientError> {
        let plan = Plan::new(stream.manifest(), selection, layout)?;
        let memory = |memory: &Memory| match memory {
            Memory::Allocate(bytes) => device.allocate(*bytes).map(Arc::new),
            Memory::Given(memory) => Ok(Arc::clone(memory)),
        };
        let memories: Vec<_> = plan.memories.iter().map(memory).collect::<Result<_, _>>()?;
        let streams = (0..STREAMS).map(|_| device.stream());
        let streams: Vec<Box<dyn CopyStream>> = streams.collect::<Result<_, _>>()?;
        let sizes = plan.items.iter().map(|item| item.bytes).collect();
        let pipeline = Pipeline::start(streams, sizes, stream.copy_log())?;
        Ok(Self {
            pipeline,
            plan,
            memories,
            device,
            opened: stream.opened().clone(),
            opened_at: stream.opened_at(),
            manifest: Arc::clone(stream.manifest()),
            stream: Some(stream),
            all_taken: false,
            failed: None,
        })
    }

    /// See [`Load::opened`](crate::Load::opened).
    #[must_use]
    pub fn opened(&self) -> &Opened {
        &self.opened
    }

    /// See [`Load::manifest`](crate::Load::manifest).
    #[must_use]
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The device.
    #[must_use]
    pub fn device(&self) -> &Arc<dyn Device> {
        &self.device
    }

    /// How the copies have gone so far.
    #[must_use]
    pub fn device_report(&self) -> DeviceReport {
        let opened_at = self.opened_at.into_std();
        self.pipeline.report(|timeline| timeline.report(self.device.info(), STREAMS, opened_at))
    }

    /// The next tensor that is complete on the device, in the order in which they are; an object
    /// where it has no tensors, or was named as a whole. None when everything is there.
    ///
    /// May be dropped at any await. After an error nothing is under way any more.
    pub async fn next(&mut self) -> Result<Option<DeviceTensor>, ClientError> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        match self.advance().await {
            Ok(item) => Ok(item.and_then(|item| self.tensor(item))),
            Err(error) => {
                self.pipeline.stop().await;
                self.memories.clear();
                if let Some(mut stream) = self.stream.take() {
                    stream.cancel(error.clone());
                }
                self.failed = Some(error.clone());
                Err(error)
            }
        }
    }

    /// Waits until everything is on the device, and gives the reports.
    pub async fn finish(mut self) -> Result<Resident, ClientError> {
        while self.next().await?.is_some() {}
        let Some(stream) = &mut self.stream else { return Err(over()) };
        let report = stream.report().await?;
        let device = self.device_report();
        let tensors = (0..self.plan.items.len()).filter_map(|item| self.tensor(item)).collect();
        Ok(Resident { report, device, tensors })
    }

    /// The next complete item.
    async fn advance(&mut self) -> Result<Option<usize>, ClientError> {
        loop {
            // Read first: a copy that settles in between is seen in the next turn.
            let unsettled = self.pipeline.unsettled();
            if let Some(item) = self.pipeline.next_complete()? {
                return Ok(Some(item));
            }
            if self.all_taken && unsettled == 0 {
                return self.check_complete().map(|()| None);
            }
            let _profile = ProfileRange::begin(c"forebay wait");
            let may_take = !self.all_taken && self.pipeline.has_room();
            let Some(stream) = &mut self.stream else { return Err(over()) };
            tokio::select! {
                () = self.pipeline.changed() => {}
                chunk = stream.next_chunk(), if may_take => match chunk? {
                    Some(chunk) => self.take(&chunk),
                    None => self.all_taken = true,
                },
            }
        }
    }

    /// Queues the copies of a chunk. One in which nothing is wanted goes back at once.
    fn take(&self, chunk: &Chunk) {
        for planned in chunk.extents.iter().flat_map(|extent| self.plan.copies(extent)) {
            let Some(memory) = self.memories.get(planned.memory) else { continue };
            let copy = Copy {
                slot: Arc::clone(&chunk.slot),
                memory: Arc::clone(memory),
                rows: planned.rows,
                credits: planned.credits,
            };
            self.pipeline.add(planned.order.unwrap_or(chunk.index.0), copy);
        }
    }

    fn check_complete(&self) -> Result<(), ClientError> {
        match self.pipeline.incomplete() {
            0 => Ok(()),
            missing => {
                let what = format!("{missing} of what was asked for misses bytes");
                Err(Malformed::new("LoadComplete", what).into())
            }
        }
    }

    fn tensor(&self, index: usize) -> Option<DeviceTensor> {
        let item = self.plan.items.get(index)?;
        let memory = Arc::clone(self.memories.get(item.memory)?);
        Some(DeviceTensor {
            name: item.name.clone(),
            dtype: item.dtype.clone(),
            shape: item.shape.clone(),
            address: memory.address().saturating_add(item.offset),
            bytes: item.bytes,
            memory,
        })
    }
}

impl fmt::Debug for DeviceLoad {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DeviceLoad")
            .field("device", &self.device)
            .field("pipeline", &self.pipeline)
            .finish_non_exhaustive()
    }
}

fn over() -> ClientError {
    ClientError::new(Reason::Internal, "the load is over")
}

/// There is no device to load to.
pub(crate) fn no_device() -> ClientError {
    let message = "the client has no device to load to: make it with `Client::with_device`";
    ClientError::new(Reason::BadRequest, message)
}

/// A slot came without what its copy needs.
pub(crate) fn not_registered(segment: u64) -> DeviceError {
    DeviceError::NotRegistered { segment }
}
