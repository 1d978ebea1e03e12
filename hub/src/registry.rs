//! The hub's own image registry: the OCI distribution API over the content store, and the names in it.
//!
//! ```text
//! {state_dir}/registry/blobs/…                                    content, see tombolo_oci::store
//! {state_dir}/registry/repositories/{name}/_tags/{tag}            a digest
//! {state_dir}/registry/repositories/{name}/_manifests/{hex}       a media type: this manifest was pushed here
//! {state_dir}/registry/repositories/{name}/_blobs/{hex}           empty: the repository has this blob
//! {state_dir}/registry/repositories/{name}/_referrers/{hex}/{hex} empty: the second manifest names the first as subject
//! {state_dir}/registry/repositories/.sha512/{hex}                 a digest: the sha256 of what this is the sha512 of
//! {state_dir}/registry/uploads/{id}                               uploads under way, emptied at every start
//! {state_dir}/registry/chunks/{hex}                               the chunk list of a layer, made again when it is lost
//! ```
//!
//! What a client was told is stored is on the disk. Content is kept once, whoever has it; a repository has the blobs that
//! were pushed to it or mounted into it. Must not know resources and nodes.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

use tokio::sync::watch;
use tombolo_api::Digest;
use tombolo_oci::image::{ImageError, MAX_DOCUMENT};
use tombolo_oci::{ImageReference, Repository, Store, StoreError, Tag, Target};

mod blobs;
mod chunks;
mod collect;
mod contents;
mod digests;
mod error;
mod forward;
mod http;
mod leftover;
mod manifests;
mod names;
mod referrers;
mod signatures;
mod through;
mod uploads;

use chunks::Chunks;
pub(crate) use contents::Contents;
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
    chunks: Chunks,
    /// Held to write while something unused is removed, to read while something is found to be there and then named: what
    /// a client was told is there must not go before it could name it.
    collecting: RwLock<()>,
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
        let path = root.join("chunks");
        let chunks = Chunks::open(&path).map_err(|source| OpenError::Io { path, source })?;
        let registry = Self(Arc::new(Inner {
            images,
            names,
            uploads,
            chunks,
            collecting: RwLock::default(),
            changes: watch::Sender::new(0),
        }));
        if !registry.0.names.has_links() {
            registry.link_all()?;
            registry.0.names.set_has_links()?;
        }
        Ok(registry)
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

    /// While the guard is held, nothing is collected.
    fn using(&self) -> RwLockReadGuard<'_, ()> {
        self.0.collecting.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Every blob that a manifest of the repository names.
    fn named_in(&self, repository: &Repository) -> Result<BTreeSet<Digest>, StoreError> {
        let mut named = BTreeSet::new();
        for digest in self.0.names.manifests_of(repository)? {
            match self.0.images.read_blob(&digest, MAX_DOCUMENT) {
                // It was read when it was pushed.
                Ok(content) => named.extend(self.contents(&digest, &content)?.unwrap_or_default().blobs),
                Err(StoreError::Missing(_)) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(named)
    }

    /// What a manifest names, by whatever digests.
    fn contents(&self, digest: &Digest, content: &[u8]) -> Result<Result<Contents, ImageError>, StoreError> {
        let mut failure = None;
        let contents = Contents::parse_named(digest, content, |other| {
            self.0.names.other_name(other).unwrap_or_else(|error| {
                failure = Some(error);
                None
            })
        });
        failure.map_or(Ok(contents), Err)
    }

    /// Registries once had no links: every repository has the blobs that its manifests name.
    fn link_all(&self) -> Result<(), StoreError> {
        for repository in self.0.names.repositories()? {
            let named = match self.named_in(&repository) {
                Err(error @ StoreError::DigestMismatch { .. }) => {
                    tracing::error!(%repository, %error, "a manifest is damaged: push its image again");
                    continue;
                }
                named => named?,
            };
            for digest in named {
                if self.0.images.contains(&digest) {
                    self.0.names.add_blob(&repository, &digest)?;
                }
            }
        }
        Ok(())
    }

    fn changed(&self) {
        self.0.changes.send_modify(|count| *count += 1);
    }
}
