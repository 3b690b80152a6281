//! Exports what finished loads did, as spans of OpenTelemetry, to a collector over OTLP/gRPC.
//!
//! [`Exporter::finished`] makes the spans of a load from its timeline, after the load was answered,
//! and puts them into a bounded queue; where that is full they are dropped and counted. One task of
//! the daemon's tree owns the connection and sends what is queued in batches, each once: a collector
//! that fails or is slow costs spans and nothing else. At the end of the daemon the task sends what
//! is left, within [`LAST_BATCH_WITHIN`].
//!
//! Traces that their caller does not record are not exported.

mod spans;

use std::time::Duration;

use forebay_proto::Failure;
use forebay_proto::otlp::trace_service_client::TraceServiceClient;
use forebay_proto::otlp::{
    ExportTraceServiceRequest, InstrumentationScope, Resource, ResourceSpans, ScopeSpans, Span,
};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Endpoint};

use crate::metrics;
use crate::timeline::Timeline;
use crate::trace::RequestTrace;
use spans::{Clock, Load};

/// Loads whose spans wait: with the bounds on the spans of one, some 20 MB.
const QUEUED_LOADS: usize = 32;

/// Spans of one message, but for those of the last load in it. Collectors take 4 MiB if nobody says
/// otherwise, and the largest span here has some 1.5 KB.
const BATCH_SPANS: usize = 1024;

/// How long a batch is held open for further loads.
const LINGER: Duration = Duration::from_millis(200);

/// How long a collector may take for a connection, and for a message.
const CONNECT_WITHIN: Duration = Duration::from_secs(2);
const ANSWER_WITHIN: Duration = Duration::from_secs(10);

/// The same once the daemon ends.
const LAST_BATCH_WITHIN: Duration = Duration::from_millis(500);

/// The end of the daemon's loads that leads to the collector.
#[derive(Debug)]
pub(crate) struct Exporter {
    queue: mpsc::Sender<Vec<Span>>,
}

impl Exporter {
    /// Starts the task that sends. It connects when there is something to send.
    pub(crate) fn start(
        endpoint: &str,
        tasks: &mut JoinSet<()>,
        closing: &CancellationToken,
    ) -> Result<Self, String> {
        let channel = Endpoint::from_shared(endpoint.to_owned())
            .map_err(|error| format!("otlp_endpoint: {error}"))?
            .connect_timeout(CONNECT_WITHIN)
            .connect_lazy();
        let (queue, queued) = mpsc::channel(QUEUED_LOADS);
        let sender = Sender {
            client: TraceServiceClient::new(channel),
            endpoint: endpoint.to_owned(),
            closing: closing.clone(),
            fails: false,
        };
        tasks.spawn(sender.run(queued));
        Ok(Self { queue })
    }

    /// A load is over, in failure or not.
    pub(crate) fn finished(
        &self,
        trace: &RequestTrace,
        timeline: &Timeline,
        failed: Option<&Failure>,
    ) {
        if !trace.context().sampled {
            return;
        }
        let now = Instant::now();
        let load = Load {
            context: trace.context(),
            facts: trace.facts(),
            failed,
            opened: timeline.opened().into(),
            end: now.into(),
            clock: Clock::at(now),
        };
        let spans = timeline.spans(|steps, chunks| load.spans(steps, chunks));
        let count = spans.len();
        if self.queue.try_send(spans).is_err() {
            counted("queue_full", count);
        }
    }
}

/// The task that sends.
struct Sender {
    client: TraceServiceClient<Channel>,
    endpoint: String,
    closing: CancellationToken,
    /// The last batch could not be sent.
    fails: bool,
}

impl Sender {
    async fn run(mut self, mut queued: mpsc::Receiver<Vec<Span>>) {
        let closing = self.closing.clone();
        loop {
            let first = tokio::select! {
                biased;
                () = closing.cancelled() => break,
                first = queued.recv() => first,
            };
            let Some(mut batch) = first else { return };
            tokio::select! {
                // Full, or as full as it gets.
                _ = timeout(LINGER, gather(&mut batch, &mut queued)) => {}
                () = closing.cancelled() => {}
            }
            self.send(batch).await;
        }
        queued.close();
        while let Some(mut batch) = queued.recv().await {
            gather(&mut batch, &mut queued).await;
            self.send(batch).await;
        }
    }

    /// Sends a batch, and counts what became of it.
    async fn send(&mut self, batch: Vec<Span>) {
        let count = batch.len();
        let closing = self.closing.clone();
        let hurry = async {
            closing.cancelled().await;
            sleep(LAST_BATCH_WITHIN).await;
        };
        let answer = tokio::select! {
            answer = timeout(ANSWER_WITHIN, self.client.export(message(batch))) => answer.ok(),
            () = hurry => None,
        };
        let problem = match answer {
            Some(Ok(answer)) => {
                let partial = answer.into_inner().partial_success.unwrap_or_default();
                let rejected = usize::try_from(partial.rejected_spans).unwrap_or(0).min(count);
                counted("rejected", rejected);
                counted("exported", count - rejected);
                None
            }
            Some(Err(status)) => Some(format!("{:?}: {}", status.code(), status.message())),
            None => Some("it does not answer".to_owned()),
        };
        let fails = problem.is_some();
        match problem {
            Some(problem) => {
                counted("failed", count);
                if !self.fails {
                    let endpoint = &self.endpoint;
                    tracing::warn!(endpoint, problem, "spans are dropped: the collector fails");
                }
            }
            None if self.fails => {
                tracing::info!(endpoint = self.endpoint, "the collector takes spans again");
            }
            None => {}
        }
        self.fails = fails;
    }
}

/// Adds what is queued until the batch is large enough, or there will be no more.
async fn gather(batch: &mut Vec<Span>, queued: &mut mpsc::Receiver<Vec<Span>>) {
    while batch.len() < BATCH_SPANS {
        let Some(spans) = queued.recv().await else { return };
        batch.extend(spans);
    }
}

fn counted(result: &'static str, spans: usize) {
    metrics::spans(result, spans as u64);
}

fn message(spans: Vec<Span>) -> ExportTraceServiceRequest {
    let version = env!("CARGO_PKG_VERSION");
    let attributes = vec![
        spans::text("service.name", "forebayd"),
        spans::text("service.version", version),
        spans::number("process.pid", std::process::id().into()),
    ];
    let scope = InstrumentationScope { name: "forebay".into(), version: version.into() };
    ExportTraceServiceRequest {
        resource_spans: vec![ResourceSpans {
            resource: Some(Resource { attributes }),
            scope_spans: vec![ScopeSpans { scope: Some(scope), spans }],
        }],
    }
}
