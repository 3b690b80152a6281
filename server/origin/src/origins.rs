//! The door to all origins: builds a store for a URI once, and keeps it.
//!
//! Stores are kept per origin, settings block and signed target; connections per set of
//! certificates, so that stores share them; counters per origin. All three are bounded: the store
//! that was opened longest ago makes room, and origins beyond the bound share one set of counters.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use object_store::local::LocalFileSystem;
use tokio::runtime::Handle;
use tokio::time::Instant;

use crate::credentials::standing::{self, CredentialStanding, Standing};
use crate::engine::addresses::AddressStats;
use crate::engine::book::Book;
use crate::engine::endpoint::{Endpoint, EndpointSpec};
use crate::engine::standing::EndpointStats;
use crate::engine::view::EndpointView;
use crate::error::{OriginError, OriginErrorKind};
use crate::evidence::{NoEvidence, SocketEvidence};
use crate::fault::detail_of;
use crate::file::FileThreads;
use crate::object::{Backend, ObjectOrigin, WebBackend};
use crate::providers::{self, Plan};
use crate::resolve::Resolve;
use crate::settings::{EngineSettings, OriginBlock, OriginSettings};
use crate::sink::strays::Strays;
use crate::sink::{self, Ground, OriginSink};
use crate::stats::{Counters, OriginStats};
use crate::store::OriginStore;
use crate::transport::connect::Connector;
use crate::transport::service::{SignedTarget, Transport};
use crate::transport::tls::Trust;
use crate::uri::{OriginUri, Scheme, WebTarget};

/// Stores kept open.
const STORES_MAX: usize = 256;
/// Origins that are counted apart.
const COUNTED_MAX: usize = 256;
/// The name under which the others are counted.
const OTHERS: &str = "others";

/// All origins.
#[derive(Debug)]
pub struct Origins {
    settings: OriginSettings,
    resolve: Arc<dyn Resolve>,
    evidence: Arc<dyn SocketEvidence>,
    /// Where connections run: where they are used, if nothing else was said.
    runtime: Option<Handle>,
    open: Mutex<Open>,
    book: Arc<Book>,
    strays: Arc<Strays>,
}

#[derive(Debug, Default)]
struct Open {
    stores: HashMap<StoreKey, (u64, Arc<ObjectOrigin>)>,
    opened: u64,
    transports: HashMap<(Option<PathBuf>, Option<usize>), Transport>,
    counters: BTreeMap<String, Arc<Counters>>,
    endpoints: BTreeMap<EndpointKey, Arc<Endpoint>>,
    readers: Threads,
    writers: Threads,
}

/// Threads for files, once there is something to do for them.
#[derive(Debug, Default)]
struct Threads(Option<Arc<FileThreads>>);

/// Origin and settings block: what has limits of its own.
type EndpointKey = (String, Option<String>);

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct StoreKey {
    origin: String,
    block: Option<String>,
    signed: Option<WebTarget>,
}

impl Origins {
    /// No store is opened, and nothing is read or sent, before it is asked for.
    pub fn new(settings: OriginSettings, resolve: Arc<dyn Resolve>) -> Result<Self, OriginError> {
        for block in &settings.origins {
            let text = &block.prefix;
            let known = text
                .split_once("://")
                .is_some_and(|(_, rest)| rest.is_empty() || OriginUri::parse(text).is_ok());
            if !known {
                let text = format!("{text:?} is no origin prefix");
                let kind = OriginErrorKind::Local(std::io::ErrorKind::InvalidInput);
                return Err(OriginError::new(kind, &crate::ObjectKey::root(), text));
            }
        }
        let engine = &settings.engine;
        let book = Book::new(engine.ejection, engine.ejection_cap);
        let evidence = Arc::new(NoEvidence);
        let (open, strays) = (Mutex::default(), Arc::default());
        Ok(Self { settings, resolve, evidence, runtime: None, open, book, strays })
    }

    /// The same, asking `evidence` about each connection.
    #[must_use]
    pub fn with_evidence(self, evidence: Arc<dyn SocketEvidence>) -> Self {
        Self { evidence, ..self }
    }

    /// The same, with connections that run on the threads of `runtime`, whoever asks. Bodies are read
    /// where they are asked for.
    #[must_use]
    pub fn on(self, runtime: Handle) -> Self {
        Self { runtime: Some(runtime), ..self }
    }

    /// The store of a URI. It serves every key of the URI's bucket or host.
    pub fn open(&self, uri: &OriginUri) -> Result<Arc<dyn OriginStore>, OriginError> {
        Ok(self.opened(uri)?)
    }

    /// The same, to write to. It takes every key of the URI's bucket; of a `file` URI only those
    /// below its folder. Web servers are [`OriginErrorKind::Unsupported`].
    pub fn open_sink(&self, uri: &OriginUri) -> Result<Arc<dyn OriginSink>, OriginError> {
        let origin = self.opened(uri)?;
        let writers = self.lock().writers.threads("origin-write").map_err(|error| {
            let kind = OriginErrorKind::Local(error.kind());
            OriginError::new(kind, uri.key(), error.to_string()).at(&uri.origin())
        })?;
        sink::open(origin, uri, Ground { strays: Arc::clone(&self.strays), writers })
    }

    /// Waits until what uploads that were dropped had sent is cleared away. For who is about to
    /// end.
    pub async fn cleared(&self) {
        self.strays.gone().await;
        let writers = self.lock().writers.0.clone();
        if let Some(writers) = writers {
            writers.idle().await;
        }
    }

    fn opened(&self, uri: &OriginUri) -> Result<Arc<ObjectOrigin>, OriginError> {
        let block = self.settings.block_for(uri);
        let key = StoreKey {
            origin: uri.origin(),
            block: block.map(|block| block.prefix.clone()),
            signed: uri.web_target().cloned(),
        };
        let mut open = self.lock();
        open.opened += 1;
        let now = open.opened;
        if let Some((used, store)) = open.stores.get_mut(&key) {
            *used = now;
            return Ok(Arc::clone(store));
        }
        let block = block.cloned().unwrap_or_default();
        let store = Arc::new(self.build(&mut open, uri, &block)?);
        open.make_room();
        open.stores.insert(key, (now, Arc::clone(&store)));
        Ok(store)
    }

    /// What was asked of each origin so far, sorted by name.
    #[must_use]
    pub fn stats(&self) -> Vec<OriginStats> {
        let open = self.lock();
        let now = Instant::now();
        open.transports.values().for_each(|transport| transport.prune(now));
        open.counters.iter().map(|(origin, counters)| counters.snapshot(origin)).collect()
    }

    /// What is known of each endpoint: an origin, as far as one block of the settings applies.
    #[must_use]
    pub fn endpoints(&self) -> Vec<EndpointStats> {
        let endpoints: Vec<Arc<Endpoint>> = self.lock().endpoints.values().cloned().collect();
        endpoints.iter().map(|endpoint| endpoint.stats()).collect()
    }

    /// The endpoint of a URI, if it has one and it was opened.
    #[must_use]
    pub fn endpoint(&self, uri: &OriginUri) -> Option<EndpointView> {
        let prefix = self.settings.block_for(uri).map(|block| block.prefix.clone());
        let open = self.lock();
        open.endpoints.get(&(uri.origin(), prefix)).cloned().map(EndpointView::new)
    }

    /// What there is to sign requests to clouds with: for each bucket that was opened, and for those
    /// that the settings name. Services of credentials may be asked for them; origins are not.
    pub async fn credentials(&self) -> Vec<CredentialStanding> {
        // Opened if they are not: nothing is sent by that.
        let named = self.settings.origins.iter().filter_map(|b| OriginUri::parse(&b.prefix).ok());
        let mut refused = BTreeMap::new();
        for uri in named.filter(|uri| is_cloud(uri.scheme())) {
            if let Err(error) = self.opened(&uri) {
                refused.insert(uri.origin(), Standing::none(error.to_string()));
            }
        }
        let opened: BTreeMap<String, Arc<ObjectOrigin>> = {
            let open = self.lock();
            let stores = open.stores.values().map(|(_, store)| store);
            stores.map(|store| (store.origin.clone(), Arc::clone(store))).collect()
        };
        let mut found = refused;
        for (origin, store) in opened {
            let Ok(uri) = OriginUri::parse(&format!("{origin}/")) else { continue };
            if !is_cloud(uri.scheme()) {
                continue;
            }
            let known = match &store.renewal {
                Some(renewal) => renewal.standing().await,
                None => None,
            };
            let told = || {
                let block = self.settings.block_for(&uri).cloned().unwrap_or_default();
                standing::told(uri.scheme(), &block, &self.settings.env)
            };
            found.insert(origin, known.unwrap_or_else(told));
        }
        let of = |(origin, standing): (String, Standing)| {
            let Standing { source, expires_in, problem } = standing;
            CredentialStanding { origin, source, expires_in, problem }
        };
        found.into_iter().map(of).collect()
    }

    /// What is known of each address of each host that was connected to.
    #[must_use]
    pub fn addresses(&self) -> Vec<AddressStats> {
        self.book.stats(Instant::now())
    }

    fn lock(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn build(
        &self,
        open: &mut Open,
        uri: &OriginUri,
        block: &OriginBlock,
    ) -> Result<ObjectOrigin, OriginError> {
        let origin = uri.origin();
        let counters = open.counters_of(&origin);
        let engine = &self.settings.engine;
        let endpoint =
            (uri.scheme() != Scheme::File).then(|| open.endpoint_of(&origin, block, engine));
        let local = |error: std::io::Error| {
            OriginError::new(OriginErrorKind::Local(error.kind()), uri.key(), error.to_string())
                .at(&origin)
        };
        let unbuilt = |error: object_store::Error| {
            OriginError::new(OriginErrorKind::Rejected, uri.key(), detail_of(&error)).at(&origin)
        };
        let mut renewal = None;
        let (store, backend) = match uri.scheme() {
            Scheme::File => {
                let files = LocalFileSystem::new();
                let readers = open.readers.threads("origin-file").map_err(local)?;
                (Arc::new(files.clone()) as Arc<_>, Backend::File { files, readers })
            }
            scheme => {
                let transport = self.transport(open, block).map_err(local)?;
                let traced = block.trace.unwrap_or(self.settings.trace);
                let transport = transport.counting(Arc::clone(&counters)).tracing(traced);
                let env = &self.settings.env;
                let plan = Plan { bucket: uri.authority(), block, env, transport };
                let cloud = match scheme {
                    Scheme::S3 => plan.s3(),
                    Scheme::Gs => plan.gs(),
                    Scheme::Az => plan.az(),
                    Scheme::Http | Scheme::Https | Scheme::File => {
                        let ground = (counters, endpoint);
                        return self.web(uri, plan, ground).map_err(unbuilt);
                    }
                };
                let cloud = cloud.map_err(unbuilt)?;
                renewal = cloud.renewal;
                (cloud.store, Backend::Cloud(cloud.backend))
            }
        };
        let OriginSettings { retry, timeouts, .. } = self.settings;
        // Directory buckets have tags of another kind.
        let tags_are_md5 = uri.scheme() == Scheme::S3 && !uri.authority().ends_with("--x-s3");
        Ok(ObjectOrigin {
            origin,
            store,
            backend,
            retry,
            timeouts,
            counters,
            endpoint,
            renewal,
            checksums: block.checksums,
            tags_are_md5,
        })
    }

    fn web(
        &self,
        uri: &OriginUri,
        Plan { block, transport, .. }: Plan<'_>,
        (counters, endpoint): (Arc<Counters>, Option<Arc<Endpoint>>),
    ) -> object_store::Result<ObjectOrigin> {
        let origin = uri.origin();
        let base = format!("{origin}/");
        let signed = uri.web_target().cloned().map(|target| {
            let path = providers::web_path(&base, uri.key().as_str());
            Arc::new(SignedTarget { path, target })
        });
        let transport = transport.for_web(signed);
        let store = providers::web(&base, transport.clone())?;
        let web = WebBackend { base, transport, signed: uri.has_query() };
        let backend = Backend::Web(Box::new(web));
        let OriginSettings { retry, timeouts, .. } = self.settings;
        Ok(ObjectOrigin {
            origin,
            store,
            backend,
            retry,
            timeouts,
            counters,
            endpoint,
            renewal: None,
            checksums: block.checksums,
            tags_are_md5: false,
        })
    }

    fn transport(&self, open: &mut Open, block: &OriginBlock) -> std::io::Result<Transport> {
        let key = (block.ca_file.clone(), block.max_connections);
        if let Some(transport) = open.transports.get(&key) {
            return Ok(transport.clone());
        }
        let timeouts = self.settings.timeouts;
        let trust = Trust::new(block.ca_file.as_deref())?;
        let book = Arc::clone(&self.book);
        let connector =
            Connector::new(Arc::clone(&self.resolve), trust, timeouts, book, self.runtime.clone());
        let evidence = Arc::clone(&self.evidence);
        let transport = Transport::new(connector, timeouts, block.max_connections, evidence);
        open.transports.insert(key, transport.clone());
        Ok(transport)
    }
}

/// Whether requests to it are signed, if nothing else is said.
fn is_cloud(scheme: Scheme) -> bool {
    matches!(scheme, Scheme::S3 | Scheme::Gs | Scheme::Az)
}

impl Threads {
    fn threads(&mut self, name: &str) -> std::io::Result<Arc<FileThreads>> {
        if let Some(threads) = &self.0 {
            return Ok(Arc::clone(threads));
        }
        let threads = Arc::new(FileThreads::start(name)?);
        self.0 = Some(Arc::clone(&threads));
        Ok(threads)
    }
}

impl Open {
    fn counters_of(&mut self, origin: &str) -> Arc<Counters> {
        let full = self.counters.len() >= COUNTED_MAX && !self.counters.contains_key(origin);
        let name = if full { OTHERS } else { origin };
        Arc::clone(self.counters.entry(name.to_owned()).or_default())
    }

    fn endpoint_of(
        &mut self,
        origin: &str,
        block: &OriginBlock,
        engine: &EngineSettings,
    ) -> Arc<Endpoint> {
        let prefix = (!block.prefix.is_empty()).then(|| block.prefix.clone());
        let key = (origin.to_owned(), prefix);
        if let Some(endpoint) = self.endpoints.get(&key) {
            return Arc::clone(endpoint);
        }
        if self.endpoints.len() >= COUNTED_MAX {
            self.endpoints.retain(|_, endpoint| Arc::strong_count(endpoint) > 1);
        }
        let scheme = origin.split("://").next().unwrap_or_default();
        let spec = EndpointSpec {
            origin,
            alias: key.1.as_deref().unwrap_or(scheme),
            max_connections: block.max_connections,
            max_bytes_per_second: block.max_bytes_per_second,
            counters: self.counters_of(origin),
        };
        let endpoint = Endpoint::new(spec, engine);
        self.endpoints.insert(key, Arc::clone(&endpoint));
        endpoint
    }

    fn make_room(&mut self) {
        if self.stores.len() < STORES_MAX {
            return;
        }
        let oldest = self.stores.iter().min_by_key(|(_, (used, _))| *used);
        if let Some(key) = oldest.map(|(key, _)| key.clone()) {
            self.stores.remove(&key);
        }
    }
}
