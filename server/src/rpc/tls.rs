//! TLS for control over TCP: the daemon's certificate, and who certifies its clients.
//!
//! Mutual unless the settings say otherwise. What cannot be read or does not fit together ends the
//! start; a client that is not known ends its handshake, before a byte of HTTP is read.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustls::RootCertStore;
use rustls::crypto::ring::default_provider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::config::listen::TlsFiles;

/// A handshake takes no longer: it holds a connection's place.
const HANDSHAKE_WITHIN: Duration = Duration::from_secs(5);

/// What handshakes are made with.
#[derive(Clone)]
pub(crate) struct Tls(TlsAcceptor);

impl Tls {
    /// Reads the files.
    pub(crate) fn open(files: &TlsFiles) -> io::Result<Self> {
        let TlsFiles { cert, key, client_ca } = files;
        let provider = Arc::new(default_provider());
        let builder = rustls::ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .map_err(io::Error::other)?;
        let builder = match client_ca {
            None => builder.with_no_client_auth(),
            Some(path) => {
                let mut roots = RootCertStore::empty();
                for authority in certificates(path)? {
                    roots.add(authority).map_err(|error| named(path, error))?;
                }
                let verifier =
                    WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
                builder.with_client_cert_verifier(verifier.build().map_err(io::Error::other)?)
            }
        };
        let secret = PrivateKeyDer::from_pem_file(key).map_err(|error| named(key, error))?;
        let mut config = builder
            .with_single_cert(certificates(cert)?, secret)
            .map_err(|error| named(cert, error))?;
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(Self(TlsAcceptor::from(Arc::new(config))))
    }

    /// Shakes hands.
    pub(crate) async fn accept(&self, stream: TcpStream) -> io::Result<TlsStream<TcpStream>> {
        tokio::time::timeout(HANDSHAKE_WITHIN, self.0.accept(stream)).await?
    }
}

fn certificates(path: &Path) -> io::Result<Vec<CertificateDer<'static>>> {
    let found = CertificateDer::pem_file_iter(path).map_err(|error| named(path, error))?;
    let found: Vec<_> = found.collect::<Result<_, _>>().map_err(|error| named(path, error))?;
    match found.is_empty() {
        true => Err(named(path, "there is no certificate in it")),
        false => Ok(found),
    }
}

fn named(path: &Path, error: impl std::fmt::Display) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, format!("{}: {error}", path.display()))
}
