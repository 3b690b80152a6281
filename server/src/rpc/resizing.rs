//! The verb that gives the RAM tier another size.

use std::sync::Arc;
use std::time::Duration;

use forebay_proto::pb::resize_ram_response::Event;
use forebay_proto::{Failure, Reason, pb};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tonic::Status;

use super::{Context, Shared, client_gone};
use crate::error::stopping;
use crate::resize::{Resizing, Standing};

type Out = mpsc::Sender<Result<pb::ResizeRamResponse, Status>>;

/// One `ResizeRam`. Its deadline, or its client's end, ends the waiting and not the resize.
pub(super) async fn resize(
    shared: &Arc<Shared>,
    context: Context,
    asked: pb::ResizeRamRequest,
    out: &Out,
) -> Result<(), Failure> {
    if shared.draining.is_cancelled() {
        return Err(stopping("the daemon is stopping"));
    }
    let mut resizing = shared.resizer.resize(asked.bytes)?;
    let Ok(done) = context.deadline.cut(follow(&mut resizing, out)).await else {
        let standing = shared.resizer.standing();
        let waits_for = standing.waits_for();
        let message = format!(
            "the deadline passed while {waits_for}: the daemon goes on until it has {} bytes",
            standing.budget
        );
        return Err(Failure::new(Reason::Deadline, message));
    };
    let wall = Instant::now().saturating_duration_since(context.opened);
    send(out, Event::Report(report(done?, resizing.before, wall))).await
}

/// Tells how far it is until it is done.
async fn follow(resizing: &mut Resizing<'_>, out: &Out) -> Result<Standing, Failure> {
    loop {
        let (standing, done) = resizing.next().await?;
        if done {
            return Ok(standing);
        }
        send(out, Event::Progress(progress(standing))).await?;
    }
}

async fn send(out: &Out, event: Event) -> Result<(), Failure> {
    let message = pb::ResizeRamResponse { event: Some(event) };
    out.send(Ok(message)).await.map_err(|_closed| client_gone())
}

fn progress(standing: Standing) -> pb::ResizeRamProgress {
    pb::ResizeRamProgress {
        budget_bytes: standing.budget,
        held_bytes: standing.held,
        retiring_bytes: standing.retiring,
        busy_bytes: standing.busy,
        owed_bytes: standing.owed,
        clients: standing.unmapping.told,
        client_bytes: standing.unmapping.bytes,
    }
}

fn report(standing: Standing, before_bytes: u64, wall: Duration) -> pb::ResizeRamReport {
    pb::ResizeRamReport {
        budget_bytes: standing.budget,
        held_bytes: standing.held,
        before_bytes,
        untold_clients: standing.unmapping.untold,
        untold_bytes: standing.unmapping.untold_bytes,
        wall_seconds: wall.as_secs_f64(),
    }
}
