//! What a caller is known by: the token of its security domain, and certificates over TCP.
//!
//! Both are secrets that no `Debug` shows. A token goes out with every call, over the unix socket or
//! over TLS; in the clear it goes to this machine only.

use std::fmt;

use forebay_proto::Reason;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Certificate, ClientTlsConfig, Identity};

use crate::error::ClientError;

/// The longest token that is taken: all headers of a call have 16 KiB.
const TOKEN_BYTES_MAX: usize = 4096;

/// What a [`Client`](crate::Client) is known by; nothing but its uid by default.
#[derive(Clone, Default)]
pub struct Access {
    authorization: Option<MetadataValue<Ascii>>,
    tls: Option<Tls>,
}

/// Whom to trust over TCP, and who this is.
#[derive(Clone)]
struct Tls {
    ca: Vec<u8>,
    /// Certificate and key.
    identity: Option<(Vec<u8>, Vec<u8>)>,
}

impl Access {
    /// Nothing but the uid.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// With the token of a domain: 1 to 4096 visible ASCII characters. Space around it, such as
    /// the end of a file's line, is left out.
    pub fn token(self, token: &str) -> Result<Self, ClientError> {
        let token = token.trim_ascii();
        let visible = token.bytes().all(|byte| byte.is_ascii_graphic());
        let fits = (1..=TOKEN_BYTES_MAX).contains(&token.len()) && visible;
        let value = format!("Bearer {token}").parse::<MetadataValue<Ascii>>();
        let Some(mut value) = value.ok().filter(|_| fits) else {
            let message = format!(
                "the token is not 1 to {TOKEN_BYTES_MAX} visible ASCII characters without spaces"
            );
            return Err(ClientError::new(Reason::BadRequest, message));
        };
        value.set_sensitive(true);
        Ok(Self { authorization: Some(value), ..self })
    }

    /// With TLS over TCP: `ca` certifies the daemon; `identity`, a certificate and its key, is shown
    /// to it. All in PEM.
    #[must_use]
    pub fn tls(self, ca: Vec<u8>, identity: Option<(Vec<u8>, Vec<u8>)>) -> Self {
        Self { tls: Some(Tls { ca, identity }), ..self }
    }

    /// What goes out as `authorization`.
    pub(crate) fn authorization(&self) -> Option<&MetadataValue<Ascii>> {
        self.authorization.as_ref()
    }

    /// What a connection over TCP is made with, if not in the clear.
    pub(crate) fn tls_config(&self) -> Option<ClientTlsConfig> {
        let Tls { ca, identity } = self.tls.as_ref()?;
        let config = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(ca));
        Some(match identity {
            Some((cert, key)) => config.identity(Identity::from_pem(cert, key)),
            None => config,
        })
    }
}

impl fmt::Debug for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = |is_there: bool| if is_there { "***" } else { "none" };
        f.debug_struct("Access")
            .field("token", &shown(self.authorization.is_some()))
            .field("tls", &shown(self.tls.is_some()))
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_one_word_and_is_shown_by_nothing() {
        let access = Access::new().token("canary-42\n").unwrap().tls(b"ca".to_vec(), None);
        assert_eq!(access.authorization().unwrap(), "Bearer canary-42");
        let shown = format!("{access:?} {:?}", access.authorization());
        assert!(!shown.contains("canary") && shown.contains("***"), "{shown}");
        for bad in ["", " \n", "two words", "a\nb", "\u{e9}", &"x".repeat(TOKEN_BYTES_MAX + 1)] {
            let error = Access::new().token(bad).unwrap_err();
            assert_eq!(error.reason(), Reason::BadRequest);
            assert!(bad.is_empty() || !error.to_string().contains("two"), "{error}");
        }
    }
}
