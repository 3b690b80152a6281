//! The engine itself, without a daemon: `forebay-origin` reading parts of one object.
//!
//! So many callers, each with memory of its own that was touched before, take part after part until
//! all have been read. How many of them are on the wire at a time is the engine's matter.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use forebay_origin::{
    ObjectMeta, OriginError, OriginSettings, OriginStore, OriginUri, Origins, ReadRequest, Resolve,
};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::Outcome;

/// The default part of the daemon.
pub(crate) const PART_BYTES: u32 = 8 << 20;

/// An engine and the object that it reads.
#[derive(Debug)]
pub(crate) struct Engine {
    pub(crate) origins: Origins,
    store: Arc<dyn OriginStore>,
    meta: ObjectMeta,
}

/// When a part was asked for, and when it was there.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PartTime {
    pub(crate) started: Instant,
    pub(crate) ended: Instant,
}

/// Memory of the callers, kept over runs.
#[derive(Debug)]
pub(crate) struct Buffers(Vec<Vec<u8>>);

impl Buffers {
    /// For so many callers.
    pub(crate) fn touched(callers: usize) -> Self {
        let bytes = usize::try_from(PART_BYTES).unwrap_or_default();
        Self((0..callers).map(|_| vec![0xa5; bytes]).collect())
    }
}

impl Engine {
    /// An engine that knows nothing yet but the object's size and version.
    pub(crate) async fn open(
        settings: OriginSettings,
        resolve: Arc<dyn Resolve>,
        uri: &str,
    ) -> Outcome<Arc<Self>> {
        let uri = OriginUri::parse(uri)?;
        let origins = Origins::new(settings, resolve)?;
        let store = origins.open(&uri)?;
        let meta = store.head(uri.key()).await?;
        Ok(Arc::new(Self { origins, store, meta }))
    }

    /// The parts of full size that the object has.
    pub(crate) fn parts(&self) -> u64 {
        self.meta.bytes / u64::from(PART_BYTES)
    }

    /// Reads one part, counted round and round the object.
    pub(crate) async fn read(&self, number: u64, into: &mut [u8]) -> Result<PartTime, OriginError> {
        let first = number % self.parts().max(1) * u64::from(PART_BYTES);
        self.read_range(first, into).await
    }

    /// Reads as many bytes as there is room for.
    pub(crate) async fn read_range(
        &self,
        first: u64,
        into: &mut [u8],
    ) -> Result<PartTime, OriginError> {
        let end = first + u64::try_from(into.len()).unwrap_or(u64::MAX);
        let request = ReadRequest {
            key: self.meta.key.clone(),
            pin: self.meta.pin.clone(),
            object_bytes: self.meta.bytes,
            range: first..end,
        };
        let started = Instant::now();
        self.store.read(&request, into).await?;
        Ok(PartTime { started, ended: Instant::now() })
    }

    /// Reads so many parts; all callers read at once. The times come in no order.
    pub(crate) async fn read_all(
        self: &Arc<Self>,
        parts: u64,
        buffers: &mut Buffers,
    ) -> Outcome<Vec<PartTime>> {
        let next = Arc::new(AtomicU64::new(0));
        let mut callers = JoinSet::new();
        for buffer in buffers.0.drain(..) {
            callers.spawn(Arc::clone(self).read_some(Arc::clone(&next), parts, buffer));
        }
        let mut all = Vec::new();
        while let Some(ended) = callers.join_next().await {
            let (buffer, times) = ended??;
            buffers.0.push(buffer);
            all.extend(times);
        }
        Ok(all)
    }

    /// One caller: takes the next part until there is none; gives its memory back.
    async fn read_some(
        self: Arc<Self>,
        next: Arc<AtomicU64>,
        parts: u64,
        mut buffer: Vec<u8>,
    ) -> Result<(Vec<u8>, Vec<PartTime>), OriginError> {
        let mut times = Vec::new();
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= parts {
                return Ok((buffer, times));
            }
            times.push(self.read(number, &mut buffer).await?);
        }
    }
}
