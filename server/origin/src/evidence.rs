//! What the kernel knows of a connection, as a seam: reading it takes a call that this crate, which
//! has no unsafe code, cannot make.
//!
//! A downloader's kernel does not see what the sender sent again; a loss on the way here shows as
//! segments that came out of order. `retransmits` are those of this side: of requests.

use std::fmt::Debug;
use std::os::fd::BorrowedFd;
use std::time::Duration;

use tokio::time::Instant;

/// The state of a TCP connection: fields of Linux's `TCP_INFO` that tell a slow origin from a bad
/// path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TcpSnapshot {
    /// Smoothed round-trip time of what this side sent.
    pub rtt: Duration,
    /// The shortest one.
    pub min_rtt: Duration,
    /// Round-trip time as the receiving side estimates it; zero before it has.
    pub receive_rtt: Duration,
    /// Time since the last data came.
    pub silent: Duration,
    /// Bytes received since it was opened.
    pub bytes_received: u64,
    /// Segments with data received since then.
    pub segments_received: u64,
    /// Segments received out of order since then.
    pub out_of_order: u64,
    /// Segments sent again by this side since then.
    pub retransmits: u64,
    /// Bytes that came and were not read yet.
    pub unread: u64,
    /// Bytes that the receive buffer is tuned for.
    pub receive_space: u64,
    /// Bytes that the sender may still send; none where the kernel does not tell.
    pub receive_window: Option<u64>,
}

/// What happened on a connection during an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TcpDelta {
    /// Smoothed round-trip time at its end.
    pub rtt: Duration,
    /// The shortest one of the connection.
    pub min_rtt: Duration,
    /// Round-trip time as the receiving side estimates it.
    pub receive_rtt: Duration,
    /// Time since the last data came, at its end.
    pub silent: Duration,
    /// Bytes received, heads and encryption included.
    pub bytes_received: u64,
    /// Segments with data received.
    pub segments_received: u64,
    /// Segments received out of order: sign of a loss on the way here.
    pub out_of_order: u64,
    /// Segments sent again by this side.
    pub retransmits: u64,
    /// Bytes that had come and were not read at its end: if there are some, it is not the network
    /// that is slow.
    pub unread: u64,
    /// Bytes that the receive buffer was tuned for at its end: with the receive round-trip time,
    /// they bound the rate.
    pub receive_space: u64,
    /// Bytes that the sender might still send at its end: zero means that we had stopped it. None
    /// where the kernel does not tell.
    pub receive_window: Option<u64>,
}

/// A stretch of a body in which nothing came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Silence {
    /// When the wait for the next byte began.
    pub start: Instant,
    /// How long it was.
    pub length: Duration,
    /// How long the byte that ended it lay in the socket before this side took it: time that was
    /// not the network's. Known to a millisecond.
    pub late: Duration,
    /// Segments that came out of order since the silence before it: a loss on the way here.
    pub out_of_order: u64,
    /// Round-trip time as the receiving side estimates it then; zero where that is not known.
    pub receive_rtt: Duration,
}

impl TcpSnapshot {
    /// What happened since `before`.
    #[must_use]
    pub fn since(&self, before: &Self) -> TcpDelta {
        TcpDelta {
            rtt: self.rtt,
            min_rtt: self.min_rtt,
            receive_rtt: self.receive_rtt,
            silent: self.silent,
            bytes_received: self.bytes_received.saturating_sub(before.bytes_received),
            segments_received: self.segments_received.saturating_sub(before.segments_received),
            out_of_order: self.out_of_order.saturating_sub(before.out_of_order),
            retransmits: self.retransmits.saturating_sub(before.retransmits),
            unread: self.unread,
            receive_space: self.receive_space,
            receive_window: self.receive_window,
        }
    }
}

/// Reads the state of sockets.
pub trait SocketEvidence: Send + Sync + Debug {
    /// The state of a TCP socket; none where the kernel does not tell.
    fn tcp(&self, socket: BorrowedFd<'_>) -> Option<TcpSnapshot>;
}

/// Knows nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoEvidence;

impl SocketEvidence for NoEvidence {
    fn tcp(&self, _socket: BorrowedFd<'_>) -> Option<TcpSnapshot> {
        None
    }
}
