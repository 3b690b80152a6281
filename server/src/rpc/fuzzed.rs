//! What the fuzz target `message` runs: whatever a caller may send, decoded and checked as the
//! methods do. The other side's messages are checked in `forebay_proto::fuzz`.

use forebay_proto::fuzz::{answer, decode, packet};
use forebay_proto::{AliasName, Placement, RollbackRule, Shard, model, pb};

use super::convert;
use crate::admission::Lane;
use crate::load::conversation::ClientEvent;

/// Any message: the first byte says which one it is.
pub(crate) fn message(bytes: &[u8]) {
    let Some((kind, bytes)) = bytes.split_first() else { return };
    match kind % 12 {
        0 => decode(bytes).into_iter().for_each(load),
        1 => decode(bytes).into_iter().for_each(prefetch),
        2 => decode(bytes).into_iter().for_each(set_alias),
        3 => packet(bytes),
        other => answer(other - 4, bytes),
    }
}

fn prefetch(asked: pb::PrefetchRequest) {
    drop((convert::load_id(asked.load_id), Placement::receive(asked.placement)));
}

fn load(request: pb::LoadRequest) {
    use pb::load_request::Event;
    match request.event {
        None => {}
        Some(Event::Open(open)) => opened(open),
        Some(said) => {
            if let Ok(ClientEvent::Copies(copies, _)) = convert::client_event(said) {
                assert!(copies.iter().all(|copy| copy.start <= copy.end), "a copy of before");
            }
        }
    }
}

fn opened(open: pb::LoadOpen) {
    if let Ok(id) = convert::load_id(open.load_id) {
        assert!(model::is_load_id(&id), "{id:?} is no id");
    }
    drop(convert::lane(open.lane, Lane::Interactive));
    drop((convert::globs(open.tensors), convert::globs(open.objects)));
    drop((convert::device(open.device), convert::expected(open.verify, open.sha256)));
    drop(Placement::receive(open.placement));
    if let Ok(Some(shard)) = convert::shard(open.shard) {
        assert!(Shard::receive(shard.to_wire()).is_ok_and(|again| again == shard), "{shard:?}");
    }
}

fn set_alias(asked: pb::SetAliasRequest) {
    drop(AliasName::parse(&asked.name));
    let rule = asked.rule.as_ref().map(RollbackRule::receive);
    if let Some(Ok(rule)) = rule {
        let again = RollbackRule::receive(&rule.to_wire());
        assert!(again.as_ref() == Ok(&rule), "{rule:?} becomes {again:?}");
    }
}
