//! What stands for [`otlp`](crate::otlp) in a build without that feature: an exporter that cannot be.

use forebay_proto::Failure;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::timeline::Timeline;
use crate::trace::RequestTrace;

/// There is none. Configuration refuses an endpoint.
#[derive(Debug)]
pub(crate) enum Exporter {}

impl Exporter {
    pub(crate) fn start(
        _endpoint: &str,
        _tasks: &mut JoinSet<()>,
        _closing: &CancellationToken,
    ) -> Result<Self, String> {
        Err("this build exports no spans".to_owned())
    }

    pub(crate) fn finished(&self, _: &RequestTrace, _: &Timeline, _: Option<&Failure>) {
        match *self {}
    }
}
