//! Pushing an image: blobs the registry lacks, then the manifest under its tag.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use reqwest::header::{CONTENT_LENGTH, CONTENT_TYPE, LOCATION};
use reqwest::{Body, Method, StatusCode, Url};
use tokio_util::io::ReaderStream;
use tombolo_api::Digest;

use super::{Client, TransferError, blocking};
use crate::build::BuiltImage;
use crate::image::{MAX_DOCUMENT, OCI_MANIFEST};
use crate::reference::{Repository, Tag};
use crate::store::{Store, StoreError, failed};

/// Bytes of a blob read from the disk at once.
const READ_PIECE: usize = 64 * 1024;

/// Blobs of one image on their way at once.
const PARALLEL: usize = 4;

/// A blob that the registry shall have.
#[derive(Clone, Debug)]
pub struct PushBlob {
    pub digest: Digest,
    pub content: PushContent,
}

/// Where a blob's content is.
#[derive(Clone, Debug)]
pub enum PushContent {
    File(PathBuf),
    Memory(Bytes),
    /// In another repository of the registry, as part of the image there; nowhere here.
    Elsewhere(Repository),
}

impl Client {
    /// Makes the registry hold `image`, under `tag` and its digest. Returns the digest.
    pub async fn push(
        &self,
        store: &Store,
        repository: &Repository,
        tag: &Tag,
        image: &BuiltImage,
    ) -> Result<Digest, TransferError> {
        let blob = |digest: &Digest| PushBlob {
            digest: *digest,
            content: PushContent::File(store.blob_path(digest)),
        };
        let blobs: Vec<_> = image.layers.iter().chain([&image.config]).map(blob).collect();
        let (from, manifest) = (store.clone(), image.manifest);
        let content = blocking(move || from.read_blob(&manifest, MAX_DOCUMENT)).await?;
        self.push_parts(repository, tag, blobs, content.into()).await?;
        Ok(image.manifest)
    }

    /// Makes the registry hold the blobs, and the OCI manifest that needs them under `tag`. Returns what had to be sent.
    pub async fn push_parts(
        &self,
        repository: &Repository,
        tag: &Tag,
        blobs: Vec<PushBlob>,
        manifest: Bytes,
    ) -> Result<Vec<Digest>, TransferError> {
        let sent: Vec<Option<Digest>> = stream::iter(blobs)
            .map(|blob| async move {
                let sent = self.push_blob(repository, &blob).await?;
                Ok::<_, TransferError>(sent.then_some(blob.digest))
            })
            .buffer_unordered(PARALLEL)
            .try_collect()
            .await?;
        let request = self
            .request(Method::PUT, &format!("{repository}/manifests/{tag}"))
            .header(CONTENT_TYPE, OCI_MANIFEST)
            .body(manifest);
        self.send_content(request, &AtomicU64::new(0), &format!("{repository}:{tag}")).await?;
        Ok(sent.into_iter().flatten().collect())
    }

    /// Whether the blob had to be sent.
    async fn push_blob(&self, repository: &Repository, blob: &PushBlob) -> Result<bool, TransferError> {
        let digest = &blob.digest;
        let what = format!("{repository}@{digest}");
        match self.send(self.request(Method::HEAD, &format!("{repository}/blobs/{digest}")), &what).await {
            Ok(_) => return Ok(false),
            Err(TransferError::NotFound { .. }) => {}
            Err(error) => return Err(error),
        }
        // Another repository may have it: the one that is known, or any that the registry knows of.
        let mut place = format!("{repository}/blobs/uploads/?mount={digest}");
        if let PushContent::Elsewhere(from) = &blob.content {
            place = format!("{place}&from={from}");
        }
        let begun = self.send(self.request(Method::POST, &place), &what).await?;
        if begun.status() == StatusCode::CREATED {
            return Ok(false);
        }
        let broken = |cause: &str| TransferError::Broken { what: what.clone(), cause: cause.to_owned() };
        let location = begun.headers().get(LOCATION).and_then(|value| value.to_str().ok());
        let location = location.ok_or_else(|| broken("it names no place for the upload"))?;
        let mut url: Url =
            begun.url().join(location).map_err(|_| broken("its place for the upload is no URL"))?;
        url.query_pairs_mut().append_pair("digest", &digest.to_string());
        let sent = Arc::new(AtomicU64::new(0));
        let (content, size) = body(blob, &sent).await?;
        let request =
            if self.is_here(&url) { self.authorised(self.http.put(url)) } else { self.http.put(url) };
        let request = request
            .header(CONTENT_LENGTH, size)
            .header(CONTENT_TYPE, "application/octet-stream")
            .body(content);
        self.send_content(request, &sent, &what).await?;
        Ok(true)
    }
}

/// The content as a request's body that counts what was sent, and its length.
async fn body(blob: &PushBlob, sent: &Arc<AtomicU64>) -> Result<(Body, u64), TransferError> {
    let path = match &blob.content {
        PushContent::Memory(bytes) => return Ok((bytes.clone().into(), bytes.len() as u64)),
        PushContent::Elsewhere(_) => return Err(StoreError::Missing(blob.digest).into()),
        PushContent::File(path) => path,
    };
    let file = tokio::fs::File::open(path).await.map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => StoreError::Missing(blob.digest),
        _ => failed("open", path)(error),
    })?;
    let size = file.metadata().await.map_err(failed("read", path))?.len();
    let count = sent.clone();
    let content = ReaderStream::with_capacity(file, READ_PIECE).inspect(move |piece| {
        let bytes = piece.as_ref().map_or(0, |piece| piece.len() as u64);
        count.fetch_add(bytes, Ordering::Relaxed);
    });
    Ok((Body::wrap_stream(content), size))
}
