//! Pushing an image that was built here: blobs the registry lacks, then the manifest under its tag.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use futures_util::StreamExt as _;
use reqwest::header::{CONTENT_LENGTH, CONTENT_TYPE, LOCATION};
use reqwest::{Body, Method, Url};
use tokio_util::io::ReaderStream;
use tombolo_api::Digest;

use super::{Client, TransferError, blocking};
use crate::build::BuiltImage;
use crate::image::{MAX_DOCUMENT, OCI_MANIFEST};
use crate::reference::{Repository, Tag};
use crate::store::{Store, StoreError};

/// Bytes of a blob read from the disk at once.
const READ_PIECE: usize = 64 * 1024;

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
        let (from, manifest) = (store.clone(), image.manifest);
        let content = blocking(move || from.read_blob(&manifest, MAX_DOCUMENT)).await?;
        let request = self
            .request(Method::PUT, &format!("{repository}/manifests/{tag}"))
            .header(CONTENT_TYPE, OCI_MANIFEST)
            .body(content);
        self.send_content(request, &AtomicU64::new(0), &format!("{repository}:{tag}")).await?;
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
        let (from, digest) = (store.clone(), *digest);
        let file = tokio::fs::File::from_std(blocking(move || from.open_blob(&digest)).await?);
        let size = store.blob_size(&digest).ok_or(StoreError::Missing(digest))?;
        let sent = Arc::new(AtomicU64::new(0));
        let count = sent.clone();
        let content = ReaderStream::with_capacity(file, READ_PIECE).inspect(move |piece| {
            let bytes = piece.as_ref().map_or(0, |piece| piece.len() as u64);
            count.fetch_add(bytes, Ordering::Relaxed);
        });
        let request =
            if self.is_here(&url) { self.authorised(self.http.put(url)) } else { self.http.put(url) };
        let request = request
            .header(CONTENT_LENGTH, size)
            .header(CONTENT_TYPE, "application/octet-stream")
            .body(Body::wrap_stream(content));
        self.send_content(request, &sent, &what).await?;
        Ok(())
    }

    /// Whether a place belongs to this registry: the password is nobody else's.
    fn is_here(&self, url: &Url) -> bool {
        Url::parse(&self.base).is_ok_and(|base| base.origin() == url.origin())
    }
}
