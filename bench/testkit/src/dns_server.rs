//! A name server with faults, on the loopback, over UDP and TCP.
//!
//! Each name has one behaviour, which may be changed while the code under test runs; names nobody
//! mentioned do not exist. What can be played: sets of addresses that rotate, TTL 0, aliases,
//! NXDOMAIN, a name without addresses, SERVFAIL, REFUSED, silence, delay, and answers too long for
//! UDP. hickory speaks the protocol; the server has a thread and a runtime of its own, as the fake
//! origins have, and ends when dropped.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use hickory_server::Server;
use hickory_server::net::runtime::Time;
use hickory_server::net::xfer::Protocol;
use hickory_server::proto::op::{Header, HeaderCounts, Metadata, ResponseCode};
use hickory_server::proto::rr::rdata::{A, AAAA, CNAME, SOA};
use hickory_server::proto::rr::{Name, RData, Record, RecordType};
use hickory_server::server::{Request, RequestHandler, ResponseHandler, ResponseInfo};
use hickory_server::zone_handler::MessageResponseBuilder;
use tokio::net::{TcpListener, UdpSocket};
use tokio::runtime::Builder;
use tokio::sync::oneshot;

/// An idle TCP connection of a resolver is closed after this.
const TCP_IDLE: Duration = Duration::from_secs(10);
/// Answers that wait to be written on a TCP connection.
const TCP_QUEUE: usize = 64;
/// Tries to find a port that is free for UDP and TCP.
const PORT_TRIES: usize = 16;

/// What a name server says about a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DnsAnswer {
    /// These addresses: A and AAAA questions get those of their family.
    Addresses {
        /// The addresses, in the order of the answer.
        addresses: Vec<IpAddr>,
        /// Seconds.
        ttl: u32,
    },
    /// One set after the other: the nth question of a family gets the nth set, over and over.
    Rotating {
        /// The sets.
        sets: Vec<Vec<IpAddr>>,
        /// Seconds.
        ttl: u32,
    },
    /// A CNAME and, if this server knows it, what the target answers.
    Alias {
        /// The other name.
        target: String,
        /// Seconds.
        ttl: u32,
    },
    /// NXDOMAIN.
    NoSuchName {
        /// Seconds that this may be believed.
        ttl: u32,
    },
    /// SERVFAIL.
    ServerFailure,
    /// REFUSED.
    Refused,
    /// Nothing, ever.
    Silence,
}

/// The questions about one name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DnsQueries {
    /// For IPv4 addresses.
    pub a: u64,
    /// For IPv6 addresses.
    pub aaaa: u64,
    /// Over UDP.
    pub udp: u64,
    /// Over TCP.
    pub tcp: u64,
}

/// A name server that answers what it is told; dropping it stops it.
#[derive(Debug)]
pub struct DnsServer {
    address: SocketAddr,
    zone: Arc<Mutex<Zone>>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Zone {
    names: BTreeMap<String, Behaviour>,
    /// What all names answer while it is set.
    all: Option<DnsAnswer>,
}

#[derive(Clone, Debug, Default)]
struct Behaviour {
    answer: Option<DnsAnswer>,
    delay: Duration,
    truncated: bool,
    aaaa_lost: bool,
    queries: DnsQueries,
}

impl DnsServer {
    /// Starts one at a free port of 127.0.0.1.
    ///
    /// # Panics
    /// If no port is free for both UDP and TCP.
    pub async fn start() -> Self {
        let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        for _ in 1..PORT_TRIES {
            if let Ok(server) = Self::start_at(any).await {
                return server;
            }
        }
        Self::start_at(any).await.expect("a loopback port that is free for UDP and TCP")
    }

    /// Starts one at an address; port 0 takes a free one.
    pub async fn start_at(address: SocketAddr) -> io::Result<Self> {
        let tcp = std::net::TcpListener::bind(address)?;
        tcp.set_nonblocking(true)?;
        let address = tcp.local_addr()?;
        let udp = std::net::UdpSocket::bind(address)?;
        udp.set_nonblocking(true)?;
        let zone = Arc::<Mutex<Zone>>::default();
        let handler = Handler(Arc::clone(&zone));
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let (stop, stopped) = oneshot::channel();
        let (ready, started) = oneshot::channel();
        let thread =
            std::thread::Builder::new().name("testkit-dns".to_owned()).spawn(move || {
                runtime.block_on(serve(handler, udp, tcp, ready, stopped));
            })?;
        started.await.map_err(io::Error::other)??;
        Ok(Self { address, zone, stop: Some(stop), thread: Some(thread) })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// From now on `name` answers this.
    pub fn set(&self, name: &str, answer: DnsAnswer) {
        self.zone().name(name).answer = Some(answer);
    }

    /// From now on `name` has these addresses.
    pub fn addresses(&self, name: &str, addresses: impl IntoIterator<Item = IpAddr>, ttl: u32) {
        let addresses = addresses.into_iter().collect();
        self.set(name, DnsAnswer::Addresses { addresses, ttl });
    }

    /// From now on answers about `name` take this long.
    pub fn delay(&self, name: &str, delay: Duration) {
        self.zone().name(name).delay = delay;
    }

    /// From now on answers about `name` are whole over TCP only: over UDP they are empty and say
    /// so.
    pub fn truncate(&self, name: &str, truncated: bool) {
        self.zone().name(name).truncated = truncated;
    }

    /// From now on questions for IPv6 addresses of `name` get no answer, as behind a bad middlebox.
    pub fn lose_aaaa(&self, name: &str, lost: bool) {
        self.zone().name(name).aaaa_lost = lost;
    }

    /// From now on every name answers this, whatever it was told; `None` ends that.
    pub fn all(&self, answer: Option<DnsAnswer>) {
        self.zone().all = answer;
    }

    /// The questions about `name` so far.
    pub fn queries(&self, name: &str) -> DnsQueries {
        let key = key(name);
        self.zone().names.get(&key).map_or_else(DnsQueries::default, |known| known.queries)
    }

    /// All names that were asked for or told, sorted, in lower case with a final dot.
    pub fn names(&self) -> Vec<String> {
        self.zone().names.keys().cloned().collect()
    }

    fn zone(&self) -> MutexGuard<'_, Zone> {
        self.zone.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for DnsServer {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // A thread that panicked has said so itself.
            drop(thread.join());
        }
    }
}

impl Zone {
    fn name(&mut self, name: &str) -> &mut Behaviour {
        self.names.entry(key(name)).or_default()
    }

    /// Counts the question and says what to do with it.
    fn ask(&mut self, name: &str, record_type: RecordType, protocol: Protocol) -> Behaviour {
        let all = self.all.clone();
        let known = self.name(name);
        match record_type {
            RecordType::A => known.queries.a += 1,
            RecordType::AAAA => known.queries.aaaa += 1,
            _ => {}
        }
        match protocol {
            Protocol::Udp => known.queries.udp += 1,
            _ => known.queries.tcp += 1,
        }
        Behaviour { answer: all.or_else(|| known.answer.clone()), ..known.clone() }
    }
}

fn key(name: &str) -> String {
    let mut name = name.to_ascii_lowercase();
    if !name.ends_with('.') {
        name.push('.');
    }
    name
}

async fn serve(
    handler: Handler,
    udp: std::net::UdpSocket,
    tcp: std::net::TcpListener,
    ready: oneshot::Sender<io::Result<()>>,
    stopped: oneshot::Receiver<()>,
) {
    let mut server = Server::new(handler);
    let registered = UdpSocket::from_std(udp).and_then(|udp| {
        server.register_socket(udp);
        server.register_listener(TcpListener::from_std(tcp)?, TCP_IDLE, TCP_QUEUE);
        Ok(())
    });
    let failed = registered.is_err();
    if ready.send(registered).is_err() || failed {
        return;
    }
    // Ended by dropping the sender; the server's tasks end with the runtime.
    drop(stopped.await);
}

struct Handler(Arc<Mutex<Zone>>);

/// What goes on the wire.
struct Reply {
    code: ResponseCode,
    truncated: bool,
    answers: Vec<Record>,
    authority: Vec<Record>,
}

#[async_trait]
impl RequestHandler for Handler {
    async fn handle_request<R: ResponseHandler, T: Time>(
        &self,
        request: &Request,
        mut respond: R,
    ) -> ResponseInfo {
        let nothing = || {
            let metadata = Metadata::response_from_request(&request.metadata);
            ResponseInfo::from(Header { metadata, counts: HeaderCounts::default() })
        };
        let Ok(asked) = request.request_info() else { return nothing() };
        let name: Name = asked.query.name().into();
        let record_type = asked.query.query_type();
        let (delay, reply) = self.reply(&name, record_type, asked.protocol);
        tokio::time::sleep(delay).await;
        let Some(reply) = reply else { return nothing() };
        let mut metadata = Metadata::response_from_request(&request.metadata);
        metadata.response_code = reply.code;
        metadata.truncation = reply.truncated;
        metadata.recursion_available = true;
        let mut builder = MessageResponseBuilder::from_message_request(request);
        if let Some(edns) = &request.edns {
            builder.edns(edns);
        }
        let message = builder.build(metadata, &reply.answers, [], &reply.authority, []);
        // A resolver that went away is no fault of the server.
        respond.send_response(message).await.unwrap_or_else(|_| nothing())
    }
}

impl Handler {
    /// `None` is silence.
    fn reply(
        &self,
        name: &Name,
        record_type: RecordType,
        protocol: Protocol,
    ) -> (Duration, Option<Reply>) {
        let mut zone = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let known = zone.ask(&name.to_ascii(), record_type, protocol);
        let truncated = known.truncated && protocol == Protocol::Udp;
        let mut reply = Reply {
            code: ResponseCode::NoError,
            truncated,
            answers: Vec::new(),
            authority: Vec::new(),
        };
        if known.aaaa_lost && record_type == RecordType::AAAA {
            return (known.delay, None);
        }
        let records = match known.answer {
            Some(DnsAnswer::Silence) => return (known.delay, None),
            Some(DnsAnswer::ServerFailure) => Err((ResponseCode::ServFail, None)),
            Some(DnsAnswer::Refused) => Err((ResponseCode::Refused, None)),
            Some(DnsAnswer::NoSuchName { ttl }) => Err((ResponseCode::NXDomain, Some(ttl))),
            None => Err((ResponseCode::NXDomain, Some(0))),
            Some(DnsAnswer::Alias { target, ttl }) => {
                Ok(zone.alias(name, &target, ttl, record_type))
            }
            Some(answer) => Ok(records(name, &answer, record_type, known.queries)),
        };
        match records {
            Ok(records) if !truncated => reply.answers = records,
            Ok(_) => {}
            Err((code, ttl)) => {
                reply.code = code;
                reply.authority.extend(ttl.map(|ttl| start_of_authority(name, ttl)));
            }
        }
        if reply.code == ResponseCode::NoError && reply.answers.is_empty() && !truncated {
            reply.authority.push(start_of_authority(name, 0));
        }
        (known.delay, Some(reply))
    }
}

impl Zone {
    fn alias(&self, name: &Name, target: &str, ttl: u32, record_type: RecordType) -> Vec<Record> {
        let Ok(target_name) = Name::from_ascii(key(target)) else { return Vec::new() };
        let cname = RData::CNAME(CNAME(target_name.clone()));
        let mut found = vec![Record::from_rdata(name.clone(), ttl, cname)];
        if let Some(Behaviour { answer: Some(answer), queries, .. }) = self.names.get(&key(target))
        {
            found.extend(records(&target_name, answer, record_type, *queries));
        }
        found
    }
}

fn records(
    name: &Name,
    answer: &DnsAnswer,
    record_type: RecordType,
    queries: DnsQueries,
) -> Vec<Record> {
    let (addresses, ttl) = match answer {
        DnsAnswer::Addresses { addresses, ttl } => (addresses.as_slice(), *ttl),
        DnsAnswer::Rotating { sets, ttl } => {
            let asked = if record_type == RecordType::AAAA { queries.aaaa } else { queries.a };
            let turn = usize::try_from(asked.saturating_sub(1)).unwrap_or(0);
            let set = sets.get(turn % sets.len().max(1));
            (set.map_or([].as_slice(), Vec::as_slice), *ttl)
        }
        _ => return Vec::new(),
    };
    let data = addresses.iter().map(|address| match address {
        IpAddr::V4(address) => RData::A(A(*address)),
        IpAddr::V6(address) => RData::AAAA(AAAA(*address)),
    });
    data.filter(|data| data.record_type() == record_type)
        .map(|data| Record::from_rdata(name.clone(), ttl, data))
        .collect()
}

fn start_of_authority(name: &Name, ttl: u32) -> Record {
    let zone = name.base_name();
    let soa = SOA::new(zone.clone(), zone.clone(), 1, 60, 60, 60, ttl);
    Record::from_rdata(zone, ttl, RData::SOA(soa))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One question for IPv4 addresses, as RFC 1035 lays it out.
    fn question(id: u16) -> Vec<u8> {
        let mut bytes = id.to_be_bytes().to_vec();
        bytes.extend([1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
        bytes.extend(b"\x01h\x04test\0");
        bytes.extend([0, 1, 0, 1]);
        bytes
    }

    /// The code, the truncation bit and the number of answers.
    async fn ask(socket: &UdpSocket, id: u16) -> (u8, bool, u8) {
        socket.send(&question(id)).await.unwrap();
        let mut reply = [0; 512];
        let length = socket.recv(&mut reply).await.unwrap();
        assert_eq!(reply[..2], id.to_be_bytes(), "{length} bytes");
        (reply[3] & 0xf, reply[2] & 2 != 0, reply[7])
    }

    #[tokio::test]
    async fn names_answer_what_they_were_told_last() {
        let server = DnsServer::start().await;
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        socket.connect(server.address()).await.unwrap();
        assert_eq!(ask(&socket, 1).await, (3, false, 0));
        server.addresses("H.test", [1, 2].map(|last| [127, 0, 0, last].into()), 0);
        assert_eq!(ask(&socket, 2).await, (0, false, 2));
        server.truncate("h.test", true);
        assert_eq!(ask(&socket, 3).await, (0, true, 0));
        server.all(Some(DnsAnswer::ServerFailure));
        assert_eq!(ask(&socket, 4).await, (2, true, 0));
        server.all(Some(DnsAnswer::Silence));
        socket.send(&question(5)).await.unwrap();
        while server.queries("h.test").udp < 5 {
            tokio::task::yield_now().await;
        }
        server.truncate("h.test", false);
        server.all(Some(DnsAnswer::Alias { target: "h.test.".to_owned(), ttl: 1 }));
        assert_eq!(ask(&socket, 6).await, (0, false, 3));
        let queries = DnsQueries { a: 6, aaaa: 0, udp: 6, tcp: 0 };
        assert_eq!(server.queries("h.test."), queries);
        let address = server.address();
        drop(server);
        std::net::UdpSocket::bind(address).unwrap();
    }
}
