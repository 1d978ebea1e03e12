//! The signatures of an image that were pushed here. Blocks. Must not know which of them are believed.

use tombolo_api::Digest;
use tombolo_api::verification::ImageSignatures;
use tombolo_oci::image::MAX_DOCUMENT;
use tombolo_oci::signature::attached::{Findings, MANIFESTS_MAX, signature_tag};
use tombolo_oci::{Repository, StoreError, Target};

use super::Registry;

impl Registry {
    /// Everything that looks like a signature of `image` in a repository: under cosign's tag, and what names it as its subject.
    pub(crate) fn signatures(
        &self,
        repository: &Repository,
        image: &Digest,
    ) -> Result<ImageSignatures, StoreError> {
        let mut manifests = Vec::new();
        if let Target::Tag(tag) = signature_tag(image) {
            manifests.extend(self.tagged(repository, &tag)?);
        }
        manifests.extend(
            self.0.names.newest_referrers(repository, &(*image).into())?.into_iter().take(MANIFESTS_MAX),
        );
        let mut findings = Findings::default();
        for manifest in manifests {
            // A list of contents or an attestation refers to an image too.
            let Some(content) = self.content(&manifest, MAX_DOCUMENT)? else { continue };
            for part in findings.parts(&content) {
                match self.content(&part.blob.digest, part.limit()) {
                    Ok(Some(content)) => findings.add(&part, &content),
                    Ok(None) => findings.pass_over("a signature whose content was deleted".into()),
                    Err(error) => findings.pass_over(format!("a signature that cannot be read: {error}")),
                }
            }
        }
        Ok(findings.finish())
    }

    fn content(&self, digest: &Digest, limit: u64) -> Result<Option<Vec<u8>>, StoreError> {
        match self.0.images.read_blob(digest, limit) {
            Ok(content) => Ok(Some(content)),
            Err(StoreError::Missing(_)) => Ok(None),
            Err(error) => Err(error),
        }
    }
}
