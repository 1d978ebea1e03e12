//! The hub's own image registry: the OCI distribution API over the content store, and the names in it.
//!
//! ```text
//! {state_dir}/registry/blobs/…                                    content, see tombolo_oci::store
//! {state_dir}/registry/repositories/{name}/_tags/{tag}            a digest
//! {state_dir}/registry/repositories/{name}/_manifests/{hex}       a media type: this manifest was pushed here
//! {state_dir}/registry/repositories/{name}/_referrers/{hex}/{hex} empty: the second manifest names the first as subject
//! {state_dir}/registry/uploads/{id}                               uploads under way, emptied at every start
//! ```
//!
//! What a client was told is stored is on the disk. Blobs are the hub's, not a repository's: a layer that came with one
//! image is there for all. Must not know resources and nodes.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::sync::watch;
use tombolo_api::Digest;
use tombolo_oci::{ImageReference, Repository, Store, StoreError, Tag, Target};

mod blobs;
mod error;
mod http;
mod manifests;
mod names;
mod referrers;
mod uploads;

pub(crate) use http::{Access, router};
use names::Names;
use uploads::Uploads;

/// A handle of the registry.
#[derive(Clone, Debug)]
pub(crate) struct Registry(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    images: Store,
    names: Names,
    uploads: Uploads,
    /// Counts changes of names: whoever waits for an image looks again.
    changes: watch::Sender<u64>,
}

/// Why a registry cannot be opened.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OpenError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("cannot prepare {path}")]
    Io {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
}

impl Registry {
    /// Opens the registry in `root`, made if absent. Blocks.
    pub(crate) fn open(root: &Path) -> Result<Self, OpenError> {
        let images = Store::open(root)?;
        let names = Names::open(&root.join("repositories"))?;
        let path = root.join("uploads");
        let uploads = Uploads::open(&path).map_err(|source| OpenError::Io { path, source })?;
        Ok(Self(Arc::new(Inner { images, names, uploads, changes: watch::Sender::new(0) })))
    }

    /// Changes whenever a name changed.
    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.0.changes.subscribe()
    }

    /// The digest of the manifest that `image` names here, if there is one. Blocks for one small read.
    pub(crate) fn resolve(&self, image: &ImageReference) -> Result<Option<Digest>, StoreError> {
        let digest = match &image.target {
            Target::Digest(digest) => Some(*digest),
            Target::Tag(tag) => self.tagged(&image.repository, tag)?,
        };
        let Some(digest) = digest else { return Ok(None) };
        let known = self.0.names.manifest(&image.repository, &digest)?.is_some();
        Ok((known && self.0.images.contains(&digest)).then_some(digest))
    }

    fn tagged(&self, repository: &Repository, tag: &Tag) -> Result<Option<Digest>, StoreError> {
        self.0.names.tag(repository, tag)
    }

    fn changed(&self) {
        self.0.changes.send_modify(|count| *count += 1);
    }
}
