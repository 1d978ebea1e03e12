//! Which layers that are here may resemble a new one: told by the images that they belong to. Must not know repositories: an image
//! that shares layers with the new one, or has one of nearly its size at the same place, is most likely another version of it.

use std::cmp::Reverse;
use std::collections::BTreeSet;

use tombolo_api::Digest;

use crate::image::{Config, Document, MAX_DOCUMENT, Manifest};
use crate::store::{Store, StoreError};

/// Layers that are looked through for one new one.
const MAX_BASES: usize = 3;

/// Blobs of more bytes are not looked at: manifests of a hundred layers have a fourth of it.
const MAX_MANIFEST: u64 = 64 * 1024;

/// A layer of an image that is here.
#[derive(Clone, Copy, Debug)]
struct Candidate {
    blob: Digest,
    size: u64,
    diff_id: Digest,
    place: usize,
    /// Layers that its image shares with the new one.
    shared: usize,
}

/// Blobs whose content may have much of the layer `new` in it, the likeliest first.
pub(crate) fn resembling(store: &Store, new: &Digest, size: u64) -> Result<Vec<Digest>, StoreError> {
    let images = images(store)?;
    let (mut candidates, mut places, mut own) = (Vec::new(), BTreeSet::new(), BTreeSet::new());
    for (manifest, _) in &images {
        if let Some(place) = manifest.layers.iter().position(|layer| layer.digest == *new) {
            places.insert(place);
            own.extend(manifest.layers.iter().map(|layer| layer.digest));
        }
    }
    for (manifest, config) in &images {
        let shared = manifest.layers.iter().filter(|layer| own.contains(&layer.digest)).count();
        let layers = manifest.layers.iter().zip(&config.diff_ids).enumerate();
        candidates.extend(layers.map(|(place, (layer, diff_id))| Candidate {
            blob: layer.digest,
            size: layer.size,
            diff_id: *diff_id,
            place,
            shared,
        }));
    }
    candidates.retain(|candidate| !own.contains(&candidate.blob));
    candidates.sort_by_key(|candidate| {
        let elsewhere = !places.contains(&candidate.place);
        (Reverse(candidate.shared), elsewhere, candidate.size.abs_diff(size), candidate.blob)
    });
    let mut bases = Vec::new();
    for candidate in candidates {
        // The uncompressed one, if it was put together itself, is faster to read.
        let base = [candidate.diff_id, candidate.blob].into_iter().find(|digest| store.contains(digest));
        if let Some(base) = base.filter(|base| !bases.contains(base)) {
            bases.push(base);
        }
        if bases.len() == MAX_BASES {
            break;
        }
    }
    Ok(bases)
}

/// The images of the store whose manifest and configuration are here.
fn images(store: &Store) -> Result<Vec<(Manifest, Config)>, StoreError> {
    let mut images = Vec::new();
    for (digest, size) in store.blobs()? {
        if size > MAX_MANIFEST {
            continue;
        }
        let Ok(content) = store.read_blob(&digest, MAX_MANIFEST) else { continue };
        let Ok(Document::Manifest(manifest)) = Document::parse(&digest, &content) else { continue };
        let Ok(content) = store.read_blob(&manifest.config.digest, MAX_DOCUMENT) else { continue };
        if let Ok(config) = Config::parse(&manifest.config.digest, &content) {
            images.push((manifest, config));
        }
    }
    Ok(images)
}
