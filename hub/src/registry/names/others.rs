//! Names of content by digests that are not sha256: one small file each, with the sha256 in it. They are the whole registry's,
//! and say nothing about who has the content.

use std::path::PathBuf;

use tombolo_api::Digest;
use tombolo_oci::StoreError;

use super::super::digests::{AnyDigest, Sha512};
use super::{Names, list, read, remove, write};

impl Names {
    /// The content that a client names, as far as that is known: whether it is here is another question.
    pub(in super::super) fn resolve(&self, named: &AnyDigest) -> Result<Option<Digest>, StoreError> {
        match named {
            AnyDigest::Sha256(digest) => Ok(Some(*digest)),
            AnyDigest::Sha512(other) => self.other_name(other),
        }
    }

    /// The same for a digest that is not sha256.
    pub(in super::super) fn other_name(&self, other: &Sha512) -> Result<Option<Digest>, StoreError> {
        Ok(read(&self.others().join(other.hex()))?.and_then(|text| text.parse().ok()))
    }

    /// From now on the content has this name too, which was verified.
    pub(in super::super) fn add_other_name(&self, other: &Sha512, digest: &Digest) -> Result<(), StoreError> {
        if self.other_name(other)? == Some(*digest) {
            return Ok(());
        }
        write(&self.others(), &other.hex(), &digest.to_string())
    }

    /// Forgets the names of content that is not `kept`.
    pub(in super::super) fn forget_other_names(
        &self,
        kept: impl Fn(&Digest) -> bool,
    ) -> Result<(), StoreError> {
        for hex in list(&self.others())? {
            let Ok(other) = format!("sha512:{hex}").parse() else { continue };
            if !self.other_name(&other)?.is_some_and(|digest| kept(&digest)) {
                remove(&self.others(), &hex)?;
            }
        }
        Ok(())
    }

    /// No repository's name starts with a dot.
    fn others(&self) -> PathBuf {
        self.root.join(".sha512")
    }
}
