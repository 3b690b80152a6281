//! What the kernel knows of a TCP connection: `TCP_INFO`, read as far as this kernel fills it.
//!
//! The structure grows with the kernel, and the C library's copy of it may end early; so it is read
//! as bytes, and each field is had from its place in the kernel's ABI, if the answer is that long.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::Duration;

/// More than any kernel answers so far (280 bytes on Linux 6.18).
const INFO_BYTES: usize = 512;

/// Fields of `TCP_INFO`; those this kernel does not have are zero, but for those that are optional.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TcpInfo {
    /// Time since the last data came.
    pub last_data_received: Duration,
    /// Smoothed round-trip time of what this side sent.
    pub rtt: Duration,
    /// The shortest one; zero before there is one.
    pub min_rtt: Duration,
    /// Round-trip time as the receiving side estimates it; zero before it has.
    pub receive_rtt: Duration,
    /// Segments sent again by this side.
    pub retransmits: u32,
    /// Bytes received.
    pub bytes_received: u64,
    /// Segments with data received.
    pub data_segments_received: u32,
    /// Segments received out of order.
    pub out_of_order: u32,
    /// Bytes that the receive buffer is tuned for: with the round-trip time, they bound the rate.
    pub receive_space: u32,
    /// The window that is offered to the other side, in bytes; zero stops it. Since Linux 6.2.
    pub receive_window: Option<u32>,
}

/// Bytes that came and were not read yet: while there are some, the network is not what its reader
/// waits for.
///
/// # Errors
/// If the kernel does not tell, as of a descriptor that is no socket and no pipe.
pub fn unread_bytes(socket: BorrowedFd<'_>) -> io::Result<u64> {
    Ok(rustix::io::ioctl_fionread(socket)?)
}

/// Reads the state of a TCP socket.
///
/// # Errors
/// If it is none, or its kernel does not tell.
pub fn tcp_info(socket: BorrowedFd<'_>) -> io::Result<TcpInfo> {
    let mut info = [0_u8; INFO_BYTES];
    let mut length = libc::socklen_t::try_from(INFO_BYTES).unwrap_or(libc::socklen_t::MAX);
    // SAFETY: the descriptor is open for as long as it is borrowed; the kernel writes at most
    // `length` bytes to `info`, which is that long, and the length to `length`.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            info.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    let length = usize::try_from(length).unwrap_or(INFO_BYTES).min(INFO_BYTES);
    Ok(TcpInfo::parse(info.get(..length).unwrap_or_default()))
}

impl TcpInfo {
    /// Offsets are those of `struct tcp_info` in the kernel's `uapi/linux/tcp.h`.
    fn parse(info: &[u8]) -> Self {
        let present = |at: usize| {
            let bytes = info.get(at..at + 4).and_then(|bytes| bytes.try_into().ok());
            bytes.map(u32::from_ne_bytes)
        };
        let small = |at: usize| present(at).unwrap_or_default();
        let large = |at: usize| {
            let bytes = info.get(at..at + 8).and_then(|bytes| bytes.try_into().ok());
            bytes.map_or(0, u64::from_ne_bytes)
        };
        let micros = |at| Duration::from_micros(small(at).into());
        // The kernel says "none yet" with all bits.
        let min_rtt = Some(small(148)).filter(|micros| *micros != u32::MAX).unwrap_or_default();
        Self {
            last_data_received: Duration::from_millis(small(52).into()),
            rtt: micros(68),
            min_rtt: Duration::from_micros(min_rtt.into()),
            receive_rtt: micros(92),
            retransmits: small(100),
            bytes_received: large(128),
            data_segments_received: small(152),
            out_of_order: small(224),
            receive_space: small(96),
            receive_window: present(232),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn the_kernel_counts_what_came() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut server, _) = listener.accept().unwrap();
        let before = tcp_info(client.as_fd()).unwrap();
        assert_eq!((before.bytes_received, before.data_segments_received), (0, 0));
        server.write_all(&[7; 10_000]).unwrap();
        // Peeking waits for all of them, and leaves them there.
        let waiting = rustix::net::RecvFlags::PEEK | rustix::net::RecvFlags::WAITALL;
        rustix::net::recv(&client, &mut [0_u8; 10_000][..], waiting).unwrap();
        assert_eq!(unread_bytes(client.as_fd()).unwrap(), 10_000);
        client.read_exact(&mut [0; 10_000]).unwrap();
        assert_eq!(unread_bytes(client.as_fd()).unwrap(), 0);
        let after = tcp_info(client.as_fd()).unwrap();
        assert_eq!(after.bytes_received, 10_000);
        assert!(after.data_segments_received > 0 && after.rtt > Duration::ZERO);
        assert_eq!(after.out_of_order, 0, "nothing is lost on the loopback");
        assert!(after.receive_space > 0 && after.receive_window.is_none_or(|bytes| bytes > 0));
    }

    #[test]
    fn what_is_no_socket_is_an_error_and_a_short_answer_is_zeros() {
        let file = std::fs::File::open("/dev/null").unwrap();
        tcp_info(file.as_fd()).unwrap_err();
        assert_eq!(TcpInfo::parse(&[0xff; 60]).bytes_received, 0);
        assert_eq!(TcpInfo::parse(&[]), TcpInfo::default());
        assert_eq!(TcpInfo::parse(&[0xff; 300]).min_rtt, Duration::ZERO);
        assert_eq!(TcpInfo::parse(&[1; 232]).receive_window, None, "Linux before 6.2");
        assert_eq!(TcpInfo::parse(&[1; 236]).receive_window, Some(0x0101_0101));
    }
}
