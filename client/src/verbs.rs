//! The control verbs: prefetch, stat, list, evict, status.

use forebay_proto::model::{
    CachedCheckpoint, DaemonStatus, Evicted, Malformed, Manifest, ManifestBuilder, PrefetchEvent,
    StatSummary,
};
use forebay_proto::pb;
use tonic::{Response, Status, Streaming};

use crate::client::Client;
use crate::error::ClientError;
use crate::options::{KeepTier, PrefetchRequest};
use crate::wire::{self, Deadline};

impl Client {
    /// Fetches a checkpoint and keeps it in a tier, without lending it.
    pub async fn prefetch(&self, request: PrefetchRequest) -> Result<Prefetch, ClientError> {
        let tier = match request.tier {
            None => pb::Tier::Unspecified,
            Some(KeepTier::Ram) => pb::Tier::Ram,
        };
        let PrefetchRequest { uri, load_id, .. } = request;
        let message = pb::PrefetchRequest { uri, tier: tier.into(), load_id };
        let call = self.call(message, async |mut grpc, call| grpc.prefetch(call).await);
        let (events, deadline) = call.await?;
        Ok(Prefetch { client: self.clone(), events, deadline, is_over: false })
    }

    /// What a URI resolves to, its objects and tensors, and how much of it is cached.
    pub async fn stat(&self, uri: impl Into<String>) -> Result<Stat, ClientError> {
        let message = pb::StatRequest { uri: uri.into() };
        let call = self.call(message, async |mut grpc, call| grpc.stat(call).await);
        let (mut parts, deadline) = call.await?;
        let mut summary = None;
        let mut builder: Option<ManifestBuilder> = None;
        while let Some(part) = self.next(&mut parts, deadline).await? {
            match (part.event, &mut builder) {
                (Some(pb::stat_response::Event::Summary(first)), None) => {
                    let first = StatSummary::receive(first)?;
                    builder = Some(Manifest::builder(first.object_count, first.tensor_count));
                    summary = Some(first);
                }
                (Some(pb::stat_response::Event::Page(page)), Some(builder)) => {
                    builder.push(page)?;
                }
                _ => return Err(Malformed::new("StatResponse", "it is out of place").into()),
            }
        }
        match (summary, builder) {
            (Some(summary), Some(builder)) => Ok(Stat { summary, manifest: builder.finish()? }),
            _ => Err(Malformed::new("StatResponse", "there is none").into()),
        }
    }

    /// What is cached: everything, or what lies at or under a URI.
    pub async fn list(&self, uri: Option<&str>) -> Result<Vec<CachedCheckpoint>, ClientError> {
        let message = pb::ListRequest { uri: uri.unwrap_or_default().to_owned() };
        let call = self.call(message, async |mut grpc, call| grpc.list(call).await);
        let (mut pages, deadline) = call.await?;
        let mut checkpoints = Vec::new();
        while let Some(page) = self.next(&mut pages, deadline).await? {
            for checkpoint in page.checkpoints {
                checkpoints.push(CachedCheckpoint::receive(checkpoint)?);
            }
        }
        Ok(checkpoints)
    }

    /// Drops a checkpoint from the tiers. What is leased stays readable until it is released.
    pub async fn evict(&self, uri: impl Into<String>) -> Result<Evicted, ClientError> {
        let message = pb::EvictRequest { uri: uri.into() };
        let call = self.call(message, async |mut grpc, call| grpc.evict(call).await);
        Ok(Evicted::receive(call.await?.0))
    }

    /// Tiers, loads, queues, origins.
    pub async fn status(&self) -> Result<DaemonStatus, ClientError> {
        let message = pb::StatusRequest {};
        let call = self.call(message, async |mut grpc, call| grpc.status(call).await);
        Ok(DaemonStatus::receive(call.await?.0)?)
    }

    /// Makes one call within the client's options.
    async fn call<M, R>(
        &self,
        message: M,
        make: impl AsyncFnOnce(Grpc, tonic::Request<M>) -> Result<Response<R>, Status>,
    ) -> Result<(R, Deadline), ClientError> {
        let deadline = self.deadline(None);
        let call = wire::request(message, deadline, self.trace_parent())?;
        let response = deadline.cut(make(self.grpc(), call)).await?;
        let response = response.map_err(|status| self.failed(&status))?;
        Ok((response.into_inner(), deadline))
    }

    async fn next<R>(
        &self,
        responses: &mut Streaming<R>,
        deadline: Deadline,
    ) -> Result<Option<R>, ClientError> {
        let response = deadline.cut(responses.message()).await?;
        response.map_err(|status| self.failed(&status))
    }
}

type Grpc = pb::forebay_client::ForebayClient<tonic::transport::Channel>;

/// What a URI resolves to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stat {
    /// The whole, and how much of it is cached.
    pub summary: StatSummary,
    /// Its objects and tensors.
    pub manifest: Manifest,
}

/// A running prefetch. Dropping it cancels it.
#[derive(Debug)]
pub struct Prefetch {
    client: Client,
    events: Streaming<pb::PrefetchResponse>,
    deadline: Deadline,
    is_over: bool,
}

impl Prefetch {
    /// How far it is, then the report, then none.
    pub async fn next(&mut self) -> Result<Option<PrefetchEvent>, ClientError> {
        if self.is_over {
            return Ok(None);
        }
        let Some(response) = self.client.next(&mut self.events, self.deadline).await? else {
            let what = "the stream ended without a report";
            return Err(Malformed::new("PrefetchResponse", what).into());
        };
        let event = PrefetchEvent::receive(response)?;
        self.is_over = matches!(event, PrefetchEvent::Report(_));
        Ok(Some(event))
    }
}
