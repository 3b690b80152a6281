//! The control verbs: prefetch, stat, list, pin, unpin, evict, verify, pack, resize, explain, trace,
//! aliases, status, capacity, doctor.

use forebay_proto::model::{
    Alias, CachedCheckpoint, Capacity, Check, DaemonStatus, Evicted, Explanation, Malformed,
    Manifest, ManifestBuilder, PackEvent, Pinned, PrefetchEvent, ResizeEvent, RolledBack,
    SetAliasEvent, StatSummary, TraceHead, TraceSpan, Unpinned, VerifyEvent,
};
use forebay_proto::{Placement, RollbackRule, pb};
use tonic::{Response, Status, Streaming};

use crate::client::Client;
use crate::error::ClientError;
use crate::options::{EvictRequest, KeepTier, PackRequest, PrefetchRequest};
use crate::wire::{self, Deadline};

impl Client {
    /// Fetches a checkpoint and keeps it in a tier, without lending it. A tier that cannot take it
    /// is `NVME_EXHAUSTED` or `NVME_OFF`.
    pub async fn prefetch(&self, request: PrefetchRequest) -> Result<Prefetch, ClientError> {
        let PrefetchRequest { uri, load_id, tier, pin, placement, workload } = request;
        let placement = placement.map(Placement::to_wire);
        let tier = on_wire(tier);
        let message = pb::PrefetchRequest { uri, tier, load_id, pin, placement, workload };
        let call = self.call(message, async |mut grpc, call| grpc.prefetch(call).await);
        Ok(Prefetch(Events::new(self, call.await?)))
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

    /// Keeps the checkpoints at or under a URI in the NVMe tier: they are never evicted to make
    /// room. `NOT_CACHED` if the tier holds nothing of them.
    pub async fn pin(&self, uri: impl Into<String>) -> Result<Pinned, ClientError> {
        let message = pb::PinRequest { uri: uri.into() };
        let call = self.call(message, async |mut grpc, call| grpc.pin(call).await);
        Ok(Pinned::receive(call.await?.0))
    }

    /// Lets the checkpoints at or under a URI be evicted again.
    pub async fn unpin(&self, uri: impl Into<String>) -> Result<Unpinned, ClientError> {
        let message = pb::UnpinRequest { uri: uri.into() };
        let call = self.call(message, async |mut grpc, call| grpc.unpin(call).await);
        Ok(Unpinned::receive(call.await?.0))
    }

    /// Drops checkpoints from the tiers, or from one of them. What is leased stays readable until
    /// it is released; what is pinned stays in the NVMe tier.
    pub async fn evict(&self, request: impl Into<EvictRequest>) -> Result<Evicted, ClientError> {
        let EvictRequest { uri, tier } = request.into();
        let message = pb::EvictRequest { uri, tier: on_wire(tier) };
        let call = self.call(message, async |mut grpc, call| grpc.evict(call).await);
        Ok(Evicted::receive(call.await?.0))
    }

    /// Reads everything that is cached at or under a URI again and checks it. What is bad is no
    /// error: the daemon gives it up, fetches it again when it is next needed, and the summary says
    /// how much it was.
    pub async fn verify(&self, uri: impl Into<String>) -> Result<Verify, ClientError> {
        let message = pb::VerifyRequest { uri: uri.into() };
        let call = self.call(message, async |mut grpc, call| grpc.verify(call).await);
        Ok(Verify(Events::new(self, call.await?)))
    }

    /// Writes a checkpoint anew in another place: smaller, and with digests of everything. It may
    /// be called again after a failure, and goes on where that was. A source that is packed already
    /// is `BAD_REQUEST`; what stands in the way at the destination is `DESTINATION_IN_USE`.
    pub async fn pack(&self, request: PackRequest) -> Result<Pack, ClientError> {
        let PackRequest { source, destination, frame_bytes, level } = request;
        let message = pb::PackRequest { source, destination, frame_bytes, level };
        let call = self.call(message, async |mut grpc, call| grpc.pack(call).await);
        Ok(Pack(Events::new(self, call.await?)))
    }

    /// Where the time of one of the last loads went; of the last one to end without an id.
    /// `LOAD_NOT_KEPT` if the daemon does not know it.
    pub async fn explain(&self, load_id: Option<&str>) -> Result<Explanation, ClientError> {
        let message = pb::ExplainRequest { load_id: load_id.unwrap_or_default().to_owned() };
        let call = self.call(message, async |mut grpc, call| grpc.explain(call).await);
        Ok(Explanation::receive(call.await?.0)?)
    }

    /// The timeline of one of the last loads, as [`Client::explain`] has them.
    pub async fn trace(&self, load_id: Option<&str>) -> Result<Trace, ClientError> {
        let message = pb::TraceRequest { load_id: load_id.unwrap_or_default().to_owned() };
        let call = self.call(message, async |mut grpc, call| grpc.trace(call).await);
        let (mut responses, deadline) = call.await?;
        let (mut head, mut spans) = (None, Vec::new());
        while let Some(part) = self.next(&mut responses, deadline).await? {
            head = head.or(part.head);
            for span in part.spans {
                spans.push(TraceSpan::receive(span)?);
            }
        }
        let head = head.ok_or_else(|| Malformed::new("TraceResponse", "there is no head"))?;
        Ok(Trace { head: TraceHead::receive(head)?, spans })
    }

    /// Gives the RAM tier another size, in bytes, until the daemon ends or this is called again.
    /// The size holds at once; what is waited for is that memory is had, or given back. A deadline,
    /// or dropping the result, ends the waiting only. A size that cannot be is `BAD_REQUEST`.
    pub async fn resize_ram(&self, bytes: u64) -> Result<Resize, ClientError> {
        let message = pb::ResizeRamRequest { bytes };
        let call = self.call(message, async |mut grpc, call| grpc.resize_ram(call).await);
        Ok(Resize(Events::new(self, call.await?)))
    }

    /// Gives what a URI resolves to now a name on this node, once it is stored in the NVMe tier and
    /// was read again; until then, and if that fails, the name stays what it is. What it stood for
    /// before stays pinned for [`Client::rollback`]. With a rule the daemon rolls back by itself,
    /// once. `ALIAS_BUSY` while another call sets the same name.
    pub async fn set_alias(
        &self,
        name: impl Into<String>,
        uri: impl Into<String>,
        rule: Option<&RollbackRule>,
    ) -> Result<SetAlias, ClientError> {
        let rule = rule.map(RollbackRule::to_wire);
        let message = pb::SetAliasRequest { name: name.into(), uri: uri.into(), rule };
        let call = self.call(message, async |mut grpc, call| grpc.set_alias(call).await);
        Ok(SetAlias(Events::new(self, call.await?)))
    }

    /// Has a name stand for what it stood for before. Nothing is fetched; loads that run go on with
    /// the revision they began with. `NO_PREVIOUS_REVISION` if there was none.
    pub async fn rollback(&self, name: impl Into<String>) -> Result<RolledBack, ClientError> {
        let message = pb::RollbackRequest { name: name.into() };
        let call = self.call(message, async |mut grpc, call| grpc.rollback(call).await);
        Ok(RolledBack::receive(call.await?.0)?)
    }

    /// Names and what they stand for: all of them, or one, which is `ALIAS_UNKNOWN` if it is none.
    pub async fn aliases(&self, name: Option<&str>) -> Result<Vec<Alias>, ClientError> {
        let message = pb::ListAliasesRequest { name: name.unwrap_or_default().to_owned() };
        let call = self.call(message, async |mut grpc, call| grpc.list_aliases(call).await);
        let aliases = call.await?.0.aliases.into_iter().map(Alias::receive);
        Ok(aliases.collect::<Result<_, _>>()?)
    }

    /// Forgets a name; how many revisions may be evicted again.
    pub async fn remove_alias(&self, name: impl Into<String>) -> Result<u64, ClientError> {
        let message = pb::RemoveAliasRequest { name: name.into() };
        let call = self.call(message, async |mut grpc, call| grpc.remove_alias(call).await);
        Ok(call.await?.0.revisions)
    }

    /// Tiers, loads, queues, origins.
    pub async fn status(&self) -> Result<DaemonStatus, ClientError> {
        let message = pb::StatusRequest {};
        let call = self.call(message, async |mut grpc, call| grpc.status(call).await);
        Ok(DaemonStatus::receive(call.await?.0)?)
    }

    /// What each stage of the daemon brings per second, as measured, and what loads can get of that.
    pub async fn capacity(&self) -> Result<Capacity, ClientError> {
        let message = pb::CapacityRequest {};
        let call = self.call(message, async |mut grpc, call| grpc.capacity(call).await);
        Ok(Capacity::receive(call.await?.0)?)
    }

    /// What of the machine, the settings and the daemon's state is in the way of loads, as the
    /// daemon sees it. What only this process can see is [`check_client`](crate::check_client)'s.
    pub async fn doctor(&self) -> Result<Vec<Check>, ClientError> {
        let message = pb::DoctorRequest {};
        let call = self.call(message, async |mut grpc, call| grpc.doctor(call).await);
        let checks = call.await?.0.checks.into_iter().map(Check::receive);
        Ok(checks.collect::<Result<_, _>>()?)
    }

    /// Makes one call within the client's options.
    async fn call<M, R>(
        &self,
        message: M,
        make: impl AsyncFnOnce(Grpc, tonic::Request<M>) -> Result<Response<R>, Status>,
    ) -> Result<(R, Deadline), ClientError> {
        let deadline = self.deadline(None);
        let call = wire::request(message, deadline, self)?;
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

fn on_wire(tier: Option<KeepTier>) -> i32 {
    let tier = match tier {
        None => pb::Tier::Unspecified,
        Some(KeepTier::Ram) => pb::Tier::Ram,
        Some(KeepTier::Nvme) => pb::Tier::Nvme,
    };
    tier.into()
}

/// What a URI resolves to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stat {
    /// The whole, and how much of it is cached.
    pub summary: StatSummary,
    /// Its objects and tensors.
    pub manifest: Manifest,
}

/// The timeline of a load.
#[derive(Debug, Clone, PartialEq)]
pub struct Trace {
    /// What it is of.
    pub head: TraceHead,
    /// Its spans: of the load itself, of each chunk, of copies and of gaps.
    pub spans: Vec<TraceSpan>,
}

/// A running prefetch. Dropping it cancels it.
#[derive(Debug)]
pub struct Prefetch(Events<pb::PrefetchResponse>);

impl Prefetch {
    /// How far it is, then the report, then none.
    pub async fn next(&mut self) -> Result<Option<PrefetchEvent>, ClientError> {
        let Some(response) = self.0.next("PrefetchResponse").await? else { return Ok(None) };
        let event = PrefetchEvent::receive(response)?;
        self.0.is_over = matches!(event, PrefetchEvent::Report(_));
        Ok(Some(event))
    }
}

/// A running verification. Dropping it cancels it.
#[derive(Debug)]
pub struct Verify(Events<pb::VerifyResponse>);

impl Verify {
    /// How far it is, then the summary, then none.
    pub async fn next(&mut self) -> Result<Option<VerifyEvent>, ClientError> {
        let Some(response) = self.0.next("VerifyResponse").await? else { return Ok(None) };
        let event = VerifyEvent::receive(response)?;
        self.0.is_over = matches!(event, VerifyEvent::Summary(_));
        Ok(Some(event))
    }
}

/// A running pack. Dropping it cancels it; what is written by then is not written again.
#[derive(Debug)]
pub struct Pack(Events<pb::PackResponse>);

impl Pack {
    /// How far it is, then the report, then none.
    pub async fn next(&mut self) -> Result<Option<PackEvent>, ClientError> {
        let Some(response) = self.0.next("PackResponse").await? else { return Ok(None) };
        let event = PackEvent::receive(response)?;
        self.0.is_over = matches!(event, PackEvent::Report(_));
        Ok(Some(event))
    }
}

/// A running change of the RAM tier's size. Dropped, it goes on.
#[derive(Debug)]
pub struct Resize(Events<pb::ResizeRamResponse>);

impl Resize {
    /// How far it is, then the report, then none.
    pub async fn next(&mut self) -> Result<Option<ResizeEvent>, ClientError> {
        let Some(response) = self.0.next("ResizeRamResponse").await? else { return Ok(None) };
        let event = ResizeEvent::receive(response)?;
        self.0.is_over = matches!(event, ResizeEvent::Report(_));
        Ok(Some(event))
    }
}

/// An alias that is being set. Dropping it ends that, and the name stays what it is.
#[derive(Debug)]
pub struct SetAlias(Events<pb::SetAliasResponse>);

impl SetAlias {
    /// How far it is, then the report, then none.
    pub async fn next(&mut self) -> Result<Option<SetAliasEvent>, ClientError> {
        let Some(response) = self.0.next("SetAliasResponse").await? else { return Ok(None) };
        let event = SetAliasEvent::receive(response)?;
        self.0.is_over = matches!(event, SetAliasEvent::Report(_));
        Ok(Some(event))
    }
}

/// A stream that has to end with a certain message: whoever takes it notes that it is over.
#[derive(Debug)]
struct Events<R> {
    client: Client,
    responses: Streaming<R>,
    deadline: Deadline,
    is_over: bool,
}

impl<R> Events<R> {
    fn new(client: &Client, (responses, deadline): (Streaming<R>, Deadline)) -> Self {
        Self { client: client.clone(), responses, deadline, is_over: false }
    }

    /// The next message, which is a `message`; none after the last.
    async fn next(&mut self, message: &'static str) -> Result<Option<R>, ClientError> {
        if self.is_over {
            return Ok(None);
        }
        match self.client.next(&mut self.responses, self.deadline).await? {
            Some(response) => Ok(Some(response)),
            None => Err(Malformed::new(message, "the stream ended before its last message").into()),
        }
    }
}
