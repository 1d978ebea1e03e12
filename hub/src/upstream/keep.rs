//! What of other registries' content is kept: all that a revision names, and of the rest what was used lately, up to a bound.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::time::{Duration, SystemTime};

use tokio_util::sync::CancellationToken;
use tombolo_api::Digest;
use tombolo_oci::image::MAX_DOCUMENT;
use tombolo_oci::store::{Keep, Removed};
use tombolo_oci::{ImageReference, Store, StoreError};

use super::{Upstreams, blocking};
use crate::catalog::State;
use crate::config::CacheConfig;
use crate::registry::Contents;

/// Between two passes at most, and at least.
const PAUSE_MAX: Duration = Duration::from_secs(3600);
const PAUSE_MIN: Duration = Duration::from_millis(500);

/// After something came, so that what comes with it is there too.
const SETTLE: Duration = Duration::from_secs(5);

impl Upstreams {
    /// Keeps the cache within its bounds until `stop`.
    pub(crate) async fn keep_clean(self, config: CacheConfig, stop: CancellationToken) {
        let (unused, max) = (Duration::from_secs(config.unused_s), config.max_mib << 20);
        let pause = (unused / 2).clamp(PAUSE_MIN, PAUSE_MAX);
        while stop.run_until_cancelled(self.due(pause, max)).await.is_some() {
            match self.clean(unused, max).await {
                Ok(removed) if removed == Removed::default() => {}
                Ok(Removed { blobs, bytes, .. }) => {
                    tracing::info!(blobs, bytes, "the cache removed what no revision names");
                }
                Err(error) => {
                    tracing::warn!(error = &error as &dyn std::error::Error, "the cache cannot be cleaned")
                }
            }
        }
    }

    /// Returns after `pause`, or when the cache has grown beyond `max`.
    async fn due(&self, pause: Duration, max: u64) {
        let grown = async {
            loop {
                self.0.grown.notified().await;
                tokio::time::sleep(SETTLE).await;
                let cache = self.0.cache.clone();
                let held = blocking(move || sizes(&cache)).await;
                // What cannot be listed cannot be cleaned either, which the pass says.
                if held.is_ok_and(|sizes| sizes.values().sum::<u64>() <= max) {
                    continue;
                }
                return;
            }
        };
        tokio::select! {
            () = grown => {}
            () = tokio::time::sleep(pause) => {}
        }
    }

    /// One pass.
    pub(super) async fn clean(&self, unused: Duration, max: u64) -> Result<Removed, StoreError> {
        let roots = roots(&self.0.state.borrow().clone());
        let running: BTreeSet<Digest> = self.0.fetches.running().keys().copied().collect();
        let cache = self.0.cache.clone();
        blocking(move || {
            let mut keep = named(&cache, roots)?;
            keep.extend(running);
            let before = SystemTime::now().checked_sub(unused).unwrap_or(SystemTime::UNIX_EPOCH);
            keep.extend(lately(&cache, &keep, before, max)?);
            cache.retain(&Keep { blobs: keep, layers: BTreeSet::new() })
        })
        .await
    }
}

/// Says that content was used.
pub(super) fn touch(cache: &Store, digest: &Digest) {
    let file = File::options().write(true).open(cache.blob_path(digest));
    if let Err(error) = file.and_then(|file| file.set_modified(SystemTime::now())) {
        tracing::debug!(%digest, %error, "cannot note that content was used");
    }
}

/// The images that revisions name.
fn roots(state: &State) -> BTreeSet<Digest> {
    let revisions = state.snapshot.revisions.values();
    let images = revisions.flat_map(|revision| {
        let pinned = revision.status.container_statuses.iter().map(|status| status.image_digest.as_str());
        revision.spec.containers.iter().map(|container| container.image.as_str()).chain(pinned)
    });
    let references = images.filter_map(|image| image.parse::<ImageReference>().ok());
    references.filter_map(|it| it.target.digest()).collect()
}

/// Everything that documents lead to.
fn named(cache: &Store, roots: BTreeSet<Digest>) -> Result<BTreeSet<Digest>, StoreError> {
    let mut found = roots.clone();
    let mut waiting: Vec<Digest> = roots.into_iter().collect();
    while let Some(digest) = waiting.pop() {
        let content = match cache.read_blob(&digest, MAX_DOCUMENT) {
            Err(StoreError::Missing(_) | StoreError::DigestMismatch { .. }) => continue,
            content => content?,
        };
        let Ok(contents) = Contents::parse(&digest, &content) else { continue };
        found.extend(contents.blobs);
        waiting.extend(contents.manifests.into_iter().filter(|manifest| found.insert(*manifest)));
    }
    Ok(found)
}

/// Everything that the cache holds, downloads that broke off too.
fn sizes(cache: &Store) -> Result<BTreeMap<Digest, u64>, StoreError> {
    let mut sizes = cache.blobs()?;
    for (digest, size) in cache.partials()? {
        *sizes.entry(digest).or_default() += size;
    }
    Ok(sizes)
}

/// What was used since `before`, the last used first, as far as it fits beside what is kept anyway. Downloads that broke off
/// count like content.
fn lately(
    cache: &Store,
    keep: &BTreeSet<Digest>,
    before: SystemTime,
    max: u64,
) -> Result<BTreeSet<Digest>, StoreError> {
    let sizes = sizes(cache)?;
    let used = |digest: &Digest| {
        let partial = cache.root().join("partial").join(digest.hex());
        let time = |path: &std::path::Path| path.metadata().and_then(|metadata| metadata.modified()).ok();
        time(&cache.blob_path(digest)).max(time(&partial)).unwrap_or(SystemTime::UNIX_EPOCH)
    };
    let mut total: u64 = keep.iter().filter_map(|digest| sizes.get(digest)).sum();
    let mut others: Vec<_> = sizes
        .iter()
        .filter(|(digest, _)| !keep.contains(digest))
        .map(|(digest, size)| (used(digest), *digest, *size))
        .collect();
    others.sort_unstable_by(|a, b| b.cmp(a));
    let mut fitting = BTreeSet::new();
    for (used, digest, size) in others {
        total = total.saturating_add(size);
        if used >= before && total <= max {
            fitting.insert(digest);
        }
    }
    Ok(fitting)
}
