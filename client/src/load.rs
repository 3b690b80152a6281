//! A load as its caller reads it: by tensors, by objects, by chunks, or in order.
//!
//! The first call of a `next_…` decides which; a load is read in one way only, because what one
//! reader takes another would miss.

use std::sync::Arc;
use std::time::Duration;

use forebay_device::Device;
use forebay_proto::model::{
    Malformed, Manifest, ObjectEntry, ObjectIndex, Opened, Report, TensorEntry,
};
use forebay_proto::{Reason, Slice};
use tokio::time::timeout;

use crate::chunk::Chunk;
use crate::device::layout::{Selection, bad_shard, selected};
use crate::device::load::no_device;
use crate::device::{DeviceLoad, Layout};
use crate::error::ClientError;
use crate::gather::Gather;
use crate::grants::GrantStream;
use crate::options::selects;
use crate::order::{Order, Piece};
use crate::view::{ObjectView, Run, Tensor};

/// How long no chunk may come while incomplete tensors or objects hold leases. Far longer than a
/// part takes from a healthy origin, far shorter than the daemon's limit for no progress.
const SPILL_AFTER: Duration = Duration::from_millis(500);

#[derive(Debug)]
enum Reader {
    Undecided,
    Chunks,
    Tensors(Gather),
    Objects(Gather),
    Pieces(Order),
}

/// A running load. Dropping it cancels the load; views that are still held stay readable.
#[derive(Debug)]
pub struct Load {
    // Dropped first, so that what it holds goes back with the end of the stream.
    reader: Reader,
    selection: Selection,
    device: Option<Arc<dyn Device>>,
    stream: GrantStream,
}

impl Load {
    pub(crate) fn new(
        stream: GrantStream,
        selection: Selection,
        device: Option<Arc<dyn Device>>,
    ) -> Self {
        Self { reader: Reader::Undecided, selection, device, stream }
    }

    /// What the daemon said first: id, revision, sizes, window.
    #[must_use]
    pub fn opened(&self) -> &Opened {
        self.stream.opened()
    }

    /// Every object and tensor of the checkpoint, asked for or not.
    #[must_use]
    pub fn manifest(&self) -> &Manifest {
        self.stream.manifest()
    }

    /// The objects that the request's globs select, whether or not bytes of them are to come.
    pub fn selected_objects(&self) -> impl Iterator<Item = (ObjectIndex, &ObjectEntry)> {
        let objects = self.manifest().objects().iter().enumerate();
        objects
            .filter(|(_, object)| selects(&self.selection.objects, &object.key))
            .map(|(index, object)| (ObjectIndex(index), object))
    }

    /// The tensors that the request's globs select, each with what of it the load brings: the
    /// rank's slice, or all of it. A tensor that cannot be cut that way is `BAD_REQUEST`.
    pub fn selected_tensors(&self) -> Result<Vec<(&TensorEntry, Slice)>, ClientError> {
        let tensors = selected(self.manifest(), &self.selection).into_iter();
        let sliced = tensors.map(|tensor| Ok((tensor, self.selection.slice(tensor)?)));
        sliced.collect::<Result<_, _>>().map_err(bad_shard)
    }

    /// The next chunk, as it becomes readable; none when all have come.
    pub async fn next_chunk(&mut self) -> Result<Option<Chunk>, ClientError> {
        match self.reader {
            Reader::Undecided => self.reader = Reader::Chunks,
            Reader::Chunks => {}
            _ => return Err(mixed()),
        }
        self.stream.next_chunk().await
    }

    /// The next tensor that was asked for, as it becomes readable; none when all have come.
    ///
    /// Its bytes are lent, also where they span chunks. A tensor that spans more than half of
    /// [`Opened::window_bytes`] is copied to private memory chunk by chunk, and so is one that
    /// other loads keep from completing, so that a pool smaller than the checkpoints always
    /// progresses; see [`Tensor::is_copy`]. Chunks without a wanted tensor go back unread.
    pub async fn next_tensor(&mut self) -> Result<Option<Tensor>, ClientError> {
        if let Reader::Undecided = self.reader {
            if self.selection.shard.is_some() {
                let message = "a load of slices is copied to a device, not lent by tensors";
                return Err(ClientError::new(Reason::BadRequest, message));
            }
            let manifest = self.stream.manifest();
            let wanted = |tensor: &TensorEntry| self.selection.tensor(manifest, tensor);
            let gather = Gather::tensors(manifest, self.stream.opened(), wanted);
            self.reader = Reader::Tensors(gather);
        }
        let Reader::Tensors(gather) = &mut self.reader else { return Err(mixed()) };
        let Some((id, run)) = next_run(&mut self.stream, gather).await? else { return Ok(None) };
        let manifest = self.stream.manifest();
        let entry = manifest.tensors().get(id).cloned();
        Ok(entry.map(|entry| Tensor::new(run, Arc::clone(manifest), entry)))
    }

    /// The next object that was asked for, whole; none when all have come.
    ///
    /// What [`Load::next_tensor`] says about large tensors holds for large objects. A load that
    /// was narrowed to some tensors has no whole objects.
    pub async fn next_object(&mut self) -> Result<Option<ObjectView>, ClientError> {
        if let Reader::Undecided = self.reader {
            if self.selection.is_of_tensors() {
                let message = "a load of some tensors cannot be read by whole objects";
                return Err(ClientError::new(Reason::BadRequest, message));
            }
            let manifest = self.stream.manifest();
            let wanted = |object: &ObjectEntry| selects(&self.selection.objects, &object.key);
            let gather = Gather::objects(manifest, self.stream.opened(), wanted);
            self.reader = Reader::Objects(gather);
        }
        let Reader::Objects(gather) = &mut self.reader else { return Err(mixed()) };
        let Some((id, run)) = next_run(&mut self.stream, gather).await? else { return Ok(None) };
        let manifest = Arc::clone(self.stream.manifest());
        Ok(Some(ObjectView::new(run, manifest, ObjectIndex(id))))
    }

    /// The next piece of any object, each object's in ascending order; none when all have come.
    ///
    /// Pieces of different objects may alternate. An object without bytes has no piece.
    pub async fn next_piece(&mut self) -> Result<Option<Piece>, ClientError> {
        if let Reader::Undecided = self.reader {
            self.reader = Reader::Pieces(Order::new(self.selection.is_of_tensors()));
        }
        let Reader::Pieces(order) = &mut self.reader else { return Err(mixed()) };
        loop {
            if let Some(piece) = order.next_ready() {
                return Ok(Some(piece));
            }
            match self.stream.next_chunk().await? {
                Some(chunk) => order.add(chunk),
                None if order.is_empty() => return Ok(None),
                None => {
                    return Err(Malformed::new("LoadComplete", "an object misses bytes").into());
                }
            }
        }
    }

    /// Copies what was asked for to the client's device, in place of reading it here. Memory is
    /// allocated at once, so that what does not fit fails now.
    ///
    /// Only for a load of which nothing was read, on a client made by
    /// [`Client::with_device`](crate::Client::with_device).
    pub fn to_device(self, layout: Layout) -> Result<DeviceLoad, ClientError> {
        let Reader::Undecided = self.reader else { return Err(mixed()) };
        let device = self.device.ok_or_else(no_device)?;
        DeviceLoad::start(self.stream, device, &self.selection, layout)
    }

    /// Takes what is still to come without looking at it, waits until every view of this load is
    /// released, and gives the report. The deadline ends with the last chunk: a view that nobody
    /// drops keeps this waiting.
    pub async fn finish(mut self) -> Result<Report, ClientError> {
        self.reader = Reader::Chunks;
        while let Some(chunk) = self.stream.next_chunk().await? {
            chunk.release();
        }
        self.stream.report().await
    }
}

async fn next_run(
    stream: &mut GrantStream,
    gather: &mut Gather,
) -> Result<Option<(usize, Run)>, ClientError> {
    loop {
        if let Some(ready) = gather.next_ready() {
            return Ok(Some(ready));
        }
        let arrival = stream.next_chunk();
        let arrived = match gather.holds_leases() {
            true => timeout(SPILL_AFTER, arrival).await,
            false => Ok(arrival.await),
        };
        match arrived {
            Ok(chunk) => match chunk? {
                Some(chunk) => gather.add(&chunk)?,
                None => {
                    gather.check_complete()?;
                    return Ok(None);
                }
            },
            Err(_elapsed) => gather.spill()?,
        }
    }
}

fn mixed() -> ClientError {
    let message = "a load is read by chunks, by tensors, by objects or by pieces, not by several";
    ClientError::new(Reason::BadRequest, message)
}
