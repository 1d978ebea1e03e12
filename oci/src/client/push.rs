//! Pushing an image that was built here: blobs the registry lacks, then the manifest under its tag.

use reqwest::header::{CONTENT_LENGTH, CONTENT_TYPE, LOCATION};
use reqwest::{Body, Method, Url};
use tokio_util::io::ReaderStream;
use tombolo_api::Digest;

use super::{Client, TransferError};
use crate::build::BuiltImage;
use crate::image::{MAX_DOCUMENT, OCI_MANIFEST};
use crate::reference::{Repository, Tag};
use crate::store::{Store, StoreError};

impl Client {
    /// Makes the registry hold `image`, under `tag` and its digest. Returns the digest.
    pub async fn push(
        &self,
        store: &Store,
        repository: &Repository,
        tag: &Tag,
        image: &BuiltImage,
    ) -> Result<Digest, TransferError> {
        for digest in image.layers.iter().chain([&image.config]) {
            self.push_blob(store, repository, digest).await?;
        }
        let content = store.read_blob(&image.manifest, MAX_DOCUMENT)?;
        let request = self
            .request(Method::PUT, &format!("{repository}/manifests/{tag}"))
            .header(CONTENT_TYPE, OCI_MANIFEST)
            .body(content);
        self.send(request, &format!("{repository}:{tag}")).await?;
        Ok(image.manifest)
    }

    async fn push_blob(
        &self,
        store: &Store,
        repository: &Repository,
        digest: &Digest,
    ) -> Result<(), TransferError> {
        let what = format!("{repository}@{digest}");
        match self.send(self.request(Method::HEAD, &format!("{repository}/blobs/{digest}")), &what).await {
            Ok(_) => return Ok(()),
            Err(TransferError::NotFound { .. }) => {}
            Err(error) => return Err(error),
        }
        let begun =
            self.send(self.request(Method::POST, &format!("{repository}/blobs/uploads/")), &what).await?;
        let broken = |cause: &str| TransferError::Broken { what: what.clone(), cause: cause.to_owned() };
        let location = begun.headers().get(LOCATION).and_then(|value| value.to_str().ok());
        let location = location.ok_or_else(|| broken("it names no place for the upload"))?;
        let mut url: Url =
            begun.url().join(location).map_err(|_| broken("its place for the upload is no URL"))?;
        url.query_pairs_mut().append_pair("digest", &digest.to_string());
        let size = store.blob_size(digest).ok_or(StoreError::Missing(*digest))?;
        let file = tokio::fs::File::from_std(store.open_blob(digest)?);
        let request = self
            .authorised(self.http.put(url))
            .header(CONTENT_LENGTH, size)
            .header(CONTENT_TYPE, "application/octet-stream")
            .body(Body::wrap_stream(ReaderStream::new(file)));
        self.send(request, &what).await?;
        Ok(())
    }
}
