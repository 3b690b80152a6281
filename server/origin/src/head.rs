//! Heads: size, version and checksums of one object.
//!
//! A store that tells its checksums only to who asks is asked, unless it is known to refuse that or
//! its settings say to leave checksums alone: then none are told either.
//! Of a web server that does not answer a HEAD, or may not because a signature covers the method,
//! the first byte is asked for.

use object_store::path::Path;
use object_store::{GetOptions, GetRange, ObjectStore};

use crate::checksum::{Asking, Checksums};
use crate::error::OriginError;
use crate::fault::Fault;
use crate::key::ObjectKey;
use crate::object::{Backend, ObjectOrigin, meta_of};
use crate::pin::Pin;
use crate::store::ObjectMeta;
use crate::transport::probe::Probe;

impl ObjectOrigin {
    pub(crate) async fn head_of_key(&self, key: &ObjectKey) -> Result<ObjectMeta, OriginError> {
        let path = self.path(key)?;
        let Some(asking) = self.asking().filter(|asking| asking.is_in_use()) else {
            return self.head_from(&*self.store, key, &path).await;
        };
        match self.head_from(&*asking.store, key, &path).await {
            Err(error) if asking.may_be_why(&error) => {
                let plain = self.head_from(&*self.store, key, &path).await;
                if plain.is_ok() {
                    asking.is_refused(&self.origin, &error);
                }
                plain
            }
            answer => {
                answer.iter().for_each(|_| asking.is_understood());
                answer
            }
        }
    }

    fn asking(&self) -> Option<&Asking> {
        match &self.backend {
            Backend::Cloud(cloud) => cloud.asking.as_ref(),
            Backend::Web(_) | Backend::File { .. } => None,
        }
    }

    async fn head_from(
        &self,
        store: &dyn ObjectStore,
        key: &ObjectKey,
        path: &Path,
    ) -> Result<ObjectMeta, OriginError> {
        let mut tries = self.tries(key, None);
        loop {
            let attempt = tries.begin(0).await?;
            match attempt.run(self.head_once(store, key, path, &attempt.probe)).await {
                Ok(meta) => {
                    tries.done(attempt, 0);
                    return Ok(meta);
                }
                Err(fault) => tries.failed(attempt, 0, fault).await?,
            }
        }
    }

    pub(crate) async fn head_once(
        &self,
        store: &dyn ObjectStore,
        key: &ObjectKey,
        path: &Path,
        probe: &Probe,
    ) -> Result<ObjectMeta, Fault> {
        if matches!(&self.backend, Backend::Web(web) if web.signed) {
            return self.head_by_get(key, path, probe).await;
        }
        let mut options = GetOptions { head: true, ..GetOptions::default() };
        options.extensions.insert(probe.clone());
        let error = match self.get(store, path, options).await? {
            Ok(answer) => return Ok(self.head_of(key, &answer.meta, probe)),
            Err(error) => error,
        };
        let seen = probe.seen();
        // Web servers exist that do not know HEAD, or answer it without a length.
        let mute = matches!(seen.status, Some(405 | 501))
            || (seen.status == Some(200) && seen.content_length.is_none());
        if mute && seen.broke.is_none() && matches!(self.backend, Backend::Web(_)) {
            return self.head_by_get(key, path, probe).await;
        }
        Err(self.fault_of(&error, &seen))
    }

    /// What a head says, checksums and all.
    fn head_of(
        &self,
        key: &ObjectKey,
        meta: &object_store::ObjectMeta,
        probe: &Probe,
    ) -> ObjectMeta {
        if !self.checksums {
            return meta_of(key, meta);
        }
        let seen = probe.seen();
        let mut checksums = seen.checksums;
        if self.tags_are_md5 {
            checksums.md5 = checksums.md5.or(seen.tag_md5);
        }
        ObjectMeta { checksums, ..meta_of(key, meta) }
    }

    /// Metadata from the answer to a GET of the first byte.
    async fn head_by_get(
        &self,
        key: &ObjectKey,
        path: &Path,
        probe: &Probe,
    ) -> Result<ObjectMeta, Fault> {
        let range = Some(GetRange::Bounded(0..1));
        let mut options = GetOptions { range, ..GetOptions::default() };
        options.extensions.insert(probe.clone());
        let error = match self.store.get_opts(path, options).await {
            Ok(answer) => return Ok(self.head_of(key, &answer.meta, probe)),
            Err(error) => error,
        };
        let seen = probe.seen();
        let empty = seen.status == Some(416) && seen.content_range.as_deref() == Some("bytes */0");
        let empty = empty || (seen.status == Some(200) && seen.content_length == Some(0));
        if empty {
            let pin = Pin { etag: seen.etag, ..Pin::default() };
            let checksums = Checksums::default();
            return Ok(ObjectMeta { key: key.clone(), bytes: 0, pin, checksums });
        }
        Err(Fault::of(&error, &seen))
    }
}
