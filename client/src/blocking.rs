//! The same verbs for callers without a runtime.
//!
//! A [`Client`] owns a runtime of one thread: the caller's, for the time of a call. Releases are
//! noted when a view is dropped and travel with the next call on the client or one of its loads,
//! so a caller that drops views and then does something else for long should call on.
//!
//! Not for use inside of an async runtime: like every blocking call, these panic there.

use std::path::Path;
use std::sync::Arc;

use forebay_device::Device;
use forebay_proto::model::{
    Alias, AliasReport, CachedCheckpoint, Capacity, Check, DaemonStatus, Evicted, Manifest,
    ObjectEntry, ObjectIndex, Opened, PackEvent, PackReport, Pinned, PrefetchEvent, Report,
    ResizeEvent, ResizeReport, RolledBack, SetAliasEvent, TensorEntry, Unpinned, VerifyEvent,
    VerifySummary,
};
use forebay_proto::{Reason, RollbackRule, Slice};
use tokio::runtime::{Builder, Handle, Runtime};

use crate::access::Access;
use crate::chunk::Chunk;
use crate::device::{DeviceTensor, Layout, Resident};
use crate::endpoint::Endpoint;
use crate::error::ClientError;
use crate::options::{CallOptions, EvictRequest, LoadRequest, PackRequest, PrefetchRequest};
use crate::order::Piece;
use crate::verbs::Stat;
use crate::view::{ObjectView, Tensor};

/// Turns of the runtime that its tasks get to see what came, or to send what is to go.
const TURNS: usize = 16;

/// [`crate::Client`], blocking.
#[derive(Debug, Clone)]
pub struct Client {
    // Dropped before the runtime that it runs on.
    client: crate::Client,
    runtime: Arc<Runtime>,
}

impl Client {
    /// Connects to the daemon.
    pub fn connect(endpoint: Endpoint) -> Result<Self, ClientError> {
        Self::connect_with(endpoint, Access::new())
    }

    /// See [`crate::Client::connect_with`].
    pub fn connect_with(endpoint: Endpoint, access: Access) -> Result<Self, ClientError> {
        let runtime = Builder::new_current_thread().enable_all().build().map_err(|error| {
            ClientError::new(Reason::Internal, format!("no runtime for the client: {error}"))
        })?;
        let client = runtime.block_on(crate::Client::connect_with(endpoint, access))?;
        Ok(Self { client, runtime: Arc::new(runtime) })
    }

    /// Connects to the daemon's socket at this absolute path.
    pub fn connect_unix(path: &Path) -> Result<Self, ClientError> {
        Self::connect(Endpoint::unix(path)?)
    }

    /// See [`crate::Client::with_options`].
    #[must_use]
    pub fn with_options(&self, options: CallOptions) -> Self {
        Self { client: self.client.with_options(options), runtime: Arc::clone(&self.runtime) }
    }

    /// See [`crate::Client::with_device`].
    #[must_use]
    pub fn with_device(&self, device: Arc<dyn Device>) -> Self {
        Self { client: self.client.with_device(device), runtime: Arc::clone(&self.runtime) }
    }

    /// Makes a call, after the connection has noticed what happened since the last one: a daemon
    /// that was restarted must not cost a failure.
    fn run<F: Future>(&self, call: F) -> F::Output {
        self.runtime.block_on(async {
            turns().await;
            call.await
        })
    }

    /// See [`crate::Client::load`].
    pub fn load(&self, request: LoadRequest) -> Result<Load, ClientError> {
        let load = self.run(self.client.load(request))?;
        Ok(Load { load, runtime: Turns(Arc::clone(&self.runtime)) })
    }

    /// See [`crate::Client::prefetch`]. `progress` sees every event; the report comes back.
    pub fn prefetch(
        &self,
        request: PrefetchRequest,
        mut progress: impl FnMut(&PrefetchEvent),
    ) -> Result<Report, ClientError> {
        self.run(async {
            let mut prefetch = self.client.prefetch(request).await?;
            let mut report = None;
            while let Some(event) = prefetch.next().await? {
                progress(&event);
                report = report.or_else(|| event.into_report());
            }
            report.ok_or_else(|| {
                ClientError::new(Reason::Internal, "the prefetch ended without a report")
            })
        })
    }

    /// See [`crate::Client::set_alias`]. `progress` sees every event; the report comes back.
    pub fn set_alias(
        &self,
        name: impl Into<String>,
        uri: impl Into<String>,
        rule: Option<&RollbackRule>,
        mut progress: impl FnMut(&SetAliasEvent),
    ) -> Result<AliasReport, ClientError> {
        self.run(async {
            let mut setting = self.client.set_alias(name, uri, rule).await?;
            let mut report = None;
            while let Some(event) = setting.next().await? {
                progress(&event);
                report = report.or_else(|| event.into_report());
            }
            report.ok_or_else(|| {
                ClientError::new(Reason::Internal, "the alias was set without a report")
            })
        })
    }

    /// See [`crate::Client::rollback`].
    pub fn rollback(&self, name: impl Into<String>) -> Result<RolledBack, ClientError> {
        self.run(self.client.rollback(name))
    }

    /// See [`crate::Client::aliases`].
    pub fn aliases(&self, name: Option<&str>) -> Result<Vec<Alias>, ClientError> {
        self.run(self.client.aliases(name))
    }

    /// See [`crate::Client::remove_alias`].
    pub fn remove_alias(&self, name: impl Into<String>) -> Result<u64, ClientError> {
        self.run(self.client.remove_alias(name))
    }

    /// See [`crate::Client::stat`].
    pub fn stat(&self, uri: impl Into<String>) -> Result<Stat, ClientError> {
        self.run(self.client.stat(uri))
    }

    /// See [`crate::Client::list`].
    pub fn list(&self, uri: Option<&str>) -> Result<Vec<CachedCheckpoint>, ClientError> {
        self.run(self.client.list(uri))
    }

    /// See [`crate::Client::pin`].
    pub fn pin(&self, uri: impl Into<String>) -> Result<Pinned, ClientError> {
        self.run(self.client.pin(uri))
    }

    /// See [`crate::Client::unpin`].
    pub fn unpin(&self, uri: impl Into<String>) -> Result<Unpinned, ClientError> {
        self.run(self.client.unpin(uri))
    }

    /// See [`crate::Client::evict`].
    pub fn evict(&self, request: impl Into<EvictRequest>) -> Result<Evicted, ClientError> {
        self.run(self.client.evict(request))
    }

    /// See [`crate::Client::verify`]. `progress` sees every event; the summary comes back.
    pub fn verify(
        &self,
        uri: impl Into<String>,
        mut progress: impl FnMut(&VerifyEvent),
    ) -> Result<VerifySummary, ClientError> {
        self.run(async {
            let mut verify = self.client.verify(uri).await?;
            let mut summary = None;
            while let Some(event) = verify.next().await? {
                progress(&event);
                summary = summary.or_else(|| event.into_summary());
            }
            summary.ok_or_else(|| {
                ClientError::new(Reason::Internal, "the verification ended without a summary")
            })
        })
    }

    /// See [`crate::Client::pack`]. `progress` sees every event; the report comes back.
    pub fn pack(
        &self,
        request: PackRequest,
        mut progress: impl FnMut(&PackEvent),
    ) -> Result<PackReport, ClientError> {
        self.run(async {
            let mut pack = self.client.pack(request).await?;
            let mut report = None;
            while let Some(event) = pack.next().await? {
                progress(&event);
                report = report.or_else(|| event.into_report());
            }
            report.ok_or_else(|| {
                ClientError::new(Reason::Internal, "the pack ended without a report")
            })
        })
    }

    /// See [`crate::Client::resize_ram`]. `progress` sees every event; the report comes back.
    pub fn resize_ram(
        &self,
        bytes: u64,
        mut progress: impl FnMut(&ResizeEvent),
    ) -> Result<ResizeReport, ClientError> {
        self.run(async {
            let mut resize = self.client.resize_ram(bytes).await?;
            let mut report = None;
            while let Some(event) = resize.next().await? {
                progress(&event);
                report = report.or_else(|| event.into_report());
            }
            report.ok_or_else(|| {
                ClientError::new(Reason::Internal, "the resize ended without a report")
            })
        })
    }

    /// See [`crate::Client::status`].
    pub fn status(&self) -> Result<DaemonStatus, ClientError> {
        self.run(self.client.status())
    }

    /// See [`crate::Client::capacity`].
    pub fn capacity(&self) -> Result<Capacity, ClientError> {
        self.run(self.client.capacity())
    }

    /// See [`crate::Client::doctor`].
    pub fn doctor(&self) -> Result<Vec<Check>, ClientError> {
        self.run(self.client.doctor())
    }
}

/// [`crate::Load`], blocking. Dropping it cancels the load.
#[derive(Debug)]
pub struct Load {
    // Dropped first, so that the runtime can then tell the daemon.
    load: crate::Load,
    runtime: Turns,
}

impl Load {
    /// See [`crate::Load::opened`].
    #[must_use]
    pub fn opened(&self) -> &Opened {
        self.load.opened()
    }

    /// See [`crate::Load::manifest`].
    #[must_use]
    pub fn manifest(&self) -> &Manifest {
        self.load.manifest()
    }

    /// See [`crate::Load::selected_objects`].
    pub fn selected_objects(&self) -> impl Iterator<Item = (ObjectIndex, &ObjectEntry)> {
        self.load.selected_objects()
    }

    /// See [`crate::Load::selected_tensors`].
    pub fn selected_tensors(&self) -> Result<Vec<(&TensorEntry, Slice)>, ClientError> {
        self.load.selected_tensors()
    }

    /// See [`crate::Load::next_chunk`].
    pub fn next_chunk(&mut self) -> Result<Option<Chunk>, ClientError> {
        self.runtime.0.block_on(self.load.next_chunk())
    }

    /// See [`crate::Load::next_tensor`].
    pub fn next_tensor(&mut self) -> Result<Option<Tensor>, ClientError> {
        self.runtime.0.block_on(self.load.next_tensor())
    }

    /// See [`crate::Load::next_object`].
    pub fn next_object(&mut self) -> Result<Option<ObjectView>, ClientError> {
        self.runtime.0.block_on(self.load.next_object())
    }

    /// See [`crate::Load::next_piece`].
    pub fn next_piece(&mut self) -> Result<Option<Piece>, ClientError> {
        self.runtime.0.block_on(self.load.next_piece())
    }

    /// See [`crate::Load::to_device`].
    pub fn to_device(self, layout: Layout) -> Result<DeviceLoad, ClientError> {
        let Self { load, runtime } = self;
        Ok(DeviceLoad { load: load.to_device(layout)?, runtime })
    }

    /// See [`crate::Load::finish`]. Drop every view first: one that this thread still holds keeps
    /// it waiting for good.
    pub fn finish(self) -> Result<Report, ClientError> {
        let Self { load, runtime } = self;
        runtime.0.block_on(load.finish())
    }
}

/// [`crate::DeviceLoad`], blocking. Dropping it cancels the load.
#[derive(Debug)]
pub struct DeviceLoad {
    // Dropped first, so that the runtime can then tell the daemon.
    load: crate::DeviceLoad,
    runtime: Turns,
}

impl DeviceLoad {
    /// See [`crate::DeviceLoad::opened`].
    #[must_use]
    pub fn opened(&self) -> &Opened {
        self.load.opened()
    }

    /// See [`crate::DeviceLoad::manifest`].
    #[must_use]
    pub fn manifest(&self) -> &Manifest {
        self.load.manifest()
    }

    /// See [`crate::DeviceLoad::next`].
    // Not an iterator: it can fail, and then goes on to.
    #[expect(clippy::should_implement_trait, reason = "named as in the asynchronous one")]
    pub fn next(&mut self) -> Result<Option<DeviceTensor>, ClientError> {
        self.runtime.0.block_on(self.load.next())
    }

    /// See [`crate::DeviceLoad::finish`].
    pub fn finish(self) -> Result<Resident, ClientError> {
        let Self { load, runtime } = self;
        runtime.0.block_on(load.finish())
    }
}

async fn turns() {
    for _ in 0..TURNS {
        tokio::task::yield_now().await;
    }
}

/// The runtime of a load. After the load was dropped it runs once more, so that the cancellation
/// reaches the daemon now and not with the next call.
#[derive(Debug)]
struct Turns(Arc<Runtime>);

impl Drop for Turns {
    fn drop(&mut self) {
        // Inside of another runtime `block_on` would panic; there the next call has to do.
        if Handle::try_current().is_ok() {
            return;
        }
        self.0.block_on(turns());
    }
}
