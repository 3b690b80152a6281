//! What a client wants its objects to be: what cannot be compared is refused, and, strictly,
//! everything is compared before anything is handed over.
//!
//! A strict load brings in every object that is to be held to something, whole, and hands nothing
//! over. What has to make room again meanwhile comes anew afterwards, and is compared with what is
//! recorded of it then: so an object may be larger than the RAM tier.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use forebay_proto::{Failure, Reason};

use super::filler::Filler;
use super::{Head, LoadRequest, Stages, proofs};
use crate::admission::AdmissionPermit;
use crate::plan::{ChunkKey, FetchPlan, plan_whole};
use crate::report::Tier;
use crate::resolve::{Content, Object};
use crate::timeline::Timeline;

/// Refuses what cannot be: digests of objects that the checkpoint does not have, or that are not
/// loaded whole.
pub(super) fn check_expected(request: &LoadRequest, plan: &FetchPlan) -> Result<(), Failure> {
    let expected = &request.expected.sha256;
    let objects = plan.manifest().objects();
    let named = |object: &&Object| expected.contains_key(&object.name);
    let refused = |message: String| Failure::new(Reason::BadRequest, message).at_stage("plan");
    if !expected.is_empty() && !objects.iter().any(|object| named(&object)) {
        let some = expected.keys().next().map_or("", String::as_str);
        return Err(refused(format!(
            "none of the {} digests given is of an object of the checkpoint (one is of {some})",
            expected.len()
        )));
    }
    if request.expected.strict {
        return Ok(());
    }
    let planned = proofs::planned_bytes(plan);
    let part = |(index, object): &(usize, &Object)| {
        let planned = planned.get(index).copied().unwrap_or(0);
        named(object) && planned > 0 && planned < object.bytes
    };
    match objects.iter().enumerate().find(part) {
        Some((_, object)) => Err(refused(format!(
            "{} is loaded in part, so its SHA-256 cannot be compared: load it whole, or strictly",
            object.name
        ))),
        None => Ok(()),
    }
}

/// Brings every object in that is held to something, whole, and compares, before anything is handed
/// over. What has to make room again is compared with what is recorded of it now when it comes
/// anew.
pub(super) async fn prove(
    stages: &Arc<Stages>,
    request: &LoadRequest,
    timeline: &Timeline,
    (head, permit): (&Head<'_>, &AdmissionPermit),
) -> Result<BTreeMap<ChunkKey, Tier>, Failure> {
    let manifest = head.plan.manifest();
    let touched = proofs::touched(&head.plan);
    let due = proofs::due(stages, &head.plan, &request.expected);
    let mut due: BTreeSet<usize> = due.into_iter().map(|(index, _)| index).collect();
    // What is one stream proves itself at its end, by its own checksum.
    due.extend(touched.iter().copied().filter(|index| {
        let object = manifest.objects().get(*index);
        object.is_some_and(|object| matches!(object.content, Content::Stream(_)))
    }));
    let mut brought = BTreeMap::new();
    if due.is_empty() {
        return Ok(brought);
    }
    let unpinned = |index: &&usize| manifest.objects().get(**index).is_some_and(|o| !o.pinned);
    if let Some(object) = due.iter().find(unpinned).and_then(|at| manifest.objects().get(*at)) {
        let message = format!(
            "{} cannot be held to its digest before it is handed over: its origin gives no ETag, \
             version or time to know it again by",
            object.name
        );
        return Err(Failure::new(Reason::BadRequest, message).for_object(&object.name));
    }
    let (load, chunk_bytes) = (Arc::clone(&head.plan), stages.chunk_bytes);
    let planning = stages.cpu.run(move || plan_whole(&load, &touched, &due, chunk_bytes));
    let plan = Arc::new(planning.await?);
    let mut again = true;
    loop {
        let what = (&plan, head.entry);
        let mut filler = Filler::new(stages, what, permit, request, timeline);
        let proven = loop {
            let look_again = filler.quiet(stages.no_progress)?;
            let ready = tokio::select! {
                ready = filler.next() => ready,
                () = tokio::time::sleep_until(look_again) => continue,
            };
            match ready {
                Ok(Some(ready)) => {
                    brought.entry(ready.spec.key).or_insert(ready.tier);
                }
                Ok(None) => break Ok(()),
                Err(failure) => break Err(failure),
            }
        };
        match proven {
            // The way here may have done it.
            Err(failure) if again && failure.reason == Reason::DigestMismatch => again = false,
            Err(failure) => return Err(failure),
            Ok(()) => break,
        }
    }
    // Else what has to make room again could come back as anything.
    match proofs::due(stages, &plan, &request.expected).is_empty() {
        true => Ok(brought),
        false => {
            let message = "no more digests can be recorded, so nothing can be proven ahead";
            Err(Failure::new(Reason::LimitExceeded, message).with_quota(message.to_owned()))
        }
    }
}
