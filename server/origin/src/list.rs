//! Listing what a store can list: pages of keys in the clouds, a directory walk for files.
//!
//! For web servers, which can list nothing, see [`crate::web`].

use futures::{StreamExt, TryStreamExt};
use object_store::list::{PaginatedListOptions, PaginatedListResult, PaginatedListStore};

use crate::error::{OriginError, OriginErrorKind};
use crate::fault::Fault;
use crate::key::ObjectKey;
use crate::object::{ObjectOrigin, meta_of};
use crate::sink::draft;
use crate::store::{ObjectMeta, OriginStore};

/// Keys asked for in one page of a listing: what S3 gives at most.
const PAGE_KEYS: usize = 1000;
/// The largest page of a listing, or WebDAV answer: a thousand keys of 1 KiB, escaped, and as much
/// again.
pub(crate) const LISTING_BYTES_MAX: u64 = 16 << 20;
/// Folder markers that a listing may have beyond its limit of objects.
const MARKERS_MAX: usize = 4096;
/// Requests at a time that look closer at what a listing said.
pub(crate) const LOOKS_AT_ONCE: usize = 8;

impl ObjectOrigin {
    pub(crate) async fn list_pages(
        &self,
        pages: &dyn PaginatedListStore,
        prefix: &ObjectKey,
        limit: usize,
    ) -> Result<Vec<ObjectMeta>, OriginError> {
        let text = (!prefix.is_root()).then(|| format!("{prefix}/"));
        let mut found: Vec<ObjectMeta> = Vec::new();
        let mut page_token = None;
        loop {
            let options = PaginatedListOptions {
                max_keys: Some(limit.saturating_add(1).min(PAGE_KEYS)),
                page_token: page_token.take(),
                ..PaginatedListOptions::default()
            };
            let page = self.page(pages, prefix, text.as_deref(), options).await?;
            for meta in &page.result.objects {
                found.extend(self.listed(meta, prefix)?);
            }
            // Folder markers do not count, but even they have an end.
            self.check_limit(found.len(), prefix, limit.saturating_add(MARKERS_MAX))?;
            page_token = page.page_token;
            if page_token.is_none() {
                let found = self.without_markers(found).await?;
                self.check_limit(found.len(), prefix, limit)?;
                return Ok(found);
            }
        }
    }

    async fn page(
        &self,
        pages: &dyn PaginatedListStore,
        prefix: &ObjectKey,
        text: Option<&str>,
        options: PaginatedListOptions,
    ) -> Result<PaginatedListResult, OriginError> {
        let mut tries = self.tries(prefix, None);
        loop {
            let attempt = tries.begin(0).await?;
            let mut options = options.clone();
            options.extensions.insert(attempt.probe.with_body_max(LISTING_BYTES_MAX));
            let page = attempt.run(pages.list_paginated(text, options)).await;
            let seen = attempt.probe.seen();
            let fault = match page {
                // object_store reads an error document as a page with nothing on it.
                Ok(page) => match Fault::in_good_answer(&seen) {
                    None => {
                        tries.done(attempt, 0);
                        return Ok(page);
                    }
                    Some(fault) => fault,
                },
                Err(error) => Fault::of(&error, &seen),
            };
            tries.failed(attempt, 0, fault).await?;
        }
    }

    /// object_store cuts the trailing slash off the key of a folder marker, which makes it look
    /// like an empty object. There are few of either, so each is asked for: a marker is not there.
    async fn without_markers(
        &self,
        found: Vec<ObjectMeta>,
    ) -> Result<Vec<ObjectMeta>, OriginError> {
        let (empty, mut kept): (Vec<_>, Vec<_>) = found.into_iter().partition(|m| m.bytes == 0);
        let looked: Vec<Option<ObjectMeta>> = futures::stream::iter(empty)
            .map(|meta| async move { absent_is_none(self.head(&meta.key).await) })
            .buffer_unordered(LOOKS_AT_ONCE)
            .try_collect()
            .await?;
        kept.extend(looked.into_iter().flatten());
        Ok(kept)
    }

    pub(crate) async fn list_files(
        &self,
        prefix: &ObjectKey,
        limit: usize,
    ) -> Result<Vec<ObjectMeta>, OriginError> {
        let path = self.path(prefix)?;
        let mut tries = self.tries(prefix, None);
        let attempt = tries.begin(0).await?;
        let mut walk = self.store.list(Some(&path));
        let mut found = Vec::new();
        while let Some(meta) = walk.next().await {
            let meta = match meta {
                Ok(meta) => meta,
                Err(error) => {
                    let fault = Fault::of_file(&error);
                    tries.failed(attempt, 0, fault).await?;
                    return Ok(found);
                }
            };
            // What a sink is writing, or left when it was killed, is no object.
            if meta.location.filename().is_some_and(draft::is_name) {
                continue;
            }
            found.extend(self.listed(&meta, prefix)?);
            self.check_limit(found.len(), prefix, limit)?;
        }
        Ok(found)
    }

    /// A listed object, unless it is the prefix itself.
    pub(crate) fn listed(
        &self,
        meta: &object_store::ObjectMeta,
        prefix: &ObjectKey,
    ) -> Result<Option<ObjectMeta>, OriginError> {
        let key = ObjectKey::parse(meta.location.as_ref()).map_err(|error| {
            OriginError::new(OriginErrorKind::Unsupported, prefix, error.to_string())
                .at(&self.origin)
        })?;
        if key.relative_to(prefix).is_none() {
            return Ok(None);
        }
        Ok(Some(meta_of(&key, meta)))
    }

    pub(crate) fn check_limit(
        &self,
        found: usize,
        prefix: &ObjectKey,
        limit: usize,
    ) -> Result<(), OriginError> {
        if found <= limit {
            return Ok(());
        }
        let text = format!("more than {limit} objects under it");
        Err(OriginError::new(OriginErrorKind::LimitExceeded, prefix, text).at(&self.origin))
    }
}

/// `None` for an object that is not there.
pub(crate) fn absent_is_none(
    head: Result<ObjectMeta, OriginError>,
) -> Result<Option<ObjectMeta>, OriginError> {
    match head {
        Ok(meta) => Ok(Some(meta)),
        Err(error) if error.kind == OriginErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}
