//! Credentials that can be recognised, in every daemon of this suite, and the search for them in
//! whatever it told.
//!
//! A [`NodeSpec`](crate::harness::NodeSpec) gives its daemon credentials with [`CANARY`] in them, those
//! of clouds that the test does not use included, and has it log at the level `trace`. When the daemon
//! ends, [`WATCH`] asks it for all it tells and looks through that, its log (with panics), its
//! stdout and every file in its folders. What clients were told is looked through where helpers hear
//! it: errors, reports, and what the command prints. A test that has another secret
//! says so with [`keep`]; from then on it is looked for everywhere.

use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use forebay_bench::process::{DaemonProcess, Watch};
use forebay_client::{Access, Client, Endpoint};
use forebay_testkit::{AccessKey, CANARY, canary_in};

/// What a daemon that is about to end has for its answers; one that stands still gives none.
const ASKED_WITHIN: Duration = Duration::from_secs(2);

/// See the module's head.
pub(crate) const WATCH: Watch = Watch { ask, look };

/// Secrets without the mark.
static KEPT: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// Has this secret looked for as well: one without the mark, which no test may show.
pub(crate) fn keep(secret: &str) {
    assert!(secret.len() >= 8, "too short to be told from other text");
    let mut kept = KEPT.lock().unwrap_or_else(PoisonError::into_inner);
    if !kept.iter().any(|known| known == secret) {
        kept.push(secret.to_owned());
    }
}

fn kept() -> Vec<String> {
    KEPT.lock().unwrap_or_else(PoisonError::into_inner).clone()
}

/// An access key whose secret and token are marked.
pub(crate) fn key() -> AccessKey {
    AccessKey {
        id: "ASIAFOREBAYE2E".to_owned(),
        secret: format!("e2e/{CANARY}+secret"),
        token: Some(format!("e2e-{CANARY}-token==")),
    }
}

/// The variables that give a daemon an access key.
pub(crate) fn env_of(key: &AccessKey) -> Vec<(String, String)> {
    let token = key.token.iter().map(|token| ("AWS_SESSION_TOKEN", token));
    let pair = [("AWS_ACCESS_KEY_ID", &key.id), ("AWS_SECRET_ACCESS_KEY", &key.secret)];
    pair.into_iter().chain(token).map(|(name, value)| (name.to_owned(), value.clone())).collect()
}

/// Marked credentials of clouds that a test gives none of.
pub(crate) fn env(given: &[(String, String)]) -> Vec<(String, String)> {
    let marked = |name: &str| (name.to_owned(), format!("e2e-{CANARY}-{}", name.to_lowercase()));
    let mut env = vec![marked("FOREBAY_TOKEN")];
    let is_given = |prefix: &str| given.iter().any(|(name, _)| name.starts_with(prefix));
    if !is_given("AWS_") {
        env.extend(env_of(&key()));
    }
    if !is_given("GOOGLE_") {
        env.push(marked("GOOGLE_BEARER_TOKEN"));
    }
    if !is_given("AZURE_") {
        env.push(marked("AZURE_STORAGE_CLIENT_SECRET"));
    }
    env
}

/// Fails if a secret is told.
#[track_caller]
pub(crate) fn check(who: &str, told: impl AsRef<[u8]>) {
    if let Some(around) = canary_in(told.as_ref(), &kept()) {
        panic!("{who} tells a secret: {around}");
    }
}

/// What a daemon tells whoever asks; nothing of one that does not answer.
fn ask(daemon: &DaemonProcess) -> String {
    let (socket, metrics) = (daemon.socket(), metrics_address(&daemon.log()));
    // In a thread of its own: the one that drops a daemon may be a runtime's.
    let asking = std::thread::Builder::new().name("asking".to_owned()).spawn(move || {
        let told = metrics.map(exposition).unwrap_or_default();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let answers = async { tokio::time::timeout(ASKED_WITHIN, answers(&socket)).await };
        told + &runtime.block_on(answers).unwrap_or_default()
    });
    asking.map(|asking| asking.join().unwrap_or_default()).unwrap_or_default()
}

/// Every verb that only tells.
async fn answers(socket: &Path) -> String {
    let Ok(endpoint) = Endpoint::unix(socket) else { return String::new() };
    let Ok(client) = Client::connect_with(endpoint, Access::new()).await else {
        return String::new();
    };
    let mut told = format!("{client:?} {:?}", client.status().await);
    told += &format!("{:?} {:?}", client.explain(None).await, client.trace(None).await);
    told += &format!("{:?} {:?}", client.list(None).await, client.aliases(None).await);
    told += &format!("{:?} {:?}", client.capacity().await, client.doctor().await);
    told
}

fn metrics_address(log: &str) -> Option<SocketAddr> {
    let ready = log.lines().find(|line| line.contains("\"ready\""))?;
    let line: serde_json::Value = serde_json::from_str(ready).ok()?;
    line["fields"]["metrics"].as_str()?.parse().ok()
}

fn exposition(address: SocketAddr) -> String {
    use std::io::{Read, Write};
    let mut said = String::new();
    let Ok(mut socket) = TcpStream::connect_timeout(&address, ASKED_WITHIN) else { return said };
    socket.set_read_timeout(Some(ASKED_WITHIN)).ok();
    let request = "GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    socket.write_all(request.as_bytes()).ok();
    socket.read_to_string(&mut said).ok();
    said
}

/// Looks through what a daemon told and every file that it left.
fn look(dir: &Path, told: &str) {
    check("a daemon that is asked", told);
    let mut folders = vec![dir.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).into_iter().flatten().flatten() {
            let path = entry.path();
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => folders.push(path),
                Ok(kind) if kind.is_file() => {
                    let bytes = std::fs::read(&path).unwrap_or_default();
                    check(&path.display().to_string(), bytes);
                }
                _ => {}
            }
        }
    }
}
