//! One accepted connection: its socket, and the side door by which a body ends it.
//!
//! hyper owns the socket through `Socket`; the response body holds the `Link` of the same
//! connection. Over it the body learns that all it gave has been written (hyper flushes whenever a
//! body has nothing more for now), asks how much the peer's kernel has yet to acknowledge, and
//! orders that the socket's end be a reset. Waiting for both before a cut is what makes "reset
//! after n bytes" deliver exactly n: a reset throws away what is still in the send queue.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll};

use futures::task::AtomicWaker;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use crate::pace::Pace;

/// What a connection's requests share.
#[derive(Debug)]
pub(crate) struct Link {
    local: SocketAddr,
    peer: SocketAddr,
    reset: AtomicBool,
    flushes: AtomicU64,
    flushed: AtomicWaker,
    /// The speed limit of this connection.
    pub(crate) pace: Pace,
}

impl Link {
    pub(crate) fn new(stream: &TcpStream, bytes_per_second: Option<u64>) -> io::Result<Arc<Self>> {
        Ok(Arc::new(Self {
            local: stream.local_addr()?,
            peer: stream.peer_addr()?,
            reset: AtomicBool::new(false),
            flushes: AtomicU64::new(0),
            flushed: AtomicWaker::new(),
            pace: Pace::new(bytes_per_second),
        }))
    }

    /// The socket's close will be a TCP reset.
    pub(crate) fn reset_on_close(&self) {
        self.reset.store(true, Ordering::Release);
    }

    pub(crate) fn flushes(&self) -> u64 {
        self.flushes.load(Ordering::Acquire)
    }

    pub(crate) fn wake_on_flush(&self, context: &Context<'_>) {
        self.flushed.register(context.waker());
    }

    /// Bytes written to the socket that the peer's kernel has not acknowledged, as the kernel's
    /// table of sockets tells it; 0 where there is no such table.
    pub(crate) fn unacknowledged(&self) -> u64 {
        let table = std::fs::read_to_string("/proc/self/net/tcp").unwrap_or_default();
        let (local, peer) = (table_name(self.local), table_name(self.peer));
        let row = table.lines().find_map(|line| {
            let mut fields = line.split_ascii_whitespace().skip(1);
            (fields.next() == Some(&*local) && fields.next() == Some(&*peer)).then_some(fields)
        });
        let queues = row.and_then(|mut fields| fields.nth(1));
        let sent = queues.and_then(|queues| queues.split(':').next());
        sent.and_then(|sent| u64::from_str_radix(sent, 16).ok()).unwrap_or(0)
    }
}

/// An IPv4 address as /proc/net/tcp writes it.
fn table_name(address: SocketAddr) -> String {
    match address {
        SocketAddr::V4(v4) => {
            format!("{:08X}:{:04X}", u32::from_le_bytes(v4.ip().octets()), v4.port())
        }
        SocketAddr::V6(v6) => v6.to_string(),
    }
}

/// The socket, as hyper sees it.
#[derive(Debug)]
pub(crate) struct Socket {
    stream: TcpStream,
    link: Arc<Link>,
}

impl Socket {
    pub(crate) fn new(stream: TcpStream, link: Arc<Link>) -> Self {
        Self { stream, link }
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        if self.link.reset.load(Ordering::Acquire) {
            // A socket that is already dead cannot be reset, and need not be.
            self.stream.set_zero_linger().ok();
        }
    }
}

impl AsyncRead for Socket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, into)
    }
}

impl AsyncWrite for Socket {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, pieces)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, _context: &mut Context<'_>) -> Poll<io::Result<()>> {
        // hyper comes here when its own buffer has been written out; the socket has none.
        self.link.flushes.fetch_add(1, Ordering::AcqRel);
        self.link.flushed.wake();
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
