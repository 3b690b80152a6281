//! The packets of `handoff.sock`: one encoded `HandoffMessage` each.

use prost::Message;

use crate::pb;

/// A packet, at most.
pub const PACKET_BYTES_MAX: usize = 4096;

/// Leases that one release packet names, at most: an id takes ten bytes at most.
pub const RELEASES_PER_PACKET: usize = 256;

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
    fn a_full_release_fits_a_packet() {
        let lease_ids = vec![u64::MAX; RELEASES_PER_PACKET];
        let event = pb::handoff_message::Event::Release(pb::Release { lease_ids });
        let packet = encode(event.clone());
        assert!(packet.len() <= PACKET_BYTES_MAX);
        assert_eq!(decode(&packet), Ok(event));
    }

    #[test]
    fn garbage_is_refused() {
        decode(&[]).unwrap_err();
        decode(&[0xff; 64]).unwrap_err();
    }
}
