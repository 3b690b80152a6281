//! A slot for a chunk: claimed, and what that took put on record.

use forebay_io::NodeId;
use forebay_proto::Failure;

use super::Stages;
use crate::flight::FlightLog;
use crate::metrics::{Fallback, fell_back};
use crate::ram::ClaimCost;
use crate::ram::pool::ClaimedSlot;
use crate::timeline::{Kind, Stage};

/// A slot to fill; what it took is told.
pub(super) async fn claim(
    stages: &Stages,
    near: Option<NodeId>,
    log: &FlightLog,
) -> Result<ClaimedSlot, Failure> {
    log.at(Stage::LeaseAlloc, Kind::Service);
    let mut cost = ClaimCost::default();
    let slot = stages.ram.claim_at_cost(near, &mut cost).await?;
    if cost.evicted > 0 {
        log.decided("evict", format!("{} chunks of RAM made room", cost.evicted));
    }
    if cost.is_far {
        fell_back(Fallback::FarSlot);
        log.decided("fallback", format!("to a slot of {}: the node is full", slot.node()));
    }
    Ok(slot)
}
