//! The images of a bundle, brought into the content store: documents, then layers, each going on where it broke off, and
//! unpacked. What the store has is not read from the bundle.
//!
//! Nothing that runs is touched, and nothing here decides what should run.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use tombolo_api::Digest;
use tombolo_oci::image::{self, Blob, Config, Document, MAX_DOCUMENT};
use tombolo_oci::store::Reservation;
use tombolo_oci::{Archive, ArchiveError, Platform, Store, StoreError};

use super::error::ImportError;

/// Bytes read and written at once.
const PIECE: usize = 256 * 1024;

/// How far the copying of one bundle is, and whether it should go on. Clones share it.
#[derive(Clone, Debug, Default)]
pub(super) struct Copying(Arc<Counters>);

#[derive(Debug, Default)]
struct Counters {
    copied: AtomicU64,
    total: AtomicU64,
    cancelled: AtomicBool,
}

/// Somebody waits for what is copied.
pub(super) struct Waiting(Copying);

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.cancel();
    }
}

/// One layer of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Layer {
    pub(super) digest: Digest,
    size: u64,
    pub(super) diff_id: Digest,
}

/// What images are made of.
#[derive(Clone, Debug, Default)]
pub(super) struct Needed {
    /// Everything of all of them, to be kept: blobs and unpacked layers.
    pub(super) pins: BTreeSet<Digest>,
    /// Of those that are not complete.
    pub(super) layers: BTreeSet<Layer>,
    /// One that is not complete.
    pub(super) incomplete: Option<Digest>,
}

impl Copying {
    /// Bytes of layers that were copied, and that had to be.
    pub(super) fn bytes(&self) -> (u64, u64) {
        (self.0.copied.load(Ordering::Relaxed), self.0.total.load(Ordering::Relaxed))
    }

    /// Has the copying end when who waits for it does: an agent that stops must not wait for a stick.
    pub(super) fn until_dropped(&self) -> Waiting {
        Waiting(self.clone())
    }

    pub(super) fn cancel(&self) {
        self.0.cancelled.store(true, Ordering::Relaxed);
    }

    fn check(&self) -> Result<(), ImportError> {
        if self.0.cancelled.load(Ordering::Relaxed) { Err(ImportError::Cancelled) } else { Ok(()) }
    }
}

/// Brings the documents of images into the store, and says what else they need.
pub(super) fn documents(
    archive: &Archive,
    store: &Store,
    images: &BTreeSet<Digest>,
) -> Result<Needed, ImportError> {
    let (platform, mut needed) = (Platform::host(), Needed::default());
    for image in images {
        if let Some(summary) = image::summary(store, image, &platform)? {
            needed.pins.extend(summary.blobs);
            needed.pins.extend(summary.diff_ids);
        } else {
            needed.incomplete = Some(*image);
            documents_of(archive, store, image, &platform, &mut needed)?;
        }
    }
    Ok(needed)
}

fn documents_of(
    archive: &Archive,
    store: &Store,
    image: &Digest,
    platform: &Platform,
    needed: &mut Needed,
) -> Result<(), ImportError> {
    let mut digest = *image;
    needed.pins.insert(digest);
    let manifest = loop {
        match Document::parse(&digest, &document(archive, store, &digest)?)? {
            Document::Manifest(manifest) => break manifest,
            Document::Index(entries) if digest == *image => {
                digest = image::choose(&entries, platform)?.manifest.digest;
                needed.pins.insert(digest);
            }
            Document::Index(_) => {
                let reason = "an index that leads to another index is not supported".into();
                return Err(ImportError::Image { image: image.to_string(), reason });
            }
        }
    };
    let config = manifest.config.digest;
    needed.pins.insert(config);
    let config = Config::parse(&config, &document(archive, store, &config)?)?;
    config.check(&digest, &manifest, platform)?;
    for (Blob { digest, size }, diff_id) in manifest.layers.iter().zip(&config.diff_ids) {
        needed.pins.extend([*digest, *diff_id]);
        needed.layers.insert(Layer { digest: *digest, size: *size, diff_id: *diff_id });
    }
    Ok(())
}

/// Takes the room that is missing, by the least that it takes: the blobs as they are, and unpacked as much again.
pub(super) fn reserve(
    store: &Store,
    layers: &BTreeSet<Layer>,
    copying: &Copying,
) -> Result<Reservation, ImportError> {
    let (mut copied, mut unpacked) = (0_u64, 0_u64);
    for layer in layers.iter().filter(|layer| store.layer_path(&layer.diff_id).is_none()) {
        unpacked = unpacked.saturating_add(layer.size);
        if !store.contains(&layer.digest) {
            let here = store.partial_size(&layer.digest).min(layer.size);
            copied = copied.saturating_add(layer.size - here);
        }
    }
    copying.0.total.store(copied, Ordering::Relaxed);
    Ok(store.reserve(copied.saturating_add(unpacked))?)
}

/// Makes one layer present and unpacked. A copy that was damaged on the disk is made once more.
pub(super) async fn layer(
    archive: &Arc<Archive>,
    store: &Store,
    layer: Layer,
    copying: &Copying,
    room: &Arc<Reservation>,
) -> Result<(), ImportError> {
    let mut again = true;
    loop {
        if store.layer_path(&layer.diff_id).is_some() {
            return Ok(());
        }
        // One claim after the other, never both: an uncompressed layer's two digests are the same.
        let claim = store.claim(&layer.digest).await;
        let (from, to, counts, left) = (archive.clone(), store.clone(), copying.clone(), room.clone());
        blocking(move || blob(&from, &to, layer, &counts, &left)).await?;
        drop(claim);
        let _claim = store.claim(&layer.diff_id).await;
        let to = store.clone();
        let error = match blocking(move || to.unpack(&layer.digest, &layer.diff_id).map_err(Into::into)).await
        {
            Ok(_) => {
                room.used(layer.size);
                return Ok(());
            }
            Err(error) => error,
        };
        let to = store.clone();
        let is_damage = matches!(&error, ImportError::Unpack(error) if error.is_damage());
        if !again || !is_damage || blocking(move || Ok(to.verify(&layer.digest)?)).await? {
            return Err(error);
        }
        tracing::warn!(digest = %layer.digest, %error, "a stored layer is damaged, copying it again");
        store.remove_blob(&layer.digest)?;
        again = false;
    }
}

/// Copies a blob, from where an earlier attempt stopped.
fn blob(
    archive: &Archive,
    store: &Store,
    layer: Layer,
    copying: &Copying,
    room: &Reservation,
) -> Result<(), ImportError> {
    let Layer { digest, size, .. } = layer;
    if store.contains(&digest) {
        return Ok(());
    }
    let actual = archive.size(&digest).ok_or_else(|| archive.lacks(&digest))?;
    if actual != size {
        return Err(ImportError::WrongSize { digest, expected: size, actual });
    }
    let mut piece = vec![0; PIECE];
    let mut again = true;
    loop {
        let mut partial = store.partial(&digest, size)?;
        again &= !partial.is_empty();
        while !partial.is_complete() {
            copying.check()?;
            let count = archive.read(&digest, partial.len(), &mut piece)?;
            partial.write(&piece[..count])?;
            copying.0.copied.fetch_add(count as u64, Ordering::Relaxed);
            room.used(count as u64);
        }
        match partial.commit() {
            Ok(()) => return Ok(()),
            // What was here from before may have been damaged: once more, from the first byte.
            Err(StoreError::DigestMismatch { .. }) if again => again = false,
            Err(StoreError::DigestMismatch { .. }) => return Err(ArchiveError::Corrupt(digest).into()),
            Err(error) => return Err(error.into()),
        }
    }
}

/// A document of the store, or else of the bundle, which is in the store then.
fn document(archive: &Archive, store: &Store, digest: &Digest) -> Result<Vec<u8>, ImportError> {
    match store.read_blob(digest, MAX_DOCUMENT) {
        Ok(content) => return Ok(content),
        Err(StoreError::Missing(_)) => {}
        Err(StoreError::DigestMismatch { .. }) => store.remove_blob(digest)?,
        Err(error) => return Err(error.into()),
    }
    let content = archive.document(digest, MAX_DOCUMENT)?;
    store.put(&content)?;
    Ok(content)
}

/// Does disk work where it holds nobody up.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ImportError> + Send + 'static,
) -> Result<T, ImportError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(error) if error.is_cancelled() => Err(ImportError::Stopped),
        Err(error) => Err(ArchiveError::Unreadable(std::io::Error::other(error.to_string())).into()),
    }
}
