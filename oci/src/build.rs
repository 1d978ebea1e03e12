//! Building images: layers of files from the disk and from memory, and the documents that put layers together, on top of
//! another image's or alone. The same input gives the same digest: members are sorted, times are zero, owners are root,
//! modes are few.
//!
//! Must not know languages or registries: what goes into the image, and how it is run, is the caller's.

mod documents;
mod layer;
mod members;

use std::io;
use std::path::{Path, PathBuf};

use tombolo_api::Digest;

pub use documents::{Composition, Documents, oci_layer_type};
pub use layer::{Layer, write_layer};
pub use members::Members;

use crate::image::{Platform, RunConfig};
use crate::store::{Store, StoreError};
use members::{BYTES_MAX, ENTRIES_MAX};

/// What to build.
#[derive(Clone, Debug)]
pub struct BuildOptions {
    pub source: Source,
    pub config: RunConfig,
    pub platform: Platform,
}

/// Where an image's files come from.
#[derive(Clone, Debug)]
pub enum Source {
    /// Everything below it, `.git` left out.
    Directory(PathBuf),
    Files(Vec<FileEntry>),
}

/// A file in memory.
#[derive(Clone, Debug)]
pub struct FileEntry {
    /// Below the image's root, without a leading `/`.
    pub path: String,
    pub executable: bool,
    pub content: Vec<u8>,
}

/// An image in the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BuiltImage {
    pub manifest: Digest,
    pub config: Digest,
    pub layers: Vec<Digest>,
    /// Compressed bytes of the layers.
    pub size: u64,
}

/// Why no image could be built.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    #[error("{path} cannot be read")]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{path} is {what}, which an image cannot hold: remove it, or leave it out")]
    Unsupported { path: PathBuf, what: &'static str },
    #[error(
        "{path} has more than {ENTRIES_MAX} files: name the function's own directory, or leave out what it does not need"
    )]
    TooManyEntries { path: PathBuf },
    #[error("{path} has more than {} GiB: name the function's own directory, or leave out what it does not need", BYTES_MAX >> 30)]
    TooManyBytes { path: PathBuf },
    #[error("{0} holds no file")]
    Empty(PathBuf),
    #[error("{0:?} is no path below an image's root")]
    Path(String),
    #[error("{0:?} is given twice, or as a file and a directory at once")]
    Twice(String),
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Builds an image of one layer and puts it into `store`. Blocks.
pub fn build_directory(options: &BuildOptions, store: &Store) -> Result<BuiltImage, BuildError> {
    let mut members = Members::default();
    match &options.source {
        Source::Directory(directory) => {
            members.add_tree(directory, Path::new(""), &|path, _| path != Path::new(".git"))?;
            if !members.has_file() {
                return Err(BuildError::Empty(directory.clone()));
            }
        }
        Source::Files(files) => {
            for file in files {
                members.add_content(&file.path, file.content.clone(), file.executable)?;
            }
        }
    }
    let (file, layer) = write_layer(&members, &store.root().join("tmp"))?;
    // What is there already is the very same content: what was written anew is not needed then.
    if !store.contains(&layer.digest) {
        store.adopt(&file, &layer.digest)?;
        // It has another name now, and nothing is left to remove under the old one.
        let _ = file.keep();
    }
    let documents = Composition {
        layers: vec![layer.clone()],
        config: options.config.clone(),
        platform: options.platform.clone(),
        ..Composition::default()
    }
    .documents();
    let config = store.put(&documents.config)?;
    let manifest = store.put(&documents.manifest)?;
    Ok(BuiltImage { manifest, config, layers: vec![layer.digest], size: layer.size })
}

#[cfg(test)]
mod tests;
