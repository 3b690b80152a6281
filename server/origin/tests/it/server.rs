//! A web server whose every byte a test decides: a script turns each request into acts.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;

/// A request as it came.
#[derive(Debug, Clone)]
pub(crate) struct Asked {
    pub(crate) method: String,
    pub(crate) target: String,
    pub(crate) headers: BTreeMap<String, String>,
    /// The how manieth request of the server, from 0.
    pub(crate) number: usize,
    /// The connection it came on, from 0.
    pub(crate) connection: usize,
}

impl Asked {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }

    pub(crate) fn path(&self) -> &str {
        self.target.split('?').next().unwrap()
    }

    pub(crate) fn range(&self) -> Option<(usize, usize)> {
        let (start, last) = self.header("range")?.strip_prefix("bytes=")?.split_once('-')?;
        Some((start.parse().unwrap(), last.parse().unwrap()))
    }
}

/// What the server does next.
#[derive(Debug, Clone)]
pub(crate) enum Act {
    Send(Vec<u8>),
    /// Sends this again and again until the peer goes.
    Flood(Vec<u8>),
    Close,
    Reset,
    /// Says nothing until the peer goes.
    Stall,
    /// Says nothing until it is told to go on.
    Await(Arc<Notify>),
    /// Says nothing until the peer goes, and then tells of it.
    Gone(Arc<Notify>),
}

type Script = dyn Fn(&Asked) -> Vec<Act> + Send + Sync;

pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    asked: watch::Receiver<Vec<Asked>>,
    live: watch::Receiver<usize>,
    _tasks: JoinSet<()>,
}

#[derive(Clone)]
struct Shared {
    script: Arc<Script>,
    asked: Arc<watch::Sender<Vec<Asked>>>,
    live: Arc<watch::Sender<usize>>,
}

impl Server {
    pub(crate) async fn start(script: impl Fn(&Asked) -> Vec<Act> + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (asked_in, asked) = watch::channel(Vec::new());
        let (live_in, live) = watch::channel(0);
        let shared =
            Shared { script: Arc::new(script), asked: Arc::new(asked_in), live: Arc::new(live_in) };
        let mut tasks = JoinSet::new();
        tasks.spawn(shared.accept(listener));
        Self { address, asked, live, _tasks: tasks }
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}/{path}", self.address)
    }

    pub(crate) fn asked(&self) -> Vec<Asked> {
        self.asked.borrow().clone()
    }

    /// Waits for a number of requests.
    pub(crate) async fn was_asked(&mut self, count: usize) {
        self.asked.wait_for(|asked| asked.len() >= count).await.unwrap();
    }

    /// Waits until no connection is left.
    pub(crate) async fn is_left_alone(&mut self) {
        self.live.wait_for(|live| *live == 0).await.unwrap();
    }
}

impl Shared {
    async fn accept(self, listener: TcpListener) {
        let mut connections = JoinSet::new();
        for number in 0.. {
            let (stream, _) = listener.accept().await.unwrap();
            self.live.send_modify(|live| *live += 1);
            connections.spawn(self.clone().serve(stream, number));
        }
    }

    async fn serve(self, mut stream: TcpStream, connection: usize) {
        let mut pending = Vec::new();
        let mut open = true;
        while open && let Some(mut asked) = next_request(&mut stream, &mut pending).await {
            asked.connection = connection;
            self.asked.send_modify(|all| {
                asked.number = all.len();
                all.push(asked.clone());
            });
            for act in (self.script)(&asked) {
                open = open && perform(&mut stream, act).await;
            }
        }
        drop(stream);
        self.live.send_modify(|live| *live -= 1);
    }
}

/// Whether the connection goes on.
async fn perform(stream: &mut TcpStream, act: Act) -> bool {
    match act {
        Act::Send(bytes) => stream.write_all(&bytes).await.is_ok(),
        Act::Flood(bytes) => {
            while stream.write_all(&bytes).await.is_ok() {}
            false
        }
        Act::Close => {
            // A close before everything is read would turn into a reset.
            drop(stream.shutdown().await);
            drop(stream.read_to_end(&mut Vec::new()).await);
            false
        }
        Act::Reset => {
            stream.set_zero_linger().unwrap();
            false
        }
        Act::Await(told) => {
            told.notified().await;
            true
        }
        Act::Gone(tell) => {
            drop(stream.read_to_end(&mut Vec::new()).await);
            tell.notify_one();
            false
        }
        Act::Stall => {
            drop(stream.read_to_end(&mut Vec::new()).await);
            false
        }
    }
}

async fn next_request(stream: &mut TcpStream, pending: &mut Vec<u8>) -> Option<Asked> {
    let end = loop {
        if let Some(at) = pending.windows(4).position(|four| four == b"\r\n\r\n") {
            break at;
        }
        if stream.read_buf(pending).await.ok()? == 0 {
            return None;
        }
    };
    let head = String::from_utf8(pending.drain(..end + 4).collect()).unwrap();
    let mut lines = head.trim_end().split("\r\n");
    let mut first = lines.next().unwrap().split(' ');
    let (method, target) = (first.next().unwrap().to_owned(), first.next().unwrap().to_owned());
    let headers: BTreeMap<String, String> = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
        .collect();
    let length = headers.get("content-length").map_or(0, |text| text.parse().unwrap());
    while pending.len() < length {
        if stream.read_buf(pending).await.ok()? == 0 {
            return None;
        }
    }
    pending.drain(..length);
    Some(Asked { method, target, headers, number: 0, connection: 0 })
}

/// A response with a length of its own, unless the headers have one.
pub(crate) fn response(status: u16, headers: &[(&str, &str)], body: &[u8]) -> Vec<u8> {
    let mut head = format!("HTTP/1.1 {status} Status\r\n");
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    let framed = |name: &str| ["content-length", "transfer-encoding"].contains(&name);
    if !headers.iter().any(|(name, _)| framed(name)) {
        head.push_str(&format!("content-length: {}\r\n", body.len()));
    }
    head.push_str("\r\n");
    let mut bytes = head.into_bytes();
    bytes.extend_from_slice(body);
    bytes
}

pub(crate) fn status(status: u16) -> Vec<Act> {
    vec![Act::Send(response(status, &[], b""))]
}

/// An object served as a good web server would.
#[derive(Debug, Clone, Default)]
pub(crate) struct Thing {
    pub(crate) bytes: Vec<u8>,
    pub(crate) etag: Option<String>,
    pub(crate) modified: Option<String>,
}

impl Thing {
    pub(crate) fn new(bytes: Vec<u8>) -> Self {
        Self { bytes, etag: Some("\"v1\"".into()), modified: None }
    }

    pub(crate) fn serve(&self, asked: &Asked) -> Vec<Act> {
        vec![Act::Send(self.answer(asked))]
    }

    pub(crate) fn answer(&self, asked: &Asked) -> Vec<u8> {
        let other = |given: Option<&str>, own: &Option<String>| {
            given.is_some_and(|given| own.as_deref() != Some(given))
        };
        if other(asked.header("if-match"), &self.etag)
            || other(asked.header("if-unmodified-since"), &self.modified)
        {
            return response(412, &[], b"");
        }
        let total = self.bytes.len();
        let named = [("etag", &self.etag), ("last-modified", &self.modified)];
        let mut headers: Vec<(&str, &str)> =
            named.iter().filter_map(|(name, value)| Some((*name, value.as_deref()?))).collect();
        let length = total.to_string();
        if asked.method == "HEAD" {
            headers.push(("content-length", &length));
            return response(200, &headers, b"");
        }
        let Some((start, last)) = asked.range() else {
            return response(200, &headers, &self.bytes);
        };
        if start >= total {
            return response(416, &[("content-range", &format!("bytes */{total}"))], b"");
        }
        let last = last.min(total - 1);
        let range = format!("bytes {start}-{last}/{total}");
        headers.push(("content-range", &range));
        response(206, &headers, &self.bytes[start..=last])
    }

    /// The head and the first `sent` bytes of the body of a good answer.
    pub(crate) fn cut(&self, asked: &Asked, sent: usize) -> Act {
        let mut bytes = self.answer(asked);
        let head = bytes.windows(4).position(|four| four == b"\r\n\r\n").unwrap() + 4;
        bytes.truncate(head + sent);
        Act::Send(bytes)
    }
}

/// A value that a script and its test share.
pub(crate) type Shelf<T> = Arc<Mutex<T>>;
