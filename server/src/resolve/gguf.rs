//! The tensors of GGUF objects.
//!
//! The header says nowhere how long it is, so it is read in steps: the parser says how much of the
//! object's beginning it needs, at least twice as much each time, up to its own bound. Loading
//! needs none of this: an object that the parser does not understand (an old version, another byte
//! order) is a plain object, as it would be under another name.

use forebay_codec::gguf::{self, GgufError, Parsed};
use forebay_codec::tensor::TensorEntry;

use super::manifest::Object;
use super::{Listing, ResolveError};

impl Listing<'_> {
    /// The tensors of one object, and the size of its header.
    pub(super) async fn gguf_header(
        &self,
        object: &Object,
    ) -> Result<(Vec<TensorEntry>, u64), ResolveError> {
        let headers = &self.resolver.headers;
        let object_bytes = object.bytes;
        let parse = move |bytes: &[u8]| gguf::parse(bytes, object_bytes);
        let whole = move |bytes: &[u8]| match gguf::parse(bytes, object_bytes)? {
            Parsed::Tensors { tensors, header_bytes } => Ok((tensors, header_bytes)),
            Parsed::Need(needed) => Err(GgufError::TooLong { needed, object: bytes.len() as u64 }),
        };
        if let Some(kept) = headers.kept(object, whole).await? {
            return Ok(kept);
        }
        let mut wanted = gguf::HEADER_GUESS_BYTES.min(object.bytes);
        loop {
            // From the beginning each time: what is held then has room.
            let _room = self.room_for(object, 0, wanted).await?;
            let bytes = self.read_decoded(object, 0, wanted).await?;
            let (parsed, mut bytes) = headers.parsed(bytes, parse).await?;
            match parsed {
                Ok(Parsed::Need(needed)) if needed > wanted => wanted = needed,
                Ok(Parsed::Tensors { tensors, header_bytes }) => {
                    bytes.truncate(usize::try_from(header_bytes).unwrap_or(bytes.len()));
                    headers.keep(object, bytes);
                    return Ok((tensors, header_bytes));
                }
                Ok(Parsed::Need(_)) => return Ok((Vec::new(), 0)),
                Err(problem) => {
                    tracing::debug!(object = object.name, %problem, "it is taken as it is");
                    return Ok((Vec::new(), 0));
                }
            }
        }
    }
}
