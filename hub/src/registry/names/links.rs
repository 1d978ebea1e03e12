//! Which blobs each repository has: one empty file each, whose time says when it was last used by a push.
//!
//! Must not know what is in the blobs.

use std::fs::{self, File};
use std::path::PathBuf;
use std::time::SystemTime;

use tombolo_api::Digest;
use tombolo_oci::store::sync_directory;
use tombolo_oci::{Repository, StoreError};

use super::{Names, failed, is_absent, list, make_directories, remove};

impl Names {
    /// Whether the repository has the blob.
    pub(in super::super) fn has_blob(&self, repository: &Repository, digest: &Digest) -> bool {
        self.blobs_of(repository).join(digest.hex()).is_file()
    }

    /// Says that somebody was told that the repository has the blob; whether it has.
    pub(in super::super) fn use_blob(
        &self,
        repository: &Repository,
        digest: &Digest,
    ) -> Result<bool, StoreError> {
        let path = self.blobs_of(repository).join(digest.hex());
        // Not synced: what a power cut takes back is the time of a use, and with it the push it was for.
        match File::options().write(true).open(&path).and_then(|file| file.set_modified(SystemTime::now())) {
            Ok(()) => Ok(true),
            Err(error) if is_absent(&error) => Ok(false),
            Err(error) => Err(failed("touch", &path)(error)),
        }
    }

    /// From now on the repository has the blob.
    pub(in super::super) fn add_blob(
        &self,
        repository: &Repository,
        digest: &Digest,
    ) -> Result<(), StoreError> {
        if self.use_blob(repository, digest)? {
            return Ok(());
        }
        let directory = self.blobs_of(repository);
        make_directories(&directory)?;
        let path = directory.join(digest.hex());
        File::create(&path).map_err(failed("create", &path))?;
        sync_directory(&directory)
    }

    /// From now on it has it no more; whether it had it.
    pub(in super::super) fn remove_blob(
        &self,
        repository: &Repository,
        digest: &Digest,
    ) -> Result<bool, StoreError> {
        remove(&self.blobs_of(repository), &digest.hex())
    }

    /// When a push last used the blob, if the repository has it.
    pub(in super::super) fn blob_used(
        &self,
        repository: &Repository,
        digest: &Digest,
    ) -> Result<Option<SystemTime>, StoreError> {
        let path = self.blobs_of(repository).join(digest.hex());
        match fs::metadata(&path).and_then(|metadata| metadata.modified()) {
            Ok(used) => Ok(Some(used)),
            Err(error) if is_absent(&error) => Ok(None),
            Err(error) => Err(failed("read", &path)(error)),
        }
    }

    /// The blobs of a repository.
    pub(in super::super) fn blobs(&self, repository: &Repository) -> Result<Vec<Digest>, StoreError> {
        Ok(digests(&list(&self.blobs_of(repository))?))
    }

    /// The manifests of a repository.
    pub(in super::super) fn manifests_of(&self, repository: &Repository) -> Result<Vec<Digest>, StoreError> {
        Ok(digests(&list(&self.manifests(repository))?))
    }

    /// Every repository that has or had anything.
    pub(in super::super) fn repositories(&self) -> Result<Vec<Repository>, StoreError> {
        let mut found = Vec::new();
        let mut waiting = vec![String::new()];
        while let Some(name) = waiting.pop() {
            let mut is_repository = false;
            for part in list(&self.root.join(&name))? {
                match part.starts_with('_') {
                    true => is_repository = true,
                    false if name.is_empty() => waiting.push(part),
                    false => waiting.push(format!("{name}/{part}")),
                }
            }
            found.extend(name.parse::<Repository>().ok().filter(|_| is_repository));
        }
        Ok(found)
    }

    /// Whether the links of registries from before there were links have been made.
    pub(in super::super) fn has_links(&self) -> bool {
        self.marker().is_file()
    }

    /// They have.
    pub(in super::super) fn set_has_links(&self) -> Result<(), StoreError> {
        let marker = self.marker();
        File::create(&marker).map_err(failed("create", &marker))?;
        sync_directory(&self.root)
    }

    fn marker(&self) -> PathBuf {
        self.root.join(".linked")
    }

    fn blobs_of(&self, repository: &Repository) -> PathBuf {
        self.root.join(repository.as_str()).join("_blobs")
    }
}

fn digests(names: &[String]) -> Vec<Digest> {
    names.iter().filter_map(|hex| format!("sha256:{hex}").parse().ok()).collect()
}
