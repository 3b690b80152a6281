//! The packets of `handoff.sock`: one encoded `HandoffMessage` each.

use prost::Message;

use crate::pb;

/// A packet, at most.
pub const PACKET_BYTES_MAX: usize = 4096;

/// Leases, or segments, that one packet names, at most: an id takes ten bytes at most.
pub const IDS_PER_PACKET: usize = 256;

/// The file name of the descriptor socket, beside the gRPC socket.
pub const SOCKET_NAME: &str = "handoff.sock";

/// A packet that is no message.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a handoff packet cannot be decoded: {0}")]
pub struct BadPacket(String);

/// Encodes one packet.
#[must_use]
pub fn encode(event: pb::handoff_message::Event) -> Vec<u8> {
    pb::HandoffMessage { event: Some(event) }.encode_to_vec()
}

/// Decodes one packet.
pub fn decode(packet: &[u8]) -> Result<pb::handoff_message::Event, BadPacket> {
    let message =
        pb::HandoffMessage::decode(packet).map_err(|error| BadPacket(error.to_string()))?;
    message.event.ok_or_else(|| BadPacket("it holds nothing".into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_packet_fits() {
        let ids = vec![u64::MAX; IDS_PER_PACKET];
        for event in [
            pb::handoff_message::Event::Release(pb::Release { lease_ids: ids.clone() }),
            pb::handoff_message::Event::Retire(pb::Retire { segment_ids: ids.clone() }),
            pb::handoff_message::Event::Retired(pb::Retired { segment_ids: ids.clone() }),
        ] {
            let packet = encode(event.clone());
            assert!(packet.len() <= PACKET_BYTES_MAX);
            assert_eq!(decode(&packet), Ok(event));
        }
    }

    #[test]
    fn a_hello_of_before_retirement_says_that_it_cannot() {
        // Field 1 of the message, field 1 of the hello: three bytes of a token.
        let decoded = decode(&[0x0a, 5, 0x0a, 3, 1, 2, 3]).unwrap();
        let session = vec![1, 2, 3].into();
        let hello = pb::Hello { session, retires: false };
        assert_eq!(decoded, pb::handoff_message::Event::Hello(hello));
    }

    #[test]
    fn garbage_is_refused() {
        decode(&[]).unwrap_err();
        decode(&[0xff; 64]).unwrap_err();
    }
}
