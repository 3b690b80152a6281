//! The verb that writes a checkpoint anew.

use std::sync::Arc;

use forebay_proto::{Failure, pb};
use tokio::sync::mpsc;
use tonic::Status;

use super::{Context, Shared, client_gone};
use crate::pack::{self, PackProgress, PackReport, PackRequest};

/// One `Pack`.
pub(super) async fn pack(
    shared: &Arc<Shared>,
    context: Context,
    asked: pb::PackRequest,
    out: &mpsc::Sender<Result<pb::PackResponse, Status>>,
) -> Result<(), Failure> {
    use pb::pack_response::Event;
    let pb::PackRequest { source, destination, frame_bytes, level } = asked;
    for uri in [&source, &destination] {
        shared.loadable(uri)?;
    }
    let (uid, deadline) = (context.peer.uid, context.deadline);
    let request = PackRequest { source, destination, frame_bytes, level, uid, deadline };
    let (steps, mut heard) = mpsc::channel::<PackProgress>(1);
    let send = |event: Event| async {
        let message = pb::PackResponse { event: Some(event) };
        out.send(Ok(message)).await.map_err(|_closed| client_gone())
    };
    let telling = async {
        while let Some(step) = heard.recv().await {
            send(Event::Progress(progress(&step))).await?;
        }
        Ok::<(), Failure>(())
    };
    let packing = Box::pin(pack::pack(&shared.packer, &shared.stages, &request, steps));
    let (packed, told) = tokio::join!(packing, telling);
    told?;
    let report = packed?;
    ended(&report);
    send(Event::Report(convert(report))).await
}

fn progress(step: &PackProgress) -> pb::PackProgress {
    pb::PackProgress {
        source: step.source.to_string(),
        destination: step.destination.to_string(),
        done_bytes: step.done_bytes,
        total_bytes: step.total_bytes,
    }
}

fn convert(report: PackReport) -> pb::PackReport {
    pb::PackReport {
        written_objects: report.objects.saturating_sub(report.skipped_objects),
        written_bytes: report.bytes.saturating_sub(report.skipped_bytes),
        source: report.source,
        destination: report.destination,
        objects: report.objects,
        bytes: report.bytes,
        packed_bytes: report.packed_bytes,
        manifest_bytes: report.manifest_bytes,
        skipped_objects: report.skipped_objects,
        skipped_bytes: report.skipped_bytes,
        raw_objects: report.raw_objects,
        removed_objects: report.removed_objects,
        wall_seconds: report.wall.as_secs_f64(),
    }
}

fn ended(report: &PackReport) {
    tracing::info!(
        source = report.source,
        destination = report.destination,
        objects = report.objects,
        skipped = report.skipped_objects,
        bytes = report.bytes,
        packed_bytes = report.packed_bytes,
        wall_seconds = report.wall.as_secs_f64(),
        "pack done"
    );
}
