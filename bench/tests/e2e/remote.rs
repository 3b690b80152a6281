//! Control over TCP: with TLS, mutual unless it is said otherwise, and never a byte of a load.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use forebay_client::{Access, Client, ClientError, Endpoint, LoadRequest, PrefetchRequest, Reason};
use forebay_proto::pb;
use forebay_proto::pb::forebay_client::ForebayClient;
use forebay_testkit::{Content, temp_dir};
use tempfile::TempDir;

use crate::binaries::{forebay, forebayd};
use crate::canary;
use crate::command::text;
use crate::harness::{BUCKET, CHUNK, Node, NodeSpec, assert_ends, s3, s3_uri};
use crate::raw::{assert_status, opening};
use crate::tenants::{block, configured};

/// Certificates of an authority, made anew for a test.
pub(crate) struct Authority {
    dir: TempDir,
}

impl Authority {
    /// None, with the reason printed, without openssl.
    pub(crate) fn new() -> Option<Self> {
        let authority = Self { dir: temp_dir() };
        let made = authority
            .openssl(&format!("req -x509 {KEY} -keyout ca.key -out ca.pem -days 2 -subj /CN=ca"));
        if made.is_none() {
            println!("skipped: there is no openssl to make certificates with");
        }
        made.map(|()| authority)
    }

    fn openssl(&self, line: &str) -> Option<()> {
        let mut openssl = Command::new("openssl");
        openssl.args(line.split(' ')).current_dir(self.dir.path()).stdin(Stdio::null());
        let ran = openssl.output().ok()?;
        assert!(ran.status.success(), "{line}: {}", text(&ran.stderr));
        Some(())
    }

    /// A certificate and its key, good for so many days.
    pub(crate) fn certify(&self, name: &str, days: i32) -> (PathBuf, PathBuf) {
        std::fs::write(
            self.path("san"),
            "subjectAltName=DNS:localhost,IP:127.0.0.1\nbasicConstraints=CA:FALSE\n",
        )
        .unwrap();
        self.openssl(&format!("req {KEY} -keyout {name}.key -out {name}.csr -subj /CN={name}"));
        let key = std::fs::read_to_string(self.path(&format!("{name}.key"))).unwrap();
        key.lines().filter(|line| !line.starts_with("---")).for_each(canary::keep);
        self.openssl(&format!(
            "x509 -req -in {name}.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days {days} \
             -extfile san -out {name}.pem"
        ));
        (self.path(&format!("{name}.pem")), self.path(&format!("{name}.key")))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn ca(&self) -> PathBuf {
        self.path("ca.pem")
    }
}

const KEY: &str = "-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes";

/// Settings of a daemon that listens on TCP with a certificate.
fn tls(authority: &Authority, clients: &str) -> String {
    let (cert, key) = authority.certify("daemon", 2);
    format!("tls_cert = \"{}\"\ntls_key = \"{}\"\n{clients}\n", cert.display(), key.display())
}

pub(crate) fn mutual(authority: &Authority) -> String {
    tls(authority, &format!("tls_client_ca = \"{}\"", authority.ca().display()))
}

/// A daemon with these settings that listens on TCP as well, and where.
pub(crate) async fn listening(spec: NodeSpec, settings: &str) -> (Node, Endpoint, TempDir) {
    let (dir, path) = configured(settings);
    let node = spec.listen("tcp://127.0.0.1:0").config(&path).start().await;
    let log = node.daemon.log();
    let at = log.split("tcp://127.0.0.1:").nth(1).unwrap();
    let port: String = at.chars().take_while(char::is_ascii_digit).collect();
    let endpoint = Endpoint::parse(&format!("tcp://127.0.0.1:{port}")).unwrap();
    (node, endpoint, dir)
}

fn read(path: &Path) -> Vec<u8> {
    std::fs::read(path).unwrap()
}

fn trusting(authority: &Authority, identity: Option<(PathBuf, PathBuf)>) -> Access {
    let identity = identity.map(|(cert, key)| (read(&cert), read(&key)));
    Access::new().tls(read(&authority.ca()), identity)
}

/// What a call comes to: with TLS 1.3 a client hears of its refusal with its first call.
async fn call(endpoint: &Endpoint, access: Access) -> Result<(), ClientError> {
    let client = Client::connect_with(endpoint.clone(), access).await?;
    client.status().await.map(drop)
}

#[tokio::test]
async fn only_who_is_certified_is_served() {
    let Some(ours) = Authority::new() else { return };
    let theirs = Authority::new().unwrap();
    let (node, endpoint, _dir) = listening(NodeSpec::new(), &mutual(&ours)).await;
    call(&endpoint, trusting(&ours, Some(ours.certify("client", 2)))).await.unwrap();
    let foreign = Access::new().tls(
        read(&ours.ca()),
        Some(theirs.certify("stranger", 2)).map(|(cert, key)| (read(&cert), read(&key))),
    );
    for (what, access) in [
        ("no certificate", trusting(&ours, None)),
        ("of another authority", foreign),
        ("one that has ended", trusting(&ours, Some(ours.certify("late", -1)))),
        ("in the clear", Access::new()),
        ("a daemon that is not trusted", trusting(&theirs, Some(ours.certify("client", 2)))),
    ] {
        let error = call(&endpoint, access).await.expect_err(what);
        assert_ends(&error, Reason::DaemonUnreachable, 7);
    }
    call(&endpoint, trusting(&ours, Some(ours.certify("client", 2)))).await.unwrap();
    node.client.status().await.unwrap();
    node.settled().await;
}

#[tokio::test]
async fn control_is_served_over_tcp_and_loads_are_not() {
    let Some(ours) = Authority::new() else { return };
    let origin = s3().await;
    origin.put(BUCKET, "m", Content::synthetic(3, 4 * CHUNK));
    let (node, endpoint, _dir) = listening(NodeSpec::of(&origin), &mutual(&ours)).await;
    let access = trusting(&ours, Some(ours.certify("client", 2)));
    let client = Client::connect_with(endpoint.clone(), access).await.unwrap();
    let mut prefetch = client.prefetch(PrefetchRequest::new(s3_uri("m"))).await.unwrap();
    while prefetch.next().await.unwrap().is_some() {}
    assert_eq!(client.list(None).await.unwrap().len(), 1);
    assert_eq!(client.evict(&s3_uri("m")).await.unwrap().checkpoints, 1);
    // Our client does not even ask; one that does is refused.
    let refused = client.load(LoadRequest::new(s3_uri("m"))).await.unwrap_err();
    assert_eq!(refused.reason(), Reason::BadRequest);
    drop(node);

    let (node, endpoint, _dir) = listening(NodeSpec::of(&origin), "").await;
    let address = endpoint.to_string().replace("tcp://", "http://");
    let mut raw = ForebayClient::connect(address).await.unwrap();
    let open = pb::load_request::Event::Open(opening(&s3_uri("m")));
    let stream = tokio_stream::iter([pb::LoadRequest { event: Some(open) }]);
    assert_status(raw.load(stream).await, Reason::ControlOnly);
    raw.status(pb::StatusRequest {}).await.unwrap();
    let said = node.daemon.log();
    assert!(said.contains("open to every user of this machine"), "{said}");
    node.settled().await;
}

#[tokio::test]
async fn over_tcp_a_domain_is_known_by_its_token() {
    let Some(ours) = Authority::new() else { return };
    let clients = "tls_client_auth = \"none\"\n".to_owned()
        + &block("blue", "b1ue-over-tcp", "")
        + "[[domain]]\nname = \"ops\"\nuids = [0]\n";
    let (node, endpoint, _dir) =
        listening(NodeSpec::new().ram("8MiB"), &tls(&ours, &clients)).await;
    let error = call(&endpoint, trusting(&ours, None)).await.unwrap_err();
    assert_ends(&error, Reason::TokenUnknown, 8);
    let token = |token: &str| trusting(&ours, None).token(token).unwrap();
    assert_ends(
        &call(&endpoint, token("red-over-tcp")).await.unwrap_err(),
        Reason::TokenUnknown,
        8,
    );
    call(&endpoint, token("b1ue-over-tcp")).await.unwrap();
    let far = Endpoint::parse("tcp://192.0.2.1:7000").unwrap();
    let clear = Access::new().token("b1ue-over-tcp").unwrap();
    let error = call(&far, clear).await.unwrap_err();
    assert!(error.to_string().contains("in the clear"), "{error}");

    // As a person does.
    let file = ours.path("token");
    std::fs::write(&file, "b1ue-over-tcp\n").unwrap();
    let mut command = Command::new(forebay());
    command.env_clear().args(["--endpoint", &endpoint.to_string(), "status"]);
    command.arg("--tls-ca").arg(ours.ca()).arg("--token-file").arg(&file);
    let ran = command.output().unwrap();
    assert_eq!(ran.status.code(), Some(0), "{ran:?}");
    assert!(!node.daemon.log().contains("b1ue-over-tcp"));
}

/// A daemon that may not listen like this says why, and does not.
#[test]
fn what_is_not_safe_is_refused_at_the_start() {
    let start = |settings: &str, listen: &str| {
        let (dir, path) = configured(settings);
        let socket = format!("unix://{}/run/forebay.sock", dir.path().display());
        let mut daemon = Command::new(forebayd());
        daemon.env_clear().args(["--ram", "16MiB", "--nvme", "0", "--metrics", "off"]);
        daemon.arg("--config").arg(&path).args(["--listen", &socket, "--listen", listen]);
        daemon.arg("--cache-dir").arg(dir.path().join("cache"));
        let ended = daemon.stdin(Stdio::null()).output().unwrap();
        (ended.status.code(), text(&ended.stderr).to_owned())
    };
    let (code, said) = start("", "tcp://0.0.0.0:0");
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("--listen: listen: tcp://0.0.0.0:0 needs TLS"), "{said}");
    let files = "tls_cert = \"/no/c.pem\"\ntls_key = \"/no/k.pem\"\n";
    let (code, said) = start(files, "tcp://0.0.0.0:0");
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("needs tls_client_ca"), "{said}");
    let (_, said) = start(&format!("{files}tls_client_ca = \"/no/ca.pem\""), "tcp://0.0.0.0:0");
    assert!(said.contains("forebayd: TLS: /no/ca.pem"), "{said}");
}
