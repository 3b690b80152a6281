//! Setting a name, read aloud: store what it is to stand for, read that again, switch.
//!
//! Until the switch nothing of the name has changed, and what is fetched is pinned only for as long as
//! this runs. Bytes that are in the NVMe tier already are not fetched; they are read again like the
//! others. Extents that turn out to be bad are fetched once more.

use std::sync::Arc;

use forebay_proto::{Failure, Reason, RollbackRule};
use tokio::sync::mpsc;

use super::{Setting, View, wall_clock};
use crate::handoff::Sessions;
use crate::load::{Keep, LoadRequest, Progress, Stages, keep};
use crate::nvme::{Checked, NvmeTier};
use crate::report::{Report, TierBytes};
use crate::resolve::Manifest;
use crate::timeline::Timeline;

/// How often what was stored is read again and may be bad before that is an error.
const CHECKS: u32 = 2;

/// How far it is.
#[derive(Debug, Clone)]
pub(crate) struct Step {
    /// `store` or `check`.
    pub(crate) name: &'static str,
    /// What is set.
    pub(crate) manifest: Arc<Manifest>,
    /// Of the step.
    pub(crate) done_bytes: u64,
}

/// What came of it.
#[derive(Debug)]
pub(crate) struct Done {
    /// The name now.
    pub(crate) view: View,
    /// Whether it stood for something else.
    pub(crate) switched: bool,
    /// Where the bytes came from.
    pub(crate) tiers: TierBytes,
    /// Fetched for it.
    pub(crate) origin_bytes: u64,
    /// Read again.
    pub(crate) checked_bytes: u64,
}

/// What a name is set with.
pub(crate) struct Work<'a> {
    /// The name, which nobody else sets meanwhile.
    pub(crate) setting: &'a Setting,
    /// The stages.
    pub(crate) stages: &'a Arc<Stages>,
    /// Places among the running loads.
    pub(crate) sessions: &'a Arc<Sessions>,
    /// How it is stored, as a prefetch.
    pub(crate) request: &'a LoadRequest,
    /// Where that writes down what it does.
    pub(crate) timeline: &'a Arc<Timeline>,
    /// Hears how far it is. A courtesy: who is behind misses steps.
    pub(crate) tell: mpsc::Sender<Step>,
}

/// Sets a name to a revision.
pub(crate) async fn set(
    work: Work<'_>,
    manifest: &Arc<Manifest>,
    rule: Option<RollbackRule>,
) -> Result<Done, Failure> {
    let (aliases, deadline) = (&work.setting.aliases, work.request.deadline);
    aliases.table().check_room(&work.setting.name, manifest)?;
    let off = || Failure::new(Reason::NvmeOff, "this daemon has no NVMe tier");
    let nvme = work.stages.nvme.as_ref().ok_or_else(off)?;
    // Nothing of it is evicted until the name keeps it.
    let _pin = nvme.pin_revision(manifest.revision());
    let first = work.store().await?;
    let mut origin_bytes = first.tally.cost.bytes;
    let mut checks = 1;
    let checked_bytes = loop {
        let checking = work.check(nvme, manifest);
        let checked = deadline.cut(checking).await.map_err(|_expired| late())?;
        match verdict(manifest, checked) {
            Ok(bytes) => break bytes,
            Err(failure) if checks >= CHECKS => return Err(failure),
            Err(failure) => tracing::warn!(%failure, "it is stored anew"),
        }
        checks += 1;
        origin_bytes += work.store().await?.tally.cost.bytes;
    };
    let switching = aliases.switch(work.setting, Arc::clone(manifest), rule, wall_clock());
    let (view, switched) = deadline.cut(switching).await.map_err(|_expired| late())??;
    Ok(Done { view, switched, tiers: first.tally.tiers, origin_bytes, checked_bytes })
}

impl Work<'_> {
    /// Has everything in the NVMe tier.
    async fn store(&self) -> Result<Report, Failure> {
        let stay = self.sessions.enter(&[], self.request.peer)?;
        let (steps, mut heard) = mpsc::channel::<Progress>(1);
        let wanted = Keep { on_nvme: true, pin: false };
        let keeping = keep(self.stages, self.request, wanted, self.timeline, stay, steps);
        let keeping = Box::pin(keeping);
        let telling = async {
            while let Some(Progress { manifest, done_bytes, .. }) = heard.recv().await {
                drop(self.tell.try_send(Step { name: "store", manifest, done_bytes }));
            }
        };
        tokio::join!(keeping, telling).0
    }

    /// Reads it again.
    async fn check(&self, nvme: &Arc<NvmeTier>, manifest: &Arc<Manifest>) -> Checked {
        let tell = |done_bytes| {
            let manifest = Arc::clone(manifest);
            drop(self.tell.try_send(Step { name: "check", manifest, done_bytes }));
        };
        nvme.check_revision(manifest.revision(), tell).await
    }
}

/// Whether all of it is there and right.
fn verdict(manifest: &Manifest, checked: Checked) -> Result<u64, Failure> {
    let Checked { right, bad, unreadable } = checked;
    if bad > 0 {
        let message = format!("{bad} bytes of what was stored are wrong when they are read again");
        return Err(Failure::new(Reason::DigestMismatch, message).at_stage("nvme_read"));
    }
    if unreadable > 0 || right < manifest.bytes() {
        let missing = manifest.bytes().saturating_sub(right);
        let message = format!("{missing} bytes of what was stored cannot be read again");
        return Err(Failure::new(Reason::NvmeOff, message).at_stage("nvme_read"));
    }
    Ok(right)
}

fn late() -> Failure {
    let message = "the deadline passed before the alias was known to be switched: `forebay alias \
                   ls` says what it stands for";
    Failure::new(Reason::Deadline, message)
}
