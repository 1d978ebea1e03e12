//! Removes content that no repository has, and blobs from repositories whose manifests do not name them, once no push has
//! used them for a while. What a manifest names stays, and manifests stay until they are deleted.
//!
//! Must not know who wants an image.

use std::collections::BTreeSet;
use std::sync::PoisonError;
use std::time::{Duration, SystemTime};

use tokio_util::sync::CancellationToken;
use tombolo_api::Digest;
use tombolo_oci::{Repository, StoreError};

use super::Registry;

/// Between two passes at most: each reads every manifest.
const PAUSE_MAX: Duration = Duration::from_secs(3600);

/// Between two passes at least.
const PAUSE_MIN: Duration = Duration::from_millis(500);

/// What a pass removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Collected {
    /// Blobs taken from a repository.
    pub(super) links: usize,
    /// Content that nobody had any more, and its bytes.
    pub(super) blobs: usize,
    pub(super) bytes: u64,
}

impl Registry {
    /// Collects what no push has used for `grace`, again and again until `stop`.
    pub(crate) async fn keep_clean(self, grace: Duration, stop: CancellationToken) {
        let pause = (grace / 2).clamp(PAUSE_MIN, PAUSE_MAX);
        while stop.run_until_cancelled(tokio::time::sleep(pause)).await.is_some() {
            let registry = self.clone();
            let before = SystemTime::now().checked_sub(grace).unwrap_or(SystemTime::UNIX_EPOCH);
            match tokio::task::spawn_blocking(move || registry.collect(before)).await {
                Ok(Ok(collected)) if collected == Collected::default() => {}
                Ok(Ok(Collected { links, blobs, bytes })) => {
                    tracing::info!(links, blobs, bytes, "the registry removed what no manifest names");
                }
                Ok(Err(error)) => {
                    tracing::warn!(error = &error as &dyn std::error::Error, "the registry cannot be cleaned")
                }
                Err(error) => tracing::error!(%error, "cleaning the registry failed"),
            }
        }
    }

    /// Collects what no push has used since `before`. Blocks.
    pub(super) fn collect(&self, before: SystemTime) -> Result<Collected, StoreError> {
        let mut collected = Collected::default();
        let mut had = BTreeSet::new();
        for repository in &self.0.names.repositories()? {
            let named = match self.named_in(repository) {
                // What a damaged manifest names cannot be known: all that its repository has stays.
                Err(error @ StoreError::DigestMismatch { .. }) => {
                    tracing::error!(%repository, %error, "a manifest is damaged: push it again");
                    self.0.names.blobs(repository)?.into_iter().collect()
                }
                named => named?,
            };
            for digest in self.0.names.blobs(repository)? {
                if named.contains(&digest) || !self.unlink(repository, &digest, before)? {
                    had.insert(digest);
                } else {
                    collected.links += 1;
                }
            }
            had.extend(self.0.names.manifests_of(repository)?);
        }
        for (digest, size) in self.0.images.blobs()? {
            if !had.contains(&digest) && self.remove(&digest, before)? {
                collected.blobs += 1;
                collected.bytes += size;
            }
        }
        let _alone = self.0.collecting.write().unwrap_or_else(PoisonError::into_inner);
        self.0.names.forget_other_names(|digest| self.0.images.contains(digest))?;
        Ok(collected)
    }

    /// Takes a blob from a repository, unless a push used it since; whether it was taken.
    fn unlink(
        &self,
        repository: &Repository,
        digest: &Digest,
        before: SystemTime,
    ) -> Result<bool, StoreError> {
        let _alone = self.0.collecting.write().unwrap_or_else(PoisonError::into_inner);
        match self.0.names.blob_used(repository, digest)? {
            Some(used) if used < before => self.0.names.remove_blob(repository, digest),
            _ => Ok(false),
        }
    }

    /// Removes content, unless it came or was named since; whether it was removed.
    fn remove(&self, digest: &Digest, before: SystemTime) -> Result<bool, StoreError> {
        let _alone = self.0.collecting.write().unwrap_or_else(PoisonError::into_inner);
        let came = self.0.images.blob_path(digest).metadata().and_then(|metadata| metadata.modified());
        if came.is_ok_and(|came| came >= before) {
            return Ok(false);
        }
        let names = &self.0.names;
        for repository in names.repositories()? {
            if names.has_blob(&repository, digest) || names.manifest(&repository, digest)?.is_some() {
                return Ok(false);
            }
        }
        self.0.images.remove_blob(digest)?;
        Ok(true)
    }
}

#[cfg(test)]
mod tests;
