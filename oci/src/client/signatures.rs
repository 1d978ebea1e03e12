//! Collecting the signatures of an image from a registry: what lies under cosign's tag, and what names the image as its subject.
//! Must not know which of them are believed.

use reqwest::header::{ACCEPT, CONTENT_TYPE, HeaderValue};
use reqwest::{Method, Response};
use tombolo_api::Digest;
use tombolo_api::verification::ImageSignatures;

use super::{Client, TransferError};
use crate::image::{MAX_DOCUMENT, OCI_INDEX};
use crate::reference::{Repository, Target};
use crate::signature::attached::{Findings, Part, referrers_tag, signature_tag};

impl Client {
    /// Everything that looks like a signature of `image` in its repository. An error says that nothing is known: that there is none
    /// is an answer.
    pub async fn signatures(
        &self,
        repository: &Repository,
        image: &Digest,
    ) -> Result<ImageSignatures, TransferError> {
        let mut findings = Findings::default();
        if let Some(manifest) = found(self.manifest(repository, &signature_tag(image)).await)? {
            self.parts(repository, &manifest.1, &mut findings).await?;
        }
        let index = self.referrers(repository, image).await?;
        for digest in findings.referrers(&index) {
            if let Some(manifest) = found(self.manifest(repository, &Target::Digest(digest)).await)? {
                self.parts(repository, &manifest.1, &mut findings).await?;
            }
        }
        Ok(findings.finish())
    }

    /// The index of what refers to `image`; empty if the registry has none, or knows no such thing.
    async fn referrers(&self, repository: &Repository, image: &Digest) -> Result<Vec<u8>, TransferError> {
        let what = format!("{repository}: referrers of {image}");
        let request = self.request(Method::GET, &format!("{repository}/referrers/{image}"));
        let request = request.header(ACCEPT, HeaderValue::from_static(OCI_INDEX));
        match self.send(request, &what).await {
            Ok(answer) if is_index(&answer) => Ok(self.body(answer, MAX_DOCUMENT, &what).await?.to_vec()),
            // Registries older than the API answer with all sorts of refusals, or with a page for people.
            Ok(_)
            | Err(TransferError::NotFound { .. } | TransferError::Refused { status: 400..=499, .. }) => {
                let listed = found(self.manifest(repository, &referrers_tag(image)).await)?;
                // Some take the tag for the digest.
                let listed = listed.filter(|(digest, _)| digest != image);
                Ok(listed.map(|(_, index)| index.to_vec()).unwrap_or_default())
            }
            Err(error) => Err(error),
        }
    }

    async fn parts(
        &self,
        repository: &Repository,
        manifest: &[u8],
        findings: &mut Findings,
    ) -> Result<(), TransferError> {
        for part in findings.parts(manifest) {
            match self.part(repository, &part).await {
                Ok(content) => findings.add(&part, &content),
                Err(error @ (TransferError::NotFound { .. } | TransferError::Broken { .. })) => {
                    findings.pass_over(format!("a signature that cannot be had: {error}"));
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    async fn part(&self, repository: &Repository, part: &Part) -> Result<Vec<u8>, TransferError> {
        let digest = &part.blob.digest;
        let what = format!("{repository}@{digest}");
        let answer =
            self.send(self.request(Method::GET, &format!("{repository}/blobs/{digest}")), &what).await?;
        let content = self.body(answer, part.limit(), &what).await?;
        let is = Digest::of(&content);
        if is != *digest {
            let cause = format!("{digest} was expected, but the content is {is}");
            return Err(TransferError::Broken { what, cause });
        }
        Ok(content.to_vec())
    }
}

fn is_index(answer: &Response) -> bool {
    answer.headers().get(CONTENT_TYPE).is_some_and(|kind| kind.as_bytes().starts_with(OCI_INDEX.as_bytes()))
}

/// `None` for what is not there.
fn found<T>(answer: Result<T, TransferError>) -> Result<Option<T>, TransferError> {
    match answer {
        Ok(answer) => Ok(Some(answer)),
        Err(TransferError::NotFound { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}
