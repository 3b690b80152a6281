//! A plain HTTP origin that costs next to nothing: the kernel sends files that lie in memory.
//!
//! One blocking thread per connection reads request heads and answers with `sendfile`; there is no
//! runtime, no parser of all of HTTP, and no byte of a body in user space. So a measurement beside
//! it, on the same few cores, is of the client. It can be held to a first-byte time and to rates,
//! per connection and in all, close connections after so many requests, and stall answers by a
//! seed; for faults of the protocol there is [`HttpOrigin`](crate::HttpOrigin).
//!
//! ```text
//! RawOrigin ── owns ──► the accepting thread ── owns ──► a thread per connection (raw_serve.rs)
//!     └──────────────────── Shared: files, paces, stalls, counters ───────────┘
//! ```
//!
//! Dropping the origin ends it: the listener and every socket are shut down, waits are cut short,
//! and all threads are joined.

use std::io;
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{Builder, JoinHandle, park_timeout};
use std::time::Duration;

use tokio::time::Instant;

use crate::pace::Pace;
use crate::random::mix;
use crate::raw_files::RawFiles;
use crate::raw_serve::Connection;

/// Connections served at a time; more are closed at once.
const CONNECTIONS_MAX: usize = 1024;
/// How long to wait for descriptors when there are none left.
const ACCEPT_AGAIN: Duration = Duration::from_millis(10);

/// How a [`RawOrigin`] behaves.
#[derive(Clone, Debug)]
pub struct RawOptions {
    /// The address; port 0 takes a free one.
    pub listen: SocketAddr,
    /// Time between a request and its response.
    pub first_byte: Duration,
    /// The speed limit of each connection's bodies.
    pub bytes_per_second: Option<u64>,
    /// The speed limit of all bodies together.
    pub total_bytes_per_second: Option<u64>,
    /// Requests after which a connection is closed.
    pub requests_per_connection: Option<u64>,
}

impl Default for RawOptions {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            first_byte: Duration::ZERO,
            bytes_per_second: None,
            total_bytes_per_second: None,
            requests_per_connection: None,
        }
    }
}

/// Which GETs stall, by a draw that depends on the seed and the number of the GET alone. Half of
/// those stall before their head, half at a place within their body; then they go on.
#[derive(Clone, Copy, Debug)]
pub struct RawStalls {
    /// The seed of the draws.
    pub seed: u64,
    /// Of so many GETs, one stalls.
    pub one_in: u64,
    /// The shortest stall.
    pub shortest: Duration,
    /// The longest one.
    pub longest: Duration,
}

/// What one GET is to wait, and before which byte of its body; none is before the head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stall {
    pub(crate) before: Option<u64>,
    pub(crate) time: Duration,
}

/// What was asked of a [`RawOrigin`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RawCounts {
    /// Connections accepted.
    pub connections: u64,
    /// GETs.
    pub gets: u64,
    /// GETs that stalled.
    pub stalls: u64,
    /// Body bytes that the kernel took for sending.
    pub body_bytes: u64,
}

/// What an origin's handle and its threads share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) files: RawFiles,
    pub(crate) options: RawOptions,
    pub(crate) total: Pace,
    stalls: Mutex<Option<(RawStalls, u64)>>,
    stopped: AtomicBool,
    connections: AtomicU64,
    gets: AtomicU64,
    stalled: AtomicU64,
    body_bytes: AtomicU64,
}

/// A running origin; dropping it stops it.
#[derive(Debug)]
pub struct RawOrigin {
    address: SocketAddr,
    listener: Arc<TcpListener>,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl RawOrigin {
    /// Starts an origin of these files.
    ///
    /// # Errors
    /// If no socket or thread can be had.
    pub fn start(options: RawOptions, files: &RawFiles) -> io::Result<Self> {
        let listener = Arc::new(TcpListener::bind(options.listen)?);
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared {
            files: files.clone(),
            total: Pace::new(options.total_bytes_per_second),
            options,
            stalls: Mutex::default(),
            stopped: AtomicBool::new(false),
            connections: AtomicU64::new(0),
            gets: AtomicU64::new(0),
            stalled: AtomicU64::new(0),
            body_bytes: AtomicU64::new(0),
        });
        let (accepting, ground) = (Arc::clone(&listener), Arc::clone(&shared));
        let thread = Builder::new()
            .name("testkit-raw".to_owned())
            .spawn(move || accept(&accepting, &ground))?;
        Ok(Self { address, listener, shared, thread: Some(thread) })
    }

    /// `http://127.0.0.1:PORT`.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Stalls GETs from now on, counted anew; or stalls none any more.
    pub fn stall(&self, stalls: Option<RawStalls>) {
        *self.shared.stalls() = stalls.map(|stalls| (stalls, 0));
    }

    /// What was asked of it so far.
    pub fn counts(&self) -> RawCounts {
        let of = |counter: &AtomicU64| counter.load(Ordering::Acquire);
        let Shared { connections, gets, stalled, body_bytes, .. } = &*self.shared;
        RawCounts {
            connections: of(connections),
            gets: of(gets),
            stalls: of(stalled),
            body_bytes: of(body_bytes),
        }
    }
}

impl Drop for RawOrigin {
    fn drop(&mut self) {
        self.shared.stopped.store(true, Ordering::Release);
        // Ends the wait in `accept`; a listener that cannot be shut down has no one waiting in it.
        rustix::net::shutdown(&self.listener, rustix::net::Shutdown::Both).ok();
        self.thread.take().map(JoinHandle::join);
    }
}

impl Shared {
    fn stalls(&self) -> MutexGuard<'_, Option<(RawStalls, u64)>> {
        self.stalls.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts a GET of so many bytes; whether and where it stalls.
    pub(crate) fn got(&self, bytes: u64) -> Option<Stall> {
        self.gets.fetch_add(1, Ordering::AcqRel);
        let mut stalls = self.stalls();
        let (plan, number) = stalls.as_mut()?;
        *number += 1;
        let stall = plan.draw(*number, bytes);
        self.stalled.fetch_add(u64::from(stall.is_some()), Ordering::AcqRel);
        stall
    }

    pub(crate) fn sent(&self, bytes: u64) {
        self.body_bytes.fetch_add(bytes, Ordering::AcqRel);
    }

    /// Waits, on a thread of this origin.
    ///
    /// # Errors
    /// If the origin ends meanwhile.
    pub(crate) fn wait_until(&self, at: Instant) -> io::Result<()> {
        while !self.stopped.load(Ordering::Acquire) {
            let left = at.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            park_timeout(left);
        }
        Err(io::Error::other("the origin has ended"))
    }
}

impl RawStalls {
    /// The stall of the GET with this number, which asks for so many bytes.
    fn draw(&self, number: u64, bytes: u64) -> Option<Stall> {
        let drawn = mix(self.seed ^ mix(number));
        if !drawn.is_multiple_of(self.one_in.max(1)) {
            return None;
        }
        let place = mix(drawn);
        let before = (place & 1 == 1).then(|| (place >> 1) % bytes.max(1));
        let spread = self.longest.saturating_sub(self.shortest).as_millis();
        let spread = u64::try_from(spread).unwrap_or(u64::MAX);
        let more = Duration::from_millis(mix(place) % spread.saturating_add(1));
        Some(Stall { before, time: self.shortest + more })
    }
}

/// A connection's thread, and the socket by which it is ended.
struct Served {
    thread: JoinHandle<()>,
    stream: TcpStream,
}

fn accept(listener: &TcpListener, shared: &Arc<Shared>) {
    let mut open: Vec<Served> = Vec::new();
    while !shared.stopped.load(Ordering::Acquire) {
        match listener.accept() {
            Ok((stream, _)) => {
                shared.connections.fetch_add(1, Ordering::AcqRel);
                open.retain(|served| !served.thread.is_finished());
                // A connection that cannot be served is closed, as by a server that is too busy.
                let room = open.len() < CONNECTIONS_MAX;
                open.extend(room.then(|| serve(stream, shared).ok()).flatten());
            }
            Err(_) => park_timeout(ACCEPT_AGAIN),
        }
    }
    for served in open {
        // A socket that its peer has closed already needs no more.
        served.stream.shutdown(Shutdown::Both).ok();
        served.thread.thread().unpark();
        served.thread.join().ok();
    }
}

fn serve(stream: TcpStream, shared: &Arc<Shared>) -> io::Result<Served> {
    stream.set_nodelay(true)?;
    let connection = Connection::new(stream.try_clone()?, Arc::clone(shared));
    // A connection that ends badly does so because its client or its origin has gone.
    let run = move || drop(connection.run());
    let thread = Builder::new().name("testkit-raw-conn".to_owned()).spawn(run)?;
    Ok(Served { thread, stream })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stalls_are_drawn_by_the_seed_alone() {
        let (shortest, longest) = (Duration::from_secs(2), Duration::from_secs(30));
        let plan = RawStalls { seed: 5, one_in: 200, shortest, longest };
        let draws = |plan: RawStalls| (1..=20_000).map(|n| plan.draw(n, 1000)).collect::<Vec<_>>();
        let drawn = draws(plan);
        assert_eq!(drawn, draws(plan));
        assert_ne!(drawn, draws(RawStalls { seed: 6, ..plan }));
        let stalls: Vec<Stall> = drawn.into_iter().flatten().collect();
        assert!((60..=140).contains(&stalls.len()), "{} of 20,000", stalls.len());
        assert!(stalls.iter().all(|stall| (shortest..=longest).contains(&stall.time)));
        let inside = stalls.iter().filter_map(|stall| stall.before).collect::<Vec<_>>();
        assert!(inside.iter().all(|before| *before < 1000));
        assert!(inside.len() * 4 > stalls.len() && inside.len() * 4 < stalls.len() * 3);
    }
}
