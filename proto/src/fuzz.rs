//! What the fuzz target `message` of the server runs of this crate: packets of the descriptor socket,
//! and whatever a daemon may answer, decoded and checked as the client does.

use prost::Message;

use crate::model::{self, Grant, ManifestBuilder};
use crate::{handoff, pb};

/// A message, if these bytes are one.
#[must_use]
pub fn decode<M: Message + Default>(bytes: &[u8]) -> Option<M> {
    M::decode(bytes).ok()
}

/// An answer of a daemon; `kind` says which one.
pub fn answer(kind: u8, bytes: &[u8]) {
    match kind % 8 {
        0 => decoded(bytes, |page: pb::ManifestPage| drop(manifest(page))),
        1 => granted(bytes),
        2 => decoded(bytes, |opened| drop(model::Opened::receive(opened))),
        3 => decoded(bytes, |report| drop(model::Report::receive(report))),
        4 => decoded(bytes, |status| drop(model::DaemonStatus::receive(status))),
        5 => decoded(bytes, |explained| drop(model::Explanation::receive(explained))),
        6 => decoded(bytes, |alias| drop(model::Alias::receive(alias))),
        _ => decoded(bytes, |span| drop(model::TraceSpan::receive(span))),
    }
}

fn decoded<M: Message + Default>(bytes: &[u8], check: impl FnOnce(M)) {
    if let Some(message) = decode(bytes) {
        check(message);
    }
}

/// A packet of the descriptor socket.
pub fn packet(bytes: &[u8]) {
    let Ok(event) = handoff::decode(bytes) else { return };
    let again = handoff::decode(&handoff::encode(event.clone()));
    assert!(again.as_ref() == Ok(&event), "{event:?} becomes {again:?}");
}

fn manifest(page: pb::ManifestPage) -> Option<model::Manifest> {
    let (objects, tensors) = (page.objects.len() as u64, page.tensors.len() as u64);
    let mut builder: ManifestBuilder = model::Manifest::builder(objects, tensors);
    let whole = builder.push(pb::ManifestPage { last: true, ..page });
    whole.ok().filter(|whole| *whole)?;
    let manifest = builder.finish().ok()?;
    for tensor in manifest.tensors() {
        let object = manifest.object(tensor.object).map_or(0, |object| object.bytes);
        let range = &tensor.range;
        assert!(range.start <= range.end && range.end <= object, "{tensor:?} in {object}");
    }
    Some(manifest)
}

/// A manifest and a grant of it, behind the length of the manifest.
fn granted(bytes: &[u8]) {
    const CHUNK: usize = 1 << 16;
    let Some((length, bytes)) = bytes.split_first_chunk() else { return };
    let Some((first, rest)) = bytes.split_at_checked(usize::from(u16::from_le_bytes(*length)))
    else {
        return;
    };
    let page = pb::ManifestPage::decode(first).ok().and_then(manifest);
    let (Some(manifest), Ok(grant)) = (page, pb::Grant::decode(rest)) else { return };
    let Ok(grant) = Grant::receive(grant, &manifest, CHUNK) else { return };
    assert!(grant.slot_len() <= CHUNK && grant.bytes() <= CHUNK as u64, "{grant:?}");
    for extent in &grant.extents {
        let object = manifest.object(extent.object).map_or(0, |object| object.bytes);
        let length = extent.object_range.end.checked_sub(extent.object_range.start);
        assert!(extent.object_range.end <= object, "{extent:?}");
        assert!(length == Some(extent.slot_range.len() as u64), "{extent:?}");
    }
}
