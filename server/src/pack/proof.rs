//! What was written, read again: an object counts only once every frame of it came back from its
//! store and decoded to the bytes whose digest was taken when they came from the source.

use std::sync::Arc;

use forebay_codec::coding::Coding;
use forebay_codec::manifest::{PackedObject, PackedSource};
use forebay_origin::ObjectMeta;

use super::PackError;
use super::object::{Shop, table_of};
use super::place::facts;
use super::row::Row;
use crate::staging::StagingShare;

/// Frames of an object that are read again at a time.
const FRAMES_AT_ONCE: usize = 8;

impl Shop {
    /// Reads an object again; what its store says of it now. One that is not what it should be is
    /// removed.
    pub(super) async fn prove(&self, packed: &PackedObject) -> Result<PackedSource, PackError> {
        match self.proved(packed).await {
            Err(damaged @ PackError::Damaged { .. }) => {
                self.place.delete(&packed.stored_name).await?;
                Err(damaged)
            }
            proved => proved,
        }
    }

    async fn proved(&self, packed: &PackedObject) -> Result<PackedSource, PackError> {
        let meta = self.place.head(&packed.stored_name).await?;
        if meta.bytes != packed.stored_bytes {
            return Err(damaged(packed, format!("it has {} bytes there", meta.bytes)));
        }
        let coding = packed.coding(self.parameters.frame_bytes);
        let coding = Arc::new(coding.map_err(|problem| damaged(packed, problem.to_string()))?);
        let sized = coding.frames().iter().map(|frame| frame.stored_bytes + frame.plain_bytes);
        let mut row =
            Row::new(&self.staging, FRAMES_AT_ONCE, sized.enumerate(), |number, share| {
                self.prove_frame(packed, &meta, (&coding, number), share)
            });
        while let Some(bytes) = row.next().await? {
            self.steps.done(bytes);
        }
        if packed.coded {
            self.prove_table(packed, &meta).await?;
        }
        Ok(facts(&meta.pin, meta.bytes))
    }

    async fn prove_frame(
        &self,
        packed: &PackedObject,
        meta: &ObjectMeta,
        (coding, number): (&Arc<Coding>, usize),
        share: StagingShare,
    ) -> Result<u64, PackError> {
        let Some(frame) = coding.frames().get(number).cloned() else { return Ok(0) };
        let mut stored = share.buffer(usize::try_from(frame.stored_bytes).unwrap_or(usize::MAX))?;
        self.place.read(meta, frame.stored_range(), stored.as_mut_slice()).await?;
        let (coders, coding) = (Arc::clone(&self.coders), Arc::clone(coding));
        let coded = packed.coded;
        let plain_bytes = if coded { frame.plain_bytes } else { 0 };
        let mut plain = share.buffer(usize::try_from(plain_bytes).unwrap_or(usize::MAX))?;
        let work = move || {
            if !coded {
                return Ok(*blake3::hash(stored.as_slice()).as_bytes());
            }
            coders.with_decoder(|decoder| {
                decoder.decode(&coding, number, stored.as_slice(), plain.as_mut_slice())
            })?;
            Ok::<_, forebay_codec::decode::DecodeError>(*blake3::hash(plain.as_slice()).as_bytes())
        };
        let seen = self.workers.run(work).await?;
        let seen = seen.map_err(|problem| damaged(packed, problem.to_string()))?;
        if Some(seen) != frame.digest {
            let at = frame.plain_offset;
            return Err(damaged(packed, format!("its bytes from {at} on are others")));
        }
        Ok(frame.plain_bytes)
    }

    async fn prove_table(&self, packed: &PackedObject, meta: &ObjectMeta) -> Result<(), PackError> {
        let sizes = (self.parameters.frame_bytes, packed.bytes);
        let table = table_of(&packed.frames, sizes, !packed.planes.is_empty())?;
        let mut seen = vec![0; table.len()];
        let begin = meta.bytes.saturating_sub(table.len() as u64);
        self.place.read(meta, begin..meta.bytes, &mut seen).await?;
        match seen == table {
            true => Ok(()),
            false => Err(damaged(packed, "its seek table is another".to_owned())),
        }
    }
}

fn damaged(packed: &PackedObject, problem: String) -> PackError {
    PackError::Damaged { name: packed.stored_name.clone(), problem }
}
