//! A connection to the daemon, shared by everything that is called on it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use forebay_device::Device;
use forebay_proto::pb::forebay_client::ForebayClient;
use tokio::time::Instant;
use tonic::Status;
use tonic::transport::Channel;

use crate::access::Access;
use crate::device::layout::Selection;
use crate::endpoint::Endpoint;
use crate::error::ClientError;
use crate::grants::GrantStream;
use crate::load::Load;
use crate::options::{CallOptions, LoadRequest, TraceParent};
use crate::session::Session;
use crate::throttle::Throttle;
use crate::wire::{self, Deadline};

/// A connection to the daemon of this node. Clones share it.
#[derive(Debug, Clone)]
pub struct Client {
    endpoint: Arc<Endpoint>,
    grpc: ForebayClient<Channel>,
    access: Arc<Access>,
    handoff: Arc<Handoff>,
    throttle: Arc<Throttle>,
    options: CallOptions,
}

/// The handoff session that new loads use. Loads that begin before there is one make one each;
/// the last stays.
#[derive(Debug)]
struct Handoff {
    device: Option<Arc<dyn Device>>,
    session: Mutex<Option<Arc<Session>>>,
}

impl Client {
    /// Connects. A daemon that cannot be reached is `DAEMON_UNREACHABLE`.
    pub async fn connect(endpoint: Endpoint) -> Result<Self, ClientError> {
        Self::connect_with(endpoint, Access::new()).await
    }

    /// Connects as somebody who is known by more than the uid: by the token of a security domain,
    /// over TCP by a certificate.
    pub async fn connect_with(endpoint: Endpoint, access: Access) -> Result<Self, ClientError> {
        let grpc = wire::dial(&endpoint, &access).await?;
        Ok(Self {
            endpoint: Arc::new(endpoint),
            grpc,
            access: Arc::new(access),
            handoff: Handoff::on(None),
            throttle: Arc::new(Throttle::new()),
            options: CallOptions::default(),
        })
    }

    /// The same connection with other options for the calls made through it.
    #[must_use]
    pub fn with_options(&self, options: CallOptions) -> Self {
        Self { options, ..self.clone() }
    }

    /// The same connection for loads to a device, with which segments are registered as they come.
    /// Without one, bytes are used where they are lent. A load on it tells the daemon which device
    /// it is for, and unless its request has a placement it asks for memory near the device.
    #[must_use]
    pub fn with_device(&self, device: Arc<dyn Device>) -> Self {
        Self { handoff: Handoff::on(Some(device)), ..self.clone() }
    }

    /// Where it is connected to.
    #[must_use]
    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// Starts to load a checkpoint; comes back when the manifest is there.
    ///
    /// While the daemon refuses loads for overload (`QUEUE_FULL`), some are refused here, with what
    /// it said last: what exceeds twice the loads that it takes from this connection. The parts of
    /// sharded loads are not, which the daemon takes or refuses together. See
    /// [`CallOptions::unthrottled`].
    pub async fn load(&self, request: LoadRequest) -> Result<Load, ClientError> {
        let selection = Selection {
            tensors: request.tensors.clone(),
            objects: request.objects.clone(),
            shard: request.shard.clone(),
        };
        let asked = match &request.shard {
            _ if self.options.unthrottled => None,
            // Whether the ranks of a load begin is for the daemon to say, of all of them.
            Some(shard) if shard.ranks() > 1 => Some(self.throttle.ask_always()),
            _ => Some(self.throttle.ask()?),
        };
        let opened = Box::pin(GrantStream::open(self, request)).await;
        if let Some(asked) = asked {
            asked.ended(&opened);
        }
        Ok(Load::new(opened?, selection, self.device()))
    }

    pub(crate) fn grpc(&self) -> ForebayClient<Channel> {
        self.grpc.clone()
    }

    pub(crate) fn device(&self) -> Option<Arc<dyn Device>> {
        self.handoff.device.clone()
    }

    pub(crate) fn trace_parent(&self) -> Option<&TraceParent> {
        self.options.trace_parent.as_ref()
    }

    pub(crate) fn access(&self) -> &Access {
        &self.access
    }

    /// The deadline of a call that starts here, by its own budget or the client's.
    pub(crate) fn deadline(&self, budget: Option<Duration>) -> Deadline {
        Deadline::after(Instant::now(), budget.or(self.options.deadline))
    }

    pub(crate) fn failed(&self, status: &Status) -> ClientError {
        ClientError::from_status(status, &self.endpoint)
    }

    /// The session for a new load, if there is one that is open.
    pub(crate) fn session(&self) -> Option<Arc<Session>> {
        self.handoff.session().as_ref().filter(|session| session.is_open()).cloned()
    }

    /// New loads use this session.
    pub(crate) fn keep_session(&self, session: &Arc<Session>) {
        *self.handoff.session() = Some(Arc::clone(session));
    }

    /// New loads do not use this session any more.
    pub(crate) fn retire_session(&self, session: &Arc<Session>) {
        self.handoff.session().take_if(|current| Arc::ptr_eq(current, session));
    }
}

impl Handoff {
    fn on(device: Option<Arc<dyn Device>>) -> Arc<Self> {
        Arc::new(Self { device, session: Mutex::default() })
    }

    fn session(&self) -> MutexGuard<'_, Option<Arc<Session>>> {
        self.session.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
