//! What the command is known by: a token, and certificates over TCP.

use std::env;
use std::path::{Path, PathBuf};

use clap::Args;
use forebay_client::Access;

use crate::error::CliError;

/// The longest file of a token or a certificate that is read.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// Flags that every verb takes. A token is no flag: flags of a process can be read by others.
#[derive(Debug, Args)]
pub(crate) struct AccessArgs {
    /// File with the token of the caller's domain [default: what is in FOREBAY_TOKEN, or none]
    #[arg(long, global = true, value_name = "FILE", env = "FOREBAY_TOKEN_FILE")]
    token_file: Option<PathBuf>,

    /// Who certifies the daemon over tcp:// (PEM); without it TCP is in the clear
    #[arg(long, global = true, value_name = "FILE", env = "FOREBAY_TLS_CA")]
    tls_ca: Option<PathBuf>,

    /// This side's certificate over tcp:// (PEM)
    #[arg(long, global = true, value_name = "FILE", env = "FOREBAY_TLS_CLIENT_CERT")]
    #[arg(requires = "tls_key")]
    tls_cert: Option<PathBuf>,

    /// Its key (PEM)
    #[arg(long, global = true, value_name = "FILE", env = "FOREBAY_TLS_CLIENT_KEY")]
    #[arg(requires = "tls_cert")]
    tls_key: Option<PathBuf>,
}

impl AccessArgs {
    /// Reads the files.
    pub(crate) fn read(&self) -> Result<Access, CliError> {
        let mut access = Access::new();
        if let Some(token) = self.token()? {
            access = access.token(&token)?;
        }
        let identity = match (&self.tls_cert, &self.tls_key) {
            (Some(cert), Some(key)) => Some((file(cert)?, file(key)?)),
            _ => None,
        };
        match &self.tls_ca {
            Some(ca) => Ok(access.tls(file(ca)?, identity)),
            None if identity.is_some() => {
                Err(CliError::bad_request("--tls-cert needs --tls-ca, which certifies the daemon"))
            }
            None => Ok(access),
        }
    }

    fn token(&self) -> Result<Option<String>, CliError> {
        let no_text = || std::io::Error::other("it is no text");
        if let Some(path) = &self.token_file {
            let text = String::from_utf8(file(path)?).map_err(|_secret| no_text());
            return text.map(Some).map_err(|error| CliError::local("read --token-file", error));
        }
        // Set to nothing it is as good as not set.
        let Some(token) = env::var_os("FOREBAY_TOKEN").filter(|token| !token.is_empty()) else {
            return Ok(None);
        };
        let token = token.into_string().map_err(|_secret| no_text());
        token.map(Some).map_err(|error| CliError::local("read FOREBAY_TOKEN", error))
    }
}

fn file(path: &Path) -> Result<Vec<u8>, CliError> {
    use std::io::Read;
    let what = || format!("read {}", path.display());
    let mut bytes = Vec::new();
    let opened = std::fs::File::open(path).map_err(|error| CliError::local(what(), error))?;
    let read = opened.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes);
    read.map_err(|error| CliError::local(what(), error))?;
    match bytes.len() as u64 > FILE_BYTES_MAX {
        true => Err(CliError::local(what(), std::io::Error::other("it is longer than 1 MiB"))),
        false => Ok(bytes),
    }
}
