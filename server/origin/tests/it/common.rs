//! What all tests here use.

use std::io;
use std::net::IpAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use async_trait::async_trait;
use forebay_origin::{
    ObjectMeta, OriginSettings, OriginStore, OriginUri, Origins, ReadRequest, Resolve, RetryPolicy,
    SystemResolver,
};
use tracing_subscriber::Layer;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt;

use crate::server::Shelf;

/// Settings whose waits are short, for tests that retry.
pub(crate) fn quick() -> OriginSettings {
    OriginSettings {
        retry: RetryPolicy {
            transient_base: Duration::from_millis(1),
            throttle_base: Duration::from_millis(1),
            ..RetryPolicy::default()
        },
        ..OriginSettings::default()
    }
}

pub(crate) fn origins(settings: OriginSettings) -> Origins {
    Origins::new(settings, Arc::new(SystemResolver)).unwrap()
}

pub(crate) fn uri(text: &str) -> OriginUri {
    OriginUri::parse(text).unwrap()
}

pub(crate) fn request(meta: &ObjectMeta, range: std::ops::Range<u64>) -> ReadRequest {
    ReadRequest { key: meta.key.clone(), pin: meta.pin.clone(), object_bytes: meta.bytes, range }
}

/// Bytes that tell every offset from its neighbours.
pub(crate) fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|at| u8::try_from((at ^ (at >> 8).wrapping_mul(31)) & 0xff).unwrap()).collect()
}

pub(crate) async fn whole(store: &dyn OriginStore, meta: &ObjectMeta) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(meta.bytes).unwrap()];
    store.read(&request(meta, 0..meta.bytes), &mut bytes).await.unwrap();
    bytes
}

/// A resolver with fixed answers.
#[derive(Debug)]
pub(crate) struct Names(pub(crate) Vec<(&'static str, Vec<IpAddr>)>);

#[async_trait]
impl Resolve for Names {
    async fn resolve(&self, host: &str) -> io::Result<Vec<IpAddr>> {
        let found = self.0.iter().find(|(name, _)| *name == host);
        let unknown = || io::Error::new(io::ErrorKind::NotFound, "no such name");
        found.map(|(_, addresses)| addresses.clone()).ok_or_else(unknown)
    }
}

/// What was logged.
#[derive(Clone, Default)]
pub(crate) struct Log(Shelf<Vec<u8>>);

impl Log {
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().unwrap()).into_owned()
    }
}

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Log {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

/// Everything that any test of this binary logs, from now on. Not per thread: tracing decides about
/// a line of code once for all threads.
pub(crate) fn log() -> &'static Log {
    static LOG: OnceLock<Log> = OnceLock::new();
    LOG.get_or_init(|| {
        let log = Log::default();
        // The fake S3 tells what it was asked, signature and all: that is not ours to keep.
        let ours =
            Targets::new().with_default(LevelFilter::TRACE).with_target("s3s", LevelFilter::OFF);
        let lines = tracing_subscriber::fmt::layer().with_ansi(false).with_writer(log.clone());
        let subscriber = tracing_subscriber::registry().with(lines.with_filter(ours));
        tracing::subscriber::set_global_default(subscriber).unwrap();
        log
    })
}
