//! TLS: which certificate authorities are trusted.
//!
//! The system's, and those of an optional file beside them. The system's are read at the first
//! handshake, so that a machine without any can still use plain HTTP; the file is read when the
//! origin is opened, so that a wrong path is an error at once.

use std::io;
use std::path::Path;
use std::sync::{Arc, OnceLock};

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};

/// The source of one TLS configuration.
#[derive(Debug)]
pub(crate) struct Trust {
    extra: Vec<CertificateDer<'static>>,
    config: OnceLock<Arc<ClientConfig>>,
}

impl Trust {
    /// Reads the certificates of `ca_file`.
    pub(crate) fn new(ca_file: Option<&Path>) -> io::Result<Self> {
        let extra = ca_file.map(|path| {
            let named = |e: io::Error| io::Error::new(e.kind(), format!("{}: {e}", path.display()));
            certificates(path).map_err(named)
        });
        let extra = extra.transpose()?.unwrap_or_default();
        Ok(Self { extra, config: OnceLock::new() })
    }

    /// The configuration for a handshake.
    pub(crate) fn config(&self) -> io::Result<Arc<ClientConfig>> {
        if let Some(config) = self.config.get() {
            return Ok(Arc::clone(config));
        }
        let config = Arc::new(self.build()?);
        Ok(Arc::clone(self.config.get_or_init(|| config)))
    }

    fn build(&self) -> io::Result<ClientConfig> {
        let mut roots = RootCertStore::empty();
        // Single certificates that cannot be read are common in system stores and harmless.
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        for certificate in &self.extra {
            roots.add(certificate.clone()).map_err(io::Error::other)?;
        }
        if roots.is_empty() {
            return Err(io::Error::new(
                io::ErrorKind::NotFound,
                "this machine has no trusted certificate authorities (install ca-certificates)",
            ));
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(io::Error::other)?;
        Ok(config.with_root_certificates(roots).with_no_client_auth())
    }
}

fn certificates(path: &Path) -> io::Result<Vec<CertificateDer<'static>>> {
    let pem = std::fs::read(path)?;
    let certificates: Vec<_> =
        CertificateDer::pem_slice_iter(&pem).collect::<Result<_, _>>().map_err(io::Error::other)?;
    if certificates.is_empty() {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "no certificate in it"));
    }
    Ok(certificates)
}
