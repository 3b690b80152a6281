//! TLS: the certificates of a file are trusted, others are not, and a handshake has a limit.

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use forebay_origin::{OriginBlock, OriginErrorKind, OriginSettings, Origins};
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use crate::server::response;
use crate::{Names, quick, uri};

pub(crate) fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/tls").join(name)
}

/// What shakes hands as origin.test.
pub(crate) fn acceptor() -> TlsAcceptor {
    acceptor_of("server")
}

/// What shakes hands with one of the certificates: `server` is for origin.test, `other` for
/// other.test, both by the authority of `ca.pem`, whose key nobody has any more.
fn acceptor_of(name: &str) -> TlsAcceptor {
    let certificate = CertificateDer::from_pem_file(fixture(&format!("{name}.pem"))).unwrap();
    let key = PrivateKeyDer::from_pem_file(fixture(&format!("{name}.key"))).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)
        .unwrap();
    TlsAcceptor::from(Arc::new(config))
}

/// A server that shakes hands and answers every request with an empty object.
async fn server() -> (u16, JoinSet<()>) {
    serving(acceptor(), "127.0.0.1:0").await
}

async fn serving(acceptor: TlsAcceptor, at: &str) -> (u16, JoinSet<()>) {
    let listener = TcpListener::bind(at).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        loop {
            let Ok((stream, _)) = listener.accept().await else { return };
            let Ok(mut stream) = acceptor.accept(stream).await else { continue };
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") && stream.read_buf(&mut head).await.unwrap() > 0 {}
            stream.write_all(&response(200, &[("etag", "\"t\"")], b"")).await.unwrap();
        }
    });
    (port, tasks)
}

fn origins(settings: OriginSettings) -> Origins {
    let local: IpAddr = "127.0.0.1".parse().unwrap();
    let names = vec![("origin.test", vec![local]), ("other.test", vec![local])];
    Origins::new(settings, Arc::new(Names(names))).unwrap()
}

fn trusting() -> OriginSettings {
    let block = OriginBlock {
        prefix: "https://".into(),
        ca_file: Some(fixture("ca.pem")),
        ..OriginBlock::default()
    };
    OriginSettings { origins: vec![block], ..quick() }
}

#[tokio::test]
async fn a_ca_file_is_trusted_for_the_names_it_certifies() {
    let (port, _tasks) = server().await;
    let origins = origins(trusting());
    let good = uri(&format!("https://origin.test:{port}/o"));
    let meta = origins.open(&good).unwrap().head(good.key()).await.unwrap();
    assert_eq!(meta.pin.etag.as_deref(), Some("\"t\""));

    let other = uri(&format!("https://other.test:{port}/o"));
    let error = origins.open(&other).unwrap().head(other.key()).await.unwrap_err();
    assert_eq!(error.kind, OriginErrorKind::Unreachable);
    assert!(error.to_string().contains("certificate"), "{error}");
    assert!(error.attempt_log.iter().all(|attempt| attempt.tls.is_some()));
}

/// Row 16: an answer of DNS that names somebody else's machine. Its certificate is a good one, of
/// another name: nothing is sent to it, and the other address of the answer serves the request.
#[tokio::test]
async fn a_poisoned_address_is_found_out_by_its_certificate_and_left() {
    for _ in 0..8 {
        let (port, _good) = serving(acceptor_of("server"), "127.0.0.1:0").await;
        let at = format!("127.0.0.2:{port}");
        let Ok(_free) = TcpListener::bind(&at).await.map(drop) else { continue };
        let (_, _poisoned) = serving(acceptor_of("other"), &at).await;
        let ip = |last| IpAddr::from([127, 0, 0, last]);
        let poisoned = Arc::new(Names(vec![("origin.test", vec![ip(2)])]));
        let both = Arc::new(Names(vec![("origin.test", vec![ip(2), ip(1)])]));
        let uri = uri(&format!("https://origin.test:{port}/o"));
        let only = Origins::new(trusting(), poisoned).unwrap();
        let error = only.open(&uri).unwrap().head(uri.key()).await.unwrap_err();
        assert_eq!((error.kind, error.status), (OriginErrorKind::Unreachable, None), "{error}");
        assert!(error.to_string().contains("not valid for name"), "{error}");

        let origins = Origins::new(trusting(), both).unwrap();
        let store = origins.open(&uri).unwrap();
        let failures = || origins.addresses().iter().map(|address| address.failures).max();
        while failures() == Some(0) || failures().is_none() {
            store.head(uri.key()).await.unwrap();
        }
        for _ in 0..20 {
            store.head(uri.key()).await.unwrap();
        }
        return;
    }
    panic!("no port was free on both addresses");
}

#[tokio::test]
async fn an_unknown_authority_is_not_trusted() {
    let (port, _tasks) = server().await;
    let uri = uri(&format!("https://origin.test:{port}/o"));
    let error = origins(quick()).open(&uri).unwrap().head(uri.key()).await.unwrap_err();
    assert_eq!(error.kind, OriginErrorKind::Unreachable, "{error}");
}

#[tokio::test]
async fn a_silent_handshake_times_out() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut settings = trusting();
    settings.timeouts.tls = Duration::from_millis(50);
    let uri = uri(&format!("https://origin.test:{}/o", listener.local_addr().unwrap().port()));
    let error = origins(settings).open(&uri).unwrap().head(uri.key()).await.unwrap_err();
    assert_eq!(error.kind, OriginErrorKind::Timeout, "{error}");
}

#[test]
fn a_ca_file_that_is_none_is_an_error_at_once() {
    for file in ["server.key", "gone.pem"] {
        let mut settings = trusting();
        settings.origins[0].ca_file = Some(fixture(file));
        let error = origins(settings).open(&uri("https://h/o")).unwrap_err();
        assert!(matches!(error.kind, OriginErrorKind::Local(_)), "{error}");
        assert!(error.to_string().contains(file), "{error}");
    }
}
