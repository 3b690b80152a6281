//! What a C caller is known by: a token and certificates, from the files that its options name.
//!
//! They are read once, at the connection. Errors name the option and the file, never what is in it.

use std::ffi::c_char;
use std::fs::File;
use std::io::Read;

use forebay_client::Access;

use crate::memory::optional_text;
use crate::options::FbConnectOptions;
use crate::status::Fault;

/// The longest file of a token or a certificate that is read.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// The access that the options mean.
///
/// # Safety
///
/// Every text is as its field says.
pub(crate) unsafe fn read(options: &FbConnectOptions) -> Result<Access, Fault> {
    // SAFETY: as this function's own contract, here and in the calls below.
    let token = unsafe { optional_text(options.token, "token") }?;
    // SAFETY: as above.
    let of_file = unsafe { content(options.token_file, "token_file") }?;
    // SAFETY: as above.
    let ca = unsafe { content(options.tls_ca_file, "tls_ca_file") }?;
    // SAFETY: as above.
    let cert = unsafe { content(options.tls_cert_file, "tls_cert_file") }?;
    // SAFETY: as above.
    let key = unsafe { content(options.tls_key_file, "tls_key_file") }?;
    let mut access = Access::new();
    access = match (token, of_file) {
        (None, None) => access,
        (Some(token), None) => access.token(token)?,
        (None, Some(bytes)) => {
            let token = String::from_utf8(bytes);
            access.token(&token.map_err(|_secret| Fault::invalid("token_file is no text"))?)?
        }
        (Some(_), Some(_)) => return Err(Fault::invalid("token and token_file are both given")),
    };
    let identity = match (cert, key) {
        (None, None) => None,
        (Some(cert), Some(key)) => Some((cert, key)),
        _ => return Err(Fault::invalid("tls_cert_file and tls_key_file need each other")),
    };
    match (ca, identity) {
        (Some(ca), identity) => Ok(access.tls(ca, identity)),
        (None, None) => Ok(access),
        (None, Some(_)) => {
            Err(Fault::invalid("tls_cert_file needs tls_ca_file, which certifies the daemon"))
        }
    }
}

/// What is in the file that an option names; none if it names none.
///
/// # Safety
///
/// `path` is NULL or ends with a NUL.
unsafe fn content(path: *const c_char, what: &str) -> Result<Option<Vec<u8>>, Fault> {
    // SAFETY: as this function's own contract.
    let Some(path) = unsafe { optional_text(path, what) }? else { return Ok(None) };
    let mut bytes = Vec::new();
    let read =
        File::open(path).and_then(|file| file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes));
    match read {
        Ok(length) if length as u64 <= FILE_BYTES_MAX => Ok(Some(bytes)),
        Ok(_) => Err(Fault::invalid(format!("{what}: {path} is longer than 1 MiB"))),
        Err(error) => Err(Fault::invalid(format!("{what}: {path}: {error}"))),
    }
}
