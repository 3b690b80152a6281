//! Descriptors over real socket pairs. That a descriptor was closed is seen from a pipe: its
//! reader gets the end when the last writer is gone.

use std::io::{self, ErrorKind, PipeReader, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use forebay_shm::{SegmentMap, recv_descriptor, send_descriptor};
use rustix::io::FdFlags;
use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
};

use crate::{SLOT_BYTES, filled, segment};

fn sockets() -> (OwnedFd, OwnedFd) {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)
        .expect("a socket pair")
}

/// Sends what `send_descriptor` never would: any number of descriptors.
fn send_many(socket: &OwnedFd, payload: &[u8], descriptors: &[BorrowedFd<'_>]) {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(64))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    assert!(control.push(SendAncillaryMessage::ScmRights(descriptors)));
    let payload = [io::IoSlice::new(payload)];
    rustix::net::sendmsg(socket, &payload, &mut control, SendFlags::NOSIGNAL).expect("sent");
}

fn is_closed(reader: &mut PipeReader) -> bool {
    rustix::io::ioctl_fionbio(&*reader, true).expect("non-blocking");
    matches!(reader.read(&mut [0]), Ok(0))
}

#[test]
fn a_segment_arrives_and_can_be_mapped() {
    let (daemon, client) = sockets();
    let segment = segment(8, 2);
    let reader = filled(&segment, 1, 0x77);
    send_descriptor(daemon.as_fd(), b"segment 8", Some(segment.descriptor())).expect("sent");
    drop(daemon);
    let mut buffer = [0; 64];
    let (len, descriptor) = recv_descriptor(client.as_fd(), &mut buffer).expect("received");
    assert_eq!(&buffer[..len], b"segment 8");
    let descriptor = descriptor.expect("a descriptor came");
    assert_eq!(rustix::io::fcntl_getfd(&descriptor), Ok(FdFlags::CLOEXEC));
    let map = SegmentMap::open(descriptor).expect("a segment");
    assert_eq!(map.id(), segment.id());
    let view = map.view(reader.slot(), reader.generation(), SLOT_BYTES).expect("granted");
    assert_eq!(view.bytes(), reader.bytes());
    let (len, descriptor) = recv_descriptor(client.as_fd(), &mut buffer).expect("the end");
    assert_eq!((len, descriptor.is_none()), (0, true), "the peer is gone");
}

#[test]
fn packets_keep_their_bounds_and_descriptors_their_packets() {
    let (sender, receiver) = sockets();
    let (mut pipe, writer) = io::pipe().expect("a pipe");
    send_descriptor(sender.as_fd(), b"one", None).expect("sent");
    send_descriptor(sender.as_fd(), b"second", Some(writer.as_fd())).expect("sent");
    send_descriptor(sender.as_fd(), &[9; 64], None).expect("sent");
    drop(writer);
    let mut buffer = [0; 64];
    let mut next = || recv_descriptor(receiver.as_fd(), &mut buffer).expect("received");
    assert!(matches!(next(), (3, None)));
    let (len, descriptor) = next();
    assert_eq!(len, 6);
    assert!(!is_closed(&mut pipe), "the descriptor is alive");
    drop(descriptor.expect("it came with its packet"));
    assert!(is_closed(&mut pipe), "and was the only one");
    assert!(matches!(next(), (64, None)), "a packet that just fits");
}

#[test]
fn more_than_one_descriptor_is_refused_and_all_are_closed() {
    for count in [2, 3, 64] {
        let (sender, receiver) = sockets();
        let mut pipes = Vec::new();
        let mut writers = Vec::new();
        for _ in 0..count {
            let (reader, writer) = io::pipe().expect("a pipe");
            pipes.push(reader);
            writers.push(writer);
        }
        let borrowed: Vec<BorrowedFd<'_>> = writers.iter().map(AsFd::as_fd).collect();
        send_many(&sender, b"too many", &borrowed);
        drop(borrowed);
        drop(writers);
        let error = recv_descriptor(receiver.as_fd(), &mut [0; 64]).expect_err("too many");
        assert_eq!(error.kind(), ErrorKind::InvalidData, "{error}");
        assert!(pipes.iter_mut().all(is_closed), "of {count} descriptors one was kept");
    }
}

#[test]
fn a_packet_longer_than_agreed_is_refused_with_its_descriptor() {
    let (sender, receiver) = sockets();
    let (mut pipe, writer) = io::pipe().expect("a pipe");
    send_descriptor(sender.as_fd(), &[1; 65], Some(writer.as_fd())).expect("sent");
    send_descriptor(sender.as_fd(), b"next", None).expect("sent");
    drop(writer);
    let error = recv_descriptor(receiver.as_fd(), &mut [0; 64]).expect_err("too long");
    assert_eq!(error.kind(), ErrorKind::InvalidData, "{error}");
    assert!(is_closed(&mut pipe));
    let (len, _) = recv_descriptor(receiver.as_fd(), &mut [0; 64]).expect("the next packet");
    assert_eq!(len, 4, "the rest of the long packet is gone");
}

#[test]
fn what_cannot_be_done_at_once_says_so() {
    let (sender, receiver) = sockets();
    let nothing = recv_descriptor(receiver.as_fd(), &mut [0; 8]).expect_err("nothing there");
    assert_eq!(nothing.kind(), ErrorKind::WouldBlock);
    let empty = send_descriptor(sender.as_fd(), b"", None).expect_err("no payload");
    assert_eq!(empty.kind(), ErrorKind::InvalidInput);
    let full = loop {
        if let Err(error) = send_descriptor(sender.as_fd(), &[0; 4096], None) {
            break error;
        }
    };
    assert_eq!(full.kind(), ErrorKind::WouldBlock, "{full}");
    drop(receiver);
    let gone = send_descriptor(sender.as_fd(), b"x", None).expect_err("no peer");
    assert!(matches!(gone.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset), "{gone}");
}
