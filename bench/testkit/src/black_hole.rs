//! An address that swallows connections: no refusal, no answer, as behind a firewall that drops.
//!
//! A listener with the shortest possible queue that is filled and never accepted from: Linux then
//! ignores further SYNs, so a connect hangs until its own time limit.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::Duration;

use socket2::{Domain, Socket, Type};

/// More connections than the shortest queue holds.
const FILL_MAX: usize = 16;
/// A connect on the loopback that takes this long is not going to happen.
const HUNG: Duration = Duration::from_millis(50);

/// An address that no connect to comes back from, while this lives.
#[derive(Debug)]
pub struct BlackHole {
    address: SocketAddr,
    _listener: Socket,
    _queued: Vec<TcpStream>,
}

impl BlackHole {
    /// Opens one at a free port of 127.0.0.1.
    ///
    /// # Panics
    /// If no socket can be had.
    pub fn open() -> Self {
        Self::open_at(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).expect("a loopback socket")
    }

    /// Opens one at an address, as that of another loopback host with a given port.
    pub fn open_at(address: SocketAddr) -> io::Result<Self> {
        let listener = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
        listener.bind(&address.into())?;
        listener.listen(0)?;
        let address = listener.local_addr()?.as_socket().unwrap_or(address);
        let connects = (0..FILL_MAX).map(|_| TcpStream::connect_timeout(&address, HUNG));
        let queued = connects.map_while(Result::ok).collect();
        Ok(Self { address, _listener: listener, _queued: queued })
    }

    /// The address.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connect_neither_succeeds_nor_is_refused() {
        let hole = BlackHole::open();
        let error = TcpStream::connect_timeout(&hole.address(), HUNG).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }
}
