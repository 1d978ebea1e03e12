//! Removes what nobody wants any more: images, logs, bundles. One task, which looks again whenever what is wanted changed;
//! it never runs while an image is being prepared, and keeps whatever an instance uses.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::sync::watch;
use tombolo_api::desired::Desired;
use tombolo_api::{Digest, RevisionKey};
use tombolo_oci::image::{Config, Document, MAX_DOCUMENT, choose, summary};
use tombolo_oci::store::Keep;
use tombolo_oci::{Platform, Store};

use super::{Inner, image, lock};
use crate::log_files;
use tombolo_agent_core::supervision::InstanceId;

/// Between attempts while images are being prepared.
const BUSY_PAUSE: Duration = Duration::from_millis(500);

/// After a change, so that several are one pass.
const SETTLE: Duration = Duration::from_millis(200);

/// What should stay.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Wanted {
    /// Nothing is removed before desired state is known.
    known: bool,
    revisions: BTreeSet<RevisionKey>,
    images: BTreeSet<Digest>,
    instances: BTreeSet<InstanceId>,
}

impl Wanted {
    pub(super) fn of(desired: &Desired, instances: &BTreeMap<InstanceId, RevisionKey>) -> Self {
        let named = |object| image::reference(object).ok().map(|(_, digest)| digest);
        Self {
            known: true,
            revisions: desired.revisions.keys().chain(instances.values()).cloned().collect(),
            images: desired.revisions.values().filter_map(|(_, object)| named(object)).collect(),
            instances: instances.keys().cloned().collect(),
        }
    }
}

/// The task; ends with the executor.
pub(super) async fn run(inner: Weak<Inner>, mut wanted: watch::Receiver<Wanted>) {
    while wanted.changed().await.is_ok() {
        tokio::time::sleep(SETTLE).await;
        loop {
            let Some(inner) = inner.upgrade() else { return };
            // Waiting for the lock would keep new images from being prepared behind a slow one.
            let Ok(_alone) = inner.collecting.try_write() else {
                drop(inner);
                tokio::time::sleep(BUSY_PAUSE).await;
                continue;
            };
            let wanted = wanted.borrow_and_update().clone();
            if wanted.known {
                let inner = inner.clone();
                // A panic in there is logged by its own hook; the next pass is another chance.
                let _ = tokio::task::spawn_blocking(move || collect(&inner, &wanted)).await;
            }
            break;
        }
    }
}

fn collect(inner: &Arc<Inner>, wanted: &Wanted) {
    remove_bundles(inner, wanted);
    let in_use = lock(&inner.in_use).clone();
    let keeps = |key: &RevisionKey| {
        wanted.revisions.contains(key) || in_use.values().any(|used| used.revision == *key)
    };
    let lives = |id: &InstanceId| wanted.instances.contains(id) || in_use.contains_key(id);
    if let Err(error) = log_files::collect(&inner.tools.state_dir, keeps, lives) {
        tracing::warn!(%error, "cannot remove old logs");
    }
    let mut keep = Keep::default();
    for digest in wanted.images.iter().copied().chain(in_use.values().filter_map(|used| used.image)) {
        keep_image(&inner.tools.images, &digest, &inner.platform, &mut keep);
    }
    match inner.tools.images.retain(&keep) {
        Ok(removed) if removed.bytes > 0 => tracing::info!(?removed, "removed images nobody wants"),
        Ok(_) => {}
        Err(error) => tracing::warn!(%error, "cannot remove images nobody wants"),
    }
}

fn remove_bundles(inner: &Inner, wanted: &Wanted) {
    // Listed before it is looked who uses them: one made meanwhile is not in the list.
    let Ok(entries) = fs::read_dir(inner.tools.run_dir.join("bundles")) else { return };
    let bundles: Vec<_> = entries.flatten().collect();
    let in_use = lock(&inner.in_use).clone();
    for bundle in bundles {
        let id = InstanceId(bundle.file_name().to_string_lossy().into_owned());
        if !wanted.instances.contains(&id) && !in_use.contains_key(&id) {
            let _ = fs::remove_dir_all(bundle.path());
        }
    }
}

/// Adds what there is of an image, complete or not: what was fetched of it need not be fetched again.
fn keep_image(store: &Store, digest: &Digest, platform: &Platform, keep: &mut Keep) {
    if let Ok(Some(summary)) = summary(store, digest, platform) {
        keep.blobs.extend(summary.blobs);
        keep.layers.extend(summary.diff_ids);
        return;
    }
    let mut next = Some(*digest);
    while let Some(digest) = next.take() {
        // Named before it is read: a download of it may be under way.
        if !keep.blobs.insert(digest) {
            return;
        }
        let Ok(content) = store.read_blob(&digest, MAX_DOCUMENT) else { return };
        match Document::parse(&digest, &content) {
            Ok(Document::Index(entries)) => {
                next = choose(&entries, platform).ok().map(|entry| entry.manifest.digest)
            }
            Ok(Document::Manifest(manifest)) => {
                keep.blobs.insert(manifest.config.digest);
                keep.blobs.extend(manifest.layers.iter().map(|layer| layer.digest));
                let config = store.read_blob(&manifest.config.digest, MAX_DOCUMENT).ok();
                let config = config.and_then(|content| Config::parse(&manifest.config.digest, &content).ok());
                keep.layers.extend(config.into_iter().flat_map(|config| config.diff_ids));
            }
            Err(_) => {}
        }
    }
}
