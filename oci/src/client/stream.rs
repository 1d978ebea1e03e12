//! A blob as it comes, for whoever passes it on.

use bytes::Bytes;
use reqwest::header::{CONTENT_RANGE, RANGE};
use reqwest::{Method, Response, StatusCode};
use tombolo_api::Digest;

use super::{Client, TransferError};
use crate::reference::Repository;

/// A blob from one of its bytes on. Nothing of it is verified.
#[derive(Debug)]
pub struct BlobStream {
    client: Client,
    answer: Response,
    what: String,
    start: u64,
    size: u64,
}

impl Client {
    /// Opens a blob at `from`, or at its beginning where the registry takes no range.
    pub async fn open_blob(
        &self,
        repository: &Repository,
        digest: &Digest,
        from: u64,
    ) -> Result<BlobStream, TransferError> {
        let what = format!("{repository}@{digest}");
        let request = || self.request(Method::GET, &format!("{repository}/blobs/{digest}"));
        let asked = if from == 0 { request() } else { request().header(RANGE, format!("bytes={from}-")) };
        let answer = match self.send(asked, &what).await {
            Err(TransferError::Refused { status: 416, .. }) if from > 0 => {
                self.send(request(), &what).await?
            }
            other => other?,
        };
        let range = answer.headers().get(CONTENT_RANGE).and_then(|value| value.to_str().ok());
        let place = match answer.status() {
            StatusCode::PARTIAL_CONTENT => range.and_then(part),
            _ => answer.content_length().map(|size| (0, size)),
        };
        let Some((start, size)) = place else {
            let cause = "it does not say how long it is".to_owned();
            return Err(TransferError::Broken { what, cause });
        };
        Ok(BlobStream { client: self.clone(), answer, what, start, size })
    }
}

impl BlobStream {
    /// The byte of the blob that comes first.
    pub fn start(&self) -> u64 {
        self.start
    }

    /// The whole blob's size.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// What comes next, `None` at the end.
    pub async fn next(&mut self) -> Result<Option<Bytes>, TransferError> {
        let piece = self.client.next_piece(&mut self.answer).await;
        piece.map_err(|cause| TransferError::Interrupted { what: self.what.clone(), cause })
    }
}

/// First byte and whole size of `bytes 5-9/10`.
fn part(range: &str) -> Option<(u64, u64)> {
    let (range, size) = range.strip_prefix("bytes ")?.split_once('/')?;
    Some((range.split_once('-')?.0.parse().ok()?, size.parse().ok()?))
}
