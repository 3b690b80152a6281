//! An endpoint as those see it who plan what to ask of it: what it takes now, and their part of
//! that.
//!
//! Who has a [`Share`] keeps as many requests on their way as it says: together they are twice what
//! may be under way, so that each connection has its next part ready and a limit that grows finds
//! work, while the line before the endpoint stays as short as the limit.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::endpoint::Endpoint;

/// Requests on their way for each that may be under way.
const ON_THEIR_WAY: usize = 2;

/// One endpoint.
#[derive(Debug, Clone)]
pub struct EndpointView(Arc<Endpoint>);

/// What shares of an endpoint are counted apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sharing {
    /// Loads, which ask for chunks.
    Loads,
    /// Chunks, which ask for parts.
    Chunks,
}

/// Who has a share of an endpoint, counted.
#[derive(Debug, Default)]
pub(super) struct Sharers {
    loads: AtomicUsize,
    chunks: AtomicUsize,
}

impl Sharers {
    fn of(&self, sharing: Sharing) -> &AtomicUsize {
        match sharing {
            Sharing::Loads => &self.loads,
            Sharing::Chunks => &self.chunks,
        }
    }
}

/// The part of an endpoint that one of several has, until it is dropped.
#[derive(Debug)]
pub struct Share {
    endpoint: Arc<Endpoint>,
    sharing: Sharing,
}

impl EndpointView {
    pub(crate) fn new(endpoint: Arc<Endpoint>) -> Self {
        Self(endpoint)
    }

    /// Bytes per second that it brought lately while it was asked for all it could; none before
    /// enough was measured. More than that cannot be counted on.
    #[must_use]
    pub fn sustained(&self) -> Option<f64> {
        self.0.sustained()
    }

    /// One more who asks of it.
    #[must_use]
    pub fn share(&self, sharing: Sharing) -> Share {
        self.0.sharers().of(sharing).fetch_add(1, Ordering::Relaxed);
        Share { endpoint: Arc::clone(&self.0), sharing }
    }
}

impl Share {
    /// Requests that may be under way at the endpoint now, of all who ask.
    #[must_use]
    pub fn limit(&self) -> usize {
        self.endpoint.limit()
    }

    /// What this one may have on its way now; at least one.
    #[must_use]
    pub fn on_its_way(&self) -> usize {
        let sharers = self.endpoint.sharers().of(self.sharing).load(Ordering::Relaxed);
        let all = self.endpoint.limit().saturating_mul(ON_THEIR_WAY);
        all.div_ceil(sharers.max(1)).max(1)
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.endpoint.sharers().of(self.sharing).fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::endpoint::EndpointSpec;
    use crate::settings::EngineSettings;

    #[tokio::test]
    async fn shares_are_alike_and_follow_the_limit_and_each_other() {
        let spec = EndpointSpec {
            origin: "s3://b",
            alias: "s3",
            max_connections: Some(6),
            max_bytes_per_second: None,
            counters: Arc::default(),
        };
        let view = EndpointView::new(Endpoint::new(spec, &EngineSettings::default()));
        let one = view.share(Sharing::Loads);
        assert_eq!(one.on_its_way(), 12);
        let chunk = view.share(Sharing::Chunks);
        let others: Vec<_> = (0..4).map(|_| view.share(Sharing::Loads)).collect();
        assert_eq!((one.on_its_way(), chunk.on_its_way()), (3, 12));
        let many: Vec<_> = (0..100).map(|_| view.share(Sharing::Loads)).collect();
        assert_eq!(one.on_its_way(), 1);
        drop((others, many));
        assert_eq!(one.on_its_way(), 12);
    }
}
