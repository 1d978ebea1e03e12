//! One bundle, taken: judged, its images made complete, then its manifest and objects put in force in one step.
//!
//! ```text
//! open ─▶ manifest for me ─▶ judge ─▶ objects ─▶ images: documents ─▶ room ─▶ layers ─▶ take (fsync)
//! ```
//!
//! Until the last step the node is as it was. Broken off anywhere, the next attempt goes on with what is in the store.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::sync::{mpsc, oneshot};
use tombolo_api::desired::Desired;
use tombolo_api::frame::CONTENT_MAX;
use tombolo_api::manifest::{Manifest, Version};
use tombolo_api::{Digest, NodeId};
use tombolo_oci::{Archive, ImageReference, Store, StoreError};

use super::error::ImportError;
use super::images::{self, Copying, blocking};
use super::record::Bundles;
use crate::accepted::{Accepted, unverified};
use crate::keep::Keep;
use crate::sync::{Offer, OfferVerdict, Received};

/// Attempts to have all images complete at once: what was there first may have been collected meanwhile.
const ATTEMPTS_MAX: usize = 3;

/// What importing works with.
pub(crate) struct Ground {
    pub(crate) me: NodeId,
    pub(crate) keep: Keep,
    pub(crate) images: Store,
    /// To whoever puts desired state in force.
    pub(crate) sync: mpsc::Sender<Received>,
    /// To whoever removes images that nothing needs; `None`: nobody does, where no agent runs.
    pub(crate) room: Option<mpsc::Sender<RoomWanted>>,
}

/// So many bytes are to be free; told whether anything went for it.
#[derive(Debug)]
pub(crate) struct RoomWanted {
    pub(crate) bytes: u64,
    pub(crate) answer: oneshot::Sender<bool>,
}

/// What was imported.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Imported {
    pub(super) version: Version,
    /// The manifest was in force before.
    pub(super) is_same: bool,
    pub(super) objects: usize,
    pub(super) images: usize,
    /// Bytes of layers that the node lacked.
    pub(super) copied: u64,
}

impl fmt::Display for Imported {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Version { epoch, generation } = self.version;
        let (objects, images, copied) = (self.objects, self.images, self.copied.div_ceil(1 << 20));
        let what = match (self.is_same, self.copied) {
            (true, 0) => "was in force and complete already",
            (true, _) => "was in force already, its images are complete now",
            (false, _) => "is in force",
        };
        write!(
            f,
            "generation {generation} (epoch {epoch}) {what}: {objects} objects, {images} images, {copied} MiB copied"
        )
    }
}

/// What came of a bundle.
pub(super) type Outcome = Result<Imported, ImportError>;

impl Ground {
    /// Imports the bundle at `path`, unless it is `settled` already; then there is nothing to tell.
    pub(super) async fn import(
        &self,
        path: &Path,
        bundles: &mut Bundles,
        skip_settled: bool,
        copying: &Copying,
    ) -> Option<Outcome> {
        let _waiting = copying.until_dropped();
        let path: PathBuf = path.to_owned();
        let archive = match blocking(move || Ok(Archive::open(&path)?)).await {
            Ok(archive) => Arc::new(archive),
            Err(error) => return Some(Err(error)),
        };
        let id = archive.id;
        if skip_settled && bundles.is_settled(&id) {
            return None;
        }
        let result = self.take(&archive, bundles, copying).await;
        match &result {
            Ok(_) => bundles.settle(id).await,
            Err(error) if error.is_final() => bundles.settle(id).await,
            Err(_) => {}
        }
        Some(result)
    }

    async fn take(
        &self,
        archive: &Arc<Archive>,
        bundles: &mut Bundles,
        copying: &Copying,
    ) -> Result<Imported, ImportError> {
        let others = || ImportError::OtherNodes {
            me: self.me.to_string(),
            nodes: archive.index.nodes().iter().map(ToString::to_string).collect(),
        };
        let digest = archive.index.manifest_of(&self.me).ok_or_else(others)?.digest;
        let from = archive.clone();
        let signed = blocking(move || Ok(from.document(&digest, CONTENT_MAX)?)).await?;
        let (manifest, is_same) = match self.judge(&signed).await? {
            OfferVerdict::Newer(manifest) => (manifest, false),
            // Its images may be what the link was too thin for.
            OfferVerdict::Same => (unverified(&signed).ok_or(ImportError::Stopped)?, true),
            OfferVerdict::Refused(refusal) => return Err(ImportError::Refused(refusal)),
            OfferVerdict::NoKey => return Err(ImportError::NoKey),
        };
        let contents = self.objects(archive, &manifest).await?;
        let accepted = Accepted::assemble(&manifest, digest, &contents, &Desired::default());
        let accepted = accepted.map_err(ImportError::Refused)?;
        let wanted = images_of(&accepted.desired)?;
        let version = manifest.version();
        self.prepare(archive, bundles, version, &wanted, copying).await?;
        if !is_same {
            let (answer, taken) = oneshot::channel();
            self.offer(Offer::Take { manifest: signed, contents, answer }).await?;
            taken.await.map_err(|_| ImportError::Stopped)?.map_err(ImportError::Refused)?;
            bundles.in_force(version).await;
        }
        let (copied, _) = copying.bytes();
        Ok(Imported { version, is_same, objects: manifest.objects.len(), images: wanted.len(), copied })
    }

    async fn judge(&self, signed: &[u8]) -> Result<OfferVerdict, ImportError> {
        let (answer, verdict) = oneshot::channel();
        self.offer(Offer::Judge { manifest: signed.to_vec(), answer }).await?;
        verdict.await.map_err(|_| ImportError::Stopped)
    }

    async fn offer(&self, offer: Offer) -> Result<(), ImportError> {
        self.sync.send(Received::Bundle(offer)).await.map_err(|_| ImportError::Stopped)
    }

    /// The contents of all objects: the node's own where it has them.
    async fn objects(
        &self,
        archive: &Arc<Archive>,
        manifest: &Manifest,
    ) -> Result<BTreeMap<Digest, Vec<u8>>, ImportError> {
        let (from, keep) = (archive.clone(), self.keep.clone());
        let digests: Vec<Digest> = manifest.objects.iter().map(|entry| entry.digest).collect();
        blocking(move || {
            let content = |digest: Digest| match keep.object(&digest) {
                Some(content) => Ok((digest, content)),
                None => Ok((digest, from.document(&digest, CONTENT_MAX)?)),
            };
            digests.into_iter().map(content).collect()
        })
        .await
    }

    /// Makes every image complete in the store. Where the disk is full, what nothing needs goes first, once.
    async fn prepare(
        &self,
        archive: &Arc<Archive>,
        bundles: &mut Bundles,
        version: Version,
        wanted: &BTreeSet<Digest>,
        copying: &Copying,
    ) -> Result<(), ImportError> {
        let mut made_room = false;
        let mut attempts = 0;
        loop {
            let error = match self.attempt(archive, bundles, version, wanted, copying).await {
                Ok(None) => return Ok(()),
                Ok(Some(incomplete)) if attempts == ATTEMPTS_MAX => {
                    return Err(StoreError::Missing(incomplete).into());
                }
                Ok(Some(_)) => {
                    attempts += 1;
                    continue;
                }
                Err(error) => error,
            };
            match error.room_needed() {
                Some(bytes) if !made_room && self.make_room(bytes).await => made_room = true,
                _ => return Err(error),
            }
        }
    }

    /// Brings what is missing. Returns an image that was not complete, to be looked at once more.
    async fn attempt(
        &self,
        archive: &Arc<Archive>,
        bundles: &mut Bundles,
        version: Version,
        wanted: &BTreeSet<Digest>,
        copying: &Copying,
    ) -> Result<Option<Digest>, ImportError> {
        let (from, store, listed) = (archive.clone(), self.images.clone(), wanted.clone());
        let needed = blocking(move || images::documents(&from, &store, &listed)).await?;
        if needed.incomplete.is_none() {
            return Ok(None);
        }
        // Before anything is copied: what nobody wants yet would be collected.
        bundles.begin(version, needed.pins).await;
        let (store, layers, counts) = (self.images.clone(), needed.layers.clone(), copying.clone());
        let room = Arc::new(blocking(move || images::reserve(&store, &layers, &counts)).await?);
        for layer in needed.layers {
            images::layer(archive, &self.images, layer, copying, &room).await?;
        }
        Ok(needed.incomplete)
    }

    /// Has images removed that nothing needs. Whether there were any.
    async fn make_room(&self, bytes: u64) -> bool {
        let Some(room) = &self.room else { return false };
        let (answer, made) = oneshot::channel();
        room.send(RoomWanted { bytes, answer }).await.is_ok() && made.await.unwrap_or(false)
    }
}

/// The images that revisions run, by digest.
fn images_of(desired: &Desired) -> Result<BTreeSet<Digest>, ImportError> {
    let mut images = BTreeSet::new();
    for (_, object) in desired.revisions.values() {
        for container in &object.spec.containers {
            let invalid = |reason: String| ImportError::Image { image: container.image.clone(), reason };
            let reference: ImageReference =
                container.image.parse().map_err(|error| invalid(format!("{error}")))?;
            let digest = reference.target.digest().ok_or_else(|| invalid("it names no digest".into()))?;
            images.insert(digest);
        }
    }
    Ok(images)
}
