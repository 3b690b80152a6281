//! Descriptors over a SOCK_SEQPACKET socket: one packet carries a payload and at most one of them.
//!
//! Both calls are single system calls that neither wait nor retry on their own: on a non-blocking
//! socket `WouldBlock` comes through, so they fit an `AsyncFd` as well as a blocking thread. A
//! received packet is whole or an error: what a peer sends beyond the agreement (a longer packet,
//! a second descriptor) is closed and refused.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};

/// Sends one packet. An empty payload is refused: the peer could not tell it from the end.
pub fn send_descriptor(
    socket: BorrowedFd<'_>,
    payload: &[u8],
    descriptor: Option<BorrowedFd<'_>>,
) -> io::Result<()> {
    if payload.is_empty() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "a packet needs a payload"));
    }
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let descriptors = descriptor.as_slice();
    if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(io::Error::other("no room for one descriptor"));
    }
    let sent = rustix::io::retry_on_intr(|| {
        rustix::net::sendmsg(socket, &[IoSlice::new(payload)], &mut control, SendFlags::NOSIGNAL)
    })?;
    if sent == payload.len() {
        Ok(())
    } else {
        Err(io::Error::new(io::ErrorKind::WriteZero, "the packet was cut: use SOCK_SEQPACKET"))
    }
}

/// Receives one packet into `buffer`: how long it is, and the descriptor that came with it, which
/// is closed on exec. Length 0 means that the peer is gone.
pub fn recv_descriptor(
    socket: BorrowedFd<'_>,
    buffer: &mut [u8],
) -> io::Result<(usize, Option<OwnedFd>)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = rustix::io::retry_on_intr(|| {
        let mut payload = [IoSliceMut::new(buffer)];
        rustix::net::recvmsg(socket, &mut payload, &mut control, RecvFlags::CMSG_CLOEXEC)
    })?;
    // Everything that came is owned from here on, so that leaving closes it.
    let mut descriptors: Vec<OwnedFd> = control
        .drain()
        .filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
            _ => None,
        })
        .flatten()
        .collect();
    if received.flags.contains(ReturnFlags::TRUNC) {
        return Err(refused("the packet is longer than agreed"));
    }
    if received.flags.contains(ReturnFlags::CTRUNC) || descriptors.len() > 1 {
        return Err(refused(
            "the packet's descriptors were cut: it carries more than one, or this process is at \
             its limit of open files (raise LimitNOFILE)",
        ));
    }
    Ok((received.bytes, descriptors.pop()))
}

fn refused(why: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}
