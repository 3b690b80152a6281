//! Evidence about sockets for the origin client, which has no unsafe code to read it with.

use std::os::fd::BorrowedFd;

use forebay_origin::{SocketEvidence, TcpSnapshot};

/// Asks the kernel.
#[derive(Debug, Clone, Copy)]
pub(crate) struct KernelEvidence;

impl SocketEvidence for KernelEvidence {
    fn tcp(&self, socket: BorrowedFd<'_>) -> Option<TcpSnapshot> {
        let info = forebay_io::tcp_info(socket).ok()?;
        Some(TcpSnapshot {
            rtt: info.rtt,
            min_rtt: info.min_rtt,
            receive_rtt: info.receive_rtt,
            silent: info.last_data_received,
            bytes_received: info.bytes_received,
            segments_received: info.data_segments_received.into(),
            out_of_order: info.out_of_order.into(),
            retransmits: info.retransmits.into(),
        })
    }
}
